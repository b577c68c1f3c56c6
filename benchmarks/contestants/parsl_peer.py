"""Parsl's high throughput executor with two workers."""

import tempfile

import parsl
from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl.providers import LocalProvider
from stage import serve


@parsl.python_app
def job() -> int:
    """The function travels to the workers, so that it brings all it needs."""
    import subprocess

    return subprocess.run(["/bin/true"], check=True).returncode


class Parsl:
    """Interchange and one block of workers."""

    def start(self) -> None:
        executor = HighThroughputExecutor(
            label="bench",
            address="127.0.0.1",
            max_workers_per_node=2,
            cores_per_worker=1,
            provider=LocalProvider(init_blocks=1, max_blocks=1),
        )
        parsl.load(Config(executors=[executor], run_dir=tempfile.mkdtemp(prefix="bench-parsl-")))
        self.latency()

    def stop(self) -> None:
        parsl.dfk().cleanup()
        parsl.clear()

    def throughput(self, count: int) -> None:
        assert {future.result() for future in [job() for _ in range(count)]} == {0}

    def latency(self) -> None:
        assert job().result() == 0


if __name__ == "__main__":
    serve(Parsl())
