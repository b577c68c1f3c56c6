"""The store against a dictionary: any story of changes, questions, ends and beginnings."""

import asyncio
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from msgspec.structs import replace

from sirepo_jobs.errors import StoreError
from sirepo_jobs.job import HELD_BY_AGENT, AttemptRecord, State
from sirepo_jobs.store import AgentRow, EventRow, JobQuery, KeyRow, Store, StoredJob, Unit
from tests.sim.store import Disk, SimStore
from tests.unit.test_store import a_stored, an_event, seqs

USERS = ["ann", "bob", "\u00e9ve"]
users = st.sampled_from(USERS)
states = st.sampled_from(list(State))


class StoreMachine(RuleBasedStateMachine):
    """Changes go to both, in units of any size; the store may lag behind until it is flushed."""

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()
        self._url = f"sqlite:///{Path(self._folder.name, 'jobs.db')}"
        self._runner = asyncio.Runner()
        self._fatal: list[StoreError] = []
        self._acked: list[int] = []
        self._submitted = 0
        self._epoch = 0
        self.unit = Unit()
        self.jobs: dict[str, StoredJob] = {}
        self.events: list[EventRow] = []
        self.attempts: list[AttemptRecord] = []
        self.agents: dict[str, AgentRow] = {}
        self.keys: dict[tuple[str, str], KeyRow] = {}

    @initialize()
    def open(self) -> None:
        self.store = self._opened()
        self._epoch += 1
        assert self.store.epoch == self._epoch
        assert self.store.last_job_seq == len(self.jobs)
        assert self.store.last_event_seq == len(self.events)
        self.store.start(self._runner.get_loop(), self._fatal.append)

    def _opened(self) -> Any:
        return Store.open(self._url)

    def teardown(self) -> None:
        self._runner.run(self.store.close())
        self._runner.close()
        self._folder.cleanup()
        assert self._fatal == []

    # -- changes

    @rule(user=users, state=states, priority=st.integers(0, 10))
    def accept(self, user: str, state: State, priority: int) -> None:
        job = a_stored(len(self.jobs) + 1, state, user=user, priority=priority)
        self.jobs[job.record.jid] = job
        self.unit.new[job.record.jid] = job.fixed
        self.unit.jobs[job.record.jid] = job.record
        self._event(job)

    @precondition(lambda self: self.jobs)
    @rule(data=st.data(), state=states, progress=st.integers(0, 100))
    def change(self, data: st.DataObject, state: State, progress: int) -> None:
        jid = data.draw(st.sampled_from(sorted(self.jobs)))
        job = self.jobs[jid]
        record = replace(
            job.record, state=state, version=job.record.version + 1, progress={"percent_complete": progress}
        )
        self.jobs[jid] = StoredJob(record, job.fixed)
        self.unit.jobs[jid] = record
        self._event(self.jobs[jid])

    def _event(self, job: StoredJob) -> None:
        event = an_event(len(self.events) + 1, job.record)
        self.events.append(event)
        self.unit.events.append(event)

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def end_attempt(self, data: st.DataObject) -> None:
        jid = data.draw(st.sampled_from(sorted(self.jobs)))
        number = 1 + sum(attempt.jid == jid for attempt in self.attempts)
        attempt = AttemptRecord(
            jid=jid, attempt=number, serial=1, agent=None, run_dir=None, state=State.ERROR, reason=None
        )
        self.attempts.append(attempt)
        self.unit.attempts.append(attempt)

    @rule(name=st.sampled_from(["a", "b"]), boot_id=st.text("ab"), handle=st.none() | st.binary())
    def agent(self, name: str, boot_id: str, handle: bytes | None) -> None:
        row = AgentRow(agent=name, environment=b"{}", handle=handle, boot_id=boot_id)
        self.agents[name] = self.unit.agents[name] = row

    @rule(user=users, key=st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=5))
    def key(self, user: str, key: str) -> None:
        if (user, key) not in self.keys:
            row = KeyRow(user=user, key=key, digest=b"d", jids=sorted(self.jobs)[:3], created_at=7)
            self.keys[user, key] = row
            self.unit.keys.append(row)

    @rule()
    def submit(self) -> None:
        self._submitted += 1
        self.unit.done.append(lambda number=self._submitted: self._acked.append(number))
        self.store.submit(self.unit)
        self.unit = Unit()

    # -- ends and beginnings

    @rule()
    def reopen(self) -> None:
        self.submit()
        self._runner.run(self.store.close())
        self.open()

    # -- questions

    @rule(
        user=st.none() | users,
        wanted=st.none() | st.sets(states),
        limit=st.integers(1, 7),
        before=st.none() | st.integers(0, 30),
    )
    def ask(self, user: str | None, wanted: set[State] | None, limit: int, before: int | None) -> None:
        self.submit()
        self._runner.run(self._ask(user, wanted, limit, before))

    async def _ask(self, user: str | None, wanted: set[State] | None, limit: int, before: int | None) -> None:
        store = self.store
        await store.flushed()
        mine = [job for job in self.jobs.values() if user in (None, job.record.user)]

        def these(of: Any) -> list[int]:
            return [job.record.seq for job in mine if job.record.state in of]

        assert await store.jobs(list(self.jobs)) == list(self.jobs.values())
        assert await store.active_jobs() == [
            job for job in self.jobs.values() if job.record.state in HELD_BY_AGENT
        ]
        query = JobQuery(user=user, states=wanted, limit=limit, before_seq=before, with_spec=True)
        newest = [seq for seq in reversed(these(wanted or State)) if before is None or seq < before]
        page = await store.find_jobs(query)
        assert seqs(page.jobs) == newest[:limit]
        assert page.before_seq == (newest[limit - 1] if len(newest) > limit else None)
        counts = {state.value: len(these([state])) for state in State}
        assert await store.count_by_state(user) == counts
        queue = [job for job in mine if job.record.state is State.PENDING]
        queue.sort(key=lambda job: (-job.fixed.priority, job.record.seq))
        assert seqs(await store.pending(user=user, after=None, limit=limit)) == seqs(queue)[:limit]
        if before is not None:
            behind = [job for job in queue if (-job.fixed.priority, job.record.seq) > (-5, before)]
            assert (
                seqs(await store.pending(user=user, after=(5, before), limit=limit)) == seqs(behind)[:limit]
            )
        expected = [event for event in self.events if user in (None, event.user)]
        assert await store.events(after=0, limit=10_000, user=user) == expected
        for jid in list(self.jobs)[:3]:
            assert await store.attempts(jid) == [a for a in self.attempts if a.jid == jid]
        assert await store.agents() == [row for _, row in sorted(self.agents.items())]
        for (owner, key), row in list(self.keys.items())[:5]:
            assert await store.key(owner, key) == row

    @invariant()
    def acknowledged_in_order(self) -> None:
        assert self._acked == list(range(1, len(self._acked) + 1))


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(
    max_examples=15,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


class SimulatedStoreMachine(StoreMachine):
    """The model that the simulation has of the store keeps the same promises."""

    def __init__(self) -> None:
        super().__init__()
        self._disk = Disk()
        self._disk.commit_secs = self._disk.read_secs = (0.0, 0.0)

    def _opened(self) -> Any:
        return SimStore(self._disk)


TestSimulatedStoreMachine = SimulatedStoreMachine.TestCase
TestSimulatedStoreMachine.settings = TestStoreMachine.settings
