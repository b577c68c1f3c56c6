"""Many at once: agents that come back in the same moment, and people who look at very many jobs."""

import asyncio
import re
import time
from pathlib import Path

import psutil
from websockets.asyncio.client import ClientConnection

from sirepo_jobs import protocol as p
from sirepo_jobs.driver import Environment
from tests.frontend_stage import ResponseReader, Wire
from tests.scripted import ScriptedDriver
from tests.service_stage import eventually, service_of

from .test_hostile_words import call, hello

JOBS = "/api/v1/jobs"
AGENTS = 200
VIEWERS, BATCHES, BATCH, NEWS = 100, 10, 1000, 100
MEMORY_BYTES = 64 << 20


async def test_two_hundred_agents_come_back_at_once(tmp_path: Path) -> None:
    """F073: all lines are cut in one moment, and nobody waits with jitter. `bin/bench` has 10,000."""
    async with service_of(tmp_path, driver=ScriptedDriver("silent")) as service:
        pool = service.house.supervisor.agents
        names = [pool.at(Environment(driver="local", user=f"u{n}")).name for n in range(AGENTS)]

        async def connect(name: str) -> None:
            connection = await call(service, name)
            said = p.FromAgentFrame(agent=name, msgs=[hello(name, install=name)])
            await connection.send(p.encode(said), text=True)
            heard = p.decode_to_agent(await connection.recv(decode=False))
            assert any(isinstance(message, p.Welcome) for message in heard.msgs)
            connections.append(connection)

        for _ in range(2):
            connections: list[ClientConnection] = []
            began = time.process_time()  # all of it is done by this process, whoever else computes here
            async with asyncio.timeout(60):
                await asyncio.gather(*map(connect, names))
            assert sum(agent.line is not None for agent in pool) == AGENTS
            assert (await service.ask("GET", JOBS)).status == 200
            assert time.process_time() - began < 15
            for connection in connections:
                connection.transport.abort()
            await eventually(lambda: all(agent.line is None for agent in pool))


async def test_a_hundred_people_watch_ten_thousand_jobs(tmp_path: Path) -> None:
    """F153, F074: pages stay small, everybody hears everything once, and who does not read costs nothing."""
    async with service_of(tmp_path, driver=ScriptedDriver("silent")) as service:
        lazy = await service.wire()
        await lazy.send(service.request("GET", "/api/v1/events?after=0"))
        for _ in range(BATCHES):
            reply = await service.ask("POST", JOBS, {"jobs": [{"command": ["true"]}] * BATCH})
            assert reply.status == 201
        last = service.house.supervisor.events.last
        assert last >= BATCHES * BATCH
        wires = [await service.wire() for _ in range(VIEWERS)]
        for wire in wires:
            await wire.send(service.request("GET", f"/api/v1/events?after={last}"))
        before = psutil.Process().memory_info().rss

        async def listen(wire: Wire, upto: int) -> list[int]:
            response, heard = ResponseReader(), b""
            while not heard.endswith(b"\n\n") or ids(heard)[-1] < upto:
                data = await asyncio.wait_for(wire.reader.read(1 << 20), 60)
                assert data
                heard += response.feed(data)
            return ids(heard)

        async def look() -> float:
            began = time.process_time()
            reply = await service.ask("GET", f"{JOBS}?limit=50")
            assert len(reply.json["jobs"]) == 50
            assert len(reply.body) < 100_000
            return time.process_time() - began

        listening = asyncio.gather(*(listen(wire, last + NEWS) for wire in wires))
        looking = asyncio.gather(*(look() for _ in range(VIEWERS)))
        for _ in range(NEWS):
            await service.house.submit()
        assert set(map(tuple, await listening)) == {tuple(range(last, last + NEWS + 1))}
        assert max(await looking) < 30
        assert psutil.Process().memory_info().rss - before < MEMORY_BYTES
        assert await listen(lazy, last + NEWS) == list(range(last + NEWS + 1))


def ids(stream: bytes) -> list[int]:
    return [int(number) for number in re.findall(rb"\nid: (\d+)", stream)]
