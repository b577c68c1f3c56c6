"""Outputs that the front end reads itself: the supervisor only tells how far they reach (C8, I13)."""

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sirepo_jobs.frontend import file_pass
from sirepo_jobs.frontend.disk_threads import DiskThreads
from sirepo_jobs.frontend.file_pass import COPIED_BYTES, MOVED_BYTES, FilePass
from sirepo_jobs.run_tree import CANNOT_OPEN, OnDisk
from tests.frontend_stage import Stage, stage, until

LOG = "/api/v1/jobs/J1/logs/stdout?follow=1"


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[Stage]:
    async with stage(tmp_path) as it:
        yield it


class Job:
    """A job, whose stdout lies in a run dir."""

    def __init__(self, house: Stage, jid: str = "J1", user: str = "ann") -> None:
        self._fake = house.fake
        self._jid = jid
        self._fake.add(jid)
        run_root = house.root / "users" / user / "jobs"
        self.path = run_root / jid / "1/stdout"
        self.path.parent.mkdir(parents=True)
        self.path.touch()
        info = self.path.stat()
        self.place = OnDisk(str(run_root), f"{jid}/1", "stdout", 0, info.st_dev, info.st_ino)
        self._fake.disk[jid] = self.place, bytearray()

    def write(self, data: bytes) -> None:
        with self.path.open("ab") as file:
            file.write(data)

    async def mark(self, offset: int) -> None:
        self._fake.disk[self._jid][1].extend(b"%d\n" % offset)
        await self._fake.change(self._jid)

    async def end(self) -> None:
        await self._fake.change(self._jid, state="completed")

    async def says(self, data: bytes) -> None:
        """All that it ever does; what comes by way of the agent is told from what lies on the disk."""
        self.write(data)
        await self._fake.write(self._jid, data.upper())
        await self.mark(len(data))
        await self.end()

    @property
    def is_open(self) -> bool:
        """Somebody of this process, which the front end is part of here, has it open."""
        links = (f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd"))
        return any(os.path.lexists(link) and os.readlink(link) == str(self.path) for link in links)


class Disk:
    """It answers, or whoever touches files of `hanging` waits until it does."""

    def __init__(self) -> None:
        self.hanging: OnDisk | None = None
        self.answers = threading.Event()
        self.touched = 0

    def touch(self, path: str) -> None:
        if self.hanging is not None and path.startswith(self.hanging.run_root):
            self.touched += 1
            self.answers.wait()


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    it = Disk()
    do_open, do_read, do_send = OnDisk.open, os.pread, os.sendfile

    def open_(place: OnDisk) -> int:
        it.touch(place.run_root)
        return do_open(place)

    def read(fd: int, *words: int) -> bytes:
        it.touch(os.readlink(f"/proc/self/fd/{fd}"))
        return do_read(fd, *words)

    def send(out: int, fd: int, *words: int) -> int:
        it.touch(os.readlink(f"/proc/self/fd/{fd}"))
        return do_send(out, fd, *words)

    monkeypatch.setattr(OnDisk, "open", open_)
    monkeypatch.setattr(os, "pread", read)
    monkeypatch.setattr(os, "sendfile", send)
    yield it
    it.answers.set()


@pytest.mark.parametrize("size", [1, COPIED_BYTES - 1, COPIED_BYTES, MOVED_BYTES + COPIED_BYTES + 1])
async def test_all_that_the_marks_allow_and_no_more(house: Stage, size: int) -> None:
    job = Job(house)
    data = os.urandom(size)
    job.write(data + b"not yet")
    await job.mark(size)
    await job.end()
    wire = await house.wire()
    await wire.send(house.request("GET", LOG))
    reply = await wire.reply()
    assert (reply.status, reply.headers["x-attempt"], reply.whole) == (200, "1", True)
    assert reply.body == data
    assert not any(name.startswith("x-on-disk") for name in reply.headers)
    await wire.send(house.request("GET", "/healthz"))  # the connection is as it was
    assert (await wire.reply()).status == 200
    assert not job.is_open


async def test_from_an_offset_on(house: Stage) -> None:
    job = Job(house)
    job.write(b"0123456789")
    await job.mark(8)
    await job.end()
    assert (await house.ask("GET", f"{LOG}&offset=3")).body == b"34567"


async def test_a_follower_hears_each_piece_as_it_is_told_of(house: Stage) -> None:
    job = Job(house)
    wire = await house.wire()
    await wire.send(house.request("GET", LOG))
    await wire.reader.readuntil(b"\r\n\r\n")
    reach = 0
    for piece in (b"one\n", b"x" * COPIED_BYTES, b"three"):
        job.write(piece)
        reach += len(piece)
        await job.mark(reach)
        assert await wire.reader.readline() == b"%x\r\n" % len(piece)
        assert await wire.reader.readexactly(len(piece) + 2) == piece + b"\r\n"
    await job.end()
    assert await wire.reader.readexactly(5) == b"0\r\n\r\n"


async def test_old_clients_get_the_bytes_without_chunks(house: Stage) -> None:
    job = Job(house)
    job.write(b"x" * 500_000)
    await job.mark(500_000)
    await job.end()
    wire = await house.wire()
    await wire.send(house.request("GET", LOG).replace(b"HTTP/1.1", b"HTTP/1.0"))
    head = await wire.reader.readuntil(b"\r\n\r\n")
    assert b"chunked" not in head
    assert await wire.reader.read(-1) == b"x" * 500_000


async def test_what_is_not_the_agents_file_comes_by_way_of_the_agent(house: Stage) -> None:
    """S30: a name that was swapped, for a link or for another file, leads nowhere."""
    job = Job(house)
    job.write(b"of the agent")
    await house.fake.write("J1", b"of the agent")
    await job.mark(12)
    secret = house.root / "secret-of-somebody"
    secret.write_bytes(b"not for you!")
    await job.end()
    for swap in (lambda: job.path.symlink_to(secret), lambda: os.link(secret, job.path), lambda: None):
        job.path.unlink()
        swap()
        house.fake.asked.clear()
        reply = await house.ask("GET", LOG)
        assert (reply.status, reply.body, reply.whole) == (200, b"of the agent", True)
        assert len(house.fake.asked) == 2
        job.path.unlink(missing_ok=True)
        job.path.touch()


async def test_an_output_that_became_shorter_is_not_passed_off_as_whole(house: Stage) -> None:
    job = Job(house)
    job.write(b"abc")
    await job.mark(1_000_000)
    await job.end()
    reply = await house.ask("GET", LOG)
    assert (reply.status, reply.whole) == (200, False)
    assert reply.body in (b"abc", b"")
    await until(lambda: not job.is_open)


async def test_a_supervisor_that_goes_away_is_no_end(house: Stage) -> None:
    job = Job(house)
    job.write(b"abc")
    await job.mark(3)
    wire = await house.wire()
    await wire.send(house.request("GET", LOG))
    await wire.reader.readuntil(b"\r\n\r\n")
    assert await wire.reader.readexactly(8) == b"3\r\nabc\r\n"
    house.fake.cut_after = 2
    await job.mark(4)
    assert await wire.reader.read(-1) == b""
    await until(lambda: not job.is_open)


async def test_a_reader_who_is_slow_or_leaves_holds_up_nobody(house: Stage) -> None:
    job = Job(house)
    job.write(bytes(4 * MOVED_BYTES))
    await job.mark(4 * MOVED_BYTES)
    slow = [await house.wire() for _ in range(6)]
    for wire in slow:
        await wire.send(house.request("GET", LOG))
        await wire.reader.readuntil(b"\r\n\r\n")
    assert house.fake.streams == 6
    await job.end()
    reply = await house.ask("GET", LOG)
    assert (reply.whole, len(reply.body)) == (True, 4 * MOVED_BYTES)
    for wire in slow[1:]:
        wire.close()
    got, tail = 0, b""  # the last bytes may come in two pieces
    while not tail.endswith(b"\r\n0\r\n\r\n"):
        piece = await slow[0].reader.read(1 << 20)
        assert piece
        got, tail = got + len(piece), (tail + piece)[-7:]
    assert got > 4 * MOVED_BYTES
    await until(lambda: not job.is_open)


async def test_a_run_root_that_hangs_holds_up_nobody_else(
    house: Stage, disk: Disk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """F038: its outputs come by way of the agent, those of others from the disk as before."""
    monkeypatch.setattr(file_pass, "OPEN_SECS", 2.0, raising=False)
    hung, well = Job(house), Job(house, "J2", "bob")
    await hung.says(b"of ann")
    await well.says(b"of bob")
    disk.hanging = hung.place
    async with asyncio.timeout(60):
        asking = [asyncio.create_task(house.ask("GET", LOG)) for _ in range(6)]
        await until(lambda: disk.touched == 4)
        assert (await house.ask("GET", LOG.replace("J1", "J2"))).body == b"of bob"
        assert [(await one).body for one in asking] == 6 * [b"OF ANN"]
        assert CANNOT_OPEN in house.fake.asked[-1][2]
        assert (await house.ask("GET", LOG)).body == b"OF ANN"
        assert disk.touched == 4  # nobody has tried it again
        said = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
        assert said == ["an output cannot be read here"]
        disk.answers.set()
        while (await house.ask("GET", LOG)).body != b"of ann":
            pass
    await until(lambda: not hung.is_open)


@pytest.mark.parametrize("size", [3, COPIED_BYTES])
async def test_a_read_that_hangs_ends_its_own_stream(
    house: Stage, disk: Disk, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(file_pass, "READ_SECS", 2.0, raising=False)
    hung, well = Job(house), Job(house, "J2", "bob")
    hung.write(bytes(3 + size))
    await hung.mark(3)
    await well.says(b"of bob")
    wire = await house.wire()
    await wire.send(house.request("GET", LOG))
    await wire.reader.readuntil(b"\r\n\r\n3\r\n\0\0\0\r\n")
    disk.hanging = hung.place
    await hung.mark(3 + size)
    async with asyncio.timeout(60):
        # the length of a chunk that is moved is said before
        assert await wire.reader.read(-1) in (b"", b"%x\r\n" % size)
        assert (await house.ask("GET", LOG.replace("J1", "J2"))).body == b"of bob"
    assert hung.is_open  # as long as a thread has it in hand
    disk.answers.set()
    await until(lambda: not hung.is_open)


def test_a_disk_that_hangs_keeps_no_process() -> None:
    code = """
import asyncio, threading
from sirepo_jobs.frontend.disk_threads import DiskThreads
async def main():
    hung = await DiskThreads().lane("/run").begin(threading.Event().wait)
    await asyncio.wait({hung}, timeout=0.1)
asyncio.run(main())
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


async def test_what_nobody_foresaw_is_no_silence(house: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job(house)
    await job.says(b"of ann")

    def fail(_place: OnDisk) -> int:
        raise ValueError("embedded null byte")

    monkeypatch.setattr(OnDisk, "open", fail)
    async with asyncio.timeout(60):
        assert (await house.ask("GET", LOG)).body == b"OF ANN"


async def test_a_client_that_leaves_between_two_words(house: Stage) -> None:
    """What was written was taken, and then the connection is closed: Tornado's stream has no socket."""
    job = Job(house)
    job.write(bytes(COPIED_BYTES))
    taken = asyncio.get_running_loop().create_future()
    taken.set_result(None)
    client: Any = SimpleNamespace(write=lambda _data: taken, closed=lambda: True, socket=None)
    over: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
    it = FilePass(
        job.place,
        DiskThreads().lane(job.place.run_root),
        begin=lambda: None,
        data=lambda _data: None,
        over=over.set_result,
        direct=client,
    )
    it.feed(b"%d\n" % COPIED_BYTES)
    async with asyncio.timeout(60):
        assert isinstance(await over, ConnectionError)
    assert not job.is_open
