"""What is there when everything is over: the store, the files, the processes."""

from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import Connection, create_engine, text
from sqlalchemy.exc import DBAPIError

from sirepo_jobs.job import AttemptRecord, JobRecord

_job = msgspec.json.Decoder(JobRecord).decode
_attempt = msgspec.json.Decoder(AttemptRecord).decode


_HEAPS = """
SELECT c.relname || ': ' || v.msg FROM pg_class AS c, LATERAL verify_heapam(c.oid) AS v
WHERE c.relkind = 'r' AND c.relnamespace = current_schema()::regnamespace
"""
_INDEXES = """
SELECT bt_index_check(i.indexrelid, true) FROM pg_index AS i
JOIN pg_class AS c ON c.oid = i.indexrelid JOIN pg_am AS a ON a.oid = c.relam
WHERE a.amname = 'btree' AND c.relnamespace = current_schema()::regnamespace
"""


class EventLine(NamedTuple):
    """One row of the history of the store."""

    seq: int
    jid: str
    version: int
    kind: str
    state: str
    data: dict[str, Any]


class Facts(NamedTuple):
    """Everything that the checker compares with what was seen."""

    jobs: dict[str, JobRecord]
    names: dict[str, str]
    attempts: dict[tuple[str, int], AttemptRecord]
    events: list[EventLine]
    #: Lengths on disk, by (jid, attempt, name).
    lengths: dict[tuple[str, int, str], int]
    integrity: str
    #: Lines of the witnesses: word, key, jid, attempt, nanoseconds, more.
    truth: list[list[str]]
    cpus: int
    #: Seqs in the order in which the listener heard them, and what it heard.
    seqs: list[int]
    heard: dict[int, tuple[str, int, str, str]]


def collect(
    root: Path,
    database_url: str,
    truth: list[list[str]],
    cpus: int,
    seqs: list[int],
    heard: dict[int, tuple[str, int, str, str]],
) -> Facts:
    """Read it all, the store by its own URL. The service may be down, or up and idle."""
    engine = create_engine(database_url)
    with engine.connect() as db:
        rows = db.execute(text("select jid, name, record from jobs")).fetchall()
        attempts = [_attempt(row[0]) for row in db.execute(text("select record from attempts"))]
        events = [
            EventLine(*row[:-1], msgspec.json.decode(row[-1]))
            for row in db.execute(
                text("select seq, jid, version, kind, state, data from events order by seq")
            )
        ]
        integrity = _integrity(db)
    engine.dispose()
    lengths = {}
    for path in root.glob("users/*/jobs/*/*/std*"):
        lengths[path.parts[-3], int(path.parts[-2]), path.name] = path.stat().st_size
    return Facts(
        {row[0]: _job(row[2]) for row in rows},
        {row[0]: row[1] for row in rows},
        {(one.jid, one.attempt): one for one in attempts},
        events,
        lengths,
        integrity,
        truth,
        cpus,
        seqs,
        heard,
    )


def _integrity(db: Connection) -> str:
    """ "ok", or what the database itself finds damaged."""
    if db.dialect.name == "sqlite":
        return str(db.execute(text("pragma integrity_check")).scalar_one())
    # of the server's own distribution: heaps against their rules, indexes against their heaps
    db.execute(text("create extension if not exists amcheck"))
    damage = db.execute(text(_HEAPS)).scalars().all()
    if damage:
        return "; ".join(damage)
    try:
        db.execute(text(_INDEXES)).fetchall()
    except DBAPIError as exc:
        return str(exc.orig)
    return "ok"
