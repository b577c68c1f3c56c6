"""What the store needs from a kind of database: one connection that writes, some that read, and a lock."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from sqlalchemy import Connection, Dialect, Engine


class Trouble(NamedTuple):
    """What an exception of the database means for us."""

    #: The same transaction may succeed later; nothing of it was written, or the fence will tell (F099).
    temporary: bool
    #: One sentence for people.
    text: str


class Database(Protocol):
    """One database with its lock held. After opening, only the writer's thread uses it.

    Every method but `judge` and `reader` may raise what the database's driver raises; `judge` says
    what it means.
    """

    #: For messages.
    name: str
    #: The only connection that writes.
    connection: Connection
    #: To compile statements for `run`: positional parameters.
    dialect: Dialect

    def settle(self) -> None:
        """Called once, after the claim is committed."""
        ...

    def begin(self) -> None:
        """Begin a transaction, on a new connection if the old one was lost. Raises `StoreError` for good."""
        ...

    def run(self, sql: str, parameters: Sequence[Any]) -> int:
        """Run one statement; how many rows it touched."""
        ...

    def fetch(self, sql: str) -> tuple[Any, ...]:
        """The one row of a query."""
        ...

    def commit(self) -> None:
        """Make the transaction durable. Raises `StoreError` if it went where nobody will find it."""
        ...

    def rollback(self) -> None:
        """Forget the transaction. Never raises."""
        ...

    def judge(self, exc: BaseException) -> Trouble | None:
        """What an exception means; None if it does not come from the database, so it is a bug of ours."""
        ...

    def tidy(self, rows: int) -> None:
        """Housekeeping between transactions; `rows` were written since the last call."""
        ...

    def reader(self, connections: int) -> Engine:
        """Up to so many connections that cannot write and end a read that takes too long."""
        ...

    def backup(self, path: Path) -> None:
        """Write a copy as of now to a new file; for any thread."""
        ...

    def close(self) -> None:
        """Close the connection and release the lock; the last call. Never raises."""
        ...
