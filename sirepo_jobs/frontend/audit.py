"""The audit log: one line for every request that would change something, also when it was denied (S48, I28).

Each line is a JSON object that ends in the SHA-256 of the line before it and of itself, so nothing can be
altered or taken out of the middle unseen. A line is written before its client hears the answer.
While lines cannot be written, nothing may be changed.
"""

import asyncio
import fcntl
import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from sirepo_jobs.errors import BadInput, Conflict

from .auth import Principal

log = logging.getLogger(__name__)

FILE = "audit.jsonl"
START = "0" * 64
#: Lines that wait for a disk; those beyond are counted.
MAX_WAITING_BYTES = 1 << 20
#: Denials of nobody in particular that are written per second; those beyond are counted.
MAX_STRANGERS_PER_SEC = 20
_RETRY_SECS = 1.0
_MAX_LINE_BYTES = 8192
_HASH = b',"hash":"'
_TAIL = len(_HASH) + 64 + 2


class AuditLog:
    """The file's only writer. Used on the loop's thread."""

    def __init__(self, path: Path) -> None:
        """Open, and go on with what is there. Raises `Conflict` when another process has it."""
        self._path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._fd)
            raise Conflict(f"another front end writes {path}") from None
        self._waiting = b""
        self._left_out = 0
        self._strangers = (0, 0)
        self._timer: asyncio.TimerHandle | None = None
        #: Why nothing can be written now; None while all is well.
        self.trouble: str | None = None
        try:
            self._seq, self._head, torn = _end_of(self._fd)
        except BadInput as exc:
            os.close(self._fd)
            raise BadInput(f"{path}: {exc}; move it away to begin anew", code="audit_damaged") from None
        if torn:
            # a crash in the middle of a line: it stays, and the next line answers for it
            self._waiting = b"\n"
            self._append({"recovered": hashlib.sha256(torn).hexdigest()})

    def note(
        self,
        principal: Principal | None,
        *,
        request_id: str,
        method: str,
        path: str,
        object_id: str,
        status: int,
        code: str,
    ) -> None:
        """One request and what became of it; `status` 0 = it was forwarded, and nobody heard the answer."""
        if principal is None and not self._room_for_a_stranger():
            self._left_out += 1
            return
        self._append(
            {
                "request_id": request_id[:64],
                "user": principal.user[:64] if principal else None,
                "role": principal.role if principal else None,
                "via": principal.via if principal else None,
                "token": principal.token if principal else None,
                "method": method[:16],
                "path": path[:200],
                "object": object_id[:100],
                "decision": _decision(status),
                "status": status,
                "code": code[:64],
            }
        )

    def close(self) -> None:
        """Write what waits; safe to repeat."""
        if self._timer is not None:
            self._timer.cancel()
        if self._fd >= 0:
            self._write()
            try:
                os.fsync(self._fd)
            except OSError as exc:
                log.error("the audit log may be incomplete", extra={"why": str(exc)})
            os.close(self._fd)
            self._fd = -1

    def _append(self, fields: dict[str, Any]) -> None:
        if len(self._waiting) > MAX_WAITING_BYTES:
            self._left_out += 1
            return
        head = {"seq": self._seq + 1, "at": datetime.now(UTC).isoformat(timespec="microseconds")}
        if self._left_out:
            head["left_out"], self._left_out = self._left_out, 0
        line, self._head = _sealed(self._head, {**head, **fields})
        self._seq += 1
        self._waiting += line
        self._write()

    def _write(self) -> None:
        try:
            while self._waiting:
                self._waiting = self._waiting[os.write(self._fd, self._waiting) :]
        except OSError as exc:
            if self.trouble is None:
                log.error("the audit log cannot be written", extra={"why": str(exc)})
            self.trouble = exc.strerror or str(exc)
        else:
            if self.trouble is not None:
                log.warning("the audit log is written again")
            self.trouble = None
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_RETRY_SECS, self._later)

    def _later(self) -> None:
        """A second on: try again, or bring to the disk what the system has taken."""
        self._timer = None
        if self._waiting:
            self._write()
        else:
            asyncio.get_running_loop().run_in_executor(None, _sync, self._fd)

    def _room_for_a_stranger(self) -> bool:
        second, seen = self._strangers
        now = int(time.monotonic())
        self._strangers = (now, seen + 1 if now == second else 1)
        return self._strangers[1] <= MAX_STRANGERS_PER_SEC


class Verified(NamedTuple):
    """What a whole chain comes to."""

    lines: int
    head: str


def verify(path: Path, *, holds: str | None = None) -> Verified:
    """Follow the chain from the first line to the last.

    Raises `BadInput` that names the first line that does not fit, or when `holds`, the head of an
    earlier look, is nowhere in it: the file was cut, or is another.
    """
    head, seq, torn = START, 0, None
    found = holds in (None, START)
    try:
        file = path.open("rb")
    except OSError as exc:
        raise BadInput(f"audit log {path}: {exc.strerror}", code="no_audit") from None
    with file:
        for number, line in enumerate(_lines(file), 1):
            opened = _opened(head, line)
            if opened is None and torn is None:
                torn = line.rstrip(b"\n")  # to be answered for by the next line
                continue
            if opened is None or opened.get("seq") != seq + 1 or not _answers(opened, torn):
                raise BadInput(
                    f"{path}: line {number - (torn is not None)} does not follow from those before it",
                    code="audit_broken",
                )
            head, seq, torn = opened["hash"], seq + 1, None
            found = found or head == holds
    if torn is not None and path.read_bytes().endswith(b"\n"):
        raise BadInput(f"{path}: its last line does not follow from those before it", code="audit_broken")
    if not found:
        raise BadInput(f"{path}: {str(holds)[:64]} is not in it; lines are missing", code="audit_broken")
    return Verified(seq, head)


def _answers(opened: dict[str, Any], torn: bytes | None) -> bool:
    return opened.get("recovered") == (None if torn is None else hashlib.sha256(torn).hexdigest())


def _lines(file: Any) -> Iterator[bytes]:
    while line := file.readline(_MAX_LINE_BYTES):
        yield line


def _sealed(before: str, fields: dict[str, Any]) -> tuple[bytes, str]:
    body = json.dumps(fields, separators=(",", ":")).encode()[:-1]
    seal = hashlib.sha256(before.encode() + body).hexdigest()
    return body + _HASH + seal.encode() + b'"}\n', seal


def _opened(before: str, line: bytes) -> dict[str, Any] | None:
    """The fields of a line that follows from what was before it."""
    if not line.endswith(b'"}\n') or line[-_TAIL - 1 :][: len(_HASH)] != _HASH:
        return None
    seal = hashlib.sha256(before.encode() + line[: -_TAIL - 1]).hexdigest()
    if seal != line[-67:-3].decode("ascii", "replace"):
        return None
    fields: dict[str, Any] = json.loads(line)
    return fields


def _end_of(fd: int) -> tuple[int, str, bytes]:
    """Number and hash of the last whole line, and what stands behind it."""
    size = os.fstat(fd).st_size
    start = max(0, size - 2 * _MAX_LINE_BYTES)
    *lines, torn = os.pread(fd, size - start, start).split(b"\n")
    if start and lines:
        lines = lines[1:]  # it begins somewhere in the middle
    for line in reversed(lines):
        try:
            fields = json.loads(line)
            return int(fields["seq"]), str(fields["hash"]), torn
        except (ValueError, KeyError, TypeError):
            continue  # an earlier crash; the line after it answers for it
    if lines or (size and start):
        raise BadInput("its end is none of ours")
    return 0, START, torn


def _decision(status: int) -> str:
    if status == 0:
        return "unanswered"
    return "accepted" if status < 400 else "denied" if status < 500 else "failed"


def _sync(fd: int) -> None:
    try:
        os.fdatasync(fd)
    except OSError as exc:
        log.error("the audit log may be incomplete", extra={"why": str(exc)})
