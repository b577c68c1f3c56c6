"""A supervisor with a door for thousands of agents, and the other ends of their connections.

As a program it is the supervisor: it is told on stdin what to do, and answers on stdout, one JSON line each.
"""

import asyncio
import base64
import json
import os
import resource
import socket
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sirepo_jobs import garbage, protocol

HEARTBEAT_SECS = 15.0
#: Connections that are opened at the same time.
_AT_ONCE = 64


# -- the other ends


class Crowd:
    """Many agents in one process: a socket each, the pings of an idle agent, and nothing else."""

    def __init__(self, path: str, tokens: dict[str, str]) -> None:
        self._path = path
        self._tokens = tokens
        self._links: list[_Link] = []

    async def connect(self) -> None:
        """All of them, hello included."""
        names = iter(self._tokens.items())

        async def some() -> None:
            for name, token in names:
                self._links.append(await _Link.open(self._path, name, token))

        await asyncio.gather(*(some() for _ in range(_AT_ONCE)))

    def cut(self) -> None:
        """As when a switch fails: no closing handshake."""
        links, self._links = self._links, []
        for link in links:
            link.cut()


class _Link(asyncio.Protocol):
    def __init__(self, name: str) -> None:
        self._name = name
        self._in = b""
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._welcome: protocol.Received | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport

    @classmethod
    async def open(cls, path: str, name: str, token: str) -> "_Link":
        link = cls(name)
        loop = asyncio.get_running_loop()
        end = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        end.setblocking(False)
        await loop.sock_connect(end, path)
        await loop.create_unix_connection(lambda: link, sock=end)
        key = base64.b64encode(os.urandom(16)).decode()
        link._transport.write(
            f"GET /agent HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n"
            f"Authorization: Bearer {token}\r\nX-Agent: {name}\r\n\r\n".encode()
        )
        await link.opened
        return link

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._in += data
        if not self.opened.done():
            head, end, self._in = self._in.partition(b"\r\n\r\n")
            if not end:
                self._in = head
                return
            assert head.startswith(b"HTTP/1.1 101"), head
            self.opened.set_result(None)
            hello = protocol.Hello(
                agent=self._name,
                version="1",
                host="h",
                pid=1,
                boot_id="b",
                install=self._name,
                last_seq=0,
                inventory=[],
                made_at=time.monotonic(),
            )
            self._say(0, 0, hello)
        for opcode, payload in self._frames():
            if opcode == 9:
                self._send(10, payload)
            elif opcode == 1 and self._welcome is None:
                self._welcome = protocol.decode_to_agent(payload)
                # as agents of many starts: not all in the same moment
                wait = protocol.idle_secs(HEARTBEAT_SECS) * int.from_bytes(os.urandom(2)) / 65536
                self._timer = asyncio.get_running_loop().call_later(wait, self._beat)

    def _frames(self) -> Iterator[tuple[int, bytes]]:
        while len(self._in) >= 2:
            length, at = self._in[1] & 127, 2
            if length == 126:
                if len(self._in) < 4:
                    return
                length, at = int.from_bytes(self._in[2:4]), 4
            if len(self._in) < at + length:
                return
            opcode, payload = self._in[0] & 15, self._in[at : at + length]
            self._in = self._in[at + length :]
            yield opcode, payload

    def _beat(self) -> None:
        self._send(9, b"")
        secs = protocol.idle_secs(HEARTBEAT_SECS)
        self._timer = asyncio.get_running_loop().call_later(secs, self._beat)

    def _say(self, epoch: int, session: int, message: Any) -> None:
        frame = protocol.FromAgentFrame(agent=self._name, epoch=epoch, session=session, msgs=[message])
        self._send(1, protocol.encode(frame))

    def _send(self, opcode: int, payload: bytes) -> None:
        length = len(payload)
        size = struct.pack("!B", 128 | length) if length < 126 else struct.pack("!BH", 128 | 126, length)
        # a mask of zeros changes nothing, and saves this side the work
        self._transport.write(bytes([128 | opcode]) + size + bytes(4) + payload)

    def cut(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._transport.abort()


# -- the supervisor


async def _serve(folder: str) -> None:
    from tornado.httpserver import HTTPServer
    from tornado.netutil import bind_unix_socket
    from tornado.web import Application

    from sirepo_jobs import agent_door
    from sirepo_jobs.driver import Environment

    from .brain import Brain

    brain = Brain(Path(folder), 16, heartbeat_secs=HEARTBEAT_SECS)
    await brain.supervisor.recover()
    pool = brain.supervisor.agents
    routes = [agent_door.route(brain.supervisor, brain.agent.talk)]
    server = HTTPServer(Application(routes, log_function=lambda _: None, **agent_door.WEBSOCKET))
    server.add_socket(bind_unix_socket(f"{folder}/socket", backlog=4096))
    garbage.settle()

    def look() -> dict[str, Any]:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return {"rss_kb": pages * os.sysconf("SC_PAGE_SIZE") // 1024, "cpu_secs": time.process_time()}

    async def until(count: int) -> None:
        # beside a busy loop this costs nothing that would show
        while sum(one.line is not None for one in pool) != max(count, 0):
            await asyncio.sleep(0.02)

    while line := await asyncio.to_thread(sys.stdin.readline):
        word, number = line.split()
        answer: dict[str, Any] = {}
        if word == "expect":
            answer = look()
            made = [pool.at(Environment(driver="local", user=f"u{n}")) for n in range(int(number))]
            answer["tokens"] = {one.name: pool._token(one.name) for one in made}
        elif word == "until":
            await until(int(number))
        print(json.dumps(answer | look() if word != "expect" else answer), flush=True)


if __name__ == "__main__":
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    import logging

    import structlog

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    asyncio.run(_serve(sys.argv[1]))
