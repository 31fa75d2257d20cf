"""The connections of one worker: the table, what policy sees of it, and who or what may end one."""

from collections.abc import Iterator, Mapping, MutableMapping
from enum import StrEnum
from typing import Any, Never

from typing_extensions import disjoint_base

class Terminator(StrEnum):
    """Who or what ended a connection; the second argument of ``on_close``."""

    CLIENT = "client"
    """It sent a close frame, as browsers do when a tab is closed."""
    POLICY = "policy"
    """``connection.close()``, ``request.reject(close=True)``, or the identity check."""
    OPERATOR = "operator"
    """A command of the operator."""
    TIMEOUT = "timeout"
    """No answer to a ping, or a message that was never finished."""
    PROTOCOL = "protocol"
    """It broke RFC 6455; the code says how."""
    NETWORK = "network"
    """A reset, or the end of the stream without a close frame."""
    OVERLOAD = "overload"
    """It did not read what was sent to it (``max_queue_bytes``)."""
    SHUTDOWN = "shutdown"
    """fastws ended."""

TERMINATORS: tuple[Terminator, ...]
"""In the order in which the compiled half counts them."""

@disjoint_base
class ConnectionTable:
    """The connections of one worker. For the worker and the core; policy sees :data:`connections`."""

    def __new__(cls, limit: int = 100000, identity: str | None = None) -> ConnectionTable:
        """``limit``: how many may be open at once, 1..2**31. ``identity``: the name of the attribute that the identity
        check compares with, or None."""

    @property
    def count(self) -> int:
        """Open connections."""

    @property
    def limit(self) -> int:
        """How many may be open at once."""

    @property
    def identity_name(self) -> str | None:
        """The name of the attribute that the identity check compares with."""

    def set_identity(self, name: str | None) -> None:
        """Compare with the attribute of this name from now on; None for no identity check."""

    def slots(self) -> tuple[int, int, int]:
        """Slots that exist, slots open, places used in the index."""

    def bytes_used(self) -> int:
        """Memory of the slots and the index, in bytes."""

@disjoint_base
class Connection(MutableMapping[str, Any]):
    """One accepted WebSocket connection, as policy sees it: a MutableMapping of its attributes.

    The attributes are those of ``handshake.accept(user="alice")``: ``connection["user"]``. They may be changed at any
    time; the one that IDENTITY names is read again at each change. It is of use as long as the connection is open, and
    during ``on_close``. Who keeps it longer can still read the attributes; it is in no table any more, and
    :meth:`close` does nothing. Two are equal only if they are the same one, and it is always true.
    """

    def __init__(self, *args: Never, **kwargs: Never) -> None:
        """Raises TypeError: connections are made by accepting a handshake."""

    @property
    def source(self) -> tuple[str, int]:
        """(address, port) of the TCP peer."""

    @property
    def local(self) -> tuple[str, int]:
        """(address, port) that the client connected to."""

    @property
    def secure(self) -> bool:
        """True over TLS."""

    @property
    def opened_at(self) -> float:
        """When it was accepted, in seconds since the epoch."""

    @property
    def messages_in(self) -> int:
        """SIP messages that came from the client."""

    @property
    def messages_out(self) -> int:
        """SIP messages that went to the client."""

    @property
    def open(self) -> bool:
        """False once the connection has ended."""

    def close(self, code: int = 1008, reason: str = "") -> None:
        """Close the connection at once, with a WebSocket close code and a reason.

        ``code``: 1000, 1001, 1003, 1007..1014 or 3000..4999, otherwise ValueError (RFC 6455 7.4). ``reason`` is cut to
        123 bytes of UTF-8 (5.5.1). on_close is told terminator ``policy``. Calling it again does nothing.
        """

    def __getitem__(self, key: str, /) -> Any: ...
    def __setitem__(self, key: str, value: Any, /) -> None: ...
    def __delitem__(self, key: str, /) -> None: ...
    def __iter__(self) -> Iterator[str]: ...
    def __len__(self) -> int: ...
    def __contains__(self, key: object, /) -> bool: ...
    def __bool__(self) -> bool: ...
    def get(self, key: str, default: Any = None) -> Any: ...
    def pop(self, key: str, default: Any = ...) -> Any: ...
    def setdefault(self, key: str, default: Any = None) -> Any: ...

class Connections(Mapping[tuple[str, int], Connection]):
    """The open connections of this worker, by (address, port) of the client: ``connections["192.0.2.7", 50432]``.

    Two listeners may hold the same address and port at once: indexing answers with the newest, :meth:`all` with both.
    Iterating goes over a snapshot, so connections may be closed meanwhile.
    """

    def __init__(self, table: ConnectionTable | None = None) -> None: ...
    def bind(self, table: ConnectionTable) -> None:
        """Look into this table from now on. For the worker."""

    def all(self, address: str, port: int) -> list[Connection]:
        """Every open connection of this address and port, the oldest first; an empty list without one.

        ValueError for what is no IP address or no port.
        """

    def __getitem__(self, key: tuple[str, int]) -> Connection: ...
    def __iter__(self) -> Iterator[tuple[str, int]]: ...
    def __len__(self) -> int: ...
    def values(self) -> list[Connection]:  # type: ignore[override]
        """The open connections of a snapshot, the oldest first; two of one address and port are both there."""

    def items(self) -> list[tuple[tuple[str, int], Connection]]:  # type: ignore[override]
        """((address, port), connection) of a snapshot, the oldest first."""

connections: Connections
"""The connections of this worker."""
