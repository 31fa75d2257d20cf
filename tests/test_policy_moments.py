"""The three moments of policy, against the real proxy: what it may ask, what it may change, and what it is told."""

from __future__ import annotations

import signal
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from websockets.exceptions import InvalidStatus

from .conftest import free_port, make_certificate, wait_for
from .interop.peers import Edge
from .relay import DIARY, HOST, NAMED, Client, UdpServer, answer, contact, diary, lines, request, status

ASKING = (
    NAMED
    + """
import asyncio
ON_REQUEST_METHODS = {"MESSAGE", "INVITE", "REGISTER", "ACK", "INFO"}

def on_request(request, connection):
    what = request.headers.get("X-Do", "")
    note(asked=request.method, call_id=request.call_id, user=connection["user"], in_dialog=request.in_dialog)
    return globals()["do_" + what](request, connection) if what else None

def do_reject(request, connection):
    return request.reject(488, "Not That", headers={"X-Why": "because"})
def do_reject_close(request, connection):
    return request.reject(403, "Go Away", close=True)
def do_drop(request, connection):
    return request.drop()
def do_raise(request, connection):
    raise RuntimeError("inside of the policy")
def do_wrong(request, connection):
    return True
def do_edit(request, connection):
    request.add_header("X-Added", "one")
    request.add_header("X-Added", "two")
    request.set_header("Subject", "new")
    request.remove_header("X-Gone")
    request.set_header("P-Asserted-Identity", "<sip:alice@example.com>")
def do_forward(request, connection):
    request.forward(request.headers["X-To"])
def do_close(request, connection):
    connection.close(4000, "enough")
    connection.close(4001, "again")
def do_forge(request, connection):
    name, value = request.headers["X-Args"].replace("~", "\\r\\n").split("|")
    getattr(request, request.headers["X-Call"])(name, value)
def do_look(request, connection):
    import fastws
    note(look=dict(
        method=request.method, uri=str(request.uri), from_user=request.from_uri.user, to=str(request.to_uri),
        contact=request.contact_uri.host, cseq=request.cseq, body=request.body.decode(),
        subject=request.headers["subject"], kinds=request.headers.get_all("Accept"), names=list(request.headers),
        same=fastws.connections[connection.source] is connection, count=len(fastws.connections),
        secure=connection.secure, messages_in=connection.messages_in))
def do_keep(request, connection):
    KEPT.append(request)
KEPT = []
def do_kept(request, connection):
    note(kept=[(kept.call_id, kept.body.decode()) for kept in KEPT])
def do_set(request, connection):
    connection["user"] = request.headers["X-User"]
async def do_slow(request, connection):
    await asyncio.sleep(0.3)
    note(slow=request.call_id, body=request.body.decode())
async def do_slow_reject(request, connection):
    await asyncio.sleep(0.05)
    return request.reject(486)
async def do_slow_raise(request, connection):
    await asyncio.sleep(0.05)
    raise RuntimeError("late")
async def do_for_ever(request, connection):
    await asyncio.sleep(60)
"""
)


class Place:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.up = UdpServer()
        self.edge = Edge(directory, upstream=[self.up.uri], policy=ASKING, config="policy_timeout = 1\n")

    def noted(self, key: str) -> list[object]:
        return [entry[key] for entry in diary(self.directory) if key in entry]

    def ended(self, user: str) -> list[tuple[str, int, str]]:
        return [
            (entry["terminator"], entry["code"], entry["reason"])
            for entry in diary(self.directory)
            if entry.get("user") == user and "terminator" in entry
        ]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    made = Place(tmp_path_factory.mktemp("moments"))
    yield made
    # Policies that raise are part of this module, so the log may hold their tracebacks.
    assert made.edge.terminate() == 0
    made.up.close()


@pytest.fixture
def alice(place: Place) -> Iterator[Client]:
    client = Client(place.edge.url)
    yield client
    client.close()
    while not place.up.silent(0.02):
        pass


def ask(do: str, method: str = "MESSAGE", number: int = 1, headers: str = "", **options: str) -> str:
    return request(method, number, headers=f"X-Do: {do}\r\n{headers}", **options)  # type: ignore[arg-type]


def test_policy_sees_all_parts_of_a_request(place: Place, alice: Client) -> None:
    headers = "s: h\u00e9llo\r\n world\r\nAccept: a/b\r\naccept: c/d\r\n" + contact()
    alice.send(ask("look", headers=headers, body="b\u00f6dy"))
    place.up.receive()
    [seen] = place.noted("look")
    assert isinstance(seen, dict)
    assert seen["names"][:2] == ["Via", "Max-Forwards"]
    del seen["names"]
    assert seen == {
        "method": "MESSAGE",
        "uri": "sip:bob@example.com",
        "from_user": "alice",
        "to": "sip:bob@example.com",
        "contact": "alice.invalid",
        "cseq": 1,
        "body": "b\u00f6dy",
        "subject": "h\u00e9llo world",
        "kinds": ["a/b", "c/d"],
        "same": True,
        "count": 1,
        "secure": False,
        "messages_in": 1,
    }


def test_a_rejection_is_the_answer_and_nothing_goes_up(place: Place, alice: Client) -> None:
    alice.send(ask("reject"))
    response = alice.receive()
    assert response.startswith("SIP/2.0 488 Not That\r\n")
    assert lines(response, "X-Why") == ["because"]
    assert "tag=" in lines(response, "To")[0]
    assert place.up.silent()


def test_reject_with_close_answers_first_and_then_closes_with_1008(place: Place) -> None:
    client = Client(place.edge.url, "carol")
    client.send(ask("reject_close", user="carol"))
    assert status(client.receive()) == 403
    assert client.closed() == (1008, "Go Away")
    wait_for(lambda: place.ended("carol"))
    assert place.ended("carol") == [("policy", 1008, "Go Away")]


def test_a_dropped_request_gets_no_answer(place: Place, alice: Client) -> None:
    alice.send(ask("drop"))
    assert alice.silent()
    assert place.up.silent(0.05)


@pytest.mark.parametrize("do", ["raise", "wrong", "slow_raise"])
def test_a_policy_that_fails_is_500_and_the_connection_lives_on(place: Place, alice: Client, do: str) -> None:
    alice.send(ask(do))
    response = alice.receive()
    assert status(response) == 500
    assert "inside" not in response and "late" not in response
    alice.send(ask("", number=2))
    assert place.up.receive().startswith("MESSAGE ")


def test_a_policy_that_takes_too_long_is_500(place: Place, alice: Client) -> None:
    alice.send(ask("for_ever"))
    assert status(alice.receive()) == 500


def test_what_policy_changes_is_what_goes_up(place: Place, alice: Client) -> None:
    theirs = "s: old\r\nX-Gone: 1\r\nx-gone: 2\r\nP-Asserted-Identity: <sip:ceo@example.com>\r\nX-Kept: 1\r\n"
    alice.send(ask("edit", headers=theirs))
    received = place.up.receive()
    assert lines(received, "X-Added") == ["one", "two"]
    assert lines(received, "Subject") == ["new"]
    assert not lines(received, "s")
    assert not lines(received, "X-Gone")
    assert lines(received, "P-Asserted-Identity") == ["<sip:alice@example.com>"]
    assert lines(received, "X-Kept") == ["1"]


@pytest.mark.parametrize("call", ["add_header", "set_header"])
@pytest.mark.parametrize(
    "arguments",
    [
        "X-Out|a~Evil: 1",
        "X-Out~Evil|1",
        "Via|SIP/2.0/UDP x",
        "v|SIP/2.0/UDP x",
        "From|<sip:b@x>",
        "Content-Length|0",
        "X Y|1",
    ],
)
@pytest.mark.case("C111")
def test_what_could_forge_a_message_is_an_error_of_the_policy(
    place: Place, alice: Client, call: str, arguments: str
) -> None:
    alice.send(ask("forge", headers=f"X-Call: {call}\r\nX-Args: {arguments}\r\n"))
    assert status(alice.receive()) == 500
    assert place.up.silent(0.02)


def test_forward_sends_it_where_policy_says(place: Place, alice: Client) -> None:
    other = UdpServer("127.0.0.2")
    alice.send(ask("forward", headers=f"X-To: sip:127.0.0.2:{other.port}\r\n"))
    received = other.receive()
    assert received.startswith("MESSAGE sip:bob@example.com SIP/2.0\r\n")
    assert place.up.silent(0.05)
    alice.send(ask("forward", number=2, headers="X-To: sip:nowhere.example.com\r\n"))
    assert status(alice.receive()) == 500
    other.close()


def test_a_close_by_policy_is_at_once_and_once(place: Place) -> None:
    client = Client(place.edge.url, "dave")
    client.send(ask("close", user="dave"))
    assert client.closed() == (4000, "enough")
    wait_for(lambda: place.ended("dave"))
    assert place.ended("dave") == [("policy", 4000, "enough")]
    assert place.up.silent(0.05)


def test_an_async_policy_keeps_the_order_and_holds_up_nobody_else(place: Place, alice: Client) -> None:
    other = Client(place.edge.url, "erin")
    for number in range(1, 6):
        alice.send(ask("slow" if number == 1 else "", number=number, call_id=f"o{number}", body=f"{number}"))
    other.send(request("OPTIONS", user="erin", call_id="other"))
    order = [lines(place.up.receive(), "Call-ID")[0] for _ in range(6)]
    assert order == ["other", "o1", "o2", "o3", "o4", "o5"]
    assert place.noted("slow")[-1] == "o1"
    other.close()


def test_an_async_rejection_is_the_answer(place: Place, alice: Client) -> None:
    alice.send(ask("slow_reject"))
    assert status(alice.receive()) == 486


def test_a_client_may_leave_while_policy_thinks(place: Place) -> None:
    client = Client(place.edge.url, "frank")
    client.send(ask("slow", user="frank", call_id="left"))
    client.socket.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.socket.socket.close()
    wait_for(lambda: place.ended("frank"))
    assert [entry[0] for entry in place.ended("frank")] == ["network"]
    # What was taken from it may still go up once policy has decided.
    while not place.up.silent(0.4):
        pass


def test_a_request_that_is_kept_can_be_read_later(place: Place, alice: Client) -> None:
    alice.send(ask("keep", call_id="kept1", body="first"))
    place.up.receive()
    alice.send(ask("kept", number=2, call_id="kept2", body="second"))
    place.up.receive()
    assert place.noted("kept") == [[["kept1", "first"]]]


def test_policy_is_asked_for_the_methods_it_named_only(place: Place, alice: Client) -> None:
    before = len(place.noted("asked"))
    alice.send(ask("reject", method="OPTIONS"))
    assert place.up.receive().startswith("OPTIONS ")
    assert len(place.noted("asked")) == before


def test_an_ack_is_dropped_where_anything_else_would_be_answered(place: Place, alice: Client) -> None:
    alice.send(ask("reject", method="ACK"))
    alice.send(ask("raise", method="ACK", number=2))
    assert alice.silent()
    assert place.up.silent(0.05)


def test_in_dialog_is_proven_by_our_own_route_not_by_a_to_tag(place: Place, alice: Client) -> None:
    alice.send(ask("", method="INVITE", call_id="dialog", headers=contact()))
    place.up.send(answer(place.up.receive(), 200))
    routes = "".join(f"Route: {route}\r\n" for route in lines(alice.receive(), "Record-Route")[::-1])
    alice.send(ask("", method="INFO", number=2, call_id="dialog", to_tag="u1", headers=routes))
    place.up.receive()
    alice.send(ask("", method="INFO", number=3, call_id="dialog", to_tag="u1"))
    place.up.receive()
    asked = [entry["in_dialog"] for entry in diary(place.directory) if entry.get("call_id") == "dialog"]
    assert asked == [False, True, False]
    # The same Routes under another Call-ID are a forgery.
    alice.send(ask("", method="INFO", number=4, call_id="other", to_tag="u1", headers=routes))
    assert status(alice.receive()) == 403


# -- on_close ----------------------------------------------------------------------------------------------------------


def test_the_terminator_is_who_ended_it(tmp_path: Path) -> None:
    config = "ping_interval = 0.5\nping_timeout = 0.5\n"
    with Edge(tmp_path, policy=NAMED, config=config) as edge:

        def ended(user: str) -> list[tuple[str, int]]:
            return [(entry["terminator"], entry["code"]) for entry in diary(tmp_path) if entry["user"] == user]

        client = Client(edge.url, "client")
        client.socket.close(1000, "done")
        network = Client(edge.url, "network")
        network.socket.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        network.socket.socket.close()
        raw = raw_client(edge.port, "protocol")
        raw.sendall(b"\x81\x01x")  # not masked
        silent = raw_client(edge.port, "timeout")
        idle = Client(edge.url, "idle")
        wait_for(lambda: len(diary(tmp_path)) == 4)
        assert ended("client") == [("client", 1000)]
        assert ended("network") == [("network", 1006)]
        assert ended("protocol") == [("protocol", 1002)]
        assert ended("timeout") == [("timeout", 1011)]
        # This one answers pings, so it stays although it never says anything.
        time.sleep(1.2)
        assert ended("idle") == []
        idle.close()
        raw.close()
        silent.close()


def raw_client(port: int, user: str) -> socket.socket:
    """A handshaken socket that answers nothing."""
    raw = socket.create_connection((HOST, port))
    raw.settimeout(5)
    raw.sendall(
        f"GET /?user={user} HTTP/1.1\r\nHost: {HOST}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Protocol: sip\r\n\r\n".encode()
    )
    assert raw.recv(4096).startswith(b"HTTP/1.1 101 ")
    return raw


@pytest.mark.rule(50)
def test_a_client_that_does_not_read_is_closed_as_overload(tmp_path: Path) -> None:
    up = UdpServer()
    with Edge(tmp_path, upstream=[up.uri], policy=NAMED, config="max_queue_bytes = 65536\n") as edge:
        raw = raw_client(edge.port, "deaf")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        other = Client(edge.url, "hears")
        raw.sendall(masked(request("REGISTER", user="deaf", headers=contact("deaf"))))
        [path] = lines(up.receive(), "Path")
        message = (
            "MESSAGE sip:deaf@deaf.invalid SIP/2.0\r\nVia: SIP/2.0/UDP {host};rport;branch=z9hG4bK{n}\r\n"
            "Route: {path}\r\nFrom: <sip:b@x>;tag=1\r\nTo: <sip:deaf@x>\r\nCall-ID: c{n}\r\nCSeq: 1 MESSAGE\r\n"
            "Content-Length: 10000\r\n\r\n" + "x" * 10000
        )

        def flooded() -> bool:
            flooded.n += 1  # type: ignore[attr-defined]
            up.send(message.format(host=HOST, n=flooded.n, path=path), (HOST, edge.sip_port))  # type: ignore[attr-defined]
            return bool(diary(tmp_path))

        flooded.n = 0  # type: ignore[attr-defined]
        wait_for(flooded, 20)
        assert [(entry["user"], entry["terminator"]) for entry in diary(tmp_path)] == [("deaf", "overload")]
        while not up.silent(0.1):
            pass
        up.send(message.format(host=HOST, n="last", path=path), (HOST, edge.sip_port))
        assert status(up.receive()) == 430
        other.send(request("OPTIONS", user="hears"))
        assert up.receive().startswith("OPTIONS ")
        other.close()
        raw.close()
    up.close()


def masked(message: str) -> bytes:
    """One TEXT frame of a client."""
    data = message.encode()
    key = b"\x37\xfa\x21\x3d"
    return b"\x81\xfe" + struct.pack("!H", len(data)) + key + bytes(b ^ key[i & 3] for i, b in enumerate(data))


@pytest.mark.rule(45)
def test_sigterm_closes_all_with_1001_and_tells_the_policy_of_each(tmp_path: Path) -> None:
    edge = Edge(tmp_path, policy=NAMED)
    clients = [Client(edge.url, f"u{number}") for number in range(20)]
    codes: list[tuple[int, str]] = []
    threads = [threading.Thread(target=lambda c=client: codes.append(c.closed(10))) for client in clients]
    for thread in threads:
        thread.start()
    before = time.monotonic()
    edge.finish()
    assert time.monotonic() - before < 3
    for thread in threads:
        thread.join()
    assert codes == [(1001, "going away")] * 20
    told = [(entry["user"], entry["terminator"], entry["code"]) for entry in diary(tmp_path)]
    assert sorted(told) == sorted((f"u{number}", "shutdown", 1001) for number in range(20))


def test_an_async_on_close_is_waited_for_at_the_end(tmp_path: Path) -> None:
    policy = (
        DIARY
        + """
import asyncio
async def on_close(connection, terminator, code, reason):
    await asyncio.sleep(0.3)
    note(source=list(connection.source), terminator=terminator, open=connection.open, n=len(connection))
def on_handshake(handshake):
    return handshake.accept(a=1, b=2)
"""
    )
    edge = Edge(tmp_path, policy=policy)
    client = Client(edge.url)
    address = list(client.address)
    thread = threading.Thread(target=client.closed)
    thread.start()
    edge.finish()
    thread.join()
    assert diary(tmp_path) == [{"source": address, "terminator": "shutdown", "open": False, "n": 2}]


def test_a_refused_client_has_no_on_close(tmp_path: Path) -> None:
    policy = NAMED + "\ndef on_handshake(handshake):\n    return handshake.reject(403)\n"
    with Edge(tmp_path, policy=policy) as edge:
        with pytest.raises(InvalidStatus):
            Client(edge.url)
        wait_for(lambda: "refused 403" in edge.log())
    assert diary(tmp_path) == []


def test_more_clients_than_max_connections_get_503(tmp_path: Path) -> None:
    with Edge(tmp_path, policy=NAMED, config="max_connections = 1\n") as edge:
        first = Client(edge.url, "first")
        with pytest.raises(InvalidStatus, match="503"):
            Client(edge.url, "second")
        first.close()
        wait_for(lambda: diary(tmp_path))
        Client(edge.url, "third").close()


# -- IDENTITY ----------------------------------------------------------------------------------------------------------


def test_identity_follows_the_attribute_when_policy_sets_it(tmp_path: Path) -> None:
    up = UdpServer()
    with Edge(tmp_path, upstream=[up.uri], policy='IDENTITY = "user"\n' + ASKING) as edge:
        alice = Client(edge.url)
        alice.send(ask("set", headers="X-User: bob\r\n"))
        up.receive()
        alice.send(request("OPTIONS", 2, user="bob"))
        up.receive()
        alice.send(request("OPTIONS", 3))
        assert status(alice.receive()) == 403
        assert alice.closed()[0] == 1008
    up.close()


def test_a_callee_reached_by_alias_may_speak_inside_its_dialog(tmp_path: Path) -> None:
    up = UdpServer()
    with Edge(tmp_path, upstream=[up.uri], policy='IDENTITY = "user"\n' + NAMED) as edge:
        alice = Client(edge.url)
        alice.send(request("REGISTER", headers=contact()))
        received = up.receive()
        up.send(answer(received, 200))
        alice.receive()
        [path] = lines(received, "Path")
        up.send(
            f"INVITE sip:alice@alice.invalid SIP/2.0\r\nVia: SIP/2.0/UDP {HOST};rport;branch=z9hG4bKal\r\n"
            f"Route: {path}\r\n"
            "From: <sip:bob@example.com>;tag=u1\r\nTo: <sip:1201555@example.com>\r\nCall-ID: alias\r\n"
            f"CSeq: 1 INVITE\r\nContact: <sip:bob@{HOST}:{up.port}>\r\nContent-Length: 0\r\n\r\n"
        )
        invite = alice.receive()
        alice.send(answer(invite, 200, tag="a1"))
        assert status(up.receive()) == 200
        routes = "".join(f"Route: {route}\r\n" for route in lines(invite, "Record-Route"))
        bye = request("BYE", 3, user="1201555", call_id="alias", to_tag="u1", headers=routes, uri="sip:bob@example.com")
        alice.send(bye)
        assert up.receive().startswith("BYE ")
        # The same without the proof is somebody else's name.
        alice.send(bye.replace(routes, ""))
        assert status(alice.receive()) == 403
        assert alice.closed()[0] == 1008
    up.close()


def test_a_connection_without_the_attribute_may_send_nothing(tmp_path: Path) -> None:
    with Edge(tmp_path, policy='IDENTITY = "user"\ndef on_handshake(handshake): return handshake.accept()\n') as edge:
        client = Client(edge.url)
        client.send(request("OPTIONS"))
        assert status(client.receive()) == 403
        assert client.closed()[0] == 1008


# -- two listeners -----------------------------------------------------------------------------------------------------


def test_two_listeners_may_hold_one_address_and_port_at_once(tmp_path: Path) -> None:
    policy = (
        NAMED
        + """
import fastws
def on_request(request, connection):
    both = fastws.connections.all(*connection.source)
    note(all=[c["user"] for c in both], newest=fastws.connections[connection.source]["user"])
"""
    )
    second = free_port()
    with Edge(tmp_path, policy=policy, flags=["--listen", f"ws://{HOST}:{second}"]) as edge:
        source = free_port()

        def dial(port: int, user: str) -> Client:
            made = socket.socket()
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind((HOST, source))
            made.connect((HOST, port))
            return Client(f"ws://{HOST}:{port}", user, sock=made)

        first, newest = dial(edge.port, "first"), dial(second, "newest")
        first.send(request("REGISTER", user="first", headers=contact("first")))
        first.receive()
        assert diary(tmp_path) == [{"all": ["first", "newest"], "newest": "newest"}]
        newest.close()
        wait_for(lambda: len(diary(tmp_path)) == 2)
        first.send(request("REGISTER", 2, user="first", headers=contact("first")))
        first.receive()
        assert diary(tmp_path)[-1] == {"all": ["first"], "newest": "first"}
        first.close()


def test_a_request_that_came_in_pieces_can_be_read_after_policy_has_closed_the_connection(tmp_path: Path) -> None:
    policy = (
        NAMED
        + """
def on_request(request, connection):
    connection.close(4000)
    note(read=[request.body.decode(), request.headers["X-Piece"], request.call_id])
"""
    )
    with Edge(tmp_path, policy=policy) as edge:
        client = Client(edge.url)
        text = request("MESSAGE", headers="X-Piece: here\r\n", body="b" * 5000)
        client.socket.send(text[at : at + 500] for at in range(0, len(text), 500))
        assert client.closed() == (4000, "")
        wait_for(lambda: any("read" in entry for entry in diary(tmp_path)))
        assert [entry["read"] for entry in diary(tmp_path) if "read" in entry] == [["b" * 5000, "here", "c1"]]


def test_sighup_brings_in_a_new_policy_and_keeps_the_old_one_where_the_new_one_is_broken(tmp_path: Path) -> None:
    named = 'IDENTITY = "user"\n' + NAMED
    with Edge(tmp_path, policy=NAMED) as edge:
        policy = tmp_path / "policy.py"
        before = Client(edge.url)
        before.send(request("REGISTER", user="bob", headers=contact("bob")))
        assert status(before.receive()) == 200
        policy.write_text("def on_handshake(:\n")
        edge.process.send_signal(signal.SIGHUP)
        wait_for(lambda: "policy not reloaded" in edge.log())
        before.send(request("REGISTER", 2, user="bob", call_id="2", headers=contact("bob")))
        assert status(before.receive()) == 200
        policy.write_text(named)
        edge.process.send_signal(signal.SIGHUP)
        wait_for(lambda: "policy reloaded" in edge.log())
        # It holds for connections that were there before, too.
        before.send(request("REGISTER", 3, headers=contact()))
        assert status(before.receive()) == 200
        before.send(request("REGISTER", 4, user="bob", call_id="4", headers=contact("bob")))
        assert status(before.receive()) == 403
        assert before.closed()[0] == 1008


def test_sighup_brings_in_a_new_certificate_and_keeps_the_old_one_where_the_new_one_is_broken(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    tls, other = make_certificate(tmp_path), make_certificate(tmp_path / "other")
    with Edge(tmp_path, tls=tls) as edge:
        old, new = tls.cert.read_bytes(), other.cert.read_bytes()

        def served() -> bytes:
            return ssl.get_server_certificate((HOST, edge.port)).strip().encode()

        assert served() == old.strip()
        tls.cert.write_bytes(new)  # without its key
        edge.process.send_signal(signal.SIGHUP)
        wait_for(lambda: "certificate not reloaded" in edge.log())
        assert served() == old.strip()
        tls.key.write_bytes(other.key.read_bytes())
        edge.process.send_signal(signal.SIGHUP)
        wait_for(lambda: "certificate reloaded" in edge.log())
        assert served() == new.strip()


def test_it_says_at_start_what_the_policy_has(tmp_path: Path) -> None:
    with Edge(tmp_path) as edge:
        wait_for(lambda: "policy: " in edge.log())
        assert "everyone" in edge.log()
