"""The front end's process: one HTTP server before one supervisor.

It keeps nothing: killed and started again, it serves as before. While the supervisor is away it
answers 503 with `Retry-After`, and serves again as soon as the supervisor does.
"""

import asyncio
import contextlib
import errno
import logging
import os
import resource
import signal
import socket
import ssl
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from tornado.http1connection import HTTP1Connection
from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPConnection, HTTPMessageDelegate, HTTPServerConnectionDelegate
from tornado.iostream import IOStream
from tornado.netutil import bind_sockets

from sirepo_jobs import garbage, logs, rootdir
from sirepo_jobs.errors import BadInput
from sirepo_jobs.steady_socket import SteadySocket
from sirepo_jobs.tls import server_context

from . import audit, auth, limits
from .audit import AuditLog
from .crowd import Crowd
from .disk_threads import DiskThreads
from .exchange import Exchange
from .origins import Origins
from .public import Public
from .rates import Rates
from .routes import Table
from .token_feed import TokenFeed
from .upstream import Upstream

log = logging.getLogger(__name__)


class Frontend(HTTPServerConnectionDelegate):
    """Everything the exchanges share."""

    def __init__(
        self,
        upstream: Upstream,
        tokens: auth.Tokens,
        audit: AuditLog,
        max_body_bytes: int,
        tls: ssl.SSLContext | None = None,
        rates: Rates | None = None,
        crowd: Crowd | None = None,
        public: Public | None = None,
        allowed_origins: Iterable[str] = (),
    ) -> None:
        self.upstream = upstream
        self.audit = audit
        self.tls = tls
        self.rates = rates or Rates(0, 1)
        self.crowd = crowd or Crowd(limits.MAX_EXCHANGES, max_body_bytes)
        self.public = public or Public()
        own = {self.public.origin} - {""}
        self.origins = Origins(own.union(allowed_origins), tls=tls is not None)
        self.tokens = tokens
        self.max_body_bytes = max_body_bytes
        self.table = Table()
        #: Requests under way.
        self.exchanges: set[Exchange] = set()
        #: Requests that are to come, or coming, and until when their clients have time for it.
        self._coming: dict[Exchange, float] = {}
        #: The one of each connection that came last, or is to come next.
        self._newest: dict[object, Exchange] = {}
        self.feed = TokenFeed(upstream, tokens.copy, self.dismiss)
        self.disk_threads = DiskThreads()
        self._quiet = asyncio.Event()
        self._looking: asyncio.TimerHandle | None = None
        self._server = _Server(
            self,
            ssl_options=tls,
            max_buffer_size=limits.MAX_READ_BUFFER_BYTES,
            max_header_size=limits.MAX_READ_HEADER_BYTES,
            max_body_size=max_body_bytes,
        )
        # One look at all who are slow; Tornado would keep two timers and a task for each request.
        self._server.conn_params.header_timeout = None

    def listen(self, host: str, port: int) -> str:
        """Take connections from now on; returns the URL. Raises `BadInput` when the port is taken."""
        try:
            address = "127.0.0.1" if host == "localhost" else host
            sockets = [SteadySocket(bound) for bound in bind_sockets(port, address, backlog=1024)]
        except OSError as exc:
            taken = exc.errno == errno.EADDRINUSE
            hint = "another program listens there; name another port with --port, or 0 for any"
            raise BadInput(
                f"cannot listen on {host}:{port}: {hint if taken else exc.strerror}", code="bind_failed"
            ) from None
        self._server.add_sockets(sockets)
        self.feed.start()
        self._look_later()
        shown = f"[{host}]" if ":" in host else host
        return f"{'https' if self.tls else 'http'}://{shown}:{sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        """Take no more, let short requests end, break off long ones; safe to repeat."""
        self._server.stop()
        if self._looking is not None:
            self._looking.cancel()
        for exchange in [exchange for exchange in self.exchanges if exchange.lasting]:
            exchange.cut()
        if self.exchanges:
            self._quiet.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._quiet.wait(), limits.DRAIN_SECS)
        for exchange in list(self.exchanges):
            exchange.cut()
        await self._server.close_all_connections()
        await self.feed.stop()
        self.upstream.close()
        self.audit.close()
        self.disk_threads.close()

    def enter(self, exchange: Exchange) -> None:
        """A request has begun."""
        self.exchanges.add(exchange)

    def leave(self, exchange: Exchange) -> None:
        """Its answer is over; safe to repeat."""
        self.exchanges.discard(exchange)
        if not self.exchanges:
            self._quiet.set()

    def dismiss(self) -> None:
        """End whatever lasts for somebody who may no longer be here (S9)."""
        for exchange in [
            exchange for exchange in self.exchanges if exchange.lasting and not exchange.may_stay
        ]:
            exchange.dismiss()

    def expect(self, exchange: Exchange, secs: float) -> None:
        """The next part of it, headers or body, is to be here in so many seconds, or at the look after."""
        self._coming[exchange] = time.monotonic() + secs

    def arrived(self, exchange: Exchange) -> None:
        """It is whole, or given up; safe to repeat."""
        self._coming.pop(exchange, None)

    def _look_later(self) -> None:
        self._looking = asyncio.get_running_loop().call_later(limits.LOOK_SECS, self._look)

    def _look(self) -> None:
        """Part from clients that are gone. Tornado tells of it, but not while it has bytes of theirs that
        nobody reads, such as a next request."""
        for exchange in [exchange for exchange in self.exchanges if exchange.is_deserted]:
            exchange.on_connection_close()
        now = time.monotonic()
        for exchange in [exchange for exchange, due in self._coming.items() if due < now]:
            exchange.give_up()
        self._look_later()

    def busy(self) -> bool:
        """More is going on than we can serve well."""
        return len(self.exchanges) > limits.MAX_EXCHANGES

    def start_request(self, server_conn: object, request_conn: HTTPConnection) -> HTTPMessageDelegate:
        """Tornado has a new request."""
        assert isinstance(request_conn, HTTP1Connection)
        exchange = self._newest[server_conn] = Exchange(self, request_conn)
        self.expect(exchange, limits.IDLE_SECS)
        return exchange

    def on_close(self, server_conn: object) -> None:
        """Nothing comes on a connection any more. What is under way on it knows already."""
        if (exchange := self._newest.pop(server_conn, None)) is not None:
            self.arrived(exchange)


class _Server(HTTPServer):
    """Tornado's server with an end to how many may come, and to those that vanish without a word."""

    def handle_stream(self, stream: IOStream, address: tuple[Any, ...]) -> None:
        limit = min(limits.MAX_CONNECTIONS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2 - 50)
        if len(self._connections) >= limit:
            log.warning("too many connections", extra={"limit": limit})
            stream.close()
            return
        for option, value in _KEEPALIVE:
            stream.socket.setsockopt(*option, value)
        super().handle_stream(stream, address)

    def on_close(self, server_conn: object) -> None:
        super().on_close(server_conn)  # which tells nobody
        assert isinstance(self.request_callback, HTTPServerConnectionDelegate)
        self.request_callback.on_close(server_conn)


#: A follower of a silent log whose machine is gone is noticed within two minutes.
_KEEPALIVE = (
    ((socket.SOL_SOCKET, socket.SO_KEEPALIVE), 1),
    ((socket.IPPROTO_TCP, socket.TCP_KEEPIDLE), 60),
    ((socket.IPPROTO_TCP, socket.TCP_KEEPINTVL), 15),
    ((socket.IPPROTO_TCP, socket.TCP_KEEPCNT), 4),
)


def run_frontend(
    root: Path,
    host: str,
    port: int,
    max_body_bytes: int,
    *,
    proxy_secret_file: Path | None = None,
    tls_cert_file: Path | None = None,
    tls_key_file: Path | None = None,
    rates: Rates | None = None,
    max_user_requests: int = limits.MAX_EXCHANGES,
    public_url: str = "",
    allowed_origins: Iterable[str] = (),
) -> int:
    """Serve until SIGTERM or SIGINT; the exit status. Says `listening on URL` when it is ready."""
    rootdir.prepare(root)
    tls = server_context(tls_cert_file, tls_key_file) if tls_cert_file else None
    _more_descriptors()
    pid_file = rootdir.PidFile(root / rootdir.FRONTEND_PID)
    pid_file.hold()
    try:
        tokens = _tokens(root, proxy_secret_file)
        frontend = partial(
            Frontend,
            tokens=tokens,
            max_body_bytes=max_body_bytes,
            tls=tls,
            rates=rates,
            crowd=Crowd(max_user_requests, max_body_bytes),
            public=Public(public_url),
            allowed_origins=allowed_origins,
        )
        asyncio.run(_serve(root, host, port, frontend))
    finally:
        pid_file.release()
    return 0


def _tokens(root: Path, proxy_secret_file: Path | None) -> auth.Tokens:
    """Whom we know before the supervisor tells of others."""
    proxy = None
    if proxy_secret_file is not None:
        secret = rootdir.read_token(proxy_secret_file, own=True)
        logs.hide(secret)
        proxy = auth.Proxy(secret)
    tokens = auth.Tokens(proxy=proxy)
    token = rootdir.ensure_token(root)
    logs.hide(token)
    tokens.add(token, auth.starter())
    return tokens


async def _serve(root: Path, host: str, port: int, make: Callable[..., Frontend]) -> None:
    frontend = make(Upstream(root), audit=AuditLog(root / audit.FILE))
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    try:
        url = frontend.listen(host, port)
        rootdir.write_listening(root, rootdir.Listening(url, os.getpid()))
        print(f"listening on {url}", flush=True)  # noqa: T201 (the promised line)
        log.info("listening", extra={"url": url})
        garbage.settle()
        await ended.wait()
        log.info("ending", extra={"requests": len(frontend.exchanges)})
    finally:
        await frontend.stop()


def _more_descriptors() -> None:
    """Each stream holds two; the soft limit is often 1024 for the sake of programs that use select()."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65536 if hard == resource.RLIM_INFINITY else min(hard, 65536)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
