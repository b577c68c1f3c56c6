"""Whose outputs the front end may open, and what becomes of those that it cannot (decision 10, S30)."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from sirepo_jobs import protocol as p
from sirepo_jobs.driver import Environment, Handle
from sirepo_jobs.errors import Unavailable
from sirepo_jobs.job import State
from tests.frontend_stage import Reply
from tests.service_stage import Service, service_of

JOBS = "/api/v1/jobs"
SAID = b"what the job said"


class Writer:
    """A job that has written; its agent sends what it is asked for."""

    def __init__(self, service: Service, jid: str, agent: Any) -> None:
        self._service = service
        self.jid = jid
        self.agent = agent
        claim = service.house.supervisor.agents.get(agent.name)
        assert claim is not None
        self.claim = claim
        self.run_root = service.root / "users/root/jobs"
        self.path = self.run_root / jid / "1/stdout"
        self.path.parent.mkdir(parents=True)
        self.path.write_bytes(SAID)
        claim.marks = True
        self.lies_in(str(self.run_root))

    def lies_in(self, run_root: str) -> None:
        self.claim.handle = Handle(
            agent=self.agent.name, driver="local", version=1, data={"run_root": run_root}
        )

    async def read(self) -> tuple[Reply, list[bool]]:
        """An answer of the front end, and for each time that the agent was asked, whether for marks."""
        self.agent.said.clear()
        asking = asyncio.create_task(
            self._service.ask("GET", f"{JOBS}/{self.jid}/logs/stdout?attempt=1&follow=1")
        )
        answered = 0
        while not asking.done():
            asked = self.agent.heard(p.ReadOutput)
            for ask in asked[answered:]:
                self.answer(ask)
            answered = len(asked)
            await asyncio.sleep(0.005)
        return await asking, [ask.marks for ask in self.agent.heard(p.ReadOutput)]

    def answer(self, ask: p.ReadOutput) -> None:
        info = self.path.stat()
        if ask.marks:
            self.agent.line.hear(
                p.OutputMark(op_id=ask.op_id, offset=len(SAID), device=info.st_dev, inode=info.st_ino)
            )
        else:
            self._service.house.supervisor.readings.chunk(self.claim, ask.op_id, 0, memoryview(SAID))
        self.agent.line.hear(p.OutputEnd(op_id=ask.op_id, offset=len(SAID)))


@contextlib.asynccontextmanager
async def writer(root: Path) -> AsyncIterator[Writer]:
    async with service_of(root) as service:
        made = await service.ask("POST", JOBS, {"command": ["true"]})
        jid = made.json["jid"]
        agent = await service.house.agent("local-root")
        await agent.until(lambda: jid in agent.runs)
        agent.starts(jid)
        await service.house.until(jid, lambda job: job.record.state is State.RUNNING)
        yield Writer(service, jid, agent)


async def test_what_we_launched_here_is_opened(tmp_path: Path) -> None:
    async with writer(tmp_path) as job:
        reply, asked = await job.read()
        assert (reply.body, reply.whole, asked) == (SAID, True, [True])


def _of_a_cluster(job: Writer) -> None:
    job.claim.environment = Environment(driver="sbatch", user="root", cluster="far")


def _elsewhere(job: Writer) -> None:
    job.lies_in("/srv/sirepo_jobs/jobs")


def _not_known_yet(job: Writer) -> None:
    job.claim.handle = None


@pytest.mark.parametrize("change", [_of_a_cluster, _elsewhere, _not_known_yet])
async def test_nothing_is_opened_on_the_word_of_another_host(
    tmp_path: Path, change: Callable[[Writer], None]
) -> None:
    """S30: agents of clusters come through a unix socket, too, and any agent may say `marks`."""
    async with writer(tmp_path) as job:
        change(job)
        reply, asked = await job.read()
        assert (reply.body, reply.whole, asked) == (SAID, True, [False])


async def test_what_cannot_be_opened_is_not_tried_each_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Another user, another mount: one request more and one line in the log, a minute long."""
    async with writer(tmp_path) as job:
        await asyncio.to_thread(os.rename, job.path, job.path.with_name("kept"))
        job.path.symlink_to("kept")  # the agent has the file open, and the front end follows no link
        for times, marks in enumerate(([True, False], [False], [False])):
            reply, asked = await job.read()
            assert (reply.body, reply.whole, asked) == (SAID, True, marks), times
        said = [one for one in caplog.records if one.getMessage() == "an output cannot be read here"]
        assert len(said) == 1
        job.claim.unopened_until = 0.0  # the minute is over
        job.path.unlink()
        job.path.with_name("kept").rename(job.path)
        reply, asked = await job.read()
        assert (reply.body, asked) == (SAID, [True])


async def test_marks_are_of_one_file(tmp_path: Path) -> None:
    """The agent was away, and the output is another file now: the reading ends, whoever reads asks again."""
    async with writer(tmp_path) as it:
        house, agent = it._service.house, it.agent
        job = await house.job(it.jid)
        marks = house.supervisor.readings.marks(
            job, run_dir=f"{it.jid}/1", agent=it.claim, attempt=1,
            stream="stdout", offset=0, limit=None, follow=True,
        )  # fmt: skip
        first = asyncio.ensure_future(anext(marks))
        (ask,) = await agent.until(lambda: agent.heard(p.ReadOutput))
        agent.line.hear(p.OutputMark(op_id=ask.op_id, offset=3, device=1, inode=10))
        assert (await first).inode == 10
        agent.cut()
        second = asyncio.ensure_future(anext(marks))
        agent.said.clear()
        agent.connect(house.talk)
        (again,) = await agent.until(lambda: agent.heard(p.ReadOutput))
        assert again.offset == 3
        agent.line.hear(p.OutputMark(op_id=again.op_id, offset=9, device=1, inode=11))
        async with asyncio.timeout(60):
            with pytest.raises(Unavailable, match="another file"):
                await second
        assert agent.heard(p.StopReading) == [p.StopReading(op_id=again.op_id)]
