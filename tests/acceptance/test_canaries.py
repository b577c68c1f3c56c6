"""Two users, and a word of its own in every field that a user can fill: nothing of one is ever told to the
other (I25, S4, S40; issue: "Must show 5"). On a whole system, with real jobs, in both directions."""

import http.client
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from sirepo_jobs.frontend.routes import ROUTES, Kind, Route
from tests.acceptance.conftest import System

JOBS = "/api/v1/jobs"
#: Everything that a user can fill, and what it looks like there: `%s` is the user.
FIELDS = (
    "name", "newname", "argument", "envname", "envvalue", "tagname", "tagvalue", "queue", "stdout", "stderr",
    "filename", "dirname", "content", "progress", "message", "missing", "key", "token", "held",
)  # fmt: skip


class Person(NamedTuple):
    name: str
    token: str
    token_id: str
    #: Words by field.
    words: dict[str, str]
    #: Filled as they are made.
    jids: list[str]


class Answer(NamedTuple):
    status: int
    #: Status line, headers and body as they came.
    text: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.text.partition(b"\r\n\r\n")[2])


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    it = System(tmp_path_factory.mktemp("canaries") / "root")
    it.up()
    yield it
    it.down("--stop-agents")


def ask(system: System, token: str, method: str, path: str, body: Any = None, **headers: str) -> Answer:
    host, _, port = system.url.removeprefix("http://").rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=60)
    try:
        data = None if body is None else json.dumps(body)
        sent = {"Authorization": f"Bearer {token}", **{k.replace("_", "-"): v for k, v in headers.items()}}
        connection.request(method, path, data, sent)
        reply = connection.getresponse()
        text = b"".join(f"{name}: {value}\r\n".encode() for name, value in reply.getheaders())
        return Answer(reply.status, text + b"\r\n" + reply.read())
    finally:
        connection.close()


def person(system: System, name: str) -> Person:
    words = {field: f"canary{name}{field}" for field in FIELDS}
    root = (system.root / "token").read_text().strip()
    order = {"user": name, "name": words["token"]}
    made = ask(system, root, "POST", "/api/v1/tokens", order).json
    while ask(system, made["token"], "GET", JOBS).status != 200:
        pass  # the news is on its way
    return Person(name, made["token"], made["id"], words, [])


SCRIPT = """
echo {stdout}; echo {stderr} >&2
mkdir {dirname}; echo {content} > {dirname}/{filename}; echo {content} > {filename}
echo '{{"percent_complete": 50, "{progress}": 1}}' >> $SIREPO_JOBS_PROGRESS
exit 3
"""


def live(system: System, who: Person) -> None:
    """Use every field there is."""
    w = who.words
    spec = {
        "name": w["name"],
        "command": ["/bin/sh", "-c", SCRIPT.format(**w), w["argument"]],
        "env": {w["envname"]: w["envvalue"]},
        "tags": {w["tagname"]: w["tagvalue"]},
        "queue": w["queue"],
        "progress": "jsonl",
    }
    missing = {"command": [f"/{w['missing']}"], "name": w["message"]}
    waiting = {"command": ["/bin/true"], "name": w["held"], "limits": {"hard": "1h"}}
    big = {
        "command": ["/bin/sh", "-c", "sleep 600", w["argument"]],
        "name": w["held"],
        "tags": {w["tagname"]: "1"},
    }
    for number, each in enumerate((spec, missing, waiting, big)):
        made = ask(system, who.token, "POST", JOBS, each, Idempotency_Key=f"{w['key']}{number}")
        assert made.status == 201, made
        who.jids.append(made.json["jid"])
    for jid in who.jids[:3]:
        assert ask(system, who.token, "GET", f"{JOBS}/{jid}?wait=60s&version=1").status == 200
        version, over = 1, False
        while not over:
            job = ask(system, who.token, "GET", f"{JOBS}/{jid}?wait=60s&version={version}").json
            version, over = job["version"], job["ended_at"] is not None
    job = {"version": 0, "started_at": None}
    while job["started_at"] is None:  # the last one has its turn
        job = ask(system, who.token, "GET", f"{JOBS}/{who.jids[3]}?wait=60s&version={job['version']}").json
    changed = {"name": w["newname"], "tags": {w["tagname"]: w["tagvalue"]}}
    assert ask(system, who.token, "PATCH", f"{JOBS}/{who.jids[0]}", changed).status == 200


#: Values of query parameters, from what the other one has; what is not here is left out.
def values(of: Person, name: str) -> list[str]:
    w = of.words
    return {
        "user": [of.name],
        "name_prefix": [w["name"][:12], w["newname"]],
        "tag": [f"{w['tagname']}:{w['tagvalue']}"],
        "queue": [w["queue"]],
        "view": ["full", "minimal"],
        "fields": ["jid,name,tags,spec,situation,progress"],
        "state": ["final", "active"],
        "follow": ["1"],
        "attempt": ["1"],
        "archive": ["zip"],
        "recursive": ["0"],
    }.get(name, [])


def paths(route: Route, of: Person) -> Iterator[str]:
    """Every way to ask a route for what this person has."""
    places = {
        "jid": of.jids,
        "stream": ["stdout", "stderr"],
        "token": [of.token_id],
        "path": ["stdout", "stderr", "progress.jsonl", "exit.json", of.words["filename"],
                 of.words["dirname"], f"{of.words['dirname']}/{of.words['filename']}"],
    }  # fmt: skip
    names = re.findall(r"\{(\w+)\}", route.path)
    for chosen in itertools.product(*(places.get(name, [of.name, *of.jids]) for name in names)):
        path = route.path.format(**dict(zip(names, chosen, strict=True)))
        yield path
        for name in route.query:
            if name == "follow" and path.startswith(f"{JOBS}/{of.jids[3]}"):
                continue  # it runs for ever; whoever may follow it waits
            yield from (f"{path}?{name}={value}" for value in values(of, name))


BODIES: dict[str, Any] = {
    f"POST {JOBS}": lambda of: {"command": ["/bin/true"]},
    f"PATCH {JOBS}": lambda of: [{"jid": jid, "priority": 6} for jid in of.jids],
    f"PATCH {JOBS}/{{jid}}": lambda of: {"priority": 6},
    "POST /api/v1/tokens": lambda of: {"user": of.name},
}


def sweep(system: System, who: Person, of: Person, *, changing: bool) -> list[tuple[str, Answer]]:
    """Every request of the route table about what `of` has, with the token of `who`."""
    found = []
    for route in ROUTES:
        reads = route.method in ("GET", "HEAD")
        if route.path == "/api/v1/events" or (not reads and not changing):
            continue
        assert route.kind is not Kind.SUBMIT or route.path == JOBS
        for path in paths(route, of):
            body = BODIES.get(f"{route.method} {route.path}", lambda of: None)(of)
            headers = {"Idempotency_Key": f"{of.words['key']}0"} if route.kind is Kind.SUBMIT else {}
            found.append(
                (f"{route.method} {path}", ask(system, who.token, route.method, path, body, **headers))
            )
    return found


class Events:
    """An open stream of events."""

    def __init__(self, system: System, token: str, after: int) -> None:
        host, _, port = system.url.removeprefix("http://").rpartition(":")
        self.connection = http.client.HTTPConnection(host, int(port), timeout=60)
        self.connection.request(
            "GET", f"/api/v1/events?after={after}", headers={"Authorization": f"Bearer {token}"}
        )
        self.reply = self.connection.getresponse()

    def until(self, word: str) -> bytes:
        """Everything up to the event that has this word."""
        text = b""
        while word.encode() not in text:
            line = self.reply.readline()
            assert line
            text += line
        self.connection.close()
        return text


def test_nothing_of_one_is_told_to_the_other(system: System) -> None:
    ann, bob = person(system, "ann"), person(system, "bob")
    from_now = {who.name: Events(system, who.token, 0) for who in (ann, bob)}
    for who in (ann, bob):
        live(system, who)
    listening = {who.name: Events(system, who.token, 0) for who in (ann, bob)}

    # what they see of their own: every word, or this test would prove nothing
    for who in (ann, bob):
        own = b"".join(answer.text for _, answer in sweep(system, who, who, changing=False))
        seen = {field for field, word in who.words.items() if word.encode() in own}
        assert seen == set(FIELDS) - {"key"}

    for who, other in ((ann, bob), (bob, ann)):
        for asked, answer in sweep(system, who, other, changing=True):
            told = [field for field, word in other.words.items() if word.encode() in answer.text]
            assert told == [], (who.name, asked, told, answer)
            assert f"/users/{other.name}/".encode() not in answer.text
            assert f"-{other.name}".encode() not in answer.text.replace(other.token_id.encode(), b"")

    # whatever was tried, nothing was done
    for who in (ann, bob):
        states = [ask(system, who.token, "GET", f"{JOBS}/{jid}").json for jid in who.jids]
        assert [job["state"] for job in states] == ["error", "error", "completed", "running"]
        assert {job["priority"] for job in states} == {5}
        assert ask(system, who.token, "DELETE", f"/api/v1/tokens/{'0' * 12}").status == 404

    # streams: those that were open all the while, and those that ask for the past
    for who, other in ((ann, bob), (bob, ann)):
        last = ask(system, who.token, "POST", f"{JOBS}/{who.jids[3]}/cancel").json
        assert last["state"] in ("canceling", "canceled")
        for stream in (from_now[who.name], listening[who.name]):
            text = stream.until('"state":"canceled"')
            assert who.jids[3].encode() in text
            assert [w for w in other.words.values() if w.encode() in text] == []
            assert [jid for jid in other.jids if jid.encode() in text] == []

    # what the service says of itself: to whoever runs it, but not what is in jobs
    written = {path: path.read_text(errors="replace") for path in _logs(system)}
    assert "audit.jsonl" in {path.name for path in written}
    for path, text in written.items():
        for who in (ann, bob):
            assert [field for field, word in who.words.items() if word in text] == [], path
            assert who.token not in text
    assert {path.stat().st_mode & 0o077 for path in written if path.parent == system.root} == {0}


def _logs(system: System) -> list[Path]:
    own = [system.root.parent / f"{system.root.name}.log", system.root / "audit.jsonl"]
    return [*own, *system.root.glob("*.log"), *system.root.glob("agents/*/launcher.log")]
