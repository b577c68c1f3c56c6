"""What is replaced by a model while a world runs, in one place: clocks, dice, the kernel, files, the network.

Everything else is the code that users run.
"""

import os
import random
import select
import signal  # noqa: F401 - the models look constants up in the real modules
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

from sirepo_jobs import agent_claim, agent_line, agent_pool, agent_talk, leases, renewals, silence, supervisor
from sirepo_jobs import tasks as tasks_module
from sirepo_jobs.agents import (
    agent,
    birth,
    child,
    crew,
    desk,
    exit_file,
    journal,
    launcher,
    nursery,
    progress,
    readings,
    recovery,
    spawner,
)
from sirepo_jobs.errors import Unavailable
from tests.sim import agents as agents_model
from tests.sim.host import Proc
from tests.sim.syscalls import Os, Poll, Process, Signal, pair
from tests.sim.world import EPOCH_SECS, World

_REAL = SimpleNamespace(
    time_ns=time.time_ns, monotonic=time.monotonic, time=time.time, sleep=time.sleep, urandom=os.urandom,
    random=random.random,
)  # fmt: skip

#: Rooms of the supervisor whose logs nobody reads here.
_TALKATIVE = (agent_claim, agent_line, agent_pool, agent_talk, leases, renewals, silence, supervisor)


class _Silence:
    """A log that nobody reads."""

    def info(self, *_: Any, **__: Any) -> None: ...

    debug = warning = error = critical = exception = info


class _RunFiles:
    """`run_tree.RunFiles`, whose security is tested elsewhere."""

    def __init__(self, run_root: str) -> None:
        self._root = run_root

    def busy(self, _run_dir: str) -> Any:
        return nullcontext()

    def open(self, run_dir: str, name: str) -> int:
        fd: int = _world.os.open(f"{self._root}/{run_dir}/{name}", os.O_RDONLY)
        return fd


class _TaskLog:
    """Says of a background task that crashed."""

    def exception(self, _event: str, **words: Any) -> None:
        import sys

        exc = sys.exc_info()[1]
        if isinstance(exc, Unavailable):
            return  # the store did not answer; the task is started again
        _world.note("crashed", "task", words.get("task", ""), f"{type(exc).__name__}: {exc}")
        if _world.current is not None:
            _world.current.last_words = exc


_world: Any = None


def _no_sleep(secs: float) -> None:
    assert secs <= 0, f"something sleeps for {secs} s and stops the world"


@contextmanager
def inside(world: World) -> Iterator[None]:
    """Run code of ours in that world."""
    global _world
    before = _world
    _world = world
    agents_model.enter(world)
    the_os, the_signal, the_process = Os(world), Signal(world), Process(world)
    world.os = the_os  # type: ignore[attr-defined]
    the_select = SimpleNamespace(
        poll=lambda: Poll(world), POLLIN=select.POLLIN, POLLOUT=select.POLLOUT, POLLHUP=select.POLLHUP
    )
    the_socket = SimpleNamespace(socketpair=lambda: pair(world, world.current))
    changes: list[tuple[Any, str, Any]] = [
        *((room, "os", the_os) for room in (
            birth, child, crew, desk, exit_file, journal, launcher, nursery, progress, readings, recovery,
            spawner)),
        *((room, "process", the_process) for room in (crew, desk, nursery, recovery, spawner)),
        *((room, "signal", the_signal) for room in (child, launcher, spawner, nursery, recovery)),
        *((room, "select", the_select) for room in (launcher, spawner)),
        *((room, "socket", the_socket) for room in (launcher, spawner)),
        # which signals this process ignores is none of the world's business
        (birth, "signal", SimpleNamespace(valid_signals=tuple, SIG_IGN=None)),
        (birth, "marks_work", lambda: True),
        (birth, "set_mark", the_process.set_mark),
        (agent, "WatchedFiles", _RunFiles),
        (agent, "_log", lambda text: world.log(world.current, text)),
        *((room, "_log", _Silence()) for room in _TALKATIVE),
        (tasks_module, "_log", _TaskLog()),
        (time, "time_ns", lambda: _time_ns(world)),
        (time, "time", lambda: _time_ns(world) / 1e9),
        (time, "monotonic", lambda: world.now),
        (time, "clock_gettime", lambda _clock: world.now),
        (time, "sleep", _no_sleep),
        (child, "oom", SimpleNamespace(kills=lambda: 0)),
        # so little that it is used up, and that its end is met, in each world
        (journal, "AHEAD_BYTES", 1500),
        (os, "urandom", world.random_bytes),
        (random, "random", world.random),
        *agents_model.REPLACED,
    ]  # fmt: skip
    saved = [(room, name, getattr(room, name)) for room, name, _ in changes]
    for room, name, model in changes:
        setattr(room, name, model)
    try:
        yield
    finally:
        for room, name, real in saved:
            setattr(room, name, real)
        _world = before


def _time_ns(world: World) -> int:
    proc: Proc | None = world.current
    if proc is None:
        return int((EPOCH_SECS + world.now) * 1e9)
    return proc.host.time_ns()
