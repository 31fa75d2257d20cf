"""Public cases: who never reads, and who never ends."""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

import pytest

from ..conftest import wait_for
from .harness import (
    RECORD,
    Setup,
    Setups,
    TcpUp,
    answer,
    branch,
    data,
    method,
    value,
)

FW = Callable[..., Setup]


# -- C120 (d): a message that comes a byte a second, so it starts with the module --------------------------------------


@dataclass
class Dripping:
    """An upstream that begins a response and does not get on with it."""

    setup: Setup
    ended: list[float] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        up = self.setup.tcp
        connection = up.connection
        assert connection is not None
        began = time.monotonic()
        with suppress(OSError):
            for byte in data("C120", 3) + b"X: " + b"a" * 60:
                connection.sendall(bytes([byte]))
                if self.stop.wait(1.0):
                    return
                if select.select([connection], [], [], 0)[0] and connection.recv(1, 2) == b"":  # MSG_PEEK
                    break
        self.ended.append(time.monotonic() - began)


@pytest.fixture(scope="module", autouse=True)
def dripping(setups: Setups) -> Iterator[Dripping]:
    setup = setups.get("tcp", RECORD, own="dripping")
    setup.check()
    made = Dripping(setup)
    thread = threading.Thread(target=made.run, daemon=True)
    thread.start()
    yield made
    made.stop.set()
    thread.join(5)


@pytest.mark.case("C120")
def test_requests_go_up_while_a_response_comes_a_byte_a_second(setups: Setups, dripping: Dripping) -> None:
    setup = dripping.setup
    client = setup.client()
    up = setup.tcp
    connection = up.connection
    for _ in range(3):
        sent = time.monotonic()
        client.text(setup.ask("OPTIONS"))
        up.request("OPTIONS")
        assert time.monotonic() - sent < 0.2
    assert up.connection is connection
    client.quiet()


# -- C119 --------------------------------------------------------------------------------------------------------------


def big(setup: Setup, path: str, number: int, size: int) -> bytes:
    return (
        b"MESSAGE sip:alice@c1.invalid;transport=ws SIP/2.0\r\n"
        b"Via: SIP/2.0/UDP 127.0.0.1:%d;rport;branch=z9hG4bKbig%d\r\nRoute: %s\r\nMax-Forwards: 70\r\n"
        b"From: <sip:bob@example.com>;tag=u1\r\nTo: <sip:alice@example.com>\r\nCall-ID: big-%d\r\n"
        b"CSeq: 1 MESSAGE\r\nContent-Length: %d\r\n\r\n"
        % (setup.up.port, number, path.encode(), number, size)
        + b"x" * size
    )


@pytest.mark.case("C119")
@pytest.mark.rule(50)
def test_a_client_that_never_reads_is_closed_and_holds_up_nobody(fw: FW) -> None:
    setup = fw("udp", RECORD, own="never reads")
    deaf = setup.client(receive_buffer=8192)
    deaf_path = setup.register(deaf, "deaf")
    client = setup.client()
    path = setup.register(client, "c2", instance=2)
    before = setup.memory()
    codes: list[int] = []
    late: list[float] = []
    for number in range(100):
        for part in range(50):
            # 10 KiB each; the kernel keeps some 200 KiB of datagrams for the proxy, so it is waited for now and then.
            setup.up.send(big(setup, deaf_path, number * 1000 + part, 10_240))
            if part % 10 == 9:
                setup.up.send(big(setup, path, number * 1000 + 100 + part, 1))
                sent = time.monotonic()
                received = client.message()
                late.append(time.monotonic() - sent)
                assert value(received, "call-id") == f"big-{number * 1000 + 100 + part}"
                client.text(answer(received))
                while True:
                    got = setup.up.receive()
                    assert got.startswith(b"SIP/2.0 "), got
                    if branch(got) == f"z9hG4bKbig{number * 1000 + 100 + part}":
                        if not got.startswith(b"SIP/2.0 100"):
                            break
                    elif not got.startswith(b"SIP/2.0 100"):
                        codes.append(int(got[8:11]))
        setup.assert_grown(before, 8 << 20)
    # One of a hundred may meet a busy machine; the median may not.
    assert sorted(late)[len(late) // 2] < 0.02 and sorted(late)[-3] < 0.1
    [close] = wait_for(lambda: setup.closes(deaf), what="on_close")
    assert close["terminator"] == "overload"
    # 480 for what it had been sent and did not answer, 430 for what came after its end.
    assert set(codes) == {430, 480} and len(codes) > 1000
    setup.up.send(big(setup, deaf_path, 999_999, 1))
    while True:
        got = setup.up.receive()
        if branch(got) == "z9hG4bKbig999999" and not got.startswith(b"SIP/2.0 100"):
            break
    assert got.startswith(b"SIP/2.0 430 ")
    assert setup.closes(client) == []
    # max_queue_bytes is 1 MiB by default; what the allocator keeps of it is not the client's any more.
    # The answers to some thousand requests are kept for 32 s, should UP ask again (Timer J, RFC 3261 17.2.2).
    wait_for(lambda: not setup.grown(before, 6 << 20), timeout=6, what="the memory of before")


# -- C120 (a) to (c) ---------------------------------------------------------------------------------------------------


@pytest.fixture(params=["a", "b", "c"])
def endless(fw: FW, request: pytest.FixtureRequest) -> tuple[str, Setup]:
    # One proxy each: one whose server hangs up again and again waits longer from time to time before it dials.
    return request.param, fw("tcp", RECORD, own=f"endless {request.param}")


@pytest.mark.case("C120")
def test_an_upstream_stream_without_an_end_is_bounded(endless: tuple[str, Setup]) -> None:
    letter, setup = endless
    up = setup.tcp
    client = setup.client()
    setup.check()
    client.text(setup.ask("OPTIONS"))
    up.request("OPTIONS")  # and stays unanswered
    connection, accepted = up.connection, up.accepted
    assert connection is not None
    before, log = setup.memory(), setup.edge.log()
    payload = data("C120", "abc".index(letter))
    connection.settimeout(10)
    answers = b""
    with suppress(OSError):
        for at in range(0, len(payload), 65_536):
            connection.sendall(payload[at : at + 65_536])
            setup.assert_grown(before, 1 << 20)
            if letter == "c" and select.select([connection], [], [], 0)[0]:
                answers += connection.recv(65_536)
    if letter == "c":
        client.text(setup.ask("MESSAGE"))
        while b"MESSAGE " not in answers:
            answers += connection.recv(65_536)
        crlfs = answers.partition(b"MESSAGE ")[0]
        assert crlfs.strip(b"\r\n") == b""
        assert len(crlfs) <= 2 * 200  # one answer for what one read brought, not one for each of 250,000
        assert up.accepted == accepted
        up.buffers[connection] = answers[len(crlfs) :]
        assert method(up.receive()) == "MESSAGE"
        assert setup.edge.log() == log
        return
    up.wait_closed(connection)
    up.open_requests.clear()
    setup.check()
    assert up.accepted > accepted
    new = [line for line in setup.edge.log()[len(log) :].splitlines() if "stream" in line]
    assert len(new) == 1
    client.final(503)  # its OPTIONS was asked over the connection that is gone
    client.quiet()


@pytest.mark.case("C120")
def test_an_unfinished_message_of_the_upstream_meets_a_deadline(fw: FW, dripping: Dripping) -> None:
    setup = fw("tcp", RECORD, own="dripping")
    assert isinstance(setup.up, TcpUp)
    wait_for(lambda: dripping.ended, timeout=30, what="the end of a connection that drips")
    assert dripping.ended[0] < 25
    setup.up.open_requests.clear()
    if setup.tcp.connection is not None:
        setup.tcp.wait_closed(setup.tcp.connection)
    setup.check()
