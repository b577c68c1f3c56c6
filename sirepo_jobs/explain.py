"""Why a job is where it is: facts in, JSON with stable fields and one paragraph for people out (SYS-08).

Pure: whoever asks gathers the `Facts`, this room makes words of them. Numbers come before adjectives,
and every "why" ends with what to do about it, where anything can be done.
"""

from datetime import UTC, datetime
from signal import Signals
from typing import Any, NamedTuple

from .job import HELD_BY_AGENT, JobRecord, State
from .protocol import Scheduling
from .reasons import Reason
from .resources import Resources, format_bytes, format_secs
from .spec import JobSpec

#: So many lines of stderr are shown, and so many bytes are read for them.
TAIL_LINES = 20
TAIL_BYTES = 16_384


class AgentFacts(NamedTuple):
    """The agent that runs the job, or is to run it."""

    name: str
    driver: str
    state: str
    host: str = ""
    #: When it came into this state.
    since: int | None = None
    #: Launches that failed one after the other, why the last one did, and when the next one is.
    failures: int = 0
    trouble: str = ""
    next_try_at: int | None = None


class QueueFacts(NamedTuple):
    """What a job that waits stands behind."""

    reason: Reason | None
    text: str
    #: What exactly is waited for: agent, op_slot, run_dir, cpus, or a turn.
    resource: str
    #: Jobs of the same user that go first; `more` when there may be others.
    ahead: int
    more: bool
    need: Resources
    free: Resources
    size: Resources
    #: Id of the op, once the job was let out of the queue.
    op: int | None = None


class Asked(NamedTuple):
    """Somebody's wish: cancel, hold, preempt or retry."""

    what: str
    by: str
    at: int


class Tail(NamedTuple):
    """The end of stderr."""

    data: bytes = b""
    #: There is more before it.
    cut: bool = False
    #: Why it could not be read.
    error: str = ""


class Facts(NamedTuple):
    """Everything that is known beside the job itself."""

    now: int
    name: str
    priority: int
    queue: QueueFacts | None = None
    agent: AgentFacts | None = None
    asked: Asked | None = None
    stderr: Tail | None = None
    #: Sent to the agent, which holds it back until slots are free.
    standby: bool = False
    #: Where it stands with the batch scheduler.
    scheduling: Scheduling | None = None


def explain(job: JobRecord, spec: JobSpec, facts: Facts) -> dict[str, Any]:
    """The answer to "why?". The keys are always all there; what does not apply is null."""
    reason = facts.queue.reason if facts.queue else job.reason
    about = reason.about if reason else None
    lines = tail_lines(facts.stderr)
    hint = _hint(job, reason, facts)
    return {
        "jid": job.jid,
        "state": job.state,
        "version": job.version,
        "summary": " ".join(filter(None, [*_sentences(job, spec, facts), hint])),
        "reason": reason,
        "fault": about.fault if about else None,
        "retryable": about.retryable if about else None,
        "situation": facts.queue.text if facts.queue else job.situation,
        "hint": hint or None,
        "waiting": _waiting(job, facts) if facts.queue else None,
        "agent": _agent(facts.agent),
        "placement": _placement(job, facts),
        "ending": _ending(job, spec, facts, lines),
        "asked": _asked(facts.asked),
        "scheduler": _scheduler(facts.scheduling),
    }


def tail_lines(tail: Tail | None) -> list[str]:
    """The last lines as text; what is no UTF-8 is shown as such.

    >>> tail_lines(Tail(b"rt of a line\\nTraceback\\nValueError: 3\\n", cut=True))
    ['Traceback', 'ValueError: 3']
    """
    if tail is None:
        return []
    lines = tail.data.decode(errors="backslashreplace").splitlines()
    if tail.cut and len(lines) > 1:
        del lines[0]
    return lines[-TAIL_LINES:]


# --- the parts of the JSON ------------------------------------------------------------------------


def _waiting(job: JobRecord, facts: Facts) -> dict[str, Any]:
    queue = facts.queue
    assert queue is not None
    since = job.queued_at or job.created_at
    return {
        "for": queue.resource,
        "since": _instant(since),
        "secs": _secs(since, facts.now),
        "position": queue.ahead + 1,
        "position_is_exact": not queue.more,
        "priority": facts.priority,
        "needs": _resources(queue.need),
        "free": _resources(queue.free),
        "in_all": _resources(queue.size),
        "op": queue.op,
    }


def _agent(agent: AgentFacts | None) -> dict[str, Any] | None:
    if agent is None:
        return None
    return {
        "name": agent.name,
        "driver": agent.driver,
        "state": agent.state,
        "host": agent.host or None,
        "since": _instant(agent.since),
        "launch_failures": agent.failures,
        "trouble": agent.trouble or None,
        "next_try_at": _instant(agent.next_try_at),
    }


def _placement(job: JobRecord, facts: Facts) -> dict[str, Any] | None:
    if job.agent is None:
        return None
    return {
        "agent": job.agent,
        "driver": facts.agent.driver if facts.agent else None,
        "host": (facts.agent.host or None) if facts.agent else None,
        "attempt": job.attempt,
        "started_at": _instant(job.started_at),
        "sent_ahead": facts.standby,
    }


def _ending(job: JobRecord, spec: JobSpec, facts: Facts, lines: list[str]) -> dict[str, Any] | None:
    if job.ended_at is None:
        return None
    return {
        "at": _instant(job.ended_at),
        "secs": _secs(job.started_at, job.ended_at) if job.started_at else None,
        "exit_code": job.exit_code,
        "signal": job.signal,
        "signal_name": _signal_name(job.signal),
        "proof": job.proof,
        "attempts": job.attempt,
        "failures": job.failures,
        "max_attempts": spec.max_attempts,
        "limit": _limit(job, spec),
        "stderr": lines if facts.stderr is not None else None,
        "stderr_error": (facts.stderr.error or None) if facts.stderr else None,
    }


def _limit(job: JobRecord, spec: JobSpec) -> dict[str, Any] | None:
    if job.reason is not Reason.TIME_LIMIT:
        return None
    limits = {"soft": spec.limits.soft, "hard": spec.limits.hard}
    kind, secs = min(
        ((k, v) for k, v in limits.items() if v is not None), key=lambda kv: kv[1], default=("", 0)
    )
    return {"kind": kind, "secs": secs} if kind else None


def _scheduler(told: Scheduling | None) -> dict[str, Any] | None:
    if told is None:
        return None
    return {
        "name": told.scheduler,
        "id": told.id or None,
        "state": told.state or None,
        "reason": told.word or None,
        "text": told.text,
        "never_starts": told.never,
        "position": told.position,
        "queued": told.queued,
        "starts_at": _instant(told.starts_at),
        "nodes": told.nodes or None,
        "as_of": _instant(told.at),
    }


def _asked(asked: Asked | None) -> dict[str, Any] | None:
    return None if asked is None else {"what": asked.what, "by": asked.by, "at": _instant(asked.at)}


def _resources(resources: Resources) -> dict[str, Any]:
    return {"cpus": resources.cpus, "memory": resources.memory, "gpus": resources.gpus}


# --- the paragraph --------------------------------------------------------------------------------


def _sentences(job: JobRecord, spec: JobSpec, facts: Facts) -> list[str]:
    who = f"Job {facts.name} ({job.jid})" if facts.name else f"Job {job.jid}"
    if facts.queue is not None:
        return [f"{who} waits for {_span(job.queued_at, facts.now)}.", *_why_it_waits(job, facts)]
    if job.state in HELD_BY_AGENT:
        return [f"{who} is {job.state}.", *_how_it_goes(job, spec, facts)]
    match job.state:
        case State.COMPLETED:
            return [
                f"{who} completed with exit code 0 after {_span(job.started_at, job.ended_at)}.",
                _where(job, facts),
            ]
        case State.ERROR | State.CANCELED:
            return [f"{who} ended in state {job.state}: {job.situation}.", *_why_it_ended(job, spec, facts)]
        case State.DEDUPED:
            return [f"{who} was not run: {job.situation}."]
        case State.PURGED:
            return [f"{who} ended {_ago(job.ended_at, facts.now)}, and its files have been removed."]
    return [f"{who} is {job.state}{': ' if job.situation else ''}{job.situation}."]


def _why_it_waits(job: JobRecord, facts: Facts) -> list[str]:
    queue, agent = facts.queue, facts.agent
    assert queue is not None
    said = []
    if job.reason in (Reason.RETRYING, Reason.PREEMPTED) and job.situation:
        said.append(f"It was tried before: {job.situation}.")
    if queue.ahead or queue.more:
        count = f"{queue.ahead} or more" if queue.more else str(queue.ahead)
        are = "is" if count == "1" else "are"
        said.append(f"{count} of your jobs {are} before it; its priority is {facts.priority}.")
    lacking = queue.need.shortage(queue.free)
    if lacking:
        said.append(
            f"It needs {_amount(queue.need)}; {_amount(queue.free)} of {_amount(queue.size)} are free now."
        )
    away = agent is not None and agent.state != "online"
    if agent is not None and away and queue.reason not in _MUST_ACT:
        said.append(_agent_sentence(agent, facts.now))
    elif queue.text and (away or not said):
        said.append(f"{queue.text[:1].upper()}{queue.text[1:]}.")
    return said


def _agent_sentence(agent: AgentFacts, now: int) -> str:
    since = f" since {_span(agent.since, now)}" if agent.since is not None else ""
    if not agent.failures:
        return f"Its agent {agent.name} is {agent.state}{since}."
    again = ""
    if agent.next_try_at is not None:
        left = agent.next_try_at - now
        again = f"; the next try is in {format_secs(left / 1e6)}" if left > 0 else "; it is tried again now"
    times = "once" if agent.failures == 1 else f"{agent.failures} times"
    return f"Its agent {agent.name} could not be started ({times}): {agent.trouble}{again}."


def _how_it_goes(job: JobRecord, spec: JobSpec, facts: Facts) -> list[str]:
    said = []
    if job.state is State.STARTING and facts.scheduling is not None:
        said += _in_the_queue(facts.scheduling, facts.now)
    elif job.state is State.STARTING:
        said.append(
            "It was sent ahead, and starts as soon as slots are free."
            if facts.standby
            else f"Agent {job.agent} was told to start it and has not yet said that its process exists."
        )
    elif job.state is State.LOST:
        said.append(f"{job.situation[:1].upper()}{job.situation[1:]}.")
        said.append("It may well be running; it is not started twice.")
    elif job.state is State.CANCELING and facts.asked is not None:
        grace = format_secs(spec.limits.grace)
        said.append(
            f"{facts.asked.by} asked to {facts.asked.what} it {_ago(facts.asked.at, facts.now)}; "
            f"what does not end by itself is killed {grace} after that."
        )
    elif job.state is State.SUSPENDED:
        said.append("Its processes stand still and keep their memory; resume it to go on.")
    if job.started_at is not None:
        said.append(_where(job, facts, f"It has run for {_span(job.started_at, facts.now)}"))
        limits = [secs for secs in (spec.limits.soft, spec.limits.hard) if secs is not None]
        if limits:
            left = min(limits) - _secs(job.started_at, facts.now)
            said.append(
                f"Its time limit of {format_secs(min(limits))} ends it in {format_secs(max(left, 0.0))}."
            )
    return said


def _in_the_queue(told: Scheduling, now: int) -> list[str]:
    """What the batch scheduler says about its waiting."""
    said = [f"{told.text[:1].upper()}{told.text[1:]}."]
    if told.never:
        said.append("It will not start as it is: cancel it, and ask for something else.")
    if told.position:
        said.append(f"It is number {told.position} of {told.queued} that wait there.")
    if told.starts_at is not None:
        when = _instant(told.starts_at)
        said.append(f"It is expected to start in {_span(now, told.starts_at)}, at {when}; that may change.")
    said.append(f"So it was {_ago(told.at, now)}.")
    return said


def _why_it_ended(job: JobRecord, spec: JobSpec, facts: Facts) -> list[str]:
    said = []
    if facts.asked is not None and job.reason in _ASKED:
        said.append(f"{facts.asked.by} asked to {facts.asked.what} it {_ago(facts.asked.at, facts.now)}.")
    if job.reason is not None:
        said.append(f"Reason {job.reason} (fault: {job.reason.about.fault}).")
    if job.started_at is not None:
        said.append(_where(job, facts, f"It had run for {_span(job.started_at, job.ended_at)}"))
    if spec.max_attempts > 1:
        said.append(f"{job.failures} of {spec.max_attempts} attempts failed.")
    lines = tail_lines(facts.stderr)
    if lines:
        said.append(f"Its stderr ends with: {lines[-1].strip()!r}.")
    elif facts.stderr is not None and facts.stderr.error:
        said.append(f"Its stderr cannot be read now: {facts.stderr.error}.")
    return said


def _where(job: JobRecord, facts: Facts, what: str = "It ran") -> str:
    if job.agent is None:
        return ""
    host = f" on {facts.agent.host}" if facts.agent and facts.agent.host else ""
    return f"{what} at agent {job.agent}{host}, attempt {job.attempt}."


#: Somebody has to do something before an agent can be launched: that is what has to be said of it.
_MUST_ACT = frozenset({Reason.AUTH_REQUIRED, Reason.RATE_LIMIT})
_ASKED = frozenset({Reason.CANCELED_BY_USER, Reason.CANCELED_BY_ADMIN})

_HINTS: dict[Reason, str] = {
    Reason.COMMAND_NOT_FOUND: "Check the command's name, and PATH in the spec's env.",
    Reason.COMMAND_NOT_EXECUTABLE: "Make the file executable, or name an interpreter before it.",
    Reason.OUT_OF_MEMORY: "Ask for more memory, or let it be tried again with more.",
    Reason.TIME_LIMIT: "Give it a longer limit (PATCH limits, then retry), or make it do less.",
    Reason.OUTPUT_LIMIT: "Let it say less, write what is large to files, or ask for a higher limits.output.",
    Reason.PROCESS_LIMIT: "Start fewer processes or threads at a time, or ask for a higher limits.processes.",
    Reason.DISK_FULL: "Make room where run dirs are, then retry.",
    Reason.UNSATISFIABLE: "Ask for less, or name another driver.",
    Reason.LAUNCH_FAILED: "The service is in trouble, not the job: `sirepo-jobs doctor` tells more.",
    Reason.EXIT_NONZERO: "The program itself said that it failed: its stderr and stdout say more.",
}


def _hint(job: JobRecord, reason: Reason | None, facts: Facts) -> str:
    if job.signal == Signals.SIGKILL and reason is Reason.SIGNALED:
        return "Signal 9 from outside is most often the system short of memory: ask for more, or use less."
    if job.signal is not None and reason is Reason.SIGNALED:
        return f"The program died of {_signal_name(job.signal)}; a core dump or a debugger tells where."
    if reason is None or (job.state is State.PENDING and reason is not Reason.LAUNCH_FAILED):
        return ""
    hint = _HINTS.get(reason, "")
    if not hint and job.state is State.ERROR and reason.about.retryable:
        return "It may go well another time: retry it."
    return hint


# --- words ----------------------------------------------------------------------------------------


def _amount(resources: Resources) -> str:
    parts = [f"{resources.cpus} cpu{'' if resources.cpus == 1 else 's'}"]
    if resources.memory:
        parts.append(format_bytes(max(resources.memory, 0)))
    if resources.gpus:
        parts.append(f"{resources.gpus} gpus")
    return " and ".join(parts)


def _signal_name(number: int | None) -> str | None:
    if number is None:
        return None
    try:
        return Signals(number).name
    except ValueError:
        return f"signal {number}"


def _secs(start: int | None, end: int | None) -> float:
    return max((end or 0) - (start or 0), 0) / 1e6 if start is not None and end is not None else 0.0


def _span(start: int | None, end: int | None) -> str:
    secs = _secs(start, end)
    return f"{secs:.1f}s" if secs < 60 else format_secs(round(secs))


def _ago(at: int | None, now: int) -> str:
    return f"{_span(at, now)} ago" if at is not None else "some time ago"


def _instant(at: int | None) -> str | None:
    if at is None:
        return None
    return datetime.fromtimestamp(at / 1e6, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
