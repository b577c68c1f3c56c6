"""A cluster as its users meet it: log in, wait, be asked, and lose nothing when the supervisor dies."""

import contextlib
import json
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from sirepo_jobs import rootdir
from tests.acceptance.cluster_site import site_of, until
from tests.acceptance.conftest import System
from tests.agent_stage import carrying
from tests.sshd_stage import Sshd, sshd_at

pytestmark = [pytest.mark.real("sshd"), pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with sshd_at(str(tmp_path_factory.mktemp("sshd"))) as found:
        yield found


@pytest.fixture
def site(sshd: Sshd, tmp_path: Path) -> Iterator[System]:
    """A service with two clusters: `own` has a key of the service's, `ask` wants a password."""
    own = sshd.policy("own", user="key", root="~/site")
    ask = sshd.policy("ask", user="pass", root="~/site", key_file="")
    with site_of(tmp_path, own, ask) as system:
        yield system
        if rootdir.running_pid(system.root / "supervisor.pid"):
            # without a login nobody can end what runs there
            system.cli("cluster", "login", "ask", input=f"{sshd.password}\n".encode())
    left = carrying(f"{sshd.words['homes']}/")
    assert not left, left


def test_jobs_wait_for_a_login_and_never_fail_for_it(sshd: Sshd, site: System) -> None:
    client = site.client()
    jobs = [client.submit({"command": ["hostname"], "driver": "sbatch", "cluster": "ask"}) for _ in range(5)]
    first = jobs[0].jid
    until(lambda: client.get(first).reason == "AUTH_REQUIRED", "the job says that it waits for a login")
    assert "sirepo-jobs cluster login ask" in client.get(first).situation
    explained = json.loads(site.cli("explain", first, "--output", "json").stdout)
    assert (explained["state"], explained["reason"], explained["fault"]) == (
        "pending",
        "AUTH_REQUIRED",
        "user",
    )
    listed = {
        item["name"]: item for item in json.loads(site.cli("cluster", "list", "--output", "json").stdout)
    }
    assert (listed["ask"]["state"], listed["own"]["state"]) == ("login_required", "idle")

    wrong = site.cli("cluster", "login", "ask", check=False, input=b"wrong-horse-8\n")
    assert wrong.returncode != 0
    assert b"refused" in wrong.stderr
    assert client.get(first).reason == "AUTH_REQUIRED"

    before = sshd.logins()
    done = site.cli("cluster", "login", "ask", input=f"{sshd.password}\n".encode())
    assert b"connected to ask" in done.stdout
    for job in jobs:
        assert client.wait(job.jid, timeout=150).state == "completed"
    assert sshd.logins() == before + 1
    # nothing of it stayed anywhere
    for path in [*site.root.rglob("*"), site.root.parent / "r.log"]:
        with contextlib.suppress(FileNotFoundError):  # one that was put in another's place meanwhile
            if path.is_file():
                assert sshd.password.encode() not in path.read_bytes(), path
    listed = {item["name"]: item for item in client.clusters()}
    assert listed["ask"]["counters"]["logins"] == 2
    assert listed["ask"]["limits"]["logins_per_day"] == 50
    metrics = client.transport.once("GET", "/metrics", read_secs=30, stream=False).data.decode()
    assert 'sirepo_jobs_cluster_counts{cluster="ask",what="logins"} 2.0' in metrics
    assert 'sirepo_jobs_cluster_counts{cluster="own",what="logins"} 0.0' in metrics
    assert site.cli("cluster", "logout", "ask").returncode == 0
    waiting = client.submit({"command": ["true"], "driver": "sbatch", "cluster": "own"})
    assert client.wait(waiting.jid, timeout=150).state == "completed"


def test_supervisor_killed_while_jobs_run_and_wait(sshd: Sshd, site: System) -> None:
    """kill -9: the agent on the login node goes on, is found again, and everything runs once (I4, I8)."""
    client = site.client()
    script = "echo $$ >> ~/begun; while [ ! -e ~/go ]; do sleep 0.05; done; echo done"
    spec = {"driver": "sbatch", "cluster": "own"}
    running = client.submit({"command": ["/bin/sh", "-c", script], **spec})
    until(lambda: client.get(running.jid).state == "running", "the job runs")
    asked = client.submit({"command": ["true"], "driver": "sbatch", "cluster": "ask"})
    until(lambda: client.get(asked.jid).reason == "AUTH_REQUIRED", "the other waits")
    site.crash()
    agents = carrying(f"{sshd.words['homes']}/")
    site.up()
    client = site.client()
    until(lambda: client.get(running.jid).state == "running", "it is known again")
    assert set(carrying(f"{sshd.words['homes']}/")) >= {
        pid for pid, what in agents.items() if "main.py start" in what
    }
    assert client.get(asked.jid).state == "pending"
    until(lambda: client.get(asked.jid).reason == "AUTH_REQUIRED", "the other waits on")
    begun = sshd.home("key") / "begun"
    subprocess.run(
        ["runuser", "-u", sshd.user("key"), "--", "touch", str(sshd.home("key") / "go")], check=True
    )
    job = client.wait(running.jid, timeout=150)
    assert (job.state, job.exit_code) == ("completed", 0)
    assert b"".join(client.logs(running.jid)) == b"done\n"
    assert len(begun.read_text().splitlines()) == 1
    login = site.cli("cluster", "login", "ask", input=f"{sshd.password}\n".encode())
    assert login.returncode == 0
    assert client.wait(asked.jid, timeout=150).state == "completed"


def test_an_agent_that_calls_by_itself_needs_no_login_any_more(sshd: Sshd, tmp_path: Path) -> None:
    """Through the agents' door, over TLS: after a logout and a kill -9 the job is still in touch."""
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert")
    certificate.private_key_pem.write_to_path(tmp_path / "key")
    authority.cert_pem.write_to_path(tmp_path / "ca")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    door = f"wss://localhost:{port}/agent"
    policy = sshd.policy("ask", user="pass", root="~/direct", key_file="", agent_url=door)
    environ = {
        "SIREPO_JOBS_AGENT_HOST": "127.0.0.1",
        "SIREPO_JOBS_AGENT_PORT": str(port),
        "SIREPO_JOBS_AGENT_TLS_CERT_FILE": str(tmp_path / "cert"),
        "SIREPO_JOBS_AGENT_TLS_KEY_FILE": str(tmp_path / "key"),
        "SIREPO_JOBS_AGENT_CA_FILE": str(tmp_path / "ca"),
    }
    password = f"{sshd.password}\n".encode()
    with site_of(tmp_path, policy, **environ) as site:
        site.cli("cluster", "login", "ask", input=password)
        client = site.client()
        script = "while [ ! -e ~/go ]; do sleep 0.05; done; echo done"
        made = client.submit({"command": ["/bin/sh", "-c", script], "driver": "sbatch"})
        until(lambda: client.get(made.jid).state == "running", "the job runs")
        assert not list((sshd.home("pass") / "direct/agents").rglob("*.sock"))
        before = sshd.logins()
        site.cli("cluster", "logout", "ask")
        site.crash()
        site.up()
        client = site.client()
        until(lambda: client.get(made.jid).state == "running", "it called again by itself")
        go = sshd.home("pass") / "go"
        subprocess.run(["runuser", "-u", sshd.user("pass"), "--", "touch", str(go)], check=True)
        assert client.wait(made.jid, timeout=150).state == "completed"
        assert b"".join(client.logs(made.jid)) == b"done\n"
        # and it hears that it shall end, without a login
        assert site.cli("down", "--stop-agents").returncode == 0
        until(lambda: not carrying(f"{sshd.words['homes']}/"), "the agent has ended")
        assert sshd.logins() == before
    assert not carrying(f"{sshd.words['homes']}/")


def test_an_agent_that_calls_through_its_login_is_named_when_it_cannot_be_ended(
    sshd: Sshd, site: System
) -> None:
    password = f"{sshd.password}\n".encode()
    site.cli("cluster", "login", "ask", input=password)
    client = site.client()
    made = client.submit({"command": ["/bin/true"], "driver": "sbatch", "cluster": "ask"})
    assert client.wait(made.jid, timeout=150).state == "completed"
    online = lambda: [one["agent"] for one in client.agents() if one["state"] == "online"]  # noqa: E731
    until(online, "the agent is in touch")
    (agent,) = online()
    site.cli("cluster", "logout", "ask")
    done = site.cli("down", "--stop-agents", check=False)
    assert done.returncode == 1
    assert f"agent {agent} could not be ended: ".encode() in done.stderr
    assert b"`sirepo-jobs cluster login ask`" in done.stderr
    site.down()
    site.up()
    site.cli("cluster", "login", "ask", input=password)


def test_check_tells_what_is_amiss(site: System) -> None:
    good = site.cli("cluster", "check", "own")
    assert good.returncode == 0
    assert good.stdout.count(b"ok ") == 7
    bad = site.cli("cluster", "check", "ask", check=False)
    assert bad.returncode == 1
    assert b"cluster login ask" in bad.stdout
