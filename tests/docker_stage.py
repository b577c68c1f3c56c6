"""Real Docker engines for tests, and images made from Debian's packages."""

import asyncio
import io
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from sirepo_jobs.client import Client
from tests.bundle_stage import OUT

SERVICE = Path(__file__).parents[1] / "bin" / "dev-services"
BUSYBOX = Path("/usr/bin/busybox")
APPLETS = (
    *(
        "cat",
        "chmod",
        "cp",
        "date",
        "dd",
        "df",
        "env",
        "false",
        "grep",
        "head",
        "hostname",
        "id",
        "kill",
        "ln",
    ),
    *(
        "ls",
        "mkdir",
        "mount",
        "nc",
        "ps",
        "pwd",
        "rm",
        "seq",
        "setsid",
        "sh",
        "sleep",
        "stat",
        "sync",
        "tail",
    ),
    *("tee", "test", "timeout", "touch", "true", "uname", "wc", "wget", "whoami"),
)


class TestEngine:
    """An engine of our own."""

    __test__ = False

    def __init__(self, place: Path, said: str) -> None:
        self.place = place
        self.said = dict(re.findall(r"^(\w+)=(.*)$", said, re.MULTILINE))
        self.url = self.said["url"]

    @property
    def pid(self) -> int:
        """Of dockerd."""
        return int(Path(self.url.removeprefix("unix://")).with_name("pid").read_text())

    def docker(self, *words: str, **more: Any) -> str:
        """What the docker command prints."""
        done = subprocess.run(["docker", "-H", self.url, *words], capture_output=True, check=True, **more)
        return str(done.stdout.decode().strip())

    def containers(self) -> list[str]:
        """Ids of all containers, running or not."""
        return self.docker("ps", "-aq", "--no-trunc").split()

    def make_image(self, name: str, tar: bytes, *changes: str) -> str:
        """Import a root file system; its id."""
        options = [word for change in changes for word in ("--change", change)]
        return self.docker("import", *options, "-", name, input=tar)

    def restart(self, **env: str) -> None:
        """End dockerd in order, and start it again."""
        subprocess.run([SERVICE, "docker", "stop", self.place], check=True, capture_output=True)
        self.start(**env)

    def start(self, **env: str) -> None:
        """Start dockerd if it does not run."""
        subprocess.run(
            [SERVICE, "docker", "start", self.place],
            check=True,
            stdout=subprocess.DEVNULL,
            env={**os.environ, **env},
        )


@contextmanager
def an_engine(place: Path, **env: str) -> Iterator[TestEngine]:
    """Started, and removed with all that it has. A skip where it cannot be, a failure under CI."""
    started = subprocess.run(
        [SERVICE, "docker", "start", place], capture_output=True, text=True, env={**os.environ, **env}
    )
    if started.returncode:
        why = f"Docker does not start: {started.stderr.strip()[-500:]}"
        if os.environ.get("CI") == "true":
            pytest.fail(why)
        pytest.skip(why)
    try:
        yield TestEngine(place, started.stdout)
    finally:
        subprocess.run([SERVICE, "docker", "remove", place], check=True, capture_output=True)


def root_tar(files: Iterable[tuple[str, bytes | str]]) -> bytes:
    """A root file system: (path, content), where a text is the target of a link."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for path, content in files:
            member = tarfile.TarInfo(path)
            member.mode = 0o755
            if isinstance(content, str):
                member.type, member.linkname = tarfile.SYMTYPE, content
                archive.addfile(member)
            else:
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return out.getvalue()


def busybox_files() -> list[tuple[str, bytes | str]]:
    """Busybox, and nothing else: no libc, no users, no /tmp."""
    return [("bin/busybox", BUSYBOX.read_bytes()), *((f"bin/{name}", "busybox") for name in APPLETS)]


def musl_files() -> list[tuple[str, bytes | str]]:
    """Like an image with musl: its loader in place, no glibc, and a configuration that would mislead one."""
    junk = b"\x7fELF and then nothing"
    return [
        *busybox_files(),
        ("lib/ld-musl-x86_64.so.1", junk),
        ("lib/libc.musl-x86_64.so.1", "ld-musl-x86_64.so.1"),
        ("lib/libm.so.6", junk),
        ("lib/libc.so.6", junk),
        ("lib64/libc.so.6", junk),
        ("etc/nsswitch.conf", b"passwd: bogus sss\nhosts: mymachines bogus\n"),
    ]


def write_policy(path: Path, engines: dict[str, TestEngine], text: str = "", *, tls: bool = False) -> Path:
    """A docker_file for these engines."""
    lines = [text]
    for name, engine in engines.items():
        lines += [f"[engines.{name}]", "cpus = 2", 'memory = "1 GiB"']
        if tls:
            lines.append(f'url = "{engine.said["tls_url"]}"')
            lines += [f'{what} = "{engine.said[what]}"' for what in ("ca", "cert", "key")]
        else:
            lines.append(f'url = "{engine.url}"')
    path.write_text("\n".join(lines) + "\n")
    return path


@asynccontextmanager
async def docker_service(path: Path, policy: Path, **environ: str) -> AsyncIterator[Client]:
    """`sirepo-jobs up` with the docker driver, root in `path`; at the end its agents are stopped too."""
    program = str(Path(sys.executable).parent / "sirepo-jobs")
    root = path / "root"
    env = {
        **os.environ,
        "SIREPO_JOBS_DRIVERS": "docker",
        "SIREPO_JOBS_DOCKER_FILE": str(policy),
        "SIREPO_JOBS_BUNDLE_DIR": str(OUT),
        "SIREPO_JOBS_ROOT": str(root),
        **environ,
    }
    with (path / "up.log").open("ab") as log:
        up = await asyncio.create_subprocess_exec(
            program, "up", "--port", "0", stdout=asyncio.subprocess.PIPE, stderr=log, env=env
        )
        assert up.stdout is not None
        while b"listening on" not in (line := await up.stdout.readline()):
            assert line, (path / "up.log").read_text()[-2000:]
        try:
            with Client(line.split()[-1].decode(), (root / "token").read_text().strip()) as client:
                yield client
        finally:
            down = await asyncio.create_subprocess_exec(program, "down", "--stop-agents", env=env)
            await down.wait()
            await up.wait()
