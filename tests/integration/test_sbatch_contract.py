"""The sbatch driver keeps the drivers' contract over a real sshd, with processes for jobs."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.driver_contract import STEPS, Step, exercise
from tests.sshd_stage import Sshd, ssh_world, sshd_at

pytestmark = [pytest.mark.real("sshd"), pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with sshd_at(str(tmp_path_factory.mktemp("sshd"))) as found:
        yield found


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.__name__)
async def test_contract(sshd: Sshd, tmp_path: Path, step: Step) -> None:
    await exercise(lambda: ssh_world(sshd, tmp_path), step)
