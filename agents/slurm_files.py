"""Files on the file system that the login node and the compute nodes share.

In a run dir:     job.json     what to run, written before sbatch
                  claim/       who runs it: owner.json inside; `beat` is touched while it lives, `paused` is
                               there while its processes are stopped
                  exit.json    how it ended (exit_file)
                  slurm.json   for people: which Slurm job it is
In the home:      slurm/TOKEN/ one submission: batch.json, state.json, what Slurm's script said
                  slurm/bells/ one empty file for each thing that happened, so that one look tells all news
"""

import os
import uuid
from contextlib import suppress
from typing import Final, TypeVar

import msgspec
from msgspec import Struct

from sirepo_jobs.agents.words import Spawn

#: A payload that lives touches its beat so often.
BEATS_SECS: Final = 5.0
CLAIM: Final = "claim"
JOB: Final = "job.json"
_MAX_BYTES: Final = 4 << 20
_Kind = TypeVar("_Kind", bound=Struct)


class Owner(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Who has the claim. It is in place before the claim is."""

    #: Empty for an agent that took it so that the attempt never begins.
    slurm_id: str = ""
    #: Of this very process: a requeued job has the same id.
    nonce: str
    host: str = ""
    pid: int = 0
    #: Microseconds.
    at: int = 0


class BatchFile(Struct, frozen=True, kw_only=True):
    """`batch.json`: what the Slurm job of this token runs."""

    token: str
    #: For each task of the array, the run dirs that it works off one after the other, below the run root.
    tasks: list[list[str]]
    run_root: str
    bells: str
    #: The version of the bundle that it starts from (`bundles.py`).
    bundle: str = ""


class BatchState(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`state.json`: how far its submission is."""

    #: sbatch may have been run.
    asked: bool = False
    slurm_id: str = ""


class SlurmJob(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`slurm.json` of a run dir."""

    token: str
    slurm_id: str = ""


_encode = msgspec.json.Encoder().encode


def claim(run_path: str, owner: Owner) -> bool:
    """Take the claim, unless somebody has it; whether it is ours now (C2).

    A directory with the owner inside is renamed into place: it is never seen without its owner, and one that
    is there is never replaced, because it is not empty. When the answer is lost on its way from a file
    server, the owner tells.
    """
    made = f"{run_path}/.claim-{owner.nonce}"
    os.makedirs(made, 0o700, exist_ok=True)
    write(f"{made}/owner.json", _encode(owner))
    try:
        os.rename(made, f"{run_path}/{CLAIM}")
    except OSError:
        found = owner_of(run_path)
        for name in ("owner.json",):
            with suppress(OSError):
                os.unlink(f"{made}/{name}")
        with suppress(OSError):
            os.rmdir(made)
        if found is None:
            raise
        return found.nonce == owner.nonce
    return True


def owner_of(run_path: str) -> Owner | None:
    """Who has the claim; None while nobody has it."""
    return _read(f"{run_path}/{CLAIM}/owner.json", Owner)


def new_nonce() -> str:
    """A word that no other process has."""
    return uuid.uuid4().hex


def beat(run_path: str) -> None:
    """Give a sign of life."""
    path = f"{run_path}/{CLAIM}/beat"
    try:
        os.utime(path)
    except FileNotFoundError:
        with suppress(OSError):
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
    except OSError:
        pass


def last_beat(run_path: str) -> int:
    """Changes with every sign of life; the clock of another machine, so only good for comparing."""
    try:
        return os.stat(f"{run_path}/{CLAIM}/beat").st_mtime_ns
    except OSError:
        return 0


def pause(run_path: str, *, on: bool) -> None:
    """Say that the processes are stopped, or that they go on."""
    path = f"{run_path}/{CLAIM}/paused"
    with suppress(OSError):
        if on:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
        else:
            os.unlink(path)


def is_paused(run_path: str) -> bool:
    """Whether they are, by the payload's own word."""
    return os.path.exists(f"{run_path}/{CLAIM}/paused")


def ring(bells: str, name: str) -> None:
    """Leave word that something happened; whoever misses it finds out later by himself."""
    with suppress(OSError):
        os.close(os.open(f"{bells}/{name}", os.O_WRONLY | os.O_CREAT, 0o600))


def bell(jid: str, attempt: int, what: str) -> str:
    """The name of a bell."""
    return f"{jid}.{attempt}.{what}"


def read_job(run_path: str) -> Spawn | None:
    """What is to be run."""
    return _read(f"{run_path}/{JOB}", Spawn)


def read_batch(path: str) -> BatchFile | None:
    """A submission."""
    return _read(path, BatchFile)


def read_state(directory: str) -> BatchState:
    """How far a submission is; a file that is missing or cannot be read says that it may have been asked."""
    found = _read(f"{directory}/state.json", BatchState)
    return BatchState(asked=True) if found is None else found


def put(path: str, content: Struct, *, sync: bool = False) -> None:
    """Put a file in place whole, or raise `OSError` and leave nothing."""
    part = f"{path}.part"
    try:
        write(part, _encode(content), sync=sync)
        os.rename(part, path)
    except OSError:
        with suppress(OSError):
            os.unlink(part)
        raise
    if sync:
        fd = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def write(path: str, data: bytes, *, sync: bool = False) -> None:
    """Write a file of our own. Raises `OSError`."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(fd, rest) :]
        if sync:
            os.fsync(fd)
    finally:
        os.close(fd)


def _read(path: str, kind: type[_Kind]) -> _Kind | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return msgspec.json.decode(os.read(fd, _MAX_BYTES), type=kind)
    except (OSError, ValueError, RecursionError):
        return None
    finally:
        os.close(fd)
