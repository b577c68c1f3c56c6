"""One run: a world, people, a nemesis; then quiet, everything looked at, and a report."""

import contextlib
import os
import random
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sirepo_jobs.client import Client
from sirepo_jobs.errors import Error, NotFound, Unavailable
from tests.chaos import facts as facts_of
from tests.chaos.checker import CHECKS, NOT_CHECKED, Violation, check
from tests.chaos.history import History, now
from tests.chaos.nemesis import KILLS, Nemesis, schedule
from tests.chaos.people import Listener, Person, verify_log
from tests.chaos.plan import plan_of
from tests.chaos.profiles import Profile
from tests.chaos.world import World, eventually


class Run:
    """What one run has found out."""

    def __init__(
        self,
        name: str,
        profile: Profile,
        seed: int,
        directory: Path | None = None,
        database_url: str | None = None,
    ) -> None:
        self.name = name
        self.profile = profile
        self.seed = seed
        self.world = World(directory, cpus=profile.cpus, seed=seed, database_url=database_url)
        self.history = History(self.world.path / "history.jsonl")
        self.violations: list[Violation] = []
        self.report: dict[str, Any] = {}
        self._rng = random.Random(seed)

    def go(self) -> dict[str, Any]:
        """All of it; the report. The world is closed, its directory stays when something is wrong."""
        clean = False
        try:
            self.world.up()
            with self._bystanders():
                self._trouble()
            clean = not self.violations
        finally:
            self.history.close()
            self.world.close(keep=not clean)
        return self.report

    def _trouble(self) -> None:
        world, profile, rng = self.world, self.profile, self._rng
        admin = world.client(direct=True)
        tokens = {f"u{n}": admin.create_token(f"u{n}", role="user")["token"] for n in range(profile.users)}
        people = []
        for n in range(profile.people):
            user = f"u{n % profile.users}"
            people.append(Person(world, self.history, f"{user}/{n}", tokens[user], rng.random()))
        listener = Listener(world)
        blows = schedule(rng, profile.secs, profile.every_secs, server=world.has_server)
        nemesis = Nemesis(world, self.history, blows, random.Random(rng.random()))
        watch = Watch(world, self.history)
        started = time.monotonic()
        for thread in (*people, listener, nemesis, watch):
            thread.start()
        end = started + profile.secs
        while time.monotonic() < end and not any(person.error for person in people):
            time.sleep(0.2)
        for person in people:
            person.stopping.set()
        nemesis.stopping.set()
        nemesis.join(30)
        healed_at = time.monotonic()
        for person in people:
            person.join(max(1.0, healed_at + profile.settle_secs - time.monotonic()))
            if person.is_alive():
                self.history.note("stuck", who=person.name)
        self._settle(admin, healed_at)
        settled_at = time.monotonic()
        self._look(admin, tokens)
        watch.stopping.set()
        watch.join(10)
        for thread in (*people, nemesis, watch):
            if thread.error is not None:
                raise thread.error
        self._hear_the_rest(admin, listener)
        self.world.down("--stop-agents")
        self._judge(listener, nemesis, watch, settled_at - healed_at)

    def _settle(self, admin: Client, healed_at: float) -> None:
        """Everything comes to its end by itself."""
        with contextlib.suppress(TimeoutError):
            eventually(
                lambda: not self._open(admin),
                max(5.0, healed_at + self.profile.settle_secs - time.monotonic()),
                "all jobs end",
            )

    def _open(self, admin: Client) -> int:
        with contextlib.suppress(Unavailable):
            return sum(1 for _ in admin.jobs(state="active"))
        return 1

    def _look(self, admin: Client, tokens: dict[str, str]) -> None:
        """At rest: submissions of unknown fate, every output, what is held and what is left."""
        notes = self.history.read()
        plans = {
            key: plan_of(text) for n in notes if n["kind"] == "submit" for key, text in n["plans"].items()
        }
        self._ask_again(notes, tokens)
        self._settle(admin, time.monotonic())
        for job in admin.jobs():
            plan = plans.get(job.name)
            if plan is None:
                continue
            try:
                for name, most in (("stdout", plan.out), ("stderr", plan.err)):
                    verify_log(self.history, admin, job, job.name, name, most)
            except NotFound as exc:
                self.history.note("not_found", jid=job.jid, why=str(exc))
            except Error as exc:
                self.history.note("error", jid=job.jid, why=f"at rest: {type(exc).__name__}: {exc}")
        agents = admin.transport.call("GET", "/api/v1/agents")["agents"]
        for agent in agents:
            if agent["ops"]:
                self.history.note("leak", what=f"agent {agent['agent']} holds {agent['ops']} ops")
        for line in self.world.left().values():
            self.history.note("left", line=line)
        done = self.world.cli("audit", "verify")
        if done.returncode:
            self.history.note("audit_broken", why=(done.stdout + done.stderr).decode())

    def _ask_again(self, notes: list[dict[str, Any]], tokens: dict[str, str]) -> None:
        """A retry with the same key makes it exactly one (I2)."""
        known = {note["key"] for note in notes if note["kind"] == "submit_ok"}
        asked = {note["key"]: note for note in notes if note["kind"] == "submit"}
        for note in notes:
            if note["kind"] != "submit_info" or note["key"] in known:
                continue
            known.add(note["key"])
            plans = asked[note["key"]]["plans"]
            specs = [plan_of(text).spec(key, self.world.witness) for key, text in plans.items()]
            with contextlib.closing(self.world.client(tokens[note["user"]], direct=True)) as client:
                answers = client.submit(specs, idempotency_key=note["key"])
            jids = dict(zip(plans, [answer.jid for answer in answers], strict=True))
            self.history.note("submit_ok", user=note["user"], key=note["key"], jids=jids, again=True)

    def _hear_the_rest(self, admin: Client, listener: Listener) -> None:
        """The listener hears of what is stored; then it may go."""
        last = 0
        for job in admin.jobs():
            events = admin.transport.call("GET", f"/api/v1/jobs/{job.jid}/events")["events"]
            last = max(last, *(event["seq"] for event in events))
        try:
            eventually(lambda: listener.seqs and listener.seqs[-1] >= last, 60, "the listener hears all")
        except TimeoutError as exc:
            self.history.note("error", jid="", why=f"{exc}: {len(listener.seqs)} heard of {last}")
        listener.stopping.set()
        if listener.error is not None:
            raise listener.error

    @contextlib.contextmanager
    def _bystanders(self) -> Iterator[None]:
        """Processes that look like ours or like jobs, and must not be touched (I20)."""
        names = ("sj-spawner", "sj-agent", "python", "sleep")
        decoys = [
            subprocess.Popen([name, "100000"], executable="/bin/sleep", start_new_session=True)
            for name in names
        ]
        try:
            yield
            for decoy in decoys:
                if decoy.poll() is not None:
                    self.history.note("decoy_dead", pid=decoy.pid)
        finally:
            for decoy in decoys:
                decoy.kill()
                decoy.wait()

    def _judge(self, listener: Listener, nemesis: Nemesis, watch: "Watch", settle_secs: float) -> None:
        world = self.world
        found = facts_of.collect(
            world.root, world.database_url, world.truth(), world.cpus, listener.seqs, listener.heard
        )
        notes = self.history.read()
        self.violations = check(notes, found)
        fired = [line.split() for line in world.noted("fired")]
        kills = {f"{kind} {target}": n for (kind, target), n in nemesis.dealt.items() if kind == "kill"}
        deaths = [one for one in fired if one[2] == "kill"]
        served = sum(n["size"] for n in notes if n["kind"] in ("log", "followed"))
        self.report = {
            "profile": self.name,
            "seed": self.seed,
            "jobs": len(found.jobs),
            "attempts": len(found.attempts),
            "executions": sum(line[0] == "start" for line in found.truth),
            "states": _count(job.state for job in found.jobs.values()),
            "proofs": _count(str(one.proof) for one in found.attempts.values()),
            "kill_9": sum(kills.values()) + len(deaths),
            "kills_by_role": kills,
            "kills_at_failpoints": len(deaths),
            "failpoints_passed": f"{len(set(world.noted('passed')))} of {_POINTS}",
            "failpoints_fired": len({one[0] for one in deaths}),
            "other_blows": {
                f"{kind} {target}": n
                for (kind, target), n in sorted(nemesis.dealt.items())
                if kind not in KILLS and kind != "dally"
            },
            "links": {name: link.counts for name, link in world.proxy.links.items()},
            "calls_of_unknown_fate": sum(n["kind"] in ("info", "submit_info") for n in notes),
            "verified_bytes": served,
            "recovery_secs": watch.figures(),
            "settle_secs": round(settle_secs, 1),
            "events_heard": len(listener.seqs),
            "invariants_checked": sorted(" ".join(CHECKS).split()),
            "not_checked": NOT_CHECKED,
            "violations": [violation._asdict() for violation in self.violations],
            "directory": str(world.path) if self.violations else None,
        }


_POINTS = len(__import__("sirepo_jobs.failpoints", fromlist=["POINTS"]).POINTS)


def _count(words: Iterator[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for word in words:
        counts[word] = counts.get(word, 0) + 1
    return counts


class Watch(threading.Thread):
    """Asks all the time whether the service serves, and how big the supervisor is."""

    def __init__(self, world: World, history: History) -> None:
        super().__init__(name="watch", daemon=True)
        self.stopping = threading.Event()
        self.error: BaseException | None = None
        #: How long the service was away, each time.
        self.outages: list[float] = []
        self.most_rss = 0
        self._world = world
        self._history = history
        self._client = world.client(direct=True, patience_secs=0)

    def run(self) -> None:
        """Until told to stop."""
        away_since: float | None = None
        while not self.stopping.wait(0.05):
            try:
                self._client.transport.call("GET", "/readyz", read_secs=20)
            except Unavailable:
                away_since = now() if away_since is None else away_since
            except BaseException as exc:  # noqa: BLE001 - told to whoever started us
                self.error = exc
                return
            else:
                if away_since is not None:
                    self.outages.append(now() - away_since)
                away_since = None
            self._weigh()

    def _weigh(self) -> None:
        for pid in self._world.pids("supervisor"):
            with contextlib.suppress(OSError, ValueError):
                pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
                self.most_rss = max(self.most_rss, pages * os.sysconf("SC_PAGE_SIZE"))

    def figures(self) -> dict[str, Any]:
        """Of the outages, as seen by somebody who asks."""
        outages = sorted(self.outages)
        if not outages:
            return {"outages": 0, "supervisor_rss": self.most_rss}
        return {
            "outages": len(outages),
            "p50": round(outages[len(outages) // 2], 2),
            "p99": round(outages[int(len(outages) * 0.99)], 2),
            "most": round(outages[-1], 2),
            "supervisor_rss": self.most_rss,
        }
