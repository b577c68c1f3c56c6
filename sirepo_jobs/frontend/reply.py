"""The answer to one request on its way to the client: headers first, once, then the body piece by piece.

Headers wait for the first piece of the body, so that a small answer leaves in one packet.
"""

import asyncio
import fcntl
import socket
import sys
import termios
import time
from collections.abc import Callable, Mapping
from email.utils import formatdate

from tornado import httputil
from tornado.http1connection import HTTP1Connection
from tornado.iostream import IOStream

from sirepo_jobs.errors import Error, Unauthorized, Unavailable

from . import limits, problems
from .problems import MethodNotAllowed
from .rates import TooManyRequests

#: What of the supervisor's headers clients see.
_PASSED_ON = {
    name.lower(): name
    for name in (
        "Content-Type",
        "Content-Length",
        "Location",
        "Retry-After",
        "X-Attempt",
        "Idempotent-Replayed",
        "X-Accel-Buffering",
        "Link",
    )
}
#: And of what it says about a file. Other answers have entity tags that nobody keeps.
_PASSED_ON_OF_FILES = _PASSED_ON | {
    name.lower(): name
    for name in (
        "ETag",
        "Last-Modified",
        "Accept-Ranges",
        "Content-Range",
        "Content-Disposition",
        "X-File-Kind",
    )
}
#: The state of a TCP connection that is open both ways (TCP_INFO).
_ESTABLISHED = 1
_SECURITY = {
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; sandbox",
    "Cross-Origin-Resource-Policy": "same-origin",
}
#: Behind TLS only: browsers never come back in the clear.
_HSTS = {"Strict-Transport-Security": "max-age=31536000"}


def passed_on(headers: Mapping[str, str], *, of_file: bool) -> dict[str, str]:
    """What of the supervisor's headers (names in lower case) the client gets, under their usual names."""
    names = _PASSED_ON_OF_FILES if of_file else _PASSED_ON
    passed = {name: headers[key] for key, name in names.items() if key in headers}
    if passed.get("X-File-Kind") == "archive":
        passed.pop("Content-Length", None)  # of a HEAD: nobody knows before it is made
    return passed


class Reply:
    """One answer. It begins once and ends once; what is said after its end is dropped."""

    def __init__(
        self,
        connection: HTTP1Connection,
        *,
        tls: bool,
        on_status: Callable[[int, str], None],
        on_over: Callable[[], None],
    ) -> None:
        """`on_status`: told status and problem code before the client hears of them. `on_over`: told when
        nothing will follow."""
        self._connection = connection
        self._tls = tls
        self._on_status = on_status
        self._on_over = on_over
        #: Headers that every answer to this request carries.
        self.always: Mapping[str, str] = {}
        #: A HEAD: what the body would be is told, and nothing of it.
        self.headers_only = False
        #: Headers that wait for the first piece of the body.
        self._held: tuple[int, httputil.HTTPHeaders] | None = None
        #: The client has been told a status.
        self.began = False
        #: Nothing more will be said.
        self.over = False

    def begin(self, status: int, headers: Mapping[str, str], length: str) -> None:
        """Status and headers are known; `length`: of the body, where it is."""
        self._held = (status, self._dress(headers))
        if not length.isdecimal() or int(length) > limits.MAX_HELD_BYTES:
            self._send_held(b"")  # a stream: whoever follows learns at once that it is open

    def data(self, chunk: bytes) -> "asyncio.Future[None] | None":
        """A piece of the body; the future is done when the client's connection has taken it."""
        if self.over or self._connection.stream.closed():
            return None
        if self._held is not None:
            self._send_held(chunk)
            return None
        return self._connection.write(chunk)

    def end(self) -> None:
        """The answer is complete."""
        if self.over:
            return
        if self._held is not None:
            self._send_held(b"")
        self._connection.finish()
        self.leave()

    def whole(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        """All of the answer at once."""
        if self.over:
            return
        self._held = (
            status,
            self._dress(
                {"Content-Type": "application/json", **(headers or {}), "Content-Length": str(len(body))}
            ),
        )
        self._send_held(body)
        self._connection.finish()
        self.leave()

    def problem(self, error: Error, request_id: str) -> None:
        """Say what is wrong. After the answer has begun that cannot be said: it breaks off."""
        if self.began:
            self.break_off()
            return
        self._on_status(error.http_status, error.code)
        headers = {"Content-Type": problems.CONTENT_TYPE}
        if isinstance(error, Unavailable):
            headers["Retry-After"] = str(limits.RETRY_AFTER_SECS)
        elif isinstance(error, TooManyRequests):
            headers["Retry-After"] = str(error.retry_after_secs)
        elif isinstance(error, MethodNotAllowed):
            headers["Allow"] = error.allow
        elif isinstance(error, Unauthorized):
            headers["WWW-Authenticate"] = "Bearer"
        self.whole(error.http_status, problems.problem(error, request_id), headers)

    def break_off(self) -> None:
        """Close the connection without an end of the body: the client sees that something is missing."""
        if not self.over:
            self._connection.close()
            self.leave()

    def leave(self) -> None:
        """Nothing more will be said; safe to repeat."""
        self.over = True
        self._on_over()

    @property
    def plain_stream(self) -> IOStream | None:
        """The connection, where what is written to its socket comes to the client as it is."""
        return None if self._tls or self.headers_only else self._connection.stream

    def is_deserted(self, *, lasting: bool) -> bool:
        """The client has closed its connection, whether we were told or not, or (where the answer is a
        lasting one) has sent so much that nobody could tell whether it has."""
        stream = self._connection.stream
        if stream is None or stream.closed():
            return True
        unread = int.from_bytes(fcntl.ioctl(stream.socket, termios.FIONREAD, bytes(4)), sys.byteorder)
        state = stream.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
        return state != _ESTABLISHED or (lasting and unread > limits.MAX_READ_HEADER_BYTES)

    def _dress(self, headers: Mapping[str, str]) -> httputil.HTTPHeaders:
        return httputil.HTTPHeaders(
            {
                **headers,
                **_SECURITY,
                **(_HSTS if self._tls else {}),
                **self.always,
                "Date": _date(int(time.time())),
            }
        )

    def _send_held(self, chunk: bytes) -> None:
        assert self._held is not None
        status, headers = self._held
        self._held = None
        self.began = True
        self._on_status(status, "")
        if self.headers_only:
            chunk = b""
        self._connection.write_headers(
            httputil.ResponseStartLine("HTTP/1.1", status, problems.phrase(status)), headers, chunk or None
        )


_date_cache = (0, "")


def _date(now: int) -> str:
    """The `Date` header, made once a second."""
    global _date_cache
    if _date_cache[0] != now:
        _date_cache = (now, formatdate(now, usegmt=True))
    return _date_cache[1]
