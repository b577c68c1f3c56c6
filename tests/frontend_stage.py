"""A front end on a fake supervisor, in the test's own loop, and a client that sends bytes as they are."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from sirepo_jobs import rootdir
from sirepo_jobs.frontend import auth
from sirepo_jobs.frontend.audit import AuditLog
from sirepo_jobs.frontend.response import ResponseReader
from sirepo_jobs.frontend.server import Frontend
from sirepo_jobs.frontend.upstream import Upstream

from .fake_supervisor import FakeSupervisor

READER = "r" * 43
"""Token of somebody who may only look."""


#: Whatever is awaited comes soon, or not at all: only a test that fails waits so long.
WAIT_SECS = 60


class Reply(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes
    #: The body came to its end.
    whole: bool

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)


class Wire:
    """One connection to the front end."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def reply(self) -> Reply:
        """The next response, to its end or that of the connection."""
        response = ResponseReader()
        body = b""
        while not response.done:
            data = await asyncio.wait_for(self.reader.read(65536), WAIT_SECS)
            if not data:
                response.close()
                break
            body += response.feed(data)
        return Reply(response.status, response.headers, body, response.done)

    async def is_closed(self) -> bool:
        with contextlib.suppress(ConnectionResetError):
            return await asyncio.wait_for(self.reader.read(1), WAIT_SECS) == b""
        return True

    def close(self) -> None:
        self.writer.transport.abort()


class Stage:
    """Everything that a test of the front end needs."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.fake = FakeSupervisor(root)
        self.token = rootdir.ensure_token(root)
        self._wires: list[Wire] = []
        tokens = auth.Tokens()
        tokens.add(self.token, auth.Principal("ann", frozenset(auth.Scope)))
        tokens.add(READER, auth.Principal("bob", frozenset({auth.Scope.JOBS_READ})))
        self.frontend = Frontend(
            Upstream(root), tokens, AuditLog(root / "audit.jsonl"), max_body_bytes=1 << 20
        )
        self.url = self.frontend.listen("127.0.0.1", 0)
        rootdir.write_listening(root, rootdir.Listening(self.url, 1))

    async def wire(self) -> Wire:
        port = int(self.url.rpartition(":")[2])
        wire = Wire(*await asyncio.open_connection("127.0.0.1", port, limit=1 << 16))
        self._wires.append(wire)
        return wire

    def request(
        self,
        method: str,
        target: str,
        body: Any = None,
        *,
        token: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> bytes:
        """The bytes of a request; `token=""` sends none."""
        data = body if isinstance(body, bytes) else msgspec.json.encode(body) if body is not None else b""
        lines = {"Host": "here", "Authorization": f"Bearer {self.token if token is None else token}"}
        if token == "":
            del lines["Authorization"]
        if data or method == "POST":
            lines["Content-Length"] = str(len(data))
        lines |= headers or {}
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        return f"{method} {target} HTTP/1.1\r\n{head}\r\n".encode("latin1") + data

    async def ask(self, method: str, target: str, body: Any = None, **more: Any) -> Reply:
        """One request on a connection of its own."""
        wire = await self.wire()
        await wire.send(self.request(method, target, body, **more))
        reply = await wire.reply()
        wire.close()
        return reply

    async def close(self) -> None:
        for wire in self._wires:
            wire.close()
        await self.frontend.stop()
        await self.fake.stop()


@contextlib.asynccontextmanager
async def stage(root: Path) -> AsyncIterator[Stage]:
    """A stage with its supervisor started."""
    it = Stage(root)
    it.fake.start()
    try:
        yield it
    finally:
        await it.close()


async def until(condition: Any) -> None:
    """Give the other tasks their turns until something is so."""
    async with asyncio.timeout(WAIT_SECS):
        while not condition():
            await asyncio.sleep(0.001)
