"""Readings: bytes of a job's output on their way from the agent's disk to somebody who listens (C8, I13).

Nothing is streamed while nobody listens. A reading knows the offset that comes next; a chunk that does
not stand there is dropped or asked for again, so after a broken connection it goes on at the right byte.
At most `protocol.WINDOW_BYTES` are under way: the reader's pace is the agent's pace (C16).
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from functools import partial
from typing import TYPE_CHECKING

from . import protocol
from .errors import Unavailable
from .op import Kind, Op

if TYPE_CHECKING:
    from .agent_pool import Agent
    from .compute_job import ComputeJob
    from .supervisor import Supervisor

#: How long a reader waits for an agent that has to be brought first.
AGENT_SECS = 60.0


class _Reading:
    """One stream on its way to one reader."""

    def __init__(self, request: protocol.ReadOutput, agent: "Agent") -> None:
        self.request = request
        self.agent = agent
        self.offset = request.offset
        self.chunks: deque[memoryview] = deque()
        self.ended = False
        self.error = ""
        self.op: Op | None = None
        self.news = asyncio.Event()

    @property
    def left(self) -> int | None:
        """Bytes that are still wanted; None = all."""
        limit = self.request.limit
        return None if limit is None else limit - (self.offset - self.request.offset)


class Readings:
    """All readings under way."""

    def __init__(self, supervisor: "Supervisor") -> None:
        self._supervisor = supervisor
        self._readings: dict[int, _Reading] = {}

    def __len__(self) -> int:
        return len(self._readings)

    async def read(
        self,
        job: "ComputeJob",
        *,
        run_dir: str,
        attempt: int,
        agent: "Agent",
        stream: str,
        offset: int,
        limit: int | None,
        follow: bool,
    ) -> AsyncGenerator[bytes | memoryview, None]:
        """Chunks of `stream` from `offset` on; ends at the end of the file, or with `follow` of the attempt.

        The next chunk is asked for when the reader comes back for it. Raises `Unavailable` when the
        agent cannot be had or cannot read.
        """
        record = job.record
        request = protocol.ReadOutput(
            jid=record.jid,
            serial=record.serial,
            attempt=attempt,
            op_id=0,
            run_dir=run_dir,
            stream=stream,
            offset=offset,
            limit=limit,
            follow=follow,
        )
        reading = _Reading(request, agent)
        try:
            self._open(reading)
            while True:
                while reading.chunks:
                    chunk = reading.chunks.popleft()
                    yield chunk
                    if reading.op is not None and agent.line is not None:
                        agent.line.say(protocol.Credit(op_id=reading.op.op_id, count=len(chunk)))
                if reading.ended:
                    break
                reading.news.clear()
                async with asyncio.timeout(None if reading.op and reading.op.sent else AGENT_SECS):
                    await reading.news.wait()
        except TimeoutError:
            why = (
                reading.op.waiting.text if reading.op and reading.op.waiting else "its agent does not answer"
            )
            raise Unavailable(f"the output of {record.jid} cannot be read now: {why}") from None
        finally:
            self._close(reading)
        if reading.error:
            raise Unavailable(f"the output of {record.jid} cannot be read: {reading.error}")

    def _open(self, reading: _Reading) -> None:
        """Ask for the bytes from the present offset on; an op, since the agent may have to be brought."""
        op = Op(
            self._supervisor.next_op_id(),
            Kind.READ,
            reading.request.jid,
            reading.agent,
            go=partial(self._ask, reading),
            still=lambda: reading.op is not None,
        )
        reading.op = op
        self._readings[op.op_id] = reading
        self._supervisor.ops.begin(op)

    def _ask(self, reading: _Reading, op: Op) -> None:
        request = reading.request
        assert reading.agent.line is not None, "an op was sent without a line"
        reading.agent.line.say(
            protocol.ReadOutput(
                jid=request.jid,
                serial=request.serial,
                attempt=request.attempt,
                op_id=op.op_id,
                run_dir=request.run_dir,
                stream=request.stream,
                offset=reading.offset,
                limit=reading.left,
                follow=request.follow,
            )
        )
        reading.news.set()

    def _close(self, reading: _Reading) -> None:
        op, reading.op = reading.op, None
        if op is None:
            return
        self._readings.pop(op.op_id, None)
        self._supervisor.ops.end(op)
        if op.sent and not reading.ended and reading.agent.line is not None:
            reading.agent.line.say(protocol.StopReading(op_id=op.op_id))

    # -- what the agent says

    def chunk(self, agent: "Agent", op_id: int, offset: int, data: memoryview) -> None:
        """Bytes came; those that are not the next ones are dropped."""
        reading = self._readings.get(op_id)
        if reading is None or reading.agent is not agent or offset != reading.offset:
            return
        reading.offset += len(data)
        reading.chunks.append(data)
        reading.news.set()

    def end(self, agent: "Agent", message: protocol.OutputEnd) -> None:
        """The agent has sent everything, or cannot."""
        reading = self._readings.get(message.op_id)
        if reading is None or reading.agent is not agent:
            return
        reading.error = message.error
        reading.ended = True
        reading.news.set()

    def lost(self, agent: "Agent") -> None:
        """The connection is gone: every reading of this agent starts again where it stands."""
        for reading in [r for r in self._readings.values() if r.agent is agent and not r.ended]:
            op, reading.op = reading.op, None
            if op is not None:
                del self._readings[op.op_id]
                self._supervisor.ops.end(op)
            self._open(reading)
