"""One submission: attempts that ask for the same, given to Slurm by one sbatch. Pure.

A batch is written down before sbatch is run. When the answer is lost, or says neither yes nor no, the
batch is `UNSURE`: its token is looked for in listings, claims and accounts, and only when a sound answer,
asked for long enough after sbatch was gone, does not know it, is it submitted again (F118). Should the
first one turn up after all, its claims are taken: no payload runs twice.
"""

from enum import StrEnum

from msgspec import Struct
from msgspec.structs import replace

from sirepo_jobs.slurm_text import Accepted, Answer, Refused, Unclear

#: Slurm may take so long until it knows of what sbatch sent before it ended (MessageTimeout and a margin).
SETTLE_SECS = 15.0
#: Pauses after the n-th trouble; the last one for ever.
PAUSES_SECS = (1.0, 5.0, 15.0, 60.0)


class Phase(StrEnum):
    """Where a batch is."""

    #: To be submitted when it is due.
    WAITING = "waiting"
    #: sbatch runs.
    ASKED = "asked"
    #: It may be in Slurm's hands.
    UNSURE = "unsure"
    ACCEPTED = "accepted"
    REFUSED = "refused"


class Batch(Struct, frozen=True, kw_only=True):
    """What is known of one."""

    phase: Phase = Phase.WAITING
    slurm_id: str = ""
    #: Slurm's own words, of a refusal or of trouble.
    said: str = ""
    #: Not before this instant of the monotonic clock.
    due: float = 0.0
    #: When sbatch was surely gone.
    unsure_since: float | None = None
    troubles: int = 0
    #: sbatch was run so often.
    tries: int = 0


def asked(batch: Batch) -> Batch:
    """sbatch is run now."""
    return replace(batch, phase=Phase.ASKED, tries=batch.tries + 1)


def answered(batch: Batch, answer: Answer, now: float, *, others: bool) -> Batch:
    """sbatch has ended. `others`: jobs of ours are in Slurm, so a limit on their number may pass."""
    if batch.phase is not Phase.ASKED:
        return batch  # found meanwhile
    match answer:
        case Accepted(slurm_id=slurm_id):
            return replace(batch, phase=Phase.ACCEPTED, slurm_id=slurm_id, said="", troubles=0)
        case Refused(text=text, may_pass=may_pass):
            if may_pass and others:
                return _later(replace(batch, phase=Phase.WAITING, said=text), now)
            return replace(batch, phase=Phase.REFUSED, said=text)
        case Unclear(text=text):
            return _later(replace(batch, phase=Phase.UNSURE, said=text, unsure_since=now), now)


def found(batch: Batch, slurm_id: str) -> Batch:
    """Its token stands in a listing, a claim or an account."""
    if batch.phase in (Phase.ACCEPTED, Phase.REFUSED):
        return batch
    return replace(batch, phase=Phase.ACCEPTED, slurm_id=slurm_id, said="")


def unknown(batch: Batch, asked_at: float, settle_secs: float = SETTLE_SECS) -> Batch:
    """A sound answer does not know its token; `asked_at` is when that question was put."""
    if batch.phase is not Phase.UNSURE or batch.unsure_since is None:
        return batch
    if asked_at < batch.unsure_since + settle_secs:
        return batch
    return replace(batch, phase=Phase.WAITING, unsure_since=None)


def postponed(batch: Batch, why: str, now: float) -> Batch:
    """sbatch could not be run: later."""
    return _later(replace(batch, phase=Phase.WAITING, said=why, tries=max(batch.tries - 1, 0)), now)


def _later(batch: Batch, now: float) -> Batch:
    pause = PAUSES_SECS[min(batch.troubles, len(PAUSES_SECS) - 1)]
    return replace(batch, due=now + pause, troubles=batch.troubles + 1)
