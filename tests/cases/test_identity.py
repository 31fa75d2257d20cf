"""Public cases: who a message says that it is from, in every disguise, and what two readers read differently."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import quote

import pytest

from ..conftest import wait_for
from ..relay import DIARY
from .harness import (
    H0,
    IDENT,
    IDENTITY,
    Client,
    Setup,
    TcpUp,
    assert_forwarded,
    body,
    data,
    fill,
    letters,
    method,
    raw_lines,
    treat,
    value,
    values,
)

FW = Callable[..., Setup]
MISMATCH = 1008


def froms(case: str) -> list[tuple[str, int]]:
    """(letter, step) of the From lines of a case."""
    return letters(case)


def with_from(case: str, step: int, line: bytes | None = None) -> bytes:
    """The carrying message of C108 with the From line of this step, as a transaction of its own."""
    carrier = data("C108", 6)
    [old] = [one for one in raw_lines(carrier) if one.startswith(b"From")]
    new = data(case, step) if line is None else line
    return carrier.replace(old, new).replace(b"c-sp-a", b"c-%s-%d" % (case.encode(), step))


def client_as(setup: Setup, user: str) -> Client:
    return setup.client(head=H0.replace(b"GET / ", f"GET /?user={quote(user)} ".encode()))


# -- C108 and C117: From -----------------------------------------------------------------------------------------------


@pytest.mark.case("C108")
@pytest.mark.parametrize(("letter", "step"), froms("C108"))
def test_the_name_of_a_stranger_in_a_from_is_not_the_caller(fw: FW, letter: str, step: int) -> None:
    setup = fw("udp", IDENTITY)
    client = setup.client()
    expected = 400 if letter in "cf" else 403
    assert treat(setup, client, with_from("C108", step), may_close=MISMATCH) == expected
    if expected == 403:
        [close] = wait_for(lambda: setup.closes(client))
        assert (close["terminator"], close["code"]) == ("policy", MISMATCH)


@pytest.mark.case("C108")
@pytest.mark.parametrize(("letter", "step"), froms("C108"))
def test_the_policy_reads_the_same_from_as_the_compiled_check(fw: FW, letter: str, step: int) -> None:
    setup = fw("udp", IDENT)
    message = with_from("C108", step)
    assert treat(setup, setup.client(), message) in ((400,) if letter in "cf" else (403,))
    for noted in setup.notes("request"):
        if noted["call_id"] == value(message, "call-id"):
            assert noted["from_uri"] is None or noted["from_uri"]["user"] == "bob"


@pytest.mark.case("C117")
@pytest.mark.parametrize(("letter", "step"), froms("C117"))
def test_who_is_alice(fw: FW, letter: str, step: int) -> None:
    setup = fw("udp", IDENTITY)
    client = setup.client()
    log = setup.edge.log()
    message = with_from("C117", step)
    received = treat(setup, client, message, may_close=MISMATCH)
    if letter in "aeg":
        # An escape is no difference (RFC 3261 19.1.4), sips: is as good as sip:, the host is not looked at.
        assert isinstance(received, bytes), received
        assert_forwarded(message, received)
    elif letter in "cm":
        assert received == 400
    else:
        assert received in (403, 400)
    new = setup.edge.log()[len(log) :]
    assert new.count("\n") <= 1 and "\r" not in new


@pytest.mark.case("C117")
@pytest.mark.parametrize(("letter", "step"), froms("C117"))
def test_who_is_alice_of_example_com(fw: FW, letter: str, step: int) -> None:
    setup = fw("udp", IDENTITY)
    client = client_as(setup, "alice@example.com")
    message = with_from("C117", step)
    received = treat(setup, client, message, may_close=MISMATCH)
    if letter in "ag":
        assert isinstance(received, bytes), received
        assert_forwarded(message, received)
    elif letter in "cm":
        assert received == 400
    else:
        assert received in (403, 400)


@pytest.mark.case("C117")
@pytest.mark.parametrize(
    ("identity", "uri", "same"),
    [
        ("alice@example.com", "sip:alice@EXAMPLE.com", True),
        ("alice@example.com", "sip:alice@example.com:5061", True),
        ("alice@example.com:5061", "sip:alice@example.com:5061", True),
        ("alice@example.com:5061", "sip:alice@example.com", False),
        ("alice", "sip:alice@EXAMPLE.com:5061;transport=ws", True),
        ("alice", "sip:alice", False),
        ("alice", "sip:alice%2F@example.com", False),
    ],
)
def test_hosts_compare_without_case_and_ports_where_the_identity_has_one(
    fw: FW, identity: str, uri: str, same: bool
) -> None:
    setup = fw("udp", IDENTITY)
    message = with_from("C117", 0, f"From: <{uri}>;tag=1\r\n".encode())
    received = treat(setup, client_as(setup, identity), message, may_close=MISMATCH)
    assert isinstance(received, bytes) if same else received == 403


@pytest.mark.case("C117")
@pytest.mark.parametrize(("preferred", "passes"), [("alice", True), ("bob", False)])
def test_an_anonymous_caller_passes_by_the_identity_that_he_prefers(fw: FW, preferred: str, passes: bool) -> None:
    setup = fw("udp", IDENTITY)
    line = data("C117", 8) + f"P-Preferred-Identity: <sip:{preferred}@example.com>\r\n".encode()
    received = treat(setup, setup.client(), with_from("C117", 8, line), may_close=MISMATCH)
    assert isinstance(received, bytes) if passes else received == 403


# -- C110: P-Asserted-Identity -----------------------------------------------------------------------------------------

ASSERTS = (
    IDENTITY
    + """
def on_request(request, connection):
    request.set_header("P-Asserted-Identity", "<sip:alice@example.com>")
"""
)


def names(message: bytes) -> list[str]:
    return [line.partition(b":")[0].strip().decode().lower() for line in raw_lines(message)]


@pytest.mark.case("C110")
@pytest.mark.rule(46)
@pytest.mark.parametrize("policy", [IDENTITY, ASSERTS], ids=["nobody asserts", "the policy asserts"])
def test_no_asserted_identity_of_a_client_passes_in_any_spelling(fw: FW, policy: str) -> None:
    setup = fw("udp", policy)
    message = data("C110")
    received = treat(setup, setup.client(), message)
    assert isinstance(received, bytes), received
    asserted = [text for line in values(received, "p-asserted-identity") for text in [line]]
    if policy is ASSERTS:
        assert asserted == ["<sip:alice@example.com>"]
        [line] = [line for line in raw_lines(received) if line.lower().startswith(b"p-asserted-identity")]
        received = received.replace(line, b"")
    assert b"p-asserted-identity" not in received.partition(b"\r\n\r\n")[0].lower()
    assert_forwarded(message, received, without=("p-asserted-identity",))
    assert value(received, "x-after") == "kept"
    assert value(received, "p-preferred-identity") == "<sip:alice@example.com>"
    assert value(received, "remote-party-id") == "<sip:ceo@example.com>;party=calling"


@pytest.mark.case("C110")
@pytest.mark.parametrize(
    ("config", "privacy", "stays"),
    [(None, "", True), (None, "Privacy: id\r\n", True), ("privacy = true\n", "", True),
     ("privacy = true\n", "Privacy: id\r\n", False), ("privacy = true\n", "Privacy: header;id\r\n", False)],
)  # fmt: skip
def test_what_the_upstream_asserts_stays_unless_privacy_is_configured_and_asked_for(
    fw: FW, config: str | None, privacy: str, stays: bool
) -> None:
    setup = fw("udp", None, config)
    client = setup.client()
    path = setup.register(client)
    setup.up.send(
        (
            "MESSAGE sip:alice@c1.invalid;transport=ws SIP/2.0\r\n"
            f"Via: SIP/2.0/UDP 127.0.0.1:{setup.up.port};rport;branch=z9hG4bKpai{len(privacy)}\r\nRoute: {path}\r\n"
            "Max-Forwards: 70\r\nFrom: <sip:anonymous@anonymous.invalid>;tag=u1\r\nTo: <sip:alice@example.com>\r\n"
            f"Call-ID: pai-{len(privacy)}\r\nCSeq: 1 MESSAGE\r\nP-Asserted-Identity: <sip:bob@example.com>\r\n"
            f"{privacy}X-After: kept\r\nContent-Length: 0\r\n\r\n"
        ).encode()
    )
    received = client.message()
    assert method(received) == "MESSAGE"
    assert values(received, "p-asserted-identity") == (["<sip:bob@example.com>"] if stays else [])
    assert value(received, "x-after") == "kept"


# -- C111: what a policy hands over ------------------------------------------------------------------------------------

#: One call for each X-Call; what it raises is noted, and the request goes on.
CALLS = (
    DIARY
    + r"""
from urllib.parse import unquote
def v(request):
    return unquote(request.headers["X-In"])
FORGED = ("Via", "Max-Forwards", "Content-Length", "Call-ID", "CSeq", "Route", "Record-Route", "Path", "v", "l", "i")
CALLS = {
    "add value": lambda request, connection: request.add_header("X-Out", v(request)),
    "set value": lambda request, connection: request.set_header("X-Out", v(request)),
    "add name": lambda request, connection: request.add_header("X-Out\r\nEvil", "1"),
    "add colon": lambda request, connection: request.add_header("X-Out: a", "1"),
    "add nothing": lambda request, connection: request.add_header("", "1"),
    "set From": lambda request, connection: request.set_header("From", v(request)),
    "remove name": lambda request, connection: request.remove_header("X\r\n"),
    "forward": lambda request, connection: request.forward("sip:a@b" + v(request)),
    "reject reason": lambda request, connection: request.reject(403, v(request)),
    "reject header": lambda request, connection: request.reject(403, headers={"X": v(request)}),
    "reject name": lambda request, connection: request.reject(403, headers={"X\r\nY": "1"}),
    "add NUL": lambda request, connection: request.add_header("X", "a\0b"),
    "add LF": lambda request, connection: request.add_header("X", "a\nb"),
    "add CR": lambda request, connection: request.add_header("X", "a\rb"),
    "add surrogate": lambda request, connection: request.add_header("X", "\ud800"),
    "add number": lambda request, connection: request.add_header("X", 5),
    "add bytes": lambda request, connection: request.add_header("X", b"a"),
    "add None": lambda request, connection: request.add_header("X", None),
    "reject number": lambda request, connection: request.reject(403, 5),
    "close": lambda request, connection: connection.close(1008, v(request) * 10),
    "close umlaut": lambda request, connection: connection.close(1008, "a" + "\u00e4" * 100),
}
for name in FORGED:
    CALLS["forge " + name] = lambda request, connection, name=name: request.add_header(name, "SIP/2.0/UDP x")
def on_handshake(handshake):
    bad = handshake.query.get("bad")
    if bad:
        given = {"reason": {"reason": bad}, "headers": {"headers": {"X": bad}}}[handshake.query["where"]]
        try:
            return handshake.reject(403, **given)
        except Exception as error:
            note(moment="handshake", error=type(error).__name__)
            return handshake.reject(418)
    return handshake.accept(user="alice")
def on_request(request, connection):
    call = request.headers.get("X-Call")
    if call is None:
        return None
    try:
        result = CALLS[call](request, connection)
    except Exception as error:
        note(moment="call", call=call, error=type(error).__name__)
        return None
    note(moment="call", call=call, error=None)
    return result
"""
)


def calling(name: str) -> bytes:
    """The message of C111 for one call of the policy."""
    return data("C111", 0).replace(b"X-In:", b"X-Call: %s\r\nX-In:" % name.encode())


@pytest.mark.case("C111")
@pytest.mark.parametrize(
    ("call", "error"),
    [(name, "ValueError") for name in (
        "add value", "set value", "add name", "add colon", "add nothing", "set From", "remove name", "forward",
        "reject reason", "reject header", "reject name", "add NUL", "add LF", "add CR", "add surrogate", "forge Via",
        "forge Max-Forwards", "forge Content-Length", "forge Call-ID", "forge CSeq", "forge Route",
        "forge Record-Route", "forge Path", "forge v", "forge l", "forge i",
    )]
    + [(name, "TypeError") for name in ("add number", "add bytes", "add None", "reject number")],
)  # fmt: skip
def test_what_is_no_value_of_a_header_raises_in_the_policy_and_is_never_on_the_wire(
    fw: FW, call: str, error: str
) -> None:
    setup = fw("udp", CALLS)
    message = calling(call)
    received = treat(setup, setup.client(), message)
    assert setup.notes("call")[-1] == {"moment": "call", "call": call, "error": error}
    assert isinstance(received, bytes), received
    assert_forwarded(message, received)  # and nothing of the failed call is in it


@pytest.mark.case("C111")
def test_a_policy_that_does_not_catch_it_gives_the_client_a_500_without_its_text(fw: FW) -> None:
    policy = """
from urllib.parse import unquote
def on_request(request, connection):
    if "X-In" in request.headers:
        request.add_header("X-Out", unquote(request.headers["X-In"]))
"""
    setup = fw("udp", policy, loud=True)
    client = setup.client()
    client.text(data("C111", 0))
    response = client.response(500)
    assert b"ceo" not in response and b"ValueError" not in response
    assert len(raw_lines(response)) == len(set(names(response)))
    client.quiet()
    setup.quiet()
    assert "ValueError" in setup.edge.log()


@pytest.mark.case("C111")
@pytest.mark.parametrize(("call", "reason"), [("close", None), ("close umlaut", "a" + "\u00e4" * 61)])
def test_a_close_reason_is_cut_at_a_character_where_it_is_too_long(fw: FW, call: str, reason: str | None) -> None:
    setup = fw("udp", CALLS)
    client = setup.client()
    client.text(calling(call))
    got = client.receive()
    assert got.code == 1008
    text = got.payload[2:]
    assert len(text) <= 123
    whole = "a\r\nP-Asserted-Identity: <sip:ceo@example.com>\r\n\r\n" * 10
    assert text.decode("utf-8") == (whole[:123] if reason is None else reason)
    setup.quiet()
    assert setup.notes("call")[-1] == {"moment": "call", "call": call, "error": None}


@pytest.mark.case("C111")
@pytest.mark.parametrize("where", ["reason", "headers"])
def test_a_refusal_of_the_handshake_carries_no_cr_lf(fw: FW, where: str) -> None:
    setup = fw("udp", CALLS)
    raw = setup.client(head=None)
    raw.send(H0.replace(b"GET / ", f"GET /?where={where}&bad=a%0D%0AX-Evil:%201 ".encode()))
    answer = raw.http()
    assert answer.status == 418
    assert answer.get("X-Evil") == []
    assert setup.notes("handshake")[-1]["error"] == "ValueError"


# -- C113 to C115: where a message ends --------------------------------------------------------------------------------


@pytest.mark.case("C113")
@pytest.mark.rule(25)
def test_a_body_without_a_content_length_does_not_become_a_request(fw: FW) -> None:
    setup = fw("tcp", IDENTITY)
    message = data("C113")
    received = treat(setup, setup.client(), message)
    assert isinstance(received, bytes), received
    assert_forwarded(message, received)
    assert method(received) == "MESSAGE"
    assert value(received, "content-length") == str(len(body(message))) == "220"


BAD_LENGTHS = range(13)


def with_length(step: int) -> bytes:
    """The request of C114 with the Content-Length of this step, as a transaction of its own."""
    carrier = data("C114", 14)
    old = b"Content-Length: 4\r\nContent-Length: 5\r\n"
    assert old in carrier
    return carrier.replace(old, data("C114", step)).replace(b"c-cl8", b"c-cl%d" % step)


@pytest.mark.case("C114")
@pytest.mark.rule(19)
@pytest.mark.rule(20)
@pytest.mark.parametrize("step", BAD_LENGTHS)
def test_a_content_length_that_can_be_read_in_two_ways_is_400(fw: FW, step: int) -> None:
    setup = fw("tcp")
    assert treat(setup, setup.client(), with_length(step)) == 400


@pytest.mark.case("C114")
def test_two_equal_content_lengths_are_400_as_well(fw: FW) -> None:
    setup = fw("tcp")
    message = with_length(7).replace(b"Length: 5", b"Length: 4")
    assert treat(setup, setup.client(), message) == 400


@pytest.mark.case("C114")
@pytest.mark.rule(21)
def test_a_folded_content_length_with_zeros_in_front_is_4(fw: FW) -> None:
    setup = fw("tcp")
    message = with_length(13)
    received = treat(setup, setup.client(), message)
    assert isinstance(received, bytes), received
    assert_forwarded(message, received, unfold=True)
    assert body(received) == b"body"


@pytest.mark.case("C114")
@pytest.mark.rule(19)
@pytest.mark.parametrize("step", BAD_LENGTHS)
def test_a_stream_whose_next_message_cannot_be_found_is_closed(fw: FW, step: int) -> None:
    # One proxy each: one whose server hangs up again and again waits longer from time to time before it dials.
    setup = fw("tcp", own=f"stream {step}")
    up = setup.tcp
    client = setup.client()
    asked = setup.ask("OPTIONS")
    client.text(asked)
    received = up.request("OPTIONS")
    connection = up.connection
    assert connection is not None
    up.send(
        fill(
            b"SIP/2.0 200 OK\r\n${Via*}From: ${From}\r\nTo: ${To};tag=u1\r\nCall-ID: ${Call-ID}\r\nCSeq: ${CSeq}\r\n",
            received,
        )
        + data("C114", step)
        + b"\r\nbody"
    )
    up.wait_closed(connection)
    up.open_requests.clear()
    setup.check()
    assert isinstance(up, TcpUp) and up.accepted >= 2
    # The proxy may say itself that nothing came of it; what the server said has not come through.
    while not client.silent(0.05):
        assert b"tag=u1" not in client.message()


@pytest.mark.case("C115")
@pytest.mark.rule(14)
@pytest.mark.parametrize(("letter", "step"), letters("C115"))
def test_a_bare_lf_or_cr_in_a_head_is_400_and_in_a_body_nothing(fw: FW, letter: str, step: int) -> None:
    setup = fw("tcp", IDENTITY)
    message = data("C115", step)
    received = treat(setup, setup.client(), message, may_close=MISMATCH)
    if letter == "e":
        assert isinstance(received, bytes), received
        assert_forwarded(message, received)
        assert body(received) == b"a\nb\rc"
    else:
        assert received == 400


def test_the_inputs_are_those_of_the_cases() -> None:
    assert [letter for letter, _ in froms("C108")] == list("abcdef")
    assert [letter for letter, _ in froms("C117")] == list("abcdefghijklm")
    assert b"Content-Length: 4\r\nl: 0\r\n" in with_length(8)
