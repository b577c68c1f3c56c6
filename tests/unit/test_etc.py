"""The sample of the settings says all of them, with their defaults."""

import itertools
import re
from pathlib import Path
from typing import NamedTuple

from sirepo_jobs import settings

SAMPLE = Path(__file__).parents[2] / "etc/sirepo-jobs/config.toml"


class Line(NamedTuple):
    """One setting of the sample."""

    name: str
    toml: str
    is_comment: bool
    is_example: bool
    above: str


def lines() -> list[Line]:
    text = SAMPLE.read_text().splitlines()
    found = []
    for above, line in itertools.pairwise(text):
        if match := re.fullmatch(r"(# )?(([a-z_]+) = .*?)( +# example)?", line):
            found.append(
                Line(match[3], match[2], match[1] is not None, match[4] is not None, above.removeprefix("# "))
            )
    return found


def test_the_sample_says_every_setting_once_with_its_meaning() -> None:
    said = {line.name: line for line in lines()}
    assert len(said) == len(lines())
    assert set(said) == set(settings.SETTINGS)
    assert {name: line.above for name, line in said.items()} == {
        name: setting.help for name, setting in settings.SETTINGS.items()
    }


def test_what_is_commented_out_is_the_default(tmp_path: Path) -> None:
    """So that nothing changes when the '#' alone is taken away."""
    root = "/var/lib/sirepo-jobs"
    defaults = settings.load({"root": root}, {}).settings
    every = tmp_path / "every.toml"
    every.write_text("\n".join(line.toml for line in lines() if not line.is_example))
    loaded = settings.load({}, {}, every)
    assert loaded.settings == defaults
    assert settings.load({}, {}, SAMPLE).settings == defaults
    examples = {line.name for line in lines() if line.is_example}
    assert [name for name, source in loaded.sources.items() if source == "default"] == [
        name for name in settings.SETTINGS if name in examples
    ]


def test_the_examples_are_taken_too(tmp_path: Path) -> None:
    every = tmp_path / "every.toml"
    every.write_text("\n".join(line.toml for line in lines()))
    loaded = settings.load({}, {}, every)
    assert set(loaded.sources.values()) == {f"file {every}"}
