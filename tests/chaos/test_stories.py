"""Bugs that chaos found, told as stories; and what only whole processes can show."""

import concurrent.futures
import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator

import pytest
from urllib3.exceptions import HTTPError

from sirepo_jobs.client import Client
from sirepo_jobs.errors import Unavailable
from tests.chaos.plan import Plan, stream
from tests.chaos.world import World, eventually, world


@pytest.fixture(scope="module")
def here() -> Iterator[World]:
    with world() as it:
        # The agent is there before anything is to happen to it.
        with contextlib.closing(it.client()) as client:
            client.wait(client.submit({"command": ["true"]}).jid, timeout=60)
        yield it


def test_output_of_an_attempt_that_nobody_saw_start_is_served(here: World) -> None:
    """I13: its spawner was killed between the birth and the first word about it (chaos, seed 12)."""
    key = f"{here.path.name}-unseen"
    plan = Plan(out=300_000, msecs=60_000)
    with contextlib.closing(here.client()) as client:
        # The spawner stands still behind the birth until the job has written everything; then it dies.
        here.fire("birth.spawned", "sleep 60")
        jid = client.submit(plan.spec(key, here.witness)).jid
        out = here.root / f"users/root/jobs/{jid}/1/stdout"
        out = eventually(lambda: next(iter(here.root.glob(f"users/*/jobs/{jid}/1/stdout")), None), 30, "born")
        eventually(lambda: out.stat().st_size == plan.out, 30, "everything is written")
        asleep = int(eventually(lambda: here.noted("fired"), 30, "it sleeps")[-1].split()[1])
        os.kill(asleep, signal.SIGKILL)
        job = client.wait(jid, timeout=60)
        assert (job.state, job.reason, job.exit_code) == ("error", "AGENT_LOST", None)
        assert b"".join(client.logs(jid)) == stream(key, 1, "stdout", plan.out)
        assert b"".join(client.logs(jid, attempt=1)) == stream(key, 1, "stdout", plan.out)


def test_a_job_whose_spawner_died_before_it_told_of_the_birth_runs(here: World) -> None:
    """The launcher took it over and told nobody: the job was `starting` to its end (crash points)."""
    with contextlib.closing(here.client()) as client:
        here.fire("birth.untold", "kill")
        jid = client.submit({"command": ["sleep", "60"]}).jid
        eventually(lambda: client.get(jid).state == "running", 30, "it is known to run")
        client.cancel(jid)
        job = client.wait(jid, timeout=60)
        assert (job.state, job.signal) == ("canceled", signal.SIGTERM)


def test_output_of_an_attempt_without_files_is_empty(here: World) -> None:
    """Its spawner was killed with the directory made and nothing in it: no bytes, and no error."""
    with contextlib.closing(here.client()) as client:
        here.fire("birth.dir_made", "kill")
        job = client.wait(client.submit({"command": ["true"]}).jid, timeout=60)
        assert (job.state, job.reason) == ("error", "AGENT_LOST")
        assert b"".join(client.logs(job.jid)) == b""


def test_output_of_a_job_that_was_canceled_while_it_waited_for_its_next_attempt(here: World) -> None:
    """I13: the attempt that was over had no place any more, and its output was empty (chaos, seed 101)."""
    key = f"{here.path.name}-again"
    plan = Plan(out=5000, msecs=60_000, cpus=here.cpus)
    blocker = {"command": ["sleep", "60"], "resources": {"cpus": here.cpus}}
    short = {"command": ["true"], "resources": {"cpus": here.cpus}}
    expected = stream(key, 1, "stdout", plan.out)
    with contextlib.closing(here.client(direct=True)) as client:
        # Where jobs are short, many are sent ahead.
        for one in client.submit([short] * 50):
            client.wait(one.jid, timeout=60)
        jid = client.submit(plan.spec(key, here.witness)).jid
        eventually(lambda: b"".join(client.logs(jid)) == expected, 30, "it has written")
        # More than one, because the next in line are sent ahead to the agent.
        others = [one.jid for one in client.submit([blocker] * 6)]
        try:
            client.hold(jid)
            # Which one: each of the two spawners starts the first of those that stand by with it.
            running = lambda: any(client.get(other).state == "running" for other in others)  # noqa: E731
            eventually(running, 30, "another one has its place")
            assert client.get(jid).state == "held"
            assert b"".join(client.logs(jid)) == expected
            # It waits; where jobs were short, it may be sent ahead, too.
            assert client.release(jid).state in ("pending", "starting")
            assert b"".join(client.logs(jid, attempt=1)) == expected
            assert client.cancel(jid).state in ("canceled", "canceling")
            assert client.wait(jid, timeout=60).state == "canceled"
            assert b"".join(client.logs(jid)) == expected
        finally:
            for other in reversed(others):
                client.cancel(other)


@pytest.mark.parametrize("ways", [{"up", "down"}, {"up"}, {"down"}], ids=["both", "up", "down"])
def test_a_silent_connection_is_noticed_within_two_heartbeats(here: World, ways: set[str]) -> None:
    """F061, F062: nothing passes, nobody is told; both ends notice and the agent calls again."""
    link = here.agents_link
    with contextlib.closing(here.client(direct=True)) as client:
        # an agent that holds nothing beats rarely; this one works
        busy = client.submit({"command": ["sleep", "600"]}).jid
        eventually(lambda: client.get(busy).state == "running", 30, "it runs")
        calls = link.counts["connections"]
        here.proxy.do(lambda: setattr(link.faults, "silent", frozenset(ways)))
        since = time.monotonic()
        state = lambda: client.transport.call("GET", "/api/v1/agents")["agents"][0]["state"]  # noqa: E731
        eventually(lambda: state() != "online", 30, "the supervisor notices")
        noticed = time.monotonic() - since
        eventually(lambda: link.counts["connections"] > calls, 30, "the agent notices")
        here.proxy.do(link.faults.clear)
        eventually(lambda: state() == "online", 60, "it is back")
        # Two heartbeats of one second; the rest is what a busy machine may add.
        assert noticed < 10
        assert client.wait(client.submit({"command": ["true"]}).jid, timeout=60).state == "completed"
        client.cancel(busy)
        assert client.wait(busy, timeout=60).state == "canceled"


def test_who_waits_when_the_supervisor_ends_is_told_to_ask_again(here: World) -> None:
    """F009: Tornado answered 500 to requests that were under way (chaos, seed 5)."""
    with contextlib.closing(here.client(direct=True)) as client:
        jid = client.submit({"command": ["sleep", "60"]}).jid
        job = eventually(lambda: (j := client.get(jid)).state == "running" and j, 30, "it runs")
        params = {"wait": "60s", "version": job.version}
        with concurrent.futures.ThreadPoolExecutor() as pool:
            waiting = pool.submit(
                client.transport.once, "GET", f"/api/v1/jobs/{jid}", params, read_secs=60, stream=False
            )
            # The answer to a later request: the one that waits has been heard.
            client.get(jid)
            restart(here)
            with pytest.raises(Unavailable):
                waiting.result(60)
        assert client.cancel(jid).state in ("canceling", "canceled", "lost")
        assert client.wait(jid, timeout=60).state == "canceled"


def test_a_log_that_is_cut_by_a_restart_does_not_look_whole(here: World) -> None:
    """I13: Tornado ended the answer politely in the middle when the supervisor was told to end."""
    size = 40 << 20
    script = f"import os, time; [os.write(1, bytes(1 << 20)) for _ in range({size >> 20})]; time.sleep(600)"
    with contextlib.closing(here.client(direct=True)) as client:
        jid = client.submit({"command": [sys.executable, "-c", script]}).jid
        # followed: of an output that is over the front end knows all, and needs nobody any more
        response = client.transport.once("GET", f"/api/v1/jobs/{jid}/logs/stdout", {"follow": 1})
        assert len(response.read(1000)) == 1000
        (out,) = here.root.glob(f"users/*/jobs/{jid}/1/stdout")
        eventually(lambda: out.stat().st_size == size, 60, "everything is written")
        restart(here)
        with pytest.raises(HTTPError):
            list(response.stream(1 << 20))
        response.close()
        client.cancel(jid)
        assert client.wait(jid, timeout=60).stdout_bytes == size
        # The client knows how to go on.
        assert sum(map(len, client.logs(jid))) == size


def restart(here: World) -> None:
    """TERM to the supervisor; returns when another one has its place."""
    (pid,) = here.pids("supervisor")
    os.kill(pid, signal.SIGTERM)
    eventually(lambda: here.pids("supervisor") not in ([], [pid]), 60, "another supervisor")


def test_an_answer_cut_among_its_headers_is_no_empty_log() -> None:
    """I13: what is left of the headers told of no length, so the end of the line was its end (seed 2026)."""
    head = b"HTTP/1.1 200 OK\r\nX-Attempt: 1\r\nTransfer-Encoding: chunked\r\n\r\n"
    answers = [head[:30], head + b"3\r\nabc\r\n0\r\n\r\n"]
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            for answer in answers:
                with server.accept()[0] as connection:
                    connection.recv(65536)
                    connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        with contextlib.closing(Client(f"http://127.0.0.1:{server.getsockname()[1]}", "t" * 40)) as client:
            assert b"".join(client.logs("J", attempt=1)) == b"abc"
        thread.join(20)
