"""GNU parallel, two at a time; a single job is a cold start, which is how it is used."""

import subprocess

from stage import TRUE, serve


class Parallel:
    """Nothing runs between two calls."""

    def start(self) -> None:
        self.latency()

    def stop(self) -> None:
        pass

    def throughput(self, count: int) -> None:
        words = b"".join(b"%d\n" % number for number in range(count))
        subprocess.run(["parallel", "-j2", "-N0", TRUE], input=words, check=True)

    def latency(self) -> None:
        subprocess.run(["parallel", "-j2", "-N0", TRUE], input=b"1\n", check=True)


if __name__ == "__main__":
    serve(Parallel())
