"""A long history: finished jobs of many users, written straight into a store.

What each job is follows from its number alone, so that whoever asks knows what must be found.
"""

import asyncio
from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from sirepo_jobs.errors import StoreError
from sirepo_jobs.job import AttemptRecord, JobRecord, State
from sirepo_jobs.reasons import Reason
from sirepo_jobs.store import EventRow, NewJob, Store, Unit

AT = 1_700_000_000_000_000
SEC = 1_000_000
USERS = 20
PROJECTS = 100
#: One job of so many has the rare tag.
RARE = 50_000
_UNIT = 5000
_EVENTS = ("Submitted", "Assigned", "Started", "Exited")


class Past(NamedTuple):
    """The job of a number, 1 for the first."""

    seq: int

    @property
    def jid(self) -> str:
        return f"H{self.seq:09d}"

    @property
    def user(self) -> str:
        """User 0 has half of all jobs."""
        return f"user{self.seq // 2 % (USERS - 1) + 1 if self.seq % 2 else 0}"

    @property
    def state(self) -> State:
        return {3: State.ERROR, 7: State.CANCELED}.get(self.seq % 20, State.COMPLETED)

    @property
    def name(self) -> str:
        return f"sweep-{self.seq // 1000:04d}-{self.seq % 1000}"

    @property
    def tags(self) -> dict[str, str]:
        tags = {"project": f"p{self.seq % PROJECTS}", "batch": str(self.seq // 100)}
        return tags | ({"rare": "yes"} if self.seq % RARE == 0 else {})

    @property
    def at(self) -> int:
        """Accepted then: one job a second."""
        return AT + self.seq * SEC


def rows(seqs: range) -> Unit:
    """Everything that the store keeps of these jobs."""
    unit = Unit()
    for past in map(Past, seqs):
        ended_well = past.state is State.COMPLETED
        record = JobRecord(
            jid=past.jid,
            seq=past.seq,
            user=past.user,
            state=past.state,
            attempt=1,
            version=len(_EVENTS),
            agent=f"local-{past.user}",
            run_dir=f"users/{past.user}/jobs/{past.jid}/1",
            reason=None if ended_well else Reason.EXIT_NONZERO,
            situation="it ended" if ended_well else "it ended with exit code 1",
            exit_code=0 if ended_well else 1,
            created_at=past.at,
            queued_at=past.at,
            started_at=past.at + SEC,
            ended_at=past.at + 61 * SEC,
            usage={"user_secs": 58.2, "system_secs": 0.7, "max_rss": 81_000_000},
            stdout_bytes=1000,
            stderr_bytes=0,
        )
        spec = {"command": ["lmp", "-in", "in.melt", "-var", "seed", str(past.seq)], "name": past.name}
        spec |= {"tags": past.tags, "resources": {"cpus": 1}, "limits": {"soft": 3600.0}}
        unit.jobs[past.jid] = record
        unit.new[past.jid] = NewJob(
            name=past.name, driver="local", queue="default", priority=5, spec=msgspec.json.encode(spec)
        )
        unit.attempts.append(
            AttemptRecord(
                jid=past.jid,
                attempt=1,
                serial=1,
                agent=record.agent or "",
                run_dir=record.run_dir or "",
                state=past.state,
                reason=record.reason,
                exit_code=record.exit_code,
                started_at=record.started_at,
                ended_at=record.ended_at,
            )
        )
        unit.events.extend(_events(past))
    return unit


def _events(past: Past) -> Iterator[EventRow]:
    for number, kind in enumerate(_EVENTS, 1):
        last = number == len(_EVENTS)
        yield EventRow(
            seq=(past.seq - 1) * len(_EVENTS) + number,
            jid=past.jid,
            user=past.user,
            version=number,
            at=past.at + number * SEC,
            kind=kind,
            state=past.state if last else State.RUNNING,
            data=b'{"at":%d}' % past.at,
        )


async def build(url: str, count: int) -> None:
    """Fill the store at `url` up to job number `count`; goes on where it was."""
    store = Store.open(url)
    failed: list[StoreError] = []
    store.start(asyncio.get_running_loop(), failed.append)
    try:
        for start in range(store.last_job_seq + 1, count + 1, _UNIT):
            store.submit(rows(range(start, min(start + _UNIT, count + 1))))
            while store.waiting > 1:
                await asyncio.sleep(0.01)  # the writer tells nobody that it has room
        await store.flushed()
    finally:
        await store.close()
