"""The real supervisor and the real front end in the test's own loop; only the agents are scripted."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from tornado.httpserver import HTTPServer
from tornado.web import Application

from sirepo_jobs import agent_door, api, rootdir
from sirepo_jobs.app import _unix_socket
from sirepo_jobs.frontend import auth
from sirepo_jobs.frontend.audit import AuditLog
from sirepo_jobs.frontend.server import Frontend
from sirepo_jobs.frontend.upstream import Upstream
from sirepo_jobs.tokens import TokenOrder, check_order
from tests.frontend_stage import WAIT_SECS, Stage
from tests.integration.test_supervisor import House, house_of
from tests.scripted import ScriptedDriver

SECRET = "s" * 43


class Service(Stage):
    """A whole service; asks and answers as `Stage` does."""

    def __init__(self, root: Path, house: House, proxy: auth.Proxy | None = None, **more: Any) -> None:
        self.root = root
        self.house = house
        self.token = rootdir.ensure_token(root)
        self._wires = []
        (root / rootdir.SECRET).write_text(SECRET)
        self.listen_supervisor()
        tokens = auth.Tokens(proxy=proxy)
        tokens.add(self.token, auth.Principal("root", frozenset(auth.Scope)))
        self.frontend = Frontend(Upstream(root), tokens, AuditLog(root / "audit.jsonl"), 1 << 20, **more)
        self.url = self.frontend.listen("127.0.0.1", 0)

    def listen_supervisor(self) -> None:
        """The supervisor's door opens."""
        supervisor = self.house.supervisor
        table = [
            *api.routes(api.House(supervisor, SECRET)),
            agent_door.route(supervisor, self.house.talk),
        ]
        self.door = HTTPServer(Application(table, log_function=lambda _handler: None))
        self.door.add_socket(_unix_socket(self.root))

    async def close_supervisor(self) -> None:
        """The supervisor's door closes, with everything that went through it."""
        self.door.stop()
        (self.root / rootdir.SOCKET).unlink()
        await self.door.close_all_connections()

    async def a_token(self, user: str, **order: Any) -> tuple[str, str]:
        """A new token that the front end has heard of, and its id."""
        made, row = await self.house.supervisor.tokens.create(
            check_order(TokenOrder(user=user, **order)), "root"
        )
        copy = self.frontend.tokens.copy
        await eventually(lambda: row.token in copy._known)
        return made, row.token

    async def close(self) -> None:
        for wire in self._wires:
            wire.close()
        await self.frontend.stop()
        await self.close_supervisor()


@contextlib.asynccontextmanager
async def service_of(
    root: Path, *, driver: ScriptedDriver | None = None, **more: Any
) -> AsyncIterator[Service]:
    async with house_of(root, driver) as house:
        it = Service(root, house, **more)
        try:
            yield it
        finally:
            await it.close()


async def eventually(what: Callable[[], Any], secs: float = WAIT_SECS) -> None:
    """Other tasks have their turns until something is so."""
    async with asyncio.timeout(secs):
        while not what():
            await asyncio.sleep(0.005)
