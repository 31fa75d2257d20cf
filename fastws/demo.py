"""`fastws demo`: the proxy, its policy, two clients, an impostor and two uninvited guests in one terminal.

Nothing here is acted. The policy that is shown is the file that is loaded, the proxy is the Worker that `fastws serve`
runs, the clients are picows on real sockets of 127.0.0.1. A line of the exchange is printed when it has happened: an
answer, and what one client sends another, when it has arrived and was checked. Exit status 0 means that all went well.

The clients read and write SIP by themselves, without the readers of fastws, so that they would notice if it was wrong.
No rule of SIP or WebSocket belongs here that the scene does not need.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import tempfile
import textwrap
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Self

import uvloop
from picows import (
    WSCloseCode,
    WSFrame,
    WSHandshakeError,
    WSListener,
    WSMsgType,
    WSTransport,
    WSUpgradeResponse,
    ws_connect,
)
from rich import box
from rich.console import Console
from rich.panel import Panel
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

import fastws
from fastws.config import Config, Listen
from fastws.log import one_line
from fastws.policy import Policy
from fastws.worker import Worker

__all__ = ["POLICY", "START", "main"]

POLICY = """\
from collections import deque

SESSIONS = {"7f3a": "alice", "c21b": "bob", "98d0": "trudy"}  # cookie: user
ORIGIN = "https://phone.example.com"
closed = deque(maxlen=100)


def on_handshake(handshake):  # may this browser connect, and who is it?
    user = SESSIONS.get(handshake.cookies.get("sid"))
    if user is None or handshake.headers.get("Origin") != ORIGIN:
        return handshake.reject(403)
    return handshake.accept(user=user)  # known as long as it is connected


def on_request(request, connection):  # is it who it says it is?
    registers = request.method == "REGISTER"
    claimed = request.to_uri if registers else request.from_uri
    if not request.in_dialog and claimed.user != connection["user"]:
        return request.reject(403, "Identity mismatch", close=True)


def on_close(connection, terminator, code, reason):  # who left, and why?
    closed.append((connection["user"], terminator, code, reason))
"""

#: The last line: what a user who has seen this runs next.
START = "fastws serve --listen ws://0.0.0.0:8080 --upstream sip:pbx.example.com --policy policy.py"

DOMAIN = "example.com"
ORIGIN = "https://phone.example.com"
FOREIGN_ORIGIN = "https://evil.example.net"

SCENE_S = 11.0  # for all that is shown; with STOP_S it stays below 15 s
STOP_S = 3.0  # for the way out
ANSWER_S = 3.0  # for one message; on loopback it takes a millisecond
LINE_PAUSE_S = 0.12  # on a terminal only, so that one can follow
STEP_PAUSE_S = 0.5

WIDTH = 100  # the most columns used; a longer line is hard to read
SENDER = 6  # columns of a name, as in "fastws"
EXCHANGE = 2 * SENDER + 4  # "alice  -> fastws"
MESSAGE = 34  # "ACK sip:bob@b.invalid;transport=ws"

STYLES = {
    "fastws": "bold blue",
    "alice": "cyan",
    "bob": "green",
    "trudy": "red",
    "guest": "magenta",
    "phish": "magenta",
}

OFFER = (
    "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=-\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\n"
    "m=audio 9 UDP/TLS/RTP/SAVPF 111\r\na=rtpmap:111 opus/48000/2\r\na=sendrecv\r\n"
)
ANSWER = OFFER.replace("o=- 1 1", "o=- 2 1")


class _Failed(Exception):
    """Something did not happen as it should; the text is the one line that the user is told."""


# What the clients speak


@dataclass(frozen=True, slots=True)
class _Message:
    """One SIP message: its first line, its headers in order with names in lower case, its body."""

    first: str
    headers: tuple[tuple[str, str], ...]
    body: str

    @classmethod
    def read(cls, text: str) -> Self:
        head, _, body = text.partition("\r\n\r\n")
        first, *lines = head.split("\r\n")
        headers = []
        for line in lines:
            name, _, value = line.partition(":")
            headers.append((name.strip().lower(), value.strip()))
        return cls(first, tuple(headers), body)

    def all(self, name: str) -> list[str]:
        """The values of a header in order; for names whose values hold no comma of their own."""
        return [value.strip() for known, line in self.headers if known == name for value in line.split(",")]

    def get(self, name: str) -> str:
        """The first value, as it stands; empty without one."""
        return next((value for known, value in self.headers if known == name), "")

    @property
    def shown(self) -> str:
        """The first line without the version, which is the same everywhere."""
        return self.first.removesuffix(" SIP/2.0").removeprefix("SIP/2.0 ")


class _Phone(WSListener):
    """A SIP client on one WebSocket, RFC 7118: as much of one as a short call takes."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.contact = f"sip:{name}@{name[0]}.invalid;transport=ws"
        self.address = ("", 0)  # as fastws sees it
        self.sent = 0  # messages
        self.received = 0
        self.close_code = 1006  # as if none came, RFC 6455 7.1.5
        self.close_reason = ""
        self.gone = asyncio.Event()
        self._tag = secrets.token_hex(4)
        self._inbox: asyncio.Queue[_Message | None] = asyncio.Queue()
        self._transport: WSTransport

    async def connect(self, url: str, *, cookie: str | None, origin: str) -> WSUpgradeResponse:
        """Ask for a WebSocket; returns the HTTP response, be it 101 or a refusal."""
        headers = {"Origin": origin, "Sec-WebSocket-Protocol": "sip"}
        if cookie is not None:
            headers["Cookie"] = f"sid={cookie}"
        try:
            self._transport, _ = await ws_connect(
                lambda: self, url, extra_headers=headers, websocket_handshake_timeout=ANSWER_S, max_redirects=0
            )
        except WSHandshakeError as refused:
            if refused.response is None:
                raise _Failed(f"{self.name} got no HTTP response: {refused}") from None
            return refused.response
        except (OSError, TimeoutError) as error:
            raise _Failed(f"{self.name} could not connect: {error or type(error).__name__}") from None
        self.address = self._transport.underlying_transport.get_extra_info("sockname")[:2]
        return self._transport.response

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type in (WSMsgType.TEXT, WSMsgType.BINARY):
            self.received += 1
            self._inbox.put_nowait(_Message.read(frame.get_payload_as_bytes().decode()))
        elif frame.msg_type == WSMsgType.CLOSE:
            payload = frame.get_payload_as_bytes()
            if len(payload) >= 2:
                self.close_code, self.close_reason = int.from_bytes(payload[:2], "big"), payload[2:].decode()
            transport.send_close(WSCloseCode.OK)  # sends nothing if this is the answer to ours
            transport.disconnect()

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        self.gone.set()
        self._inbox.put_nowait(None)

    def send(self, text: str) -> _Message:
        """Send one SIP message; returns it, for what comes of it to be compared with."""
        self.sent += 1
        self._transport.send(WSMsgType.TEXT, text.encode())
        return _Message.read(text)

    async def receive(self, awaited: str) -> _Message:
        """The next message; a 100 only says that a request has come so far, and is passed over."""
        with suppress(TimeoutError):
            async with asyncio.timeout(ANSWER_S):
                while (message := await self._inbox.get()) is not None:
                    if not message.first.startswith("SIP/2.0 100 "):
                        return message
            raise _Failed(f"{self.name} was disconnected ({self.close_code}) and waited for {awaited}")
        raise _Failed(f"{self.name} waited {ANSWER_S:g} s in vain for {awaited}")

    async def leave(self, code: WSCloseCode, reason: str) -> None:
        """Close in order."""
        self._transport.send_close(code, reason.encode())
        await self.wait_gone()

    async def vanish(self) -> None:
        """Be gone without a word, as when a network fails."""
        self._transport.disconnect(graceful=False)
        await self.wait_gone()

    async def wait_gone(self) -> None:
        """Wait for the end of the connection."""
        try:
            async with asyncio.timeout(ANSWER_S):
                await self.gone.wait()
        except TimeoutError:
            raise _Failed(f"{self.name} is still connected after {ANSWER_S:g} s") from None

    def request(
        self,
        method: str,
        uri: str,
        *,
        sender: str = "",
        to: str,
        call_id: str,
        cseq: int = 1,
        route: Sequence[str] = (),
        headers: Sequence[str] = (),
        body: str = "",
    ) -> str:
        """A request, RFC 3261 8.1.1. `sender` is the user of From if it is not this one; `to` is the value of To."""
        lines = [
            f"{method} {uri} SIP/2.0",
            f"Via: SIP/2.0/WS {self.name[0]}.invalid;branch=z9hG4bK{secrets.token_hex(6)}",
            "Max-Forwards: 70",
            *(f"Route: {value}" for value in route),
            f"From: <sip:{sender or self.name}@{DOMAIN}>;tag={self._tag}",
            f"To: {to}",
            f"Call-ID: {call_id}",
            f"CSeq: {cseq} {method}",
            *headers,
        ]
        return _joined(lines, body)

    def response(self, request: _Message, status: int, reason: str, body: str = "") -> str:
        """A response, RFC 3261 8.2.6 and 12.1.1."""
        lines = [f"SIP/2.0 {status} {reason}"]
        for name in ("Via", "Record-Route", "From", "To", "Call-ID", "CSeq"):
            lines += [f"{name}: {value}" for known, value in request.headers if known == name.lower()]
        if ";tag=" not in request.get("to"):
            lines = [f"{line};tag={self._tag}" if line.startswith("To:") else line for line in lines]
        if request.get("cseq").endswith(" INVITE"):
            lines.append(f"Contact: <{self.contact}>")
        return _joined(lines, body)


def _joined(lines: list[str], body: str) -> str:
    if body:
        lines.append("Content-Type: application/sdp")
    return "\r\n".join([*lines, f"Content-Length: {len(body.encode())}", "", body])


# What the user sees


class _Screen:
    """Prints, and pauses after each line if a person is watching."""

    def __init__(self) -> None:
        self.console = Console(highlight=False, markup=False, emoji=False)
        self.console.width = min(self.console.width, WIDTH)
        self._watched = self.console.file.isatty()

    async def pause(self, seconds: float) -> None:
        if self._watched:
            await asyncio.sleep(seconds)

    async def heading(self, title: str, text: str) -> None:
        """The head of a step, and what it is about."""
        self.console.print()
        self.console.print(Text(title, style="bold"))
        self.prose(text)
        self.console.print()
        await self.pause(STEP_PAUSE_S)

    def prose(self, text: str) -> None:
        """Sentences, indented by two columns."""
        for line in textwrap.wrap(text, max(self.console.width - 4, 20)):
            self.console.print(f"  {line}")

    async def line(self, sender: str, receiver: str, message: str, meaning: str, style: str = "") -> None:
        """One line of the exchange: who told whom what, and what that means."""
        text = Text("  ")
        text.append(sender.ljust(SENDER), STYLES[sender])
        text.append(" -> ", "dim")
        text.append(receiver.ljust(SENDER), STYLES[receiver])
        text.append("  ")
        text.append(message, style)
        at = 2 + EXCHANGE + 2 + MESSAGE + 2
        room = max(self.console.width - at, 12)
        for number, part in enumerate(textwrap.wrap(meaning, room)):
            if number or len(text) > at - 2:
                text.append("\n" + " " * at)
            else:
                text.append(" " * (at - len(text)))
            text.append(part, "italic")
        self.console.print(text)
        await self.pause(LINE_PAUSE_S)

    def policy(self) -> None:
        syntax = Syntax(POLICY.rstrip(), "python", theme="ansi_dark", background_color="default", word_wrap=True)
        panel = Panel(syntax, title="policy.py", title_align="left", border_style="dim", expand=False)
        self.console.print(panel)

    async def table(self, columns: Sequence[str], rows: Sequence[Sequence[object]], users: int) -> None:
        """A table; the column `users` holds names, and numbers are set to the right."""
        table = Table(box=box.ROUNDED, border_style="dim", header_style="bold")
        for number, name in enumerate(columns):
            right = bool(rows) and isinstance(rows[0][number], int)
            table.add_column(name, justify="right" if right else "left")
        for row in rows:
            cells = [Text(str(value)) for value in row]
            cells[users].stylize(STYLES.get(str(row[users]), ""))
            table.add_row(*cells)
        self.console.print(table)
        await self.pause(STEP_PAUSE_S)


# The scene


class _Demo:
    """The steps, in order. Each raises _Failed at the first thing that is not as it should be."""

    def __init__(self, screen: _Screen, worker: Worker, policy: Policy) -> None:
        self.screen = screen
        self.worker = worker
        self.policy = policy
        self.step = "The start"
        self.passed = 0
        # "fastws ready: URL -> ..." knows the port that the system has chosen.
        self.url = worker.ready_line().split()[2] + "/"
        self.cookies = {user: sid for sid, user in getattr(policy.module, "SESSIONS", {}).items()}

    def expect(self, what: str, got: object, wanted: object) -> None:
        """Count a check, or fail with one line."""
        if got != wanted:
            raise _Failed(f"{what}: expected {_told(wanted)}, got {_told(got)}")
        self.passed += 1

    async def heading(self, number: int, title: str, text: str) -> None:
        self.step = f"Step {number}"
        await self.screen.heading(f"{number}  {title}", text)

    async def run(self) -> None:
        await self.start()
        alice, bob = _Phone("alice"), _Phone("bob")
        await self.register(alice, bob)
        await self.call(alice, bob)
        await self.refuse()
        trudy = _Phone("trudy")
        await self.impersonate(trudy)
        await self.show_connections(alice, bob)
        await self.show_ends(alice, bob, trudy)

    async def start(self) -> None:
        await self.heading(
            1,
            "fastws starts with this policy",
            "A policy is a Python module. fastws asks it at three moments: when a client wants to connect, when it "
            "sends a SIP request, and when its connection has closed. The code in between is compiled.",
        )
        self.screen.policy()
        self.screen.console.print()
        self.screen.console.print(Text.assemble("  ", (self.worker.ready_line(), "bold blue")))

    async def register(self, alice: _Phone, bob: _Phone) -> None:
        await self.heading(
            2,
            "Two clients connect and register",
            "The cookie of the HTTP request says who it is, and the connection remembers it. No upstream is set, so "
            "fastws is the registrar too.",
        )
        for phone in (alice, bob):
            await self.connect(phone, "with a session cookie", f"accepted as {phone.name}")
            self.expect("the user in the connection table", fastws.connections[phone.address]["user"], phone.name)
            sent = phone.send(
                phone.request(
                    "REGISTER",
                    f"sip:{DOMAIN}",
                    to=f"<sip:{phone.name}@{DOMAIN}>",
                    call_id=secrets.token_hex(8),
                    headers=[f"Contact: <{phone.contact}>", "Supported: path, outbound", "Expires: 600"],
                )
            )
            await self.screen.line(phone.name, "fastws", sent.shown, "calls can reach me here")
            answer = await phone.receive("the answer to REGISTER")
            self.expect(f"the answer to {phone.name}'s REGISTER", answer.first, "SIP/2.0 200 OK")
            self.expect("its Via", answer.all("via"), sent.all("via"))
            uri, _, expires = answer.get("contact").partition(";expires=")
            self.expect("its Contact", (uri, expires.isdigit()), (f"<{phone.contact}>", True))
            await self.screen.line("fastws", phone.name, answer.shown, f"registered for {expires} s", "green")

    async def connect(self, phone: _Phone, why: str, meaning: str) -> None:
        """An accepted handshake of someone who has a session."""
        response = await phone.connect(self.url, cookie=self.cookies.get(phone.name, ""), origin=ORIGIN)
        await self.screen.line(phone.name, "fastws", "GET / HTTP/1.1", why)
        self.expect(f"the HTTP status for {phone.name}", int(response.status), HTTPStatus.SWITCHING_PROTOCOLS.value)
        self.expect("the subprotocol", response.headers.get("Sec-WebSocket-Protocol"), "sip")
        await self.screen.line("fastws", phone.name, _status_line(response), meaning, "green")

    async def call(self, alice: _Phone, bob: _Phone) -> None:
        await self.heading(
            3,
            "Alice calls Bob",
            "Each message goes through fastws. What comes back finds its connection by a sealed reference that fastws "
            "put into Via and Record-Route.",
        )
        call_id = secrets.token_hex(8)
        invite = alice.send(
            alice.request(
                "INVITE",
                f"sip:bob@{DOMAIN}",
                to=f"<sip:bob@{DOMAIN}>",
                call_id=call_id,
                headers=[f"Contact: <{alice.contact}>"],
                body=OFFER,
            )
        )
        ringing = await bob.receive("alice's INVITE")
        self.expect("the INVITE that bob got", ringing.first, f"INVITE {bob.contact} SIP/2.0")
        self.same(invite, ringing, "from", "call-id", "cseq", "contact")
        self.expect("its body", ringing.body, OFFER)
        self.expect("its last Via", ringing.all("via")[-1:], invite.all("via"))
        self.expect("a Via of fastws above it", len(ringing.all("via")) > 1, True)
        self.expect("a Record-Route of fastws", bool(ringing.all("record-route")), True)
        self.expect("a lower Max-Forwards", int(ringing.get("max-forwards")) < 70, True)
        await self.screen.line("alice", "bob", invite.shown, "From is alice: allowed")

        for status, reason, body, meaning in (
            (180, "Ringing", "", "bob's browser rings"),
            (200, "OK", ANSWER, "bob answers"),
        ):
            sent = bob.send(bob.response(ringing, status, reason, body))
            answer = await alice.receive(f"{status} {reason}")
            self.expect("the answer to alice's INVITE", answer.first, sent.first)
            self.expect(f"the Via of the {status}", answer.all("via"), invite.all("via"))
            self.same(sent, answer, "to", "call-id", "cseq", "contact")
            self.expect(f"the body of the {status}", answer.body, body)
            await self.screen.line("bob", "alice", sent.shown, meaning, "green" if status == 200 else "yellow")

        target = answer.get("contact").strip("<>")
        route = answer.all("record-route")[::-1]  # RFC 3261 12.1.2
        for method, cseq, meaning in (("ACK", 1, "the call is up"), ("BYE", 2, "alice hangs up")):
            sent = alice.send(
                alice.request(method, target, to=answer.get("to"), call_id=call_id, cseq=cseq, route=route)
            )
            got = await bob.receive(f"alice's {method}")
            self.expect(f"the {method} that bob got", got.first, sent.first)
            self.same(sent, got, "from", "to", "call-id", "cseq")
            self.expect(f"a Route that is left in the {method}", got.all("route"), [])
            await self.screen.line("alice", "bob", sent.shown, meaning)
        last = bob.send(bob.response(got, 200, "OK"))
        over = await alice.receive("200 OK to her BYE")
        self.expect("the answer to alice's BYE", over.first, last.first)
        self.expect("its Via", over.all("via"), sent.all("via"))
        self.same(last, over, "cseq", "call-id")
        await self.screen.line("bob", "alice", last.shown, "the call has ended", "green")

    def same(self, sent: _Message, got: _Message, *names: str) -> None:
        for name in names:
            self.expect(f"{name} of {got.shown}", got.get(name), sent.get(name))

    async def refuse(self) -> None:
        await self.heading(
            4,
            "Uninvited guests stay outside",
            f"A client without a cookie, and a page of {FOREIGN_ORIGIN} in Alice's browser: it comes with her "
            "cookie, but its Origin tells. on_handshake refuses both, and neither gets into the table.",
        )
        for name, cookie, origin, why in (
            ("guest", None, ORIGIN, "without a cookie"),
            ("phish", self.cookies.get("alice", ""), FOREIGN_ORIGIN, "a page of another site"),
        ):
            response = await _Phone(name).connect(self.url, cookie=cookie, origin=origin)
            await self.screen.line(name, "fastws", "GET / HTTP/1.1", why)
            self.expect(f"the HTTP status for {name}", int(response.status), HTTPStatus.FORBIDDEN.value)
            await self.screen.line("fastws", name, _status_line(response), "refused by the policy", "bold red")
        self.expect("the number of connections", len(fastws.connections), 2)

    async def impersonate(self, trudy: _Phone) -> None:
        await self.heading(
            5,
            "An impostor is stopped",
            "Trudy has a session of her own, and calls Bob in Alice's name. on_request compares From with the user of "
            "the connection, rejects the request and closes the connection.",
        )
        await self.connect(trudy, "with a session cookie", "accepted as trudy")
        invite = trudy.send(
            trudy.request(
                "INVITE",
                f"sip:bob@{DOMAIN}",
                sender="alice",
                to=f"<sip:bob@{DOMAIN}>",
                call_id=secrets.token_hex(8),
                headers=[f"Contact: <{trudy.contact}>"],
                body=OFFER,
            )
        )
        await self.screen.line("trudy", "fastws", invite.shown, "From says alice: a lie")
        answer = await trudy.receive("the 403 that an impostor gets")
        self.expect("the answer to trudy's INVITE", answer.first, "SIP/2.0 403 Identity mismatch")
        self.expect("its Via", answer.all("via"), invite.all("via"))
        self.same(invite, answer, "from", "call-id", "cseq")
        await self.screen.line("fastws", "trudy", answer.shown, "bob never hears of it", "bold red")
        await trudy.wait_gone()
        self.expect("the close of trudy", (trudy.close_code, trudy.close_reason), (1008, "Identity mismatch"))
        await self.screen.line(
            "fastws", "trudy", f"WebSocket close {trudy.close_code}", "closed by the policy", "bold red"
        )

    async def show_connections(self, alice: _Phone, bob: _Phone) -> None:
        self.step = "The table of connections"
        await self.screen.heading(
            "Who is connected: fastws.connections",
            "An entry lives exactly as long as its connection. Trudy's is gone, the refused never had one.",
        )
        rows = [
            (address, port, connection["user"], connection.messages_in, connection.messages_out)
            for (address, port), connection in fastws.connections.items()
        ]
        await self.screen.table(["address", "port", "user", "messages in", "messages out"], rows, 2)
        wanted = [(*phone.address, phone.name, phone.sent, phone.received) for phone in (alice, bob)]
        self.expect("the connections", rows, wanted)
        # What reached bob was alice's: had trudy's INVITE come through, there would be one more.
        self.expect("the number of messages that bob got", bob.received, 4)

    async def show_ends(self, alice: _Phone, bob: _Phone, trudy: _Phone) -> None:
        self.step = "The table of ends"
        await self.screen.heading(
            "Who left, and why: on_close",
            "Bob signs out, and Alice's network fails. on_close is told once for each connection, and who ended it.",
        )
        await bob.leave(WSCloseCode.OK, "signed out")
        await self.ended(2)
        await alice.vanish()
        await self.ended(3)
        closed = getattr(self.policy.module, "closed", [])
        rows = [(user, str(terminator), code, reason or "-") for user, terminator, code, reason in closed]
        await self.screen.table(["user", "terminator", "code", "reason"], rows, 0)
        wanted = [
            (trudy.name, "policy", 1008, "Identity mismatch"),
            (bob.name, "client", 1000, "signed out"),
            (alice.name, "network", 1006, ""),
        ]
        self.expect("what on_close was told", [tuple(entry) for entry in closed], wanted)
        self.expect("the number of connections at the end", len(fastws.connections), 0)

    async def ended(self, count: int) -> None:
        """Wait until on_close was called this many times; what it was told is compared later."""
        deadline = time.monotonic() + ANSWER_S
        while len(getattr(self.policy.module, "closed", [])) < count:
            if time.monotonic() > deadline:
                raise _Failed(f"on_close was not called {count} times within {ANSWER_S:g} s")
            await asyncio.sleep(0.005)


def _told(value: object) -> str:
    return repr(value) if isinstance(value, (list, tuple)) else str(value)


def _status_line(response: WSUpgradeResponse) -> str:
    return f"{response.version.decode()} {response.status.value} {response.status.phrase}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep log lines, such as that of a refusal, out of the picture: it tells the same by itself."""
    handler = logging.NullHandler()
    loggers = [logging.getLogger(name) for name in ("fastws", "picows")]
    before = [logger.propagate for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.propagate = False
    try:
        yield
    finally:
        for logger, propagate in zip(loggers, before, strict=True):
            logger.removeHandler(handler)
            logger.propagate = propagate


def _load() -> Policy:
    # Once it is loaded the file has served; so nothing is left behind, however the demo ends.
    with tempfile.TemporaryDirectory(prefix="fastws-demo-") as folder:
        file = Path(folder) / "policy.py"
        file.write_text(POLICY, encoding="utf-8")
        return Policy.load(file)


async def _show(screen: _Screen) -> int:
    console = screen.console
    policy = _load()
    # Port 0: the system chooses a free one.
    listen = Listen("ws://127.0.0.1:0", False, "127.0.0.1", 0, None)
    worker = Worker(Config(listen=(listen,), domains=(DOMAIN,)), policy)
    console.print(Text("fastws demo", style="bold blue"))
    screen.prose(
        "A SIP-over-WebSocket proxy, its policy and its clients, all in this terminal. Nothing is staged: real "
        "sockets, real SIP, and each line is checked as it happens."
    )
    failure = ""
    passed, step = 0, "The start"
    demo: _Demo | None = None
    try:
        async with asyncio.timeout(SCENE_S):
            await worker.start()
            demo = _Demo(screen, worker, policy)
            await demo.run()
    except TimeoutError:
        failure = f"it was not over within {SCENE_S:g} s"
    except _Failed as failed:
        failure = str(failed)
    except Exception as error:  # whatever it is: a newcomer is told in one line, and no traceback
        failure = f"{type(error).__name__}: {error}"
    finally:
        with suppress(TimeoutError):
            async with asyncio.timeout(STOP_S):
                await worker.stop()
    if demo is not None:
        passed, step = demo.passed, demo.step
    console.print()
    if failure:
        console.print(Text(f"{step} failed: {one_line(failure)}", style="bold red"), soft_wrap=True)
        console.print(f"1 check failed, {passed} passed.")
        return 1
    console.print(Text(f"All {passed} checks passed.", style="bold green"))
    console.print("Save the policy above as policy.py, name your SIP server, and start it for good:")
    console.print()
    console.print(Text(START, style="bold"), soft_wrap=True)  # one line to copy, however narrow the terminal
    return 0


def main() -> int:
    """Show it. Returns 0 if all of it happened as told, 1 if not; a Ctrl-C passes through when all is closed."""
    screen = _Screen()
    with _quiet(), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_show(screen))
