"""Writes a unit's rows: many rows per statement, each statement compiled once.

Why not `executemany`: sqlite3 gives up the interpreter lock for every row and must win it back from
the loop's thread. Beside a busy loop that took twice the CPU and three to five times as long per job
as these statements, which give it up once for up to 256 rows.
"""

import re
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import msgspec
from sqlalchemy import (
    CTE,
    Column,
    ColumnElement,
    Dialect,
    Table,
    Text,
    bindparam,
    column,
    delete,
    select,
    text,
    tuple_,
    update,
    values,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.sql import ClauseElement

from sirepo_jobs.errors import StoreError
from sirepo_jobs.job import JobRecord

from .database import Database
from .schema import agents, attempts, events, idempotency, job_tags, jobs, meta, specs, tokens
from .unit import NewJob, Unit

#: Rows per statement. 256 rows of the widest table stay far below every limit on parameters.
_SIZES = (256, 64, 16, 4, 1)
#: Old idempotency keys that one unit forgets: more would hold up what waits behind it.
FORGOTTEN_KEYS = 10_000
_CHANGEABLE = ("seq", "priority", "name")
_CHANGING = ("seq", "state", "version", "agent", "ended_at", "record")

_Rows = list[tuple[Any, ...]]

#: Of an enumeration's member, the text itself: sqlite3 and psycopg look long at a subclass of `str`.
_plain = str.__str__


class Statements:
    """Everything the writer says to one database."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._encode = msgspec.json.Encoder().encode
        dialect = database.dialect
        self._new_jobs = _Statement(dialect, _insert(jobs))
        self._specs = _Statement(dialect, _insert(specs))
        self._changed_jobs = _Statement(dialect, _update_jobs())
        self._refixed_jobs = _Statement(dialect, _update(jobs, _CHANGEABLE))
        self._refixed_specs = _Statement(dialect, _update(specs, ("seq", "spec")))
        self._tags = _Statement(dialect, _insert(job_tags))
        self._no_tags = str(
            delete(job_tags).where(job_tags.c.seq == _bind(job_tags.c.seq)).compile(dialect=dialect)
        )
        self._attempts = _Statement(dialect, _insert(attempts))
        self._events = _Statement(dialect, _insert(events))
        self._agents = _Statement(dialect, _upsert(agents, dialect))
        self._keys = _Statement(dialect, _insert(idempotency))
        self._tokens = _Statement(dialect, _upsert(tokens, dialect))
        self._no_token = str(
            delete(tokens).where(tokens.c.token == _bind(tokens.c.token)).compile(dialect=dialect)
        )
        self._no_old_keys = str(_forget_keys().compile(dialect=dialect))
        self._fence = str(
            update(meta)
            .where(meta.c.epoch == bindparam("our_epoch"), meta.c.commits == bindparam("before"))
            .values(commits=bindparam("now"))
            .compile(dialect=dialect)
        )

    def fence(self, epoch: int, number: int) -> bool:
        """Begin group `number`; False if it is in the database already.

        Raises `StoreError` if the database has meanwhile been another's (I29).
        """
        if self._database.run(self._fence, (number, epoch, number - 1)) == 1:
            return True
        found_epoch, found_number = self._database.fetch("SELECT epoch, commits FROM meta")
        if (found_epoch, found_number) == (epoch, number):
            return False
        raise StoreError(
            f"{self._database.name} is at epoch {found_epoch}, group {found_number}; ours is epoch {epoch},"
            f" group {number}: another supervisor has used it, or it was replaced under us"
        )

    def write(self, unit: Unit) -> None:
        """Run everything that is in `unit`, in the transaction that is open."""
        encode = self._encode
        fixed = unit.new
        if fixed:
            records = [(unit.jobs[jid], new) for jid, new in fixed.items()]
            self._run(
                self._new_jobs,
                [
                    (
                        job.seq,
                        job.jid,
                        job.user,
                        _plain(job.state),
                        new.priority,
                        new.queue,
                        new.driver,
                        new.name,
                        job.created_at,
                        job.ended_at,
                        job.version,
                        job.agent,
                        encode(job),
                    )
                    for job, new in records
                ],
            )
            self._run(self._specs, [(job.seq, new.spec) for job, new in records])
            self._run(self._tags, [row for job, new in records for row in _tag_rows(job, new)])
        self._run(
            self._changed_jobs,
            [
                (job.seq, _plain(job.state), job.version, job.agent, job.ended_at, encode(job))
                for jid, job in unit.jobs.items()
                if jid not in fixed
            ],
        )
        if unit.fixed:
            refixed = [(unit.jobs[jid], new) for jid, new in unit.fixed.items()]
            self._run(self._refixed_jobs, [(job.seq, new.priority, new.name) for job, new in refixed])
            self._run(self._refixed_specs, [(job.seq, new.spec) for job, new in refixed])
            for job, _ in refixed:
                self._database.run(self._no_tags, (job.seq,))
            self._run(self._tags, [row for job, new in refixed for row in _tag_rows(job, new)])
        self._run(self._attempts, [(row.jid, row.attempt, encode(row)) for row in unit.attempts])
        self._run(
            self._events,
            [
                (row.seq, row.jid, row.user, row.version, row.at, row.kind, _plain(row.state), row.data)
                for row in unit.events
            ],
        )
        self._run(
            self._agents,
            [
                (row.agent, row.environment, row.handle, row.install, row.boot_id, row.leaving)
                for row in unit.agents.values()
            ],
        )
        self._run(
            self._keys,
            [(row.user, row.key, row.digest, encode(row.jids), row.created_at) for row in unit.keys],
        )
        self._run(
            self._tokens,
            [
                (
                    row.token,
                    row.digest,
                    row.user,
                    _plain(row.role),
                    encode(row.scopes),
                    row.name,
                    row.created_by,
                    row.created_at,
                    row.expires_at,
                    row.used_day,
                    row.revoked_at,
                )
                for row in unit.tokens.values()
            ],
        )

        for token in unit.dead_tokens:
            self._database.run(self._no_token, (token,))
        if unit.keys_before:
            self._database.run(self._no_old_keys, (unit.keys_before,))

    def _run(self, statement: "_Statement", rows: _Rows) -> None:
        if not rows:
            return
        touched = statement.run(self._database, rows)
        if touched != len(rows):
            # An update that met no row: of a job that is not there, or older than what is there.
            raise StoreError(
                f"{len(rows)} rows were to be written and {touched} were: the supervisor's memory and"
                f" {self._database.name} disagree, first of them {rows[0][:4]}"
            )


def _forget_keys() -> ClauseElement:
    name = (idempotency.c.user, idempotency.c.key)
    old = select(*name).where(idempotency.c.created_at < _bind(idempotency.c.created_at))
    # Written out: for a bound limit SQLAlchemy binds an OFFSET too, on SQLite only.
    return delete(idempotency).where(tuple_(*name).in_(old.suffix_with(text(f"LIMIT {FORGOTTEN_KEYS:d}"))))


class _Tagged(msgspec.Struct):
    tags: dict[str, str] = {}


_decode_tags = msgspec.json.Decoder(_Tagged).decode


def _tag_rows(job: JobRecord, fixed: NewJob) -> _Rows:
    if b'"tags"' not in fixed.spec:
        return []
    return [(job.seq, name, value, job.user) for name, value in _decode_tags(fixed.spec).tags.items()]


class _Statement:
    """One kind of row: a statement for one of them, made for many by repeating its parameters."""

    def __init__(self, dialect: Dialect, statement: ClauseElement) -> None:
        self._one = str(statement.compile(dialect=dialect))
        self._texts: dict[int, str] = {}

    def run(self, database: Database, rows: _Rows) -> int:
        """Write all `rows`; how many the database touched."""
        touched = start = 0
        for size in _SIZES:
            while len(rows) - start >= size:
                part = rows[start : start + size]
                touched += database.run(self.text(size), list(chain.from_iterable(part)))
                start += size
        return touched

    def text(self, rows: int) -> str:
        """The statement for so many rows. Compiling it as a whole would take a tenth of a second."""
        text = self._texts.get(rows)
        if text is None:
            text = self._texts[rows] = _repeat(self._one, rows)
        return text


_PARAMETERS = re.compile(r"\((?:(?:\?|\$\d+)(?:::\w+)?(?:, )?)+\)")
_NUMBER = re.compile(r"(?<=\$)\d+")


def _repeat(one: str, rows: int) -> str:
    found = _PARAMETERS.search(one)
    assert found, one
    group = found[0]
    width = group.count(", ") + 1
    groups = ", ".join(_shifted(group, row * width) for row in range(rows))
    return f"{one[: found.start()]}{groups}{one[found.end() :]}"


def _shifted(group: str, by: int) -> str:
    return _NUMBER.sub(lambda number: str(int(number[0]) + by), group)


def _bind(col: Column[Any]) -> Any:
    # The order of a column's texts is its own affair.
    return bindparam(f"{col.name}_", type_=Text() if isinstance(col.type, Text) else col.type)


def _insert(table: Table) -> ClauseElement:
    return table.insert().values({col.name: _bind(col) for col in table.c})


def _upsert(table: Table, dialect: Dialect) -> ClauseElement:
    insert = postgresql.insert if dialect.name == "postgresql" else sqlite.insert
    statement = insert(table).values({col.name: _bind(col) for col in table.c})
    return statement.on_conflict_do_update(
        index_elements=list(table.primary_key),
        set_={col.name: statement.excluded[col.name] for col in table.c if not col.primary_key},
    )


def _update_jobs() -> ClauseElement:
    # A version never falls (I8).
    return _update(jobs, _CHANGING, lambda given: jobs.c.version <= given.c.version)


def _update(
    table: Table, names: Sequence[str], condition: Callable[[CTE], ColumnElement[bool]] | None = None
) -> ClauseElement:
    """Give rows, found by the first of `names`, the other columns' values."""
    told = [table.c[name] for name in names]
    given = (
        values(*(column(col.name, col.type) for col in told), name="given")
        .data([tuple(_bind(col) for col in told)])
        .cte("given")
    )
    found = [told[0] == given.c[names[0]], *([condition(given)] if condition else [])]
    return update(table).where(*found).values({name: given.c[name] for name in names[1:]})
