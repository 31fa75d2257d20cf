"""transport/ws: the life of one client's WebSocket, from the head to exactly one closed().

Most of it is driven without a socket, through the calls that uvloop makes; the ends that only a kernel can make are
made by one. The frames themselves are tested in tests/wire/test_frame.py, the HTTP head in tests/test_admission.py.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import socket
import struct
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any

import pytest

from fastws import Terminator
from fastws._connection import TERMINATORS, ConnectionTable
from fastws._core import Edge
from fastws.transport.base import ReadBuffer, Transport
from fastws.transport.ws import WsListener
from tests import probe_core
from tests.conftest import wait_for
from tests.transport.helpers import FakeLoop, FakeTransport, client_frame, close_payload, run, server_frames, until

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
CONTINUATION = 0
LINGER_MS = 2000
QUEUE_LIMIT = 100_000
HEAD = b"GET / HTTP/1.1\r\n\r\n"
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\n\r\n"
REFUSAL = b"HTTP/1.1 403 Forbidden\r\n\r\n"
NUMBER = {name: TERMINATORS.index(name) for name in Terminator}


class Gate:
    """An admission that lets everybody in who sends an empty line, at once or when `decide` is called."""

    def __init__(self, *, wait: bool = False) -> None:
        self.wait = wait
        self.heads: dict[Any, bytes] = {}
        self.expired_ones: list[Any] = []
        self.lost_ones: list[Any] = []
        self.attributes: dict[str, Any] = {"user": "alice"}

    def feed(self, connection: Any, chunk: bytes) -> None:
        head = self.heads.get(connection, b"") + chunk
        self.heads[connection] = head
        if b"\r\n\r\n" not in head:
            return
        if self.wait:
            if not connection.task:
                connection.task = object()
                connection.hold()
        else:
            self.decide(connection)

    def decide(self, connection: Any) -> bool:
        rest = self.heads.pop(connection).partition(b"\r\n\r\n")[2]
        done: bool = connection.accept(SWITCH, self.attributes, "edge.example.com", rest)
        if not done:
            connection.refuse(b"HTTP/1.1 503 No Room\r\n\r\n")
        return done

    def expired(self, connection: Any) -> None:
        self.expired_ones.append(connection)
        connection.refuse(b"HTTP/1.1 408 Request Timeout\r\n\r\n")

    def lost(self, connection: Any) -> None:
        self.heads.pop(connection, None)
        self.lost_ones.append(connection)


def listener_of(receiver: Any, gate: Gate, loop: Any = None, **options: Any) -> WsListener:
    settings: dict[str, Any] = {"secure": False, "max_message_bytes": 65536, "max_queue_bytes": QUEUE_LIMIT,
                                "head_timeout": 10.0}  # fmt: skip
    return WsListener(loop, receiver, ReadBuffer(), gate, **(settings | options))


class Driven:
    """A connection of a listener on a FakeTransport."""

    def __init__(self, receiver: Any = None, *, wait: bool = False, tls: bool = False, **options: Any) -> None:
        self.recorder = receiver if receiver is not None else probe_core.Recorder()
        self.gate = Gate(wait=wait)
        self.loop = FakeLoop()
        self.listener = listener_of(self.recorder, self.gate, self.loop, secure=tls, **options)
        self.wire = FakeTransport(tls=tls)
        self.connection = self.listener()
        self.connection.connection_made(self.wire)

    def feed(self, data: bytes) -> None:
        """One read; what it left in the shared buffer is gone behind it."""
        view = self.connection.get_buffer(-1)
        view[: len(data)] = data
        self.connection.buffer_updated(len(data))
        view[: len(data)] = b"\xee" * len(data)

    def open(self, rest: bytes = b"") -> Driven:
        self.feed(HEAD + rest)
        if not self.gate.wait:
            assert self.wire.written[0] == SWITCH
            del self.wire.written[0]
        return self

    def frames(self) -> list[tuple[int, bytes]]:
        """What went to the client since the last time."""
        return server_frames(self.wire.take())

    @property
    def closed(self) -> list[tuple[Any, ...]]:
        events: list[tuple[Any, ...]] = self.recorder.of("closed")
        return events

    def lose(self, error: Exception | None = None) -> None:
        self.connection.connection_lost(error)


def opened(**options: Any) -> Driven:
    return Driven(**options).open()


# ---- the head --------------------------------------------------------------------------------------------------------


def test_a_client_is_opened_with_its_addresses_attributes_and_host() -> None:
    one = opened()
    assert one.recorder.events[0] == (
        "opened", ("192.0.2.1", 40000), ("127.0.0.1", 80), {"user": "alice"}, "edge.example.com"
    )  # fmt: skip
    assert one.recorder.events[0][3] is one.gate.attributes
    assert one.listener.counts() == (1, 0, 0)


@pytest.mark.rule(49)
def test_frames_behind_the_head_are_the_first_messages() -> None:
    stream = client_frame(b"one") + client_frame(b"two", BINARY) + client_frame(b"three")
    for cut in range(len(stream) + 1):
        one = Driven().open(stream[:cut])
        one.feed(stream[cut:])
        assert one.recorder.messages == [b"one", b"two", b"three"]


@pytest.mark.rule(13)
def test_a_head_that_does_not_come_in_time_is_refused() -> None:
    one = Driven()
    one.feed(b"GET / HTT")
    one.recorder.ahead = 9_900
    one.listener.tick()
    assert one.gate.expired_ones == []
    one.recorder.ahead = 10_100
    one.listener.tick()
    assert one.gate.expired_ones == [one.connection]
    assert one.wire.take().startswith(b"HTTP/1.1 408")
    assert one.listener.counts() == (1, 0, 1)
    one.lose()
    assert one.recorder.events == [] and one.listener.counts() == (0, 0, 0)


@pytest.mark.rule(13)
def test_only_those_whose_time_has_come_are_expired() -> None:
    recorder, gate = probe_core.Recorder(), Gate()
    listener = listener_of(recorder, gate)
    made = []
    for number in range(5):
        recorder.ahead = number * 1000
        connection = listener()
        connection.connection_made(FakeTransport())
        made.append(connection)
    recorder.ahead = 12_500
    listener.tick()
    assert gate.expired_ones == made[:3]
    assert listener.counts() == (5, 2, 3)


@pytest.mark.rule(13)
def test_a_policy_that_thinks_is_not_hurried_by_the_deadline_of_the_head() -> None:
    one = Driven(wait=True)
    one.feed(HEAD)
    one.recorder.ahead = 60_000
    one.listener.tick()
    assert one.gate.expired_ones == []
    assert one.gate.decide(one.connection)
    assert one.recorder.of("opened") != []


def test_a_client_that_leaves_before_it_was_let_in_was_never_there() -> None:
    for head in (b"", b"GET"):
        one = Driven()
        one.feed(head)
        one.connection.eof_received()
        one.lose()
        assert one.recorder.events == [] and one.gate.lost_ones == [one.connection]
        assert one.connection.gone and one.listener.counts() == (0, 0, 0)
        # The policy's late answer finds nobody.
        assert one.connection.accept(SWITCH, {}, "", b"") is True
        one.connection.refuse(REFUSAL)
        one.connection.refuse_with_code(SWITCH, 4403, "no")
        assert one.recorder.events == [] and one.wire.written == []


def test_a_client_that_was_reset_before_it_was_accepted_is_dropped() -> None:
    recorder, gate = probe_core.Recorder(), Gate()
    listener = listener_of(recorder, gate)
    for wire in (FakeTransport(peer=None), FakeTransport(local=None)):
        connection = listener()
        connection.connection_made(wire)
        assert wire.calls == ["abort"] and connection.gone
        connection.connection_lost(None)
    assert listener.counts() == (0, 0, 0) and recorder.events == [] and gate.lost_ones == []


def test_a_refusal_is_sent_and_no_connection() -> None:
    one = Driven()
    one.connection.refuse(REFUSAL)
    assert one.wire.take() == REFUSAL and one.wire.calls == ["write_eof"]
    one.feed(client_frame(b"late"))
    one.connection.refuse(REFUSAL)
    one.connection.eof_received()
    one.lose()
    assert one.wire.written == [] and one.recorder.events == []


def test_a_refusal_with_a_code_completes_the_handshake_and_closes() -> None:
    one = Driven()
    one.connection.refuse_with_code(SWITCH, 4403, "nö")
    assert one.wire.take() == SWITCH + bytes([0x88, 5]) + close_payload(4403, "nö".encode())
    one.feed(client_frame(b"INVITE"))
    one.lose()
    assert one.recorder.events == []


def test_without_room_the_client_is_refused_and_nothing_was_sent_before() -> None:
    one = Driven()
    one.recorder.room = False
    one.feed(HEAD + client_frame(b"x"))
    assert one.wire.take().startswith(b"HTTP/1.1 503")
    one.lose()
    assert one.recorder.events == []


def test_clients_still_in_the_handshake_can_be_dropped() -> None:
    one = Driven()
    one.listener.abort_waiting()
    assert one.wire.calls == ["abort"]
    two = opened()
    two.listener.abort_waiting()
    assert two.wire.calls == []


# ---- messages --------------------------------------------------------------------------------------------------------


@pytest.mark.rule(8)
@pytest.mark.rule(9)
def test_each_websocket_message_is_one_message_text_or_binary() -> None:
    one = opened()
    parts = [(b"INVITE", TEXT), (b"\xff\0binary", BINARY), (b"x" * 65536, TEXT), ("grüß".encode(), TEXT)]
    for payload, opcode in parts:
        one.feed(client_frame(payload, opcode))
    assert one.recorder.messages == [payload for payload, _ in parts]


def test_messages_are_found_wherever_a_read_ends() -> None:
    stream = (
        client_frame(b"first") + client_frame(b"", PING) + client_frame(b"sec", fin=False) + client_frame(b"p", PING)
        + client_frame(b"ond", CONTINUATION) + client_frame(b"z" * 200)
    )  # fmt: skip
    for cut in range(len(stream) + 1):
        one = opened()
        one.feed(stream[:cut])
        one.feed(stream[cut:])
        assert one.recorder.messages == [b"first", b"second", b"z" * 200]
        assert one.frames() == [(PONG, b""), (PONG, b"p")]
    one = opened()
    for at in range(len(stream)):
        one.feed(stream[at : at + 1])
    assert one.recorder.messages == [b"first", b"second", b"z" * 200]
    assert one.recorder.of("gone") == []


def test_the_receiver_hears_of_every_read_and_whether_something_is_unfinished() -> None:
    one = opened()
    frame = client_frame(b"message")
    for part in (frame, frame[:3], frame[3:], client_frame(b"a", fin=False), client_frame(b"", PONG)):
        one.feed(part)
    one.feed(client_frame(b"b", CONTINUATION))
    assert one.recorder.of("heard")[-6:] == [("heard", part) for part in (False, True, False, True, True, False)]


@pytest.mark.rule(12)
def test_a_double_crlf_is_answered_with_one_as_text_and_is_no_message() -> None:
    one = opened()
    for opcode in (TEXT, BINARY):
        one.feed(client_frame(b"\r\n\r\n", opcode))
        assert one.frames() == [(TEXT, b"\r\n")]
    one.feed(client_frame(b"\r\n\r\n") * 3)
    assert one.frames() == [(TEXT, b"\r\n")] * 3
    assert one.recorder.messages == []


@pytest.mark.rule(12)
@pytest.mark.parametrize("payload", [b"", b"\r\n", b"\r", b"\n\n\n\n", b"\0", b"\0\0\0\0", b"\r\n\r"])
def test_other_keep_alives_are_swallowed(payload: bytes) -> None:
    one = opened()
    one.feed(client_frame(payload) + client_frame(b"INVITE"))
    assert one.recorder.messages == [b"INVITE"] and one.frames() == []


@pytest.mark.rule(6)
def test_pings_are_answered_with_their_payload() -> None:
    one = opened()
    for payload in (b"", b"x", bytes(range(125))):
        one.feed(client_frame(payload, PING))
        assert one.frames() == [(PONG, payload)]
    one.feed(client_frame(b"unasked", PONG))
    assert one.frames() == [] and one.recorder.messages == []


# ---- holding back ----------------------------------------------------------------------------------------------------


def test_a_message_that_waits_holds_back_what_follows_in_order() -> None:
    one = Driven()
    waits = {b"2", b"3", b"5"}
    one.recorder.on_received = lambda transport, data: data in waits
    one.open(b"".join(client_frame(b"%d" % number) for number in range(6)))
    assert one.recorder.messages == [b"0", b"1", b"2"] and not one.wire.reading
    probe_core.transport_resume(one.connection)
    assert one.recorder.messages[3:] == [b"3"] and not one.wire.reading
    probe_core.transport_resume(one.connection)
    assert one.recorder.messages[4:] == [b"4", b"5"] and not one.wire.reading
    probe_core.transport_resume(one.connection)
    assert one.wire.reading
    one.feed(client_frame(b"6"))
    assert one.recorder.messages == [b"%d" % number for number in range(7)]


def test_what_is_held_back_may_end_anywhere_in_a_frame() -> None:
    stream = client_frame(b"first") + client_frame(b"second", fin=False) + client_frame(b" half", CONTINUATION)
    for cut in range(len(client_frame(b"first")), len(stream) + 1):
        one = opened()
        one.recorder.on_received = lambda transport, data: data == b"first"
        one.feed(stream[:cut])
        assert one.recorder.messages == [b"first"] and not one.wire.reading
        probe_core.transport_resume(one.connection)
        assert one.wire.reading
        one.feed(stream[cut:])
        assert one.recorder.messages == [b"first", b"second half"]


def test_what_is_read_before_the_pause_takes_effect_keeps_its_place() -> None:
    one = opened()
    one.recorder.on_received = lambda transport, data: data == b"1"
    one.feed(client_frame(b"1") + client_frame(b"2"))
    one.feed(client_frame(b"3"))
    assert one.recorder.messages == [b"1"]
    probe_core.transport_resume(one.connection)
    assert one.recorder.messages == [b"1", b"2", b"3"]


def test_a_client_let_in_by_an_async_policy_keeps_what_it_sent_ahead() -> None:
    one = Driven(wait=True)
    one.feed(HEAD + client_frame(b"1"))
    assert not one.wire.reading and one.recorder.events == []
    one.recorder.on_received = lambda transport, data: data == b"1"
    one.gate.decide(one.connection)
    assert one.recorder.messages == [b"1"] and not one.wire.reading
    probe_core.transport_resume(one.connection)
    assert one.wire.reading


@pytest.mark.parametrize("how", ["finish", "lost"])
def test_what_is_held_back_is_forgotten_at_the_end(how: str) -> None:
    one = opened()
    one.recorder.on_received = lambda transport, data: True
    one.feed(client_frame(b"1") + client_frame(b"2"))
    if how == "finish":
        probe_core.transport_finish(one.connection, 1008, b"", NUMBER[Terminator.POLICY])
        assert one.wire.reading, "the close frame of the client has to be read away"
        probe_core.transport_resume(one.connection)
    one.lose()
    probe_core.transport_resume(one.connection)
    assert one.recorder.messages == [b"1"] and len(one.closed) == 1


def test_resuming_what_was_not_held_is_no_harm() -> None:
    one = opened()
    probe_core.transport_resume(one.connection)
    one.feed(client_frame(b"1"))
    assert one.recorder.messages == [b"1"]


@pytest.mark.parametrize("cut", [True, False], ids=["cut over two reads", "fragmented"])
def test_a_message_stays_while_its_receiver_ends_the_connection(cut: bool) -> None:
    # Policy calls connection.close() and reads its request afterwards: the bytes it reads lie in the reader's memory.
    for size in (100, 5000, 40_000):
        one = opened()
        payload = bytes(number % 251 for number in range(size))
        one.recorder.on_received = lambda transport, data: probe_core.transport_finish(transport, 1008, b"", 1)
        if cut:
            frame = client_frame(payload, BINARY)
            one.feed(frame[:50])
            one.feed(frame[50:])
        else:
            one.feed(client_frame(payload[:50], BINARY, fin=False))
            one.feed(client_frame(payload[50:], CONTINUATION))
        assert one.recorder.messages == [payload]
        assert one.recorder.of("gone") == []
        one.lose()


# ---- writing ---------------------------------------------------------------------------------------------------------


@pytest.mark.rule(8)
@pytest.mark.parametrize(
    ("payload", "opcode"),
    [
        (b"", TEXT),
        (b"SIP/2.0 200 OK", TEXT),
        ("grüß".encode(), TEXT),
        (b"\xff", BINARY),
        (b"ok\xc3", BINARY),
        (b"x" * 125, TEXT),
        (b"x" * 126, TEXT),
        (b"x" * 65535, TEXT),
        (b"x" * 65536, TEXT),
    ],
    ids=lambda value: f"{len(value)} bytes" if isinstance(value, bytes) else None,
)
def test_a_message_goes_out_as_one_frame_of_the_right_kind(payload: bytes, opcode: int) -> None:
    one = opened()
    assert probe_core.transport_send(one.connection, payload)
    assert one.frames() == [(opcode, payload)]


def test_before_and_behind_its_life_a_connection_takes_no_message() -> None:
    one = Driven()
    assert not probe_core.transport_send(one.connection, b"early")
    probe_core.transport_ping(one.connection)
    probe_core.transport_finish(one.connection, 1000, b"", 0)
    assert one.wire.written == [] and not one.connection.gone
    one.open()
    probe_core.transport_finish(one.connection, 1000, b"", 0)
    assert not probe_core.transport_send(one.connection, b"late")
    one.lose()
    assert not probe_core.transport_send(one.connection, b"later")


def test_a_ping_is_an_empty_ping_frame() -> None:
    one = opened()
    probe_core.transport_ping(one.connection)
    assert one.frames() == [(PING, b"")]


def test_the_transport_has_the_kind_of_its_listener() -> None:
    assert probe_core.kind_of(opened().connection) == 1
    assert probe_core.kind_of(opened(tls=True).connection) == 2


SLOW = ("closed", NUMBER[Terminator.OVERLOAD], 1008, b"reads too slowly")


@pytest.mark.rule(50)
def test_a_client_that_does_not_read_is_ended_as_overload_in_the_next_turn() -> None:
    one = opened()
    sent = 0
    while probe_core.transport_send(one.connection, b"x" * 1000):
        sent += 1
        one.wire.buffered += 1000
        assert sent < 1000
    assert one.wire.buffered >= QUEUE_LIMIT and sent * 1000 <= QUEUE_LIMIT + 2 * 32768
    # Whoever sends is in the middle of a message: it hears that there is no room, and of the end a turn later.
    assert one.closed == []
    assert not probe_core.transport_send(one.connection, b"x")
    one.loop.turn()
    assert one.closed == [SLOW] and one.connection.gone
    # One that reads again gets whole frames and the reason; one that does not is dropped at the deadline of closes.
    assert one.frames()[-1] == (CLOSE, close_payload(1008, b"reads too slowly"))
    assert one.wire.calls == ["write_eof"] and one.loop.soon == []
    one.recorder.ahead = LINGER_MS + 100
    one.listener.tick()
    assert one.wire.calls == ["write_eof", "abort"]
    one.lose()
    assert one.closed == [SLOW] and one.listener.counts() == (0, 0, 0)


@pytest.mark.rule(50)
def test_what_a_client_with_a_full_queue_still_sends_in_this_turn_is_received() -> None:
    one = opened()
    one.recorder.on_received = lambda transport, data: bool(fill(one))
    one.feed(client_frame(b"1") + client_frame(b"2") + client_frame(b"3"))
    assert one.recorder.messages == [b"1", b"2", b"3"] and one.closed == []
    assert len(one.loop.soon) == 1, "told once"
    one.loop.turn()
    assert one.closed == [SLOW]
    one.feed(client_frame(b"4"))
    one.loop.turn()
    assert len(one.recorder.messages) == 3 and one.closed == [SLOW]


@pytest.mark.rule(45)
@pytest.mark.rule(50)
def test_whatever_ends_a_client_with_a_full_queue_before_the_turn_is_what_is_told() -> None:
    for act, expected in (
        (lambda one: one.lose(), (Terminator.OVERLOAD, 1006)),
        (lambda one: one.feed(client_frame(close_payload(1001), CLOSE)), (Terminator.CLIENT, 1001)),
        (lambda one: probe_core.transport_finish(one.connection, 1000, b"", NUMBER[Terminator.SHUTDOWN]),
         (Terminator.SHUTDOWN, 1000)),
    ):  # fmt: skip
        one = opened()
        fill(one)
        act(one)
        one.loop.turn()
        assert [event[1:3] for event in one.closed] == [(NUMBER[expected[0]], expected[1])]


@pytest.mark.rule(50)
@pytest.mark.parametrize("payload", [b"x" * 125, b"\r\n\r\n"], ids=["pings", "CRLF pings"])
def test_answers_to_keep_alives_count_too(payload: bytes) -> None:
    one = opened(control_limit=1_000_000)
    frame = client_frame(payload, PING if len(payload) > 4 else TEXT) * 1000
    for _ in range(200):
        one.wire.buffered += sum(map(len, one.wire.written))
        one.wire.written.clear()
        one.feed(frame)
        one.loop.turn()
        if one.closed:
            break
    assert one.closed == [SLOW]


def test_a_client_that_reads_may_be_sent_any_amount() -> None:
    one = opened()
    for _ in range(500):
        assert probe_core.transport_send(one.connection, b"x" * 10_000)
    assert one.closed == []


# ---- the end ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "reason"), [(1000, b""), (1001, b"going away"), (4403, "nö".encode()), (1011, b"r" * 123)]
)
def test_finish_sends_a_close_frame_and_shuts_our_side(code: int, reason: bytes) -> None:
    one = opened()
    probe_core.transport_finish(one.connection, code, reason, NUMBER[Terminator.OPERATOR])
    assert one.frames() == [(CLOSE, close_payload(code, reason))]
    assert one.closed == [("closed", NUMBER[Terminator.OPERATOR], code, reason)]
    assert one.wire.calls == ["write_eof"] and one.listener.counts() == (1, 0, 1)


def test_over_tls_the_transport_is_closed_as_half_of_it_cannot_be() -> None:
    one = opened(tls=True)
    probe_core.transport_finish(one.connection, 1000, b"", 0)
    assert one.wire.calls == ["close"]


@pytest.mark.parametrize("reason", [b"x" * 200, "ä".encode() * 100, b"x" + "ä".encode() * 100,
                                    "€".encode() * 60, "\N{GRINNING FACE}".encode() * 40])  # fmt: skip
def test_a_reason_that_is_too_long_is_cut_at_a_character(reason: bytes) -> None:
    one = opened()
    probe_core.transport_finish(one.connection, 1008, reason, NUMBER[Terminator.POLICY])
    ((opcode, payload),) = one.frames()
    assert opcode == CLOSE and 120 < len(payload) <= 125
    assert reason.startswith(payload[2:]) and payload[2:].decode()


@pytest.mark.parametrize(
    ("payload", "code", "answer"),
    [
        (close_payload(1000), 1000, close_payload(1000)),
        (close_payload(1001, b"page left"), 1001, close_payload(1001, b"page left")),
        (close_payload(4999, "ü".encode()), 4999, close_payload(4999, "ü".encode())),
        (b"", 1005, b""),
    ],
)
def test_a_close_of_the_client_is_answered_with_its_own_code(payload: bytes, code: int, answer: bytes) -> None:
    one = opened()
    one.feed(client_frame(b"last") + client_frame(payload, CLOSE) + client_frame(b"behind it"))
    assert one.frames() == [(CLOSE, answer)]
    assert one.closed == [("closed", NUMBER[Terminator.CLIENT], code, payload[2:])]
    assert one.recorder.messages == [b"last"]


@pytest.mark.rule(5)
@pytest.mark.rule(7)
@pytest.mark.rule(48)
@pytest.mark.parametrize(
    ("bad", "code"),
    [
        (b"\x81\x01x", 1002),
        (b"\xc1\x81\0\0\0\0x", 1002),
        (b"\x83\x80\0\0\0\0", 1002),
        (client_frame(b"x", CONTINUATION), 1002),
        (client_frame(b"\x03", CLOSE), 1002),
        (client_frame(close_payload(1005), CLOSE), 1002),
        (client_frame(b"\xff"), 1007),
        (client_frame(close_payload(1000, b"\xff"), CLOSE), 1007),
        (b"\x82\xff" + struct.pack("!Q", 65537), 1009),
    ],
)
def test_a_broken_frame_closes_with_the_code_of_its_fault(bad: bytes, code: int) -> None:
    one = opened()
    one.feed(client_frame(b"good") + bad + client_frame(b"behind it"))
    assert one.frames() == [(CLOSE, close_payload(code))]
    assert one.closed == [("closed", NUMBER[Terminator.PROTOCOL], code, b"")]
    assert one.recorder.messages == [b"good"] and len(one.recorder.of("note")) == 1


@pytest.mark.rule(48)
@pytest.mark.parametrize("opcode", [PING, PONG])
def test_a_flood_of_control_frames_closes_with_1008(opcode: int) -> None:
    one = opened(control_limit=20)
    for _ in range(3):
        one.feed(client_frame(b"", opcode) * 20)
        assert one.closed == []
        one.recorder.ahead += 1000
    one.feed(client_frame(b"", opcode) * 25)
    assert one.closed == [("closed", NUMBER[Terminator.PROTOCOL], 1008, b"too many control frames")]
    frames = one.frames()
    assert frames[-1] == (CLOSE, close_payload(1008, b"too many control frames"))
    assert len(frames) == (81 if opcode == PING else 1)
    assert [note[1] for note in one.recorder.of("note")] == ["flood"]


def test_after_the_close_what_still_comes_is_thrown_away() -> None:
    one = opened()
    probe_core.transport_finish(one.connection, 1000, b"", 0)
    one.frames()
    before = len(one.recorder.events)
    for data in (client_frame(b"INVITE"), client_frame(b"x", PING), b"\xff" * 100, client_frame(b"", CLOSE)):
        one.feed(data)
    assert one.wire.written == [] and len(one.recorder.events) == before


def test_a_close_that_the_client_does_not_answer_ends_at_its_deadline() -> None:
    one = opened()
    probe_core.transport_finish(one.connection, 1000, b"", 0)
    one.recorder.ahead = LINGER_MS - 100
    one.listener.tick()
    assert one.wire.calls == ["write_eof"]
    one.recorder.ahead = LINGER_MS + 100
    one.listener.tick()
    assert one.wire.calls == ["write_eof", "abort"] and one.listener.counts() == (1, 0, 0)
    one.lose()
    one.listener.tick()
    assert one.listener.counts() == (0, 0, 0) and len(one.closed) == 1


# Each way in which a connection may end: what is done to it, and what closed() is told if it comes first.
ENDS: dict[str, tuple[Callable[[Driven], Any], Terminator, int]] = {
    "close frame": (lambda one: one.feed(client_frame(close_payload(1001), CLOSE)), Terminator.CLIENT, 1001),
    "broken frame": (lambda one: one.feed(b"\x81\x00"), Terminator.PROTOCOL, 1002),
    "end of stream": (lambda one: one.connection.eof_received(), Terminator.NETWORK, 1006),
    "lost": (lambda one: one.lose(), Terminator.NETWORK, 1006),
    "reset": (lambda one: one.lose(ConnectionResetError()), Terminator.NETWORK, 1006),
    "policy": (
        lambda one: probe_core.transport_finish(one.connection, 1008, b"", NUMBER[Terminator.POLICY]),
        Terminator.POLICY,
        1008,
    ),
    "timeout": (
        lambda one: probe_core.transport_finish(one.connection, 1011, b"", NUMBER[Terminator.TIMEOUT]),
        Terminator.TIMEOUT,
        1011,
    ),
    "flood": (lambda one: one.feed(client_frame(b"", PING) * 11), Terminator.PROTOCOL, 1008),
    "overload": (lambda one: overload(one), Terminator.OVERLOAD, 1008),
}


def fill(one: Driven) -> None:
    """Send more than the queue holds; the end comes with the next turn."""
    one.wire.buffered = QUEUE_LIMIT * 2
    for _ in range(100):
        probe_core.transport_send(one.connection, b"x" * 1000)


def overload(one: Driven) -> None:
    fill(one)
    one.loop.turn()


@pytest.mark.rule(45)
@pytest.mark.parametrize(("first", "second"), list(itertools.product(ENDS, ENDS)))
def test_whatever_ends_a_connection_first_is_told_and_nothing_else(first: str, second: str) -> None:
    one = opened(control_limit=10)
    act, terminator, code = ENDS[first]
    act(one)
    assert [event[:3] for event in one.closed] == [("closed", NUMBER[terminator], code)]
    lost = first in ("lost", "reset")
    if not (lost and second in ("lost", "reset", "close frame", "broken frame", "flood", "end of stream")):
        ENDS[second][0](one)  # uvloop makes none of these calls behind connection_lost
        lost = lost or second in ("lost", "reset")
    one.listener.tick()
    if not lost:
        one.lose()
    assert len(one.closed) == 1
    assert one.connection.gone and one.listener.counts() == (0, 0, 0)


@pytest.mark.rule(45)
@pytest.mark.parametrize("name", [name for name in ENDS if name != "reset"])
def test_an_end_inside_the_call_of_another_is_told_once(name: str) -> None:
    # on_close of the policy may close the connection again, or send over it.
    one = opened(control_limit=10)

    def closed(transport: Transport) -> None:
        probe_core.transport_finish(transport, 4000, b"again", NUMBER[Terminator.POLICY])
        probe_core.transport_ping(transport)
        probe_core.transport_resume(transport)
        assert not probe_core.transport_send(transport, b"x")

    one.recorder.on_closed = closed
    ENDS[name][0](one)
    if name != "lost":
        one.lose()
    assert len(one.closed) == 1


@pytest.mark.rule(45)
@pytest.mark.parametrize("name", ["policy", "timeout"])
def test_an_end_while_a_message_is_received_stops_the_reading(name: str) -> None:
    one = opened()
    one.recorder.on_received = lambda transport, data: bool(ENDS[name][0](one)) or data == b"waits"
    one.feed(client_frame(b"waits") + client_frame(b"2") + client_frame(b"x", PING))
    assert one.recorder.messages == [b"waits"] and len(one.closed) == 1
    assert one.wire.reading
    probe_core.transport_resume(one.connection)
    one.lose()
    assert one.recorder.messages == [b"waits"] and len(one.closed) == 1


def test_nobody_hears_of_a_refused_client() -> None:
    for name in ("end of stream", "lost", "policy", "overload"):
        for refuse in (lambda one: one.connection.refuse(REFUSAL),
                       lambda one: one.connection.refuse_with_code(SWITCH, 4000, "")):  # fmt: skip
            one = Driven()
            refuse(one)
            ENDS[name][0](one)
            if name != "lost":
                one.lose()
            assert one.recorder.of("closed", "opened") == []


def test_an_ended_connection_keeps_no_memory_of_its_own_and_nobody_keeps_it() -> None:
    made: list[Any] = []
    recorder, gate = probe_core.Recorder(), Gate()
    listener = listener_of(recorder, gate)
    for number in range(50):
        connection, wire = listener(), FakeTransport()
        connection.connection_made(wire)
        view = connection.get_buffer(-1)
        data = HEAD + client_frame(b"x" * 300) + client_frame(b"unfinished")[:5]
        view[: len(data)] = data
        connection.buffer_updated(len(data))
        if number % 2:
            probe_core.transport_finish(connection, 1000, b"", 0)
        connection.connection_lost(None)
        made.append(connection)
    assert listener.counts() == (0, 0, 0)
    kind = type(made[0])
    recorder.events.clear()
    made.clear()
    del connection, wire
    gc.collect()
    assert not [one for one in gc.get_objects() if type(one) is kind and one.source == ("192.0.2.1", 40000)]


# ---- on sockets ------------------------------------------------------------------------------------------------------


class Live:
    """A listener on uvloop with its Recorder, and clients as plain sockets."""

    def __init__(self) -> None:
        self.recorder = probe_core.Recorder()
        self.gate = Gate()
        self.listener = listener_of(self.recorder, self.gate, asyncio.get_running_loop())

    async def start(self) -> None:
        self.server = await asyncio.get_running_loop().create_server(self.listener, "127.0.0.1", 0)
        self.name = self.server.sockets[0].getsockname()

    async def client(self) -> socket.socket:
        count = len(self.recorder.of("opened"))
        client = socket.create_connection(self.name)
        client.setblocking(False)
        client.sendall(HEAD)
        await until(lambda: len(self.recorder.of("opened")) > count)
        loop = asyncio.get_running_loop()
        got = b""
        while len(got) < len(SWITCH):
            got += await loop.sock_recv(client, len(SWITCH) - len(got))
        assert got == SWITCH
        return client


def live(body: Callable[[Live], Coroutine[Any, Any, None]]) -> None:
    async def scenario() -> None:
        one = Live()
        await one.start()
        await body(one)
        await until(lambda: one.listener.counts() == (0, 0, 0))
        assert len(one.recorder.of("closed")) == len(one.recorder.of("opened"))
        one.server.close()

    run(scenario)


async def read_all(client: socket.socket) -> bytes:
    """Until the end of the stream."""
    data = b""
    while part := await asyncio.get_running_loop().sock_recv(client, 65536):
        data += part
    return data


@pytest.mark.rule(45)
def test_a_reset_a_fin_and_a_close_over_sockets_are_one_end_each() -> None:
    async def body(one: Live) -> None:
        client = await one.client()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        await until(lambda: len(one.recorder.of("closed")) == 1)
        client = await one.client()
        client.close()
        await until(lambda: len(one.recorder.of("closed")) == 2)
        client = await one.client()
        client.shutdown(socket.SHUT_WR)
        await until(lambda: len(one.recorder.of("closed")) == 3)
        assert await read_all(client) == b""
        client.close()
        client = await one.client()
        client.sendall(client_frame(close_payload(1000), CLOSE))
        assert server_frames(await read_all(client)) == [(CLOSE, close_payload(1000))]
        client.close()
        ends = [event[1:3] for event in one.recorder.of("closed")]
        network, gone = NUMBER[Terminator.NETWORK], NUMBER[Terminator.CLIENT]
        assert ends == [(network, 1006)] * 3 + [(gone, 1000)]

    live(body)


def test_a_close_frame_arrives_although_the_client_had_sent_more() -> None:
    # Closing a socket with unread bytes in it would reset the connection, and the reset overtake the close frame.
    async def body(one: Live) -> None:
        client = await one.client()
        client.sendall(b"\x81\x00" + client_frame(b"x" * 60_000, BINARY))
        await until(lambda: one.recorder.of("closed"))
        client.sendall(client_frame(b"x" * 60_000, BINARY))
        assert server_frames(await read_all(client)) == [(CLOSE, close_payload(1002))]
        client.sendall(client_frame(close_payload(1002), CLOSE))
        client.close()

    live(body)


def test_a_silent_client_is_cut_off_after_the_close() -> None:
    async def body(one: Live) -> None:
        client = await one.client()
        client.sendall(client_frame(b"", CLOSE))
        await until(lambda: one.recorder.of("closed"))
        one.recorder.ahead = LINGER_MS + 100
        one.listener.tick()
        await until(lambda: one.listener.counts() == (0, 0, 0))
        client.close()

    live(body)


def test_messages_over_sockets_are_held_back_and_come_in_order() -> None:
    async def body(one: Live) -> None:
        waiting: list[Transport] = []

        def received(transport: Transport, data: bytes) -> bool:
            waiting.append(transport)
            return True

        one.recorder.on_received = received
        client = await one.client()
        sent = [b"%d" % number * 500 for number in range(200)]
        for data in sent:
            client.sendall(client_frame(data))
        for count in range(1, 201):
            await until(lambda: waiting)
            assert len(one.recorder.messages) == count
            probe_core.transport_resume(waiting.pop())
        assert one.recorder.messages == sent
        client.close()

    live(body)


@pytest.mark.rule(50)
def test_a_client_that_stops_reading_over_a_socket_is_ended_and_others_go_on() -> None:
    async def body(one: Live) -> None:
        deaf, good = await one.client(), await one.client()
        transports: dict[bytes, Transport] = {}

        def received(transport: Transport, data: bytes) -> bool:
            transports[data] = transport
            return False

        one.recorder.on_received = received
        deaf.sendall(client_frame(b"deaf"))
        good.sendall(client_frame(b"good"))
        await until(lambda: len(transports) == 2)
        for _ in range(5000):
            if not probe_core.transport_send(transports[b"deaf"], b"x" * 10_000):
                break
            await asyncio.sleep(0)
        await until(lambda: one.recorder.of("closed"))
        assert one.recorder.of("closed") == [SLOW]
        assert probe_core.transport_send(transports[b"good"], b"still here")
        data = await asyncio.get_running_loop().sock_recv(good, 100)
        assert server_frames(data) == [(TEXT, b"still here")]
        deaf.close()
        good.close()

    live(body)


def test_a_client_that_leaves_in_the_head_leaves_nothing_behind() -> None:
    async def body(one: Live) -> None:
        for data in (b"", b"GET / HTTP/1.1\r\n"):
            client = socket.create_connection(one.name)
            client.sendall(data)
            await until(lambda: one.listener.counts()[0] == 1)
            client.close()
            await until(lambda: one.listener.counts()[0] == 0)
        assert one.recorder.events == []

    live(body)


# ---- with the core behind it -----------------------------------------------------------------------------------------


def edge_of(table: ConnectionTable, **options: Any) -> Edge:
    """A core without policy, towards a Dummy upstream."""
    policy = SimpleNamespace(on_request=None, on_close=None, request_methods=None, identity=None)
    edge = Edge(None, table, policy, advertise=b"127.0.0.1:5070", names=[("127.0.0.1", 5070)], secret=bytes(16),
                epoch=7, **options)  # fmt: skip
    edge.set_upstream(probe_core.Dummy(3), "127.0.0.1", 5060, ["127.0.0.1"])
    return edge


def test_a_busy_client_whose_every_read_ends_inside_a_frame_is_not_taken_for_an_unfinished_message() -> None:
    table = ConnectionTable(10)
    edge = edge_of(table, message_timeout=0.04)
    one = Driven(edge).open()
    frame = client_frame(b"\r\nnot SIP, and dropped")
    one.feed(frame[:10])
    turns = 0

    def enough() -> bool:
        nonlocal turns
        turns += 1
        one.feed(frame[10:] + frame[:10])
        edge.tick()
        return turns >= 20

    wait_for(enough)  # 5 ms a turn: longer than the timeout
    assert edge.state()["connections"] == 1
    wait_for(lambda: edge.tick() or edge.state()["connections"] == 0)  # now it really is unfinished
    assert edge.state()["closed"]["timeout"] == 1
    one.lose()


@pytest.mark.rule(10)
@pytest.mark.parametrize(("kind", "transport"), [(1, b"WS"), (2, b"WSS")])
def test_towards_a_client_the_via_names_ws_or_wss_and_a_uri_never_more_than_ws(kind: int, transport: bytes) -> None:
    # RFC 7118 5.2.1: nobody dials the URI, and "wss" is no value of its transport parameter.
    edge = edge_of(ConnectionTable(10))
    upstream = probe_core.Dummy(3)
    edge.set_upstream(upstream, "127.0.0.1", 5060, ["127.0.0.1"])
    edge.set_udp(upstream)
    client = probe_core.Dummy(kind)
    assert probe_core.receiver_opened(edge, client, ("192.0.2.1", 1), ("127.0.0.1", 443), {}, "x")
    lines = (
        b"%s sip:a@example.com SIP/2.0\r\nVia: SIP/2.0/%s\r\n%sMax-Forwards: 70\r\nFrom: <sip:a@x>;tag=1\r\n"
        b"To: <sip:a@x>\r\nCall-ID: c\r\nCSeq: 1 %s\r\nContent-Length: 0\r\n\r\n"
    )
    via = transport + b" a.invalid;branch=z9hG4bK1"
    probe_core.receiver_received(edge, client, lines % (b"REGISTER", via, b"", b"REGISTER"))
    (register,) = upstream.sent
    (path,) = [line for line in register.split(b"\r\n") if line.startswith(b"Path: ")]
    route = path.replace(b"Path: ", b"Route: ") + b"\r\n"
    invite = lines % (b"INVITE", b"UDP 127.0.0.1;branch=z9hG4bK2", route, b"INVITE")
    probe_core.receiver_received(edge, upstream, invite, ("127.0.0.1", 5060))
    (down,) = client.sent
    assert down.split(b"\r\n")[1].startswith(b"Via: SIP/2.0/" + transport + b" 127.0.0.1:5070;branch=z9hG4bK")
    routes = [line for line in down.split(b"\r\n") if line.startswith(b"Record-Route: ")]
    assert len(routes) == 2 and b";transport=ws;lr>" in routes[0] and b";transport=udp;lr>" in routes[1]
    assert b"transport=wss" not in down + register


@pytest.mark.rule(11)
def test_the_via_of_a_client_is_not_touched() -> None:
    # RFC 7118 5.2.2 lets a server leave "received" out, and SIP.js drops a response whose sent-by has changed.
    edge = edge_of(ConnectionTable(10))
    upstream, client = probe_core.Dummy(3), probe_core.Dummy(1)
    edge.set_upstream(upstream, "127.0.0.1", 5060, ["127.0.0.1"])
    assert probe_core.receiver_opened(edge, client, ("192.0.2.1", 1), ("127.0.0.1", 80), {}, "x")
    for via in (b"SIP/2.0/WS aB.Invalid;branch=z9hG4bK1", b"SIP/2.0/WS 10.0.0.1:80;rport;branch=z9hG4bK2"):
        probe_core.receiver_received(
            edge,
            client,
            b"OPTIONS sip:b@x SIP/2.0\r\nVia: " + via + b"\r\nMax-Forwards: 70\r\nFrom: <sip:a@x>;tag=1\r\n"
            b"To: <sip:b@x>\r\nCall-ID: c\r\nCSeq: 1 OPTIONS\r\nContent-Length: 0\r\n\r\n",
        )
        vias = [line for line in upstream.sent.pop().split(b"\r\n") if line.startswith(b"Via: ")]
        assert vias[1:] == [b"Via: " + via]
