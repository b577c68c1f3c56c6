"""A file system that does not answer: a FUSE mount whose server is there and says nothing."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.agent_stage import scene
from tests.service_stage import eventually

_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def hanging(place: Path) -> Iterator[int]:
    """Nothing below `place` answers until the descriptor is closed; then everything is an error."""
    try:
        fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except OSError as exc:
        pytest.skip(f"no FUSE here: {exc.strerror}")
    options = f"fd={fd},rootmode=40000,user_id={os.geteuid()},group_id={os.getegid()}".encode()
    try:
        if _libc.mount(b"nobody", os.fsencode(place), b"fuse.nobody", 0, options) != 0:
            pytest.skip(f"nothing can be mounted here: {os.strerror(ctypes.get_errno())}")
        yield fd
    finally:
        os.close(fd)
        _libc.umount2(os.fsencode(place), 2)


async def test_files_that_do_not_answer_are_said_to_and_hold_up_no_job(tmp_path: Path) -> None:
    """F038: one reading hangs; the network side is replaced, jobs and cancels go on, at last files too."""
    async with scene(tmp_path) as s:
        await s.stage.send([s.stage.shell("j", "printf abc; sleep 1000"), s.stage.shell("k", "sleep 1000")])
        await s.stage.started("j")
        await s.stage.started("k")
        (agent,) = s.helpers("sj-agent")
        with hanging(s.run_dir("j")):
            await s.stage.send([s.stage.read("j")])
            await s.stage.connected(2)
            assert s.helpers("sj-agent") != [agent]
            assert f"{s.run_dir('j')} has not answered" in s.log()
            asked = s.stage.read("j")
            await s.stage.send([asked, s.stage.cancel("k")])
            end = await s.stage.until(lambda: s.stage.ends.get(asked.op_id))
            assert f"{s.run_dir('j')} does not answer" in end.error
            assert (await s.stage.ended("k")).stopped
            assert len(s.stage.hellos) == 2
        # Everything answers again.

        async def read() -> bytes:
            asked = s.stage.read("j", limit=3)
            await s.stage.send([asked])
            await s.stage.until(lambda: s.stage.ends.get(asked.op_id))
            return bytes(s.stage.chunks.get(asked.op_id, b""))

        while await read() != b"abc":
            await eventually(lambda: True)
        await s.stage.send([s.stage.cancel("j")])
        assert (await s.stage.ended("j")).stopped
