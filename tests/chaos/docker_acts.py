"""What is done to a Docker engine and its containers while jobs run in them (F104 to F111)."""

import asyncio
import os
import random
import signal
import subprocess
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

from tests.agent_stage import carrying
from tests.docker_door import Door
from tests.docker_stage import TestEngine

Act = Callable[[], Awaitable[bool]]


class EngineActs:
    """Kills, stops and restarts, in an order that the seed decides; each kind comes about as often."""

    def __init__(self, engine: TestEngine, door: Door, rand: random.Random) -> None:
        self.engine = engine
        self._door = door
        self._random = rand
        #: How the engine that runs now was started: with `--live-restore` its containers outlive it.
        self._live_restore = False
        self._deck: list[Act] = []
        #: How often each was done.
        self.done: Counter[str] = Counter()

    @property
    def kills(self) -> int:
        """Of engine, containerd, shims and containers; what only hangs is not counted."""
        others = ("stop_engine", "lose_answer")
        return sum(count for name, count in self.done.items() if name not in others and "put off" not in name)

    async def next(self) -> str:
        """Do the next one that finds something to do; its name. The others come later."""
        put_off: list[Act] = []
        while True:
            if not self._deck:
                self._deck = [
                    self.kill_launcher, self.remove_container, self.kill_shim, self.kill_containerd,
                    self.kill_engine, self.stop_engine, self.restart_engine, self.restart_engine,
                    self.lose_answer,
                ]  # fmt: skip
                self._random.shuffle(self._deck)
            act = self._deck.pop()
            if await self._in_time(act):
                self._deck = put_off + self._deck
                return act.__name__
            put_off.append(act)

    async def _in_time(self, act: Act) -> bool:
        """Whether it finds something within a while: between two containers there is none."""
        for _ in range(20):
            if await act():
                return True
            await asyncio.sleep(0.25)
        self.done[f"{act.__name__} put off: nothing was there for it"] += 1
        return False

    def _count(self, name: str) -> bool:
        self.done[name] += 1
        return True

    async def kill_launcher(self) -> bool:
        """KILL to the first process of the container: it dies with everything in it."""
        return await self._kill_a_launcher() and self._count("kill_launcher")

    async def _kill_a_launcher(self) -> bool:
        for container in await self._running():
            with suppress(subprocess.CalledProcessError, ProcessLookupError):
                pid = int(await self._docker("inspect", "-f", "{{.State.Pid}}", container))
                if pid > 0:
                    os.kill(pid, signal.SIGKILL)
                    return True
        return False

    async def remove_container(self) -> bool:
        """`docker rm -f`, as by a human (F111)."""
        for container in await self._running():
            with suppress(subprocess.CalledProcessError):
                await self._docker("rm", "-f", container)
                return self._count("remove_container")
        return False

    async def kill_shim(self) -> bool:
        """KILL to what holds the container (F107)."""
        return self._kill_by("containerd-shim") and self._count("kill_shim")

    async def kill_containerd(self) -> bool:
        """KILL to the engine's containerd; the engine starts another."""
        return self._kill_by(f"{self._home}/exec/containerd/containerd.toml") and self._count(
            "kill_containerd"
        )

    async def kill_engine(self) -> bool:
        """KILL to dockerd, and a start after a while (F107)."""
        name = self._kept("kill_engine")
        os.kill(self.engine.pid, signal.SIGKILL)
        await asyncio.sleep(self._random.uniform(0, 1.5))
        await self._start_engine()
        return self._count(name)

    async def stop_engine(self) -> bool:
        """STOP, and CONT after a while: it hangs (F106)."""
        pid = self.engine.pid
        os.kill(pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(self._random.uniform(0.5, 4))
        finally:
            os.kill(pid, signal.SIGCONT)
        return self._count("stop_engine")

    async def restart_engine(self) -> bool:
        """In order, with and without --live-restore (F104, F105)."""
        name = self._kept("restart_engine")
        pid = self.engine.pid
        os.kill(pid, signal.SIGTERM)
        async with asyncio.timeout(120):
            while _lives(pid):
                await asyncio.sleep(0.05)
        await self._start_engine()
        return self._count(name)

    async def lose_answer(self) -> bool:
        """The answer to the next `create` never comes (F109); a kill sees to it that there is one."""
        if not await self._kill_a_launcher():
            return False
        self._door.lose_next_create()
        self._count("kill_launcher")
        return self._count("lose_answer")

    def _kept(self, name: str) -> str:
        return f"{name}, its containers {'live on' if self._live_restore else 'end with it'}"

    @property
    def _home(self) -> Path:
        return Path(self.engine.url.removeprefix("unix://")).parent

    def _kill_by(self, words: str) -> bool:
        home = str(self._home)
        for pid, command in carrying(home).items():
            if words in command and home in command:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    return True
        return False

    async def _start_engine(self) -> None:
        # in turn, so that both come about
        self._live_restore = not self._live_restore
        args = "--live-restore" if self._live_restore else ""
        for _ in range(5):
            try:
                await asyncio.to_thread(self.engine.start, DEV_DOCKER_ARGS=args)
            except subprocess.CalledProcessError:
                continue
            return
        raise AssertionError("the engine does not start any more")

    async def _docker(self, *words: str) -> str:
        return await asyncio.to_thread(self.engine.docker, *words)

    async def _running(self) -> list[str]:
        try:
            return (await self._docker("ps", "-q", "--no-trunc")).split()
        except subprocess.CalledProcessError:
            return []


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False
