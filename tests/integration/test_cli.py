"""The command line as a process, on a front end with a fake supervisor whose jobs do what the test says."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.frontend_stage import READER, WAIT_SECS, Stage, stage, until


class Told(tuple[int, bytes, bytes]):
    """How a command ended and what it said."""

    @property
    def status(self) -> int:
        return self[0]

    @property
    def out(self) -> bytes:
        return self[1]

    @property
    def err(self) -> bytes:
        return self[2]


class Shell:
    """Starts `sirepo-jobs` for a house."""

    def __init__(self, house: Stage) -> None:
        self.house = house

    async def start(self, *words: str, **options: int) -> asyncio.subprocess.Process:
        environ = {name: value for name, value in os.environ.items() if not name.startswith("SIREPO_JOBS_")}
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "sirepo_jobs.cli", *words),
            env=environ | {"SIREPO_JOBS_ROOT": str(self.house.root)},
            stdin=asyncio.subprocess.PIPE,
            stdout=options.get("stdout", asyncio.subprocess.PIPE),
            stderr=asyncio.subprocess.PIPE,
        )

    async def run(self, *words: str, stdin: bytes = b"") -> Told:
        return await self.end(await self.start(*words), stdin)

    async def end(self, process: asyncio.subprocess.Process, stdin: bytes = b"") -> Told:
        out, err = await asyncio.wait_for(process.communicate(stdin), WAIT_SECS)
        assert process.returncode is not None
        return Told((process.returncode, out or b"", err))


@pytest.fixture
async def sh(tmp_path: Path) -> AsyncIterator[Shell]:
    async with stage(tmp_path) as house:
        yield Shell(house)


async def ends(sh: Shell, jid: str = "J0", **fields: object) -> None:
    """The job ends in the world of the fake."""
    fake = sh.house.fake
    await until(lambda: jid in fake.jobs)
    await fake.change(jid, attempt=1, started_at="2030-01-02T03:04:06Z", **fields)


# --- run ------------------------------------------------------------------------------------------


async def test_run_is_the_command_seen_from_outside(sh: Shell) -> None:
    process = await sh.start("run", "--name", "n", "--cpus", "2", "-e", "A=b", "--", "sh", "-c", "exit 3")
    fake = sh.house.fake
    await until(lambda: "J0" in fake.jobs)
    await fake.write("J0", b"abc\x00\xff")
    await fake.write("J0", b"oops\n", "stderr")
    await fake.change("J0", state="running", attempt=1)
    await ends(sh, state="error", exit_code=3, reason="EXIT_NONZERO")
    told = await sh.end(process)
    assert told == (3, b"abc\x00\xff", b"oops\n")
    assert fake.jobs["J0"]["spec"] == {
        "command": ["sh", "-c", "exit 3"],
        "name": "n",
        "env": {"A": "b"},
        "resources": {"cpus": 2},
    }


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"state": "completed", "exit_code": 0}, 0),
        ({"state": "error", "signal": 9, "reason": "SIGNALED"}, 137),
        ({"state": "canceled", "signal": 15, "reason": "TIME_LIMIT"}, 124),
        (
            {"state": "error", "exit_code": 127, "reason": "COMMAND_NOT_FOUND", "situation": "x: not found"},
            127,
        ),
        ({"state": "error", "reason": "AGENT_LOST", "situation": "its host was restarted"}, 125),
    ],
)
async def test_run_exits_as_the_job_did(sh: Shell, fields: dict[str, object], status: int) -> None:
    process = await sh.start("run", "x")
    await ends(sh, **fields)
    told = await sh.end(process)
    assert told.status == status
    if "situation" in fields:
        assert str(fields["situation"]).encode() in told.err


async def test_words_after_the_command_are_the_commands(sh: Shell) -> None:
    process = await sh.start("run", "--", "prog", "--name", "x", "--", "-h")
    await ends(sh, state="completed", exit_code=0)
    await sh.end(process)
    assert sh.house.fake.jobs["J0"]["spec"]["command"] == ["prog", "--name", "x", "--", "-h"]


async def test_ctrl_c_leaves_the_job_running_and_says_so(sh: Shell) -> None:
    process = await sh.start("run", "sleep", "100")
    fake = sh.house.fake
    await until(lambda: "J0" in fake.jobs)
    await fake.change("J0", state="running", attempt=1)
    await until(lambda: fake.streams == 2 and any("wait=60s" in path for _, path, *_ in fake.asked))
    process.send_signal(signal.SIGINT)
    told = await sh.end(process)
    assert told.status == 130
    assert b"job J0, which goes on" in told.err
    assert b"sirepo-jobs cancel J0" in told.err
    assert fake.jobs["J0"]["state"] == "running"
    assert not any("cancel" in path for _, path, *_ in sh.house.fake.asked)


async def test_a_job_that_is_tried_again_speaks_again(sh: Shell) -> None:
    process = await sh.start("run", "--max-attempts", "2", "x")
    fake = sh.house.fake
    await until(lambda: "J0" in fake.jobs)
    await fake.change("J0", state="running", attempt=1)
    await fake.write("J0", b"first\n")
    assert process.stdout is not None
    heard = await asyncio.wait_for(process.stdout.readline(), WAIT_SECS)
    # the attempt ends: its streams end, and the job waits for its next
    await until(lambda: fake.streams == 2)
    await fake.change("J0", state="pending", attempt=2)
    fake.logs["J0", "stdout"].clear()
    fake.logs["J0", "stderr"].clear()
    await fake.end_streams()
    await until(lambda: fake.streams == 0)
    await fake.change("J0", state="running")
    await until(lambda: fake.opened == 4)
    await fake.write("J0", b"second\n")
    await fake.change("J0", state="completed", exit_code=0)
    assert heard == b"first\n"
    assert await sh.end(process) == (0, b"second\n", b"")


async def test_what_a_stream_left_out_is_fetched(sh: Shell) -> None:
    process = await sh.start("run", "x")
    fake = sh.house.fake
    await until(lambda: "J0" in fake.jobs)
    await fake.change("J0", state="running", attempt=1)
    await until(lambda: fake.streams == 2)
    await fake.end_streams()
    await until(lambda: fake.streams == 0)
    await fake.write("J0", b"late but proven")
    await fake.change("J0", state="completed", exit_code=0, stdout_bytes=15, stderr_bytes=0)
    assert await sh.end(process) == (0, b"late but proven", b"")


async def test_a_reader_that_leaves_ends_run_as_it_ends_any_program(sh: Shell) -> None:
    read, write = os.pipe()
    process = await sh.start("run", "yes", stdout=write)
    os.close(write)
    os.close(read)
    await until(lambda: "J0" in sh.house.fake.jobs)
    await sh.house.fake.write("J0", b"y\n" * 10)
    await sh.house.fake.change("J0", state="running", attempt=1)
    told = await sh.end(process)
    assert told.status == 141
    assert b"goes on" in told.err


async def test_progress_is_told_on_stderr(sh: Shell) -> None:
    process = await sh.start("run", "--progress", "jsonl", "x")
    fake = sh.house.fake
    await until(lambda: any("wait=60s" in path for _, path, *_ in fake.asked))
    await fake.change("J0", state="running", attempt=1, progress={"percent_complete": 12.4})
    await until(lambda: any("version=2" in path for _, path, *_ in fake.asked))
    await fake.change("J0", state="completed", exit_code=0)
    assert await sh.end(process) == (0, b"", b"progress 12%\n")


async def test_failures_of_ours_are_125(sh: Shell) -> None:
    told = await sh.run("run", "--memory", "much", "x")
    assert told.status == 125
    assert b"is not a size" in told.err
    await sh.house.frontend.stop()
    assert (await sh.run("run", "x")).status == 125


# --- submit, ps, show, wait, cancel ---------------------------------------------------------------


async def test_submit_prints_the_id_and_leaves(sh: Shell) -> None:
    assert await sh.run("submit", "--", "sleep", "1") == (0, b"J0\n", b"")
    told = await sh.run("submit", "-o", "json", "sleep", "1")
    assert json.loads(told.out) == {"jid": "J1", "serial": 1, "state": "pending"}


async def test_submit_takes_files(sh: Shell, tmp_path: Path) -> None:
    file = tmp_path / "jobs.json"
    file.write_text(json.dumps({"jobs": [{"command": ["a"]}, {"command": ["b"]}]}))
    assert await sh.run("submit", "--file", str(file)) == (0, b"J0\nJ1\n", b"")
    assert await sh.run("submit", "-f", "-", stdin=b'{"command": ["c"]}') == (0, b"J2\n", b"")
    for words, says in (
        (("--file", "/nowhere"), b"No such file"),
        (("-f", "-"), b"is not JSON"),
        (("-f", "-", "x"), b"but not both"),
        (("-f", "-", "--cpus", "1"), b"said in the file"),
        ((), b"give a command"),
    ):
        told = await sh.run("submit", *words)
        assert told.status == 2
        assert says in told.err


async def test_submit_twice_with_a_key_is_one_job(sh: Shell) -> None:
    assert (await sh.run("submit", "--idempotency-key", "k", "a")).out == b"J0\n"
    assert (await sh.run("submit", "--idempotency-key", "k", "a")).out == b"J0\n"
    told = await sh.run("submit", "--idempotency-key", "k", "b")
    assert told.status == 5
    assert b"hint: use a new key" in told.err


async def test_ps_lists_what_has_not_ended(sh: Shell) -> None:
    sh.house.fake.add("J1", name="evil\x1b[2J", state="running", progress={"percent_complete": 50})
    told = await sh.run("ps")
    assert told.status == 0
    head, row = told.out.decode().splitlines()
    assert head.split() == ["JID", "NAME", "STATE", "WHY", "AGE", "TIME", "PROGRESS"]
    assert row.split()[:3] == ["J1", "evil\\x1b[2J", "running"]
    assert sh.house.fake.asked[-1][1] == "/api/v1/jobs?state=active&limit=100"
    told = await sh.run("ps", "--all", "-o", "jsonl")
    assert [json.loads(line)["jid"] for line in told.out.splitlines()] == ["J1"]
    told = await sh.run("ps", "--state", "runing")
    assert (told.status, b"did you mean running" in told.err) == (2, True)


async def test_show_and_what_is_not_there(sh: Shell) -> None:
    sh.house.fake.add("J1", state="error", reason="OUT_OF_MEMORY", situation="too big")
    told = await sh.run("show", "J1")
    assert b"reason     OUT_OF_MEMORY\nsituation  too big\n" in told.out
    assert json.loads((await sh.run("show", "J1", "-o", "json")).out)["reason"] == "OUT_OF_MEMORY"
    assert (await sh.run("show", "J2")).status == 3
    told = await sh.run("--output", "json", "show", "J2")
    assert (told.status, told.err) == (3, b"")
    assert json.loads(told.out)["error"]["code"] == "not_found"


@pytest.mark.parametrize("jid", ["", "../..", "J1 ", "j/1", "\u00e91"])
async def test_what_is_no_id_is_no_job(sh: Shell, jid: str) -> None:
    """It was told as "there is nothing at /api/v1/jobs/..%2F..", and never reaches the service now."""
    told = await sh.run("show", jid)
    assert (told.status, b"there is no job" in told.err) == (3, True)
    assert not sh.house.fake.asked


async def test_wait_exits_with_the_worst(sh: Shell) -> None:
    for jid, code in (("J1", 0), ("J2", 4), ("J3", 1)):
        sh.house.fake.add(jid, state="completed" if not code else "error", exit_code=code)
    told = await sh.run("wait", "J1", "J2", "J3")
    assert told[:2] == (4, b"J1 completed exit 0\nJ2 error exit 4\nJ3 error exit 1\n")
    assert (await sh.run("wait", "--no-exit-status", "J2")).status == 0
    sh.house.fake.add("J4")
    assert (await sh.run("wait", "--timeout", "0.1", "J4")).status == 75
    assert (await sh.run("wait", "J9")).status == 125


async def test_cancel_ends_what_it_can(sh: Shell) -> None:
    sh.house.fake.add("J1")
    sh.house.fake.add("J3")
    told = await sh.run("cancel", "J1", "J2", "J3")
    assert told == (3, b"J1 canceling\nJ3 canceling\n", b"error: no job J2\n")


async def test_the_other_verbs(sh: Shell) -> None:
    fake = sh.house.fake
    for verb, before, after in (
        ("hold", "pending", "held"),
        ("release", "held", "pending"),
        ("retry", "error", "pending"),
        ("suspend", "running", "suspended"),
        ("resume", "suspended", "running"),
    ):
        fake.add("J1", state=before)
        assert await sh.run(verb, "J1") == (0, f"J1 {after}\n".encode(), b"")
    assert fake.asked[-1][:2] == ("POST", "/api/v1/jobs/J1/resume")


async def test_each_of_many_has_its_own_result(sh: Shell) -> None:
    sh.house.fake.add("J1", state="held")
    sh.house.fake.add("J2", state="running")
    told = await sh.run("release", "--output", "json", "J1", "J2", "J3")
    assert told.status == 5
    said = json.loads(told.out)
    assert [one.get("state") or one["error"]["code"] for one in said] == ["pending", "conflict", "not_found"]
    assert [one["jid"] for one in said] == ["J1", "J2", "J3"]


async def test_jobs_are_chosen_by_what_they_have_in_common(sh: Shell) -> None:
    fake = sh.house.fake
    fake.add("J1", state="running", tags={"project": "x"})
    fake.add("J2", state="running", name="melt")
    fake.add("J3", state="held")
    assert (await sh.run("suspend", "--tag", "project=x")).out == b"J1 suspended\n"
    assert fake.asked[-2][1] == "/api/v1/jobs?state=running&user=%40me&tag=project%3Ax&limit=200"
    assert (await sh.run("suspend", "--filter", "name=melt")).out == b"J2 suspended\n"
    assert (await sh.run("release", "--all")).out == b"J3 pending\n"
    assert (await sh.run("hold", "--filter", "state=suspended", "-a")).out == b"J1 held\nJ2 held\n"
    assert (await sh.run("show", "last")).out.startswith(b"job      J1\n")
    for words in ([], ["J1", "--all"], ["--filter", "color=red"], ["--filter", "state"], ["--tag", "=x"]):
        assert (await sh.run("cancel", *words)).status == 2
    assert (await sh.run("cancel", "--filter", "name=nobody")) == (0, b"", b"")


# --- logs -----------------------------------------------------------------------------------------


async def test_logs_prints_follows_and_tails(sh: Shell) -> None:
    fake = sh.house.fake
    fake.add("J1")
    await fake.write("J1", b"1\n2\n3\n")
    await fake.write("J1", b"bad\n", "stderr")
    assert await sh.run("logs", "J1") == (0, b"1\n2\n3\n", b"")
    assert (await sh.run("logs", "J1", "--stderr")).out == b"bad\n"
    assert (await sh.run("logs", "J1", "--tail", "2")).out == b"2\n3\n"
    process = await sh.start("logs", "J1", "-f", "--tail", "1", "--exit-status")
    await until(lambda: fake.streams == 1)
    await fake.write("J1", b"4")
    await fake.change("J1", state="error", exit_code=9)
    assert await sh.end(process) == (9, b"3\n4", b"")


async def test_ctrl_c_in_logs_is_no_cancel(sh: Shell) -> None:
    sh.house.fake.add("J1")
    process = await sh.start("logs", "-f", "J1")
    await until(lambda: sh.house.fake.streams == 1)
    process.send_signal(signal.SIGINT)
    told = await sh.end(process)
    assert (told.status, b"goes on" in told.err) == (130, True)
    assert sh.house.fake.jobs["J1"]["state"] == "running"


# --- who and where --------------------------------------------------------------------------------


async def test_who_may_not_and_who_is_not_there(sh: Shell, tmp_path: Path) -> None:
    token = tmp_path / "reader"
    token.write_text(READER)
    assert (await sh.run("submit", "--token-file", str(token), "x")).status == 4
    token.write_text("y" * 43)
    told = await sh.run("ps", "--token-file", str(token))
    assert (told.status, b"--token-file" in told.err) == (4, True)
    told = await sh.run("ps", "--url", "http://127.0.0.1:1")
    assert (told.status, b"which token" in told.err) == (4, True)
    token.write_text("y" * 43)
    told = await sh.run("ps", "--url", "http://127.0.0.1:1", "--token-file", str(token))
    assert (told.status, b"hint: is it running" in told.err) == (69, True)


async def test_doctor_finds_what_is_wrong(sh: Shell) -> None:
    told = await sh.run("doctor", "-o", "json")
    findings = {row["check"]: row for row in json.loads(told.out)}
    assert findings["server"]["ok"]
    assert findings["token"]["ok"]
    (sh.house.root / "token").chmod(0o644)
    told = await sh.run("doctor")
    assert told.status == 1
    assert b"FAIL  token" in told.out
    assert b"chmod 600" in told.out


async def test_completion_offers_jobs(sh: Shell) -> None:
    sh.house.fake.add("J1")
    sh.house.fake.add("K1")
    environ = {
        "COMP_WORDS": "sirepo-jobs show J",
        "COMP_CWORD": "2",
        "_SIREPO_JOBS_COMPLETE": "bash_complete",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environ.items():
            patch.setenv(name, value)
        told = await sh.run()
    assert told.out == b"plain,J1\n"


async def test_a_closed_stdout_is_no_traceback(sh: Shell) -> None:
    for i in range(1000):
        sh.house.fake.add(f"J{i}")
    process = await sh.start("ps", "-a", "--limit", "1000")
    assert process.stdout is not None
    with contextlib.suppress(AttributeError):
        process.stdout._transport.close()  # type: ignore[attr-defined]
    assert process.stderr is not None
    assert await process.stderr.read() == b""
    assert await asyncio.wait_for(process.wait(), WAIT_SECS) == 141
