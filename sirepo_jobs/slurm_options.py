"""What a job may ask of Slurm: typed options from an allow-list, and what sbatch is told for them (SIR-57).

Nothing that a user wrote reaches sbatch but through these fields, each with its pattern or its range. Pure,
and on the floor below the agent: the front door checks with the same code as the login node.
"""

import math
import re
from collections.abc import Iterator
from typing import Literal

import msgspec
from msgspec import Struct

from .cluster import SlurmPolicy
from .errors import BadInput
from .resources import Resources, format_secs

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
#: Features may be combined: `gpu&(a100|h100)`.
_CONSTRAINT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.&|,*()\[\]:-]{0,199}")
#: The walltime warning comes at least so long before the end ...
MIN_WARNING_SECS = 10
#: ... and by so much earlier than the grace needs: for the record to be written.
MARGIN_SECS = 5
#: Ten years: more than any site gives, and what its counters hold.
MAX_TIME_SECS = 10 * 366 * 86400
#: Jobs in one array, and attempts in one allocation.
MAX_ARRAY = 1000
MAX_PACK = 1000


class SlurmOptions(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """The `slurm` of a spec. What is left out follows from `resources` and `limits`, else from the site."""

    #: Walltime in seconds; Slurm counts in minutes, rounded up.
    time: float | None = None
    nodes: int | None = None
    ntasks: int | None = None
    ntasks_per_node: int | None = None
    cpus_per_task: int | None = None
    #: Bytes per node.
    mem: int | None = None
    #: In all.
    gpus: int | None = None
    partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    #: No other job on its nodes.
    exclusive: bool = False
    #: Run the command once per task, by srun.
    srun: bool = False
    #: How srun wires up MPI; "" = the site's default.
    mpi: Literal["", "none", "pmi2", "pmix"] = ""
    #: May be submitted together with others that ask for the same, as one Slurm array.
    array: bool = True
    #: Tasks of that array at once; 0 = as many as Slurm lets run.
    array_limit: int = 0
    #: Up to so many jobs that ask for the same share one allocation, one after the other.
    pack: int = 1


class Wanted(Struct, frozen=True, kw_only=True):
    """The part of a job's spec that this room reads."""

    resources: Resources = Resources()
    limits: "WantedLimits" = msgspec.field(default_factory=lambda: WantedLimits())
    slurm: SlurmOptions | None = None


class WantedLimits(Struct, frozen=True, kw_only=True):
    """Its time limits, seconds."""

    soft: float | None = None
    hard: float | None = None
    grace: float = 30.0


def check(options: SlurmOptions) -> Iterator[tuple[str, str]]:
    """`(field, what is wrong)` for every value that cannot be meant."""
    for field in ("partition", "account", "qos"):
        value = getattr(options, field)
        if value and not _NAME.fullmatch(value):
            yield field, f"{value[:64]!r} is not a name; use letters, digits, '_', '.' and '-'"
    if options.constraint and not _CONSTRAINT.fullmatch(options.constraint):
        yield (
            "constraint",
            f"{options.constraint[:64]!r} is no combination of features like 'gpu&(a100|h100)'",
        )
    for field, low, high in (
        ("nodes", 1, 100_000),
        ("ntasks", 1, 10_000_000),
        ("ntasks_per_node", 1, 100_000),
        ("cpus_per_task", 1, 100_000),
        ("gpus", 0, 100_000),
        ("mem", 1 << 20, 1 << 60),
        ("array_limit", 0, 100_000),
        ("pack", 1, MAX_PACK),
    ):
        value = getattr(options, field)
        if value is not None and not low <= value <= high:
            yield field, f"{value} is outside {low}..{high}"
    # written so that NaN does not pass
    if options.time is not None and not 0 < options.time <= MAX_TIME_SECS:
        allowed = f"more than 0 seconds and at most {MAX_TIME_SECS}"
        yield (
            "time",
            f"a walltime must be {allowed}, not {options.time:g}; leave it out for the site's default",
        )
    if options.mpi and not options.srun:
        yield "mpi", "is what srun does: set srun too, or leave mpi out"


def resolve(wanted: Wanted, policy: SlurmPolicy) -> SlurmOptions:
    """The options with what follows from the job's resources and limits, and from the site's defaults.

    Raises `BadInput` for what the site does not allow, with the limit.
    """
    given = wanted.slurm or SlurmOptions()
    need, limits = wanted.resources, wanted.limits
    nodes = given.nodes or (need.nodes if need.nodes > 1 else None)
    ntasks, cpus_per_task = given.ntasks, given.cpus_per_task
    if ntasks is None and given.ntasks_per_node is None and cpus_per_task is None:
        if given.srun:
            ntasks = need.cpus
        elif need.cpus > 1:
            cpus_per_task = need.cpus
    time = given.time
    if time is None:
        ends = [secs for secs in (limits.hard, limits.soft and limits.soft + limits.grace) if secs]
        time = min(ends) if ends else None
    options = msgspec.structs.replace(
        given,
        nodes=nodes,
        ntasks=ntasks,
        cpus_per_task=cpus_per_task,
        time=time,
        mem=given.mem or (math.ceil(need.memory / max(nodes or 1, 1)) if need.memory else None),
        gpus=given.gpus if given.gpus is not None else (need.gpus or None),
    )
    options = _with_defaults(options, policy)
    for field, said in (*check(options), *_refusals(options, policy)):
        raise BadInput(f"slurm.{field}: {said}", pointer=f"/slurm/{field}")
    return options


def _with_defaults(options: SlurmOptions, policy: SlurmPolicy) -> SlurmOptions:
    changes = {name: value for name, value in policy.defaults.items() if not getattr(options, name, True)}
    try:
        return msgspec.convert({**msgspec.to_builtins(options), **changes}, SlurmOptions)
    except msgspec.ValidationError as exc:
        raise BadInput(f"the cluster's policy file has a default that is none: {exc}") from None


def _refusals(options: SlurmOptions, policy: SlurmPolicy) -> Iterator[tuple[str, str]]:
    for field, allowed in (
        ("partition", policy.partitions),
        ("account", policy.accounts),
        ("qos", policy.qos),
    ):
        value = getattr(options, field)
        if allowed and value and value not in allowed:
            yield field, f"{value!r} may not be used here; there are: {', '.join(allowed)}"
    if policy.max_nodes and (options.nodes or 1) > policy.max_nodes:
        yield "nodes", f"{options.nodes} are asked for, at most {policy.max_nodes} are allowed"
    if policy.max_cpus and cpus(options) > policy.max_cpus:
        yield "ntasks", f"{cpus(options)} cpus are asked for, at most {policy.max_cpus} are allowed"
    if policy.max_time_secs and options.time and options.time > policy.max_time_secs:
        most = format_secs(policy.max_time_secs)
        yield "time", f"{format_secs(options.time)} is asked for, at most {most} is allowed"


def cpus(options: SlurmOptions) -> int:
    """How many a job asks for in all."""
    tasks = options.ntasks or (options.ntasks_per_node or 1) * (options.nodes or 1)
    return max(tasks, options.nodes or 1) * (options.cpus_per_task or 1)


def warning_secs(options: SlurmOptions, grace_secs: float) -> int:
    """How long before the walltime the job is told; never more than a tenth of it, beyond the least."""
    if options.time is None:
        return 0
    wish = math.ceil(grace_secs) + MARGIN_SECS
    return max(MIN_WARNING_SECS, min(wish, int(options.time / 10)))


def flags(options: SlurmOptions, *, grace_secs: float, packed: int = 1) -> list[str]:
    """What sbatch is told; each word is an option with its value, so that none can be taken for another."""
    said: list[str] = []
    if options.time is not None:
        said.append(f"--time={_minutes(options.time * packed)}")
        said.append(f"--signal=B:USR1@{warning_secs(options, grace_secs)}")
    for field in ("nodes", "ntasks", "ntasks_per_node", "cpus_per_task", "gpus"):
        value = getattr(options, field)
        if value:
            said.append(f"--{field.replace('_', '-')}={value}")
    if options.mem is not None:
        said.append(f"--mem={math.ceil(options.mem / (1 << 20))}M")
    for field in ("partition", "account", "qos", "constraint"):
        value = getattr(options, field)
        if value:
            said.append(f"--{field}={value}")
    if options.exclusive:
        said.append("--exclusive")
    return said


def _minutes(secs: float) -> int:
    return max(1, math.ceil(secs / 60))


def command(
    argv: list[str], options: SlurmOptions, *, image: str | None, policy: SlurmPolicy, run_dir: str
) -> list[str]:
    """The job's command as it runs inside the allocation: by srun, in its container. Raises `BadInput`."""
    if image is not None:
        match policy.container:
            case "apptainer":
                argv = ["apptainer", "exec", "--bind", run_dir, "--pwd", run_dir, "--", image, *argv]
            case "shifter":
                argv = ["shifter", f"--image={image}", f"--workdir={run_dir}", "--", *argv]
            case _:
                raise BadInput("image: this cluster runs no containers; leave it out", pointer="/image")
    if options.srun:
        mpi = [f"--mpi={options.mpi}"] if options.mpi else []
        argv = [_program(policy, "srun"), *mpi, "--kill-on-bad-exit=1", "--", *argv]
    return argv


def _program(policy: SlurmPolicy, name: str) -> str:
    return f"{policy.bin_dir}/{name}" if policy.bin_dir else name
