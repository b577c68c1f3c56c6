"""What is particular to a SQLite file: who may open it, what is refused, and how it is asked."""

# ruff: noqa: ASYNC240 - a test has no loop to hold up

import asyncio
import os
import re
import shutil
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from msgspec.structs import replace
from sqlalchemy import event, make_url

from sirepo_jobs.errors import Error, StoreError, StoreLocked, Unavailable
from sirepo_jobs.job import State
from sirepo_jobs.store import JobQuery, Store, sqlite, statements
from sirepo_jobs.store.postgres import PGDialect_psycopg
from tests.unit.test_store import a_stored, accepting, changing, opened

ROOT = Path(__file__).parents[2]

#: Opens the store at argv[1], says so, and keeps it until it is killed or its input ends.
HOLD = """
import sys
from sirepo_jobs.errors import StoreLocked
from sirepo_jobs.store import Store
try:
    store = Store.open(sys.argv[1])
except StoreLocked as exc:
    print("refused", exc, flush=True)
else:
    print("holds", store.epoch, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.db"


@pytest.fixture
def url(path: Path) -> str:
    return f"sqlite:///{path}"


def holder(url: str, cwd: Path = ROOT) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def end(*processes: subprocess.Popen[str]) -> None:
    for process in processes:
        process.kill()
        process.communicate()


async def filled(url: str, *, jobs: int = 3) -> None:
    async with opened(url) as it:
        it.store.submit(accepting(*(a_stored(seq) for seq in range(1, jobs + 1))))
        await it.store.flushed()


async def crashed(path: Path, *, jobs: int = 3) -> None:
    """Leave at `path` what a process that was killed leaves: database, log, and who held them."""
    aside = path.with_name("live.db")
    async with opened(f"sqlite:///{aside}") as it:
        it.store.submit(accepting(*(a_stored(seq) for seq in range(1, jobs + 1))))
        await it.store.flushed()
        for ending in ("", "-wal"):
            shutil.copy(f"{aside}{ending}", f"{path}{ending}")


# -- the lock


async def test_the_second_is_told_who_the_first_is(url: str, path: Path) -> None:
    first = holder(url)
    try:
        assert said(first) == "holds 1\n"
        with pytest.raises(StoreLocked, match=rf"pid {first.pid} on \S+ since 20\d\d-"):
            Store.open(url)
        # nothing of the first was touched
        assert f'"pid":{first.pid}' in path.with_name("jobs.db.lock").read_text()
    finally:
        end(first)
    async with opened(url) as it:
        assert it.store.epoch == 2


async def test_other_paths_to_the_same_file_meet_the_same_lock(tmp_path: Path) -> None:
    real = tmp_path / "real"
    real.mkdir()
    (tmp_path / "alias").symlink_to(real)
    (tmp_path / "link.db").symlink_to(real / "jobs.db")
    async with opened(f"sqlite:///{real}/jobs.db"):
        for other in (f"{tmp_path}/alias/jobs.db", f"{tmp_path}/link.db", f"{real}/../real/./jobs.db"):
            with pytest.raises(StoreLocked):
                Store.open(f"sqlite:///{other}")
        relative = holder("sqlite:///jobs.db", cwd=real)
        assert said(relative).startswith("refused")
        end(relative)


async def test_a_lock_file_that_was_left_behind_is_no_lock(url: str, path: Path) -> None:
    path.with_name("jobs.db.lock").write_text('{"pid":1,"host":"gone","since":"2020"}')
    async with opened(url):
        pass
    assert path.with_name("jobs.db.lock").read_text() == ""


# -- opening


async def test_files_are_private(url: str, path: Path) -> None:
    async with opened(url):
        found = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    assert found == dict.fromkeys(["jobs.db", "jobs.db-wal", "jobs.db-shm", "jobs.db.lock"], 0o600)


async def test_settings_of_the_writer_and_the_readers(url: str) -> None:
    async with opened(url) as it:
        database = it.store._database

        def setting(name: str) -> Any:
            return database.fetch(f"PRAGMA {name}")[0]

        assert setting("journal_mode") == "wal"
        assert setting("synchronous") == 2  # FULL
        assert setting("foreign_keys") == 1
        assert setting("wal_autocheckpoint") == 0
        assert setting("mmap_size") == 0
        with it.store._reader._engine.connect() as reader, pytest.raises(Exception, match="readonly"):
            reader.exec_driver_sql("DELETE FROM jobs")


async def test_a_missing_database_beside_its_log_is_not_replaced(url: str, path: Path) -> None:
    await crashed(path)
    path.unlink()
    for init in (True, False):
        with pytest.raises(StoreError):
            Store.open(url, init=init)
    assert not path.exists()


async def test_a_missing_database_beside_its_lock_needs_init(url: str, path: Path) -> None:
    await filled(url)
    path.unlink()
    with pytest.raises(StoreError, match="--init"):
        Store.open(url, init=False)
    assert not path.exists()


async def test_what_is_no_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "text").write_text("hello" * 1000)
    with sqlite3.connect(tmp_path / "other") as other:
        other.execute("CREATE TABLE jobs (x)")
    other.close()
    (tmp_path / "directory").mkdir()
    for name in ("empty", "text", "other", "directory", "absent/jobs.db"):
        before = (tmp_path / name).read_bytes() if (tmp_path / name).is_file() else None
        with pytest.raises(StoreError):
            Store.open(f"sqlite:///{tmp_path}/{name}")
        assert before is None or (tmp_path / name).read_bytes() == before


async def test_a_newer_database_is_left_byte_for_byte(url: str, path: Path) -> None:
    await crashed(path)
    stranger = sqlite3.connect(path)
    stranger.execute("UPDATE alembic_version SET version_num = '9999'")
    stranger.commit()
    # as a crashed newer program leaves it: with a log that nobody has folded in
    files = [path, path.with_name("jobs.db-wal")]
    copies = [file.read_bytes() for file in files]
    stranger.close()
    for file, copy in zip(files, copies, strict=True):
        file.write_bytes(copy)
    with pytest.raises(StoreError, match="newer"):
        Store.open(url)
    assert [file.read_bytes() for file in files] == copies


async def test_creation_that_was_cut_short_is_begun_anew(url: str, path: Path) -> None:
    path.with_name("jobs.db.new").write_bytes(b"half")
    path.with_name("jobs.db.new-journal").write_bytes(b"half")
    async with opened(url) as it:
        assert it.store.epoch == 1
    assert not list(path.parent.glob("*.new*"))


# -- damage


async def test_an_unclean_end_costs_nothing(url: str, path: Path) -> None:
    await crashed(path)
    async with opened(url) as it:
        assert it.store.epoch == 2
        assert len(await it.store.jobs(["J1", "J2", "J3"])) == 3
    await filled(f"sqlite:///{path.parent}/x.db")


async def test_damage_is_found_after_an_unclean_end(path: Path) -> None:
    whole = path.with_name("whole.db")
    await crashed(whole, jobs=400)
    with sqlite3.connect(whole) as folded:
        folded.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    folded.close()
    content = whole.read_bytes()
    reasons = []
    pages = range(0, len(content), 4096)
    for start in pages:
        damaged = bytearray(content)
        damaged[start : start + 64] = b"\xa5" * 64
        path.write_bytes(damaged)
        for ending in ("-wal", "-shm"):
            path.with_name(path.name + ending).unlink(missing_ok=True)
        try:
            store = Store.open(f"sqlite:///{path}")
        except StoreError as exc:
            reasons.append(str(exc))
            untouched = path.read_bytes() == bytes(damaged)
            reasons += [] if untouched else ["written to"]
        else:
            await store.close()
    # Only a page that holds nothing may go unnoticed.
    assert len(reasons) >= len(pages) - 1
    assert all("is damaged" in why or "no database of sirepo_jobs" in why for why in reasons)
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(StoreError, match="damaged"):
        Store.open(f"sqlite:///{path}")


async def test_a_log_that_lost_its_content_is_noticed(url: str, path: Path) -> None:
    await crashed(path)
    log = path.with_name("jobs.db-wal")
    log.write_bytes(b"")
    with pytest.raises(StoreError, match="lost its content"):
        Store.open(url)
    log.unlink()
    async with opened(url) as it:
        assert it.store.last_job_seq == 0


@pytest.mark.parametrize("victim", ["jobs.db", "jobs.db-wal"])
async def test_a_file_that_is_moved_away_ends_the_writer(url: str, path: Path, victim: str) -> None:
    async with opened(url) as it:
        it.store.submit(accepting(a_stored(1)))
        await it.store.flushed()
        path.with_name(victim).rename(path.with_name("elsewhere"))
        it.store.submit(accepting(a_stored(2)))
        with pytest.raises(StoreError, match="moved"):
            await it.store.flushed()
        assert len(it.fatal) == 1
        assert not path.with_name(victim).exists()


# -- trouble that passes


async def test_a_lock_by_another_process_is_waited_for(
    url: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sqlite._SETTINGS, "busy_timeout", 50)
    async with opened(url) as it:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        heard: list[int] = []
        for number in (1, 2):
            unit = accepting(a_stored(number))
            unit.done.append(lambda number=number: heard.append(number))
            it.store.submit(unit)
        while it.store.degraded is None:
            await asyncio.sleep(0.01)
        assert "locked" in it.store.degraded
        assert await it.store.jobs(["J1"]) == []
        assert heard == []
        other.execute("ROLLBACK")
        await it.store.flushed()
        assert heard == [1, 2]
        assert it.store.degraded is None
        assert it.fatal == []
        other.close()


@pytest.mark.parametrize(
    ("name", "temporary"),
    [
        ("BUSY", True), ("BUSY_RECOVERY", True), ("LOCKED", True), ("FULL", True), ("READONLY", True),
        ("NOMEM", True), ("IOERR_SHMSIZE", True), ("READONLY_DBMOVED", False), ("IOERR", False),
        ("IOERR_FSYNC", False), ("IOERR_WRITE", False), ("CORRUPT", False), ("CORRUPT_INDEX", False),
        ("NOTADB", False), ("CONSTRAINT_UNIQUE", False), ("ERROR", False), ("TOOBIG", False),
    ],
)  # fmt: skip
async def test_which_trouble_passes(url: str, name: str, temporary: bool) -> None:
    trouble = sqlite3.OperationalError("it failed")
    trouble.sqlite_errorcode = getattr(sqlite3, f"SQLITE_{name}")
    trouble.sqlite_errorname = f"SQLITE_{name}"
    async with opened(url) as it:
        judged = it.store._database.judge(trouble)
        assert judged is not None
        assert judged.temporary == temporary
        assert str(url.removeprefix("sqlite:///")) in judged.text
        assert it.store._database.judge(sqlite3.ProgrammingError("closed")) is None
        assert it.store._database.judge(KeyError("x")) is None


async def test_closing_does_not_wait_for_ever(url: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sqlite._SETTINGS, "busy_timeout", 50)
    fatal: list[StoreError] = []
    store = Store.open(url)
    store.start(asyncio.get_running_loop(), fatal.append)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    store.submit(accepting(a_stored(1)))
    await asyncio.wait_for(store.close(), 60)
    assert "could not be written" in str(fatal[0])
    other.close()
    async with opened(url) as it:
        assert it.store.last_job_seq == 0


async def test_a_read_that_takes_too_long_is_ended(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    await filled(url, jobs=300)
    monkeypatch.setattr(sqlite, "READ_SECS", 0.0)
    async with opened(url) as it:
        endless = "SELECT count(*) FROM jobs a, jobs b, jobs c, jobs d"
        with pytest.raises(Unavailable, match="longer than"):
            await it.store._reader.ask(lambda connection: connection.exec_driver_sql(endless).scalar())
        assert it.fatal == []


async def test_the_log_stays_bounded(
    url: str, path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sqlite, "_LOG_BYTES", 1 << 20)
    monkeypatch.setitem(sqlite._SETTINGS, "journal_size_limit", 1 << 19)
    monkeypatch.setitem(sqlite._SETTINGS, "busy_timeout", 10)
    log = path.with_name("jobs.db-wal")
    job = a_stored(1)
    version = 1
    async with opened(url) as it:
        it.store.submit(accepting(job))

        async def write(commits: int) -> int:
            nonlocal version
            for _ in range(commits):
                version += 1
                it.store.submit(changing(replace(job.record, version=version, situation="x" * 4000)))
                await it.store.flushed()
                await it.store.jobs(["J1"])
            return log.stat().st_size

        # with readers that come and go
        assert await write(600) < 2 << 20
        # with one that stays, the log must grow, and somebody is told
        reader = sqlite3.connect(path, isolation_level=None)
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM jobs").fetchall()
        assert await write(600) > 2 << 20
        assert "a reader keeps the log" in caplog.text
        # when it has gone, the log is cut
        reader.close()
        assert await write(200) < 2 << 20


# -- how it is asked


async def test_every_question_has_its_index(url: str) -> None:
    async with opened(url) as it:
        store = it.store
        with plans(store) as asked:
            await store.jobs(["J1"])
            await store.active_jobs()
            await store.pending(user="ann", after=(5, 1), limit=9)
            await store.pending_users()
            await store.count_by_state("ann")
            await store.count_by_state(None)
            await store.attempts("J1")
            await store.events(after=3, limit=9)
            await store.events(after=3, limit=9, jid="J1")
            await store.key("ann", "K")
    for plan in asked:
        assert not plan.scans, plan
    assert [plan.indexes for plan in asked[1:6]] == [
        {"jobs_active"}, {"jobs_pending"}, {"jobs_pending"},
        {"jobs_pending", "jobs_active", "jobs_at_rest"},
        {"jobs_pending", "jobs_active", "jobs_at_rest_of_all"},
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("asked", "index"),
    [
        ({"user": "ann"}, "jobs_by_user"),
        ({"user": "ann", "states": [State.ERROR]}, "jobs_at_rest"),
        ({"user": "ann", "states": [State.COMPLETED]}, "jobs_at_rest"),
        ({"states": [State.ERROR]}, "jobs_at_rest_of_all"),
        ({"states": [State.COMPLETED]}, "jobs_at_rest_of_all"),
        ({"user": "ann", "states": [State.PENDING]}, "jobs_pending"),
        ({"user": "ann", "states": [State.RUNNING]}, "jobs_active"),
        ({"user": "ann", "tags": {"a": "b"}}, "job_tags_of_user"),
        ({"tags": {"a": "b"}}, "job_tags_of_all"),
        ({"tags": {"a": "b"}, "driver": "local"}, "job_tags_of_all"),
        ({"user": "ann", "name_prefix": "me"}, "jobs_by_name"),
        ({"name_prefix": "me"}, "jobs_by_name"),
    ],
)
async def test_every_list_has_its_index(url: str, asked: dict[str, Any], index: str) -> None:
    """The jobs of a page are found by an index, in its order; then their rows by number."""
    async with opened(url) as it:
        it.store.submit(accepting(a_stored(1, State.ERROR)))
        await it.store.flushed()
        with plans(it.store) as seen:
            await it.store.find_jobs(JobQuery(**asked, created_after=0, before_seq=7, with_spec=True))
    assert not [plan for plan in seen if plan.scans]
    assert index in set().union(*(plan.indexes for plan in seen))
    rows = seen[-1]
    assert (rows.indexes, rows.scans) == (set(), set()), rows


class Plan(NamedTuple):
    """How SQLite answers one question."""

    sql: str
    steps: list[str]

    @property
    def scans(self) -> set[str]:
        """Tables that are read from one end to the other."""
        tables = ("jobs", "events", "attempts", "specs", "idempotency", "job_tags", "j", "e")
        return {table for table in tables if f"SCAN {table}" in self.steps}

    @property
    def indexes(self) -> set[str]:
        """Indexes of ours that it uses."""
        found = (re.search(r"USING (?:COVERING )?INDEX (\w+)", step) for step in self.steps)
        return {match[1] for match in found if match and not match[1].startswith("sqlite_")}


@contextmanager
def plans(store: Store) -> Iterator[list[Plan]]:
    """What is asked meanwhile, with its plans, which are there afterwards."""
    asked: list[tuple[str, Any]] = []
    found: list[Plan] = []
    engine = store._reader._engine

    @event.listens_for(engine, "before_cursor_execute")
    def note(_c: Any, _cursor: Any, sql: str, parameters: Any, *_: Any) -> None:
        asked.append((sql, parameters))

    yield found
    event.remove(engine, "before_cursor_execute", note)
    with engine.connect() as connection:
        for sql, parameters in asked:
            rows = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {sql}", parameters).all()
            found.append(Plan(sql, [row[3] for row in rows]))


def test_a_statement_repeated_is_what_the_compiler_would_have_made() -> None:
    sqlite_dialect = make_url("sqlite://").get_dialect()()
    for dialect in (sqlite_dialect, PGDialect_psycopg(paramstyle="numeric_dollar")):  # type: ignore[no-untyped-call]
        table = statements.events
        many = table.insert().values(
            [
                {col.name: statements.bindparam(f"{col.name}{row}", type_=col.type) for col in table.c}
                for row in range(3)
            ]
        )
        repeated = statements._Statement(dialect, statements._insert(table)).text(3)
        assert repeated == str(many.compile(dialect=dialect))


# -- copies


async def test_a_backup_of_a_store_in_use_is_whole(url: str, tmp_path: Path) -> None:
    copy = tmp_path / "copy.db"
    async with opened(url) as it:
        it.store.submit(accepting(*(a_stored(seq) for seq in range(1, 200))))
        await it.store.flushed()
        backup = asyncio.create_task(it.store.backup(copy))
        it.store.submit(accepting(*(a_stored(seq) for seq in range(200, 300))))
        await backup
        await it.store.flushed()
        with pytest.raises(Error, match="no backup"):
            await it.store.backup(tmp_path / "absent" / "copy.db")
        instance = it.store.instance
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    assert not list(tmp_path.glob("*.new*"))
    async with opened(f"sqlite:///{copy}") as it:
        assert it.store.instance == instance
        assert it.store.last_job_seq in (199, 299)
        assert len(await it.store.events(after=0, limit=1000)) == it.store.last_job_seq
