"""Tokens: made by administrators, listed and revoked by whoever has them; and told to the front ends."""

from collections.abc import AsyncGenerator
from datetime import UTC, date, datetime, timedelta
from typing import Any

import msgspec

from sirepo_jobs.errors import BadInput, NotFound
from sirepo_jobs.tokens import Scope, TokenOrder, TokenRow
from sirepo_jobs.views import instant

from .handler import Handler, encode

_decode_order = msgspec.json.Decoder(TokenOrder).decode
_decode_used = msgspec.json.Decoder(list[str]).decode


class TokenNews(msgspec.Struct, frozen=True):
    """One line of what a front end hears; an empty one is a heartbeat."""

    #: Forget everything else.
    whole: bool
    rows: list[TokenRow]


def token_view(row: TokenRow) -> dict[str, Any]:
    """A token as the API answers it."""
    return {
        "id": row.token,
        "user": row.user,
        "role": row.role,
        "scopes": row.scopes,
        "name": row.name,
        "created_by": row.created_by,
        "created_at": instant(row.created_at),
        "expires_at": instant(row.expires_at),
        "last_used_on": _day(row.used_day),
        "revoked_at": instant(row.revoked_at),
        "valid": row.is_live(int(datetime.now(UTC).timestamp() * 1e6)),
    }


def _day(day: int | None) -> str | None:
    return None if day is None else (date(1970, 1, 1) + timedelta(day)).isoformat()


class Tokens(Handler):
    """`/tokens`."""

    async def post(self) -> None:
        """A new token, shown this once."""
        if not self.is_admin:
            raise NotFound("there is no such page")
        try:
            order = _decode_order(self.request.body)
        except (ValueError, RecursionError) as exc:
            raise BadInput(f"not an order of the front end: {exc}") from None
        self.changing()
        text, row = await self.kept(self.supervisor.tokens.create(order, self.user))
        self.set_header("Location", f"/api/v1/tokens/{row.token}")
        self.answer({**token_view(row), "token": text}, 201)

    def get(self) -> None:
        """One's own, or with `user`, for administrators, somebody else's; all of everybody's without."""
        wanted = self.get_query_argument("user", "") or None
        if not self.is_admin:
            if wanted not in (None, self.user):
                raise NotFound("there are no such tokens", code="token_not_found")
            wanted = self.user
        self.answer({"tokens": [token_view(row) for row in self.supervisor.tokens.listed(wanted)]})


class Token(Handler):
    """`/tokens/{token}`."""

    async def delete(self, token: str) -> None:
        """Revoked for good when answered; front ends hear of it at once."""
        headers = self.request.headers
        work = self.supervisor.tokens.revoke(
            token,
            user=self.user,
            is_admin=self.is_admin,
            scopes=frozenset(Scope(word) for word in headers.get("X-Scopes", "").split(",") if word),
            own=headers.get("X-Token", ""),
        )
        row = await self.kept(work)
        self.answer(token_view(row))


class TokenFeed(Handler):
    """`/internal/tokens`: for front ends only, which never pass it on."""

    async def get(self) -> None:
        """Every live token, then every change, one JSON line each; something at least every second."""
        self.set_header("Content-Type", "application/jsonl")
        await self.send(self._lines())

    async def _lines(self) -> AsyncGenerator[bytes, None]:
        async for whole, rows in self.supervisor.tokens.follow():
            yield encode(TokenNews(whole, rows)) + b"\n"

    async def post(self) -> None:
        """Ids of tokens that were used today."""
        self.supervisor.tokens.used(_decode_used(self.request.body))
        self.answer({})
