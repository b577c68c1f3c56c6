"""One connection with the supervisor: says what the launcher knows, does what the supervisor asks."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Final, cast

from websockets.asyncio.client import ClientConnection

from sirepo_jobs import failpoints
from sirepo_jobs.agents.attempts import Attempts
from sirepo_jobs.agents.link import Link
from sirepo_jobs.agents.listing import Listings
from sirepo_jobs.agents.process import boot_secs
from sirepo_jobs.agents.readings import Readings
from sirepo_jobs.agents.unrenewed import Unrenewed
from sirepo_jobs.agents.words import FromRelay, ToRelay
from sirepo_jobs.errors import RemoteError
from sirepo_jobs.protocol import (
    FRAME_TARGET_BYTES,
    LATE,
    Cancel,
    Credit,
    Exited,
    FromAgent,
    FromAgentFrame,
    Grant,
    Heard,
    Heartbeat,
    Hello,
    ListFiles,
    ReadArchive,
    ReadFile,
    ReadOutput,
    ReadRange,
    Run,
    Signal,
    Stop,
    StopReading,
    Unknown,
    Unsupported,
    Welcome,
    decode_to_agent,
    encode,
    idle_secs,
)

#: So many messages may wait for a slow connection before the launcher has to keep the rest.
MAX_WAITING: Final = 2000
#: So many unconfirmed heartbeats are remembered.
MAX_BEATS: Final = 100
#: The supervisor may take so long to let us in: others may call at the same time.
WELCOME_SECS: Final = 60.0


class Session:
    """From `Hello` until the connection ends."""

    def __init__(self, agent: str, connection: ClientConnection, link: Link, attempts: Attempts) -> None:
        self._agent = agent
        self._connection = connection
        self._link = link
        self._attempts = attempts
        self._waiting: list[FromAgent] = []
        self._wake = asyncio.Event()
        self._hello: asyncio.Future[Hello] = asyncio.get_running_loop().create_future()
        self._readings = Readings(attempts.files, attempts.is_live, self._send_chunk, self.say)
        self._listings = Listings(attempts.files, self.say)
        self._heartbeat_secs = 0.0
        #: When the supervisor said something last, by the loop's clock.
        self._heard_at = 0.0
        #: When heartbeats that nobody has confirmed were said, by the boot clock.
        self._beats: dict[int, float] = {}
        self._beat_count = 0
        #: A heartbeat is wanted now.
        self._lease_came = asyncio.Event()
        #: There was nothing to do here, and now there is: for whoever beats, and for whoever listens.
        self._work_came = (asyncio.Event(), asyncio.Event())
        self._unrenewed = Unrenewed()
        self._epoch = self._session = 0
        #: The supervisor knows us and what we hold.
        self.welcome = False

    async def run(self) -> None:
        """Until the connection ends. Raises `ConnectionClosed`, or `RemoteError` for nonsense."""
        self._link.say(FromRelay(hail=True))
        frame = FromAgentFrame(agent=self._agent, msgs=[await self._hello])
        await self._connection.send(encode(frame), text=True)
        failpoints.hit("session.hello_sent")
        async with asyncio.timeout(WELCOME_SECS):
            await self._receive_welcome()
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._receive(), name="receive")
                tasks.create_task(self._send(), name="send")
                tasks.create_task(self._readings.serve(), name="readings")
                tasks.create_task(self._listings.serve(), name="listings")
                tasks.create_task(self._beat(), name="heartbeat")
                tasks.create_task(self._listen_for_life(), name="life")
                tasks.create_task(self._tell_progress(), name="progress")
        except ExceptionGroup as group:
            # Whichever task noticed first: the connection is over.
            raise group.exceptions[0] from None
        finally:
            self._link.pause(False)

    # -- from the launcher

    def hear(self, word: ToRelay) -> None:
        """What the launcher says while this connection stands."""
        if word.hello is not None and not self._hello.done():
            self._attempts.replace(word.watch)
            self._hello.set_result(word.hello)
        if (word.session, word.epoch) != (self._session, self._epoch) or not (word.msgs or word.notes):
            return
        self._waiting += word.notes
        for record in word.msgs:
            if isinstance(record, Exited):
                last = self._attempts.ended((record.jid, record.attempt))
                if last is not None:
                    self._waiting.append(last)
                self._readings.ended(record)
            self._waiting.append(record)
        self._wake.set()
        if len(self._waiting) > MAX_WAITING:
            self._link.pause(True)

    # -- to the supervisor

    def say(self, message: FromAgent) -> None:
        """Send it with the next frame."""
        self._waiting.append(message)
        self._wake.set()

    async def _send(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._waiting:
                messages, self._waiting = self._waiting, []
                for data in self._frames(messages):
                    await self._connection.send(data, text=True)
            failpoints.hit("session.sent")
            self._link.pause(False)

    def _frames(self, messages: list[FromAgent]) -> Iterator[bytes]:
        """One frame, or several where one would be too long."""
        data = encode(
            FromAgentFrame(agent=self._agent, epoch=self._epoch, session=self._session, msgs=messages)
        )
        if len(data) <= FRAME_TARGET_BYTES or len(messages) == 1:
            yield data
        else:
            half = len(messages) // 2
            yield from self._frames(messages[:half])
            yield from self._frames(messages[half:])

    async def _send_chunk(self, chunk: bytes) -> None:
        # Only the task that reads outputs waits here: other messages are written meanwhile.
        await self._connection.send(chunk)

    async def _beat(self) -> None:
        clock = asyncio.get_running_loop().time
        work_came, _ = self._work_came
        said_at = clock()
        while True:
            due_at = said_at + self._beat_secs()
            if clock() < due_at and not self._lease_came.is_set():
                await _until(due_at, work_came)
                continue
            said_at = clock()
            if not len(self._attempts) and not self._lease_came.is_set():
                # the cheapest sign of life, and so is its answer: nothing here counts heartbeats
                pong = cast("asyncio.Future[float]", await self._connection.ping())
                pong.add_done_callback(self._heard)
                continue
            self._lease_came.clear()
            self._beat_count += 1
            self._beats[self._beat_count] = boot_secs()
            if len(self._beats) > MAX_BEATS:
                del self._beats[next(iter(self._beats))]
            self.say(Heartbeat(at=time.time_ns() // 1000, held=len(self._attempts), n=self._beat_count))

    def _heard(self, pong: "asyncio.Future[float]") -> None:
        if not pong.cancelled() and pong.exception() is None:
            self._heard_at = asyncio.get_running_loop().time()

    def _beat_secs(self) -> float:
        """Between two heartbeats: often enough for every lease."""
        if not len(self._attempts):
            return idle_secs(self._heartbeat_secs)
        lease_secs = self._attempts.shortest_lease
        return self._heartbeat_secs if lease_secs is None else min(self._heartbeat_secs, lease_secs / 4)

    def _beat_soon(self, lease_secs: float | None) -> None:
        """See to it that a lease which is short for our heartbeats gets more of them."""
        if lease_secs is not None and lease_secs < 4 * self._heartbeat_secs:
            self._beat_now()

    def _beat_now(self) -> None:
        self._lease_came.set()
        self._work_came[0].set()

    def _renew(self, n: int) -> None:
        """The supervisor has heard the `n`-th heartbeat: so it knew then that we are here (C9, C15)."""
        at = self._beats.get(n)
        if at is not None:
            self._beats = {count: when for count, when in self._beats.items() if count > n}
            self._link.say(FromRelay(renewed_at=at))
            if orders := self._unrenewed.renewed(at):
                self._link.say(FromRelay(session=self._session, epoch=self._epoch, msgs=list(orders)))

    async def _listen_for_life(self) -> None:
        """Notice within two heartbeats that the other end is gone without a word (F061, F062).

        It answers each heartbeat, and is asked only when an answer is late. While there is nothing to do,
        heartbeats are rare, and it takes as much longer.
        """
        clock = asyncio.get_running_loop().time
        _, work_came = self._work_came
        self._heard_at = clock()
        while True:
            idle = 0.0 if len(self._attempts) else idle_secs(self._heartbeat_secs) - self._heartbeat_secs
            due_at = self._heard_at + LATE * self._heartbeat_secs + idle
            if clock() < due_at:
                await _until(due_at, work_came)
                continue
            answer = await self._connection.ping()
            try:
                async with asyncio.timeout((2 - LATE) * self._heartbeat_secs):
                    await answer
                self._heard_at = clock()
            except TimeoutError:
                # A closing handshake would only be waited for.
                self._connection.transport.abort()
                raise TimeoutError(f"no sign of life for {2 * self._heartbeat_secs:g} s") from None

    async def _tell_progress(self) -> None:
        async for progress in self._attempts.progress():
            self.say(progress)

    # -- from the supervisor

    async def _receive_welcome(self) -> None:
        while True:
            received = decode_to_agent(await self._connection.recv(decode=False))
            failpoints.hit("session.welcomed")
            found = [message for message in received.msgs if isinstance(message, Welcome | Stop)]
            for message in found:
                if isinstance(message, Welcome):
                    self._epoch, self._session = received.epoch, received.session
                    self._heartbeat_secs = max(message.heartbeat_secs, 0.1)
                    self.welcome = True
                    if self._attempts.shortest_lease is not None:
                        self._beat_now()  # a heartbeat at once: a welcome renews nothing
            if found:
                self._obey(received.ack, received.msgs)
            if self.welcome:
                return

    async def _receive(self) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            received = decode_to_agent(await self._connection.recv(decode=False))
            self._heard_at = clock()
            if (received.epoch, received.session) == (self._epoch, self._session):
                self._obey(received.ack, received.msgs)

    def _obey(self, ack: int, messages: list[Any]) -> None:
        for_launcher: list[Welcome | Run | Grant | Cancel | Signal | Stop] = []
        for message in messages:
            match message:
                case Run() | Grant() | Cancel() | Signal():
                    if isinstance(message, Run):
                        if not len(self._attempts):
                            for event in self._work_came:
                                event.set()
                        self._attempts.add(message)
                        self._beat_soon(message.lease_secs)
                    if self._unrenewed.keeps(message, boot_secs()):
                        self._beat_now()
                    else:
                        for_launcher.append(message)
                case Welcome() | Stop():
                    for_launcher.append(message)
                case ReadOutput() | ReadFile() | ReadArchive():
                    self._readings.add(message)
                case Heard(n=n):
                    self._renew(n)
                case ReadRange():
                    self._readings.take(message)
                case ListFiles():
                    self._listings.add(message)
                case Credit(op_id=op_id, count=count):
                    self._readings.credit(op_id, count)
                case StopReading(op_id=op_id):
                    self._readings.remove(op_id)
                case Unknown(kind=kind):
                    self.say(Unsupported(kind=kind))
                case Unsupported():
                    pass
                case _:
                    raise RemoteError(f"{type(message).__name__} is nothing to say to an agent")
        failpoints.hit("session.obeying")
        if ack or for_launcher:
            self._link.say(FromRelay(session=self._session, epoch=self._epoch, ack=ack, msgs=for_launcher))


async def _until(at: float, event: asyncio.Event) -> None:
    """Until then, by the loop's clock, or until something has happened, which is forgotten."""
    with suppress(TimeoutError):
        async with asyncio.timeout_at(at):
            await event.wait()
    event.clear()
