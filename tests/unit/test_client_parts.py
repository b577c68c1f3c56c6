"""The parts of the client that need no network: records, exit statuses, places, patience, events."""

import doctest
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sirepo_jobs import rootdir
from sirepo_jobs.client import Client, Job, exit_status, records, streams, transport
from sirepo_jobs.client.records import job_of
from sirepo_jobs.client.transport import Patience, error_of
from sirepo_jobs.client.where import find
from sirepo_jobs.errors import BadInput, Conflict, Error, NotFound, Unauthorized, Unavailable


@pytest.mark.parametrize("module", [records, streams])
def test_examples(module: Any) -> None:
    assert doctest.testmod(module).failed == 0


def test_fields_of_a_newer_server_are_kept_and_do_no_harm() -> None:
    answer = {"jid": "a", "state": "dreaming", "new": [1], "created_at": "2030-01-02T03:04:05.000006Z"}
    job = job_of(answer)
    assert (job.state, job.ended, job.raw) == ("dreaming", False, answer)
    assert job.created_at is not None
    assert job.created_at.microsecond == 6


def test_an_answer_that_is_no_job() -> None:
    with pytest.raises(Error, match="no job"):
        job_of({"hello": "world"})


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"state": "completed", "exit_code": 0}, 0),
        ({"state": "error", "exit_code": 7}, 7),
        ({"state": "error", "signal": 9}, 137),
        ({"state": "canceled", "signal": 15}, 143),
        ({"state": "error", "signal": 9, "reason": "TIME_LIMIT"}, 124),
        ({"state": "error", "exit_code": 127, "reason": "COMMAND_NOT_FOUND"}, 127),
        ({"state": "error", "reason": "COMMAND_NOT_EXECUTABLE"}, 126),
        ({"state": "canceled"}, 125),  # it never ran
        ({"state": "canceled", "exit_code": 0}, 125),  # it ended well, but as nobody wanted it
        ({"state": "error", "reason": "AGENT_LOST"}, 125),
    ],
)
def test_a_job_ends_as_a_program_would(fields: dict[str, Any], status: int) -> None:
    assert exit_status(Job(jid="a", **fields)) == status


@pytest.mark.parametrize(
    ("said", "percent"),
    [(None, None), ({}, None), ({"percent_complete": "x"}, None), ({"percent_complete": 140}, 100.0)],
)
def test_progress_is_read_with_care(said: Any, percent: float | None) -> None:
    assert Job(jid="a", state="running", progress=said).percent == percent


# --- where and with which token -------------------------------------------------------------------


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The root of a front end that listens on port 1."""
    rootdir.ensure_token(tmp_path)
    rootdir.write_listening(tmp_path, rootdir.Listening("http://127.0.0.1:1", 1))
    return tmp_path


def test_a_root_is_enough(root: Path) -> None:
    place = find(root=root, environ={})
    assert (place.url(), place.token) == ("http://127.0.0.1:1", rootdir.read_token(root / "token"))


def test_a_front_end_that_moved_is_found_again(root: Path) -> None:
    place = find(root=root, environ={})
    rootdir.write_listening(root, rootdir.Listening("http://127.0.0.1:2", 1))
    assert place.url() == "http://127.0.0.1:2"


def test_the_token_of_a_root_goes_to_nobody_else(root: Path) -> None:
    environ = {"SIREPO_JOBS_ROOT": str(root), "SIREPO_JOBS_URL": "https://elsewhere.example"}
    with pytest.raises(Unauthorized, match="which token"):
        find(environ=environ)
    assert find(environ={**environ, "SIREPO_JOBS_TOKEN": "mine"}).token == "mine"
    assert find(environ={**environ, "SIREPO_JOBS_URL": "http://127.0.0.1:1/"}).token


def test_a_root_named_on_the_spot_beats_the_environment(root: Path) -> None:
    assert find(root=root, environ={"SIREPO_JOBS_URL": "http://x"}).url() == "http://127.0.0.1:1"


def test_nothing_started_and_bad_urls_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="sirepo-jobs up"):
        find(root=tmp_path, environ={})
    with pytest.raises(BadInput, match="http://"):
        find(url="localhost:80", environ={"SIREPO_JOBS_TOKEN": "x"})


# --- errors and patience --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "kind"),
    [(401, Unauthorized), (404, NotFound), (409, Conflict), (422, BadInput), (503, Unavailable)],
)
def test_a_problem_becomes_its_error(status: int, kind: type[Error]) -> None:
    body = msgspec.json.encode(
        {"status": status, "code": "so", "detail": "do this", "pointer": "/jobs/1", "request_id": "r1"}
    )
    error = error_of(status, {"Retry-After": "2"}, body)
    assert type(error) is kind
    assert (str(error), error.code, getattr(error, "request_id", "")) == ("do this", "so", "r1")
    if isinstance(error, BadInput):
        assert error.pointer == "/jobs/1"


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'"x"', b"\xff"])
def test_strangers_answers_are_errors_too(body: bytes) -> None:
    assert isinstance(error_of(502, {}, body), Unavailable)


def test_patience_ends_and_is_refilled(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def sleep(secs: float) -> None:
        nonlocal now
        now += secs

    monkeypatch.setattr(transport.time, "sleep", sleep)
    patience = Patience(10.0, clock=lambda: now)
    away = Unavailable("away")
    for _ in range(3):
        patience.pause(away)
    assert 0 < now < 2
    patience.refill()
    began = now
    patience.pause(away, retry_after=4)
    assert now - began > 4 - 1e-6  # sums of floats
    tries = 0
    with pytest.raises(Unavailable, match="away"):  # noqa: PT012 (which of the tries is not the point)
        for tries in range(100):  # noqa: B007
            patience.pause(away)
    assert now - began == pytest.approx(10.0)
    assert 0 < tries < 20


def test_what_is_no_id_of_a_token_is_no_path() -> None:
    """`token revoke ann` was answered with "there is nothing at /api/v1/tokens/ann"."""
    client = Client("http://127.0.0.1:1", "t", patience_secs=0)
    with pytest.raises(NotFound, match="there is no token 'ann'"):
        client.revoke_token("ann")
