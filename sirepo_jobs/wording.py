"""People's words in JSON on their way into typed records: units, unknown keys, the place of what is wrong."""

import difflib
import re
from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Struct

from .errors import BadInput

_AT = re.compile(r" - at `\$(.*)`$")


def decode(body: bytes) -> object:
    """A body as plain values. Raises `BadInput`."""
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise BadInput(f"the body is not JSON: {exc}", code="bad_json") from None


def check_part(value: object, struct: type[Struct], pointer: str) -> None:
    """Keys of an object, or of each object in a list; what is neither is left to the types."""
    if isinstance(value, dict):
        check_keys(value, struct, pointer)
    elif isinstance(value, list):
        for i, item in enumerate(value):
            if isinstance(item, dict):
                check_keys(item, struct, f"{pointer}/{i}")


def check_keys(raw: Mapping[Any, Any], struct: type[Struct], pointer: str) -> None:
    """Raises `BadInput` for a key that `struct` does not have, with the one that may have been meant."""
    known = struct.__struct_fields__
    for key in raw:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are: {', '.join(known)}"
            raise BadInput(
                f"unknown key {str(key)[:64]!r}; {hint}",
                code="unknown_key",
                pointer=f"{pointer}/{_escape(key)}",
            )


def with_units(raw: Any, fields: tuple[str, ...], parse: Any, pointer: str) -> Any:
    """The object with what `parse` makes of these fields; null is left out. What is no object comes back."""
    if not isinstance(raw, dict):
        return raw
    words = dict(raw)
    for field in fields:
        if words.get(field) is not None:
            try:
                words[field] = parse(words[field])
            except BadInput as exc:
                raise BadInput(str(exc), pointer=f"{pointer}/{field}") from None
    return {k: v for k, v in words.items() if v is not None}


def explained(message: str, pointer: str) -> tuple[str, str]:
    """msgspec's sentence as ours, and its `$.a[0]` as a JSON pointer."""
    place = ""
    if found := _AT.search(message):
        # a value of a mapping is written `.env[...]`, which names no place below it
        place = re.sub(r"\[(\d+)\]", r"/\1", found[1].replace("[...]", "").replace(".", "/"))
        message = message[: found.start()]
    where = place.strip("/").replace("/", ".") or "the spec"
    return f"{where}: {message[0].lower()}{message[1:]}", pointer + place


def _escape(key: object) -> str:
    """A key as a part of a JSON pointer (RFC 6901)."""
    return str(key)[:64].replace("~", "~0").replace("/", "~1")


def kind_of(value: object) -> str:
    """What somebody has written, in a word of theirs."""
    return {list: "a list", str: "a text", bool: "a boolean", type(None): "null"}.get(type(value), "a number")
