"""The long-lived line by which the supervisor tells a front end of its tokens (S9)."""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping

import msgspec

from sirepo_jobs.errors import Error
from sirepo_jobs.tokens import TokenRow

from .auth import MAX_AGE_SECS, TokenCopy
from .upstream import Asking, Cut, Upstream

log = logging.getLogger(__name__)

PATH = "/internal/tokens"
_HEADERS = {"X-User": "front end"}
_PAUSE_SECS = 0.2
_TICK_SECS = 1.0
#: Of one line: all tokens that may be valid at one time fit.
_MAX_LINE_BYTES = 16 << 20


class _News(msgspec.Struct):
    whole: bool
    rows: list[TokenRow]


_decode = msgspec.json.Decoder(_News).decode


class TokenFeed:
    """Keeps the copy as new as the line allows, and says when somebody may have to leave."""

    def __init__(self, upstream: Upstream, copy: TokenCopy, on_change: Callable[[], None]) -> None:
        self._upstream = upstream
        self._copy = copy
        self._on_change = on_change
        self._line = b""
        self._heard_at = 0.0
        self._asking: Asking | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Listen from now on, whether there is a supervisor or not."""
        self._tasks = {
            asyncio.create_task(self._listen(), name="token feed"),
            asyncio.create_task(self._watch(), name="token watch"),
        }

    async def stop(self) -> None:
        """Hang up; safe to repeat."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = set()
        if self._asking is not None:
            self._asking.abort()

    async def _listen(self) -> None:
        while True:
            self._line = b""
            self._heard_at = time.monotonic()
            self._asking = self._upstream.ask(self)
            try:
                await self._asking.run("GET", PATH, _HEADERS, b"", None)
            except (Cut, Error) as exc:
                log.debug("no word on tokens", extra={"why": str(exc)})
            await asyncio.sleep(_PAUSE_SECS)

    async def _watch(self) -> None:
        """Time passes: tokens expire, what is known gets old, uses are to be told."""
        while True:
            await asyncio.sleep(_TICK_SECS)
            if time.monotonic() - self._heard_at > MAX_AGE_SECS and self._asking is not None:
                self._asking.abort()  # it holds the line and says nothing
            self._on_change()
            if self._copy.used and self._copy.is_fresh:
                await self._tell_uses()

    async def _tell_uses(self) -> None:
        used = sorted(self._copy.used)
        self._copy.used.clear()
        try:
            await self._upstream.ask(_Ignored()).run("POST", PATH, _HEADERS, msgspec.json.encode(used), 5.0)
        except (Cut, Error) as exc:
            log.debug("uses of tokens could not be told", extra={"why": str(exc)})

    # what `Asking` tells us

    def begin(self, status: int, headers: Mapping[str, str]) -> None:
        """The supervisor answers."""
        if status != 200 and self._asking is not None:
            log.debug("the supervisor tells nothing of tokens", extra={"status": status})
            self._asking.abort()

    def data(self, chunk: bytes) -> "asyncio.Future[None] | None":
        """Some lines, or parts of them."""
        self._heard_at = time.monotonic()
        *lines, self._line = (self._line + chunk).split(b"\n")
        try:
            for line in lines:
                news = _decode(line)
                self._copy.hear(news.whole, news.rows)
                if news.rows:
                    self._on_change()
            if len(self._line) > _MAX_LINE_BYTES:
                raise msgspec.ValidationError(f"a line of {len(self._line)} bytes")
        except msgspec.DecodeError as exc:
            log.error("the supervisor's word on tokens cannot be read", extra={"why": str(exc)})
            if self._asking is not None:
                self._asking.abort()
        return None

    def end(self) -> None:
        """The supervisor has nothing more to say; we ask again."""


class _Ignored:
    def begin(self, status: int, headers: Mapping[str, str]) -> None: ...

    def data(self, chunk: bytes) -> "asyncio.Future[None] | None": ...

    def end(self) -> None: ...
