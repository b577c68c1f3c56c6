"""`sirepo-jobs cluster check`: everything that a job there will need, one after the other, with what to do
(F137, F139)."""

from pathlib import Path
from typing import Final

from sirepo_jobs.agent_bundle import AgentBundle
from sirepo_jobs.drivers.sbatch import remote, stage
from sirepo_jobs.drivers.sbatch.session import Session
from sirepo_jobs.drivers.sbatch.ssh import Connection
from sirepo_jobs.errors import LaunchError
from sirepo_jobs.login import Check
from sirepo_jobs.resources import format_bytes

#: A little more than the unpacked bundle and an agent's files.
NEEDED_KIB: Final = 100 * 1024
#: In the order in which they are looked at; what follows a failure is not looked at.
NAMES: Final = ("bundle", "login", "shell", "directory", "space", "tools", "agent", "slurm")
#: The file system of `ssh.root` is full (`remote.TROUBLES`).
_FULL: Final = 14


class _Amiss(Exception):
    """What a check has found, and what to do."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


async def check(session: Session, bundle_dir: Path) -> list[Check]:
    """Every check, those that could not be made with `ok` null."""
    looks = _Looks(session, bundle_dir)
    checks: list[Check] = []
    amiss = False
    for name in NAMES:
        if name == "slurm" and session.policy.processes:
            continue
        if amiss:
            checks.append(
                Check(name=name, ok=None, message="not looked at, since something before it failed")
            )
            continue
        try:
            checks.append(Check(name=name, ok=True, message=await getattr(looks, name)()))
        except _Amiss as exc:
            amiss = True
            checks.append(Check(name=name, ok=False, message=str(exc), hint=exc.hint))
    return checks


class _Looks:
    """One method for each of `NAMES`: returns what is well or raises `_Amiss`, and relies on those before."""

    _bundle: AgentBundle
    _connection: Connection
    _said: remote.Said
    _place: remote.Place

    def __init__(self, session: Session, bundle_dir: Path) -> None:
        self._session = session
        self._policy = session.policy
        self._bundle_dir = bundle_dir

    async def bundle(self) -> str:
        try:
            self._bundle = stage.load_bundle(self._bundle_dir)
        except LaunchError as exc:
            raise _Amiss(str(exc), "run bin/build-agent-bundle") from exc
        return f"agent {self._bundle.version}, {format_bytes(self._bundle.size)}"

    async def login(self) -> str:
        try:
            self._connection = await self._session.connection()
        except LaunchError as exc:
            login = f"sirepo-jobs cluster login {self._policy.name}"
            raise _Amiss(str(exc), login if "log" in str(exc) else "see the message") from exc
        return f"{self._session.username} at {self._policy.ssh.host}:{self._policy.ssh.port}"

    async def shell(self) -> str:
        probe = remote.probe(self._root, self._bundle.version, self._policy.slurm.bin_dir)
        try:
            self._said = await stage.run(self._connection, probe)
        except LaunchError as exc:
            hint = "the account must run /bin/sh; ask the cluster's administrators for one that does"
            raise _Amiss(str(exc), hint) from exc
        return f"/bin/sh runs on {self._said.words.get('node', '?')}"

    @property
    def _root(self) -> str:
        return self._policy.ssh.root.replace("{user}", self._session.username)

    async def directory(self) -> str:
        if self._said.status == _FULL:
            return self._said.words.get("root", self._root)
        if self._said.status:
            raise self._unusable()
        self._place = remote.place(self._said)
        return self._place.root

    def _unusable(self) -> _Amiss:
        what, hint = remote.TROUBLES.get(self._said.status, ("cannot be used", "look into ssh.root"))
        return _Amiss(f"{self._said.words.get('root', self._root)} {what}: {self._said.rest}", hint)

    async def space(self) -> str:
        if self._said.status == _FULL:
            raise self._unusable()
        place = self._place
        if place.free_kib is None:
            return "a megabyte can be written"
        free = format_bytes(place.free_kib * 1024)
        if place.has_bundle or place.free_kib >= NEEDED_KIB:
            return f"{free} free"
        raise _Amiss(
            f"{free} free in {place.root}, an agent needs {format_bytes(NEEDED_KIB * 1024)}",
            "free some space, or set ssh.root to another file system",
        )

    async def tools(self) -> str:
        if self._place.lacks:
            raise _Amiss(f"missing: {', '.join(self._place.lacks)}", "have them installed")
        return "tar, gzip, sha256sum and setsid are there"

    async def agent(self) -> str:
        place, version = self._place, self._bundle.version
        try:
            uploaded = await stage.put_bundle(self._connection, place, self._bundle, self._bundle_dir)
            said = await stage.run(self._connection, remote.agent(place.root, version, "version", b""))
        except LaunchError as exc:
            raise _Amiss(str(exc), "see the message") from exc
        if said.status:
            raise _Amiss(
                f"the agent does not start ({said.status}): {said.rest[-300:]}",
                "is the file system mounted noexec? then set ssh.root to another one",
            )
        return f"starts ({said.rest.strip()[-100:]}); {'uploaded now' if uploaded else 'there already'}"

    async def slurm(self) -> str:
        found = self._place.slurm
        if missing := [name for name in ("sbatch", "squeue", "scancel") if name not in found]:
            raise _Amiss(
                f"not found: {', '.join(missing)}", "set slurm.bin_dir to the directory that has them"
            )
        accounting = "" if "sacct" in found else "; no sacct, so what ended is known from the jobs alone"
        return f"{found['sbatch']}{accounting}"
