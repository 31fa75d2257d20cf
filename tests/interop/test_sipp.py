# SIPp as the SIP server behind the edge: calls in both directions with offers and answers of 8 kB.
# One frame, one datagram and one stream message of that size, and nothing of it lost.

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ..conftest import free_port
from .peers import Edge, RegistrarStub, Sipp, session_description
from .phones import Phone

SDP_BYTES = 8192
SDP = session_description(SDP_BYTES)
LAST_LINE = SDP.splitlines()[-1]
ALICE = "sip:alice@example.com"

pytestmark = [
    pytest.mark.usefixtures("node", "sipp_installed"),
    pytest.mark.parametrize("library", ["jssip", "sipjs"]),
]
either_transport = pytest.mark.parametrize("transport", ["udp", "tcp"])


@either_transport
def test_a_browser_calls_a_server_and_both_descriptions_of_8_kb_arrive_whole(
    tmp_path: Path, edge: Callable[..., Edge], library: str, transport: str
) -> None:
    port = free_port()
    with Sipp(tmp_path, "answer", port, transport, sdp=SDP, last_line=LAST_LINE):
        server = edge(upstream=[f"sip:127.0.0.1:{port};transport={transport}"])
        with Phone(library, server.url, ALICE, sdp_bytes=SDP_BYTES) as phone:
            phone.expect("connected")
            phone.command("call", target="sip:service@example.com")
            phone.expect("progress", code=180)
            assert phone.expect("accepted")["sdp"] == SDP
            phone.expect("confirmed")
            phone.command("hangup")
            phone.expect("received", code=200, method="BYE")


@contextmanager
def registered(
    edge: Callable[..., Edge], transport: str, library: str
) -> Iterator[tuple[Edge, Phone, RegistrarStub, dict[str, str]]]:
    """A phone registered through the edge with a stub, and what a scenario must be told to call it."""
    with RegistrarStub(transport) as stub:
        server = edge(upstream=[stub.uri])
        with Phone(library, server.url, ALICE, sdp_bytes=SDP_BYTES) as phone:
            phone.expect("connected")
            phone.register()
            call = {"contact": stub.contact, "path": stub.path, "to": ALICE, "sdp": SDP, "last_line": LAST_LINE}
            yield server, phone, stub, call


@either_transport
@pytest.mark.rule(28)
def test_a_server_calls_a_browser_by_its_path_and_hangs_up(
    tmp_path: Path, edge: Callable[..., Edge], library: str, transport: str
) -> None:
    with (
        registered(edge, transport, library) as (server, phone, _, call),
        Sipp(tmp_path, "call", free_port(), transport, server.sip_port, patience="300", **call),
    ):
        assert phone.expect("incoming")["sdp"] == SDP
        phone.command("answer")
        phone.expect("confirmed")
        phone.expect("ended", by="remote")


@pytest.mark.rule(28)
def test_a_server_calls_a_browser_by_its_path_and_the_browser_hangs_up(
    tmp_path: Path, edge: Callable[..., Edge], library: str
) -> None:
    # UDP only: towards TCP the BYE would need a server that listens where it calls from, and SIPp does not.
    with registered(edge, "udp", library) as (server, phone, stub, call):
        # SIPp takes the stub's own place: what the browser sends within the dialog goes to an upstream's address.
        stub.close()
        with Sipp(tmp_path, "call", stub.port, "udp", server.sip_port, patience="15000", **call):
            assert phone.expect("incoming")["sdp"] == SDP
            phone.command("answer")
            phone.expect("confirmed")
            phone.command("hangup")
            phone.expect("received", code=200, method="BYE")
