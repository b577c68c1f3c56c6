"""What every command is told: where the service is, how to answer, how much to say."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from sirepo_jobs.client import Client
    from sirepo_jobs.settings import Loaded

_Command = TypeVar("_Command", bound=Callable[..., Any])

#: A short command does not keep people waiting for a service that is not there.
SHORT_PATIENCE_SECS = 5.0
#: One that follows a job sits out a restart of the service.
LONG_PATIENCE_SECS = 300.0


class Surroundings:
    """Filled from the options of the group and of the command; the latter count more."""

    root: str | None = None
    url: str | None = None
    token_file: str | None = None
    config: str | None = None
    output: str = "table"
    debug: bool = False

    @property
    def json(self) -> bool:
        """Whether somebody wants JSON rather than text."""
        return self.output != "table"

    def settings(self, **flags: object) -> "Loaded":
        """Every setting, with `flags` counting most. Raises `BadInput`."""
        from sirepo_jobs import settings

        return settings.load({"root": self.root, **flags}, config=self.config)

    def client(self, patience_secs: float = SHORT_PATIENCE_SECS) -> "Client":
        """The client for the service that is meant."""
        from sirepo_jobs.client import Client

        # A root that is named on the spot counts more than an address that lies in the environment.
        url = self.url or (None if self.root else os.environ.get("SIREPO_JOBS_URL"))
        root = self.root or str(self.settings().settings.root)
        return Client.from_environment(
            root,
            url=url or None,
            token_file=self.token_file,
            patience_secs=patience_secs,
            ca_certs=os.environ.get("SIREPO_JOBS_CA_FILE") or None,
        )

    def root_path(self) -> Path:
        """The root that is meant."""
        return self.settings().settings.root


def _keep(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
    if value is not None and value is not False:
        here = ctx.find_object(Surroundings)
        assert here is not None
        assert param.name is not None
        setattr(here, param.name, value)
    return value


def options(command: _Command) -> _Command:
    """The options that every command takes, before or after its name."""
    for decorate in (
        click.option("--debug", is_flag=True, help="Show the traceback of an error.", **_HIDDEN),
        click.option(
            "--output",
            "-o",
            type=click.Choice(["table", "json", "jsonl"]),
            envvar="SIREPO_JOBS_OUTPUT",
            help="How to answer; JSON is a stable contract.",
            **_HIDDEN,
        ),
        click.option("--config", metavar="FILE", help="Read this settings file only.", **_HIDDEN),
        click.option("--token-file", metavar="FILE", help="File with the token to use.", **_HIDDEN),
        click.option("--url", metavar="URL", help="Address of the service.", **_HIDDEN),
        click.option("--root", metavar="DIR", help="Root directory of the service.", **_HIDDEN),
    ):
        command = decorate(command)
    return command


_HIDDEN: dict[str, Any] = {"expose_value": False, "callback": _keep}
