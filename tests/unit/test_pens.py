"""The fence around an attempt: its spawner stands in it while it is the newest, and no longer (F050)."""

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from sirepo_jobs.agents import pens as pens_of
from sirepo_jobs.agents import process
from sirepo_jobs.agents.lane import Lane, lane_pair
from sirepo_jobs.agents.nursery import room_for
from sirepo_jobs.agents.pens import Pens
from sirepo_jobs.agents.slate import Slate
from sirepo_jobs.agents.spawner import RETRY_SECS, Spawner
from sirepo_jobs.agents.words import Spawn, pack
from sirepo_jobs.driver import AgentSpec, Environment

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def fail(*_: object) -> None:
    raise FULL


def here() -> str | None:
    return process.cgroup_of(os.getpid(), "pids")


@pytest.fixture
def pens() -> Iterator[Pens]:
    if not os.access("/sys/fs/cgroup/pids/tasks", os.W_OK):
        pytest.skip("no pids cgroup (version 1) can be made here")
    made = Pens(f"test{os.getpid()}")
    yield made
    made.close()


def test_where_no_pen_can_be_made_the_next_one_is_not_born_in_the_one_before(
    pens: Pens, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = here()
    for error in (FULL, OSError(errno.EROFS, os.strerror(errno.EROFS))):
        assert pens.enter(5) is not None
        assert here() != home

        def refuse(*_: object, error: OSError = error) -> None:
            raise error

        monkeypatch.setattr(os, "mkdir", refuse)
        assert pens.enter(5) is None
        monkeypatch.undo()
        assert here() == home
    # It was told that this can never be: it is not tried again, and still nobody is born elsewhere.
    assert pens.enter(5) is None
    assert here() == home


def test_who_cannot_leave_a_pen_says_so(pens: Pens, monkeypatch: pytest.MonkeyPatch) -> None:
    home = here()
    for limit in (5, None):
        assert pens.enter(5) is not None
        monkeypatch.setattr(pens_of, "_write", fail)
        with pytest.raises(OSError, match="No space"):
            pens.enter(limit)
        monkeypatch.undo()
        assert here() != home
        assert pens.enter(None) is None
        assert here() == home


def test_who_stands_in_a_pen_does_not_step_into_it_again(pens: Pens, monkeypatch: pytest.MonkeyPatch) -> None:
    """One short attempt after the other is born in one pen: a step costs what three files cost."""
    home = here()
    pen = pens.enter(5)
    assert pen is not None
    inside = here()
    pens.empty(pen)
    monkeypatch.setattr(pens_of, "_write", fail)
    assert pens.enter(5) is pen
    assert here() == inside != home
    monkeypatch.undo()
    pens.empty(pen)
    assert pens.enter(None) is None
    assert here() == home
    assert pens.enter(5) is pen
    assert here() == inside


def test_the_spawner_itself_is_not_counted(pens: Pens) -> None:
    first = pens.enter(room_for(2))
    assert first is not None
    assert first.count() == 0
    with subprocess.Popen(["/bin/sleep", "1000"]) as one, subprocess.Popen(["/bin/sleep", "1000"]) as two:
        try:
            assert first.count() == 2
            second = pens.enter(2)
            assert second is not None
            assert (first.count(), second.count()) == (2, 0)
            pens.enter(None)
            assert (first.count(), second.count()) == (2, 0)
        finally:
            one.kill()
            two.kill()


def test_nothing_begins_in_the_pen_of_another_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is tried again, as where no process can be made."""
    monkeypatch.setattr(Pens, "enter", fail)
    spec = AgentSpec(
        agent="a1",
        environment=Environment(driver="local", user="u"),
        url="unix:none",
        token="t",
        home=str(tmp_path),
        run_root=str(tmp_path),
    )
    ours, theirs = lane_pair()
    launcher = Lane(ours)
    spawner = Spawner(spec, Lane(theirs), Slate(), Pens("a1"))
    launcher.put(pack([Spawn(ticket=1, mark=2, jid="j", serial=1, attempt=1, command=["true"], run_dir="j")]))
    launcher.flush()
    spawner._hear(hung_up=False)
    assert os.listdir(tmp_path) == []
    timeout_ms = spawner.timeout_ms()
    assert timeout_ms is not None
    assert timeout_ms <= RETRY_SECS[0] * 1000 + 1
    for one in (launcher, spawner._lane, spawner._waker, spawner._wake, spawner._nursery, spawner._slate):
        one.close()
