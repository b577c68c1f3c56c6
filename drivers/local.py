"""Agents on this machine: a launcher process in the background, found again by pid, start time and boot."""

import asyncio
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

import sirepo_jobs
from sirepo_jobs.driver import AgentSpec, Environment, Fate, Handle
from sirepo_jobs.errors import LaunchError
from sirepo_jobs.resources import Resources

VERSION: Final = 1
#: What the launcher, and so every job, may see of our own environment.
PASSED: Final = ("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR", "PYTHONPATH")
#: After the grace: for a KILL to be felt, and for the clearing up of what the launcher left.
_KILL_SECS: Final = 10.0
#: Where a source tree has the package; None for an installed one, which every interpreter finds. The
#: agent keeps this from its jobs.
_ROOT: Final = Path(sirepo_jobs.__file__).parent.parent
_TREE: Final = None if _ROOT.name in ("site-packages", "dist-packages") else str(_ROOT)


class _Launcher(Struct, frozen=True, kw_only=True):
    """What `start` prints."""

    pid: int
    start: int
    boot_id: str


class LocalDriver:
    """Jobs as processes of this machine, run by the user that runs the supervisor."""

    name = "local"
    remote = False
    jobs_outlive_agent = True

    def __init__(
        self, *, cpus: int | None = None, memory: int | None = None, gpus: int = 0, launch_secs: float = 10.0
    ) -> None:
        self.capacity = Resources(
            cpus=cpus or len(os.sched_getaffinity(0)),
            memory=memory or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
            gpus=gpus,
            disk=1 << 60,
        )
        self.launch_secs = launch_secs

    async def launch(self, spec: AgentSpec) -> Handle:
        """Start the launcher, or find the one that lives in `spec.home`."""
        try:
            os.makedirs(spec.home, mode=0o700, exist_ok=True)
        except OSError as exc:
            raise LaunchError(f"agent {spec.agent}: {exc}", retry=False) from exc
        answer = await _agents("start", spec, self.launch_secs)
        try:
            found = msgspec.json.decode(answer, type=_Launcher)
        except (ValueError, RecursionError) as exc:
            raise LaunchError(f"the launcher's answer cannot be read: {answer[:200]!r}", retry=True) from exc
        return Handle(
            agent=spec.agent,
            driver=self.name,
            version=VERSION,
            data={
                "pid": found.pid,
                "start": found.start,
                "boot_id": found.boot_id,
                "home": spec.home,
                "run_root": spec.run_root,
            },
        )

    async def look(self, handle: Handle) -> Fate:
        """ALIVE or GONE from /proc; UNKNOWN for a handle that we cannot read."""
        try:
            pid, start, boot_id = int(handle.data["pid"]), int(handle.data["start"]), handle.data["boot_id"]
            if handle.driver != self.name or handle.version != VERSION:
                return Fate.UNKNOWN
            if boot_id != _boot_id():
                return Fate.GONE
            return Fate.ALIVE if _lives(pid, start) else Fate.GONE
        except (KeyError, ValueError, OSError):
            return Fate.UNKNOWN

    async def stop(self, handle: Handle, *, grace_secs: float) -> None:
        """TERM to the launcher, which ends its jobs; after the grace, KILL to everything of it."""
        fate = await self.look(handle)
        if fate is Fate.UNKNOWN:
            raise LaunchError(f"agent {handle.agent}: its handle cannot be read: {handle.data}", retry=False)
        pid, start = int(handle.data["pid"]), int(handle.data["start"])
        home = str(handle.data["home"])
        if fate is Fate.ALIVE:
            with suppress(ProcessLookupError):
                await _end(pid, start, grace_secs)
        if handle.data["boot_id"] == _boot_id() and not _ended_by_itself(home):
            spec = AgentSpec(
                agent=handle.agent,
                environment=Environment(driver=self.name, user=""),
                url="",
                token="",
                home=home,
                run_root=str(handle.data["run_root"]),
            )
            await _agents("stop", spec, _KILL_SECS + self.launch_secs)


async def _agents(verb: str, spec: AgentSpec, secs: float) -> bytes:
    """Do a verb of `sirepo_jobs.agents` in a process of its own; what it printed."""
    env = {name: value for name, value in os.environ.items() if name in PASSED or name.startswith("LC_")}
    env |= {name: os.environ[name] for name in spec.pass_env if name in os.environ}
    if _TREE is not None:
        env["PYTHONPATH"] = ":".join(filter(None, (_TREE, env.get("PYTHONPATH"))))
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            "-m",
            "sirepo_jobs.agents",
            verb,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd="/",
            env=env,
        )
    except OSError as exc:
        raise LaunchError(f"cannot start {sys.executable}: {exc.strerror}", retry=True) from exc
    try:
        async with asyncio.timeout(secs):
            out, err = await process.communicate(msgspec.json.encode(spec))
    except TimeoutError:
        raise LaunchError(f"agent {spec.agent}: {verb} took more than {secs:g} s", retry=True) from None
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if process.returncode != 0:
        tail = err.decode(errors="replace")[-500:].strip()
        raise LaunchError(f"agent {spec.agent}: {verb} ended with {process.returncode}: {tail}", retry=True)
    return out


async def _end(pid: int, start: int, grace_secs: float) -> None:
    """TERM, and KILL after the grace; returns when the process is gone."""
    fd = os.pidfd_open(pid)
    try:
        if not _lives(pid, start):
            return
        for number, secs in ((signal.SIGTERM, grace_secs), (signal.SIGKILL, _KILL_SECS)):
            signal.pidfd_send_signal(fd, number)
            if await _gone(fd, secs):
                return
        raise LaunchError(f"the launcher {pid} survives SIGKILL", retry=True)
    finally:
        os.close(fd)


async def _gone(fd: int, secs: float) -> bool:
    """Wait for the process behind a pidfd."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(fd, ended.set)
    try:
        async with asyncio.timeout(secs):
            await ended.wait()
    except TimeoutError:
        return False
    finally:
        loop.remove_reader(fd)
    return True


def _lives(pid: int, start: int) -> bool:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return False
    fields = text[text.rindex(")") + 2 :].split()
    return int(fields[19]) == start and fields[0] not in "ZX"


def _ended_by_itself(home: str) -> bool:
    """Whether its launcher took its leave; else something of it may live."""
    return not os.path.exists(f"{home}/launcher.json")


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
