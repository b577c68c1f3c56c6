"""An exchange at the supervisor's door comes to an end, whatever goes wrong while it ends."""

from types import SimpleNamespace
from typing import Any, cast

from tornado.httputil import HTTPConnection, HTTPServerRequest

from sirepo_jobs.api.exchange import Exchange
from sirepo_jobs.errors import Error


class Line:
    """The connection."""

    def __init__(self) -> None:
        self.done: list[str] = []

    def write_headers(self, *_: Any) -> None:
        self.done.append("headers")

    def write(self, _chunk: bytes) -> None:
        self.done.append("chunk")

    def finish(self) -> None:
        self.done.append("finish")

    def close(self) -> None:
        self.done.append("close")


class Broken(Line):
    """It takes no header that is no Latin-1."""

    def write_headers(self, *_: Any) -> None:
        raise UnicodeEncodeError("latin-1", "", 0, 1, "a header")


class Asked(Exchange):
    """Answers GET well, POST with an error, and cannot tell of errors."""

    def get(self) -> None:
        self.finish(b"all")

    def post(self) -> None:
        raise Error("it says \ud800")

    def fail(self, error: Error) -> None:
        str(error).encode()


async def said(method: str, line: Line) -> list[str]:
    request = cast(HTTPServerRequest, SimpleNamespace(method=method, path="/"))
    await Asked(request, cast(HTTPConnection, line)).run(())
    return line.done


async def test_an_answer_is_ended_once() -> None:
    assert await said("GET", Line()) == ["headers", "finish"]


async def test_an_error_that_cannot_be_told_cuts_the_line() -> None:
    assert await said("POST", Line()) == ["close"]


async def test_an_answer_that_cannot_begin_cuts_the_line() -> None:
    assert await said("GET", Broken()) == ["close"]
