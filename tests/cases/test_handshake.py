"""Public cases: the HTTP upgrade, from browsers, from scanners, and from who never ends it."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

import pytest

from ..conftest import wait_for
from ..relay import DIARY
from .harness import ACCEPT, ACCEPT_KEY, H0, HOST, ORIGIN, RECORD, Client, Setup, Setups, data, decode, letters, value

FW = Callable[..., Setup]

SID = (
    DIARY
    + """
def on_handshake(handshake):
    if "a" in handshake.cookies:
        note(moment="handshake", sid=handshake.cookies["sid"])
    return handshake.accept()
"""
)

ORIGIN_LINE = b"Origin: https://app.example.com\r\n"
HOST_LINE = b"Host: edge.example.com:8080\r\n"


def without_answer(raw: Client) -> bytes:
    """What a client that is not let in has received when the connection ends."""
    got = raw.ended()
    raw.close()
    return got


def refused(setup: Setup, head: bytes) -> int:
    """The status of the refusal of this head, after which the connection has to end."""
    raw = setup.client(head=None)
    raw.send(head)
    status = raw.http().status
    raw.ended()
    return status


@pytest.mark.case("C001")
@pytest.mark.rule(3)
@pytest.mark.rule(4)
@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param(b"", b"", id="as it is"),
        pytest.param(b"Connection: keep-alive, Upgrade", b"connection: UPGRADE", id="upper case"),
        pytest.param(
            b"Connection: keep-alive, Upgrade\r\n",
            b"Connection: keep-alive\r\nConnection: upgrade\r\n",
            id="two lines",
        ),
        pytest.param(b"Upgrade: websocket", b"Upgrade: h2c, WebSocket", id="upgrade list"),
    ],
)
def test_a_list_of_tokens_in_any_case_asks_for_the_upgrade(fw: FW, old: bytes, new: bytes) -> None:
    head = data("C001")
    assert old in head
    client = fw().client(head=head.replace(old, new, 1) if old else head)
    assert client.answer is not None
    assert client.answer.get("Sec-WebSocket-Accept") == [ACCEPT_KEY]
    assert client.answer.get("Sec-WebSocket-Protocol") == ["sip"]
    assert client.answer.get("Sec-WebSocket-Extensions") == []


@pytest.mark.case("C001")
@pytest.mark.rule(1)
@pytest.mark.parametrize("line", [b"Connection: keep-alive", b"Connection: notupgrade"])
def test_a_connection_header_without_the_token_upgrade_is_400(fw: FW, line: bytes) -> None:
    assert refused(fw(), data("C001").replace(b"Connection: keep-alive, Upgrade", line)) == 400


@pytest.mark.case("C004")
def test_http_headers_with_the_names_of_sip_headers_are_neither_read_nor_kept(fw: FW) -> None:
    # 20,000 rounds within 2 MiB leave a round about 110 bytes. Here are fewer rounds, and the bound shrinks with them
    # as far as the allocator's grain allows: 3,000 rounds that kept one head each would be 2 MB.
    setup = fw("udp", ACCEPT)
    head = data("C004")

    def rounds(count: int) -> None:
        for _ in range(count):
            Client(setup.edge.port, head=head).close()

    rounds(1000)
    before = setup.memory()
    rounds(3000)
    setup.assert_grown(before, 512 * 1024)
    assert not re.search(r"(?i)\b(bad|invalid|malformed|error|warning)\b", setup.edge.log())


@pytest.mark.case("C005")
def test_no_origin_is_no_reason_to_refuse_without_a_policy(fw: FW) -> None:
    fw().client(head=data("C005"))


@pytest.mark.case("C005")
def test_the_policy_sees_that_there_is_no_origin(fw: FW) -> None:
    setup = fw("udp", ORIGIN)
    assert refused(setup, data("C005")) == 403
    assert setup.notes("handshake")[-1]["origin"] is None


@pytest.mark.case("C005")
@pytest.mark.parametrize("order", [1, -1])
def test_the_policy_is_not_shown_the_good_one_of_two_origins(fw: FW, order: int) -> None:
    lines = [ORIGIN_LINE, b"Origin: https://evil.example\r\n"][::order]
    assert refused(fw("udp", ORIGIN), H0.replace(ORIGIN_LINE, b"".join(lines))) in (400, 403)


# -- C007: real deadlines, so the slow ones start with the module and the last test looks at them ----------------------


@dataclass
class Slow:
    """Two that do not get on with their head, and when their connections ended, in seconds after they were opened."""

    setup: Setup
    mute: Client
    dripping: Client
    ended: dict[str, float] = field(default_factory=dict)
    received: dict[str, bytes] = field(default_factory=dict)
    threads: list[threading.Thread] = field(default_factory=list)

    def watch(self, name: str, client: Client, drip: bytes) -> None:
        opened = time.monotonic()
        client.socket.settimeout(1.0)
        got = b""
        with suppress(OSError):
            for number in range(60):
                if drip:
                    client.socket.send(drip[number : number + 1])
                try:
                    more = client.socket.recv(4096)
                except TimeoutError:
                    continue
                if not more:
                    break
                got += more
        self.ended[name] = time.monotonic() - opened
        self.received[name] = got


@pytest.fixture(scope="module", autouse=True)
def slow(setups: Setups) -> Iterator[Slow]:
    setup = setups.get("udp", RECORD, own="slow")
    port = setup.edge.port
    made = Slow(setup, Client(port, head=None), Client(port, head=None))
    for name, client, drip in (("mute", made.mute, b""), ("dripping", made.dripping, H0)):
        thread = threading.Thread(target=made.watch, args=(name, client, drip), daemon=True)
        thread.start()
        made.threads.append(thread)
    yield made
    made.mute.close()
    made.dripping.close()
    for thread in made.threads:
        thread.join(5)


@pytest.mark.case("C007")
def test_who_speaks_is_served_while_others_are_slow_with_their_head(fw: FW, slow: Slow) -> None:
    setup = fw("udp", RECORD, own="slow")
    assert setup is slow.setup
    client = setup.client()
    took = []
    for number in range(3):  # a busy machine may take its time once
        client.text(data("C007").replace(b"z9hG4bK0000003", b"z9hG4bK000%d" % number))
        sent = time.monotonic()
        setup.up.answer(setup.up.request("OPTIONS"))
        took.append(time.monotonic() - sent)
        client.final(200)
    assert min(took) < 0.1


@pytest.mark.case("C008")
def test_two_thousand_header_lines_are_refused_at_once_and_nothing_breaks(fw: FW) -> None:
    setup = fw("udp", ACCEPT)
    raw = setup.client(head=None)
    raw.send(data("C008"))
    assert raw.http().status in (431, 400)
    raw.ended()
    setup.client()


@pytest.mark.case("C009")
def test_seven_kib_of_cookies_fit_and_the_one_asked_for_is_found(fw: FW) -> None:
    setup = fw("udp", SID)
    setup.client(head=data("C009"))
    assert setup.notes("handshake")[-1]["sid"] == "s1"


@pytest.mark.case("C011")
@pytest.mark.parametrize("letter", "abcd")
def test_a_head_that_two_readers_could_read_differently_is_400(fw: FW, letter: str) -> None:
    line = data("C011", dict(letters("C011"))[letter])
    if letter in "ad":
        head = H0.replace(ORIGIN_LINE, line)
    else:
        head = H0.replace(HOST_LINE, HOST_LINE + line)
        if letter == "b":
            head = head.replace(ORIGIN_LINE, b"")
    setup = fw("udp", ORIGIN)
    asked = len(setup.notes("handshake"))
    assert refused(setup, head) == 400
    assert len(setup.notes("handshake")) == asked  # no Origin ever came as far as the policy


@pytest.mark.case("C012")
@pytest.mark.rule(49)
def test_a_scanner_that_half_closes_gets_a_4xx(fw: FW) -> None:
    setup = fw("udp", RECORD)
    raw = setup.client(head=None)
    raw.send(data("C012", 0))
    raw.fin()
    assert raw.http().status in (400, 404, 426)
    raw.ended()
    assert setup.closes(raw) == []


@pytest.mark.case("C012")
def test_a_thousand_health_checks_leave_no_line_and_no_descriptor(fw: FW) -> None:
    setup = fw("udp", RECORD)
    setup.check()
    before, log, closes = setup.descriptors(), setup.edge.log(), len(setup.notes("close"))
    for _ in range(1000):
        with socket.create_connection((HOST, setup.edge.port)):
            pass
    wait_for(lambda: setup.descriptors() <= before, what="the descriptors of before")
    assert setup.edge.log() == log
    assert len(setup.notes("close")) <= closes + 1  # that of the check


@pytest.mark.case("C012")
@pytest.mark.parametrize("step", [2, 3], ids=["raw SIP", "eight bytes of TLS"])
def test_what_is_no_http_at_all_is_400_or_a_close(fw: FW, step: int) -> None:
    setup = fw("udp", RECORD)
    raw = setup.client(head=None)
    raw.send(data("C012", step))
    answer = without_answer(raw)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 400 "), answer
    setup.quiet()
    assert setup.closes(raw) == []


@pytest.mark.case("C012")
@pytest.mark.parametrize(
    "head",
    [
        pytest.param(r"\{Z*6000} / HTTP/1.1\r\n\r\n", id="method"),
        pytest.param(r"GET /\{Z*6000} HTTP/1.1\r\nHost: x\r\n\r\n", id="target"),
        pytest.param(r"GET / HTTP/1.1\r\nHost: x\r\n\{Z*6000}\0: x\r\n\r\n", id="name"),
        pytest.param(r"GET / HTTP/1.1\r\nHost: \{Z*6000}\x1b[31m\r\n\r\n", id="value"),
    ],
)
def test_the_log_holds_little_of_what_a_scanner_sent_and_no_control_character(fw: FW, head: str) -> None:
    setup = fw("udp", RECORD)
    before = len(setup.edge.log())
    raw = setup.client(head=None)
    raw.send(decode(head))
    without_answer(raw)
    log = wait_for(lambda: setup.edge.log()[before:], what="a line of the refusal")
    assert "Z" * 200 not in log
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", log)
    assert log.count("\n") == 1 and f"{raw.address[0]}:{raw.address[1]}" in log


@pytest.mark.case("C007")
@pytest.mark.rule(13)
@pytest.mark.parametrize("name", ["mute", "dripping"])
def test_one_deadline_holds_for_the_whole_head(fw: FW, slow: Slow, name: str) -> None:
    setup = fw("udp", RECORD, own="slow")
    wait_for(lambda: name in slow.ended, timeout=20, what="the end of a slow head")
    assert 8 < slow.ended[name] < 14  # head_timeout is 10 s by default
    assert slow.received[name] == b"" or slow.received[name].startswith(b"HTTP/1.1 408 ")
    client = slow.mute if name == "mute" else slow.dripping
    address = f"{client.address[0]}:{client.address[1]}"
    [line] = [line for line in setup.edge.log().splitlines() if address in line]
    assert "head_timeout" in line
    assert setup.closes(client) == []


def test_the_notation_of_the_cases_is_read_as_it_is_defined() -> None:
    assert decode(r"a\r\n\t\0\xe9\\x\{ab\r*3}" + "\n" + "z") == b"a\r\n\t\0\xe9\\xab\rab\rab\rz"
    assert value(data("C044"), "call-id") == "c" * 900
    assert data("C120", 2) == b"\r\n" * 500_000


# -- C099: addresses that a proxy in front says ------------------------------------------------------------------------

FRONT = (
    DIARY
    + """
import fastws
def on_handshake(handshake):
    note(moment="handshake", source=handshake.source, forwarded_for=handshake.forwarded_for)
    return handshake.accept()
def on_close(connection, terminator, code, reason):
    note(moment="close", source=connection.source)
def on_request(request, connection):
    note(moment="request", source=connection.source, same=fastws.connections[connection.source] == connection)
"""
)
FRIEND = 'proxies = ["127.0.0.1"]\n'
FRIENDS = 'proxies = ["127.0.0.1", "198.51.100.4"]\n'
FORWARDED = b"X-Forwarded-For: 10.0.0.1, 203.0.113.9\r\nX-Forwarded-For: 198.51.100.4\r\n"


def fronted(step: int) -> bytes:
    """The handshake of C099; from step 1 on with another X-Forwarded-For."""
    head = data("C099", 0)
    assert FORWARDED in head
    return head.replace(FORWARDED, data("C099", step)) if step else head


@pytest.mark.case("C099")
@pytest.mark.parametrize(
    ("config", "step", "expected"),
    [
        pytest.param(FRIEND, 0, "198.51.100.4", id="a-the last that is no friend"),
        pytest.param(FRIENDS, 0, "203.0.113.9", id="a-the last is a friend too"),
        pytest.param(None, 0, None, id="b-from a stranger"),
        pytest.param(FRIEND, 1, "2001:db8::9", id="in quotes, with a port"),
        pytest.param(None, 1, None, id="in quotes, from a stranger"),
        pytest.param(FRIEND, 2, None, id="empty"),
        pytest.param(FRIEND, 3, "203.0.113.9", id="two hundred"),
    ],
)
def test_x_forwarded_for_is_believed_from_a_friend_only_and_never_its_first_entry(
    fw: FW, config: str | None, step: int, expected: str | None
) -> None:
    # Decided in DESIGN: `source` is the TCP peer, and what is forwarded, which has no port, is `forwarded_for`.
    setup = fw("udp", FRONT, config)
    client = setup.client(head=fronted(step))
    noted = setup.notes("handshake")[-1]
    assert noted["source"] == list(client.address)
    assert noted["forwarded_for"] == expected
    client.text(setup.ask("OPTIONS"))
    setup.up.answer(setup.up.request("OPTIONS"))
    client.final(200)
    assert setup.notes("request")[-1] == {"moment": "request", "source": list(client.address), "same": True}


@pytest.mark.case("C099")
@pytest.mark.parametrize(
    "entry", ["unknown", "1.2.3", "[::1", "[::1]x", "[192.0.2.1]", "192.0.2.1:x", "192.0.2.1:", '"192.0.2.1', "\xff"]
)
def test_an_entry_that_is_no_address_is_not_stepped_over(fw: FW, entry: str) -> None:
    setup = fw("udp", FRONT, FRIEND)
    line = f"X-Forwarded-For: 203.0.113.9, {entry}\r\n".encode("latin-1")
    setup.client(head=data("C099", 0).replace(FORWARDED, line))
    assert setup.notes("handshake")[-1]["forwarded_for"] is None
