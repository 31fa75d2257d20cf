"""Public cases: what a SIP message may look like, what it may not, and that a proxy changes nothing it need not."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

import pytest

from .harness import (
    HOST,
    IDENT,
    RECORD,
    Client,
    Setup,
    assert_forwarded,
    body,
    branch,
    data,
    elements,
    fill,
    letters,
    method,
    name_of,
    raw_lines,
    request_uri,
    start_line,
    status,
    treat,
    value,
    values,
    vias,
)

FW = Callable[..., Setup]


def forwarded(setup: Setup, client: Client, message: bytes) -> bytes:
    """The request as UP received it; that it is what was sent is checked here."""
    received = treat(setup, client, message)
    assert isinstance(received, bytes), received
    assert_forwarded(message, received)
    return received


# -- C031 to C033: lines, folds, names, lists --------------------------------------------------------------------------


@pytest.mark.case("C031")
@pytest.mark.rule(21)
@pytest.mark.parametrize("step", [0, 1], ids=["every header", "a fold that looks like a header"])
def test_folded_lines_are_read_as_one_and_go_through(fw: FW, step: int) -> None:
    setup = fw("udp", IDENT)
    message = data("C031", step)
    received = treat(setup, setup.client(), message)
    assert isinstance(received, bytes), received
    assert_forwarded(message, received, unfold=True)
    noted = setup.noted(value(message, "call-id"))
    assert noted["from_uri"]["user"] == "alice"
    if step == 0:
        [credentials] = [text for name, text in noted["headers"] if name.lower() == "proxy-authorization"]
        assert re.sub(r"\s+", " ", credentials) == (
            'Digest username="alice", realm="example.com", nonce="n", uri="sip:example.com", response="00"'
        )
    else:
        assert [name.lower() for name, _ in noted["headers"]].count("from") == 1
        assert values(received, "subject") == ["a From: <sip:bob@example.com>"]


@pytest.mark.case("C032")
@pytest.mark.rule(21)
def test_compact_names_in_any_case_are_the_headers_that_they_stand_for(fw: FW) -> None:
    policy = IDENT.replace(
        "    write_down(request, connection)\n",
        "    write_down(request, connection)\n"
        '    note(moment="found", found=[request.headers.get(name) for name in '
        '("From", "call-id", "Content-Type", "Supported")])\n',
    )
    setup = fw("tcp", policy)
    client = setup.client()
    message = data("C032")
    client.text(message)
    received = setup.up.request("INVITE")
    assert_forwarded(message, received)
    assert value(received, "max-forwards") == "69"
    assert len(values(received, "record-route")) == 2
    assert [line for line in raw_lines(received) if name_of(line) == "content-length"] == [b"l: 90\r\n"]
    assert len(vias(received)) == 2
    assert setup.notes("found")[-1]["found"] == [
        '"10"<sip:alice@example.com>;tag=f1', "c-compact", "application/sdp", "outbound, gruu",
    ]  # fmt: skip


@pytest.mark.case("C033")
@pytest.mark.rule(21)
def test_of_several_vias_in_one_line_of_a_response_only_ours_is_taken(fw: FW) -> None:
    setup = fw()
    client = setup.client()
    client.text(data("C033", 0))
    received = setup.up.request("OPTIONS")
    setup.up.reply(received, fill(data("C033", 1), received))
    response = client.final(200)
    assert vias(response) == ["SIP/2.0/WS c1.invalid;branch=z9hG4bK0000001"]


# -- C035 to C039: addresses -------------------------------------------------------------------------------------------


@pytest.mark.case("C035")
def test_without_angle_brackets_parameters_belong_to_the_header(fw: FW) -> None:
    setup = fw("udp", RECORD)
    message = data("C035")
    forwarded(setup, setup.client(), message)
    noted = setup.noted("c-addr")
    assert noted["from_uri"]["uri"] == "sip:alice@example.com"
    assert noted["from_uri"]["parameters"] == {}
    assert noted["contact_uri"]["uri"] == "sip:alice@c1.invalid"
    assert ["From", "sip:alice@example.com;tag=f1"] in noted["headers"]


@pytest.mark.case("C035")
def test_the_registrar_keeps_a_contact_without_angle_brackets_as_what_it_is(fw: FW) -> None:
    client = fw("").client()
    client.text(data("C035"))
    [contact] = elements(client.final(200), "contact")
    assert contact.startswith("<sip:alice@c1.invalid>") or contact.startswith("sip:alice@c1.invalid;")
    assert re.search(r";expires=60(?![0-9])", contact)


@pytest.mark.case("C036")
@pytest.mark.rule(14)
@pytest.mark.parametrize("step", [0, 1, 2])
def test_a_from_that_is_no_uri_is_400_or_goes_through_unchanged(fw: FW, step: int) -> None:
    setup = fw()
    message = data("C036", step)
    received = treat(setup, setup.client(), message)
    if isinstance(received, bytes):
        assert_forwarded(message, received)
    else:
        assert received == 400


@pytest.mark.case("C036")
@pytest.mark.parametrize("step", [0, 1, 2])
def test_a_from_that_is_no_uri_is_nobody_for_the_policy(fw: FW, step: int) -> None:
    setup = fw("udp", IDENT)
    message = data("C036", step)
    asked = len(setup.notes("request"))
    assert treat(setup, setup.client(), message) in (400, 403)
    # (the check of `treat` asks the policy too)
    for noted in setup.notes("request")[asked:]:
        if noted["call_id"] == value(message, "call-id"):
            assert noted["from_uri"] is None or "error" in noted["from_uri"] or noted["from_uri"]["user"] is None


@pytest.mark.case("C037")
@pytest.mark.parametrize(("letter", "step"), letters("C037"))
def test_a_request_uri_arrives_byte_for_byte(fw: FW, letter: str, step: int) -> None:
    setup = fw("udp", RECORD)
    message = data("C037", step)
    received = treat(setup, setup.client(), message)
    if letter == "e" and received == 416:
        return
    assert isinstance(received, bytes), received
    assert_forwarded(message, received)
    assert request_uri(received) == request_uri(message)
    uri = setup.noted(f"c-u-{letter}")["uri"]
    assert "error" not in uri
    user, host = {
        "a": ("1234;cic=0001", "example.com"),
        "b": ("a?b&c=d+$,/", "example.com"),
        "c": ("1234#00@x", "example.com"),
        "d": ("bob", "example.com"),
        "e": (uri["user"], uri["host"]),
    }[letter]
    assert (uri["user"], uri["host"]) == (user, host)
    assert uri["parameters"] == ({"user": "phone"} if letter == "a" else uri["parameters"])
    assert uri["uri"].encode() == request_uri(message)  # and no part of it was taken for a header


@pytest.mark.case("C039")
@pytest.mark.rule(14)
@pytest.mark.parametrize(("letter", "step"), letters("C039"))
def test_an_ipv6_address_has_both_brackets_or_is_400(fw: FW, letter: str, step: int) -> None:
    setup = fw("udp", RECORD)
    message = data("C039", step)
    received = treat(setup, setup.client(), message)
    if letter in "ab":
        assert received == 400
        return
    assert isinstance(received, bytes), received
    assert_forwarded(message, received)
    uri = setup.noted("c-v6d")["uri"]
    assert uri["host"].strip("[]") == "2001:db8::10:5070"
    assert uri["port"] in (None, 5060)


# -- C041 to C045: values and sizes ------------------------------------------------------------------------------------


@pytest.mark.case("C041")
@pytest.mark.rule(14)
@pytest.mark.rule(20)
@pytest.mark.parametrize(("letter", "step"), letters("C041"))
def test_a_cseq_that_is_none_is_400_and_leading_zeros_are_one(fw: FW, letter: str, step: int) -> None:
    setup = fw()
    client = setup.client()
    message = data("C041", step)
    if letter == "e":
        forwarded(setup, client, message)
    else:
        assert treat(setup, client, message) == 400
    forwarded(setup, client, setup.ask("OPTIONS"))


@pytest.mark.case("C043")
@pytest.mark.parametrize(("letter", "step"), letters("C043"))
def test_a_nul_is_legal_where_the_grammar_has_it_and_cuts_nothing(fw: FW, letter: str, step: int) -> None:
    setup = fw("udp", IDENT)
    message = data("C043", step)
    client = setup.client()
    asked = len(setup.notes("request"))
    if letter in "ade":
        received = forwarded(setup, client, message)
        assert body(received) == body(message)
        noted = setup.noted(f"c-nul{step + 1}")
        assert noted["from_uri"]["user"] == "alice"
        if letter == "a":
            assert [text for name, text in noted["headers"] if name == "From"] == [
                '"nul \\\0 here" <sip:alice@example.com>;tag=1'
            ]
        if letter == "d":
            assert noted["body"] == "a\0b"
        if letter == "e":
            assert noted["uri"]["user"] == "null-\0-null"
            assert noted["uri"]["uri"] == "sip:null-%00-null@example.com"
        return
    assert treat(setup, client, message) in ((400, 403) if letter == "b" else (400,))
    for noted in setup.notes("request")[asked:]:
        if noted["call_id"] == f"c-nul{step + 1}":
            assert noted["from_uri"] is None or noted["from_uri"].get("user") not in ("alice", "alic")
    assert "\0" not in setup.edge.log()


@pytest.mark.case("C044")
def test_long_values_and_many_headers_are_inside_the_limits(fw: FW) -> None:
    setup = fw("tcp")
    client = setup.client()
    message = data("C044", 0)
    client.text(message)
    received = setup.up.request("INVITE")
    assert_forwarded(message, received)
    more = b"".join(
        b"Via: SIP/2.0/TCP p%d.example.com;branch=z9hG4bKp%d\r\n" % (number, number) for number in range(69)
    )
    template = data("C044", 1).replace(b"${Via*}", b"${Via*}" + more)
    response = fill(template, received)
    setup.up.reply(received, response)
    got = client.final(200)
    sent, back = raw_lines(response), raw_lines(got)
    assert back == sent[1:]
    assert vias(got)[0] == vias(message)[0]
    assert len(vias(got)) == 70 and len(values(got, "record-route")) == 40


@pytest.mark.case("C044")
def test_the_cost_of_many_headers_grows_no_faster_than_their_number(fw: FW) -> None:
    setup = fw("tcp")
    client = setup.client()

    def cost(count: int) -> float:
        """The least time of five, from sending until UP has all of it."""
        took = []
        for _ in range(5):
            message = setup.ask("MESSAGE").replace(b"Content-Length", b"X: 1\r\n" * count + b"Content-Length")
            client.text(message)
            began = time.perf_counter()
            received = setup.up.request("MESSAGE")
            took.append(time.perf_counter() - began)
            assert received.count(b"\r\nX: 1") == count
            setup.up.answer(received)
            client.final(200)
        return min(took)

    few = cost(1000)
    # 60 KiB hold 10,000 of them: ten times as many, for which quadratic work would take a hundred times as long.
    assert cost(10_000) < 10 * few + 0.01


@pytest.mark.case("C045")
@pytest.mark.parametrize("upstream", ["tcp", "udp"])
def test_sdp_of_60_kb_arrives_byte_for_byte(fw: FW, upstream: str) -> None:
    setup = fw(upstream)
    client = setup.client()
    message = data("C045")
    client.text(message)
    received = setup.up.request("INVITE")
    assert_forwarded(message, received)
    setup.up.answer(received, "486 Busy Here")
    client.final(486)


@pytest.mark.case("C045")
def test_what_fits_no_datagram_is_refused_at_once(fw: FW) -> None:
    setup = fw("udp")
    client = setup.client()
    message = data("C045")
    room = 65_500 - len(message)  # a message that fits, and does not with a Via and two Record-Routes
    padded = message.replace(b"Content-Type", b"X-Pad: " + b"x" * (room - 9) + b"\r\nContent-Type")
    assert len(padded) == 65_500
    sent = time.monotonic()
    assert treat(setup, client, padded) in (513, 500)
    assert time.monotonic() - sent < 1


@pytest.mark.case("C045")
@pytest.mark.rule(9)
def test_an_answer_of_60_kb_is_one_websocket_message(fw: FW) -> None:
    setup = fw("tcp")
    client = setup.client()
    client.text(data("C045"))
    received = setup.up.request("INVITE")
    session = body(received)
    response = fill(
        b"SIP/2.0 200 OK\r\n${Via*}From: ${From}\r\nTo: ${To};tag=u1\r\nCall-ID: ${Call-ID}\r\nCSeq: ${CSeq}\r\n"
        b"Contact: <sip:bob@127.0.0.1:5070>\r\nContent-Type: application/sdp\r\n"
        b"Content-Length: %d\r\n\r\n" % len(session),
        received,
    )
    setup.up.reply(received, response + session)
    while status(got := client.message()) == 100:
        pass
    assert status(got) == 200
    assert body(got) == session
    client.quiet()


# -- C047 and C048: ends of lines and blanks ---------------------------------------------------------------------------


@pytest.mark.case("C047")
@pytest.mark.rule(14)
@pytest.mark.parametrize(("letter", "step"), letters("C047"))
def test_a_line_ends_with_cr_lf_or_the_message_goes_nowhere(fw: FW, letter: str, step: int) -> None:
    setup = fw()
    client = setup.client()
    before = setup.cpu()
    client.text(data("C047", step))
    setup.quiet()
    if not client.silent(0.05):
        assert status(client.message()) == 400, letter
    assert setup.cpu() - before < 0.2
    forwarded(setup, client, setup.ask("OPTIONS"))


GOOD = (
    b"Via: SIP/2.0/WS c1.invalid;branch=z9hG4bK0000002\r\nMax-Forwards: 70\r\nFrom: <sip:alice@example.com>;tag=f1\r\n"
    b"To: <sip:bob@example.com>\r\nCall-ID: c-blank\r\nCSeq: 1 OPTIONS\r\nContent-Length: 0\r\n\r\n"
)


@pytest.mark.case("C048")
@pytest.mark.rule(21)
def test_blanks_are_read_wherever_the_grammar_has_them(fw: FW) -> None:
    setup = fw()
    client = setup.client()
    message = data("C048", 0)
    client.text(message)
    received = setup.up.request("OPTIONS")
    assert_forwarded(message, received, unfold=True)
    setup.up.answer(received)
    response = client.final(200)
    [via] = values(response, "via")
    assert re.fullmatch(
        r'SIP\s*/\s*2\.0\s*/\s*WS\s+c1\.invalid\s*:\s*80\s*;\s*branch\s*=\s*z9hG4bK0000001\s*;\s*x\s*=\s*"a;b"'
        r"(;received=[0-9.]+)?",
        via,
    )
    assert branch(response) == "z9hG4bK0000001"


@pytest.mark.case("C048")
@pytest.mark.rule(14)
@pytest.mark.parametrize(("letter", "step"), [one for one in letters("C048") if one[0] in "bcdef"])
def test_a_start_line_with_a_blank_too_many_or_angle_brackets_is_400(fw: FW, letter: str, step: int) -> None:
    setup = fw()
    assert treat(setup, setup.client(), data("C048", step) + GOOD) == 400, letter


@pytest.mark.case("C048")
def test_a_version_in_lower_case_is_a_version(fw: FW) -> None:
    setup = fw()
    received = treat(setup, setup.client(), data("C048", 6) + GOOD)
    assert isinstance(received, bytes), received
    assert start_line(received) == b"OPTIONS sip:bob@example.com SIP/2.0"


@pytest.mark.case("C048")
@pytest.mark.rule(15)
def test_a_method_in_lower_case_is_another_method(fw: FW) -> None:
    setup = fw()
    client = setup.client()
    good = GOOD.replace(b"1 OPTIONS", b"1 options")
    received = forwarded(setup, client, data("C048", 7) + good)
    assert method(received) == "options"
    # An OPTIONS at its last hop may be answered by the proxy that it names (11); this is none.
    own = b"options sip:%s:%d SIP/2.0\r\n" % (HOST.encode(), setup.edge.sip_port)
    last = good.replace(b"Max-Forwards: 70", b"Max-Forwards: 0").replace(b"0000002", b"0000003")
    assert treat(setup, client, own + last) == 483
    assert treat(setup, client, data("C048", 7) + GOOD.replace(b"0000002", b"0000004")) == 400
