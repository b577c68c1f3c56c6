"""The one thread that writes: takes everything that waits, commits it together, tells the loop once.

A group is acknowledged after its commit and never otherwise. What may pass (a full disk, a lock, a
server that restarts) keeps the group and tries again; everything else ends the writer for good.
"""

import asyncio
import logging
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue

from sirepo_jobs import failpoints
from sirepo_jobs.errors import StoreError

from .claim import Claim, let_go
from .database import Database
from .statements import Statements
from .unit import Unit

_log = logging.getLogger(__name__)

#: A group is not extended beyond so many rows: the log, the memory and the wait for it stay bounded.
GROUP_ROWS = 20_000
_FIRST_PAUSE_SECS = 0.02
_LAST_PAUSE_SECS = 2.0


class Writer:
    """Owns the connection that writes, from `start` to `close`."""

    def __init__(self, database: Database, claim: Claim) -> None:
        self._database = database
        self._epoch = claim.epoch
        self._number = claim.commits
        self._statements = Statements(database)
        #: None says that nothing follows.
        self._queue: SimpleQueue[Unit | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()
        self._drained = False
        self._failure: StoreError | None = None
        self._waiting: set[asyncio.Future[None]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._on_fatal: Callable[[StoreError], None] = _nobody
        #: Why nothing can be written at present, one sentence; None while all is well.
        self.degraded: str | None = None

    @property
    def waiting(self) -> int:
        """Units that no group has taken yet."""
        return self._queue.qsize()

    def start(self, loop: asyncio.AbstractEventLoop, on_fatal: Callable[[StoreError], None]) -> None:
        """Begin to write; callbacks and `on_fatal` run on `loop`'s thread."""
        assert self._thread is None, "the store is started once"
        self._loop = loop
        self._on_fatal = on_fatal
        self._thread = threading.Thread(target=self._run, name="store-writer", daemon=True)
        self._thread.start()

    def submit(self, unit: Unit) -> None:
        """Write `unit`, which is ours from now on; see `Store.submit`."""
        if self._failure is not None:
            return
        if self._closing.is_set():
            raise StoreError("the store is closed")
        self._queue.put(unit)

    async def flushed(self) -> None:
        """Return when everything submitted before is durable; raises what ended the writer."""
        if self._failure is not None:
            raise self._failure
        durable: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def tell() -> None:
            if not durable.done():
                durable.set_result(None)

        self._waiting.add(durable)
        try:
            self.submit(Unit(done=[tell]))
            await durable
        finally:
            self._waiting.discard(durable)

    async def close(self) -> None:
        """Write what waits, or try once more if that could not be done; then end the thread."""
        if self._thread is None:
            self.start(asyncio.get_running_loop(), _nobody)
            assert self._thread is not None
        if not self._closing.is_set():
            self._closing.set()
            self._queue.put(None)
        await asyncio.to_thread(self._thread.join)

    def fail(self, error: StoreError) -> None:
        """Stop writing for good; the first error is told. On the loop's thread."""
        if self._failure is None:
            self._failure = error
            self.degraded = str(error)
            self._closing.set()
            self._queue.put(None)
            for durable in self._waiting:
                if not durable.done():
                    durable.set_exception(error)
            self._on_fatal(error)

    # -- the thread

    def _run(self) -> None:
        try:
            while (group := self._gather()) is not None:
                self._make_durable(group)
                if group.done:
                    self._tell(_call_all, group.done)
                self._tidy(_rows(group))
            if self._failure is None:
                let_go(self._database)
        except StoreError as exc:
            self._tell(self.fail, exc)
        except Exception as exc:  # noqa: BLE001 - the edge of the thread
            trouble = self._database.judge(exc)
            if trouble is not None and trouble.temporary:
                # While letting go: all is durable, and the next opening checks the file.
                _log.warning("the store could not be closed in good order: %s", trouble.text)
                return
            if trouble is None:
                _log.exception("the writer failed")
            error = StoreError(trouble.text if trouble else f"a bug: {type(exc).__name__}: {exc}")
            error.__cause__ = exc
            self._tell(self.fail, error)

    def _gather(self) -> Unit | None:
        """What waits, merged, as soon as there is anything; None at the end."""
        group = None if self._drained else self._queue.get()
        if group is None or self._failure is not None:
            return None
        rows = _rows(group)
        while rows < GROUP_ROWS:
            try:
                later = self._queue.get_nowait()
            except Empty:
                break
            if later is None:
                self._drained = True
                break
            rows += _rows(later)
            group.absorb(later)
        return group

    def _make_durable(self, group: Unit) -> None:
        """Return once `group` is committed; raises whatever is not temporary."""
        if not _rows(group):
            return
        pause = _FIRST_PAUSE_SECS
        while True:
            try:
                self._commit(group)
            except Exception as exc:
                self._database.rollback()
                trouble = self._database.judge(exc)
                if trouble is None or not trouble.temporary:
                    raise
                if self._closing.is_set():
                    raise StoreError(
                        f"closed with changes that could not be written: {trouble.text}"
                    ) from exc
                if self.degraded != trouble.text:
                    _log.warning("waiting: %s", trouble.text)
                    self.degraded = trouble.text
            else:
                break
            self._closing.wait(pause)
            pause = min(2 * pause, _LAST_PAUSE_SECS)
        if self.degraded is not None:
            _log.warning("writing again")
            self.degraded = None

    def _commit(self, group: Unit) -> None:
        self._database.begin()
        if self._statements.fence(self._epoch, self._number + 1):
            self._statements.write(group)
            failpoints.hit("store.before_commit")
            self._database.commit()
            failpoints.hit("store.after_commit")
        else:
            # An earlier try was committed though it looked as if it was not.
            self._database.rollback()
        self._number += 1

    def _tidy(self, rows: int) -> None:
        try:
            self._database.tidy(rows)
        except Exception as exc:
            trouble = self._database.judge(exc)
            if trouble is None or not trouble.temporary:
                raise
            _log.info("housekeeping is put off: %s", trouble.text)

    def _tell(self, act: Callable[..., object], *args: object) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(act, *args)
        except RuntimeError:
            _log.warning("the loop ended before its store")


def _rows(unit: Unit) -> int:
    return (
        len(unit.jobs)
        + len(unit.new)
        + len(unit.events)
        + len(unit.attempts)
        + len(unit.agents)
        + len(unit.keys)
        + len(unit.tokens)
        + len(unit.dead_tokens)
        + bool(unit.keys_before)
    )


def _nobody(_error: StoreError) -> None:
    """Nobody asked to be told."""


def _call_all(done: list[Callable[[], None]]) -> None:
    for act in done:
        try:
            act()
        except Exception as exc:  # noqa: BLE001 - somebody else's code
            # The ones behind it have been promised the same.
            asyncio.get_running_loop().call_exception_handler(
                {"message": "a callback of the store failed", "exception": exc}
            )
