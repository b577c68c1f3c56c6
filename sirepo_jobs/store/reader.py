"""Asks the questions of `queries.py` on a few threads, so that no question holds up the loop."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from sirepo_jobs.errors import StoreError, Unavailable

from .database import Database

_THREADS = 3

_Answer = TypeVar("_Answer")


class Reader:
    """Connections that only read, and the threads that wait for them."""

    def __init__(self, database: Database, on_damage: Callable[[StoreError], None]) -> None:
        self._database = database
        #: Told on the loop's thread of what forbids writing, too.
        self._on_damage = on_damage
        self._engine = database.reader(_THREADS)
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="store-reader")
        self._closed = False

    async def ask(self, question: Callable[[Connection], _Answer]) -> _Answer:
        """The answer, from what is committed. Raises `Unavailable` for what may pass, else `StoreError`."""
        if self._closed:
            raise StoreError("the store is closed")
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, self._ask, question)
        except StoreError as exc:
            self._on_damage(exc)
            raise

    async def close(self) -> None:
        """Return when the last question is answered; safe to repeat."""
        self._closed = True
        await asyncio.to_thread(self._threads.shutdown)
        self._engine.dispose()

    def _ask(self, question: Callable[[Connection], _Answer]) -> _Answer:
        try:
            try:
                return self._ask_once(question)
            except DBAPIError as exc:
                if not exc.connection_invalidated:
                    raise
                # It was lost while nobody used it; asking twice changes nothing.
                return self._ask_once(question)
        except SQLAlchemyError as exc:
            trouble = self._database.judge(exc)
            if trouble is None:
                raise
            if trouble.temporary:
                raise Unavailable(trouble.text) from exc
            raise StoreError(trouble.text) from exc

    def _ask_once(self, question: Callable[[Connection], _Answer]) -> _Answer:
        with self._engine.connect() as connection:
            return question(connection)
