"""`cluster list|login|logout|check`: Slurm clusters, and logging in there."""

import getpass
import os
import sys
from pathlib import Path
from typing import Any

import click

from sirepo_jobs.errors import Error

from . import render
from .group import Group
from .surroundings import Surroundings, options


class LoginFailed(Error):
    """The cluster did not let us in."""

    code = "login_failed"
    http_status = 401


@click.group("cluster", cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@options
def cluster_command() -> None:
    """Slurm clusters: which there are, logging in, whether all is well."""


@cluster_command.command("list")
@options
@click.pass_obj
def list_command(here: Surroundings) -> int:
    """Every cluster and how it stands for you."""
    clusters = here.client().clusters()
    if here.json:
        render.values(here.output, clusters)
        return 0
    for cluster in clusters:
        print(f"{cluster['name']:<16} {cluster['state']:<15} {cluster['username']}@{cluster['host']}")
        for line in filter(None, (cluster["description"], cluster["message"])):
            print(f"  {line}")
    if not clusters:
        click.echo("there are none; see docs/slurm.md", err=True)
    return 0


@cluster_command.command("login")
@click.argument("name")
@click.option("--username", default="", help="Your user there; default: as the cluster's policy says.")
@click.option(
    "--key",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Log in with this private key. It is sent to the service, used once and forgotten.",
)
@options
@click.pass_obj
def login_command(here: Surroundings, name: str, username: str, key: Path | None) -> int:
    """Log in to cluster NAME; what it asks is asked here, and kept nowhere."""
    order = {"username": username}
    if key is not None:
        order["private_key"] = key.read_text()
        if "ENCRYPTED" in order["private_key"] or "bcrypt" in _inside(order["private_key"]):
            order["passphrase"] = _secret(f"Passphrase of {key}: ")
    client = here.client()
    view = client.login(name, order)
    said = ""
    while view["state"] in ("asking", "working"):
        answers = []
        if view["state"] == "asking":
            if view["message"] not in ("", said):
                said = view["message"]
                click.echo(said, err=True)
            answers = [_ask(prompt) for prompt in view["prompts"]]
        view = client.answer_login(name, view["login"], answers)
    if view["state"] != "connected":
        raise LoginFailed(view["message"])
    render.value(here.output, view) if here.json else print(view["message"])
    return 0


def _inside(key: str) -> str:
    """The beginning of an OpenSSH key, which names its cipher."""
    import base64

    lines = key.strip().splitlines()[1:-1]
    try:
        return base64.b64decode("".join(lines)[:120], validate=False).decode("latin-1")
    except ValueError:
        return ""


def _ask(prompt: dict[str, Any]) -> str:
    text = str(prompt["text"]).strip()
    if not prompt["echo"]:
        return _secret(f"{text} ")
    answer: str = click.prompt(text, prompt_suffix=" ", err=True)
    return answer


def _secret(text: str) -> str:
    """From the terminal without echo; from a pipe, one line each."""
    if os.isatty(0):
        return getpass.getpass(text)
    click.echo(text, err=True)
    return sys.stdin.readline().rstrip("\n")


@cluster_command.command("logout")
@click.argument("name")
@options
@click.pass_obj
def logout_command(here: Surroundings, name: str) -> int:
    """End the connection to cluster NAME; your jobs there go on."""
    view = here.client().logout(name)
    render.value(here.output, view) if here.json else print(f"logged out of {name}")
    return 0


@cluster_command.command("check")
@click.argument("name")
@options
@click.pass_obj
def check_command(here: Surroundings, name: str) -> int:
    """Look at everything that a job on cluster NAME will need; exit status 1 when something is amiss."""
    answer = here.client().check_cluster(name)
    checks = answer["checks"]
    if here.json:
        render.value(here.output, answer)
    else:
        for check in checks:
            mark = {True: "ok", False: "FAILED", None: "-"}[check["ok"]]
            print(f"{mark:<7} {check['name']:<10} {check['message']}")
            if check["hint"]:
                print(f"{'':<19}-> {check['hint']}")
    return 0 if all(check["ok"] for check in checks) else 1
