"""What an older version says is understood, and what it may not understand is optional (F080, I33).

`fixtures/frames_before_leases.json` was written by the code of before leases: one frame of each message.
"""

import json
from pathlib import Path

import msgspec
import pytest

from sirepo_jobs import protocol as p

OLD = json.loads((Path(__file__).parents[1] / "fixtures/frames_before_leases.json").read_text())


def test_every_word_of_an_older_agent_is_understood() -> None:
    for frame in OLD["from_agent"]:
        received = p.decode_from_agent(frame)
        assert (received.agent, received.epoch, received.session) == ("local-ann", 4, 9)
        (message,) = received.msgs
        assert not isinstance(message, p.Unknown), frame
        # what it said is what we hear: nothing of it is dropped, and what is new has its default
        said = json.loads(frame)["msgs"][0]
        heard = msgspec.to_builtins(message)
        assert {name: heard.get(name, said[name]) for name in said} == said


def test_every_word_of_an_older_supervisor_is_understood() -> None:
    for frame in OLD["to_agent"]:
        received = p.decode_to_agent(frame)
        assert received.ack == 6
        (message,) = received.msgs
        assert not isinstance(message, p.Unknown), frame
        said = json.loads(frame)["msgs"][0]
        heard = json.loads(msgspec.json.encode(message))
        assert {name: heard.get(name, said[name]) for name in said} == said


def test_an_older_agent_keeps_no_leases_and_an_older_heartbeat_wants_no_answer() -> None:
    messages = [p.decode_from_agent(frame).msgs[0] for frame in OLD["from_agent"]]
    (hello,) = [message for message in messages if isinstance(message, p.Hello)]
    (beat,) = [message for message in messages if isinstance(message, p.Heartbeat)]
    assert (hello.leases, beat.n) == (False, 0)
    (run,) = [m for frame in OLD["to_agent"] for m in p.decode_to_agent(frame).msgs if isinstance(m, p.Run)]
    assert run.lease_secs is None


@pytest.mark.parametrize("kind", ["run", "heartbeat", "hello"])
def test_what_an_older_one_is_told_without_leases_is_what_it_was_always_told(kind: str) -> None:
    """A field that it does not know is only there when it is used."""
    for direction, decode in (("to_agent", p.decode_to_agent), ("from_agent", p.decode_from_agent)):
        for frame in OLD[direction]:
            said = json.loads(frame)["msgs"][0]
            if said["op"] == kind:
                (message,) = decode(frame).msgs
                extra = json.loads(msgspec.json.encode(message)).keys() - said.keys()
                assert extra <= {"leases", "made_at", "marks"}, extra
