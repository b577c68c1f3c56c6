"""Small versions of `bin/slurm-chaos`: lost answers, blackouts, and what jobs cost a site."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm_chaos import ambiguous, blackouts, thousand
from tests.slurm_chaos.wrappers import LOST
from tests.slurm_stage import Cluster, cluster_in

pytestmark = [pytest.mark.real("slurm"), pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster_in(tmp_path_factory.mktemp("slurm"), "nodes=4", "MinJobAge=2") as found:
        yield found


async def test_an_answer_that_is_lost_doubles_nothing(tmp_path: Path, cluster: Cluster) -> None:
    told = await ambiguous.run(tmp_path, cluster, 21, 150.0)
    assert told.executions == {1: 21}, told
    assert (told.wrong_ids, told.wrong_ends) == (0, 0), told
    assert len(told.faults) >= len(LOST) // 2, "the tokens chose too few faults"


async def test_an_answer_that_is_lost_and_a_squeue_that_lies(tmp_path: Path, cluster: Cluster) -> None:
    told = await ambiguous.run(tmp_path, cluster, 14, 150.0, squeue="empty")
    assert told.executions == {1: 14}, told
    assert (told.wrong_ids, told.wrong_ends) == (0, 0), told


async def test_blackouts_end_no_job(tmp_path: Path, cluster: Cluster) -> None:
    told = await blackouts.run(tmp_path, cluster, 16, 3, 2.0, 150.0, seed=3)
    assert (told.false_ends, told.true_ends, told.doubled) == (0, 16, 0), told


async def test_many_jobs_cost_a_site_little(tmp_path: Path, cluster: Cluster) -> None:
    ours = await thousand.ours(tmp_path, cluster, 40, 150.0, query_secs=10.0)
    loop = thousand.loop(cluster, 10, tmp_path)
    assert ours.submit_rpcs * 10 <= 40
    assert loop.submit_rpcs == 10
    # one for each interval, and one when the first jobs are there; how many jobs there are does not matter
    assert ours.query_rpcs <= 2 + ours.secs / 10.0, ours
