"""TLS as both doors speak it: 1.2 or later, with the certificate that the settings name (S47)."""

import ssl
from pathlib import Path

from .errors import BadInput


def server_context(cert: Path, key: Path | None) -> ssl.SSLContext:
    """A server's side with this certificate chain. Raises `BadInput` for files that cannot be used."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(cert, key, password=lambda: "")
    except (OSError, ValueError) as exc:  # also what OpenSSL says of their content
        why = exc.strerror if isinstance(exc, FileNotFoundError | PermissionError) else None
        raise BadInput(
            f"TLS certificate {cert} and key {key} cannot be used: {why or 'not PEM, locked, or not a pair'}",
            code="bad_setting",
        ) from None
    return context


def authorities(path: Path) -> str:
    """The certificates in a PEM file, for somebody who shall trust them. Raises `BadInput`."""
    try:
        text = path.read_text("ascii")
        ssl.create_default_context(cadata=text)
    except (OSError, ValueError) as exc:
        why = exc.strerror if isinstance(exc, FileNotFoundError | PermissionError) else None
        raise BadInput(
            f"certificate authorities {path} cannot be used: {why or 'no PEM certificates'}",
            code="bad_setting",
        ) from None
    return text
