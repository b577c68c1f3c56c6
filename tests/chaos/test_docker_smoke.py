"""The shortest profile of the chaos on a real Docker engine: a few acts, one of each kind at most."""

import pytest

from tests.chaos.docker import run

pytestmark = pytest.mark.real("docker")


@pytest.mark.timeout(400)
async def test_smoke() -> None:
    """Must show 1, its small share; `bin/docker-chaos` is the whole."""
    report = await run(jobs=16, kills=4, seed=3)
    assert not report.wrong, report
    # With less it would have shown nothing.
    assert report.kills >= 4
    assert any(name.startswith("restart_engine") for name in report.counts)
    assert report.attempts > report.jobs
