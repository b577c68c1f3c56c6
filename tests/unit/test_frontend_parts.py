"""The parts of the front end that are plain functions: routes, queries, tokens, responses, files."""

import os
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sirepo_jobs import rootdir
from sirepo_jobs.errors import BadInput, Conflict, Forbidden, NotFound, RemoteError, Unauthorized
from sirepo_jobs.frontend import auth, query
from sirepo_jobs.frontend.auth import Principal, Scope, Tokens
from sirepo_jobs.frontend.problems import MethodNotAllowed
from sirepo_jobs.frontend.response import ResponseReader
from sirepo_jobs.frontend.routes import ROUTES, Kind, Table

TOKEN = "t" * 43


# --- routes ---------------------------------------------------------------------------------------


def test_routes_open_to_everybody_are_listed_here() -> None:
    # S1: a route that needs no token is a decision, and this is where it is written down.
    assert {(route.method, route.path) for route in ROUTES if route.scope is None} == {
        ("GET", "/healthz"),
        ("GET", "/readyz"),
    }


def test_each_route_is_found_by_its_own_path() -> None:
    table = Table()
    for route in ROUTES:
        path = route.path.replace("{jid}", "01JABC").replace("{stream}", "stderr")
        path = path.replace("{token}", "0" * 12).replace("{cluster}", "dev").replace("{login}", "x_-")
        path = path.replace("{agent}", "local-ann")
        assert table.find(route.method, path) is route


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/api/v1/jobs/",
        "/api/v1/job",
        "/api/v1//jobs",
        "/api/v1/jobs/..",
        "/api/v1/jobs/%2e%2e",
        "/api/v1/jobs/a/logs/stdin",
        "/api/v1/jobs/a b",
        "/api/v1/jobs/a\u00e9",
        "/api/v1/jobs/" + "a" * 101,
        "/healthz/../api/v1/jobs",
        "http://x/api/v1/jobs",
    ],
)
def test_other_paths_do_not_exist(path: str) -> None:
    with pytest.raises(NotFound):
        Table().find("GET", path)


def test_a_wrong_method_hears_of_the_right_ones() -> None:
    with pytest.raises(MethodNotAllowed) as caught:
        Table().find("DELETE", "/api/v1/jobs")
    assert caught.value.allow == "POST, GET, PATCH"


def test_streams_are_the_routes_that_last() -> None:
    assert {route.path for route in ROUTES if route.kind is Kind.STREAM} == {
        "/api/v1/jobs/{jid}/logs/{stream}",
        "/api/v1/events",
    }


# --- queries --------------------------------------------------------------------------------------

KNOWN = {"state": query.STATE, "wait": query.WAIT, "version": query.VERSION, "follow": query.FOLLOW}


@pytest.mark.parametrize(
    ("raw", "found"),
    [
        ("", {}),
        ("state=", {}),
        ("state=Cancelled&state=error", {"state": "canceled,error"}),
        ("state=active,completed", {"state": "active,completed"}),
        ("wait=1m&version=007", {"wait": "60s", "version": "7"}),
        ("wait=10h", {"wait": "300s"}),
        ("follow=True", {"follow": "1"}),
    ],
)
def test_queries_become_canonical(raw: str, found: dict[str, str]) -> None:
    assert query.canonical(raw, KNOWN) == found


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        ("stat=x", "did you mean 'state'"),
        ("state=runing", "did you mean running"),
        ("version=-1", "whole number"),
        ("version=1&version=2", "twice"),
        ("version=\u0661", "whole number"),
        ("wait=forever", "duration"),
        ("follow=maybe", "neither 1 nor 0"),
        ("state=%ff", "not UTF-8"),
        ("&".join(["state=error"] * 60), "more than 50"),
    ],
)
def test_queries_that_cannot_be_meant(raw: str, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        query.canonical(raw, KNOWN)


def test_what_is_forwarded_cannot_break_out_of_the_request_line() -> None:
    found = query.canonical("name_prefix=a%0d%0aX: y%26state=b", {"name_prefix": query.NAME_PREFIX})
    assert query.encode(found) == "?name_prefix=a%0D%0AX%3A+y%26state%3Db"


# --- tokens ---------------------------------------------------------------------------------------


def test_a_token_stands_for_its_principal() -> None:
    tokens = Tokens()
    ann = Principal("ann", frozenset({Scope.JOBS_READ}))
    tokens.add(TOKEN, ann)
    assert tokens.find(f"Bearer {TOKEN}") is ann
    assert tokens.find(f"token {TOKEN}") is ann  # JupyterHub's word
    assert ann.role == "user"
    with pytest.raises(Forbidden):
        ann.require(Scope.JOBS_SUBMIT)


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer x", f"Basic {TOKEN}", TOKEN, f"Bearer {TOKEN}x"]
)
def test_anything_else_stands_for_nobody(header: str | None) -> None:
    tokens = Tokens()
    tokens.add(TOKEN, auth.starter())
    with pytest.raises(Unauthorized) as caught:
        tokens.find(header)
    assert TOKEN not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "safe"),
    [("ann", "ann"), ("CORP\\ann b", "CORP-ann-b"), ("..", None), ("../../x", "x"), ("", None)],
)
def test_user_names_are_safe_as_directories(
    monkeypatch: pytest.MonkeyPatch, name: str, safe: str | None
) -> None:
    monkeypatch.setattr(auth.getpass, "getuser", lambda: name)
    assert auth.user_name() == (safe or f"uid{os.getuid()}")


# --- responses ------------------------------------------------------------------------------------

LENGTH = b"HTTP/1.1 200 OK\r\nContent-Length: 11\r\nX-Attempt:  2\r\n\r\nhello world"
CHUNKED = (
    b"HTTP/1.1 100 Continue\r\n\r\n"
    b"HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"5;x=y\r\nhello\r\n6\r\n world\r\n0\r\nTrailer: x\r\n\r\n"
)


@given(st.sampled_from([LENGTH, CHUNKED]), st.lists(st.integers(0, 120), max_size=8))
def test_a_response_reads_the_same_however_it_is_cut(response: bytes, cuts: list[int]) -> None:
    reader = ResponseReader()
    edges = sorted({0, len(response), *(cut for cut in cuts if cut < len(response))})
    body = b"".join(reader.feed(response[a:b]) for a, b in pairwise(edges))
    assert (body, reader.done, reader.reusable) == (b"hello world", True, True)
    assert reader.status == (200 if response is LENGTH else 201)


def test_a_response_that_is_not_over_is_not_done() -> None:
    for response in (LENGTH, CHUNKED):
        reader = ResponseReader()
        reader.feed(response[:-1])
        reader.close()
        assert not reader.done


def test_a_body_without_an_end_ends_with_the_connection() -> None:
    reader = ResponseReader()
    assert reader.feed(b"HTTP/1.0 200 OK\r\n\r\nab") + reader.feed(b"c") == b"abc"
    assert not reader.done
    reader.close()
    assert reader.done


def test_bytes_after_the_end_spoil_the_connection() -> None:
    reader = ResponseReader()
    assert reader.feed(LENGTH + b"HTTP/1.1 200 OK") == b"hello world"
    assert reader.done
    assert not reader.reusable


@pytest.mark.parametrize(
    "nonsense",
    [
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 2x0 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfive\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc",
        b"x" * 70_000,
    ],
)
def test_nonsense_is_said_to_be_nonsense(nonsense: bytes) -> None:
    with pytest.raises(RemoteError):
        ResponseReader().feed(nonsense)


# --- files of the root ----------------------------------------------------------------------------


def test_the_token_is_made_once_and_closed_to_others(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        token = rootdir.ensure_token(tmp_path)
    finally:
        os.umask(before)
    assert rootdir.ensure_token(tmp_path) == token
    assert len(token) == 43
    assert (tmp_path / "token").stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["token"]


def test_a_token_that_others_can_read_is_refused(tmp_path: Path) -> None:
    token = rootdir.ensure_token(tmp_path)
    (tmp_path / "token").chmod(0o640)
    with pytest.raises(BadInput, match="chmod 600") as caught:
        rootdir.ensure_token(tmp_path)
    assert token not in str(caught.value)


def test_a_pid_file_says_who_lives(tmp_path: Path) -> None:
    path = tmp_path / "up.pid"
    assert rootdir.running_pid(path) is None
    ours = rootdir.PidFile(path)
    ours.hold()
    assert rootdir.running_pid(path) == os.getpid()
    with pytest.raises(Conflict, match=f"pid {os.getpid()}"):
        rootdir.PidFile(path).hold()
    ours.release()
    ours.release()
    assert rootdir.running_pid(path) is None
    path.write_text("1\n")  # left behind by somebody who was killed; the number means somebody else now
    assert rootdir.running_pid(path) is None
    rootdir.PidFile(path).hold()
