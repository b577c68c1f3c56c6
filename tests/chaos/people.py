"""Those who use the service meanwhile: they submit, follow, cancel, ask again, and note what they see."""

import fcntl
import os
import random
import threading
from typing import Any

from sirepo_jobs.client import Client, Job
from sirepo_jobs.errors import Conflict, Error, NotFound, Unavailable
from tests.chaos.history import History
from tests.chaos.plan import Plan, draw, stream
from tests.chaos.world import World

#: How long somebody waits for one job before looking at the next one; the end is checked anyway.
_PATIENCE_SECS = 45.0


class Person(threading.Thread):
    """One user at work, until told to stop; then finishes what is begun."""

    def __init__(self, world: World, history: History, name: str, token: str, seed: int) -> None:
        super().__init__(name=name, daemon=True)
        self.world = world
        self.history = history
        self.rng = random.Random(seed)
        self.stopping = threading.Event()
        #: What went wrong in here, which is not the service's fault.
        self.error: BaseException | None = None
        self._client: Client = world.client(token, patience_secs=90)
        self._keys = 0
        self._user = name.partition("/")[0]

    def run(self) -> None:
        """Story after story."""
        try:
            while not self.stopping.is_set():
                self._story()
        except BaseException as exc:  # noqa: BLE001 - told to whoever started us
            self.error = exc
        finally:
            self._client.close()

    # -- stories

    def _story(self) -> None:
        count = self.rng.choice((1, 1, 1, 2, 5, 12))
        plans = {self._key(): draw(self.rng) for _ in range(count)}
        jids = self._submit(plans)
        if self.rng.random() < 0.25:
            again = self._submit(plans, again=True)
            if jids and again and jids != again:
                self.history.note("double", first=jids, second=again)
            jids = jids or again
        for (key, plan), jid in zip(plans.items(), jids, strict=False):
            self._attend(key, plan, jid)

    def _key(self) -> str:
        self._keys += 1
        return f"{self.world.path.name}-{self.name.replace('/', '-')}-{self._keys}"

    def _submit(self, plans: dict[str, Plan], *, again: bool = False) -> list[str]:
        """All of them under one idempotency key; no jids when nobody knows whether they were accepted."""
        specs = [plan.spec(key, self.world.witness) for key, plan in plans.items()]
        one = next(iter(plans))
        self.history.note(
            "submit", user=self._user, key=one, plans={key: plan.text() for key, plan in plans.items()}
        )
        try:
            answers = self._client.submit(specs, idempotency_key=one)
        except Unavailable as exc:
            self.history.note("submit_info", user=self._user, key=one, why=str(exc), again=again)
            return []
        except Error as exc:
            self.history.note("submit_info", user=self._user, key=one, why=str(exc), again=again)
            self.history.note("error", jid=one, why=f"submit: {type(exc).__name__}: {exc}")
            return []
        jids = [answer.jid for answer in answers]
        self.history.note(
            "submit_ok", user=self._user, key=one, jids=dict(zip(plans, jids, strict=True)), again=again
        )
        if again and self.rng.random() < 0.3:
            self._misuse(one, specs)
        return jids

    def _misuse(self, key: str, specs: list[dict[str, Any]]) -> None:
        """The same key for something else must be refused."""
        try:
            self._client.submit([{**specs[0], "priority": 9}], idempotency_key=key)
        except Conflict:
            return
        except Unavailable:
            return
        self.history.note("key_reused", key=key)

    def _attend(self, key: str, plan: Plan, jid: str) -> None:
        fate = self.rng.random()
        try:
            if fate < 0.2:
                self._cancel(jid)
            elif fate < 0.45:
                self._follow(key, plan, jid)
            job = self._await(jid)
            if job is not None:
                self._verify(key, plan, job)
        except NotFound as exc:
            self.history.note("not_found", jid=jid, why=str(exc))
        except Unavailable as exc:
            self.history.note("info", jid=jid, why=str(exc))
        except Error as exc:
            self.history.note("error", jid=jid, why=f"{type(exc).__name__}: {exc}")

    def _await(self, jid: str) -> Job | None:
        """Look at the job until it has ended, or for so long."""
        job = self._see(self._client.get(jid))
        for _ in range(int(_PATIENCE_SECS / 5)):
            if job.ended or self.stopping.is_set():
                break
            job = self._see(self._client.get(jid, wait=5, version=job.version))
        return job if job.ended else None

    def _see(self, job: Job) -> Job:
        raw = job.raw
        final = None
        if job.ended:
            names = ("state", "exit_code", "signal", "reason", "ended_at", "stdout_bytes", "stderr_bytes")
            final = [raw.get(name) for name in names]
        self.history.note(
            "view", who=self.name, jid=job.jid, version=job.version, state=job.state, serial=job.serial,
            attempt=job.attempt, final=final,
        )  # fmt: skip
        return job

    def _cancel(self, jid: str) -> None:
        self.stopping.wait(self.rng.choice((0.0, 0.01, 0.1, 0.5)) * self.rng.random())
        job = self._see(self._client.cancel(jid))
        self.history.note("cancel_ok", jid=jid, state=job.state)

    def _follow(self, key: str, plan: Plan, jid: str) -> None:
        """Every byte as it comes, to the end of the attempt."""
        log = self._client.logs(jid, follow=True)
        got = bytearray()
        expected = b""
        attempt = None
        try:
            for piece in log:
                if log.attempt != attempt:
                    attempt = log.attempt
                    expected = stream(key, attempt or 0, "stdout", plan.out)
                got += piece
                if not expected.startswith(got) and not self._same(expected, got):
                    break
                if len(got) >= plan.out and self.stopping.is_set():
                    break
        finally:
            log.close()
        good = self._same(expected, got)
        self.history.note("followed", jid=jid, attempt=attempt, size=len(got), good=good)

    def _same(self, expected: bytes, got: bytearray) -> bool:
        return bytes(got) == expected[: len(got)]

    def _verify(self, key: str, plan: Plan, job: Job) -> None:
        """It has ended: nothing of it lives, and its output is what it wrote."""
        if not _lock_is_free(f"{self.world.witness_dir}/locks/{key}"):
            self.history.note("still_locked", jid=job.jid, state=job.state)
        for name, most in (("stdout", plan.out), ("stderr", plan.err)):
            verify_log(self.history, self._client, job, key, name, most)


def verify_log(history: History, client: Client, job: Job, key: str, name: Any, most: int) -> None:
    """Read a whole output of the last attempt, and note what came of it."""
    log = client.logs(job.jid, name)
    got = b"".join(log)
    attempt = log.attempt
    expected = stream(key, attempt or 0, name, most)
    said = job.stdout_bytes if name == "stdout" else job.stderr_bytes
    history.note(
        "log", jid=job.jid, attempt=attempt, name=name, size=len(got), said=said,
        good=got == expected[: len(got)],
    )  # fmt: skip


def _lock_is_free(path: str) -> bool:
    try:
        fd = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True


class Listener(threading.Thread):
    """Somebody who wants to hear of everything that happens, once."""

    def __init__(self, world: World) -> None:
        super().__init__(name="listener", daemon=True)
        self.seqs: list[int] = []
        self.heard: dict[int, tuple[str, int, str, str]] = {}
        self.stopping = threading.Event()
        self.error: BaseException | None = None
        self._client = world.client(patience_secs=120)

    def run(self) -> None:
        """Until there is nobody to hear from any more."""
        after = 0
        while not self.stopping.is_set():
            try:
                for event in self._client.events(after=after):
                    after = event.seq
                    self.seqs.append(event.seq)
                    self.heard[event.seq] = (event.jid, event.version, event.kind, event.state)
                    if self.stopping.is_set():
                        return
            except Unavailable:
                self.stopping.wait(0.2)
            except BaseException as exc:  # noqa: BLE001 - told to whoever started us
                self.error = exc
                return
