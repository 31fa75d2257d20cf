# The handshake of a listener's clients, with a stand-in for the compiled connection: which answer goes out, what is
# left on the connection, and what the log says of it.
from __future__ import annotations

import asyncio
import logging
import sys
import textwrap
from typing import Any

import pytest

from fastws.admission import Admission
from fastws.policy import Policy
from fastws.wire.handshake import HeadReader, Limits

H0 = (
    b"GET /sip?token=hidden HTTP/1.1\r\n"
    b"Host: edge.example.com:8080\r\n"
    b"Upgrade: websocket\r\n"
    b"Connection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    b"Sec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Protocol: sip\r\n"
    b"Origin: https://app.example.com\r\n"
    b"Cookie: sid=hidden\r\n"
    b"\r\n"
)
ACCEPT_LINE = b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


class Conn:
    """What the compiled connection offers; writes down what is asked of it."""

    def __init__(self, source: tuple[str, int] = ("192.0.2.1", 4711)) -> None:
        self.source = source
        self.local = ("192.0.2.2", 8080)
        self.tls: dict[str, Any] | None = None
        self.reader: HeadReader | None = None
        self.task: asyncio.Task[Any] | None = None
        self.gone = False
        self.full = False
        self.held = 0
        self.calls: list[tuple[Any, ...]] = []
        self.decided = asyncio.Event()

    def hold(self) -> None:
        self.held += 1

    def accept(self, response: bytes, attributes: dict[str, Any], host: str, rest: bytes) -> bool:
        if self.full:
            return False
        self._decide("accept", response, attributes, host, rest)
        return True

    def refuse(self, response: bytes) -> None:
        self._decide("refuse", response)

    def refuse_with_code(self, response: bytes, code: int, reason: str) -> None:
        self._decide("refuse_with_code", response, code, reason)

    def _decide(self, *call: Any) -> None:
        assert not self.calls, "decided twice"
        assert self.reader is None
        assert self.task is None
        self.calls.append(call)
        self.decided.set()

    @property
    def status(self) -> int:
        """The HTTP status that went out, 0 as long as there is none."""
        return int(self.calls[0][1].split()[1]) if self.calls else 0


@pytest.fixture
def admit(tmp_path, monkeypatch, caplog):
    """Make the Admission of a ws listener with this policy; `outcomes` on it lists what on_outcome heard."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    caplog.set_level(logging.DEBUG, "fastws")

    def admit(source: str | None = None, *, path: str | None = "/sip", timeout: float = 5.0, **options: Any):
        file = None
        if source is not None:
            file = tmp_path / "policy.py"
            file.write_text(textwrap.dedent(source), encoding="utf-8")
        outcomes: list[int] = []
        admission = Admission(
            Policy.load(file, timeout=timeout),
            path=path,
            secure=False,
            limits=options.pop("limits", Limits()),
            on_outcome=outcomes.append,
            **options,
        )
        return admission, outcomes

    return admit


def refusals(caplog) -> list[str]:
    """The lines of the log that tell of refused handshakes; there may be nothing above debug beside them."""
    above = [record for record in caplog.records if record.levelno > logging.DEBUG and record.name != "fastws.policy"]
    assert all((record.name, record.levelno) == ("fastws.handshake", logging.INFO) for record in above)
    lines = [record.getMessage() for record in above]
    assert all(line.isprintable() for line in lines)
    return lines


@pytest.mark.rule(49)
def test_a_client_is_accepted_with_attributes_host_and_the_frames_behind_its_get(admit, caplog):
    admission, outcomes = admit("def on_handshake(handshake): return handshake.accept(user='alice')")
    conn = Conn()
    admission.feed(conn, H0 + b"\x81\x85frame")
    [(kind, response, attributes, host, rest)] = conn.calls
    assert kind == "accept"
    assert response.startswith(b"HTTP/1.1 101 ")
    assert ACCEPT_LINE in response
    assert (attributes, host, rest) == ({"user": "alice"}, "edge.example.com:8080", b"\x81\x85frame")
    assert (conn.held, outcomes, refusals(caplog)) == (0, [101], [])


def test_a_client_for_whom_the_table_has_no_room_is_503_and_counted_as_that(admit, caplog):
    admission, outcomes = admit()
    conn = Conn()
    conn.full = True
    admission.feed(conn, H0)
    assert [call[0] for call in conn.calls] == ["refuse"]
    assert conn.calls[0][1].startswith(b"HTTP/1.1 503 ")
    assert b"\r\nRetry-After: 5\r\n" in conn.calls[0][1]
    assert outcomes == [503]
    assert len(refusals(caplog)) == 1


def test_a_get_that_comes_byte_by_byte_is_accepted_at_its_last_byte(admit):
    admission, outcomes = admit()
    conn = Conn()
    for at in range(len(H0) - 1):
        admission.feed(conn, H0[at : at + 1])
        assert not conn.calls
    admission.feed(conn, H0[-1:] + b"rest")
    assert conn.calls[0][0] == "accept"
    assert conn.calls[0][-1] == b"rest"
    assert outcomes == [101]


def test_two_clients_whose_bytes_come_by_turns_do_not_mix(admit):
    admission, _ = admit()
    one, two = Conn(), Conn(("192.0.2.9", 1))
    for at in range(0, len(H0), 7):
        for conn in (one, two):
            admission.feed(conn, H0[at : at + 7])
    assert one.status == two.status == 101


@pytest.mark.parametrize(
    ("data", "status", "reason"),
    [
        (b"OPTIONS sip:bob@example.com SIP/2.0\r\n", 400, "no HTTP head"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01", 400, "no HTTP head"),
        (b"GET /" + b"a" * 9000, 431, "max_head_bytes"),
        (b"GET / HTTP/1.1\r\n" + b"X-A: x\r\n" * 65 + b"\r\n", 431, "max_headers"),
        (H0.replace(b"GET", b"POST"), 405, "POST"),
        (H0.replace(b"/sip?", b"/phpinfo.php?"), 404, "/phpinfo.php"),
        (H0.replace(b"Upgrade: websocket\r\n", b""), 426, "WebSocket"),
        (H0.replace(b"Version: 13", b"Version: 8"), 426, "version 13"),
        (H0.replace(b": sip", b": xmpp"), 400, "sip is not offered"),
        (H0.replace(b"Host", b"Hosts"), 400, "Host"),
    ],
)
@pytest.mark.case("C008")
@pytest.mark.case("C012")
def test_a_refusal_by_protocol_is_answered_counted_and_logged_once_without_secrets(admit, caplog, data, status, reason):
    admission, outcomes = admit("def on_handshake(handshake): raise AssertionError('asked')")
    conn = Conn()
    admission.feed(conn, data)
    [(kind, response)] = conn.calls
    assert kind == "refuse"
    assert conn.status == status
    assert b"\r\nConnection: close\r\n" in response
    assert b"\r\nContent-Type: text/plain" in response
    assert outcomes == [status]
    [line] = refusals(caplog)
    assert line.startswith(f"192.0.2.1:4711 refused {status}: ")
    assert (caplog.records[-1].peer, caplog.records[-1].status) == ("192.0.2.1:4711", status)
    assert reason in line
    assert "hidden" not in caplog.text
    assert b"hidden" not in response


def test_the_answer_to_head_has_no_content(admit):
    admission, _ = admit()
    conn = Conn()
    admission.feed(conn, H0.replace(b"GET", b"HEAD"))
    assert conn.status == 405
    assert conn.calls[0][1].endswith(b"\r\n\r\n")


@pytest.mark.case("C012")
def test_the_log_holds_no_more_than_200_bytes_of_what_a_peer_sent(admit, caplog):
    admission, _ = admit()
    conn = Conn(("2001:db8::1", 4711))
    admission.feed(conn, H0.replace(b"/sip?", b"/" + b"x" * 5000 + b"?"))
    [line] = refusals(caplog)
    assert line.startswith("[2001:db8::1]:4711 refused 404: ")
    assert "xxx" in line
    assert len(line) < 240


def test_what_the_policy_rejects_is_answered_as_it_said(admit, caplog):
    admission, outcomes = admit(
        """
        def on_handshake(handshake):
            return handshake.reject(429, "Slow \\xe9", {"Retry-After": "9"}, "later")
        """
    )
    conn = Conn()
    admission.feed(conn, H0)
    [(kind, response)] = conn.calls
    assert kind == "refuse"
    assert response.startswith("HTTP/1.1 429 Slow \xe9\r\n".encode())
    assert b"\r\nRetry-After: 9\r\n" in response
    assert response.endswith(b"\r\n\r\nlater")
    assert outcomes == [429]
    assert refusals(caplog) == ["192.0.2.1:4711 refused 429: rejected by the policy: Slow \xe9"]


def test_what_the_policy_refuses_gets_its_101_and_the_code(admit, caplog):
    admission, outcomes = admit('def on_handshake(handshake): return handshake.refuse(4401, "log\\nin")')
    conn = Conn()
    admission.feed(conn, H0 + b"frame")
    [(kind, response, code, reason)] = conn.calls
    assert kind == "refuse_with_code"
    assert ACCEPT_LINE in response
    assert (code, reason) == (4401, "log\nin")
    assert outcomes == [4401]
    assert refusals(caplog) == ["192.0.2.1:4711 refused with code 4401: refused by the policy: log\\nin"]


def test_a_challenge_is_a_401_with_a_line_for_each_algorithm(admit, caplog):
    admission, outcomes = admit("def on_handshake(handshake): return handshake.challenge('example')")
    conn = Conn()
    admission.feed(conn, H0)
    assert conn.status == 401
    assert conn.calls[0][1].count(b"\r\nWWW-Authenticate: Digest ") == 2
    assert outcomes == [401]
    assert refusals(caplog) == ["192.0.2.1:4711 refused 401: challenged by the policy"]


def test_a_policy_that_fails_is_a_500_that_says_nothing_of_it(admit, caplog):
    admission, outcomes = admit("def on_handshake(handshake): raise ValueError('hidden away')")
    conn = Conn()
    admission.feed(conn, H0)
    assert conn.status == 500
    assert b"hidden" not in conn.calls[0][1]
    assert outcomes == [500]
    assert refusals(caplog) == ["192.0.2.1:4711 refused 500: the policy failed"]
    assert "Traceback" in caplog.text


ORIGIN = """
def on_handshake(handshake):
    if handshake.headers.get("Origin") != "https://app.example.com":
        return handshake.reject(403)
    return handshake.accept()
"""


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        (b"Origin: https://app.example.com\r\n", 101),
        (b"", 403),
        (b"Origin: https://evil.example\r\n", 403),
        (b"Origin: https://app.example.com\r\nOrigin: https://evil.example\r\n", 403),
        (b"Origin : https://app.example.com\r\n", 400),
        (b"X-Pad: a\r\n Origin: https://app.example.com\r\n", 400),
        (b"Origin: https://app.example.com\0.evil.example\r\n", 400),
    ],
)
@pytest.mark.case("C005")
@pytest.mark.case("C011")
def test_an_origin_policy_lets_in_the_one_good_origin_and_no_forgery_of_it(admit, origin, status):
    admission, _ = admit(ORIGIN)
    conn = Conn()
    admission.feed(conn, H0.replace(b"Origin: https://app.example.com\r\n", origin))
    assert conn.status == status


def test_what_the_policy_sees_is_this_connection(admit):
    admission, _ = admit(
        """
        def on_handshake(handshake):
            return handshake.accept(seen=(handshake.source, handshake.local, handshake.secure, handshake.tls,
                                          handshake.forwarded_for))
        """,
        proxies=["192.0.2.0/24"],
    )
    conn = Conn()
    conn.tls = {"subject": ()}
    admission.feed(conn, H0.replace(b"Origin", b"X-Forwarded-For: 203.0.113.9\r\nOrigin"))
    assert conn.calls[0][2] == {
        "seen": (("192.0.2.1", 4711), ("192.0.2.2", 8080), False, {"subject": ()}, "203.0.113.9")
    }


def test_a_listener_without_a_path_takes_any(admit):
    admission, _ = admit(path=None)
    conn = Conn()
    admission.feed(conn, H0.replace(b"/sip?", b"/whatever?"))
    assert conn.status == 101


def test_a_replaced_policy_decides_about_the_next_client(admit, tmp_path):
    admission, outcomes = admit()
    admission.feed(Conn(), H0)
    file = tmp_path / "next.py"
    file.write_text("def on_handshake(handshake): return handshake.reject(451)", encoding="utf-8")
    admission.policy = Policy.load(file)
    admission.feed(Conn(), H0)
    assert outcomes == [101, 451]


# Async policies and time

GATED = """
import asyncio
GO_ON = asyncio.Event()
SEEN = []
async def on_handshake(handshake):
    try:
        if "slow" in handshake.headers:
            await GO_ON.wait()
    except asyncio.CancelledError:
        SEEN.append("cancelled")
        raise
    return handshake.accept(user="alice")
"""
SLOW = H0.replace(b"Origin", b"Slow: 1\r\nOrigin")


@pytest.mark.rule(13)
@pytest.mark.case("C007")
def test_a_client_whose_policy_thinks_is_held_and_holds_up_nobody(admit):
    async def run() -> None:
        admission, outcomes = admit(GATED)
        slow, quick = Conn(), Conn(("192.0.2.9", 1))
        admission.feed(slow, SLOW + b"one")
        assert (slow.held, slow.calls) == (1, [])
        assert slow.task is not None
        admission.feed(slow, b"two")  # already read when it was held
        admission.feed(quick, H0)
        await asyncio.wait_for(quick.decided.wait(), 10)
        assert quick.status == 101
        assert not slow.calls
        admission.expired(slow)  # the deadline of the head does not count while the policy thinks
        assert not slow.calls
        admission.policy.module.GO_ON.set()
        await asyncio.wait_for(slow.decided.wait(), 10)
        assert slow.status == 101
        assert slow.calls[0][-1] == b"onetwo"
        assert outcomes == [101, 101]

    asyncio.run(run())


@pytest.mark.rule(13)
def test_a_policy_that_takes_too_long_is_a_500(admit, caplog):
    async def run() -> None:
        admission, outcomes = admit(GATED, timeout=0.02)
        conn = Conn()
        admission.feed(conn, SLOW)
        await asyncio.wait_for(conn.decided.wait(), 10)
        assert conn.status == 500
        assert outcomes == [500]
        assert len(refusals(caplog)) == 1

    asyncio.run(run())


def test_a_client_that_leaves_while_the_policy_thinks_ends_it_and_is_no_refusal(admit, caplog):
    async def run() -> None:
        admission, outcomes = admit(GATED, timeout=100)
        conn = Conn()
        admission.feed(conn, SLOW)
        task = conn.task
        assert task is not None
        await asyncio.sleep(0)
        conn.gone = True
        admission.lost(conn)
        done, _ = await asyncio.wait([task], timeout=10)
        assert done
        await asyncio.sleep(0)
        assert admission.policy.module.SEEN == ["cancelled"]
        assert (conn.calls, conn.task, conn.reader, outcomes) == ([], None, None, [])

    asyncio.run(run())
    assert refusals(caplog) == []
    assert "192.0.2.1:4711 left before the policy answered" in caplog.text


def test_an_answer_for_a_client_that_is_gone_goes_nowhere(admit, caplog):
    async def run() -> None:
        admission, outcomes = admit(GATED)
        conn = Conn()
        admission.feed(conn, SLOW)
        conn.gone = True
        task = conn.task
        assert task is not None
        admission.policy.module.GO_ON.set()
        done, _ = await asyncio.wait([task], timeout=10)
        assert done
        await asyncio.sleep(0)
        assert (conn.calls, outcomes) == ([], [])

    asyncio.run(run())
    assert refusals(caplog) == []


def test_a_client_that_floods_while_the_policy_thinks_is_refused_and_the_policy_stopped(admit, caplog):
    async def run() -> None:
        admission, outcomes = admit(GATED, timeout=100)
        conn = Conn()
        admission.feed(conn, SLOW)
        task = conn.task
        assert task is not None
        await asyncio.sleep(0)
        admission.feed(conn, b"x" * 65536)
        assert not conn.calls
        admission.feed(conn, b"x")
        done, _ = await asyncio.wait([task], timeout=10)
        assert done
        await asyncio.sleep(0)
        assert conn.status == 400
        assert outcomes == [400]
        assert admission.policy.module.SEEN == ["cancelled"]

    asyncio.run(run())
    assert refusals(caplog) == ["192.0.2.1:4711 refused 400: too much sent before the answer"]


@pytest.mark.parametrize("sent", [b"", b"G", H0[:-1]])
@pytest.mark.rule(13)
@pytest.mark.case("C007")
def test_a_head_that_is_not_there_at_its_deadline_is_408_and_logged(admit, caplog, sent):
    admission, outcomes = admit()
    conn = Conn()
    if sent:
        admission.feed(conn, sent)
    admission.expired(conn)
    assert conn.status == 408
    assert outcomes == [408]
    [line] = refusals(caplog)
    assert line.startswith("192.0.2.1:4711 refused 408: ")
    assert "head_timeout" in line


def test_a_deadline_that_comes_after_the_peer_left_does_nothing(admit, caplog):
    admission, outcomes = admit()
    conn = Conn()
    conn.gone = True
    admission.expired(conn)
    assert (conn.calls, outcomes, refusals(caplog)) == ([], [], [])


@pytest.mark.parametrize(
    ("sent", "stage"), [(b"", "before it sent anything"), (b"GET / HT", "inside the HTTP head")]
)
@pytest.mark.case("C012")
def test_a_peer_that_connects_and_leaves_is_logged_at_debug_only(admit, caplog, sent, stage):
    admission, outcomes = admit()
    for _ in range(1000):
        conn = Conn()
        if sent:
            admission.feed(conn, sent)
        conn.gone = True
        admission.lost(conn)
        assert (conn.calls, conn.reader) == ([], None)
    assert refusals(caplog) == []
    assert outcomes == []
    assert f"192.0.2.1:4711 left {stage}" in caplog.text


def test_nobody_need_listen_to_the_outcomes():
    conn = Conn()
    Admission(Policy.load(None), path=None, secure=True, limits=Limits()).feed(conn, H0)
    assert conn.status == 101
