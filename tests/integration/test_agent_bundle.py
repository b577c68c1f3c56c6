"""The agent bundle runs where there is nothing: no Python, no libc, no shell, no users, no names."""

import asyncio
import hashlib
import os
import tarfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from sirepo_jobs import bundler
from sirepo_jobs.agent_bundle import MANIFEST, SCRIPT, TAR, TREE
from sirepo_jobs.driver import AgentSpec, Environment
from sirepo_jobs.protocol import Stop
from tests.agent_stage import Stage
from tests.bundle_stage import OUT, agent_bundle

AT = "/opt/agent"
UID = 1234


def bare_root(path: Path) -> Path:
    """A root file system with the bundle, two empty directories, and nothing else."""
    root = path / "root"
    for name in ("proc", "dev", "srv", "opt/agent"):
        (root / name).mkdir(parents=True)
    os.mknod(root / "dev/null", 0o666 | 0o020000, os.makedev(1, 3))
    (root / "dev/null").chmod(0o666)
    with tarfile.open(OUT / TAR) as archive:
        archive.extractall(root / "opt/agent", filter="fully_trusted")
    os.chown(root / "srv", UID, UID)
    return root


def make_hostile(root: Path) -> None:
    """Libraries that are none, in all the usual places, and a configuration that names them."""
    for folder in ("lib", "lib64", "usr/lib", "usr/lib/x86_64-linux-gnu", "etc"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for name in ("libc.so.6", "libm.so.6", "libcrypto.so.3", "libnss_bogus.so.2", "libpython3.11.so.1.0"):
        for folder in ("lib", "lib64", "usr/lib", "usr/lib/x86_64-linux-gnu"):
            (root / folder / name).write_bytes(b"\x7fELF and then nothing")
    # POSIT: what a musl image has where glibc would be
    (root / "lib/ld-musl-x86_64.so.1").write_bytes(b"\x7fELF, another libc's")
    (root / "etc/nsswitch.conf").write_text("passwd: bogus sss\nhosts: mymachines bogus sss files\n")
    (root / "etc/hosts").write_text("192.0.2.7 known.host\n")
    (root / "etc/ld.so.preload").write_text("/lib/libnss_bogus.so.2\n")
    (root / "etc/ld.so.cache").write_bytes(b"nonsense")


@asynccontextmanager
async def confined(root: Path, *command: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process with namespaces of its own, in that root, as a user that nobody has heard of."""
    if os.getuid() != 0:
        pytest.skip("only root may change the root directory")
    process = await asyncio.create_subprocess_exec(
        "unshare", "--mount", "--pid", "--net", "--fork", "--kill-child", "--mount-proc=/proc",
        f"--root={root}", f"--setuid={UID}", f"--setgid={UID}", *command,
        stdin=asyncio.subprocess.PIPE, env={"LD_LIBRARY_PATH": "/lib"},
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


#: Says what is mapped into it from outside of the bundle, and what works.
PROBE = """
import asyncio, ctypes, os, socket, sqlite3, ssl, threading
threading.Thread(target=lambda: None).start()
ssl.create_default_context()
try:
    socket.getaddrinfo("no.such.host", 80)
except OSError:
    pass
files = {line.split()[-1] for line in open("/proc/self/maps") if "/" in line}
if os.path.exists("/etc/hosts"):
    assert socket.getaddrinfo("known.host", 80)[0][4] == ("192.0.2.7", 80)
print(os.getuid(), sorted(file for file in files if not file.startswith("/opt/agent/")))
"""


@pytest.mark.parametrize("place", ["bare", "hostile"])
async def test_agent_runs_jobs_where_there_is_nothing(tmp_path: Path, place: str) -> None:
    bundle = agent_bundle()
    root = bare_root(tmp_path)
    if place == "hostile":
        make_hostile(root)
    command = bundle.command(AT)
    spec = AgentSpec(
        agent="a1",
        environment=Environment(driver="local", user="u"),
        url="unix:/srv/socket",
        token="t",
        home="/srv/home",
        run_root="/srv/run",
    )
    async with Stage(root / "srv/socket") as stage, confined(root, *command, "run") as process:
        stage.path.chmod(0o666)
        assert process.stdin is not None
        process.stdin.write(msgspec.json.encode(spec))
        process.stdin.close()
        await stage.connected()
        python = command[:-1]
        await stage.send([stage.run("j", [*python, "-c", PROBE])])
        ended = await stage.ended("j")
        run_dir = root / "srv/run/users/u/jobs/j/1"
        assert ended.exit_code == 0, (run_dir / "stderr").read_text()
        assert (run_dir / "stdout").read_text() == f"{UID} []\n"
        await stage.send([stage.run("none", ["/bin/sh"])])
        assert (await stage.ended("none")).exit_code == 127
        await stage.send([Stop(kill_jobs=True)])
        async with asyncio.timeout(30):
            assert await process.wait() == 0


async def test_the_script_starts_it_from_anywhere(tmp_path: Path) -> None:
    """For places with a shell, such as login nodes: unpacked under a name with a blank."""
    agent_bundle()
    here = tmp_path / "my agent"
    with tarfile.open(OUT / TAR) as archive:
        archive.extractall(here, filter="fully_trusted")
    spec = AgentSpec(
        agent="a1",
        environment=Environment(driver="local", user="u"),
        url=f"unix:{tmp_path}/socket",
        token="t",
        home=str(tmp_path / "home"),
        run_root=str(tmp_path / "run"),
    )

    async def agent(verb: str) -> None:
        process = await asyncio.create_subprocess_exec(here / SCRIPT, verb, stdin=asyncio.subprocess.PIPE)
        await process.communicate(msgspec.json.encode(spec))
        assert process.returncode == 0

    async with Stage(tmp_path / "socket") as stage:
        await agent("start")
        try:
            await stage.connected()
            await stage.send([stage.shell("j", "echo hello")])
            assert (await stage.ended("j")).exit_code == 0
        finally:
            await agent("stop")


def test_equal_inputs_give_equal_bytes_and_are_built_once(tmp_path: Path) -> None:
    first = agent_bundle()
    assert hashlib.sha256((OUT / TAR).read_bytes()).hexdigest() == first.sha256
    assert (OUT / TAR).stat().st_size == first.size
    # A bundle that somebody damaged is no bundle: it is built, and comes out the same.
    (tmp_path / MANIFEST).write_bytes((OUT / MANIFEST).read_bytes())
    (tmp_path / TAR).write_bytes(b"")
    assert bundler.build(tmp_path) == first
    made = (tmp_path / MANIFEST).stat().st_mtime_ns
    assert bundler.build(tmp_path) == first
    assert (tmp_path / MANIFEST).stat().st_mtime_ns == made
    with tarfile.open(tmp_path / TAR) as archive:
        members = archive.getmembers()
    assert {(m.uid, m.gid, m.mtime) for m in members} == {(0, 0, 0)}
    assert not [m.name for m in members if not (m.isreg() or m.isdir())]
    names = {m.name for m in members}
    assert names == {str(p.relative_to(tmp_path / TREE)) for p in (tmp_path / TREE).rglob("*")}
    # Only what agents import came along.
    packages = {name.split("/")[1] for name in names if name.startswith("packages/") and "__" not in name}
    assert packages <= {"msgspec", "sirepo_jobs", "typing_extensions.py", "websockets"}
    assert "packages/sirepo_jobs/supervisor.py" not in names
