"""Clocks that are wrong, jump or stand still: what is shown may be odd, what is decided is not (I32)."""

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sirepo_jobs import agent_socket
from sirepo_jobs import protocol as p
from sirepo_jobs.agents import nursery, process, words
from sirepo_jobs.agents.child import Child
from sirepo_jobs.driver import Environment
from sirepo_jobs.job import State
from sirepo_jobs.reasons import Reason
from tests.scripted import ScriptedDriver
from tests.service_stage import eventually, service_of

from .test_hostile_words import call, hello
from .test_supervisor import house_of

DAY_US = 86_400_000_000


@pytest.mark.parametrize("skew_us", [300_000_000, -300_000_000, 400 * DAY_US, -20_000 * DAY_US])
async def test_the_clock_of_an_agent_is_shown_and_decides_nothing(tmp_path: Path, skew_us: int) -> None:
    """F036, F083: one agent's clock is off, and jumps in the middle of a job; order is that of the words."""
    async with house_of(tmp_path) as house:
        first, second = await house.submit() + await house.submit()
        agent = await house.agent()
        for jid, code in ((first, 0), (second, 3)):
            await agent.until(lambda jid=jid: jid in agent.runs)
            at = time.time_ns() // 1000 + skew_us
            agent._durable(p.Started, agent.runs[jid], at=at, pid=7)
            await house.until(jid, lambda job: job.record.state is State.RUNNING)
            agent.exits(jid, code, at=at - DAY_US, started_at=at)
            job = await house.over(jid)
            assert (job.record.exit_code, job.record.attempt) == (code, 1)
            assert job.record.started_at == at
            kinds = [row.kind for row in await house.store.events(after=0, limit=9, jid=jid)]
            assert kinds == ["Submitted", "Assigned", "Started", "Exited"]
        assert house.supervisor.agents.pools["local"].free.cpus == 2


def test_a_host_that_was_suspended_ends_its_leases_at_the_next_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F082: an hour passes that no timer has seen. The clock alone is not the host's."""
    keeper = nursery.Nursery()
    now = time.monotonic()
    with subprocess.Popen(["sleep", "1000"], start_new_session=True) as child:
        try:
            for ticket, lease_secs in enumerate((3000.0, None)):
                spawn = words.Spawn(
                    ticket=ticket, mark=ticket, jid="j", serial=1, attempt=1, command=["sleep"], run_dir="j",
                    lease_secs=lease_secs,
                )  # fmt: skip
                pid = child.pid if lease_secs else os.getpid()
                keeper._children[ticket] = Child(spawn, pid, str(tmp_path), 0, now, -1, -1)
            keeper.take(keeper._children[0])
            keeper.expire()
            assert child.poll() is None
            slept = process.boot_secs() + 3600
            monkeypatch.setattr(process, "boot_secs", lambda: slept)
            due = keeper.next_due()
            assert due is not None
            assert due - time.monotonic() <= nursery.LEASE_LOOK_SECS
            time.sleep(max(0.0, due - time.monotonic()))
            keeper.expire()
            assert child.wait(20) == -15
            assert keeper._children[0].reason is Reason.AGENT_LOST
        finally:
            child.kill()
            keeper.close()


@pytest.mark.parametrize("zone", ["UTC", "Asia/Kathmandu", "America/St_Johns"])
def test_times_are_utc_wherever_the_service_runs(zone: str) -> None:
    """F084: also in the hour that a change to winter time has twice."""
    code = (
        "from sirepo_jobs.views import instant\n"
        "print([instant(at * 1_000_000) for at in (0, 1_793_505_600, 1_793_509_200)])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "TZ": zone},
        check=True,
        capture_output=True,
        text=True,
    )
    told = ["1970-01-01T00:00:00.000000Z", "2026-11-01T04:00:00.000000Z", "2026-11-01T05:00:00.000000Z"]
    assert done.stdout.strip() == str(told)


async def test_a_supervisor_that_stood_still_hangs_up_on_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F010: its loop was blocked for many heartbeats; who called meanwhile is heard before it is judged."""
    secs = 0.25
    async with service_of(tmp_path, driver=ScriptedDriver("silent")) as service:
        service.house.talk.heartbeat_secs = secs
        service.house.supervisor.agents.at(Environment(driver="local", user="ann"))
        connection = await call(service, "local-ann")
        line = await connection.send(
            p.encode(p.FromAgentFrame(agent="local-ann", msgs=[hello("local-ann")])), text=True
        )
        agent = service.house.supervisor.agents.get("local-ann")
        assert agent is not None
        await eventually(lambda: agent.line is not None)
        line = agent.line
        for _ in range(2):
            # It is asked for a sign of life, and its answer waits to be read while we do nothing at all.
            await asyncio.sleep(agent_socket.LATE * secs + 0.02)
            time.sleep(5 * secs)  # noqa: ASYNC251 - that is the fault
        await asyncio.sleep(2 * secs)
        assert agent.line is line
        await connection.ping()
        # And silence is silence still.
        connection.transport.pause_reading()
        await eventually(lambda: agent.line is None)
        connection.transport.abort()
