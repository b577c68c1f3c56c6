"""`agent list|drain|stop|declare-gone`: the long-lived processes that run the jobs."""

from typing import Any

import click
from click.shell_completion import CompletionItem

from sirepo_jobs.errors import Error

from . import render
from .group import Group
from .surroundings import Surroundings, options
from .verbs import tell_each


def _complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    try:
        here = ctx.find_object(Surroundings) or Surroundings()
        agents = here.client(patience_secs=0).agents()
    except Error:
        return []
    return [
        CompletionItem(agent["agent"], help=_state(agent))
        for agent in agents
        if agent["agent"].startswith(incomplete)
    ]


@click.group("agent", cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@options
def agent_command() -> None:
    """Look at agents, let them end after their work, or end them now.

    Agents are started when there is work for them, and end when they were idle for a while.
    """


@agent_command.command("list")
@options
@click.pass_obj
def list_command(here: Surroundings) -> int:
    """List agents by name."""
    agents = here.client().agents()
    if here.json:
        render.values(here.output, agents)
    elif not agents and render.is_for_people():
        click.echo("no agents: the first job starts one", err=True)
    else:
        columns = ("AGENT", "USER", "DRIVER", "STATE", "WORK", "HOST", "VERSION", "TROUBLE")
        render.table(columns, map(_row, agents), first_to_go=("VERSION", "DRIVER", "HOST"))
    return 0


def _row(agent: dict[str, Any]) -> tuple[str, ...]:
    return (
        agent["agent"],
        agent["user"],
        agent["driver"],
        _state(agent),
        str(agent["ops"]),
        agent["host"] or "-",
        agent["version"] or "-",
        agent["trouble"] or "-",
    )


def _state(agent: dict[str, Any]) -> str:
    return "leaving" if agent["leaving"] and agent["state"] == "online" else str(agent["state"])


def _verb(name: str, method: str, help_text: str) -> click.Command:
    @agent_command.command(name, help=help_text)
    @click.argument("agents", nargs=-1, required=True, metavar="AGENT...", shell_complete=_complete)
    @options
    @click.pass_obj
    def command(here: Surroundings, agents: tuple[str, ...]) -> int:
        return tell_each(here, agents, getattr(here.client(), method), kind="agent", state=_state)

    return command


drain_command = _verb(
    "drain",
    "drain_agent",
    "Give agents no more work; each ends when it has finished what it has. Waiting jobs get a fresh one.",
)
stop_command = _verb("stop", "stop_agent", "End agents now, and with them their running jobs.")
declare_gone_command = _verb(
    "declare-gone",
    "declare_gone",
    "Say that agents that are out of reach are gone, and everything that they ran (operators only)."
    " Their lost jobs end, or go on as their `on_lost` says. Be sure: what lives on may run twice.",
)
