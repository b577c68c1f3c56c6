"""`up` and `down` with everything real: processes come, crash, come back and go; jobs do not notice."""

import contextlib
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import urllib3

import sirepo_jobs
from sirepo_jobs import rootdir
from sirepo_jobs.client import Client

LONG = 60
#: Who is refused is told at once: much less than the minute that `up` waits for its doors, on any machine.
AT_ONCE_SECS = 30


def until(condition: Callable[[], object], what: str) -> None:
    """Other processes have no event for us: look again until something is so."""
    deadline = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < deadline, f"not within {LONG} s: {what}"
        time.sleep(0.02)


class Gate:
    """A job of the shell that waits, while it runs, until the test lets it go on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        os.mkfifo(path)

    @property
    def wait(self) -> str:
        """In the shell."""
        return f"read word < {self.path}"

    def open(self) -> None:
        """Say so once; a job that has not come to it yet is waited for, as the shell's own pipes do."""
        self.path.write_text("go\n")


class House:
    """A root, and whatever was started on it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.environ = {k: v for k, v in os.environ.items() if not k.startswith("SIREPO_JOBS_")}
        self.environ["SIREPO_JOBS_ROOT"] = str(root)
        self.ups: list[subprocess.Popen[str]] = []

    def words(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "sirepo_jobs.cli", *words]

    def run(self, *words: str, secs: float = LONG) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.words(*words), env=self.environ, capture_output=True, text=True, timeout=secs, check=False
        )

    def up(self, *words: str, before: Sequence[str] = ()) -> subprocess.Popen[str]:
        """`before`: a program that starts it, in words."""
        up = subprocess.Popen(
            [*before, *self.words("up", "--port", "0", "--log-level", "warning", *words)],
            env=self.environ,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.ups.append(up)
        assert up.stdout is not None
        assert up.stdout.readline().startswith("listening on http://127.0.0.1:")
        return up

    def pid(self, name: str) -> int:
        return rootdir.running_pid(self.root / f"{name}.pid") or 0

    def until_running(self, jid: str) -> None:
        """Also for whoever asks again: `ps` and `show` say that it runs."""
        until(lambda: json.loads(self.run("show", jid, "-o", "json").stdout)["state"] == "running", "it runs")

    def processes(self) -> list[str]:
        """Command lines of all that speak of this root."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal():
                try:
                    line = (entry / "cmdline").read_bytes()
                    told = (entry / "environ").read_bytes()
                except OSError:
                    continue
                if str(self.root).encode() in line + told and int(entry.name) != os.getpid():
                    found.append(line.decode("utf-8", "replace").replace("\0", " "))
        return found

    def is_ready(self) -> bool:
        """The front end says that the supervisor can do all that it is asked."""
        found = rootdir.read_listening(self.root)
        assert found is not None
        with contextlib.suppress(urllib3.exceptions.HTTPError):
            return urllib3.request("GET", f"{found.url}/readyz", retries=False).status == 200
        return False

    def is_open(self) -> bool:
        """The supervisor's own door."""
        folder = os.open(self.root, os.O_PATH)  # test directories have long names
        try:
            with socket.socket(socket.AF_UNIX) as line:
                return line.connect_ex(f"/proc/self/fd/{folder}/{rootdir.SOCKET}") == 0
        finally:
            os.close(folder)

    def end(self) -> None:
        if self.pid("supervisor"):
            self.run("down", "--stop-agents")
        for up in self.ups:
            up.kill()
            up.wait()
            if up.stdout is not None:
                up.stdout.close()


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    it = House(tmp_path / "root")
    yield it
    it.end()


def test_from_up_to_down(house: House) -> None:
    up = house.up("--cpus", "2")
    assert {
        path.name: path.stat().st_mode & 0o777 for path in house.root.iterdir() if path.is_file()
    }.items() >= {
        "token": 0o600,
        "secret": 0o600,
        "jobs.db": 0o600,
        "up.pid": 0o600,
        "supervisor.pid": 0o600,
        "frontend.pid": 0o600,
    }.items()
    assert house.root.stat().st_mode & 0o777 == 0o700

    told = house.run("run", "--", "sh", "-c", "printf abc; printf err >&2; exit 3")
    assert (told.returncode, told.stdout) == (3, "abc")
    assert told.stderr == "err"
    assert house.run("run", "--time-limit", "0.3", "sleep", "100").returncode == 124
    assert house.run("run", "--", "no-such-program").returncode == 127
    assert house.run("run", "--", "/etc/passwd").returncode == 126
    assert house.run("run", "--", "sh", "-c", "kill -9 $$").returncode == 137
    told = house.run("run", "--max-attempts", "3", "--", "sh", "-c", "echo try $SIREPO_JOBS_ATTEMPT; exit 7")
    assert (told.returncode, told.stdout) == (7, "try 1\ntry 2\ntry 3\n")
    # A job may use the command line itself: what it finds in its environment is no misspelled setting.
    where = Path(sirepo_jobs.__file__).parents[1]
    gate = Gate(house.root.parent / "gate")
    words = f"{gate.wait}; exec {sys.executable} -m sirepo_jobs.cli ps --root {house.root}"
    inside = house.run("submit", "-e", f"PYTHONPATH={where}", "--", "sh", "-c", words).stdout.strip()
    house.until_running(inside)
    gate.open()
    assert house.run("wait", inside).returncode == 0
    assert "running" in house.run("logs", inside).stdout
    assert house.run("doctor").returncode == 0
    states = [job["state"] for job in json.loads(house.run("ps", "-a", "-o", "json").stdout)]
    assert len(states) == 7

    assert house.run("down", "--stop-agents").returncode == 0
    assert up.wait(LONG) == 0
    until(lambda: not house.processes(), "nothing is left")
    assert house.run("down").stdout.startswith("nothing is running")
    told = house.run("ps")
    assert told.returncode == 69


def test_secrets_stand_in_no_command_line(house: House) -> None:
    house.up()
    house.run("run", "true")
    secrets = [(house.root / name).read_text().strip() for name in ("token", "secret")]
    lines = house.processes()
    assert lines
    assert not [line for line in lines for secret in secrets if secret in line]


def test_one_root_has_one_of_each(house: House) -> None:
    up = house.up()
    began = time.monotonic()
    second = house.run("up", "--port", "0")
    assert (second.returncode, f"pid {up.pid}" in second.stderr) == (5, True)
    alone = house.run("supervisor")
    assert alone.returncode != 0
    assert str(house.pid("supervisor")) in alone.stderr
    assert time.monotonic() - began < AT_ONCE_SECS
    assert house.run("frontend", "--port", "0").returncode == 5
    assert house.run("run", "true").returncode == 0


def test_up_names_who_holds_the_root(house: House) -> None:
    house.root.mkdir()
    alone = subprocess.Popen(house.words("supervisor", "--log-level", "error"), env=house.environ)
    try:
        until(lambda: house.pid("supervisor"), "the supervisor alone is there")
        began = time.monotonic()
        told = house.run("up", "--port", "0")
        assert told.returncode == 1
        assert f"pid {alone.pid}" in told.stderr
        assert "the supervisor did not start" in told.stderr
        assert time.monotonic() - began < AT_ONCE_SECS
        assert house.pid("frontend") == 0
    finally:
        alone.send_signal(signal.SIGTERM)
        assert alone.wait(LONG) == 0


def test_a_port_that_is_taken_is_named(house: House) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        told = house.run("up", "--port", str(port))
    assert told.returncode == 1
    assert f"127.0.0.1:{port}" in told.stderr
    assert "--port" in told.stderr


def test_crashes_of_the_doors_are_mended_and_jobs_do_not_notice(house: House) -> None:
    house.up()
    client = Client.from_environment(house.root, patience_secs=LONG)
    gate = Gate(house.root.parent / "gate")
    lines = "while [ $i -lt {} ]; do echo line $i; i=$((i+1)); sleep 0.05; done"
    script = f"i=0; {lines.format(30)}; {gate.wait}; {lines.format(60)}"
    with client:
        jid = client.submit({"command": ["sh", "-c", script]}).jid
        log = client.logs(jid, follow=True)
        got = next(log)
        url = rootdir.read_listening(house.root)
        for name in ("frontend", "supervisor"):
            pid = house.pid(name)
            os.kill(pid, signal.SIGKILL)
            until(lambda name=name, pid=pid: house.pid(name) not in (0, pid), f"{name} comes back")  # type: ignore[misc]
        gate.open()
        got += b"".join(log)
        assert got == b"".join(b"line %d\n" % i for i in range(60))
        job = client.wait(jid)
        assert (job.state, job.exit_code, job.attempt) == ("completed", 0, 1)
    again = rootdir.read_listening(house.root)
    assert url is not None
    assert again is not None
    assert again.url == url.url  # clients have been told that address


def test_term_ends_the_doors_and_leaves_the_jobs(house: House) -> None:
    up = house.up()
    gate = Gate(house.root.parent / "gate")
    jid = house.run("submit", "--", "sh", "-c", f"{gate.wait}; echo done").stdout.strip()
    house.until_running(jid)
    up.send_signal(signal.SIGTERM)
    assert up.wait(LONG) == 0
    assert (house.pid("supervisor"), house.pid("frontend"), house.pid("up")) == (0, 0, 0)
    assert any(str(gate.path) in line for line in house.processes())  # the agent and its job
    house.up()
    gate.open()
    assert house.run("wait", jid).returncode == 0
    assert house.run("logs", jid).stdout == "done\n"


def test_a_second_term_ends_a_supervisor_at_once(house: House) -> None:
    """F009: even one that waits for its store; what was accepted is there, and what runs goes on."""
    up = house.up()
    gate = Gate(house.root.parent / "gate")
    jid = house.run("submit", "--", "sh", "-c", f"{gate.wait}; echo done").stdout.strip()
    house.until_running(jid)
    pid = house.pid("supervisor")
    with contextlib.closing(sqlite3.connect(house.root / "jobs.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")  # nothing can be written, so it cannot end in order
        refused = subprocess.Popen(house.words("submit", "--", "true"), env=house.environ)
        until(lambda: not house.is_ready(), "it has something to write, and cannot")
        os.kill(pid, signal.SIGTERM)
        until(lambda: not house.is_open(), "it has heard the first")  # two that wait are one signal
        assert house.pid("supervisor") == pid
        os.kill(pid, signal.SIGTERM)
        until(lambda: house.pid("supervisor") != pid, "it is gone while its store is locked")
    until(lambda: house.run("ps").returncode == 0, "up has started the next one")
    assert refused.wait(LONG) in (0, 1, 69, 75)
    gate.open()
    assert house.run("wait", jid).returncode == 0
    assert house.run("logs", jid).stdout == "done\n"
    assert up.poll() is None


def test_when_up_is_killed_its_children_end_too(house: House) -> None:
    up = house.up()
    up.kill()
    up.wait()
    until(lambda: not (house.pid("supervisor") or house.pid("frontend")), "the doors end")
    house.up()
    assert house.run("run", "true").returncode == 0
