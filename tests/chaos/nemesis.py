"""What goes wrong, and when: drawn from the seed beforehand, then done."""

import contextlib
import os
import random
import signal
import threading
from collections import Counter
from typing import NamedTuple

from sirepo_jobs.failpoints import POINTS
from tests.chaos.history import History
from tests.chaos.world import World


class Blow(NamedTuple):
    """One thing that goes wrong, `at` seconds after the beginning, for `secs`."""

    at: float
    kind: str
    target: str
    secs: float = 0.0


#: Kind, targets, weight, how long.
_KINDS: tuple[tuple[str, tuple[str, ...], float, float], ...] = (
    ("kill", ("supervisor",), 3, 0),
    ("kill", ("frontend",), 2, 0),
    ("kill", ("agent",), 4, 0),
    ("kill", ("launcher",), 2, 0),
    ("kill", ("spawner",), 4, 0),
    ("point", tuple(POINTS), 6, 4),
    ("dally", tuple(POINTS), 2, 4),
    ("term", ("supervisor",), 1, 0),
    ("term", ("frontend",), 0.5, 0),
    ("stop", ("supervisor", "agent", "launcher", "spawner", "frontend"), 2, 3),
    ("cut", ("agents", "clients"), 2, 0),
    ("tear", ("agents", "clients"), 2, 2),
    ("delay", ("agents", "clients"), 2, 4),
    ("slice", ("agents", "clients"), 1, 2),
    ("silence", ("agents", "clients"), 2, 4),
    ("deaf", ("agents", "clients"), 1, 4),
    ("mute", ("agents", "clients"), 1, 4),
    ("refuse", ("agents", "clients"), 2, 3),
    ("twice", ("agents",), 3, 8),
    ("old", ("agents",), 2, 8),
)
#: Where the store is on a server: after the death of any process of it, it recovers from a crash.
_SERVER_KINDS = (("kill", ("database",), 2.0, 0.0),)
#: Which of them end a process.
KILLS = ("kill", "point")


def schedule(rng: random.Random, secs: float, every_secs: float, *, server: bool = False) -> list[Blow]:
    """Blows over so many seconds, on average one in `every_secs`; with `server`, to a database server too."""
    kinds = _KINDS + _SERVER_KINDS if server else _KINDS
    blows = []
    at = rng.expovariate(1 / every_secs)
    weights = [weight for _, _, weight, _ in kinds]
    while at < secs:
        kind, targets, _, most = rng.choices(kinds, weights)[0]
        blows.append(Blow(round(at, 3), kind, rng.choice(targets), round(most * rng.uniform(0.3, 1), 2)))
        at += rng.expovariate(1 / every_secs)
    return blows


class Nemesis(threading.Thread):
    """Deals the blows, heals what has to be healed."""

    def __init__(self, world: World, history: History, blows: list[Blow], rng: random.Random) -> None:
        super().__init__(name="nemesis", daemon=True)
        self.world = world
        self.history = history
        self.stopping = threading.Event()
        #: By kind and target, what was really done.
        self.dealt: Counter[tuple[str, str]] = Counter()
        self.error: BaseException | None = None
        self._rng = rng
        self._blows = blows
        self._stopped: list[int] = []

    def run(self) -> None:
        """All blows in their time, then heal."""
        try:
            todo = [(blow.at, False, blow) for blow in self._blows]
            todo += [(blow.at + blow.secs, True, blow) for blow in self._blows if blow.secs]
            clock = 0.0
            for at, heals, blow in sorted(todo):
                if self.stopping.wait(max(0.0, at - clock)):
                    break
                clock = at
                self._heal(blow) if heals else self._deal(blow)
        except BaseException as exc:  # noqa: BLE001 - told to whoever started us
            self.error = exc
        finally:
            self.heal_all()

    def heal_all(self) -> None:
        """Everything behaves from now on."""
        self.world.disarm()
        for pid in self._stopped:
            self._signal(pid, signal.SIGCONT)
        self._stopped.clear()

        def heal() -> None:
            for link in self.world.proxy.links.values():
                # What was silent for long may be a stale half of something: both halves go.
                if link.faults.silent:
                    link.cut()
                link.faults.clear()

        self.world.proxy.do(heal)

    def _deal(self, blow: Blow) -> None:
        world, kind, target = self.world, blow.kind, blow.target
        pid = 0
        if kind == "kill":
            pid = world.strike(target, signal.SIGKILL, self._rng)
        elif kind == "term":
            pid = world.strike(target, signal.SIGTERM, self._rng)
        elif kind == "stop":
            pid = world.strike(target, signal.SIGSTOP, self._rng)
            if pid:
                self._stopped.append(pid)
        elif kind == "point":
            world.fire(target, "kill")
        elif kind == "dally":
            world.fire(target, f"sleep {blow.secs / 2:.2f}")
        else:
            self._set(blow, on=True)
        if kind in ("kill", "term", "stop") and not pid:
            return
        self.dealt[kind, target] += 1
        self.history.note("blow", what=kind, target=target, pid=pid, secs=blow.secs)

    def _heal(self, blow: Blow) -> None:
        if blow.kind == "stop":
            for pid in self._stopped:
                self._signal(pid, signal.SIGCONT)
            self._stopped.clear()
        elif blow.kind in ("point", "dally"):
            (self.world.armed / "fire" / blow.target).unlink(missing_ok=True)
        else:
            self._set(blow, on=False)

    def _signal(self, pid: int, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    def _set(self, blow: Blow, *, on: bool) -> None:
        link = self.world.proxy.links[blow.target]
        faults = link.faults
        resume = self._rng.random() < 0.5

        def act() -> None:
            match blow.kind:
                case "cut":
                    link.cut()
                case "tear":
                    faults.cut_after = self._rng.choice((0, 1, 7, 300, 5000)) if on else None
                case "delay":
                    faults.delay_secs = 0.3 if on else 0.0
                case "slice":
                    faults.slice_bytes = 7 if on else 0
                case "refuse":
                    faults.refuse = on
                case "twice":
                    faults.twice = 0.5 if on else 0.0
                case "old":
                    faults.old = 0.3 if on else 0.0
                case "silence" | "deaf" | "mute":
                    ways = {"silence": ("up", "down"), "deaf": ("down",), "mute": ("up",)}[blow.kind]
                    if on:
                        faults.silent |= set(ways)
                    else:
                        faults.silent -= set(ways)
                        if not resume:
                            link.cut()

        self.world.proxy.do(act)
