"""`backup`: a copy of the store, while it is in use."""

from pathlib import Path

import click

from . import render
from .surroundings import Surroundings, options


@click.command("backup")
@click.argument("file", type=click.Path(path_type=Path))
@options
@click.pass_obj
def backup_command(here: Surroundings, file: Path) -> int:
    """Write a copy of the root's store to FILE, which must not exist.

    The service goes on meanwhile. The copy is as of one moment, whole, and for its owner alone. To restore
    it, put it in the place of `jobs.db`, without `jobs.db-wal` and `jobs.db-shm`, while no supervisor runs.
    """
    from sirepo_jobs import store

    path = file.absolute()
    store.backup(here.settings().settings.database_url, path)
    size = path.stat().st_size
    if here.json:
        render.value(here.output, {"path": str(path), "bytes": size})
    else:
        print(f"{path}: {size} bytes")
    return 0
