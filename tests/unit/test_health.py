"""Black holes: an agent that fails everything at once gets less and less to fail (F035)."""

from sirepo_jobs.health import ENOUGH, FIRST_PAUSE_SECS, LAST_PAUSE_SECS, WITHIN_SECS, Health


def fail(health: Health, now: float, first: int = 0) -> float:
    """Different jobs, one after the other; the pause that follows."""
    pauses = [health.failed(f"J{first + n}", "no such interpreter", now) for n in range(ENOUGH)]
    assert pauses[:-1] == [0.0] * (ENOUGH - 1)
    return pauses[-1]


def test_some_failures_of_different_jobs_make_a_pause_and_the_next_ones_a_longer_one() -> None:
    health = Health()
    now = 1000.0
    pauses = []
    for round_ in range(10):
        pause = fail(health, now, round_ * 10)
        pauses.append(pause)
        assert "no such interpreter" in health.why_not(now)
        now += pause
        assert health.why_not(now) == ""
    assert pauses[0] == FIRST_PAUSE_SECS
    assert pauses == sorted(pauses)
    assert pauses[-1] == LAST_PAUSE_SECS


def test_one_bad_job_is_no_black_hole() -> None:
    health = Health()
    assert [health.failed("J1", "why", float(now)) for now in range(20)] == [0.0] * 20


def test_failures_of_long_ago_do_not_count() -> None:
    health = Health()
    assert [health.failed(f"J{n}", "why", n * WITHIN_SECS) for n in range(20)] == [0.0] * 20


def test_one_that_gets_through_clears_everything() -> None:
    health = Health()
    fail(health, 0.0)
    health.got_through()
    assert health.why_not(0.0) == ""
    assert fail(health, 1.0) == FIRST_PAUSE_SECS
