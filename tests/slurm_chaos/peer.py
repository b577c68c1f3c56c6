"""submitit, the way Python users give many functions to Slurm: run by the interpreter of its own environment.

    python peer.py submit|map_array JOBS DIR      prints "SUBMIT_SECS QUERIES SECS"

`submit` is its loop of single jobs, `map_array` its one array of all. Its questions are counted as it asks
them: runs of sacct, each about every job that has not ended.
"""

import sys
import time
from typing import Any

import submitit
from submitit.slurm import slurm


def main(way: str, jobs: int, directory: str) -> None:
    """Give so many functions to Slurm, and wait for what they return."""
    asked = 0
    make = slurm.SlurmInfoWatcher._make_command

    def count(watcher: Any) -> Any:
        nonlocal asked
        command = make(watcher)
        asked += command is not None
        return command

    slurm.SlurmInfoWatcher._make_command = count
    executor = submitit.SlurmExecutor(folder=directory)
    executor.update_parameters(time=10, array_parallelism=jobs)
    began = time.monotonic()
    if way == "submit":
        given = [executor.submit(int, str(n)) for n in range(jobs)]
    else:
        given = executor.map_array(int, [str(n) for n in range(jobs)])
    submitted = time.monotonic() - began
    assert [job.result() for job in given] == list(range(jobs))
    print(submitted, asked, time.monotonic() - began)


main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
