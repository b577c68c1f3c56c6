"""Text for people: tables, times, and nothing that could play tricks with a terminal (S20)."""

import json
import os
import shutil
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

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

#: What may be cut with an ellipsis, and to what width at least. What people copy is never cut.
_ELASTIC = {"NAME": 12, "WHY": 7, "VALUE": 12, "SOURCE": 12, "TROUBLE": 12, "HOST": 8}


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


def value(output: str, document: Any) -> None:
    """One JSON document on stdout; with `jsonl` on one line."""
    indent = 2 if output == "json" and sys.stdout.isatty() else None
    print(json.dumps(document, indent=indent), flush=True)


def values(output: str, documents: Iterable[Any]) -> None:
    """Many JSON documents: with `json` one list, with `jsonl` a line each, as soon as it is there."""
    if output == "json":
        value(output, list(documents))
        return
    for document in documents:
        value(output, document)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], first_to_go: Sequence[str] = ()) -> None:
    """Rows under headings; fitted to the width of a terminal, whole in a pipe. Every cell is made safe.

    On a narrow terminal the columns `first_to_go` are left out one after the other, until the rest fits.
    """
    cells = [[safe(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        from rich.console import Console

        shown, width = fitted(columns, cells, shutil.get_terminal_size().columns, first_to_go)
        Console(width=width, highlight=False).print(shown)
        return
    lines = [list(columns), *cells]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def fitted(
    columns: Sequence[str], cells: Sequence[Sequence[str]], width: int, first_to_go: Sequence[str]
) -> "tuple[Table, int]":
    """A table for a terminal of this width, and the width that it takes: more, where nothing can give way."""
    from rich.cells import cell_len
    from rich.table import Table
    from rich.text import Text

    wanted = {
        name: max(cell_len(text) for text in (name, *(row[i] for row in cells)))
        for i, name in enumerate(columns)
    }
    for name in first_to_go:
        if _together(min(size, _ELASTIC.get(column, size)) for column, size in wanted.items()) <= width:
            break
        del wanted[name]
    widths = dict(wanted)
    while (excess := _together(widths.values()) - width) > 0:
        room = {name: size - _ELASTIC.get(name, size) for name, size in widths.items()}
        givers = [name for name in room if room[name] > 0]
        if not givers:
            break
        widest = max(givers, key=lambda name: widths[name])
        widths[widest] -= min(excess, room[widest])
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for name, size in widths.items():
        shown.add_column(name, width=size, no_wrap=True, overflow="ellipsis")
    for row in cells:
        shown.add_row(
            *(
                Text(cell, style=color(cell) if name == "STATE" else "")
                for name, cell in zip(columns, row, strict=True)
                if name in widths
            )
        )
    return shown, max(width, _together(widths.values()))


def _together(sizes: Iterable[int]) -> int:
    """Columns side by side, with two blanks between."""
    each = list(sizes)
    return sum(each) + 2 * (len(each) - 1)


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
