"""Virtual time, and who has his turn: the whole of a simulated world runs on one thread, from one seed.

Everything that happens is a turn of one process, or an event of what is outside of all processes (a
message arrives, a job's program ends). Time stands still within a turn and jumps to the next event.
Within a process the order of callbacks is asyncio's own; which process goes first is drawn.
"""

import asyncio
import heapq
import random
import sys
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

#: Seconds since 1970 at the beginning of every world.
EPOCH_SECS = 1_700_000_000.0
#: A world that has had so many turns goes in circles.
MAX_TURNS = 60_000


class Livelock(Exception):
    """Turn after turn, and time does not pass."""


class Handle:
    """A callback that waits for its turn."""

    __slots__ = ("args", "callback", "context", "is_cancelled", "time")

    def __init__(self, callback: Callable[..., Any], args: tuple[Any, ...], context: Any) -> None:
        self.callback, self.args, self.context = callback, args, context
        self.is_cancelled = False
        self.time = 0.0

    def cancel(self) -> None:
        self.is_cancelled = True
        self.callback = self.args = self.context = None  # type: ignore[assignment]

    def cancelled(self) -> bool:
        return self.is_cancelled

    def when(self) -> float:
        return self.time


class World:
    """Time, dice, history and turns."""

    def __init__(self, seed: int | str) -> None:
        self.seed = seed
        self.now = 0.0
        #: What happened, in order: what the checker reads.
        self.history: list[tuple[Any, ...]] = []
        #: The process whose turn it is; None between turns.
        self.current: Any = None
        self._dice = random.Random(f"{seed}/order")
        self._names = random.Random(f"{seed}/names")
        self._heap: list[tuple[float, int, int, Any]] = []
        self._count = 0
        self._ready: list[NodeLoop] = []
        self.turns = 0
        self.loops: list[NodeLoop] = []
        #: What the dead had: it is kept, so that nothing of it ends at a moment of its own.
        self.graveyard: list[Any] = []

    def note(self, kind: str, *what: Any) -> None:
        """Write down that something happened."""
        self.history.append((round(self.now, 6), kind, *what))

    def random_bytes(self, count: int) -> bytes:
        """What the kernel's random device gives."""
        return self._names.randbytes(count)

    def random(self) -> float:
        """What `random.random` gives."""
        return self._names.random()

    def bury(self) -> None:
        """Let everything end that is still waiting for something, while the world is still there for it."""
        self._heap.clear()
        hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
        for loop in self.loops:
            loop.is_dead = True
            asyncio.events._set_running_loop(loop)
            self.current = loop.proc
            for task in loop.tasks:
                if not task.done():
                    # whatever it would do at its end concerns nobody any more
                    with suppress(Exception):
                        task.get_coro().close()  # type: ignore[union-attr]
            loop.tasks.clear()
            loop.ready.clear()
        asyncio.events._set_running_loop(None)
        sys.unraisablehook = hook
        self.current = None
        self.graveyard.clear()

    # -- time

    def at(self, when: float, act: Callable[..., Any], *args: Any) -> Handle:
        """Do `act` at that time, outside of every process."""
        handle = Handle(act, args, None)
        self._push(when, handle)
        return handle

    def after(self, secs: float, act: Callable[..., Any], *args: Any) -> Handle:
        """Do `act` so much later, outside of every process."""
        return self.at(self.now + secs, act, *args)

    def _push(self, when: float, what: Any) -> None:
        self._count += 1
        # whatever is due at the same time has no promised order
        heapq.heappush(self._heap, (when, self._dice.getrandbits(16), self._count, what))

    def make_ready(self, loop: "NodeLoop") -> None:
        """The loop has callbacks to run."""
        if not loop.is_listed:
            loop.is_listed = True
            self._ready.append(loop)

    def run(self, until: float) -> None:
        """Let everything happen that happens before `until`."""
        ready, heap, dice = self._ready, self._heap, self._dice
        while True:
            if ready:
                place = dice.randrange(len(ready)) if len(ready) > 1 else 0
                loop = ready[place]
                ready[place] = ready[-1]
                ready.pop()
                loop.is_listed = False
                self.turns += 1
                if self.turns > MAX_TURNS:
                    raise Livelock(f"{MAX_TURNS} turns, and it is {self.now:.3f}")
                loop.turn()
            elif heap and heap[0][0] <= until:
                when, _, _, what = heapq.heappop(heap)
                if when > self.now:
                    self.now = when
                self.turns += 1
                if self.turns > MAX_TURNS:
                    raise Livelock(f"{MAX_TURNS} turns, and it is {self.now:.3f}")
                if type(what) is tuple:
                    what[0].fire(what[1])
                elif not what.is_cancelled:
                    self.current = None
                    what.callback(*what.args)
            else:
                break
        self.now = max(self.now, until)


class NodeLoop(asyncio.AbstractEventLoop):
    """The event loop of one process."""

    def __init__(self, world: World, proc: Any) -> None:
        self.world = world
        self.proc = proc
        self.ready: deque[Handle] = deque()
        self.is_listed = False
        self.is_dead = False
        self.is_frozen = False
        self.tasks: list[asyncio.Task[Any]] = []
        self._readers: dict[int, tuple[Callable[..., Any], tuple[Any, ...]]] = {}
        world.loops.append(self)

    # -- turns

    def turn(self) -> None:
        """What asyncio does in one round: everything that was ready at its beginning."""
        ready = self.ready
        self.world.current = self.proc
        asyncio.events._set_running_loop(self)
        try:
            for _ in range(len(ready)):
                if not ready:
                    break  # it was killed
                handle = ready.popleft()
                if handle.is_cancelled:
                    continue
                try:
                    if handle.context is None:
                        handle.callback(*handle.args)
                    else:
                        handle.context.run(handle.callback, *handle.args)
                except Exception as exc:  # noqa: BLE001 - the edge of a turn
                    self.call_exception_handler({"message": "a callback failed", "exception": exc})
        finally:
            asyncio.events._set_running_loop(None)
            self.world.current = None
        if ready and not self.is_frozen:
            self.world.make_ready(self)

    def fire(self, handle: Handle) -> None:
        """A timer is due."""
        if not handle.is_cancelled and not self.is_dead:
            self._add(handle)

    def _add(self, handle: Handle) -> None:
        self.ready.append(handle)
        if not self.is_listed and not self.is_frozen:
            self.is_listed = True
            self.world._ready.append(self)

    def freeze(self) -> None:
        """SIGSTOP."""
        self.is_frozen = True
        if self.is_listed:
            self.is_listed = False
            self.world._ready.remove(self)

    def thaw(self) -> None:
        """SIGCONT."""
        self.is_frozen = False
        if self.ready:
            self.world.make_ready(self)

    def die(self) -> None:
        """Nothing of it ever runs again."""
        self.is_dead = True
        self.ready.clear()
        if self.is_listed:
            self.is_listed = False
            self.world._ready.remove(self)
        self.world.graveyard.append(self)

    # -- what asyncio asks of a loop

    def time(self) -> float:
        return self.world.now

    def call_soon(self, callback: Callable[..., Any], *args: Any, context: Any = None) -> Handle:
        handle = Handle(callback, args, context)
        if not self.is_dead:
            self._add(handle)
        return handle

    call_soon_threadsafe = call_soon

    def call_later(
        self, delay: float, callback: Callable[..., Any], *args: Any, context: Any = None
    ) -> Handle:
        return self.call_at(self.world.now + delay, callback, *args, context=context)

    def call_at(self, when: float, callback: Callable[..., Any], *args: Any, context: Any = None) -> Handle:
        handle = Handle(callback, args, context)
        handle.time = when
        if not self.is_dead:
            self.world._push(when, (self, handle))
        return handle

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(self, coro: Any, *, name: str | None = None, context: Any = None) -> asyncio.Task[Any]:
        task = asyncio.Task(coro, loop=self, name=name or "task")
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        self.tasks.append(task)
        return task

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return self.is_dead

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if self.is_dead:
            return
        exc = context.get("exception")
        self.world.note("crashed", self.proc.kind, context["message"], f"{type(exc).__name__}: {exc}")
        self.proc.last_words = exc

    # -- descriptors

    def add_reader(self, fd: Any, callback: Callable[..., Any], *args: Any) -> None:
        self._readers[fd] = (callback, args)
        sock = self.proc.world_sockets[fd]
        sock.on_news = lambda: self._readable(fd)
        if sock.is_readable:
            self._readable(fd)

    def remove_reader(self, fd: Any) -> bool:
        return self._readers.pop(fd, None) is not None

    def _readable(self, fd: int) -> None:
        if fd in self._readers and not self.is_dead:
            self.call_soon(self._read, fd)

    def _read(self, fd: int) -> None:
        if fd in self._readers:
            callback, args = self._readers[fd]
            callback(*args)

    def add_writer(self, fd: Any, callback: Callable[..., Any], *args: Any) -> None:
        self.proc.world_sockets[fd].on_room = lambda: self.call_soon(callback, *args)

    def remove_writer(self, fd: Any) -> bool:
        sock = self.proc.world_sockets.get(fd)
        if sock is None or sock.on_room is None:
            return False
        sock.on_room = None
        return True
