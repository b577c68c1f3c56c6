"""A fence of the kernel around each attempt: so many processes and threads, and not one more (F050).

Pens are cgroups with the `pids` controller of version 1, the only ones into which a thread can step for the
price of one write. A process is born where its parent stands; so a spawner steps into a pen before a birth
and stays there until one needs another pen. Where there are no such cgroups, or they are not ours to make,
there are no pens, and attempts are only counted (crowd.py).
"""

import errno
import os
import signal
from contextlib import suppress
from typing import Final

from sirepo_jobs.agents import process

_ROOT: Final = "/sys/fs/cgroup/pids"
_PREFIX: Final = "sirepo_jobs-"
_NEVER: Final = (errno.EACCES, errno.EPERM, errno.EROFS)


class Pen:
    """One fence. It holds no descriptor: there may be thousands, and most stand for hours."""

    def __init__(self, path: str) -> None:
        os.mkdir(path, 0o700)
        self.path = path
        self.limit = 0
        #: The spawner itself stands in it.
        self.holds_spawner = False

    def enter(self, limit: int) -> None:
        """What this process starts from now on is inside, and has room for so many. Raises `OSError`."""
        if limit != self.limit:
            # One more for the spawner itself, which stands in it for a while; `count` leaves it out.
            _write(f"{self.path}/pids.max", b"%d" % (limit + 1))
            self.limit = limit
        if not self.holds_spawner:
            _write(f"{self.path}/tasks", b"0")
            self.holds_spawner = True

    def count(self) -> int:
        """Processes and threads of the attempt in it now; zombies too."""
        with suppress(OSError, ValueError), open(f"{self.path}/pids.current", "rb") as file:  # noqa: PTH123
            return int(file.read()) - self.holds_spawner
        return 0

    def kill(self) -> None:
        """Nobody in it can fork any more, and KILL to each."""
        with suppress(OSError):
            _write(f"{self.path}/pids.max", b"0")
        self.limit = 0
        own = os.getpid()
        for pid in self._pids():
            if pid != own:
                self._kill(pid)

    def _kill(self, pid: int) -> None:
        with suppress(OSError):
            fd = os.pidfd_open(pid)
            try:
                # A pid that was read proves nothing; one that is held, and is still in here, does (I20).
                if process.cgroup_of(pid, "pids") == self.path.removeprefix(_ROOT):
                    signal.pidfd_send_signal(fd, signal.SIGKILL)
            finally:
                os.close(fd)

    def _pids(self) -> list[int]:
        with suppress(OSError), open(f"{self.path}/cgroup.procs", "rb") as file:  # noqa: PTH123
            return [int(line) for line in file]
        return []


class Pens:
    """The pens of one spawner. Those of spawners that were killed are cleared away, whose ever they were."""

    def __init__(self, agent: str) -> None:
        self._free: list[Pen] = []
        #: Where this process stands.
        self._at: Pen | None = None
        self._made = 0
        above = process.cgroup_of(os.getpid(), "pids")
        self._home = "" if above is None else f"{_ROOT}{above.rstrip('/')}"
        self._prefix = f"{_PREFIX}{agent}-"
        #: Whether pens can be made here, as far as is known.
        self._possible = bool(self._home) and os.access(f"{self._home}/tasks", os.W_OK)
        if self._possible:
            self._clear()

    def enter(self, limit: int | None) -> Pen | None:
        """Stand in an empty pen; in none, and None, where there is none or no limit.

        Raises `OSError` where the pen of the attempt before cannot be left: what began now would end with it.
        """
        if limit is not None and self._possible:
            try:
                pen = self._free.pop() if self._free else self._make()
                pen.enter(limit)
            except OSError as exc:
                # One that was used before may have been taken away; what is never ours to make stays so.
                self._possible = exc.errno not in _NEVER
            else:
                self._stand_in(pen)
                return pen
        self._leave()
        return None

    def empty(self, pen: Pen) -> None:
        """Everybody who was born in it is gone."""
        self._free.append(pen)

    def close(self) -> None:
        """Take all of them down, as far as nobody stands in them."""
        with suppress(OSError):
            self._leave()
        for number in range(1, self._made + 1):
            with suppress(OSError):  # somebody stands in it
                os.rmdir(self._path(os.getpid(), number))

    def _make(self) -> Pen:
        self._made += 1
        return Pen(self._path(os.getpid(), self._made))

    def _path(self, pid: int, number: int) -> str:
        return f"{self._home}/{self._prefix}{pid}-{number}"

    def _leave(self) -> None:
        if self._at is not None:
            _write(f"{self._home}/tasks", b"0")
            self._stand_in(None)

    def _stand_in(self, pen: Pen | None) -> None:
        if self._at is not None and self._at is not pen:
            self._at.holds_spawner = False
        self._at = pen

    def _clear(self) -> None:
        with suppress(OSError):
            for name in os.listdir(self._home):
                words = name.rsplit("-", 2)
                if name.startswith(_PREFIX) and len(words) == 3 and not os.path.exists(f"/proc/{words[1]}"):
                    with suppress(OSError):  # somebody stands in it
                        os.rmdir(f"{self._home}/{name}")


def _write(path: str, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)
