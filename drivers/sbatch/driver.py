"""Launches, finds and stops agents on login nodes, over one SSH connection per user and cluster."""

import asyncio
import hashlib
import time
from collections import Counter
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from sirepo_jobs.agent_bundle import AgentBundle
from sirepo_jobs.cluster import ClusterPolicy
from sirepo_jobs.driver import AgentSpec, Environment, Fate, Handle
from sirepo_jobs.drivers.sbatch import checks, remote, stage
from sirepo_jobs.drivers.sbatch.conversation import Conversation
from sirepo_jobs.drivers.sbatch.logins import LoginBook
from sirepo_jobs.drivers.sbatch.remote import Place
from sirepo_jobs.drivers.sbatch.session import Session
from sirepo_jobs.drivers.sbatch.ssh import Ask, Connection, Credentials, read_key
from sirepo_jobs.drivers.sbatch.tunnel import Tunnel
from sirepo_jobs.errors import LaunchError, NotFound
from sirepo_jobs.login import Check, ClusterView, LoginOrder, LoginView
from sirepo_jobs.reasons import Reason
from sirepo_jobs.resources import Resources

VERSION: Final = 1
#: Asked again about an agent that is out of reach.
LOOK_SECS: Final = 5.0
#: A start may have to wait for a silent agent on another login node.
START_SECS: Final = 150.0
#: The present version and the one before; where there are more, it is looked whether some may go.
KEPT_BUNDLES: Final = 2
#: A socket there must listen before an agent is started that calls it.
TUNNEL_SECS: Final = 30.0


class _Launcher(Struct, frozen=True, kw_only=True):
    """What the agent's `start` prints."""

    pid: int
    start: int
    boot_id: str


class SbatchDriver:
    """Agents on the login nodes of clusters; what they run there is Slurm's affair."""

    name = "sbatch"
    #: Those that cannot call by themselves call through their login.
    remote = False
    jobs_outlive_agent = True
    #: Slurm decides what fits; the policies limit how many jobs there are.
    capacity = Resources(cpus=1 << 40, memory=1 << 60, gpus=1 << 40, disk=1 << 60, nodes=1 << 20)

    def __init__(
        self,
        *,
        clusters: dict[str, ClusterPolicy],
        bundle_dir: Path,
        state_dir: Path,
        launch_secs: float = 300.0,
        ca_pem: str | None = None,
    ) -> None:
        self._policies = clusters
        self._bundle_dir = bundle_dir
        self.launch_secs = launch_secs
        #: Whom agents trust that call by themselves.
        self._ca_pem = ca_pem
        self._book = LoginBook(state_dir / "logins.json")
        self._sessions: dict[tuple[str, str], Session] = {}
        self._conversations: dict[tuple[str, str], Conversation] = {}
        #: Agent to its handle, when it was last looked for, and what was seen.
        self._seen: dict[str, tuple[Handle, float, Fate]] = {}

    # -- the drivers' contract

    async def launch(self, spec: AgentSpec) -> Handle:
        """Bring the bundle, make a way for the agent to call, start it or find the one that lives there."""
        try:
            session = self._session(spec.environment.cluster or "", spec.environment.user)
        except NotFound as exc:
            raise LaunchError(str(exc), retry=False) from None
        connection = await session.connection()
        bundle = stage.load_bundle(self._bundle_dir)
        policy = session.policy
        place = await stage.look_around(connection, policy, session.username, bundle.version)
        if await stage.put_bundle(connection, place, bundle, self._bundle_dir):
            session.counters["uploads"] += 1
        there = msgspec.structs.replace(
            spec,
            home=f"{place.root}/agents/{spec.agent}",
            run_root=f"{place.root}/jobs",
            slurm=None if policy.processes else policy.slurm,
            pass_env=[],
        )
        direct = msgspec.structs.replace(there, url=policy.ssh.agent_url, ca_pem=self._ca_pem)
        if await self._calls_directly(connection, policy, place.root, bundle.version, direct):
            there = direct
        else:
            there = await self._with_tunnel(session, spec, there, place, bundle)
        found = await self._start(connection, place.root, bundle.version, there)
        if place.bundles + (not place.has_bundle) > KEPT_BUNDLES:
            await stage.tidy(connection, place, bundle.version, there)
        self._seen.pop(spec.agent, None)
        return Handle(
            agent=spec.agent,
            driver=self.name,
            version=VERSION,
            data={
                "cluster": policy.name,
                "user": spec.environment.user,
                "username": session.username,
                "node": place.node,
                "pid": found.pid,
                "start": found.start,
                "boot_id": found.boot_id,
                "root": place.root,
                "home": there.home,
                "run_root": there.run_root,
                "bundle": bundle.version,
                "url": there.url,
                "local": spec.url,
            },
        )

    async def look(self, handle: Handle) -> Fate:
        """ALIVE or GONE by /proc of the node that it was started on; UNKNOWN without a connection to it."""
        before = self._seen.get(handle.agent)
        if before is not None and before[0] == handle and time.monotonic() - before[1] < LOOK_SECS:
            return before[2]
        try:
            fate = await self._look(handle)
        except (LaunchError, NotFound, KeyError, ValueError):
            fate = Fate.UNKNOWN
        self._seen[handle.agent] = (handle, time.monotonic(), fate)
        return fate

    async def _look(self, handle: Handle) -> Fate:
        if handle.driver != self.name or handle.version != VERSION:
            return Fate.UNKNOWN
        session = self._session(str(handle.data["cluster"]), str(handle.data["user"]))
        self._keep_tunnel(session, handle)
        if not session.is_open and session.why_not() is None and session.trouble is not None:
            session.come_back()  # in its own time: it failed lately
            return Fate.UNKNOWN
        said = await stage.run(await session.connection(), remote.look(int(handle.data["pid"])))
        if said.words.get("node") != handle.data["node"]:
            # Another login node. The agent may live on its own, and cannot be seen from here; where its jobs
            # are Slurm's, `launch` makes one here in its place, once it has let go (F141).
            return Fate.UNKNOWN if session.policy.processes else Fate.GONE
        if said.words.get("boot") != handle.data["boot_id"]:
            return Fate.GONE
        start = remote.process_start(said.words.get("stat", ""))
        return Fate.ALIVE if start == handle.data["start"] else Fate.GONE

    async def stop(self, handle: Handle, *, grace_secs: float) -> None:
        """Have the agent's own `stop` end it; Slurm's jobs are not its children and go on."""
        try:
            if handle.driver != self.name or handle.version != VERSION:
                raise KeyError("driver, version")
            session = self._session(str(handle.data["cluster"]), str(handle.data["user"]))
            spec = AgentSpec(
                agent=handle.agent,
                environment=Environment(driver=self.name, user=session.user, cluster=session.policy.name),
                url="",
                token="",
                home=str(handle.data["home"]),
                run_root=str(handle.data["run_root"]),
                slurm=None if session.policy.processes else session.policy.slurm,
            )
            root, version = str(handle.data["root"]), str(handle.data["bundle"])
        except (KeyError, NotFound) as exc:
            raise LaunchError(
                f"agent {handle.agent}: its handle cannot be used: {exc}", retry=False
            ) from None
        connection = await session.connection()
        script = remote.agent(root, version, "stop", msgspec.json.encode(spec))
        said = await stage.run(connection, script, grace_secs + stage.COMMAND_SECS)
        if said.status:
            raise LaunchError(f"agent {handle.agent} could not be stopped: {said.rest}", retry=True)
        session.drop(handle.agent)
        self._seen.pop(handle.agent, None)

    async def _start(self, connection: Connection, root: str, version: str, spec: AgentSpec) -> _Launcher:
        script = remote.agent(root, version, "start", msgspec.json.encode(spec))
        said = await stage.run(connection, script, START_SECS)
        if said.status == 0:
            for line in said.rest.splitlines():
                try:
                    return msgspec.json.decode(line, type=_Launcher)
                except (ValueError, RecursionError):
                    continue
        tail = await stage.run(connection, remote.log_tail(spec.home))
        raise LaunchError(
            f"agent {spec.agent}: start ended with {said.status}: {said.rest[-300:]} {tail.rest[-500:]}",
            retry=True,
        )

    # -- the way by which an agent calls

    async def _calls_directly(
        self, connection: Connection, policy: ClusterPolicy, root: str, version: str, spec: AgentSpec
    ) -> bool:
        if not spec.url or "direct" not in policy.ssh.reach:
            return False
        said = await stage.run(connection, remote.agent(root, version, "reach", msgspec.json.encode(spec)))
        if said.status and policy.ssh.reach == ("direct",):
            raise LaunchError(
                f"{spec.url} cannot be reached from {policy.ssh.host}: {said.rest[-300:]}", retry=True
            )
        return said.status == 0

    async def _with_tunnel(
        self, session: Session, spec: AgentSpec, there: AgentSpec, place: Place, bundle: AgentBundle
    ) -> AgentSpec:
        socket = f"{there.home}/up.sock"
        if len(socket) > remote.MAX_SOCKET_CHARS:
            # a path that only its user can have made: `clear_socket` looks at whose the directory is
            name = hashlib.sha256(f"{place.root} {spec.agent}".encode()).hexdigest()[:16]
            socket = f"/tmp/sirepo_jobs-{place.user}-{name}/up.sock"  # noqa: S108
        tunnel = Tunnel(
            spec.agent,
            socket=socket,
            local=spec.url.removeprefix("unix:"),
            root=place.root,
            version=bundle.version,
            streams_only="forward" not in session.policy.ssh.reach,
        )
        session.keep(tunnel)
        kept = session.tunnel(spec.agent)
        assert kept is not None
        try:
            async with asyncio.timeout(TUNNEL_SECS):
                await kept.ready.wait()
        except TimeoutError:
            raise LaunchError(
                f"no way from {place.node} to the supervisor: sshd forwards no socket, and no relay starts",
                retry=True,
            ) from None
        return msgspec.structs.replace(there, url=f"unix:{socket}")

    def _keep_tunnel(self, session: Session, handle: Handle) -> None:
        url = str(handle.data["url"])
        if url.startswith("unix:") and session.tunnel(handle.agent) is None:
            session.keep(
                Tunnel(
                    handle.agent,
                    socket=url.removeprefix("unix:"),
                    local=str(handle.data["local"]).removeprefix("unix:"),
                    root=str(handle.data["root"]),
                    version=str(handle.data["bundle"]),
                    streams_only="forward" not in session.policy.ssh.reach,
                )
            )

    # -- logins (`sirepo_jobs.login.LoginDriver`)

    def policies(self) -> list[ClusterPolicy]:
        """Every cluster, by name."""
        return [self._policies[name] for name in sorted(self._policies)]

    def _session(self, cluster: str, user: str) -> Session:
        policy = self._policies.get(cluster)
        if policy is None:
            there_are = ", ".join(sorted(self._policies)) or "none"
            raise NotFound(f"there is no cluster {cluster[:64]!r}; there are: {there_are}", code="no_cluster")
        session = self._sessions.get((cluster, user))
        if session is None:
            session = self._sessions[cluster, user] = Session(policy, user, self._book)
        return session

    def trouble(self, environment: Environment) -> tuple[Reason, str] | None:
        """Why nothing can be launched there before somebody acts."""
        try:
            found = self._session(environment.cluster or "", environment.user).why_not()
        except NotFound as exc:
            return Reason.LAUNCH_FAILED, str(exc)
        return None if found is None else (found.reason, found.text)

    async def change(self, environment: Environment) -> None:
        """Return when `trouble` may have another answer."""
        try:
            await self._session(environment.cluster or "", environment.user).change()
        except NotFound:
            await asyncio.Event().wait()

    def view(self, cluster: str, user: str) -> ClusterView:
        """How the cluster stands for this user."""
        session = self._session(cluster, user)
        policy = session.policy
        trouble = session.why_not() or session.trouble
        counters = dict(session.counters)
        counters["logins_last_day"] = session.logins()
        return ClusterView(
            name=policy.name,
            description=policy.description,
            host=policy.ssh.host,
            auth=list(policy.ssh.auth),
            state=session.state,
            message=trouble.text if trouble is not None and not session.is_open else "",
            username=session.username,
            counters=counters,
            limits={
                "logins_per_day": policy.ssh.logins_per_day,
                "query_secs": policy.slurm.query_secs,
                "submits_per_minute": policy.slurm.submits_per_minute,
                "max_jobs": policy.slurm.max_jobs,
            },
        )

    def counters(self, cluster: str) -> Counter[str]:
        """Sums over its users."""
        found = Counter({"logins": 0, "connections": 0})
        for (name, _user), session in self._sessions.items():
            if name == cluster:
                found.update(session.counters)
                found["connections"] += session.is_open
        return found

    async def log_in(self, cluster: str, user: str, order: LoginOrder) -> LoginView:
        """Begin a login; the credentials live as long as it does."""
        session = self._session(cluster, user)
        key = None
        if order.private_key:
            key = await asyncio.to_thread(read_key, order.private_key, order.passphrase)
        credentials = Credentials(
            order.username or session.policy.ssh.username.replace("{user}", user),
            order.password,
            order.code,
            key,
        )

        async def log_in(ask: Ask) -> None:
            await session.log_in(credentials, ask)

        old = self._conversations.get((cluster, user))
        if old is not None:
            await old.close()
        conversation = Conversation(cluster, log_in, session.policy.ssh.prompt_secs)
        self._conversations[cluster, user] = conversation
        return await conversation.view()

    async def answer(self, cluster: str, user: str, login: str, answers: list[str]) -> LoginView:
        """Answer its prompts; with none, see how it stands."""
        self._session(cluster, user)
        conversation = self._conversations.get((cluster, user))
        if conversation is None or conversation.login != login:
            raise NotFound("there is no such login; begin it again", code="no_login")
        if answers:
            conversation.answer(answers)
        return await conversation.view()

    async def log_out(self, cluster: str, user: str) -> None:
        """End the connection; jobs go on, and agents that call by themselves too."""
        await self._session(cluster, user).hang_up()

    async def check(self, cluster: str, user: str) -> list[Check]:
        """Everything that a job there will need, in order."""
        return await checks.check(self._session(cluster, user), self._bundle_dir)

    async def close(self) -> None:
        """End every connection; agents and jobs go on."""
        for conversation in self._conversations.values():
            await conversation.close()
        await asyncio.gather(*(session.close() for session in self._sessions.values()))
