"""The checker: a pure function of a history. Each violation names its invariant (reliability.md, section 3).

It believes nobody: not the supervisor, but the births and deaths of processes as the kernel saw them, what
was committed when, and what clients were told.
"""

from collections import defaultdict
from typing import Any

import msgspec
from msgspec import Struct

from sirepo_jobs import events as job_events
from sirepo_jobs.job import FINAL, State
from sirepo_jobs.reasons import Reason
from sirepo_jobs.transitions import NEXT
from tests.sim.program import expected
from tests.sim.scenario import Scenario

_EVENTS = {kind.__name__: kind for kind in job_events.EVENTS}
#: What may prove the end of an attempt (I5).
_PROOFS = {
    "exit_record", "wait_status", "never_claimed", "boot_changed", "launcher_lost", "lease_expired",
    "operator",
}  # fmt: skip
#: Those that say how a process ended.
_STATUS_PROOFS = {"exit_record", "wait_status"}
#: Faults that may keep an attempt from beginning as often as a job has patience.
_NO_STARTS = {"host_full", "no_pids", "host_io", "spawner_kill", "launcher_kill"}

CHECKED = (
    "I1", "I2", "I3", "I4", "I5", "I6", "I7", "I8", "I9", "I10", "I11", "I12", "I13", "I14", "I16", "I17",
    "I18", "I19", "I20", "I21", "I22", "I29", "I30", "I32", "C1",
)  # fmt: skip


class _Numbered(Struct):
    seq: int


_numbered = msgspec.json.Decoder(_Numbered).decode


class Attempt:
    """What the kernel saw of one attempt."""

    def __init__(self) -> None:
        self.births: list[tuple[float, str, int]] = []
        self.deaths: list[tuple[float, int, int, bool]] = []
        self.cpus = 0


class Checker:
    """Reads a history once, then answers."""

    def __init__(self, scenario: Scenario, history: list[tuple[Any, ...]]) -> None:
        self.scenario = scenario
        self.violations: list[str] = []
        self.truth: dict[tuple[str, int], Attempt] = defaultdict(Attempt)
        self.keys: dict[str, tuple[str, ...]] = {}
        self.accepted: set[str] = set()
        self.state: dict[str, str] = {}
        self.version: dict[str, int] = {}
        self.records: dict[str, Any] = {}
        self.ended: dict[tuple[str, int], Any] = {}
        self.last_attempt: dict[str, int] = {}
        self.events: list[tuple[Any, ...]] = []
        self.canceled: dict[str, float] = {}
        #: Attempts that ended when their job was canceled already.
        self.stopped: set[tuple[str, int]] = set()
        self.alive: dict[str, set[tuple[Any, ...]]] = defaultdict(set)
        self.cpus = 0
        self.seen: dict[tuple[int, str], int] = {}
        self.heard: dict[int, int] = {}
        #: What each journal's launchers have let out, by number.
        self.handed_out: dict[str, dict[int, bytes]] = defaultdict(dict)
        self.told: dict[str, int] = {}
        self.epoch = 0
        self.final: dict[str, Any] = {}
        self.reads: list[tuple[Any, ...]] = []
        self.faults = {fault.kind for fault in scenario.faults}
        for entry in history:
            act = getattr(self, f"_on_{entry[1]}", None)
            if act is not None:
                act(entry[0], *entry[2:])
        self._at_the_end()

    def bad(self, invariant: str, text: str) -> None:
        self.violations.append(f"{invariant}: {text}")

    # -- code of ours fell over

    def _on_crashed(self, at: float, who: str, what: str, why: str) -> None:
        self.bad("crash", f"{at}: {who}: {what}: {why}")

    def _on_livelock(self, at: float, why: str) -> None:
        self.bad("I7", f"{at}: {why}")

    def _on_leak(self, at: float, what: str, *rest: Any) -> None:
        if what != "process" or not self._may_outlive(rest[1], rest[2]):
            self.bad("I22", f"{what} {rest}")

    def _may_outlive(self, jid: str, attempt: int, proof: str | None = None) -> bool:
        """Whoever would have ended it by its lease was ended, or stopped, by force (see `leases`)."""
        row = self.ended.get((jid, attempt))
        proof = row.proof if row is not None else proof
        return proof == "lease_expired" and bool(self.faults & {"spawner_kill", "spawner_freeze"})

    def _on_not_serving(self, at: float) -> None:
        self.bad("I7", "the supervisor does not serve though everything is mended")

    def _on_hurt(self, at: float, host: str, pid: int, number: int) -> None:
        self.bad("I20", f"{at}: signal {number} went to somebody else's process {pid} on {host}")

    def _on_handed_out(self, at: float, install: str, records: tuple[bytes, ...]) -> None:
        for raw in records:
            seq = _numbered(raw).seq
            if self.handed_out[install].setdefault(seq, raw) != raw:
                self.bad("C1", f"{at}: record {seq} of {install} was another one before")

    def _on_remembers(self, at: float, install: str, acked: int, kept: tuple[bytes, ...]) -> None:
        there = {_numbered(raw).seq: raw for raw in kept}
        for seq, raw in self.handed_out[install].items():
            if seq > acked and there.get(seq) != raw:
                self.bad(
                    "C1", f"{at}: record {seq} of {install} was told, and its journal has {there.get(seq)!r}"
                )

    def _on_replayed(self, at: float, agent: str, unchanged: bool) -> None:
        if not unchanged:
            self.bad("I6", f"{at}: an old frame of {agent} changed something")

    def _on_alive_after_end(self, at: float, jid: str, attempt: int, kind: str, proof: str | None) -> None:
        if not self._may_outlive(jid, attempt, proof):
            self.bad("I17", f"{at}: attempt {attempt} of {jid} is called over ({proof}) and its {kind} lives")

    # -- processes

    def _on_born(self, at: float, jid: str, attempt: int, host: str, pid: int, cpus: int) -> None:
        truth = self.truth[jid, attempt]
        if truth.births:
            self.bad(
                "I4", f"{at}: attempt {attempt} of {jid} was started twice, first at {truth.births[0][0]}"
            )
        overlaps = sorted(other for other in self.alive[jid] if not self._may_outlive(jid, other[0]))
        if overlaps:
            self.bad("I4", f"{at}: attempt {attempt} of {jid} overlaps with {overlaps}")
        truth.births.append((at, host, pid))
        truth.cpus = cpus
        self.alive[jid].add((attempt, "main"))
        self.cpus += cpus
        if self.cpus > self.scenario.cpus:
            self.bad("I21", f"{at}: {self.cpus} cpus are in use of {self.scenario.cpus}")
        if (jid, attempt) in self.ended:
            self.bad("I9", f"{at}: attempt {attempt} of {jid} begins after its end")

    def _on_died(
        self, at: float, jid: str, attempt: int, status: int, written: int, hit: bool, host: str
    ) -> None:
        truth = self.truth[jid, attempt]
        truth.deaths.append((at, status, written, hit))
        self.alive[jid].discard((attempt, "main"))
        self.cpus -= truth.cpus

    def _on_left(self, at: float, jid: str, attempt: int, pid: int) -> None:
        self.alive[jid].add((attempt, "left", pid))

    def _on_left_gone(self, at: float, jid: str, attempt: int, pid: int) -> None:
        self.alive[jid].discard((attempt, "left", pid))

    # -- commits

    def _on_commit(
        self, at: float, epoch: int, current: int, new: Any, events: Any, attempts: Any, records: Any
    ) -> None:
        if epoch != current or epoch < self.epoch:
            self.bad("I29", f"{at}: epoch {epoch} wrote while {current} has the store")
        self.epoch = epoch
        for seq, jid, version, kind, state in events:
            self._event(at, seq, jid, version, kind, state)
        for record in records:
            before = self.records.get(record.jid)
            if before is not None and record.version < before.version:
                self.bad(
                    "I8", f"{at}: version of {record.jid} falls from {before.version} to {record.version}"
                )
            self._frozen(at, before, record)
            self.records[record.jid] = record
            if record.state.value != self.state.get(record.jid):
                self.bad(
                    "I8",
                    f"{at}: {record.jid} is {record.state} and its events say {self.state.get(record.jid)}",
                )
        for attempt in attempts:
            self._attempt(at, attempt)

    def _event(self, at: float, seq: int, jid: str, version: int, kind: str, state: str) -> None:
        if self.events and seq <= self.events[-1][0]:
            self.bad("I12", f"{at}: event {seq} comes after {self.events[-1][0]}")
        self.events.append((seq, jid, version, kind, state))
        before = self.state.get(jid)
        if kind == "Submitted":
            if before is not None:
                self.bad("I8", f"{at}: {jid} is submitted twice")
        elif before is None:
            self.bad("I8", f"{at}: {kind} happens to {jid}, which was never submitted")
        else:
            allowed = NEXT.get((State(before), _EVENTS[kind]))
            if allowed is None or (
                state not in allowed if allowed and state != before else bool(not allowed and state != before)
            ):
                self.bad("I8", f"{at}: {kind} makes {jid} {state} from {before}")
            if version <= self.version[jid]:
                self.bad("I8", f"{at}: {kind} gives {jid} version {version} after {self.version[jid]}")
        if kind == "Exited" and jid in self.canceled:
            self.stopped.add((jid, self.last_attempt.get(jid, 0)))
        if kind == "Assigned":
            self._assigned(at, jid)
        elif kind in ("RetryAsked", "Released"):
            self.canceled.pop(jid, None)
        elif kind == "CancelAsked":
            self.canceled.setdefault(jid, at)
        self.state[jid], self.version[jid] = state, version

    def _assigned(self, at: float, jid: str) -> None:
        number = self.last_attempt[jid] = self.last_attempt.get(jid, 0) + 1
        if jid in self.canceled:
            self.bad(
                "I19", f"{at}: attempt {number} of {jid} is made after its cancel at {self.canceled[jid]}"
            )

    def _attempt(self, at: float, row: Any) -> None:
        key = (row.jid, row.attempt)
        if key in self.ended:
            self.bad("I18", f"{at}: attempt {row.attempt} of {row.jid} ends twice")
        self.ended[key] = row
        if row.proof not in _PROOFS:
            self.bad("I5", f"{at}: attempt {row.attempt} of {row.jid} ended on the word of {row.proof!r}")
        truth = self.truth.get(key)
        born = truth is not None and bool(truth.births)
        if row.proof == "never_claimed" and row.state is State.ERROR and not self.faults & _NO_STARTS:
            self.bad("C11", f"{at}: {row.jid} fails, and it was never begun: {row.reason} {row.situation}")
        if row.proof == "never_claimed" and born:
            self.bad(
                "I10", f"{at}: attempt {row.attempt} of {row.jid} was born and is said to have never been"
            )
        if row.proof in _STATUS_PROOFS:
            self._status(at, row, truth, born)
        elif row.exit_code is not None or row.signal is not None:
            self.bad(
                "I10",
                f"{at}: a status of {row.jid} that nothing proves: {row.exit_code} {row.signal} {row.proof}",
            )
        elif row.state is State.COMPLETED:
            self.bad("I10", f"{at}: {row.jid} is called completed on the word of {row.proof}")

    def _status(self, at: float, row: Any, truth: Attempt | None, born: bool) -> None:
        if not born or truth is None:
            if row.exit_code not in (126, 127):
                self.bad(
                    "I10",
                    f"{at}: attempt {row.attempt} of {row.jid} never was, and has a status {row.exit_code}",
                )
            return
        if not truth.deaths:
            return  # I17 has said so
        _, status, written, hit = truth.deaths[-1]
        code, number = (None, status) if 0 < status < 128 else (status >> 8, None)
        if (row.exit_code, row.signal) != (code, number):
            self.bad(
                "I10",
                f"{at}: attempt {row.attempt} of {row.jid} ended with {code} {number}, "
                f"recorded is {row.exit_code} {row.signal}",
            )
        if row.state is State.COMPLETED and code != 0:
            self.bad("I10", f"{at}: {row.jid} is called completed with {code} {number}")
        if row.stdout_bytes != written and "host_full" not in self.faults and "host_power" not in self.faults:
            self.bad("I16", f"{at}: {row.jid} wrote {written} bytes, recorded are {row.stdout_bytes}")
        by_us = hit and number in (9, 15)
        if by_us and row.reason is Reason.SIGNALED:
            self.bad("I10", f"{at}: {row.jid} was ended by our signal {number}, which is shown as its own")
        if (row.jid, row.attempt) in self.stopped and by_us and row.state is not State.CANCELED:
            self.bad("I18", f"{at}: {row.jid} was ended by our signal after its cancel and is {row.state}")
        if row.state is State.CANCELED and not hit:
            self.bad("I18", f"{at}: {row.jid} ended by itself with {code} {number} and is called canceled")

    def _frozen(self, at: float, before: Any, record: Any) -> None:
        """I9: what has ended stays as it is."""
        if before is None or before.state not in FINAL or record.serial != before.serial:
            return
        for name in (
            "state",
            "exit_code",
            "signal",
            "reason",
            "ended_at",
            "stdout_bytes",
            "attempt",
            "proof",
        ):
            if getattr(before, name) != getattr(record, name):
                self.bad("I9", f"{at}: {name} of {record.jid} changes after its end")

    # -- clients

    def _on_submitted(self, at: float, key: str, user: str, jids: tuple[str, ...], made: bool) -> None:
        if self.keys.setdefault(key, jids) != jids:
            self.bad("I2", f"{at}: key {key} made {self.keys[key]} and {jids}")
        for jid in jids:
            self.accepted.add(jid)
            if jid not in self.records:
                self.bad("I1", f"{at}: {jid} is accepted and not committed")

    def _on_told(self, at: float, verb: str, jid: str, version: int, state: str, serial: int) -> None:
        if self.version.get(jid, 0) < version and self.records[jid].version < version:
            self.bad(
                "I11",
                f"{at}: a client was told version {version} of {jid}, committed is {self.version.get(jid)}",
            )
        self.told[jid] = max(self.told.get(jid, 0), version)

    def _on_refused(self, at: float, verb: str, jid: str, kind: str) -> None:
        if kind == "NotFound":
            self.bad("I1", f"{at}: {jid} is not found")

    def _on_missed(self, at: float, number: int, jid: str, kind: str) -> None:
        self._on_refused(at, "watch", jid, kind)

    def _on_saw(self, at: float, number: int, jid: str, version: int, state: str) -> None:
        if version < self.seen.get((number, jid), 0):
            self.bad(
                "I11", f"{at}: version of {jid} falls from {self.seen[number, jid]} to {version} for a client"
            )
        if self.records[jid].version < version:
            self.bad("I11", f"{at}: a client saw version {version} of {jid} before it was committed")
        self.seen[number, jid] = version

    def _on_heard(self, at: float, number: int, seq: int, jid: str, version: int, kind: str) -> None:
        last = self.heard.get(number, 0)
        if seq <= last:
            self.bad("I12", f"{at}: subscriber {number} hears event {seq} after {last}")
        missed = [event for event in self.events if last < event[0] < seq]
        if missed:
            self.bad("I12", f"{at}: subscriber {number} misses {missed[0]}")
        self.heard[number] = seq

    def _on_read(self, at: float, jid: str, attempt: int, how: str, found: bytes) -> None:
        if found != expected(jid, attempt, "stdout", 0, len(found)):
            self.bad("I14", f"{at}: what was read of {jid} is not what it wrote")
        if how == "end":
            self.reads.append((jid, attempt, len(found)))

    def _on_final(self, at: float, rows: Any) -> None:
        self.final = {record.jid: record for record, _ in rows}

    # -- the end

    def _at_the_end(self) -> None:
        for jid in self.accepted - set(self.final):
            self.bad("I1", f"{jid} was accepted and is gone")
        born = {jid for jid, _ in self.truth}
        for jid in born - set(self.final):
            self.bad("I3", f"a process of {jid}, which nobody submitted")
        for jid, attempt in self.truth:
            if attempt > self.last_attempt.get(jid, 0):
                self.bad("I3", f"a process of attempt {attempt} of {jid}, which was never made")
        made = {jid for jids in self.keys.values() for jid in jids}
        if self.scenario.healed_at is not None:
            for jid in set(self.final) - made:
                self.bad("I3", f"{jid} exists and no client knows it")
        for jid, record in self.final.items():
            self._job(jid, record)
        for jid, attempt, length in self.reads:
            row = self.ended.get((jid, attempt))
            if row is not None and row.stdout_bytes is not None and length > row.stdout_bytes:
                self.bad("I13", f"{length} bytes were read of {jid}, and it wrote {row.stdout_bytes}")
            truth = self.truth.get((jid, attempt))
            written = truth.deaths[-1][2] if truth is not None and truth.deaths else None
            lossy = self.faults & {"host_power", "host_full", "home_wiped"}
            if written is not None and length != written and not lossy:
                self.bad("I13", f"{length} bytes were read of {jid} to the end, and it wrote {written}")

    def _job(self, jid: str, record: Any) -> None:
        attempts = sorted(number for other, number in self.ended if other == jid)
        held = record.state in (State.STARTING, State.RUNNING, State.SUSPENDED, State.CANCELING, State.LOST)
        count = record.attempt - (1 if held else 0)
        if attempts != list(range(1, count + 1)):
            self.bad("I5", f"{jid} is at attempt {record.attempt} ({record.state}); ended are {attempts}")
        if record.version != self.version.get(jid) and record.progress is None:
            self.bad("I30", f"{jid} has version {record.version}; its events end at {self.version.get(jid)}")
        if self.scenario.healed_at is None:
            return
        excused = record.state is State.HELD or (record.state is State.LOST and self._may_stay_lost(record))
        # slots of a lost job stay taken, so that others may wait for ever, too
        excused = excused or (
            record.state in (State.PENDING, State.STARTING)
            and any(map(self._may_stay_lost, self.final.values()))
        )
        if record.state not in FINAL and not excused:
            self.bad("I7", f"{jid} is {record.state} at the end: {record.reason} {record.situation}")

    def _may_stay_lost(self, record: Any) -> bool:
        """Nobody knows any more: it ends by an operator's word."""
        lost = record.state is State.LOST and str(record.reason) == "AGENT_LOST"
        return lost and bool(self.faults & {"home_wiped", "host_power"})


def check(scenario: Scenario, history: list[tuple[Any, ...]]) -> list[str]:
    """Everything that is wrong with a history."""
    return Checker(scenario, history).violations
