"""Outputs by offset while and after they grow, progress, and what a job can do to its files."""

import asyncio
import contextlib
import hashlib
import json
import os
from pathlib import Path

import pytest

from sirepo_jobs.protocol import WINDOW_BYTES, Credit, OutputEnd, OutputMark, StopReading, decode_chunk
from tests.agent_stage import Scene, open_files, scene

PYTHON = os.path.realpath("/proc/self/exe")


async def read(s: Scene, jid: str, **changes: object) -> tuple[bytes, OutputEnd]:
    """A whole reading."""
    ask = s.stage.read(jid, **changes)
    s.stage.bases[ask.op_id] = ask.offset
    await s.stage.send([ask])
    end = await s.stage.until(lambda: s.stage.ends.get(ask.op_id))
    return bytes(s.stage.chunks.get(ask.op_id, b"")), end


def peak_kib(pid: int) -> int:
    """Largest memory that a process ever had."""
    (line,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if "VmHWM" in line)
    return int(line.split()[1])


async def test_any_part_of_an_output(tmp_path: Path) -> None:
    async with scene(tmp_path) as s:
        await s.stage.send([s.stage.shell("j", "printf 0123456789; printf '\\000\\377' >&2")])
        await s.stage.ended("j")
        assert await read(s, "j") == (b"0123456789", OutputEnd(op_id=s.stage._ops, offset=10))
        assert (await read(s, "j", stream="stderr"))[0] == b"\x00\xff"
        data, end = await read(s, "j", offset=3, limit=4)
        assert (data, end.offset, end.error) == (b"3456", 7, "")
        data, end = await read(s, "j", offset=10)
        assert (data, end.offset, end.error) == (b"", 10, "")
        data, end = await read(s, "j", offset=3, follow=True)
        assert (data, end.error) == (b"3456789", "")
        data, end = await read(s, "j", limit=0)
        assert (data, end.error) == (b"", "")


async def test_marks_instead_of_bytes(tmp_path: Path) -> None:
    """Whoever can open the file is told how far it reaches, and which file it is."""
    async with scene(tmp_path) as s:
        go = tmp_path / "go"
        os.mkfifo(go)
        await s.stage.send([s.stage.shell("j", f"printf 0123456789; read x < {go}; printf more")])
        ask = s.stage.read("j", follow=True, marks=True)
        await s.stage.send([ask])
        await s.stage.until(lambda: s.stage.marks.get(ask.op_id))
        info = (s.run_dir("j") / "stdout").stat()
        first = OutputMark(op_id=ask.op_id, offset=10, device=info.st_dev, inode=info.st_ino)
        assert s.stage.marks[ask.op_id] == [first]
        go.write_text("\n")
        await s.stage.ended("j")
        await s.stage.until(lambda: s.stage.ends.get(ask.op_id))
        assert [mark.offset for mark in s.stage.marks[ask.op_id]] == [10, 14]
        assert (s.stage.ends[ask.op_id].offset, s.stage.chunks.get(ask.op_id)) == (14, None)
        part = s.stage.read("j", offset=3, limit=4, marks=True)
        await s.stage.send([part])
        await s.stage.until(lambda: s.stage.ends.get(part.op_id))
        assert [mark.offset for mark in s.stage.marks[part.op_id]] == [7]


async def test_what_cannot_be_read_says_why(tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("secret of another")
    async with scene(tmp_path) as s:
        await s.stage.send(
            [
                s.stage.shell("j", "printf 123; cp stdout other; ln -s ../../../../../../outside link"),
                s.stage.shell("linked", f"rm stdout stderr; ln -s {tmp_path}/outside stdout; mkfifo stderr"),
                s.stage.shell("moved", f"cd ..; mv 1 2; ln -s {tmp_path} 1; printf x"),
            ]
        )
        for jid in ("j", "linked", "moved"):
            await s.stage.ended(jid)
        for changes in (
            {"stream": "link"},
            {"stream": "../1/stdout"},
            {"run_dir": "users/u/jobs/none/1"},
            {"run_dir": "../outside"},
            {"run_dir": f"{s.run_root}/users/u/jobs/j/1"},
            {"run_dir": "users/u/jobs/../jobs/j/1"},
            {"run_dir": "users//u/jobs/j/1"},
            {"run_dir": ""},
            {"run_dir": "users/u/jobs/j/1\0"},
            {"offset": 4},
        ):
            data, end = await read(s, "j", **changes)
            assert data == b"", changes
            assert end.error, changes
        for jid, stream in (("linked", "stdout"), ("linked", "stderr"), ("moved", "stdout")):
            data, end = await read(s, jid, stream=stream)
            assert (data, bool(end.error)) == (b"", True)


async def test_following_from_before_it_began_until_its_end(tmp_path: Path) -> None:
    async with scene(tmp_path) as s:
        script = "for i in 1 2 3 4 5; do echo $i; sleep 0.03; done; while [ ! -e go ]; do sleep 0.01; done"
        run = s.stage.shell("j", script + "; printf end", standby=True)
        await s.stage.send([run])
        ask = s.stage.read("j", follow=True)
        await s.stage.send([ask])
        await s.stage.send([s.stage.grant("j")])
        await s.stage.until(lambda: s.stage.chunks.get(ask.op_id))
        assert ("j", 1) not in s.stage.exits
        (s.run_dir("j") / "go").touch()
        end = await s.stage.until(lambda: s.stage.ends.get(ask.op_id))
        assert (end.offset, end.error) == (13, "")
        assert bytes(s.stage.chunks[ask.op_id]) == b"1\n2\n3\n4\n5\nend"


async def test_fifty_megabytes_to_a_slow_reader(tmp_path: Path) -> None:
    size = 50_000_000
    script = f"""
import sys, os
for i in range({size // 100000}):
    os.write(1, (b"%08d" % i) * 12500)
"""
    async with scene(tmp_path) as s:
        s.stage.crediting = False
        await s.stage.send([s.stage.run("j", [PYTHON, "-I", "-c", script])])
        ask = s.stage.read("j", follow=True)
        await s.stage.send([ask])
        (agent,) = s.helpers("sj-agent")
        digest = hashlib.sha256()
        taken = 0
        while not (s.stage.ends.get(ask.op_id) and taken == size):
            await s.stage.until(lambda: s.stage.chunks.get(ask.op_id) or s.stage.ends.get(ask.op_id))
            held = s.stage.chunks.get(ask.op_id) or bytearray()
            # Never more under way than was agreed on.
            assert len(held) <= WINDOW_BYTES
            digest.update(held)
            count = len(held)
            taken += count
            s.stage.bases[ask.op_id] = taken
            held.clear()
            if count:
                await s.stage.send([Credit(op_id=ask.op_id, count=count)])
            # Words are not stuck behind the bytes.
        expected = hashlib.sha256(s.stdout("j"))
        assert taken == size == (await s.stage.ended("j")).stdout_bytes
        assert digest.digest() == expected.digest()
        assert peak_kib(agent) < 80_000


async def test_reader_without_credit_holds_up_nobody(tmp_path: Path) -> None:
    async with scene(tmp_path) as s:
        s.stage.crediting = False
        await s.stage.send([s.stage.shell("big", "head -c 20000000 /dev/zero")])
        await s.stage.ended("big")
        stuck = s.stage.read("big")
        await s.stage.send([stuck])
        await s.stage.until(lambda: len(s.stage.chunks.get(stuck.op_id, b"")) == WINDOW_BYTES)
        # Others go on: a job, and another reading.
        await s.stage.send([s.stage.shell("j", "printf abc")])
        await s.stage.ended("j")
        assert (await read(s, "j"))[0] == b"abc"
        assert len(s.stage.chunks[stuck.op_id]) == WINDOW_BYTES
        await s.stage.send([StopReading(op_id=stuck.op_id)])
        await s.stage.send([Credit(op_id=stuck.op_id, count=WINDOW_BYTES)])
        assert (await read(s, "j"))[0] == b"abc"
        assert len(s.stage.chunks[stuck.op_id]) == WINDOW_BYTES


async def test_many_followers_of_many_jobs(tmp_path: Path) -> None:
    async with scene(tmp_path) as s:
        count = 20
        script = "for i in 1 2 3 4 5 6 7 8; do echo $SIREPO_JOBS_JID line $i; done; sleep 0.05; echo end"
        asks = [s.stage.read(f"j{n % count}", follow=True) for n in range(3 * count)]
        await s.stage.send([s.stage.shell(f"j{n}", script) for n in range(count)])
        await s.stage.send(list(asks))
        for n, ask in enumerate(asks):
            end = await s.stage.until(lambda op_id=ask.op_id: s.stage.ends.get(op_id))
            assert end.error == ""
            assert bytes(s.stage.chunks[ask.op_id]) == s.stdout(f"j{n % count}")


async def test_truncated_output_ends_the_reading_with_a_word(tmp_path: Path) -> None:
    async with scene(tmp_path) as s:
        script = "printf 1234567890; while [ ! -e cut ]; do sleep 0.01; done; : > stdout; "
        script += "while [ ! -e go ]; do sleep 0.01; done"
        await s.stage.send([s.stage.shell("j", script)])
        ask = s.stage.read("j", follow=True)
        await s.stage.send([ask])
        await s.stage.until(lambda: len(s.stage.chunks.get(ask.op_id, b"")) == 10)
        (s.run_dir("j") / "cut").touch()
        end = await s.stage.until(lambda: s.stage.ends.get(ask.op_id))
        assert "cut" in end.error
        assert end.offset == 10
        (s.run_dir("j") / "go").touch()
        assert (await s.stage.ended("j")).exit_code == 0


async def test_readings_end_with_their_connection(tmp_path: Path) -> None:
    async with scene(tmp_path) as s:
        script = "printf abc; while [ ! -e go ]; do sleep 0.01; done; printf def"
        await s.stage.send([s.stage.shell("j", script)])
        ask = s.stage.read("j", follow=True)
        await s.stage.send([ask])
        await s.stage.until(lambda: s.stage.chunks.get(ask.op_id))
        assert s.stage.connection is not None
        await s.stage.connection.close()
        await s.stage.connected(2)
        (agent,) = s.helpers("sj-agent")
        # The reader goes on where it was.
        again = asyncio.create_task(read(s, "j", offset=3, follow=True))
        (s.run_dir("j") / "go").touch()
        assert (await again)[0] == b"def"
        assert not [path for path in open_files(agent) if path.endswith("stdout")]


async def test_progress_is_the_newest_valid_line(tmp_path: Path) -> None:
    script = r"""
import json, os, time
path = os.environ["SIREPO_JOBS_PROGRESS"]
def say(text):
    with open(path, "a") as f: f.write(text)
say('{"percent": 1}\n')
while not os.path.exists("go1"): time.sleep(0.01)
say('{"percent": 50, "note": "\u00e4"}\n{"percent": NaN}\n{"percent": Infinity}\n')
say('no json\n[1]\n"text"\n{"a":1e999}\n')
while not os.path.exists("go2"): time.sleep(0.01)
say('{"huge": "' + "x" * 70000 + '"}\n' + '{"n": ' + "9" * 30 + '}\n' + "[" * 100000 + '\n')
say('{"percent": 99}\n{"torn": ')
while not os.path.exists("go3"): time.sleep(0.01)
say('1}\n{"percent": 100}\n')
"""
    async with scene(tmp_path) as s:
        await s.stage.send([s.stage.run("j", [PYTHON, "-I", "-c", script], progress=True)])
        for step, expected in enumerate(({"percent": 1}, {"percent": 50, "note": "ä"}, {"percent": 99}), 1):
            await s.stage.until(lambda want=expected: s.stage.progress and s.stage.progress[-1].data == want)
            (s.run_dir("j") / f"go{step}").touch()
        exited = await s.stage.ended("j")
        assert exited.exit_code == 0, s.stderr("j")
        # The last word is told before the end.
        assert s.stage.progress[-1].data == {"percent": 100}
        assert [one.data for one in s.stage.progress] == [
            {"percent": 1},
            {"percent": 50, "note": "ä"},
            {"percent": 99},
            {"percent": 100},
        ]
        assert {(one.jid, one.serial, one.attempt) for one in s.stage.progress} == {("j", 1, 1)}


async def test_progress_of_a_short_job_and_after_the_agents_death(tmp_path: Path) -> None:
    async with scene(tmp_path) as s:
        script = 'echo "{\\"n\\": 1}" > $SIREPO_JOBS_PROGRESS'
        await s.stage.send([s.stage.shell("short", script, progress=True)])
        await s.stage.ended("short")
        assert [one.data for one in s.stage.progress] == [{"n": 1}]
        slow = s.stage.shell("slow", "while [ ! -e go ]; do sleep 0.01; done; " + script, progress=True)
        await s.stage.send([slow])
        await s.stage.started("slow")
        (agent,) = s.helpers("sj-agent")
        os.kill(agent, 9)
        await s.stage.connected(2)
        (s.run_dir("slow") / "go").touch()
        await s.stage.ended("slow")
        assert [one.jid for one in s.stage.progress] == ["short", "slow"]


async def test_progress_is_rate_limited(tmp_path: Path) -> None:
    async with scene(tmp_path) as s:
        script = 'while [ $((i+=1)) -le 300 ]; do echo "{\\"n\\": $i}" >> progress.jsonl; sleep 0.003; done'
        await s.stage.send([s.stage.shell("j", script, progress=True)])
        exited = await s.stage.ended("j")
        assert exited.started_at is not None
        secs = (exited.at - exited.started_at) / 1e6
        assert 1 < len(s.stage.progress) <= 4 * secs + 2
        assert s.stage.progress[-1].data == {"n": 300}


async def test_progress_through_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "outside").write_text('{"secret": 1}\n')
    async with scene(tmp_path) as s:
        await s.stage.send([s.stage.shell("j", f"ln -s {tmp_path}/outside progress.jsonl", progress=True)])
        await s.stage.ended("j")
        assert s.stage.progress == []


@pytest.mark.parametrize("depth", [60])
async def test_long_paths_and_socket_names(tmp_path: Path, depth: int) -> None:
    deep = tmp_path / "d".join(["x" * 20] * 6) / ("y" * depth)
    deep.mkdir(parents=True)
    # Longer than a socket address can be; the stage itself must listen by a short name.
    assert len(str(deep / "socket")) > 108
    with contextlib.chdir(deep):
        async with scene(Path(), url=f"unix:{deep}/socket", home=f"{deep}/home", run_root=f"{deep}/run") as s:
            s.home, s.run_root = deep / "home", deep / "run"
            await s.stage.send([s.stage.shell("j", "pwd")])
            assert (await s.stage.ended("j")).exit_code == 0
            assert s.stdout("j").decode().strip() == str(s.run_dir("j"))


async def test_chunks_are_what_the_protocol_says(tmp_path: Path) -> None:
    async with scene(tmp_path) as s:
        await s.stage.send([s.stage.shell("j", "head -c 300000 /dev/zero")])
        await s.stage.ended("j")
        data, end = await read(s, "j")
        assert data == bytes(300000)
        assert end.offset == 300000
        assert json.loads((s.run_dir("j") / "exit.json").read_bytes())["stdout_bytes"] == 300000
        assert decode_chunk(b"\x01" + bytes(12))[2] == b""
