"""Tokens as a user of the command line has them."""

import json
from pathlib import Path

from tests.acceptance.conftest import System, eventually


def test_a_token_from_its_making_to_its_end(system: System, tmp_path: Path) -> None:
    file = tmp_path / "ann.token"
    said = system.cli("token", "create", "ann", "--expires", "1h", "--name", "laptop", "--out", str(file))
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.read_text().strip() not in said.stdout.decode()
    mine = ["--url", system.url, "--token-file", str(file)]
    # the front end hears of it
    eventually(lambda: system.cli("ps", *mine, check=False).returncode == 0)
    assert system.cli("run", *mine, "--", "/bin/echo", "hello").stdout == b"hello\n"
    (row,) = json.loads(system.cli("token", "list", "--user", "ann", "-o", "json").stdout)
    assert (row["user"], row["role"], row["name"], row["valid"]) == ("ann", "user", "laptop", True)
    assert system.cli("token", "create", "eve", *mine, check=False).returncode == 4
    printed = system.cli("token", "create", "bob", "--role", "read-only").stdout.decode().strip()
    assert printed.startswith("sj_")
    system.cli("token", "revoke", row["id"])
    eventually(lambda: system.cli("ps", *mine, check=False).returncode == 4)
    assert b"revoked" in system.cli("token", "list", "--all").stdout
