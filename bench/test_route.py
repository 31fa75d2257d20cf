"""What one request costs between two sockets: scanned, checked, its Routes read, edited and written out again.

python -m pytest bench/test_route.py --benchmark-enable --benchmark-group-by=group

One round does it ROUNDS times in C, so a time in us is about the time of one in ns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests import probe_core

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

ROUNDS = 1000
KEY = bytes(range(16))
CALL = b"q3jk2h4kjh23k4jh@h4kjh.invalid"
NODE = probe_core.RouteNode(
    KEY, epoch=7, advertised=b"192.0.2.10:5070", names=[(b"192.0.2.10", 5070), (b"edge.example.com", 0)]
)
DIALOG = probe_core.token_seal((2, 0, 0, 7, 0, 1, 65536, 0, 0), KEY, CALL)


def request(method: bytes, route: bytes = b"", to_tag: bytes = b"", length: int = 700) -> bytes:
    """A request as JsSIP writes it, filled up to `length` bytes by its body."""
    head = b"".join(
        [
            method + b" sip:bob@example.com SIP/2.0\r\n",
            route,
            b"Via: SIP/2.0/WS qduaoqq7uupk.invalid;branch=z9hG4bK5431876\r\n",
            b"Max-Forwards: 69\r\n",
            b"To: <sip:bob@example.com>" + to_tag + b"\r\n",
            b'From: "Alice" <sip:alice@example.com>;tag=8ag1t5fqv3\r\n',
            b"Call-ID: " + CALL + b"\r\nCSeq: 4711 " + method + b"\r\n",
            b"Contact: <sip:alice@qduaoqq7uupk.invalid;transport=ws;ob>\r\n",
            b"Allow: INVITE,ACK,CANCEL,BYE,UPDATE,MESSAGE,OPTIONS,REFER,INFO,NOTIFY\r\n",
            b"Supported: outbound,path,gruu\r\nUser-Agent: JsSIP 3.13.8\r\n",
        ]
    )
    body = length - len(head) - len(b"Content-Length: 000\r\n\r\n")
    return head + b"Content-Length: %d\r\n\r\n" % body + b"v" * body


KINDS = {
    "OPTIONS, outside a dialog": (request(b"OPTIONS"), False),
    "INVITE, two Record-Routes": (request(b"INVITE"), True),
    "INFO, its Route popped": (
        request(b"INFO", b"Route: <sip:" + DIALOG + b"@192.0.2.10:5070;transport=ws;lr>\r\n", b";tag=b0b"),
        False,
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_whole_way_of_a_request(benchmark: BenchmarkFixture, kind: str) -> None:
    benchmark.group = f"{ROUNDS} requests of 700 B"
    message, record_route = KINDS[kind]
    assert len(message) == 700
    scanned = probe_core.Scanned(message)
    forwarded = scanned.forward(NODE, record_route=record_route)
    again = probe_core.Scanned(forwarded)
    assert again.status == 0 and forwarded.count(b"\r\nVia: ") == 2 and b"\r\nMax-Forwards: 68\r\n" in forwarded
    assert forwarded.count(b"\r\nRecord-Route: ") == (2 if record_route else 0) and b"\r\nRoute: " not in forwarded
    assert forwarded.partition(b"\r\n\r\n")[2] == message.partition(b"\r\n\r\n")[2]
    written = scanned.whole_way(NODE, ROUNDS, record_route=record_route)
    assert written == ROUNDS * len(forwarded)
    assert benchmark(scanned.whole_way, NODE, ROUNDS, record_route=record_route) == written
