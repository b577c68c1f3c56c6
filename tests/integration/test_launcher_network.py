"""The network side: how it connects, what it trusts, when it gives up."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.http11 import Request, Response

from sirepo_jobs.agents import agent as agent_module
from sirepo_jobs.agents.lane import Lane, lane_pair
from sirepo_jobs.agents.words import FromRelay, ToRelay, decode_from_relay, relay
from sirepo_jobs.driver import AgentSpec, Environment
from sirepo_jobs.protocol import Heartbeat, Hello, Run, Stop
from tests.agent_stage import WAIT_SECS, Scene, Stage, gone, scene


@asynccontextmanager
async def served(stage: Stage, context: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """The stage on a TCP port too."""
    async with serve(
        stage._serve, "127.0.0.1", 0, ssl=context, compression=None, max_size=16 << 20
    ) as server:
        (sock,) = server.sockets
        yield sock.getsockname()[1]


async def certificate(path: Path, name: str) -> tuple[Path, Path]:
    """A self-signed one for localhost."""
    key, cert = path / f"{name}.key", path / f"{name}.pem"
    process = await asyncio.create_subprocess_exec(
        "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
        "-keyout", str(key), "-out", str(cert), "-days", "2", "-subj", "/CN=localhost",
        "-addext", "subjectAltName=DNS:localhost",
        stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    assert await process.wait() == 0
    return key, cert


async def test_tcp(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "unused")
    async with served(stage) as port:
        s = Scene(tmp_path, stage)
        s.spec = spec_of(s, f"ws://127.0.0.1:{port}/agent")
        await s.launch()
        await stage.connected()
        await stage.send([stage.shell("j", "printf x")])
        assert (await stage.ended("j")).exit_code == 0
        assert s.handle is not None
        await s.driver.stop(s.handle, grace_secs=20)


async def test_tls_is_verified(tmp_path: Path) -> None:
    key, cert = await certificate(tmp_path, "good")
    _, other = await certificate(tmp_path, "other")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    stage = Stage(tmp_path / "unused")
    tries: asyncio.Queue[str | None] = asyncio.Queue()
    context.sni_callback = lambda _, name, __: tries.put_nowait(name)
    async with served(stage, context) as port:
        s = Scene(tmp_path, stage)
        s.spec = spec_of(s, f"wss://localhost:{port}/agent", ca_file=str(other))
        handle = await s.launch()
        # It tries, and trusts nobody whom it was not told to trust.
        for _ in range(3):
            assert await asyncio.wait_for(tries.get(), WAIT_SECS) == "localhost"
        assert stage.hellos == []
        await s.driver.stop(handle, grace_secs=20)
        s.spec = spec_of(s, f"wss://localhost:{port}/agent", ca_file=str(cert))
        handle = await s.launch()
        await stage.connected()
        await stage.send([stage.shell("j", "printf x")])
        assert (await stage.ended("j")).exit_code == 0
        assert "secret-token" in stage.headers[0]["Authorization"]
        await s.driver.stop(handle, grace_secs=20)
        s.spec = spec_of(s, f"wss://127.0.0.1:{port}/agent", ca_file=str(cert))
        handle = await s.launch()
        while not tries.empty():
            tries.get_nowait()
        for _ in range(3):
            await asyncio.wait_for(tries.get(), WAIT_SECS)
        assert len(stage.hellos) == 1  # the certificate is for another name
        await s.driver.stop(handle, grace_secs=20)


def spec_of(s: Scene, url: str, **changes: Any) -> AgentSpec:
    return AgentSpec(
        **{
            "agent": "a1",
            "environment": Environment(driver="local", user="u"),
            "url": url,
            "token": "secret-token",
            "home": str(s.home),
            "run_root": str(s.run_root),
            **changes,
        }
    )


async def test_door_that_is_shut_for_a_while(tmp_path: Path) -> None:
    """401 from a proxy that is being set up is no word of the supervisor: it tries again."""
    stage = Stage(tmp_path / "unused")
    shut = 3

    def process_request(connection: ServerConnection, request: Request) -> Response | None:
        nonlocal shut
        shut -= 1
        return connection.respond(401, "not yet\n") if shut >= 0 else None

    async with serve(stage._serve, "127.0.0.1", 0, process_request=process_request) as server:
        (sock,) = server.sockets
        s = Scene(tmp_path, stage)
        s.spec = spec_of(s, f"ws://127.0.0.1:{sock.getsockname()[1]}/agent")
        handle = await s.launch()
        await stage.connected()
        await s.driver.stop(handle, grace_secs=20)


async def test_supervisor_that_speaks_nonsense_is_left_and_tried_again(tmp_path: Path) -> None:
    async with scene(tmp_path) as s:
        await s.stage.send([s.stage.run("j", ["sleep", "1000"])])
        await s.stage.started("j")
        assert s.stage.connection is not None
        await s.stage.connection.send("this is no frame")
        hello = await s.stage.connected(2)
        assert [one.jid for one in hello.inventory] == ["j"]
        assert "nonsense" in s.log()


async def test_heartbeats_tell_how_many_are_held(tmp_path: Path) -> None:
    async with scene(tmp_path) as s:
        s.stage.heartbeat_secs = 1.0  # who hears nothing for twice as long hangs up
        assert s.stage.connection is not None
        await s.stage.connection.close()
        await s.stage.connected(2)
        await s.stage.send([s.stage.run("j", ["sleep", "1000"]), s.stage.run("k", ["true"], standby=True)])
        await s.stage.until(
            lambda: [one for one in s.stage.others if isinstance(one, Heartbeat) and one.held == 2]
        )


async def test_an_agent_that_holds_nothing_sends_no_heartbeats_until_it_has_work(tmp_path: Path) -> None:
    async with scene(tmp_path) as s:
        s.stage.heartbeat_secs = 1.0
        assert s.stage.connection is not None
        await s.stage.connection.close()
        await s.stage.connected(2)
        beats = lambda: [one for one in s.stage.others if isinstance(one, Heartbeat)]  # noqa: E731
        await asyncio.sleep(5)  # that something does not happen can only be waited for
        assert (beats(), len(s.stage.hellos)) == ([], 2)  # and that was no silence: pings were answered
        await s.stage.send([s.stage.run("j", ["sleep", "1000"])])
        first = await s.stage.until(beats)
        assert (first[0].held, first[0].n) == (1, 1)
        await s.stage.until(lambda: len(beats()) > 3)


async def test_jobs_outlive_a_supervisor_that_hangs_up_at_once_many_times(tmp_path: Path) -> None:
    async with scene(tmp_path) as s:
        await s.stage.send([s.stage.shell("j", "while [ ! -e go ]; do sleep 0.01; done; exit 3")])
        await s.stage.started("j")
        for count in range(2, 8):
            assert s.stage.connection is not None
            s.stage.connection.transport.abort()
            await s.stage.connected(count)
        (s.run_dir("j") / "go").touch()
        assert (await s.stage.ended("j")).exit_code == 3


class Launcher:
    """The other end of the lane, for a network side inside the test."""

    def __init__(self) -> None:
        ours, self.theirs = lane_pair()
        self.lane = Lane(ours)
        self.heard: list[FromRelay] = []
        self._news = asyncio.Event()
        asyncio.get_running_loop().add_reader(ours.fileno(), self._read)

    def _read(self) -> None:
        for frame in self.lane.take():
            word = decode_from_relay(frame)
            self.heard.append(word)
            if word.hail:
                hello = Hello(
                    agent="a1",
                    version="0",
                    host="h",
                    pid=1,
                    boot_id="b",
                    install="i",
                    last_seq=0,
                    inventory=[],
                )
                self.lane.put(relay(ToRelay(hello=hello)))
                self.lane.flush()
        self._news.set()

    async def until(self, kind: type) -> Any:
        async with asyncio.timeout(WAIT_SECS):
            while not (found := [msg for word in self.heard for msg in word.msgs if isinstance(msg, kind)]):
                self._news.clear()
                await self._news.wait()
        return found[0]

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self.lane.fileno())
        self.lane.close()


async def test_orphan_asks_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_module, "ORPHAN_SECS", 0.1)
    launcher = Launcher()
    s = Scene(tmp_path, Stage(tmp_path / "nobody"))
    network = asyncio.create_task(agent_module.Agent(s.spec, Lane(launcher.theirs)).run())
    # Whether it holds something is the launcher's to know.
    assert await launcher.until(Stop) == Stop(kill_jobs=False)
    launcher.close()
    await network


async def test_network_side_ends_with_its_launcher(tmp_path: Path) -> None:
    async with Stage(tmp_path / "socket") as stage:
        launcher = Launcher()
        s = Scene(tmp_path, stage)
        network = asyncio.create_task(agent_module.Agent(s.spec, Lane(launcher.theirs)).run())
        await stage.connected()
        await stage.send([stage.run("j", ["true"])])
        assert (await launcher.until(Run)).jid == "j"
        launcher.close()
        await network


async def test_idle_agent_whose_supervisor_is_gone_ends_and_one_with_a_job_stays(tmp_path: Path) -> None:
    """The launcher's part: `Stop` without force ends it only when it holds nothing, not even a record."""
    async with scene(tmp_path) as s:
        s.stage.acking = False
        await s.stage.send([s.stage.run("j", ["true"])])
        await s.stage.ended("j")
        await s.stage.send([Stop()])
        await s.stage.send([s.stage.run("k", ["true"])])
        await s.stage.ended("k")
        s.stage.acking = True
        s.stage.acked = max(m.seq for m in s.stage.durable)
        await s.stage.send([Stop()])
        await gone(s.launcher)
