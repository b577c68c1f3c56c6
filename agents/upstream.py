"""The launcher's end of the network side: keeps that process alive and gives it what it may tell."""

import os
import select
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress

import msgspec

from sirepo_jobs.agents import hang
from sirepo_jobs.agents.crew import BackOff, fork, want_out
from sirepo_jobs.agents.lane import Lane, lane_pair
from sirepo_jobs.agents.outbox import Outbox
from sirepo_jobs.agents.words import FromRelay, ToRelay, decode_from_relay, relay, relay_records
from sirepo_jobs.protocol import FRAME_TARGET_BYTES, Counters, Scheduling


class Upstream:
    """One network side at a time; it may die at any moment."""

    def __init__(self, poll: select.poll, body: Callable[[Lane], None]) -> None:
        self._poll = poll
        #: What the network side does, in its process.
        self._body = body
        self._lane: Lane | None = None
        self._session = self._epoch = 0
        #: The supervisor listens: durable records may go out.
        self.open = False
        self.pid = 0
        self.back_off = BackOff()
        self._again: list[bytes] = []
        #: Made before any network side is: what one writes there the next one reads.
        self.hanging = hang.PAGE

    def fileno(self) -> int:
        """For poll; -1 when there is no network side."""
        return -1 if self._lane is None else self._lane.fileno()

    def keep(self, now: float) -> int:
        """Start it if it is missing and may be started now; returns the new pid, or 0."""
        if self._lane is not None or self.pid or self.back_off.due > now:
            return 0
        ours, theirs = lane_pair()

        def child() -> None:
            ours.close()
            self._body(Lane(theirs))

        self.pid = fork(child)
        theirs.close()
        self._lane = Lane(ours)
        self.back_off.started()
        self._poll.register(ours.fileno(), select.POLLIN)
        return self.pid

    def died(self) -> None:
        """It is dead. What it had not sent is sent by the next one."""
        self.hang_up()
        self.pid = 0
        self.open = False
        self._again.clear()
        self.back_off.died()

    def hear(self) -> list[FromRelay]:
        """What it says. One that speaks nonsense is ended, and another one is started in its place."""
        assert self._lane is not None
        try:
            words = [decode_from_relay(frame) for frame in self._lane.take()]
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as exc:
            self._end(f"the network side speaks nonsense ({exc}); it is ended, and the jobs go on")
            return []
        if self._lane.nonsense:
            self._end("the network side speaks in frames that are none; it is ended, and the jobs go on")
        return words

    def _end(self, why: str) -> None:
        sys.stderr.write(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} launcher: {why}\n")
        sys.stderr.flush()
        self.hang_up()
        # POSIT: it is our child and has not been reaped.
        os.kill(self.pid, signal.SIGKILL)

    def hailed(self, answer: ToRelay) -> None:
        """A connection begins: say what we hold, and nothing durable until it is welcome."""
        self.open = False
        self._again.clear()
        if self._lane is not None:
            self._lane.put(relay(answer))

    def welcome(self, session: int, epoch: int) -> None:
        """The supervisor knows us."""
        self._session, self._epoch = session, epoch
        self.open = True

    def again(self, raw: bytes) -> None:
        """Say a record once more."""
        if self.open:
            self._again.append(raw)

    def note(self, notes: list[Scheduling | Counters]) -> None:
        """Say what is true now, if anybody listens; it is not kept."""
        if self.open and self._lane is not None and notes:
            self._lane.put(relay(ToRelay(session=self._session, epoch=self._epoch, notes=notes)))

    def flush(self, outbox: Outbox) -> None:
        """Hand over what may be told now, as much as the other side takes (C16)."""
        lane = self._lane
        if lane is None:
            return
        if self.open:
            records, self._again = self._again, []
            while lane.pending < FRAME_TARGET_BYTES:
                records += outbox.batch(FRAME_TARGET_BYTES)
                if not records:
                    break
                lane.put(relay_records(self._session, self._epoch, records))
                records = []
        if lane.pending:
            lane.flush()
            want_out(self._poll, lane)

    def hang_up(self) -> None:
        """Let go of the lane; the network side ends."""
        if self._lane is not None:
            with suppress(KeyError):
                self._poll.unregister(self._lane.fileno())
            self._lane.close()
            self._lane = None
