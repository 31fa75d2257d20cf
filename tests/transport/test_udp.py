"""transport/udp: datagrams in batches over real sockets of the loopback."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from fastws.transport.base import Transport
from fastws.transport.udp import UdpTransport
from tests import probe_core
from tests.transport.helpers import run, until

BATCH = 64  # datagrams of one system call
ARENA = 1_048_576  # bytes that wait for one flush
LONGEST = 65_507  # bytes of a datagram over IPv4


def bound(host: str = "127.0.0.1") -> socket.socket:
    """A datagram socket on a free port that never blocks."""
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
    sock.setblocking(False)
    sock.bind((host, 0))
    return sock


class Pair:
    """A UdpTransport with its Recorder, and the socket of a peer."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.recorder = probe_core.Recorder()
        self.transport = UdpTransport(asyncio.get_running_loop(), bound(host), self.recorder)
        self.peer = bound(host)
        self.there = self.peer.getsockname()[:2]
        self.here = self.transport.bound

    def send(self, data: bytes, to: tuple[str, int] | None = None) -> bool:
        done: bool = probe_core.transport_send(self.transport, data, to or self.there)
        return done

    def arrived(self) -> list[bytes]:
        """Everything that waits in the peer's socket."""
        found = []
        while True:
            try:
                found.append(self.peer.recv(65536))
            except BlockingIOError:
                return found


@contextmanager
def pair(host: str = "127.0.0.1") -> Iterator[Pair]:
    one = Pair(host)
    try:
        yield one
    finally:
        one.transport.close()
        one.peer.close()


def with_pair(body: Callable[[Pair], Coroutine[Any, Any, None]], host: str = "127.0.0.1") -> None:
    """Run `body` with a Pair on uvloop."""

    async def scenario() -> None:
        with pair(host) as one:
            await body(one)

    run(scenario)


# ---- sending ---------------------------------------------------------------------------------------------------------


def test_what_one_turn_writes_is_sent_at_its_end_in_order() -> None:
    async def body(one: Pair) -> None:
        for number in range(50):
            assert one.send(b"%d" % number)
        assert one.transport.sent == 0 and one.arrived() == []
        await asyncio.sleep(0)
        assert one.transport.sent == 50 and one.transport.lost == 0
        assert one.arrived() == [b"%d" % number for number in range(50)]
        assert one.send(b"again")
        await asyncio.sleep(0)
        assert one.arrived() == [b"again"] and one.transport.sent == 51

    with_pair(body)


def test_a_full_batch_goes_at_once_and_the_order_stays() -> None:
    async def body(one: Pair) -> None:
        for number in range(BATCH):
            one.send(b"%d" % number)
        assert one.transport.sent == 0
        one.send(b"%d" % BATCH)
        assert one.transport.sent == BATCH
        for number in range(BATCH + 1, 3 * BATCH):
            one.send(b"%d" % number)
        assert one.transport.sent == 2 * BATCH
        await asyncio.sleep(0)
        assert one.transport.sent == 3 * BATCH
        assert one.arrived() == [b"%d" % number for number in range(3 * BATCH)]

    with_pair(body)


def test_a_full_arena_goes_at_once() -> None:
    async def body(one: Pair) -> None:
        fit = ARENA // LONGEST
        for _ in range(fit):
            assert one.send(b"x" * LONGEST)
        assert one.transport.sent == 0
        assert one.send(b"x" * LONGEST)
        assert one.transport.sent == fit
        await asyncio.sleep(0)
        assert one.transport.sent == fit + 1 and one.transport.lost == 0

    with_pair(body)


@pytest.mark.parametrize("length", [0, 1, 1300, 1500, 9000, LONGEST])
def test_a_datagram_of_any_length_up_to_the_longest_arrives_whole(length: int) -> None:
    async def body(one: Pair) -> None:
        data = os.urandom(length)
        assert one.send(data)
        await until(lambda: one.transport.sent == 1)
        assert one.arrived() == [data]
        one.peer.sendto(data, one.here)
        await until(lambda: one.recorder.events)
        assert one.recorder.events == [("received", data, one.there)]

    with_pair(body)


def test_a_longer_one_is_refused_and_the_batch_stays_whole() -> None:
    async def body(one: Pair) -> None:
        assert one.send(b"before")
        assert not one.send(b"x" * (LONGEST + 1))
        assert not probe_core.transport_reserve(one.transport, 2**63, one.there)
        assert one.send(b"behind")
        await asyncio.sleep(0)
        assert one.arrived() == [b"before", b"behind"] and one.transport.lost == 0

    with_pair(body)


def test_without_an_address_nothing_is_taken() -> None:
    async def body(one: Pair) -> None:
        assert not probe_core.transport_send(one.transport, b"x")
        assert not probe_core.transport_reserve(one.transport, 1)

    with_pair(body)


def test_what_was_reserved_and_not_committed_is_not_sent() -> None:
    async def body(one: Pair) -> None:
        assert one.send(b"1")
        assert probe_core.transport_reserve(one.transport, 1000, one.there)
        assert one.send(b"2")
        await asyncio.sleep(0)
        assert one.arrived() == [b"1", b"2"]

    with_pair(body)


def test_a_datagram_that_cannot_go_costs_no_other() -> None:
    async def body(one: Pair) -> None:
        assert one.send(b"1")
        assert one.send(b"nowhere", (one.there[0], 0))
        assert one.send(b"2")
        assert one.send(b"other family", ("2001:db8::1", 5060))
        assert one.send(b"3")
        await asyncio.sleep(0)
        assert one.arrived() == [b"1", b"2", b"3"]
        assert (one.transport.sent, one.transport.lost) == (3, 2)

    with_pair(body)


def test_one_batch_goes_to_many_addresses() -> None:
    async def body(one: Pair) -> None:
        others = [bound() for _ in range(5)]
        for number, other in enumerate(others):
            one.send(b"%d" % number, other.getsockname())
            one.send(b"peer %d" % number)
        await asyncio.sleep(0)
        assert [other.recv(100) for other in others] == [b"%d" % number for number in range(5)]
        assert one.arrived() == [b"peer %d" % number for number in range(5)]
        for other in others:
            other.close()

    with_pair(body)


def test_ipv6_goes_both_ways() -> None:
    async def body(one: Pair) -> None:
        assert one.here[0] == "::1"
        assert one.send(b"out")
        one.peer.sendto(b"in", one.here)
        await until(lambda: one.recorder.events)
        assert one.arrived() == [b"out"]
        assert one.recorder.events == [("received", b"in", one.there)]

    with_pair(body, "::1")


# ---- receiving -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, BATCH - 1, BATCH, BATCH + 1, 5 * BATCH + 3])
def test_any_number_of_waiting_datagrams_is_received_once_and_in_order(count: int) -> None:
    async def body(one: Pair) -> None:
        sent = [b"%d" % number for number in range(count)]
        for data in sent:
            one.peer.sendto(data, one.here)
        await until(lambda: len(one.recorder.events) >= count)
        await asyncio.sleep(0)
        assert one.recorder.messages == sent
        assert one.transport.received == count

    with_pair(body)


def test_a_flood_leaves_the_loop_time_for_others() -> None:
    async def body(one: Pair) -> None:
        for _ in range(BATCH * 5):
            one.peer.sendto(b"x", one.here)
        turns: list[int] = []
        loop = asyncio.get_running_loop()
        one.recorder.on_received = lambda transport, data: (
            loop.call_soon(lambda: turns.append(len(one.recorder.events))) if not turns else None
        ) and False
        await until(lambda: len(one.recorder.events) == BATCH * 5)
        assert turns[0] == BATCH * 4

    with_pair(body)


def test_an_empty_datagram_is_received_as_one() -> None:
    async def body(one: Pair) -> None:
        one.peer.sendto(b"", one.here)
        one.peer.sendto(b"x", one.here)
        await until(lambda: len(one.recorder.events) == 2)
        assert one.recorder.messages == [b"", b"x"]

    with_pair(body)


def test_the_sender_of_each_datagram_is_told() -> None:
    async def body(one: Pair) -> None:
        others = [bound() for _ in range(4)]
        for other in [*others, *reversed(others)]:
            other.sendto(b"x", one.here)
        await until(lambda: len(one.recorder.events) == 8)
        names = [other.getsockname() for other in others]
        assert [event[2] for event in one.recorder.events] == names + names[::-1]
        for other in others:
            other.close()

    with_pair(body)


def test_an_answer_sent_while_receiving_goes_back_in_the_same_batch() -> None:
    async def body(one: Pair) -> None:
        def received(transport: Transport, data: bytes) -> bool:
            one.send(b"re:" + data)
            return False

        one.recorder.on_received = received
        for number in range(100):
            one.peer.sendto(b"%d" % number, one.here)
        await until(lambda: one.transport.sent == 100)
        assert one.arrived() == [b"re:%d" % number for number in range(100)]

    with_pair(body)


# ---- the end ---------------------------------------------------------------------------------------------------------


def test_closing_sends_what_waits_and_takes_no_more() -> None:
    async def body(one: Pair) -> None:
        one.send(b"1")
        one.send(b"2")
        descriptor = one.transport.bound and one.transport
        one.transport.close()
        assert one.arrived() == [b"1", b"2"]
        assert descriptor.sent == 2
        assert not one.send(b"3")
        one.transport.close()
        one.peer.sendto(b"late", one.here)
        for _ in range(5):
            await asyncio.sleep(0)
        assert one.arrived() == [] and one.recorder.events == []

    with_pair(body)


def test_closing_gives_the_port_back() -> None:
    async def body(one: Pair) -> None:
        one.transport.close()
        again = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        again.bind(one.here)
        again.close()

    with_pair(body)


def test_closing_while_a_batch_is_received_is_no_harm() -> None:
    async def body(one: Pair) -> None:
        def received(transport: Transport, data: bytes) -> bool:
            one.send(b"last")
            one.transport.close()
            return False

        one.recorder.on_received = received
        for number in range(3 * BATCH):
            one.peer.sendto(b"%d" % number, one.here)
        await until(lambda: one.recorder.events)
        for _ in range(5):
            await asyncio.sleep(0)
        assert len(one.recorder.events) <= BATCH  # of the batch that had been read at most
        assert one.arrived() == [b"last"]

    with_pair(body)


def test_nothing_is_written_to_a_descriptor_that_was_given_to_somebody_else() -> None:
    # close() in the turn in which something was sent: the flush of that turn is still to come.
    async def body(one: Pair) -> None:
        one.send(b"mine")
        one.transport.close()
        reused = [bound() for _ in range(5)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert one.arrived() == [b"mine"]
        for other in reused:
            with pytest.raises(BlockingIOError):
                other.recv(10)
            other.close()

    with_pair(body)


def test_a_closed_loop_sends_at_once() -> None:
    loop_holder: list[Pair] = []

    async def scenario() -> None:
        loop_holder.append(Pair())

    run(scenario)
    one = loop_holder[0]
    assert one.send(b"after the loop")
    assert one.arrived() == [b"after the loop"]
    one.peer.close()


def test_the_buffers_of_the_socket_were_asked_to_be_large() -> None:
    async def body(one: Pair) -> None:
        with open("/proc/sys/net/core/rmem_max") as file:
            limit = int(file.read())
        sock = socket.socket(fileno=os.dup(find_descriptor(one.here)))
        try:
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) >= min(limit, 4 << 20)
        finally:
            sock.close()

    with_pair(body)


def find_descriptor(name: tuple[str, int]) -> int:
    """The descriptor of this process whose socket has this name."""
    for text in os.listdir("/proc/self/fd"):
        try:
            sock = socket.socket(fileno=os.dup(int(text)))
        except OSError as error:
            assert error.errno in (errno.ENOTSOCK, errno.EBADF)
            continue
        with sock:
            if sock.family in (socket.AF_INET, socket.AF_INET6) and sock.getsockname()[:2] == name:
                return int(text)
    raise AssertionError(name)
