"""Write docs/states.md from the tables: `python -m tests.unit.make_chart`."""

from pathlib import Path

from sirepo_jobs.reasons import Reason
from sirepo_jobs.transitions import chart

lines = [
    "# States and reasons",
    "",
    "Made from the tables in `transitions.py` and `reasons.py`; a test compares. Arrows back to",
    "where they begin are left out.",
    "",
    chart(),
    "| reason | fault | may pass by itself |",
    "| --- | --- | --- |",
    *(f"| `{r}` | {r.about.fault} | {'yes' if r.about.retryable else 'no'} |" for r in Reason),
    "",
]
(Path(__file__).parents[2] / "docs" / "states.md").write_text("\n".join(lines))
