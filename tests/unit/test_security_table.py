"""docs/security.md is held to the tests, and the code to what its reader relies on (S66)."""

import ast
import re
from pathlib import Path

import pytest

from sirepo_jobs.errors import BadInput
from sirepo_jobs.spec import parse_spec

ROOT = Path(__file__).parents[2]
#: What the front end and the doors answer for; other rooms have tables of their own.
IDS = [*range(1, 22), *range(30, 37), 40, *range(47, 61), *range(63, 67)]


def rows() -> dict[str, list[str]]:
    """Tests by id, as the page names them."""
    text = (ROOT / "docs" / "security.md").read_text()
    found = re.findall(r"^\| (S\d+) \|.*\|([^|]*)\|$", text, re.MULTILINE)
    assert len(found) == len(dict(found)), "an id stands there twice"
    return {name: re.findall(r"`([^`]+)`", tests) for name, tests in found}


def test_every_id_has_a_row() -> None:
    assert sorted(rows(), key=lambda name: int(name[1:])) == [f"S{number}" for number in IDS]


def test_every_row_names_tests_that_are_there() -> None:
    for name, tests in rows().items():
        assert tests, name
        for test in tests:
            path, _, function = test.partition("::")
            tree = ast.parse((ROOT / path).read_text())
            defined = {
                n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)
            }
            assert not function or function in defined, (name, test)


FORBIDDEN_MODULES = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "yaml"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "os.system", "os.popen", "subprocess.getoutput"}


@pytest.mark.parametrize("room", ["sirepo_jobs", "agents", "drivers"])
def test_no_shell_and_no_code_from_data(room: str) -> None:
    files = sorted((ROOT / room).rglob("*.py"))
    assert files
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = (
                    [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
                )
                assert not {name.partition(".")[0] for name in names} & FORBIDDEN_MODULES, path
            if isinstance(node, ast.Call):
                assert ast.unparse(node.func) not in FORBIDDEN_CALLS, (path, node.lineno)
                assert not [k for k in node.keywords if k.arg == "shell"], (path, node.lineno)


def test_inputs_by_url_are_not_taken_yet() -> None:
    """When they are, S31 wants a test of its own: where they may point, and where redirects may lead."""
    assert parse_spec({"command": ["a"]})
    with pytest.raises(BadInput, match="inputs"):
        parse_spec({"command": ["a"], "inputs": [{"url": "http://169.254.169.254/x", "path": "x"}]})
