"""Run by Alembic for every command: binds the migrations to the connection that `upgrade` was given."""

from alembic import context

from sirepo_jobs.store.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    # SQLite alters a table by copying it.
    render_as_batch=True,
)
context.run_migrations()
