"""Reads a cluster's policy file: TOML in, `ClusterPolicy` out, or one error that names the place."""

import re
import tomllib
from typing import Any, Final

import msgspec

from .cluster import ClusterPolicy
from .errors import BadInput
from .resources import parse_secs

_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,31}")
_HOST: Final = re.compile(r"[A-Za-z0-9_.:-]{1,255}")
_PATH: Final = re.compile(r"(~/|/)[A-Za-z0-9_./{}+@-]*")


def parse_policy(name: str, text: str) -> ClusterPolicy:
    """The policy of the file `name.toml`. Durations may be texts like `30s`. Raises `BadInput`."""
    try:
        if not _NAME.fullmatch(name):
            raise BadInput(
                "a cluster's name has lower case letters, digits and '_', and begins with a letter"
            )
        tree = tomllib.loads(text)
        policy = msgspec.convert({**_in_secs(tree), "name": name}, ClusterPolicy)
        _check(policy)
    except tomllib.TOMLDecodeError as exc:
        raise BadInput(f"cluster {name}: not TOML: {exc}", code="bad_cluster") from None
    except (msgspec.ValidationError, BadInput) as exc:
        raise BadInput(f"cluster {name}: {exc}", code="bad_cluster") from None
    return policy


def _in_secs(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {
        key: parse_secs(item) if key.endswith("_secs") and isinstance(item, str) else _in_secs(item)
        for key, item in value.items()
    }


def _check(policy: ClusterPolicy) -> None:
    """What the types alone cannot say."""
    ssh, slurm = policy.ssh, policy.slurm
    for host in (ssh.host, *ssh.jump_hosts):
        if not _HOST.fullmatch(host) or host.startswith("-"):
            raise BadInput(f"{host!r} is not a host")
    if not 0 < ssh.port < 65536:
        raise BadInput(f"ssh.port={ssh.port} is not a port")
    if not ssh.known_hosts.startswith("/"):
        raise BadInput(f"ssh.known_hosts={ssh.known_hosts!r}: give an absolute path; ssh-keyscan fills it")
    if not _PATH.fullmatch(ssh.root) or ".." in ssh.root.split("/"):
        raise BadInput(f"ssh.root={ssh.root!r}: give a plain path that begins with / or ~/")
    if not ssh.root.startswith("~/") and "{user}" not in ssh.root:
        # SECURITY: SIR-44. Two users must never share a directory.
        raise BadInput(
            f"ssh.root={ssh.root!r} is the same for every user; put {{user}} into it, or begin with ~/"
        )
    if ssh.root.replace("{user}", "").count("{") or ssh.key_file.replace("{user}", "").count("{"):
        raise BadInput("only {user} is filled in, in ssh.root and ssh.key_file")
    if not ssh.auth or not ssh.reach:
        raise BadInput("ssh.auth and ssh.reach may not be empty")
    least = {
        "ssh.connect_secs": ssh.connect_secs,
        "ssh.prompt_secs": ssh.prompt_secs,
        "ssh.keepalive_secs": ssh.keepalive_secs,
        "ssh.logins_per_day": ssh.logins_per_day,
        "ssh.max_sessions": ssh.max_sessions,
        "slurm.query_secs": slurm.query_secs,
        "slurm.submits_per_minute": slurm.submits_per_minute,
        "slurm.max_jobs": slurm.max_jobs,
        "slurm.queries_per_minute": slurm.queries_per_minute,
        "slurm.max_array": slurm.max_array,
        "slurm.command_secs": slurm.command_secs,
    }
    for field, number in least.items():
        if number <= 0:
            raise BadInput(f"{field}={number:g} must be more than 0")
