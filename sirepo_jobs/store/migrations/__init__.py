"""Brings a database to the present schema. Driven from code, no ini file; the transaction is the caller's.

A new migration is a file in `versions/` and a new `schema.HEAD`. It must not import `schema`, which
moves on.
"""

from typing import TYPE_CHECKING

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from sirepo_jobs.errors import StoreError
from sirepo_jobs.store.schema import HEAD

if TYPE_CHECKING:
    from alembic.config import Config


def position(connection: Connection) -> str | None:
    """The newest migration that the database has seen; None if it has never been a store of ours."""
    if not connection.dialect.has_table(connection, "alembic_version"):
        return None
    found: str | None = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    return found


def refuse_newer(connection: Connection) -> None:
    """Raise `StoreError` for a database that a newer program has migrated. Writes nothing (I34)."""
    found = position(connection)
    if found in (None, HEAD):
        return
    from alembic.script import ScriptDirectory

    if found not in {script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()}:
        raise StoreError(
            f"the database has schema {found!r}, this program knows up to {HEAD!r}: a newer sirepo_jobs has"
            " used it. Install that version, or restore the backup made before; nothing was changed"
        )


def upgrade(connection: Connection, revision: str = "head") -> None:
    """Run what is missing up to `revision`, inside the transaction that `connection` is in."""
    if revision == "head" and position(connection) == HEAD:
        return
    # Loading Alembic takes a quarter of a second, and most starts have nothing to migrate.
    from alembic import command

    # Alembic commits what it finds not begun.
    assert connection.in_transaction()
    config = _config()
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, revision)
    except DBAPIError as exc:
        raise StoreError(
            f"the database could not be brought to schema {HEAD!r}, and is as it was: {exc.orig}"
        ) from exc


def _config() -> "Config":
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", "sirepo_jobs.store:migrations")
    return config
