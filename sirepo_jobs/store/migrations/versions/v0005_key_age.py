"""Idempotency keys by age, so that old ones can be forgotten."""

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the index."""
    op.create_index("idempotency_by_age", "idempotency", ["created_at"])
