"""A directory as a zip archive, made while it is sent: memory stays small, whatever lies there (C16).

What cannot or must not be read is left out and named in `SKIPPED.txt`, the last entry. Sizes and checksums
follow the bytes of each file, the directory of the archive waits in a temporary file for its end.
"""

import os
import stat
import struct
import tempfile
import time
import zlib
from collections.abc import Generator, Iterator
from contextlib import suppress
from typing import IO, Final

from sirepo_jobs.run_path import Parts, shown
from sirepo_jobs.run_tree import Refused, kind_of, open_directory, open_file, walk

SKIPPED: Final = b"SKIPPED.txt"
MAX_DEPTH: Final = 50
MAX_ENTRIES: Final = 2_000_000
_READ_BYTES: Final = 128 << 10
_SPOOL_BYTES: Final = 1 << 20
#: Files from this size on, and archives, get 64-bit numbers.
_LARGE: Final = 0xF000_0000
_FULL: Final = 0xFFFF_FFFF
_DEFLATED: Final = 8
_SIZES_FOLLOW: Final = 1 << 3
_UTF8: Final = 1 << 11

_LOCAL: Final = struct.Struct("<4s5HLLLHH")
_CENTRAL: Final = struct.Struct("<4s6HLLLHHHHHLL")
_END: Final = struct.Struct("<4s4HLLH")
_END64: Final = struct.Struct("<4sQHHLLQQQQ")
_LOCATOR: Final = struct.Struct("<4sLQL")


class Broken(Exception):
    """The archive cannot be brought to its end."""


def archive(handle: int, owner: int) -> Generator[bytes, None, None]:
    """The bytes of the archive of a directory; an empty piece for each entry that is passed over.

    Descriptors are closed when it is exhausted or closed. Raises `Refused` if the directory cannot be
    listed, and `Broken`.
    """
    with tempfile.TemporaryFile(buffering=_SPOOL_BYTES) as index, tempfile.TemporaryFile() as skipped:
        yield from _Zip(owner, index, skipped).write(handle)


class _Zip:
    def __init__(self, owner: int, index: IO[bytes], skipped: IO[bytes]) -> None:
        self._owner = owner
        self._index = index
        self._skipped = skipped
        self._offset = 0
        self._count = 0
        self._has_own_list = False

    def write(self, handle: int) -> Iterator[bytes]:
        yield from self._directory(handle, (), 0)
        if self._skipped.tell():
            yield from self._list_of_skipped()
        yield from self._end()

    # -- the tree

    def _directory(self, handle: int, parts: Parts, depth: int) -> Iterator[bytes]:
        fd = open_directory(handle, parts[-1] if parts else b"the run dir")
        try:
            with os.scandir(fd) as entries:
                for entry in entries:
                    name = os.fsencode(entry.name)
                    yield from self._entry(fd, (*parts, name), depth)
        finally:
            os.close(fd)

    def _entry(self, fd: int, path: Parts, depth: int) -> Iterator[bytes]:
        name = path[-1]
        self._has_own_list |= path == (SKIPPED,)
        try:
            info = os.lstat(name, dir_fd=fd)
            if b"\\" in name:
                raise Refused("its name holds a backslash, which some programs take for a way elsewhere")
            if self._count >= MAX_ENTRIES or depth > MAX_DEPTH:
                raise Refused("the archive has room for no more, or it lies too deep")
            if kind_of(info) == "directory":
                below = walk(fd, (name,))
                try:
                    yield self._folder(path, info)
                    yield from self._directory(below, path, depth + 1)
                finally:
                    os.close(below)
            else:
                file = open_file(fd, name, owner=self._owner)
                try:
                    yield from self._file(path, file)
                finally:
                    os.close(file)
        except FileNotFoundError:
            yield self._skip(path, "it went away")
        except (OSError, Refused) as exc:
            yield self._skip(path, str(exc))

    def _skip(self, path: Parts, why: str) -> bytes:
        text = f"{_printable(shown(path))}: {_printable(why)}\n"
        _keep(self._skipped, text.encode("utf-8", "replace"))
        return b""

    # -- entries

    def _folder(self, path: Parts, info: os.stat_result) -> bytes:
        name = b"/".join(path) + b"/"
        head = self._local(name, 0, 0, info.st_mtime, large=False)
        self._note(name, 0, 0, info.st_mtime, info.st_mode, 0, 0, 0, self._offset)
        self._offset += len(head)
        return head

    def _file(self, path: Parts, fd: int) -> Generator[bytes, None, None]:
        info = os.fstat(fd)
        taken = yield from self._deflated(b"/".join(path), _readable(fd, info.st_size), info)
        if taken < info.st_size:
            why = f"it became shorter while it was read: {taken} of {info.st_size} bytes are here"
            yield self._skip(path, why)

    def _list_of_skipped(self) -> Generator[bytes, None, None]:
        _flush(self._skipped)
        info = os.fstat(self._skipped.fileno())
        name = SKIPPED if not self._has_own_list else b"SKIPPED.%d.txt" % self._count
        yield from self._deflated(name, _pieces(self._skipped.fileno(), info.st_size), info)

    def _deflated(
        self, name: bytes, pieces: Iterator[bytes], info: os.stat_result
    ) -> Generator[bytes, None, int]:
        begin = self._offset
        large = info.st_size >= _LARGE
        head = self._local(name, _SIZES_FOLLOW, _DEFLATED, info.st_mtime, large=large)
        yield head
        packer = zlib.compressobj(1, zlib.DEFLATED, -15)
        crc = size = packed = 0
        for piece in pieces:
            crc = zlib.crc32(piece, crc)
            size += len(piece)
            out = packer.compress(piece)
            packed += len(out)
            yield out
        out = packer.flush()
        packed += len(out)
        foot = struct.pack("<4sLQQ" if large else "<4sLLL", b"PK\7\x08", crc, packed, size)
        yield out + foot
        self._offset += len(head) + packed + len(foot)
        mode = stat.S_IFREG | stat.S_IMODE(info.st_mode)
        self._note(name, _SIZES_FOLLOW, _DEFLATED, info.st_mtime, mode, crc, packed, size, begin)
        return size

    # -- records of the format (APPNOTE.TXT 4.3)

    def _local(self, name: bytes, flags: int, method: int, mtime: float, *, large: bool) -> bytes:
        extra = struct.pack("<HHQQ", 1, 16, 0, 0) if large else b""
        size = _FULL if large else 0
        numbers = (45 if large else 20, flags | _name_flag(name), method, *_dos_time(mtime))
        return _LOCAL.pack(b"PK\3\4", *numbers, 0, size, size, len(name), len(extra)) + name + extra

    def _note(
        self,
        name: bytes,
        flags: int,
        method: int,
        mtime: float,
        mode: int,
        crc: int,
        packed: int,
        size: int,
        offset: int,
    ) -> None:
        large = [number for number in (size, packed, offset) if number >= _LARGE]
        extra = struct.pack(f"<HH{len(large)}Q", 1, 8 * len(large), *large) if large else b""
        packed, size, offset = (_FULL if number >= _LARGE else number for number in (packed, size, offset))
        numbers = (3 << 8 | 45, 45 if large else 20, flags | _name_flag(name), method, *_dos_time(mtime))
        lengths = (len(name), len(extra), 0, 0, 0)
        record = _CENTRAL.pack(b"PK\1\2", *numbers, crc, packed, size, *lengths, mode << 16, offset)
        _keep(self._index, record + name + extra)
        self._count += 1

    def _end(self) -> Iterator[bytes]:
        _flush(self._index)
        size = self._index.tell()
        yield from _pieces(self._index.fileno(), size)
        if self._count >= 0xFFFF or max(self._offset, size) >= _LARGE:
            where = (self._count, self._count, size, self._offset)
            yield _END64.pack(b"PK\6\6", _END64.size - 12, 3 << 8 | 45, 45, 0, 0, *where)
            yield _LOCATOR.pack(b"PK\6\7", 0, self._offset + size, 1)
        count = min(self._count, 0xFFFF)
        size, offset = (_FULL if number >= _LARGE else number for number in (size, self._offset))
        yield _END.pack(b"PK\5\6", 0, 0, count, count, size, offset, 0)


def _pieces(fd: int, size: int) -> Iterator[bytes]:
    """The file's first `size` bytes, or as many as there are."""
    at = 0
    while at < size:
        piece = os.pread(fd, min(_READ_BYTES, size - at), at)
        if not piece:
            return
        at += len(piece)
        yield piece


def _readable(fd: int, size: int) -> Iterator[bytes]:
    """As `_pieces`; what cannot be read is missing at the end."""
    with suppress(OSError):
        yield from _pieces(fd, size)


def _keep(spool: IO[bytes], data: bytes) -> None:
    try:
        spool.write(data)
    except OSError as exc:
        raise Broken(f"no room for the directory of the archive: {exc.strerror}") from exc


def _flush(spool: IO[bytes]) -> None:
    try:
        spool.flush()
    except OSError as exc:
        raise Broken(f"no room for the directory of the archive: {exc.strerror}") from exc


def _name_flag(name: bytes) -> int:
    try:
        name.decode()
    except UnicodeDecodeError:
        return 0
    return _UTF8


def _dos_time(mtime: float) -> tuple[int, int]:
    year, month, day, hour, minute, second, *_ = time.gmtime(min(max(mtime, 315532800), 4354819198))
    return hour << 11 | minute << 5 | second // 2, (year - 1980) << 9 | month << 5 | day


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
