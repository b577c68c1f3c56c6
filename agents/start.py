"""The command that a driver runs: one launcher per home, started or found.

start   read an AgentSpec (JSON) on stdin, see to it that its launcher runs in the background, print
        `launcher.json`. Doing it twice finds the first.
run     the same in the foreground: for containers and service managers.
stop    read an AgentSpec on stdin; end its launcher and everything that it ever began, but nothing in Slurm.
tidy    read an AgentSpec on stdin; remove versions of the agent that nobody needs (bundles.py), print them.
reach   read an AgentSpec on stdin; see whether its URL answers from here, with a certificate that fits.
version print what this is, and do nothing.
relay   read a path on stdin; carry one caller of that unix socket over stdin and stdout (relay.py).
payload inside a Slurm job: see `payload.py`.
"""

import fcntl
import os
import select
import signal
import sys
import time
import traceback
from contextlib import suppress
from typing import Final, NoReturn

import msgspec
from msgspec import Struct

from sirepo_jobs import __version__
from sirepo_jobs.agents import bundles, handover, process, relay
from sirepo_jobs.agents.lane import Lane
from sirepo_jobs.driver import AgentSpec

VERBS: Final = ("start", "run", "stop", "tidy", "reach", "relay", "version", "payload")
#: How long `start` waits for a launcher that another `start` is just starting.
FIND_SECS: Final = 8.0
#: `stop` waits so long for the launcher to end its jobs, then does it itself.
STOP_SECS: Final = 6.0
#: A connection that takes longer is none.
REACH_SECS: Final = 10.0
MAX_LOG_BYTES: Final = 1 << 20


class LauncherFile(Struct, frozen=True, kw_only=True):
    """`launcher.json`: which process is the launcher of this home."""

    agent: str
    pid: int
    start: int
    boot_id: str
    install: str
    node: str = ""
    #: The version of the bundle that it runs from; "" for none.
    bundle: str = ""


def main(argv: list[str]) -> int:
    """Do one verb; the exit status."""
    if len(argv) != 1 or argv[0] not in VERBS:
        sys.stderr.write(f"usage: python -P -m sirepo_jobs.agents {'|'.join(VERBS)}\n{__doc__}")
        return 2
    if argv[0] == "version":
        sys.stdout.write(f"sirepo_jobs {__version__}, Python {sys.version.split()[0]}\n")
        return 0
    if argv[0] == "payload":
        from sirepo_jobs.agents import payload  # of no use to those who start agents

        return payload.main()
    if argv[0] == "relay":
        return relay.main()
    try:
        # In the foreground a line is enough: not every stdin of a container can be closed by its other side.
        said = sys.stdin.buffer.readline() if argv[0] == "run" else sys.stdin.buffer.read()
        spec = msgspec.json.decode(said, type=AgentSpec)
    except (ValueError, RecursionError) as exc:
        sys.stderr.write(f"stdin is no AgentSpec: {exc}\n")
        return 2
    if argv[0] == "reach":
        return _reach(spec)
    if argv[0] == "tidy":
        sys.stdout.write("".join(f"{name}\n" for name in bundles.tidy(bundles.root_of(spec.home))))
        return 0
    os.umask(0o077)
    os.makedirs(spec.home, 0o700, exist_ok=True)
    if argv[0] == "stop":
        return _stop(spec)
    if argv[0] == "run":
        return _run(spec)
    with bundles.kept(bundles.root_of(spec.home)):
        return _start(spec)


def _reach(spec: AgentSpec) -> int:
    """Whether an agent with this spec could call from here. The token is not shown to anybody."""
    from sirepo_jobs.agents import agent

    try:
        agent.reach(spec, REACH_SECS)
    except (OSError, ValueError) as exc:
        sys.stdout.write(f"{exc}\n")
        return 1
    return 0


def read_launcher_file(home: str) -> LauncherFile | None:
    """The launcher that lives in this home; None when none does."""
    try:
        with open(f"{home}/launcher.json", "rb") as file:  # noqa: PTH123 - pathlib costs its import
            found = msgspec.json.decode(file.read(), type=LauncherFile)
    except (OSError, ValueError, RecursionError):
        return None
    here = found.node in ("", handover.node()) and found.boot_id == process.boot_id()
    if here and process.alive(found.pid, found.start):
        return found
    return None


def _is_free(spec: AgentSpec) -> bool:
    """Whether no launcher of another node has the home; one whose jobs are Slurm's is asked to leave it."""
    other = handover.elsewhere(spec.home)
    if other is not None and spec.slurm is None:
        sys.stderr.write(
            f"its launcher is on {other}, with its processes; remove launcher.json if it is not\n"
        )
        return False
    if other is not None:
        handover.take(spec.home)
    return True


def _start(spec: AgentSpec) -> int:
    if not _is_free(spec):
        return 1
    deadline = time.monotonic() + FIND_SECS
    while (lock := _lock(spec.home)) is None:
        if (found := read_launcher_file(spec.home)) is not None:
            _print(found)
            return 0
        if time.monotonic() > deadline:
            sys.stderr.write(f"{spec.home}/lock is held, but no launcher.json tells by whom\n")
            return 1
        time.sleep(0.01)
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        _daemon(spec, lock, writer)
    os.close(writer)
    os.close(lock)
    answer = b""
    while data := os.read(reader, 65536):
        answer += data
    if not answer:
        sys.stderr.write(
            f"the launcher did not start; {spec.home}/launcher.log ends:\n{_log_tail(spec.home)}"
        )
        return 1
    sys.stdout.buffer.write(answer)
    sys.stdout.flush()
    return 0


def _log_tail(home: str) -> str:
    """What the launcher said last; it says no secrets."""
    with suppress(OSError), open(f"{home}/launcher.log", "rb") as file:  # noqa: PTH123
        file.seek(max(0, os.fstat(file.fileno()).st_size - 2000))
        return file.read().decode(errors="replace")
    return ""


def _run(spec: AgentSpec) -> int:
    lock = _lock(spec.home)
    if lock is None:
        sys.stderr.write(f"{spec.home}/lock is held: this agent runs already\n")
        return 1
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    _launch(spec, lock, None)
    return 0


def _lock(home: str) -> int | None:
    """Hold the home; None when somebody else does."""
    fd = os.open(f"{home}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd


def _daemon(spec: AgentSpec, lock: int, writer: int) -> NoReturn:
    """Be the launcher, in the background: own session, nothing inherited but the lock and `writer`."""
    code = 1
    try:
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        log = os.open(f"{spec.home}/launcher.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        if os.fstat(log).st_size > MAX_LOG_BYTES:
            os.ftruncate(log, 0)
        for fd, target in ((null, 0), (null, 1), (log, 2)):
            os.dup2(fd, target)
        for name in os.listdir("/proc/self/fd"):
            if int(name) > 2 and int(name) not in (lock, writer):
                with suppress(OSError):
                    os.close(int(name))
        _launch(spec, lock, writer)
        code = 0
    except BaseException:  # noqa: BLE001 - the edge of a process: say it and end
        traceback.print_exc()
    finally:
        os._exit(code)


def _launch(spec: AgentSpec, lock: int, writer: int | None) -> None:
    """Hold the lock and be the launcher until it is over. Tells `writer`, or stdout, once it is one."""
    os.umask(0o077)
    os.chdir(spec.home)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGCHLD, signal.SIGUSR1):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    process.set_name("sj-launcher")
    process.become_reaper()
    # SECURITY: in a container the jobs are of the same user, and may read everything here but memory.
    told = msgspec.structs.replace(spec, token="") if os.getpid() == 1 else spec
    _replace(f"{spec.home}/agent.json", msgspec.json.encode(told))

    # Imported here, so that finding a launcher stays quick.
    from sirepo_jobs.agents import launcher

    the_launcher = launcher.Launcher(spec, _network_side, lock)
    stat = process.stat_of(os.getpid())
    assert stat is not None
    answer = msgspec.json.encode(
        LauncherFile(
            agent=spec.agent,
            pid=os.getpid(),
            start=stat.start,
            boot_id=process.boot_id(),
            install=the_launcher.install,
            node=handover.node(),
            bundle=bundles.own(),
        )
    )
    _replace(f"{spec.home}/launcher.json", answer)
    process.hide_memory()
    if writer is None:
        sys.stdout.buffer.write(answer + b"\n")
        sys.stdout.flush()
    else:
        os.write(writer, answer + b"\n")
        os.close(writer)
    the_launcher.run()
    if handover.is_ours(spec.home):
        os.unlink(f"{spec.home}/launcher.json")


def _network_side(spec: AgentSpec, lane: Lane) -> None:
    # Imported in the child alone: the launcher stays small and has no asyncio.
    from sirepo_jobs.agents import agent

    agent.main(spec, lane)


def _stop(spec: AgentSpec) -> int:
    """End the launcher, kindly and then not, and then whatever carries a mark of its journal."""
    if not _is_free(spec):
        return 1
    found = read_launcher_file(spec.home)
    if found is not None:
        with suppress(ProcessLookupError):
            _end(found.pid, found.start)
    deadline = time.monotonic() + FIND_SECS
    while (lock := _lock(spec.home)) is None:
        if time.monotonic() > deadline:
            sys.stderr.write(f"{spec.home}/lock is held still\n")
            return 1
        time.sleep(0.01)

    from sirepo_jobs.agents import launcher

    launcher.Launcher(spec, _network_side, lock).settle()
    with suppress(FileNotFoundError):
        os.unlink(f"{spec.home}/launcher.json")
    os.close(lock)
    return 0


def _end(pid: int, start: int) -> None:
    fd = os.pidfd_open(pid)
    try:
        for number in (signal.SIGTERM, signal.SIGKILL):
            if not process.alive(pid, start):
                return
            signal.pidfd_send_signal(fd, number)
            if select.select([fd], [], [], STOP_SECS)[0]:
                return
    finally:
        os.close(fd)


def _replace(path: str, data: bytes) -> None:
    """Put a file in place whole; for its owner alone from the first moment."""
    part = f"{path}.part"
    with suppress(FileNotFoundError):
        os.unlink(part)
    fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, data)
        os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(part, path)


def _print(found: LauncherFile) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(found) + b"\n")
    sys.stdout.flush()
