"""When an attempt starts: standby, grant, successor, cancel; and that asking twice changes nothing."""

from pathlib import Path

from sirepo_jobs.protocol import Exited, Heartbeat, Stop, ToAgentFrame, Unsupported, encode
from tests.agent_stage import Scene, appears, gone, scene
from tests.service_stage import eventually


def witness(s: Scene, jid: str, **changes: object) -> object:
    """Notes its start in a file of the run root, where a second start would be seen."""
    return s.stage.shell(jid, f"echo {jid} $$ >> {s.run_root}/starts", **changes)


def starts(s: Scene) -> list[str]:
    path = s.run_root / "starts"
    return [line.split()[0] for line in path.read_text().splitlines()] if path.exists() else []


async def test_standby_waits_for_its_grant(tmp_path: Path) -> None:
    async with scene(tmp_path) as s:
        await s.stage.send([witness(s, "later", standby=True), s.stage.run("now", ["sleep", "1000"])])
        await s.stage.started("now")
        assert starts(s) == []
        await s.stage.send([s.stage.cancel("now"), s.stage.run("other", ["true"], standby=True)])
        # "now" ends, so "later" takes its slots.
        assert (await s.stage.ended("now")).successor == "later/1"
        assert (await s.stage.ended("later")).successor == "other/1"
        assert (await s.stage.ended("other")).successor == ""
        await s.stage.send([witness(s, "third", standby=True)])
        await s.stage.send([s.stage.grant("third")])
        assert (await s.stage.ended("third")).exit_code == 0
        assert starts(s) == ["later", "third"]


async def test_successors_come_in_order_and_only_where_they_fit(tmp_path: Path) -> None:
    async with scene(tmp_path) as s:
        await s.stage.send(
            [
                s.stage.shell("small", "while [ ! -e go ]; do sleep 0.01; done", cpus=1),
                s.stage.shell("large", "while [ ! -e go ]; do sleep 0.01; done", cpus=4),
                witness(s, "needs4", cpus=4, standby=True),
                witness(s, "needs2", cpus=2, standby=True),
                witness(s, "needs1", cpus=1, standby=True),
            ]
        )
        await s.stage.started("small")
        await s.stage.started("large")
        (s.run_dir("small") / "go").touch()
        assert (await s.stage.ended("small")).successor == "needs1/1"
        assert (await s.stage.ended("needs1")).successor == ""
        (s.run_dir("large") / "go").touch()
        assert (await s.stage.ended("large")).successor == "needs4/1"
        assert (await s.stage.ended("needs4")).successor == "needs2/1"
        assert (await s.stage.ended("needs2")).successor == ""


async def test_a_long_chain_of_successors_is_told_in_order(tmp_path: Path) -> None:
    async with scene(tmp_path) as s:
        count = 300
        await s.stage.send([witness(s, f"j{n}", standby=n >= 2) for n in range(count)])
        for n in range(count):
            await s.stage.ended(f"j{n}")
        exits = [m for m in s.stage.durable if isinstance(m, Exited)]
        named = [m.successor for m in exits if m.successor]
        # Everyone but the first two was started in the slots of exactly one other.
        assert sorted(named) == sorted(f"j{n}/1" for n in range(2, count))
        assert sorted(starts(s)) == sorted(f"j{n}" for n in range(count))
        # An end is told before the end of its successor.
        order = {f"{m.jid}/1": index for index, m in enumerate(exits)}
        assert all(order[f"{m.jid}/1"] < order[m.successor] for m in exits if m.successor)
        assert [m.seq for m in s.stage.durable] == list(range(1, len(s.stage.durable) + 1))
        # Never more than two at once.
        spans = sorted((m.started_at or 0, m.at) for m in exits)
        for index, (start, _) in enumerate(spans):
            assert sum(1 for other in spans[:index] if other[1] > start) < 2


async def test_reserved_ones_are_given_back_when_jobs_turn_out_long(tmp_path: Path) -> None:
    async with scene(tmp_path) as s:
        # Short ones, so that both spawners keep the next ones in reserve; then one that is long.
        short = [s.stage.run(f"s{n}", ["/bin/true"], standby=n >= 2) for n in range(40)]
        long = s.stage.shell("long", "while [ ! -e go ]; do sleep 0.01; done", standby=True)
        after = [s.stage.run(f"a{n}", ["/bin/true"], standby=True) for n in range(20)]
        await s.stage.send([*short, long, *after])
        await s.stage.started("long")
        # The other slot goes on with all of them, those that the long one's spawner had too.
        for n in range(20):
            await s.stage.ended(f"a{n}")
        (s.run_dir("long") / "go").touch()
        await s.stage.ended("long")


async def test_repeated_run_starts_once(tmp_path: Path) -> None:
    async with scene(tmp_path) as s:
        run = witness(s, "j")
        await s.stage.send([run, run])
        await s.stage.send([run])
        first = await s.stage.ended("j")
        await s.stage.send([run])
        again = s.stage.run("k", ["true"])
        await s.stage.send([again])
        await s.stage.ended("k")
        assert starts(s) == ["j"]
        assert s.stage.exits["j", 1].exit_code == first.exit_code == 0


async def test_repeated_run_of_an_ended_attempt_has_its_record_sent_again(tmp_path: Path) -> None:
    async with scene(tmp_path) as s:
        s.stage.acking = False
        run = witness(s, "j")
        await s.stage.send([run])
        await s.stage.ended("j")
        await s.stage.send([run])
        await s.stage.until(lambda: sum(isinstance(m, Exited) for m in s.stage.durable) == 2)
        first, second = (m for m in s.stage.durable if isinstance(m, Exited))
        assert first == second
        assert starts(s) == ["j"]
        s.stage.acking = True


async def test_a_run_dir_that_exists_is_never_begun_again(tmp_path: Path) -> None:
    async with scene(tmp_path) as s:
        run = witness(s, "j")
        await s.stage.send([run])
        first = await s.stage.ended("j")
        # The supervisor acknowledged, so the agent forgot: the run dir still knows.
        await s.stage.send([s.stage.run("k", ["true"])])
        await s.stage.ended("k")
        del s.stage.exits["j", 1]
        await s.stage.send([run])
        second = await s.stage.ended("j")
        assert (second.exit_code, second.proof) == (0, "exit_record")
        assert (second.started_at, second.at) == (first.started_at, first.at)
        assert starts(s) == ["j"]
        s.run_dir("begun").mkdir(parents=True)
        await s.stage.send([witness(s, "begun")])
        third = await s.stage.ended("begun")
        assert (third.proof, third.began, third.exit_code, third.signal) == (
            "launcher_lost",
            True,
            None,
            None,
        )
        assert starts(s) == ["j"]


async def test_cancel_of_one_that_stands_by_means_it_never_begins(tmp_path: Path) -> None:
    async with scene(tmp_path) as s:
        await s.stage.send([witness(s, "j", standby=True), s.stage.cancel("j")])
        exited = await s.stage.ended("j")
        assert (exited.began, exited.stopped, exited.proof) == (False, True, "never_claimed")
        assert (exited.exit_code, exited.signal) == (None, None)
        await s.stage.send([s.stage.grant("j"), witness(s, "j", standby=True)])
        await s.stage.send([s.stage.run("k", ["true"])])
        await s.stage.ended("k")
        assert starts(s) == []
        assert not s.run_dir("j").exists()


async def test_cancel_that_comes_before_its_run_wins(tmp_path: Path) -> None:
    async with scene(tmp_path) as s:
        await s.stage.send([s.stage.cancel("j")])
        await s.stage.send([witness(s, "j")])
        exited = await s.stage.ended("j")
        assert (exited.began, exited.stopped, exited.proof) == (False, True, "never_claimed")
        assert starts(s) == []


async def test_cancel_right_behind_its_run(tmp_path: Path) -> None:
    async with scene(tmp_path) as s:
        for n in range(20):
            await s.stage.send([s.stage.run(f"j{n}", ["sleep", "1000"]), s.stage.cancel(f"j{n}", 10)])
        for n in range(20):
            exited = await s.stage.ended(f"j{n}")
            assert exited.stopped
            assert (exited.began, exited.signal) in ((True, 15), (False, None))


async def test_cancel_of_many_in_reserve(tmp_path: Path) -> None:
    async with scene(tmp_path) as s:
        count = 60
        await s.stage.send([witness(s, f"j{n}", standby=n >= 2) for n in range(count)])
        await s.stage.send([s.stage.cancel(f"j{n}", 5) for n in range(count)])
        for n in range(count):
            exited = await s.stage.ended(f"j{n}")
            assert (f"j{n}" in starts(s)) == exited.began or exited.stopped
            assert s.run_dir(f"j{n}").exists() == exited.began
        assert len([m for m in s.stage.durable if isinstance(m, Exited)]) == count


async def test_unknown_words_are_answered(tmp_path: Path) -> None:
    async with scene(tmp_path) as s:
        frame = encode(
            ToAgentFrame(agent="a1", epoch=7, session=s.stage.session, msgs=[s.stage.run("j", ["true"])])
        )
        frame = frame.replace(b'"msgs":[', b'"msgs":[{"op":"dance","with":1},', 1)
        assert s.stage.connection is not None
        await s.stage.connection.send(frame, text=True)
        await s.stage.ended("j")
        told = [message for message in s.stage.others if not isinstance(message, Heartbeat)]
        assert told == [Unsupported(kind="dance")]


async def test_words_of_another_session_are_dropped(tmp_path: Path) -> None:
    async with scene(tmp_path) as s:
        await s.stage.send([witness(s, "stale")], session=s.stage.session + 1)
        s.stage.epoch += 1
        await s.stage.send([witness(s, "stale")])
        s.stage.epoch -= 1
        await s.stage.send([witness(s, "j")])
        await s.stage.ended("j")
        assert starts(s) == ["j"]


async def test_stop_without_kill_waits_until_nothing_is_held(tmp_path: Path) -> None:
    async with scene(tmp_path) as s:
        await s.stage.send([s.stage.shell("j", "while [ ! -e go ]; do sleep 0.01; done"), Stop()])
        await s.stage.started("j")
        await s.stage.send([Stop()])
        await appears(s.run_dir("j"))
        (s.run_dir("j") / "go").touch()
        await s.stage.ended("j")
        await s.stage.send([Stop()])
        await gone(s.launcher)


async def test_stop_with_kill_ends_everything_and_says_so(tmp_path: Path) -> None:
    async with scene(tmp_path) as s:
        await s.stage.send(
            [
                s.stage.shell("j", "trap '' TERM; setsid sleep 1000 & : > deaf; sleep 1000"),
                witness(s, "k", standby=True),
            ]
        )
        await s.stage.started("j")
        await eventually((s.run_dir("j") / "deaf").exists)
        await s.stage.send([Stop(kill_jobs=True)])
        exited = await s.stage.ended("j")
        assert (exited.signal, exited.stopped) == (9, True)
        exited = await s.stage.ended("k")
        assert (exited.began, exited.stopped) == (False, True)
        await gone(s.launcher)
        assert not (s.home / "launcher.json").exists()


async def test_refused_agent_ends_its_jobs(tmp_path: Path) -> None:
    async with scene(tmp_path) as s:
        await s.stage.send([s.stage.run("j", ["sleep", "1000"])])
        await s.stage.started("j")
        s.stage.refuse = 4401
        assert s.stage.connection is not None
        await s.stage.connection.close(4401, "no")
        await gone(s.launcher)
        s.stage.refuse = None
        # Nobody heard of it, so the journal kept it.
        await s.launch()
        exited = await s.stage.ended("j")
        assert (exited.signal, exited.stopped) == (15, True)
