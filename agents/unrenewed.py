"""Orders that wait for a heartbeat to be confirmed: an attempt with a lease begins with a lease (C9).

Between two heartbeats of an idle agent lies more time than the shortest leases have. An attempt that came
late in it would be over before it began. It waits here, where it is forgotten with the connection by which it
came: whatever the supervisor concludes later, it cannot have begun by then.
"""

from typing import Final

from sirepo_jobs.agents.roster import Key
from sirepo_jobs.protocol import Cancel, Grant, Run, Signal

Order = Run | Grant | Cancel | Signal

#: So much of a lease may have passed when an attempt begins.
SPENT: Final = 0.5


class Unrenewed:
    """Of one connection."""

    def __init__(self) -> None:
        #: When the newest heartbeat that was confirmed was said, by the boot clock.
        self._renewed_at = float("-inf")
        self._orders: list[Order] = []
        self._waiting: set[Key] = set()

    def keeps(self, order: Order, now: float) -> bool:
        """Whether it waits: it is to begin with little left of its lease, or is about such a one."""
        key = (order.jid, order.attempt)
        lease_secs = order.lease_secs if isinstance(order, Run) else None
        is_short = lease_secs is not None and now - self._renewed_at > SPENT * lease_secs
        if not is_short and key not in self._waiting:
            return False
        self._waiting.add(key)
        self._orders.append(order)
        return True

    def renewed(self, at: float) -> list[Order]:
        """A heartbeat that was said at this instant is confirmed; returns what has waited, in order."""
        self._renewed_at = max(self._renewed_at, at)
        orders, self._orders = self._orders, []
        self._waiting.clear()
        return orders
