"""Puts the house together: store, drivers, supervisor, doors, signals. The only room that knows them all."""

import asyncio
import logging
import os
import secrets
import signal
import socket
import sys
from collections.abc import Iterable
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import structlog
from tornado.httpserver import HTTPServer
from tornado.web import Application

from . import agent_door, api, garbage, rootdir, tls
from .agent_door import AgentDoor
from .agent_pool import AgentPool
from .agent_talk import AgentTalk
from .cluster import ClusterPolicy
from .cluster_file import parse_policy
from .driver import Driver
from .errors import Error, StoreError
from .leases import Leases
from .login import has_logins
from .op import Need
from .retention import Retention
from .settings import Settings
from .silence import Silence
from .steady_socket import SteadySocket
from .store import Store
from .supervisor import Supervisor

_log = structlog.get_logger(__name__)

#: The writer thread must not hold the interpreter for its usual 5 ms while a job waits for an answer.
SWITCH_SECS = 0.0005
SWEEP_SECS = 15.0


def run_supervisor(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT; the exit status. Raises `Error` when it cannot start."""
    sys.setswitchinterval(SWITCH_SECS)
    os.umask(0o077)
    rootdir.prepare(settings.root)
    store = Store.open(settings.database_url)
    return asyncio.run(_serve(settings, store))


def load_drivers(settings: Settings, found: Iterable[EntryPoint] | None = None) -> dict[str, Driver]:
    """The drivers that the settings name, from the entry points of the group `sirepo_jobs.drivers`.

    Two distributions that offer one name are an error, not a first-come choice.
    """
    points: dict[str, EntryPoint] = {}
    for point in entry_points(group="sirepo_jobs.drivers") if found is None else found:
        if point.name in points and points[point.name].value != point.value:
            raise Error(
                f"driver {point.name!r} is offered twice: {points[point.name].value} and {point.value}"
            )
        points[point.name] = point
    missing = [name for name in settings.drivers if name not in points]
    if missing:
        raise Error(f"no driver {missing[0]!r} is installed; there are: {', '.join(sorted(points))}")
    return {name: points[name].load()(**_options(name, settings)) for name in settings.drivers}


def _options(name: str, settings: Settings) -> dict[str, Any]:
    """What a driver is made with."""
    if name == "docker":
        return {
            "policy_file": settings.docker_file,
            "bundle_dir": settings.bundle_dir,
            "socket": str(settings.root / rootdir.AGENT_SOCKET),
            "agents_dir": str(settings.root / "agents"),
        }
    if name != "sbatch":
        return {"cpus": settings.local_cpus}
    ca_file = settings.agent_ca_file
    return {
        "clusters": _clusters(settings.clusters_dir),
        "bundle_dir": settings.bundle_dir,
        "state_dir": settings.root / "clusters",
        "ca_pem": tls.authorities(ca_file) if ca_file else None,
    }


def _clusters(directory: Path | None) -> dict[str, ClusterPolicy]:
    """The policies of a directory. Raises `Error`: a cluster that is not understood is not left out."""
    if directory is None:
        raise Error("driver 'sbatch' needs the setting clusters_dir: a directory of files NAME.toml")
    try:
        files = sorted(directory.glob("*.toml"))
        policies = [parse_policy(file.stem, file.read_text()) for file in files]
    except (OSError, UnicodeDecodeError) as exc:
        raise Error(f"clusters_dir {directory} cannot be read: {exc}") from None
    return {policy.name: policy for policy in policies}


async def _serve(settings: Settings, store: Store) -> int:
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[int] = loop.create_future()

    def stop(status: int, why: str) -> None:
        _log.info("stopping", why=why)
        if not ended.done():
            ended.set_result(status)
        elif why != "store":
            # said twice: less patient. What is committed is safe, and nothing else was promised (C14)
            _log.warning("ending at once", why=why)
            logging.shutdown()
            os._exit(1)

    def fatal(error: StoreError) -> None:
        # not one more answer: what is not durable was not promised (C14)
        _log.critical("the store failed; start again when it is mended", why=str(error))
        stop(1, "store")

    pid_file = rootdir.PidFile(settings.root / rootdir.SUPERVISOR_PID)
    pid_file.hold()
    drivers = load_drivers(settings)
    door = _agent_door(settings, drivers)
    store.start(loop, fatal)
    secret = _secret(settings.root)
    supervisor, talk = _make_supervisor(settings, store, secret, drivers, door)
    await supervisor.recover()
    server = _listen(settings, supervisor, talk, secret)
    contained = _listen_to_contained(settings, supervisor, talk)
    if door is not None:
        door.serve(supervisor, talk)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, partial(stop, 0, signal.Signals(number).name))
    supervisor.tasks.ensure("sweep", partial(_sweep, supervisor, settings))
    supervisor.tasks.ensure("leases", Leases(supervisor, talk).watch)
    silence = Silence(supervisor, talk, patience_secs=settings.silence_secs)
    supervisor.tasks.ensure("silence", silence.watch)
    garbage.settle()
    _log.info("supervisor serves", root=str(settings.root), epoch=store.epoch, instance=store.instance)
    try:
        return await ended
    finally:
        server.stop()
        contained.stop()
        if door is not None:
            door.close()
        await supervisor.tasks.close()
        for driver in drivers.values():
            if has_logins(driver):
                await driver.close()
        supervisor.commits.close()
        await store.close()
        pid_file.release()


def _agent_door(settings: Settings, drivers: dict[str, Driver]) -> AgentDoor | None:
    """The door for agents on other machines, bound, if the settings name one."""
    if not settings.agent_host:
        if far := [name for name, driver in drivers.items() if driver.remote]:
            raise Error(
                f"agents of driver {far[0]!r} call from other machines and have no door: set agent_host to an"
                " address that they can reach, and agent_tls_cert_file and agent_tls_key_file"
            )
        return None
    cert, key = settings.agent_tls
    return AgentDoor(
        settings.agent_host,
        settings.agent_port,
        url=settings.agent_url,
        tls=tls.server_context(cert, key) if cert else None,
        ca_pem=tls.authorities(settings.agent_ca_file) if settings.agent_ca_file else None,
    )


def _make_supervisor(
    settings: Settings, store: Store, secret: str, drivers: dict[str, Driver], door: AgentDoor | None
) -> tuple[Supervisor, AgentTalk]:
    def make_agents(supervisor: Supervisor) -> AgentPool:
        return AgentPool(
            root=settings.root,
            url=f"unix:{settings.agent_socket or settings.root / rootdir.SOCKET}",
            drivers=drivers,
            commits=supervisor.commits,
            tasks=supervisor.tasks,
            secret=secret.encode(),
            wake=supervisor.wake_agent,
            is_wanted=lambda agent: supervisor.ops.waiting_for((Need.AGENT, agent.key)) > 0,
            out_of_reach=lambda agent: talk.out_of_reach(agent),
            pass_env=settings.pass_env,
            refused=supervisor.agent_refused,
            remote_url=door.url if door else "",
            ca_pem=door.ca_pem if door else None,
        )

    supervisor = Supervisor(
        store,
        make_agents,
        job_cache=settings.job_cache_size,
        queue_window=settings.queue_window,
        max_output_bytes=settings.max_output_bytes,
        max_processes=settings.max_processes,
    )
    talk = AgentTalk(supervisor, heartbeat_secs=settings.heartbeat_secs)
    return supervisor, talk


def _listen(settings: Settings, supervisor: Supervisor, talk: AgentTalk, secret: str) -> HTTPServer:
    application = Application(
        [
            *api.routes(api.House(supervisor, secret)),
            agent_door.route(supervisor, talk),
        ],
        log_function=lambda _handler: None,
        **agent_door.WEBSOCKET,
    )
    server = HTTPServer(
        application,
        max_body_size=settings.max_body_bytes * 2,
        max_buffer_size=settings.max_body_bytes * 2 + (1 << 20),
    )
    # Only our own front ends and agents get here, and they keep their connections: nobody is timed.
    server.conn_params.header_timeout = None
    server.add_socket(_unix_socket(settings.root))
    return server


def _listen_to_contained(settings: Settings, supervisor: Supervisor, talk: AgentTalk) -> HTTPServer:
    """Where agents in containers call: a socket in a directory of its own, with nothing else behind it.

    SECURITY: the directory is what containers see. Everybody in one may knock; the token decides. On this
    machine nobody else gets here, since the root is closed.
    """
    path = settings.root / rootdir.AGENT_SOCKET
    path.parent.mkdir(mode=0o711, exist_ok=True)
    path.parent.chmod(0o711)
    server = HTTPServer(
        Application(
            [agent_door.route(supervisor, talk)], log_function=lambda _: None, **agent_door.WEBSOCKET
        ),
        max_header_size=agent_door.MAX_HEADER_BYTES,
        max_body_size=0,
        idle_connection_timeout=agent_door.PATIENCE_SECS,
    )
    server.add_socket(_unix_socket(path.parent, path.name, 0o666))
    return server


def _unix_socket(root: Path, name: str = rootdir.SOCKET, mode: int = 0o600) -> socket.socket:
    """Listen on a socket. Bound through a descriptor, since a path may have 107 bytes only."""
    directory = os.open(root, os.O_DIRECTORY | os.O_RDONLY)
    try:
        path = root / name
        path.unlink(missing_ok=True)
        server = SteadySocket(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        server.bind(f"/proc/self/fd/{directory}/{name}")
        path.chmod(mode)
        server.listen(1024)
        return server
    finally:
        os.close(directory)


def _secret(root: Path) -> str:
    """The installation's own secret, made at its first start."""
    path = root / rootdir.SECRET
    if not path.exists():
        rootdir.replace_file(path, secrets.token_urlsafe(32).encode() + b"\n")
    return path.read_text().strip()


async def _sweep(supervisor: Supervisor, settings: Settings) -> None:
    idle_secs = settings.agent_idle_secs
    retention = Retention(
        supervisor.store,
        supervisor.commits,
        supervisor.tokens,
        supervisor.now,
        keys_secs=settings.idempotency_keep_secs,
        dead_tokens_secs=settings.dead_token_keep_secs,
    )
    while True:
        await asyncio.sleep(min(SWEEP_SECS, max(idle_secs / 2, 0.1)))
        supervisor.agents.sweep(idle_secs)
        await retention.forget()
