"""A unix socket on the login node that leads to the supervisor's: by a forward, or over standard streams.

Where sshd forwards no sockets, a relay on the node listens instead and its connection travels over the
standard streams of a command, one at a time, which is all that one agent needs. The relay's path is the
same, so an agent notices no difference (F143).
"""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, Final

import structlog

from sirepo_jobs.drivers.sbatch import remote
from sirepo_jobs.drivers.sbatch.ssh import Connection, Kind, Refused, SshError
from sirepo_jobs.errors import LaunchError

_log = structlog.get_logger(__name__)

PIECE_BYTES: Final = 65_536
_SECS: Final = 30.0
_AGAIN_SECS: Final = 1.0


class Tunnel:
    """The socket of one agent. Serves on one connection at a time."""

    def __init__(
        self, agent: str, *, socket: str, local: str, root: str, version: str, streams_only: bool = False
    ) -> None:
        self.agent = agent
        #: Path there.
        self.socket = socket
        #: Path of the supervisor's socket here.
        self._local = local
        self._root = root
        self._version = version
        self._streams_only = streams_only
        self._task: asyncio.Task[None] | None = None
        #: How it goes through: "forward", "stdio", or "" while it does not.
        self.way = ""
        #: Set while somebody could call.
        self.ready = asyncio.Event()

    def same_as(self, other: "Tunnel") -> bool:
        """Whether the two lead from the same place to the same place."""
        return (self.socket, self._local, self._version) == (other.socket, other._local, other._version)

    def serve(self, connection: Connection) -> None:
        """Be there on this connection, until it ends."""
        self.close()
        self._task = asyncio.create_task(self._serve(connection), name=f"tunnel {self.agent}")

    def close(self) -> None:
        """Be there no more."""
        if self._task is not None:
            self._task.cancel()
            self._task = None
        self.ready.clear()
        self.way = ""

    async def _serve(self, connection: Connection) -> None:
        while connection.is_open:
            try:
                await self._clear(connection)
                if not self._streams_only:
                    with contextlib.suppress(Refused):
                        listener = await connection.listen(self.socket, self._local)
                        self._open("forward")
                        try:
                            await connection.ended.wait()
                        finally:
                            listener.close()
                        return
                await self._relay(connection)
            except (SshError, LaunchError, remote.NotRun) as exc:
                _log.warning("no way through for the agent", agent=self.agent, why=str(exc))
            finally:
                self.ready.clear()
                self.way = ""
            await asyncio.sleep(_AGAIN_SECS)

    def _open(self, way: str) -> None:
        if self.way != way:
            _log.info("a way through for the agent", agent=self.agent, way=way)
        self.way = way
        self.ready.set()

    async def _clear(self, connection: Connection) -> None:
        script = remote.clear_socket(self.socket)
        answer = await connection.run(script.command, script.stdin, _SECS)
        said = remote.read(script, answer.out)
        if said.status:
            raise LaunchError(f"{self.socket} cannot be made: {said.rest}", retry=True)

    # -- over standard streams

    async def _relay(self, connection: Connection) -> None:
        """Serve callers one after the other, each over a command of its own."""
        while connection.is_open:
            script = remote.agent(self._root, self._version, "relay", self.socket.encode() + b"\n")
            async with connection.pipe(script.command) as process:
                process.stdin.write(script.stdin)
                await _until_listening(process)
                self._open("stdio")
                first = await process.stdout.read(PIECE_BYTES)
                if not first:
                    raise SshError(Kind.UNREACHABLE, f"the relay at {self.socket} ended")
                await self._pump(process, first)

    async def _pump(self, process: Any, first: bytes) -> None:
        reader, writer = await asyncio.open_unix_connection(self._local)
        writer.write(first)
        tasks = {
            asyncio.create_task(_copy(process.stdout.read, writer.write, writer.drain)),
            asyncio.create_task(_copy(reader.read, process.stdin.write, process.stdin.drain)),
        }
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            writer.close()


async def _until_listening(process: Any) -> None:
    """Everything before the relay's own word is noise of start files."""
    async with asyncio.timeout(_SECS):
        while line := await process.stdout.readline():
            if line.strip() == b"@@sj-relay":
                return
    raise remote.NotRun("the relay did not start")


async def _copy(read: Callable[[int], Any], write: Callable[[bytes], Any], drain: Callable[[], Any]) -> None:
    with contextlib.suppress(OSError):
        while data := await read(PIECE_BYTES):
            write(data)
            await drain()
