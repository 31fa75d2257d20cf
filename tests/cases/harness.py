"""The proxy of a public case, its clients and its SIP server, all of them down to the byte.

cases.json holds the inputs; `data` decodes them as its notation says. A `Setup` is `fastws serve` as a process of its
own on free ports; a `Client` writes and reads WebSocket frames itself, for a library would not send what is wrong; UP
is a socket that plays the SIP server. What the right outcome is stands in the tests, not here.
"""

from __future__ import annotations

import json
import os
import re
import select
import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..conftest import Certificate, wait_for
from ..interop.peers import Edge
from ..relay import DIARY
from ..relay import diary as read_diary

HOST = "127.0.0.1"
NOTHING = 0.3  # seconds in which nothing has to come, where nothing else tells that it will not

CASES: dict[str, dict[str, Any]] = {
    case["id"]: case for case in json.loads((Path(__file__).parent / "cases.json").read_text(encoding="utf-8"))
}

#: The handshake that every case starts from, and the answer to its key (RFC 6455 1.3).
H0 = (
    b"GET / HTTP/1.1\r\n"
    b"Host: edge.example.com:8080\r\n"
    b"Upgrade: websocket\r\n"
    b"Connection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    b"Sec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Protocol: sip\r\n"
    b"Origin: https://app.example.com\r\n"
    b"\r\n"
)
ACCEPT_KEY = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
MASK = bytes.fromhex("37fa213d")
CONT, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10

# -- policies ----------------------------------------------------------------------------------------------------------

ACCEPT = """
def on_handshake(handshake):
    return handshake.accept()
"""

ORIGIN = (
    DIARY
    + """
def on_handshake(handshake):
    origin = handshake.headers.get("Origin")
    note(moment="handshake", origin=origin)
    if origin != "https://app.example.com":
        return handshake.reject(403)
    return handshake.accept()
"""
)

#: Notes each of the three calls, and everything of a request that a policy may look at.
_NOTES = (
    DIARY
    + """
def text(uri):
    if uri is None:
        return None
    return {"uri": str(uri), "scheme": uri.scheme, "user": uri.user, "host": uri.host, "port": uri.port,
            "parameters": dict(uri.parameters)}
def look(get):
    try:
        return get()
    except Exception as error:
        return {"error": type(error).__name__}
def write_down(request, connection):
    note(moment="request", method=request.method, uri=look(lambda: text(request.uri)),
         from_uri=look(lambda: text(request.from_uri)), to_uri=look(lambda: text(request.to_uri)),
         contact_uri=look(lambda: text(request.contact_uri)), call_id=look(lambda: request.call_id),
         headers=look(lambda: [list(one) for one in request.headers.items()]),
         body=look(lambda: request.body.decode("latin-1")))
def on_handshake(handshake):
    note(moment="handshake", source=handshake.source, query=dict(handshake.query))
    if handshake.query.get("refuse"):
        return handshake.reject(403)
    return handshake.accept(user="alice")
def on_close(connection, terminator, code, reason):
    note(moment="close", source=connection.source, user=connection["user"], terminator=terminator, code=code,
         reason=reason)
"""
)

RECORD = (
    _NOTES
    + """
def on_request(request, connection):
    write_down(request, connection)
"""
)

IDENT = (
    _NOTES
    + """
def on_request(request, connection):
    write_down(request, connection)
    uri = request.from_uri
    if uri is None or uri.user != connection["user"]:
        return request.reject(403)
"""
)

#: The identity check in compiled code.
IDENTITY = DIARY + (
    """
IDENTITY = "user"
def on_handshake(handshake):
    return handshake.accept(user=handshake.query.get("user", "alice"))
def on_close(connection, terminator, code, reason):
    note(moment="close", source=connection.source, user=connection["user"], terminator=terminator, code=code,
         reason=reason)
"""
)

# -- inputs ------------------------------------------------------------------------------------------------------------

_PLAIN = {"r": b"\r", "n": b"\n", "t": b"\t", "0": b"\0", "\\": b"\\"}
_REPEAT = re.compile(r"\*(\d+)\}")


def decode(text: str) -> bytes:
    r"""The bytes of a block: `\r \n \t \0 \xNN \\`, `\{x*N}` for x N times, all else as it is; no line ends."""
    out = bytearray()
    at = 0
    while at < len(text):
        if text[at] == "\n":
            at += 1
        elif text[at] != "\\":
            out += text[at].encode()
            at += 1
        elif text[at + 1] == "x":
            out += bytes.fromhex(text[at + 2 : at + 4])
            at += 4
        elif text[at + 1] == "{":
            end = _REPEAT.search(text, at)
            assert end is not None, text
            out += decode(text[at + 2 : end.start()]) * int(end[1])
            at = end.end()
        else:
            out += _PLAIN[text[at + 1]]
            at += 2
    return bytes(out)


def data(case: str, number: int = 0) -> bytes:
    """The bytes of one step of a case, `${...}` left in."""
    step = CASES[case]["steps"][number]
    if step["kind"] == "hex":
        return bytes.fromhex(step["data"])
    assert step["kind"] == "bytes", step["label"]
    return decode(step["data"])


def letters(case: str, kind: str = "bytes") -> list[tuple[str, int]]:
    """(letter, number of the step) of each step that is labelled `(a)`, `(b)` and so on."""
    found = []
    for number, step in enumerate(CASES[case]["steps"]):
        match = re.match(r"\(([a-z])\)", step["label"])
        if match and step["kind"] == kind and "carried in" not in step["label"]:
            found.append((match[1], number))
    return found


# -- messages ----------------------------------------------------------------------------------------------------------

#: RFC 3261 7.3.3 and the IANA registry.
COMPACT = {
    "v": "via", "f": "from", "t": "to", "i": "call-id", "m": "contact", "l": "content-length", "c": "content-type",
    "k": "supported", "s": "subject", "e": "content-encoding", "o": "event", "r": "refer-to", "u": "allow-events",
}  # fmt: skip


def raw_lines(message: bytes) -> list[bytes]:
    """The header lines as they are, folds and CRLF included."""
    head = message.partition(b"\r\n\r\n")[0].partition(b"\r\n")[2]
    return [line + b"\r\n" for line in re.split(rb"\r\n(?![ \t])", head) if line]


def name_of(line: bytes) -> str:
    """The long name of a header line, in lower case."""
    name = line.partition(b":")[0].strip(b" \t").decode("latin-1").lower()
    return COMPACT.get(name, name)


def values(message: bytes, name: str) -> list[str]:
    """The values of all header lines of this long name in order, unfolded, not split at commas."""
    found = []
    for line in raw_lines(message):
        if name_of(line) == name.lower():
            text = re.sub(rb"\r\n[ \t]+", b" ", line.partition(b":")[2].strip(b"\r\n"))
            found.append(text.decode("utf-8", "surrogateescape").strip(" \t"))
    return found


def value(message: bytes, name: str) -> str:
    """The value of a header that stands there exactly once."""
    found = values(message, name)
    assert len(found) == 1, (name, message)
    return found[0]


def elements(message: bytes, name: str) -> list[str]:
    """The values of a header that may be a list, split at the commas outside quotes and angle brackets."""
    found = []
    for line in values(message, name):
        found += [part.strip() for part in re.findall(r'(?:"(?:\\.|[^"\\])*"|<[^>]*>|[^,"<])+', line)]
    return found


def vias(message: bytes) -> list[str]:
    return elements(message, "via")


def branch(message: bytes) -> str:
    """The branch of the topmost Via."""
    match = re.search(r";\s*branch\s*=\s*([^;,\s]+)", vias(message)[0])
    assert match is not None, message
    return match[1]


def start_line(message: bytes) -> bytes:
    return message.partition(b"\r\n")[0]


def method(message: bytes) -> str:
    return start_line(message).partition(b" ")[0].decode("latin-1")


def request_uri(message: bytes) -> bytes:
    return start_line(message).split(b" ")[1]


def status(message: bytes) -> int:
    """The status code of a response."""
    first = start_line(message)
    assert first.startswith(b"SIP/2.0 "), first
    return int(first[8:11])


def body(message: bytes) -> bytes:
    return message.partition(b"\r\n\r\n")[2]


def fill(template: bytes, received: bytes, **more: str | bytes) -> bytes:
    """A response of UP or a client: `${...}` taken from the request that it answers, or from `more` by its name."""

    def put(match: re.Match[bytes]) -> bytes:
        name = match[1].decode()
        if name in more:
            given = more[name]
            return given.encode() if isinstance(given, str) else given
        if name.endswith("*"):
            return b"".join(line for line in raw_lines(received) if name_of(line) == name[:-1].lower())
        if re.fullmatch(r"[\w-]+\.\d", name):
            return elements(received, name[:-2])[int(name[-1]) - 1].encode("utf-8", "surrogateescape")
        return value(received, name).encode("utf-8", "surrogateescape")

    return re.sub(rb"\$\{([^}]+)\}", put, template)


ANSWER = (
    b"SIP/2.0 %s\r\n${Via*}${Record-Route*}From: ${From}\r\nTo: ${To}%s\r\nCall-ID: ${Call-ID}\r\nCSeq: ${CSeq}\r\n"
    b"%sContent-Length: 0\r\n\r\n"
)


def answer(received: bytes, line: str = "200 OK", headers: bytes = b"") -> bytes:
    """The response of a server to `received`; `headers` are whole lines."""
    tag = b"" if ";tag=" in value(received, "to") else b";tag=u1"
    return fill(ANSWER % (line.encode(), tag, headers), received)


def assert_forwarded(sent: bytes, received: bytes, *, without: tuple[str, ...] = (), unfold: bool = False) -> None:
    """`received` is `sent` with what a proxy changes and nothing else: a Via of its own on top, Max-Forwards one less,
    Record-Route or Path, and a Content-Length or Supported where there was none. `without` names the headers whose
    lines have to be gone; with `unfold`, a fold may have become one blank."""

    def plain(line: bytes) -> bytes:
        return re.sub(rb"[ \t]*\r\n[ \t]+", b" ", line) if unfold else line

    expected = []
    for line in raw_lines(sent):
        name = name_of(line)
        if name in without:
            continue
        if name == "max-forwards":
            hops = int(values(line.join([b"X\r\n", b"\r\n"]), name)[0])
            line = re.sub(rb"\d+(?=\s*$)", str(hops - 1).encode(), line)
        expected.append(plain(line))
    names = [name_of(line) for line in raw_lines(sent)]
    left = [plain(line) for line in raw_lines(received)]
    assert name_of(left[0]) == "via" and b"branch=z9hG4bK" in left[0], left[0]
    del left[0]
    ours = ["record-route", "record-route", "path"]
    ours += [name for name in ("max-forwards", "content-length", "supported") if name not in names]
    kept = []
    position = 0
    for line in left:
        # What is not the next line of the original has to be one of ours, each at most once (Record-Route: twice).
        if position < len(expected) and line == expected[position]:
            position += 1
            kept.append(line)
        elif name_of(line) in ours:
            ours.remove(name_of(line))
        else:
            kept.append(line)
    assert kept == expected
    assert request_uri(received) == request_uri(sent) and method(received) == method(sent)
    assert start_line(received).endswith(b" SIP/2.0")
    length = values(sent, "content-length")
    whole = body(sent)
    assert body(received) == (whole[: int(length[0])] if length else whole)
    if values(received, "content-length"):
        assert int(value(received, "content-length")) == len(body(received))


# -- the client --------------------------------------------------------------------------------------------------------


def masked(payload: bytes) -> bytes:
    key = (MASK * (len(payload) // 4 + 1))[: len(payload)]
    return (int.from_bytes(payload, "big") ^ int.from_bytes(key, "big")).to_bytes(len(payload), "big")


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True, rsv: int = 0) -> bytes:
    """A client's frame, masked with the key of the cases."""
    first = (0x80 if fin else 0) | rsv << 4 | opcode
    if len(payload) < 126:
        head = struct.pack("!BB", first, 0x80 | len(payload))
    elif len(payload) < 65536:
        head = struct.pack("!BBH", first, 0xFE, len(payload))
    else:
        head = struct.pack("!BBQ", first, 0xFF, len(payload))
    return head + MASK + masked(payload)


@dataclass(frozen=True)
class Frame:
    """A frame from the proxy; that it is whole, unmasked and without RSV bits was checked when it was read."""

    opcode: int
    payload: bytes

    @property
    def code(self) -> int:
        """Of a close frame; 1005 without one (RFC 6455 7.1.5)."""
        assert self.opcode == CLOSE, self
        return int.from_bytes(self.payload[:2], "big") if self.payload else 1005


@dataclass(frozen=True)
class Answer:
    """The head of an HTTP answer."""

    status: int
    headers: list[tuple[str, str]]

    def get(self, name: str) -> list[str]:
        return [text for key, text in self.headers if key.lower() == name.lower()]


class Client:
    """One raw WebSocket client. `head` None: connected (and the TLS handshake done), nothing sent yet."""

    def __init__(
        self,
        port: int,
        *,
        head: bytes | None = H0,
        tls: Certificate | None = None,
        source: str = HOST,
        receive_buffer: int = 0,
        timeout: float = 5.0,
    ) -> None:
        raw = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        raw.settimeout(timeout)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if receive_buffer:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket: socket.socket = raw
        self.buffer = b""
        self.answer: Answer | None = None
        self._numbers = iter(range(1, 1 << 30))
        try:
            if source != HOST:
                raw.bind((source, 0))
            raw.connect((HOST, port))
            if tls is not None:
                context = ssl.create_default_context(cafile=str(tls.cert))
                self.socket = context.wrap_socket(raw, server_hostname="localhost")
            self.address: tuple[str, int] = self.socket.getsockname()[:2]
            if head is not None:
                self.send(head)
                self.answer = self.http()
                assert self.answer.status == 101, self.answer
        except BaseException:
            self.socket.close()
            raise

    # writing

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def drip(self, data: bytes, pause: float = 0.001) -> None:
        """Every byte in a send() of its own."""
        for byte in data:
            self.socket.sendall(bytes([byte]))
            time.sleep(pause)

    def frame(self, opcode: int, payload: bytes = b"", *, fin: bool = True, rsv: int = 0) -> None:
        self.send(frame(opcode, payload, fin=fin, rsv=rsv))

    def text(self, payload: bytes) -> None:
        self.frame(TEXT, payload)

    def binary(self, payload: bytes) -> None:
        self.frame(BINARY, payload)

    # reading

    def _more(self, timeout: float) -> None:
        self.socket.settimeout(timeout)
        try:
            got = self.socket.recv(1 << 18)
        except ssl.SSLEOFError:
            got = b""
        if not got:
            raise EOFError("the proxy closed the connection")
        self.buffer += got

    def _take(self, length: int, deadline: float) -> bytes:
        while len(self.buffer) < length:
            self._more(max(0.001, deadline - time.monotonic()))
        taken, self.buffer = self.buffer[:length], self.buffer[length:]
        return taken

    def http(self, timeout: float = 5.0) -> Answer:
        """The head of the answer to a GET."""
        deadline = time.monotonic() + timeout
        while b"\r\n\r\n" not in self.buffer:
            self._more(max(0.001, deadline - time.monotonic()))
        head, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        assert first.startswith("HTTP/1.1 "), first
        pairs = [line.partition(":")[::2] for line in lines]
        return Answer(int(first.split(" ")[1]), [(name, text.strip()) for name, text in pairs])

    def receive(self, timeout: float = 5.0) -> Frame:
        """The next frame. TimeoutError without one, EOFError at the end of the connection."""
        deadline = time.monotonic() + timeout
        while len(self.buffer) < 2:
            self._more(max(0.001, deadline - time.monotonic()))
        first, second = self.buffer[0], self.buffer[1]
        assert first & 0x70 == 0, "the proxy set an RSV bit"
        assert second & 0x80 == 0, "the proxy masked a frame"
        assert first & 0x80, "the proxy fragments nothing"
        length, header = second, 2
        if second in (126, 127):
            header = 4 if second == 126 else 10
            while len(self.buffer) < header:
                self._more(max(0.001, deadline - time.monotonic()))
            length = int.from_bytes(self.buffer[2:header], "big")
        taken = self._take(header + length, deadline)
        got = Frame(first & 0x0F, taken[header:])
        assert got.opcode in (TEXT, BINARY, CLOSE, PING, PONG), got
        return got

    def message(self, timeout: float = 5.0) -> bytes:
        """The payload of the next data frame; a ping is answered meanwhile."""
        deadline = time.monotonic() + timeout
        while True:
            got = self.receive(max(0.001, deadline - time.monotonic()))
            if got.opcode == PING:
                self.frame(PONG, got.payload)
                continue
            assert got.opcode in (TEXT, BINARY), got
            return got.payload

    def response(self, code: int | tuple[int, ...], timeout: float = 5.0) -> bytes:
        """The next message, which has to be a response with (one of) this status."""
        got = self.message(timeout)
        allowed = (code,) if isinstance(code, int) else code
        assert status(got) in allowed, got
        return got

    def final(self, code: int | tuple[int, ...], timeout: float = 5.0) -> bytes:
        """The same, a 100 of the proxy before it left out."""
        while True:
            got = self.message(timeout)
            if status(got) == 100 and (code != 100):
                continue
            allowed = (code,) if isinstance(code, int) else code
            assert status(got) in allowed, got
            return got

    def closed(self, timeout: float = 5.0) -> int:
        """The code of the close frame, which has to be the next frame, and after which nothing may come."""
        code = self.receive(timeout).code
        assert not self.buffer, self.buffer
        return code

    def ended(self, timeout: float = 5.0) -> bytes:
        """Wait for the end of the TCP connection; what still came before it."""
        deadline = time.monotonic() + timeout
        with suppress(EOFError, ConnectionResetError):
            while True:
                self._more(max(0.001, deadline - time.monotonic()))
        return self.buffer

    def silent(self, seconds: float = NOTHING) -> bool:
        """True if nothing comes for a while."""
        try:
            self._more(seconds)
        except TimeoutError:
            return not self.buffer
        return False

    def quiet(self) -> None:
        """Nothing has come: the next frame is the answer to a ping that is sent now. Whatever the proxy had to say
        about earlier frames would stand before it."""
        mark = b"quiet-%d" % next(self._numbers)
        self.frame(PING, mark)
        got = self.receive()
        assert got == Frame(PONG, mark), got

    # the end

    def reset(self) -> None:
        """RST instead of FIN."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def fin(self) -> None:
        """FIN, and over TLS no close_notify before it."""
        self.socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self.socket.close()


# -- the SIP server ----------------------------------------------------------------------------------------------------


class Up:
    """What UDP and TCP have in common. `receive` leaves repetitions out: what has a branch that was seen before."""

    port: int
    uri: str

    def __init__(self) -> None:
        self._seen: set[str] = set()
        self.open_requests: dict[str, bytes] = {}
        self.edge_port = 0

    def receive_any(self, timeout: float = 5.0) -> bytes:
        raise NotImplementedError

    def send(self, message: bytes) -> None:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

    def receive(self, timeout: float = 5.0, *, repeats: bool = False) -> bytes:
        deadline = time.monotonic() + timeout
        while True:
            got = self.receive_any(max(0.001, deadline - time.monotonic()))
            if start_line(got).startswith(b"SIP/2.0 "):
                return got
            number = branch(got)
            new = number not in self._seen
            self._seen.add(number)
            if new and method(got) != "ACK":
                self.open_requests[number] = got
            if new or repeats:
                return got

    def request(self, name: str, timeout: float = 5.0) -> bytes:
        """The next message, which has to be a request with this method."""
        got = self.receive(timeout)
        assert method(got) == name, got
        return got

    def response(self, code: int | tuple[int, ...], timeout: float = 5.0) -> bytes:
        """The next message but a 100, which has to be a response with this status."""
        while True:
            got = self.receive(timeout)
            if status(got) == 100 and code != 100:
                continue
            allowed = (code,) if isinstance(code, int) else code
            assert status(got) in allowed, got
            return got

    def answer(self, received: bytes, line: str = "200 OK", headers: bytes = b"") -> None:
        self.reply(received, answer(received, line, headers))

    def reply(self, received: bytes, response: bytes) -> None:
        """Send a response that was made for `received`."""
        if status(response) >= 200:
            self.open_requests.pop(branch(received), None)
        self.send(response)

    def silent(self, seconds: float = NOTHING) -> bool:
        try:
            self.receive(seconds)
        except TimeoutError:
            return True
        return False

    def finish(self) -> None:
        """Answer what is still open, so that nothing of it is repeated into the next test."""
        for received in list(self.open_requests.values()):
            with suppress(OSError, AssertionError):
                self.send(answer(received, "486 Busy Here"))
        self.open_requests.clear()


class UdpUp(Up):
    """UP on UDP. It sends to the SIP side of the proxy, as a server that sends from its own port does."""

    def __init__(self, port: int = 0) -> None:
        super().__init__()
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        self.socket.bind((HOST, port))
        self.port = self.socket.getsockname()[1]
        self.uri = f"sip:{HOST}:{self.port};transport=udp"

    def receive_any(self, timeout: float = 5.0) -> bytes:
        self.socket.settimeout(timeout)
        return self.socket.recv(65536)

    def send(self, message: bytes) -> None:
        self.socket.sendto(message, (HOST, self.edge_port))

    def close(self) -> None:
        self.socket.close()


class TcpUp(Up):
    """UP on TCP, framing by Content-Length. `connection` is where the last message came from, or the newest."""

    def __init__(self) -> None:
        super().__init__()
        self.listener = socket.create_server((HOST, 0))
        self.port = self.listener.getsockname()[1]
        self.uri = f"sip:{HOST}:{self.port};transport=tcp"
        self.buffers: dict[socket.socket, bytes] = {}
        self.connection: socket.socket | None = None
        self.accepted = 0

    def _whole(self) -> bytes | None:
        for one, held in self.buffers.items():
            held = held.lstrip(b"\r\n")
            head, found, rest = held.partition(b"\r\n\r\n")
            if not found:
                continue
            lengths = values(head + b"\r\n\r\n", "content-length")
            assert len(lengths) == 1 and lengths[0].isdigit(), head  # RFC 3261 18.3: there must be one on a stream
            length = int(lengths[0])
            if len(rest) >= length:
                self.buffers[one] = rest[length:]
                self.connection = one
                return head + found + rest[:length]
        return None

    def _wait(self, timeout: float) -> None:
        ready, _, _ = select.select([self.listener, *self.buffers], [], [], timeout)
        if not ready:
            raise TimeoutError
        for one in ready:
            if one is self.listener:
                new, _ = self.listener.accept()
                new.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self.buffers[new] = b""
                self.connection = new
                self.accepted += 1
                continue
            try:
                got = one.recv(1 << 18)
            except OSError:
                got = b""
            if got:
                self.buffers[one] += got
            else:
                self.drop(one)

    def receive_any(self, timeout: float = 5.0) -> bytes:
        deadline = time.monotonic() + timeout
        while True:
            message = self._whole()
            if message is not None:
                return message
            self._wait(max(0.001, deadline - time.monotonic()))

    def drop(self, one: socket.socket) -> None:
        del self.buffers[one]
        one.close()
        if self.connection is one:
            self.connection = next(iter(self.buffers), None)

    def wait_closed(self, one: socket.socket, timeout: float = 5.0) -> None:
        """Until the proxy has closed this connection."""
        deadline = time.monotonic() + timeout
        while one in self.buffers:
            self._wait(max(0.001, deadline - time.monotonic()))

    def send(self, message: bytes) -> None:
        if self.connection is None:
            wait_for(self._connected, what="a connection of the proxy")
        assert self.connection is not None
        self.connection.settimeout(10)
        self.connection.sendall(message)

    def _connected(self) -> bool:
        with suppress(TimeoutError):
            self._wait(0.01)
        return self.connection is not None

    def close(self) -> None:
        for one in list(self.buffers):
            self.drop(one)
        self.listener.close()


# -- the proxy ---------------------------------------------------------------------------------------------------------


class LoudEdge(Edge):
    """An edge whose policy raises on purpose, so that a traceback in its log is right."""

    def finish(self) -> None:
        ended = self.terminate()
        assert ended == 0, f"fastws ended with status {ended}\n{self.log()}"


class Setup:
    """One running proxy with its UP (`upstream` "udp" or "tcp"; "" for the embedded registrar)."""

    def __init__(
        self,
        directory: Path,
        *,
        upstream: str = "udp",
        policy: str | None = None,
        config: str | None = None,
        tls: Certificate | None = None,
        loud: bool = False,
    ) -> None:
        self.directory = directory
        self.tls = tls
        self.loud = loud
        self.clients: list[Client] = []
        self._up: Up | None = {"udp": UdpUp, "tcp": TcpUp}[upstream]() if upstream else None
        kind = LoudEdge if loud else Edge
        self.edge = kind(
            directory, upstream=[self._up.uri] if self._up else None, policy=policy, config=config, tls=tls
        )
        if self._up is not None:
            self._up.edge_port = self.edge.sip_port
        self._numbers = iter(range(1, 1 << 30))
        self.marks = iter(range(1, 1 << 30))

    @property
    def up(self) -> Up:
        assert self._up is not None
        return self._up

    @property
    def tcp(self) -> TcpUp:
        assert isinstance(self._up, TcpUp)
        return self._up

    def client(self, **options: Any) -> Client:
        made = Client(self.edge.port, tls=self.tls, **options)
        self.clients.append(made)
        return made

    def here(self, message: bytes) -> bytes:
        """The addresses of the cases turned into those of this setup."""
        for old, new in ((5060, self.edge.sip_port), (8080, self.edge.port), (5070, self._up.port if self._up else 0)):
            message = message.replace(b"127.0.0.1:%d" % old, b"127.0.0.1:%d" % new)
        return message

    def ask(self, name: str, *, call_id: str | None = None) -> bytes:
        """A good request of a good client; the transaction has a number of its own."""
        number = next(self._numbers)
        uri = f"sip:{HOST}:{self.edge.port};transport=ws" if self._up is None else "sip:bob@example.com"
        return (
            f"{name} {uri} SIP/2.0\r\nVia: SIP/2.0/WS good.invalid;branch=z9hG4bKgood{number}\r\n"
            f"Max-Forwards: 70\r\nFrom: <sip:alice@example.com>;tag=f1\r\nTo: <sip:bob@example.com>\r\n"
            f"Call-ID: {call_id or f'good-{number}'}\r\nCSeq: 1 {name}\r\nContent-Length: 0\r\n\r\n"
        ).encode()

    def quiet(self) -> None:
        """UP has received nothing: what comes next is what is sent now, on a connection that is opened for it. Whatever
        the proxy had sent before would come first."""
        self.check(strict=True)

    def check(self, strict: bool = False) -> None:
        """The proxy lives, has logged no traceback and serves a new client."""
        assert self.edge.process.poll() is None, self.edge.log()
        assert self.loud or "Traceback" not in self.edge.log(), self.edge.log()
        good = Client(self.edge.port, tls=self.tls)
        try:
            asked = self.ask("OPTIONS")
            good.text(asked)
            if self._up is not None:
                while True:
                    received = self.up.receive()
                    if value(asked, "call-id") in values(received, "call-id"):
                        break
                    assert not strict, received
                self.up.answer(received)
            assert status(good.message()) == 200
        finally:
            good.close()

    def register(self, client: Client, name: str = "c1", *, instance: int = 1, number: int = 1) -> str:
        """Register alice over this client with UP: the Path value that UP received."""
        client.text(register_message(name, instance=instance, cseq=number))
        received = self.up.request("REGISTER")
        self.up.answer(received, headers=b"Contact: <sip:alice@c1.invalid;transport=ws>;expires=600\r\n")
        client.final(200)
        return elements(received, "path")[0]

    def notes(self, moment: str = "") -> list[dict[str, Any]]:
        """What the policy has noted, of one moment."""
        return [entry for entry in read_diary(self.directory) if not moment or entry.get("moment") == moment]

    def noted(self, call_id: str) -> dict[str, Any]:
        """The last request with this Call-ID that the policy was asked about."""
        return [entry for entry in self.notes("request") if entry["call_id"] == call_id][-1]

    def closes(self, client: Client) -> list[dict[str, Any]]:
        """The on_close calls for this client."""
        return [entry for entry in self.notes("close") if entry["source"] == list(client.address)]

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.edge.process.pid}/fd"))

    def memory(self) -> int:
        """Resident memory in bytes."""
        status_file = Path(f"/proc/{self.edge.process.pid}/status").read_text()
        match = re.search(r"VmRSS:\s+(\d+) kB", status_file)
        assert match is not None
        return int(match[1]) * 1024

    def grown(self, before: int, limit: int) -> bool:
        """Whether the memory has grown by `limit` bytes. Under a sanitizer, which keeps what is freed, it never has."""
        return "asan" not in os.environ.get("LD_PRELOAD", "") and self.memory() - before >= limit

    def assert_grown(self, before: int, limit: int) -> None:
        """The memory has grown by less than `limit` bytes."""
        assert not self.grown(before, limit)

    def cpu(self) -> float:
        """Seconds of CPU time so far; counted in ticks of 10 ms."""
        fields = Path(f"/proc/{self.edge.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def end_test(self) -> None:
        """Close the clients of a test and end what it left open."""
        for client in self.clients:
            client.close()
        self.clients.clear()
        if self._up is not None:
            self._up.finish()

    def stop(self) -> None:
        try:
            with self.edge:
                pass
        finally:
            if self._up is not None:
                self._up.close()


class Setups:
    """The proxies of one test module, each started when the first test asks for it."""

    def __init__(self, new_directory: Callable[[], Path], certificate: Certificate) -> None:
        self._new_directory = new_directory
        self._certificate = certificate
        self._made: dict[tuple[object, ...], Setup] = {}

    def get(
        self,
        upstream: str = "udp",
        policy: str | None = None,
        config: str | None = None,
        *,
        wss: bool = False,
        loud: bool = False,
        own: str = "",
    ) -> Setup:
        """The setup of these parts; `own` names one that is not shared with other tests."""
        key = (upstream, policy, config, wss, loud, own)
        if key not in self._made:
            self._made[key] = Setup(
                self._new_directory(),
                upstream=upstream,
                policy=policy,
                config=config,
                tls=self._certificate if wss else None,
                loud=loud,
            )
        return self._made[key]

    def stop(self) -> Iterator[BaseException]:
        """End all of them; what was wrong with one does not keep the others alive."""
        for setup in self._made.values():
            try:
                setup.stop()
            except (AssertionError, Exception) as error:
                yield error


def register_message(name: str = "c1", *, instance: int = 1, cseq: int = 1, reg_id: int = 1) -> bytes:
    """A REGISTER of alice as the cases have it."""
    return (
        "REGISTER sip:example.com SIP/2.0\r\n"
        f"Via: SIP/2.0/WS {name}.invalid;branch=z9hG4bKreg{name}{cseq}\r\n"
        "Max-Forwards: 70\r\n"
        "From: <sip:alice@example.com>;tag=f1\r\nTo: <sip:alice@example.com>\r\n"
        f"Call-ID: reg-{name}\r\nCSeq: {cseq} REGISTER\r\n"
        f"Contact: <sip:alice@{name}.invalid;transport=ws>;reg-id={reg_id};"
        f'+sip.instance="<urn:uuid:00000000-0000-4000-8000-00000000000{instance}>";expires=600\r\n'
        "Supported: path, gruu, outbound\r\nContent-Length: 0\r\n\r\n"
    ).encode()


def treat(setup: Setup, client: Client, message: bytes, *, opcode: int = TEXT, may_close: int = 0) -> int | bytes:
    """What becomes of a request: the status with which the proxy itself refuses it (UP has received nothing, the
    connection lives on), or the request as UP received it, once, and answered. With `may_close`, the refusal may be
    followed by a close frame with this code."""
    mark = b"treat-%d" % next(setup.marks)
    client.send(frame(opcode, message) + frame(PING, mark))
    refused = 0
    while True:
        got = client.receive()
        if got.opcode == PONG:
            assert got.payload == mark
            break
        if got.opcode == CLOSE and refused and got.code == may_close:
            break
        assert got.opcode == TEXT, got
        if status(got.payload) != 100:
            assert refused == 0, got
            refused = status(got.payload)
    if refused:
        setup.quiet()
        return refused
    received = setup.up.receive(repeats=True)
    if method(received) != "ACK":
        setup.up.answer(received)
        client.final(200)
    setup.quiet()
    return received


@dataclass(frozen=True)
class Dialog:
    """An established dialog from C1 to UP: the Record-Route values as UP received them, that of UP's side on top, and
    the Route lines that C1 makes of the response."""

    rr1: str
    rr2: str
    route_set: bytes


def dial(setup: Setup, client: Client, call_id: str = "c1-1") -> Dialog:
    """C1 calls UP, which answers; the dialog has the tags f1 and u1 and this Call-ID."""
    number = next(setup.marks)
    client.text(
        (
            "INVITE sip:bob@example.com SIP/2.0\r\n"
            f"Via: SIP/2.0/WS c1.invalid;branch=z9hG4bKdial{number}\r\nMax-Forwards: 70\r\n"
            "From: <sip:alice@example.com>;tag=f1\r\nTo: <sip:bob@example.com>\r\n"
            f"Call-ID: {call_id}\r\nCSeq: 1 INVITE\r\n"
            "Contact: <sip:alice@c1.invalid;transport=ws;ob>\r\nContent-Length: 0\r\n\r\n"
        ).encode()
    )
    received = setup.up.request("INVITE")
    rr1, rr2 = elements(received, "record-route")
    setup.up.answer(received, headers=setup.here(b"Contact: <sip:bob@127.0.0.1:5070>\r\n"))
    response = client.final(200)
    route_set = "".join(f"Route: {route}\r\n" for route in reversed(elements(response, "record-route"))).encode()
    ack = (
        b"ACK sip:bob@127.0.0.1:5070 SIP/2.0\r\nVia: SIP/2.0/WS c1.invalid;branch=z9hG4bKack%d\r\n"
        b"Max-Forwards: 70\r\nFrom: <sip:alice@example.com>;tag=f1\r\nTo: <sip:bob@example.com>;tag=u1\r\n"
        b"Call-ID: %s\r\nCSeq: 1 ACK\r\n%sContent-Length: 0\r\n\r\n" % (number, call_id.encode(), route_set)
    )
    client.text(setup.here(ack))
    setup.up.request("ACK")
    return Dialog(rr1, rr2, route_set)


def renewed(message: bytes, number: int | str) -> bytes:
    """The same message as another transaction: its own branch."""
    return re.sub(rb"z9hG4bK[\w-]+", f"z9hG4bKnew{number}".encode(), message, count=1)


def refused_by(setup: Setup, message: bytes) -> int:
    """The final status with which the proxy answers a request of UP, which has to be the next final one that UP gets;
    UP acknowledges it if it is an INVITE."""
    setup.up.send(message)
    while True:
        got = setup.up.receive()
        if got.startswith(b"SIP/2.0 ") and branch(got) == branch(message) and status(got) >= 200:
            break
        assert got.startswith(b"SIP/2.0 "), got
    if method(message) == "INVITE":
        setup.up.send(
            fill(
                start_line(message).replace(b"INVITE", b"ACK")
                + b"\r\n${Via*}Max-Forwards: 70\r\nFrom: ${From}\r\nTo: ${To}\r\nCall-ID: ${Call-ID}\r\n"
                + b"CSeq: 1 ACK\r\n"
                + b"".join(line for line in raw_lines(message) if name_of(line) == "route")
                + b"Content-Length: 0\r\n\r\n",
                got,
            )
        )
    return status(got)


def fence(setup: Setup) -> None:
    """UP has received nothing: the next thing is the answer to its own OPTIONS to the proxy (RFC 3261 11), which is
    behind whatever else UP has sent."""
    number = next(setup.marks)
    setup.up.send(
        setup.here(
            b"OPTIONS sip:127.0.0.1:5060 SIP/2.0\r\nVia: SIP/2.0/%s 127.0.0.1:5070;rport;branch=z9hG4bKfence%d\r\n"
            b"Max-Forwards: 70\r\nFrom: <sip:up@example.com>;tag=u1\r\nTo: <sip:127.0.0.1>\r\nCall-ID: fence-%d\r\n"
            b"CSeq: 1 OPTIONS\r\nContent-Length: 0\r\n\r\n"
            % (b"UDP" if isinstance(setup.up, UdpUp) else b"TCP", number, number)
        )
    )
    got = setup.up.receive()
    assert got.startswith(b"SIP/2.0 200") and values(got, "call-id") == [f"fence-{number}"], got
