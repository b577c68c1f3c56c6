"""`explain`: why a job is where it is."""

import shutil
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
    if here.json:
        render.value(here.output, said.raw)
    else:
        print("\n".join(textwrap.wrap(render.safe(said.summary), _width(), break_on_hyphens=False)))
        if said.stderr:
            print("\nstderr ends with:")
            print("\n".join(f"  {render.safe(line)}" for line in said.stderr))
    return 0


def _width() -> int:
    """Of the text: that of the terminal, but no longer than eyes follow."""
    return max(40, min(100, shutil.get_terminal_size((100, 24)).columns))
