"""The seeded bugs of `bin/mutants` still fit the tree."""

from pathlib import Path

import pytest

from tests.mutants.catalog import MUTANTS, SIM, Mutant

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("mutant", MUTANTS, ids=[mutant.name for mutant in MUTANTS])
def test_its_text_stands_once_in_its_file(mutant: Mutant) -> None:
    assert (ROOT / mutant.file).read_text().count(mutant.old) == 1
    assert mutant.old != mutant.new
    for path in [] if mutant.caught_by == SIM else mutant.caught_by.split():
        assert (ROOT / path).exists()


def test_there_are_many_and_none_twice() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 40
