"""The supervisor's side: its process, started again whenever it ends, and a driver for simulated hosts."""

import asyncio
import random
from pathlib import PurePosixPath
from typing import Any

from sirepo_jobs.agent_line import AgentLine
from sirepo_jobs.agent_pool import AgentPool
from sirepo_jobs.agent_talk import AgentTalk
from sirepo_jobs.driver import AgentSpec, Fate, Handle
from sirepo_jobs.errors import LaunchError
from sirepo_jobs.intake import Intake
from sirepo_jobs.leases import Leases
from sirepo_jobs.op import Need
from sirepo_jobs.resources import Resources
from sirepo_jobs.silence import Silence
from sirepo_jobs.supervisor import Supervisor
from tests.sim.agents import start_launcher
from tests.sim.host import Host, Proc
from tests.sim.network import Wire
from tests.sim.store import Disk, SimStore
from tests.sim.world import NodeLoop, World

SECRET = b"secret"
HEARTBEAT_SECS = 15.0
#: Seconds before something starts the supervisor again.
RESTART_SECS = 1.0


class SimDriver:
    """Launches agents on the hosts of the world; its answers may be late, lost, or that it does not know."""

    name = "local"
    launch_secs = 10.0
    remote = False
    jobs_outlive_agent = True

    def __init__(self, house: "House") -> None:
        self._house = house
        self.capacity = Resources(cpus=house.cpus, memory=1 << 34, disk=1 << 40)

    def _wait(self) -> Any:
        house = self._house
        return asyncio.sleep(0.005 + 0.05 * house.dice.random())

    async def launch(self, spec: AgentSpec) -> Handle:
        house, host = self._house, self._house.host_of(spec.agent)
        trouble = house.driver_trouble
        await self._wait()
        if trouble == "fail" or not host.is_up:
            raise LaunchError("no route to the host", retry=True)
        if trouble == "hang":
            await asyncio.sleep(1000)
        proc = house.launcher_of(spec.agent)
        if proc is None:
            house.world.note("launched", spec.agent, host.name)
            proc = start_launcher(host, spec)
            if proc is None:
                raise LaunchError("the launcher did not start", retry=True)
            house.launchers[spec.agent] = proc
        else:
            house.world.note("found", spec.agent, host.name)
        if trouble == "lost":
            await asyncio.sleep(1000)
        await self._wait()
        data: dict[str, str | int] = {"pid": proc.pid, "start": proc.start, "boot_id": host.boot_id}
        return Handle(agent=spec.agent, driver=self.name, version=1, data=data)

    async def look(self, handle: Handle) -> Fate:
        house, host = self._house, self._house.host_of(handle.agent)
        await self._wait()
        if not host.is_up or house.driver_trouble == "unknown" or host.name in house.network.apart:
            return Fate.UNKNOWN
        if handle.data["boot_id"] != host.boot_id:
            return Fate.GONE
        proc = host.procs.get(int(handle.data["pid"]))
        return (
            Fate.ALIVE
            if proc is not None and proc.start == handle.data["start"] and proc.alive
            else Fate.GONE
        )

    async def stop(self, handle: Handle, *, grace_secs: float) -> None:
        house, host = self._house, self._house.host_of(handle.agent)
        proc = house.launcher_of(handle.agent)
        if proc is not None and host.is_up:
            host.kill(proc, 15)
            await asyncio.sleep(grace_secs)
            if proc.alive:
                raise LaunchError("the launcher does not end", retry=True)


class Node:
    """One run of the supervisor."""

    def __init__(self, house: "House") -> None:
        self.house = house
        self.proc = Proc(house.host, "supervisor", None)
        self.loop = self.proc.loop = NodeLoop(house.world, self.proc)
        self.is_serving = False
        self.supervisor: Supervisor
        self.talk: AgentTalk
        self.intake: Intake
        self.store: SimStore
        self.ended: asyncio.Future[str] | None = None
        #: Calls of clients that wait for an answer: told when the process dies.
        self.calls: dict[Any, None] = {}
        self.loop.call_soon(lambda: self.loop.create_task(self._main()))

    async def _main(self) -> None:
        try:
            await self._serve()
        except Exception as exc:  # noqa: BLE001 - the edge of the process
            if type(exc).__name__ != "Unavailable":
                self.house.world.note("crashed", "supervisor", "serve failed", f"{type(exc).__name__}: {exc}")
                self.proc.last_words = exc
        self.house.over(self)

    async def _serve(self) -> None:
        """As `app._serve`."""
        house, loop = self.house, self.loop
        self.ended = loop.create_future()
        self.store = SimStore(house.disk)
        self.store.start(loop, lambda error: self.stop(f"store: {error}"))
        supervisor = self.supervisor = Supervisor(
            self.store,  # type: ignore[arg-type]
            self._make_agents,
            job_cache=house.job_cache,
            queue_window=house.queue_window,
        )
        self.talk = AgentTalk(supervisor, heartbeat_secs=HEARTBEAT_SECS)
        self.intake = Intake(supervisor)
        await supervisor.recover()
        active = sorted((j.jid, j.record.state.value, j.record.version) for j in supervisor.jobs.active())
        house.world.note("recovered", self.store.epoch, active)
        self.is_serving = True
        supervisor.tasks.ensure("sweep", self._sweep)
        supervisor.tasks.ensure("leases", Leases(supervisor, self.talk).watch)
        silence = Silence(supervisor, self.talk, patience_secs=house.silence_secs)
        supervisor.tasks.ensure("silence", silence.watch)
        try:
            why = await self.ended
            house.world.note("stopping", self.store.epoch, why)
        finally:
            self.is_serving = False
            await supervisor.tasks.close()
            supervisor.commits.close()
            await self.store.close()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(5.0)
            self.supervisor.agents.sweep(self.house.idle_secs)

    def _make_agents(self, supervisor: Supervisor) -> AgentPool:
        house = self.house
        return AgentPool(
            root=PurePosixPath("/root"),  # type: ignore[arg-type]
            url="unix:/root/supervisor.sock",
            drivers={"local": house.driver},
            commits=supervisor.commits,
            tasks=supervisor.tasks,
            secret=SECRET,
            wake=supervisor.wake_agent,
            is_wanted=lambda agent: supervisor.ops.waiting_for((Need.AGENT, agent.key)) > 0,
            out_of_reach=lambda agent: self.talk.out_of_reach(agent),
            refused=supervisor.agent_refused,
        )

    def stop(self, why: str) -> None:
        """SIGTERM, or a store that failed."""
        if self.ended is not None and not self.ended.done():
            self.ended.set_result(why)


class House:
    """The head host, what runs there, and what it knows of the others."""

    def __init__(self, world: World, disk: Disk, network: Any, agent_hosts: list[Host]) -> None:
        self.world = world
        self.disk = disk
        self.network = network
        self.dice = random.Random(f"{world.seed}/house")
        self.host = Host(world, "head")
        self.agent_hosts = agent_hosts
        self.cpus = 2
        self.job_cache, self.queue_window = 2000, 10_000
        self.idle_secs = 20.0
        self.silence_secs = 120.0
        self.driver_trouble = ""
        self.driver = SimDriver(self)
        self.launchers: dict[str, Proc] = {}
        self.node: Node | None = None
        #: Nobody starts it again.
        self.stays_down = False
        #: When clients stop asking.
        self.deadline = 0.0
        self.healed_at: float | None = None
        network.house = self

    # -- agents

    def host_of(self, agent: str) -> Host:
        hosts = self.agent_hosts
        return hosts[sum(agent.encode()) % len(hosts)]

    def launcher_of(self, agent: str) -> Proc | None:
        """The launcher that has the lock of this agent's home."""
        proc = self.launchers.get(agent)
        return proc if proc is not None and proc.alive else None

    # -- the supervisor

    def start(self) -> None:
        """Start it unless it runs."""
        if self.node is None and not self.stays_down:
            self.world.note("supervisor_started")
            self.node = Node(self)

    @property
    def serving(self) -> Node | None:
        """The supervisor, if it answers."""
        return self.node if self.node is not None and self.node.is_serving else None

    def over(self, node: Node) -> None:
        """Its process ends by itself."""
        self._gone(node)

    def kill(self, restart_secs: float) -> None:
        """kill -9."""
        if self.node is not None:
            self.world.note("supervisor_killed")
            self._gone(self.node, restart_secs)

    def end(self, node: Node) -> None:
        """kill -9 for this one."""
        if node.proc.alive:
            self._gone(node)

    def _gone(self, node: Node, restart_secs: float = RESTART_SECS) -> None:
        if hasattr(node, "store"):
            node.store.is_gone = True
        self.host.end(node.proc, 9)
        for wire in [wire for wire in self.network.wires if wire.node is node]:
            wire.supervisor_open = False
            if not wire.is_silent:
                wire._end_after("down")
            wire._forget()
        for call in list(node.calls):
            call.broke()
        node.calls.clear()
        self.world.graveyard.append(node)
        if self.node is node:
            self.node = None
            self.world.after(restart_secs, self.start)

    def take_over(self) -> None:
        """Another supervisor takes the store while this one stands still and does not know it."""
        old = self.node
        if old is not None and old.proc.state == "T":
            self.world.note("supervisor_replaced")
            self.node = Node(self)

    # -- what arrives

    def admit(self, wire: Wire, name: str, token: str) -> bool:
        """A connection is asked for; False when nobody listens."""
        node = self.serving
        if node is None:
            return False
        wire.node = node
        agent = node.supervisor.agents.admit(name, token)
        if agent is not None:
            wire.line = AgentLine(node.supervisor, node.talk, agent, wire)
        return True

    def replayed(self, wire: Wire, data: str) -> None:
        """A frame of the past arrives once more: nothing may come of it (I6)."""
        node = wire.node

        def receive() -> None:
            before = self._state(node)
            assert wire.line is not None
            wire.line.receive(data)
            self.world.note("replayed", wire.agent, self._state(node) == before)

        node.loop.call_soon(receive)

    def _state(self, node: Node) -> Any:
        return {job.jid: job.record for job in node.supervisor.jobs._jobs.values()}
