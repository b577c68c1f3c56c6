"""One job in the supervisor's memory, and the table of those that are there (SIR-10, SIR-27).

A job is in memory while an agent holds an attempt of it, while somebody asks about it, and, up to a
limit, while it is about to be run. Everything else is rows in the store.
"""

import asyncio
import contextlib
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Iterable

import msgspec
import structlog

from .bell import Bell
from .errors import Conflict
from .job import FINAL, HELD_BY_AGENT, JobRecord, State
from .op import Op
from .protocol import Scheduling
from .scheduler import Entry, Shape
from .spec import JobSpec
from .store import Store
from .store.damage import damaged
from .store.queries import StoredJob
from .store.unit import NewJob

_log = structlog.get_logger(__name__)

#: A job in memory may have so many bytes of spec, on average: big ones leave room for fewer (C16).
SPEC_BYTES = 4096
#: So many jobs that cannot be read are remembered, to be explained.
MAX_DAMAGED = 10_000

_decode_spec = msgspec.json.Decoder(JobSpec).decode


class Damaged(Conflict):
    """A job whose row in the store cannot be read: it is shown, and nothing is done with it (F015)."""

    code = "damaged_record"

    def __init__(self, stored: StoredJob) -> None:
        super().__init__(f"job {stored.record.jid}: {stored.damage}")
        #: What can be shown of it.
        self.stored = stored


def revive(stored: StoredJob) -> "ComputeJob":
    """The job of a row. Raises `Damaged`."""
    if not stored.damage:
        try:
            return ComputeJob(stored.record, stored.fixed, _decode_spec(stored.fixed.spec))
        except (msgspec.DecodeError, UnicodeDecodeError, TypeError) as exc:
            stored = damaged(stored, f"its spec cannot be read: {exc}")
    raise Damaged(stored)


class ComputeJob:
    """A job: its record, its spec, its run op and whoever waits for it to change."""

    __slots__ = ("_changed", "fixed", "op", "pins", "record", "scheduling", "seen", "spec", "spec_bytes")

    def __init__(self, record: JobRecord, fixed: NewJob, spec: JobSpec) -> None:
        self.record = record
        self.fixed = fixed
        self.spec = spec
        #: The run op, from admission until the attempt is over.
        self.op: Op | None = None
        #: Where the present attempt stands with its batch scheduler, as its agent last told.
        self.scheduling: Scheduling | None = None
        #: For counting what is in memory.
        self.spec_bytes = len(fixed.spec)
        #: Requests that are looking at this job.
        self.pins = 0
        #: Version whose commit is done: what readers may see.
        self.seen = record.version
        #: Made when somebody waits: most jobs are never asked for.
        self._changed: Bell | None = None

    @property
    def jid(self) -> str:
        """The job's id."""
        return self.record.jid

    @property
    def evictable(self) -> bool:
        """Nothing but memory is lost when this object goes."""
        return (
            self.pins == 0
            and self.op is None
            and self.record.state not in HELD_BY_AGENT
            and self.seen == self.record.version
        )

    def entry(self, shape: Shape) -> Entry:
        """The job as the scheduler queues it."""
        return Entry(-self.fixed.priority, self.record.seq, self.jid, self.record.user, shape)

    def committed(self, version: int) -> None:
        """`version` is durable: let readers see it."""
        if version > self.seen:
            self.seen = version
            if self._changed is not None:
                self._changed.ring()

    async def change(self, version: int) -> None:
        """Return when a version above `version` is durable."""
        while self.seen <= version:
            if self._changed is None:
                self._changed = Bell()
            await self._changed.wait()

    async def end(self) -> None:
        """Return when the run has ended, durably."""
        while not self.over or self.seen < self.record.version:
            await self.change(self.seen)

    async def settled(self) -> None:
        """Return when the record is durable as it is: nothing else may be shown (C14, I11)."""
        while self.seen < self.record.version:
            await self.change(self.seen)

    @property
    def over(self) -> bool:
        """The run has ended."""
        return self.record.state in FINAL


class JobTable:
    """The jobs in memory, and the way to bring in more."""

    def __init__(self, store: Store, capacity: int) -> None:
        self._store = store
        self._capacity = capacity
        self._jobs: dict[str, ComputeJob] = {}
        #: Bytes of their specs.
        self._spec_bytes = 0
        #: Evictable ones, the longest unused first.
        self._idle: OrderedDict[str, None] = OrderedDict()
        self._queued: OrderedDict[str, None] = OrderedDict()
        #: Next to be run: they stay until others are.
        self._next: set[str] = set()
        #: Reads under way; their result says whether the store has answered.
        self._loads: dict[str, asyncio.Future[bool]] = {}
        #: Requests that wait for a job to be read.
        self._wanted: Counter[str] = Counter()
        #: Jobs that somebody asked for and that cannot be read.
        self.damaged: dict[str, Damaged] = {}

    def __len__(self) -> int:
        return len(self._jobs)

    def get(self, jid: str) -> ComputeJob | None:
        """The job if it is in memory."""
        return self._jobs.get(jid)

    def revive(self, stored: StoredJob) -> bool:
        """Take in the job of a row; False when it cannot be read, which is kept in `damaged`."""
        try:
            self.add(revive(stored))
        except Damaged as exc:
            _log.error("a job cannot be read in the store", jid=stored.record.jid, why=str(exc))
            if len(self.damaged) < MAX_DAMAGED:
                self.damaged[stored.record.jid] = exc
            return False
        return True

    def add(self, job: ComputeJob) -> None:
        """Take in a job that was just made."""
        self._jobs[job.jid] = job
        self._spec_bytes += job.spec_bytes
        self.release(job)

    @property
    def full(self) -> bool:
        """Half of the memory for jobs is taken by queued ones; further ones can stay rows."""
        return (
            len(self._queued) >= self._capacity // 2 or self._spec_bytes >= self._capacity * SPEC_BYTES // 2
        )

    @contextlib.asynccontextmanager
    async def hold(self, jid: str) -> AsyncIterator[ComputeJob | None]:
        """The job, kept in memory inside the block; read from the store if need be; None if there is none.

        Many may ask at once; all get the same object.
        """
        self._wanted[jid] += 1
        try:
            while (job := self._jobs.get(jid)) is None:
                loading = self._loads.get(jid)
                if loading is None:
                    await self.load_many([jid])
                elif not await asyncio.shield(loading):
                    continue  # somebody else's read failed: that says nothing about the job
                if jid not in self._jobs and jid not in self._loads:
                    break
            if job is not None:
                job.pins += 1
                self.release(job)  # it may stand among those that may go
        finally:
            self._wanted[jid] -= 1
            if not self._wanted[jid]:
                del self._wanted[jid]
        try:
            yield job
        finally:
            if job is not None:
                job.pins -= 1
                self.release(job)

    async def load_next(self, jids: Iterable[str]) -> set[str]:
        """Bring in the jobs that are to run next, and keep them; returns those that cannot be had."""
        before, self._next = self._next, set(jids)
        for jid in before - self._next:
            if (job := self._jobs.get(jid)) is not None:
                self.release(job)
        unknown = await self.load_many(self._next)
        self._next -= unknown
        return unknown

    async def load_many(self, jids: Iterable[str]) -> set[str]:
        """Bring these jobs into memory; returns those that were asked for and cannot be had."""
        wanted = [jid for jid in jids if jid not in self._jobs and jid not in self._loads]
        if not wanted:
            return set()
        done = asyncio.get_running_loop().create_future()
        self._loads.update(dict.fromkeys(wanted, done))
        answered = False
        try:
            rows = await self._store.jobs(wanted)
            found = {row.record.jid for row in rows if row.record.jid in self._jobs or self.revive(row)}
            answered = True
            return set(wanted) - found
        finally:
            for jid in wanted:
                self._loads.pop(jid, None)
            done.set_result(answered)

    def release(self, job: ComputeJob) -> None:
        """Look whether the job may leave memory when there are too many.

        Those that are over go first, the longest unused before the others; then queued ones, those
        whose turn is furthest away before the others.
        """
        jid = job.record.jid
        if jid in self._queued:
            del self._queued[jid]
        elif jid in self._idle:
            del self._idle[jid]
        # most that are looked at have an op: the short answer first
        if job.op is None and job.evictable and jid not in self._next and jid not in self._wanted:
            (self._queued if job.record.state is State.PENDING else self._idle)[jid] = None
        while self._too_many and (self._idle or self._queued):
            victim, _ = self._idle.popitem(last=False) if self._idle else self._queued.popitem()
            self._spec_bytes -= self._jobs.pop(victim).spec_bytes

    @property
    def _too_many(self) -> bool:
        return len(self._jobs) > self._capacity or self._spec_bytes > self._capacity * SPEC_BYTES

    def active(self) -> list[ComputeJob]:
        """Jobs of which an agent holds an attempt."""
        return [job for job in self._jobs.values() if job.record.state in HELD_BY_AGENT]
