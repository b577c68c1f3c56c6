"""Text for people: tables, times, and nothing that could play tricks with a terminal (S20)."""

import json
import os
import shutil
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

#: Control and format characters (bidi overrides among them), lone surrogates, line separators.
_UNSAFE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})

_COLORS = {
    "running": "cyan",
    "completed": "green",
    "error": "red",
    "canceled": "yellow",
    "lost": "magenta",
    "pending": "blue",
}


def color(state: str) -> str:
    """The color of a state; none where nobody wants any."""
    return "" if os.environ.get("NO_COLOR") else _COLORS.get(state, "")


def safe(text: str) -> str:
    """The text with everything that a terminal might obey written out as an escape.

    >>> safe("a\\x1b[31mb\\n")
    'a\\\\x1b[31mb\\\\n'
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(char if unicodedata.category(char) not in _UNSAFE else _escaped(char) for char in text)


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")


def is_for_people() -> bool:
    """Whether stdout is a terminal."""
    return sys.stdout.isatty()


def to_json(value: Any) -> None:
    """One JSON document on stdout."""
    print(json.dumps(value, indent=2 if sys.stdout.isatty() else None))


def to_json_lines(values: Iterable[Any]) -> None:
    """One JSON document per line, each as soon as it is there."""
    for value in values:
        print(json.dumps(value), flush=True)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Rows under headings; cut to the width of a terminal, whole in a pipe. Every cell is made safe."""
    cells = [[safe(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        _rich_table(columns, cells)
        return
    lines = [list(columns), *cells]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _rich_table(columns: Sequence[str], cells: list[list[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        # What people copy is never cut.
        shown.add_column(name, no_wrap=True, overflow="ellipsis", min_width=26 if name == "JID" else None)
    for row in cells:
        shown.add_row(
            *(
                Text(cell, style=_COLORS.get(cell, "") if name == "STATE" else "")
                for name, cell in zip(columns, row, strict=True)
            )
        )
    Console(width=max(shutil.get_terminal_size().columns, 60), highlight=False).print(shown)


def fields(pairs: Iterable[tuple[str, str]]) -> None:
    """`name  value` lines; pairs without a value are left out. Every value is made safe."""
    shown = [(name, safe(value)) for name, value in pairs if value]
    width = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        print(f"{name.ljust(width)}  {value}")


def instant(when: datetime | None) -> str:
    """`2030-01-02 03:04:05Z`."""
    return when.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ") if when else ""


def color_wanted() -> bool:
    """Whether stderr is a terminal that wants more than plain lines."""
    return sys.stderr.isatty() and os.environ.get("TERM", "") not in ("", "dumb")
