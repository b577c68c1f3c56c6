"""The door for agents: Tornado's websocket on one side, typed messages on the other. Decides nothing."""

import asyncio
from typing import Any

import structlog
from tornado.websocket import WebSocketClosedError, WebSocketHandler

from . import protocol
from .agent_pool import Agent
from .agent_talk import AgentTalk
from .errors import RemoteError
from .supervisor import Supervisor

_log = structlog.get_logger(__name__)


class AgentSocket(WebSocketHandler):
    """One agent's connection: a `Line` for the supervisor."""

    _sessions = 0

    def initialize(self, supervisor: Supervisor, talk: AgentTalk) -> None:
        """Called by Tornado with the arguments of the route."""
        self._supervisor = supervisor
        self._talk = talk
        self._agent: Agent | None = None
        self._greeted = False
        self._out: list[protocol.ToAgent] = []
        self._ack = 0
        self._flushing = False
        AgentSocket._sessions += 1
        self.session = AgentSocket._sessions

    def prepare(self) -> None:
        """Before the upgrade: the same check as for any other door (S14)."""
        scheme, _, token = self.request.headers.get("Authorization", "").partition(" ")
        name = self.request.headers.get("X-Agent", "")
        self._agent = self._supervisor.agents.admit(name, token) if scheme == "Bearer" else None
        if self._agent is None:
            _log.warning("agent refused", agent=name[:64])
            self.set_status(401)
            self.finish()

    def check_origin(self, origin: str) -> bool:
        """Agents are no browsers and send no Origin; whoever sends one is refused (S15)."""
        return False

    def get_compression_options(self) -> dict[str, Any] | None:
        """None: compression costs ten times the memory of a connection and opens the door to bombs (F069)."""
        return None

    # -- what comes

    def on_message(self, message: str | bytes) -> None:
        """A frame, or a chunk of output."""
        agent = self._agent
        if agent is None or (self._greeted and agent.line is not self):
            return
        try:
            if isinstance(message, bytes):
                self._supervisor.readings.chunk(agent, *protocol.decode_chunk(message))
                return
            frame = protocol.decode_from_agent(message)
            messages = frame.msgs
            if not self._greeted:
                if not messages or not isinstance(messages[0], protocol.Hello):
                    raise RemoteError("the first message must be hello")
                self._greeted = True
                self._talk.greet(agent, self, messages[0])
                messages = messages[1:]
            elif (frame.epoch, frame.session) != (self._supervisor.store.epoch, self.session):
                _log.warning(
                    "stale frame dropped", agent=agent.name, epoch=frame.epoch, session=frame.session
                )
                return
            if messages:
                self._talk.hear(agent, self, messages)
        except RemoteError as exc:
            self.hang_up(4400, str(exc))

    def on_close(self) -> None:
        """The connection is over, whoever ended it."""
        if self._agent is not None and self._greeted:
            self._talk.lose(self._agent, self)

    # -- what goes (`agent_pool.Line`)

    def say(self, message: protocol.ToAgent) -> None:
        """Queue a message; those of one turn of the loop travel in one frame."""
        self._out.append(message)
        self._flush_soon()

    def acknowledge(self, seq: int) -> None:
        """Everything up to `seq` is committed; rides on the next frame."""
        if seq > self._ack:
            self._ack = seq
            self._flush_soon()

    def hang_up(self, code: int, why: str) -> None:
        """Close with a reason that the other side can log (at most 123 bytes travel)."""
        _log.warning("hang up", agent=self._agent.name if self._agent else None, code=code, why=why)
        self.close(code, why.encode()[:120].decode(errors="ignore"))

    def _flush_soon(self) -> None:
        if not self._flushing:
            self._flushing = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        out, self._out = self._out, []
        assert self._agent is not None, "messages for a connection without an agent"
        try:
            for part in _cut(out):
                frame = protocol.ToAgentFrame(
                    agent=self._agent.name,
                    epoch=self._supervisor.store.epoch,
                    session=self.session,
                    ack=self._ack,
                    msgs=part,
                )
                self.write_message(protocol.encode(frame))
        except WebSocketClosedError:
            pass  # on_close follows; what was lost is settled when the agent calls again


def _cut(messages: list[protocol.ToAgent]) -> list[list[protocol.ToAgent]]:
    """Parts that stay near the target size of a frame; at least one, since the envelope carries the ack."""
    parts: list[list[protocol.ToAgent]] = [[]]
    size = 0
    for message in messages:
        weight = 300
        if isinstance(message, protocol.Run):
            weight += 2 * len(message.spec)
        if size + weight > protocol.FRAME_TARGET_BYTES and parts[-1]:
            parts.append([])
            size = 0
        parts[-1].append(message)
        size += weight
    return parts
