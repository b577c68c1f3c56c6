"""What every route of the supervisor's door has in common: who asks, what is answered, how errors look.

The front end has authenticated, authorised and validated; this door believes it, because it knows the
shared secret, and answers with the user's jobs only.
"""

import asyncio
import contextlib
import hmac
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from typing import Any, TypeVar

import msgspec
import structlog
from tornado.http1connection import HTTP1Connection
from tornado.httputil import HTTPServerRequest
from tornado.iostream import StreamClosedError

from sirepo_jobs.agent_claim import Agent
from sirepo_jobs.commits import LOOK_SECS
from sirepo_jobs.compute_job import ComputeJob
from sirepo_jobs.errors import BadInput, Error, NotFound, Unauthorized, Unavailable
from sirepo_jobs.intake import Intake
from sirepo_jobs.job import State
from sirepo_jobs.resources import parse_secs
from sirepo_jobs.store import StoredJob
from sirepo_jobs.supervisor import Supervisor
from sirepo_jobs.views import job_view

from .exchange import Exchange

_log = structlog.get_logger(__name__)
encode = msgspec.json.Encoder().encode

MAX_WAIT_SECS = 300.0

_Result = TypeVar("_Result")


class House:
    """What the handlers need; one per process."""

    def __init__(self, supervisor: Supervisor, secret: str) -> None:
        self.supervisor = supervisor
        self.intake = Intake(supervisor)
        self.secret = secret.encode()


class Handler(Exchange):
    """Common to all routes: who asks, and how errors are answered."""

    user: str
    is_admin: bool
    #: What is being streamed, while something is.
    _stream: asyncio.Task[None] | None = None

    def __init__(self, house: House, request: HTTPServerRequest, connection: HTTP1Connection) -> None:
        super().__init__(request, connection)
        self.house = house
        self.supervisor = house.supervisor

    def prepare(self) -> None:
        """Deny by default: only who knows the secret gets any further (S1, SIR-03)."""
        scheme, _, secret = self.request.headers.get("Authorization", "").partition(" ")
        if scheme != "Bearer" or not hmac.compare_digest(secret.encode(), self.house.secret):
            raise Unauthorized("the supervisor answers its front end only")
        self.user = self.request.headers.get("X-User", "")
        self.is_admin = self.request.headers.get("X-Role") == "admin"
        if not self.user:
            raise Unauthorized("the front end named no user")

    def answer(self, body: Any, status: int = 200) -> None:
        """Finish with a JSON body."""
        self.set_status(status)
        self.set_header("Content-Type", "application/json")
        self.finish(encode(body))

    def fail(self, error: Error) -> None:
        """Every error is a problem (RFC 9457)."""
        problem: dict[str, Any] = {
            "type": f"urn:sirepo-jobs:problem:{error.code}",
            "title": error.code.replace("_", " "),
            "status": error.http_status,
            "code": error.code,
            "detail": str(error),
            "request_id": self.request.headers.get("X-Request-Id", ""),
        }
        if isinstance(error, BadInput) and error.pointer:
            problem["pointer"] = error.pointer
        self.set_status(error.http_status)
        if error.http_status == 503:
            self.set_header("Retry-After", "1")
        self.set_header("Content-Type", "application/problem+json")
        self.finish(encode(problem))

    # -- helpers

    @contextlib.asynccontextmanager
    async def job(self, jid: str) -> AsyncIterator[ComputeJob]:
        """The job, kept in memory meanwhile, if the caller may see it.

        A foreign one is as missing as a missing one (S4).
        """
        async with self.supervisor.jobs.hold(jid) as job:
            damaged = None if job is not None else self.supervisor.jobs.damaged.get(jid)
            if damaged is not None and (self.is_admin or damaged.stored.record.user == self.user):
                raise damaged
            if job is None or not (self.is_admin or job.record.user == self.user):
                raise NotFound(f"there is no job {jid[:64]!r}", code="job_not_found")
            yield job

    async def settled(self) -> None:
        """Until everything so far is durable, or cannot be: readers are not held up by a full disk."""
        await self.supervisor.commits.settled()

    async def before(self, job: ComputeJob) -> StoredJob | None:
        """None once the job is durable as it is; while nothing can be written, what was written down last.

        Raises `Unavailable` for a job that was never written down.
        """
        store = self.supervisor.store
        while job.seen < job.record.version:
            if store.degraded:
                for stored in await store.jobs([job.jid]):
                    return stored
                raise Unavailable(f"job {job.jid} is not written down yet: {store.degraded}")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECS):
                    await job.change(job.seen)
        return None

    def changing(self) -> None:
        """Before anything is changed. Raises `Unavailable` while nothing can be written down (C14)."""
        if why := self.supervisor.store.degraded:
            raise Unavailable(f"nothing can be changed now: {why}", code="store_degraded")

    async def kept(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        """What comes of work that ends with a commit. Raises `Unavailable` when that cannot be written now.

        The work is not broken off: it is done when the store can be written again.
        """
        task = asyncio.ensure_future(work)
        if not await self.supervisor.commits.unless_degraded(task):
            task.add_done_callback(_forget)
            raise self.supervisor.commits.unwritten("ask again")
        return task.result()

    async def written(self, job: ComputeJob | None = None) -> None:
        """Until everything so far is durable, and `job` as it is by then. Raises as `kept` does."""
        await self.supervisor.commits.written()
        if job is not None and job.seen < job.record.version:
            await self.kept(job.settled())  # it has gone on while that was written down

    def may_know(self, agent: Agent) -> bool:
        """Whether the agent is the caller's business."""
        return self.is_admin or agent.environment.user == self.user

    def view(self, job: ComputeJob, *, spec: bool = True) -> dict[str, Any]:
        """The job as it stands, with the reason why it waits if it does."""
        why = self.supervisor.dispatch.why_pending(job) if job.record.state is State.PENDING else None
        run_root = self.supervisor.agents.run_root(job.record.user, job.record.agent)
        return job_view(job.record, job.fixed, spec=spec, why=why, run_root=run_root)

    async def durable_view(self, job: ComputeJob) -> dict[str, Any]:
        """Nothing that is not durable is shown: while nothing can be written, what was before."""
        before = await self.before(job)
        if before is not None:
            run_root = self.supervisor.agents.run_root(before.record.user, before.record.agent)
            return job_view(before.record, before.fixed, why=None, run_root=run_root)
        return self.view(job)

    def wait_secs(self) -> float:
        """How long the caller wants to wait for what is asked; 0 for not at all."""
        return min(parse_secs(self.get_query_argument("wait", "0") or "0"), MAX_WAIT_SECS)

    def number(self, name: str, default: int | None = None, *, high: int = 1 << 62) -> int | None:
        """A whole number of the query, or `default`."""
        text = self.get_query_argument(name, "")
        if not text:
            return default
        if not text.isdecimal() or not text.isascii() or int(text) > high:
            raise BadInput(f"{name}={text[:32]!r} is not a whole number up to {high}")
        return int(text)

    def flag(self, name: str) -> bool:
        """A yes/no of the query."""
        return self.get_query_argument(name, "").lower() in ("1", "true", "yes")

    async def send(
        self, chunks: AsyncGenerator[bytes, None] | AsyncGenerator[bytes | memoryview, None]
    ) -> None:
        """Stream chunks at the reader's pace; a reader that leaves ends the stream, and nothing else.

        Only a stream that came to its end is ended properly: after an error, or when we stop, the
        connection is cut, so that nobody takes what came for the whole.
        """
        self._stream = asyncio.create_task(self._send(chunks))
        try:
            await asyncio.wait({self._stream})
        finally:
            if not self._stream.done():
                self._stream.cancel()
        if self._stream.cancelled():
            self.cut()
            return
        error = self._stream.exception()
        if error is None:
            self.finish()
        elif not self.began:
            raise error
        else:
            _log.warning("stream cut", path=self.request.path, why=str(error))
            self.cut()

    async def _send(
        self, chunks: AsyncGenerator[bytes, None] | AsyncGenerator[bytes | memoryview, None]
    ) -> None:
        async with contextlib.aclosing(chunks):
            try:
                async for chunk in chunks:
                    self.write(bytes(chunk))
                    await self.flush()
            except StreamClosedError:
                raise asyncio.CancelledError from None

    async def stays(self, waiting: Coroutine[Any, Any, None]) -> bool:
        """Wait for something that may never come; False as soon as nobody waits for our answer any more."""
        self._stream = asyncio.create_task(waiting)
        try:
            await asyncio.wait({self._stream})
        finally:
            self._stream.cancel()
        if self._stream.cancelled():
            return False
        self._stream.result()
        return True

    def on_connection_close(self) -> None:
        """The reader left."""
        if self._stream is not None:
            self._stream.cancel()


def _forget(task: "asyncio.Task[Any]") -> None:
    """Nobody waits for it any more; what it raises is no news to anybody."""
    if not task.cancelled():
        task.exception()
