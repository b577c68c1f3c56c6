"""How often somebody may ask: a bucket for each user, which fills with time (S36, S65)."""

import math
import time
from collections.abc import Callable

from sirepo_jobs.errors import Error

from .auth import Principal

#: Buckets; when there are more, those that are full again are forgotten.
MAX_BUCKETS = 20_000


class TooManyRequests(Error):
    """Somebody asks more often than is good for the others."""

    code = "too_many_requests"
    http_status = 429
    retryable = True

    def __init__(self, message: str, *, retry_after_secs: int) -> None:
        super().__init__(message)
        #: For the `Retry-After` header.
        self.retry_after_secs = retry_after_secs


class Rates:
    """So many requests per second in the long run, and `burst` of them at once; 0 per second = no limit."""

    def __init__(self, per_sec: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_sec = per_sec
        self._burst = float(burst)
        self._clock = clock
        #: By user: requests left, and when that was so.
        self._buckets: dict[str, tuple[float, float]] = {}

    def take(self, principal: Principal) -> None:
        """Count one request. Raises `TooManyRequests`. The starter's own token has no limit."""
        if not self._per_sec or principal.via == "root":
            return
        now = self._clock()
        left, at = self._buckets.get(principal.user, (self._burst, now))
        left = min(self._burst, left + (now - at) * self._per_sec)
        if left < 1:
            self._buckets[principal.user] = (left, now)
            secs = math.ceil((1 - left) / self._per_sec)
            raise TooManyRequests(
                f"more than {self._per_sec:g} requests per second; wait {secs} s, or send many jobs in one",
                retry_after_secs=secs,
            )
        self._buckets[principal.user] = (left - 1, now)
        if len(self._buckets) > MAX_BUCKETS:
            self._forget(now)

    def _forget(self, now: float) -> None:
        """Full buckets say nothing; of the others the longest unused go."""
        full_secs = self._burst / self._per_sec
        kept = {user: seen for user, seen in self._buckets.items() if now - seen[1] < full_secs}
        for user in list(kept)[: max(0, len(kept) - MAX_BUCKETS // 2)]:
            del kept[user]
        self._buckets = kept
