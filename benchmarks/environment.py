"""Each contestant's own Python environment and programs."""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

from .roster import Contestant

REPO = Path(__file__).parent.parent
HOME = REPO / ".bench"


class NotHere(Exception):
    """It cannot be installed on this machine; the text says why."""


def python_of(contestant: Contestant) -> str:
    """The interpreter it runs with, installed if that is to be done. Raises `NotHere`."""
    for program, packages in contestant.programs.items():
        if shutil.which(program) is None:
            _apt(packages.split())
    if not contestant.packages:
        return sys.executable
    names = " ".join(sorted(contestant.packages))
    venv = HOME / hashlib.sha256(f"{sys.version_info[:2]} {names}".encode()).hexdigest()[:12]
    python = venv / "bin" / "python"
    if not (venv / "installed").exists():
        shutil.rmtree(venv, ignore_errors=True)
        print(f"installing {names}", file=sys.stderr)
        _run([sys.executable, "-m", "venv", str(venv)])
        _run([str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", *contestant.packages])
        (venv / "installed").write_text(names)
    return str(python)


def _apt(packages: list[str]) -> None:
    apt = shutil.which("apt-get")
    if apt is None:
        raise NotHere(f"{' '.join(packages)} cannot be installed: there is no apt-get")
    print(f"installing {' '.join(packages)}", file=sys.stderr)
    _run([apt, "install", "-qy", "--no-install-recommends", *packages])


def _run(command: list[str]) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        tail = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["no word"]
        raise NotHere(f"{' '.join(command[:4])}: {tail[0]}")
