"""The first tables."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_ROW_NUMBER = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_PENDING = "state = 'pending'"
_ACTIVE = (
    "(state = 'canceling' OR state = 'lost' OR state = 'running' OR state = 'starting'"
    " OR state = 'suspended')"
)
_ASIDE = (
    "(state = 'canceled' OR state = 'deduped' OR state = 'error' OR state = 'held' OR state = 'inactive'"
    " OR state = 'purged')"
)


def upgrade() -> None:
    """Make everything."""
    op.create_table(
        "meta",
        sa.Column("id", sa.SmallInteger, primary_key=True, autoincrement=False),
        sa.Column("instance", sa.Text, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("commits", sa.BigInteger, nullable=False),
        sa.Column("clean", sa.SmallInteger, nullable=False),
        sa.CheckConstraint("id = 1", name="meta_one_row"),
    )
    _jobs()
    op.create_table(
        "attempts",
        sa.Column("jid", sa.Text, sa.ForeignKey("jobs.jid"), primary_key=True),
        sa.Column("attempt", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("record", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "events",
        sa.Column("seq", _ROW_NUMBER, primary_key=True, autoincrement=False),
        sa.Column("jid", sa.Text, nullable=False),
        sa.Column("user", sa.Text, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("data", sa.LargeBinary, nullable=False),
    )
    op.create_index("events_by_job", "events", ["jid", "seq"])
    op.create_table(
        "agents",
        sa.Column("agent", sa.Text, primary_key=True),
        sa.Column("environment", sa.LargeBinary, nullable=False),
        sa.Column("handle", sa.LargeBinary),
        sa.Column("install", sa.Text, nullable=False),
        sa.Column("acked", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "idempotency",
        sa.Column("user", sa.Text, primary_key=True),
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column("digest", sa.LargeBinary, nullable=False),
        sa.Column("jids", sa.LargeBinary, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
    )


def _jobs() -> None:
    op.create_table(
        "jobs",
        sa.Column("seq", _ROW_NUMBER, primary_key=True, autoincrement=False),
        sa.Column("jid", sa.Text, nullable=False, unique=True),
        sa.Column("user", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("priority", sa.SmallInteger, nullable=False),
        sa.Column("queue", sa.Text, nullable=False),
        sa.Column("driver", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("ended_at", sa.BigInteger),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("agent", sa.Text),
        sa.Column("record", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "specs",
        sa.Column("seq", _ROW_NUMBER, sa.ForeignKey("jobs.seq"), primary_key=True, autoincrement=False),
        sa.Column("spec", sa.LargeBinary, nullable=False),
    )
    _index("jobs_by_user", ["user", "seq"])
    _index("jobs_pending", ["user", sa.text("priority DESC"), "seq"], _PENDING)
    _index("jobs_active", ["seq"], _ACTIVE)
    _index("jobs_aside", ["user", "state", "seq"], _ASIDE)


def _index(name: str, columns: list[str | sa.TextClause], where: str | None = None) -> None:
    condition = None if where is None else sa.text(where)
    op.create_index(name, "jobs", columns, sqlite_where=condition, postgresql_where=condition)
