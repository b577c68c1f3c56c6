"""Makes an agent bundle (`agent_bundle.py`) of the Python that runs `python -m sirepo_jobs.bundler OUT`.

The interpreter, its standard library, what the agent imports, and every shared library that these need,
with the loader that belongs to them. The bundle is started through that loader, so that nothing of the
place where it runs is used: no Python, no libc, no configuration of it. Linux with glibc only.

The same inputs give the same bytes: files sorted, times zero, owners root, compiled code keyed by the
hash of its source (which also spares a read-only mount its checks).
"""

import fcntl
import gzip
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from . import __version__
from .agent_bundle import FORMAT, MANIFEST, PYTHON_FLAGS, SCRIPT, TAR, TREE, AgentBundle

#: Of the standard library: what no agent can want.
UNWANTED: Final = {
    "__pycache__", "dist-packages", "distutils", "ensurepip", "idlelib", "lib2to3", "pydoc_data",
    "site-packages", "test", "tests", "tkinter", "turtledemo", "venv",
}  # fmt: skip
UNWANTED_EXTENSIONS: Final = (
    "_crypt", "_ctypes_test", "_curses", "_dbm", "_gdbm", "_test", "_tkinter", "_xx", "audioop", "nis",
    "readline", "xx",
)  # fmt: skip
#: Loaded by libc itself when a thread ends, or for names: no program lists them.
LOADED_LATER: Final = ("libgcc_s.so.1", "libnss_files.so.2", "libnss_dns.so.2")

_IMPORTS: Final = """
import importlib, json, pkgutil, sys
before = set(sys.modules)
import sirepo_jobs.agents as agents
for found in pkgutil.iter_modules(agents.__path__):
    if found.name != "__main__":
        importlib.import_module(f"sirepo_jobs.agents.{found.name}")
new = {name: getattr(module, "__file__", None) for name, module in sys.modules.items() if name not in before}
print(json.dumps({name: file for name, file in new.items() if file}))
"""
_MAIN: Final = b'''"""Starts the agent from this bundle, wherever it lies."""

import sys

sys.path.append(__file__.removesuffix("main.py") + "packages")
from sirepo_jobs.agents import start  # noqa: E402

sys.exit(start.main(sys.argv[1:]))
'''
_SCRIPT: Final = """#!/bin/sh
# Starts the agent of this bundle: agent start|run|stop < spec.json
here=$(CDPATH= cd -- "$(dirname -- "$0")/.." && pwd -P) || exit 1
exec "$here/{loader}" --inhibit-cache --library-path "$here/lib" \\
    "$here/{interpreter}" {flags} "$here/main.py" "$@"
"""


class CannotBundle(Exception):
    """Why no bundle can be made here."""


def build(out: Path) -> AgentBundle:
    """Make the bundle in `out`, or find the one that is there from the same inputs. Raises `CannotBundle`."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        sources = _sources()
        inputs = _digest(sources)
        try:
            found = AgentBundle.from_json((out / MANIFEST).read_bytes())
            if found.inputs == inputs and (out / TAR).stat().st_size == found.size and (out / TREE).is_dir():
                return found
        except (OSError, ValueError):
            pass
        return _build(out, sources, inputs)


def _build(out: Path, sources: dict[str, Path | bytes], inputs: str) -> AgentBundle:
    (out / MANIFEST).unlink(missing_ok=True)
    part = out / f"{TREE}.part"
    shutil.rmtree(part, ignore_errors=True)
    for name, source in sources.items():
        target = part / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(source, bytes):
            target.write_bytes(source)
        else:
            shutil.copyfile(source, target)
        target.chmod(0o755 if name.startswith("bin/") or ".so" in target.name else 0o644)
    loader = _add_libraries(part)
    interpreter = _interpreter()
    script = part / SCRIPT
    script.write_text(
        _SCRIPT.format(loader=loader, interpreter=interpreter, flags=" ".join(PYTHON_FLAGS)), encoding="ascii"
    )
    script.chmod(0o755)
    _strip(part)
    _compile(part)
    _pack(part, out / TAR)
    shutil.rmtree(out / TREE, ignore_errors=True)
    part.rename(out / TREE)
    sha256 = hashlib.sha256((out / TAR).read_bytes()).hexdigest()
    made = AgentBundle(
        format=FORMAT,
        version=f"{__version__}-{sha256[:16]}",
        sha256=sha256,
        size=(out / TAR).stat().st_size,
        machine=platform.machine(),
        python=platform.python_version(),
        loader=loader,
        interpreter=interpreter,
        inputs=inputs,
    )
    manifest = out / f"{MANIFEST}.part"
    manifest.write_bytes(msgspec.json.format(msgspec.json.encode(made)) + b"\n")
    manifest.rename(out / MANIFEST)
    return made


def _interpreter() -> str:
    return f"bin/python{sys.version_info.major}.{sys.version_info.minor}"


def _sources() -> dict[str, Path | bytes]:
    """Everything but the libraries: path in the bundle -> file, or content."""
    if sys.platform != "linux" or shutil.which("ldd") is None:
        raise CannotBundle(f"bundles are made on Linux with glibc and its ldd; this is {sys.platform}")
    lib = f"lib/python{sys.version_info.major}.{sys.version_info.minor}"
    found: dict[str, Path | bytes] = {"main.py": _MAIN, _interpreter(): Path(sys.executable).resolve()}
    stdlib = Path(sysconfig.get_path("stdlib"))
    for path in _files_below(stdlib):
        if path.suffix not in (".pyc", ".a", ".o") and not path.name.startswith(UNWANTED_EXTENSIONS):
            found[f"{lib}/{path.relative_to(stdlib)}"] = path
    found |= _packages()
    return dict(sorted(found.items()))


def _files_below(top: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(top):
        folders[:] = sorted(
            name for name in folders if name not in UNWANTED and not name.startswith("config-")
        )
        yield from (Path(folder, name) for name in sorted(files))


def _packages() -> dict[str, Path | bytes]:
    """What the agent really imports: our modules one by one, and the whole of its distributions."""
    answer = subprocess.run(
        [sys.executable, "-P", "-c", _IMPORTS],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
        capture_output=True,
        check=True,
    ).stdout
    found: dict[str, Path | bytes] = {}
    others: set[str] = set()
    for name, file in json.loads(answer).items():
        top = name.partition(".")[0]
        if top == "sirepo_jobs":
            parts = name.split(".")
            path = Path(file)
            inner = [*parts, "__init__.py"] if path.name == "__init__.py" else [*parts[:-1], path.name]
            found["packages/" + "/".join(inner)] = path
        elif top not in sys.stdlib_module_names:
            others.add(top)
    owners = importlib.metadata.packages_distributions()
    for owner in sorted({owners[top][0] for top in others if top in owners}):
        files = importlib.metadata.distribution(owner).files or []
        for file in files:
            if file.suffix in (".py", ".so") and ".." not in file.parts:
                found[f"packages/{file}"] = Path(str(file.locate()))
    return found


def _digest(sources: dict[str, Path | bytes]) -> str:
    """One name for all inputs. Files of the Python are known by size and time, ours by content."""
    digest = hashlib.sha256(Path(__file__).read_bytes())
    digest.update(f"{sys.version} {platform.libc_ver()} {shutil.which('strip')}".encode())
    for name, source in sources.items():
        if isinstance(source, bytes):
            said = source
        elif name.startswith("packages/sirepo_jobs/"):
            said = source.read_bytes()
        else:
            stat = source.stat()
            said = f"{stat.st_size} {stat.st_mtime_ns}".encode()
        digest.update(f"\n{name} {hashlib.sha256(said).hexdigest()}".encode())
    return digest.hexdigest()


def _add_libraries(part: Path) -> str:
    """Copy the shared libraries that anything here needs into `lib/`; the loader's path in the bundle."""
    own = {path.name for path in part.rglob("*.so*")}
    needed: dict[str, Path] = {}
    for path in [part / _interpreter(), *sorted(part.rglob("*.so*"))]:
        for name, file in _needed_by(path):
            if name not in own:
                needed.setdefault(name, file)
    loaders = [name for name in needed if name.startswith(("ld-linux", "ld64"))]
    if len(loaders) != 1 or "libc.so.6" not in needed:
        raise CannotBundle(f"{sys.executable} is not linked with glibc; ldd named {sorted(needed)}")
    for name in LOADED_LATER:
        beside = needed["libc.so.6"].parent / name
        if beside.exists():
            needed.setdefault(name, beside)
    for name, file in needed.items():
        shutil.copyfile(file, part / "lib" / name)
        (part / "lib" / name).chmod(0o755)
    return f"lib/{loaders[0]}"


def _needed_by(path: Path) -> Iterator[tuple[str, Path]]:
    answer = subprocess.run(["ldd", str(path)], capture_output=True, text=True, check=False)
    for line in answer.stdout.splitlines():
        words = line.split()
        if "not found" in line:
            raise CannotBundle(f"{path.name} needs {words[0]}, which is not on this machine")
        if len(words) >= 3 and words[1] == "=>":
            yield words[0], Path(words[2]).resolve()
        elif words and words[0].startswith("/"):
            yield Path(words[0]).name, Path(words[0]).resolve()


def _strip(part: Path) -> None:
    """Without symbols it is a third smaller; where there is no `strip`, it is not."""
    if shutil.which("strip") is None:
        return
    binaries = [part / _interpreter(), *sorted(part.rglob("*.so*"))]
    subprocess.run(
        ["strip", "--strip-unneeded", *map(str, binaries)], check=True, capture_output=True, text=True
    )


def _compile(part: Path) -> None:
    # One process with a fixed hash seed: then equal sources give equal bytes.
    subprocess.run(
        [
            sys.executable, "-I", "-m", "compileall", "-q", "-f", "-j", "1", "--invalidation-mode",
            "unchecked-hash", "-s", str(part), str(part),
        ],
        env={"PYTHONHASHSEED": "0"},
        check=True,
        capture_output=True,
    )  # fmt: skip


def _pack(part: Path, tar: Path) -> None:
    def neutral(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uid = member.gid = member.mtime = 0
        member.uname = member.gname = "root"
        member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
        return member

    with (
        tar.open("wb") as raw,
        gzip.GzipFile("", "wb", 6, raw, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT) as archive,
    ):
        for path in sorted(part.rglob("*")):
            archive.add(path, str(path.relative_to(part)), recursive=False, filter=neutral)


def main(argv: list[str]) -> int:
    """The command; prints `agent.json`."""
    if len(argv) != 1:
        sys.stderr.write("usage: python -m sirepo_jobs.bundler OUT\n")
        return 2
    try:
        made = build(Path(argv[0]))
    except CannotBundle as exc:
        sys.stderr.write(f"error: {exc}\n")
        return 1
    sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(made)) + b"\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
