"""A login as a conversation: the cluster asks, a human answers through the API, minutes later (F134)."""

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from typing import Final, Literal

from sirepo_jobs.drivers.sbatch.ssh import Ask, SshError
from sirepo_jobs.errors import Conflict, LaunchError
from sirepo_jobs.login import LoginView, Prompt

#: A request waits so long for the cluster's next word before it is told to ask again.
WAIT_SECS: Final = 25.0


class Conversation:
    """From the wish to log in until it is over. Holds no credentials once they were used."""

    def __init__(self, cluster: str, log_in: Callable[[Ask], Awaitable[None]], prompt_secs: float) -> None:
        self.login = secrets.token_urlsafe(9)
        self._cluster = cluster
        self._prompt_secs = prompt_secs
        self._state: Literal["asking", "working", "connected", "failed"] = "working"
        self._message = ""
        self._prompts: list[Prompt] = []
        self._answers: asyncio.Future[list[str]] | None = None
        self._moved = asyncio.Event()
        self._task = asyncio.create_task(self._run(log_in), name=f"login {cluster}")

    async def _run(self, log_in: Callable[[Ask], Awaitable[None]]) -> None:
        try:
            await log_in(self._ask)
            self._move("connected", f"connected to {self._cluster}")
        except (SshError, LaunchError) as exc:
            self._move("failed", str(exc))
        except asyncio.CancelledError:
            self._move("failed", "another login took its place")
            raise

    async def _ask(self, host: str, said: str, prompts: list[Prompt]) -> list[str] | None:
        self._answers = asyncio.get_running_loop().create_future()
        self._prompts = prompts
        self._move("asking", f"{host}: {said}" if said else host)
        try:
            async with asyncio.timeout(self._prompt_secs):
                return await self._answers
        except TimeoutError:
            raise LaunchError(
                f"nobody answered {host} within {self._prompt_secs:g} s; begin the login again", retry=True
            ) from None
        finally:
            self._answers, self._prompts = None, []
            self._move("working", "")

    def _move(self, state: Literal["asking", "working", "connected", "failed"], message: str) -> None:
        self._state, self._message = state, message
        self._moved.set()
        self._moved = asyncio.Event()

    def answer(self, answers: list[str]) -> None:
        """Give the human's answers. Raises `Conflict` when nothing, or something else, is asked."""
        if self._answers is None or self._answers.done():
            raise Conflict("this login asks nothing now", code="nothing_asked")
        if len(answers) != len(self._prompts):
            raise Conflict(f"there are {len(self._prompts)} prompts and {len(answers)} answers")
        self._answers.set_result(list(answers))
        self._state = "working"

    async def view(self) -> LoginView:
        """How it stands, once it asks or is over; `working` after `WAIT_SECS`."""
        try:
            async with asyncio.timeout(WAIT_SECS):
                while self._state == "working":
                    await self._moved.wait()
        except TimeoutError:
            pass
        return LoginView(
            login=self.login,
            cluster=self._cluster,
            state=self._state,
            message=self._message,
            prompts=self._prompts,
        )

    async def close(self) -> None:
        """Break it off."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
