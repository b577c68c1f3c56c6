"""`logs`: what a job wrote."""

from collections import deque
from collections.abc import Iterable
from typing import Literal

import click

from sirepo_jobs.client import Client, exit_status

from .complete import complete_jid
from .run import say_it_goes_on
from .screen import STDOUT, Screen
from .selectors import resolve
from .surroundings import LONG_PATIENCE_SECS, SHORT_PATIENCE_SECS, Surroundings, options
from .trouble import EXIT_INTERRUPTED


@click.command("logs")
@click.argument("jid", shell_complete=complete_jid)
@click.option("--follow", "-f", is_flag=True, help="Go on until the job has ended.")
@click.option("--stderr", "stderr", is_flag=True, help="Show stderr instead of stdout.")
@click.option("--tail", "-n", type=click.IntRange(min=0), metavar="N", help="Begin with the last N lines.")
@click.option("--attempt", type=click.IntRange(min=1), metavar="N", help="Of this attempt; else the newest.")
@click.option("--exit-status", "as_job", is_flag=True, help="With -f: exit as the job did.")
@options
@click.pass_obj
def logs_command(
    here: Surroundings,
    jid: str,
    follow: bool,
    stderr: bool,
    tail: int | None,
    attempt: int | None,
    as_job: bool,
) -> int:
    """Print a job's output, byte for byte. Ctrl-C stops the printing, never the job."""
    client = here.client(LONG_PATIENCE_SECS if follow else SHORT_PATIENCE_SECS)
    jid = resolve(client, jid)
    screen = Screen(status=False)
    stream: Literal["stdout", "stderr"] = "stderr" if stderr else "stdout"
    try:
        offset = 0
        if tail is not None:
            so_far = client.logs(jid, stream, attempt=attempt)
            screen.write(STDOUT, last_lines(so_far, tail))
            offset, attempt = so_far.offset, so_far.attempt or attempt
        if follow or tail is None:
            for piece in client.logs(jid, stream, offset=offset, attempt=attempt, follow=follow):
                screen.write(STDOUT, piece)
        return exit_status(client.wait(jid)) if follow and as_job else 0
    except KeyboardInterrupt:
        if follow and _goes_on(client, jid):
            say_it_goes_on(jid)
        return EXIT_INTERRUPTED


def _goes_on(client: Client, jid: str) -> bool:
    client.transport.patience_secs = 0
    return not client.get(jid).ended


def last_lines(pieces: Iterable[bytes], count: int) -> bytes:
    """The last `count` lines; keeps no more in memory than them and one piece.

    >>> last_lines([b"a\\nb", b"b\\nc"], 2)
    b'bb\\nc'
    """
    lines: deque[bytes] = deque(maxlen=count)
    rest = b""
    for piece in pieces:
        *whole, rest = (rest + piece).split(b"\n")
        lines.extend(line + b"\n" for line in whole)
    if rest and count:
        lines.append(rest)
    return b"".join(lines)
