"""The units for systemd: it takes them, and they let jobs live."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from sirepo_jobs import settings
from sirepo_jobs.cli import up

ETC = Path(__file__).parents[2] / "etc"
PROGRAM = "/opt/sirepo-jobs/bin/sirepo-jobs"


@pytest.mark.real("systemd")
def test_systemd_takes_the_units(tmp_path: Path) -> None:
    """The real one's own word, with a program where the units expect one."""
    if shutil.which("systemd-analyze") is None:
        if os.environ.get("CI") == "true":
            pytest.fail("systemd-analyze is missing (Debian: apt-get install systemd)")
        pytest.skip("systemd-analyze is missing")
    units = sorted((ETC / "systemd").iterdir())
    assert [unit.suffix for unit in units] == [".service", ".timer", ".service"]
    for unit in units:
        (tmp_path / unit.name).write_text(unit.read_text().replace(PROGRAM, "/bin/true"))
    environ = {**os.environ, "SYSTEMD_UNIT_PATH": f"{tmp_path}:"}
    names = [str(tmp_path / unit.name) for unit in units]
    done = subprocess.run(["systemd-analyze", "verify", *names], env=environ, capture_output=True, text=True)
    ours = [line for line in done.stderr.splitlines() if "sirepo-jobs" in line]
    assert (done.returncode, ours) == (0, [])
    # it would have noticed
    (tmp_path / "sirepo-jobs.service").write_text("[Service]\nExecStart=/bin/true\nKillMood=process\n")
    done = subprocess.run(
        ["systemd-analyze", "verify", names[-1]], env=environ, capture_output=True, text=True
    )
    assert "KillMood" in done.stderr


def test_the_unit_lets_agents_live_and_waits_for_the_doors() -> None:
    unit = dict(
        line.split("=", 1)
        for line in (ETC / "systemd/sirepo-jobs.service").read_text().splitlines()
        if re.match(r"[A-Z]\w+=", line)
    )
    assert unit["KillMode"] == "process"
    assert unit["OOMPolicy"] == "continue"
    assert int(unit["TimeoutStopSec"]) > up._FRONTEND_END_SECS + up._SUPERVISOR_END_SECS + 5
    config = settings.load({}, {}, ETC / "sirepo-jobs/config.toml").settings
    assert f"/var/lib/{unit['StateDirectory']}" == str(config.root)
    # what would be taken from jobs that live on
    assert not {"PrivateTmp", "RemoveIPC"} & set(unit)
