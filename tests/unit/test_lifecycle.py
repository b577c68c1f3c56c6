"""The tables: every state x event, and the stories that matter (SYS-06, I8, I9, I18, I19)."""

import random
from pathlib import Path

import msgspec
import pytest

from sirepo_jobs import events as e
from sirepo_jobs.job import FINAL, HELD_BY_AGENT, JobRecord, State, Stopping
from sirepo_jobs.lifecycle import MAX_STARTS, Illegal, step
from sirepo_jobs.reasons import Reason
from sirepo_jobs.spec import JobSpec, Limits
from sirepo_jobs.transitions import AGENT_NEXT, NEXT, agent_step, chart

from .builders import AT, a_job, a_spec, an_event

S = State


def after(*happened: e.Event, job: JobRecord | None = None, spec: JobSpec | None = None):
    """The record and all effects after a story."""
    job, spec = job or a_job(), spec or a_spec()
    effects: list[e.Effect] = []
    for event in happened:
        job, done = step(job, event, spec)
        effects.extend(done)
    return job, effects


ASSIGNED = an_event(e.Assigned)
STARTED = an_event(e.Started)


@pytest.mark.parametrize("state", list(State))
@pytest.mark.parametrize("kind", e.EVENTS, ids=lambda kind: kind.__name__)
def test_every_state_and_event_does_what_the_table_says(state: State, kind: type[e.Event]) -> None:
    job = a_job(state)
    fence = {"serial": job.serial, "attempt": job.attempt} if kind.fenced else {}
    event = an_event(kind, **fence)
    if (state, kind) in NEXT:
        new, _ = step(job, event, a_spec())
        assert new.state in NEXT[state, kind] or new.state is state
        assert new is job or new.version == job.version + 1
    elif state in FINAL and kind.fenced:
        new, effects = step(job, event, a_spec())
        assert new is job
        assert [type(effect) for effect in effects] == [e.Note]
    else:
        with pytest.raises(Illegal):
            step(job, event, a_spec())


@pytest.mark.parametrize("state", sorted(FINAL))
def test_final_is_final(state: State) -> None:
    """No event changes an end, but the user's word to run again and the removal of files (I9)."""
    for kind in e.EVENTS:
        for target in NEXT.get((state, kind), ()):  # `Changed` leads nowhere
            assert kind in (e.RetryAsked, e.Purged), f"{kind.__name__} leads from {state} to {target}"


@pytest.mark.parametrize("state", sorted(HELD_BY_AGENT))
@pytest.mark.parametrize("kind", [k for k in e.EVENTS if k.fenced], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("stale", [{"serial": 1, "attempt": 2}, {"serial": 2, "attempt": 3}])
def test_a_stale_word_changes_nothing(state: State, kind: type[e.Event], stale: dict[str, int]) -> None:
    """I6: the job is at serial 2, attempt 2."""
    job = a_job(state, serial=2, attempt=2)
    new, effects = step(job, an_event(kind, **stale), a_spec())
    assert new is job
    assert [type(effect) for effect in effects] == [e.Note]


def test_a_job_runs_and_completes() -> None:
    job, effects = after(ASSIGNED, STARTED, an_event(e.Exited, stdout_bytes=3))
    assert (job.state, job.exit_code, job.attempt, job.stdout_bytes) == (S.COMPLETED, 0, 1, 3)
    assert (job.started_at, job.ended_at, job.version) == (AT + 1, AT + 1, 4)
    assert effects == [e.EndAttempt(), e.Ended()]


@pytest.mark.parametrize(
    ("exit_code", "signal", "reason"),
    [(1, None, Reason.EXIT_NONZERO), (255, None, Reason.EXIT_NONZERO), (None, 9, Reason.SIGNALED)],
)
def test_exit_and_signal_are_told_apart(exit_code: int | None, signal: int | None, reason: Reason) -> None:
    job, _ = after(ASSIGNED, STARTED, an_event(e.Exited, exit_code=exit_code, signal=signal))
    assert (job.state, job.exit_code, job.signal, job.reason) == (S.ERROR, exit_code, signal, reason)


def test_a_short_job_needs_no_started() -> None:
    job, _ = after(ASSIGNED, an_event(e.Exited, started_at=AT - 5))
    assert (job.state, job.started_at) == (S.COMPLETED, AT - 5)


def test_cancel_before_the_start_is_immediate() -> None:
    job, effects = after(an_event(e.CancelAsked))
    assert (job.state, job.reason) == (S.CANCELED, Reason.CANCELED_BY_USER)
    assert effects == [e.Dequeue(), e.Ended()]


def test_cancel_of_a_running_job_waits_for_its_processes() -> None:
    spec = a_spec(limits=Limits(grace=7.0))
    job, effects = after(ASSIGNED, STARTED, an_event(e.CancelAsked), spec=spec)
    assert (job.state, job.stopping, effects) == (S.CANCELING, Stopping.CANCEL, [e.StopAttempt(7.0)])
    job, effects = after(an_event(e.Exited, exit_code=None, signal=15, stopped=True), job=job, spec=spec)
    assert (job.state, job.reason, job.signal) == (S.CANCELED, Reason.CANCELED_BY_USER, 15)
    assert effects == [e.EndAttempt(), e.Ended()]


def test_cancel_twice_asks_once() -> None:
    _, effects = after(ASSIGNED, STARTED, an_event(e.CancelAsked), an_event(e.CancelAsked))
    assert effects == [e.StopAttempt(30.0)]


def test_a_job_that_ended_by_itself_before_the_signal_keeps_its_result() -> None:
    """I18: cancel and finish raced, and finish won."""
    job, _ = after(ASSIGNED, STARTED, an_event(e.CancelAsked), an_event(e.Exited, stopped=False))
    assert (job.state, job.exit_code, job.stopping) == (S.COMPLETED, 0, None)


def test_a_canceled_job_is_not_tried_again() -> None:
    """I19: it failed by itself after the cancel; no new attempt."""
    job, _ = after(
        ASSIGNED,
        STARTED,
        an_event(e.CancelAsked),
        an_event(e.Exited, exit_code=1),
        spec=a_spec(max_attempts=5),
    )
    assert job.state is S.ERROR


def test_the_start_may_cross_the_cancel_on_the_wire() -> None:
    job, _ = after(ASSIGNED, an_event(e.CancelAsked), STARTED)
    assert (job.state, job.started_at) == (S.CANCELING, AT + 1)


def test_a_time_limit_ends_in_canceled_with_its_reason() -> None:
    """SYS-C8: also when the program trapped TERM and exited with 0."""
    for ending in ({"exit_code": None, "signal": 15}, {"exit_code": 0, "signal": None}):
        job, _ = after(
            ASSIGNED, STARTED, an_event(e.Exited, reason=Reason.TIME_LIMIT, stopped=True, **ending)
        )
        assert (job.state, job.reason) == (S.CANCELED, Reason.TIME_LIMIT)


def test_failures_are_tried_again_as_often_as_allowed() -> None:
    spec = a_spec(max_attempts=2)
    job, effects = after(ASSIGNED, STARTED, an_event(e.Exited, exit_code=1), spec=spec)
    assert (job.state, job.failures, job.reason) == (S.PENDING, 1, Reason.RETRYING)
    assert effects == [e.EndAttempt(Reason.EXIT_NONZERO, "exited with code 1"), e.Enqueue()]
    second = {"attempt": 2}
    job, effects = after(
        ASSIGNED, an_event(e.Started, **second), an_event(e.Exited, exit_code=1, **second), job=job, spec=spec
    )
    assert (job.state, job.attempt, job.failures) == (S.ERROR, 2, 2)
    assert effects == [e.EndAttempt(), e.Ended()]


def test_an_attempt_keeps_its_own_reason_while_its_job_says_that_it_is_tried_again() -> None:
    never = an_event(e.NotStarted, reason=Reason.DISK_FULL, message="no space left")
    job, effects = after(ASSIGNED, never)
    assert (job.state, job.reason) == (S.PENDING, Reason.RETRYING)
    assert effects[0] == e.EndAttempt(Reason.DISK_FULL, "no space left")
    gone = an_event(e.DeathProven, proof="boot_changed", reason=Reason.NODE_FAILED, message="rebooted")
    job, effects = after(ASSIGNED, STARTED, gone, spec=a_spec(on_lost="requeue", lost_after=60.0))
    assert (job.state, job.reason) == (S.PENDING, Reason.RETRYING)
    assert effects[0] == e.EndAttempt(Reason.NODE_FAILED, "rebooted")


def test_a_job_that_wrote_too_much_failed_whatever_it_exits_with() -> None:
    """F053: not tried again, since it would write as much again."""
    flood = an_event(e.Exited, reason=Reason.OUTPUT_LIMIT, stopped=True, exit_code=0, message="wrote much")
    job, _ = after(ASSIGNED, STARTED, flood, spec=a_spec(max_attempts=5))
    assert (job.state, job.reason, job.exit_code) == (S.ERROR, Reason.OUTPUT_LIMIT, 0)


def test_only_the_reasons_that_the_user_named_are_tried_again() -> None:
    spec = a_spec(max_attempts=5, retry_on=[Reason.OUT_OF_MEMORY])
    job, _ = after(ASSIGNED, an_event(e.Exited, exit_code=1), spec=spec)
    assert job.state is S.ERROR
    job, _ = after(
        ASSIGNED, an_event(e.Exited, exit_code=None, signal=9, reason=Reason.OUT_OF_MEMORY), spec=spec
    )
    assert job.state is S.PENDING


def test_a_command_that_does_not_exist_is_not_tried_again() -> None:
    job, _ = after(
        ASSIGNED,
        an_event(e.Exited, exit_code=127, reason=Reason.COMMAND_NOT_FOUND),
        spec=a_spec(max_attempts=5),
    )
    assert (job.state, job.exit_code) == (S.ERROR, 127)


def test_an_attempt_that_never_began_charges_nobody_but_not_for_ever() -> None:
    job = a_job()
    for number in range(1, MAX_STARTS + 1):
        job, _ = after(ASSIGNED, an_event(e.NotStarted, attempt=number), job=job)
    assert (job.state, job.false_starts, job.failures) == (S.ERROR, MAX_STARTS, 0)
    assert job.attempt == MAX_STARTS


def test_hold_stops_a_running_job_and_release_queues_it() -> None:
    job, effects = after(
        ASSIGNED, STARTED, an_event(e.HoldAsked), an_event(e.Exited, exit_code=None, signal=15, stopped=True)
    )
    assert (job.state, job.stopping) == (S.HELD, None)
    assert effects == [e.StopAttempt(30.0), e.EndAttempt()]
    job, effects = after(an_event(e.Released), job=job)
    assert (job.state, effects) == (S.PENDING, [e.Enqueue()])


def test_cancel_is_stronger_than_hold() -> None:
    job, _ = after(
        ASSIGNED,
        STARTED,
        an_event(e.HoldAsked),
        an_event(e.CancelAsked),
        an_event(e.Exited, exit_code=None, signal=15, stopped=True),
    )
    assert job.state is S.CANCELED


def test_preemption_goes_back_to_the_queue_uncharged() -> None:
    job, effects = after(
        ASSIGNED,
        STARTED,
        an_event(e.PreemptAsked),
        an_event(e.Exited, exit_code=None, signal=15, stopped=True),
    )
    assert (job.state, job.failures, job.reason) == (S.PENDING, 0, Reason.PREEMPTED)
    assert e.Enqueue() in effects


@pytest.mark.parametrize("state", sorted(HELD_BY_AGENT - {S.LOST}))
def test_an_agent_out_of_reach_is_not_a_failure(state: State) -> None:
    """C4: lost is not final, and the attempt keeps its place."""
    job, effects = after(an_event(e.AgentLost), job=a_job(state))
    assert (job.state, job.reason, effects) == (S.LOST, Reason.AGENT_UNREACHABLE, [])


def test_a_lost_job_comes_back_as_what_it_is() -> None:
    for holds, state in (("running", S.RUNNING), ("suspended", S.SUSPENDED), ("standby", S.STARTING)):
        job, _ = after(an_event(e.AgentBack, holds=holds), job=a_job(S.LOST))
        assert job.state is state


def test_a_lost_job_ends_by_evidence() -> None:
    assert after(an_event(e.Exited), job=a_job(S.LOST))[0].state is S.COMPLETED
    job, _ = after(an_event(e.DeathProven, message="the host was restarted"), job=a_job(S.LOST))
    assert (job.state, job.exit_code, job.signal, job.proof) == (S.ERROR, None, None, "boot_changed")


def test_cancel_of_a_lost_job_is_carried_out_when_the_agent_is_back() -> None:
    """F077."""
    job, effects = after(an_event(e.CancelAsked), job=a_job(S.LOST))
    assert (job.state, job.stopping, effects) == (S.LOST, Stopping.CANCEL, [])
    job, effects = after(an_event(e.AgentBack), job=job)
    assert (job.state, effects) == (S.CANCELING, [e.StopAttempt(30.0)])


def test_a_retry_is_a_new_run_with_the_next_attempt_number() -> None:
    job = a_job(S.ERROR, exit_code=3, failures=1)
    job, effects = after(an_event(e.RetryAsked), job=job)
    assert (job.state, job.serial, job.attempt, job.exit_code, job.failures) == (S.PENDING, 2, 1, None, 0)
    assert effects == [e.Enqueue()]
    job, _ = after(ASSIGNED, job=job)
    assert job.attempt == 2


@pytest.mark.parametrize("state", list(S))
def test_a_change_moves_nothing_but_a_place_in_the_queue(state: State) -> None:
    job, effects = after(an_event(e.Changed, changes={"priority": 7, "tags": {"a": "b"}}), job=a_job(state))
    assert (job.state, job.version) == (state, 2)
    assert effects == ([] if state in HELD_BY_AGENT else [e.Requeue()])
    if state in HELD_BY_AGENT:
        with pytest.raises(Illegal, match="limits of job J1"):
            step(a_job(state), an_event(e.Changed, changes={"limits": {"soft": 1.0}}), a_spec())


def test_ten_thousand_random_stories_keep_the_invariants() -> None:
    """Seeded: final is final, attempts rise by one, versions rise, a stop is not forgotten."""
    rng = random.Random(20261121)
    spec = a_spec(max_attempts=3)
    for _ in range(10_000):
        job = a_job(rng.choice([S.PENDING, S.INACTIVE]))
        for _ in range(rng.randrange(1, 25)):
            kind = rng.choice(e.EVENTS)
            changes = (
                {"serial": job.serial, "attempt": job.attempt - rng.choice([0, 0, 0, 1])}
                if kind.fenced
                else {}
            )
            if kind is e.Exited:
                changes |= rng.choice(
                    [
                        {"exit_code": 0},
                        {"exit_code": 1},
                        {"exit_code": None, "signal": 9},
                        {"exit_code": 0, "stopped": True},
                    ]
                )
            try:
                new, effects = step(job, an_event(kind, **changes), spec)
            except Illegal:
                continue
            assert new.version == job.version + (new is not job)
            assert new.attempt - job.attempt == (kind is e.Assigned)
            assert new.exit_code is None or new.signal is None
            assert (e.EndAttempt in map(type, effects)) == (
                job.state in HELD_BY_AGENT and new.state not in HELD_BY_AGENT
            )
            if job.state in FINAL:
                assert new is job or kind in (e.RetryAsked, e.Purged, e.Changed)
                assert kind is not e.Changed or msgspec.structs.replace(new, version=job.version) == job
            if job.stopping is Stopping.CANCEL and new.state not in FINAL:
                assert new.stopping is Stopping.CANCEL
            if new.state in FINAL or new.state in (S.PENDING, S.HELD):
                assert new.stopping is None
            job = new


def test_the_agents_table_ignores_what_says_nothing_new() -> None:
    for state in e.AgentState:
        for event in e.AgentEvent:
            assert agent_step(state, event) is AGENT_NEXT.get((state, event), state)


def test_every_reason_says_whose_fault_it_is() -> None:
    for reason in Reason:
        assert reason.about.fault in ("user", "system", "policy")


def test_the_chart_in_the_docs_is_the_table() -> None:
    path = Path(__file__).parents[2] / "docs" / "states.md"
    assert chart() in path.read_text(), "run: python -m tests.unit.make_chart"
