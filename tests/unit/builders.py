"""Small makers of records and events, so that a test says only what it is about."""

from typing import Any

from sirepo_jobs import events
from sirepo_jobs.job import JobRecord, State
from sirepo_jobs.reasons import Reason
from sirepo_jobs.spec import JobSpec

AT = 1_000_000


def a_spec(**changes: Any) -> JobSpec:
    return JobSpec(**{"command": ["true"], **changes})


def a_job(state: State = State.PENDING, **changes: Any) -> JobRecord:
    """A record as it would stand in `state`, on its first attempt where that state has one."""
    base: dict[str, Any] = {"jid": "J1", "seq": 1, "user": "ann", "created_at": AT, "queued_at": AT}
    if state not in (State.INACTIVE, State.PENDING, State.HELD, State.DEDUPED):
        base |= {"attempt": 1, "agent": "local-ann", "run_dir": "J1/1"}
    if state in (State.RUNNING, State.SUSPENDED, State.COMPLETED):
        base |= {"started_at": AT}
    if state is State.CANCELING:
        base |= {"stopping": "cancel", "stopping_by": "ann", "reason": Reason.CANCELED_BY_USER}
    return JobRecord(**{**base, "state": state, **changes})


def an_event(kind: type[events.Event], **changes: Any) -> events.Event:
    """The plainest event of a kind."""
    base: dict[str, Any] = {"at": AT + 1}
    if kind.fenced:
        base |= {"serial": 1, "attempt": 1}
    base |= {
        events.Deduped: {"original_jid": "J0"},
        events.Assigned: {"agent": "local-ann", "run_dir": "J1/1"},
        events.NotStarted: {"reason": Reason.START_FAILED},
        events.Exited: {"proof": "wait_status", "exit_code": 0},
        events.CancelAsked: {"by": "ann"},
        events.HoldAsked: {"by": "ann"},
        events.PreemptAsked: {"by": "policy"},
        events.AgentBack: {"holds": "running"},
        events.DeathProven: {"proof": "boot_changed"},
        events.Progressed: {"data": {"percent_complete": 1}},
        events.QueueMoved: {"reason": Reason.PRIORITY, "message": "jobs of higher priority go first"},
        events.Changed: {"by": "ann", "changes": {"priority": 7}},
        events.RetryAsked: {"by": "ann"},
    }.get(kind, {})
    return kind(**{**base, **changes})
