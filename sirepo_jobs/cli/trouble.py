"""Errors as people and scripts get them: one line and a hint, or `{"error": {...}}`; and exit statuses."""

import json
import sys
import traceback
from typing import TYPE_CHECKING, NamedTuple

import click

from sirepo_jobs.errors import BadInput, Conflict, Error, Forbidden, NotFound, Unauthorized, Unavailable

from .render import safe

if TYPE_CHECKING:
    from .surroundings import Surroundings

EXIT_USAGE = 2
EXIT_NOT_FOUND = 3
EXIT_AUTH = 4
EXIT_CONFLICT = 5
EXIT_UNAVAILABLE = 69
EXIT_TEMPORARY = 75
EXIT_OURS = 125
EXIT_INTERRUPTED = 130
EXIT_PIPE = 141

_HINTS = {
    "unreachable": "is it running? `sirepo-jobs doctor` looks; `sirepo-jobs up` starts it",
    "timeout": "`sirepo-jobs doctor` looks what is wrong",
    "bad_token": "name the right one with --token-file, or the root that it belongs to with --root",
    "idempotency_key_reused": "use a new key for a new job",
}


class Trouble(NamedTuple):
    """What went wrong, ready to be told."""

    code: str
    message: str
    hint: str = ""
    pointer: str = ""
    request_id: str = ""

    @classmethod
    def of_error(cls, error: Error) -> "Trouble":
        """An error that we foresaw."""
        return cls(
            error.code,
            str(error),
            _HINTS.get(error.code, ""),
            getattr(error, "pointer", ""),
            getattr(error, "request_id", ""),
        )

    @classmethod
    def of_click(cls, error: click.ClickException) -> "Trouble":
        """A command line that cannot be meant."""
        path = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "sirepo-jobs"
        return cls("usage", error.format_message(), f"see: {path} --help")

    @classmethod
    def of_nothing(cls, error: click.UsageError) -> "Trouble":
        """A command that is only the beginning of one."""
        path = error.ctx.command_path if error.ctx else "sirepo-jobs"
        return cls("usage", f"{path} is not a whole command", f"see: {path} --help")

    @classmethod
    def of_bug(cls, error: BaseException) -> "Trouble":
        """Something that should not have happened."""
        what = "".join(traceback.format_exception_only(error)).strip()
        return cls("internal", what, "run it again with --debug to see where")

    def as_json(self) -> dict[str, str]:
        """What is said of it in JSON output: everything that is known."""
        return {name: value for name, value in self._asdict().items() if value}


def tell(here: "Surroundings", trouble: Trouble) -> None:
    """One line and a hint on stderr; with JSON output one object on stdout instead."""
    if here.json:
        print(json.dumps({"error": trouble.as_json()}))
        return
    print(f"error: {safe(trouble.message)}", file=sys.stderr)
    if trouble.hint:
        print(f"hint: {trouble.hint}", file=sys.stderr)


def exit_status(error: Error) -> int:
    """What a command that is not `run` or `wait` exits with."""
    match error:
        case NotFound():
            return EXIT_NOT_FOUND
        case Unauthorized() | Forbidden():
            return EXIT_AUTH
        case Conflict():
            return EXIT_CONFLICT
        case BadInput():
            return EXIT_USAGE
        case Unavailable(code="unreachable" | "not_started"):
            return EXIT_UNAVAILABLE
        case Unavailable():
            return EXIT_TEMPORARY
    return 1
