"""The supervisor's own door, for the few commands that must work without a front end."""

import http.client
import json
import os
import socket
from pathlib import Path
from typing import Any

from sirepo_jobs import rootdir
from sirepo_jobs.client.transport import error_of
from sirepo_jobs.errors import Unavailable
from sirepo_jobs.frontend import auth


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, root: Path, secs: float) -> None:
        super().__init__("supervisor", timeout=secs)
        self._root = root

    def connect(self) -> None:
        # Socket addresses are limited to 108 bytes, roots are not.
        directory = os.open(self._root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.sock.settimeout(self.timeout)
            self.sock.connect(f"/proc/self/fd/{directory}/{rootdir.SOCKET}")
        finally:
            os.close(directory)


def ask(root: Path, method: str, path: str, *, secs: float = 10.0) -> Any:
    """What the supervisor of `root` answers its administrator. Raises `Unavailable` when there is none."""
    connection = _UnixConnection(root, secs)
    try:
        secret = (root / rootdir.SECRET).read_text().strip()
        headers = {
            "Authorization": f"Bearer {secret}",
            "X-User": auth.user_name(),
            "X-Role": "admin",
            "Content-Length": "0",
        }
        connection.request(method, path, headers=headers)
        response = connection.getresponse()
        body = response.read()
    except (OSError, http.client.HTTPException) as exc:
        raise Unavailable(f"no supervisor answers for {root}: {exc}", code="unreachable") from None
    finally:
        connection.close()
    if response.status >= 300:
        raise error_of(response.status, dict(response.getheaders()), body)
    return json.loads(body) if body else None
