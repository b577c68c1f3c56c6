"""How the value of one setting is read: parsers of what stands in a flag, a variable or a file.

Each takes a text or what TOML makes of it, returns the value, and raises `BadInput` for what cannot be meant.
"""

import ipaddress
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .errors import BadInput
from .frontend.origins import ORIGIN
from .resources import parse_bytes, parse_secs
from .rootdir import absolute


def integer(low: int, high: int) -> Callable[[Any], int]:
    def parse(value: Any) -> int:
        if isinstance(value, str) and re.fullmatch(r"[+-]?\d{1,18}", value.strip()):
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise BadInput(f"{value!r} is not a whole number from {low} to {high}")
        return value

    return parse


def secs(low: float, high: float) -> Callable[[Any], float]:
    def parse(value: Any) -> float:
        secs = parse_secs(value)
        if not low <= secs <= high:
            raise BadInput(f"{value!r} is not between {low:g} and {high:g} seconds")
        return secs

    return parse


def size(low: int, high: int) -> Callable[[Any], int]:
    def parse(value: Any) -> int:
        size = parse_bytes(int(value) if isinstance(value, str) and value.isdecimal() else value)
        if not low <= size <= high:
            raise BadInput(f"{value!r} is not between {low} and {high} bytes")
        return size

    return parse


def one_of(*words: str) -> Callable[[Any], str]:
    def parse(value: Any) -> str:
        if value not in words:
            raise BadInput(f"{value!r} is none of {', '.join(words)}")
        return str(value)

    return parse


def names(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        from pykern import pkconfig

        value = pkconfig.parse_tuple(value.replace(",", pkconfig.TUPLE_SEP))
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        raise BadInput(f"{value!r} is not a list of names")
    return tuple(item.strip() for item in value if item.strip())


def text(value: Any) -> str:
    if not isinstance(value, str):
        raise BadInput(f"{value!r} is not a text")
    return value


def address(value: Any) -> str:
    try:
        return "localhost" if value == "localhost" else str(ipaddress.ip_address(str(value)))
    except ValueError:
        raise BadInput(f"{value!r} is not an address; write one like 127.0.0.1, ::1 or 0.0.0.0") from None


def address_or_none(value: Any) -> str:
    return address(value) if value else ""


def public_url(value: Any) -> str:
    url = text(value).rstrip("/")
    if url and not re.fullmatch(r"https?://[A-Za-z0-9._:\[\]-]+(/[A-Za-z0-9._~-]+)*", url):
        raise BadInput(f"{url!r} is not like https://jobs.example.org or https://example.org/jobs")
    return url


def origins(value: Any) -> tuple[str, ...]:
    """Exact ones only: no `*`, no `null`, nothing that merely begins or ends like a friend (S15)."""
    items = re.split(r"[\s,]+", value) if isinstance(value, str) else value
    if not isinstance(items, list | tuple) or not all(isinstance(item, str) for item in items):
        raise BadInput(f"{value!r} is not a list of origins")
    origins = tuple(item.strip().rstrip("/").lower() for item in items if item.strip())
    for origin in origins:
        if not ORIGIN.fullmatch(origin):
            raise BadInput(f"{origin!r} is not an origin; write https://gateway.example.org")
    return origins


def flag(value: Any) -> bool:
    words = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
    found = value if isinstance(value, bool) else words.get(str(value).lower())
    if found is None:
        raise BadInput(f"{value!r} is neither true nor false")
    return found


def path(value: Any) -> Path:
    if not isinstance(value, str | Path) or "\0" in str(value):
        raise BadInput(f"{value!r} is not a path")
    return absolute(value)


def file(value: Any) -> Path | None:
    return path(value) if value else None
