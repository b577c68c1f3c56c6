"""Lists of jobs, newest first: pages by whatever is asked, each from a bounded look.

A page is found in two steps: which jobs, from indexes alone, and then their rows. Where there are
several ways to go about it (by a tag, a name, a state, in order) the narrowest is taken. What no index
can tell is asked of `MAX_WALK` jobs at most, so a page may be short, even empty, and not the last.
"""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from msgspec import Struct
from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    TextClause,
    exists,
    func,
    literal,
    select,
    text,
    union_all,
)

from sirepo_jobs.job import State

from .queries import JOB, StoredJob, of_user, stored_job, together
from .schema import ACTIVE, AT_REST, IS_ACTIVE, IS_AT_REST, IS_PENDING, job_tags, jobs, specs

#: Jobs looked at for one page, however few of them fit; the next page goes on there.
MAX_WALK = 10_000
#: Looked at first: enough where most of them fit.
_FIRST_LOOK = 500


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
    tags: Mapping[str, str] = {}
    #: Microseconds: from, inclusive, and until, exclusive.
    created_after: int | None = None
    created_before: int | None = None
    #: Only jobs accepted before this one: the `before_seq` of the page before.
    before_seq: int | None = None
    limit: int = 100
    with_spec: bool = False


class JobPage(Struct, frozen=True):
    """Some jobs, and where to go on: `before_seq` of the next page, None when there is nothing left."""

    jobs: list[StoredJob]
    before_seq: int | None


class _Span(NamedTuple):
    """From a job, inclusive, up to another, exclusive, in the order of acceptance."""

    start: int
    end: int


class _Way(NamedTuple):
    """One way to go through jobs: parts that each follow one index, and what it has seen to."""

    parts: list[Select[Any]]
    sees_to: frozenset[str]

    def window(self, limit: int) -> Select[Any]:
        """The newest jobs on this way."""
        limited = together([part.limit(limit) for part in self.parts]).subquery()
        return select(limited.c.seq).order_by(limited.c.seq.desc()).limit(limit)

    def width(self, connection: Connection) -> int:
        """How many jobs it leads past, counted up to the most that would be looked at."""
        some = together([part.order_by(None).limit(MAX_WALK + 1) for part in self.parts]).subquery()
        return int(connection.execute(select(func.count()).select_from(some)).scalar_one())


def find_jobs(connection: Connection, query: JobQuery) -> JobPage:
    """A page of jobs by everything that a `JobQuery` may ask for."""
    end = _behind_last(connection)
    if query.created_before is not None:
        end = min(end, _first_since(connection, query.created_before))
    if query.before_seq is not None:
        end = min(end, query.before_seq)
    start = 0 if query.created_after is None else _first_since(connection, query.created_after)
    span = _Span(start, end)
    way = _narrowest(connection, _ways(query, span))
    rest = _conditions(query, way.sees_to)
    walked, look = 0, _FIRST_LOOK if rest else query.limit + 1
    found: list[int] = []
    while True:
        window = way.window(look).subquery()
        fitting = select(window.c.seq).order_by(window.c.seq.desc()).limit(query.limit + 1)
        if rest:
            fitting = fitting.join(jobs, jobs.c.seq == window.c.seq).where(*rest)
        found = list(connection.execute(fitting).scalars())
        if len(found) > query.limit:
            return JobPage(_rows(connection, query, found[:-1]), found[-2])
        if not rest:
            return JobPage(_rows(connection, query, found), None)
        seen = select(func.count(), func.min(window.c.seq)).select_from(window)
        walked, last = connection.execute(seen).one()
        if walked < look:
            return JobPage(_rows(connection, query, found), None)
        if look >= MAX_WALK:
            return JobPage(_rows(connection, query, found), last)
        look = MAX_WALK


def count_by_state(connection: Connection, user: str | None) -> dict[str, int]:
    """How many jobs are in each state, states without jobs included."""
    mine = of_user(user)
    grouped = select(jobs.c.state, func.count().label("number")).group_by(jobs.c.state)
    pending = select(literal(State.PENDING.value), func.count()).select_from(jobs)
    query = union_all(
        pending.where(text(IS_PENDING), *mine),
        grouped.where(text(IS_ACTIVE), *of_user(user, indexed=False)),
        grouped.where(text(IS_AT_REST), *mine),
    )
    found: dict[str, int] = {row[0]: row[1] for row in connection.execute(query).all()}
    return {state.value: found.get(state.value, 0) for state in State}


def _behind_last(connection: Connection) -> int:
    return (connection.execute(select(func.max(jobs.c.seq))).scalar() or 0) + 1


def _first_since(connection: Connection, at: int) -> int:
    """The first job that was accepted at an instant or later, as `seq`; behind the last one if there is none.

    A search by halves: jobs are numbered in the order of their acceptance.
    """
    low, high = 0, _behind_last(connection)
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


def _rows(connection: Connection, query: JobQuery, seqs: list[int]) -> list[StoredJob]:
    rows = select(*JOB).where(jobs.c.seq.in_(seqs)).order_by(jobs.c.seq.desc())
    if query.with_spec:
        rows = rows.add_columns(specs.c.spec).join(specs, specs.c.seq == jobs.c.seq)
    return [stored_job(row) for row in connection.execute(rows).all()]


# -- ways through the jobs


def _narrowest(connection: Connection, ways: list[_Way]) -> _Way:
    """The way with the fewest jobs; of those that are all too long, the first."""
    if len(ways) == 1:
        return ways[0]
    return min(ways, key=lambda way: way.width(connection))


def _ways(query: JobQuery, span: _Span) -> list[_Way]:
    ways = [
        _Way([_by_tag(query.user, name, value, span)], frozenset({"user", f"tag {name}"}))
        for name, value in query.tags.items()
    ]
    if (states := set(query.states or State)) != set(State):
        ways.append(_Way(_by_state(query.user, states, span), frozenset({"user", "states"})))
    if not ways or span.start or query.name_prefix or query.queue or query.driver:
        in_order = select(jobs.c.seq).where(*_within(jobs.c.seq, span), *of_user(query.user))
        ways.append(_Way([in_order.order_by(jobs.c.seq.desc())], frozenset({"user"})))
    if query.name_prefix:
        # The last: it alone is not in the order of acceptance, so it must not be a long one. It leads past
        # everybody's jobs: picking one user's out might mean to read all names before there are enough.
        ways.append(_Way([_by_name(query, span)], frozenset({"name"})))
    return ways


def _by_tag(user: str | None, name: str, value: str, span: _Span) -> Select[Any]:
    seq = job_tags.c.seq
    way = select(seq).where(job_tags.c.name == name, job_tags.c.value == value, *_within(seq, span))
    if user is not None:
        way = way.where(job_tags.c.user == user)
    return way.order_by(seq.desc())


def _by_name(query: JobQuery, span: _Span) -> Select[Any]:
    assert query.name_prefix is not None
    # Sorted afterwards: there are few, or this way is not taken.
    seq = jobs.c.seq + 0
    way = select(jobs.c.seq).where(_begins_with(query.name_prefix), *_within(seq, span))
    return way.order_by(seq.desc())


def _by_state(user: str | None, wanted: set[State], span: _Span) -> list[Select[Any]]:
    def part(position: ColumnElement[int], *conditions: ColumnElement[bool] | TextClause) -> Select[Any]:
        return select(jobs.c.seq).where(*conditions, *_within(position, span)).order_by(position.desc())

    in_order: ColumnElement[int] = jobs.c.seq
    mine = of_user(user)
    parts = []
    if State.PENDING in wanted:
        # SQLite, which keeps no statistics, would rather walk a user's whole history in order than sort
        # what the small index finds. This order it cannot take from an index.
        parts.append(part(jobs.c.seq + 0, text(IS_PENDING), *mine))
    if active := wanted.intersection(ACTIVE):
        among = jobs.c.state.in_(sorted(state.value for state in active))
        parts.append(part(in_order, text(IS_ACTIVE), among, *of_user(user, indexed=False)))
    parts += [
        part(in_order, text(IS_AT_REST), jobs.c.state == state.value, *mine)
        for state in sorted(wanted.intersection(AT_REST))
    ]
    return parts


def _conditions(query: JobQuery, seen_to: frozenset[str]) -> list[ColumnElement[bool]]:
    """What is left to be asked of each job on a way."""
    rest = [] if "user" in seen_to else of_user(query.user)
    for name, value in query.tags.items():
        if f"tag {name}" not in seen_to:
            tag = (job_tags.c.seq == jobs.c.seq, job_tags.c.name == name, job_tags.c.value == value)
            rest.append(exists().where(*tag))
    if query.name_prefix and "name" not in seen_to:
        rest.append(func.substr(jobs.c.name, 1, len(query.name_prefix)) == query.name_prefix)
    if (states := set(query.states or State)) != set(State) and "states" not in seen_to:
        rest.append(jobs.c.state.in_(sorted(state.value for state in states)))
    if query.queue:
        rest.append(jobs.c.queue == query.queue)
    if query.driver:
        rest.append(jobs.c.driver == query.driver)
    return rest


def _within(seq: ColumnElement[int], span: _Span) -> list[ColumnElement[bool]]:
    return [seq < span.end, *([seq >= span.start] if span.start else [])]


def _begins_with(prefix: str) -> ColumnElement[bool]:
    """As a range of the index by name, which is ordered by code points on every database."""
    stem = prefix.rstrip("\U0010ffff")
    if not stem:
        return jobs.c.name >= prefix
    # no surrogates: they are no characters, and no database takes them
    following = chr(0xE000 if stem[-1] == "\ud7ff" else ord(stem[-1]) + 1)
    return (jobs.c.name >= prefix) & (jobs.c.name < stem[:-1] + following)
