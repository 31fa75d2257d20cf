"""What the tests of the transports share: uvloop runs that hide no failure, a socket that is none, a loop that is none,
and client frames.

Nothing here knows a class of fastws.
"""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import uvloop

T = TypeVar("T")
MASK = bytes.fromhex("37fa213d")


def run(scenario: Callable[[], Coroutine[Any, Any, T]], timeout: float = 20.0) -> T:
    """Run a scenario on uvloop; whatever a callback of the loop raised fails the test as well."""
    failures: list[dict[str, Any]] = []

    async def guarded() -> T:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
        return await asyncio.wait_for(scenario(), timeout)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        result = runner.run(guarded())
    assert failures == []
    return result


async def until(condition: Callable[[], object], timeout: float = 5.0) -> None:
    """Let the loop turn until the condition is true; AssertionError after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        await asyncio.sleep(0.001)


class FakeLoop:
    """A loop that calls what it was given when a test lets it turn."""

    def __init__(self) -> None:
        self.soon: list[tuple[Callable[..., object], tuple[Any, ...]]] = []

    def call_soon(self, callback: Callable[..., object], *arguments: Any) -> None:
        self.soon.append((callback, arguments))

    def turn(self) -> None:
        """Call what waits, but not what that adds."""
        waiting, self.soon = self.soon, []
        for callback, arguments in waiting:
            callback(*arguments)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Be what asyncio.get_running_loop() finds."""
        asyncio._set_running_loop(self)  # type: ignore[arg-type]
        try:
            yield
        finally:
            asyncio._set_running_loop(None)


class FakeTransport:
    """A uvloop transport as far as protocols use one: nothing is sent, everything is kept."""

    def __init__(self, peer: Any = ("192.0.2.1", 40000), *, local: Any = ("127.0.0.1", 80), tls: bool = False) -> None:
        self.peer, self.local, self.tls = peer, local, tls
        self.written: list[bytes] = []
        self.buffered = 0
        self.calls: list[str] = []
        self.reading = True

    def get_extra_info(self, name: str) -> Any:
        return {"peername": self.peer, "sockname": self.local}.get(name)

    def set_write_buffer_limits(self, high: int) -> None:
        assert high > 0

    def write(self, data: bytes) -> None:
        assert type(data) is bytes
        self.written.append(data)

    def writelines(self, parts: list[bytes]) -> None:
        for data in parts:
            self.write(data)

    def get_write_buffer_size(self) -> int:
        return self.buffered

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def can_write_eof(self) -> bool:
        return not self.tls

    def write_eof(self) -> None:
        self.calls.append("write_eof")

    def close(self) -> None:
        self.calls.append("close")

    def abort(self) -> None:
        self.calls.append("abort")

    def take(self) -> bytes:
        """What was written since the last time."""
        data = b"".join(self.written)
        self.written.clear()
        return data


def client_frame(payload: bytes, opcode: int = 1, *, fin: bool = True) -> bytes:
    """One masked frame (RFC 6455 5.2)."""
    length = len(payload)
    if length < 126:
        size = bytes([0x80 | length])
    elif length < 65536:
        size = b"\xfe" + struct.pack("!H", length)
    else:
        size = b"\xff" + struct.pack("!Q", length)
    masked = bytes(byte ^ MASK[place & 3] for place, byte in enumerate(payload))
    return bytes([(0x80 if fin else 0) | opcode]) + size + MASK + masked


def server_frames(data: bytes) -> list[tuple[int, bytes]]:
    """(opcode, payload) of whole unmasked frames; AssertionError for anything else."""
    frames = []
    while data:
        assert data[0] & 0xF0 == 0x80, "FIN is set, RSV are not"
        assert data[1] & 0x80 == 0, "a server does not mask"
        length, at = data[1], 2
        if length == 126:
            (length,), at = struct.unpack_from("!H", data, 2), 4
            assert length >= 126
        elif length == 127:
            (length,), at = struct.unpack_from("!Q", data, 2), 10
            assert length >= 65536
        assert len(data) >= at + length
        frames.append((data[0] & 15, data[at : at + length]))
        data = data[at + length :]
    return frames


def close_payload(code: int, reason: bytes = b"") -> bytes:
    """The payload of a close frame."""
    return struct.pack("!H", code) + reason
