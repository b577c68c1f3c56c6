"""The room around asyncssh: a connection to a cluster, in our words and with our rules (S55-S58).

Known host keys only, modern algorithms only, no forwarding of agents or X11, no configuration of the
account that runs the supervisor. Each way of proving who one is gets one try: what was wrong once is asked
of a human again, not of sshd (F134, F140).
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, NamedTuple

import asyncssh

from sirepo_jobs.cluster import AuthKind, SshPolicy
from sirepo_jobs.errors import BadInput
from sirepo_jobs.login import Prompt

asyncssh.set_log_level(logging.WARNING)

#: Answers of commands are short; whoever talks without end is cut.
MAX_OUTPUT_BYTES: Final = 1 << 20
_METHODS: Final[dict[AuthKind, str]] = {
    "key": "publickey",
    "keyboard-interactive": "keyboard-interactive",
    "password": "password",
}
# SECURITY: S55. What current OpenSSH servers have; no SHA-1, no CBC, no DSA.
_ALGORITHMS: Final = {
    "kex_algs": [
        "curve25519-sha256",
        "curve25519-sha256@libssh.org",
        "ecdh-sha2-nistp256",
        "ecdh-sha2-nistp384",
        "ecdh-sha2-nistp521",
        "diffie-hellman-group-exchange-sha256",
        "diffie-hellman-group16-sha512",
        "diffie-hellman-group18-sha512",
        "diffie-hellman-group14-sha256",
    ],
    "encryption_algs": [
        "chacha20-poly1305@openssh.com",
        "aes256-gcm@openssh.com",
        "aes128-gcm@openssh.com",
        "aes256-ctr",
        "aes192-ctr",
        "aes128-ctr",
    ],
    "mac_algs": [
        "hmac-sha2-256-etm@openssh.com",
        "hmac-sha2-512-etm@openssh.com",
        "hmac-sha2-256",
        "hmac-sha2-512",
    ],
}

#: In prompts for one-time codes.
_CODE_WORDS: Final = ("one-time", "verification", "code", "otp", "token")
#: Asks a human: (host, what the host says, prompts) to answers; None when nobody answers.
Ask = Callable[[str, str, list[Prompt]], Awaitable[list[str] | None]]


class Kind(StrEnum):
    """Why there is no connection."""

    #: Credentials were not accepted.
    REFUSED = "refused"
    #: The host's key is not known, or another one than is known.
    HOST_KEY = "host_key"
    #: Nobody answers, or the connection broke off.
    UNREACHABLE = "unreachable"


class SshError(Exception):
    """No connection, or none any more. The message is for people."""

    def __init__(self, kind: Kind, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Credentials(NamedTuple):
    """What a user proves to be with. Held for one login, in memory, and shown nowhere."""

    username: str
    password: str = ""
    code: str = ""
    key: asyncssh.SSHKey | None = None

    def __repr__(self) -> str:
        return f"Credentials({self.username!r}, ...)"


class Answer(NamedTuple):
    """What a command said."""

    out: bytes
    err: bytes
    #: None: the connection broke off, and nobody knows.
    status: int | None


def read_key(text: str, passphrase: str) -> asyncssh.SSHKey:
    """A private key. Raises `BadInput`, which shows nothing of it. Slow: not for the loop."""
    try:
        return asyncssh.import_private_key(text, passphrase or None)
    except asyncssh.KeyEncryptionError:
        raise BadInput("the private key needs another passphrase", pointer="/passphrase") from None
    except (asyncssh.KeyImportError, ValueError) as exc:
        if "passphrase" in str(exc).lower():
            raise BadInput("the private key needs a passphrase", pointer="/passphrase") from None
        raise BadInput("the private key cannot be read", pointer="/private_key") from None


async def connect(
    policy: SshPolicy, credentials: Credentials, ask: Ask | None, lost: Callable[[], None]
) -> "Connection":
    """Log in, through the jump hosts if there are any; `lost` is called once when the connection ends.

    Raises `SshError`.
    """
    hops: list[asyncssh.SSHClientConnection] = []
    ended = asyncio.Event()
    hosts = [_split(host) for host in policy.jump_hosts] + [(policy.host, policy.port)]
    try:
        for host, port in hosts:
            last = len(hops) == len(hosts) - 1
            client = _Client(f"{host}:{port}", credentials, ask, ended.set if last else None)
            hops.append(await _hop(policy, host, port, credentials, client, hops[-1] if hops else None))
    except BaseException:
        for hop in reversed(hops):
            hop.abort()
        raise
    return Connection(policy, hops, ended, lost)


def _split(host: str) -> tuple[str, int]:
    name, colon, port = host.rpartition(":")
    return (name, int(port)) if colon and port.isdecimal() else (host, 22)


async def _hop(
    policy: SshPolicy,
    host: str,
    port: int,
    credentials: Credentials,
    client: "_Client",
    tunnel: asyncssh.SSHClientConnection | None,
) -> asyncssh.SSHClientConnection:
    where = f"{host}:{port}"
    options: dict[str, Any] = dict(_ALGORITHMS)
    try:
        async with asyncio.timeout(policy.connect_secs + (4 * policy.prompt_secs if client.asks else 0)):
            return await asyncssh.connect(
                host,
                port,
                tunnel=tunnel or (),
                config=None,
                username=credentials.username,
                known_hosts=policy.known_hosts,
                client_factory=lambda: client,
                client_keys=[credentials.key] if credentials.key else None,
                client_host_keys=None,
                agent_path=None,
                agent_forwarding=False,
                preferred_auth=[_METHODS[kind] for kind in policy.auth],
                public_key_auth="key" in policy.auth and credentials.key is not None,
                kbdint_auth="keyboard-interactive" in policy.auth,
                password_auth="password" in policy.auth,
                host_based_auth=False,
                gss_auth=False,
                gss_kex=False,
                gss_host=None,
                disable_trivial_auth=True,
                compression_algs=None,
                connect_timeout=policy.connect_secs,
                login_timeout=0 if client.asks else policy.connect_secs,
                keepalive_interval=policy.keepalive_secs,
                keepalive_count_max=3,
                **options,
            )
    except asyncssh.HostKeyNotVerifiable:
        raise SshError(Kind.HOST_KEY, _about_key(policy, host, port)) from None
    except asyncssh.PermissionDenied:
        raise SshError(Kind.REFUSED, _about_refusal(where, credentials, client)) from None
    except asyncssh.ProtocolError as exc:
        if "authentication" in exc.reason.lower():
            raise SshError(Kind.REFUSED, _about_refusal(where, credentials, client)) from None
        raise SshError(Kind.UNREACHABLE, f"{where}: {exc.reason}") from None
    except TimeoutError:
        raise SshError(Kind.UNREACHABLE, f"{where} did not answer in {policy.connect_secs:g} s") from None
    except FileNotFoundError:
        raise SshError(
            Kind.HOST_KEY, f"{policy.known_hosts} is missing; {_how_to_know(host, port, policy.known_hosts)}"
        ) from None
    except asyncssh.DisconnectError as exc:
        raise SshError(Kind.UNREACHABLE, f"{where}: {exc.reason}") from None
    except asyncssh.ChannelOpenError as exc:
        raise SshError(Kind.UNREACHABLE, f"the jump host cannot reach {where}: {exc.reason}") from None
    except (OSError, ValueError) as exc:
        raise SshError(Kind.UNREACHABLE, f"{where}: {exc}") from None


def _about_key(policy: SshPolicy, host: str, port: int) -> str:
    """Two very different things: nobody told us its key, or it shows another one than we were told."""
    try:
        trusted, *_ = asyncssh.read_known_hosts(policy.known_hosts).match(host, "", port)
    except (OSError, ValueError) as exc:
        return f"{policy.known_hosts} cannot be read: {exc}"
    if trusted:
        return (
            f"the host key of {host}:{port} is not the one in {policy.known_hosts}: somebody may be"
            " listening in, or the host was set up anew. Nothing was sent. Ask its administrators for the"
            " fingerprint before changing that file"
        )
    return f"the host key of {host}:{port} is not known; {_how_to_know(host, port, policy.known_hosts)}"


def _how_to_know(host: str, port: int, file: str) -> str:
    return (
        f"run `ssh-keyscan -p {port} {host} >> {file}` and compare the fingerprint with the administrators'"
    )


def _about_refusal(where: str, credentials: Credentials, client: "_Client") -> str:
    tried = " and ".join(client.tried) or ("the key" if credentials.key else "nothing")
    said = f"; it says: {client.said}" if client.said else ""
    return f"{where} refused user {credentials.username!r} with {tried}{said}"


class _Client(asyncssh.SSHClient):
    """Answers one host's questions: by what was given, then by asking."""

    def __init__(
        self, where: str, credentials: Credentials, ask: Ask | None, ended: Callable[[], None] | None
    ) -> None:
        self._where = where
        self._password = credentials.password
        self._code = credentials.code
        self._ask = ask
        self._ended = ended
        #: Ways that were tried, for people.
        self.tried: list[str] = ["the key"] if credentials.key else []
        #: Banner and messages of the host.
        self.said = ""

    @property
    def asks(self) -> bool:
        """A human may have to type."""
        return self._ask is not None

    def auth_banner_received(self, msg: str, lang: str) -> None:
        self._hear(msg)

    def _hear(self, text: str) -> None:
        clean = "".join(char if char.isprintable() else " " for char in text).strip()
        self.said = f"{self.said} {clean}".strip()[-500:]

    def connection_lost(self, exc: Exception | None) -> None:
        if self._ended is not None:
            self._ended()

    def kbdint_auth_requested(self) -> str | None:
        if "answers" in self.tried or not (self._ask or self._password):
            return None
        self.tried.append("answers")
        return ""

    async def kbdint_challenge_received(
        self, name: str, instructions: str, lang: str, prompts: Any
    ) -> list[str] | None:
        """Passwords and codes that were given are used once; everything else is asked."""
        for text in (name, instructions):
            if text:
                self._hear(text)
        answers = [self._given(text) for text, _echo in prompts]
        missing = [place for place, answer in enumerate(answers) if answer is None]
        if missing:
            asked = [Prompt(prompts[place][0].strip(), prompts[place][1]) for place in missing]
            found = await self._ask(self._where, self.said, asked) if self._ask is not None else None
            if found is None or len(found) != len(missing):
                return None
            for place, answer in zip(missing, found, strict=True):
                answers[place] = answer
        return [answer or "" for answer in answers]

    def _given(self, prompt: str) -> str | None:
        text = prompt.lower()
        is_code = any(word in text for word in _CODE_WORDS)
        if is_code and self._code:
            code, self._code = self._code, ""
            return code
        if not is_code and "password" in text and self._password:
            password, self._password = self._password, ""
            return password
        return None

    async def password_auth_requested(self) -> str | None:
        if "answers" in self.tried or "the password" in self.tried:
            return None
        password, self._password = self._password, ""
        if not password and self._ask is not None:
            found = await self._ask(self._where, self.said, [Prompt("Password:", False)])
            password = found[0] if found else ""
        if not password:
            return None
        self.tried.append("the password")
        return password

    def password_change_requested(self, prompt: str, lang: str) -> Any:
        self._hear("the password has expired; change it on the cluster itself")
        return NotImplemented


class Connection:
    """An open connection to the last host. Every method raises `SshError` when it is no more."""

    def __init__(
        self,
        policy: SshPolicy,
        hops: list[asyncssh.SSHClientConnection],
        ended: asyncio.Event,
        lost: Callable[[], None],
    ) -> None:
        self._hops = hops
        self._host = hops[-1]
        self._slots = asyncio.Semaphore(policy.max_sessions)
        self.ended = ended
        self._watch = asyncio.create_task(self._call_when_lost(lost), name=f"ssh {policy.host}")

    async def _call_when_lost(self, lost: Callable[[], None]) -> None:
        await self.ended.wait()
        lost()

    @property
    def is_open(self) -> bool:
        """As far as is known."""
        return not self.ended.is_set()

    async def run(self, command: str, stdin: bytes, secs: float) -> Answer:
        """Run a command line there; it may go on running when this raises."""
        async with self._slots:
            with _ours():
                async with asyncio.timeout(secs):
                    process = await self._host.create_process(command, encoding=None, request_pty=False)
                    try:
                        # It may have ended before it was told anything; why, is in what it said itself.
                        with contextlib.suppress(BrokenPipeError):
                            process.stdin.write(stdin)
                            process.stdin.write_eof()
                        out, err = await asyncio.gather(_limited(process.stdout), _limited(process.stderr))
                        done = await process.wait()
                        return Answer(out, err, done.exit_status)
                    finally:
                        process.close()

    async def put(self, local: Path, remote: str, secs: float) -> None:
        """Write a file there, for its owner alone, under the very name that is given (S58)."""
        async with self._slots:
            with _ours():
                async with asyncio.timeout(secs), self._host.start_sftp_client() as sftp:
                    await sftp.put(str(local), remote, preserve=False, follow_symlinks=True)
                    await sftp.chmod(remote, 0o600)

    async def listen(self, remote: str, local: str) -> "asyncssh.SSHListener":
        """Forward a unix socket there to one here. Raises `Refused` where forwarding is not allowed."""
        with _ours():
            try:
                return await self._host.forward_remote_path(remote, local)
            except asyncssh.ChannelListenError as exc:
                raise Refused(str(exc) or "the host refuses to forward a socket") from None

    @contextlib.asynccontextmanager
    async def pipe(self, command: str) -> AsyncIterator[Any]:
        """A command whose standard streams stay open: `stdin`, `stdout` and `stderr`, in bytes."""
        with _ours():
            process = await self._host.create_process(command, encoding=None, request_pty=False)
            try:
                yield process
            finally:
                process.close()

    async def close(self) -> None:
        """Hang up."""
        for hop in reversed(self._hops):
            hop.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2):
                await self.ended.wait()
        if not self.ended.is_set():
            for hop in reversed(self._hops):
                hop.abort()
            self.ended.set()
        await asyncio.gather(self._watch, return_exceptions=True)


class Refused(Exception):
    """sshd does not do this; it may do something else."""


async def _limited(reader: Any) -> bytes:
    found = b""
    while chunk := await reader.read(65536):
        if len(found) < MAX_OUTPUT_BYTES:
            found += chunk
    return found


@contextlib.contextmanager
def _ours() -> Any:
    """asyncssh's errors as ours."""
    try:
        yield
    except TimeoutError:
        raise SshError(Kind.UNREACHABLE, "the cluster did not answer in time") from None
    except asyncssh.SFTPError as exc:
        raise SshError(Kind.UNREACHABLE, f"SFTP: {exc.reason}") from None
    except asyncssh.ChannelOpenError as exc:
        raise SshError(Kind.UNREACHABLE, f"the cluster opens no channel: {exc.reason}") from None
    except asyncssh.DisconnectError as exc:
        raise SshError(Kind.UNREACHABLE, f"the connection broke off: {exc.reason}") from None
    except (OSError, asyncssh.ProcessError, asyncssh.ConnectionLost) as exc:
        raise SshError(Kind.UNREACHABLE, f"the connection broke off: {exc}") from None
