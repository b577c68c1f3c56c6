"""`files`, `get`: what lies in a job's run dir, and bringing it here."""

import os
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import click
import msgspec

from sirepo_jobs.client.download import Progress
from sirepo_jobs.errors import BadInput
from sirepo_jobs.resources import format_bytes

from . import render
from .complete import complete_jid
from .screen import STDOUT, Screen
from .selectors import resolve
from .surroundings import LONG_PATIENCE_SECS, Surroundings, options
from .trouble import EXIT_INTERRUPTED

_ATTEMPT = click.option(
    "--attempt", type=click.IntRange(min=1), metavar="N", help="Of this attempt; else the newest."
)


@click.command("files")
@click.argument("jid", shell_complete=complete_jid)
@click.argument("path", default="")
@click.option("--flat", is_flag=True, help="Only the directory itself, not what its directories hold.")
@_ATTEMPT
@options
@click.pass_obj
def files_command(here: Surroundings, jid: str, path: str, flat: bool, attempt: int | None) -> int:
    """List the files of a job's run dir, or of the directory PATH in it."""
    client = here.client()
    found = client.files(resolve(client, jid), path.rstrip("/"), attempt=attempt, recursive=not flat)
    if here.json:
        render.values(here.output, (msgspec.to_builtins(file) for file in found))
    else:
        render.table(
            ("SIZE", "MODIFIED", "KIND", "PATH"),
            (
                (
                    format_bytes(file.size) if file.size is not None else "-",
                    render.instant(file.mtime),
                    file.kind,
                    file.path + (f"  ({file.note})" if file.note else ""),
                )
                for file in found
            ),
            first_to_go=("KIND", "MODIFIED"),
        )
    return 0


@click.command("get")
@click.argument("jid", shell_complete=complete_jid)
@click.argument("path", default="")
@click.argument("dest", default="", metavar="[DEST]")
@click.option("--all", "archive", metavar="FILE.zip", help="Bring the whole run dir, or PATH, as an archive.")
@_ATTEMPT
@options
@click.pass_obj
def get_command(
    here: Surroundings, jid: str, path: str, dest: str, archive: str | None, attempt: int | None
) -> int:
    """Bring the file PATH of a job's run dir here, or to DEST; `-` is stdout.

    A download that was cut off, by Ctrl-C too, goes on where it was when the same is asked for again.
    """
    client = here.client(LONG_PATIENCE_SECS)
    if bool(archive) == bool(dest) and archive:
        raise click.UsageError("--all names the file already; DEST is for single files")
    if not archive and not path:
        raise click.UsageError(
            "which file? `sirepo-jobs files JID` lists them; --all FILE.zip brings everything"
        )
    jid = resolve(client, jid)
    try:
        if archive:
            with _bar(Path(archive).name) as progress:
                place = client.download_archive(
                    jid, archive, path.rstrip("/"), attempt=attempt, progress=progress
                )
        elif dest == "-":
            screen = Screen(status=False)
            with closing(client.stream_file(jid, path, attempt=attempt)) as pieces:
                for piece in pieces:
                    screen.write(STDOUT, piece)
            return 0
        else:
            to = _place(path, dest)
            with _bar(to.name) as progress:
                place = client.download(jid, path, to, attempt=attempt, progress=progress)
    except KeyboardInterrupt:
        if not archive:
            click.echo("\nwhat came is kept; the same command goes on from there", err=True)
        return EXIT_INTERRUPTED
    except OSError as exc:
        raise BadInput(
            f"cannot write {exc.filename or dest or archive}: {exc.strerror}", code="dest"
        ) from None
    if here.json:
        told = {"path": os.fspath(place), "size": place.stat().st_size}
        render.value(here.output, told)
    return 0


def _place(path: str, dest: str) -> Path:
    """Where a file goes: DEST, or its own name in the directory DEST, or here."""
    name = path.rpartition("/")[2]
    to = Path(dest) if dest else Path(name)
    return to / name if to.is_dir() else to


@contextmanager
def _bar(name: str) -> Iterator[Progress | None]:
    """A bar on a terminal, and nothing elsewhere."""
    if not render.color_wanted():
        yield None
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=Console(file=sys.stderr), transient=True) as bars:
        task = bars.add_task(escape(render.safe(name)), total=None)

        def progress(here: int, total: int | None) -> None:
            bars.update(task, completed=here, total=total)

        yield progress
