"""The open unit: what has happened is written down, whatever goes wrong beside it (C1)."""

import asyncio
from typing import Any

import pytest

from sirepo_jobs.commits import Commits


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
