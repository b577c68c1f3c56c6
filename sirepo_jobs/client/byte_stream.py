"""Bytes at offsets that go on where they were cut, over as many connections as it takes."""

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator
from typing import Self

from urllib3.exceptions import HTTPError
from urllib3.response import BaseHTTPResponse

from sirepo_jobs.errors import Unavailable

from .transport import Patience, Transport

PIECE_BYTES = 256 << 10


class CutHead(Exception):
    """A connection broke among the headers; http.client takes what came for all of them."""


class ByteStream(Iterator[bytes], ABC):
    """Each byte from an offset on once. What is read, and where it ends, is said by those who inherit."""

    def __init__(self, transport: Transport, offset: int, attempt: int | None) -> None:
        #: Of the byte that comes next.
        self.offset = offset
        #: The attempt that is read; None until the server has told, or when there is none.
        self.attempt = attempt
        self._transport = transport
        self._connected = False
        self._pieces = self._read()

    def __next__(self) -> bytes:
        while not (piece := next(self._pieces)):
            pass
        return piece

    def connect(self) -> Self:
        """Reach the server, so that what it tells beside the bytes is known; reading does so by itself."""
        if not self._connected:
            next(self._pieces)
        return self

    def close(self) -> None:
        """Hang up; safe to repeat."""
        self._pieces.close()

    @abstractmethod
    def _open(self) -> BaseHTTPResponse:
        """Ask for the bytes from `offset` on."""

    @abstractmethod
    def _learn(self, response: BaseHTTPResponse) -> None:
        """Look at the headers. Raises `CutHead` where they are not all there."""

    @abstractmethod
    def _is_over(self, broke: Exception | None, patience: Patience) -> bool:
        """Whether a connection that has ended, or broke, was the last; else waits, or raises."""

    def _away(self, error: Unavailable, patience: Patience) -> None:
        """Nobody answers: wait, or raise."""
        patience.pause(error, getattr(error, "retry_after", None))

    def _read(self) -> Generator[bytes, None, None]:
        patience = Patience(self._transport.patience_secs)
        while True:
            try:
                response = self._open()
            except Unavailable as exc:
                self._away(exc, patience)
                continue
            broke: Exception | None = None
            try:
                self._learn(response)
                if not self._connected:
                    self._connected = True
                    yield b""  # `connect` ends here
                for piece in response.stream(PIECE_BYTES, decode_content=False):
                    if piece:
                        patience.refill()
                        self.offset += len(piece)
                        yield piece
            except (HTTPError, CutHead) as exc:
                broke = exc
            finally:
                response.close()
            if self._is_over(broke, patience):
                return
