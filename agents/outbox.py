"""Durable records that the supervisor has not acknowledged, in order (C7). Pure."""

from collections import deque
from typing import NamedTuple

from sirepo_jobs.agents.roster import Key


class Kept(NamedTuple):
    """One record."""

    seq: int
    #: As it goes out.
    raw: bytes
    #: Set for the end of an attempt: with its acknowledgement the attempt may be forgotten.
    ends: Key | None


class Outbox:
    """Gapless: record n+1 is never handed out before record n."""

    def __init__(self, acked: int = 0) -> None:
        #: Everything up to here is the supervisor's.
        self.acked = acked
        self._kept: deque[Kept] = deque()
        self._sent = acked
        #: The last that was ever handed out, on whatever connection. What an earlier process handed out is
        #: not known: everything that it left counts as said.
        self._said = acked
        self._synced = acked

    def __len__(self) -> int:
        return len(self._kept)

    def push(self, kept: Kept) -> None:
        """Keep one. It is not handed out before `synced` was called."""
        assert kept.seq == (self._kept[-1].seq if self._kept else self.acked) + 1, kept.seq
        self._kept.append(kept)

    @property
    def unsynced(self) -> bool:
        """Whether records wait for the journal to be on disk."""
        return bool(self._kept) and self._kept[-1].seq > self._synced

    def synced(self) -> None:
        """Everything pushed so far is on disk."""
        if self._kept:
            self._synced = self._kept[-1].seq

    def rewind(self) -> None:
        """A new connection: say everything again that is not acknowledged."""
        self._sent = self.acked

    def inherited(self) -> None:
        """Everything pushed so far comes from an earlier process, which may have handed it out."""
        self.synced()
        self._said = self._synced

    def ack(self, seq: int) -> list[Key]:
        """Drop what is committed; returns the attempts whose end that was.

        Nobody can have committed what was never handed out: that is kept, whatever `seq` says (I2).
        """
        ended = []
        seq = min(seq, self._said)
        while self._kept and self._kept[0].seq <= seq:
            kept = self._kept.popleft()
            self.acked = kept.seq
            if kept.ends is not None:
                ended.append(kept.ends)
        self._sent = max(self._sent, self.acked)
        return ended

    def batch(self, max_bytes: int) -> list[bytes]:
        """The next records to say, at least one if there is any, and mark them said."""
        if not self._kept or self._sent >= self._synced:
            return []
        first = self._sent - self._kept[0].seq + 1
        size = 0
        records: list[bytes] = []
        for index in range(first, len(self._kept)):
            kept = self._kept[index]
            size += len(kept.raw)
            if kept.seq > self._synced or (records and size > max_bytes):
                break
            records.append(kept.raw)
            self._sent = kept.seq
        self._said = max(self._said, self._sent)
        return records

    def again(self, key: Key) -> bytes | None:
        """The record of an attempt's end."""
        for kept in reversed(self._kept):
            if kept.ends == key:
                return kept.raw if kept.seq <= self._sent else None
        return None

    def kept(self) -> list[Kept]:
        """Everything, for compaction."""
        return list(self._kept)
