"""Public cases: WebSocket frames, fragments and control frames, whole, cut, out of order and without an end."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

import pytest

from ..conftest import wait_for
from .harness import (
    BINARY,
    CLOSE,
    CONT,
    H0,
    PING,
    PONG,
    RECORD,
    TEXT,
    Client,
    Frame,
    Setup,
    Setups,
    assert_forwarded,
    data,
    frame,
    letters,
    masked,
    value,
)

FW = Callable[..., Setup]

UPSTREAM_MESSAGE = (
    "MESSAGE sip:alice@c1.invalid;transport=ws SIP/2.0\r\n"
    "Via: SIP/2.0/UDP 127.0.0.1:5070;rport;branch=z9hG4bKdown{0}\r\n"
    "Route: {1}\r\nMax-Forwards: 70\r\nFrom: <sip:bob@example.com>;tag=u1\r\nTo: <sip:alice@example.com>\r\n"
    "Call-ID: down-{0}\r\nCSeq: 1 MESSAGE\r\nContent-Length: 0\r\n\r\n"
)


def unique(message: bytes, number: int) -> bytes:
    """The same message as another transaction, for what is sent twice to one proxy is a repetition."""
    return message.replace(b"z9hG4bK0000001", b"z9hG4bK%07d" % number)


# -- C024: a message that does not come to its end; its deadline is a real one, so it starts with the module -----------


@dataclass
class Unfinished:
    """A client that answers and sends pings, and never ends the message that it began."""

    setup: Setup
    client: Client
    ended: list[float] = field(default_factory=list)
    frames: list[Frame] = field(default_factory=list)

    def run(self) -> None:
        opened = time.monotonic()
        self.client.send(data("C024", 1))
        with suppress(EOFError, OSError):
            for _ in range(40):
                self.client.frame(PING, b"alive")
                with suppress(TimeoutError):
                    while True:
                        got = self.client.receive(2.0)
                        self.frames.append(got)
                        if got.opcode == CLOSE:
                            self.ended.append(time.monotonic() - opened)
                            return


@pytest.fixture(scope="module", autouse=True)
def unfinished(setups: Setups) -> Iterator[Unfinished]:
    setup = setups.get("udp", RECORD, own="unfinished")
    made = Unfinished(setup, Client(setup.edge.port))
    thread = threading.Thread(target=made.run, daemon=True)
    thread.start()
    yield made
    with suppress(OSError):
        made.client.socket.shutdown(socket.SHUT_RDWR)  # closing alone does not wake a thread that waits in recv
    thread.join(5)
    made.client.close()


@pytest.mark.case("C013")
@pytest.mark.rule(6)
def test_a_ping_and_a_message_in_one_segment_are_both_served(fw: FW) -> None:
    setup = fw()
    client = setup.client()
    message = unique(data("C013", 1), 1301)
    client.send(data("C013", 0) + frame(TEXT, message))
    assert client.receive() == Frame(PONG, b"abc")
    assert_forwarded(message, setup.up.request("OPTIONS"))


@pytest.mark.case("C013")
@pytest.mark.rule(6)
def test_a_pong_is_whole_while_messages_are_delivered(fw: FW) -> None:
    setup = fw()
    client = setup.client()
    path = setup.register(client)
    client.send(data("C013", 0) * 4)
    for number in range(8):
        setup.up.send(UPSTREAM_MESSAGE.format(number, path).encode())
        client.send(data("C013", 0))
    got = [client.receive() for _ in range(20)]
    assert [one.payload for one in got if one.opcode == PONG] == [b"abc"] * 12
    messages = [one.payload for one in got if one.opcode == TEXT]
    assert [value(one, "call-id") for one in messages] == [f"down-{number}" for number in range(8)]


@pytest.mark.case("C014")
@pytest.mark.rule(6)
@pytest.mark.rule(9)
def test_four_fragments_around_a_ping_are_one_message_even_if_they_cut_a_character(fw: FW) -> None:
    setup = fw()
    client = setup.client()
    message = data("C014", 0)
    cut = message.index(b"\xc3\xa9") + 1
    client.frame(TEXT, message[:17], fin=False)
    client.frame(CONT, message[17:cut], fin=False)
    client.frame(PING, b"1")
    assert client.receive() == Frame(PONG, b"1")
    client.frame(CONT, b"", fin=False)
    client.frame(CONT, message[cut:])
    received = setup.up.receive(repeats=True)
    assert_forwarded(message, received)
    setup.up.answer(received)
    client.final(200)
    setup.quiet()


@pytest.mark.case("C015")
@pytest.mark.parametrize("wss", [False, True], ids=["ws", "wss"])
def test_one_byte_at_a_time_is_read_as_if_it_came_at_once(fw: FW, wss: bool) -> None:
    setup = fw(wss=wss)
    client = setup.client(head=None)
    client.drip(H0)
    assert client.http().status == 101
    message = data("C015")
    framed = frame(TEXT, message)
    assert framed[1] == 0x80 | 126
    client.drip(framed)
    received = setup.up.receive(repeats=True)
    assert_forwarded(message, received)
    setup.up.answer(received, "486 Busy Here")
    client.final(486)
    client.quiet()


@pytest.mark.case("C017")
def test_an_empty_message_alone_is_nothing(fw: FW) -> None:
    setup = fw("udp", RECORD)
    client = setup.client()
    asked = len(setup.notes("request"))
    client.send(data("C017", 0))
    client.quiet()
    assert len(setup.notes("request")) == asked
    setup.quiet()
    client.quiet()


@pytest.mark.case("C017")
@pytest.mark.parametrize("letter", "bc")
def test_an_empty_message_or_fragment_before_a_message_does_not_touch_it(fw: FW, letter: str) -> None:
    setup = fw("udp", RECORD)
    client = setup.client()
    message = unique(data("C017", 3), 1700 + ord(letter))
    if letter == "b":
        client.send(data("C017", 1) + frame(TEXT, message))
    else:
        client.send(data("C017", 2) + frame(CONT, message))
    received = setup.up.receive(repeats=True)
    assert_forwarded(message, received)
    setup.up.answer(received)
    client.final(200)
    client.quiet()
    setup.quiet()


@pytest.mark.case("C017")
def test_a_close_frame_that_ends_its_segment_is_answered_at_once(fw: FW) -> None:
    setup = fw("udp", RECORD)
    client = setup.client()
    sent = time.monotonic()
    client.send(data("C017", 4))
    assert client.closed() == 1005
    assert time.monotonic() - sent < 0.2
    client.ended()
    [close] = wait_for(lambda: setup.closes(client))
    assert (close["terminator"], close["code"]) == ("client", 1005)


@pytest.mark.case("C019")
@pytest.mark.rule(4)
@pytest.mark.rule(48)
@pytest.mark.parametrize(("letter", "step"), letters("C019", "hex"))
def test_an_rsv_bit_or_an_unknown_opcode_is_1002(fw: FW, letter: str, step: int) -> None:
    setup = fw("udp", RECORD)
    offer = H0.replace(b"\r\n\r\n", b"\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n")
    client = setup.client(head=offer)
    if letter == "b":
        client.frame(TEXT, b"O", fin=False)
    client.send(data("C019", step))
    assert client.closed() == 1002
    [close] = wait_for(lambda: setup.closes(client))
    assert (close["terminator"], close["code"]) == ("protocol", 1002)


@pytest.mark.case("C020")
@pytest.mark.rule(7)
@pytest.mark.parametrize(("letter", "code"), [("a", 1009), ("b", 1002), ("c", 1009), ("d", 1009)])
def test_a_length_of_gigabytes_is_refused_before_anything_is_allocated(fw: FW, letter: str, code: int) -> None:
    setup = fw()
    if letter == "d":
        # Once before it is measured: buffers that the process keeps for the next one are not this frame's.
        first = setup.client()
        first.frame(TEXT, b"x" * 65_000, fin=False)
        first.quiet()
        first.close()
    client = setup.client()
    if letter == "d":
        client.frame(TEXT, b"x" * 65_000, fin=False)
    client.quiet()
    before = setup.memory()
    client.send(data("C020", dict(letters("C020", "hex"))[letter]))
    assert client.closed() == code
    setup.assert_grown(before, 128 * 1024)


@pytest.mark.case("C020")
@pytest.mark.rule(7)
def test_the_largest_length_behind_a_fragment_does_not_wrap(fw: FW) -> None:
    client = fw().client()
    client.frame(TEXT, b"x" * 60_000, fin=False)
    header = data("C020", 2)
    client.send(bytes([0x80]) + header[1:])
    assert client.closed() == 1009


@pytest.mark.case("C022")
@pytest.mark.rule(48)
@pytest.mark.parametrize(("letter", "step"), letters("C022", "hex"))
def test_fragments_out_of_order_are_1002_at_once(fw: FW, letter: str, step: int) -> None:
    setup = fw("udp", RECORD)
    client = setup.client()
    client.send(data("C022", step))
    sent = time.monotonic()
    assert client.closed() == 1002, letter
    assert time.monotonic() - sent < 0.2
    [close] = wait_for(lambda: setup.closes(client))
    assert (close["terminator"], close["code"]) == ("protocol", 1002)


@pytest.mark.case("C024")
@pytest.mark.rule(7)
def test_tiny_fragments_are_1009_when_their_sum_passes_the_limit(fw: FW) -> None:
    setup = fw()
    client = setup.client()
    client.quiet()
    memory, cpu = setup.memory(), setup.cpu()
    fragments = frame(TEXT, b"O", fin=False) + frame(CONT, b"P", fin=False) * 100_000
    with suppress(OSError):  # it need not read to the end
        for at in range(0, len(fragments), 1 << 16):
            client.send(fragments[at : at + (1 << 16)])
            # Twice the limit, and what a process takes when it does something for the first time. An object for each
            # fragment would be megabytes.
            setup.assert_grown(memory, 2 * 65_536 + 65_536)
    assert client.closed() == 1009
    # 65,536 fragments: a few ms, unless each one walks over or moves those before it.
    assert setup.cpu() - cpu < 0.3


@pytest.mark.case("C024")
def test_pings_do_not_keep_an_unfinished_message_alive(fw: FW, unfinished: Unfinished) -> None:
    setup = fw("udp", RECORD, own="unfinished")
    wait_for(lambda: unfinished.ended, timeout=25, what="the end of an unfinished message")
    assert 5 < unfinished.ended[0] < 20
    assert Frame(PONG, b"alive") in unfinished.frames
    [close] = wait_for(lambda: setup.closes(unfinished.client))
    assert close["terminator"] in ("timeout", "protocol")


def test_the_frames_of_the_harness_are_those_of_the_cases() -> None:
    assert frame(PING, b"abc") == data("C013", 0)
    assert frame(BINARY, b"") == data("C017", 1)
    assert frame(TEXT, b"O", fin=False)[:2] == data("C024", 1)[:1] + b"\x81"
    assert masked(masked(b"0123456789")) == b"0123456789"
    assert frame(TEXT, b"\r\n\r\n") == data("C096", 1)
