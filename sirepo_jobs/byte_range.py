"""Which part of a file somebody wants: `Range`, `If-Range` and `If-None-Match` (RFC 9110, 13 and 14)."""

import re
from typing import Final, NamedTuple

from .errors import Error

_ONE: Final = re.compile(r"bytes=[ \t]*(?:([0-9]{1,18})-([0-9]{0,18})|-([0-9]{1,18}))[ \t]*", re.IGNORECASE)


class NoSuchRange(Error):
    """The range that is asked for begins behind the end of the file."""

    code = "range_not_satisfiable"
    http_status = 416

    def __init__(self, message: str, *, size: int) -> None:
        super().__init__(message)
        #: For `Content-Range: bytes */size`.
        self.size = size


class ByteRange(NamedTuple):
    """Bytes of a file."""

    offset: int
    length: int
    #: The whole file was asked for, or nothing that we understand.
    whole: bool


def wanted(header: str, size: int) -> ByteRange:
    """The bytes that a `Range` header asks for; all where it is absent, malformed or asks for several.

    >>> wanted("bytes=2-4", 10)
    ByteRange(offset=2, length=3, whole=False)
    >>> wanted("bytes=-4", 10)
    ByteRange(offset=6, length=4, whole=False)
    >>> wanted("bytes=0-1,4-5", 10)
    ByteRange(offset=0, length=10, whole=True)
    """
    found = _ONE.fullmatch(header)
    if found is None:
        return ByteRange(0, size, whole=True)
    first, last, suffix = found.groups()
    if suffix is not None:
        count = min(int(suffix), size)
        if not count:
            raise _none(header, size)
        return ByteRange(size - count, count, whole=False)
    begin = int(first)
    if last and int(last) < begin:
        return ByteRange(0, size, whole=True)
    if begin >= size:
        raise _none(header, size)
    end = min(int(last) + 1 if last else size, size)
    return ByteRange(begin, end - begin, whole=False)


def _none(header: str, size: int) -> NoSuchRange:
    return NoSuchRange(f"there is nothing at {header[:60]!r} of {size} bytes", size=size)


def matches(header: str, etag: str) -> bool:
    """Whether `If-None-Match` names the entity tag (without quotes).

    >>> matches('W/"a", "b"', "b"), matches("*", "b"), matches('"c"', "b")
    (True, True, False)
    """
    tags = [tag.strip().removeprefix("W/") for tag in header.split(",")]
    return "*" in tags or f'"{etag}"' in tags


def is_current(if_range: str, etag: str) -> bool:
    """Whether a range may be answered: `If-Range` is absent or names the entity tag, strongly."""
    return not if_range or if_range.strip() == f'"{etag}"'
