"""The door for agents: Tornado's websocket as the transport of an `AgentLine`. Decides nothing."""

import asyncio
from collections import Counter
from contextlib import suppress
from typing import Any, ClassVar

import structlog
from tornado.websocket import WebSocketClosedError, WebSocketHandler

from .agent_claim import Agent
from .agent_line import AgentLine
from .agent_talk import AgentTalk
from .protocol import LATE, idle_secs
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
        self._agent: Agent | None = None
        #: Until something is to be heard of the agent.
        self._watch: asyncio.TimerHandle | None = None
        #: It has nothing to do, so not much is expected of it.
        self._resting = False
        self._clock = asyncio.get_running_loop().time
        #: By the loop's clock; also when it was given something to do after it had nothing.
        self._heard_at = self._stirred_at = 0.0

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
            self._agent = agent
            self._line = AgentLine(self._supervisor, self._talk, agent, self)

    def open(self, *_args: str, **_kwargs: str) -> None:
        """After the upgrade."""
        self._heard_at = self._clock()
        self._look()
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

    def _look(self) -> None:
        """Notice within two heartbeats that the other end is gone without a word (F061, F062).

        Who beats is not asked: ten thousand idle agents would spend our time with answers, and with tasks
        of their own. They beat rarely, and so it takes as much longer; from when they are given work it
        counts anew.
        """
        assert self._agent is not None, "it was not let in"
        now, secs = self._clock(), self._talk.heartbeat_secs
        self._resting = not self._agent.busy
        due_at = max(self._heard_at, self._stirred_at) + LATE * secs
        if self._resting:
            due_at += idle_secs(secs) - secs
        if now < due_at:
            self._watch = asyncio.get_running_loop().call_at(due_at, self._look)
            return
        self._resting = False
        with suppress(WebSocketClosedError):
            self.ping()
        self._watch = asyncio.get_running_loop().call_later((2 - LATE) * secs, self._judge, now)

    def _judge(self, asked_at: float) -> None:
        # Where this process itself stood still, the answer may wait to be read (F010).
        answer_secs = (2 - LATE) * self._talk.heartbeat_secs
        if self._heard_at >= asked_at or self._clock() - asked_at >= 1.5 * answer_secs:
            self._look()
        elif self._line is not None:
            self._line.hang_up(4408, f"no sign of life for {self._clock() - self._heard_at:.3g} s")
            # The closing handshake would be waited for, and nobody is there to answer it.
            self._line.lost()

    def on_pong(self, _data: bytes) -> None:
        """The other end lives."""
        self._heard_at = self._clock()

    def on_ping(self, _data: bytes) -> None:
        """The heartbeat of an agent that holds nothing; Tornado answers."""
        self._heard_at = self._clock()
        if self._agent is not None and self._agent.line is self._line:
            self._agent.heard_at = self._heard_at

    def on_message(self, message: str | bytes) -> None:
        """A frame, or a chunk of output."""
        self._heard_at = self._clock()
        if self._line is not None:
            self._line.receive(message)
            if self._line.greeted:
                self._no_longer_calling()

    def on_close(self) -> None:
        """The connection is over, whoever ended it."""
        self._no_longer_calling()
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        if self._line is not None:
            self._line.lost()

    # -- `agent_line.Transport`

    def send(self, data: bytes) -> None:
        """One text message; dropped when the connection is closed, and `on_close` follows."""
        if self._resting and self._agent is not None and self._agent.busy:
            self._stirred_at = self._clock()
            if self._watch is not None:
                self._watch.cancel()
                self._look()
        with suppress(WebSocketClosedError):
            self.write_message(data)

    def hang_up(self, code: int, why: str) -> None:
        """Close; at most 123 bytes of the reason travel."""
        self.close(code, why.encode()[:120].decode(errors="ignore"))
