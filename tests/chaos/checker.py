"""Holds what was seen and what is there against the invariants. Pure: lists in, violations out.

`CHECKS` names every invariant that is checked here; `NOT_CHECKED` says of the others where they are.
"""

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

from sirepo_jobs import events as events_of
from sirepo_jobs.job import FINAL, State
from sirepo_jobs.transitions import NEXT
from tests.chaos.facts import Facts
from tests.chaos.plan import Plan, plan_of

Notes = list[dict[str, Any]]


class Violation(NamedTuple):
    """Something that must not be."""

    invariant: str
    jid: str
    text: str


class Case:
    """History and facts, arranged for looking up."""

    def __init__(self, notes: Notes, facts: Facts) -> None:
        self.facts = facts
        self.by_kind: dict[str, Notes] = defaultdict(list)
        for note in notes:
            self.by_kind[note["kind"]].append(note)
        self.plans: dict[str, Plan] = {
            key: plan_of(text) for note in self.by_kind["submit"] for key, text in note["plans"].items()
        }
        self.events: dict[str, list[Any]] = defaultdict(list)
        for event in facts.events:
            self.events[event.jid].append(event)
        #: Witness lines by (jid, attempt).
        self.starts: dict[tuple[str, int], list[list[str]]] = defaultdict(list)
        self.ends: dict[tuple[str, int], list[list[str]]] = defaultdict(list)
        for line in facts.truth:
            {"start": self.starts, "end": self.ends}.get(line[0], defaultdict(list))[
                line[2], int(line[3])
            ].append(line)

    def exited(self, jid: str, attempt: int) -> dict[str, Any]:
        """How the agent said that the attempt ended; empty when it never did."""
        for line in self.events[jid]:
            if line.kind == "Exited" and line.data["attempt"] == attempt:
                return dict(line.data)
        return {}

    def plan(self, jid: str) -> Plan | None:
        """What the job was to do."""
        return self.plans.get(self.facts.names.get(jid, ""))


def no_loss(case: Case) -> Iterator[Violation]:
    """I1: what was accepted is there."""
    for note in case.by_kind["submit_ok"]:
        for key, jid in note["jids"].items():
            if jid not in case.facts.jobs:
                yield Violation("I1", jid, f"accepted under {key}, and not in the store")
    for note in case.by_kind["not_found"]:
        yield Violation("I1", note["jid"], f"accepted, and then: {note['why']}")


def idempotence(case: Case) -> Iterator[Violation]:
    """I2: one key, one job."""
    by_name: dict[str, list[str]] = defaultdict(list)
    for jid, name in case.facts.names.items():
        by_name[name].append(jid)
    for name, jids in by_name.items():
        if len(jids) > 1:
            yield Violation("I2", jids[0], f"{name} is there {len(jids)} times: {jids}")
    for note in case.by_kind["double"]:
        yield Violation("I2", note["first"][0], f"the same key made {note['first']} and {note['second']}")
    for note in case.by_kind["key_reused"]:
        yield Violation("I2", "", f"key {note['key']} was accepted for another request")


def no_phantom(case: Case) -> Iterator[Violation]:
    """I3: everything there was asked for."""
    for jid, name in case.facts.names.items():
        if name not in case.plans:
            yield Violation("I3", jid, f"{name!r} was never submitted")
    for (jid, attempt), lines in case.starts.items():
        job = case.facts.jobs.get(jid)
        if job is None or attempt > job.attempt or case.facts.names[jid] != lines[0][1]:
            yield Violation("I3", jid, f"attempt {attempt} ran and the store knows nothing of it")


def single_execution(case: Case) -> Iterator[Violation]:
    """I4: an attempt starts once, and attempts of a job never overlap."""
    for (jid, attempt), lines in case.starts.items():
        if len(lines) > 1:
            yield Violation("I4", jid, f"attempt {attempt} started {len(lines)} times")
    for line in case.facts.truth:
        if line[0] == "overlap":
            yield Violation("I4", line[2], f"attempt {line[3]} began while another execution lived")


def attempt_order(case: Case) -> Iterator[Violation]:
    """I5: attempts are numbered without gaps, each with its proof."""
    proofs = {"exit_record", "wait_status", "never_claimed", "launcher_lost", "boot_changed"}
    for jid, job in case.facts.jobs.items():
        plan = case.plan(jid)
        charged = 0
        for attempt in range(1, job.attempt + 1):
            record = case.facts.attempts.get((jid, attempt))
            if record is None:
                if attempt < job.attempt or job.state in FINAL:
                    yield Violation("I5", jid, f"attempt {attempt} has no record")
                continue
            if record.proof not in proofs:
                yield Violation("I5", jid, f"attempt {attempt} ended by proof {record.proof!r}")
            charged += record.proof != "never_claimed"
            if record.proof == "never_claimed" and case.starts.get((jid, attempt)):
                yield Violation("I5", jid, f"attempt {attempt} ran, and is said to be never claimed")
        if plan is not None and charged > plan.max_attempts:
            yield Violation("I5", jid, f"{charged} attempts of {plan.max_attempts}")


def liveness(case: Case) -> Iterator[Violation]:
    """I7: when the faults are over, everything comes to its end."""
    for jid, job in case.facts.jobs.items():
        if job.state not in FINAL:
            yield Violation("I7", jid, f"still {job.state} ({job.reason}): {job.situation}")


def legal_transitions(case: Case) -> Iterator[Violation]:
    """I8: the history of each job is a walk through the table, numbered without gaps."""
    kinds = {event.__name__: event for event in events_of.EVENTS}
    for jid, lines in case.events.items():
        before = None
        for place, line in enumerate(lines, 1):
            if line.version != place:
                yield Violation("I8", jid, f"event {place} has version {line.version}")
                break
            if before is not None:
                allowed = NEXT.get((State(before), kinds[line.kind]))
                if allowed is None or (line.state != before if not allowed else line.state not in allowed):
                    yield Violation("I8", jid, f"{line.kind} made {before} {line.state}")
            elif line.kind != "Submitted":
                yield Violation("I8", jid, f"its first event is {line.kind}")
            before = line.state


def terminal_final(case: Case) -> Iterator[Violation]:
    """I9: what has ended stays as it is."""
    seen: dict[tuple[str, int], Any] = {}
    for note in case.by_kind["view"]:
        if note["final"] is None:
            if (note["jid"], note["serial"]) in seen:
                yield Violation("I9", note["jid"], f"had ended, and is {note['state']} again")
            continue
        known = seen.setdefault((note["jid"], note["serial"]), note["final"])
        if known != note["final"]:
            yield Violation("I9", note["jid"], f"was {known}, is {note['final']}")
    for (jid, _), final in seen.items():
        job = case.facts.jobs.get(jid)
        if job is not None and (job.state, job.exit_code, job.signal) != tuple(final[:3]):
            yield Violation("I9", jid, f"seen as {final[:3]}, stored as {job.state} {job.exit_code}")


def truthful_status(case: Case) -> Iterator[Violation]:
    """I10: the recorded status is the witness's own."""
    for (jid, attempt), record in case.facts.attempts.items():
        plan = case.plan(jid)
        ends = [int(line[5]) for line in case.ends.get((jid, attempt), ())]
        if plan is None:
            continue
        asked = any(line.kind in ("CancelAsked", "HoldAsked") for line in case.events[jid])
        if record.exit_code is not None and ends != [record.exit_code]:
            yield Violation("I10", jid, f"attempt {attempt}: recorded {record.exit_code}, witnessed {ends}")
        if record.signal is not None:
            limited = plan.soft_msecs and case.exited(jid, attempt).get("reason") == "TIME_LIMIT"
            own = plan.sig == record.signal and ends == [-plan.sig]
            if not (own or asked or limited):
                yield Violation("I10", jid, f"attempt {attempt}: signal {record.signal} is nobody's")
        if record.state is State.COMPLETED and ends != [0]:
            yield Violation("I10", jid, f"attempt {attempt}: completed, witnessed {ends}")
        if record.exit_code is None and record.signal is None and record.state is State.COMPLETED:
            yield Violation("I10", jid, f"attempt {attempt}: completed without a status")
        if ends and ends[0] != (record.exit_code if record.exit_code is not None else -(record.signal or 0)):
            known = record.exit_code is not None or record.signal is not None
            if known and not asked and not plan.soft_msecs:
                yield Violation("I10", jid, f"attempt {attempt}: witnessed {ends}, recorded {record}")


def session_order(case: Case) -> Iterator[Violation]:
    """I11: nobody sees a job go back."""
    last: dict[tuple[str, str], int] = {}
    for note in case.by_kind["view"]:
        who = note["who"], note["jid"]
        if note["version"] < last.get(who, 0):
            yield Violation("I11", note["jid"], f"{who[0]} saw version {last[who]}, then {note['version']}")
        last[who] = note["version"]


def event_stream(case: Case) -> Iterator[Violation]:
    """I12: who listens hears of everything once, in order."""
    seqs = case.facts.seqs
    for one, two in itertools.pairwise(seqs):
        if two <= one:
            yield Violation("I12", "", f"event {two} came after {one}")
    stored = {event.seq: (event.jid, event.version, event.kind, event.state) for event in case.facts.events}
    for seq in range(1, (seqs[-1] if seqs else 0) + 1):
        if case.facts.heard.get(seq) != stored.get(seq):
            yield Violation("I12", "", f"event {seq} is {stored.get(seq)}, heard {case.facts.heard.get(seq)}")


def whole_output(case: Case) -> Iterator[Violation]:
    """I13, I14: the bytes served are the bytes written, all of them, and nobody else's."""
    for note in case.by_kind["log"]:
        jid, attempt, name = note["jid"], note["attempt"], note["name"]
        if not note["good"]:
            yield Violation("I14", jid, f"{name} of attempt {attempt}: bytes that it did not write")
        there = case.facts.lengths.get((jid, attempt or 0, name), 0)
        if attempt is None:
            job = case.facts.jobs[jid]
            there = case.facts.lengths.get((jid, job.attempt, name), 0)
        if note["size"] != there:
            yield Violation("I13", jid, f"{note['size']} of {there} bytes of {name} were served")
    for note in case.by_kind["followed"]:
        if not note["good"]:
            yield Violation("I14", note["jid"], f"followed attempt {note['attempt']}: foreign bytes")
        there = case.facts.lengths.get((note["jid"], note["attempt"] or 0, "stdout"), 0)
        if note["size"] != there:
            yield Violation("I13", note["jid"], f"{note['size']} of {there} bytes were followed")
    for (jid, attempt), record in case.facts.attempts.items():
        plan = case.plan(jid)
        for name, said in (("stdout", record.stdout_bytes), ("stderr", record.stderr_bytes)):
            there = case.facts.lengths.get((jid, attempt, name), 0)
            if said is not None and said != there:
                yield Violation("I13", jid, f"{name} of attempt {attempt} has {there} bytes, recorded {said}")
            whole = plan and (plan.out if name == "stdout" else plan.err)
            if (jid, attempt) in case.ends and there != whole:
                yield Violation("I13", jid, f"{name} of attempt {attempt}: {there} of {whole} bytes on disk")


def no_early_end(case: Case) -> Iterator[Violation]:
    """I16: an end that is proven by its status comes with the final lengths."""
    for (jid, attempt), record in case.facts.attempts.items():
        if record.proof in ("wait_status", "exit_record") and record.stdout_bytes is None:
            yield Violation("I16", jid, f"attempt {attempt} ended without its lengths")


def nothing_left(case: Case) -> Iterator[Violation]:
    """I17: what has ended has left nothing."""
    for note in case.by_kind["still_locked"]:
        yield Violation("I17", note["jid"], f"it is {note['state']}, and something of it lives")
    for note in case.by_kind["left"]:
        yield Violation("I17", "", f"left: {note['line']}")


def one_outcome(case: Case) -> Iterator[Violation]:
    """I18: an attempt ends once."""
    ends = {"Exited", "NotStarted", "DeathProven"}
    for jid, lines in case.events.items():
        seen: set[int] = set()
        for line in lines:
            if line.kind in ends:
                attempt = line.data["attempt"]
                if attempt in seen:
                    yield Violation("I18", jid, f"attempt {attempt} ended twice")
                seen.add(attempt)


def cancel_is_final(case: Case) -> Iterator[Violation]:
    """I19: no attempt is made, and nothing starts, after a cancel was accepted."""
    for jid, lines in case.events.items():
        asked = False
        for line in lines:
            asked = (asked or line.kind == "CancelAsked") and line.kind != "RetryAsked"
            if asked and line.kind == "Assigned":
                yield Violation("I19", jid, "a new attempt after it was canceled")
    canceled = {note["jid"]: note["at"] for note in reversed(case.by_kind["cancel_ok"])}
    for (jid, attempt), starts in case.starts.items():
        if jid in canceled and int(starts[0][4]) / 1e9 > canceled[jid] + 10:
            yield Violation("I19", jid, f"attempt {attempt} started long after it was canceled")


def no_collateral(case: Case) -> Iterator[Violation]:
    """I20: bystanders live."""
    for note in case.by_kind["decoy_dead"]:
        yield Violation("I20", "", f"bystander {note['pid']} was killed")


def no_over_allocation(case: Case) -> Iterator[Violation]:
    """I21: what certainly ran at the same time fits into the cpus (a lower bound: own words only)."""
    edges = []
    for key, ends in case.ends.items():
        plan = case.plan(key[0])
        for start, end in zip(case.starts[key], ends, strict=False):
            cpus = plan.cpus if plan else 1
            edges += [(int(start[4]), 1, cpus, key[0]), (int(end[4]), 0, -cpus, key[0])]
    used = 0
    for _, _, cpus, jid in sorted(edges):
        used += cpus
        if used > case.facts.cpus:
            yield Violation("I21", jid, f"{used} cpus of {case.facts.cpus} were in use")
            return


def no_leak(case: Case) -> Iterator[Violation]:
    """I22: at rest nothing is held."""
    for note in case.by_kind["leak"]:
        yield Violation("I22", "", note["what"])


def audit(case: Case) -> Iterator[Violation]:
    """I28: the audit log is whole."""
    for note in case.by_kind["audit_broken"]:
        yield Violation("I28", "", note["why"])


def recovered(case: Case) -> Iterator[Violation]:
    """I30: the store is sound, and each job is what its history says."""
    if case.facts.integrity != "ok":
        yield Violation("I30", "", f"integrity_check: {case.facts.integrity}")
    for jid, job in case.facts.jobs.items():
        lines = case.events.get(jid)
        if not lines or (lines[-1].state, lines[-1].version) != (job.state, job.version):
            yield Violation(
                "I30", jid, f"is {job.state} v{job.version}, its history ends at {lines and lines[-1]}"
            )


def unexpected(case: Case) -> Iterator[Violation]:
    """No call may fail otherwise than by the service being away."""
    for note in case.by_kind["error"]:
        yield Violation("API", note["jid"], note["why"])


CHECKS: Final[dict[str, Callable[[Case], Iterator[Violation]]]] = {
    "I1": no_loss, "I2": idempotence, "I3": no_phantom, "I4": single_execution, "I5": attempt_order,
    "I7": liveness, "I8": legal_transitions, "I9": terminal_final, "I10": truthful_status,
    "I11": session_order, "I12": event_stream, "I13 I14": whole_output, "I16": no_early_end,
    "I17": nothing_left, "I18": one_outcome, "I19": cancel_is_final, "I20": no_collateral,
    "I21": no_over_allocation, "I22": no_leak, "I28": audit, "I30": recovered, "API": unexpected,
}  # fmt: skip
NOT_CHECKED: Final = {
    "I6": "a stale message needs the state before and after it: tests/sim and test_agent_talk hold it",
    "I15": "witnesses publish no artifacts; downloads under cuts are in tests/acceptance/test_files.py",
    "I23": "the load has no lasting shortage; fair share is in tests/unit/test_slots_scheduler.py",
    "I24": "no witness is hostile to others",
    "I25": "no canaries here; tests/integration/test_route_matrix.py asks for everything as everybody",
    "I26": "the proxy repeats words of the same agent, it invents none",
    "I27": "no canary secrets here; S-tests in tests/unit and tests/integration",
    "I29": "only one supervisor is started at a time; test_store_faults starts two",
    "I31": "memory is reported (supervisor_rss), not judged: runs of minutes show no slope",
    "I32": "the clock of the machine cannot be set here",
    "I33": "one version only",
    "I34": "one version only",
}


def check(notes: Notes, facts: Facts) -> list[Violation]:
    """Every violation of every invariant."""
    case = Case(notes, facts)
    return [violation for look in CHECKS.values() for violation in look(case)]
