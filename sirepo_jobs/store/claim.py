"""Taking a database over: brought to the present schema, marked as in use, its epoch raised (I29)."""

import os
import time
from typing import NamedTuple

from sqlalchemy import Connection, func, insert, select, update

from sirepo_jobs.job import ulid

from . import migrations
from .database import Database
from .schema import events, jobs, meta


class Claim(NamedTuple):
    """A database as it was found, with our epoch."""

    instance: str
    epoch: int
    #: Number of the last group that was committed.
    commits: int
    last_job_seq: int
    last_event_seq: int


def first_row(connection: Connection) -> None:
    """Give a new database its identity."""
    at = time.time_ns() // 1000
    connection.execute(
        insert(meta).values(
            id=1, instance=ulid(at, os.urandom(10)), created_at=at, epoch=0, commits=0, clean=1
        )
    )


def take_over(database: Database) -> Claim:
    """Migrate and claim, in one transaction."""
    connection = database.connection
    database.begin()
    try:
        migrations.upgrade(connection)
        if not connection.execute(select(func.count()).select_from(meta)).scalar():
            first_row(connection)
        connection.execute(update(meta).values(epoch=meta.c.epoch + 1, clean=0))
        found = connection.execute(select(meta.c.instance, meta.c.epoch, meta.c.commits)).one()
        claim = Claim(
            instance=found.instance,
            epoch=found.epoch,
            commits=found.commits,
            last_job_seq=connection.execute(select(func.coalesce(func.max(jobs.c.seq), 0))).scalar_one(),
            last_event_seq=connection.execute(select(func.coalesce(func.max(events.c.seq), 0))).scalar_one(),
        )
        database.commit()
    except BaseException:
        database.rollback()
        raise
    database.settle()
    return claim


def let_go(database: Database) -> None:
    """Note that it is being closed in good order."""
    database.begin()
    database.run("UPDATE meta SET clean = 1", ())
    database.commit()
