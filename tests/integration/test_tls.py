"""TLS on the front end, and no tokens in the clear (S3, S47)."""

import contextlib
import socket
import ssl
from pathlib import Path
from typing import Any

import pytest
import trustme

from sirepo_jobs import settings
from sirepo_jobs.client import Client
from sirepo_jobs.errors import BadInput, Unavailable
from sirepo_jobs.tls import server_context
from tests.acceptance.conftest import System


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def pair(ca: trustme.CA, tmp_path: Path) -> tuple[Path, Path]:
    issued = ca.issue_cert("127.0.0.1")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    issued.cert_chain_pems[0].write_to_path(cert)
    issued.private_key_pem.write_to_path(key)
    return cert, key


def test_the_front_end_speaks_tls(ca: trustme.CA, pair: tuple[Path, Path], tmp_path: Path) -> None:
    trusted = tmp_path / "ca.pem"
    ca.cert_pem.write_to_path(trusted)
    system = System(
        tmp_path / "root",
        SIREPO_JOBS_TLS_CERT_FILE=str(pair[0]),
        SIREPO_JOBS_TLS_KEY_FILE=str(pair[1]),
        SIREPO_JOBS_CA_FILE=str(trusted),
    )
    system.up()
    try:
        assert system.url.startswith("https://127.0.0.1:")
        assert system.cli("run", "--", "/bin/echo", "hello").stdout == b"hello\n"
        token = (system.root / "token").read_text().strip()
        with Client(system.url, token, ca_certs=str(trusted)) as client:
            reply = client.transport.once("GET", "/healthz", stream=False)
            assert reply.headers["strict-transport-security"] == "max-age=31536000"
        with Client(system.url, token, patience_secs=0) as stranger, pytest.raises(Unavailable):
            stranger.get("J1")  # a certificate that nobody vouches for
        port = int(system.url.rpartition(":")[2])
        old = ca_client(ca, maximum_version=ssl.TLSVersion.TLSv1_1)
        with socket.create_connection(("127.0.0.1", port)) as plain, pytest.raises((ssl.SSLError, OSError)):
            old.wrap_socket(plain, server_hostname="127.0.0.1")
        with socket.create_connection(("127.0.0.1", port)) as plain:
            plain.settimeout(60)
            plain.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            with contextlib.suppress(ConnectionResetError):
                assert b"200" not in plain.recv(100)
    finally:
        system.down("--stop-agents")


def ca_client(ca: trustme.CA, **options: Any) -> ssl.SSLContext:
    context = ssl.create_default_context()
    ca.configure_trust(context)
    for name, value in options.items():
        with pytest.warns(DeprecationWarning, match="TLS"):
            setattr(context, name, value)
    return context


def test_other_machines_are_not_served_in_the_clear(pair: tuple[Path, Path]) -> None:
    with pytest.raises(BadInput, match="in the clear"):
        settings.load({"host": "0.0.0.0"}, {})
    files = {"tls_cert_file": str(pair[0]), "tls_key_file": str(pair[1])}
    assert settings.load({"host": "0.0.0.0", **files}, {}).settings.host == "0.0.0.0"
    assert settings.load({"host": "::", "insecure_i_know": True}, {}).settings.insecure_i_know
    assert settings.load({"host": "::1"}, {"SIREPO_JOBS_INSECURE_I_KNOW": "no"}).settings.host == "::1"
    with pytest.raises(BadInput, match="belong together"):
        settings.load({"tls_cert_file": str(pair[0])}, {})


def test_files_that_are_no_pair_are_named(pair: tuple[Path, Path], tmp_path: Path) -> None:
    other = tmp_path / "other.pem"
    other.write_text("nothing")
    for cert, key in ((other, pair[1]), (pair[0], other), (tmp_path / "missing", pair[1])):
        with pytest.raises(BadInput, match="cannot be used"):
            server_context(cert, key)
