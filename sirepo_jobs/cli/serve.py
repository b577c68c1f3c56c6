"""`supervisor` and `frontend`: the two long-lived processes, each alone. `up` starts both."""

import os
import signal
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

from sirepo_jobs.errors import Error

from .surroundings import Surroundings, options

_Command = TypeVar("_Command", bound=Callable[..., Any])
_PR_SET_PDEATHSIG = 1

_OPTIONS = (
    click.option("--port", type=int, help="Port of the front end; 0 picks one."),
    click.option("--host", help="Address of the front end; 127.0.0.1 by default."),
    click.option("--tls-cert-file", metavar="FILE", help="Certificate chain of the front end."),
    click.option("--tls-key-file", metavar="FILE", help="Its private key."),
    click.option("--insecure-i-know", is_flag=True, default=None, help="Serve other machines without TLS."),
    click.option("--cpus", "local_cpus", type=int, help="Cpus that the local driver gives to jobs."),
    click.option("--drivers", help="Drivers to offer: local,docker."),
    click.option(
        "--agent-idle", "agent_idle_secs", metavar="TIME", help="Stop agents without work after so long."
    ),
    click.option(
        "--heartbeat", "heartbeat_secs", metavar="TIME", help="Time between heartbeats of an agent."
    ),
    click.option("--log-level", help="debug, info, warning or error."),
    click.option("--log-format", help="auto, json or console."),
)


def setting_options(command: _Command) -> _Command:
    """Options for settings that people change; all others come from the environment or a file."""
    for decorate in reversed(_OPTIONS):
        command = decorate(command)
    return command


_under_up = click.option("--under", type=int, hidden=True, metavar="PID", help="End when this parent ends.")


@click.command("supervisor")
@setting_options
@_under_up
@options
@click.pass_obj
def supervisor_command(here: Surroundings, /, under: int | None, **flags: Any) -> int:
    """Run the supervisor alone, in the foreground."""
    settings = _prepare(here, under, flags)
    from sirepo_jobs.app import run_supervisor

    return run_supervisor(settings)


@click.command("frontend")
@setting_options
@_under_up
@options
@click.pass_obj
def frontend_command(here: Surroundings, /, under: int | None, **flags: Any) -> int:
    """Run a front end alone, in the foreground. Says `listening on URL` when it is ready."""
    settings = _prepare(here, under, flags)
    from sirepo_jobs.frontend.rates import Rates
    from sirepo_jobs.frontend.server import run_frontend

    return run_frontend(
        settings.root,
        settings.host,
        settings.port,
        settings.max_body_bytes,
        proxy_secret_file=settings.proxy_secret_file,
        tls_cert_file=settings.tls_cert_file,
        tls_key_file=settings.tls_key_file,
        rates=Rates(settings.rate_per_sec, settings.rate_burst),
        max_user_requests=settings.max_user_requests,
        public_url=settings.public_url,
        allowed_origins=settings.allowed_origins,
    )


def _prepare(here: Surroundings, under: int | None, flags: dict[str, Any]) -> Any:
    if under is not None:
        end_with_parent(under)
    settings = here.settings(**flags).settings
    from sirepo_jobs import logs

    logs.setup(settings.log_level, settings.log_format)
    return settings


def end_with_parent(pid: int) -> None:
    """Get TERM when the parent ends, however it ends. Children of ours do not inherit this."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != pid:
        raise Error(f"the parent {pid} has ended already")
