"""What administrators say about containers: one TOML file, read at the start (`etc/docker/example.toml`)."""

import os
import re
import tomllib
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
from msgspec import Struct

from sirepo_jobs.drivers.docker.placement import PoolPolicy, check_pools
from sirepo_jobs.errors import BadInput
from sirepo_jobs.resources import parse_bytes

_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,31}")
_URL: Final = re.compile(r"unix:///[^\0]+|https://[A-Za-z0-9.:\[\]-]+:\d+")
#: Whoever runs the supervisor as root and says nothing about `ids` gets containers of this user: `nobody`.
NOBODY: Final = 65534
#: Older ones block what an agent needs (clone3, 20.10.10), or let containers out (runc: CVE-2022-29162).
LEAST_VERSIONS: Final = {"Engine": "20.10.10", "containerd": "1.4.12", "runc": "1.1.2"}


class Registry(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who pulls private images from a registry. SECURITY: the password stays in its file until it is used."""

    username: str
    password_file: str


class EnginePolicy(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One Docker engine."""

    #: `unix:///PATH`, or `https://HOST:PORT`, which takes `ca`, `cert` and `key` (PEM files).
    url: str
    ca: str = ""
    cert: str = ""
    key: str = ""
    #: What it has to give to jobs of ours.
    cpus: int
    memory: int
    gpus: int = 0
    #: At most so many agents at once; 0: no limit but the above.
    agents: int = 0

    @property
    def is_remote(self) -> bool:
        """Its paths are not ours: files go into volumes, agents call by TLS."""
        return not self.url.startswith("unix:")


class MountPolicy(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A directory of the host that jobs may ask for, with everything below it."""

    path: str
    writable: bool = False


class DockerPolicy(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole file."""

    engines: dict[str, EnginePolicy]
    #: Which of them are for whom alone.
    pools: dict[str, PoolPolicy] = {}
    #: For jobs that name no image; "": these are refused.
    image: str = ""
    #: Images that may be used begin with one of these; empty: any.
    allowed_images: list[str] = []
    #: Where tarballs of images lie (`docker save`), named NAME_TAG.tar with `/` and `:` as `_`; "": nowhere.
    tarballs: str = ""
    #: Whether images are pulled from registries.
    pull: bool = True
    pull_secs: float = 600.0
    #: uid:gid of containers; "": of the supervisor, or `nobody` when that is root.
    ids: str = ""
    #: The same for single users; `{"ann": "1001:1001"}`.
    user_ids: dict[str, str] = {}
    #: What engines must at least be (S54), by the names of `docker version`; and whether older ones are used.
    least_versions: dict[str, str] = {}
    old_engines: Literal["warn", "refuse"] = "warn"
    mounts: list[MountPolicy] = []
    #: Of one container; 0: all that its engine has.
    cpus: int = 0
    memory: int = 0
    pids: int = 512
    open_files: int = 4096
    shm: int = 64 << 20
    tmp: int = 1 << 30
    #: Network of containers with `services: ["network"]`, and of all on remote engines; "": there is none.
    network: str = ""
    #: user (or `*`) -> registry -> credentials.
    registries: dict[str, dict[str, Registry]] = {}

    @property
    def least(self) -> dict[str, str]:
        """The versions that engines must have at least."""
        return {**LEAST_VERSIONS, **self.least_versions}

    def ids_of(self, user: str) -> tuple[int, int]:
        """uid and gid of a user's containers; never root's."""
        said = self.user_ids.get(user, self.ids)
        if said:
            uid, _, gid = said.partition(":")
            return int(uid), int(gid)
        return (os.getuid(), os.getgid()) if os.getuid() != 0 else (NOBODY, NOBODY)

    def registry_of(self, user: str, host: str) -> Registry | None:
        """The credentials of that user, else those of everybody."""
        for name in (user, "*"):
            if found := self.registries.get(name, {}).get(host):
                return found
        return None


def read_policy(path: Path) -> DockerPolicy:
    """The policy of a file. Raises `BadInput` that names the place."""
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
        policy = msgspec.convert(_in_bytes(tree), DockerPolicy)
        _check(policy)
    except (OSError, UnicodeDecodeError) as exc:
        raise BadInput(f"docker_file {path} cannot be read: {exc}", code="bad_docker_file") from None
    except tomllib.TOMLDecodeError as exc:
        raise BadInput(f"docker_file {path} is not TOML: {exc}", code="bad_docker_file") from None
    except (msgspec.ValidationError, BadInput) as exc:
        raise BadInput(f"docker_file {path}: {exc}", code="bad_docker_file") from None
    return policy


def _in_bytes(tree: dict[str, Any]) -> dict[str, Any]:
    found = dict(tree)
    for name in ("memory", "shm", "tmp"):
        if name in found:
            found[name] = parse_bytes(found[name])
    if isinstance(engines := found.get("engines"), dict):
        found["engines"] = {
            name: {**engine, "memory": parse_bytes(engine["memory"])}
            if isinstance(engine, dict) and "memory" in engine
            else engine
            for name, engine in engines.items()
        }
    return found


def _check(policy: DockerPolicy) -> None:
    if not policy.engines:
        raise BadInput("there is no engine; write [engines.NAME] with url, cpus and memory")
    for name, engine in policy.engines.items():
        if not _NAME.fullmatch(name):
            raise BadInput(f"engines.{name}: a name has lower case letters, digits and '_'")
        if not _URL.fullmatch(engine.url):
            # SECURITY: S51. An engine in the clear gives root on its host to everybody on the way.
            raise BadInput(
                f"engines.{name}: url={engine.url!r} is neither unix:///PATH nor https://HOST:PORT"
            )
        if engine.is_remote and not (engine.ca and engine.cert and engine.key):
            raise BadInput(f"engines.{name}: an engine over TCP needs ca, cert and key")
        if engine.is_remote and not policy.network:
            raise BadInput(f"engines.{name}: agents on a remote engine need the setting network to call us")
        if engine.cpus < 1 or engine.memory < 1 << 20:
            raise BadInput(f"engines.{name}: cpus={engine.cpus}, memory={engine.memory} cannot be meant")
    for name in policy.pools:
        if not _NAME.fullmatch(name):
            raise BadInput(f"pools.{name}: a name has lower case letters, digits and '_'")
    check_pools(policy.pools, policy.engines)
    for said in [policy.ids, *policy.user_ids.values()]:
        if said and not re.fullmatch(r"[1-9]\d{0,8}:[1-9]\d{0,8}", said):
            raise BadInput(f"ids: {said!r} is not UID:GID; root is not allowed")
    for name, version in policy.least_versions.items():
        if name not in LEAST_VERSIONS or not re.fullmatch(r"\d+(\.\d+){0,2}", version):
            known = ", ".join(LEAST_VERSIONS)
            raise BadInput(f"least_versions: {name} = {version!r}; write 1.2.3 for one of {known}")
    if policy.network == "host" or policy.network.startswith("container:"):
        raise BadInput(f"network: {policy.network!r} would put jobs into the network of others")
