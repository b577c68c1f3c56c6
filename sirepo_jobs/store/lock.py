"""One supervisor per database (C13): an flock beside a SQLite file.

The lock dies with its holder, so nothing stale is ever left to be removed; the words in the file are
for the one who is refused. It lies beside the file that the path leads to, so another path or a
symbolic link meets the same lock.
"""

import fcntl
import os
import socket
import time
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from msgspec import Struct

from sirepo_jobs.errors import StoreError, StoreLocked

#: The holder writes its name right after it got the lock; so long does the refused one wait for it.
_NAME_SECS = 0.5


class Holder(Struct, frozen=True, kw_only=True):
    """Who has the store open."""

    pid: int
    host: str
    since: str

    @classmethod
    def me(cls) -> "Holder":
        """This process, now."""
        return cls(
            pid=os.getpid(), host=socket.gethostname(), since=datetime.now(UTC).isoformat(timespec="seconds")
        )

    def __str__(self) -> str:
        return f"pid {self.pid} on {self.host} since {self.since}"


class FileLock:
    """The right to use one SQLite database."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd: int | None = None

    def acquire(self) -> None:
        """Take it at once or raise `StoreLocked` with the holder's name."""
        try:
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as exc:
            raise StoreError(f"the lock {self._path} cannot be opened: {exc.strerror}") from exc
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = self._read_holder(fd)
            os.close(fd)
            raise locked(
                str(self._path.with_suffix("")), str(holder or "a process that gave no name")
            ) from None
        except OSError as exc:
            os.close(fd)
            raise StoreError(
                f"{self._path} cannot be locked ({exc.strerror}); keep the database on a local disk"
            ) from exc
        self._fd = fd
        self._write(msgspec.json.encode(Holder.me()) + b"\n")

    def release(self) -> None:
        """Let the next one in; safe to repeat."""
        if self._fd is not None:
            self._write(b"")
            os.close(self._fd)
            self._fd = None

    def _write(self, words: bytes) -> None:
        assert self._fd is not None
        try:
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, words, 0)
        except OSError:
            # A full disk must not keep anybody from opening or closing the store.
            pass

    def _read_holder(self, fd: int) -> Holder | None:
        deadline = time.monotonic() + _NAME_SECS
        while True:
            try:
                return msgspec.json.decode(os.pread(fd, 4096, 0), type=Holder)
            except msgspec.DecodeError:
                if time.monotonic() > deadline:
                    return None
                time.sleep(0.01)


def locked(what: str, holder: str) -> StoreLocked:
    """The refusal, in the same words for every kind of database."""
    return StoreLocked(
        f"another supervisor works on {what}: {holder}. Stop that one first, or use another root"
    )
