"""`config show`, `version`, `completion`."""

import click

from sirepo_jobs import __version__

from . import render
from .group import Group
from .surroundings import Surroundings, options


@click.group("config", cls=Group)
@options
def config_command() -> None:
    """Look at the settings."""


@config_command.command("show")
@options
@click.pass_obj
def show(here: Surroundings) -> int:
    """Every setting with its value and where that came from; passwords are hidden."""
    shown = list(here.settings().shown())
    if here.json:
        rows = [{"name": name, "value": value, "source": source} for name, value, source in shown]
        render.values(here.output, rows)
    else:
        render.table(("SETTING", "VALUE", "SOURCE"), shown)
    return 0


@click.command("version")
@options
@click.pass_obj
def version_command(here: Surroundings) -> int:
    """Print the version."""
    if here.json:
        render.value(here.output, {"version": __version__})
    else:
        print(f"sirepo-jobs {__version__}")
    return 0


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@options
def completion_command(shell: str) -> int:
    """Print the completion script of a shell.

    \b
    eval "$(sirepo-jobs completion bash)"
    """
    from click.shell_completion import get_completion_class

    from .main import cli

    found = get_completion_class(shell)
    assert found is not None
    print(found(cli, {}, "sirepo-jobs", "_SIREPO_JOBS_COMPLETE").source())
    return 0
