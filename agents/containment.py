"""What the container of this agent uses as a whole, by the kernel's own counts.

Only where the whole container is ours, as in `oom`; elsewhere the counts would tell of strangers.
"""

import os
from functools import cache
from typing import Final, NamedTuple

from sirepo_jobs.agents import oom

#: Peak of memory in bytes: version 2 (kernel 5.19 and newer), and version 1.
PEAKS: Final = ("/sys/fs/cgroup/memory.peak", "/sys/fs/cgroup/memory/memory.max_usage_in_bytes")


class Traffic(NamedTuple):
    """Bytes over all interfaces but loopback since the container was made."""

    received: int
    sent: int


def memory_peak() -> int:
    """Bytes; 0 where it cannot be told."""
    fd = _file(PEAKS)
    text = b"" if fd < 0 else os.pread(fd, 64, 0).strip()
    return int(text) if text.isdigit() else 0


def traffic() -> Traffic:
    """None at all where it cannot be told."""
    fd = _file(("/proc/net/dev",))
    return Traffic(0, 0) if fd < 0 else traffic_in(os.pread(fd, 1 << 16, 0))


def traffic_in(text: bytes) -> Traffic:
    """The sums in such a file."""
    received = sent = 0
    for line in text.splitlines():
        name, colon, counts = line.partition(b":")
        words = counts.split()
        if colon and name.strip() != b"lo" and len(words) > 8:
            received += int(words[0])
            sent += int(words[8])
    return Traffic(received, sent)


@cache
def _file(paths: tuple[str, ...]) -> int:
    if not oom.is_contained():
        return -1
    for path in paths:
        try:
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue
    return -1
