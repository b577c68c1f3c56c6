"""Who asks, and what they may (S7, S8, S10).

Three ways in, and none falls back to another: the token in the root, which is the starter's own and an
administrator's; a token of the book that the supervisor keeps and `TokenCopy` holds here; and a proxy
that has its own secret and says who has logged in there.
"""

import getpass
import os
import re
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple

from msgspec import Struct

from sirepo_jobs.errors import BadInput, Error, Forbidden, Unauthorized, Unavailable
from sirepo_jobs.tokens import SCOPES, Role, Scope, TokenRow, check_user, digest_of, fits, id_of

if TYPE_CHECKING:
    from tornado.httputil import HTTPHeaders  # plain commands read this file, too

__all__ = ["Principal", "Proxy", "Role", "Scope", "TokenCopy", "Tokens", "starter", "user_name"]

#: What we know of tokens may be so old; after that nobody is let in by it (S9).
MAX_AGE_SECS = 5.0
_DAY_SECS = 86400


class Principal(Struct, frozen=True):
    """Somebody who has proved who they are."""

    user: str
    scopes: frozenset[Scope]
    #: Id of the token in the book; "" for the other ways in.
    token: str = ""
    #: How they came in, for the audit log.
    via: str = "root"

    @property
    def role(self) -> str:
        """What the supervisor is told: `admin` or `user`."""
        return "admin" if Scope.ADMIN in self.scopes else "user"

    def require(self, scope: Scope) -> None:
        """Raise `Forbidden` unless this principal has `scope`."""
        if scope is not Scope.SELF and scope not in self.scopes:
            raise Forbidden(f"this token lacks the scope {scope}", code="missing_scope")


class _Known(NamedTuple):
    row: TokenRow
    principal: Principal


class TokenCopy:
    """The book's live tokens, as of the last word from the supervisor."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, now: Callable[[], float] = time.time
    ) -> None:
        self._clock = clock
        self._now = now
        self._known: dict[str, _Known] = {}
        self._heard_at: float | None = None
        #: Used today, and the supervisor has not been told.
        self.used: set[str] = set()

    @property
    def is_fresh(self) -> bool:
        """Whether it may be relied upon."""
        return self._heard_at is not None and self._clock() - self._heard_at <= MAX_AGE_SECS

    def hear(self, whole: bool, rows: Iterable[TokenRow]) -> None:
        """The supervisor says what there is (`whole`), or what has changed; nothing is a heartbeat."""
        if whole:
            self._known.clear()
        elif self._heard_at is None:
            return
        for row in rows:
            if row.revoked_at is not None:
                self._known.pop(row.token, None)
            else:
                principal = Principal(row.user, frozenset(row.scopes), row.token, "token")
                self._known[row.token] = _Known(row, principal)
        self._heard_at = self._clock()

    def find(self, token_id: str, digest: bytes) -> Principal:
        """Raises `Unauthorized`, or `Unavailable` when nothing is known for certain."""
        if not self.is_fresh:
            raise _unknown()
        known = self._known.get(token_id)
        if not fits(digest, known.row.digest if known else bytes(32)) or known is None:
            raise _not_valid()
        now = self._now()
        if not known.row.is_live(int(now * 1e6)):
            raise Unauthorized("this token has expired; ask for a new one", code="expired_token")
        if known.row.used_day != now // _DAY_SECS:
            self.used.add(token_id)
        return known.principal

    def stands(self, principal: Principal) -> bool:
        """Whether somebody who was let in by a token may stay."""
        if not principal.token:
            return True
        known = self._known.get(principal.token)
        return self.is_fresh and known is not None and known.row.is_live(int(self._now() * 1e6))

    def why_not_stay(self) -> Error:
        """What to tell those who may not stay. Not knowing is no verdict: they ask again (S9)."""
        if not self.is_fresh:
            return _unknown()
        return Unauthorized("this token is no longer valid", code="bad_token")


class Proxy:
    """A proxy that does the login: it shows a secret, and names the user."""

    SECRET = "X-Proxy-Secret"  # noqa: S105 (the name of a header)
    USER = "X-Remote-User"

    def __init__(self, secret: str) -> None:
        self._digest = digest_of(secret)

    def find(self, headers: "HTTPHeaders") -> Principal | None:
        """Who is named; None when no proxy speaks, or for nobody. Raises `Unauthorized` for a false one."""
        secret = headers.get(self.SECRET)
        if secret is None:
            if self.USER in headers:
                raise Unauthorized(f"{self.USER} counts only together with {self.SECRET}", code="bad_proxy")
            return None
        if not fits(digest_of(secret), self._digest):
            raise Unauthorized("this proxy is not known here", code="bad_proxy")
        user = headers.get(self.USER)
        if not user:
            return None
        try:
            return Principal(check_user(user), SCOPES[Role.USER], via="proxy")
        except BadInput as exc:
            raise Unauthorized(f"{self.USER}: {exc}", code="bad_proxy") from None


class Tokens:
    """Everybody who can be let in. Keeps digests only."""

    def __init__(self, copy: TokenCopy | None = None, proxy: Proxy | None = None) -> None:
        self.copy = copy or TokenCopy()
        self._proxy = proxy
        self._by_prefix: dict[bytes, list[tuple[bytes, Principal]]] = {}

    def add(self, token: str, principal: Principal) -> None:
        """From now on `token` stands for `principal`, whatever the book says."""
        digest = digest_of(token)
        self._by_prefix.setdefault(digest[:8], []).append((digest, principal))

    def admit(self, headers: "HTTPHeaders") -> Principal:
        """Whom a request comes from. Raises `Unauthorized`, or `Unavailable`."""
        if self._proxy is not None and (principal := self._proxy.find(headers)) is not None:
            return principal
        return self.find(headers.get("Authorization"))

    def find(self, authorization: str | None) -> Principal:
        """Whom an `Authorization` header stands for. Raises as `admit` does."""
        if authorization is None:
            raise Unauthorized("send a token: Authorization: Bearer <token>", code="no_token")
        scheme, _, token = authorization.partition(" ")
        # JupyterHub's people write `token`.
        if scheme.lower() not in ("bearer", "token"):
            raise Unauthorized("the only scheme is Bearer: Authorization: Bearer <token>", code="bad_scheme")
        token = token.strip()
        digest = digest_of(token)
        # SECURITY: the look-up goes by a digest, so its time tells nothing about tokens.
        for known, principal in self._by_prefix.get(digest[:8], ()):
            if fits(known, digest):
                return principal
        if (token_id := id_of(token)) is not None:
            return self.copy.find(token_id, digest)
        raise _not_valid()


def _unknown() -> Unavailable:
    return Unavailable("tokens cannot be checked now: the supervisor is away; it may be restarting")


def _not_valid() -> Unauthorized:
    return Unauthorized("this token is not valid here", code="bad_token")


def starter() -> Principal:
    """Whoever runs this process: user and administrator in one."""
    return Principal(user_name(), frozenset(Scope))


def user_name() -> str:
    """The name of whoever runs this process, safe as a directory name."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # a uid that nobody has named, as in containers
        name = ""
    return re.sub(r"[^A-Za-z0-9._-]", "-", name)[:64].lstrip(".-") or f"uid{os.getuid()}"
