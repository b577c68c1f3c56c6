"""The OpenAPI document, and the served API held to it by thousands of requests that nobody would write.

`FUZZ_CASES` says how many; `bin/fuzz-api N` sets it. Commands are never run: the agents are scripted.
"""

import asyncio
import multiprocessing
import os
from collections import Counter
from collections.abc import AsyncIterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from sirepo_jobs.frontend import openapi
from sirepo_jobs.frontend.routes import ROUTES, Kind
from tests.service_stage import Service, service_of

CASES = int(os.environ.get("FUZZ_CASES", "300"))
#: Walks from answer to answer, of six requests at most.
WALKS = max(CASES // 12, 10)
#: Without end, or a plain file; other tests have them.
NOT_FUZZED = {"/api/v1/events"}


@pytest.fixture
async def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Service]:
    # these agents do not hear that they shall stop
    monkeypatch.setattr("sirepo_jobs.agent_pool.STOP_SECS", 0.05)
    async with service_of(tmp_path) as it:
        yield it


def test_the_document_is_openapi() -> None:
    validator = pytest.importorskip("openapi_spec_validator")
    validator.validate(openapi.document())


def test_every_route_is_in_it_and_nothing_else() -> None:
    found = {
        (method.upper(), path)
        for path, operations in openapi.document()["paths"].items()
        for method in operations
    }
    assert found == {(route.method, route.path) for route in ROUTES}
    ids = [op["operationId"] for ops in openapi.document()["paths"].values() for op in ops.values()]
    assert [name for name, count in Counter(ids).items() if count > 1] == []


def test_open_routes_say_that_they_are_open() -> None:
    document = openapi.document()
    for route in ROUTES:
        operation = document["paths"][route.path][route.method.lower()]
        assert (operation.get("security") == []) == (route.scope is None)


async def test_it_is_served(service: Service) -> None:
    reply = await service.ask("GET", "/openapi.json")
    assert reply.json == openapi.document()
    assert (await service.ask("GET", "/openapi.json", token="")).status == 401


async def test_the_examples_are_taken(service: Service) -> None:
    for path in ("/api/v1/jobs", "/api/v1/tokens"):
        content = openapi.document()["paths"][path]["post"]["requestBody"]["content"]["application/json"]
        for example in content["examples"].values():
            assert (await service.ask("POST", path, example["value"])).status == 201


@pytest.mark.timeout(3600)
@pytest.mark.filterwarnings("ignore")
async def test_nothing_that_is_sent_breaks_the_contract(service: Service) -> None:
    pytest.importorskip("schemathesis")
    jid = (await service.ask("POST", "/api/v1/jobs", {"command": ["true"], "jid": "known"})).json["jid"]
    report = await asyncio.to_thread(_fuzz, service.url, service.token, jid)
    print(report)
    assert report.pop("failures") == []
    assert sum(report.values()) >= CASES


def _fuzz(url: str, token: str, jid: str) -> dict[str, Any]:
    """How many answers there were of each kind, and what was wrong with any."""
    import schemathesis
    from hypothesis import HealthCheck, Phase, given, seed, settings
    from hypothesis import strategies as st
    from hypothesis.errors import Unsatisfiable
    from schemathesis import GenerationMode
    from schemathesis.checks import not_a_server_error
    from schemathesis.core.failures import Failure, FailureGroup
    from schemathesis.specs.openapi import checks

    held_to = (
        not_a_server_error,
        checks.status_code_conformance,
        checks.content_type_conformance,
        checks.response_headers_conformance,
        checks.response_schema_conformance,
    )
    schema = schemathesis.openapi.from_dict(openapi.document())
    operations = [found.ok() for found in schema.get_all_operations()]
    operations = [operation for operation in operations if operation.path not in NOT_FUZZED]
    each = -(-CASES * 5 // (8 * len(operations)))  # some have no invalid form
    seen: Counter[Any] = Counter()
    failures: list[str] = []
    import requests

    session = requests.Session()
    session.trust_env = False
    session.headers["Authorization"] = f"Bearer {token}"

    for operation in operations:
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):

            @seed(CASES)
            @settings(
                max_examples=each, database=None, deadline=None, phases=(Phase.generate,),
                suppress_health_check=list(HealthCheck),
            )  # fmt: skip
            @given(case=operation.as_strategy(generation_mode=mode), known=st.booleans())
            def run(case: Any, known: bool) -> None:
                if known and "jid" in (case.path_parameters or {}):
                    case.path_parameters["jid"] = jid
                if known and isinstance(case.body, dict):
                    # what this version has: such jobs are made, and seen by the requests that follow
                    for name in ("image", "shm", "inputs", "outputs", "after", "driver", "jid"):
                        case.body.pop(name, None)
                if case.query:  # nobody here waits for a job that never runs
                    for name in ("wait", "follow"):
                        case.query.pop(name, None)
                for name in ("Authorization", "X-Proxy-Secret", "X-Remote-User"):
                    case.headers and case.headers.pop(name, None)
                response = case.call(base_url=url, session=session, timeout=20)
                seen[response.status_code] += 1
                try:
                    case.validate_response(response, checks=held_to)
                except (Failure, FailureGroup) as exc:
                    if len(failures) < 20:
                        failures.append(f"{case.as_curl_command()}\n{exc}"[:1500])

            try:
                run()
            except Unsatisfiable:
                assert not operation.query  # of what takes nothing there is no invalid form
    return {**seen, "failures": failures}


@pytest.mark.timeout(3600)
@pytest.mark.filterwarnings("ignore")
async def test_from_answer_to_answer_nothing_breaks_the_contract(service: Service) -> None:
    """As clients do it: what an answer names is asked for next, changed, canceled, asked for again."""
    pytest.importorskip("schemathesis")
    # In a process of its own: Hypothesis makes values of what it finds in the modules that are loaded, and
    # which those are depends on the tests before this one. So it is the same walk each time.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        report = await asyncio.get_running_loop().run_in_executor(pool, _walk, service.url, service.token)
    print(report)
    assert report.pop("failures") == []
    linked, asked = report.pop("linked"), sum(report.values())
    assert asked >= WALKS * 2
    # It did follow links, and to things that are there; how often changes with every field of the API.
    assert linked >= WALKS // 8
    assert report.get(200, 0) > 0


def _walk(url: str, token: str) -> dict[Any, Any]:
    import requests
    import schemathesis
    from hypothesis import HealthCheck, Phase, settings
    from schemathesis.checks import not_a_server_error
    from schemathesis.core.failures import Failure, FailureGroup
    from schemathesis.specs.openapi import checks

    held_to = (not_a_server_error, checks.status_code_conformance, checks.content_type_conformance,
               checks.response_headers_conformance, checks.response_schema_conformance)  # fmt: skip
    schema = schemathesis.openapi.from_dict(openapi.document()).exclude(path=sorted(NOT_FUZZED))
    session = requests.Session()
    session.trust_env = False
    session.headers["Authorization"] = f"Bearer {token}"
    seen: Counter[Any] = Counter()
    failures: list[str] = []

    class Walk(schema.as_state_machine()):  # type: ignore[misc]  # made at run time
        def before_call(self, case: Any) -> None:
            for name in ("wait", "follow"):
                case.query and case.query.pop(name, None)
            if case.method == "POST" and case.path == "/api/v1/jobs":
                case.body = {"command": ["true"]}  # odd ones are the other test's; from these one gets on
            for name in ("Authorization", "X-Proxy-Secret", "X-Remote-User"):
                case.headers and case.headers.pop(name, None)

        def get_call_kwargs(self, case: Any) -> dict[str, Any]:
            return {"base_url": url, "session": session, "timeout": 20}

        def validate_response(self, response: Any, case: Any, **more: Any) -> None:
            seen[response.status_code] += 1
            if "{jid}" in case.path and response.status_code != 404:
                seen["linked"] += 1
            try:
                case.validate_response(response, checks=held_to)
            except (Failure, FailureGroup) as exc:
                if len(failures) < 20:
                    failures.append(f"{case.as_curl_command()}\n{exc}"[:1500])

    Walk.run(settings=settings(
        max_examples=WALKS, stateful_step_count=6, database=None, deadline=None, derandomize=True,
        phases=(Phase.generate,), suppress_health_check=list(HealthCheck),
    ))  # fmt: skip
    return {**seen, "failures": failures}


def test_links_lead_to_what_there_is() -> None:
    document = openapi.document()
    ids = {op["operationId"] for ops in document["paths"].values() for op in ops.values()}
    links = document["paths"]["/api/v1/jobs"]["post"]["responses"]["201"]["links"]
    assert set(links) <= ids
    assert "get_jobs_jid_explain" in links


def test_answers_that_are_not_json_are_few() -> None:
    bytes_of = {route.path for route in ROUTES if route.kind in (Kind.STREAM, Kind.FILE)}
    assert {path.removeprefix("/api/v1/") for path in bytes_of} <= {
        "events",
        "jobs/{jid}/logs/{stream}",
        "jobs/{jid}/files",
        "jobs/{jid}/files/{path}",
    }
