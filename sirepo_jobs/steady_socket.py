"""Listening sockets that go on when there are no descriptors left (F014).

Whoever gets one of the last descriptors of this process is hung up on: those who are connected, the store
and new children need them. Where there is none at all, one that is kept in reserve is spent on hanging up: a
connection that nobody accepts would wake the loop for ever.
"""

import errno
import logging
import os
import resource
import socket
import time
from typing import Any, Final

_log = logging.getLogger(__name__)

#: So many are left to what is not a new connection; a quarter of all where they are few.
HEADROOM: Final = 128
#: A flood is told of so often.
_TELL_SECS: Final = 10.0
_NONE_LEFT: Final = (errno.EMFILE, errno.ENFILE)


class SteadySocket(socket.socket):
    """Takes the place of a listening socket, which is closed as an object; its descriptor lives on."""

    # a class with slots, as its base has them
    __slots__ = ("_refused", "_reserve", "_tell_at")

    def __init__(self, listening: socket.socket) -> None:
        super().__init__(fileno=listening.detach())
        self.setblocking(False)
        self._reserve = _spare()
        self._refused = 0
        self._tell_at = 0.0

    def accept(self) -> tuple[socket.socket, Any]:
        """The next connection. Raises `ConnectionAbortedError` for one that was hung up on."""
        try:
            connection, address = super().accept()
        except OSError as exc:
            if exc.errno not in _NONE_LEFT:
                raise
            self._spend_reserve()
            raise self._refusal() from None
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        # the kernel gives the lowest free number: so many are taken
        if limit != resource.RLIM_INFINITY and connection.fileno() >= limit - min(HEADROOM, limit // 4):
            connection.close()
            raise self._refusal()
        return connection, address

    def close(self) -> None:
        """Safe to repeat."""
        if self._reserve >= 0:
            os.close(self._reserve)
            self._reserve = -1
        super().close()

    def _spend_reserve(self) -> None:
        if self._reserve >= 0:
            os.close(self._reserve)
            self._reserve = -1
        try:
            super().accept()[0].close()
        except BlockingIOError:
            raise
        except OSError:
            # somebody else was faster; do not turn in circles as fast as the machine can
            time.sleep(0.01)
        finally:
            self._reserve = _spare()

    def _refusal(self) -> ConnectionAbortedError:
        self._refused += 1
        now = time.monotonic()
        if now >= self._tell_at:
            self._tell_at = now + _TELL_SECS
            limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
            _log.error(
                "connections are refused: no descriptors are left; raise the limit on open files"
                " (LimitNOFILE, ulimit -n)",
                extra={"limit": limit, "refused": self._refused},
            )
        return ConnectionAbortedError(errno.ECONNABORTED, "no descriptors are left")


def _spare() -> int:
    try:
        return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return -1
