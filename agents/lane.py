"""A framed stream between two processes of one agent: length-prefixed frames over a socket pair."""

import socket
import struct
from collections import deque
from typing import Final

_LENGTH: Final = struct.Struct(">I")
#: A frame of the supervisor's, the words of a whole inventory: all stay far below.
MAX_FRAME_BYTES: Final = 256 << 20
#: More at once costs a mapping of memory each time.
_READ_BYTES: Final = 1 << 16


class Lane:
    """One end. Never blocks; `closed` is set once the other end is gone and everything it said was taken."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._in = bytearray()
        self._out: deque[bytes | memoryview] = deque()
        #: Bytes that the kernel has not taken yet.
        self.pending = 0
        self.closed = False
        #: It was closed because of what the other end said.
        self.nonsense = False

    def fileno(self) -> int:
        """For poll."""
        return self._sock.fileno()

    def put(self, payload: bytes) -> None:
        """Queue one frame; `flush` sends it."""
        self._out.append(_LENGTH.pack(len(payload)) + payload)
        self.pending += _LENGTH.size + len(payload)

    def flush(self) -> None:
        """Hand the kernel what it takes now. What the other end can no longer hear is dropped."""
        out = self._out
        while out:
            data = b"".join(out) if len(out) > 1 else out[0]
            out.clear()
            try:
                sent = self._sock.send(data, socket.MSG_NOSIGNAL)
            except BlockingIOError:
                sent = 0
            except OSError:
                # The other end died; its last words may still wait to be taken.
                self.pending = 0
                return
            self.pending -= sent
            if sent < len(data):
                out.append(memoryview(data)[sent:])
                return

    def take(self) -> list[bytes]:
        """Every frame that is complete."""
        held = self._in
        while not self.closed:
            try:
                data = self._sock.recv(_READ_BYTES)
            except BlockingIOError:
                break
            except OSError:
                data = b""
            if not data:
                self.closed = True
            held += data
            if len(data) < _READ_BYTES:
                break
        frames: list[bytes] = []
        at, end = 0, len(held)
        while end - at >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(held, at)
            if length > MAX_FRAME_BYTES:
                # nobody of ours says so much: it is no frame, and nothing after it is one (C16)
                self.closed = self.nonsense = True
                held.clear()
                return frames
            if end - at - _LENGTH.size < length:
                break
            at += _LENGTH.size
            frames.append(bytes(held[at : at + length]))
            at += length
        if at:
            del held[:at]
        return frames

    def close(self) -> None:
        """Hang up."""
        self._sock.close()
        self.closed = True


def lane_pair() -> tuple[socket.socket, socket.socket]:
    """Two connected ends, neither inherited by programs."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
