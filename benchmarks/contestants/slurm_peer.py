"""A private Slurm of two nodes: `srun` for one job, an array by `sbatch --wait` for many."""

import os
import shutil
import subprocess
import tempfile

from stage import TRUE, serve

HERE = os.path.dirname(os.path.abspath(__file__))
SERVICES = os.path.join(os.path.dirname(os.path.dirname(HERE)), "bin", "dev-services")


class Slurm:
    """Controller, nodes and munge on this machine."""

    def start(self) -> None:
        self.dir = tempfile.mkdtemp(prefix="bench-slurm-")
        said = subprocess.run(
            [SERVICES, "slurm", "start", self.dir], check=True, capture_output=True, text=True
        ).stdout
        os.environ["SLURM_CONF"] = said.strip().removeprefix("conf=")
        self.latency()

    def stop(self) -> None:
        subprocess.run([SERVICES, "slurm", "remove", self.dir], check=True)
        shutil.rmtree(self.dir, ignore_errors=True)

    def throughput(self, count: int) -> None:
        script = f"#!/bin/sh\nexec {TRUE}\n".encode()
        words = ["sbatch", "--wait", f"--array=1-{count}", "--output=/dev/null"]
        subprocess.run(words, input=script, check=True, cwd=self.dir, stdout=subprocess.DEVNULL)

    def latency(self) -> None:
        subprocess.run(["srun", "-n1", TRUE], check=True)


if __name__ == "__main__":
    serve(Slurm())
