"""Asks Slurm: one listing for all jobs, and single jobs where a listing is not enough (F119..F124)."""

import asyncio
import os
import time
from typing import Final

import msgspec

from sirepo_jobs.agents import slurm_batch, slurm_life
from sirepo_jobs.agents.slurm_batch import Phase as BatchPhase
from sirepo_jobs.agents.slurm_book import Attempt, Book
from sirepo_jobs.agents.slurm_life import Phase
from sirepo_jobs.reasons import Reason
from sirepo_jobs.slurm_states import Stage, meaning
from sirepo_jobs.slurm_text import (
    COMMAND_ENV,
    Forgotten,
    NoAccounting,
    Record,
    Row,
    parse_accounts,
    parse_listing,
    parse_order,
    parse_shown,
    pending_order,
    sacct,
    show,
    squeue,
)

#: The place in the queue is asked for with every n-th listing.
ORDER_EVERY: Final = 3
#: The accounting is asked about so many days.
ACCOUNT_DAYS: Final = 14
#: Listings without an answer, one after the other, until people are told.
PATIENCE: Final = 3


class Asker:
    """The loops that ask."""

    def __init__(self, book: Book) -> None:
        self._book = book
        #: SECURITY: nobody else's jobs are asked for.
        self._user = str(os.getuid())
        #: Whether there is an accounting; None: it has not answered yet.
        self._accounting: bool | None = None
        self._listings = 0

    async def list_all(self) -> None:
        """One listing for all, at the pace that the site allows; until canceled."""
        while True:
            await asyncio.sleep(max(0.05, min(self._book.pace.due - time.monotonic(), 0.25)))
            self._sweep()
            if time.monotonic() < self._book.pace.due or not self._book.submissions:
                continue
            if not self._book.commands.queries.take():
                continue
            await self._listing()
            self._book.flush()

    def _sweep(self) -> None:
        """Submissions that ended while sbatch was under way, or of which nobody speaks any more."""
        for submission in list(self._book.submissions.values()):
            if not submission.members and submission.batch.phase is BatchPhase.UNSURE:
                since = submission.batch.unsure_since or 0.0
                if time.monotonic() < since + 60 * self._book.policy.submit_settle_secs:
                    continue  # should Slurm have it after all, a listing finds it, and scancel ends it
                submission.batch = msgspec.structs.replace(submission.batch, phase=BatchPhase.REFUSED)
            self._book.forget(submission)

    async def _listing(self) -> None:
        asked_at = time.monotonic()
        before = {token: one.batch.phase for token, one in self._book.submissions.items()}
        said = await self._book.commands.run(
            "queries", squeue(self._book.policy, self._user), env=COMMAND_ENV
        )
        listing = parse_listing(said.rc, said.out, said.err)
        if listing is None:
            self._book.pace.unanswered()
            if self._book.pace.failing == PATIENCE:
                self._complain(said.err or f"squeue ended with {said.rc}")
            return
        self._listings += 1
        self._book.commands.counts["noise"] += listing.noise
        if self._listings % ORDER_EVERY == 1 and any(row.state == "PENDING" for row in listing.rows):
            await self._order()
        seen: set[str] = set()
        changed = False
        for row in listing.rows:
            changed = self._listed(row, seen) or changed
        if listing.sound:
            await self._not_listed(asked_at, before, seen)
        self._book.pace.answered(changed=changed)

    def _listed(self, row: Row, seen: set[str]) -> bool:
        submission = self._book.submissions.get(row.token)
        if submission is None:
            return False
        seen.add(row.token)
        batch = slurm_batch.found(submission.batch, row.slurm_id.partition("_")[0])
        if batch is not submission.batch:
            self._book.move(submission, batch)
        told = False
        ours = submission.tasks[row.task] if row.task < len(submission.tasks) else []
        for run_dir in ours:
            attempt = submission.members.get(run_dir)
            if attempt is not None:
                before = attempt.life.told
                seen.add(run_dir)
                self._book.tell(attempt, slurm_life.Listed(time.monotonic(), row))
                told = told or attempt.life.told != before
        alive = meaning(row.state).stage in (Stage.WAITING, Stage.RUNNING, Stage.PAUSED)
        if alive and not any(run_dir in submission.members for run_dir in ours):
            self._book.cancels[row.slurm_id, False] = None  # all that it was for is over
        return told

    async def _not_listed(self, asked_at: float, before: dict[str, BatchPhase], seen: set[str]) -> None:
        """A sound answer has them not: of an unsure batch that may mean No, of an accepted job doubt."""
        unsure = [
            one for token, one in self._book.submissions.items()
            if token not in seen and before.get(token) is BatchPhase.UNSURE
        ]  # fmt: skip
        accounts = await self._accounts([one.token for one in unsure]) if unsure else []
        for submission in unsure:
            mine = [record for record in accounts or [] if record.token == submission.token]
            if mine:
                batch = slurm_batch.found(submission.batch, mine[0].slurm_id.partition("_")[0])
            elif accounts is None:
                continue
            else:
                batch = slurm_batch.unknown(submission.batch, asked_at, self._book.policy.submit_settle_secs)
            self._book.move(submission, batch)
        for attempt in list(self._book.attempts.values()):
            mine_in = attempt.submission
            if (
                mine_in is not None
                and attempt.spawn.run_dir not in seen
                and before.get(mine_in.token) is BatchPhase.ACCEPTED
            ):
                self._book.tell(attempt, slurm_life.Missing(time.monotonic()))

    async def _accounts(self, tokens: list[str]) -> list[Record] | None:
        """What the accounting has of these names; None when it does not answer, empty when there is none."""
        if self._accounting is False:
            return []
        said = await self._book.commands.run(
            "accounts", sacct(self._book.policy, self._user, tokens, ACCOUNT_DAYS), env=COMMAND_ENV
        )
        try:
            records = parse_accounts(said.rc, said.out, said.err)
        except NoAccounting:
            self._accounting = False
            return []
        self._accounting = self._accounting or records is not None
        # A site that never had any answers in many ways; one that had some is waited for.
        return [] if records is None and self._accounting is None else records

    async def ask_single(self) -> None:
        """Single jobs: those whose end a listing suggests, and that left no record."""
        while True:
            if not self._book.asks or not self._book.commands.queries.take():
                await asyncio.sleep(0.1)
                continue
            slurm_id = next(iter(self._book.asks))
            attempt = self._book.asks.pop(slurm_id)
            if attempt.spawn.ticket not in self._book.attempts:
                continue
            said = await self._book.commands.run("asks", show(self._book.policy, slurm_id), env=COMMAND_ENV)
            answer = parse_shown(slurm_id, said.rc, said.out, said.err)
            if isinstance(answer, Record) and attempt.submission and answer.token != attempt.submission.token:
                answer = Forgotten(slurm_id)  # the id is somebody else's now (F124)
            if isinstance(answer, Forgotten) and attempt.submission is not None:
                answer = await self._accounted(attempt, answer)
            if answer is not None and attempt.spawn.ticket in self._book.attempts:
                self._book.tell(attempt, slurm_life.Told(time.monotonic(), answer))
                self._book.flush()

    async def _accounted(self, attempt: Attempt, answer: Forgotten) -> Record | Forgotten | None:
        assert attempt.submission is not None
        records = await self._accounts([attempt.submission.token])
        if records is None:
            return None
        mine = [one for one in records if one.slurm_id == answer.slurm_id]
        return mine[-1] if mine else answer

    async def _order(self) -> None:
        said = await self._book.commands.run("queries", pending_order(self._book.policy), env=COMMAND_ENV)
        order = parse_order(said.rc, said.out)
        if order is not None:
            self._book.positions = {slurm_id: place for place, slurm_id in enumerate(order, 1)}
            for attempt in self._book.attempts.values():
                row = attempt.row
                if (
                    row is not None
                    and attempt.life.phase is Phase.QUEUED
                    and attempt.position != self._book.position(row.slurm_id)
                ):
                    self._book.situate_row(attempt, row)

    def _complain(self, text: str) -> None:
        for attempt in self._book.attempts.values():
            if attempt.life.phase is Phase.QUEUED:
                self._book.situate(
                    attempt,
                    text=f"Slurm does not answer; its job is looked after as soon as it does: {text.strip()}",
                    reason=Reason.SCHEDULER_UNAVAILABLE,
                )
