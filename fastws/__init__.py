"""fastws: the SIP edge for browsers. A SIP-over-WebSocket (RFC 7118) proxy whose policy is a Python module."""

from fastws._connection import Connection, Terminator, connections
from fastws._request import Request, Verdict
from fastws.errors import ConfigError, FastwsError, PolicyError
from fastws.wire.handshake import Accept, Handshake, Refuse, Reject
from fastws.wire.message import URI

__all__ = [
    "URI",
    "Accept",
    "ConfigError",
    "Connection",
    "FastwsError",
    "Handshake",
    "PolicyError",
    "Refuse",
    "Reject",
    "Request",
    "Terminator",
    "Verdict",
    "connections",
]

__version__ = "0.1.0"
