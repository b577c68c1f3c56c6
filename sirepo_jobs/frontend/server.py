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
import ssl
from pathlib import Path

from tornado.http1connection import HTTP1Connection
from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPConnection, HTTPMessageDelegate, HTTPServerConnectionDelegate
from tornado.netutil import bind_sockets

from sirepo_jobs import logs, rootdir
from sirepo_jobs.errors import BadInput
from sirepo_jobs.tls import server_context

from . import audit, auth, limits
from .audit import AuditLog
from .exchange import Exchange
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
    ) -> None:
        self.upstream = upstream
        self.audit = audit
        self.tls = tls
        self.rates = rates or Rates(0, 1)
        self.tokens = tokens
        self.max_body_bytes = max_body_bytes
        self.table = Table()
        #: Requests under way.
        self.exchanges: set[Exchange] = set()
        self.feed = TokenFeed(upstream, tokens.copy, self.dismiss)
        self._quiet = asyncio.Event()
        self._server = HTTPServer(
            self,
            ssl_options=tls,
            max_header_size=limits.MAX_READ_HEADER_BYTES,
            max_body_size=max_body_bytes,
            idle_connection_timeout=limits.IDLE_SECS,
            body_timeout=limits.BODY_SECS,
        )

    def listen(self, host: str, port: int) -> str:
        """Take connections from now on; returns the URL. Raises `BadInput` when the port is taken."""
        try:
            sockets = bind_sockets(port, "127.0.0.1" if host == "localhost" else host, backlog=1024)
        except OSError as exc:
            taken = exc.errno == errno.EADDRINUSE
            hint = "another program listens there; name another port with --port, or 0 for any"
            raise BadInput(
                f"cannot listen on {host}:{port}: {hint if taken else exc.strerror}", code="bind_failed"
            ) from None
        self._server.add_sockets(sockets)
        self.feed.start()
        shown = f"[{host}]" if ":" in host else host
        return f"{'https' if self.tls else 'http'}://{shown}:{sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        """Take no more, let short requests end, break off long ones; safe to repeat."""
        self._server.stop()
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

    def busy(self) -> bool:
        """More is going on than we can serve well."""
        return len(self.exchanges) > limits.MAX_EXCHANGES

    def start_request(self, server_conn: object, request_conn: HTTPConnection) -> HTTPMessageDelegate:
        """Tornado has a new request."""
        assert isinstance(request_conn, HTTP1Connection)
        return Exchange(self, request_conn)

    def on_close(self, server_conn: object) -> None:
        """Tornado lost a connection; its exchange knows already."""


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
) -> int:
    """Serve until SIGTERM or SIGINT; the exit status. Says `listening on URL` when it is ready."""
    rootdir.prepare(root)
    tls = server_context(tls_cert_file, tls_key_file) if tls_cert_file else None
    _more_descriptors()
    pid_file = rootdir.PidFile(root / rootdir.FRONTEND_PID)
    pid_file.hold()
    try:
        asyncio.run(_serve(root, host, port, max_body_bytes, proxy_secret_file, tls, rates))
    finally:
        pid_file.release()
    return 0


async def _serve(
    root: Path,
    host: str,
    port: int,
    max_body_bytes: int,
    proxy_secret_file: Path | None,
    tls: ssl.SSLContext | None,
    rates: Rates | None,
) -> None:
    proxy = None
    if proxy_secret_file is not None:
        secret = rootdir.read_token(proxy_secret_file, own=True)
        logs.hide(secret)
        proxy = auth.Proxy(secret)
    tokens = auth.Tokens(proxy=proxy)
    token = rootdir.ensure_token(root)
    logs.hide(token)
    tokens.add(token, auth.starter())
    frontend = Frontend(Upstream(root), tokens, AuditLog(root / audit.FILE), max_body_bytes, tls, rates)
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    try:
        url = frontend.listen(host, port)
        rootdir.write_listening(root, rootdir.Listening(url, os.getpid()))
        print(f"listening on {url}", flush=True)  # noqa: T201 (the promised line)
        log.info("listening", extra={"url": url})
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
