# ruff: noqa: ASYNC240 (small files, and nobody waits)
"""The audit log: chained, bounded, and whole again after crashes and full disks (S48, I28)."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from sirepo_jobs.errors import BadInput, Conflict
from sirepo_jobs.frontend import audit
from sirepo_jobs.frontend.audit import START, AuditLog, verify
from sirepo_jobs.frontend.auth import Principal, Scope

ANN = Principal("ann", frozenset({Scope.JOBS_SUBMIT}), "0" * 12, "token")


def note(log: AuditLog, who: Principal | None = ANN, **more: Any) -> None:
    fields: dict[str, Any] = {
        "request_id": "r1", "method": "POST", "path": "/api/v1/jobs", "object_id": "J1",
        "status": 201, "code": "",
    }  # fmt: skip
    log.note(who, **(fields | more))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


async def test_a_chain_goes_on_over_restarts(path: Path) -> None:
    for _ in range(3):
        log = AuditLog(path)
        note(log)
        note(log, None, status=401, code="bad_token")
        log.close()
    assert path.stat().st_mode & 0o777 == 0o600
    found = lines(path)
    assert [line["seq"] for line in found] == [1, 2, 3, 4, 5, 6]
    assert [line["decision"] for line in found[:2]] == ["accepted", "denied"]
    assert verify(path) == (6, found[-1]["hash"])
    assert verify(path, holds=found[2]["hash"]).lines == 6


@pytest.mark.parametrize("change", ["alter", "remove", "swap", "insert", "cut"])
async def test_what_was_tampered_with_is_found(path: Path, change: str) -> None:
    log = AuditLog(path)
    for number in range(5):
        note(log, object_id=f"J{number}")
    log.close()
    head = verify(path).head
    rows = path.read_bytes().splitlines(keepends=True)
    match change:
        case "alter":
            rows[2] = rows[2].replace(b"ann", b"bob")
        case "remove":
            del rows[2]
        case "swap":
            rows[1], rows[2] = rows[2], rows[1]
        case "insert":
            rows.insert(2, b'{"seq":3,"hash":"' + b"0" * 64 + b'"}\n')
        case "cut":
            del rows[4]
    path.write_bytes(b"".join(rows))
    with pytest.raises(BadInput, match=r"does not follow|are missing"):
        verify(path, holds=head)


async def test_a_line_that_a_crash_cut_is_answered_for(path: Path) -> None:
    log = AuditLog(path)
    note(log)
    note(log)
    log.close()
    whole = path.read_bytes()
    path.write_bytes(whole[:-30])
    assert verify(path).lines == 1
    log = AuditLog(path)
    note(log)
    log.close()
    assert verify(path).lines == 3
    path.write_bytes(path.read_bytes().replace(b'"recovered":"', b'"recovered":"0'))
    with pytest.raises(BadInput, match="does not follow"):
        verify(path)


async def test_there_is_one_writer(path: Path) -> None:
    log = AuditLog(path)
    with pytest.raises(Conflict):
        AuditLog(path)
    log.close()


async def test_a_file_of_others_is_not_written_into(path: Path) -> None:
    path.write_bytes(b"something else\n")
    with pytest.raises(BadInput, match="move it away"):
        AuditLog(path)


async def test_lines_are_bounded_whatever_comes(path: Path) -> None:
    log = AuditLog(path)
    note(
        log, path="/" + "\u2028\n" * 100_000, object_id="x" * 10_000, method="P" * 1000, request_id="r" * 1000
    )
    log.close()
    assert path.stat().st_size < 2500
    assert verify(path).lines == 1


async def test_a_flood_of_strangers_is_counted_not_written(path: Path) -> None:
    log = AuditLog(path)
    for _ in range(1000):
        note(log, None, status=401)
    note(log)
    log.close()
    found = lines(path)
    assert len(found) <= 2 * audit.MAX_STRANGERS_PER_SEC + 1
    assert found[-1]["user"] == "ann"
    assert sum(line.get("left_out", 0) for line in found) + len(found) == 1001
    verify(path)


async def test_a_full_disk_keeps_lines_until_it_has_room(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = AuditLog(path)
    note(log)
    real = os.write
    with monkeypatch.context() as patch:
        left = [100]

        def full(fd: int, data: bytes) -> int:
            if not left[0]:
                raise OSError(28, "No space left on device")
            written = real(fd, data[: left[0]])
            left[0] -= written
            return written

        patch.setattr(audit.os, "write", full)
        note(log)
        assert log.trouble == "No space left on device"
    note(log)
    assert log.trouble is None
    log.close()
    assert verify(path).lines == 3


def test_an_empty_log_is_whole(path: Path) -> None:
    path.write_bytes(b"")
    assert verify(path) == (0, START)
