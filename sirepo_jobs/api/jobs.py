"""Jobs: create, list, look at, wait for, tell what to do."""

import asyncio
import base64
import contextlib
import re
from collections.abc import Awaitable
from typing import Any
from urllib.parse import parse_qsl, unquote, urlencode

import msgspec
from msgspec import Struct

from sirepo_jobs.changes import Changes
from sirepo_jobs.compute_job import ComputeJob, Damaged
from sirepo_jobs.errors import BadInput, Conflict, Error, NotFound, Unavailable
from sirepo_jobs.events import CancelAsked, Event, HoldAsked, Released, RetryAsked
from sirepo_jobs.job import FINAL, HELD_BY_AGENT, State
from sirepo_jobs.lifecycle import Illegal
from sirepo_jobs.reasons import Reason
from sirepo_jobs.spec import JobSpec
from sirepo_jobs.store import JobQuery
from sirepo_jobs.views import JOB_FIELDS, JOB_VIEWS, attempt_view, event_view, job_view

from .handler import Handler
from .service import declare_dead

MAX_PAGE = 1000
#: How long an agent may take to say that it has stopped or continued the processes of a job.
SIGNAL_SECS = 5.0


class Submission(Struct, frozen=True):
    """What the front end forwards of a `POST /jobs`: specs that it has checked."""

    jobs: list[JobSpec]
    batch: bool = False


_decode_changes = msgspec.json.Decoder(list[Changes]).decode
_decode_submission = msgspec.json.Decoder(Submission).decode


class Jobs(Handler):
    """`/jobs`: create, list."""

    async def post(self) -> None:
        """One or many new jobs; durable when answered. With `wait`, one, answered when its run has ended."""
        try:
            submission = _decode_submission(self.request.body)
        except (ValueError, RecursionError) as exc:
            raise BadInput(f"not a submission of the front end: {exc}") from None
        wait_secs = self.wait_secs()
        if wait_secs and submission.batch:
            raise BadInput("wait is for one job; hand in many without it, and follow the events")
        key = self.request.headers.get("Idempotency-Key")
        records, made = await self.house.intake.submit(self.user, submission.jobs, key)
        if not made:
            self.set_header("Idempotent-Replayed", "true")
        if not submission.batch:
            self.set_header("Location", f"/api/v1/jobs/{records[0].jid}")
        if wait_secs:
            async with self.job(records[0].jid) as job:
                await _at_most(wait_secs, job.end())
                self.answer(await self.durable_view(job), 201)
            return
        answers = [{"jid": r.jid, "serial": r.serial, "state": r.state} for r in records]
        self.answer({"jobs": answers} if submission.batch else answers[0], 201)

    async def patch(self) -> None:
        """Change many jobs in one transaction; each item has its own result."""
        changes = _decode_changes(self.request.body)
        self.changing()
        await self.supervisor.jobs.load_many([change.jid for change in changes])
        async with contextlib.AsyncExitStack() as held:
            jobs: list[ComputeJob | Error] = []
            for change in changes:
                try:
                    jobs.append(await held.enter_async_context(self.job(change.jid)))
                except (NotFound, Damaged) as exc:
                    jobs.append(exc)
            # from here to the commit nothing waits
            results = [self._result(change, job) for change, job in zip(changes, jobs, strict=True)]
            await self.written()
        self.answer({"results": results})

    def _result(self, change: Changes, job: ComputeJob | Error) -> dict[str, Any]:
        error: Error
        if isinstance(job, Error):
            error = job
        else:
            try:
                self.supervisor.change(job, change, self.user)
            except Illegal as exc:
                error = Conflict(str(exc))
            except BadInput as exc:
                error = exc
            else:
                view = self.view(job, spec=False)
                kept = ("jid", "state", "version", "name", "priority", "tags")
                return {"status": 200, **{name: view[name] for name in kept}}
        problem = {"code": error.code, "detail": str(error)}
        return {"status": error.http_status, "jid": change.jid, "error": problem}

    async def get(self) -> None:
        """A page of jobs, newest first; never carries logs, and specs only with `view=full`."""
        limit = min(self.number("limit", 100) or 100, MAX_PAGE)
        query = JobQuery(
            user=self._whose(),
            states=self._states(),
            name_prefix=self.get_query_argument("name_prefix", "") or None,
            queue=self.get_query_argument("queue", "") or None,
            driver=self.get_query_argument("driver", "") or None,
            tags=self._tags(),
            created_after=self.number("created_after"),
            created_before=self.number("created_before"),
            before_seq=_open_cursor(self.get_query_argument("cursor", "")),
            limit=limit,
            with_spec=True,
        )
        shown = self._shown()
        page = await self.supervisor.store.find_jobs(query)
        views = []
        for row in page.jobs:
            job = self.supervisor.jobs.get(row.record.jid)
            waits = job is not None and job.record.state is State.PENDING is row.record.state
            why = self.supervisor.dispatch.why_pending(job) if job is not None and waits else None
            run_root = self.supervisor.agents.run_root(row.record.user)
            view = job_view(row.record, row.fixed, why=why, run_root=run_root)
            views.append({name: view[name] for name in shown if name in view})
        cursor = _cursor(page.before_seq) if page.before_seq is not None else None
        if cursor is not None:
            # relative to what was asked: right under whatever name and path a proxy gives us (RFC 8288)
            asked = [(name, value) for name, value in parse_qsl(self.request.query) if name != "cursor"]
            self.set_header("Link", f'<?{urlencode([*asked, ("cursor", cursor)])}>; rel="next"')
        self.answer({"jobs": views, "next_cursor": cursor})

    def _shown(self) -> tuple[str, ...]:
        """Which fields of a job are wanted."""
        fields = tuple(name for name in self.get_query_argument("fields", "").split(",") if name)
        if unknown := set(fields) - set(JOB_FIELDS):
            raise BadInput(f"fields={min(unknown)!r} is none; there are: {', '.join(JOB_FIELDS)}")
        return fields or JOB_VIEWS[self.get_query_argument("view", "basic")]

    def _tags(self) -> dict[str, str]:
        """`tag=k:v`, each percent-encoded by the front end, so that commas part them."""
        pairs = [
            unquote(text).partition(":") for text in self.get_query_argument("tag", "").split(",") if text
        ]
        return {name: value for name, _, value in pairs}

    def _whose(self) -> str | None:
        wanted = self.get_query_argument("user", "") or None
        if wanted == "@me":
            return self.user
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
    """`/jobs/{jid}`: one job; with `wait` a blocking query."""

    async def get(self, jid: str) -> None:
        """The job as soon as its version is above `version`, or its run has ended, or `wait` is over."""
        until_ended = self.get_query_argument("until", "") == "ended"
        version = self.number("version")
        wait_secs = self.wait_secs()
        try:
            async with self.job(jid) as job:
                if wait_secs and (until_ended or version is not None):
                    await _at_most(wait_secs, job.end() if until_ended else job.change(version or 0))
                self.answer(await self.durable_view(job))
        except Damaged as exc:
            self.answer(job_view(exc.stored.record, exc.stored.fixed))

    async def patch(self, jid: str) -> None:
        """Change name, priority, tags or limits; durable when answered."""
        (change,) = _decode_changes(b"[%b]" % self.request.body)
        self.changing()
        async with self.job(jid) as job:
            try:
                self.supervisor.change(job, change, self.user)
            except Illegal as exc:
                raise Conflict(str(exc)) from None
            await self.written(job)
            self.answer(self.view(job))


class Verb(Handler):
    """`/jobs/{jid}/cancel`, `hold`, `release`, `retry`."""

    async def post(self, jid: str, verb: str) -> None:
        """Ask it of the job; asking again changes nothing (SIR-23). 409 where the job's state forbids it."""
        serial = self.number("serial")
        self.changing()
        async with self.job(jid) as job:
            # whoever names the run that is to be tried again may ask twice: by then it is another run
            if verb != "retry" or serial is None or job.record.serial <= serial:
                try:
                    self.supervisor.tell(job, self._event(job, verb))
                except Illegal:
                    raise _cannot(job, verb) from None
            await self.written(job)
            self.answer(self.view(job))

    def _event(self, job: ComputeJob, verb: str) -> Event:
        at, by = self.supervisor.now(), self.user
        match verb:
            case "hold":
                return HoldAsked(at=at, by=by)
            case "release":
                return Released(at=at, by=by)
            case "retry":
                return RetryAsked(at=at, by=by)
        own = job.record.user == by
        return CancelAsked(at=at, by=by, reason=Reason.CANCELED_BY_USER if own else Reason.CANCELED_BY_ADMIN)


class DeclareLost(Handler):
    """`/jobs/{jid}/declare-lost`: an operator's word in the place of a proof (C9)."""

    async def post(self, jid: str) -> None:
        """End the present attempt, if it is out of reach. 409 where an agent can be asked instead."""
        if not self.is_admin:
            raise NotFound("there is no such page")
        self.changing()
        async with self.job(jid) as job:
            record = job.record
            if record.state not in FINAL:
                agent = self.supervisor.agents.get(record.agent or "")
                away = agent is None or agent.line is None
                if record.state not in HELD_BY_AGENT:
                    raise _cannot(job, "be lost")
                if record.state is not State.LOST and not away:
                    raise Conflict(f"the agent of {jid} is connected and has the job: cancel it instead")
                declare_dead(self.supervisor, job, self.user)
            await self.written()
            self.answer(self.view(job))


class Signal(Handler):
    """`/jobs/{jid}/suspend`, `resume`: what the agent has to do; the job changes when it says that it has."""

    async def post(self, jid: str, verb: str) -> None:
        """Answered when the processes stand still, or go on. Asking again changes nothing."""
        suspend = verb == "suspend"
        before, after = State.RUNNING, State.SUSPENDED
        if not suspend:
            before, after = after, before
        self.changing()
        async with self.job(jid) as job:
            if job.record.state in (before, after):
                # said also where it seems to be so: the agent may have done otherwise, and not have been able
                # to say so yet; the last word counts
                await self._signal(job, verb, before)
            if job.record.state is not after:
                raise _cannot(job, verb)
            await self.written(job)
            self.answer(self.view(job))

    async def _signal(self, job: ComputeJob, verb: str, before: State) -> None:
        if not self.supervisor.orders.signal(job, suspend=verb == "suspend"):
            raise Unavailable(f"the agent of {job.jid} is out of reach; try again", code="agent_unreachable")
        try:
            async with asyncio.timeout(SIGNAL_SECS):
                while job.record.state is before:
                    await job.change(job.record.version)
        except TimeoutError:
            raise Unavailable(
                f"the agent of {job.jid} has not answered in {SIGNAL_SECS:g} s; try again",
                code="agent_silent",
            ) from None


class Attempts(Handler):
    """`/jobs/{jid}/attempts`."""

    async def get(self, jid: str) -> None:
        """Every execution that is over, and the one that is not."""
        async with self.job(jid):
            await self.settled()
            attempts = await self.supervisor.store.attempts(jid)
        self.answer({"attempts": [attempt_view(attempt) for attempt in attempts]})


class JobEvents(Handler):
    """`/jobs/{jid}/events`."""

    async def get(self, jid: str) -> None:
        """What happened to the job, in order."""
        async with self.job(jid):
            await self.settled()
            rows = await self.supervisor.store.events(after=0, limit=10_000, jid=jid)
        self.answer({"events": [event_view(row) for row in rows]})


async def _at_most(secs: float, news: Awaitable[None]) -> None:
    """Wait for news, or until the time is over."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(secs):
            await news


def _cannot(job: ComputeJob, verb: str) -> Conflict:
    return Conflict(f"a job that is {job.record.state} cannot be told to {verb}")


def _cursor(seq: int) -> str:
    return base64.urlsafe_b64encode(b"%d" % seq).decode().rstrip("=")


def _open_cursor(cursor: str) -> int | None:
    if not cursor:
        return None
    text = b""
    with contextlib.suppress(ValueError):
        text = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
    if not re.fullmatch(rb"[0-9]{1,18}", text):  # a number that the store can hold
        raise BadInput(f"cursor={cursor[:32]!r} is not one of ours; use `next_cursor` of the last page")
    return int(text)
