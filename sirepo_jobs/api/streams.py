"""What flows: output as bytes at offsets, and events as they happen."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Literal

from sirepo_jobs import run_tree
from sirepo_jobs.compute_job import ComputeJob
from sirepo_jobs.job import FINAL
from sirepo_jobs.output import Output
from sirepo_jobs.protocol import OutputMark
from sirepo_jobs.run_tree import OnDisk
from sirepo_jobs.views import event_view

from .handler import Handler, encode
from .whereabouts import newest_attempt, run_dir

#: A comment line on a silent event stream, so that proxies keep it open (F070).
KEEP_ALIVE_SECS = 15.0
_EVENT = b"id: %d\nevent: job\ndata: %b\n\n"


class Logs(Handler):
    """`/jobs/{jid}/logs/{stream}`: bytes at offsets, as they are."""

    async def get(self, jid: str, stream: Literal["stdout", "stderr"]) -> None:
        """The bytes from `offset`; with `follow` until the attempt has ended and everything is sent."""
        offset = self.number("offset", 0) or 0
        limit = self.number("limit")
        follow = self.flag("follow")
        asked = self.number("attempt")
        async with self.job(jid) as job:
            self.set_header("Content-Type", "application/octet-stream")
            self.set_header("X-Accel-Buffering", "no")
            # no header before it is known which attempt this is: who resumes must name it
            if follow and asked is None and not await self.stays(_beginning(job)):
                return
            attempt = await newest_attempt(self.supervisor, job) if asked is None else asked
            self.set_header("X-Attempt", str(attempt))
            where = await run_dir(self.supervisor, job, attempt)
            if where is None:
                self.finish()
                return
            output = Output(
                run_dir=where.path,
                attempt=attempt,
                agent=where.agent,
                stream=stream,
                offset=offset,
                limit=limit,
                follow=follow and attempt == job.record.attempt,
                begun=where.begun,
            )
            if run_tree.CANNOT_OPEN in self.request.headers:
                self.supervisor.agents.cannot_be_opened(where.agent)
            run_root = self.supervisor.agents.opened_here(where.agent)
            if run_root is not None and run_tree.OPENS_FILES in self.request.headers:
                place = OnDisk(run_root, where.path, stream, offset)
                await self.send(self._lines(self.supervisor.readings.marks(job, **output), place))
            else:
                await self.send(self.supervisor.readings.read(job, **output))

    async def _lines(
        self, marks: AsyncGenerator[OutputMark, None], place: OnDisk
    ) -> AsyncGenerator[bytes, None]:
        """One for each mark; the header before them says of which file, and of no other, they are."""
        async with contextlib.aclosing(marks) as flow:
            async for mark in flow:
                if not self.began:
                    found = place._replace(device=mark.device, inode=mark.inode)
                    self.set_header(run_tree.ON_DISK, found.to_header())
                yield b"%d\n" % mark.offset


class Events(Handler):
    """`/events`: server-sent events, resumable."""

    async def get(self) -> None:
        """Every event after `after` (or `Last-Event-ID`) that the caller may see, then the new ones."""
        last = self.request.headers.get("Last-Event-ID", "")
        after = self.number("after", int(last) if last.isdecimal() and len(last) < 19 else None)
        self.set_header("Content-Type", "text/event-stream")
        self.set_header("X-Accel-Buffering", "no")
        start = self.supervisor.events.last if after is None else after
        self.write(b": hello\nid: %d\n\n" % start)  # who is cut before the first event resumes here
        await self.flush()
        await self.send(self._lines(start))

    async def _lines(self, after: int) -> AsyncGenerator[bytes, None]:
        pieces = self.supervisor.events.follow(after, user=None if self.is_admin else self.user)
        async with contextlib.aclosing(pieces) as flow:
            pending = asyncio.ensure_future(anext(flow))
            try:
                while True:
                    done, _ = await asyncio.wait({pending}, timeout=KEEP_ALIVE_SECS)
                    if not done:
                        yield b": still here\n\n"
                        continue
                    rows = pending.result()
                    yield b"".join([_EVENT % (row.seq, encode(event_view(row))) for row in rows])
                    pending = asyncio.ensure_future(anext(flow))
            finally:
                pending.cancel()
                await asyncio.gather(pending, return_exceptions=True)


async def _beginning(job: ComputeJob) -> None:
    while not _has_begun(job):
        await job.change(job.record.version)


def _has_begun(job: ComputeJob) -> bool:
    """There may be output, or there never will be."""
    return job.record.started_at is not None or job.record.state in FINAL
