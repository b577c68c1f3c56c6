"""The network between agents and the supervisor: connections that are slow, cut, silent, and sometimes lie.

A connection keeps the order of what it carries, as TCP does; between connections nothing is ordered, so what
an old one still carries may arrive after a newer one has begun. When one is cut, what was under way is lost
from some point on, and the two ends notice at different times, or by silence alone. A meddler may say a frame
twice, or frames of earlier connections again.
"""

import asyncio
import random
from collections import deque
from typing import Any

from websockets.exceptions import ConnectionClosedError, InvalidMessage
from websockets.frames import Close

from sirepo_jobs.agent_line import AgentLine
from tests.sim.world import World

#: What both sides' websocket stacks are told: a ping so often, and the patience for its answer.
PING_SECS, PONG_SECS = 20.0, 10.0
#: What TCP's own patience is when a connection is asked for and nobody answers.
CONNECT_SECS = 3.0
#: Frames of the past that a meddler remembers.
_MEMORY = 12


class Wire:
    """One connection."""

    def __init__(self, network: "Network", agent: str, host: Any) -> None:
        self.network = network
        self.world = network.world
        self.agent = agent
        self.host = host
        self.is_silent = False
        #: What each end was not told while the network was silent.
        self._held: list[tuple[str, Any]] = []
        #: When the last message of each direction arrives.
        self._last = {"up": 0.0, "down": 0.0}
        #: What is under way, per direction, as handles.
        self._flying: dict[str, deque[Any]] = {"up": deque(), "down": deque()}
        self.line: AgentLine | None = None
        self.client: Client | None = None
        #: The run of the supervisor that it leads to.
        self.node: Any = None
        #: The process that has the agent's end.
        self.proc = network.world.current
        #: The agent's host has lost its power: nothing of this connection will ever be heard again.
        self.is_dead = False
        self.supervisor_open = self.agent_open = True
        network.wires.append(self)

    # -- carrying

    def carry(self, direction: str, data: Any) -> None:
        """Take a message; it arrives later, after those before it."""
        if self.is_silent:
            self._held.append((direction, data))
            return
        network = self.network
        self._send(direction, data)
        if network.repeats and network.dice.random() < network.repeats:
            self.world.note("repeated", self.agent, direction)
            self._send(direction, data)

    def _send(self, direction: str, data: Any) -> None:
        # a moment later than the one before it: what is due at one time has no order
        when = max(self._last[direction] + 1e-9, self.world.now + self.network.delay())
        self._last[direction] = when
        handle = self.world.at(when, self._arrive, direction, data)
        self._flying[direction].append(handle)

    def _arrive(self, direction: str, data: Any) -> None:
        self._flying[direction].popleft()
        if data is None:
            self._closed(direction)
        elif direction == "up":
            self.network.remember(self.agent, data)
            if self.supervisor_open and self.line is not None:
                self.node.loop.call_soon(self.line.receive, data)
        elif self.agent_open and self.client is not None:
            self.client.hear(data)

    # -- ends

    def cut(self) -> None:
        """It breaks: of what is under way a part arrives, and both ends hear of the break some time later."""
        if self.is_silent:
            self._held.clear()
        self.world.note("cut", self.agent)
        for direction, flying in self._flying.items():
            keep = self.network.dice.randint(0, len(flying))
            for handle in list(flying)[keep:]:
                handle.cancel()
            while len(flying) > keep:
                flying.pop()
            self._end_after(direction)
        self.is_silent = False

    def _end_after(self, direction: str) -> None:
        when = max(self._last[direction] + 1e-9, self.world.now) + self.network.dice.choice(
            (0.0, 0.001, 0.5, 5.0)
        )
        self._last[direction] = when
        self._flying[direction].append(self.world.at(when, self._arrive, direction, None))

    def _closed(self, direction: str) -> None:
        if direction == "up":
            self.end_at_supervisor()
        else:
            self.end_at_agent(None)

    def end_at_supervisor(self) -> None:
        """The supervisor's end notices that it is over."""
        if self.supervisor_open:
            self.supervisor_open = False
            if self.line is not None:
                self.node.loop.call_soon(self.line.lost)
            self._forget()

    def end_at_agent(self, close: Close | None) -> None:
        """The agent's end notices."""
        if self.agent_open:
            self.agent_open = False
            if self.client is not None:
                self.client.end(close)
            self._forget()

    def _forget(self) -> None:
        if not self.supervisor_open and not self.agent_open and self in self.network.wires:
            self.network.wires.remove(self)

    def silence(self) -> None:
        """Nothing arrives any more, and nobody is told."""
        if self.is_silent:
            return
        self.is_silent = True
        # what is under way waits before what is said from now on: TCP keeps its order
        for direction, flying in self._flying.items():
            self._held += [(direction, handle.args[-1]) for handle in flying]
            while flying:
                flying.popleft().cancel()
        dice = self.network.dice
        self.world.after(PONG_SECS + dice.random() * PING_SECS, self._no_pong, "up")
        self.world.after(PONG_SECS + dice.random() * PING_SECS, self._no_pong, "down")

    def _no_pong(self, direction: str) -> None:
        if self.is_silent:
            self._closed(direction)

    def speak(self) -> None:
        """What was held back arrives after all; an end that gave up meanwhile says so at last."""
        if not self.is_silent or self.is_dead:
            return
        self.is_silent = False
        held, self._held = self._held, []
        for direction, data in held:
            self._send(direction, data)
        if not self.agent_open:
            self._end_after("up")
        if not self.supervisor_open:
            self._end_after("down")

    # -- the supervisor's end is the transport of an `AgentLine`

    def send(self, data: bytes) -> None:
        if self.supervisor_open:
            self.carry("down", data)

    def hang_up(self, code: int, why: str) -> None:
        self.world.note("hung_up", self.agent, code, why)
        if self.supervisor_open:
            if self.is_silent:
                self.world.after(1.0, self.end_at_supervisor)
                return
            when = max(self._last["down"] + 1e-9, self.world.now + self.network.delay())
            self.world.at(when, self.end_at_agent, Close(code, why[:100]))
            self.world.after(0.0, self.end_at_supervisor)


class Client:
    """The agent's end: as much of `websockets`' connection as a `Session` uses."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._inbox: deque[bytes] = deque()
        self._news: asyncio.Future[None] | None = None
        self._end: ConnectionClosedError | None = None

    async def __aenter__(self) -> "Client":
        return self

    async def __aexit__(self, *_: Any) -> None:
        self._wire.agent_open = False
        if self._wire.is_silent:
            return
        self._wire._end_after("up")
        self._wire._forget()

    async def send(self, data: bytes, text: bool = False) -> None:
        """Say it. Raises `ConnectionClosed`."""
        if self._end is not None:
            raise self._end
        self._wire.carry("up", data.decode() if text else data)

    async def recv(self, decode: bool | None = None) -> bytes:
        """The next message. Raises `ConnectionClosed`."""
        while not self._inbox:
            if self._end is not None:
                raise self._end
            self._news = asyncio.get_running_loop().create_future()
            await self._news
        return self._inbox.popleft()

    async def ping(self) -> asyncio.Future[None]:
        """The future of its answer, which comes unless the network or the supervisor stands still."""
        answer = asyncio.get_running_loop().create_future()
        network = self._wire.network
        self._wire.world.after(network.delay() + network.delay(), self._pong, answer)
        return answer

    def _pong(self, answer: asyncio.Future[None]) -> None:
        wire = self._wire
        if not answer.done() and not wire.is_silent and wire.supervisor_open and wire.node.proc.state == "R":
            answer.set_result(None)

    @property
    def transport(self) -> "Client":
        """What can be cut without a word; here it is the same object."""
        return self

    def abort(self) -> None:
        """Nothing is heard or said on this end any more."""
        self.end(None)

    def hear(self, data: bytes) -> None:
        self._inbox.append(data)
        self._wake()

    def end(self, close: Close | None) -> None:
        self._end = ConnectionClosedError(close, close, None if close is None else True)
        self._wake()

    def _wake(self) -> None:
        news, self._news = self._news, None
        if news is not None and not news.done():
            news.set_result(None)


class Network:
    """All connections."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.dice = random.Random(f"{world.seed}/network")
        self.wires: list[Wire] = []
        #: What listens; `Supervisors`.
        self.house: Any = None
        self.base_secs = self.dice.choice((0.0001, 0.001, 0.02))
        self.jitter = self.dice.choice((0.0, 1.0, 5.0))
        #: How often a frame comes twice.
        self.repeats = 0.0
        #: Hosts that cannot be reached.
        self.apart: set[str] = set()
        #: The supervisor's listener does not answer.
        self._past: dict[str, deque[Any]] = {}

    def delay(self) -> float:
        return self.base_secs * (1 + self.jitter * self.dice.random())

    async def connect(self, host: Any, agent: str, token: str) -> Client:
        """What the agent's side does. Raises as `websockets.connect` does."""
        await asyncio.sleep(2 * self.delay())
        if host.name in self.apart:
            await asyncio.sleep(CONNECT_SECS)
            raise TimeoutError("timed out during opening handshake")
        wire = Wire(self, agent, host)
        if not self.house.admit(wire, agent, token):
            self.wires.remove(wire)
            raise ConnectionRefusedError("Connect call failed")
        if wire.line is None:
            self.wires.remove(wire)
            raise InvalidMessage("server rejected WebSocket connection: HTTP 401")
        wire.client = Client(wire)
        return wire.client

    # -- faults

    def of_host(self, name: str) -> list[Wire]:
        return [wire for wire in self.wires if wire.host.name == name]

    def part(self, name: str) -> None:
        """The host cannot be reached any more."""
        self.apart.add(name)
        for wire in self.of_host(name):
            wire.silence()

    def join(self, name: str) -> None:
        """It can."""
        self.apart.discard(name)
        for wire in self.of_host(name):
            wire.speak()

    def remember(self, agent: str, data: Any) -> None:
        if isinstance(data, str):
            self._past.setdefault(agent, deque(maxlen=_MEMORY)).append(data)

    def replay(self, agent: str, count: int) -> None:
        """Say frames of the past again, on whatever connection there is now."""
        past = list(self._past.get(agent, ()))
        for wire in list(self.wires):
            if wire.agent != agent or not wire.supervisor_open or wire.line is None or not wire.line.greeted:
                continue
            for data in self.dice.sample(past, min(count, len(past))):
                self.house.replayed(wire, data)
