"""What is wrong with an engine, or soon will be: for `sirepo-jobs doctor`, and before its first container.

Versions (S54), limits, space, leftovers (F115), an engine that does not speak with us (F116).
"""

import os
import re
from collections.abc import Collection
from typing import Any, Final

from sirepo_jobs.driver import Examined
from sirepo_jobs.drivers.docker.container import LABEL
from sirepo_jobs.drivers.docker.engine import Engine, EngineError, Refused, Silent
from sirepo_jobs.resources import format_bytes

#: An engine without so much space left cannot take one image more.
LOW_SPACE_BYTES: Final = 5 << 30
#: What the engine must be able to hold a container to.
_LIMITS: Final = {
    "MemoryLimit": "memory",
    "CpuCfsQuota": "cpus",
    "PidsLimit": "processes",
    "SwapLimit": "swap",
}


def too_old(version: dict[str, Any], least: dict[str, str]) -> list[str]:
    """What is older than it must be, of the answer to `GET /version`; what does not tell is not old."""
    there = {part["Name"]: part["Version"] for part in version.get("Components") or ()}
    there.setdefault("Engine", version.get("Version", ""))
    return [
        f"{name} {there[name]} is older than {wanted}"
        for name, wanted in least.items()
        if there.get(name) and _numbers(there[name]) < _numbers(wanted)
    ]


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


async def examine(
    engine: Engine, least: dict[str, str], place: str, known: Collection[str] | None
) -> list[Examined]:
    """Everything about one engine, in reading order.

    `known`: the agents that somebody answers for; None where that is not known.
    """
    what = f"engine {engine.name}"
    try:
        version = await engine.version()
        info = await engine.info()
    except EngineError as exc:
        return [Examined(what, False, str(exc), _remedy(exc, engine))]
    said = f"{engine.policy.url}: {version.get('Version')}, {info.get('Architecture')}"
    found = [Examined(what, True, said)]
    old = too_old(version, least)
    found.append(
        Examined(
            f"{what} versions",
            not old,
            "; ".join(old) or "none is older than it must be",
            "upgrade it, or say in docker_file under [least_versions] what your distribution has mended",
        )
    )
    found.append(_limits(what, info))
    found.append(_size(what, engine, info))
    found.append(_space(what, engine, info))
    found.append(await _leftovers(what, engine, place, known))
    return found


def _remedy(exc: EngineError, engine: Engine) -> str:
    text = str(exc)
    if "ermission denied" in text:
        return "let the supervisor's user use its socket (group docker); that makes it root there"
    if isinstance(exc, Refused) and "too old" in text:
        return "upgrade the engine: it does not speak API 1.41 (docker 20.10)"
    if isinstance(exc, Silent) and not engine.policy.is_remote:
        return "start it (systemctl start docker), or name the right socket in docker_file"
    return "start it, and look at address, ca, cert and key in docker_file"


def _limits(what: str, info: dict[str, Any]) -> Examined:
    missing = [word for name, word in _LIMITS.items() if not info.get(name)]
    if not any("seccomp" in option for option in info.get("SecurityOptions") or ()):
        missing.append("system calls (seccomp)")
    said = f"cgroup v{info.get('CgroupVersion', '1')}: "
    said += f"cannot limit {', '.join(missing)}" if missing else "memory, cpus and processes can be limited"
    hint = "boot with cgroup_enable=memory swapaccount=1, and let the engine have its default seccomp profile"
    return Examined(f"{what} limits", not missing, said, hint)


def _size(what: str, engine: Engine, info: dict[str, Any]) -> Examined:
    cpus, memory = int(info.get("NCPU") or 0), int(info.get("MemTotal") or 0)
    ours = engine.policy
    fits = ours.cpus <= cpus and ours.memory <= memory
    said = f"{ours.cpus} of {cpus} cpus, {format_bytes(ours.memory)} of {format_bytes(memory)} are for jobs"
    return Examined(
        f"{what} size", fits, said, "docker_file promises more than there is: lower cpus or memory"
    )


def _space(what: str, engine: Engine, info: dict[str, Any]) -> Examined:
    root = str(info.get("DockerRootDir") or "")
    if engine.policy.is_remote:
        return Examined(f"{what} space", True, f"{root} is on that machine: look there")
    try:
        stat = os.statvfs(root)
    except OSError as exc:
        return Examined(f"{what} space", True, f"{root} cannot be seen from here: {exc.strerror}")
    free = stat.f_bavail * stat.f_frsize
    said = f"{format_bytes(free)} free in {root}"
    return Examined(f"{what} space", free >= LOW_SPACE_BYTES, said, "remove images: docker image prune --all")


async def _leftovers(what: str, engine: Engine, place: str, known: Collection[str] | None) -> Examined:
    """Containers of ours that nobody will use again (F115)."""
    try:
        ours = await engine.containers(place)
    except EngineError as exc:
        return Examined(f"{what} leftovers", False, str(exc))
    left = [
        str(one["Id"])[:12]
        for one in ours
        if one.get("State") not in ("running", "paused", "created")
        or (known is not None and (one.get("Labels") or {}).get(f"{LABEL}.agent") not in known)
    ]
    said = f"{len(ours)} containers of ours" + (f", nobody answers for {', '.join(left)}" if left else "")
    hint = f"look at them, then: docker -H {engine.policy.url} rm -f {' '.join(left)}"
    return Examined(f"{what} leftovers", not left, said, hint)
