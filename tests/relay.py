"""A client, a SIP server and the policy's diary, for the tests that run the whole proxy as its users do.

Messages are made by hand, byte for byte; the proxy is a process of its own. What is right is for the tests to say.
"""

from __future__ import annotations

import json
import re
import socket
import ssl
from pathlib import Path
from typing import Any

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

HOST = "127.0.0.1"

#: Put before the text of a policy: note(...) appends one JSON line to the diary.
DIARY = """
import json, os
def note(**entry):
    with open(os.path.join(os.path.dirname(__file__), "diary"), "a") as file:
        file.write(json.dumps(entry) + "\\n")
"""

#: A policy that accepts the user named in the query and notes how each connection ends.
NAMED = (
    DIARY
    + """
def on_handshake(handshake):
    return handshake.accept(user=handshake.query.get("user", ""))
def on_close(connection, terminator, code, reason):
    note(user=connection["user"], terminator=terminator, code=code, reason=reason)
"""
)


def diary(directory: Path) -> list[dict[str, Any]]:
    """What the policy has noted so far."""
    file = directory / "diary"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def request(
    method: str,
    number: int = 1,
    *,
    user: str = "alice",
    to: str = "bob",
    uri: str | None = None,
    call_id: str = "c1",
    headers: str = "",
    to_tag: str = "",
    branch: str | None = None,
    cseq: int = 1,
    body: str = "",
) -> str:
    """A request of a browser client; `headers` are whole lines."""
    target = uri or ("sip:example.com" if method == "REGISTER" else f"sip:{to}@example.com")
    callee = user if method == "REGISTER" else to
    return (
        f"{method} {target} SIP/2.0\r\n"
        f"Via: SIP/2.0/WS {user}.invalid;branch={branch or f'z9hG4bK{number}'}\r\n"
        "Max-Forwards: 70\r\n"
        f"From: <sip:{user}@example.com>;tag=f{user}\r\n"
        f"To: <sip:{callee}@example.com>{f';tag={to_tag}' if to_tag else ''}\r\n"
        f"Call-ID: {call_id}\r\n"
        f"CSeq: {cseq} {method}\r\n"
        f"{headers}"
        f"Content-Length: {len(body.encode())}\r\n\r\n{body}"
    )


def contact(user: str = "alice") -> str:
    """The Contact line of a browser client that supports outbound."""
    return (
        f"Contact: <sip:{user}@{user}.invalid;transport=ws>;reg-id=1;"
        f'+sip.instance="<urn:uuid:{user}>"\r\nSupported: path,outbound\r\n'
    )


def lines(message: str | bytes, name: str) -> list[str]:
    """The values of all header lines of this name."""
    text = message.decode("utf-8", "surrogateescape") if isinstance(message, bytes) else message
    head = text.partition("\r\n\r\n")[0]
    return [value for value in re.findall(rf"(?mi)^{re.escape(name)}[ \t]*:[ \t]*(.*?)\r?$", head)]


def status(message: str | bytes) -> int:
    """The status code of a response."""
    return int(message.split()[1])


def answer(message: str | bytes, code: int, reason: str = "OK", *, tag: str = "u1", headers: str = "") -> str:
    """The response of a server to `message`: all its Vias and Record-Routes, From, To with a tag, Call-ID, CSeq."""
    kept = [f"Via: {value}\r\n" for value in lines(message, "Via")]
    kept += [f"Record-Route: {value}\r\n" for value in lines(message, "Record-Route")]
    [to] = lines(message, "To")
    for name in ("From", "Call-ID", "CSeq"):
        kept += [f"{name}: {value}\r\n" for value in lines(message, name)]
    kept.append(f"To: {to}{'' if ';tag=' in to else f';tag={tag}'}\r\n")
    return f"SIP/2.0 {code} {reason}\r\n{''.join(kept)}{headers}Content-Length: 0\r\n\r\n"


class Client:
    """One WebSocket client, by the independent library `websockets`."""

    def __init__(self, url: str, user: str = "alice", *, ca: Path | None = None, **options: Any) -> None:
        context = ssl.create_default_context(cafile=str(ca)) if ca else None
        self.user = user
        self._dialled = connect(
            f"{url}/?user={user}", subprotocols=["sip"], ssl=context, compression=None, ping_interval=None, **options
        )
        self.socket: ClientConnection = self._dialled.__enter__()

    def send(self, message: str | bytes) -> None:
        self.socket.send(message)

    def receive(self, timeout: float = 5.0) -> str:
        """The next message; TimeoutError without one."""
        message = self.socket.recv(timeout)
        assert isinstance(message, str)
        return message

    def silent(self, seconds: float = 0.3) -> bool:
        """True if nothing comes for a while."""
        try:
            self.socket.recv(seconds)
        except TimeoutError:
            return True
        return False

    def closed(self, timeout: float = 5.0) -> tuple[int, str]:
        """Wait for the close frame of the server: its code and reason."""
        try:
            while True:
                self.socket.recv(timeout)
        except ConnectionClosed as error:
            assert error.rcvd is not None
            return error.rcvd.code, error.rcvd.reason

    def close(self) -> None:
        self.socket.close()

    @property
    def address(self) -> tuple[str, int]:
        host, port = self.socket.local_address[:2]
        return host, port


class UdpServer:
    """A SIP server that is one UDP socket."""

    def __init__(self, host: str = HOST, port: int = 0) -> None:
        self.socket = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        self.socket.bind((host, port))
        self.port: int = self.socket.getsockname()[1]
        self.uri = f"sip:{host}:{self.port};transport=udp"
        self.last: Any = None

    def receive(self, timeout: float = 5.0) -> str:
        self.socket.settimeout(timeout)
        data, self.last = self.socket.recvfrom(65536)
        return data.decode("utf-8", "surrogateescape")

    def silent(self, seconds: float = 0.3) -> bool:
        try:
            self.receive(seconds)
        except TimeoutError:
            return True
        return False

    def send(self, message: str | bytes, to: tuple[str, int] | None = None) -> None:
        data = message.encode("utf-8", "surrogateescape") if isinstance(message, str) else message
        self.socket.sendto(data, to or self.last)

    def close(self) -> None:
        self.socket.close()


class TcpServer:
    """A SIP server that listens on TCP; one connection at a time."""

    def __init__(self, port: int = 0) -> None:
        self.listener = socket.create_server((HOST, port))
        self.port: int = self.listener.getsockname()[1]
        self.uri = f"sip:{HOST}:{self.port};transport=tcp"
        self.socket: socket.socket | None = None
        self.buffer = b""
        self.keepalives = 0

    def accept(self, timeout: float = 5.0) -> None:
        self.listener.settimeout(timeout)
        self.socket, _ = self.listener.accept()
        self.buffer = b""

    def receive(self, timeout: float = 5.0) -> str:
        """One message, framed by Content-Length."""
        if self.socket is None:
            self.accept(timeout)
        assert self.socket is not None
        self.socket.settimeout(timeout)
        while True:
            while self.buffer.startswith(b"\r\n"):
                self.buffer = self.buffer[2:]
                self.keepalives += 1
            head, found, rest = self.buffer.partition(b"\r\n\r\n")
            if found:
                match = re.search(rb"(?mi)^(?:content-length|l)[ \t]*:[ \t]*(\d+)", head)
                assert match, head
                length = int(match[1])
                if len(rest) >= length:
                    self.buffer = rest[length:]
                    return (head + found + rest[:length]).decode("utf-8", "surrogateescape")
            data = self.socket.recv(65536)
            if not data:
                raise EOFError
            self.buffer += data

    def send(self, message: str | bytes) -> None:
        assert self.socket is not None
        self.socket.sendall(message.encode("utf-8", "surrogateescape") if isinstance(message, str) else message)

    def hang_up(self) -> None:
        if self.socket is not None:
            self.socket.close()
            self.socket = None

    def close(self) -> None:
        self.hang_up()
        self.listener.close()
