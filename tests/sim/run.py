"""Seeds in, violations out: one seed, ranges of them on several processes, replay, shrinking."""

import gc
import hashlib
from typing import Any, NamedTuple

import msgspec

from tests.sim import patches
from tests.sim.check import check
from tests.sim.scenario import Scenario, draw
from tests.sim.simulation import TheWorld


class Result(NamedTuple):
    """What came of one world."""

    scenario: Scenario
    history: list[tuple[Any, ...]]
    violations: list[str]
    turns: int

    @property
    def digest(self) -> str:
        """Equal for equal histories, byte for byte."""
        return hashlib.sha256("\n".join(lines(self.history)).encode()).hexdigest()


def lines(history: list[tuple[Any, ...]]) -> list[str]:
    """A history as text."""
    return [repr(entry) for entry in history]


def run(scenario: Scenario) -> Result:
    """Let that world happen."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        world = TheWorld.__new__(TheWorld)
        with patches.inside(world):
            world.__init__(scenario)  # type: ignore[misc]
            world.play()
            violations = check(scenario, world.history)
            history, turns = list(world.history), world.turns
            world.bury()
    finally:
        if was_enabled:
            gc.enable()
    return Result(scenario, history, violations, turns)


def run_seed(seed: int) -> Result:
    """The world of a seed."""
    return run(draw(seed))


def shrink(scenario: Scenario) -> Scenario:
    """A smaller story that still goes wrong in the same way: fewer faults, wishes and orders."""
    result = run(scenario)
    kinds = {text.partition(":")[0] for text in result.violations}
    if not kinds:
        return scenario

    def fails(candidate: Scenario) -> bool:
        return bool(kinds & {text.partition(":")[0] for text in run(candidate).violations})

    progress = True
    while progress:
        progress = False
        for field in ("faults", "wishes", "orders"):
            items = list(getattr(scenario, field))
            place = 0
            while place < len(items):
                fewer = items[:place] + items[place + 1 :]
                candidate = msgspec.structs.replace(scenario, **{field: fewer})
                if (fewer or field != "orders") and fails(candidate):
                    scenario, items, progress = candidate, fewer, True
                else:
                    place += 1
        for change in (
            {"repeats": 0.0},
            {"subscribers": 0},
            {"decoys": 0},
            {"hosts": 1},
            {"job_cache": 2000, "queue_window": 10_000},
        ):
            candidate = msgspec.structs.replace(scenario, **change)
            if candidate != scenario and fails(candidate):
                scenario, progress = candidate, True
    return scenario
