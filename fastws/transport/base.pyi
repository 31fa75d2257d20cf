"""What the core and the ways in and out have in common. Python code makes them and sends nothing."""

from asyncio import AbstractEventLoop
from collections.abc import Callable, Iterable

from typing_extensions import disjoint_base

@disjoint_base
class Transport:
    """One endpoint that sends: a client's WebSocket, the SIP side's UDP socket, a TCP connection, or a callable."""

    slot: int
    """Of a client: its place in the connection table, 0..2**32-1."""
    generation: int
    """Of a client: which tenant of the slot it is; 0 for none (yet, or any more)."""

@disjoint_base
class Receiver:
    """What a transport hands its messages to: the core."""

@disjoint_base
class ReadBuffer:
    """The buffer that all connections of a worker read into, one after the other."""

    def __new__(cls, size: int = 262144) -> ReadBuffer:
        """``size`` in bytes."""

@disjoint_base
class LocalTransport(Transport):
    """A transport whose far end is ``far_end(message: bytes) -> list[bytes]``. What is sent is handed over in the next
    turn of the loop, so that the far end may answer without the core being entered twice."""

    def __init__(
        self, loop: AbstractEventLoop, far_end: Callable[[bytes], Iterable[bytes]], receiver: Receiver
    ) -> None: ...
