"""The tokens of this installation: made, revoked, and told to the front ends as they change (S9).

The whole book is in memory; it is small. A front end listens to `follow` and keeps a copy, so that
nobody asks the supervisor who somebody is.
"""

import asyncio
import os
from collections.abc import AsyncGenerator, Callable, Iterable

import msgspec

from .commits import Commits
from .errors import Conflict, Forbidden, NotFound
from .store import Store
from .tokens import MAX_LIVE, RANDOM_BYTES, Scope, TokenOrder, TokenRow, check_order, make, may_revoke

#: A listener hears something at least so often: silence means that the line is dead.
HEARTBEAT_SECS = 1.0
_DAY = 86_400_000_000


class TokenBook:
    """Owned by the supervisor; used on the loop's thread only."""

    def __init__(self, store: Store, commits: Commits, now: Callable[[], int]) -> None:
        self._store = store
        self._commits = commits
        self._now = now
        self._rows: dict[str, TokenRow] = {}
        #: Ids in the order of their last change, each with its number.
        self._changed: dict[str, int] = {}
        self._changes = 0
        self._news: asyncio.Future[None] | None = None

    async def load(self) -> None:
        """Know what was written down before the restart."""
        self._rows = {row.token: row for row in await self._store.tokens()}

    async def create(self, order: TokenOrder, by: str) -> tuple[str, TokenRow]:
        """A new token, durable, and its row. The token itself is told here and never again."""
        checked = check_order(order)
        at = self._now()
        if sum(row.is_live(at) for row in self._rows.values()) >= MAX_LIVE:
            raise Conflict(f"there are {MAX_LIVE} valid tokens; revoke some first", code="too_many_tokens")
        text, row = make(checked, by=by, at=at, randomness=os.urandom(RANDOM_BYTES))
        self._write(row)
        await self._commits.durable()
        self._publish(row.token)
        return text, row

    def listed(self, user: str | None) -> list[TokenRow]:
        """Everybody's or one user's, the newest first."""
        rows = [row for row in self._rows.values() if user is None or row.user == user]
        return sorted(rows, key=lambda row: (row.created_at, row.token), reverse=True)

    async def revoke(
        self, token: str, *, user: str, is_admin: bool, scopes: frozenset[Scope], own: str
    ) -> TokenRow:
        """End a token for good; again changes nothing. `own` is the one that the caller came with."""
        row = self._rows.get(token)
        if row is None or not (is_admin or row.user == user):
            raise NotFound(f"there is no token {token[:64]!r}", code="token_not_found")
        if not is_admin and not may_revoke(scopes, own, row):
            raise Forbidden(
                f"token {token} may do more than the one you came with; use another", code="missing_scope"
            )
        if row.revoked_at is None:
            row = msgspec.structs.replace(row, revoked_at=self._now())
            self._write(row)
            self._publish(token)  # at once: a revocation that the disk loses does no harm meanwhile
        await self._commits.durable()
        return row

    def forget(self, before: int) -> int:
        """Forget tokens that ended before then; how many they were."""
        rows = self._rows.values()
        dead = [row.token for row in rows if min(row.expires_at, row.revoked_at or row.expires_at) < before]
        for token in dead:
            del self._rows[token]
            self._changed.pop(token, None)
            self._commits.unit.tokens.pop(token, None)
            self._commits.unit.dead_tokens.append(token)
        return len(dead)

    def used(self, tokens: Iterable[str]) -> None:
        """Note that these were used today; at most one row per token and day."""
        today = self._now() // _DAY
        for token in tokens:
            row = self._rows.get(token)
            if row is not None and row.used_day != today:
                self._write(msgspec.structs.replace(row, used_day=today))
                self._publish(token)

    async def follow(self) -> AsyncGenerator[tuple[bool, list[TokenRow]], None]:
        """First `(True, every live token)`, then `(False, what changed)`, and an empty list as heartbeat."""
        position = self._changes
        at = self._now()
        yield True, [row for row in self._rows.values() if row.is_live(at)]
        while True:
            if position == self._changes:
                await self._wait()
            news = [self._rows[token] for token, number in self._changed.items() if number > position]
            position = self._changes
            yield False, news

    def _write(self, row: TokenRow) -> None:
        self._rows[row.token] = row
        self._commits.unit.tokens[row.token] = row

    def _publish(self, token: str) -> None:
        self._changes += 1
        self._changed.pop(token, None)
        self._changed[token] = self._changes
        if self._news is not None:
            self._news.set_result(None)
            self._news = None

    async def _wait(self) -> None:
        if self._news is None:
            self._news = asyncio.get_running_loop().create_future()
        await asyncio.wait({self._news}, timeout=HEARTBEAT_SECS)
