"""What the network side knows of the attempts that live: enough to read their files."""

import asyncio
from collections.abc import AsyncIterator

from sirepo_jobs.agents.progress import LOOK_SECS, Tail
from sirepo_jobs.agents.roster import Key
from sirepo_jobs.agents.words import Watch
from sirepo_jobs.protocol import Progress, Run
from sirepo_jobs.run_tree import RunFiles


class Attempts:
    """Attempts that have not ended, as far as the launcher and the supervisor have told."""

    def __init__(self, files: RunFiles) -> None:
        self.files = files
        #: With the lease of each, if it has one.
        self._live: dict[Key, float | None] = {}
        self._tails: dict[Key, Tail] = {}
        self._tailing = asyncio.Event()

    def __len__(self) -> int:
        return len(self._live)

    def is_live(self, key: Key) -> bool:
        """Whether its outputs may still grow."""
        return key in self._live

    @property
    def shortest_lease(self) -> float | None:
        """Of those that live."""
        return min((secs for secs in self._live.values() if secs is not None), default=None)

    def replace(self, watch: list[Watch]) -> None:
        """The launcher's word on what lives."""
        self._live.clear()
        for one in watch:
            self._add(one)
        for key in [key for key in self._tails if key not in self._live]:
            self._tails.pop(key).close()

    def add(self, run: Run) -> None:
        """It is asked for."""
        self._add(
            Watch(
                jid=run.jid,
                serial=run.serial,
                attempt=run.attempt,
                run_dir=run.run_dir,
                progress=run.progress,
                lease_secs=run.lease_secs,
            )
        )

    def _add(self, watch: Watch) -> None:
        key = (watch.jid, watch.attempt)
        self._live[key] = watch.lease_secs
        if watch.progress and key not in self._tails:
            self._tails[key] = Tail(watch, self.files)
            self._tailing.set()

    def ended(self, key: Key) -> Progress | None:
        """It is over; returns the last it had to say, if that was not told."""
        self._live.pop(key, None)
        tail = self._tails.pop(key, None)
        if tail is None:
            return None
        last = tail.read()
        tail.close()
        return last

    async def progress(self) -> AsyncIterator[Progress]:
        """What they say about themselves; one timer for all of them, and none when there is nothing."""
        while True:
            if not self._tails:
                self._tailing.clear()
                await self._tailing.wait()
            await asyncio.sleep(LOOK_SECS)
            for tail in list(self._tails.values()):
                found = tail.read()
                if found is not None:
                    yield found
