"""How long, how many, how bad."""

from typing import Final, NamedTuple


class Profile(NamedTuple):
    """One kind of run."""

    #: Seconds of trouble; then it heals and everything must come to its end.
    secs: float
    #: On average one blow in so many seconds.
    every_secs: float
    people: int
    users: int
    cpus: int
    settle_secs: float
    #: What counts as a run: with less it has shown nothing.
    least_jobs: int
    least_kills: int


PROFILES: Final = {
    "smoke": Profile(18, 0.6, 6, 2, 4, 120, 10, 3),
    "short": Profile(120, 1.0, 8, 3, 6, 180, 300, 30),
    "long": Profile(1200, 1.0, 16, 3, 8, 300, 5000, 500),
    "soak": Profile(4 * 3600, 2.0, 12, 4, 8, 600, 40_000, 3000),
}
