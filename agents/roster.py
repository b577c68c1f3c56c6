"""Which attempts this agent has, and when each starts. Pure: no clock, no I/O.

Every method is an event and returns effects, in the order in which they are to be done. A standby
attempt starts when it is granted slots, or at once in the slots of one that ends here.
"""

from collections.abc import Iterator
from typing import Final, NamedTuple

from sirepo_jobs.agents.words import Over
from sirepo_jobs.protocol import Cancel, Durable, Exited, Grant, Held, Run, Signal, Started, Suspended
from sirepo_jobs.reasons import Reason

#: Cancels of attempts that have not arrived yet, so many are remembered.
MAX_CANCELED: Final = 10_000

#: Spawners may die so often before an attempt begins.
MAX_LOSSES: Final = 3

#: An attempt, on the wire of one agent.
Key = tuple[str, int]


class Entry:
    """One attempt, from its `Run` until its end is acknowledged."""

    __slots__ = (
        "key",
        "losses",
        "mark",
        "never",
        "reason",
        "run",
        "serial",
        "started_at",
        "state",
        "stopping",
        "ticket",
    )

    def __init__(self, key: Key, serial: int, state: str, run: Run | None) -> None:
        self.key = key
        self.serial = serial
        #: standby | starting | running | suspended | ended
        self.state = state
        #: None for one that was known by its end alone.
        self.run = run
        self.started_at: int | None = None
        #: Names it towards the spawners, once it starts.
        self.ticket = 0
        self.mark = 0
        #: Spawners that died before they began it.
        self.losses = 0
        #: It was canceled before it began.
        self.never = False
        #: Grace of a cancel that is under way.
        self.stopping: float | None = None
        #: Why it is stopped, when nobody wished it: `AGENT_LOST` with its agent, which has to go.
        self.reason: Reason | None = None


class Begin(NamedTuple):
    """Have it started; its ticket is set."""

    entry: Entry


class Go(NamedTuple):
    """Have the reserved one started by the spawner that has it."""

    entry: Entry


class End(NamedTuple):
    """TERM, and KILL after the grace; `entry.reason` says why."""

    entry: Entry
    grace_secs: float


class Hold(NamedTuple):
    """STOP or CONT."""

    entry: Entry
    on: bool


class Tell(NamedTuple):
    """Keep this record until it is acknowledged; `start` is the process's start time, if it was born."""

    record: Durable
    start: int = 0


class TellAgain(NamedTuple):
    """The supervisor seems not to know the end of this one."""

    key: Key


Effect = Begin | Go | End | Hold | Tell | TellAgain


class Roster:
    """All attempts of one agent."""

    def __init__(self, last_seq: int = 0) -> None:
        #: The last `seq` given to a durable record.
        self.last_seq = last_seq
        #: Nothing starts any more.
        self.closing = False
        self._entries: dict[Key, Entry] = {}
        #: Attempts that have a process, or are about to, or are in reserve.
        self._tickets: dict[int, Entry] = {}
        #: In the order in which they came. Those in reserve have a ticket.
        self._standby: dict[Key, Entry] = {}
        self._ended = 0
        self._canceled: dict[Key, None] = {}
        self._last_ticket = 0

    # -- looking

    def __len__(self) -> int:
        """Attempts whose end the supervisor has not acknowledged."""
        return len(self._entries)

    @property
    def live(self) -> int:
        """Attempts that have or may get a process."""
        return len(self._entries) - self._ended

    @property
    def standby(self) -> int:
        """Attempts that wait for slots."""
        return len(self._standby)

    def entries(self) -> Iterator[Entry]:
        """All of them."""
        return iter(self._entries.values())

    def of_ticket(self, ticket: int) -> Entry | None:
        """The attempt that has, or is about to have, a process."""
        return self._tickets.get(ticket)

    def inventory(self) -> list[Held]:
        """What `Hello` says."""
        return [
            Held(
                jid=entry.key[0],
                serial=entry.serial,
                attempt=entry.key[1],
                state=entry.state,
                started_at=entry.started_at,
            )
            for entry in self._entries.values()
        ]

    # -- what the supervisor says

    def session_began(self) -> None:
        """A new connection: the supervisor repeats what it still wants."""
        self._canceled.clear()

    def run(self, run: Run, at: int) -> list[Effect]:
        """`Run`. For a known attempt it changes nothing."""
        key = (run.jid, run.attempt)
        entry = self._entries.get(key)
        if entry is not None:
            return [TellAgain(key)] if entry.state == "ended" else []
        entry = self._entries[key] = Entry(key, run.serial, "standby", run)
        if key in self._canceled:
            del self._canceled[key]
            return [self._never(entry, at, "canceled before it arrived")]
        if self.closing:
            entry.reason = Reason.AGENT_LOST
            return [self._unbegun(entry, at)]
        if run.standby:
            self._standby[key] = entry
            return []
        return [self._begin(entry)]

    def grant(self, grant: Grant) -> list[Effect]:
        """`Grant`."""
        entry = self._standby.get((grant.jid, grant.attempt))
        return [] if entry is None else [self._begin(entry)]

    def cancel(self, cancel: Cancel, at: int) -> list[Effect]:
        """`Cancel`. One whose `Run` has not come yet is remembered."""
        key = (cancel.jid, cancel.attempt)
        entry = self._entries.get(key)
        if entry is None:
            self._remember(key)
            return []
        return self._stop(entry, cancel.grace_secs, at)

    def signal(self, signal: Signal) -> list[Effect]:
        """`Signal`."""
        entry = self._entries.get((signal.jid, signal.attempt))
        if entry is None or entry.state in ("standby", "ended"):
            return []
        return [Hold(entry, signal.suspend)]

    def close(self, grace_secs: float, at: int, *, evicted: bool = False) -> list[Effect]:
        """Stop everything, and start nothing any more.

        `evicted`: not the supervisor wants it but the host, so that it says nothing about any job (F104).
        """
        self.closing = True
        effects: list[Effect] = []
        for entry in list(self._entries.values()):
            if evicted and entry.stopping is None:
                entry.reason = Reason.AGENT_LOST
            effects += self._stop(entry, grace_secs, at)
        return effects

    # -- what the spawners say

    def spawned(self, ticket: int, pid: int, start: int, at: int) -> list[Effect]:
        """Its process exists."""
        entry = self._tickets.get(ticket)
        if entry is None or entry.started_at is not None:
            return []
        self._standby.pop(entry.key, None)
        if entry.state != "suspended":
            entry.state = "running"
        entry.started_at = at
        jid, attempt = entry.key
        self.last_seq += 1
        started = Started(seq=self.last_seq, jid=jid, serial=entry.serial, attempt=attempt, at=at, pid=pid)
        return [Tell(started, start)]

    def paused(self, ticket: int, at: int, *, on: bool) -> list[Effect]:
        """Its group was stopped, or continued. Telling it twice changes nothing."""
        entry = self._tickets.get(ticket)
        if entry is None or (entry.state == "suspended") is on:
            return []
        entry.state = "suspended" if on else "running"
        jid, attempt = entry.key
        self.last_seq += 1
        return [
            Tell(Suspended(seq=self.last_seq, jid=jid, serial=entry.serial, attempt=attempt, at=at, on=on))
        ]

    def over(self, over: Over) -> list[Effect]:
        """It is over and its slots are free: another one may take them."""
        entry = self._tickets.pop(over.ticket, None)
        if entry is None:
            return []
        successor, begun = None, False
        # One in reserve had no slots to leave.
        if self._standby.pop(entry.key, None) is None:
            successor = self._tickets.get(over.successor)
            # It may have got slots of its own meanwhile: then these are free for another one.
            begun = successor is not None and self._standby.pop(successor.key, None) is not None
            if not begun:
                successor = self._successor(entry)
        jid, attempt = entry.key
        self._end(entry)
        entry.never = over.stopped and not over.began
        self.last_seq += 1
        exited = Exited(
            seq=self.last_seq,
            jid=jid,
            serial=entry.serial,
            attempt=attempt,
            at=over.at,
            started_at=over.started_at if over.started_at is not None else entry.started_at,
            exit_code=over.exit_code,
            signal=over.signal,
            reason=over.reason,
            message=over.message,
            stopped=over.stopped,
            began=over.began,
            proof=over.proof,
            stdout_bytes=over.stdout_bytes,
            stderr_bytes=over.stderr_bytes,
            usage=over.usage,
            successor="" if successor is None else f"{successor.key[0]}/{successor.key[1]}",
        )
        if successor is None:
            return [Tell(exited)]
        if begun:
            successor.state = "starting"
            return [Tell(exited)]
        return [Tell(exited), self._begin(successor)]

    # -- reserve

    def reserve(self, count: int) -> list[Entry]:
        """Give tickets to the next that stand by, so that a spawner may start them without asking."""
        entries: list[Entry] = []
        for entry in self._standby.values():
            if len(entries) >= count:
                break
            if not entry.ticket:
                self._assign(entry)
                entries.append(entry)
        return entries

    def dropped(self, ticket: int, at: int, *, lost: bool = False) -> list[Effect]:
        """A spawner has given it back, unbegun; or, `lost`, has died before it began it."""
        entry = self._tickets.pop(ticket, None)
        if entry is None:
            return []
        entry.ticket = 0
        if entry.stopping is not None:
            self._standby.pop(entry.key, None)
            return [self._unbegun(entry, at)]
        entry.losses += lost
        if entry.losses > MAX_LOSSES:
            # Whether it is what kills them or not: it shall not go on like this.
            self._standby.pop(entry.key, None)
            why = f"spawners died {entry.losses} times just before it began"
            return [self._never(entry, at, why, reason=Reason.START_FAILED)]
        # Else slots were given to it while it was on its way back.
        return [] if entry.key in self._standby else [self._begin(entry)]

    # -- memory of before

    def restore(self, entry: Entry) -> None:
        """Take back an attempt that an earlier launcher began, or whose end is not acknowledged."""
        self._entries[entry.key] = entry
        if entry.state == "ended":
            self._ended += 1
        else:
            self._assign(entry)

    def forget(self, key: Key) -> None:
        """Its end is acknowledged."""
        entry = self._entries.get(key)
        if entry is not None and entry.state == "ended":
            del self._entries[key]
            self._ended -= 1
            if entry.never:
                self._remember(key)

    # -- inside

    def _remember(self, key: Key) -> None:
        """No run dir stands for this one, so it is here that a late `Run` must find out."""
        self._canceled[key] = None
        while len(self._canceled) > MAX_CANCELED:
            del self._canceled[next(iter(self._canceled))]

    def _begin(self, entry: Entry) -> Begin | Go:
        self._standby.pop(entry.key, None)
        entry.state = "starting"
        if entry.ticket:
            return Go(entry)
        self._assign(entry)
        return Begin(entry)

    def _end(self, entry: Entry) -> None:
        entry.state = "ended"
        entry.run = None
        self._ended += 1

    def _assign(self, entry: Entry) -> None:
        self._last_ticket += 1
        entry.ticket = self._last_ticket
        self._tickets[entry.ticket] = entry

    def _successor(self, ended: Entry) -> Entry | None:
        if self.closing or ended.run is None:
            return None
        cpus = ended.run.cpus
        in_reserve = None
        for entry in self._standby.values():
            if entry.run is not None and entry.run.cpus <= cpus and entry.stopping is None:
                if not entry.ticket:
                    return entry
                # It is about to be started where it is; take it only when there is no other.
                in_reserve = in_reserve or entry
        return in_reserve

    def _stop(self, entry: Entry, grace_secs: float, at: int) -> list[Effect]:
        if entry.state == "ended":
            return []
        if not entry.ticket:
            del self._standby[entry.key]
            return [self._unbegun(entry, at)]
        entry.stopping = grace_secs if entry.stopping is None else min(grace_secs, entry.stopping)
        return [End(entry, grace_secs)]

    def _unbegun(self, entry: Entry, at: int) -> Tell:
        if entry.reason is None:
            return self._never(entry, at, "canceled before it began")
        return self._never(entry, at, "the agent is stopping", reason=Reason.DRAINING)

    def _never(self, entry: Entry, at: int, why: str, reason: Reason | None = None) -> Tell:
        jid, attempt = entry.key
        self._end(entry)
        entry.never = reason is None
        self.last_seq += 1
        return Tell(
            Exited(
                seq=self.last_seq,
                jid=jid,
                serial=entry.serial,
                attempt=attempt,
                at=at,
                reason=reason,
                message=why,
                stopped=reason is None,
                began=False,
                proof="never_claimed",
            )
        )
