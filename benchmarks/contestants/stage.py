"""What every contestant stands on: it is told on stdin what to do, and answers on stdout with what it took.

Standard library only, because it runs in each contestant's own environment. A contestant is an object
with `start`, `stop` and one method for each workload that it takes part in:

* `throughput(count)`: `count` jobs that each run `TRUE`; returns when the last end is known here.
* `latency()`: one such job on an idle system; returns when its exit status is known here.
* anything else is its own: returns seconds, or a dictionary of numbers.
"""

import json
import os
import subprocess
import sys
import time
from typing import Any

TRUE = "/bin/true"


def run_true() -> int:
    """What a worker of a peer does for each job."""
    return subprocess.run([TRUE], check=True).returncode


def serve(contestant: Any) -> None:
    """Do what is said on stdin until it ends; the results go to what was stdout when we began."""
    # whatever a peer prints must not get among the answers
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    contestant.start()
    try:
        print(json.dumps({"ready": True}), file=out)
        for line in sys.stdin:
            order = json.loads(line)
            print(json.dumps(_do(contestant, order)), file=out)
    finally:
        contestant.stop()


def _do(contestant: Any, order: dict[str, Any]) -> dict[str, Any]:
    name, count = order["do"], order["count"]
    work = getattr(contestant, name)
    begin = time.perf_counter()
    if name == "latency":
        return {"secs": [_timed(work) for _ in range(count)]}
    result = work(count)
    secs = time.perf_counter() - begin
    return result if isinstance(result, dict) else {"secs": result or secs}


def _timed(work: Any) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def until_up(probe: Any, what: str, secs: float = 30.0) -> None:
    """Wait for a server that has no way to say that it is ready; `probe` raises until it is."""
    end = time.monotonic() + secs
    while True:
        try:
            probe()
        except Exception as exc:
            if time.monotonic() > end:
                raise RuntimeError(f"{what} is not up after {secs:g} s") from exc
            time.sleep(0.05)
        else:
            return


def begin(*command: str, **options: Any) -> "subprocess.Popen[bytes]":
    """A server of the contestant; what it prints goes to our log."""
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, **options)


def end(process: "subprocess.Popen[bytes] | None") -> None:
    """End it, gently first."""
    if process is None:
        return
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
