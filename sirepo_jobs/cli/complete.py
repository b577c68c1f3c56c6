"""What the shell offers to complete."""

import click
from click.shell_completion import CompletionItem

from sirepo_jobs.errors import Error

from .render import safe
from .surroundings import Surroundings


def complete_jid(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Ids of jobs for the shell; none rather than an error."""
    try:
        here = ctx.find_object(Surroundings) or Surroundings()
        jobs = list(here.client(patience_secs=0).jobs(limit=200))
    except Error:
        return []
    return [
        CompletionItem(job.jid, help=f"{job.state} {safe(job.name)}")
        for job in jobs
        if job.jid.startswith(incomplete)
    ]
