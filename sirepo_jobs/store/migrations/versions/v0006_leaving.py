"""An operator's word that an agent shall end after its work outlives a restart."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add one column."""
    op.add_column("agents", sa.Column("leaving", sa.Boolean, nullable=False, server_default=sa.false()))
