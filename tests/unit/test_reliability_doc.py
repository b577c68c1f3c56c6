"""The table of faults names tests that exist."""

import re
from pathlib import Path

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
