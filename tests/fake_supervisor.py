"""A stand-in for the supervisor: the same routes on the same kind of socket, jobs that do as they are told.

Tests of the front end, the client and the command line speak to it. It keeps what it was asked, so
that a test can say what the front end sent.
"""

import asyncio
import contextlib
import hashlib
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from tornado.httpserver import HTTPServer
from tornado.iostream import StreamClosedError
from tornado.netutil import bind_unix_socket
from tornado.web import Application, Finish, RequestHandler

from sirepo_jobs.job import FINAL
from sirepo_jobs.run_tree import ON_DISK, OPENS_FILES, OnDisk

SECRET = "s" * 43  # what a supervisor would make at random
_BLOCK = bytes(range(256)) * 256


def big_digest(size: int) -> str:
    """Of the stdout of the job `big`."""
    digest = hashlib.sha256()
    for start in range(0, size, len(_BLOCK)):
        digest.update(_BLOCK[: size - start])
    return digest.hexdigest()


class FakeSupervisor:
    """Serves on `root/supervisor.sock`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.jobs: dict[str, dict[str, Any]] = {}
        self.logs: dict[tuple[str, str], bytearray] = {}
        #: Outputs that a front end may read itself, and how far they reach, as decimal lines.
        self.disk: dict[str, tuple[OnDisk, bytearray]] = {}
        self.keys: dict[str, tuple[bytes, list[str]]] = {}
        self.secret = SECRET
        #: (method, path with query, headers, body) of every request, in order.
        self.asked: list[tuple[str, str, dict[str, str], bytes]] = []
        self.changed = asyncio.Condition()
        #: Streams that are open now, and that ever were.
        self.streams = 0
        self.opened = 0
        self.round = 0
        #: After so many bytes a log stream breaks off, once.
        self.cut_after: int | None = None
        #: So many requests are received and not answered: the connection is closed.
        self.drop = 0
        #: Length of the stdout of `big`; 200 MB, as the issue has it, take two seconds.
        self.big_bytes = 20_000_000
        #: Bytes of `big` written so far.
        self.written = 0
        self._server: HTTPServer | None = None

    def start(self) -> None:
        """Listen."""
        (self.root / "secret").write_text(self.secret)
        application = Application(
            [
                (r"/(?:healthz|readyz)", _Ready),
                (r"/api/v1/jobs", _Jobs),
                (r"/api/v1/jobs/([^/]+)", _Job),
                (r"/api/v1/jobs/([^/]+)/(cancel|hold|release|retry|suspend|resume)", _Verb),
                (r"/api/v1/jobs/([^/]+)/logs/(stdout|stderr)", _Logs),
                (r"/api/v1/events", _Events),
                (r"/api/v1/agents/stop", _StopAgents),
            ],
            fake=self,
            log_function=lambda handler: None,
        )
        self._server = HTTPServer(application, max_body_size=1 << 30)
        with contextlib.suppress(FileNotFoundError):
            (self.root / "supervisor.sock").unlink()
        # By way of the working directory's descriptor: test directories have long names.
        fd = os.open(self.root, os.O_PATH)
        self._server.add_socket(bind_unix_socket(f"/proc/self/fd/{fd}/supervisor.sock", mode=0o600))
        os.close(fd)

    async def stop(self) -> None:
        """Hang up and be gone."""
        assert self._server is not None
        self._server.stop()
        (self.root / "supervisor.sock").unlink()
        await self._server.close_all_connections()

    def add(self, jid: str, **fields: Any) -> dict[str, Any]:
        """A job that is there without having been submitted."""
        job = {
            "jid": jid,
            "serial": 1,
            "attempt": 1,
            "state": "running",
            "version": 1,
            "name": "",
            "user": "somebody",
            "driver": "local",
            "created_at": "2030-01-02T03:04:05.000006Z",
        } | fields
        self.jobs[jid] = job
        for stream in ("stdout", "stderr"):
            self.logs.setdefault((jid, stream), bytearray())
        return job

    async def change(self, jid: str, **fields: Any) -> None:
        """Something happens to a job."""
        async with self.changed:
            self.jobs[jid] |= fields
            self.jobs[jid]["version"] += 1
            self.changed.notify_all()

    async def end_streams(self) -> None:
        """Every stream that is open comes to a proper end."""
        async with self.changed:
            self.round += 1
            self.changed.notify_all()

    async def write(self, jid: str, data: bytes, stream: str = "stdout") -> None:
        """The job says something."""
        async with self.changed:
            self.logs[jid, stream] += data
            self.changed.notify_all()


class _Handler(RequestHandler):
    @property
    def fake(self) -> FakeSupervisor:
        return self.settings["fake"]

    def prepare(self) -> None:
        request = self.request
        self.fake.asked.append((request.method, request.uri, dict(request.headers), request.body))
        if self.fake.drop:
            self.fake.drop -= 1
            request.connection.stream.close()
            raise Finish
        if request.headers.get("Authorization") != f"Bearer {self.fake.secret}":
            self.problem(401, "unauthorized", "wrong secret")

    def problem(self, status: int, code: str, detail: str) -> None:
        self.set_status(status)
        self.set_header("Content-Type", "application/problem+json")
        self.finish(
            json.dumps(
                {
                    "type": "about:blank",
                    "title": "problem",
                    "status": status,
                    "code": code,
                    "detail": detail,
                    "request_id": self.request.headers.get("X-Request-Id", ""),
                }
            )
        )

    def job(self, jid: str) -> dict[str, Any] | None:
        job = self.fake.jobs.get(jid)
        if job is None:
            self.problem(404, "not_found", f"no job {jid}")
        return job


class _Ready(_Handler):
    def get(self) -> None:
        self.write({"status": "ready", "inside": "nobody's business"})


class _Jobs(_Handler):
    async def post(self) -> None:
        body = json.loads(self.request.body)
        key = self.request.headers.get("Idempotency-Key")
        if key in self.fake.keys:
            first, jids = self.fake.keys[key]
            if first != self.request.body:
                self.problem(409, "idempotency_key_reused", "another spec came with this key")
                return
        else:
            jids = [spec.get("jid") or f"J{len(self.fake.jobs) + i}" for i, spec in enumerate(body["jobs"])]
            for jid, spec in zip(jids, body["jobs"], strict=True):
                self.fake.add(jid, state="pending", attempt=0, name=spec.get("name", ""), spec=spec)
            if key:
                self.fake.keys[key] = (self.request.body, jids)
        made = [{"jid": jid, "serial": 1, "state": "pending"} for jid in jids]
        self.set_status(201)
        if body["batch"]:
            self.write({"jobs": made})
            return
        self.set_header("Location", f"/api/v1/jobs/{jids[0]}")
        if wait := float(self.get_argument("wait", "0s").removesuffix("s")):
            job = self.fake.jobs[jids[0]]
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait), self.fake.changed:
                    await self.fake.changed.wait_for(lambda: job["state"] in FINAL)
            self.write(job)
        else:
            self.write(made[0])

    def get(self) -> None:
        start = int(self.get_argument("cursor", "0"))
        limit = int(self.get_argument("limit", "100"))
        states = self.get_argument("state", "").replace("active", "pending,running,canceling")
        jobs = [job for job in self.fake.jobs.values() if not states or job["state"] in states.split(",")]
        tags = [tuple(tag.split(":")) for tag in self.get_argument("tag", "").split(",") if tag]
        jobs = [job for job in jobs if all(job.get("tags", {}).get(name) == value for name, value in tags)]
        more = start + limit < len(jobs)
        self.write({"jobs": jobs[start : start + limit], "next_cursor": str(start + limit) if more else None})


class _Job(_Handler):
    async def get(self, jid: str) -> None:
        if (job := self.job(jid)) is None:
            return
        wait = float(self.get_argument("wait", "0s").removesuffix("s"))
        version = int(self.get_argument("version", "0"))
        until_ended = self.get_argument("until", "") == "ended"

        def come() -> bool:
            return job["state"] in FINAL if until_ended else job["version"] > version

        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait), self.fake.changed:
                await self.fake.changed.wait_for(come)
        self.write(job)


class _Verb(_Handler):
    async def post(self, jid: str, verb: str) -> None:
        if (job := self.job(jid)) is None:
            return
        if verb == "release" and job["state"] != "held":
            self.problem(409, "conflict", f"a job that is {job['state']} cannot be told to release")
            return
        state = {
            "cancel": "canceling",
            "hold": "held",
            "release": "pending",
            "retry": "pending",
            "suspend": "suspended",
            "resume": "running",
        }[verb]
        await self.fake.change(jid, state=state)
        self.write(job)


class _StopAgents(_Handler):
    def post(self) -> None:
        self.write({})


class _Stream(_Handler):
    async def send(self, pieces: AsyncIterator[bytes]) -> None:
        self.fake.streams += 1
        self.fake.opened += 1
        try:
            await self.flush()
            async for piece in pieces:
                self.write(piece)
                await self.flush()
        except StreamClosedError:
            pass
        finally:
            self.fake.streams -= 1

    def on_connection_close(self) -> None:
        self.gone = True
        asyncio.create_task(self._wake())  # noqa: RUF006

    async def _wake(self) -> None:
        async with self.fake.changed:
            self.fake.changed.notify_all()

    gone = False


class _Logs(_Stream):
    async def get(self, jid: str, stream: str) -> None:
        if (job := self.job(jid)) is None:
            return
        follow = self.get_argument("follow", "0") == "1"
        while follow and job["state"] == "pending" and not self.gone:
            async with self.fake.changed:
                await self.fake.changed.wait()
        self.set_header("Content-Type", "application/octet-stream")
        self.set_header("X-Attempt", str(job["attempt"]))
        offset = int(self.get_argument("offset", "0"))
        if jid == "big":
            await self.send(self._big(offset))
            return
        data = self.fake.logs[jid, stream]
        if jid in self.fake.disk and OPENS_FILES in self.request.headers:
            place, marks = self.fake.disk[jid]
            self.set_header(ON_DISK, place._replace(offset=offset).to_header())
            await self.send(self._follow(job, marks, 0))
        elif follow:
            await self.send(self._follow(job, data, offset))
        else:
            limit = int(self.get_argument("limit", str(1 << 50)))
            self.finish(bytes(data[offset : offset + limit]))

    async def _big(self, offset: int) -> AsyncIterator[bytes]:
        self.fake.written = offset
        while self.fake.written < self.fake.big_bytes:
            at = self.fake.written % len(_BLOCK)
            piece = _BLOCK[at : at + self.fake.big_bytes - self.fake.written]
            yield piece
            self.fake.written += len(piece)

    def _follow(self, job: dict[str, Any], data: bytearray, offset: int) -> AsyncIterator[bytes]:
        """Who counts among the streams is ended by the next `end_streams`, whether it has begun or not."""
        return self._pieces(job, data, offset, self.fake.round)

    async def _pieces(
        self, job: dict[str, Any], data: bytearray, offset: int, started: int
    ) -> AsyncIterator[bytes]:
        while not self.gone:
            ended = started != self.fake.round or job["state"] in ("completed", "error", "canceled")
            if len(data) > offset:
                cut = self.fake.cut_after
                if cut is not None and len(data) > cut:
                    self.fake.cut_after = None
                    yield bytes(data[offset:cut])
                    self.request.connection.stream.close()
                    raise StreamClosedError
                yield bytes(data[offset:])
                offset = len(data)
            elif ended:
                return
            else:
                async with self.fake.changed:
                    await self.fake.changed.wait()


class _Events(_Stream):
    async def get(self) -> None:
        self.set_header("Content-Type", "text/event-stream")
        after = int(self.request.headers.get("Last-Event-ID", self.get_argument("after", "0")))
        await self.send(self._events(after))

    async def _events(self, after: int) -> AsyncIterator[bytes]:
        while not self.gone:
            for seq in range(after + 1, len(self.fake.asked) + 1):
                yield f'id: {seq}\nevent: job\ndata: {{"jid":"J{seq}"}}\n\n'.encode()
                after = seq
            async with self.fake.changed:
                await self.fake.changed.wait()
