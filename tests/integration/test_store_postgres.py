"""The store over a real PostgreSQL: the same promises, and what only a server can do to us."""

import asyncio
import os
import random
import re
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from psycopg import errors
from sqlalchemy import make_url, text

from sirepo_jobs.errors import StoreError, StoreLocked, Unavailable
from sirepo_jobs.store import Store
from tests.integration.test_store_faults import acked, writer
from tests.unit.test_store import Exercise, a_stored, accepting, opened, raw

ROOT = Path(__file__).parents[2]
SERVICE = str(ROOT / "bin" / "dev-services")

pytestmark = pytest.mark.real("postgres")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Where our server lives."""
    return str(tmp_path_factory.mktemp("postgres"))


@pytest.fixture(scope="module")
def server(place: str) -> Iterator[str]:
    """URL of a database on a server of our own."""
    started = subprocess.run([SERVICE, "postgres", "start", place], capture_output=True, text=True)
    found = re.search(r"^url=(.*)$", started.stdout, re.MULTILINE)
    if started.returncode or not found:
        why = f"PostgreSQL does not start: {started.stderr.strip()[-500:]}"
        if os.environ.get("CI") == "true":
            pytest.fail(why)
        pytest.skip(why)
    yield found[1]
    subprocess.run([SERVICE, "postgres", "remove", place], check=True, capture_output=True)


@pytest.fixture
def url(server: str) -> str:
    """An empty schema: as good as a database of its own, and made at once."""
    name = f"s{uuid.uuid4().hex}"
    with raw(server).begin() as connection:
        connection.execute(text(f"CREATE SCHEMA {name}"))
    return (
        make_url(server)
        .update_query_dict({"options": f"-c search_path={name}"})
        .render_as_string(hide_password=False)
    )


class TestPostgres(Exercise):
    """The suite over a server."""


async def test_twenty_at_once(url: str) -> None:
    code = (
        "import sys, time\n"
        "from sirepo_jobs.store import Store\n"
        "from sirepo_jobs.errors import StoreLocked\n"
        "try:\n"
        "    store = Store.open(sys.argv[1])\n"
        "except StoreLocked as exc:\n"
        "    print('refused', exc, flush=True); sys.exit(3)\n"
        "print('holds', store.epoch, flush=True)\n"
        "sys.stdin.read()\n"
    )
    processes = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-c", code, url, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
        )
        for _ in range(6)
    ]
    said = []
    for process in processes:
        assert process.stdout is not None
        said.append((await asyncio.wait_for(process.stdout.readline(), 60)).decode())
    assert [line for line in said if line.startswith("holds")] == ["holds 1\n"]
    winner = processes[next(i for i, line in enumerate(said) if line.startswith("holds"))]
    assert all(f"pid {winner.pid} on " in line for line in said if line.startswith("refused"))
    for process in processes:
        assert process.stdin is not None
        process.stdin.close()
        await process.wait()


async def test_lost_connections_cost_nothing(url: str) -> None:
    """The server ends our sessions again and again; every change is written once (F099, F100)."""
    killer = raw(url)
    end_all = text(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE pid <> pg_backend_pid() AND application_name LIKE 'sirepo_jobs pid%'"
    )
    heard: list[int] = []
    async with opened(url) as it:
        for number in range(1, 301):
            unit = accepting(a_stored(number))
            unit.done.append(lambda number=number: heard.append(number))
            it.store.submit(unit)
            if number % 40 == 0:
                with killer.connect() as connection:
                    connection.execute(end_all)
                assert await it.store.count_by_state(None)
            await asyncio.sleep(0)
        await it.store.flushed()
        assert heard == list(range(1, 301))
        assert it.fatal == []
        assert it.store.degraded is None
        assert len(await it.store.events(after=0, limit=1000)) == 300


async def test_a_commit_whose_answer_was_lost_is_not_repeated(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sirepo_jobs.store.postgres import PostgresDatabase

    commit = PostgresDatabase.commit
    cuts = 0

    def commit_and_cut(self: PostgresDatabase) -> None:
        nonlocal cuts
        commit(self)
        if cuts < 3:
            cuts += 1
            self._raw.close()
            self.fetch("SELECT 1")

    async with opened(url) as it:
        monkeypatch.setattr(PostgresDatabase, "commit", commit_and_cut)
        for number in range(1, 11):
            it.store.submit(accepting(a_stored(number)))
            await it.store.flushed()
        assert cuts == 3
        assert it.fatal == []
        assert len(await it.store.jobs([f"J{number}" for number in range(1, 11)])) == 10


async def test_another_supervisor_that_got_in_between_ends_us(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(url) as it:
        it.store.submit(accepting(a_stored(1)))
        await it.store.flushed()
        it.store._database._raw.close()  # type: ignore[attr-defined]
        async with opened(url) as other:
            it.store.submit(accepting(a_stored(2)))
            with pytest.raises(StoreLocked):
                await it.store.flushed()
            assert len(it.fatal) == 1
            other.store.submit(accepting(a_stored(2)))
            await other.store.flushed()
            assert other.fatal == []


async def test_a_migration_that_fails_leaves_nothing(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from sirepo_jobs.store import claim

    def fail(_connection: object) -> None:
        raise StoreError("the power went")

    with monkeypatch.context() as patch:
        patch.setattr(claim, "first_row", fail)
        with pytest.raises(StoreError, match="power"):
            Store.open(url)
    with raw(url).connect() as connection:
        tables = "SELECT count(*) FROM information_schema.tables WHERE table_schema = current_schema()"
        assert connection.execute(text(tables)).scalar() == 0
    async with opened(url) as it:
        assert it.store.epoch == 1


async def test_kill_9_at_any_moment(url: str) -> None:
    chance = random.Random(11)
    told = 0
    for _ in range(5):
        process = writer(url, 100_000)
        assert process.stdout is not None
        assert process.stdout.readline().startswith("from ")
        # Some way on, and then at any moment: how far it gets does not follow from how busy the machine is.
        words = "".join(process.stdout.readline() for _ in range(chance.randrange(1, 40)))
        await asyncio.sleep(chance.random() * 0.03)
        process.kill()
        told = max(told, acked(words + process.stdout.read()))
        process.communicate()
        async with opened(url) as it:
            count = it.store.last_job_seq
            assert count == it.store.last_event_seq >= told
            found = await it.store.jobs([f"J{number}" for number in range(1, count + 1)])
            assert found == [a_stored(number) for number in range(1, count + 1)]
    assert told > 10


@pytest.mark.parametrize(
    ("name", "temporary"),
    [
        ("DiskFull", True), ("OutOfMemory", True), ("TooManyConnections", True), ("AdminShutdown", True),
        ("CannotConnectNow", True), ("SerializationFailure", True), ("DeadlockDetected", True),
        ("LockNotAvailable", True), ("ReadOnlySqlTransaction", True), ("QueryCanceled", True),
        ("IoError", False), ("DataCorrupted", False), ("UniqueViolation", False), ("UndefinedTable", False),
    ],
)  # fmt: skip
async def test_which_trouble_passes(url: str, name: str, temporary: bool) -> None:
    async with opened(url) as it:
        judged = it.store._database.judge(getattr(errors, name)("it failed"))
        assert judged is not None
        assert judged.temporary == temporary
        assert it.store._database.judge(KeyError("x")) is None


async def test_a_server_that_restarts_is_waited_for(server: str, url: str, place: str) -> None:
    heard: list[int] = []
    async with opened(url) as it:
        it.store.submit(accepting(a_stored(1)))
        await it.store.flushed()
        await asyncio.to_thread(subprocess.run, [SERVICE, "postgres", "stop", place], check=True)
        for number in (2, 3):
            unit = accepting(a_stored(number))
            unit.done.append(lambda number=number: heard.append(number))
            it.store.submit(unit)
        while it.store.degraded is None:
            await asyncio.sleep(0.01)
        with pytest.raises(Unavailable):
            await it.store.agents()
        assert heard == []
        await asyncio.to_thread(
            subprocess.run, [SERVICE, "postgres", "start", place], check=True, capture_output=True
        )
        await asyncio.wait_for(it.store.flushed(), 60)
        assert heard == [2, 3]
        assert it.store.degraded is None
        assert it.fatal == []
        assert len(await it.store.jobs(["J1", "J2", "J3"])) == 3


async def test_a_session_without_durability_is_mended(url: str) -> None:
    lax = make_url(url)
    options = f"{lax.query['options']} -c synchronous_commit=off"
    async with opened(lax.update_query_dict({"options": options}).render_as_string()) as it:
        assert it.store._database.fetch("SELECT current_setting('synchronous_commit')") == ("on",)


def test_a_server_that_is_not_there() -> None:
    with pytest.raises(StoreError, match="cannot be used") as caught:
        Store.open("postgresql+psycopg://ann:geheim@127.0.0.1:1/jobs")
    assert "geheim" not in str(caught.value)
