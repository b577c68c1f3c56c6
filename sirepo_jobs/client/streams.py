"""Streams that go on where they were cut: log bytes by offset, events by sequence number."""

from collections.abc import Iterator
from typing import Literal

import msgspec
from urllib3.exceptions import HTTPError, ReadTimeoutError
from urllib3.response import BaseHTTPResponse

from sirepo_jobs.errors import Error, Unavailable

from .byte_stream import PIECE_BYTES, ByteStream
from .records import Event, job_of
from .transport import Params, Patience, Transport

#: A silent follower asks again after so long, in case the other side is gone without a word.
_SILENCE_SECS = 300.0
#: How long the end of a job may come after the end of its output.
_END_SECS = 1.0
#: Events come with signs of life in between.
_EVENT_SILENCE_SECS = 60.0
#: A line that is longer is no event of ours.
_MAX_EVENT_BYTES = 4 << 20


class LogStream(ByteStream):
    """The output of one attempt; with `follow` from its start, which `connect` waits for, to its end."""

    def __init__(
        self,
        transport: Transport,
        job_path: str,
        stream: Literal["stdout", "stderr"],
        offset: int,
        attempt: int | None,
        follow: bool,
    ) -> None:
        super().__init__(transport, offset, attempt)
        self._job_path = job_path
        self._stream = stream
        self._follow = follow

    def _open(self) -> BaseHTTPResponse:
        params = {
            "offset": self.offset or None,
            "attempt": self.attempt,
            "follow": 1 if self._follow else None,
        }
        path = f"{self._job_path}/logs/{self._stream}"
        return self._transport.once("GET", path, params, read_secs=_SILENCE_SECS)

    def _away(self, error: Unavailable, patience: Patience) -> None:
        # a job may wait for hours before it says its first word
        if not (self._follow and error.code == "timeout"):
            super()._away(error, patience)

    def _learn(self, response: BaseHTTPResponse) -> None:
        # From now on this attempt: another one has other bytes at the same offsets.
        told = response.headers.get("X-Attempt", "")
        if told.isdecimal() and int(told) > 0:
            self.attempt = int(told)

    def _is_over(self, broke: Exception | None, patience: Patience) -> bool:
        if isinstance(broke, ReadTimeoutError):
            patience.refill()  # silence is no fault; ask again, lest the other side is gone
            return False
        if broke is not None:
            why = f"the stream broke at byte {self.offset}: {broke}"
            patience.pause(Unavailable(why, code="unreachable"))
            return False
        return not self._follow or self._has_ended(patience)

    def _has_ended(self, patience: Patience) -> bool:
        """Whether the end of a followed stream is the end of the output.

        Somebody in between may end a stream politely when it is itself told to end; the job knows better.
        """
        job = job_of(self._transport.call("GET", self._job_path))
        if self.attempt is None:
            return job.ended  # nothing of it ever ran
        if not job.ended and job.attempt == self.attempt:
            # The output ends a moment before the job does.
            params: Params = {"wait": f"{_END_SECS:g}s", "version": job.version}
            job = job_of(self._transport.call("GET", self._job_path, params))
        if job.attempt > self.attempt:
            return True  # it is being tried again: what this attempt wrote is written
        if not job.ended:
            return False
        length = job.stdout_bytes if self._stream == "stdout" else job.stderr_bytes
        if length is not None and self.offset < length:
            why = f"the stream ended at byte {self.offset} of {length}"
            patience.pause(Unavailable(why, code="incomplete"))
            return False
        return True


def server_events(transport: Transport, after: int | None) -> Iterator[Event]:
    """Events, each once and in order."""
    patience = Patience(transport.patience_secs)
    while True:
        try:
            response = transport.once(
                "GET",
                "/api/v1/events",
                {"after": after},
                headers={"Accept": "text/event-stream"},
                read_secs=_EVENT_SILENCE_SECS,
            )
        except Unavailable as exc:
            patience.pause(exc, getattr(exc, "retry_after", None))
            continue
        try:
            for seq, data in parse_events(response.stream(PIECE_BYTES, decode_content=False)):
                patience.refill()
                after = seq if seq is not None else after
                if data:
                    yield _event(data, after)
        except HTTPError as exc:
            patience.pause(Unavailable(f"the event stream broke: {exc}", code="unreachable"))
        else:
            patience.pause(Unavailable("the event stream ended", code="unreachable"))
        finally:
            response.close()


def parse_events(pieces: Iterator[bytes]) -> Iterator[tuple[int | None, bytes]]:
    """`(id, data)` of each server-sent event; comments are passed over.

    >>> list(parse_events(iter([b": hi\\n\\nid: 7\\nda", b"ta: {}\\n\\n"])))
    [(7, b'{}')]
    """
    rest = b""
    seq: int | None = None
    data: list[bytes] = []
    for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        if len(rest) > _MAX_EVENT_BYTES:
            raise Error("the event stream holds a line without an end", code="bad_answer")
        for line in lines:
            field, _, value = line.rstrip(b"\r").partition(b":")
            value = value.removeprefix(b" ")
            if field == b"id" and value.isdigit():
                seq = int(value)
            elif field == b"data":
                data.append(value)
            elif not field and not value and (seq is not None or data):
                yield seq, b"\n".join(data)
                seq, data = None, []


def _event(data: bytes, seq: int | None) -> Event:
    try:
        event = msgspec.json.decode(data, type=Event)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise Error("the server's event cannot be read", code="bad_answer") from None
    return event if event.seq or seq is None else msgspec.structs.replace(event, seq=seq)
