"""Slurm in words: commands out, answers in. The only room that knows how they are spelled (SIR-57..60).

Pure. An answer is read strictly: what is not as expected is noise, noise is counted, and nothing is concluded
from it (F119, F127). This floor is below the agent, because it is the agent that asks.
"""

import re
from collections.abc import Iterable
from typing import NamedTuple

from .cluster import SlurmPolicy
from .slurm_options import SlurmOptions, flags
from .slurm_states import meaning, state_word

#: Every name that we give to a Slurm job begins with this.
PREFIX = "sj-"
#: What Slurm's commands must not be told by somebody's environment: order, format, language, clock.
COMMAND_ENV = {"LC_ALL": "C", "SLURM_TIME_FORMAT": "%s"}
#: The batch script of every job, always the same (F127, S60). It knows nothing but where to look.
SCRIPT = """\
#!/bin/sh
# sirepo_jobs: what this runs stands in $SIREPO_JOBS_BATCH. The same script for every job.
umask 077
if [ -n "$SIREPO_JOBS_MODULES" ]; then
    [ -r /etc/profile ] && . /etc/profile
    for module in $SIREPO_JOBS_MODULES; do module load "$module" || exit 78; done
fi
export SIREPO_JOBS_PYTHONPATH="$PYTHONPATH" PYTHONPATH="$SIREPO_JOBS_LIB"
set -f
IFS='
'
exec $SIREPO_JOBS_PAYLOAD
"""

#: Exit status of a Slurm job that ran nothing: the claims were taken, or everything about it was over.
NOTHING_TO_DO = 77

_MAX_TEXT = 2000


def _program(policy: SlurmPolicy, name: str) -> str:
    return f"{policy.bin_dir}/{name}" if policy.bin_dir else name


# --- sbatch ---------------------------------------------------------------------------------------


def sbatch(
    policy: SlurmPolicy,
    token: str,
    options: SlurmOptions,
    *,
    output: str,
    grace_secs: float,
    tasks: int = 1,
    packed: int = 1,
) -> list[str]:
    """Submit; the script goes to its standard input. With more than one task it is an array from 0 on."""
    argv = [
        _program(policy, "sbatch"),
        "--parsable",
        f"--job-name={token}",
        f"--comment={token}",
        "--no-requeue",
        "--open-mode=append",
        f"--output={output.replace('%', '%%')}" + (".%a" if tasks > 1 else ""),
        "--input=/dev/null",
        "--chdir=/",
    ]
    if tasks > 1:
        limit = f"%{options.array_limit}" if options.array_limit else ""
        argv.append(f"--array=0-{tasks - 1}{limit}")
    return argv + flags(options, grace_secs=grace_secs, packed=packed)


class Accepted(NamedTuple):
    """It is in Slurm's hands, under this id."""

    slurm_id: str


class Refused(NamedTuple):
    """Slurm's own words why it does not take it."""

    text: str
    #: A limit of the moment, or one of the request.
    may_pass: bool = False


class Unclear(NamedTuple):
    """Nobody can tell whether it was taken: look for its token before anything else (F118)."""

    text: str


Answer = Accepted | Refused | Unclear

_ID_LINE = re.compile(r"([1-9][0-9]{0,9})(?:;[A-Za-z0-9_.-]{1,64})?")
#: sbatch says so when the controller has answered No, or when it did not even ask.
_NO = re.compile(r"^sbatch: (?:error|fatal): (.+)$", re.MULTILINE)
_FAILED = "Batch job submission failed: "
#: After "Batch job submission failed": these are about the request, and asking again does not help.
_REQUEST = re.compile(
    r"invalid|not available|not permitted|can ?not be satisfied|exceeds|access/permission denied|not allowed"
    r"|too many|more processors|unspecified job|requested|must specify|too large|too long|unknown",
    re.IGNORECASE,
)
#: These pass by themselves: limits on how many jobs there may be.
_LIMIT = re.compile(
    r"job submit limit|accounting/QOS policy|temporarily unable|try again|MaxJobCount|max.?submit",
    re.IGNORECASE,
)
#: These say nothing about the request; it may even have been accepted.
_TROUBLE = re.compile(
    r"socket|timed? ?out|contact|connect|communicat|transport|network|header|munge|protocol|controller|down|"
    r"zero bytes|i/o error|slurmdbd|database|resource temporarily",
    re.IGNORECASE,
)
_BEFORE_ASKING = re.compile(
    r"^sbatch: (?:error: )?(?:unrecognized option|invalid option|option requires)|^sbatch: (?:error|fatal): "
    r"(?:invalid |bad |Invalid |This does not look like a batch script|CPU count|Unable to open file)",
    re.MULTILINE,
)


def parse_submitted(rc: int, out: str, err: str) -> Answer:
    """What sbatch answered. `rc` is negative when it was killed, by us or by others."""
    lines = [line.strip() for line in out.splitlines() if line.strip()]
    found = [match for line in lines if (match := _ID_LINE.fullmatch(line))]
    if rc == 0 and len(lines) == 1 and found:
        return Accepted(found[0][1])
    said = clip(err or out) or f"sbatch ended with {rc} and said nothing"
    if rc not in (1, 255) or found:
        return Unclear(said)
    reasons = _NO.findall(err)
    failed = [text.removeprefix(_FAILED) for text in reasons if text.startswith(_FAILED)]
    if any(_TROUBLE.search(text) for text in reasons) and not any(_REQUEST.search(text) for text in failed):
        return Unclear(said)
    if any(_LIMIT.search(text) for text in reasons):
        return Refused(said, may_pass=True)
    if any(_REQUEST.search(text) for text in failed) or _BEFORE_ASKING.search(err):
        return Refused(said)
    return Unclear(said)


# --- squeue ---------------------------------------------------------------------------------------

#: The name comes last: whatever others put into theirs, the columns before it stand.
_COLUMNS = "%i|%F|%K|%T|%S|%V|%Q|%N|%r|%j"
_QUEUE_COLUMNS = "%i|%Q|%j"
_SLURM_ID = re.compile(r"[1-9][0-9]{0,9}(?:_[0-9]{1,9})?")
_EPOCH = re.compile(r"[0-9]{9,11}")


class Row(NamedTuple):
    """One job, or one task of an array, as squeue lists it."""

    #: As scancel takes it: `12`, `12_3`.
    slurm_id: str
    token: str
    #: Which task of its array, 0 without one.
    task: int
    state: str
    #: Why it is pending; elsewhere what Slurm notes.
    reason: str
    #: When it started, or is expected to; seconds since 1970, None when Slurm does not say.
    starts_at: int | None = None
    priority: int = 0
    nodes: str = ""
    submitted_at: int | None = None


class Listing(NamedTuple):
    """An answer that counts."""

    rows: list[Row]
    #: Lines that are none of ours and no row of anybody's: a banner, half a line.
    noise: int = 0

    @property
    def sound(self) -> bool:
        """Whether something that is not in it may be taken as not being there."""
        return not self.noise


def squeue(policy: SlurmPolicy, user: str) -> list[str]:
    """All jobs of a user in every state, a line for each task of an array (F119: never without `-t all`)."""
    return [_program(policy, "squeue"), "-h", "-r", "-t", "all", "-u", user, "-o", _COLUMNS]


def parse_listing(rc: int, out: str, err: str) -> Listing | None:
    """The rows of ours; None when it is no answer."""
    if rc != 0:
        return None
    rows: list[Row] = []
    noise = 0
    for line in out.splitlines():
        if not line.strip():
            continue
        fields = line.split("|", 9)
        if len(fields) != 10 or not _SLURM_ID.fullmatch(fields[0]) or not fields[1].isdecimal():
            noise += 1
            continue
        slurm_id, _, index, state, starts, submitted, priority, nodes, reason, name = fields
        if not name.startswith(PREFIX):
            continue
        if not state_word(state).replace("_", "").isalpha():
            noise += 1
            continue
        rows.append(
            Row(
                slurm_id=slurm_id,
                token=name.strip(),
                task=int(index) if index.isdecimal() else 0,
                state=state_word(state),
                reason=_plain(reason),
                starts_at=_epoch(starts),
                priority=int(priority) if priority.isdecimal() else 0,
                nodes=_plain(nodes),
                submitted_at=_epoch(submitted),
            )
        )
    if err.strip():
        noise += 1  # it complained: what it does not list may be what it could not ask for
    return Listing(rows, noise)


def pending_order(policy: SlurmPolicy) -> list[str]:
    """Everybody's pending jobs of the default view, the first to start first."""
    return [_program(policy, "squeue"), "-h", "-t", "PENDING", "-S", "-p,i", "-o", _QUEUE_COLUMNS]


def parse_order(rc: int, out: str) -> list[str] | None:
    """Slurm's ids in order; None when it is no answer."""
    if rc != 0:
        return None
    ids = [line.partition("|")[0].partition("_[")[0] for line in out.splitlines() if line.count("|") >= 2]
    return [one for one in ids if _SLURM_ID.fullmatch(one)]


# --- one job: scontrol, sacct -----------------------------------------------------------------------


class Record(NamedTuple):
    """What Slurm has on record about one job."""

    slurm_id: str
    state: str
    token: str = ""
    task: int = 0
    exit_code: int | None = None
    signal: int | None = None
    nodes: str = ""

    @property
    def ended(self) -> bool:
        """Its state is one of those that stay."""
        return meaning(self.state).stage == "ended"


class Forgotten(NamedTuple):
    """Slurm's clear word that it has no job of that id."""

    slurm_id: str


def show(policy: SlurmPolicy, slurm_id: str) -> list[str]:
    """One job, from the controller's memory."""
    return [_program(policy, "scontrol"), "-o", "show", "job", slurm_id]


_FIELD = re.compile(r"(?:^|\s)(JobId|ArrayTaskId|JobName|JobState|ExitCode|NodeList)=(\S*)")
_INVALID_ID = re.compile(r"Invalid job id specified", re.IGNORECASE)
_EXIT = re.compile(r"([0-9]{1,3}):([0-9]{1,3})")


def parse_shown(slurm_id: str, rc: int, out: str, err: str) -> Record | Forgotten | None:
    """The job, that there is none, or None when it is no answer."""
    if rc != 0:
        return Forgotten(slurm_id) if _INVALID_ID.search(err) else None
    for line in out.splitlines():
        found = dict(_FIELD.findall(line))
        if not found.get("JobId", "").isdecimal() or "JobState" not in found:
            continue
        code, signal = _exit(found.get("ExitCode", ""))
        index = found.get("ArrayTaskId", "")
        if "_" in slurm_id and index != slurm_id.partition("_")[2]:
            continue
        return Record(
            slurm_id=slurm_id,
            state=state_word(found["JobState"]),
            token=found.get("JobName", ""),
            task=int(index) if index.isdecimal() else 0,
            exit_code=code,
            signal=signal,
            nodes=_plain(found.get("NodeList", "")),
        )
    return None


def sacct(policy: SlurmPolicy, user: str, tokens: Iterable[str], days: int) -> list[str]:
    """All that the accounting has about these names since so many days; allocations only."""
    return [
        _program(policy, "sacct"), "-n", "-P", "-X", "-u", user, "-S", f"now-{days}days",
        f"--name={','.join(tokens)}", "-o", "JobID,State,ExitCode,NodeList,JobName",
    ]  # fmt: skip


_NO_ACCOUNTING = re.compile(r"accounting storage is disabled", re.IGNORECASE)


class NoAccounting(Exception):
    """This cluster keeps no accounting that we could ask."""


def parse_accounts(rc: int, out: str, err: str) -> list[Record] | None:
    """Its records; None when it is no answer. Raises `NoAccounting`."""
    if _NO_ACCOUNTING.search(err):
        raise NoAccounting(clip(err))
    if rc != 0 or err.strip():
        return None
    records = []
    for line in out.splitlines():
        fields = line.split("|", 4)
        if len(fields) != 5 or not _SLURM_ID.fullmatch(fields[0]) or not fields[4].startswith(PREFIX):
            continue
        code, signal = _exit(fields[2])
        index = fields[0].partition("_")[2]
        records.append(
            Record(
                slurm_id=fields[0],
                state=state_word(fields[1]),
                token=fields[4].strip(),
                task=int(index) if index else 0,
                exit_code=code,
                signal=signal,
                nodes=_plain(fields[3]),
            )
        )
    return records


# --- scancel, sinfo ---------------------------------------------------------------------------------


def scancel(policy: SlurmPolicy, slurm_ids: Iterable[str], signal: str = "") -> list[str]:
    """End these jobs; with a signal only send it to the batch script of each."""
    how = [f"--signal={signal}", "--batch"] if signal else []
    return [_program(policy, "scancel"), *how, *slurm_ids]


def suspend(policy: SlurmPolicy, slurm_ids: Iterable[str], *, on: bool) -> tuple[list[str], list[str]]:
    """Stop or continue jobs: first the payload, which does it to what it started, then the steps of srun.

    `--full` will not do: it reaches nothing that has a session of its own, and no step.
    """
    ids = list(slurm_ids)
    steps = [_program(policy, "scancel"), f"--signal={'STOP' if on else 'CONT'}", *ids]
    return scancel(policy, ids, "TSTP" if on else "CONT"), steps


def parse_canceled(rc: int, err: str) -> bool:
    """Whether Slurm has taken the word. What became of it the next listing tells."""
    return rc == 0 and not err.strip()


def sinfo(policy: SlurmPolicy) -> list[str]:
    """The partitions, for whoever asks what there is."""
    return [_program(policy, "sinfo"), "-h", "-o", "%P|%a|%l|%D|%c|%m|%G"]


class Partition(NamedTuple):
    """One kind of nodes of a partition."""

    name: str
    is_default: bool
    up: bool
    time_limit: str
    nodes: int
    cpus_per_node: str
    memory_mib: str
    gres: str


def parse_partitions(rc: int, out: str) -> list[Partition] | None:
    """What there is; None when it is no answer."""
    if rc != 0:
        return None
    found = []
    for line in out.splitlines():
        fields = line.split("|")
        if len(fields) == 7 and fields[3].isdecimal() and fields[0]:
            name, up, limit, nodes, cpus, memory, gres = fields
            default = name.endswith("*")
            gres = "" if gres == "(null)" else gres
            found.append(
                Partition(name.rstrip("*"), default, up == "up", limit, int(nodes), cpus, memory, gres)
            )
    return found


# --- words ------------------------------------------------------------------------------------------


def clip(text: str) -> str:
    """Somebody's words, printable and not too long."""
    plain = "".join(c if c.isprintable() or c == "\n" else "?" for c in text).strip()
    return plain if len(plain) <= _MAX_TEXT else plain[:_MAX_TEXT] + "..."


def _plain(text: str) -> str:
    text = text.strip()
    return "" if text in ("(null)", "N/A", "n/a", "None assigned") else clip(text)[:200]


def _epoch(text: str) -> int | None:
    return int(text) if _EPOCH.fullmatch(text.strip()) else None


def _exit(text: str) -> tuple[int | None, int | None]:
    found = _EXIT.fullmatch(text.strip())
    if not found:
        return None, None
    code, signal = int(found[1]), int(found[2])
    return (None, signal) if signal else (code, None)
