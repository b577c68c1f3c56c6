"""Versions of the agent on a cluster: which may go, and which somebody needs still."""

import fcntl
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from sirepo_jobs.agents import bundles, handover, process, slurm_files
from sirepo_jobs.agents.start import LauncherFile, read_launcher_file


class Root:
    """ROOT on a cluster; its versions are a minute apart, the last one is the newest."""

    def __init__(self, path: Path, *versions: str) -> None:
        self.path = path
        self.bundles = path / "bundles"
        for number, name in enumerate(versions):
            directory = self.bundles / name
            (directory / "bin").mkdir(parents=True)
            (directory / "bin/agent").touch()
            at = time.time() - 60 * (len(versions) - number)
            os.utime(directory, (at, at))

    def there(self) -> list[str]:
        return sorted(one.name for one in self.bundles.iterdir() if one.name != ".lock")

    def agent(self, name: str, **changes: Any) -> Path:
        """A home with a launcher that lives: this very process."""
        home = self.path / "agents" / name
        home.mkdir(parents=True)
        stat = process.stat_of(os.getpid())
        assert stat is not None
        said = {
            "agent": name,
            "pid": os.getpid(),
            "start": stat.start,
            "boot_id": process.boot_id(),
            "install": "",
            "node": handover.node(),
            **changes,
        }
        (home / "launcher.json").write_text(json.dumps(said))
        return home


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Root:
    monkeypatch.setattr(bundles, "own", lambda: "v5")
    return Root(tmp_path, "v1", "v2", "v3", "v4", "v5")


def test_this_one_and_the_one_before_stay(root: Root) -> None:
    root.agent("a", bundle="v5")
    assert sorted(bundles.tidy(str(root.path))) == ["v1", "v2", "v3"]
    assert root.there() == ["v4", "v5"]
    assert bundles.tidy(str(root.path)) == []


def test_what_a_living_agent_runs_from_stays(root: Root) -> None:
    root.agent("here", bundle="v1")
    root.agent("dead", bundle="v2", start=1)
    root.agent("of_another_boot", bundle="v2", boot_id="before")
    root.agent("on_another_node", bundle="v3", node="login2", start=1)
    assert bundles.tidy(str(root.path)) == ["v2"]


def test_what_waits_in_slurm_keeps_its_version(root: Root) -> None:
    """Its agent is a newer one, or gone; the job starts with what it was submitted with."""
    home = root.agent("a", bundle="v5")
    for token, version in (("sj-one", "v1"), ("sj-two", "v3")):
        (home / "slurm" / token).mkdir(parents=True)
        (home / "slurm" / token / "batch.json").write_text(json.dumps({"bundle": version, "tasks": []}))
    (home / "slurm/bells").mkdir()
    assert bundles.tidy(str(root.path)) == ["v2"]


@pytest.mark.parametrize(
    "said", [b"", b"{", b'{"agent": "a"}', b'{"bundle": "\xff"}', b'{"a":' + b"[" * 100_000]
)
def test_who_does_not_say_what_he_needs_may_need_anything(root: Root, said: bytes) -> None:
    home = root.agent("a", bundle="v5")
    (home / "launcher.json").write_bytes(said)
    assert bundles.tidy(str(root.path)) == []
    assert root.there() == ["v1", "v2", "v3", "v4", "v5"]


@pytest.mark.parametrize("said", [b"{", b'{"agent": "\xff"}', b'{"a":' + b"[" * 100_000])
def test_what_cannot_be_read_is_no_launcher_and_no_claim(tmp_path: Path, said: bytes) -> None:
    """On a shared file system others write, too; it keeps nobody from starting."""
    (tmp_path / "launcher.json").write_bytes(said)
    assert read_launcher_file(str(tmp_path)) is None
    assert not handover.is_ours(str(tmp_path))
    (tmp_path / slurm_files.CLAIM / "owner.json").parent.mkdir()
    (tmp_path / slurm_files.CLAIM / "owner.json").write_bytes(said)
    assert slurm_files.owner_of(str(tmp_path)) is None


def test_not_while_an_agent_starts_nor_twice_at_once(root: Root) -> None:
    with bundles.kept(str(root.path)), bundles.kept(str(root.path)):
        assert bundles.tidy(str(root.path)) == []
    with (root.bundles / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert bundles.tidy(str(root.path)) == []
    assert sorted(bundles.tidy(str(root.path))) == ["v1", "v2", "v3"]


def test_halves_go_when_they_are_old(root: Root) -> None:
    for name, age in ((".v9.young", 60), (".v8.old", 2 * 86400)):
        (root.bundles / name).mkdir()
        (root.bundles / name / "part").touch()
        os.utime(root.bundles / name, (time.time() - age, time.time() - age))
    bundles.tidy(str(root.path))
    assert root.there() == [".v9.young", "v4", "v5"]


def test_outside_of_a_bundle_nothing_is_removed(tmp_path: Path) -> None:
    root = Root(tmp_path, "v1", "v2", "v3")
    assert bundles.own() == ""
    assert bundles.tidy(str(tmp_path)) == []
    assert root.there() == ["v1", "v2", "v3"]
    # where there are no bundles an agent starts all the same
    with bundles.kept(str(tmp_path / "elsewhere")):
        assert not (tmp_path / "elsewhere").exists()


def test_a_launcher_says_what_it_runs_from() -> None:
    assert {"bundle", "node", "pid", "start", "boot_id"} <= set(LauncherFile.__struct_fields__)
    assert bundles.root_of("/home/ann/.sirepo_jobs/agents/x") == "/home/ann/.sirepo_jobs"
