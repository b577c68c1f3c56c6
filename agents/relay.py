"""Carries one caller of a unix socket over standard input and output: the way to the supervisor where sshd
forwards nothing. The agent's `relay` verb; the first line of stdin names the socket.
"""

import os
import select
import socket
import sys
from typing import Final

WORD: Final = b"@@sj-relay\n"
_PIECE: Final = 65_536


def main() -> int:
    """Listen, say so, take one caller, pass bytes both ways until either side ends."""
    path = _first_line()
    os.umask(0o077)
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    server.bind(path)
    server.listen(1)
    os.write(1, WORD)
    # nobody calls, and the other side hangs up: then there is nothing to wait for
    ready, _, _ = select.select([server.fileno(), 0], [], [])
    if server.fileno() not in ready:
        os.unlink(path)
        return 0
    caller, _ = server.accept()
    # one caller only: the next one finds no socket until there is a relay again
    os.unlink(path)
    server.close()
    _carry(caller)
    return 0


def _first_line() -> str:
    line = b""
    while not line.endswith(b"\n") and len(line) < 4096:
        data = os.read(0, 1)
        if not data:
            sys.exit(2)
        line += data
    return line.decode().rstrip("\n")


def _carry(caller: socket.socket) -> None:
    while True:
        ready, _, _ = select.select([caller.fileno(), 0], [], [])
        if caller.fileno() in ready:
            data = caller.recv(_PIECE)
            if not data:
                return
            _write(data)
        if 0 in ready:
            data = os.read(0, _PIECE)
            if not data:
                return
            caller.sendall(data)


def _write(data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(1, view) :]
