"""Who may run next, and why the others may not yet. Pure: no clock, no I/O, no jobs, only compact entries.

Users take turns: each pass over the queue visits the user with the fewest cpus in use first and takes
one entry of each (SIR-14, SYS-35, I23). Within a user, higher priority first, then order of acceptance.
Entries of one *shape* (same environment, same need) stand in one heap, so an entry that cannot run now
costs one look, however many stand behind it, and does not block other shapes. A shape that others have
passed `MAX_BYPASS` times closes its pool until it got its place. Others of the same user count, and those of
users whose turn came later, since they have more in use already: so nobody starves, and nobody closes a
pool to those who have had less of it (decision 8).

Memory is bounded: of each user only the first `window` entries are here; the rest are rows in the
store, fetched when `wants` says so (queued jobs are rows, not objects).
"""

import heapq
from bisect import bisect_left
from collections.abc import Callable, Iterator
from typing import NamedTuple

from .reasons import Reason
from .resources import Resources

MAX_BYPASS = 100
#: So many dead entries are left alone in any queue.
MAX_DEAD = 1000


class Shape(NamedTuple):
    """What entries have in common as far as placing them goes."""

    #: Name of the pool of slots.
    pool: str
    #: Key of the environment, so of the agent.
    environment: str
    need: Resources


class Entry(NamedTuple):
    """A queued job. Sorts by its place in its user's queue."""

    rank: int  #: minus priority
    seq: int
    jid: str
    user: str
    shape: Shape


class No(NamedTuple):
    """Why an entry cannot be placed now."""

    reason: Reason
    text: str


#: Asks whether a shape can be placed now: None = yes.
Room = Callable[[Shape, str], No | None]


class _Lane:
    """One user's queue, as far as it is in memory."""

    def __init__(self) -> None:
        self.heaps: dict[Shape, list[Entry]] = {}
        self.jids: set[str] = set()
        self.cpus = 0
        #: Rows of this user stand in the store behind `tail`.
        self.overflow = False
        self.tail: tuple[int, int] | None = None
        self.loading = False
        #: The first place of an entry that was left to the store while a page was being read.
        self.dropped: tuple[int, int] | None = None
        #: `tail` was taken back while a page behind the old one was being read.
        self.shrunk = False
        #: How often other shapes went while this one found no slots.
        self.bypassed: dict[Shape, int] = {}
        #: Shapes that lacked slots when this user was visited last.
        self.lacking: list[Shape] = []
        #: Entries in the heaps, live and dead.
        self.size = 0
        self._order: list[tuple[int, int]] | None = None

    def heads(self) -> list[Entry]:
        """First live entry of each shape, in order."""
        found = []
        for shape in list(self.heaps):
            heap = self.heaps[shape]
            while heap and heap[0].jid not in self.jids:
                heapq.heappop(heap)
                self.size -= 1
            if heap:
                found.append(heap[0])
            else:
                del self.heaps[shape]
                self.bypassed.pop(shape, None)
        found.sort()
        return found

    def push(self, entry: Entry) -> None:
        if not self.overflow and self.tail is not None:
            self.tail = max(self.tail, entry[:2])
        self.jids.add(entry.jid)
        heapq.heappush(self.heaps.setdefault(entry.shape, []), entry)
        self.size += 1
        self._order = None

    def forget(self, jid: str) -> None:
        """Its entry is dead; the dead are cleared away before they outnumber the living."""
        if jid in self.jids:
            self.jids.remove(jid)
            self._order = None
            if self.size > 2 * len(self.jids) + MAX_DEAD:
                self.keep(self.entries())

    def pop(self, entry: Entry) -> None:
        """Take the first of its shape."""
        heapq.heappop(self.heaps[entry.shape])
        self.size -= 1
        self.jids.discard(entry.jid)
        self._order = None

    def keep(self, entries: list[Entry]) -> None:
        """These and no others."""
        self.heaps, self.jids, self.size = {}, set(), 0
        for entry in entries:
            self.push(entry)
        self.bypassed = {shape: count for shape, count in self.bypassed.items() if shape in self.heaps}

    def entries(self) -> list[Entry]:
        # a set: who was held and released has two equal entries, a dead one and a living
        return sorted({e for heap in self.heaps.values() for e in heap if e.jid in self.jids})

    def pass_by(self, pool: str) -> None:
        """An entry took slots of `pool` while these lacked them."""
        for shape in self.lacking:
            if shape.pool == pool:
                self.bypassed[shape] = self.bypassed.get(shape, 0) + 1

    @property
    def order(self) -> list[tuple[int, int]]:
        """Places of the living, in order; remembered, since a page of jobs asks for each of its jobs."""
        if self._order is None:
            self._order = [entry[:2] for entry in self.entries()]
        return self._order


class Scheduler:
    """The queue and the order of turns."""

    def __init__(self, window: int = 10_000) -> None:
        self._window = window
        self._lanes: dict[str, _Lane] = {}

    def __len__(self) -> int:
        """Entries in memory."""
        return sum(len(lane.jids) for lane in self._lanes.values())

    def __contains__(self, key: tuple[str, str]) -> bool:
        """Whether `(user, jid)` stands in the memory part of the queue."""
        user, jid = key
        return user in self._lanes and jid in self._lanes[user].jids

    # -- coming and going

    def add(self, entry: Entry) -> None:
        """Queue an entry whose row is, or is about to be, in the store."""
        lane = self._lanes.setdefault(entry.user, _Lane())
        if entry.jid in lane.jids:
            return
        if lane.overflow and lane.tail is not None and entry[:2] > lane.tail:
            lane.dropped = min(lane.dropped or entry[:2], entry[:2])
            return
        if not lane.overflow and len(lane.jids) >= self._window:
            tail = self._last(lane)
            if entry[:2] > tail:
                lane.overflow, lane.tail, lane.dropped = True, tail, entry[:2]
                return
        lane.push(entry)
        if len(lane.jids) > 2 * self._window:
            self._shrink(lane)

    def remove(self, user: str, jid: str) -> None:
        """Forget an entry; one that is not here is no error."""
        if lane := self._lanes.get(user):
            lane.forget(jid)
            self._drop_if_empty(user, lane)

    def bury(self, entries: list[Entry]) -> None:
        """Forget entries that were removed, wherever they stood: they would come alive when they are
        queued again, at their old place. All in one pass, since there may be many.
        """
        dead: dict[tuple[str, Shape], set[str]] = {}
        for entry in entries:
            dead.setdefault((entry.user, entry.shape), set()).add(entry.jid)
        for (user, shape), jids in dead.items():
            if (lane := self._lanes.get(user)) and (heap := lane.heaps.get(shape)):
                lane.size -= len(heap)
                heap[:] = [entry for entry in heap if entry.jid not in jids]
                lane.size += len(heap)
                heapq.heapify(heap)

    def charge(self, user: str, cpus: int) -> None:
        """Count cpus that a user began (or with a negative number ended) to use: the measure of turns."""
        lane = self._lanes.setdefault(user, _Lane())
        lane.cpus += cpus
        self._drop_if_empty(user, lane)

    # -- rows behind the window

    def expect_rows(self, user: str) -> None:
        """Say that the store has rows of `user` that are not here (at start)."""
        lane = self._lanes.setdefault(user, _Lane())
        lane.overflow, lane.tail = True, None

    def wants(self) -> Iterator[tuple[str, tuple[int, int] | None]]:
        """Users whose next page should be read, with the `(rank, seq)` after which it begins.

        Each is named once, until `feed` brings the page.
        """
        for user, lane in self._lanes.items():
            if lane.overflow and not lane.loading and len(lane.jids) < max(1, self._window // 2):
                lane.loading, lane.dropped, lane.shrunk = True, None, False
                yield user, lane.tail

    def feed(self, user: str, entries: list[Entry], *, complete: bool) -> None:
        """Take a page of rows; `complete` when the store had no more."""
        lane = self._lanes.setdefault(user, _Lane())
        lane.loading = False
        if lane.shrunk:
            return  # the page begins behind rows that are not here any more: `wants` asks anew
        if (first := lane.dropped) is not None:
            # the page was read before that one was a row: what stands behind it comes with the next page
            entries = [entry for entry in entries if entry[:2] < first]
        for entry in entries:
            if entry.jid not in lane.jids:
                lane.push(entry)
        if entries:
            lane.tail = max(entries)[:2]
        if complete and lane.dropped is None:
            lane.overflow, lane.tail = False, None
        self._drop_if_empty(user, lane)

    # -- the decision

    def admit(self, room: Room) -> Iterator[Entry]:
        """Entries that may go now, in order; each is taken out of the queue as it is yielded.

        `room` is asked again for each candidate, so the caller must book what it was given before it
        asks for the next one.
        """
        closed = self._closed_pools(room)
        refused: dict[Shape, No] = {}
        while True:
            progress = False
            before: list[_Lane] = []
            for user in sorted(self._lanes, key=self._turn):
                lane = self._lanes.get(user)
                if lane is None:
                    continue
                if entry := self._pick(user, lane, room, closed, refused):
                    progress = True
                    for other in before:
                        other.pass_by(entry.shape.pool)
                    yield entry
                if lane.lacking:
                    before.append(lane)
            if not progress:
                return

    def upcoming(self, count: int, first: Entry) -> list[Entry]:
        """About the next `count` entries, for reading their jobs ahead of need.

        `first`, which may go now, is among them, and those that may follow it: others, however urgent,
        may be waiting for something for long.
        """
        found: list[Entry] = []
        for lane in self._lanes.values():
            for heap in lane.heaps.values():
                found.extend(heapq.nsmallest(count, heap) if len(heap) <= count else heap[:count])
        own = self._lanes[first.user].heaps.get(first.shape, []) if first.user in self._lanes else []
        next_ones = [first, *heapq.nsmallest(count // 2, own), *sorted(found)]
        live = [e for e in dict.fromkeys(next_ones) if (e.user, e.jid) in self]
        return live[:count]

    def _turn(self, user: str) -> tuple[int, str]:
        return self._lanes[user].cpus, user

    def _pick(
        self, user: str, lane: _Lane, room: Room, closed: dict[str, Shape], refused: dict[Shape, No]
    ) -> Entry | None:
        passed: list[Shape] = []
        lane.lacking = []
        for entry in lane.heads():
            shape = entry.shape
            blocked = closed.get(shape.pool, shape) != shape
            if blocked or shape in refused:
                passed.append(shape)
            elif (no := room(shape, user)) is not None:
                refused[shape] = no
                passed.append(shape)
            else:
                # who waits for an agent is not passed: no slot would help it
                lane.lacking = [other for other in passed if _lacks_slots(refused.get(other))]
                lane.pass_by(shape.pool)
                lane.bypassed.pop(shape, None)
                lane.pop(entry)
                return entry
        lane.lacking = [other for other in passed if _lacks_slots(refused.get(other))]
        return None

    def _closed_pools(self, room: Room) -> dict[str, Shape]:
        """Pools that are kept for a shape which others have passed too often.

        Not for one whose jobs are all gone, nor for one that could not use the slots.
        """
        closed: dict[str, Shape] = {}
        most: dict[str, int] = {}
        for user, lane in self._lanes.items():
            if any(count >= MAX_BYPASS for count in lane.bypassed.values()):
                for entry in lane.heads():
                    shape = entry.shape
                    count = lane.bypassed.get(shape, 0)
                    if count >= MAX_BYPASS and count > most.get(shape.pool, 0):
                        no = room(shape, user)
                        if no is None or _lacks_slots(no):
                            closed[shape.pool], most[shape.pool] = shape, count
        return closed

    def ahead(self, user: str, key: tuple[int, int]) -> tuple[int, bool]:
        """How many entries of the same user stand before `(rank, seq)`, and whether there may be more."""
        lane = self._lanes.get(user)
        if lane is None:
            return 0, False
        more = lane.overflow and lane.tail is not None and key > lane.tail
        return bisect_left(lane.order, key), more

    def _last(self, lane: _Lane) -> tuple[int, int]:
        """Key of the last entry; remembered, since a full lane is asked for every newcomer."""
        if lane.tail is None:
            lane.tail = max(e[:2] for heap in lane.heaps.values() for e in heap)
        return lane.tail

    def _shrink(self, lane: _Lane) -> None:
        kept = lane.entries()[: self._window]
        lane.keep(kept)
        lane.overflow, lane.tail, lane.shrunk = True, kept[-1][:2], True

    def _drop_if_empty(self, user: str, lane: _Lane) -> None:
        if not lane.jids and not lane.overflow and not lane.loading and not lane.cpus:
            self._lanes.pop(user, None)


def _lacks_slots(no: No | None) -> bool:
    return no is not None and no.reason is Reason.RESOURCES
