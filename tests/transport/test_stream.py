"""transport/stream: SIP over TCP, framed by Content-Length, and the upstream that is dialled again.

Framing is driven without a socket, so that every way of cutting the bytes can be tried; the rest runs on uvloop.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from fastws.transport.base import ReadBuffer
from fastws.transport.stream import StreamConnection, StreamUpstream
from tests import probe_core
from tests.transport.helpers import FakeLoop, FakeTransport, run, until

HOST = "127.0.0.1"
LIMIT = 4096  # max_message_bytes of these tests
QUEUE_LIMIT = 100_000
QUEUE_CHECK = 65536  # bytes written between two looks at the queue
DEADLINE_MS = 10_000  # for a message that has begun


def message(number: int = 1, body: bytes = b"", name: bytes = b"Content-Length") -> bytes:
    return (
        b"OPTIONS sip:%d@example.com SIP/2.0\r\nVia: SIP/2.0/TCP x;branch=z9hG4bK%d\r\n" % (number, number)
        + name
        + b": %d\r\n\r\n" % len(body)
        + body
    )


class Driven:
    """A StreamConnection on a FakeTransport."""

    def __init__(self, peer: Any = ("192.0.2.1", 5060), **limits: int) -> None:
        self.recorder = probe_core.Recorder()
        self.buffer = ReadBuffer()
        self.lost: list[Any] = []
        self.made: list[Any] = []
        self.connection = StreamConnection(
            self.recorder,
            self.buffer,
            max_message_bytes=limits.get("max_message_bytes", LIMIT),
            max_queue_bytes=limits.get("max_queue_bytes", QUEUE_LIMIT),
            on_lost=self.lost.append,
            on_made=self.made.append,
        )
        self.wire = FakeTransport(peer)
        self.loop = FakeLoop()
        with self.loop.running():
            self.connection.connection_made(self.wire)

    def feed(self, data: bytes) -> None:
        """One read."""
        view = self.connection.get_buffer(-1)
        view[: len(data)] = data
        self.connection.buffer_updated(len(data))
        view[: len(data)] = b"\xee" * len(data)  # the next read of another connection

    def send(self, data: bytes) -> bool:
        done: bool = probe_core.transport_send(self.connection, data)
        return done


# ---- framing ---------------------------------------------------------------------------------------------------------

THREE = [message(1), message(2, b"v=0\r\n\r\nOPTIONS x SIP/2.0\r\n\r\n"), message(3, b"\0" * 50, b"l")]


@pytest.mark.rule(19)
def test_messages_in_one_read_are_handed_over_one_by_one() -> None:
    one = Driven()
    one.feed(b"".join(THREE))
    assert one.recorder.events == [("received", part, ("192.0.2.1", 5060)) for part in THREE]


def test_messages_are_found_wherever_a_read_ends() -> None:
    stream = b"".join(THREE)
    for cut in range(len(stream) + 1):
        one = Driven()
        one.feed(stream[:cut])
        whole = sum(len(b"".join(THREE[: count + 1])) <= cut for count in range(3))
        assert len(one.recorder.messages) == whole
        one.feed(stream[cut:])
        assert one.recorder.messages == THREE


def test_messages_are_found_byte_by_byte_and_in_any_three_reads() -> None:
    stream = b"\r\n".join(THREE) + b"\r\n"
    one = Driven()
    for at in range(len(stream)):
        one.feed(stream[at : at + 1])
    assert one.recorder.messages == THREE
    for first in range(0, len(stream), 7):
        for second in range(first, len(stream), 11):
            one = Driven()
            for part in (stream[:first], stream[first:second], stream[second:]):
                one.feed(part)
            assert one.recorder.messages == THREE


def test_a_message_that_spans_many_reads_and_buffers_is_whole() -> None:
    one = Driven(max_message_bytes=2_000_000)
    big = message(1, bytes(range(256)) * 4000)
    stream = big + message(2) + big
    for at in range(0, len(stream), 262_144):
        one.feed(stream[at : at + 262_144])
    assert one.recorder.messages == [big, message(2), big]


@pytest.mark.parametrize("length", [LIMIT - 1, LIMIT])
def test_a_message_up_to_the_limit_is_taken(length: int) -> None:
    body = b"x" * (length - len(message(1, b"x" * (LIMIT - 200))) + LIMIT - 200)
    assert len(message(1, body)) == length
    one = Driven()
    one.feed(message(1, body))
    assert one.recorder.messages == [message(1, body)] and one.connection.open


@pytest.mark.rule(19)
@pytest.mark.parametrize(
    "stream",
    [
        message(1, b"x" * LIMIT),
        message(1).replace(b"Via:", b"X: " + b"y" * LIMIT + b"\r\nVia:"),
        b"OPTIONS sip:x SIP/2.0\r\nX: " + b"y" * LIMIT,
        b"OPTIONS sip:x SIP/2.0\r\nVia: x\r\n\r\n",
        b"OPTIONS sip:x SIP/2.0\r\nContent-Length: x\r\n\r\n",
        b"OPTIONS sip:x SIP/2.0\r\nContent-Length: 99999999999999999999\r\n\r\n",
        b"OPTIONS sip:x SIP/2.0\r\nContent-Length: 1\r\nl: 2\r\n\r\nxx",
        b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"{}\r\n\r\n",
    ],
    ids=["body", "head", "no end", "no length", "bad length", "huge length", "two lengths", "HTTP", "TLS", "JSON"],
)
def test_what_is_no_sip_message_within_the_limit_ends_the_connection(stream: bytes) -> None:
    for parts in ([message(7) + stream], [message(7), stream], [message(7), stream[:9], stream[9:]]):
        one = Driven()
        for part in parts:
            one.feed(part)
        assert one.recorder.messages == [message(7)]
        assert not one.connection.open and one.wire.calls == ["abort"]
        notes = one.recorder.of("note")
        assert [note[1] for note in notes] == ["stream"] and "max_message_bytes" in notes[0][2]
        one.feed(message(8))
        assert one.recorder.messages == [message(7)], "nothing is read after the end"
        one.connection.connection_lost(None)
        assert one.lost == [one.connection]


def test_what_follows_a_broken_message_in_the_same_read_is_not_taken() -> None:
    one = Driven()
    one.feed(b"OPTIONS sip:x SIP/2.0\r\n\r\n" + message(1))
    assert one.recorder.messages == []


# ---- keep-alive ------------------------------------------------------------------------------------------------------

PING = b"\r\n\r\n"


@pytest.mark.rule(12)
@pytest.mark.parametrize("cut", range(5))
def test_a_double_crlf_is_answered_with_one_wherever_it_is_cut(cut: int) -> None:
    # RFC 5626 3.5.1
    one = Driven()
    one.feed(PING[:cut])
    one.feed(PING[cut:])
    assert one.wire.take() == b"\r\n"
    one.feed(message())
    assert one.recorder.messages == [message()] and one.wire.take() == b""
    one.feed(PING)
    assert one.wire.take() == b"\r\n"


def test_a_single_crlf_between_messages_is_no_ping() -> None:
    one = Driven()
    for _ in range(3):
        one.feed(b"\r\n")
        one.feed(message())
        one.feed(message() + b"\r\n" + message())
    assert one.recorder.messages == [message()] * 9 and one.wire.take() == b""


def test_pings_between_messages_of_one_read_do_not_disturb_them() -> None:
    one = Driven()
    one.feed(PING + message(1) + PING + message(2) + PING)
    assert one.recorder.messages == [message(1), message(2)]
    assert set(one.wire.take()) == set(b"\r\n")


def test_a_flood_of_pings_gets_no_flood_of_answers() -> None:
    one = Driven()
    one.feed(PING * 50_000)
    assert len(one.wire.take()) <= 4


def test_a_crlf_inside_a_message_that_has_begun_belongs_to_it() -> None:
    one = Driven()
    part = message(1, b"\r\n\r\n\r\n\r\n")
    for at in range(len(part)):
        one.feed(part[at : at + 1])
    assert one.recorder.messages == [part] and one.wire.take() == b""


# ---- the deadline ----------------------------------------------------------------------------------------------------


def test_a_message_that_does_not_come_whole_in_time_ends_the_connection() -> None:
    one = Driven()
    one.feed(message()[:20])
    one.recorder.ahead = DEADLINE_MS - 1000
    one.connection.tick()
    one.feed(message()[20:25])  # a trickle buys no time
    assert one.connection.open
    one.recorder.ahead = DEADLINE_MS + 1000
    one.connection.tick()
    assert not one.connection.open and one.wire.calls == ["abort"]
    assert [note[2] for note in one.recorder.of("note")] == ["unfinished message: connection closed"]
    one.connection.tick()
    assert one.wire.calls == ["abort"]


def test_an_idle_connection_has_no_deadline() -> None:
    one = Driven()
    one.feed(message()[:20])
    one.feed(message()[20:])
    one.feed(PING)
    one.recorder.ahead = 100 * DEADLINE_MS
    one.connection.tick()
    assert one.connection.open


def test_the_deadline_begins_anew_with_each_message() -> None:
    one = Driven()
    stream = message() * 2
    one.feed(stream[:20])
    for step in range(1, 6):
        one.recorder.ahead = step * (DEADLINE_MS - 1000)
        one.feed(stream[20:] + stream[:20])  # every read ends inside a message
        one.connection.tick()
        assert one.connection.open


# ---- writing ---------------------------------------------------------------------------------------------------------


def test_messages_are_written_whole_and_in_order() -> None:
    one = Driven()
    assert all(one.send(b"%d" % number * number) for number in range(1, 200))
    assert one.wire.written == []
    one.loop.turn()
    assert one.wire.take() == b"".join(b"%d" % number * number for number in range(1, 200))
    assert one.send(b"the next turn") and len(one.loop.soon) == 1
    one.loop.turn()
    assert one.wire.take() == b"the next turn" and one.loop.soon == []


def test_what_was_not_sent_before_the_end_is_there_to_be_taken_once() -> None:
    one = Driven()
    assert one.send(b"out")
    one.loop.turn()
    assert one.send(b"first") and one.send(b"second")
    one.connection.connection_lost(None)
    assert one.connection.take() == [b"first", b"second"] and one.connection.take() == []
    one.loop.turn()
    assert one.wire.written == [b"out"]


def test_a_close_sends_what_this_turn_was_to_send() -> None:
    one = Driven()
    assert one.send(b"first") and one.send(b"second")
    one.connection.close()
    assert one.wire.take() == b"firstsecond" and one.wire.calls == ["close"]
    one.loop.turn()
    assert one.wire.written == []


def test_what_came_before_the_end_of_the_stream_is_answered() -> None:
    # The other end may have closed its half only. An upstream takes what was not sent over to its next connection.
    one = Driven()
    one.recorder.on_received = lambda transport, data: not one.send(b"answer") and False
    one.feed(message())
    one.connection.eof_received()
    assert one.lost == [one.connection] and not one.connection.open
    one.loop.turn()
    assert one.wire.take() == b"answer"


@pytest.mark.rule(50)
def test_a_peer_that_does_not_read_is_sent_no_more_than_the_queue_holds() -> None:
    one = Driven()
    taken = 0
    for _ in range(3000):
        if one.send(b"x" * 1000):
            taken += 1000
            one.loop.turn()
            one.wire.buffered += 1000
    assert QUEUE_LIMIT <= taken <= QUEUE_LIMIT + QUEUE_CHECK + 1000
    one.wire.buffered = 0
    assert one.send(b"it has read"), "and then it goes on"


@pytest.mark.rule(50)
def test_what_one_turn_of_the_loop_sends_counts_as_waiting_too() -> None:
    one = Driven()
    taken = 0
    for _ in range(3000):
        if one.send(b"x" * 1000):
            taken += 1000
    assert QUEUE_LIMIT <= taken <= QUEUE_LIMIT + QUEUE_CHECK + 1000
    one.loop.turn()
    assert one.send(b"it has read"), "and then it goes on"


def test_a_connection_that_has_ended_takes_nothing() -> None:
    one = Driven()
    one.feed(message()[:20])
    one.connection.connection_lost(None)
    assert one.lost == [one.connection] and not one.connection.open
    assert not one.send(b"x")
    one.connection.connection_lost(None)
    assert one.lost == [one.connection], "told once"


def test_a_connection_whose_peer_has_gone_already_is_dropped() -> None:
    for peer in (None, ("", 5060), ("not an address", 5060)):
        one = Driven(peer)
        assert one.wire.calls == ["abort"] and one.made == [] and not one.connection.open
        one.feed(message())
        assert one.recorder.events == []
        assert not one.send(b"x")
        one.connection.connection_lost(None)


def test_ipv6_peers_are_told_by_their_address() -> None:
    one = Driven(("2001:db8::1", 5060, 0, 0))
    one.feed(message())
    assert one.recorder.events == [("received", message(), ("2001:db8::1", 5060))]
    assert one.connection.remote_pair == ("2001:db8::1", 5060) and one.made == [one.connection]


# ---- on sockets ------------------------------------------------------------------------------------------------------


class Server:
    """A listening socket of the loopback that keeps what it accepts."""

    def __init__(self) -> None:
        self.socket = socket.create_server((HOST, 0))
        self.socket.setblocking(False)
        self.port: int = self.socket.getsockname()[1]
        self.accepted: list[socket.socket] = []

    async def accept(self) -> socket.socket:
        connection, _ = await asyncio.get_running_loop().sock_accept(self.socket)
        self.accepted.append(connection)
        return connection

    def close(self) -> None:
        for one in (self.socket, *self.accepted):
            one.close()


class SpyLoop:
    """The running loop, with delays noted and cut short, so that a back-off of seconds takes none."""

    def __init__(self, pause: float = 0.0) -> None:
        self.loop = asyncio.get_running_loop()
        self.delays: list[float] = []
        self.pause = pause
        self.dials = 0
        self.handles: list[asyncio.TimerHandle] = []

    def call_later(self, delay: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
        self.delays.append(delay)
        handle = self.loop.call_later(self.pause, callback)
        self.handles.append(handle)
        return handle

    def create_task(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        return self.loop.create_task(coroutine)

    async def create_connection(self, *arguments: Any) -> Any:
        self.dials += 1
        return await self.loop.create_connection(*arguments)


class Upstream:
    """A StreamUpstream towards a port, with its Recorder."""

    def __init__(self, port: int, **options: Any) -> None:
        self.recorder = probe_core.Recorder()
        self.buffer = ReadBuffer()
        self.failed: list[list[bytes]] = []
        self.ended: list[tuple[Any, list[bytes]]] = []
        self.spy = SpyLoop(options.pop("pause", 0.0))
        self.upstream = StreamUpstream(
            self.spy,
            self.recorder,
            HOST,
            port,
            make=self.make,
            on_failed=lambda messages: self.failed.append(list(messages)),
            on_ended=lambda upstream, unsent: self.ended.append((upstream, list(unsent))),
            max_queue_bytes=options.pop("max_queue_bytes", QUEUE_LIMIT),
            **options,
        )

    def make(self, on_lost: Callable[[Any], None]) -> StreamConnection:
        return StreamConnection(
            self.recorder, self.buffer, max_message_bytes=LIMIT, max_queue_bytes=QUEUE_LIMIT, on_lost=on_lost
        )

    def send(self, data: bytes) -> bool:
        done: bool = probe_core.transport_send(self.upstream, data)
        return done

    @property
    def notes(self) -> list[str]:
        return [note[2] for note in self.recorder.of("note")]

    async def end(self) -> None:
        """Close it and let what it left in the loop come to its end."""
        self.upstream.close()
        for _ in range(5):
            await asyncio.sleep(0)


def with_server(body: Callable[[Server], Coroutine[Any, Any, None]]) -> None:
    async def scenario() -> None:
        server = Server()
        try:
            await body(server)
        finally:
            server.close()

    run(scenario)


async def read(connection: socket.socket, count: int) -> bytes:
    connection.setblocking(False)
    data = b""
    while len(data) < count:
        part = await asyncio.get_running_loop().sock_recv(connection, 65536)
        assert part
        data += part
    return data


def test_messages_pass_both_ways_over_a_socket_and_the_end_is_told() -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        recorder, buffer, lost = probe_core.Recorder(), ReadBuffer(), []
        made: list[StreamConnection] = []
        server = await loop.create_server(
            lambda: StreamConnection(
                recorder,
                buffer,
                max_message_bytes=LIMIT,
                max_queue_bytes=QUEUE_LIMIT,
                on_lost=lost.append,
                on_made=made.append,
            ),
            HOST,
            0,
        )
        client = socket.create_connection(server.sockets[0].getsockname())
        await until(lambda: made)
        client.sendall(message(1) + PING + message(2)[:30])
        await until(lambda: recorder.messages == [message(1)])
        client.sendall(message(2)[30:])
        await until(lambda: recorder.messages == [message(1), message(2)])
        assert recorder.events[0][2] == client.getsockname()
        assert probe_core.transport_send(made[0], b"answer")
        assert await read(client, 8) == b"\r\nanswer"
        client.close()
        await until(lambda: lost)
        assert lost == made
        server.close()

    run(scenario)


def test_the_upstream_is_dialled_and_what_was_sent_meanwhile_arrives_in_order() -> None:
    async def body(server: Server) -> None:
        one = Upstream(server.port)
        one.upstream.start()
        assert not one.upstream.connected
        assert all(one.send(b"%d," % number) for number in range(5))
        connection = await server.accept()
        await until(lambda: one.upstream.connected)
        one.send(b"5,")
        assert await read(connection, 12) == b"0,1,2,3,4,5,"
        connection.sendall(message())
        await until(lambda: one.recorder.messages)
        assert one.recorder.events == [("received", message(), (HOST, server.port))]
        assert one.failed == one.ended == [] and one.spy.dials == 1
        await one.end()

    with_server(body)


def test_the_first_message_dials_by_itself() -> None:
    async def body(server: Server) -> None:
        one = Upstream(server.port)
        assert one.send(b"first")
        assert await read(await server.accept(), 5) == b"first"
        await one.end()

    with_server(body)


@pytest.mark.rule(50)
def test_the_queue_of_a_dial_has_its_limit() -> None:
    async def body(server: Server) -> None:
        one = Upstream(server.port, max_queue_bytes=1000)
        assert one.send(b"x" * 600)
        assert not one.send(b"x" * 401)
        assert one.send(b"y" * 400)
        assert not one.send(b"z")
        assert await read(await server.accept(), 1000) == b"x" * 600 + b"y" * 400
        await one.end()

    with_server(body)


def test_a_lost_upstream_is_dialled_again_at_once() -> None:
    async def body(server: Server) -> None:
        one = Upstream(server.port)
        one.upstream.start()
        first = await server.accept()
        await until(lambda: one.upstream.connected)
        one.recorder.ahead = 60_000  # it has stood for a minute
        first.close()
        second = await server.accept()
        await until(lambda: one.upstream.connected)
        assert one.spy.delays == [] and one.notes == []
        assert one.ended == [(one.upstream, [])], "told once, and nothing was to be sent"
        one.send(b"again")
        assert await read(second, 5) == b"again"
        await one.end()
        assert len(one.ended) == 1, "an end of our own is none"

    with_server(body)


def test_what_was_not_sent_when_the_connection_ended_goes_over_the_next_one_first() -> None:
    async def body(server: Server) -> None:
        one = Upstream(server.port)
        made: list[StreamConnection] = []
        one.recorder.on_received = lambda transport, data: made.append(transport)
        one.upstream.start()
        first = await server.accept()
        await until(lambda: one.upstream.connected)
        first.sendall(message())
        await until(lambda: made)
        one.recorder.ahead = 60_000
        assert one.send(b"1,") and one.send(b"2,")
        made[0].connection_lost(None)  # the loop has not turned since
        assert one.ended == [(one.upstream, [b"1,", b"2,"])] and not one.upstream.connected
        assert one.send(b"3,")
        second = await server.accept()
        assert await read(second, 6) == b"1,2,3,"
        await one.end()

    with_server(body)


def test_a_reset_is_an_end_like_any_other() -> None:
    async def body(server: Server) -> None:
        one = Upstream(server.port)
        one.upstream.start()
        first = await server.accept()
        await until(lambda: one.upstream.connected)
        one.recorder.ahead = 60_000
        first.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        first.close()
        await server.accept()
        await until(lambda: one.upstream.connected)
        assert one.ended == [(one.upstream, [])]
        await one.end()

    with_server(body)


def test_an_upstream_that_refuses_is_tried_with_growing_delays_and_what_waited_is_given_back() -> None:
    async def body(server: Server) -> None:
        server.socket.close()
        one = Upstream(server.port)
        one.upstream.start()
        assert one.send(b"1") and one.send(b"2")
        await until(lambda: one.spy.dials >= 9)
        assert one.failed == [[b"1", b"2"]] and one.ended == []
        assert one.spy.delays[:8] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
        assert len(one.notes) == 1, "one line for one outage"
        assert not one.send(b"3"), "while it is down nothing is kept"
        await one.end()

    with_server(body)


def test_an_upstream_that_comes_back_takes_messages_again() -> None:
    async def body(server: Server) -> None:
        server.socket.close()
        one = Upstream(server.port)
        one.upstream.start()
        await until(lambda: one.spy.dials >= 3)
        server.socket = socket.create_server((HOST, server.port))
        server.socket.setblocking(False)
        connection = await server.accept()
        await until(lambda: one.upstream.connected)
        assert one.notes[-1] == "upstream is up again" and len(one.notes) == 2
        assert one.send(b"x")
        assert await read(connection, 1) == b"x"
        await one.end()

    with_server(body)


def test_an_upstream_that_accepts_and_hangs_up_is_not_dialled_without_a_pause() -> None:
    async def body(server: Server) -> None:
        async def hang_up() -> None:
            while True:
                (await server.accept()).close()

        task = asyncio.get_running_loop().create_task(hang_up())
        one = Upstream(server.port)
        one.upstream.start()
        await until(lambda: one.spy.dials >= 8)
        # The first loss may be made good at once; from then on the pauses grow.
        pauses = one.spy.delays
        assert len(pauses) >= one.spy.dials - 2
        assert pauses == sorted(pauses) and pauses[-1] > 1
        await one.end()
        task.cancel()

    with_server(body)


def test_a_dial_without_an_answer_fails_after_its_timeout() -> None:
    async def body(server: Server) -> None:
        # A full backlog: the connection is neither made nor refused.
        full = socket.socket()
        full.bind((HOST, 0))
        full.listen(0)
        clients = []
        for _ in range(4):
            client = socket.socket()
            client.setblocking(False)
            client.connect_ex(full.getsockname())
            clients.append(client)
        one = Upstream(full.getsockname()[1], connect_timeout=0.05, pause=60.0)
        one.upstream.start()
        one.send(b"waits")
        before = time.monotonic()
        await until(lambda: one.failed)
        assert one.failed == [[b"waits"]] and time.monotonic() - before < 2
        await one.end()
        for sock in (full, *clients):
            sock.close()

    with_server(body)


@pytest.mark.rule(50)
def test_an_upstream_that_does_not_read_is_sent_no_more_than_the_queue_holds() -> None:
    async def body(server: Server) -> None:
        one = Upstream(server.port)
        one.upstream.start()
        connection = await server.accept()
        await until(lambda: one.upstream.connected)
        taken = refused = 0
        while refused < 2000:
            if one.send(b"x" * 10_000):
                taken += 1
                refused = 0
            else:
                refused += 1
            if taken % 10 == 0:
                await asyncio.sleep(0)
        # What the kernel takes of it comes on top: a few MiB at most.
        assert taken * 10_000 < 12_000_000
        assert len(await read(connection, taken * 10_000)) == taken * 10_000
        assert one.send(b"y")
        await one.end()

    with_server(body)


def test_a_closed_upstream_dials_no_more() -> None:
    async def body(server: Server) -> None:
        one = Upstream(server.port)
        one.upstream.start()
        await server.accept()
        await until(lambda: one.upstream.connected)
        one.upstream.close()
        await until(lambda: not one.upstream.connected)
        one.upstream.start()
        assert not one.send(b"x")
        for _ in range(10):
            await asyncio.sleep(0)
        assert one.spy.dials == 1 and one.spy.delays == []
        # Also where it was between two tries, and where it was dialling.
        server.socket.close()
        one = Upstream(server.port, pause=60.0)
        one.upstream.start()
        await until(lambda: one.spy.delays)
        one.upstream.close()
        assert all(handle.cancelled() for handle in one.spy.handles)
        one = Upstream(server.port)
        one.upstream.start()
        await one.end()
        assert one.spy.delays == [] and one.spy.dials <= 1

    with_server(body)
