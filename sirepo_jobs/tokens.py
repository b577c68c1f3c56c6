"""Tokens of people and programs: what they look like, what they are good for, what is kept of them (S7, S10).

A token is `sj_<id>_<secret>`: the id finds its row, the secret has 256 bits. It is shown once, when it
is made; what is kept is the SHA-256 of the whole, which is enough for secrets that nobody can guess.
"""

import base64
import hashlib
import hmac
import re
from enum import StrEnum

import msgspec
from msgspec import Struct

from .errors import BadInput
from .resources import parse_secs
from .wording import decode

DEFAULT_LIFE_SECS = 30 * 86400.0
MAX_LIFE_SECS = 366 * 86400.0
MAX_NAME_CHARS = 100
#: Tokens that are valid at one time; every front end keeps them all in memory.
MAX_LIVE = 10_000
#: Bytes of randomness that `make` wants: an id and a secret.
RANDOM_BYTES = 6 + 32

#: Becomes the name of a directory.
_USER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,63}")
_TOKEN = re.compile(r"sj_([0-9a-f]{12})_[A-Za-z0-9_-]{43}")
TOKEN_ID = r"[0-9a-f]{12}"  # noqa: S105 (the form of an id)


class Role(StrEnum):
    """Who somebody is; bounds what a token of theirs may be good for."""

    USER = "user"
    ADMIN = "admin"
    READ_ONLY = "read-only"


class Scope(StrEnum):
    """What a token may be good for; each route asks for one."""

    JOBS_READ = "jobs:read"
    JOBS_SUBMIT = "jobs:submit"
    JOBS_CANCEL = "jobs:cancel"
    FILES_READ = "files:read"
    #: Everybody's jobs, and the service itself.
    ADMIN = "admin"
    #: One's own tokens: to look at, and to revoke. Every token has it, nobody gives it.
    SELF = "self"


#: The most that a token of each role may do, and what it may do unless less is asked for.
SCOPES: dict[Role, frozenset[Scope]] = {
    Role.READ_ONLY: frozenset({Scope.JOBS_READ, Scope.FILES_READ}),
    Role.USER: frozenset({Scope.JOBS_READ, Scope.JOBS_SUBMIT, Scope.JOBS_CANCEL, Scope.FILES_READ}),
    Role.ADMIN: frozenset(Scope) - {Scope.SELF},
}


class TokenRow(Struct, frozen=True, kw_only=True):
    """What is kept of a token. Instants are microseconds."""

    token: str
    """Its id, which is no secret."""
    #: SHA-256 of the whole token.
    digest: bytes
    user: str
    role: Role
    scopes: list[Scope]
    #: What it is for, in its maker's words.
    name: str
    created_by: str
    created_at: int
    expires_at: int
    #: Day of its last use, counted from 1970.
    used_day: int | None = None
    revoked_at: int | None = None

    def is_live(self, at: int) -> bool:
        """Whether it opens anything at that instant."""
        return self.revoked_at is None and at < self.expires_at


class TokenOrder(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a token is to be: the body of `POST /tokens`."""

    user: str
    role: Role = Role.USER
    #: Empty = all that the role may have.
    scopes: list[Scope] = []
    name: str = ""
    #: Seconds, or a text like `12h`, `90d`.
    expires_in: float = DEFAULT_LIFE_SECS


def check_order(order: TokenOrder) -> TokenOrder:
    """The order with its scopes written out. Raises `BadInput` for what no token may be."""
    check_user(order.user)
    if len(order.name) > MAX_NAME_CHARS or not order.name.isprintable():
        raise BadInput(f"name: use at most {MAX_NAME_CHARS} printable characters", pointer="/name")
    if not 1 <= order.expires_in <= MAX_LIFE_SECS:
        raise BadInput(f"expires_in: {order.expires_in:g}s is not between 1s and 366d", pointer="/expires_in")
    wanted = frozenset(order.scopes) or SCOPES[order.role]
    if over := wanted - SCOPES[order.role]:
        raise BadInput(
            f"scopes: a token of role {order.role} cannot have {min(over)}; it may have:"
            f" {', '.join(sorted(SCOPES[order.role]))}",
            pointer="/scopes",
        )
    return TokenOrder(
        user=order.user,
        role=order.role,
        scopes=sorted(wanted),
        name=order.name,
        expires_in=order.expires_in,
    )


def check_user(user: str) -> str:
    """The name, if a user may be called so. Raises `BadInput`."""
    if not _USER.fullmatch(user):
        raise BadInput(
            f"user: {user[:64]!r} is no name of a user; use letters, digits and . _ @ + -, at most 64,"
            " beginning with a letter or digit",
            pointer="/user",
        )
    return user


def make(order: TokenOrder, *, by: str, at: int, randomness: bytes) -> tuple[str, TokenRow]:
    """A new token for a checked order, and what to keep of it."""
    assert len(randomness) == RANDOM_BYTES
    token_id = randomness[:6].hex()
    text = f"sj_{token_id}_{base64.urlsafe_b64encode(randomness[6:]).decode().rstrip('=')}"
    return text, TokenRow(
        token=token_id,
        digest=digest_of(text),
        user=order.user,
        role=order.role,
        scopes=order.scopes,
        name=order.name,
        created_by=by,
        created_at=at,
        expires_at=at + int(order.expires_in * 1e6),
    )


def id_of(text: str) -> str | None:
    """The id in a token; None for a text that is none of ours."""
    found = _TOKEN.fullmatch(text)
    return found[1] if found else None


def digest_of(text: str) -> bytes:
    """What is kept instead of a token."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def fits(digest: bytes, kept: bytes) -> bool:
    """Whether both are of the same token; takes the same time either way (S8)."""
    return hmac.compare_digest(digest, kept)


def may_revoke(caller_scopes: frozenset[Scope], caller_token: str, row: TokenRow) -> bool:
    """Whether a token of the same user may end this one: itself, or one that can do no more than it."""
    return row.token == caller_token or frozenset(row.scopes) <= caller_scopes


def parse_order(body: bytes) -> TokenOrder:
    """The checked order of a `POST /tokens` body. Raises `BadInput`."""
    raw = decode(body)
    if not isinstance(raw, dict):
        raise BadInput('a token is ordered with a JSON object, as in {"user": "ann", "role": "user"}')
    words = {key: value for key, value in raw.items() if value is not None}
    if "expires_in" in words:
        try:
            words["expires_in"] = parse_secs(words["expires_in"])
        except BadInput as exc:
            raise BadInput(f"expires_in: {exc}", pointer="/expires_in") from None
    try:
        return check_order(msgspec.convert(words, TokenOrder))
    except msgspec.ValidationError as exc:
        raise BadInput(f"{exc}; known are: {', '.join(TokenOrder.__struct_fields__)}") from None
