"""Which jobs a command is about: ids, `last`, or all that have something in common."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click

from .complete import complete_jid

if TYPE_CHECKING:
    from sirepo_jobs.client import Client

_Command = TypeVar("_Command", bound=Callable[..., Any])

LAST = "last"
_KEYS = ("state", "name", "user", "queue", "driver")


class Chosen(NamedTuple):
    """What the words of a command line select."""

    jids: tuple[str, ...] = ()
    filters: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    everything: bool = False


def selecting(command: _Command) -> _Command:
    """Add `JID...`, `--filter`, `--tag` and `--all`; `chosen` takes them out of the arguments."""
    for decorate in (
        click.option(
            "--all", "-a", "everything", is_flag=True, help="All of my jobs that it can be asked of."
        ),
        click.option("--tag", metavar="NAME=VALUE", multiple=True, help="My jobs that have this label."),
        click.option(
            "--filter",
            "filters",
            metavar="KEY=VALUE",
            multiple=True,
            help=f"My jobs that fit; KEY is one of {', '.join(_KEYS)}.",
        ),
        click.argument("jids", nargs=-1, metavar="[JID|last]...", shell_complete=complete_jid),
    ):
        command = decorate(command)
    return command


def select(client: "Client", chosen: Chosen, states: str) -> list[str]:
    """The ids of the chosen jobs, each once; `states` counts unless a filter names others."""
    by_property = chosen.filters or chosen.tags or chosen.everything
    if bool(chosen.jids) == bool(by_property):
        raise click.UsageError("name jobs (ids, or `last`), or choose them by --filter, --tag or --all")
    if chosen.jids:
        return list(dict.fromkeys(resolve(client, jid) for jid in chosen.jids))
    wanted = dict(pair("--filter", text) for text in chosen.filters)
    if unknown := wanted.keys() - set(_KEYS):
        raise click.BadParameter(f"{min(unknown)!r} is none of {', '.join(_KEYS)}", param_hint="--filter")
    tags = dict(pair("--tag", text) for text in chosen.tags)
    # SECURITY: an administrator means his own jobs, unless he names somebody.
    jobs = client.jobs(
        state=wanted.get("state", states),
        user=wanted.get("user", "@me"),
        name_prefix=wanted.get("name"),
        tags=tags,
        queue=wanted.get("queue"),
        driver=wanted.get("driver"),
    )
    return [job.jid for job in jobs if job.name == wanted.get("name", job.name)]


def resolve(client: "Client", jid: str) -> str:
    """The id itself; for `last` that of my newest job."""
    if jid != LAST:
        return jid
    for job in client.jobs(user="@me", limit=1):
        return job.jid
    raise click.UsageError("there is no last job: you have none")


def pair(option: str, text: str) -> tuple[str, str]:
    """`NAME=VALUE` as a pair."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise click.BadParameter(f"{text!r} is not NAME=VALUE", param_hint=option)
    return name, value
