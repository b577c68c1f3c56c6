"""What `bin/bench` makes of its samples."""

import json
import os
import subprocess
import sys

from benchmarks import report
from benchmarks.contest import Sample
from benchmarks.cpu import tree_secs
from benchmarks.roster import COUNTS, ROSTER, UNITS

LIMIT, FILES, OURS = (one.name for one in ROSTER[:3])


def sample(name: str, workload: str, round_: int, count: int, secs: list[float], cpu_us: float) -> Sample:
    return Sample(name, workload, round_, count, secs, cpu_us)


SAMPLES = [
    *(sample(LIMIT, "throughput", n, 3000, [secs], 500) for n, secs in enumerate((1.0, 1.5, 1.0))),
    *(sample(OURS, "throughput", n, 3000, [secs], 800) for n, secs in enumerate((2.0, 1.5, 9.0))),
    *(sample("Ray", "throughput", n, 3000, [4.0], 2000) for n in range(3)),
    sample(LIMIT, "latency", 1, 100, [0.001] * 100, 700),
    sample(OURS, "latency", 1, 100, [0.003] * 98 + [0.006] * 2, 2000),
]


def test_ratios_are_those_of_the_medians() -> None:
    found = report.ratios(report.rows(SAMPLES))
    assert found["throughput / C posix_spawn"] == 0.5
    assert found["throughput / Ray (fastest peer)"] == 2.0
    assert found["CPU outside the job / cost of the spawn"] == 0.6
    assert round(found["latency p50 / bare subprocess.run"], 6) == 3.0
    assert round(found["latency p99 / p50"], 6) == 2.0


def test_a_table_has_the_best_first_and_says_who_is_left_out() -> None:
    text = report.as_text(report.rows(SAMPLES), {"Dask": "no such package"})
    places = [text.index(name) for name in (LIMIT, f"**{OURS}**", "Ray")]
    assert places == sorted(places)
    assert "| 1500 | 333 to 2000 | 800 | 3 |" in text
    assert "* Dask: no such package" in text


def test_the_samples_are_all_in_the_json() -> None:
    data = json.loads(report.as_json(report.rows(SAMPLES), SAMPLES, {}, {"cpus": 2}))
    assert len(data["samples"]) == len(SAMPLES)
    assert data["ratios"]["throughput / C posix_spawn"] == 0.5


def test_every_workload_has_a_unit_and_every_contestant_known_workloads() -> None:
    assert list(COUNTS) == list(UNITS)
    assert {name for one in ROSTER for name in one.workloads} == set(COUNTS)
    assert len({one.name for one in ROSTER}) == len(ROSTER)


def test_the_time_of_children_that_ended_is_counted() -> None:
    before = tree_secs(os.getpid())
    subprocess.run([sys.executable, "-c", "import time\nwhile time.process_time() < 0.3: pass"], check=True)
    # the kernel counts in hundredths of a second
    assert 0.27 <= tree_secs(os.getpid()) - before < 3
