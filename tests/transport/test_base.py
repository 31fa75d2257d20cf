"""transport/base: what the core may count on whatever the protocol, and the transport whose far end is a callable."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable

import pytest

from fastws.transport.base import LocalTransport, ReadBuffer, Receiver, Transport
from tests import probe_core
from tests.transport.helpers import run, until

LOCAL_KIND = 5


# ---- Transport and Receiver ------------------------------------------------------------------------------------------


def test_a_transport_without_a_protocol_takes_nothing_and_does_nothing() -> None:
    transport = Transport()
    assert not probe_core.transport_reserve(transport, 1)
    assert not probe_core.transport_send(transport, b"x", ("127.0.0.1", 1))
    probe_core.transport_finish(transport, 1000, b"", 0)
    probe_core.transport_resume(transport)
    probe_core.transport_ping(transport)
    assert (transport.slot, transport.generation) == (0, 0)  # generation 0: no connection


def test_a_receiver_without_a_core_raises() -> None:
    receiver, transport = Receiver(), Transport()
    with pytest.raises(NotImplementedError):
        probe_core.receiver_opened(receiver, transport, ("127.0.0.1", 1), ("127.0.0.1", 2), {}, "")
    with pytest.raises(NotImplementedError):
        probe_core.receiver_received(receiver, transport, b"x")
    with pytest.raises(NotImplementedError):
        probe_core.receiver_closed(receiver, transport, 0, 1000, b"")


# ---- ReadBuffer ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 4096, 262144])
def test_the_read_buffer_is_writable_bytes_of_its_size(size: int) -> None:
    view = memoryview(ReadBuffer(size))
    assert (len(view), view.format, view.readonly, view.contiguous) == (size, "B", False, True)
    view[-1] = 7
    assert view[-1] == 7


def test_the_memory_of_a_read_buffer_stays_as_long_as_a_view_of_it() -> None:
    buffer = ReadBuffer(100)
    view = memoryview(buffer)
    view[:3] = b"abc"
    del buffer
    gc.collect()
    assert bytes(view[:3]) == b"abc"


# ---- LocalTransport --------------------------------------------------------------------------------------------------


class Far:
    """A far end that keeps what it gets and answers what it is told to."""

    def __init__(self, answer: Callable[[bytes], list[bytes]]) -> None:
        self.got: list[bytes] = []
        self.answer = answer

    def __call__(self, message: bytes) -> list[bytes]:
        self.got.append(message)
        return self.answer(message)


def test_messages_reach_the_far_end_in_the_next_turn_in_order_and_answers_come_back() -> None:
    async def scenario() -> None:
        recorder = probe_core.Recorder()
        far = Far(lambda message: [b"re:" + message, b"more"] if message != b"2" else [])
        local = LocalTransport(asyncio.get_running_loop(), far, recorder)
        assert probe_core.kind_of(local) == LOCAL_KIND
        for number in range(4):
            assert probe_core.transport_send(local, b"%d" % number)
        assert far.got == [] and recorder.events == []
        await asyncio.sleep(0)
        assert far.got == [b"0", b"1", b"2", b"3"]
        assert recorder.messages == [b"re:0", b"more", b"re:1", b"more", b"re:3", b"more"]

    run(scenario)


def test_what_the_core_sends_while_it_receives_goes_out_a_turn_later() -> None:
    async def scenario() -> None:
        recorder = probe_core.Recorder()
        far = Far(lambda message: [message])
        local = LocalTransport(asyncio.get_running_loop(), far, recorder)

        def received(transport: Transport, data: bytes) -> bool:
            inside = len(far.got)
            if len(data) < 5:
                probe_core.transport_send(transport, data + b"x")
            assert len(far.got) == inside, "the core was entered twice"
            return False

        recorder.on_received = received
        probe_core.transport_send(local, b"a")
        await until(lambda: len(recorder.messages) == 5)
        assert recorder.messages == [b"a", b"ax", b"axx", b"axxx", b"axxxx"]

    run(scenario)


def test_a_large_message_and_an_empty_one() -> None:
    async def scenario() -> None:
        far = Far(lambda message: [message])
        recorder = probe_core.Recorder()
        local = LocalTransport(asyncio.get_running_loop(), far, recorder)
        probe_core.transport_send(local, b"x" * 200_000)
        probe_core.transport_send(local, b"")
        await until(lambda: len(recorder.messages) == 2)
        assert far.got == recorder.messages == [b"x" * 200_000, b""]

    run(scenario)


def test_a_far_end_that_fails_loses_its_own_message_only() -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        failures: list[object] = []
        loop.set_exception_handler(lambda _, context: failures.append(context["exception"]))

        def answer(message: bytes) -> list[bytes]:
            if message == b"bad":
                raise ValueError("the far end's own fault")
            return [message]

        recorder = probe_core.Recorder()
        local = LocalTransport(loop, answer, recorder)
        for message in (b"1", b"bad", b"2"):
            probe_core.transport_send(local, message)
        await until(lambda: failures)
        await asyncio.sleep(0)
        assert [type(failure) for failure in failures] == [ValueError]
        assert recorder.messages == [b"1", b"2"]

    run(scenario)


def test_a_local_transport_keeps_nothing_that_was_handed_over() -> None:
    async def scenario() -> None:
        class Answer(list[bytes]):
            pass

        made: list[weakref.ref[Answer]] = []

        def far(message: bytes) -> list[bytes]:
            answer = Answer([message])
            made.append(weakref.ref(answer))
            return answer

        local = LocalTransport(asyncio.get_running_loop(), far, probe_core.Recorder())
        for _ in range(50):
            probe_core.transport_send(local, b"x")
        await until(lambda: len(made) == 50)
        gc.collect()
        assert all(reference() is None for reference in made)

    run(scenario)
