"""`explain`: why a job is where it is."""

import textwrap

import click

from . import render
from .complete import complete_jid
from .selectors import resolve
from .surroundings import Surroundings, options


@click.command("explain")
@click.argument("jid", shell_complete=complete_jid)
@options
@click.pass_obj
def explain_command(here: Surroundings, jid: str) -> int:
    """Say why a job waits, failed, was ended, or runs where it runs; `last` is my newest job."""
    client = here.client()
    said = client.explain(resolve(client, jid))
    if here.output == "json":
        render.to_json(said.raw)
    elif here.output == "jsonl":
        render.to_json_lines([said.raw])
    else:
        print("\n".join(textwrap.wrap(render.safe(said.summary), 100, break_on_hyphens=False)))
        if said.stderr:
            print("\nstderr ends with:")
            print("\n".join(f"  {render.safe(line)}" for line in said.stderr))
    return 0
