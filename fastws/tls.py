"""TLS contexts of the listeners, made from a certificate chain and its key.

A context is made at start and again at a reload: new connections get the new one, old connections keep theirs. What
goes wrong is a ConfigError that names the file; neither the key nor anything read from a file is part of its text. No
socket and no handshake deadline here.
"""

from __future__ import annotations

import ssl
from pathlib import Path

from fastws.errors import ConfigError

__all__ = ["server_context"]


class _Encrypted(Exception):
    """OpenSSL asked for a passphrase. A server that starts at night has nobody to ask."""


def _no_passphrase() -> str:
    raise _Encrypted


def server_context(cert: Path, key: Path) -> ssl.SSLContext:
    """The context for wss:// listeners: TLS 1.2 and later, no compression, ALPN http/1.1.

    `cert` holds the certificate and its chain in PEM, leaf first; `key` the private key in PEM, without passphrase.
    Raises ConfigError whose `where` is the file at fault.
    """
    for path, what in ((cert, "a certificate chain"), (key, "a private key")):
        try:
            text = path.read_bytes()
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else "a path that cannot be opened"
            raise ConfigError(str(path), f"expected {what} in PEM, got: {reason}") from None
        # OpenSSL says "PEM lib" for whichever of the two it dislikes; looking first tells them apart.
        marker = b"-----BEGIN CERTIFICATE-----" if path is cert else b"PRIVATE KEY-----"
        if marker not in text:
            raise ConfigError(str(path), f"expected {what} in PEM, got a file without one")

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION
    # A browser that is offered h2 would speak RFC 8441 instead of the Upgrade of RFC 6455 4.
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(cert, key, password=_no_passphrase)
    except _Encrypted:
        raise ConfigError(str(key), "expected a private key without passphrase, got an encrypted one") from None
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise ConfigError(str(key), f"expected the key of the certificate in {cert}, got another one") from None
        # Which of the two OpenSSL could not read, it does not say; a certificate that it can read alone is not the one.
        at_fault, what = (key, "a private key") if _certificate_loads(cert) else (cert, "a certificate chain")
        reason = (error.reason or "unreadable data").lower().replace("_", " ")
        raise ConfigError(str(at_fault), f"expected {what} in PEM that OpenSSL accepts, got: {reason}") from None
    except OSError as error:
        raise ConfigError(str(cert), f"expected a readable file, got: {error.strerror}") from None
    return context


def _certificate_loads(cert: Path) -> bool:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cert)
    except ssl.SSLError:
        return False
    return True
