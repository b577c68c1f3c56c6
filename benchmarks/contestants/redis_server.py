"""A private Redis for the peers that need one."""

import os
import shutil
import socket
import tempfile

from stage import begin, end, until_up

#: What keeps the queue when Redis is killed, and what does not.
PERSISTENCE = {
    "none": ["--save", "", "--appendonly", "no"],
    "always": ["--save", "", "--appendonly", "yes", "--appendfsync", "always"],
}


class Redis:
    """A server on a port of its own."""

    def __init__(self) -> None:
        self.dir = tempfile.mkdtemp(prefix="bench-redis-")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/0"
        os.environ["BENCH_REDIS"] = self.url
        keep = PERSISTENCE[os.environ.get("BENCH_PERSISTENCE", "none")]
        words = ["redis-server", "--bind", "127.0.0.1", "--port", str(self.port), "--dir", self.dir]
        self.process = begin(*words, "--loglevel", "warning", *keep)
        until_up(lambda: socket.create_connection(("127.0.0.1", self.port), 1).close(), "Redis")

    def stop(self) -> None:
        """End it and forget its data."""
        end(self.process)
        shutil.rmtree(self.dir, ignore_errors=True)
