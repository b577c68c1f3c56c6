"""The options that describe a job, and the spec that they make."""

import os
from collections.abc import Callable
from typing import Any, TypeVar

import click

_Command = TypeVar("_Command", bound=Callable[..., Any])

_OPTIONS = (
    click.option("--name", help="A name for people."),
    click.option("--jid", help="Choose the job's id yourself."),
    click.option("--cpus", "-c", type=int, help="Cpus it needs."),
    click.option("--memory", "-m", metavar="SIZE", help="Memory it needs: 512MiB, 4G."),
    click.option("--gpus", type=int, help="Gpus it needs."),
    click.option(
        "--time-limit",
        "-t",
        metavar="TIME",
        help="End it after 90s, 30m, 1h 30m or 01:30:00: TERM, then KILL.",
    ),
    click.option("--hard-limit", metavar="TIME", help="KILL it at once after so long."),
    click.option("--grace", metavar="TIME", help="Time between TERM and KILL."),
    click.option("--max-output", metavar="SIZE", help="End it when stdout and stderr have more: 1GB."),
    click.option("--max-processes", type=int, help="End it when it has more processes and threads."),
    click.option(
        "--env", "-e", metavar="NAME=VALUE", multiple=True, help="Set a variable; NAME alone takes yours."
    ),
    click.option("--driver", help="Where it runs: local, ..."),
    click.option("--cluster", help="Slurm cluster, for driver sbatch."),
    click.option(
        "--slurm",
        metavar="NAME=VALUE",
        multiple=True,
        help="What it asks of Slurm: partition=debug, nodes=2, ntasks=64, time=1h, srun=true, ...",
    ),
    click.option("--image", help="Container image to run it in."),
    click.option("--shm", metavar="SIZE", help="Shared memory of its container: 1G."),
    click.option("--tag", metavar="NAME=VALUE", multiple=True, help="A label to find it by."),
    click.option("--priority", "-p", type=click.IntRange(0, 10), help="0 to 10; 5 is usual."),
    click.option("--queue", "-q", help="Queue to wait in."),
    click.option("--max-attempts", type=int, help="Try so often before giving up."),
    click.option(
        "--retry-on",
        metavar="REASON",
        multiple=True,
        help="Try again only for this reason: OUT_OF_MEMORY, ...",
    ),
    click.option(
        "--on-lost",
        type=click.Choice(["wait", "requeue", "fail"]),
        help="When its agent stays out of reach: wait for it (usual), run it again, or give up.",
    ),
    click.option("--lost-after", metavar="TIME", help="For --on-lost: after so long; usually 5m."),
    click.option(
        "--progress", type=click.Choice(["jsonl"]), help="The job writes its progress as JSON lines."
    ),
    click.option(
        "--idempotency-key", metavar="KEY", help="Sending the same job twice with this key makes one job."
    ),
)


#: Options that are named like their field.
_PLAIN = (
    *("name", "jid", "driver", "cluster", "image", "priority", "queue", "max_attempts", "progress"),
    *("on_lost", "lost_after", "shm"),
)


#: Of `--slurm`: texts, even if they look like numbers.
_NAMES = ("partition", "account", "qos", "constraint")


def spec_options(command: _Command) -> _Command:
    """Add the options; `make_spec` takes them all."""
    for decorate in reversed(_OPTIONS):
        command = decorate(command)
    return command


def make_spec(command: tuple[str, ...], options: dict[str, Any]) -> dict[str, Any]:
    """The spec that the options say, without anything that they do not.

    Units stay texts and values unchecked: the service has one place that reads them.
    """
    spec: dict[str, Any] = {"command": list(command)}
    for name in _PLAIN:
        spec[name] = options.get(name)
    spec["resources"] = _given({name: options.get(name) for name in ("cpus", "memory", "gpus")})
    spec["limits"] = _given(
        {
            "soft": options.get("time_limit"),
            "hard": options.get("hard_limit"),
            "grace": options.get("grace"),
            "output": options.get("max_output"),
            "processes": options.get("max_processes"),
        }
    )
    spec["slurm"] = {
        name: value if name in _NAMES else _typed(value)
        for name, value in (_pair("--slurm", text) for text in options.get("slurm", ()))
    }
    spec["env"] = dict(_variable(text) for text in options.get("env", ()))
    spec["tags"] = dict(_pair("--tag", text) for text in options.get("tag", ()))
    spec["retry_on"] = list(options.get("retry_on", ()))
    return _given(spec)


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value not in (None, {}, [])}


def _pair(option: str, text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise click.BadParameter(f"{text!r} is not NAME=VALUE", param_hint=option)
    return name, value


def _typed(value: str) -> str | int | bool:
    """A number or a truth where it looks like one; the service knows which it must be."""
    if value in ("true", "false"):
        return value == "true"
    return int(value) if value.isdecimal() else value


def _variable(text: str) -> tuple[str, str]:
    if "=" in text:
        return _pair("--env", text)
    if text not in os.environ:
        raise click.BadParameter(f"{text!r} is not set here; write {text}=VALUE", param_hint="--env")
    return text, os.environ[text]
