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

from sirepo_jobs.agents import exit_file, process, spawner, words
from sirepo_jobs.agents.crew import BackOff, Spawner, fork
from sirepo_jobs.agents.journal import Helper, Intent, Journal
from sirepo_jobs.agents.lane import Lane, lane_pair
from sirepo_jobs.agents.nursery import Child, Nursery, report
from sirepo_jobs.agents.outbox import Kept, Outbox
from sirepo_jobs.agents.recovery import Recovery
from sirepo_jobs.agents.roster import Begin, Effect, End, Entry, Go, Hold, Key, Roster, Tell, TellAgain
from sirepo_jobs.agents.slate import Slate
from sirepo_jobs.agents.words import (
    Drop,
    Dropped,
    FromRelay,
    Kill,
    Over,
    Pause,
    Paused,
    Spawn,
    Spawned,
    ToRelay,
    Watch,
    decode_from_relay,
    decode_from_spawner,
    pack,
    relay,
    relay_records,
)
from sirepo_jobs.driver import AgentSpec
from sirepo_jobs.protocol import (
    FRAME_TARGET_BYTES,
    Cancel,
    Durable,
    Exited,
    Grant,
    Hello,
    Run,
    Signal,
    Stop,
    Welcome,
)

SPAWNERS: Final = 2
VERSION: Final = "0.1.0"
#: While attempts stand by, the records of so long share one sync and one message; else nothing waits.
GROUP_SECS: Final = 0.002
#: So many attempts may a spawner have in reserve, two more for each job that lived less than so long,
#: and it has to give them back when it has ended nothing for a while.
RESERVE: Final = 16
SHORT_US: Final = 50_000
IDLE_SECS: Final = 0.02
#: Grace of the jobs when the agent is told to stop.
STOP_GRACE_SECS: Final = 3.0
#: How long the last records may take to be acknowledged when the agent stops; then the journal keeps them.
FAREWELL_SECS: Final = 2.0
#: A full disk is tried again so often.
DISK_SECS: Final = 0.5

_encode = msgspec.json.Encoder().encode


class Launcher:
    """The launcher of one agent home. `run` returns when it is told to stop and everything is over."""

    def __init__(
        self, spec: AgentSpec, relay_main: Callable[[AgentSpec, Lane], None], close: list[int]
    ) -> None:
        self._spec = spec
        self._relay_main = relay_main
        #: Descriptors that only this process may hold: the lock.
        self._close = close
        self._boot_id = process.boot_id()
        self._journal = Journal(spec.home)
        past = self._journal.replay(self._boot_id)
        #: Of the state directory: a new one knows nothing of what was before.
        self.install = past.install
        self._roster = Roster(past.last_seq)
        self._outbox = Outbox(past.acked)
        self._intents: dict[int, Intent] = {}
        self._spawns: dict[int, Spawn] = {}
        self._nursery = Nursery()
        self._crew = [Spawner() for _ in range(SPAWNERS)]
        #: Begun, but no spawner is there to be asked.
        self._unasked: list[Spawn] = []
        self._relay: Lane | None = None
        self._relay_pid = 0
        self._relay_back_off = BackOff()
        self._session = self._epoch = 0
        #: The supervisor listens: durable records may go out.
        self._open = False
        self._again: list[bytes] = []
        #: A child has died since the last turn.
        self._bereaved = False
        #: A helper is missing.
        self._bereft = True
        self._next_sync = 0.0
        self._closing_at: float | None = None
        self._farewell_until = 0.0
        self._disk_full = False
        self._restore(past.kept, past.intents)
        self._recovery = Recovery(
            spec.run_root, dict(self._intents), past.helpers, rebooted=past.boot_id != self._boot_id
        )
        self._poll = select.poll()
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

    def _listen_to_signals(self) -> None:
        self._waker.setblocking(False)
        self._wake.setblocking(False)
        self._poll.register(self._waker.fileno(), select.POLLIN)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, self._on_term)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.set_wakeup_fd(self._wake.fileno(), warn_on_full_buffer=False)

    def _on_term(self, *_: object) -> None:
        if self._closing_at is None:
            self._closing_at = time.monotonic()

    def _hear(self, fd: int) -> None:
        if fd == self._waker.fileno():
            with suppress(BlockingIOError):
                self._waker.recv(4096)
            self._bereaved = True
            return
        if self._relay is not None and fd == self._relay.fileno():
            for frame in self._relay.take():
                self._hear_relay(decode_from_relay(frame))
            return
        for place in self._crew:
            if place.lane is not None and fd == place.lane.fileno():
                self._hear_spawner(place)

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
        if self._closing_at is not None and not self._roster.closing:
            self._do(self._roster.close(STOP_GRACE_SECS, _now_us()))
        if self._bereft:
            self._keep_helpers(now)
        self._reserve(now)
        self._flush(now)

    def _timeout_ms(self) -> int | None:
        due = [when for when in (self._nursery.next_due(), self._recovery.due) if when is not None]
        if self._outbox.unsynced:
            due.append(self._next_sync)
        if self._disk_full:
            due.append(time.monotonic() + DISK_SECS)
        if self._bereft:
            if self._relay is None:
                due.append(self._relay_back_off.due)
            due += [place.back_off.due for place in self._crew if not place.pid]
        due += [place.busy_at + IDLE_SECS for place in self._crew if place.reserved]
        if self._closing_at is not None:
            due.append(time.monotonic() + 0.1)
        if not due:
            return None
        return max(0, int((min(due) - time.monotonic()) * 1000 + 0.999))

    # -- the network side

    def _hear_relay(self, frame: FromRelay) -> None:
        if frame.hail:
            self._open = False
            self._roster.session_began()
            self._say(ToRelay(hello=self._hello(), watch=self._watch()))
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
                    self._session, self._epoch = frame.session, frame.epoch
                    self._acked(acked)
                    self._outbox.rewind(acked)
                    self._open = True
                case Stop(kill_jobs=kill_jobs):
                    if kill_jobs or not len(self._roster):
                        self._on_term()

    def _acked(self, seq: int) -> None:
        if seq <= self._outbox.acked:
            return
        for key in self._outbox.ack(seq):
            self._roster.forget(key)
        self._journal.acked(self._outbox.acked)

    def _say(self, word: ToRelay) -> None:
        if self._relay is not None:
            self._relay.put(relay(word))

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
            if entry.state == "ended":
                continue
            source = entry.run if entry.run is not None else self._intents.get(entry.ticket)
            if source is not None:
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
                    self._ask(self._spawn(entry, reserved=False))
                case Go(entry):
                    self._go(entry)
                case Tell(record, start):
                    raw = _encode(record)
                    ends = (record.jid, record.attempt) if isinstance(record, Exited) else None
                    self._journal.keep(raw, start)
                    self._outbox.push(Kept(record.seq, raw, ends))
                case End(entry, grace_secs):
                    self._tell(entry.ticket, Kill(ticket=entry.ticket, grace_secs=grace_secs))
                case Hold(entry, on):
                    self._tell(entry.ticket, Pause(ticket=entry.ticket, on=on))
                case TellAgain(key):
                    known = self._outbox.again(key)
                    if known is not None and self._open:
                        self._again.append(known)

    def _spawn(self, entry: Entry, *, reserved: bool) -> Spawn:
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

    def _ask(self, spawn: Spawn) -> None:
        places = [place for place in self._crew if place.pid]
        if not places:
            self._unasked.append(spawn)
            return
        place = min(places, key=_load)
        place.tickets.add(spawn.ticket)
        place.words.append(spawn)

    def _go(self, entry: Entry) -> None:
        for place in self._crew:
            if entry.ticket in place.tickets:
                place.reserved.discard(entry.ticket)
                place.words.append(words.Go(ticket=entry.ticket))

    def _reserve(self, now: float) -> None:
        """Let spawners that end one short job after the other start the next ones without asking."""
        least = min(map(_load, self._crew))
        for place in self._crew:
            if place.reserved and place.busy_at + IDLE_SECS <= now:
                place.words.append(Drop())
                place.reserved.clear()
                place.credit = 0
            elif place.pid and place.credit and self._roster.standby and _load(place) <= least + 1:
                for entry in self._roster.reserve(min(place.credit, RESERVE - len(place.reserved))):
                    place.tickets.add(entry.ticket)
                    place.reserved.add(entry.ticket)
                    place.words.append(self._spawn(entry, reserved=True))

    def _tell(self, ticket: int, word: Kill | Pause) -> None:
        """To whoever is the parent of that attempt."""
        for place in self._crew:
            if ticket in place.tickets:
                place.words.append(word)
                return
        if isinstance(word, Kill):
            self._nursery.stop(ticket, word.grace_secs)
        elif self._nursery.pause(ticket, on=word.on):
            self._do(self._roster.paused(ticket, _now_us(), on=word.on))

    # -- the spawners

    def _hear_spawner(self, place: Spawner) -> None:
        if place.lane is None:
            return
        for frame in place.lane.take():
            for word in decode_from_spawner(frame):
                if isinstance(word, Over):
                    place.tickets.discard(word.ticket)
                    place.reserved.discard(word.ticket)
                    place.reserved.discard(word.successor)
                    if word.started_at is not None and word.at - word.started_at < SHORT_US:
                        place.credit = min(place.credit + 2, RESERVE)
                    place.busy_at = time.monotonic()
                    self._over(word)
                elif isinstance(word, Dropped):
                    place.tickets.discard(word.ticket)
                    self._intents.pop(word.ticket, None)
                    self._spawns.pop(word.ticket, None)
                    self._do(self._roster.dropped(word.ticket, _now_us()))
                elif isinstance(word, Spawned):
                    self._do(self._roster.spawned(word.ticket, word.pid, word.start, word.at))
                    self._born(word)
                elif isinstance(word, Paused):
                    self._do(self._roster.paused(word.ticket, word.at, on=word.on))
        if place.lane.closed:
            with suppress(KeyError):
                self._poll.unregister(place.lane.fileno())

    def _born(self, word: Spawned) -> None:
        intent = self._intents.get(word.ticket)
        if intent is not None:
            self._intents[word.ticket] = msgspec.structs.replace(
                intent, pid=word.pid, start=word.start, started_at=word.at
            )

    def _over(self, over: Over) -> None:
        self._intents.pop(over.ticket, None)
        self._spawns.pop(over.ticket, None)
        self._do(self._roster.over(over))

    def _on_helper(self, pid: int, status: int) -> None:
        self._bereft = True
        if pid == self._relay_pid:
            self._relay_died()
            return
        for place in self._crew:
            if place.pid == pid:
                _log(
                    f"spawner {pid} died with wait status {status}; taking over {len(place.tickets)} attempts"
                )
                self._adopt(place)

    def _adopt(self, place: Spawner) -> None:
        """A spawner is dead; its children are ours now, and what it had in hand is told by its slate."""
        assert place.lane is not None
        assert place.slate is not None
        while not place.lane.closed:
            self._hear_spawner(place)
        lines = place.slate.read()
        successors = {line.instead_of: line.ticket for line in lines.values()}
        tickets = place.tickets
        place.died()
        for ticket in sorted(tickets):
            spawn = self._spawns[ticket]
            path = f"{self._spec.run_root}/{spawn.run_dir}"
            line = lines.get(ticket)
            if line is None and not os.path.lexists(path):
                # POSIT: it is dead, so it will not begin this one any more.
                self._intents.pop(ticket, None)
                self._spawns.pop(ticket, None)
                self._do(self._roster.dropped(ticket, _now_us()))
            elif found := exit_file.read(path, spawn.jid, spawn.attempt):
                over = exit_file.as_over(found, ticket)
                over.successor = successors.get(ticket, 0)
                self._over(over)
            elif line is None:
                self._nursery.take_rest(Child(spawn, 0, path, 0, 0.0, -1, -1))
            else:
                started_mono = process.started_mono(line.pid)
                child = Child(spawn, line.pid, path, line.started_at, started_mono, -1, -1)
                child.status = line.status
                if line.status is None and process.is_child(line.pid):
                    self._nursery.take(child)
                    entry = self._roster.of_ticket(ticket)
                    if entry is not None and entry.stopping is not None:
                        self._nursery.stop(ticket, entry.stopping)
                else:
                    self._nursery.take_rest(child)

    # -- keeping helpers alive

    def _keep_helpers(self, now: float) -> None:
        if self._closing_at is not None and not self._roster.live:
            return
        for place in self._crew:
            if not place.pid and place.back_off.due <= now:
                start = place.start(self._spawner_child)
                self._nursery.helpers.add(place.pid)
                assert place.lane is not None
                self._poll.register(place.lane.fileno(), select.POLLIN)
                self._journal.helper(place.pid, start)
                unasked, self._unasked = self._unasked, []
                for spawn in unasked:
                    self._ask(spawn)
        if self._relay is None and self._relay_back_off.due <= now:
            self._start_relay()
        self._bereft = self._relay is None or any(not place.pid for place in self._crew)

    def _spawner_child(self, lane: Lane, slate: Slate) -> None:
        self._abandon()
        spawner.main(self._spec, lane, slate)

    def _start_relay(self) -> None:
        ours, theirs = lane_pair()

        def child() -> None:
            ours.close()
            self._abandon()
            self._relay_main(self._spec, Lane(theirs))

        self._relay_pid = fork(child)
        theirs.close()
        self._nursery.helpers.add(self._relay_pid)
        self._relay = Lane(ours)
        self._relay_back_off.started()
        self._poll.register(ours.fileno(), select.POLLIN)

    def _relay_died(self) -> None:
        if self._relay is not None:
            with suppress(KeyError):
                self._poll.unregister(self._relay.fileno())
            self._relay.close()
        self._relay = None
        self._relay_pid = 0
        self._open = False
        self._relay_back_off.died()

    def _abandon(self) -> None:
        """In a forked child: let go of everything that is the launcher's alone."""
        for fd in self._close:
            os.close(fd)
        self._journal.close()
        self._nursery.close()
        self._waker.close()
        self._wake.close()
        if self._relay is not None:
            self._relay.close()
        for place in self._crew:
            if place.lane is not None:
                place.lane.close()

    # -- writing

    def _flush(self, now: float) -> None:
        # POSIT: nothing is asked for before its intent is in the journal, and nothing is told before
        # its record is on disk (C1).
        self._disk_full = not self._journal.write()
        if self._disk_full:
            return
        for place in self._crew:
            lane = place.lane
            if lane is None:
                continue
            if place.words:
                lane.put(pack(place.words))
                place.words.clear()
                self._flush_lane(lane)
            elif lane.pending:
                self._flush_lane(lane)
        if self._outbox.unsynced and now >= self._next_sync:
            self._disk_full = not self._journal.sync()
            if self._disk_full:
                return
            self._outbox.synced()
            self._next_sync = time.monotonic() + (GROUP_SECS if self._roster.standby else 0.0)
        if self._relay is not None:
            self._flush_relay(self._relay)
        if self._journal.long:
            self._compact()

    def _flush_relay(self, lane: Lane) -> None:
        if self._open:
            records, self._again = self._again, []
            while lane.pending < FRAME_TARGET_BYTES:
                records += self._outbox.batch(FRAME_TARGET_BYTES)
                if not records:
                    break
                lane.put(relay_records(self._session, self._epoch, records))
                records = []
        if lane.pending:
            self._flush_lane(lane)

    def _flush_lane(self, lane: Lane) -> None:
        lane.flush()
        if not lane.closed:
            with suppress(FileNotFoundError):
                self._poll.modify(lane.fileno(), select.POLLIN | (select.POLLOUT if lane.pending else 0))

    def _compact(self) -> None:
        helpers = []
        for place in self._crew:
            stat = process.stat_of(place.pid) if place.pid else None
            if stat is not None:
                helpers.append(Helper(pid=place.pid, start=stat.start))
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
        if self._closing_at is None or self._roster.live or len(self._nursery) or not self._roster.closing:
            return False
        if not len(self._outbox) or not self._open:
            return True
        now = time.monotonic()
        self._farewell_until = self._farewell_until or now + FAREWELL_SECS
        return now > self._farewell_until

    def _hang_up(self) -> None:
        """Let the helpers go: each ends when its lane does."""
        if self._relay is not None:
            self._relay.close()
        for place in self._crew:
            if place.lane is not None:
                place.lane.close()
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


def _load(place: Spawner) -> int:
    return len(place.tickets) - len(place.reserved)


def _now_us() -> int:
    return time.time_ns() // 1000


def _log(text: str) -> None:
    os.write(2, f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} launcher: {text}\n".encode())
