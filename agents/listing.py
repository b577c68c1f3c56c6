"""What lies in a run dir, a page at a time: in order, so that a path is a cursor (C16)."""

import asyncio
import heapq
import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from itertools import islice
from typing import Final, NamedTuple

from sirepo_jobs import run_path
from sirepo_jobs.errors import BadInput
from sirepo_jobs.protocol import FileInfo, FileList, ListFiles, OutputEnd
from sirepo_jobs.run_path import Parts
from sirepo_jobs.run_tree import Refused, RunFiles, etag_of, kind_of, open_directory, walk

MAX_PAGE: Final = 1000
#: Of the paths of one page, so that it fits into a message.
MAX_PAGE_BYTES: Final = 1 << 20
#: Directories in directories that one listing, or one archive, goes down.
MAX_DEPTH: Final = 50
#: Longest path of a directory that is gone into; a name below it may still be asked for.
MAX_PATH_BYTES: Final = 3500
#: Names of one directory that are looked at; what is beyond is not seen.
MAX_NAMES: Final = 1_000_000
#: Listings that wait for their turn.
MAX_WAITING: Final = 100


class Listings:
    """Answers `ListFiles`, one after the other, in a thread: a directory may be huge, or its disk slow."""

    def __init__(self, files: RunFiles, say: Callable[[FileList | OutputEnd], None]) -> None:
        self._files = files
        self._say = say
        self._waiting: asyncio.Queue[ListFiles] = asyncio.Queue(MAX_WAITING)

    def add(self, ask: ListFiles) -> None:
        """It is asked for."""
        try:
            self._waiting.put_nowait(ask)
        except asyncio.QueueFull:
            self._say(OutputEnd(op_id=ask.op_id, offset=0, error="too many listings at once", code="busy"))

    async def serve(self, run: Callable[..., Awaitable[FileList | OutputEnd]] = asyncio.to_thread) -> None:
        """Until canceled."""
        while True:
            ask = await self._waiting.get()
            self._say(await run(answer, self._files, ask))


def answer(files: RunFiles, ask: ListFiles) -> FileList | OutputEnd:
    """The page that is asked for, or why there is none."""
    try:
        with files.busy(ask.run_dir):
            top = files.run_dir(ask.run_dir)
            try:
                return _page(top, ask)
            finally:
                os.close(top)
    except FileNotFoundError:
        return OutputEnd(op_id=ask.op_id, offset=0, error="there is no such directory", code="not_found")
    except (Refused, BadInput) as exc:
        return OutputEnd(op_id=ask.op_id, offset=0, error=str(exc), code=exc.code)
    except OSError as exc:
        return OutputEnd(op_id=ask.op_id, offset=0, error=exc.strerror or str(exc), code="trouble")


def _page(top: int, ask: ListFiles) -> FileList:
    parts = run_path.parse(ask.path)
    after = run_path.parse(ask.after)
    if after and after[: len(parts)] != parts:
        raise BadInput(f"the cursor is of another directory than {ask.path!r}", code="bad_cursor")
    limit = min(max(ask.limit, 1), MAX_PAGE)
    look = _Look(ask.recursive, limit + 2)
    found: list[FileInfo] = []
    size = 0
    at = walk(top, parts)
    try:
        for info in look.into(at, parts, after[len(parts) :], 0):
            if len(found) == limit or size > MAX_PAGE_BYTES:
                return FileList(op_id=ask.op_id, files=found, more=True)
            found.append(info)
            size += len(info.path)
    finally:
        os.close(at)
    return FileList(op_id=ask.op_id, files=found)


class _Look(NamedTuple):
    recursive: bool
    #: Of one directory; more do not fit on the page, the one before it and the one after it.
    most: int

    def into(self, at: int, parts: Parts, after: Parts, depth: int) -> Iterator[FileInfo]:
        """Entries of the directory `at` that follow `after`, each before what it holds."""
        fd = open_directory(at, parts[-1] if parts else b"the run dir")
        try:
            for name in self._first_names(fd, after[0] if after else b""):
                # what is on the way to the cursor was listed itself; what follows in it was not
                was_listed = bool(after) and name == after[0]
                with suppress(FileNotFoundError):
                    yield from self._entry(
                        fd, (*parts, name), after[1:] if was_listed else (), depth, was_listed=was_listed
                    )
        finally:
            os.close(fd)

    def _entry(
        self, fd: int, path: Parts, after: Parts, depth: int, *, was_listed: bool
    ) -> Iterator[FileInfo]:
        info = os.lstat(path[-1], dir_fd=fd)
        below, note = -1, ""
        if kind_of(info) == "directory" and self.recursive:
            if depth == MAX_DEPTH or sum(map(len, path)) + len(path) > MAX_PATH_BYTES:
                note = "what it holds is too deep to be listed from here"
            else:
                below, note = _try_to_walk(fd, path[-1])
        try:
            if not was_listed:
                yield _info(path, info, note)
            if below >= 0:
                with suppress(OSError, Refused):  # it went, or was closed to us, while we looked
                    yield from self.into(below, path, after, depth + 1)
        finally:
            if below >= 0:
                os.close(below)

    def _first_names(self, fd: int, start: bytes) -> list[bytes]:
        """The first names from `start` on, in order; keeps no more than are wanted in memory."""
        with os.scandir(fd) as entries:
            names = (os.fsencode(entry.name) for entry in islice(entries, MAX_NAMES))
            return heapq.nsmallest(self.most, (name for name in names if name >= start))


def _try_to_walk(fd: int, name: bytes) -> tuple[int, str]:
    below = -1
    try:
        below = walk(fd, (name,))
        os.close(open_directory(below, name))
    except (FileNotFoundError, Refused) as exc:
        if below >= 0:
            os.close(below)
        return -1, str(exc)
    return below, ""


def _info(path: Parts, info: os.stat_result, note: str) -> FileInfo:
    kind = kind_of(info)
    return FileInfo(
        path=run_path.encode(path),
        kind=kind,
        size=info.st_size if kind == "file" else 0,
        mtime_ns=info.st_mtime_ns,
        etag=etag_of(info) if kind == "file" else "",
        note=note,
    )
