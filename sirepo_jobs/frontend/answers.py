"""What the API answers, as types: for the OpenAPI document, and for tests that hold the answers to it."""

from datetime import date, datetime
from typing import Any, NamedTuple

from msgspec import UNSET, Struct, UnsetType, field

from sirepo_jobs.job import State, Usage
from sirepo_jobs.login import Check, ClusterView, LoginView
from sirepo_jobs.reasons import Fault, Reason
from sirepo_jobs.spec import JobSpec
from sirepo_jobs.tokens import Role, Scope


class Health(Struct, frozen=True):
    """It lives, or serves."""

    status: str


class Submitted(Struct, frozen=True):
    """One accepted job; it is durable."""

    jid: str
    serial: int
    state: State


class SubmittedBatch(Struct, frozen=True):
    """Accepted jobs, in the order of the request."""

    jobs: list[Submitted]


class Job(Struct, frozen=True, kw_only=True):
    """A job as it stands."""

    jid: str
    #: Rises by one with every request to run it again.
    serial: int
    attempt: int
    state: State
    reason: Reason | None
    fault: Fault | None
    retryable: bool | None
    situation: str
    exit_code: int | None
    signal: int | None
    name: str
    user: str
    driver: str
    queue: str
    priority: int
    tags: dict[str, str]
    run_dir: str | None
    agent: str | None
    image_id: str | None
    progress: dict[str, Any] | None
    usage: Usage | None
    stdout_bytes: int | None
    stderr_bytes: int | None
    created_at: datetime
    queued_at: datetime | None
    started_at: datetime | None
    ended_at: datetime | None
    version: int
    spec: JobSpec | UnsetType = UNSET
    original_jid: str | UnsetType = UNSET


class JobPage(Struct, frozen=True):
    """Jobs, newest first, without their specs; `next_cursor` is null on the last page."""

    jobs: list[Job]
    next_cursor: str | None


class JobPartPage(Struct, frozen=True):
    """Jobs with the fields that `view` or `fields` ask for."""

    jobs: list[dict[str, Any]]
    next_cursor: str | None


class Attempt(Struct, frozen=True, kw_only=True):
    """One execution that is over."""

    jid: str
    attempt: int
    serial: int
    agent: str | None
    run_dir: str | None
    image_id: str | None
    state: State
    reason: Reason | None
    situation: str = ""
    exit_code: int | None = None
    signal: int | None = None
    stdout_bytes: int | None = None
    stderr_bytes: int | None = None
    proof: str | None = None
    usage: Usage | None = None
    started_at: datetime | None
    ended_at: datetime | None


class AttemptList(Struct, frozen=True):
    """Executions of a job, in order."""

    attempts: list[Attempt]


class Event(Struct, frozen=True, kw_only=True):
    """Something that happened to a job; also the `data` of a server-sent event."""

    seq: int
    jid: str
    version: int
    at: datetime
    kind: str
    state: State
    data: dict[str, Any]


class EventList(Struct, frozen=True):
    """What happened to a job, in order."""

    events: list[Event]


class Amounts(Struct, frozen=True, kw_only=True):
    """Resources as numbers; memory in bytes."""

    cpus: int
    memory: int
    gpus: int


class Waiting(Struct, frozen=True, kw_only=True):
    """What a job waits for, and how long it has."""

    #: `agent`, `op_slot`, `run_dir`, `cpus`, or `turn`.
    for_: str = field(name="for")
    since: datetime | None
    secs: float
    #: Among the caller's own jobs; the first is 1.
    position: int
    position_is_exact: bool
    priority: int
    needs: Amounts
    free: Amounts
    in_all: Amounts
    op: int | None


class AgentInTouch(Struct, frozen=True, kw_only=True):
    """The agent of a job, as it is now."""

    name: str
    driver: str
    state: str
    host: str | None
    since: datetime | None
    launch_failures: int
    trouble: str | None
    next_try_at: datetime | None


class Placement(Struct, frozen=True, kw_only=True):
    """Where a job was put."""

    agent: str
    driver: str | None
    host: str | None
    attempt: int
    started_at: datetime | None
    #: It waits at the agent for slots.
    sent_ahead: bool


class TimeLimit(Struct, frozen=True, kw_only=True):
    """The limit that ended a job."""

    kind: str
    secs: float


class Ending(Struct, frozen=True, kw_only=True):
    """How a job ended, and what it last said."""

    at: datetime | None
    secs: float | None
    exit_code: int | None
    signal: int | None
    signal_name: str | None
    proof: str | None
    attempts: int
    failures: int
    max_attempts: int
    limit: TimeLimit | None
    #: Its last lines; null where nobody looked.
    stderr: list[str] | None
    stderr_error: str | None


class Wish(Struct, frozen=True, kw_only=True):
    """What somebody asked for last."""

    what: str
    by: str
    at: datetime | None


class Explanation(Struct, frozen=True, kw_only=True):
    """Why a job waits, failed, was ended, or is where it is; what does not apply is null."""

    jid: str
    state: State
    version: int
    #: One paragraph for people.
    summary: str
    reason: Reason | None
    fault: Fault | None
    retryable: bool | None
    situation: str
    hint: str | None
    waiting: Waiting | None
    agent: AgentInTouch | None
    placement: Placement | None
    ending: Ending | None
    asked: Wish | None


class Agent(Struct, frozen=True, kw_only=True):
    """An agent: a claim on a user, a driver and an environment."""

    agent: str
    user: str
    driver: str
    state: str
    #: It gets no more work, and ends when it has finished what it has.
    leaving: bool
    ops: int
    host: str | None
    version: str | None
    trouble: str | None
    #: What it has asked of its batch scheduler since its start, and what it holds there.
    counters: dict[str, int] = {}
    #: What it holds and the store has never heard of, as "jid/attempt": kept, until somebody looks.
    foreign: list[str] = []


class AgentList(Struct, frozen=True):
    """Agents that the caller may know of."""

    agents: list[Agent]
    #: Whether these are all that there are: only administrators see everybody's.
    everybodys: bool = False


class ClusterList(Struct, frozen=True):
    """Slurm clusters, by name."""

    clusters: list[ClusterView]


class CheckList(Struct, frozen=True):
    """What was looked at, in order."""

    cluster: str
    checks: list[Check]


class Token(Struct, frozen=True, kw_only=True):
    """A token without its secret."""

    id: str
    user: str
    role: Role
    scopes: list[Scope]
    name: str
    created_by: str
    created_at: datetime
    expires_at: datetime
    last_used_on: date | None
    revoked_at: datetime | None
    valid: bool


class TokenMade(Token, frozen=True, kw_only=True):
    """A new token."""

    #: Shown this once.
    token: str


class TokenList(Struct, frozen=True):
    """Tokens, the newest first."""

    tokens: list[Token]


class Wrong(Struct, frozen=True):
    """Why one of many was not done."""

    code: str
    detail: str


class ChangeResult(Struct, frozen=True, kw_only=True):
    """What became of one change: 200, or an error that says why it was not made."""

    status: int
    jid: str
    error: Wrong | UnsetType = UNSET
    state: State | UnsetType = UNSET
    version: int | UnsetType = UNSET
    name: str | UnsetType = UNSET
    priority: int | UnsetType = UNSET
    tags: dict[str, str] | UnsetType = UNSET


class ChangeResults(Struct, frozen=True):
    """What became of many changes, in the order of the request."""

    results: list[ChangeResult]


class Answer(NamedTuple):
    """What a route answers when all is well."""

    #: One type, or some of which it is one.
    types: tuple[type[Struct], ...]
    status: int = 200


_JOBS = "/api/v1/jobs"
#: By method and path; a route that is not here answers with some JSON object, or with bytes.
ANSWERS: dict[str, Answer] = {
    "GET /healthz": Answer((Health,)),
    "GET /readyz": Answer((Health,)),
    f"POST {_JOBS}": Answer((Submitted, SubmittedBatch, Job), 201),
    f"GET {_JOBS}": Answer((JobPage, JobPartPage)),
    f"PATCH {_JOBS}": Answer((ChangeResults,)),
    f"GET {_JOBS}/{{jid}}": Answer((Job,)),
    f"PATCH {_JOBS}/{{jid}}": Answer((Job,)),
    f"GET {_JOBS}/{{jid}}/explain": Answer((Explanation,)),
    f"GET {_JOBS}/{{jid}}/attempts": Answer((AttemptList,)),
    f"GET {_JOBS}/{{jid}}/events": Answer((EventList,)),
    **{
        f"POST {_JOBS}/{{jid}}/{verb}": Answer((Job,))
        for verb in ("cancel", "hold", "release", "retry", "suspend", "resume", "declare-lost")
    },
    "GET /api/v1/agents": Answer((AgentList,)),
    "GET /api/v1/clusters": Answer((ClusterList,)),
    "GET /api/v1/clusters/{cluster}": Answer((ClusterView,)),
    "POST /api/v1/clusters/{cluster}/login": Answer((LoginView,)),
    "POST /api/v1/clusters/{cluster}/login/{login}": Answer((LoginView,)),
    "DELETE /api/v1/clusters/{cluster}/login": Answer((ClusterView,)),
    "POST /api/v1/clusters/{cluster}/check": Answer((CheckList,)),
    "POST /api/v1/agents/{agent}/drain": Answer((Agent,)),
    "POST /api/v1/agents/{agent}/stop": Answer((Agent,)),
    "POST /api/v1/agents/{agent}/declare-gone": Answer((Agent,)),
    "POST /api/v1/tokens": Answer((TokenMade,), 201),
    "GET /api/v1/tokens": Answer((TokenList,)),
    "DELETE /api/v1/tokens/{token}": Answer((Token,)),
}
