"""A stand-in for the supervisor as an agent sees it: a websocket server that says what the test says."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from websockets.asyncio.server import ServerConnection, unix_serve
from websockets.exceptions import ConnectionClosed

from sirepo_jobs.agents.process import stat_of
from sirepo_jobs.driver import AgentSpec, Environment, Handle
from sirepo_jobs.drivers.local import LocalDriver
from sirepo_jobs.protocol import (
    Cancel,
    Credit,
    Exited,
    Grant,
    Heard,
    Heartbeat,
    Hello,
    OutputEnd,
    OutputMark,
    Progress,
    ReadOutput,
    Run,
    Signal,
    Started,
    Suspended,
    ToAgentFrame,
    Welcome,
    decode_chunk,
    decode_from_agent,
    encode,
)

WAIT_SECS = 60.0


class Stage:
    """Accepts one agent at a time; remembers everything that it was told, in order."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.url = f"unix:{path}"
        self.hellos: list[Hello] = []
        #: Every durable message as it came, repeats included.
        self.durable: list[Any] = []
        self.exits: dict[tuple[str, int], Exited] = {}
        self.progress: list[Progress] = []
        self.ends: dict[int, OutputEnd] = {}
        self.chunks: dict[int, bytearray] = {}
        self.marks: dict[int, list[OutputMark]] = {}
        #: Offsets at which readings begin, where not 0.
        self.bases: dict[int, int] = {}
        self.others: list[Any] = []
        self.headers: list[Any] = []
        #: The last `seq` that is acknowledged; None = acknowledge nothing.
        self.acked = 0
        self.acking = True
        #: Give credit back as soon as a chunk comes.
        self.crediting = True
        self.welcoming = True
        self.heartbeat_secs = 5.0
        #: Confirm heartbeats.
        self.hearing = True
        #: Refuse with this code after Hello.
        self.refuse: int | None = None
        self.session = 0
        self.epoch = 7
        self.connection: ServerConnection | None = None
        self._changed = asyncio.Condition()
        self._server: Any = None
        self._ops = 0

    async def __aenter__(self) -> "Stage":
        await self.listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def listen(self) -> None:
        self._server = await unix_serve(
            self._serve, str(self.path), compression=None, max_size=16 << 20, ping_interval=None
        )

    async def close(self) -> None:
        """Vanish: no more connections."""
        if self._server is not None:
            self._server.close(close_connections=True)
            await self._server.wait_closed()
            self._server = None
            self.connection = None

    async def _serve(self, connection: ServerConnection) -> None:
        self.headers.append(connection.request.headers if connection.request else None)
        self.session += 1
        session = self.session
        try:
            hello = decode_from_agent(await connection.recv(decode=False)).msgs[0]
            assert isinstance(hello, Hello)
            self.hellos.append(hello)
            if self.refuse is not None:
                await connection.close(self.refuse, "refused")
                return
            if self.welcoming:
                self.connection = connection
                await self.send([Welcome(acked=self.acked, heartbeat_secs=self.heartbeat_secs)])
            await self._note()
            while True:
                data = await connection.recv(decode=False)
                if data[:1] == b"\x01":
                    op_id, offset, body = decode_chunk(data)
                    held = self.chunks.setdefault(op_id, bytearray())
                    assert offset == self.bases.get(op_id, 0) + len(held)
                    held += body
                    if self.crediting:
                        await self.send([Credit(op_id=op_id, count=len(body))])
                    await self._note()
                    continue
                received = decode_from_agent(data)
                assert (received.epoch, received.session) == (self.epoch, session)
                await self._take(received.msgs)
        except ConnectionClosed:
            pass
        finally:
            if self.connection is connection:
                self.connection = None
            await self._note()

    async def _take(self, messages: list[Any]) -> None:
        before = self.acked
        for message in messages:
            if isinstance(message, Started | Exited | Suspended):
                self.durable.append(message)
                if isinstance(message, Exited):
                    self.exits[message.jid, message.attempt] = message
                if self.acking:
                    self.acked = max(self.acked, message.seq)
            elif isinstance(message, Progress):
                self.progress.append(message)
            elif isinstance(message, OutputEnd):
                self.ends[message.op_id] = message
            elif isinstance(message, OutputMark):
                self.marks.setdefault(message.op_id, []).append(message)
            else:
                self.others.append(message)
                if isinstance(message, Heartbeat) and message.n and self.hearing:
                    await self.send([Heard(n=message.n)])
        if self.acked > before:
            await self.send([])
        await self._note()

    async def _note(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def send(self, messages: list[Any], *, session: int | None = None) -> None:
        """Say it to the agent."""
        assert self.connection is not None, "no agent is connected"
        frame = ToAgentFrame(
            agent="a1",
            epoch=self.epoch,
            session=self.session if session is None else session,
            ack=self.acked,
            msgs=messages,
        )
        await self.connection.send(encode(frame), text=True)

    async def until(self, true: Callable[[], Any], what: str = "") -> Any:
        """Wait until something that was told makes it so."""
        async with asyncio.timeout(WAIT_SECS), self._changed:
            while not (found := true()):
                try:
                    await self._changed.wait()
                except asyncio.CancelledError:
                    raise AssertionError(
                        f"still not: {what}; told: {self.durable[-5:]} {self.others[-5:]}"
                    ) from None
            return found

    async def connected(self, count: int = 1) -> Hello:
        """The agent's n-th Hello, once its session is open."""
        await self.until(lambda: len(self.hellos) >= count and self.connection, f"{count} hellos")
        return self.hellos[-1]

    async def ended(self, jid: str, attempt: int = 1) -> Exited:
        """The end of an attempt."""
        exited = await self.until(lambda: self.exits.get((jid, attempt)), f"{jid}/{attempt} ended")
        assert isinstance(exited, Exited)
        return exited

    async def started(self, jid: str, attempt: int = 1) -> Started:
        """The start of an attempt, which must live for some milliseconds at least."""

        def found() -> Started | None:
            for message in self.durable:
                if isinstance(message, Started) and (message.jid, message.attempt) == (jid, attempt):
                    return message
            return None

        started = await self.until(found, f"{jid}/{attempt} started")
        assert isinstance(started, Started)
        return started

    # -- words

    def op_id(self) -> int:
        self._ops += 1
        return self._ops

    def run(self, jid: str, command: list[str], **changes: Any) -> Run:
        attempt = changes.pop("attempt", 1)
        return Run(
            **{
                "jid": jid,
                "serial": 1,
                "attempt": attempt,
                "op_id": self.op_id(),
                "command": command,
                "run_dir": f"users/u/jobs/{jid}/{attempt}",
                **changes,
            }
        )

    def shell(self, jid: str, script: str, **changes: Any) -> Run:
        return self.run(jid, ["/bin/sh", "-c", script], **changes)

    def cancel(self, jid: str, grace_secs: float = 5.0, attempt: int = 1) -> Cancel:
        return Cancel(jid=jid, serial=1, attempt=attempt, op_id=self.op_id(), grace_secs=grace_secs)

    def suspend(self, jid: str, on: bool = True, attempt: int = 1) -> Signal:
        return Signal(jid=jid, serial=1, attempt=attempt, op_id=self.op_id(), suspend=on)

    def grant(self, jid: str, attempt: int = 1) -> Grant:
        return Grant(jid=jid, serial=1, attempt=attempt)

    def read(self, jid: str, stream: str = "stdout", **changes: Any) -> ReadOutput:
        attempt = changes.pop("attempt", 1)
        return ReadOutput(
            **{
                "jid": jid,
                "serial": 1,
                "attempt": attempt,
                "op_id": self.op_id(),
                "run_dir": f"users/u/jobs/{jid}/{attempt}",
                "stream": stream,
                "offset": 0,
                **changes,
            }
        )


class Scene:
    """One agent on this machine, launched by the local driver and connected to a `Stage`."""

    def __init__(self, path: Path, stage: Stage) -> None:
        self.stage = stage
        self.home = path / "home"
        self.run_root = path / "run"
        self.driver = LocalDriver(launch_secs=60)
        self.spec = AgentSpec(
            agent="a1",
            environment=Environment(driver="local", user="u"),
            url=stage.url,
            token="secret-token",
            home=str(self.home),
            run_root=str(self.run_root),
        )
        self.handle: Handle | None = None

    async def launch(self) -> Handle:
        self.handle = await self.driver.launch(self.spec)
        return self.handle

    @property
    def launcher(self) -> int:
        """Pid of the launcher."""
        assert self.handle is not None
        return int(self.handle.data["pid"])

    def helpers(self, name: str) -> list[int]:
        """Pids of the launcher's children of that name: `sj-spawner`, `sj-agent`."""
        return [pid for pid in children_of(self.launcher) if comm_of(pid) == name]

    async def staffed(self) -> None:
        """Every helper is at work: it has a name of its own, and has let go of what is the launcher's."""
        own = comm_of(self.launcher)
        async with asyncio.timeout(WAIT_SECS):
            while any(comm_of(pid) == own for pid in children_of(self.launcher)):
                await asyncio.sleep(0.01)

    def run_dir(self, jid: str, attempt: int = 1) -> Path:
        return self.run_root / f"users/u/jobs/{jid}/{attempt}"

    def stdout(self, jid: str, attempt: int = 1) -> bytes:
        return (self.run_dir(jid, attempt) / "stdout").read_bytes()

    def stderr(self, jid: str, attempt: int = 1) -> bytes:
        return (self.run_dir(jid, attempt) / "stderr").read_bytes()

    def log(self) -> str:
        return (self.home / "launcher.log").read_text()


@asynccontextmanager
async def scene(path: Path, **changes: Any) -> AsyncIterator[Scene]:
    """An agent that is connected; at the end it is stopped, and nothing of it may be left."""
    async with Stage(path / "socket") as stage:
        the_scene = Scene(path, stage)
        if changes:
            the_scene.spec = msgspec.structs.replace(the_scene.spec, **changes)
            the_scene.home, the_scene.run_root = Path(the_scene.spec.home), Path(the_scene.spec.run_root)
        await the_scene.launch()
        try:
            await stage.connected()
            await the_scene.staffed()
            yield the_scene
        except BaseException:
            sys.stderr.write(the_scene.log())
            raise
        finally:
            assert the_scene.handle is not None
            await the_scene.driver.stop(the_scene.handle, grace_secs=20)
        left = carrying(str(the_scene.run_root))
        if the_scene.spec.slurm is not None:
            # A payload writes its record first and ends then, as a child of Slurm's: so long is waited.
            async with asyncio.timeout(WAIT_SECS):
                for pid in left:
                    await gone(pid)
            left = carrying(str(the_scene.run_root))
        assert not left, left
        assert "Traceback" not in the_scene.log(), the_scene.log()


def children_of(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def open_files(pid: int) -> list[str]:
    """What a process has open. Skips the test where the process hides it from us, as it should."""
    try:
        return [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
    except PermissionError:
        return pytest.skip("only root sees the open files of an agent")


def comm_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def sleep_token(n: int) -> str:
    """So many seconds that nobody else sleeps: other processes run tests on this machine at the same time."""
    return f"7{n:02}{os.getpid():07}"


def carrying(text: str) -> dict[int, str]:
    """Living processes with `text` in their command line, their environment or as their directory."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            state = (entry / "stat").read_text(errors="replace").rsplit(")", 1)[1].split()[0]
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            told = command + (entry / "environ").read_bytes().decode(errors="replace")
            told += str((entry / "cwd").readlink())
        except OSError:
            continue
        if state not in "ZX" and text in told:
            found[int(entry.name)] = command
    return found


async def gone(pid: int) -> None:
    """Wait for the end of any process."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(fd, ended.set)
    try:
        async with asyncio.timeout(WAIT_SECS):
            await ended.wait()
    finally:
        loop.remove_reader(fd)
        os.close(fd)


def stands(pid: int) -> bool:
    """As the kernel says it: T is stopped; D waits for a child that was stopped between vfork and exec.

    A process that was told to stop does so when it would next run: soon, and nobody hears of it.
    """
    state, *children = [stat.state for one in (pid, *children_of(pid)) if (stat := stat_of(one)) is not None]
    return state == "T" or (state == "D" and "T" in children)


async def appears(path: Path) -> Path:
    """Wait for a file that another process makes: the only thing here that nobody tells us about."""
    async with asyncio.timeout(WAIT_SECS):
        while not os.path.exists(path):  # noqa: ASYNC240 - quick, and only a test
            await asyncio.sleep(0.01)
    return path
