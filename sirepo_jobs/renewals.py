"""Heartbeats are confirmed, and leases with them, only by a supervisor whose the store is (C9, C15, I29).

One that was frozen while another took the store over does not know it. If it went on confirming, agents
would keep attempts alive that its successor has every reason to call over. So the store is asked between a
heartbeat and its confirmation. How long the confirmation is on its way is no matter: the agent counts from
the heartbeat.
"""

import structlog

from . import protocol
from .agent_claim import Agent, Line, boot_secs
from .errors import StoreError, Unavailable
from .supervisor import Supervisor

_log = structlog.get_logger(__name__)


class Renewals:
    """Heartbeats that wait for their confirmation: one question to the store is for all of them."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._waiting: dict[Agent, tuple[Line, int]] = {}

    def ask(self, agent: Agent, n: int) -> None:
        """Confirm the `n`-th heartbeat of a connected agent as soon as that may be done."""
        if agent.line is None:
            return
        if not agent.ops:
            _confirm(agent, agent.line, n)  # nothing of it has a lease
            return
        self._waiting[agent] = (agent.line, n)
        self._supervisor.tasks.ensure("confirm heartbeats", self._confirm_all)

    async def _confirm_all(self) -> None:
        while self._waiting:
            waiting, self._waiting = self._waiting, {}
            try:
                await self._supervisor.store.check_ours()
            except Unavailable as exc:
                _log.warning("heartbeats are not confirmed", agents=len(waiting), why=str(exc))
            except StoreError:
                return  # the store has said so to whom it concerns
            else:
                for agent, (line, n) in waiting.items():
                    _confirm(agent, line, n)


def _confirm(agent: Agent, line: Line, n: int) -> None:
    if agent.line is line:
        agent.renewed_at = boot_secs()
        line.say(protocol.Heard(n=n))
