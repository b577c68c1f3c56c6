"""The agent's side: launchers, spawners and network sides, all of them the real code, on simulated hosts."""

from typing import Any

from sirepo_jobs.agents import agent as agent_module
from sirepo_jobs.agents import crew as crew_module
from sirepo_jobs.agents import launcher as launcher_module
from sirepo_jobs.agents import spawner as spawner_module
from sirepo_jobs.agents import upstream as upstream_module
from sirepo_jobs.agents.crew import Crew, Place
from sirepo_jobs.agents.lane import Lane
from sirepo_jobs.agents.slate import Slate
from sirepo_jobs.agents.upstream import Upstream
from sirepo_jobs.agents.words import relay_records
from sirepo_jobs.driver import AgentSpec
from tests.sim.host import Host, Proc
from tests.sim.syscalls import pair
from tests.sim.world import NodeLoop


class Actor:
    """Gives turns to code that waits in `poll`."""

    def __init__(self, proc: Proc) -> None:
        self.proc = proc
        self._world = proc.world
        self.code: Any = None
        self._next: Any = None
        self._timer: Any = None
        proc.actor = self

    def wake(self) -> None:
        """Somebody has said something."""
        if self._next is None and self.code is not None and self.proc.state == "R":
            self._next = self._world.after(0.00002 + 0.0002 * self.proc.host.dice.random(), self._turn)

    def _turn(self) -> None:
        self._next = None
        if self.proc.state != "R":
            return
        world, code = self._world, self.code
        world.turns += 1
        world.current = self.proc
        try:
            code.turn(code._poll.ready())
            if not self.proc.alive:
                return  # it killed itself, or somebody did meanwhile
            if code.finished:
                self._leave()
                return
            wait_ms = code.timeout_ms()
        except OSError as exc:
            world.note("fell", self.proc.kind, self.proc.host.name, f"{type(exc).__name__}: {exc}")
            if not self.proc.host.files.broken:
                world.note("crashed", self.proc.kind, "a turn failed", f"{type(exc).__name__}: {exc}")
            self.proc.last_words = exc
            self.proc.host.end(self.proc, 1 << 8)
            return
        except Exception as exc:  # noqa: BLE001 - the edge of a process
            world.note("crashed", self.proc.kind, "a turn failed", f"{type(exc).__name__}: {exc}")
            self.proc.last_words = exc
            self.proc.host.end(self.proc, 1 << 8)
            return
        finally:
            world.current = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if wait_ms is not None:
            self._timer = world.after(wait_ms / 1000, self._due)

    def _due(self) -> None:
        self._timer = None
        self.wake()

    def _leave(self) -> None:
        """Its loop is over: as `run` does at its end."""
        if self.proc.kind == "launcher":
            launcher = self.code
            launcher._upstream.hang_up()
            launcher._crew.hang_up()
            launcher._desk.sync()
            self.proc.host.files.files.pop(f"{launcher._spec.home}/launcher.json", None)
            self._world.note("left_in_peace", launcher._spec.agent)
        self._world.current = None
        self.proc.host.end(self.proc, 0)

    def die(self) -> None:
        for handle in (self._next, self._timer):
            if handle is not None:
                handle.cancel()
        self._next = self._timer = None
        self._world.graveyard.append(self.code)


class SimCrew(Crew):
    """Forks are processes of the host."""

    def _start(self, place: Place) -> None:
        parent: Proc = _world.current
        ours, theirs = pair(_world, parent)
        place.slate = Slate()
        child = Proc(parent.host, "spawner", parent)
        theirs.give_to(child)
        child.is_reaper = True
        child.handlers = dict.fromkeys((2, 1, 15), lambda *_: None)
        place.pid = child.pid
        place.lane = Lane(ours)  # type: ignore[arg-type]
        place.back_off.started()
        self._poll.register(ours.fileno(), 1)
        actor = Actor(child)
        _world.current = child
        code = spawner_module.Spawner(_spec_of(parent), Lane(theirs), place.slate)  # type: ignore[arg-type]
        code.listen()
        _world.current = parent
        actor.code = code
        actor.wake()


class SimUpstream(Upstream):
    """The network side is a process of the host."""

    def keep(self, now: float) -> int:
        if self._lane is not None or self.back_off.due > now:
            return 0
        parent: Proc = _world.current
        ours, theirs = pair(_world, parent)
        child = Proc(parent.host, "agent", parent)
        theirs.give_to(child)
        child.dies_with_parent = True
        self.pid = child.pid
        self._lane = Lane(ours)  # type: ignore[arg-type]
        self.back_off.started()
        self._poll.register(ours.fileno(), 1)
        loop = child.loop = NodeLoop(_world, child)
        loop.call_soon(lambda: loop.create_task(_network_side(child, _spec_of(parent), Lane(theirs))))  # type: ignore[arg-type]
        return child.pid


def _hand_out(session: int, epoch: int, records: list[bytes]) -> bytes:
    """As `relay_records` does; from here on the supervisor may know of them."""
    _world.note("handed_out", _world.current.actor.code.install, tuple(records))
    return relay_records(session, epoch, records)


def _kept(launcher: launcher_module.Launcher) -> tuple[int, tuple[bytes, ...]]:
    """How far its records are acknowledged, and those that are not."""
    outbox = launcher._desk._outbox
    return outbox.acked, tuple(kept.raw for kept in outbox.kept())


class SimAgent(agent_module.Agent):
    """Its way out leads to the simulated network."""

    async def _connect(self) -> Any:
        return await _world.network.connect(_world.current.host, self._spec.agent, self._spec.token)


async def _network_side(proc: Proc, spec: AgentSpec, lane: Lane) -> None:
    status = 0
    try:
        await SimAgent(spec, lane).run()
    except Exception as exc:  # noqa: BLE001 - the edge of a process
        proc.world.note("crashed", "agent", "run failed", f"{type(exc).__name__}: {exc}")
        proc.last_words = exc
        status = 1
    proc.host.end(proc, status << 8)


def _spec_of(launcher: Proc) -> AgentSpec:
    return launcher.spec  # type: ignore[attr-defined,no-any-return]


def start_launcher(host: Host, spec: AgentSpec) -> Proc | None:
    """As `start.py` does once it has the lock; None when it fell over at once."""
    proc = Proc(host, "launcher", None)
    proc.spec = spec  # type: ignore[attr-defined]
    proc.is_reaper = True
    before, _world.current = _world.current, proc
    try:
        host.files.makedirs(spec.home, host.world.now)
        host.files.makedirs(spec.run_root, host.world.now)
        lock = _world.os.open(f"{spec.home}/lock", 0o102)
        actor = Actor(proc)
        code = launcher_module.Launcher(spec, lambda *_: None, lock)
        host.world.note("remembers", code.install, *_kept(code))
        code.listen_to_signals()
        _world.os.close(_world.os.open(f"{spec.home}/launcher.json", 0o102))
    except OSError as exc:
        host.world.note("fell", "launcher", host.name, f"{type(exc).__name__}: {exc}")
        host.end(proc, 1 << 8)
        return None
    except Exception as exc:  # noqa: BLE001 - the edge of a process
        host.world.note("crashed", "launcher", "its start failed", f"{type(exc).__name__}: {exc}")
        proc.last_words = exc
        host.end(proc, 1 << 8)
        return None
    finally:
        _world.current = before
    actor.code = code
    actor.wake()
    return proc


#: The world that runs now; set by `patches.inside`.
_world: Any = None


def enter(world: Any) -> None:
    """Everything in this room speaks of this world from now on."""
    global _world
    _world = world


REPLACED = (
    (launcher_module, "Crew", SimCrew),
    (launcher_module, "Upstream", SimUpstream),
    (upstream_module, "relay_records", _hand_out),
)
_ = crew_module
