"""The one route table: what there is, who may call it and how it is served.

The authorisation tests and the OpenAPI document are read off this table; what has no row does not
exist (S1, S2).
"""

import re
from collections.abc import Callable, Mapping
from enum import Enum
from typing import NamedTuple

import msgspec

from sirepo_jobs import changes, driver, login, run_path, tokens
from sirepo_jobs.errors import NotFound

from . import limits, query
from .auth import Scope
from .problems import MethodNotAllowed
from .query import Parameter


class Kind(Enum):
    """How a route is served."""

    #: By the front end alone: it lives.
    HEALTH = "health"
    #: By the front end alone: the OpenAPI document.
    DOCUMENT = "document"
    #: The supervisor's word on whether it serves; nothing else of its answer is passed on.
    READY = "ready"
    #: A body of job specs is checked, made canonical and forwarded.
    SUBMIT = "submit"
    #: A small body is checked and made canonical by the route's `body`, and forwarded.
    ORDER = "order"
    #: Forwarded as it is; the body is ignored.
    FORWARD = "forward"
    #: Forwarded; the answer may last for hours and is passed on piece by piece.
    STREAM = "stream"
    #: Forwarded with conditions and ranges; the answer is what a job wrote.
    FILE = "file"


class Route(NamedTuple):
    """One method of one path."""

    method: str
    path: str
    kind: Kind
    #: None: open to everybody, also without a token; such an answer holds no data.
    scope: Scope | None
    summary: str
    query: Mapping[str, Parameter] = {}
    #: Of an `ORDER`: raises `BadInput`, or gives what is forwarded.
    body: Callable[[bytes], bytes] | None = None
    #: Its body may be as large as a submission.
    large: bool = False
    #: How long the supervisor may take to answer, beside what `wait` asks for.
    answer_secs: float = limits.ANSWER_SECS


def _order(body: bytes) -> bytes:
    return msgspec.json.encode(tokens.parse_order(body))


_FILES = {
    "attempt": query.ATTEMPT,
    "archive": query.ARCHIVE,
    "recursive": query.RECURSIVE,
    "cursor": query.PATH_CURSOR,
    "limit": query.PAGE,
}


def _change(body: bytes) -> bytes:
    return msgspec.json.encode(changes.parse_change(body))


def _changes(body: bytes) -> bytes:
    return msgspec.json.encode(changes.parse_changes(body))


def _login(body: bytes) -> bytes:
    return msgspec.json.encode(login.parse_login(body))


def _answers(body: bytes) -> bytes:
    return msgspec.json.encode(login.parse_answers(body))


ROUTES: tuple[Route, ...] = (
    Route("GET", "/healthz", Kind.HEALTH, None, "The front end lives"),
    Route("GET", "/readyz", Kind.READY, None, "Front end and supervisor serve"),
    Route("GET", "/metrics", Kind.FORWARD, Scope.ADMIN, "Numbers of the supervisor for Prometheus"),
    Route("GET", "/openapi.json", Kind.DOCUMENT, Scope.SELF, "This API as an OpenAPI 3.1 document"),
    Route(
        "POST",
        "/api/v1/jobs",
        Kind.SUBMIT,
        Scope.JOBS_SUBMIT,
        "Create one job or many; with `wait` one, answered when its run has ended",
        {"wait": query.WAIT},
    ),
    Route(
        "GET",
        "/api/v1/jobs",
        Kind.FORWARD,
        Scope.JOBS_READ,
        "List jobs",
        {
            "state": query.STATE,
            "user": query.USER,
            "name_prefix": query.NAME_PREFIX,
            "tag": query.TAG,
            "queue": query.QUEUE,
            "driver": query.DRIVER,
            "created_after": query.CREATED_AFTER,
            "created_before": query.CREATED_BEFORE,
            "view": query.VIEW,
            "fields": query.FIELDS,
            "cursor": query.CURSOR,
            "limit": query.PAGE,
        },
    ),
    Route(
        "GET",
        "/api/v1/jobs/{jid}",
        Kind.FORWARD,
        Scope.JOBS_READ,
        "One job; with `wait`, when it has changed, or has ended",
        {"wait": query.WAIT, "until": query.UNTIL, "version": query.VERSION},
    ),
    Route(
        "PATCH",
        "/api/v1/jobs/{jid}",
        Kind.ORDER,
        Scope.JOBS_SUBMIT,
        "Change a job's name, priority, tags or (while it does not run) limits",
        body=_change,
    ),
    Route(
        "PATCH",
        "/api/v1/jobs",
        Kind.ORDER,
        Scope.JOBS_SUBMIT,
        "Change many jobs; each has its own result",
        body=_changes,
        large=True,
    ),
    Route("GET", "/api/v1/jobs/{jid}/explain", Kind.FORWARD, Scope.JOBS_READ, "Why a job is where it is"),
    Route("GET", "/api/v1/jobs/{jid}/attempts", Kind.FORWARD, Scope.JOBS_READ, "Executions of a job"),
    Route("GET", "/api/v1/jobs/{jid}/events", Kind.FORWARD, Scope.JOBS_READ, "What happened to a job"),
    Route("GET", "/api/v1/agents", Kind.FORWARD, Scope.JOBS_READ, "Agents that the caller may know of"),
    Route(
        "POST",
        "/api/v1/agents/{agent}/drain",
        Kind.FORWARD,
        Scope.JOBS_CANCEL,
        "Give an agent no more work; it ends when it has finished what it has",
    ),
    Route(
        "POST",
        "/api/v1/agents/{agent}/stop",
        Kind.FORWARD,
        Scope.JOBS_CANCEL,
        "End an agent and its jobs; answered when it is gone",
    ),
    Route(
        "POST",
        "/api/v1/agents/{agent}/declare-gone",
        Kind.FORWARD,
        Scope.ADMIN,
        "An operator's word that an agent that is out of reach is gone, and everything that it ran",
    ),
    Route(
        "POST",
        "/api/v1/jobs/{jid}/declare-lost",
        Kind.FORWARD,
        Scope.ADMIN,
        "An operator's word that the present attempt of a job whose agent is out of reach is no more",
    ),
    Route("POST", "/api/v1/jobs/{jid}/cancel", Kind.FORWARD, Scope.JOBS_CANCEL, "End a job"),
    Route("POST", "/api/v1/jobs/{jid}/hold", Kind.FORWARD, Scope.JOBS_CANCEL, "Keep a job from running"),
    Route("POST", "/api/v1/jobs/{jid}/release", Kind.FORWARD, Scope.JOBS_CANCEL, "Let a held job go on"),
    Route(
        "POST",
        "/api/v1/jobs/{jid}/retry",
        Kind.FORWARD,
        Scope.JOBS_SUBMIT,
        "Run a job again that has ended; safe to repeat with `serial`",
        {"serial": query.SERIAL},
    ),
    Route("POST", "/api/v1/jobs/{jid}/suspend", Kind.FORWARD, Scope.JOBS_CANCEL, "Stop a job's processes"),
    Route("POST", "/api/v1/jobs/{jid}/resume", Kind.FORWARD, Scope.JOBS_CANCEL, "Let them go on"),
    Route(
        "GET",
        "/api/v1/jobs/{jid}/logs/{stream}",
        Kind.STREAM,
        Scope.JOBS_READ,
        "Bytes of a job's stdout or stderr",
        {
            "offset": query.OFFSET,
            "limit": query.LIMIT,
            "attempt": query.ATTEMPT,
            "follow": query.FOLLOW,
        },
    ),
    *(
        Route(method, path, Kind.FILE, Scope.FILES_READ, summary, _FILES)
        for path, summary in (
            ("/api/v1/jobs/{jid}/files", "What lies in a run dir, or all of it as an archive"),
            ("/api/v1/jobs/{jid}/files/{path}", "A file of a run dir; of a directory what lies in it"),
        )
        for method in ("GET", "HEAD")
    ),
    Route(
        "GET",
        "/api/v1/events",
        Kind.STREAM,
        Scope.JOBS_READ,
        "Changes of jobs as server-sent events",
        {"after": query.AFTER},
    ),
    Route("GET", "/api/v1/clusters", Kind.FORWARD, Scope.JOBS_READ, "Slurm clusters, as they stand for you"),
    Route("GET", "/api/v1/clusters/{cluster}", Kind.FORWARD, Scope.JOBS_READ, "One cluster"),
    Route(
        "POST",
        "/api/v1/clusters/{cluster}/login",
        Kind.ORDER,
        Scope.JOBS_SUBMIT,
        "Log in; answered when the cluster asks something, or it is over",
        body=_login,
        large=True,
    ),
    Route(
        "POST",
        "/api/v1/clusters/{cluster}/login/{login}",
        Kind.ORDER,
        Scope.JOBS_SUBMIT,
        "Answer what the cluster asks",
        body=_answers,
    ),
    Route(
        "DELETE",
        "/api/v1/clusters/{cluster}/login",
        Kind.FORWARD,
        Scope.JOBS_SUBMIT,
        "Log out; jobs there go on",
    ),
    Route(
        "POST",
        "/api/v1/clusters/{cluster}/check",
        Kind.FORWARD,
        Scope.JOBS_SUBMIT,
        "Look at everything that a job there will need",
        answer_secs=limits.CHECK_SECS,
    ),
    Route(
        "POST", "/api/v1/tokens", Kind.ORDER, Scope.ADMIN, "Make a token; it is shown this once", {}, _order
    ),
    Route(
        "GET",
        "/api/v1/tokens",
        Kind.FORWARD,
        Scope.SELF,
        "One's own tokens, or everybody's",
        {"user": query.USER},
    ),
    Route("DELETE", "/api/v1/tokens/{token}", Kind.FORWARD, Scope.SELF, "Revoke a token for good"),
)

#: What may stand in the place of a `{name}`. Everything else is a path that does not exist.
PLACES = {
    "jid": r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}",
    "stream": "stdout|stderr",
    "token": tokens.TOKEN_ID,
    "cluster": "[a-z][a-z0-9_]{0,31}",
    "login": "[A-Za-z0-9_-]{1,32}",
    "agent": driver.AGENT_NAME,
    "path": r"[!-~]+",
}


class Table:
    """Finds the route of a request."""

    def __init__(self, routes: tuple[Route, ...] = ROUTES) -> None:
        paths: dict[str, dict[str, Route]] = {}
        for route in routes:
            paths.setdefault(route.path, {})[route.method] = route
        self._fixed = {path: methods for path, methods in paths.items() if "{" not in path}
        self._open = [(_pattern(path), methods) for path, methods in paths.items() if "{" in path]

    def open_route(self, method: str, path: str) -> Route | None:
        """The route, if it is one that needs no token."""
        route = self._fixed.get(path, {}).get(method)
        return route if route is not None and route.scope is None else None

    def find(self, method: str, path: str) -> Route:
        """The route, or `NotFound`, or `MethodNotAllowed` with what is allowed.

        A path that fits holds only characters that stand for themselves, except behind `files/`:
        `plain` sees to that.
        """
        methods = self._fixed.get(path)
        if methods is None:
            methods = next((found for pattern, found in self._open if pattern.fullmatch(path)), None)
        if methods is None:
            raise NotFound(f"there is nothing at {path[:200]}", code="no_such_route")
        if method not in methods:
            allow = ", ".join(methods)
            raise MethodNotAllowed(f"{method[:20]} is not served at {path[:200]}; use {allow}", allow=allow)
        return methods[method]


def plain(route: Route, path: str) -> str:
    """The path as it is forwarded, the one of a file checked and in one spelling. Raises `BadInput`."""
    if not route.path.endswith("/{path}"):
        return path
    begin, mark, file = path.partition("/files/")
    return begin + mark + run_path.encode(run_path.parse(file))


def _pattern(path: str) -> re.Pattern[str]:
    parts = re.split(r"\{(\w+)\}", path)
    return re.compile(
        "".join(f"(?:{PLACES[part]})" if i % 2 else re.escape(part) for i, part in enumerate(parts))
    )
