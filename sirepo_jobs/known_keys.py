"""Which idempotency keys are surely new, told from memory, so that a submission need not ask the store.

A filter of fixed size (Bloom's): "surely new" is believed, since every key of the store has left its marks;
"perhaps known" is for the store to decide, whose unique index stays the judge (I2, F144). Marks are not
taken back when a key is forgotten, so now and then the filter is made anew.
"""

from collections.abc import Iterable
from hashlib import blake2b
from struct import unpack
from typing import Final

import structlog

from .commits import Commits
from .errors import Unavailable
from .store import Store

_log = structlog.get_logger(__name__)

#: 16 million marks, 4 for each key: of a million and a half of new keys one in a hundred looks known.
SIZE_BYTES: Final = 2 << 20
#: Made anew after so many more keys.
RENEW: Final = 1_000_000
#: Keys read from the store at once.
PAGE: Final = 500


class KnownKeys:
    """Every key of one store has its marks here, once `learn` has been through it."""

    def __init__(self, store: Store, commits: Commits) -> None:
        self._store = store
        self._commits = commits
        self._marks = bytearray(SIZE_BYTES)
        #: Those of the filter that is being made.
        self._fresh: bytearray | None = None
        self._learned = False
        self._unreadable = False
        #: Keys since it was made.
        self._added = 0

    def due(self) -> bool:
        """It is time to `learn`."""
        return not self._unreadable and (not self._learned or self._added >= RENEW)

    def surely_new(self, user: str, key: str) -> bool:
        """The store has no such key, nor was one ever added here."""
        marks = self._marks
        return self._learned and not all(marks[at >> 3] >> (at & 7) & 1 for at in _places(user, key))

    def add(self, user: str, key: str) -> None:
        """To be said in the same turn in which the key goes into a unit."""
        self._added += 1
        for marks in filter(None, (self._marks, self._fresh)):
            _mark(marks, [(user, key)])

    async def learn(self) -> None:
        """Read all keys; what is added meanwhile is marked, too. Until it is done nothing is surely new."""
        fresh = self._fresh = bytearray(SIZE_BYTES)
        try:
            # rows of units that are not durable yet would be missed
            await self._commits.durable()
            after = None
            while page := await self._store.keys(after=after, limit=PAGE):
                _mark(fresh, page)
                after = page[-1]
        except Unavailable as exc:
            _log.info("idempotency keys are looked through later", why=str(exc))
        except Exception:  # noqa: BLE001 (without the filter all is as right, and slower)
            # the store is asked for each
            self._unreadable = True
            self._learned = False
            _log.exception("idempotency keys cannot be looked through")
        else:
            self._marks, self._learned, self._added = fresh, True, 0
        finally:
            self._fresh = None


def _places(user: str, key: str) -> tuple[int, ...]:
    """Where a key has its marks."""
    digest = blake2b(f"{user}\0{key}".encode(errors="surrogatepass"), digest_size=16).digest()
    return tuple(number % (SIZE_BYTES * 8) for number in unpack("<4I", digest))


def _mark(marks: bytearray, keys: Iterable[tuple[str, str]]) -> None:
    for user, key in keys:
        for at in _places(user, key):
            marks[at >> 3] |= 1 << (at & 7)
