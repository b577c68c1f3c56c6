"""Lists by whatever is asked: bounded pages that together hold every job once."""

import asyncio
from typing import Any

import msgspec
import pytest

from sirepo_jobs.errors import BadInput
from sirepo_jobs.frontend import query as words
from sirepo_jobs.job import State
from sirepo_jobs.store import JobQuery, Store, lists
from sirepo_jobs.store.unit import NewJob, Unit

from .builders import a_job, a_spec
from .test_store_sqlite import plans

COUNT = 12_000
SEC = 1_000_000


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store with one job per second; every 3rd and 7th have a tag, every 5th is in another queue."""
    url = f"sqlite:///{tmp_path_factory.mktemp('lists')}/jobs.db"

    async def fill() -> None:
        store = Store.open(url)
        store.start(asyncio.get_running_loop(), lambda error: None)
        unit = Unit()
        for seq in range(1, COUNT + 1):
            jid = f"J{seq}"
            tags = {"nr": "7"} if seq % 7 == 0 else {}
            spec = a_spec(tags=tags | ({"kind": "odd"} if seq % 3 == 0 else {}))
            unit.new[jid] = NewJob(
                name="rare" if seq == 3 else "melt",
                driver="local",
                queue="night" if seq % 5 == 0 else "default",
                priority=5,
                spec=msgspec.json.encode(spec),
            )
            state = State.ERROR if seq % 2 else State.COMPLETED
            unit.jobs[jid] = a_job(state, jid=jid, seq=seq, created_at=seq * SEC)
        store.submit(unit)
        await store.flushed()
        await store.close()

    asyncio.run(fill())
    return url


@pytest.fixture(autouse=True)
def short_walks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that twelve thousand jobs are a long history."""
    monkeypatch.setattr(lists, "MAX_WALK", 5000)


async def pages(store: Store, **asked: Any) -> list[list[int]]:
    """The pages of a list, as their jobs' places."""
    found, before = [], None
    while True:
        page = await store.find_jobs(JobQuery(user="ann", before_seq=before, **asked))
        found.append([job.record.seq for job in page.jobs])
        if (before := page.before_seq) is None:
            return found


@pytest.mark.parametrize(
    ("asked", "fits"),
    [
        ({}, lambda seq: True),
        ({"tags": {"nr": "7"}}, lambda seq: seq % 7 == 0),
        ({"tags": {"nr": "8"}}, lambda seq: False),
        ({"queue": "night", "states": [State.ERROR]}, lambda seq: seq % 5 == 0 and seq % 2),
        ({"queue": "night", "tags": {"nr": "7"}}, lambda seq: seq % 35 == 0),
        ({"driver": "slurm"}, lambda seq: False),
        ({"name_prefix": "ra"}, lambda seq: seq == 3),
        ({"name_prefix": "rare", "states": [State.COMPLETED]}, lambda seq: False),
        ({"name_prefix": "mel", "states": [State.ERROR]}, lambda seq: seq != 3 and seq % 2),
        ({"tags": {"nr": "7", "kind": "odd"}}, lambda seq: seq % 21 == 0),
        ({"tags": {"kind": "odd"}, "queue": "night"}, lambda seq: seq % 15 == 0),
        ({"states": [State.CANCELED]}, lambda seq: False),
        ({"created_after": 100 * SEC, "created_before": 200 * SEC}, lambda seq: 100 <= seq < 200),
        ({"created_after": 11_999 * SEC + 1}, lambda seq: seq == COUNT),
        ({"created_before": SEC}, lambda seq: False),
        ({"created_after": (COUNT + 1) * SEC}, lambda seq: False),
    ],
)
async def test_pages_hold_every_job_that_fits_once(url: str, asked: dict[str, Any], fits: Any) -> None:
    store = Store.open(url)
    try:
        found = await pages(store, limit=700, **asked)
    finally:
        await store.close()
    together = [seq for page in found for seq in page]
    assert together == [seq for seq in range(COUNT, 0, -1) if fits(seq)]
    assert all(len(page) <= 700 for page in found)
    assert len(found) <= 1 + max(len(together) // 700, COUNT // 5000) + 1


async def test_the_last_page_says_so(url: str) -> None:
    store = Store.open(url)
    try:
        page = await store.find_jobs(JobQuery(user="ann", before_seq=701, limit=700))
        assert (len(page.jobs), page.before_seq) == (700, None)
    finally:
        await store.close()


async def test_a_page_walks_no_further_than_its_bound(url: str) -> None:
    store = Store.open(url)
    try:
        with plans(store) as asked:
            page = await store.find_jobs(JobQuery(user="ann", driver="slurm", limit=10))
            assert (page.jobs, page.before_seq) == ([], COUNT - 5000 + 1)
            await store.find_jobs(JobQuery(user="ann", created_after=5 * SEC, created_before=9 * SEC))
        assert len(asked) < 60
        assert not [plan for plan in asked if plan.scans]
    finally:
        await store.close()


async def test_a_tag_or_name_that_few_have_is_found_at_once(url: str) -> None:
    """However long the history is, and however many have the other tag."""
    store = Store.open(url)
    try:
        for asked in (
            {"name_prefix": "rar"},
            {"created_before": 42 * SEC, "tags": {"nr": "7", "kind": "odd"}},
        ):
            page = await store.find_jobs(JobQuery(user="ann", limit=10, **asked))
            assert page.before_seq is None
            assert [job.record.seq for job in page.jobs] == [3 if "name_prefix" in asked else 21]
    finally:
        await store.close()


@pytest.mark.parametrize(
    ("raw", "found"),
    [
        ("tag=a:b&tag=c:d,%20e", {"tag": "a:b,c:d%2C%20e"}),
        ("created_after=2030-01-02T03:04:05Z", {"created_after": "1893553445000000"}),
        ("created_before=1970-01-01T01:00:00+01:00", {"created_before": "0"}),
        ("created_before=1969-01-01", {"created_before": "0"}),
        ("fields=jid,state&fields=name", {"fields": "jid,state,name"}),
        ("view=full", {"view": "full"}),
    ],
)
def test_what_is_asked_becomes_canonical(raw: str, found: dict[str, str]) -> None:
    from sirepo_jobs.frontend.routes import ROUTES

    (route,) = [r for r in ROUTES if (r.method, r.path) == ("GET", "/api/v1/jobs")]
    assert words.canonical(raw, route.query) == found


@pytest.mark.parametrize("raw", ["tag=a", "tag=:b", "created_after=soon", "fields=a b", "view=all"])
def test_what_cannot_be_meant_is_refused(raw: str) -> None:
    from sirepo_jobs.frontend.routes import ROUTES

    (route,) = [r for r in ROUTES if (r.method, r.path) == ("GET", "/api/v1/jobs")]
    with pytest.raises(BadInput):
        words.canonical(raw, route.query)
