"""Small shares of what `bin/crashpoints`, `bin/crash-images` and `bin/races` do in full."""

import json
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from sirepo_jobs.agents import journal as journal_of
from sirepo_jobs.agents.journal import Helper, Journal, Past, _parse
from sirepo_jobs.protocol import Exited
from tests.chaos import images, races
from tests.chaos.crashpoints import Scene, explore
from tests.unit.test_agent_journal import exited, intent, sound, started

#: A disk writes so many bytes whole or not at all.
SECTOR = 512


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
        synced.append((sound(tmp_path), seq))
    data = (tmp_path / "journal").read_bytes()[: sound(tmp_path)]
    whole, _ = _parse(data)
    assert whole is not None
    for cut in range(synced[0][0], len(data) + 1):
        known = max(seq for size, seq in synced if size <= cut)
        for tail in (b"", bytes(64), b"\xff" * 7 + b"\n"):
            past, good = _parse(data[:cut] + tail)
            assert past is not None
            assert good <= cut
            assert known <= past.last_seq <= seq
            _consistent(past)


def _consistent(past: Past) -> None:
    # Gapless from the first that is not acknowledged to the last.
    assert [one.seq for one, _ in past.kept] == list(range(past.acked + 1, past.last_seq + 1))
    ended = {(m.jid, m.attempt) for _, m in past.kept if isinstance(m, Exited)}
    assert not ended & set(past.intents)
    assert all(isinstance(helper, Helper) for helper in past.helpers)


@pytest.mark.parametrize("ahead", [0, 700, 4096, 256 << 10])
def test_crash_images_of_the_journal_lose_sectors_in_any_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ahead: int
) -> None:
    """Any sectors that were not synced are lost, life after life: what was synced is there, in order, and
    nothing comes back that was once lost.
    """
    monkeypatch.setattr(journal_of, "AHEAD_BYTES", ahead)
    path = tmp_path / "journal"
    rng = random.Random(ahead)
    #: What each number stands for now; those above `safe` may be forgotten.
    written: dict[int, bytes] = {}
    safe = seq = acked = holes = 0
    for life in range(150):
        journal = Journal(str(tmp_path))
        past = journal.replay("boot")
        assert safe <= past.last_seq <= seq
        _consistent(past)
        assert all(one.raw == written[one.seq] for one, _ in past.kept)
        seq = safe = past.last_seq
        acked = past.acked
        disk = path.read_bytes()  # replay cuts and syncs
        for turn in range(rng.randint(1, 4)):
            if turn:
                assert journal.sync()
                disk, safe = path.read_bytes(), seq
            for _ in range(rng.randint(1, 12)):
                seq += 1
                # All of one length, so that old ones would fit behind new ones.
                jid = f"{life:03}-{rng.randrange(1000):03}" + "x" * rng.choice((0, 0, 0, 700))
                written[seq] = exited(seq, jid)
                if rng.random() < 0.2:
                    journal.intend(intent(jid))
                journal.keep(written[seq])
            if rng.random() < 0.3:
                # Only what was synced was told, and can be acknowledged.
                acked = rng.randint(acked, max(acked, safe))
                journal.acked(acked)
            assert journal.write()
        journal.close()
        image = _after_power_failure(disk, path.read_bytes(), rng)
        _, good = _parse(image)
        holes += bool(image[good:].strip(b"\0"))
        path.write_bytes(image)
    # The story has been told: often enough something stood behind a hole.
    assert holes > 30


def _after_power_failure(synced: bytes, written: bytes, rng: random.Random) -> bytes:
    """Each sector as it was or as it is; of what the file has grown any part."""
    image = bytearray(written[: rng.randint(len(synced), len(written))])
    for at in range(0, len(image), SECTOR):
        if image[at : at + SECTOR] != synced[at : at + SECTOR] and rng.random() < 0.5:
            old = synced[at : at + SECTOR]
            image[at : at + SECTOR] = old.ljust(len(image[at : at + SECTOR]), b"\0")
    return bytes(image)


@pytest.mark.timeout(300)
def test_every_byte_and_one_outcome() -> None:
    """Must show 5, a share of it."""
    report, violations = races.run(60, 60, 1)
    assert not violations, json.dumps(report, indent=1)
    assert report["every_byte"]["bytes"] > 0
