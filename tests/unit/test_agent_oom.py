"""The kernel's own count of those whom it killed for memory."""

import pytest

from sirepo_jobs.agents import oom


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
