"""Files of run dirs, by way of the agent that has them: a listing, one file, an archive (F056, S30).

The agent alone touches the disk, and decides there what may be read; here its words become bytes and errors.
"""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, NamedTuple

from . import protocol
from .errors import BadInput, Conflict, Error, Forbidden, NotFound, Unavailable
from .output import Reading, Readings
from .run_path import Parts, encode, shown

if TYPE_CHECKING:
    from .agent_claim import Agent

#: An agent that is there answers within so many seconds.
ANSWER_SECS = 60.0

_ERRORS: dict[str, tuple[type[Error], str]] = {
    "not_found": (NotFound, "no_such_file"),
    "link": (Forbidden, "file_is_link"),
    "hard_link": (Forbidden, "foreign_hard_link"),
    "not_regular": (Forbidden, "not_a_regular_file"),
    "unreadable": (Forbidden, "file_unreadable"),
    "is_directory": (Conflict, "is_directory"),
    "not_directory": (Conflict, "not_a_directory"),
    "changed": (Conflict, "file_changed"),
    "bad_path": (BadInput, "bad_path"),
    "bad_cursor": (BadInput, "bad_cursor"),
}


class RunDir(NamedTuple):
    """The directory of one attempt, and the agent that can look into it."""

    jid: str
    serial: int
    attempt: int
    path: str
    agent: "Agent"
    #: It is known to have had a process; else there may be no files, and that is no error.
    begun: bool = True


class OpenFile:
    """One file that the agent holds open."""

    def __init__(self, readings: Readings, reading: Reading, opened: protocol.FileOpened) -> None:
        self._readings = readings
        self._reading = reading
        self.opened = opened
        #: The range that is being read.
        self.offset = 0
        self.limit = 0

    async def read(self, offset: int, limit: int) -> AsyncGenerator[bytes | memoryview, None]:
        """These bytes, exactly. Raises an `Error` when the file became too short for that."""
        if not limit:
            return
        reading = self._reading
        reading.offset = self.offset = offset
        self.limit = limit
        if reading.op is not None and reading.op.sent and reading.agent.line is not None:
            word = protocol.ReadRange(op_id=reading.op.op_id, offset=offset, limit=limit)
            reading.agent.line.say(word)
        async with aclosing(self._readings.flow(reading)) as chunks:
            async for chunk in chunks:
                yield chunk
        _raise(reading)


class RunFiles:
    """Looks into run dirs."""

    def __init__(self, readings: Readings) -> None:
        self._readings = readings

    @asynccontextmanager
    async def open(self, where: RunDir, path: Parts) -> AsyncIterator[OpenFile]:
        """A regular file. Raises `NotFound`, `Forbidden`, `Conflict` for a directory, `Unavailable`."""
        file: OpenFile | None = None

        def ask(reading: Reading, op_id: int) -> protocol.ReadFile:
            # the second time, after a lost connection, it must be the same file
            return protocol.ReadFile(
                jid=where.jid,
                serial=where.serial,
                attempt=where.attempt,
                op_id=op_id,
                run_dir=where.path,
                path=encode(path),
                etag=file.opened.etag if file else "",
                offset=reading.offset,
                limit=file.limit - (reading.offset - file.offset) if file else 0,
            )

        reading = Reading(where.agent, where.jid, ask, word="read_file")
        async with self._opened(reading, path):
            assert isinstance(reading.head, protocol.FileOpened), "an agent's answer is of the wrong kind"
            file = OpenFile(self._readings, reading, reading.head)
            yield file

    async def list(
        self, where: RunDir, path: Parts, *, recursive: bool, after: Parts, limit: int
    ) -> protocol.FileList:
        """A page of a directory. Raises as `open` does."""

        def ask(reading: Reading, op_id: int) -> protocol.ListFiles:
            return protocol.ListFiles(
                jid=where.jid,
                serial=where.serial,
                attempt=where.attempt,
                op_id=op_id,
                run_dir=where.path,
                path=encode(path),
                recursive=recursive,
                after=encode(after),
                limit=limit,
            )

        reading = Reading(where.agent, where.jid, ask, word="list_files")
        async with self._opened(reading, path):
            assert isinstance(reading.head, protocol.FileList), "an agent's answer is of the wrong kind"
            return reading.head

    async def archive(self, where: RunDir, path: Parts) -> AsyncGenerator[bytes | memoryview, None]:
        """A zip archive of a directory. Raises as `open` does, and when the agent is lost meanwhile."""

        def ask(reading: Reading, op_id: int) -> protocol.ReadArchive:
            return protocol.ReadArchive(
                jid=where.jid,
                serial=where.serial,
                attempt=where.attempt,
                op_id=op_id,
                run_dir=where.path,
                path=encode(path),
            )

        reading = Reading(where.agent, where.jid, ask, word="read_archive", can_resume=False)
        try:
            self._readings.open(reading)
            async with aclosing(self._readings.flow(reading)) as chunks:
                async for chunk in chunks:
                    yield chunk
        finally:
            self._readings.close(reading)
        _raise(reading, path)

    @asynccontextmanager
    async def _opened(self, reading: Reading, path: Parts) -> AsyncIterator[None]:
        """While the agent's first answer is valid."""
        try:
            self._readings.open(reading)
            while reading.head is None and not reading.ended:
                await self._readings.change(reading, secs=ANSWER_SECS)
            _raise(reading, path)
            yield
        finally:
            self._readings.close(reading)


def _raise(reading: Reading, path: Parts = ()) -> None:
    """Raise the error that the agent told of, if it did."""
    if not reading.error:
        return
    kind, code = _ERRORS.get(reading.code, (Unavailable, "files_unavailable"))
    name = f"{shown(path)[:200]!r}: " if path and reading.code == "not_found" else ""
    raise kind(name + reading.error, code=code)
