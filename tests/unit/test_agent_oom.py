"""The kernel's own count of those whom it killed for memory."""

import pytest

from sirepo_jobs.agents import containment, oom
from sirepo_jobs.agents.containment import traffic_in


@pytest.mark.parametrize(
    ("text", "count"),
    [
        (b"low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 0\n", 2),
        (b"oom_kill_disable 0\nunder_oom 0\noom_kill 7\n", 7),
        (b"oom_kill_disable 1\nunder_oom 0\n", 0),
        (b"", 0),
        (b"oom_kill x\n", 0),
    ],
)
def test_count(text: bytes, count: int) -> None:
    assert oom.count_in(text) == count


def test_where_the_cgroup_is_not_ours_nothing_is_claimed() -> None:
    assert oom.kills() == 0


def test_traffic_is_what_went_over_every_interface_but_loopback() -> None:
    text = b"""Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes packets
    lo: 9000 10 0 0 0 0 0 0 9000 10 0 0 0 0 0 0
  eth0: 746 9 0 0 0 0 0 0 42 1 0 0 0 0 0 0
  eth1: 1000 9 0 0 0 0 0 0 100 1 0 0 0 0 0 0
"""
    assert traffic_in(text) == (1746, 142)
    assert traffic_in(b"") == (0, 0)


def test_outside_of_a_container_nothing_is_told_of_it() -> None:
    assert containment.memory_peak() == 0
    assert containment.traffic() == (0, 0)
