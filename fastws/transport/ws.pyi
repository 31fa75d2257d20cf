"""SIP over WebSocket, the server's side: the listener and the connections of its clients."""

from asyncio import AbstractEventLoop, BaseTransport, BufferedProtocol, Task
from collections.abc import Mapping
from typing import Any, Protocol

from typing_extensions import disjoint_base

from fastws.transport.base import ReadBuffer, Receiver, Transport

FRAME_FAULTS: dict[int, str]
"""Close code -> what was wrong with a client's frame, for the log."""

class _Admission(Protocol):
    """Who decides about a client: fastws.admission.Admission."""

    def feed(self, conn: WsConnection, chunk: bytes, /) -> None: ...
    def expired(self, conn: WsConnection, /) -> None: ...
    def lost(self, conn: WsConnection, /) -> None: ...

@disjoint_base
class WsListener:
    """What the connections of one listener share. Calling it makes a protocol for the loop.

    ``max_message_bytes``: of a SIP message, 1..2**31. ``max_queue_bytes``: what may wait for a client that reads
    slowly. ``head_timeout``: seconds for the whole HTTP head. ``control_limit``: pings and pongs that a client may
    send within one second.
    """

    def __init__(
        self,
        loop: AbstractEventLoop,
        receiver: Receiver,
        buffer: ReadBuffer,
        admission: _Admission,
        *,
        secure: bool,
        max_message_bytes: int,
        max_queue_bytes: int,
        head_timeout: float,
        control_limit: int = 100,
    ) -> None: ...
    def __call__(self) -> WsConnection: ...
    @property
    def connections(self) -> int:
        """Connections that exist, in any state."""

    def tick(self) -> None:
        """End what has passed its deadline: heads that did not come, closes that were not answered."""

    def counts(self) -> tuple[int, int, int]:
        """(connections that exist in any state, heads awaited, closes awaited)."""

    def abort_waiting(self) -> None:
        """Drop the connections that are still in the handshake."""

# The loop takes it for a BufferedProtocol by its methods; it is none by descent.
@disjoint_base
class WsConnection(Transport, BufferedProtocol):
    """One client. What the admission needs of it is fastws.admission.Applicant."""

    reader: Any
    """The admission's own, while the HTTP head is read."""
    task: Task[Any] | None
    """The admission's own: an async on_handshake that is thinking."""

    def __init__(self, listener: WsListener) -> None: ...
    @property
    def source(self) -> tuple[str, int]:
        """(address, port) of the TCP peer."""

    @property
    def local(self) -> tuple[str, int]:
        """(address, port) that the client connected to."""

    @property
    def tls(self) -> Mapping[str, Any] | None:
        """The client's certificate as ssl.SSLSocket.getpeercert() gives it; None without one."""

    @property
    def gone(self) -> bool:
        """True when there is nobody left to answer."""

    def hold(self) -> None:
        """Stop reading while an async policy thinks: what follows waits in the kernel."""

    def accept(self, response: bytes, attributes: dict[str, Any], host: str, rest: bytes) -> bool:
        """Send the 101 and enter the connection in the table; ``rest`` is what came behind the GET. False: the table
        has no room, and nothing was sent."""

    def refuse(self, response: bytes) -> None:
        """Send an HTTP answer and close."""

    def refuse_with_code(self, response: bytes, code: int, reason: str) -> None:
        """Complete the 101 and close at once: the only refusal that a page can read (RFC 6455 7.4.2)."""

    def leave(self, terminator: int, code: int, reason: bytes) -> None:
        """Tell the receiver that it has ended, once."""

    def connection_made(self, transport: BaseTransport) -> None: ...
    def get_buffer(self, sizehint: int) -> memoryview: ...
    def buffer_updated(self, count: int) -> None: ...
    def eof_received(self) -> bool: ...
    def connection_lost(self, error: Exception | None) -> None: ...
    def pause_writing(self) -> None: ...
    def resume_writing(self) -> None: ...
