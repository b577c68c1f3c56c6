"""Files of run dirs, over the real thing: what HTTP promises, downloads that are cut, archives, memory."""

import contextlib
import hashlib
import json
import os
import select
import socket
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import urllib3

from sirepo_jobs.client import Client, Job
from sirepo_jobs.errors import BadInput, Conflict, Forbidden, NotFound
from tests.on_disk import place_of

from .conftest import System, eventually, sha256

pytestmark = pytest.mark.timeout(300)

SCRIPT = r"""
mkdir -p sub/deep empty; printf 0123456789 > ten; printf inside > sub/deep/file; : > none
printf x > "$(printf 'a\nb"\377')"; printf '<script>' > page.html; ln -s /etc/passwd link; mkfifo fifo
"""


def ran(system: System, script: str) -> tuple[Client, Job, Path]:
    """A job that has run, and its run dir."""
    client = system.client()
    job = client.wait(client.submit({"command": ["sh", "-c", script]}).jid, timeout=100)
    assert job.exit_code == 0
    assert job.run_dir is not None
    return client, job, Path(job.run_dir)


@pytest.fixture(scope="module")
def filled(system: System) -> tuple[Client, Job, Path]:
    return ran(system, SCRIPT)


def ask(system: System, jid: str, rest: str, method: str = "GET", **headers: str) -> urllib3.BaseHTTPResponse:
    """One request, the path as it is: urllib3 would take `..` out."""
    place = urlsplit(system.url)
    pool = urllib3.HTTPConnectionPool(place.hostname, place.port, retries=False, timeout=60)
    token = (system.root / "token").read_text().strip()
    words = {name.replace("_", "-"): value for name, value in headers.items()}
    with contextlib.closing(pool):
        return pool.urlopen(
            method, f"/api/v1/jobs/{jid}/files{rest}", headers={"Authorization": f"Bearer {token}", **words}
        )


def test_a_log_is_read_where_it_lies(system: System) -> None:
    """Decision 10: the supervisor names the place of a local job's output, and it can be opened there."""
    client, job, run_dir = ran(system, "echo here")
    assert b"".join(client.logs(job.jid)) == b"here\n"
    place = place_of(system.root, job.jid, job.user)
    assert place is not None
    assert f"{place.run_root}/{place.run_dir}" == str(run_dir)
    with os.fdopen(place.open(), "rb") as output:
        assert output.read() == b"here\n"


def test_ranges_and_conditions(system: System, filled: tuple[Client, Job, Path]) -> None:
    jid = filled[1].jid
    whole = ask(system, jid, "/ten")
    assert (whole.status, whole.data, whole.headers["Accept-Ranges"]) == (200, b"0123456789", "bytes")
    etag = whole.headers["ETag"]
    for header, data, where in (
        ("bytes=2-4", b"234", "2-4"),
        ("bytes=7-", b"789", "7-9"),
        ("bytes=-3", b"789", "7-9"),
        ("bytes=0-99", b"0123456789", "0-9"),
    ):
        part = ask(system, jid, "/ten", Range=header, If_Range=etag)
        assert (part.status, part.data) == (206, data)
        assert part.headers["Content-Range"] == f"bytes {where}/10"
        assert part.headers["ETag"] == etag
    for header, words in ((" ", {}), ("bytes=0-1,4-5", {}), ("bytes=2-4", {"If_Range": '"other"'})):
        assert ask(system, jid, "/ten", Range=header, **words).status == 200
    for rest in ("/ten", "/none"):
        beyond = ask(system, jid, rest, Range="bytes=10-")
        size = "10" if rest == "/ten" else "0"
        assert (beyond.status, beyond.headers["Content-Range"]) == (416, f"bytes */{size}")
        assert json.loads(beyond.data)["code"] == "range_not_satisfiable"
    same = ask(system, jid, "/ten", If_None_Match=f'"x", {etag}')
    assert (same.status, same.data, same.headers["ETag"]) == (304, b"", etag)
    assert ask(system, jid, "/ten", If_None_Match='"x"').status == 200
    head = ask(system, jid, "/ten", "HEAD")
    assert (head.status, head.data, head.headers["Content-Length"]) == (200, b"", "10")
    assert head.headers["ETag"] == etag
    empty = ask(system, jid, "/none")
    assert (empty.status, empty.data) == (200, b"")


def test_what_a_job_wrote_is_never_active(system: System, filled: tuple[Client, Job, Path]) -> None:
    """S18, S34."""
    jid = filled[1].jid
    for rest, kind in (
        ("/page.html", "text/html; charset=utf-8"),
        ("/ten", "application/octet-stream"),
        ("/a%0Ab%22%FF", "application/octet-stream"),
        ("?archive=zip", "application/zip"),
    ):
        answer = ask(system, jid, rest)
        assert answer.status == 200, rest
        headers = answer.headers
        assert headers["Content-Type"] == kind
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert "sandbox" in headers["Content-Security-Policy"]
        assert headers["Content-Disposition"].startswith("attachment; filename=")
        assert headers["Content-Disposition"].isprintable()


def test_ways_elsewhere_end_at_the_door(system: System, filled: tuple[Client, Job, Path]) -> None:
    jid = filled[1].jid
    for rest in (
        "/..", "/../2", "/%2e%2e/%2e%2e", "/sub/../ten", "/sub//deep", "//etc/passwd", "/sub/", "/%2fetc",
        "/ten%00", "/sub%5cdeep", "/a\\b", "/.", "/" + "a" * 300,
    ):  # fmt: skip
        answer = ask(system, jid, rest)
        assert (answer.status, json.loads(answer.data)["code"]) == (422, "bad_path"), rest
    for rest, status, code in (
        ("/link", 403, "file_is_link"),
        ("/link/x", 403, "file_is_link"),
        ("/fifo", 403, "not_a_regular_file"),
        ("/nothing", 404, "no_such_file"),
        ("/ten/x", 409, "not_a_directory"),
        ("/ten?archive=zip", 409, "not_a_directory"),
        ("/ten?attempt=7", 404, "no_such_attempt"),
        ("?archive=tar", 422, "bad_parameter"),
        ("?cursor=x", 422, "bad_input"),
        ("/%252e%252e", 404, "no_such_file"),
    ):
        answer = ask(system, jid, rest)
        assert (answer.status, json.loads(answer.data)["code"]) == (status, code), rest
    missing = ask(system, "0" * 26, "/ten")
    assert (missing.status, json.loads(missing.data)["code"]) == (404, "job_not_found")


def test_the_listing_is_the_tree(filled: tuple[Client, Job, Path]) -> None:
    client, job, run = filled
    expected = {
        os.path.relpath(os.path.join(folder, name), run)
        for folder, folders, files in os.walk(run)
        for name in (*folders, *files)
    }
    found = {file.os_path: file for file in client.files(job.jid)}
    assert found.keys() == expected
    assert (found["ten"].size, found["ten"].kind, found["fifo"].kind) == (10, "file", "fifo")
    assert {file.os_path for file in client.files(job.jid, "sub")} == {"sub/deep", "sub/deep/file"}
    assert {file.path for file in client.files(job.jid, "sub", recursive=False)} == {"sub/deep"}
    assert list(client.files(job.jid, "empty")) == []
    odd = next(file for file in found.values() if file.path.startswith("a\n"))
    assert client.read_file(job.jid, odd) == client.read_file(job.jid, odd.os_path) == b"x"
    assert client.read_file(job.jid, "ten", offset=3, length=4) == b"3456"
    assert client.read_file(job.jid, "ten", offset=8) == b"89"
    with pytest.raises(BadInput, match="directory"):
        client.read_file(job.jid, "sub")
    with pytest.raises(Forbidden, match="symbolic link"):
        client.read_file(job.jid, "link")
    with pytest.raises(NotFound):
        list(client.files(job.jid, "nothing"))


def test_the_archive_is_the_tree(filled: tuple[Client, Job, Path], tmp_path: Path) -> None:
    client, job, run = filled
    place = client.download_archive(job.jid, tmp_path / "all.zip")
    assert [path.name for path in tmp_path.iterdir()] == ["all.zip"]
    with zipfile.ZipFile(place) as archive:
        assert archive.testzip() is None
        names = {
            info.orig_filename.encode("utf-8" if info.flag_bits & 0x800 else "cp437"): info
            for info in archive.infolist()
        }
        skipped = archive.read(names.pop(b"SKIPPED.txt")).decode()
        for folder, folders, files in os.walk(os.fsencode(run)):
            for name in (*folders, *files):
                path = os.path.join(folder, name)
                inside = os.path.relpath(path, os.fsencode(run))
                if os.path.islink(path) or name == b"fifo":
                    assert f"{name.decode()}: " in skipped
                elif os.path.isdir(path):
                    names.pop(inside + b"/")
                else:
                    assert archive.read(names.pop(inside)) == Path(os.fsdecode(path)).read_bytes()
        assert not names
    with zipfile.ZipFile(client.download_archive(job.jid, tmp_path / "sub.zip", "sub")) as archive:
        assert sorted(archive.namelist()) == ["deep/", "deep/file"]


def test_files_of_a_job_that_has_not_started(system: System) -> None:
    client = system.client()
    blockers = client.submit([{"command": ["sleep", "60"]}] * (os.cpu_count() or 1) * 4)
    waiting = client.submit({"command": ["true"]})
    assert list(client.files(waiting.jid)) == []
    with pytest.raises(NotFound, match="not started"):
        client.read_file(waiting.jid, "stdout")
    for job in (*blockers, waiting):
        client.cancel(job.jid)
    for job in (*blockers, waiting):
        client.wait(job.jid, timeout=60)


def test_last_is_the_newest_job_for_its_files_too(system: System) -> None:
    """`files last` and `get last` said that there is no job 'last'."""
    ran(system, "printf newest > out")
    assert b"out" in system.cli("files", "last").stdout
    assert system.cli("get", "last", "out", "-").stdout == b"newest"


def test_files_of_a_running_job(system: System) -> None:
    client = system.client()
    script = "echo $SIREPO_JOBS_ATTEMPT > mine; while [ ! -e end ]; do sleep 0.05; done"
    job = client.submit({"command": ["sh", "-c", script]})
    eventually(lambda: any(file.path == "mine" and file.size for file in client.files(job.jid)))
    assert client.read_file(job.jid, "mine", attempt=1) == b"1\n"
    run = Path(client.get(job.jid).run_dir or "")
    (run / "end").touch()
    client.wait(job.jid)
    assert client.read_file(job.jid, "mine") == b"1\n"


def test_an_agent_that_is_gone_is_brought_first(own_system: System) -> None:
    client, job, _ = ran(own_system, "printf still > here")
    own_system.down("--stop-agents")
    assert own_system.agents() == []
    own_system.up()
    client = own_system.client()
    assert client.read_file(job.jid, "here") == b"still"


class Cutter:
    """A way to the front end that breaks off its connections after so many bytes, one after the other."""

    def __init__(self, url: str, sizes: list[int]) -> None:
        self._place = urlsplit(url)
        self._sizes = sizes
        self._door = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._door.getsockname()[1]}"
        self.cuts = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        """One connection at a time: a download has no more."""
        while True:
            near, _ = self._door.accept()
            if self._ended.is_set():
                near.close()
                return
            far = socket.create_connection((self._place.hostname, self._place.port))
            with near, far:
                self._pass(near, far, self._sizes.pop(0) if self._sizes else 1 << 60)

    def _pass(self, near: socket.socket, far: socket.socket, limit: int) -> None:
        with contextlib.suppress(OSError):
            while not self._ended.is_set():
                for source in select.select([near, far], [], [], 0.05)[0]:
                    data = source.recv(65536 if source is near else min(65536, limit))
                    if not data:
                        return
                    (far if source is near else near).sendall(data)
                    limit -= len(data) if source is far else 0
                    if limit <= 0:
                        self.cuts += 1
                        return

    def close(self) -> None:
        self._ended.set()
        with socket.create_connection(self._door.getsockname()):
            self._thread.join()
        self._door.close()


def test_a_download_that_is_cut_goes_on_at_the_right_byte(system: System, tmp_path: Path) -> None:
    """F148, I15."""
    _, job, run = ran(system, "head -c 5000000 /dev/urandom > big")
    token = (system.root / "token").read_text().strip()
    cutter = Cutter(system.url, [100, 1, 700_000, 1_234_567, 5, 2_000_000])
    seen: list[tuple[int, int | None]] = []
    try:
        client = Client(cutter.url, token, patience_secs=30)
        place = client.download(job.jid, "big", tmp_path / "big", progress=lambda *told: seen.append(told))
    finally:
        cutter.close()
    assert cutter.cuts >= 6
    assert place.read_bytes() == (run / "big").read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["big"]
    assert seen == sorted(seen)
    assert seen[-1] == (5_000_000, 5_000_000)


def test_a_download_goes_on_in_another_process_unless_the_file_has_changed(
    system: System, tmp_path: Path
) -> None:
    client, job, run = ran(system, "head -c 3000000 /dev/urandom > big")

    def stop_at(size: int) -> None:
        def progress(here: int, total: int | None) -> None:
            if here >= size:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            client.download(job.jid, "big", tmp_path / "big", progress=progress)

    stop_at(1_000_000)
    (part,) = tmp_path.iterdir()
    assert part.name.endswith(".part")
    kept = part.stat().st_size
    assert 1_000_000 <= kept < 3_000_000
    first: list[int] = []
    client.download(job.jid, "big", tmp_path / "big", progress=lambda here, _: first.append(here))
    assert first[0] == kept, "it went on, it did not begin anew"
    assert (tmp_path / "big").read_bytes() == (run / "big").read_bytes()
    (tmp_path / "big").unlink()
    stop_at(1_000_000)
    (run / "big").write_bytes(os.urandom(2_000_000))
    system.cli("get", job.jid, "big", str(tmp_path))
    assert (tmp_path / "big").read_bytes() == (run / "big").read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["big"]


def test_one_download_at_a_time_for_a_place(system: System, tmp_path: Path) -> None:
    client, job, _ = ran(system, "head -c 3000000 /dev/urandom > big")

    def progress(here: int, total: int | None) -> None:
        with pytest.raises(Conflict, match="somebody else"):
            client.download(job.jid, "big", tmp_path / "big")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        client.download(job.jid, "big", tmp_path / "big", progress=progress)


def test_a_file_that_shrinks_while_it_is_sent_is_cut_and_not_padded(system: System) -> None:
    client, job, run = ran(system, "head -c 60000000 /dev/zero > big")
    client.transport.patience_secs = 0
    pieces = client.stream_file(job.jid, "big")
    next(pieces)
    os.truncate(run / "big", 1000)
    with pytest.raises(Exception, match=r"broke|changed"):
        for _ in pieces:
            pass
    assert pieces.offset < 60_000_000


def test_the_command_line(system: System, filled: tuple[Client, Job, Path], tmp_path: Path) -> None:
    jid = filled[1].jid
    listed = json.loads(system.cli("files", jid, "-o", "json").stdout)
    assert {"ten", "sub/deep/file"} <= {file["path"] for file in listed}
    table = system.cli("files", jid).stdout.decode()
    assert "a\\nb" in table, "a name does not break the table"
    assert system.cli("get", jid, "ten", "-").stdout == b"0123456789"
    system.cli("get", jid, "sub/deep/file", cwd=tmp_path)
    assert (tmp_path / "file").read_bytes() == b"inside"
    told = json.loads(system.cli("get", jid, "--all", f"{tmp_path}/a.zip", "-o", "json").stdout)
    assert told["size"] == (tmp_path / "a.zip").stat().st_size
    for words, status in ((("link",), 4), (("nothing",), 3), (("../x",), 2), ((), 2), (("sub",), 2)):
        done = system.cli("get", jid, *words, check=False, cwd=tmp_path)
        assert done.returncode == status, done.stderr
        assert done.stderr.startswith(b"error: ")


def test_three_hundred_megabytes_with_little_memory(own_system: System, tmp_path: Path) -> None:
    """C16: supervisor, front end and agent grow by less than 32 MB each; plain, and as an archive."""
    program = "import os\nwith open('big', 'wb') as f:\n for i in range(300): f.write(os.urandom(1000)*1000)"
    client = own_system.client()
    job = client.wait(client.submit({"command": ["python3", "-c", program]}).jid, timeout=100)
    run = Path(job.run_dir or "")
    client.read_file(job.jid, "exit.json")  # warm
    list(client.files(job.jid))
    pids = {own_system.pid("supervisor"), own_system.pid("frontend"), *(p.pid for p in own_system.agents())}
    before = {pid: own_system.rss(pid) for pid in pids}
    peak = dict(before)

    def measured(pieces: Iterator[bytes]) -> Iterator[bytes]:
        for number, piece in enumerate(pieces):
            if number % 50 == 0:
                for pid in pids:
                    peak[pid] = max(peak[pid], own_system.rss(pid))
            yield piece

    with (run / "big").open("rb") as file:
        expected = hashlib.file_digest(file, "sha256").hexdigest()
    begin = time.monotonic()
    assert sha256(measured(client.stream_file(job.jid, "big"))) == (300_000_000, expected)
    plain = time.monotonic() - begin
    begin = time.monotonic()
    ticks = iter(range(1 << 30))

    def progress(here: int, total: int | None) -> None:
        if next(ticks) % 10 == 0:
            for pid in pids:
                peak[pid] = max(peak[pid], own_system.rss(pid))

    with zipfile.ZipFile(
        client.download_archive(job.jid, tmp_path / "all.zip", progress=progress)
    ) as archive:
        packed = time.monotonic() - begin
        with archive.open("big") as file:
            assert sha256(iter(lambda: file.read(1 << 20), b"")) == (300_000_000, expected)
    grown = {pid: round((peak[pid] - before[pid]) / 1e6, 1) for pid in pids}
    print(f"{300 / plain:.0f} MB/s plain, {300 / packed:.0f} MB/s packed, grown MB: {grown}")
    assert max(grown.values()) < 32


def test_an_agent_that_is_killed_while_it_sends(system: System) -> None:
    """The same file goes on at the next byte; nobody notices but the clock."""
    client, job, run = ran(system, "head -c 60000000 /dev/urandom > big")
    pieces = client.stream_file(job.jid, "big")
    data = [next(pieces)]
    for process in system.agents():
        if process.name() == "sj-agent":
            process.kill()
    data += pieces
    assert b"".join(data) == (run / "big").read_bytes()
