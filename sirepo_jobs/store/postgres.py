"""PostgreSQL: a schema on a server, locked by an advisory lock of the writer's session.

Lock and session end together. So whoever gets the lock back after a lost connection knows that the
old session is over, and the fence in `meta` tells whether its last group was committed (F099).
"""

import contextlib
import os
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psycopg
from sqlalchemy import URL, Connection, Dialect, Engine, create_engine
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.pool import NullPool, QueuePool

from sirepo_jobs.errors import Error, StoreError

from . import migrations
from .database import Trouble
from .lock import locked

#: Of our advisory locks; the other half of the key is the schema.
_LOCK_SPACE = 0x5150B5
#: After a crash the server needs a moment to notice that the old session is gone.
_LOCK_SECS = 2.0
_READ_SECS = 30
#: A server that says nothing for so long is out of reach.
_SILENCE_SECS = 30

_HOLDER = """
SELECT a.application_name, a.backend_start
FROM pg_locks AS l JOIN pg_stat_activity AS a ON a.pid = l.pid
WHERE l.locktype = 'advisory' AND l.granted AND l.classid = %s AND l.objsubid = 2
  AND l.objid::bigint = hashtext(current_schema())::bigint & 4294967295
  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""
_END_SESSION = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE pid = $1 AND application_name = current_setting('application_name')
"""


class PostgresDatabase:
    """A database on a server, with the lock held."""

    connection: Connection

    def __init__(self, url: URL, *, init: bool) -> None:
        """Connect, lock and check. Raises `StoreLocked` and `StoreError`."""
        self._url = url.set(drivername="postgresql+psycopg")
        self.name = url.render_as_string(hide_password=True)
        self._writing = self._engine(
            {"lock_timeout": 10_000, "statement_timeout": 0, "idle_session_timeout": 0}, poolclass=NullPool
        )
        # psycopg's raw cursor takes the server's own placeholders, so nothing parses long statements.
        self.dialect: Dialect = PGDialect_psycopg(paramstyle="numeric_dollar")  # type: ignore[no-untyped-call]
        self._session = 0
        try:
            self._connect()
        except (psycopg.Error, DBAPIError) as exc:
            raise StoreError(f"{self.name} cannot be used: {_cause(exc)}") from exc
        try:
            if not init and migrations.position(self.connection) is None:
                raise StoreError(
                    f"there is no store in {self.name}. Restore it, or start a new and empty one with --init"
                )
            migrations.refuse_newer(self.connection)
        except BaseException:
            self.close()
            raise

    def _engine(self, settings: dict[str, int | str], **options: Any) -> Engine:
        asked = self._url.query.get("options", "")
        told = " ".join(f"-c {key}={value}" for key, value in settings.items())
        return create_engine(
            self._url,
            isolation_level="AUTOCOMMIT",
            connect_args={
                "options": f"{asked if isinstance(asked, str) else ' '.join(asked)} {told}".strip(),
                # The holder's name, as `_HOLDER` reads it; the server cuts it at 63 bytes.
                "application_name": f"sirepo_jobs pid {os.getpid()} on {socket.gethostname()}",
                "client_encoding": "utf8",
                "connect_timeout": 10,
                "keepalives_idle": 10,
                "keepalives_interval": 5,
                "keepalives_count": 3,
                "tcp_user_timeout": _SILENCE_SECS * 1000,
            },
            **options,
        )

    def _connect(self) -> None:
        self.connection = self._writing.connect()
        raw = self.connection.connection.driver_connection
        assert isinstance(raw, psycopg.Connection)
        before, self._session = self._session, raw.info.backend_pid
        self._raw = raw
        self._cursor = psycopg.RawCursor(raw)
        try:
            if self.fetch("SELECT current_schema()") == (None,):
                raise StoreError(f"{self.name}: there is no schema on the search_path; make it first")
            if self._show("synchronous_commit") == "off":
                # An answer that a crash of the server may take back is none (C14).
                self._cursor.execute("SET synchronous_commit = on")
            if before:
                # The server may not have noticed yet that we are gone from there.
                self._cursor.execute(_END_SESSION, (before,))
            self._hold()
        except BaseException:
            self._hang_up()
            raise

    def _show(self, setting: str) -> str:
        return str(self.fetch(f"SELECT current_setting('{setting}')")[0])

    def _hold(self) -> None:
        deadline = time.monotonic() + _LOCK_SECS
        while not self.fetch(f"SELECT pg_try_advisory_lock({_LOCK_SPACE}, hashtext(current_schema()))")[0]:
            if time.monotonic() > deadline:
                raise locked(self.name, self._holder())
            time.sleep(0.05)

    def _holder(self) -> str:
        with self._raw.cursor() as cursor:
            found = cursor.execute(_HOLDER, (_LOCK_SPACE,)).fetchone()
        if found is None:
            return "a session that ended just now"
        return f"{str(found[0]).removeprefix('sirepo_jobs ')} since {found[1]:%Y-%m-%dT%H:%M:%S%z}"

    # -- writing

    def settle(self) -> None:
        pass

    def begin(self) -> None:
        if self._raw.closed or self._raw.broken:
            self._hang_up()
            self._connect()
        self._cursor.execute("BEGIN")

    def run(self, sql: str, parameters: Sequence[Any]) -> int:
        self._cursor.execute(sql, parameters)
        return self._cursor.rowcount

    def fetch(self, sql: str) -> tuple[Any, ...]:
        row: tuple[Any, ...] | None = self._cursor.execute(sql).fetchone()
        assert row is not None
        return row

    def commit(self) -> None:
        self._cursor.execute("COMMIT")

    def rollback(self) -> None:
        with contextlib.suppress(psycopg.Error):
            if self._raw.info.transaction_status != psycopg.pq.TransactionStatus.IDLE:
                self._cursor.execute("ROLLBACK")

    def judge(self, exc: BaseException) -> Trouble | None:
        cause = _cause(exc)
        if not isinstance(cause, psycopg.Error):
            return None
        state = cause.sqlstate or ""
        if state.startswith("53"):
            return Trouble(temporary=True, text=f"{self.name} has no room left: {_line(cause)}")
        passes = isinstance(cause, psycopg.OperationalError) and not state.startswith("58")
        if passes or state == "25006":  # a standby, for now
            return Trouble(temporary=True, text=f"{self.name} cannot be written to now: {_line(cause)}")
        return Trouble(temporary=False, text=f"{self.name}: {_line(cause)} ({state or type(cause).__name__})")

    def tidy(self, rows: int) -> None:
        pass

    # -- the rest

    def reader(self, connections: int) -> Engine:
        return self._engine(
            {"default_transaction_read_only": "on", "statement_timeout": _READ_SECS * 1000},
            poolclass=QueuePool,
            pool_size=connections,
            max_overflow=0,
        )

    def backup(self, path: Path) -> None:
        raise Error(
            f"PostgreSQL makes its own backups; use pg_dump instead of writing {path}", code="not_supported"
        )

    def close(self) -> None:
        self._hang_up()

    def _hang_up(self) -> None:
        # Invalid first: closing alone would ask the server, which may not answer any more.
        with contextlib.suppress(psycopg.Error, SQLAlchemyError):
            self.connection.invalidate()
        with contextlib.suppress(psycopg.Error, SQLAlchemyError):
            self.connection.close()


def _cause(exc: BaseException) -> BaseException:
    return exc.orig if isinstance(exc, DBAPIError) and exc.orig is not None else exc


def _line(exc: BaseException) -> str:
    return " ".join(str(exc).split())[:300]
