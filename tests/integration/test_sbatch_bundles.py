"""Versions of the agent on a cluster, over a real sshd: old ones go when nobody needs them."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from sirepo_jobs.agent_bundle import MANIFEST, TAR
from sirepo_jobs.driver import Fate
from sirepo_jobs.drivers.sbatch import SbatchDriver
from tests.bundle_stage import OUT, agent_bundle
from tests.sshd_stage import Sshd, SshWorld, ssh_world, sshd_at

pytestmark = [pytest.mark.real("sshd"), pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with sshd_at(str(tmp_path_factory.mktemp("sshd"))) as found:
        yield found


def driver_of(world: SshWorld, version: str) -> SbatchDriver:
    """One that brings this checkout's bundle under the name of another version."""
    directory = world.path / version
    directory.mkdir()
    manifest = msgspec.structs.replace(agent_bundle(), version=version)
    (directory / MANIFEST).write_bytes(msgspec.json.encode(manifest))
    (directory / TAR).symlink_to(OUT / TAR)
    driver = SbatchDriver(
        clusters={world.policy.name: world.policy}, bundle_dir=directory, state_dir=world.path / "state"
    )
    world.drivers.append(driver)
    return driver


async def test_old_versions_go_when_nobody_needs_them(sshd: Sshd, tmp_path: Path) -> None:
    async with ssh_world(sshd, tmp_path, bare=True) as world:
        bundles = world.run_root.parent / "bundles"

        def there() -> set[str]:
            return {path.name for path in bundles.iterdir() if not path.name.startswith(".")}

        first, second, third = (driver_of(world, f"9.9.{n}") for n in (1, 2, 3))
        a = await first.launch(world.spec("a"))
        b = await second.launch(world.spec("b"))
        assert there() == {"9.9.1", "9.9.2"}
        # the newest of the others is kept, and one from which an agent runs, however old it is
        os.utime(bundles / "9.9.2", (time.time() - 1e6, time.time() - 1e6))
        c = await third.launch(world.spec("c"))
        assert there() == {"9.9.1", "9.9.2", "9.9.3"}
        assert await second.look(b) is Fate.ALIVE
        await second.stop(b, grace_secs=5)
        d = await third.launch(world.spec("d"))
        assert there() == {"9.9.1", "9.9.3"}
        assert await first.look(a) is Fate.ALIVE
        for driver, handle in ((first, a), (third, c), (third, d)):
            await driver.stop(handle, grace_secs=5)
