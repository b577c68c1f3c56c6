"""Everything that is asked of the store, as functions of a connection.

Queries on `jobs` are put together from parts that each fit one index of `schema.py`: a long history
must not slow down the question what is running now.
"""

from collections.abc import Collection, Sequence
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace
from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    Select,
    TextClause,
    func,
    literal,
    select,
    text,
    union_all,
)

from sirepo_jobs.job import AttemptRecord, JobRecord, State
from sirepo_jobs.tokens import Role, Scope, TokenRow

from .schema import (
    ACTIVE,
    ASIDE,
    IS_ACTIVE,
    IS_ASIDE,
    IS_PENDING,
    agents,
    attempts,
    events,
    idempotency,
    jobs,
    specs,
    tokens,
)
from .unit import AgentRow, EventRow, KeyRow, NewJob

#: Ids per query.
_JIDS = 500

_decode_job = msgspec.json.Decoder(JobRecord).decode
_decode_attempt = msgspec.json.Decoder(AttemptRecord).decode
_decode_jids = msgspec.json.Decoder(list[str]).decode
_decode_scopes = msgspec.json.Decoder(list[Scope]).decode


class StoredJob(Struct, frozen=True):
    """A job as it was committed last."""

    record: JobRecord
    #: What was fixed at acceptance; `spec` is empty where it was not asked for.
    fixed: NewJob


class PendingRow(Struct, frozen=True):
    """What the scheduler needs of a job in the queue."""

    user: str
    priority: int
    seq: int
    jid: str
    driver: str
    spec: bytes


class JobQuery(Struct, frozen=True, kw_only=True):
    """A page of jobs, newest first."""

    #: None = everybody's.
    user: str | None = None
    #: None or empty = all.
    states: Collection[State] | None = None
    name_prefix: str | None = None
    queue: str | None = None
    driver: str | None = None
    #: All of these.
    tags: dict[str, str] = {}
    #: Microseconds: from, inclusive, and until, exclusive.
    created_after: int | None = None
    created_before: int | None = None
    #: Only jobs accepted before this one: the `seq` of the last job of the page before.
    before_seq: int | None = None
    limit: int = 100
    with_spec: bool = False


class JobPage(Struct, frozen=True):
    """Some jobs, and where to go on: `before_seq` of the next page, None when there is nothing left."""

    jobs: list[StoredJob]
    before_seq: int | None


#: Jobs looked at for one page, however few of them fit; the next page goes on there.
MAX_WALK = 5000
_STRIDE = 500


class _Tags(Struct):
    tags: dict[str, str] = {}


_decode_tags = msgspec.json.Decoder(_Tags).decode
_JOB = (jobs.c.seq, jobs.c.name, jobs.c.driver, jobs.c.queue, jobs.c.priority, jobs.c.record)
_JOB_AND_SPEC = select(*_JOB, specs.c.spec).join(specs, specs.c.seq == jobs.c.seq)


def by_jid(connection: Connection, jids: Sequence[str]) -> list[StoredJob]:
    """The jobs of these ids, in their order; unknown ones are left out."""
    found = {}
    for start in range(0, len(jids), _JIDS):
        query = _JOB_AND_SPEC.where(jobs.c.jid.in_(jids[start : start + _JIDS]))
        for row in connection.execute(query).all():
            job = _stored(row)
            found[job.record.jid] = job
    return [found[jid] for jid in dict.fromkeys(jids) if jid in found]


def active_jobs(connection: Connection) -> list[StoredJob]:
    """All jobs with an attempt that an agent answers for, oldest first."""
    query = _JOB_AND_SPEC.where(text(IS_ACTIVE)).order_by(jobs.c.seq)
    return [_stored(row) for row in connection.execute(query).all()]


def pending(
    connection: Connection, *, user: str | None, after: tuple[int, int] | None, limit: int
) -> list[PendingRow]:
    """The queue from behind (priority, seq) on: the urgent first, then by age."""
    columns = (jobs.c.user, jobs.c.priority, jobs.c.seq, jobs.c.jid, jobs.c.driver)
    queue = select(*columns).where(text(IS_PENDING), *_of(user)).limit(limit)
    urgent_first = (jobs.c.priority.desc(), jobs.c.seq)
    if after is None:
        page = queue.order_by(*urgent_first).subquery()
    else:
        # Each half is one range of the index; "or" in one condition would walk all that lies before.
        priority, seq = after
        same = queue.where(jobs.c.priority == priority, jobs.c.seq > seq).order_by(jobs.c.seq)
        page = _together([same, queue.where(jobs.c.priority < priority).order_by(*urgent_first)]).subquery()
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


def list_jobs(connection: Connection, query: JobQuery) -> list[StoredJob]:
    """A page of jobs, newest first."""
    page = _together(_parts(query)).subquery()
    rows = select(page).order_by(page.c.seq.desc()).limit(query.limit)
    if query.with_spec:
        rows = rows.add_columns(specs.c.spec).join(specs, specs.c.seq == page.c.seq)
    return [_stored(row) for row in connection.execute(rows).all()]


def find_jobs(connection: Connection, query: JobQuery) -> JobPage:
    """A page of jobs, newest first, by everything that a `JobQuery` may ask for.

    User, states and time have an index or a search in the order of acceptance. For the rest jobs are
    looked at one after the other, `MAX_WALK` at most: a page may be short, even empty, and not the last.
    """
    if query.created_before is not None:
        end = _first_since(connection, query.created_before)
        query = replace(query, before_seq=min(end, query.before_seq) if query.before_seq is not None else end)
    start = 0 if query.created_after is None else _first_since(connection, query.created_after)
    found: list[StoredJob] = []
    position, walked = query.before_seq, 0
    choosy = bool(query.name_prefix or query.queue or query.driver or query.tags)
    stride = _STRIDE if choosy else query.limit + 1
    while walked < MAX_WALK:
        step = JobQuery(
            user=query.user,
            states=query.states,
            before_seq=position,
            limit=stride,
            with_spec=query.with_spec or bool(query.tags),
        )
        rows = list_jobs(connection, step)
        for row in rows:
            if row.record.seq < start:
                return JobPage(found, None)
            if not choosy or _fits(row, query):
                if len(found) == query.limit:
                    return JobPage(found, position)
                found.append(row)
            position = row.record.seq
        walked += len(rows)
        if len(rows) < stride:
            return JobPage(found, None)
    return JobPage(found, position)


def _fits(row: StoredJob, query: JobQuery) -> bool:
    fixed = row.fixed
    return (
        (not query.name_prefix or fixed.name.startswith(query.name_prefix))
        and query.queue in (None, fixed.queue)
        and query.driver in (None, fixed.driver)
        and (not query.tags or query.tags.items() <= _decode_tags(fixed.spec).tags.items())
    )


def _first_since(connection: Connection, at: int) -> int:
    """The first job that was accepted at an instant or later, as `seq`; behind the last one if there is none.

    A search by halves: jobs are numbered in the order of their acceptance.
    """
    low, high = 0, (connection.execute(select(func.max(jobs.c.seq))).scalar() or 0) + 1
    while low < high:
        middle = (low + high) // 2
        next_one = (
            select(jobs.c.seq, jobs.c.created_at).where(jobs.c.seq >= middle).order_by(jobs.c.seq).limit(1)
        )
        row = connection.execute(next_one).first()
        if row is None or row.created_at >= at:
            high = middle
        else:
            low = row.seq + 1
    return low


def _parts(query: JobQuery) -> list[Select[Any]]:
    base = select(*_JOB).limit(query.limit)
    if query.name_prefix:
        base = base.where(func.substr(jobs.c.name, 1, len(query.name_prefix)) == query.name_prefix)

    def newest(position: ColumnElement[int], *conditions: ColumnElement[bool] | TextClause) -> Select[Any]:
        part = base.where(*conditions).order_by(position.desc())
        return part if query.before_seq is None else part.where(position < query.before_seq)

    in_order: ColumnElement[int] = jobs.c.seq
    # SQLite, which keeps no statistics, would rather walk a user's whole history in order than sort
    # what the small index finds. This order it cannot take from an index.
    sorted_later = jobs.c.seq + 0
    wanted = set(query.states or State)
    mine = _of(query.user)
    if wanted == set(State):
        return [newest(in_order, *mine)]
    parts = []
    if State.PENDING in wanted:
        parts.append(newest(sorted_later, text(IS_PENDING), *mine))
    if active := wanted.intersection(ACTIVE):
        among = jobs.c.state.in_(sorted(state.value for state in active))
        parts.append(newest(in_order, text(IS_ACTIVE), among, *_of(query.user, indexed=False)))
    for state in sorted(wanted.intersection(ASIDE)):
        position = sorted_later if query.user is None else in_order
        parts.append(newest(position, text(IS_ASIDE), jobs.c.state == state.value, *mine))
    if State.COMPLETED in wanted:
        parts.append(newest(in_order, jobs.c.state == State.COMPLETED.value, *mine))
    return parts


def count_by_state(connection: Connection, user: str | None) -> dict[str, int]:
    """How many jobs are in each state, states without jobs included."""
    number = func.count().label("number")
    mine = _of(user)
    # Small indexes count all but the completed ones, which are what is left of the total.
    grouped = select(jobs.c.state, number).group_by(jobs.c.state)
    query = union_all(
        select(literal("all"), number).select_from(jobs).where(*mine),
        select(literal(State.PENDING.value), number).select_from(jobs).where(text(IS_PENDING), *mine),
        grouped.where(text(IS_ACTIVE), *_of(user, indexed=False)),
        grouped.where(text(IS_ASIDE), *mine),
    )
    found: dict[str, int] = {row[0]: row[1] for row in connection.execute(query).all()}
    total = found.pop("all")
    found[State.COMPLETED.value] = total - sum(found.values())
    return {state.value: found.get(state.value, 0) for state in State}


def attempts_of(connection: Connection, jid: str) -> list[AttemptRecord]:
    """The ended attempts of a job, in order."""
    query = select(attempts.c.record).where(attempts.c.jid == jid).order_by(attempts.c.attempt)
    return [_decode_attempt(record) for record in connection.execute(query).scalars()]


def events_after(
    connection: Connection, *, after: int, limit: int, user: str | None, jid: str | None
) -> list[EventRow]:
    """The stream behind position `after`."""
    query = select(events).where(events.c.seq > after).order_by(events.c.seq).limit(limit)
    if user is not None:
        query = query.where(events.c.user == user)
    if jid is not None:
        query = query.where(events.c.jid == jid)
    return [EventRow(**row) for row in connection.execute(query).mappings().all()]


def key(connection: Connection, user: str, name: str) -> KeyRow | None:
    """What an `Idempotency-Key` has made."""
    query = select(idempotency).where(idempotency.c.user == user, idempotency.c.key == name)
    row = connection.execute(query).mappings().first()
    return None if row is None else KeyRow(**{**row, "jids": _decode_jids(row["jids"])})


def all_agents(connection: Connection) -> list[AgentRow]:
    """Every agent that was ever written down, by name."""
    query = select(agents).order_by(agents.c.agent)
    return [AgentRow(**row) for row in connection.execute(query).mappings().all()]


def all_tokens(connection: Connection) -> list[TokenRow]:
    """Every token that was ever made, by id."""
    rows = connection.execute(select(tokens).order_by(tokens.c.token)).mappings().all()
    return [
        TokenRow(**{**row, "role": Role(row["role"]), "scopes": _decode_scopes(row["scopes"])})
        for row in rows
    ]


def _of(user: str | None, *, indexed: bool = True) -> list[ColumnElement[bool]]:
    """Whose jobs; with `indexed=False` in words that keep SQLite from taking an index by user for it."""
    if user is None:
        return []
    return [(jobs.c.user if indexed else func.coalesce(jobs.c.user, "")) == user]


def _together(parts: list[Select[Any]]) -> Any:
    # SQLite takes no ORDER BY inside a compound but in a subquery.
    return parts[0] if len(parts) == 1 else union_all(*(part.subquery().select() for part in parts))


def _stored(row: Row[*tuple[Any, ...]]) -> StoredJob:
    spec = row.spec if "spec" in row._fields else b""
    fixed = NewJob(name=row.name, driver=row.driver, queue=row.queue, priority=row.priority, spec=spec)
    return StoredJob(_decode_job(row.record), fixed)
