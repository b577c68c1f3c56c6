"""A real launcher whose disk, journal and run dirs alike, is full (F029, F030, F095)."""

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from sirepo_jobs.agents.journal import RESERVE_BYTES
from tests.agent_stage import Scene, scene
from tests.service_stage import eventually
from tests.small_disk import fill, mounted


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with mounted(tmp_path / "small", "6m") as place:
        yield place


async def test_no_exit_status_is_lost_when_the_disk_is_full_and_the_launcher_is_killed(
    tmp_path: Path, small_disk: Path
) -> None:
    """F030, I10: the end goes to space that was set aside, as no exit.json can be written."""
    home, run_root = str(small_disk / "home"), str(small_disk / "run")
    async with scene(tmp_path, home=home, run_root=run_root) as s:
        go = tmp_path / "go"
        jids = [f"j{n}" for n in range(24)]
        for n, jid in enumerate(jids):
            wait = f"while [ ! -e {go} ]; do sleep 0.3; done; exit {n + 10}"
            await s.stage.send([s.stage.shell(jid, wait)])
            await s.stage.started(jid)
        reserve = s.home / "journal.reserve"
        assert reserve.stat().st_blocks * 512 >= RESERVE_BYTES
        await _use_up_zeros(s)
        s.stage.acking = False
        ballast = fill(small_disk)
        go.touch()
        for n, jid in enumerate(jids):
            assert (await s.stage.ended(jid)).exit_code == n + 10
        assert not reserve.exists()
        refill = fill(small_disk)  # what the reserve has left
        await s.stage.send([s.stage.shell("late", "true")])
        os.kill(s.launcher, signal.SIGKILL)
        await eventually(lambda: not os.path.exists(f"/proc/{s.launcher}"))
        s.stage.exits.clear()
        s.stage.acking = True
        ballast.unlink()
        refill.unlink(missing_ok=True)
        await s.launch()
        for n, jid in enumerate(jids):
            exited = await s.stage.ended(jid)
            assert (exited.exit_code, exited.reason) == (n + 10, None)
        await eventually(reserve.exists)
        assert not (s.run_root / "users/u/jobs/late/1").exists()
        await s.stage.send([s.stage.shell("after", "exit 3")])
        assert (await s.stage.ended("after")).exit_code == 3


async def test_a_full_disk_costs_no_cpu(tmp_path: Path, small_disk: Path) -> None:
    """F029: starts wait for space, and go on by themselves when there is some."""
    home, run_root = str(small_disk / "home"), str(small_disk / "run")
    async with scene(tmp_path, home=home, run_root=run_root) as s:
        await s.stage.send([s.stage.shell("first", "true")])
        await s.stage.ended("first")
        ballast = fill(small_disk)
        s.stage.acking = False
        await s.stage.send([s.stage.shell(f"j{n}", "true" + " " * 5000) for n in range(50)])
        ticks = _cpu_ticks(s.launcher)
        await asyncio.sleep(1.0)  # the time over which cpu use is measured
        assert _cpu_ticks(s.launcher) - ticks < 0.5 * os.sysconf("SC_CLK_TCK")
        assert not (s.run_root / "users/u/jobs/j49").exists()
        s.stage.acking = True
        ballast.unlink()
        for n in range(50):
            assert (await s.stage.ended(f"j{n}")).exit_code == 0


async def _use_up_zeros(s: Scene) -> None:
    """Let jobs run until the ends of 24 need more space than the journal has written ahead."""
    begun = 0
    while True:
        data = (s.home / "journal").read_bytes()
        left = len(data) - len(data.rstrip(b"\0"))
        if left < 2000:
            return
        jids = [f"before-{n}" for n in range(begun, begun + left // 2000)]
        begun += len(jids)
        await s.stage.send([s.stage.shell(jid, "true") for jid in jids])
        for jid in jids:
            assert (await s.stage.ended(jid)).exit_code == 0


def _cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])
