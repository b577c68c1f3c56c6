"""The launcher's desk, as far as it can be had without processes."""

from sirepo_jobs.agents.desk import Desk
from sirepo_jobs.agents.outbox import Kept, Outbox


def test_a_full_disk_is_no_reason_to_try_at_once() -> None:
    """F030: the launcher asked again without a pause, and took a whole cpu."""
    desk = Desk.__new__(Desk)
    desk._outbox = Outbox()
    desk._outbox.push(Kept(1, b"{}", None))
    desk._next_sync = 12.5
    desk.disk_full = False
    assert desk.next_due() == 12.5
    desk.disk_full = True
    assert desk.next_due() is None
