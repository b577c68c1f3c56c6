"""The checker finds what is wrong, and only that (F158); each failpoint stands in one place."""

import ast
import copy
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sirepo_jobs import failpoints
from sirepo_jobs.job import AttemptRecord, JobRecord, State
from tests.chaos.checker import CHECKS, check
from tests.chaos.facts import EventLine, Facts
from tests.chaos.plan import Plan

KEYS = KEY, _ = "k-1", "k-2"
JID, OTHER = "J1", "J2"
PLAN = Plan(out=100, cpus=2)
PACKAGE = Path(__file__).parents[2]


class Story:
    """A good run of two jobs, to be spoiled."""

    def __init__(self) -> None:
        self.notes: list[dict[str, Any]] = [
            {"at": 1.0, "kind": "submit", "user": "u", "key": KEY, "plans": {k: PLAN.text() for k in KEYS}},
            {"at": 1.1, "kind": "submit_ok", "user": "u", "key": KEY, "jids": {KEY: JID, "k-2": OTHER}},
            self.view(1, "pending", None),
            self.view(4, "completed", ["completed", 0, None, None, "t", 100, 0]),
            {"at": 9.0, "kind": "log", "jid": JID, "attempt": 1, "name": "stdout", "size": 100, "good": True},
            {"at": 9.0, "kind": "followed", "jid": JID, "attempt": 1, "size": 100, "good": True},
        ]
        self.jobs = {}
        self.attempts = {}
        self.events: list[EventLine] = []
        self.truth: list[list[str]] = []
        self.lengths: dict[tuple[str, int, str], int] = {}
        for seq, (jid, key) in enumerate(((JID, KEY), (OTHER, "k-2")), 1):
            self.jobs[jid] = JobRecord(
                jid=jid,
                seq=seq,
                user="u",
                state=State.COMPLETED,
                version=4,
                attempt=1,
                exit_code=0,
                created_at=1,
            )
            self.attempts[jid, 1] = AttemptRecord(
                jid=jid, attempt=1, serial=1, agent="a", run_dir="r", state=State.COMPLETED, reason=None,
                exit_code=0, stdout_bytes=100, stderr_bytes=0, proof="wait_status",
            )  # fmt: skip
            steps = (
                ("Submitted", "pending"),
                ("Assigned", "starting"),
                ("Started", "running"),
                ("Exited", "completed"),
            )
            for version, (kind, state) in enumerate(steps, 1):
                self.events.append(EventLine(len(self.events) + 1, jid, version, kind, state, {"attempt": 1}))
            at = seq * 10_000_000_000
            self.truth.append(["start", key, jid, "1", str(at), "99"])
            self.truth.append(["end", key, jid, "1", str(at + 1000), "0"])
            self.lengths |= {(jid, 1, "stdout"): 100, (jid, 1, "stderr"): 0}
        self.integrity = "ok"
        self.seqs = [event.seq for event in self.events]
        self.heard = {e.seq: (e.jid, e.version, e.kind, e.state) for e in self.events}

    def view(self, version: int, state: str, final: Any) -> dict[str, Any]:
        return {
            "at": 2.0, "kind": "view", "who": "u/1", "jid": JID, "version": version, "state": state,
            "serial": 1, "attempt": 1, "final": final,
        }  # fmt: skip

    def job(self, **changes: Any) -> None:
        self.jobs[JID] = msgspec.structs.replace(self.jobs[JID], **changes)

    def attempt(self, **changes: Any) -> None:
        self.attempts[JID, 1] = msgspec.structs.replace(self.attempts[JID, 1], **changes)

    def event(self, place: int, **changes: Any) -> None:
        self.events[place] = self.events[place]._replace(**changes)

    def note(self, kind: str, **facts: Any) -> None:
        self.notes.append({"at": 50.0, "kind": kind, **facts})

    def found(self) -> Counter[str]:
        names = {JID: KEY, OTHER: "k-2"}
        facts = Facts(
            self.jobs, {jid: names[jid] for jid in self.jobs}, self.attempts, self.events, self.lengths,
            self.integrity, self.truth, 3, self.seqs, self.heard,
        )  # fmt: skip
        return Counter(violation.invariant for violation in check(copy.deepcopy(self.notes), facts))


SPOILED: list[tuple[str, Callable[[Story], Any]]] = [
    ("I1", lambda s: s.jobs.pop(JID)),
    ("I1", lambda s: s.note("not_found", jid=JID, why="404")),
    ("I2", lambda s: s.note("double", first=[JID], second=[OTHER])),
    ("I2", lambda s: s.note("key_reused", key=KEY)),
    ("I3", lambda s: s.truth.append(["start", KEY, JID, "2", "1", "9"])),
    ("I3", lambda s: s.notes[0]["plans"].pop(KEY)),
    ("I4", lambda s: s.truth.append(s.truth[0])),
    ("I4", lambda s: s.truth.append(["overlap", KEY, JID, "1", "1", "9"])),
    ("I5", lambda s: s.attempts.pop((JID, 1))),
    ("I5", lambda s: s.attempt(proof="guess")),
    ("I5", lambda s: s.attempt(proof="never_claimed")),
    ("I7", lambda s: s.job(state=State.LOST)),
    ("I8", lambda s: s.event(2, version=7)),
    ("I8", lambda s: s.event(2, state="completed")),
    ("I9", lambda s: s.notes.append(s.view(5, "running", None))),
    ("I9", lambda s: s.notes.append(s.view(5, "error", ["error", 1, None, None, "t", 100, 0]))),
    ("I10", lambda s: s.attempt(exit_code=3)),
    ("I10", lambda s: s.attempt(exit_code=None, signal=9)),
    ("I10", lambda s: s.truth.pop(1)),
    ("I11", lambda s: s.notes.append(s.view(2, "running", None))),
    ("I12", lambda s: s.seqs.insert(3, 1)),
    ("I12", lambda s: s.heard.pop(3)),
    ("I13", lambda s: s.notes[4].update(size=0)),
    ("I13", lambda s: s.notes[5].update(size=99)),
    ("I13", lambda s: s.attempt(stdout_bytes=99)),
    ("I13", lambda s: s.lengths.update({(JID, 1, "stdout"): 99})),
    ("I14", lambda s: s.notes[4].update(good=False)),
    ("I14", lambda s: s.notes[5].update(good=False)),
    ("I16", lambda s: s.attempt(stdout_bytes=None)),
    ("I17", lambda s: s.note("left", line="sleep")),
    ("I17", lambda s: s.note("still_locked", jid=JID, state="completed")),
    ("I18", lambda s: s.events.append(EventLine(9, JID, 5, "Exited", "completed", {"attempt": 1}))),
    ("I19", lambda s: s.event(0, kind="CancelAsked")),
    ("I19", lambda s: s.notes.insert(0, {"at": -9.0, "kind": "cancel_ok", "jid": JID, "state": "canceled"})),
    ("I20", lambda s: s.note("decoy_dead", pid=1)),
    ("I21", lambda s: s.truth[2].__setitem__(4, s.truth[0][4])),
    ("I22", lambda s: s.note("leak", what="ops")),
    ("I28", lambda s: s.note("audit_broken", why="line 3")),
    ("I30", lambda s: setattr(s, "integrity", "row 3 missing")),
    ("I30", lambda s: s.job(version=9)),
    ("API", lambda s: s.note("error", jid=JID, why="500")),
]


def test_a_good_run_is_good() -> None:
    assert not Story().found()


@pytest.mark.parametrize(("invariant", "spoil"), SPOILED)
def test_what_is_wrong_is_found(invariant: str, spoil: Callable[[Story], Any]) -> None:
    story = Story()
    spoil(story)
    assert invariant in story.found()


def test_every_check_is_seen_to_fail() -> None:
    assert {name for names in CHECKS for name in names.split()} == {name for name, _ in SPOILED}


def test_every_failpoint_stands_in_one_place() -> None:
    calls: Counter[str] = Counter()
    for folder in ("sirepo_jobs", "agents", "drivers"):
        for path in (PACKAGE / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and ast.unparse(node.func) == "failpoints.hit":
                    calls[ast.literal_eval(node.args[0])] += 1
    assert calls == dict.fromkeys(failpoints.POINTS, 1)


def test_nothing_in_the_package_arms_failpoints() -> None:
    for folder in ("sirepo_jobs", "agents", "drivers"):
        for path in (PACKAGE / folder).rglob("*.py"):
            assert "failpoints.arm" not in path.read_text(), path
    assert failpoints._trap is None
