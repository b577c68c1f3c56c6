"""SQLite: a file, its write-ahead log, and our lock beside them.

The settings are what C13 and C14 ask for. SQLite before 3.51.3 can damage a database when two
connections write or checkpoint at the same moment: here only the writer's connection does either,
and readers open the file read-only.
"""

import contextlib
import logging
import math
import os
import sqlite3
import threading
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from sqlalchemy import Connection, Dialect, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool, QueuePool

from sirepo_jobs.errors import Error, StoreError

from . import migrations
from .claim import first_row
from .database import Trouble
from .lock import FileLock

_log = logging.getLogger(__name__)

#: How long a statement waits for somebody else's lock before it is a temporary error.
_BUSY_SECS = 1.0
#: A read that takes longer is ended: while it lasts, the log cannot be reused (F092).
READ_SECS = 30.0
#: A checkpoint follows after so many rows or transactions; about 4 MB of log.
_CHECKPOINT_ROWS = 4000
_CHECKPOINT_COMMITS = 64
#: From here on we wait for readers to let the log begin anew; it is cut back to half (I31).
_LOG_BYTES = 64 << 20

_SETTINGS = {
    "busy_timeout": int(_BUSY_SECS * 1000),
    "foreign_keys": "ON",
    "synchronous": "FULL",
    #: Checkpoints are ours to make: the automatic one hides its errors.
    "wal_autocheckpoint": 0,
    "journal_size_limit": _LOG_BYTES // 2,
    #: KiB: memory stays small however long the queue is.
    "cache_size": -2048,
    "cell_size_check": "ON",
    "mmap_size": 0,
    "temp_store": "MEMORY",
}

#: What passes by itself, or when somebody helps, and leaves the file as it was.
_TEMPORARY = {
    sqlite3.SQLITE_BUSY: "another process keeps {path} locked; end it",
    sqlite3.SQLITE_LOCKED: "another process keeps {path} locked; end it",
    sqlite3.SQLITE_FULL: "the disk that holds {path} is full; free some space",
    sqlite3.SQLITE_READONLY: "{path} is read-only; make it writable",
    sqlite3.SQLITE_CANTOPEN: "{path} cannot be opened; look at its permissions and the limit on open files",
    sqlite3.SQLITE_NOMEM: "there is no memory left for {path}",
    sqlite3.SQLITE_PROTOCOL: "other processes keep {path} busy; end them",
    sqlite3.SQLITE_INTERRUPT: f"a read of {{path}} took longer than {READ_SECS:g} s; ask for less",
    # The shared-memory index could not grow. It holds nothing that the log does not.
    sqlite3.SQLITE_IOERR_SHMSIZE: "the disk that holds {path} is full; free some space",
}
_DAMAGED = (
    "{path} is damaged ({why}). Keep a copy of it and of {path}-wal, then put the last backup in its place,"
    " or save what is left with `sqlite3 {path} .recover`"
)
_MOVED = "{path} or its log was moved, replaced or removed while in use; put it back and start again"


class _Files(NamedTuple):
    """Which files we opened."""

    device: int
    inode: int
    log_device: int
    log_inode: int


class SqliteDatabase:
    """A database file that this process has locked."""

    def __init__(self, path: Path, *, init: bool) -> None:
        """Lock, check and open it. Raises `StoreLocked` and `StoreError`."""
        if sqlite3.sqlite_version_info < (3, 33):  # UPDATE ... FROM
            raise StoreError(f"SQLite 3.33 or newer is needed; this Python has {sqlite3.sqlite_version}")
        # The same file by another path or a link gets the same lock and the same log.
        self._path = path = Path(os.path.realpath(path))
        self.name = str(path)
        if not path.parent.is_dir():
            raise StoreError(
                f"{path.parent} is not a directory; make it, or name another place for the store"
            )
        self._lock = FileLock(path.with_name(path.name + ".lock"))
        self._lock.acquire()
        with contextlib.ExitStack() as undo:
            undo.callback(self._lock.release)
            try:
                if not path.exists():
                    self._create(init)
                self._inspect()
                engine = self._make_engine("rw", NullPool)
                self.connection: Connection = undo.enter_context(engine.connect())
                self.dialect: Dialect = engine.dialect
                self._raw = _raw(self.connection)
                self._set_up()
            except (sqlite3.Error, DBAPIError) as exc:
                trouble = self.judge(exc)
                raise StoreError(trouble.text if trouble else f"{path}: {exc}") from exc
            undo.pop_all()
        self._files: _Files | None = None
        self._rows = self._commits = 0
        self._patience = _LOG_BYTES

    # -- opening

    def _create(self, init: bool) -> None:
        path = self._path
        if not init:
            raise StoreError(
                f"there is no database at {path}. Put it back, or start a new and empty one with --init"
            )
        for ending in ("-wal", "-journal"):
            if _size(rest := path.with_name(path.name + ending)):
                raise StoreError(
                    f"{rest} is there and its database is not: put {path} back. To begin anew, remove {rest}"
                )
        # Made beside it and renamed: a database that is there is whole, so an empty file is a lost one.
        new = path.with_name(path.name + ".new")
        for leftover in (new, new.with_name(new.name + "-journal")):
            leftover.unlink(missing_ok=True)
        try:
            os.close(os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            engine = create_engine("sqlite://", creator=partial(_connect, new, "rw"), poolclass=NullPool)
            with engine.connect() as connection:
                connection.exec_driver_sql("PRAGMA synchronous = FULL")
                connection.exec_driver_sql("BEGIN IMMEDIATE")
                migrations.upgrade(connection)
                first_row(connection)
                connection.exec_driver_sql("COMMIT")
                connection.exec_driver_sql("PRAGMA journal_mode = WAL")
            os.rename(new, path)
            _sync_directory(path.parent)
        except OSError as exc:
            raise StoreError(f"no database can be made at {path}: {exc.strerror}") from exc

    def _inspect(self) -> None:
        """Refuse what must not be opened. Writes nothing into database and log."""
        path = self._path
        if _size(path) == 0:
            raise StoreError(
                f"{path} has lost its content: put back the last backup, or remove it to begin anew"
            )
        log = path.with_name(path.name + "-wal")
        log_is_empty = log.exists() and _size(log) == 0
        # Only a file that came from elsewhere has a journal: its unfinished change must be undone first.
        unfinished = _size(path.with_name(path.name + "-journal")) > 0
        engine = self._make_engine("rw" if unfinished else "ro", NullPool)
        with engine.connect() as connection:
            if migrations.position(connection) is None:
                raise StoreError(f"{path} is no database of sirepo_jobs; name another place for the store")
            migrations.refuse_newer(connection)
            if connection.exec_driver_sql("SELECT clean FROM meta").scalar():
                return
            if log_is_empty:
                # While the store is in use, and after a crash, the log holds at least our epoch.
                raise StoreError(
                    f"{log} has lost its content, and with it the last changes: put back the last backup of"
                    f" {path}, or remove {log} to go on without them"
                )
            _log.info("the store was not closed; checking %s", path)
            found = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar()
            if found != "ok":
                raise StoreError(_DAMAGED.format(path=path, why=found))

    def _set_up(self) -> None:
        mode = self._raw.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        if mode != "wal":
            raise StoreError(f"the file system of {self._path} allows no write-ahead log; use a local disk")
        for key, value in _SETTINGS.items():
            self._raw.execute(f"PRAGMA {key} = {value}")

    def _make_engine(self, mode: str, pool: type[NullPool] | type[QueuePool], **options: Any) -> Engine:
        return create_engine(
            "sqlite://", creator=partial(_connect, self._path, mode), poolclass=pool, **options
        )

    def settle(self) -> None:
        # Not TRUNCATE: an empty log of an open store is a lost one, see `_inspect`.
        self._raw.execute("PRAGMA wal_checkpoint(FULL)")
        self._files = self._identity()

    # -- writing

    def begin(self) -> None:
        self._raw.execute("BEGIN IMMEDIATE")

    def run(self, sql: str, parameters: Sequence[Any]) -> int:
        before = self._raw.total_changes
        self._raw.execute(sql, parameters)
        return self._raw.total_changes - before

    def fetch(self, sql: str) -> tuple[Any, ...]:
        row: tuple[Any, ...] = self._raw.execute(sql).fetchone()
        return row

    def commit(self) -> None:
        self._raw.execute("COMMIT")
        if self._files is not None and self._identity() != self._files:
            # SQLite writes on into a file that has lost its name (F093).
            raise StoreError(_MOVED.format(path=self._path))

    def rollback(self) -> None:
        if self._raw.in_transaction:
            with contextlib.suppress(sqlite3.Error):
                self._raw.execute("ROLLBACK")

    def judge(self, exc: BaseException) -> Trouble | None:
        cause = exc.orig if isinstance(exc, DBAPIError) else exc
        if not isinstance(cause, sqlite3.Error):
            return None
        code = getattr(cause, "sqlite_errorcode", None)
        if code is None:  # raised by the module, about how we used it
            return None
        if code == sqlite3.SQLITE_READONLY_DBMOVED:
            return Trouble(temporary=False, text=_MOVED.format(path=self._path))
        words = _TEMPORARY.get(code) or _TEMPORARY.get(code & 0xFF)
        if words is not None:
            return Trouble(temporary=True, text=words.format(path=self._path))
        if code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            return Trouble(temporary=False, text=_DAMAGED.format(path=self._path, why=cause))
        return Trouble(temporary=False, text=f"{self._path}: {cause} ({cause.sqlite_errorname})")

    def tidy(self, rows: int) -> None:
        self._rows += rows
        self._commits += 1
        if self._rows < _CHECKPOINT_ROWS and self._commits < _CHECKPOINT_COMMITS:
            return
        self._rows = self._commits = 0
        self._raw.execute("PRAGMA wal_checkpoint(PASSIVE)")
        size = _size(self._path.with_name(self._path.name + "-wal"))
        if size <= _LOG_BYTES:
            self._patience = _LOG_BYTES
        elif size > self._patience:
            # New readers read the file itself by now, so this waits only for those that still run.
            busy = self._raw.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()[0]
            if busy:
                _log.warning(
                    "a reader keeps the log of %s from being reused; it has %d bytes", self._path, size
                )
                self._patience = size + _LOG_BYTES // 4

    def _identity(self) -> "_Files | None":
        try:
            file, log = os.stat(self.name), os.stat(self.name + "-wal")
        except FileNotFoundError:
            return None
        return _Files(file.st_dev, file.st_ino, log.st_dev, log.st_ino)

    # -- the rest

    def reader(self, connections: int) -> Engine:
        engine = self._make_engine("ro", QueuePool, pool_size=connections, max_overflow=0)
        due = threading.local()

        @event.listens_for(engine, "connect")
        def _limit(raw: sqlite3.Connection, _record: object) -> None:
            # the system's page cache serves all readers; one of their own for each would only add up
            raw.execute("PRAGMA cache_size = -512")
            raw.set_progress_handler(lambda: time.monotonic() > getattr(due, "at", math.inf), 1_000_000)

        @event.listens_for(engine, "checkout")
        def _start(_raw: object, _record: object, _proxy: object) -> None:
            due.at = time.monotonic() + READ_SECS

        return engine

    def backup(self, path: Path) -> None:
        copy_file(self._path, path)

    def close(self) -> None:
        # The last connection to close folds the log into the file and removes it.
        with contextlib.suppress(sqlite3.Error, DBAPIError):
            self.connection.close()
        self._lock.release()


def copy_file(source: Path, path: Path) -> None:
    """Write a whole copy of a store that may be in use to a new file, for its owner alone."""
    new = path.with_name(path.name + ".new")
    try:
        os.close(os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        try:
            with contextlib.closing(_connect(source, "ro")) as raw:
                raw.execute("VACUUM INTO ?", (str(new),))
            with contextlib.closing(_connect(new, "rw")) as raw:
                # It is whole, and nobody has it open.
                raw.execute("UPDATE meta SET clean = 1")
                raw.execute("PRAGMA journal_mode = WAL")
            with new.open("rb") as file:
                os.fsync(file.fileno())
            os.rename(new, path)
            _sync_directory(path.parent)
        finally:
            new.unlink(missing_ok=True)
    except (OSError, sqlite3.Error) as exc:
        raise Error(f"no backup could be written to {path}: {exc}", code="backup_failed") from exc


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    """A connection that makes no file, with transactions left to us."""
    return sqlite3.connect(
        f"file:{quote(str(path))}?mode={mode}",
        uri=True,
        timeout=_BUSY_SECS,
        isolation_level=None,
        check_same_thread=False,
    )


def _raw(connection: Connection) -> sqlite3.Connection:
    found = connection.connection.driver_connection
    assert isinstance(found, sqlite3.Connection)
    return found


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
