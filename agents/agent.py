"""The network side of an agent: connects out, and again for ever, while there is something to tell."""

import asyncio
import os
import random
import socket
import ssl
import sys
import time
from contextlib import suppress
from typing import Final
from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection, connect, unix_connect
from websockets.exceptions import ConnectionClosed, WebSocketException

from sirepo_jobs import garbage
from sirepo_jobs.agents import process
from sirepo_jobs.agents.attempts import Attempts
from sirepo_jobs.agents.hang import WatchedFiles
from sirepo_jobs.agents.lane import Lane
from sirepo_jobs.agents.link import Link
from sirepo_jobs.agents.session import Session
from sirepo_jobs.agents.words import FromRelay, ToRelay
from sirepo_jobs.driver import AgentSpec
from sirepo_jobs.errors import RemoteError
from sirepo_jobs.protocol import MAX_MESSAGE_BYTES, Stop

#: Back-off between connections, with full jitter.
FIRST_SECS: Final = 0.05
LAST_SECS: Final = 5.0
#: A supervisor on this host is asked so often, as long as it has been away for less than so long: nobody
#: else crowds there, and it is back within a second or two.
NEAR_SECS: Final = 0.3
SOON_SECS: Final = 60.0
#: Without a supervisor for so long, an agent that holds nothing ends.
ORPHAN_SECS: Final = 600.0
#: The supervisor closes with these when our token is not, or no longer, good.
REFUSED: Final = (4401, 4403)


class Agent:
    """The network side; it holds nothing that may not be lost."""

    def __init__(self, spec: AgentSpec, lane: Lane) -> None:
        self._spec = spec
        self._attempts = Attempts(WatchedFiles(spec.run_root))
        self._link = Link(lane, self._hear)
        self._session: Session | None = None
        self._is_near = spec.url.startswith("unix:")

    async def run(self) -> None:
        """Until the launcher is gone."""
        talking = asyncio.create_task(self._talk(), name="talk")
        gone = asyncio.create_task(self._link.gone.wait(), name="gone")
        await asyncio.wait((talking, gone), return_when=asyncio.FIRST_COMPLETED)
        for task in (talking, gone):
            task.cancel()
        results = await asyncio.gather(talking, gone, return_exceptions=True)
        if isinstance(results[0], Exception):
            raise results[0]

    def _hear(self, word: ToRelay) -> None:
        if self._session is not None:
            self._session.hear(word)

    async def _talk(self) -> None:
        tries = 0
        in_touch = time.monotonic()
        while True:
            try:
                async with await self._connect() as connection:
                    self._session = Session(self._spec.agent, connection, self._link, self._attempts)
                    await self._session.run()
            except ConnectionClosed as exc:
                if exc.rcvd is not None and exc.rcvd.code in REFUSED:
                    _log(f"the supervisor refuses us: {exc.rcvd.code} {exc.rcvd.reason}; stopping")
                    # the end of an agent cancels nothing in Slurm (SIR-60)
                    self._link.say(FromRelay(msgs=[Stop(kill_jobs=self._spec.slurm is None)]))
            except RemoteError as exc:
                _log(f"the supervisor speaks nonsense: {exc}")
            except (OSError, WebSocketException, TimeoutError) as exc:
                # a certificate gets no better by waiting: say so at once
                if tries in (10, 1000) or (isinstance(exc, ssl.SSLError) and not tries):
                    _log(f"cannot connect to {self._spec.url}: {exc}")
            if self._session is not None and self._session.welcome:
                tries = 0
                in_touch = time.monotonic()
            self._session = None
            if time.monotonic() - in_touch > ORPHAN_SECS:
                # The launcher does so only if it holds nothing.
                self._link.say(FromRelay(msgs=[Stop()]))
            last = NEAR_SECS if self._is_near and time.monotonic() - in_touch < SOON_SECS else LAST_SECS
            await asyncio.sleep(random.random() * min(last, FIRST_SECS * 2 ** min(tries, 20)))
            tries += 1

    async def _connect(self) -> ClientConnection:
        spec = self._spec
        headers = {"Authorization": f"Bearer {spec.token}", "X-Agent": spec.agent}
        if spec.url.startswith("unix:"):
            directory, name = os.path.split(spec.url.removeprefix("unix:"))
            # A socket's path may have 107 bytes only; this one is always short.
            fd = os.open(directory or "/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                return await unix_connect(
                    f"/proc/self/fd/{fd}/{name}",
                    "ws://localhost/agent",
                    additional_headers=headers,
                    compression=None,
                    max_size=MAX_MESSAGE_BYTES,
                    ping_interval=None,  # a session listens for signs of life itself
                    close_timeout=1,
                )
            finally:
                os.close(fd)
        return await connect(
            spec.url,
            additional_headers=headers,
            ssl=_trust(spec) if spec.url.startswith("wss:") else None,
            proxy=None,
            compression=None,
            max_size=MAX_MESSAGE_BYTES,
            ping_interval=None,  # a session listens for signs of life itself
            close_timeout=1,
        )


def _trust(spec: AgentSpec) -> ssl.SSLContext:
    """SECURITY: S47. Whoever answers shows a certificate of these authorities, for the name in the URL."""
    context = ssl.create_default_context(cafile=spec.ca_file, cadata=spec.ca_pem)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def reach(spec: AgentSpec, secs: float) -> None:
    """Open the connection that a `wss` URL needs, and close it again. Raises `OSError` or `ValueError`."""
    url = urlsplit(spec.url)
    if url.scheme != "wss" or not url.hostname:
        raise ValueError(f"{spec.url} is no wss URL")
    with socket.create_connection((url.hostname, url.port or 443), secs) as plain:
        _trust(spec).wrap_socket(plain, server_hostname=url.hostname).close()


def main(spec: AgentSpec, lane: Lane) -> None:
    """The whole life of the network side, just forked from the launcher."""
    process.set_name("sj-agent")
    process.die_with_parent()
    process.hide_memory()

    async def run() -> None:
        garbage.settle()
        await Agent(spec, lane).run()

    with suppress(KeyboardInterrupt):
        asyncio.run(run())


def _log(text: str) -> None:
    sys.stderr.write(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} agent: {text}\n")
    sys.stderr.flush()
