"""The service under test: `sirepo-jobs up` on a root of its own, its processes, the proxy before it."""

import contextlib
import json
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sirepo_jobs.client import Client
from tests.chaos.proxy import Proxy

HERE = Path(__file__).parent
COMMAND = [sys.executable, "-P", "-m", "sirepo_jobs.cli"]
#: Who can be killed.
ROLES = ("supervisor", "frontend", "agent", "launcher", "spawner")
_WAIT_SECS = 90.0


class World:
    """Everything that is started, and where it lies; `close` leaves nothing running."""

    def __init__(
        self,
        directory: Path | None = None,
        *,
        cpus: int = 4,
        heartbeat_secs: float = 1.0,
        seed: int = 0,
        armed: bool = True,
        database_url: str | None = None,
    ) -> None:
        # Short, since the path of a socket may have 107 bytes only.
        self.path = Path(tempfile.mkdtemp(prefix="sjc-", dir=directory))
        self.root = self.path / "root"
        self.cpus = cpus
        self.seed = seed
        self.proxy = Proxy()
        self.agents_link = self.proxy.unix(
            "agents", f"{self.path}/agents.sock", f"{self.root}/supervisor.sock", seed
        )
        self.environ = {k: v for k, v in os.environ.items() if not k.startswith("SIREPO_JOBS_")}
        self.environ |= {
            "SIREPO_JOBS_ROOT": str(self.root),
            "SIREPO_JOBS_AGENT_SOCKET": f"{self.path}/agents.sock",
            "SIREPO_JOBS_LOCAL_CPUS": str(cpus),
            "SIREPO_JOBS_HEARTBEAT_SECS": str(heartbeat_secs),
            "SIREPO_JOBS_RATE_PER_SEC": "0",
        }
        #: Where the store is; SQLite in the root unless said.
        self.database_url = database_url or f"sqlite:///{self.root}/jobs.db"
        self.has_server = database_url is not None
        if database_url is not None:
            self.environ["SIREPO_JOBS_DATABASE_URL"] = database_url
        self.armed = self.path / "armed"
        (self.armed / "fire").mkdir(parents=True)
        if armed:
            shutil.copy(HERE / "armed.py", self.armed / "sitecustomize.py")
            self.environ["PYTHONPATH"] = ":".join(
                filter(None, (str(self.armed), os.environ.get("PYTHONPATH")))
            )
        self.witness_dir = self.path / "witness"
        (self.witness_dir / "locks").mkdir(parents=True)
        self.witness = [sys.executable, "-I", "-S", str(HERE / "witness.py"), str(self.witness_dir)]
        self._up: subprocess.Popen[bytes] | None = None
        self.port = 0

    # -- starting and ending

    def up(self) -> None:
        """Start, and return when it says that it listens."""
        with (self.path / "up.log").open("ab") as log:
            self._up = subprocess.Popen(
                [*COMMAND, "up", "--port", str(self.port)],
                env=self.environ,
                stdout=subprocess.PIPE,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        assert self._up.stdout is not None
        look = select.poll()  # `select` takes no descriptor above 1023, and a long run may have more
        look.register(self._up.stdout, select.POLLIN)
        ready = look.poll(_WAIT_SECS * 1000)
        line = self._up.stdout.readline().decode() if ready else ""
        assert line.startswith("listening on "), self.log()
        self.url = line.split()[-1]
        self.port = int(self.url.rpartition(":")[2])
        self.token = (self.root / "token").read_text().strip()
        if "clients" not in self.proxy.links:
            self.clients_link, self.proxy_port = self.proxy.tcp("clients", self.port, self.seed + 1)

    def client(self, token: str | None = None, *, direct: bool = False, patience_secs: float = 60) -> Client:
        """The Python client, through the proxy unless `direct`."""
        url = self.url if direct else f"http://127.0.0.1:{self.proxy_port}"
        return Client(url, token or self.token, patience_secs=patience_secs)

    def cli(self, *args: str) -> subprocess.CompletedProcess[bytes]:
        """A command on this root."""
        return subprocess.run([*COMMAND, *args], env=self.environ, capture_output=True, timeout=200)

    def down(self, *args: str) -> None:
        """`sirepo-jobs down`; safe to repeat."""
        if self._up is None:
            return
        done = self.cli("down", *args)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._up.wait(60)
        if self._up.poll() is None:
            self._up.kill()
            self._up.wait()
        assert self._up.stdout is not None
        self._up.stdout.close()
        self._up = None
        assert done.returncode == 0, (done.stdout, done.stderr, self.log())

    def close(self, *, keep: bool = False) -> None:
        """End whatever runs, agents and jobs included; remove the files unless `keep`."""
        try:
            if self._up is not None:
                self.down("--stop-agents")
        finally:
            for role in ("launcher", "spawner", "agent"):
                for pid in self.pids(role):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            self.proxy.close()
            if not keep:
                shutil.rmtree(self.path, ignore_errors=True)

    def log(self) -> str:
        """What the service said last."""
        path = self.path / "up.log"
        return path.read_text(errors="replace")[-6000:] if path.exists() else ""

    # -- processes

    def pids(self, role: str) -> list[int]:
        """Who has that role now; nobody while it is being started."""
        if role in ("supervisor", "frontend"):
            with contextlib.suppress(OSError, ValueError):
                pid = int((self.root / f"{role}.pid").read_text())
                if str(self.root) in _cmdline(pid):
                    return [pid]
            return []
        if role == "database":
            return self._server_pids()
        launchers = []
        for path in self.root.glob("agents/*/launcher.json"):
            with contextlib.suppress(OSError, ValueError):
                found = json.loads(path.read_text())
                if _start_of(found["pid"]) == found["start"]:
                    launchers.append(found["pid"])
        if role == "launcher":
            return launchers
        name = {"agent": "sj-agent", "spawner": "sj-spawner"}[role]
        return [pid for one in launchers for pid in _children(one) if _comm(pid) == name]

    def _server_pids(self) -> list[int]:
        """Of the database server: its sessions, and what it has in the background."""
        home = self.database_url.rpartition("?host=")[2]
        with contextlib.suppress(OSError, ValueError):
            return _children(int(Path(home, "data/postmaster.pid").read_text().split()[0]))
        return []

    def strike(self, role: str, number: signal.Signals, rng: random.Random) -> int:
        """Send a signal to one of that role; its pid, or 0 when there was none."""
        pids = sorted(self.pids(role))
        if not pids:
            return 0
        pid = rng.choice(pids)
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return 0
        return pid

    def fire(self, point: str, act: str) -> None:
        """Whoever comes to the failpoint next does `act`: `kill`, or `sleep SECS`."""
        part = self.armed / f"{point}.part"
        part.write_text(act)
        part.rename(self.armed / "fire" / point)

    def disarm(self) -> None:
        """Nothing fires any more."""
        for path in (self.armed / "fire").iterdir():
            path.unlink(missing_ok=True)

    def noted(self, file: str) -> list[str]:
        """Failpoints that were `passed` or `fired`, in order."""
        path = self.armed / file
        return path.read_text().splitlines() if path.exists() else []

    # -- facts

    def truth(self) -> list[list[str]]:
        """What the witnesses wrote."""
        path = self.witness_dir / "truth"
        return [line.split() for line in path.read_text().splitlines()] if path.exists() else []

    def left(self) -> dict[int, str]:
        """Processes of witnesses that live."""
        found = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                line = _cmdline(int(entry.name))
                # Daemons name themselves after their key, which begins with the directory's name.
                if str(self.witness_dir) in line or f"witness-{self.path.name}" in line:
                    found[int(entry.name)] = line
        return found


def eventually(what: Callable[[], Any], secs: float, why: str) -> Any:
    """Wait for something that sends no event to us."""
    end = time.monotonic() + secs
    while not (found := what()):
        if time.monotonic() > end:
            raise TimeoutError(f"not within {secs:g} s: {why}")
        time.sleep(0.05)
    return found


@contextlib.contextmanager
def world(**options: Any) -> Iterator[World]:
    """A world that is up; closed at the end, and kept for a look if something failed."""
    it = World(**options)
    try:
        it.up()
        yield it
    except BaseException:
        sys.stderr.write(f"{it.log()}\n")
        raise
    finally:
        it.close()


def _cmdline(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""


def _comm(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def _children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def _start_of(pid: int) -> int:
    with contextlib.suppress(OSError, ValueError):
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return int(fields[19]) if fields[0] not in "ZX" else 0
    return 0
