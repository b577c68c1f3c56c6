"""Speaks with Slurm for one agent: one process beside the launcher, in the place of the spawners.

The launcher asks it as it asks a spawner, and hears of it when an attempt begins and ends. What it
remembers stands in files that its successor reads (`slurm_files`), so it may die at any moment: nothing is
canceled, and nothing is submitted twice.

    slurm_book       what is known, and how it changes: slurm_life for attempts, slurm_batch for submissions
    slurm_submitter  runs sbatch
    slurm_asker      runs squeue, scontrol, sacct
"""

import asyncio
import contextlib
import os
import signal
import time
from typing import Final

from sirepo_jobs.agents import process, slurm_life
from sirepo_jobs.agents.lane import Lane
from sirepo_jobs.agents.slurm_asker import Asker
from sirepo_jobs.agents.slurm_book import Attempt, Book, log
from sirepo_jobs.agents.slurm_life import Phase
from sirepo_jobs.agents.slurm_submitter import SUBMITTERS, Submitter
from sirepo_jobs.agents.words import (
    Counted,
    FromSpawner,
    Go,
    Kill,
    Pause,
    Spawn,
    decode_to_spawner,
    pack,
)
from sirepo_jobs.driver import AgentSpec
from sirepo_jobs.protocol import Counters
from sirepo_jobs.slurm_text import COMMAND_ENV, parse_canceled, scancel, suspend

#: Bells are listened for so often; run dirs are looked at in turns, so many each time, and those in doubt
#: more often.
LOOK_SECS: Final = 0.25
LOOKS: Final = 5
DOUBT_SECS: Final = 1.0
#: So often are counters told while they change.
COUNT_SECS: Final = 2.0
#: Of so many ids at once is scancel told.
MAX_CANCELS: Final = 100


class Broker:
    """One broker process."""

    def __init__(self, spec: AgentSpec, lane: Lane) -> None:
        self._lane = lane
        self._words: list[FromSpawner] = []
        self._book = Book(spec, self._words.append, self._flush)
        self._pauses: list[tuple[Attempt, bool]] = []
        #: Attempts whose run dirs are looked at next.
        self._round: list[Attempt] = []
        self._doubt_at = 0.0
        self._told_counts: dict[str, int] = {}
        self._count_at = 0.0
        self._gone = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    async def run(self) -> None:
        """Until the launcher has hung up."""
        os.makedirs(self._book.bells, 0o700, exist_ok=True)
        self._book.load()
        asker = Asker(self._book)
        self._loop.add_reader(self._lane.fileno(), self._hear)
        tasks = [
            *(
                asyncio.create_task(Submitter(self._book).run(), name=f"submit {n}")
                for n in range(SUBMITTERS)
            ),
            asyncio.create_task(asker.list_all(), name="list"),
            asyncio.create_task(self._cancel(), name="cancel"),
            asyncio.create_task(asker.ask_single(), name="ask"),
            asyncio.create_task(self._watch(), name="watch"),
        ]
        gone = asyncio.create_task(self._gone.wait(), name="gone")
        done, _ = await asyncio.wait((*tasks, gone), return_when=asyncio.FIRST_COMPLETED)
        for task in (*tasks, gone):
            task.cancel()
        await asyncio.gather(*tasks, gone, return_exceptions=True)
        for task in done:
            if task is not gone:
                task.result()  # its own error ends this process; the next one goes on from the files

    # -- the launcher

    def _hear(self) -> None:
        for frame in self._lane.take():
            for word in decode_to_spawner(frame):
                match word:
                    case Spawn():
                        self._book.take(word)
                    case Kill(ticket=ticket, grace_secs=grace_secs):
                        if (attempt := self._book.attempts.get(ticket)) is not None:
                            self._book.tell(attempt, slurm_life.CancelAsked(time.monotonic(), grace_secs))
                    case Pause(ticket=ticket, on=on):
                        if (attempt := self._book.attempts.get(ticket)) is not None:
                            self._pauses.append((attempt, on))
                    case Go():
                        pass  # nothing is ever in reserve here
        if self._lane.closed:
            self._loop.remove_reader(self._lane.fileno())
            self._gone.set()
        else:
            self._flush()

    def _flush(self) -> None:
        if self._words:
            self._lane.put(pack(self._words))
            self._words.clear()
        self._lane.flush()
        if self._lane.pending and not self._lane.closed:
            self._loop.add_writer(self._lane.fileno(), self._write)

    def _write(self) -> None:
        self._lane.flush()
        if not self._lane.pending:
            self._loop.remove_writer(self._lane.fileno())

    # -- watching the shared file system

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECS)
            if self._book.attempts:
                self._hear_bells()
            now = time.monotonic()
            for attempt in self._some(now):
                self._book.look(attempt)
                if attempt.spawn.ticket in self._book.attempts:
                    self._book.tell(attempt, slurm_life.Tick(now))
            self._count(now)
            self._flush()

    def _hear_bells(self) -> None:
        try:
            names = [entry.name for entry in os.scandir(self._book.bells)]
        except OSError:
            return
        if not names:
            return
        known = {(one.spawn.jid, str(one.spawn.attempt)): one for one in self._book.attempts.values()}
        for name in sorted(names):
            jid, _, rest = name.rpartition(".")
            jid, _, number = jid.rpartition(".")
            attempt = known.get((jid, number))
            if attempt is not None:
                self._book.look(attempt)
                if rest == "over" and attempt.spawn.ticket in self._book.attempts:
                    continue  # its record is on its way: keep the bell
            with contextlib.suppress(OSError):
                os.unlink(f"{self._book.bells}/{name}")

    def _some(self, now: float) -> list[Attempt]:
        """The next of all, and from time to time those in doubt: file servers are shared with others."""
        live = self._book.attempts
        if not self._round:
            self._round = list(live.values())
        some, self._round = self._round[:LOOKS], self._round[LOOKS:]
        if now >= self._doubt_at:
            self._doubt_at = now + DOUBT_SECS
            some += [one for one in live.values() if one.life.phase is Phase.DOUBTFUL or one.life.withdrawn]
        return [one for one in dict.fromkeys(some) if one.spawn.ticket in live]

    # -- cancel, suspend, count

    async def _cancel(self) -> None:
        while True:
            while self._pauses:
                await self._pause(*self._pauses.pop(0))
            if not self._book.cancels:
                await asyncio.sleep(0.05)
                continue
            for gently in (False, True):
                ids = [one for one, how in self._book.cancels if how is gently][:MAX_CANCELS]
                for one in ids:
                    del self._book.cancels[one, gently]
                if ids:
                    if gently and (still := self._standing_still(ids)):
                        await self._signal(still, on=False)
                    said = await self._book.commands.run(
                        "cancels", scancel(self._book.policy, ids, "TERM" if gently else ""), env=COMMAND_ENV
                    )
                    if not parse_canceled(said.rc, said.err):
                        log(f"scancel of {len(ids)} jobs: {said.err.strip()[:200]}")
            self._book.pace.hurry()

    def _standing_still(self, ids: list[str]) -> list[str]:
        """Those of them that would not hear of the end before they go on."""
        found = {one.life.slurm_id for one in self._book.attempts.values() if one.paused}
        return [one for one in ids if one in found]

    async def _pause(self, attempt: Attempt, on: bool) -> None:
        if attempt.life.phase is not Phase.RUNNING:
            return
        # what came of it, the payload says (`Book.look`)
        await self._signal([attempt.life.slurm_id], on=on)

    async def _signal(self, ids: list[str], *, on: bool) -> None:
        for argv in suspend(self._book.policy, ids, on=on):
            said = await self._book.commands.run("cancels", argv, env=COMMAND_ENV)
            if not parse_canceled(said.rc, said.err):
                log(f"{' '.join(argv[1:-1])} of {len(ids)} jobs: {said.err.strip()[:200]}")

    def _count(self, now: float) -> None:
        if now < self._count_at:
            return
        counts = {
            **self._book.commands.counts,
            "in_slurm": self._book.in_slurm,
            "waiting": len(self._book.unsent),
            "running": sum(one.life.phase is Phase.RUNNING for one in self._book.attempts.values()),
        }
        if counts != self._told_counts:
            self._told_counts, self._count_at = counts, now + COUNT_SECS
            self._words.append(Counted(counters=Counters(at=time.time_ns() // 1000, counts=counts)))


def main(spec: AgentSpec, lane: Lane) -> None:
    """The whole life of a broker process, just forked from the launcher."""
    process.set_name("sj-broker")
    process.die_with_parent()
    process.hide_memory()
    os.umask(0o077)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, lambda *_: None)

    async def run() -> None:
        await Broker(spec, lane).run()

    asyncio.run(run())
