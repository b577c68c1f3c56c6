"""The open unit: what has happened is written down, whatever goes wrong beside it (C1)."""

import asyncio
from typing import Any

import pytest

from sirepo_jobs.bell import Bell
from sirepo_jobs.commits import Commits
from sirepo_jobs.errors import Unavailable


class KeptUnits:
    """A store that keeps what it is given."""

    degraded: str | None = None

    def __init__(self) -> None:
        self.units: list[Any] = []

    def submit(self, unit: Any) -> None:
        self.units.append(unit)


async def test_a_decision_that_fails_does_not_keep_anything_from_being_written() -> None:
    """It stopped all commits for good, and nobody was told."""

    def decide() -> None:
        raise RuntimeError("no decision")

    store: Any = KeptUnits()
    commits = Commits(store, asyncio.get_running_loop(), decide)
    for count in (1, 2):
        commits.after(lambda: None)
        with pytest.raises(RuntimeError, match="no decision"):
            commits.flush()
        assert len(store.units) == count


async def test_who_looks_while_nothing_can_be_written_leaves_nothing_behind() -> None:
    store: Any = KeptUnits()
    store.degraded = "the disk is full"
    commits = Commits(store, asyncio.get_running_loop())
    tasks = len(asyncio.all_tasks())
    assert not await commits.settled()
    assert len(asyncio.all_tasks()) == tasks


async def test_who_waits_for_a_commit_hears_of_a_disk_that_fills_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All of them by one timer; what they wrote stands, and is written later (C14)."""
    monkeypatch.setattr("sirepo_jobs.commits.LOOK_SECS", 0.01)
    store: Any = KeptUnits()
    commits = Commits(store, asyncio.get_running_loop())
    durable = asyncio.create_task(commits.durable())
    writing = [asyncio.create_task(commits.written("look first")) for _ in range(3)]
    gone = asyncio.create_task(commits.settled())
    await asyncio.sleep(0.03)
    assert not any(one.done() for one in writing)
    gone.cancel()
    store.degraded = "the disk is full"
    async with asyncio.timeout(60):
        for one in writing:
            with pytest.raises(Unavailable, match="the disk is full; look first"):
                await one
    store.degraded = None
    again = asyncio.create_task(commits.settled())
    await asyncio.sleep(0)
    commits.flush()
    for unit in store.units:
        for act in unit.done:
            act()
    assert await again
    await durable


async def test_a_bell_wakes_whoever_waits_and_keeps_nobody() -> None:
    bell = Bell()
    first, second = (asyncio.create_task(bell.wait()) for _ in range(2))
    await asyncio.sleep(0)
    second.cancel()
    bell.ring()
    late = asyncio.create_task(bell.wait())
    await first
    await asyncio.sleep(0)
    assert not late.done()
    bell.ring()
    await late
    assert not bell._waiting
