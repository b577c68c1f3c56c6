"""Files of a run dir, opened so that nothing a job does to names leads out of it (S30)."""

import os
import stat
from typing import Final

_DIR: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Refused(Exception):
    """This is no regular file below the run root; the message says why."""


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
        parts = run_dir.split("/")
        if run_dir.startswith("/") or "\0" in run_dir or any(part in ("", ".", "..") for part in parts):
            raise Refused(f"run_dir={run_dir!r} is not a plain relative path")
        if self._root < 0:
            # The root itself is the administrator's word; it may be a link.
            self._root = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        at = self._root
        try:
            for part in parts:
                below = os.open(part, _DIR, dir_fd=at)
                if at != self._root:
                    os.close(at)
                at = below
            fd = os.open(name, _FILE, dir_fd=at)
        except FileNotFoundError:
            raise
        except OSError as exc:
            raise Refused(f"{run_dir}/{name}: {exc.strerror}") from exc
        finally:
            if at != self._root:
                os.close(at)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise Refused(f"{run_dir}/{name} is not a regular file")
        return fd
