"""How a job moves: `step(job, event, spec)` returns the new record and what the shell should do about it.

What may follow what is data (`transitions.py`); here stands what each event means. An event that cannot
happen in the job's state is the sender's fault (`Illegal`) and changes nothing. Events about an attempt
carry (serial, attempt); one that is not current is noted and dropped (I6).

Sources: SYS-06..09, C4, C5, C9, I5, I8, I18, I19.
"""

from typing import Any

from msgspec.structs import replace

from .errors import RemoteError
from .events import (
    AgentBack,
    AgentLost,
    Assigned,
    CancelAsked,
    Changed,
    DeathProven,
    Deduped,
    Dequeue,
    Effect,
    EndAttempt,
    Ended,
    Enqueue,
    Event,
    Exited,
    HoldAsked,
    Note,
    NotStarted,
    PreemptAsked,
    Progressed,
    Purged,
    QueueMoved,
    Released,
    Requeue,
    Resumed,
    RetryAsked,
    Started,
    StopAttempt,
    Suspended,
)  # fmt: skip
from .job import FINAL, HELD_BY_AGENT, JobRecord, State, Stopping
from .reasons import Reason
from .resources import format_secs
from .spec import JobSpec
from .transitions import NEXT

#: An attempt that never became a process charges nobody, but not for ever.
MAX_STARTS = 10
#: Nor does one whose agent died, but a job that kills each of its agents is stopped (C12, F034).
MAX_CRASHES = 3
#: What is queued again because of trouble waits so long, and twice as long each time.
FIRST_PAUSE_SECS = 0.5
LAST_PAUSE_SECS = 60.0


class Illegal(RemoteError):
    """The event cannot happen in this state; the record is unchanged."""

    code = "illegal_transition"


S = State


def step(job: JobRecord, event: Event, spec: JobSpec) -> tuple[JobRecord, tuple[Effect, ...]]:
    """Say what `event` makes of `job`, and what the shell should do about it.

    Returns the very same record when nothing changes. Raises `Illegal` for an event that cannot
    happen in this state.
    """
    if event.fenced and (stale := _stale(job, event)):
        return job, (Note(stale),)
    kind = type(event)
    try:
        allowed = NEXT[job.state, kind]
    except KeyError:
        if job.state in FINAL and event.fenced:
            return job, (Note(f"{kind.__name__} after the end ({job.state}) dropped"),)
        raise Illegal(
            f"{kind.__name__} cannot happen to job {job.jid} while it is {job.state} (version {job.version})"
        ) from None
    new, effects = _DECIDE[kind](job, event, spec)
    if new is job:
        return job, effects
    assert new.state in allowed or (not allowed and new.state is job.state), (job.state, kind, new.state)
    return replace(new, version=job.version + 1), effects


def _stale(job: JobRecord, event: Any) -> str:
    if event.serial == job.serial and event.attempt == job.attempt:
        return ""
    return (
        f"{type(event).__name__} for serial={event.serial} attempt={event.attempt} dropped; "
        f"job {job.jid} is at serial={job.serial} attempt={job.attempt}"
    )


Decision = tuple[JobRecord, tuple[Effect, ...]]


def _released(job: JobRecord, event: Released, spec: JobSpec) -> Decision:
    if job.state is S.PENDING:
        return job, ()
    return _pending(job, event.at), (Enqueue(),)


def _deduped(job: JobRecord, event: Deduped, spec: JobSpec) -> Decision:
    new = replace(
        job,
        state=S.DEDUPED,
        original_jid=event.original_jid,
        situation=f"the same work is done by job {event.original_jid}",
        ended_at=event.at,
    )
    return new, (*_leave_queue(job), Ended())


def _assigned(job: JobRecord, event: Assigned, spec: JobSpec) -> Decision:
    new = replace(
        job,
        state=S.STARTING,
        attempt=job.attempt + 1,
        agent=event.agent,
        run_dir=event.run_dir,
        lease_secs=event.lease_secs,
        image_id=event.image_id,
        reason=None,
        situation="",
        started_at=None,
        exit_code=None,
        signal=None,
        proof=None,
        stdout_bytes=None,
        stderr_bytes=None,
        progress=None,
        usage=None,
    )
    return new, ()


def _started(job: JobRecord, event: Started, spec: JobSpec) -> Decision:
    if job.started_at is not None and job.state is not S.LOST:
        return job, ()
    state = {S.STARTING: S.RUNNING, S.LOST: S.CANCELING if job.stopping else S.RUNNING}.get(
        job.state, job.state
    )
    return replace(job, state=state, started_at=event.at, reason=None, situation=""), ()


def _suspended(job: JobRecord, event: Suspended | Resumed, spec: JobSpec) -> Decision:
    target = S.SUSPENDED if isinstance(event, Suspended) else S.RUNNING
    if job.state in (target, S.CANCELING):
        return job, ()
    return replace(job, state=target), ()


def _cancel_asked(job: JobRecord, event: CancelAsked, spec: JobSpec) -> Decision:
    if job.state in FINAL or job.stopping is Stopping.CANCEL:
        return job, ()
    if job.state in HELD_BY_AGENT:
        return _stop(job, spec, Stopping.CANCEL, event.by, event.reason, f"cancel asked by {event.by}")
    new = replace(
        job,
        state=S.CANCELED,
        reason=event.reason,
        situation=f"canceled by {event.by} before it started",
        ended_at=event.at,
    )
    return new, (*_leave_queue(job), Ended())


def _hold_asked(job: JobRecord, event: HoldAsked, spec: JobSpec) -> Decision:
    if job.state is S.HELD or job.stopping:
        return job, ()
    if job.state in HELD_BY_AGENT:
        return _stop(job, spec, Stopping.HOLD, event.by, Reason.HELD, f"hold asked by {event.by}")
    new = replace(job, state=S.HELD, reason=Reason.HELD, situation=f"held by {event.by}; release it to go on")
    return new, _leave_queue(job)


def _preempt_asked(job: JobRecord, event: PreemptAsked, spec: JobSpec) -> Decision:
    if job.stopping:
        return job, ()
    return _stop(job, spec, Stopping.PREEMPT, event.by, Reason.PREEMPTED, f"preempted by {event.by}")


def _stop(
    job: JobRecord, spec: JobSpec, stopping: Stopping, by: str, reason: Reason, situation: str
) -> Decision:
    """Ask the attempt to end; a stronger wish (cancel) replaces a weaker one."""
    new = replace(job, stopping=stopping, stopping_by=by, reason=reason, situation=situation)
    if job.state is S.LOST:
        # the agent will hear of it as soon as it is back (F077); that it knows nothing is not forgotten
        reason = job.reason if job.reason is Reason.AGENT_LOST else reason
        return replace(new, reason=reason, situation=f"{situation}; its agent is out of reach"), ()
    return replace(new, state=S.CANCELING), (StopAttempt(spec.limits.grace),)


def _agent_lost(job: JobRecord, event: AgentLost, spec: JobSpec) -> Decision:
    if job.state is S.LOST and (job.reason is Reason.AGENT_LOST or event.reason is not Reason.AGENT_LOST):
        return job, ()
    return replace(job, state=S.LOST, reason=event.reason, situation=event.message), ()


def _agent_back(job: JobRecord, event: AgentBack, spec: JobSpec) -> Decision:
    if job.state is not S.LOST:
        return job, ()
    if job.stopping:
        new = replace(job, state=S.CANCELING, situation=f"{job.stopping} asked by {job.stopping_by}")
        return new, (StopAttempt(spec.limits.grace),)
    state = {"running": S.RUNNING, "suspended": S.SUSPENDED}.get(event.holds, S.STARTING)
    return replace(job, state=state, reason=None, situation=""), ()


def _progressed(job: JobRecord, event: Progressed, spec: JobSpec) -> Decision:
    return replace(job, progress=event.data), ()


def _queue_moved(job: JobRecord, event: QueueMoved, spec: JobSpec) -> Decision:
    # once it runs, or is asked to end, other things are to be said about it
    if job.state is not S.STARTING or (job.reason, job.situation) == (event.reason, event.message):
        return job, ()
    return replace(job, reason=event.reason, situation=event.message), ()


def _not_started(job: JobRecord, event: NotStarted, spec: JobSpec) -> Decision:
    over = replace(job, ended_at=event.at, proof="never_claimed", started_at=None)
    if job.stopping in (Stopping.CANCEL, Stopping.HOLD):
        return _stopped(over, event.at)
    # an agent that is ending says nothing about the job, however many of them end
    starts = job.false_starts + (not job.stopping and event.reason is not Reason.DRAINING)
    if event.final or not event.reason.about.retryable or starts >= MAX_STARTS:
        new = replace(over, state=S.ERROR, reason=event.reason, situation=event.message, false_starts=starts)
        return new, (EndAttempt(), Ended())
    new = _pending(over, event.at, Reason.RETRYING, event.message)
    pause_secs = 0.0 if job.stopping else _pause_secs(starts)
    return replace(new, false_starts=starts), (EndAttempt(event.reason, event.message), Enqueue(pause_secs))


def _pause_secs(tries: int) -> float:
    return float(min(FIRST_PAUSE_SECS * 2.0 ** (tries - 1), LAST_PAUSE_SECS))


def _exited(job: JobRecord, event: Exited, spec: JobSpec) -> Decision:
    over = replace(
        job,
        ended_at=event.at,
        started_at=job.started_at or event.started_at,
        exit_code=event.exit_code,
        signal=event.signal,
        proof=event.proof,
        stdout_bytes=event.stdout_bytes,
        stderr_bytes=event.stderr_bytes,
        usage=event.usage,
    )
    if job.stopping and event.stopped and event.reason is not Reason.TIME_LIMIT:
        return _stopped(over, event.at)
    if event.exit_code == 0 and event.reason is None:
        new = replace(over, state=S.COMPLETED, reason=None, situation="", stopping=None)
        return new, (EndAttempt(), Ended())
    if event.reason in _INTERRUPTED:
        return _interrupted(over, event, event.reason, event.message or _sentence(event, spec), spec)
    reason = event.reason or (Reason.SIGNALED if event.signal is not None else Reason.EXIT_NONZERO)
    return _failed(over, event.at, reason, event.message or _sentence(event, spec), spec)


def _death_proven(job: JobRecord, event: DeathProven, spec: JobSpec) -> Decision:
    over = replace(job, ended_at=event.at, proof=event.proof)
    if job.stopping:
        return _stopped(over, event.at)
    return _interrupted(over, event, event.reason, event.message, spec)


#: Why an attempt ended that neither its program nor anybody's wish ended.
_INTERRUPTED = frozenset({Reason.AGENT_LOST, Reason.NODE_FAILED})
#: Proofs that do not speak against the job: a network may fail, and an operator may say so.
_BLAMELESS = frozenset({"lease_expired", "operator"})


def _interrupted(
    over: JobRecord, event: Exited | DeathProven, reason: Reason, situation: str, spec: JobSpec
) -> Decision:
    """The attempt is over because its agent or its host is: the job's policy decides (C9, C12)."""
    leased = isinstance(event, Exited) and event.stopped
    crashes = over.crashes + (event.proof not in _BLAMELESS and not leased)
    over = replace(over, crashes=crashes)
    if crashes >= MAX_CRASHES and not over.stopping:
        situation = (
            f"its agent died {crashes} times while it ran, so it is not tried again; last: {situation}"
        )
        new = replace(
            over, state=S.ERROR, reason=Reason.POISONED, situation=situation, failures=over.failures + 1
        )
        return new, (EndAttempt(), Ended())
    if spec.on_lost == "requeue" and not over.stopping:
        new = _pending(over, event.at, Reason.RETRYING, f"attempt {over.attempt} was lost: {situation}")
        pause_secs = _pause_secs(crashes) if crashes else 0.0
        return new, (EndAttempt(reason, situation), Enqueue(pause_secs))
    return _failed(over, event.at, reason, situation, spec)


def _failed(over: JobRecord, at: int, reason: Reason, situation: str, spec: JobSpec) -> Decision:
    """The attempt failed: another one when the user allowed it, else the end."""
    failures = over.failures + 1
    again = reason in spec.retry_on if spec.retry_on else reason.about.retryable
    if again and failures < spec.max_attempts and not over.stopping:
        new = _pending(over, at, Reason.RETRYING, f"attempt {over.attempt} failed: {situation}")
        return replace(new, failures=failures), (EndAttempt(reason, situation), Enqueue())
    # a time limit is the user's own wish to end it, not an error of the program (SYS-C8)
    state = S.CANCELED if reason is Reason.TIME_LIMIT else S.ERROR
    new = replace(over, state=state, reason=reason, situation=situation, failures=failures, stopping=None)
    return new, (EndAttempt(), Ended())


def _stopped(over: JobRecord, at: int) -> Decision:
    """The attempt ended because it was asked to."""
    match over.stopping:
        case Stopping.HOLD:
            new = replace(over, state=S.HELD, situation=f"held by {over.stopping_by}; release it to go on")
            effects: tuple[Effect, ...] = (EndAttempt(),)
        case Stopping.PREEMPT:
            new = _pending(over, at, Reason.PREEMPTED, f"preempted by {over.stopping_by}")
            effects = (EndAttempt(), Enqueue())
        case _:
            reason = over.reason if over.reason in _CANCELS else Reason.CANCELED_BY_USER
            new = replace(over, state=S.CANCELED, reason=reason, situation=f"canceled by {over.stopping_by}")
            effects = (EndAttempt(), Ended())
    return replace(new, stopping=None, stopping_by=""), effects


_CANCELS = frozenset({Reason.CANCELED_BY_USER, Reason.CANCELED_BY_ADMIN, Reason.DEPENDENCY_FAILED})


def _retry_asked(job: JobRecord, event: RetryAsked, spec: JobSpec) -> Decision:
    new = replace(
        _pending(job, event.at),
        serial=job.serial + 1,
        failures=0,
        false_starts=0,
        crashes=0,
        exit_code=None,
        signal=None,
        started_at=None,
        proof=None,
        stdout_bytes=None,
        stderr_bytes=None,
        progress=None,
        usage=None,
    )
    return new, (Enqueue(),)


def _changed(job: JobRecord, event: Changed, spec: JobSpec) -> Decision:
    if job.state in HELD_BY_AGENT and "limits" in event.changes:
        raise Illegal(
            f"the limits of job {job.jid} cannot be changed while it is {job.state}: its agent has them"
        )
    moved = "priority" in event.changes and job.state not in HELD_BY_AGENT
    return replace(job), (Requeue(),) if moved else ()


def _purged(job: JobRecord, event: Purged, spec: JobSpec) -> Decision:
    if job.state is S.PURGED:
        return job, ()
    return replace(job, state=S.PURGED, run_dir=None), ()


def _pending(job: JobRecord, at: int, reason: Reason | None = None, situation: str = "") -> JobRecord:
    return replace(
        job,
        state=S.PENDING,
        reason=reason,
        situation=situation,
        agent=None,
        queued_at=at,
        ended_at=None,
        stopping=None,
        stopping_by="",
    )


def _leave_queue(job: JobRecord) -> tuple[Effect, ...]:
    return (Dequeue(),) if job.state is S.PENDING else ()


def _sentence(event: Exited, spec: JobSpec) -> str:
    if event.reason is Reason.TIME_LIMIT:
        limits = [secs for secs in (spec.limits.soft, spec.limits.hard) if secs is not None]
        limit = f" of {format_secs(min(limits))}" if limits else ""
        return f"ran longer than its time limit{limit}; ended by signal {event.signal or 15}"
    if event.signal is not None:
        hint = "; signal 9 often means out of memory" if event.signal == 9 and not event.stopped else ""
        return f"killed by signal {event.signal}{hint}"
    if event.exit_code is None:
        return f"ended, and nothing proves its exit status ({event.proof})"
    return f"exited with code {event.exit_code}"


_DECIDE: dict[type[Event], Any] = {
    Released: _released,
    Deduped: _deduped,
    Assigned: _assigned,
    NotStarted: _not_started,
    Started: _started,
    Exited: _exited,
    CancelAsked: _cancel_asked,
    HoldAsked: _hold_asked,
    PreemptAsked: _preempt_asked,
    Suspended: _suspended,
    Resumed: _suspended,
    AgentLost: _agent_lost,
    AgentBack: _agent_back,
    DeathProven: _death_proven,
    Progressed: _progressed,
    QueueMoved: _queue_moved,
    Changed: _changed,
    RetryAsked: _retry_asked,
    Purged: _purged,
}
