"""Policy files of clusters: what they mean, and what is refused."""

from pathlib import Path

import msgspec
import pytest

from sirepo_jobs.cluster import ClusterPolicy, SlurmPolicy, SshPolicy
from sirepo_jobs.cluster_file import parse_policy
from sirepo_jobs.driver import Environment
from sirepo_jobs.errors import BadInput

SAMPLE = Path(__file__).parents[2] / "etc/clusters/example.toml"
SSH = '[ssh]\nhost = "h"\nknown_hosts = "/k"\n'


def test_the_sample_shows_the_defaults() -> None:
    policy = parse_policy("example", SAMPLE.read_text())
    assert policy == ClusterPolicy(
        name="example",
        description="Example cluster",
        ssh=SshPolicy(host="login.example.org", known_hosts="/etc/sirepo-jobs/known_hosts"),
        slurm=SlurmPolicy(),
    )
    text = SAMPLE.read_text()
    fields = (*SshPolicy.__struct_fields__, *SlurmPolicy.__struct_fields__)
    assert [name for name in fields if f"\n{name} = " not in text and f"[slurm.{name}]" not in text] == []


@pytest.mark.parametrize(
    ("name", "text", "word"),
    [
        ("a-b", SSH, "name"),
        ("c", "x", "not TOML"),
        ("c", "", "ssh"),
        ("c", '[ssh]\nhost = "h"\n', "known_hosts"),
        ("c", SSH.replace("/k", "k"), "absolute"),
        ("c", SSH.replace('"h"', '"-oProxyCommand=x"'), "not a host"),
        ("c", SSH + 'root = "/scratch/jobs"\n', "same for every user"),
        ("c", SSH + 'root = "/scratch/{user}/$(id)"\n', "plain path"),
        ("c", SSH + 'root = "~/../{user}"\n', "plain path"),
        ("c", SSH + 'root = "~/{host}"\n', "only {user}"),
        ("c", SSH + 'auth = ["gssapi"]\n', "gssapi"),
        ("c", SSH + "auth = []\n", "empty"),
        ("c", SSH + "logins_per_day = 0\n", "more than 0"),
        ("c", SSH + 'keepalive_secs = "soon"\n', "duration"),
        ("c", SSH + "pasword = 1\n", "pasword"),
    ],
)
def test_what_cannot_be_meant_is_refused(name: str, text: str, word: str) -> None:
    with pytest.raises(BadInput) as caught:
        parse_policy(name, text)
    assert word in str(caught.value)
    assert str(caught.value).startswith(f"cluster {name}:")
    assert caught.value.code == "bad_cluster"


def test_agents_of_clusters_have_names_of_their_own() -> None:
    """No user's agent is another's, whatever the names are (SIR-35)."""
    keys = {
        Environment(driver="sbatch", user=user, cluster=cluster).key
        for user in ("ann", "b-ann", "x.b-ann")
        for cluster in ("x", "b", "x_b")
    }
    assert len(keys) == 9
    one = Environment(driver="sbatch", user="ann", cluster="x", image="a").key
    assert one == Environment(driver="sbatch", user="ann", cluster="x", image="b").key


def test_the_policy_travels_as_json() -> None:
    policy = SlurmPolicy(partitions=["debug"], query_secs=7)
    assert msgspec.json.decode(msgspec.json.encode(policy), type=SlurmPolicy) == policy
