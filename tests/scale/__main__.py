"""How long questions take over a long history, asked of a real service: `bin/scale`.

Builds the history (once: it is kept in --root), starts `sirepo-jobs up` on it, asks each question many
times over one connection to the front end, and prints p50, p95 and the longest. Exit status 1 when a
question took longer at p95 than it may, or was answered wrongly.
"""

import argparse
import asyncio
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

from sirepo_jobs.job import State

from .history import PROJECTS, RARE, SEC, USERS, Past, build

PAGE_MS = 200.0
JOB_MS = 10.0
PAGE = 100
_COMMAND = [sys.executable, "-m", "sirepo_jobs.cli"]


class Question(NamedTuple):
    """Something to ask again and again."""

    name: str
    limit_ms: float
    #: Path and query of the next time, and which numbers the answer must have, or None for any.
    ask: Callable[[], tuple[str, list[int] | None]]


class Door:
    """One connection to the front end."""

    def __init__(self, url: str, token: str) -> None:
        host, _, port = url.removeprefix("http://").partition(":")
        self._connection = HTTPConnection(host, int(port), timeout=60)
        self._headers = {"Authorization": f"Bearer {token}"}

    def get(self, path: str, **query: Any) -> tuple[Any, float]:
        """The answer, and after how many milliseconds all of it was here."""
        begun = time.perf_counter()
        self._connection.request(
            "GET", f"{path}?{urlencode(query)}" if query else path, headers=self._headers
        )
        response = self._connection.getresponse()
        body = response.read()
        took_ms = (time.perf_counter() - begun) * 1000
        if response.status != 200:
            raise SystemExit(f"{path}: {response.status} {body.decode(errors='replace')}")
        return json.loads(body), took_ms

    def close(self) -> None:
        self._connection.close()


def newest(count: int, fits: Callable[[Past], bool], limit: int = PAGE) -> list[int]:
    """The numbers that a page must hold."""
    return list(itertools.islice((seq for seq in range(count, 0, -1) if fits(Past(seq))), limit))


def questions(count: int, door: Door, chance: random.Random) -> Iterator[Question]:
    """Everything that is measured."""

    def page(name: str, fits: Callable[[Past], bool], **query: Any) -> Question:
        expected = newest(count, fits)
        return Question(
            f"page {name}",
            PAGE_MS,
            lambda: (f"/api/v1/jobs?{urlencode({'limit': PAGE, **query}, doseq=True)}", expected),
        )

    yield page("first, of everybody", lambda past: True)
    yield page("first, of one user", lambda past: past.user == "user7", user="user7")
    for state in (State.COMPLETED, State.ERROR, State.CANCELED, State.RUNNING, State.HELD):
        yield page(f"state={state}", lambda past, state=state: past.state is state, state=state)  # type: ignore[misc]
    yield page(
        "state=error of one user",
        lambda past: past.state is State.ERROR and past.user == "user9",
        state="error",
        user="user9",
    )
    yield page("state=active (ps)", lambda past: False, state="active")
    yield page("tag, 1 of 100 has it", lambda past: past.tags["project"] == "p33", tag="project:p33")
    yield page(
        "tag of one user",
        lambda past: past.tags["project"] == "p34" and past.user == "user0",
        tag="project:p34",
        user="user0",
    )
    yield page(f"tag, 1 of {RARE} has it", lambda past: past.seq % RARE == 0, tag="rare:yes")
    yield page("tag that nobody has", lambda past: False, tag="rare:no")
    oldest = str(Past(3).seq // 100)
    yield page("tag of the oldest jobs", lambda past: past.seq < 100, tag=f"batch:{oldest}")
    yield page(
        "two tags",
        lambda past: past.seq % PROJECTS == 0 and past.seq % RARE == 0,
        tag=["project:p0", "rare:yes"],
    )
    yield page(
        "tag and state",
        lambda past: past.seq % 100 == 3 and past.seq % 20 == 3,
        tag="project:p3",
        state="error",
    )
    yield page("tag and state that never meet", lambda past: False, tag="project:p1", state="error")
    yield page("name prefix of all", lambda past: True, name_prefix="sweep-")
    half = f"sweep-{count // 2000:04d}-"
    yield page("name prefix of 1,000", lambda past: past.name.startswith(half), name_prefix=half)
    yield page("name prefix of none", lambda past: False, name_prefix="swoop")
    early, late = Past(count // 10), Past(count // 10 + 5000)
    span = {"created_after": _iso(early.at), "created_before": _iso(late.at)}
    yield page("times", lambda past: early.seq <= past.seq < late.seq, **span)
    yield page(
        "times and state",
        lambda past: early.seq <= past.seq < late.seq and past.state is State.ERROR,
        state="error",
        **span,
    )
    yield page("queue that nobody used: one look", lambda past: False, queue="night")

    cursor, path = "", []
    for _ in range(min(1000, count // PAGE) - 1):
        answer, took_ms = door.get("/api/v1/jobs", limit=PAGE, **({"cursor": cursor} if cursor else {}))
        cursor = answer["next_cursor"]
        path.append(took_ms)
    print(f"  walked {len(path) + 1} pages, the slowest took {max(path):.1f} ms")
    deep = newest(count - len(path) * PAGE, lambda past: True)
    yield Question(
        f"page {len(path) + 1:,} by cursor",
        PAGE_MS,
        lambda: (f"/api/v1/jobs?{urlencode({'limit': PAGE, 'cursor': cursor})}", deep),
    )

    def one() -> tuple[str, list[int]]:
        past = Past(chance.randint(1, count))
        return f"/api/v1/jobs/{past.jid}", [past.seq]

    yield Question("GET /jobs/{jid}", JOB_MS, one)


def _iso(at: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at // SEC))


def measure(door: Door, question: Question, times: int) -> tuple[list[float], bool]:
    """How long each answer took, and whether all were right."""
    took, right = [], True
    for _ in range(times):
        target, expected = question.ask()
        answer, took_ms = door.get(target)
        took.append(took_ms)
        jobs = answer.get("jobs", [answer])
        right &= expected is None or [int(job["jid"][1:]) for job in jobs] == expected
    return sorted(took), right


@contextmanager
def service(root: Path, database: str | None) -> Iterator[tuple[str, str]]:
    """A service on this root: its URL and token."""
    environ = {key: value for key, value in os.environ.items() if not key.startswith("SIREPO_JOBS_")}
    environ |= {"SIREPO_JOBS_ROOT": str(root), "SIREPO_JOBS_RATE_PER_SEC": "0"}
    if database:
        environ["SIREPO_JOBS_DATABASE_URL"] = database
    with (root / "up.log").open("ab") as log:
        begun = time.monotonic()
        up = subprocess.Popen(
            [*_COMMAND, "up", "--port", "0"], env=environ, stdout=subprocess.PIPE, stderr=log
        )
        try:
            assert up.stdout is not None
            line = up.stdout.readline().decode()
            if not line.startswith("listening on "):
                raise SystemExit(f"the service did not start; see {root}/up.log")
            print(f"  serves after {time.monotonic() - begun:.1f} s")
            yield line.split()[-1], (root / "token").read_text().strip()
        finally:
            up.terminate()
            up.wait()


def main() -> int:
    """Build, ask, print."""
    parser = argparse.ArgumentParser(prog="bin/scale", description=__doc__)
    parser.add_argument("--jobs", type=int, default=1_000_000, help="finished jobs in the store")
    parser.add_argument("--times", type=int, default=40, help="how often each question is asked")
    parser.add_argument("--root", type=Path, help="keep the history here, and use it again")
    parser.add_argument("--database", help="postgresql+psycopg://... instead of SQLite in the root")
    given = parser.parse_args()
    root = given.root or Path(os.environ.get("TMPDIR", "/tmp")) / f"sirepo-jobs-scale-{os.getpid()}"
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        return _run(root, given)
    finally:
        if given.root is None:
            shutil.rmtree(root)


def _run(root: Path, given: argparse.Namespace) -> int:
    count: int = given.jobs
    begun = time.monotonic()
    asyncio.run(build(given.database or f"sqlite:///{root}/jobs.db", count))
    print(f"{count:,} finished jobs of {USERS} users; built in {time.monotonic() - begun:.0f} s")
    if (file := root / "jobs.db").exists():
        print(f"  {file.stat().st_size / 1e6:,.0f} MB")
    failures = 0
    with service(root, given.database) as (url, token), closing(Door(url, token)) as door:
        print(f"  {'':34} {'p50':>8} {'p95':>8} {'max':>8}   ms, limit at p95")
        for question in questions(count, door, random.Random(5)):
            took, right = measure(door, question, given.times * (10 if question.limit_ms < PAGE_MS else 1))
            p95 = took[int(len(took) * 0.95)]
            wrong = "" if right else "  WRONG ANSWER"
            slow = "" if p95 < question.limit_ms else "  TOO SLOW"
            failures += bool(wrong or slow)
            print(
                f"  {question.name:34} {took[len(took) // 2]:8.1f} {p95:8.1f} {took[-1]:8.1f}"
                f"   {question.limit_ms:.0f}{wrong}{slow}",
                flush=True,
            )
    print("all within their limits" if not failures else f"{failures} questions failed")
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
