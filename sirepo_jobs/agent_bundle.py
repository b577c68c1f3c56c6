"""What an agent bundle is: an agent with its own Python and libc, for places that have neither (design 6).

`bin/build-agent-bundle OUT` (`bundler.py`) makes three things in OUT:

* `agent.tar.gz`, to be unpacked or mounted anywhere; the same bytes for the same sources and Python;
* `agent/`, the same, unpacked;
* `agent.json`, an `AgentBundle`, put in place last: who finds it finds the other two.

Drivers bring the bundle to where the agent shall run and start `AgentBundle.command(directory)` there.
"""

from typing import Final

import msgspec
from msgspec import Struct

TAR: Final = "agent.tar.gz"
TREE: Final = "agent"
MANIFEST: Final = "agent.json"
#: In the bundle: starts the agent from wherever it lies, given a POSIX shell. Takes the verb.
SCRIPT: Final = "bin/agent"
FORMAT: Final = 1


class AgentBundle(Struct, frozen=True, kw_only=True):
    """`agent.json`."""

    format: int
    #: Of sirepo_jobs and of the bytes: a new version is a new directory or volume where it is put.
    version: str
    #: Of `agent.tar.gz`, in hex.
    sha256: str
    #: Length of `agent.tar.gz`, in bytes.
    size: int
    #: Of the processor, as `uname -m` says it.
    machine: str
    python: str
    #: Paths within the bundle.
    loader: str
    interpreter: str
    #: What it was made from; equal inputs need no second build.
    inputs: str

    @classmethod
    def from_json(cls, data: bytes) -> "AgentBundle":
        """From `agent.json`. Raises `ValueError` for what this version cannot use."""
        try:
            found = msgspec.json.decode(data, type=cls)
        except msgspec.DecodeError as exc:
            raise ValueError(f"{MANIFEST} cannot be read: {exc}; build the bundle again") from exc
        if found.format != FORMAT:
            raise ValueError(f"{MANIFEST} has format {found.format}, not {FORMAT}; build the bundle again")
        return found

    def command(self, directory: str) -> list[str]:
        """The agent in a bundle that lies in `directory`, up to the verb; needs no shell and no libc there.

        Nothing is set in the environment: what the agent starts uses the libraries of its own place.
        """
        return [
            f"{directory}/{self.loader}",
            "--inhibit-cache",
            "--library-path",
            f"{directory}/lib",
            f"{directory}/{self.interpreter}",
            *PYTHON_FLAGS,
            f"{directory}/main.py",
        ]


#: Nothing of the place's own Python, and nothing written into the bundle.
PYTHON_FLAGS: Final = ("-I", "-S", "-B", "-X", "utf8")
