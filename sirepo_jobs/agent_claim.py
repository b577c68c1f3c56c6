"""One agent as the supervisor sees it: a claim on (user, driver, environment), and a place for ops (SYS-10).

It is *there* while its connection (`Line`) is open; everything else is a wait with a reason. Who launches
agents and looks after them is `agent_pool.py`.
"""

import asyncio
import time
from typing import Protocol

import structlog

from . import protocol
from .driver import Driver, Environment, Handle
from .events import AgentEvent, AgentState
from .health import Health
from .login import has_logins
from .op import Awaited, Need, Op
from .reasons import Reason
from .resources import Resources
from .slots import Pool
from .transitions import agent_step

_log = structlog.get_logger(__name__)

#: So much work, in seconds per cpu, is sent ahead to an agent whose jobs are short.
STANDBY_SECS = 0.1
MAX_STANDBY = 256
#: Sent ahead while nothing is known of how long the jobs take.
FIRST_STANDBY = 2
#: Ops on one agent beside those that run: bounds its queue.
MAX_OPS = 4096


class Line(Protocol):
    """An open connection to an agent."""

    session: int

    def say(self, message: protocol.ToAgent) -> None:
        """Queue a message; those of one turn travel in one frame."""
        ...

    def acknowledge(self, seq: int) -> None:
        """Tell that every durable message up to `seq` is committed."""
        ...

    def hang_up(self, code: int, why: str) -> None:
        """Close the connection."""
        ...


class Keeper(Protocol):
    """Who launches agents and looks after them."""

    def bring(self, agent: "Agent") -> None:
        """See to an agent that is not there; safe to repeat."""
        ...


class Agent:
    """One claim on (user, driver, environment)."""

    def __init__(self, environment: Environment, driver: Driver, pool: Pool, keeper: Keeper) -> None:
        self.environment = environment
        self.key = environment.key
        self.driver = driver
        self.pool = pool
        self._keeper = keeper
        self.state = AgentState.OFFLINE
        self.line: Line | None = None
        self.handle: Handle | None = None
        self.install = ""
        self.boot_id = ""
        #: When the newest hello was made, by its host's boot clock.
        self.hello_made_at = 0.0
        #: It ends attempts with a lease by itself.
        self.leases = False
        #: It can tell how far an output reaches, to somebody who opens the file.
        self.marks = False
        #: By the loop's clock: until then nobody but itself tries to open its files.
        self.unopened_until = 0.0
        self.health = Health()
        #: Of the launcher that called last.
        self.launcher_pid = 0
        #: By the boot clock: since then nothing that we said can have renewed its leases.
        self.renewed_at = boot_secs()
        #: By the loop's clock, while its line is open.
        self.heard_at = 0.0
        #: What it holds and the store has never heard of, as "jid/attempt" (F097).
        self.foreign: set[str] = set()
        #: Its driver has said that it is gone, and nobody has come since.
        self.proven_gone = False
        #: Run ops that hold a place here.
        self.ops: dict[int, Op] = {}
        #: How many of them are sent ahead.
        self.standbys = 0
        #: The last durable record that this connection has brought; None before the first.
        self.heard: int | None = None
        #: Readings of its files that are under way.
        self.readers = 0
        #: Why it is not there, for people.
        self.trouble = ""
        self.trouble_reason = Reason.LAUNCH_FAILED
        self.failures = 0
        #: For people: when it came into its state, and when it is launched again (microseconds).
        self.since = time.time_ns() // 1000
        self.next_try_at: int | None = None
        #: When its last op ended, by the loop's clock; None while it has work.
        self.idle_since: float | None = None
        #: Seconds that attempts took lately (moving mean); None before the first.
        self.mean_secs: float | None = None
        self.host = ""
        self.version = ""
        #: What it has asked of its batch scheduler since it was started; empty where it has none.
        self.counters: dict[str, int] = {}
        #: Set while the line is open.
        self.there = asyncio.Event()
        #: Set while it is not.
        self.gone = asyncio.Event()
        #: When the line was lost, by the loop's clock.
        self.away_since: float | None = None
        #: Somebody wants it to end: it gets no more work, and ends when it has finished what it has.
        self.leaving = False
        #: When it was told to end.
        self.draining_since: float | None = None

    @property
    def name(self) -> str:
        """Its id: the same as its key, so that launching twice finds the first."""
        return self.key

    @property
    def image_id(self) -> str | None:
        """The digest of the image that its jobs run in; None where there is none."""
        found = self.handle.data.get("image") if self.handle is not None else None
        return str(found) if found else None

    @property
    def op_limit(self) -> int:
        """Ops it takes at once."""
        return MAX_OPS

    def want(self) -> None:
        """See to it that the agent comes; raises `Awaited` unless it is there."""
        if self.is_online and not self.leaving:
            return
        self._keeper.bring(self)
        raise Awaited((Need.AGENT, self.key), *self.why_not())

    @property
    def blocked(self) -> tuple[Reason, str] | None:
        """Why its driver can do nothing before somebody acts: a login, most often."""
        return self.driver.trouble(self.environment) if has_logins(self.driver) else None

    def why_not(self) -> tuple[Reason, str]:
        """Why the agent is not there, for the job that waits for it."""
        if self.state is not AgentState.DRAINING and (blocked := self.blocked) is not None:
            return blocked
        match self.state:
            case AgentState.ONLINE if self.leaving:
                return (
                    Reason.DRAINING,
                    f"agent {self.name} was told to end after its work; a fresh one follows",
                )
            case AgentState.LAUNCHING:
                return Reason.AGENT_STARTING, f"agent {self.name} is starting"
            case AgentState.DRAINING:
                return Reason.DRAINING, f"agent {self.name} is ending; a fresh one follows"
            case AgentState.UNREACHABLE:
                return Reason.AGENT_UNREACHABLE, f"agent {self.name} has lost its connection; {self.trouble}"
        if self.trouble:
            return self.trouble_reason, f"agent {self.name} could not be started: {self.trouble}"
        return Reason.AGENT_STARTING, f"agent {self.name} is about to be started"

    @property
    def is_online(self) -> bool:
        """It may be given work."""
        return self.line is not None and self.state is AgentState.ONLINE

    def takes_standby(self, need: Resources) -> bool:
        """Whether work of this size may be sent ahead: only behind such work, and not much of it."""
        if self.leaving or self.standbys >= self._standby_limit(need.cpus):
            return False
        return any(op.sent and not op.standby and need.fits(op.need) for op in self.ops.values())

    def _standby_limit(self, cpus: int) -> int:
        if self.mean_secs is None:
            return FIRST_STANDBY
        return min(MAX_STANDBY, int(STANDBY_SECS / max(self.mean_secs, 1e-6) * self.pool.size.cpus / cpus))

    @property
    def busy(self) -> bool:
        """It is to do something: to run jobs, or to read their files."""
        return bool(self.ops or self.readers)

    def took(self, secs: float) -> None:
        """Learn how long an attempt took."""
        self.mean_secs = secs if self.mean_secs is None else self.mean_secs + (secs - self.mean_secs) / 8

    def happen(self, event: AgentEvent) -> None:
        """Let the agent's table move it."""
        state = agent_step(self.state, event)
        if state is not self.state:
            _log.info(
                "agent", agent=self.name, event_kind=str(event), before=str(self.state), state=str(state)
            )
            self.state, self.since = state, time.time_ns() // 1000
        if event is AgentEvent.GONE:
            self.proven_gone = True
        elif event is AgentEvent.CONNECTED:
            self.proven_gone = False


def boot_secs() -> float:
    """The clock of leases: it goes on while this machine is suspended, and nobody can set it (C15)."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
