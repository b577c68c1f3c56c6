"""Doubles for tests of the supervisor: a driver that fails, hangs and lies on command, and agents that
say what the test tells them to say. What real parts can be told to do is tested with real parts."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from sirepo_jobs import protocol as p
from sirepo_jobs.agent_talk import AgentTalk
from sirepo_jobs.driver import AgentSpec, Fate, Handle
from sirepo_jobs.errors import LaunchError
from sirepo_jobs.resources import Resources


class ScriptedDriver:
    """Does what `script` says for each launch, the last word for ever.

    `ok` launches an agent that calls at once; `silent` launches one that never calls; `fail` and `hang`
    are what they say; `die` launches one that is gone before it calls.
    """

    name = "local"
    launch_secs = 5.0
    remote = False
    jobs_outlive_agent = True

    def __init__(self, *script: str, cpus: int = 2) -> None:
        self.script = list(script) or ["ok"]
        self.capacity = Resources(cpus=cpus, memory=1 << 34)
        self.launched: list[str] = []
        self.stopped: list[str] = []
        self.fate = Fate.ALIVE
        self.agents: dict[str, ScriptedAgent] = {}
        self.on_launch: Callable[[AgentSpec], Coroutine[Any, Any, None]] | None = None
        self.talk: AgentTalk | None = None
        self.news = asyncio.Event()

    async def launch(self, spec: AgentSpec) -> Handle:
        word = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        self.launched.append(spec.agent)
        self.news.set()
        if self.on_launch is not None:
            await self.on_launch(spec)
        if word == "fail":
            raise LaunchError("no more processes", retry=True)
        if word == "hang":
            await asyncio.Event().wait()
        self.fate = Fate.GONE if word == "die" else Fate.ALIVE
        if word == "ok":
            agent = self.agents.setdefault(spec.agent, ScriptedAgent(spec.agent))
            asyncio.get_running_loop().call_soon(agent.connect, self.talk)
        return Handle(agent=spec.agent, driver=self.name, version=1, data={"pid": 1})

    async def look(self, handle: Handle) -> Fate:
        return self.fate

    async def stop(self, handle: Handle, *, grace_secs: float) -> None:
        self.stopped.append(handle.agent)
        self.fate = Fate.GONE


class ScriptedAgent:
    """An agent as its launcher's memory and a line that the test may cut."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.install = f"install of {name}"
        self.boot_id = "b"
        self.leases = True
        #: What its hello says of when it was made.
        self.made_at = 0.0
        self.said: list[Any] = []
        self.runs: dict[str, p.Run] = {}
        self.states: dict[str, str] = {}
        self.unacked: list[Any] = []
        self.seq = 0
        self.acked = 0
        self.line: ScriptedLine | None = None
        self.news = asyncio.Event()

    def connect(self, talk: AgentTalk | None) -> "ScriptedLine":
        """Call, say what is held, repeat what is not acknowledged."""
        assert talk is not None
        agent = talk._supervisor.agents.get(self.name)
        assert agent is not None
        self.line = ScriptedLine(self, talk, agent)
        inventory = [
            p.Held(jid=run.jid, serial=run.serial, attempt=run.attempt, state=self.states[jid])
            for jid, run in self.runs.items()
        ]
        hello = p.Hello(
            agent=self.name,
            version="1",
            host="here",
            pid=1,
            boot_id=self.boot_id,
            install=self.install,
            last_seq=self.seq,
            inventory=inventory,
            leases=self.leases,
            made_at=self.made_at,
        )
        talk.greet(agent, self.line, hello)
        if self.unacked:
            self.line.hear(*self.unacked)
        return self.line

    def cut(self) -> None:
        """The connection breaks."""
        line, self.line = self.line, None
        assert line is not None
        line.close()

    def heard(self, kind: type) -> list[Any]:
        return [m for m in self.said if isinstance(m, kind)]

    async def until(self, what: Callable[[], Any]) -> Any:
        """Wait until the supervisor has said something that makes `what` true."""
        async with asyncio.timeout(60):
            while not (found := what()):
                self.news.clear()
                await self.news.wait()
        return found

    def take(self, message: Any) -> None:
        self.said.append(message)
        if isinstance(message, p.Run) and message.jid not in self.runs:
            self.runs[message.jid] = message
            self.states[message.jid] = "standby" if message.standby else "starting"
        self.news.set()

    def starts(self, jid: str) -> None:
        run = self.runs[jid]
        self.states[jid] = "running"
        self._durable(p.Started, run, at=1000, pid=7)

    def exits(self, jid: str, code: int | None = 0, **changes: Any) -> None:
        run = self.runs[jid]
        self.states[jid] = "ended"
        base: dict[str, Any] = {
            "at": 2000,
            "started_at": 1000,
            "exit_code": code,
            "stdout_bytes": 0,
            "stderr_bytes": 0,
        }
        self._durable(p.Exited, run, **{**base, **changes})

    def suspends(self, jid: str, *, on: bool) -> None:
        self._durable(p.Suspended, self.runs[jid], at=1500, on=on)

    def _durable(self, kind: type, run: p.Run, **fields: Any) -> None:
        self.seq += 1
        message = kind(jid=run.jid, serial=run.serial, attempt=run.attempt, seq=self.seq, **fields)
        self.unacked.append(message)
        if self.line is not None:
            self.line.hear(message)

    def acknowledge(self, seq: int) -> None:
        self.acked = max(self.acked, seq)
        for message in [m for m in self.unacked if m.seq <= seq]:
            self.unacked.remove(message)
            if isinstance(message, p.Exited):
                self.runs.pop(message.jid, None)
        self.news.set()


class ScriptedLine:
    """The supervisor's end of a connection to a `ScriptedAgent`."""

    _sessions = 0

    def __init__(self, agent: ScriptedAgent, talk: AgentTalk, claim: Any) -> None:
        ScriptedLine._sessions += 1
        self.session = ScriptedLine._sessions
        self._agent, self._talk, self._claim = agent, talk, claim
        self.open = True
        self.closed_because: str | None = None

    def say(self, message: Any) -> None:
        if self.open:
            self._agent.take(message)

    def acknowledge(self, seq: int) -> None:
        if self.open:
            self._agent.acknowledge(seq)

    def hang_up(self, code: int, why: str) -> None:
        self.closed_because = why
        self.close()

    def close(self) -> None:
        if self.open:
            self.open = False
            self._talk.lose(self._claim, self)

    def hear(self, *messages: Any) -> None:
        if self.open and self._claim.line is self:
            self._talk.hear(self._claim, self, list(messages))
