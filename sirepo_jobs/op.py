"""Ops and the loop that brings them to an agent (SIR-11..15, I21).

An **op** is one thing to be done by an agent. It needs resources, in the order of `NEEDS`: an agent
with an open socket, an op slot there, the run dir, cpu slots. Where one is not to be had, acquiring
raises `Awaited`; the op then stands in that resource's queue, and when the resource may be free the
loop starts again **from the top**, so that everything above the wait is verified anew. There is no
`await` in here: between the first look and the sending nothing can change.

Queues are first come, first served: nobody takes a resource for which another one stands in line.
`end` gives everything back, once, on every path; `check` says whether that is true.
"""

from collections.abc import Callable, Hashable, Iterable
from enum import StrEnum
from typing import Protocol

from .reasons import Reason
from .resources import Resources
from .slots import NOTHING, Pool

Resource = tuple[str, Hashable]


class Kind(StrEnum):
    """What an op is for."""

    RUN = "run"
    READ = "read"


class Need(StrEnum):
    """What an op may need; the values begin the names of the queues."""

    AGENT = "agent"
    OP_SLOT = "op_slot"
    RUN_DIR = "run_dir"
    CPUS = "cpus"


#: In which order each kind acquires what it needs; what others want most comes last (SIR-13).
NEEDS: dict[Kind, tuple[Need, ...]] = {
    Kind.RUN: (Need.AGENT, Need.OP_SLOT, Need.RUN_DIR, Need.CPUS),
    Kind.READ: (Need.AGENT,),
}


class Awaited(Exception):
    """A resource is not to be had now: the op waits for it, and then starts again from the top."""

    def __init__(self, resource: Resource, reason: Reason, text: str) -> None:
        super().__init__(text)
        self.resource = resource
        self.reason = reason
        self.text = text


class Place(Protocol):
    """An agent, as far as ops care."""

    #: Its key, the same for every op of the environment.
    key: str
    #: Ops that were sent or are about to be, by id.
    ops: "dict[int, Op]"

    def want(self) -> None:
        """Somebody needs this agent: see to it that it comes. Raises `Awaited` unless it is there."""
        ...

    @property
    def op_limit(self) -> int:
        """Ops it takes at once."""
        ...

    #: How many of them it holds back until slots are free; kept by the op loop.
    standbys: int

    def takes_standby(self, need: Resources) -> bool:
        """Whether it may hold back one more op of this size."""
        ...


class Op:
    """One thing to be done by an agent."""

    __slots__ = (
        "go", "heir", "jid", "kind", "need", "op_id", "over",
        "place", "pool", "queue", "sent", "standby", "still", "told", "waiting",
    )  # fmt: skip

    def __init__(
        self,
        op_id: int,
        kind: Kind,
        jid: str,
        place: Place,
        *,
        go: "Callable[[Op], None]",
        still: Callable[[], bool],
        pool: Pool | None = None,
        need: Resources = NOTHING,
    ) -> None:
        self.op_id = op_id
        self.kind = kind
        self.jid = jid
        self.place = place
        #: Sends it; called once, when everything is acquired.
        self.go = go
        #: Whether it is still wanted; asked at the top of every round.
        self.still = still
        #: Where its cpus, memory and gpus come from.
        self.pool = pool
        self.need = need
        self.sent = False
        #: The agent may have heard of it. Between being sent and being told lies a commit.
        self.told = False
        #: Sent, but the agent is to hold it back until slots are free.
        self.standby = False
        self.over = False
        #: What it waits for, and why, for whoever asks.
        self.waiting: Awaited | None = None
        #: The queue it stands in.
        self.queue: Resource | None = None
        #: The standby op that the agent started in this one's slots when this one ended.
        self.heir: Op | None = None


class OpLoop:
    """All ops that are not over, and the queues they stand in."""

    def __init__(self, grant: Callable[[Op], None]) -> None:
        #: Tells the agent that a standby op has slots now.
        self._grant = grant
        self._queues: dict[Resource, dict[Op, None]] = {}
        self._run_dirs: dict[str, Op] = {}
        self._woken: dict[Resource, None] = {}
        self._acquire = {
            Need.AGENT: self._acquire_agent,
            Need.OP_SLOT: self._acquire_op_slot,
            Need.RUN_DIR: self._acquire_run_dir,
            Need.CPUS: self._acquire_cpus,
        }

    def begin(self, op: Op) -> None:
        """Start the op's first round."""
        self._round(op)

    def adopt(self, op: Op, *, standby: bool) -> None:
        """Book what an op holds that an agent has already (after a restart of the supervisor)."""
        op.sent = True
        op.place.ops[op.op_id] = op
        self._run_dirs[op.jid] = op
        if standby:
            self._stand_by(op)
        elif op.pool is not None:
            op.pool.adopt(op, op.need)

    def own(self, op: Op) -> None:
        """The agent runs this standby op: book its slots, whether or not they are free."""
        if op.standby and op.pool is not None:
            self._stand_no_longer(op)
            op.pool.adopt(op, op.need)

    def stand_back(self, op: Op) -> bool:
        """Take the slots of an op that the agent holds back still, if others run in more than there are."""
        if op.standby or op.pool is None or not op.pool.is_overbooked or not op.pool.give_back(op):
            return False
        self._stand_by(op)
        self.wake((Need.CPUS, op.pool.name))
        return True

    def wake(self, resource: Resource) -> None:
        """Say that a resource may be free; who waits for it is tried at the next `settle`."""
        if resource in self._queues:
            self._woken[resource] = None

    def follow(self, agent: str, held: Iterable[Op], pool: Pool) -> None:
        """What was not sent yet takes its slots where the agent is now; until then it holds none."""
        for op in [*self.waiting_ops((Need.AGENT, agent)), *held]:
            if op.pool is not None and op.pool is not pool and not op.sent and not op.pool.holds(op):
                self.wake((Need.CPUS, op.pool.name))  # it may stand in line there
                op.pool = pool

    def settle(self) -> None:
        """Try everybody who waits for something that was woken, in the order in which they came."""
        while self._woken:
            resource, _ = self._woken.popitem()
            for op in list(self._queues.get(resource, ())):
                if op.sent:
                    self._try_grant(op)
                else:
                    self._round(op)
                if op in self._queues.get(resource, ()):
                    break  # whoever stands behind it waits for the same thing

    def end(self, op: Op) -> None:
        """Give back everything that `op` has. Its cpu slots pass to its heir, if that one can use them."""
        if op.over:
            return
        heir = op.heir
        op.over = True
        self._stand_no_longer(op)
        self._leave_queue(op)
        if op.place.ops.pop(op.op_id, None) is not None:
            self.wake((Need.OP_SLOT, op.place.key))
        if self._run_dirs.get(op.jid) is op:
            del self._run_dirs[op.jid]
            self.wake((Need.RUN_DIR, op.jid))
        if op.pool is not None:
            if heir is not None and heir.standby and op.pool.hand_over(op, heir, heir.need):
                self._stand_no_longer(heir)
            op.pool.give_back(op)
            self.wake((Need.CPUS, op.pool.name))

    def nobody_waits_for(self, resource: Resource) -> bool:
        """Whether the queue of a resource is empty."""
        return resource not in self._queues

    def waiting_for(self, resource: Resource) -> int:
        """How many stand in the queue of a resource."""
        return len(self._queues.get(resource, ()))

    def waiting_ops(self, resource: Resource) -> list[Op]:
        """Who stands in the queue of a resource, the first one first."""
        return list(self._queues.get(resource, ()))

    def check(self) -> None:
        """Raise `AssertionError` if an op that is over holds or waits for anything."""
        for resource, queue in self._queues.items():
            assert queue, f"{resource}: an empty queue was kept"
            for op in queue:
                assert not op.over, f"{op.jid} is over and waits for {resource}"
        for jid, op in self._run_dirs.items():
            assert not op.over, f"the run dir of {jid} is held by an op that is over"

    # -- one round

    def _round(self, op: Op) -> None:
        """From the top: verify, acquire in order, send; or stand in a queue."""
        if op.over or op.sent:
            return
        if not op.still():
            self.end(op)
            return
        try:
            for need in NEEDS[op.kind]:
                self._acquire[need](op)
        except Awaited as awaited:
            self._wait(op, awaited)
            return
        if not op.standby:
            self._leave_queue(op)
        op.waiting = None
        op.sent = True
        op.go(op)

    def _acquire_agent(self, op: Op) -> None:
        op.place.want()

    def _acquire_op_slot(self, op: Op) -> None:
        place = op.place
        if op.op_id in place.ops:
            return
        resource = (Need.OP_SLOT, place.key)
        if len(place.ops) >= place.op_limit or not self._is_first(op, resource):
            raise Awaited(resource, Reason.RESOURCES, f"the agent has {len(place.ops)} ops, its limit")
        place.ops[op.op_id] = op

    def _acquire_run_dir(self, op: Op) -> None:
        holder = self._run_dirs.setdefault(op.jid, op)
        if holder is not op:
            raise Awaited(
                (Need.RUN_DIR, op.jid), Reason.RESOURCES, f"another op ({holder.kind}) has its run dir"
            )

    def _acquire_cpus(self, op: Op) -> None:
        assert op.pool is not None, f"a {op.kind} op without a pool"
        resource = (Need.CPUS, op.pool.name)
        if op.pool.holds(op) or (self._is_first(op, resource) and op.pool.take(op, op.need)):
            return
        if op.place.takes_standby(op.need):
            self._stand_by(op)
            return
        lacking = op.need.shortage(op.pool.free) or "others stand in line"
        raise Awaited(resource, Reason.RESOURCES, f"waits for slots of {op.pool.name}: {lacking}")

    def _stand_by(self, op: Op) -> None:
        """Send it ahead; it keeps its place in line for slots of its own."""
        assert op.pool is not None
        op.standby = True
        op.place.standbys += 1
        self._queue(op, (Need.CPUS, op.pool.name))

    def _stand_no_longer(self, op: Op) -> None:
        if op.standby:
            op.standby = False
            op.place.standbys -= 1
            self._leave_queue(op)

    def _try_grant(self, op: Op) -> None:
        assert op.pool is not None
        if op.standby and self._is_first(op, (Need.CPUS, op.pool.name)) and op.pool.take(op, op.need):
            self._stand_no_longer(op)
            self._grant(op)

    # -- queues: an op stands in one at most

    def _wait(self, op: Op, awaited: Awaited) -> None:
        self._give_back_what_blocks_others(op, awaited)
        self._queue(op, awaited.resource)
        op.waiting = awaited

    def _give_back_what_blocks_others(self, op: Op, awaited: Awaited) -> None:
        """Nobody sits on an op slot of an agent that is not there: the claim is void without its socket."""
        if awaited.resource[0] == Need.AGENT:
            if op.place.ops.pop(op.op_id, None) is not None:
                self.wake((Need.OP_SLOT, op.place.key))
            if op.pool is not None and op.pool.give_back(op):
                self.wake((Need.CPUS, op.pool.name))

    def _queue(self, op: Op, resource: Resource) -> None:
        if op in self._queues.get(resource, ()):
            return
        self._leave_queue(op)
        self._queues.setdefault(resource, {})[op] = None
        op.queue = resource

    def _leave_queue(self, op: Op) -> None:
        if op.queue is None:
            return
        queue = self._queues[op.queue]
        del queue[op]
        if not queue:
            del self._queues[op.queue]
            self._woken.pop(op.queue, None)
        op.queue = None

    def _is_first(self, op: Op, resource: Resource) -> bool:
        queue = self._queues.get(resource)
        return not queue or next(iter(queue)) is op
