"""`token create|list|revoke`: who may use the service, and for how long."""

from pathlib import Path
from typing import Any

import click

from sirepo_jobs.errors import Conflict
from sirepo_jobs.resources import parse_secs
from sirepo_jobs.tokens import Role, Scope

from . import render
from .group import Group
from .surroundings import Surroundings, options

_SCOPES = [scope.value for scope in Scope if scope is not Scope.SELF]


@click.group("token", cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@options
def token_command() -> None:
    """Make, list and revoke tokens of users and programs."""


@token_command.command("create")
@click.argument("user")
@click.option("--role", type=click.Choice([role.value for role in Role]), default="user", show_default=True)
@click.option("--scope", "scopes", multiple=True, type=click.Choice(_SCOPES), help="Only this; repeatable.")
@click.option("--name", default="", help="What it is for.")
@click.option("--expires", default="30d", show_default=True, metavar="TIME", help="Valid for so long.")
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE", help="Write it there, mode 0600.")
@options
@click.pass_obj
def create_command(
    here: Surroundings,
    user: str,
    role: str,
    scopes: tuple[str, ...],
    name: str,
    expires: str,
    out: Path | None,
) -> int:
    """Make a token for USER. It is shown once, here, and kept nowhere."""
    if out is not None and out.exists():
        raise Conflict(f"{out} is there already; name another file", code="file_exists")
    made = here.client().create_token(
        user, role=role, scopes=scopes, name=name, expires_in=parse_secs(expires)
    )
    if out is not None:
        from sirepo_jobs import rootdir

        rootdir.replace_file(out, made.pop("token").encode() + b"\n")
    if here.json:
        render.value(here.output, made)
    elif out is None:
        print(made["token"])
        click.echo(f"token {made['id']} of {user} is valid until {made['expires_at']}", err=True)
    else:
        print(f"token {made['id']} of {user} is in {out}, valid until {made['expires_at']}")
    return 0


@token_command.command("list")
@click.option("--user", help="Only those of this user.")
@click.option("--all", "-a", "everything", is_flag=True, help="Also expired and revoked ones.")
@options
@click.pass_obj
def list_command(here: Surroundings, user: str | None, everything: bool) -> int:
    """List tokens, the newest first; never the secrets in them."""
    tokens = [token for token in here.client().tokens(user) if everything or token["valid"]]
    if here.json:
        render.values(here.output, tokens)
    else:
        render.table(
            ("TOKEN", "USER", "ROLE", "NAME", "STATE", "EXPIRES", "LAST USED"),
            (
                (
                    token["id"],
                    token["user"],
                    token["role"],
                    token["name"] or "-",
                    _state(token),
                    token["expires_at"][:10],
                    token["last_used_on"] or "never",
                )
                for token in tokens
            ),
            first_to_go=("LAST USED", "ROLE"),
        )
    return 0


@token_command.command("revoke")
@click.argument("tokens", nargs=-1, required=True, metavar="TOKEN...")
@options
@click.pass_obj
def revoke_command(here: Surroundings, tokens: tuple[str, ...]) -> int:
    """End tokens for good, by the id that `list` shows; open streams end within 5 seconds."""
    client = here.client()
    revoked = [client.revoke_token(token) for token in tokens]
    if here.json:
        render.values(here.output, revoked)
    else:
        for token in revoked:
            print(f"token {token['id']} of {render.safe(token['user'])} is revoked")
    return 0


def _state(token: dict[str, Any]) -> str:
    return "valid" if token["valid"] else "revoked" if token["revoked_at"] else "expired"
