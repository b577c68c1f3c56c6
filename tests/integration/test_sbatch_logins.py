"""Logging in to a real sshd, in every way that clusters ask for, and what fails there (F132..F143)."""

# ruff: noqa: ASYNC221, ASYNC240 - small files of tests, and nothing else runs meanwhile

import asyncio
import contextlib
import logging
import os
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncssh
import msgspec
import pytest

from sirepo_jobs.driver import Fate
from sirepo_jobs.drivers.sbatch import SbatchDriver
from sirepo_jobs.errors import BadInput, Conflict, LaunchError, NotFound
from sirepo_jobs.login import LoginOrder
from sirepo_jobs.reasons import Reason
from tests.agent_stage import gone
from tests.bundle_stage import OUT
from tests.service_stage import eventually
from tests.sshd_stage import Sshd, SshWorld, ssh_world, sshd_at

pytestmark = [pytest.mark.real("sshd"), pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with sshd_at(str(tmp_path_factory.mktemp("sshd"))) as found:
        yield found


def as_user(**policy: Any) -> dict[str, Any]:
    """A policy under which users bring their own credentials."""
    return {"key_file": "", **policy}


def reason_of(world: SshWorld, driver: SbatchDriver) -> tuple[Reason, str]:
    trouble = driver.trouble(world.environment())
    assert trouble is not None
    return trouble


async def test_password(sshd: Sshd, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One login serves any number of agents; the password is nowhere afterwards (SIR-43)."""
    caplog.set_level(logging.DEBUG)
    async with ssh_world(sshd, tmp_path, account="pass", **as_user()) as world:
        driver = world.driver()
        reason, text = reason_of(world, driver)
        assert reason is Reason.AUTH_REQUIRED
        assert "sirepo-jobs cluster login dev" in text
        with pytest.raises(LaunchError) as caught:
            await driver.launch(world.spec("a"))
        assert caught.value.reason is Reason.AUTH_REQUIRED
        changed = asyncio.create_task(driver.change(world.environment()))
        before = sshd.logins()
        view = await driver.log_in("dev", "ann", LoginOrder(password=sshd.password))
        assert (view.state, view.prompts) == ("connected", [])
        await asyncio.wait_for(changed, 60)
        assert driver.trouble(world.environment()) is None
        handles = await asyncio.gather(driver.launch(world.spec("a")), driver.launch(world.spec("b")))
        assert sshd.logins() == before + 1
        assert driver.view("dev", "ann").counters["logins_last_day"] == 1
        for handle in handles:
            assert sshd.password not in handle.to_json().decode()
            await driver.stop(handle, grace_secs=5)
        # another user of the service has no part in it
        assert driver.view("dev", "bob").state == "login_required"
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert sshd.password.encode() not in path.read_bytes(), path
    assert sshd.password not in caplog.text


async def test_one_time_code_is_asked_of_the_user(sshd: Sshd, tmp_path: Path) -> None:
    """Prompts one after the other, with whole minutes between them if need be (F134)."""
    async with ssh_world(sshd, tmp_path, account="otp", **as_user()) as world:
        driver = world.driver()
        view = await driver.log_in("dev", "ann", LoginOrder())
        assert view.state == "asking"
        assert [(prompt.text, prompt.echo) for prompt in view.prompts] == [("Password:", False)]
        with pytest.raises(Conflict):
            await driver.answer("dev", "ann", view.login, ["a", "b"])
        with pytest.raises(NotFound):
            await driver.answer("dev", "bob", view.login, ["a"])
        view = await driver.answer("dev", "ann", view.login, [sshd.password])
        assert view.state == "asking"
        assert "One-time password" in view.prompts[0].text
        view = await driver.answer("dev", "ann", view.login, [sshd.code("otp")])
        assert view.state == "connected"
        with pytest.raises(Conflict):
            await driver.answer("dev", "ann", view.login, ["late"])


async def test_nobody_answers_and_the_login_is_begun_again(sshd: Sshd, tmp_path: Path) -> None:
    async with ssh_world(sshd, tmp_path, account="otp", **as_user(prompt_secs=1.0)) as world:
        driver = world.driver()
        view = await driver.log_in("dev", "ann", LoginOrder())
        assert view.state == "asking"
        late = await driver.answer("dev", "ann", view.login, [])
        while late.state != "failed":
            await asyncio.sleep(0.02)
            late = await driver.answer("dev", "ann", view.login, [])
        assert "nobody answered" in late.message
    async with ssh_world(sshd, tmp_path, account="otp", **as_user()) as world:
        driver = world.driver()
        first = await driver.log_in("dev", "ann", LoginOrder())
        # a second one, from another window, takes its place
        second = await driver.log_in("dev", "ann", LoginOrder(password=sshd.password, code=sshd.code("otp")))
        assert second.state == "connected"
        with pytest.raises(NotFound):
            await driver.answer("dev", "ann", first.login, ["x"])


async def test_what_was_given_is_not_asked(sshd: Sshd, tmp_path: Path) -> None:
    async with ssh_world(sshd, tmp_path, account="otp", **as_user()) as world:
        order = LoginOrder(password=sshd.password, code=sshd.code("otp"))
        assert (await world.driver().log_in("dev", "ann", order)).state == "connected"


async def test_a_key_of_the_users_own_and_a_code(sshd: Sshd, tmp_path: Path) -> None:
    text = Path(sshd.words["passphrase_key_file"]).read_text()
    async with ssh_world(sshd, tmp_path, account="both", **as_user()) as world:
        driver = world.driver()
        for passphrase in ("", "wrong"):
            with pytest.raises(BadInput) as caught:
                await driver.log_in("dev", "ann", LoginOrder(private_key=text, passphrase=passphrase))
            assert caught.value.pointer == "/passphrase"
        order = LoginOrder(private_key=text, passphrase=sshd.password, password=sshd.password)
        view = await driver.log_in("dev", "ann", order)
        assert view.state == "asking"
        view = await driver.answer("dev", "ann", view.login, [sshd.code("both")])
        assert view.state == "connected"


async def test_wrong_password_is_tried_once(sshd: Sshd, tmp_path: Path) -> None:
    """Accounts get locked by those who try again and again."""
    log = Path(sshd.words["log"])
    async with ssh_world(sshd, tmp_path, account="pass", **as_user()) as world:
        driver = world.driver()

        def failed() -> int:
            # others' are perhaps written down only now
            return len(
                re.findall(rf"Failed (password|keyboard\S*) for {sshd.user('pass')} ", log.read_text())
            )

        before = failed()
        view = await driver.log_in("dev", "ann", LoginOrder(password="wrong-horse-8"))
        # not the password once more: a human is asked, and does not answer
        assert view.state == "failed"
        assert sshd.user("pass") in view.message
        assert "wrong-horse-8" not in view.message
        reason, text = reason_of(world, driver)
        assert reason is Reason.AUTH_REQUIRED
        assert "refused" in text
        for _ in range(5):
            with pytest.raises(LaunchError):
                await driver.launch(world.spec("a"))
        # sshd answers first, and writes it down then
        await eventually(lambda: failed() > before, 60)
        assert (await driver.log_in("dev", "ann", LoginOrder(password=sshd.password))).state == "connected"
        assert failed() == before + 1


async def test_refused_key_of_the_service_stops(sshd: Sshd, tmp_path: Path) -> None:
    """A revoked key: jobs wait for a human, and sshd is left alone (F133)."""
    stranger = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(stranger)], check=True)
    async with ssh_world(sshd, tmp_path, key_file=str(stranger)) as world:
        driver = world.driver()
        for _ in range(3):
            with pytest.raises(LaunchError) as caught:
                await driver.launch(world.spec("a"))
            assert caught.value.reason is Reason.AUTH_REQUIRED
        assert driver.view("dev", "ann").counters["logins"] == 1
        assert driver.view("dev", "ann").state == "login_required"


async def test_changed_host_key_stops(sshd: Sshd, tmp_path: Path) -> None:
    """Nothing is sent to a host that shows another key than the one we know (F135, S56)."""
    known = Path(sshd.words["known_hosts"]).read_text().splitlines()
    gate = next(line for line in known if f":{sshd.words['gate_port']} " in line)
    changed = tmp_path / "known_hosts"
    changed.write_text(f"[127.0.0.1]:{sshd.words['port']} {gate.partition(' ')[2]}\n")
    async with ssh_world(sshd, tmp_path, account="pass", known_hosts=str(changed), key_file="") as world:
        driver = world.driver()
        before = Path(sshd.words["log"]).read_text().count("password")
        view = await driver.log_in("dev", "ann", LoginOrder(password=sshd.password))
        assert view.state == "failed"
        assert "is not the one in" in view.message
        reason, text = reason_of(world, driver)
        assert (reason, "is not the one in" in text) == (Reason.LAUNCH_FAILED, True)
        assert driver.view("dev", "ann").state == "stopped"
        assert Path(sshd.words["log"]).read_text().count("password") == before
        # an unknown one is something else, and says how to get to know it
        changed.write_text("")
        view = await driver.log_in("dev", "ann", LoginOrder(password=sshd.password))
        assert "is not known" in view.message
        assert "ssh-keyscan" in view.message
        changed.unlink()
        view = await driver.log_in("dev", "ann", LoginOrder(password=sshd.password))
        assert "is missing" in view.message


def sessions(sshd: Sshd, account: str) -> list[int]:
    """Processes of sshd that serve an account."""
    found = subprocess.run(
        ["pgrep", "-f", f"sshd?: {sshd.user(account)}@|: {sshd.user(account)}"], capture_output=True
    )
    return [int(pid) for pid in found.stdout.split()]


def hang_up(sshd: Sshd, account: str) -> None:
    """Kill them. One dies of the other's death, perhaps before it is its turn."""
    for pid in sessions(sshd, account):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


async def test_killed_connection_comes_back_and_the_agent_is_the_same(sshd: Sshd, tmp_path: Path) -> None:
    async with ssh_world(sshd, tmp_path) as world:
        driver = world.driver()
        handle = await driver.launch(world.spec("a"))
        await world.hello("a", 1)
        stage = world.stages["a"]
        await stage.send([stage.run("j", ["sleep", "1000"], run_dir="j/1")])
        await stage.started("j")
        logins = sshd.logins()
        hang_up(sshd, "key")
        hello = await world.hello("a", 2)
        assert [(held.jid, held.state) for held in hello.inventory] == [("j", "running")]
        assert sshd.logins() == logins + 1
        assert await driver.look(handle) is Fate.ALIVE
        assert driver.view("dev", "ann").counters["connections_lost"] == 1
        await driver.stop(handle, grace_secs=1)


async def test_a_connection_that_hangs_is_given_up(sshd: Sshd, tmp_path: Path) -> None:
    """Nobody hangs up and nobody answers: silence is noticed, and another connection made (F142)."""
    async with ssh_world(sshd, tmp_path, keepalive_secs=1.0) as world:
        driver = world.driver()
        handle = await driver.launch(world.spec("a"))
        await world.hello("a", 1)
        stopped = sessions(sshd, "key")
        assert stopped
        try:
            for pid in stopped:
                os.kill(pid, signal.SIGSTOP)
            await eventually(lambda: driver.view("dev", "ann").counters.get("connections_lost") == 1, 60)
            await eventually(lambda: driver.view("dev", "ann").state == "connected", 60)
        finally:
            for pid in stopped:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        # the agent's own line hung with it; it calls over the new one
        await world.hello("a", 2)
        await driver.stop(handle, grace_secs=1)


async def test_a_host_that_is_away_is_nobodys_fault(sshd: Sshd, tmp_path: Path) -> None:
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))  # nobody listens there, and nobody else can
        port = deaf.getsockname()[1]
        async with ssh_world(sshd, tmp_path, port=port) as world:
            driver = world.driver()
            with pytest.raises(LaunchError, match=str(port)) as caught:
                await driver.launch(world.spec("a"))
            assert (caught.value.reason, caught.value.retry) == (Reason.AGENT_UNREACHABLE, True)
            assert driver.view("dev", "ann").state == "unreachable"
            # nobody has to act: it is tried again
            assert driver.trouble(world.environment()) is None


async def test_a_user_who_logged_in_is_asked_again_once(sshd: Sshd, tmp_path: Path) -> None:
    """Without a key of ours nothing is tried; the agent goes on, and calls after the next login."""
    async with ssh_world(sshd, tmp_path, account="pass", **as_user()) as world:
        driver = world.driver()
        await driver.log_in("dev", "ann", LoginOrder(password=sshd.password))
        handle = await driver.launch(world.spec("a"))
        await world.hello("a", 1)
        changed = asyncio.create_task(driver.change(world.environment()))
        hang_up(sshd, "pass")
        await asyncio.wait_for(changed, 60)
        assert await driver.look(handle) is Fate.UNKNOWN
        assert reason_of(world, driver)[0] is Reason.AUTH_REQUIRED
        await driver.log_in("dev", "ann", LoginOrder(password=sshd.password))
        await world.hello("a", 2)
        await driver.stop(handle, grace_secs=1)


async def test_another_login_node_takes_over(sshd: Sshd, tmp_path: Path) -> None:
    """Two nodes, one home: the second agent comes when the first has let go, with its records (F141)."""
    async with ssh_world(sshd, tmp_path, processes=False) as world:
        first = await world.driver().launch(world.spec("a"))
        before = await world.hello("a", 1)
        await world.drivers[-1].close()
        ssh = msgspec.structs.replace(world.policy.ssh, port=int(sshd.words["port2"]))
        world.policy = msgspec.structs.replace(world.policy, ssh=ssh)
        driver = world.driver()
        # it cannot be seen from there, and is of no use there
        assert await driver.look(first) is Fate.GONE
        second = await driver.launch(world.spec("a"))
        assert (first.data["node"] != "login2", second.data["node"]) == (True, "login2")
        await gone(int(first.data["pid"]))
        after = await world.hello("a", 2)
        assert after.install == before.install
        assert await driver.look(second) is Fate.ALIVE
        assert await driver.launch(world.spec("a")) == second
        await driver.stop(second, grace_secs=1)


async def test_through_a_jump_host(sshd: Sshd, tmp_path: Path) -> None:
    gate = f"127.0.0.1:{sshd.words['gate_port']}"
    log = Path(sshd.words["home"]) / "gate.log"
    async with ssh_world(sshd, tmp_path, jump_hosts=[gate]) as world:
        driver = world.driver()
        before = log.read_text().count("Accepted publickey")
        handle = await driver.launch(world.spec("a"))
        await world.hello("a", 1)
        assert log.read_text().count("Accepted publickey") == before + 1
        await driver.stop(handle, grace_secs=1)


async def test_where_nothing_is_forwarded_standard_streams_do(sshd: Sshd, tmp_path: Path) -> None:
    async with ssh_world(sshd, tmp_path, account="nofwd") as world:
        driver = world.driver()
        handle = await driver.launch(world.spec("a"))
        await world.hello("a", 1)
        stage = world.stages["a"]
        await stage.send([stage.shell("j", "seq 100000", run_dir="j/1")])
        await stage.ended("j")
        ask = stage.read("j", run_dir="j/1")
        await stage.send([ask])
        await stage.until(lambda: stage.ends.get(ask.op_id), "all of the output")
        assert bytes(stage.chunks[ask.op_id]) == "".join(f"{n}\n" for n in range(1, 100001)).encode()
        # a second connection over a second relay
        assert stage.connection is not None
        await stage.connection.close()
        await world.hello("a", 2)
        await driver.stop(handle, grace_secs=1)


@pytest.mark.parametrize("account", ["csh", "noisy"])
async def test_shells_and_start_files_that_are_in_the_way(sshd: Sshd, tmp_path: Path, account: str) -> None:
    async with ssh_world(sshd, tmp_path, account=account) as world:
        driver = world.driver()
        assert [(check.name, check.ok) for check in await driver.check("dev", "ann")] == [
            (name, True) for name in ("bundle", "login", "shell", "directory", "space", "tools", "agent")
        ]
        handle = await driver.launch(world.spec("a"))
        await world.hello("a", 1)
        assert await driver.look(handle) is Fate.ALIVE
        await driver.stop(handle, grace_secs=1)


async def test_a_command_that_ended_before_it_was_told_anything_has_the_last_word(
    sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A login shell that says no and is gone at once: its words are the error, not the broken pipe to it."""
    create = asyncssh.SSHClientConnection.create_process

    async def late(*args: Any, **kwargs: Any) -> Any:
        process = await create(*args, **kwargs)
        await process.wait_closed()
        return process

    monkeypatch.setattr(asyncssh.SSHClientConnection, "create_process", late)
    async with ssh_world(sshd, tmp_path, account="forced", bare=True) as world:
        with pytest.raises(LaunchError, match="this account is for data transfer only"):
            await world.driver().launch(world.spec("a"))


@pytest.mark.parametrize(
    ("account", "name", "said", "todo"),
    [
        ("forced", "shell", "this account is for data transfer only", "administrators"),
        ("nologin", "shell", "not available", "administrators"),
        ("full", "space", "No space left", "free some space"),
    ],
)
async def test_check_says_what_is_amiss(
    sshd: Sshd, tmp_path: Path, account: str, name: str, said: str, todo: str
) -> None:
    async with ssh_world(sshd, tmp_path, account=account, bare=True) as world:
        driver = world.driver()
        checks = await driver.check("dev", "ann")
        [bad] = [check for check in checks if check.ok is False]
        assert bad.name == name
        assert said in bad.message
        assert todo in bad.hint
        # what was not looked at is not said to be well
        after = [check.ok for check in checks][checks.index(bad) + 1 :]
        assert after == [None] * len(after)
        with pytest.raises(LaunchError) as caught:
            await driver.launch(world.spec("a"))
        assert said in str(caught.value)


async def test_logins_of_a_day_are_counted_over_restarts(sshd: Sshd, tmp_path: Path) -> None:
    async with ssh_world(sshd, tmp_path, logins_per_day=2) as world:
        for _ in range(2):
            driver = world.driver()
            assert (await driver.check("dev", "ann"))[1].ok
            await driver.close()
        with pytest.raises(LaunchError) as caught:
            await world.driver().launch(world.spec("a"))
        assert caught.value.reason is Reason.RATE_LIMIT
        assert "allows 2" in str(caught.value)


async def test_an_upload_that_broke_off_leaves_no_half_of_an_agent(sshd: Sshd, tmp_path: Path) -> None:
    """Whatever lies there, what is used was verified first (F132)."""
    async with ssh_world(sshd, tmp_path, bare=True) as world:
        driver = world.driver()
        broken = SbatchDriver(
            clusters={"dev": world.policy}, bundle_dir=tmp_path / "bundle", state_dir=tmp_path / "state"
        )
        (tmp_path / "bundle").mkdir()
        (tmp_path / "bundle/agent.json").write_bytes((OUT / "agent.json").read_bytes())
        (tmp_path / "bundle/agent.tar.gz").write_bytes((OUT / "agent.tar.gz").read_bytes()[:1_000_000])
        with pytest.raises(LaunchError, match="damaged"):
            await broken.launch(world.spec("a"))
        await broken.close()
        assert list((world.run_root.parent / "bundles").iterdir()) == []
        handle = await driver.launch(world.spec("a"))
        assert driver.view("dev", "ann").counters["uploads"] == 1
        # once per version
        assert await world.driver().launch(world.spec("a")) == handle
        assert world.drivers[-1].view("dev", "ann").counters.get("uploads", 0) == 0
        await driver.stop(handle, grace_secs=1)


async def test_nobody_else_on_the_node_sees_a_secret(sshd: Sshd, tmp_path: Path) -> None:
    """Neither in arguments and environments, nor in files that others may read (S60)."""
    async with ssh_world(sshd, tmp_path) as world:
        driver = world.driver()
        handle = await driver.launch(world.spec("a"))
        await world.hello("a", 1)
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                try:
                    told = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
                except OSError:
                    continue
                assert b"token-of-tests" not in told, entry
        root = world.run_root.parent
        assert root.stat().st_mode & 0o077 == 0
        for path in (root / "agents").rglob("*"):
            with contextlib.suppress(FileNotFoundError):  # one that was put in another's place meanwhile
                assert path.lstat().st_mode & 0o077 == 0 or path.is_symlink(), path
        other = ["runuser", "-u", sshd.user("pass"), "--", "cat", f"{root}/agents/a/agent.json"]
        assert subprocess.run(other, capture_output=True).returncode != 0
        await driver.stop(handle, grace_secs=1)
        await gone(int(handle.data["pid"]))
