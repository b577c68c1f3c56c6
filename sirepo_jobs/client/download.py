"""Downloads to disk: whole or not at all, and one that was cut off goes on where it was (F148, I15)."""

import fcntl
import os
import re
import secrets
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from urllib3.exceptions import HTTPError

from sirepo_jobs.errors import Conflict, Error, Unavailable

from .byte_stream import PIECE_BYTES
from .files import READ_SECS, FileStream
from .transport import Patience, Transport

#: Told how many bytes are here, and how many there are; None when nobody knows.
Progress = Callable[[int, int | None], None]
_OPEN = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC


class _Part:
    """What is here of a file, beside its place, under a name that says which content it is of."""

    def __init__(self, place: Path, tag: str) -> None:
        self._place = place
        #: Names the content.
        self.tag = tag
        self._path = place.with_name(f"{place.name[:200]}.{tag}.part")
        self._fd = os.open(self._path, _OPEN, 0o666)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._fd)
            raise Conflict(f"somebody else is downloading {place}", code="download_under_way") from None
        self.size = os.lseek(self._fd, 0, os.SEEK_END)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]
        self.size += len(data)

    def restart(self) -> None:
        """Begin at the beginning."""
        os.ftruncate(self._fd, 0)
        os.lseek(self._fd, 0, os.SEEK_SET)
        self.size = 0

    def remove(self) -> None:
        """It is of no use any more."""
        with suppress(FileNotFoundError):
            self._path.unlink()

    def publish(self) -> None:
        """Put it in its place: whole, and on the disk."""
        os.fsync(self._fd)
        self._path.replace(self._place)
        folder = os.open(self._place.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _tag_of_part(place: Path) -> str:
    """Which content the newest part of this place is of; "" where there is none."""
    name = re.compile(re.escape(place.name[:200]) + r"\.([0-9a-f]{8,64})\.part")
    newest = (-1, "")
    for entry in place.parent.iterdir():
        match = name.fullmatch(entry.name)
        if match and entry.is_file() and not entry.is_symlink():
            newest = max(newest, (entry.stat().st_mtime_ns, match[1]))
    return newest[1]


def download(
    transport: Transport, target: str, attempt: int | None, place: Path, progress: Progress | None
) -> None:
    """One file. Raises what `FileStream` raises, `Conflict` when it changes again and again."""
    patience = Patience(transport.patience_secs)
    while True:
        try:
            _download(transport, target, attempt, place, progress)
        except Conflict as exc:
            if exc.code != "file_changed":
                raise
            patience.pause(exc)
        else:
            return


def _download(
    transport: Transport, target: str, attempt: int | None, place: Path, progress: Progress | None
) -> None:
    with ExitStack() as held:
        stream, part = FileStream(transport, target, attempt), None
        if tag := _tag_of_part(place):
            part = held.enter_context(_Part(place, tag))
            if part.size:
                stream = FileStream(transport, target, attempt, offset=part.size, etag=f'"{tag}"')
        held.enter_context(closing(stream))
        try:
            stream.connect()
            tag = stream.etag.strip('"')
            if not re.fullmatch("[0-9a-f]{8,64}", tag):
                raise Error(f"the entity tag {stream.etag[:80]!r} is none of this service", code="bad_answer")
            if part is None or part.tag != tag:
                if part is not None:
                    part.remove()
                part = held.enter_context(_Part(place, tag))
                part.restart()
            if progress is not None:
                progress(part.size, stream.total)
            for piece in stream:
                part.write(piece)
                if progress is not None:
                    progress(part.size, stream.total)
        except Conflict as exc:
            if exc.code == "file_changed" and part is not None:
                part.remove()
            raise
        if part.size != stream.total:
            raise Error(f"{part.size} bytes came of {stream.total}", code="bad_answer")
        part.publish()


def download_archive(
    transport: Transport, target: str, attempt: int | None, place: Path, progress: Progress | None
) -> None:
    """A directory as a zip archive. It is made while it is sent: one that breaks off begins anew."""
    patience = Patience(transport.patience_secs)
    with _Part(place, secrets.token_hex(8)) as part:
        try:
            while True:
                part.restart()
                try:
                    _fetch_archive(transport, target, attempt, part, progress)
                    break
                except HTTPError as exc:
                    why = f"the archive broke off at byte {part.size}: {exc}"
                    patience.pause(Unavailable(why, code="unreachable"))
                except Unavailable as exc:
                    patience.pause(exc, getattr(exc, "retry_after", None))
            part.publish()
        finally:
            part.remove()


def _fetch_archive(
    transport: Transport, target: str, attempt: int | None, part: _Part, progress: Progress | None
) -> None:
    params = {"attempt": attempt, "archive": "zip"}
    response = transport.once("GET", target, params, read_secs=READ_SECS)
    try:
        for piece in response.stream(PIECE_BYTES, decode_content=False):
            part.write(piece)
            if progress is not None:
                progress(part.size, None)
    finally:
        response.close()
