"""A real nginx with TLS and a path prefix before the front end, as etc/nginx/sirepo-jobs.conf has it."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urljoin, urlsplit

import pytest
import urllib3

from tests.acceptance.conftest import System, eventually

ROOT = Path(__file__).parents[2]
SERVICE = str(ROOT / "bin" / "dev-services")
PUBLIC = "https://jobs.example.org/compute"
JOBS = "/api/v1/jobs"


class Site(NamedTuple):
    system: System
    #: What clients call it: `https://localhost:PORT/compute`.
    url: str
    ca_file: str

    @property
    def token(self) -> str:
        return (self.system.root / "token").read_text().strip()

    def ask(
        self, method: str, url: str, body: object = None, *, stream: bool = False, **headers: str
    ) -> urllib3.BaseHTTPResponse:
        """A request through nginx; `url` may be a path behind the prefix."""
        sent = {
            "Authorization": f"Bearer {self.token}",
            **{k.replace("_", "-"): v for k, v in headers.items()},
        }
        pool = urllib3.PoolManager(ca_certs=self.ca_file, retries=False)
        full = url if url.startswith("https:") else self.url + url
        data = None if body is None else json.dumps(body).encode()
        return pool.request(method, full, body=data, headers=sent, preload_content=not stream, timeout=60)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    path = tmp_path_factory.mktemp("nginx")
    system = System(path / "root", SIREPO_JOBS_PUBLIC_URL=PUBLIC)
    system.up()
    folder = str(path / "service")
    env = {**os.environ, "UPSTREAM": system.url.removeprefix("http://")}
    try:
        done = subprocess.run([SERVICE, "nginx", "start", folder], env=env, capture_output=True, text=True)
        if done.returncode:
            if os.environ.get("CI") == "true":
                pytest.fail(f"no nginx: {done.stderr}")
            pytest.skip(f"no nginx: {done.stderr[-300:]}")
        said = dict(line.split("=", 1) for line in done.stdout.splitlines())
        yield Site(system, said["url"], said["ca_file"])
    finally:
        subprocess.run([SERVICE, "nginx", "remove", folder], check=True)
        system.down("--stop-agents")


def test_the_command_line_works_through_it(site: Site, tmp_path: Path) -> None:
    far = System(tmp_path / "elsewhere", SIREPO_JOBS_URL=site.url, SIREPO_JOBS_CA_FILE=site.ca_file)
    far.environ["SIREPO_JOBS_TOKEN_FILE"] = str(site.system.root / "token")
    done = far.cli("run", "--", "/bin/sh", "-c", "echo hello; exit 3", check=False)
    assert (done.stdout, done.returncode) == (b"hello\n", 3), done.stderr


def test_places_are_right_under_the_prefix(site: Site) -> None:
    made = [site.ask("POST", JOBS, {"command": ["/bin/true"], "queue": "paged"}) for _ in range(3)]
    assert [reply.status for reply in made] == [201] * 3
    location = made[0].headers["Location"]
    assert location.startswith(f"/compute{JOBS}/")
    assert site.ask("GET", urljoin(site.url, location)).json()["jid"] == made[0].json()["jid"]
    document = site.ask("GET", "/openapi.json").json()
    assert document["servers"] == [{"url": PUBLIC}]
    # from page to page, by nothing but what each page says
    url, seen = f"{site.url}{JOBS}?limit=1&queue=paged&fields=jid", []
    while url:
        page = site.ask("GET", url)
        seen += [job["jid"] for job in page.json()["jobs"]]
        link = page.headers.get("Link", "")
        assert bool(link) == (page.json()["next_cursor"] is not None)
        url = urljoin(url, link[1:].partition(">")[0]) if link else ""
    assert seen == [reply.json()["jid"] for reply in reversed(made)]
    for outside in ("/healthz", "/openapi.json", JOBS):
        there = urlsplit(site.url)
        assert site.ask("GET", f"{there.scheme}://{there.netloc}{outside}").status == 404


def test_what_flows_is_not_kept_back(site: Site, tmp_path: Path) -> None:
    """Each line is read before the job is told to write the next: nothing between may wait for more."""
    gate = tmp_path / "gate"
    script = f"echo one; while [ ! -e {gate} ]; do sleep 0.02; done; echo two"
    events = site.ask("GET", "/api/v1/events?after=0", stream=True)
    assert events.headers["Content-Type"] == "text/event-stream"
    jid = site.ask("POST", JOBS, {"command": ["/bin/sh", "-c", script]}).json()["jid"]
    log = site.ask("GET", f"{JOBS}/{jid}/logs/stdout?follow=1", stream=True)
    lines = log.stream(4)
    assert next(lines) == b"one\n"
    text, pieces = b"", events.stream(1)
    while jid.encode() not in text or b'"running"' not in text.partition(jid.encode())[2]:
        text += next(pieces)
    gate.touch()
    assert b"".join(lines) == b"two\n"
    while b'"completed"' not in text.rpartition(jid.encode())[2]:
        text += next(pieces)
    events.close()
    # a blocking query waits, and ends with the job
    version = site.ask("GET", f"{JOBS}/{jid}").json()["version"]
    assert site.ask("GET", f"{JOBS}/{jid}?wait=200ms&version={version}").json()["version"] == version


def test_downloads(site: Site) -> None:
    size = 3_000_000
    odd = "a b#%2f?é.bin"
    script = f'head -c {size} /dev/urandom > big.bin; cp big.bin "$0"'
    jid = site.ask("POST", JOBS, {"command": ["/bin/sh", "-c", script, odd]}).json()["jid"]
    eventually(lambda: site.ask("GET", f"{JOBS}/{jid}").json()["state"] == "completed", 60)
    files = {f["path"]: f["url_path"] for f in site.ask("GET", f"{JOBS}/{jid}/files").json()["files"]}
    whole = site.ask("GET", f"{JOBS}/{jid}/files/big.bin")
    assert (whole.status, len(whole.data)) == (200, size)
    assert whole.headers["Content-Disposition"].startswith("attachment")
    assert site.ask("GET", f"{JOBS}/{jid}/files/{files[odd]}").data == whole.data
    etag = whole.headers["ETag"]
    part = site.ask("GET", f"{JOBS}/{jid}/files/big.bin", Range="bytes=1000000-", If_Range=etag)
    assert (part.status, part.headers["Content-Range"]) == (206, f"bytes 1000000-{size - 1}/{size}")
    assert part.data == whole.data[1_000_000:]
    assert site.ask("GET", f"{JOBS}/{jid}/files/big.bin", If_None_Match=etag).status == 304
    assert site.ask("GET", f"{JOBS}/{jid}/files/big.bin", Range=f"bytes={size}-").status == 416
    head = site.ask("HEAD", f"{JOBS}/{jid}/files/big.bin")
    assert (head.status, head.headers["Content-Length"], head.data) == (200, str(size), b"")
    assert site.ask("GET", f"{JOBS}/{jid}/files?archive=zip").data[:2] == b"PK"
    far = System(site.system.root.parent / "far", SIREPO_JOBS_URL=site.url, SIREPO_JOBS_CA_FILE=site.ca_file)
    far.environ["SIREPO_JOBS_TOKEN_FILE"] = str(site.system.root / "token")
    target = site.system.root.parent / "got.bin"
    far.cli("get", jid, "big.bin", str(target))
    assert target.read_bytes() == whole.data


def test_what_it_must_not_let_through(site: Site) -> None:
    reply = site.ask("GET", JOBS)
    assert reply.headers["Strict-Transport-Security"] == "max-age=31536000"
    assert reply.headers["X-Content-Type-Options"] == "nosniff"
    assert "Server" not in reply.headers or "/" not in reply.headers["Server"]
    own = site.url.rpartition("/")[0]
    assert site.ask("GET", JOBS, Origin=own).status == 200
    assert site.ask("GET", JOBS, Origin=PUBLIC.rpartition("/")[0]).status == 200
    assert site.ask("GET", "/api/v1/events", Origin="https://evil.example").status == 403
    assert (
        site.ask("GET", JOBS, X_Proxy_Secret="x" * 43, X_Remote_User="root", Authorization="").status == 401
    )
    for path in ("/../secret", "/x/../../healthz", "/%2e%2e/healthz", f"{JOBS}/%2e%2e/%2e%2e/token"):
        pool = urllib3.HTTPSConnectionPool("localhost", urlsplit(site.url).port, ca_certs=site.ca_file)
        raw = pool.urlopen("GET", f"/compute{path}", headers={"Authorization": f"Bearer {site.token}"})
        assert raw.status == 404, path
    large = {"jobs": [{"command": ["/bin/true"], "env": {"A": "x" * 100_000}}] * 200}  # 20 MB
    refused = site.ask("POST", JOBS, large)
    assert (refused.status, refused.json()["code"]) == (413, "body_too_large")


AGENTS_PROXY = """
pid {folder}/nginx.pid;
error_log {folder}/error.log warn;
worker_processes 1;
{user}
events {{ worker_connections 64; }}
http {{
    access_log {folder}/access.log;
    server {{
        listen unix:{folder}/agents;
        location / {{
            proxy_pass http://unix:{socket};
            proxy_http_version 1.1;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection upgrade;
            proxy_read_timeout {idle}s;
            proxy_send_timeout {idle}s;
        }}
    }}
}}
"""


@pytest.mark.parametrize(("heartbeat_secs", "idle_secs", "is_kept"), [(0.25, 5, True), (60, 1, False)])
def test_an_agent_behind_a_proxy_that_closes_what_is_idle(
    site: Site, tmp_path: Path, heartbeat_secs: float, idle_secs: int, is_kept: bool
) -> None:
    """F070: heartbeats keep the line; where they are too rare it is cut again and again; no job notices."""
    nginx = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    assert nginx is not None, "the site has one"
    system = System(
        tmp_path / "root",
        SIREPO_JOBS_AGENT_SOCKET=str(tmp_path / "agents"),
        SIREPO_JOBS_HEARTBEAT_SECS=str(heartbeat_secs),
    )
    config = AGENTS_PROXY.format(
        folder=tmp_path,
        socket=system.root / "supervisor.sock",
        idle=idle_secs,
        user="" if os.geteuid() else "user root;",
    )
    (tmp_path / "nginx.conf").write_text(config)
    proxy = subprocess.Popen([nginx, "-c", str(tmp_path / "nginx.conf"), "-g", "daemon off;"])
    try:
        eventually((tmp_path / "agents").exists, 60)
        system.up()
        client = system.client()
        job = client.wait(client.submit({"command": ["sleep", str(idle_secs + 2)]}).jid, timeout=60)
        assert (job.state, job.exit_code, job.attempt) == ("completed", 0, 1)
    finally:
        system.down("--stop-agents")
        proxy.terminate()
        proxy.wait()
    lines = [line for line in (tmp_path / "access.log").read_text().splitlines() if '" 101 ' in line]
    assert (len(lines) == 1) == is_kept, lines
