"""The life of one attempt in Slurm: what happens to it, and what is to be done about it. Pure.

`step(life, event)` returns the new record and effects; the broker does them. What a listing says ends
nothing by itself: an attempt is over when its exit record is there, or when nobody but us can have its
claim any more (it never begins), or when Slurm itself, asked for that one job, says that it has ended or
that it knows no such job, no process of it has given a sign of life since, and the record had time to
appear (C4, C5, F119..F125).

Instants are seconds of the agent's monotonic clock, but for `*_at` in effects, which are for people.
"""

from enum import StrEnum
from typing import Any, NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from sirepo_jobs.agents import slurm_end
from sirepo_jobs.agents.words import Over
from sirepo_jobs.reasons import Reason
from sirepo_jobs.slurm_states import Stage, meaning, wait
from sirepo_jobs.slurm_text import Forgotten, Record, Row

#: A vanished or ended job is asked for again after so long, while its record may still appear.
ASK_AGAIN_SECS = 5.0
#: scancel is repeated so often until a listing shows that it worked.
CANCEL_AGAIN_SECS = 10.0
#: After scancel of one that has not begun, so long until it is asked for.
CONFIRM_SECS = 1.0
#: Without a sign of life for so long it may be dead: three beats (`slurm_files.BEATS_SECS`).
QUIET_SECS = 15.0
#: Slurm says so long that it runs, and nothing of it has begun: people are told. It proves nothing.
SILENT_SECS = 300.0


class Phase(StrEnum):
    """Where an attempt is."""

    #: Not accepted by Slurm yet, as far as we know; its batch has a life of its own.
    UNSENT = "unsent"
    QUEUED = "queued"
    #: Its claim is taken by its Slurm job: it has begun.
    RUNNING = "running"
    #: Something says that it is over, and the proof is being looked for.
    DOUBTFUL = "doubtful"
    OVER = "over"


class Life(Struct, frozen=True, kw_only=True):
    """What is known."""

    phase: Phase = Phase.UNSENT
    #: As scancel takes it; "" before Slurm accepted it.
    slurm_id: str = ""
    #: Grace of a cancel that was asked for.
    stopping: float | None = None
    #: A limit on settling: how long a record may take to appear on this file system.
    settle_secs: float = 60.0
    #: Instant of the start, microseconds, from the claim.
    began_at: int | None = None
    #: When doubt began; None without any.
    doubt_since: float | None = None
    #: What Slurm said when asked about this one job; None = nothing yet.
    verdict: Record | Forgotten | None = None
    asked_at: float | None = None
    #: Since when Slurm has said that it runs while its claim is free.
    silent_since: float | None = None
    #: When the processes of the attempt last gave a sign of life.
    beat_at: float | None = None
    cancel_sent_at: float | None = None
    cancel_first_at: float | None = None
    #: The claim is ours: it never begins.
    withdrawn: bool = False
    #: Slurm's own words, after it refused the submission.
    refusal: str = ""
    #: Our own, with the reason, when it was not even submitted.
    reason: Reason | None = None
    #: State and reason as last listed, so that what is known is not told again.
    told: tuple[str, ...] = ()


# --- what happens ---------------------------------------------------------------------------------


class Accepted(NamedTuple):
    """Slurm has it, under this id."""

    now: float
    slurm_id: str


class Rejected(NamedTuple):
    """Slurm does not take it, or we do not ask."""

    now: float
    reason: Reason
    text: str


class Listed(NamedTuple):
    """A listing has it."""

    now: float
    row: Row


class Missing(NamedTuple):
    """A sound listing, asked for after it was accepted, does not have it."""

    now: float


class Told(NamedTuple):
    """Slurm was asked for this one job, and has answered."""

    now: float
    answer: Record | Forgotten


class Begun(NamedTuple):
    """Its claim was taken by this Slurm job."""

    now: float
    slurm_id: str
    at: int


class Beat(NamedTuple):
    """Its processes gave a sign of life since we last looked."""

    now: float


class Recorded(NamedTuple):
    """Its exit record is there."""

    now: float
    over: Over


class CancelAsked(NamedTuple):
    """Somebody wants it to end."""

    now: float
    grace_secs: float


class Withdrawn(NamedTuple):
    """We tried to take its claim; False: somebody has it."""

    now: float
    ours: bool


class Tick(NamedTuple):
    """Time has passed."""

    now: float


Event = (
    Accepted | Rejected | Listed | Missing | Told | Begun | Beat | Recorded | CancelAsked | Withdrawn | Tick
)


# --- what is to be done ---------------------------------------------------------------------------


class Ask(NamedTuple):
    """Ask Slurm for this one job, and the accounting too if it knows nothing."""

    slurm_id: str


class Look(NamedTuple):
    """Look into the run dir for claim, record and signs of life."""


class Withdraw(NamedTuple):
    """Take the claim, so that it never begins."""


class Cancel(NamedTuple):
    """scancel: with `gently` only TERM to the batch script, which keeps the grace itself."""

    slurm_id: str
    gently: bool


class Start(NamedTuple):
    """Tell that it has begun."""

    at: int


class Say(NamedTuple):
    """Tell where it stands."""

    row: Row


class Finish(NamedTuple):
    """Tell that it is over. `fields` as in `words.Over`."""

    fields: dict[str, Any]


class Deliver(NamedTuple):
    """Tell that it is over, as its record says."""

    over: Over


Effect = Ask | Look | Withdraw | Cancel | Start | Say | Finish | Deliver
Step = tuple[Life, list[Effect]]


def step(life: Life, event: Event) -> Step:
    """What `event` makes of an attempt, and what follows."""
    if life.phase is Phase.OVER:
        return life, []
    match event:
        case Recorded(over=over):
            return replace(life, phase=Phase.OVER), [Deliver(over)]
        case Begun():
            return _begun(life, event)
        case Accepted(slurm_id=slurm_id):
            return _accepted(life, slurm_id)
        case Rejected(reason=reason, text=text):
            return _withdrawing(replace(life, refusal=text, reason=reason))
        case CancelAsked(now=now, grace_secs=grace):
            return _cancel_asked(life, now, grace)
        case Withdrawn(now=now, ours=ours):
            return _withdrawn(life, now, ours=ours)
        case Listed():
            return _listed(life, event)
        case Missing(now=now):
            return _doubt(life, now)
        case Told(now=now, answer=answer):
            return _told(life, now, answer)
        case Beat(now=now):
            return replace(life, beat_at=now), []
        case Tick(now=now):
            return _tick(life, now)


def _begun(life: Life, event: Begun) -> Step:
    if life.phase is Phase.RUNNING or (life.phase is Phase.DOUBTFUL and life.began_at is not None):
        return life, []
    phase = life.phase if life.phase is Phase.DOUBTFUL else Phase.RUNNING
    new = replace(
        life,
        phase=phase,
        slurm_id=event.slurm_id,
        began_at=event.at,
        beat_at=event.now,
        # a refusal that was none, and a claim that was not ours after all
        withdrawn=False,
        refusal="",
        reason=None,
    )
    effects: list[Effect] = [Start(event.at)]
    if life.slurm_id and life.slurm_id != event.slurm_id:
        effects.append(Cancel(life.slurm_id, gently=False))  # a second copy that found the claim taken
    if new.stopping is not None:
        effects.append(Cancel(event.slurm_id, gently=True))
        new = replace(new, cancel_sent_at=event.now, cancel_first_at=event.now)
    return new, effects


def _accepted(life: Life, slurm_id: str) -> Step:
    if life.phase is not Phase.UNSENT:
        return life, []
    new = replace(life, phase=Phase.QUEUED, slurm_id=slurm_id)
    if life.stopping is not None or life.withdrawn:
        return new, [Cancel(slurm_id, gently=False)]
    return new, []


def _cancel_asked(life: Life, now: float, grace_secs: float) -> Step:
    grace = grace_secs if life.stopping is None else min(life.stopping, grace_secs)
    first = life.stopping is None
    new = replace(life, stopping=grace)
    if life.began_at is not None:
        if first or grace < (life.stopping or 0.0):
            new = replace(new, cancel_sent_at=now, cancel_first_at=now)
            return new, [Cancel(life.slurm_id, gently=True)]
        return new, []
    return _withdrawing(new)


def _withdrawing(life: Life) -> Step:
    """Whatever Slurm does with it: first see to it that it does not begin any more."""
    return life, [Look(), Withdraw()]


def _withdrawn(life: Life, now: float, *, ours: bool) -> Step:
    if not ours:
        # it has begun, or begins: what the run dir says comes with the next look
        return life, [Look()]
    new = replace(life, withdrawn=True)
    if life.phase is Phase.UNSENT:
        return _never(new)
    if life.phase is Phase.DOUBTFUL and life.verdict is not None:
        return _never(new)
    if life.stopping is not None:
        return replace(new, cancel_sent_at=now), [Cancel(life.slurm_id, gently=False)]
    return new, []


def _never(life: Life) -> Step:
    """The claim is ours: it has not begun and never will."""
    fields = slurm_end.unbegun(life.verdict, life.reason, life.refusal, canceled=life.stopping is not None)
    return replace(life, phase=Phase.OVER), [Finish(fields)]


def _listed(life: Life, event: Listed) -> Step:
    row, now = event.row, event.now
    effects: list[Effect] = []
    if not life.slurm_id or life.phase is Phase.UNSENT:
        life, effects = _accepted(life, row.slurm_id)
    if row.slurm_id != life.slurm_id:
        return _stray(life, row, effects)
    stage = meaning(row.state).stage
    if stage is Stage.ENDED:
        life, more = _doubt(life, now)
        return life, effects + more
    if stage is Stage.UNKNOWN:
        return life, effects
    if life.phase is Phase.DOUBTFUL and life.verdict is None:
        phase = Phase.RUNNING if life.began_at is not None else Phase.QUEUED
        life = replace(life, phase=phase, doubt_since=None, asked_at=None)
    if stage is not Stage.WAITING and life.began_at is None:
        effects.append(Look())
    life = _silence(life, now, runs=stage is Stage.RUNNING)
    told = _summary(row, silent_secs(life, now) >= SILENT_SECS)
    if told != life.told and life.phase is not Phase.DOUBTFUL:
        life = replace(life, told=told)
        effects.append(Say(row))
    return _press(life, now, stage, effects)


def _silence(life: Life, now: float, *, runs: bool) -> Life:
    if not runs or life.began_at is not None:
        return life if life.silent_since is None else replace(life, silent_since=None)
    return life if life.silent_since is not None else replace(life, silent_since=now)


def silent_secs(life: Life, now: float) -> float:
    """How long Slurm has said that it runs, as far as we know, while nothing of it has begun."""
    return 0.0 if life.silent_since is None else now - life.silent_since


def _summary(row: Row, silent: bool) -> tuple[str, ...]:
    return (
        "silent" if silent else "",
        row.slurm_id,
        row.state,
        row.reason if wait(row.reason).text or row.reason else "",
        str(row.starts_at),
    )


def _stray(life: Life, row: Row, effects: list[Effect]) -> Step:
    """A second Slurm job of the same token: the claim makes it harmless, scancel makes it go."""
    if meaning(row.state).stage is Stage.WAITING:
        effects.append(Cancel(row.slurm_id, gently=False))
    elif meaning(row.state).stage is not Stage.ENDED and life.began_at is None:
        effects.append(Look())  # it may be the one that has the claim
    return life, effects


def _press(life: Life, now: float, stage: Stage, effects: list[Effect]) -> Step:
    """Somebody wants it to end, and it is still there."""
    if (life.stopping is None and not life.withdrawn) or not life.slurm_id:
        return life, effects
    sent = life.cancel_sent_at
    if sent is not None and now < sent + CANCEL_AGAIN_SECS:
        return life, effects
    gently = (
        stage is Stage.RUNNING
        and life.began_at is not None
        and life.stopping is not None
        and (life.cancel_first_at is None or now < life.cancel_first_at + life.stopping + CANCEL_AGAIN_SECS)
    )
    first = now if life.cancel_first_at is None else life.cancel_first_at
    life = replace(life, cancel_sent_at=now, cancel_first_at=first)
    return life, [*effects, Cancel(life.slurm_id, gently=gently)]


def _doubt(life: Life, now: float) -> Step:
    """A listing says that it is over, or does not have it."""
    if life.phase in (Phase.UNSENT, Phase.OVER):
        return life, []
    if life.phase is not Phase.DOUBTFUL:
        life = replace(life, phase=Phase.DOUBTFUL, doubt_since=now, verdict=None)
    elif life.verdict is not None or (life.asked_at is not None and now < life.asked_at + ASK_AGAIN_SECS):
        return life, [Look()]
    return replace(life, asked_at=now), [Look(), Ask(life.slurm_id)]


def _told(life: Life, now: float, answer: Record | Forgotten) -> Step:
    if life.withdrawn and (isinstance(answer, Forgotten) or answer.ended):
        return _never(replace(life, verdict=answer))
    if life.phase is not Phase.DOUBTFUL:
        return life, []
    if isinstance(answer, Record) and not answer.ended:
        # it lives: the listing was wrong, or is from another moment
        phase = Phase.RUNNING if life.began_at is not None else Phase.QUEUED
        return replace(life, phase=phase, doubt_since=None, verdict=None), []
    return _judge(replace(life, verdict=answer), now)


def _tick(life: Life, now: float) -> Step:
    if life.withdrawn and life.phase is Phase.QUEUED and life.cancel_sent_at is not None:
        # scancel took it; whether it is gone shall not wait for the next listing
        due = life.cancel_sent_at + CONFIRM_SECS
        if life.asked_at is not None:
            due = max(due, life.asked_at + ASK_AGAIN_SECS)
        if now >= due:
            return replace(life, asked_at=now), [Ask(life.slurm_id)]
    if life.phase is not Phase.DOUBTFUL:
        return life, []
    if life.verdict is not None:
        return _judge(life, now)
    if life.asked_at is None or now >= life.asked_at + ASK_AGAIN_SECS:
        return replace(life, asked_at=now), [Look(), Ask(life.slurm_id)]
    return life, []


def _judge(life: Life, now: float) -> Step:
    """Slurm's own word is there: it has ended, or is not known. Is there anything against it?"""
    if life.began_at is None:
        # whoever gets the claim decides: we, and it never begins; or it has begun, and the look tells
        return life, [Look(), Withdraw()]
    settled = (now if life.doubt_since is None else life.doubt_since) + life.settle_secs
    quiet = (life.beat_at or 0.0) + max(life.settle_secs, QUIET_SECS)
    if now < max(settled, quiet):
        return life, [Look()]
    fields = slurm_end.unrecorded(
        life.verdict, life.slurm_id, life.began_at, canceled=life.stopping is not None
    )
    return replace(life, phase=Phase.OVER), [Finish(fields)]
