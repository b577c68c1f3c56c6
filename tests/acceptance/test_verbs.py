"""Telling real jobs what to do, from the command line."""

import json
import time

import psutil
import pytest

from .conftest import System, eventually, marked

pytestmark = pytest.mark.timeout(120)


def test_suspended_processes_stand_still_and_go_on(system: System) -> None:
    client = system.client()
    jid = client.submit({"command": ["sh", "-c", "sleep 100.0778 & wait"]}).jid
    eventually(lambda: client.get(jid).state == "running" and len(marked("100.0778")) == 2)
    assert system.cli("suspend", jid).stdout == f"{jid} suspended\n".encode()
    # every process of the job, not only the first
    states = {psutil.Process(pid).status() for pid in marked("100.0778")}
    assert states == {psutil.STATUS_STOPPED}
    assert system.cli("resume", "--filter", "state=suspended").stdout == f"{jid} running\n".encode()
    states = {psutil.Process(pid).status() for pid in marked("100.0778")}
    assert psutil.STATUS_STOPPED not in states
    # a suspended job can be canceled, and leaves nothing
    system.cli("suspend", "last")
    began = time.monotonic()
    system.cli("cancel", jid)
    assert client.wait(jid, timeout=30).state == "canceled"
    assert time.monotonic() - began < 10
    assert marked("100.0778") == []


def test_hold_ends_it_release_starts_it_anew_and_retry_once_more(system: System) -> None:
    client = system.client()
    jid = client.submit({"command": ["sh", "-c", "sleep 100.0779"], "tags": {"kind": "held"}}).jid
    eventually(lambda: client.get(jid).state == "running")
    said = json.loads(system.cli("hold", "--tag", "kind=held", "--output", "json").stdout)
    assert [(one["jid"], one["state"]) for one in said] == [(jid, "canceling")]
    eventually(lambda: client.get(jid).state == "held")
    assert marked("100.0779") == []
    system.cli("release", jid)
    eventually(lambda: client.get(jid).state == "running")
    assert client.get(jid).attempt == 2
    assert system.cli("retry", jid, check=False).returncode == 5
    system.cli("cancel", jid)
    client.wait(jid, timeout=30)
    job = client.retry(jid)
    assert (job.serial, job.state in ("pending", "starting")) == (2, True)
    eventually(lambda: client.get(jid).state == "running")
    assert client.get(jid).attempt == 3
    system.cli("cancel", jid)
    client.wait(jid, timeout=30)


def test_explain_shows_the_end_of_stderr(system: System) -> None:
    client = system.client()
    words = ["sh", "-c", "for i in $(seq 50); do echo line $i >&2; done; exit 7"]
    jid = client.submit({"command": words, "name": "bad"}).jid
    client.wait(jid, timeout=30)
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
