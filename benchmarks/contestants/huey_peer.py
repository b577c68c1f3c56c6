"""huey on Redis: two worker processes."""

import os
import sys

from huey import RedisHuey
from redis_server import Redis
from stage import begin, end, run_true, serve

if "BENCH_REDIS" in os.environ:
    # a worker looks often, which is huey's way to be quick
    queue = RedisHuey("bench", url=os.environ["BENCH_REDIS"])
    job = queue.task()(run_true)


class Huey:
    """Server, consumer, and us as the client."""

    def start(self) -> None:
        self.redis = Redis()
        here = os.path.dirname(os.path.abspath(__file__))
        command = [sys.executable, "-m", "huey.bin.huey_consumer", "huey_peer.queue"]
        self.worker = begin(*command, "-w", "2", "-k", "process", "-q", cwd=here)
        import huey_peer

        self.job = huey_peer.job
        self.latency()

    def stop(self) -> None:
        end(self.worker)
        self.redis.stop()

    def throughput(self, count: int) -> None:
        for result in [self.job() for _ in range(count)]:
            assert result.get(blocking=True, timeout=60, preserve=False, backoff=1.0, max_delay=0.01) == 0

    def latency(self) -> None:
        assert self.job().get(blocking=True, timeout=60, backoff=1.0, max_delay=0.001) == 0


if __name__ == "__main__":
    serve(Huey())
