"""Every setting, read once into one frozen record that is passed down.

A value comes from the first of these that has it: a flag, the environment (`SIREPO_JOBS_PORT`, with
`_` or `__` between the parts of a name), a TOML file (`--config`, else the user's over the
system's), the default. What nobody knows is refused with a suggestion, wherever it stands.

Why not `pkconfig.init` itself: it takes names from the path of the calling module
(`SIREPO_JOBS_SETTINGS_PORT`), reads no files, passes over misspelled names in silence and imports
pytest on its way. Its conventions stay: flat names, an empty text means "not set", lists are split
at `:` by its own parser, which is imported only when there is a list to split.
"""

import difflib
import ipaddress
import os
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from msgspec import Struct

from . import setting_values as values
from .errors import BadInput
from .rootdir import absolute, default_root
from .spec import MIN_OUTPUT_BYTES, MIN_PROCESSES

PREFIX = "SIREPO_JOBS_"
#: Names under our prefix that are no settings: what a job gets, and what clients look at.
NOT_SETTINGS = frozenset(
    {"JID", "SERIAL", "ATTEMPT", "RUN_DIR", "CPUS", "PROGRESS", "MARK"}
    | {"URL", "CA_FILE", "TOKEN_FILE", "TOKEN", "OUTPUT", "CONFIG"}
)


class Settings(Struct, frozen=True, kw_only=True):
    """What the processes of one installation are told. Field by field explained in `SETTINGS`."""

    root: Path
    host: str
    port: int
    database_url: str
    drivers: tuple[str, ...]
    local_cpus: int
    clusters_dir: Path | None
    bundle_dir: Path
    docker_file: Path | None
    pass_env: tuple[str, ...]
    agent_idle_secs: float
    max_output_bytes: int
    max_processes: int
    heartbeat_secs: float
    silence_secs: float
    agent_socket: Path | None
    idempotency_keep_secs: float
    dead_token_keep_secs: float
    job_cache_size: int
    queue_window: int
    max_body_bytes: int
    proxy_secret_file: Path | None
    tls_cert_file: Path | None
    tls_key_file: Path | None
    agent_host: str
    agent_port: int
    agent_url: str
    agent_tls_cert_file: Path | None
    agent_tls_key_file: Path | None
    agent_ca_file: Path | None
    rate_per_sec: int
    rate_burst: int
    max_user_requests: int
    public_url: str
    allowed_origins: tuple[str, ...]
    insecure_i_know: bool
    log_level: str
    log_format: str

    @property
    def agent_tls(self) -> tuple[Path | None, Path | None]:
        """Certificate and key of the agents' door: its own, or those of the front end."""
        if self.agent_tls_cert_file is not None:
            return self.agent_tls_cert_file, self.agent_tls_key_file
        return self.tls_cert_file, self.tls_key_file


class Setting(NamedTuple):
    """How one setting is read."""

    parse: Callable[[Any], Any]
    #: A value, or a function of the environment.
    default: object
    help: str
    #: Never shown in full, and may be given as `..._FILE` in the environment.
    secret: bool = False


class Loaded(NamedTuple):
    """The record, and for each of its fields where the value came from."""

    settings: Settings
    sources: dict[str, str]

    def shown(self) -> Iterator[tuple[str, str, str]]:
        """`(name, value, source)` of every setting, for people; secrets are hidden."""
        for name in SETTINGS:
            value = getattr(self.settings, name)
            text = ":".join(value) if isinstance(value, tuple) else "" if value is None else str(value)
            yield name, _hide(text) if SETTINGS[name].secret else text, self.sources[name]


def _hide(url: str) -> str:
    return re.sub(r"://([^/@:]*):[^/@]*@", r"://\1:***@", url)


def _check_doors(settings: Settings, sources: Mapping[str, str]) -> None:
    """SECURITY: S3. Tokens never travel in the clear unless somebody says that they may."""
    for door in ("", "agent_"):
        cert, key = (getattr(settings, f"{door}tls_{what}_file") for what in ("cert", "key"))
        if (cert is None) != (key is None):
            raise BadInput(
                f"{door}tls_cert_file and {door}tls_key_file belong together: set both, or none",
                code="bad_setting",
            )
    _check_host("host", settings.host, settings.tls_cert_file, settings, sources)
    if settings.agent_host:
        _check_host("agent_host", settings.agent_host, settings.agent_tls[0], settings, sources)
        _check_agent_url(settings, sources)


def _is_loopback(host: str) -> bool:
    return host == "localhost" or ipaddress.ip_address(host).is_loopback


def _check_host(
    name: str, host: str, cert: Path | None, settings: Settings, sources: Mapping[str, str]
) -> None:
    if not (_is_loopback(host) or cert or settings.insecure_i_know):
        door = name.removesuffix("host")
        raise BadInput(
            f"setting {name} ({sources[name]}): {host!r} is not a loopback address, and tokens would"
            f" travel in the clear; set {door}tls_cert_file and {door}tls_key_file, or put a TLS proxy before"
            " it on this machine (or say --insecure-i-know)",
            code="bad_setting",
            pointer=f"/{name}",
        )


def _check_agent_url(settings: Settings, sources: Mapping[str, str]) -> None:
    """Agents must be told something that they can call, and by TLS unless all of it stays here."""
    url, host = settings.agent_url, settings.agent_host
    if not url and host != "localhost" and ipaddress.ip_address(host).is_unspecified:
        raise BadInput(
            f"setting agent_url: agents cannot call {host}; write the name by which they reach this machine:"
            " wss://NAME:PORT/agent",
            code="bad_setting",
            pointer="/agent_url",
        )
    if url and not re.fullmatch(r"wss?://[A-Za-z0-9_.:\[\]-]+(/[A-Za-z0-9_./~-]*)?", url):
        raise BadInput(
            f"setting agent_url ({sources['agent_url']}): {url!r} is not like wss://NAME:PORT/agent",
            code="bad_setting",
            pointer="/agent_url",
        )
    if url.startswith("ws:") and not settings.insecure_i_know:
        raise BadInput(
            f"setting agent_url ({sources['agent_url']}): over {url!r} the tokens of agents would travel in"
            " the clear; write wss:// (or say --insecure-i-know)",
            code="bad_setting",
            pointer="/agent_url",
        )


def _own_cpus(_: Mapping[str, str]) -> int:
    return len(os.sched_getaffinity(0))


SETTINGS: dict[str, Setting] = {
    "root": Setting(values.path, default_root, "directory of the store, the run dirs and the token"),
    "host": Setting(values.address, "127.0.0.1", "address on which the front end listens"),
    "port": Setting(values.integer(0, 65535), 8421, "port of the front end; 0 picks a free one"),
    "database_url": Setting(
        values.text,
        lambda _: "",
        "the store; default sqlite in the root, or postgresql+psycopg://...",
        secret=True,
    ),
    "drivers": Setting(values.names, ("local",), "drivers to offer"),
    "local_cpus": Setting(values.integer(1, 100_000), _own_cpus, "cpus that the local driver gives to jobs"),
    "clusters_dir": Setting(
        values.file,
        None,
        "directory with one policy file, NAME.toml, for each Slurm cluster; default: there is none",
    ),
    "bundle_dir": Setting(
        values.path,
        lambda _: Path(__file__).parent.parent / ".agent-bundle",
        "where bin/build-agent-bundle has put the agent that is brought to clusters",
    ),
    "docker_file": Setting(
        values.file, None, "engines and rules of the docker driver (TOML); see docs/docker.md"
    ),
    "pass_env": Setting(values.names, (), "variables of the supervisor's environment that local jobs see"),
    "agent_idle_secs": Setting(values.secs(0, 1e8), 1800.0, "an agent without work for so long is stopped"),
    "max_output_bytes": Setting(
        values.size(MIN_OUTPUT_BYTES, 1 << 60),
        10 * 10**9,
        "a job that writes more to stdout and stderr is ended; jobs may ask for less",
    ),
    "max_processes": Setting(
        values.integer(MIN_PROCESSES, 1 << 22),
        4096,
        "a job with more processes and threads is ended; jobs may ask for less; not in Slurm",
    ),
    "heartbeat_secs": Setting(values.secs(0.1, 3600), 15.0, "time between two heartbeats of an agent"),
    "silence_secs": Setting(
        values.secs(1, 86_400),
        120.0,
        "an agent that says nothing of an attempt for so long is asked again, then not counted on",
    ),
    "agent_socket": Setting(
        values.file, None, "where local agents call, if not at the supervisor's own socket: that of a proxy"
    ),
    "idempotency_keep_secs": Setting(
        values.secs(60, 1e9), 7 * 86400.0, "so long an Idempotency-Key makes its jobs only once"
    ),
    "dead_token_keep_secs": Setting(
        values.secs(0, 1e9), 90 * 86400.0, "so long an expired or revoked token is still listed"
    ),
    "job_cache_size": Setting(
        values.integer(1, 10_000_000), 6000, "jobs kept in memory beside the active ones"
    ),
    "queue_window": Setting(
        values.integer(1, 10_000_000), 1000, "queued jobs that the scheduler looks at in one go"
    ),
    "max_body_bytes": Setting(values.size(1024, 1 << 30), 16 << 20, "largest request body"),
    "proxy_secret_file": Setting(
        values.file, None, "file with the secret of a proxy that does the login; default: there is none"
    ),
    "tls_cert_file": Setting(values.file, None, "certificate chain of the front end, PEM; default: no TLS"),
    "tls_key_file": Setting(values.file, None, "its private key, PEM"),
    "agent_host": Setting(
        values.address_or_none, "", "address on which agents on other machines are awaited; default: nowhere"
    ),
    "agent_port": Setting(values.integer(0, 65535), 8422, "port of that door; 0 picks a free one"),
    "agent_url": Setting(
        values.text,
        "",
        "what these agents call: wss://NAME:PORT/agent; default: made from agent_host and agent_port",
    ),
    "agent_tls_cert_file": Setting(
        values.file, None, "certificate chain of that door, PEM; default: that of the front end"
    ),
    "agent_tls_key_file": Setting(values.file, None, "its private key, PEM"),
    "agent_ca_file": Setting(
        values.file, None, "certificate authorities that agents trust, PEM; default: those of their system"
    ),
    "rate_per_sec": Setting(
        values.integer(0, 1_000_000), 200, "requests per second of one user in the long run; 0: no limit"
    ),
    "rate_burst": Setting(values.integer(1, 1_000_000), 1000, "and so many at once"),
    "max_user_requests": Setting(
        values.integer(1, 1_000_000), 1000, "requests of one user under way at one time, streams among them"
    ),
    "public_url": Setting(
        values.public_url, "", "what clients call the front end, if a proxy gives it another name or a path"
    ),
    "allowed_origins": Setting(
        values.origins, (), "web pages that may use the API from a browser: https://gateway.example.org"
    ),
    "insecure_i_know": Setting(values.flag, False, "serve other machines without TLS"),
    "log_level": Setting(
        values.one_of("debug", "info", "warning", "error"), "info", "least level that is logged"
    ),
    "log_format": Setting(
        values.one_of("auto", "json", "console"), "auto", "auto: for people on a terminal, else JSON"
    ),
}


def load(
    flags: Mapping[str, object] | None = None,
    environ: Mapping[str, str] | None = None,
    config: str | Path | None = None,
) -> Loaded:
    """Read everything once.

    `flags` are named like the fields; those that are None count as not given. Raises `BadInput`
    that names the place of the first value that cannot be meant.
    """
    environ = os.environ if environ is None else environ
    layers = [
        {name: (value, "flag") for name, value in (flags or {}).items() if value is not None},
        dict(_from_environment(environ)),
        *_from_files(environ, config),
    ]
    found: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for name, setting in SETTINGS.items():
        for layer in layers:
            if name in layer:
                value, sources[name] = layer[name]
                found[name] = _parsed(name, value, sources[name])
                break
        else:
            default = setting.default
            found[name] = default(environ) if callable(default) else default
            sources[name] = "default"
    if not found["database_url"]:
        found["database_url"] = f"sqlite:///{found['root']}/jobs.db"
    settings = Settings(**found)
    _check_doors(settings, sources)
    return Loaded(settings, sources)


def _parsed(name: str, value: object, source: str) -> Any:
    try:
        return SETTINGS[name].parse(value)
    except BadInput as exc:
        said = _hide(str(exc)) if SETTINGS[name].secret else str(exc)
        raise BadInput(f"setting {name} ({source}): {said}", code="bad_setting", pointer=f"/{name}") from None


def _from_environment(environ: Mapping[str, str]) -> Iterator[tuple[str, tuple[object, str]]]:
    for variable in sorted(environ):
        value = environ[variable]
        if not variable.startswith(PREFIX) or not value or variable[len(PREFIX) :] in NOT_SETTINGS:
            continue
        name = variable[len(PREFIX) :].lower().replace("__", "_")
        source = f"environment {variable}"
        secret = name.removesuffix("_file")
        if secret != name and secret in SETTINGS and SETTINGS[secret].secret:
            yield secret, (_read(Path(value), source).decode().strip(), source)
            continue
        _check_known(name, source, variable)
        yield name, (value, source)


def _check_known(name: str, source: str, written: str) -> None:
    if name in SETTINGS:
        return
    if written.startswith(PREFIX):
        names = [*map(str.upper, SETTINGS), *NOT_SETTINGS]
        near = [PREFIX + word for word in difflib.get_close_matches(name.upper(), names, 1)]
    else:
        near = difflib.get_close_matches(name, SETTINGS, 1)
    hint = f"did you mean {near[0]}?" if near else f"known are: {', '.join(SETTINGS)}"
    raise BadInput(f"unknown setting {written[:64]!r} ({source}); {hint}", code="unknown_setting")


def _from_files(environ: Mapping[str, str], config: str | Path | None) -> list[dict[str, tuple[object, str]]]:
    """One layer for each file, the one that counts most first."""
    if named := config or environ.get(PREFIX + "CONFIG"):
        return [_from_file(absolute(named))]
    home = environ.get("XDG_CONFIG_HOME", "")
    user = absolute(home if home.startswith("/") else "~/.config") / "sirepo-jobs" / "config.toml"
    return [_from_file(path) for path in (user, Path("/etc/sirepo-jobs/config.toml")) if path.is_file()]


def _from_file(path: Path) -> dict[str, tuple[object, str]]:
    source = f"file {path}"
    try:
        tree = tomllib.loads(_read(path, source).decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise BadInput(f"{source} is not TOML: {exc}", code="bad_setting") from None
    found: dict[str, tuple[object, str]] = {}
    for name, value in _flat(tree, ""):
        flat = name.replace(".", "_")
        _check_known(flat, source, name)
        found[flat] = (value, source)
    return found


def _read(path: Path, source: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as exc:
        raise BadInput(f"{source}: {path} cannot be read: {exc.strerror}", code="bad_setting") from None


def _flat(tree: Mapping[str, object], above: str) -> Iterator[tuple[str, object]]:
    """`[agent] idle_secs = 1` as `agent.idle_secs`."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value
