"""The shortest profile of the chaos: real processes, real kills, and not one violation."""

import json

import pytest

from tests.chaos.profiles import PROFILES
from tests.chaos.run import Run


@pytest.mark.timeout(400)
def test_smoke() -> None:
    """A violation is a bug of the service, to be mended; another seed would only hide it."""
    profile = PROFILES["smoke"]
    run = Run("smoke", profile, 5)
    report = run.go()
    assert not run.violations, json.dumps(report, indent=1)
    # With less it would have shown nothing.
    assert report["jobs"] >= profile.least_jobs
    assert report["kill_9"] >= profile.least_kills
    assert report["verified_bytes"] > 0
