"""The payload: does what its plan says, and writes down outside of our files that it began and ended.

`witness.py DIR KEY PLAN`. The lock on `DIR/locks/KEY` is held by it and by everything that it leaves
behind: a second execution that finds it held says so. Starts in some ten milliseconds: few imports.
"""

import fcntl
import os
import signal
import sys
import time
from _sha3 import shake_128

DIR, KEY, TEXT = sys.argv[1:4]
OUT, ERR, PIECES, MSECS, CODE, SIG, DEAF, DAEMONS = map(int, TEXT.split(",")[:8])
JID, ATTEMPT = os.environ["SIREPO_JOBS_JID"], os.environ["SIREPO_JOBS_ATTEMPT"]
TRUTH = os.open(f"{DIR}/truth", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)


def say(word: str, *more: object) -> None:
    """One line, in one write."""
    now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    line = " ".join(map(str, (word, KEY, JID, ATTEMPT, now, *more)))
    os.write(TRUTH, f"{line}\n".encode())


def leave(kind: int) -> None:
    """A daemon of that kind, which holds the lock as long as it lives."""
    if os.fork():
        return
    if kind & 1:
        os.setsid()
    try:
        if kind & 2 and os.fork():
            os._exit(0)
    except BlockingIOError:
        os._exit(0)  # its job is over already, and what is left of one may not fork any more (I17)
    env = {} if kind & 4 else dict(os.environ)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.execve("/bin/sleep", [f"witness-{KEY}", "300"], env)


def write(fd: int, data: bytes) -> None:
    """All of it."""
    while data:
        data = data[os.write(fd, data) :]


lock = os.open(f"{DIR}/locks/{KEY}", os.O_RDWR | os.O_CREAT, 0o600)
os.set_inheritable(lock, True)
try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    say("overlap", os.getpid())
say("start", os.getpid())
if DEAF:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
for bit in range(4):
    if DAEMONS & 1 << bit:
        leave((bit * 3 + 1) & 7)
out = shake_128(f"{KEY}/{ATTEMPT}/stdout".encode()).digest(OUT)
err = shake_128(f"{KEY}/{ATTEMPT}/stderr".encode()).digest(ERR)
for piece in range(PIECES):
    write(1, out[OUT * piece // PIECES : OUT * (piece + 1) // PIECES])
    write(2, err[ERR * piece // PIECES : ERR * (piece + 1) // PIECES])
    if MSECS:
        time.sleep(MSECS / PIECES / 1000)
say("end", -SIG if SIG else CODE)
if SIG:
    signal.signal(SIG, signal.SIG_DFL) if SIG not in (signal.SIGKILL, signal.SIGSTOP) else None
    os.kill(os.getpid(), SIG)
    time.sleep(60)
os._exit(CODE)
