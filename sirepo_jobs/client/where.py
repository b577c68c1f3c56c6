"""Where the service is and which token it takes, for somebody who may have said nothing.

SECURITY: the token that lies in a root goes to the front end of that root and to nobody else.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from sirepo_jobs import rootdir
from sirepo_jobs.errors import BadInput, Unauthorized, Unavailable


class Place(NamedTuple):
    """How to reach the service."""

    #: Asked again when the service does not answer: a new front end may have another port.
    url: Callable[[], str]
    token: str


def find(
    *,
    root: str | Path | None = None,
    url: str | None = None,
    token_file: str | Path | None = None,
    environ: Mapping[str, str] | None = None,
) -> Place:
    """The place that the arguments, else the environment, else the root name.

    Raises `Unavailable` when nothing was ever started in the root, `BadInput` or `Unauthorized` when
    there is no usable token.
    """
    environ = os.environ if environ is None else environ
    home = rootdir.absolute(root) if root else rootdir.default_root(environ)
    # A root that is named on the spot counts more than an address that lies in the environment.
    url = url or (None if root else environ.get("SIREPO_JOBS_URL")) or None
    token_file = token_file or environ.get("SIREPO_JOBS_TOKEN_FILE")
    if not url:
        url_of(home)  # better to hear now that nothing was ever started than that there is no token
    return Place(_steady(url) if url else lambda: url_of(home), _token(home, url, token_file, environ))


def url_of(root: Path) -> str:
    """The URL of the front end of a root. Raises `Unavailable` when there was never one."""
    listening = rootdir.read_listening(root)
    if listening is None:
        raise Unavailable(
            f"nothing was started in {root}; run: sirepo-jobs up --root {root}", code="not_started"
        )
    return listening.url


def _steady(url: str) -> Callable[[], str]:
    if not url.startswith(("http://", "https://")):
        raise BadInput(f"url {url[:200]!r} does not begin with http:// or https://", code="bad_url")
    return lambda: url.rstrip("/")


def _token(home: Path, url: str | None, token_file: str | Path | None, environ: Mapping[str, str]) -> str:
    if token_file:
        return rootdir.read_token(rootdir.absolute(token_file))
    if token := environ.get("SIREPO_JOBS_TOKEN"):
        return token
    listening = rootdir.read_listening(home)
    if url and (listening is None or listening.url != url.rstrip("/")):
        raise Unauthorized(
            f"which token for {url}? Name its file with --token-file or SIREPO_JOBS_TOKEN_FILE",
            code="no_token",
        )
    return rootdir.read_token(home / rootdir.TOKEN)
