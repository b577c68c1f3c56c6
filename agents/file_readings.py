"""Readings of files that are not outputs: one file, opened once and sent in ranges, or an archive."""

import os
from collections.abc import Callable, Generator
from typing import Final

from sirepo_jobs import run_path
from sirepo_jobs.agents.archive import Broken, archive
from sirepo_jobs.errors import BadInput
from sirepo_jobs.protocol import WINDOW_BYTES, FileOpened, ReadArchive, ReadFile
from sirepo_jobs.run_tree import Refused, RunFiles, etag_of, open_file, walk

#: So much of an archive may be packed in one turn without a byte to send.
TURN_PIECES: Final = 4


class Failed(Exception):
    """The reading cannot go on."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


class FileReading:
    """One `ReadFile` on its way; the file stays open, so that every byte is of what was told about."""

    def __init__(self, ask: ReadFile, files: RunFiles, say: Callable[[FileOpened], None]) -> None:
        self.ask = ask
        self._files = files
        self._say = say
        self.credit = WINDOW_BYTES
        self.offset = ask.offset
        self.over = False
        self._stop_at = ask.offset + ask.limit
        #: Bytes are wanted; before that there is only a description.
        self._wanted = ask.limit > 0
        self._fd = -1

    def take(self, offset: int, limit: int) -> None:
        """These are wanted."""
        self.offset, self._stop_at, self._wanted = offset, offset + limit, True

    def next(self, count: int) -> bytes | None:
        """Some more bytes, None while none are wanted. Raises `Failed`."""
        try:
            if self._fd < 0:
                self._open()
            if not self._wanted:
                return None
            if self.offset >= self._stop_at:
                self.over = True
                return None
            data = os.pread(self._fd, min(count, self._stop_at - self.offset), self.offset)
        except FileNotFoundError:
            raise Failed("there is no such file", "not_found") from None
        except (Refused, BadInput) as exc:
            raise Failed(str(exc), exc.code) from None
        except OSError as exc:
            raise Failed(exc.strerror or str(exc), "trouble") from None
        if not data:
            raise Failed(f"the file was cut at byte {self.offset}", "changed")
        self.offset += len(data)
        return data

    def _open(self) -> None:
        ask = self.ask
        *folders, name = run_path.parse(ask.path) or (b"",)
        if not name:
            raise Refused("the run dir is a directory", "is_directory")
        top = self._files.run_dir(ask.run_dir)
        try:
            at = walk(top, folders)
            try:
                self._fd = open_file(at, name, owner=os.fstat(top).st_uid)
            finally:
                os.close(at)
        finally:
            os.close(top)
        info = os.fstat(self._fd)
        etag = etag_of(info)
        if ask.etag not in ("", etag):
            raise Refused("the file is not the same any more", "changed")
        self._say(FileOpened(op_id=ask.op_id, etag=etag, size=info.st_size, mtime_ns=info.st_mtime_ns))

    def close(self) -> None:
        """Safe to repeat."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class ArchiveReading:
    """One `ReadArchive` on its way."""

    def __init__(self, ask: ReadArchive, files: RunFiles) -> None:
        self.ask = ask
        self._files = files
        self.credit = WINDOW_BYTES
        self.offset = 0
        self.over = False
        self._rest = b""
        self._pieces: Generator[bytes, None, None] | None = None

    def next(self, count: int) -> bytes | None:
        """Some more bytes, which may be none. Raises `Failed`."""
        try:
            if self._pieces is None:
                self._pieces = self._begin()
            held = [self._rest] if self._rest else []
            size = len(self._rest)
            for _ in range(TURN_PIECES):
                if size >= count:
                    break
                piece = next(self._pieces, None)
                if piece is None:
                    self.over = not size
                    break
                held.append(piece)
                size += len(piece)
        except FileNotFoundError:
            raise Failed("there is no such directory", "not_found") from None
        except (Refused, BadInput) as exc:
            raise Failed(str(exc), exc.code) from None
        except OSError as exc:
            raise Failed(exc.strerror or str(exc), "trouble") from None
        except Broken as exc:
            raise Failed(str(exc), "trouble") from None
        data = b"".join(held)
        self._rest = data[count:]
        self.offset += min(size, count)
        return data[:count]

    def _begin(self) -> Generator[bytes, None, None]:
        ask = self.ask
        top = self._files.run_dir(ask.run_dir)
        try:
            at = walk(top, run_path.parse(ask.path))
            try:
                owner = os.fstat(top).st_uid
                yield from archive(at, owner)
            finally:
                os.close(at)
        finally:
            os.close(top)

    def close(self) -> None:
        """Safe to repeat."""
        if self._pieces is not None:
            self._pieces.close()
