"""Facts about processes, from /proc and the kernel: who lives, since when, carrying which mark.

A process is (boot id, pid, start time); a bare pid proves nothing, because pids are used again (I20).
"""

import ctypes
import os
import random
import resource
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

# Not in this Python's `resource`, or `prctl` at all; numbers of the Linux ABI, equal on all
# architectures that we run on.
RLIMIT_RTTIME: Final = 15
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_DUMPABLE: Final = 4
_PR_SET_NAME: Final = 15
_PR_SET_CHILD_SUBREAPER: Final = 36
_PR_SET_NO_NEW_PRIVS: Final = 38

#: Every mark is at least this: a limit in microseconds that no process ever reaches.
MARK_BASE: Final = 1 << 52
#: Name of the second witness, in the environment of jobs.
MARK_ENV: Final = "SIREPO_JOBS_MARK"

_libc = ctypes.CDLL(None, use_errno=True)
# Marks are no secrets; only the launcher makes them, so forks do not repeat them.
_random = random.Random(os.urandom(16))


class Stat(NamedTuple):
    """A few fields of /proc/PID/stat."""

    state: str
    parent: int
    session: int
    start: int
    threads: int = 1


def stat_of(pid: int) -> Stat | None:
    """What the kernel says about `pid`; None when there is no such process."""
    try:
        text = _read(f"/proc/{pid}/stat")
    except OSError:
        return None
    fields = text[text.rindex(b")") + 2 :].split()
    return Stat(fields[0].decode(), int(fields[1]), int(fields[3]), int(fields[19]), int(fields[17]))


def alive(pid: int, start: int) -> bool:
    """Whether this very process still runs. A zombie does not."""
    stat = stat_of(pid)
    return stat is not None and stat.start == start and stat.state not in "ZX"


def is_child(pid: int) -> bool:
    """Whether it is a child of this process that nobody has waited for."""
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def started_mono(pid: int) -> float:
    """When it was started, by the monotonic clock; now, if it is gone."""
    now = time.monotonic()
    stat = stat_of(pid)
    if stat is None:
        return now
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - stat.start / os.sysconf("SC_CLK_TCK")
    return now - max(age, 0.0)


def boot_secs() -> float:
    """The clock of leases: it goes on while the host is suspended, and nobody can set it (C15)."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def boot_id() -> str:
    """Changes with every boot of the host."""
    return _read("/proc/sys/kernel/random/boot_id").decode().strip()


def new_mark() -> int:
    """A number that names the processes of one attempt."""
    return MARK_BASE + _random.getrandbits(48)


def set_mark(mark: int | None) -> None:
    """Give this process, and so whatever it starts from now on, a mark; None takes it away.

    The mark is the soft limit RLIMIT_RTTIME: every descendant inherits it through fork, exec, setsid
    and a cleared environment, and anybody may read it. It limits nothing: it is 142 years or more.
    """
    soft = resource.RLIM_INFINITY if mark is None else mark
    resource.setrlimit(RLIMIT_RTTIME, (soft, resource.RLIM_INFINITY))


def marks_work() -> bool:
    """Whether this host lets us set marks; else only the environment witnesses."""
    return resource.getrlimit(RLIMIT_RTTIME)[1] == resource.RLIM_INFINITY


def mark_of(pid: int) -> int | None:
    """The mark that a process carries; None when it carries none, or is gone or a zombie."""
    try:
        text = _read(f"/proc/{pid}/limits")
    except OSError:
        return None
    at = text.find(b"Max realtime timeout")
    if at >= 0:
        word = text[at + 20 :].split(None, 1)[0]
        if word.isdigit() and int(word) >= MARK_BASE:
            return int(word)
    return None


def env_marks_of(pid: int) -> list[int]:
    """The marks in the environment that a process was started with, outermost first."""
    try:
        text = _read(f"/proc/{pid}/environ")
    except OSError:
        return []
    prefix = MARK_ENV.encode() + b"="
    for entry in text.split(b"\0"):
        if entry.startswith(prefix):
            return [int(word) for word in entry[len(prefix) :].split(b":") if word.isdigit()]
    return []


def every_pid() -> Iterator[int]:
    """All processes that this one can see."""
    for name in os.listdir("/proc"):
        if name.isdigit():
            yield int(name)


def marked_with(marks: set[int]) -> dict[int, int]:
    """Living processes that carry one of `marks`: pid -> mark."""
    found = {}
    own = os.getpid()
    for pid in every_pid():
        if pid == own:
            continue
        mark = mark_of(pid)
        if mark not in marks:
            mark = next((m for m in env_marks_of(pid) if m in marks), None)
        if mark is None:
            continue
        stat = stat_of(pid)
        if stat is not None and stat.state not in "ZX":
            found[pid] = mark
    return found


def cgroup_of(pid: int, controller: str) -> str | None:
    """Its cgroup in that controller's hierarchy of version 1, as seen from here; None where there is none."""
    with suppress(OSError, UnicodeDecodeError):
        for line in _read(f"/proc/{pid}/cgroup").decode().splitlines():
            _, names, path = line.split(":", 2)
            if controller in names.split(","):
                return path
    return None


def leave_room() -> None:
    """Of the processes that this user may have, some are for those who did not call this: our own (F050).

    Root has no such limit.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NPROC)
    most = int(_read("/proc/sys/kernel/pid_max"))
    room = min(limit for limit in (soft, hard, most) if limit != resource.RLIM_INFINITY)
    resource.setrlimit(resource.RLIMIT_NPROC, (room - room // 8, room - room // 8))


def become_reaper() -> None:
    """Let orphaned descendants become children of this process."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def refuse_privileges() -> None:
    """No program started from here on gains rights by being set-user-id (S43)."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def hide_memory(on: bool = True) -> None:
    """SECURITY: processes of the same user cannot read our memory, where the token is (S43).

    While hidden, our own files in /proc belong to root.
    """
    _prctl(_PR_SET_DUMPABLE, 0 if on else 1)


def die_with_parent() -> None:
    """KILL for this process as soon as its parent is gone."""
    _prctl(_PR_SET_PDEATHSIG, 9)


def set_name(name: str) -> None:
    """What `ps` and `top` show."""
    buffer = ctypes.create_string_buffer(name.encode()[:15])
    _libc.prctl(_PR_SET_NAME, buffer, 0, 0, 0)


def prefer_for_oom(score: int) -> None:
    """When memory runs out, the kernel shall take the jobs, not us (F031). They inherit this."""
    hide_memory(False)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(score), encoding="ascii")


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"prctl({option}, {value}): {os.strerror(code)}")


def _read(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY)
    try:
        data = os.read(fd, 1 << 16)
        if len(data) == 1 << 16:  # only environments grow so long
            while more := os.read(fd, 1 << 16):
                data += more
        return data
    finally:
        os.close(fd)
