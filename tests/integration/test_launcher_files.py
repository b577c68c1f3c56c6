"""Files of run dirs at the agent: what a job can do to names while we look, and what never comes out."""

import io
import os
import threading
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from sirepo_jobs import run_path
from sirepo_jobs.protocol import (
    WINDOW_BYTES,
    Credit,
    FileList,
    FileOpened,
    ListFiles,
    OutputEnd,
    ReadArchive,
    ReadFile,
    ReadRange,
    StopReading,
)
from tests.agent_stage import Scene, open_files, scene

SECRET = b"the secret of somebody else, outside of every run dir".ljust(64)
OWN = b"what the job wrote itself, for everybody who may see it".ljust(64)
RACES = 2000
#: So often each outcome of a race must have been seen.
ENOUGH = 20


class Answer(NamedTuple):
    opened: FileOpened | None
    data: bytes
    end: OutputEnd


class Files:
    """Asks an agent for files of one run dir."""

    def __init__(self, s: Scene, jid: str = "j") -> None:
        self.s = s
        self.where = {"jid": jid, "serial": 1, "attempt": 1, "run_dir": f"users/u/jobs/{jid}/1"}

    def said(self, kind: type[Any], op_id: int) -> Any:
        """What the agent said under an op id; once."""
        for message in self.s.stage.others:
            if isinstance(message, kind) and message.op_id == op_id:
                self.s.stage.others.remove(message)
                return message
        return None

    async def open(self, name: bytes) -> FileOpened | OutputEnd:
        op_id = self.s.stage.op_id()
        path = run_path.encode(name.split(b"/"))
        await self.s.stage.send([ReadFile(op_id=op_id, path=path, **self.where)])
        found = await self.s.stage.until(
            lambda: self.said(FileOpened, op_id) or self.s.stage.ends.get(op_id), f"an answer about {path}"
        )
        assert isinstance(found, FileOpened | OutputEnd)
        return found

    async def take(self, op_id: int, offset: int, limit: int) -> Answer:
        self.s.stage.bases[op_id] = offset
        await self.s.stage.send([ReadRange(op_id=op_id, offset=offset, limit=limit)])
        end = await self.s.stage.until(lambda: self.s.stage.ends.get(op_id), "the end of a range")
        return Answer(None, bytes(self.s.stage.chunks.get(op_id, b"")), end)

    async def read(self, name: bytes) -> Answer:
        """A whole file, or why not."""
        opened = await self.open(name)
        if isinstance(opened, OutputEnd):
            return Answer(None, b"", opened)
        return (await self.take(opened.op_id, 0, opened.size))._replace(opened=opened)

    async def archive(self, path: str = "") -> Answer:
        op_id = self.s.stage.op_id()
        await self.s.stage.send([ReadArchive(op_id=op_id, path=path, **self.where)])
        end = await self.s.stage.until(lambda: self.s.stage.ends.get(op_id), "the end of an archive")
        return Answer(None, bytes(self.s.stage.chunks.pop(op_id, b"")), end)

    async def list(self, path: str = "") -> FileList | OutputEnd:
        op_id = self.s.stage.op_id()
        await self.s.stage.send(
            [ListFiles(op_id=op_id, path=path, recursive=True, after="", limit=1000, **self.where)]
        )
        found = await self.s.stage.until(
            lambda: self.said(FileList, op_id) or self.s.stage.ends.get(op_id), "a listing"
        )
        assert isinstance(found, FileList | OutputEnd)
        return found


async def files_of(s: Scene, script: str = "true") -> tuple[Files, Path]:
    """After a job that ran `script`."""
    await s.stage.send([s.stage.shell("j", script)])
    await s.stage.ended("j")
    return Files(s), s.run_dir("j")


@contextmanager
def meanwhile(turn: Callable[[], None]) -> Iterator[None]:
    """A thread that does something again and again."""
    ended = threading.Event()
    trouble: list[BaseException] = []

    def loop() -> None:
        try:
            while not ended.is_set():
                turn()
        except BaseException as exc:  # noqa: BLE001 - told below
            trouble.append(exc)

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    assert not trouble, trouble


@pytest.mark.timeout(300)
async def test_a_name_that_is_swapped_with_a_link_never_leads_outside(tmp_path: Path) -> None:
    """F056, S30: the file itself, then a directory on the way to it."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "name").write_bytes(SECRET)
    async with scene(tmp_path) as s:
        files, run = await files_of(s)
        (run / "dir").mkdir()
        (run / "dir/name").write_bytes(OWN)

        def swap_file() -> None:
            (run / "new").write_bytes(OWN)
            (run / "new").replace(run / "name")
            (run / "link").symlink_to(outside / "name")
            (run / "link").replace(run / "name")

        def swap_folder() -> None:
            (run / "dir").rename(run / "kept")
            (run / "dir").symlink_to(outside)
            (run / "dir").unlink()
            (run / "kept").rename(run / "dir")

        for swap, name in ((swap_file, b"name"), (swap_folder, b"dir/name")):
            seen: Counter[str] = Counter()
            swap()
            # Which of the two a look meets is up to the machine: go on until it has met both. A race that
            # does not take place at all ends by the time limit of the test.
            with meanwhile(swap):
                while seen.total() < RACES or min(seen["whole"], seen["link"]) <= ENOUGH:
                    answer = await files.read(name)
                    assert answer.data in (OWN, b""), answer
                    seen[answer.end.code or ("whole" if answer.data == OWN else "empty")] += 1
                    for held in (s.stage.ends, s.stage.chunks, s.stage.bases):
                        held.clear()
            print(name, dict(seen))
            assert set(seen) <= {"whole", "link", "not_found", "not_directory"}
        with meanwhile(swap_file), meanwhile(swap_folder):
            for _ in range(100):
                packed = await files.archive()
                assert not packed.end.error
                with zipfile.ZipFile(io.BytesIO(packed.data)) as archive:
                    assert archive.testzip() is None
                    assert SECRET not in [archive.read(info) for info in archive.infolist()]
                listed = await files.list()
                assert isinstance(listed, FileList)
        (agent,) = s.helpers("sj-agent")
        assert not [path for path in open_files(agent) if "outside" in path or path.startswith(str(run))]


async def test_what_is_no_file_of_the_job_is_refused_without_waiting(tmp_path: Path) -> None:
    (tmp_path / "outside").write_bytes(SECRET)
    async with scene(tmp_path) as s:
        script = f"mkfifo fifo; ln -s {tmp_path}/outside link; mkdir dir; ln -s . dot; ln -s /dev/zero zero"
        files, run = await files_of(s, script)
        expected = {b"fifo": "not_regular", b"link": "link", b"dir": "is_directory", b"none": "not_found"}
        expected |= {b"dot/stdout": "link", b"stdout/x": "not_directory", b"zero": "link"}
        if os.getuid() == 0:
            (run / "hard").hardlink_to(tmp_path / "outside")
            os.chown(tmp_path / "outside", 12345, 12345)
            os.mknod(run / "device", 0o600 | 0o020000, os.makedev(1, 5))
            expected |= {b"hard": "hard_link", b"device": "not_regular"}
        for name, code in expected.items():
            answer = await files.read(name)
            assert (answer.data, answer.end.code) == (b"", code), name
            assert answer.end.error
        packed = await files.archive()
        with zipfile.ZipFile(io.BytesIO(packed.data)) as archive:
            assert SECRET not in [archive.read(info) for info in archive.infolist()]
            skipped = archive.read("SKIPPED.txt").decode()
        for name in {name for name in expected if b"/" not in name} - {b"none", b"dir"}:
            assert f"{name.decode()}: " in skipped
        for path in ("..", "a/../..", "/etc", "%2e%2e"):
            op_id = s.stage.op_id()
            await s.stage.send([ReadFile(op_id=op_id, path=path, **files.where)])
            end = await s.stage.until(lambda op_id=op_id: s.stage.ends.get(op_id))
            assert end.code == "bad_path"


async def test_names_of_any_bytes(tmp_path: Path) -> None:
    names = [
        b"a\nb",
        b"quote\"'",
        b"\xff\xfe\n",
        b"%2e%2e",
        b"a b+c;d?e#f",
        "größe".encode(),
        b"...",
        b"-rf",
        b"~",
    ]
    async with scene(tmp_path) as s:
        files, run = await files_of(s)
        for name in names:
            (run / os.fsdecode(name)).write_bytes(name * 3)
        listed = await files.list()
        assert isinstance(listed, FileList)
        found = {b"/".join(run_path.parse(info.path)): info for info in listed.files}
        for name in names:
            answer = await files.read(name)
            assert answer.data == name * 3
            assert answer.opened is not None
            assert answer.opened.etag == found[name].etag


async def test_bytes_are_of_the_file_that_was_opened(tmp_path: Path) -> None:
    async with scene(tmp_path) as s:
        files, run = await files_of(s)
        (run / "f").write_bytes(OWN)
        opened = await files.open(b"f")
        assert isinstance(opened, FileOpened)
        (run / "other").write_bytes(SECRET)
        (run / "other").replace(run / "f")
        assert (await files.take(opened.op_id, 3, 5)).data == OWN[3:8]
        # one that becomes shorter is not padded
        opened = await files.open(b"f")
        assert isinstance(opened, FileOpened)
        os.truncate(run / "f", 10)
        answer = await files.take(opened.op_id, 0, 64)
        assert (answer.data, answer.end.code) == (SECRET[:10], "changed")
        # after a lost connection only the same file goes on
        op_id = s.stage.op_id()
        ask = ReadFile(op_id=op_id, path="f", etag=opened.etag, offset=5, limit=5, **files.where)
        await s.stage.send([ask])
        assert (await s.stage.until(lambda: s.stage.ends.get(op_id))).code == "changed"
        again = await files.open(b"f")
        assert isinstance(again, FileOpened)
        op_id = s.stage.op_id()
        s.stage.bases[op_id] = 5
        ask = ReadFile(op_id=op_id, path="f", etag=again.etag, offset=5, limit=5, **files.where)
        await s.stage.send([ask])
        await s.stage.until(lambda: s.stage.ends.get(op_id))
        assert bytes(s.stage.chunks[op_id]) == SECRET[5:10]
        await s.stage.send([StopReading(op_id=again.op_id)])


async def test_an_archive_waits_for_its_reader(tmp_path: Path) -> None:
    async with scene(tmp_path) as s:
        files, run = await files_of(s)
        data = os.urandom(8 << 20)
        (run / "big").write_bytes(data)
        s.stage.crediting = False
        op_id = s.stage.op_id()
        await s.stage.send([ReadArchive(op_id=op_id, path="", **files.where)])
        packed = b""
        while not (end := s.stage.ends.get(op_id)) or s.stage.chunks.get(op_id):
            await s.stage.until(lambda: s.stage.chunks.get(op_id) or s.stage.ends.get(op_id))
            held = s.stage.chunks.get(op_id, bytearray())
            assert len(held) <= WINDOW_BYTES
            packed += held
            count = len(held)
            s.stage.bases[op_id] = len(packed)
            held.clear()
            if count:
                await s.stage.send([Credit(op_id=op_id, count=count)])
        assert (end.error, end.offset) == ("", len(packed))
        with zipfile.ZipFile(io.BytesIO(packed)) as archive:
            assert archive.read("big") == data
