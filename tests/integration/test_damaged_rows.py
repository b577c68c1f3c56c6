"""Rows of the store that cannot be read: each costs itself alone (F015)."""

import asyncio
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from sirepo_jobs import protocol as p
from sirepo_jobs.job import State
from tests.scripted import ScriptedDriver
from tests.service_stage import eventually, service_of

JOBS = "/api/v1/jobs"
GARBAGE: list[Any] = [b"", b"\xff\xfe{", b"[]", b'{"jid":7}', b"null", "text", -7, 1 << 62, b"{" * 300]
COLUMNS = {
    "jobs": ("user", "state", "priority", "queue", "driver", "name", "created_at", "ended_at", "version",
             "agent", "record"),
    "specs": ("spec",),
    "attempts": ("record",),
    "events": ("at", "kind", "state", "data"),
    "agents": ("environment", "handle", "install", "boot_id"),
    "tokens": ("digest", "role", "scopes", "name", "expires_at", "used_day"),
    "idempotency": ("digest", "jids"),
}  # fmt: skip


async def a_store(root: Path) -> tuple[dict[str, str], ScriptedDriver]:
    """A store with a job of every kind: one that is over, one that runs, one that waits for its cpus."""
    root.mkdir()  # noqa: ASYNC240 (nobody else is on this loop)
    async with service_of(root) as service:
        jids = {}
        reply = await service.ask("POST", JOBS, {"command": ["true"]}, headers={"Idempotency-Key": "k"})
        jids["over"] = reply.json["jid"]
        agent = await service.house.agent("local-root")
        await agent.until(lambda: jids["over"] in agent.runs)
        agent.starts(jids["over"])
        agent.exits(jids["over"], 3)
        await service.house.over(jids["over"])
        jids["runs"] = (await service.ask("POST", JOBS, {"command": ["true"]})).json["jid"]
        await agent.until(lambda: jids["runs"] in agent.runs)
        agent.starts(jids["runs"])
        await service.house.until(jids["runs"], lambda job: job.record.state is State.RUNNING)
        spec = {"command": ["true"], "resources": {"cpus": 2}, "tags": {"a": "b"}}
        jids["waits"] = (await service.ask("POST", JOBS, spec)).json["jid"]
        await service.a_token("ann")
        await service.house.supervisor.commits.durable()
        return jids, service.house.driver


def spoil(root: Path, table: str, column: str, value: Any, where: str = "1") -> int:
    with closing(sqlite3.connect(root / "jobs.db")) as raw, raw:
        raw.execute("PRAGMA foreign_keys = off")
        return raw.execute(f'UPDATE {table} SET "{column}" = ? WHERE {where}', (value,)).rowcount


async def test_whatever_column_holds_garbage_the_service_starts_and_lists(tmp_path: Path) -> None:
    """All rows of a table at once, one column after the other; what is new runs as ever."""
    jids, _ = await a_store(tmp_path / "good")
    for number, (table, column) in enumerate((t, c) for t, columns in COLUMNS.items() for c in columns):
        value = GARBAGE[number % len(GARBAGE)]
        root = tmp_path / "bad"
        shutil.copytree(tmp_path / "good", root)
        assert spoil(root, table, column, value) > 0
        async with service_of(root) as service:
            said = f"{table}.{column} = {value!r}"
            page = await service.ask("GET", f"{JOBS}?view=full&user=")
            assert page.status == 200, (said, page)
            if column != "user":
                assert {job["jid"] for job in page.json["jobs"]} >= set(jids.values()), said
            for jid in jids.values():
                for path in ("", "/events", "/attempts"):
                    reply = await service.ask("GET", f"{JOBS}/{jid}{path}")
                    assert reply.status in (200, 404, 409), (said, path, reply)
            fresh = (await service.ask("POST", JOBS, {"command": ["true"]})).json["jid"]
            job = await service.house.job(fresh)
            assert job.record.state in (State.PENDING, State.STARTING), said
        shutil.rmtree(root)


@pytest.mark.parametrize("what", ["record", "spec"])
async def test_a_damaged_job_is_shown_explained_and_left_alone_while_others_run(
    tmp_path: Path, what: str
) -> None:
    root = tmp_path / "root"
    jids, driver = await a_store(root)
    bad = jids["runs"]
    where = f"seq = (SELECT seq FROM jobs WHERE jid = '{bad}')"
    spoil(root, "jobs" if what == "record" else "specs", what, b'{"jid":', where)
    before = (root / "jobs.db").stat()
    assert before.st_size > 0
    async with service_of(root, driver=driver) as service:
        listed = {job["jid"]: job for job in (await service.ask("GET", JOBS)).json["jobs"]}
        shown = (await service.ask("GET", f"{JOBS}/{bad}")).json
        for job in (listed[bad], shown):
            assert (job["state"], job["reason"]) == ("running", "INTERNAL_ERROR")
        assert "restore a backup" in shown["situation"]
        refused = await service.ask("POST", f"{JOBS}/{bad}/cancel")
        assert (refused.status, refused.json["code"]) == (409, "damaged_record")
        changed = await service.ask(
            "PATCH", JOBS, [{"jid": bad, "priority": 9}, {"jid": jids["waits"], "priority": 8}]
        )
        assert [result["status"] for result in changed.json["results"]] == [409, 200]
        assert service.house.supervisor.status()["damaged_jobs"] == 1
        # its agent has it still: it is kept and shown, as after a restored backup
        agent = driver.agents["local-root"]
        agent.connect(service.house.talk)
        claim = service.house.supervisor.agents.get("local-root")
        assert claim is not None
        await eventually(lambda: claim.foreign == {f"{bad}/1"})
        assert agent.heard(p.Cancel) == []
        # what waited behind it, and what comes now, goes on
        await agent.until(lambda: jids["waits"] in agent.runs)
        agent.starts(jids["waits"])
        agent.exits(jids["waits"], 0)
        job = await asyncio.wait_for(service.house.over(jids["waits"]), 60)
        assert job.record.state is State.COMPLETED
    with closing(sqlite3.connect(root / "jobs.db")) as raw:
        table, key = ("jobs", "seq") if what == "record" else ("specs", "seq")
        kept = raw.execute(
            f"SELECT {what} FROM {table} WHERE {key} = (SELECT seq FROM jobs WHERE jid = ?)", (bad,)
        )
        assert kept.fetchone() == (b'{"jid":',)
