"""What Slurm's words mean: states of jobs and reasons why one is pending, as data (SIR-59, SIR-L12).

A word that is not in the table is `Stage.UNKNOWN`: it is shown as it is, and changes nothing. This floor is
below the agent, which reads these words on the login node.
"""

from enum import StrEnum
from typing import NamedTuple

from .reasons import Reason


class Stage(StrEnum):
    """What a state says about the processes of a job."""

    #: None exists, and they may come.
    WAITING = "waiting"
    RUNNING = "running"
    #: They exist and stand still.
    PAUSED = "paused"
    #: The job is being cleaned up; something of it may live.
    ENDING = "ending"
    ENDED = "ended"
    #: The word says nothing that we could rely on.
    UNKNOWN = "unknown"


class Meaning(NamedTuple):
    """What is known of a state."""

    stage: Stage
    #: Why the job ended, where the state itself is the reason; None: its exit status says more.
    reason: Reason | None = None
    #: For people, after "Slurm says that ...".
    text: str = ""


#: Every state of squeue(1) and sacct(1) up to Slurm 25.05.
STATES: dict[str, Meaning] = {
    "PENDING": Meaning(Stage.WAITING, text="it waits for resources"),
    "CONFIGURING": Meaning(Stage.WAITING, text="its nodes are being made ready"),
    "POWER_UP_NODE": Meaning(Stage.WAITING, text="its nodes are being switched on"),
    "REQUEUED": Meaning(Stage.WAITING, text="it was put back into the queue"),
    "REQUEUE_FED": Meaning(Stage.WAITING, text="it was put back into the queue of a federation"),
    "REQUEUE_HOLD": Meaning(Stage.WAITING, text="it was put back into the queue and is held there"),
    "SPECIAL_EXIT": Meaning(Stage.WAITING, text="it was put back into the queue and is held for inspection"),
    "RESV_DEL_HOLD": Meaning(Stage.WAITING, text="it is held: its reservation was deleted"),
    "RUNNING": Meaning(Stage.RUNNING, text="it runs"),
    "RESIZING": Meaning(Stage.RUNNING, text="it runs and changes its size"),
    "SIGNALING": Meaning(Stage.RUNNING, text="it runs and is being signaled"),
    "EXPEDITING": Meaning(Stage.RUNNING, text="it runs"),
    "SUSPENDED": Meaning(Stage.PAUSED, text="it is suspended; its cpus are given to others"),
    "STOPPED": Meaning(Stage.PAUSED, text="it is stopped and keeps its cpus"),
    "COMPLETING": Meaning(Stage.ENDING, text="it is being cleaned up"),
    "STAGE_OUT": Meaning(Stage.ENDING, text="its files are being staged out"),
    "UPDATE_DB": Meaning(Stage.ENDING, text="it is being written to the accounting database"),
    "COMPLETED": Meaning(Stage.ENDED, text="it completed"),
    "FAILED": Meaning(Stage.ENDED, text="it failed"),
    "CANCELLED": Meaning(Stage.ENDED, Reason.CANCELED_BY_ADMIN, "it was cancelled"),
    "TIMEOUT": Meaning(Stage.ENDED, Reason.TIME_LIMIT, "it reached its time limit"),
    "DEADLINE": Meaning(Stage.ENDED, Reason.TIME_LIMIT, "it reached its deadline"),
    "OUT_OF_MEMORY": Meaning(Stage.ENDED, Reason.OUT_OF_MEMORY, "it ran out of memory"),
    "NODE_FAIL": Meaning(Stage.ENDED, Reason.NODE_FAILED, "one of its nodes failed"),
    "BOOT_FAIL": Meaning(Stage.ENDED, Reason.NODE_FAILED, "its nodes could not be booted"),
    "LAUNCH_FAILED": Meaning(Stage.ENDED, Reason.NODE_FAILED, "it could not be launched on its nodes"),
    "RECONFIG_FAIL": Meaning(Stage.ENDED, Reason.NODE_FAILED, "its nodes could not be configured"),
    "PREEMPTED": Meaning(Stage.ENDED, Reason.PREEMPTED, "it was preempted by another job"),
    # Of a federation: another cluster has the job, and only that one can tell.
    "REVOKED": Meaning(Stage.UNKNOWN, text="another cluster of its federation has it"),
}

_UNKNOWN = Meaning(Stage.UNKNOWN)


def meaning(state: str) -> Meaning:
    """What a state means; a word after it (`CANCELLED by 1000`) and a cut mark (`CANCELLED+`) are left out.

    >>> meaning("CANCELLED by 1000").stage
    <Stage.ENDED: 'ended'>
    >>> meaning("CANCELLE").stage
    <Stage.UNKNOWN: 'unknown'>
    """
    return STATES.get(state_word(state), _UNKNOWN)


def state_word(state: str) -> str:
    """The state alone: `CANCELLED by 1000` -> `CANCELLED`."""
    return state.strip().partition(" ")[0].rstrip("+").upper()


class Wait(NamedTuple):
    """Why a job is pending."""

    reason: Reason
    #: For people, after the word itself.
    text: str
    #: It does not start as it is, however long one waits.
    never: bool = False


_NEVER = Reason.UNSATISFIABLE
_WAITS: dict[str, Wait] = {
    "None": Wait(Reason.SCHEDULER, "Slurm has not looked at it yet"),
    "Priority": Wait(Reason.PRIORITY, "jobs of higher priority go first"),
    "Resources": Wait(Reason.RESOURCES, "the nodes that it needs are busy"),
    "Dependency": Wait(Reason.DEPENDENCY, "a job that it depends on has not ended"),
    "DependencyNeverSatisfied": Wait(_NEVER, "a job that it depends on failed: it never starts", True),
    "BeginTime": Wait(Reason.BEGIN_TIME, "its earliest start time has not come"),
    "JobHeldUser": Wait(Reason.HELD, "it is held by the user: scontrol release"),
    "JobHeldAdmin": Wait(Reason.HELD, "it is held by an administrator"),
    "JobArrayTaskLimit": Wait(Reason.QUOTA, "as many tasks of its array run as may"),
    "ReqNodeNotAvail": Wait(Reason.RESOURCES, "a node that it needs is down, drained or reserved"),
    "Reservation": Wait(Reason.BEGIN_TIME, "its reservation has not begun"),
    "PartitionDown": Wait(Reason.SCHEDULER, "its partition is down"),
    "PartitionInactive": Wait(Reason.SCHEDULER, "its partition takes no jobs now"),
    "PartitionNodeLimit": Wait(_NEVER, "it asks for more nodes than its partition has or allows", True),
    "PartitionTimeLimit": Wait(_NEVER, "it asks for more time than its partition allows", True),
    "PartitionConfig": Wait(_NEVER, "its partition cannot give what it asks for", True),
    "BadConstraints": Wait(_NEVER, "no node has what it asks for", True),
    "NodeDown": Wait(Reason.RESOURCES, "a node that it needs is down"),
    "Licenses": Wait(Reason.RESOURCES, "the licenses that it needs are in use"),
    "InvalidAccount": Wait(_NEVER, "its account is not valid any more", True),
    "InvalidQOS": Wait(_NEVER, "its quality of service is not valid any more", True),
    "AccountNotAllowed": Wait(_NEVER, "its account may not use this partition", True),
    "QOSNotAllowed": Wait(_NEVER, "its quality of service may not use this partition", True),
    "Cleaning": Wait(Reason.SCHEDULER, "it is being put back into the queue"),
    "Prolog": Wait(Reason.SCHEDULER, "the site's prolog runs"),
    "FrontEndDown": Wait(Reason.SCHEDULER, "Slurm's front end node is down"),
    "SchedDefer": Wait(Reason.SCHEDULER, "Slurm puts off starting jobs"),
    "MaxRequeue": Wait(_NEVER, "it was put back into the queue too often", True),
    "launch failed requeued held": Wait(Reason.HELD, "it could not be launched, and is held"),
}
#: Limits of accounts, users and qualities of service come in dozens; their names begin and end alike.
_PER_JOB = "PerJob"


def wait(word: str) -> Wait:
    """What a pending reason means. Words of newer versions, and texts of plugins, are passed on.

    >>> wait("QOSMaxCpuPerUserLimit").reason
    <Reason.QUOTA: 'QUOTA'>
    """
    word = word.strip()
    key = word.partition(",")[0]
    if key in _WAITS:
        return _WAITS[key]
    if key.startswith(("QOS", "Assoc", "Max")):
        never = _PER_JOB in key
        text = (
            "it asks for more than a limit allows" if never else "a limit of its account or user is reached"
        )
        return Wait(_NEVER if never else Reason.QUOTA, text, never)
    return Wait(Reason.SCHEDULER, "")
