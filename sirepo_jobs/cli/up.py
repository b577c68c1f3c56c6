"""`up` and `down`: supervisor and front end together."""

import asyncio
import functools
import os
import select
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from sirepo_jobs import rootdir
from sirepo_jobs.errors import Conflict, Error, Unavailable

from .children import Child
from .serve import setting_options
from .surroundings import Surroundings, options

_READY_SECS = 60.0
_FRONTEND_END_SECS = 10.0
_SUPERVISOR_END_SECS = 60.0


@click.command("up")
@setting_options
@options
@click.pass_obj
def up_command(here: Surroundings, /, **flags: Any) -> int:
    """Start the service in the foreground, everything included.

    Prints `listening on URL` when it is ready. Ctrl-C or TERM ends it and leaves agents and jobs
    running; the next `up` on the same root finds them. A second Ctrl-C is less patient.
    """
    settings = here.settings(**flags).settings
    rootdir.prepare(settings.root)
    pid_file = rootdir.PidFile(settings.root / rootdir.UP_PID)
    pid_file.hold()
    try:
        return asyncio.run(_up(settings.root, settings.port, _arguments(here, flags)))
    finally:
        pid_file.release()


def _arguments(here: Surroundings, flags: dict[str, Any]) -> list[str]:
    """What the children must be told that they do not find in the environment or in files."""
    names = {"local_cpus": "cpus", "agent_idle_secs": "agent-idle", "heartbeat_secs": "heartbeat"}
    words = [
        f"--{names.get(name, name.replace('_', '-'))}" + ("" if value is True else f"={value}")
        for name, value in flags.items()
        if value is not None and name != "port"
    ]
    if here.config:
        words.append(f"--config={rootdir.absolute(here.config)}")
    return words


def _command(kind: str, root: Path, words: Sequence[str]) -> list[str]:
    # -P: a file named like a module in the working directory is none of ours.
    return [
        *(sys.executable, "-P", "-m", "sirepo_jobs.cli", kind),
        *(f"--root={root}", f"--under={os.getpid()}", *words),
    ]


async def _up(root: Path, port: int, words: Sequence[str]) -> int:
    loop = asyncio.get_running_loop()
    asked = asyncio.Event()
    supervisor = Child(
        "supervisor", _command("supervisor", root, words), functools.partial(_supervisor_ready, root)
    )
    frontend = Child(
        "front end",
        _command("frontend", root, [*words, f"--port={port}"]),
        functools.partial(_frontend_ready, root),
    )

    def stop() -> None:
        if asked.is_set():  # said twice: less patient
            frontend.kill()
            supervisor.kill()
        asked.set()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, stop)
    try:
        if not await _start(supervisor, frontend, asked):
            return 0
        listening = rootdir.read_listening(root)
        assert listening is not None
        # Started again, it takes the same port: clients have been told.
        frontend.command[-1] = f"--port={listening.url.rpartition(':')[2]}"
        print(f"listening on {listening.url}", flush=True)
        await asked.wait()
        return 0
    finally:
        await frontend.stop(_FRONTEND_END_SECS)
        await supervisor.stop(_SUPERVISOR_END_SECS)


async def _start(supervisor: Child, frontend: Child, asked: asyncio.Event) -> bool:
    """Start both at once; False when somebody does not want them any more. Raises `NotStarted`."""
    starts = {asyncio.create_task(child.start(_READY_SECS)) for child in (supervisor, frontend)}
    enough = asyncio.create_task(asked.wait())
    try:
        while starts and not asked.is_set():
            done, _ = await asyncio.wait({*starts, enough}, return_when=asyncio.FIRST_COMPLETED)
            for start in done & starts:
                starts.discard(start)
                start.result()
    finally:
        for task in (*starts, enough):
            task.cancel()
        await asyncio.gather(*starts, enough, return_exceptions=True)
    return not asked.is_set()


async def _supervisor_ready(root: Path, pid: int) -> bool:
    from . import door

    if rootdir.running_pid(root / rootdir.SUPERVISOR_PID) != pid:
        return False

    try:
        await asyncio.to_thread(door.ask, root, "GET", "/readyz", secs=2.0)
    except Error:
        return False
    return True


async def _frontend_ready(root: Path, pid: int) -> bool:
    listening = rootdir.read_listening(root)
    return listening is not None and listening.pid == pid


@click.command("down")
@click.option("--stop-agents", is_flag=True, help="Also end the agents, and with them the running jobs.")
@options
@click.pass_obj
def down_command(here: Surroundings, /, stop_agents: bool) -> int:
    """End the service that `up` started; jobs go on unless --stop-agents is given.

    An agent that cannot be ended is named, with the reason, and the exit status is 1.
    """
    root = here.root_path()
    left: dict[str, str] = {}
    if stop_agents:
        from . import door

        try:
            left = door.ask(root, "POST", "/api/v1/agents/stop", secs=120.0).get("left", {})
        except Unavailable as exc:
            raise Unavailable(
                f"{exc}; only a running supervisor can stop agents: start it with `up`", code=exc.code
            ) from None
    ended = [
        name for name in (rootdir.UP_PID, rootdir.FRONTEND_PID, rootdir.SUPERVISOR_PID) if _end(root / name)
    ]
    if not here.json:
        print(f"ended the service on {root}" if ended else f"nothing is running on {root}")
    for name, why in left.items():
        print(f"agent {name} could not be ended: {why}", file=sys.stderr)
    return 1 if left else 0


def _end(pid_file: Path) -> bool:
    """TERM the writer of a pid file and wait until it is gone; False when there is none."""
    pid = rootdir.running_pid(pid_file)
    if pid is None:
        return False
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        # Looked at again with the process in hand: numbers are used again, this one is not.
        if rootdir.running_pid(pid_file) != pid:
            return False
        signal.pidfd_send_signal(handle, signal.SIGTERM)
        secs = _FRONTEND_END_SECS + _SUPERVISOR_END_SECS + 5
        if not select.select([handle], [], [], secs)[0]:
            raise Conflict(f"pid {pid} does not end; look at its log", code="does_not_end")
    finally:
        os.close(handle)
    return True
