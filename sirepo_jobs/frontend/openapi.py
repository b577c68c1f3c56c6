"""The OpenAPI 3.1 document, made from the route table and the types; nothing in it is written twice."""

import functools
import re
from collections.abc import Mapping
from typing import Any

import msgspec

from sirepo_jobs import __version__, changes, spec
from sirepo_jobs.login import LoginAnswers, LoginOrder
from sirepo_jobs.resources import MAX_BYTES, MAX_SECS
from sirepo_jobs.tokens import MAX_LIFE_SECS, MAX_NAME_CHARS, TokenOrder

from . import problems
from .answers import ANSWERS, Answer, Job, JobPage, Submitted, TokenMade
from .problems import Problem
from .routes import PLACES, ROUTES, Kind, Route

_REF = "#/components/schemas/{name}"
#: Numbers and texts that people may write for them; what is answered is always the number.
_SIZE: dict[str, Any] = {
    "anyOf": [
        {"type": "integer", "minimum": 0, "maximum": MAX_BYTES},
        {"type": "string", "pattern": r"^[0-9]{1,9}(\.[0-9]{1,3})? ?([kKMG]i?)?B$"},
    ],
    "description": "Bytes, or a text like `512 MiB` or `4GB`.",
    "examples": ["1 GiB", 1073741824],
}
_TIME: dict[str, Any] = {
    "anyOf": [
        {"type": "number", "exclusiveMinimum": 0, "maximum": MAX_SECS},
        {"type": "string", "pattern": r"^[1-9][0-9]{0,5}(ms|s|m|h)$"},
    ],
    "description": "Seconds, or a text like `90m`, `1h 30m` or `01:30:00`.",
    "examples": ["1h", 3600],
}
_TEXT = {"type": "string", "pattern": "^[^\\u0000]*$"}
_OUTPUT = {
    "anyOf": [
        {"type": "integer", "minimum": spec.MIN_OUTPUT_BYTES, "maximum": MAX_BYTES},
        {"type": "string", "pattern": "^[1-9][0-9]{0,8} ?[MG]i?B$"},
        {"type": "null"},
    ],
    "description": "Bytes of stdout and stderr together, or a text like `512 MiB` or `4GB`.",
}
_OR_NULL = {"anyOf": [*_TIME["anyOf"], {"type": "null"}]}
#: What the types alone cannot say: schema, property, and what is to be said of it.
_MORE: dict[str, dict[str, Any]] = {
    "JobSpec": {
        "command": {"type": "array", "items": _TEXT, "minItems": 1, "maxItems": spec.MAX_ARGS},
        "name": {**_TEXT, "maxLength": spec.MAX_NAME_CHARS},
        "jid": {"type": "string", "pattern": "^([A-Za-z0-9][A-Za-z0-9_.-]{0,99})?$"},
        "env": {
            "type": "object",
            "maxProperties": spec.MAX_ENV,
            "propertyNames": {"pattern": "^[A-Za-z_][A-Za-z0-9_]*$"},
            "additionalProperties": _TEXT,
        },
        "tags": {
            "type": "object",
            "maxProperties": spec.MAX_TAGS,
            "propertyNames": {**_TEXT, "maxLength": 100},
            "additionalProperties": {**_TEXT, "maxLength": 500},
        },
        "driver": {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9_.:/@-]{0,99}$"},
        "queue": {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9_.:/@-]{0,99}$"},
        "priority": {"type": "integer", "minimum": 0, "maximum": 10},
        "max_attempts": {"type": "integer", "minimum": 1, "maximum": 100},
    },
    "Resources": {
        "memory": _SIZE,
        "disk": _SIZE,
        "cpus": {"type": "integer", "minimum": 1, "maximum": 1_000_000},
        "gpus": {"type": "integer", "minimum": 0, "maximum": 100_000},
        "nodes": {"type": "integer", "minimum": 1, "maximum": 100_000},
    },
    "SlurmOptions": {
        "time": {**_TIME, **_OR_NULL},
        "mem": {
            "anyOf": [
                {"type": "integer", "minimum": 1 << 20, "maximum": MAX_BYTES},
                {"type": "string", "pattern": r"^[1-9][0-9]{0,8} ?[MG]i?B$"},
                {"type": "null"},
            ],
            "description": "Bytes per node, or a text like `512 MiB` or `4GB`.",
        },
        **{
            name: {"anyOf": [{"type": "integer", "minimum": 1, "maximum": 100_000}, {"type": "null"}]}
            for name in ("nodes", "ntasks", "ntasks_per_node", "cpus_per_task")
        },
        "gpus": {"anyOf": [{"type": "integer", "minimum": 0, "maximum": 100_000}, {"type": "null"}]},
        **{
            name: {"type": "string", "pattern": "^([A-Za-z0-9_][A-Za-z0-9_.-]{0,63})?$"}
            for name in ("partition", "account", "qos")
        },
        "constraint": {"type": "string", "pattern": "^([A-Za-z0-9_][A-Za-z0-9_.&|,*()\\[\\]:-]{0,199})?$"},
        "array_limit": {"type": "integer", "minimum": 0, "maximum": 100_000},
        "pack": {"type": "integer", "minimum": 1, "maximum": 1000},
    },
    "Limits": {
        "soft": {**_TIME, **_OR_NULL},
        "hard": {**_TIME, **_OR_NULL},
        "grace": _TIME,
        "output": _OUTPUT,
    },
    "TokenOrder": {
        "user": {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9._@+-]{0,63}$"},
        "name": {"type": "string", "maxLength": MAX_NAME_CHARS},
        "expires_in": {
            **_TIME,
            "anyOf": [
                {"type": "number", "minimum": 1, "maximum": MAX_LIFE_SECS},
                {"type": "string", "pattern": "^[1-9][0-9]{0,2}(s|m|h|d)$"},
            ],
        },
    },
}
_EXAMPLES: dict[str, dict[str, Any]] = {
    "JobSpec": {
        "command": ["/usr/bin/env", "python3", "-c", "print(42)"],
        "name": "answer",
        "resources": {"cpus": 1, "memory": "1 GiB"},
        "limits": {"soft": "55m", "hard": "1h"},
        "tags": {"project": "x"},
    },
    "TokenOrder": {"user": "ann", "role": "user", "name": "laptop", "expires_in": "90d"},
}
_PROBLEMS = {
    401: "No valid credentials",
    403: "The token lacks the scope",
    404: "There is no such thing, or it is not yours: the two look the same",
    409: "It contradicts what is there",
    413: "The body is too large",
    416: "No such bytes",
    422: "It cannot be meant; `detail` says what to write, `pointer` where",
    429: "Too many requests of this user; try again after `Retry-After`",
    431: "Request line and headers are too large",
    503: "Not now; try again after `Retry-After`",
}


@functools.cache
def document_bytes(server: str = "") -> bytes:
    """The document as it is served to clients that call us `server`."""
    return msgspec.json.encode(document(server=server))


def document(routes: tuple[Route, ...] = ROUTES, *, server: str = "") -> dict[str, Any]:
    """The document of these routes; without `server` they are below the root of whoever serves it."""
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "sirepo_jobs",
            "version": __version__,
            "description": "Runs work in the background, and says what became of it.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": server or "/"}],
        "paths": paths,
        "components": {
            "schemas": _schemas(),
            "responses": {f"Problem{status}": _problem(status) for status in _PROBLEMS},
            "headers": {
                "RequestId": {"schema": {"type": "string"}, "description": "Also in the logs."},
            },
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "description": "A token: `sj_...`"},
                "proxySecret": {"type": "apiKey", "in": "header", "name": "X-Proxy-Secret"},
                "proxyUser": {"type": "apiKey", "in": "header", "name": "X-Remote-User"},
            },
        },
        "security": [{"bearer": []}, {"proxySecret": [], "proxyUser": []}],
    }


def _operation(route: Route) -> dict[str, Any]:
    answer = ANSWERS.get(f"{route.method} {route.path}")
    operation: dict[str, Any] = {
        "operationId": _operation_id(route),
        "summary": route.summary,
        "parameters": [
            *(_place(name) for name in re.findall(r"\{(\w+)\}", route.path)),
            *(
                {
                    "name": name,
                    "in": "query",
                    "description": parameter.help,
                    "schema": _query_schema(parameter),
                }
                for name, parameter in route.query.items()
            ),
            *_headers(route),
        ],
        "responses": {
            **_good(route, answer),
            **{
                str(status): {"$ref": f"#/components/responses/Problem{status}"}
                for status in _PROBLEMS
                if _may_answer(route, status)
            },
        },
    }
    if route.scope is None:
        operation["security"] = []
    else:
        operation["description"] = f"Needs the scope `{route.scope}`."
    if body := _body(route):
        operation["requestBody"] = {"required": True, "content": {"application/json": body}}
    return operation


def _operation_id(route: Route) -> str:
    words = re.findall(r"\w+", route.path.removeprefix("/api/v1").replace(".", "_"))
    return "_".join([route.method.lower(), *words])


def _place(name: str) -> dict[str, Any]:
    schema = {"type": "string", "pattern": f"^({PLACES[name]})$"}
    return {"name": name, "in": "path", "required": True, "schema": schema}


def _query_schema(parameter: Any) -> dict[str, Any]:
    return {"type": "string", **(parameter.schema or {})}


def _headers(route: Route) -> list[dict[str, Any]]:
    """Request headers that mean something here."""
    found = []
    if route.kind is Kind.SUBMIT:
        found.append(
            ("Idempotency-Key", "[!-~]{1,200}", "Sent again with the same key, it makes nothing new.")
        )
    if route.path == "/api/v1/events":
        found.append(("Last-Event-ID", "[0-9]{1,18}", "As browsers send it after a broken connection."))
    return [
        {
            "name": name,
            "in": "header",
            "description": text,
            "schema": {"type": "string", "pattern": f"^{pattern}$"},
        }
        for name, pattern, text in found
    ]


def _body(route: Route) -> dict[str, Any] | None:
    if route.kind is Kind.SUBMIT:
        one, batch = {"$ref": _REF.format(name="JobSpec")}, {"$ref": _REF.format(name="JobBatch")}
        return {
            "schema": {"anyOf": [one, batch]},
            "examples": {
                "one": {"value": _EXAMPLES["JobSpec"]},
                "many": {"value": {"jobs": [_EXAMPLES["JobSpec"], {"command": ["/bin/true"]}]}},
            },
        }
    if route.path == "/api/v1/tokens" and route.kind is Kind.ORDER:
        return {
            "schema": {"$ref": _REF.format(name="TokenOrder")},
            "examples": {"user": {"value": _EXAMPLES["TokenOrder"]}},
        }
    if "/clusters/" in route.path and route.kind is Kind.ORDER:
        return {
            "schema": {"$ref": _REF.format(name="LoginAnswers" if route.path.endswith("}") else "LoginOrder")}
        }
    if route.method == "PATCH":
        one = {"$ref": _REF.format(name="Changes")}
        many = {"type": "array", "items": one, "minItems": 1, "maxItems": changes.MAX_CHANGES}
        return {"schema": many if route.large else one}
    return {"schema": {"type": "object"}} if route.kind is Kind.ORDER else None


def _good(route: Route, answer: Answer | None) -> dict[str, Any]:
    headers: dict[str, Any] = {"X-Request-Id": {"$ref": "#/components/headers/RequestId"}}
    if answer is not None:
        refs = [{"$ref": _REF.format(name=kind.__name__)} for kind in answer.types]
        schema = refs[0] if len(refs) == 1 else {"anyOf": refs}
        if answer.status == 201:
            headers["Location"] = {"schema": {"type": "string"}, "description": "Of one new thing."}
        content = {"application/json": {"schema": schema}}
        good = {"description": route.summary, "headers": headers, "content": content}
        if links := _links(answer):
            good["links"] = links
        return {str(answer.status): good}
    if route.path == "/metrics":
        content = {"text/plain": {"schema": {"type": "string"}}}
    elif route.path == "/api/v1/events":
        content = {"text/event-stream": {"schema": {"type": "string"}}}
    elif route.kind is Kind.STREAM:
        content = {"application/octet-stream": {"schema": {}}}
    elif route.kind in (Kind.FORWARD, Kind.ORDER, Kind.DOCUMENT):
        content = {"application/json": {"schema": {"type": "object"}}}
    else:
        content = {"*/*": {"schema": {}}}
        if route.method == "GET":
            more = {"206": "A part", "304": "Not modified"}
            return {
                "200": {"description": route.summary, "headers": headers, "content": content},
                **{status: {"description": text, "headers": headers} for status, text in more.items()},
            }
    return {"200": {"description": route.summary, "headers": headers, "content": content}}


#: What of an answer names something, and the place in a path where it is asked for.
_NAMES = {
    Submitted: ("jid", "jid"),
    Job: ("jid", "jid"),
    JobPage: ("jobs/0/jid", "jid"),
    TokenMade: ("id", "token"),
}


def _links(answer: Answer) -> dict[str, Any]:
    """Where one can go from an answer: with the id that it tells, to everything that takes one."""
    found = _NAMES.get(answer.types[0])
    if found is None:
        return {}
    pointer, place = found
    return {
        _operation_id(route): {
            "operationId": _operation_id(route),
            "parameters": {f"path.{place}": f"$response.body#/{pointer}"},
        }
        for route in ROUTES
        if f"{{{place}}}" in route.path
    }


def _may_answer(route: Route, status: int) -> bool:
    has_body = route.kind in (Kind.SUBMIT, Kind.ORDER)
    match status:
        case 401 | 403 | 429:
            return route.scope is not None
        case 404:
            return "{" in route.path or "user" in route.query
        case 409:
            return route.method not in ("GET", "HEAD")
        case 413:
            return has_body
        case 416:
            return route.kind.value == "file"
    return True


def _problem(status: int) -> dict[str, Any]:
    headers: dict[str, Any] = {"X-Request-Id": {"$ref": "#/components/headers/RequestId"}}
    if status in (429, 503):
        headers["Retry-After"] = {"schema": {"type": "integer"}, "required": True}
    if status == 401:
        headers["WWW-Authenticate"] = {"schema": {"type": "string"}, "required": True}
    schema = {"$ref": _REF.format(name="Problem")}
    return {
        "description": _PROBLEMS[status],
        "headers": headers,
        "content": {problems.CONTENT_TYPE: {"schema": schema}},
    }


def _schemas() -> dict[str, Any]:
    types = [kind for answer in ANSWERS.values() for kind in answer.types]
    _, schemas = msgspec.json.schema_components(
        [*dict.fromkeys(types), spec.JobSpec, changes.Changes, TokenOrder, LoginOrder, LoginAnswers, Problem],
        ref_template=_REF,
    )
    found: dict[str, Any] = dict(schemas)
    for name, more in _MORE.items():
        properties: Mapping[str, Any] = found[name]["properties"]
        found[name]["properties"] = {
            field: {**_kept(schema), **more[field]} if field in more else schema
            for field, schema in properties.items()
        }
    for name, example in _EXAMPLES.items():
        found[name]["examples"] = [example]
    found["JobBatch"] = {
        "title": "JobBatch",
        "description": "Many jobs that are accepted together or not at all.",
        "type": "object",
        "properties": {
            "jobs": {
                "type": "array",
                "items": {"$ref": _REF.format(name="JobSpec")},
                "minItems": 1,
                "maxItems": spec.MAX_BATCH,
            }
        },
        "required": ["jobs"],
        "additionalProperties": False,
    }
    return found


def _kept(schema: Mapping[str, Any]) -> dict[str, Any]:
    """What stays of a schema whose type is said anew."""
    return {key: value for key, value in schema.items() if key in ("default", "description")}
