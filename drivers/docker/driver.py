"""Launches agents in containers, finds them again by name and labels, and stops them (SIR-34, SIR-42)."""

import asyncio
import hashlib
import logging
import os
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final
from weakref import WeakValueDictionary

import msgspec

from sirepo_jobs.agent_bundle import MANIFEST, TAR, AgentBundle
from sirepo_jobs.driver import AgentSpec, Driver, Environment, Examined, Fate, Handle
from sirepo_jobs.drivers.docker import container, mounts
from sirepo_jobs.drivers.docker.container import BUNDLE, LABEL, Limits, Mount, Plan
from sirepo_jobs.drivers.docker.engine import Engine, EngineError, Missing, Refused, Silent, Taken
from sirepo_jobs.drivers.docker.examine import examine, too_old
from sirepo_jobs.drivers.docker.fate import Fates
from sirepo_jobs.drivers.docker.images import Image, Images
from sirepo_jobs.drivers.docker.placement import Placement
from sirepo_jobs.drivers.docker.places import archive_of, files_volume, make_directory, place_in, place_of
from sirepo_jobs.drivers.docker.policy import EnginePolicy, read_policy
from sirepo_jobs.errors import BadInput, LaunchError
from sirepo_jobs.resources import Resources, format_bytes

_log = logging.getLogger(__name__)

VERSION: Final = 1
#: Put into the bundle's volume when everything else is there.
WHOLE: Final = ".whole"
#: Files of agents and run dirs on remote engines, in a volume of each user.
FILES: Final = "/srv/sirepo_jobs"


class DockerDriver:
    """Agents in containers. One host serves all environments of one user."""

    name = "docker"
    #: With the launcher its whole container dies.
    jobs_outlive_agent = False

    def __init__(
        self,
        *,
        policy_file: Path | None,
        bundle_dir: Path,
        socket: str = "",
        agents_dir: str = "",
        launch_secs: float = 30.0,
    ) -> None:
        """`socket` is where agents on local engines call; the others call the URL in their spec.

        Homes of agents lie in `agents_dir`: it names this installation on an engine that serves others too.

        Raises `BadInput` for a policy that cannot be meant.
        """
        if policy_file is None:
            raise BadInput(
                "driver 'docker' needs the setting docker_file: a file like etc/docker/example.toml"
            )
        self._policy = policy = read_policy(policy_file)
        self._bundle_dir = bundle_dir
        self._socket = socket
        self._images = Images(policy)
        self._agents_dir = agents_dir
        self._engines = {name: Engine(name, engine) for name, engine in policy.engines.items()}
        #: Each lives as long as somebody holds it or waits for it.
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._bundles: dict[str, str] = {}
        self._placement = Placement(
            {name: engine.cpus for name, engine in policy.engines.items()}, policy.pools
        )
        self.hosts = {
            name: Resources(cpus=engine.cpus, memory=engine.memory, gpus=engine.gpus, disk=1 << 60)
            for name, engine in policy.engines.items()
        }
        self.remote = any(engine.is_remote for engine in policy.engines.values())
        self.launch_secs = launch_secs
        self._fates = Fates()
        #: Engines whose versions were looked at.
        self._looked_at: set[str] = set()
        engines = policy.engines.values()
        self.capacity = Resources(
            cpus=max(engine.cpus for engine in engines),
            memory=max(engine.memory for engine in engines),
            gpus=max(engine.gpus for engine in engines),
            disk=1 << 60,
        )

    # -- the contract

    async def launch(self, spec: AgentSpec) -> Handle:
        """Start the container, or adopt the one of that name."""
        async with self._locked(spec.agent):
            user = spec.environment.user
            if not (name := self.host_of(user)):
                raise LaunchError(self._placement.why_nowhere(user), retry=True)
            engine, said = self._engines[name], ""
            try:
                handle = await self._launch(engine, spec)
            except EngineError as exc:
                if isinstance(exc, Silent):
                    self._placement.fell_silent(user, engine.name)  # the next try looks for another
                    said = self._placement.bounds(user)
                raise LaunchError(f"{exc}{said}", retry=not isinstance(exc, Refused)) from exc
            self._placement.answered(user, engine.name)
            return handle

    async def look(self, handle: Handle) -> Fate:
        """GONE only when the engine says that the container does not run or is not there."""
        try:
            engine, there = self._engine_of(handle), str(handle.data["container"])
            if len(there) < 12:
                return Fate.UNKNOWN
        except (LaunchError, KeyError):
            return Fate.UNKNOWN
        return await self._fates.of(engine, there)

    async def stop(self, handle: Handle, *, grace_secs: float) -> None:
        """TERM to the launcher, which ends its jobs; then the container goes, with everything in it."""
        engine, there = self._engine_of(handle), str(handle.data["container"])
        async with self._locked(handle.agent):
            try:
                if (await engine.inspect(there))["State"].get("Running"):
                    await engine.stop(there, grace_secs)
                await engine.remove(there)
            except Missing:
                return
            except EngineError as exc:
                raise LaunchError(str(exc), retry=True) from exc

    async def examine(self, known: Collection[str] | None) -> list[Examined]:
        """Each engine: whether it answers, its versions, limits, size, space, and what is left over."""
        place = place_in(self._agents_dir)
        looks = [examine(engine, self._policy.least, place, known) for engine in self._engines.values()]
        return [one for found in await asyncio.gather(*looks) for one in found]

    # -- who is where

    def _engine_of(self, handle: Handle) -> Engine:
        name = str(handle.data.get("engine"))
        if handle.driver != self.name or handle.version != VERSION or name not in self._engines:
            raise LaunchError(
                f"agent {handle.agent}: its handle cannot be read, or its engine {name!r} is not configured"
                f" any more: {handle.data}",
                retry=False,
            )
        return self._engines[name]

    def host_of(self, user: str) -> str:
        """The engine that has this user's agents, or will have them; "" where none may."""
        return self._placement.host_of(user)

    def remember(self, user: str, handle: Handle) -> str:
        """An agent of before the restart: its user stays on that engine, if it is still one of theirs."""
        engine = str(handle.data.get("engine"))
        if engine not in self._engines:
            return ""
        self._placement.remember(user, engine)
        return engine

    # -- launching

    async def _launch(self, engine: Engine, spec: AgentSpec) -> Handle:
        await self._look_at(engine)
        bundle = self._bundle()
        image_name = spec.environment.image or self._policy.image
        if not image_name:
            raise container.refused("the job names no image, and there is none by default")
        image = await self._images.arrive(engine, image_name, spec.environment.user, bundle.machine)
        volume = await self._bundle_volume(engine, bundle, image.id)
        plan, told = self._plan(engine, spec, image_name, image, bundle, volume)
        name = container.name_of(plan.place, spec.agent)
        found = await self._container_named(engine, name, plan)
        if found is None:
            await self._make_directories(engine, spec, plan, volume)
            try:
                found = await engine.create(name, container.config_of(plan))
            except Taken:  # made by a call whose answer was lost (F109)
                found = await self._container_named(engine, name, plan)
                if found is None:
                    raise
            else:
                await self._start(engine, found, told)
        return Handle(
            agent=spec.agent,
            driver=self.name,
            version=VERSION,
            data={
                "engine": engine.name,
                "container": found,
                "name": name,
                "image": image.id,
                "home": told.home,
                "run_root": told.run_root,
            },
        )

    async def _look_at(self, engine: Engine) -> None:
        """SECURITY: S54. Once per engine: whether it is as new as it must be."""
        if engine.name in self._looked_at:
            return
        old = too_old(await engine.version(), self._policy.least)
        if old and self._policy.old_engines == "refuse":
            raise LaunchError(f"engine {engine.name}: {'; '.join(old)}", retry=True)
        if old:
            _log.warning("engine %s is old: %s", engine.name, "; ".join(old))
        self._looked_at.add(engine.name)

    async def _start(self, engine: Engine, there: str, told: AgentSpec) -> None:
        try:
            await engine.start(there, msgspec.json.encode(told) + b"\n", self.launch_secs)
        except Refused:
            with suppress(EngineError):
                await engine.remove(there)
            raise
        # After any other trouble it may run, and may have work already: whoever launches again finds it.

    async def _container_named(self, engine: Engine, name: str, plan: Plan) -> str | None:
        """The id of the living container of that name. One that is dead, or never lived, is taken away."""
        try:
            found = await engine.inspect(name)
        except Missing:
            return None
        labels = found["Config"]["Labels"] or {}
        if labels.get(f"{LABEL}.place") != plan.place or labels.get(f"{LABEL}.agent") != plan.agent:
            raise LaunchError(f"a container {name} that is not ours stands in the way", retry=False)
        there = str(found["Id"])
        if found["State"].get("Running") and await self._fates.of(engine, there) is not Fate.GONE:
            return there
        await engine.remove(there)
        return None

    def _plan(
        self, engine: Engine, spec: AgentSpec, image_name: str, image: Image, bundle: AgentBundle, volume: str
    ) -> tuple[Plan, AgentSpec]:
        """What the container is made from, and what its agent is told."""
        environment, policy = spec.environment, self._policy
        uid, gid = policy.ids_of(environment.user)
        told = msgspec.structs.replace(spec, env={"HOME": "/tmp", **container.job_env(image.env)})  # noqa: S108
        seen = [Mount(volume, BUNDLE, volume=True)]
        if engine.policy.is_remote:
            told = msgspec.structs.replace(
                told, home=f"{FILES}/agents/{spec.agent}", run_root=f"{FILES}/jobs", pass_env=[]
            )
            seen.append(Mount(files_volume(spec), FILES, writable=True, volume=True))
        else:
            door = self._socket
            told = msgspec.structs.replace(told, url=f"unix:{door}" if door else spec.url, ca_pem=None)
            door = told.url.removeprefix("unix:")
            seen += [
                Mount(spec.home, spec.home, writable=True),
                Mount(spec.run_root, spec.run_root, writable=True),
                # The directory, since the socket in it is a new one after each start of the supervisor.
                Mount(os.path.dirname(door), os.path.dirname(door)),
            ]
        for asked in environment.mounts:
            source, target, writable = mounts.resolve(asked, policy.mounts)
            seen.append(Mount(source, target, writable))
        plan = Plan(
            agent=spec.agent,
            user=environment.user,
            place=place_of(spec),
            image_id=image.id,
            image=image_name,
            image_env=image.env,
            command=tuple(bundle.command(BUNDLE)),
            uid=uid,
            gid=gid,
            limits=self._limits(engine.policy, environment),
            mounts=tuple(seen),
            network=self._network(engine.policy, environment),
            gpus=environment.gpus,
        )
        return plan, told

    def _limits(self, engine: EnginePolicy, environment: Environment) -> Limits:
        policy = self._policy
        memory = policy.memory or engine.memory
        shm = policy.shm if environment.shm is None else environment.shm
        if shm > memory:
            raise container.refused(
                f"shm: {format_bytes(shm)} is more than the {format_bytes(memory)} of memory of a container"
            )
        return Limits(
            cpus=policy.cpus or engine.cpus,
            memory=memory,
            pids=policy.pids,
            open_files=policy.open_files,
            shm=shm,
            tmp=policy.tmp,
        )

    def _network(self, engine: EnginePolicy, environment: Environment) -> str:
        """`none`, unless somebody asked and may (SYS-C5); a remote agent must call us."""
        wants = "network" in environment.services
        if wants and not self._policy.network:
            raise container.refused('services: "network" is not offered here')
        return self._policy.network if wants or engine.is_remote else "none"

    # -- files

    def _bundle(self) -> AgentBundle:
        try:
            return AgentBundle.from_json((self._bundle_dir / MANIFEST).read_bytes())
        except (OSError, ValueError) as exc:
            raise LaunchError(
                f"there is no agent bundle in {self._bundle_dir} ({exc}): run bin/build-agent-bundle",
                retry=True,
            ) from exc

    async def _bundle_volume(self, engine: Engine, bundle: AgentBundle, image_id: str) -> str:
        """The volume with the bundle on that engine, filled once per version."""
        volume = f"sirepo_jobs-agent-{bundle.version}"
        if self._bundles.get(engine.name) == volume:
            return volume
        async with self._locked(f"bundle {engine.name}"):
            await engine.make_volume(volume, {f"{LABEL}.bundle": bundle.version})
            async with self._never_started(engine, volume, "/bundle", image_id) as there:
                if not await engine.has(there, f"/bundle/{WHOLE}"):
                    tar = await asyncio.to_thread((self._bundle_dir / TAR).read_bytes)
                    await engine.put(there, "/bundle", tar)
                    await engine.put(there, "/bundle", archive_of([(WHOLE, b"", 0, 0)]))
            self._bundles[engine.name] = volume
        return volume

    async def _make_directories(self, engine: Engine, spec: AgentSpec, plan: Plan, volume: str) -> None:
        """Home and run root, of the container's user, before anything is mounted."""
        if not engine.policy.is_remote:
            try:
                for path in (spec.home, spec.run_root):
                    await asyncio.to_thread(make_directory, path, plan.uid, plan.gid)
            except OSError as exc:
                raise LaunchError(f"agent {spec.agent}: {exc}", retry=False) from exc
            return
        files = files_volume(spec)
        await engine.make_volume(files, {f"{LABEL}.place": plan.place, f"{LABEL}.user": plan.user})
        async with self._never_started(engine, files, "/files", plan.image_id) as there:
            names = ("agents/", f"agents/{spec.agent}/", "jobs/")
            await engine.put(there, "/files", archive_of([(name, b"", plan.uid, plan.gid) for name in names]))

    @asynccontextmanager
    async def _never_started(
        self, engine: Engine, volume: str, target: str, image_id: str
    ) -> AsyncIterator[str]:
        """A container that only opens a volume for us."""
        config: dict[str, Any] = {
            "Image": image_id,
            "Entrypoint": [],
            "Cmd": ["/never"],
            "Labels": {f"{LABEL}.opens": volume},
            "HostConfig": {
                "NetworkMode": "none",
                "CapDrop": ["ALL"],
                "Mounts": [Mount(volume, target, writable=True, volume=True).to_engine()],
            },
        }
        name = f"sj-open-{hashlib.sha256(volume.encode()).hexdigest()[:12]}-{os.getpid()}"
        await engine.remove(name)
        there = await engine.create(name, config)
        try:
            yield there
        finally:
            with suppress(EngineError):
                await engine.remove(there)

    @asynccontextmanager
    async def _locked(self, name: str) -> AsyncIterator[None]:
        """One at a time for one name."""
        lock = self._locks.setdefault(name, asyncio.Lock())
        async with lock:
            yield


def _keeps_the_contract(driver: DockerDriver) -> Driver:
    return driver  # what mypy holds it to
