"""Parts are killed at random while jobs run: nothing is lost, doubled, invented or left (I4 I9 I10 I17)."""

import asyncio
import os
import random
import signal
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed

from sirepo_jobs.protocol import Exited, Run
from tests.agent_stage import Scene, carrying, gone, scene, sleep_token

CHAOS_SECS = 6.0
#: Script and whether it ends by its exit code.
KINDS = (
    ("exit {code}", True),
    ("sleep 0.02; exit {code}", True),
    ("setsid sleep {token} & exit {code}", True),
    ("env -i setsid sleep {token} & sleep 0.01; exit {code}", True),
    ("(setsid sh -c 'sleep {token}' &) ; sleep 0.005; exit {code}", True),
    ("kill -9 $$", False),
)


class Chaos:
    """A supervisor that keeps an agent busy, and somebody who kills."""

    def __init__(self, the_scene: Scene, seed: int) -> None:
        self.scene = the_scene
        self.stage = the_scene.stage
        self.rand = random.Random(seed)
        self.token = sleep_token(50 + seed)
        self.wanted: dict[str, Run] = {}
        self.truth: dict[str, tuple[int | None, int | None]] = {}
        self.canceled: set[str] = set()
        self.hellos = 1

    def live(self) -> list[str]:
        return [jid for jid in self.wanted if (jid, 1) not in self.stage.exits]

    async def say(self, messages: list[Any]) -> None:
        if messages and self.stage.connection is not None:
            with suppress(ConnectionClosed, AssertionError):
                await self.stage.send(messages)

    async def top_up(self) -> None:
        """Forty at a time, three of which have slots."""
        live = self.live()
        said: list[Any] = []
        while len(live) + len(said) < 40:
            jid = f"j{len(self.wanted)}"
            script, by_code = self.rand.choice(KINDS)
            code = self.rand.randrange(256)
            witness = f"echo {jid} >> {self.scene.run_root}/starts; "
            self.wanted[jid] = self.stage.shell(
                jid,
                witness + script.format(code=code, token=self.token),
                standby=len(live) + len(said) >= 3,
            )
            self.truth[jid] = (code, None) if by_code else (None, signal.SIGKILL)
            said.append(self.wanted[jid])
        said += [self.stage.grant(jid) for jid in live[:3]]
        if live and self.rand.random() < 0.1:
            jid = self.rand.choice(live)
            self.canceled.add(jid)
            said.append(self.stage.cancel(jid, 0.2))
        await self.say(said)

    async def say_again(self) -> None:
        """After a new connection: what is still wanted and not held."""
        if len(self.stage.hellos) == self.hellos or self.stage.connection is None:
            return
        self.hellos = len(self.stage.hellos)
        held = {one.jid for one in self.stage.hellos[-1].inventory}
        again = [self.wanted[jid] for jid in self.live() if jid not in held]
        cancels = [self.stage.cancel(jid, 0.2) for jid in self.canceled & set(self.live())]
        await self.say([*again, *(self.stage.grant(run.jid) for run in again[:3]), *cancels])

    async def strike(self) -> None:
        fate = self.rand.random()
        with suppress(ProcessLookupError, FileNotFoundError):
            if fate < 0.02:
                for pid in self.scene.helpers("sj-agent"):
                    os.kill(pid, signal.SIGKILL)
            elif fate < 0.06:
                spawners = self.scene.helpers("sj-spawner")
                for pid in spawners if fate < 0.03 else spawners[:1]:
                    os.kill(pid, signal.SIGKILL)
            elif fate < 0.08:
                pid = self.scene.launcher
                if fate < 0.065:
                    for spawner in self.scene.helpers("sj-spawner"):
                        os.kill(spawner, signal.SIGKILL)
                os.kill(pid, signal.SIGKILL)
                await gone(pid)
                await self.scene.launch()
            elif fate < 0.09 and self.stage.connection is not None:
                self.stage.connection.transport.abort()

    async def drain(self) -> None:
        async with asyncio.timeout(60):
            while live := self.live():
                await self.say([self.wanted[jid] for jid in live])
                await self.say([self.stage.grant(jid) for jid in live])
                await asyncio.sleep(0.05)

    def check(self) -> None:
        starts = Counter((self.scene.run_root / "starts").read_text().split())
        assert max(starts.values()) == 1
        told: dict[str, Exited] = {}
        for message in self.stage.durable:
            if isinstance(message, Exited):
                # Repeats are the same, to the last field.
                assert told.setdefault(message.jid, message) == message
        for jid, exited in told.items():
            if not exited.began:
                assert exited.proof == "never_claimed"
                assert jid not in starts
            elif (exited.exit_code, exited.signal) == (None, None):
                assert exited.proof == "launcher_lost"
            elif not (jid in self.canceled and exited.stopped):
                assert (exited.exit_code, exited.signal) == self.truth[jid]
        seqs = {message.seq for message in self.stage.durable}
        assert seqs == set(range(1, max(seqs) + 1))
        assert not carrying(f"sleep {self.token}")


@pytest.mark.parametrize("seed", [1, 2])
async def test_chaos(tmp_path: Path, seed: int) -> None:
    async with scene(tmp_path) as s:
        chaos = Chaos(s, seed)
        loop = asyncio.get_running_loop()
        end = loop.time() + CHAOS_SECS
        while loop.time() < end or len(chaos.wanted) <= 50:
            await chaos.top_up()
            # The one test that lets time pass: chance decides where it strikes.
            await asyncio.sleep(chaos.rand.random() * 0.02)
            await chaos.strike()
            await chaos.say_again()
        await chaos.drain()
        chaos.check()
