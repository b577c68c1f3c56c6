"""Rows that cannot be read: one of them costs itself alone (F015).

A bad block, a hand in the database, a version that wrote what this one does not know: a job of which the
record cannot be read is shown with what its columns still say, and with the reason; nothing is done with
it, and nothing is written over it.
"""

from collections.abc import Callable
from typing import Any

import msgspec
import structlog
from sqlalchemy import Row

from sirepo_jobs.job import AttemptRecord, JobRecord, State
from sirepo_jobs.reasons import Reason

from .unit import EventRow, NewJob

_log = structlog.get_logger(__name__)

#: What reading such a row raises.
UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, ValueError, TypeError)
_ADVICE = "restore a backup, or mend the row; nothing is done with it meanwhile"


def tell(what: str, name: str, exc: Exception) -> None:
    """Log that a row was left out."""
    _log.error("a row of the store cannot be read", what=what, name=name, why=str(exc))


def rest_of_job(row: Row[*tuple[Any, ...]], exc: Exception) -> JobRecord:
    """What the columns beside its record still say of a job."""
    try:
        state = State(row.state)
    except ValueError:
        state = State.LOST
    return JobRecord(
        jid=str(row.jid),
        seq=row.seq,
        user=str(row.user),
        state=state,
        version=row.version if type(row.version) is int else 1,
        reason=Reason.INTERNAL_ERROR,
        situation=f"its row in the store is damaged ({exc}); {_ADVICE}",
        created_at=row.created_at if type(row.created_at) is int else 0,
    )


def damaged(stored: Any, why: str) -> Any:
    """The same `StoredJob`, marked: its spec is what cannot be read."""
    situation = f"{why}; {_ADVICE}"
    record = msgspec.structs.replace(stored.record, reason=Reason.INTERNAL_ERROR, situation=situation)
    fixed: NewJob = msgspec.structs.replace(stored.fixed, spec=b"")
    return msgspec.structs.replace(stored, record=record, fixed=fixed, damage=situation)


def attempt(jid: str, number: int, record: bytes, decode: Callable[[bytes], AttemptRecord]) -> AttemptRecord:
    """The record of an attempt, or one that says why there is none."""
    try:
        return decode(record)
    except UNREADABLE as exc:
        return AttemptRecord(
            jid=jid,
            attempt=number,
            serial=0,
            agent=None,
            run_dir=None,
            state=State.LOST,
            reason=Reason.INTERNAL_ERROR,
            situation=f"its row in the store is damaged ({exc})",
        )


def event(row: EventRow) -> EventRow:
    """The row as it is, or what can be shown of it: an answer with its data in it must stay JSON."""
    try:
        _decode_raw(row.data)
        if type(row.at) is type(row.version) is int and type(row.kind) is type(row.state) is str:
            return row
    except UNREADABLE:
        pass
    return EventRow(
        seq=row.seq,
        jid=str(row.jid),
        user=row.user,
        version=row.version if type(row.version) is int else 0,
        at=row.at if type(row.at) is int else 0,
        kind=str(row.kind),
        state=State.LOST if type(row.state) is not str else row.state,
        data=b'{"damaged":true}',
    )


_decode_raw = msgspec.json.Decoder(msgspec.Raw).decode
