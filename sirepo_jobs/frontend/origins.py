"""Which web pages may speak to us through somebody's browser (S15, S16).

Programs send no `Origin`. A browser sends one with whatever a page of another site makes it ask, with the
cookies of a proxy that does the login, too: a page that is neither ours nor named in the settings is
refused before anything else is looked at, event streams included.
"""

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from sirepo_jobs.errors import Forbidden

if TYPE_CHECKING:
    from tornado.httputil import HTTPHeaders

ORIGIN = re.compile(r"https?://[a-z0-9._-]+(:[0-9]{1,5})?|https?://\[[0-9a-f:]+\](:[0-9]{1,5})?")
_SAFE = ("GET", "HEAD", "OPTIONS")
#: What pages may send, and see of an answer, beside what every page may.
_SENT = (
    "Authorization, Content-Type, Idempotency-Key, If-None-Match, If-Range, Last-Event-ID, Range,"
    " X-Request-Id"
)
_SEEN = (
    "Accept-Ranges, Content-Disposition, Content-Range, ETag, Idempotent-Replayed, Link, Location,"
    " Retry-After, X-Attempt, X-File-Kind, X-Request-Id"
)


class Origins:
    """The origins that are let in: our own, and those that the settings name."""

    def __init__(self, allowed: Iterable[str] = (), *, tls: bool = False) -> None:
        self._allowed = frozenset(allowed)
        self._schemes = ("https",) if tls else ("http", "https")  # a proxy may speak TLS for us

    def check(self, method: str, headers: "HTTPHeaders") -> None:
        """Raise `Forbidden` for what a foreign page makes a browser ask."""
        origin = headers.get("Origin")
        if origin is None:
            # only an extra: what does not say so is judged by its Origin (CVE-2026-40864)
            foreign = headers.get("Sec-Fetch-Site") in ("cross-site", "same-site") and method not in _SAFE
        else:
            foreign = not (origin in self._allowed or self._is_own(origin, headers.get("Host", "")))
        if foreign:
            raise Forbidden(
                "a page of another site may not ask this; name its origin in the setting allowed_origins",
                code="origin_refused",
            )

    def _is_own(self, origin: str, host: str) -> bool:
        scheme, mark, rest = origin.partition("://")
        return bool(mark and rest) and scheme in self._schemes and rest.lower() == host.lower()

    def answer(self, headers: "HTTPHeaders") -> Mapping[str, str]:
        """Headers that let a page of an allowed origin read the answer; it has no use for cookies."""
        if not self._allowed:
            return {}
        if (origin := headers.get("Origin", "")) not in self._allowed:
            return {"Vary": "Origin"}
        return {
            "Vary": "Origin",
            "Access-Control-Allow-Origin": origin,
            "Access-Control-Expose-Headers": _SEEN,
        }

    def preflight(self, method: str, headers: "HTTPHeaders") -> Mapping[str, str] | None:
        """What a browser wants to know before it asks for a page of an allowed origin; None: it is no such
        question. The answer is the same for every path, so that nobody learns which there are."""
        if method != "OPTIONS" or "Access-Control-Request-Method" not in headers:
            return None
        if headers.get("Origin", "") not in self._allowed:
            return None
        return {
            "Access-Control-Allow-Methods": "GET, HEAD, POST, PUT, PATCH, DELETE",
            "Access-Control-Allow-Headers": _SENT,
            "Access-Control-Max-Age": "600",
        }
