"""Paths of files in a run dir, as they travel: percent-encoded, since a name may hold nearly any byte.

SECURITY: S30. What stands in such a path is names and nothing else; `..`, empty names, encoded slashes and
backslashes are refused here, at every door that takes a path.
"""

import re
from collections.abc import Iterable
from typing import Final
from urllib.parse import quote, unquote_to_bytes

from .errors import BadInput

Parts = tuple[bytes, ...]

#: Longest path in bytes, and longest name, as the kernel has them.
MAX_BYTES: Final = 4096
MAX_NAME_BYTES: Final = 255
_ENCODED = re.compile(r"(?:[A-Za-z0-9_.~!$&'()*+,;=:@/-]|%[0-9A-Fa-f]{2})*")
_PLAIN: Final = "!$&'()*+,;=:@"


def parse(text: str) -> Parts:
    """The names of a percent-encoded path; none for `""`, the run dir itself. Raises `BadInput`.

    >>> parse("out/a%0Ab%FF")
    (b'out', b'a\\nb\\xff')
    """
    if not text:
        return ()
    if len(text) > 3 * MAX_BYTES or not _ENCODED.fullmatch(text):
        raise _bad(text, "it is not percent-encoded, or too long")
    parts = tuple(unquote_to_bytes(part) for part in text.split("/"))
    for part in parts:
        if why := _why_not(part):
            raise _bad(text, why)
    if sum(map(len, parts)) + len(parts) > MAX_BYTES:
        raise _bad(text, f"it is longer than {MAX_BYTES} bytes")
    return parts


def _why_not(part: bytes) -> str:
    if part in (b"", b".", b".."):
        return f"{part.decode()!r} is no name of a file"
    if len(part) > MAX_NAME_BYTES:
        return f"a name is longer than {MAX_NAME_BYTES} bytes"
    found = next((char for char in ("\0", "/", "\\") if char.encode() in part), None)
    return f"a name holds {found!r}" if found else ""


def _bad(text: str, why: str) -> BadInput:
    return BadInput(f"path {text[:200]!r} cannot be meant: {why}", code="bad_path")


def encode(parts: Iterable[bytes]) -> str:
    """The path that `parse` takes; one spelling for each path.

    >>> encode((b"out", b"a b\\xff"))
    'out/a%20b%FF'
    """
    return "/".join(quote(part, safe=_PLAIN) for part in parts)


def shown(parts: Iterable[bytes]) -> str:
    """For people, and for JSON: what is no UTF-8 is replaced."""
    return b"/".join(parts).decode("utf-8", "replace")
