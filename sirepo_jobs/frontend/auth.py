"""Who asks, and what they may (S7, S8, S10).

One way in so far: the token in the root, which is the starter's own and an administrator's. The
room is laid for more: a token is looked up by the digest that a store would keep.
"""

import getpass
import hashlib
import hmac
import os
import re
from enum import StrEnum

from msgspec import Struct

from sirepo_jobs.errors import Forbidden, Unauthorized


class Scope(StrEnum):
    """What a token may be good for; each route asks for one."""

    JOBS_READ = "jobs:read"
    JOBS_SUBMIT = "jobs:submit"
    JOBS_CANCEL = "jobs:cancel"
    ADMIN = "admin"


class Principal(Struct, frozen=True):
    """Somebody who has proved who they are."""

    user: str
    scopes: frozenset[Scope]

    @property
    def role(self) -> str:
        """What the supervisor is told: `admin` or `user`."""
        return "admin" if Scope.ADMIN in self.scopes else "user"

    def require(self, scope: Scope) -> None:
        """Raise `Forbidden` unless this principal has `scope`."""
        if scope not in self.scopes:
            raise Forbidden(f"this token lacks the scope {scope}", code="missing_scope")


class Tokens:
    """The tokens that are valid now. Keeps digests only."""

    def __init__(self) -> None:
        self._by_prefix: dict[bytes, list[tuple[bytes, Principal]]] = {}

    def add(self, token: str, principal: Principal) -> None:
        """From now on `token` stands for `principal`."""
        digest = _digest(token)
        self._by_prefix.setdefault(digest[:8], []).append((digest, principal))

    def find(self, authorization: str | None) -> Principal:
        """Whom an `Authorization` header stands for. Raises `Unauthorized`."""
        if authorization is None:
            raise Unauthorized("send a token: Authorization: Bearer <token>", code="no_token")
        scheme, _, token = authorization.partition(" ")
        # JupyterHub's people write `token`.
        if scheme.lower() not in ("bearer", "token"):
            raise Unauthorized("the only scheme is Bearer: Authorization: Bearer <token>", code="bad_scheme")
        digest = _digest(token.strip())
        # SECURITY: the look-up goes by a digest, so its time tells nothing about tokens.
        for known, principal in self._by_prefix.get(digest[:8], ()):
            if hmac.compare_digest(known, digest):
                return principal
        raise Unauthorized("this token is not valid here", code="bad_token")


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


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
