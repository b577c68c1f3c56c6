"""The supervisor's end of a connection: what is stale is dropped, whatever it says (I6)."""

from types import SimpleNamespace
from typing import Any

import pytest

from sirepo_jobs import protocol as p
from sirepo_jobs.agent_line import AgentLine


class Ear:
    """An `AgentTalk` that remembers."""

    def __init__(self) -> None:
        self.heard: list[Any] = []

    def next_session(self) -> int:
        return 5

    def greet(self, agent: Any, line: Any, hello: p.Hello) -> None:
        agent.line = line

    def hear(self, agent: Any, line: Any, messages: list[Any]) -> None:
        self.heard += messages


def a_line() -> tuple[AgentLine, Ear, Any]:
    ear, agent = Ear(), SimpleNamespace(name="a", line=None)
    supervisor = SimpleNamespace(store=SimpleNamespace(epoch=3))
    transport = SimpleNamespace(hung_up=[])
    transport.hang_up = lambda code, why: transport.hung_up.append((code, why))
    return AgentLine(supervisor, ear, agent, transport), ear, agent  # type: ignore[arg-type]


def frame(message: Any, epoch: int = 0, session: int = 0) -> str:
    return p.encode(p.FromAgentFrame(agent="a", epoch=epoch, session=session, msgs=[message])).decode()


HELLO = p.Hello(agent="a", version="1", host="h", pid=1, boot_id="b", install="i", last_seq=0, inventory=[])
BEAT = p.Heartbeat(at=1, held=0)


@pytest.mark.parametrize(
    ("epoch", "session", "is_heard"), [(3, 5, True), (2, 5, False), (3, 4, False), (0, 0, False)]
)
def test_a_frame_counts_under_its_own_epoch_and_session_alone(
    epoch: int, session: int, is_heard: bool
) -> None:
    line, ear, _agent = a_line()
    line.receive(frame(HELLO))
    line.receive(frame(BEAT, epoch, session))
    assert ear.heard == ([BEAT] if is_heard else [])


def test_a_connection_that_was_replaced_is_not_heard_any_more() -> None:
    line, ear, agent = a_line()
    line.receive(frame(HELLO))
    agent.line = object()
    line.receive(frame(BEAT, 3, 5))
    assert ear.heard == []
