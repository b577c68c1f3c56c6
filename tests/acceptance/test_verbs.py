"""Telling real jobs what to do, from the command line."""

import json
import signal
from pathlib import Path

import psutil
import pytest

from tests.agent_stage import sleep_token

from .conftest import System, eventually, marked

pytestmark = pytest.mark.timeout(300)


def test_suspended_processes_stand_still_and_go_on(system: System) -> None:
    client = system.client()
    word = sleep_token(1)
    jid = client.submit({"command": ["sh", "-c", f"sleep {word} & wait"]}).jid
    eventually(lambda: client.get(jid).state == "running" and len(marked(word)) == 2)
    assert system.cli("suspend", jid).stdout == f"{jid} suspended\n".encode()
    # every process of the job, not only the first; on another cpu it stands a moment after it was told to
    eventually(lambda: {psutil.Process(pid).status() for pid in marked(word)} == {psutil.STATUS_STOPPED})
    assert system.cli("resume", "--filter", "state=suspended").stdout == f"{jid} running\n".encode()
    assert psutil.STATUS_STOPPED not in {psutil.Process(pid).status() for pid in marked(word)}
    # a suspended job can be canceled, and leaves nothing
    system.cli("suspend", "last")
    system.cli("cancel", jid)
    ended = client.wait(jid, timeout=60)
    # it heard the TERM, or it would have stood until the KILL
    assert (ended.state, ended.signal) == ("canceled", signal.SIGTERM)
    assert marked(word) == []


def test_hold_ends_it_release_starts_it_anew_and_retry_once_more(system: System) -> None:
    client = system.client()
    word = sleep_token(2)
    jid = client.submit({"command": ["sh", "-c", f"sleep {word}"], "tags": {"kind": "held"}}).jid
    eventually(lambda: client.get(jid).state == "running")
    said = json.loads(system.cli("hold", "--tag", "kind=held", "--output", "json").stdout)
    # told as it is by the time that is written down: the agent may have been as quick
    assert [(one["jid"], one["state"] in ("canceling", "held")) for one in said] == [(jid, True)]
    eventually(lambda: client.get(jid).state == "held")
    assert marked(word) == []
    system.cli("release", jid)
    eventually(lambda: client.get(jid).state == "running")
    assert client.get(jid).attempt == 2
    assert system.cli("retry", jid, check=False).returncode == 5
    system.cli("cancel", jid)
    client.wait(jid, timeout=60)
    job = client.retry(jid)
    assert (job.serial, job.state in ("pending", "starting", "running")) == (2, True)
    eventually(lambda: client.get(jid).state == "running")
    assert client.get(jid).attempt == 3
    system.cli("cancel", jid)
    client.wait(jid, timeout=60)


def test_explain_shows_the_end_of_stderr(system: System) -> None:
    client = system.client()
    words = ["sh", "-c", "for i in $(seq 50); do echo line $i >&2; done; exit 7"]
    jid = client.submit({"command": words, "name": "bad"}).jid
    client.wait(jid, timeout=60)
    said = client.explain(jid)
    assert said.stderr == [f"line {i}" for i in range(31, 51)]
    assert (said.reason, said.fault) == ("EXIT_NONZERO", "user")
    shown = system.cli("explain", jid).stdout.decode()
    assert shown.startswith(f"Job bad ({jid}) ended in state error: exited with code 7.")
    assert shown.endswith("  line 49\n  line 50\n")


def test_lists_by_label_queue_and_time(system: System) -> None:
    client = system.client()
    made = [
        client.submit({"command": ["true"], "queue": "night", "tags": {"set": "x, y:z", "nr": str(i)}}).jid
        for i in range(3)
    ]
    by_tag = [job.jid for job in client.jobs(tags={"set": "x, y:z"})]
    assert by_tag == made[::-1]
    assert [job.jid for job in client.jobs(tags={"set": "x, y:z", "nr": "1"}, queue="night")] == [made[1]]
    middle = client.get(made[1]).created_at
    assert [job.jid for job in client.jobs(created_after=middle, queue="night")] == made[:0:-1]
    assert [job.jid for job in client.jobs(created_before=middle, queue="night")] == [made[0]]
    page = client.transport.call("GET", "/api/v1/jobs", {"fields": "jid,queue", "queue": "night"})
    assert page["jobs"] == [{"jid": jid, "queue": "night"} for jid in made[::-1]]
    page = client.transport.call("GET", "/api/v1/jobs", {"view": "full", "limit": 1})
    assert page["jobs"][0]["spec"]["command"] == ["true"]
    assert made[2].encode() in system.cli("ps", "-a", "--tag", "nr=2").stdout


def test_update_changes_what_a_job_is_called_and_when_it_comes(system: System) -> None:
    client = system.client()
    spec = {"command": ["sleep", sleep_token(3)], "tags": {"set": "u", "old": "1"}}
    made = [client.submit(spec | {"name": f"n{i}"}).jid for i in range(2)]
    system.cli("hold", *made)
    eventually(lambda: all(client.get(jid).state == "held" for jid in made))
    words = ["--priority", "9", "--set-tag", "new=2", "--remove-tag", "old", "--time-limit", "30m"]
    shown = system.cli(
        "update", "--tag", "set=u", "--filter", "state=held", *words, "--output", "json"
    ).stdout
    assert {job["jid"] for job in json.loads(shown)} == set(made)
    for jid in made:
        job = client.get(jid)
        assert (job.priority, job.tags) == (9, {"set": "u", "new": "2"})
        assert job.spec is not None
        assert job.spec["limits"]["soft"] == 1800
    assert (
        system.cli("update", made[0], "--name", "fresh", "--time-limit", "none").stdout.split()[0].decode()
        == made[0]
    )
    job = client.get(made[0])
    assert job.spec is not None
    assert (job.name, "soft" in job.spec.get("limits", {})) == ("fresh", False)
    for words, status, hint in (
        ([made[0]], 2, b"what is to change? --name"),
        (["--priority", "3"], 2, b"name jobs"),
        (["nobody", "--priority", "3"], 3, b"no job"),
        ([made[0], "--priority", "11"], 2, b"0<=x<=10"),
        ([made[0], "--set-tag", "x"], 2, b"NAME=VALUE"),
        ([made[0], "--set-tag", "x=1", "--remove-tag", "x"], 2, b"say one"),
    ):
        done = system.cli("update", *words, check=False)
        assert (done.returncode, hint in done.stderr) == (status, True), done.stderr
    system.cli("cancel", *made)


def test_agents_are_listed_drained_and_stopped(own_system: System) -> None:
    client = own_system.client()
    assert (
        own_system.cli("agent", "list").stdout.split()
        == b"AGENT USER DRIVER STATE WORK HOST VERSION TROUBLE".split()
    )
    jid = client.submit({"command": ["sh", "-c", "until [ -e go ]; do sleep 0.05; done"]}).jid
    eventually(lambda: client.get(jid).state == "running")
    (agent,) = json.loads(own_system.cli("agent", "list", "-o", "json").stdout)
    assert (agent["state"], agent["ops"]) == ("online", 1)
    name = agent["agent"]
    assert own_system.cli("agent", "drain", name).stdout == f"{name} leaving\n".encode()
    later = client.submit({"command": ["true"]}).jid
    eventually(lambda: client.get(later).reason == "DRAINING")
    old = {process.pid for process in own_system.agents()}
    Path(client.get(jid).run_dir or "", "go").touch()
    assert client.wait(jid, timeout=60).state == "completed"
    assert client.wait(later, timeout=60).state == "completed"
    assert not old & {process.pid for process in own_system.agents()}, "a fresh one"
    word = sleep_token(4)
    endless = client.submit({"command": ["sleep", word]}).jid
    eventually(lambda: client.get(endless).state == "running")
    assert own_system.cli("agent", "stop", name).returncode == 0
    assert marked(word) == []
    client.cancel(endless)
    assert client.wait(endless, timeout=60).ended
    assert own_system.cli("agent", "stop", "nobody", check=False).returncode == 3
    done = own_system.cli("agent", "stop", check=False)
    assert done.returncode == 2
