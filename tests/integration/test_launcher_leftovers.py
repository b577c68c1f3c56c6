"""NothingLeft (I17): what a job leaves is gone before its end is told, and nobody else suffers (I20)."""

import asyncio
import os
import signal
from pathlib import Path

import pytest

from tests.agent_stage import appears, carrying, children_of, scene, sleep_token
from tests.service_stage import eventually

PYTHON = os.path.realpath("/proc/self/exe")

#: Each starts `sleep TOKEN` in some way that outlives the main process, and touches `up` when it is there.
STYLES = {
    "background": "sleep TOKEN & touch up",
    "nohup": "nohup sleep TOKEN >/dev/null 2>&1 & touch up",
    "own-group": "set -m; sleep TOKEN & touch up",
    "setsid": "setsid sleep TOKEN & touch up",
    "double-fork": "(setsid sh -c 'sleep TOKEN & touch up') & wait",
    "cleared-env": "env -i setsid sleep TOKEN & touch up",
    "everything": "env -i PATH=/usr/bin:/bin sh -c 'cd /; exec 0<&- 1>&- 2>&-;"
    ' setsid sh -c "setsid sleep TOKEN & touch $PWD/up" & \' ; touch up',
    "deaf": "setsid sh -c 'trap \"\" TERM INT HUP; sleep TOKEN; sleep TOKEN' & touch up",
    "many": "for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16; do setsid sleep TOKEN & done; touch up",
    "a-chain": 'setsid sh -c \'setsid sh -c "setsid sh -c \\"setsid sleep TOKEN; :\\"; :"; :\' & touch up',
    "stopped": "setsid sh -c 'kill -STOP $$; sleep TOKEN' & touch up",
    "no-mark": f'{PYTHON} -I -c "import os, resource\nif os.fork() == 0:\n os.setsid()\n'
    " resource.setrlimit(15, (-1, -1))\n os.execv('/bin/sleep', ['sleep', 'TOKEN'])\" ; touch up",
    "no-mark-no-env": f'{PYTHON} -I -c "import os, resource\nif os.fork() == 0:\n os.setsid()\n'
    " resource.setrlimit(15, (-1, -1))\n os.execve('/bin/sleep', ['sleep', 'TOKEN'], {})\" ; touch up",
}
TOKENS = {style: sleep_token(n) for n, style in enumerate(STYLES, 20)}


def sleepers(token: str) -> list[int]:
    return [pid for pid, command in carrying(f"sleep {token}").items() if command.startswith("sleep")]


@pytest.mark.parametrize("style", STYLES)
async def test_nothing_is_left(tmp_path: Path, style: str) -> None:
    token = TOKENS[style]
    async with scene(tmp_path) as s:
        await s.stage.send([s.stage.shell("j", STYLES[style].replace("TOKEN", token) + "\nexit 3")])
        exited = await s.stage.ended("j")
        assert not carrying(f"sleep {token}")
        assert (exited.exit_code, exited.stopped) == (3, False)
        assert (s.run_dir("j") / "up").exists()


async def test_neighbours_and_their_daemons_live_on(tmp_path: Path) -> None:
    token = sleep_token(40)
    async with scene(tmp_path) as s:
        # Enough of them that both spawners have several.
        for n in range(6):
            script = f"env -i setsid sleep {token} & touch up; while [ ! -e go ]; do sleep 0.02; done"
            script += f"; exit {n}"
            await s.stage.send([s.stage.shell(f"neighbour{n}", script)])
        for n in range(6):
            await appears(s.run_dir(f"neighbour{n}") / "up")
        await eventually(lambda: len(sleepers(token)) == 6)
        for style, script in STYLES.items():
            if style != "no-mark-no-env":
                await s.stage.send([s.stage.shell(style, script.replace("TOKEN", TOKENS[style]))])
        for style in STYLES:
            if style != "no-mark-no-env":
                await s.stage.ended(style)
                assert not carrying(f"sleep {TOKENS[style]}"), style
        assert len(sleepers(token)) == 6
        for n in range(6):
            (s.run_dir(f"neighbour{n}") / "go").touch()
            exited = await s.stage.ended(f"neighbour{n}")
            assert (exited.exit_code, exited.signal, exited.stopped) == (n, None, False)
        assert not carrying(f"sleep {token}")


async def test_orphan_of_a_job_that_goes_on_is_left_alone(tmp_path: Path) -> None:
    token = sleep_token(41)
    async with scene(tmp_path) as s:
        script = f"(env -i setsid sleep {token} &) ; touch up; while [ ! -e go ]; do sleep 0.02; done"
        await s.stage.send([s.stage.shell("j", script)])
        await appears(s.run_dir("j") / "up")
        await eventually(lambda: len(sleepers(token)) == 1)
        await s.stage.send([s.stage.run(f"k{n}", ["/bin/true"]) for n in range(30)])
        for n in range(30):
            await s.stage.ended(f"k{n}")
        assert len(sleepers(token)) == 1
        (s.run_dir("j") / "go").touch()
        await s.stage.ended("j")
        assert not carrying(f"sleep {token}")


async def test_decoys_of_the_same_user_survive(tmp_path: Path) -> None:
    token = sleep_token(42)
    decoy = await asyncio.create_subprocess_exec("/bin/sleep", token, start_new_session=True)
    try:
        async with scene(tmp_path) as s:
            await s.stage.send([s.stage.shell("j", f"setsid sleep {token} & setsid sleep {token} & :")])
            await s.stage.ended("j")
            assert list(carrying(f"sleep {token}")) == [decoy.pid]
        assert decoy.returncode is None
    finally:
        decoy.kill()
        await decoy.wait()


async def test_cancel_takes_everything(tmp_path: Path) -> None:
    token = sleep_token(43)
    async with scene(tmp_path) as s:
        script = f"trap '' TERM; setsid sleep {token} & (env -i setsid sleep {token} &) ; sleep {token}"
        await s.stage.send([s.stage.shell("j", script)])
        await s.stage.started("j")
        await s.stage.send([s.stage.cancel("j", grace_secs=0.1)])
        assert (await s.stage.ended("j")).stopped
        assert not carrying(f"sleep {token}")


async def test_zombie_flood_is_reaped(tmp_path: Path) -> None:
    async with scene(tmp_path) as s:
        script = "i=0; while [ $i -lt 500 ]; do (/bin/true &) ; i=$((i+1)); done"
        await s.stage.send([s.stage.shell("j", script)])
        assert (await s.stage.ended("j")).exit_code == 0
        # A zombie holds up no end: its SIGCHLD is on its way.
        await eventually(lambda: not any(children_of(pid) for pid in s.helpers("sj-spawner")))


async def test_pens_of_killed_spawners_are_cleared_away(tmp_path: Path) -> None:
    """I22: by whichever spawner comes next on this host, while nobody stands in them."""
    pids = Path("/sys/fs/cgroup/pids")
    if not os.access(pids / "tasks", os.W_OK):
        pytest.skip("no pids cgroup (version 1) can be made here")

    def pens(spawner: int) -> list[Path]:
        # Not by glob, which trips over the pens of others that go meanwhile.
        named = f"sirepo_jobs-a1-{spawner}-"
        return [
            Path(top) / name for top, names, _ in os.walk(pids) for name in names if name.startswith(named)
        ]

    async with scene(tmp_path) as s:
        await s.stage.send([s.stage.run("j", ["sleep", "1000"], processes=50)])
        await s.stage.started("j")
        (owner,) = [pid for pid in s.helpers("sj-spawner") if pens(pid)]
        os.kill(owner, signal.SIGKILL)
        await eventually(lambda: len(s.helpers("sj-spawner")) == 2 and owner not in s.helpers("sj-spawner"))
        await s.stage.send([s.stage.cancel("j", grace_secs=0.0)])
        assert (await s.stage.ended("j")).stopped
        (other, *_) = s.helpers("sj-spawner")
        os.kill(other, signal.SIGKILL)
        await eventually(lambda: not pens(owner))
