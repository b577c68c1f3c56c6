"""Crash images: what a crash may leave of the store, each opened and held against what was acknowledged.

A real store is written under strace. Its writes are played again up to each of them; then the image is taken
as a crash of the process leaves it (everything written is there), with the last write torn, and as a loss of
power leaves it (what was synced is there; of the rest any part, whole or torn). Each image must open, be
sound, hold every job that was acknowledged before, and none that was never written. `bin/crash-images`.
"""

import argparse
import random
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from sirepo_jobs.store import Store

_CALL = re.compile(r"^(?:\d+\s+)?(\w+)\((.*)$")
_NAMES = ("jobs.db", "jobs.db-wal")
_SECTOR = 512
_REPO = Path(__file__).parents[2]


class Step(NamedTuple):
    """One thing that the writer did, in order."""

    kind: str  # write | cut | gone | sync | acked
    name: str = ""
    offset: int = 0
    data: bytes = b""


def record(count: int, directory: Path) -> tuple[dict[str, bytes], list[Step]]:
    """The files before the first commit, and what was done to them by `count` commits."""
    root, log = directory / "root", directory / "strace.log"
    root.mkdir()
    # An empty store, made and closed: how that is done safely is told by the tests of the store.
    Store.open(f"sqlite:///{root}/jobs.db")._database.close()
    before = {name: (root / name).read_bytes() for name in _NAMES if (root / name).exists()}
    subprocess.run(
        ["strace", "-f", "-y", "-xx", "-s", "1000000", "-o", str(log), "-e",
         "trace=pwrite64,write,ftruncate,fsync,fdatasync,unlink,unlinkat",
         sys.executable, "-m", "tests.chaos.image_writer", str(root), str(count)],
        check=True, stdout=subprocess.DEVNULL, cwd=_REPO,
    )  # fmt: skip
    steps = [step for line in log.read_text().splitlines() for step in _step(line)]
    files = {name: bytearray(data) for name, data in before.items()}
    for step in steps:
        apply(files, step)
    # Whoever plays it again must come to the same files.
    for name, data in files.items():
        assert data == (root / name).read_bytes(), f"the record of {name} is not whole"
    return before, steps


def _step(line: str) -> Iterator[Step]:
    found = _CALL.match(line)
    if found is None:
        return
    call, rest = found.groups()
    words = re.findall(r'"((?:\\x[0-9a-f]{2})*)"', rest)
    data = bytes.fromhex(words[0].replace("\\x", "")) if words else b""
    path = re.match(r"\d+<((?:\\x[0-9a-f]{2})*|[^>]*)>", rest)
    name = _decoded(path[1]).rpartition("/")[2] if path else ""
    if call == "write" and data.startswith(b"acked "):
        yield Step("acked", offset=int(data.split()[1]))
    elif call in ("unlink", "unlinkat"):
        name = data.decode(errors="replace").rpartition("/")[2]
        if name in _NAMES:
            yield Step("gone", name)
    elif name in _NAMES:
        if call == "pwrite64":
            offset = re.search(r", (\d+)(?:\)| <unfinished)", rest)
            assert offset is not None, line[:200]
            yield Step("write", name, int(offset[1]), data)
        elif call == "ftruncate":
            size = re.search(r", (\d+)", rest)
            assert size is not None
            yield Step("cut", name, int(size[1]))
        elif call in ("fsync", "fdatasync"):
            yield Step("sync", name)


def _decoded(text: str) -> str:
    return bytes.fromhex(text.replace("\\x", "")).decode() if text.startswith("\\x") else text


def apply(files: dict[str, bytearray], step: Step) -> None:
    """Do the step to the files."""
    if step.kind == "gone":
        files.pop(step.name, None)
    elif step.kind in ("write", "cut"):
        held = files.setdefault(step.name, bytearray())
        end = step.offset + len(step.data)
        if len(held) < end:
            held.extend(bytes(end - len(held)))
        if step.kind == "cut":
            del held[step.offset :]
        else:
            held[step.offset : end] = step.data


def images(
    before: dict[str, bytes], steps: list[Step], rng: random.Random
) -> Iterator[tuple[str, dict[str, bytearray], int, int]]:
    """`(what, files, last acknowledged, last written)` of every crash."""
    files = {name: bytearray(data) for name, data in before.items()}
    synced = {name: bytearray(data) for name, data in before.items()}
    loose: list[Step] = []
    acked = 0
    last = max((step.offset for step in steps if step.kind == "acked"), default=0)
    for place, step in enumerate(steps):
        if step.kind == "acked":
            acked = step.offset
            continue
        if step.kind == "write":
            torn = {name: bytearray(data) for name, data in files.items()}
            cut = rng.randrange(0, len(step.data) + 1, 1 if rng.random() < 0.3 else _SECTOR)
            apply(torn, step._replace(data=step.data[:cut]))
            yield f"torn at {place}", torn, acked, last
        apply(files, step)
        if step.kind == "sync":
            for one in [one for one in loose if one.name == step.name]:
                apply(synced, one)
            loose = [one for one in loose if one.name != step.name]
        else:
            loose.append(step)
        yield f"killed at {place}", {name: bytearray(data) for name, data in files.items()}, acked, last
        lost = {name: bytearray(data) for name, data in synced.items()}
        for one in loose:
            if rng.random() < 0.6:
                keep = len(one.data)
                if rng.random() < 0.3:
                    keep = rng.randrange(0, keep + 1, _SECTOR)
                apply(lost, one._replace(data=one.data[:keep]))
        yield f"power lost at {place}", lost, acked, last


def look(files: dict[str, bytearray], acked: int, last: int, directory: Path) -> str:
    """What is wrong with an image; empty when nothing is."""
    root = Path(tempfile.mkdtemp(dir=directory))
    try:
        for name, data in files.items():
            (root / name).write_bytes(data)
        store = Store.open(f"sqlite:///{root}/jobs.db")
        store._database.close()
        with sqlite3.connect(f"file:{root}/jobs.db?mode=ro", uri=True) as db:
            sound = db.execute("pragma integrity_check").fetchone()[0]
            seqs = [row[0] for row in db.execute("select seq from jobs order by seq")]
            events = [row[0] for row in db.execute("select seq from events order by seq")]
            specs = [row[0] for row in db.execute("select seq from specs order by seq")]
        db.close()
    except Exception as exc:  # noqa: BLE001 - whatever it is, the image did not open
        return f"does not open: {type(exc).__name__}: {exc}"
    finally:
        shutil.rmtree(root)
    if sound != "ok":
        return f"not sound: {sound}"
    if seqs != list(range(1, len(seqs) + 1)) or seqs != events or seqs != specs:
        return f"half a commit: {len(seqs)} jobs, {len(events)} events, {len(specs)} specs"
    if not acked <= len(seqs) <= last:
        return f"acknowledged {acked}, written {last}, there are {len(seqs)}"
    return ""


def run(commits: int, seed: int, most: int | None = None) -> tuple[int, list[str]]:
    """How many images were looked at, and what was wrong."""
    shm = Path("/dev/shm")
    directory = Path(tempfile.mkdtemp(prefix="sji-", dir=shm if shm.is_dir() else None))
    rng = random.Random(seed)
    try:
        before, steps = record(commits, directory)
        share = 1.0 if most is None else most / (3 * len(steps))
        count, wrong = 0, []
        for what, files, acked, last in images(before, steps, rng):
            if rng.random() >= share:
                continue
            count += 1
            if trouble := look(files, acked, last, directory):
                wrong.append(f"{what}: {trouble}")
        return count, wrong
    finally:
        shutil.rmtree(directory)


def main() -> int:
    """As asked."""
    parser = argparse.ArgumentParser(description="Crash images of the store.")
    parser.add_argument("--commits", type=int, default=40)
    parser.add_argument("--most", type=int, help="only about so many of the images, by chance")
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    began = time.monotonic()
    count, wrong = run(asked.commits, asked.seed, asked.most)
    for line in wrong[:50]:
        print(line)
    secs = time.monotonic() - began
    print(f"{count} images of {asked.commits} commits, {len(wrong)} violations, {secs:.0f} s")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
