"""Jobs by tag, by name, and by every state in which they rest."""

import json

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_ROW_NUMBER = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_AT_REST = (
    "(state = 'canceled' OR state = 'completed' OR state = 'deduped' OR state = 'error' OR state = 'held'"
    " OR state = 'inactive' OR state = 'purged')"
)
#: Specs read at once.
_STRIDE = 5000


def upgrade() -> None:
    """Make the table of tags, fill it from the specs, and make the indexes."""
    if op.get_bind().dialect.name == "postgresql":
        op.execute('ALTER TABLE jobs ALTER COLUMN name TYPE text COLLATE "C"')
    op.drop_index("jobs_aside", "jobs")
    for name, columns in (
        ("jobs_at_rest", ["user", "state", "seq"]),
        ("jobs_at_rest_of_all", ["state", "seq"]),
    ):
        where = sa.text(_AT_REST)
        op.create_index(name, "jobs", columns, sqlite_where=where, postgresql_where=where)
    op.create_index("jobs_by_name", "jobs", ["name", "user", "seq"])
    tags = op.create_table(
        "job_tags",
        sa.Column("seq", _ROW_NUMBER, sa.ForeignKey("jobs.seq"), primary_key=True, autoincrement=False),
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("value", sa.Text, nullable=False),
        sa.Column("user", sa.Text, nullable=False),
        sqlite_with_rowid=False,
    )
    _fill(tags)
    op.create_index("job_tags_of_user", "job_tags", ["user", "name", "value", "seq"])
    op.create_index("job_tags_of_all", "job_tags", ["name", "value", "seq"])


def _fill(tags: sa.Table) -> None:
    connection = op.get_bind()
    page = sa.text(
        "SELECT s.seq, j.user, s.spec FROM specs AS s JOIN jobs AS j ON j.seq = s.seq"
        " WHERE s.seq > :after ORDER BY s.seq LIMIT :stride"
    )
    after = 0
    while rows := connection.execute(page, {"after": after, "stride": _STRIDE}).all():
        found = [
            {"seq": seq, "name": name, "value": value, "user": user}
            for seq, user, spec in rows
            for name, value in json.loads(bytes(spec)).get("tags", {}).items()
        ]
        if found:
            connection.execute(tags.insert(), found)
        after = rows[-1][0]
