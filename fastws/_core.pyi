"""The heart: one worker's proxy. Built and wired by worker.py; a policy never meets it."""

from asyncio import AbstractEventLoop
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Protocol

from typing_extensions import disjoint_base

from fastws._connection import ConnectionTable, Terminator
from fastws.transport.base import Receiver, Transport
from fastws.transport.stream import StreamConnection, StreamUpstream

TERMINATORS: tuple[Terminator, ...]

class _Policy(Protocol):
    """What the core asks of a policy: fastws.policy.Policy."""

    @property
    def on_request(self) -> Callable[..., Any] | None: ...
    @property
    def on_close(self) -> Callable[..., Any] | None: ...
    @property
    def identity(self) -> str | None: ...
    @property
    def request_methods(self) -> Iterable[str] | None: ...
    def follow(
        self, awaitable: Awaitable[Any], done: Callable[[object, BaseException | None], None], what: str, /
    ) -> object: ...
    def closed(self, connection: Any, terminator: Any, code: int, reason: str, /) -> None: ...
    def log_failure(self, what: str, source: tuple[str, int] | None, /) -> None: ...

@disjoint_base
class Edge(Receiver):
    """One worker's proxy: what clients and the SIP side send meets here.

    ``advertise``: "host:port" of Via, Path and Record-Route. ``names``: (host, port) pairs that mean this fastws, port
    0 for any. ``secret``: 16 bytes, the key of all tokens; ``epoch``: 32 bits that differ from start to start.
    ``report(kind, who, text)`` gets one line for the log; ``flow_ended(token)`` is told when a connection with this
    flow token has ended, or is None. The times are in seconds. ``max_transactions`` may be open in all (1..2**24),
    ``max_client_transactions`` wait for an answer on one connection.
    """

    def __init__(
        self,
        loop: AbstractEventLoop,
        table: ConnectionTable,
        policy: _Policy,
        *,
        advertise: bytes,
        names: Sequence[tuple[str, int]],
        secret: bytes,
        epoch: int,
        worker: int = 0,
        privacy: bool = False,
        ping_interval: float = 30.0,
        ping_timeout: float = 10.0,
        message_timeout: float = 10.0,
        report: Callable[[str, tuple[str, int] | None, str], object] | None = None,
        flow_ended: Callable[[bytes], object] | None = None,
        max_transactions: int = 1048576,
        max_client_transactions: int = 1024,
    ) -> None: ...
    def set_policy(self, policy: _Policy) -> None:
        """From the next message on this policy is asked. Connections keep their attributes."""

    def set_upstream(self, transport: Transport, host: str, port: int, addresses: Sequence[str]) -> None:
        """Where clients' requests go. ``addresses``: the IP literals of ``host``, the first of which UDP sends to; SIP
        from any of them is accepted. ValueError for what is no IP literal."""

    def set_udp(self, transport: Transport) -> None:
        """The socket of the SIP side, for answers and requests to addresses that are not the upstream."""

    def set_trusted(self, networks: Sequence[tuple[str, int]]) -> None:
        """(address, prefix bits) of the networks whose SIP is accepted beside the upstream's."""

    def add_stream(self, transport: StreamConnection) -> bool:
        """A TCP connection of the SIP side was accepted; False: not from an address that may speak to us."""

    def drop_stream(self, transport: StreamConnection) -> None:
        """That connection has ended."""

    def undelivered(self, messages: Iterable[bytes]) -> None:
        """Requests that were kept for an upstream and could not be sent after all: their senders get a 503 each."""

    def lost(self, transport: StreamUpstream, unsent: Iterable[bytes] = ()) -> None:
        """The connection to a stream upstream has ended: what was asked over it is answered with 503 (RFC 3261 16.9),
        but for the messages in ``unsent``, which go over the next one."""

    def tick(self) -> None:
        """Ping who was silent, end who does not answer. Called several times a second at most."""

    def close_all(self, code: int = 1001, reason: bytes = b"") -> None:
        """Close every connection, with terminator ``shutdown``."""

    def state(self) -> dict[str, Any]:
        """Counts for the tests and the metrics."""
