"""What a real supervisor says to a front end that can open files itself."""

import os
import socket
from pathlib import Path

from sirepo_jobs import rootdir
from sirepo_jobs.frontend.response import ResponseReader
from sirepo_jobs.run_tree import ON_DISK, OPENS_FILES, OnDisk


def place_of(root: Path, jid: str, user: str) -> OnDisk | None:
    """Of a job's stdout, as the supervisor on `root` names it; None where it sends the bytes."""
    secret = (root / rootdir.SECRET).read_text().strip()
    reader = ResponseReader()
    folder = os.open(root, os.O_PATH)
    try:
        with socket.socket(socket.AF_UNIX) as line:
            line.settimeout(60)
            line.connect(f"/proc/self/fd/{folder}/{rootdir.SOCKET}")
            head = f"Host: here\r\nAuthorization: Bearer {secret}\r\nX-User: {user}\r\n{OPENS_FILES}: 1\r\n"
            line.sendall(f"GET /api/v1/jobs/{jid}/logs/stdout HTTP/1.1\r\n{head}\r\n".encode())
            while not reader.done:
                reader.feed(line.recv(65536))
    finally:
        os.close(folder)
    assert reader.status == 200, reader.status
    found = reader.headers.get(ON_DISK.lower())
    return OnDisk.from_header(found) if found else None
