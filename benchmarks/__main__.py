"""`python -m benchmarks`: see `--help`, or the script `bin/bench`."""

import argparse
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from . import report, scale
from .contest import play
from .roster import COUNTS, ROSTER


def main() -> int:
    """Run, print the table, write the files that were asked for."""
    parser = argparse.ArgumentParser(
        prog="bin/bench", description="Ours, the peers and the limit in one run."
    )
    parser.add_argument(
        "--quick", action="store_true", help="a tenth of the work, one round; for a look, not for figures"
    )
    parser.add_argument("--rounds", type=int, help="how often each takes its turn (3; quick: 1)")
    parser.add_argument(
        "--only",
        action="append",
        metavar="NAME",
        help="contestants whose names contain NAME; may be repeated",
    )
    parser.add_argument(
        "--workload", action="append", choices=list(COUNTS), help="may be repeated; all when left out"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="all samples, for further computing")
    parser.add_argument(
        "--page",
        type=Path,
        metavar="FILE",
        help="a Markdown page; its plot lies beside it as .svg. Of a page that is there, only what stands"
        " between the two marks is replaced",
    )
    parser.add_argument(
        "--no-peers", action="store_true", help="ours and the limit, and what only ours has to show"
    )
    parser.add_argument("--list", action="store_true", help="who could take part, and end")
    words = parser.parse_args()
    chosen = [
        one
        for one in ROSTER
        if (not words.only or any(part.lower() in one.name.lower() for part in words.only))
        and not (words.no_peers and one.kind == "peer")
    ]
    if words.list:
        print("\n".join(one.name for one in chosen))
        return 0
    if not chosen:
        parser.error(f"no contestant's name contains {' or '.join(words.only)}; see --list")
    rounds = words.rounds or (1 if words.quick else 3)
    samples, left_out = play(chosen, words.workload or list(COUNTS), rounds, quick=words.quick)
    table = report.rows(samples)
    text = report.as_text(table, left_out)
    if not (words.only or words.workload):
        text += "\n" + scale.as_text(scale.run(quick=words.quick)) + "\n" + _containers(quick=words.quick)
    print(text, end="")
    if words.json:
        words.json.write_text(report.as_json(table, samples, left_out, _machine()) + "\n")
    if words.page:
        _page(words.page, table, text)
    ours_failed = any(one.kind != "peer" and one.name in left_out for one in chosen)
    return 1 if ours_failed else 0


def _machine() -> dict[str, Any]:
    return {"cpus": os.cpu_count(), "python": platform.python_version(), "kernel": platform.release()}


def _containers(*, quick: bool) -> str:
    """A job in a warm container against `docker run` and `docker exec`, on an engine of its own."""
    command = [sys.executable, "-m", "benchmarks.docker_latency", "--count", "10" if quick else "50"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    head = "### A job in a container, ms from request to known end\n\n"
    if "docker run" not in done.stdout:
        return f"{head}Left out: {(done.stderr.strip().splitlines() or ['no word'])[-1][:300]}\n"
    return head + done.stdout[done.stdout.index("|") :]


_BEGIN, _END = "<!-- bin/bench: begin -->", "<!-- bin/bench: end -->"


def _page(path: Path, table: list[report.Row], text: str) -> None:
    figure = path.with_suffix(".svg")
    report.plot(table, figure)
    made = f"{_BEGIN}\n\n{_HEAD.format(figure=figure.name, **_machine())}{text}\n{_END}"
    page = path.read_text() if path.exists() else f"# Speed\n\n{_BEGIN}{_END}\n"
    before, begin, rest = page.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not (begin and end):
        raise SystemExit(f"{path} has no place for the results: a line {_BEGIN} and a line {_END}")
    path.write_text(before + made + after)


_HEAD = """Made by `bin/bench --page`; do not edit between the marks. {cpus} cpus, Linux {kernel}, Python
{python}. Everybody in the same run, taking turns; medians of the rounds. The machine may be shared: compare
within a table, never absolute numbers. CPU is user and system time of all processes of the contestant, its
servers and the jobs themselves included.

![throughput and latency]({figure})

"""

if __name__ == "__main__":
    sys.exit(main())
