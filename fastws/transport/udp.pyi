"""The SIP side's UDP socket: datagrams in batches, in and out."""

from asyncio import AbstractEventLoop
from socket import socket as _Socket

from typing_extensions import disjoint_base

from fastws.transport.base import Receiver, Transport

@disjoint_base
class UdpTransport(Transport):
    """Datagrams of one bound, non-blocking socket. It owns the socket: :meth:`close` closes it."""

    def __init__(self, loop: AbstractEventLoop, socket: _Socket, receiver: Receiver) -> None: ...
    @property
    def bound(self) -> tuple[str, int]:
        """(address, port) of the socket."""

    @property
    def sent(self) -> int:
        """Datagrams that the system took."""

    @property
    def received(self) -> int:
        """Datagrams that came."""

    @property
    def lost(self) -> int:
        """Datagrams that the system would not take."""

    def close(self) -> None:
        """Send what waits and close the socket."""
