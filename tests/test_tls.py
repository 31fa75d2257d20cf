"""TLS contexts: what a listener offers, and what a broken file says."""

from __future__ import annotations

import socket
import ssl
import threading
from pathlib import Path

import pytest

from fastws.errors import ConfigError
from fastws.tls import server_context
from tests.conftest import Certificate, make_certificate


def shake_hands(
    certificate: Certificate,
    alpn: list[str],
    version: ssl.TLSVersion | None = None,
) -> ssl.SSLSocket:
    """A client's socket after a handshake with a server that uses server_context; the caller closes it."""
    server = server_context(certificate.cert, certificate.key)
    client = ssl.create_default_context(cafile=certificate.cert)
    client.set_alpn_protocols(alpn)
    if version is not None:
        client.set_ciphers("DEFAULT:@SECLEVEL=0")
        client.minimum_version = client.maximum_version = version
    near, far = socket.socketpair()
    near.settimeout(10)
    far.settimeout(10)

    def serve() -> None:
        try:
            server.wrap_socket(far, server_side=True).close()
        except (ssl.SSLError, OSError):
            far.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        return client.wrap_socket(near, server_hostname="localhost")
    finally:
        thread.join(10)
        near.close()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_tls_1_2_and_1_3_are_spoken_without_compression(certificate: Certificate, version: ssl.TLSVersion) -> None:
    with shake_hands(certificate, ["http/1.1"], version) as client:
        assert client.compression() is None
        assert client.version() == {"TLSv1_2": "TLSv1.2", "TLSv1_3": "TLSv1.3"}[version.name]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tls_1_1_is_refused(certificate: Certificate) -> None:
    with pytest.raises((ssl.SSLError, OSError)):
        shake_hands(certificate, ["http/1.1"], ssl.TLSVersion.TLSv1_1)


def test_http_1_1_is_chosen_from_what_a_browser_offers(certificate: Certificate) -> None:
    with shake_hands(certificate, ["h2", "http/1.1"]) as client:
        assert client.selected_alpn_protocol() == "http/1.1"


def test_compression_is_off_even_where_openssl_has_it(certificate: Certificate) -> None:
    context = server_context(certificate.cert, certificate.key)
    assert context.options & ssl.OP_NO_COMPRESSION
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2


def problem(cert: Path, key: Path) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        server_context(cert, key)
    assert "\n" not in str(caught.value)
    return caught.value


def test_a_missing_file_is_named(certificate: Certificate, tmp_path: Path) -> None:
    missing = tmp_path / "missing.pem"
    assert str(problem(missing, certificate.key)) == (
        f"{missing}: expected a certificate chain in PEM, got: No such file or directory"
    )
    assert str(problem(certificate.cert, missing)).startswith(f"{missing}: expected a private key in PEM")


def test_a_directory_is_no_key(certificate: Certificate, tmp_path: Path) -> None:
    assert "Is a directory" in str(problem(certificate.cert, tmp_path))


def test_the_key_of_another_certificate_is_refused(certificate: Certificate, tmp_path: Path) -> None:
    other = make_certificate(tmp_path, "other")
    error = problem(certificate.cert, other.key)
    assert error.where == str(other.key)
    assert error.problem == f"expected the key of the certificate in {certificate.cert}, got another one"


def test_certificate_and_key_given_the_wrong_way_round_are_told(certificate: Certificate) -> None:
    assert problem(certificate.key, certificate.cert).problem == (
        "expected a certificate chain in PEM, got a file without one"
    )


def test_a_file_that_is_not_pem_is_told_apart_for_both(certificate: Certificate, tmp_path: Path) -> None:
    noise = tmp_path / "noise"
    noise.write_bytes(bytes(range(256)))
    assert problem(noise, certificate.key).where == str(noise)
    assert problem(certificate.cert, noise).where == str(noise)


def test_a_damaged_body_is_told_apart_for_both(certificate: Certificate, tmp_path: Path) -> None:
    bad_cert, bad_key = tmp_path / "bad.crt", tmp_path / "bad.key"
    bad_cert.write_text(certificate.cert.read_text().replace("M", "!", 3))
    lines = certificate.key.read_text().splitlines()
    bad_key.write_text("\n".join([lines[0], "AAAA", lines[-1]]) + "\n")
    assert problem(bad_cert, certificate.key).where == str(bad_cert)
    assert problem(certificate.cert, bad_key).where == str(bad_key)


def test_an_encrypted_key_is_refused_and_nobody_is_asked_for_a_passphrase(
    certificate: Certificate, tmp_path: Path
) -> None:
    from cryptography.hazmat.primitives import serialization

    key = serialization.load_pem_private_key(certificate.key.read_bytes(), None)
    encrypted = tmp_path / "encrypted.key"
    encrypted.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    error = problem(certificate.cert, encrypted)
    assert error.where == str(encrypted)
    assert "without passphrase" in error.problem


def test_no_line_of_a_key_is_in_what_is_said_of_it(certificate: Certificate, tmp_path: Path) -> None:
    other = make_certificate(tmp_path, "other")
    said = str(problem(certificate.cert, other.key))
    assert not any(line in said for line in other.key.read_text().splitlines())
