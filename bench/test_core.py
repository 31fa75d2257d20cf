"""One whole transaction through the running proxy: a WebSocket client, fastws as a process of its own, a UDP answerer.

python -m pytest bench/test_core.py --benchmark-enable

Client and answerer are plain sockets of this one thread, so the times hold their system calls and Python too: what
counts for the proxy is "proxy_cpu_us", its processor time for each transaction (user and system, from /proc), among the
extra information of each bench, which `--benchmark-json` writes.
"""

from __future__ import annotations

import os
import re
import socket
import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.conftest import free_port
from tests.interop.peers import HOST, Edge

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

POLICY = """
IDENTITY = "user"
def on_handshake(handshake):
    return handshake.accept(user="alice")
"""
ASKED = POLICY + """
def on_request(request, connection):
    if request.from_uri.user != connection["user"]:
        return request.reject(403)
"""
TICKS = os.sysconf("SC_CLK_TCK")


class Course:
    """A client whose requests come back answered. Each request is 700 bytes and has a branch and CSeq of its own."""

    def __init__(self, edge: Edge, answerer: socket.socket) -> None:
        self.pid = edge.process.pid
        self.answerer = answerer
        self.client = socket.create_connection((HOST, edge.port))
        self.client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.client.settimeout(10)
        self.client.sendall(
            b"GET / HTTP/1.1\r\nHost: edge\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 13\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: sip\r\n\r\n"
        )
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += self.client.recv(1)
        assert head.startswith(b"HTTP/1.1 101 ")
        self.buffered = b""
        self.number = 0

    def request(self) -> bytes:
        self.number += 1
        head = (
            b"OPTIONS sip:bob@example.com SIP/2.0\r\nVia: SIP/2.0/WS alice.invalid;branch=z9hG4bK%08d\r\n"
            b"Max-Forwards: 70\r\nFrom: <sip:alice@example.com>;tag=f1\r\nTo: <sip:bob@example.com>\r\n"
            b"Call-ID: bench@alice.invalid\r\nCSeq: %d OPTIONS\r\nContact: <sip:alice@alice.invalid;transport=ws>\r\n"
            b"Supported: outbound,path,gruu\r\nUser-Agent: JsSIP 3.13.8\r\n"
        ) % (self.number, self.number)
        body = 700 - len(head) - len(b"Content-Length: 000\r\n\r\n")
        return head + b"Content-Length: %d\r\n\r\n" % body + b"v" * body

    def send(self, message: bytes) -> None:
        # A mask of zeros is a mask: the proxy takes it off like any other.
        self.client.sendall(b"\x81\xfe" + struct.pack("!H", len(message)) + b"\0\0\0\0" + message)

    def answer(self) -> bytes:
        """Answer one datagram: the request as it came."""
        got, source = self.answerer.recvfrom(65536)
        lines = got.partition(b"\r\n\r\n")[0].split(b"\r\n")
        kept = [line for line in lines if line.startswith((b"Via:", b"From:", b"To:", b"Call-ID:", b"CSeq:"))]
        self.answerer.sendto(b"\r\n".join([b"SIP/2.0 200 OK", *kept, b"Content-Length: 0", b"", b""]), source)
        return got

    def receive(self) -> bytes:
        """One message from the proxy."""
        while True:
            data = self.buffered
            if len(data) >= 4 and data[1] == 126:
                end = 4 + struct.unpack_from("!H", data, 2)[0]
                if len(data) >= end:
                    self.buffered = data[end:]
                    return data[4:end]
            part = self.client.recv(65536)
            assert part
            self.buffered += part

    def turn(self, count: int) -> int:
        """`count` transactions at once; how many were answered."""
        for _ in range(count):
            self.send(self.request())
        for _ in range(count):
            self.answer()
        return sum(self.receive().startswith(b"SIP/2.0 200 OK\r\n") for _ in range(count))

    def cpu(self) -> float:
        """Processor time of the proxy so far, in seconds."""
        with open(f"/proc/{self.pid}/stat", encoding="ascii") as file:
            fields = file.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS


@pytest.fixture(params=[POLICY, ASKED], ids=["identity in C", "on_request in Python"])
def course(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Course]:
    answerer = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    answerer.settimeout(10)
    answerer.bind((HOST, free_port()))
    upstream = f"sip:{HOST}:{answerer.getsockname()[1]};transport=udp"
    with Edge(tmp_path_factory.mktemp("edge"), upstream=[upstream], policy=request.param) as edge:
        one = Course(edge, answerer)
        yield one
        one.client.close()
    answerer.close()


@pytest.mark.parametrize("in_flight", [1, 32])
def test_options_from_a_websocket_to_udp_and_back(benchmark: BenchmarkFixture, course: Course, in_flight: int) -> None:
    benchmark.group = f"{in_flight} OPTIONS of 700 B through the proxy"
    message = course.request()
    assert len(message) == 700
    course.send(message)
    forwarded = course.answer()
    answer = course.receive()
    vias = re.findall(rb"\r\nVia: ([^\r]*)", forwarded)
    assert len(vias) == 2 and vias[0].startswith(b"SIP/2.0/UDP ") and b"\r\nMax-Forwards: 69\r\n" in forwarded
    assert forwarded.partition(b"\r\n\r\n")[2] == message.partition(b"\r\n\r\n")[2]
    assert re.findall(rb"\r\nVia: ([^\r]*)", answer) == [b"SIP/2.0/WS alice.invalid;branch=z9hG4bK00000001"]
    assert answer.startswith(b"SIP/2.0 200 OK\r\n") and b"\r\nCSeq: 1 OPTIONS\r\n" in answer

    assert course.turn(in_flight) == in_flight
    before, first = course.cpu(), course.number
    assert benchmark(course.turn, in_flight) == in_flight
    made = course.number - first
    benchmark.extra_info["proxy_cpu_us"] = round((course.cpu() - before) * 1e6 / made, 1)
    benchmark.extra_info["transactions"] = made
