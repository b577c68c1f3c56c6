"""A service whose disk is full: what it was told is kept, what it is asked is answered."""

import asyncio
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from sirepo_jobs import protocol as p
from sirepo_jobs.errors import Conflict, RemoteError
from sirepo_jobs.job import State
from sirepo_jobs.output import MAX_UNTAKEN_BYTES
from sirepo_jobs.protocol import CHUNK_BYTES, WINDOW_BYTES
from sirepo_jobs.store import Store, backup
from tests.service_stage import Service, eventually, service_of
from tests.small_disk import fill, mounted

from .test_supervisor import House, house_of

JOBS = "/api/v1/jobs"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with mounted(tmp_path / "small", "4m") as place:
        yield place


async def get(service: Service, path: str) -> dict:
    """An answer that has to come although nothing can be written."""
    reply = await asyncio.wait_for(service.ask("GET", path), 60)
    assert reply.status == 200, reply
    return reply.json


async def test_jobs_go_on_and_can_be_looked_at_while_nothing_can_be_written(small_disk: Path) -> None:
    """F085, I1, C14: 503 to what would have to be kept; readers do not wait; all is told later."""
    async with service_of(small_disk) as service:
        jid = (await service.ask("POST", JOBS, {"command": ["true"]})).json["jid"]
        agent = await service.house.agent("local-root")
        await agent.until(lambda: jid in agent.runs)
        agent.starts(jid)
        await service.house.until(jid, lambda job: job.record.state is State.RUNNING)
        ballast = fill(small_disk)
        acked = agent.acked
        agent.exits(jid, 7)
        store = service.house.store
        await eventually(lambda: store.degraded)
        job = await get(service, f"{JOBS}/{jid}")
        assert (job["state"], job["exit_code"]) == ("running", None)
        events = (await get(service, f"{JOBS}/{jid}/events"))["events"]
        assert [event["kind"] for event in events] == ["Submitted", "Assigned", "Started"]
        assert (await get(service, f"{JOBS}/{jid}/attempts"))["attempts"] == []
        assert len((await get(service, JOBS))["jobs"]) == 1
        refused = await service.ask("POST", JOBS, {"command": ["true"]})
        assert (refused.status, "full" in refused.json["detail"]) == (503, True)
        assert agent.acked == acked
        ballast.unlink()
        await service.house.over(jid)
        await agent.until(lambda: agent.acked == agent.seq)
        job = await get(service, f"{JOBS}/{jid}")
        assert (job["state"], job["exit_code"]) == ("error", 7)


async def test_what_cannot_be_written_is_refused_with_its_reason_or_done_later(small_disk: Path) -> None:
    """F085, C14: no verb hangs; what was begun when the disk got full is done when there is room."""
    async with service_of(small_disk) as service:
        jid = (await service.ask("POST", JOBS, {"command": ["true"]})).json["jid"]
        agent = await service.house.agent("local-root")
        await agent.until(lambda: jid in agent.runs)
        agent.starts(jid)
        await service.house.until(jid, lambda job: job.record.state is State.RUNNING)
        ballast = fill(small_disk)
        # nobody knows yet that the disk is full
        begun = await asyncio.wait_for(service.ask("POST", f"{JOBS}/{jid}/cancel"), 60)
        assert (begun.status, begun.json["code"]) == (503, "store_degraded")
        assert "will be when the store can" in begun.json["detail"]
        assert agent.heard(p.Cancel) == []
        refused = [
            await asyncio.wait_for(service.ask("POST", f"{JOBS}/{jid}/hold"), 60),
            await asyncio.wait_for(service.ask("PATCH", f"{JOBS}/{jid}", {"priority": 9}), 60),
            await asyncio.wait_for(service.ask("PATCH", JOBS, [{"jid": jid, "priority": 9}]), 60),
            await asyncio.wait_for(service.ask("POST", f"{JOBS}/{jid}/suspend"), 60),
            await asyncio.wait_for(service.ask("POST", "/api/v1/tokens", {"user": "ann"}), 60),
        ]
        for reply in refused:
            assert (reply.status, reply.json["code"]) == (503, "store_degraded"), reply
            assert "nothing can be changed now" in reply.json["detail"]
        assert (await get(service, f"{JOBS}/{jid}"))["state"] == "running"
        assert (await get(service, f"{JOBS}/{jid}/explain"))["state"] == "running"
        ballast.unlink()
        await agent.until(lambda: agent.heard(p.Cancel))
        agent.exits(jid, None, signal=15, stopped=True)
        assert (await service.house.over(jid)).record.state is State.CANCELED


async def test_an_agent_that_sends_more_than_its_window_is_hung_up_on(tmp_path: Path) -> None:
    """C16, I31: what nobody takes does not fill the memory."""
    async with house_of(tmp_path) as house:
        (jid,) = await house.submit()
        agent = await house.agent()
        await agent.until(lambda: jid in agent.runs)
        agent.starts(jid)
        job = await house.until(jid, lambda job: job.record.state is State.RUNNING)
        readings = house.supervisor.readings
        stream = readings.read(
            job, run_dir=f"{jid}/1", agent=_claim(house), attempt=1,
            stream="stdout", offset=0, limit=None, follow=True,
        )  # fmt: skip
        first = asyncio.ensure_future(anext(stream))
        (ask,) = await agent.until(lambda: agent.heard(p.ReadOutput))
        chunk = memoryview(bytes(CHUNK_BYTES))
        readings.chunk(_claim(house), ask.op_id, 0, chunk)
        assert len(await first) == CHUNK_BYTES
        sent = CHUNK_BYTES
        while sent < 2 * WINDOW_BYTES + CHUNK_BYTES:
            readings.chunk(_claim(house), ask.op_id, sent, chunk)
            sent += CHUNK_BYTES
        assert sent <= MAX_UNTAKEN_BYTES + CHUNK_BYTES
        with pytest.raises(RemoteError, match="nobody has taken"):
            readings.chunk(_claim(house), ask.op_id, sent, chunk)
        await stream.aclose()


def _claim(house: House):
    claim = house.supervisor.agents.get("local-ann")
    assert claim is not None
    return claim


async def test_a_backup_is_taken_while_jobs_run_and_can_be_restored(tmp_path: Path) -> None:
    """F098, F097: by the command; what happened after it is told again by the agent, or kept and shown."""
    root, restored = tmp_path / "root", tmp_path / "restored"
    root.mkdir()
    restored.mkdir()
    copy = tmp_path / "copy.db"
    async with house_of(root) as house:
        first, agent = (await house.submit())[0], await house.agent()
        await agent.until(lambda: first in agent.runs)
        agent.starts(first)
        await house.until(first, lambda job: job.record.state is State.RUNNING)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "sirepo_jobs.cli", "backup", "--root", str(root), str(copy)),
            stdout=asyncio.subprocess.PIPE,
        )
        out, _ = await process.communicate()
        assert (process.returncode, str(copy) in out.decode()) == (0, True)
        assert copy.stat().st_mode & 0o077 == 0
        with pytest.raises(Conflict, match="there already"):
            backup(f"sqlite:///{root}/jobs.db", copy)
        later = (await house.submit())[0]
        await agent.until(lambda: later in agent.runs)
        agent.starts(later)
        agent.exits(first, 5)
        await house.over(first)
        memory = house.driver
    with closing(sqlite3.connect(copy)) as raw:
        assert raw.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    copy.rename(restored / "jobs.db")
    async with house_of(restored, memory) as house:
        agent.connect(house.talk)
        claim = _claim(house)
        await eventually(lambda: claim.foreign == {f"{later}/1"})
        assert agent.heard(p.Cancel) == []
        # its end was acknowledged to the store that is gone: the agent knows nothing of it any more
        job = await house.job(first)
        assert job.record.state is State.LOST
    assert Store.open(f"sqlite:///{restored}/jobs.db").epoch > 1
