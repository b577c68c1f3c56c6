"""What a witness is to do, decided beforehand, and so what must come of it. Pure."""

import random
from hashlib import shake_128
from typing import Any, NamedTuple


class Plan(NamedTuple):
    """One job's intended life; as text it is the witness's last argument."""

    #: Bytes on stdout and stderr.
    out: int = 0
    err: int = 0
    #: Written in so many pieces, over so many milliseconds.
    pieces: int = 1
    msecs: int = 0
    #: How it ends: by this exit code, or by this signal to itself.
    code: int = 0
    sig: int = 0
    #: Ignores TERM.
    deaf: int = 0
    #: Leaves daemons behind, of these kinds (bits).
    daemons: int = 0
    #: Limits and claims, for the spec.
    soft_msecs: int = 0
    cpus: int = 1
    max_attempts: int = 1

    def text(self) -> str:
        """For the command line."""
        return ",".join(map(str, self))

    def spec(self, key: str, command: list[str]) -> dict[str, Any]:
        """The job."""
        limits: dict[str, Any] = {"grace": "0.4s"}
        if self.soft_msecs:
            limits["soft"] = f"{self.soft_msecs / 1000}s"
        return {
            "name": key,
            "command": [*command, key, self.text()],
            "resources": {"cpus": self.cpus},
            "limits": limits,
            "max_attempts": self.max_attempts,
        }


def plan_of(text: str) -> Plan:
    """The plan of its text."""
    return Plan(*map(int, text.split(",")))


def stream(key: str, attempt: int, name: str, count: int) -> bytes:
    """The first `count` bytes that an attempt of job `key` writes to `name`, and nobody else."""
    return shake_128(f"{key}/{attempt}/{name}".encode()).digest(count)


def draw(rng: random.Random) -> Plan:
    """A plan by chance: most are short, some are long, some are nasty."""
    fate = rng.random()
    msecs = int(rng.choice((0, 0, 5, 20, 80, 300, 1500)) * rng.random() * 2)
    plan = Plan(
        out=int(rng.choice((0, 1, 100, 5000, 300_000)) * rng.uniform(0.5, 1.5)),
        err=rng.choice((0, 0, 0, 200, 70_000)),
        pieces=rng.choice((1, 1, 3, 10)),
        msecs=msecs,
        cpus=rng.choice((1, 1, 1, 2)),
        max_attempts=rng.choice((1, 1, 1, 2, 4)),
    )
    if fate < 0.6:
        return plan
    if fate < 0.75:
        return plan._replace(code=rng.randrange(1, 256))
    if fate < 0.8:
        return plan._replace(sig=rng.choice((6, 9, 11, 15)))
    if fate < 0.95:
        return plan._replace(daemons=rng.randrange(1, 16), code=rng.choice((0, 0, 7)))
    return plan._replace(deaf=1, msecs=20_000, pieces=20, soft_msecs=rng.choice((150, 600)))
