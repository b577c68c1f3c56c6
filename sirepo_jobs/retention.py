"""What is kept for a while only, and forgotten in small pieces: nothing may grow for ever (I31)."""

from collections.abc import Callable

import structlog

from .commits import Commits
from .errors import Unavailable
from .store import Store
from .token_book import TokenBook

_log = structlog.get_logger(__name__)


class Retention:
    """Forgets idempotency keys and tokens whose time is over."""

    def __init__(
        self,
        store: Store,
        commits: Commits,
        tokens: TokenBook,
        now: Callable[[], int],
        *,
        keys_secs: float,
        dead_tokens_secs: float,
    ) -> None:
        self._store = store
        self._commits = commits
        self._tokens = tokens
        self._now = now
        self._keys_us = int(keys_secs * 1e6)
        self._dead_tokens_us = int(dead_tokens_secs * 1e6)

    async def forget(self) -> None:
        """One turn. Writes nothing when there is nothing to forget."""
        if gone := self._tokens.forget(self._now() - self._dead_tokens_us):
            _log.info("forgot tokens that had ended", tokens=gone)
        before = self._now() - self._keys_us
        try:
            due = await self._store.has_keys_before(before)
        except Unavailable as exc:
            _log.info("forgetting is put off", why=str(exc))
            return
        if due:
            self._commits.unit.keys_before = before
