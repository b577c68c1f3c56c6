"""The door for agents: Tornado's websocket as the transport of an `AgentLine`. Decides nothing."""

from contextlib import suppress
from typing import Any

import structlog
from tornado.websocket import WebSocketClosedError, WebSocketHandler

from .agent_line import AgentLine
from .agent_talk import AgentTalk
from .supervisor import Supervisor

_log = structlog.get_logger(__name__)


class AgentSocket(WebSocketHandler):
    """One agent's connection."""

    def initialize(self, supervisor: Supervisor, talk: AgentTalk) -> None:
        """Called by Tornado with the arguments of the route."""
        self._supervisor = supervisor
        self._talk = talk
        self._line: AgentLine | None = None

    def prepare(self) -> None:
        """Before the upgrade: the same check as for any other door (S14)."""
        scheme, _, token = self.request.headers.get("Authorization", "").partition(" ")
        name = self.request.headers.get("X-Agent", "")
        agent = self._supervisor.agents.admit(name, token) if scheme == "Bearer" else None
        if agent is None:
            _log.warning("agent refused", agent=name[:64])
            self.set_status(401)
            self.finish()
        else:
            self._line = AgentLine(self._supervisor, self._talk, agent, self)

    def check_origin(self, origin: str) -> bool:
        """Agents are no browsers and send no Origin; whoever sends one is refused (S15)."""
        return False

    def get_compression_options(self) -> dict[str, Any] | None:
        """None: compression costs ten times the memory of a connection and opens the door to bombs (F069)."""
        return None

    def on_message(self, message: str | bytes) -> None:
        """A frame, or a chunk of output."""
        if self._line is not None:
            self._line.receive(message)

    def on_close(self) -> None:
        """The connection is over, whoever ended it."""
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
