"""What is asked of the store, as functions of a connection; lists of jobs are in `lists.py`.

Queries on `jobs` are put together from parts that each fit one index of `schema.py`: a long history
must not slow down the question what is running now.
"""

from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Struct
from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    Select,
    bindparam,
    func,
    select,
    text,
    tuple_,
    union_all,
)

from sirepo_jobs.errors import Conflict
from sirepo_jobs.job import AttemptRecord, JobRecord
from sirepo_jobs.tokens import Role, Scope, TokenRow

from . import damage
from .schema import (
    IS_ACTIVE,
    IS_PENDING,
    agents,
    attempts,
    events,
    idempotency,
    jobs,
    meta,
    specs,
    tokens,
)
from .unit import AgentRow, EventRow, KeyRow, NewJob

#: Ids per query.
_JIDS = 500
#: Asked by every submission, so it is put together once.
_KEY = select(idempotency).where(
    idempotency.c.user == bindparam("whose"), idempotency.c.key == bindparam("named")
)

_decode_job = msgspec.json.Decoder(JobRecord).decode
_decode_attempt = msgspec.json.Decoder(AttemptRecord).decode
_decode_jids = msgspec.json.Decoder(list[str]).decode
_decode_scopes = msgspec.json.Decoder(list[Scope]).decode


class StoredJob(Struct, frozen=True):
    """A job as it was committed last."""

    record: JobRecord
    #: What was fixed at acceptance; `spec` is empty where it was not asked for.
    fixed: NewJob
    #: Why it cannot be read (F015); the rest is what single columns still tell, and is for showing only.
    damage: str = ""


class PendingRow(Struct, frozen=True):
    """What the scheduler needs of a job in the queue."""

    user: str
    priority: int
    seq: int
    jid: str
    driver: str
    spec: bytes


#: Columns of a job without its spec.
JOB = (
    jobs.c.seq,
    jobs.c.jid,
    jobs.c.user,
    jobs.c.state,
    jobs.c.created_at,
    jobs.c.version,
    jobs.c.name,
    jobs.c.driver,
    jobs.c.queue,
    jobs.c.priority,
    jobs.c.record,
)
_JOB_AND_SPEC = select(*JOB, specs.c.spec).join(specs, specs.c.seq == jobs.c.seq)


def epoch(connection: Connection) -> int:
    """The epoch of whoever has the store."""
    return int(connection.execute(select(meta.c.epoch)).scalar_one())


def by_jid(connection: Connection, jids: Sequence[str]) -> list[StoredJob]:
    """The jobs of these ids, in their order; unknown ones are left out."""
    found = {}
    for start in range(0, len(jids), _JIDS):
        query = _JOB_AND_SPEC.where(jobs.c.jid.in_(jids[start : start + _JIDS]))
        for row in connection.execute(query).all():
            job = stored_job(row)
            found[job.record.jid] = job
    return [found[jid] for jid in dict.fromkeys(jids) if jid in found]


def active_jobs(connection: Connection) -> list[StoredJob]:
    """All jobs with an attempt that an agent answers for, oldest first."""
    query = _JOB_AND_SPEC.where(text(IS_ACTIVE)).order_by(jobs.c.seq)
    return [stored_job(row) for row in connection.execute(query).all()]


def pending(
    connection: Connection, *, user: str | None, after: tuple[int, int] | None, limit: int
) -> list[PendingRow]:
    """The queue from behind (priority, seq) on: the urgent first, then by age."""
    columns = (jobs.c.user, jobs.c.priority, jobs.c.seq, jobs.c.jid, jobs.c.driver)
    queue = select(*columns).where(text(IS_PENDING), *of_user(user)).limit(limit)
    urgent_first = (jobs.c.priority.desc(), jobs.c.seq)
    if after is None:
        page = queue.order_by(*urgent_first).subquery()
    else:
        # Each half is one range of the index; "or" in one condition would walk all that lies before.
        priority, seq = after
        same = queue.where(jobs.c.priority == priority, jobs.c.seq > seq).order_by(jobs.c.seq)
        page = together([same, queue.where(jobs.c.priority < priority).order_by(*urgent_first)]).subquery()
    query = (
        select(page, specs.c.spec)
        .join(specs, specs.c.seq == page.c.seq)
        .order_by(page.c.priority.desc(), page.c.seq)
        .limit(limit)
    )
    return [PendingRow(*row) for row in connection.execute(query).all()]


def pending_users(connection: Connection) -> list[tuple[str, int]]:
    """Users with jobs in the queue, and how many."""
    query = (
        select(jobs.c.user, func.count()).where(text(IS_PENDING)).group_by(jobs.c.user).order_by(jobs.c.user)
    )
    return [(row[0], row[1]) for row in connection.execute(query).all()]


def attempts_of(connection: Connection, jid: str) -> list[AttemptRecord]:
    """The ended attempts of a job, in order."""
    query = (
        select(attempts.c.attempt, attempts.c.record)
        .where(attempts.c.jid == jid)
        .order_by(attempts.c.attempt)
    )
    return [
        damage.attempt(jid, number, record, _decode_attempt)
        for number, record in connection.execute(query).all()
    ]


def events_after(
    connection: Connection, *, after: int, upto: int | None, limit: int, user: str | None, jid: str | None
) -> list[EventRow]:
    """The stream behind position `after`, not beyond `upto`."""
    query = select(events).where(events.c.seq > after).order_by(events.c.seq).limit(limit)
    if upto is not None:
        query = query.where(events.c.seq <= upto)
    if user is not None:
        query = query.where(events.c.user == user)
    if jid is not None:
        query = query.where(events.c.jid == jid)
    return [damage.event(EventRow(**row)) for row in connection.execute(query).mappings().all()]


def key(connection: Connection, user: str, name: str) -> KeyRow | None:
    """What an `Idempotency-Key` has made."""
    row = connection.execute(_KEY, {"whose": user, "named": name}).mappings().first()
    if row is None:
        return None
    try:
        return KeyRow(**{**row, "jids": _decode_jids(row["jids"])})
    except damage.UNREADABLE as exc:
        raise Conflict(
            f"what Idempotency-Key {name!r} made cannot be read any more ({exc}); list your jobs",
            code="damaged_record",
        ) from None


def keys(connection: Connection, *, after: tuple[str, str] | None, limit: int) -> list[tuple[str, str]]:
    """User and name of each idempotency key, in order, from behind one on."""
    name = (idempotency.c.user, idempotency.c.key)
    query = select(*name).order_by(*name).limit(limit)
    if after is not None:
        query = query.where(tuple_(*name) > after)
    return [(row[0], row[1]) for row in connection.execute(query).all()]


def has_keys_before(connection: Connection, at: int) -> bool:
    """Whether there are idempotency keys of before an instant."""
    query = select(idempotency.c.created_at).where(idempotency.c.created_at < at).limit(1)
    return connection.execute(query).first() is not None


def all_agents(connection: Connection) -> list[AgentRow]:
    """Every agent that was ever written down, by name."""
    query = select(agents).order_by(agents.c.agent)
    return [AgentRow(**row) for row in connection.execute(query).mappings().all()]


def all_tokens(connection: Connection) -> list[TokenRow]:
    """Every token that was ever made, by id."""
    rows = connection.execute(select(tokens).order_by(tokens.c.token)).mappings().all()
    found = []
    for row in rows:
        try:
            token = TokenRow(**{**row, "role": Role(row["role"]), "scopes": _decode_scopes(row["scopes"])})
            found.append(msgspec.convert(msgspec.to_builtins(token), TokenRow))
        except damage.UNREADABLE as exc:
            # SECURITY: what is not understood lets nobody in
            damage.tell("token", str(row["token"]), exc)
    return found


def of_user(user: str | None, *, indexed: bool = True) -> list[ColumnElement[bool]]:
    """Whose jobs; with `indexed=False` in words that keep SQLite from taking an index by user for it."""
    if user is None:
        return []
    return [(jobs.c.user if indexed else func.coalesce(jobs.c.user, "")) == user]


def together(parts: list[Select[Any]]) -> Any:
    """All rows of all parts."""
    # SQLite takes no ORDER BY inside a compound but in a subquery.
    return parts[0] if len(parts) == 1 else union_all(*(part.subquery().select() for part in parts))


def stored_job(row: Row[*tuple[Any, ...]]) -> StoredJob:
    """A row of `JOB`, with or without its spec."""
    # taken apart at once: by name each would be looked up, in every row of a long queue
    seq, jid, _user, _state, _at, _version, name, driver, queue, priority, said, *rest = row
    fixed = NewJob(name=name, driver=driver, queue=queue, priority=priority, spec=rest[0] if rest else b"")
    try:
        record = _decode_job(said)
        if (record.jid, record.seq) != (jid, seq) or type(priority) is not int:
            raise ValueError(f"it speaks of job {record.jid}, and priority is {priority!r}")
    except damage.UNREADABLE as exc:
        record = damage.rest_of_job(row, exc)
        return StoredJob(record, msgspec.structs.replace(fixed, spec=b"", priority=0), record.situation)
    return StoredJob(record, fixed)
