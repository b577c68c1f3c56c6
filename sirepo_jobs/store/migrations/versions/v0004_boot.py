"""Of which boot of its host an agent last spoke; what it was acknowledged is its own affair."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Exchange one column for another."""
    op.add_column("agents", sa.Column("boot_id", sa.Text, nullable=False, server_default=""))
    op.drop_column("agents", "acked")
