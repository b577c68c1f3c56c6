"""How much may go on at the same time: requests of one user, and bodies that are kept in memory (S36, S65).

`Rates` bounds how often somebody asks; streams and slow bodies ask once and stay.
"""

from collections import Counter

from sirepo_jobs.errors import Unavailable

from .auth import Principal
from .rates import TooManyRequests

#: All bodies together, and those of one user, in bodies of the largest size.
BODIES = 16
BODIES_OF_ONE = 4


class Crowd:
    """What is under way. Whoever takes gives back: `leave` after `enter`, `let_go` after `hold`."""

    def __init__(self, max_requests: int, max_body_bytes: int) -> None:
        """`max_requests`: of one user at a time; the starter's own token has no such limit."""
        self._max_requests = max_requests
        self._max_bytes = BODIES * max_body_bytes
        self._max_bytes_of_one = BODIES_OF_ONE * max_body_bytes
        self._requests: Counter[str] = Counter()
        self._bytes: Counter[str] = Counter()
        self._all_bytes = 0

    def enter(self, principal: Principal) -> None:
        """One more request of this user. Raises `TooManyRequests`."""
        user = principal.user
        if principal.via != "root" and self._requests[user] >= self._max_requests:
            raise TooManyRequests(
                f"{self._max_requests} requests of yours are under way; end some, or wait for answers",
                retry_after_secs=1,
            )
        self._requests[user] += 1

    def leave(self, principal: Principal) -> None:
        """One of them is over."""
        self._give(self._requests, principal.user, 1)

    def hold(self, user: str, size: int) -> None:
        """So much more of a body. Raises `Unavailable` when too much is in memory already."""
        if self._all_bytes + size > self._max_bytes or self._bytes[user] + size > self._max_bytes_of_one:
            raise Unavailable("too many large requests at the same time; try again", code="busy")
        self._bytes[user] += size
        self._all_bytes += size

    def let_go(self, user: str, size: int) -> None:
        """So much of a body is not kept any more."""
        self._give(self._bytes, user, size)
        self._all_bytes -= size

    @staticmethod
    def _give(counts: Counter[str], user: str, count: int) -> None:
        counts[user] -= count
        if counts[user] <= 0:
            del counts[user]
