"""One connection to an agent, whatever carries it: frames in, messages out, acknowledgements on top.

What is stale is dropped here: a frame of another epoch or session, and whatever comes by a connection that a
newer one has replaced (C6, I6). Decides nothing else.
"""

import asyncio
from typing import Protocol

import structlog

from . import protocol
from .agent_claim import Agent
from .agent_talk import AgentTalk
from .errors import RemoteError
from .supervisor import Supervisor

_log = structlog.get_logger(__name__)


class Transport(Protocol):
    """What carries whole messages, in order, until it is closed."""

    def send(self, data: bytes) -> None:
        """Queue one text message. What cannot be sent any more is dropped; `AgentLine.lost` follows."""
        ...

    def hang_up(self, code: int, why: str) -> None:
        """Close, with a reason of at most 123 bytes that the other side can log."""
        ...


class AgentLine:
    """The supervisor's end of one connection: an `agent_claim.Line`."""

    def __init__(self, supervisor: Supervisor, talk: AgentTalk, agent: Agent, transport: Transport) -> None:
        self._supervisor = supervisor
        self._talk = talk
        self._agent = agent
        self._transport = transport
        #: The other side has said hello.
        self.greeted = False
        self._out: list[protocol.ToAgent] = []
        self._ack = 0
        self._flushing = False
        #: No other connection of this epoch has it.
        self.session = talk.next_session()

    # -- what comes

    def receive(self, message: str | bytes) -> None:
        """A frame as text, or a chunk of output as bytes."""
        agent = self._agent
        if self.greeted and agent.line is not self:
            return
        try:
            if isinstance(message, bytes):
                self._supervisor.readings.chunk(agent, *protocol.decode_chunk(message))
                return
            frame = protocol.decode_from_agent(message)
            messages = frame.msgs
            if not self.greeted:
                if not messages or not isinstance(messages[0], protocol.Hello):
                    raise RemoteError("the first message must be hello")
                self.greeted = True
                self._talk.greet(agent, self, messages[0])
                if agent.line is not self:
                    return  # it was not let in
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

    def lost(self) -> None:
        """The connection is over, whoever ended it."""
        if self.greeted:
            self._talk.lose(self._agent, self)

    # -- what goes

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
        """Close with a reason that the other side can log."""
        _log.warning("hang up", agent=self._agent.name, code=code, why=why)
        self._transport.hang_up(code, why)

    def _flush_soon(self) -> None:
        if not self._flushing:
            self._flushing = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        out, self._out = self._out, []
        for part in _cut(out):
            frame = protocol.ToAgentFrame(
                agent=self._agent.name,
                epoch=self._supervisor.store.epoch,
                session=self.session,
                ack=self._ack,
                msgs=part,
            )
            self._transport.send(protocol.encode(frame))


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
