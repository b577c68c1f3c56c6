"""Output on its way, both real ends of it, against the file itself: any story of writing, cuts and repeats.

The supervisor's `Readings` and the agent's are joined by a wire that the story delivers from, cuts, and
says old things on again. Whoever reads gets the bytes of the file at his offset, each once and in order
(I13), and no more is under way than the window allows (C16).
"""

import asyncio
import random
import selectors
import tempfile
from collections.abc import AsyncGenerator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sirepo_jobs import output, protocol
from sirepo_jobs.agents import readings as agent_readings
from sirepo_jobs.op import Awaited, Need, OpLoop
from sirepo_jobs.protocol import decode_chunk
from sirepo_jobs.reasons import Reason
from sirepo_jobs.run_tree import RunFiles

JID = "j"
RUN_DIR = "j/1"
WINDOW, CHUNK = 64, 16
STREAM = random.Random(1).randbytes(1 << 14)
SMALL = {
    (output, "MAX_UNTAKEN_BYTES"): 2 * WINDOW + CHUNK,
    (agent_readings, "WINDOW_BYTES"): WINDOW,
    (agent_readings, "CHUNK_BYTES"): CHUNK,
    (agent_readings, "FOLLOW_SECS"): 0.0001,
    (output, "AGENT_SECS"): 5.0,
}


class Loop(asyncio.SelectorEventLoop):
    """Nobody waits in it: its clock goes on by as much as it would have waited, so a story stays the same."""

    def __init__(self) -> None:
        self._now = 0.0
        selector = selectors.DefaultSelector()
        select = selector.select

        def skip(timeout: float | None = None) -> Any:
            self._now += max(timeout or 0.0, 0.0)
            return select(0 if timeout is not None else None)

        selector.select = skip  # type: ignore[method-assign]
        super().__init__(selector)

    def time(self) -> float:
        """Its own."""
        return self._now


class Claim:
    """The supervisor's agent, as far as readings care."""

    key = name = "local-ann"

    def __init__(self) -> None:
        self.line: SimpleNamespace | None = None
        self.readers = 0
        self.ops: dict[int, Any] = {}

    def want(self) -> None:
        if self.line is None:
            raise Awaited((Need.AGENT, self.key), Reason.AGENT_UNREACHABLE, "it is away")


class Reader:
    """Somebody who reads at his own pace."""

    def __init__(
        self, flow: AsyncGenerator[Any, None], offset: int, limit: int | None, follow: bool, seen: int
    ) -> None:
        self.flow, self.offset, self.limit, self.follow = flow, offset, limit, follow
        #: Length of the file when it was asked for.
        self.seen = seen
        self.got = b""
        self.next: asyncio.Future[Any] | None = None
        self.over = False

    def take(self) -> None:
        """Ask for the next chunk."""
        if not self.over and self.next is None:
            self.next = asyncio.ensure_future(anext(self.flow))

    def look(self) -> None:
        """Keep what came."""
        if self.next is None or not self.next.done():
            return
        try:
            self.got += bytes(self.next.result())
        except StopAsyncIteration:
            self.over = True
        self.next = None


class OutputMachine(RuleBasedStateMachine):
    """One attempt, its stdout, one agent, some readers."""

    def __init__(self) -> None:
        super().__init__()
        self._before = {(module, name): getattr(module, name) for module, name in SMALL}
        for (module, name), value in SMALL.items():
            setattr(module, name, value)
        self._folder = tempfile.TemporaryDirectory()
        path = Path(self._folder.name, RUN_DIR)
        path.mkdir(parents=True)
        self.path = path / "stdout"
        self.path.touch()
        self.written = b""
        self.live = True
        self._runner = asyncio.Runner(loop_factory=Loop)
        self.claim = Claim()
        self._op_id = 0
        supervisor: Any = SimpleNamespace(ops=OpLoop(lambda _op: None), next_op_id=self._next_op_id)
        self.ops = supervisor.ops
        self.readings = output.Readings(supervisor)
        self.readers: list[Reader] = []
        self.to_agent: list[Any] = []
        self.to_supervisor: list[Any] = []
        #: Every chunk that was ever sent.
        self.history: list[bytes] = []
        #: What the agent was asked by this connection.
        self.asked: list[protocol.ReadOutput] = []
        self.agent: agent_readings.Readings | None = None
        self._serving: asyncio.Task[None] | None = None
        self.connect()

    def _next_op_id(self) -> int:
        self._op_id += 1
        return self._op_id

    def run(self, ticks: int = 6) -> None:
        """Let everybody have some turns."""

        async def turns() -> None:
            for _ in range(ticks):
                await asyncio.sleep(0)
            await asyncio.sleep(0.0002)

        self._runner.run(turns())
        for reader in self.readers:
            reader.look()

    # -- the connection

    @precondition(lambda self: self.claim.line is None)
    @rule()
    def connect(self) -> None:
        async def begin() -> None:
            self.agent = agent_readings.Readings(
                RunFiles(self._folder.name), lambda _key: self.live, self._send, self.to_supervisor.append
            )
            self.asked.clear()
            self._serving = asyncio.create_task(self.agent.serve())
            self.claim.line = SimpleNamespace(say=self.to_agent.append)
            self.ops.wake((Need.AGENT, self.claim.key))
            self.ops.settle()

        self._runner.run(begin())

    async def _send(self, chunk: bytes) -> None:
        self.history.append(chunk)
        self.to_supervisor.append(chunk)

    @precondition(lambda self: self.claim.line is not None)
    @rule()
    def cut(self) -> None:
        """What is under way is lost, both ways."""

        async def end() -> None:
            assert self._serving is not None
            self._serving.cancel()
            await asyncio.gather(self._serving, return_exceptions=True)
            self.to_agent.clear()
            self.to_supervisor.clear()
            self.claim.line = None
            self.readings.lost(self.claim)  # type: ignore[arg-type]

        self._runner.run(end())

    @rule(count=st.integers(1, 20))
    def agent_hears(self, count: int) -> None:
        messages, self.to_agent[:] = self.to_agent[:count], self.to_agent[count:]
        for message in messages:
            assert self.agent is not None
            match message:
                case protocol.ReadOutput():
                    self.agent.add(message)
                    self.asked.append(message)
                case protocol.Credit():
                    self.agent.credit(message.op_id, message.count)
                case protocol.StopReading():
                    self.agent.remove(message.op_id)
        self.run()

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def the_agent_is_asked_again(self, data: st.DataObject) -> None:
        """The same words a second time, early or late."""
        assert self.agent is not None
        self.agent.add(data.draw(st.sampled_from(self.asked)))
        self.run()

    @rule(count=st.integers(1, 20))
    def supervisor_hears(self, count: int) -> None:
        messages, self.to_supervisor[:] = self.to_supervisor[:count], self.to_supervisor[count:]
        for message in messages:
            self._hear(message)
        self.run()

    def _hear(self, message: Any) -> None:
        if isinstance(message, bytes):
            self.readings.chunk(self.claim, *decode_chunk(message))  # type: ignore[arg-type]
        else:
            self.readings.end(self.claim, message)  # type: ignore[arg-type]

    @precondition(lambda self: self.history)
    @rule(data=st.data())
    def an_old_chunk_comes_again(self, data: st.DataObject) -> None:
        """Of this connection or an earlier one; or what was said to be far ahead."""
        waiting = [message for message in self.to_supervisor if isinstance(message, bytes)]
        old = [chunk for chunk in self.history if chunk not in waiting]
        if old:
            self._hear(data.draw(st.sampled_from(old)))
        for chunk in waiting[1:2]:
            self._hear(chunk)  # a gap: the one before it has not come yet
        self.run()

    # -- the job

    @precondition(lambda self: self.live)
    @rule(count=st.integers(1, 150))
    def write(self, count: int) -> None:
        """No two places of the stream look alike, or a byte in the wrong one would not be seen."""
        at = len(self.written)
        data = STREAM[at : at + count]
        with self.path.open("ab") as file:
            file.write(data)
        self.written += data
        self.run()

    @precondition(lambda self: self.live)
    @rule()
    def exit(self) -> None:
        self.live = False
        if self.claim.line is not None and self.agent is not None:
            exited = protocol.Exited(
                jid=JID, serial=1, attempt=1, seq=1, at=1, exit_code=0, stdout_bytes=len(self.written)
            )
            self.agent.ended(exited)
        self.run()

    # -- readers

    @precondition(lambda self: len(self.readers) < 4)
    @rule(data=st.data(), follow=st.booleans(), limit=st.none() | st.integers(0, 200))
    def ask(self, data: st.DataObject, follow: bool, limit: int | None) -> None:
        offset = data.draw(st.integers(0, len(self.written)))
        flow = self.readings.read(
            SimpleNamespace(record=SimpleNamespace(jid=JID, serial=1)),  # type: ignore[arg-type]
            run_dir=RUN_DIR,
            attempt=1,
            agent=self.claim,  # type: ignore[arg-type]
            stream="stdout",
            offset=offset,
            limit=limit,
            follow=follow,
        )
        reader = Reader(flow, offset, limit, follow, len(self.written))
        self.readers.append(reader)
        self._take(reader)

    @precondition(lambda self: self.readers)
    @rule(data=st.data())
    def take(self, data: st.DataObject) -> None:
        self._take(data.draw(st.sampled_from(self.readers)))

    def _take(self, reader: Reader) -> None:
        async def take() -> None:
            reader.take()

        self._runner.run(take())
        self.run()

    # -- what holds

    @invariant()
    def every_byte_is_the_files_own(self) -> None:
        for reader in self.readers:
            assert self.written[reader.offset :].startswith(reader.got)
            assert reader.limit is None or len(reader.got) <= reader.limit
            if reader.over:
                self._is_whole(reader)

    def _is_whole(self, reader: Reader) -> None:
        length = len(self.written) if reader.follow else reader.seen
        expected = max(length - reader.offset, 0)
        if reader.limit is not None:
            expected = min(expected, reader.limit)
        assert len(reader.got) >= expected
        assert not reader.follow or not self.live or len(reader.got) == reader.limit

    @invariant()
    def no_more_is_under_way_than_the_window(self) -> None:
        for reading in self.readings._readings.values():
            assert reading.untaken <= 2 * WINDOW + CHUNK

    def teardown(self) -> None:
        """The job ends, the line holds: everybody gets everything."""
        try:
            if self.live:
                self.exit()
            if self.claim.line is None:
                self.connect()
            for _ in range(400):
                if all(reader.over for reader in self.readers):
                    break
                self.agent_hears(1000)
                self.supervisor_hears(1000)
                for reader in self.readers:
                    self._take(reader)
                self.every_byte_is_the_files_own()
            assert all(reader.over for reader in self.readers)
            assert len(self.readings) == self.claim.readers == 0
            self.ops.check()
        finally:
            for (module, name), value in self._before.items():
                setattr(module, name, value)
            self._runner.close()
            self._folder.cleanup()


TestOutput = OutputMachine.TestCase
TestOutput.settings = settings(
    max_examples=40, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)


def test_a_slow_reader_gets_no_further_window_with_each_connection() -> None:
    """C16. After the third there was more than was agreed, and the agent was hung up on again and again."""
    it = OutputMachine()
    it.write(150)
    it.ask(SimpleNamespace(draw=lambda _among: 0), follow=True, limit=None)
    (reader,) = it.readers
    try:
        for _ in range(4):
            it.agent_hears(20)
            it.supervisor_hears(20)
            it.no_more_is_under_way_than_the_window()
            it.cut()
            it.connect()
    finally:
        it.teardown()
    assert reader.got == it.written
