"""Whether the kernel has killed for lack of memory in this container: its own count, from our cgroup (F112).

Only where the whole cgroup is ours: in a container whose first process is a launcher. On a shared machine
the count would tell of strangers.
"""

import os
from functools import cache
from pathlib import Path
from typing import Final

#: With the container's own cgroup mounted as the root: version 2, and version 1.
FILES: Final = ("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control")
LAUNCHER: Final = "sj-launcher"


def kills() -> int:
    """How many processes in this container the kernel has killed for memory; 0 where it cannot be told."""
    fd = _file()
    return 0 if fd < 0 else count_in(os.pread(fd, 4096, 0))


def count_in(text: bytes) -> int:
    """The count in such a file."""
    for line in text.splitlines():
        name, _, value = line.partition(b" ")
        if name == b"oom_kill" and value.strip().isdigit():
            return int(value)
    return 0


@cache
def is_contained() -> bool:
    """Whether this is a container whose first process is a launcher."""
    try:
        return Path("/proc/1/comm").read_text(encoding="utf-8").strip() == LAUNCHER
    except OSError:
        return False


@cache
def _file() -> int:
    if not is_contained():
        return -1
    for path in FILES:
        try:
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue
    return -1
