"""The scheduler with a small window against a plain list: any story of coming, going and paging."""

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sirepo_jobs.reasons import Reason
from sirepo_jobs.resources import Resources
from sirepo_jobs.scheduler import Entry, No, Scheduler, Shape

USERS = ("ann", "bob")
NO = No(Reason.RESOURCES, "full")


class SchedulerMachine(RuleBasedStateMachine):
    """Rows are the store; what is in flight is a page that was read and not fed yet."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = Scheduler(window=2)
        self.rows: dict[str, Entry] = {}
        self.pages: list[tuple[str, list[Entry], bool]] = []
        self.seq = 0
        self.ran: list[str] = []

    @rule(user=st.sampled_from(USERS), priority=st.integers(0, 2), cpus=st.integers(1, 2))
    def submit(self, user: str, priority: int, cpus: int) -> None:
        self.seq += 1
        shape = Shape("local", f"local-{user}", Resources(cpus=cpus))
        entry = Entry(-priority, self.seq, f"J{self.seq}", user, shape)
        self.rows[entry.jid] = entry
        self.scheduler.add(entry)

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def cancel(self, data: Any) -> None:
        entry = self.rows.pop(data.draw(st.sampled_from(sorted(self.rows))))
        self.scheduler.remove(entry.user, entry.jid)

    @rule(limit=st.integers(1, 3))
    def read_pages(self, limit: int) -> None:
        for user, after in list(self.scheduler.wants()):
            self._read(user, after, limit)

    def _read(self, user: str, after: tuple[int, int] | None, limit: int) -> None:
        mine = sorted(e for e in self.rows.values() if e.user == user and (after is None or e[:2] > after))
        self.pages.append((user, mine[:limit], len(mine) <= limit))

    @precondition(lambda self: self.pages)
    @rule()
    def feed(self) -> None:
        user, page, complete = self.pages.pop(0)
        self.scheduler.feed(user, page, complete=complete)

    @rule(cpus=st.integers(0, 4))
    def admit(self, cpus: int) -> None:
        free = cpus

        def room(shape: Shape, _user: str) -> No | None:
            return None if shape.need.cpus <= free else NO

        for entry in self.scheduler.admit(room):
            # a row of an old page: the shell looks at the job's state
            if self.rows.pop(entry.jid, None) is not None:
                free -= entry.shape.need.cpus
                assert free >= 0, "more was let in than there was room for"
                self.ran.append(entry.jid)

    @invariant()
    def nobody_runs_twice(self) -> None:
        assert len(set(self.ran)) == len(self.ran)

    @invariant()
    def memory_is_bounded(self) -> None:
        assert len(self.scheduler) <= 2 * 2 * len(USERS) + 3 * len(USERS)

    def teardown(self) -> None:
        """With room for everybody, everybody runs (I7)."""
        for _ in range(4 * (self.seq + 2)):
            while self.pages:
                self.feed()
            self.admit(1000)
            for user, after in list(self.scheduler.wants()):
                self._read(user, after, 2)
        assert not self.rows, f"forgotten: {sorted(self.rows)}"


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
