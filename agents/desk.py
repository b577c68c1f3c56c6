"""The launcher's desk: everything that is said comes here, is decided, written down and passed on.

`roster` decides; the desk does what it says: intents into the journal, requests to the spawners, records
into the outbox. It knows nothing of forks, signals and timers.
"""

import os
import time
from contextlib import suppress
from typing import Final

import msgspec

from sirepo_jobs import failpoints
from sirepo_jobs.agents import exit_file, process
from sirepo_jobs.agents.birth import unbegun
from sirepo_jobs.agents.child import Child
from sirepo_jobs.agents.crew import Crew, Place, start_of
from sirepo_jobs.agents.journal import Helper, Intent, Journal, NotReplaced, Past
from sirepo_jobs.agents.nursery import Nursery
from sirepo_jobs.agents.outbox import Kept, Outbox
from sirepo_jobs.agents.recovery import Recovery
from sirepo_jobs.agents.roster import Begin, Effect, End, Entry, Go, Hold, Roster, Tell, TellAgain
from sirepo_jobs.agents.slate import NOTHING, Line
from sirepo_jobs.agents.upstream import Upstream
from sirepo_jobs.agents.words import (
    Dropped,
    FromRelay,
    FromSpawner,
    Kill,
    Over,
    Pause,
    Paused,
    Spawn,
    Spawned,
    ToRelay,
    Watch,
)
from sirepo_jobs.driver import AgentSpec
from sirepo_jobs.protocol import Cancel, Exited, Grant, Hello, Run, Signal, Stop, Welcome
from sirepo_jobs.reasons import Reason

VERSION: Final = "0.1.0"
#: While attempts stand by, the records of so long share one sync and one message; else nothing waits.
GROUP_SECS: Final = 0.03
#: Grace of the jobs when the agent is told to stop.
STOP_GRACE_SECS: Final = 3.0

_encode = msgspec.json.Encoder().encode


class Desk:
    """What one launcher knows, and what follows from what it hears."""

    def __init__(
        self, spec: AgentSpec, journal: Journal, nursery: Nursery, crew: Crew, upstream: Upstream
    ) -> None:
        self._spec = spec
        self._journal = journal
        self._nursery = nursery
        self._crew = crew
        self._upstream = upstream
        self._boot_id = process.boot_id()
        past = journal.replay(self._boot_id)
        #: Of the state directory: a new one knows nothing of what was before.
        self.install = past.install
        #: Spawners of earlier launchers.
        self._old_helpers = past.helpers
        #: The host was started anew since the last launcher.
        self.rebooted = past.boot_id != self._boot_id
        self._roster = Roster(past.last_seq)
        self._outbox = Outbox(past.acked)
        #: Attempts that have a process, or are about to, by ticket.
        self._intents: dict[int, Intent] = {}
        self._spawns: dict[int, Spawn] = {}
        #: Who was started in whose place by a spawner that could not tell any more.
        self._heirs: dict[int, int] = {}
        #: Somebody wants everything to end.
        self.closing = False
        #: It was not the supervisor who wanted it.
        self._evicted = False
        #: Somebody wants this process to end, and nothing else.
        self.leaving = False
        self.disk_full = False
        self._next_sync = 0.0
        self._restore(past)

    def _restore(self, past: Past) -> None:
        for record, message in past.kept:
            self._outbox.push(record)
            if isinstance(message, Exited):
                self._roster.restore(Entry((message.jid, message.attempt), message.serial, "ended", None))
        self._outbox.inherited()
        for key, intent in past.intents.items():
            entry = Entry(key, intent.serial, "running", None)
            entry.started_at = intent.started_at or None
            self._roster.restore(entry)
            self._intents[entry.ticket] = intent

    # -- what may be known

    def recovery(self) -> Recovery:
        """What is to be found out about the attempts of earlier launchers."""
        return self._recovery(dict(self._intents))

    def _recovery(self, intents: dict[int, Intent]) -> Recovery:
        return Recovery(
            self._spec.run_root, intents, self._old_helpers, self._condemn, rebooted=self.rebooted
        )

    def _condemn(self, tickets: set[int]) -> bool:
        """Bring to disk that we are about to kill these; False when it is full."""
        for ticket in sorted(tickets):
            intent = self._intents[ticket]
            if not intent.condemned:
                self._intents[ticket] = intent = msgspec.structs.replace(intent, condemned=True)
                self._journal.intend(intent)
        return self._journal.sync()

    @property
    def live(self) -> int:
        """Attempts that have or may get a process."""
        return self._roster.live

    @property
    def unsaid(self) -> int:
        """Records that the supervisor has not acknowledged."""
        return len(self._outbox)

    def leave(self) -> None:
        """SIGTERM: the host, or our driver, wants us to go, and our processes with us.

        Unless the supervisor has said `Stop` before, that is the end of an agent and no end of the jobs' own:
        an engine in order, or a host, that goes down says nothing about what ran there (F104).
        """
        self._evicted = self._evicted or not self.closing
        self.closing = True

    # -- the supervisor

    def hear_supervisor(self, frame: FromRelay) -> None:
        """The network side has heard from the supervisor."""
        if frame.hail:
            self._roster.session_began()
            self._upstream.hailed(ToRelay(hello=self._hello(), watch=self._watch()))
        if frame.ack:
            self._acked(frame.ack)
        if frame.renewed_at:
            self._nursery.renew(frame.renewed_at)
            self._crew.renew(frame.renewed_at)
        now = _now_us()
        for msg in frame.msgs:
            match msg:
                case Run():
                    self._do(self._roster.run(msg, now))
                case Grant():
                    self._do(self._roster.grant(msg))
                case Cancel():
                    self._do(self._roster.cancel(msg, now))
                case Signal():
                    self._do(self._roster.signal(msg))
                case Welcome(acked=acked):
                    self._acked(acked)
                    self._outbox.rewind()
                    self._upstream.welcome(frame.session, frame.epoch)
                case Stop(kill_jobs=kill_jobs):
                    if kill_jobs or not len(self._roster):
                        self.closing = True
                        self._close(now)  # at once: nothing that comes behind it begins

    def _acked(self, seq: int) -> None:
        before = self._outbox.acked
        for key in self._outbox.ack(seq):
            self._roster.forget(key)
        if self._outbox.acked > before:
            self._journal.acked(self._outbox.acked)

    def _hello(self) -> Hello:
        return Hello(
            agent=self._spec.agent,
            version=VERSION,
            host=os.uname().nodename,
            pid=os.getpid(),
            boot_id=self._boot_id,
            install=self.install,
            last_seq=self._roster.last_seq,
            inventory=self._roster.inventory(),
            leases=self._spec.slurm is None,
            made_at=process.boot_secs(),
            marks=self._spec.url.startswith("unix:"),
        )

    def _watch(self) -> list[Watch]:
        watch = []
        for entry in self._roster.entries():
            source = entry.run if entry.run is not None else self._intents.get(entry.ticket)
            if source is not None and entry.state != "ended":
                watch.append(
                    Watch(
                        jid=source.jid,
                        serial=source.serial,
                        attempt=source.attempt,
                        run_dir=source.run_dir,
                        progress=source.progress,
                        lease_secs=entry.run.lease_secs if entry.run is not None else None,
                    )
                )
        return watch

    # -- effects

    def _do(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Begin(entry):
                    self._crew.ask(self._spawn(entry))
                case Go(entry):
                    self._crew.go(entry.ticket)
                case Tell(record, start):
                    raw = _encode(record)
                    ends = (record.jid, record.attempt) if isinstance(record, Exited) else None
                    self._journal.keep(raw, start)
                    self._outbox.push(Kept(record.seq, raw, ends))
                case End(entry, grace_secs):
                    self._stop(entry.ticket, grace_secs, entry.reason)
                case Hold(entry, on):
                    self._pause(entry.ticket, on=on)
                case TellAgain(key):
                    known = self._outbox.again(key)
                    if known is not None:
                        self._upstream.again(known)

    def _spawn(self, entry: Entry, *, reserved: bool = False) -> Spawn:
        """Write the intent down, and make the request."""
        run = entry.run
        assert run is not None
        entry.mark = process.new_mark()
        intent = self._intents[entry.ticket] = Intent(
            jid=run.jid,
            serial=run.serial,
            attempt=run.attempt,
            run_dir=run.run_dir,
            mark=entry.mark,
            cpus=run.cpus,
            progress=run.progress,
        )
        self._journal.intend(intent)
        spawn = self._spawns[entry.ticket] = Spawn(
            ticket=entry.ticket,
            mark=entry.mark,
            jid=run.jid,
            serial=run.serial,
            attempt=run.attempt,
            command=run.command,
            run_dir=run.run_dir,
            env=run.env,
            soft_secs=run.soft_secs,
            hard_secs=run.hard_secs,
            grace_secs=run.grace_secs,
            progress=run.progress,
            cpus=run.cpus,
            lease_secs=run.lease_secs,
            output_bytes=run.output_bytes,
            processes=run.processes,
            spec=bytes(run.spec),
            reserved=reserved,
        )
        return spawn

    def _more(self, count: int) -> list[Spawn]:
        return [self._spawn(entry, reserved=True) for entry in self._roster.reserve(count)]

    def _stop(self, ticket: int, grace_secs: float, reason: Reason | None = None) -> None:
        if self._crew.tell(ticket, Kill(ticket=ticket, grace_secs=grace_secs, reason=reason)):
            return
        spawn = self._crew.withdraw(ticket)
        if spawn is not None:
            self.over(unbegun(spawn, reason))
        else:
            self._nursery.stop(ticket, grace_secs, reason)

    def _pause(self, ticket: int, *, on: bool) -> None:
        told = self._crew.tell(ticket, Pause(ticket=ticket, on=on))
        if not told and self._nursery.pause(ticket, on=on):
            self._do(self._roster.paused(ticket, _now_us(), on=on))

    # -- the spawners

    def hear_spawner(self, words: list[FromSpawner]) -> None:
        """A spawner has told something."""
        for word in words:
            if isinstance(word, Over):
                self.over(word)
            elif isinstance(word, Spawned):
                self._born(word)
            elif isinstance(word, Dropped):
                self._dropped(word.ticket, lost=False)
            elif isinstance(word, Paused):
                self._do(self._roster.paused(word.ticket, word.at, on=word.on))

    def _born(self, word: Spawned) -> None:
        self._do(self._roster.spawned(word.ticket, word.pid, word.start, word.at))
        intent = self._intents.get(word.ticket)
        if intent is not None:
            self._intents[word.ticket] = msgspec.structs.replace(
                intent, pid=word.pid, start=word.start, started_at=word.at
            )

    def over(self, over: Over) -> None:
        """An attempt is over."""
        self._intents.pop(over.ticket, None)
        self._spawns.pop(over.ticket, None)
        heir = self._heirs.pop(over.ticket, 0)
        if heir and not over.successor:
            over.successor = heir
        self._do(self._roster.over(over))

    def _dropped(self, ticket: int, *, lost: bool) -> None:
        self._intents.pop(ticket, None)
        self._spawns.pop(ticket, None)
        self._do(self._roster.dropped(ticket, _now_us(), lost=lost))

    def adopt(self, place: Place) -> None:
        """A spawner is dead: its children are ours now, and its slate tells what it had in hand."""
        words, lines, tickets = self._crew.died(place)
        self.hear_spawner(words)
        self._heirs |= {line.instead_of: line.ticket for line in lines.values() if line.instead_of}
        for ticket in tickets:
            spawn = self._spawns[ticket]
            path = f"{self._spec.run_root}/{spawn.run_dir}"
            line = lines.get(ticket)
            if line is None and not os.path.lexists(path):
                # POSIT: it is dead, so it will not begin this one any more.
                self._dropped(ticket, lost=True)
            elif found := exit_file.read(path, spawn.jid, spawn.attempt):
                self.over(exit_file.as_over(found, ticket))
            else:
                self._take_over(spawn, path, line or NOTHING)

    def _take_over(self, spawn: Spawn, path: str, line: Line) -> None:
        child = Child(spawn, line.pid, path, line.started_at, process.started_mono(line.pid), -1, -1)
        child.status = line.status
        child.stopped = line.stopped
        child.reason = line.reason
        if line.pid and line.status is None and process.is_child(line.pid):
            self._nursery.take(child)
            # Its spawner may not have told of the birth any more.
            self._born(
                Spawned(ticket=child.ticket, pid=line.pid, start=start_of(line.pid), at=line.started_at)
            )
            entry = self._roster.of_ticket(spawn.ticket)
            if entry is not None and entry.stopping is not None:
                self._nursery.stop(spawn.ticket, entry.stopping, entry.reason)
        else:
            self._nursery.take_rest(child)

    # -- turns

    def settle(self, overs: list[Over]) -> None:
        """What was found out about attempts of earlier launchers."""
        for over in overs:
            self.over(over)

    def sync(self) -> None:
        """Bring everything to disk now."""
        if self._journal.sync():
            self._outbox.synced()

    def decide(self, now: float) -> None:
        """Once per turn, when everybody has been heard."""
        self._close(_now_us())
        if self._roster.standby:
            self._reserve(now)

    def _close(self, at: int) -> None:
        if self.closing and not self._roster.closing:
            self._do(self._roster.close(STOP_GRACE_SECS, at, evicted=self._evicted))

    def _reserve(self, now: float) -> None:
        self._crew.reserve(now, self._more)

    def next_due(self) -> float | None:
        """When `flush` has something to do, whatever happens."""
        # a full disk is tried again when the launcher says so
        return self._next_sync if self._outbox.unsynced and not self.disk_full else None

    def helper_started(self, pid: int) -> None:
        """A spawner was started; the next launcher must know of it."""
        self._journal.helper(pid, start_of(pid))

    def flush(self, now: float) -> None:
        """Write down and pass on what was decided since the last time."""
        # POSIT: nothing is asked for before its intent is in the journal, and nothing is told before
        # its record is on disk (C1).
        self.disk_full = not self._journal.write() or not self._journal.reserved
        failpoints.hit("journal.written")
        self._crew.flush(begin=not self.disk_full)
        failpoints.hit("spawners.told")
        if self._outbox.unsynced and now >= self._next_sync and self._journal.sync():
            self._outbox.synced()
            failpoints.hit("journal.synced")
            self._next_sync = time.monotonic() + (GROUP_SECS if self._roster.standby else 0.0)
        self._upstream.flush(self._outbox)
        if self._journal.long and not self.disk_full:
            self.rewrite()

    def rewrite(self) -> None:
        """Let the journal say only what still matters, under this boot's name."""
        helpers = [helper for helper in self._old_helpers if process.alive(helper.pid, helper.start)]
        helpers += [
            Helper(pid=place.pid, start=start_of(place.pid)) for place in self._crew.places if place.pid
        ]
        with suppress(NotReplaced):  # a full disk: another time
            self._journal.rewrite(
                self.install,
                self._boot_id,
                self._outbox.acked,
                list(self._intents.values()),
                self._outbox.kept(),
                helpers,
            )


def _now_us() -> int:
    return time.time_ns() // 1000
