"""Files of a run dir, opened so that nothing a job does to names leads out of it (S30).

Agents open them so, and the front end does where it is told of one on its own host (`OnDisk`).
"""

import errno
import hashlib
import os
import stat
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Final, NamedTuple
from urllib.parse import quote, unquote

import msgspec

#: A handle on whatever has the name, a link or a FIFO too: nothing is opened by it, nothing waits.
_HANDLE: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_WALK: Final = _HANDLE | os.O_DIRECTORY
_READ: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC

_KINDS: Final = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "link",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
}


class Refused(Exception):
    """This is not to be read; the message says why, `code` for programs."""

    def __init__(self, message: str, code: str = "not_regular") -> None:
        super().__init__(message)
        self.code = code


#: Whoever asks could not open an output of this agent just now.
CANNOT_OPEN: Final = "X-Cannot-Open-Files"
#: Whoever asks for an output can open it; what is answered then is lines with numbers: how far it reaches ...
OPENS_FILES: Final = "X-Opens-Files"
#: ... in this file.
ON_DISK: Final = "X-On-Disk"


class OnDisk(NamedTuple):
    """An output that another process of the agent's host may open, and where to begin in it."""

    run_root: str
    run_dir: str
    name: str
    offset: int
    #: Whatever else has that name is another file.
    device: int = 0
    inode: int = 0

    def to_header(self) -> str:
        """As the value of a header."""
        return quote(msgspec.json.encode(self))

    @classmethod
    def from_header(cls, value: str) -> "OnDisk":
        """Raises `Refused` for what `to_header` never makes."""
        try:
            return msgspec.json.decode(unquote(value), type=cls)
        except (msgspec.DecodeError, UnicodeError) as exc:
            raise Refused(f"{value[:200]!r} names no file: {exc}") from None

    def open(self) -> int:
        """A descriptor for reading. Raises `OSError` or `Refused`, also when it is another file."""
        files = RunFiles(self.run_root)
        try:
            fd = files.open(self.run_dir, self.name)
        finally:
            files.close()
        info = os.fstat(fd)
        if (info.st_dev, info.st_ino) != (self.device, self.inode):
            os.close(fd)
            raise Refused(f"{self.name} is not the file that the agent has open")
        return fd


class RunFiles:
    """Everything below one run root."""

    def __init__(self, run_root: str) -> None:
        self._path = run_root
        self._root = -1

    def open(self, run_dir: str, name: str) -> int:
        """A descriptor of the regular file `run_dir/name`, for reading.

        SECURITY: each component is opened below the one before and is never a symbolic link; a job that
        swaps names while we look cannot lead us elsewhere. Raises `FileNotFoundError` or `Refused`.
        """
        if "/" in name:
            raise Refused(f"{name!r} is not a plain name")
        top = self.run_dir(run_dir)
        try:
            return open_file(top, os.fsencode(name), owner=os.fstat(top).st_uid)
        finally:
            os.close(top)

    def busy(self, _run_dir: str) -> AbstractContextManager[None]:
        """Whoever looks at files of this run dir does so inside, for those who watch over such looks."""
        return nullcontext()

    def close(self) -> None:
        """Let go of the root; safe to repeat."""
        if self._root >= 0:
            os.close(self._root)
            self._root = -1

    def run_dir(self, run_dir: str) -> int:
        """A handle on a run dir. Raises as `open` does."""
        parts = run_dir.split("/")
        if run_dir.startswith("/") or "\0" in run_dir or any(part in ("", ".", "..") for part in parts):
            raise Refused(f"run_dir={run_dir!r} is not a plain relative path")
        if self._root < 0:
            # The root itself is the administrator's word; it may be a link.
            self._root = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        return walk(self._root, [os.fsencode(part) for part in parts])


def walk(top: int, parts: Sequence[bytes]) -> int:
    """A handle on the directory `parts` below `top`, never by way of a link.

    Raises as `RunFiles.open` does.
    """
    at = top
    try:
        for part in parts:
            below = _handle(part, _WALK, at)
            if at != top:
                os.close(at)
            at = below
    except BaseException:
        if at != top:
            os.close(at)
        raise
    return at if at != top else os.open(".", _WALK, dir_fd=top)


def open_file(at: int, name: bytes, *, owner: int) -> int:
    """A descriptor of the regular file `name` in the directory `at`, whose run dir belongs to `owner`."""
    handle = _handle(name, _HANDLE, at)
    try:
        check_regular(os.fstat(handle), name, owner)
        return _reopen(handle, _READ, name)
    finally:
        os.close(handle)


def open_directory(handle: int, name: bytes) -> int:
    """A descriptor for listing the directory of a handle."""
    return _reopen(handle, _READ | os.O_DIRECTORY, name)


def check_regular(info: os.stat_result, name: bytes, owner: int) -> None:
    """Raise `Refused` unless it is a regular file that is the job's to show."""
    shown = name.decode("utf-8", "replace")
    match kind_of(info):
        case "file":
            # SECURITY: a hard link to a file of somebody else may stand for any file of this disk.
            if info.st_nlink > 1 and info.st_uid != owner:
                raise Refused(f"{shown} is a hard link to a file of uid {info.st_uid}", "hard_link")
        case "directory":
            raise Refused(f"{shown} is a directory", "is_directory")
        case "link":
            raise Refused(f"{shown} is a symbolic link; links are not followed", "link")
        case kind:
            raise Refused(f"{shown} is not a regular file but a {kind}")


def kind_of(info: os.stat_result) -> str:
    """`file`, `directory`, `link`, `fifo`, `socket` or `device`."""
    return _KINDS.get(stat.S_IFMT(info.st_mode), "device")


def etag_of(info: os.stat_result) -> str:
    """Changes when the file is another one, or was written to."""
    words = f"{info.st_dev}:{info.st_ino}:{info.st_size}:{info.st_mtime_ns}"
    return hashlib.sha256(words.encode()).hexdigest()[:32]


def _handle(name: bytes, flags: int, at: int) -> int:
    try:
        return os.open(name, flags, dir_fd=at)
    except FileNotFoundError:
        raise
    except NotADirectoryError as exc:
        shown = name.decode("utf-8", "replace")
        with suppress(OSError):
            # Only for the sentence: the name may have been swapped since.
            if stat.S_ISLNK(os.lstat(name, dir_fd=at).st_mode):
                raise Refused(f"{shown} is a symbolic link; links are not followed", "link") from exc
        raise Refused(f"{shown} is not a directory", "not_directory") from exc
    except OSError as exc:
        raise _refused(exc, name) from exc


def _reopen(handle: int, flags: int, name: bytes) -> int:
    """Open exactly what the handle is on, whatever has its name by now."""
    try:
        return os.open(f"/proc/self/fd/{handle}", flags)
    except OSError as exc:
        raise _refused(exc, name) from exc


def _refused(exc: OSError, name: bytes) -> Refused:
    code = "unreadable" if exc.errno in (errno.EACCES, errno.EPERM) else "trouble"
    return Refused(f"{name.decode('utf-8', 'replace')}: {exc.strerror}", code)
