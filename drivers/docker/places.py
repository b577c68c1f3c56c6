"""Where files of agents and jobs are, on this machine and in volumes of engines."""

import hashlib
import io
import os
import tarfile

from sirepo_jobs.driver import AgentSpec


def place_of(spec: AgentSpec) -> str:
    """Names this installation on an engine that may serve others too."""
    return place_in(os.path.dirname(spec.home))


def place_in(agents_dir: str) -> str:
    """The same, from the directory of its agents."""
    return hashlib.sha256(agents_dir.encode()).hexdigest()[:16]


def files_volume(spec: AgentSpec) -> str:
    """The volume of a user's files on a remote engine."""
    user = hashlib.sha256(spec.environment.user.encode()).hexdigest()[:16]
    return f"sirepo_jobs-files-{place_of(spec)}-{user}"


def make_directory(path: str, uid: int, gid: int) -> None:
    os.makedirs(path, mode=0o700, exist_ok=True)
    if os.getuid() == 0:
        # SECURITY: never through a link that a job has put there (S30)
        fd = os.open(path, os.O_DIRECTORY | os.O_NOFOLLOW | os.O_RDONLY)
        try:
            os.fchown(fd, uid, gid)
            os.fchmod(fd, 0o700)
        finally:
            os.close(fd)


def archive_of(entries: list[tuple[str, bytes, int, int]]) -> bytes:
    """Files, or directories where a name ends with `/`, as an archive."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data, uid, gid in entries:
            member = tarfile.TarInfo(name.rstrip("/"))
            member.uid, member.gid, member.size = uid, gid, len(data)
            member.type, member.mode = (
                (tarfile.DIRTYPE, 0o700) if name.endswith("/") else (tarfile.REGTYPE, 0o444)
            )
            tar.addfile(member, io.BytesIO(data))
    return out.getvalue()
