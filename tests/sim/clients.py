"""What people and programs ask of the supervisor, and what they are told: the other half of the history.

A request may get no answer: then nobody knows what became of it, and a client asks again with the same key,
or the same word, as ours do.
"""

import asyncio
import random
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from typing import Any

import msgspec
from msgspec import Struct

from sirepo_jobs.api.whereabouts import run_dir
from sirepo_jobs.changes import Changes
from sirepo_jobs.errors import Error, NotFound, Unavailable
from sirepo_jobs.events import CancelAsked, HoldAsked, Released, RetryAsked
from sirepo_jobs.job import FINAL, State
from sirepo_jobs.lifecycle import Illegal
from sirepo_jobs.resources import Resources
from sirepo_jobs.spec import JobSpec, Limits
from tests.sim.house import House, Node
from tests.sim.program import PROGRAM, Plan

#: A client waits so long for an answer, and so long before it asks again.
PATIENCE_SECS = 20.0
AGAIN_SECS = 1.5


class Order(Struct, frozen=True, omit_defaults=True):
    """One job that somebody wants."""

    plan: Plan = Plan()
    user: str = "ann"
    cpus: int = 1
    at: float = 0.0
    soft: float | None = None
    hard: float | None = None
    grace: float = 0.2
    max_attempts: int = 1
    priority: int = 5
    #: Jobs with the same batch number are sent in one request.
    batch: int = 0
    command: str = PROGRAM
    progress: bool = False
    on_lost: str = "wait"
    lost_after: float | None = None


class Wish(Struct, frozen=True, omit_defaults=True):
    """Something that is asked about a job: cancel, hold, release, retry, suspend, read, ..."""

    at: float
    verb: str
    #: Which order.
    order: int = 0
    #: Someone else's job, or an unknown one, is none of the client's business: not modelled here.
    number: int = 0


_encode = msgspec.json.Encoder().encode


class Call:
    """A request under way."""

    def __init__(
        self,
        clients: "Clients",
        ask: Callable[[Node], Coroutine[Any, Any, Any]],
        answer: Callable[[str, Any], None],
        patience: float = PATIENCE_SECS,
    ) -> None:
        self._clients = clients
        self._world = clients.world
        self._ask = ask
        self._answer = answer
        self._is_over = False
        self._node: Node | None = None
        self._world.after(clients.delay(), self._arrive)
        self._world.after(patience, self._finish, "info", "no answer")

    def _arrive(self) -> None:
        node = self._clients.house.serving
        if node is None:
            self._world.after(self._clients.delay(), self._finish, "info", "refused")
            return
        self._node = node
        node.calls[self] = None
        node.loop.call_soon(lambda: node.loop.create_task(self._run(node)))

    async def _run(self, node: Node) -> None:
        try:
            result = await self._ask(node)
            word, what = "ok", result
        except Error as exc:
            word, what = "fail", exc
        node.calls.pop(self, None)
        self._world.after(self._clients.delay(), self._finish, word, what)

    def broke(self) -> None:
        """The supervisor died."""
        self._world.after(self._clients.delay(), self._finish, "info", "the connection broke")

    def _finish(self, word: str, what: Any) -> None:
        if not self._is_over:
            self._is_over = True
            if self._node is not None:
                self._node.calls.pop(self, None)
            self._answer(word, what)


class Clients:
    """Everybody who asks."""

    def __init__(
        self, house: House, orders: list[Order], wishes: list[Wish], *, subscribers: int = 1
    ) -> None:
        self.house = house
        self.world = house.world
        self.dice = random.Random(f"{house.world.seed}/clients")
        self.orders = orders
        self.jids: dict[int, str] = {}
        #: Requests that must be answered in the end and are not yet.
        self.open = 0
        batches: dict[int, list[int]] = {}
        for number, order in enumerate(orders):
            batches.setdefault(order.batch or -1 - number, []).append(number)
        for numbers in batches.values():
            self.open += 1
            self.world.at(orders[numbers[0]].at, self._submit, numbers, f"key{numbers[0]}", 0)
        for wish in wishes:
            if wish.order < len(orders):
                self.world.at(wish.at, self._wish, wish)
        for number in range(subscribers):
            self.world.at(0.5 * number, self._subscribe, number, 0)

    def delay(self) -> float:
        return 0.0005 + 0.002 * self.dice.random()

    # -- submitting

    def _submit(self, numbers: list[int], key: str, tries: int) -> None:
        orders = [self.orders[number] for number in numbers]
        user = orders[0].user
        specs = [_spec(order) for order in orders]
        self.world.note("submit", key, user, len(specs))

        async def ask(node: Node) -> Any:
            records, made = await node.intake.submit(user, specs, key)
            return [record.jid for record in records], made

        def answer(word: str, what: Any) -> None:
            if word == "ok":
                jids, made = what
                self.world.note("submitted", key, user, tuple(jids), made)
                self.jids.update(zip(numbers, jids, strict=True))
                self.open -= 1
                if self.dice.random() < 0.1 and tries < 20:
                    self.open += 1  # an anxious one asks again
                    self.world.after(AGAIN_SECS, self._submit, numbers, key, 20)
            else:
                self.world.note("submit_" + word, key, str(what))
                self.world.after(
                    AGAIN_SECS * (0.5 + self.dice.random()), self._submit, numbers, key, tries + 1
                )

        Call(self, ask, answer)

    # -- wishes

    def _wish(self, wish: Wish, tries: int = 0) -> None:
        jid = self.jids.get(wish.order)
        if jid is None:
            if tries < 5 or wish.verb == "cancel":
                self.world.after(1.0, self._wish, wish, tries + 1)
            return
        if wish.verb == "read":
            self.open += 1
            self._read(wish.order, jid, 1, 0, b"")
        elif wish.verb == "watch":
            self.open += 1
            self._watch(jid, 0, wish.number)
        else:
            self.open += 1
            self._tell(wish, jid, 0)

    def _tell(self, wish: Wish, jid: str, tries: int) -> None:
        healed_at = self.house.healed_at
        if wish.verb == "suspend" and healed_at is not None and self.world.now > healed_at:
            self.open -= 1  # nothing shall stand still for ever
            return
        self.world.note("ask", wish.verb, jid)
        user = self.orders[wish.order].user

        async def ask(node: Node) -> Any:
            supervisor = node.supervisor
            async with supervisor.jobs.hold(jid) as job:
                if job is None:
                    raise NotFound(f"there is no job {jid}")
                if wish.verb in ("suspend", "resume"):
                    await self._signal(supervisor, job, wish.verb)
                elif wish.verb == "priority":
                    supervisor.change(job, Changes(priority=wish.number), user)
                else:
                    at = supervisor.now()
                    event: Any = {
                        "cancel": CancelAsked(at=at, by=user),
                        "hold": HoldAsked(at=at, by=user),
                        "release": Released(at=at, by=user),
                        "retry": RetryAsked(at=at, by=user),
                    }[wish.verb]
                    if wish.verb != "retry" or job.record.serial <= wish.number:
                        supervisor.tell(job, event)
                await supervisor.commits.durable()
                await job.settled()
                return job.record.version, job.record.state.value, job.record.serial

        def answer(word: str, what: Any) -> None:
            if word == "info":
                self.world.note("ask_info", wish.verb, jid)
            if (word == "info" or isinstance(what, Unavailable)) and tries < 40:
                self.world.after(AGAIN_SECS, self._tell, wish, jid, tries + 1)
                return
            self.open -= 1
            if word == "ok":
                self.world.note("told", wish.verb, jid, *what)
            else:
                kind = "illegal" if isinstance(what, Illegal) else type(what).__name__
                self.world.note("refused", wish.verb, jid, kind)

        Call(self, ask, answer)

    async def _signal(self, supervisor: Any, job: Any, verb: str) -> None:
        """As the door does it."""
        before = State.RUNNING if verb == "suspend" else State.SUSPENDED
        if job.record.state in (State.RUNNING, State.SUSPENDED) and not supervisor.send_signal(
            job, suspend=verb == "suspend"
        ):
            raise Unavailable("its agent is out of reach")
        if job.record.state is before:
            try:
                async with asyncio.timeout(5):
                    while job.record.state is before:
                        await job.change(job.record.version)
            except TimeoutError:
                raise Unavailable("its agent does not answer") from None
        elif job.record.state is State.LOST:
            raise Unavailable("its agent is out of reach")

    # -- looking

    def _watch(self, jid: str, version: int, number: int) -> None:
        """Blocking queries, one after the other, until the job has ended."""

        async def ask(node: Node) -> Any:
            async with node.supervisor.jobs.hold(jid) as job:
                if job is None:
                    raise NotFound(f"there is no job {jid}")
                if job.seen <= version:
                    try:
                        async with asyncio.timeout(10):
                            await job.change(version)
                    except TimeoutError:
                        pass
                await job.settled()
                return job.record.version, job.record.state

        def answer(word: str, what: Any) -> None:
            latest = version
            if word == "ok":
                latest, state = what
                self.world.note("saw", number, jid, latest, state.value)
                if state in FINAL:
                    self.open -= 1
                    return
            elif word == "fail":
                self.world.note("missed", number, jid, type(what).__name__)
            if self.world.now < self.house.deadline:
                secs = 0.0 if word == "ok" else AGAIN_SECS
                self.world.after(secs, self._watch, jid, latest, number)
            else:
                self.open -= 1

        Call(self, ask, answer)

    def _read(self, number: int, jid: str, attempt: int, tries: int, got: bytes) -> None:
        """Follow the stdout of the first attempt to its end, going on where a connection broke."""
        found = bytearray(got)

        async def ask(node: Node) -> Any:
            supervisor = node.supervisor
            async with supervisor.jobs.hold(jid) as job:
                if job is None:
                    raise NotFound(f"there is no job {jid}")
                while (
                    job.record.started_at is None
                    and job.record.state not in FINAL
                    and job.record.attempt <= attempt
                ):
                    await job.change(job.record.version)
                if attempt > job.record.attempt:
                    return "never"
                where = await run_dir(supervisor, job, attempt)
                if where is None:
                    return "never"
                chunks = supervisor.readings.read(
                    job,
                    run_dir=where.path,
                    attempt=attempt,
                    agent=where.agent,
                    stream="stdout",
                    offset=len(found),
                    limit=None,
                    follow=attempt == job.record.attempt,
                )
                async with aclosing(chunks) as flow:
                    async for chunk in flow:
                        found.extend(chunk)
                return "end"

        def answer(word: str, what: Any) -> None:
            if word == "ok":
                self.world.note("read", jid, attempt, what, bytes(found))
                self.open -= 1
            elif tries < 30 and self.world.now < self.house.deadline:
                self.world.after(AGAIN_SECS, self._read, number, jid, attempt, tries + 1, bytes(found))
            else:
                self.world.note("read", jid, attempt, f"gave up: {what}", bytes(found))
                self.open -= 1

        Call(self, ask, answer, patience=200.0)

    def _subscribe(self, number: int, after: int) -> None:
        """Listen to the stream of events; whoever is cut off asks for what follows the last one."""
        last = after

        async def ask(node: Node) -> Any:
            nonlocal last
            async with aclosing(node.supervisor.events.follow(last, user=None)) as pieces:
                async for rows in pieces:
                    for row in rows:
                        last = row.seq
                        self.world.note("heard", number, row.seq, row.jid, row.version, row.kind)

        def answer(_word: str, _what: Any) -> None:
            if self.world.now < self.house.deadline:
                self.world.after(AGAIN_SECS, self._subscribe, number, last)

        Call(self, ask, answer, patience=10_000.0)


def _spec(order: Order) -> JobSpec:
    return JobSpec(
        command=[order.command, _encode(order.plan).decode()],
        resources=Resources(cpus=order.cpus),
        limits=Limits(soft=order.soft, hard=order.hard, grace=order.grace),
        max_attempts=order.max_attempts,
        priority=order.priority,
        progress="jsonl" if order.progress else None,
        on_lost=order.on_lost,  # type: ignore[arg-type]
        lost_after=order.lost_after,
    )
