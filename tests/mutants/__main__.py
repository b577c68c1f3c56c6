"""`bin/mutants`: every seeded bug in a copy of the tree, and whether somebody notices."""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.mutants.catalog import MUTANTS, SIM, Mutant

ROOT = Path(__file__).parents[2]
_LEAVE_OUT = shutil.ignore_patterns(
    ".git", ".venv", ".*_cache", "__pycache__", "build", "*.egg-info", ".hypothesis"
)


def main() -> int:
    """The exit status: 1 when a mutant survives."""
    parser = argparse.ArgumentParser(prog="bin/mutants", description=__doc__)
    parser.add_argument("word", nargs="?", default="", help="only those with this in their name")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument(
        "--seeds", default="0:2000", help="seeds for the simulation, until the first violation"
    )
    args = parser.parse_args()
    chosen = [mutant for mutant in MUTANTS if args.word in mutant.name]
    with ThreadPoolExecutor(args.jobs) as pool:
        results = list(pool.map(lambda mutant: _try(mutant, args.seeds), chosen))
    survivors = [mutant.name for mutant, caught in zip(chosen, results, strict=True) if not caught]
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} caught")
    for name in survivors:
        print(f"survived: {name}")
    return 1 if survivors else 0


def _try(mutant: Mutant, seeds: str) -> bool:
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        tree = Path(folder, "tree")
        shutil.copytree(ROOT, tree, symlinks=True, ignore=_LEAVE_OUT)
        path = tree / mutant.file
        text = path.read_text()
        if text.count(mutant.old) != 1:
            raise SystemExit(
                f"{mutant.name}: its text stands {text.count(mutant.old)} times in {mutant.file}"
            )
        path.write_text(text.replace(mutant.old, mutant.new))
        if mutant.caught_by == SIM:
            command = ["-m", "tests.sim", "--seeds", seeds, "--jobs", "1", "--first"]
        else:
            command = ["-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *mutant.caught_by.split()]
        env = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(
            [sys.executable, *command], cwd=tree, env=env, capture_output=True, text=True, check=False
        )
    lines = [
        line for line in done.stdout.splitlines() if line.startswith(("seed ", "FAILED", "ERROR", "E  "))
    ]
    caught = done.returncode == 1 and bool(lines)
    what = lines[0][:150] if lines else (done.stderr or done.stdout)[-150:].replace("\n", " ")
    word = "caught" if caught else "SURVIVED"
    print(
        f"{word} by {mutant.caught_by} in {time.monotonic() - began:.0f} s: {mutant.name}: {what}", flush=True
    )
    return caught


if __name__ == "__main__":
    sys.exit(main())
