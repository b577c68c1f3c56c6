"""What people and programs do at the front end: from a bare shell, over crashes, and all at once."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sirepo_jobs.client import Client
from sirepo_jobs.frontend.response import ResponseReader

from .conftest import System, eventually

pytestmark = pytest.mark.timeout(300)
TOP = Path(__file__).parents[2]


def blocks(path: Path, heading: str) -> str:
    """The shell lines that stand under a heading."""
    section = path.read_text().partition(f"\n{heading}\n")[2].partition("\n## ")[0]
    return "".join(re.findall(r"```sh\n(.*?)```", section, re.DOTALL))


def test_curl_only_as_the_readme_says(system: System, tmp_path: Path) -> None:
    script = blocks(TOP / "README.md", "## curl only")
    assert script.count("curl ") == 5
    script = script.replace("http://127.0.0.1:8000", system.url).replace("/tmp/jobs", str(system.root))
    done = subprocess.run(
        ["sh", "-eu", "-c", f'{script}\necho; echo "$jid $nap"'],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert (done.returncode, done.stderr) == (0, "")
    *output, answer, jids = done.stdout.splitlines()
    assert output == ["step 1", "step 2", "step 3"]
    assert re.search(r"20\d\d", (tmp_path / "when.txt").read_text())
    jid, nap = jids.split()
    assert msgspec.json.decode(answer)["jid"] == nap
    client = system.client()
    assert client.get(jid).state == "completed"
    assert client.wait(nap, timeout=60).state == "canceled"
    (system.root / "header").unlink()


#: Writes numbered lines for about three seconds.
TALKER = "import time\nfor i in range(300): print('%09d' % i, flush=True); time.sleep(0.01)"
SAID = b"".join(b"%09d\n" % i for i in range(300))


#: Writes numbered lines until it is told that it is enough.
ENDLESS = """import itertools, os, time
for i in itertools.count():
    print('%09d' % i, flush=True)
    time.sleep(0.01)
    if os.path.exists('enough'): break"""


@pytest.mark.parametrize("who", ["client", "curl"])
def test_a_followed_log_survives_killed_front_ends(system: System, tmp_path: Path, who: str) -> None:
    """Every byte once (I13), by the Python client and by the shell lines of docs/api.md."""
    client = system.client()
    jid = client.submit({"command": [sys.executable, "-c", ENDLESS]}).jid
    eventually(lambda: client.get(jid).state == "running")
    run_dir = Path(client.get(jid).run_dir or "")
    log = tmp_path / "log.txt"
    log.touch()
    if who == "client":
        program = (
            "import sys\nfrom sirepo_jobs.client import Client\nout = open('log.txt', 'ab', 0)\n"
            f"for piece in Client.from_environment().logs({jid!r}, follow=True): out.write(piece)"
        )
        words = [sys.executable, "-c", program]
    else:
        (tmp_path / "header").write_text(f"Authorization: Bearer {(system.root / 'token').read_text()}")
        (shell,) = re.findall(r"```sh\n(touch log.*?)```", (TOP / "docs/api.md").read_text(), re.DOTALL)
        words = ["sh", "-c", shell]
    environ = system.environ | {"URL": system.url, "JID": jid, "PYTHONPATH": str(TOP)}
    follower = subprocess.Popen(words, cwd=tmp_path, env=environ, stderr=subprocess.DEVNULL)
    try:
        for _ in range(2):
            size = log.stat().st_size
            eventually(lambda size=size: log.stat().st_size > size)  # type: ignore[misc]
            pid = system.pid("frontend")
            os.kill(pid, signal.SIGKILL)
            eventually(lambda pid=pid: system.pid("frontend") not in (0, pid))  # type: ignore[misc]
        (run_dir / "enough").touch()
        assert follower.wait(100) == 0
    finally:
        follower.kill()
        follower.wait()
        (run_dir / "enough").touch()
    said = (run_dir / "stdout").read_bytes()
    assert said == b"".join(b"%09d\n" % i for i in range(said.count(b"\n")))
    assert log.read_bytes() == said


class Crowd:
    """Many connections to one front end, out of one process."""

    def __init__(self, system: System) -> None:
        self._port = int(system.url.rpartition(":")[2])
        self._token = (system.root / "token").read_text().strip()
        self.answers = 0

    async def _ask(self, path: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        head = f"GET /api/v1/jobs/{path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {self._token}\r\n\r\n"
        writer.write(head.encode())
        return reader, writer

    async def get(self, path: str) -> tuple[int, bytes]:
        """Status and body, whole."""
        reader, writer = await self._ask(path)
        response, body = ResponseReader(), b""
        while not response.done:
            data = await reader.read(1 << 16)
            assert data, f"{path} was cut"
            body += response.feed(data)
        writer.close()
        return response.status, body

    async def watch(self, jid: str) -> float:
        """Blocking queries until the job has ended; how much later than it ended we heard of it."""
        version = 0
        while True:
            status, body = await self.get(f"{jid}?wait=60s&version={version}")
            assert status == 200, body
            self.answers += 1
            job: dict[str, Any] = msgspec.json.decode(body)
            assert job["version"] > version, "an answer without news"
            version = job["version"]
            if job["ended_at"]:
                ended = msgspec.convert(job["ended_at"], type=datetime)
                return time.time() - float(ended.timestamp())

    async def follow(self, jid: str) -> tuple[bytes, float]:
        """All of the job's output, and the longest silence in it."""
        reader, writer = await self._ask(f"{jid}/logs/stdout?follow=1")
        response, body, silence, last = ResponseReader(), bytearray(), 0.0, 0.0
        while not response.done:
            data = await reader.read(1 << 16)
            assert data, f"the log of {jid} was cut"
            piece = response.feed(data)
            if piece:
                now = time.monotonic()
                silence, last = max(silence, now - last) if last else 0.0, now
                body += piece
        writer.close()
        assert response.status == 200
        return bytes(body), silence

    async def stare(self, jid: str) -> asyncio.StreamWriter:
        """Follow a log without reading any of it."""
        _, writer = await asyncio.open_connection("127.0.0.1", self._port, limit=1024)
        head = f"GET /api/v1/jobs/{jid}/logs/stdout?follow=1 HTTP/1.1\r\nHost: x\r\n"
        writer.write(f"{head}Authorization: Bearer {self._token}\r\n\r\n".encode())
        return writer


def test_two_hundred_wait_and_fifty_follow_while_jobs_run(tmp_path: Path) -> None:
    """I31: memory is bounded, and nobody starves; five more follow a log of 20 MB and read none of it."""
    system = System(tmp_path / "root", SIREPO_JOBS_LOCAL_CPUS="40", SIREPO_JOBS_RATE_PER_SEC="0")
    system.up()
    try:
        asyncio.run(_crowd(system))
    finally:
        system.down("--stop-agents")


async def _crowd(system: System) -> None:
    client: Client = await asyncio.to_thread(system.client)
    warm = client.submit([{"command": ["true"]} for _ in range(200)])
    for job in warm:
        client.wait(job.jid, timeout=60)
    pids = {name: system.pid(name) for name in ("supervisor", "frontend")}
    before = {name: system.rss(pid) for name, pid in pids.items()}
    peak = dict(before)

    talkers = client.submit([{"command": [sys.executable, "-c", TALKER]} for _ in range(25)])
    loud = client.submit({"command": ["sh", "-c", "head -c 20000000 /dev/zero; sleep 4"]})
    # they wait for all cpus, so for the end of everything else
    last = client.submit([{"command": ["true"], "resources": {"cpus": 40}} for _ in range(4)])
    crowd = Crowd(system)
    stares = [await crowd.stare(loud.jid) for _ in range(5)]
    watched = [job.jid for job in (talkers * 4)[:100] + (last * 25)[:100]]
    watching = [asyncio.create_task(crowd.watch(jid)) for jid in watched]
    following = [asyncio.create_task(crowd.follow(job.jid)) for job in talkers * 2]
    took = []
    # not in this loop: it would not hear meanwhile what they are told
    batch = await asyncio.to_thread(client.submit, [{"command": ["true"]} for _ in range(300)])
    while not all(task.done() for task in watching + following):
        begun = time.monotonic()
        status, _ = await crowd.get(batch[len(took) % 300].jid)
        took.append(time.monotonic() - begun)
        assert status == 200
        for name, pid in pids.items():
            peak[name] = max(peak[name], system.rss(pid))
        await asyncio.sleep(0.02)  # a program that looks in now and then
    late = await asyncio.gather(*watching)
    logs = await asyncio.gather(*following)
    for writer in stares:
        writer.close()
    grown = {name: round((peak[name] - before[name]) / 1e6, 1) for name in pids}
    took.sort()
    silence = max(silence for _, silence in logs)
    print(
        f"grown MB {grown}; heard {max(late):.2f} s late at most; longest silence {silence:.2f} s;"
        f" a look took {took[len(took) // 2] * 1000:.0f} ms, {took[-1] * 1000:.0f} at most;"
        f" {crowd.answers} answers"
    )
    assert all(log == SAID for log, _ in logs)
    assert max(grown.values()) < 60
    # Of what happened within a run of some seconds nobody heard only at its end.
    assert max(late) < 5
    assert silence < 5
    assert took[-1] < 5
    for job in batch:
        assert (await asyncio.to_thread(client.wait, job.jid, timeout=60)).exit_code == 0
