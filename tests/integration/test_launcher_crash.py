"""kill -9 of each part, and the loss of the supervisor: nothing is lost, doubled or invented."""

import os
import signal
from contextlib import suppress
from pathlib import Path

import pytest

from sirepo_jobs.agents import journal as journal_of
from sirepo_jobs.driver import Fate
from sirepo_jobs.protocol import Exited, Stop
from sirepo_jobs.reasons import Reason
from tests.agent_stage import WAIT_SECS, Scene, appears, carrying, gone, scene, sleep_token

WAIT = "touch up; while [ ! -e go ]; do sleep 0.01; done; "


async def restart(s: Scene) -> None:
    """kill -9 the launcher and launch again, as the supervisor would."""
    assert s.handle is not None
    pid, hellos = s.launcher, len(s.stage.hellos)
    os.kill(pid, signal.SIGKILL)
    await gone(pid)
    assert await s.driver.look(s.handle) is Fate.GONE
    await s.launch()
    assert s.launcher != pid
    await s.stage.connected(hellos + 1)


async def kill_all(*pids: int) -> None:
    """kill -9, and until they are dead; the end of one may be the end of another."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for pid in pids:
        await gone(pid)


async def test_killed_agent_comes_back_and_jobs_do_not_notice(tmp_path: Path) -> None:
    async with scene(tmp_path) as s:
        await s.stage.send([s.stage.shell("j", WAIT + "exit 3"), s.stage.shell("k", WAIT + "exit 4")])
        started = await s.stage.started("j")
        await s.stage.started("k")
        for round_number in range(3):
            (agent,) = s.helpers("sj-agent")
            s.stage.acking = False
            os.kill(agent, signal.SIGKILL)
            hello = await s.stage.connected(round_number + 2)
            held = {one.jid: one for one in hello.inventory}
            assert held["j"].state == "running"
            assert held["j"].started_at == started.at
            assert hello.pid == s.launcher
        (s.run_dir("j") / "go").touch()
        assert (await s.stage.ended("j")).exit_code == 3
        # Unacknowledged, so the next connection hears of it again, and of nothing twice in between.
        (agent,) = s.helpers("sj-agent")
        before = len(s.stage.durable)
        os.kill(agent, signal.SIGKILL)
        hello = await s.stage.connected(5)
        assert {one.jid: one.state for one in hello.inventory} == {"j": "ended", "k": "running"}
        await s.stage.until(lambda: len(s.stage.durable) > before)
        assert [(type(m), m.jid) for m in s.stage.durable[before:]] == [(Exited, "j")]
        s.stage.acking = True
        (s.run_dir("k") / "go").touch()
        assert (await s.stage.ended("k")).exit_code == 4


async def test_lost_supervisor_is_told_everything_when_it_is_back(tmp_path: Path) -> None:
    async with scene(tmp_path) as s:
        count = 40
        s.stage.acking = False
        wait = f"while [ ! -e {s.run_root}/go ]; do sleep 0.01; done; "
        await s.stage.send([s.stage.shell("j0", "exit 0")])
        await s.stage.send([s.stage.shell(f"j{n}", f"{wait} exit {n}") for n in range(1, count)])
        await s.stage.ended("j0")
        for n in range(1, count):
            await s.stage.started(f"j{n}")
        await s.stage.close()
        # All end while nobody listens.
        (s.run_root / "go").touch()
        for n in range(count):
            await appears(s.run_dir(f"j{n}") / "exit.json")
        heard = {m.seq for m in s.stage.durable}
        s.stage.durable.clear()
        s.stage.acked = acked = max(heard)
        s.stage.acking = True
        await s.stage.listen()
        await s.stage.connected(2)
        for n in range(count):
            assert (await s.stage.ended(f"j{n}")).exit_code == n
        again = [m.seq for m in s.stage.durable]
        assert again == list(range(acked + 1, again[-1] + 1))
        assert heard | set(again) == set(range(1, again[-1] + 1))


async def test_supervisor_that_forgot_is_told_again_in_order(tmp_path: Path) -> None:
    async with scene(tmp_path) as s:
        s.stage.acking = False
        await s.stage.send([s.stage.run(f"j{n}", ["true"]) for n in range(10)])
        for n in range(10):
            await s.stage.ended(f"j{n}")
        first = list(s.stage.durable)
        assert s.stage.connection is not None
        await s.stage.connection.close()
        hello = await s.stage.connected(2)
        assert hello.last_seq == first[-1].seq
        await s.stage.until(lambda: len(s.stage.durable) >= 2 * len(first))
        assert s.stage.durable[len(first) :] == first
        s.stage.acking = True


async def test_killed_spawner_costs_no_job_and_no_status(tmp_path: Path) -> None:
    async with scene(tmp_path) as s:
        for n in range(6):
            await s.stage.send([s.stage.shell(f"j{n}", f"setsid sleep {sleep_token(n)} & {WAIT} exit {n}")])
        await s.stage.send([s.stage.shell("killed", WAIT), s.stage.shell("deaf", f"trap '' TERM; {WAIT}")])
        for jid in [*(f"j{n}" for n in range(6)), "killed", "deaf"]:
            await appears(s.run_dir(jid) / "up")
            await s.stage.started(jid)
        spawners = s.helpers("sj-spawner")
        assert len(spawners) == 2
        for pid in spawners:
            os.kill(pid, signal.SIGKILL)
            await gone(pid)
        # New work goes on at once with new spawners ...
        await s.stage.send([s.stage.shell("new", "exit 9")])
        assert (await s.stage.ended("new")).exit_code == 9
        # ... and the old is waited for by the launcher itself.
        for n in range(6):
            (s.run_dir(f"j{n}") / "go").touch()
            exited = await s.stage.ended(f"j{n}")
            assert (exited.exit_code, exited.proof, exited.reason) == (n, "wait_status", None)
            assert exited.usage is not None
            assert not carrying(f"sleep {sleep_token(n)}")
        await s.stage.send([s.stage.cancel("killed", 10), s.stage.cancel("deaf", 0.1)])
        exited = await s.stage.ended("killed")
        assert (exited.signal, exited.stopped) == (signal.SIGTERM, True)
        exited = await s.stage.ended("deaf")
        assert (exited.signal, exited.stopped) == (signal.SIGKILL, True)


async def test_an_agent_that_is_told_to_go_reports_no_end_of_a_job(tmp_path: Path) -> None:
    """F104: an engine or a host that goes down in order looked as if the program had died of signal 15.

    Whatever a job makes of the TERM, with its spawner dead or alive; one that was canceled before stays so.
    """
    scripts = {
        "dies": WAIT,
        "deaf": f"trap '' TERM; {WAIT}",
        "tidies": f"trap 'exit 0' TERM; {WAIT}",
        "canceled": f"trap 'touch heard' TERM; {WAIT}",
    }
    async with scene(tmp_path) as s:
        await s.stage.send([s.stage.shell(jid, script) for jid, script in scripts.items()])
        for jid in scripts:
            await appears(s.run_dir(jid) / "up")
            await s.stage.started(jid)
        await s.stage.send([s.stage.cancel("canceled", 60.0)])
        await appears(s.run_dir("canceled") / "heard")
        (spawner, *_) = s.helpers("sj-spawner")
        os.kill(spawner, signal.SIGKILL)
        await gone(spawner)
        os.kill(s.launcher, signal.SIGTERM)
        exits = {jid: await s.stage.ended(jid) for jid in scripts}
        for jid in ("dies", "deaf", "tidies"):
            assert (exits[jid].reason, exits[jid].stopped) == (Reason.AGENT_LOST, True), exits[jid]
            assert "told to go by its host" in exits[jid].message
        assert (exits["canceled"].reason, exits["canceled"].stopped) == (None, True)
        await gone(s.launcher)


async def test_the_supervisors_stop_is_no_loss_of_the_agent(tmp_path: Path) -> None:
    """`down --stop-agents` says `Stop`, then TERM: the operator ended the jobs, and nothing was lost."""
    async with scene(tmp_path) as s:
        await s.stage.send([s.stage.shell("j", f"trap 'touch heard' TERM; {WAIT}")])
        await appears(s.run_dir("j") / "up")
        await s.stage.send([Stop(kill_jobs=True)])
        await appears(s.run_dir("j") / "heard")
        assert s.handle is not None
        await s.driver.stop(s.handle, grace_secs=20)
        exited = await s.stage.ended("j")
        assert (exited.reason, exited.signal, exited.stopped) == (None, signal.SIGKILL, True)


async def test_killed_spawner_and_the_limits_of_its_jobs(tmp_path: Path) -> None:
    async with scene(tmp_path) as s:
        await s.stage.send([s.stage.shell("j", WAIT, soft_secs=1.0)])
        started = await s.stage.started("j")
        for pid in s.helpers("sj-spawner"):
            os.kill(pid, signal.SIGKILL)
        exited = await s.stage.ended("j")
        assert (exited.signal, exited.reason) == (signal.SIGTERM, Reason.TIME_LIMIT)
        assert 900_000 < exited.at - started.at < WAIT_SECS * 1e6


async def test_spawners_killed_again_and_again_under_load(tmp_path: Path) -> None:
    async with scene(tmp_path) as s:
        count = 240
        script = f"echo $SIREPO_JOBS_JID >> {s.run_root}/starts; exit $((N % 7))"
        await s.stage.send(
            [s.stage.shell(f"j{n}", script.replace("N", str(n)), standby=n >= 4) for n in range(count)]
        )
        for kill_after in (20, 60, 100, 140):
            await s.stage.until(lambda bound=kill_after: len(s.stage.exits) > bound)
            for pid in s.helpers("sj-spawner"):
                os.kill(pid, signal.SIGKILL)
        for n in range(count):
            exited = await s.stage.ended(f"j{n}")
            if exited.proof == "launcher_lost":
                # Killed between making the run dir and telling: nothing is known, and nothing is said.
                assert (exited.exit_code, exited.signal, exited.reason) == (None, None, Reason.AGENT_LOST)
            elif exited.signal is None:
                assert exited.exit_code == n % 7
        lost = [jid for jid, exited in s.stage.exits.items() if exited.proof == "launcher_lost"]
        assert len(lost) <= 8, lost
        lines = (s.run_root / "starts").read_text().split()
        assert len(lines) == len(set(lines))
        assert len({(m.jid, m.attempt) for m in s.stage.durable if isinstance(m, Exited)}) == count


async def test_killed_launcher_leaves_exit_records_that_are_adopted(tmp_path: Path) -> None:
    async with scene(tmp_path) as s:
        await s.stage.send([s.stage.shell(f"j{n}", WAIT + f"exit {n}") for n in range(4)])
        for n in range(4):
            await s.stage.started(f"j{n}")
        pid = s.launcher
        spawners = s.helpers("sj-spawner")
        (agent,) = s.helpers("sj-agent")
        os.kill(pid, signal.SIGKILL)
        await gone(pid)
        await gone(agent)
        # The spawners go on with their jobs.
        for n in range(2):
            (s.run_dir(f"j{n}") / "go").touch()
            await appears(s.run_dir(f"j{n}") / "exit.json")
        hellos = len(s.stage.hellos)
        await s.launch()
        hello = await s.stage.connected(hellos + 1)
        assert hello.install == s.stage.hellos[0].install
        for n in range(2):
            exited = await s.stage.ended(f"j{n}")
            assert (exited.exit_code, exited.proof, exited.reason) == (n, "exit_record", None)
        for n in range(2, 4):
            exited = await s.stage.ended(f"j{n}")
            assert (exited.exit_code, exited.signal) == (None, None)
            assert (exited.proof, exited.reason) == ("launcher_lost", Reason.AGENT_LOST)
        for spawner in spawners:
            await gone(spawner)
        assert [m.seq for m in s.stage.durable] == list(range(1, len(s.stage.durable) + 1))


async def test_what_a_job_writes_into_its_own_exit_record_costs_itself_alone(tmp_path: Path) -> None:
    """C2: whatever stands there when the launcher is killed, the next one begins its work."""
    records = {
        "bytes": r'{"jid":"\377"}',
        "deep": r'{"jid":' + "[" * 5000,
        "huge": r'{"jid":"huge","serial":1,"attempt":1,"ended_at":1' + "0" * 30 + "}",
    }
    async with scene(tmp_path) as s:
        for jid, record in records.items():
            await s.stage.send([s.stage.shell(jid, f"printf '{record}' > exit.json; {WAIT}")])
        await s.stage.send([s.stage.shell("neighbor", "exit 7")])
        assert (await s.stage.ended("neighbor")).exit_code == 7
        for jid in records:
            await appears(s.run_dir(jid) / "up")
        # They are all that is known of these, when the spawners cannot tell any more either.
        for pid in s.helpers("sj-spawner"):
            os.kill(pid, signal.SIGSTOP)
        await restart(s)
        for jid in records:
            exited = await s.stage.ended(jid)
            assert (exited.proof, exited.reason) == ("launcher_lost", Reason.AGENT_LOST), jid
        await s.stage.send([s.stage.shell("next", "exit 6")])
        assert (await s.stage.ended("next")).exit_code == 6


async def test_killed_launcher_leaves_nothing_running(tmp_path: Path) -> None:
    token = sleep_token(10)
    async with scene(tmp_path) as s:
        script = f"trap '' TERM; env -i setsid sleep {token} & (setsid sleep {token} &) ; {WAIT}"
        await s.stage.send([s.stage.shell(f"j{n}", script) for n in range(3)])
        for n in range(3):
            await s.stage.started(f"j{n}")
        await restart(s)
        for n in range(3):
            exited = await s.stage.ended(f"j{n}")
            assert exited.proof == "launcher_lost"
        assert not carrying(f"sleep {token}")
        await s.stage.send([s.stage.shell("next", "exit 6")])
        assert (await s.stage.ended("next")).exit_code == 6


async def test_everything_killed_at_once(tmp_path: Path) -> None:
    token = sleep_token(11)
    async with scene(tmp_path) as s:
        await s.stage.send([s.stage.shell(f"j{n}", f"setsid sleep {token} & {WAIT}") for n in range(4)])
        for n in range(4):
            await s.stage.started(f"j{n}")
        await kill_all(s.launcher, *s.helpers("sj-spawner"), *s.helpers("sj-agent"))
        assert carrying(f"sleep {token}")
        await s.launch()
        await s.stage.connected(2)
        for n in range(4):
            assert (await s.stage.ended(f"j{n}")).proof == "launcher_lost"
        assert not carrying(f"sleep {token}")


async def test_launcher_killed_under_load_neither_loses_nor_doubles(tmp_path: Path) -> None:
    async with scene(tmp_path) as s:
        count = 200
        script = f"echo $SIREPO_JOBS_JID >> {s.run_root}/starts; exit $((N % 7))"
        runs = [s.stage.shell(f"j{n}", script.replace("N", str(n)), standby=n >= 4) for n in range(count)]
        await s.stage.send(runs)
        for kill_after in (20, 80, 140):
            await s.stage.until(lambda bound=kill_after: len(s.stage.exits) > bound)
            await restart(s)
            # What the launcher does not hold any more, the supervisor still wants.
            held = {(one.jid, one.attempt) for one in s.stage.hellos[-1].inventory}
            wanted = [run for run in runs if (run.jid, 1) not in held and (run.jid, 1) not in s.stage.exits]
            await s.stage.send(wanted)
            await s.stage.send([s.stage.grant(run.jid) for run in wanted[:4]])
        for n in range(count):
            exited = await s.stage.ended(f"j{n}")
            if exited.exit_code is not None:
                assert exited.exit_code == n % 7
            else:
                assert exited.proof in ("launcher_lost", "never_claimed", "exit_record"), exited
        never = {jid for (jid, _), exited in s.stage.exits.items() if not exited.began}
        lines = (s.run_root / "starts").read_text().split()
        assert len(lines) == len(set(lines))
        assert not never & set(lines)
        seqs = [m.seq for m in s.stage.durable]
        assert sorted(set(seqs)) == list(range(1, max(seqs) + 1))


async def test_reboot_is_evidence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with scene(tmp_path) as s:
        await s.stage.send([s.stage.shell("j", WAIT), s.stage.shell("k", "exit 2")])
        started = await s.stage.started("j")
        await s.stage.ended("k")
        await kill_all(s.launcher, *s.helpers("sj-spawner"), *s.helpers("sj-agent"), started.pid)
        # As if another boot had written it.
        journal = s.home / "journal"
        lines = journal.read_bytes().split(b"\n")
        head = lines[0][9:].replace(s.stage.hellos[0].boot_id.encode(), b"another-boot")
        lines[0] = journal_of._line(*head.split(b" ", 1)).rstrip(b"\n")
        journal.write_bytes(b"\n".join(lines))
        await s.launch()
        exited = await s.stage.ended("j")
        assert (exited.proof, exited.reason) == ("boot_changed", Reason.NODE_FAILED)
        assert (exited.exit_code, exited.signal) == (None, None)


async def test_torn_journal_is_cut_and_goes_on(tmp_path: Path) -> None:
    async with scene(tmp_path) as s:
        await s.stage.send([s.stage.shell("j", "exit 2")])
        await s.stage.ended("j")
        install = s.stage.hellos[0].install
        pid = s.launcher
        os.kill(pid, signal.SIGKILL)
        await gone(pid)
        with (s.home / "journal").open("r+b") as file:
            file.seek(len(file.read().rstrip(b"\0")))  # behind the last line
            file.write(b'deadbeef R0 {"op":"exited","jid":"x","seri')
        await s.launch()
        hello = await s.stage.connected(2)
        assert hello.install == install
        await s.stage.send([s.stage.shell("k", "exit 3")])
        assert (await s.stage.ended("k")).exit_code == 3
        seqs = [m.seq for m in s.stage.durable]
        assert seqs == list(range(1, len(seqs) + 1))


async def test_wiped_home_is_another_install(tmp_path: Path) -> None:
    async with scene(tmp_path) as s:
        first = s.stage.hellos[0]
        pid = s.launcher
        os.kill(pid, signal.SIGKILL)
        await gone(pid)
        (s.home / "journal").unlink()
        await s.launch()
        second = await s.stage.connected(2)
        assert second.install != first.install
        assert second.last_seq == 0
