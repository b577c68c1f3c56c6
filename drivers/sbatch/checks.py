"""`sirepo-jobs cluster check`: everything that a job there will need, one after the other, with what to do
(F137, F139)."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

from sirepo_jobs.drivers.sbatch import remote, stage
from sirepo_jobs.drivers.sbatch.session import Session
from sirepo_jobs.errors import LaunchError
from sirepo_jobs.login import Check
from sirepo_jobs.resources import format_bytes

#: A little more than the unpacked bundle and an agent's files.
NEEDED_KIB: Final = 100 * 1024
#: In the order in which they are looked at; what follows a failure is not looked at.
NAMES: Final = ("bundle", "login", "shell", "directory", "space", "tools", "agent", "slurm")


async def check(session: Session, bundle_dir: Path) -> list[Check]:
    """Every check, those that could not be made with `ok` null."""
    done = [found async for found in _checks(session, bundle_dir)]
    made = {found.name for found in done}
    rest = [name for name in NAMES if name not in made and not (name == "slurm" and session.policy.processes)]
    return done + [
        Check(name=name, ok=None, message="not looked at, since something before it failed") for name in rest
    ]


async def _checks(session: Session, bundle_dir: Path) -> AsyncIterator[Check]:
    policy = session.policy
    try:
        bundle = stage.load_bundle(bundle_dir)
    except LaunchError as exc:
        yield Check(name="bundle", ok=False, message=str(exc), hint="run bin/build-agent-bundle")
        return
    yield Check(name="bundle", ok=True, message=f"agent {bundle.version}, {format_bytes(bundle.size)}")
    try:
        connection = await session.connection()
    except LaunchError as exc:
        hint = f"sirepo-jobs cluster login {policy.name}" if "log" in str(exc) else "see the message"
        yield Check(name="login", ok=False, message=str(exc), hint=hint)
        return
    yield Check(name="login", ok=True, message=f"{session.username} at {policy.ssh.host}:{policy.ssh.port}")
    root = policy.ssh.root.replace("{user}", session.username)
    try:
        said = await stage.run(connection, remote.probe(root, bundle.version, policy.slurm.bin_dir))
    except LaunchError as exc:
        yield Check(
            name="shell",
            ok=False,
            message=str(exc),
            hint="the account must run /bin/sh; ask the cluster's administrators for one that does",
        )
        return
    yield Check(name="shell", ok=True, message=f"/bin/sh runs on {said.words.get('node', '?')}")
    if said.status:
        what, hint = remote.TROUBLES.get(said.status, ("cannot be used", "look into ssh.root"))
        where = said.words.get("root", root)
        name = "space" if said.status == 14 else "directory"
        if name == "space":
            yield Check(name="directory", ok=True, message=where)
        yield Check(name=name, ok=False, message=f"{where} {what}: {said.rest}", hint=hint)
        return
    place = remote.place(said)
    yield Check(name="directory", ok=True, message=place.root)
    yield _space(place)
    if place.lacks:
        yield Check(
            name="tools", ok=False, message=f"missing: {', '.join(place.lacks)}", hint="have them installed"
        )
        return
    yield Check(name="tools", ok=True, message="tar, gzip, sha256sum and setsid are there")
    try:
        uploaded = await stage.put_bundle(connection, place, bundle, bundle_dir)
        said = await stage.run(connection, remote.agent(place.root, bundle.version, "version", b""))
    except LaunchError as exc:
        yield Check(name="agent", ok=False, message=str(exc), hint="see the message")
        return
    if said.status:
        yield Check(
            name="agent",
            ok=False,
            message=f"the agent does not start ({said.status}): {said.rest[-300:]}",
            hint="is the file system mounted noexec? then set ssh.root to another one",
        )
        return
    how = "uploaded now" if uploaded else "there already"
    yield Check(name="agent", ok=True, message=f"starts ({said.rest.strip()[-100:]}); {how}")
    if not policy.processes:
        yield _slurm(place)


def _space(place: remote.Place) -> Check:
    if place.free_kib is None:
        return Check(name="space", ok=True, message="a megabyte can be written")
    free = format_bytes(place.free_kib * 1024)
    if place.has_bundle or place.free_kib >= NEEDED_KIB:
        return Check(name="space", ok=True, message=f"{free} free")
    return Check(
        name="space",
        ok=False,
        message=f"{free} free in {place.root}, an agent needs {format_bytes(NEEDED_KIB * 1024)}",
        hint="free some space, or set ssh.root to another file system",
    )


def _slurm(place: remote.Place) -> Check:
    missing = [name for name in ("sbatch", "squeue", "scancel") if name not in place.slurm]
    if missing:
        return Check(
            name="slurm",
            ok=False,
            message=f"not found: {', '.join(missing)}",
            hint="set slurm.bin_dir to the directory that has them",
        )
    accounting = "" if "sacct" in place.slurm else "; no sacct, so what ended is known from the jobs alone"
    return Check(name="slurm", ok=True, message=f"{place.slurm['sbatch']}{accounting}")
