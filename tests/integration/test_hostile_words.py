"""Nonsense from every side, over real sockets: its speaker is hung up on, and nobody else notices."""

import asyncio
import contextlib
import json
import os
import random
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from websockets.asyncio.client import ClientConnection, unix_connect
from websockets.exceptions import ConnectionClosed, InvalidMessage, InvalidStatus

from sirepo_jobs import protocol as p
from sirepo_jobs import rootdir
from sirepo_jobs.driver import Environment
from sirepo_jobs.job import State
from tests.agent_stage import scene
from tests.scripted import ScriptedDriver
from tests.service_stage import Service, eventually, service_of

JOBS = "/api/v1/jobs"
JID = "01J00000000000000000000000"
FRAMES: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "fixtures/frames_before_leases.json").read_text()
)
#: What may stand where something else should.
ODD: list[Any] = [
    None, True, -1, 0, 1 << 31, 1 << 53, (1 << 64) + 1, -(1 << 70), 1e308, 0.5, "", "x" * 5000, "\0",
    "../../etc/passwd", "\ud800", [], {}, [[]] * 100, {"op": "exited"}, {"a": {"b": [None] * 50}},
]  # fmt: skip
DEEP = "[" * 100_000
MEMORY_BYTES = 64 << 20
#: Another one has other nonsense said: `FUZZ_SEED=7 bin/test tests/integration/test_hostile_words.py`.
SEED = int(os.environ.get("FUZZ_SEED", "4"))


def mutated(rng: random.Random, value: Any) -> Any:
    """The same with something in it replaced, left out or added."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(list(value))
        match rng.randrange(8):
            case 0:
                return {k: v for k, v in value.items() if k != key}
            case 1:
                return {**value, rng.choice(["op", "seq", "v", "zzz"]): rng.choice(ODD)}
        return {**value, key: mutated(rng, value[key])}
    if isinstance(value, list) and value and rng.random() < 0.85:
        place = rng.randrange(len(value))
        if rng.randrange(8) == 0:
            return value * 3
        return [*value[:place], mutated(rng, value[place]), *value[place + 1 :]]
    return rng.choice(ODD)


def nonsense(rng: random.Random, frames: list[str]) -> str | bytes:
    """One message."""
    frame = rng.choice(frames)
    match rng.randrange(8):
        case 0:
            return rng.randbytes(rng.randrange(3000))
        case 1:
            return rng.randbytes(rng.randrange(3000)).decode("latin-1")
        case 2:
            return frame[: rng.randrange(len(frame))]
        case 3:
            place = rng.randrange(len(frame))
            return frame[:place] + chr(rng.randrange(1, 0x250)) + frame[place + 1 :]
        case 4:
            return rng.choice([DEEP, '{"agent":' * 5000, "", "null", "[]", '{"agent":"a","msgs":' + DEEP])
        case 5:
            return p.encode_chunk(
                rng.choice([0, 1, 7, (1 << 32) - 1]), rng.choice([0, 5, 1 << 63]), rng.randbytes(99)
            )
    return json.dumps(mutated(rng, json.loads(frame)))


def frames_of(side: str) -> list[str]:
    return list(FRAMES[side])


async def call(service: Service, name: str) -> ClientConnection:
    """A connection with the agent's own token."""
    token = service.house.supervisor.agents._token(name)
    return await unix_connect(
        str(service.root / rootdir.SOCKET), "ws://localhost/agent", compression=None, max_size=None,
        additional_headers={"Authorization": f"Bearer {token}", "X-Agent": name}, close_timeout=1,
        open_timeout=60,
    )  # fmt: skip


def hello(name: str, **more: Any) -> p.Hello:
    base: dict[str, Any] = {
        "agent": name, "version": "1", "host": "h", "pid": 1, "boot_id": "b", "install": "i", "last_seq": 0,
        "inventory": [],
    }  # fmt: skip
    return p.Hello(**{**base, **more})


@contextlib.asynccontextmanager
async def besieged(root: Path, caplog: pytest.LogCaptureFixture) -> Any:
    """A service in which bob's job runs while ann's agent talks nonsense; nothing of bob's may change."""
    driver = ScriptedDriver("ok", "silent", cpus=4)
    async with service_of(root, driver=driver) as service:
        (bobs,) = await service.house.submit(user="bob")
        bob = await service.house.agent("local-bob")
        await bob.until(lambda: bobs in bob.runs)
        bob.starts(bobs)
        await service.house.until(bobs, lambda job: job.record.state is State.RUNNING)
        (anns,) = await service.house.submit(user="ann")
        await eventually(lambda: service.house.supervisor.agents.get("local-ann") is not None)
        before = psutil.Process().memory_info().rss
        yield service, anns
        assert psutil.Process().memory_info().rss - before < MEMORY_BYTES
        job = await service.house.job(bobs)
        assert (job.record.state, job.record.attempt) == (State.RUNNING, 1)
        assert bob.line is not None
        assert bob.line.open
        bob.exits(bobs, 3)
        assert (await service.house.over(bobs)).record.exit_code == 3
        assert (await service.ask("GET", JOBS)).status == 200
        said = [r.getMessage() for r in caplog.records if "xception" in r.getMessage() or r.exc_info]
        assert said == []


async def test_agents_that_speak_nonsense_are_hung_up_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """F068, C16: 400 connections, each with some messages that are none, before and after their hello."""
    rng = random.Random(SEED)
    ours = frames_of("from_agent")
    codes: list[int | None] = []
    async with besieged(tmp_path, caplog) as (service, jid):
        for number in range(400):
            connection = await call(service, "local-ann")
            with contextlib.suppress(ConnectionClosed):
                epoch = session = 0
                if number % 2:
                    await connection.send(
                        p.encode(p.FromAgentFrame(agent="local-ann", msgs=[hello("local-ann")])), text=True
                    )
                    welcome = p.decode_to_agent(await connection.recv(decode=False))
                    epoch, session = welcome.epoch, welcome.session
                for _ in range(6):
                    said = nonsense(rng, ours)
                    if isinstance(said, str) and rng.random() < 0.8:
                        # as somebody who belongs here
                        with contextlib.suppress(ValueError, TypeError, RecursionError):
                            frame = {
                                **json.loads(said),
                                "agent": "local-ann",
                                "epoch": epoch,
                                "session": session,
                            }
                            said = json.dumps(frame).replace(JID, jid)
                    if isinstance(said, str):
                        said = said.encode("utf-8", "surrogatepass")
                        await connection.send(said, text=True)
                    else:
                        await connection.send(said)
                await connection.send(b"\x07 no chunk")
                async with asyncio.timeout(60):
                    while True:
                        await connection.recv(decode=False)
            await connection.wait_closed()
            codes.append(connection.close_code)
    # each of them was closed by the other side, with a code that says why
    assert set(codes) <= {4400, 4409, 1007, 1009, 1002}, set(codes)
    assert codes.count(4400) > 300


async def test_what_is_too_long_or_no_websocket_ends_its_connection_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """C16: 64 MiB in one message, pieces without end, raw bytes in the place of frames."""
    rng = random.Random(SEED)
    async with besieged(tmp_path, caplog) as (service, _):
        connection = await call(service, "local-ann")
        with contextlib.suppress(ConnectionClosed):
            await connection.send("x" * (4 * p.MAX_MESSAGE_BYTES))
            await connection.recv()
        await connection.wait_closed()
        assert connection.close_code in (1009, 1006)
        connection = await call(service, "local-ann")

        def pieces() -> Iterator[str]:
            for _ in range(200):
                yield "x" * (p.MAX_MESSAGE_BYTES // 50)

        with contextlib.suppress(ConnectionClosed):
            await connection.send(pieces())
            await connection.recv()
        await connection.wait_closed()
        assert connection.close_code in (1009, 1006)
        for number in range(100):
            raw = socket.socket(socket.AF_UNIX)
            raw.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(raw, str(service.root / rootdir.SOCKET))
            with contextlib.suppress(OSError):
                if number % 2:
                    token = service.house.supervisor.agents._token("local-ann")
                    await loop.sock_sendall(raw, _upgrade(token))
                    assert b" 101 " in await loop.sock_recv(raw, 4096)
                await loop.sock_sendall(raw, rng.randbytes(rng.randrange(1, 5000)))
                raw.shutdown(socket.SHUT_WR)
                async with asyncio.timeout(60):
                    while await loop.sock_recv(raw, 65536):
                        pass
            raw.close()
        with pytest.raises((InvalidStatus, InvalidMessage)):
            await unix_connect(str(service.root / rootdir.SOCKET), "ws://localhost/agent")


def _upgrade(token: str) -> bytes:
    return (
        "GET /agent HTTP/1.1\r\nHost: here\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
        f"Authorization: Bearer {token}\r\nX-Agent: local-ann\r\n\r\n"
    ).encode()


async def test_a_supervisor_that_speaks_nonsense_costs_no_job(tmp_path: Path) -> None:
    """F068: a real agent hears 300 messages that are none; its job runs on, and its end is told."""
    rng = random.Random(SEED)
    theirs = frames_of("to_agent")
    async with scene(tmp_path) as s:
        await s.stage.send([s.stage.shell("j", "mkfifo go; read word < go; exit 5")])
        await s.stage.started("j")
        for _ in range(300):
            await s.stage.until(lambda: s.stage.connection is not None, "it calls again")
            connection = s.stage.connection
            assert connection is not None
            said = nonsense(rng, theirs)
            with contextlib.suppress(ValueError, TypeError, RecursionError):
                frame = json.loads(said)
                frame |= {"agent": "a1", "epoch": s.stage.epoch, "session": s.stage.session}
                # These it would believe: to stop, and that what it has just told is committed already.
                frame["ack"] = s.stage.acked
                said = json.dumps(frame).replace('"stop"', '"stopp"').replace('"acked"', '"acke"')
            with contextlib.suppress(ConnectionClosed):
                if isinstance(said, str):
                    await connection.send(said.encode("utf-8", "surrogatepass"), text=True)
                else:
                    await connection.send(said)
        await s.stage.until(lambda: s.stage.connection is not None, "it calls again")
        with (s.run_dir("j") / "go").open("w"):
            pass
        assert (await s.stage.ended("j")).exit_code == 5


async def test_nothing_that_agents_send_is_unpacked(tmp_path: Path) -> None:
    """F069: compression is offered and not taken; who compresses all the same is hung up on."""
    async with service_of(tmp_path, driver=ScriptedDriver("silent")) as service:
        service.house.supervisor.agents.at(Environment(driver="local", user="ann"))
        token = service.house.supervisor.agents._token("local-ann")
        path = str(service.root / rootdir.SOCKET)
        headers = {"Authorization": f"Bearer {token}", "X-Agent": "local-ann"}
        async with unix_connect(path, "ws://localhost/agent", additional_headers=headers) as connection:
            assert connection.request is not None
            assert "permessage-deflate" in connection.request.headers["Sec-WebSocket-Extensions"]
            assert connection.response is not None
            assert "Sec-WebSocket-Extensions" not in connection.response.headers
            # One frame with the bit of compression, masked with zeros: a bomb would begin so.
            connection.transport.write(b"\xc1\x84" + bytes(4) + b"bomb")
            with pytest.raises(ConnectionClosed):
                await connection.recv()
