"""The store while processes are killed, disks fill and fail: what was acknowledged is there afterwards,
whole units only, and nothing else was ever acknowledged (C14, I30, F085-F091).
"""

import asyncio
import contextlib
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sirepo_jobs.errors import StoreError
from sirepo_jobs.store import Store
from tests.small_disk import mounted
from tests.unit.test_store import a_stored, accepting, opened
from tests.unit.test_store_sqlite import end, holder, said

ROOT = Path(__file__).parents[2]

#: Writes units one after the other, prints each number when it is acknowledged, and waits for every third:
#: how many commits there are does not follow from how busy the machine is.
WRITE = """
import asyncio, os, sys
from sirepo_jobs.store import Store
from tests.unit.test_store import a_stored, accepting

async def main(url, count):
    store = Store.open(url)
    failed = asyncio.Event()
    def on_fatal(error):
        print("fatal", error, flush=True)
        failed.set()
    store.start(asyncio.get_running_loop(), on_fatal)
    first = store.last_job_seq + 1
    print("from", first, flush=True)
    for number in range(first, first + count):
        unit = accepting(a_stored(number))
        unit.done.append(lambda number=number: os.write(1, b"acked %d\\n" % number))
        store.submit(unit)
        try:
            if number % 3 == 0:
                await store.flushed()
        except Exception:
            os._exit(9)
    try:
        await store.flushed()
    except Exception:
        os._exit(9)
    await store.close()

asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""


def writer(url: str, count: int, *wrapper: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*wrapper, sys.executable, "-c", WRITE, url, str(count)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


def traced(strace: str, folder: Path, calls: str, inject: str) -> list[str]:
    """Do `inject` to a process, counting only what it does to the files of its store."""
    endings = ("", "-wal", "-journal", ".new", ".new-wal", ".new-journal")
    files = [str(folder), *(f"{folder}/jobs.db{ending}" for ending in endings)]
    paths = [word for file in files for word in ("-P", file)]
    return [strace, "-f", "-qq", "-o", "/dev/null", *paths, "-e", f"trace={calls}", "-e", inject]


def acked(words: str) -> int:
    """The last acknowledged number; they come in order."""
    numbers = [int(line.split()[1]) for line in words.splitlines() if line.startswith("acked ")]
    assert numbers == sorted(numbers)
    return max(numbers, default=0)


async def recovered(url: str) -> int:
    """How many units are there; each whole, and none missing before the last."""
    async with opened(url) as it:
        count = it.store.last_job_seq
        assert it.store.last_event_seq == count
        jobs = await it.store.jobs([f"J{number}" for number in range(1, count + 1)])
        assert jobs == [a_stored(number) for number in range(1, count + 1)]
        assert len(await it.store.events(after=0, limit=1_000_000)) == count
        assert (await it.store.count_by_state(None))["pending"] == count
        assert it.store._database.fetch("PRAGMA integrity_check") == ("ok",)
        return count


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/jobs.db"


@pytest.fixture
def strace() -> str:
    found = shutil.which("strace")
    if found is None:
        pytest.skip("strace is not installed")
    return found


def test_twenty_at_once(url: str) -> None:
    crowd = [holder(url) for _ in range(20)]
    try:
        words = [said(process) for process in crowd]
        winners = [process for process, word in zip(crowd, words, strict=True) if word == "holds 1\n"]
        assert len(winners) == 1
        assert sum(f"pid {winners[0].pid} on " in word for word in words) == 19
    finally:
        end(*crowd)


def test_a_killed_holder_leaves_no_lock(url: str) -> None:
    for epoch in (1, 2, 3):
        process = holder(url)
        assert said(process) == f"holds {epoch}\n"
        process.send_signal(signal.SIGKILL)
        process.communicate()


async def test_kill_9_at_any_moment(url: str) -> None:
    chance = random.Random(7)
    told = 0
    for _ in range(12):
        process = writer(url, 100_000)
        assert process.stdout is not None
        assert process.stdout.readline().startswith("from ")
        # Some way on, and then at any moment: how far it gets does not follow from how busy the machine is.
        words = "".join(process.stdout.readline() for _ in range(chance.randrange(1, 40)))
        await asyncio.sleep(chance.random() * 0.03)
        process.kill()
        told = max(told, acked(words + process.stdout.read()))
        process.communicate()
        assert await recovered(url) >= told
    assert told > 100


async def test_kill_9_at_every_kind_of_write(url: str, tmp_path: Path, strace: str) -> None:
    """Dies at the N-th call that changes a file, from the making of the database on (F087, F102)."""
    calls = "pwrite64,write,fsync,fdatasync,ftruncate,rename,unlink"
    finished = False
    for place in [*range(1, 30, 2), *range(30, 300, 11)]:
        folder = tmp_path / f"{place}"
        folder.mkdir()
        url = f"sqlite:///{folder}/jobs.db"
        inject = f"inject={calls}:signal=SIGKILL:when={place}"
        process = writer(url, 10, *traced(strace, folder, calls, inject))
        words, errors = await asyncio.to_thread(process.communicate)
        finished = process.returncode == 0
        assert finished or process.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL), (place, errors)
        assert await recovered(url) >= acked(words), place
        shutil.rmtree(folder)
        if finished:
            break
    assert finished


@pytest.mark.parametrize(
    ("call", "error"), [("fdatasync", "EIO"), ("pwrite64", "EIO"), ("pwrite64", "EROFS")]
)
async def test_a_failing_disk_ends_the_writer_before_it_acknowledges(
    tmp_path: Path, strace: str, call: str, error: str
) -> None:
    """F086; F093: a file system that becomes read-only while it is in use."""
    stopped = 0
    for place in range(1, 60, 9 if error == "EIO" else 20):
        folder = tmp_path / f"{place}"
        folder.mkdir()
        url = f"sqlite:///{folder}/jobs.db"
        async with opened(url):
            pass
        process = writer(url, 40, *traced(strace, folder, call, f"inject={call}:error={error}:when={place}+"))
        words, errors = await asyncio.to_thread(process.communicate)
        # at the opening, or with a last word while it ran
        failed = "StoreError" in errors or "fatal" in words
        assert failed == (process.returncode != 0), (words, errors)
        stopped += failed
        assert await recovered(url) >= acked(words)
        shutil.rmtree(folder)
    assert stopped > 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with mounted(tmp_path / "small", "3m") as place:
        yield place


async def test_a_full_disk_is_waited_for(small_disk: Path) -> None:
    ballast = small_disk / "ballast"
    heard: list[int] = []
    async with opened(f"sqlite:///{small_disk}/jobs.db") as it:
        it.store.submit(accepting(a_stored(1)))
        await it.store.flushed()
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(b"x" * 4096)
        number = 1
        while it.store.degraded is None:
            number += 1
            unit = accepting(a_stored(number))
            unit.done.append(lambda number=number: heard.append(number))
            it.store.submit(unit)
            await asyncio.sleep(0.001)
        assert "full" in it.store.degraded
        before = list(heard)
        # reads go on
        assert len(await it.store.jobs(["J1"])) == 1
        assert heard == before
        ballast.unlink()
        await asyncio.wait_for(it.store.flushed(), 60)
        assert heard == list(range(2, number + 1))
        assert it.store.degraded is None
        assert it.fatal == []
    assert await recovered(f"sqlite:///{small_disk}/jobs.db") == number


async def test_no_space_for_a_new_store(small_disk: Path) -> None:
    with contextlib.suppress(OSError), (small_disk / "ballast").open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)
    with pytest.raises(StoreError, match=r"full|No space"):
        Store.open(f"sqlite:///{small_disk}/jobs.db")
    (small_disk / "ballast").unlink()
    async with opened(f"sqlite:///{small_disk}/jobs.db") as it:
        assert it.store.epoch == 1


async def test_backups_under_load_are_whole(url: str, tmp_path: Path) -> None:
    async with opened(url) as it:
        number = 0
        for round_ in range(5):
            copy = tmp_path / f"copy{round_}.db"
            backup = asyncio.create_task(it.store.backup(copy))
            while not backup.done():
                number += 1
                it.store.submit(accepting(a_stored(number)))
                await asyncio.sleep(0)
            await backup
    for round_ in range(5):
        with contextlib.closing(sqlite3.connect(tmp_path / f"copy{round_}.db")) as copy:
            assert copy.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert await recovered(f"sqlite:///{tmp_path}/copy{round_}.db") <= number
