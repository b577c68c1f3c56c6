"""What jobs say about themselves: the newest line of JSON in their `progress.jsonl`."""

import os
import time
from contextlib import suppress
from typing import Any, Final

import msgspec

from sirepo_jobs.agents.words import Watch
from sirepo_jobs.protocol import Progress
from sirepo_jobs.run_tree import Refused, RunFiles

NAME: Final = "progress.jsonl"
#: So often is each file looked at, and so often at most is a job's progress told.
LOOK_SECS: Final = 0.25
MAX_LINE_BYTES: Final = 64 << 10
#: Of many new lines only the last so many bytes are looked at, and so many lines tried.
_TAIL_BYTES: Final = 2 * MAX_LINE_BYTES
_MAX_TRIES: Final = 16

_decode = msgspec.json.Decoder(dict[str, Any]).decode
_encode = msgspec.json.Encoder().encode


class Tail:
    """The progress file of one attempt, which may not exist yet."""

    def __init__(self, watch: Watch, files: RunFiles) -> None:
        self._watch = watch
        self._files = files
        self._fd = -1
        #: Everything before this has been looked at.
        self._offset = 0

    def read(self) -> Progress | None:
        """The newest valid line since the last time."""
        with self._files.busy(self._watch.run_dir):
            return self._read()

    def _read(self) -> Progress | None:
        try:
            if self._fd < 0:
                self._fd = self._files.open(self._watch.run_dir, NAME)
            found = os.fstat(self._fd)
            if found.st_nlink == 0:
                # Replaced by another file of that name: that one counts from now on.
                self.close()
                self._fd = self._files.open(self._watch.run_dir, NAME)
                self._offset = 0
                found = os.fstat(self._fd)
            if found.st_size < self._offset:
                self._offset = 0
            if found.st_size == self._offset:
                return None
            first = max(self._offset, found.st_size - _TAIL_BYTES)
            text = os.pread(self._fd, found.st_size - first, first)
        except (OSError, Refused):
            return None
        end = text.rfind(b"\n") + 1
        if end == 0:
            if found.st_size - self._offset > _TAIL_BYTES:
                self._offset = found.st_size - _TAIL_BYTES
            return None
        cut_off = first > self._offset
        self._offset = first + end
        data = newest(text[:end], cut_off=cut_off)
        if data is None:
            return None
        watch = self._watch
        at = time.time_ns() // 1000
        return Progress(jid=watch.jid, serial=watch.serial, attempt=watch.attempt, at=at, data=data)

    def close(self) -> None:
        """Let go of the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def newest(text: bytes, *, cut_off: bool = False) -> dict[str, Any] | None:
    """The last line that is a JSON object; with `cut_off` the first line has lost its beginning."""
    lines = text.split(b"\n")
    if cut_off:
        lines = lines[1:]
    for line in reversed(lines[-_MAX_TRIES - 1 :]):
        if 2 <= len(line) <= MAX_LINE_BYTES:
            with suppress(msgspec.DecodeError, RecursionError, ValueError, OverflowError):
                data = _decode(line)
                _encode(data)  # what cannot be said again is not valid: half a surrogate pair
                return data
    return None
