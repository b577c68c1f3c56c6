"""Draws temperature and energy from a LAMMPS log: plot.py LOG OUT, where OUT ends in .png, .svg or .pdf."""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")  # no display where jobs run

from matplotlib import pyplot as plt

Table = dict[str, list[float]]


def parse_thermo(text: str) -> list[Table]:
    """One table per `run` in the log; a log that was cut short gives the rows it has."""
    tables: list[Table] = []
    names: list[str] = []
    for line in text.splitlines():
        fields = line.split()
        if fields[:1] == ["Step"]:
            names = fields
            tables.append({name: [] for name in names})
        elif names and len(fields) == len(names):
            try:
                row = [float(field) for field in fields]
            except ValueError:
                continue  # a warning that happens to have as many fields
            for name, value in zip(names, row, strict=True):
                tables[-1][name].append(value)
        elif line.startswith("Loop time"):
            names = []
    return [table for table in tables if table["Step"]]


def draw(tables: list[Table], out: Path) -> None:
    """Temperature above, potential energy below; the thermostat works in the first run only."""
    figure, (upper, lower) = plt.subplots(2, 1, sharex=True, figsize=(8, 5.5), layout="constrained")
    time, temperature, energy = (
        [value for table in tables for value in table[name]] for name in ("Time", "Temp", "PotEng")
    )
    upper.plot(time, temperature, color="tab:red")
    upper.set_ylabel("temperature  (ε/k)")
    lower.plot(time, energy, color="tab:blue")
    lower.set_ylabel("potential energy per atom  (ε)")
    lower.set_xlabel("time  (τ)")
    for axes in (upper, lower):
        axes.grid(alpha=0.3)
        axes.margins(x=0)
    for table in tables[1:]:
        for axes in (upper, lower):
            axes.axvline(table["Time"][0], color="gray", linestyle="--", linewidth=1)
        upper.annotate(
            "thermostat off ",
            (table["Time"][0], 0.04),
            xycoords=("data", "axes fraction"),
            ha="right",
            color="gray",
        )
    upper.set_title("A Lennard-Jones crystal melts")
    figure.savefig(out, dpi=150)


def main(argv: list[str]) -> None:
    if len(argv) != 3:
        sys.exit("usage: plot.py LOG OUT")
    log, out = Path(argv[1]), Path(argv[2])
    tables = parse_thermo(log.read_text(encoding="utf-8", errors="replace"))
    if not tables:
        sys.exit(f"plot.py: no thermodynamic output in {log}")
    draw(tables, out)


main(sys.argv)
