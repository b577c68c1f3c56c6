"""A crash at every system call: of each process, in each scenario, one run for each point (Must show 3).

Into a service that runs, a scenario is played while `strace` kills one thread's process at its N-th system
call of each kind, for N = 1, 2, 3, ... until the scenario ends untouched. Then the service must come back by
itself, and what was promised must have been kept. `bin/crashpoints` runs them all.
"""

import argparse
import contextlib
import http.client
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from sirepo_jobs.cli.door import _UnixConnection
from tests.chaos.world import World, eventually

SCENARIOS = ("submit", "start", "finish", "cancel", "reconnect")
#: Who is killed; the supervisor by thread, because each thread has calls of its own.
TARGETS = ("supervisor", "supervisor threads", "agent", "launcher", "spawner")
CODE = 3
OUTPUT = b"x" * 1000
#: Untouched runs in a row after which there are no more points: the last may have been a little shorter.
_ENOUGH = 2
_WAIT_SECS = 60.0


class Wrong(NamedTuple):
    """A promise that was not kept."""

    scenario: str
    target: str
    point: str
    text: str


class Scene:
    """A service without a front end, its supervisor forked from a zygote, its agents behind the proxy."""

    def __init__(self) -> None:
        self.world = World(cpus=8, heartbeat_secs=15, armed=False)
        self.world.root.mkdir(mode=0o700)
        self.truth = self.world.path / "truth"
        self._keys = 0
        self._fifos: dict[str, int] = {}
        self._log = (self.world.path / "up.log").open("ab")
        self._zygote = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.zygote", str(self.world.root)],
            env=self.world.environ,
            stdin=subprocess.DEVNULL,
            stderr=self._log,
            cwd=Path(__file__).parents[2],
            start_new_session=True,
        )
        # The first job brings the agent.
        self.end(self.submit())

    def close(self) -> None:
        """End everything."""
        self._zygote.kill()
        self._zygote.wait()
        for role in ("supervisor", "launcher"):
            for pid in self.world.pids(role):
                os.kill(pid, signal.SIGKILL)
        for fd in self._fifos.values():
            os.close(fd)
        self._log.close()
        self.world.close()

    def evidence(self) -> str:
        """What there is to look at when something went wrong."""
        said = [self.world.log()]
        for path in self.world.root.glob("agents/*/launcher.log"):
            said.append(path.read_text(errors="replace")[-3000:])
        for path in self.world.root.glob("agents/*/journal"):
            said.append(path.read_text(errors="replace").rstrip("\0")[-3000:])
        for role in ("supervisor", "launcher", "spawner", "agent"):
            for pid in self.world.pids(role):
                status = Path(f"/proc/{pid}/status").read_text()
                times = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
                said.append(f"{role} {pid}: {status.splitlines()[2]}, ticks {times}")
        return "\n".join(said)

    # -- asking

    def ask(self, method: str, path: str, body: Any = None, key: str = "") -> Any:
        """The supervisor's answer, from whichever supervisor there is, as a client that asks again."""
        end = time.monotonic() + _WAIT_SECS
        while True:
            try:
                return self._ask_once(method, path, body, key)
            except (OSError, http.client.HTTPException):
                if time.monotonic() > end:
                    raise
                time.sleep(0.01)

    def _ask_once(self, method: str, path: str, body: Any, key: str) -> Any:
        connection = _UnixConnection(self.world.root, 20)
        data = b"" if body is None else json.dumps(body).encode()
        headers = {
            "Authorization": f"Bearer {(self.world.root / 'secret').read_text().strip()}",
            "X-User": "ann",
            "X-Role": "admin",
            "Content-Length": str(len(data)),
        }
        if key:
            headers["Idempotency-Key"] = key
        try:
            connection.request(method, path, body=data, headers=headers)
            response = connection.getresponse()
            answer = response.read()
        finally:
            connection.close()
        if response.status in (502, 503, 504):
            raise ConnectionError(answer)
        assert response.status < 300, (method, path, response.status, answer)
        return json.loads(answer) if response.headers["Content-Type"] == "application/json" else answer

    def job(self, jid: str, **query: Any) -> Any:
        """The job as it stands."""
        words = "&".join(f"{name}={value}" for name, value in query.items())
        return self.ask("GET", f"/api/v1/jobs/{jid}?{words}")

    def until(self, jid: str, states: tuple[str, ...]) -> Any:
        """The job once it is in one of these states."""
        end = time.monotonic() + _WAIT_SECS
        job = self.job(jid)
        while job["state"] not in states:
            assert time.monotonic() < end, f"{jid} is {job['state']}: {job['situation']}, wanted {states}"
            job = self.job(jid, wait="2s", version=job["version"])
        return job

    # -- jobs

    def spec(self) -> tuple[str, dict[str, Any]]:
        """A job that says that it began, waits for a word, writes and ends by its own code."""
        self._keys += 1
        key = f"{self.world.path.name}-{self._keys}"
        fifo = self.world.path / key
        os.mkfifo(fifo)
        # Opened for both, so that a word waits there for whoever reads next.
        self._fifos[key] = os.open(fifo, os.O_RDWR | os.O_NONBLOCK)
        script = (
            f'echo "$SIREPO_JOBS_JID $SIREPO_JOBS_ATTEMPT" >> {self.truth}; read word < {fifo}; '
            f"printf %{len(OUTPUT)}s | tr ' ' x; exit {CODE}"
        )
        return key, {"name": key, "command": ["/bin/sh", "-c", script], "limits": {"grace": 0.2}}

    def submit(self) -> str:
        """A job; its jid."""
        key, spec = self.spec()
        return str(self.ask("POST", "/api/v1/jobs", {"jobs": [spec]}, key)["jid"])

    def word(self, jid: str) -> None:
        """Let it go on."""
        with contextlib.suppress(BlockingIOError):
            os.write(self._fifos[self.job(jid)["name"]], b"go\n")

    def end(self, jid: str) -> Any:
        """Let it go on until it has ended: attempts that were lost in between read words of their own."""
        job = self.job(jid)
        end = time.monotonic() + _WAIT_SECS
        while job["state"] not in _FINAL:
            assert time.monotonic() < end, f"{jid} does not end: {job['state']} {job['situation']}"
            if job["state"] == "running":
                self.word(jid)
            job = self.job(jid, wait="1s", version=job["version"])
        return job

    def started(self) -> Counter[tuple[str, str]]:
        """How often each attempt began, by the jobs' own word."""
        return Counter(tuple(line.split()) for line in self.truth.read_text().splitlines())  # type: ignore[misc]

    # -- processes

    def healthy(self) -> None:
        """Everything is there, and the agent is connected."""

        def there() -> bool:
            agents = self.ask("GET", "/api/v1/agents")["agents"]
            return (
                any(agent["state"] == "online" for agent in agents)
                and len(self.world.pids("spawner")) == 2
                and len(self.world.pids("agent")) == len(self.world.pids("supervisor")) == 1
            )

        if not there():
            # An agent that is gone comes when there is something to do.
            self.end(self.submit())
        eventually(there, _WAIT_SECS, "everything is there")

    def threads(self, target: str) -> list[int]:
        """What strace is to attach to."""
        if target != "supervisor threads":
            return self.world.pids(target)
        (pid,) = self.world.pids("supervisor")
        return [tid for tid in map(int, os.listdir(f"/proc/{pid}/task")) if tid != pid]


class Trap:
    """strace on some threads: kills at the N-th call of that name in any of them; N = 0 only writes down."""

    def __init__(self, tids: list[int], name: str, point: int, log: str = "/dev/null") -> None:
        inject = ["-e", f"inject={name}:signal=SIGKILL:when={point}"] if point else []
        self._strace = subprocess.Popen(
            ["strace", "-o", log, *(word for tid in tids for word in ("-p", str(tid))),
             "-e", f"trace={name}", *inject],
            stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        assert self._strace.stderr is not None
        for _ in tids:
            line = self._strace.stderr.readline()
            assert "attached" in line, line + self._strace.stderr.read()

    @property
    def sprung(self) -> bool:
        """All that was attached is gone, or some of it is."""
        return self._strace.poll() is not None

    def close(self) -> None:
        """Let go."""
        if self._strace.poll() is None:
            self._strace.send_signal(signal.SIGINT)
        self._strace.communicate(timeout=20)


def play(
    scene: Scene, scenario: str, target: str, name: str, point: int, log: str = "/dev/null"
) -> tuple[bool, list[str]]:
    """One run; whether somebody was killed, and what is wrong after it."""
    scene.healthy()
    jid = "" if scenario == "submit" else scene.submit()
    tries = 1
    if scenario == "start":
        scene.end(jid)
        tries = 2
    elif jid:
        scene.until(jid, ("running",))
    tids = scene.threads(target)
    owner = scene.world.pids("supervisor") if target.startswith("supervisor") else tids
    lives = [(pid, os.pidfd_open(pid)) for pid in owner]
    trap = Trap(tids, name, point, log)
    try:
        if scenario == "submit":
            jid = scene.submit()
        elif scenario == "start":
            scene.ask("POST", f"/api/v1/jobs/{jid}/retry?serial=1")
            scene.until(jid, ("running", *_FINAL))
        elif scenario == "finish":
            scene.word(jid)
            scene.until(jid, _FINAL)
        elif scenario == "cancel":
            scene.ask("POST", f"/api/v1/jobs/{jid}/cancel")
            scene.until(jid, _FINAL)
        else:
            calls = scene.world.agents_link.counts["connections"]
            scene.world.proxy.do(scene.world.agents_link.cut)
            eventually(
                lambda: trap.sprung or scene.world.agents_link.counts["connections"] > calls, 30, "it calls"
            )
            if not trap.sprung:
                scene.healthy()
    finally:
        trap.close()
        killed = [pid for pid, fd in lives if _is_gone(fd)]
    job = scene.end(jid)
    return bool(killed), list(wrongs(scene, scenario, target, job, tries))


def wrongs(scene: Scene, scenario: str, target: str, job: Any, tries: int) -> Iterator[str]:
    """What must not be, of a job that has ended."""
    jid = job["jid"]
    began = scene.started()
    starts = {attempt: n for (other, attempt), n in began.items() if other == jid}
    attempts = scene.ask("GET", f"/api/v1/jobs/{jid}/attempts")["attempts"]
    if any(n > 1 for n in starts.values()):
        yield f"an attempt began twice: {starts}"
    if [one["attempt"] for one in attempts] != list(range(1, job["attempt"] + 1)):
        yield f"attempts {attempts}"
    never = [one for one in attempts if one["proof"] == "never_claimed"]
    if any(str(one["attempt"]) in starts for one in never):
        yield f"said to be never claimed, and it began: {attempts}"
    if len(attempts) - len(never) > tries:
        yield f"{len(attempts)} attempts: {attempts}"
    # Who is no parent of jobs costs none of them, and no status.
    parent = target in ("launcher", "spawner")
    outcome = (job["state"], job["exit_code"], job["reason"])
    lost = ("error", None, "AGENT_LOST")
    if scenario == "cancel":
        good = outcome[0] == "canceled" or (parent and outcome == lost)
    else:
        good = outcome == ("error", CODE, "EXIT_NONZERO") or (parent and outcome == lost)
    if not good:
        yield f"outcome {outcome}: {job['situation']}"
    if outcome[1] == CODE:
        served = scene.ask("GET", f"/api/v1/jobs/{jid}/logs/stdout")
        if served != OUTPUT or job["stdout_bytes"] != len(OUTPUT):
            yield f"{len(served)} of {len(OUTPUT)} bytes served, {job['stdout_bytes']} recorded"
    listed = scene.ask("GET", f"/api/v1/jobs?name_prefix={job['name']}")["jobs"]
    if [one["jid"] for one in listed if one["name"] == job["name"]] != [jid]:
        yield f"submitted once, there are {len(listed)}"
    fifo = str(scene.world.path / job["name"])
    left = [pid for pid in os.listdir("/proc") if pid.isdigit() and _mentions(pid, f"read word < {fifo};")]
    if left:
        yield f"left behind: {left}"


def explore(
    scene: Scene,
    scenario: str,
    target: str,
    *,
    step: int = 1,
    tell: Callable[[str], None] = lambda _: None,
) -> tuple[int, list[Wrong]]:
    """Every `step`-th point of one scenario and target; how many killed somebody, and what was wrong."""
    points, seen, found = 0, 0, []
    for name in _names(scene, scenario, target):
        untouched, point = 0, 1
        while untouched < _ENOUGH:
            seen += 1
            if seen % step:
                # Left out: it counts as one that killed while the record has so many.
                untouched += _names_seen[scenario, target][name] < point
            else:
                try:
                    killed, wrong = play(scene, scenario, target, name, point)
                except BaseException:
                    tell(f"{scenario}, {target}, {name} {point}:")
                    raise
                found += [Wrong(scenario, target, f"{name} {point}", text) for text in wrong]
                for text in wrong:
                    tell(f"VIOLATION {scenario}, {target}, {name} {point}: {text}")
                points += killed
                untouched = 0 if killed else untouched + 1
            point += 1
    return points, found


_names_seen: dict[tuple[str, str], Counter[str]] = {}


def _names(scene: Scene, scenario: str, target: str) -> list[str]:
    """The calls that the target makes in the scenario, as recorded in three plays of it."""
    most: Counter[str] = Counter()
    for _ in range(3):
        log = scene.world.path / "strace.log"
        killed, wrong = play(scene, scenario, target, "all", 0, str(log))
        assert not killed, "nobody was to be killed yet"
        assert not wrong, wrong
        calls: dict[str, Counter[str]] = {}
        for line in log.read_text(errors="replace").splitlines():
            # With several threads each line begins with the number of its own.
            words = re.match(r"(?:(\d+)\s+)?(\w+)\(", line)
            if words and words[2] != "restart_syscall":
                calls.setdefault(words[1] or "", Counter())[words[2]] += 1
        for counts in calls.values():
            most |= counts
    _names_seen[scenario, target] = most
    return sorted(most)


_FINAL = ("completed", "error", "canceled")


def _is_gone(fd: int) -> bool:
    # Readable as soon as it has ended, whether or not anybody has waited for it.
    look = select.poll()
    look.register(fd, select.POLLIN)
    gone = bool(look.poll(0))
    os.close(fd)
    return gone


def _mentions(pid: str, text: str) -> bool:
    with contextlib.suppress(OSError):
        return text.encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def main() -> int:
    """All of them, or those that are asked for."""
    parser = argparse.ArgumentParser(description="Crash at every system call.")
    parser.add_argument("--scenario", choices=SCENARIOS, action="append")
    parser.add_argument("--target", choices=TARGETS, action="append")
    parser.add_argument("--step", type=int, default=1, help="only every N-th point")
    asked = parser.parse_args()
    assert shutil.which("strace"), "strace is not installed: apt-get install strace"
    scene = Scene()
    total, found = 0, []
    began = time.monotonic()
    try:
        for scenario in asked.scenario or SCENARIOS:
            for target in asked.target or TARGETS:
                since = time.monotonic()
                points, wrong = explore(scene, scenario, target, step=asked.step, tell=_tell)
                total += points
                found += wrong
                secs = time.monotonic() - since
                _tell(f"{scenario:10} {target:18} {points:4} points  {len(wrong)} violations  {secs:6.1f} s")
    except BaseException:
        _tell(scene.evidence())
        raise
    finally:
        scene.close()
    _tell(f"{total} points, every one run, {len(found)} violations, {time.monotonic() - began:.0f} s")
    return 1 if found else 0


def _tell(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
