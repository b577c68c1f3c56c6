"""`sirepo-jobs`: finds the command, runs it, turns whatever comes out into an exit status.

0 ok, 1 error, 2 usage or bad input, 3 not found, 4 not allowed, 5 conflict, 69 service unavailable,
75 try again later, 130 Ctrl-C. `run` and `wait` exit as the job did and say 125 for failures of their own.
"""

import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click

from sirepo_jobs import __version__
from sirepo_jobs.errors import Error

from .group import Group
from .surroundings import Surroundings, options
from .trouble import EXIT_INTERRUPTED, EXIT_OURS, EXIT_PIPE, EXIT_USAGE, Trouble, exit_status, tell

#: What the help lists together: command -> the module that has it, as a function of the same name.
SECTIONS: dict[str, dict[str, str]] = {
    "Jobs": {
        "run": "run",
        "submit": "submit",
        "ps": "jobs",
        "show": "jobs",
        "explain": "explain",
        "logs": "logs",
        "files": "files",
        "get": "files",
        "wait": "jobs",
        "watch": "watch",
    },
    "Telling jobs what to do": {
        "cancel": "verbs",
        "hold": "verbs",
        "release": "verbs",
        "retry": "verbs",
        "suspend": "verbs",
        "resume": "verbs",
        "update": "update",
        "declare-lost": "verbs",
    },
    "The service": {
        "up": "up",
        "down": "up",
        "doctor": "doctor",
        "config": "config",
        "token": "tokens",
        "agent": "agents",
        "cluster": "cluster",
        "audit": "audit",
        "backup": "backup",
        "supervisor": "serve",
        "frontend": "serve",
    },
    "This program": {"version": "config", "completion": "config"},
}
COMMANDS: dict[str, str] = {name: module for section in SECTIONS.values() for name, module in section.items()}
#: Their exit status is the job's, so ours must be another one.
AS_THE_JOB = frozenset({"run", "wait"})


class ReaderGone(Exception):
    """Nobody reads our stdout any more."""


class LazyGroup(Group):
    """Imports a command when somebody asks for it."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise ReaderGone from None  # click would exit with 1

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        module = COMMANDS.get(cmd_name)
        if module is None:
            return None
        found = getattr(
            importlib.import_module(f"sirepo_jobs.cli.{module}"), f"{cmd_name.replace('-', '_')}_command"
        )
        assert isinstance(found, click.Command)
        return found

    def sections(self, ctx: click.Context) -> Mapping[str, Sequence[str]]:
        return {title: list(section) for title, section in SECTIONS.items()}

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            import difflib

            near = difflib.get_close_matches(args[0], COMMANDS, 1)
            hint = f"; did you mean {near[0]!r}?" if near else "; see: sirepo-jobs --help"
            raise click.UsageError(f"there is no command {args[0]!r}{hint}", ctx)
        return super().resolve_command(ctx, args)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="sirepo-jobs", message="%(prog)s %(version)s")
@options
def cli() -> None:
    """Run work in the background, and know what became of it.

    Start the service with `up`; give it work with `run` (stays until the end) or `submit` (does not).
    """


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; the exit status."""
    here = Surroundings()
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = next((word for word in arguments if word in COMMANDS), "")
    ours = EXIT_OURS if command in AS_THE_JOB else None
    try:
        result: Any = cli.main(arguments, prog_name="sirepo-jobs", standalone_mode=False, obj=here)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except click.exceptions.NoArgsIsHelpError as exc:
        if here.json:
            tell(here, Trouble.of_nothing(exc))
        else:
            print(exc.format_message(), file=sys.stderr)
        return EXIT_USAGE
    except click.ClickException as exc:
        tell(here, Trouble.of_click(exc))
        return ours or EXIT_USAGE
    except (KeyboardInterrupt, click.Abort):
        return EXIT_INTERRUPTED
    except (ReaderGone, BrokenPipeError):
        # The reader has left. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_PIPE
    except Error as exc:
        if here.debug:
            raise
        tell(here, Trouble.of_error(exc))
        return ours or exit_status(exc)
    except Exception as exc:
        if here.debug:
            raise
        tell(here, Trouble.of_bug(exc))
        return ours or 1
