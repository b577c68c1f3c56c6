"""`bin/sim`: many seeds on several processes, one seed again, or a smaller story of one that goes wrong."""

import argparse
import gc
import logging
import multiprocessing
import sys
import time
from collections import Counter
from collections.abc import Iterator

import structlog

from tests.sim.check import CHECKED
from tests.sim.run import Result, lines, run, run_seed, shrink
from tests.sim.scenario import draw

#: Seeds per piece of work.
_BATCH = 50


def main() -> int:
    """The exit status: 1 when anything was violated."""
    parser = argparse.ArgumentParser(prog="bin/sim", description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--seeds", metavar="A:B", help="run the worlds of seeds A to B-1")
    what.add_argument(
        "--replay", metavar="SEED", type=int, help="run one twice, print its history, compare the two"
    )
    what.add_argument(
        "--shrink", metavar="SEED", type=int, help="find a smaller story that goes wrong the same way"
    )
    parser.add_argument("--jobs", type=int, default=2, help="processes (2)")
    parser.add_argument("--first", action="store_true", help="end with the first violation")
    parser.add_argument("--show", type=int, default=20, help="violations to print (20)")
    args = parser.parse_args()
    # What our code logs would stand between the lines of the report; the history says what happens.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    if args.seeds:
        first, _, last = args.seeds.partition(":")
        return _many(int(first), int(last), args.jobs, args.show, stop=args.first)
    if args.replay is not None:
        return _replay(args.replay)
    return _shrink(args.shrink)


def _many(first: int, last: int, jobs: int, show: int, *, stop: bool) -> int:
    began = time.perf_counter()
    faults: Counter[str] = Counter()
    broken: list[tuple[int, list[str]]] = []
    done = turns = entries = born = 0
    cpu_secs = 0.0
    batches = [range(at, min(at + _BATCH, last)) for at in range(first, last, _BATCH)]
    with multiprocessing.get_context("fork").Pool(jobs, _prepare) as pool:
        for count, found, kinds, its_turns, its_entries, its_born, secs in pool.imap_unordered(
            _batch, batches
        ):
            done += count
            turns += its_turns
            entries += its_entries
            born += its_born
            cpu_secs += secs
            faults.update(kinds)
            for seed, violations in found:
                broken.append((seed, violations))
                if len(broken) <= show:
                    print(f"seed {seed}: {violations[0]}", flush=True)
            if stop and broken:
                pool.terminate()
                break
            if done % 10_000 < count:
                _say(done, last - first, len(broken), began, cpu_secs)
    print(f"seeds {first}:{last}, {len(broken)} with violations: {sorted(seed for seed, _ in broken)[:50]}")
    _say(done, last - first, len(broken), began, cpu_secs)
    print(
        f"{turns} turns, {entries} lines of history, {born} attempts started, {sum(faults.values())} faults:"
    )
    print("  " + ", ".join(f"{kind} {count}" for kind, count in sorted(faults.items())))
    print(f"checked: {' '.join(CHECKED)}, and that no code of ours falls over")
    return 1 if broken else 0


def _say(done: int, of: int, broken: int, began: float, cpu_secs: float) -> None:
    secs = time.perf_counter() - began
    print(
        f"{done} of {of} schedules in {secs:.0f} s, {done / secs * 60:.0f} per minute"
        f" ({done / cpu_secs * 60:.0f} per minute of CPU), {broken} with violations",
        flush=True,
    )


def _prepare() -> None:
    gc.disable()
    gc.freeze()


def _batch(seeds: range) -> tuple[int, list[tuple[int, list[str]]], Counter[str], int, int, int, float]:
    began = time.process_time()
    found: list[tuple[int, list[str]]] = []
    faults: Counter[str] = Counter()
    turns = entries = born = 0
    for seed in seeds:
        result = run_seed(seed)
        turns += result.turns
        entries += len(result.history)
        born += sum(entry[1] == "born" for entry in result.history)
        faults.update(entry[2] for entry in result.history if entry[1] == "fault")
        if result.violations:
            found.append((seed, result.violations))
        if seed % 50 == 49:
            gc.collect()
    return len(seeds), found, faults, turns, entries, born, time.process_time() - began


def _print(result: Result) -> Iterator[str]:
    yield repr(result.scenario)
    yield from lines(result.history)
    yield f"sha256 of the history: {result.digest}"
    yield from (f"VIOLATION {text}" for text in result.violations)


def _replay(seed: int) -> int:
    first, second = run_seed(seed), run_seed(seed)
    print("\n".join(_print(first)))
    if first.digest != second.digest:
        print("the second run was another one")
        return 1
    print("the second run was the same, byte for byte")
    return 1 if first.violations else 0


def _shrink(seed: int) -> int:
    result = run(shrink(draw(seed)))
    print("\n".join(_print(result)))
    return 1 if result.violations else 0


if __name__ == "__main__":
    sys.exit(main())
