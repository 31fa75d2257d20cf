"""SIP over TCP on the SIP side: connections that were accepted or dialled, and the one to a TCP upstream."""

from asyncio import AbstractEventLoop, BaseTransport, BufferedProtocol
from collections.abc import Callable

from typing_extensions import disjoint_base

from fastws.transport.base import ReadBuffer, Receiver, Transport

FIRST_DELAY: float
"""Seconds from a failed try to the next one."""
LAST_DELAY: float
"""Seconds; each delay is twice the one before, up to this."""

# The loop takes it for a BufferedProtocol by its methods; it is none by descent.
@disjoint_base
class StreamConnection(Transport, BufferedProtocol):
    """One TCP connection of the SIP side, dialled or accepted. ``on_lost(connection)`` is called when it has ended."""

    def __init__(
        self,
        receiver: Receiver,
        buffer: ReadBuffer,
        *,
        max_message_bytes: int,
        max_queue_bytes: int,
        on_lost: Callable[[StreamConnection], object] | None = None,
        on_made: Callable[[StreamConnection], object] | None = None,
    ) -> None: ...
    @property
    def open(self) -> bool:
        """True from the moment that it stands until it ends."""

    @property
    def remote_pair(self) -> tuple[str, int]:
        """(address, port) of the other end."""

    def tick(self) -> None:
        """Close the connection when a message that has begun does not come whole in time."""

    def take(self) -> list[bytes]:
        """What this loop turn was to send and has not sent: the other end cannot have seen it."""

    def close(self) -> None:
        """Send what waits, then close."""

    def connection_made(self, transport: BaseTransport) -> None: ...
    def get_buffer(self, sizehint: int) -> memoryview: ...
    def buffer_updated(self, count: int) -> None: ...
    def eof_received(self) -> bool: ...
    def connection_lost(self, error: Exception | None) -> None: ...
    def pause_writing(self) -> None: ...
    def resume_writing(self) -> None: ...

@disjoint_base
class StreamUpstream(Transport):
    """The way to a TCP upstream: dials it, dials it again when the connection ends, keeps what is sent while a first
    try is under way, and refuses while it is down.

    ``make(on_lost)`` makes the protocol; ``on_failed(messages)`` gets what was kept when a try fails; ``on_ended(self,
    unsent)`` is called when the connection has ended, and with it all that was asked over it but for what is sent
    again.
    """

    def __init__(
        self,
        loop: AbstractEventLoop,
        receiver: Receiver,
        host: str,
        port: int,
        *,
        make: Callable[[Callable[[StreamConnection], None]], StreamConnection],
        on_failed: Callable[[list[bytes]], object],
        on_ended: Callable[[StreamUpstream, list[bytes]], object],
        max_queue_bytes: int,
        connect_timeout: float = 3.0,
    ) -> None:
        """``host`` is an IP address, ``connect_timeout`` in seconds."""

    @property
    def connected(self) -> bool:
        """Whether there is a connection to send on."""

    def start(self) -> None:
        """Dial now, unless connected or dialling."""

    def close(self) -> None:
        """Stop dialling and close the connection."""
