"""Two promises about moments, many times over (Must show 5): `bin/races` runs both and tells what came of it.

* A job that writes without a final newline and exits at once: every byte of it is served.
* A cancel that meets the end of the job: one outcome each, the right one, and nothing is left.
"""

import argparse
import contextlib
import json
import random
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tests.chaos import facts as facts_of
from tests.chaos.checker import Violation, check
from tests.chaos.history import History
from tests.chaos.people import Person, verify_log
from tests.chaos.plan import Plan
from tests.chaos.world import World, world

#: How long the jobs of the race live, and so when the cancel may meet their end.
_SWEEP_SECS = 0.05
_HANDS = 8
_BATCH = 250


def every_byte(world: World, history: History, count: int, seed: int) -> dict[str, Any]:
    """`count` jobs that write and exit at once; what was read of them is in the history."""
    rng = random.Random(seed)
    plans = {
        f"{world.path.name}-bytes-{n}": Plan(out=rng.randrange(1, 5000), err=rng.randrange(3))
        for n in range(count)
    }
    began = time.monotonic()
    with contextlib.closing(world.client(direct=True)) as client:
        jids = {}
        for at in range(0, count, _BATCH):
            part = dict(list(plans.items())[at : at + _BATCH])
            history.note(
                "submit", user="root", key=f"b{at}", plans={key: plan.text() for key, plan in part.items()}
            )
            answers = client.submit([plan.spec(key, world.witness) for key, plan in part.items()])
            made = dict(zip(part, [answer.jid for answer in answers], strict=True))
            history.note("submit_ok", user="root", key=f"b{at}", jids=made)
            jids |= made
        for key, plan in plans.items():
            job = client.wait(jids[key], timeout=300)
            for name, most in (("stdout", plan.out), ("stderr", plan.err)):
                verify_log(history, client, job, key, name, most)
    return {"runs": count, "secs": round(time.monotonic() - began, 1)}


def cancel_against_finish(world: World, history: History, count: int, seed: int) -> dict[str, Any]:
    """`count` jobs that are canceled about when they end; what was seen of them is in the history."""
    began = time.monotonic()
    share = [count // _HANDS + (n < count % _HANDS) for n in range(_HANDS)]
    hands = [_Hand(world, history, f"root/{n}", world.token, seed * 1000 + n) for n in range(_HANDS)]
    with ThreadPoolExecutor(_HANDS) as pool:
        list(pool.map(_Hand.race, hands, share))
    return {"runs": count, "secs": round(time.monotonic() - began, 1)}


class _Hand(Person):
    """Somebody who cancels in the last moment."""

    def race(self, count: int) -> None:
        """So many times, one after the other."""
        for _ in range(count):
            plan = Plan(
                out=300,
                msecs=int(1000 * _SWEEP_SECS * self.rng.random()),
                code=self.rng.choice((0, 0, 9)),
                daemons=self.rng.choice((0, 0, 0, 5)),
            )
            key = self._key()
            (jid,) = self._submit({key: plan})
            time.sleep(2 * _SWEEP_SECS * self.rng.random())
            job = self._see(self._client.cancel(jid))
            self.history.note("cancel_ok", jid=jid, state=job.state)
            job = self._see(self._client.wait(jid, timeout=300))
            self._verify(key, plan, job)


def run(count_bytes: int, count_races: int, seed: int) -> tuple[dict[str, Any], list[Violation]]:
    """Both, on a service of their own."""
    with world(armed=False, heartbeat_secs=15) as it:
        history = History(it.path / "history.jsonl")
        report: dict[str, Any] = {
            "every_byte": every_byte(it, history, count_bytes, seed),
            "cancel_against_finish": cancel_against_finish(it, history, count_races, seed),
            "seed": seed,
        }
        for line in it.left().values():
            history.note("left", line=line)
        found = facts_of.collect(it.root, it.database_url, it.truth(), it.cpus, [], {})
        notes = history.read()
        history.close()
    violations = check(notes, found)
    logs = [note for note in notes if note["kind"] == "log"]
    raced = {note["jid"] for note in notes if note["kind"] == "cancel_ok"}
    report["every_byte"]["bytes"] = sum(note["size"] for note in logs if note["jid"] not in raced)
    states = [job.state.value for jid, job in found.jobs.items() if jid in raced]
    report["cancel_against_finish"]["outcomes"] = {
        state: states.count(state) for state in sorted(set(states))
    }
    report["violations"] = [violation._asdict() for violation in violations]
    return report, violations


def main() -> int:
    """As asked."""
    parser = argparse.ArgumentParser(description="Every byte; cancel against finish.")
    parser.add_argument("--bytes", type=int, default=1000)
    parser.add_argument("--races", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    report, violations = run(asked.bytes, asked.races, asked.seed)
    print(json.dumps(report, indent=1))
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
