"""The spawners as the launcher sees them: who has which attempt, who may start the next one unasked."""

import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from sirepo_jobs.agents import process
from sirepo_jobs.agents.lane import Lane, lane_pair
from sirepo_jobs.agents.slate import Line, Slate
from sirepo_jobs.agents.words import (
    Drop,
    Dropped,
    FromSpawner,
    Go,
    Kill,
    Over,
    Pause,
    Renew,
    Spawn,
    ToSpawner,
    decode_from_spawner,
    pack,
)

SPAWNERS: Final = 2
#: Back-off of a helper that keeps dying.
FIRST_SECS: Final = 0.05
LAST_SECS: Final = 5.0
#: One that lived so long starts again at once.
HEALTHY_SECS: Final = 10.0
#: So many attempts may a spawner have in reserve: two more for each job that lived less than so long,
#: and it has to give them back when it has ended nothing for a while.
RESERVE: Final = 16
SHORT_US: Final = 50_000
IDLE_SECS: Final = 0.02


class BackOff:
    """When something that died may be started again."""

    def __init__(self) -> None:
        self._secs = 0.0
        self._started = 0.0
        #: By the monotonic clock.
        self.due = 0.0

    def started(self) -> None:
        """It was started now."""
        self._started = time.monotonic()

    def died(self) -> None:
        """It died now."""
        now = time.monotonic()
        healthy = now - self._started > HEALTHY_SECS
        self.due = now if healthy else now + self._secs
        self._secs = 0.0 if healthy else min(max(2 * self._secs, FIRST_SECS), LAST_SECS)


class Place:
    """Where a spawner is, or will be again."""

    def __init__(self) -> None:
        self.pid = 0
        self.lane: Lane | None = None
        self.slate: Slate | None = None
        #: Attempts that it was asked for and has not ended.
        self.tickets: set[int] = set()
        #: Those of them that it keeps in reserve, as far as it has told.
        self.reserved: set[int] = set()
        #: So many may it have in reserve.
        self.credit = 0
        #: When it last ended a job, by the monotonic clock.
        self.busy_at = 0.0
        #: What it is told next.
        self.words: list[ToSpawner] = []
        self.back_off = BackOff()

    @property
    def load(self) -> int:
        """Attempts that run there."""
        return len(self.tickets) - len(self.reserved)

    def hear(self) -> list[FromSpawner]:
        """What it says, with the books kept."""
        assert self.lane is not None
        heard: list[FromSpawner] = []
        for frame in self.lane.take():
            heard += decode_from_spawner(frame)
        for word in heard:
            if isinstance(word, Over):
                self.tickets.discard(word.ticket)
                self.reserved.discard(word.ticket)
                self.reserved.discard(word.successor)
                if word.started_at is not None and word.at - word.started_at < SHORT_US:
                    self.credit = min(self.credit + 2, RESERVE)
                self.busy_at = time.monotonic()
            elif isinstance(word, Dropped):
                self.tickets.discard(word.ticket)
        return heard


class Crew:
    """All spawners of one launcher."""

    def __init__(self, poll: select.poll, body: Callable[[Lane, Slate], None], count: int = SPAWNERS) -> None:
        self._poll = poll
        #: What a spawner does, in its process.
        self._body = body
        self.places = [Place() for _ in range(count)]
        #: No spawner is there to be asked for these.
        self._unasked: list[Spawn] = []
        #: The newest `Renew`.
        self._renew: Renew | None = None

    # -- asking

    def ask(self, spawn: Spawn) -> None:
        """Have it started by the spawner that has the least to do."""
        places = [place for place in self.places if place.pid]
        if not places:
            self._unasked.append(spawn)
            return
        place = min(places, key=_load)
        place.tickets.add(spawn.ticket)
        place.words.append(spawn)

    def go(self, ticket: int) -> None:
        """Start one that is in reserve."""
        for place in self.places:
            if ticket in place.tickets:
                place.reserved.discard(ticket)
                place.words.append(Go(ticket=ticket))

    def tell(self, ticket: int, word: Kill | Pause) -> bool:
        """To the spawner that has the attempt; False when none has."""
        for place in self.places:
            if ticket in place.tickets:
                place.words.append(word)
                return True
        return False

    def renew(self, at: float) -> None:
        """Leases count from here."""
        self._renew = Renew(at=at)
        for place in self.places:
            if place.pid:
                place.words.append(self._renew)

    def withdraw(self, ticket: int) -> Spawn | None:
        """Take back one that nobody was asked for yet."""
        for spawn in self._unasked:
            if spawn.ticket == ticket:
                self._unasked.remove(spawn)
                return spawn
        return None

    def reserve(self, now: float, more: Callable[[int], list[Spawn]]) -> None:
        """Let spawners that end one short job after the other start the next ones without asking.

        `more(count)` gives the next that stand by. Where jobs turn out long, what is in reserve is asked
        back, so that it waits for nobody in particular.
        """
        least = min(map(_load, self.places))
        for place in self.places:
            if place.reserved and place.busy_at + IDLE_SECS <= now:
                place.words.append(Drop())
                place.reserved.clear()
                place.credit = 0
            elif place.credit > len(place.reserved) and place.pid and place.load <= least + 1:
                for spawn in more(place.credit - len(place.reserved)):
                    place.tickets.add(spawn.ticket)
                    place.reserved.add(spawn.ticket)
                    place.words.append(spawn)

    def next_due(self) -> float | None:
        """When `reserve` or `keep` has something to do."""
        due = [place.busy_at + IDLE_SECS for place in self.places if place.reserved]
        due += [place.back_off.due for place in self.places if not place.pid]
        return min(due) if due else None

    def flush(self, *, begin: bool = True) -> None:
        """Tell everybody what was decided; without `begin` only what makes nothing begin."""
        for place in self.places:
            lane = place.lane
            if lane is None:
                continue
            words = place.words if begin else _harmless(place.words)
            if words:
                lane.put(pack(words))
                place.words = [] if begin else [word for word in place.words if word not in words]
            elif not lane.pending:
                continue
            lane.flush()
            want_out(self._poll, lane)

    # -- keeping them alive

    def keep(self, now: float) -> list[Place]:
        """Start what is missing and may be started now."""
        started = []
        for place in self.places:
            if not place.pid and place.back_off.due <= now:
                self._start(place)
                started.append(place)
        if started:
            unasked, self._unasked = self._unasked, []
            for spawn in unasked:
                self.ask(spawn)
        return started

    def _start(self, place: Place) -> None:
        ours, theirs = lane_pair()
        slate = Slate()

        def child() -> None:
            ours.close()
            self._body(Lane(theirs), slate)

        place.pid = fork(child)
        theirs.close()
        place.lane = Lane(ours)
        place.slate = slate
        place.words = [self._renew] if self._renew is not None else []
        place.back_off.started()
        self._poll.register(ours.fileno(), select.POLLIN)

    def died(self, place: Place) -> tuple[list[FromSpawner], dict[int, Line], list[int]]:
        """Forget a dead spawner: its last words, what stands on its slate, and the attempts it had."""
        assert place.lane is not None
        assert place.slate is not None
        words: list[FromSpawner] = []
        while not place.lane.closed:
            words += place.hear()
        with suppress(KeyError):
            self._poll.unregister(place.lane.fileno())
        lines = place.slate.read()
        tickets = sorted(place.tickets)
        place.lane.close()
        place.slate.close()
        place.pid = 0
        place.lane = None
        place.slate = None
        place.tickets = set()
        place.reserved = set()
        place.credit = 0
        place.words = []
        place.back_off.died()
        return words, lines, tickets

    def hang_up(self) -> None:
        """Let go of all lanes: every spawner ends with its last job."""
        for place in self.places:
            if place.lane is not None:
                place.lane.close()


def _harmless(words: list[ToSpawner]) -> list[ToSpawner]:
    """Ends of attempts that do not begin in the same breath."""
    beginning = {word.ticket for word in words if isinstance(word, Spawn | Go)}
    return [
        word
        for word in words
        if isinstance(word, Renew) or (isinstance(word, Kill | Pause) and word.ticket not in beginning)
    ]


def _load(place: Place) -> int:
    return place.load


def want_out(poll: select.poll, lane: Lane) -> None:
    """Have poll tell when a lane takes bytes again, if there are any for it."""
    if not lane.closed:
        poll.modify(lane.fileno(), select.POLLIN | (select.POLLOUT if lane.pending else 0))


def fork(body: Callable[[], None]) -> int:
    """Run `body` in a child process, which ends with it. Returns the child's pid."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGCHLD, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        body()
        code = 0
    except BaseException:  # noqa: BLE001 - the edge of a process: say it and end
        traceback.print_exc()
    finally:
        with suppress(OSError, ValueError):
            sys.stderr.flush()
        os._exit(code)


def start_of(pid: int) -> int:
    """Start time of a process, 0 when it is gone."""
    stat = process.stat_of(pid)
    return 0 if stat is None else stat.start
