"""When attempts start, as stories of the pure roster."""

import random
from typing import Any

from sirepo_jobs.agents.roster import (
    MAX_CANCELED,
    Begin,
    Effect,
    End,
    Entry,
    Go,
    Hold,
    Roster,
    Tell,
    TellAgain,
)
from sirepo_jobs.agents.words import Over
from sirepo_jobs.protocol import Cancel, Exited, Grant, Run, Signal, Started, Suspended
from sirepo_jobs.reasons import Reason


def run(jid: str, **changes: Any) -> Run:
    return Run(
        **{"jid": jid, "serial": 1, "attempt": 1, "op_id": 1, "command": [], "run_dir": jid, **changes}
    )


def grant(jid: str) -> Grant:
    return Grant(jid=jid, serial=1, attempt=1)


def cancel(jid: str, grace_secs: float = 5.0) -> Cancel:
    return Cancel(jid=jid, serial=1, attempt=1, op_id=1, grace_secs=grace_secs)


def signal(jid: str, suspend: bool) -> Signal:
    return Signal(jid=jid, serial=1, attempt=1, op_id=1, suspend=suspend)


def over(entry: Entry, **changes: Any) -> Over:
    return Over(**{"ticket": entry.ticket, "at": 9, "exit_code": 0, **changes})


def begun(effects: list[Effect]) -> Entry:
    (effect,) = effects
    assert isinstance(effect, Begin)
    return effect.entry


def told(effects: list[Effect]) -> Exited:
    (effect,) = effects
    assert isinstance(effect, Tell)
    assert isinstance(effect.record, Exited)
    return effect.record


def test_run_begins_at_once_and_only_once() -> None:
    roster = Roster()
    entry = begun(roster.run(run("a"), 1))
    assert (entry.state, roster.live, len(roster)) == ("starting", 1, 1)
    assert roster.run(run("a"), 1) == []
    exited = told(roster.over(over(entry, exit_code=3)))
    assert (exited.seq, exited.exit_code, exited.successor) == (1, 3, "")
    assert (roster.live, len(roster)) == (0, 1)
    assert roster.run(run("a"), 1) == [TellAgain(("a", 1))]
    assert roster.over(over(entry)) == []
    roster.forget(("a", 1))
    assert len(roster) == 0


def test_another_attempt_of_the_same_job_is_another_thing() -> None:
    roster = Roster()
    begun(roster.run(run("a"), 1))
    assert begun(roster.run(run("a", attempt=2), 1)).key == ("a", 2)


def test_standby_begins_with_its_grant_and_once() -> None:
    roster = Roster()
    assert roster.run(run("a", standby=True), 1) == []
    assert begun(roster.grant(grant("a"))).key == ("a", 1)
    assert roster.grant(grant("a")) == []
    assert roster.grant(grant("unknown")) == []


def test_successor_is_the_first_that_fits() -> None:
    roster = Roster()
    first = begun(roster.run(run("a", cpus=2), 1))
    for jid, cpus in (("b", 4), ("c", 2), ("d", 1)):
        roster.run(run(jid, cpus=cpus, standby=True), 1)
    tell, begin = roster.over(over(first))
    assert isinstance(tell, Tell)
    assert isinstance(tell.record, Exited)
    assert tell.record.successor == "c/1"
    assert isinstance(begin, Begin)
    assert begin.entry.key == ("c", 1)
    tell, begin = roster.over(over(begin.entry))
    assert isinstance(begin, Begin)
    assert begin.entry.key == ("d", 1)
    assert told(roster.over(over(begin.entry))).successor == ""
    assert roster.standby == 1


def test_attempt_that_never_began_leaves_its_slots_too() -> None:
    roster = Roster()
    first = begun(roster.run(run("a"), 1))
    roster.run(run("b", standby=True), 1)
    tell, begin = roster.over(over(first, began=False, exit_code=None))
    assert isinstance(tell, Tell)
    assert isinstance(begin, Begin)


def test_cancel_of_standby_tells_its_end_and_leaves_no_slots() -> None:
    roster = Roster()
    roster.run(run("a", standby=True), 1)
    roster.run(run("b", standby=True), 1)
    exited = told(roster.cancel(cancel("a"), 7))
    assert (exited.began, exited.stopped, exited.proof, exited.at) == (False, True, "never_claimed", 7)
    assert roster.cancel(cancel("a"), 7) == []
    assert roster.grant(grant("a")) == []
    assert roster.standby == 1


def test_cancel_before_run_wins_in_its_session_only() -> None:
    roster = Roster()
    assert roster.cancel(cancel("a"), 1) == []
    assert roster.cancel(cancel("b"), 1) == []
    assert not told(roster.run(run("a"), 2)).began
    roster.session_began()
    assert begun(roster.run(run("b"), 2)).key == ("b", 1)


def test_canceled_one_stays_canceled_after_its_end_is_acknowledged() -> None:
    roster = Roster()
    roster.run(run("a", standby=True), 1)
    roster.cancel(cancel("a"), 1)
    roster.forget(("a", 1))
    assert not told(roster.run(run("a"), 2)).began


def test_memory_of_cancels_is_bounded() -> None:
    roster = Roster()
    for n in range(MAX_CANCELED + 10):
        roster.cancel(cancel(f"j{n}"), 1)
    assert len(roster._canceled) == MAX_CANCELED
    assert begun(roster.run(run("j0"), 1)).key == ("j0", 1)
    assert not told(roster.run(run(f"j{MAX_CANCELED}"), 1)).began


def test_cancel_of_a_process_asks_for_its_end() -> None:
    roster = Roster()
    entry = begun(roster.run(run("a"), 1))
    assert roster.cancel(cancel("a", 7.0), 1) == [End(entry, 7.0)]
    assert roster.cancel(cancel("a", 3.0), 1) == [End(entry, 3.0)]
    assert entry.stopping == 3.0


def test_birth_suspension_and_end_are_told_in_order() -> None:
    roster = Roster()
    entry = begun(roster.run(run("a"), 1))
    assert roster.signal(signal("a", True)) == [Hold(entry, True)]
    (born,) = roster.spawned(entry.ticket, 77, 1234, 5)
    assert born == Tell(Started(seq=1, jid="a", serial=1, attempt=1, at=5, pid=77), 1234)
    assert roster.spawned(entry.ticket, 77, 1234, 5) == []
    assert (entry.state, roster.inventory()[0].started_at) == ("running", 5)
    (paused,) = roster.paused(entry.ticket, 6, on=True)
    assert paused == Tell(Suspended(seq=2, jid="a", serial=1, attempt=1, at=6, on=True))
    assert entry.state == "suspended"
    roster.paused(entry.ticket, 7, on=False)
    assert entry.state == "running"
    exited = told(roster.over(over(entry)))
    assert (exited.seq, exited.started_at) == (4, 5)
    assert roster.signal(signal("a", True)) == []


def test_reserved_ones_that_began_elsewhere_are_named_once() -> None:
    roster = Roster()
    first = begun(roster.run(run("a"), 1))
    second = begun(roster.run(run("b"), 1))
    for jid in "cde":
        roster.run(run(jid, standby=True), 1)
    reserved = roster.reserve(2)
    assert [entry.key[0] for entry in reserved] == ["c", "d"]
    assert [held.state for held in roster.inventory()] == ["starting"] * 2 + ["standby"] * 3
    # Its spawner started c in a's place.
    assert told(roster.over(over(first, successor=reserved[0].ticket))).successor == "c/1"
    assert reserved[0].state == "starting"
    # Slots were granted to d, and only then its spawner told that it started it in b's place: b's slots
    # are free for e.
    assert roster.grant(grant("d")) == [Go(reserved[1])]
    tell, begin = roster.over(over(second, successor=reserved[1].ticket))
    assert isinstance(tell, Tell)
    assert isinstance(tell.record, Exited)
    assert tell.record.successor == "e/1"
    assert isinstance(begin, Begin)


def test_reserved_one_is_taken_only_when_there_is_no_other() -> None:
    roster = Roster()
    first, second = (begun(roster.run(run(jid), 1)) for jid in "ab")
    for jid in "cd":
        roster.run(run(jid, standby=True), 1)
    (reserved,) = roster.reserve(1)
    _, begin = roster.over(over(first))
    assert isinstance(begin, Begin)
    assert begin.entry.key == ("d", 1)
    tell, go = roster.over(over(second))
    assert go == Go(reserved)
    assert isinstance(tell, Tell)
    assert isinstance(tell.record, Exited)
    assert tell.record.successor == "c/1"


def test_reserved_one_that_comes_back() -> None:
    roster = Roster()
    for jid in "abc":
        roster.run(run(jid, standby=True), 1)
    a, b, c = roster.reserve(3)
    tickets = [a.ticket, b.ticket, c.ticket]
    roster.grant(grant("b"))
    roster.cancel(cancel("c"), 1)
    assert roster.dropped(tickets[0], 9) == []
    assert begun(roster.dropped(tickets[1], 9)) is b
    assert not told(roster.dropped(tickets[2], 9)).began
    assert roster.dropped(tickets[0], 9) == []
    # a stands first again.
    assert roster.reserve(5) == [a]


def test_reserved_one_that_is_canceled_leaves_no_slots() -> None:
    roster = Roster()
    for jid in "ab":
        roster.run(run(jid, standby=True), 1)
    a, b = roster.reserve(2)
    assert roster.cancel(cancel("a"), 1) == [End(a, 5.0)]
    exited = told(roster.over(over(a, began=False, stopped=True, exit_code=None)))
    assert (exited.began, exited.successor) == (False, "")
    assert b.state == "standby"


def test_closing_ends_everything_and_starts_nothing() -> None:
    roster = Roster()
    entry = begun(roster.run(run("a"), 1))
    roster.run(run("b", standby=True), 1)
    effects = roster.close(3.0, 5)
    assert effects[0] == End(entry, 3.0)
    assert not told(effects[1:]).began
    assert not told(roster.run(run("c"), 6)).began
    assert told(roster.over(over(entry, signal=15, exit_code=None, stopped=True))).successor == ""
    assert roster.live == 0


def test_an_agent_that_has_to_go_ends_no_job_of_its_own_accord() -> None:
    """F104: what runs ends because of its agent, what waits was never begun; a cancel stays a cancel."""
    roster = Roster()
    entry = begun(roster.run(run("a"), 1))
    canceled = begun(roster.run(run("b"), 1))
    roster.run(run("c", standby=True), 1)
    roster.run(run("d", standby=True), 1)
    (reserved,) = roster.reserve(1)
    roster.cancel(cancel("b", 9.0), 2)
    effects = roster.close(3.0, 5, evicted=True)
    assert [effect for effect in effects if isinstance(effect, End)] == [
        End(entry, 3.0),
        End(canceled, 3.0),
        End(reserved, 3.0),
    ]
    assert (entry.reason, canceled.reason) == (Reason.AGENT_LOST, None)
    waiting = told([effect for effect in effects if isinstance(effect, Tell)])
    assert (waiting.jid, waiting.reason, waiting.began) == ("d", Reason.DRAINING, False)
    back = told(roster.dropped(reserved.ticket, 6))
    assert (back.jid, back.reason, back.stopped) == ("c", Reason.DRAINING, False)
    assert told(roster.run(run("e"), 6)).reason is Reason.DRAINING


def test_restored_attempts() -> None:
    roster = Roster(last_seq=41)
    ended = Entry(("old", 1), 1, "ended", None)
    living = Entry(("lost", 2), 1, "running", None)
    roster.restore(ended)
    roster.restore(living)
    assert (len(roster), roster.live) == (2, 1)
    exited = told(roster.over(Over(ticket=living.ticket, at=1, proof="launcher_lost")))
    assert (exited.seq, exited.attempt) == (42, 2)


def test_no_story_starts_an_attempt_twice_or_over_allocates() -> None:
    """Random stories with two spawners that keep some in reserve, and slots of one cpu each."""
    for seed in range(200):
        rand = random.Random(seed)
        roster = Roster()
        slots = 2
        granted: set[str] = set()
        running: dict[int, Entry] = {}
        reserve: dict[int, Entry] = {}
        started: list[str] = []
        exits: list[Exited] = []
        inbox: list[Any] = []  # what spawners have said, not heard yet
        sent = 0

        def start(entry: Entry) -> None:
            started.append(entry.key[0])  # noqa: B023
            running[entry.ticket] = entry  # noqa: B023

        def do(effects: list[Effect]) -> None:
            for effect in effects:
                if isinstance(effect, Begin):
                    start(effect.entry)
                elif isinstance(effect, Go):
                    entry = reserve.pop(effect.entry.ticket, None)  # noqa: B023
                    if entry is not None:
                        start(entry)
                elif isinstance(effect, Tell) and isinstance(effect.record, Exited):
                    exits.append(effect.record)  # noqa: B023
                elif isinstance(effect, End):
                    entry = reserve.pop(effect.entry.ticket, None)  # noqa: B023
                    if entry is not None:
                        inbox.append(over(entry, began=False, stopped=True))  # noqa: B023

        for _ in range(120):
            match rand.randrange(7):
                case 0 | 1 if sent < 40:
                    free = slots - len(granted)
                    jid = f"j{sent}"
                    if free > 0:
                        granted.add(jid)
                    do(roster.run(run(jid, standby=free <= 0), 1))
                    sent += 1
                case 2:
                    for entry in roster.reserve(rand.randrange(4)):
                        reserve[entry.ticket] = entry
                case 3 if running:
                    ticket, entry = rand.choice(list(running.items()))
                    del running[ticket]
                    heir = next(iter(reserve.values()), None) if rand.random() < 0.7 else None
                    inbox.append(over(entry, successor=heir.ticket if heir else 0))
                    if heir is not None:
                        start(reserve.pop(heir.ticket))
                case 4 if reserve:
                    ticket, entry = rand.choice(list(reserve.items()))
                    del reserve[ticket]
                    inbox.append(ticket)
                case 5 if sent:
                    do(roster.cancel(cancel(f"j{rand.randrange(sent)}"), 1))
                case 6:
                    while inbox:
                        word = inbox.pop(0)
                        do(roster.dropped(word, 1) if isinstance(word, int) else roster.over(word))
            for exited in exits:
                if exited.jid in granted:
                    granted.discard(exited.jid)
                    if exited.successor:
                        granted.add(exited.successor.split("/")[0])
            exits.clear()
            assert len(started) == len(set(started)), seed
            assert len(granted) <= slots, seed
            assert roster.live == len(roster._entries) - sum(
                entry.state == "ended" for entry in roster.entries()
            )
