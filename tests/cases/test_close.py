"""Public cases: how connections end, what has to be told of it, and what must not happen afterwards."""

from __future__ import annotations

import resource
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from ..conftest import wait_for
from .harness import (
    CLOSE,
    H0,
    PING,
    PONG,
    RECORD,
    TEXT,
    Client,
    Setup,
    answer,
    branch,
    data,
    dial,
    elements,
    fill,
    frame,
    method,
    refused_by,
    register_message,
    renewed,
    request_uri,
    value,
)

FW = Callable[..., Setup]


def one_close(setup: Setup, client: Client) -> tuple[str, int]:
    """Terminator and code of the one on_close of this client, whose attributes were still there."""
    wait_for(lambda: setup.closes(client), what="on_close")
    [close] = setup.closes(client)
    assert close["user"] == "alice"
    return close["terminator"], close["code"]


@pytest.mark.case("C089")
@pytest.mark.rule(45)
def test_a_reset_in_the_middle_of_everything_ends_everything_once(fw: FW) -> None:
    setup = fw("udp", RECORD)
    client = setup.client()
    path = setup.register(client)
    client.text(setup.ask("INVITE").replace(b"Content-Length", b"Contact: <sip:alice@c1.invalid>\r\nContent-Length"))
    invite = setup.up.request("INVITE")
    setup.up.send(answer(invite, "180 Ringing"))
    while b" 180 " not in client.message():
        pass
    client.text(setup.ask("OPTIONS"))
    options = setup.up.request("OPTIONS")
    client.send(frame(TEXT, setup.ask("MESSAGE"))[:40])
    template = fill(data("C089", 2), b"", Path=path)
    for number in range(200):
        setup.up.send(setup.here(renewed(template, f"queued{number}")))
    client.reset()
    assert one_close(setup, client) == ("network", 1006)
    late = fill(data("C089", 1), options), fill(data("C089", 1), invite)
    for response in late:
        setup.up.reply(options if response is late[0] else invite, setup.here(response))
    # The 200 queued ones may have been answered 430 or not at all; these have to be.
    wanted = {f"z9hG4bKnewlate{number}" for number in range(50)}
    for number in range(50):
        setup.up.send(setup.here(renewed(template, f"late{number}")))
    log_end = time.monotonic() + 0.8  # T1 is 500 ms: by then a repetition would have come
    while time.monotonic() < log_end or wanted:
        try:
            got = setup.up.receive(0.2 if not wanted else 5.0, repeats=True)
        except TimeoutError:
            continue
        if got.startswith(b"SIP/2.0 "):
            answered = branch(got)
            if answered in wanted:
                assert got.startswith(b"SIP/2.0 430 "), got
                wanted.discard(answered)
        else:
            # What C1 had asked for with INVITE may be cancelled; nothing is repeated, and no 200 acknowledged.
            assert method(got) == "CANCEL", got
            setup.up.answer(got)
    assert len(setup.closes(client)) == 1
    address = f"{client.address[0]}:{client.address[1]}"
    assert len([line for line in setup.edge.log().splitlines() if address in line]) <= 1


@pytest.mark.case("C090")
@pytest.mark.parametrize("upstream", ["udp", "tcp"])
def test_a_bye_right_before_the_close_is_still_carried(fw: FW, upstream: str) -> None:
    setup = fw(upstream, RECORD)
    client = setup.client()
    dialog = dial(setup, client)
    bye = setup.here(fill(data("C090", 0), b"", **{"Rset*": dialog.route_set}))
    log = setup.edge.log()
    client.send(frame(TEXT, bye) + data("C090", 1))
    received = setup.up.request("BYE")
    assert client.closed() == 1001
    assert one_close(setup, client) == ("client", 1001)
    setup.up.reply(received, fill(data("C090", 2), received))
    setup.quiet()
    assert len(setup.closes(client)) == 1
    assert setup.edge.log() == log


# -- C091 --------------------------------------------------------------------------------------------------------------

COUNTING = RECORD.replace(
    "def on_handshake(handshake):\n",
    'import fastws\ndef on_handshake(handshake):\n    note(moment="count", count=len(fastws.connections))\n',
)


@pytest.fixture
def descriptors() -> Iterator[None]:
    """Enough descriptors for 1,400 clients, here and in the proxy that is started meanwhile."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4096 if hard == resource.RLIM_INFINITY else min(hard, 4096)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    if wanted < 2000:
        pytest.skip("fewer than 2,000 descriptors are allowed here")
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.case("C091")
@pytest.mark.usefixtures("descriptors")
def test_a_thousand_clients_that_leave_at_once_are_told_a_thousand_times(fw: FW) -> None:
    setup = fw("udp", COUNTING, own="a thousand")
    setup.check()
    before = setup.descriptors()
    clients = [setup.client() for _ in range(1000)]
    for number, client in enumerate(clients):
        setup.register(client, f"n{number}")
    for _ in range(200):
        raw = setup.client(head=None)
        raw.send(H0.replace(b"GET / ", b"GET /?refuse=1 "))
        assert raw.http().status == 403
    for number in range(200):
        raw = setup.client(head=None)
        raw.send(H0[: 10 + number % 100])
    good = setup.notes("close")  # of the checks
    for number, client in enumerate(clients):
        if number % 3 == 0:
            client.frame(CLOSE, b"\x03\xe8")
        elif number % 3 == 1:
            client.fin()
        else:
            client.reset()
    wait_for(lambda: len(setup.notes("close")) >= len(good) + 1000, timeout=10, what="1,000 on_close")
    closes = {tuple(entry["source"]): entry for entry in setup.notes("close")[len(good) :]}
    assert closes.keys() == {client.address for client in clients}
    for number, client in enumerate(clients):
        close = closes[client.address]
        assert (close["terminator"], close["code"]) == (("client", 1000) if number % 3 == 0 else ("network", 1006))
    assert Counter(entry["terminator"] for entry in closes.values()) == {"client": 334, "network": 666}
    setup.end_test()  # the 400 others leave too
    wait_for(lambda: setup.descriptors() <= before, what="the descriptors of before")
    setup.check()
    assert setup.notes("count")[-1]["count"] == 0
    assert len(setup.notes("close")) <= len(good) + 1001  # that of the check


# -- C092, C095 --------------------------------------------------------------------------------------------------------


@pytest.mark.case("C092")
def test_who_does_not_answer_a_ping_is_closed_once_and_who_does_stays(fw: FW) -> None:
    # The case has 2 s and 4 s, and 60 s for C2: the same, ten times as fast.
    setup = fw("udp", RECORD, "ping_interval = 0.2\nping_timeout = 0.2\n", own="pings")
    mute, alive = setup.client(), setup.client()
    setup.register(mute)
    opened = time.monotonic()
    pings = 0
    closed = None
    while time.monotonic() < opened + 3:
        with suppress(TimeoutError):
            got = alive.receive(0.05)
            assert got.opcode == PING, got
            alive.frame(PONG, got.payload)
            pings += 1
        if closed is None and setup.closes(mute):
            closed = time.monotonic() - opened
    assert closed is not None and 0.35 < closed < 1.5
    assert one_close(setup, mute)[0] == "timeout"
    assert pings > 5
    assert setup.closes(alive) == []
    # It was sent one ping, and then the reason for its end.
    assert [mute.receive().opcode, mute.receive().opcode] == [PING, CLOSE]
    mute.ended()


@pytest.mark.case("C095")
@pytest.mark.rule(29)
@pytest.mark.rule(30)
def test_nothing_of_the_old_connection_is_handed_to_the_new_one(fw: FW) -> None:
    setup = fw("udp", RECORD)
    old, new = setup.client(), setup.client()
    setup.register(old)
    new.text(register_message("n1", cseq=2).replace(b"sip:alice@n1", b"sip:xyz@n1"))
    received = setup.up.request("REGISTER")
    setup.up.answer(received, headers=b"Contact: <sip:xyz@n1.invalid;transport=ws>;expires=600\r\n")
    new.final(200)
    [new_path] = elements(received, "path")
    dialog = dial(setup, old)
    old.frame(CLOSE, b"\x03\xe8")
    old.ended()
    bye = fill(data("C095", 0), b"", RR1=dialog.rr1, RR2=dialog.rr2)
    assert refused_by(setup, setup.here(renewed(bye, "095"))) == 430
    new.quiet()
    setup.up.send(setup.here(renewed(fill(data("C095", 1), b"", **{"Path'": new_path}), "095i")))
    invite = new.message()
    assert method(invite) == "INVITE"
    assert request_uri(invite) == b"sip:xyz@n1.invalid;transport=ws"
    new.text(answer(invite, "486 Busy Here"))
    setup.up.response(486)


# -- C105, C106: over TLS ----------------------------------------------------------------------------------------------


def flood(setup: Setup, path: str, count: int) -> None:
    """UP sends so many MESSAGEs with a body of 20,000 bytes, number i repeated."""
    for number in range(count):
        body = (b"%06d;" % number * 3000)[:20_000]
        setup.up.send(
            b"MESSAGE sip:alice@c1.invalid;transport=ws SIP/2.0\r\n"
            b"Via: SIP/2.0/TCP 127.0.0.1:%d;branch=z9hG4bKslow%d\r\nRoute: %s\r\nMax-Forwards: 70\r\n"
            b"From: <sip:bob@example.com>;tag=u1\r\nTo: <sip:alice@example.com>\r\nCall-ID: slow-%d\r\n"
            b"CSeq: 1 MESSAGE\r\nContent-Length: 20000\r\n\r\n" % (setup.up.port, number, path.encode(), number) + body
        )


def read_slowly(client: Client, seconds: float) -> None:
    """A little at a time: about 1 KiB every 20 ms."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with suppress(TimeoutError):
            client.socket.settimeout(0.02)
            client.buffer += client.socket.recv(1024)
        time.sleep(0.02)


def whole(payload: bytes, number: int) -> bool:
    return payload.endswith((b"%06d;" % number * 3000)[:20_000]) and value(payload, "call-id") == f"slow-{number}"


@pytest.mark.case("C105")
@pytest.mark.rule(50)
def test_a_slow_reader_over_tls_gets_all_of_it_in_order_and_its_pongs(fw: FW) -> None:
    setup = fw("tcp", RECORD, "max_queue_bytes = 16777216\nping_timeout = 30\n", wss=True)
    client = setup.client(receive_buffer=8192)
    path = setup.register(client)
    flood(setup, path, 100)
    for number in range(5):
        client.frame(PING, b"slow-%d" % number)
    read_slowly(client, 1.5)
    got = [client.receive() for _ in range(105)]
    messages = [one.payload for one in got if one.opcode == TEXT]
    assert len(messages) == 100
    assert all(whole(payload, number) for number, payload in enumerate(messages))
    assert [one.payload for one in got if one.opcode == PONG] == [b"slow-%d" % number for number in range(5)]


@pytest.mark.case("C105")
@pytest.mark.rule(50)
def test_a_queue_over_its_limit_ends_with_a_close_frame_and_not_inside_one(fw: FW) -> None:
    setup = fw("tcp", RECORD, "max_queue_bytes = 65536\nping_timeout = 30\n", wss=True)
    client = setup.client(receive_buffer=8192)
    path = setup.register(client)
    for _ in range(20):  # the kernel takes some megabytes before anything waits in the proxy
        flood(setup, path, 50)
        if setup.closes(client):
            break
    assert one_close(setup, client)[0] == "overload"
    number = 0
    while (got := client.receive()).opcode == TEXT:
        assert whole(got.payload, number % 50)
        number += 1
    assert got.opcode == CLOSE
    assert number > 0


@pytest.mark.case("C106")
@pytest.mark.parametrize(
    ("how", "terminator", "code"),
    [("FIN alone", "network", 1006), ("close_notify alone", "network", 1006), ("CLOSE and FIN", "client", 1001)],
)
def test_the_end_of_a_tls_connection_without_ceremony_is_told_once(
    fw: FW, how: str, terminator: str, code: int
) -> None:
    setup = fw("udp", RECORD, wss=True)
    client = setup.client()
    client.quiet()
    log = setup.edge.log()
    if how == "close_notify alone":
        with suppress(OSError):
            client.socket.unwrap()  # type: ignore[attr-defined]
    else:
        if how == "CLOSE and FIN":
            client.frame(CLOSE, b"\x03\xe9")
        client.fin()
    assert one_close(setup, client) == (terminator, code)
    client.close()
    setup.check()
    assert len(setup.closes(client)) == 1
    new = setup.edge.log()[len(log) :]
    assert "ERROR" not in new and "WARNING" not in new
