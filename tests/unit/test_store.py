"""What the store promises on every kind of database. `Exercise` runs here over SQLite and, in
`tests/integration/test_store_postgres.py`, over PostgreSQL.
"""

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace
from sqlalchemy import create_engine, inspect, text
from sqlalchemy.engine import Engine, Row
from sqlalchemy.pool import NullPool

from sirepo_jobs.errors import StoreError, StoreLocked
from sirepo_jobs.job import FINAL, HELD_BY_AGENT, AttemptRecord, JobRecord, State
from sirepo_jobs.reasons import Reason
from sirepo_jobs.store import (
    AgentRow,
    EventRow,
    JobQuery,
    KeyRow,
    NewJob,
    PendingRow,
    Store,
    StoredJob,
    Unit,
    schema,
    statements,
)
from sirepo_jobs.tokens import Role, Scope, TokenRow
from tests.unit.builders import a_job

AT = 1_700_000_000_000_000


class Opened:
    """A started store, and what it told."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.fatal: list[StoreError] = []
        self.loop = CountingLoop(asyncio.get_running_loop())
        store.start(self.loop, self.fatal.append)  # type: ignore[arg-type]


class CountingLoop:
    """The running loop, seen by the writer's thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.calls = 0

    def call_soon_threadsafe(self, *args: Any) -> asyncio.Handle:
        self.calls += 1
        return self._loop.call_soon_threadsafe(*args)


@contextlib.asynccontextmanager
async def opened(url: str, **options: Any) -> AsyncIterator[Opened]:
    """The store at `url`, started; closed at the end."""
    store = Store.open(url, **options)
    try:
        yield Opened(store)
    finally:
        await store.close()


def a_stored(seq: int, state: State = State.PENDING, *, priority: int = 5, **changes: Any) -> StoredJob:
    """A job number `seq` with everything that belongs to it."""
    record = a_job(state, **{"seq": seq, "jid": f"J{seq}", "created_at": AT + seq, **changes})
    fixed = NewJob(
        name=f"name-{seq}",
        driver="local",
        queue="default",
        priority=priority,
        spec=b'{"command":["%d"]}' % seq,
    )
    return StoredJob(record, fixed)


def tagged(job: StoredJob, tags: dict[str, str]) -> StoredJob:
    """The job with these tags in its spec."""
    spec = msgspec.json.encode({"command": [str(job.record.seq)], "tags": tags})
    return StoredJob(job.record, replace(job.fixed, spec=spec))


def a_token(number: int) -> TokenRow:
    return TokenRow(
        token=f"{number:012x}",
        digest=b"d" * 32,
        user="ann",
        role=Role.USER,
        scopes=[Scope.JOBS_READ],
        name="",
        created_by="root",
        created_at=AT,
        expires_at=AT + number,
    )


def an_event(seq: int, job: JobRecord) -> EventRow:
    return EventRow(
        seq=seq,
        jid=job.jid,
        user=job.user,
        version=job.version,
        at=AT + seq,
        kind="Submitted",
        state=job.state,
        data=b"{}",
    )


def accepting(*jobs: StoredJob) -> Unit:
    """The unit that makes these jobs, each with the event of its own number."""
    return Unit(
        new={job.record.jid: job.fixed for job in jobs},
        jobs={job.record.jid: job.record for job in jobs},
        events=[an_event(job.record.seq, job.record) for job in jobs],
    )


def changing(*records: JobRecord) -> Unit:
    return Unit(jobs={record.jid: record for record in records})


def seqs(jobs: Iterable[StoredJob | PendingRow]) -> list[int]:
    return [job.seq if isinstance(job, PendingRow) else job.record.seq for job in jobs]


async def jobs_of(store: Store, **asked: Any) -> list[StoredJob]:
    """The first page of a list, with specs only if asked for."""
    return (await store.find_jobs(JobQuery(**asked))).jobs


def raw(url: str) -> Engine:
    """Past the store, as a stranger would."""
    return create_engine(url, poolclass=NullPool)


class Exercise:
    """Takes the fixture `url`: an empty place for a store."""

    async def test_what_was_written_is_read(self, url: str) -> None:
        pending = a_stored(1)
        progress = {"percent_complete": 7, "text": "\u00e4\u2028\U0001f600"}
        running = a_stored(2, State.RUNNING, progress=progress, situation="it runs")
        unit = accepting(pending, running)
        attempt = AttemptRecord(
            jid="J2",
            attempt=1,
            serial=1,
            agent="local-ann",
            run_dir="J2/1",
            state=State.PENDING,
            reason=Reason.PREEMPTED,
            started_at=AT,
        )
        agent = AgentRow(
            agent="local-ann", environment=b'{"driver":"local"}', handle=b"\x00\xff", boot_id="b"
        )
        key = KeyRow(user="ann", key="K", digest=b"\x00" * 32, jids=["J1", "J2"], created_at=AT)
        unit.attempts.append(attempt)
        unit.agents[agent.agent] = agent
        unit.keys.append(key)
        async with opened(url) as it:
            it.store.submit(unit)
            await it.store.flushed()
            assert await it.store.jobs(["J2", "absent", "J1", "J2"]) == [running, pending]
            assert await it.store.active_jobs() == [running]
            assert await it.store.attempts("J2") == [attempt]
            assert await it.store.attempts("J1") == []
            assert await it.store.agents() == [agent]
            assert await it.store.key("ann", "K") == key
            assert await it.store.key("bob", "K") is None
            assert await it.store.events(after=0, limit=9) == [
                an_event(1, pending.record),
                an_event(2, running.record),
            ]
            assert it.fatal == []
            assert it.store.degraded is None

    async def test_an_empty_store_answers(self, url: str) -> None:
        async with opened(url) as it:
            store = it.store
            assert (store.last_job_seq, store.last_event_seq) == (0, 0)
            assert await store.jobs([]) == []
            assert await store.active_jobs() == []
            assert await store.pending_users() == []
            assert await store.pending(user=None, after=None, limit=9) == []
            assert await jobs_of(store, states=[State.ERROR, State.PENDING]) == []
            assert await store.agents() == []
            assert set((await store.count_by_state(None)).values()) == {0}

    async def test_callbacks_come_in_order_after_their_rows_are_there(self, url: str) -> None:
        stranger = raw(url)
        seen: list[tuple[int, bool]] = []

        def look(number: int) -> None:
            with stranger.connect() as connection:
                rows = connection.execute(text(f"SELECT seq FROM jobs WHERE seq = {number}")).all()
            seen.append((number, len(rows) == 1))

        async with opened(url) as it:
            for number in range(1, 40):
                unit = accepting(a_stored(number))
                unit.done.append(lambda number=number: look(number))
                it.store.submit(unit)
            await it.store.flushed()
            assert seen == [(number, True) for number in range(1, 40)]

    async def test_the_loop_is_called_once_per_group(self, url: str) -> None:
        async with opened(url) as it:
            heard: list[int] = []
            for number in range(1, 1001):
                unit = accepting(a_stored(number))
                unit.done.append(lambda number=number: heard.append(number))
                it.store.submit(unit)
            await it.store.flushed()
            assert heard == list(range(1, 1001))
            # The first group may be small; what piled up behind it was taken together.
            assert it.loop.calls < 200
            assert it.store.waiting == 0

    async def test_one_callback_that_fails_does_not_cost_the_others_theirs(self, url: str) -> None:
        told: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: told.append(context))
        heard = []
        async with opened(url) as it:
            it.store.submit(Unit(done=[lambda: heard.append(1), lambda: 1 / 0, lambda: heard.append(2)]))
            await it.store.flushed()
        assert heard == [1, 2]
        assert [type(context["exception"]) for context in told] == [ZeroDivisionError]

    async def test_later_rows_replace_earlier_ones(self, url: str) -> None:
        job = a_stored(1)
        started = replace(job.record, state=State.RUNNING, version=2, agent="local-ann")
        ended = replace(started, state=State.COMPLETED, version=3, ended_at=AT + 9)
        agent = AgentRow(agent="local-ann", environment=b"{}")
        async with opened(url) as it:
            # in one group with its acceptance, and in a group of its own
            it.store.submit(accepting(job))
            it.store.submit(changing(started))
            it.store.submit(Unit(agents={agent.agent: agent}))
            await it.store.flushed()
            assert await it.store.jobs(["J1"]) == [StoredJob(started, job.fixed)]
            it.store.submit(Unit(agents={agent.agent: replace(agent, boot_id="c", install="i")}))
            it.store.submit(changing(ended))
            await it.store.flushed()
            assert await it.store.jobs(["J1"]) == [StoredJob(ended, job.fixed)]
            assert await it.store.agents() == [replace(agent, boot_id="c", install="i")]
            assert await it.store.active_jobs() == []

    async def test_many_sizes_of_one_unit(self, url: str) -> None:
        """Rows are written in parcels; none may be lost between them."""
        async with opened(url) as it:
            first = 1
            for size in (1, 3, 4, 5, 63, 64, 65, 257, 1700):
                jobs = [a_stored(seq) for seq in range(first, first + size)]
                it.store.submit(accepting(*jobs))
                await it.store.flushed()
                assert await it.store.jobs([job.record.jid for job in jobs]) == jobs
                it.store.submit(
                    changing(*(replace(j.record, version=2, state=State.COMPLETED) for j in jobs))
                )
                await it.store.flushed()
                first += size
            assert (await it.store.count_by_state(None))["completed"] == first - 1
            assert len(await it.store.events(after=0, limit=10_000)) == first - 1

    async def test_texts_that_are_hard_to_keep(self, url: str) -> None:
        name = "'; DROP TABLE jobs; -- %s $1 ? \u00e4\u4e2d\U0001f600 \\ \" \n"
        job = a_stored(1, user="o'hara %", situation=name)
        job = StoredJob(job.record, replace(job.fixed, name=name, spec=b'{"x":"\\u0000"}'))
        async with opened(url) as it:
            it.store.submit(accepting(job))
            await it.store.flushed()
            assert await it.store.jobs(["J1"]) == [job]
            found = await jobs_of(it.store, user="o'hara %", name_prefix=name[:20], with_spec=True)
            assert found == [job]
            assert await jobs_of(it.store, name_prefix="'; drop") == []

    # -- what must not be written

    @pytest.mark.parametrize("wrong", ["of no job", "older", "accepted twice", "key twice", "event twice"])
    async def test_rows_that_contradict_what_is_there_end_the_writer(self, url: str, wrong: str) -> None:
        job = a_stored(1, version=5)
        key = KeyRow(user="ann", key="K", digest=b"d", jids=["J1"], created_at=AT)
        bad = {
            "of no job": changing(replace(job.record, seq=77, jid="J77")),
            "older": changing(replace(job.record, version=4)),
            "accepted twice": accepting(job),
            "key twice": Unit(keys=[key]),
            "event twice": Unit(events=[an_event(1, job.record)]),
        }[wrong]
        heard: list[str] = []
        async with opened(url) as it:
            first = accepting(job)
            first.keys.append(key)
            it.store.submit(first)
            await it.store.flushed()
            bad.done.append(lambda: heard.append("bad"))
            it.store.submit(bad)
            with pytest.raises(StoreError):
                await it.store.flushed()
            after = accepting(a_stored(2))
            after.done.append(lambda: heard.append("after"))
            it.store.submit(after)
            with pytest.raises(StoreError):
                await it.store.flushed()
            assert len(it.fatal) == 1
            assert it.store.degraded == str(it.fatal[0])
            assert heard == []
            assert await it.store.jobs(["J1", "J2", "J77"]) == [job]
        async with opened(url) as it:
            assert await it.store.jobs(["J1", "J2", "J77"]) == [job]
            assert len(await it.store.events(after=0, limit=9)) == 1

    # -- opening and closing

    async def test_epoch_rises_and_instance_stays(self, url: str) -> None:
        async with opened(url) as it:
            first = it.store
            it.store.submit(accepting(*(a_stored(seq) for seq in range(1, 8))))
        async with opened(url) as it:
            assert (it.store.epoch, it.store.instance) == (first.epoch + 1, first.instance)
            assert (it.store.last_job_seq, it.store.last_event_seq) == (7, 7)
            assert len(it.store.instance) == 26

    async def test_one_at_a_time(self, url: str) -> None:
        async with opened(url):
            with pytest.raises(StoreLocked, match=r"another supervisor works on .*pid \d+ on .* since 20"):
                Store.open(url)
        async with opened(url) as it:
            assert it.store.epoch == 2

    async def test_closing_writes_what_waits_and_may_be_repeated(self, url: str) -> None:
        heard: list[int] = []
        store = Store.open(url)
        store.start(asyncio.get_running_loop(), pytest.fail)
        for number in range(1, 100):
            unit = accepting(a_stored(number))
            unit.done.append(lambda number=number: heard.append(number))
            store.submit(unit)
        await store.close()
        assert heard == list(range(1, 100))
        await store.close()
        with pytest.raises(StoreError, match="closed"):
            store.submit(Unit())
        for late in (store.flushed, store.agents):
            with pytest.raises(StoreError, match="closed"):
                await late()
        async with opened(url) as it:
            assert it.store.last_job_seq == 99

    async def test_closed_without_a_start(self, url: str) -> None:
        store = Store.open(url)
        store.submit(accepting(a_stored(1)))
        await store.close()
        async with opened(url) as it:
            assert it.store.last_job_seq == 1

    async def test_no_store_without_init(self, url: str) -> None:
        with pytest.raises(StoreError, match="--init"):
            Store.open(url, init=False)
        async with opened(url):
            pass
        async with opened(url, init=False) as it:
            assert it.store.epoch == 2

    async def test_migrations_lead_to_the_schema(self, url: str) -> None:
        from alembic.autogenerate import compare_metadata
        from alembic.migration import MigrationContext
        from alembic.script import ScriptDirectory

        from sirepo_jobs.store import migrations

        async with opened(url):
            pass
        with raw(url).connect() as connection:
            assert migrations.position(connection) == schema.HEAD
            context = MigrationContext.configure(connection, opts={"compare_type": True})
            assert compare_metadata(context, schema.metadata) == []
            there = {index["name"] for index in inspect(connection).get_indexes("jobs")}
            assert {index.name for index in schema.jobs.indexes} <= there
        assert ScriptDirectory.from_config(migrations._config()).get_current_head() == schema.HEAD

    async def test_a_migration_is_all_or_nothing(
        self, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The next release's migration fails half way: the database opens as before (I34, F102)."""
        from alembic.config import Config

        from sirepo_jobs.store import migrations

        async with opened(url) as it:
            it.store.submit(accepting(a_stored(1)))
        folder = tmp_path / "migrations"
        shutil.copytree(Path(str(migrations.__file__)).parent, folder)
        config = Config()
        config.set_main_option("script_location", str(folder))
        step = folder / "versions" / "v9998_next.py"
        text_of_step = (
            "import sqlalchemy as sa\nfrom alembic import op\n"
            f"revision = '9998'\ndown_revision = '{schema.HEAD}'\n"
            "def upgrade():\n"
            "    op.add_column('jobs', sa.Column('note', sa.Text))\n"
            "    op.execute('UPDATE jobs SET note = name')\n"
        )
        with monkeypatch.context() as patch:
            patch.setattr(migrations, "_config", lambda: config)
            patch.setattr(migrations, "HEAD", "9998")
            step.write_text(text_of_step + "    op.execute('INSERT INTO nowhere VALUES (1)')\n")
            with pytest.raises(StoreError, match="is as it was"):
                Store.open(url)
            columns = {col["name"] for col in inspect(raw(url)).get_columns("jobs")}
            assert "note" not in columns
            step.write_text(text_of_step)
            async with opened(url) as it:
                assert it.store.epoch == 2  # the failed opening left no trace
            with raw(url).connect() as connection:
                assert connection.execute(text("SELECT note FROM jobs")).scalars().all() == ["name-1"]
                assert migrations.position(connection) == "9998"
        with pytest.raises(StoreError, match="newer sirepo_jobs"):
            Store.open(url)

    async def test_jobs_of_an_older_release_are_found_by_tag_and_name(self, url: str) -> None:
        """Schema 0002 knew tags only inside the specs."""
        from sirepo_jobs.store import migrations

        async with opened(url) as it:
            stored = [tagged(a_stored(seq, State.ERROR), {"nr": str(seq % 2)}) for seq in range(1, 8)]
            it.store.submit(accepting(*stored, a_stored(8)))
            await it.store.flushed()
        with raw(url).begin() as connection:
            connection.execute(text("DROP TABLE job_tags"))
            for index in ("jobs_at_rest", "jobs_at_rest_of_all", "jobs_by_name", "idempotency_by_age"):
                connection.execute(text(f"DROP INDEX {index}"))
            connection.execute(text("CREATE INDEX jobs_aside ON jobs (state)"))
            connection.execute(text("ALTER TABLE agents DROP COLUMN boot_id"))
            connection.execute(text("ALTER TABLE agents DROP COLUMN leaving"))
            connection.execute(text("ALTER TABLE agents ADD COLUMN acked BIGINT"))
            connection.execute(text("UPDATE alembic_version SET version_num = '0002'"))
        async with opened(url) as it:
            assert seqs(await jobs_of(it.store, tags={"nr": "0"})) == [6, 4, 2]
            assert seqs(await jobs_of(it.store, user="ann", tags={"nr": "1"})) == [7, 5, 3, 1]
            assert seqs(await jobs_of(it.store, name_prefix="name-8")) == [8]
        with raw(url).connect() as connection:
            assert migrations.position(connection) == schema.HEAD
            there = {index["name"] for index in inspect(connection).get_indexes("jobs")}
            assert {index.name for index in schema.jobs.indexes} <= there

    async def test_what_was_fixed_may_change(self, url: str) -> None:
        """PATCH: name, priority, tags and limits, of many jobs at once; each list follows."""
        stored = [tagged(a_stored(seq), {"a": "1", "keep": str(seq)}) for seq in range(1, 71)]
        async with opened(url) as it:
            it.store.submit(accepting(*stored))
            await it.store.flushed()
            changed = [
                tagged(
                    StoredJob(
                        replace(job.record, version=job.record.version + 1),
                        replace(job.fixed, name="fresh", priority=9),
                    ),
                    {"b": "\u00fc", "keep": str(job.record.seq)},
                )
                for job in stored[3:]
            ]
            it.store.submit(
                Unit(
                    fixed={job.record.jid: job.fixed for job in changed},
                    jobs={job.record.jid: job.record for job in changed},
                )
            )
            await it.store.flushed()
            assert await it.store.jobs([job.record.jid for job in stored]) == stored[:3] + changed
            assert seqs(await jobs_of(it.store, tags={"a": "1"})) == [3, 2, 1]
            assert len(await jobs_of(it.store, tags={"b": "\u00fc"})) == 67
            assert seqs(await jobs_of(it.store, tags={"b": "\u00fc", "keep": "5"})) == [5]
            assert len(await jobs_of(it.store, name_prefix="fre")) == 67
            first = await it.store.pending(user="ann", after=None, limit=68)
            assert [(row.seq, row.priority) for row in first] == [*((seq, 9) for seq in range(4, 71)), (1, 5)]

    async def test_a_change_in_the_same_group_as_its_job(self, url: str) -> None:
        """Both wait for the writer and are merged: what was said last counts."""
        job = tagged(a_stored(1), {"a": "1"})
        record = replace(job.record, version=job.record.version + 1)
        later = tagged(StoredJob(record, replace(job.fixed, name="later")), {"b": "2"})
        unit = accepting(job)
        unit.absorb(Unit(fixed={"J1": later.fixed}, jobs={"J1": record}))
        async with opened(url) as it:
            it.store.submit(unit)
            await it.store.flushed()
            assert await it.store.jobs(["J1"]) == [later]
            assert await jobs_of(it.store, tags={"a": "1"}) == []
            assert seqs(await jobs_of(it.store, tags={"b": "2"})) == [1]

    async def test_old_keys_and_dead_tokens_are_forgotten_in_pieces(
        self, url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(statements, "FORGOTTEN_KEYS", 20)
        async with opened(url) as it:
            it.store.submit(accepting(a_stored(1)))
            keys = [
                KeyRow(user="ann", key=f"K{n}", digest=b"d", jids=["J1"], created_at=AT + n)
                for n in range(50)
            ]
            it.store.submit(Unit(keys=keys))
            it.store.submit(Unit(tokens={f"{n:012x}": a_token(n) for n in range(3)}))
            await it.store.flushed()
            names = sorted(("ann", row.key) for row in keys)
            assert sorted(await it.store.keys(after=None, limit=100)) == names
            pages = [await it.store.keys(after=None, limit=30)]
            pages.append(await it.store.keys(after=pages[0][-1], limit=30))
            assert [len(page) for page in pages] == [30, 20]
            assert sorted(pages[0] + pages[1]) == names
            assert await it.store.keys(after=pages[1][-1], limit=30) == []
            assert await it.store.has_keys_before(AT + 1)
            assert not await it.store.has_keys_before(AT)
            left = []
            for _ in range(3):
                it.store.submit(Unit(keys_before=AT + 45, dead_tokens=[f"{1:012x}"]))
                await it.store.flushed()
                left.append(sum([await it.store.key("ann", row.key) is not None for row in keys]))
            assert left == [30, 10, 5]
            assert [row.token for row in await it.store.tokens()] == [f"{0:012x}", f"{2:012x}"]
            assert await it.store.key("ann", "K45") == keys[45]

    async def test_names_are_found_by_any_beginning(self, url: str) -> None:
        names = [
            "melt",
            "Melt",
            "melt-2",
            "mel\ud7fft",
            "mel\ue000",
            "\U0010ffff",
            "\U0010ffffx",
            "m%lt",
            "\u00e9t\u00e9",
        ]
        stored = [
            StoredJob(job.record, replace(job.fixed, name=name))
            for job, name in ((a_stored(seq), name) for seq, name in enumerate(names, 1))
        ]
        async with opened(url) as it:
            it.store.submit(accepting(*stored))
            await it.store.flushed()
            for prefix in {name[:n] for name in names for n in range(1, len(name) + 1)} | {"x", "mel%"}:
                expected = [seq for seq, name in enumerate(names, 1) if name.startswith(prefix)]
                for user in ("ann", None):
                    found = seqs(await jobs_of(it.store, user=user, name_prefix=prefix))
                    assert found == expected[::-1], prefix

    async def test_a_newer_schema_is_refused(self, url: str) -> None:
        async with opened(url) as it:
            it.store.submit(accepting(a_stored(1)))
        stranger = raw(url)
        with stranger.begin() as connection:
            connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
            before = connection.execute(text("SELECT * FROM meta")).all()
        with pytest.raises(StoreError, match="newer sirepo_jobs"):
            Store.open(url)
        with stranger.begin() as connection:
            assert connection.execute(text("SELECT * FROM meta")).all() == before
            connection.execute(text(f"UPDATE alembic_version SET version_num = '{schema.HEAD}'"))
        async with opened(url) as it:
            assert it.store.last_job_seq == 1

    async def test_a_writer_whose_epoch_is_over_writes_nothing_more(self, url: str) -> None:
        async with opened(url) as it:
            it.store.submit(accepting(a_stored(1)))
            await it.store.flushed()
            with raw(url).begin() as connection:
                connection.execute(text("UPDATE meta SET epoch = epoch + 1"))
            it.store.submit(accepting(a_stored(2)))
            with pytest.raises(StoreError, match="another supervisor"):
                await it.store.flushed()
            assert await it.store.jobs(["J2"]) == []
            assert len(it.fatal) == 1

    # -- reading

    async def test_reads_while_it_writes(self, url: str) -> None:
        """A read sees a whole commit or nothing of it."""
        jobs = [a_stored(seq) for seq in range(1, 11)]
        async with opened(url) as it:
            it.store.submit(accepting(*jobs))
            await it.store.flushed()

            async def write() -> None:
                for version in range(2, 60):
                    it.store.submit(changing(*(replace(job.record, version=version) for job in jobs)))
                    await it.store.flushed()

            writing = asyncio.create_task(write())
            last = 1
            reads = 0
            while not writing.done():
                found = await it.store.jobs([job.record.jid for job in jobs])
                (version,) = {job.record.version for job in found}
                assert version >= last
                last = version
                reads += 1
            await writing
            assert reads > 1
            assert it.fatal == []

    async def test_the_queue_page_by_page(self, url: str) -> None:
        jobs = [
            a_stored(seq, priority=(seq * 7) % 4, user=("ann", "bob", "cleo")[seq % 3])
            for seq in range(1, 61)
        ]
        gone = {3, 14, 15, 16, 33, 60}
        async with opened(url) as it:
            it.store.submit(accepting(*jobs))
            it.store.submit(
                changing(
                    *(replace(j.record, state=State.HELD, version=2) for j in jobs if j.record.seq in gone)
                )
            )
            await it.store.flushed()
            for user in (None, "ann", "bob", "nobody"):
                expected = sorted(
                    (-job.fixed.priority, job.record.seq)
                    for job in jobs
                    if job.record.seq not in gone and user in (None, job.record.user)
                )
                for limit in (1, 4, 7, 100):
                    found: list[tuple[int, int]] = []
                    after = None
                    while page := await it.store.pending(user=user, after=after, limit=limit):
                        assert len(page) <= limit
                        found += [(-row.priority, row.seq) for row in page]
                        after = page[-1].priority, page[-1].seq
                    assert found == expected
            row = (await it.store.pending(user="ann", after=None, limit=1))[0]
            job = jobs[row.seq - 1]
            assert row == PendingRow(
                "ann", job.fixed.priority, row.seq, job.record.jid, "local", job.fixed.spec
            )
            assert await it.store.pending_users() == [("ann", 16), ("bob", 19), ("cleo", 19)]

    async def test_lists_and_counts(self, url: str) -> None:
        states = list(State)
        jobs = [
            a_stored(seq, states[seq % len(states)], user=("ann", "bob")[seq % 5 > 2]) for seq in range(1, 90)
        ]
        jobs[40] = StoredJob(jobs[40].record, replace(jobs[40].fixed, name="other"))
        async with opened(url) as it:
            it.store.submit(accepting(*jobs))
            await it.store.flushed()
            whole = [None, [], states, list(FINAL), list(HELD_BY_AGENT), *([state] for state in states)]
            for wanted in [*whole, [State.PENDING, State.HELD, State.RUNNING], [State.ERROR, State.LOST]]:
                for user in ("ann", None):
                    expected = [
                        job.record.seq
                        for job in reversed(jobs)
                        if job.record.state in (wanted or states) and user in (None, job.record.user)
                    ]
                    query = JobQuery(user=user, states=wanted, limit=5)
                    found: list[int] = []
                    while True:
                        page = await it.store.find_jobs(query)
                        found += seqs(page.jobs)
                        if page.before_seq is None:
                            break
                        query = replace(query, before_seq=page.before_seq)
                    assert found == expected, (wanted, user)
            for user in ("ann", "bob", "nobody", None):
                counts = dict.fromkeys(State, 0)
                for job in jobs:
                    counts[job.record.state] += user in (None, job.record.user)
                assert await it.store.count_by_state(user) == counts
            assert seqs(await jobs_of(it.store, name_prefix="oth")) == [41]
            (plain,) = await jobs_of(it.store, name_prefix="other")
            assert plain.fixed == replace(jobs[40].fixed, spec=b"")
            (full,) = await jobs_of(it.store, name_prefix="other", with_spec=True)
            assert full == jobs[40]

    async def test_the_stream_of_events(self, url: str) -> None:
        jobs = [a_stored(seq, user=("ann", "bob")[seq % 2]) for seq in range(1, 21)]
        async with opened(url) as it:
            it.store.submit(accepting(*jobs))
            it.store.submit(Unit(events=[an_event(seq, jobs[4].record) for seq in range(21, 31)]))
            await it.store.flushed()
            numbers = [row.seq for row in await it.store.events(after=0, limit=100)]
            assert numbers == list(range(1, 31))
            assert [row.seq for row in await it.store.events(after=27, limit=2)] == [28, 29]
            of_job = await it.store.events(after=5, limit=3, jid="J5")
            assert [(row.seq, row.jid) for row in of_job] == [(21, "J5"), (22, "J5"), (23, "J5")]
            of_user = await it.store.events(after=0, limit=100, user="ann")
            assert [row.seq for row in of_user] == list(range(2, 21, 2))
            assert await it.store.events(after=0, limit=9, user="ann", jid="J5") == []


def test_no_column_hides_behind_an_attribute_of_a_row() -> None:
    taken = set(dir(Row))
    assert not [col for table in schema.metadata.tables.values() for col in table.c if col.name in taken]


@pytest.mark.parametrize(
    "url",
    [
        "sqlite://",
        "sqlite:///:memory:",
        "sqlite:///x.db?mode=memory",
        "mysql://u:geheim@h/d",
        "http:/no",
        "geheim",
    ],
)
def test_urls_that_are_no_store(url: str) -> None:
    with pytest.raises(StoreError) as caught:
        Store.open(url)
    assert "geheim" not in str(caught.value)


class TestSqlite(Exercise):
    """The suite over a file."""

    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        return f"sqlite:///{tmp_path}/jobs.db"
