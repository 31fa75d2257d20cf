"""sip/route: bytes in, decisions and edits out. What the core makes of them is tested with the whole proxy."""

from __future__ import annotations

from typing import Any

import pytest

from tests import probe_core
from tests.probe_core import Scanned

KEY = bytes(range(16))
CALL = b"c1@alice.invalid"
PATH, DIALOG, BRANCH_UP = 1, 2, 3
EPOCH = 7
HOST = b"edge.example.com"


def node(key: bytes = KEY) -> probe_core.RouteNode:
    """An edge called edge.example.com on any port, and 192.0.2.5 and [2001:db8::5] on 5070."""
    names = [(HOST, 0), (b"192.0.2.5", 5070), (b"[2001:db8::5]", 5070)]
    return probe_core.RouteNode(key, epoch=EPOCH, names=names, advertised=b"edge.example.com:5070")


NODE = node()


def token(
    kind: int = DIALOG,
    slot: int = 0,
    generation: int = 1,
    *,
    epoch: int = EPOCH,
    worker: int = 0,
    call_id: bytes = CALL,
    key: bytes = KEY,
) -> bytes:
    """A sealed token; by default the dialog token of the first client."""
    sealed: bytes = probe_core.token_seal((kind, worker, 0, epoch, slot, generation, 65536, 0, 0), key, call_id)
    return sealed


def flip(text: bytes) -> bytes:
    """The same with one character changed."""
    return text[:20] + (b"A" if text[20:21] != b"A" else b"B") + text[21:]


def route(user: bytes | None = None, host: bytes = b"edge.example.com:5070", rest: bytes = b";lr") -> bytes:
    """One Route value."""
    return b"<sip:" + (user + b"@" if user is not None else b"") + host + rest + b">"


def request(
    *headers: bytes,
    method: bytes = b"INVITE",
    uri: bytes = b"sip:bob@example.com",
    via: bytes = b"SIP/2.0/WS alice.invalid;branch=z9hG4bK1",
    sender: bytes = b"<sip:alice@example.com>;tag=fa",
    target: bytes = b"<sip:bob@example.com>",
    max_forwards: bytes | None = b"70",
    body: bytes = b"",
    length: bool = True,
) -> bytes:
    """A request; `headers` are whole lines without their CR LF, and stand behind the Via."""
    lines = [method + b" " + uri + b" SIP/2.0", b"Via: " + via, *headers]
    if max_forwards is not None:
        lines.append(b"Max-Forwards: " + max_forwards)
    lines += [b"From: " + sender, b"To: " + target, b"Call-ID: " + CALL, b"CSeq: 1 " + method]
    if length:
        lines.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def response(*headers: bytes, vias: tuple[bytes, ...], length: bool = True, body: bytes = b"") -> bytes:
    lines = [b"SIP/2.0 200 OK", *(b"Via: " + via for via in vias), *headers]
    lines += [b"From: <sip:a@x>;tag=1", b"To: <sip:b@x>;tag=2", b"Call-ID: " + CALL, b"CSeq: 1 INVITE"]
    if length:
        lines.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def header(message: bytes, name: bytes) -> list[bytes]:
    """The values of all lines with this name, in order."""
    head = message.partition(b"\r\n\r\n")[0].split(b"\r\n")[1:]
    return [line.partition(b":")[2].strip() for line in head if line.partition(b":")[0].strip() == name]


# ---- request_check ---------------------------------------------------------------------------------------------------


def test_a_good_request_is_let_through() -> None:
    one = Scanned(request())
    assert one.check() == (0, None)
    assert one.parties == (b"fa", None, b"alice", b"bob")


@pytest.mark.rule(14)
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"via": b"SIP/2.0/WS"}, b"Bad Via"),
        ({"via": b"SIP/3.0/WS alice.invalid;branch=z9hG4bK1"}, b"Bad Via"),
        ({"via": b"SIP/2.0/WS alice.invalid:99999;branch=z9hG4bK1"}, b"Bad Via"),
        ({"uri": b"sip:"}, b"Bad Request-URI"),
        ({"uri": b"sip:bob@"}, b"Bad Request-URI"),
        ({"uri": b"sip:bob@example.com:0x10"}, b"Bad Request-URI"),
        ({"uri": b"sip:bob@example.com?Subject=x"}, b"Headers In Request-URI"),
        ({"sender": b"<sip:alice@example.com;tag=1"}, b"Bad From"),
        ({"sender": b"<sip:alice@>;tag=1"}, b"Bad From"),
        ({"sender": b"<sip:alice@example.com>;tag=1, <sip:bob@example.com>"}, b"Bad From"),
        ({"target": b"sip:bob@example.com>"}, b"Bad To"),
        ({"target": b"<sip:@example.com>"}, b"Bad To"),
        ({"target": b"<sip:a@x>,<sip:b@x>"}, b"Bad To"),
    ],
)
def test_what_cannot_be_read_is_400_and_says_what(change: dict[str, bytes], reason: bytes) -> None:
    assert Scanned(request(**change)).check() == (400, reason)  # type: ignore[arg-type]


@pytest.mark.rule(14)
@pytest.mark.rule(16)
@pytest.mark.rule(20)
@pytest.mark.parametrize(
    ("message", "status"),
    [
        (request().replace(b"To: ", b"X-To: "), 400),
        (request().replace(b"From: ", b"X-From: "), 400),
        (request().replace(b"Via: ", b"X-Via: "), 400),
        (request().replace(b"Call-ID: ", b"X-Call: "), 400),
        (request().replace(b"CSeq: ", b"X-CSeq: "), 400),
        (request().replace(b"CSeq: 1 INVITE", b"CSeq: 1 BYE"), 400),
        (request(b"Call-ID: other"), 400),
        (request(b"From: <sip:mallory@example.com>;tag=2"), 400),
        (request().replace(b" SIP/2.0\r", b" SIP/3.0\r"), 505),
    ],
)
def test_what_the_scanner_refuses_never_comes_to_the_check(message: bytes, status: int) -> None:
    assert Scanned(message).status == status


@pytest.mark.rule(15)
def test_an_unknown_method_header_or_body_is_no_reason_to_refuse() -> None:
    message = request(
        b"X-Unknown: \xff\xfe", b"Content-Type: application/x-nothing", method=b"NEWFANGLED", body=b"\0\xff"
    )
    assert Scanned(message).check() == (0, None)


@pytest.mark.rule(16)
@pytest.mark.parametrize(
    ("uri", "secured", "expected"),
    [
        (b"tel:+4930123456", False, (0, None)),
        (b"TEL:+4930123456", False, (0, None)),
        (b"SIP:bob@example.com", False, (0, None)),
        (b"http://example.com/", False, (416, b"Unsupported URI Scheme")),
        (b"mailto:bob@example.com", True, (416, b"Unsupported URI Scheme")),
        (b"nobodyKnowsThisScheme:totallyopaque", False, (416, b"Unsupported URI Scheme")),
        (b"sips:bob@example.com", False, (416, b"SIPS Needs TLS On Both Sides")),
        (b"SIPS:bob@example.com", False, (416, b"SIPS Needs TLS On Both Sides")),
        (b"sips:bob@example.com", True, (0, None)),
    ],
)
def test_the_scheme_of_the_request_uri_decides(uri: bytes, secured: bool, expected: tuple[int, bytes | None]) -> None:
    assert Scanned(request(uri=uri)).check(secured) == expected


@pytest.mark.rule(18)
@pytest.mark.parametrize("value", [b"foo", b"foo, bar", b"100rel", b"foo,\r\n bar"])
def test_proxy_require_is_420_and_the_tags_are_told(value: bytes) -> None:
    one = Scanned(request(b"Proxy-Require: " + value))
    assert one.check() == (420, b"Bad Extension")
    assert one.unsupported == value


@pytest.mark.rule(18)
def test_require_is_not_the_proxys_business() -> None:
    assert Scanned(request(b"Require: foo, 100rel", b"Supported: bar")).check() == (0, None)


def test_the_first_fault_is_the_one_that_is_told() -> None:
    one = Scanned(request(b"Proxy-Require: foo", uri=b"http://example.com", via=b"nonsense"))
    assert one.check() == (400, b"Bad Via")


def test_parties_are_read_in_every_form() -> None:
    one = Scanned(
        request(sender=b"sip:al%69ce@example.com;x=1;TAG=f1", target=b'"Bob \\" <x>" <sips:bob@example.com;tag=no>')
    )
    assert one.check() == (0, None)
    assert one.parties == (b"f1", None, b"al%69ce", b"bob")


# ---- routes_read -----------------------------------------------------------------------------------------------------

OTHER = b"<sip:pbx.example.net;lr>"
CLEAN: dict[str, Any] = {"reject": 0, "reason": None, "cut": [], "token": None, "next": None, "next_is_own": False,
                         "next_kind": 0}  # fmt: skip


def told(*lines: bytes, **how: Any) -> dict[str, Any]:
    """What routes_read says of a request with these Route lines, in full."""
    facts: dict[str, Any] = Scanned(request(*lines)).routes(NODE, **how)
    return facts


def fields(text: bytes, call_id: bytes = CALL) -> Any:
    return probe_core.token_open(text, KEY, call_id)


def test_without_a_route_there_is_nothing_to_pop() -> None:
    assert told() == CLEAN


@pytest.mark.rule(22)
@pytest.mark.parametrize(
    "value",
    [
        b"<sip:edge.example.com;lr>",
        b"<sip:EDGE.example.COM:1234;lr>",
        b"<sip:192.0.2.5:5070;lr>",
        b"<sip:192.0.2.5;lr>",
        b"<sip:[2001:db8::5]:5070;transport=ws;lr>",
        b"<sips:edge.example.com;lr>",
        b"sip:edge.example.com",
        b'"me" <sip:edge.example.com;lr>;x=y',
    ],
)
def test_our_own_name_on_top_is_popped(value: bytes) -> None:
    assert told(b"Route: " + value) == CLEAN | {"cut": [b"Route: " + value + b"\r\n"]}


@pytest.mark.rule(22)
@pytest.mark.parametrize(
    "value",
    [
        b"<sip:192.0.2.5:5071;lr>",
        b"<sip:192.0.2.6:5070;lr>",
        b"<sip:[2001:db8::6]:5070;lr>",
        b"<sip:edge.example.com.evil.example;lr>",
        b"<sip:example.com;lr>",
        b"<tel:+4930123>",
    ],
)
def test_another_ones_name_is_the_next_hop(value: bytes) -> None:
    facts = told(b"Route: " + value)
    assert facts["cut"] == [] and facts["next"] is not None and facts["reject"] == 0


@pytest.mark.rule(22)
def test_the_host_of_the_handshake_is_ours_if_it_is_a_name() -> None:
    line = b"Route: <sip:lb.example.org:443;lr>"
    assert told(line)["cut"] == []
    assert told(line, host=b"lb.example.org")["cut"] == [line + b"\r\n"]
    assert told(b"Route: <sip:LB.example.ORG;lr>", host=b"lb.example.org")["cut"] != []
    # An address that the client has reached may carry other servers on other ports.
    assert told(b"Route: <sip:198.51.100.7:5060;lr>", host=b"198.51.100.7")["cut"] == []
    assert told(b"Route: <sip:[2001:db8::9]:5060;lr>", host=b"[2001:db8::9]")["cut"] == []
    assert told(line, host=b"")["cut"] == []


@pytest.mark.rule(21)
@pytest.mark.rule(22)
@pytest.mark.parametrize("name", [b"Route", b"route", b"ROUTE", b"Route ", b"rOuTe\t"])
def test_a_route_is_popped_in_every_spelling_of_its_name(name: bytes) -> None:
    line = name + b":  " + route(token())
    facts = told(line)
    assert facts["cut"] == [line + b"\r\n"]
    assert facts["token"] == fields(token())


@pytest.mark.rule(21)
@pytest.mark.parametrize("comma", [b",", b", ", b" , ", b",\r\n ", b"\r\n\t,\r\n\t"])
def test_of_several_on_one_line_only_ours_are_popped(comma: bytes) -> None:
    one = Scanned(request(b"Route: " + route(token()) + comma + OTHER + comma + b"<sip:last.example.net;lr>"))
    facts = one.routes(NODE)
    assert facts["token"] == fields(token()) and facts["next"] == b"sip:pbx.example.net;lr"
    assert len(facts["cut"]) == 1 and facts["cut"][0].startswith(route(token()))
    assert Scanned(one.after_routes()).routes(NODE) == CLEAN | {"next": b"sip:pbx.example.net;lr"}
    assert one.after_routes() == request(b"Route: " + OTHER + comma + b"<sip:last.example.net;lr>")


@pytest.mark.rule(22)
def test_both_halves_of_a_doubled_record_route_are_popped_however_they_are_written() -> None:
    # RFC 5658: one for each side; both are sealed alike.
    ws, udp = route(token(), rest=b";transport=ws;lr"), route(token(), rest=b";transport=udp;lr")
    for lines in ([b"Route: " + ws, b"Route: " + udp], [b"Route: " + ws + b", " + udp]):
        facts = told(*lines)
        assert facts["cut"] == [line + b"\r\n" for line in lines] and facts["next"] is None
        assert facts["token"] == fields(token())
    one = Scanned(request(b"Route: " + ws + b"," + udp + b"," + OTHER))
    assert one.routes(NODE)["next"] == b"sip:pbx.example.net;lr"
    assert one.after_routes() == request(b"Route: " + OTHER)
    one = Scanned(request(b"Route: " + ws, b"X-Between: 1", b"Route: " + udp + b"," + OTHER, b"Route: " + OTHER))
    assert one.routes(NODE)["cut"] == [b"Route: " + ws + b"\r\n", udp + b","]
    assert one.after_routes() == request(b"X-Between: 1", b"Route: " + OTHER, b"Route: " + OTHER)


@pytest.mark.rule(29)
@pytest.mark.parametrize("kind", [PATH, DIALOG])
@pytest.mark.parametrize("from_client", [True, False])
def test_a_token_that_was_tampered_with_is_403(kind: int, from_client: bool) -> None:
    for bad in (flip(token(kind)), token(kind)[:-1], token(kind) + b"A", b"alice", token(kind, key=bytes(16))):
        facts = told(b"Route: " + route(bad), from_client=from_client)
        assert (facts["reject"], facts["reason"]) == (403, b"Bad Flow Token")
        assert facts["token"] is None


@pytest.mark.rule(29)
def test_a_token_under_another_ones_host_is_not_ours_unless_it_opens() -> None:
    # A tampered token names nobody; at a host that is not ours it is somebody else's user part.
    assert told(b"Route: " + route(flip(token()), b"pbx.example.net"))["next"] is not None
    # A good one proves itself, for an advertised name may have changed.
    assert told(b"Route: " + route(token(), b"old-name.example.net"))["token"] == fields(token())


@pytest.mark.parametrize("kind", [BRANCH_UP, 4])
def test_a_branch_is_no_flow_token(kind: int) -> None:
    for from_client in (True, False):
        facts = told(b"Route: " + route(token(kind)), from_client=from_client)
        assert (facts["reject"], facts["reason"]) == (403, b"Bad Flow Token")


def test_a_dialog_token_of_another_call_proves_nothing() -> None:
    facts = told(b"Route: " + route(token(call_id=b"other")))
    assert (facts["reject"], facts["token"]) == (403, None)


@pytest.mark.rule(29)
@pytest.mark.parametrize(
    "other", [{"slot": 1}, {"generation": 2}, {"epoch": EPOCH + 1}, {"worker": 1}], ids=lambda other: next(iter(other))
)
def test_a_path_token_of_another_connection_is_refused_from_a_client(other: dict[str, int]) -> None:
    line = b"Route: " + route(token(PATH, **other))  # type: ignore[arg-type]
    facts = told(line)
    assert (facts["reject"], facts["reason"], facts["token"]) == (403, b"Bad Flow Token", None)
    # From the SIP side it is what it was made for; whether the connection lives is for the core to say.
    facts = told(line, from_client=False)
    assert facts["reject"] == 0 and facts["token"] is not None and facts["cut"] == [line + b"\r\n"]


@pytest.mark.parametrize("other", [{"slot": 1}, {"generation": 2}, {"epoch": EPOCH + 1}, {"worker": 1}])
def test_a_dialog_token_of_another_connection_is_popped_and_proves_nothing(other: dict[str, int]) -> None:
    line = b"Route: " + route(token(DIALOG, **other))  # type: ignore[arg-type]
    facts = told(line, b"Route: " + OTHER)
    assert facts == CLEAN | {"cut": [line + b"\r\n"], "next": b"sip:pbx.example.net;lr"}


def test_of_a_call_between_two_clients_the_other_half_is_left_for_the_next_pass() -> None:
    mine, other = b"Route: " + route(token()), b"Route: " + route(token(slot=9, generation=4))
    one = Scanned(request(mine, other))
    facts = one.routes(NODE)
    assert facts["token"] == fields(token()) and facts["cut"] == [mine + b"\r\n"]
    assert facts["next_is_own"] and facts["next_kind"] == DIALOG and facts["next"] is not None
    assert one.after_routes() == request(other)
    facts = told(mine, b"Route: " + route(token(PATH, slot=9)))
    assert facts["next_is_own"] and facts["next_kind"] == PATH
    one = Scanned(request(mine + b" , " + other[7:]))
    assert one.routes(NODE)["next_is_own"]
    assert one.after_routes() == request(other)


def test_a_loose_name_before_and_behind_the_token_is_popped_too() -> None:
    one = Scanned(request(b"Route: " + route() + b"," + route(token()) + b"," + route(), b"Route: " + OTHER))
    facts = one.routes(NODE)
    assert facts["token"] == fields(token())
    assert one.after_routes() == request(b"Route: " + OTHER)


@pytest.mark.rule(14)
@pytest.mark.parametrize("value", [b"", b"<sip:edge.example.com", b"<>", b"sip:", b"<sip:a@b@c>", b"<sip:x:0>"])
def test_a_broken_route_is_400(value: bytes) -> None:
    facts = told(b"Route: " + value)
    assert (facts["reject"], facts["reason"]) == (400, b"Bad Route")


def test_a_broken_route_behind_ours_is_400_and_behind_another_ones_its_business() -> None:
    assert told(b"Route: " + route(token()) + b", <broken")["reject"] == 400
    assert told(b"Route: " + route(token()), b"Route: <broken")["reject"] == 400
    assert told(b"Route: " + OTHER, b"Route: <broken")["reject"] == 0


@pytest.mark.rule(32)
def test_more_routes_of_ours_than_any_path_has_are_a_loop() -> None:
    line = b"Route: " + route()
    assert told(*[line] * 16) == CLEAN | {"cut": [line + b"\r\n"] * 16}
    facts = told(*[line] * 17)
    assert (facts["reject"], facts["reason"], len(facts["cut"])) == (482, b"Loop Detected", 16)
    facts = told(*[line] * 16, b"Route: " + route() + b"," + OTHER)
    assert facts["reject"] == 482
    # On one line there may be as many as fit.
    assert told(b"Route: " + b",".join([route()] * 200))["reject"] == 0


@pytest.mark.parametrize(
    ("uri", "own"),
    [
        (b"sip:edge.example.com", True),
        (b"sip:anybody@edge.example.com:9", True),
        (b"sips:edge.example.com;transport=tcp", True),
        (b"sip:192.0.2.5:5070", True),
        (b"sip:192.0.2.5", True),
        (b"sip:192.0.2.5:5060", False),
        (b"sip:[2001:DB8::5]:5070", True),
        (b"sip:edge.example.co", False),
        (b"sip:edge.example.com.", False),
        (b"tel:edge.example.com", False),
    ],
)
def test_what_uris_are_ours(uri: bytes, own: bool) -> None:
    assert probe_core.uri_is_own(NODE, uri) is own


# ---- IDENTITY --------------------------------------------------------------------------------------------------------


@pytest.mark.case("C117")
@pytest.mark.parametrize(
    ("uri", "alone", "with_host"),
    [
        (b"sip:%61lice@example.com", True, True),
        (b"sip:Alice@example.com", False, False),
        (b"sip:alice;x=1@example.com", False, False),
        (b"sip:alice@evil.example", True, False),
        (b"sip:alice%40example.com@evil.example", False, False),
        (b"sips:alice@example.com", True, True),
        (b"tel:+12015550123", False, False),
        (b"sip:anonymous@anonymous.invalid", False, False),
        (b"sip:alice%00@example.com", False, False),
        (b"sip:alice%0d%0aX@example.com", False, False),
        (b"sip:alice@EXAMPLE.com", True, True),
        (b"sip:alice@example.com:5060", True, True),
        (b"sip:alice@example.com;user=phone", True, True),
        (b"sip:alice@example.com.", True, False),
        (b"sip:alice@sub.example.com", True, False),
        (b"sip:alice2@example.com", False, False),
        (b"sip:alic@example.com", False, False),
        (b"sip:example.com", False, False),
        (b"sip:%61%6c%69%63%65@example.com", True, True),
        (b"sip:%41lice@example.com", False, False),
    ],
)
def test_who_is_alice(uri: bytes, alone: bool, with_host: bool) -> None:
    assert probe_core.identity_match(uri, b"alice") is alone
    assert probe_core.identity_match(uri, b"alice@example.com") is with_host


@pytest.mark.parametrize(
    ("identity", "uri", "match"),
    [
        (b"alice@example.com:5080", b"sip:alice@example.com:5080", True),
        (b"alice@example.com:5080", b"sip:alice@example.com", False),
        (b"alice@example.com:5080", b"sip:alice@example.com:5081", False),
        (b"alice@example.com:05080", b"sip:alice@example.com:5080", True),
        (b"alice@example.com:", b"sip:alice@example.com", False),
        (b"alice@example.com:x", b"sip:alice@example.com", False),
        (b"alice@example.com:99999", b"sip:alice@example.com", False),
        (b"alice@[2001:db8::1]", b"sip:alice@[2001:DB8::1]", True),
        (b"alice@[2001:db8::1]:5060", b"sip:alice@[2001:db8::1]:5060", True),
        (b"alice@[2001:db8::1]:5060", b"sip:alice@[2001:db8::1]", False),
        (b"alice@", b"sip:alice@example.com", False),
        (b"@example.com", b"sip:alice@example.com", False),
        (b"", b"sip:alice@example.com", False),
        (b"@", b"sip:alice@example.com", False),
        (b"a@b@example.com", b"sip:a%40b@example.com", True),
        (b"a@b", b"sip:a%40b@example.com", False),
        (b"\xc3\xa4lice", b"sip:%C3%A4lice@example.com", True),
        (b"+4930", b"sip:+4930@example.com;user=phone", True),
        (b"a" * 256, b"sip:" + b"a" * 256 + b"@example.com", True),
        (b"a" * 257, b"sip:" + b"a" * 257 + b"@example.com", False),
        (b"a" * 86, b"sip:" + b"%61" * 86 + b"@example.com", False),  # 258 bytes as written
        (b"a" * 85, b"sip:" + b"%61" * 85 + b"@example.com", True),
    ],
)
def test_identities_with_host_port_and_other_shapes(identity: bytes, uri: bytes, match: bool) -> None:
    assert probe_core.identity_match(uri, identity) is match


@pytest.mark.parametrize(
    ("uri", "anonymous"),
    [
        (b"sip:anonymous@anonymous.invalid", True),
        (b"sip:anonymous@ANONYMOUS.Invalid", True),
        (b"sips:anonymous@anonymous.invalid", True),
        (b"sip:Anonymous@anonymous.invalid", False),
        (b"sip:anonymous@example.com", False),
        (b"sip:anonymous@anonymous.invalid.example.com", False),
        (b"sip:anonymous.invalid", False),
        (b"tel:anonymous", False),
    ],
)
def test_who_is_anonymous(uri: bytes, anonymous: bool) -> None:
    assert probe_core.is_anonymous(uri) is anonymous


@pytest.mark.parametrize(
    ("lines", "asks"),
    [
        ([], False),
        ([b"Privacy: id"], True),
        ([b"Privacy: ID"], True),
        ([b"Privacy: header;id"], True),
        ([b"Privacy: header ; id;critical"], True),
        ([b"Privacy: user, id"], True),
        ([b"Privacy: none"], False),
        ([b"Privacy: idle"], False),
        ([b"Privacy: user"], False),
        ([b"Privacy:"], False),
        ([b"Privacy: ;;"], False),
        ([b"Privacy: user", b"Privacy: id"], True),
    ],
)
def test_privacy_id_is_found_in_every_place(lines: list[bytes], asks: bool) -> None:
    assert Scanned(request(*lines)).asks_privacy is asks


# ---- dialogs and outbound --------------------------------------------------------------------------------------------


@pytest.mark.rule(24)
@pytest.mark.parametrize(
    ("method", "outside", "inside"),
    [
        (b"INVITE", True, False),
        (b"SUBSCRIBE", True, False),
        (b"REFER", True, False),
        (b"NOTIFY", True, True),  # may be what forms the dialog of a subscription (RFC 6665 4.4.1)
        (b"REGISTER", False, False),
        (b"OPTIONS", False, False),
        (b"MESSAGE", False, False),
        (b"ACK", False, False),
        (b"BYE", False, False),
        (b"CANCEL", False, False),
        (b"invite", False, False),  # methods are case-sensitive (RFC 3261 7.1)
    ],
)
def test_which_requests_may_form_a_dialog(method: bytes, outside: bool, inside: bool) -> None:
    for target, expected in ((b"<sip:b@x>", outside), (b"<sip:b@x>;tag=1", inside)):
        one = Scanned(request(method=method, target=target))
        assert one.check() == (0, None)
        assert one.forms_dialog is expected


@pytest.mark.rule(28)
@pytest.mark.parametrize(
    ("lines", "asks"),
    [
        ([b"Contact: <sip:a@a.invalid>;reg-id=1"], True),
        ([b"m: <sip:a@a.invalid> ; REG-ID=1"], True),
        ([b"Contact: sip:a@a.invalid;expires=1;reg-id=2"], True),
        ([b"Contact: <sip:a@x>, <sip:a@a.invalid>;reg-id=1"], True),
        ([b"Contact: <sip:a@x>", b"Contact: <sip:a@a.invalid>;reg-id=1"], True),
        ([], False),
        ([b"Contact: *"], False),
        ([b"Contact: <sip:a@a.invalid;reg-id=1>"], False),
        ([b'Contact: "x;reg-id=1" <sip:a@a.invalid>'], False),
        ([b"Contact: <sip:a@a.invalid>;x-reg-id=1"], False),
        ([b"Contact: <sip:a@a.invalid>;reg-id=1", b"Via: SIP/2.0/TCP 192.0.2.9;branch=z9hG4bK2"], False),
    ],
)
def test_outbound_needs_a_reg_id_and_a_first_hop(lines: list[bytes], asks: bool) -> None:
    one = Scanned(request(*lines, method=b"REGISTER"))
    assert one.check() == (0, None)
    assert one.asks_outbound is asks


@pytest.mark.rule(28)
def test_two_vias_on_one_line_are_two_hops() -> None:
    via = b"SIP/2.0/WS a.invalid;branch=z9hG4bK1, SIP/2.0/TCP 192.0.2.9;branch=z9hG4bK2"
    one = Scanned(request(b"Contact: <sip:a@a.invalid>;reg-id=1", method=b"REGISTER", via=via))
    assert one.check() == (0, None)
    assert one.asks_outbound is False


# ---- forward_edits ---------------------------------------------------------------------------------------------------


@pytest.mark.rule(17)
@pytest.mark.rule(23)
@pytest.mark.rule(25)
def test_a_request_goes_on_with_our_via_one_hop_less_and_all_else_untouched() -> None:
    body = b"v=0\r\n\0\xff\r\n\r\n"
    before = request(b"X-A: 1", b"X-B:\t2", b"X-A: 3", body=body)
    after = Scanned(before).forward(NODE)
    branch = token(BRANCH_UP)
    (ours, theirs) = header(after, b"Via")
    assert ours.startswith(b"SIP/2.0/UDP edge.example.com:5070;branch=z9hG4bK") and ours.endswith(b";rport")
    assert len(ours) == len(b"SIP/2.0/UDP edge.example.com:5070;branch=z9hG4bK") + len(branch) + len(b";rport")
    assert theirs == b"SIP/2.0/WS alice.invalid;branch=z9hG4bK1"
    assert after == before.replace(b"Via:", b"Via: " + ours + b"\r\nVia:", 1).replace(b"rwards: 70", b"rwards: 69")


@pytest.mark.rule(25)
def test_over_a_stream_the_via_asks_for_no_rport() -> None:
    after = Scanned(request()).forward(NODE, via_transport=b"TCP", out_parameter=b";transport=tcp")
    assert header(after, b"Via")[0].startswith(b"SIP/2.0/TCP edge.example.com:5070;branch=z9hG4bK")
    assert b"rport" not in after


@pytest.mark.rule(25)
def test_the_branch_is_the_token_it_was_told_to_seal() -> None:
    sealed = (BRANCH_UP, 2, 0xBEEF, 8, 300, 4, 65537, 99, 12)
    after = Scanned(request()).forward(NODE, branch=sealed)
    branch = header(after, b"Via")[0].partition(b"branch=z9hG4bK")[2].partition(b";")[0]
    assert probe_core.token_open(branch, KEY) == sealed


@pytest.mark.rule(17)
@pytest.mark.parametrize(
    ("value", "after"), [(b"70", b"69"), (b"1", b"0"), (b"255", b"254"), (b"010", b"9"), (None, b"70")]
)
def test_max_forwards_is_decremented_or_added(value: bytes | None, after: bytes) -> None:
    assert header(Scanned(request(max_forwards=value)).forward(NODE), b"Max-Forwards") == [after]


@pytest.mark.rule(24)
def test_where_the_transport_changes_two_record_routes_are_added_the_next_hops_on_top() -> None:
    sealed = (DIALOG, 0, 0, EPOCH, 3, 5, 65536, 0, 0)
    after = Scanned(request(b"Record-Route: <sip:other.example.net;lr>")).forward(
        NODE, record_route=True, dialog=sealed
    )
    values = header(after, b"Record-Route")
    text = probe_core.token_seal(sealed, KEY, CALL)
    assert values == [
        b"<sip:" + text + b"@edge.example.com:5070;transport=udp;lr>",
        b"<sip:" + text + b"@edge.example.com:5070;transport=ws;lr>",
        b"<sip:other.example.net;lr>",
    ]
    assert len(header(Scanned(request()).forward(NODE, record_route=True, in_parameter=None), b"Record-Route")) == 1
    assert header(Scanned(request()).forward(NODE), b"Record-Route") == []


@pytest.mark.rule(28)
def test_path_stands_on_top_of_the_paths_of_others() -> None:
    sealed = (PATH, 0, 0, EPOCH, 3, 5, 0, 0, 0)
    text = probe_core.token_seal(sealed, KEY)
    before = request(b"Path: <sip:edge-2.example.net;lr>", method=b"REGISTER")
    for outbound, tail in ((True, b";lr;ob>"), (False, b";lr>")):
        after = Scanned(before).forward(NODE, path=True, outbound=outbound, flow=sealed)
        assert header(after, b"Path") == [
            b"<sip:" + text + b"@edge.example.com:5070;transport=udp" + tail,
            b"<sip:edge-2.example.net;lr>",
        ]


@pytest.mark.rule(25)
@pytest.mark.parametrize("body", [b"", b"v=0\r\n", b"x" * 5000])
def test_a_missing_content_length_is_added(body: bytes) -> None:
    after = Scanned(request(body=body, length=False)).forward(NODE)
    assert header(after, b"Content-Length") == [b"%d" % len(body)]
    assert after.endswith(b"\r\n\r\n" + body)
    assert header(Scanned(request(body=body)).forward(NODE), b"Content-Length") == [b"%d" % len(body)]


@pytest.mark.rule(46)
@pytest.mark.rule(23)
def test_what_the_client_asserts_of_itself_is_cut_and_what_it_prefers_stays() -> None:
    before = request(
        b"P-Asserted-Identity: <sip:ceo@example.com>",
        b"P-Preferred-Identity: <sip:alice@example.com>",
        b"p-asserted-identity :\r\n <tel:+1>",
        b"X: 1",
    )
    after = Scanned(before).forward(NODE)
    assert b"sserted" not in after
    assert header(after, b"P-Preferred-Identity") == [b"<sip:alice@example.com>"] and header(after, b"X") == [b"1"]
    assert b"ceo@example.com" in Scanned(before).forward(NODE, strip_asserted=False)
    assert b"sserted" not in Scanned(before).without_asserted()


@pytest.mark.rule(22)
def test_popped_routes_do_not_go_on() -> None:
    mine = b"Route: " + route(token())
    after = Scanned(request(mine, b"Route: " + route(token(), rest=b";transport=ws;lr") + b", " + OTHER)).forward(NODE)
    assert header(after, b"Route") == [OTHER]
    # Also where the Route stands first, as JsSIP writes it: in the place where our Via is put.
    before = request().replace(b"SIP/2.0\r\nVia", b"SIP/2.0\r\n" + mine + b"\r\nVia", 1)
    after = Scanned(before).forward(NODE)
    assert header(after, b"Route") == [] and len(header(after, b"Via")) == 2
    assert after.split(b"\r\n")[1].startswith(b"Via: SIP/2.0/UDP edge")


def test_a_version_in_lower_case_is_written_as_the_rfc_has_it() -> None:
    one = Scanned(request().replace(b" SIP/2.0\r", b" sip/2.0\r"))
    assert one.status == 0
    assert one.forward(NODE).startswith(b"INVITE sip:bob@example.com SIP/2.0\r\n")


def test_a_message_with_every_edit_at_once_is_read_back_whole() -> None:
    before = request(
        b"Route: " + route(token()) + b"," + OTHER,
        b"P-Asserted-Identity: <sip:x@y>",
        via=b"SIP/2.0/UDP 192.0.2.1;rport;branch=z9hG4bK1",
        max_forwards=None,
        body=b"hello",
        length=False,
    )
    after = Scanned(before).forward(
        NODE, record_route=True, path=True, outbound=True, received_from=("198.51.100.1", 5099)
    )
    again = Scanned(after)
    assert again.status == 0 and again.check() == (0, None)
    assert len(header(after, b"Via")) == 2 and len(header(after, b"Record-Route")) == 2
    assert header(after, b"Route") == [OTHER] and header(after, b"Max-Forwards") == [b"70"]
    assert header(after, b"Content-Length") == [b"5"] and after.endswith(b"\r\n\r\nhello")
    via = b"SIP/2.0/UDP 192.0.2.1;rport=5099;branch=z9hG4bK1;received=198.51.100.1"
    assert header(after, b"Via")[1] == via


# ---- rport and received ----------------------------------------------------------------------------------------------


@pytest.mark.rule(27)
@pytest.mark.parametrize(
    ("via", "source", "expected"),
    [
        (
            b"SIP/2.0/UDP 192.0.2.1:5060;branch=z9hG4bK1",
            ("192.0.2.1", 9),
            b"SIP/2.0/UDP 192.0.2.1:5060;branch=z9hG4bK1",
        ),
        (
            b"SIP/2.0/UDP 192.0.2.1:5060;branch=z9hG4bK1",
            ("192.0.2.2", 9),
            b"SIP/2.0/UDP 192.0.2.1:5060;branch=z9hG4bK1;received=192.0.2.2",
        ),
        (
            b"SIP/2.0/UDP pbx.example.net;branch=z9hG4bK1",
            ("192.0.2.2", 9),
            b"SIP/2.0/UDP pbx.example.net;branch=z9hG4bK1;received=192.0.2.2",
        ),
        # rport brings received with it, even where the address is right (RFC 3581 4).
        (
            b"SIP/2.0/UDP 192.0.2.1;rport;branch=z9hG4bK1",
            ("192.0.2.1", 40000),
            b"SIP/2.0/UDP 192.0.2.1;rport=40000;branch=z9hG4bK1;received=192.0.2.1",
        ),
        (
            b"SIP/2.0/UDP 192.0.2.1;branch=z9hG4bK1;rport",
            ("192.0.2.1", 1),
            b"SIP/2.0/UDP 192.0.2.1;branch=z9hG4bK1;rport=1;received=192.0.2.1",
        ),
        (
            b"SIP/2.0/UDP 192.0.2.1;RPORT;branch=z9hG4bK1",
            ("192.0.2.1", 65535),
            b"SIP/2.0/UDP 192.0.2.1;RPORT=65535;branch=z9hG4bK1;received=192.0.2.1",
        ),
        (
            b"SIP/2.0/UDP [2001:db8::1];rport;branch=z9hG4bK1",
            ("2001:db8::1", 7),
            b"SIP/2.0/UDP [2001:db8::1];rport=7;branch=z9hG4bK1;received=2001:db8::1",
        ),
        (
            b"SIP/2.0/UDP [2001:DB8:0::1];branch=z9hG4bK1",
            ("2001:db8::1", 7),
            b"SIP/2.0/UDP [2001:DB8:0::1];branch=z9hG4bK1",
        ),
    ],
)
def test_rport_and_received_are_filled_in(via: bytes, source: tuple[str, int], expected: bytes) -> None:
    one = Scanned(request(via=via))
    assert header(one.forward(NODE, from_client=False, received_from=source), b"Via")[1] == expected
    assert header(one.answer(200, b"OK", received_from=source), b"Via") == [expected]


@pytest.mark.rule(27)
@pytest.mark.parametrize("blank", [b" ", b"\t", b"\r\n "])
def test_rport_is_filled_in_where_blanks_stand_around_it(blank: bytes) -> None:
    via = b"SIP/2.0/UDP 192.0.2.1" + blank + b";" + blank + b"rport" + blank + b";branch=z9hG4bK1"
    after = header(
        Scanned(request(via=via)).answer(200, b"OK", received_from=("192.0.2.1", 40000)).replace(b"\r\n ", b" "), b"Via"
    )
    assert len(after) == 1
    assert b"".join(after[0].split()) == b"SIP/2.0/UDP192.0.2.1;rport=40000;branch=z9hG4bK1;received=192.0.2.1"


@pytest.mark.rule(27)
def test_only_the_topmost_via_is_filled_in() -> None:
    via = b"SIP/2.0/UDP 192.0.2.1;rport;branch=z9hG4bK1 , SIP/2.0/UDP 192.0.2.9;rport;branch=z9hG4bK0"
    lower = b"Via: SIP/2.0/TCP 192.0.2.8;rport;branch=z9hG4bK9"
    answer = Scanned(request(lower, via=via)).answer(400, b"Bad Request", received_from=("192.0.2.1", 5))
    assert header(answer, b"Via") == [
        b"SIP/2.0/UDP 192.0.2.1;rport=5;branch=z9hG4bK1;received=192.0.2.1"
        b" , SIP/2.0/UDP 192.0.2.9;rport;branch=z9hG4bK0",
        b"SIP/2.0/TCP 192.0.2.8;rport;branch=z9hG4bK9",
    ]


def test_an_rport_that_has_a_value_is_left_alone() -> None:
    via = b"SIP/2.0/UDP 192.0.2.1;rport=77;received=192.0.2.3;branch=z9hG4bK1"
    assert header(Scanned(request(via=via)).answer(200, b"OK", received_from=("192.0.2.1", 5)), b"Via") == [via]


# ---- responses -------------------------------------------------------------------------------------------------------

OURS = b"SIP/2.0/UDP edge.example.com:5070;branch=z9hG4bKx;rport"
THEIRS = b"SIP/2.0/WS alice.invalid;branch=z9hG4bK1"


@pytest.mark.rule(21)
@pytest.mark.parametrize("comma", [b",", b", ", b" ,\t", b",\r\n "])
def test_the_topmost_via_of_a_response_is_popped_alone_or_in_a_list(comma: bytes) -> None:
    assert Scanned(response(vias=(OURS, THEIRS))).response() == response(vias=(THEIRS,))
    assert Scanned(response(vias=(OURS + comma + THEIRS,))).response() == response(vias=(THEIRS,))
    assert Scanned(response(vias=(OURS + comma + THEIRS, THEIRS))).response() == response(vias=(THEIRS, THEIRS))
    folded = response(vias=(OURS, THEIRS)).replace(b"Via: ", b"v:\r\n\t", 1)
    assert Scanned(folded).response() == response(vias=(THEIRS,))


@pytest.mark.rule(23)
@pytest.mark.rule(25)
def test_a_response_keeps_all_else_and_gets_the_content_length_it_lacks() -> None:
    body = b"\0\xff\r\n"
    before = response(b"X: 1", vias=(OURS, THEIRS), length=False, body=body)
    after = Scanned(before).response()
    assert after == before.replace(b"Via: " + OURS + b"\r\n", b"").replace(
        b"\r\n\r\n", b"\r\nContent-Length: 4\r\n\r\n", 1
    )


# ---- answers of our own ----------------------------------------------------------------------------------------------


def test_an_answer_has_the_vias_from_to_call_id_and_cseq_of_its_request() -> None:
    message = request(b"Via: SIP/2.0/TCP 192.0.2.8;branch=z9hG4bK9", b"X: 1", body=b"not returned")
    answer = Scanned(message).answer(403, b"Forbidden", b"t1", b"Retry-After: 5\r\nX: 2\r\n")
    assert answer == (
        b"SIP/2.0 403 Forbidden\r\n"
        b"Via: SIP/2.0/WS alice.invalid;branch=z9hG4bK1\r\n"
        b"Via: SIP/2.0/TCP 192.0.2.8;branch=z9hG4bK9\r\n"
        b"From: <sip:alice@example.com>;tag=fa\r\n"
        b"To: <sip:bob@example.com>;tag=t1\r\n"
        b"Call-ID: c1@alice.invalid\r\n"
        b"CSeq: 1 INVITE\r\n"
        b"Retry-After: 5\r\nX: 2\r\n"
        b"Content-Length: 0\r\n\r\n"
    )
    assert Scanned(answer).status == 0


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (b"<sip:b@x>;tag=1", b"<sip:b@x>;tag=1"),
        (b"<sip:b@x>;TAG=1", b"<sip:b@x>;TAG=1"),
        (b"sip:b@x", b"sip:b@x;tag=t1"),
        (b"<sip:b@x;tag=uri>", b"<sip:b@x;tag=uri>;tag=t1"),
        (b'"tag=1" <sip:b@x> ;y', b'"tag=1" <sip:b@x> ;y;tag=t1'),
        (b"<broken", b"<broken"),
    ],
)
def test_an_answer_adds_a_to_tag_where_there_is_none(target: bytes, expected: bytes) -> None:
    assert header(Scanned(request(target=target)).answer(400, b"x", b"t1"), b"To") == [expected]
    assert header(Scanned(request(target=target)).answer(400, b"x"), b"To") == [target]


def test_an_answer_to_compact_names_keeps_them_and_writes_a_to_of_its_own() -> None:
    short = [("Via", "v"), ("From", "f"), ("To", "t"), ("Call-ID", "i")]
    message = request()
    for long, compact in short:
        message = message.replace(f"\r\n{long}: ".encode(), f"\r\n{compact} :".encode())
    answer = Scanned(message).answer(486, b"Busy Here", b"t1")
    assert b"v :SIP/2.0/WS" in answer and b"To: <sip:bob@example.com>;tag=t1\r\n" in answer
    assert Scanned(answer).status == 0


@pytest.mark.rule(14)
@pytest.mark.parametrize("name", [b"From", b"To", b"Call-ID", b"CSeq"])
def test_a_broken_request_is_answered_with_what_it_has(name: bytes) -> None:
    one = Scanned(request().replace(name + b": ", b"X-Gone: "))
    assert one.status == 400
    answer = one.answer(400, b"Bad Request", b"t1")
    assert header(answer, name) == []
    others = {b"Via", b"From", b"To", b"Call-ID", b"CSeq"} - {name}
    assert all(len(header(answer, other)) == 1 for other in others)
    assert answer.endswith(b"Content-Length: 0\r\n\r\n")


def test_of_a_header_that_stands_twice_the_first_is_answered() -> None:
    one = Scanned(request(b"Call-ID: first", b"From: <sip:first@x>;tag=0"))
    assert one.status == 400
    answer = one.answer(400, b"Bad Request")
    assert header(answer, b"Call-ID") == [b"first"] and header(answer, b"From") == [b"<sip:first@x>;tag=0"]


# What we sent as a proxy: our Via on top, and below it that of whoever asked.
SENT = request(b"Via: " + THEIRS, b"X: 1", via=OURS, body=b"v=0\r\n")


def test_to_a_request_of_our_own_the_answer_goes_without_our_via() -> None:
    answer = Scanned(SENT).answer(408, b"Request Timeout", b"t1", b"Retry-After: 5\r\n", own=True)
    assert answer == (
        b"SIP/2.0 408 Request Timeout\r\n"
        b"Via: SIP/2.0/WS alice.invalid;branch=z9hG4bK1\r\n"
        b"From: <sip:alice@example.com>;tag=fa\r\n"
        b"To: <sip:bob@example.com>;tag=t1\r\n"
        b"Call-ID: c1@alice.invalid\r\n"
        b"CSeq: 1 INVITE\r\n"
        b"Retry-After: 5\r\n"
        b"Content-Length: 0\r\n\r\n"
    )
    assert answer == Scanned(SENT.replace(b"Via: " + OURS + b"\r\n", b"")).answer(
        408, b"Request Timeout", b"t1", b"Retry-After: 5\r\n"
    )


def test_only_the_topmost_via_is_ours_and_the_others_stay_as_they_are() -> None:
    # Their received was filled in on the way in; nothing is filled in again.
    vias = [THEIRS + b";rport", b"SIP/2.0/UDP a ,\tSIP/2.0/TCP b;branch=z9hG4bK2", b"SIP/2.0/UDP c"]
    message = request(*(b"Via: " + via for via in vias), via=OURS)
    for source in (None, ("192.0.2.1", 5)):
        assert header(Scanned(message).answer(503, b"x", received_from=source, own=True), b"Via") == vias
    assert header(Scanned(request(via=OURS)).answer(503, b"x", own=True), b"Via") == []


def test_a_100_is_given_without_a_tag() -> None:
    # RFC 3261 8.2.6.2: the tag is the far end's to give.
    answer = Scanned(SENT).answer(100, b"Trying", own=True)
    assert answer.startswith(b"SIP/2.0 100 Trying\r\n") and header(answer, b"To") == [b"<sip:bob@example.com>"]


# ---- CANCEL and ACK of our own ---------------------------------------------------------------------------------------


@pytest.mark.rule(41)
@pytest.mark.parametrize("method", [b"CANCEL", b"ACK"])
def test_a_derived_request_has_of_its_invite_what_9_1_and_17_1_1_3_say(method: bytes) -> None:
    routes = [b"Route: <sip:p1.example.net;lr>, <sip:p2.example.net;lr>", b"Route: <sip:p3.example.net;lr>"]
    others = [b"Contact: <sip:a@x>", b"Require: 100rel", b"Subject: s", b"Record-Route: <sip:edge.example.com;lr>"]
    invite = request(b"Via: " + THEIRS, *routes, *others, via=OURS, max_forwards=b"3", body=b"v=0\r\n")
    derived = Scanned(invite).derived(method)
    assert derived == b"\r\n".join(
        [
            method + b" sip:bob@example.com SIP/2.0",
            b"Via: " + OURS,
            *routes,
            b"From: <sip:alice@example.com>;tag=fa",
            b"To: <sip:bob@example.com>",
            b"Call-ID: c1@alice.invalid",
            b"Max-Forwards: 70",
            b"CSeq: 1 " + method,
            b"Content-Length: 0",
            b"",
            b"",
        ]
    )
    again = Scanned(derived)
    assert again.status == 0 and again.check() == (0, None)


@pytest.mark.rule(41)
def test_an_ack_has_the_to_of_the_response_with_its_tag() -> None:
    # 17.1.1.3: the To header field in the ACK MUST equal the To header field in the response.
    for line in (b"To: <sip:bob@example.com>;tag=b7\r\n", b"t:\t<sip:bob@example.com>\r\n ;tag=b7;x=1\r\n"):
        derived = Scanned(SENT).derived(b"ACK", line)
        assert line in derived and derived.count(b"sip:bob@example.com>") == 1
        assert Scanned(derived).status == 0


def test_a_derived_request_keeps_compact_and_folded_lines_whole() -> None:
    invite = SENT.replace(b"\r\nFrom: ", b"\r\nf:\r\n ").replace(b"\r\nCall-ID: ", b"\r\ni : ")
    derived = Scanned(invite).derived(b"CANCEL")
    assert b"\r\nf:\r\n <sip:alice@example.com>;tag=fa\r\n" in derived and b"\r\ni : c1@alice.invalid\r\n" in derived
    assert Scanned(derived).status == 0


@pytest.mark.parametrize("number", [0, 1, 2**31 - 1])
def test_a_derived_request_has_the_number_of_its_invite(number: int) -> None:
    invite = SENT.replace(b"CSeq: 1 INVITE", b"CSeq: %d INVITE" % number)
    assert header(Scanned(invite).derived(b"ACK"), b"CSeq") == [b"%d ACK" % number]


def test_every_status_that_fastws_gives_has_its_phrase() -> None:
    phrases = {100: b"Trying", 200: b"OK", 400: b"Bad Request", 403: b"Forbidden", 404: b"Not Found",
               408: b"Request Timeout", 416: b"Unsupported URI Scheme", 480: b"Temporarily Unavailable",
               420: b"Bad Extension", 430: b"Flow Failed", 482: b"Loop Detected", 483: b"Too Many Hops",
               500: b"Server Internal Error", 503: b"Service Unavailable", 505: b"Version Not Supported",
               513: b"Message Too Large", 699: b"Error", 0: b"Error"}  # fmt: skip
    assert {status: probe_core.reason_phrase(status) for status in phrases} == phrases
