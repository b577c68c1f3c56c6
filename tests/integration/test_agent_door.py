"""The agents' door on a port: real agents over TLS, and strangers who get nothing.

S3, S6, S10, S14, S15, S22, S36, S47."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from sirepo_jobs import agent_door, agent_socket, protocol, settings, tls
from sirepo_jobs.agent_claim import Agent
from sirepo_jobs.agent_door import AgentDoor
from sirepo_jobs.driver import AgentSpec
from sirepo_jobs.errors import BadInput
from tests.acceptance.conftest import System
from tests.frontend_stage import Wire
from tests.integration.test_supervisor import House, house_of
from tests.integration.test_tls import ca_client

CA = trustme.CA()
#: A driver whose agents are far away, as far as the supervisor knows.
FAR = """
from sirepo_jobs.drivers.local import LocalDriver

class FarDriver(LocalDriver):
    name = "far"
    remote = True
    jobs_outlive_agent = True
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Certificate, key and authorities of the door."""
    path = tmp_path_factory.mktemp("tls")
    issued = CA.issue_cert("127.0.0.1")
    found = {name: path / f"{name}.pem" for name in ("cert", "key", "ca")}
    issued.cert_chain_pems[0].write_to_path(found["cert"])
    issued.private_key_pem.write_to_path(found["key"])
    CA.cert_pem.write_to_path(found["ca"])
    return found


@pytest.fixture(scope="module")
def far(files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A whole system with such a driver, installed as any other distribution would be."""
    path = tmp_path_factory.mktemp("far")
    (path / "far.py").write_text(FAR)
    info = path / "far-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: far\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[sirepo_jobs.drivers]\nfar = far:FarDriver\n")
    system = System(
        path / "root",
        PYTHONPATH=str(path),
        SIREPO_JOBS_DRIVERS="far:local",
        SIREPO_JOBS_AGENT_HOST="127.0.0.1",
        SIREPO_JOBS_AGENT_PORT="0",
        SIREPO_JOBS_AGENT_TLS_CERT_FILE=str(files["cert"]),
        SIREPO_JOBS_AGENT_TLS_KEY_FILE=str(files["key"]),
        SIREPO_JOBS_AGENT_CA_FILE=str(files["ca"]),
    )
    system.up()
    yield system
    system.down("--stop-agents")


def spec_of(system: System, driver: str) -> AgentSpec:
    (path,) = system.root.glob(f"agents/{driver}-*/agent.json")
    import msgspec

    return msgspec.json.decode(path.read_bytes(), type=AgentSpec)


def test_a_real_agent_calls_over_tls(far: System) -> None:
    assert far.cli("run", "--driver", "far", "--", "/bin/echo", "from afar").stdout == b"from afar\n"
    spec = spec_of(far, "far")
    assert spec.url.startswith("wss://127.0.0.1:")
    assert spec.ca_pem == CA.cert_pem.bytes().decode()
    # and those on this machine call as ever
    assert far.cli("run", "--", "/bin/echo", "from here").stdout == b"from here\n"
    assert spec_of(far, "local").url.startswith("unix:")
    assert spec_of(far, "local").ca_pem is None


def test_an_agent_over_tls_is_found_again_by_the_next_supervisor(far: System) -> None:
    """Its port must be the same then; here it was picked, so the agent calls where nobody is, and is lost."""
    url = spec_of(far, "far").url
    far.down()
    far.environ["SIREPO_JOBS_AGENT_PORT"] = url.rpartition(":")[2].partition("/")[0]
    far.up()
    assert far.cli("run", "--driver", "far", "--", "/bin/echo", "again").stdout == b"again\n"
    assert spec_of(far, "far").url == url


def ask(port: int, data: bytes, context: ssl.SSLContext | None) -> bytes:
    """The door's first line in answer to these bytes; nothing when it just hangs up."""
    with socket.create_connection(("127.0.0.1", port)) as plain:
        plain.settimeout(60)
        with contextlib.ExitStack() as stack:
            end: socket.socket = plain
            if context is not None:
                end = stack.enter_context(context.wrap_socket(plain, server_hostname="127.0.0.1"))
            answer = b""
            with contextlib.suppress(ConnectionResetError, BrokenPipeError, ssl.SSLEOFError):
                end.sendall(data)
                while b"\r\n" not in answer and (data := end.recv(65536)):
                    answer += data
            return answer


def upgrade(agent: str, token: str, path: str = "/agent", **more: str) -> bytes:
    """The head of a websocket's request."""
    headers = {
        "Host": "x",
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        "X-Agent": agent,
        "Authorization": f"Bearer {token}",
        **{name.replace("_", "-"): value for name, value in more.items()},
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"GET {path} HTTP/1.1\r\n{head}\r\n".encode()


def status_of(answer: bytes) -> int:
    return int(answer.split()[1]) if answer else 0


def test_strangers_at_the_door(far: System) -> None:
    spec = spec_of(far, "far")
    local = spec_of(far, "local")
    port = int(spec.url.rpartition(":")[2].partition("/")[0])
    trusting = ca_client(CA)

    def knock(data: bytes) -> int:
        return status_of(ask(port, data, trusting))

    admin = (far.root / "token").read_text().strip()
    secret = (far.root / "secret").read_text().strip()
    for agent, token in (
        (spec.agent, ""),
        (spec.agent, "x" * 64),
        (spec.agent, local.token),  # S22: another agent's
        (local.agent, spec.token),
        (spec.agent, admin),  # S10: a user's token opens nothing here
        (spec.agent, secret),
        ("far-nobody", spec.token),
    ):
        assert knock(upgrade(agent, token)) == 401, (agent, token[:4])
    # S15: a browser says where it comes from, an agent does not
    for origin in ("https://evil.example", "null", "https://127.0.0.1", f"https://127.0.0.1:{port}"):
        assert knock(upgrade(spec.agent, spec.token, Origin=origin)) == 403, origin
    # what lies behind the unix socket does not lie here
    for path in ("/api/v1/jobs", "/internal/tokens", "/readyz", "/agent/", "/agents", "/"):
        for token in (spec.token, secret, admin):
            assert knock(upgrade(spec.agent, token, path)) == 404, path
    # S36: nobody sends much before the door knows who it is
    assert knock(upgrade(spec.agent, spec.token, X_Long="x" * 10_000)) in (0, 400)
    post = b"POST /agent HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n" + b"x" * 100_000
    assert knock(post) in (0, 400)
    # S47
    assert status_of(ask(port, upgrade(spec.agent, spec.token), None)) == 0
    old = ca_client(CA, maximum_version=ssl.TLSVersion.TLSv1_1)
    with pytest.raises((ssl.SSLError, OSError)):
        ask(port, b"", old)
    # and all the while the agent works
    assert far.cli("run", "--driver", "far", "--", "/bin/echo", "still").stdout == b"still\n"
    said = (
        far.log() + (far.root / "supervisor.log").read_text()
        if (far.root / "supervisor.log").exists()
        else far.log()
    )
    for word in (spec.token, local.token, secret, admin):
        assert word not in said


# -- limits, in the test's own loop


class Far(House):
    """A supervisor with scripted agents, and a door on a port, without TLS."""

    door: AgentDoor
    wires: list[Wire]

    async def wire(self, data: bytes = b"") -> Wire:
        """A connection to the door that has sent this; it stays open until somebody closes it."""
        wire = Wire(*await asyncio.open_connection("127.0.0.1", self.port))
        self.wires.append(wire)
        await wire.send(data)
        return wire

    @property
    def port(self) -> int:
        return int(self.door.url.rpartition(":")[2].partition("/")[0])

    def upgrade(self, name: str = "local-ann") -> bytes:
        return upgrade(name, self.supervisor.agents._token(name))


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[Far]:
    async with house_of(tmp_path) as it:
        it.__class__ = Far
        assert isinstance(it, Far)
        it.door, it.wires = AgentDoor("127.0.0.1", 0), []
        it.door.serve(it.supervisor, it.talk)
        await it.submit()
        await it.agent()
        try:
            yield it
        finally:
            for wire in it.wires:
                wire.close()
            it.door.close()
            await it.door._server.close_all_connections()  # type: ignore[union-attr]


async def test_who_says_nothing_is_put_out(house: Far, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_socket, "HELLO_SECS", 0.2)
    wire = await house.wire(house.upgrade())
    assert (await wire.reader.readline()).startswith(b"HTTP/1.1 101 ")
    await asyncio.wait_for(wire.reader.readuntil(b"no hello"), 60)  # the reason of the close frame
    wire.close()
    async with asyncio.timeout(60):
        while agent_socket.AgentSocket._calling:
            await asyncio.sleep(0.001)


async def test_who_calls_often_without_a_hello_is_not_let_in(house: Far) -> None:
    wires = [await house.wire(house.upgrade()) for _ in range(agent_socket.MAX_CALLING)]
    for wire in wires:
        assert (await wire.reader.readline()).startswith(b"HTTP/1.1 101 ")
    assert (await (await house.wire(house.upgrade())).reader.readline()).startswith(b"HTTP/1.1 429 ")
    wires[0].close()
    async with asyncio.timeout(60):
        while agent_socket.AgentSocket._calling["local-ann"] >= agent_socket.MAX_CALLING:
            await asyncio.sleep(0.001)
    last = await house.wire(house.upgrade())
    assert (await last.reader.readline()).startswith(b"HTTP/1.1 101 ")
    for wire in (*wires, last):
        wire.close()
    async with asyncio.timeout(60):
        while agent_socket.AgentSocket._calling:
            await asyncio.sleep(0.001)


async def test_strangers_are_counted_and_do_not_stay(house: Far, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_door, "MAX_STRANGERS", 3)
    silent = [await house.wire() for _ in range(3)]
    async with asyncio.timeout(60):
        while len(house.door._server._connections) < 3:  # type: ignore[union-attr]
            await asyncio.sleep(0.001)
    assert await (await house.wire(house.upgrade())).is_closed()
    silent[0].close()
    async with asyncio.timeout(60):
        while len(house.door._server._connections) > 2:  # type: ignore[union-attr]
            await asyncio.sleep(0.001)
    # an agent is no stranger any more, and takes nobody's place
    for _ in range(4):
        agent = await house.wire(house.upgrade())
        assert (await agent.reader.readline()).startswith(b"HTTP/1.1 101 ")


async def test_who_dawdles_over_the_handshake_is_put_out(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_door, "PATIENCE_SECS", 0.3)
    async with house_of(tmp_path) as house:
        context = tls.server_context(files["cert"], files["key"])
        door = AgentDoor("127.0.0.1", 0, tls=context)
        door.serve(house.supervisor, house.talk)
        port = int(door.url.rpartition(":")[2].partition("/")[0])
        for said in (b"", b"\x16\x03\x01", b"\x16\x03\x01\x02\x00\x01\x00"):  # nothing; half a ClientHello
            wire = Wire(*await asyncio.open_connection("127.0.0.1", port))
            await wire.send(said)
            assert await wire.is_closed()
            wire.close()
        door.close()
        await door._server.close_all_connections()  # type: ignore[union-attr]


# -- settings


def loaded(files: dict[str, Path], **flags: Any) -> settings.Settings:
    named = {"agent_tls_cert_file": str(files["cert"]), "agent_tls_key_file": str(files["key"])}
    return settings.load({**named, **flags}, {}).settings


def test_no_agents_token_travels_in_the_clear(files: dict[str, Path]) -> None:
    with pytest.raises(BadInput, match=r"agent_host.*in the clear"):
        settings.load({"agent_host": "10.0.0.1"}, {})
    assert settings.load({"agent_host": "10.0.0.1", "insecure_i_know": True}, {})
    assert settings.load({"agent_host": "127.0.0.1"}, {})
    assert loaded(files, agent_host="10.0.0.1").agent_tls == (files["cert"], files["key"])
    front = {"tls_cert_file": str(files["cert"]), "tls_key_file": str(files["key"])}
    shared = settings.load({"agent_host": "10.0.0.1", **front}, {}).settings
    assert shared.agent_tls == (files["cert"], files["key"])
    with pytest.raises(BadInput, match="belong together"):
        settings.load({"agent_tls_cert_file": str(files["cert"])}, {})
    with pytest.raises(BadInput, match="in the clear"):
        loaded(files, agent_host="10.0.0.1", agent_url="ws://here:1/agent")


def test_agents_are_told_what_they_can_call(files: dict[str, Path]) -> None:
    with pytest.raises(BadInput, match=r"cannot call 0\.0\.0\.0"):
        loaded(files, agent_host="0.0.0.0")
    assert loaded(files, agent_host="::", agent_url="wss://jobs.example:8422/agent")
    for bad in ("https://here/agent", "wss://", "wss://here/agent?x=1", "wss://u:p@here/agent", "here"):
        with pytest.raises(BadInput, match="agent_url"):
            loaded(files, agent_host="127.0.0.1", agent_url=bad)


def test_authorities_that_are_none_are_named(files: dict[str, Path], tmp_path: Path) -> None:
    assert tls.authorities(files["ca"]) == files["ca"].read_text()
    (tmp_path / "none.pem").write_text("nothing")
    for path in (tmp_path / "none.pem", tmp_path / "missing.pem"):
        with pytest.raises(BadInput, match="cannot be used"):
            tls.authorities(path)


def test_a_far_driver_needs_the_door(far: System, tmp_path: Path) -> None:
    alone = System(tmp_path / "root", PYTHONPATH=far.environ["PYTHONPATH"], SIREPO_JOBS_DRIVERS="far")
    done = alone.cli("supervisor", check=False)
    assert done.returncode != 0
    assert b"set agent_host" in done.stderr


def test_a_port_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(BadInput, match="agent_port"):
        AgentDoor("127.0.0.1", taken.getsockname()[1])


async def test_silence_is_noticed_the_sooner_the_more_hangs_on_it(
    house: Far, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F061: within two heartbeats of one who works, counted from when he is given work; else within four."""
    monkeypatch.setattr(house.talk, "heartbeat_secs", 0.4)
    busy = [True]
    monkeypatch.setattr(Agent, "busy", property(lambda _agent: busy[0]))
    # The loop's clock goes on as the test says: how busy the machine is makes no wait longer or shorter.
    now = asyncio.get_running_loop().time()
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: now)
    claim = house.supervisor.agents.get("local-ann")
    assert claim is not None

    async def call() -> Wire:
        """One who says hello, and then nothing: no word, no answer."""
        wire = await house.wire(house.upgrade())
        await wire.reader.readuntil(b"\r\n\r\n")
        hello = protocol.Hello(
            agent=claim.name, version="1", host="h", pid=1, boot_id="", install=claim.install, last_seq=0,
            inventory=[],
        )  # fmt: skip
        data = protocol.encode(protocol.FromAgentFrame(agent=claim.name, msgs=[hello]))
        await wire.send(b"\x81\xfe" + len(data).to_bytes(2) + bytes(4) + data)
        await wire.reader.readuntil(b"welcome")
        return wire

    async def lasted(wire: Wire) -> float:
        nonlocal now
        since = now
        while claim.line is not None:
            assert now - since < 20
            now += 0.01
            await asyncio.sleep(0)
        await wire.reader.readuntil(b"no sign of life")
        return now - since

    at_work = await lasted(await call())
    busy[0] = False
    idle = await lasted(await call())
    wire = await call()
    busy[0] = True
    assert claim.line is not None
    claim.line.say(protocol.StopReading(op_id=0))
    given_work = await lasted(wire)
    assert 0.7 < at_work < idle
    assert idle > 1.5
    assert 0.7 < given_work < idle
