"""The parts of the sbatch driver that are plain functions: what is said to a shell, what is read from it."""

import json
import re
import subprocess
from pathlib import Path

import msgspec
import pytest

from sirepo_jobs.drivers.sbatch import remote, ssh
from sirepo_jobs.drivers.sbatch.logins import DAY_SECS, LoginBook
from sirepo_jobs.errors import BadInput, LaunchError
from sirepo_jobs.login import LoginAnswers, LoginOrder, parse_answers, parse_login

NASTY = [
    "/a b",
    "/a;id",
    "/a'b",
    '/a"b',
    "/a$(id)",
    "/a`id`",
    "/a\nb",
    "/a&b",
    "/a|b",
    "/a>b",
    "/ä",
    "",
    "/a*",
    "/a\\",
]


@pytest.mark.parametrize("text", NASTY)
def test_nothing_that_a_shell_could_read_gets_into_a_command(text: str) -> None:
    """S59."""
    for make in (
        lambda: remote.probe(text, "v", ""),
        lambda: remote.probe("/r", text, ""),
        lambda: remote.unpack("/r", "v", text, "0" * 64),
        lambda: remote.unpack("/r", "v", "f", text),
        lambda: remote.clear_socket(text),
        lambda: remote.log_tail(text),
        lambda: remote.agent(text or "\n", "v", "start", b""),
        lambda: remote.agent("/r", "v", text, b""),
    ):
        with pytest.raises(LaunchError):
            make()


def test_what_goes_with_a_command_is_not_in_it() -> None:
    script = remote.agent("/r", "v", "start", b'{"token":"secret"}')
    assert "secret" not in script.command
    assert script.stdin == b'{"token":"secret"}'
    # whatever the login shell is, it reads this the same way
    assert script.command.count("'") == 2
    assert not set(script.command) & set('"!\n`$') - {"$"}


def run(script: remote.Script) -> bytes:
    """As sshd would, with a shell whose start files talk."""
    noise = f"echo Welcome; {script.command}"
    return subprocess.run(["sh", "-c", noise], input=script.stdin, capture_output=True, check=False).stdout


def test_a_script_is_read_out_of_the_noise(tmp_path: Path) -> None:
    script = remote.probe(str(tmp_path / "root"), "v", "")
    said = remote.read(script, b"\x1b]0;title\x07" + run(script) + b"\ngoodbye\n")
    place = remote.place(said)
    assert (said.status, place.root, place.has_bundle) == (0, str(tmp_path / "root"), False)
    assert (tmp_path / "root").stat().st_mode & 0o777 == 0o700
    assert place.boot_id == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert place.free_kib is not None
    assert place.free_kib > 0


@pytest.mark.parametrize(
    "said", [b"", b"this account is for data transfer only\n", b"@@0123 begin\n@@0123 end 0\n"]
)
def test_what_did_not_run_is_no_answer(said: bytes) -> None:
    script = remote.look(1)
    with pytest.raises(remote.NotRun):
        remote.read(script, said)
    # and half of an answer is none either
    with pytest.raises(remote.NotRun):
        remote.read(script, run(script).rpartition(b"@@")[0])


def test_a_process_is_known_by_its_start() -> None:
    script = remote.look(1)
    stat = Path("/proc/1/stat").read_text()
    start = remote.process_start(remote.read(script, run(script)).words["stat"])
    assert start == int(stat.rpartition(")")[2].split()[19])
    for text in ("", "1 (x) Z " + "0 " * 40, "1 (x", "no such file"):
        assert remote.process_start(text) is None


def test_only_current_algorithms_are_offered() -> None:
    """S55: what ssh-audit would complain of is not there."""
    offered = [name for names in ssh._ALGORITHMS.values() for name in names]
    weak = re.compile(r"sha1$|sha1-etm|md5|cbc|arcfour|dss|group1-|group-exchange-sha1|umac-64|3des|none")
    assert [name for name in offered if weak.search(name)] == []
    assert len(offered) > 15


def test_secrets_show_themselves_nowhere() -> None:
    """S57: neither in a traceback nor in a log."""
    order = LoginOrder(username="ann", password="p4ss", code="123456", private_key="KEY", passphrase="phr4se")
    credentials = ssh.Credentials("ann", "p4ss", "123456", None)
    for text in (repr(order), repr(LoginAnswers(answers=["p4ss"])), repr(credentials), f"{credentials}"):
        assert not [word for word in ("p4ss", "123456", "KEY", "phr4se") if word in text]


@pytest.mark.parametrize(
    "body",
    [
        {"pasword": "p4ss"},
        {"password": 1},
        {"password": "p4ss" * 2000},
        {"username": "-oProxyCommand=x"},
        {"username": "a b"},
        {"username": "x" * 65},
        {"password": "p4ss\0"},
    ],
)
def test_bad_orders_are_refused_without_their_secrets(body: dict[str, object]) -> None:
    with pytest.raises(BadInput) as caught:
        parse_login(json.dumps(body).encode())
    assert "p4ss" not in str(caught.value)


def test_orders_and_answers_are_read() -> None:
    assert parse_login(b"") == parse_login(b"{}") == LoginOrder()
    order = LoginOrder(username="ann@lab", code="1")
    assert parse_login(msgspec.json.encode(order)) == order
    assert parse_answers(b'{"answers": ["a", ""]}').answers == ["a", ""]
    for bad in (b"", b"[]", b'{"answers": [1]}', json.dumps({"answers": ["x"] * 11}).encode()):
        with pytest.raises(BadInput):
            parse_answers(bad)


def test_logins_are_counted_for_a_day(tmp_path: Path) -> None:
    now = [1e9]
    book = LoginBook(tmp_path / "logins.json", lambda: now[0])
    for _ in range(3):
        book.add("dev/ann")
        now[0] += 100
    assert (book.count("dev/ann"), book.count("dev/bob")) == (3, 0)
    assert book.free_in_secs("dev/ann", 4) == 0
    assert book.free_in_secs("dev/ann", 3) == DAY_SECS - 300
    again = LoginBook(tmp_path / "logins.json", lambda: now[0])
    assert again.count("dev/ann") == 3
    now[0] += DAY_SECS - 150
    assert again.count("dev/ann") == 1
    (tmp_path / "logins.json").write_text("[torn")
    assert LoginBook(tmp_path / "logins.json").count("dev/ann") == 0
