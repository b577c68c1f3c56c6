"""The log of the long-lived processes: one line per event, whoever speaks, and no secret in it."""

import json
import logging
import subprocess
import sys

from sirepo_jobs import logs


def log_of(code: str, form: str = "json") -> list[str]:
    """The lines that a process logs which does `code`."""
    start = f"import logging, structlog\nfrom sirepo_jobs import logs\nlogs.setup('info', {form!r})\n"
    told = subprocess.run([sys.executable, "-c", start + code], capture_output=True, text=True, check=True)
    assert told.stdout == ""
    return told.stderr.splitlines()


def test_both_ways_of_logging_come_out_alike() -> None:
    lines = log_of(
        "logging.getLogger('a.b').info('said %s', 'so', extra={'jid': 'J1'})\n"
        "structlog.get_logger('a.b').info('said so', jid='J1')\n"
        "logging.getLogger('a').debug('not told')\n"
    )
    first, second = (json.loads(line) for line in lines)
    assert list(first)[:4] == list(second)[:4] == ["ts", "level", "msg", "logger"]
    assert first.pop("ts").endswith("Z")
    assert second.pop("ts").endswith("Z")
    assert first == second == {"level": "info", "msg": "said so", "logger": "a.b", "jid": "J1"}


def test_secrets_are_cut_out() -> None:
    (line,) = log_of(
        "logs.hide('s3cret-s3cret')\n"
        "fields = {'token': 'x', 'url': 'a?s3cret-s3cret'}\n"
        "logging.getLogger('a').error('token s3cret-s3cret', extra=fields)\n"
    )
    told = json.loads(line)
    assert (told["msg"], told["token"], told["url"]) == ("token ***", "***", "a?***")


def test_a_traceback_stays_on_its_line_and_long_values_are_cut() -> None:
    lines = log_of("try: 1 / 0\nexcept ZeroDivisionError: logging.getLogger('a').exception('x' * 9000)\n")
    (told,) = (json.loads(line) for line in lines)
    assert "ZeroDivisionError" in told["exception"]
    assert len(told["msg"]) < 4100


def test_for_people_it_is_plain_text() -> None:
    (line,) = log_of("logging.getLogger('a').warning('careful')\n", "console")
    assert "careful" in line
    assert "{" not in line


def test_strangers_cannot_fill_the_log() -> None:
    """S49: what they can make us say is short and seldom, and what is left out is counted."""
    now = [0.0]
    trickle = logs.Trickle(clock=lambda: now[0])

    def line(text: str) -> logging.LogRecord:
        return logging.LogRecord("tornado.general", logging.INFO, "", 0, "Malformed %s", (text,), None)

    heard = [record for record in map(line, ["x" * 70_000] * 1000) if trickle.filter(record)]
    assert len(heard) == logs.Trickle.PER_SEC
    assert {len(record.getMessage()) for record in heard} == {logs.Trickle.MAX_CHARS + 3}
    now[0] = 1.0
    last = line("short")
    assert trickle.filter(last)
    assert (last.getMessage(), last.__dict__["left_out"]) == ("Malformed short", 1000 - len(heard))
