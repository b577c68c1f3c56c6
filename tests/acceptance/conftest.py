"""A real system, started as a user starts it."""

import contextlib
import hashlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from sirepo_jobs import rootdir
from sirepo_jobs.client import Client

COMMAND = [sys.executable, "-m", "sirepo_jobs.cli"]


class System:
    """`sirepo-jobs up` on a root of its own."""

    def __init__(self, root: Path, **environ: str) -> None:
        self.root = root
        self.environ = {k: v for k, v in os.environ.items() if not k.startswith("SIREPO_JOBS_")}
        self.environ |= {"SIREPO_JOBS_ROOT": str(root), **environ}
        self._up: subprocess.Popen[bytes] | None = None

    def up(self) -> None:
        """Start, and return when it says that it listens."""
        with (self.root.parent / f"{self.root.name}.log").open("ab") as log:
            self._up = subprocess.Popen(
                [*COMMAND, "up", "--port", "0"],
                env=self.environ,
                stdout=subprocess.PIPE,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )
        assert self._up.stdout is not None
        ready, _, _ = select.select([self._up.stdout], [], [], 60)
        line = self._up.stdout.readline().decode() if ready else ""
        assert line.startswith("listening on "), self.log()
        self.url = line.split()[-1]

    def up_or_stay(self) -> None:
        """Start if it is down: only a running system can end its agents."""
        if self._up is None:
            self.up()

    def log(self) -> str:
        """What it said, for a failure's message."""
        return (self.root.parent / f"{self.root.name}.log").read_text()[-4000:]

    def down(self, *args: str) -> None:
        """Stop the doors (`sirepo-jobs down ARGS`), and return when they are closed; safe to repeat."""
        if self._up is None:
            return
        self.cli("down", *args, check=False)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._up.wait(30)
        if self._up.poll() is None:
            self._up.kill()
            self._up.wait()
        assert self._up.stdout is not None
        self._up.stdout.close()
        self._up = None

    def crash(self) -> None:
        """KILL to both doors at once: nobody says goodbye, and nobody is started again."""
        assert self._up is not None
        pids = [
            eventually(lambda path=self.root / f"{name}.pid": rootdir.running_pid(path))
            for name in ("supervisor", "frontend")
        ]
        self._up.send_signal(signal.SIGSTOP)  # it would start them again
        handles = [os.pidfd_open(pid) for pid in pids]
        for handle in handles:
            signal.pidfd_send_signal(handle, signal.SIGKILL)
        for handle in handles:
            assert select.select([handle], [], [], 60)[0], "it does not die"
            os.close(handle)
        self._up.kill()
        self._up.wait()
        self.down()

    def cli(self, *args: str, check: bool = True, **kwargs: Any) -> subprocess.CompletedProcess[bytes]:
        """Run a command as a user does."""
        done = subprocess.run([*COMMAND, *args], env=self.environ, capture_output=True, timeout=100, **kwargs)
        assert not check or done.returncode == 0, (args, done.returncode, done.stdout, done.stderr)
        return done

    def client(self) -> Client:
        """The Python client, as the starter."""
        return Client(self.url, (self.root / "token").read_text().strip())

    def pid(self, name: str) -> int:
        """Of `supervisor` or `frontend`; 0 while it is being started."""
        with contextlib.suppress(FileNotFoundError):
            return int((self.root / f"{name}.pid").read_text() or 0)
        return 0

    def agents(self) -> list[psutil.Process]:
        """Launchers with everything below them that is ours (jobs excluded by their command line)."""
        found = []
        for path in self.root.glob("agents/*/launcher.json"):
            with contextlib.suppress(psutil.NoSuchProcess):
                launcher = psutil.Process(json.loads(path.read_text())["pid"])
                found += [
                    launcher,
                    *(
                        p
                        for p in launcher.children(recursive=True)
                        if "sirepo_jobs.agents" in " ".join(p.cmdline())
                    ),
                ]
        return found

    def rss(self, pid: int) -> int:
        """Resident bytes of a process."""
        return psutil.Process(pid).memory_info().rss


def marked(word: str) -> list[int]:
    """Processes that have `word` in their command line, zombies excluded."""
    found = []
    for process in psutil.process_iter(["pid", "cmdline", "status"]):
        if word in " ".join(process.info["cmdline"] or []) and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process.info["pid"])
    return found


def eventually(what: Callable[[], Any], secs: float = 60.0) -> Any:
    """Wait for something outside our processes that sends no event."""
    end = time.monotonic() + secs
    while not (found := what()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)
    return found


def sha256(chunks: Any) -> tuple[int, str]:
    """Length and digest of a stream."""
    digest, size = hashlib.sha256(), 0
    for chunk in chunks:
        digest.update(chunk)
        size += len(chunk)
    return size, digest.hexdigest()


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    it = System(tmp_path_factory.mktemp("system") / "root")
    it.up()
    yield it
    it.up_or_stay()
    it.down("--stop-agents")


@pytest.fixture
def own_system(tmp_path: Path) -> Iterator[System]:
    it = System(tmp_path / "root")
    it.up()
    yield it
    it.up_or_stay()
    it.down("--stop-agents")
