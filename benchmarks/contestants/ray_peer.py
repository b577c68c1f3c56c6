"""Ray with two cpus."""

import ray
from stage import run_true, serve


class Ray:
    """Head node and workers on this machine."""

    def start(self) -> None:
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100 << 20)
        self.job = ray.remote(run_true)
        self.throughput(20)

    def stop(self) -> None:
        ray.shutdown()

    def throughput(self, count: int) -> None:
        assert set(ray.get([self.job.remote() for _ in range(count)])) == {0}

    def latency(self) -> None:
        assert ray.get(self.job.remote()) == 0


if __name__ == "__main__":
    serve(Ray())
