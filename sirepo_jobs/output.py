"""Readings: bytes of a job's output on their way from the agent's disk to somebody who listens (C8, I13).

Nothing is streamed while nobody listens. A reading knows the offset that comes next; a chunk that does
not stand there is dropped or asked for again, so after a broken connection it goes on at the right byte.
At most `protocol.WINDOW_BYTES` are under way: the reader's pace is the agent's pace (C16).

A reader who can open the file itself is given marks instead of bytes: how far they reach. Then the bytes go
through none of our processes but its own.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, NotRequired, TypedDict, Unpack

from . import protocol
from .errors import RemoteError, Unavailable
from .op import Kind, Op

if TYPE_CHECKING:
    from .agent_claim import Agent
    from .compute_job import ComputeJob
    from .supervisor import Supervisor

#: How long a reader waits for an agent that has to be brought first.
AGENT_SECS = 60.0
#: A window, what an earlier connection has left of another one, and the chunk that was cut in the middle.
MAX_UNTAKEN_BYTES = 2 * protocol.WINDOW_BYTES + protocol.CHUNK_BYTES


class Output(TypedDict):
    """Which bytes somebody wants."""

    run_dir: str
    attempt: int
    agent: "Agent"
    stream: str
    offset: int
    limit: int | None
    follow: bool
    #: The attempt is known to have had a process.
    begun: NotRequired[bool]


class Reading:
    """One stream on its way to one reader."""

    def __init__(
        self,
        agent: "Agent",
        jid: str,
        ask: "Callable[[Reading, int], protocol.ToAgent]",
        *,
        word: str = "read_output",
        offset: int = 0,
        can_resume: bool = True,
        marks: bool = False,
    ) -> None:
        self.agent = agent
        self.jid = jid
        #: What to say to the agent, under an op id: everything from the present offset on.
        self.ask = ask
        #: The tag of that message.
        self.word = word
        self.offset = offset
        #: Whether the agent can go on in the middle.
        self.can_resume = can_resume
        self.chunks: deque[memoryview] = deque()
        #: Marks are wanted, not chunks.
        self.marks = marks
        #: The newest, until somebody takes it.
        self.mark: protocol.OutputMark | None = None
        #: Device and inode that the first one named.
        self.file: tuple[int, int] | None = None
        #: Bytes that came and that nobody has taken yet.
        self.untaken = 0
        #: What the agent said of it before the bytes, or instead of them.
        self.head: protocol.FileOpened | protocol.FileList | None = None
        self.ended = False
        self.error = ""
        #: The kind of error.
        self.code = ""
        self.op: Op | None = None
        self.news = asyncio.Event()


class Readings:
    """All readings under way."""

    def __init__(self, supervisor: "Supervisor") -> None:
        self._supervisor = supervisor
        self._readings: dict[int, Reading] = {}

    def __len__(self) -> int:
        return len(self._readings)

    async def read(
        self, job: "ComputeJob", **output: Unpack[Output]
    ) -> AsyncGenerator[bytes | memoryview, None]:
        """Chunks of an output; ends at the end of the file, or with `follow` of the attempt.

        The next chunk is asked for when the reader comes back for it. Of an attempt that is not known to have
        `begun`, a file that does not exist has no bytes. Raises `Unavailable` when the agent cannot be had or
        cannot read.
        """
        reading = self._reading(job, output)
        async with self._opened(reading, output), aclosing(self.flow(reading)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def marks(
        self, job: "ComputeJob", **output: Unpack[Output]
    ) -> AsyncGenerator[protocol.OutputMark, None]:
        """The same for somebody who can open the file, of an agent that gives marks: how far it reaches."""
        reading = self._reading(job, output, marks=True)
        async with self._opened(reading, output):
            while True:
                if (mark := reading.mark) is not None:
                    reading.mark = None
                    yield mark
                elif reading.ended:
                    return
                else:
                    await self.change(reading)

    def _reading(self, job: "ComputeJob", output: Output, *, marks: bool = False) -> Reading:
        record, offset, limit = job.record, output["offset"], output["limit"]

        def ask(reading: Reading, op_id: int) -> protocol.ReadOutput:
            return protocol.ReadOutput(
                jid=record.jid,
                serial=record.serial,
                attempt=output["attempt"],
                op_id=op_id,
                run_dir=output["run_dir"],
                stream=output["stream"],
                offset=reading.offset,
                limit=None if limit is None else limit - (reading.offset - offset),
                follow=output["follow"],
                marks=marks,
            )

        return Reading(output["agent"], record.jid, ask, offset=offset, marks=marks)

    @asynccontextmanager
    async def _opened(self, reading: Reading, output: Output) -> AsyncGenerator[None, None]:
        """Ends by raising what the agent said was wrong."""
        try:
            self.open(reading)
            yield
        finally:
            self.close(reading)
        if reading.error and (output.get("begun", True) or reading.code != "not_found"):
            raise Unavailable(f"the output of {reading.jid} cannot be read: {reading.error}")

    async def flow(self, reading: Reading) -> AsyncGenerator[bytes | memoryview, None]:
        """The chunks of an open reading until it has ended. Raises `Unavailable` when there is no agent."""
        while True:
            while reading.chunks:
                chunk = reading.chunks.popleft()
                yield chunk
                reading.untaken -= len(chunk)
                if reading.op is not None and reading.agent.line is not None:
                    reading.agent.line.say(protocol.Credit(op_id=reading.op.op_id, count=len(chunk)))
            if reading.ended:
                return
            await self.change(reading)

    async def change(self, reading: Reading, *, secs: float | None = None) -> None:
        """Wait for news of an open reading, once its agent is there for `secs` at most.

        Raises `Unavailable` when the agent does not come, or does not answer.
        """
        reading.news.clear()
        try:
            async with asyncio.timeout(secs if reading.op and reading.op.sent else AGENT_SECS):
                await reading.news.wait()
        except TimeoutError:
            why = (
                reading.op.waiting.text if reading.op and reading.op.waiting else "its agent does not answer"
            )
            raise Unavailable(f"files of {reading.jid} cannot be read now: {why}") from None

    def open(self, reading: Reading) -> None:
        """Ask for the bytes from the present offset on; an op, since the agent may have to be brought."""
        op = Op(
            self._supervisor.next_op_id(),
            Kind.READ,
            reading.jid,
            reading.agent,
            go=partial(self._ask, reading),
            still=lambda: reading.op is not None,
        )
        reading.op = op
        self._readings[op.op_id] = reading
        reading.agent.readers += 1
        self._supervisor.ops.begin(op)

    def _ask(self, reading: Reading, op: Op) -> None:
        assert reading.agent.line is not None, "an op was sent without a line"
        reading.agent.line.say(reading.ask(reading, op.op_id))
        reading.news.set()

    def close(self, reading: Reading) -> None:
        """Nobody reads it any more; safe to repeat."""
        op = self._end_op(reading)
        if op is not None and op.sent and not reading.ended and reading.agent.line is not None:
            reading.agent.line.say(protocol.StopReading(op_id=op.op_id))

    def _end_op(self, reading: Reading) -> Op | None:
        op, reading.op = reading.op, None
        if op is not None:
            del self._readings[op.op_id]
            reading.agent.readers -= 1
            self._supervisor.ops.end(op)
        return op

    # -- what the agent says

    def chunk(self, agent: "Agent", op_id: int, offset: int, data: memoryview) -> None:
        """Bytes came; those that are not the next ones are dropped.

        Raises `RemoteError` for more than was asked for: what nobody takes must not fill our memory (C16).
        """
        reading = self._readings.get(op_id)
        if reading is None or reading.agent is not agent or offset != reading.offset:
            return
        if reading.marks:
            # an older agent took the place of the one that gives marks; whoever reads asks again
            self._end(reading, f"agent {agent.name} is too old for this", "old_agent")
            return
        if reading.untaken + len(data) > MAX_UNTAKEN_BYTES:
            raise RemoteError(
                f"{reading.untaken + len(data)} bytes of a reading that nobody has taken; the window is"
                f" {protocol.WINDOW_BYTES}"
            )
        reading.offset += len(data)
        reading.untaken += len(data)
        reading.chunks.append(data)
        reading.news.set()

    def mark(self, agent: "Agent", message: protocol.OutputMark) -> None:
        """The bytes reach further than before. In another file they do not: whoever reads asks again."""
        reading = self._readings.get(message.op_id)
        if reading is None or reading.agent is not agent or not reading.marks:
            return
        if reading.ended:
            return
        file = message.device, message.inode
        if (reading.file or file) != file:
            if agent.line is not None:
                agent.line.say(protocol.StopReading(op_id=message.op_id))
            self._end(reading, f"{reading.jid} writes into another file now", "another_file")
            return
        reading.file = file
        if message.offset > reading.offset:
            reading.offset = message.offset
            reading.mark = message
            reading.news.set()

    def end(self, agent: "Agent", message: protocol.OutputEnd) -> None:
        """The agent has sent everything, or cannot. What did not come of it is asked for again (I13)."""
        reading = self._readings.get(message.op_id)
        if reading is None or reading.agent is not agent:
            return
        if not message.error and message.offset > reading.offset and reading.can_resume:
            self._end_op(reading)
            self._resume(reading)
        else:
            self._end(reading, message.error, message.code)

    def head(self, agent: "Agent", message: protocol.FileOpened | protocol.FileList) -> None:
        """What the agent has opened, or found."""
        reading = self._readings.get(message.op_id)
        if reading is None or reading.agent is not agent:
            return
        reading.head = message
        reading.ended = reading.ended or isinstance(message, protocol.FileList)
        reading.news.set()

    def unsupported(self, agent: "Agent", word: str) -> None:
        """The agent does not know a word of ours: whoever waits for the answer waits in vain (I33)."""
        for reading in list(self._readings.values()):
            if reading.agent is agent and reading.word == word and reading.op and reading.op.sent:
                self._end(reading, f"agent {agent.name} is too old for this", "old_agent")

    def _end(self, reading: Reading, error: str = "", code: str = "") -> None:
        reading.error, reading.code, reading.ended = error, code, True
        reading.news.set()

    def lost(self, agent: "Agent") -> None:
        """The connection is gone: every reading of this agent starts again where it stands."""
        for reading in [r for r in self._readings.values() if r.agent is agent and not r.ended]:
            self._end_op(reading)
            if reading.offset and not reading.can_resume:
                self._end(reading, "the connection to its agent was lost", "agent_lost")
            else:
                self._resume(reading)

    def _resume(self, reading: Reading) -> None:
        """Ask again from where the reader is.

        What came and was not taken is asked for again, too: it counted in the window of before, and with
        each further window more than was agreed would lie here (C16).
        """
        waiting = sum(map(len, reading.chunks))
        reading.chunks.clear()
        reading.offset -= waiting
        reading.untaken -= waiting
        self.open(reading)
