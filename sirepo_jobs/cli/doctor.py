"""`doctor`: looks at everything that commonly goes wrong, and says what to do."""

import asyncio
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import click

from sirepo_jobs import rootdir
from sirepo_jobs.driver import Examines
from sirepo_jobs.errors import Error, NotFound
from sirepo_jobs.resources import format_bytes

from . import render
from .surroundings import Surroundings, options

_LOW_DISK_BYTES = 1 << 30
_MODULES = ("tornado", "msgspec", "sqlalchemy", "alembic", "urllib3", "psutil", "websockets", "pykern")


class Finding(NamedTuple):
    """What one check found."""

    check: str
    ok: bool
    detail: str
    #: What to do when it is not ok.
    hint: str = ""


@click.command("doctor")
@options
@click.pass_obj
def doctor_command(here: Surroundings) -> int:
    """Check the installation and the service; exits 1 when something is wrong."""
    findings = list(_findings(here))
    if here.json:
        rows = [finding._asdict() for finding in findings]
        render.values(here.output, rows)
    else:
        for finding in findings:
            print(f"{'ok  ' if finding.ok else 'FAIL'}  {finding.check}: {render.safe(finding.detail)}")
            if not finding.ok and finding.hint:
                print(f"      {render.safe(finding.hint)}")
    return 0 if all(finding.ok for finding in findings) else 1


def _findings(here: Surroundings) -> Iterator[Finding]:
    yield _python()
    yield _packages()
    yield _clock()
    for check in (_settings, _root, _disk, _token, _processes, _server, _agents):
        try:
            yield check(here)
        except Error as exc:
            yield Finding(check.__name__.strip("_"), False, str(exc), _HINTS.get(check, ""))
            if check is _server:
                break  # and so it cannot tell of agents
    yield from _drivers(here)


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    return Finding("python", sys.version_info >= (3, 11), version, "Python 3.11 or newer is needed")


def _packages() -> Finding:
    from importlib.util import find_spec

    missing = [name for name in _MODULES if find_spec(name) is None]
    said = f"missing: {', '.join(missing)}" if missing else f"all {len(_MODULES)} are there"
    return Finding("packages", not missing, said, "install sirepo_jobs again: pip install sirepo_jobs")


def _clock() -> Finding:
    now = time.time()
    return Finding(
        "clock",
        now > 1_750_000_000,
        time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(now)),
        "the clock of this machine is years behind: start its time service",
    )


def _settings(here: Surroundings) -> Finding:
    loaded = here.settings()
    given = sum(source != "default" for source in loaded.sources.values())
    return Finding("settings", True, f"{given} given, {len(loaded.sources) - given} at their defaults")


def _root(here: Surroundings) -> Finding:
    root = here.root_path()
    if not root.is_dir():
        return Finding(
            "root", False, f"{root} is not there", f"start the service: sirepo-jobs up --root {root}"
        )
    mode = root.stat().st_mode & 0o777
    if not os.access(root, os.R_OK | os.W_OK | os.X_OK):
        return Finding("root", False, f"{root} is not ours", "name another with --root")
    if mode & 0o022:
        return Finding("root", False, f"{root} can be written by others", f"run: chmod go-w {root}")
    return Finding("root", True, str(root))


def _disk(here: Surroundings) -> Finding:
    root = here.root_path()
    place = next(path for path in (root, *root.parents) if path.exists())
    usage = shutil.disk_usage(place)
    stat = os.statvfs(place)
    if stat.f_files and stat.f_favail < 1000:
        return Finding("disk", False, f"{stat.f_favail} inodes left", "remove files or run dirs of old jobs")
    return Finding(
        "disk",
        usage.free >= _LOW_DISK_BYTES,
        f"{format_bytes(usage.free)} of {format_bytes(usage.total)} free",
        "free some: the store and the output of jobs go there",
    )


def _token(here: Surroundings) -> Finding:
    path = rootdir.absolute(
        here.token_file or os.environ.get("SIREPO_JOBS_TOKEN_FILE") or here.root_path() / rootdir.TOKEN
    )
    rootdir.read_token(path, own=True)
    return Finding("token", True, str(path))


def _processes(here: Surroundings) -> Finding:
    root = here.root_path()
    names = {"up": rootdir.UP_PID, "supervisor": rootdir.SUPERVISOR_PID, "frontend": rootdir.FRONTEND_PID}
    pids = {name: rootdir.running_pid(root / file) for name, file in names.items()}
    said = ", ".join(f"{name} {pid}" if pid else f"no {name}" for name, pid in pids.items())
    remote = bool(here.url or os.environ.get("SIREPO_JOBS_URL"))
    ok = remote or bool(pids["supervisor"] and pids["frontend"])
    return Finding("processes", ok, said, f"start them: sirepo-jobs up --root {root}")


def _server(here: Surroundings) -> Finding:
    began = time.perf_counter()
    client = here.client(patience_secs=0)
    client.transport.call("GET", "/readyz")
    list(client.jobs(limit=1))
    took = (time.perf_counter() - began) * 1000
    return Finding("server", True, f"ready, knows our token, two requests in {took:.0f} ms")


def _agents(here: Surroundings) -> Finding:
    try:
        agents = here.client(patience_secs=0).transport.call("GET", "/api/v1/agents")["agents"]
    except NotFound:
        return Finding("agents", True, "this server does not tell")
    troubled = [agent for agent in agents if agent.get("trouble") or agent.get("state") == "unreachable"]
    if troubled:
        worst = troubled[0]
        return Finding(
            "agents",
            False,
            f"{worst.get('agent')} is {worst.get('state')}: {worst.get('trouble') or 'no connection'}",
            "look at the agent's log under agents/ in the root",
        )
    states = sorted({str(agent.get("state")) for agent in agents})
    return Finding("agents", True, f"{len(agents)} ({', '.join(states)})" if agents else "none needed yet")


def _drivers(here: Surroundings) -> Iterator[Finding]:
    """What the drivers themselves look at: engines, most of all. Only where the service is ours to read."""
    from sirepo_jobs import app

    try:
        drivers = app.load_drivers(here.settings().settings)
    except ImportError as exc:
        yield Finding(
            "drivers", False, str(exc), "install what it needs: pip install 'sirepo_jobs[docker,ssh]'"
        )
        return
    except Error as exc:
        yield Finding("drivers", False, str(exc), "mend the setting that it names")
        return
    known = _known_agents(here)
    for driver in drivers.values():
        if isinstance(driver, Examines):
            for found in asyncio.run(driver.examine(known)):
                yield Finding(*found)


def _known_agents(here: Surroundings) -> set[str] | None:
    """All agents of the service; None where we are not told of everybody's: nobody is to look left over."""
    transport = here.client(patience_secs=0).transport
    try:
        answer = transport.call("GET", "/api/v1/agents")
    except Error:
        return None
    return {str(agent.get("agent")) for agent in answer["agents"]} if answer.get("everybodys") else None


_HINTS: dict[Callable[[Surroundings], Finding], str] = {
    _settings: "mend the setting; `sirepo-jobs config show` names every source",
    _token: "`sirepo-jobs up` makes the token of a root at its first start",
    _server: "start it: sirepo-jobs up; or name the right one with --url or --root",
}
