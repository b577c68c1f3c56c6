"""Query parameters: each has one parser, which gives its canonical text or says what to write.

The supervisor gets only canonical texts, so there is one place where a client's words are read.
"""

import difflib
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import NamedTuple
from urllib.parse import parse_qsl, quote, urlencode

from sirepo_jobs.errors import BadInput
from sirepo_jobs.job import State
from sirepo_jobs.resources import parse_secs

from .limits import MAX_WAIT_SECS

MAX_PARAMETERS = 50


class Parameter(NamedTuple):
    """One parameter of a route."""

    parse: Callable[[str], str]
    help: str
    #: May be given more than once; the values are joined with commas.
    many: bool = False
    #: For the OpenAPI document, where it is not any text.
    schema: Mapping[str, object] | None = None


def canonical(raw: str, known: Mapping[str, Parameter]) -> dict[str, str]:
    """The parameters of a query string, checked and canonical. Raises `BadInput`."""
    if not raw:
        return {}
    try:
        pairs = parse_qsl(raw, keep_blank_values=True, max_num_fields=MAX_PARAMETERS, errors="strict")
    except ValueError:
        raise BadInput(
            f"the query is not UTF-8, or has more than {MAX_PARAMETERS} parameters", code="bad_query"
        ) from None
    found: dict[str, str] = {}
    for name, text in pairs:
        parameter = known.get(name)
        if parameter is None:
            raise BadInput(_unknown(name, known), code="unknown_parameter")
        if text == "":
            continue  # `?state=` is how forms say "any"
        try:
            value = parameter.parse(text)
        except BadInput as exc:
            raise BadInput(f"query parameter {name}: {exc}", code="bad_parameter") from None
        if name not in found:
            found[name] = value
        elif parameter.many:
            found[name] += f",{value}"
        else:
            raise BadInput(f"query parameter {name} is given twice", code="bad_parameter")
    return found


def encode(parameters: Mapping[str, str]) -> str:
    """`?a=b&c=d`, or nothing."""
    return f"?{urlencode(parameters)}" if parameters else ""


def _unknown(name: str, known: Mapping[str, Parameter]) -> str:
    near = difflib.get_close_matches(name, known, 1)
    hint = f"did you mean {near[0]!r}?" if near else f"known are: {', '.join(known) or 'none'}"
    return f"unknown query parameter {name[:64]!r}; {hint}"


def _whole(low: int, high: int) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if not re.fullmatch(r"[0-9]{1,18}", text) or not low <= int(text) <= high:
            raise BadInput(f"{text[:64]!r} is not a whole number from {low} to {high}")
        return str(int(text))

    return parse


def _flag(text: str) -> str:
    word = text.lower()
    if word not in ("0", "1", "true", "false"):
        raise BadInput(f"{text[:64]!r} is neither 1 nor 0")
    return "1" if word in ("1", "true") else "0"


def _wait(text: str) -> str:
    return f"{min(parse_secs(text), MAX_WAIT_SECS):g}s"


def _states(text: str) -> str:
    return ",".join(_state(word.strip().lower()) for word in text.split(","))


#: Beside the states themselves: words for all that are over, and all that are not.
_STATES = frozenset({*State, "active", "final"})


def _state(word: str) -> str:
    if word == "cancelled":
        word = "canceled"
    if word not in _STATES:
        near = difflib.get_close_matches(word, sorted(_STATES), 1)
        hint = f"did you mean {near[0]}?" if near else f"known are: {', '.join(sorted(_STATES))}"
        raise BadInput(f"{word[:64]!r} is no state; {hint}")
    return word


def _tag(text: str) -> str:
    name, colon, _ = text.partition(":")
    if not colon or not name or len(text) > 601 or "\0" in text:
        raise BadInput(f"{text[:64]!r} is not name:value")
    return quote(text, safe=":")  # commas part the values of one parameter


def _fields(text: str) -> str:
    if not re.fullmatch(r"[a-z_]{1,30}(,[a-z_]{1,30}){0,40}", text):
        raise BadInput(f"{text[:64]!r} is no list of fields; write jid,state")
    return text


def _instant(text: str) -> str:
    try:
        # a plus sign that was not encoded comes as a space
        when = datetime.fromisoformat(text.replace(" ", "+") if "T" in text else text)
    except ValueError:
        raise BadInput(f"{text[:64]!r} is no time; write 2030-01-31T12:00:00Z") from None
    when = when.replace(tzinfo=UTC) if when.tzinfo is None else when
    return str(max((when - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1), 0))


def _text(most: int) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if len(text) > most or "\0" in text:
            raise BadInput(f"is longer than {most} characters, or holds a NUL")
        return text

    return parse


def _one_of(*words: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in words:
            raise BadInput(f"{text[:64]!r} is none of: {', '.join(words)}")
        return text

    return parse


def _number(low: int, high: int, text: str) -> Parameter:
    return Parameter(_whole(low, high), text, schema={"type": "integer", "minimum": low, "maximum": high})


def _yes_or_no(text: str) -> Parameter:
    return Parameter(_flag, text, schema={"type": "string", "enum": ["0", "1", "true", "false"]})


STATE = Parameter(
    _states,
    "only jobs in these states; `active` and `final` stand for many",
    many=True,
    schema={"type": "string", "examples": ["active", "error,lost"]},
)
USER = Parameter(_text(100), "only jobs of this user; `@me` is oneself")
TAG = Parameter(
    _tag,
    "only jobs that have this label, `name:value`; may be repeated",
    many=True,
    schema={"type": "string", "examples": ["project:x"]},
)
QUEUE = Parameter(_text(100), "only jobs of this queue")
DRIVER = Parameter(_text(100), "only jobs of this driver")
_TIME = {"type": "string", "format": "date-time"}
CREATED_AFTER = Parameter(_instant, "only jobs accepted at this time or later", schema=_TIME)
CREATED_BEFORE = Parameter(_instant, "only jobs accepted before this time", schema=_TIME)
VIEW = Parameter(
    _one_of("minimal", "basic", "full"),
    "how much of each job",
    schema={"type": "string", "enum": ["minimal", "basic", "full"]},
)
FIELDS = Parameter(_fields, "only these fields of each job: `jid,state`", many=True)
NAME_PREFIX = Parameter(_text(200), "only jobs whose name begins so")
CURSOR = Parameter(_text(1000), "`next_cursor` of the page before")
PAGE = _number(1, 1000, "jobs on one page")
WAIT = Parameter(
    _wait,
    f"answer when the job has changed or ended (see `until`), or after so long (at most {MAX_WAIT_SECS:g}s)",
    schema={"type": "string", "pattern": "^[0-9]{1,3}(ms|s|m)?$", "examples": ["30s"]},
)
UNTIL = Parameter(
    _one_of("changed", "ended"),
    "what `wait` waits for: a version above `version` (`changed`), or the end of the run (`ended`)",
    schema={"type": "string", "enum": ["changed", "ended"]},
)
VERSION = _number(0, 1 << 53, "the version that the caller knows")
SERIAL = _number(1, 1 << 31, "the run that is meant; a later one is left alone")
OFFSET = _number(0, 1 << 53, "first byte wanted")
LIMIT = _number(0, 1 << 53, "bytes at most")
ATTEMPT = _number(1, 1 << 31, "which execution; the newest when left out")
FOLLOW = _yes_or_no("1: stream until the attempt has ended")
ARCHIVE = Parameter(
    _one_of("zip"), "`zip`: a directory as an archive", schema={"type": "string", "enum": ["zip"]}
)
RECURSIVE = _yes_or_no("0: only the directory itself")
PATH_CURSOR = Parameter(_text(20_000), "`next_cursor` of the page before")
AFTER = _number(0, 1 << 53, "only events after this `id`")
