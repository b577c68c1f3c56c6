"""`submit`: hand in jobs and leave."""

import json
import sys
from pathlib import Path
from typing import Any

import click

from . import render
from .spec_options import make_spec, spec_options
from .surroundings import Surroundings, options


@click.command("submit", context_settings={"allow_interspersed_args": False})
@spec_options
@click.option("--file", "-f", "file", metavar="FILE", help="JSON file with one spec or many; - is stdin.")
@options
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def submit_command(
    here: Surroundings, /, command: tuple[str, ...], file: str | None, **described: Any
) -> int:
    """Hand in a job and print its id.

    \b
    sirepo-jobs submit --cpus 2 -- mpiexec -n 2 lmp -in in.melt
    sirepo-jobs submit --file jobs.json
    """
    key = described.pop("idempotency_key")
    if bool(file) == bool(command):
        raise click.UsageError("give a command after --, or a --file, but not both")
    if file and any(described.values()):
        raise click.UsageError("with --file everything is said in the file")
    spec = _from_file(file) if file else make_spec(command, described)
    answer = here.client().submit(spec, idempotency_key=key)
    made = answer if isinstance(answer, list) else [answer]
    rows = [{"jid": job.jid, "serial": job.serial, "state": job.state} for job in made]
    if here.json and isinstance(answer, list):
        render.values(here.output, rows)
    elif here.json:
        render.value(here.output, rows[0])
    else:
        print("\n".join(job.jid for job in made))
    return 0


def _from_file(name: str) -> Any:
    """One spec, or a list of specs (also as the `{"jobs": [...]}` of the API)."""
    try:
        raw = json.loads(sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes())
    except OSError as exc:
        raise click.BadParameter(f"{name}: {exc.strerror}", param_hint="--file") from None
    except (ValueError, RecursionError) as exc:
        raise click.BadParameter(f"{name} is not JSON: {exc}", param_hint="--file") from None
    if isinstance(raw, dict) and "jobs" in raw:
        raw = raw["jobs"]
    if not isinstance(raw, dict | list):
        raise click.BadParameter(f"{name} holds no job spec", param_hint="--file")
    return raw
