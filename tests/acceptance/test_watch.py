"""`watch` in a pipe and on a terminal."""

import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time

import pytest

from .conftest import COMMAND, System

pytestmark = pytest.mark.timeout(120)


def test_in_a_pipe_every_event_is_a_line(system: System) -> None:
    process = subprocess.Popen([*COMMAND, "watch"], env=system.environ, stdout=subprocess.PIPE)
    try:
        client = system.client()
        assert process.stdout is not None
        jid = ""
        while not jid:  # until it listens
            jid = client.submit({"command": ["true"]}).jid
            ready, _, _ = select.select([process.stdout], [], [], 0.5)
            jid = jid if ready else ""
        line = process.stdout.readline().decode().split()
        assert len(line) == 5
        assert line[0].startswith("20")
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def test_on_a_terminal_it_is_a_table_that_q_leaves(system: System) -> None:
    client = system.client()
    jid = client.submit({"command": ["sleep", "600"], "name": "long-name-" * 9}).jid
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environ = system.environ | {"TERM": "xterm", "NO_COLOR": "1"}
    process = subprocess.Popen(
        [*COMMAND, "watch"], env=environ, stdin=theirs, stdout=theirs, stderr=theirs, close_fds=True
    )
    os.close(theirs)
    try:
        seen = b""
        end = time.monotonic() + 60
        while b"running" not in seen or jid.encode() not in seen or b"q leaves" not in seen:
            assert time.monotonic() < end, seen
            seen += os.read(ours, 65536)
        os.write(ours, b"q")
        while True:
            try:
                if not os.read(ours, 65536):
                    break
            except OSError:
                break
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)
        client.cancel(jid)
        client.wait(jid, timeout=60)
