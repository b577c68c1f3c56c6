"""`ps`, `show`, `wait`: looking at jobs."""

import shlex
from collections.abc import Iterable
from datetime import UTC, datetime

import click

from sirepo_jobs.client import Client, Job, exit_status
from sirepo_jobs.resources import format_bytes, format_secs

from . import render
from .complete import complete_jid
from .selectors import pair, resolve
from .surroundings import LONG_PATIENCE_SECS, Surroundings, options
from .trouble import EXIT_INTERRUPTED, EXIT_TEMPORARY, Trouble, tell

#: Columns that a narrow terminal does without.
FIRST_TO_GO = ("PROGRESS", "TIME", "AGE")


@click.command("ps")
@click.option("--all", "-a", "everything", is_flag=True, help="Also jobs that have ended.")
@click.option("--state", metavar="STATE[,STATE]", help="Only jobs in these states.")
@click.option("--name-prefix", metavar="TEXT", help="Only jobs whose name begins so.")
@click.option("--tag", metavar="NAME=VALUE", multiple=True, help="Only jobs that have this label.")
@click.option("--queue", "-q", help="Only jobs of this queue.")
@click.option("--user", help="Only jobs of this user; @me is oneself.")
@click.option(
    "--limit", "-n", type=click.IntRange(min=1), default=100, show_default=True, help="Jobs at most."
)
@options
@click.pass_obj
def ps_command(
    here: Surroundings,
    everything: bool,
    state: str | None,
    name_prefix: str | None,
    tag: tuple[str, ...],
    queue: str | None,
    user: str | None,
    limit: int,
) -> int:
    """List jobs, newest first: those that have not ended, or all with -a."""
    states = state or ("" if everything else "active")
    tags = dict(pair("--tag", text) for text in tag)
    for_people = not here.json and render.is_for_people()
    # one more than is shown tells whether there are more
    jobs = here.client().jobs(
        state=states,
        user=user,
        name_prefix=name_prefix,
        tags=tags,
        queue=queue,
        limit=limit + 1 if for_people else limit,
    )
    if here.json:
        render.values(here.output, (job.raw for job in jobs))
    else:
        now = datetime.now(UTC)
        rows = [row_of(job, now) for job in jobs]
        render.table(("JID", "NAME", "STATE", "WHY", "AGE", "TIME", "PROGRESS"), rows[:limit], FIRST_TO_GO)
        if len(rows) > limit:
            click.echo(f"the newest {limit}; there are more: -n N shows N", err=True)
        elif not rows and for_people and not everything:
            click.echo("no jobs that have not ended; -a shows all", err=True)
    return 0


def row_of(job: Job, now: datetime) -> tuple[str, ...]:
    """A job as one line of a table."""
    return (
        job.jid,
        job.name or "-",
        job.state,
        job.reason or _exit_text(job) or "-",
        _span(job.created_at, now),
        _span(job.started_at, job.ended_at or now),
        f"{job.percent:.0f}%" if job.percent is not None else "-",
    )


@click.command("show")
@click.argument("jid", shell_complete=complete_jid)
@options
@click.pass_obj
def show_command(here: Surroundings, jid: str) -> int:
    """Everything there is to know about a job."""
    client = here.client()
    job = client.get(resolve(client, jid))
    if here.json:
        render.value(here.output, job.raw)
    else:
        render.fields(summary(job, datetime.now(UTC)))
    return 0


@click.command("wait")
@click.argument("jids", nargs=-1, required=True, metavar="JID...", shell_complete=complete_jid)
@click.option("--timeout", metavar="TIME", help="Give up after so long, with exit status 75.")
@click.option(
    "--exit-status/--no-exit-status", "as_job", default=True, help="Exit as the jobs did (default)."
)
@options
@click.pass_obj
def wait_command(here: Surroundings, jids: tuple[str, ...], timeout: str | None, as_job: bool) -> int:
    """Wait until jobs have ended; exits as the job did, of several with the highest status.

    Ctrl-C stops the waiting, never the jobs.
    """
    client = here.client(LONG_PATIENCE_SECS)
    try:
        jobs = list(_ended(client, [resolve(client, jid) for jid in jids], timeout))
    except TimeoutError as exc:
        tell(here, Trouble("timeout", str(exc), "it goes on; wait for it again"))
        return EXIT_TEMPORARY
    except KeyboardInterrupt:
        click.echo("\nthe jobs go on; `sirepo-jobs cancel` ends one", err=True)
        return EXIT_INTERRUPTED
    if here.json:
        render.values(here.output, (job.raw for job in jobs))
    else:
        for job in jobs:
            print(render.safe(" ".join(filter(None, (job.jid, job.state, _exit_text(job), job.reason)))))
    return max(map(exit_status, jobs)) if as_job else 0


def _ended(client: Client, jids: Iterable[str], timeout: str | None) -> Iterable[Job]:
    from time import monotonic

    from sirepo_jobs.resources import parse_secs

    deadline = monotonic() + parse_secs(timeout) if timeout is not None else None
    for jid in jids:
        yield client.wait(jid, timeout=None if deadline is None else max(0.0, deadline - monotonic()))


def summary(job: Job, now: datetime) -> list[tuple[str, str]]:
    """The pairs of `show`, in reading order; what is not known is empty."""
    spec = job.spec or {}
    fault = f" (fault: {job.fault})" if job.fault else ""
    usage = job.usage or {}
    return [
        ("job", job.jid),
        ("name", job.name),
        ("command", shlex.join(map(str, spec.get("command", ())))),
        ("state", job.state),
        ("reason", f"{job.reason}{fault}" if job.reason else ""),
        ("situation", job.situation),
        ("exit", _exit_text(job)),
        ("attempt", str(job.attempt) if job.attempt else ""),
        ("progress", _progress_text(job)),
        ("user", job.user),
        ("driver", job.driver),
        ("agent", job.agent or ""),
        ("image", f"{spec.get('image') or 'default'}, {job.image_id}" if job.image_id else ""),
        ("queue", f"{job.queue}, priority {job.priority}" if job.queue else ""),
        ("tags", ", ".join(f"{name}={value}" for name, value in job.tags.items())),
        ("created", render.instant(job.created_at)),
        ("started", render.instant(job.started_at)),
        ("ended", render.instant(job.ended_at)),
        ("waited", _span(job.created_at, job.started_at or job.ended_at or now)),
        ("ran", _span(job.started_at, job.ended_at or now) if job.started_at else ""),
        ("cpu time", _cpu_text(usage)),
        ("memory", format_bytes(usage["max_rss"]) + " at most" if usage.get("max_rss") else ""),
        ("container", _container_text(usage)),
        ("disk", _disk_text(usage)),
        ("run dir", job.run_dir or ""),
    ]


def _container_text(usage: dict[str, float]) -> str:
    peak, received, sent = (
        int(usage.get(name, 0)) for name in ("container_memory", "received_bytes", "sent_bytes")
    )
    network = f", {format_bytes(received)} received, {format_bytes(sent)} sent" if received or sent else ""
    return f"{format_bytes(peak)} of memory at most{network}" if peak else network.removeprefix(", ")


def _disk_text(usage: dict[str, float]) -> str:
    read, written = int(usage.get("read_bytes", 0)), int(usage.get("written_bytes", 0))
    return f"{format_bytes(read)} read, {format_bytes(written)} written" if read or written else ""


def _cpu_text(usage: dict[str, float]) -> str:
    if not usage:
        return ""
    user, system = usage.get("user_secs", 0.0), usage.get("system_secs", 0.0)
    return f"{format_secs(user + system)} ({format_secs(user)} user, {format_secs(system)} system)"


def _progress_text(job: Job) -> str:
    if not job.progress:
        return ""
    rest = ", ".join(f"{k}={v}" for k, v in job.progress.items() if k != "percent_complete")
    percent = f"{job.percent:.0f}%" if job.percent is not None else ""
    return "  ".join(filter(None, (percent, rest)))


def _exit_text(job: Job) -> str:
    if job.signal is not None:
        import signal

        try:
            return f"signal {job.signal} ({signal.Signals(job.signal).name})"
        except ValueError:
            return f"signal {job.signal}"
    return f"exit {job.exit_code}" if job.exit_code is not None else ""


def _span(start: datetime | None, end: datetime | None) -> str:
    if start is None or end is None:
        return "-"
    secs = max((end - start).total_seconds(), 0.0)
    return f"{secs:.1f}s" if secs < 60 else format_secs(secs)
