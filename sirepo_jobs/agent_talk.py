"""What agents say, turned into events; and the comparing of notes when one calls (SYS-14, SYS-15, C6, C7).

An agent's word counts only for attempts that were given to it, under the session that is current. A word
that comes twice, late, or about somebody else's attempt changes nothing.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import structlog

from . import events, failpoints, protocol
from .agent_claim import Agent, Line
from .compute_job import ComputeJob
from .errors import RemoteError
from .job import HELD_BY_AGENT, State
from .lifecycle import Illegal
from .op import Op
from .orders import unheard
from .reasons import Reason
from .renewals import Renewals
from .supervisor import Supervisor

_log = structlog.get_logger(__name__)


#: Ends of attempts that speak against the agent or its host.
_SICK = frozenset({Reason.START_FAILED, Reason.DISK_FULL})


class AgentTalk:
    """The supervisor's ear."""

    def __init__(self, supervisor: Supervisor, *, heartbeat_secs: float) -> None:
        self._supervisor = supervisor
        #: Who is silent for two of them is not there any more (F061, F062).
        self.heartbeat_secs = heartbeat_secs
        self._sessions = 0
        self._renewals = Renewals(supervisor)
        self._hear: dict[type[Any], Callable[[Agent, Any], None]] = {
            protocol.Started: self._started,
            protocol.Exited: self._exited,
            protocol.Suspended: self._suspended,
            protocol.Progress: self._progress,
            protocol.Scheduling: self._scheduling,
            protocol.Counters: self._counters,
            protocol.OutputEnd: supervisor.readings.end,
            protocol.OutputMark: supervisor.readings.mark,
            protocol.FileOpened: supervisor.readings.head,
            protocol.FileList: supervisor.readings.head,
            protocol.Heartbeat: self._heartbeat,
            protocol.Unsupported: self._unsupported,
            protocol.Unknown: self._unknown,
        }

    # -- connections

    def next_session(self) -> int:
        """A number that no other connection of this epoch has."""
        self._sessions += 1
        return self._sessions

    def greet(self, agent: Agent, line: Line, hello: protocol.Hello) -> None:
        """A connection's first word: let it in and compare notes."""
        if hello.agent != agent.name:
            raise RemoteError(f"agent {agent.name} called itself {hello.agent}")
        fresh = bool(agent.install) and agent.install != hello.install
        if fresh and agent.line is not None and self._is_heard(agent):
            # a copied token, or an agent that was taken for gone: never are both served (F024)
            line.hang_up(4409, f"another agent {agent.name} is connected from {agent.host}; one must end")
            return
        rebooted = bool(agent.boot_id) and agent.boot_id != hello.boot_id
        if not (fresh or rebooted) and hello.made_at and hello.made_at <= agent.hello_made_at:
            # it was on its way for long: what it says of the agent was true before what we know already
            line.hang_up(4409, "there was a newer connection of the same agent")
            return
        self._supervisor.agents.connected(agent, line, hello)
        line.say(protocol.Welcome(acked=0, heartbeat_secs=self.heartbeat_secs))
        held = {(item.jid, item.serial, item.attempt): item for item in hello.inventory}
        standing_by: list[ComputeJob] = []
        unsent: list[Op] = []
        for job in self._supervisor.jobs.active():
            if job.record.agent == agent.name:
                record = job.record
                item = held.pop((record.jid, record.serial, record.attempt), None)
                if item is None and rebooted and record.started_at is None and (not job.op or job.op.told):
                    # its intent may have been lost with the power, after it had begun
                    why = "the host was rebooted, and nothing tells whether it had begun"
                    self.dead(job, "boot_changed", why, Reason.NODE_FAILED)
                else:
                    self._compare(agent, job, item, fresh)
                    if item is not None and item.state == "standby":
                        standing_by.append(job)
                    elif item is None and job.op is not None and not job.op.told:
                        unsent.append(job.op)
        # Now it is known which others run, perhaps in slots that were booked for these.
        for op in unsent:
            self._supervisor.ops.stand_back(op)
        for job in standing_by:
            self._grant_again(job)
        if fresh and (rebooted or not agent.driver.jobs_outlive_agent):
            self._died_with_host(agent, rebooted=rebooted)
        if held:
            self._supervisor.tasks.ensure(
                f"foreign attempts of {agent.name}", partial(self._foreign, agent, line, list(held.values()))
            )
        self._supervisor.readings.lost(agent)
        self._supervisor.dispatch.soon()

    def _compare(self, agent: Agent, job: ComputeJob, held: protocol.Held | None, fresh: bool) -> None:
        """One attempt that we think the agent has, and what it says of it."""
        record = job.record
        # once it came back without its records, each further connection is no better
        fresh = fresh or record.reason is Reason.AGENT_LOST
        if job.op is None:
            self._supervisor.dispatch.adopt(job, agent, standby=False)
        if held is None:
            if record.state is State.STARTING or (record.state is State.LOST and record.started_at is None):
                if fresh:
                    self.lost(job, f"agent {agent.name} came back without its records", Reason.AGENT_LOST)
                elif record.stopping:
                    self._unheard(job)
                else:
                    self._back(job, "starting")
                    if job.op is not None:
                        job.op.told = False  # what was said before went with the line
                    self._supervisor.commits.after(partial(self._supervisor.orders.run, job, record.attempt))
            elif record.state is State.CANCELING and record.started_at is None and not fresh:
                self._unheard(job)
            else:
                why = f"agent {agent.name} knows nothing of this attempt any more"
                self.lost(job, why, Reason.AGENT_LOST)
            return
        if held.state == "ended":
            return  # its record is on the way
        if job.op is not None and held.state != "standby":
            self._supervisor.ops.own(job.op)
        self._back(job, held.state)
        if job.record.stopping:
            # Whoever asked has no answer yet if it is not durable, and nobody would know why it ended.
            say = partial(self._supervisor.orders.cancel, job, record.attempt, job.spec.limits.grace)
            self._supervisor.commits.after(say)

    def _grant_again(self, job: ComputeJob) -> None:
        """One that the agent holds back, when it is known which others run: it may have slots already."""
        op = job.op
        if op is None or op.standby or job.record.stopping or self._supervisor.ops.stand_back(op):
            return
        self._supervisor.orders.grant(op)

    async def _foreign(self, agent: Agent, line: Line, held: list[protocol.Held]) -> None:
        """The agent has attempts that we do not count as its own.

        Those that are over for us are ended: another attempt may run already, or an operator has spoken.
        Those that the store has never heard of (it was restored from a backup) are kept and shown (F097).
        """
        for item in held:
            if item.state == "ended":
                continue  # its record will be acknowledged and dropped
            async with self._supervisor.jobs.hold(item.jid) as job:
                stale = job is not None and (
                    item.attempt < job.record.attempt
                    or (item.attempt == job.record.attempt and job.record.state not in HELD_BY_AGENT)
                )
            if agent.line is not line:
                return  # the next connection compares anew
            _log.warning("agent holds a foreign attempt", jid=item.jid, attempt=item.attempt, stale=stale)
            if stale:
                self._supervisor.commits.after(partial(self._end_stale, line, item))
            else:
                agent.foreign.add(f"{item.jid}/{item.attempt}")

    @staticmethod
    def _end_stale(line: Line, item: protocol.Held) -> None:
        line.say(
            protocol.Cancel(jid=item.jid, serial=item.serial, attempt=item.attempt, op_id=0, grace_secs=0.0)
        )

    def _is_heard(self, agent: Agent) -> bool:
        secs = self.heartbeat_secs + (
            self.heartbeat_secs if agent.busy else protocol.idle_secs(self.heartbeat_secs)
        )
        return self._supervisor.loop.time() - agent.heard_at < secs

    def _died_with_host(self, agent: Agent, *, rebooted: bool) -> None:
        """Nothing of what the agent ran before can live, and its records are gone too (F025, F026)."""
        for job in self._supervisor.jobs.active():
            if job.record.agent == agent.name and job.record.reason is Reason.AGENT_LOST:
                if rebooted:
                    self.dead(job, "boot_changed", "the host was rebooted", Reason.NODE_FAILED)
                else:
                    self.dead(job, "agent_gone", f"agent {agent.name} is gone, and its jobs with it")

    def lose(self, agent: Agent, line: Line) -> None:
        """A connection ended."""
        if self._supervisor.agents.disconnected(agent, line):
            self._supervisor.readings.lost(agent)
            self._supervisor.dispatch.soon()

    def out_of_reach(self, agent: Agent) -> None:
        """The agent has been away for longer than a connection may blink: say so at its jobs."""
        for job in self._supervisor.jobs.active():
            if job.record.agent != agent.name:
                continue
            if agent.proven_gone and not agent.driver.jobs_outlive_agent:
                self.dead(job, "agent_gone", f"agent {agent.name} is gone, and its jobs with it")
            elif job.record.state is not State.LOST:
                reason, why = agent.blocked or (
                    Reason.AGENT_UNREACHABLE,
                    f"agent {agent.name} is out of reach",
                )
                self.lost(job, f"{why}; the job may well be running", reason)

    # -- messages

    def hear(self, agent: Agent, line: Line, messages: list[Any]) -> None:
        """Everything in one frame, in order; durable messages are acknowledged after the commit."""
        failpoints.hit("talk.heard")
        last = 0
        agent.heard_at = self._supervisor.loop.time()
        for message in messages:
            if (seq := getattr(message, "seq", 0)) and not self._is_news(agent, message, seq):
                continue
            heed = self._hear.get(type(message))
            if heed is None:
                raise RemoteError(f"{type(message).__name__} is not for now")
            try:
                heed(agent, message)
            except Illegal as exc:
                # the agent's error; the state stands, and repeating the message would not mend it
                _log.warning("agent said what cannot be", agent=agent.name, why=str(exc))
            last = seq or last
        if last:
            self._supervisor.commits.after(partial(_acknowledge, line, last))

    def _is_news(self, agent: Agent, message: Any, seq: int) -> bool:
        """Whether a durable record is the next one (C7). Raises `RemoteError` when one before it is missing.

        The end of an attempt may be said again, and is taken as often as it comes.
        """
        if agent.heard is not None and seq > agent.heard + 1:
            raise RemoteError(f"record {seq} came after {agent.heard}: what lies between is missing")
        if agent.heard is not None and seq <= agent.heard:
            return isinstance(message, protocol.Exited)
        agent.heard = seq
        return True

    def _job(self, agent: Agent, message: protocol.Attempt) -> ComputeJob | None:
        """The job that a message speaks of, if it is this agent's to speak of (I26)."""
        job = self._supervisor.jobs.get(message.jid)
        if job is None or job.record.state not in HELD_BY_AGENT or job.record.agent != agent.name:
            return None
        return job

    def _started(self, agent: Agent, message: protocol.Started) -> None:
        if job := self._job(agent, message):
            if job.op is not None and message.attempt == job.record.attempt:
                self._supervisor.ops.own(job.op)  # it runs: its slots are taken, whoever gave them
            self._supervisor.tell(
                job,
                events.Started(
                    at=message.at, serial=message.serial, attempt=message.attempt, pid=message.pid
                ),
            )

    def _exited(self, agent: Agent, message: protocol.Exited) -> None:
        job = self._job(agent, message)
        if job is None or (message.serial, message.attempt) != (job.record.serial, job.record.attempt):
            return
        self._learn(agent, job, message)
        if message.successor and job.op is not None:
            # also of one that never began: it had slots, and another one runs in them
            job.op.heir = self._heir(agent, message.successor)
        if not message.began:
            if message.reason is Reason.DRAINING:
                self._supervisor.agents.ending(agent)
            self._not_started(job, message.message, message.reason or Reason.START_FAILED)
            return
        if message.started_at is not None:
            agent.took((message.at - message.started_at) / 1e6)
        self._supervisor.tell(
            job,
            events.Exited(
                at=message.at,
                serial=message.serial,
                attempt=message.attempt,
                proof=message.proof,
                exit_code=message.exit_code,
                signal=message.signal,
                reason=message.reason,
                message=message.message,
                stopped=message.stopped,
                started_at=message.started_at,
                stdout_bytes=message.stdout_bytes,
                stderr_bytes=message.stderr_bytes,
                usage=message.usage,
            ),
        )

    def _learn(self, agent: Agent, job: ComputeJob, message: protocol.Exited) -> None:
        """What this end says about the agent's health (F035)."""
        if message.began and message.reason not in _SICK:
            # one that its launcher's death ended says nothing; a job that kills them is `POISONED` (F034)
            if message.proof == "wait_status":
                agent.health.got_through()
        elif not message.stopped and message.reason is not Reason.DRAINING:
            self.failed(agent, job, message.message, self._supervisor.loop.time())

    def failed(self, agent: Agent, job: ComputeJob, why: str, now: float) -> None:
        """This job speaks against its agent: after some in a row it gets no more for a while (F035)."""
        pause_secs = agent.health.failed(job.jid, why, now)
        if pause_secs:
            _log.warning("agent is paused", agent=agent.name, secs=pause_secs, why=why)
            self._supervisor.loop.call_later(pause_secs, self._supervisor.dispatch.soon)

    def _heir(self, agent: Agent, successor: str) -> Op | None:
        """The op of "jid/attempt", if it is this agent's own: slots are not given away to others (I26)."""
        jid, _, attempt = successor.rpartition("/")
        job = self._supervisor.jobs.get(jid)
        if job is None or job.record.agent != agent.name or attempt != str(job.record.attempt):
            return None
        return job.op

    def _suspended(self, agent: Agent, message: protocol.Suspended) -> None:
        if job := self._job(agent, message):
            kind = events.Suspended if message.on else events.Resumed
            self._supervisor.tell(job, kind(at=message.at, serial=message.serial, attempt=message.attempt))

    def _progress(self, agent: Agent, message: protocol.Progress) -> None:
        if job := self._job(agent, message):
            self._supervisor.tell(
                job,
                events.Progressed(
                    at=message.at, serial=message.serial, attempt=message.attempt, data=message.data
                ),
            )

    def _scheduling(self, agent: Agent, message: protocol.Scheduling) -> None:
        job = self._job(agent, message)
        if job is None or (message.serial, message.attempt) != (job.record.serial, job.record.attempt):
            return
        job.scheduling = message
        self._supervisor.tell(
            job,
            events.QueueMoved(
                at=message.at,
                serial=message.serial,
                attempt=message.attempt,
                reason=message.reason,
                message=message.text,
            ),
        )

    def _counters(self, agent: Agent, message: protocol.Counters) -> None:
        agent.counters = message.counts

    def _heartbeat(self, agent: Agent, message: protocol.Heartbeat) -> None:
        """It is there: leases count on from the moment at which it said so."""
        if message.n:
            self._renewals.ask(agent, message.n)

    def _unsupported(self, agent: Agent, message: protocol.Unsupported) -> None:
        _log.warning("agent does not know a message", agent=agent.name, kind=message.kind)
        self._supervisor.readings.unsupported(agent, message.kind)

    def _unknown(self, agent: Agent, message: protocol.Unknown) -> None:
        _log.warning("unknown message", agent=agent.name, kind=message.kind, why=message.why)
        if agent.line is not None:
            agent.line.say(protocol.Unsupported(kind=message.kind))

    # -- events that are ours to make

    def _unheard(self, job: ComputeJob) -> None:
        self._supervisor.tell(job, unheard(job, self._supervisor.now()))

    def dead(self, job: ComputeJob, proof: str, message: str, reason: Reason = Reason.AGENT_LOST) -> None:
        """The present attempt is no more, for sure, and nothing tells how it ended."""
        record = job.record
        self._supervisor.tell(
            job,
            events.DeathProven(
                at=self._supervisor.now(),
                serial=record.serial,
                attempt=record.attempt,
                proof=proof,
                reason=reason,
                message=message,
            ),
        )

    def _not_started(self, job: ComputeJob, message: str, reason: Reason) -> None:
        record = job.record
        self._supervisor.tell(
            job,
            events.NotStarted(
                at=self._supervisor.now(),
                serial=record.serial,
                attempt=record.attempt,
                reason=reason,
                message=message,
            ),
        )

    def _back(self, job: ComputeJob, holds: str) -> None:
        record = job.record
        self._supervisor.tell(
            job,
            events.AgentBack(
                at=self._supervisor.now(), serial=record.serial, attempt=record.attempt, holds=holds
            ),
        )

    def lost(self, job: ComputeJob, message: str, reason: Reason = Reason.AGENT_UNREACHABLE) -> None:
        """Nothing tells what became of the present attempt; it may well be running (C4)."""
        record = job.record
        self._supervisor.tell(
            job,
            events.AgentLost(
                at=self._supervisor.now(),
                serial=record.serial,
                attempt=record.attempt,
                reason=reason,
                message=message,
            ),
        )


def _acknowledge(line: Line, seq: int) -> None:
    failpoints.hit("talk.before_ack")
    line.acknowledge(seq)
