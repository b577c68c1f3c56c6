"""Leases where they are kept: a launcher ends its attempts in time, whoever is dead or stopped (C9)."""

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest

from sirepo_jobs.reasons import Reason
from tests.agent_stage import Scene, appears, scene
from tests.service_stage import eventually

#: Four heartbeats; a busy machine may keep everybody waiting for some of that.
LEASE_SECS = 4.0


async def a_leased_job(s: Scene, jid: str = "j", script: str = "sleep 1000") -> int:
    """It runs, and is kept alive by heartbeats for longer than its lease."""
    await s.stage.send([s.stage.shell(jid, script, lease_secs=LEASE_SECS, grace_secs=0.5)])
    return (await s.stage.started(jid)).pid


def lives(pid: int) -> bool:
    return os.path.exists(f"/proc/{pid}")


async def test_heartbeats_keep_a_leased_job_alive_and_silence_ends_it(tmp_path: Path) -> None:
    """The agent beats four times in a lease, however rarely the supervisor has told it to."""
    async with scene(tmp_path) as s:
        pid = await a_leased_job(s)
        await s.stage.send([s.stage.shell("free", "sleep 1000")])
        free = (await s.stage.started("free")).pid
        begun = time.monotonic()
        beats = len(s.stage.others)
        await s.stage.until(lambda: len(s.stage.others) >= beats + 6)
        assert time.monotonic() - begun > LEASE_SECS
        assert lives(pid)
        s.stage.hearing = False  # it is connected, and nobody confirms anything (F062)
        exited = await s.stage.ended("j")
        assert (exited.reason, exited.stopped, exited.signal) == (Reason.AGENT_LOST, True, signal.SIGTERM)
        assert "lease" in exited.message
        assert lives(free)


async def test_a_partition_longer_than_the_lease_ends_it_and_says_so_later(tmp_path: Path) -> None:
    """F033, F061: the record comes when the supervisor is back; one without a lease runs on (F076)."""
    async with scene(tmp_path) as s:
        pid = await a_leased_job(s, script="trap '' TERM; : > deaf; while :; do sleep 1; done")
        await appears(s.run_dir("j") / "deaf")
        await s.stage.send([s.stage.shell("free", "sleep 1000")])
        free = (await s.stage.started("free")).pid
        await s.stage.close()
        await eventually(lambda: not lives(pid))
        assert lives(free)
        await s.stage.listen()
        exited = await s.stage.ended("j")
        assert (exited.reason, exited.signal) == (Reason.AGENT_LOST, signal.SIGKILL)


@pytest.mark.parametrize("who", ["sj-agent", "launcher"])
async def test_it_ends_while_part_of_its_agent_is_stopped(tmp_path: Path, who: str) -> None:
    """F023: nobody has to wake up for it but the process that is its parent."""
    async with scene(tmp_path) as s:
        pid = await a_leased_job(s)
        (network,) = s.helpers("sj-agent")
        stopped = s.launcher if who == "launcher" else network
        os.kill(stopped, signal.SIGSTOP)
        try:
            await eventually(lambda: not lives(pid))
        finally:
            os.kill(stopped, signal.SIGCONT)
        exited = await s.stage.ended("j")
        assert (exited.reason, exited.stopped) == (Reason.AGENT_LOST, True)


async def test_it_ends_when_its_spawner_was_killed(tmp_path: Path) -> None:
    """F018: the launcher that adopts from a dead spawner keeps its leases."""
    async with scene(tmp_path) as s:
        pid = await a_leased_job(s)
        for spawner in s.helpers("sj-spawner"):
            os.kill(spawner, signal.SIGKILL)
        await s.stage.until(lambda: s.stage.connection is not None)
        assert lives(pid)
        s.stage.hearing = False
        exited = await s.stage.ended("j")
        assert exited.reason is Reason.AGENT_LOST


async def test_it_ends_when_its_launcher_was_killed(tmp_path: Path) -> None:
    """F039: the spawner keeps leases too."""
    async with scene(tmp_path) as s:
        other = await a_leased_job(s, "k")
        os.kill(s.launcher, signal.SIGKILL)
        await eventually(lambda: not lives(other))
        await s.launch()
        assert (await s.stage.ended("k")).reason is Reason.AGENT_LOST


async def test_what_stands_by_does_not_begin_after_its_lease(tmp_path: Path) -> None:
    """I4: slots are free at last, but by then it may run elsewhere."""
    async with scene(tmp_path) as s:
        await s.stage.send([s.stage.shell("first", "while [ ! -e go ]; do sleep 0.05; done")])
        await s.stage.started("first")
        await s.stage.send(
            [s.stage.shell("second", "echo ran", standby=True, lease_secs=LEASE_SECS, grace_secs=0.5)]
        )
        # the second heartbeat from here: the first has been confirmed, and the order has reached the launcher
        beats = len(s.stage.others)
        await s.stage.until(lambda: len(s.stage.others) >= beats + 2)
        await s.stage.close()
        await asyncio.sleep(LEASE_SECS)  # nothing happens when it is over, so it can only be waited for
        (s.run_dir("first") / "go").touch()
        await appears(s.run_dir("first") / "exit.json")
        await s.stage.listen()
        exited = await s.stage.ended("second")
        assert (exited.began, exited.proof) == (False, "never_claimed")
        assert not s.run_dir("second").exists()
