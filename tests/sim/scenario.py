"""A seed's story as data: the machines, what is asked, and what goes wrong when. Pure, so it can be shrunk.

Swarm testing: each seed draws which kinds of faults it knows at all, so that some worlds see many of one kind
and none of the others.
"""

import random

import msgspec
from msgspec import Struct

from tests.sim.clients import Order, Wish
from tests.sim.program import Plan

#: Every kind of fault, with how often it is drawn.
FAULTS: dict[str, int] = {
    "supervisor_kill": 6,
    "supervisor_term": 2,
    "supervisor_freeze": 2,
    "supervisor_replaced": 2,
    "disk_full": 2,
    "disk_breaks": 2,
    "disk_deaf": 1,
    "disk_slow": 2,
    "cut": 5,
    "partition": 4,
    "silence": 3,
    "replay": 3,
    "agent_kill": 4,
    "agent_freeze": 2,
    "spawner_kill": 4,
    "spawner_freeze": 1,
    "launcher_kill": 4,
    "launcher_term": 2,
    "launcher_freeze": 2,
    "host_power": 3,
    "host_full": 2,
    "host_io": 1,
    "no_pids": 1,
    "clock": 2,
    "home_wiped": 1,
    "driver": 2,
    "job_kill": 2,
}


#: From this seed on supervisors ask soon, and give up soon, where an agent says nothing (`silence.py`).
IMPATIENT_FROM = 2_000_000


class Fault(Struct, frozen=True, omit_defaults=True):
    """One thing that goes wrong."""

    at: float
    kind: str
    #: Until it is mended, or whatever the kind makes of it.
    secs: float = 0.0
    #: Which host, agent, process: taken modulo what there is.
    which: int = 0


class Scenario(Struct, frozen=True, omit_defaults=True):
    """Everything that a world is made of."""

    seed: int
    orders: list[Order]
    wishes: list[Wish]
    faults: list[Fault]
    cpus: int = 2
    hosts: int = 1
    repeats: float = 0.0
    job_cache: int = 2000
    queue_window: int = 10_000
    idle_secs: float = 20.0
    silence_secs: float = 120.0
    subscribers: int = 1
    decoys: int = 0
    #: Faults stop at this time, and everything must end soon after; None = they go on until the end.
    healed_at: float | None = None


def draw(seed: int) -> Scenario:
    """The story of a seed."""
    dice = random.Random(f"{seed}/scenario")
    span = dice.choice((2.0, 6.0, 15.0, 40.0))
    count = dice.choice((1, 2, 3, 4, 6))
    users = dice.choice((["ann"], ["ann"], ["ann", "bob"]))
    cpus = dice.choice((1, 2, 2, 4))
    orders = [_order(dice, users, cpus, span * 0.7) for _ in range(count)]
    if dice.random() < 0.2 and count > 1:
        user, at = orders[0].user, orders[0].at
        orders = [msgspec.structs.replace(order, batch=1, user=user, at=at) for order in orders]
    wishes = [_wish(dice, count, span) for _ in range(dice.choice((0, 0, 1, 2, 4)))]
    for wish in wishes:
        again = any(w.order == wish.order and w.verb == "retry" for w in wishes)
        if wish.verb == "cancel" and not again and dice.random() < 0.3:
            # it would run for ever, so that its cancel has to end it
            order = orders[wish.order]
            plan = msgspec.structs.replace(order.plan, secs=2000.0)
            orders[wish.order] = msgspec.structs.replace(order, plan=plan)
    faults = _faults(dice, span)
    healed_at = None if dice.random() < 0.2 else span + 5.0
    if healed_at is not None:
        # nothing stands still for ever
        wishes += [
            Wish(at=healed_at + 1.0, verb="resume", order=w.order) for w in wishes if w.verb == "suspend"
        ]
    return Scenario(
        seed=seed,
        orders=orders,
        wishes=sorted(wishes, key=lambda wish: wish.at),
        faults=sorted(faults, key=lambda fault: fault.at),
        cpus=cpus,
        hosts=dice.choice((1, 1, 2)),
        repeats=dice.choice((0.0, 0.0, 0.05, 0.3)),
        job_cache=dice.choice((2000, 2000, 2)),
        queue_window=dice.choice((10_000, 10_000, 1, 2)),
        idle_secs=dice.choice((3.0, 20.0, 600.0)),
        subscribers=dice.choice((0, 1, 2)),
        decoys=dice.choice((0, 0, 3)),
        healed_at=healed_at,
        silence_secs=dice.choice((3.0, 15.0)) if seed >= IMPATIENT_FROM else 120.0,
    )


def _order(dice: random.Random, users: list[str], cpus: int, span: float) -> Order:
    leaves = dice.choice(("", "", "", "", "child", "daemon"))
    secs = dice.choice((0.001, 0.002, 0.01, 0.1, 0.5, 2.0, 8.0)) * (0.5 + dice.random())
    plan = Plan(
        secs=secs,
        exit_code=dice.choice((0, 0, 0, 1, 77)),
        signal=dice.choice((0, 0, 0, 0, 11)),
        stdout=dice.choice((0, 0, 40, 5000)),
        parts=dice.choice((1, 3)),
        term=dice.choice(("die", "die", "ignore", "tidy")),
        leaves=leaves,
        good_from=dice.choice((1, 1, 1, 2)),
    )
    on_lost = dice.choice(("wait", "wait", "wait", "requeue", "fail"))
    return Order(
        plan=plan,
        on_lost=on_lost,
        lost_after=None if on_lost == "wait" else dice.choice((1.0, 5.0, 20.0)),
        user=dice.choice(users),
        cpus=dice.randint(1, cpus) if dice.random() < 0.3 else 1,
        at=span * dice.random() if dice.random() < 0.7 else 0.0,
        soft=secs * dice.choice((0.5, 2.0)) if dice.random() < 0.15 else None,
        hard=secs * dice.choice((0.5, 2.0)) if dice.random() < 0.15 else None,
        grace=dice.choice((0.0, 0.2, 5.0)),
        max_attempts=dice.choice((1, 1, 2, 3)),
        priority=dice.choice((5, 5, 1, 9)),
        command="/bin/missing" if dice.random() < 0.03 else "/bin/payload",
    )


_VERBS = (
    "cancel",
    "cancel",
    "cancel",
    "hold",
    "release",
    "retry",
    "suspend",
    "resume",
    "read",
    "read",
    "watch",
    "priority",
)


def _wish(dice: random.Random, count: int, span: float) -> Wish:
    verb = dice.choice(_VERBS)
    number = dice.randint(0, 10) if verb in ("priority", "watch") else 1
    return Wish(at=span * dice.random(), verb=verb, order=dice.randrange(count), number=number)


def _faults(dice: random.Random, span: float) -> list[Fault]:
    kinds = [kind for kind in FAULTS if dice.random() < 0.25] or ["supervisor_kill"]
    weights = [FAULTS[kind] for kind in kinds]
    count = dice.choice((0, 1, 2, 3, 5, 8))
    return [
        Fault(
            at=span * dice.random(),
            kind=dice.choices(kinds, weights)[0],
            secs=dice.choice((0.01, 0.2, 2.0, 12.0, 45.0)) * (0.5 + dice.random()),
            which=dice.randrange(8),
        )
        for _ in range(count)
    ]
