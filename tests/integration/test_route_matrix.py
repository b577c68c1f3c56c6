"""Every route by every method by everybody who may knock (S1, S2, S4, S10, I25).

A new route needs a row in `EXPECTED`; without one these tests fail.
"""

import asyncio
import hmac
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from sirepo_jobs.frontend.routes import ROUTES, Kind, Route
from sirepo_jobs.tokens import Role, Scope
from tests.service_stage import SECRET, Service, service_of

JOBS = "/api/v1/jobs"
CANARY = "canary-of-ann"
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
#: Tokens that open nothing: they must fare as no token does.
SHUT_OUT = ("expired", "revoked", "agent")


class Row(NamedTuple):
    """Statuses. The object, where there is one, is ann's; `reader` is a read-only token of ann's."""

    nobody: int
    ann: int
    bob: int
    reader: int
    admin: int


OPEN = Row(200, 200, 200, 200, 200)
#: Everybody gets an answer about what is theirs.
LIST = Row(401, 200, 200, 200, 200)
#: To look at an object.
LOOK = Row(401, 200, 404, 200, 200)
#: To change an object.
CHANGE = Row(401, 200, 404, 403, 200)
#: To change an object that is not there.
NOWHERE = Row(401, 404, 404, 403, 404)
#: What operators alone may do.
OPERATE = Row(401, 403, 403, 403, 200)

EXPECTED: dict[str, Row] = {
    "GET /healthz": OPEN,
    "GET /readyz": OPEN,
    "GET /openapi.json": LIST,
    "GET /metrics": Row(401, 403, 403, 403, 200),
    f"POST {JOBS}": Row(401, 201, 201, 403, 201),
    f"GET {JOBS}": LIST,
    f"PATCH {JOBS}": LIST._replace(reader=403),
    f"GET {JOBS}/{{jid}}": LOOK,
    f"PATCH {JOBS}/{{jid}}": CHANGE,
    f"GET {JOBS}/{{jid}}/attempts": LOOK,
    f"GET {JOBS}/{{jid}}/events": LOOK,
    f"GET {JOBS}/{{jid}}/logs/{{stream}}": LOOK,
    f"GET {JOBS}/{{jid}}/explain": LOOK,
    f"GET {JOBS}/{{jid}}/files": LOOK,
    f"HEAD {JOBS}/{{jid}}/files": LOOK,
    # it could not be started: nothing lies there
    f"GET {JOBS}/{{jid}}/files/{{path}}": Row(401, 404, 404, 404, 404),
    f"HEAD {JOBS}/{{jid}}/files/{{path}}": Row(401, 404, 404, 404, 404),
    f"POST {JOBS}/{{jid}}/cancel": CHANGE,
    f"POST {JOBS}/{{jid}}/hold": CHANGE,
    f"POST {JOBS}/{{jid}}/release": CHANGE,
    f"POST {JOBS}/{{jid}}/retry": CHANGE,
    f"POST {JOBS}/{{jid}}/suspend": CHANGE,
    f"POST {JOBS}/{{jid}}/resume": CHANGE,
    f"POST {JOBS}/{{jid}}/declare-lost": OPERATE,
    "GET /api/v1/agents": LIST,
    "POST /api/v1/agents/{agent}/drain": CHANGE,
    "POST /api/v1/agents/{agent}/stop": CHANGE,
    "POST /api/v1/agents/{agent}/declare-gone": OPERATE,
    "GET /api/v1/events": LIST,
    "GET /api/v1/clusters": LIST,
    # there are no clusters here
    "GET /api/v1/clusters/{cluster}": Row(401, 404, 404, 404, 404),
    "POST /api/v1/clusters/{cluster}/login": NOWHERE,
    "POST /api/v1/clusters/{cluster}/login/{login}": NOWHERE,
    "DELETE /api/v1/clusters/{cluster}/login": NOWHERE,
    "POST /api/v1/clusters/{cluster}/check": NOWHERE,
    "POST /api/v1/tokens": Row(401, 403, 403, 403, 201),
    "GET /api/v1/tokens": LIST,
    "DELETE /api/v1/tokens/{token}": CHANGE,
}
BODIES: dict[str, Any] = {
    f"POST {JOBS}": {"command": ["true"]},
    # the result of each says what became of it
    f"PATCH {JOBS}": [{"jid": "J1", "priority": 7}],
    f"PATCH {JOBS}/{{jid}}": {"priority": 7},
    "POST /api/v1/tokens": {"user": "eve"},
    "POST /api/v1/clusters/{cluster}/login": {},
    "POST /api/v1/clusters/{cluster}/login/{login}": {"answers": []},
}


class Village(NamedTuple):
    service: Service
    jid: str
    #: Of ann's; nobody here comes with it.
    token_id: str
    tokens: dict[str, str]

    def path(self, route: Route) -> str:
        return route.path.format(
            jid=self.jid,
            stream="stdout",
            token=self.token_id,
            path="stdout",
            cluster="dev",
            login="L",
            agent="local-ann",
        )

    async def knock(
        self, method: str, path: str, who: str, body: Any = None
    ) -> tuple[int, bytes, dict[str, str]]:
        """Status, as much of the body as comes at once, and headers."""
        wire = await self.service.wire()
        await wire.send(self.service.request(method, path, body, token=self.tokens[who]))
        head = (await asyncio.wait_for(wire.reader.readuntil(b"\r\n\r\n"), 60)).decode()
        status, *lines = head.split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines if line)
        text = b""
        if size := int(headers.get("content-length", 0)) if method != "HEAD" else 0:
            text = await wire.reader.readexactly(size)
        elif "chunked" in headers.get("transfer-encoding", ""):
            text = await wire.reader.read(1 << 16)
        wire.close()
        return int(status.split()[1]), text, headers


@pytest.fixture
async def village(tmp_path: Path) -> AsyncIterator[Village]:
    async with service_of(tmp_path) as service:
        tokens = {"nobody": "", "agent": hmac.digest(SECRET.encode(), b"agent:local-ann", "sha256").hex()}
        for who, user, order in (
            ("ann", "ann", {}),
            ("bob", "bob", {}),
            ("reader", "ann", {"role": Role.READ_ONLY}),
            ("admin", "root", {"role": Role.ADMIN}),
            ("expired", "ann", {"role": Role.ADMIN}),
            ("revoked", "ann", {"role": Role.ADMIN}),
        ):
            tokens[who], token_id = await service.a_token(user, **order)
            if who == "revoked":
                await service.ask("DELETE", f"/api/v1/tokens/{token_id}")
            if who == "expired":
                known = service.frontend.tokens.copy._known
                row = known[token_id].row
                fields = {name: getattr(row, name) for name in row.__struct_fields__}
                known[token_id] = known[token_id]._replace(row=type(row)(**(fields | {"expires_at": 1})))
        _, spare = await service.a_token("ann")
        spec = {"command": [CANARY], "name": CANARY, "env": {"A": CANARY}, "tags": {"t": CANARY}}
        jid = (await service.ask("POST", JOBS, spec, token=tokens["ann"])).json["jid"]
        yield Village(service, jid, spare, tokens)


def key(route: Route) -> str:
    return f"{route.method} {route.path}"


def test_every_route_has_a_row() -> None:
    """And every row a route: one too many is as wrong as one missing."""
    assert {key(route) for route in ROUTES} == EXPECTED.keys()
    assert len(ROUTES) == len({key(route) for route in ROUTES})


@pytest.mark.parametrize("route", ROUTES, ids=key)
async def test_who_may(village: Village, route: Route) -> None:
    row = EXPECTED[key(route)]
    path, body = village.path(route), BODIES.get(key(route))
    seen = {}
    for who in village.tokens:
        status, text, _ = await village.knock(route.method, path, who, body)
        # a job's state may forbid a verb: that is an answer for those who may ask
        seen[who] = 200 if status == 409 and b'"conflict"' in text else status
        if who not in ("ann", "reader", "admin"):  # I25: nothing of ann's in anything that others hear
            assert CANARY.encode() not in text
    assert seen == row._asdict() | dict.fromkeys(SHUT_OUT, row.nobody)


@pytest.mark.parametrize("path", sorted({route.path for route in ROUTES}))
async def test_other_methods_are_not_served_to_anybody(village: Village, path: str) -> None:
    served = {route.method: route for route in ROUTES if route.path == path}
    route = next(iter(served.values()))
    for method in METHODS:
        if method in served:
            continue
        seen = {who: (await village.knock(method, village.path(route), who))[0] for who in village.tokens}
        inside = dict.fromkeys(("ann", "bob", "reader", "admin"), 405)
        assert seen == dict.fromkeys(("nobody", *SHUT_OUT), 401) | inside, method


#: What stands in a path for an object that somebody has.
OBJECTS = ("{jid}", "{token}")


@pytest.mark.parametrize("route", [r for r in ROUTES if any(o in r.path for o in OBJECTS)], ids=key)
async def test_a_foreign_object_is_as_missing_as_a_missing_one(village: Village, route: Route) -> None:
    """Byte for byte, apart from the id asked for and the request's own; in both directions."""
    spec = {"command": ["true"], "name": "canary-of-bob"}
    bobs_jid = (await village.service.ask("POST", JOBS, spec, token=village.tokens["bob"])).json["jid"]
    _, bobs_token = await village.service.a_token("bob")
    for who, jid, token in (("bob", village.jid, village.token_id), ("ann", bobs_jid, bobs_token)):
        replies = []
        for there in (True, False):
            asked = village._replace(
                jid=jid if there else "0" * len(jid), token_id=token if there else "0" * 12
            )
            path = asked.path(route)
            status, text, headers = await village.knock(route.method, path, who, BODIES.get(key(route)))
            for changing in ("x-request-id", "date"):
                headers.pop(changing)
            request_id = text.partition(b'"request_id":"')[2].partition(b'"')[0]
            for own in (request_id, asked.jid.encode(), asked.token_id.encode()):
                text = text.replace(own, b"") if own else text
            replies.append((status, text, headers))
        assert replies[0] == replies[1]
        assert replies[0][0] == (403 if route.scope is Scope.ADMIN else 404)


async def test_among_many_a_foreign_job_is_as_missing(village: Village) -> None:
    missing = "0" * len(village.jid)
    changes = [{"jid": jid, "priority": 9} for jid in (village.jid, missing)]
    status, text, _ = await village.knock("PATCH", JOBS, "bob", changes)
    assert status == 200
    foreign, nothing = msgspec.json.decode(text)["results"]
    assert foreign == msgspec.json.decode(
        msgspec.json.encode(nothing).replace(missing.encode(), village.jid.encode())
    )
    assert foreign["status"] == 404
    for query in ("user=ann", "user=nobody"):
        assert (await village.knock("GET", f"{JOBS}?{query}", "bob"))[0] == 404


async def test_what_is_no_route_is_401_outside_and_404_inside(village: Village) -> None:
    for path in ("/", "/internal/tokens", "/agent", "/internal/stop", "/api/v1/jobs/", "/api/v1/agents/stop"):
        for method in METHODS:
            seen = {
                who: (await village.knock(method, path, who))[0]
                for who in ("nobody", "agent", "bob", "admin")
            }
            assert seen == {"nobody": 401, "agent": 401, "bob": 404, "admin": 404}, (method, path)


def test_open_routes_hold_no_data() -> None:
    assert {route.kind for route in ROUTES if route.scope is None} <= {Kind.HEALTH, Kind.READY}
