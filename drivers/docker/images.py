"""How an image comes to an engine: it is there, or is pulled, or is loaded from a tarball (HYS-15, F110).

One arrival serves all who wait for it; when the last of them has gone, it ends too.
"""

import asyncio
import re
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any, Final

from msgspec import Struct

from sirepo_jobs.drivers.docker.engine import Engine, EngineError, Missing, Refused, Silent, read_password
from sirepo_jobs.drivers.docker.policy import DockerPolicy
from sirepo_jobs.errors import LaunchError
from sirepo_jobs.reasons import Reason

#: What engines call a processor, by `uname -m`.
MACHINES: Final = {"x86_64": "amd64", "aarch64": "arm64", "ppc64le": "ppc64le", "s390x": "s390x"}
_NAME: Final = re.compile(r"[a-z0-9][A-Za-z0-9_.:/@-]{0,254}")
_CHUNK: Final = 1 << 20
#: A launch waits so long for an image; then its jobs are told that it is on its way.
PATIENCE_SECS: Final = 20.0
#: Launches come again after a pause of at most a minute; when none has for so long, nobody wants the image.
LINGER_SECS: Final = 90.0


class Image(Struct, frozen=True, kw_only=True):
    """An image that is there."""

    #: `sha256:...`: of its content, the same everywhere, and what containers are made from.
    id: str
    env: tuple[str, ...]
    architecture: str


class Images:
    """The arrivals of one driver."""

    def __init__(self, policy: DockerPolicy) -> None:
        self._policy = policy
        self._arriving: dict[tuple[str, str, str], asyncio.Task[Image]] = {}
        self._waiting: dict[tuple[str, str, str], int] = {}
        #: Ends arrivals that nobody has waited for a while.
        self._nobody: dict[tuple[str, str, str], asyncio.TimerHandle] = {}
        #: SECURITY: S52. Private images that a user has shown to be able to pull.
        self._shown: set[tuple[str, str, str]] = set()

    async def arrive(self, engine: Engine, name: str, user: str, machine: str) -> Image:
        """The image on that engine. Raises `LaunchError` with `IMAGE_PULL_FAILED`, or `Silent`."""
        allowed = self._policy.allowed_images
        if not _NAME.fullmatch(name) or (allowed and not name.startswith(tuple(allowed))):
            said = f"allowed are {', '.join(allowed)}..." if allowed else "that is not a name of an image"
            raise _failed(f"image {name[:300]!r}: {said}", retry=False)
        key = (engine.name, name, user)
        task = self._arriving.get(key)
        if task is None:
            task = asyncio.create_task(self._bring(engine, name, user), name=f"image {name}")
            self._arriving[key] = task
            task.add_done_callback(partial(self._arrived, key))
        if (old := self._nobody.pop(key, None)) is not None:
            old.cancel()
        self._waiting[key] = self._waiting.get(key, 0) + 1
        try:
            async with asyncio.timeout(PATIENCE_SECS):
                image = await asyncio.shield(task)
        except TimeoutError:
            raise LaunchError(
                f"image {name} is on its way to engine {engine.name}",
                retry=True,
                reason=Reason.AGENT_STARTING,
            ) from None
        finally:
            self._waiting[key] -= 1
            if not self._waiting[key]:
                del self._waiting[key]
                if not task.done():
                    loop = asyncio.get_running_loop()
                    self._nobody[key] = loop.call_later(LINGER_SECS, task.cancel)
        if image.architecture != MACHINES.get(machine, machine):
            raise _failed(
                f"image {name} is for {image.architecture}, and its agent would be for {machine}", retry=False
            )
        return image

    def _arrived(self, key: tuple[str, str, str], task: asyncio.Task[Image]) -> None:
        self._arriving.pop(key, None)
        if (timer := self._nobody.pop(key, None)) is not None:
            timer.cancel()
        if not task.cancelled():
            task.exception()  # whoever waited has heard it; nobody need have

    async def _bring(self, engine: Engine, name: str, user: str) -> Image:
        host = registry_of(name)
        private = any(host in hosts for hosts in self._policy.registries.values())
        if not private or (engine.name, name, user) in self._shown:
            try:
                return _image(await engine.image(name))
            except Missing:
                pass
        trouble, retry = "it is not there, and pulling is switched off", False
        if self._policy.pull:
            trouble, retry = await self._pull(engine, name, user, host)
            if not trouble:
                self._shown.add((engine.name, name, user))
                return _image(await engine.image(name))
        if not private and (tarball := self._tarball(name)) is not None:
            return await self._load(engine, name, tarball)
        raise _failed(f"image {name}: {trouble}", retry=retry)

    async def _pull(self, engine: Engine, name: str, user: str, host: str) -> tuple[str, bool]:
        """What went wrong, "" for nothing, and whether it may go right later."""
        registry = self._policy.registry_of(user, host)
        try:
            credentials = read_password(registry) if registry is not None else None
        except OSError as exc:
            return f"the password for {host} cannot be read: {exc.strerror}", True
        try:
            await engine.pull(name, credentials, host, self._policy.pull_secs)
        except (Refused, Missing) as exc:
            return str(exc), False
        except Silent as exc:
            text = str(exc)
            # Engines say 500 for whatever a registry answered; only its words tell for how long.
            lasting = re.search(
                r"manifest unknown|not found|unauthorized|denied|no basic auth|no match", text
            )
            return text, not lasting
        return "", True

    def _tarball(self, name: str) -> Path | None:
        if not self._policy.tarballs:
            return None
        path = Path(self._policy.tarballs, re.sub(r"[/:@]", "_", name) + ".tar")
        return path if path.is_file() else None

    async def _load(self, engine: Engine, name: str, tarball: Path) -> Image:
        try:
            await engine.load(_chunks(tarball), self._policy.pull_secs)
            return _image(await engine.image(name))
        except Missing:
            raise _failed(f"image {name}: {tarball} holds images of other names", retry=False) from None
        except EngineError as exc:
            raise _failed(f"image {name}: {tarball} cannot be loaded: {exc}", retry=True) from exc


def registry_of(name: str) -> str:
    """The registry's host in an image's name, as the engine reads it."""
    first, slash, _ = name.partition("/")
    return first if slash and (re.search(r"[.:]", first) or first == "localhost") else "docker.io"


def _image(found: dict[str, Any]) -> Image:
    return Image(
        id=found["Id"],
        env=tuple((found.get("Config") or {}).get("Env") or ()),
        architecture=found.get("Architecture") or "",
    )


async def _chunks(path: Path) -> AsyncIterator[bytes]:
    with await asyncio.to_thread(path.open, "rb") as file:
        while data := await asyncio.to_thread(file.read, _CHUNK):
            yield data


def _failed(message: str, *, retry: bool) -> LaunchError:
    return LaunchError(message, retry=retry, reason=Reason.IMAGE_PULL_FAILED)
