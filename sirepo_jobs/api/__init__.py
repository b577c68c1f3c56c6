"""The supervisor's door for the front end: HTTP on a unix socket, one request, one answer (SIR-01)."""

from collections.abc import Sequence
from typing import Any

from tornado.http1connection import HTTP1Connection
from tornado.httputil import HTTPMessageDelegate, HTTPServerRequest
from tornado.routing import Router

from sirepo_jobs.driver import AGENT_NAME
from sirepo_jobs.tokens import TOKEN_ID

from .clusters import Cluster, ClusterCheck, Clusters, Login, LoginAnswer
from .exchange import Arrival
from .explain import Explain
from .files import Files
from .handler import Handler, House
from .jobs import Attempts, DeclareLost, Job, JobEvents, Jobs, Signal, Verb
from .service import Agents, AgentVerb, DeclareGone, Health, Metrics, Stats, StopAgents
from .streams import Events, Logs
from .tokens import Token, TokenFeed, Tokens

__all__ = ["House", "routes"]


class _Route(Router):
    """What Tornado's table finds: makes an exchange of one kind."""

    def __init__(self, house: House, kind: type[Handler]) -> None:
        self._house = house
        self._kind = kind

    def find_handler(
        self, request: HTTPServerRequest, path_args: Sequence[bytes] = (), **_: Any
    ) -> HTTPMessageDelegate:
        assert isinstance(request.connection, HTTP1Connection)
        exchange = self._kind(self._house, request, request.connection)
        return Arrival(exchange, [argument.decode() for argument in path_args])


def routes(house: House) -> list[tuple[str, Any, dict[str, Any]]]:
    """Tornado's table of this door."""
    jid = r"([A-Za-z0-9_.-]{1,100})"
    table: list[tuple[str, type[Handler]]] = [
        (r"/api/v1/jobs", Jobs),
        (rf"/api/v1/jobs/{jid}", Job),
        (rf"/api/v1/jobs/{jid}/(cancel|hold|release|retry)", Verb),
        (rf"/api/v1/jobs/{jid}/(suspend|resume)", Signal),
        (rf"/api/v1/jobs/{jid}/declare-lost", DeclareLost),
        (rf"/api/v1/jobs/{jid}/explain", Explain),
        (rf"/api/v1/jobs/{jid}/attempts", Attempts),
        (rf"/api/v1/jobs/{jid}/events", JobEvents),
        (rf"/api/v1/jobs/{jid}/logs/(stdout|stderr)", Logs),
        (rf"/api/v1/jobs/{jid}/files(?:/.*)?", Files),
        (r"/api/v1/events", Events),
        (r"/api/v1/agents", Agents),
        (r"/api/v1/agents/stop", StopAgents),
        (r"/api/v1/clusters", Clusters),
        (r"/api/v1/clusters/([a-z0-9_]{1,32})", Cluster),
        (r"/api/v1/clusters/([a-z0-9_]{1,32})/login", Login),
        (r"/api/v1/clusters/([a-z0-9_]{1,32})/login/([A-Za-z0-9_-]{1,32})", LoginAnswer),
        (r"/api/v1/clusters/([a-z0-9_]{1,32})/check", ClusterCheck),
        (rf"/api/v1/agents/({AGENT_NAME})/(drain|stop)", AgentVerb),
        (r"/metrics", Metrics),
        (rf"/api/v1/agents/({AGENT_NAME})/declare-gone", DeclareGone),
        (r"/api/v1/stats", Stats),
        (r"/api/v1/tokens", Tokens),
        (rf"/api/v1/tokens/({TOKEN_ID})", Token),
        (r"/internal/tokens", TokenFeed),
        (r"/healthz", Health),
        (r"/readyz", Health),
    ]
    return [(path, _Route(house, kind), {}) for path, kind in table]
