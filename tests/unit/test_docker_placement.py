"""Which docker engine serves whom: pools that do not overlap, the least loaded of one's own (SIR-42)."""

from pathlib import Path

import pytest

from sirepo_jobs.drivers.docker.placement import Placement, PoolPolicy
from sirepo_jobs.drivers.docker.policy import read_policy
from sirepo_jobs.errors import BadInput

ENGINES = "".join(
    f'[engines.{name}]\nurl = "unix:///{name}"\ncpus = {cpus}\nmemory = "1 GiB"\n'
    for name, cpus in (("here", 2), ("far", 4), ("wide", 8))
)


def written(path: Path, text: str) -> Path:
    file = path / "docker.toml"
    file.write_text(ENGINES + text)
    return file


def placed(**pools: tuple[list[str], list[str]]) -> Placement:
    told = {name: PoolPolicy(engines=engines, users=users) for name, (engines, users) in pools.items()}
    return Placement({"here": 2, "far": 4, "wide": 8}, told)


def test_pools_stand_in_the_file(tmp_path: Path) -> None:
    policy = read_policy(written(tmp_path, '[pools.gold]\nengines = ["far"]\nusers = ["ann", "bob"]\n'))
    assert policy.pools == {"gold": PoolPolicy(engines=["far"], users=["ann", "bob"])}
    assert read_policy(written(tmp_path, "")).pools == {}


@pytest.mark.parametrize(
    ("pools", "said"),
    [
        (
            '[pools.a]\nengines = ["far"]\nusers = []\n[pools.b]\nengines = ["far"]\nusers = []\n',
            "pools.b: engine 'far' is in pool 'a' already; pools may not overlap",
        ),
        (
            '[pools.a]\nengines = ["far"]\nusers = ["u"]\n[pools.b]\nengines = ["here"]\nusers = ["u"]\n',
            "pools.b: user 'u' is in pool 'a' already; pools may not overlap",
        ),
        (
            '[pools.a]\nengines = ["nah"]\nusers = ["u"]\n',
            "pools.a: there is no engine 'nah'; there are: far, here, wide",
        ),
        (
            '[pools.a]\nengines = ["far", "here"]\nusers = ["*"]\n',
            "engines.wide is in no pool and would serve nobody, since pool 'a' has everybody else",
        ),
        ('[pools."A b"]\nengines = ["far"]\nusers = ["u"]\n', "pools.A b: a name has lower case letters"),
        ('[pools.a]\nengines = ["far"]\n', "required field `users`"),
        ('[pools.a]\nengines = ["far"]\nusers = ["u"]\nplan = 1\n', "unknown field `plan`"),
    ],
)
def test_pools_that_cannot_be_meant_are_refused(tmp_path: Path, pools: str, said: str) -> None:
    with pytest.raises(BadInput) as caught:
        read_policy(written(tmp_path, pools))
    assert said in str(caught.value)


def test_users_are_on_engines_of_their_pool_alone() -> None:
    placement = placed(gold=(["wide"], ["ann"]))
    assert placement.host_of("ann") == "wide"
    others = {user: placement.host_of(user) for user in ("bob", "cid", "dot")}
    # the fewest users per cpu, among those that stand in no pool
    assert others == {"bob": "far", "cid": "here", "dot": "far"}
    assert {user: placement.host_of(user) for user in others} == others


def test_star_is_everybody_whom_no_pool_names() -> None:
    placement = placed(gold=(["wide", "far"], ["ann"]), rest=(["here"], ["*"]))
    assert [placement.pool_of(user) for user in ("ann", "bob")] == ["gold", "rest"]
    assert {placement.host_of(user) for user in ("bob", "cid", "dot")} == {"here"}


def test_nobody_spills_over_to_engines_of_others() -> None:
    placement = placed(gold=(["far"], ["ann"]))
    for _ in range(3):
        assert placement.host_of("ann") == "far"
        placement.fell_silent("ann", "far")
        assert "no engine of pool 'gold', which user 'ann' is in, answers now" in placement.bounds("ann")
    assert placement.bounds("bob") == ""


def test_a_silent_engine_is_left_for_another_of_the_pool() -> None:
    placement = placed(gold=(["far", "wide"], ["ann", "bob"]))
    assert placement.host_of("ann") == "far"
    placement.fell_silent("ann", "far")
    assert placement.bounds("ann") == ""
    assert placement.host_of("ann") == "wide"
    placement.answered("ann", "wide")
    # whoever has something there stays, and waits for it
    placement.fell_silent("ann", "wide")
    assert placement.host_of("ann") == "wide"


def test_who_may_be_nowhere_is_told_why() -> None:
    placement = placed(gold=(["here", "far", "wide"], ["ann"]), repair=([], ["bob"]))
    assert placement.host_of("bob") == placement.host_of("cid") == ""
    assert placement.why_nowhere("bob").startswith("pool 'repair', which user 'bob' is in, has no engine")
    assert placement.why_nowhere("cid").startswith("user 'cid' is in no pool, and every engine is kept")


def test_after_a_restart_users_stay_unless_their_pool_is_another() -> None:
    placement = placed(gold=(["far", "wide"], ["ann", "bob"]))
    placement.remember("ann", "wide")
    placement.remember("bob", "here")
    assert placement.host_of("ann") == "wide"
    assert placement.host_of("bob") == "far"
