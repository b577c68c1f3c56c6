"""The filter of idempotency keys: what it calls new is new, whatever happens meanwhile (I2)."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from sirepo_jobs import known_keys
from sirepo_jobs.commits import Commits
from sirepo_jobs.errors import Unavailable
from sirepo_jobs.known_keys import KnownKeys
from sirepo_jobs.store import KeyRow, Store


@asynccontextmanager
async def opened(root: Path) -> AsyncIterator[tuple[Store, Commits, KnownKeys]]:
    store = Store.open(f"sqlite:///{root}/jobs.db")
    loop = asyncio.get_running_loop()
    store.start(loop, lambda error: None)
    commits = Commits(store, loop)
    try:
        yield store, commits, KnownKeys(store, commits)
    finally:
        commits.close()
        await store.close()


def make(commits: Commits, known: KnownKeys, *keys: str, user: str = "ann") -> None:
    for key in keys:
        known.add(user, key)
        commits.unit.keys.append(KeyRow(user=user, key=key, digest=b"d", jids=["J"], created_at=1))


async def test_what_the_store_has_is_never_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also what is written before, while and after it is looked through, page by page."""
    monkeypatch.setattr(known_keys, "PAGE", 7)
    async with opened(tmp_path) as (_, commits, known):
        make(commits, known, *(f"k{n}" for n in range(50)))
        await commits.durable()
    async with opened(tmp_path) as (store, commits, known):
        assert known.due()
        assert not known.surely_new("ann", "x"), "nothing is known yet"
        make(commits, known, "before")
        learning = asyncio.create_task(known.learn())
        for later in range(40):
            make(commits, known, f"a{later}", f"z{later}")
            await asyncio.sleep(0)
        await learning
        make(commits, known, "after")
        await commits.durable()
        assert not known.due()
        stored = await store.keys(after=None, limit=10_000)
        assert len(stored) == 52 + 2 * 40
        assert not [name for name in stored if known.surely_new(*name)]
        fresh = [f"new{n}" for n in range(1000)]
        assert sum(known.surely_new("ann", key) for key in fresh) > 990
        assert known.surely_new("bob", "k1"), "of another user"


async def test_it_is_made_anew_when_much_was_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was forgotten leaves marks; a full filter only asks more often than it need."""
    monkeypatch.setattr(known_keys, "SIZE_BYTES", 16)
    monkeypatch.setattr(known_keys, "RENEW", 100)
    async with opened(tmp_path) as (_, commits, known):
        await known.learn()
        make(commits, known, *(f"k{n}" for n in range(99)))
        assert not known.due()
        assert sum(known.surely_new("ann", f"new{n}") for n in range(100)) < 50, "it is full"
        make(commits, known, "k99")
        assert known.due()
        await commits.durable()
        commits.unit.keys_before = 2
        await commits.durable()
        await known.learn()
        assert not known.due()
        assert all(known.surely_new("ann", f"k{n}") for n in range(100))


async def test_a_store_that_does_not_answer_leaves_all_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path) as (store, _, known):

        async def fail(**_: object) -> None:
            raise error

        monkeypatch.setattr(store, "keys", fail)
        error: Exception = Unavailable("busy")
        await known.learn()
        assert known.due(), "later"
        error = ValueError("a key that is no text")
        await known.learn()
        assert not known.due(), "never"
        assert not known.surely_new("ann", "x")
