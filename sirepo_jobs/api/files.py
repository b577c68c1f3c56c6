"""`/jobs/{jid}/files`: the run dir, as a listing, as one file, as an archive."""

import base64
import mimetypes
from email.utils import formatdate
from typing import Any, Final
from urllib.parse import quote

from sirepo_jobs import byte_range, protocol, run_path
from sirepo_jobs.byte_range import NoSuchRange
from sirepo_jobs.errors import BadInput, Conflict, Error, NotFound
from sirepo_jobs.run_files import OpenFile, RunDir, RunFiles
from sirepo_jobs.run_path import Parts
from sirepo_jobs.views import instant

from .handler import Handler
from .whereabouts import newest_attempt, run_dir

MAX_PAGE: Final = 1000
#: Python's own table, whatever this machine has in /etc.
_TYPES: Final = mimetypes.MimeTypes()


class Files(Handler):
    """`/jobs/{jid}/files` and everything below it."""

    async def get(self, jid: str) -> None:
        """A file, in ranges if wanted; of a directory a listing, or with `archive=zip` an archive."""
        path = self._path(jid)
        asked = self.number("attempt")
        async with self.job(jid) as job:
            attempt = await newest_attempt(self.supervisor, job) if asked is None else asked
            self.set_header("X-Attempt", str(attempt))
            where = await run_dir(self.supervisor, job, attempt)
            files = RunFiles(self.supervisor.readings)
            if self.get_query_argument("archive", ""):
                await self._archive(files, _there(where, jid), path)
            elif path:
                try:
                    async with files.open(_there(where, jid), path) as file:
                        await self._file(file, path[-1])
                except Conflict as exc:
                    if exc.code != "is_directory" or self.began:
                        raise
                    await self._list(files, where, path)
            else:
                await self._list(files, where, path)

    async def head(self, jid: str) -> None:
        """As `get`, without the bytes."""
        await self.get(jid)

    def _path(self, jid: str) -> Parts:
        # Tornado decodes what its patterns find, and as UTF-8; a name may hold any byte.
        _, _, path = self.request.path.partition(f"/jobs/{jid}/files")
        return run_path.parse(path.removeprefix("/"))

    @property
    def _is_head(self) -> bool:
        return self.request.method == "HEAD"

    # -- one file

    async def _file(self, file: OpenFile, name: bytes) -> None:
        opened = file.opened
        self.set_header("ETag", f'"{opened.etag}"')
        self.set_header("Last-Modified", formatdate(opened.mtime_ns // 10**9, usegmt=True))
        self.set_header("X-File-Kind", "file")
        headers = self.request.headers
        if byte_range.matches(headers.get("If-None-Match", ""), opened.etag):
            self.set_status(304)
            self.finish()
            return
        fits = byte_range.is_current(headers.get("If-Range", ""), opened.etag)
        part = byte_range.wanted(headers.get("Range", "") if fits else "", opened.size)
        if not part.whole:
            self.set_status(206)
            end = part.offset + part.length - 1
            self.set_header("Content-Range", f"bytes {part.offset}-{end}/{opened.size}")
        self.set_header("Accept-Ranges", "bytes")
        self.set_header("Content-Length", str(part.length))
        self.set_header("Content-Type", content_type(name))
        self.set_header("Content-Disposition", disposition(name))
        if self._is_head or not part.length:
            self.finish()
        else:
            await self.send(file.read(part.offset, part.length))

    # -- directories

    async def _list(self, files: RunFiles, where: RunDir | None, path: Parts) -> None:
        limit = min(self.number("limit", MAX_PAGE) or MAX_PAGE, MAX_PAGE)
        recursive = self.get_query_argument("recursive", "1") not in ("0", "false")
        after = _open_cursor(self.get_query_argument("cursor", ""))
        self.set_header("X-File-Kind", "directory")
        if where is None and path:
            _there(where, self.request.path)
        if where is None:
            self.answer({"attempt": None, "files": [], "next_cursor": None})
            return
        page = await files.list(where, path, recursive=recursive, after=after, limit=limit)
        cursor = _cursor(page.files[-1].path) if page.more and page.files else None
        views = [_view(info) for info in page.files]
        self.answer({"attempt": where.attempt, "files": views, "next_cursor": cursor})

    async def _archive(self, files: RunFiles, where: RunDir, path: Parts) -> None:
        kind = self.get_query_argument("archive")
        if kind != "zip":
            raise BadInput(f"archive={kind[:32]!r} is not made here; there is: zip")
        name = path[-1] if path else f"{where.jid}-{where.attempt}".encode()
        self.set_header("Content-Type", "application/zip")
        self.set_header("Content-Disposition", disposition(name + b".zip"))
        self.set_header("X-File-Kind", "archive")
        if self._is_head:
            await files.list(where, path, recursive=False, after=(), limit=1)
            self.finish()
        else:
            await self.send(files.archive(where, path))

    def fail(self, error: Error) -> None:
        """As everywhere, with the size of the file where a range is not in it."""
        if isinstance(error, NoSuchRange):
            self.set_header("Content-Range", f"bytes */{error.size}")
        super().fail(error)


def _there(where: RunDir | None, what: str) -> RunDir:
    if where is None:
        raise NotFound(f"there are no files yet: {what[:100]} has not started", code="no_such_file")
    return where


def _view(info: protocol.FileInfo) -> dict[str, Any]:
    view: dict[str, Any] = {
        "path": run_path.shown(run_path.parse(info.path)),
        "url_path": info.path,
        "kind": info.kind,
        "size": info.size if info.kind == "file" else None,
        "mtime": instant(info.mtime_ns // 1000),
        "etag": f'"{info.etag}"' if info.etag else None,
    }
    if info.note:
        view["note"] = info.note
    return view


def _cursor(path: str) -> str:
    return base64.urlsafe_b64encode(path.encode()).decode().rstrip("=")


def _open_cursor(cursor: str) -> Parts:
    try:
        return run_path.parse(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode("ascii"))
    except (ValueError, BadInput):
        raise BadInput(
            f"cursor={cursor[:32]!r} is not one of ours; use `next_cursor` of the last page"
        ) from None


def content_type(name: bytes) -> str:
    """By the extension alone; what we do not know is bytes.

    >>> content_type(b"a.json"), content_type(b"log.txt"), content_type(b"a\\xff")
    ('application/json', 'text/plain; charset=utf-8', 'application/octet-stream')
    """
    extension = b"." + name.rpartition(b".")[2].lower()
    found = _TYPES.types_map[True].get(extension.decode("ascii", "replace"))
    if found is None or b"." not in name:
        return "application/octet-stream"
    return f"{found}; charset=utf-8" if found.startswith("text/") else found


def disposition(name: bytes) -> str:
    """`Content-Disposition` for any name (RFC 6266, RFC 5987); never inline, since a job wrote it.

    >>> disposition(b'a"b.txt')
    'attachment; filename="a_b.txt"; filename*=UTF-8\\'\\'a%22b.txt'
    """
    text = name.decode("utf-8", "replace")
    plain = "".join(char if char.isascii() and (char.isalnum() or char in "._- ") else "_" for char in text)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(text, safe='')}"
