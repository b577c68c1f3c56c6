"""The life of an attempt in Slurm: stories, and every order of events up to a depth (F118..F125)."""

from typing import Any

import pytest

from sirepo_jobs.agents import slurm_batch, slurm_situation
from sirepo_jobs.agents.slurm_batch import Batch
from sirepo_jobs.agents.slurm_life import (
    SILENT_SECS,
    Accepted,
    Ask,
    Beat,
    Begun,
    Cancel,
    CancelAsked,
    Deliver,
    Effect,
    Finish,
    Life,
    Listed,
    Look,
    Missing,
    Phase,
    Recorded,
    Rejected,
    Say,
    Start,
    Tick,
    Told,
    Withdraw,
    Withdrawn,
    silent_secs,
    step,
)
from sirepo_jobs.agents.words import Over
from sirepo_jobs.reasons import Reason
from sirepo_jobs.slurm_states import STATES, Stage
from sirepo_jobs.slurm_text import Accepted as Yes
from sirepo_jobs.slurm_text import Forgotten, Record, Refused, Row, Unclear

OVER = Over(ticket=1, at=5, exit_code=0, proof="exit_record")


def row(state: str = "PENDING", reason: str = "Priority", slurm_id: str = "7") -> Row:
    return Row(slurm_id, "sj-a", 0, state, reason)


def story(*events: Any, life: Life | None = None) -> tuple[Life, list[Effect]]:
    """What the last of them leads to."""
    life, effects = life or Life(), []
    for event in events:
        life, effects = step(life, event)
    return life, effects


RUNNING = (Accepted(0, "7"), Begun(1, "7", 5))


def test_from_queue_to_record() -> None:
    life, effects = story(*RUNNING)
    assert (life.phase, effects) == (Phase.RUNNING, [Start(5)])
    life, effects = step(life, Recorded(2, OVER))
    assert (life.phase, effects) == (Phase.OVER, [Deliver(OVER)])
    assert step(life, Missing(9)) == (life, [])


def test_a_record_ends_it_whatever_slurm_says() -> None:
    for before in ((), RUNNING, (*RUNNING, Missing(2)), (Accepted(0, "7"), Listed(1, row()))):
        assert story(*before, Recorded(9, OVER))[1] == [Deliver(OVER)]


def test_a_listing_that_lies_changes_nothing() -> None:
    life, effects = story(*RUNNING, Missing(10))
    assert (life.phase, effects) == (Phase.DOUBTFUL, [Look(), Ask("7")])
    for state in ("RUNNING", "COMPLETING", "PENDING"):
        back, _ = step(life, Told(11, Record("7", state)))
        assert (back.phase, back.doubt_since) == (Phase.RUNNING, None)
    back, _ = step(life, Listed(12, row("RUNNING", "None")))
    assert back.phase is Phase.RUNNING


def test_vanished_without_a_record_waits_for_it_and_for_signs_of_life() -> None:
    life, _ = story(*RUNNING, Missing(10), Told(11, Forgotten("7")))
    assert story(Tick(69), life=life) == (life, [Look()])
    alive, effects = story(Beat(60), Tick(71), life=life)
    assert effects == [Look()]
    _, effects = story(Tick(121), life=alive)
    assert isinstance(effects[0], Finish)
    assert effects[0].fields["reason"] is Reason.NODE_FAILED
    assert effects[0].fields["began"]


@pytest.mark.parametrize(
    ("state", "reason"),
    [(state, about.reason) for state, about in STATES.items() if about.stage is Stage.ENDED],
)
def test_ended_without_a_record_by_state(state: str, reason: Reason | None) -> None:
    ended = Record("7", state, exit_code=3 if state == "FAILED" else 0)
    _, effects = story(*RUNNING, Listed(10, row(state, "None")), Told(11, ended), Tick(100))
    assert isinstance(effects[0], Finish)
    said = effects[0].fields
    if state == "COMPLETED":
        assert (said["reason"], said["exit_code"]) == (Reason.AGENT_LOST, None)
    else:
        assert said["reason"] is reason
        assert said["exit_code"] == (3 if state == "FAILED" else None)
    assert state in said["message"]


def test_canceled_in_the_queue_takes_the_claim_then_tells_slurm() -> None:
    life, effects = story(Accepted(0, "7"), CancelAsked(1, 30.0))
    assert effects == [Look(), Withdraw()]
    life, effects = step(life, Withdrawn(1, True))
    assert effects == [Cancel("7", gently=False)]
    assert story(Tick(2.1), life=life)[1] == [Ask("7")]
    _, effects = story(Tick(2.1), Told(3, Record("7", "CANCELLED")), life=life)
    assert effects == [Finish({
        "reason": None, "message": "canceled before it began", "stopped": True, "began": False,
        "proof": "never_claimed",
    })]  # fmt: skip


def test_cancel_that_crosses_the_start() -> None:
    life, effects = story(Accepted(0, "7"), CancelAsked(1, 30.0), Withdrawn(1, False))
    assert effects == [Look()]
    _, effects = step(life, Begun(2, "7", 5))
    assert effects == [Start(5), Cancel("7", gently=True)]


def test_cancel_of_a_running_one_keeps_its_grace_and_then_does_not_ask() -> None:
    life, effects = story(*RUNNING, CancelAsked(10, 30.0))
    assert effects == [Cancel("7", gently=True)]
    life, effects = step(life, Listed(25, row("RUNNING", "None")))
    assert Cancel("7", gently=True) in effects
    _, effects = step(life, Listed(60, row("RUNNING", "None")))
    assert Cancel("7", gently=False) in effects


def test_a_refusal_that_was_none() -> None:
    life, effects = story(Rejected(1, Reason.SUBMIT_REJECTED, "no"))
    assert effects == [Look(), Withdraw()]
    assert story(Withdrawn(1, False), Begun(2, "7", 5), life=life)[1] == [Start(5)]
    _, effects = story(Withdrawn(1, True), life=life)
    assert isinstance(effects[0], Finish)
    assert (effects[0].fields["reason"], effects[0].fields["message"]) == (Reason.SUBMIT_REJECTED, "no")


def test_a_second_copy_is_canceled_and_the_owner_of_the_claim_counts() -> None:
    life, effects = story(Accepted(0, "7"), Listed(1, row(slurm_id="9")))
    assert effects == [Cancel("9", gently=False)]
    _, effects = step(life, Begun(2, "9", 5))
    assert effects == [Start(5), Cancel("7", gently=False)]


def test_unknown_words_are_no_news() -> None:
    life, _ = story(Accepted(0, "7"), Listed(1, row()))
    assert story(Listed(2, row("SCHROEDINGER")), life=life) == (life, [])


def test_every_order_of_events() -> None:
    """All sequences up to a depth, in a world where a claim has one owner: what must never be, is not."""
    seen: set[tuple[Any, ...]] = set()
    front: list[tuple[Life, str, float, bool]] = [(Life(settle_secs=20.0), "free", 0.0, False)]
    for _ in range(7):
        following = []
        for life, claim, now, started in front:
            for event, claim_after in _possible(life, claim, now + 11):
                new, effects = step(life, event)
                begun = started or any(isinstance(effect, Start) for effect in effects)
                _check(life, event, new, effects, claim_after, begun)
                for effect in effects:
                    if isinstance(effect, Withdraw) and claim_after != "theirs":
                        claim_after = "ours"
                key = (repr(new), claim_after, begun)
                if key not in seen:
                    seen.add(key)
                    following.append((new, claim_after, now + 11, begun))
        front = following
    assert len(seen) > 2000


def _possible(life: Life, claim: str, now: float) -> list[tuple[Any, str]]:
    events: list[tuple[Any, str]] = [
        (Listed(now, row()), claim),
        (Listed(now, row("RUNNING", "None")), claim),
        (Listed(now, row("FAILED", "None")), claim),
        (Missing(now), claim),
        (Told(now, Forgotten("7")), claim),
        (Told(now, Record("7", "CANCELLED")), claim),
        (Told(now, Record("7", "RUNNING")), claim),
        (CancelAsked(now, 5.0), claim),
        (Tick(now), claim),
    ]
    if life.phase is Phase.UNSENT:
        events += [(Accepted(now, "7"), claim), (Rejected(now, Reason.SUBMIT_REJECTED, "no"), claim)]
    if claim == "free":
        events.append((Begun(now, "7", 5), "theirs"))
    elif claim == "theirs":
        events += [(Begun(now, "7", 5), claim), (Beat(now), claim), (Withdrawn(now, False), claim)]
        events.append((Recorded(now, OVER), claim))
    else:
        events.append((Withdrawn(now, True), claim))
    return events


def _check(life: Life, event: Any, new: Life, effects: list[Effect], claim: str, begun: bool) -> None:
    ends = [effect for effect in effects if isinstance(effect, Finish | Deliver)]
    assert (new.phase is Phase.OVER) == (life.phase is Phase.OVER or bool(ends)), (life, event)
    assert len(ends) <= 1
    if life.phase is Phase.OVER:
        assert (new, effects) == (life, [])
    assert not (ends and isinstance(event, Listed | Missing | CancelAsked | Accepted | Rejected)), (
        life,
        event,
    )
    for end in ends:
        if isinstance(end, Finish) and not end.fields["began"]:
            assert claim == "ours", (life, event)
        elif isinstance(end, Finish):
            assert claim == "theirs", (life, event)
            assert new.verdict is not None
            assert event.now >= max(new.beat_at or 0.0, new.doubt_since or 0.0) + new.settle_secs
    if any(isinstance(effect, Start) for effect in effects):
        assert claim == "theirs"
        assert begun


# --- submissions ------------------------------------------------------------------------------------

B = slurm_batch.Phase


def test_a_lost_answer_is_looked_for_before_it_is_submitted_again() -> None:
    batch = slurm_batch.asked(Batch())
    batch = slurm_batch.answered(batch, Unclear("timed out"), 100.0, others=False)
    assert batch.phase is B.UNSURE
    assert slurm_batch.unknown(batch, 101.0, 15.0).phase is B.UNSURE  # asked too soon to mean anything
    again = slurm_batch.unknown(batch, 116.0, 15.0)
    assert (again.phase, again.tries) == (B.WAITING, 1)
    assert slurm_batch.found(batch, "7").phase is B.ACCEPTED


def test_found_while_sbatch_still_hangs() -> None:
    batch = slurm_batch.found(slurm_batch.asked(Batch()), "7")
    late = slurm_batch.answered(batch, Unclear("killed"), 100.0, others=False)
    assert late is batch


def test_a_limit_on_the_number_of_jobs_passes_while_there_are_some() -> None:
    batch = slurm_batch.asked(Batch())
    full = Refused("job submit limit", may_pass=True)
    assert slurm_batch.answered(batch, full, 1.0, others=True).phase is B.WAITING
    assert slurm_batch.answered(batch, full, 1.0, others=False).phase is B.REFUSED


def test_trouble_makes_pauses_grow() -> None:
    batch, pauses = Batch(), []
    for _ in range(5):
        batch = slurm_batch.answered(slurm_batch.asked(batch), Unclear("down"), 0.0, others=False)
        pauses.append(batch.due)
        batch = slurm_batch.unknown(batch, 1000.0)
    assert pauses == [1.0, 5.0, 15.0, 60.0, 60.0]
    assert slurm_batch.answered(slurm_batch.asked(batch), Yes("7"), 0.0, others=False).troubles == 0


def test_one_that_slurm_says_runs_and_that_never_begins_is_told_of_and_not_ended() -> None:
    """As after a kill -9 of slurmctld: the listing has it, no node does."""
    runs = row("RUNNING", "None")
    life, effects = story(Accepted(0, "7"), Listed(10, runs))
    assert Say(runs) in effects
    for secs in range(20, int(SILENT_SECS), 10):
        life, effects = step(life, Listed(10.0 + secs, runs))
        assert Say(runs) not in effects
    life, effects = step(life, Listed(10 + SILENT_SECS, runs))
    assert Say(runs) in effects
    silence = silent_secs(life, 10 + SILENT_SECS)
    said = slurm_situation.of_row(runs, begun=False, silent_secs=silence)
    assert "for 5m, and nothing of it has begun" in said.text
    assert not said.never
    # however long it takes
    life, effects = step(life, Listed(1e6, runs))
    assert (life.phase, [one for one in effects if isinstance(one, Finish | Deliver)]) == (Phase.QUEUED, [])
    # and when it begins after all, nothing was held against it
    life, effects = step(life, Begun(1e6 + 1, "7", 5))
    assert (life.phase, effects) == (Phase.RUNNING, [Start(5)])
    life, effects = step(life, Listed(1e6 + 2, runs))
    assert silent_secs(life, 1e6 + 2) == 0


def test_one_that_shares_an_allocation_is_not_called_silent() -> None:
    said = slurm_situation.of_row(row("RUNNING", "None"), begun=False, silent_secs=1e6, shares=True)
    assert "when those before it in the same allocation have ended" in said.text
