"""Runs Slurm's commands: one at a time of each kind, within the site's limits, and counts them (F131).

A command that cannot be started, takes too long or fails is no answer; only what it said is handed on, and
`slurm_text` decides what that means.
"""

import asyncio
import contextlib
import os
import signal
import time
from collections import Counter
from collections.abc import Mapping
from typing import Final, NamedTuple

from sirepo_jobs.agents import process
from sirepo_jobs.agents.birth import DEFAULT_PATH, PASSED
from sirepo_jobs.cluster import SlurmPolicy

#: A listing of 20,000 jobs is 2 MiB; what is longer is no answer of Slurm's.
MAX_BYTES: Final = 64 << 20
#: rc of a command that was given up, or could not be started.
GIVEN_UP: Final = -1
#: After the n-th query without an answer, so much longer than usual; the last one for ever.
_BACK_OFF: Final = (1.0, 2.0, 4.0, 8.0)
#: A site is asked less and less often while nothing changes, but at least so often.
_CALM_SECS: Final = 120.0


class Said(NamedTuple):
    """What a command said."""

    rc: int
    out: str
    err: str


class Budget:
    """So many per minute; up to a minute's worth at once."""

    def __init__(self, per_minute: float) -> None:
        self._rate = per_minute / 60.0
        self._most = max(per_minute, 1.0)
        self._left = self._most
        self._at = time.monotonic()

    def take(self) -> bool:
        """One more, if it may be."""
        if self.wait_secs() > 0:
            return False
        self._left -= 1.0
        return True

    def wait_secs(self) -> float:
        """How long until one more may be."""
        now = time.monotonic()
        self._left = min(self._most, self._left + (now - self._at) * self._rate)
        self._at = now
        return 0.0 if self._left >= 1.0 else (1.0 - self._left) / self._rate


class Commands:
    """Slurm, as one user may ask it."""

    def __init__(self, policy: SlurmPolicy, pass_env: list[str]) -> None:
        self.policy = policy
        self.counts: Counter[str] = Counter()
        self.submits = Budget(policy.submits_per_minute)
        self.queries = Budget(policy.queries_per_minute)
        self._env = command_env(os.environ, pass_env, policy)

    async def run(
        self, kind: str, argv: list[str], stdin: bytes = b"", env: Mapping[str, str] | None = None
    ) -> Said:
        """Run a command and count it. Never raises for what the command does."""
        self.counts[kind] += 1
        try:
            child = await asyncio.create_subprocess_exec(
                *argv,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                cwd="/",
                env={**self._env, **(env or {})},
                start_new_session=True,
                limit=MAX_BYTES,
                # POSIT: a sbatch that outlives us could submit after our successor has looked for its job.
                preexec_fn=process.die_with_parent,
            )
        except (OSError, ValueError) as exc:
            self.counts["failures"] += 1
            return Said(GIVEN_UP, "", f"cannot run {argv[0]}: {exc}")
        try:
            async with asyncio.timeout(self.policy.command_secs):
                out, err = await child.communicate(stdin)
        except TimeoutError:
            self.counts["failures"] += 1
            return Said(GIVEN_UP, "", f"{kind} took more than {self.policy.command_secs:g} s")
        finally:
            if child.returncode is None:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(child.pid, signal.SIGKILL)
                await child.wait()
        if child.returncode != 0:
            self.counts["failures"] += 1
        return Said(child.returncode or 0, out.decode(errors="replace"), err.decode(errors="replace"))


def command_env(environ: Mapping[str, str], pass_env: list[str], policy: SlurmPolicy) -> dict[str, str]:
    """What Slurm's commands see, and with sbatch the jobs: nothing of ours, nothing that changes formats."""
    env = {
        name: value
        for name, value in environ.items()
        if name in PASSED or name in pass_env or name == "SLURM_CONF"
    }
    env.setdefault("PATH", DEFAULT_PATH)
    return {**env, **policy.env}


class Pace:
    """When the next listing is due: as often as the site allows while things happen, else less often."""

    def __init__(self, least_secs: float) -> None:
        self._least = least_secs
        self._secs = least_secs
        self._failures = 0
        #: By the monotonic clock; the first one soon.
        self.due = time.monotonic() + min(least_secs, 1.0)
        self._last = 0.0

    def hurry(self) -> None:
        """Something happened, or is waited for: as soon as the site allows."""
        self._secs = self._least
        if not self._failures:
            self.due = min(self.due, max(time.monotonic(), self._last + self._least))

    def answered(self, *, changed: bool) -> None:
        """A listing came; `changed`: it said something new."""
        self._failures = 0
        most = max(_CALM_SECS, self._least)
        self._secs = self._least if changed else min(self._secs * 1.5, most)
        self._next(self._secs)

    def unanswered(self) -> None:
        """No answer: the controller has trouble enough."""
        pause = self._least * _BACK_OFF[min(self._failures, len(_BACK_OFF) - 1)]
        self._failures += 1
        self._next(min(pause, max(_CALM_SECS, self._least)))

    @property
    def failing(self) -> int:
        """Queries without an answer, one after the other."""
        return self._failures

    def _next(self, secs: float) -> None:
        self._last = time.monotonic()
        self.due = self._last + secs
