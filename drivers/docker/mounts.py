"""Which directories of a host a container may see: an allow-list, and what is never allowed (HYS-14, S52)."""

import os
from collections.abc import Callable, Iterable
from pathlib import PurePosixPath
from typing import Final

from sirepo_jobs.drivers.docker.container import refused
from sirepo_jobs.drivers.docker.policy import MountPolicy

#: Of a host; nothing in them is ever given to a container, whatever the allow-list says.
DENIED: Final = ("/dev", "/etc", "/lib", "/proc", "/usr", "/var", "/sys", "/boot", "/run", "/root")
#: In a container; ours, or the image's own affair.
TAKEN: Final = ("/dev", "/proc", "/sys", "/etc", "/opt/sirepo_jobs", "/tmp")  # noqa: S108


def resolve(
    asked: str,
    allowed: Iterable[MountPolicy],
    real_path: Callable[[str], str] = os.path.realpath,
) -> tuple[str, str, bool]:
    """`SOURCE[:TARGET][:ro|rw]` as (real source, target, writable). Raises `LaunchError`, which ends the job.

    SECURITY: decided by the real path and by whole components of it, so that neither a link nor a name
    that only begins like an allowed one leads anywhere else; the real path is what is mounted.
    """
    parts = asked.split(":")
    mode = parts.pop() if len(parts) > 1 and parts[-1] in ("ro", "rw") else "ro"
    if len(parts) > 2 or not all(part.startswith("/") and "\0" not in part for part in parts):
        raise refused(f"mount {asked!r} is not like /SOURCE:/TARGET:ro")
    source, target = parts[0], os.path.normpath(parts[-1])
    real = real_path(source)
    where = PurePosixPath(real)
    if real == "/" or any(where.is_relative_to(name) for name in DENIED):
        raise refused(f"mount {asked!r}: {real} is never given to containers")
    fit = [rule for rule in allowed if where.is_relative_to(real_path(rule.path))]
    if not fit:
        raise refused(f"mount {asked!r}: {real} is not below a directory that is allowed")
    if mode == "rw" and not any(rule.writable for rule in fit):
        raise refused(f"mount {asked!r}: {real} may be read only; ask for :ro")
    inside = PurePosixPath(target)
    if target == "/" or any(inside.is_relative_to(name) for name in TAKEN):
        raise refused(f"mount {asked!r}: {target} in the container is taken")
    return real, target, mode == "rw"
