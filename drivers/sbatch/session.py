"""One user on one cluster: the one connection that everything there shares, and why there is none (SIR-43).

A connection that broke is made anew with growing pauses if that needs nobody (the service has a key for the
user); else its user is asked to log in again, once, for however many jobs there are. What was refused is
not tried again by itself: that is how accounts get locked (F134, F140).
"""

import asyncio
import contextlib
import random
import re
from collections import Counter
from pathlib import Path
from typing import Final, Literal, NamedTuple

import structlog

from sirepo_jobs.cluster import ClusterPolicy
from sirepo_jobs.drivers.sbatch.logins import LoginBook
from sirepo_jobs.drivers.sbatch.ssh import Ask, Connection, Credentials, Kind, SshError, connect, read_key
from sirepo_jobs.drivers.sbatch.tunnel import Tunnel
from sirepo_jobs.errors import LaunchError
from sirepo_jobs.reasons import Reason
from sirepo_jobs.resources import format_secs

_log = structlog.get_logger(__name__)

#: Seconds before the n-th try after failures.
PAUSES_SECS: Final = (1.0, 2.0, 5.0, 15.0, 60.0, 300.0)
_USERNAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._@+-]{0,63}")


class Trouble(NamedTuple):
    """Why there is no connection."""

    reason: Reason
    text: str
    #: Only a human ends it: nothing is tried meanwhile.
    stopped: bool


class Session:
    """The connection of (cluster, user), and its story."""

    def __init__(self, policy: ClusterPolicy, user: str, book: LoginBook) -> None:
        self.policy = policy
        self.user = user
        self.username = policy.ssh.username.replace("{user}", user)
        self._book = book
        self._key = f"{policy.name}/{user}"
        self._connection: Connection | None = None
        self.trouble: Trouble | None = None
        self.counters: Counter[str] = Counter()
        self._lock = asyncio.Lock()
        self._changed = asyncio.Event()
        self._failures = 0
        self._returning: asyncio.Task[None] | None = None
        #: Sockets that agents there call, by agent; made again on every connection.
        self._tunnels: dict[str, Tunnel] = {}
        self._closing = False

    # -- how it stands

    @property
    def is_open(self) -> bool:
        """There is a connection, as far as is known."""
        return self._connection is not None and self._connection.is_open

    @property
    def logs_in_alone(self) -> bool:
        """The service has a key for this user."""
        return self._key_file() is not None

    @property
    def state(self) -> Literal["connected", "login_required", "unreachable", "stopped", "idle"]:
        """One word for people."""
        if self.is_open:
            return "connected"
        if self.trouble is not None and self.trouble.stopped:
            return "login_required" if self.trouble.reason is Reason.AUTH_REQUIRED else "stopped"
        if not self.logs_in_alone:
            return "login_required"
        return "unreachable" if self.trouble is not None else "idle"

    def why_not(self) -> Trouble | None:
        """Why nothing can be done there before somebody acts."""
        if self.is_open:
            return None
        if self.trouble is not None and self.trouble.stopped:
            return self.trouble
        if not self.logs_in_alone:
            last = f" ({self.trouble.text})" if self.trouble is not None else ""
            name = self.policy.name
            text = f"cluster {name} waits for you to log in: `sirepo-jobs cluster login {name}`{last}"
            return Trouble(Reason.AUTH_REQUIRED, text, stopped=True)
        return None

    def logins(self) -> int:
        """Of the last 24 hours."""
        return self._book.count(self._key)

    async def change(self) -> None:
        """Return when something about the above has changed."""
        await self._changed.wait()

    def _change(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    # -- connections

    async def connection(self) -> Connection:
        """The connection, made if that needs nobody. Raises `LaunchError`."""
        if self._connection is not None and self._connection.is_open:
            return self._connection
        async with self._lock:
            if self._connection is not None and self._connection.is_open:
                return self._connection
            if (trouble := self.why_not()) is not None:
                raise LaunchError(trouble.text, retry=True, reason=trouble.reason)
            credentials = await self._own_credentials()
            try:
                return await self._connect(credentials, None)
            except SshError as exc:
                raise LaunchError(str(exc), retry=True, reason=self._reason(exc)) from None

    async def log_in(self, credentials: Credentials, ask: Ask) -> None:
        """Connect with what a user brought, in place of what is there. Raises `SshError`, `LaunchError`."""
        async with self._lock:
            old = self._connection
            await self._connect(credentials, ask)
            if old is not None:
                await old.close()

    async def _connect(self, credentials: Credentials, ask: Ask | None) -> Connection:
        ssh = self.policy.ssh
        if (secs := self._book.free_in_secs(self._key, ssh.logins_per_day)) > 0:
            raise LaunchError(
                f"{self.logins()} logins at cluster {self.policy.name} in 24 hours, its policy allows"
                f" {ssh.logins_per_day}; the next one is possible in {format_secs(secs)}",
                retry=True,
                reason=Reason.RATE_LIMIT,
            )
        self._book.add(self._key)
        self.counters["logins"] += 1
        made: list[Connection] = []
        try:
            connection = await connect(ssh, credentials, ask, lambda: self._lost(made[0]))
        except SshError as exc:
            self.counters["login_failures"] += 1
            self._failures += 1
            stopped = exc.kind is Kind.HOST_KEY or (exc.kind is Kind.REFUSED and ask is None)
            self.trouble = Trouble(self._reason(exc), str(exc), stopped)
            _log.warning("no connection", cluster=self.policy.name, user=self.user, why=str(exc))
            self._change()
            raise
        made.append(connection)
        self._connection, self.trouble, self._failures = connection, None, 0
        self.username = credentials.username
        _log.info("connected", cluster=self.policy.name, user=self.user, username=self.username)
        for tunnel in self._tunnels.values():
            tunnel.serve(connection)
        self._change()
        return connection

    def _reason(self, exc: SshError) -> Reason:
        return {
            Kind.REFUSED: Reason.AUTH_REQUIRED,
            Kind.HOST_KEY: Reason.LAUNCH_FAILED,
            Kind.UNREACHABLE: Reason.AGENT_UNREACHABLE,
        }[exc.kind]

    def _lost(self, connection: Connection) -> None:
        if self._connection is not connection:
            return
        self._connection = None
        self.counters["connections_lost"] += 1
        _log.warning("connection lost", cluster=self.policy.name, user=self.user)
        self._change()
        if self._tunnels:
            self.come_back()

    def come_back(self) -> None:
        """Connect again in the background, for as long as that needs nobody and somebody may call."""
        if not self._closing and self._returning is None and self.why_not() is None and not self.is_open:
            self._returning = asyncio.create_task(self._come_back(), name=f"connect {self._key}")

    async def _come_back(self) -> None:
        try:
            while not self._closing and not self.is_open and self.why_not() is None:
                pause = PAUSES_SECS[min(self._failures, len(PAUSES_SECS) - 1)]
                await asyncio.sleep(pause * (0.5 + random.random()))
                with contextlib.suppress(LaunchError):
                    await self.connection()
        finally:
            self._returning = None

    # -- credentials of the service

    def _key_file(self) -> Path | None:
        template = self.policy.ssh.key_file
        if not template or "key" not in self.policy.ssh.auth or not _USERNAME.fullmatch(self.user):
            return None
        path = Path(template.replace("{user}", self.user))
        return path if path.is_file() else None

    async def _own_credentials(self) -> Credentials:
        path = self._key_file()
        assert path is not None, "why_not says so"
        # SECURITY: S57. The service's key serves the policy's user alone, whatever a login named before.
        username = self.policy.ssh.username.replace("{user}", self.user)
        try:
            text = await asyncio.to_thread(path.read_text)
            key = await asyncio.to_thread(read_key, text, "")
        except Exception as exc:  # noqa: BLE001 - whatever is wrong with a file of ours
            raise LaunchError(f"{path} cannot be used: {exc}", retry=False) from None
        return Credentials(username, key=key)

    # -- sockets for agents

    def keep(self, tunnel: Tunnel) -> None:
        """Have this socket there, now and on every later connection."""
        old = self._tunnels.get(tunnel.agent)
        if old is not None and old.same_as(tunnel):
            return
        if old is not None:
            old.close()
        self._tunnels[tunnel.agent] = tunnel
        if self._connection is not None and self._connection.is_open:
            tunnel.serve(self._connection)
        else:
            self.come_back()

    def tunnel(self, agent: str) -> Tunnel | None:
        """The socket of an agent."""
        return self._tunnels.get(agent)

    def drop(self, agent: str) -> None:
        """Nobody calls there any more."""
        tunnel = self._tunnels.pop(agent, None)
        if tunnel is not None:
            tunnel.close()

    # -- ending

    async def hang_up(self) -> None:
        """End the connection; it comes back only by a login."""
        connection, self._connection = self._connection, None
        text = f"you logged out of cluster {self.policy.name}; `sirepo-jobs cluster login {self.policy.name}`"
        self.trouble = Trouble(Reason.AUTH_REQUIRED, text, stopped=True)
        if connection is not None:
            await connection.close()
        self._change()

    async def close(self) -> None:
        """End the connection for good."""
        self._closing = True
        if self._returning is not None:
            self._returning.cancel()
            await asyncio.gather(self._returning, return_exceptions=True)
        for tunnel in self._tunnels.values():
            tunnel.close()
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()
