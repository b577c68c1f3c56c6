"""Where an attempt stands in Slurm, in words for people. Pure."""

from typing import NamedTuple

from sirepo_jobs.agents.slurm_life import SILENT_SECS
from sirepo_jobs.reasons import Reason
from sirepo_jobs.resources import format_secs
from sirepo_jobs.slurm_states import Stage, meaning, wait
from sirepo_jobs.slurm_text import Row


class Situation(NamedTuple):
    """The words, and why it waits if it does."""

    text: str
    reason: Reason | None = None
    #: It will never start as it is.
    never: bool = False


def of_row(row: Row, *, begun: bool, silent_secs: float = 0.0, shares: bool = False) -> Situation:
    """What a line of Slurm's listing means.

    `silent_secs`: how long Slurm has said so while nothing of it began; `shares`: others use the same
    allocation, one after the other.
    """
    about = meaning(row.state)
    word = ""
    if about.stage is Stage.WAITING:
        why = wait(row.reason)
        said = Situation(why.text or f"Slurm gives the reason {row.reason}", why.reason, why.never)
        if row.state != "PENDING":
            said = Situation(about.text, Reason.SCHEDULER)
        word = f" ({row.reason})" if row.reason else ""
    elif about.stage is Stage.RUNNING and not begun:
        said = Situation(_silence(row, silent_secs, shares=shares))
    else:
        said = Situation(about.text or f"Slurm says {row.state}")
    return said._replace(text=f"Slurm job {row.slurm_id} is {row.state}{word}: {said.text}")


def _silence(row: Row, secs: float, *, shares: bool) -> str:
    if shares:
        return "its allocation is there; it begins when those before it in the same allocation have ended"
    if secs < SILENT_SECS:
        return "Slurm has started it, and it has not given a sign of life yet"
    # what it is not: a proof. A slow prolog or file server looks the same.
    node = f" on {row.nodes}" if row.nodes else ""
    since = format_secs(secs // 60 * 60)
    return (
        f"Slurm says so for {since}, and nothing of it has begun{node}: perhaps no node ever launched it."
        " It is waited for until Slurm says that it is over, at its time limit at the latest;"
        " canceling it ends it now, and is safe"
    )
