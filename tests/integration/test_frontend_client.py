"""The Python client on a front end with a fake supervisor: what it sends, repeats and puts together again."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from sirepo_jobs import rootdir
from sirepo_jobs.client import Client
from sirepo_jobs.errors import BadInput, Conflict, Forbidden, NotFound, Unauthorized, Unavailable
from sirepo_jobs.spec import JobSpec
from tests.fake_supervisor import FakeSupervisor
from tests.frontend_stage import READER, Stage, stage, until


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[Stage]:
    async with stage(tmp_path) as it:
        yield it


async def off(work: Callable[[], Any]) -> Any:
    """The client is synchronous and the house lives in this loop: let it work in a thread."""
    return await asyncio.to_thread(work)


async def test_the_tour(house: Stage) -> None:
    def tour() -> None:
        with Client.from_environment(house.root) as client:
            made = client.submit({"command": ["true"], "name": "one", "resources": {"memory": "1 GiB"}})
            assert (made.jid, made.state) == ("J0", "pending")
            many = client.submit([JobSpec(command=["a"], name="two"), {"command": ["b"]}])
            assert [job.jid for job in many] == ["J1", "J2"]
            assert client.get("J0").spec == {
                "command": ["true"],
                "name": "one",
                "resources": {"memory": 1 << 30},
            }
            assert [job.name for job in client.jobs()] == ["one", "two", ""]
            assert client.cancel("J1").state == "canceling"
            assert [job.jid for job in client.jobs(state=["pending", "error"])] == ["J0", "J2"]

    await off(tour)


async def test_lists_go_on_over_pages(house: Stage) -> None:
    for i in range(450):
        house.fake.add(f"J{i}")
    client = Client(house.url, house.token)
    assert len(await off(lambda: list(client.jobs()))) == 450
    assert len([path for _, path, *_ in house.fake.asked if path.startswith("/api/v1/jobs?")]) == 3
    assert [job.jid for job in await off(lambda: list(client.jobs(limit=3)))] == ["J0", "J1", "J2"]
    client.close()


async def test_errors_are_those_of_the_tree(house: Stage) -> None:
    def errors() -> None:
        client = Client(house.url, house.token, patience_secs=0)
        with pytest.raises(NotFound, match="no job J9") as missing:
            client.get("J9")
        assert getattr(missing.value, "request_id", "")
        with pytest.raises(BadInput, match="did you mean") as bad:
            client.submit({"comand": ["x"]})
        assert bad.value.pointer == "/comand"
        client.submit({"command": ["x"]}, idempotency_key="k")
        with pytest.raises(Conflict):
            client.submit({"command": ["y"]}, idempotency_key="k")
        with pytest.raises(Unauthorized):
            Client(house.url, "x" * 43).get("J9")
        with pytest.raises(Forbidden):
            Client(house.url, READER).submit({"command": ["x"]})
        with pytest.raises(Unavailable, match="refused"):
            Client("http://127.0.0.1:1", house.token, patience_secs=0).get("J9")

    await off(errors)


async def test_a_submission_whose_answer_was_lost_makes_one_job(house: Stage) -> None:
    house.fake.drop = 2
    client = Client(house.url, house.token)
    made = await off(lambda: client.submit({"command": ["true"]}))
    client.close()
    assert made.jid == "J0"
    assert list(house.fake.jobs) == ["J0"]
    keys = {headers["Idempotency-Key"] for *_, headers, _ in house.fake.asked}
    assert (len(house.fake.asked), len(keys)) == (3, 1)


async def test_a_call_sits_out_a_restart_of_the_supervisor(house: Stage) -> None:
    house.fake.add("J1")
    await house.fake.stop()
    client = Client(house.url, house.token)
    answer = asyncio.create_task(off(lambda: client.get("J1")))
    await until(lambda: client.transport._pool is not None)
    house.fake.start()
    assert (await answer).jid == "J1"
    client.close()


async def test_waiting_asks_again_until_it_has_ended(house: Stage) -> None:
    house.fake.add("J1")
    client = Client(house.url, house.token)
    with pytest.raises(TimeoutError, match="still running"):
        await off(lambda: client.wait("J1", timeout="0.05s"))
    ended = asyncio.create_task(off(lambda: client.wait("J1")))
    await until(lambda: "wait=60s" in house.fake.asked[-1][1])
    await house.fake.change("J1", progress={"percent_complete": 1})
    await house.fake.change("J1", state="completed", exit_code=0)
    job = await ended
    client.close()
    assert (job.state, job.exit_code, job.progress) == ("completed", 0, {"percent_complete": 1})


async def test_running_is_one_request(house: Stage) -> None:
    """Issue 7: handed in and waited for at once; what breaks meanwhile is asked again with the same key."""
    client = Client(house.url, house.token)
    ended = asyncio.create_task(off(lambda: client.run({"command": ["true"]})))
    await until(lambda: "J0" in house.fake.jobs)
    await house.fake.stop()
    house.fake.start()
    await until(lambda: len(house.fake.asked) == 2)
    await house.fake.change("J0", state="completed", exit_code=0)
    job = await ended
    client.close()
    assert (job.jid, job.state, job.exit_code) == ("J0", "completed", 0)
    assert [path for _, path, *_ in house.fake.asked] == ["/api/v1/jobs?wait=60s"] * 2
    assert list(house.fake.jobs) == ["J0"]


async def test_running_takes_no_longer_than_it_may(house: Stage) -> None:
    client = Client(house.url, house.token)
    with pytest.raises(TimeoutError, match="job J0 is still pending"):
        await off(lambda: client.run({"command": ["true"]}, timeout="0.05s"))
    with pytest.raises(TimeoutError, match="job J1 is still pending"):
        await off(lambda: client.run({"command": ["true"]}, timeout=0))
    client.close()


async def test_a_log_is_bytes(house: Stage) -> None:
    house.fake.add("J1", state="completed")
    await house.fake.write("J1", b"\x00\xff no newline")
    client = Client(house.url, house.token)
    log = client.logs("J1", offset=1)
    assert b"".join(await off(lambda: list(log))) == b"\xff no newline"
    assert (log.offset, log.attempt) == (13, 1)
    assert await off(lambda: list(client.logs("J1", "stderr"))) == []
    client.close()


async def test_a_broken_log_goes_on_at_the_next_byte_of_the_same_attempt(house: Stage) -> None:
    house.fake.add("J1", attempt=2, state="completed")
    await house.fake.write("J1", bytes(range(256)) * 40)
    house.fake.cut_after = 5000
    client = Client(house.url, house.token)
    got = b"".join(await off(lambda: list(client.logs("J1", follow=True))))
    client.close()
    assert got == bytes(range(256)) * 40
    assert [path.partition("?")[2] for _, path, *_ in house.fake.asked if "logs" in path] == [
        "follow=1",
        "offset=5000&attempt=2&follow=1",
    ]


async def test_a_polite_end_before_the_end_is_no_end(house: Stage) -> None:
    """A proxy or a supervisor that is told to end may close a stream as if everything had been said."""
    fake = house.fake
    fake.add("J1")
    await fake.write("J1", b"one ")
    client = Client(house.url, house.token)
    following = asyncio.create_task(off(lambda: b"".join(client.logs("J1", follow=True))))
    await until(lambda: fake.streams == 1)
    await fake.end_streams()
    await until(lambda: "wait=1s" in fake.asked[-1][1])
    await fake.change("J1", progress={"percent_complete": 50})
    await until(lambda: fake.opened == 2)
    await fake.end_streams()
    await fake.write("J1", b"two")
    await fake.change("J1", state="completed", exit_code=0, stdout_bytes=7)
    assert await following == b"one two"
    client.close()


async def test_output_that_is_missing_is_not_passed_over(house: Stage) -> None:
    house.fake.add("J1", state="completed", stdout_bytes=7)
    await house.fake.write("J1", b"one")
    client = Client(house.url, house.token, patience_secs=0.2)
    log = client.logs("J1", follow=True)
    assert await off(lambda: next(log)) == b"one"
    with pytest.raises(Unavailable, match="ended at byte 3 of 7"):
        await off(lambda: next(log))
    client.close()


async def test_a_log_that_is_left_lets_go(house: Stage) -> None:
    house.fake.add("J1")
    await house.fake.write("J1", b"x")
    client = Client(house.url, house.token)
    log = client.logs("J1", follow=True)
    assert await off(lambda: next(log)) == b"x"
    log.close()
    await until(lambda: house.fake.streams == 0)
    client.close()


async def test_events_are_had_once_over_a_break(house: Stage) -> None:
    for i in range(4):
        await house.ask("GET", f"/api/v1/jobs/{i}")  # the fake makes an event of every request
    client = Client(house.url, house.token)
    events = client.events(after=1)
    first = [await off(lambda: next(events)) for _ in range(2)]
    assert [(event.seq, event.jid) for event in first] == [(2, "J2"), (3, "J3")]
    for exchange in list(house.frontend.exchanges):
        exchange.cut()
    later = [await off(lambda: next(events)) for _ in range(3)]
    assert [event.seq for event in later] == [4, 5, 6]
    events.close()  # type: ignore[attr-defined]
    client.close()


async def test_a_log_is_followed_over_killed_front_ends(tmp_path: Path) -> None:
    """Every byte once, although the front end is killed twice and comes back at another port."""
    fake = FakeSupervisor(tmp_path)
    fake.start()
    fake.add("J1")

    async def start() -> asyncio.subprocess.Process:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "sirepo_jobs.cli", "frontend"),
            *("--root", str(tmp_path), "--port", "0", "--log-level", "error"),
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None
        assert (await process.stdout.readline()).startswith(b"listening on http://127.0.0.1:")
        return process

    process = await start()
    got = bytearray()
    client = Client.from_environment(tmp_path)

    def follow() -> None:
        for piece in client.logs("J1", follow=True):
            got.extend(piece)

    following = asyncio.create_task(off(follow))
    sent = b""
    for turn in range(3):
        for i in range(50):
            line = b"turn %d line %d\n" % (turn, i)
            sent += line
            await fake.write("J1", line)
        await until(lambda: len(got) == len(sent))  # noqa: B023 (awaited here)
        if turn < 2:
            process.kill()
            await process.wait()
            process = await start()
    await fake.change("J1", state="completed")
    await following
    client.close()
    assert bytes(got) == sent
    process.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(process.wait(), 60) == 0
    assert rootdir.running_pid(tmp_path / "frontend.pid") is None
    await fake.stop()
