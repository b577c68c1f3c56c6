"""Failpoints armed: copied as `sitecustomize.py` into a directory that the processes under test import from.

The harness puts a file `fire/POINT` beside it: whoever comes to that point next takes the file away, and does
what stands in it: `kill`, or `sleep SECS`. `passed` collects which points were passed, once for each process.
"""

import os
import signal
import time
from pathlib import Path

from sirepo_jobs import failpoints

_HERE = Path(__file__).parent
_passed: set[str] = set()


def _trap(name: str) -> None:
    if name not in _passed:
        _passed.add(name)
        _note("passed", name)
    fire = f"{_HERE}/fire/{name}"
    if not os.path.exists(fire):
        return
    mine = f"{fire}.{os.getpid()}"
    try:
        os.rename(fire, mine)
    except OSError:
        return
    act = Path(mine).read_text()
    os.unlink(mine)
    _note("fired", f"{name} {os.getpid()} {act}")
    if act == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(float(act.split()[1]))


def _note(file: str, line: str) -> None:
    fd = os.open(f"{_HERE}/{file}", os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, f"{line}\n".encode())
    finally:
        os.close(fd)


failpoints.arm(_trap)
