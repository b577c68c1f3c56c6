"""`update`: another name, priority, tags or limits for jobs that are there."""

from typing import Any

import click

from .selectors import Chosen, pair, select, selecting
from .surroundings import Surroundings, options
from .verbs import tell_each

#: Takes a limit away.
NONE = "none"


@click.command("update")
@selecting
@click.option("--name", help="A new name.")
@click.option(
    "--priority", "-p", type=click.IntRange(0, 10), help="0 to 10; moves a queued job to its new place."
)
@click.option("--set-tag", metavar="NAME=VALUE", multiple=True, help="Add or replace a label.")
@click.option("--remove-tag", metavar="NAME", multiple=True, help="Take a label away.")
@click.option("--time-limit", "-t", metavar="TIME|none", help="Another time limit, or none.")
@click.option("--hard-limit", metavar="TIME|none", help="Another hard limit, or none.")
@click.option("--grace", metavar="TIME", help="Another time between TERM and KILL.")
@options
@click.pass_obj
def update_command(
    here: Surroundings,
    jids: tuple[str, ...],
    filters: tuple[str, ...],
    tag: tuple[str, ...],
    everything: bool,
    name: str | None,
    priority: int | None,
    set_tag: tuple[str, ...],
    remove_tag: tuple[str, ...],
    time_limit: str | None,
    hard_limit: str | None,
    grace: str | None,
) -> int:
    """Change jobs that are there: name, priority and tags at any time, limits while they do not run.

    --tag chooses jobs; --set-tag and --remove-tag change their labels.
    """
    tags: dict[str, str | None] = dict(pair("--set-tag", text) for text in set_tag)
    if both := tags.keys() & set(remove_tag):
        raise click.UsageError(f"{min(both)!r} is both set and removed; say one of them")
    tags |= dict.fromkeys(remove_tag)
    said = {"soft": time_limit, "hard": hard_limit, "grace": grace}
    limits = {key: None if text == NONE else text for key, text in said.items() if text is not None}
    changes: dict[str, Any] = {
        "name": name,
        "priority": priority,
        "tags": tags or None,
        "limits": limits or None,
    }
    if not any(value is not None for value in changes.values()):
        raise click.UsageError(
            "what is to change? --name, --priority, --set-tag, --remove-tag,"
            " --time-limit, --hard-limit or --grace"
        )
    client = here.client()
    chosen = select(client, Chosen(jids, filters, tag, everything), "active")
    return tell_each(here, chosen, lambda jid: client.change(jid, **changes).raw)
