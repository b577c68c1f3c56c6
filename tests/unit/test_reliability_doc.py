"""The table of faults names tests that exist."""

import re
from pathlib import Path

from tests.chaos.checker import CHECKS
from tests.sim.check import CHECKED

ROOT = Path(__file__).parents[2]
TABLE = (ROOT / "docs/reliability.md").read_text()
SLURM = (ROOT / "docs/slurm.md").read_text()


def test_every_test_of_the_table_exists() -> None:
    named = re.findall(r"`((?:unit|integration|acceptance|chaos|sim)/[\w/]+\.py)(?:::(\w+))?`", TABLE + SLURM)
    assert len(named) > 80
    for file, test in named:
        text = (ROOT / "tests" / file).read_text()
        assert not test or re.search(rf"def {test}\(", text), f"{file} has no {test}"


def test_every_row_stands_once() -> None:
    rows = re.findall(r"^\| F(\d{3}) \|", TABLE, re.MULTILINE)
    assert [int(row) for row in rows] == [*range(1, 117), *range(144, 159)]
    assert [int(row) for row in re.findall(r"^\| F(\d{3}) \|", SLURM, re.MULTILINE)] == [*range(117, 144)]


def test_every_invariant_says_truly_who_checks_it() -> None:
    rows = re.findall(r"^\| (I\d+) [^|]*\| (\w*) ?\| (\w*) ?\| (.*)\|$", TABLE, re.MULTILINE)
    assert [row[0] for row in rows] == [f"I{number}" for number in range(1, 35)]
    by_chaos = {name for names in CHECKS for name in names.split()}
    for name, sim, chaos, besides in rows:
        assert (sim == "sim") == (name in CHECKED), name
        assert (chaos == "chaos") == (name in by_chaos), name
        assert sim or chaos or besides.strip(), f"nobody checks {name}, and nobody says so"
    assert re.findall(r"^\| C(\d+) ", TABLE, re.MULTILINE) == [f"{number}" for number in range(1, 17)]
