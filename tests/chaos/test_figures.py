"""Small shares of what `bin/crashpoints`, `bin/crash-images` and `bin/races` do in full."""

import json
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from sirepo_jobs.agents.journal import Helper, Journal, _parse
from sirepo_jobs.protocol import Exited
from tests.chaos import images, races
from tests.chaos.crashpoints import Scene, explore
from tests.unit.test_agent_journal import exited, intent, started


@pytest.fixture
def strace() -> None:
    if shutil.which("strace") is None or os.geteuid() != 0:
        missing = "strace, and root to attach it, are needed"
        if os.environ.get("CI"):
            pytest.fail(missing)
        pytest.skip(missing)


@pytest.fixture
def scene(strace: None) -> Iterator[Scene]:
    it = Scene()
    yield it
    it.close()


@pytest.mark.timeout(300)
def test_crash_at_system_calls_of_the_end_of_a_job(scene: Scene) -> None:
    """A few points of each process; `bin/crashpoints` has all of them."""
    points = 0
    for target, step in (("supervisor threads", 9), ("agent", 4), ("launcher", 4), ("spawner", 9)):
        killed, wrong = explore(scene, "finish", target, step=step)
        assert not wrong
        points += killed
    assert points >= 5


@pytest.mark.timeout(300)
def test_crash_images_of_the_store(strace: None) -> None:
    """Every image opens, is sound, and has what was acknowledged."""
    count, wrong = images.run(8, 1, most=60)
    assert count > 30
    assert wrong == []


def test_crash_images_of_the_journal(tmp_path: Path) -> None:
    """Cut at every byte, and torn with zeros: what was synced before the cut is there, and nothing else."""
    journal = Journal(str(tmp_path))
    journal.replay("boot")
    synced: list[tuple[int, int]] = []
    rng = random.Random(1)
    seq = acked = 0
    for n in range(25):
        journal.intend(intent(f"j{n}"))
        journal.write()
        seq += 1
        journal.keep(started(seq, f"j{n}"), 4711)
        if rng.random() < 0.7:
            seq += 1
            journal.keep(exited(seq, f"j{n}"))
        if rng.random() < 0.3:
            acked = rng.randint(acked, seq)
            journal.acked(acked)
        journal.helper(100 + n, n)
        assert journal.sync()
        synced.append((os.fstat(journal.fileno()).st_size, seq))
    data = (tmp_path / "journal").read_bytes()
    whole, _ = _parse(data)
    assert whole is not None
    for cut in range(synced[0][0], len(data) + 1):
        known = max(seq for size, seq in synced if size <= cut)
        for tail in (b"", bytes(64), b"\xff" * 7 + b"\n"):
            past, good = _parse(data[:cut] + tail)
            assert past is not None
            assert good <= cut
            assert known <= past.last_seq <= seq
            kept = [one.seq for one, _ in past.kept]
            # Gapless from the first that is not acknowledged to the last.
            assert kept == list(range(past.acked + 1, past.last_seq + 1))
            ended = {(m.jid, m.attempt) for _, m in past.kept if isinstance(m, Exited)}
            assert not ended & set(past.intents)
            assert all(isinstance(helper, Helper) for helper in past.helpers)


@pytest.mark.timeout(300)
def test_every_byte_and_one_outcome() -> None:
    """Must show 5, a share of it."""
    report, violations = races.run(60, 60, 1)
    assert not violations, json.dumps(report, indent=1)
    assert report["every_byte"]["bytes"] > 0
