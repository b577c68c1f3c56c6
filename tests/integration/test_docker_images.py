"""How images arrive: present, pulled from a real registry on loopback, loaded from a tarball (F110, S52)."""

import asyncio
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from sirepo_jobs.drivers.docker.engine import Engine
from sirepo_jobs.drivers.docker.images import Images, registry_of
from sirepo_jobs.drivers.docker.policy import read_policy
from sirepo_jobs.errors import LaunchError
from sirepo_jobs.reasons import Reason
from tests.docker_stage import SERVICE, TestEngine, an_engine, busybox_files, root_tar, write_policy

pytestmark = [pytest.mark.real("docker"), pytest.mark.timeout(600)]


class Places(NamedTuple):
    """An engine, and two registries: anybody's, and one where only ann may pull."""

    engine: TestEngine
    open: str
    private: str
    path: Path


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Places]:
    path = tmp_path_factory.mktemp("images")
    registry = path / "registry"
    with an_engine(path / "engine") as engine:
        started = subprocess.run([SERVICE, "registry", "start", registry], capture_output=True, text=True)
        if started.returncode:
            pytest.fail(started.stderr)
        said = dict(line.split("=", 1) for line in started.stdout.splitlines())
        home = {**os.environ, "HOME": str(path)}
        (path / "ann").write_text(said["password"])
        (path / "bob").write_text("wrong-horse")
        try:
            engine.make_image("bb:1", root_tar(busybox_files()))
            word = said["password"].encode()
            engine.docker("login", "-u", "ann", "--password-stdin", said["private"], env=home, input=word)
            for host in (said["open"], said["private"]):
                engine.docker("tag", "bb:1", f"{host}/bb:1")
                engine.docker("push", f"{host}/bb:1", env=home)
            yield Places(engine, said["open"], said["private"], path)
        finally:
            subprocess.run([SERVICE, "registry", "remove", registry], check=True)


class Counting(Engine):
    """Knows how often it was asked to pull."""

    pulls = 0

    async def pull(self, *args: Any) -> None:
        self.pulls += 1
        await super().pull(*args)


def pair(places: Places, path: Path, text: str = "") -> tuple[Images, Counting]:
    """With the images of the registries gone from the engine."""
    for host in (places.open, places.private):
        if places.engine.docker("images", "-q", f"{host}/bb:1"):
            places.engine.docker("rmi", f"{host}/bb:1")
    policy = read_policy(write_policy(path / "docker.toml", {"here": places.engine}, text))
    return Images(policy), Counting("here", policy.engines["here"])


async def test_one_pull_serves_all(places: Places, tmp_path: Path) -> None:
    images, engine = pair(places, tmp_path)
    name = f"{places.open}/bb:1"
    found = await asyncio.gather(*(images.arrive(engine, name, "u", "x86_64") for _ in range(8)))
    assert len(set(found)) == 1
    assert found[0].id.startswith("sha256:")
    assert engine.pulls == 1
    await images.arrive(engine, name, "other", "x86_64")
    assert engine.pulls == 1


async def test_what_cannot_be_had_says_for_how_long(places: Places, tmp_path: Path) -> None:
    images, engine = pair(places, tmp_path, 'allowed_images = ["127.0.0.1:"]')
    bad = {
        f"{places.open}/none:1": False,
        f"{places.open}/bb:none": False,
        "127.0.0.1:1/bb:1": True,
        "elsewhere/bb:1": False,
        "bad name": False,
    }
    for name, retry in bad.items():
        with pytest.raises(LaunchError) as caught:
            await images.arrive(engine, name, "u", "x86_64")
        assert (caught.value.reason, caught.value.retry) == (Reason.IMAGE_PULL_FAILED, retry), str(
            caught.value
        )
    with pytest.raises(LaunchError, match=r"amd64.*aarch64") as caught:
        await images.arrive(engine, f"{places.open}/bb:1", "u", "aarch64")
    assert not caught.value.retry


async def test_private_images_are_for_those_who_may_pull_them(places: Places, tmp_path: Path) -> None:
    rules = "".join(
        f'[registries.{user}."{places.private}"]\nusername = "ann"\npassword_file = "{places.path}/{user}"\n'
        for user in ("ann", "bob")
    )
    images, engine = pair(places, tmp_path, rules)
    name = f"{places.private}/bb:1"
    await images.arrive(engine, name, "ann", "x86_64")
    assert engine.pulls == 1
    # It is there now, and still nobody's but ann's.
    for user in ("bob", "carol"):
        with pytest.raises(LaunchError) as caught:
            await images.arrive(engine, name, user, "x86_64")
        assert (caught.value.reason, caught.value.retry) == (Reason.IMAGE_PULL_FAILED, False), str(
            caught.value
        )
        assert "horse" not in str(caught.value)
    await images.arrive(engine, name, "ann", "x86_64")
    assert engine.pulls == 3


async def test_loaded_from_a_tarball_when_it_cannot_be_pulled(places: Places, tmp_path: Path) -> None:
    name = "127.0.0.1:1/from/tar:2"
    places.engine.docker("tag", "bb:1", name)
    tarball = tmp_path / "127.0.0.1_1_from_tar_2.tar"
    places.engine.docker("save", "-o", str(tarball), name)
    places.engine.docker("rmi", name)
    images, engine = pair(places, tmp_path, f'tarballs = "{tmp_path}"')
    found = await asyncio.gather(*(images.arrive(engine, name, "u", "x86_64") for _ in range(3)))
    assert len(set(found)) == 1
    tarball.write_bytes(b"no archive")
    places.engine.docker("rmi", name)
    with pytest.raises(LaunchError, match="cannot be loaded"):
        await images.arrive(engine, name, "u", "x86_64")


async def test_a_pull_that_nobody_waits_for_ends(
    places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sirepo_jobs.drivers.docker.images.PATIENCE_SECS", 0.2)
    monkeypatch.setattr("sirepo_jobs.drivers.docker.images.LINGER_SECS", 4.0)
    asked = asyncio.Event()
    left = asyncio.Event()

    async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.set()
        await reader.read(1 << 16)
        await reader.read()  # until the engine hangs up
        writer.close()
        left.set()

    async with await asyncio.start_server(deaf, "127.0.0.1", 0) as server:
        images, engine = pair(places, tmp_path)
        name = f"127.0.0.1:{server.sockets[0].getsockname()[1]}/bb:1"
        for _ in range(2):
            with pytest.raises(LaunchError, match="on its way") as caught:
                await images.arrive(engine, name, "u", "x86_64")
            assert (caught.value.reason, caught.value.retry) == (Reason.AGENT_STARTING, True)
        await asked.wait()
        assert engine.pulls == 1
        async with asyncio.timeout(60):
            await left.wait()


@pytest.mark.parametrize(
    ("name", "host"),
    [
        ("bb", "docker.io"),
        ("user/bb:1", "docker.io"),
        ("localhost/bb", "localhost"),
        ("a.example/b/c@sha256:ab", "a.example"),
        ("h:5000/bb", "h:5000"),
    ],
)
def test_registry_of_a_name(name: str, host: str) -> None:
    assert registry_of(name) == host
