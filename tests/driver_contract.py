"""What every driver promises (`sirepo_jobs/driver.py`), as steps that every driver's tests go through.

`exercise(world)` launches, looks, loses and stops agents. A driver's own tests bring the `World`: how to
make one more instance of the driver, where its agents call, and how to kill an agent behind its back.
"""

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import pytest

from sirepo_jobs.driver import AgentSpec, Driver, Fate, Handle
from sirepo_jobs.errors import LaunchError
from sirepo_jobs.protocol import Hello
from tests.agent_stage import sleep_token

GRACE_SECS = 20.0


class World(Protocol):
    """What a driver's tests must provide."""

    def driver(self) -> Driver:
        """A new instance, as after a restart of the supervisor."""
        ...

    def spec(self, agent: str) -> AgentSpec:
        """For an agent of that name."""
        ...

    def broken(self, spec: AgentSpec) -> AgentSpec:
        """The spec, such that nothing can be launched with it."""
        ...

    async def hello(self, agent: str, count: int) -> Hello:
        """The n-th Hello of that agent."""
        ...

    async def kill(self, handle: Handle) -> None:
        """End the agent as a crash would; returns when it is dead."""
        ...

    async def run_sleep(self, agent: str, token: str) -> None:
        """Have the agent run `sleep TOKEN`, deaf to TERM and once more in a session of its own."""
        ...

    async def sleeps(self, token: str) -> bool:
        """Whether that process lives."""
        ...


Step = Callable[[World], Awaitable[None]]


async def launched_agent_calls_and_lives(world: World) -> None:
    driver = world.driver()
    handle = await driver.launch(world.spec("a"))
    assert handle.agent == "a"
    assert handle.driver == driver.name
    assert (await world.hello("a", 1)).agent == "a"
    assert await driver.look(handle) is Fate.ALIVE
    await driver.stop(handle, grace_secs=GRACE_SECS)
    assert await driver.look(handle) is Fate.GONE


async def launching_twice_finds_the_first(world: World) -> None:
    driver = world.driver()
    first = await driver.launch(world.spec("a"))
    assert await driver.launch(world.spec("a")) == first
    assert await world.driver().launch(world.spec("a")) == first
    other = await driver.launch(world.spec("b"))
    assert other != first
    await driver.stop(other, grace_secs=GRACE_SECS)
    assert await driver.look(first) is Fate.ALIVE
    await driver.stop(first, grace_secs=GRACE_SECS)


async def handle_survives_a_restart_of_the_supervisor(world: World) -> None:
    handle = Handle.from_json((await world.driver().launch(world.spec("a"))).to_json())
    driver = world.driver()
    assert await driver.look(handle) is Fate.ALIVE
    await driver.stop(handle, grace_secs=GRACE_SECS)
    assert await world.driver().look(handle) is Fate.GONE


async def stop_may_be_repeated(world: World) -> None:
    driver = world.driver()
    handle = await driver.launch(world.spec("a"))
    await driver.stop(handle, grace_secs=GRACE_SECS)
    await driver.stop(handle, grace_secs=GRACE_SECS)
    await world.driver().stop(handle, grace_secs=0)
    assert await driver.look(handle) is Fate.GONE


async def killed_agent_is_gone_and_can_be_launched_again(world: World) -> None:
    driver = world.driver()
    handle = await driver.launch(world.spec("a"))
    first = await world.hello("a", 1)
    await world.kill(handle)
    assert await driver.look(handle) is Fate.GONE
    again = await driver.launch(world.spec("a"))
    assert again != handle
    second = await world.hello("a", 2)
    # It kept its records, and says so.
    assert second.install == first.install
    assert await driver.look(again) is Fate.ALIVE
    # The old handle does not stand for the new agent.
    assert await driver.look(handle) is Fate.GONE
    await driver.stop(again, grace_secs=GRACE_SECS)


async def stop_takes_jobs_and_their_leftovers_along(world: World) -> None:
    driver = world.driver()
    for count, grace_secs in enumerate((GRACE_SECS, 0.0), 1):
        handle = await driver.launch(world.spec("a"))
        await world.hello("a", count)
        await world.run_sleep("a", sleep_token(count))
        await driver.stop(handle, grace_secs=grace_secs)
        assert await driver.look(handle) is Fate.GONE
        assert not await world.sleeps(sleep_token(count))


async def stop_after_a_crash_clears_up(world: World) -> None:
    driver = world.driver()
    handle = await driver.launch(world.spec("a"))
    await world.hello("a", 1)
    await world.run_sleep("a", sleep_token(3))
    await world.kill(handle)
    await driver.stop(handle, grace_secs=1.0)
    assert not await world.sleeps(sleep_token(3))


async def nonsense_is_unknown_and_never_raised_by_look(world: World) -> None:
    driver = world.driver()
    good = await driver.launch(world.spec("a"))
    bad = [
        Handle(agent="a", driver=driver.name, version=1, data={}),
        Handle(agent="a", driver=driver.name, version=good.version + 1000, data=good.data),
        Handle(agent="a", driver="another", version=good.version, data=good.data),
        Handle(agent="a", driver=driver.name, version=good.version, data=dict.fromkeys(good.data, "?")),
    ]
    for handle in bad:
        assert await driver.look(handle) is Fate.UNKNOWN, handle
        with pytest.raises(LaunchError):
            await driver.stop(handle, grace_secs=0)
    assert await driver.look(good) is Fate.ALIVE
    await driver.stop(good, grace_secs=GRACE_SECS)


async def launch_says_why_it_failed(world: World) -> None:
    driver = world.driver()
    spec = world.broken(world.spec("a"))
    with pytest.raises(LaunchError) as caught:
        await driver.launch(spec)
    assert str(caught.value)
    assert spec.token not in str(caught.value)


async def capacity_is_declared(world: World) -> None:
    driver = world.driver()
    assert driver.name
    assert driver.capacity.cpus >= 1
    assert driver.launch_secs > 0


STEPS: tuple[Step, ...] = (
    launched_agent_calls_and_lives,
    launching_twice_finds_the_first,
    handle_survives_a_restart_of_the_supervisor,
    stop_may_be_repeated,
    killed_agent_is_gone_and_can_be_launched_again,
    stop_takes_jobs_and_their_leftovers_along,
    stop_after_a_crash_clears_up,
    nonsense_is_unknown_and_never_raised_by_look,
    launch_says_why_it_failed,
    capacity_is_declared,
)

#: Makes a world in a directory of its own, and afterwards makes sure that it is empty again.
MakeWorld = Callable[[], AbstractAsyncContextManager[World]]


async def exercise(make_world: MakeWorld, step: Step) -> None:
    """One step in a fresh world: `@pytest.mark.parametrize("step", STEPS)`."""
    async with make_world() as world:
        await step(world)
