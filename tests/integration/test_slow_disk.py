"""A disk that takes two seconds for each sync (F094)."""

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.conftest import System, eventually

SYNC_SECS = 2.0
#: An agent at work is thought dead after two of them, which is less than one sync takes.
HEARTBEAT_SECS = 0.9


@pytest.fixture
def system(tmp_path: Path) -> Iterator[System]:
    it = System(tmp_path / "root", SIREPO_JOBS_HEARTBEAT_SECS=str(HEARTBEAT_SECS))
    it.up()
    yield it
    it.down("--stop-agents")


def test_a_slow_disk_slows_promises_and_nothing_else(system: System, tmp_path: Path) -> None:
    """What must be kept waits for the disk; reading, live output and heartbeats do not."""
    client = system.client()
    runs = client.submit({"command": ["sh", "-c", "while :; do echo tick; sleep 0.1; done"]}).jid
    eventually(lambda: client.get(runs).state == "running", 60)
    agents = lambda: client.transport.call("GET", "/api/v1/agents")["agents"]  # noqa: E731
    before = agents()
    inject = f"inject=fsync,fdatasync:delay_enter={int(SYNC_SECS * 1e6)}"
    words = ["strace", "-f", "-qq", "-o", "/dev/null", "-p", str(system.pid("supervisor")),
             "-e", "trace=fsync,fdatasync", "-e", inject]  # fmt: skip
    try:
        tracer = subprocess.Popen(words, stderr=subprocess.DEVNULL)
    except FileNotFoundError:
        pytest.skip("strace is not installed")
    try:
        traced = lambda: "TracerPid:\t0" not in Path(f"/proc/{system.pid('supervisor')}/status").read_text()  # noqa: E731
        eventually(lambda: tracer.poll() is not None or traced(), 60)
        if tracer.poll() is not None:
            pytest.skip("no process may be traced here")
        began = time.monotonic()
        slow = [client.submit({"command": ["true"]}).jid for _ in range(2)]
        assert time.monotonic() - began >= 2 * SYNC_SECS
        looks = []
        for _ in range(20):
            began = time.monotonic()
            assert client.get(runs).state == "running"
            length = len(b"".join(client.logs(runs, follow=False)))
            looks.append(time.monotonic() - began)
            time.sleep(0.1)
        assert sorted(looks)[10] < SYNC_SECS / 2
        # In the time between two syncs it has gone on; the job itself may be slow.
        eventually(lambda: len(b"".join(client.logs(runs, follow=False))) > length, 60)
        assert [client.wait(jid, timeout=60).state for jid in slow] == ["completed"] * 2
        # Longer than two heartbeats have passed several times over: nobody was thought dead.
        assert [(a["agent"], a["state"]) for a in agents()] == [(a["agent"], a["state"]) for a in before]
    finally:
        tracer.terminate()
        tracer.wait()
    assert client.cancel(runs).state in ("canceling", "canceled")
    assert "no sign of life" not in system.log()
