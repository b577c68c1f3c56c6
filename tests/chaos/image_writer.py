"""Writes jobs into a real store and says which are durable: `python -m tests.chaos.image_writer ROOT COUNT`.

Run under strace by `images.py`, which plays its writes again and stops at each of them.
"""

import asyncio
import os
import random
import sys

from sirepo_jobs.job import JobRecord, State
from sirepo_jobs.store import Store
from sirepo_jobs.store.unit import EventRow, NewJob, Unit

SPEC = b'{"command":["true"]}'


def unit_of(first: int, count: int) -> Unit:
    """Some new jobs with their first events."""
    unit = Unit()
    for seq in range(first, first + count):
        jid = f"J{seq}"
        unit.jobs[jid] = JobRecord(jid=jid, seq=seq, user="u", state=State.PENDING, created_at=seq)
        unit.new[jid] = NewJob(name=jid, driver="local", queue="default", priority=5, spec=SPEC)
        unit.events.append(
            EventRow(
                seq=seq, jid=jid, user="u", version=1, at=seq, kind="Submitted", state="pending", data=b"{}"
            )
        )
    return unit


async def write(root: str, count: int) -> None:
    """`count` commits; after each, its jobs on stdout."""
    store = Store.open(f"sqlite:///{root}/jobs.db")
    store.start(asyncio.get_running_loop(), lambda error: os._exit(3))
    rng = random.Random(1)
    seq = 1
    for _ in range(count):
        jobs = rng.randrange(1, 12)
        store.submit(unit_of(seq, jobs))
        await store.flushed()
        os.write(1, b"acked %d\n" % (seq + jobs - 1))
        seq += jobs
    # Not closed: what is looked at is what a crash leaves.
    os._exit(0)


if __name__ == "__main__":
    asyncio.run(write(sys.argv[1], int(sys.argv[2])))
