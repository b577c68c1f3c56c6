"""What a container is, as data for the engine: hardened unless somebody asked otherwise (S50, SYS-C5).

Pure: the same arguments give the same container. Its fingerprint stands in a label, so that a change of
the policy is noticed when an agent is launched again.
"""

import hashlib
import json
import re
from typing import Any, Final

from msgspec import Struct

from sirepo_jobs.errors import LaunchError
from sirepo_jobs.reasons import Reason

#: Where the bundle is in every container.
BUNDLE: Final = "/opt/sirepo_jobs"
LABEL: Final = "org.sirepo-jobs"
#: Loader variables of an image are for its jobs; the agent must not be led by them.
LOADER_ENV: Final = ("LD_PRELOAD", "LD_LIBRARY_PATH", "LD_AUDIT", "LD_BIND_NOW", "LD_DEBUG", "GLIBC_TUNABLES")


class Limits(Struct, frozen=True, kw_only=True):
    """Of one container. Bytes and counts."""

    cpus: int
    memory: int
    pids: int
    open_files: int
    shm: int
    tmp: int


class Mount(Struct, frozen=True):
    """Something of the host, or a volume, in the container."""

    source: str
    target: str
    writable: bool = False
    volume: bool = False

    def to_engine(self) -> dict[str, Any]:
        """As the engine wants it; a source that does not exist is an error there, never made."""
        kind = "volume" if self.volume else "bind"
        told: dict[str, Any] = {
            "Type": kind,
            "Source": self.source,
            "Target": self.target,
            "ReadOnly": not self.writable,
        }
        if self.volume:
            told["VolumeOptions"] = {"NoCopy": True}
        else:
            told["BindOptions"] = {"Propagation": "rprivate"}
        return told


class Plan(Struct, frozen=True, kw_only=True):
    """Everything that a container is made from."""

    agent: str
    user: str
    #: Names this installation among others on the engine.
    place: str
    image_id: str
    #: As the user wrote it.
    image: str
    #: `NAME=VALUE` of the image.
    image_env: tuple[str, ...]
    command: tuple[str, ...]
    uid: int
    gid: int
    limits: Limits
    mounts: tuple[Mount, ...]
    #: "none", or a network of the engine.
    network: str = "none"
    gpus: int = 0


def name_of(place: str, agent: str) -> str:
    """The container's name: the token that makes launching twice find the first."""
    digest = hashlib.sha256(f"{place}\0{agent}".encode()).hexdigest()[:12]
    return f"sj-{digest}-{re.sub(r'[^A-Za-z0-9_.-]', '_', agent)[:80]}"


def labels_of(plan: Plan) -> dict[str, str]:
    """By which it is known again."""
    return {
        f"{LABEL}.place": plan.place,
        f"{LABEL}.agent": plan.agent,
        f"{LABEL}.user": plan.user,
        f"{LABEL}.image": plan.image,
        f"{LABEL}.plan": fingerprint(plan),
    }


def fingerprint(plan: Plan) -> str:
    """Changes when anything about the container does."""
    return hashlib.sha256(repr(plan).encode()).hexdigest()[:16]


def config_of(plan: Plan) -> dict[str, Any]:
    """The body of the engine's `POST /containers/create`."""
    limits = plan.limits
    return {
        "Image": plan.image_id,
        "Entrypoint": [],
        "Cmd": [*plan.command, "run"],
        # SECURITY: the token goes over stdin, in no argument, variable, label or file.
        "OpenStdin": True,
        "StdinOnce": True,
        "AttachStdin": True,
        "AttachStdout": True,
        "AttachStderr": True,
        "Tty": False,
        "Env": [f"{name}=" for name in LOADER_ENV if _has(plan.image_env, name)],
        "WorkingDir": "/",
        "User": f"{plan.uid}:{plan.gid}",
        "Labels": labels_of(plan),
        "Healthcheck": {"Test": ["NONE"]},
        "StopSignal": "SIGTERM",
        "HostConfig": {
            "NetworkMode": plan.network,
            "Mounts": [mount.to_engine() for mount in plan.mounts],
            "CapDrop": ["ALL"],
            "CapAdd": [],
            "SecurityOpt": ["no-new-privileges"],
            "Privileged": False,
            "PublishAllPorts": False,
            "ReadonlyRootfs": True,
            "Tmpfs": {"/tmp": f"rw,nosuid,nodev,mode=1777,size={limits.tmp}"},  # noqa: S108 - in there
            "IpcMode": "private",
            "PidMode": "",
            "UTSMode": "",
            "UsernsMode": "",
            "CgroupnsMode": "private",
            "ShmSize": limits.shm,
            "Memory": limits.memory,
            # Of memory and swap together: no swap.
            "MemorySwap": limits.memory,
            "NanoCpus": limits.cpus * 1_000_000_000,
            "PidsLimit": limits.pids,
            "Ulimits": [
                {"Name": "nofile", "Soft": limits.open_files, "Hard": limits.open_files},
                {"Name": "core", "Soft": 0, "Hard": 0},
            ],
            "DeviceRequests": [{"Count": plan.gpus, "Capabilities": [["gpu"]]}] if plan.gpus else [],
            "RestartPolicy": {"Name": "no"},
            "AutoRemove": False,
            # What the agent itself says; output of jobs goes straight to files.
            "LogConfig": {"Type": "json-file", "Config": {"max-size": "1m", "max-file": "1"}},
        },
    }


def job_env(image_env: tuple[str, ...]) -> dict[str, str]:
    """What the image says about the environment, for its jobs."""
    return {name: value for name, _, value in (entry.partition("=") for entry in image_env) if name}


def refused(message: str) -> LaunchError:
    """For what a job asks and never gets: it ends with this."""
    return LaunchError(message, retry=False, reason=Reason.UNSATISFIABLE)


def _has(env: tuple[str, ...], name: str) -> bool:
    return any(entry.startswith(f"{name}=") for entry in env)


def to_json(config: dict[str, Any]) -> bytes:
    """For the wire and for tests that compare."""
    return json.dumps(config, sort_keys=True).encode()
