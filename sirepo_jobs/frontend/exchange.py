"""One request from its first byte to the last byte of its answer.

An exchange is a Tornado message delegate: cheaper than a `RequestHandler` by a factor, and it sees
the headers before the body, so that nobody uploads what would be refused.
"""

import asyncio
import logging
import os
import re
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec
from tornado import httputil
from tornado.http1connection import HTTP1Connection

from sirepo_jobs.errors import BadInput, Error, RemoteError, TooLarge, Unavailable
from sirepo_jobs.resources import parse_secs
from sirepo_jobs.run_tree import CANNOT_OPEN, ON_DISK, OPENS_FILES, OnDisk, Refused
from sirepo_jobs.spec import JobSpec, parse_submission

from . import limits, openapi, query
from .auth import Principal, Scope
from .file_pass import FilePass
from .reply import Reply, passed_on
from .routes import Kind, Route, plain
from .upstream import Asking, Cut

if TYPE_CHECKING:
    from .server import Frontend

log = logging.getLogger(__name__)

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_IDEMPOTENCY_KEY = re.compile(r"[\x21-\x7e]{1,200}")
#: What the supervisor is told of a request for a file.
_CONDITIONS = ("Range", "If-Range", "If-None-Match")
_CONDITION = re.compile(r"[\t\x20-\x7e]{1,2000}")


class _Batch(msgspec.Struct):
    jobs: list[JobSpec]
    batch: bool


_encode = msgspec.json.Encoder().encode


def canonical_body(body: bytes) -> bytes:
    """A `POST /jobs` body as the supervisor takes it. Raises `BadInput`."""
    return _encode(_Batch(*parse_submission(body)))


class Exchange(httputil.HTTPMessageDelegate):
    """A request and its answer."""

    def __init__(self, frontend: "Frontend", connection: HTTP1Connection) -> None:
        self._frontend = frontend
        self._connection = connection
        self._begun_at = time.monotonic()
        self._line = httputil.RequestStartLine("", "", "")
        self._headers = httputil.HTTPHeaders()
        self._id = ""
        self._route: Route | None = None
        self._path = ""
        #: Of what the request has made.
        self._location = ""
        self._query: dict[str, str] = {}
        self._principal: Principal | None = None
        #: Counted by `Frontend.crowd`.
        self._entered = False
        #: The answer to a browser that asks whether it may ask.
        self._preflight: Mapping[str, str] | None = None
        self._body = bytearray()
        #: Counted by `Frontend.crowd` until the answer is over: what is decoded of it is larger still.
        self._held_bytes = 0
        self._body_limit = limits.MAX_SMALL_BODY_BYTES
        self._refusal: Error | None = None
        self._reply = Reply(
            connection, tls=frontend.tls is not None, on_status=self._told, on_over=self._leave
        )
        #: To be written down when it ends: it would change something, and was heard, or refused.
        self._to_note = False
        self._asking: Asking | None = None
        #: The body comes from the disk, and not from the supervisor.
        self._pass: FilePass | None = None
        #: An output may be told of instead of sent.
        self._opens_files = True
        self._task: asyncio.Task[None] | None = None

    # --- the request comes in --------------------------------------------------------------------

    def headers_received(
        self,
        start_line: httputil.RequestStartLine | httputil.ResponseStartLine,
        headers: httputil.HTTPHeaders,
    ) -> None:
        assert isinstance(start_line, httputil.RequestStartLine)
        self._line = start_line
        self._headers = headers
        self._frontend.expect(self, limits.BODY_SECS)
        self._reply.headers_only = start_line.method == "HEAD"
        given = headers.get("X-Request-Id", "")
        self._id = given if _REQUEST_ID.fullmatch(given) else os.urandom(12).hex()
        self._reply.always = {**self._frontend.origins.answer(headers), "X-Request-Id": self._id}
        self._frontend.enter(self)
        try:
            self._admit()
        except Error as exc:
            self._refuse(exc)

    def _admit(self) -> None:
        """Everything that can be said before the body is read."""
        limits.check_headers(self._line.path, self._headers)
        if self._line.version == "HTTP/1.1" and "Host" not in self._headers:
            raise BadInput("an HTTP/1.1 request has a Host header", code="no_host")
        path, _, raw_query = self._line.path.partition("?")
        self._path = self._frontend.public.inside(path)
        # SECURITY: S15, S16. Before anything that could tell a foreign page whether somebody is logged in.
        self._frontend.origins.check(self._line.method, self._headers)
        if (preflight := self._frontend.origins.preflight(self._line.method, self._headers)) is not None:
            self._preflight = preflight
            return
        # SECURITY: S1, S2. Without a token nobody learns which paths there are.
        if (route := self._frontend.table.open_route(self._line.method, self._path)) is None:
            self._principal = self._frontend.tokens.admit(self._headers)
            self._frontend.rates.take(self._principal)
            self._frontend.crowd.enter(self._principal)
            self._entered = True
            route = self._frontend.table.find(self._line.method, self._path)
            assert route.scope is not None
            self._principal.require(route.scope)
            self._path = plain(route, self._path)
        self._route = route
        self._query = query.canonical(raw_query, route.query)
        if route.kind is Kind.SUBMIT or route.large:
            self._body_limit = self._frontend.max_body_bytes
        # We count for ourselves: beyond its own limit Tornado hangs up without a word.
        self._connection.set_max_body_size(self._body_limit + limits.MAX_DISCARD_BYTES)
        self._check_length()

    def _check_length(self) -> None:
        length = self._headers.get("Content-Length", "")
        if length.isdecimal() and int(length[:18]) > self._body_limit:
            raise limits.body_too_large(self._body_limit)

    def _refuse(self, error: Error) -> None:
        """Answer with `error` as soon as the client is ready to listen."""
        self._refusal = error
        self._to_note = self._changes
        self._drop_body()
        # Somebody who sends much, to the right place, is a client with a large batch: it reads no
        # answer before all of it is sent, and would only see a broken connection.
        patience = limits.MAX_SMALL_BODY_BYTES
        if isinstance(error, TooLarge):
            patience = self._body_limit + limits.MAX_DISCARD_BYTES
        length = self._headers.get("Content-Length", "")
        if "Expect" in self._headers or (length.isdecimal() and int(length[:18]) > patience):
            self._connection.set_max_body_size(1 << 62)  # Tornado must not say anything after us
            self._tell(error)
        else:
            self._connection.set_max_body_size(patience)

    def data_received(self, chunk: bytes) -> None:
        if self._refusal is not None:
            return
        if len(self._body) + len(chunk) > self._body_limit:
            self._refuse(limits.body_too_large(self._body_limit))
            return
        try:
            self._frontend.crowd.hold(self._user, len(chunk))
        except Error as exc:
            self._refuse(exc)
        else:
            self._held_bytes += len(chunk)
            self._body += chunk

    @property
    def _user(self) -> str:
        return self._principal.user if self._principal else ""

    def _drop_body(self) -> None:
        self._body.clear()
        self._frontend.crowd.let_go(self._user, self._held_bytes)
        self._held_bytes = 0

    def finish(self) -> None:
        self._frontend.arrived(self)
        if self._reply.over:
            return
        self._to_note = self._to_note or (self._changes and self._refusal is None)
        self._connection.set_close_callback(self.on_connection_close)
        if self._refusal is not None:
            self._tell(self._refusal)
        elif self._preflight is not None:
            self._reply.whole(200, b"", {"Content-Type": "text/plain", **self._preflight})
        elif not self.may_stay:  # a body may be long in coming
            self._tell(self._frontend.tokens.copy.why_not_stay())
        elif self._changes and (trouble := self._frontend.audit.trouble) is not None:
            self._tell(Unavailable(f"the audit log cannot be written: {trouble}", code="audit_failed"))
        elif self._frontend.busy():
            self._tell(Unavailable("too many requests at the same time; try again", code="busy"))
        elif self._route is not None and self._route.kind is Kind.HEALTH:
            self._reply.whole(200, b'{"status":"ok"}\n')
        elif self._route is not None and self._route.kind is Kind.DOCUMENT:
            self._reply.whole(200, openapi.document_bytes(self._frontend.public.url))
        else:
            self._task = asyncio.create_task(self._forward(), name=f"exchange {self._id}")

    def on_connection_close(self) -> None:
        """The client is gone; so is every reason to bother the supervisor."""
        self._frontend.arrived(self)
        self._reply.leave()
        if self._asking is not None:
            self._asking.abort()
        self._connection.close()  # safe to repeat; it may be us who found out

    # --- to the supervisor -----------------------------------------------------------------------

    async def _forward(self) -> None:
        try:
            await self._ask()
        except Cut:
            self._tell(Unavailable("the supervisor went away while it answered"))
        except Error as exc:
            self._tell(exc)
        except Exception:
            log.exception("request failed", extra={"request_id": self._id, "path": self._path})
            self._tell(Error("something is wrong here; the log of the front end says what", code="internal"))

    async def _ask(self) -> None:
        route = self._route
        assert route is not None
        headers = {"X-Request-Id": self._id}
        if self._principal is not None:
            headers |= {"X-User": self._principal.user, "X-Role": self._principal.role}
        body = b""
        answer_secs: float | None = route.answer_secs + parse_secs(self._query.get("wait", "0"))
        if route.scope is Scope.SELF and self._principal is not None:
            headers |= {
                "X-Token": self._principal.token,
                "X-Scopes": ",".join(sorted(self._principal.scopes)),
            }
        if route.kind is Kind.ORDER:
            assert route.body is not None
            headers["Content-Type"] = "application/json"
            body = route.body(bytes(self._body))
        elif route.kind is Kind.SUBMIT:
            headers |= self._idempotency_key()
            headers["Content-Type"] = "application/json"
            body = await self._specs()
        elif route.kind is Kind.FILE:
            answer_secs = limits.FILE_ANSWER_SECS
            given = {name: self._headers.get(name, "") for name in _CONDITIONS}
            headers |= {name: value for name, value in given.items() if _CONDITION.fullmatch(value)}
        elif route.kind is Kind.STREAM:
            answer_secs = None  # a follower waits for its job
            if seen := self._headers.get("Last-Event-ID", ""):
                if not re.fullmatch(r"[0-9]{1,18}", seen):
                    raise BadInput("Last-Event-ID is the `id` of an event", code="bad_header")
                headers["Last-Event-ID"] = seen
            headers[OPENS_FILES] = "1"
        target = self._path + query.encode(self._query)
        while True:
            if self._reply.over:
                raise Cut  # the client left while its specs were read
            self._asking = self._frontend.upstream.ask(self)
            try:
                await self._asking.run(self._line.method, target, headers, body, answer_secs)
            except Cut:
                if self._opens_files or OPENS_FILES not in headers:
                    raise
            if self._pass is not None:
                await self._pass.settled.wait()
            if self._opens_files or headers.pop(OPENS_FILES, None) is None:
                return
            headers[CANNOT_OPEN] = "1"
            self._pass = None

    def _idempotency_key(self) -> dict[str, str]:
        key = self._headers.get("Idempotency-Key")
        if key is None:
            return {}
        if not _IDEMPOTENCY_KEY.fullmatch(key):
            raise BadInput("Idempotency-Key: use 1 to 200 visible ASCII characters", code="bad_header")
        return {"Idempotency-Key": key}

    async def _specs(self) -> bytes:
        body = bytes(self._body)
        self._body.clear()
        if len(body) > limits.MAX_INLINE_PARSE_BYTES:
            return await asyncio.to_thread(canonical_body, body)
        return canonical_body(body)

    # --- the answer (called by `Asking`) ---------------------------------------------------------

    def begin(self, status: int, headers: Mapping[str, str]) -> None:
        """The supervisor's status and headers are there."""
        assert self._route is not None
        if status == 401:
            # Ours to mend, not the client's: the secret has changed under a kept connection.
            log.error("the supervisor refuses our secret", extra={"request_id": self._id})
            self._tell(Unavailable("the supervisor does not know this front end; it may be restarting"))
            if self._asking is not None:
                self._asking.abort()
        elif self._route.kind is Kind.READY:
            if status == 200:
                self._reply.whole(200, b'{"status":"ready"}\n')
            else:
                self._tell(Unavailable("the supervisor is not ready yet"))
        else:
            passed = passed_on(headers, of_file=self._route.kind is Kind.FILE)
            if "Location" in passed:
                self._location = passed["Location"]
                passed["Location"] = self._frontend.public.outside(self._location)
            if self._route.kind is Kind.STREAM and (place := headers.get(ON_DISK.lower())):
                self._read_disk(place, status, passed)
            else:
                self._reply.begin(status, passed, headers.get("content-length", ""))

    def _read_disk(self, place: str, status: int, headers: dict[str, str]) -> None:
        """The supervisor will only say how far an output reaches."""
        try:
            found = OnDisk.from_header(place)
            self._pass = FilePass(
                found,
                self._frontend.disk_threads.lane(found.run_root),
                begin=lambda: self._reply.begin(status, headers, ""),
                data=self._reply.data,
                over=self._disk_over,
                direct=self._reply.plain_stream if self._line.version == "HTTP/1.1" else None,
            )
        except Refused as exc:
            self._disk_over(exc)

    def data(self, chunk: bytes) -> "asyncio.Future[None] | None":
        """A piece of the body; the future is done when the client's connection has taken it."""
        if self._pass is None:
            return self._reply.data(chunk)
        try:
            self._pass.feed(chunk)
        except RemoteError as exc:
            self._disk_over(exc)
        return None

    def end(self) -> None:
        """The answer is complete."""
        if self._pass is None:
            self._reply.end()
        else:
            self._pass.end()

    def _disk_over(self, error: Exception | None) -> None:
        """What the disk has to say was said, or cannot be; then the bytes may come the other way."""
        if error is None:
            self._reply.end()
            return
        if not isinstance(error, ConnectionError) and (self._pass is None or self._pass.may_complain()):
            words = {"request_id": self._id, "path": self._path, "why": str(error)}
            log.warning("an output cannot be read here", extra=words)
        if self._pass is not None:
            self._pass.close()
        if self._asking is not None and not self._reply.began:
            self._opens_files = False
            self._asking.abort()
        else:
            self._reply.break_off()

    # --- how it ends -----------------------------------------------------------------------------

    def cut(self) -> None:
        """The front end ends: a stream breaks off, so that its client asks again where it left off."""
        if self._asking is not None:
            self._asking.abort()
        self._tell(Unavailable("the front end is being restarted"))

    def dismiss(self) -> None:
        """Whoever asked has no valid token any more, or nobody can tell."""
        if self._asking is not None:
            self._asking.abort()
        self._tell(self._frontend.tokens.copy.why_not_stay())

    def give_up(self) -> None:
        """The client has had time enough to send its request."""
        self._frontend.arrived(self)
        self._connection.close()

    @property
    def may_stay(self) -> bool:
        """What let the caller in is still valid."""
        return self._principal is None or self._frontend.tokens.copy.stands(self._principal)

    @property
    def is_deserted(self) -> bool:
        """Nobody waits for the answer any more, whether we were told or not."""
        return self._reply.is_deserted(lasting=self.lasting)

    @property
    def lasting(self) -> bool:
        """It may take longer than anybody who ends the front end wants to wait."""
        return self._route is not None and (
            self._route.kind in (Kind.STREAM, Kind.FILE) or "wait" in self._query
        )

    @property
    def _changes(self) -> bool:
        return self._line.method not in ("GET", "HEAD", "OPTIONS")

    def _tell(self, error: Error) -> None:
        self._reply.problem(error, self._id)

    def _told(self, status: int, code: str) -> None:
        """Write down what the client is about to hear; only the first word counts."""
        self._note(status, code)
        if self._reply.began and log.isEnabledFor(logging.DEBUG):
            log.debug(
                "answered",
                extra={
                    "request_id": self._id,
                    "method": self._line.method,
                    "path": self._path,
                    "status": status,
                    "user": self._principal.user if self._principal else None,
                    "secs": round(time.monotonic() - self._begun_at, 6),
                },
            )

    def _note(self, status: int, code: str = "") -> None:
        """Write it into the audit log, once."""
        if self._to_note:
            self._to_note = False
            parts = (self._location or self._path).split("/", 5)
            self._frontend.audit.note(
                self._principal,
                request_id=self._id,
                method=self._line.method,
                path=self._path or self._line.path.partition("?")[0],
                object_id=parts[4] if len(parts) > 4 else "",
                status=status,
                code=code,
            )

    def _leave(self) -> None:
        if self._pass is not None:
            self._pass.close()
        if self._refusal is not None:
            self._note(self._refusal.http_status, code=self._refusal.code)
        self._note(0)
        self._drop_body()
        if self._entered and self._principal is not None:
            self._entered = False
            self._frontend.crowd.leave(self._principal)
        self._frontend.leave(self)
