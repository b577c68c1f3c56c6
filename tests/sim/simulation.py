"""One world from its scenario to its history: set up, let go wrong, waited for until all is over."""

import random
from typing import Any

from sirepo_jobs.job import FINAL, State
from tests.sim.clients import Clients
from tests.sim.host import Host, Proc
from tests.sim.house import House
from tests.sim.network import PING_SECS, PONG_SECS, Network
from tests.sim.program import Decoy, Program
from tests.sim.scenario import Fault, Scenario
from tests.sim.store import Disk
from tests.sim.world import Livelock, World

#: After everything is mended, all jobs are over within so many seconds (and what they still have to run).
SETTLE_SECS = 240.0
#: How often it is looked whether that is so.
_LOOK_SECS = 5.0


class TheWorld(World):
    """A world with machines in it."""

    def __init__(self, scenario: Scenario) -> None:
        super().__init__(scenario.seed)
        self.scenario = scenario
        self.next_fd = 10
        self.open_files: dict[int, list[Any]] = {}
        self.dice = random.Random(f"{scenario.seed}/faults")
        self.network = Network(self)
        self.network.repeats = scenario.repeats
        self.disk = Disk(random.Random(f"{scenario.seed}/disk"))
        self.disk.on_commit = self._committed
        self.hosts = [Host(self, f"node{number}") for number in range(scenario.hosts)]
        for host in self.hosts:
            host.on_death = self._break_wires
        self.house = House(self, self.disk, self.network, self.hosts)
        self.house.cpus = scenario.cpus
        self.house.driver.capacity = self.house.driver.capacity.__class__(
            cpus=scenario.cpus, memory=1 << 34, disk=1 << 40
        )
        self.house.job_cache, self.house.queue_window = scenario.job_cache, scenario.queue_window
        self.house.idle_secs = scenario.idle_secs
        self.house.silence_secs = scenario.silence_secs
        span = max([order.at for order in scenario.orders] + [fault.at for fault in scenario.faults] + [1.0])
        healed = scenario.healed_at
        self.end_at = (healed if healed is not None else span + 5.0) + SETTLE_SECS
        self.house.deadline = self.end_at
        self.house.healed_at = healed
        self.clients = Clients(self.house, scenario.orders, scenario.wishes, subscribers=scenario.subscribers)
        for number in range(scenario.decoys):
            for host in self.hosts:
                self.at(0.3 * number, self._decoy, host, number)
        for fault in scenario.faults:
            self.at(fault.at, self._strike, fault)
        if healed is not None:
            self.at(healed, self._heal)

    def log(self, proc: Proc, text: Any) -> None:
        """What a process says on its standard error."""

    def _committed(self, epoch: int, unit: Any) -> None:
        # nothing may live of an attempt that is said to be over (I17)
        ended = {(row.jid, row.attempt): row.proof for row in unit.attempts}
        self.note(
            "commit",
            epoch,
            self.disk.epoch,
            tuple(unit.new),
            tuple((row.seq, row.jid, row.version, row.kind, row.state) for row in unit.events),
            tuple(unit.attempts),
            tuple(unit.jobs.values()),
        )
        if ended:
            for host in self.hosts:
                for proc in host.procs.values():
                    program = proc.program
                    if proc.alive and program is not None and not isinstance(program, Decoy):
                        key = (program.jid, program.attempt)
                        if key in ended:
                            self.note("alive_after_end", *key, proc.kind, ended[key])

    def _decoy(self, host: Host, number: int) -> None:
        if host.is_up:
            proc = Proc(host, "decoy", None)
            proc.program = Decoy(host, proc)
            if number % 2:
                # short-lived: its pid is somebody else's soon
                self.after(1.0, host.end, proc, 0)

    # -- faults

    def _strike(self, fault: Fault) -> None:
        self.note("fault", fault.kind, round(fault.secs, 3), fault.which)
        getattr(self, f"_fault_{fault.kind}")(fault)

    def _host(self, fault: Fault) -> Host:
        return self.hosts[fault.which % len(self.hosts)]

    def _procs(self, kind: str) -> list[Proc]:
        return [p for host in self.hosts for p in host.procs.values() if p.kind == kind and p.alive]

    def _pick(self, kind: str, fault: Fault) -> Proc | None:
        procs = self._procs(kind)
        return procs[fault.which % len(procs)] if procs else None

    def _mend(self, fault: Fault, act: Any, *args: Any) -> None:
        self.after(fault.secs, act, *args)

    def _fault_supervisor_kill(self, fault: Fault) -> None:
        self.house.kill(min(fault.secs, 10.0))

    def _fault_supervisor_term(self, fault: Fault) -> None:
        node = self.house.serving
        if node is not None:
            node.loop.call_soon(node.stop, "SIGTERM")

    def _fault_supervisor_freeze(self, fault: Fault) -> None:
        node = self.house.node
        if node is not None:
            self._freeze(node.proc, fault.secs)
            for wire in [wire for wire in self.network.wires if wire.node is node]:
                self.after(
                    PONG_SECS + self.dice.random() * PING_SECS, self._unanswered, node.proc, wire, "agent"
                )

    def _unanswered(self, proc: Proc, wire: Any, end: str) -> None:
        if proc.state == "T" and not wire.is_silent:
            if end == "agent":
                wire.end_at_agent(None)
                wire._end_after("up")
            else:
                wire.end_at_supervisor()
                wire._end_after("down")

    def _freeze(self, proc: Proc, secs: float) -> None:
        proc.host.stop(proc)
        self.after(secs, proc.host.go_on, proc)

    def _fault_supervisor_replaced(self, fault: Fault) -> None:
        """Two of them for a while. Whoever has started the second ends the first, sooner or later."""
        old = self.house.node
        self._fault_supervisor_freeze(fault)
        if old is not None:
            self.after(fault.secs + 10.0, self.house.end, old)
        self.house.take_over()

    def _fault_disk_full(self, fault: Fault) -> None:
        self.disk.is_full = True
        self._mend(fault, setattr, self.disk, "is_full", False)

    def _fault_disk_breaks(self, fault: Fault) -> None:
        self.disk.breaks = True

    def _fault_disk_deaf(self, fault: Fault) -> None:
        self.disk.is_deaf = True
        self._mend(fault, setattr, self.disk, "is_deaf", False)

    def _fault_disk_slow(self, fault: Fault) -> None:
        self.disk.commit_secs = (0.2, 3.0)
        self._mend(fault, setattr, self.disk, "commit_secs", (0.0005, 0.005))

    def _fault_cut(self, fault: Fault) -> None:
        if self.network.wires:
            self.network.wires[fault.which % len(self.network.wires)].cut()

    def _fault_partition(self, fault: Fault) -> None:
        host = self._host(fault)
        self.network.part(host.name)
        self._mend(fault, self.network.join, host.name)

    def _fault_silence(self, fault: Fault) -> None:
        if self.network.wires:
            wire = self.network.wires[fault.which % len(self.network.wires)]
            wire.silence()
            self._mend(fault, wire.speak)

    def _fault_replay(self, fault: Fault) -> None:
        for agent in sorted(self.house.launchers):
            self.network.replay(agent, 1 + fault.which)

    def _fault_agent_kill(self, fault: Fault) -> None:
        if proc := self._pick("agent", fault):
            proc.host.kill(proc, 9)

    def _break_wires(self, proc: Proc) -> None:
        """The kernel closes what a dead process had open."""
        if proc.kind != "agent" or not proc.host.is_up:
            return
        for wire in self.network.of_host(proc.host.name):
            if wire.client is not None and wire.agent_open and wire.proc is proc:
                wire.agent_open = False
                wire.client = None
                if not wire.is_silent:
                    wire._end_after("up")

    def _fault_agent_freeze(self, fault: Fault) -> None:
        if proc := self._pick("agent", fault):
            self._freeze(proc, fault.secs)
            for wire in [w for w in self.network.wires if w.proc is proc]:
                self.after(
                    PONG_SECS + self.dice.random() * PING_SECS, self._unanswered, proc, wire, "supervisor"
                )

    def _fault_spawner_kill(self, fault: Fault) -> None:
        if proc := self._pick("spawner", fault):
            proc.host.kill(proc, 9)

    def _fault_spawner_freeze(self, fault: Fault) -> None:
        if proc := self._pick("spawner", fault):
            self._freeze(proc, fault.secs)

    def _fault_launcher_kill(self, fault: Fault) -> None:
        if proc := self._pick("launcher", fault):
            proc.host.kill(proc, 9)

    def _fault_launcher_term(self, fault: Fault) -> None:
        if proc := self._pick("launcher", fault):
            proc.host.kill(proc, 15)

    def _fault_launcher_freeze(self, fault: Fault) -> None:
        if proc := self._pick("launcher", fault):
            self._freeze(proc, fault.secs)

    def _fault_host_power(self, fault: Fault) -> None:
        host = self._host(fault)
        if not host.is_up:
            return
        for wire in self.network.of_host(host.name):
            wire.agent_open = False
            wire.client = None
            wire.silence()
            wire.is_dead = True
        host.lose_power()
        self._mend(fault, host.boot)

    def _fault_host_full(self, fault: Fault) -> None:
        host = self._host(fault)
        host.files.full = True
        self._mend(fault, setattr, host.files, "full", False)

    def _fault_host_io(self, fault: Fault) -> None:
        host = self._host(fault)
        host.files.broken = True
        self._mend(fault, setattr, host.files, "broken", False)

    def _fault_no_pids(self, fault: Fault) -> None:
        host = self._host(fault)
        host.has_no_pids = True
        self._mend(fault, setattr, host, "has_no_pids", False)

    def _fault_clock(self, fault: Fault) -> None:
        host = [self.house.host, *self.hosts][fault.which % (1 + len(self.hosts))]
        host.clock_offset += self.dice.choice((-86400.0, -1.0, 1.0, 86400.0))

    def _fault_home_wiped(self, fault: Fault) -> None:
        if proc := self._pick("launcher", fault):
            proc.host.kill(proc, 9)
            proc.host.files.wipe(proc.spec.home)  # type: ignore[attr-defined]

    def _fault_driver(self, fault: Fault) -> None:
        self.house.driver_trouble = ("fail", "hang", "lost", "unknown")[fault.which % 4]
        self._mend(fault, setattr, self.house, "driver_trouble", "")

    def _fault_job_kill(self, fault: Fault) -> None:
        if proc := self._pick("job", fault):
            program: Program = proc.program
            self.note("job_killed", program.jid, program.attempt)
            program._timer.cancel()
            program._end(9)

    def _heal(self) -> None:
        """Everything that is broken is mended; what is mended later than this is mended now."""
        self.note("healed")
        self.disk.is_full = self.disk.breaks = self.disk.is_deaf = False
        self.disk.commit_secs = (0.0005, 0.005)
        self.house.driver_trouble = ""
        for host in self.hosts:
            if not host.is_up:
                host.boot()
            host.files.full = host.files.broken = host.has_no_pids = False
            self.network.join(host.name)
            for proc in list(host.procs.values()):
                if proc.program is None:
                    host.go_on(proc)
        for proc in list(self.house.host.procs.values()):
            self.house.host.go_on(proc)
        for wire in list(self.network.wires):
            wire.speak()

    # -- the whole

    def play(self) -> None:
        """From the beginning to the end."""
        self.house.start()
        try:
            settled_at = self.scenario.healed_at
            while self.now < self.end_at:
                self.run(min(self.now + _LOOK_SECS, self.end_at))
                if settled_at is not None and self.now > settled_at and self._is_quiet():
                    break
                if settled_at is None and self.now > self.end_at - SETTLE_SECS:
                    break
            if settled_at is not None:
                self._look_around()
        except Livelock as exc:
            self.note("livelock", str(exc))
        self.note("final", tuple((job.record, job.fixed.priority) for job in self.disk.jobs.values()))

    def _is_quiet(self) -> bool:
        if self.clients.open or self.house.serving is None:
            return False
        states = [job.record.state for job in self.disk.jobs.values()]
        if not all(state in FINAL or state is State.HELD for state in states):
            return False
        return not self._procs("job") and not self._procs("leftover")

    def _look_around(self) -> None:
        """At rest: what is held that should not be (I7, I22)."""
        self.run(self.now + 10.0)
        node = self.house.serving
        if node is None:
            self.note("not_serving")
            return
        supervisor = node.supervisor
        try:
            supervisor.check()
        except AssertionError as exc:
            self.note("leak", "slots", str(exc))
        lost = [job for job in self.disk.jobs.values() if job.record.state is State.LOST]
        held = [job for job in self.disk.jobs.values() if job.record.state is State.HELD]
        for pool in supervisor.agents.pools.values():
            if pool.free != pool.size and not lost:
                self.note("leak", "pool", repr(pool.free))
        for agent in supervisor.agents:
            if agent.ops and not lost:
                self.note("leak", "ops", agent.name, len(agent.ops))
            if agent.standbys and not lost:
                self.note("leak", "standbys", agent.name, agent.standbys)
            if agent.readers:
                self.note("leak", "readers", agent.name, agent.readers)
        if len(supervisor.readings):
            self.note("leak", "readings", len(supervisor.readings))
        if supervisor.ops._queues and not lost:
            self.note("leak", "queues", repr(list(supervisor.ops._queues)))
        for proc in self._procs("launcher"):
            if proc.actor is None or proc.actor.code is None:
                continue
            desk = proc.actor.code._desk
            if len(desk._roster) and not desk.unsaid and not desk.live:
                self.note("leak", "roster", proc.spec.agent, len(desk._roster))  # type: ignore[attr-defined]
            if (desk.live and not lost) or (desk.unsaid and proc.actor.code._upstream.open):
                self.note("leak", "desk", proc.spec.agent, desk.live, desk.unsaid)  # type: ignore[attr-defined]
        for kind in ("job", "leftover"):
            for proc in self._procs(kind):
                if any(job.record.jid == proc.program.jid for job in lost):
                    continue  # nobody knows of it; its job does not say that it has ended
                self.note("leak", "process", kind, proc.program.jid, proc.program.attempt)
        if self.clients.open and not lost and not held:
            self.note("leak", "requests", self.clients.open)
