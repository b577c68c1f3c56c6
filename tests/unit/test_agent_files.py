"""Progress lines, run files, exit records and marks: what is read from places where jobs write."""

import errno
import os
from pathlib import Path

import msgspec
import pytest

from sirepo_jobs.agents import exit_file, process
from sirepo_jobs.agents.child import Child, report
from sirepo_jobs.agents.lane import Lane, lane_pair
from sirepo_jobs.agents.progress import MAX_LINE_BYTES, Tail, newest
from sirepo_jobs.agents.slate import Line, Slate
from sirepo_jobs.agents.words import Over, Spawn, Watch
from sirepo_jobs.job import Usage
from sirepo_jobs.reasons import Reason
from sirepo_jobs.run_tree import Refused, RunFiles


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b'{"a":1}\n', {"a": 1}),
        (b'{"a":1}\n{"a":2}\n', {"a": 2}),
        (b'{"a":1}\nnonsense\n', {"a": 1}),
        (b'{"a":1}\n{"a":NaN}\n{"a":Infinity}\n{"a":-Infinity}\n{"a":1e999}\n', {"a": 1}),
        (b'{"a":1}\n[2]\n3\n"x"\nnull\n', {"a": 1}),
        (b'{"a":1}\n{"b":"' + b"x" * MAX_LINE_BYTES + b'"}\n', {"a": 1}),
        (b'{"a":1}\n{"b":"\\ud800"}\n', {"a": 1}),
        (b'{"a":1}\n' + b"[" * 60000 + b"\n", {"a": 1}),
        (b'{"a":1}\n{"b":"\xff"}\n', {"a": 1}),
        (b'{"a":1}\r\n', {"a": 1}),
        (b"\n\n\n", None),
        (b"", None),
        (b"nonsense\n" * 1000 + b'{"a":1}\n', {"a": 1}),
        (b'{"a":1}\n' + b"nonsense\n" * 1000, None),
    ],
)
def test_newest_valid_line(text: bytes, expected: dict[str, int] | None) -> None:
    assert newest(text) == expected


def test_line_that_lost_its_beginning_does_not_count() -> None:
    assert newest(b'{"a":1}\n', cut_off=True) is None
    assert newest(b'1}\n{"a":2}\n', cut_off=True) == {"a": 2}


def test_tail_reads_each_line_once(tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    path = tmp_path / "r" / "progress.jsonl"
    tail = Tail(Watch(jid="j", serial=1, attempt=1, run_dir="r", progress=True), RunFiles(str(tmp_path)))

    def read() -> object:
        found = tail.read()
        return None if found is None else found.data

    assert read() is None
    with path.open("ab", buffering=0) as file:
        file.write(b'{"n": 1}\n')
        assert read() == {"n": 1}
        assert read() is None
        file.write(b'{"n": 2}')
        assert read() is None
        file.write(b"\n")
        assert read() == {"n": 2}
        file.write(b"x" * 1_000_000)
        assert read() is None
        file.write(b'\n{"n": 3}\n')
        assert read() == {"n": 3}
        file.truncate(0)
        file.write(b'{"n": 4}\n')
        assert read() == {"n": 4}
    # Written anew, as programs do that replace a file at once.
    (tmp_path / "r" / "new").write_bytes(b'{"n": 5}\n')
    (tmp_path / "r" / "new").rename(path)
    assert read() == {"n": 5}
    path.unlink()
    assert read() is None
    tail.close()


def test_only_plain_files_below_the_root_are_opened(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "a/b").mkdir(parents=True)
    (root / "a/b/file").write_text("x")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/file").write_text("secret")
    (root / "a/link").symlink_to(tmp_path / "outside")
    (root / "a/b/link").symlink_to(tmp_path / "outside/file")
    (root / "a/b/dir").mkdir()
    os.mkfifo(root / "a/b/fifo")
    files = RunFiles(str(root))
    fd = files.open("a/b", "file")
    assert os.read(fd, 10) == b"x"
    os.close(fd)
    before = len(os.listdir("/proc/self/fd"))
    for run_dir, name in (
        ("a/link", "file"),
        ("a/b", "link"),
        ("a/b", "dir"),
        ("a/b", "fifo"),
        ("../outside", "file"),
        ("a/../../outside", "file"),
        ("/a/b", "file"),
        ("a//b", "file"),
        ("a/./b", "file"),
        ("", "file"),
        ("a/b\0", "file"),
        ("a/b/file", "file"),
    ):
        with pytest.raises(Refused):
            files.open(run_dir, name)
    with pytest.raises(FileNotFoundError):
        files.open("a/none", "file")
    with pytest.raises(FileNotFoundError):
        files.open("a/b", "none")
    assert len(os.listdir("/proc/self/fd")) == before


SPAWN = Spawn(
    ticket=1, mark=2, jid="j", serial=1, attempt=1, command=["true"], run_dir="j/1", spec=b'{"name": "five"}'
)


def test_exit_record_is_whole_or_absent(tmp_path: Path) -> None:
    path = str(tmp_path)
    assert exit_file.read(path, "j", 1) is None
    over = Over(
        ticket=1,
        at=20,
        started_at=10,
        signal=9,
        reason=Reason.TIME_LIMIT,
        stopped=True,
        stdout_bytes=5,
        stderr_bytes=0,
        usage=Usage(user_secs=1.5, max_rss=4096),
    )
    exit_file.write(path, SPAWN, over)
    assert os.listdir(path) == ["exit.json"]
    found = exit_file.read(path, "j", 1)
    assert found is not None
    assert bytes(found.spec) == SPAWN.spec
    adopted = exit_file.as_over(found, 7)
    assert adopted.proof == "exit_record"
    over.ticket, over.proof = 7, "exit_record"
    assert adopted == over
    assert exit_file.read(path, "other", 1) is None
    assert exit_file.read(path, "j", 2) is None
    whole = b'{"jid":"j","serial":1,"attempt":1,"ended_at":20'
    for text in (
        *(b"", b"{", b"[]", b'{"jid":"j"}', b"\xff" * 100, b'{"jid":"\xff"}', b'{"x":' + b"[" * 100_000),
        whole + b"0" * 30 + b"}",
        whole + b',"usage":{"max_rss":' + b"9" * 30 + b"}}",
        whole + b',"signal":-18446744073709551615}',
    ):
        (tmp_path / "exit.json").write_bytes(text)
        assert exit_file.read(path, "j", 1) is None
    (tmp_path / "exit.json").unlink()
    (tmp_path / "exit.json").symlink_to("/etc/passwd")
    assert exit_file.read(path, "j", 1) is None


def test_exit_record_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    exit_file.write(f"{tmp_path}/none", SPAWN, Over(ticket=1, at=1))
    (tmp_path / "exit.json").mkdir()
    exit_file.write(str(tmp_path), SPAWN, Over(ticket=1, at=1))
    assert os.listdir(tmp_path) == ["exit.json"]


def test_exit_record_that_is_cut_goes_even_if_closing_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full file server may say so as late as that."""
    close = os.close

    def full(fd: int) -> None:
        close(fd)
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr(os, "close", full)
    exit_file.write(str(tmp_path), SPAWN, Over(ticket=1, at=1))
    monkeypatch.undo()
    assert os.listdir(tmp_path) == []


def test_exit_record_takes_the_place_of_the_jobs_own_and_of_a_killed_writers(tmp_path: Path) -> None:
    """F041: whoever takes over writes it again."""
    for left in (b"", b"mine"):
        (tmp_path / "exit.json").write_bytes(left)
        (tmp_path / "exit.json.part").write_bytes(left)
        exit_file.write(str(tmp_path), SPAWN, Over(ticket=1, at=1, exit_code=3))
        found = exit_file.read(str(tmp_path), "j", 1)
        assert found is not None
        assert found.exit_code == 3
        assert os.listdir(tmp_path) == ["exit.json"]


def test_exit_record_keeps_the_largest_spec(tmp_path: Path) -> None:
    spec = msgspec.json.encode({"env": {"A": "\x01" * (1 << 20)}})
    exit_file.write(str(tmp_path), msgspec.structs.replace(SPAWN, spec=spec), Over(ticket=1, at=1))
    found = exit_file.read(str(tmp_path), "j", 1)
    assert found is not None
    assert bytes(found.spec) == spec


def test_descriptors_of_an_attempt_that_is_over_are_its_own_no_more(tmp_path: Path) -> None:
    """Their numbers may be somebody else's by now."""
    opened = [os.open(tmp_path / name, os.O_CREAT | os.O_WRONLY) for name in ("stdout", "stderr")]
    os.write(opened[0], b"four")
    ended = Child(SPAWN, 0, str(tmp_path), 0, 0.0, *opened)
    ended.status = 0
    over = report(ended)
    assert (over.stdout_bytes, over.stderr_bytes) == (4, 0)
    assert (ended.out, ended.err) == (-1, -1)
    assert ended.output_bytes() == 4


def test_own_process_is_known() -> None:
    stat = process.stat_of(os.getpid())
    assert stat is not None
    assert stat.parent == os.getppid()
    assert process.alive(os.getpid(), stat.start)
    assert not process.alive(os.getpid(), stat.start + 1)
    assert process.stat_of(0) is None
    assert process.mark_of(os.getpid()) is None
    assert os.getpid() in process.every_pid()
    assert abs(process.started_mono(os.getpid())) > 0
    assert process.new_mark() >= process.MARK_BASE


def test_lane_carries_frames_whole_and_in_order() -> None:
    left, right = lane_pair()
    writer, reader = Lane(left), Lane(right)
    frames = [os.urandom(size) for size in (0, 1, 5, 70_000, 2_000_000, 3)]
    for frame in frames:
        writer.put(frame)
    heard: list[bytes] = []
    while writer.pending or len(heard) < len(frames):
        writer.flush()
        heard += reader.take()
    assert heard == frames
    assert not reader.closed
    writer.put(b"last")
    writer.flush()
    writer.close()
    heard = []
    while not reader.closed:
        heard += reader.take()
    assert heard == [b"last"]
    reader.put(b"to nobody")
    reader.flush()
    assert reader.pending == 0
    reader.close()


def test_slate_is_read_by_the_other_process() -> None:
    slate = Slate()
    pid = os.fork()
    if pid == 0:
        first = slate.note(5, 50, 500, 0)
        slate.note(6, 60, 600, 5)
        slate.ended(first, 256)
        slate.blame(first, Reason.TIME_LIMIT)
        slate.wipe(slate.note(7, 700, 70, 0))
        os._exit(0)
    os.waitpid(pid, 0)
    assert slate.read() == {
        5: Line(5, 500, 50, 256, 0, stopped=True, reason=Reason.TIME_LIMIT),
        6: Line(6, 600, 60, None, 5, stopped=False, reason=None),
    }
    slate.close()


def test_slate_has_an_end() -> None:
    slate = Slate()
    slots = [slate.note(n + 1, 1, 1, 0) for n in range(1100)]
    assert slots.count(-1) == 76
    for slot in slots:
        slate.ended(slot, 0)
        slate.wipe(slot)
    assert slate.read() == {}
    slate.close()
