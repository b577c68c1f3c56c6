"""A service without descriptors, and one whose log nobody takes: it goes on, and comes back by itself."""

import json
import mmap
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from sirepo_jobs import rootdir
from sirepo_jobs.client import Client
from tests.small_disk import fill, mounted

from .test_cli_up import House, until

FEW = 160


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    it = House(tmp_path / "root")
    yield it
    it.end()


def client_of(house: House) -> Client:
    return Client.from_environment(house.root)


def cpu_secs(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def knock(address: str | tuple[str, int], count: int, held: ExitStack) -> None:
    """So many connections that say nothing; refused ones are hung up on, not an error."""
    for _ in range(count):
        caller = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
        held.callback(caller.close)
        caller.settimeout(60)
        caller.connect(address)


def test_without_descriptors_those_who_are_there_are_served_and_then_everybody_again(house: House) -> None:
    """F014: 400 connections at each door of processes that may open 160 files."""
    house.up("--cpus", "2", before=["prlimit", f"--nofile={FEW}:{FEW}", "--"])
    client = client_of(house)
    (job,) = client.submit([{"command": ["sh", "-c", "echo begun; sleep 4; printf over"]}])
    followed = client.logs(job.jid, follow=True)
    assert b"begun" in next(followed)
    listening = rootdir.read_listening(house.root)
    assert listening is not None
    host, _, port = listening.url.rpartition("//")[2].partition(":")
    with ExitStack() as held:
        knock((host, int(port)), 400, held)
        knock(str(house.root / rootdir.SOCKET), 400, held)
        busy = {name: cpu_secs(house.pid(name)) for name in ("supervisor", "frontend")}
        time.sleep(1)  # of doing nothing, which is what is measured
        for name, before in busy.items():
            assert cpu_secs(house.pid(name)) - before < 0.5, f"the {name} turns in circles"
        assert b"".join(followed).endswith(b"over")
    until(lambda: client_of(house).get(job.jid).state == "completed", "answers again")
    (again,) = client_of(house).submit([{"command": ["true"]}])
    assert client_of(house).wait(again.jid).state == "completed"


def test_a_full_log_disk_stops_nothing_and_what_is_lost_is_counted(house: House, tmp_path: Path) -> None:
    """F096: the service runs jobs while its log cannot be written; the log goes on when there is room."""
    with mounted(tmp_path / "logs", "256k") as place:
        path = place / "log"
        with path.open("wb") as log:
            up = subprocess.Popen(
                [*house.words("up", "--port", "0", "--log-level", "debug"), "--log-format", "json"],
                env=house.environ, stdout=subprocess.PIPE, stderr=log, text=True,
            )  # fmt: skip
        house.ups.append(up)
        assert up.stdout is not None
        assert up.stdout.readline().startswith("listening on")
        until(lambda: path.stat().st_size > 0, "a line of the log")
        ballast = fill(place)
        client = client_of(house)
        # what the last page of the log still takes is not lost
        until(lambda: _run_one(client) and path.stat().st_size % mmap.PAGESIZE == 0, "no room in the log")
        jobs = client.submit([{"command": ["true"]}] * 3)
        assert {client.wait(job.jid).state for job in jobs} == {"completed"}
        ballast.unlink()
        supervisor = house.pid("supervisor")
        house.run("down", "--stop-agents")
        until(lambda: not Path(f"/proc/{supervisor}").exists(), "the supervisor has ended")
        said = [line for line in path.read_bytes().replace(b"\0", b"").splitlines() if line.startswith(b"{")]
        lost = [
            told for line in said if (told := _json(line)) and told["msg"] == "lines of this log were lost"
        ]
        assert sum(told["lost"] for told in lost) > 0


def _run_one(client: Client) -> bool:
    (job,) = client.submit([{"command": ["true"]}])
    return client.wait(job.jid).state == "completed"


def _json(line: bytes) -> dict | None:
    try:
        return json.loads(line)
    except ValueError:
        return None  # cut where the disk was full


def test_a_log_that_nobody_reads_holds_up_nothing() -> None:
    """F017: a terminal that was stopped, a pager that waits for a key."""
    code = (
        "import logging\n"
        "from sirepo_jobs import logs\n"
        "logs.setup('info', 'json')\n"
        "for number in range(20_000): logging.getLogger('a').info('x' * 500)\n"
        "print('went on', flush=True)\n"
    )
    read, write = os.pipe()
    try:
        told = subprocess.run(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=write, timeout=60, check=True
        )
    finally:
        os.close(write)
        os.close(read)
    assert told.stdout == b"went on\n"


def test_what_a_slow_reader_missed_is_told_in_its_place() -> None:
    code = (
        "import logging, sys\n"
        "from sirepo_jobs import log_sink, logs\n"
        "log_sink.MAX_WAITING_BYTES = 10_000\n"
        "logs.setup('info', 'json')\n"
        "for number in range(1000): logging.getLogger('a').info('x' * 500)\n"
        "print('said', flush=True)\n"
        "sys.stdin.read(1)\n"
        "logging.getLogger('a').info('and on')\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    with process:
        # Half a megabyte, of which a pipe takes an eighth: nothing is read before all of it was said.
        assert process.stdout.readline() == b"said\n"
        lines: list[dict] = []
        told = False
        for line in process.stderr:
            lines.append(json.loads(line))
            if not told:
                told = True
                process.stdin.write(b"x")
    lost = sum(line["lost"] for line in lines if line["msg"] == "lines of this log were lost")
    assert lost > 0
    assert lost + sum(line["msg"] == "x" * 500 for line in lines) == 1000
    assert lines[-1]["msg"] == "and on"
