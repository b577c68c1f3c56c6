"""`cancel`, `hold`, `release`, `retry`, `suspend`, `resume`: telling jobs what to do, one or many."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import click

from sirepo_jobs.errors import Error

from . import render
from .selectors import Chosen, select, selecting
from .surroundings import Surroundings, options
from .trouble import Trouble, exit_status, tell

if TYPE_CHECKING:
    from sirepo_jobs.client import Client


def tell_each(
    here: Surroundings,
    names: Iterable[str],
    act: Callable[[str], dict[str, Any]],
    *,
    kind: str = "jid",
    state: Callable[[dict[str, Any]], str] = lambda answer: str(answer["state"]),
) -> int:
    """Ask it of each job or other `kind` of thing, whatever the others answer; the worst status.

    `act` gives the answer as JSON has it, which carries the name under `kind`.
    """
    status = 0
    answers: list[dict[str, Any]] = []
    for name in names:
        try:
            answer = act(name)
        except Error as exc:  # the others are told all the same
            status = max(status, exit_status(exc))
            if here.json:
                answers.append({kind: name, "error": Trouble.of_error(exc).as_json()})
            else:
                tell(here, Trouble.of_error(exc))
            continue
        answers.append(answer)
        if not here.json:
            print(render.safe(f"{answer[kind]} {state(answer)}"))
    if here.json:
        render.values(here.output, answers)
    return status


def _verb(name: str, states: str, help_text: str) -> click.Command:
    @click.command(name, help=help_text)
    @selecting
    @options
    @click.pass_obj
    def command(
        here: Surroundings,
        jids: tuple[str, ...],
        filters: tuple[str, ...],
        tag: tuple[str, ...],
        everything: bool,
    ) -> int:
        client: Client = here.client()
        chosen = select(client, Chosen(jids, filters, tag, everything), states)
        act = getattr(client, name.replace("-", "_"))
        return tell_each(here, chosen, lambda jid: act(jid).raw)

    return command


cancel_command = _verb(
    "cancel",
    "active",
    "End jobs: TERM to all of their processes, KILL to what is left after the grace time.",
)
hold_command = _verb(
    "hold",
    "inactive,pending,starting,running,suspended",
    "Keep jobs from running until they are released; those that run are ended first.",
)
release_command = _verb("release", "held", "Let held jobs go on.")
retry_command = _verb("retry", "error,canceled", "Run jobs again that have ended.")
declare_lost_command = _verb(
    "declare-lost",
    "lost",
    "Say that the present attempt of jobs whose agent is out of reach is no more (operators only).",
)
suspend_command = _verb(
    "suspend", "running", "Stop the processes of running jobs; they keep memory and place until `resume`."
)
resume_command = _verb("resume", "suspended", "Let the processes of suspended jobs go on.")
