"""The agents as the supervisor sees them: one claim per environment, launched when wanted, found again,
drained when idle (SIR-34..39, SYS-10, SYS-17).

A launch that fails is tried again with growing pauses, for as long as somebody waits:
infrastructure trouble pauses jobs, it never fails them (C11).
"""

import asyncio
import contextlib
import hmac
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import msgspec
import structlog

from . import failpoints, protocol
from .agent_claim import Agent, Line, boot_secs
from .commits import Commits
from .driver import AgentSpec, Driver, Environment, Fate, Handle, HasHosts
from .errors import LaunchError, Unavailable
from .events import AgentEvent, AgentState
from .health import Health
from .login import has_logins
from .reasons import Fault, Reason
from .slots import Pool
from .store.unit import AgentRow
from .tasks import Tasks

_log = structlog.get_logger(__name__)

#: Seconds before the n-th launch after failures; the last one for ever.
LAUNCH_PAUSES_SECS = (1.0, 2.0, 5.0, 15.0, 60.0)
#: How often the driver is asked about an agent that is out of reach.
LOOK_SECS = 1.0
#: How often it is looked whether somebody waits still for one that cannot be launched.
BLOCKED_SECS = 60.0
#: A connection may blink for so long before its jobs are called lost (two heartbeats, SYS-13).
AWAY_SECS = 30.0
#: An agent that is told to end may take so long before it is ended.
STOP_SECS = 10.0
#: So long an agent whose files the front end could not open sends them itself.
UNOPENED_SECS = 60.0


class AgentPool:
    """Every agent that anybody wanted, and the tasks that launch and look after them."""

    def __init__(
        self,
        *,
        root: Path,
        url: str,
        drivers: dict[str, Driver],
        commits: Commits,
        tasks: Tasks,
        secret: bytes,
        wake: Callable[[Agent], None],
        is_wanted: Callable[[Agent], bool],
        out_of_reach: Callable[[Agent], None],
        pass_env: Iterable[str] = (),
        refused: Callable[[Agent, Reason, str], None] = lambda *_: None,
        remote_url: str = "",
        ca_pem: str | None = None,
    ) -> None:
        self._root = root
        #: Where agents call: on this machine, and (with whom they trust) from others.
        self._url = url
        self._remote_url = remote_url
        self._ca_pem = ca_pem
        self.drivers = drivers
        self._commits = commits
        self._tasks = tasks
        self._secret = secret
        #: Tells that an agent came, or that the reason why it is away changed.
        self._wake = wake
        #: Asks whether any op waits for it.
        self._is_wanted = is_wanted
        #: Told when an agent that holds attempts has been away for `AWAY_SECS`.
        self._out_of_reach = out_of_reach
        self._pass_env = list(pass_env)
        #: Told when a launch fails for good because of what the jobs ask.
        self._refused = refused
        #: No agent is brought any more.
        self.stopping = False
        self._agents: dict[str, Agent] = {}
        self.pools = {name: Pool(name, driver.capacity) for name, driver in drivers.items()}
        for driver in drivers.values():
            if isinstance(driver, HasHosts):
                self.pools |= {
                    _at_host(driver, host): Pool(_at_host(driver, host), size)
                    for host, size in driver.hosts.items()
                }

    def __iter__(self) -> Iterator[Agent]:
        return iter(self._agents.values())

    def get(self, name: str) -> Agent | None:
        """The agent of that name, if anybody ever wanted it."""
        return self._agents.get(name)

    def run_root(self, user: str, agent: str | None = None) -> str:
        """Where the run dirs of a user's jobs lie: where that agent says, else on this machine."""
        found = self._agents.get(agent or "")
        there = found.handle.data.get("run_root") if found is not None and found.handle is not None else None
        return str(there or self._root / "users" / user / "jobs")

    def opened_here(self, agent: Agent) -> str | None:
        """The run root of an agent whose files the front end may open; None where it sends them
        itself.

        SECURITY: S30. The path is our own, given to what we have launched on this machine, never one that an
        agent or another host has said: a cluster's agents come through a unix socket, too, and say `marks`.
        """
        own = str(self._root / "users" / agent.environment.user / "jobs")
        if agent.environment.cluster is not None or agent.handle is None:
            return None
        if agent.handle.data.get("run_root") != own or not agent.marks or _now() < agent.unopened_until:
            return None
        return own

    def cannot_be_opened(self, agent: Agent) -> None:
        """The front end could not open its files; for a while nobody tries again."""
        agent.unopened_until = _now() + UNOPENED_SECS

    def at(self, environment: Environment) -> Agent:
        """The agent for an environment; made, not launched, when it is new.

        Raises `Unavailable` for a driver that is not configured (any more).
        """
        agent = self._agents.get(environment.key)
        if agent is None:
            if (driver := self.drivers.get(environment.driver)) is None:
                raise Unavailable(f"driver {environment.driver!r} is not configured any more")
            agent = Agent(environment, driver, self._pool_of(environment, driver), self)
            self._agents[environment.key] = agent
        return agent

    def _pool_of(self, environment: Environment, driver: Driver) -> Pool:
        """The slots of the host where it is, or of the driver as a whole."""
        if isinstance(driver, HasHosts) and (host := driver.host_of(environment.user)):
            return self.pools[_at_host(driver, host)]
        return self.pools[environment.driver]

    def restore(self, row: AgentRow) -> None:
        """Know again an agent of before the restart."""
        try:
            environment = msgspec.json.decode(row.environment, type=Environment)
            handle = None if row.handle is None else Handle.from_json(row.handle)
        except (msgspec.MsgspecError, ValueError, TypeError) as exc:
            # whoever wants it launches it anew, and is given the one that is there
            _log.error("an agent cannot be read in the store", agent=row.agent, why=str(exc))
            return
        if environment.driver not in self.drivers:
            _log.warning(
                "agent of a driver that is not configured", agent=row.agent, driver=environment.driver
            )
            return
        driver, host = self.drivers[environment.driver], ""
        if handle is not None and isinstance(driver, HasHosts):
            host = driver.remember(environment.user, handle)
        agent = self.at(environment)
        if host:  # its jobs have the slots of the host where it is, wherever its user is placed now
            agent.pool = self.pools[_at_host(agent.driver, host)]
        agent.install, agent.boot_id = row.install, row.boot_id
        if handle is not None:
            agent.handle = handle
            agent.state = AgentState.UNREACHABLE
            agent.trouble = "the supervisor was restarted; it will call again"
            if row.leaving:
                self.drain(agent)

    def admit(self, name: str, token: str) -> Agent | None:
        """The agent of that name if the token is its own."""
        fits = hmac.compare_digest(self._token(name).encode(), token.encode())
        return self._agents.get(name) if fits else None

    def _token(self, name: str) -> str:
        """The agent's secret; the same for every launch, so that one which is found again is let in."""
        return hmac.digest(self._secret, f"agent:{name}".encode(), "sha256").hex()

    # -- connections

    def connected(self, agent: Agent, line: Line, hello: protocol.Hello) -> None:
        """A new connection; an older one is replaced without a word about loss (SIR-37)."""
        old, agent.line = agent.line, line
        if old is not None:
            old.hang_up(4409, "replaced by a newer connection of the same agent")
        agent.host, agent.version, agent.trouble, agent.failures = hello.host, hello.version, "", 0
        agent.hello_made_at = hello.made_at
        agent.leases, agent.heard_at, agent.renewed_at = hello.leases, _now(), boot_secs()
        agent.marks = hello.marks
        agent.foreign.clear()
        if hello.pid != agent.launcher_pid:
            # what the one before refused, because it was ending, speaks not against this one
            agent.launcher_pid, agent.health = hello.pid, Health()
        agent.there.set()
        agent.gone.clear()
        agent.away_since = None
        agent.heard = None
        agent.happen(AgentEvent.CONNECTED)
        if (agent.install, agent.boot_id) != (hello.install, hello.boot_id):
            agent.install, agent.boot_id = hello.install, hello.boot_id
            self.save(agent)
        self._wake(agent)

    def disconnected(self, agent: Agent, line: Line) -> bool:
        """A connection ended; False when it was not the current one."""
        if agent.line is not line:
            return False
        agent.line = None
        agent.there.clear()
        agent.gone.set()
        agent.trouble = "waiting for it to call again"
        agent.happen(AgentEvent.DISCONNECTED)
        self.bring(agent)
        return True

    # -- launching, and looking after those that are away

    def bring(self, agent: Agent) -> None:
        """See to an agent that is not there; safe to repeat."""
        if not self.stopping and (agent.line is None or agent.state is AgentState.DRAINING):
            self._tasks.ensure(f"bring {agent.name}", lambda: self._bring(agent))

    async def _bring(self, agent: Agent) -> None:
        """Until the agent is there or nobody wants it: launch it if it is gone, else wait for its call."""
        while not self.stopping and (agent.line is None or agent.state is AgentState.DRAINING):
            self._note_absence(agent)
            if agent.state is AgentState.OFFLINE:
                if not agent.ops and not self._is_wanted(agent):
                    return
                if agent.blocked is not None:
                    await self._unblocked(agent)
                    continue
                if agent.failures:
                    pause = LAUNCH_PAUSES_SECS[min(agent.failures, len(LAUNCH_PAUSES_SECS)) - 1]
                    agent.next_try_at = time.time_ns() // 1000 + int(pause * 1e6)
                    await asyncio.sleep(pause)
                    agent.next_try_at = None
                await self._launch(agent)
            else:
                await self._look(agent)

    async def _unblocked(self, agent: Agent) -> None:
        """Wait until its driver may get on; nothing is tried meanwhile (F134), and its jobs say why."""
        self._wake(agent)
        if has_logins(agent.driver):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(BLOCKED_SECS):
                    await agent.driver.change(agent.environment)
        if agent.blocked is None:
            agent.failures = 0

    async def _launch(self, agent: Agent) -> None:
        agent.happen(AgentEvent.LAUNCH_ASKED)
        agent.leaving = False
        remote = agent.driver.remote
        spec = AgentSpec(
            agent=agent.name,
            environment=agent.environment,
            url=self._remote_url if remote else self._url,
            ca_pem=self._ca_pem if remote else None,
            token=self._token(agent.name),
            home=str(self._root / "agents" / agent.name),
            run_root=self.run_root(agent.environment.user),
            pass_env=self._pass_env,
        )
        self.save(agent)
        await self._commits.durable()  # intent before the act (C1)
        failpoints.hit("launch.after_intent")
        # the one before is gone, and with it the work that has slots where it was
        agent.pool = self._pool_of(agent.environment, agent.driver)
        try:
            async with asyncio.timeout(agent.driver.launch_secs):
                agent.handle = await agent.driver.launch(spec)
            failpoints.hit("launch.after_launch")
            self.save(agent)
            async with asyncio.timeout(agent.driver.launch_secs):
                await agent.there.wait()
        except (LaunchError, TimeoutError) as exc:
            agent.failures += 1
            agent.trouble_reason = exc.reason if isinstance(exc, LaunchError) else Reason.LAUNCH_FAILED
            agent.trouble = str(exc) or f"it did not call within {agent.driver.launch_secs:g} s of its launch"
            _log.warning("launch failed", agent=agent.name, failures=agent.failures, why=agent.trouble)
            await self._clear_half_started(agent)
            agent.happen(AgentEvent.LAUNCH_FAILED)
            if isinstance(exc, LaunchError) and not exc.retry and exc.reason.about.fault is Fault.USER:
                # It is not the place that fails, and whoever asks for something else need not wait for it.
                agent.failures = 0
                self._refused(agent, exc.reason, str(exc))
            else:
                agent.pool = self._pool_of(agent.environment, agent.driver)
            self._wake(agent)

    async def _clear_half_started(self, agent: Agent) -> None:
        if agent.handle is not None and agent.line is None and not agent.ops:
            try:
                await agent.driver.stop(agent.handle, grace_secs=1.0)
            except LaunchError as exc:
                _log.warning("half-started agent could not be stopped", agent=agent.name, why=str(exc))

    async def _look(self, agent: Agent) -> None:
        """Away or ending: ask its driver, then wait a little for it to call, or to go."""
        fate = await self._fate(agent)
        line = agent.line
        if fate is Fate.GONE and line is None:
            agent.happen(AgentEvent.GONE)
            self._wake(agent)
            return
        # whatever its driver said: who loops here waits each time
        change = agent.there if line is None else agent.gone
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LOOK_SECS):
                await change.wait()
        if line is not None and line is agent.line:
            self._press(agent, line, fate)

    async def _fate(self, agent: Agent) -> Fate:
        if agent.handle is None:
            return Fate.GONE
        try:
            async with asyncio.timeout(agent.driver.launch_secs):
                return await agent.driver.look(agent.handle)
        except TimeoutError:
            return Fate.UNKNOWN

    def _note_absence(self, agent: Agent) -> None:
        """Whether it is being looked for or cannot be launched: after a while its jobs say so."""
        now = _now()
        if agent.away_since is None:
            agent.away_since = now
        if agent.line is None and agent.ops and now - agent.away_since > AWAY_SECS:
            self._out_of_reach(agent)

    def _press(self, agent: Agent, line: Line, fate: Fate) -> None:
        """It was told to end, somebody waits for its successor, and its connection is still open."""
        if fate is Fate.GONE:
            line.hang_up(4410, "its launcher is gone")
        elif agent.draining_since is not None and _now() - agent.draining_since > STOP_SECS:
            _log.warning("agent was told to end and did not", agent=agent.name)
            agent.happen(AgentEvent.STAYED)
            self._wake(agent)

    def save(self, agent: Agent) -> None:
        """Write the agent's row with this turn's unit."""
        self._commits.unit.agents[agent.name] = AgentRow(
            agent=agent.name,
            environment=msgspec.json.encode(agent.environment),
            handle=agent.handle.to_json() if agent.handle else None,
            install=agent.install,
            boot_id=agent.boot_id,
            leaving=agent.leaving,
        )

    def declare_gone(self, agent: Agent) -> None:
        """An operator's word that it will never call again: the next one is launched anew."""
        agent.happen(AgentEvent.GONE)
        agent.handle = None
        agent.trouble = "declared gone by an operator"
        self.save(agent)
        self._wake(agent)

    # -- ending

    def sweep(self, idle_secs: float) -> None:
        """Let agents go that were idle for so long; marked first, so that no new op can slip in (SIR-L3)."""
        now = _now()
        for agent in self._agents.values():
            if agent.ops or agent.readers or not agent.is_online:
                agent.idle_since = None
            elif agent.idle_since is None:
                agent.idle_since = now
            elif now - agent.idle_since >= idle_secs:
                agent.idle_since = None
                self._drain(agent)

    def drain(self, agent: Agent) -> None:
        """Give it no more work, and end it when it has finished what it has; safe to repeat.

        Work that waits for it gets a fresh one. Durable with this turn's unit.
        """
        if agent.state is not AgentState.OFFLINE:
            if not agent.leaving:
                agent.leaving = True
                self.save(agent)
            self._let_go(agent)
            self._tasks.ensure(f"drain {agent.name}", lambda: self._drain_in_time(agent))

    async def _drain_in_time(self, agent: Agent) -> None:
        while agent.leaving and not self.stopping:
            self._let_go(agent)
            await asyncio.sleep(LOOK_SECS)

    def _let_go(self, agent: Agent) -> None:
        # ops that were not sent yet keep their places and wait for the next agent
        busy = agent.readers or any(op.sent for op in agent.ops.values())
        if agent.is_online and not busy:
            self._drain(agent)
            self.bring(agent)

    async def stop(self, agent: Agent) -> None:
        """End it now, its jobs too; returns when it is gone. Work that waits for it gets a fresh one."""
        agent.leaving = agent.state is not AgentState.OFFLINE
        await self._stop(agent)

    def ending(self, agent: Agent) -> None:
        """It says that it is ending: it gets nothing more, and a fresh one follows."""
        if agent.state is AgentState.ONLINE:
            agent.happen(AgentEvent.DRAIN_ASKED)
            agent.draining_since = _now()
            self.bring(agent)

    def _drain(self, agent: Agent) -> None:
        agent.happen(AgentEvent.DRAIN_ASKED)
        agent.draining_since = _now()
        if agent.line is not None:
            agent.line.say(protocol.Stop())

    async def stop_all(self) -> dict[str, str]:
        """End every agent, its jobs too. By name: "" for one that has ended, else why it could not be."""
        agents = [agent for agent in self._agents.values() if agent.handle is not None]
        self.stopping = True
        said = await asyncio.gather(*(self._stop(agent) for agent in agents))
        return {agent.name: why for agent, why in zip(agents, said, strict=True)}

    async def _stop(self, agent: Agent) -> str:
        agent.happen(AgentEvent.DRAIN_ASKED)
        line, handle = agent.line, agent.handle
        if handle is None:
            return ""
        if line is not None:
            # gently first: its jobs end, and say so
            line.say(protocol.Stop(kill_jobs=True))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STOP_SECS):
                    await agent.gone.wait()
        try:
            await agent.driver.stop(handle, grace_secs=STOP_SECS)
        except LaunchError as exc:
            if line is not None and agent.line is None:
                # its driver is out of reach, its own connection was not: it was told so, and has hung up
                _log.info("agent was told to end and hung up", agent=agent.name, driver=str(exc))
                return ""
            _log.warning("agent could not be stopped", agent=agent.name, why=str(exc))
            return str(exc)
        return ""


def _at_host(driver: Driver, host: str) -> str:
    return f"{driver.name}/{host}"


def _now() -> float:
    return asyncio.get_running_loop().time()
