"""What stands in `agent.json`, and how a bundle is started."""

import msgspec
import pytest

from sirepo_jobs.agent_bundle import FORMAT, AgentBundle

BUNDLE = AgentBundle(
    format=FORMAT,
    version="1-a",
    sha256="ab",
    size=3,
    machine="x86_64",
    python="3.11.7",
    loader="lib/ld.so",
    interpreter="bin/python3.11",
    inputs="cd",
)


def test_read_as_written() -> None:
    assert AgentBundle.from_json(msgspec.json.encode(BUNDLE)) == BUNDLE


@pytest.mark.parametrize(
    "data", [b"", b"{}", msgspec.json.encode(msgspec.structs.replace(BUNDLE, format=FORMAT + 1))]
)
def test_what_cannot_be_used_says_what_to_do(data: bytes) -> None:
    with pytest.raises(ValueError, match="build the bundle again"):
        AgentBundle.from_json(data)


def test_command_is_all_within_the_directory() -> None:
    command = BUNDLE.command("/d")
    assert command[0] == "/d/lib/ld.so"
    assert command[-1] == "/d/main.py"
    assert "/d/bin/python3.11" in command
    assert [word for word in command if word.startswith("/") and not word.startswith("/d/")] == []
