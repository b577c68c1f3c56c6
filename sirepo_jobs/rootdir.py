"""The root directory as the processes share it: names of the files, and how each comes into being.

Everything secret is created with its final mode and its full content in one step (S45): a reader
finds the whole file or none. Only the standard library, so that plain client commands stay quick.
"""

import fcntl
import json
import os
import re
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from sirepo_jobs.errors import BadInput, Conflict

SOCKET = "supervisor.sock"
#: Where agents in containers call; the only thing in its directory.
AGENT_SOCKET = "door/agents.sock"
SECRET = "secret"  # noqa: S105 (a file name)
TOKEN = "token"  # noqa: S105
FRONTEND = "frontend.json"
FRONTEND_PID = "frontend.pid"
SUPERVISOR_PID = "supervisor.pid"
UP_PID = "up.pid"

#: Whoever only looks at a pid file has it for an instant, or on a busy machine until it has its turn again.
_HOLD_TRIES = 50
_HOLD_PAUSE_SECS = 0.02
_TOKEN = re.compile(r"[A-Za-z0-9_-]{32,200}")


class Listening(NamedTuple):
    """What a front end says of itself in `frontend.json`."""

    url: str
    pid: int


def default_root(environ: Mapping[str, str]) -> Path:
    """`$SIREPO_JOBS_ROOT`, else `$XDG_STATE_HOME/sirepo-jobs`, else `~/.local/state/sirepo-jobs`."""
    if root := environ.get("SIREPO_JOBS_ROOT"):
        return absolute(root)
    # The XDG standard says that a relative path is to be ignored.
    state = environ.get("XDG_STATE_HOME", "")
    return absolute(state if state.startswith("/") else "~/.local/state") / "sirepo-jobs"


def absolute(path: str | Path) -> Path:
    """The path without `~` and not depending on the working directory; links stay as they are."""
    return Path(os.path.abspath(Path(path).expanduser()))


def prepare(root: Path) -> None:
    """Make the root directory, closed to other users. Raises `BadInput` when that cannot be."""
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as exc:
        raise BadInput(f"root {root} cannot be made: {exc.strerror}; name another with --root") from None
    if not os.access(root, os.W_OK | os.X_OK):
        raise BadInput(f"root {root} is not writable for this user; name another with --root")


def ensure_token(root: Path) -> str:
    """The starter's own token; made at the first call, the same for everybody who asks later."""
    path = root / TOKEN
    if not path.exists():
        _create(path, secrets.token_urlsafe(32).encode() + b"\n")
    return read_token(path, own=True)


def read_token(path: Path, *, own: bool = False) -> str:
    """The token in a file; with `own`, the file must be closed to other users.

    Raises `BadInput` that says what is wrong with the file, never what is in it.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            text = file.read(4096).decode("ascii", "replace").strip()
    except OSError as exc:
        raise BadInput(f"token file {path}: {exc.strerror}", code="no_token") from None
    if own and mode & 0o077:
        raise BadInput(f"token file {path} is open to other users; run: chmod 600 {path}", code="bad_token")
    if not _TOKEN.fullmatch(text):
        raise BadInput(f"token file {path} holds no token", code="bad_token")
    return text


def read_listening(root: Path) -> Listening | None:
    """Where the front end of this root listens, or did when it last ran; None before the first time."""
    try:
        said = json.loads((root / FRONTEND).read_bytes())
        return Listening(str(said["url"]), int(said["pid"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_listening(root: Path, listening: Listening) -> None:
    """Say where we listen; readers see the old file or the new one, never half of it."""
    replace_file(root / FRONTEND, json.dumps(listening._asdict()).encode() + b"\n")


def replace_file(path: Path, data: bytes) -> None:
    """Put `data` at `path`, 0600, in one step."""
    made = _write_beside(path, data)
    made.replace(path)


def _create(path: Path, data: bytes) -> None:
    """Put `data` at `path` unless something is there: the link is the step that may lose the race."""
    made = _write_beside(path, data)
    try:
        path.hardlink_to(made)
    except FileExistsError:
        pass  # somebody was quicker; theirs counts
    finally:
        made.unlink()


def _write_beside(path: Path, data: bytes) -> Path:
    made = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    fd = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with open(fd, "wb") as file:  # noqa: PTH123 (a descriptor)
        file.write(data)
        file.flush()
        os.fsync(fd)
    return made


class PidFile:
    """A pid file that is locked as long as its writer lives: a pid in an unlocked one means nothing.

    The lock, not the number, is the proof: numbers are used again.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = -1

    def hold(self) -> None:
        """Write our pid. Raises `Conflict`, naming the holder, when another process has it."""
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        for tries_left in reversed(range(_HOLD_TRIES)):
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if tries_left:
                    time.sleep(_HOLD_PAUSE_SECS)
                    continue
                holder = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
                os.close(fd)
                raise Conflict(
                    f"{self._path.stem} already runs on {self._path.parent} (pid {holder or 'unknown'})"
                ) from None
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        self._fd = fd

    def release(self) -> None:
        """Remove the file; safe to repeat."""
        if self._fd >= 0:
            self._path.unlink(missing_ok=True)
            os.close(self._fd)
            self._fd = -1


def running_pid(path: Path) -> int | None:
    """The pid in a pid file whose writer is alive, else None."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        text = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
        return int(text) if text.isdecimal() else None
    else:
        return None
    finally:
        os.close(fd)
