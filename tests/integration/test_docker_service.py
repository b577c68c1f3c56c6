"""Jobs in containers through the whole service: what they get, what is told of them, and engines far away."""

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from sirepo_jobs.client import Client, Job
from sirepo_jobs.driver import AgentSpec, Environment
from sirepo_jobs.drivers.docker import DockerDriver
from sirepo_jobs.drivers.docker.container import LABEL
from sirepo_jobs.drivers.docker.places import place_in
from sirepo_jobs.errors import LaunchError
from tests.bundle_stage import OUT, agent_bundle
from tests.docker_stage import (
    TestEngine,
    an_engine,
    busybox_files,
    docker_service,
    root_tar,
    write_policy,
)
from tests.on_disk import place_of

pytestmark = [pytest.mark.real("docker"), pytest.mark.timeout(600)]

BASE = {"driver": "docker", "image": "bb:1"}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestEngine]:
    agent_bundle()
    with an_engine(tmp_path_factory.mktemp("docker")) as made:
        made.make_image("bb:1", root_tar(busybox_files()), "ENV PATH=/bin")
        yield made


def run(client: Client, **spec: object) -> Job:
    return client.wait(client.submit({**BASE, **spec}).jid, timeout=90)


async def test_what_a_job_asks_of_its_container(tmp_path: Path, engine: TestEngine) -> None:
    """`shm` and `gpus` reach the engine; what it refuses is told in its own words, and others go on."""
    policy = write_policy(tmp_path / "docker.toml", {"here": engine}, "pull = false")
    policy.write_text(policy.read_text().replace("cpus = 2", "cpus = 2\ngpus = 1"))
    async with docker_service(tmp_path, policy) as client:

        def work() -> None:
            # no gpu is here: the engine says so, and the job waits with the reason (C11)
            waits = client.submit({**BASE, "command": ["true"], "resources": {"gpus": 1}})
            usual = run(client, command=["sh", "-c", "df -k /dev/shm | tail -n 1"])
            asked = run(client, command=["sh", "-c", "df -k /dev/shm | tail -n 1"], shm="8 MiB")
            sizes = [int(b"".join(client.logs(job.jid)).split()[1]) for job in (usual, asked)]
            assert sizes == [64 << 10, 8 << 10]
            much = run(client, command=["true"], shm="2 GiB")
            assert (much.state, much.reason) == ("error", "UNSATISFIABLE")
            assert "2 GiB is more than the 1 GiB of memory" in much.situation
            job = client.get(waits.jid)
            while job.reason != "LAUNCH_FAILED":
                # what a waiting job waits for is no change of its record
                time.sleep(0.2)
                job = client.get(waits.jid)
            assert job.state == "pending"
            assert "gpu" in job.situation
            assert "could not select device driver" in job.situation
            assert client.cancel(waits.jid).state == "canceled"

        await asyncio.to_thread(work)
    assert engine.containers() == []


async def test_what_is_told_of_a_job_in_a_container(tmp_path: Path, engine: TestEngine) -> None:
    """The digest of its image, and what its container used: memory at its peak, disk, network."""
    policy = write_policy(tmp_path / "docker.toml", {"here": engine}, 'pull = false\nnetwork = "told"')
    engine.docker("network", "create", "--internal", "told")
    digest = engine.docker("inspect", "-f", "{{.Id}}", "bb:1")
    gateway = json.loads(engine.docker("network", "inspect", "told"))[0]["IPAM"]["Config"][0]["Gateway"]
    talk = f"echo here; dd if=/dev/zero of=big bs=1M count=4 conv=fsync; nc -w 1 {gateway} 9 </dev/null; true"
    try:
        async with docker_service(tmp_path, policy) as client:

            def work() -> None:
                job = run(client, command=["sh", "-c", talk], services=["network"])
                assert job.state == "completed", job.situation
                assert job.image_id == digest
                (attempt,) = client.transport.call("GET", f"/api/v1/jobs/{job.jid}/attempts")["attempts"]
                assert attempt["image_id"] == digest
                # what it wrote is opened on the host, where it lies by the same name
                assert b"".join(client.logs(job.jid)) == b"here\n"
                place = place_of(tmp_path / "root", job.jid, job.user)
                assert place is not None
                assert job.run_dir == f"{place.run_root}/{place.run_dir}"
                with os.fdopen(place.open(), "rb") as output:
                    assert output.read() == b"here\n"
                assert job.usage is not None
                assert 1 << 20 < job.usage["container_memory"] < 1 << 30
                assert job.usage["written_bytes"] >= 4 << 20
                # an ARP question at least
                assert job.usage["sent_bytes"] > 0

            await asyncio.to_thread(work)
    finally:
        engine.docker("network", "rm", "told")
    assert engine.containers() == []


async def test_a_job_on_an_engine_far_away(tmp_path: Path, engine: TestEngine) -> None:
    """Engine by TCP and TLS, bundle and files in volumes there, the agent calls by wss; output comes back."""
    engine.docker("network", "create", "--internal", "far")
    try:
        told = json.loads(engine.docker("network", "inspect", "far"))[0]
        gateway = told["IPAM"]["Config"][0]["Gateway"]
        authority = trustme.CA()
        certificate = authority.issue_cert(gateway)
        certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert")
        certificate.private_key_pem.write_to_path(tmp_path / "key")
        authority.cert_pem.write_to_path(tmp_path / "ca")
        with socket.socket() as free:
            free.bind((gateway, 0))
            port = free.getsockname()[1]
        policy = write_policy(
            tmp_path / "docker.toml", {"far": engine}, 'pull = false\nnetwork = "far"', tls=True
        )
        environ = {
            "SIREPO_JOBS_AGENT_HOST": gateway,
            "SIREPO_JOBS_AGENT_PORT": str(port),
            "SIREPO_JOBS_AGENT_TLS_CERT_FILE": str(tmp_path / "cert"),
            "SIREPO_JOBS_AGENT_TLS_KEY_FILE": str(tmp_path / "key"),
            "SIREPO_JOBS_AGENT_CA_FILE": str(tmp_path / "ca"),
        }
        async with docker_service(tmp_path, policy, **environ) as client:

            def work() -> None:
                script = "i=0; while [ $i -lt 2000 ]; do echo line $i; i=$((i+1)); done; touch left; exit 3"
                job = run(client, command=["sh", "-c", script])
                assert (job.state, job.exit_code) == ("error", 3), (job.reason, job.situation)
                said = b"".join(client.logs(job.jid))
                assert said == b"".join(b"line %d\n" % i for i in range(2000))
                assert job.run_dir is not None
                assert job.run_dir.startswith("/srv/sirepo_jobs/jobs/")
                assert not Path(job.run_dir).exists()
                assert place_of(tmp_path / "root", job.jid, job.user) is None
                (container,) = engine.containers()
                (found,) = json.loads(engine.docker("inspect", container))
                assert {mount["Type"] for mount in found["Mounts"]} == {"volume"}

            await asyncio.to_thread(work)
        assert engine.containers() == []
    finally:
        engine.docker("network", "rm", "far")


def doctor(path: Path, policy: Path, **environ: str) -> dict[str, dict[str, object]]:
    """What `sirepo-jobs doctor` finds, by its checks."""
    env = {
        **os.environ,
        "SIREPO_JOBS_DRIVERS": "docker",
        "SIREPO_JOBS_DOCKER_FILE": str(policy),
        "SIREPO_JOBS_BUNDLE_DIR": str(OUT),
        "SIREPO_JOBS_ROOT": str(path / "root"),
        **environ,
    }
    program = [sys.executable, "-m", "sirepo_jobs.cli", "doctor", "-o", "json"]
    done = subprocess.run(program, env=env, capture_output=True, check=False)
    return {row["check"]: row for row in json.loads(done.stdout)}


async def test_doctor_looks_at_engines(tmp_path: Path, engine: TestEngine) -> None:
    """F115, F116, S54: what is there, what is too old, what is left over, and an engine that is not there."""
    policy = write_policy(tmp_path / "docker.toml", {"here": engine}, "pull = false")
    async with docker_service(tmp_path, policy) as client:

        def work() -> None:
            assert run(client, command=["true"]).state == "completed"
            found = doctor(tmp_path, policy)
            parts = ["", " versions", " limits", " size", " space", " leftovers"]
            assert {f"engine here{part}" for part in parts} <= set(found)
            assert found["engine here"]["ok"]
            assert engine.url in str(found["engine here"]["detail"])
            assert found["engine here versions"]["ok"]
            assert found["engine here size"]["ok"]
            assert found["engine here leftovers"]["ok"], found
            assert "1 containers of ours" in str(found["engine here leftovers"]["detail"])
            # One that no agent of this service stands for, and one of somebody else.
            place = place_in(f"{tmp_path}/root/agents")
            stranger, left = (
                engine.docker("create", "--network", "none", "--label", f"{LABEL}.place={where}",
                              "--label", f"{LABEL}.agent=nobody", "bb:1", "true")
                for where in ("elsewhere", place)
            )  # fmt: skip
            text = policy.read_text()
            policy.write_text(
                f'{text}[engines.away]\nurl = "unix://{tmp_path}/no"\ncpus = 1\nmemory = "1 GiB"\n'
                '[least_versions]\nEngine = "99.0"\n'
            )
            found = doctor(tmp_path, policy)
            policy.write_text(text)
            assert not found["engine here leftovers"]["ok"]
            assert f"rm -f {left[:12]}" in str(found["engine here leftovers"]["hint"])
            assert stranger[:12] not in str(found)
            assert "is older than 99.0" in str(found["engine here versions"]["detail"])
            assert not found["engine away"]["ok"]
            assert "systemctl start docker" in str(found["engine away"]["hint"])
            engine.docker("rm", stranger, left)
            # Who is shown his own agents only takes nobody else's container for left over.
            token = tmp_path / "bobs"
            token.touch(0o600)
            token.write_text(
                client.transport.call("POST", "/api/v1/tokens", body=b'{"user": "bob"}')["token"]
            )
            found = doctor(tmp_path, policy, SIREPO_JOBS_TOKEN_FILE=str(token))
            assert found["agents"]["detail"] == "none needed yet"
            assert found["engine here leftovers"]["ok"], found

        await asyncio.to_thread(work)
    assert engine.containers() == []


async def test_an_engine_that_is_too_old_is_not_used_where_that_is_said(
    tmp_path: Path, engine: TestEngine
) -> None:
    """S54: refused before anything is made there, and tried again: somebody may upgrade it."""
    rule = 'pull = false\nold_engines = "refuse"\n[least_versions]\nrunc = "99.0.0"'
    policy = write_policy(tmp_path / "docker.toml", {"here": engine}, rule)
    driver = DockerDriver(policy_file=policy, bundle_dir=OUT)
    spec = AgentSpec(
        agent="a",
        environment=Environment(driver="docker", user="u", image="bb:1"),
        url=f"unix:{tmp_path}/s",
        token="t",
        home=f"{tmp_path}/agents/a",
        run_root=f"{tmp_path}/run",
    )
    with pytest.raises(LaunchError, match=r"runc .* is older than 99\.0\.0") as caught:
        await driver.launch(spec)
    assert caught.value.retry
    assert engine.containers() == []
