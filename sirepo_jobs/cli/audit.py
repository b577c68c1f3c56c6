"""`audit verify`: whether the audit log is whole."""

from pathlib import Path

import click

from . import render
from .group import Group
from .surroundings import Surroundings, options


@click.group("audit", cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@options
def audit_command() -> None:
    """Look at the log of everything that was changed, or was denied."""


@audit_command.command("verify")
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option(
    "--holds", metavar="HASH", help="The head that an earlier verify showed: it must still be in it."
)
@options
@click.pass_obj
def verify_command(here: Surroundings, file: Path | None, holds: str | None) -> int:
    """Follow the chain of hashes in FILE, or in the root's audit log; exit 2 where it is broken.

    Keep the head that is shown somewhere else: with --holds, lines cut off the end are found, too.
    """
    from sirepo_jobs.frontend import audit

    path = file or here.root_path() / audit.FILE
    verified = audit.verify(path, holds=holds)
    if here.json:
        render.value(here.output, verified._asdict())
    else:
        print(f"{path}: {verified.lines} lines, whole; head {verified.head}")
    return 0
