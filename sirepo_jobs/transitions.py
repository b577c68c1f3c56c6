"""Which event may lead from which state to which, for jobs and for agents: two tables, and their chart.

`NEXT` lists for every (state, event) the states of a job that it may lead to; where more than one is
listed, `lifecycle.step` chooses by what the event proves. A pair that is not listed is the sender's fault.
Final is final (I9): only the user's word `RetryAsked` opens a new run, and `Purged` removes files, not
results.

Sources: SYS-06..10, I9. The charts in `docs/states.md` are made from these tables by `chart()`.
"""

from collections.abc import Mapping

from .events import (
    AgentBack,
    AgentEvent,
    AgentLost,
    AgentState,
    Assigned,
    CancelAsked,
    Changed,
    DeathProven,
    Deduped,
    Event,
    Exited,
    HoldAsked,
    NotStarted,
    PreemptAsked,
    Progressed,
    Purged,
    QueueMoved,
    Released,
    Resumed,
    RetryAsked,
    Started,
    Suspended,
)  # fmt: skip
from .job import FINAL, HELD_BY_AGENT, State

S = State
_ENDS = (S.COMPLETED, S.ERROR, S.CANCELED, S.PENDING, S.HELD)
_SAME: tuple[State, ...] = ()  # marks "stays where it is"


def _rows() -> dict[tuple[State, type[Event]], tuple[State, ...]]:
    table: dict[tuple[State, type[Event]], tuple[State, ...]] = {
        # before an attempt exists
        (S.INACTIVE, Released): (S.PENDING,),
        (S.HELD, Released): (S.PENDING,),
        (S.PENDING, Released): _SAME,
        (S.INACTIVE, Deduped): (S.DEDUPED,),
        (S.PENDING, Deduped): (S.DEDUPED,),
        (S.PENDING, Assigned): (S.STARTING,),
        (S.INACTIVE, HoldAsked): (S.HELD,),
        (S.PENDING, HoldAsked): (S.HELD,),
        (S.HELD, HoldAsked): _SAME,
        (S.INACTIVE, CancelAsked): (S.CANCELED,),
        (S.PENDING, CancelAsked): (S.CANCELED,),
        (S.HELD, CancelAsked): (S.CANCELED,),
        # an attempt exists
        (S.STARTING, Started): (S.RUNNING,),
        (S.RUNNING, Started): _SAME,  # told twice
        (S.SUSPENDED, Started): _SAME,
        (S.CANCELING, Started): _SAME,  # crossed our stop on the wire
        (S.LOST, Started): (S.RUNNING, S.CANCELING),
        (S.RUNNING, Suspended): (S.SUSPENDED,),
        (S.SUSPENDED, Suspended): _SAME,
        (S.CANCELING, Suspended): _SAME,
        (S.SUSPENDED, Resumed): (S.RUNNING,),
        (S.RUNNING, Resumed): _SAME,
        (S.CANCELING, Resumed): _SAME,
        (S.LOST, AgentBack): (S.STARTING, S.RUNNING, S.SUSPENDED, S.CANCELING),
        # after the end
        (S.COMPLETED, RetryAsked): (S.PENDING,),
        (S.ERROR, RetryAsked): (S.PENDING,),
        (S.CANCELED, RetryAsked): (S.PENDING,),
        (S.PURGED, RetryAsked): (S.PENDING,),
        (S.COMPLETED, Purged): (S.PURGED,),
        (S.ERROR, Purged): (S.PURGED,),
        (S.CANCELED, Purged): (S.PURGED,),
        (S.PURGED, Purged): _SAME,
    }
    for state in HELD_BY_AGENT:
        table[state, NotStarted] = (S.PENDING, S.ERROR, S.CANCELED, S.HELD)
        table[state, Exited] = _ENDS
        table[state, DeathProven] = _ENDS[1:]
        table[state, Progressed] = _SAME
        table[state, QueueMoved] = _SAME
        table.setdefault((state, AgentBack), _SAME)
        if state is S.LOST:
            asked = _SAME  # remembered in `stopping`; carried out when the agent is back
            table[state, AgentLost] = _SAME
        else:
            asked = _SAME if state is S.CANCELING else (S.CANCELING,)
            table[state, AgentLost] = (S.LOST,)
        for ask in (CancelAsked, HoldAsked, PreemptAsked):
            table[state, ask] = asked
    for state in FINAL:
        # asked too late: the answer is the state as it is (SIR-23, SYS-C7)
        table[state, CancelAsked] = _SAME
    for state in State:
        table[state, Changed] = _SAME
    return table


#: What each event may make of each state; an empty tuple means that the state stays.
NEXT: Mapping[tuple[State, type[Event]], tuple[State, ...]] = _rows()


A = AgentState

#: What each event makes of an agent, as the supervisor sees it (SYS-10). Pairs that are not listed
#: change nothing: an agent's connection comes and goes, and late words about it are harmless.
AGENT_NEXT: Mapping[tuple[AgentState, AgentEvent], AgentState] = {
    (A.OFFLINE, AgentEvent.LAUNCH_ASKED): A.LAUNCHING,
    (A.OFFLINE, AgentEvent.CONNECTED): A.ONLINE,  # found again after a restart of the supervisor
    (A.LAUNCHING, AgentEvent.CONNECTED): A.ONLINE,
    (A.LAUNCHING, AgentEvent.LAUNCH_FAILED): A.OFFLINE,
    (A.LAUNCHING, AgentEvent.GONE): A.OFFLINE,
    (A.ONLINE, AgentEvent.DISCONNECTED): A.UNREACHABLE,
    (A.ONLINE, AgentEvent.DRAIN_ASKED): A.DRAINING,
    (A.ONLINE, AgentEvent.GONE): A.OFFLINE,
    (A.UNREACHABLE, AgentEvent.CONNECTED): A.ONLINE,
    (A.UNREACHABLE, AgentEvent.GONE): A.OFFLINE,
    (A.DRAINING, AgentEvent.CONNECTED): A.ONLINE,  # the word was lost with the old connection
    (A.DRAINING, AgentEvent.STAYED): A.ONLINE,
    (A.DRAINING, AgentEvent.DISCONNECTED): A.UNREACHABLE,
    (A.DRAINING, AgentEvent.GONE): A.OFFLINE,
}


def agent_step(state: AgentState, event: AgentEvent) -> AgentState:
    """The agent's next state; the same one for an event that says nothing new."""
    return AGENT_NEXT.get((state, event), state)


def chart() -> str:
    """Both tables as one Mermaid document; `docs/states.md` holds it and a test keeps it so."""
    arrows: dict[tuple[str, str], list[str]] = {}
    for (state, kind), targets in NEXT.items():
        for target in targets:
            arrows.setdefault((state, target), []).append(kind.__name__)
    lines = [
        "```mermaid",
        "stateDiagram-v2",
        "    [*] --> inactive",
        "    [*] --> pending",
        "    [*] --> deduped",
    ]
    lines += [f"    {a} --> {b}: {', '.join(sorted(kinds))}" for (a, b), kinds in sorted(arrows.items())]
    lines += ["```", "", "```mermaid", "stateDiagram-v2", "    [*] --> offline"]
    lines += [f"    {a} --> {b}: {event}" for (a, event), b in sorted(AGENT_NEXT.items())]
    return "\n".join([*lines, "```", ""])
