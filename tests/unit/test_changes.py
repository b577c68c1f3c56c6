"""What a PATCH may say (BAN-L12), and where a changed priority puts a job."""

from typing import Any

import msgspec
import pytest

from sirepo_jobs.changes import Changes, changed, parse_change, parse_changes
from sirepo_jobs.errors import BadInput
from sirepo_jobs.resources import Resources
from sirepo_jobs.scheduler import Entry, Scheduler, Shape
from sirepo_jobs.spec import Limits

from .builders import a_spec


def body(value: Any) -> bytes:
    return msgspec.json.encode(value)


def test_a_change_is_merged_and_null_takes_away() -> None:
    spec = a_spec(tags={"a": "1", "b": "2"}, limits=Limits(soft=5.0, grace=1.0))
    change = parse_change(body({"tags": {"a": None, "c": "3"}, "limits": {"hard": "1h", "grace": None}}))
    new = changed(spec, change)
    assert new.tags == {"b": "2", "c": "3"}
    assert new.limits == Limits(soft=5.0, hard=3600.0)
    assert (new.priority, new.command) == (5, ["true"])
    assert change.what == ["tags", "limits"]


@pytest.mark.parametrize(
    ("raw", "pointer", "says"),
    [
        ({}, "", "nothing is to be changed"),
        ({"priorty": 3}, "/priorty", "did you mean 'priority'"),
        ({"priority": 11}, "/priority", "outside 0..10"),
        ({"priority": "high"}, "/priority", "int"),
        ({"command": ["x"]}, "/command", "unknown key"),
        ({"limits": {"sofd": 3}}, "/limits/sofd", "did you mean 'soft'"),
        ({"limits": {"soft": "never"}}, "/limits/soft", "never"),
        ({"tags": {"a": 3}}, "/tags", "str"),
        ({"name": "x" * 201}, "/name", "201 characters"),
        ({"jid": "J1", "priority": 3}, "/jid", "stands in the path"),
        ([], "", "a list"),
    ],
)
def test_changes_that_cannot_be_meant(raw: Any, pointer: str, says: str) -> None:
    with pytest.raises(BadInput, match=says) as caught:
        parse_change(body(raw))
    assert caught.value.pointer.startswith(pointer)


def test_many_come_as_a_list_or_as_banyan_has_it() -> None:
    expected = [Changes(jid="J1", priority=9), Changes(jid="J2", tags={"a": None})]
    items = [{"jid": "J1", "priority": 9}, {"jid": "J2", "tags": {"a": None}}]
    assert parse_changes(body(items)) == expected
    banyan = {"updates": [{"_id": "J1", "priority": 9}, {"_id": "J2", "tags": {"a": None}}]}
    assert parse_changes(body(banyan)) == expected


@pytest.mark.parametrize(
    "raw",
    [
        {"jid": "J1", "priority": 9},
        [],
        [{"priority": 9}],
        [{"jid": "J1", "priority": 9}] * 2,
        [{"jid": f"J{i}", "priority": 9} for i in range(1001)],
        [{"jid": "../x", "priority": 9}],
    ],
)
def test_lists_that_cannot_be_meant(raw: Any) -> None:
    with pytest.raises(BadInput):
        parse_changes(body(raw))


def test_a_moved_entry_leaves_nothing_behind() -> None:
    shape = Shape("local", "local-ann", Resources())
    scheduler = Scheduler()
    old = [Entry(-5, seq, f"J{seq}", "ann", shape) for seq in range(4)]
    for entry in old:
        scheduler.add(entry)
    moved = [old[0]._replace(rank=0), old[3]._replace(rank=-9)]
    for entry in moved:
        scheduler.remove("ann", entry.jid)
    scheduler.bury(moved)
    for entry in moved:
        scheduler.add(entry)
    assert scheduler.ahead("ann", (0, 0)) == (3, False)
    assert [e.jid for e in scheduler.admit(lambda shape, user: None)] == ["J3", "J1", "J2", "J0"]
    assert len(scheduler) == 0
