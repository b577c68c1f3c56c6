"""`exit.json`, beside the outputs of an attempt: how it ended, for whoever comes later.

The launcher's journal is what is synced to disk; this file is the proof that stays when the launcher
is killed, and what people find in the run dir.
"""

import os
from contextlib import suppress
from typing import Final

import msgspec
from msgspec import Struct

from sirepo_jobs import failpoints
from sirepo_jobs.agents import words
from sirepo_jobs.job import Usage
from sirepo_jobs.reasons import Reason

NAME: Final = "exit.json"
#: A spec may have a megabyte, and its text may be escaped.
_MAX_BYTES: Final = 8 << 20
#: No number in it is larger: what nobody counts so far is no record of ours, and could not be passed on.
_MOST: Final = 1 << 53


class ExitFile(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Its content."""

    jid: str
    serial: int
    attempt: int
    started_at: int | None = None
    ended_at: int
    exit_code: int | None = None
    signal: int | None = None
    reason: Reason | None = None
    message: str = ""
    stopped: bool = False
    stdout_bytes: int | None = None
    stderr_bytes: int | None = None
    usage: Usage | None = None
    #: What was started, as it was submitted.
    spec: msgspec.Raw = msgspec.Raw(b"{}")


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(ExitFile).decode


def write(run_path: str, spawn: words.Spawn, over: words.Over) -> None:
    """Put it in place whole, or not at all; a full disk leaves nothing behind.

    What a killed writer has left of it is no JSON, so nobody believes it.
    """
    data = _encode(
        ExitFile(
            jid=spawn.jid,
            serial=spawn.serial,
            attempt=spawn.attempt,
            started_at=over.started_at,
            ended_at=over.at,
            exit_code=over.exit_code,
            signal=over.signal,
            reason=over.reason,
            message=over.message,
            stopped=over.stopped,
            stdout_bytes=over.stdout_bytes,
            stderr_bytes=over.stderr_bytes,
            usage=over.usage,
            spec=msgspec.Raw(spawn.spec),
        )
    )
    path = f"{run_path}/{NAME}"
    with suppress(OSError):
        try:
            _make(path, data)
        except FileExistsError:
            # the job's own, or what a killed writer left
            _replace(path, data)


def _make(path: str, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    whole = False
    try:
        try:
            failpoints.hit("exit_file.made")
            written = os.write(fd, data)
        finally:
            # A file server may say only now that it is full.
            os.close(fd)
        whole = written == len(data)
    finally:
        if not whole:
            os.unlink(path)
    failpoints.hit("exit_file.in_place")


def _replace(path: str, data: bytes) -> None:
    part = f"{path}.part"
    with suppress(OSError):
        os.unlink(part)
    _make(part, data)
    try:
        os.rename(part, path)
    except OSError:
        os.unlink(part)
        raise


def read(run_path: str, jid: str, attempt: int) -> ExitFile | None:
    """What stands there, if it is whole and speaks of this attempt. Jobs can write there what they like."""
    try:
        fd = os.open(f"{run_path}/{NAME}", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        found = _decode(os.read(fd, _MAX_BYTES))
    except (OSError, ValueError, RecursionError):
        # POSIT: this is all that decoding raises; bytes that are no text are a ValueError too.
        return None
    finally:
        os.close(fd)
    return found if (found.jid, found.attempt) == (jid, attempt) and _can_be(found) else None


def _can_be(found: ExitFile) -> bool:
    numbers = [found.started_at, found.ended_at, found.exit_code, found.signal]
    numbers += [found.stdout_bytes, found.stderr_bytes]
    numbers += msgspec.structs.astuple(found.usage) if found.usage is not None else ()
    return all(number is None or abs(number) <= _MOST for number in numbers)


def as_over(found: ExitFile, ticket: int) -> words.Over:
    """The same as a report, with the file as the proof."""
    return words.Over(
        ticket=ticket,
        at=found.ended_at,
        started_at=found.started_at,
        exit_code=found.exit_code,
        signal=found.signal,
        reason=found.reason,
        message=found.message,
        stopped=found.stopped,
        proof="exit_record",
        stdout_bytes=found.stdout_bytes,
        stderr_bytes=found.stderr_bytes,
        usage=found.usage,
    )
