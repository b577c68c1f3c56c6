"""A job as the API answers it (design 8): one place that turns records into JSON."""

from datetime import UTC, datetime
from typing import Any

import msgspec

from .job import AttemptRecord, JobRecord
from .reasons import Reason
from .spec import JobSpec
from .store.unit import EventRow, NewJob

_decode_spec = msgspec.json.Decoder(JobSpec).decode


#: Fields of a job, as they may be asked for.
JOB_FIELDS = (
    "jid", "serial", "attempt", "state", "reason", "fault", "retryable", "situation", "exit_code", "signal",
    "name", "user", "driver", "queue", "priority", "tags", "run_dir", "agent", "image_id", "progress",
    "usage", "stdout_bytes", "stderr_bytes", "created_at", "queued_at", "started_at", "ended_at", "version",
    "spec", "original_jid",
)  # fmt: skip
#: How much of each job a list shows.
JOB_VIEWS = {
    "minimal": ("jid", "serial", "state", "reason", "name", "created_at", "version"),
    "basic": tuple(name for name in JOB_FIELDS if name != "spec"),
    "full": JOB_FIELDS,
}


def instant(at: int | None) -> str | None:
    """Microseconds as ISO-8601 UTC."""
    if at is None:
        return None
    try:
        moment = datetime.fromtimestamp(at / 1e6, UTC)
    except (ValueError, OverflowError, OSError):
        return None  # of a damaged row: no clock ever said so
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def job_view(
    record: JobRecord,
    fixed: NewJob,
    *,
    spec: bool = True,
    why: tuple[Reason | None, str] | None = None,
    run_root: str = "",
) -> dict[str, Any]:
    """The answer for one job. `why` replaces the stored reason of a job that waits."""
    reason, situation = why or (record.reason, record.situation)
    about = reason.about if reason else None
    view: dict[str, Any] = {
        "jid": record.jid,
        "serial": record.serial,
        "attempt": record.attempt,
        "state": record.state,
        "reason": reason,
        "fault": about.fault if about else None,
        "retryable": about.retryable if about else None,
        "situation": situation,
        "exit_code": record.exit_code,
        "signal": record.signal,
        "name": fixed.name,
        "user": record.user,
        "driver": fixed.driver,
        "queue": fixed.queue,
        "priority": fixed.priority,
        "tags": {},
        "run_dir": f"{run_root}/{record.run_dir}" if record.run_dir else None,
        "agent": record.agent,
        "image_id": record.image_id,
        "progress": record.progress,
        "usage": record.usage,
        "stdout_bytes": record.stdout_bytes,
        "stderr_bytes": record.stderr_bytes,
        "created_at": instant(record.created_at),
        "queued_at": instant(record.queued_at),
        "started_at": instant(record.started_at),
        "ended_at": instant(record.ended_at),
        "version": record.version,
    }
    if fixed.spec:
        try:
            view["tags"] = _decode_spec(fixed.spec).tags
        except (msgspec.DecodeError, UnicodeDecodeError, TypeError) as exc:
            view["reason"], view["situation"] = Reason.INTERNAL_ERROR, f"its spec cannot be read: {exc}"
            spec = False
        if spec:
            view["spec"] = msgspec.Raw(fixed.spec)
    if record.original_jid is not None:
        view["original_jid"] = record.original_jid
    return view


def attempt_view(attempt: AttemptRecord) -> dict[str, Any]:
    """The answer for one attempt that is over."""
    view: dict[str, Any] = msgspec.to_builtins(attempt)
    view["image_id"] = attempt.image_id
    view["started_at"], view["ended_at"] = instant(attempt.started_at), instant(attempt.ended_at)
    return view


def event_view(row: EventRow) -> dict[str, Any]:
    """One line of the event stream."""
    return {
        "seq": row.seq,
        "jid": row.jid,
        "version": row.version,
        "at": instant(row.at),
        "kind": row.kind,
        "state": row.state,
        "data": msgspec.Raw(row.data),
    }
