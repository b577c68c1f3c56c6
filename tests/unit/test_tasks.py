"""Background tasks: none dies in silence (F011)."""

import asyncio

import pytest

from sirepo_jobs import tasks as room
from sirepo_jobs.tasks import Tasks


async def test_a_task_that_crashes_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "RESTART_SECS", 0.0)
    tasks = Tasks()
    runs: list[int] = []
    done = asyncio.Event()

    async def work() -> None:
        runs.append(len(runs))
        if len(runs) < 3:
            raise RuntimeError("crash")
        done.set()

    tasks.ensure("work", work)
    tasks.ensure("work", work)  # one of a name runs
    async with asyncio.timeout(20):
        await done.wait()
    assert runs == [0, 1, 2]
    await tasks.close()
