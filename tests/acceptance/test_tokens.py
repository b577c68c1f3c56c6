"""Tokens as a user of the command line has them."""

import json
import time
from pathlib import Path

from tests.acceptance.conftest import System


def test_a_token_from_its_making_to_its_end(system: System, tmp_path: Path) -> None:
    file = tmp_path / "ann.token"
    said = system.cli("token", "create", "ann", "--expires", "1h", "--name", "laptop", "--out", str(file))
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.read_text().strip() not in said.stdout.decode()
    mine = ["--url", system.url, "--token-file", str(file)]
    end = time.monotonic() + 5
    while system.cli("ps", *mine, check=False).returncode != 0:  # the front end has heard of it
        assert time.monotonic() < end
    assert system.cli("run", *mine, "--", "/bin/echo", "hello").stdout == b"hello\n"
    (row,) = json.loads(system.cli("token", "list", "--user", "ann", "-o", "json").stdout)
    assert (row["user"], row["role"], row["name"], row["valid"]) == ("ann", "user", "laptop", True)
    assert system.cli("token", "create", "eve", *mine, check=False).returncode == 4
    printed = system.cli("token", "create", "bob", "--role", "read-only").stdout.decode().strip()
    assert printed.startswith("sj_")
    system.cli("token", "revoke", row["id"])
    end = time.monotonic() + 5
    while system.cli("ps", *mine, check=False).returncode != 4:
        assert time.monotonic() < end
    assert b"revoked" in system.cli("token", "list", "--all").stdout
