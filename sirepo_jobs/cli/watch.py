"""`watch`: what the jobs do, live; a table on a terminal, a line for each event elsewhere."""

import contextlib
import os
import select
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from . import render
from .jobs import FIRST_TO_GO, row_of
from .surroundings import LONG_PATIENCE_SECS, Surroundings, options
from .trouble import EXIT_INTERRUPTED

if TYPE_CHECKING:
    from sirepo_jobs.client import Client, Job

#: The table is made anew when something happened, but not more often; and now and then in any case,
#: since ages and reasons of waiting change without an event.
_MIN_SECS = 0.3
_MAX_SECS = 2.0
_COLUMNS = ("JID", "NAME", "STATE", "WHY", "AGE", "TIME", "PROGRESS")


@click.command("watch")
@click.option("--all", "-a", "everything", is_flag=True, help="Also jobs that have ended.")
@options
@click.pass_obj
def watch_command(here: Surroundings, everything: bool) -> int:
    """Show jobs as they change, until Ctrl-C or q; the jobs do not mind."""
    client = here.client(LONG_PATIENCE_SECS)
    try:
        if here.json or not (sys.stdout.isatty() and os.environ.get("TERM", "") not in ("", "dumb")):
            _lines(here, client)
        else:
            _table(client, "" if everything else "active")
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return 0


def _lines(here: Surroundings, client: "Client") -> None:
    for event in client.events():
        if here.json:
            fields = {"seq": event.seq, "jid": event.jid, "kind": event.kind, "state": event.state}
            render.value(here.output, fields | {"at": event.at.isoformat() if event.at else None})
        else:
            words = (render.instant(event.at), event.jid, event.kind, event.state)
            print(render.safe("  ".join(words)), flush=True)


def _table(client: "Client", states: str) -> None:
    from rich.console import Console
    from rich.live import Live

    news = threading.Event()
    threading.Thread(target=_listen, args=(client, news), daemon=True).start()
    console = Console(highlight=False)
    with _keys() as keys, Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            room = max(console.size.height - 3, 1)
            jobs = list(client.jobs(state=states, limit=room + 1))
            live.update(_shown(jobs, room, console.size.width), refresh=True)
            news.clear()
            if _pressed(keys, _MIN_SECS) or _quiet(keys, news):
                return


def _listen(client: "Client", news: threading.Event) -> None:
    from sirepo_jobs.errors import Error

    with contextlib.suppress(Error):  # the table is made anew without it, only later
        for _ in client.events():
            news.set()


def _quiet(keys: int | None, news: threading.Event) -> bool:
    """Wait for an event, or long enough; True when somebody wants to leave."""
    waited = 0.0
    while waited < _MAX_SECS and not news.is_set():
        if _pressed(keys, 0.1):
            return True
        waited += 0.1
    return False


def _pressed(keys: int | None, secs: float) -> bool:
    if keys is None:
        threading.Event().wait(secs)
        return False
    ready, _, _ = select.select([keys], [], [], secs)
    return bool(ready) and os.read(keys, 64)[:1] in (b"q", b"Q", b"")


@contextlib.contextmanager
def _keys() -> Iterator[int | None]:
    """Keys one by one and unseen, while a terminal is there to press them on."""
    if not sys.stdin.isatty():
        yield None
        return
    import termios
    import tty

    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    tty.setcbreak(fd)
    try:
        yield fd
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


def _shown(jobs: "list[Job]", room: int, width: int) -> Any:
    from rich.console import Group
    from rich.text import Text

    now = datetime.now(UTC)
    cells = [[render.safe(cell) for cell in row_of(job, now)] for job in jobs[:room]]
    table, _ = render.fitted(_COLUMNS, cells, width, FIRST_TO_GO)
    more = " or more; the newest are shown" if len(jobs) > room else ""
    foot = f"{min(len(jobs), room)} jobs{more} · {render.instant(now)} · q leaves"
    return Group(table, Text(foot[:width], style="dim"))
