"""What is forgotten, and when."""

import asyncio
from pathlib import Path

from sirepo_jobs.commits import Commits
from sirepo_jobs.retention import Retention
from sirepo_jobs.store import KeyRow, Store, Unit
from sirepo_jobs.token_book import TokenBook
from sirepo_jobs.tokens import TokenOrder, check_order

DAY = 86_400_000_000


async def test_keys_and_tokens_go_when_their_time_is_over(tmp_path: Path) -> None:
    now = 1000 * DAY
    store = Store.open(f"sqlite:///{tmp_path}/jobs.db")
    loop = asyncio.get_running_loop()
    store.start(loop, lambda error: None)
    try:
        commits = Commits(store, loop)
        book = TokenBook(store, commits, lambda: now)
        retention = Retention(
            store, commits, book, lambda: now, keys_secs=7 * 86400, dead_tokens_secs=30 * 86400
        )
        kept, short, revoked = [
            (await book.create(check_order(TokenOrder(user="ann", expires_in=secs)), "root"))[1].token
            for secs in (300 * 86400.0, 86400.0, 300 * 86400.0)
        ]
        await book.revoke(revoked, user="root", is_admin=True, scopes=frozenset(), own="")
        store.submit(Unit(keys=[KeyRow(user="ann", key="K", digest=b"d", jids=["J"], created_at=now)]))
        await store.flushed()

        async def left_after(days: int) -> tuple[set[str], bool]:
            nonlocal now
            now += days * DAY
            await retention.forget()
            await commits.durable()
            assert {row.token for row in book.listed(None)} == {row.token for row in await store.tokens()}
            return {row.token for row in book.listed(None)}, await store.key("ann", "K") is not None

        assert await left_after(6) == ({kept, short, revoked}, True)
        assert await left_after(2) == ({kept, short, revoked}, False)
        assert await left_after(22) == ({kept, short, revoked}, False)
        assert await left_after(1) == ({kept, short}, False)
        assert await left_after(1) == ({kept}, False)
    finally:
        await store.close()
