"""HTTP with patience: one pool, retries of what may be repeated, answers as values or as errors.

What may be repeated is said by the caller: reading, cancelling, and a submission that carries its
`Idempotency-Key`. Everything ends: an attempt by its timeout, the attempts together by patience.
"""

import random
import time
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import urllib3
from urllib3.exceptions import HTTPError, ReadTimeoutError
from urllib3.response import BaseHTTPResponse
from urllib3.util import Timeout

from sirepo_jobs.errors import (
    BadInput,
    Conflict,
    Error,
    Forbidden,
    NotFound,
    TooLarge,
    Unauthorized,
    Unavailable,
)

from .where import Place

CONNECT_SECS = 5.0
READ_SECS = 60.0
_LONGEST_PAUSE_SECS = 5.0
#: The service may be back at any moment: these are worth another try.
_AWAY = frozenset({429, 502, 503, 504})
_KINDS: dict[int, type[Error]] = {
    400: BadInput,
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    413: TooLarge,
    422: BadInput,
    429: Unavailable,
    502: Unavailable,
    503: Unavailable,
    504: Unavailable,
}

Params = Mapping[str, str | int | list[str] | None]


class Patience:
    """How long something is tried again. Starts when the first try fails, and anew after `refill`."""

    def __init__(self, secs: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._secs = secs
        self._clock = clock
        self._since: float | None = None
        self._pause = 0.1

    def refill(self) -> None:
        """Something worked."""
        self._since = None
        self._pause = 0.1

    def pause(self, error: Error, retry_after: float | None = None) -> None:
        """Wait for the next try. Raises `error` when there is to be none."""
        now = self._clock()
        self._since = self._since if self._since is not None else now
        left = self._since + self._secs - now
        if left <= 0:
            raise error
        # Jitter, so that a hundred clients do not come back in the same instant.
        secs = max(self._pause * random.uniform(0.5, 1.0), min(retry_after or 0.0, 60.0))
        self._pause = min(self._pause * 2, _LONGEST_PAUSE_SECS)
        time.sleep(min(secs, left))


class Transport:
    """Carries requests to the place; safe to share between threads."""

    def __init__(self, place: Place, *, patience_secs: float, ca_certs: str | None = None) -> None:
        self._place = place
        self.patience_secs = patience_secs
        self._ca_certs = ca_certs
        self._url = ""
        self._pool: urllib3.HTTPConnectionPool | None = None
        self._prefix = ""
        self._headers = {"Authorization": f"Bearer {place.token}", "Accept-Encoding": "identity"}

    def close(self) -> None:
        """Give the connections back; the next request opens new ones."""
        if self._pool is not None:
            self._pool.close()
            self._url, self._pool = "", None

    def call(
        self,
        method: str,
        path: str,
        params: Params | None = None,
        *,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        repeat: bool = True,
        read_secs: float = READ_SECS,
    ) -> Any:
        """The decoded JSON of the answer. Raises the error that the answer tells of."""
        patience = Patience(self.patience_secs)
        while True:
            try:
                response = self.once(
                    method, path, params, body=body, headers=headers, read_secs=read_secs, stream=False
                )
                return _decoded(response)
            except Unavailable as exc:
                if not repeat:
                    raise
                patience.pause(exc, getattr(exc, "retry_after", None))

    def once(
        self,
        method: str,
        path: str,
        params: Params | None = None,
        *,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        read_secs: float = READ_SECS,
        stream: bool = True,
    ) -> BaseHTTPResponse:
        """One try: the response, its body still to be read when `stream`. Raises as `call` does."""
        pool = self._pool_now()
        sent = {**self._headers, **(headers or {})}
        if body is not None:
            sent["Content-Type"] = "application/json"
        try:
            response = pool.urlopen(
                method,
                self._prefix + path + _query(params),
                body=body,
                headers=sent,
                retries=False,
                redirect=False,  # SECURITY: S32. The token goes where we were told, nowhere else.
                timeout=Timeout(connect=CONNECT_SECS, read=read_secs),
                preload_content=not stream,
                decode_content=False,
            )
            whole = "Content-Length" in response.headers or "Transfer-Encoding" in response.headers
            if response.status < 300 and response.status != 204 and method != "HEAD" and not whole:
                # Python takes headers that break off for whole ones, and the end of the connection for
                # the end of the body: nobody shall take that for an empty one (I13).
                response.close()
                raise Unavailable(f"the answer of {self._url} was cut among its headers", code="unreachable")
            if response.status >= 300:
                raise error_of(response.status, response.headers, response.data)
        except ReadTimeoutError:
            raise Unavailable(f"{self._url} did not answer in {read_secs:g}s", code="timeout") from None
        except HTTPError as exc:
            raise Unavailable(f"{self._url} does not answer: {_short(exc)}", code="unreachable") from None
        return response

    def _pool_now(self) -> urllib3.HTTPConnectionPool:
        """The pool for where the service is now; after a restart that may be another port."""
        url = self._place.url()
        pool = self._pool
        if pool is None or url != self._url:
            parsed = urllib3.util.parse_url(url)
            options: dict[str, Any] = {"maxsize": 10, "block": False}
            if parsed.scheme == "https":
                options |= {"ca_certs": self._ca_certs} if self._ca_certs else {}
            pool = urllib3.connection_from_url(url, **options)
            self._prefix = (parsed.path or "").rstrip("/")
            self._url, self._pool = url, pool
        return pool


def _query(params: Params | None) -> str:
    given = {key: value for key, value in (params or {}).items() if value not in (None, "", [])}
    if not given:
        return ""
    from urllib.parse import urlencode

    return f"?{urlencode(given, doseq=True)}"


def _decoded(response: BaseHTTPResponse) -> Any:
    try:
        return msgspec.json.decode(response.data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise Error("the server's answer is not JSON; is this the right URL?", code="bad_answer") from None


def error_of(status: int, headers: Mapping[str, str], body: bytes) -> Error:
    """The error that an answer tells of, with what the server said; also for answers of strangers."""
    try:
        problem = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        problem = None
    if not isinstance(problem, dict):
        problem = {"detail": f"the server answers with status {status}"}
    kind = _KINDS.get(status, Error)
    code = str(problem.get("code") or kind.code)
    detail = str(problem.get("detail") or problem.get("title") or f"status {status}")
    error = kind(detail, code=code)
    if isinstance(error, BadInput):
        error.pointer = str(problem.get("pointer", ""))
    error.status = status  # type: ignore[attr-defined]
    error.request_id = str(problem.get("request_id") or headers.get("X-Request-Id", ""))  # type: ignore[attr-defined]
    after = headers.get("Retry-After", "")
    error.retry_after = float(after) if after.isdecimal() else None  # type: ignore[attr-defined]
    return error


def _short(exc: HTTPError) -> str:
    """urllib3's errors quote each other; the innermost sentence is enough."""
    cause: BaseException = exc
    while cause.__cause__ is not None:
        cause = cause.__cause__
    return str(getattr(cause, "strerror", None) or cause) or type(cause).__name__
