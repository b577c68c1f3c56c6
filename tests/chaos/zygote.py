"""The real supervisor, forked ready-made: `python -m tests.chaos.zygote ROOT` keeps one running.

What takes longest about a start is the reading of code. Here it is read once, so that a supervisor which is
killed a thousand times is back a thousand times within a tenth of a second.
"""

import os
import signal
import sys

from sirepo_jobs import logs, settings
from sirepo_jobs.app import run_supervisor


def main() -> None:
    """Until the parent is gone."""
    loaded = settings.load().settings
    parent = os.getppid()
    while os.getppid() == parent:
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            logs.setup(loaded.log_level, loaded.log_format)
            code = run_supervisor(loaded)
            sys.stderr.flush()
            os._exit(code)
        os.waitpid(pid, 0)


if __name__ == "__main__":
    main()
