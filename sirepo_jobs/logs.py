"""Logging of the long-lived processes: one line per event on stderr, JSON or for people.

Everybody logs through the standard library (`logging.getLogger(__name__)`, fields in `extra=`) or
through structlog; both come out alike. Registered secrets never come out (S40).
"""

import logging
import os
import sys
import time
from collections.abc import Callable, MutableMapping
from typing import Any, Literal

from .log_sink import Sink

#: Values that are cut out of every line; see `hide`.
_SECRETS: set[str] = set()
_SECRET_WORDS = ("secret", "password", "token", "authorization")
#: Loggers that somebody without a token can make talk.
_STRANGERS = ("tornado.general", "sirepo_jobs.agent_socket", "sirepo_jobs.agent_door")
#: No line needs more of one value (S36).
_MAX_CHARS = 4000


def hide(secret: str) -> None:
    """From now on `secret` is shown as `***` in every line of this process."""
    if len(secret) >= 8:  # a shorter one would take innocent words with it
        _SECRETS.add(secret)


def setup(level: str = "info", form: Literal["auto", "json", "console"] | str = "auto") -> None:
    """Send this process's log to stderr from now on; safe to repeat."""
    # pykern would put its own handler on the root logger as soon as anybody imports its pkdebug.
    os.environ.setdefault("PYKERN_PKDEBUG_REDIRECT_LOGGING", "0")
    import structlog

    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="ts"),
        structlog.processors.StackInfoRenderer(),
    ]
    if form == "json" or (form == "auto" and not sys.stderr.isatty()):
        last: list[Any] = [
            structlog.processors.format_exc_info,
            structlog.processors.EventRenamer("msg"),
            _redact,
            _in_order,
            structlog.processors.JSONRenderer(),
        ]
    else:
        last = [
            structlog.processors.format_exc_info,
            _redact,
            structlog.dev.ConsoleRenderer(
                colors="NO_COLOR" not in os.environ and sys.stderr.isatty(), timestamp_key="ts"
            ),
        ]
    handler = _handler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in _STRANGERS:
        logging.getLogger(name).filters[:] = [Trickle()]
    # Tornado tells of every request at info, Alembic of every plug-in that it has.
    for name in ("tornado.access", "alembic.runtime.plugins"):
        logging.getLogger(name).setLevel(logging.WARNING)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


def _handler() -> logging.Handler:
    try:
        return Sink(sys.stderr.fileno())
    except (OSError, ValueError, AttributeError):  # something stands in for it, which only Python knows
        return logging.StreamHandler(sys.stderr)


class Trickle(logging.Filter):
    """SECURITY: S49. Lets through a few lines per second of a logger that strangers can make talk, each cut
    short; says how many it left out."""

    PER_SEC = 5
    MAX_CHARS = 200

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._second, self._seen, self._left_out = -1, 0, 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Called by `logging` for each line."""
        now = int(self._clock())
        if now != self._second:
            self._second, self._seen = now, 0
        self._seen += 1
        if self._seen > self.PER_SEC:
            self._left_out += 1
            return False
        if isinstance(record.msg, str):
            text = record.getMessage()
            if len(text) > self.MAX_CHARS:
                record.msg, record.args = text[: self.MAX_CHARS] + "...", None
        if self._left_out:
            record.left_out, self._left_out = self._left_out, 0
        return True


def _in_order(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    first = {key: event.pop(key) for key in ("ts", "level", "msg", "logger") if key in event}
    return {**first, **event}


def _redact(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for key, value in event.items():
        if any(word in key.lower() for word in _SECRET_WORDS):
            event[key] = "***"
        elif isinstance(value, str):
            for secret in _SECRETS:
                value = value.replace(secret, "***")
            event[key] = value if len(value) <= _MAX_CHARS else value[:_MAX_CHARS] + "..."
    return event
