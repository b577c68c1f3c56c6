"""The agents' way in from other machines: TLS on a port of its own, and nothing behind it but `/agent`.

Agents on this machine call through the root's unix socket. Whoever can reach the port is a stranger
until its token fits: what strangers may take is counted.
"""

import errno
import socket
import ssl
from typing import Any

import structlog
from tornado.httpserver import HTTPServer
from tornado.iostream import IOStream
from tornado.web import Application

from . import protocol
from .agent_socket import AgentSocket
from .agent_talk import AgentTalk
from .errors import BadInput
from .steady_socket import SteadySocket
from .supervisor import Supervisor

_log = structlog.get_logger(__name__)

#: A stranger has so long for the handshake of TLS and the headers.
PATIENCE_SECS = 20.0
#: Headers of an agent are few.
MAX_HEADER_BYTES = 8 << 10
#: Connections at one time that are no agent's yet; what is beyond is closed at once, and agents call again.
MAX_STRANGERS = 1000
#: How every websocket of ours is kept.
WEBSOCKET: dict[str, Any] = {
    "websocket_max_message_size": protocol.MAX_MESSAGE_BYTES,
}


def route(supervisor: Supervisor, talk: AgentTalk) -> tuple[str, type[AgentSocket], dict[str, Any]]:
    """The agents' websocket as a row of a Tornado application."""
    return (r"/agent", AgentSocket, {"supervisor": supervisor, "talk": talk})


class AgentDoor:
    """A bound port; serves agents from `serve` to `close`."""

    def __init__(
        self,
        host: str,
        port: int,
        *,
        url: str = "",
        tls: ssl.SSLContext | None = None,
        ca_pem: str | None = None,
    ) -> None:
        """Bind. `url` is what agents are told to call; "" makes it from the address.

        Raises `BadInput` when the port is taken.
        """
        address = "127.0.0.1" if host == "localhost" else host
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        try:
            self._socket = SteadySocket(socket.create_server((address, port), family=family, backlog=1024))
        except OSError as exc:
            taken = exc.errno == errno.EADDRINUSE
            hint = "another program listens there; name another port in agent_port, or 0 for any"
            raise BadInput(
                f"cannot listen for agents on {host}:{port}: {hint if taken else exc.strerror}",
                code="bind_failed",
            ) from None
        shown = f"[{host}]" if ":" in host else host
        bound = self._socket.getsockname()[1]
        #: What agents on other machines are told to call.
        self.url = url or f"{'wss' if tls else 'ws'}://{shown}:{bound}/agent"
        #: The authorities that those agents trust; None: those of their system.
        self.ca_pem = ca_pem
        self._tls = tls
        self._server: HTTPServer | None = None

    def serve(self, supervisor: Supervisor, talk: AgentTalk) -> None:
        """Take connections from now on."""
        application = Application([route(supervisor, talk)], log_function=lambda _handler: None, **WEBSOCKET)
        self._server = _Server(
            application,
            ssl_options=self._tls,
            max_header_size=MAX_HEADER_BYTES,
            max_body_size=0,
            idle_connection_timeout=PATIENCE_SECS,
            body_timeout=PATIENCE_SECS,
        )
        self._server.add_socket(self._socket)
        _log.info("listening for agents", url=self.url)

    def close(self) -> None:
        """Take no more connections; those that stand stay with their handlers. Safe to repeat."""
        if self._server is not None:
            self._server.stop()
        else:
            self._socket.close()


class _Server(HTTPServer):
    def handle_stream(self, stream: IOStream, address: tuple[Any, ...]) -> None:
        # an upgraded connection is an agent's, and Tornado's server counts it no longer
        if len(self._connections) >= MAX_STRANGERS:
            _log.warning("too many strangers at the agents' door", limit=MAX_STRANGERS)
            stream.close()
            return
        super().handle_stream(stream, address)
