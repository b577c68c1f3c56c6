"""Parent of everything on the agent's side: one synchronous loop, no network, nothing that blocks for long.

A turn: hear everybody; decide (`roster`); write intents down; tell the spawners; bring the records to
disk; hand them to the network side. The network side and the spawners may die at any time: they are
started again, and the jobs do not notice.
"""

import gc
import os
import select
import signal
import socket
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import msgspec

from sirepo_jobs.agents import exit_file, process, spawner
from sirepo_jobs.agents.birth import never
from sirepo_jobs.agents.crew import Crew, Place, start_of
from sirepo_jobs.agents.journal import Helper, Intent, Journal
from sirepo_jobs.agents.lane import Lane
from sirepo_jobs.agents.nursery import Child, Nursery, report
from sirepo_jobs.agents.outbox import Kept, Outbox
from sirepo_jobs.agents.recovery import Recovery
from sirepo_jobs.agents.roster import Begin, Effect, End, Entry, Go, Hold, Key, Roster, Tell, TellAgain
from sirepo_jobs.agents.slate import Line, Slate
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
from sirepo_jobs.protocol import Cancel, Durable, Exited, Grant, Hello, Run, Signal, Stop, Welcome

VERSION: Final = "0.1.0"
#: While attempts stand by, the records of so long share one sync and one message; else nothing waits.
GROUP_SECS: Final = 0.004
#: Grace of the jobs when the agent is told to stop.
STOP_GRACE_SECS: Final = 3.0
#: How long the last records may take to be acknowledged when the agent stops; then the journal keeps them.
FAREWELL_SECS: Final = 2.0
#: A full disk is tried again so often.
DISK_SECS: Final = 0.5
MAX_LOG_BYTES: Final = 4 << 20

_encode = msgspec.json.Encoder().encode


class Launcher:
    """The launcher of one agent home. `run` returns when it is told to stop and everything is over."""

    def __init__(self, spec: AgentSpec, network: Callable[[AgentSpec, Lane], None], lock: int) -> None:
        self._spec = spec
        self._network = network
        #: Only this process may hold it.
        self._lock = lock
        self._boot_id = process.boot_id()
        self._journal = Journal(spec.home)
        past = self._journal.replay(self._boot_id)
        #: Of the state directory: a new one knows nothing of what was before.
        self.install = past.install
        self._roster = Roster(past.last_seq)
        self._outbox = Outbox(past.acked)
        self._intents: dict[int, Intent] = {}
        self._spawns: dict[int, Spawn] = {}
        #: Who was started in whose place by a spawner that could not tell any more.
        self._heirs: dict[int, int] = {}
        self._nursery = Nursery()
        self._poll = select.poll()
        self._crew = Crew(self._poll, self._spawner_child)
        self._upstream = Upstream(self._poll, self._network_child)
        #: A child has died since the last turn.
        self._bereaved = False
        #: A helper is missing.
        self._bereft = True
        self._next_sync = 0.0
        self._closing = False
        self._farewell_until = 0.0
        self._disk_full = False
        self._restore(past.kept, past.intents)
        rebooted = past.boot_id != self._boot_id
        self._recovery = Recovery(spec.run_root, dict(self._intents), past.helpers, rebooted=rebooted)
        if rebooted:
            # At once, and then under the new boot's name: what is begun from now on is of this boot.
            self.settle()
            self._rewrite()
        self._waker, self._wake = socket.socketpair()

    def _restore(self, kept: deque[tuple[Kept, Durable]], intents: dict[Key, Intent]) -> None:
        for record, message in kept:
            self._outbox.push(record)
            if isinstance(message, Exited):
                self._roster.restore(Entry((message.jid, message.attempt), message.serial, "ended", None))
        self._outbox.synced()
        for key, intent in intents.items():
            entry = Entry(key, intent.serial, "running", None)
            entry.started_at = intent.started_at or None
            self._roster.restore(entry)
            self._intents[entry.ticket] = intent

    # -- the loop

    def run(self) -> None:
        """Until it is told to stop, and everything is over."""
        self._listen_to_signals()
        gc.collect()
        gc.freeze()
        gc.set_threshold(100_000, 20, 20)
        while not self._finished():
            for fd, event in self._poll.poll(self._timeout_ms()):
                if event & ~select.POLLOUT:
                    self._hear(fd)
            self._turn()
        self._hang_up()

    def settle(self) -> None:
        """Instead of `run`: find out what became of everything, write it down, and start nothing."""
        while self._recovery.due is not None:
            time.sleep(max(0.0, self._recovery.due - time.monotonic()))
            for over in self._recovery.step():
                self._over(over)
        self._journal.sync()
        self._outbox.synced()

    def _listen_to_signals(self) -> None:
        self._waker.setblocking(False)
        self._wake.setblocking(False)
        self._poll.register(self._waker.fileno(), select.POLLIN)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, self._close)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.set_wakeup_fd(self._wake.fileno(), warn_on_full_buffer=False)

    def _close(self, *_: object) -> None:
        self._closing = True

    def _hear(self, fd: int) -> None:
        if fd == self._waker.fileno():
            with suppress(BlockingIOError):
                self._waker.recv(4096)
            self._bereaved = True
        elif fd == self._upstream.fileno():
            for frame in self._upstream.hear():
                self._hear_supervisor(frame)
        else:
            for place in self._crew.places:
                if place.lane is not None and fd == place.lane.fileno():
                    self._hear_spawner(place.hear())
                    if place.lane.closed:
                        # It is dead; its death is heard of in a moment.
                        self._poll.unregister(fd)

    def _turn(self) -> None:
        if self._bereaved:
            self._bereaved = False
            for child in self._nursery.reap(on_helper=self._on_helper):
                self._over(report(child))
        now = time.monotonic()
        due = self._nursery.next_due()
        if due is not None and due <= now:
            self._nursery.expire()
        if self._recovery.due is not None and self._recovery.due <= now:
            for over in self._recovery.step():
                self._over(over)
        if self._closing and not self._roster.closing:
            self._do(self._roster.close(STOP_GRACE_SECS, _now_us()))
        if self._bereft:
            self._keep_helpers(now)
        if self._roster.standby:
            self._crew.reserve(now, self._more)
        self._flush(now)

    def _timeout_ms(self) -> int | None:
        due = [self._nursery.next_due(), self._recovery.due, self._crew.next_due()]
        if self._outbox.unsynced:
            due.append(self._next_sync)
        if self._disk_full:
            due.append(time.monotonic() + DISK_SECS)
        if not self._upstream.pid:
            due.append(self._upstream.back_off.due)
        if self._closing:
            due.append(time.monotonic() + 0.1)
        when = min((one for one in due if one is not None), default=None)
        return None if when is None else max(0, int((when - time.monotonic()) * 1000 + 0.999))

    # -- the supervisor

    def _hear_supervisor(self, frame: FromRelay) -> None:
        if frame.hail:
            self._roster.session_began()
            self._upstream.hailed(ToRelay(hello=self._hello(), watch=self._watch()))
        if frame.ack:
            self._acked(frame.ack)
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
                        self._close()

    def _acked(self, seq: int) -> None:
        if seq > self._outbox.acked:
            for key in self._outbox.ack(seq):
                self._roster.forget(key)
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
                    self._stop(entry.ticket, grace_secs)
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
            spec=bytes(run.spec),
            reserved=reserved,
        )
        return spawn

    def _more(self, count: int) -> list[Spawn]:
        return [self._spawn(entry, reserved=True) for entry in self._roster.reserve(count)]

    def _stop(self, ticket: int, grace_secs: float) -> None:
        if self._crew.tell(ticket, Kill(ticket=ticket, grace_secs=grace_secs)):
            return
        spawn = self._crew.withdraw(ticket)
        if spawn is not None:
            self._over(never(spawn, None, "canceled before it began", stopped=True))
        else:
            self._nursery.stop(ticket, grace_secs)

    def _pause(self, ticket: int, *, on: bool) -> None:
        told = self._crew.tell(ticket, Pause(ticket=ticket, on=on))
        if not told and self._nursery.pause(ticket, on=on):
            self._do(self._roster.paused(ticket, _now_us(), on=on))

    # -- the spawners

    def _hear_spawner(self, words: list[FromSpawner]) -> None:
        for word in words:
            if isinstance(word, Over):
                self._over(word)
            elif isinstance(word, Spawned):
                self._do(self._roster.spawned(word.ticket, word.pid, word.start, word.at))
                intent = self._intents.get(word.ticket)
                if intent is not None:
                    self._intents[word.ticket] = msgspec.structs.replace(
                        intent, pid=word.pid, start=word.start, started_at=word.at
                    )
            elif isinstance(word, Dropped):
                self._dropped(word.ticket, lost=False)
            elif isinstance(word, Paused):
                self._do(self._roster.paused(word.ticket, word.at, on=word.on))

    def _over(self, over: Over) -> None:
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

    def _on_helper(self, pid: int, status: int) -> None:
        self._bereft = True
        if pid == self._upstream.pid:
            self._upstream.died()
        for place in self._crew.places:
            if place.pid == pid:
                count = len(place.tickets)
                _log(f"spawner {pid} died with wait status {status}; taking over {count} attempts")
                self._adopt(place)

    def _adopt(self, place: Place) -> None:
        """A spawner is dead: its children are ours now, and its slate tells what it had in hand."""
        words, lines, tickets = self._crew.died(place)
        self._hear_spawner(words)
        self._heirs |= {line.instead_of: line.ticket for line in lines.values() if line.instead_of}
        for ticket in tickets:
            spawn = self._spawns[ticket]
            path = f"{self._spec.run_root}/{spawn.run_dir}"
            line = lines.get(ticket)
            if line is None and not os.path.lexists(path):
                # POSIT: it is dead, so it will not begin this one any more.
                self._dropped(ticket, lost=True)
            elif found := exit_file.read(path, spawn.jid, spawn.attempt):
                self._over(exit_file.as_over(found, ticket))
            else:
                self._take_over(spawn, path, line or Line(ticket, 0, 0, None, 0))

    def _take_over(self, spawn: Spawn, path: str, line: Line) -> None:
        child = Child(spawn, line.pid, path, line.started_at, process.started_mono(line.pid), -1, -1)
        child.status = line.status
        if line.pid and line.status is None and process.is_child(line.pid):
            self._nursery.take(child)
            entry = self._roster.of_ticket(spawn.ticket)
            if entry is not None and entry.stopping is not None:
                self._nursery.stop(spawn.ticket, entry.stopping)
        else:
            self._nursery.take_rest(child)

    # -- helpers

    def _keep_helpers(self, now: float) -> None:
        if self._closing and not self._roster.live:
            return
        for place in self._crew.keep(now):
            self._nursery.helpers.add(place.pid)
            self._journal.helper(place.pid, start_of(place.pid))
        pid = self._upstream.keep(now)
        if pid:
            self._nursery.helpers.add(pid)
        self._bereft = not self._upstream.pid or not all(place.pid for place in self._crew.places)
        # What helpers say when they fall over goes there; nobody shall fill the disk by falling.
        with suppress(OSError):
            if os.fstat(2).st_size > MAX_LOG_BYTES:
                os.ftruncate(2, 0)

    def _spawner_child(self, lane: Lane, slate: Slate) -> None:
        self._abandon()
        spawner.main(self._spec, lane, slate)

    def _network_child(self, lane: Lane) -> None:
        self._abandon()
        self._network(self._spec, lane)

    def _abandon(self) -> None:
        """In a forked child: let go of everything that is the launcher's alone."""
        os.close(self._lock)
        self._journal.close()
        self._nursery.close()
        self._waker.close()
        self._wake.close()
        self._upstream.hang_up()
        self._crew.hang_up()

    # -- writing

    def _flush(self, now: float) -> None:
        # POSIT: nothing is asked for before its intent is in the journal, and nothing is told before
        # its record is on disk (C1).
        self._disk_full = not self._journal.write()
        if self._disk_full:
            return
        self._crew.flush()
        if self._outbox.unsynced and now >= self._next_sync:
            self._disk_full = not self._journal.sync()
            if self._disk_full:
                return
            self._outbox.synced()
            self._next_sync = time.monotonic() + (GROUP_SECS if self._roster.standby else 0.0)
        self._upstream.flush(self._outbox)
        if self._journal.long:
            self._rewrite()

    def _rewrite(self) -> None:
        helpers = [
            Helper(pid=place.pid, start=start_of(place.pid)) for place in self._crew.places if place.pid
        ]
        with suppress(OSError):  # a full disk: another time
            self._journal.rewrite(
                self.install,
                self._boot_id,
                self._outbox.acked,
                list(self._intents.values()),
                self._outbox.kept(),
                helpers,
            )

    # -- the end

    def _finished(self) -> bool:
        if not self._closing or not self._roster.closing or self._roster.live or len(self._nursery):
            return False
        if not len(self._outbox) or not self._upstream.open:
            return True
        now = time.monotonic()
        self._farewell_until = self._farewell_until or now + FAREWELL_SECS
        return now > self._farewell_until

    def _hang_up(self) -> None:
        """Let the helpers go: each ends when its lane does."""
        self._upstream.hang_up()
        self._crew.hang_up()
        deadline = time.monotonic() + 1.0
        while self._nursery.helpers and time.monotonic() < deadline:
            self._nursery.reap()
            select.select([self._waker], [], [], 0.05)
            with suppress(BlockingIOError):
                self._waker.recv(4096)
        for pid in self._nursery.helpers:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._journal.sync()


def _now_us() -> int:
    return time.time_ns() // 1000


def _log(text: str) -> None:
    os.write(2, f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} launcher: {text}\n".encode())
