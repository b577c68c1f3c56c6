"""Medians, spread and ratios of a run; as JSON, as a table for people, as a page with plots."""

import json
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .contest import Sample
from .roster import ROSTER, UNITS, Contestant


@dataclass(frozen=True)
class Row:
    """One contestant in one workload, over all rounds."""

    contestant: Contestant
    workload: str
    rounds: int
    #: Rate per second; for `latency` the median in milliseconds.
    value: float
    low: float
    high: float
    #: For `latency`, in milliseconds.
    p99: float | None
    cpu_us: float


def rows(samples: list[Sample]) -> list[Row]:
    """The best first, workload by workload."""
    found = []
    for workload in UNITS:
        part = [_row(contestant, workload, samples) for contestant in ROSTER]
        up = 1 if workload == "latency" else -1
        found += sorted(filter(None, part), key=lambda row: up * row.value)
    return found


def _row(contestant: Contestant, workload: str, samples: list[Sample]) -> Row | None:
    mine = [one for one in samples if one.contestant == contestant.name and one.workload == workload]
    if not mine:
        return None
    p99 = None
    if workload == "latency":
        values = [statistics.median(one.secs) * 1e3 for one in mine]
        p99 = statistics.median(_quantile(one.secs, 0.99) * 1e3 for one in mine)
    else:
        values = [one.count / one.secs[0] for one in mine]
    cpu_us = statistics.median(one.cpu_us for one in mine)
    return Row(
        contestant, workload, len(mine), statistics.median(values), min(values), max(values), p99, cpu_us
    )


def _quantile(values: list[float], part: float) -> float:
    return sorted(values)[min(int(len(values) * part), len(values) - 1)]


def ratios(table: list[Row]) -> dict[str, float]:
    """Ours against the limit and the best of the peers, in this run; what is promised, by name."""
    by = {(row.contestant.name, row.workload): row for row in table}
    ours = {row.workload: row for row in table if row.contestant.kind == "ours"}
    found: dict[str, float] = {}
    limit = by.get((ROSTER[0].name, "throughput"))
    with_files = by.get((ROSTER[1].name, "throughput"))
    if (mine := ours.get("throughput")) is not None:
        peers = [row for row in table if row.workload == "throughput" and row.contestant.kind == "peer"]
        if limit:
            found["throughput / C posix_spawn"] = mine.value / limit.value
            found["CPU outside the job / cost of the spawn"] = (mine.cpu_us - limit.cpu_us) / limit.cpu_us
        if with_files:
            found["throughput / C posix_spawn with files"] = mine.value / with_files.value
        if peers:
            found[f"throughput / {peers[0].contestant.name} (fastest peer)"] = mine.value / peers[0].value
        for row in peers:
            if row.contestant.durable or row.contestant.name == "HyperQueue":
                found[f"throughput / {row.contestant.name}"] = mine.value / row.value
    if (mine := ours.get("latency")) is not None:
        assert mine.p99 is not None
        peers = [row for row in table if row.workload == "latency" and row.contestant.kind == "peer"]
        if (bare := by.get((ROSTER[0].name, "latency"))) is not None:
            found["latency p50 / bare subprocess.run"] = mine.value / bare.value
        found["latency p99 / p50"] = mine.p99 / mine.value
        if peers:
            found[f"latency p50 / {peers[0].contestant.name} (fastest peer)"] = mine.value / peers[0].value
    pipe = by.get((ROSTER[0].name, "log_follow"))
    if pipe and (mine := ours.get("log_follow")) is not None:
        found["log follow / plain pipe"] = mine.value / pipe.value
    return found


def as_text(table: list[Row], left_out: dict[str, str]) -> str:
    """For a terminal and for Markdown alike."""
    lines = []
    for workload, unit in UNITS.items():
        part = [row for row in table if row.workload == workload]
        if not part:
            continue
        tail = " p99 |" if workload == "latency" else ""
        lines += [
            "",
            f"### {workload}, {unit}",
            "",
            f"| | median | spread |{tail} CPU us per item | rounds |",
        ]
        lines.append("|---|---|---|" + ("---|" if tail else "") + "---|---|")
        for row in part:
            name = f"**{row.contestant.name}**" if row.contestant.kind == "ours" else row.contestant.name
            p99 = f" {row.p99:.2f} |" if row.p99 is not None else ""
            digits = 2 if workload == "latency" else 0
            spread = f"{row.low:.{digits}f} to {row.high:.{digits}f}"
            lines.append(
                f"| {name} | {row.value:.{digits}f} | {spread} |{p99} {row.cpu_us:.0f} | {row.rounds} |"
            )
    lines += ["", "### Ratios", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {value:.2f} |" for name, value in ratios(table).items()]
    if left_out:
        lines += ["", "Left out:", ""] + [f"* {name}: {why}" for name, why in left_out.items()]
    return "\n".join(lines).strip() + "\n"


def as_json(
    table: list[Row], samples: list[Sample], left_out: dict[str, str], machine: dict[str, Any]
) -> str:
    """Everything, for whoever wants to compute with it."""
    return json.dumps(
        {
            "machine": machine,
            "ratios": ratios(table),
            "rows": [{**asdict(row), "contestant": row.contestant.name} for row in table],
            "samples": [asdict(one) for one in samples],
            "left_out": left_out,
        },
        indent=1,
    )


def plot(table: list[Row], path: Path) -> None:
    """Throughput and latency as bars; ours stands out."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot

    colors = {"limit": "#9a9a9a", "ours": "#c2410c", "peer": "#3b6ea5"}
    shown = [name for name in ("throughput", "latency") if any(row.workload == name for row in table)]
    figure, axes = pyplot.subplots(len(shown), 1, figsize=(9, 4.2 * len(shown)), squeeze=False)
    for (axis,), workload in zip(axes, shown, strict=True):
        part = [row for row in table if row.workload == workload][::-1]
        names = [row.contestant.name for row in part]
        axis.barh(names, [row.value for row in part], color=[colors[row.contestant.kind] for row in part])
        axis.set_xscale("log")
        axis.set_xlabel(f"{workload}, {UNITS[workload]} (log scale)")
        for place, row in enumerate(part):
            axis.annotate(f" {row.value:,.4g}", (row.value, place), va="center", fontsize=8)
        axis.margins(x=0.15)
    figure.tight_layout()
    figure.savefig(path)
