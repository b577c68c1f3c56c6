"""The op loop: a wait at every point, and every assumption changed behind its back (SIR-12..15, I21)."""

from dataclasses import dataclass, field

import pytest

from sirepo_jobs.op import NEEDS, Awaited, Kind, Need, Op, OpLoop
from sirepo_jobs.reasons import Reason
from sirepo_jobs.resources import Resources
from sirepo_jobs.slots import Pool

ONE = Resources()


@dataclass
class ScriptedPlace:
    """An agent that is there, or not, as the test says."""

    key: str = "local-ann"
    there: bool = True
    op_limit: int = 10
    standby: bool = False
    ops: dict[int, Op] = field(default_factory=dict)
    standbys: int = 0
    wanted: int = 0

    def want(self) -> None:
        if not self.there:
            self.wanted += 1
            raise Awaited((Need.AGENT, self.key), Reason.AGENT_STARTING, "agent is starting")

    def takes_standby(self, need: Resources) -> bool:
        return self.standby


class Story:
    """A loop, a pool of one cpu, one agent, and what was sent."""

    def __init__(self, cpus: int = 1) -> None:
        self.granted: list[str] = []
        self.sent: list[str] = []
        self.loop = OpLoop(lambda op: self.granted.append(op.jid))
        self.place = ScriptedPlace()
        self.pool = Pool("local", Resources(cpus=cpus))
        self.wanted: set[str] = set()
        self._ids = 0

    def begin(
        self, jid: str, *, kind: Kind = Kind.RUN, cpus: int = 1, place: ScriptedPlace | None = None
    ) -> Op:
        self._ids += 1
        self.wanted.add(jid)
        op = Op(
            self._ids,
            kind,
            jid,
            place or self.place,
            go=lambda op: self.sent.append(op.jid),
            still=lambda: jid in self.wanted,
            pool=self.pool if kind is Kind.RUN else None,
            need=Resources(cpus=cpus),
        )
        self.loop.begin(op)
        return op

    def wake(self, need: Need) -> None:
        key = {Need.AGENT: self.place.key, Need.OP_SLOT: self.place.key, Need.CPUS: "local"}.get(need, "J1")
        self.loop.wake((need, key))
        self.loop.settle()

    def everything_is_free(self) -> None:
        self.loop.check()
        self.pool.check()
        assert self.pool.free == self.pool.size
        assert not self.place.ops
        assert self.place.standbys == 0


@pytest.fixture
def story() -> Story:
    return Story()


#: For each need: how it is made unavailable, and how it comes back.
BLOCK = {
    Need.AGENT: lambda s: setattr(s.place, "there", False),
    Need.OP_SLOT: lambda s: setattr(s.place, "op_limit", 0),
    Need.RUN_DIR: lambda s: s.loop._run_dirs.__setitem__("J1", s.blocker),
    Need.CPUS: lambda s: s.pool.take("blocker", Resources(cpus=1)),
}
FREE = {
    Need.AGENT: lambda s: setattr(s.place, "there", True),
    Need.OP_SLOT: lambda s: setattr(s.place, "op_limit", 10),
    Need.RUN_DIR: lambda s: s.loop._run_dirs.pop("J1", None),
    Need.CPUS: lambda s: s.pool.give_back("blocker"),
}


def block(story: Story, need: Need) -> None:
    story.blocker = Op(999, Kind.RUN, "J1", story.place, go=lambda _: None, still=lambda: True)
    BLOCK[need](story)


@pytest.mark.parametrize("need", NEEDS[Kind.RUN])
def test_a_wait_at_each_point_ends_when_the_resource_comes(story: Story, need: Need) -> None:
    block(story, need)
    op = story.begin("J1")
    assert story.sent == []
    assert op.waiting is not None, "who asks is told why"
    assert op.waiting.resource[0] is need
    assert op.waiting.text
    FREE[need](story)
    story.wake(need)
    assert story.sent == ["J1"]
    assert op.waiting is None
    story.loop.end(op)
    story.everything_is_free()


@pytest.mark.parametrize("need", NEEDS[Kind.RUN])
def test_canceled_while_it_waits_nothing_goes_out(story: Story, need: Need) -> None:
    block(story, need)
    story.begin("J1")
    story.wanted.clear()
    FREE[need](story)
    story.wake(need)
    assert story.sent == []
    story.everything_is_free()


@pytest.mark.parametrize("need", NEEDS[Kind.RUN])
def test_destroyed_while_it_waits_everything_comes_back(story: Story, need: Need) -> None:
    """SIR-L6: a canceled waiter returns what it was handed, and whoever stands behind it goes on."""
    block(story, need)
    first = story.begin("J1")
    story.loop.end(first)
    story.loop.end(first)
    FREE[need](story)
    story.wake(need)
    second = story.begin("J1")
    assert story.sent == ["J1"]
    story.loop.end(second)
    story.everything_is_free()


@pytest.mark.parametrize("waits_for", [Need.OP_SLOT, Need.RUN_DIR, Need.CPUS])
def test_an_agent_that_went_away_meanwhile_is_waited_for_again(story: Story, waits_for: Need) -> None:
    """What stands above a wait is verified anew: nothing is sent to a socket that is gone."""
    block(story, waits_for)
    op = story.begin("J1")
    story.place.there = False
    FREE[waits_for](story)
    story.wake(waits_for)
    assert story.sent == []
    assert op.waiting is not None
    assert op.waiting.resource == (Need.AGENT, "local-ann")
    assert story.pool.free.cpus == 1, "nobody holds cpus while the agent is away (SIR-13)"
    assert not story.place.ops
    story.place.there = True
    story.wake(Need.AGENT)
    assert story.sent == ["J1"]
    story.loop.end(op)
    story.everything_is_free()


@pytest.mark.parametrize("waits_for", [Need.AGENT, Need.OP_SLOT, Need.RUN_DIR])
def test_slots_that_somebody_else_took_meanwhile_are_waited_for(story: Story, waits_for: Need) -> None:
    block(story, waits_for)
    op = story.begin("J1")
    story.pool.take("other", ONE)
    FREE[waits_for](story)
    story.wake(waits_for)
    assert story.sent == []
    assert op.waiting is not None
    assert op.waiting.resource == (Need.CPUS, "local")
    story.pool.give_back("other")
    story.wake(Need.CPUS)
    assert story.sent == ["J1"]


def test_first_come_first_served(story: Story) -> None:
    ops = [story.begin(f"J{i}") for i in range(4)]
    assert story.sent == ["J0"]
    for i in range(3):
        story.loop.end(ops[i])
        story.loop.settle()
        assert story.sent == [f"J{j}" for j in range(i + 2)]


def test_nobody_passes_a_big_one_that_stands_in_line() -> None:
    story = Story(cpus=2)
    running = story.begin("J0")
    story.begin("big", cpus=2)
    story.begin("small")
    assert story.sent == ["J0"], "one cpu is free, but the big one was first"
    story.loop.end(running)
    story.loop.settle()
    assert story.sent == ["J0", "big"]


def test_a_canceled_head_of_the_line_lets_the_next_one_go() -> None:
    story = Story(cpus=2)
    story.begin("J0")
    big = story.begin("big", cpus=2)
    story.begin("small")
    story.loop.end(big)
    story.loop.settle()
    assert story.sent == ["J0", "small"]


def test_one_run_dir_one_op(story: Story) -> None:
    story.pool = Pool("local", Resources(cpus=5))
    first = story.begin("J1")
    story.begin("J1")
    assert story.sent == ["J1"]
    story.loop.end(first)
    story.loop.settle()
    assert story.sent == ["J1", "J1"]


def test_reading_needs_no_slots(story: Story) -> None:
    story.begin("J1")
    story.begin("J1", kind=Kind.READ)
    assert story.sent == ["J1", "J1"]


def test_all_who_wait_for_an_agent_go_when_it_comes() -> None:
    story = Story(cpus=5)
    story.place.there = False
    for i in range(3):
        story.begin(f"J{i}")
    story.place.there = True
    story.wake(Need.AGENT)
    assert story.sent == ["J0", "J1", "J2"]


def test_a_standby_op_is_sent_ahead_and_granted_when_slots_come(story: Story) -> None:
    running = story.begin("J0")
    story.place.standby = True
    ahead = story.begin("J1")
    assert story.sent == ["J0", "J1"]
    assert ahead.standby
    assert story.granted == []
    story.loop.end(running)
    story.loop.settle()
    assert story.granted == ["J1"]
    assert story.pool.holds(ahead)
    story.loop.end(ahead)
    story.everything_is_free()


def test_a_successor_inherits_and_is_not_granted_again(story: Story) -> None:
    running = story.begin("J0")
    story.place.standby = True
    ahead = story.begin("J1")
    third = story.begin("J2")
    running.heir = ahead
    story.loop.end(running)
    story.loop.settle()
    assert story.granted == [], "the agent started it by itself"
    assert story.pool.holds(ahead)
    assert third.standby
    story.loop.end(ahead)
    story.loop.settle()
    assert story.granted == ["J2"]
    story.loop.end(third)
    story.everything_is_free()


def test_one_that_is_held_back_stands_back_while_others_run_in_more_than_there_is(story: Story) -> None:
    ahead = story.begin("J0")
    assert not story.loop.stand_back(ahead), "its slots are its own"
    runs = Op(
        9, Kind.RUN, "J1", story.place, go=lambda _: None, still=lambda: True, pool=story.pool, need=ONE
    )
    story.loop.adopt(runs, standby=False)
    assert story.pool.is_overbooked
    assert story.loop.stand_back(ahead)
    assert ahead.standby
    assert not story.pool.is_overbooked
    story.loop.settle()
    assert story.granted == []
    story.loop.end(runs)
    story.loop.settle()
    assert story.granted == ["J0"]
    story.loop.end(ahead)
    story.everything_is_free()


def test_an_heir_that_was_granted_already_takes_nothing_twice() -> None:
    """The grant and the succession crossed on the wire."""
    story = Story(cpus=2)
    first, second = story.begin("J0"), story.begin("J1")
    story.place.standby = True
    ahead = story.begin("J2")
    story.loop.end(second)
    story.loop.settle()
    assert story.granted == ["J2"]
    first.heir = ahead
    story.loop.end(first)
    assert story.pool.free.cpus == 1
    story.loop.end(ahead)
    story.everything_is_free()


def test_an_adopted_standby_that_runs_already_gets_its_slots_booked(story: Story) -> None:
    """After a restart of the supervisor."""
    op = Op(5, Kind.RUN, "J9", story.place, go=lambda _: None, still=lambda: True, pool=story.pool, need=ONE)
    story.loop.adopt(op, standby=True)
    assert story.place.standbys == 1
    story.loop.own(op)
    assert story.pool.free.cpus == 0
    story.begin("J1")
    assert story.sent == []
    story.loop.end(op)
    story.loop.settle()
    assert story.sent == ["J1"]
