"""What is there when everything is over: the store, the files, the processes."""

import sqlite3
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from sirepo_jobs.job import AttemptRecord, JobRecord

_job = msgspec.json.Decoder(JobRecord).decode
_attempt = msgspec.json.Decoder(AttemptRecord).decode


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
    truth: list[list[str]],
    cpus: int,
    seqs: list[int],
    heard: dict[int, tuple[str, int, str, str]],
) -> Facts:
    """Read it all. The service may be down, or up and idle."""
    with sqlite3.connect(f"file:{root}/jobs.db?mode=ro", uri=True) as db:
        rows = db.execute("select jid, name, record from jobs").fetchall()
        attempts = [_attempt(row[0]) for row in db.execute("select record from attempts")]
        events = [
            EventLine(*row[:-1], msgspec.json.decode(row[-1]))
            for row in db.execute("select seq, jid, version, kind, state, data from events order by seq")
        ]
        integrity = db.execute("pragma integrity_check").fetchone()[0]
    db.close()
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
