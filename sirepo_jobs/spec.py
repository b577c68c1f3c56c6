"""What a user asks for: the job spec of the HTTP API, its checks and its canonical form (SYS-01).

People write units as texts and leave things out; `parse_spec` turns their words into a `JobSpec`
in which memory is bytes, durations are seconds and every limit holds, or raises one `BadInput`
that names the place and what to write instead.
"""

import re
from typing import Any, Literal

import msgspec
from msgspec import Struct

from .errors import BadInput, TooLarge
from .reasons import Reason
from .resources import Resources, parse_bytes, parse_secs
from .slurm_options import SlurmOptions
from .slurm_options import check as check_slurm
from .wording import check_keys, check_part, decode, explained, kind_of, with_units

MAX_ARGS = 4096
#: Linux refuses a longer single argument (MAX_ARG_STRLEN is 128 KiB with the final NUL).
MAX_ARG_BYTES = 131_071
MAX_COMMAND_BYTES = 1 << 20
MAX_ENV = 1000
MAX_TAGS = 50
MAX_NAME_CHARS = 200
MAX_BATCH = 10_000
#: Whose jobs are Slurm's.
SLURM_DRIVER = "sbatch"
#: A lease that nobody named, and the shortest and the longest that may be named.
LEASE_SECS = 300.0
MIN_LEASE_SECS = 1.0
MAX_LEASE_SECS = 30 * 86400.0

_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
JID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_CLUSTER = re.compile(r"[a-z][a-z0-9_]{0,31}")
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:/@-]{0,99}")
_IMAGE = re.compile(r"[A-Za-z0-9/][A-Za-z0-9_.:/@+-]{0,499}")
_MOUNT = re.compile(r"/[^:\0]*(:/[^:\0]*)?(:(ro|rw))?")
MAX_MOUNTS = 50
#: So much output every job may write, whatever its limit.
MIN_OUTPUT_BYTES = 64 << 10
#: So many processes and threads every job may have, whatever its limit.
MIN_PROCESSES = 16
#: Names that the launcher sets; a job may not pretend.
RESERVED_ENV_PREFIX = "SIREPO_JOBS_"


class Limits(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Limits of one attempt; the clock starts at spawn (SIR-17)."""

    #: After so many seconds the process group gets TERM, and KILL `grace` later.
    soft: float | None = None
    #: After so many seconds it gets KILL at once; never before `soft` plus `grace`.
    hard: float | None = None
    #: Seconds between TERM and KILL, on a limit and on cancel.
    grace: float = 30.0
    #: Bytes for stdout and stderr together; None = as many as the installation allows (F053).
    output: int | None = None
    #: Processes and threads at a time; None = as many as the installation allows (F050).
    processes: int | None = None


class Input(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A file to be put into the run dir before the start."""

    path: str
    url: str
    sha256: str | None = None


class Output(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A file that the job is to leave in the run dir."""

    path: str
    required: bool = True


class After(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """An edge to a job that must end first."""

    jid: str
    on: Literal["success", "failure", "any"] = "success"


class JobSpec(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One job as asked for, canonical."""

    command: list[str]
    name: str = ""
    #: Client-chosen id (the Sirepo form `uid-sid-model`); "" lets the supervisor choose.
    jid: str = ""
    env: dict[str, str] = {}
    driver: str = "local"
    #: Of the driver `sbatch`; may be left out where there is one only.
    cluster: str | None = None
    image: str | None = None
    #: Directories of the host that the container sees: `SOURCE[:TARGET][:ro|rw]`.
    mounts: list[str] = []
    #: What the job may reach beside its files: "network".
    services: list[Literal["network"]] = []
    #: Bytes of `/dev/shm` in its container; None: as the administrator says.
    shm: int | None = None
    resources: Resources = Resources()
    limits: Limits = Limits()
    #: What the job asks of Slurm beyond that; of the driver `sbatch`.
    slurm: SlurmOptions | None = None
    inputs: list[Input] = []
    outputs: list[Output] = []
    after: list[After] = []
    max_attempts: int = 1
    #: Reasons that deserve another attempt; empty = any failure that may pass by itself.
    retry_on: list[Reason] = []
    priority: int = 5
    queue: str = "default"
    tags: dict[str, str] = {}
    progress: Literal["jsonl"] | None = None
    #: What is to be done when the agent is out of reach for longer than `lost_after` and nothing proves what
    #: became of the attempt (C9): `wait` for evidence or an operator's word; `requeue` or `fail` at the end
    #: of a lease of so many seconds, before which the agent has ended the attempt itself.
    on_lost: Literal["wait", "requeue", "fail"] = "wait"
    lost_after: float | None = None

    @property
    def lease_secs(self) -> float | None:
        """How long an attempt may go on without a word from the supervisor; None: for ever."""
        return None if self.on_lost == "wait" else self.lost_after or LEASE_SECS


#: Fields of the contract that no room serves yet; refused rather than ignored.
_NOT_YET: dict[str, str] = {
    "inputs": "staging of inputs",
    "outputs": "collection of outputs",
    "after": "dependencies",
}

_STRUCTS: dict[str, type[Struct]] = {
    "resources": Resources,
    "limits": Limits,
    "slurm": SlurmOptions,
    "inputs": Input,
    "outputs": Output,
    "after": After,
}


def parse_spec(raw: object, pointer: str = "") -> JobSpec:
    """The canonical spec of a decoded JSON value.

    Raises `BadInput` (with the JSON pointer of the place, below `pointer`) for unknown keys, wrong
    types and values that cannot be meant.
    """
    if not isinstance(raw, dict):
        raise BadInput(f"a job spec is a JSON object, not {kind_of(raw)}", pointer=pointer)
    check_keys(raw, JobSpec, pointer)
    words = dict(raw)
    for field, struct in _STRUCTS.items():
        check_part(words.get(field), struct, f"{pointer}/{field}")
    words["resources"] = with_units(
        words.get("resources"), ("memory", "disk"), parse_bytes, f"{pointer}/resources"
    )
    words["limits"] = limits_of(words.get("limits"), f"{pointer}/limits")
    words["slurm"] = with_units(words.get("slurm"), ("time",), parse_secs, f"{pointer}/slurm")
    words["slurm"] = with_units(words.get("slurm"), ("mem",), parse_bytes, f"{pointer}/slurm")
    words |= with_units({"shm": raw.get("shm")}, ("shm",), parse_bytes, pointer)
    words |= with_units({"lost_after": raw.get("lost_after")}, ("lost_after",), parse_secs, pointer)
    try:
        spec = msgspec.convert({k: v for k, v in words.items() if v is not None}, JobSpec)
    except msgspec.ValidationError as exc:
        message, place = explained(str(exc), pointer)
        raise BadInput(message, pointer=place) from None
    check(spec, pointer)
    return spec


def parse_submission(body: bytes) -> tuple[list[JobSpec], bool]:
    """The specs of a `POST /jobs` body, and whether it was a batch (`{"jobs": [...]}`)."""
    raw = decode(body)
    if not (isinstance(raw, dict) and "jobs" in raw):
        return [parse_spec(raw)], False
    if len(raw) > 1 or not isinstance(raw["jobs"], list):
        raise BadInput('a batch is {"jobs": [spec, ...]} and nothing else', pointer="/jobs")
    if not 0 < len(raw["jobs"]) <= MAX_BATCH:
        raise TooLarge(
            f"the batch has {len(raw['jobs'])} jobs; send 1 to {MAX_BATCH} in one request", pointer="/jobs"
        )
    return [parse_spec(item, f"/jobs/{i}") for i, item in enumerate(raw["jobs"])], True


def check(spec: JobSpec, pointer: str) -> None:
    """What the types alone cannot say."""

    def refuse(field: str, message: str, kind: type[BadInput] = BadInput) -> None:
        raise kind(f"{field.replace('/', '.')}: {message}", pointer=f"{pointer}/{field}")

    for field, what in _NOT_YET.items():
        if getattr(spec, field):
            raise BadInput(
                f"{field}: {what} is not served by this version; leave it out",
                code="not_supported",
                pointer=f"{pointer}/{field}",
            )
    _check_command(spec, refuse)
    _check_names(spec, refuse)
    _check_env(spec, refuse)
    _check_container(spec, refuse)
    if not 0 <= spec.priority <= 10:
        refuse("priority", f"{spec.priority} is outside 0..10")
    if not 1 <= spec.max_attempts <= 100:
        refuse("max_attempts", f"{spec.max_attempts} is outside 1..100")
    need = spec.resources
    if not (0 < need.cpus <= 1_000_000 and 0 <= need.gpus <= 100_000 and 0 < need.nodes <= 100_000):
        refuse("resources", f"cpus={need.cpus}, gpus={need.gpus}, nodes={need.nodes} cannot be meant")
    _check_limits(spec.limits, refuse)
    if spec.slurm is not None and spec.driver != SLURM_DRIVER:
        refuse("slurm", f"is for jobs of the driver {SLURM_DRIVER!r}, and this one names {spec.driver!r}")
    for field, said in check_slurm(spec.slurm) if spec.slurm is not None else ():
        refuse(f"slurm/{field}", said)
    if spec.lost_after is not None:
        if spec.on_lost == "wait":
            refuse("lost_after", "belongs to on_lost 'requeue' or 'fail'; with 'wait' there is no lease")
        if not MIN_LEASE_SECS <= spec.lost_after <= MAX_LEASE_SECS:
            refuse("lost_after", f"{spec.lost_after:g}s is not between 1s and 30 days")


def _check_command(spec: JobSpec, refuse: Any) -> None:
    if not spec.command or not spec.command[0]:
        refuse("command", "is empty; give the program and its arguments, as in ['echo', 'hello']")
    if len(spec.command) > MAX_ARGS:
        refuse("command", f"has {len(spec.command)} words, at most {MAX_ARGS} are allowed", TooLarge)
    sizes = [len(arg.encode("utf-8", "surrogatepass")) for arg in spec.command]
    if max(sizes) > MAX_ARG_BYTES or sum(sizes) > MAX_COMMAND_BYTES:
        refuse(
            "command",
            f"is {sum(sizes)} bytes, its longest word {max(sizes)}; "
            f"at most {MAX_COMMAND_BYTES} and {MAX_ARG_BYTES} are allowed",
            TooLarge,
        )
    texts = [*spec.command, spec.name, *spec.env.values(), *spec.tags, *spec.tags.values()]
    if any("\0" in text for text in texts):
        refuse(
            "command",
            "a NUL character stands in the command, name, env or tags; the system cannot pass it on",
        )


def _check_names(spec: JobSpec, refuse: Any) -> None:
    if len(spec.name) > MAX_NAME_CHARS:
        refuse("name", f"has {len(spec.name)} characters, at most {MAX_NAME_CHARS} are allowed")
    if spec.jid and not JID.fullmatch(spec.jid):
        refuse("jid", "use letters, digits, '-', '_' and '.', at most 100, beginning with a letter or digit")
    if spec.cluster is not None and not _CLUSTER.fullmatch(spec.cluster):
        refuse("cluster", f"{spec.cluster[:64]!r} is not a cluster's name")
    for field in ("driver", "queue"):
        if not _WORD.fullmatch(getattr(spec, field)):
            refuse(field, f"{getattr(spec, field)[:64]!r} is not a name")
    if len(spec.tags) > MAX_TAGS or any(len(k) > 100 or len(v) > 500 for k, v in spec.tags.items()):
        refuse("tags", f"at most {MAX_TAGS} tags, names up to 100 and values up to 500 characters")
    if "" in spec.tags:
        refuse("tags", f"the value {spec.tags[''][:64]!r} has no name; a tag is NAME: VALUE")


def _check_container(spec: JobSpec, refuse: Any) -> None:
    for field in ("image", "mounts", "services", "shm"):
        if getattr(spec, field) and spec.driver == "local":
            refuse(field, "driver local runs no containers; choose another driver, or leave it out")
    if spec.image is not None and (not _IMAGE.fullmatch(spec.image)):
        refuse("image", f"{spec.image[:64]!r} is not the name of an image; leave it out for none")
    if spec.shm is not None and (spec.driver != "docker" or spec.shm < 1 << 16):
        refuse("shm", f"{spec.shm} bytes: at least 64 KiB, and of the driver docker only")
    if len(spec.mounts) > MAX_MOUNTS:
        refuse("mounts", f"has {len(spec.mounts)}, at most {MAX_MOUNTS} are allowed", TooLarge)
    for mount in spec.mounts:
        if not _MOUNT.fullmatch(mount):
            refuse("mounts", f"{mount[:64]!r} is not like /SOURCE:/TARGET:ro")


def _check_env(spec: JobSpec, refuse: Any) -> None:
    if len(spec.env) > MAX_ENV:
        refuse("env", f"has {len(spec.env)} variables, at most {MAX_ENV} are allowed", TooLarge)
    if sum(len(k) + len(v) for k, v in spec.env.items()) > MAX_COMMAND_BYTES:
        refuse("env", f"is larger than {MAX_COMMAND_BYTES} bytes", TooLarge)
    for name, value in spec.env.items():
        if not _ENV_NAME.fullmatch(name):
            refuse("env", f"{name[:64]!r} is not a variable name; use letters, digits and '_'")
        if name.startswith(RESERVED_ENV_PREFIX):
            refuse(
                "env", f"{name[:64]!r}: names beginning with {RESERVED_ENV_PREFIX} are set by the launcher"
            )
        if len(value.encode("utf-8", "surrogatepass")) + len(name) > MAX_ARG_BYTES - 1:
            refuse("env", f"the value of {name!r} is longer than {MAX_ARG_BYTES} bytes", TooLarge)


def limits_of(words: Any, pointer: str) -> Any:
    """The words of `limits` with seconds and bytes as numbers."""
    words = with_units(words, ("soft", "hard", "grace"), parse_secs, pointer)
    return with_units(words, ("output",), parse_bytes, pointer)


def _check_limits(limits: Limits, refuse: Any) -> None:
    if (limits.soft is not None and limits.soft <= 0) or (limits.hard is not None and limits.hard <= 0):
        refuse("limits", "a time limit must be more than 0 seconds; leave it out for none")
    if limits.soft is not None and limits.hard is not None and limits.hard < limits.soft:
        refuse("limits", f"hard={limits.hard:g}s comes before soft={limits.soft:g}s; hard is the later one")
    if limits.output is not None and limits.output < MIN_OUTPUT_BYTES:
        refuse(
            "limits", f"output={limits.output} is less than the {MIN_OUTPUT_BYTES} bytes that every job has"
        )
    if limits.processes is not None and limits.processes < MIN_PROCESSES:
        refuse("limits", f"processes={limits.processes} is less than the {MIN_PROCESSES} that every job has")
