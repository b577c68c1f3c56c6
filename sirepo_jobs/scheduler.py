"""Who may run next, and why the others may not yet. Pure: no clock, no I/O, no jobs, only compact entries.

Users take turns: each pass over the queue visits the user with the fewest cpus in use first and takes
one entry of each (SIR-14, SYS-35, I23). Within a user, higher priority first, then order of acceptance.
Entries of one *shape* (same environment, same need) stand in one heap, so an entry that cannot run now
costs one look, however many stand behind it, and does not block other shapes. A shape that others have
passed `MAX_BYPASS` times closes its pool until it got its place.

Memory is bounded: of each user only the first `window` entries are here; the rest are rows in the
store, fetched when `wants` says so (queued jobs are rows, not objects).
"""

import heapq
from collections.abc import Callable, Iterator
from typing import NamedTuple

from .reasons import Reason
from .resources import Resources

MAX_BYPASS = 100


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
        #: An entry was left to the store while a page was being read.
        self.dropped = False
        self.bypassed: dict[Shape, int] = {}

    def heads(self) -> list[Entry]:
        """First live entry of each shape, in order."""
        found = []
        for shape in list(self.heaps):
            heap = self.heaps[shape]
            while heap and heap[0].jid not in self.jids:
                heapq.heappop(heap)
            if heap:
                found.append(heap[0])
            else:
                del self.heaps[shape]
                self.bypassed.pop(shape, None)
        found.sort()
        return found

    def push(self, entry: Entry) -> None:
        if not self.overflow:
            self.tail = None
        self.jids.add(entry.jid)
        heapq.heappush(self.heaps.setdefault(entry.shape, []), entry)

    def entries(self) -> list[Entry]:
        return sorted(e for heap in self.heaps.values() for e in heap if e.jid in self.jids)


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
            lane.dropped = True
            return
        if not lane.overflow and len(lane.jids) >= self._window:
            tail = self._last(lane)
            if entry[:2] > tail:
                lane.overflow, lane.tail, lane.dropped = True, tail, True
                return
        lane.push(entry)
        if len(lane.jids) > 2 * self._window:
            self._shrink(lane)

    def remove(self, user: str, jid: str) -> None:
        """Forget an entry; one that is not here is no error."""
        if lane := self._lanes.get(user):
            lane.jids.discard(jid)
            self._drop_if_empty(user, lane)

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
                lane.loading, lane.dropped = True, False
                yield user, lane.tail

    def feed(self, user: str, entries: list[Entry], *, complete: bool) -> None:
        """Take a page of rows; `complete` when the store had no more."""
        lane = self._lanes.setdefault(user, _Lane())
        lane.loading = False
        for entry in entries:
            if entry.jid not in lane.jids:
                lane.push(entry)
        if entries:
            lane.tail = max(entries)[:2]
        if complete and not lane.dropped:
            lane.overflow, lane.tail = False, None
        self._drop_if_empty(user, lane)

    # -- the decision

    def admit(self, room: Room) -> Iterator[Entry]:
        """Entries that may go now, in order; each is taken out of the queue as it is yielded.

        `room` is asked again for each candidate, so the caller must book what it was given before it
        asks for the next one.
        """
        closed = self._closed_pools()
        refused: set[Shape] = set()
        while True:
            progress = False
            for user in sorted(self._lanes, key=self._turn):
                lane = self._lanes.get(user)
                if lane and (entry := self._pick(user, lane, room, closed, refused)):
                    progress = True
                    yield entry
            if not progress:
                return

    def upcoming(self, count: int) -> list[Entry]:
        """About the next `count` entries, for reading their jobs ahead of need."""
        found: list[Entry] = []
        for lane in self._lanes.values():
            for heap in lane.heaps.values():
                found.extend(heapq.nsmallest(count, heap) if len(heap) <= count else heap[:count])
        return [entry for entry in sorted(found)[:count] if (entry.user, entry.jid) in self]

    def _turn(self, user: str) -> tuple[int, str]:
        return self._lanes[user].cpus, user

    def _pick(
        self, user: str, lane: _Lane, room: Room, closed: dict[str, Shape], refused: set[Shape]
    ) -> Entry | None:
        passed: list[Shape] = []
        for entry in lane.heads():
            shape = entry.shape
            blocked = closed.get(shape.pool, shape) != shape
            if blocked or shape in refused:
                passed.append(shape)
            elif room(shape, user) is not None:
                refused.add(shape)
                passed.append(shape)
            else:
                for other in passed:
                    if other.pool == shape.pool:
                        lane.bypassed[other] = lane.bypassed.get(other, 0) + 1
                lane.bypassed.pop(shape, None)
                heapq.heappop(lane.heaps[shape])
                lane.jids.discard(entry.jid)
                return entry
        return None

    def _closed_pools(self) -> dict[str, Shape]:
        """Pools that are kept for a shape which others have passed too often."""
        return {
            shape.pool: shape
            for lane in self._lanes.values()
            for shape, count in lane.bypassed.items()
            if count >= MAX_BYPASS and lane.heaps.get(shape)
        }

    def ahead(self, user: str, key: tuple[int, int]) -> tuple[int, bool]:
        """How many entries of the same user stand before `(rank, seq)`, and whether there may be more."""
        lane = self._lanes.get(user)
        if lane is None:
            return 0, False
        more = lane.overflow and lane.tail is not None and key > lane.tail
        return sum(e[:2] < key and e.jid in lane.jids for heap in lane.heaps.values() for e in heap), more

    def _last(self, lane: _Lane) -> tuple[int, int]:
        """Key of the last entry; remembered, since a full lane is asked for every newcomer."""
        if lane.tail is None:
            lane.tail = max(e[:2] for heap in lane.heaps.values() for e in heap)
        return lane.tail

    def _shrink(self, lane: _Lane) -> None:
        kept = lane.entries()[: self._window]
        lane.heaps, lane.jids = {}, set()
        for entry in kept:
            lane.push(entry)
        lane.overflow, lane.tail, lane.dropped = True, kept[-1][:2], True

    def _drop_if_empty(self, user: str, lane: _Lane) -> None:
        if not lane.jids and not lane.overflow and not lane.loading and not lane.cpus:
            self._lanes.pop(user, None)
