"""What the transaction layer does on the wire: repetitions, CANCEL and ACK, late answers, and clients that leave.

Mostly the whole proxy as a process. Where a test asks whether anything is left behind, the same proxy is a thread of
this process, because only there its counts can be read. Whatever lasts half a minute by the RFC lasts it once, for all
such tests together: see `half_a_minute`.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest
import uvloop
from websockets.exceptions import ConnectionClosed

from fastws.config import Config
from fastws.policy import Policy
from fastws.worker import Worker

from .conftest import free_port, wait_for
from .interop.peers import Edge
from .relay import DIARY, HOST, NAMED, Client, TcpServer, UdpServer, answer, contact, diary, lines, request, status

CALLER = "Contact: <sip:alice@alice.invalid;transport=ws;ob>\r\n"
LATE_S = 0.1  # what a repetition may be late by
Server = UdpServer | TcpServer


# -- tools -------------------------------------------------------------------------------------------------------------


class RawClient:
    """A WebSocket client that is a bare socket: it can break off in every way, and it answers no ping."""

    def __init__(self, port: int, user: str = "alice", *, head: str = "") -> None:
        self.user = user
        self.buffer = b""
        self.socket = socket.create_connection((HOST, port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.settimeout(5)
        key = base64.b64encode(os.urandom(16)).decode()
        get = (
            f"GET /?user={user} HTTP/1.1\r\nHost: {HOST}:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: sip\r\n\r\n"
        )
        if head:  # as much of a handshake as the test wants
            self.socket.sendall(head.encode())
            self.answer = ""
            return
        self.socket.sendall(get.encode())
        while b"\r\n\r\n" not in self.buffer:
            data = self.socket.recv(65536)
            assert data, "closed inside the handshake"
            self.buffer += data
        head_bytes, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
        self.answer = head_bytes.decode()

    @staticmethod
    def frame(data: str | bytes, opcode: int = 1) -> bytes:
        """One masked frame; with a mask of zeros, so that it can be read in a dump."""
        payload = data.encode() if isinstance(data, str) else data
        length = bytes([0x80 | len(payload)]) if len(payload) < 126 else struct.pack("!BH", 0xFE, len(payload))
        return bytes([0x80 | opcode]) + length + bytes(4) + payload

    def send(self, message: str | bytes) -> None:
        self.socket.sendall(self.frame(message))

    def receive(self, timeout: float = 5.0) -> str:
        """The payload of the next text frame."""
        self.socket.settimeout(timeout)
        while True:
            if len(self.buffer) >= 2:
                opcode, length, at = self.buffer[0] & 15, self.buffer[1], 2
                if length == 126 and len(self.buffer) >= 4:
                    length, at = struct.unpack("!H", self.buffer[2:4])[0], 4
                if length != 126 or at == 4:
                    payload = self.buffer[at : at + length]
                    if len(payload) == length:
                        self.buffer = self.buffer[at + length :]
                        if opcode == 1:
                            return payload.decode("utf-8", "surrogateescape")
                        continue
            data = self.socket.recv(65536)
            if not data:
                raise EOFError
            self.buffer += data

    def reset(self) -> None:
        """RST in place of FIN."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def close(self) -> None:
        self.socket.close()


AnyClient = Client | RawClient


class Watch:
    """Reads one side in a thread of its own and remembers what came when, in seconds of the monotonic clock."""

    def __init__(self, side: Server | AnyClient) -> None:
        self._side = side
        self._stop = threading.Event()
        self.seen: list[tuple[float, str]] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                message = self._side.receive(0.05)
            except TimeoutError:
                continue
            except (EOFError, OSError, ConnectionClosed):
                return
            self.seen.append((time.monotonic(), message))

    def of(self, call_id: str, start: str = "") -> list[tuple[float, str]]:
        """What came of one call and begins with `start`."""
        return [one for one in self.seen if one[1].startswith(start) and lines(one[1], "Call-ID") == [call_id]]

    def first(self, call_id: str, start: str = "") -> str:
        """The first of them, waited for."""
        return wait_for(lambda: self.of(call_id, start), what=f"{start} of {call_id}")[0][1]

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(5)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class Inside:
    """The proxy as a thread of this process, so that its counts can be read."""

    def __init__(self, upstream: str) -> None:
        self.port, self.sip_port = free_port(), free_port()
        self.url = f"ws://{HOST}:{self.port}"
        flags = {"listen": [self.url], "upstream": [upstream], "sip": f"{HOST}:{self.sip_port}"}
        self._config = Config.from_sources(flags)
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._ready.wait(10)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._worker = Worker(self._config, Policy.load(None))
        await self._worker.start()
        self._ready.set()
        await self._stop.wait()
        await self._worker.stop()

    async def _state(self) -> dict[str, Any]:
        return self._worker.state()

    def state(self) -> dict[str, Any]:
        return asyncio.run_coroutine_threadsafe(self._state(), self._loop).result(10)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(20)
        assert not self._thread.is_alive()


class Place:
    """fastws between its clients and a SIP server."""

    def __init__(self, edge: Edge | Inside, up: Server, directory: Path) -> None:
        self.edge = edge
        self.up = up
        self.directory = directory
        self.clients: list[AnyClient] = []

    def client(self, user: str = "alice") -> Client:
        made = Client(self.edge.url, user)
        self.clients.append(made)
        return made

    def raw(self, user: str = "alice") -> RawClient:
        made = RawClient(self.edge.port, user)
        self.clients.append(made)
        return made

    def begin(self, message: str) -> None:
        """What the SIP server sends of its own accord, over the connection there is or to the datagram socket."""
        if isinstance(self.up, UdpServer):
            self.up.send(message, (HOST, self.edge.sip_port))
        else:
            self.up.send(message)

    def log(self) -> str:
        assert isinstance(self.edge, Edge)
        return self.edge.log()

    def state(self) -> dict[str, Any]:
        assert isinstance(self.edge, Inside)
        return self.edge.state()

    def left(self) -> tuple[int, int]:
        """How many transactions there are, and how many timers run."""
        state = self.state()
        return state["transactions"], state["timers"]

    def close(self) -> None:
        for client in self.clients:
            client.close()
        self.up.close()


@pytest.fixture
def place(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Place]:
    """A UDP server behind the edge; parametrized indirectly, "tcp" gives one of TCP."""
    up = TcpServer() if getattr(request, "param", "udp") == "tcp" else UdpServer()
    with Edge(tmp_path, upstream=[up.uri], policy=NAMED) as edge:
        made = Place(edge, up, tmp_path)
        try:
            yield made
        finally:
            made.close()


@pytest.fixture
def inside(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Place]:
    """The same as a thread of this process."""
    up = TcpServer() if getattr(request, "param", "udp") == "tcp" else UdpServer()
    with Inside(up.uri) as edge:
        made = Place(edge, up, tmp_path)
        try:
            yield made
        finally:
            made.close()


over_both = pytest.mark.parametrize("place", ["udp", "tcp"], indirect=True)
inside_both = pytest.mark.parametrize("inside", ["udp", "tcp"], indirect=True)


def hear(side: Server | AnyClient, code: int) -> str:
    """The next response that is no 100, which must have this status."""
    while True:
        message = side.receive()
        assert message.startswith("SIP/2.0 "), message
        if status(message) != 100:
            assert status(message) == code, message
            return message


def nothing(side: Server | AnyClient, seconds: float = 0.5) -> None:
    """Nothing comes for a while."""
    with contextlib.suppress(TimeoutError):
        pytest.fail(f"came: {side.receive(seconds)}")


def spaced(seen: list[tuple[float, str]], start: float, *seconds: float) -> None:
    """The messages came at these times after `start`, all byte-identical; each may be late by LATE_S."""
    assert [round(at - start, 2) for at, _ in seen] == pytest.approx(seconds, abs=LATE_S)
    assert len({message for _, message in seen}) == 1


def path_of(place: Place, client: AnyClient) -> str:
    """Register `client`; the Path that the server received."""
    client.send(request("REGISTER", 900, user=client.user, call_id=f"r-{client.user}", headers=contact(client.user)))
    received = place.up.receive()
    place.up.send(answer(received, 200))
    hear(client, 200)
    [path] = lines(received, "Path")
    return path


def down(
    place: Place, method: str, route: str, call_id: str = "up-1", *, branch: str = "", tag: str = "", cseq: int = 1
) -> str:
    """A request of the SIP server for the client behind `route`."""
    name = "UDP" if isinstance(place.up, UdpServer) else "TCP"
    return (
        f"{method} sip:alice@alice.invalid;transport=ws SIP/2.0\r\n"
        f"Via: SIP/2.0/{name} {HOST}:{place.up.port};rport;branch={branch or f'z9hG4bK{call_id}'}\r\n"
        f"Route: {route}\r\n"
        "Max-Forwards: 70\r\n"
        "From: <sip:bob@example.com>;tag=u1\r\n"
        f"To: <sip:alice@example.com>{f';tag={tag}' if tag else ''}\r\n"
        f"Call-ID: {call_id}\r\nCSeq: {cseq} {method}\r\nContact: <sip:bob@{HOST}:{place.up.port}>\r\n"
        "Content-Length: 0\r\n\r\n"
    )


def ring(place: Place, client: AnyClient, call_id: str = "c1", number: int = 1) -> str:
    """A call of `client` up to the 180; the INVITE as the server received it."""
    client.send(request("INVITE", number, user=client.user, call_id=call_id, headers=CALLER))
    invite = place.up.receive()
    assert invite.startswith("INVITE ")
    place.up.send(answer(invite, 180, "Ringing"))
    hear(client, 180)
    return invite


def talk(place: Place, client: AnyClient, call_id: str = "c1", number: int = 1) -> tuple[str, str]:
    """A call of `client` up to the ACK: the INVITE as received, and the Route lines of what the client sends in it."""
    invite = ring(place, client, call_id, number)
    place.up.send(answer(invite, 200, headers=f"Contact: <sip:bob@{HOST}:{place.up.port}>\r\n"))
    routes = "".join(f"Route: {value}\r\n" for value in lines(hear(client, 200), "Record-Route")[::-1])
    target = f"sip:bob@{HOST}:{place.up.port}"
    client.send(request("ACK", number + 1, user=client.user, call_id=call_id, to_tag="u1", headers=routes, uri=target))
    assert place.up.receive().startswith(f"ACK {target} ")
    return invite, routes


# -- CANCEL, ACK, 2xx --------------------------------------------------------------------------------------------------


@pytest.mark.case("C066")
@pytest.mark.rule(41)
@pytest.mark.rule(42)
@over_both
def test_cancel_after_180_is_answered_here_and_goes_on_with_the_branch_of_its_invite(place: Place) -> None:
    alice = place.client()
    invite = ring(place, alice)
    alice.send(request("CANCEL", 1, headers="Require: foo\r\n"))
    assert lines(hear(alice, 200), "CSeq") == ["1 CANCEL"]
    cancel = place.up.receive()
    assert cancel.startswith(f"CANCEL {invite.split()[1]} SIP/2.0\r\n")
    assert lines(cancel, "Via") == lines(invite, "Via")[:1]
    assert lines(cancel, "CSeq") == ["1 CANCEL"]
    assert not lines(cancel, "Require") and not lines(cancel, "Proxy-Require")
    for name in ("From", "To", "Call-ID"):
        assert lines(cancel, name) == lines(invite, name)
    place.up.send(answer(cancel, 200))
    nothing(alice, 0.2)
    place.up.send(answer(invite, 487, "Request Terminated"))
    ack = place.up.receive()
    assert ack.startswith(f"ACK {invite.split()[1]} SIP/2.0\r\n")
    assert lines(ack, "Via") == lines(invite, "Via")[:1]
    assert lines(ack, "CSeq") == ["1 ACK"]
    assert lines(hear(alice, 487), "CSeq") == ["1 INVITE"]
    alice.send(request("ACK", 1, to_tag="u1"))
    nothing(place.up, 0.7)  # neither the client's ACK nor a repetition
    nothing(alice, 0.05)


@pytest.mark.case("C067")
@pytest.mark.rule(42)
def test_cancel_sent_three_times_is_answered_each_time_and_goes_on_once(place: Place) -> None:
    alice = place.client()
    invite = ring(place, alice)
    since = time.monotonic()
    for _ in range(2):
        alice.send(request("CANCEL", 1))
        time.sleep(0.005)
    hear(alice, 200)
    hear(alice, 200)
    with Watch(place.up) as watch:
        wait_for(lambda: len(watch.seen) >= 3)
        # One transaction: what comes again is the repetition of the first, for the server has answered none.
        spaced(watch.of("c1", "CANCEL"), since, 0, 0.5, 1.5)
    place.up.send(answer(watch.seen[0][1], 200))
    place.up.send(answer(invite, 487, "Request Terminated"))
    hear(alice, 487)
    alice.send(request("CANCEL", 1))
    assert lines(hear(alice, 200), "CSeq") == ["1 CANCEL"]
    assert place.up.receive().startswith("ACK ")
    nothing(place.up)
    nothing(alice, 0.05)


@pytest.mark.case("C068")
@pytest.mark.rule(42)
def test_cancel_before_any_answer_waits_for_the_first_provisional(place: Place) -> None:
    alice = place.client()
    with Watch(place.up) as watch:
        alice.send(request("INVITE", 1, headers=CALLER))
        alice.send(request("CANCEL", 1))
        assert lines(hear(alice, 200), "CSeq") == ["1 CANCEL"]
        wait_for(lambda: len(watch.of("c1", "INVITE")) == 3)  # after 1.5 s
        assert len(watch.seen) == 3
        invite = watch.seen[0][1]
        since = time.monotonic()
        place.up.send(answer(invite, 180, "Ringing"))
        cancel = watch.first("c1", "CANCEL")
        assert time.monotonic() - since < LATE_S
        assert lines(cancel, "Via") == lines(invite, "Via")[:1]
        place.up.send(answer(cancel, 200))
        hear(alice, 180)
        place.up.send(answer(invite, 487, "Request Terminated"))
        hear(alice, 487)
        assert lines(watch.first("c1", "ACK"), "Via") == lines(invite, "Via")[:1]
        nothing(alice, 0.7)
        assert len(watch.seen) == 5


@pytest.mark.case("C068")
@pytest.mark.rule(42)
def test_cancel_that_comes_too_late_for_a_200_goes_nowhere_and_the_200_comes_down(place: Place) -> None:
    alice = place.client()
    alice.send(request("INVITE", 1, headers=CALLER))
    invite = place.up.receive()
    alice.send(request("CANCEL", 1))
    hear(alice, 200)
    place.up.send(answer(invite, 200, headers=f"Contact: <sip:bob@{HOST}:{place.up.port}>\r\n"))
    assert lines(hear(alice, 200), "CSeq") == ["1 INVITE"]
    nothing(place.up, 0.8)


@pytest.mark.rule(42)
def test_cancel_that_matches_no_invite_is_sent_on_and_so_is_its_answer(place: Place) -> None:
    alice = place.client()
    alice.send(request("CANCEL", 77))
    cancel = place.up.receive()
    _, below = lines(cancel, "Via")
    assert below == "SIP/2.0/WS alice.invalid;branch=z9hG4bK77"
    place.up.send(answer(cancel, 481, "Call/Transaction Does Not Exist"))
    assert lines(hear(alice, 481), "Via") == [below]


@pytest.mark.rule(42)
@over_both
def test_cancel_of_the_server_is_answered_here_and_waits_for_the_client_to_ring(place: Place) -> None:
    alice = place.client()
    path = path_of(place, alice)
    place.begin(down(place, "INVITE", path))
    invite = alice.receive()
    place.begin(down(place, "CANCEL", path))
    hear(place.up, 200)
    nothing(alice, 0.2)
    alice.send(answer(invite, 180, "Ringing"))
    cancel = alice.receive()
    assert cancel.startswith("CANCEL ")
    assert lines(cancel, "Via") == lines(invite, "Via")[:1]
    hear(place.up, 180)
    alice.send(answer(cancel, 200))
    alice.send(answer(invite, 487, "Request Terminated"))
    ack = alice.receive()
    assert ack.startswith("ACK ")
    assert lines(ack, "Via") == lines(invite, "Via")[:1]
    hear(place.up, 487)
    place.begin(down(place, "ACK", path, tag="u1"))
    nothing(place.up, 0.7)
    nothing(alice, 0.05)


@pytest.mark.case("C070")
@pytest.mark.rule(39)
@pytest.mark.rule(43)
def test_every_repeated_2xx_comes_down_and_its_ack_goes_up_once(place: Place) -> None:
    alice, phone = place.client(), UdpServer()
    alice.send(request("INVITE", 1, headers=CALLER))
    invite = place.up.receive()
    ok = answer(invite, 200, headers=f"Contact: <sip:bob@{HOST}:{phone.port}>\r\n")
    for _ in range(3):
        place.up.send(ok)
        response = hear(alice, 200)
        time.sleep(0.1)
    routes = "".join(f"Route: {value}\r\n" for value in lines(response, "Record-Route")[::-1])
    target = f"sip:bob@{HOST}:{phone.port}"
    alice.send(request("ACK", 2, to_tag="u1", headers=routes, uri=target))
    with Watch(place.up) as first, Watch(phone) as second:
        wait_for(lambda: first.seen + second.seen)
        place.begin(ok)
        hear(alice, 200)
        time.sleep(1.2)  # two of the intervals in which something could be repeated
        [(_, ack)] = first.seen + second.seen
    assert ack.startswith(f"ACK {target} SIP/2.0\r\n")
    top, below = lines(ack, "Via")
    assert below == "SIP/2.0/WS alice.invalid;branch=z9hG4bK2"
    assert top not in lines(invite, "Via")
    assert lines(ack, "Max-Forwards") == ["69"]
    nothing(alice, 0.05)
    phone.close()


@pytest.mark.rule(39)
@pytest.mark.rule(43)
@over_both
def test_every_2xx_of_a_client_goes_up_and_the_ack_of_the_server_comes_down(place: Place) -> None:
    alice = place.client()
    path = path_of(place, alice)
    place.begin(down(place, "INVITE", path))
    invite = alice.receive()
    ok = answer(invite, 200, tag="a1", headers="Contact: <sip:alice@alice.invalid;transport=ws>\r\n")
    for _ in range(3):
        alice.send(ok)
        response = hear(place.up, 200)
    # The server repeats its INVITE once more: it has its answer, and the client hears nothing of it (RFC 6026 7.1).
    if isinstance(place.up, UdpServer):
        place.begin(down(place, "INVITE", path))
        nothing(alice, 0.3)
    route = ", ".join(lines(response, "Record-Route"))
    place.begin(down(place, "ACK", route, branch="z9hG4bKother", tag="a1"))
    ack = alice.receive()
    assert ack.startswith("ACK ")
    assert len(lines(ack, "Via")) == 2
    nothing(alice)
    nothing(place.up, 0.05)


@pytest.mark.case("C071")
@pytest.mark.rule(41)
def test_each_copy_of_a_refusal_is_acked_here_and_the_client_hears_one(place: Place) -> None:
    alice = place.client()
    alice.send(request("INVITE", 1, headers=CALLER))
    invite = place.up.receive()
    busy = answer(invite, 486, "Busy Here", tag="u9")
    for number, pause in enumerate((0.5, 1.0, 0.3)):
        place.up.send(busy)
        ack = place.up.receive()
        assert ack.startswith("ACK sip:bob@example.com SIP/2.0\r\n")
        assert lines(ack, "Via") == lines(invite, "Via")[:1]
        assert lines(ack, "To") == ["<sip:bob@example.com>;tag=u9"]
        assert lines(ack, "From") == lines(invite, "From")
        assert lines(ack, "Call-ID") == ["c1"]
        assert lines(ack, "CSeq") == ["1 ACK"]
        assert lines(ack, "Content-Length") == ["0"]
        if number == 0:
            hear(alice, 486)
            alice.send(request("ACK", 1, to_tag="u9"))
        nothing(place.up, pause)
    nothing(alice, 0.05)


@pytest.mark.rule(41)
@pytest.mark.parametrize("code", [403, 302, 603])
def test_the_ack_to_what_the_edge_itself_refused_goes_nowhere(tmp_path: Path, code: int) -> None:
    up = UdpServer()
    policy = NAMED + "\ndef on_request(request, connection):\n    if request.method == 'INVITE':\n"
    with Edge(tmp_path, upstream=[up.uri], policy=f"{policy}        return request.reject({code})\n") as edge:
        alice = Client(edge.url)
        alice.send(request("INVITE", 1, headers=CALLER))
        [to] = lines(hear(alice, code), "To")
        alice.send(request("ACK", 1, to_tag=to.partition(";tag=")[2]))
        nothing(up)
        alice.close()
    up.close()


# -- repetition, loss --------------------------------------------------------------------------------------------------


@pytest.mark.case("C073")
@pytest.mark.rule(36)
@pytest.mark.rule(37)
def test_an_invite_is_repeated_until_a_100_and_the_100_is_ours(place: Place) -> None:
    alice = place.client()
    with Watch(place.up) as up, Watch(alice) as down_:
        since = time.monotonic()
        alice.send(request("INVITE", 1, headers=CALLER))
        wait_for(lambda: len(up.seen) == 3)
        place.up.send(answer(up.seen[2][1], 100, "Trying", headers="X-Whose: server\r\n"))
        time.sleep(2.5)  # the next copy would have come after 2
        spaced(up.seen, since, 0, 0.5, 1.5)
        [(at, trying)] = down_.seen
        assert status(trying) == 100 and at - since < 0.2
        assert not lines(trying, "X-Whose")
        assert lines(trying, "Via") == ["SIP/2.0/WS alice.invalid;branch=z9hG4bK1"]
        assert lines(trying, "To") == ["<sip:bob@example.com>"]
        place.up.send(answer(up.seen[0][1], 180, "Ringing"))
        wait_for(lambda: len(down_.seen) == 2)
        assert status(down_.seen[1][1]) == 180
        assert len(up.seen) == 3


@pytest.mark.rule(37)
@pytest.mark.parametrize("place", ["tcp"], indirect=True)
def test_nothing_is_repeated_over_tcp(place: Place) -> None:
    alice = place.client()
    path = path_of(place, alice)
    alice.send(request("INVITE", 1, headers=CALLER))
    assert place.up.receive().startswith("INVITE ")
    alice.send(request("MESSAGE", 2, call_id="c2"))
    assert place.up.receive().startswith("MESSAGE ")
    place.begin(down(place, "INVITE", path))
    alice_hears = [alice.receive() for _ in range(2)]  # its own 100 and the INVITE
    [invite] = [message for message in alice_hears if message.startswith("INVITE ")]
    alice.send(answer(invite, 486, "Busy Here"))
    assert alice.receive().startswith("ACK ")
    seen = [place.up.receive()]
    if status(seen[0]) == 100:
        seen = [place.up.receive()]
    assert status(seen[0]) == 486
    nothing(place.up, 1.7)


@pytest.mark.rule(36)
def test_a_100_is_made_only_where_no_other_answer_came_in_time(place: Place) -> None:
    alice = place.client()
    invite = ring(place, alice)
    nothing(alice, 0.4)
    place.up.send(answer(invite, 100, "Trying"))
    nothing(alice, 0.2)


@pytest.mark.case("C076")
@pytest.mark.rule(36)
@pytest.mark.rule(37)
@pytest.mark.rule(41)
def test_an_invite_that_the_server_repeats_reaches_the_client_once(place: Place) -> None:
    alice = place.client()
    path = path_of(place, alice)
    invite = down(place, "INVITE", path)
    with Watch(place.up) as up, Watch(alice) as client:
        since = time.monotonic()
        place.begin(invite)
        wait_for(lambda: up.seen)
        assert up.seen[0][0] - since < 0.2
        for copies in (2, 3):
            time.sleep(max(0.0, since + (0.5, 1.5)[copies - 2] - time.monotonic()))
            place.begin(invite)
            wait_for(lambda: len(up.seen) == copies)  # noqa: B023 - it is asked here and now
        assert {status(message) for _, message in up.seen} == {100}
        assert len(client.seen) == 1
        received = client.seen[0][1]
        alice.send(answer(received, 180, "Ringing", tag="a1"))
        assert status(wait_for(lambda: up.seen[3:])[0][1]) == 180
        refused = time.monotonic()
        alice.send(answer(received, 486, "Busy Here", tag="a1"))
        wait_for(lambda: len(up.seen) == 5)
        place.begin(invite)
        wait_for(lambda: len(up.seen) == 6)
        wait_for(lambda: len(up.seen) == 8)
        busy = [one for one in up.seen if status(one[1]) == 486]
        spaced([busy[0], *busy[2:]], refused, 0, 0.5, 1.5)
        assert busy[1][1] == busy[0][1]
        place.begin(down(place, "ACK", path, tag="a1"))
        time.sleep(2.5)  # the next would have come after 2
        assert len(up.seen) == 8
        [(_, ack)] = client.seen[1:]
        assert ack.startswith("ACK ")
        assert lines(ack, "Via") == lines(received, "Via")[:1]


@pytest.mark.case("C077")
def test_an_invite_of_more_than_1300_bytes_goes_over_udp_where_there_is_nothing_else(place: Place) -> None:
    alice = place.client()
    body = "v=0\r\n" + "a=candidate:1 1 udp 2122260223 192.0.2.10 59018 typ host\r\n" * 40
    alice.send(request("INVITE", 1, headers=CALLER, body=body))
    invite = place.up.receive()
    assert lines(invite, "Via")[0].startswith("SIP/2.0/UDP ")
    assert invite.endswith("\r\n\r\n" + body)
    place.up.send(answer(invite, 200))
    hear(alice, 200)
    alice.send(request("OPTIONS", 2, call_id="c2"))
    assert lines(place.up.receive(), "Via")[0].startswith("SIP/2.0/UDP ")


@pytest.mark.case("C078")
@pytest.mark.parametrize("place", ["tcp"], indirect=True)
@pytest.mark.parametrize("way", ["fin", "rst"])
def test_a_tcp_upstream_that_closed_gets_everything_over_one_new_connection(place: Place, way: str) -> None:
    assert isinstance(place.up, TcpServer)
    alice = place.client()
    alice.send(request("OPTIONS"))
    place.up.send(answer(place.up.receive(), 200))
    hear(alice, 200)
    assert place.up.socket is not None
    if way == "rst":
        place.up.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    place.up.hang_up()
    names = [f"n{number}" for number in range(2, 103)]
    since = time.monotonic()
    for number, name in enumerate(names, 2):
        alice.send(request("OPTIONS", number, call_id=name))
    place.up.accept()
    with Watch(place.up) as up, Watch(alice) as client:
        wait_for(lambda: {lines(text, "Call-ID")[0] for _, text in up.seen + client.seen} == set(names))
        assert time.monotonic() - since < 2
        arrived = [lines(text, "Call-ID")[0] for _, text in up.seen]
        if way == "fin":
            assert arrived == names
        assert len(arrived) == len(set(arrived))
        for _, text in up.seen:
            place.up.send(answer(text, 200))
        wait_for(lambda: len(client.seen) >= len(names))
        assert sorted(lines(text, "Call-ID")[0] for _, text in client.seen) == sorted(names)
        for _, text in client.seen:
            assert status(text) in (200, 500, 503)
    place.up.listener.settimeout(0.2)
    with pytest.raises(TimeoutError):
        place.up.listener.accept()


@pytest.mark.rule(43)
@pytest.mark.parametrize("inside", ["tcp"], indirect=True)
def test_what_was_asked_over_a_tcp_connection_that_is_lost_is_answered_503_at_once(inside: Place) -> None:
    assert isinstance(inside.up, TcpServer)
    alice = inside.client()
    alice.send(request("INVITE", 1, headers=CALLER))
    inside.up.receive()
    alice.send(request("MESSAGE", 2, call_id="c2"))
    inside.up.receive()
    inside.up.hang_up()
    seen = [hear(alice, 503) for _ in range(2)]
    assert {lines(message, "CSeq")[0] for message in seen} == {"1 INVITE", "1 MESSAGE"}
    assert all(lines(message, "Retry-After") for message in seen)
    [to] = [lines(message, "To")[0] for message in seen if "INVITE" in lines(message, "CSeq")[0]]
    alice.send(request("ACK", 1, to_tag=to.partition(";tag=")[2]))
    nothing(alice, 0.3)
    inside.up.accept()
    nothing(inside.up, 0.3)
    assert inside.left() == (0, 0)


@pytest.mark.rule(37)
@pytest.mark.rule(39)
def test_a_request_that_is_no_invite_is_repeated_by_timer_e_and_answered_once(place: Place) -> None:
    alice = place.client()
    with Watch(place.up) as up, Watch(alice) as client:
        since = time.monotonic()
        alice.send(request("MESSAGE", 1))
        wait_for(lambda: len(up.seen) == 4)
        spaced(up.seen, since, 0, 0.5, 1.5, 3.5)
        for _ in range(4):  # the server answers each copy
            place.up.send(answer(up.seen[0][1], 200))
        wait_for(lambda: client.seen)
        time.sleep(0.5)
        [(_, ok)] = client.seen
        assert status(ok) == 200
        assert len(up.seen) == 4


@pytest.mark.rule(44)
@over_both
def test_no_provisional_but_of_an_invite_is_passed_on(place: Place) -> None:
    alice = place.client()
    path = path_of(place, alice)
    alice.send(request("MESSAGE", 1))
    message = place.up.receive()
    for code in (100, 183, 199):
        place.up.send(answer(message, code, "Wait"))
    nothing(alice, 0.3)
    place.up.send(answer(message, 202))
    hear(alice, 202)
    place.begin(down(place, "MESSAGE", path))
    received = alice.receive()
    for code in (100, 183):
        alice.send(answer(received, code, "Wait"))
    nothing(place.up, 0.3)
    alice.send(answer(received, 404, "Not Found"))
    assert status(place.up.receive()) == 404
    # And of an INVITE each but the 100.
    alice.send(request("INVITE", 5, call_id="c5", headers=CALLER))
    invite = place.up.receive()
    for code in (100, 180, 183, 180, 199):
        place.up.send(answer(invite, code, "Wait"))
    assert [status(alice.receive()) for _ in range(4)] == [180, 183, 180, 199]


@pytest.mark.rule(44)
@over_both
def test_a_late_answer_to_what_is_no_invite_goes_nowhere(place: Place) -> None:
    alice = place.client()
    path = path_of(place, alice)
    alice.send(request("MESSAGE", 1))
    message = place.up.receive()
    place.up.send(answer(message, 200))
    hear(alice, 200)
    for code in (200, 202, 404):
        place.up.send(answer(message, code))
    nothing(alice)
    place.begin(down(place, "MESSAGE", path))
    received = alice.receive()
    alice.send(answer(received, 200))
    assert status(place.up.receive()) == 200
    for code in (200, 202, 404):
        alice.send(answer(received, code))
    nothing(place.up)


@pytest.mark.rule(39)
@over_both
@pytest.mark.parametrize("method", ["INVITE", "MESSAGE"])
def test_a_503_of_the_server_is_a_500_for_the_client(place: Place, method: str) -> None:
    alice = place.client()
    alice.send(request(method, 1, headers=CALLER))
    received = place.up.receive()
    place.up.send(answer(received, 503, "Service Unavailable", headers="X-Kept: yes\r\n"))
    response = hear(alice, 500)
    assert response.startswith("SIP/2.0 500 Server Internal Error\r\n")
    assert lines(response, "X-Kept") == ["yes"]
    assert lines(response, "Via") == ["SIP/2.0/WS alice.invalid;branch=z9hG4bK1"]
    if method == "INVITE":
        assert place.up.receive().startswith("ACK ")


@pytest.mark.rule(35)
@pytest.mark.rule(37)
def test_a_request_that_the_server_repeats_gets_the_same_answer_and_the_client_hears_it_once(place: Place) -> None:
    alice = place.client()
    path = path_of(place, alice)
    message = down(place, "MESSAGE", path)
    place.begin(message)
    received = alice.receive()
    place.begin(message)
    nothing(place.up, 0.3)  # no answer yet, and none is invented
    nothing(alice, 0.05)
    alice.send(answer(received, 200, tag="a7", headers="X-Answer: first\r\n"))
    first = hear(place.up, 200)
    for _ in range(3):
        place.begin(message)
        assert hear(place.up, 200) == first
    nothing(alice, 0.3)
    # Another method, another branch, another sent-by is another request (17.2.3).
    place.begin(message.replace("MESSAGE", "INFO"))
    assert alice.receive().startswith("INFO ")
    place.begin(message.replace("z9hG4bKup-1", "z9hG4bKup-2"))
    assert alice.receive().startswith("MESSAGE ")
    place.begin(message.replace(f"UDP {HOST}:{place.up.port}", f"UDP pbx.example.com:{place.up.port}"))
    assert alice.receive().startswith("MESSAGE ")


@pytest.mark.rule(35)
def test_clients_with_the_same_branch_are_not_mixed_up(place: Place) -> None:
    clients = [place.client(user) for user in ("alice", "carol")]
    invites = []
    for client in clients:
        client.send(request("INVITE", 1, user="alice", call_id="same", headers=CALLER + f"X-Who: {client.user}\r\n"))
        invites.append(place.up.receive())
    assert [lines(invite, "X-Who") for invite in invites] == [["alice"], ["carol"]]
    for invite in invites:
        place.up.send(answer(invite, 180, "Ringing"))
    for client in clients:
        hear(client, 180)
    clients[1].send(request("CANCEL", 1, user="alice", call_id="same"))
    hear(clients[1], 200)
    assert lines(place.up.receive(), "Via") == lines(invites[1], "Via")[:1]
    nothing(clients[0], 0.3)


@pytest.mark.rule(34)
@pytest.mark.rule(35)
def test_a_response_whose_vias_or_method_do_not_fit_is_dropped(place: Place) -> None:
    alice = place.client()
    alice.send(request("MESSAGE", 1))
    message = place.up.receive()
    good = answer(message, 200)
    ours, clients = (f"Via: {value}\r\n" for value in lines(message, "Via"))
    place.up.send(good.replace(ours, ""))
    place.up.send(good.replace(ours, "").replace(clients, clients + ours))
    place.up.send(good.replace("CSeq: 1 MESSAGE", "CSeq: 1 INVITE"))
    # 16.7 item 3: with no other Via it was meant for us, and we never asked.
    place.up.send(good.replace(clients, ""))
    nothing(alice)
    place.up.send(good)
    assert lines(hear(alice, 200), "Via") == ["SIP/2.0/WS alice.invalid;branch=z9hG4bK1"]


@pytest.mark.rule(39)
def test_only_the_first_refusal_of_an_invite_comes_down(place: Place) -> None:
    alice = place.client()
    invite = ring(place, alice)
    place.up.send(answer(invite, 486, "Busy Here"))
    hear(alice, 486)
    assert place.up.receive().startswith("ACK ")
    for code in (180, 404, 200):
        place.up.send(answer(invite, code))
    place.up.send(answer(invite, 486, "Busy Here"))
    nothing(alice)


def test_a_client_with_too_many_open_requests_is_refused_and_its_others_go_on(place: Place) -> None:
    alice, carol = place.client(), place.client("carol")
    limit = 1024
    with Watch(place.up) as up, Watch(alice) as client:
        for number in range(limit + 50):
            alice.send(request("INVITE", number, call_id=f"m{number}", headers=CALLER))

        def refused() -> list[str]:
            return [text for _, text in client.seen if status(text) != 100]

        def arrived() -> set[str]:
            return {lines(text, "Call-ID")[0] for _, text in up.seen}

        wait_for(lambda: len(refused()) >= 50, 10)
        wait_for(lambda: len(arrived()) >= limit, 10)
        assert {status(text) for text in refused()} == {503}
        assert all(lines(text, "Retry-After") for text in refused())
        names = {lines(text, "Call-ID")[0] for text in refused()}
        assert names == {f"m{number}" for number in range(limit, limit + 50)}
        assert arrived() == {f"m{number}" for number in range(limit)}
        # Others are served, and so is this one when one of its calls is answered.
        carol.send(request("MESSAGE", 1, user="carol", call_id="carol"))
        place.begin(answer(up.first("carol"), 200))
        hear(carol, 200)
        place.begin(answer(up.first("m7"), 200))
        wait_for(lambda: [text for _, text in client.of("m7") if status(text) == 200])
        alice.send(request("MESSAGE", 5000, call_id="again"))
        assert up.first("again").startswith("MESSAGE ")
    assert place.log().count("too many open transactions") <= 25  # lines for one kind are limited, see Reporter


# -- nothing stays -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inside", ["tcp"], indirect=True)
def test_nothing_is_left_of_calls_and_messages_over_tcp_once_they_are_over(inside: Place) -> None:
    alice = inside.client()
    path = path_of(inside, alice)
    _, routes = talk(inside, alice)
    assert inside.left() == (0, 0)
    alice.send(request("BYE", 3, to_tag="u1", headers=routes, cseq=2))
    inside.up.send(answer(inside.up.receive(), 200))
    hear(alice, 200)
    assert inside.left() == (0, 0)
    # Refused, either way.
    alice.send(request("INVITE", 5, call_id="c5", headers=CALLER))
    inside.up.send(answer(inside.up.receive(), 486))
    hear(alice, 486)
    alice.send(request("ACK", 5, call_id="c5", to_tag="u1"))
    assert inside.up.receive().startswith("ACK ")
    wait_for(lambda: inside.left() == (0, 0))
    inside.begin(down(inside, "INVITE", path))
    alice.send(answer(alice.receive(), 486))
    assert alice.receive().startswith("ACK ")
    hear(inside.up, 486)
    inside.begin(down(inside, "ACK", path, tag="u1"))
    wait_for(lambda: inside.left() == (0, 0))
    inside.begin(down(inside, "MESSAGE", path, "up-2"))
    alice.send(answer(alice.receive(), 200))
    hear(inside.up, 200)
    assert inside.left() == (0, 0)
    alice.close()
    wait_for(lambda: inside.state()["connections"] == 0)
    assert inside.left() == (0, 0)


@pytest.mark.parametrize("code", [200, 486])
@pytest.mark.parametrize("inside", ["udp"], indirect=True)
def test_nothing_is_left_of_an_invite_whose_stream_has_ended_when_it_is_answered(inside: Place, code: int) -> None:
    # The server may open a connection of its own, ask over it, and close it: then there is nobody to answer to.
    alice = inside.client()
    path = path_of(inside, alice)
    with socket.create_connection((HOST, inside.edge.sip_port)) as stream:
        stream.sendall(down(inside, "INVITE", path).replace("SIP/2.0/UDP", "SIP/2.0/TCP").encode())
        invite = alice.receive()
    wait_for(lambda: inside.state()["streams"] == 0)
    alice.send(answer(invite, code))
    if code == 486:
        assert alice.receive().startswith("ACK ")
    wait_for(lambda: inside.left() == (0, 0))


@inside_both
def test_nothing_is_left_of_a_client_that_leaves_with_everything_open_but_what_is_owed(inside: Place) -> None:
    alice = inside.client()
    alice.send(request("MESSAGE", 1, call_id="c1"))
    inside.up.receive()
    alice.send(request("OPTIONS", 2, call_id="c2"))
    inside.up.receive()
    alice.send(request("SUBSCRIBE", 3, call_id="c3", headers=CALLER))
    inside.up.receive()
    assert inside.left()[0] == 3
    alice.close()
    wait_for(lambda: inside.state()["connections"] == 0)
    assert inside.left() == (0, 0)


# -- clients that leave ------------------------------------------------------------------------------------------------


@pytest.mark.rule(45)
@over_both
def test_a_client_that_leaves_while_it_is_rung_is_480_upstream_at_once(place: Place) -> None:
    alice = place.client()
    path = path_of(place, alice)
    place.begin(down(place, "INVITE", path))
    alice.send(answer(alice.receive(), 180, "Ringing"))
    hear(place.up, 180)
    since = time.monotonic()
    alice.close()
    gone = hear(place.up, 480)
    assert time.monotonic() - since < 0.5
    [to] = lines(gone, "To")
    assert ";tag=" in to
    assert len(lines(gone, "Via")) == 1
    if isinstance(place.up, UdpServer):
        place.begin(down(place, "INVITE", path))
        assert hear(place.up, 480) == gone
        assert hear(place.up, 480) == gone  # by Timer G
    place.begin(down(place, "ACK", path, tag=to.partition(";tag=")[2]))
    nothing(place.up, 1.3)
    assert "dropped" not in place.log()


@pytest.mark.rule(45)
@over_both
def test_a_client_that_leaves_while_it_rings_somebody_cancels(place: Place) -> None:
    alice = place.client()
    invite = ring(place, alice)
    alice.close()
    cancel = place.up.receive()
    assert cancel.startswith("CANCEL sip:bob@example.com SIP/2.0\r\n")
    assert lines(cancel, "Via") == lines(invite, "Via")[:1]
    if isinstance(place.up, UdpServer):
        assert place.up.receive() == cancel  # repeated until it is answered
        place.up.send(answer(cancel, 200))
    place.up.send(answer(cancel, 200))
    for _ in range(2 if isinstance(place.up, UdpServer) else 1):
        place.up.send(answer(invite, 487, "Request Terminated"))
        ack = place.up.receive()
        assert ack.startswith("ACK ")
        assert lines(ack, "Via") == lines(invite, "Via")[:1]
    nothing(place.up, 1.2)
    assert "dropped" not in place.log()


@pytest.mark.rule(45)
def test_an_invite_of_a_client_that_left_is_not_repeated_and_cancelled_when_a_sign_of_it_comes(place: Place) -> None:
    alice = place.client()
    alice.send(request("INVITE", 1, headers=CALLER))
    invite = place.up.receive()
    alice.close()
    nothing(place.up, 1.0)
    place.up.send(answer(invite, 180, "Ringing"))
    cancel = place.up.receive()
    assert cancel.startswith("CANCEL ")
    place.up.send(answer(cancel, 200))
    place.up.send(answer(invite, 487, "Request Terminated"))
    assert place.up.receive().startswith("ACK ")
    nothing(place.up, 0.7)


@pytest.mark.case("C089")
@pytest.mark.rule(45)
def test_a_client_that_is_reset_in_the_middle_of_everything_leaves_once(place: Place) -> None:
    alice = place.raw()
    path = path_of(place, alice)
    assert isinstance(place.up, UdpServer)
    with Watch(place.up) as up:
        alice.send(request("INVITE", 1, call_id="ringing", headers=CALLER))
        invite = up.first("ringing")
        place.begin(answer(invite, 180, "Ringing"))
        hear(alice, 180)
        alice.send(request("OPTIONS", 2, call_id="asked"))
        options = up.first("asked")
        alice.socket.sendall(RawClient.frame(request("MESSAGE", 3))[:100])
        for number in range(200):
            place.begin(down(place, "MESSAGE", path, f"q{number}"))
        since = time.monotonic()
        alice.reset()
        wait_for(lambda: diary(place.directory))
        # What waited for an answer of the client has one; what came too late for it has another.
        wait_for(lambda: len([1 for _, text in up.seen if lines(text, "Call-ID")[0][0] == "q"]) == 200)
        assert {text.split()[1] for _, text in up.seen if lines(text, "Call-ID")[0][0] == "q"} <= {"480", "430"}
        assert lines(up.first("ringing", "CANCEL"), "Via") == lines(invite, "Via")[:1]
        place.up.send(answer(invite, 200, headers=f"Contact: <sip:bob@{HOST}:{place.up.port}>\r\n"))
        place.up.send(answer(options, 200))
        place.up.send(answer(up.first("ringing", "CANCEL"), 200))
        for number in range(50):
            place.begin(down(place, "MESSAGE", path, f"l{number}"))
        wait_for(lambda: len([1 for _, text in up.seen if lines(text, "Call-ID")[0][0] == "l"]) == 50)
        assert {status(text) for _, text in up.seen if lines(text, "Call-ID")[0][0] == "l"} == {430}
        time.sleep(1.2)
        assert up.of("ringing", "ACK") == []
        assert len(up.of("ringing", "INVITE")) == 1
        assert len(up.of("ringing", "CANCEL")) == 1
        assert [at for at, _ in up.of("asked", "OPTIONS") if at > since + 0.3] == []
    [entry] = diary(place.directory)
    assert (entry["user"], entry["terminator"]) == ("alice", "network")
    assert len(place.log().splitlines()) < 10, place.log()


@pytest.mark.case("C090")
@pytest.mark.rule(45)
@over_both
def test_a_bye_that_is_the_last_thing_a_client_sends_is_carried_to_its_end(place: Place) -> None:
    alice = place.raw()
    _, routes = talk(place, alice)
    since = time.monotonic()
    bye_text = request("BYE", 3, to_tag="u1", cseq=2, headers=routes, uri=f"sip:bob@{HOST}:{place.up.port}")
    alice.socket.sendall(RawClient.frame(bye_text) + bytes.fromhex("8882 37fa213d 3413"))
    with Watch(place.up) as up:
        bye = up.first("c1", "BYE")
        if isinstance(place.up, UdpServer):
            # The first copies are lost; the client has long gone when the third is answered.
            wait_for(lambda: diary(place.directory))
            wait_for(lambda: len(up.seen) == 3)
            spaced(up.seen, since, 0, 0.5, 1.5)
        place.up.send(answer(bye, 200))
        time.sleep(2.3 if isinstance(place.up, UdpServer) else 0.7)
        assert len(up.seen) == (3 if isinstance(place.up, UdpServer) else 1)
    [entry] = diary(place.directory)
    assert (entry["user"], entry["terminator"], entry["code"]) == ("alice", "client", 1001)
    assert "dropped" not in place.log()


@pytest.mark.case("C090")
@pytest.mark.rule(45)
def test_a_cancel_that_is_the_last_thing_a_client_sends_is_carried_to_its_end(place: Place) -> None:
    alice = place.raw()
    invite = ring(place, alice)
    since = time.monotonic()
    alice.socket.sendall(RawClient.frame(request("CANCEL", 1)) + bytes.fromhex("8882 37fa213d 3413"))
    with Watch(place.up) as up:
        wait_for(lambda: len(up.seen) == 3)
        spaced(up.seen, since, 0, 0.5, 1.5)
        cancel = up.seen[0][1]
        assert cancel.startswith("CANCEL ")
        assert lines(cancel, "Via") == lines(invite, "Via")[:1]
        place.up.send(answer(cancel, 200))
        place.up.send(answer(invite, 487, "Request Terminated"))
        assert up.first("c1", "ACK")
        time.sleep(0.7)
        assert len(up.seen) == 4


RECORD = (
    DIARY
    + """
import fastws
def on_handshake(handshake):
    user = handshake.query.get("user", "")
    if user == "refused":
        return handshake.reject(403)
    note(accepted=list(handshake.source))
    return handshake.accept(user=user)
def on_close(connection, terminator, code, reason):
    note(closed=list(connection.source), user=connection["user"], terminator=terminator, code=code,
         left=len(fastws.connections))
"""
)


@pytest.mark.case("C091")
@pytest.mark.rule(45)
def test_three_hundred_clients_that_leave_at_once_leave_once_each(tmp_path: Path) -> None:
    up = UdpServer()
    with Edge(tmp_path, upstream=[up.uri], policy=RECORD, config="head_timeout = 1.0\n") as edge:

        def descriptors() -> int:
            return len(os.listdir(f"/proc/{edge.process.pid}/fd"))

        # What is opened once and stays does not count.
        first = RawClient(edge.port, "first")
        first.send(request("OPTIONS", user="first"))
        up.receive()
        first.close()
        wait_for(lambda: len(diary(tmp_path)) == 2)
        before = descriptors()
        with Watch(up) as watch:
            clients = []
            for number in range(300):
                clients.append(RawClient(edge.port, f"u{number}"))
                clients[-1].send(
                    request("REGISTER", 1, user=f"u{number}", call_id=f"r{number}", headers=contact(f"u{number}"))
                )
            refused = [RawClient(edge.port, "refused") for _ in range(60)]
            assert all(client.answer.startswith("HTTP/1.1 403 ") for client in refused)
            halves = [RawClient(edge.port, head="GET / HTTP/1.1\r\nHost: a") for _ in range(60)]
            wait_for(lambda: len({lines(text, "Call-ID")[0] for _, text in watch.seen}) == 300, 10)
            for number, client in enumerate(clients):
                if number % 3 == 0:
                    client.socket.sendall(RawClient.frame(struct.pack("!H", 1000), 8))
                elif number % 3 == 1:
                    client.socket.shutdown(socket.SHUT_WR)
                else:
                    client.reset()
            for half in halves[:30]:
                half.close()
            for client in refused:
                client.close()
            wait_for(lambda: len(diary(tmp_path)) == 2 + 600, 10)
        entries = diary(tmp_path)[2:]
        closes = [entry for entry in entries if "closed" in entry]
        assert sorted(entry["closed"] for entry in closes) == sorted(
            entry["accepted"] for entry in entries if "accepted" in entry
        )
        assert len({tuple(entry["closed"]) for entry in closes}) == 300
        for entry in closes:
            expected = ("client", 1000) if int(entry["user"][1:]) % 3 == 0 else ("network", 1006)
            assert (entry["terminator"], entry["code"]) == expected, entry
        assert min(entry["left"] for entry in closes) == 0
        for client in clients:
            client.close()
        wait_for(lambda: descriptors() <= before, 10)  # the other halves when their time is up
        for half in halves:
            half.close()
        assert len(diary(tmp_path)) == 602
    up.close()


@pytest.mark.case("C092")
@pytest.mark.rule(45)
def test_a_client_whose_network_is_gone_is_closed_at_the_deadline_and_an_idle_one_stays(tmp_path: Path) -> None:
    up = UdpServer()
    config = "ping_interval = 0.3\nping_timeout = 0.3\n"
    with Edge(tmp_path, upstream=[up.uri], policy=NAMED, config=config) as edge:
        idle = Client(edge.url, "idle")  # answers pings by itself
        since = time.monotonic()
        dead = RawClient(edge.port, "dead")  # neither reads nor answers
        dead.send(request("MESSAGE", 1, user="dead"))
        wait_for(lambda: diary(tmp_path))
        assert 0.5 < time.monotonic() - since < 1.5
        time.sleep(3)  # ten more intervals
        [entry] = diary(tmp_path)
        assert (entry["user"], entry["terminator"]) == ("dead", "timeout")
        assert edge.log().count("no answer to a ping") == 1
        received = [up.receive()]
        with contextlib.suppress(TimeoutError):
            while True:
                received.append(up.receive(0.05))
        # At 0 and 0.5 s; by the third it had left.
        assert 1 <= len(received) <= 2 and len(set(received)) == 1
        idle.send(request("MESSAGE", 2, user="idle"))
        up.send(answer(up.receive(), 200))
        hear(idle, 200)
        idle.close()
        dead.close()
    up.close()


@pytest.mark.case("C095")
@pytest.mark.rule(45)
def test_what_belongs_to_an_old_connection_never_reaches_the_new_one(place: Place) -> None:
    old = place.client()
    path_of(place, old)
    invite, _ = talk(place, old)
    old.send(request("MESSAGE", 50, call_id="pending"))
    pending = place.up.receive()
    new = place.client()
    new_path = path_of(place, new)
    old.close()
    wait_for(lambda: diary(place.directory))
    route = ", ".join(lines(invite, "Record-Route"))
    place.begin(down(place, "BYE", route, "c1", tag="falice"))
    assert status(place.up.receive()) == 430
    place.up.send(answer(pending, 200))
    nothing(new, 0.3)
    place.begin(down(place, "INVITE", new_path, "up-9"))
    assert new.receive().startswith("INVITE ")


# -- half a minute -----------------------------------------------------------------------------------------------------

DOUBLING = [0, 0.5, 1.5, 3.5, 7.5, 15.5, 31.5]  # Timer A
CAPPED = [0, 0.5, 1.5, 3.5, 7.5, 11.5, 15.5, 19.5, 23.5, 27.5, 31.5]  # Timers E and G
DRIFT_S = 0.6  # each of ten repetitions is up to two turns of the wheel late, and the last has it all


class Run:
    """What was seen of each of the calls below, and when."""

    def __init__(self) -> None:
        self.since: dict[str, float] = {}
        self.up: Watch
        self.clients: dict[str, Watch] = {}
        self.end: dict[str, Any] = {}

    def times(self, seen: list[tuple[float, str]], call_id: str) -> list[float]:
        return [round(at - self.since[call_id], 2) for at, _ in seen]


@pytest.fixture(scope="module")
def half_a_minute(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Everything that nobody answers, at once and side by side; over UDP, until the last timer has run out."""
    up = UdpServer()
    run = Run()
    with Inside(up.uri) as edge:
        place = Place(edge, up, tmp_path_factory.mktemp("slow"))
        far = (HOST, edge.sip_port)
        names = ("alice", "bye", "cancel", "early", "gone", "left")
        clients = {name: place.client(name) for name in names}
        paths = {name: path_of(place, client) for name, client in clients.items()}
        run.up = Watch(up)
        run.clients = {name: Watch(client) for name, client in clients.items()}

        def sends(name: str, method: str, call_id: str, **more: Any) -> str:
            run.since.setdefault(call_id, time.monotonic())
            clients[name].send(request(method, 1, user=name, call_id=call_id, **more))
            return run.up.first(call_id, method) if method != "CANCEL" else ""

        def begins(name: str, method: str, call_id: str) -> str:
            run.since.setdefault(call_id, time.monotonic())
            up.send(down(place, method, paths[name], call_id), far)
            return run.clients[name].first(call_id, method)

        sends("alice", "INVITE", "invite", headers=CALLER)
        sends("alice", "MESSAGE", "message")
        up.send(answer(sends("alice", "MESSAGE", "trying"), 100, "Trying"), far)
        refused = answer(sends("alice", "INVITE", "refused", headers=CALLER), 486, "Busy Here")
        up.send(refused, far)
        begins("alice", "INVITE", "rung")
        clients["alice"].send(answer(begins("alice", "INVITE", "busy"), 486, "Busy Here"))
        clients["alice"].send(answer(begins("alice", "INVITE", "accepted"), 200, headers=contact()))
        begins("alice", "MESSAGE", "asked")
        sends("bye", "BYE", "bye", to_tag="x")
        clients["bye"].close()
        up.send(answer(sends("cancel", "INVITE", "cancel", headers=CALLER), 180, "Ringing"), far)
        run.clients["cancel"].first("cancel", "SIP/2.0 180")
        run.since["cancel"] = time.monotonic()
        sends("cancel", "CANCEL", "cancel")
        sends("early", "INVITE", "early", headers=CALLER)
        sends("early", "CANCEL", "early")
        begins("gone", "INVITE", "gone")
        run.since["gone"] = time.monotonic()
        clients["gone"].close()
        up.send(answer(sends("left", "INVITE", "left", headers=CALLER), 183, "Progress"), far)
        run.clients["left"].first("left", "SIP/2.0 183")
        run.since["left"] = time.monotonic()
        clients["left"].close()

        start = time.monotonic()
        time.sleep(5)
        for call_id in ("accepted", "asked", "rung"):
            up.send(down(place, "INVITE" if call_id != "asked" else "MESSAGE", paths["alice"], call_id), far)
        time.sleep(max(0.0, start + 20 - time.monotonic()))
        up.send(refused, far)
        # The server ACKs the 408 that it gets in the end, as every server does.
        timed_out = wait_for(lambda: run.up.of("rung", "SIP/2.0 408"), 20)[0][1]
        tag = lines(timed_out, "To")[0].partition(";tag=")[2]
        up.send(down(place, "ACK", paths["alice"], "rung", tag=tag), far)
        for name, call_id in (("alice", "invite"), ("cancel", "cancel"), ("early", "early")):
            [to] = lines(run.clients[name].first(call_id, "SIP/2.0 408"), "To")
            clients[name].send(request("ACK", 1, user=name, call_id=call_id, to_tag=to.partition(";tag=")[2]))
        wait_for(lambda: place.left() == (0, 0), 15, f"no transaction to be left: {place.state()}")
        for client in clients.values():
            client.close()
        wait_for(lambda: place.state()["connections"] == 0)
        run.end = place.state()
        for watch in [run.up, *run.clients.values()]:
            watch.stop()
        place.close()
        yield run


@pytest.mark.rule(37)
@pytest.mark.parametrize(
    ("call_id", "start", "times"),
    [
        ("invite", "INVITE", DOUBLING),
        ("early", "INVITE", DOUBLING),
        ("message", "MESSAGE", CAPPED),
        ("trying", "MESSAGE", [0, 4, 8, 12, 16, 20, 24, 28]),
        ("busy", "SIP/2.0 486", CAPPED),
        ("gone", "SIP/2.0 480", CAPPED),
        ("bye", "BYE", CAPPED),
        ("cancel", "CANCEL", CAPPED),
        ("left", "CANCEL", CAPPED),
    ],
)
def test_what_nobody_answers_over_udp_is_repeated_for_32_seconds(
    half_a_minute: Run, call_id: str, start: str, times: list[float]
) -> None:
    seen = half_a_minute.up.of(call_id, start)
    assert half_a_minute.times(seen, call_id) == pytest.approx(times, abs=DRIFT_S)
    assert len({message for _, message in seen}) == 1


@pytest.mark.rule(38)
@pytest.mark.case("C068")
@pytest.mark.parametrize(("name", "call_id"), [("alice", "invite"), ("early", "early"), ("cancel", "cancel")])
def test_an_invite_that_nobody_answers_is_408_after_32_seconds_and_once(
    half_a_minute: Run, name: str, call_id: str
) -> None:
    finals = [one for one in half_a_minute.clients[name].of(call_id, "SIP/2.0 4")]
    assert [status(message) for _, message in finals] == [408]
    [at] = half_a_minute.times(finals, call_id)
    assert 32 <= at < 33
    assert not half_a_minute.up.of(call_id, "ACK")
    if call_id != "cancel":
        assert not half_a_minute.up.of(call_id, "CANCEL")


@pytest.mark.rule(38)
@pytest.mark.rule(36)
def test_an_invite_that_its_client_never_answers_is_100_and_then_408(half_a_minute: Run) -> None:
    seen = half_a_minute.up.of("rung")
    assert [status(message) for _, message in seen] == [100, 100, 408]
    assert half_a_minute.times(seen, "rung") == pytest.approx([0.1, 5, 32], abs=DRIFT_S)
    assert len(half_a_minute.clients["alice"].of("rung")) == 1


@pytest.mark.rule(44)
def test_nothing_but_an_invite_is_ever_408(half_a_minute: Run) -> None:
    for call_id in ("message", "trying"):
        assert half_a_minute.clients["alice"].of(call_id) == []
    assert half_a_minute.up.of("asked") == []
    assert len(half_a_minute.clients["alice"].of("asked")) == 1


@pytest.mark.rule(38)
@pytest.mark.rule(41)
def test_a_refusal_that_comes_again_after_20_seconds_is_acked_again(half_a_minute: Run) -> None:
    acks = half_a_minute.up.of("refused", "ACK")
    assert half_a_minute.times(acks, "refused") == pytest.approx([0, 20], abs=1.0)
    assert len(half_a_minute.clients["alice"].of("refused", "SIP/2.0 486")) == 1


@pytest.mark.rule(43)
def test_an_invite_repeated_after_its_200_is_swallowed(half_a_minute: Run) -> None:
    assert [status(message) for _, message in half_a_minute.up.of("accepted") if status(message) > 100] == [200]
    assert [message.split()[0] for _, message in half_a_minute.clients["alice"].of("accepted")] == ["INVITE"]


@pytest.mark.rule(45)
def test_after_all_timers_nothing_is_left(half_a_minute: Run) -> None:
    assert [half_a_minute.end[name] for name in ("transactions", "timers", "connections")] == [0, 0, 0]
