"""The journal and the outbox: order, acknowledgement, torn tails, space written ahead, compaction."""

import itertools
import os
from pathlib import Path

import msgspec
import pytest

from sirepo_jobs.agents import journal as journal_of
from sirepo_jobs.agents.journal import Helper, Intent, Journal, NotReplaced
from sirepo_jobs.agents.outbox import Kept, Outbox
from sirepo_jobs.protocol import Exited, Started


def intent(jid: str) -> Intent:
    return Intent(jid=jid, serial=1, attempt=1, run_dir=f"r/{jid}", mark=5)


def started(seq: int, jid: str) -> bytes:
    return msgspec.json.encode(Started(seq=seq, jid=jid, serial=1, attempt=1, at=99, pid=7))


def exited(seq: int, jid: str) -> bytes:
    return msgspec.json.encode(Exited(seq=seq, jid=jid, serial=1, attempt=1, at=3, exit_code=0))


def written(path: Path) -> Journal:
    journal = Journal(str(path))
    journal.replay("boot")
    return journal


def sound(path: Path) -> int:
    """How long the lines are; behind them are zeros, and nothing else."""
    return len((path / "journal").read_bytes().rstrip(b"\0"))


def test_new_journal_has_a_new_install(tmp_path: Path) -> None:
    first = Journal(str(tmp_path)).replay("boot")
    assert (first.acked, first.last_seq, first.intents, first.boot_id) == (0, 0, {}, "boot")
    assert Journal(str(tmp_path)).replay("other").install == first.install
    assert Journal(str(tmp_path)).replay("other").boot_id == "boot"
    (tmp_path / "journal").unlink()
    assert Journal(str(tmp_path)).replay("boot").install != first.install


def test_replay_tells_what_is_open_and_what_is_unacknowledged(tmp_path: Path) -> None:
    journal = written(tmp_path)
    for jid in "abc":
        journal.intend(intent(jid))
    journal.helper(11, 22)
    journal.keep(started(1, "a"), 4711)
    journal.keep(exited(2, "b"))
    journal.acked(1)
    assert journal.sync()
    past = Journal(str(tmp_path)).replay("boot")
    assert set(past.intents) == {("a", 1), ("c", 1)}
    found = past.intents["a", 1]
    assert (found.pid, found.start, found.started_at) == (7, 4711, 99)
    assert [kept.seq for kept, _ in past.kept] == [2]
    assert past.kept[0][0].ends == ("b", 1)
    assert (past.acked, past.last_seq) == (1, 2)
    assert past.helpers == [Helper(pid=11, start=22)]


@pytest.mark.parametrize("zeros", [0, 1, 2000])
@pytest.mark.parametrize("cut", range(1, 60))
def test_torn_tail_is_cut_wherever_it_tears(tmp_path: Path, cut: int, zeros: int) -> None:
    journal = written(tmp_path)
    journal.keep(exited(1, "a"))
    journal.sync()
    good = sound(tmp_path)
    journal.keep(exited(2, "b"))
    journal.sync()
    end = sound(tmp_path) - cut
    os.truncate(tmp_path / "journal", end)
    os.truncate(tmp_path / "journal", end + zeros)
    again = Journal(str(tmp_path))
    past = again.replay("boot")
    assert past.last_seq == 1
    assert os.path.getsize(tmp_path / "journal") == sound(tmp_path) == good
    again.keep(exited(2, "c"))
    again.sync()
    assert [kept.ends for kept, _ in Journal(str(tmp_path)).replay("boot").kept] == [("a", 1), ("c", 1)]


def test_flipped_bit_ends_the_reading(tmp_path: Path) -> None:
    journal = written(tmp_path)
    journal.keep(exited(1, "a"))
    journal.sync()
    at = sound(tmp_path)
    journal.keep(exited(2, "b"))
    journal.keep(exited(3, "c"))
    journal.sync()
    data = bytearray((tmp_path / "journal").read_bytes())
    data[at + 30] ^= 1
    (tmp_path / "journal").write_bytes(data)
    assert Journal(str(tmp_path)).replay("boot").last_seq == 1


def test_rewrite_keeps_what_matters(tmp_path: Path) -> None:
    journal = written(tmp_path)
    for n in range(1, 20_000):
        journal.keep(exited(n, f"j{n}"))
    journal.acked(19_998)
    journal.sync()
    assert journal.long
    journal.rewrite("i", "b", 19_998, [intent("x")], [Kept(19_999, exited(19_999, "last"), ("last", 1))], [])
    assert not journal.long
    journal.keep(exited(20_000, "after"))
    journal.sync()
    past = Journal(str(tmp_path)).replay("b")
    assert (past.install, past.acked, past.last_seq) == ("i", 19_998, 20_000)
    assert [kept.ends for kept, _ in past.kept] == [("last", 1), ("after", 1)]
    assert list(past.intents) == [("x", 1)]
    assert (tmp_path / "journal").stat().st_mode & 0o777 == 0o600


def test_rewritten_birth_keeps_its_start_time(tmp_path: Path) -> None:
    journal = written(tmp_path)
    known = msgspec.structs.replace(intent("a"), pid=7, start=4711, started_at=99)
    journal.rewrite("i", "b", 0, [known], [Kept(1, started(1, "a"), None)], [])
    assert Journal(str(tmp_path)).replay("b").intents["a", 1] == known


def test_a_replaced_journal_is_written_to_whatever_its_directory_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C1: the old file has no name any more; and who asked for the new one hears that it is not sure."""
    journal = written(tmp_path)

    def fails(_path: str) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(journal_of, "_sync_dir", fails)
    with pytest.raises(OSError, match="Input/output") as caught:
        journal.rewrite("i", "b", 0, [intent("a")], [], [])
    assert not isinstance(caught.value, NotReplaced)
    journal.intend(intent("b"))
    journal.sync()
    assert list(Journal(str(tmp_path)).replay("b").intents) == [("a", 1), ("b", 1)]


def test_a_journal_for_which_there_is_no_room_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """F030: compaction is for another time; the old one goes on."""
    journal = written(tmp_path)
    (tmp_path / "journal.part").mkdir()
    with pytest.raises(NotReplaced):
        journal.rewrite("i", "b", 0, [intent("a")], [], [])
    journal.intend(intent("b"))
    journal.sync()
    assert list(Journal(str(tmp_path)).replay("b").intents) == [("b", 1)]


def test_a_birth_without_a_process_of_ours_is_a_birth(tmp_path: Path) -> None:
    """F013: a job of Slurm's has no start time here; the next launcher knows all the same that it runs."""
    journal = written(tmp_path)
    journal.intend(intent("a"))
    journal.keep(started(1, "a"), 0)
    journal.sync()
    known = Journal(str(tmp_path)).replay("boot").intents["a", 1]
    assert (known.started_at > 0, known.pid, known.start) == (True, 0, 0)


def test_full_disk_is_tried_again_and_nothing_is_torn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = written(tmp_path)
    real = os.pwrite
    room = [10]

    def pwrite(fd: int, data: bytes, offset: int) -> int:
        if room[0] <= 0:
            raise OSError(28, "No space left on device")
        count = real(fd, data[: room[0]], offset)
        room[0] -= count
        return count

    monkeypatch.setattr(os, "pwrite", pwrite)
    journal.keep(exited(1, "a"))
    assert not journal.sync()
    journal.keep(exited(2, "b"))
    assert not journal.write()
    room[0] = 1 << 20
    assert journal.sync()
    assert Journal(str(tmp_path)).replay("boot").last_seq == 2


def test_lines_go_into_space_that_was_written_before(tmp_path: Path) -> None:
    """So that a sync has nothing to do but them: the file grows by much, and seldom."""
    journal = written(tmp_path)
    sizes = []
    for n in range(1, 6001):
        journal.keep(exited(n, "a"))
        assert journal.write()
        sizes.append(os.path.getsize(tmp_path / "journal"))
        assert n % 1000 or sizes[-1] >= sound(tmp_path)
    assert sound(tmp_path) > 2 * journal_of.AHEAD_BYTES
    grown = sorted(set(sizes))
    assert all(b - a >= journal_of.AHEAD_BYTES for a, b in itertools.pairwise(grown))
    assert os.stat(tmp_path / "journal").st_blocks * 512 >= grown[-1]
    again = Journal(str(tmp_path))
    assert again.replay("boot").last_seq == 6000
    # what is left of the zeros is used by whoever comes next
    again.keep(exited(6001, "a"))
    assert again.sync()
    assert os.path.getsize(tmp_path / "journal") == grown[-1]


def test_sound_lines_behind_a_lost_one_never_come_back(tmp_path: Path) -> None:
    """Not even when what is new is just as long as what was lost."""
    journal = written(tmp_path)
    journal.keep(exited(1, "a"))
    assert journal.sync()
    at = sound(tmp_path)
    journal.keep(exited(2, "b"))
    assert journal.write()
    end = sound(tmp_path)
    journal.keep(exited(3, "c"))
    assert journal.sync()
    with (tmp_path / "journal").open("r+b") as file:
        file.seek(at)
        file.write(bytes(end - at))
    again = Journal(str(tmp_path))
    assert again.replay("boot").last_seq == 1
    again.keep(exited(2, "x"))
    assert again.sync()
    assert [kept.ends for kept, _ in Journal(str(tmp_path)).replay("boot").kept] == [("a", 1), ("x", 1)]


def test_what_was_not_synced_is_synced_before_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was killed between `write` and `sync` leaves what looks as if it were on disk (seed 1941)."""
    journal = written(tmp_path)
    journal.keep(exited(1, "a"))
    assert journal.write()
    synced: list[int] = []
    monkeypatch.setattr(os, "fdatasync", lambda fd: synced.append(os.fstat(fd).st_ino))
    assert Journal(str(tmp_path)).replay("boot").last_seq == 1
    assert synced == [(tmp_path / "journal").stat().st_ino]


def test_without_room_for_zeros_the_file_grows_by_what_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F030: also on file systems that take all of it or nothing; the reserve is not touched for zeros."""
    journal = written(tmp_path)
    real = os.pwrite
    free = 1000

    def pwrite(fd: int, data: bytes, offset: int) -> int:
        nonlocal free
        need = max(0, offset + len(data) - os.fstat(fd).st_size)
        if need > free:
            raise OSError(28, "No space left on device")
        free -= need
        return real(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    reserve = tmp_path / "journal.reserve"
    journal.keep(exited(1, "a"))
    assert journal.sync()
    assert os.path.getsize(tmp_path / "journal") == sound(tmp_path)
    assert reserve.exists()
    assert journal.reserved
    # now the space that was set aside is needed
    free = 0
    journal.keep(exited(2, "b"))
    assert not journal.sync()
    assert not reserve.exists()
    # it is there for ends alone, and nothing of it becomes zeros
    free = 10_000
    monkeypatch.setattr(os, "posix_fallocate", _no_space)
    assert journal.sync()
    assert not journal.reserved
    assert os.path.getsize(tmp_path / "journal") == sound(tmp_path)
    assert Journal(str(tmp_path)).replay("boot").last_seq == 2


def _no_space(_fd: int, _offset: int, _count: int) -> None:
    raise OSError(28, "No space left on device")


def test_nothing_begins_on_a_full_disk_however_many_zeros_are_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F029: the zeros would take hundreds of intents before a full disk was noticed."""
    journal = written(tmp_path)
    journal.intend(intent("a"))
    assert journal.write()
    assert journal.reserved
    real = os.fstatvfs
    full = os.statvfs_result((4096, 4096, 1000, 0, 0, 10, 10, 10, 0, 255))
    monkeypatch.setattr(os, "fstatvfs", lambda _fd: full)
    assert journal.reserved  # nobody has asked for anything since
    journal.intend(intent("b"))
    assert journal.write()
    assert not journal.reserved
    assert not journal.reserved
    monkeypatch.setattr(os, "fstatvfs", real)
    assert journal.reserved


def kept(seq: int) -> Kept:
    return Kept(seq, b"%d" % seq, (f"j{seq}", 1) if seq % 2 else None)


def test_outbox_says_nothing_before_it_is_on_disk() -> None:
    outbox = Outbox()
    for seq in (1, 2):
        outbox.push(kept(seq))
    assert outbox.unsynced
    assert outbox.batch(1000) == []
    outbox.synced()
    outbox.push(kept(3))
    assert outbox.batch(1000) == [b"1", b"2"]
    assert outbox.batch(1000) == []
    outbox.synced()
    assert outbox.batch(1000) == [b"3"]
    assert not outbox.unsynced


def test_outbox_repeats_what_is_not_acknowledged() -> None:
    outbox = Outbox()
    for seq in range(1, 6):
        outbox.push(kept(seq))
    outbox.synced()
    assert len(outbox.batch(1000)) == 5
    assert outbox.ack(2) == [("j1", 1)]
    assert outbox.ack(3) == [("j3", 1)]
    outbox.rewind()
    assert outbox.batch(1000) == [b"4", b"5"]
    outbox.rewind()
    assert outbox.batch(1000) == [b"4", b"5"]
    assert outbox.ack(5) == [("j5", 1)]
    assert len(outbox) == 0
    outbox.push(kept(6))
    outbox.synced()
    assert outbox.batch(1000) == [b"6"]


def test_what_was_not_said_yet_cannot_be_acknowledged() -> None:
    """I2: a supervisor that talks nonsense acknowledges everything; the end that comes then is told."""
    outbox = Outbox()
    outbox.push(kept(1))
    outbox.synced()
    assert outbox.ack(99) == []
    assert outbox.batch(1000) == [b"1"]
    outbox.push(kept(2))
    outbox.push(kept(3))
    outbox.synced()
    assert outbox.ack(99) == [("j1", 1)]
    assert outbox.batch(1000) == [b"2", b"3"]
    outbox.rewind()
    assert outbox.ack(99) == [("j3", 1)]
    assert len(outbox) == 0


def test_what_an_earlier_process_left_can_be_acknowledged_at_once() -> None:
    """F013: whether it was said before the launcher was killed, only the supervisor knows."""
    outbox = Outbox(acked=4)
    outbox.push(kept(5))
    outbox.inherited()
    outbox.push(kept(6))
    outbox.synced()
    assert outbox.ack(6) == [("j5", 1)]
    assert outbox.batch(1000) == [b"6"]


def test_outbox_is_cut_by_size_but_always_goes_on() -> None:
    outbox = Outbox()
    for seq in range(1, 4):
        outbox.push(Kept(seq, b"x" * 100, None))
    outbox.synced()
    assert [len(outbox.batch(1)) for _ in range(4)] == [1, 1, 1, 0]
    outbox.rewind()
    assert len(outbox.batch(200)) == 2


def test_outbox_is_gapless() -> None:
    outbox = Outbox(acked=7)
    outbox.push(kept(8))
    with pytest.raises(AssertionError):
        outbox.push(kept(10))


def test_ended_record_is_said_again_only_if_it_was_said() -> None:
    outbox = Outbox()
    outbox.push(kept(1))
    outbox.synced()
    assert outbox.again(("j1", 1)) is None
    outbox.batch(100)
    assert outbox.again(("j1", 1)) == b"1"
    assert outbox.again(("j9", 1)) is None


def test_a_line_that_is_not_as_it_was_written_is_not_believed(tmp_path: Path) -> None:
    """One flipped digit: it is as good JSON as before."""
    journal = written(tmp_path)
    journal.intend(intent("a"))
    journal.keep(exited(1, "a"))
    assert journal.sync()
    path = tmp_path / "journal"
    data = path.read_bytes()
    assert data.count(b'"exit_code":0') == 1
    path.write_bytes(data.replace(b'"exit_code":0', b'"exit_code":7'))
    past = Journal(str(tmp_path)).replay("boot")
    assert (list(past.intents), list(past.kept)) == ([("a", 1)], [])
