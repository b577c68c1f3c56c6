"""The supervisor's door for the front end: HTTP on a unix socket, one request, one answer (SIR-01, SIR-08).

The front end has authenticated, authorised and validated; this door believes it, because it knows the
shared secret, and answers with the user's jobs only.
"""

import asyncio
import base64
import contextlib
import hmac
from collections.abc import AsyncGenerator, Iterator
from typing import Any, Literal

import msgspec
import structlog
from msgspec import Struct
from tornado.iostream import StreamClosedError
from tornado.web import RequestHandler

from .compute_job import ComputeJob
from .errors import BadInput, Error, NotFound, Unauthorized
from .events import CancelAsked
from .intake import Intake
from .job import FINAL, HELD_BY_AGENT, State
from .reasons import Reason
from .resources import parse_secs
from .spec import JobSpec
from .store import JobQuery
from .supervisor import Supervisor
from .views import attempt_view, event_view, job_view

_log = structlog.get_logger(__name__)
_encode = msgspec.json.Encoder().encode

MAX_WAIT_SECS = 300.0
MAX_PAGE = 1000
#: A comment line on a silent event stream, so that proxies keep it open (F070).
KEEP_ALIVE_SECS = 15.0


class Submission(Struct, frozen=True):
    """What the front end forwards of a `POST /jobs`: specs that it has checked."""

    jobs: list[JobSpec]
    batch: bool = False


_decode_submission = msgspec.json.Decoder(Submission).decode


class House:
    """What the handlers need; one per process."""

    def __init__(self, supervisor: Supervisor, secret: str) -> None:
        self.supervisor = supervisor
        self.intake = Intake(supervisor)
        self.secret = secret.encode()


class Handler(RequestHandler):
    """Common to all routes: who asks, and how errors are answered."""

    user: str
    is_admin: bool
    #: What is being streamed, while something is.
    _stream: asyncio.Task[None] | None = None

    def initialize(self, house: House) -> None:
        """Called by Tornado with the arguments of the route."""
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
        self.finish(_encode(body))

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Every error is a problem (RFC 9457); what we did not foresee says no more than that (S63)."""
        exc = kwargs.get("exc_info", (None, None))[1]
        if isinstance(exc, Error):
            status_code, code, detail = exc.http_status, exc.code, str(exc)
        else:
            code, detail = f"http_{status_code}", self._reason
        problem: dict[str, Any] = {
            "type": f"urn:sirepo-jobs:problem:{code}",
            "title": code.replace("_", " "),
            "status": status_code,
            "code": code,
            "detail": detail,
            "request_id": self.request.headers.get("X-Request-Id", ""),
        }
        if isinstance(exc, BadInput) and exc.pointer:
            problem["pointer"] = exc.pointer
        self.set_status(status_code)
        if status_code == 503:
            self.set_header("Retry-After", "1")
        self.set_header("Content-Type", "application/problem+json")
        self.finish(_encode(problem))

    def log_exception(self, typ: Any, value: Any, tb: Any) -> None:
        """Foreseen errors are answers, not incidents."""
        if not isinstance(value, Error):
            super().log_exception(typ, value, tb)

    # -- helpers

    async def job(self, jid: str) -> ComputeJob:
        """The job, if the caller may see it; a foreign one is as missing as a missing one (S4)."""
        job = await self.supervisor.jobs.load(jid)
        if job is None or not (self.is_admin or job.record.user == self.user):
            raise NotFound(f"there is no job {jid[:64]!r}", code="job_not_found")
        return job

    @contextlib.contextmanager
    def pinned(self, job: ComputeJob) -> Iterator[None]:
        """Keep the job in memory while a request looks at it."""
        job.pins += 1
        try:
            yield
        finally:
            job.pins -= 1
            self.supervisor.jobs.release(job)

    def view(self, job: ComputeJob, *, spec: bool = True) -> dict[str, Any]:
        """The job as it stands, with the reason why it waits if it does."""
        why = self.supervisor.why_pending(job) if job.record.state is State.PENDING else None
        return job_view(job.record, job.fixed, spec=spec, why=why)

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

    async def send(self, chunks: AsyncGenerator[bytes | memoryview, None]) -> None:
        """Stream chunks at the reader's pace; a reader that leaves ends the stream, and nothing else."""
        self._stream = asyncio.create_task(self._send(chunks))
        await asyncio.wait({self._stream})
        if not self._stream.cancelled():
            self._stream.result()
            self.finish()

    async def _send(self, chunks: AsyncGenerator[bytes | memoryview, None]) -> None:
        async with contextlib.aclosing(chunks):
            try:
                async for chunk in chunks:
                    self.write(bytes(chunk))
                    await self.flush()
            except StreamClosedError:
                raise asyncio.CancelledError from None

    def on_connection_close(self) -> None:
        """The reader left."""
        if self._stream is not None:
            self._stream.cancel()


class Jobs(Handler):
    """`/jobs`: create, list."""

    async def post(self) -> None:
        """One or many new jobs; durable when answered."""
        try:
            submission = _decode_submission(self.request.body)
        except (msgspec.DecodeError, RecursionError) as exc:
            raise BadInput(f"not a submission of the front end: {exc}") from None
        key = self.request.headers.get("Idempotency-Key")
        records, made = await self.house.intake.submit(self.user, submission.jobs, key)
        answers = [{"jid": r.jid, "serial": r.serial, "state": r.state} for r in records]
        if not made:
            self.set_header("Idempotent-Replayed", "true")
        if not submission.batch:
            self.set_header("Location", f"/api/v1/jobs/{records[0].jid}")
        self.answer({"jobs": answers} if submission.batch else answers[0], 201)

    async def get(self) -> None:
        """A page of jobs, newest first; never carries specs or logs."""
        limit = min(self.number("limit", 100) or 100, MAX_PAGE)
        query = JobQuery(
            user=self._whose(),
            states=self._states(),
            name_prefix=self.get_query_argument("name_prefix", "") or None,
            before_seq=_open_cursor(self.get_query_argument("cursor", "")),
            limit=limit + 1,
            with_spec=True,
        )
        rows = await self.supervisor.store.list_jobs(query)
        more = len(rows) > limit
        rows = rows[:limit]
        views = []
        for row in rows:
            job = self.supervisor.jobs.get(row.record.jid)
            waits = job is not None and job.record.state is State.PENDING is row.record.state
            why = self.supervisor.why_pending(job) if job is not None and waits else None
            views.append(job_view(row.record, row.fixed, spec=False, why=why))
        cursor = _cursor(rows[-1].record.seq) if more else None
        self.answer({"jobs": views, "next_cursor": cursor})

    def _whose(self) -> str | None:
        wanted = self.get_query_argument("user", "") or None
        if self.is_admin:
            return wanted
        if wanted is not None and wanted != self.user:
            raise NotFound("there are no such jobs", code="job_not_found")
        return self.user

    def _states(self) -> list[State]:
        names = [n for part in self.get_query_arguments("state") for n in part.split(",") if n]
        states = set()
        for name in names:
            if name == "active":
                states |= {State.INACTIVE, State.PENDING, State.HELD, *HELD_BY_AGENT}
            elif name == "final":
                states |= FINAL
            else:
                try:
                    states.add(State(name.replace("cancelled", "canceled")))
                except ValueError:
                    known = ", ".join([*State, "active", "final"])
                    raise BadInput(f"state={name[:32]!r} is no state; there are: {known}") from None
        return sorted(states)


class Job(Handler):
    """`/jobs/{jid}`: one job; with `wait` and `version` a blocking query."""

    async def get(self, jid: str) -> None:
        """The job as soon as its version is above `version`, or `wait` is over."""
        job = await self.job(jid)
        version = self.number("version")
        wait_secs = min(parse_secs(self.get_query_argument("wait", "0") or "0"), MAX_WAIT_SECS)
        with self.pinned(job):
            if job.seen < job.record.version:
                await job.change(job.record.version - 1)  # show nothing that is not durable
            if version is not None and wait_secs:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait_secs):
                        await job.change(version)
            self.answer(self.view(job))


class Cancel(Handler):
    """`/jobs/{jid}/cancel`."""

    async def post(self, jid: str) -> None:
        """Ask the job to end; asking again, or too late, changes nothing (SIR-23)."""
        job = await self.job(jid)
        reason = Reason.CANCELED_BY_USER if job.record.user == self.user else Reason.CANCELED_BY_ADMIN
        with self.pinned(job):
            self.supervisor.tell(job, CancelAsked(at=self.supervisor.now(), by=self.user, reason=reason))
            await self.supervisor.commits.durable()
            self.answer(self.view(job))


class Attempts(Handler):
    """`/jobs/{jid}/attempts`."""

    async def get(self, jid: str) -> None:
        """Every execution that is over, and the one that is not."""
        job = await self.job(jid)
        await self.supervisor.commits.durable()
        attempts = await self.supervisor.store.attempts(job.jid)
        self.answer({"attempts": [attempt_view(attempt) for attempt in attempts]})


class JobEvents(Handler):
    """`/jobs/{jid}/events`."""

    async def get(self, jid: str) -> None:
        """What happened to the job, in order."""
        job = await self.job(jid)
        await self.supervisor.commits.durable()
        rows = await self.supervisor.store.events(after=0, limit=10_000, jid=job.jid)
        self.answer({"events": [event_view(row) for row in rows]})


class Logs(Handler):
    """`/jobs/{jid}/logs/{stream}`: bytes at offsets, as they are."""

    async def get(self, jid: str, stream: Literal["stdout", "stderr"]) -> None:
        """The bytes from `offset`; with `follow` until the attempt has ended and everything is sent."""
        job = await self.job(jid)
        offset = self.number("offset", 0) or 0
        limit = self.number("limit")
        follow = self.flag("follow")
        with self.pinned(job):
            if follow and not self.get_query_argument("attempt", ""):
                while job.record.started_at is None and job.record.state not in FINAL:
                    await job.change(job.record.version)
            attempt = self.number("attempt", job.record.attempt) or 0
            self.set_header("Content-Type", "application/octet-stream")
            self.set_header("X-Attempt", str(attempt))
            where = await self._where(job, attempt)
            if where is None:
                self.finish()
                return
            run_dir, agent_name = where
            agent = self.supervisor.agents.get(agent_name) or self.supervisor.agents.at(
                self.supervisor.environment(job)
            )
            self.set_header("X-Accel-Buffering", "no")
            await self.flush()
            await self.send(
                self.supervisor.readings.read(
                    job,
                    run_dir=run_dir,
                    attempt=attempt,
                    agent=agent,
                    stream=stream,
                    offset=offset,
                    limit=limit,
                    follow=follow and attempt == job.record.attempt,
                )
            )

    async def _where(self, job: ComputeJob, attempt: int) -> tuple[str, str] | None:
        """Run dir and agent of an attempt; None while there is nothing to read."""
        record = job.record
        if not 0 <= attempt <= record.attempt:
            raise NotFound(
                f"job {record.jid} has {record.attempt} attempts, not {attempt}", code="no_such_attempt"
            )
        if attempt == 0:
            return None
        if attempt == record.attempt and record.state is not State.PENDING:
            if record.started_at is None:
                return None
            return (record.run_dir, record.agent) if record.run_dir and record.agent else None
        await self.supervisor.commits.durable()
        for row in await self.supervisor.store.attempts(record.jid):
            if row.attempt == attempt and row.run_dir and row.agent and row.started_at is not None:
                return row.run_dir, row.agent
        return None


class Events(Handler):
    """`/events`: server-sent events, resumable."""

    async def get(self) -> None:
        """Every event after `after` (or `Last-Event-ID`) that the caller may see, then the new ones."""
        last = self.request.headers.get("Last-Event-ID", "")
        after = self.number("after", int(last) if last.isdecimal() and len(last) < 19 else None)
        self.set_header("Content-Type", "text/event-stream")
        self.set_header("X-Accel-Buffering", "no")
        self.write(b": hello\n\n")
        await self.flush()
        start = self.supervisor.events.last if after is None else after
        await self.send(self._lines(start))

    async def _lines(self, after: int) -> AsyncGenerator[bytes, None]:
        rows = self.supervisor.events.follow(after, user=None if self.is_admin else self.user)
        async with contextlib.aclosing(rows) as flow:
            pending = asyncio.ensure_future(anext(flow))
            try:
                while True:
                    done, _ = await asyncio.wait({pending}, timeout=KEEP_ALIVE_SECS)
                    if not done:
                        yield b": still here\n\n"
                        continue
                    row = pending.result()
                    pending = asyncio.ensure_future(anext(flow))
                    yield b"id: %d\nevent: job\ndata: %s\n\n" % (row.seq, _encode(event_view(row)))
            finally:
                pending.cancel()
                await asyncio.gather(pending, return_exceptions=True)


class Agents(Handler):
    """`/agents`."""

    async def get(self) -> None:
        """The agents that the caller may know of."""
        self.answer(
            {
                "agents": [
                    {
                        "agent": agent.name,
                        "user": agent.environment.user,
                        "driver": agent.environment.driver,
                        "state": agent.state,
                        "ops": len(agent.ops),
                        "host": agent.host,
                        "version": agent.version,
                        "trouble": agent.trouble,
                    }
                    for agent in self.supervisor.agents
                    if self.is_admin or agent.environment.user == self.user
                ]
            }
        )


class StopAgents(Handler):
    """`/agents/stop`: end every agent and its jobs (`down --stop-agents`)."""

    async def post(self) -> None:
        """Answered when they are gone."""
        if not self.is_admin:
            raise NotFound("there is no such page")
        self.answer({"stopped": await self.supervisor.agents.stop_all()})


class Stats(Handler):
    """`/stats`."""

    async def get(self) -> None:
        """Counts by state, and of what is in memory."""
        counts = await self.supervisor.store.count_by_state(None if self.is_admin else self.user)
        self.answer({"jobs": counts, **(self.supervisor.status() if self.is_admin else {})})


class Health(RequestHandler):
    """`/healthz` and `/readyz`: no data, so no credentials."""

    def initialize(self, house: House) -> None:
        """Called by Tornado with the arguments of the route."""
        self.house = house

    def get(self) -> None:
        """Ready when the store takes writes."""
        degraded = self.house.supervisor.store.degraded
        self.set_status(503 if degraded and self.request.path == "/readyz" else 200)
        self.set_header("Content-Type", "application/json")
        self.finish(_encode({"status": "degraded" if degraded else "ok"}))


def routes(house: House) -> list[tuple[str, type[RequestHandler], dict[str, Any]]]:
    """Tornado's table of this door."""
    jid = r"([A-Za-z0-9_.-]{1,100})"
    table: list[tuple[str, type[RequestHandler]]] = [
        (r"/api/v1/jobs", Jobs),
        (rf"/api/v1/jobs/{jid}", Job),
        (rf"/api/v1/jobs/{jid}/cancel", Cancel),
        (rf"/api/v1/jobs/{jid}/attempts", Attempts),
        (rf"/api/v1/jobs/{jid}/events", JobEvents),
        (rf"/api/v1/jobs/{jid}/logs/(stdout|stderr)", Logs),
        (r"/api/v1/events", Events),
        (r"/api/v1/agents", Agents),
        (r"/api/v1/agents/stop", StopAgents),
        (r"/api/v1/stats", Stats),
        (r"/healthz", Health),
        (r"/readyz", Health),
    ]
    return [(path, handler, {"house": house}) for path, handler in table]


def _cursor(seq: int) -> str:
    return base64.urlsafe_b64encode(b"%d" % seq).decode().rstrip("=")


def _open_cursor(cursor: str) -> int | None:
    if not cursor:
        return None
    try:
        return int(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except ValueError:
        raise BadInput(
            f"cursor={cursor[:32]!r} is not one of ours; use `next_cursor` of the last page"
        ) from None
