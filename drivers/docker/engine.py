"""The room around aiodocker: one engine, its answers, and its silences.

Whatever keeps an engine from answering (no socket, refused, hung, restarting, an error of its own) is a
`Silent`: it says nothing about any container (C4). Only `Missing` does.
"""

import asyncio
import io
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import aiodocker
import aiohttp
from aiodocker.containers import DockerContainer
from aiodocker.exceptions import DockerError

from sirepo_jobs.drivers.docker.container import LABEL
from sirepo_jobs.drivers.docker.policy import EnginePolicy, Registry

#: An engine that takes longer for a small question hangs.
CALL_SECS: Final = 10.0
#: Of docker 20.10: old enough for every engine that is still kept.
API: Final = "v1.41"


class EngineError(Exception):
    """What an engine said instead of doing it."""


class Silent(EngineError):
    """It did not answer, or not sensibly. Nothing is known."""


class Missing(EngineError):
    """It answered: there is no such thing."""


class Taken(EngineError):
    """It answered: the name is in use."""


class Refused(EngineError):
    """It answered: not like that. The same request will fail again."""


class Engine:
    """One Docker engine. Every call has a limit and raises `EngineError`."""

    def __init__(self, name: str, policy: EnginePolicy) -> None:
        self.name = name
        self.policy = policy
        self._tls: ssl.SSLContext | None = None

    @asynccontextmanager
    async def _client(self, secs: float | None = None) -> AsyncIterator[aiodocker.Docker]:
        """A client for one question; what goes wrong inside comes out as `EngineError`."""
        secs = CALL_SECS if secs is None else secs
        try:
            client = aiodocker.Docker(url=self.policy.url, api_version=API, ssl_context=self._context())
        except (OSError, ValueError) as exc:
            raise Silent(f"engine {self.name}: {exc}") from exc
        try:
            async with client, asyncio.timeout(secs):
                yield client
        except TimeoutError:
            raise Silent(f"engine {self.name} did not answer within {secs:g} s") from None
        except DockerError as exc:
            raise self._told(exc) from exc
        except (aiohttp.ClientError, OSError) as exc:
            raise Silent(f"engine {self.name}: {exc}") from exc

    def _told(self, exc: DockerError) -> EngineError:
        text = f"engine {self.name}: {exc.message}"
        match exc.status:
            case 404:
                return Missing(text)
            case 409:
                return Taken(text)
            case 400 | 401 | 403:
                return Refused(text)
        if "could not select device driver" in text:
            # said with 500, and said again each time: it has no gpus, or not the runtime for them
            return Refused(f"{text}; this engine has no gpus to give")
        return Silent(text)

    def _context(self) -> ssl.SSLContext | None:
        if self.policy.is_remote and self._tls is None:
            context = ssl.create_default_context(cafile=self.policy.ca)
            context.load_cert_chain(self.policy.cert, self.policy.key)
            self._tls = context
        return self._tls

    # -- the engine itself

    async def version(self) -> dict[str, Any]:
        """Its version, and those of its parts."""
        async with self._client() as client:
            return dict(await client.version())

    async def info(self) -> dict[str, Any]:
        """What it has and can do."""
        async with self._client() as client:
            return dict(await client.system.info())

    # -- containers

    async def inspect(self, container: str) -> dict[str, Any]:
        """What the engine knows about a container, by id or name."""
        async with self._client() as client:
            return dict(await DockerContainer(client, id=container).show())

    async def has_processes(self, container: str) -> bool:
        """Whether the runtime knows of anything in a container that the engine calls running."""
        try:
            async with self._client() as client:
                await DockerContainer(client, id=container).top()
        except Missing:
            return False
        return True

    async def create(self, name: str, config: dict[str, Any]) -> str:
        """The id of a new container. `Taken` when one of that name is there (F109)."""
        async with self._client(60.0) as client:
            return str((await client.containers.create(config, name=name)).id)

    async def start(self, container: str, word: bytes, secs: float) -> bytes:
        """Start it, say `word` on its stdin, and return the first line that it says.

        Raises `Refused` with the end of its stderr when it ends instead.
        """
        async with self._client(secs) as client:
            there = DockerContainer(client, id=container)
            stream = there.attach(stdin=True, stdout=True, stderr=True)
            async with stream:
                await there.start()
                await stream.write_in(word)
                out, err = b"", b""
                while b"\n" not in out:
                    message = await stream.read_out()
                    if message is None:
                        raise Refused(err.decode(errors="replace")[-500:].strip() or "it ended at once")
                    out, err = (out + message.data, err) if message.stream == 1 else (out, err + message.data)
                return out

    async def stop(self, container: str, grace_secs: float) -> None:
        """TERM, and KILL after the grace; it may be gone already."""
        with suppress(Missing):
            async with self._client(grace_secs + 3 * CALL_SECS) as client:
                await DockerContainer(client, id=container).stop(t=max(1, round(grace_secs)))

    async def remove(self, container: str) -> None:
        """End it by force and take it away; it may be gone already."""
        with suppress(Missing):
            async with self._client(3 * CALL_SECS) as client:
                try:
                    await DockerContainer(client, id=container).delete(force=True)
                except DockerError as exc:
                    if exc.status != 409:  # somebody else is removing it
                        raise
                    await DockerContainer(client, id=container).wait(condition="removed")

    async def containers(self, place: str) -> list[dict[str, Any]]:
        """Every container of an installation, running or not."""
        async with self._client() as client:
            filters = json.dumps({"label": [f"{LABEL}.place={place}"]})
            return [dict(found._container) for found in await client.containers.list(all=1, filters=filters)]

    # -- volumes

    async def make_volume(self, name: str, labels: dict[str, str]) -> None:
        """Make it, or find it."""
        async with self._client() as client:
            await client.volumes.create({"Name": name, "Labels": labels})  # type: ignore[no-untyped-call]

    async def put(self, container: str, path: str, tar: bytes, secs: float = 120.0) -> None:
        """Unpack an archive in a container, which need not run."""
        async with self._client(secs) as client:
            await DockerContainer(client, id=container).put_archive(path, io.BytesIO(tar))  # type: ignore[no-untyped-call]

    async def has(self, container: str, path: str) -> bool:
        """Whether there is such a file in a container, which need not run."""
        try:
            async with self._client() as client:
                await DockerContainer(client, id=container).get_archive(path)
        except Missing:
            return False
        return True

    # -- images

    async def image(self, name: str) -> dict[str, Any]:
        """What the engine knows about an image, by name, digest or id."""
        async with self._client() as client:
            return dict(await client.images.inspect(name))

    async def pull(self, name: str, credentials: tuple[str, str] | None, host: str, secs: float) -> None:
        """Have it pulled; returns when it is there. Canceling ends the pull."""
        auth: dict[str, str] | None = None
        if credentials is not None:
            auth = {"username": credentials[0], "password": credentials[1], "serveraddress": host}
        async with self._client(secs) as client:
            async for word in client.images.pull(name, auth=auth, stream=True):
                if "error" in word:
                    raise Refused(f"engine {self.name}: {word['error']}")

    async def load(self, chunks: AsyncIterator[bytes], secs: float) -> None:
        """Load a `docker save` archive."""
        async with self._client(secs) as client:
            async for word in client.images.import_image(chunks, stream=True):
                if "error" in word:
                    raise Refused(f"engine {self.name}: {word['error']}")


def read_password(registry: Registry) -> tuple[str, str]:
    """Username and password. SECURITY: read at the moment of use, kept nowhere."""
    with open(registry.password_file, encoding="utf-8") as file:  # noqa: PTH123
        return registry.username, file.read().strip()
