"""What an engine says of a container, and when that is not believed (C4, F107)."""

from typing import Any

import pytest

from sirepo_jobs.driver import Fate
from sirepo_jobs.drivers.docker import fate
from sirepo_jobs.drivers.docker.engine import Missing, Silent
from sirepo_jobs.drivers.docker.fate import Fates


class ScriptedEngine:
    """Says what the test wants."""

    def __init__(self) -> None:
        self.state: Any = {"Running": True, "Status": "running"}
        self.processes: Any = True

    async def inspect(self, _container: str) -> dict[str, Any]:
        if isinstance(self.state, Exception):
            raise self.state
        return {"State": self.state}

    async def has_processes(self, _container: str) -> bool:
        if isinstance(self.processes, Exception):
            raise self.processes
        return bool(self.processes)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(fate.time, "monotonic", lambda: now[0])
    return now


async def test_what_is_called_running_and_is_empty_is_gone_after_a_while(clock: list[float]) -> None:
    """A shim was killed while its engine restarted: the engine never heard, and jobs were lost for ever."""
    engine: Any = ScriptedEngine()
    fates = Fates()
    assert await fates.of(engine, "c") is Fate.ALIVE
    engine.processes = False
    assert await fates.of(engine, "c") is Fate.UNKNOWN
    for _ in range(9):
        clock[0] += fate.HOLLOW_SECS / 10
        assert await fates.of(engine, "c") is Fate.UNKNOWN
    clock[0] += fate.HOLLOW_SECS / 10 + 0.1
    assert await fates.of(engine, "c") is Fate.GONE


async def test_two_moments_far_apart_prove_nothing(clock: list[float]) -> None:
    engine: Any = ScriptedEngine()
    fates = Fates()
    engine.processes = False
    assert await fates.of(engine, "c") is Fate.UNKNOWN
    clock[0] += 100 * fate.HOLLOW_SECS
    assert await fates.of(engine, "c") is Fate.UNKNOWN
    engine.state = Silent("no answer")
    assert await fates.of(engine, "c") is Fate.UNKNOWN
    engine.state = {"Running": True}
    clock[0] += fate.HOLLOW_SECS / 3
    assert await fates.of(engine, "c") is Fate.UNKNOWN


async def test_an_engine_that_finds_it_again_was_wrong_for_a_moment(clock: list[float]) -> None:
    engine: Any = ScriptedEngine()
    fates = Fates()
    engine.processes = False
    assert await fates.of(engine, "c") is Fate.UNKNOWN
    engine.processes = True
    assert await fates.of(engine, "c") is Fate.ALIVE
    clock[0] += 2 * fate.HOLLOW_SECS
    engine.processes = False
    assert await fates.of(engine, "c") is Fate.UNKNOWN, "it is counted from the start"


@pytest.mark.parametrize(
    ("state", "processes", "expected"),
    [
        (Missing("no such container"), True, Fate.GONE),
        (Silent("no answer"), True, Fate.UNKNOWN),
        ({"Running": True}, Silent("no answer"), Fate.UNKNOWN),
        ({"Running": True, "Paused": True}, False, Fate.ALIVE),
        ({"Running": False, "Status": "exited"}, False, Fate.GONE),
        ({"Running": False, "Status": "removing"}, False, Fate.UNKNOWN),
    ],
)
async def test_only_the_engines_word_is_evidence(state: Any, processes: Any, expected: Fate) -> None:
    engine: Any = ScriptedEngine()
    engine.state, engine.processes = state, processes
    assert await Fates().of(engine, "c") is expected
