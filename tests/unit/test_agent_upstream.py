"""The launcher's end of the network side: one that goes mad costs itself alone."""

import os
import select
import time
from collections.abc import Callable

import pytest

from sirepo_jobs.agents.lane import MAX_FRAME_BYTES, Lane
from sirepo_jobs.agents.upstream import Upstream
from sirepo_jobs.agents.words import FromRelay, relay

LENGTH = 4
#: Far more than a process needs to begin.
WAIT_MS = 60_000


def frame(data: bytes) -> bytes:
    return len(data).to_bytes(LENGTH, "big") + data


def saying(data: bytes) -> Callable[[Lane], None]:
    """A network side, a process of its own, that says this and waits."""

    def body(lane: Lane) -> None:
        lane._sock.setblocking(True)
        lane._sock.sendall(data)
        time.sleep(600)

    return body


@pytest.mark.parametrize(
    "data",
    [
        frame(b"no json"),
        frame(b"{" * 50_000),
        frame(b'{"msgs":[{"op":"run","jid":7}]}'),
        frame(b"\xff\xfe"),
        (MAX_FRAME_BYTES + 1).to_bytes(LENGTH, "big") + b"x" * 100,
        b"\xff" * 100_000,
    ],
    ids=["text", "deep", "type", "bytes", "length", "noise"],
)
def test_a_network_side_that_speaks_nonsense_is_ended_and_replaced(data: bytes) -> None:
    poll = select.poll()
    upstream = Upstream(poll, saying(data))
    pid = upstream.keep(0.0)
    assert pid > 0
    assert poll.poll(WAIT_MS) != []
    deadline = time.monotonic() + WAIT_MS / 1000
    while upstream.fileno() >= 0:
        assert time.monotonic() < deadline
        assert upstream.hear() == []
    assert upstream.keep(1e9) == 0  # the first one must be gone
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -9
    assert poll.poll(0) == []
    upstream.died()
    upstream._body = saying(frame(relay(FromRelay(ack=7))))
    again = upstream.keep(time.monotonic() + 1e6)
    try:
        assert again not in (0, pid)
        assert poll.poll(WAIT_MS) != []
        assert [word.ack for word in upstream.hear()] == [7]
    finally:
        os.kill(again, 9)
        os.waitpid(again, 0)
        upstream.hang_up()
