"""One agent for a home, on the login node on which it was started last (SIR-62, F141).

A home on a shared file system may be found from several nodes, and locks of files need not reach from one
to the other. So the launcher's file names its node; who starts on another one asks for the home by a file,
and waits until the launcher there has left, or has been silent for long. A launcher leaves as soon as it
sees that file, or that another one stands in its place. Jobs in Slurm do not notice.
"""

import os
import time
from contextlib import suppress
from typing import Final

import msgspec
from msgspec import Struct

#: How often a launcher looks whether somebody else wants its home, and says that it lives.
LOOK_SECS: Final = 1.0
BEAT_SECS: Final = 10.0
#: Who has not said so for so long does not live any more.
SILENT_SECS: Final = 60.0
FILE: Final = "handover"


class _Owner(Struct):
    node: str = ""
    pid: int = 0


def node() -> str:
    """The name of this node."""
    return os.uname().nodename


def elsewhere(home: str) -> str | None:
    """The other node on which this home's launcher was started; None when there is none."""
    owner = _owner(home)
    return owner.node if owner is not None and owner.node not in ("", node()) else None


def take(home: str) -> None:
    """Ask for the home; returns when the launcher on the other node has left it, or is dead."""
    asked = f"{home}/{FILE}"
    with open(asked, "w") as file:  # noqa: PTH123 - pathlib costs its import
        file.write(node())
    try:
        seen, since = _beat(home), time.monotonic()
        while seen is not None and time.monotonic() - since < SILENT_SECS:
            time.sleep(0.1)
            if (beat := _beat(home)) != seen:
                seen, since = beat, time.monotonic()
    finally:
        with suppress(FileNotFoundError):
            os.unlink(asked)


def is_ours(home: str) -> bool:
    """Whether the home's launcher is this process."""
    owner = _owner(home)
    return owner is not None and (owner.node, owner.pid) == (node(), os.getpid())


class Watch:
    """A launcher's eye on its home."""

    def __init__(self, home: str) -> None:
        self._home = home
        self.due = time.monotonic() + LOOK_SECS
        self._beat_at = self.due

    def must_leave(self, now: float) -> bool:
        """Look, and say that we live; whether somebody else has, or wants, the home."""
        self.due = now + LOOK_SECS
        try:
            with open(f"{self._home}/{FILE}") as file:  # noqa: PTH123
                if file.read() not in ("", node()):
                    return True
        except OSError:
            pass
        if self._beat_at <= now:
            self._beat_at = now + BEAT_SECS
            owner = _owner(self._home)
            if owner is not None and not is_ours(self._home):
                return True
            with suppress(OSError):
                os.utime(f"{self._home}/launcher.json")
        return False


def _owner(home: str) -> _Owner | None:
    try:
        with open(f"{home}/launcher.json", "rb") as file:  # noqa: PTH123
            return msgspec.json.decode(file.read(), type=_Owner)
    except (OSError, ValueError, RecursionError):
        return None


def _beat(home: str) -> int | None:
    try:
        return os.stat(f"{home}/launcher.json").st_mtime_ns
    except OSError:
        return None
