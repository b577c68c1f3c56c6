"""Named points at which a test may let a process die or dally (F001..F006, F018..F022, F041).

In production nothing is here: `hit` compares with None and returns. No setting, variable, file, message or
argument turns points on; only code that runs inside the process can call `arm`, and nothing in the package
does. The chaos tests bring such code along (`tests/chaos/armed.py`).
"""

from collections.abc import Callable
from typing import Final

#: Every point, and what has happened there already.
POINTS: Final[dict[str, str]] = {
    # the supervisor
    "submit.before_commit": "a submission is in memory, not on disk",
    "submit.after_commit": "it is durable, and not answered",
    "store.before_commit": "a group is written, not committed",
    "store.after_commit": "it is committed, and nobody knows",
    "dispatch.after_intent": "an attempt is durable, its agent not told",
    "dispatch.after_say": "the agent is about to be told",
    "talk.heard": "an agent's records have come, nothing is done about them",
    "talk.before_ack": "they are durable, not acknowledged",
    "recover.begin": "the store is open, nothing is known again",
    "recover.end": "everything is known again, the doors are closed",
    "launch.after_intent": "an agent is written down, not launched",
    "launch.after_launch": "it is launched, its handle not written down",
    # the launcher
    "journal.written": "intents and records are with the kernel, nobody is told",
    "spawners.told": "the spawners know, records are not on disk",
    "journal.synced": "records are on disk, the supervisor is not told",
    "journal.before_replace": "a shorter journal lies beside the old one",
    "journal.replaced": "it has its place",
    # a spawner
    "birth.dir_made": "the attempt's directory is there, nothing in it",
    "birth.files_made": "its files are there, no process",
    "birth.spawned": "the process is there, and not on the slate",
    "birth.untold": "the process has lived for some milliseconds, the launcher is not told",
    "nursery.reaped": "its wait status is taken, and not on the slate",
    "exit_file.made": "the exit record's file is there, and empty",
    "exit_file.in_place": "the exit record is there, the launcher is not told",
    # the agent's network side
    "session.hello_sent": "hello is sent",
    "session.welcomed": "the supervisor has answered, nothing is done about it",
    "session.obeying": "the supervisor asked for something, the launcher is not told",
    "session.sent": "records are sent",
}

_trap: Callable[[str], None] | None = None


def hit(name: str) -> None:
    """The process is at the point of that name."""
    if _trap is not None:
        _trap(name)


def arm(trap: Callable[[str], None] | None) -> None:
    """From now on call `trap` at every point; None disarms. For tests, from inside the process."""
    global _trap
    _trap = trap
