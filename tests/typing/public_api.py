"""The types of all that a policy can touch, as a type checker sees them: `mypy --strict` fails where one changes.

Never run: test_typing.py gives this file to mypy, so that what an editor completes is what the code has.
"""

from collections.abc import Iterator, Mapping, MutableMapping
from enum import StrEnum
from typing import Any, assert_type

import fastws
from fastws import (
    URI,
    Accept,
    ConfigError,
    Connection,
    FastwsError,
    Handshake,
    PolicyError,
    Refuse,
    Reject,
    Request,
    Terminator,
    Verdict,
    connections,
)
from fastws._connection import Connections
from fastws._request import RequestHeaders
from fastws.wire.handshake import Headers


def names_of_the_package() -> None:
    assert_type(fastws.__version__, str)
    assert_type(fastws.__all__, list[str])
    assert_type(fastws.connections, Connections)
    assert_type(fastws.Connection, type[Connection])
    assert_type(fastws.Terminator, type[Terminator])


def on_handshake(handshake: Handshake) -> Accept | Reject | Refuse:
    assert_type(handshake.source, tuple[str, int])
    assert_type(handshake.local, tuple[str, int])
    assert_type(handshake.secure, bool)
    assert_type(handshake.tls, Mapping[str, Any] | None)
    assert_type(handshake.target, str)
    assert_type(handshake.path, str)
    assert_type(handshake.host, str)
    assert_type(handshake.query, dict[str, str])
    assert_type(handshake.query["token"], str)
    assert_type(handshake.query_all, dict[str, list[str]])
    assert_type(handshake.cookies, dict[str, str])
    assert_type(handshake.cookies.get("sid"), str | None)
    assert_type(handshake.subprotocols, list[str])
    assert_type(handshake.forwarded_for, str | None)
    assert_type(handshake.headers, Headers)
    assert_type(handshake.headers["Origin"], str)
    assert_type(handshake.headers.get("Origin"), str | None)
    assert_type(handshake.headers.get("Origin", ""), str)
    assert_type(handshake.headers.get_all("Cookie"), list[str])

    assert_type(handshake.accept(), Accept)
    assert_type(handshake.accept(user="alice", level=3), Accept)
    assert_type(handshake.accept(user="alice").attributes, dict[str, Any])
    assert_type(handshake.reject(), Reject)
    assert_type(handshake.reject(403, "Go Away", {"Retry-After": "60"}, "text"), Reject)
    assert_type(handshake.reject(302, headers=[("Location", "https://example.com/")], body=b"bytes"), Reject)
    assert_type(handshake.refuse(), Refuse)
    assert_type(handshake.refuse(4401, "log in again"), Refuse)
    assert_type(handshake.challenge("example.com"), Reject)
    assert_type(handshake.challenge("example.com", stale=True, secret=b"x" * 16, now=0.0), Reject)
    assert_type(handshake.verify_digest({"alice": "secret"}.get), str | None)
    assert_type(handshake.verify_digest(lambda user: user, realm="example.com", secret=b"x", now=0.0), str | None)
    return handshake.accept()


async def on_handshake_later(handshake: Handshake) -> Accept | Reject | Refuse:
    return handshake.refuse(4401)


def on_request(request: Request, connection: Connection) -> Verdict | None:
    assert_type(request.method, str)
    assert_type(request.uri, URI)
    assert_type(request.from_uri, URI)
    assert_type(request.to_uri, URI)
    assert_type(request.contact_uri, URI | None)
    assert_type(request.call_id, str)
    assert_type(request.cseq, int)
    assert_type(request.in_dialog, bool)
    assert_type(request.body, bytes)
    assert_type(request.headers, RequestHeaders)
    assert_type(request.headers["From"], str)
    assert_type(request.headers.get("Subject"), str | None)
    assert_type(request.headers.get("Subject", ""), str)
    assert_type(request.headers.get("Subject", 0), str | int)
    assert_type(request.headers.get_all("Via"), list[str])
    assert_type("Subject" in request.headers, bool)
    assert_type(len(request.headers), int)
    assert_type(iter(request.headers), Iterator[str])
    assert_type(request.headers.keys(), list[str])
    assert_type(request.headers.values(), list[str])
    assert_type(request.headers.items(), list[tuple[str, str]])
    plain: Mapping[str, str] = request.headers
    assert_type(plain["To"], str)

    assert_type(request.reject(403), Verdict)
    assert_type(request.reject(403, "Identity mismatch", {"Reason": "SIP"}, close=True), Verdict)
    assert_type(request.drop(), Verdict)
    request.add_header("X-User", "alice")
    request.set_header("X-User", "alice")
    request.remove_header("X-User")
    request.forward("sip:192.0.2.1:5060")
    request.forward(request.uri)
    return None


async def on_request_later(request: Request, connection: Connection) -> Verdict | None:
    return request.drop()


def uri(uri: URI) -> None:
    assert_type(uri.scheme, str)
    assert_type(uri.user, str | None)
    assert_type(uri.host, str)
    assert_type(uri.port, int | None)
    assert_type(uri.parameters, dict[str, str | None])
    assert_type(uri.headers, str)
    assert_type(str(uri), str)
    assert_type(uri == uri, bool)
    assert_type(hash(uri), int)


def on_close(connection: Connection, terminator: Terminator, code: int, reason: str) -> None:
    assert_type(connection.source, tuple[str, int])
    assert_type(connection.local, tuple[str, int])
    assert_type(connection.secure, bool)
    assert_type(connection.opened_at, float)
    assert_type(connection.messages_in, int)
    assert_type(connection.messages_out, int)
    assert_type(connection.open, bool)
    connection.close()
    connection.close(4000, "enough")
    connection.close(code=1008, reason="")

    attributes: MutableMapping[str, Any] = connection
    attributes["user"] = "bob"
    assert_type(connection["user"], Any)
    connection["calls"] = 3
    del connection["calls"]
    assert_type(connection.get("user"), Any)
    assert_type(connection.get("user", "nobody"), Any)
    assert_type(connection.pop("user", None), Any)
    assert_type(connection.setdefault("calls", 0), Any)
    connection.update(user="carol")
    connection.clear()
    assert_type("user" in connection, bool)
    assert_type(len(connection), int)
    assert_type(dict(connection), dict[str, Any])
    for key, value in connection.items():
        assert_type(key, str)
        assert_type(value, Any)
    tell(terminator)


def tell(terminator: Terminator) -> str:
    named: StrEnum = terminator
    assert_type(terminator.value, str)
    assert_type(Terminator("client"), Terminator)
    # Every member is named here, so a new one makes the end of this function reachable, which --strict reports.
    match terminator:
        case Terminator.CLIENT | Terminator.POLICY | Terminator.OPERATOR | Terminator.TIMEOUT:
            return named
        case Terminator.PROTOCOL | Terminator.NETWORK | Terminator.OVERLOAD | Terminator.SHUTDOWN:
            return str(terminator)


def the_table() -> None:
    assert_type(connections, Connections)
    mapping: Mapping[tuple[str, int], Connection] = connections
    assert_type(mapping["192.0.2.1", 5060], Connection)
    assert_type(connections["192.0.2.1", 5060], Connection)
    assert_type(connections.get(("192.0.2.1", 5060)), Connection | None)
    assert_type(connections.all("192.0.2.1", 5060), list[Connection])
    assert_type(len(connections), int)
    assert_type(("192.0.2.1", 5060) in connections, bool)
    for address, port in connections:
        assert_type(address, str)
        assert_type(port, int)
    for connection in connections.values():
        assert_type(connection, Connection)
    for source, connection in connections.items():
        assert_type(source, tuple[str, int])
        assert_type(connection, Connection)


def errors() -> None:
    try:
        raise PolicyError("policy.py:3", "expected a function")
    except ConfigError as error:
        assert_type(error.where, str)
        assert_type(error.problem, str)
        base: FastwsError = error
        plain: Exception = base
        print(plain)


def what_the_hooks_return(accept: Accept, reject: Reject, refuse: Refuse) -> None:
    assert_type(accept.attributes, dict[str, Any])
    assert_type(reject.status, int)
    assert_type(reject.reason, str)
    assert_type(reject.headers, tuple[tuple[str, str], ...])
    assert_type(reject.body, bytes)
    assert_type(reject.why, str)
    assert_type(refuse.code, int)
    assert_type(refuse.reason, str)
