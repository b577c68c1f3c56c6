"""The launcher without its loop: what it finds at its start, and when it gives up."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from sirepo_jobs.agents import process
from sirepo_jobs.agents.crew import LAST_SECS, BackOff, Crew, Place, start_of
from sirepo_jobs.agents.journal import Intent, Journal
from sirepo_jobs.agents.launcher import Launcher
from sirepo_jobs.agents.words import FromRelay, Go, Kill, Pause, Spawn
from sirepo_jobs.driver import AgentSpec, Environment
from sirepo_jobs.protocol import Exited, Run, Stop
from sirepo_jobs.reasons import Reason


@contextmanager
def launcher(home: Path) -> Iterator[Launcher]:
    """One that never runs."""
    home.mkdir(exist_ok=True)
    spec = AgentSpec(
        agent="a",
        environment=Environment(driver="local", user="u"),
        url="unix:/nowhere",
        token="t",
        home=str(home),
        run_root=str(home / "run"),
    )
    the_launcher = Launcher(spec, lambda *_: None, os.open(home / "lock", os.O_RDWR | os.O_CREAT, 0o600))
    try:
        yield the_launcher
    finally:
        the_launcher._abandon()


def ends(home: Path) -> dict[str, Exited]:
    """What the journal says about ends."""
    journal = Journal(str(home))
    past = journal.replay("any")
    journal.close()
    return {record.jid: record for _, record in past.kept if isinstance(record, Exited)}


def intent(jid: str, mark: int) -> Intent:
    return Intent(jid=jid, serial=1, attempt=1, run_dir=jid, mark=mark)


def test_launcher_whose_home_was_wiped_ends(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with launcher(home) as the_launcher:
        the_launcher._look_home(0.0)
        assert not the_launcher._desk.closing
        shutil.rmtree(home)
        home.mkdir()
        (home / "lock").touch()  # another launcher's
        the_launcher._look_home(0.0)
        assert the_launcher._desk.closing


def test_settling_tells_what_is_certain(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "run" / "begun").mkdir(parents=True)
    (home / "run" / "ended").mkdir()
    record = b'{"jid":"ended","serial":1,"attempt":1,"ended_at":5,"exit_code":3}'
    (home / "run" / "ended" / "exit.json").write_bytes(record)
    journal = Journal(str(home))
    journal.replay(process.boot_id())
    for n, jid in enumerate(("begun", "ended", "never")):
        journal.intend(intent(jid, process.MARK_BASE + n))
    journal.helper(2**22 + 1, 1)  # no process has this pid
    journal.sync()
    journal.close()
    with launcher(home) as the_launcher:
        the_launcher.settle()
    found = ends(home)
    assert (found["ended"].exit_code, found["ended"].proof) == (3, "exit_record")
    assert (found["begun"].exit_code, found["begun"].proof) == (None, "launcher_lost")
    assert (found["never"].began, found["never"].proof) == (False, "never_claimed")
    assert found["never"].reason is Reason.START_FAILED


def test_what_comes_behind_the_word_to_stop_does_not_begin(tmp_path: Path) -> None:
    """It was begun and ended in one breath, and shown as killed by its own signal (found by `bin/sim`)."""
    with launcher(tmp_path / "home") as the_launcher:
        run = Run(
            jid="j", serial=1, attempt=1, op_id=1, command=["true"], run_dir="j/1", spec=msgspec.Raw(b"{}")
        )
        the_launcher._desk.hear_supervisor(FromRelay(msgs=[Stop(), run]))
        the_launcher._desk.decide(time.monotonic())
        the_launcher._desk.sync()
        assert the_launcher._desk.live == 0
    exited = ends(tmp_path / "home")["j"]
    assert (exited.began, exited.stopped, exited.reason) == (False, False, Reason.DRAINING)


def test_a_launcher_killed_while_it_recovers_leaves_word_of_whom_it_killed(tmp_path: Path) -> None:
    """Its successor found signal 9 in the exit record and called it the job's own (found by `bin/sim`)."""
    home = tmp_path / "home"
    run_dir = home / "run" / "j"
    run_dir.mkdir(parents=True)
    mark = process.MARK_BASE + 77
    env = os.environ | {process.MARK_ENV: str(mark)}
    with (
        subprocess.Popen(["sleep", "600"], env=env) as job,
        subprocess.Popen(["sleep", "600"]) as old_spawner,
    ):
        try:
            journal = Journal(str(home))
            journal.replay(process.boot_id())
            journal.intend(intent("j", mark))
            journal.helper(old_spawner.pid, start_of(old_spawner.pid))
            journal.sync()
            journal.close()
            with launcher(home) as first, pytest.MonkeyPatch.context() as patch:
                patch.setattr(first._desk._journal, "sync", lambda: False)
                assert first._recovery.step() == []
                assert job.poll() is None, "nobody is killed before that is written down"
                patch.undo()
                assert first._recovery.step() == []
                assert job.wait() == -signal.SIGKILL
            # what the old spawner writes when it has waited for it, while no launcher is there
            record = b'{"jid":"j","serial":1,"attempt":1,"ended_at":5,"signal":9}'
            (run_dir / "exit.json").write_bytes(record)
        finally:
            job.kill()
            old_spawner.kill()
    with launcher(home) as second:
        second.settle()
    found = ends(home)["j"]
    assert (found.exit_code, found.signal, found.proof) == (None, None, "launcher_lost")
    assert found.reason is Reason.AGENT_LOST


def test_after_a_reboot_everything_is_told_at_once_and_the_journal_is_of_this_boot(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    journal = Journal(str(home))
    past = journal.replay("an earlier boot")
    journal.intend(intent("j", process.MARK_BASE))
    # Of another boot: that this pid lives now means nothing.
    journal.helper(os.getpid(), process.Stat("S", 0, 0, 0).start)
    journal.sync()
    journal.close()
    with launcher(home) as the_launcher:
        assert the_launcher.install == past.install
    assert ends(home)["j"].proof == "boot_changed"
    assert ends(home)["j"].reason is Reason.NODE_FAILED
    again = Journal(str(home))
    assert again.replay("x").boot_id == process.boot_id()
    again.close()


def spawn(ticket: int) -> Spawn:
    return Spawn(ticket=ticket, mark=1, jid="j", serial=1, attempt=1, command=[], run_dir="r")


def test_full_disk_lets_nothing_begin_and_everything_end() -> None:
    crew = Crew.__new__(Crew)
    place = Place()
    crew.places = [place]
    place.words = [spawn(1), Kill(ticket=2, grace_secs=1), Go(ticket=3), Kill(ticket=1, grace_secs=1)]
    place.words += [Pause(ticket=3, on=True), Pause(ticket=4, on=True)]

    sent: list[bytes] = []

    class Lane:
        pending = 0
        closed = True

        def put(self, payload: bytes) -> None:
            sent.append(payload)

        def flush(self) -> None:
            pass

    place.lane = Lane()  # type: ignore[assignment]
    crew._poll = None  # type: ignore[assignment]
    crew.flush(begin=False)
    (frame,) = sent
    assert [word["type"] for word in msgspec.msgpack.decode(frame)] == ["kill", "pause"]
    assert [type(word) for word in place.words] == [Spawn, Go, Kill, Pause]
    crew.flush()
    assert len(msgspec.msgpack.decode(sent[1])) == 4
    assert place.words == []


def test_back_off_grows_to_its_end() -> None:
    back_off = BackOff()
    for _ in range(20):
        back_off.started()
        back_off.died()
    assert LAST_SECS - 1 < back_off.due - time.monotonic() <= LAST_SECS
