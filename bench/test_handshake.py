# What one handshake costs in Python: head, checks, policy, answer, for the GET a browser sends (as bench/load's wsload
# sends it), beside the same work done by the websockets library's protocol half, which has no socket either.
# Sockets, TLS and the connection's own making are not in here; bench/README.md has those.
from __future__ import annotations

import asyncio
from typing import Any

import pytest

from fastws.admission import Admission
from fastws.policy import Policy
from fastws.wire.handshake import HeadReader, Limits

HEAD = (
    b"GET /sip HTTP/1.1\r\n"
    b"Host: 127.0.0.1:8080\r\n"
    b"Connection: keep-alive, Upgrade\r\n"
    b"Pragma: no-cache\r\n"
    b"Cache-Control: no-cache\r\n"
    b"User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/156.0.0.0 "
    b"Safari/537.36\r\n"
    b"Upgrade: websocket\r\n"
    b"Origin: https://phone.example.com\r\n"
    b"Sec-WebSocket-Version: 13\r\n"
    b"Accept-Encoding: gzip, deflate, br\r\n"
    b"Accept-Language: en-US,en;q=0.9\r\n"
    b"Cookie: theme=dark; sid=user7\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n"
    b"Sec-WebSocket-Protocol: sip\r\n"
    b"\r\n"
)
COOKIES = """
SESSIONS = {"user7": "alice"}
ORIGINS = {"https://phone.example.com"}

def on_handshake(handshake):
    user = SESSIONS.get(handshake.cookies.get("sid"))
    if user is None or handshake.headers.get("Origin") not in ORIGINS:
        return handshake.reject(403)
    return handshake.accept(user=user)
"""
ACCEPT_LINE = b"\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"
LIMITS = Limits()


class Conn:
    """The least that Admission needs of a connection."""

    __slots__ = ("gone", "local", "reader", "result", "source", "task", "tls")

    def __init__(self) -> None:
        self.source = ("192.0.2.1", 4711)
        self.local = ("192.0.2.2", 8080)
        self.tls: dict[str, Any] | None = None
        self.reader: HeadReader | None = None
        self.task: asyncio.Task[Any] | None = None
        self.gone = False
        self.result: tuple[bytes, dict[str, Any]] | None = None

    def hold(self) -> None:
        raise AssertionError("a plain policy answers at once")

    def accept(self, response: bytes, attributes: dict[str, Any], host: str, rest: bytes) -> bool:
        self.result = response, attributes
        return True

    def refuse(self, response: bytes) -> None:
        raise AssertionError(response)

    def refuse_with_code(self, response: bytes, code: int, reason: str) -> None:
        raise AssertionError(reason)


def read_head() -> HeadReader:
    reader = HeadReader(LIMITS)
    reader.feed(HEAD)
    return reader


@pytest.mark.benchmark(group="HTTP head")
def test_head_alone(benchmark):
    reader = read_head()
    assert (reader.method, reader.target, len(reader.headers)) == ("GET", "/sip", 14)
    benchmark(read_head)


@pytest.mark.benchmark(group="handshake")
@pytest.mark.parametrize("policy", ["none", "cookies"])
def test_fastws(benchmark, tmp_path, policy):
    file = None
    if policy == "cookies":
        file = tmp_path / "policy.py"
        file.write_text(COOKIES, encoding="utf-8")
    admission = Admission(Policy.load(file), path="/sip", secure=False, limits=LIMITS)

    def handshake() -> Conn:
        conn = Conn()
        admission.feed(conn, HEAD)
        return conn

    result = handshake().result
    assert result is not None
    response, attributes = result
    assert response.startswith(b"HTTP/1.1 101 ")
    assert ACCEPT_LINE in response
    assert attributes == ({} if file is None else {"user": "alice"})
    benchmark(handshake)


@pytest.mark.benchmark(group="handshake")
def test_websockets_library(benchmark):
    server = pytest.importorskip("websockets.server")

    def handshake() -> bytes:
        protocol = server.ServerProtocol(subprotocols=["sip"])
        protocol.receive_data(HEAD)
        protocol.send_response(protocol.accept(protocol.events_received()[0]))
        return b"".join(protocol.data_to_send())

    response = handshake()
    assert response.startswith(b"HTTP/1.1 101 ")
    assert ACCEPT_LINE in response
    benchmark(handshake)
