"""Reading one HTTP/1.1 response from a peer that we trust: bytes in, status, headers and body out.

Only the line to the supervisor uses it; what strangers send is read by Tornado. It costs a fifth of
Tornado's client connection, and half of what the front end spends on a request was spent there.
"""

from enum import Enum

from sirepo_jobs.errors import RemoteError

MAX_HEAD_BYTES = 64 << 10


class _At(Enum):
    HEAD = 1
    BODY = 2
    CHUNK_SIZE = 3
    CHUNK = 4
    CHUNK_END = 5
    TRAILER = 6
    UNTIL_CLOSE = 7
    DONE = 8


class ResponseReader:
    """Push parser of one response; what it has learned stands in its attributes."""

    def __init__(self, *, has_body: bool = True) -> None:
        #: The answer to a HEAD has none, whatever its headers say.
        self._has_body = has_body
        #: 0 until the head is complete.
        self.status = 0
        #: Names in lower case.
        self.headers: dict[str, str] = {}
        self._at = _At.HEAD
        self._left = 0
        self._rest = b""

    @property
    def done(self) -> bool:
        """The response is complete."""
        return self._at is _At.DONE

    @property
    def reusable(self) -> bool:
        """The connection may carry another request."""
        return self.done and not self._rest and self.headers.get("connection", "").lower() != "close"

    def close(self) -> None:
        """The peer has hung up: the end of a body that has no other."""
        if self._at is _At.UNTIL_CLOSE:
            self._at = _At.DONE

    def feed(self, data: bytes) -> bytes:
        """The bytes of the body in `data`, which may be none. Raises `RemoteError` on nonsense."""
        if self._at is _At.BODY and not self._rest and len(data) <= self._left:  # nearly always
            self._left -= len(data)
            if not self._left:
                self._at = _At.DONE
            return data
        if self._at is _At.UNTIL_CLOSE:
            return data
        data = self._rest + data
        self._rest = b""
        pieces: list[bytes] = []
        start = 0
        while start < len(data) and self._at is not _At.DONE:
            end = self._step(data, start, pieces)
            if end < 0:
                break
            start = end
        self._rest = data[start:]
        if len(self._rest) > MAX_HEAD_BYTES:
            raise RemoteError(f"{len(self._rest)} bytes that are no HTTP response")
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _step(self, data: bytes, start: int, pieces: list[bytes]) -> int:
        """Where the next step begins; -1: more bytes are needed."""
        match self._at:
            case _At.HEAD:
                end = data.find(b"\r\n\r\n", start)
                if end >= 0:
                    self._head(data[start:end].decode("latin1"))
                    end += 4
                return end
            case _At.BODY | _At.CHUNK | _At.UNTIL_CLOSE:
                piece = data[start : start + self._left] if self._at is not _At.UNTIL_CLOSE else data[start:]
                pieces.append(piece)
                self._left -= len(piece)
                if not self._left:
                    self._at = _At.DONE if self._at is _At.BODY else _At.CHUNK_END
                return start + len(piece)
            case _At.CHUNK_SIZE:
                end = data.find(b"\r\n", start)
                if end >= 0:
                    self._chunk(data[start:end])
                    end += 2
                return end
            case _At.CHUNK_END:
                if len(data) - start < 2:
                    return -1
                if data[start : start + 2] != b"\r\n":
                    raise RemoteError("a chunk does not end where it should")
                self._at = _At.CHUNK_SIZE
                return start + 2
            case _At.TRAILER:
                end = data.find(b"\r\n", start)
                if end == start:
                    self._at = _At.DONE
                return end + 2 if end >= 0 else -1
        raise AssertionError(self._at)

    def _head(self, text: str) -> None:
        lines = text.split("\r\n")
        version, _, rest = lines[0].partition(" ")
        status = rest[:3]
        if version not in ("HTTP/1.1", "HTTP/1.0") or not (status.isascii() and status.isdecimal()):
            raise RemoteError(f"{lines[0][:64]!r} is no HTTP status line")
        if status < "200":
            return  # 100 Continue and friends: the real one follows
        for line in lines[1:]:
            name, _, value = line.partition(":")
            self.headers[name.lower()] = value.strip(" \t")
        self.status = int(status)
        length = self.headers.get("content-length", "")
        if self.status in (204, 304) or length == "0" or not self._has_body:
            self._at = _At.DONE
        elif self.headers.get("transfer-encoding", "").lower() == "chunked":
            self._at = _At.CHUNK_SIZE
        elif length:
            if not (length.isascii() and length.isdecimal()):
                raise RemoteError(f"Content-Length: {length[:64]!r}")
            self._left = int(length)
            self._at = _At.BODY
        else:
            self._left = -1
            self._at = _At.UNTIL_CLOSE

    def _chunk(self, line: bytes) -> None:
        size = line.partition(b";")[0].strip()
        try:
            self._left = int(size, 16)
        except ValueError:
            raise RemoteError(f"{line[:64]!r} is no chunk size") from None
        if self._left < 0:
            raise RemoteError(f"{line[:64]!r} is no chunk size")
        self._at = _At.CHUNK if self._left else _At.TRAILER
