"""The words of `explain`: each situation in one paragraph, with its numbers (SYS-08, SIR-14)."""

import doctest
from typing import Any

import pytest

from sirepo_jobs import explain as room
from sirepo_jobs.explain import AgentFacts, Asked, Facts, QueueFacts, Tail, explain
from sirepo_jobs.job import State
from sirepo_jobs.reasons import Reason
from sirepo_jobs.resources import Resources
from sirepo_jobs.spec import Limits

from .builders import AT, a_job, a_spec

SEC = 1_000_000
KEYS = [
    "jid", "state", "version", "summary", "reason", "fault", "retryable", "situation", "hint",
    "waiting", "agent", "placement", "ending", "asked", "scheduler",
]  # fmt: skip


def facts(**changes: Any) -> Facts:
    return Facts(**{"now": AT + 90 * SEC, "name": "melt", "priority": 5, **changes})


def queue(**changes: Any) -> QueueFacts:
    base: dict[str, Any] = {
        "reason": Reason.RESOURCES,
        "text": "cpus: needs 4, 1 free",
        "resource": "cpus",
        "ahead": 0,
        "more": False,
        "need": Resources(cpus=4),
        "free": Resources(cpus=1),
        "size": Resources(cpus=8),
    }
    return QueueFacts(**{**base, **changes})


def test_the_examples_in_the_room_are_true() -> None:
    assert doctest.testmod(room).failed == 0


@pytest.mark.parametrize("state", list(State))
def test_the_keys_are_always_all_there(state: State) -> None:
    said = explain(a_job(state), a_spec(), facts(queue=queue() if state is State.PENDING else None))
    assert list(said) == KEYS
    assert said["summary"].startswith("Job melt (J1)")
    assert said["summary"].endswith(".")
    assert ".." not in said["summary"]


def test_a_job_that_lacks_cpus_says_how_many() -> None:
    said = explain(a_job(), a_spec(), facts(queue=queue()))
    assert said["summary"] == (
        "Job melt (J1) waits for 1m 30s. It needs 4 cpus; 1 cpu of 8 cpus are free now."
    )
    assert said["waiting"] == {
        "for": "cpus", "since": "1970-01-01T00:00:01.000000Z", "secs": 90.0, "position": 1,
        "position_is_exact": True, "priority": 5, "needs": {"cpus": 4, "memory": 0, "gpus": 0},
        "free": {"cpus": 1, "memory": 0, "gpus": 0}, "in_all": {"cpus": 8, "memory": 0, "gpus": 0},
        "op": None,
    }  # fmt: skip
    assert (said["reason"], said["fault"], said["retryable"]) == ("RESOURCES", "policy", True)


def test_a_job_that_waits_for_a_login_says_how_to_log_in() -> None:
    text = "cluster dev waits for you to log in: `sirepo-jobs cluster login dev`"
    there = AgentFacts(name="a", driver="sbatch", state="offline", host="", since=AT)
    waits = queue(reason=Reason.AUTH_REQUIRED, text=text, need=Resources(), resource="agent")
    said = explain(a_job(), a_spec(), facts(queue=waits, agent=there))
    assert said["summary"] == f"Job melt (J1) waits for 1m 30s. C{text[1:]}."
    assert (said["reason"], said["fault"]) == ("AUTH_REQUIRED", "user")


def test_a_job_in_line_says_its_place() -> None:
    said = explain(a_job(), a_spec(), facts(queue=queue(ahead=1, reason=Reason.PRIORITY, need=Resources())))
    assert "1 of your jobs is before it; its priority is 5." in said["summary"]
    said = explain(a_job(), a_spec(), facts(queue=queue(ahead=7, more=True)))
    assert "7 or more of your jobs are before it" in said["summary"]
    assert (said["waiting"]["position"], said["waiting"]["position_is_exact"]) == (8, False)


def test_an_agent_that_starts_says_since_when() -> None:
    agent = AgentFacts("local-ann", "local", "launching", since=AT + 88 * SEC)
    said = explain(a_job(), a_spec(), facts(queue=queue(need=Resources()), agent=agent))
    assert said["summary"] == "Job melt (J1) waits for 1m 30s. Its agent local-ann is launching since 2.0s."
    assert said["agent"]["since"] == "1970-01-01T00:01:29.000000Z"


def test_launches_that_failed_name_the_next_try() -> None:
    agent = AgentFacts(
        "local-ann", "local", "offline", failures=3, trouble="no more processes", next_try_at=AT + 95 * SEC
    )
    waits = queue(need=Resources(), reason=Reason.LAUNCH_FAILED)
    said = explain(a_job(), a_spec(), facts(queue=waits, agent=agent))
    assert "could not be started (3 times): no more processes; the next try is in 5s." in said["summary"]
    assert said["hint"] in said["summary"]
    assert (said["fault"], said["agent"]["launch_failures"]) == ("system", 3)


def test_a_second_attempt_says_why_there_was_a_first() -> None:
    job = a_job(reason=Reason.RETRYING, situation="attempt 1 failed: exited with code 3")
    said = explain(job, a_spec(), facts(queue=queue()))
    assert "It was tried before: attempt 1 failed: exited with code 3." in said["summary"]


def failed(**changes: Any) -> Any:
    state = changes.pop("state", State.ERROR)
    base = {"exit_code": 3, "reason": Reason.EXIT_NONZERO, "situation": "exited with code 3", "failures": 1}
    return a_job(state, started_at=AT, ended_at=AT + 2 * SEC, **{**base, **changes})


def test_a_failure_has_reason_exit_and_stderr() -> None:
    tail = Tail(b"".join(b"line %d\n" % i for i in range(30)), cut=True)
    said = explain(failed(), a_spec(max_attempts=3), facts(stderr=tail))
    assert said["summary"].startswith(
        "Job melt (J1) ended in state error: exited with code 3. Reason EXIT_NONZERO"
    )
    assert "1 of 3 attempts failed. Its stderr ends with: 'line 29'." in said["summary"]
    ending = said["ending"]
    assert (ending["exit_code"], ending["signal"], ending["secs"]) == (3, None, 2.0)
    assert ending["stderr"] == [f"line {i}" for i in range(10, 30)]
    assert (said["fault"], said["retryable"]) == ("user", True)


def test_a_signal_has_its_name() -> None:
    for number, name, hint in ((11, "SIGSEGV", "SIGSEGV"), (9, "SIGKILL", "memory"), (99, "signal 99", "99")):
        job = failed(exit_code=None, signal=number, reason=Reason.SIGNALED, situation="killed")
        said = explain(job, a_spec(), facts())
        assert said["ending"]["signal_name"] == name
        assert hint in said["hint"]


def test_stderr_that_cannot_be_read_is_said_so() -> None:
    said = explain(failed(), a_spec(), facts(stderr=Tail(error="its agent is away")))
    assert said["ending"]["stderr_error"] == "its agent is away"
    assert "Its stderr cannot be read now: its agent is away." in said["summary"]


def test_who_ended_it_is_named() -> None:
    job = failed(
        state=State.CANCELED,
        exit_code=None,
        signal=15,
        reason=Reason.CANCELED_BY_ADMIN,
        situation="canceled by root",
    )
    said = explain(job, a_spec(), facts(asked=Asked("cancel", "root", AT + SEC)))
    assert "root asked to cancel it 1m 29s ago." in said["summary"]
    assert said["asked"] == {"what": "cancel", "by": "root", "at": "1970-01-01T00:00:02.000000Z"}


def test_a_limit_is_named() -> None:
    job = failed(
        state=State.CANCELED, reason=Reason.TIME_LIMIT, situation="ran longer than its time limit of 2s"
    )
    said = explain(job, a_spec(limits=Limits(soft=2.0, hard=9.0)), facts())
    assert said["ending"]["limit"] == {"kind": "soft", "secs": 2.0}
    assert "longer limit" in said["hint"]


def test_a_running_job_says_where_and_how_long_it_may() -> None:
    agent = AgentFacts("local-ann", "local", "online", host="n1")
    said = explain(a_job(State.RUNNING), a_spec(limits=Limits(soft=120.0)), facts(agent=agent))
    assert said["summary"] == (
        "Job melt (J1) is running. It has run for 1m 30s at agent local-ann on n1, attempt 1. "
        "Its time limit of 2m ends it in 30s."
    )
    assert said["placement"]["host"] == "n1"


def test_what_is_lost_is_not_called_failed() -> None:
    job = a_job(State.LOST, reason=Reason.AGENT_UNREACHABLE, situation="agent local-ann is out of reach")
    assert "It may well be running" in explain(job, a_spec(), facts())["summary"]
