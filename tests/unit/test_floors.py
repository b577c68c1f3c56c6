"""Imports run down the floors, and third parties stay in the room that wraps them (design 2)."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "sirepo_jobs"

FLOORS: dict[str, int] = {
    # 1: pure, travels to the agent
    **dict.fromkeys(
        ["", "errors", "reasons", "resources", "job", "wording", "spec", "changes", "protocol"], 1
    ),
    **dict.fromkeys(["run_path", "byte_range", "cluster", "cluster_file", "failpoints", "garbage"], 1),
    # Slurm in words: on the agent's floor, because it is the agent that speaks with it
    **dict.fromkeys(["slurm_text", "slurm_states", "slurm_options"], 1),
    # 2: pure
    **dict.fromkeys(
        [
            "events",
            "health",
            "lifecycle",
            "transitions",
            "slots",
            "scheduler",
            "driver",
            "login",
            "explain",
            "tokens",
        ],
        2,
    ),
    "agent_bundle": 2,
    # 3: the shell, the store, both outer sides
    **dict.fromkeys(
        [
            "supervisor",
            "compute_job",
            "op",
            "agent_claim",
            "dispatch",
            "orders",
            "agent_pool",
            "agent_talk",
            "agent_line",
            "leases",
            "renewals",
            "silence",
            "commits",
            "bell",
            "event_hub",
            "intake",
            "known_keys",
            "output",
            "run_files",
            "tasks",
            "token_book",
            "retention",
        ],
        3,
    ),
    **dict.fromkeys(
        [
            "store",
            "drivers",
            "agents",
            "rootdir",
            "run_tree",
            "logs",
            "log_sink",
            "tls",
            "bundler",
            "steady_socket",
        ],
        3,
    ),
    # 4: doors
    **dict.fromkeys(["frontend", "agent_door", "agent_socket", "api", "views", "client"], 4),
    # 5: puts the house together
    **dict.fromkeys(["app", "settings", "setting_values"], 5),
    # 6: people start here
    **dict.fromkeys(["cli"], 6),
}

IMPURE = {
    "asyncio",
    "tornado",
    "websockets",
    "pykern",
    "time",
    "random",
    "os",
    "logging",
    "sqlite3",
    "socket",
    "structlog",
}
THIRD_PARTIES: dict[str, set[str]] = {
    "tornado": {"frontend", "agent_door", "agent_socket", "api", "app"},
    "websockets": {"agents"},
    "psutil": {"agents", "drivers", "cli"},
    "sqlalchemy": {"store"},
    "alembic": {"store"},
    "psycopg": {"store"},
    "sqlite3": {"store"},
    "pykern": {"setting_values", "app", "frontend"},
    "click": {"cli"},
    "rich": {"cli"},
    "urllib3": {"client"},
    "aiodocker": {"drivers"},
    "aiohttp": {"drivers"},
    "asyncssh": {"drivers"},
}
AGENTS_MAY_IMPORT = {
    "agents",
    "cluster",
    "slurm_options",
    "slurm_states",
    "slurm_text",
    "errors",
    "reasons",
    "resources",
    "job",
    "protocol",
    "run_path",
    "run_tree",
    "failpoints",
    "garbage",
    "driver",
    "",
}


def modules() -> dict[str, Path]:
    """Every module of the package by its name below `sirepo_jobs`."""
    found = {}
    for folder, folders, files in os.walk(PACKAGE, followlinks=True):
        folders[:] = [name for name in folders if name != "__pycache__"]
        for file in files:
            path = Path(folder) / file
            if path.suffix == ".py":
                name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
                found[name.removesuffix("__init__").rstrip(".")] = path
    return found


def imports(name: str, path: Path) -> set[tuple[str, bool]]:
    """What a module imports: ours below `sirepo_jobs.` (True) and others by top name (False)."""
    here = ["sirepo_jobs", *name.split(".")] if name else ["sirepo_jobs"]
    package = here if path.name == "__init__.py" else here[:-1]
    found: set[tuple[str, bool]] = set()
    tree = ast.parse(path.read_text())
    skipped = {id(n) for node in ast.walk(tree) if _is_type_checking(node) for n in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{module}.{alias.name}" for alias in node.names]
        else:
            continue
        for full in names:
            top, _, rest = full.partition(".")
            found.add((rest, True) if top == "sirepo_jobs" else (top, False))
    return found


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)


def room(name: str) -> str:
    """The longest known room that `name` lies in."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        if ".".join(parts[:end]) in FLOORS:
            return ".".join(parts[:end])
    return ""


MODULES = modules()


def test_the_links_lead_to_the_owners_folders() -> None:
    for name in ("agents", "drivers"):
        assert (PACKAGE / name).is_symlink()
        assert (PACKAGE / name).resolve() == PACKAGE.parent / name
    assert {"agents", "drivers", "cli", "store"} <= {name.partition(".")[0] for name in MODULES}


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_run_down(name: str) -> None:
    assert name == "" or room(name), f"{name} has no floor; add it to FLOORS"
    mine = room(name)
    for imported, ours in imports(name, MODULES[name]):
        if ours:
            other = room(imported)
            assert FLOORS[other] <= FLOORS[mine], (
                f"{name} (floor {FLOORS[mine]}) imports {other} (floor {FLOORS[other]})"
            )
        else:
            rooms = THIRD_PARTIES.get(imported)
            assert rooms is None or mine in rooms, f"{name} imports {imported}, which stays in {rooms}"


@pytest.mark.parametrize("name", sorted(n for n in MODULES if n and FLOORS[room(n)] <= 2))
def test_pure_rooms_are_pure(name: str) -> None:
    found = {imported for imported, ours in imports(name, MODULES[name]) if not ours}
    assert not found & IMPURE, f"{name} is pure and imports {found & IMPURE}"


@pytest.mark.parametrize(
    "name", sorted(n for n in MODULES if n.partition(".")[0] not in ("agents", "drivers"))
)
def test_nothing_in_the_core_names_agents_or_drivers(name: str) -> None:
    for imported, ours in imports(name, MODULES[name]):
        assert not (ours and room(imported).partition(".")[0] in ("agents", "drivers")), (
            f"{name} imports {imported}"
        )


@pytest.mark.parametrize("name", sorted(n for n in MODULES if n.partition(".")[0] == "agents"))
def test_agents_are_tiny(name: str) -> None:
    for imported, ours in imports(name, MODULES[name]):
        if ours:
            assert room(imported) in AGENTS_MAY_IMPORT, f"{name} imports {imported}"
        else:
            allowed = imported in sys.stdlib_module_names or imported in ("websockets", "msgspec", "psutil")
            assert allowed, f"{name} imports {imported}"


@pytest.mark.parametrize("name", sorted(n for n in MODULES if n.partition(".")[0] == "drivers"))
def test_drivers_know_neither_the_supervisor_nor_each_other(name: str) -> None:
    for imported, ours in imports(name, MODULES[name]):
        if ours:
            other = room(imported)
            mine = ".".join(name.split(".")[:2])
            assert FLOORS[other] <= 2 or imported.startswith(mine), f"{name} imports {imported}"


def test_an_agent_process_loads_nothing_heavy() -> None:
    """What really comes in when an agent starts, imports of imports included."""
    code = (
        "import sys, pkgutil, importlib, sirepo_jobs.agents as a\n"
        "for m in pkgutil.iter_modules(a.__path__):\n"
        "    if m.name != '__main__': importlib.import_module(f'sirepo_jobs.agents.{m.name}')\n"
        "print(' '.join(sorted({m.partition('.')[0] for m in sys.modules})))"
    )
    loaded = set(
        subprocess.run(
            [sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True, check=True
        ).stdout.split()
    )
    assert not loaded & {"tornado", "pykern", "sqlalchemy", "pytest", "click", "rich", "structlog", "uvloop"}
