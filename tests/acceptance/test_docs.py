"""The examples in the documentation, run as they stand."""

import doctest
from pathlib import Path

import pytest

from .conftest import System

pytestmark = pytest.mark.timeout(120)
DOCS = Path(__file__).parents[2] / "docs"


def test_the_examples_of_the_client(own_system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SIREPO_JOBS_URL", "SIREPO_JOBS_TOKEN", "SIREPO_JOBS_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SIREPO_JOBS_ROOT", str(own_system.root))
    result = doctest.testfile(str(DOCS / "client.md"), module_relative=False)
    assert result.attempted > 15
    assert result.failed == 0
