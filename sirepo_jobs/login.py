"""What a driver offers whose agents live where somebody must log in (SIR-43, SIR-L11, F134).

The supervisor and its doors speak to such a driver through `LoginDriver` alone. Credentials pass through
in one `LoginOrder` or one list of answers, are used for one login and forgotten; nothing here keeps them.
"""

from collections import Counter
from typing import Any, Literal, Protocol, TypeGuard, TypeVar

import msgspec
from msgspec import Struct

from .cluster import ClusterPolicy
from .driver import Driver, Environment
from .errors import BadInput
from .reasons import Reason

_T = TypeVar("_T")

MAX_ANSWERS = 10
MAX_SECRET_CHARS = 4096
MAX_KEY_CHARS = 65_536


class Prompt(Struct, frozen=True):
    """Something the cluster asks the user."""

    text: str
    #: What is typed may be seen.
    echo: bool


class LoginOrder(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A wish to log in. What is left out and needed is asked for."""

    #: Of the cluster; "" = as the policy says.
    username: str = ""
    password: str = ""
    #: One-time code.
    code: str = ""
    #: A private key in OpenSSH's or PEM's form.
    private_key: str = ""
    #: Of that key.
    passphrase: str = ""

    def __repr__(self) -> str:
        # SECURITY: S57. No log and no traceback shows a secret.
        return "LoginOrder(...)"


class LoginAnswers(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Answers to the prompts, in their order."""

    answers: list[str]

    def __repr__(self) -> str:
        return "LoginAnswers(...)"


class LoginView(Struct, frozen=True, kw_only=True):
    """A login as it stands."""

    #: Names it in further requests.
    login: str
    cluster: str
    #: `asking`: answer the prompts. `working`: ask again in a moment.
    state: Literal["asking", "working", "connected", "failed"]
    #: For people: what the cluster said, or why it failed and what to do.
    message: str = ""
    prompts: list[Prompt] = []


class Check(Struct, frozen=True, kw_only=True):
    """One thing about a cluster that must be so."""

    name: str
    #: None: it could not be looked at, since something before it failed.
    ok: bool | None
    #: What was found, with values.
    message: str
    #: What to do about it; "" when all is well.
    hint: str = ""


class ClusterView(Struct, frozen=True, kw_only=True):
    """A cluster as one user sees it."""

    name: str
    description: str
    host: str
    auth: list[str]
    #: `login_required`: nothing goes on there before the user logs in.
    state: Literal["connected", "login_required", "unreachable", "stopped", "idle"]
    #: Why, for people.
    message: str
    username: str
    #: What was done there: logins of the last day, queries, submits and so on.
    counters: dict[str, int]
    #: What its administrators allow.
    limits: dict[str, int | float]


class LoginDriver(Driver, Protocol):
    """A driver whose agents live behind logins."""

    def policies(self) -> list[ClusterPolicy]:
        """Every cluster that it knows."""
        ...

    def trouble(self, environment: Environment) -> tuple[Reason, str] | None:
        """Why nothing can be launched there before somebody acts; None when it may be tried."""
        ...

    async def change(self, environment: Environment) -> None:
        """Return when `trouble` may have another answer."""
        ...

    def view(self, cluster: str, user: str) -> ClusterView:
        """How the cluster stands for this user. Raises `NotFound`."""
        ...

    def counters(self, cluster: str) -> Counter[str]:
        """What was done there since the start, all users together."""
        ...

    async def log_in(self, cluster: str, user: str, order: LoginOrder) -> LoginView:
        """Begin a login, in place of one that is under way; returns when it asks, or is over."""
        ...

    async def answer(self, cluster: str, user: str, login: str, answers: list[str]) -> LoginView:
        """Answer its prompts; returns when it asks again, or is over. Raises `NotFound`, `Conflict`."""
        ...

    async def log_out(self, cluster: str, user: str) -> None:
        """End the connection; agents that need none stay in touch."""
        ...

    async def check(self, cluster: str, user: str) -> list[Check]:
        """Look at everything that a job there will need; logs in only if that needs nobody."""
        ...

    async def close(self) -> None:
        """End every connection; agents and jobs go on."""
        ...


def has_logins(driver: Any) -> TypeGuard[LoginDriver]:
    """Whether a driver is of this kind."""
    return hasattr(driver, "log_in")


def parse_login(body: bytes) -> LoginOrder:
    """A `POST /clusters/{name}/login` body. Raises `BadInput`, which shows no value."""
    order = _decoded(body or b"{}", LoginOrder)
    for field in LoginOrder.__struct_fields__:
        value = getattr(order, field)
        most = MAX_KEY_CHARS if field == "private_key" else MAX_SECRET_CHARS
        if len(value) > most or "\0" in value:
            raise BadInput(f"{field}: at most {most} characters, and no NUL", pointer=f"/{field}")
    if len(order.username) > 64 or not all(char.isalnum() or char in "._@+-" for char in order.username):
        raise BadInput("username: not a user's name", pointer="/username")
    if order.username.startswith("-"):
        raise BadInput("username: not a user's name", pointer="/username")
    return order


def parse_answers(body: bytes) -> LoginAnswers:
    """A body of answers. Raises `BadInput`, which shows no value."""
    said = _decoded(body, LoginAnswers)
    if len(said.answers) > MAX_ANSWERS or any(len(text) > MAX_SECRET_CHARS for text in said.answers):
        raise BadInput(
            f"answers: at most {MAX_ANSWERS} of {MAX_SECRET_CHARS} characters each", pointer="/answers"
        )
    return said


def _decoded(body: bytes, kind: type[_T]) -> _T:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise BadInput(f"the body cannot be read: {exc}", code="bad_json") from None
