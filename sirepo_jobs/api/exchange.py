"""One request at the supervisor's door, and the answer to it.

What every request passes is as short as it can be: Tornado's `RequestHandler` looks after cookies, templates,
entity tags and forms, of which nothing exists here. Its words are kept for what is the same.
"""

import asyncio
from collections.abc import Awaitable, Sequence
from http.client import responses

import structlog
from tornado.http1connection import HTTP1Connection
from tornado.httputil import (
    HTTPHeaders,
    HTTPMessageDelegate,
    HTTPServerRequest,
    RequestStartLine,
    ResponseStartLine,
)

from sirepo_jobs.errors import BadInput, Error, Unavailable

_log = structlog.get_logger(__name__)

_METHODS = frozenset({"GET", "HEAD", "POST", "PATCH", "PUT", "DELETE"})
#: Answers that have no body.
_BODILESS = frozenset({204, 304})


class MethodNotAllowed(Error):
    """The path is there, and takes other methods."""

    code = "http_405"
    http_status = 405


class Exchange:
    """A request and its answer. Subclasses have a method for each HTTP method, in lower case.

    An answer is begun once, by the first `flush` or by `finish`, and ended once, by `finish` or `cut`.
    """

    def __init__(self, request: HTTPServerRequest, connection: HTTP1Connection) -> None:
        self.request = request
        self._connection = connection
        self._status = 200
        self._headers = HTTPHeaders()
        self._chunks: list[bytes] = []
        #: Status and headers are on their way.
        self.began = False
        #: Nothing more will be said.
        self.over = False

    # -- what is asked

    def get_query_argument(self, name: str, default: str = "") -> str:
        """The last value of that name in the query, or `default`."""
        return (self.get_query_arguments(name) or [default])[-1]

    def get_query_arguments(self, name: str) -> list[str]:
        """All values of that name. Raises `BadInput` for bytes that are no text."""
        try:
            return [value.decode().strip() for value in self.request.query_arguments.get(name, ())]
        except UnicodeDecodeError:
            raise BadInput(f"{name} in the query is not UTF-8") from None

    # -- what is answered

    def set_status(self, status: int) -> None:
        """Unless it is 200."""
        self._status = status

    def set_header(self, name: str, value: str) -> None:
        """Before the answer begins."""
        self._headers[name] = value

    def write(self, chunk: bytes) -> None:
        """A piece of the body; goes with the next `flush` or `finish`."""
        self._chunks.append(chunk)

    async def flush(self) -> None:
        """Return when the connection has taken what was written. Raises `StreamClosedError`."""
        await self._pass_on()

    def finish(self, chunk: bytes = b"") -> None:
        """The answer is whole; with `chunk` as the last of its body."""
        if chunk:
            self._chunks.append(chunk)
        if not self.began and self._status not in _BODILESS and "Content-Length" not in self._headers:
            self._headers["Content-Length"] = str(sum(map(len, self._chunks)))
        if self._chunks or not self.began:
            self._pass_on()
        self._connection.finish()
        self.over = True

    def cut(self) -> None:
        """End without an end of the body, so that nobody takes what came for the whole (I13)."""
        self.over = True
        self._connection.close()

    def _pass_on(self) -> Awaitable[None]:
        chunk = b"".join(self._chunks)
        self._chunks.clear()
        if self.request.method == "HEAD":
            chunk = b""
        if self.began:
            return self._connection.write(chunk)
        self.began = True
        line = ResponseStartLine("HTTP/1.1", self._status, responses.get(self._status, "Unknown"))
        return self._connection.write_headers(line, self._headers, chunk)

    # -- from the first to the last

    def prepare(self) -> None:
        """Look whether the caller may ask at all. Raises an `Error` if not."""

    def fail(self, error: Error) -> None:
        """Answer with an error, before the answer has begun."""
        raise NotImplementedError

    def on_connection_close(self) -> None:
        """The reader left, while the answer was not over."""

    async def run(self, arguments: Sequence[str]) -> None:
        """Answer. Whatever goes wrong is an answer, too, or cuts the one that has begun."""
        try:
            self.prepare()
            method = self.request.method or ""
            answer = getattr(self, method.lower(), None) if method in _METHODS else None
            if answer is None:
                raise MethodNotAllowed(f"{method[:20]} cannot be asked of this")
            said = answer(*arguments)
            if said is not None:
                await said
            if not self.over:
                self.finish()
        except Error as exc:
            self._end_with(exc)
        except asyncio.CancelledError:
            # so are all requests when we end (F009)
            self._end_with(Unavailable("the supervisor is ending; ask again", code="ending"))
            raise
        except Exception:  # noqa: BLE001 (the edge of a task)
            # what we did not foresee says no more than that (S63)
            _log.exception("request failed", method=self.request.method, path=self.request.path)
            self._end_with(Error("something is wrong here; the supervisor's log says what", code="http_500"))

    def _end_with(self, error: Error) -> None:
        if self.over:
            return
        if self.began:
            self.cut()
            return
        self._chunks.clear()
        self._headers = HTTPHeaders()
        try:
            self.fail(error)
        except Exception:  # noqa: BLE001 (who waits for an answer that cannot be given shall hear the end)
            _log.exception("error cannot be told", path=self.request.path)
            self.cut()


class Arrival(HTTPMessageDelegate):
    """Tornado's side of an exchange: the request comes in, then the exchange is a task."""

    def __init__(self, exchange: Exchange, arguments: Sequence[str]) -> None:
        self._exchange = exchange
        self._arguments = arguments
        self._body: list[bytes] = []
        self._task: asyncio.Task[None] | None = None

    def headers_received(
        self, start_line: RequestStartLine | ResponseStartLine, headers: HTTPHeaders
    ) -> None:
        """They stand in the request."""

    def data_received(self, chunk: bytes) -> None:
        """A piece of the body."""
        self._body.append(chunk)

    def finish(self) -> None:
        """The request is whole."""
        exchange = self._exchange
        exchange.request.body = b"".join(self._body)
        exchange._connection.set_close_callback(exchange.on_connection_close)
        # whoever ends the loop cancels it, and nobody else
        self._task = asyncio.get_running_loop().create_task(exchange.run(self._arguments))

    def on_connection_close(self) -> None:
        """The request broke off."""
        self._body.clear()
