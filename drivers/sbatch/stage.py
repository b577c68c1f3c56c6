"""What must be on a cluster before an agent can run there: our directory, and the bundle, once per version
(F132, S57)."""

import asyncio
import secrets
from pathlib import Path
from typing import Final

import msgspec
import structlog

from sirepo_jobs.agent_bundle import MANIFEST, TAR, AgentBundle
from sirepo_jobs.cluster import ClusterPolicy
from sirepo_jobs.driver import AgentSpec
from sirepo_jobs.drivers.sbatch import remote
from sirepo_jobs.drivers.sbatch.remote import NotRun, Place, Script
from sirepo_jobs.drivers.sbatch.ssh import Connection, SshError
from sirepo_jobs.errors import LaunchError
from sirepo_jobs.reasons import Reason

_log = structlog.get_logger(__name__)

COMMAND_SECS: Final = 60.0
UPLOAD_SECS: Final = 600.0


async def run(connection: Connection, script: Script, secs: float = COMMAND_SECS) -> remote.Said:
    """Run a script there. Raises `LaunchError` with what to do when the account does not let us."""
    try:
        answer = await connection.run(script.command, script.stdin, secs)
        return remote.read(script, answer.out)
    except SshError as exc:
        raise LaunchError(str(exc), retry=True, reason=Reason.AGENT_UNREACHABLE) from None
    except NotRun as exc:
        said = str(exc) or answer.err.decode(errors="replace").strip()[-300:] or "nothing"
        raise LaunchError(
            "the account runs no commands of ours (a ForceCommand, or a shell like nologin?); it says:"
            f" {said}",
            retry=False,
        ) from None


def load_bundle(directory: Path) -> AgentBundle:
    """The bundle that lies in a directory of this machine. Raises `LaunchError`."""
    try:
        return AgentBundle.from_json((directory / MANIFEST).read_bytes())
    except (OSError, ValueError) as exc:
        raise LaunchError(
            f"there is no agent bundle in {directory}: {exc};"
            f" make it with bin/build-agent-bundle {directory}",
            retry=False,
        ) from None


async def look_around(connection: Connection, policy: ClusterPolicy, username: str, version: str) -> Place:
    """Make our directory and see what is there. Raises `LaunchError`."""
    root = policy.ssh.root.replace("{user}", username)
    said = await run(connection, remote.probe(root, version, policy.slurm.bin_dir))
    if said.status:
        what, hint = remote.TROUBLES.get(said.status, ("cannot be used", "look into ssh.root"))
        where = said.words.get("root", root)
        raise LaunchError(f"{where} {what}: {said.rest or 'no further word'}; {hint}", retry=True)
    place = remote.place(said)
    remote.plain(place.root, "the root")
    return place


async def put_bundle(connection: Connection, place: Place, bundle: AgentBundle, directory: Path) -> bool:
    """See to it that the bundle is there, whole; True when it was uploaded. Safe to repeat at any point."""
    if place.has_bundle:
        return False
    if place.machine != bundle.machine:
        raise LaunchError(
            f"{place.node} is a {place.machine}, our agent is for {bundle.machine}", retry=False
        )
    if place.lacks:
        raise LaunchError(f"{place.node} lacks {', '.join(place.lacks)}", retry=False)
    name = f".{bundle.version}.{secrets.token_hex(6)}.tar.gz"
    try:
        await connection.put(directory / TAR, f"{place.root}/bundles/{name}", UPLOAD_SECS)
    except SshError as exc:
        # what came of it would lie there for ever; if there is no connection, the next upload is told apart
        await _remove(connection, place, name)
        raise LaunchError(
            f"the agent could not be uploaded to {place.root}/bundles: {exc}", retry=True
        ) from None
    said = await run(connection, remote.unpack(place.root, bundle.version, name, bundle.sha256), UPLOAD_SECS)
    if said.status:
        raise LaunchError(f"the agent could not be unpacked in {place.root}/bundles: {said.rest}", retry=True)
    _log.info("bundle uploaded", node=place.node, version=bundle.version, size=bundle.size)
    return True


async def tidy(connection: Connection, place: Place, version: str, spec: AgentSpec) -> None:
    """Have the agent there remove versions that nobody needs; one that cannot is no trouble of ours."""
    try:
        said = await run(
            connection, remote.agent(place.root, version, "tidy", msgspec.json.encode(spec)), UPLOAD_SECS
        )
    except LaunchError as exc:
        _log.warning("old bundles stay", node=place.node, why=str(exc))
        return
    if said.status or said.rest:
        _log.info("old bundles removed", node=place.node, status=said.status, said=said.rest)


async def _remove(connection: Connection, place: Place, name: str) -> None:
    if connection.is_open:
        script = remote.clear_socket(f"{place.root}/bundles/{name}")
        await asyncio.gather(run(connection, script), return_exceptions=True)
