# RFC 6455 4.2 and RFC 7118 4: the HTTP upgrade of one connection, from its bytes to what a policy sees, and back to the
# bytes of the answer. The head itself is parsed by httptools (llhttp, the parser of Node), in its strict mode.
# Knows no SIP, no socket and no loop; who is let in is decided by the policy, when it is asked by admission.py.
# HTTP's Via, To, From, Route are HTTP's own names and mean nothing here.
from __future__ import annotations

import re
import time
from binascii import b2a_base64
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha1
from http import HTTPStatus
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Any
from urllib.parse import parse_qsl

from httptools import HttpParserCallbackError, HttpParserError, HttpParserUpgrade, HttpRequestParser

from ..digest import Digest, realm_of

__all__ = [
    "Accept",
    "Handshake",
    "HeadError",
    "HeadReader",
    "Headers",
    "Limits",
    "Refuse",
    "Reject",
    "accept_response",
    "check_upgrade",
    "reject_response",
]

Address = tuple[str, int]
Network = IPv4Network | IPv6Network

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 1.3
_VERSION = b"13"  # RFC 6455 4.1 item 9
_REASON_BYTES = 123  # a close frame holds 125, of which the code takes two; RFC 6455 5.5.1

# Twenty-two digits carry 132 bits, the last four of them unused: written by hand they need not be zero.
_KEY = re.compile(rb"[A-Za-z0-9+/]{22}==")
#   Host = uri-host [ ":" port ]                                                RFC 9110 7.2, RFC 3986 3.2.2
_HOST = re.compile(rb"[A-Za-z0-9._~!$&'()*+,;=%:\[\]-]*")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110 5.6.2
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")  # all but the tab, RFC 9110 5.5
_OURS = frozenset(("connection", "content-length", "transfer-encoding"))  # they say where our answer ends

# What a server may say in a close frame: RFC 6455 7.4.1, the IANA registry beyond it, and 7.4.2 for the rest.
# 1005, 1006 and 1015 never travel, and 1010 is the client's to send.
_CLOSE_CODES = frozenset((1000, 1001, 1002, 1003, 1007, 1008, 1009, 1011, 1012, 1013, 1014, *range(3000, 5000)))


@dataclass(frozen=True, slots=True)
class Limits:
    """How much of an HTTP head is read: `max_head_bytes` from the first byte to the blank line, `max_headers` lines."""

    max_head_bytes: int = 8192
    max_headers: int = 64


class HeadError(Exception):
    """The bytes are no HTTP head (status 400), or more of one than the limits allow (431).

    `reason` is for the log: it never repeats what the peer sent.
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


class Headers(Mapping[str, str]):
    """The header lines of a request: read-only, names compared without regard to case.

    A name that was sent several times gives its values joined with ", ", as RFC 9110 5.3 reads them; so a policy that
    compares Origin with the one good value refuses two Origin lines. `get_all` gives each line's value. Values are
    decoded as latin-1, which keeps every byte.
    """

    # _values: by lower-case name, the values of repeated ones joined. _repeated: lower-case names.
    __slots__ = ("_lines", "_repeated", "_values")

    def __init__(self, lines: list[tuple[bytes, bytes]]) -> None:
        self._lines = lines  # as sent; llhttp has taken the blanks in front of a value, not those behind (RFC 9112 5.1)
        self._values = {name.lower(): value.rstrip(b" \t") for name, value in lines}
        self._repeated: set[bytes] = set()
        if len(self._values) < len(lines):
            self._join()

    def _join(self) -> None:
        values: dict[bytes, bytes] = {}
        for name, value in self._lines:
            key, value = name.lower(), value.rstrip(b" \t")
            if key in values:
                self._repeated.add(key)
                value = values[key] + b", " + value
            values[key] = value
        self._values = values

    def __getitem__(self, name: str) -> str:
        try:
            return self._values[name.lower().encode("latin-1")].decode("latin-1")
        except (AttributeError, KeyError, UnicodeEncodeError):
            raise KeyError(name) from None

    def __iter__(self) -> Iterator[str]:
        """Each name once, spelt as it was sent first."""
        seen = set()
        for name, _ in self._lines:
            if (key := name.lower()) not in seen:
                seen.add(key)
                yield name.decode("latin-1")

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"<Headers {', '.join(self)}>"  # names only: values hold cookies and credentials

    def get_all(self, name: str) -> list[str]:
        """The value of each line with this name, in the order sent; [] without one."""
        key = name.lower().encode("latin-1", "replace")
        return [value.rstrip(b" \t").decode("latin-1") for sent, value in self._lines if sent.lower() == key]


_NO_HEADERS = Headers([])


class _Head:
    """What llhttp calls back with. Apart from the reader, so that an abandoned one is no reference cycle."""

    __slots__ = ("_room", "complete", "lines", "url")

    def __init__(self, max_headers: int) -> None:
        self._room = max_headers
        self.complete = False
        self.lines: list[tuple[bytes, bytes]] = []
        self.url = b""

    def on_url(self, part: bytes) -> None:
        self.url += part

    def on_header(self, name: bytes, value: bytes) -> None:
        lines = self.lines
        if len(lines) == self._room:
            raise OverflowError  # reaches the reader as HttpParserCallbackError
        lines.append((name, value))

    def on_headers_complete(self) -> None:
        self.complete = True


class HeadReader:
    """Reads one HTTP request head from chunks of any size, keeping nothing that lies behind it.

    Once `complete`: `method`, `target` (as sent), `http_version` ("1.1") and `headers`.
    """

    __slots__ = ("_head", "_limits", "_parser", "_size", "_tail", "complete", "headers", "http_version", "method",
                 "rest", "target")  # fmt: skip

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._head = _Head(limits.max_headers)
        self._parser = HttpRequestParser(self._head)
        self._size = 0  # bytes of the head given to llhttp
        self._tail = b""  # the last three of them: the blank line may lie across two chunks
        self.complete = False
        self.method = ""
        self.target = ""
        self.http_version = ""
        self.rest = b""  # for whoever must keep what lies behind the head until the answer is known
        self.headers = _NO_HEADERS

    @property
    def started(self) -> bool:
        """Whether the peer has sent anything at all."""
        return self._size > 0

    def feed(self, chunk: bytes) -> bytes | None:
        """Take the next bytes: None while the head goes on, the bytes behind it (often b"") once it is complete.

        Raises HeadError, 400 or 431, at the first byte that no head can have or that is one too many; how the bytes
        were cut makes no difference. Not to be called again after either. RFC 9112 2.2, 3, 5; RFC 6585 5.
        """
        tail = self._tail
        end = (tail + chunk).find(b"\r\n\r\n") if tail else chunk.find(b"\r\n\r\n")
        if end < 0:
            piece, rest = chunk, None
        else:
            end += 4 - len(tail)
            piece, rest = (chunk, b"") if end == len(chunk) else (chunk[:end], chunk[end:])
        room = self._limits.max_head_bytes - self._size
        try:
            self._parser.feed_data(piece if len(piece) <= room else piece[:room])
        except HttpParserUpgrade:
            pass  # how httptools says that a head that asks for an upgrade is complete
        except HttpParserCallbackError:
            raise HeadError(431, f"more than {self._limits.max_headers} header lines (max_headers)") from None
        except HttpParserError as error:
            raise HeadError(400, f"no HTTP head ({error})") from None  # llhttp's own words, none of the peer's
        if len(piece) > room:
            raise HeadError(431, f"head of more than {self._limits.max_head_bytes} bytes (max_head_bytes)")
        head = self._head
        if rest is None:
            # llhttp and the search for the blank line must agree on where the head ends, or bytes would be read twice.
            if head.complete:
                raise HeadError(400, "head ends without CRLF CRLF")
            self._size += len(piece)
            self._tail = chunk[-3:] if len(chunk) >= 3 else (tail + chunk)[-3:]
            return None
        if not head.complete:
            raise HeadError(400, "blank line before the request line")
        self._size += len(piece)
        self.complete = True
        self.method = self._parser.get_method().decode("ascii")
        self.http_version = self._parser.get_http_version()
        self.target = head.url.decode("latin-1")
        self.headers = Headers(head.lines)
        return rest


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Refused"


@dataclass(frozen=True, slots=True)
class Accept:
    """The client is let in. `attributes` become those of its connection."""

    attributes: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Reject:
    """The client gets an HTTP answer, and its connection is closed.

    `status` is 300..599; `reason` the phrase behind it, "" for the usual one; `headers` pairs of name and value; `body`
    is sent as it is, b"" for one line that repeats the reason. `why` is for the log and is never sent. ValueError for
    a status out of range, a name that is no token or one that frames the answer (Connection, Content-Length,
    Transfer-Encoding), a CR, LF, NUL or other control character; TypeError for what is not text.
    """

    status: int = 403
    reason: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    why: str = ""

    def __post_init__(self) -> None:
        if type(self.status) is not int:
            raise TypeError("status must be an int")
        if not 300 <= self.status <= 599:
            raise ValueError(f"status must be 300 to 599, got {self.status}")
        _check_text("reason", self.reason)
        for name, value in self.headers:
            if not isinstance(name, str):
                raise TypeError("a header name must be a str")
            if not _TOKEN.fullmatch(name):
                raise ValueError("a header name must be a token (RFC 9110 5.6.2)")
            if name.lower() in _OURS:
                raise ValueError(f"{name} is not a policy's to set: it says where the answer ends")
            _check_text(f"header {name}", value)
        if not isinstance(self.body, bytes):
            raise TypeError("body must be str or bytes")


@dataclass(frozen=True, slots=True)
class Refuse:
    """The client gets its 101 and at once a close frame with `code` and `reason`, which a page's script can see.

    `code` is one that a server may send: 3000..4999, or of the thousands 1000-1003, 1007-1009, 1011-1014 (ValueError).
    `reason` is cut to 123 bytes of UTF-8, at a character. RFC 6455 5.5.1, 7.4.
    """

    code: int = 4403
    reason: str = ""

    def __post_init__(self) -> None:
        if type(self.code) is not int:
            raise TypeError("code must be an int")
        if self.code not in _CLOSE_CODES:
            raise ValueError(f"a server may not send the close code {self.code} (RFC 6455 7.4)")
        if not isinstance(self.reason, str):
            raise TypeError("reason must be a str")
        encoded = self.reason.encode("utf-8")  # a lone surrogate is a UnicodeEncodeError, which is a ValueError
        if len(encoded) > _REASON_BYTES:
            object.__setattr__(self, "reason", encoded[:_REASON_BYTES].decode("utf-8", "ignore"))


def _check_text(what: str, value: str) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{what} must be a str, got {type(value).__name__}")
    if _CONTROL.search(value):
        raise ValueError(f"{what} holds CR, LF, NUL or another control character (RFC 9112 5)")
    value.encode("utf-8")  # a lone surrogate is a UnicodeEncodeError, which is a ValueError


class Handshake:
    """What a policy sees of a client that wants in: the HTTP GET, read when touched, and the answers to choose from.

    `on_handshake` returns what one of `accept`, `reject`, `challenge` and `refuse` gave; anything else is a 500.
    """

    __slots__ = ("_cookies", "_proxies", "_query", "_reader", "_stale", "local", "secure", "source", "tls")

    source: Address
    """(address, port) of the client's end of the TCP connection, or what PROXY protocol says of it."""
    local: Address
    """(address, port) that the client connected to."""
    secure: bool
    """True on a wss listener."""
    tls: Mapping[str, Any] | None
    """The client's certificate as ssl.SSLSocket.getpeercert() gives it; None without one."""

    def __init__(
        self,
        reader: HeadReader,
        source: Address,
        local: Address,
        secure: bool,
        tls: Mapping[str, Any] | None = None,
        trusted_proxies: Sequence[Network] = (),
    ) -> None:
        self._reader = reader
        self._proxies = trusted_proxies
        self._cookies: dict[str, str] | None = None
        self._query: dict[str, list[str]] | None = None
        self._stale = False
        self.source = source
        self.local = local
        self.secure = secure
        self.tls = tls

    def __repr__(self) -> str:
        return f"<Handshake {self.source[0]} port {self.source[1]}>"  # target and headers hold credentials

    @property
    def target(self) -> str:
        """The request target as sent, query and all: it may hold a credential, so it does not belong in a log."""
        return self._reader.target

    @property
    def path(self) -> str:
        """The path of the target as sent, not decoded and without the query. RFC 6455 3, RFC 9112 3.2."""
        return _split_target(self._reader.target)[1]

    @property
    def query(self) -> dict[str, str]:
        """The query parameters, decoded as a form is; of a name given several times the first. See `query_all`."""
        return {name: values[0] for name, values in self.query_all.items()}

    @property
    def query_all(self) -> dict[str, list[str]]:
        """The query parameters, with every value of each name in the order sent; names differ in case."""
        if self._query is None:
            self._query = {}
            for name, value in parse_qsl(self._reader.target.partition("?")[2], keep_blank_values=True):
                self._query.setdefault(name, []).append(value)
        return self._query

    @property
    def headers(self) -> Headers:
        """The header lines of the GET."""
        return self._reader.headers

    @property
    def host(self) -> str:
        """The host that the client asked for, with the port if it named one: Host, or the target's where it is
        absolute (RFC 9112 3.2.2)."""
        return _split_target(self._reader.target)[0] or self._reader.headers["host"]

    @property
    def cookies(self) -> dict[str, str]:
        """The cookies by name, quotes around a value taken off, nothing decoded; of two with one name the first, which
        has the longer path (RFC 6265 5.4). What is no pair is passed over."""
        if self._cookies is None:
            cookies: dict[str, str] = {}
            self._cookies = cookies
            for line in self._reader.headers.get_all("cookie"):
                for pair in line.split(";"):
                    name, equals, value = pair.partition("=")
                    if equals and (name := name.strip()):
                        value = value.strip()
                        if len(value) >= 2 and value[0] == value[-1] == '"':
                            value = value[1:-1]
                        cookies.setdefault(name, value)
        return self._cookies

    @property
    def subprotocols(self) -> list[str]:
        """What Sec-WebSocket-Protocol offers, in the client's order of preference. It holds "sip"."""
        offered = self._reader.headers.get("sec-websocket-protocol", "").split(",")
        return [name for part in offered if (name := part.strip())]

    @property
    def forwarded_for(self) -> str | None:
        """The client's address as the proxies in front say it, None where nobody believable says it.

        X-Forwarded-For is believed only from a peer in `proxies`. Of its entries, lines joined in order, it is the last
        that is not itself such a proxy (the first if all are); an entry on the way there that is no address makes it
        None. A port is left out, and an IPv4 address is written as one.
        """
        if not self._proxies or not self._trusted(_parse_address(self.source[0])):
            return None
        entries = self._reader.headers.get("x-forwarded-for", "").split(",")
        client = None
        for entry in reversed(entries):
            if not (entry := entry.strip()):
                continue
            client = _parse_address(entry)
            if not self._trusted(client):  # which None is not either
                break
        return None if client is None else str(client)

    def _trusted(self, address: IPv4Address | IPv6Address | None) -> bool:
        return address is not None and any(address in network for network in self._proxies)

    def accept(self, /, **attributes: Any) -> Accept:
        """Let the client in. The attributes are those of its connection: ``accept(user="alice")``."""
        return Accept(attributes)

    def reject(
        self,
        status: int = 403,
        reason: str | None = None,
        headers: Mapping[str, str] | Iterable[tuple[str, str]] | None = None,
        body: str | bytes = b"",
    ) -> Reject:
        """Answer with an HTTP status, 300..599, and close. A browser's script sees nothing of it but close code 1006.

        `reason` None is the usual phrase of the status; `headers` a mapping, or pairs where a name comes twice. Text
        bodies go out as UTF-8 with ``Content-Type: text/plain`` unless headers say otherwise; an empty one as one line.
        ValueError and TypeError as in Reject: nothing is cut or repaired.
        """
        pairs = headers.items() if isinstance(headers, Mapping) else headers or ()
        return Reject(
            status,
            "" if reason is None else reason,
            tuple((name, value) for name, value in pairs),
            body.encode("utf-8") if isinstance(body, str) else body,
            "rejected by the policy",
        )

    def refuse(self, code: int = 4403, reason: str = "") -> Refuse:
        """Complete the handshake and close at once with this code, which a browser's script can see. See Refuse."""
        return Refuse(code, reason)

    def challenge(
        self, realm: str, *, stale: bool | None = None, secret: bytes | None = None, now: float | None = None
    ) -> Reject:
        """401 that asks for HTTP digest (RFC 7616): a WWW-Authenticate line for SHA-256 and one for MD5.

        `stale` None is what `verify_digest` found before. `secret` signs the nonce: give the same one here and there
        where several workers serve, since the answer arrives on a new connection. `now` is Unix time, for tests.
        Browsers do not answer it on a WebSocket; other clients do.
        """
        lines = Digest(realm, secret=secret).challenge(
            time.time() if now is None else now, stale=self._stale if stale is None else stale
        )
        return Reject(401, headers=tuple(("WWW-Authenticate", line) for line in lines), why="challenged by the policy")

    def verify_digest(
        self,
        password_of: Callable[[str], str | None],
        *,
        realm: str | None = None,
        secret: bytes | None = None,
        now: float | None = None,
    ) -> str | None:
        """The user whose Authorization header is right for this request, or None.

        `password_of` gives the password of a user name, None for an unknown one. Only an answer to a challenge of ours
        counts, for the realm of that challenge; `realm` demands a certain one. The rest is as in `challenge`.
        """
        value = self._reader.headers.get("authorization")
        if value is None:
            return None
        # Names beyond ASCII travel as UTF-8; what is none keeps its bytes, for they were hashed too.
        value = value.encode("latin-1").decode("utf-8", "surrogateescape")
        claimed = realm_of(value)
        if claimed is None or (realm is not None and claimed != realm):
            return None
        try:
            digest = Digest(claimed, secret=secret)
        except ValueError:  # a realm that we would never name
            return None
        result = digest.verify(
            value, self._reader.method, password_of, time.time() if now is None else now, self._reader.target
        )
        self._stale = result.stale
        return result.user


def _split_target(target: str) -> tuple[str, str]:
    """(authority, path). Authority is "" for the usual origin-form. RFC 9112 3.2."""
    path = target.partition("?")[0]
    if path.startswith("/"):
        return "", path
    _, absolute, rest = path.partition("://")
    if not absolute:
        return "", path
    authority, slash, path = rest.partition("/")
    return authority.rpartition("@")[2], slash + path or "/"


# [V6], [V6]:PORT, V4, V4:PORT or V6. No zone: it means something on one machine only.
_NODE = re.compile(r"\[([0-9A-Fa-f.]*:[0-9A-Fa-f:.]*)\](?::[0-9]+)?|([0-9.]+)(?::[0-9]+)?|([0-9A-Fa-f:.]+)")


def _parse_address(text: str) -> IPv4Address | IPv6Address | None:
    """An IP address, perhaps quoted, with brackets or a port as proxies write it; None if it is anything else."""
    if len(text) > 1 and text[0] == text[-1] == '"':
        text = text[1:-1]
    match = _NODE.fullmatch(text)
    if match is None:
        return None
    try:
        address = ip_address(match[1] or match[2] or match[3])
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


_OUR_UPGRADE = (("Connection", "Upgrade"), ("Upgrade", "websocket"), ("Sec-WebSocket-Version", "13"))


def _refusal(status: int, line: str) -> Reject:
    return Reject(status, body=f"{line}\n".encode(), why=line)


_BAD_VERSION = _refusal(400, "HTTP/1.1 is needed.")
_BAD_HOST = _refusal(400, "One valid Host line is needed.")
_BAD_KEYS = _refusal(400, "One Sec-WebSocket-Key line is needed.")
_BAD_BODY = _refusal(400, "A handshake has no body.")
_BAD_TARGET = _refusal(400, "The target is neither a path nor an absolute URL.")
_NOT_GET = Reject(405, "", (("Allow", "GET"),), b"Only GET is served here.\n", "method is not GET")
_NOT_FOUND = Reject(404, body=b"There is nothing at this path.\n", why="nothing at path")
_NO_UPGRADE = _refusal(426, "This is a WebSocket server for SIP (RFC 7118).")
_BAD_UPGRADE = _refusal(400, "Upgrade does not list websocket.")
_BAD_CONNECTION = _refusal(400, "Connection does not list upgrade.")
_BAD_WS_VERSION = _refusal(426, "WebSocket version 13 is needed.")
_BAD_KEY = _refusal(400, "Sec-WebSocket-Key is not 16 bytes in base64.")
_NO_SIP = _refusal(400, "The subprotocol sip is not offered.")


def _lists(value: bytes, token: bytes) -> bool:
    """Whether a comma-separated list holds the (lower-case) token, in any case."""
    value = value.lower()
    return value == token or token in [part.strip(b" \t") for part in value.split(b",")]


def check_upgrade(head: HeadReader | Handshake, path: str | None) -> Reject | None:
    """What HTTP, RFC 6455 4.2.1 and RFC 7118 4 have against a complete head; None if nothing.

    `path` is the listener's: only it is served, the query left aside; None serves any. In order: 400 for a bad head,
    405, 404, 426 for no upgrade, 400 for a wrong one, 426 for a wrong version, 400 for a bad key or no `sip`.
    """
    reader = head._reader if isinstance(head, Handshake) else head
    value_of = reader.headers._values.get
    if reader.http_version != "1.1":
        return _BAD_VERSION
    host = value_of(b"host")
    if host is None or not _HOST.fullmatch(host):  # two lines joined hold a blank, which no host does; RFC 9112 3.2
        return _BAD_HOST
    if b"sec-websocket-key" in reader.headers._repeated:
        return _BAD_KEYS  # RFC 6455 11.3.1
    if value_of(b"content-length", b"").strip(b"0") or value_of(b"transfer-encoding") is not None:
        return _BAD_BODY
    if reader.method != "GET":
        return _NOT_GET
    served = _split_target(reader.target)[1]
    if not served.startswith("/"):
        return _BAD_TARGET
    if path is not None and served != path:
        return _NOT_FOUND
    upgrade = value_of(b"upgrade")
    if upgrade is None:
        return _NO_UPGRADE
    if not _lists(upgrade, b"websocket"):
        return _BAD_UPGRADE
    if not _lists(value_of(b"connection", b""), b"upgrade"):
        return _BAD_CONNECTION
    if value_of(b"sec-websocket-version") != _VERSION:
        return _BAD_WS_VERSION
    if not _KEY.fullmatch(value_of(b"sec-websocket-key", b"")):
        return _BAD_KEY
    offered = value_of(b"sec-websocket-protocol", b"")
    # The name is compared as it is: the 101 repeats it, and browsers hold the server to the letter (RFC 6455 4.1).
    if offered != b"sip" and b"sip" not in [part.strip(b" \t") for part in offered.split(b",")]:
        return _NO_SIP
    return None


def accept_response(reader: HeadReader) -> bytes:
    """The 101 for a head that check_upgrade found good: `sip`, and no extension whatever was offered. RFC 6455 4.2.2"""
    key = reader.headers._values[b"sec-websocket-key"]
    return (
        b"HTTP/1.1 101 Switching Protocols\r\n"
        b"Upgrade: websocket\r\n"
        b"Connection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + b2a_base64(sha1(key + _GUID).digest(), newline=False) + b"\r\n"
        b"Sec-WebSocket-Protocol: sip\r\n"
        b"\r\n"
    )


def reject_response(reject: Reject, method: str = "GET") -> bytes:
    """The answer that says so and ends the connection. To a HEAD, and with 304, without the content (RFC 9110 9.3.2).

    A 426 says what to upgrade to (RFC 9110 15.5.22, 7.8; RFC 6455 4.2.2 item 4).
    """
    phrase = reject.reason or _phrase(reject.status)
    body = reject.body or f"{phrase}\n".encode()
    headers = list(reject.headers)
    names = {name.lower() for name, _ in headers}
    if reject.status == 426:
        headers += (pair for pair in _OUR_UPGRADE if pair[0].lower() not in names)
    if "content-type" not in names:
        headers.append(("Content-Type", "text/plain; charset=utf-8"))
    lines = [f"HTTP/1.1 {reject.status} {phrase}", "Connection: close"]
    lines += (f"{name}: {value}" for name, value in headers)
    lines += (f"Content-Length: {len(body)}", "", "")
    answer = "\r\n".join(lines).encode("utf-8")
    return answer if method == "HEAD" or reject.status == 304 else answer + body
