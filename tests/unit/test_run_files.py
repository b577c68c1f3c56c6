"""Paths, ranges, entity tags, listings and archives of a run dir, on a plain directory."""

import doctest
import io
import os
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sirepo_jobs import byte_range, run_path
from sirepo_jobs.agents import archive as archive_module
from sirepo_jobs.agents import listing
from sirepo_jobs.agents.archive import archive
from sirepo_jobs.api import files as api_files
from sirepo_jobs.api.files import content_type, disposition
from sirepo_jobs.byte_range import ByteRange, NoSuchRange
from sirepo_jobs.client import files as client_files
from sirepo_jobs.errors import BadInput
from sirepo_jobs.protocol import FileList, ListFiles, OutputEnd
from sirepo_jobs.run_tree import Refused, RunFiles, check_regular, etag_of, open_file, walk

NAMES = st.binary(min_size=1, max_size=30).filter(
    lambda name: name not in (b".", b"..") and not set(name) & set(b"\0/\\")
)
ODD = [
    b"a\nb",
    b"quote\"'",
    b"\xff\xfe",
    b"%2e%2e",
    b"a b+c;d",
    "größe".encode(),
    b"...",
    b"-rf",
    b"\x1b[31m",
]


@pytest.mark.parametrize("module", [run_path, byte_range, api_files, client_files])
def test_examples(module: ModuleType) -> None:
    result = doctest.testmod(module)
    assert (result.failed, result.attempted > 0) == (0, True)


@given(st.lists(NAMES, max_size=5))
def test_any_name_travels(names: list[bytes]) -> None:
    text = run_path.encode(names)
    assert text.isascii()
    assert run_path.parse(text) == tuple(names)


@pytest.mark.parametrize(
    "text",
    [
        "..", "a/..", "../a", "a/../b", ".", "./a", "/a", "a/", "a//b", "%2e%2e", "a/%2E%2e/b", "%2e", ".%2e",
        "a%2fb", "%2F", "a%00b", "%00", "a\\b", "a%5cb", "..%5c..", "a b", "a\nb", "é", "%", "%4", "%zz",
        "a?b", "a" * 256,
        "/".join(["a" * 250] * 20), "%61" * 300,
    ],
)  # fmt: skip
def test_ways_elsewhere_are_refused(text: str) -> None:
    with pytest.raises(BadInput) as caught:
        run_path.parse(text)
    assert caught.value.code == "bad_path"


def test_decoding_happens_once() -> None:
    assert run_path.parse("%252e%252e/%25") == (b"%2e%2e", b"%")
    assert run_path.encode((b"%2e%2e",)) == "%252e%252e"


@pytest.mark.parametrize(
    ("header", "size", "expected"),
    [
        ("", 10, (0, 10, True)),
        ("bytes=0-", 10, (0, 10, False)),
        ("bytes=0-0", 10, (0, 1, False)),
        ("bytes=9-", 10, (9, 1, False)),
        ("bytes=3-99", 10, (3, 7, False)),
        ("bytes=-3", 10, (7, 3, False)),
        ("bytes=-99", 10, (0, 10, False)),
        ("Bytes= 2-3 ", 10, (2, 2, False)),
        ("bytes=5-4", 10, (0, 10, True)),
        ("bytes=0-1,3-4", 10, (0, 10, True)),
        ("lines=0-1", 10, (0, 10, True)),
        ("bytes=a-b", 10, (0, 10, True)),
        ("bytes=-", 10, (0, 10, True)),
        ("bytes=" + "9" * 30 + "-", 10, (0, 10, True)),
        ("", 0, (0, 0, True)),
    ],
)
def test_ranges(header: str, size: int, expected: tuple[int, int, bool]) -> None:
    assert byte_range.wanted(header, size) == ByteRange(*expected)


@pytest.mark.parametrize(
    ("header", "size"), [("bytes=10-", 10), ("bytes=0-", 0), ("bytes=-0", 5), ("bytes=-5", 0)]
)
def test_ranges_behind_the_end(header: str, size: int) -> None:
    with pytest.raises(NoSuchRange) as caught:
        byte_range.wanted(header, size)
    assert caught.value.size == size


def test_entity_tags_of_requests() -> None:
    assert byte_range.matches('"a"', "a")
    assert byte_range.matches('"b", W/"a"', "a")
    assert not byte_range.matches("", "a")
    assert not byte_range.matches("a", "a")
    assert byte_range.is_current("", "a")
    assert byte_range.is_current('"a"', "a")
    assert not byte_range.is_current('W/"a"', "a"), "weak ones are not good for ranges"
    assert not byte_range.is_current("Sat, 29 Oct 1994 19:43:31 GMT", "a")


def test_headers_never_carry_what_a_name_holds() -> None:
    for name in ODD:
        text = disposition(name)
        assert text.isascii()
        assert text.isprintable()
        assert text.count('"') == 2
    assert disposition("größe.txt".encode()).endswith("filename*=UTF-8''gr%C3%B6%C3%9Fe.txt")
    assert content_type(b"x.HTML") == "text/html; charset=utf-8"
    assert content_type(b"json") == "application/octet-stream"


def test_an_entity_tag_tells_files_apart(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"one")
    first = etag_of(file.stat())
    assert etag_of(file.stat()) == first
    os.utime(file, ns=(1, 1))
    second = etag_of(file.stat())
    (tmp_path / "b").write_bytes(b"one")
    os.utime(tmp_path / "b", ns=(1, 1))
    assert len({first, second, etag_of((tmp_path / "b").stat())}) == 3


def test_hard_links_of_others_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    info = (tmp_path / "a").stat()
    check_regular(info, b"a", info.st_uid + 1)  # one name only: no link
    (tmp_path / "b").hardlink_to(tmp_path / "a")
    info = (tmp_path / "a").stat()
    check_regular(info, b"a", info.st_uid)
    with pytest.raises(Refused) as caught:
        check_regular(info, b"a", info.st_uid + 1)
    assert caught.value.code == "hard_link"


def test_what_stands_in_the_way_has_a_code(tmp_path: Path) -> None:
    (tmp_path / "run/dir").mkdir(parents=True)
    (tmp_path / "run/file").write_text("x")
    (tmp_path / "run/link").symlink_to(tmp_path / "run/file")
    (tmp_path / "run/dirlink").symlink_to(tmp_path / "run/dir")
    os.mkfifo(tmp_path / "run/fifo")
    before = len(os.listdir("/proc/self/fd"))
    top = RunFiles(str(tmp_path)).run_dir("run")
    for name, code in ((b"link", "link"), (b"dir", "is_directory"), (b"fifo", "not_regular")):
        with pytest.raises(Refused) as caught:
            open_file(top, name, owner=0)
        assert caught.value.code == code
    for parts, code in (
        ((b"dirlink",), "link"),
        ((b"file", b"x"), "not_directory"),
        ((b"link", b"x"), "link"),
    ):
        with pytest.raises(Refused) as caught:
            walk(top, parts)
        assert caught.value.code == code
    with pytest.raises(FileNotFoundError):
        walk(top, (b"dir", b"none"))
    os.close(top)
    assert len(os.listdir("/proc/self/fd")) <= before + 1  # the root stays open


# -- listings


def look(
    root: Path, path: str = "", *, recursive: bool = True, after: str = "", limit: int = 1000
) -> FileList:
    ask = ListFiles(
        jid="j",
        serial=1,
        attempt=1,
        op_id=1,
        run_dir="run",
        path=path,
        recursive=recursive,
        after=after,
        limit=limit,
    )
    found = listing.answer(RunFiles(str(root)), ask)
    assert isinstance(found, FileList), found
    return found


def fill(root: Path) -> Path:
    """A run dir with a little of everything."""
    run = root / "run"
    for folder in ("a/b/c", "z", "empty"):
        (run / folder).mkdir(parents=True)
    for name in ("a/1", "a/b/2", "a/b/c/3", "a-b", "z/9", "top"):
        (run / name).write_text(name * 50)
    for name in ODD:
        (Path(os.fsdecode(os.fsencode(run) + b"/" + name))).write_bytes(name)
    (run / "link").symlink_to("/etc/passwd")
    (run / "folder").symlink_to("/etc")
    os.mkfifo(run / "fifo")
    return run


def paths(found: FileList) -> list[str]:
    return [info.path for info in found.files]


def test_a_listing_has_everything_once_at_any_page_size(tmp_path: Path) -> None:
    run = fill(tmp_path)
    expected = {
        run_path.encode(os.fsencode(os.path.join(folder, name))[len(os.fsencode(run)) + 1 :].split(b"/"))
        for folder, folders, files in os.walk(run)
        for name in (*folders, *files)
    }
    whole = paths(look(tmp_path))
    assert len(whole) == len(expected)
    assert set(whole) == expected
    assert whole.index("a") < whole.index("a/b") < whole.index("a/b/2") < whole.index("z")
    for size in (1, 2, 3, 7):
        seen: list[str] = []
        while (page := look(tmp_path, after=seen[-1] if seen else "", limit=size)).files:
            assert len(page.files) <= size
            seen += paths(page)
            assert page.more == (len(seen) < len(whole))
        assert seen == whole


def test_kinds_and_parts_of_a_listing(tmp_path: Path) -> None:
    fill(tmp_path)
    found = {info.path: info for info in look(tmp_path).files}
    assert {found[name].kind for name in ("top", "a/1")} == {"file"}
    assert (found["a"].kind, found["link"].kind, found["folder"].kind) == ("directory", "link", "link")
    assert found["fifo"].kind == "fifo"
    assert (found["top"].size, bool(found["top"].etag), found["link"].etag) == (150, True, "")
    assert paths(look(tmp_path, "a", recursive=False)) == ["a/1", "a/b"]
    assert paths(look(tmp_path, "a/b")) == ["a/b/2", "a/b/c", "a/b/c/3"]
    assert paths(look(tmp_path, "a", after="a/b/2")) == ["a/b/c", "a/b/c/3"]
    assert paths(look(tmp_path, "empty")) == []


def test_a_cursor_outlives_what_it_names(tmp_path: Path) -> None:
    run = fill(tmp_path)
    (run / "a/b/2").unlink()
    assert paths(look(tmp_path, "a", after="a/b/2")) == ["a/b/c", "a/b/c/3"]
    assert paths(look(tmp_path, after="%FF%FE")) == []


def test_too_deep_is_said(tmp_path: Path) -> None:
    path = tmp_path / "run"
    for _ in range(listing.MAX_DEPTH + 5):
        path = path / "d"
    path.mkdir(parents=True)
    found = look(tmp_path).files
    assert len(found) == listing.MAX_DEPTH + 1
    assert "too deep" in found[-1].note
    assert paths(look(tmp_path, found[-1].path))[0] == f"{found[-1].path}/d"


@pytest.mark.parametrize(
    ("path", "after", "code"),
    [
        ("none", "", "not_found"),
        ("folder", "", "link"),
        ("top", "", "not_directory"),
        ("a/..", "", "bad_path"),
        ("a", "z/9", "bad_cursor"),
    ],
)
def test_listings_that_are_refused(tmp_path: Path, path: str, after: str, code: str) -> None:
    fill(tmp_path)
    ask = ListFiles(
        jid="j", serial=1, attempt=1, op_id=1, run_dir="run", path=path, recursive=True, after=after, limit=9
    )
    before = len(os.listdir("/proc/self/fd"))
    answer = listing.answer(RunFiles(str(tmp_path)), ask)
    assert isinstance(answer, OutputEnd)
    assert answer.code == code
    assert len(os.listdir("/proc/self/fd")) <= before + 1


# -- archives


def packed(run: Path) -> zipfile.ZipFile:
    handle = os.open(run, os.O_PATH)
    try:
        data = b"".join(archive(handle, os.getuid()))
    finally:
        os.close(handle)
    return zipfile.ZipFile(io.BytesIO(data))


def raw_name(info: zipfile.ZipInfo) -> bytes:
    """What stands in the archive: names that are no UTF-8 carry no flag and are read as cp437."""
    return info.orig_filename.encode("utf-8" if info.flag_bits & 0x800 else "cp437")


def test_an_archive_is_the_tree(tmp_path: Path) -> None:
    run = fill(tmp_path)
    (run / "big").write_bytes(os.urandom(1_000_000) + bytes(5_000_000))
    (run / "none").touch()
    with packed(run) as found:
        assert found.testzip() is None
        names = {raw_name(info): info for info in found.infolist()}
        for folder, folders, files in os.walk(os.fsencode(run)):
            for name in files:
                path = os.path.join(folder, name)
                if os.path.islink(path) or not os.path.isfile(path):
                    continue
                with found.open(names.pop(path[len(os.fsencode(run)) + 1 :])) as inside:
                    assert inside.read() == Path(os.fsdecode(path)).read_bytes()
            for name in folders:
                path = os.path.join(folder, name)
                assert os.path.islink(path) or names.pop(path[len(os.fsencode(run)) + 1 :] + b"/")
        assert list(names) == [b"SKIPPED.txt"]
        assert found.infolist()[-1].filename == "SKIPPED.txt"
        skipped = found.read("SKIPPED.txt").decode().splitlines()
        assert sorted(line.partition(":")[0] for line in skipped) == ["fifo", "folder", "link"]
        assert found.getinfo("top").external_attr >> 16 == (run / "top").stat().st_mode


def test_an_archive_without_anything_to_skip(tmp_path: Path) -> None:
    assert packed(tmp_path).namelist() == []
    (tmp_path / "SKIPPED.txt").write_text("mine")
    assert packed(tmp_path).namelist() == ["SKIPPED.txt"]
    (tmp_path / "back\\slash").write_text("x")
    found = packed(tmp_path)
    assert sorted(found.namelist()) == ["SKIPPED.1.txt", "SKIPPED.txt"]
    assert found.read("SKIPPED.txt") == b"mine"
    assert b"backslash" in found.read("SKIPPED.1.txt")


def test_large_archives_have_large_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every 64-bit field, without four gigabytes: the limit is made small."""
    monkeypatch.setattr(archive_module, "_LARGE", 1000)
    for name in ("a", "b", "c"):
        (tmp_path / name).write_bytes(name.encode() * 5000 + os.urandom(5000))
    (tmp_path / "small").write_text("s")
    with packed(tmp_path) as found:
        assert found.testzip() is None
        for name in ("a", "b", "c", "small"):
            assert found.read(name) == (tmp_path / name).read_bytes()


def test_many_entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than 65,535 need the other end record; and there is a limit."""
    for number in range(300):
        (tmp_path / f"{number:03}").touch()
    monkeypatch.setattr(archive_module, "MAX_ENTRIES", 200)
    with packed(tmp_path) as found:
        assert len(found.namelist()) == 201
        assert len(found.read("SKIPPED.txt").splitlines()) == 100


def test_a_file_that_shrinks_while_it_is_packed_is_named(tmp_path: Path) -> None:
    (tmp_path / "shrinks").write_bytes(os.urandom(1 << 20))
    handle = os.open(tmp_path, os.O_PATH)
    pieces = archive(handle, os.getuid())
    data = next(pieces) + next(pieces)
    os.truncate(tmp_path / "shrinks", 200_000)
    data += b"".join(pieces)
    os.close(handle)
    with zipfile.ZipFile(io.BytesIO(data)) as found:
        assert found.testzip() is None
        assert b"became shorter" in found.read("SKIPPED.txt")


def test_an_archive_that_nobody_wants_any_more_leaves_nothing_open(tmp_path: Path) -> None:
    run = fill(tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    handle = os.open(run, os.O_PATH)
    pieces = archive(handle, os.getuid())
    for _ in range(5):
        next(pieces)
    pieces.close()
    os.close(handle)
    assert len(os.listdir("/proc/self/fd")) == before
