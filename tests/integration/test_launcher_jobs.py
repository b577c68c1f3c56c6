"""What a job gets, and how its end is told: real processes, one agent per test."""

import asyncio
import json
import os
import signal
import socket
import subprocess
from contextlib import suppress
from functools import partial
from pathlib import Path

import msgspec
import pytest

from sirepo_jobs.agents.process import stat_of
from sirepo_jobs.agents.spawner import QUIET_SECS
from sirepo_jobs.protocol import Started
from sirepo_jobs.reasons import Reason
from tests.agent_stage import appears, carrying, scene, stands
from tests.service_stage import eventually

PYTHON = os.path.realpath("/proc/self/exe")


async def test_exit_codes_and_signals_are_the_kernels_own(tmp_path: Path) -> None:
    codes = [0, 1, 2, 3, 77, 124, 126, 127, 128, 129, 137, 200, 254, 255]
    signals = [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV, signal.SIGABRT, signal.SIGHUP, signal.SIGPIPE]
    async with scene(tmp_path) as s:
        await s.stage.send([s.stage.shell(f"c{code}", f"exit {code}") for code in codes])
        await s.stage.send([s.stage.shell(f"s{number}", f"kill -{number} $$") for number in signals])
        for code in codes:
            exited = await s.stage.ended(f"c{code}")
            assert (exited.exit_code, exited.signal) == (code, None)
            assert (exited.reason, exited.stopped, exited.began) == (None, False, True)
            assert exited.proof == "wait_status"
        for number in signals:
            exited = await s.stage.ended(f"s{number}")
            assert (exited.exit_code, exited.signal) == (None, number)
            assert exited.usage is not None
            assert exited.started_at is not None
            assert exited.started_at <= exited.at


async def test_exit_record_stands_beside_the_outputs(tmp_path: Path) -> None:
    async with scene(tmp_path) as s:
        await s.stage.send([s.stage.shell("j", "printf abc; printf de >&2; exit 4")])
        exited = await s.stage.ended("j")
        assert (exited.stdout_bytes, exited.stderr_bytes) == (3, 2)
        found = json.loads((s.run_dir("j") / "exit.json").read_bytes())
        assert found["exit_code"] == 4
        assert (found["stdout_bytes"], found["stderr_bytes"]) == (3, 2)
        assert (found["jid"], found["attempt"]) == ("j", 1)
        assert found["ended_at"] == exited.at
        for name in ("stdout", "stderr", "exit.json"):
            assert (s.run_dir("j") / name).stat().st_mode & 0o777 == 0o600
        for directory in (s.run_dir("j"), s.run_dir("j").parent, s.run_root / "users"):
            assert directory.stat().st_mode & 0o777 == 0o700


async def test_exit_record_says_what_was_submitted(tmp_path: Path) -> None:
    async with scene(tmp_path) as s:
        spec = b'{"name":"melt","command":["true"],"tags":{"a":"\\u00e4"}}'
        await s.stage.send([s.stage.run("j", ["true"], spec=msgspec.Raw(spec))])
        await s.stage.ended("j")
        assert json.loads((s.run_dir("j") / "exit.json").read_bytes())["spec"] == json.loads(spec)


@pytest.mark.parametrize(
    ("command", "code", "reason", "words"),
    [
        (
            ["no-such-program"],
            127,
            Reason.COMMAND_NOT_FOUND,
            ["no-such-program", "PATH=/nowhere:/usr/bin:/bin"],
        ),
        (["/no/such/program"], 127, Reason.COMMAND_NOT_FOUND, ["/no/such/program"]),
        (["./missing"], 127, Reason.COMMAND_NOT_FOUND, ["./missing"]),
        (["/etc/passwd"], 126, Reason.COMMAND_NOT_EXECUTABLE, ["/etc/passwd", "permission"]),
        (["/usr"], 126, Reason.COMMAND_NOT_EXECUTABLE, ["/usr", "directory"]),
        (["{tmp}/bad-interpreter"], 126, Reason.COMMAND_NOT_EXECUTABLE, ["interpreter"]),
        (["{tmp}/no-format"], 126, Reason.COMMAND_NOT_EXECUTABLE, ["not a program"]),
        (["/bin/true", "x" * 200_000], 126, Reason.COMMAND_NOT_EXECUTABLE, ["Argument list too long"]),
        (["/bin/true", "a\0b"], 126, Reason.COMMAND_NOT_EXECUTABLE, ["null"]),
        ([], 127, Reason.COMMAND_NOT_FOUND, ["(empty)"]),
    ],
)
async def test_what_cannot_be_executed_says_why(
    tmp_path: Path, command: list[str], code: int, reason: Reason, words: list[str]
) -> None:
    for name, text in (("bad-interpreter", "#!/no/such/interpreter\n"), ("no-format", "\x01\x02")):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    command = [word.replace("{tmp}", str(tmp_path)) for word in command]
    async with scene(tmp_path) as s:
        await s.stage.send([s.stage.run("j", command, env={"PATH": "/nowhere:/usr/bin:/bin"})])
        exited = await s.stage.ended("j")
        assert (exited.exit_code, exited.signal, exited.reason) == (code, None, reason)
        assert exited.began
        for word in words:
            assert word in exited.message, exited.message
        # The next one is not disturbed.
        await s.stage.send([s.stage.run("k", ["true"])])
        assert (await s.stage.ended("k")).exit_code == 0


async def test_program_is_looked_up_in_the_jobs_own_path(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "only-here"
    program.write_text("#!/bin/sh\necho found $0\n")
    program.chmod(0o755)
    async with scene(tmp_path) as s:
        await s.stage.send([s.stage.run("j", ["only-here"], env={"PATH": f"{tmp_path}/bin:/bin"})])
        assert (await s.stage.ended("j")).exit_code == 0
        assert s.stdout("j") == f"found {program}\n".encode()
        # It is found anew when it has moved.
        program.rename(tmp_path / "bin" / "elsewhere")
        await s.stage.send([s.stage.run("k", ["only-here"], env={"PATH": f"{tmp_path}/bin:/bin"})])
        assert (await s.stage.ended("k")).reason is Reason.COMMAND_NOT_FOUND


async def test_environment_is_clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_THE_SUPERVISOR", "s3cret")
    monkeypatch.setenv("WANTED", "yes")
    monkeypatch.setenv("LC_TIME", "C")
    async with scene(tmp_path, pass_env=["WANTED"]) as s:
        run = s.stage.run("j", [PYTHON, "-c", "import os,json; print(json.dumps(dict(os.environ)))"])
        progress = s.stage.run(
            "k",
            ["env", "-0"],
            env={"MINE": "1", "OMP_NUM_THREADS": "3", "SIREPO_JOBS_JID": "forged", "PYTHONUNBUFFERED": ""},
            progress=True,
            cpus=2,
        )
        await s.stage.send([run, progress])
        await s.stage.ended("j")
        env = json.loads(s.stdout("j"))
        assert "SECRET_OF_THE_SUPERVISOR" not in env
        assert env["WANTED"] == "yes"
        assert env["LC_TIME"] == "C"
        assert env["SIREPO_JOBS_JID"] == "j"
        assert env["SIREPO_JOBS_SERIAL"] == "1"
        assert env["SIREPO_JOBS_ATTEMPT"] == "1"
        assert env["SIREPO_JOBS_RUN_DIR"] == str(s.run_dir("j"))
        assert (env["SIREPO_JOBS_CPUS"], env["OMP_NUM_THREADS"], env["PYTHONUNBUFFERED"]) == ("1", "1", "1")
        assert "SIREPO_JOBS_PROGRESS" not in env
        allowed = {"PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR"}
        allowed |= {"WANTED", "OMP_NUM_THREADS", "PYTHONUNBUFFERED"}
        extra = {name for name in env if not name.startswith(("SIREPO_JOBS_", "LC_"))} - allowed
        assert not extra
        await s.stage.ended("k")
        other = dict(entry.split("=", 1) for entry in s.stdout("k").decode().split("\0") if entry)
        assert other["MINE"] == "1"
        assert other["OMP_NUM_THREADS"] == "3"
        assert other["SIREPO_JOBS_JID"] == "k"
        assert other["SIREPO_JOBS_CPUS"] == "2"
        assert other["PYTHONUNBUFFERED"] == ""
        assert other["SIREPO_JOBS_PROGRESS"] == str(s.run_dir("k") / "progress.jsonl")


#: 32 and 33 are the C library's own: its posix_spawn leaves them ignored, and programs cannot tell.
LIBC_SIGNALS = 3 << 31
LOOK = """
import os, json, resource, signal
status = dict(line.split(":\\t", 1) for line in open("/proc/self/status").read().splitlines())
print(json.dumps({
    "fds": {fd: os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if fd in "012"},
    "more": len(os.listdir("/proc/self/fd")) - 4,
    "session": os.getsid(0) == os.getpid(), "group": os.getpgrp() == os.getpid(),
    "umask": os.umask(0), "cwd": os.getcwd(), "no_new_privs": status["NoNewPrivs"],
    "ignored": int(status["SigIgn"], 16), "blocked": int(status["SigBlk"], 16),
    "tty": os.isatty(0), "nofile": resource.getrlimit(resource.RLIMIT_NOFILE),
}))
"""


async def test_process_is_alone_and_clean(tmp_path: Path) -> None:
    async with scene(tmp_path) as s:
        await s.stage.send([s.stage.run("j", [PYTHON, "-I", "-c", LOOK])])
        assert (await s.stage.ended("j")).exit_code == 0, s.stderr("j")
        found = json.loads(s.stdout("j"))
        run_dir = str(s.run_dir("j"))
        assert found["fds"] == {"0": "/dev/null", "1": f"{run_dir}/stdout", "2": f"{run_dir}/stderr"}
        assert found["more"] == 0
        assert found["session"]
        assert found["group"]
        assert found["umask"] == 0o077
        assert found["cwd"] == run_dir
        assert found["no_new_privs"] == "1"
        # Python itself ignores SIGPIPE and SIGXFSZ; nothing else may be.
        assert found["ignored"] & ~(1 << signal.SIGPIPE - 1 | 1 << signal.SIGXFSZ - 1 | LIBC_SIGNALS) == 0
        assert found["blocked"] == 0
        # A shell ignores nothing by itself.
        await s.stage.send([s.stage.shell("k", "grep -E 'Sig(Ign|Blk)' /proc/self/status")])
        await s.stage.ended("k")
        blocked, ignored = (int(line.split()[1], 16) for line in sorted(s.stdout("k").splitlines()))
        assert (ignored & ~LIBC_SIGNALS, blocked) == (0, 0)


async def test_output_just_before_the_end_is_complete(tmp_path: Path) -> None:
    async with scene(tmp_path) as s:
        count = 150
        script = "printf '%05d no newline' {n}; printf err >&2; kill -9 $$"
        await s.stage.send([s.stage.shell(f"j{n}", script.format(n=n)) for n in range(count)])
        for n in range(count):
            exited = await s.stage.ended(f"j{n}")
            assert exited.signal == 9
            assert s.stdout(f"j{n}") == b"%05d no newline" % n
            assert (exited.stdout_bytes, exited.stderr_bytes) == (16, 3)


async def test_length_is_told_truly_even_when_the_job_removes_its_output(tmp_path: Path) -> None:
    async with scene(tmp_path) as s:
        await s.stage.send([s.stage.shell("j", "printf 12345; rm stdout; ln -s /etc/passwd stdout")])
        assert (await s.stage.ended("j")).stdout_bytes == 5


#: A start is told before the program has done anything: a job is deaf to TERM once it has said so.
DEAF = "trap '' TERM; : > deaf; "


async def test_term_ignoring_job_is_killed_after_the_grace(tmp_path: Path) -> None:
    async with scene(tmp_path) as s:
        await s.stage.send([s.stage.shell("j", DEAF + "while :; do sleep 1; done")])
        await s.stage.started("j")
        await appears(s.run_dir("j") / "deaf")
        await s.stage.send([s.stage.cancel("j", grace_secs=0.2)])
        exited = await s.stage.ended("j")
        assert (exited.signal, exited.stopped, exited.reason) == (signal.SIGKILL, True, None)


async def test_a_later_cancel_can_shorten_the_grace(tmp_path: Path) -> None:
    async with scene(tmp_path) as s:
        await s.stage.send([s.stage.shell("j", DEAF + "while :; do sleep 1; done")])
        await s.stage.started("j")
        await appears(s.run_dir("j") / "deaf")
        await s.stage.send([s.stage.cancel("j", grace_secs=1000)])
        await s.stage.send([s.stage.cancel("j", grace_secs=0.1)])
        assert (await s.stage.ended("j")).signal == signal.SIGKILL


async def test_job_that_ends_by_itself_in_the_grace_keeps_its_result(tmp_path: Path) -> None:
    async with scene(tmp_path) as s:
        script = "trap 'printf saved; exit 7' TERM; touch ready; while :; do sleep 0.05; done"
        await s.stage.send([s.stage.shell("j", script)])
        await s.stage.started("j")
        await appears(s.run_dir("j") / "ready")
        await s.stage.send([s.stage.cancel("j", grace_secs=20)])
        exited = await s.stage.ended("j")
        assert (exited.exit_code, exited.signal, exited.stopped) == (7, None, True)
        assert s.stdout("j") == b"saved"


async def test_soft_limit_terminates_and_then_kills(tmp_path: Path) -> None:
    async with scene(tmp_path) as s:
        kind = s.stage.shell("kind", "sleep 1000", soft_secs=0.1)
        # Its limit counts from its start, and it must have become deaf by then.
        deaf = s.stage.shell("deaf", DEAF + "sleep 1000", soft_secs=3.0, grace_secs=0.2)
        await s.stage.send([kind, deaf])
        exited = await s.stage.ended("kind")
        assert (exited.signal, exited.reason, exited.stopped) == (signal.SIGTERM, Reason.TIME_LIMIT, True)
        exited = await s.stage.ended("deaf")
        assert (exited.signal, exited.reason, exited.stopped) == (signal.SIGKILL, Reason.TIME_LIMIT, True)


async def test_hard_limit_kills_even_a_stopped_job(tmp_path: Path) -> None:
    async with scene(tmp_path) as s:
        await s.stage.send([s.stage.shell("j", "kill -STOP $$; sleep 1000", soft_secs=50, hard_secs=0.2)])
        exited = await s.stage.ended("j")
        assert (exited.signal, exited.reason, exited.stopped) == (signal.SIGKILL, Reason.TIME_LIMIT, True)


async def test_job_that_stopped_itself_hears_term(tmp_path: Path) -> None:
    async with scene(tmp_path) as s:
        await s.stage.send([s.stage.shell("j", "trap 'exit 5' TERM; kill -STOP $$; sleep 1000 & wait")])
        pid = (await s.stage.started("j")).pid
        await eventually(lambda: (stat := stat_of(pid)) is not None and stat.state == "T")
        await s.stage.send([s.stage.cancel("j", grace_secs=20)])
        exited = await s.stage.ended("j")
        assert exited.stopped
        assert exited.signal != signal.SIGKILL


async def test_suspend_and_resume(tmp_path: Path) -> None:
    async with scene(tmp_path) as s:
        await s.stage.send([s.stage.shell("j", "while [ ! -e go ]; do sleep 0.01; done; printf done")])
        started = await s.stage.started("j")
        await s.stage.send([s.stage.suspend("j")])
        await s.stage.until(lambda: [m for m in s.stage.durable if getattr(m, "on", None) is True])
        await eventually(lambda: stands(started.pid))
        (s.run_dir("j") / "go").touch()
        await s.stage.send([s.stage.suspend("j", on=False)])
        exited = await s.stage.ended("j")
        assert (exited.exit_code, exited.stopped) == (0, False)
        kinds = [type(m).__name__ for m in s.stage.durable]
        assert kinds == ["Started", "Suspended", "Suspended", "Exited"]
        assert [m.seq for m in s.stage.durable] == [1, 2, 3, 4]


async def test_short_jobs_are_told_once(tmp_path: Path) -> None:
    async with scene(tmp_path) as s:
        # Which of them are short is up to the machine: go on until some were.
        short: set[str] = set()
        told = 0
        while not short:
            jids = [f"j{n}" for n in range(told, told + 20)]
            told += len(jids)
            await s.stage.send([s.stage.run(jid, ["/bin/true"]) for jid in jids])
            for jid in jids:
                exited = await s.stage.ended(jid)
                assert exited.started_at is not None
                if exited.at - exited.started_at < QUIET_SECS * 0.9e6:
                    short.add(jid)
        assert short.isdisjoint(m.jid for m in s.stage.durable if isinstance(m, Started))
        assert [m.seq for m in s.stage.durable] == list(range(1, len(s.stage.durable) + 1))


async def test_full_disk_is_not_the_jobs_fault_and_leaves_nothing(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    small = tmp_path / "run"
    small.mkdir()
    options = "size=64k,nr_inodes=8"
    mounted = await asyncio.to_thread(
        subprocess.run, ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(small)], check=False
    )
    if mounted.returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        async with scene(tmp_path) as s:
            for n in range(4):
                (small / f"filler{n}").touch()
            await s.stage.send([s.stage.run("j", ["true"])])
            exited = await s.stage.ended("j")
            assert (exited.reason, exited.began) == (Reason.DISK_FULL, False)
            assert exited.proof == "never_claimed"
            assert (exited.exit_code, exited.signal) == (None, None)
            assert not s.run_dir("j").exists()
            for n in range(4):
                (small / f"filler{n}").unlink()
    finally:
        await asyncio.to_thread(subprocess.run, ["umount", "-l", str(small)], check=True)


async def test_secrets_are_in_no_command_line_and_no_job(tmp_path: Path) -> None:
    async with scene(tmp_path) as s:
        await s.stage.send([s.stage.shell("j", "env; cat /proc/$PPID/environ; cat /proc/$PPID/cmdline")])
        await s.stage.ended("j")
        assert b"secret-token" not in s.stdout("j")
        assert not carrying("secret-token")
        assert (s.home / "agent.json").stat().st_mode & 0o777 == 0o600
        assert s.home.stat().st_mode & 0o777 == 0o700
        assert "secret-token" not in s.log()
        headers = s.stage.headers[0]
        assert headers["Authorization"] == "Bearer secret-token"
        assert headers["X-Agent"] == "a1"
        assert headers["Host"] == "localhost"
        assert socket.gethostname() == s.stage.hellos[0].host


async def test_a_flood_of_output_is_ended_and_its_neighbors_do_not_notice(tmp_path: Path) -> None:
    """F053: by TERM, with a status of the kernel's; what it wrote stays readable to the last byte."""
    limit = 32 << 20
    async with scene(tmp_path) as s:
        await s.stage.send(
            [
                s.stage.run("flood", ["yes", "and on"], output_bytes=limit, grace_secs=60.0),
                s.stage.shell("quiet", "sleep 0.5; printf done", output_bytes=limit),
            ]
        )
        flood, quiet = await s.stage.ended("flood"), await s.stage.ended("quiet")
        assert (flood.reason, flood.signal, flood.stopped) == (Reason.OUTPUT_LIMIT, signal.SIGTERM, True)
        assert flood.stdout_bytes is not None
        assert flood.stdout_bytes > limit
        assert f"wrote {flood.stdout_bytes} bytes" in flood.message
        assert f"its limit is {limit}" in flood.message
        assert (s.run_dir("flood") / "stdout").stat().st_size == flood.stdout_bytes
        assert (quiet.exit_code, quiet.reason, quiet.stdout_bytes) == (0, None, 4)


async def test_a_flood_that_is_deaf_to_term_is_killed_long_before_its_grace_ends(tmp_path: Path) -> None:
    """F053: also when it writes to stderr, and has removed the names of its outputs."""
    limit = 32 << 20
    async with scene(tmp_path) as s:
        script = "trap '' TERM; rm stdout stderr; exec yes >&2"
        await s.stage.send([s.stage.shell("j", script, output_bytes=limit, grace_secs=3600.0)])
        exited = await s.stage.ended("j")
        assert (exited.reason, exited.signal) == (Reason.OUTPUT_LIMIT, signal.SIGKILL)
        assert exited.stderr_bytes is not None
        assert exited.stderr_bytes > 1.25 * limit


#: Bombs: one that stays, one whose first process is gone at once, one in which each is of its own session.
BOMBS = {
    "stays": "use strict; fork while 1",
    "leaves": "if (fork) { sleep 1; exit } fork while 1",
    "sessions": "use POSIX 'setsid'; while (1) { if (!fork) { setsid } }",
}


@pytest.mark.parametrize("kind", BOMBS)
async def test_a_fork_bomb_is_ended_as_a_whole_and_its_neighbors_do_not_notice(
    tmp_path: Path, kind: str
) -> None:
    """F050: whoever runs it, root too."""
    if kind == "sessions" and not os.access("/sys/fs/cgroup/pids/tasks", os.W_OK):
        pytest.skip("no pids cgroup (version 1) can be made here, so nothing is faster than such a bomb")
    limit = 400
    async with scene(tmp_path) as s:
        bomb = s.stage.run("bomb", ["perl", "-e", BOMBS[kind]], processes=limit, grace_secs=60.0)
        await s.stage.send([bomb])
        for n in range(40):
            await s.stage.send(
                [s.stage.shell(f"q{n}", "for i in 1 2 3; do /bin/true; done", processes=limit)]
            )
            exited = await s.stage.ended(f"q{n}")
            assert (exited.exit_code, exited.reason) == (0, None), n
        exited = await s.stage.ended("bomb")
        if kind == "leaves" and exited.exit_code == 0:
            # Its main process was over before anybody counted, and the rest was killed with it (I17).
            assert (exited.reason, exited.stopped) == (None, False)
        else:
            assert (exited.reason, exited.stopped) == (Reason.PROCESS_LIMIT, True)
            assert f"its limit is {limit}" in exited.message
        assert not carrying("SIREPO_JOBS_JID=bomb")


def said(gate: Path) -> bool:
    """A line for whoever reads there; False while nobody does."""
    try:
        fd = os.open(gate, os.O_WRONLY | os.O_NONBLOCK)
    except OSError:
        return False
    os.write(fd, b"\n")
    os.close(fd)
    return True


async def test_a_job_that_stands_exactly_at_its_limit_is_left_alone(tmp_path: Path) -> None:
    """F050: also while its spawner, which started nothing since, stands in its pen."""
    limit = 16
    script = "mkfifo gate; i=0; while [ $i -lt {} ]; do i=$((i+1)); sleep 1000 & done; : > up; read x < gate"
    async with scene(tmp_path) as s:
        # One of each for each spawner: the last one started is the one in whose pen it stands.
        for jid in ("over0", "over1", "exact0", "exact1"):
            text = script.format(limit - 1)
            if jid.startswith("over"):
                text = "mkfifo go; read x < go; " + script.format(limit + 2)
            await s.stage.send([s.stage.shell(jid, text, processes=limit)])
            started = await s.stage.started(jid)
            assert started.pid
        for n in range(2):
            await appears(s.run_dir(f"exact{n}") / "up")
        parents: dict[str, set[int]] = {"over": set(), "exact": set()}
        for message in s.stage.durable:
            stat = stat_of(message.pid)
            assert stat is not None
            parents[message.jid[:-1]].add(stat.parent)
        assert parents["over"] == parents["exact"] == set(s.helpers("sj-spawner"))
        # Whoever counts these counts the others with them.
        for n in range(2):
            await eventually(partial(said, s.run_dir(f"over{n}") / "go"))
        for n in range(2):
            exited = await s.stage.ended(f"over{n}")
            assert (exited.reason, exited.stopped) == (Reason.PROCESS_LIMIT, True)
        for n in range(2):
            await eventually(partial(said, s.run_dir(f"exact{n}") / "gate"))
            exited = await s.stage.ended(f"exact{n}")
            assert (exited.exit_code, exited.reason, exited.stopped) == (0, None, False)


MEMORY = Path("/sys/fs/cgroup/memory")


async def test_when_memory_runs_out_the_job_goes_and_its_agent_stays(tmp_path: Path) -> None:
    """F031: launcher, agent and job share one memory, and it is used up."""
    if not os.access(MEMORY / "tasks", os.W_OK):
        pytest.skip("no memory cgroup (version 1) can be made here")
    async with scene(tmp_path) as s:
        ours = {s.launcher, *s.helpers("sj-spawner"), *s.helpers("sj-agent")}
        place = MEMORY / f"test-{os.getpid()}"
        place.mkdir()
        try:
            (place / "memory.limit_in_bytes").write_text(str(200 << 20))
            for pid in ours:
                (place / "cgroup.procs").write_text(str(pid))
            await s.stage.send([s.stage.shell("score", "cat /proc/self/oom_score_adj")])
            await s.stage.ended("score")
            with open(f"/proc/{s.launcher}/oom_score_adj") as file:  # noqa: ASYNC230, PTH123
                launchers = int(file.read())
            assert int(s.stdout("score")) >= launchers + 200
            await s.stage.send([s.stage.run("hog", [PYTHON, "-c", "x = bytearray(1 << 30)"])])
            exited = await s.stage.ended("hog")
            assert (exited.signal, exited.stopped) == (signal.SIGKILL, False)
            await s.stage.send([s.stage.run("next", ["true"])])
            assert (await s.stage.ended("next")).exit_code == 0
            assert {s.launcher, *s.helpers("sj-spawner"), *s.helpers("sj-agent")} == ours
        finally:
            for pid in (place / "cgroup.procs").read_text().split():
                with suppress(ProcessLookupError):  # it ended since
                    (MEMORY / "cgroup.procs").write_text(pid)
            place.rmdir()
