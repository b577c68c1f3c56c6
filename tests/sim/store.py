"""The store of a simulation: what `store.Store` promises, in memory, on a disk that is slow, full or broken.

What is committed survives the supervisor; what was submitted and not committed does not. Between a commit and
the supervisor's hearing of it lies time, in which it may die (F002). That it answers as the real one does is
held by `tests/unit/test_store_model.py`.
"""

import asyncio
import random
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from sirepo_jobs.errors import StoreError, Unavailable
from sirepo_jobs.job import HELD_BY_AGENT, AttemptRecord, State
from sirepo_jobs.store import AgentRow, EventRow, JobQuery, KeyRow, PendingRow, StoredJob, Unit
from sirepo_jobs.store.lists import JobPage
from sirepo_jobs.tokens import TokenRow


class Disk:
    """What is committed."""

    def __init__(self, dice: random.Random | None = None) -> None:
        self.dice = dice or random.Random(0)
        self.epoch = 0
        self.instance = "01SIMULATED0000000000000000"
        self.jobs: dict[str, StoredJob] = {}
        self.events: list[EventRow] = []
        self.attempts: list[AttemptRecord] = []
        self.agents: dict[str, AgentRow] = {}
        self.keys: dict[tuple[str, str], KeyRow] = {}
        self.tokens: dict[str, TokenRow] = {}
        #: Seconds of a commit, at least and at most.
        self.commit_secs = (0.0005, 0.005)
        self.read_secs = (0.0001, 0.002)
        #: Nothing can be written for now.
        self.is_full = False
        #: The next commit fails for good.
        self.breaks = False
        #: Reads fail for now.
        self.is_deaf = False
        self.on_commit: Callable[[int, Unit], None] | None = None

    def apply(self, unit: Unit) -> None:
        """A transaction."""
        for jid, record in unit.jobs.items():
            fixed = unit.new.get(jid) or unit.fixed.get(jid)
            known = self.jobs.get(jid)
            if known is None:
                assert fixed is not None, f"a record of {jid}, which was never accepted"
                self.jobs[jid] = StoredJob(record, fixed)
            else:
                assert jid not in unit.new, f"{jid} is accepted twice"
                if record.version >= known.record.version:
                    self.jobs[jid] = StoredJob(record, fixed or known.fixed)
        seqs = {row.seq for row in unit.events}
        assert len(seqs) == len(unit.events), "two events at one place"
        if self.events and unit.events:
            assert unit.events[0].seq > self.events[-1].seq, "an event at a place that is taken"
        self.events += unit.events
        for row in unit.attempts:
            assert not any((a.jid, a.attempt) == (row.jid, row.attempt) for a in self.attempts), (
                f"attempt {row.attempt} of {row.jid} ended twice"
            )
        self.attempts += unit.attempts
        self.agents.update(unit.agents)
        for key in unit.keys:
            assert (key.user, key.key) not in self.keys, f"key {key.key} is taken"
            self.keys[key.user, key.key] = key
        self.tokens.update(unit.tokens)

    def claim(self) -> int:
        """A supervisor takes it over."""
        self.epoch += 1
        return self.epoch


class SimStore:
    """One supervisor's hold on a disk."""

    def __init__(self, disk: Disk) -> None:
        self.disk = disk
        self.epoch = disk.claim()
        self.instance = disk.instance
        self.last_job_seq = max((job.record.seq for job in disk.jobs.values()), default=0)
        self.last_event_seq = disk.events[-1].seq if disk.events else 0
        self.degraded: str | None = None
        self._queue: list[Unit] = []
        self._is_busy = False
        self._failure: StoreError | None = None
        self._loop: Any = None
        self._on_fatal: Callable[[StoreError], None] = lambda _: None
        self._is_closing = False
        #: The host of this supervisor has lost it: nothing of it reaches the disk any more.
        self.is_gone = False

    @property
    def waiting(self) -> int:
        return len(self._queue)

    # -- writing

    def start(self, loop: Any, on_fatal: Callable[[StoreError], None]) -> None:
        self._loop = loop
        self._on_fatal = on_fatal
        self._next()

    def submit(self, unit: Unit) -> None:
        if self._failure is not None:
            return
        if self._is_closing:
            raise StoreError("the store is closed")
        self._queue.append(unit)
        self._next()

    def _between(self, secs: tuple[float, float]) -> float:
        return secs[0] + self.disk.dice.random() * (secs[1] - secs[0])

    def _later(self, secs: float, act: Callable[..., Any], *args: Any) -> None:
        # the writer is a thread: it goes on while the loop is busy, and dies with the process
        world = getattr(self._loop, "world", None)
        if world is None:
            self._loop.call_later(secs, act, *args)
        else:
            world.after(secs, act, *args)

    def _next(self) -> None:
        if self._is_busy or not self._queue or self._loop is None or self._failure is not None:
            return
        group, self._queue = self._queue[0], self._queue[1:]
        for later in self._queue:
            group.absorb(later)
        self._queue.clear()
        self._is_busy = True
        self._later(self._between(self.disk.commit_secs), self._commit, group)

    def _commit(self, group: Unit) -> None:
        disk = self.disk
        if self.is_gone:
            return
        if disk.is_full and not self._is_closing:
            self.degraded = "the disk is full"
            self._later(0.5, self._commit, group)
            return
        self.degraded = None
        error = ""
        if disk.breaks:
            disk.breaks = False
            error = "the disk failed: Input/output error"
            if disk.dice.random() < 0.5:
                self._apply(group)  # it went through after all, and nobody is told
        elif disk.epoch != self.epoch:
            error = f"epoch {disk.epoch}; ours is {self.epoch}: another supervisor has used it"
        if error:
            self._is_busy = False
            self._loop.call_soon(self._fail, StoreError(error))
            return
        self._apply(group)
        self._later(self._between((0.0, 0.002)), self._committed, group)

    def _apply(self, group: Unit) -> None:
        if self.disk.epoch == self.epoch:
            self.disk.apply(group)
            if self.disk.on_commit is not None:
                self.disk.on_commit(self.epoch, group)

    def _committed(self, group: Unit) -> None:
        if self.is_gone:
            return
        self._is_busy = False
        self._loop.call_soon(self._tell, group.done)
        self._next()

    def _tell(self, done: list[Callable[[], None]]) -> None:
        for act in done:
            try:
                act()
            except Exception as exc:  # noqa: BLE001 - as the real one does
                self._loop.call_exception_handler(
                    {"message": "a callback of the store failed", "exception": exc}
                )

    def _fail(self, error: StoreError) -> None:
        if self._failure is None:
            self._failure = error
            self.degraded = str(error)
            self._on_fatal(error)

    async def flushed(self) -> None:
        if self._failure is not None:
            raise self._failure
        durable = asyncio.get_running_loop().create_future()
        self.submit(Unit(done=[lambda: durable.done() or durable.set_result(None)]))
        await durable

    async def check_ours(self) -> None:
        found = self.disk.epoch  # a moment between the question and its answer
        await self._read()
        if found != self.epoch:
            self._fail(StoreError(f"epoch {found}; ours is {self.epoch}: another supervisor has used it"))
            raise StoreError("another supervisor has the store")

    async def close(self) -> None:
        self._is_closing = True
        while (self._is_busy or self._queue) and self._failure is None and not self.is_gone:
            await asyncio.sleep(0.001)
        self.is_gone = True

    # -- reading

    async def _read(self) -> None:
        secs = self.disk.read_secs
        await asyncio.sleep(self._between(secs))
        if self.disk.is_deaf:
            raise Unavailable("the store cannot be read just now")

    async def jobs(self, jids: Sequence[str]) -> list[StoredJob]:
        await self._read()
        return [self.disk.jobs[jid] for jid in dict.fromkeys(jids) if jid in self.disk.jobs]

    def _by_seq(self) -> list[StoredJob]:
        return sorted(self.disk.jobs.values(), key=lambda job: job.record.seq)

    async def active_jobs(self) -> list[StoredJob]:
        await self._read()
        return [job for job in self._by_seq() if job.record.state in HELD_BY_AGENT]

    def _queue_of(self, user: str | None) -> list[StoredJob]:
        found = [
            job
            for job in self.disk.jobs.values()
            if job.record.state is State.PENDING and user in (None, job.record.user)
        ]
        return sorted(found, key=lambda job: (-job.fixed.priority, job.record.seq))

    async def pending(
        self, *, user: str | None, after: tuple[int, int] | None, limit: int
    ) -> list[PendingRow]:
        await self._read()
        rows = [
            PendingRow(
                job.record.user,
                job.fixed.priority,
                job.record.seq,
                job.record.jid,
                job.fixed.driver,
                job.fixed.spec,
            )
            for job in self._queue_of(user)
        ]
        if after is not None:
            rows = [row for row in rows if (-row.priority, row.seq) > (-after[0], after[1])]
        return rows[:limit]

    async def pending_users(self) -> list[tuple[str, int]]:
        await self._read()
        counts: dict[str, int] = {}
        for job in self._queue_of(None):
            counts[job.record.user] = counts.get(job.record.user, 0) + 1
        return sorted(counts.items())

    async def list_jobs(self, query: JobQuery) -> list[StoredJob]:
        await self._read()
        found = [
            job
            for job in self._by_seq()
            if query.user in (None, job.record.user)
            and (not query.states or job.record.state in query.states)
            and (query.before_seq is None or job.record.seq < query.before_seq)
        ]
        return found[::-1][: query.limit]

    async def find_jobs(self, query: JobQuery) -> JobPage:
        """As `list_jobs`; what else may be asked for is not modelled."""
        found = await self.list_jobs(msgspec.structs.replace(query, limit=query.limit + 1))
        more = len(found) > query.limit
        return JobPage(found[: query.limit], found[query.limit - 1].record.seq if more else None)

    async def count_by_state(self, user: str | None) -> dict[str, int]:
        await self._read()
        mine = [job.record.state for job in self.disk.jobs.values() if user in (None, job.record.user)]
        return {state.value: mine.count(state) for state in State}

    async def attempts(self, jid: str) -> list[AttemptRecord]:
        await self._read()
        return sorted((a for a in self.disk.attempts if a.jid == jid), key=lambda a: a.attempt)

    async def events(
        self,
        *,
        after: int,
        limit: int,
        upto: int | None = None,
        user: str | None = None,
        jid: str | None = None,
    ) -> list[EventRow]:
        await self._read()
        first = bisect_right(self.disk.events, after, key=lambda row: row.seq)
        end = (
            len(self.disk.events)
            if upto is None
            else bisect_right(self.disk.events, upto, key=lambda row: row.seq)
        )
        rows = self.disk.events[first:end]
        return [row for row in rows if user in (None, row.user) and jid in (None, row.jid)][:limit]

    async def key(self, user: str, key: str) -> KeyRow | None:
        await self._read()
        return self.disk.keys.get((user, key))

    async def keys(self, *, after: tuple[str, str] | None, limit: int) -> list[tuple[str, str]]:
        await self._read()
        return sorted(name for name in self.disk.keys if after is None or name > after)[:limit]

    async def agents(self) -> list[AgentRow]:
        await self._read()
        return [row for _, row in sorted(self.disk.agents.items())]

    async def tokens(self) -> list[TokenRow]:
        await self._read()
        return [row for _, row in sorted(self.disk.tokens.items())]
