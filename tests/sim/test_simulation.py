"""The simulation within `bin/test`: some hundreds of worlds, and that a world can be had again exactly.

More of them: `bin/sim --seeds 0:200000`.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.sim import run as run_module
from tests.sim.check import check
from tests.sim.run import run, run_seed, shrink
from tests.sim.scenario import Scenario, draw

#: It computes and waits for nothing: only a machine that is busy makes it long.
pytestmark = pytest.mark.timeout(400)

ROOT = Path(__file__).parents[2]
FIRST, LAST, PIECE = 1_000_000, 1_000_600, 100


@pytest.mark.parametrize("first", range(FIRST, LAST, PIECE))
def test_nothing_goes_wrong_whatever_breaks(first: int) -> None:
    """I1 to I32, as far as they can be seen here: `check.CHECKED`."""
    broken = {
        seed: result.violations
        for seed in range(first, first + PIECE)
        if (result := run_seed(seed)).violations
    }
    assert not broken, f"bin/sim --shrink {min(broken)} says more"


def test_a_seed_is_the_same_world_each_time() -> None:
    for seed in range(20):
        assert run_seed(seed).digest == run_seed(seed).digest


def test_a_seed_is_the_same_world_in_every_process() -> None:
    """Nothing depends on addresses or on the hashes of texts."""
    code = "from tests.sim.run import run_seed; print([run_seed(seed).digest for seed in range(12)])"
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert len(found) == 1


def test_the_checker_sees_a_history_that_cannot_be() -> None:
    """F158: whatever is taken out of a history or put in twice is noticed."""
    scenario = msgspec.structs.replace(draw(3), faults=[], wishes=[], subscribers=1)
    history = run(scenario).history
    assert check(scenario, history) == []
    for kind in ("born", "commit", "heard"):
        places = [
            place
            for place, entry in enumerate(history)
            # a commit of nothing, for somebody who waits, may well be there twice
            if entry[1] == kind and (kind != "commit" or any(entry[4:]))
        ]
        twice = [*history[: places[0]], history[places[0]], *history[places[0] :]]
        assert check(scenario, twice), f"{kind} twice"
    gone = [entry for entry in history if entry[1] != "born"]
    assert check(scenario, gone), "a status of a process that never was"


def test_a_story_is_made_smaller_while_it_goes_wrong_the_same_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def suspicious(_scenario: Scenario, history: list[tuple[Any, ...]]) -> list[str]:
        return ["X: a cut"] if any(entry[1:3] == ("fault", "cut") for entry in history) else []

    monkeypatch.setattr(run_module, "check", suspicious)
    seed = next(seed for seed in range(1000) if [f.kind for f in draw(seed).faults].count("cut") == 2)
    smaller = shrink(draw(seed))
    assert [fault.kind for fault in smaller.faults] == ["cut"]
    assert (len(smaller.orders), smaller.wishes, smaller.hosts) == (1, [], 1)
