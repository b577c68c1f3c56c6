"""The stream of events: every one once and in order, and no walk without an end."""

import asyncio
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from sirepo_jobs import event_hub
from sirepo_jobs.event_hub import EventHub
from sirepo_jobs.job import State
from sirepo_jobs.store import EventRow, Store, Unit


def an_event(seq: int, user: str) -> EventRow:
    return EventRow(
        seq=seq,
        jid=f"J{seq}",
        user=user,
        version=1,
        at=seq,
        kind="Submitted",
        state=State.PENDING,
        data=b"{}",
    )


@pytest.mark.parametrize("page", [1, 2, 500])
async def test_a_user_with_few_events_among_many_gets_each_of_them_in_bounded_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, page: int
) -> None:
    """Whoever resumed at an old position made the store walk everybody's events in one go."""
    monkeypatch.setattr(event_hub, "WINDOW", 100)
    monkeypatch.setattr(event_hub, "PAGE", page)
    store = Store.open(f"sqlite:///{tmp_path}/jobs.db")
    store.start(asyncio.get_running_loop(), lambda error: None)
    try:
        # his first and last lie at the edges of a window
        of_bob = [1, 100, 101, 555, 1000, 1200]
        rows = [an_event(seq, "bob" if seq in of_bob else "ann") for seq in range(1, 1201)]
        store.submit(Unit(events=rows[:1000]))
        await store.flushed()
        looks: list[tuple[int, int]] = []
        read = store.events

        async def watched(*, after: int, upto: int, **words: Any) -> list[EventRow]:
            looks.append((after, upto))
            return await read(after=after, upto=upto, **words)

        monkeypatch.setattr(store, "events", watched)
        hub = EventHub(store, 1000)
        async with aclosing(hub.follow(0, user="bob")) as flow:
            heard: list[int] = []
            while len(heard) < len(of_bob) - 1:
                heard += [row.seq for row in await anext(flow)]
            assert heard == of_bob[:-1]
            assert max(upto - after for after, upto in looks) <= 100
            coming = asyncio.ensure_future(anext(flow))
            hub.publish(rows[1000:])
            assert [row.seq for row in await coming] == [1200]
    finally:
        await store.close()


async def test_a_listener_that_is_behind_gets_every_row_of_the_ring_once(tmp_path: Path) -> None:
    """However far behind it is, and however the pieces fall, without a look into the store."""
    store = Store.open(f"sqlite:///{tmp_path}/jobs.db")
    store.start(asyncio.get_running_loop(), lambda error: None)
    try:
        hub = EventHub(store, 100)
        rows = [an_event(seq, "ann") for seq in range(101, 151)]
        for start, stop in ((0, 1), (1, 30), (30, 50)):
            hub.publish(rows[start:stop])
        for after in (100, 101, 129, 130, 149):
            async with aclosing(hub.follow(after, user=None)) as flow:
                assert [row.seq for row in await anext(flow)] == list(range(after + 1, 151))
                coming = asyncio.ensure_future(anext(flow))
                await asyncio.sleep(0)
                assert not coming.done()
                coming.cancel()
                await asyncio.wait({coming})
    finally:
        await store.close()
