"""Dask distributed with two processes of one thread."""

from distributed import Client, LocalCluster
from stage import run_true, serve


class Dask:
    """Scheduler and workers on this machine."""

    def start(self) -> None:
        self.cluster = LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None)
        self.client = Client(self.cluster)
        self.throughput(20)

    def stop(self) -> None:
        self.client.close()
        self.cluster.close()

    def throughput(self, count: int) -> None:
        futures = [self.client.submit(run_true, pure=False) for _ in range(count)]
        assert set(self.client.gather(futures)) == {0}

    def latency(self) -> None:
        assert self.client.submit(run_true, pure=False).result() == 0


if __name__ == "__main__":
    serve(Dask())
