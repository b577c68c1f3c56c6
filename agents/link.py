"""The network side's end of the lane to the launcher, inside asyncio."""

import asyncio
from collections.abc import Callable

from sirepo_jobs.agents.lane import Lane
from sirepo_jobs.agents.words import FromRelay, ToRelay, decode_to_relay, relay


class Link:
    """Calls `hear` with every word of the launcher; `gone` is set when the launcher is."""

    def __init__(self, lane: Lane, hear: Callable[[ToRelay], None]) -> None:
        self._lane = lane
        self._hear = hear
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(lane.fileno(), self._read)
        self._paused = False
        #: The launcher has ended.
        self.gone = asyncio.Event()

    def say(self, word: FromRelay) -> None:
        """Never waits; what the launcher cannot take yet is kept, it takes everything soon."""
        if self.gone.is_set():
            return
        self._lane.put(relay(word))
        self._lane.flush()
        if self._lane.pending:
            self._loop.add_writer(self._lane.fileno(), self._write)

    def pause(self, on: bool) -> None:
        """Stop listening for a while: what is not heard waits with the launcher (C16)."""
        if on == self._paused or self.gone.is_set():
            return
        self._paused = on
        if on:
            self._loop.remove_reader(self._lane.fileno())
        else:
            self._loop.add_reader(self._lane.fileno(), self._read)

    def _read(self) -> None:
        for frame in self._lane.take():
            self._hear(decode_to_relay(frame))
        if self._lane.closed:
            self._loop.remove_reader(self._lane.fileno())
            self._loop.remove_writer(self._lane.fileno())
            self._lane.close()
            self.gone.set()

    def _write(self) -> None:
        self._lane.flush()
        if not self._lane.pending:
            self._loop.remove_writer(self._lane.fileno())
