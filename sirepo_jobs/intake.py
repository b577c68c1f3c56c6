"""Taking in jobs: checks that need the house, idempotency keys, ids, one commit (I1, I2, F144, F145).

A batch is all or nothing: either every job of it is durable when the answer goes out, or none exists.
"""

import asyncio
import contextlib
import hashlib
import os

import msgspec

from . import failpoints
from .compute_job import ComputeJob
from .errors import BadInput, Conflict, Unavailable
from .job import JobRecord, State, ulid
from .known_keys import KnownKeys
from .login import has_logins
from .spec import JobSpec
from .store.unit import KeyRow, NewJob
from .supervisor import Supervisor

#: Jobs made between two looks at the rest of the world.
SLICE = 500
MAX_KEY_CHARS = 200
#: Units that may wait for the writer before new work is put off (F094, C16).
MAX_WAITING = 500

_encode = msgspec.json.Encoder().encode


class Intake:
    """The supervisor's side of `POST /jobs`."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        #: Requests under way, by (user, key): a second one with the same key waits for the first.
        self._keys: dict[tuple[str, str], asyncio.Future[None]] = {}
        self._known = KnownKeys(supervisor.store, supervisor.commits)
        #: Client-chosen ids under way.
        self._jids: set[str] = set()

    async def submit(self, user: str, specs: list[JobSpec], key: str | None) -> tuple[list[JobRecord], bool]:
        """Accept jobs: their records, durable, and whether this call made them (else the key had).

        Raises `BadInput` for what no driver here can do, `Conflict` for a key or jid that is taken,
        `Unavailable` while the store cannot write.
        """
        store = self._supervisor.store
        if store.degraded:
            raise Unavailable(f"no new jobs can be accepted now: {store.degraded}", code="store_degraded")
        if store.waiting > MAX_WAITING:
            raise Unavailable(f"the disk is slow: {store.waiting} commits wait for it; try again in a moment")
        pointers = [f"/jobs/{place}" if len(specs) > 1 else "" for place in range(len(specs))]
        for spec, pointer in zip(specs, pointers, strict=True):
            self._check(spec, pointer)
        specs = [self._on_cluster(spec, pointer) for spec, pointer in zip(specs, pointers, strict=True)]
        # Let go of at once if nothing comes of it; else whoever asks again must find it in the store.
        with contextlib.ExitStack() as held:
            fresh = None
            # without a key the same again would be other jobs, beside these
            then = "look at your jobs before you send these again, or send an Idempotency-Key"
            if key is not None:
                digest = await self._hold_key(user, key, specs, held)
                if (row := await self._known_key(user, key)) is not None:
                    return await self._answer_again(row, digest), False
                fresh = KeyRow(user=user, key=key, digest=digest, jids=[], created_at=0)
                then = "ask again"
            records = await self._make(user, specs, fresh, held)
        await self._written(then)
        return records, True

    async def _hold_key(self, user: str, key: str, specs: list[JobSpec], held: contextlib.ExitStack) -> bytes:
        """Keep others with the same key waiting; returns the digest of what is asked."""
        if not 0 < len(key) <= MAX_KEY_CHARS:
            raise BadInput(f"Idempotency-Key has {len(key)} characters; use 1 to {MAX_KEY_CHARS}")
        commits = self._supervisor.commits
        while (first := self._keys.get((user, key))) is not None:
            if not await commits.unless_degraded(first):
                raise commits.unwritten("ask again")
        under_way = self._keys[user, key] = asyncio.get_running_loop().create_future()
        held.callback(self._let_go, user, key, under_way)
        return hashlib.sha256(_encode(specs)).digest()

    def _let_go(self, user: str, key: str, under_way: "asyncio.Future[None]") -> None:
        """The next one with the same key may look for itself."""
        del self._keys[user, key]
        under_way.set_result(None)

    async def _written(self, then: str) -> None:
        failpoints.hit("submit.before_commit")
        await self._supervisor.commits.written(then)
        failpoints.hit("submit.after_commit")

    async def _known_key(self, user: str, key: str) -> KeyRow | None:
        """What the key has made. The store is asked only where the key may be known."""
        if self._known.due():
            self._supervisor.tasks.ensure("look through keys", self._known.learn)
        if self._known.surely_new(user, key):
            return None
        return await self._supervisor.store.key(user, key)

    def _check(self, spec: JobSpec, pointer: str) -> None:
        driver = self._supervisor.agents.drivers.get(spec.driver)
        if driver is None:
            names = ", ".join(sorted(self._supervisor.agents.drivers))
            raise BadInput(
                f"driver {spec.driver!r} is not configured; there are: {names}", pointer=f"{pointer}/driver"
            )
        lacking = spec.resources.shortage(driver.capacity)
        if lacking or spec.resources.nodes > driver.capacity.nodes:
            lacking = lacking or f"nodes: needs {spec.resources.nodes}, {driver.capacity.nodes} free"
            raise BadInput(
                f"driver {spec.driver!r} can never run this ({lacking}, in all); ask for less",
                code="unsatisfiable",
                pointer=f"{pointer}/resources",
            )

    def _on_cluster(self, spec: JobSpec, pointer: str) -> JobSpec:
        """The spec with its cluster named, where its driver has clusters. Raises `BadInput`."""
        driver = self._supervisor.agents.drivers[spec.driver]
        if not has_logins(driver):
            if spec.cluster is not None:
                raise BadInput(
                    f"driver {spec.driver!r} has no clusters; say driver: sbatch",
                    pointer=f"{pointer}/cluster",
                )
            return spec
        names = [policy.name for policy in driver.policies()]
        if spec.cluster is None and len(names) == 1:
            return msgspec.structs.replace(spec, cluster=names[0])
        if spec.cluster not in names:
            what = f"there is no cluster {spec.cluster!r}" if spec.cluster else "cluster: say which one"
            there_are = ", ".join(names) or "none"
            raise BadInput(f"{what}; there are: {there_are}", pointer=f"{pointer}/cluster")
        return spec

    async def _answer_again(self, row: KeyRow, digest: bytes) -> list[JobRecord]:
        if row.digest != digest:
            raise Conflict(
                f"Idempotency-Key {row.key!r} made job {row.jids[0]} from another request; use a new key",
                code="key_reused",
            )
        stored = {job.record.jid: job.record for job in await self._supervisor.store.jobs(row.jids)}
        return [stored[jid] for jid in row.jids if jid in stored]

    async def _make(
        self, user: str, specs: list[JobSpec], key: KeyRow | None, held: contextlib.ExitStack
    ) -> list[JobRecord]:
        """The jobs, not written down yet; the commit that does so lets go of what is held."""
        await self._claim([spec.jid for spec in specs if spec.jid], held)
        jobs = []
        at = self._supervisor.now()
        randomness = os.urandom(10 * len(specs))
        for place, spec in enumerate(specs):
            if place % SLICE == SLICE - 1:
                await asyncio.sleep(0)
            jid = spec.jid or ulid(at, randomness[10 * place : 10 * place + 10])
            jobs.append(self._new(user, jid, spec, at))
        # from here to the commit nothing waits: all or nothing
        self._supervisor.commits.after(held.pop_all().close)
        for job in jobs:
            self._supervisor.created(job, at)
        if key is not None:
            row = msgspec.structs.replace(key, jids=[job.jid for job in jobs], created_at=at)
            self._known.add(user, row.key)
            self._supervisor.commits.unit.keys.append(row)
        self._supervisor.dispatch.at_once()
        return [job.record for job in jobs]

    def _new(self, user: str, jid: str, spec: JobSpec, at: int) -> ComputeJob:
        name = spec.name or os.path.basename(spec.command[0])[:200]
        record = JobRecord(
            jid=jid,
            seq=self._supervisor.next_job_seq(),
            user=user,
            state=State.PENDING,
            created_at=at,
            queued_at=at,
        )
        fixed = NewJob(
            name=name, driver=spec.driver, queue=spec.queue, priority=spec.priority, spec=_encode(spec)
        )
        return ComputeJob(record, fixed, spec)

    async def _claim(self, jids: list[str], held: contextlib.ExitStack) -> None:
        """Make sure that ids chosen by the client are free, and keep them so as long as they are held."""
        if not jids:
            return
        taken = {jid for jid in jids if jid in self._jids or self._supervisor.jobs.get(jid) is not None}
        if len(set(jids)) < len(jids):
            raise BadInput("the same jid stands twice in the batch", pointer="/jobs")
        if not taken:
            self._jids.update(jids)
            held.callback(self._jids.difference_update, jids)
            taken = {row.record.jid for row in await self._supervisor.store.jobs(jids)}
        if taken:
            raise Conflict(f"jid {min(taken)!r} is taken; choose another, or leave it out", code="jid_taken")
