"""RFC 4475 and RFC 5118: the torture messages, each through the running proxy.

The files in tests/messages/rfc4475 are the RFC's own bytes. The messages for RFC 5118 are made here in the likeness of
its sections. A request goes from C1 to the proxy in one TEXT frame, BINARY where its bytes are not UTF-8; a response
comes from UP, as it is and with the Vias of something that C1 has asked.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from .harness import (
    BINARY,
    RECORD,
    TEXT,
    Client,
    Setup,
    answer,
    assert_forwarded,
    body,
    branch,
    elements,
    fence,
    fill,
    frame,
    method,
    name_of,
    raw_lines,
    register_message,
    renewed,
    start_line,
    status,
    treat,
    value,
    values,
    vias,
)

FW = Callable[..., Setup]
FILES = Path(__file__).parent.parent / "messages" / "rfc4475"


def message(name: str) -> bytes:
    return (FILES / f"{name}.dat").read_bytes()


def opcode(data: bytes) -> int:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return BINARY
    return TEXT


def without_route(data: bytes) -> bytes:
    for line in raw_lines(data):
        if name_of(line) == "route":
            data = data.replace(line, b"", 1)
    return data


def treated(setup: Setup, client: Client, data: bytes) -> int | bytes:
    return treat(setup, client, data, opcode=opcode(data))


def pass_on(setup: Setup, client: Client, data: bytes) -> bytes:
    """The request as UP received it, unchanged but for what a proxy has to change."""
    received = treated(setup, client, data)
    assert isinstance(received, bytes), received
    assert_forwarded(data, received)
    return received


# -- RFC 4475, requests ------------------------------------------------------------------------------------------------

#: What has to go on, and what may be refused with 400 instead.
FORWARD = [
    pytest.param("intmeth", marks=pytest.mark.case("T02")),
    pytest.param("esc01", marks=pytest.mark.case("T03")),
    pytest.param("escnull", marks=pytest.mark.case("T04")),
    pytest.param("esc02", marks=pytest.mark.case("T05")),
    pytest.param("lwsdisp", marks=pytest.mark.case("T06")),
    pytest.param("longreq", marks=pytest.mark.case("T07")),
    pytest.param("dblreq", marks=pytest.mark.case("T08")),
    pytest.param("semiuri", marks=pytest.mark.case("T09")),
    pytest.param("transports", marks=pytest.mark.case("T10")),
    pytest.param("unksm2", marks=pytest.mark.case("T37")),
    pytest.param("invut", marks=pytest.mark.case("T39")),
    pytest.param("regaut01", marks=pytest.mark.case("T40")),
    pytest.param("cparam01", marks=pytest.mark.case("T45")),
    pytest.param("cparam02", marks=pytest.mark.case("T46")),
    pytest.param("regescrt", marks=pytest.mark.case("T47")),
    pytest.param("sdp01", marks=pytest.mark.case("T48")),
    pytest.param("inv2543", marks=pytest.mark.case("T49")),
]
FORWARD_OR_400 = [
    pytest.param("baddate", marks=pytest.mark.case("T25")),
    pytest.param("regbadct", marks=pytest.mark.case("T26")),
    pytest.param("badaspec", marks=pytest.mark.case("T27")),
    pytest.param("baddn", marks=pytest.mark.case("T28")),
    pytest.param("badbranch", marks=pytest.mark.case("T33")),
]
REFUSE = [
    pytest.param("badinv01", 400, marks=pytest.mark.case("T14")),
    pytest.param("clerr", 400, marks=pytest.mark.case("T15")),
    pytest.param("ncl", 400, marks=pytest.mark.case("T16")),
    pytest.param("scalar02", 400, marks=pytest.mark.case("T17")),
    pytest.param("quotbal", 400, marks=pytest.mark.case("T19")),
    pytest.param("ltgtruri", 400, marks=pytest.mark.case("T20")),
    pytest.param("lwsruri", 400, marks=pytest.mark.case("T21")),
    pytest.param("lwsstart", 400, marks=pytest.mark.case("T22")),
    pytest.param("trws", 400, marks=pytest.mark.case("T23")),
    pytest.param("escruri", 400, marks=pytest.mark.case("T24")),
    pytest.param("badvers", 505, marks=[pytest.mark.case("T29"), pytest.mark.rule(16)]),
    pytest.param("mismatch01", 400, marks=[pytest.mark.case("T30"), pytest.mark.rule(20)]),
    pytest.param("mismatch02", 400, marks=[pytest.mark.case("T31"), pytest.mark.rule(20)]),
    pytest.param("insuf", 400, marks=pytest.mark.case("T34")),
    pytest.param("unkscm", 416, marks=[pytest.mark.case("T35"), pytest.mark.rule(16)]),
    pytest.param("novelsc", 416, marks=[pytest.mark.case("T36"), pytest.mark.rule(16)]),
    pytest.param("multi01", 400, marks=[pytest.mark.case("T41"), pytest.mark.rule(20)]),
    pytest.param("mcl01", 400, marks=[pytest.mark.case("T42"), pytest.mark.rule(20)]),
    pytest.param("zeromf", 483, marks=[pytest.mark.case("T44"), pytest.mark.rule(17)]),
]


@pytest.mark.rule(15)
@pytest.mark.rule(23)
@pytest.mark.parametrize("name", FORWARD)
def test_what_is_valid_goes_on_unchanged(fw: FW, name: str) -> None:
    setup = fw()
    received = pass_on(setup, setup.client(), message(name))
    if name == "esc02":
        assert values(received, "path") == []  # no REGISTER, though it would be one if escapes were decoded
    if name == "inv2543":
        assert value(received, "max-forwards") == "70"
        assert value(received, "content-length") == str(len(body(received)))


@pytest.mark.parametrize("name", FORWARD_OR_400)
def test_what_is_wrong_where_a_proxy_need_not_look_goes_on_unchanged_or_is_400(fw: FW, name: str) -> None:
    setup = fw()
    received = treated(setup, setup.client(), message(name))
    if isinstance(received, bytes):
        assert_forwarded(message(name), received)
    else:
        assert received == 400


@pytest.mark.rule(14)
@pytest.mark.parametrize(("name", "code"), REFUSE)
def test_what_is_wrong_is_refused(fw: FW, name: str, code: int) -> None:
    setup = fw()
    client = setup.client()
    assert treated(setup, client, message(name)) == code
    pass_on(setup, client, setup.ask("OPTIONS"))


@pytest.mark.case("T38")
@pytest.mark.rule(18)
def test_bext01_is_420_with_the_tags_of_proxy_require_alone(fw: FW) -> None:
    client = fw().client()
    client.text(message("bext01"))
    response = client.response(420)
    wanted = {tag.strip() for line in values(message("bext01"), "proxy-require") for tag in line.split(",")}
    assert {tag.strip() for line in values(response, "unsupported") for tag in line.split(",")} == wanted
    assert len(wanted) == 2


@pytest.mark.case("T01")
@pytest.mark.rule(21)
def test_wsinv_is_403_for_its_route_and_goes_on_without_it(fw: FW) -> None:
    setup = fw()
    client = setup.client()
    assert treated(setup, client, message("wsinv")) == 403
    data = without_route(message("wsinv"))
    client.text(data)
    received = setup.up.request("INVITE")
    assert_forwarded(data, received)
    assert value(received, "max-forwards") == "67"
    setup.up.answer(received)
    assert vias(client.final(200)) == vias(data)


@pytest.mark.case("T11")
@pytest.mark.rule(23)
def test_mpart01_is_403_for_its_route_and_its_body_goes_on_byte_for_byte(fw: FW) -> None:
    setup = fw()
    client = setup.client()
    assert opcode(message("mpart01")) == BINARY
    assert treated(setup, client, message("mpart01")) == 403
    data = without_route(message("mpart01"))
    received = pass_on(setup, client, data)
    assert body(received) == body(data) and b"\0" in body(received)


@pytest.mark.case("T10")
def test_the_five_vias_of_transports_come_back(fw: FW) -> None:
    setup = fw()
    client = setup.client()
    client.text(message("transports"))
    received = setup.up.request("OPTIONS")
    assert vias(received)[1:] == vias(message("transports"))
    setup.up.answer(received)
    response = client.final(200)
    assert len(vias(response)) == 5 and vias(response) == vias(message("transports"))


@pytest.mark.case("T33")
@pytest.mark.parametrize("upstream", ["udp", "tcp"])
def test_two_clients_with_the_same_bad_branch_are_not_mixed_up(fw: FW, upstream: str) -> None:
    setup = fw(upstream)
    first, second = setup.client(), setup.client()
    received = []
    for client in (first, second):
        client.text(message("badbranch"))
        client.frame(9, b"mark")
        got = client.receive()
        if got.opcode == TEXT:
            assert status(got.payload) == 400
            return
        received.append(setup.up.request("OPTIONS"))
    assert branch(received[0]) != branch(received[1])
    setup.up.reply(received[1], answer(received[1], "404 Not Found"))
    second.final(404)
    first.quiet()
    setup.up.reply(received[0], answer(received[0]))
    first.final(200)
    second.quiet()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        pytest.param("lwsdisp", ("from_uri", "user", "caller"), marks=pytest.mark.case("T06")),
        pytest.param("semiuri", ("uri", "user", "user;par=u@example.net"), marks=pytest.mark.case("T09")),
        pytest.param("unksm2", ("from_uri", "user", None), marks=pytest.mark.case("T37")),
        pytest.param("esc01", ("uri", "user", "sips:user@example.com"), marks=pytest.mark.case("T03")),
        pytest.param("escnull", ("to_uri", "user", "null-\0-null"), marks=pytest.mark.case("T04")),
        pytest.param("baddn", ("from_uri", "user", "a.g.bell"), marks=pytest.mark.case("T28")),
    ],
)
def test_the_policy_sees_what_the_message_says(fw: FW, name: str, expected: tuple[str, str, str | None]) -> None:
    setup = fw("udp", RECORD)
    if isinstance(treated(setup, setup.client(), message(name)), int):
        assert name == "baddn"  # which alone may be refused
        return
    noted = setup.noted(value(message(name), "call-id"))
    which, what, wanted = expected
    uri = noted[which]
    assert (None if uri is None else uri[what]) == wanted
    if name == "esc01":
        assert "lr" in noted["contact_uri"]["parameters"]
    if name == "escnull":
        assert len(uri[what]) == 11


@pytest.mark.case("T05")
def test_esc02_is_no_register_for_on_request_methods(fw: FW) -> None:
    setup = fw("udp", RECORD + '\nON_REQUEST_METHODS = {"REGISTER"}\n')
    client = setup.client()
    pass_on(setup, client, message("esc02"))
    pass_on(setup, client, register_message())
    assert [entry["method"] for entry in setup.notes("request")] == ["REGISTER"]


# -- RFC 4475, responses -----------------------------------------------------------------------------------------------


def asked(setup: Setup, client: Client, name: str) -> bytes:
    """A request of C1 as UP received it, for a response with this CSeq to come."""
    number, wanted = value(message(name), "cseq").split()
    request = setup.ask(wanted).replace(b"CSeq: 1 ", b"CSeq: %s " % number.encode())
    if wanted == "INVITE":
        request = request.replace(b"Content-Length", b"Contact: <sip:alice@c1.invalid>\r\nContent-Length")
    client.text(request)
    return setup.up.request(wanted)


def with_vias(data: bytes, received: bytes) -> bytes:
    """The response with the Via lines of this request in place of its own."""
    head = start_line(data) + b"\r\n${Via*}"
    for line in raw_lines(data):
        if name_of(line) != "via":
            head += line
    return fill(head, received) + b"\r\n" + body(data)


@pytest.mark.case("T12")
def test_unreason_is_delivered_with_its_reason_as_text(fw: FW) -> None:
    setup = fw()
    client = setup.client()
    setup.up.send(message("unreason"))
    fence(setup)
    client.quiet()
    received = asked(setup, client, "unreason")
    setup.up.reply(received, with_vias(message("unreason"), received))
    while status((got := client.receive()).payload) == 100:
        pass
    assert got.opcode == TEXT
    assert start_line(got.payload) == start_line(message("unreason"))
    assert body(got.payload) == body(message("unreason"))


@pytest.mark.case("T13")
@pytest.mark.rule(36)
def test_noreason_is_read_and_absorbed(fw: FW) -> None:
    setup = fw()
    client = setup.client()
    log = setup.edge.log()
    received = asked(setup, client, "noreason")
    setup.up.send(with_vias(message("noreason"), received))
    setup.up.reply(received, answer(received, "486 Busy Here"))
    got = client.message()
    if status(got) == 100:
        # One may come from the proxy, and is its own: it has a reason.
        assert start_line(got) != b"SIP/2.0 100 "
        got = client.message()
    assert status(got) == 486
    assert setup.edge.log() == log


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("scalarlg", marks=pytest.mark.case("T18")),
        pytest.param("bigcode", marks=pytest.mark.case("T32")),
        pytest.param("bcast", marks=pytest.mark.case("T43")),
    ],
)
def test_a_broken_response_is_dropped(fw: FW, name: str) -> None:
    setup = fw()
    client = setup.client()
    setup.up.send(message(name))
    fence(setup)
    client.quiet()
    if name == "bcast":
        return  # with other Vias it is a good one
    request = setup.ask("OPTIONS")
    client.text(request)
    received = setup.up.request("OPTIONS")
    setup.up.send(with_vias(message(name), received))
    fence(setup)
    client.quiet()


# -- RFC 4475, with the embedded registrar -----------------------------------------------------------------------------


def registered(fw: FW, name: str) -> tuple[bytes, list[str], Client]:
    """The answer of the registrar to a torture REGISTER, and the bindings of its address of record afterwards."""
    setup = fw("", own=f"registrar {name}")
    client = setup.client()
    data = message(name)
    client.send(frame(opcode(data), data))
    response = client.message()
    to = value(data, "to").partition(";tag=")[0]
    query = register_message("q").replace(
        b"To: <sip:alice@example.com>", f"To: {to}".encode("utf-8", "surrogateescape")
    )
    [line] = [line for line in raw_lines(query) if name_of(line) == "contact"]
    client.text(renewed(query.replace(line, b""), "query"))
    got = client.message()
    return response, elements(got, "contact") if status(got) == 200 else [], client


@pytest.mark.parametrize(
    ("name", "codes", "bindings"),
    [
        pytest.param("escnull", (200,), 2, marks=pytest.mark.case("T04")),
        pytest.param("scalar02", (400,), 0, marks=pytest.mark.case("T17")),
        pytest.param("regbadct", (400,), 0, marks=pytest.mark.case("T26")),
        pytest.param("unksm2", tuple(range(400, 500)), 0, marks=pytest.mark.case("T37")),
        pytest.param("cparam01", (200,), 1, marks=pytest.mark.case("T45")),
        pytest.param("cparam02", (200,), 1, marks=pytest.mark.case("T46")),
        pytest.param("regescrt", (200, 400), None, marks=pytest.mark.case("T47")),
    ],
)
def test_the_registrar_keeps_what_is_a_binding(fw: FW, name: str, codes: tuple[int, ...], bindings: int | None) -> None:
    response, contacts, _ = registered(fw, name)
    assert status(response) in codes, response
    if bindings is not None:
        assert len(contacts) == bindings
    if name == "cparam01":
        assert re.fullmatch(r"<sip:\+19725552222@gw1\.example\.net>.*", contacts[0])
    if name == "cparam02":
        assert contacts[0].startswith("<sip:+19725552222@gw1.example.net;unknownparam>")
    if name == "escnull":
        assert any("<sip:%00@" in contact for contact in contacts)
        assert any("<sip:%00%00@" in contact for contact in contacts)


@pytest.mark.case("T47")
def test_the_escaped_route_of_a_contact_leads_nowhere(fw: FW) -> None:
    response, contacts, client = registered(fw, "regescrt")
    if status(response) != 200 or not contacts:
        return
    setup = fw("", own="registrar regescrt")
    caller = setup.client()
    to = re.search(r"sip:([^>;]+)", value(message("regescrt"), "to"))
    assert to is not None
    caller.text(setup.ask("MESSAGE").replace(f"sip:127.0.0.1:{setup.edge.port};transport=ws".encode(),
                                             f"sip:{to[1]}".encode()))  # fmt: skip
    received = client.message()
    assert method(received) == "MESSAGE"
    assert values(received, "route") == []
    client.text(answer(received))
    caller.final(200)


# -- RFC 5118 ----------------------------------------------------------------------------------------------------------

SDP6 = b"v=0\r\no=- 1 1 IN IP6 2001:db8::20\r\ns=-\r\nc=IN IP6 2001:db8::20\r\nt=0 0\r\nm=audio 42024 RTP/AVP 0\r\n"
SDP46 = (
    b"v=0\r\no=- 1 1 IN IP4 192.0.2.1\r\ns=-\r\nt=0 0\r\nm=audio 22334 RTP/AVP 0\r\nc=IN IP4 192.0.2.1\r\n"
    b"m=video 6024 RTP/AVP 107\r\nc=IN IP6 2001:db8::1\r\n"
)


def v6(
    uri: str = "sip:[2001:db8::10]",
    via: str = "SIP/2.0/UDP [2001:db8::9:1];branch=z9hG4bKas3-111",
    more: str = "",
    session: bytes = b"",
) -> bytes:
    """A request with IPv6 in all places where RFC 5118 has it."""
    name = "INVITE" if session else "OPTIONS"
    kind = "Content-Type: application/sdp\r\n" if session else ""
    return (
        f"{name} {uri} SIP/2.0\r\nTo: sip:user@example.com\r\nFrom: sip:user@example.com;tag=81x2\r\nVia: {via}\r\n"
        f"{more}Call-ID: SSG9559905523997077@[2001:db8::9:1]\r\nMax-Forwards: 70\r\n"
        f'Contact: "Caller" <sip:caller@[2001:db8::1]>\r\nCSeq: 8612 {name}\r\n{kind}'
        f"Content-Length: {len(session)}\r\n\r\n"
    ).encode() + session


RFC5118 = {
    "V01": v6(),
    "V03": v6("sip:[2001:db8::10:5070]"),
    "V04": v6("sip:[2001:db8::10]:5070"),
    "V05": v6(via="SIP/2.0/UDP [2001:db8::9:1];received=[2001:db8::9:255];branch=z9hG4bKas3"),
    "V06": v6(via="SIP/2.0/UDP [2001:db8::9:1];received=2001:db8::9:255;branch=z9hG4bKas3"),
    "V07": v6(session=SDP6),
    "V08": v6(
        via="SIP/2.0/UDP [2001:db8::9:1]:6050;branch=z9hG4bKas3-111",
        more="Via: SIP/2.0/UDP 192.0.2.1;branch=z9hG4bKjhja8781hjuaij65144\r\n"
        "Via: SIP/2.0/TCP [2001:db8::9:255];branch=z9hG4bK451jj;received=192.0.2.200\r\n",
    ),
    "V09": v6(session=SDP46),
    "V10": v6(via="SIP/2.0/UDP [::ffff:192.0.2.10]:19823;branch=z9hG4bKbh19",
              more="Via: SIP/2.0/UDP [::ffff:192.0.2.2];branch=z9hG4bKas3-111\r\n"),
}  # fmt: skip


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.case(name)) for name in RFC5118])
def test_ipv6_goes_through_as_it_stands(fw: FW, name: str) -> None:
    setup = fw("udp", RECORD)
    data = RFC5118[name]
    client = setup.client()
    client.text(data)
    received = setup.up.receive()
    assert_forwarded(data, received)
    setup.up.answer(received)
    assert vias(client.final(200)) == vias(data)
    uri = setup.noted(value(data, "call-id"))["uri"]
    assert uri["host"].strip("[]") == ("2001:db8::10:5070" if name == "V03" else "2001:db8::10")
    assert uri["port"] == (5070 if name == "V04" else None)


@pytest.mark.case("V02")
@pytest.mark.rule(14)
def test_an_ipv6_address_without_brackets_in_the_request_uri_is_400(fw: FW) -> None:
    setup = fw()
    assert treat(setup, setup.client(), v6("sip:2001:db8::10")) == 400


@pytest.mark.case("V11")
@pytest.mark.parametrize("where", ["uri", "via", "received"])
def test_three_colons_are_read_as_two_or_400_and_never_written(fw: FW, where: str) -> None:
    setup = fw()
    bad = "2001:db8:::192.0.2.1"
    data = {
        "uri": v6(f"sip:user@[{bad}]"),
        "via": v6(via=f"SIP/2.0/UDP [{bad}];branch=z9hG4bKas3"),
        "received": v6(via=f"SIP/2.0/UDP [2001:db8::9:1];received={bad};branch=z9hG4bKas3"),
    }[where]
    received = treat(setup, setup.client(), data)
    if isinstance(received, bytes):
        assert_forwarded(data, received)
        assert b":::" not in vias(received)[0].encode()
    else:
        assert received == 400


def test_every_file_of_rfc_4475_is_used() -> None:
    used = {str(one.values[0]) for one in (*FORWARD, *FORWARD_OR_400, *REFUSE)}
    used |= {"bext01", "wsinv", "mpart01", "unreason", "noreason", "scalarlg", "bigcode", "bcast"}
    # A variant of lwsstart and trws that has no version at all; it is read in tests/wire/test_torture.py.
    assert {path.stem for path in FILES.glob("*.dat")} - used == {"test"}
