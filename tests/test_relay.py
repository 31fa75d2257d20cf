"""The whole proxy as a process: what goes up, what comes down, and over which transport."""

from __future__ import annotations

import contextlib
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import free_port, wait_for
from .interop.peers import Edge
from .relay import HOST, NAMED, Client, TcpServer, UdpServer, answer, contact, diary, lines, request, status

TOKEN = re.compile(r"<sip:([A-Za-z0-9_-]{48})@([^;>]+)((?:;[^>]*)?)>")


class Place:
    """fastws between a client and a SIP server over UDP."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.up = UdpServer()
        self.edge = Edge(directory, upstream=[self.up.uri], policy=NAMED)
        self.down = (HOST, self.edge.sip_port)

    def client(self, user: str = "alice") -> Client:
        return Client(self.edge.url, user)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    made = Place(tmp_path_factory.mktemp("relay"))
    with made.edge:
        yield made
    made.up.close()


@pytest.fixture
def alice(place: Place) -> Iterator[Client]:
    client = place.client()
    yield client
    client.close()
    while not place.up.silent(0.02):
        pass


def register(place: Place, client: Client, number: int = 1) -> str:
    """Register `client` with the server; its Path as the server received it."""
    client.send(request("REGISTER", number, user=client.user, call_id=f"r-{client.user}", headers=contact(client.user)))
    received = place.up.receive()
    place.up.send(answer(received, 200))
    assert status(client.receive()) == 200
    [path] = lines(received, "Path")
    return path


def downward(method: str, route: str, *, number: int = 1, headers: str = "", to_tag: str = "", via: str = "") -> str:
    """A request of the SIP server for the client behind `route`."""
    return (
        f"{method} sip:alice@alice.invalid;transport=ws SIP/2.0\r\n"
        f"Via: {via or f'SIP/2.0/UDP {HOST};rport;branch=z9hG4bKup{number}'}\r\n"
        f"Route: {route}\r\n"
        "Max-Forwards: 70\r\n"
        "From: <sip:bob@example.com>;tag=u1\r\n"
        f"To: <sip:alice@example.com>{f';tag={to_tag}' if to_tag else ''}\r\n"
        f"Call-ID: up-{number}\r\nCSeq: 1 {method}\r\n{headers}Content-Length: 0\r\n\r\n"
    )


@pytest.mark.rule(25)
@pytest.mark.rule(17)
def test_a_request_goes_up_with_our_via_on_top_and_one_hop_less(place: Place, alice: Client) -> None:
    alice.send(request("OPTIONS", 7))
    received = place.up.receive()
    top, below = lines(received, "Via")
    assert re.fullmatch(rf"SIP/2\.0/UDP {HOST}:{place.edge.sip_port};branch=z9hG4bK[A-Za-z0-9_-]{{48}};rport", top)
    assert below == "SIP/2.0/WS alice.invalid;branch=z9hG4bK7"
    assert lines(received, "Max-Forwards") == ["69"]
    place.up.send(answer(received, 200))
    response = alice.receive()
    assert status(response) == 200
    assert lines(response, "Via") == [below]


@pytest.mark.rule(17)
def test_a_request_without_max_forwards_gets_70_and_one_with_0_gets_483(place: Place, alice: Client) -> None:
    alice.send(request("MESSAGE").replace("Max-Forwards: 70\r\n", ""))
    assert lines(place.up.receive(), "Max-Forwards") == ["70"]
    alice.send(request("MESSAGE").replace("Max-Forwards: 70", "Max-Forwards: 0"))
    assert status(alice.receive()) == 483
    assert place.up.silent()


@pytest.mark.rule(47)
def test_an_options_that_ends_here_is_answered_here(place: Place, alice: Client) -> None:
    own = f"sip:{HOST}:{place.edge.sip_port}"
    alice.send(request("OPTIONS", uri=own).replace("Max-Forwards: 70", "Max-Forwards: 0"))
    assert status(alice.receive()) == 200
    ping = downward("OPTIONS", "").replace("Route: \r\n", "").replace("sip:alice@alice.invalid;transport=ws", own)
    place.up.send(ping, place.down)
    assert status(place.up.receive()) == 200


@pytest.mark.rule(18)
def test_a_proxy_require_is_420_and_names_what_is_not_supported(place: Place, alice: Client) -> None:
    alice.send(request("OPTIONS", headers="Proxy-Require: foo, bar\r\nRequire: baz\r\n"))
    response = alice.receive()
    assert status(response) == 420
    assert lines(response, "Unsupported") == ["foo, bar"]


@pytest.mark.rule(28)
@pytest.mark.rule(23)
def test_a_register_gets_our_path_above_others_and_keeps_its_contact(place: Place, alice: Client) -> None:
    alice.send(request("REGISTER", headers=contact() + "Path: <sip:other.example.com;lr>\r\n"))
    received = place.up.receive()
    ours, other = lines(received, "Path")
    assert TOKEN.fullmatch(ours)
    assert ours.endswith(";lr;ob>")
    assert other == "<sip:other.example.com;lr>"
    assert lines(received, "Contact") == [contact().split("\r\n")[0].removeprefix("Contact: ")]
    assert not lines(received, "Record-Route")
    alice.send(request("REGISTER", 2, headers="Contact: <sip:alice@alice.invalid;transport=ws>\r\n"))
    [path] = lines(place.up.receive(), "Path")
    assert path.endswith(";lr>")
    assert ";ob" not in path
    match, again = TOKEN.fullmatch(path), TOKEN.fullmatch(ours)
    assert match and again and match[1] == again[1]


@pytest.mark.rule(51)
def test_supported_path_is_added_where_the_client_left_it_out(place: Place, alice: Client) -> None:
    alice.send(request("REGISTER", headers="Contact: <sip:alice@alice.invalid>\r\nk: gruu, PATH-x\r\n"))
    assert lines(place.up.receive(), "Supported") == ["path"]
    alice.send(request("REGISTER", 2, headers="Contact: <sip:alice@alice.invalid>\r\nk: gruu,Path\r\n"))
    assert lines(place.up.receive(), "Supported") == []
    alice.send(request("OPTIONS", 3))
    assert lines(place.up.receive(), "Supported") == []


@pytest.mark.rule(24)
def test_an_invite_gets_two_record_routes_for_the_two_transports(place: Place, alice: Client) -> None:
    alice.send(request("INVITE", headers="Contact: <sip:alice@alice.invalid;transport=ws;ob>\r\n"))
    received = place.up.receive()
    first, second = (TOKEN.fullmatch(value) for value in lines(received, "Record-Route"))
    assert first and second
    assert first[3] == ";transport=udp;lr"
    assert second[3] == ";transport=ws;lr"
    assert first[1] == second[1]


@pytest.mark.rule(29)
def test_a_request_by_path_reaches_its_client_and_the_answer_its_sender(place: Place, alice: Client) -> None:
    path = register(place, alice)
    place.up.send(downward("MESSAGE", path), place.down)
    received = alice.receive()
    assert received.startswith("MESSAGE sip:alice@alice.invalid;transport=ws SIP/2.0\r\n")
    assert not lines(received, "Route")
    top, below = lines(received, "Via")
    assert top.startswith(f"SIP/2.0/WS {HOST}:{place.edge.sip_port};branch=z9hG4bK")
    assert f"rport={place.up.port}" in below and f"received={HOST}" in below
    alice.send(answer(received, 200))
    response = place.up.receive()
    assert status(response) == 200
    assert lines(response, "Via") == [below]


@pytest.mark.rule(27)
def test_without_rport_the_answer_goes_to_the_port_of_the_via_at_the_address_it_came_from(
    place: Place, alice: Client
) -> None:
    path = register(place, alice)
    other = UdpServer()
    via = f"SIP/2.0/UDP 192.0.2.99:{other.port};branch=z9hG4bKnr"
    place.up.send(downward("MESSAGE", path, number=3, via=via), place.down)
    received = alice.receive()
    assert lines(received, "Via")[1] == f"{via};received={HOST}"
    alice.send(answer(received, 200))
    assert status(other.receive()) == 200
    assert place.up.silent()
    other.close()


@pytest.mark.rule(29)
@pytest.mark.rule(30)
def test_a_flow_that_is_gone_is_430_and_never_another_clients(place: Place) -> None:
    first = place.client()
    path = register(place, first)
    before = len(diary(place.directory))
    first.close()
    wait_for(lambda: len(diary(place.directory)) > before)
    # The slot is taken again at once, by another tenant.
    second = place.client("mallory")
    place.up.send(downward("INVITE", path), place.down)
    assert status(place.up.receive()) == 430
    place.up.send(downward("ACK", path), place.down)
    assert place.up.silent()
    assert second.silent()
    second.close()


@pytest.mark.rule(29)
def test_a_token_that_was_tampered_with_is_403(place: Place, alice: Client) -> None:
    path = register(place, alice)
    for at in range(6, 45, 3):
        forged = path[:at] + ("A" if path[at] != "A" else "B") + path[at + 1 :]
        place.up.send(downward("MESSAGE", forged, number=at), place.down)
        assert status(place.up.receive()) == 403, at
    assert alice.silent(0.1)


def test_a_client_cannot_use_the_path_token_of_another(place: Place, alice: Client) -> None:
    path = register(place, alice)
    mallory = place.client("mallory")
    for route in (f"Route: {path}\r\n", f"Route: <sip:{HOST}:{place.edge.port};transport=ws;lr>\r\nRoute: {path}\r\n"):
        mallory.send(request("MESSAGE", user="mallory", to="alice", headers=route))
        assert status(mallory.receive()) == 403
    assert place.up.silent()
    assert alice.silent(0.1)
    mallory.close()


@pytest.mark.rule(22)
def test_a_foreign_route_outside_a_dialog_is_403_and_goes_nowhere(place: Place, alice: Client) -> None:
    stranger = UdpServer("127.0.0.3")
    alice.send(request("MESSAGE", headers=f"Route: <sip:127.0.0.3:{stranger.port};lr>\r\n"))
    assert status(alice.receive()) == 403
    alice.send(request("MESSAGE", 2, uri=f"sip:bob@127.0.0.3:{stranger.port};maddr=127.0.0.3"))
    assert place.up.receive().startswith(f"MESSAGE sip:bob@127.0.0.3:{stranger.port};maddr=127.0.0.3 SIP/2.0\r\n")
    assert stranger.silent(0.1)
    stranger.close()


def test_sip_from_an_address_that_is_not_the_upstreams_is_dropped(place: Place, alice: Client) -> None:
    path = register(place, alice)
    stranger = UdpServer("127.0.0.3")
    via = f"SIP/2.0/UDP 127.0.0.3:{stranger.port};rport;branch=z9hG4bKx"
    stranger.send(downward("MESSAGE", path, via=via), place.down)
    assert alice.silent()
    assert stranger.silent(0.05)
    assert "untrusted 127.0.0.3:" in place.edge.log()
    stranger.close()


@pytest.mark.rule(12)
def test_a_response_with_a_forged_branch_is_dropped(place: Place, alice: Client) -> None:
    alice.send(request("OPTIONS"))
    received = place.up.receive()
    good = answer(received, 200)
    at = good.index("z9hG4bK") + 20
    place.up.send(good[:at] + ("A" if good[at] != "A" else "B") + good[at + 1 :])
    assert alice.silent()
    place.up.send(good)
    assert status(alice.receive()) == 200


@pytest.mark.rule(12)
def test_a_client_cannot_answer_for_another(place: Place, alice: Client) -> None:
    path = register(place, alice)
    mallory = place.client("mallory")
    place.up.send(downward("MESSAGE", path, number=11), place.down)
    received = alice.receive()
    mallory.send(answer(received, 200))
    assert place.up.silent()
    alice.send(answer(received, 202))
    assert status(place.up.receive()) == 202
    mallory.close()


def establish(place: Place, alice: Client, call_id: str) -> tuple[str, list[str]]:
    """A call from alice to the server: the INVITE as received, and alice's route set."""
    alice.send(request("INVITE", 1, call_id=call_id, headers="Contact: <sip:alice@alice.invalid;transport=ws;ob>\r\n"))
    invite = place.up.receive()
    place.up.send(answer(invite, 200, headers=f"Contact: <sip:bob@{HOST}:{place.up.port}>\r\n"))
    response = alice.receive()
    assert status(response) == 200
    return invite, lines(response, "Record-Route")[::-1]


def test_a_dialog_leads_both_ways_by_its_record_routes(place: Place, alice: Client) -> None:
    invite, routes = establish(place, alice, "d1")
    header = "".join(f"Route: {route}\r\n" for route in routes)
    alice.send(request("ACK", 2, call_id="d1", to_tag="u1", headers=header, uri=f"sip:bob@{HOST}:{place.up.port}"))
    ack = place.up.receive()
    assert ack.startswith("ACK ")
    assert not lines(ack, "Route")
    route = ", ".join(lines(invite, "Record-Route"))
    bye = downward("BYE", route, number=4, to_tag="falice").replace("Call-ID: up-4", "Call-ID: d1")
    place.up.send(bye, place.down)
    received = alice.receive()
    assert received.startswith("BYE ")
    assert not lines(received, "Route")


def test_a_dialog_token_opens_only_under_its_own_call_id(place: Place, alice: Client) -> None:
    invite, _ = establish(place, alice, "d2")
    place.up.send(downward("BYE", lines(invite, "Record-Route")[0], number=5, to_tag="falice"), place.down)
    assert status(place.up.receive()) == 403
    assert alice.silent(0.1)


@pytest.mark.rule(41)
@pytest.mark.rule(42)
def test_cancel_and_the_ack_to_a_refusal_are_made_here_with_the_branch_of_their_invite(
    place: Place, alice: Client
) -> None:
    alice.send(request("INVITE", 9, call_id="x1", headers="Contact: <sip:alice@alice.invalid;transport=ws>\r\n"))
    invite = place.up.receive()
    place.up.send(answer(invite, 180, "Ringing"))
    assert status(alice.receive()) == 180
    alice.send(request("CANCEL", 9, call_id="x1"))
    assert status(alice.receive()) == 200
    cancel = place.up.receive()
    assert cancel.startswith("CANCEL sip:bob@example.com SIP/2.0\r\n")
    assert lines(cancel, "Via") == lines(invite, "Via")[:1]
    assert lines(cancel, "CSeq") == ["1 CANCEL"]
    place.up.send(answer(cancel, 200))
    place.up.send(answer(invite, 487, "Request Terminated"))
    ack = place.up.receive()
    assert ack.startswith("ACK sip:bob@example.com SIP/2.0\r\n")
    assert lines(ack, "Via") == lines(invite, "Via")[:1]
    assert lines(ack, "To") == ["<sip:bob@example.com>;tag=u1"]
    assert status(alice.receive()) == 487
    alice.send(request("ACK", 9, call_id="x1", to_tag="u1"))
    assert place.up.silent()
    assert alice.silent(0.05)


def test_cancel_from_the_server_is_answered_and_sent_on_once_the_client_has_answered(
    place: Place, alice: Client
) -> None:
    path = register(place, alice)
    place.up.send(downward("INVITE", path, number=21), place.down)
    invite = alice.receive()
    # Over UDP a request may be repeated; the client has it already.
    place.up.send(downward("INVITE", path, number=21), place.down)
    place.up.send(downward("CANCEL", path, number=21), place.down)
    codes = sorted(status(place.up.receive()) for _ in range(2))
    assert codes == [100, 200]
    assert alice.silent(0.2)
    alice.send(answer(invite, 180, "Ringing"))
    cancel = alice.receive()
    assert cancel.startswith("CANCEL ")
    assert lines(cancel, "Via") == lines(invite, "Via")[:1]
    alice.send(answer(cancel, 200))
    assert status(place.up.receive()) == 180
    alice.send(answer(invite, 487, "Request Terminated"))
    ack = alice.receive()
    assert ack.startswith("ACK ")
    assert lines(ack, "Via") == lines(invite, "Via")[:1]
    assert status(place.up.receive()) == 487
    place.up.send(downward("ACK", path, number=21, to_tag="u1"), place.down)
    assert alice.silent(0.2)
    assert place.up.silent(0.7)


@pytest.mark.rule(46)
def test_an_asserted_identity_of_a_client_is_cut_and_that_of_the_server_passes(place: Place, alice: Client) -> None:
    asserted = "P-Asserted-Identity: <sip:ceo@example.com>\r\n"
    alice.send(request("MESSAGE", headers=f"{asserted}p-asserted-identity :<tel:+1>\r\nX-After: kept\r\n"))
    received = place.up.receive()
    assert not lines(received, "P-Asserted-Identity")
    assert lines(received, "X-After") == ["kept"]
    path = register(place, alice)
    place.up.send(downward("MESSAGE", path, number=31, headers=asserted), place.down)
    message = alice.receive()
    assert lines(message, "P-Asserted-Identity") == ["<sip:ceo@example.com>"]
    alice.send(answer(message, 200, headers=asserted))
    assert not lines(place.up.receive(), "P-Asserted-Identity")


@pytest.mark.rule(8)
def test_bytes_that_are_no_utf8_pass_both_ways_as_binary(place: Place, alice: Client) -> None:
    raw = request("MESSAGE", headers="Subject: caf\udce9\r\n").encode("utf-8", "surrogateescape")
    alice.send(raw)
    received = place.up.receive()
    assert lines(received, "Subject") == ["caf\udce9"]
    place.up.send(answer(received, 200, headers="Subject: caf\udce9\r\n"))
    message = alice.socket.recv(5)
    assert isinstance(message, bytes)
    assert b"Subject: caf\xe9\r\n" in message


def test_a_message_too_long_for_a_datagram_is_513(place: Place, alice: Client) -> None:
    alice.send(request("MESSAGE", body="x" * 65230))
    assert status(alice.receive()) == 513
    alice.send(request("MESSAGE", 2, body="x" * 60000))
    assert place.up.receive().endswith("x" * 60000)


def test_what_a_server_repeats_for_privacy_is_cut_only_where_configured(tmp_path: Path) -> None:
    up = UdpServer()
    with Edge(tmp_path, upstream=[up.uri], policy=NAMED, config="privacy = true\n") as edge:
        alice = Client(edge.url)
        alice.send(request("INVITE", headers=contact()))
        received = up.receive()
        asserted = "P-Asserted-Identity: <sip:bob@example.com>\r\n"
        up.send(answer(received, 180, headers=f"{asserted}Privacy: header;id\r\n"))
        assert not lines(alice.receive(), "P-Asserted-Identity")
        up.send(answer(received, 200, headers=asserted))
        assert lines(alice.receive(), "P-Asserted-Identity") == ["<sip:bob@example.com>"]
        alice.close()
    up.close()


def test_trusted_networks_may_speak_and_be_spoken_to(tmp_path: Path) -> None:
    up, friend = UdpServer(), UdpServer("127.0.0.3")
    with Edge(tmp_path, upstream=[up.uri], policy=NAMED, config='trusted = ["127.0.0.3/32"]\n') as edge:
        alice = Client(edge.url)
        alice.send(request("INVITE", headers="Contact: <sip:alice@alice.invalid;transport=ws>\r\n"))
        invite = up.receive()
        contact_line = f"Contact: <sip:bob@127.0.0.3:{friend.port}>\r\n"
        up.send(answer(invite, 200, headers=contact_line))
        routes = lines(alice.receive(), "Record-Route")[::-1]
        header = "".join(f"Route: {route}\r\n" for route in routes)
        target = f"sip:bob@127.0.0.3:{friend.port}"
        alice.send(request("ACK", 2, to_tag="u1", headers=header, uri=target))
        assert friend.receive().startswith(f"ACK {target} SIP/2.0\r\n")
        # Without the proof of the dialog the same request goes where all others go.
        alice.send(request("BYE", 3, to_tag="u1", uri=target, cseq=2))
        assert up.receive().startswith("BYE ")
        alice.send(request("BYE", 4, to_tag="u1", headers=header, uri=target, cseq=2))
        bye = friend.receive()
        friend.send(answer(bye, 200))
        assert status(alice.receive()) == 200
        alice.close()
    up.close()
    friend.close()


# -- TCP ---------------------------------------------------------------------------------------------------------------


def test_a_tcp_upstream_gets_framed_messages_and_its_requests_come_back(tmp_path: Path) -> None:
    up = TcpServer()
    with Edge(tmp_path, upstream=[up.uri], policy=NAMED) as edge:
        alice = Client(edge.url)
        text = request("MESSAGE", body="hi").replace("Content-Length: 2\r\n", "")
        alice.send(text)
        received = up.receive()
        assert lines(received, "Content-Length") == ["2"]
        assert lines(received, "Via")[0].startswith("SIP/2.0/TCP ")
        both = answer(received, 100, "Trying") + answer(received, 200)
        for byte in both.encode():
            up.send(bytes([byte]))
        assert status(alice.receive()) == 200
        alice.send(request("REGISTER", 2, headers=contact()))
        [path] = lines(up.receive(), "Path")
        assert ";transport=tcp;" in path
        # The server may speak over the connection that we opened, or open one of its own to the address in Path.
        message = downward("MESSAGE", path, via=f"SIP/2.0/TCP {HOST};branch=z9hG4bKt1")
        up.send(message)
        own = alice.receive()
        alice.send(answer(own, 200))
        assert status(up.receive()) == 200
        with socket.create_connection((HOST, edge.sip_port)) as second:
            second.sendall(message.replace("z9hG4bKt1", "z9hG4bKt2").encode())
            alice.send(answer(alice.receive(), 202))
            second.settimeout(5)
            assert second.recv(65536).startswith(b"SIP/2.0 202 ")
        up.send("\r\n\r\n")
        assert up.socket is not None
        up.socket.settimeout(5)
        assert up.socket.recv(10) == b"\r\n"
        alice.close()
    up.close()


def test_a_tcp_upstream_that_hangs_up_is_dialled_again_once(tmp_path: Path) -> None:
    up = TcpServer()
    with Edge(tmp_path, upstream=[up.uri], policy=NAMED) as edge:
        alice = Client(edge.url)
        alice.send(request("OPTIONS"))
        up.receive()
        up.hang_up()
        for number in range(2, 50):
            alice.send(request("OPTIONS", number, call_id=f"n{number}"))
        seen = [lines(up.receive(), "Call-ID")[0] for _ in range(2, 50)]
        assert seen == [f"n{number}" for number in range(2, 50)]
        up.listener.settimeout(0.2)
        with pytest.raises(TimeoutError):
            up.listener.accept()
        alice.close()
    up.close()


def test_while_a_tcp_upstream_is_down_requests_get_503_and_none_is_lost(tmp_path: Path) -> None:
    port = free_port()
    with Edge(tmp_path, upstream=[f"sip:{HOST}:{port};transport=tcp"], policy=NAMED) as edge:
        alice = Client(edge.url)
        alice.send(request("OPTIONS"))
        response = alice.receive()
        assert status(response) == 503
        assert lines(response, "Retry-After") == ["5"]
        assert lines(response, "Via") == ["SIP/2.0/WS alice.invalid;branch=z9hG4bK1"]
        wait_for(lambda: "upstream cannot be reached" in edge.log())
        up = TcpServer(port)
        up.accept(10)
        wait_for(lambda: "upstream is up again" in edge.log())

        def served() -> bool:
            alice.send(request("OPTIONS", 2))
            up.receive()
            return True

        assert wait_for(served)
        alice.close()
        up.close()


@pytest.mark.parametrize(
    "stream",
    [
        b"SIP/2.0 200 OK\r\nX: " + b"a" * 200_000,
        b"SIP/2.0 200 OK\r\nVia: SIP/2.0/TCP 127.0.0.1;branch=z9hG4bKx\r\nContent-Length: 2147483647\r\n\r\n",
        b"this is no SIP at all\r\n\r\n",
    ],
)
def test_a_tcp_stream_that_is_no_sip_is_closed_and_a_new_one_serves(tmp_path: Path, stream: bytes) -> None:
    up = TcpServer()
    with Edge(tmp_path, upstream=[up.uri], policy=NAMED) as edge:
        alice = Client(edge.url)
        up.accept()
        up.send(stream)
        assert up.socket is not None
        up.socket.settimeout(5)
        with contextlib.suppress(ConnectionResetError):
            assert up.socket.recv(10) == b""
        up.hang_up()
        alice.send(request("OPTIONS"))
        up.send(answer(up.receive(), 200))
        assert status(alice.receive()) == 200
        assert "connection closed" in edge.log()
        alice.close()
    up.close()


def test_a_tcp_connection_from_a_stranger_is_closed(tmp_path: Path) -> None:
    up = UdpServer()
    with Edge(tmp_path, upstream=[up.uri], policy=NAMED) as edge:
        with socket.create_connection((HOST, edge.sip_port), source_address=("127.0.0.3", 0)) as stranger:
            stranger.settimeout(5)
            assert stranger.recv(10) == b""
        assert "TCP connection from an address" in edge.log()
    up.close()


def test_ipv6_on_both_sides(tmp_path: Path) -> None:
    up = UdpServer("::1")
    port, sip = free_port("::1"), free_port("::1")
    flags = ["--listen", f"ws://[::1]:{port}", "--sip", f"[::1]:{sip}"]
    with Edge(tmp_path, upstream=[f"sip:[::1]:{up.port}"], policy=NAMED, flags=flags):
        alice = Client(f"ws://[::1]:{port}")
        alice.send(request("REGISTER", headers=contact()))
        received = up.receive()
        assert lines(received, "Via")[0].startswith(f"SIP/2.0/UDP [::1]:{sip};branch=")
        [path] = lines(received, "Path")
        assert f"@[::1]:{sip};transport=udp;lr;ob>" in path
        up.send(answer(received, 200))
        assert status(alice.receive()) == 200
        up.send(downward("MESSAGE", path, via=f"SIP/2.0/UDP [::1]:{up.port};rport;branch=z9hG4bK6"))
        message = alice.receive()
        assert "received=::1" in lines(message, "Via")[1]
        alice.send(answer(message, 200))
        assert status(up.receive()) == 200
        alice.close()
    up.close()


def test_a_client_cannot_end_the_invite_of_another(tmp_path: Path) -> None:
    up = UdpServer()
    with Edge(tmp_path, upstream=[up.uri], policy=NAMED) as edge:
        alice, mallory = Client(edge.url), Client(edge.url, "mallory")
        paths = []
        for client in (alice, mallory):
            client.send(request("REGISTER", user=client.user, call_id=client.user, headers=contact(client.user)))
            received = up.receive()
            up.send(answer(received, 200))
            client.receive()
            paths += lines(received, "Path")
        up.send(downward("INVITE", paths[0], number=1), (HOST, edge.sip_port))
        for_alice = alice.receive()
        up.send(downward("MESSAGE", paths[1], number=2), (HOST, edge.sip_port))
        for_mallory = mallory.receive()
        # Her own genuine branch on top of the Via, Call-ID and CSeq of his INVITE.
        forged = answer(for_alice, 200).replace(lines(for_alice, "Via")[0], lines(for_mallory, "Via")[0])
        for _ in range(3):
            mallory.send(forged)
        assert status(up.receive()) == 100
        assert up.silent()
        alice.send(answer(for_alice, 180, "Ringing"))
        up.send(downward("CANCEL", paths[0], number=1), (HOST, edge.sip_port))
        cancel = alice.receive()
        assert lines(cancel, "Via")[0] == lines(for_alice, "Via")[0]
        alice.close()
        mallory.close()
    up.close()


def test_two_crlfs_are_a_ping_however_they_are_cut_and_a_flood_gets_few_answers(tmp_path: Path) -> None:
    up = TcpServer()
    with Edge(tmp_path, upstream=[up.uri], policy=NAMED) as edge:
        alice = Client(edge.url)
        up.accept()
        assert up.socket is not None
        up.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        up.socket.settimeout(5)
        for byte in b"\r\n\r\n":
            up.send(bytes([byte]))
        assert up.socket.recv(10) == b"\r\n"
        up.send(b"\r\n" * 100_000)
        alice.send(request("OPTIONS"))
        assert up.receive().startswith("OPTIONS ")
        assert 1 <= up.keepalives < 1000
        alice.close()
    up.close()


def test_a_tcp_upstream_that_hangs_up_at_once_is_not_dialled_in_a_loop(tmp_path: Path) -> None:
    up = TcpServer()
    with Edge(tmp_path, upstream=[up.uri], policy=NAMED):
        dialled = 0
        end = time.monotonic() + 1.0
        while time.monotonic() < end:
            with contextlib.suppress(TimeoutError):
                up.accept(end - time.monotonic() + 0.01)
                up.hang_up()
                dialled += 1
        # At once, after 0.1, 0.2, 0.4, 0.8 s.
        assert 2 <= dialled <= 5
    up.close()


def test_the_ack_to_an_answer_of_our_own_goes_no_further(place: Place, alice: Client) -> None:
    alice.send(request("INVITE", 61, call_id="own", headers="Proxy-Require: x\r\n" + contact()))
    refused = alice.receive()
    assert status(refused) == 420
    tag = lines(refused, "To")[0].partition(";tag=")[2]
    alice.send(request("ACK", 61, call_id="own", to_tag=tag))
    assert place.up.silent()
    alice.send(request("ACK", 62, call_id="own", to_tag="else"))
    assert place.up.receive().startswith("ACK ")
