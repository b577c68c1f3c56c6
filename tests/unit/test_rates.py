"""How often somebody may ask (S36, S65)."""

import pytest

from sirepo_jobs.frontend import rates
from sirepo_jobs.frontend.auth import Principal, starter
from sirepo_jobs.frontend.rates import Rates, TooManyRequests

ANN = Principal("ann", frozenset(), "0" * 12, "token")
BOB = Principal("bob", frozenset(), "1" * 12, "token")


class Clock:
    secs = 0.0

    def __call__(self) -> float:
        return self.secs


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_burst_and_then_the_rate(clock: Clock) -> None:
    limit = Rates(2, 5, clock)
    for _ in range(5):
        limit.take(ANN)
    with pytest.raises(TooManyRequests) as caught:
        limit.take(ANN)
    assert caught.value.retry_after_secs == 1
    limit.take(BOB)  # somebody else's
    clock.secs += 0.5
    limit.take(ANN)
    with pytest.raises(TooManyRequests):
        limit.take(Principal("ann", frozenset(), "2" * 12, "token"))  # another token, the same user
    clock.secs += 1000
    for _ in range(5):
        limit.take(ANN)
    with pytest.raises(TooManyRequests):
        limit.take(ANN)


def test_asking_in_vain_costs_nothing(clock: Clock) -> None:
    limit = Rates(1, 1, clock)
    limit.take(ANN)
    for _ in range(9):
        clock.secs += 0.1
        with pytest.raises(TooManyRequests):
            limit.take(ANN)
    clock.secs += 0.2
    limit.take(ANN)


def test_the_starter_and_those_without_a_limit_are_not_counted(clock: Clock) -> None:
    for limit, who in ((Rates(1, 1, clock), starter()), (Rates(0, 1, clock), ANN)):
        for _ in range(100):
            limit.take(who)


def test_buckets_are_bounded(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "MAX_BUCKETS", 10)
    limit = Rates(1, 2, clock)
    for number in range(1000):
        limit.take(Principal(f"u{number}", frozenset(), "x", "token"))
        assert len(limit._buckets) <= 11
