"""The contract between the supervisor and whatever launches agents (SIR-33, I4).

What every driver promises, and `tests/driver_contract.py` holds it to:

* `launch` names what it launches after `AgentSpec.agent`; launching twice finds the first.
* A `Handle` is all that is needed to find the agent again after a restart of the supervisor: JSON,
  versioned, stored before it is used.
* `look` answers ALIVE or GONE only on evidence; everything else is UNKNOWN, and UNKNOWN ends nothing.
* `stop` may be repeated, and returns when the agent is gone or raises.
"""

import hashlib
from collections.abc import Collection
from enum import Enum
from typing import NamedTuple, Protocol, runtime_checkable

import msgspec
from msgspec import Struct

from .cluster import SlurmPolicy
from .resources import Resources


class Fate(Enum):
    """What a driver knows about an agent."""

    ALIVE = "alive"
    GONE = "gone"
    #: Not knowing is an answer; only a clear word ends a job (C4).
    UNKNOWN = "unknown"


#: What the name of an agent may look like: the key of its environment.
AGENT_NAME = r"[A-Za-z0-9][A-Za-z0-9_.@+-]{0,199}"


class Environment(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What jobs must have in common to share an agent."""

    driver: str
    user: str
    image: str | None = None
    #: Directories of the host that jobs see, as `SOURCE[:TARGET][:ro|rw]`.
    mounts: list[str] = []
    #: What jobs may reach beside their files: "network".
    services: list[str] = []
    #: Of its container: gpus that only its jobs have, and bytes of `/dev/shm`, None for what is usual.
    gpus: int = 0
    shm: int | None = None
    #: Name of the cluster; there the image belongs to the job, and one agent serves all of them.
    cluster: str | None = None

    @property
    def key(self) -> str:
        """A short name, equal for equal environments; usable in file names."""
        if self.cluster is not None:
            # SECURITY: SIR-35. A cluster's name holds no '-', so no two pairs look the same
            return f"{self.driver}.{self.cluster}-{self.user}"
        special: list[object] = [self.mounts, self.services]
        if self.gpus or self.shm is not None:
            special += [self.gpus, self.shm]
        if self.image is None and not any(special):
            return f"{self.driver}-{self.user}"
        told = self.image or ""
        if any(special):
            told = msgspec.json.encode([told, *special]).decode()
        # SECURITY: before the user's name: behind it, it could be the end of another user's (SIR-35)
        return f"{self.driver}.{hashlib.sha256(told.encode()).hexdigest()[:16]}-{self.user}"


class AgentSpec(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Everything an agent is told at its start. Goes over stdin or a 0600 file, never through argv."""

    agent: str
    environment: Environment
    #: Where it calls: `unix:PATH` or `wss://HOST:PORT/agent`.
    url: str
    #: Its secret for that door.
    token: str
    #: Directory of the agent's own files, made by the driver (0700).
    home: str
    #: Below here lie the run dirs.
    run_root: str
    #: Names of variables of the agent's environment that jobs see too, besides the usual ones.
    pass_env: list[str] = []
    #: What every job finds in its environment unless it says otherwise: the image's word.
    env: dict[str, str] = {}
    #: For `wss`: the certificate authorities to trust beside none other, as a file where the agent runs,
    #: or as PEM. None of the two: those of its system.
    ca_file: str | None = None
    ca_pem: str | None = None
    #: Its jobs are Slurm's; None: they are processes of its own.
    slurm: SlurmPolicy | None = None


class Handle(Struct, frozen=True, kw_only=True):
    """What a driver needs to find an agent again."""

    agent: str
    driver: str
    version: int
    data: dict[str, str | int]

    def to_json(self) -> bytes:
        """For the store."""
        return msgspec.json.encode(self)

    @classmethod
    def from_json(cls, data: bytes | str) -> "Handle":
        """From the store."""
        return msgspec.json.decode(data, type=cls)


class Examined(NamedTuple):
    """What a look at one part of a driver's world found."""

    what: str
    ok: bool
    detail: str
    #: What to do when it is not ok.
    hint: str = ""


@runtime_checkable
class Examines(Protocol):
    """A driver that can say whether what it needs is there and in order."""

    async def examine(self, known: Collection[str] | None) -> list[Examined]:
        """Everything that commonly goes wrong, in reading order; changes nothing.

        `known`: names of the agents that the supervisor has; None where that is not known.
        """
        ...


@runtime_checkable
class HasHosts(Protocol):
    """A driver whose agents live on several hosts, each with something of its own to give."""

    #: By the host's name.
    hosts: dict[str, Resources]

    def host_of(self, user: str) -> str:
        """Where agents of that user are started; chosen at the first question. "": no host may have them."""
        ...

    def remember(self, user: str, handle: Handle) -> str:
        """An agent of before the restart: its user stays where it is, if that is still allowed.

        The host where that agent is; "" when that is not one of `hosts` any more.
        """
        ...


class Driver(Protocol):
    """Starts and finds agents of one kind."""

    #: Name of the entry point, and of the spec's `driver`.
    name: str
    #: What one place of this driver has to give; jobs that need more are refused at the door.
    capacity: Resources
    #: A launch that takes longer has failed (SIR-36).
    launch_secs: float
    #: What its agents run may live on when `look` says GONE; False where GONE is a proof of death for all of
    #: it, as with containers.
    jobs_outlive_agent: bool
    #: Its agents cannot reach the root's unix socket: their `AgentSpec` has the `wss` URL of the agents'
    #: door, and the supervisor does not start without that door.
    remote: bool

    async def launch(self, spec: AgentSpec) -> Handle:
        """Start the agent, or find the one of that name. Raises `LaunchError`."""
        ...

    async def look(self, handle: Handle) -> Fate:
        """What is known about it now. Never raises for a failed query: that is UNKNOWN."""
        ...

    async def stop(self, handle: Handle, *, grace_secs: float) -> None:
        """End the agent and everything that it runs; returns when it is gone. Raises `LaunchError`."""
        ...
