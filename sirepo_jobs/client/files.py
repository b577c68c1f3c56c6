"""Files of a run dir as the client sees them: what there is, and the bytes of one, each once."""

import os
import re
from collections.abc import Iterator
from datetime import datetime

import msgspec
from msgspec import Struct
from urllib3.exceptions import HTTPError
from urllib3.response import BaseHTTPResponse

from sirepo_jobs import run_path
from sirepo_jobs.errors import BadInput, Conflict, Error, Unavailable

from .byte_stream import ByteStream, CutHead
from .transport import Patience, Transport

#: An agent may have to be started before the first byte.
READ_SECS = 180.0
_PAGE = 1000


class File(Struct, frozen=True, kw_only=True):
    """One entry of a run dir."""

    #: For people; what is no UTF-8 in it is replaced.
    path: str
    #: Percent-encoded: names exactly this entry.
    url_path: str
    #: file | directory | link | fifo | socket | device
    kind: str
    size: int | None = None
    mtime: datetime | None = None
    #: Changes with the file's content.
    etag: str | None = None
    #: Why what it holds is not listed.
    note: str = ""

    @property
    def os_path(self) -> str:
        """As `os` functions take it: bytes that are no UTF-8 are surrogates."""
        return os.fsdecode(b"/".join(run_path.parse(self.url_path)))


FilePath = str | bytes | File


class _Page(Struct, frozen=True):
    files: list[File]
    next_cursor: str | None = None


def url_path(path: FilePath) -> str:
    """The path as it stands in a URL. Raises `BadInput` for one that leads elsewhere.

    >>> url_path("out/a b"), url_path("")
    ('out/a%20b', '')
    """
    if isinstance(path, File):
        return path.url_path
    if not path:
        return ""
    text = run_path.encode(os.fsencode(path).split(b"/"))
    run_path.parse(text)
    return text


def files_path(job_path: str, path: FilePath) -> str:
    """Where the API has it."""
    below = url_path(path)
    return f"{job_path}/files/{below}" if below else f"{job_path}/files"


def listing(transport: Transport, target: str, attempt: int | None, *, recursive: bool) -> Iterator[File]:
    """Every entry of a directory, page after page."""
    cursor: str | None = None
    while True:
        params = {"attempt": attempt, "cursor": cursor, "limit": _PAGE, "recursive": None if recursive else 0}
        response = _patiently(transport, target, params)
        if response.headers.get("X-File-Kind") != "directory":
            raise BadInput("this is a file and holds nothing", code="not_a_directory")
        try:
            page = msgspec.json.decode(response.data, type=_Page)
        except (msgspec.DecodeError, UnicodeDecodeError) as exc:
            raise Error(f"the server's answer is no listing: {exc}", code="bad_answer") from None
        yield from page.files
        # a job may begin its next attempt meanwhile
        attempt = int(response.headers.get("X-Attempt") or 0) or attempt
        cursor = page.next_cursor
        if cursor is None:
            return


def _patiently(transport: Transport, target: str, params: dict[str, str | int | None]) -> BaseHTTPResponse:
    patience = Patience(transport.patience_secs)
    while True:
        try:
            response = transport.once("GET", target, params, read_secs=READ_SECS)
            _check_head(response)
            if response.headers["X-File-Kind"] == "directory":
                _ = response.data
            return response
        except Unavailable as exc:
            patience.pause(exc, getattr(exc, "retry_after", None))
        except (HTTPError, CutHead) as exc:
            patience.pause(Unavailable(f"the answer broke off: {exc}", code="unreachable"))


def _check_head(response: BaseHTTPResponse) -> None:
    kind = response.headers.get("X-File-Kind")
    whole = kind in ("directory", "archive")
    if kind == "file":
        whole = bool(re.fullmatch(r'"[0-9a-f]{8,64}"', response.headers.get("ETag", "")))
    # of many answers the length is the first to be cut
    if not whole or "Date" not in response.headers:
        raise CutHead("among the headers")


class FileStream(ByteStream):
    """The bytes of one file. Raises `Conflict` when the file changes between two connections."""

    def __init__(
        self,
        transport: Transport,
        target: str,
        attempt: int | None = None,
        *,
        offset: int = 0,
        stop: int | None = None,
        etag: str = "",
    ) -> None:
        super().__init__(transport, offset, attempt)
        #: Of the file that is read, as in the header; "" until the server has told.
        self.etag = etag
        #: Length of the whole file; None until the server has told.
        self.total: int | None = None
        self._target = target
        self._stop = stop

    @property
    def _end(self) -> int | None:
        if self.total is None or self._stop is None:
            return self.total
        return min(self.total, self._stop)

    def _is_over(self, broke: Exception | None, patience: Patience) -> bool:
        if self._end is not None and self.offset >= self._end:
            return True
        why = f"the download broke at byte {self.offset} of {self._end}: {broke or 'it ended'}"
        patience.pause(Unavailable(why, code="unreachable"))
        return False

    def _open(self) -> BaseHTTPResponse:
        headers = {}
        if self.offset or self._stop is not None:
            headers["Range"] = f"bytes={self.offset}-{self._stop - 1 if self._stop is not None else ''}"
        if self.etag:
            headers["If-Range"] = self.etag
        params = {"attempt": self.attempt}
        try:
            return self._transport.once("GET", self._target, params, headers=headers, read_secs=READ_SECS)
        except Error as exc:
            if self.etag and getattr(exc, "status", None) == 416:
                raise self._changed() from None
            raise

    def _learn(self, response: BaseHTTPResponse) -> None:
        _check_head(response)
        headers = response.headers
        if headers.get("X-File-Kind") != "file":
            raise BadInput("this is a directory; it comes as an archive only", code="is_directory")
        etag = headers.get("ETag", "")
        if self.etag and etag != self.etag:
            raise self._changed()
        self.etag = etag
        self.attempt = int(headers.get("X-Attempt") or 0) or self.attempt
        found = re.fullmatch(r"bytes ([0-9]+)-[0-9]+/([0-9]+)", headers.get("Content-Range", ""))
        if response.status == 206 and found and int(found[1]) == self.offset:
            self.total = int(found[2])
        elif response.status == 200 and not self.offset:
            self.total = int(headers["Content-Length"])
        else:
            raise Error("the server does not answer with the range that was asked for", code="bad_answer")

    def _changed(self) -> Conflict:
        return Conflict(f"the file has changed since its first {self.offset} bytes came", code="file_changed")
