"""The tables, and what the indexes are for.

What is asked of a job by column has a column; everything else about it is in `record`. Instants are
integer microseconds. A change here needs a migration; a test compares the two.
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
    false,
    text,
)

from sirepo_jobs.job import FINAL, HELD_BY_AGENT, State

#: The newest migration; a database that is there already opens without loading Alembic.
HEAD = "0006"

#: SQLite's own row number only if the type is spelled INTEGER.
_ROW_NUMBER = BigInteger().with_variant(Integer, "sqlite")

ACTIVE = tuple(sorted(HELD_BY_AGENT))
#: Neither waiting nor with an agent.
AT_REST = tuple(sorted(FINAL | {State.INACTIVE, State.HELD}))


def _any_of(states: tuple[State, ...]) -> str:
    # Not IN: SQLite builds a set for it, and tries each condition on every update; 5 us per update.
    return f"({' OR '.join(f'state = {state.value!r}' for state in states)})"


#: Conditions of the partial indexes. Written out, not bound: SQLite uses such an index only for a
#: query that repeats its condition word for word.
IS_PENDING = f"state = {State.PENDING.value!r}"
IS_ACTIVE = _any_of(ACTIVE)
IS_AT_REST = _any_of(AT_REST)

metadata = MetaData()

#: One row.
meta = Table(
    "meta",
    metadata,
    Column(
        "id",
        SmallInteger,
        CheckConstraint("id = 1", name="meta_one_row"),
        primary_key=True,
        autoincrement=False,
    ),
    #: Made with the database; part of every attempt's token (C2).
    Column("instance", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    #: Rises with every opening; whoever writes proves that it is still his (I29).
    Column("epoch", BigInteger, nullable=False),
    #: Rises with every group: tells whether a group of unknown fate is there (F099).
    Column("commits", BigInteger, nullable=False),
    #: 1 while nobody has it open and the last one closed it.
    Column("clean", SmallInteger, nullable=False),
)

jobs = Table(
    "jobs",
    metadata,
    Column("seq", _ROW_NUMBER, primary_key=True, autoincrement=False),
    Column("jid", Text, nullable=False, unique=True),
    Column("user", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("priority", SmallInteger, nullable=False),
    Column("queue", Text, nullable=False),
    Column("driver", Text, nullable=False),
    #: Ordered by code points also on PostgreSQL, so that names with one beginning stand together.
    Column("name", Text().with_variant(Text(collation="C"), "postgresql"), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("ended_at", BigInteger),
    Column("version", BigInteger, nullable=False),
    Column("agent", Text),
    #: `JobRecord` as JSON.
    Column("record", LargeBinary, nullable=False),
)
Index("jobs_by_user", jobs.c.user, jobs.c.seq)
Index("jobs_by_name", jobs.c.name, jobs.c.user, jobs.c.seq)
for _name, _columns, _where in (
    ("jobs_pending", (jobs.c.user, jobs.c.priority.desc(), jobs.c.seq), IS_PENDING),
    ("jobs_active", (jobs.c.seq,), IS_ACTIVE),
    ("jobs_at_rest", (jobs.c.user, jobs.c.state, jobs.c.seq), IS_AT_REST),
    ("jobs_at_rest_of_all", (jobs.c.state, jobs.c.seq), IS_AT_REST),
):
    Index(_name, *_columns, sqlite_where=text(_where), postgresql_where=text(_where))

#: Written once and apart from `jobs`, so that an update of a job never moves a spec of a megabyte.
specs = Table(
    "specs",
    metadata,
    Column("seq", _ROW_NUMBER, ForeignKey("jobs.seq"), primary_key=True, autoincrement=False),
    Column("spec", LargeBinary, nullable=False),
)

#: The tags of each job's spec, to find jobs by; follows the spec.
job_tags = Table(
    "job_tags",
    metadata,
    Column("seq", _ROW_NUMBER, ForeignKey("jobs.seq"), primary_key=True, autoincrement=False),
    Column("name", Text, primary_key=True),
    Column("value", Text, nullable=False),
    Column("user", Text, nullable=False),
    sqlite_with_rowid=False,
)
Index("job_tags_of_user", job_tags.c.user, job_tags.c.name, job_tags.c.value, job_tags.c.seq)
Index("job_tags_of_all", job_tags.c.name, job_tags.c.value, job_tags.c.seq)

attempts = Table(
    "attempts",
    metadata,
    Column("jid", Text, ForeignKey("jobs.jid"), primary_key=True),
    Column("attempt", Integer, primary_key=True, autoincrement=False),
    #: `AttemptRecord` as JSON.
    Column("record", LargeBinary, nullable=False),
)

events = Table(
    "events",
    metadata,
    Column("seq", _ROW_NUMBER, primary_key=True, autoincrement=False),
    Column("jid", Text, nullable=False),
    Column("user", Text, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("at", BigInteger, nullable=False),
    Column("kind", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("data", LargeBinary, nullable=False),
)
Index("events_by_job", events.c.jid, events.c.seq)

agents = Table(
    "agents",
    metadata,
    Column("agent", Text, primary_key=True),
    Column("environment", LargeBinary, nullable=False),
    Column("handle", LargeBinary),
    Column("install", Text, nullable=False),
    Column("boot_id", Text, nullable=False, server_default=""),
    Column("leaving", Boolean, nullable=False, server_default=false()),
)

tokens = Table(
    "tokens",
    metadata,
    #: The id in it, which is no secret.
    Column("token", Text, primary_key=True),
    #: SHA-256; the token itself is nowhere (S7).
    Column("digest", LargeBinary, nullable=False),
    Column("user", Text, nullable=False),
    Column("role", Text, nullable=False),
    #: JSON list.
    Column("scopes", LargeBinary, nullable=False),
    Column("name", Text, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    #: Days since 1970.
    Column("used_day", Integer),
    Column("revoked_at", BigInteger),
)

idempotency = Table(
    "idempotency",
    metadata,
    Column("user", Text, primary_key=True),
    Column("key", Text, primary_key=True),
    Column("digest", LargeBinary, nullable=False),
    #: JSON list.
    Column("jids", LargeBinary, nullable=False),
    Column("created_at", BigInteger, nullable=False),
)
Index("idempotency_by_age", idempotency.c.created_at)
