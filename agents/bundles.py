"""The bundles under one root: who needs which of them, and the end of the others.

Every version of the agent lies in a directory of its own in ROOT/bundles. It is needed by an agent that runs
from it and by each Slurm job that was submitted to start with it, however long that one waits. Both say so
in files: `launcher.json` in an agent's home, `batch.json` of a submission. Whoever does not say it may need
any of them: then nothing is removed.
"""

import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

import msgspec
from msgspec import Struct

from sirepo_jobs.agents import handover, process

#: What an upload or a removal that broke off has left is removed when it is so old.
LEFT_SECS: Final = 86400.0
_MAX_BYTES: Final = 16 << 20


class _User(Struct):
    """What `launcher.json` and `batch.json` have in common, and what tells whether a launcher lives."""

    bundle: str = ""
    node: str = ""
    pid: int = 0
    start: int = 0
    boot_id: str = ""

    @property
    def is_dead(self) -> bool:
        """A launcher of this node that is no more; of other nodes nobody here can tell."""
        if not self.pid or self.node != handover.node():
            return False
        return self.boot_id != process.boot_id() or not process.alive(self.pid, self.start)


def own() -> str:
    """The version of the bundle that this program runs from; "" outside of one."""
    top = __file__
    for _ in range(4):  # packages/sirepo_jobs/agents/bundles.py
        top = os.path.dirname(top)
    return os.path.basename(top) if os.path.isfile(f"{top}/bin/agent") else ""


def root_of(home: str) -> str:
    """ROOT, of an agent's home ROOT/agents/ID."""
    return os.path.dirname(os.path.dirname(home))


@contextmanager
def kept(root: str) -> Iterator[None]:
    """While an agent starts and has not said yet from which bundle, none is removed."""
    lock = _lock(root, fcntl.LOCK_SH)
    try:
        yield
    finally:
        if lock is not None:
            os.close(lock)


def tidy(root: str) -> list[str]:
    """Remove the versions that nobody needs, but this program's own and the newest of the others.

    What was removed, by name. Another one that is at it, or an agent that starts, comes first: then it is
    done another time.
    """
    top, mine = f"{root}/bundles", own()
    lock = _lock(root, fcntl.LOCK_EX | fcntl.LOCK_NB)
    if lock is None or not mine:
        return []
    try:
        gone = _without_need(root, mine)
        for name in gone:
            # first out of the way as a whole: half a version would be taken for one
            os.rename(f"{top}/{name}", f"{top}/.gone-{name}")
    finally:
        os.close(lock)
    for name in gone:
        shutil.rmtree(f"{top}/.gone-{name}", ignore_errors=True)
    _sweep(top)
    return gone


def _without_need(root: str, mine: str) -> list[str]:
    needed = _needed(root)
    if needed is None:
        return []
    with os.scandir(f"{root}/bundles") as entries:
        found = [one for one in entries if not one.name.startswith(".") and one.is_dir(follow_symlinks=False)]
    others = sorted(
        (one for one in found if one.name != mine), key=lambda one: one.stat().st_mtime_ns, reverse=True
    )
    return [one.name for one in others[1:] if one.name not in needed]


def _needed(root: str) -> set[str] | None:
    """What somebody runs from, or will; None when somebody does not say what."""
    found = set()
    for agent in _names(f"{root}/agents"):
        home = f"{root}/agents/{agent}"
        files = [f"{home}/slurm/{token}/batch.json" for token in _names(f"{home}/slurm")]
        for path in (f"{home}/launcher.json", *files):
            try:
                user = _read(path)
            except FileNotFoundError:
                continue
            except (OSError, ValueError, RecursionError):
                return None
            if user.is_dead:
                continue
            if not user.bundle:
                return None
            found.add(user.bundle)
    return found


def _names(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _read(path: str) -> _User:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return msgspec.json.decode(os.read(fd, _MAX_BYTES), type=_User)
    finally:
        os.close(fd)


def _sweep(top: str) -> None:
    """Halves of uploads, and of removals, that broke off long ago."""
    for name in _names(top):
        path = f"{top}/{name}"
        with suppress(OSError):
            if name.startswith(".") and name != ".lock" and os.lstat(path).st_mtime < time.time() - LEFT_SECS:
                if os.path.isdir(path) and not os.path.islink(path):
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    os.unlink(path)


def _lock(root: str, how: int) -> int | None:
    """None where there are no bundles, where somebody has it, or where files cannot be locked."""
    try:
        fd = os.open(f"{root}/bundles/.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError:
        return None
    try:
        fcntl.flock(fd, how)
    except OSError:
        os.close(fd)
        return None
    return fd
