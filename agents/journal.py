"""What the launcher must remember through its own death: a file of checked lines, one behind the other.

Order is the point (C1): an intent is in the file before the process is asked for, and a record is on
disk before the supervisor hears of it. Everything that one turn of the launcher writes shares one
`fdatasync`. Lines replace zeros that were written ahead: a sync then waits for these bytes alone, where a
file that grows has it wait for whatever others have changed in the file system. A power failure may take
any sectors of what was not synced, in any order, so reading ends at the first line that is not sound; what
stands behind it was never told to anybody, and is cut off.
"""

import errno
import os
import uuid
import zlib
from collections import deque
from contextlib import suppress
from typing import Final

import msgspec
from msgspec import Struct

from sirepo_jobs import failpoints
from sirepo_jobs.agents.outbox import Kept
from sirepo_jobs.agents.roster import Key
from sirepo_jobs.protocol import Durable, Exited, Started

NAME: Final = "journal"
#: Below this size a journal is never rewritten.
COMPACT_BYTES: Final = 1 << 20
#: So many zeros are written ahead at a time.
AHEAD_BYTES: Final = 256 << 10
#: Space that is set aside for the ends of attempts that run when the disk fills up.
RESERVE_BYTES: Final = 256 << 10
#: File systems keep some space for root alone.
_IS_ROOT: Final = os.geteuid() == 0


class NotReplaced(OSError):
    """The journal could not be rewritten: the old one stands, and is as good."""


class Head(Struct, frozen=True, kw_only=True):
    """First line: whose journal, of which boot, and how far its records are acknowledged."""

    install: str
    boot_id: str
    acked: int


class Intent(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A process for this attempt was, or was about to be, asked for."""

    jid: str
    serial: int
    attempt: int
    run_dir: str
    mark: int
    cpus: int = 1
    progress: bool = False
    #: What is known of the process; 0 = nothing.
    pid: int = 0
    start: int = 0
    started_at: int = 0
    #: A later launcher was about to kill it: its signal 9 may be ours.
    condemned: bool = False


class Helper(Struct, frozen=True, kw_only=True):
    """A spawner was started; it may outlive the launcher."""

    pid: int
    start: int


class Past(Struct, kw_only=True):
    """What a journal tells about the launchers before this one."""

    install: str
    #: Of the last boot in which a launcher wrote here.
    boot_id: str
    acked: int
    last_seq: int
    #: Attempts with an intent and no end.
    intents: dict[Key, Intent]
    #: Not acknowledged, in order.
    kept: deque[tuple[Kept, Durable]]
    helpers: list[Helper]


_encode = msgspec.json.Encoder().encode
_head = msgspec.json.Decoder(Head).decode
_intent = msgspec.json.Decoder(Intent).decode
_helper = msgspec.json.Decoder(Helper).decode
_record = msgspec.json.Decoder(Durable).decode


class Journal:
    """The open file. `replay` first.

    POSIT: nobody else writes there: the home is locked, and where locks do not reach, a launcher on another
    node begins with `rewrite`, which leaves the old file to whoever has it open.
    """

    def __init__(self, home: str) -> None:
        self._path = f"{home}/{NAME}"
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._lines: list[bytes] = []
        self._rest = b""
        #: Sound bytes: the next line goes there. From there to `_ahead` are zeros.
        self._size = 0
        self._ahead = 0
        self._rewritten = 0
        self._reserve_path = f"{home}/{NAME}.reserve"
        self._reserved = False
        #: The disk had room when it was looked at last, and nothing was to begin since.
        self._roomy = False

    def fileno(self) -> int:
        """So that children can close it."""
        return self._fd

    def replay(self, boot_id: str) -> Past:
        """Read everything and cut off a torn tail; a new file gets its head.

        What is returned is on disk, also where the last launcher had not synced it. Raises `OSError`.
        """
        data = _read_all(self._fd)
        past, good = _parse(data)
        self._size = self._rewritten = good
        self._ahead = len(data)
        if data.count(0, good) < len(data) - good:
            # POSIT: sound lines may stand behind one that was lost, and none of them shall ever follow on
            # a new one. The sync keeps the old sectors from coming back beside new ones.
            os.ftruncate(self._fd, good)
            self._ahead = good
        os.fdatasync(self._fd)
        if past is None:
            past = Past(
                install=uuid.uuid4().hex,
                boot_id=boot_id,
                acked=0,
                last_seq=0,
                intents={},
                kept=deque(),
                helpers=[],
            )
            self.rewrite(past.install, boot_id, 0, [], [], [])
        self._reserve()
        return past

    # -- writing

    def intend(self, intent: Intent) -> None:
        """Before a process is asked for."""
        self._roomy = False
        self._append(b"I", _encode(intent))

    def keep(self, raw: bytes, start: int = 0) -> None:
        """A durable record; with `Started`, the start time of the process."""
        self._append(b"R%d" % start, raw)

    def acked(self, seq: int) -> None:
        """The supervisor has everything up to here."""
        self._append(b"A", b"%d" % seq)

    def helper(self, pid: int, start: int) -> None:
        """A spawner was started."""
        self._append(b"P", _encode(Helper(pid=pid, start=start)))

    def _append(self, kind: bytes, payload: bytes) -> None:
        self._lines.append(_line(kind, payload))

    def write(self) -> bool:
        """Hand all lines to the kernel, so that they survive our death. False when the disk is full."""
        if self._lines:
            self._rest += b"".join(self._lines)
            self._lines.clear()
        while self._rest:
            try:
                written = self._put()
            except OSError:
                # POSIT: nothing begins without the reserve (`reserved`), so it serves ends alone (F030).
                if not self._reserved:
                    return False
                self._release()
                continue
            self._rest = self._rest[written:]
        return True

    def _put(self) -> int:
        """Write behind what is sound, with zeros behind that when they are used up; how much was taken."""
        count = 0
        if self._reserved and self._size + len(self._rest) > self._ahead:
            with suppress(OSError):  # not so much space: then the file grows by just what is written
                count = os.pwrite(self._fd, self._rest + bytes(AHEAD_BYTES), self._size)
        count = count or os.pwrite(self._fd, self._rest, self._size)
        self._ahead = max(self._ahead, self._size + count)
        taken = min(count, len(self._rest))
        self._size += taken
        return taken

    @property
    def reserved(self) -> bool:
        """Whether anything may begin: there is room on the disk, and space set aside for its end.

        Both are looked for again as long as they are missing.
        """
        self._roomy = self._roomy or self._has_room()
        return self._roomy and (self._reserved or self._reserve())

    def _has_room(self) -> bool:
        """The zeros would hide from us for long that the disk is full."""
        try:
            found = os.fstatvfs(self._fd)
        except OSError:
            return True  # it does not say; what is written next, does
        # without blocks at all, it is one that does not count them
        return not found.f_blocks or (found.f_bfree if _IS_ROOT else found.f_bavail) > 0

    def _reserve(self) -> bool:
        try:
            fd = os.open(self._reserve_path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(fd, 0, RESERVE_BYTES)
            finally:
                os.close(fd)
        except OSError as exc:
            if exc.errno in (errno.ENOSPC, errno.EDQUOT):
                self._release()
                return False
            # a file system that sets nothing aside: then we have to do without
        self._reserved = True
        return True

    def _release(self) -> None:
        self._reserved = False
        with suppress(OSError):
            os.unlink(self._reserve_path)

    def sync(self) -> bool:
        """Bring all lines to disk, so that they survive the host's death. False when the disk is full.

        Raises `OSError` when the disk fails: then nothing may be claimed any more, and the launcher ends.
        """
        if not self.write():
            return False
        os.fdatasync(self._fd)
        return True

    @property
    def long(self) -> bool:
        """Whether a rewrite is worth its while."""
        return self._size > max(COMPACT_BYTES, 4 * self._rewritten)

    def rewrite(
        self,
        install: str,
        boot_id: str,
        acked: int,
        intents: list[Intent],
        kept: list[Kept],
        helpers: list[Helper],
    ) -> None:
        """Replace the file by one that says only what still matters; all or nothing.

        Raises `NotReplaced` when there is no room for it, and another `OSError` when a power failure might
        leave the old one after all: then nothing may be claimed any more, and the launcher ends.
        """
        lines = [_line(b"H", _encode(Head(install=install, boot_id=boot_id, acked=acked)))]
        lines += [_line(b"P", _encode(helper)) for helper in helpers]
        lines += [_line(b"I", _encode(intent)) for intent in intents]
        lines += [_line(b"R0", record.raw) for record in kept]
        data = b"".join(lines)
        try:
            fd = self._replace_by(data)
        except OSError as exc:
            raise NotReplaced(*exc.args) from exc
        failpoints.hit("journal.replaced")
        # POSIT: whatever happens from here on, nobody writes to a file without a name.
        os.close(self._fd)
        self._fd = fd
        self._lines.clear()
        self._rest = b""
        self._size = self._ahead = self._rewritten = len(data)
        _sync_dir(os.path.dirname(self._path))

    def _replace_by(self, data: bytes) -> int:
        """The new file, open."""
        part = f"{self._path}.part"
        with suppress(FileNotFoundError):
            os.unlink(part)
        fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(fd, rest) :]
            os.fsync(fd)
            failpoints.hit("journal.before_replace")
            os.rename(part, self._path)
        except OSError:
            os.close(fd)
            raise
        return fd

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


def _line(kind: bytes, payload: bytes) -> bytes:
    body = kind + b" " + payload
    return b"%08x %b\n" % (zlib.crc32(body), body)


def _parse(data: bytes) -> tuple[Past | None, int]:
    """What the lines say, and how many bytes of them are sound."""
    past: Past | None = None
    good = 0
    for line in data.split(b"\n")[:-1]:
        if len(line) < 11 or b"%08x" % zlib.crc32(line[9:]) != line[:8]:
            break
        kind, _, payload = line[9:].partition(b" ")
        try:
            past = _apply(past, kind, payload)
        except msgspec.DecodeError:
            break
        good += len(line) + 1
    return past, good


def _apply(past: Past | None, kind: bytes, payload: bytes) -> Past | None:
    if kind == b"H":
        head = _head(payload)
        return Past(
            install=head.install,
            boot_id=head.boot_id,
            acked=head.acked,
            last_seq=head.acked,
            intents={},
            kept=deque(),
            helpers=[],
        )
    if past is None:
        raise msgspec.DecodeError("no head")
    if kind == b"I":
        intent = _intent(payload)
        past.intents[intent.jid, intent.attempt] = intent
    elif kind == b"P":
        past.helpers.append(_helper(payload))
    elif kind == b"A":
        past.acked = int(payload)
        while past.kept and past.kept[0][0].seq <= past.acked:
            past.kept.popleft()
    elif kind.startswith(b"R"):
        record = _record(payload)
        key = (record.jid, record.attempt)
        past.last_seq = record.seq
        if isinstance(record, Exited):
            past.intents.pop(key, None)
        elif isinstance(record, Started) and key in past.intents:
            past.intents[key] = _born(past.intents[key], record, int(kind[1:]))
        past.kept.append((Kept(record.seq, payload, key if isinstance(record, Exited) else None), record))
    return past


def _born(intent: Intent, record: Started, start: int) -> Intent:
    if not start:  # a rewritten record, whose intent knows its process, or a job of Slurm's, which has none
        return msgspec.structs.replace(intent, started_at=intent.started_at or record.at)
    return msgspec.structs.replace(intent, pid=record.pid, start=start, started_at=record.at)


def _read_all(fd: int) -> bytes:
    parts = []
    at = 0
    while data := os.pread(fd, 1 << 20, at):
        parts.append(data)
        at += len(data)
    return b"".join(parts)


def _sync_dir(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
