"""The agent bundle of this checkout for tests: built once, found again as long as nothing changed."""

import subprocess
from functools import cache
from pathlib import Path

from sirepo_jobs.agent_bundle import MANIFEST, AgentBundle

REPO = Path(__file__).parents[1]
OUT = REPO / ".agent-bundle"


@cache
def agent_bundle() -> AgentBundle:
    """What `bin/build-agent-bundle` made in `OUT`."""
    subprocess.run([REPO / "bin" / "build-agent-bundle", OUT], check=True, stdout=subprocess.DEVNULL)
    return AgentBundle.from_json((OUT / MANIFEST).read_bytes())
