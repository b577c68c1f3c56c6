"""How an attempt becomes a process: its directory, its files, its environment, its program.

The directory is the fence (C2): whoever makes it starts the attempt, whoever finds it made never does.
"""

import errno
import os
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Final

from sirepo_jobs import failpoints
from sirepo_jobs.agents import exit_file
from sirepo_jobs.agents.child import Child
from sirepo_jobs.agents.process import MARK_ENV, marks_work, set_mark
from sirepo_jobs.agents.words import Over, Spawn
from sirepo_jobs.reasons import Reason

#: What jobs see of the agent's own environment, besides `pass_env` (S43).
PASSED: Final = ("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR")
DEFAULT_PATH: Final = "/usr/local/bin:/usr/bin:/bin"

_FULL: Final = (errno.ENOSPC, errno.EDQUOT)
_BUSY: Final = (errno.EAGAIN, errno.ENOMEM)
_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_MAX_LOOKUPS: Final = 1000


class Busy(Exception):
    """The host cannot make a process just now; nothing is left of the try."""


class Births:
    """Starts attempts below one run root. Changes the working directory of this process."""

    def __init__(
        self,
        run_root: str,
        environ: Mapping[str, str],
        pass_env: list[str],
        env: Mapping[str, str] | None = None,
    ) -> None:
        self._root = run_root
        self._below = f"{run_root}/"
        self._base = {
            name: value
            for name, value in environ.items()
            if name in PASSED or name.startswith("LC_") or name in pass_env
        }
        self._base |= env or {}
        self._base.setdefault("PATH", DEFAULT_PATH)
        self._base.setdefault("PYTHONUNBUFFERED", "1")
        # An agent that is itself a job of another agent: both marks must be found.
        outer = environ.get(MARK_ENV)
        self._mark_prefix = f"{outer}:" if outer else ""
        self._marks = marks_work()
        self._null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        self._found: dict[tuple[str, str], str] = {}
        # Python ignores some signals, and what is ignored stays ignored through exec.
        self._ignored = [
            number for number in signal.valid_signals() if signal.getsignal(number) == signal.SIG_IGN
        ]

    def path_of(self, run_dir: str) -> str:
        """Where a run dir lies."""
        return self._below + run_dir

    def start(self, spawn: Spawn) -> Child | Over:
        """The process, or why there is none. Raises `Busy`, after which it may be tried again."""
        path = self.path_of(spawn.run_dir)
        if not path.startswith(self._below) or "/../" in f"{path}/" or "\0" in path:
            return never(spawn, Reason.START_FAILED, f"run_dir={spawn.run_dir!r} is not below the run root")
        try:
            made = _make_dir(path)
        except OSError as exc:
            return _never(spawn, exc)
        if not made:
            return _begun_before(spawn, path)
        failpoints.hit("birth.dir_made")
        return self.begin(spawn, path)

    def begin(self, spawn: Spawn, path: str) -> Child | Over:
        """The same in a run dir that is there, for whoever holds its fence already."""
        opened: list[int] = []
        try:
            os.chdir(path)
            opened.append(os.open("stdout", _NEW, 0o600))
            opened.append(os.open("stderr", _NEW, 0o600))
        except OSError as exc:
            _undo(path, opened)
            return _never(spawn, exc)
        failpoints.hit("birth.files_made")
        return self._spawn(spawn, path, opened)

    def _spawn(self, spawn: Spawn, path: str, opened: list[int]) -> Child | Over:
        out, err = opened
        env = self._environment(spawn, path)
        name = spawn.command[0] if spawn.command else ""
        search = env.get("PATH", DEFAULT_PATH)
        at = time.time_ns() // 1000
        try:
            program = self._look_up(name, search)
            if self._marks:
                set_mark(spawn.mark)
            try:
                pid = os.posix_spawn(
                    program,
                    spawn.command,
                    env,
                    file_actions=(
                        (os.POSIX_SPAWN_DUP2, self._null, 0),
                        (os.POSIX_SPAWN_DUP2, out, 1),
                        (os.POSIX_SPAWN_DUP2, err, 2),
                    ),
                    setsid=True,
                    setsigmask=(),
                    setsigdef=self._ignored,
                )
            finally:
                # Or this process itself would look like part of the job.
                if self._marks:
                    set_mark(None)
        except (OSError, ValueError) as exc:
            if isinstance(exc, OSError) and exc.errno in _BUSY:
                _undo(path, opened)
                raise Busy(f"cannot make a process: {exc.strerror}") from exc
            os.close(out)
            os.close(err)
            self._found.pop((name, search), None)
            over = _not_executable(spawn, exc, name, search, at)
            exit_file.write(path, spawn, over)
            return over
        failpoints.hit("birth.spawned")
        return Child(spawn, pid, path, at, time.monotonic(), out, err)

    def _environment(self, spawn: Spawn, path: str) -> dict[str, str]:
        env = {
            **self._base,
            "OMP_NUM_THREADS": str(spawn.cpus),
            **spawn.env,
            "SIREPO_JOBS_JID": spawn.jid,
            "SIREPO_JOBS_SERIAL": str(spawn.serial),
            "SIREPO_JOBS_ATTEMPT": str(spawn.attempt),
            "SIREPO_JOBS_RUN_DIR": path,
            "SIREPO_JOBS_CPUS": str(spawn.cpus),
            MARK_ENV: f"{self._mark_prefix}{spawn.mark}",
        }
        if spawn.progress:
            env["SIREPO_JOBS_PROGRESS"] = f"{path}/progress.jsonl"
        if "OMP_NUM_THREADS" in self._base and "OMP_NUM_THREADS" not in spawn.env:
            env["OMP_NUM_THREADS"] = self._base["OMP_NUM_THREADS"]
        return env

    def _look_up(self, name: str, search: str) -> str:
        """The path of a program, found as a shell would, but in the job's own PATH. Raises `OSError`."""
        if "/" in name:
            return name
        if known := self._found.get((name, search)):
            return known
        error = errno.ENOENT
        for directory in search.split(":"):
            path = f"{directory or '.'}/{name}"
            try:
                usable = os.access(path, os.X_OK) and not os.path.isdir(path)
                exists = usable or os.path.exists(path)
            except ValueError:
                exists = usable = False
            if usable and name:
                if os.path.isabs(path):
                    if len(self._found) > _MAX_LOOKUPS:
                        self._found.clear()
                    self._found[name, search] = path
                return path
            if exists and name:
                error = errno.EACCES
        raise OSError(error, os.strerror(error), name)


def _make_dir(path: str) -> bool:
    """Make the attempt's directory, and those above it; False when it is there already."""
    above = path[: path.rindex("/")]
    try:
        try:
            # Of a first attempt this is new, and the common case shall be the short one. Each of them
            # is 0700: this process runs with umask 077.
            os.mkdir(above, 0o700)
        except FileExistsError:
            pass
        except FileNotFoundError:
            os.makedirs(above, 0o700, exist_ok=True)
        os.mkdir(path, 0o700)
    except FileExistsError:
        return False
    return True


def _undo(path: str, opened: list[int]) -> None:
    for fd in opened:
        os.close(fd)
    for name in ("stdout", "stderr"):
        with suppress(OSError):
            os.unlink(f"{path}/{name}")
    with suppress(OSError):
        os.rmdir(path)


def never(spawn: Spawn, reason: Reason | None, message: str, *, stopped: bool = False) -> Over:
    """The end of an attempt for which no process was made, and none will be."""
    return Over(
        ticket=spawn.ticket,
        at=time.time_ns() // 1000,
        reason=reason,
        message=message,
        stopped=stopped,
        began=False,
        proof="never_claimed",
    )


def unbegun(spawn: Spawn, reason: Reason | None) -> Over:
    """The same for one that was stopped in time; `reason` as in `Kill`."""
    if reason is None:
        return never(spawn, None, "canceled before it began", stopped=True)
    return never(spawn, Reason.DRAINING, "the agent is stopping")


def _never(spawn: Spawn, exc: OSError) -> Over:
    reason = Reason.DISK_FULL if exc.errno in _FULL else Reason.START_FAILED
    return never(spawn, reason, f"cannot make the run dir {spawn.run_dir}: {exc.strerror}")


def _begun_before(spawn: Spawn, path: str) -> Over:
    if found := exit_file.read(path, spawn.jid, spawn.attempt):
        return exit_file.as_over(found, spawn.ticket)
    return Over(
        ticket=spawn.ticket,
        at=time.time_ns() // 1000,
        reason=Reason.AGENT_LOST,
        message=f"the run dir {spawn.run_dir} exists without an exit record: it was begun before",
        proof="launcher_lost",
    )


def _not_executable(spawn: Spawn, exc: OSError | ValueError, name: str, search: str, at: int) -> Over:
    """The end of an attempt whose program the kernel refused."""
    code, reason = 126, Reason.COMMAND_NOT_EXECUTABLE
    number = exc.errno if isinstance(exc, OSError) else None
    here = name if "/" in name else (exc.filename if isinstance(exc, OSError) else name)
    path = here if isinstance(here, str) else name
    if number == errno.ENOENT and "\0" not in path and "/" in path and os.path.lexists(path):
        text = f"{name}: the interpreter in its first line, or its loader, does not exist"
    elif number in (errno.ENOENT, errno.ENOTDIR):
        code, reason = 127, Reason.COMMAND_NOT_FOUND
        text = f"{name or '(empty)'}: not found" + ("" if "/" in name else f" in PATH={search}")
    elif number == errno.EACCES and "/" in path and os.path.isdir(path):
        text = f"{name}: is a directory"
    elif number == errno.EACCES:
        text = f"{name}: no permission to execute it" + ("" if "/" in name else f" (PATH={search})")
    elif number == errno.ENOEXEC:
        text = f"{name}: not a program: neither a known binary format nor a first line with #!"
    elif number is not None:
        text = f"{name}: {os.strerror(number)}"
    else:
        text = f"{name}: {exc}"
    return Over(
        ticket=spawn.ticket,
        at=time.time_ns() // 1000,
        started_at=at,
        exit_code=code,
        reason=reason,
        message=text[:4096],
        proof="wait_status",
        stdout_bytes=0,
        stderr_bytes=0,
    )
