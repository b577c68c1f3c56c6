"""A look at speed that a busy machine cannot spoil: CPU time against that of the bare limit, in one run."""

import statistics

import pytest

from benchmarks.contest import play
from benchmarks.roster import ROSTER

LIMIT, _, OURS = ROSTER[:3]


@pytest.mark.timeout(300)
def test_a_job_costs_a_few_times_what_its_process_costs() -> None:
    """Wall time depends on the neighbours; the ratio of CPU times, both measured in turns, hardly does."""
    samples, left_out = play([LIMIT, OURS], ["throughput"], rounds=3, quick=True)
    assert left_out == {}
    cost = {
        one.name: statistics.median(s.cpu_us for s in samples if s.contestant == one.name)
        for one in (LIMIT, OURS)
    }
    print(cost)
    assert cost[OURS.name] > cost[LIMIT.name], "ours runs the same processes"
    assert cost[OURS.name] / cost[LIMIT.name] < 12, cost
