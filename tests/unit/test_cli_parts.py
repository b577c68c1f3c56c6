"""The parts of the command line that need no service."""

import doctest
import io
import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from typing import Any

import click
import pytest
from rich.cells import cell_len
from rich.console import Console

from sirepo_jobs.cli import logs, main, render, screen
from sirepo_jobs.cli.jobs import FIRST_TO_GO, summary
from sirepo_jobs.cli.screen import Screen
from sirepo_jobs.cli.spec_options import make_spec
from sirepo_jobs.cli.trouble import exit_status
from sirepo_jobs.client import Job
from sirepo_jobs.errors import BadInput, Conflict, Forbidden, NotFound, StoreError, Unauthorized, Unavailable
from sirepo_jobs.spec import parse_spec

NOW = datetime(2030, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize("module", [render, logs])
def test_examples(module: Any) -> None:
    assert doctest.testmod(module).failed == 0


def test_plain_commands_load_nothing_heavy() -> None:
    heavy = ("tornado", "pykern", "sqlalchemy", "rich", "structlog", "urllib3", "pytest", "asyncio")
    code = (
        "import sys, json; from sirepo_jobs.cli.main import main; main(['--version']);"
        f"print(json.dumps([m for m in {heavy!r} if m in sys.modules]))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert json.loads(said.splitlines()[-1]) == []


def test_the_client_loads_no_server() -> None:
    heavy = ("tornado", "pykern", "sqlalchemy", "rich", "asyncio")
    code = f"import sys, sirepo_jobs.client; print([m for m in {heavy!r} if m in sys.modules])"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said == "[]\n"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain caf\u00e9 \u65e5\u672c", "plain caf\u00e9 \u65e5\u672c"),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("a\u202eb", "a\\u202eb"),  # bidi override
        ("a\u200bb", "a\\u200bb"),
        ("\x9b31m", "\\x9b31m"),  # 8-bit CSI
        ("two\r\nlines\t", "two\\r\\nlines\\t"),
        ("\ud800", "\\ud800"),
    ],
)
def test_text_cannot_play_tricks_with_the_terminal(text: str, shown: str) -> None:
    assert render.safe(text) == shown


def test_a_table_in_a_pipe_is_plain_and_safe(capsys: pytest.CaptureFixture[str]) -> None:
    render.table(("A", "NAME"), [("1", "x\x1b[2J"), ("22", "y")])
    assert capsys.readouterr().out == "A   NAME\n1   x\\x1b[2J\n22  y\n"


_PS = ("JID", "NAME", "STATE", "WHY", "AGE", "TIME", "PROGRESS")
_JID = "01M8G4ZKSVV18C6DCJF4SJ296Z"
_JOB = (
    _JID,
    "a name of many words \u65e5\u672c",
    "running",
    "-",
    "2.5s",
    "2.4s",
    "50%",
)


@pytest.mark.parametrize(
    ("width", "heads", "row"),
    [
        (60, _PS[:5], f"{_JID} a name of m\u2026 running - 2.5s"),
        (72, _PS[:6], f"{_JID} a name of many wo\u2026 running - 2.5s 2.4s"),
        (100, _PS, " ".join(_JOB)),
    ],
)
def test_a_narrow_table_gives_up_the_lesser_columns_first(
    width: int, heads: tuple[str, ...], row: str
) -> None:
    """At 60 columns `ps` lost state and reason, and kept names of any length."""
    table, needed = render.fitted(_PS, [_JOB], width, FIRST_TO_GO)
    out = Console(file=io.StringIO(), width=needed)
    out.print(table)
    assert isinstance(out.file, io.StringIO)
    lines = out.file.getvalue().splitlines()
    assert (tuple(lines[0].split()), needed) == (heads, width)
    assert lines[1].split() == row.split()
    assert max(map(cell_len, lines)) <= width


@pytest.mark.parametrize("why", ["CANCELED_BY_USER", "exit 0", "-"])
def test_every_state_fits_into_sixty_columns(why: str) -> None:
    """`watch` cut the ids there, and `ps` broke its lines."""
    row = (_JID, "n" * 40, "completed", why, "10m 56s", "1.7s", "100%")
    table, needed = render.fitted(_PS, [row], 60, FIRST_TO_GO)
    assert needed == 60
    assert table.columns[0].width == len(_JID)


def test_what_is_copied_is_never_cut() -> None:
    _, needed = render.fitted(("PATH", "KIND"), [("p" * 90, "file")], 60, ("KIND",))
    assert needed == 90


@pytest.mark.parametrize("words", [[], ["audit"], ["token"], ["agent"], ["config"], ["cluster"]])
def test_the_beginning_of_a_command_shows_what_may_follow(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """The help was shown as the message of an error, in one line with its line ends escaped."""
    assert main.main(words) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("Usage: sirepo-jobs")
    assert "\\n" not in said.err
    assert main.main(["-o", "json", *words]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "usage"


def test_the_help_lists_every_command_with_its_whole_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["--help"]) == 0
    said = capsys.readouterr().out
    assert "..." not in said.split("Jobs:")[1]
    listed = [line.split()[0] for line in said.splitlines() if line.startswith("  ") and line[2:3].isalpha()]
    assert set(main.COMMANDS) <= set(listed)
    assert main.main(["token", "--help"]) == 0
    assert "..." not in capsys.readouterr().out.split("Commands:")[1]


def test_json_lines_are_lines_for_every_list(capsys: pytest.CaptureFixture[str]) -> None:
    render.values("jsonl", [{"a": 1}, {"a": 2}])
    render.values("json", [{"a": 1}, {"a": 2}])
    assert capsys.readouterr().out == '{"a": 1}\n{"a": 2}\n[{"a": 1}, {"a": 2}]\n'


def test_options_make_a_spec_that_says_no_more_than_they_do() -> None:
    assert make_spec(("true",), {"env": (), "tag": (), "retry_on": ()}) == {"command": ["true"]}


def test_all_options_make_a_spec_that_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERE", "mine")
    spec = parse_spec(
        make_spec(
            ("sh", "-c", "exit 3"),
            {
                "name": "n",
                "jid": "u-s-m",
                "cpus": 2,
                "memory": "1 GiB",
                "gpus": 0,
                "time_limit": "10m",
                "hard_limit": "11m",
                "grace": "5s",
                "max_output": "2 GB",
                "max_processes": 50,
                "env": ("A=b=c", "HERE"),
                "driver": "local",
                "tag": ("project=x",),
                "priority": 0,
                "queue": "slow",
                "max_attempts": 3,
                "retry_on": ("OUT_OF_MEMORY",),
                "progress": "jsonl",
            },
        )
    )
    assert spec.env == {"A": "b=c", "HERE": "mine"}
    assert (spec.resources.cpus, spec.resources.memory, spec.priority) == (2, 1 << 30, 0)
    assert (spec.limits.soft, spec.limits.hard, spec.limits.grace) == (600.0, 660.0, 5.0)
    assert (spec.limits.output, spec.limits.processes) == (2 * 10**9, 50)


@pytest.mark.parametrize("options", [{"env": ("NOT_SET_ANYWHERE",)}, {"env": ("=x",)}, {"tag": ("x",)}])
def test_options_that_cannot_be_meant(options: dict[str, Any]) -> None:
    with pytest.raises(click.BadParameter):
        make_spec(("true",), options)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (NotFound("x"), 3),
        (Unauthorized("x"), 4),
        (Forbidden("x"), 4),
        (Conflict("x"), 5),
        (BadInput("x"), 2),
        (Unavailable("x", code="unreachable"), 69),
        (Unavailable("x"), 75),
        (StoreError("x"), 1),
    ],
)
def test_exit_statuses(error: Any, status: int) -> None:
    assert exit_status(error) == status


def test_usage_errors_are_2_and_125_where_the_status_is_the_jobs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["ps", "--nonsense"]) == 2
    assert main.main(["run"]) == 125
    assert main.main(["wat"]) == 2
    said = capsys.readouterr().err
    assert "see: sirepo-jobs ps --help" in said
    assert "did you mean 'wait'?" in said


def test_errors_in_json_are_one_object_on_stdout(capsys: pytest.CaptureFixture[str], tmp_path: Any) -> None:
    assert main.main(["--output", "json", "--root", str(tmp_path), "show", "x"]) == 69
    said = capsys.readouterr()
    assert json.loads(said.out)["error"]["code"] == "not_started"
    assert said.err == ""


def test_a_bug_is_one_line_unless_debugging(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sirepo_jobs.cli.surroundings import Surroundings

    def broken(here: Surroundings, **flags: object) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(Surroundings, "settings", broken)
    assert main.main(["config", "show"]) == 1
    assert capsys.readouterr().err.splitlines()[0] == "error: ZeroDivisionError: oops"
    with pytest.raises(ZeroDivisionError):
        main.main(["config", "show", "--debug"])


@pytest.mark.parametrize("command", list(main.COMMANDS))
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main([command, "--help"]) == 0
    assert "--root" in capsys.readouterr().out


def test_config_show_names_sources(capsys: pytest.CaptureFixture[str], tmp_path: Any) -> None:
    assert main.main(["config", "show", "--root", str(tmp_path), "-o", "json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["root"] == {"name": "root", "value": str(tmp_path), "source": "flag"}
    assert rows["heartbeat_secs"]["source"] == "default"


def test_the_summary_of_a_job_says_why_and_how_long() -> None:
    job = Job(
        jid="J",
        state="error",
        reason="OUT_OF_MEMORY",
        fault="user",
        situation="it wanted more than 1 GiB",
        signal=9,
        spec={"command": ["sh", "-c", "echo 'a b'"]},
        created_at=NOW,
        started_at=NOW + timedelta(seconds=2),
        ended_at=NOW + timedelta(seconds=92),
        usage={"user_secs": 80.0, "system_secs": 1.0, "max_rss": 1 << 30},
    )
    shown = dict(summary(job, NOW))
    assert shown["command"] == """sh -c 'echo '"'"'a b'"'"''"""
    assert shown["reason"] == "OUT_OF_MEMORY (fault: user)"
    assert shown["exit"] == "signal 9 (SIGKILL)"
    assert (shown["waited"], shown["ran"]) == ("2.0s", "1m 30s")
    assert shown["memory"] == "1 GiB at most"


# --- progress -------------------------------------------------------------------------------------


class Written(list[tuple[int, bytes]]):
    """What a screen wrote, instead of writing it."""

    def text(self, fd: int) -> bytes:
        return b"".join(data for where, data in self if where == fd)


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Written:
    seen = Written()
    monkeypatch.setattr(screen, "_write_all", lambda fd, data: seen.append((fd, bytes(data))))
    return seen


def at(percent: float, **fields: Any) -> Job:
    return Job(jid="J", state="running", progress={"percent_complete": percent, **fields})


def test_without_a_terminal_progress_is_a_few_plain_lines(written: Written) -> None:
    now = 0.0
    shown = Screen(clock=lambda: now)
    for percent in range(101):
        now = percent / 8
        shown.show(at(percent))
    assert written.text(2) == b"".join(b"progress %d%%\n" % p for p in range(0, 101, 10))
    assert written.text(1) == b""


def test_a_fast_job_is_heard_once_a_second_and_at_its_end(written: Written) -> None:
    shown = Screen(clock=lambda: 5.0)
    for percent in (1, 50, 99, 100, 100):
        shown.show(at(percent))
    assert written.text(2) == b"progress 1%\nprogress 100%\n"


def test_on_a_terminal_the_bar_makes_way_for_the_jobs_bytes(
    written: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(screen, "color_wanted", lambda: True)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    shown = Screen()
    shown.show(at(50, message="half\x1b[2J"))
    shown.write(1, b"no end of line")
    shown.write(1, b" yet\n")
    shown.done()
    bar = written[0][1]
    assert b"50%" in bar
    assert b"half\\x1b[2J" in bar
    wipe = (2, b"\r\x1b[K")
    assert written[1:] == [wipe, (1, b"no end of line"), (1, b" yet\n"), (2, bar), wipe]


def test_on_a_terminal_a_job_that_waits_says_why(written: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(screen, "color_wanted", lambda: True)
    shown = Screen()
    shown.show(Job(jid="J", state="pending", situation="cpus: needs 2, 0 free"))
    shown.show(Job(jid="J", state="running"))
    assert written == [(2, b"pending: cpus: needs 2, 0 free"), (2, b"\r\x1b[K")]
