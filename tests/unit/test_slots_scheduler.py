"""Slots come back exactly once; the queue is fair, bounded, never stuck (SIR-13, SIR-14, I21, I23)."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sirepo_jobs.reasons import Reason
from sirepo_jobs.resources import Resources
from sirepo_jobs.scheduler import MAX_BYPASS, Entry, No, Scheduler, Shape
from sirepo_jobs.slots import Pool

ONE = Resources()
NO = No(Reason.RESOURCES, "full")


def shape(cpus: int = 1, environment: str = "local-ann") -> Shape:
    return Shape("local", environment, Resources(cpus=cpus))


def entry(seq: int, *, user: str = "ann", priority: int = 5, cpus: int = 1) -> Entry:
    return Entry(-priority, seq, f"J{seq}", user, shape(cpus, f"local-{user}"))


def everything(_shape: Shape, _user: str) -> No | None:
    return None


def jids(scheduler: Scheduler, room=everything) -> list[str]:
    return [e.jid for e in scheduler.admit(room)]


def test_giving_back_twice_gives_back_once() -> None:
    pool = Pool("local", Resources(cpus=2))
    assert pool.take("a", ONE)
    assert pool.take("a", ONE), "asking again is answered with what one has"
    assert pool.give_back("a")
    assert not pool.give_back("a")
    pool.check()
    assert pool.free == pool.size


def test_what_is_handed_over_is_never_free_in_between() -> None:
    pool = Pool("local", Resources(cpus=2))
    pool.take("big", Resources(cpus=2))
    assert not pool.hand_over("big", "bigger", Resources(cpus=3))
    assert pool.hand_over("big", "small", ONE)
    assert (pool.holds("big"), pool.holds("small"), pool.free.cpus) == (False, True, 1)
    assert not pool.hand_over("big", "late", ONE)
    pool.check()


def test_a_shrunken_pool_books_what_runs_and_waits_for_it() -> None:
    pool = Pool("local", ONE)
    pool.adopt("a", ONE)
    pool.adopt("b", ONE)
    assert pool.free.cpus == -1
    pool.give_back("a")
    assert not pool.take("c", ONE)
    pool.check()


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["take", "give", "hand", "adopt"]),
            st.integers(0, 5),
            st.integers(0, 5),
            st.integers(1, 3),
        )
    )
)
def test_free_and_held_are_always_the_size(acts: list[tuple[str, int, int, int]]) -> None:
    pool = Pool("local", Resources(cpus=4, memory=100))
    for act, holder, heir, cpus in acts:
        need = Resources(cpus=cpus, memory=cpus * 10)
        match act:
            case "take":
                pool.take(holder, need)
            case "give":
                pool.give_back(holder)
            case "hand":
                pool.hand_over(holder, heir, need)
            case "adopt":
                pool.adopt(holder, need)
        pool.check()


def test_priority_first_then_order_of_acceptance() -> None:
    scheduler = Scheduler()
    for item in (entry(1), entry(2), entry(3, priority=9), entry(4, priority=0)):
        scheduler.add(item)
    assert jids(scheduler) == ["J3", "J1", "J2", "J4"]


def test_users_take_turns_beginning_with_who_uses_least() -> None:
    scheduler = Scheduler()
    for seq in range(1, 4):
        scheduler.add(entry(seq, user="ann"))
    scheduler.add(entry(10, user="bob"))
    scheduler.charge("ann", 4)
    assert jids(scheduler) == ["J10", "J1", "J2", "J3"]


def test_a_user_with_a_hundred_thousand_jobs_does_not_stand_before_the_others() -> None:
    """F152, I23."""
    scheduler = Scheduler(window=1000)
    for seq in range(100_000):
        scheduler.add(entry(seq, user="ann"))
    scheduler.add(entry(100_001, user="bob"))
    first = []
    for item in scheduler.admit(everything):
        first.append(item.user)
        if len(first) == 2:
            break
    assert sorted(first) == ["ann", "bob"]
    assert len(scheduler) <= 1001


def test_a_removed_entry_does_not_run() -> None:
    scheduler = Scheduler()
    scheduler.add(entry(1))
    scheduler.add(entry(2))
    scheduler.remove("ann", "J1")
    scheduler.remove("nobody", "J9")
    assert jids(scheduler) == ["J2"]


def test_what_cannot_run_now_does_not_block_what_can() -> None:
    scheduler = Scheduler()
    scheduler.add(entry(1, cpus=8))
    scheduler.add(entry(2))
    assert jids(scheduler, lambda s, _: NO if s.need.cpus > 2 else None) == ["J2"]
    assert jids(scheduler) == ["J1"]


def test_a_big_job_is_passed_so_often_and_no_oftener() -> None:
    """I23: then its pool is kept for it."""
    scheduler = Scheduler()
    scheduler.add(entry(0, cpus=8))
    for seq in range(1, 3 * MAX_BYPASS):
        scheduler.add(entry(seq))
    for user_seq in range(1000, 1003):
        scheduler.add(entry(user_seq, user="bob"))
    small_only = lambda s, _: NO if s.need.cpus > 2 else None  # noqa: E731
    passed = []
    while True:
        item = next(scheduler.admit(small_only), None)
        if item is None:
            break
        passed.append(item)
    assert MAX_BYPASS <= len(passed) <= MAX_BYPASS + 3
    assert next(scheduler.admit(everything)).jid == "J0"


def test_a_big_job_is_passed_by_other_users_so_often_and_no_oftener() -> None:
    """I23: bob has more in use than ann, whose big job he would pass for ever."""
    scheduler = Scheduler()
    scheduler.charge("bob", 2)
    scheduler.add(entry(0, cpus=8))
    for seq in range(1, 3 * MAX_BYPASS):
        scheduler.add(entry(seq, user="bob"))
    small_only = lambda s, _: NO if s.need.cpus > 2 else None  # noqa: E731
    passed = 0
    while next(scheduler.admit(small_only), None) is not None:
        passed += 1
    assert passed == MAX_BYPASS
    assert next(scheduler.admit(everything)).jid == "J0"
    assert next(scheduler.admit(small_only)).user == "bob", "it is open again"


def test_nobody_closes_a_pool_to_those_who_had_less_of_it() -> None:
    """I23, I24: ann has much in use and wants all of the rest; bob and eve have nothing yet."""
    scheduler = Scheduler()
    scheduler.charge("ann", 6)
    scheduler.add(entry(0, cpus=8))
    for seq in range(1, 2 * MAX_BYPASS):
        scheduler.add(entry(seq, user="bob"))
        scheduler.add(entry(1000 + seq, user="eve"))
    small_only = lambda s, _: NO if s.need.cpus > 2 else None  # noqa: E731
    assert len(jids(scheduler, small_only)) == 2 * (2 * MAX_BYPASS - 1)


def test_a_refused_shape_is_asked_for_once_per_pass() -> None:
    scheduler = Scheduler()
    for seq in range(1000):
        scheduler.add(entry(seq))
    asked = []
    assert jids(scheduler, lambda s, _: asked.append(s) or NO) == []
    assert len(asked) == 1


class Rows:
    """The store's side of the bargain: every queued job is a row."""

    def __init__(self) -> None:
        self.rows: set[Entry] = set()

    def page(self, user: str, after: tuple[int, int] | None, limit: int) -> tuple[list[Entry], bool]:
        behind = sorted(e for e in self.rows if e.user == user and (after is None or e[:2] > after))
        return behind[:limit], len(behind) <= limit


@pytest.mark.parametrize("seed", range(30))
def test_with_a_small_window_everything_runs_once(seed: int) -> None:
    """Whatever comes and goes while pages are read: nobody is forgotten, nobody comes twice."""
    rng = random.Random(seed)
    scheduler, rows = Scheduler(window=5), Rows()
    ran: list[str] = []
    wanted: set[str] = set()
    seq = 0

    def submit(count: int) -> None:
        nonlocal seq
        for _ in range(count):
            seq += 1
            item = entry(seq, user=rng.choice("ab"), priority=rng.randrange(3))
            rows.rows.add(item)
            wanted.add(item.jid)
            scheduler.add(item)

    submit(40)
    for turn in range(400):
        for user, after in list(scheduler.wants()):
            page, complete = rows.page(user, after, 4)
            if rng.random() < 0.5:
                submit(rng.randrange(3) if turn < 100 else 0)  # while the page was on its way
            scheduler.feed(user, page, complete=complete)
        if rows.rows and rng.random() < 0.1:
            gone = rng.choice(sorted(rows.rows))
            rows.rows.discard(gone)
            wanted.discard(gone.jid)
            scheduler.remove(gone.user, gone.jid)
        for item in scheduler.admit(everything):
            if item not in rows.rows:
                continue  # a row of an old page: the shell looks at the state
            rows.rows.discard(item)
            ran.append(item.jid)
            if rng.random() < 0.5:
                break
    assert sorted(ran) == sorted(wanted)
    assert len(scheduler) == 0


def test_the_window_bounds_memory_also_under_rising_priorities() -> None:
    scheduler = Scheduler(window=100)
    for seq in range(5000):
        scheduler.add(entry(seq, priority=seq * 11 // 5000))
    assert len(scheduler) <= 200


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 10), st.integers(1, 4)), max_size=60))
def test_order_within_a_user_holds_for_each_shape(items: list[tuple[int, int]]) -> None:
    scheduler = Scheduler()
    for seq, (priority, cpus) in enumerate(items):
        scheduler.add(entry(seq, priority=priority, cpus=cpus))
    out = list(scheduler.admit(everything))
    assert out == sorted(out)
    assert len(out) == len(items)


def test_who_waits_for_an_agent_keeps_the_pool_from_nobody() -> None:
    """C11, I23: an environment that cannot be launched must not stop the whole house."""
    scheduler = Scheduler()
    scheduler.add(Entry(-9, 0, "J0", "ann", shape(environment="broken")))
    for seq in range(1, 2 * MAX_BYPASS):
        scheduler.add(entry(seq))
    room = lambda s, _: No(Reason.LAUNCH_FAILED, "no image") if s.environment == "broken" else None  # noqa: E731
    assert len(jids(scheduler, room)) == 2 * MAX_BYPASS - 1
    scheduler.add(entry(1000, user="bob"))
    assert jids(scheduler, room) == ["J1000"]


def test_a_pool_kept_for_a_shape_is_open_again_when_its_jobs_are_gone_or_its_agent_is() -> None:
    for gone in (True, False):
        scheduler = Scheduler()
        scheduler.charge("ann", 1)
        scheduler.add(entry(0, cpus=8))
        for seq in range(1, 3 * MAX_BYPASS):
            scheduler.add(entry(seq))
        small_only = lambda s, _: NO if s.need.cpus > 2 else None  # noqa: E731
        for _ in range(MAX_BYPASS):
            next(scheduler.admit(small_only))
        assert jids(scheduler, small_only) == [], "kept for the big one"
        away = lambda s, _: No(Reason.AGENT_UNREACHABLE, "") if s.need.cpus > 2 else None  # noqa: E731
        if gone:
            scheduler.remove("ann", "J0")
        assert len(jids(scheduler, small_only if gone else away)) == 2 * MAX_BYPASS - 1


def test_what_may_go_is_read_ahead_however_many_wait_before_it() -> None:
    scheduler = Scheduler()
    for seq in range(1000):
        scheduler.add(entry(seq, cpus=8))
    for seq in range(1000, 1010):
        scheduler.add(entry(seq, user="bob"))
    ahead = scheduler.upcoming(100, entry(1000, user="bob"))
    assert len(ahead) == 100
    assert [e.jid for e in ahead[:10]] == [f"J{seq}" for seq in range(1000, 1010)]


def test_the_dead_do_not_pile_up_and_are_not_counted() -> None:
    """C16: submitted and canceled, held and released, for ever."""
    scheduler = Scheduler()
    for seq in range(10_000):
        scheduler.add(entry(seq))
        if seq:
            scheduler.remove("ann", f"J{seq}")
        else:
            for _ in range(5000):
                scheduler.remove("ann", "J0")
                scheduler.add(entry(0))
    assert scheduler._lanes["ann"].size < 2100
    assert scheduler.ahead("ann", (-5, 10_000)) == (1, False)
    assert jids(scheduler) == ["J0"]


def test_a_page_behind_rows_that_were_left_out_meanwhile_is_not_taken() -> None:
    """Urgent ones push others out of memory while a page behind those is on its way."""
    scheduler, rows = Scheduler(window=4), Rows()
    first = [entry(seq, priority=5) for seq in range(10)]
    rows.rows.update(first)
    for item in first:
        scheduler.add(item)
    taken = [next(scheduler.admit(everything)) for _ in range(3)]
    rows.rows.difference_update(taken)
    ((user, after),) = scheduler.wants()
    page = rows.page(user, after, 3)
    urgent = [entry(100 + seq, priority=9) for seq in range(9)]
    rows.rows.update(urgent)
    for item in urgent:
        scheduler.add(item)
    scheduler.feed(user, page[0], complete=page[1])
    ran = []
    while rows.rows:
        for user, after in list(scheduler.wants()):
            more, complete = rows.page(user, after, 3)
            scheduler.feed(user, more, complete=complete)
        item = next(scheduler.admit(everything), None)
        assert item is not None, f"forgotten: {sorted(e.jid for e in rows.rows)}"
        rows.rows.discard(item)
        ran.append(item.jid)
    assert len(ran) == 16


def test_one_that_came_while_a_page_was_read_is_not_behind_that_page() -> None:
    """Found by simulation: the page ends with a row of low priority, the newcomer belongs before it."""
    scheduler = Scheduler(window=1)
    scheduler.add(entry(1, priority=5))
    scheduler.add(entry(2, priority=1))
    assert jids(scheduler) == ["J1"]
    ((user, after),) = scheduler.wants()
    scheduler.add(entry(3, priority=5))  # while the page is on its way
    scheduler.feed(user, [entry(2, priority=1)], complete=True)
    ((user, after),) = scheduler.wants()
    assert after is not None
    assert entry(3, priority=5)[:2] > after, "it would be read never"
    scheduler.feed(user, [entry(3, priority=5), entry(2, priority=1)], complete=True)
    assert jids(scheduler) == ["J3", "J2"]
