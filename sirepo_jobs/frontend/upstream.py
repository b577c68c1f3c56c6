"""The line to the supervisor: HTTP over its unix socket, one request in for one request out (SIR-01).

Connections are kept and used again. An answer is handed on piece by piece, and the next piece is
read only when the receiver has taken the last: a slow reader slows its own stream down and costs
nobody memory.
"""

import asyncio
import errno
import logging
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from sirepo_jobs import logs, rootdir
from sirepo_jobs.errors import RemoteError, Unavailable

from . import limits
from .response import ResponseReader

log = logging.getLogger(__name__)

#: A full backlog of the socket empties within milliseconds, or the supervisor hangs.
_CONNECT_TRIES = 50
_CONNECT_PAUSE_SECS = 0.02


class Answer(Protocol):
    """Whoever takes the supervisor's answer."""

    def begin(self, status: int, headers: Mapping[str, str]) -> None:
        """Status and headers (names in lower case) are there."""

    def data(self, chunk: bytes) -> "asyncio.Future[None] | None":
        """Some of the body; the next comes when the future is done."""

    def end(self) -> None:
        """The answer is complete."""


class Cut(Exception):
    """The answer ended before it was complete, after it had begun."""


class Line(asyncio.Protocol):
    """One connection to the supervisor; carries one request after the other."""

    def __init__(self, upstream: "Upstream", secret: str) -> None:
        self._upstream = upstream
        self._authorization = f"Bearer {secret}"
        self._transport: asyncio.Transport | None = None
        self._reader = ResponseReader()
        self._answer: Answer | None = None
        self._over: asyncio.Future[bool] | None = None
        self.used = False

    @property
    def closed(self) -> bool:
        """It carries nothing any more."""
        return self._transport is None or self._transport.is_closing()

    def ask(
        self, answer: Answer, method: str, target: str, headers: Mapping[str, str], body: bytes
    ) -> "asyncio.Future[bool]":
        """Send a request; the future says whether a whole answer came."""
        assert self._transport is not None
        self.used = True
        self._reader = ResponseReader(has_body=method != "HEAD")
        self._answer = answer
        self._over = asyncio.get_running_loop().create_future()
        length = "" if method in ("GET", "HEAD") else f"Content-Length: {len(body)}\r\n"
        words = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        head = f"{method} {target} HTTP/1.1\r\nHost: supervisor\r\nAuthorization: {self._authorization}\r\n"
        self._transport.write(f"{head}{length}{words}\r\n".encode("latin1") + body)
        return self._over

    def hang_up(self) -> None:
        """Close the connection at once; a request under way has no whole answer."""
        if self._transport is not None:
            self._transport.abort()

    # what the event loop tells us

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        answer, reader = self._answer, self._reader
        if answer is None:
            log.warning("the supervisor spoke without being asked", extra={"bytes": len(data)})
            self.hang_up()
            return
        status = reader.status
        try:
            chunk = reader.feed(data)
        except RemoteError as exc:
            log.error("the supervisor's answer cannot be read", extra={"why": str(exc)})
            self.hang_up()
            return
        if reader.status != status:
            answer.begin(reader.status, reader.headers)
        taken = answer.data(chunk) if chunk else None
        if reader.done:
            self._end(whole=True)
        elif taken is not None and not taken.done():
            assert self._transport is not None
            self._transport.pause_reading()
            taken.add_done_callback(self._taken)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._upstream.forget(self)
        if self._answer is not None:
            if exc is None:
                self._reader.close()
            self._end(whole=self._reader.done)

    def _taken(self, taken: "asyncio.Future[None]") -> None:
        if not taken.cancelled():
            taken.exception()  # a client that went away is told to `Asking` by other ways
        if self._transport is not None and self._answer is not None:
            self._transport.resume_reading()

    def _end(self, *, whole: bool) -> None:
        answer, over = self._answer, self._over
        self._answer = self._over = None
        assert answer is not None
        if whole and self._reader.reusable and not self.closed:
            self._upstream.give_back(self)
        else:
            self.hang_up()
        if whole:
            answer.end()
        if over is not None and not over.done():
            over.set_result(whole)


class Asking:
    """One request to the supervisor, under way."""

    def __init__(self, upstream: "Upstream", answer: Answer) -> None:
        self._upstream = upstream
        self._answer = answer
        self._line: Line | None = None
        self._began = False
        self._aborted = False

    async def run(
        self, method: str, target: str, headers: Mapping[str, str], body: bytes, answer_secs: float | None
    ) -> None:
        """Ask, and hand the answer on until it ends.

        Raises `Unavailable` when there is none within `answer_secs`, `Cut` when it broke off. A GET is
        repeated once when a kept connection turns out to be dead; nothing else is ever sent twice.
        """
        while True:
            line = await self._upstream.line()
            if self._aborted:
                self._upstream.give_back(line)
                raise Cut
            fresh = not line.used
            self._line = line
            timer = answer_secs and asyncio.get_running_loop().call_later(answer_secs, self._too_late)
            try:
                whole = await line.ask(self, method, target, headers, body)
            finally:
                self._line = None
                if timer:
                    timer.cancel()
            if whole:
                return
            if self._began or self._aborted:
                raise Cut
            reads = method in ("GET", "HEAD")
            if fresh or not reads:
                raise Unavailable(
                    "the supervisor went away before it answered"
                    + ("" if reads else "; the request may have been carried out all the same")
                )

    def abort(self) -> None:
        """Nobody wants the answer any more: the connection to the supervisor is closed."""
        self._aborted = True
        if self._line is not None:
            self._line.hang_up()

    def _too_late(self) -> None:
        if not self._began and self._line is not None:
            self._line.hang_up()

    def begin(self, status: int, headers: Mapping[str, str]) -> None:
        self._began = True
        if not self._aborted:
            self._answer.begin(status, headers)

    def data(self, chunk: bytes) -> "asyncio.Future[None] | None":
        return None if self._aborted else self._answer.data(chunk)

    def end(self) -> None:
        if not self._aborted:
            self._answer.end()


class Upstream:
    """The way to the supervisor of one root, whoever it is at the moment."""

    def __init__(self, root: Path) -> None:
        self._root = root
        # Socket addresses are limited to 108 bytes, roots are not.
        self._dir = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._idle: list[Line] = []

    def ask(self, answer: Answer) -> Asking:
        """A request that is about to be made."""
        return Asking(self, answer)

    async def line(self) -> Line:
        """A connection, kept or new. Raises `Unavailable` when there is no supervisor."""
        while self._idle:
            line = self._idle.pop()  # the newest: old ones time out
            if not line.closed:
                return line
        return await self._connect()

    def give_back(self, line: Line) -> None:
        """Keep a connection whose last answer was read to its end."""
        if self._dir < 0 or len(self._idle) >= limits.MAX_IDLE_LINES:
            line.hang_up()
        else:
            self._idle.append(line)

    def forget(self, line: Line) -> None:
        """A connection is gone."""
        if line in self._idle:
            self._idle.remove(line)

    def close(self) -> None:
        """Hang up; safe to repeat."""
        for line in list(self._idle):
            line.hang_up()
        self._idle.clear()
        if self._dir >= 0:
            os.close(self._dir)
            self._dir = -1

    async def _connect(self) -> Line:
        # The secret is read for each connection: a new supervisor may have made a new one.
        try:
            secret = (self._root / rootdir.SECRET).read_text("ascii").strip()
        except (OSError, UnicodeDecodeError):
            raise Unavailable("the supervisor has not started yet") from None
        logs.hide(secret)
        end = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            await self._reach(end)
            _, line = await asyncio.get_running_loop().create_unix_connection(
                lambda: Line(self, secret), sock=end
            )
        except BaseException:
            end.close()
            raise
        return line

    async def _reach(self, end: socket.socket) -> None:
        for _ in range(_CONNECT_TRIES):
            try:
                return end.connect(f"/proc/self/fd/{self._dir}/{rootdir.SOCKET}")
            except BlockingIOError:  # the backlog is full; a unix socket does not wait in line
                await asyncio.sleep(_CONNECT_PAUSE_SECS)
            except OSError as exc:
                if exc.errno in (errno.ENOENT, errno.ECONNREFUSED):
                    raise Unavailable("the supervisor is away; it may be restarting") from None
                raise Unavailable(f"the supervisor cannot be reached: {exc.strerror}") from None
        raise Unavailable("the supervisor takes no more connections at the moment")
