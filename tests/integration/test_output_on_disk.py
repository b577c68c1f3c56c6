"""Outputs that the front end reads itself: the supervisor only tells how far they reach (C8, I13)."""

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sirepo_jobs.frontend.file_pass import COPIED_BYTES, MOVED_BYTES
from sirepo_jobs.run_tree import OnDisk
from tests.frontend_stage import Stage, stage, until

LOG = "/api/v1/jobs/J1/logs/stdout?follow=1"


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[Stage]:
    async with stage(tmp_path) as it:
        yield it


class Job:
    """Job `J1`, whose stdout lies in a run dir."""

    def __init__(self, house: Stage) -> None:
        self._fake = house.fake
        self._fake.add("J1")
        self.path = house.root / "users/ann/jobs/J1/1/stdout"
        self.path.parent.mkdir(parents=True)
        self.path.touch()
        info = self.path.stat()
        place = OnDisk(str(house.root / "users/ann/jobs"), "J1/1", "stdout", 0, info.st_dev, info.st_ino)
        self._fake.disk["J1"] = place, bytearray()

    def write(self, data: bytes) -> None:
        with self.path.open("ab") as file:
            file.write(data)

    async def mark(self, offset: int) -> None:
        self._fake.disk["J1"][1].extend(b"%d\n" % offset)
        await self._fake.change("J1")

    async def end(self) -> None:
        await self._fake.change("J1", state="completed")

    @property
    def is_open(self) -> bool:
        """Somebody of this process, which the front end is part of here, has it open."""
        links = (f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd"))
        return any(os.path.lexists(link) and os.readlink(link) == str(self.path) for link in links)


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
    got = 0
    while not (piece := await slow[0].reader.read(1 << 20)).endswith(b"\r\n0\r\n\r\n"):
        assert piece
        got += len(piece)
    assert got + len(piece) > 4 * MOVED_BYTES
    await until(lambda: not job.is_open)
