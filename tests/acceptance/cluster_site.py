"""A service whose `sbatch` driver logs in to our own sshd; what tests of clusters do to it."""

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from sirepo_jobs import rootdir
from sirepo_jobs.cluster import ClusterPolicy
from tests.acceptance.conftest import System
from tests.bundle_stage import OUT


@contextlib.contextmanager
def site_of(path: Path, *policies: ClusterPolicy, **environ: str) -> Iterator[System]:
    """Up, with these clusters."""
    (path / "clusters").mkdir()
    for policy in policies:
        (path / f"clusters/{policy.name}.toml").write_text(toml_of(msgspec.to_builtins(policy)))
    (path / "r").mkdir()
    system = System(
        path / "r",
        SIREPO_JOBS_DRIVERS="local:sbatch",
        SIREPO_JOBS_CLUSTERS_DIR=str(path / "clusters"),
        SIREPO_JOBS_BUNDLE_DIR=str(OUT),
        SIREPO_JOBS_HEARTBEAT_SECS="1",
        **environ,
    )
    system.up()
    try:
        yield system
    finally:
        if not rootdir.running_pid(system.root / "supervisor.pid"):
            system.down()
            system.up()
        system.down("--stop-agents")


def toml_of(policy: dict[str, Any]) -> str:
    """A policy as its file says it."""
    return (
        "\n".join(f"{line}" for line in _lines("", {k: v for k, v in policy.items() if k != "name"})) + "\n"
    )


def _lines(table: str, values: dict[str, Any]) -> Iterator[str]:
    if table:
        yield f"[{table}]"
    for key, value in values.items():
        if not isinstance(value, dict):
            yield f"{key} = {json.dumps(value)}"
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _lines(f"{table}.{key}".strip("."), value)


def until(condition: Callable[[], object], what: str, secs: float = 150) -> None:
    """Other processes have no event for us: look again until something is so."""
    deadline = time.monotonic() + secs
    while not condition():
        assert time.monotonic() < deadline, f"not within {secs} s: {what}"
        time.sleep(0.05)
