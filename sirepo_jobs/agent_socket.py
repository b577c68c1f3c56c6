"""The door for agents: Tornado's websocket as the transport of an `AgentLine`. Decides nothing."""

import asyncio
from collections import Counter
from contextlib import suppress
from typing import Any, ClassVar

import structlog
from tornado.websocket import WebSocketClosedError, WebSocketHandler

from .agent_line import AgentLine
from .agent_talk import AgentTalk
from .protocol import LATE
from .supervisor import Supervisor

_log = structlog.get_logger(__name__)

#: A caller with a token has so long to say who it is and what it holds.
HELLO_SECS = 30.0
#: Connections of one agent that have not said hello yet: one, and those that it gave up a moment ago.
MAX_CALLING = 8


class AgentSocket(WebSocketHandler):
    """One agent's connection."""

    #: By agent: connections before their hello.
    _calling: ClassVar[Counter[str]] = Counter()

    def initialize(self, supervisor: Supervisor, talk: AgentTalk) -> None:
        """Called by Tornado with the arguments of the route."""
        self._supervisor = supervisor
        self._talk = talk
        self._line: AgentLine | None = None
        self._name = ""
        self._patience: asyncio.TimerHandle | None = None
        self._watch: asyncio.Task[None] | None = None
        #: By the loop's clock.
        self._heard_at = 0.0

    def prepare(self) -> None:
        """Before the upgrade: the same check as for any other door (S14)."""
        scheme, _, token = self.request.headers.get("Authorization", "").partition(" ")
        name = self.request.headers.get("X-Agent", "")
        agent = self._supervisor.agents.admit(name, token) if scheme == "Bearer" else None
        if agent is None:
            _log.warning("agent refused", agent=name[:64])
            self.set_status(401)
            self.finish()
        elif self._calling[agent.name] >= MAX_CALLING:
            _log.warning("agent calls without a hello", agent=agent.name, calls=MAX_CALLING)
            self.set_status(429)
            self.finish()
        else:
            self._name = agent.name
            self._line = AgentLine(self._supervisor, self._talk, agent, self)

    def open(self, *_args: str, **_kwargs: str) -> None:
        """After the upgrade."""
        self._watch = asyncio.create_task(self._listen_for_life())
        self._calling[self._name] += 1
        self._patience = asyncio.get_running_loop().call_later(
            HELLO_SECS, self.hang_up, 4408, "no hello within the time for it"
        )

    def _no_longer_calling(self) -> None:
        """It has said hello, or will never do so; safe to repeat."""
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
            self._calling[self._name] -= 1
            if not self._calling[self._name]:
                del self._calling[self._name]

    def check_origin(self, origin: str) -> bool:
        """Agents are no browsers and send no Origin; whoever sends one is refused (S15)."""
        return False

    def get_compression_options(self) -> dict[str, Any] | None:
        """None: compression costs ten times the memory of a connection and opens the door to bombs (F069)."""
        return None

    async def _listen_for_life(self) -> None:
        """Notice within two heartbeats that the other end is gone without a word (F061, F062).

        Who beats is not asked: ten thousand idle agents would spend our time with answers.
        """
        clock = asyncio.get_running_loop().time
        secs = self._talk.heartbeat_secs
        self._heard_at = clock()
        while True:
            due_at = self._heard_at + LATE * secs
            if clock() < due_at:
                await asyncio.sleep(due_at - clock())
                continue
            asked_at = clock()
            with suppress(WebSocketClosedError):
                self.ping()
            answer_secs = (2 - LATE) * secs
            await asyncio.sleep(answer_secs)
            # Where this process itself stood still, the answer may wait to be read (F010).
            if self._heard_at < asked_at and clock() - asked_at < 1.5 * answer_secs:
                break
        if self._line is not None:
            self._line.hang_up(4408, f"no sign of life for {secs:g} s")
            # The closing handshake would be waited for, and nobody is there to answer it.
            self._line.lost()

    def on_pong(self, _data: bytes) -> None:
        """The other end lives."""
        self._heard_at = asyncio.get_running_loop().time()

    def on_message(self, message: str | bytes) -> None:
        """A frame, or a chunk of output."""
        self._heard_at = asyncio.get_running_loop().time()
        if self._line is not None:
            self._line.receive(message)
            if self._line.greeted:
                self._no_longer_calling()

    def on_close(self) -> None:
        """The connection is over, whoever ended it."""
        self._no_longer_calling()
        if self._watch is not None and self._watch is not asyncio.current_task():
            self._watch.cancel()
        if self._line is not None:
            self._line.lost()

    # -- `agent_line.Transport`

    def send(self, data: bytes) -> None:
        """One text message; dropped when the connection is closed, and `on_close` follows."""
        with suppress(WebSocketClosedError):
            self.write_message(data)

    def hang_up(self, code: int, why: str) -> None:
        """Close; at most 123 bytes of the reason travel."""
        self.close(code, why.encode()[:120].decode(errors="ignore"))
