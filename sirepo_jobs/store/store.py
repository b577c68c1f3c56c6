"""The facade: what the rest of the supervisor knows of the store."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

from sqlalchemy import URL, Connection, make_url
from sqlalchemy.exc import ArgumentError

from sirepo_jobs.errors import Conflict, Error, StoreError
from sirepo_jobs.job import AttemptRecord
from sirepo_jobs.tokens import TokenRow

from . import lists, queries
from .claim import Claim, take_over
from .database import Database
from .lists import JobPage, JobQuery
from .queries import PendingRow, StoredJob
from .reader import Reader
from .unit import AgentRow, EventRow, KeyRow, Unit
from .writer import Writer


class Store:
    """The supervisor's memory on disk: a journal and the newest record of everything.

    `submit` never waits, and what was submitted is durable only when its `done` callbacks run or
    `flushed` returns. Reads see what is committed, also before those callbacks have run; they raise
    `Unavailable` for what may pass (a read that takes too long, a server that restarts).
    """

    def __init__(self, database: Database, claim: Claim) -> None:
        #: Rises with every opening; goes into every message (I29).
        self.epoch = claim.epoch
        #: Made with the database; part of every attempt's token.
        self.instance = claim.instance
        #: As found at opening; 0 in an empty store.
        self.last_job_seq = claim.last_job_seq
        self.last_event_seq = claim.last_event_seq
        self._database = database
        self._writer = Writer(database, claim)
        self._reader = Reader(database, self._writer.fail)

    @classmethod
    def open(cls, url: str, *, init: bool = True) -> "Store":
        """Lock, check, migrate and claim the database at `sqlite:///PATH` or `postgresql+psycopg://...`.

        Blocks. Raises `StoreLocked` at once (PostgreSQL: within 3 s) if another supervisor has it, and
        `StoreError` with what to do about it if it cannot be used. An empty store is made only with `init`.
        """
        database = _database(url, init=init)
        try:
            claim = take_over(database)
            return cls(database, claim)
        except BaseException as exc:
            database.close()
            if (trouble := database.judge(exc)) is not None:
                raise StoreError(trouble.text) from exc
            raise

    @property
    def degraded(self) -> str | None:
        """Why nothing can be written at present, in one sentence; None while all is well."""
        return self._writer.degraded

    @property
    def waiting(self) -> int:
        """Units submitted and not yet taken up by the writer."""
        return self._writer.waiting

    def start(self, loop: asyncio.AbstractEventLoop, on_fatal: Callable[[StoreError], None]) -> None:
        """Begin to write. `on_fatal` is called once, on the loop's thread, when writing is over for good:
        from then on nothing is acknowledged, and the process had better end.
        """
        self._writer.start(loop, on_fatal)

    def submit(self, unit: Unit) -> None:
        """Write `unit`, which is the store's from now on.

        Never blocks. Units are committed in order, many at a time; `done` callbacks run on the loop's
        thread, in order, after the commit that holds their unit. After a fatal error: dropped.
        """
        self._writer.submit(unit)

    async def flushed(self) -> None:
        """Return when everything submitted before is durable. Raises `StoreError` if it never will be."""
        await self._writer.flushed()

    async def check_ours(self) -> None:
        """Return if nobody had taken the store over when this was asked (I29); works on a full disk.

        Raises `StoreError` otherwise, which `on_fatal` is told, too, and `Unavailable` when nobody can tell.
        """

        def question(connection: Connection) -> None:
            if (found := queries.epoch(connection)) != self.epoch:
                raise StoreError(
                    f"{self._database.name} is at epoch {found}; ours is {self.epoch}: another supervisor"
                    " has taken it over; end one of the two"
                )

        await self._reader.ask(question)

    async def close(self) -> None:
        """Write what waits, then release the lock. What cannot be written now is told to `on_fatal`.

        Safe to repeat, and after a fatal error.
        """
        await self._writer.close()
        await self._reader.close()
        self._database.close()

    async def backup(self, path: Path) -> None:
        """Write a copy as of now to the new file `path`, while work goes on. SQLite only."""
        await asyncio.to_thread(self._database.backup, path)

    async def jobs(self, jids: Sequence[str]) -> list[StoredJob]:
        """The jobs of these ids, in their order; unknown ones are left out."""
        return await self._reader.ask(lambda connection: queries.by_jid(connection, jids))

    async def active_jobs(self) -> list[StoredJob]:
        """All jobs with an attempt that an agent answers for, oldest first."""
        return await self._reader.ask(queries.active_jobs)

    async def pending(
        self, *, user: str | None, after: tuple[int, int] | None, limit: int
    ) -> list[PendingRow]:
        """The queue of one user or of all, from behind (priority, seq) on: the urgent first, then by age."""
        return await self._reader.ask(
            lambda connection: queries.pending(connection, user=user, after=after, limit=limit)
        )

    async def pending_users(self) -> list[tuple[str, int]]:
        """Users with jobs in the queue, and how many."""
        return await self._reader.ask(queries.pending_users)

    async def find_jobs(self, query: JobQuery) -> JobPage:
        """A page of jobs, newest first, by whatever is asked; it may be short and not the last."""
        return await self._reader.ask(lambda connection: lists.find_jobs(connection, query))

    async def count_by_state(self, user: str | None) -> dict[str, int]:
        """How many jobs, of one user or of all, are in each state; states without jobs included."""
        return await self._reader.ask(lambda connection: lists.count_by_state(connection, user))

    async def attempts(self, jid: str) -> list[AttemptRecord]:
        """The ended attempts of a job, in order."""
        return await self._reader.ask(lambda connection: queries.attempts_of(connection, jid))

    async def events(
        self,
        *,
        after: int,
        limit: int,
        upto: int | None = None,
        user: str | None = None,
        jid: str | None = None,
    ) -> list[EventRow]:
        """The stream of events behind position `after`, of one user, of one job, or of all.

        A user has no index of his own: with `upto` no more is looked at than what lies between.
        """
        return await self._reader.ask(
            lambda connection: queries.events_after(
                connection, after=after, upto=upto, limit=limit, user=user, jid=jid
            )
        )

    async def key(self, user: str, key: str) -> KeyRow | None:
        """What an `Idempotency-Key` has made."""
        return await self._reader.ask(lambda connection: queries.key(connection, user, key))

    async def keys(self, *, after: tuple[str, str] | None, limit: int) -> list[tuple[str, str]]:
        """User and name of each `Idempotency-Key`, in an order of the store's, from behind one on."""
        return await self._reader.ask(lambda connection: queries.keys(connection, after=after, limit=limit))

    async def has_keys_before(self, at: int) -> bool:
        """Whether there are idempotency keys of before an instant."""
        return await self._reader.ask(lambda connection: queries.has_keys_before(connection, at))

    async def agents(self) -> list[AgentRow]:
        """Every agent that was written down, by name."""
        return await self._reader.ask(queries.all_agents)

    async def tokens(self) -> list[TokenRow]:
        """Every token that was written down, by id."""
        return await self._reader.ask(queries.all_tokens)


def backup(url: str, path: Path) -> None:
    """Write a copy of the store at `url` to a new file; the store may be in use meanwhile (F098).

    The copy is what was committed at one moment; it is whole or not there. Raises `Error`.
    """
    parsed = _parsed(url)
    if parsed.drivername not in ("sqlite", "sqlite+pysqlite") or not parsed.database:
        raise Error(
            f"PostgreSQL makes its own backups; use pg_dump instead of writing {path}", code="not_supported"
        )
    if path.exists():
        raise Conflict(f"{path} is there already; name another file", code="file_exists")
    from .sqlite import copy_file

    copy_file(Path(parsed.database), path)


def _parsed(url: str) -> URL:
    try:
        return make_url(url)
    except ArgumentError:
        # The text may hold a password.
        raise StoreError(
            "the store's URL cannot be read; use sqlite:///PATH or postgresql+psycopg://..."
        ) from None


def _database(url: str, *, init: bool) -> Database:
    parsed = _parsed(url)
    if parsed.drivername in ("sqlite", "sqlite+pysqlite"):
        return _sqlite(parsed, init=init)
    if parsed.drivername in ("postgresql", "postgresql+psycopg"):
        try:
            from .postgres import PostgresDatabase
        except ImportError as exc:
            raise StoreError("PostgreSQL needs psycopg: pip install 'sirepo_jobs[postgres]'") from exc
        return PostgresDatabase(parsed, init=init)
    raise StoreError(f"{parsed.drivername!r} is no store; use sqlite:///PATH or postgresql+psycopg://...")


def _sqlite(url: URL, *, init: bool) -> Database:
    from .sqlite import SqliteDatabase

    if not url.database or url.database == ":memory:" or url.query:
        raise StoreError("a SQLite store is a file: sqlite:///PATH, without options")
    return SqliteDatabase(Path(url.database), init=init)
