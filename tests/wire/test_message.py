"""The scanner and the readers of fastws/wire/message: bytes in, spans out."""

import copy
import pickle
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fastws.wire.message import parse_headers, parse_name_addrs, parse_uri
from tests.wire import probe_message as probe

MESSAGES = Path(__file__).parent.parent / "messages"
REGISTER = (MESSAGES / "jssip-register.sip").read_bytes()
INVITE = (MESSAGES / "jssip-invite.sip").read_bytes()
CORPUS = [path.read_bytes() for path in sorted(MESSAGES.rglob("*")) if path.suffix in (".sip", ".dat")]

LINES = {
    "Via": b"Via: SIP/2.0/WS c1.invalid;branch=z9hG4bK0000001\r\n",
    "Max-Forwards": b"Max-Forwards: 70\r\n",
    "From": b"From: <sip:alice@example.com>;tag=f1\r\n",
    "To": b"To: <sip:bob@example.com>\r\n",
    "Call-ID": b"Call-ID: c-1\r\n",
    "CSeq": b"CSeq: 1 OPTIONS\r\n",
    "Content-Length": b"Content-Length: 0\r\n",
}
REQUEST_LINE = b"OPTIONS sip:bob@example.com SIP/2.0\r\n"
STATUS_LINE = b"SIP/2.0 200 OK\r\n"


def made(start: bytes = REQUEST_LINE, body: bytes = b"", extra: bytes = b"", **lines: bytes) -> bytes:
    """A good message with some lines replaced (`CSeq=...`, with `_` for `-`), `extra` lines and a body."""
    replaced = {name.replace("_", "-"): line for name, line in lines.items()}
    assert replaced.keys() <= LINES.keys()
    return start + b"".join((LINES | replaced).values()) + extra + b"\r\n" + body


def cut(data: bytes, place: tuple[int, int] | None) -> bytes | None:
    return None if place is None else data[place[0] : place[1]]


def value(data: bytes, name: str) -> bytes | None:
    """The first value of the header with this id."""
    found = probe.scan(data)
    index = found["first"][probe.HEADERS[name]]
    return None if index < 0 else cut(data, found["headers"][index]["value"])


def verdict(data: bytes) -> int:
    status: int = probe.scan(data)["status"]
    return status


def texts(reader: Any, data: bytes) -> dict[str, Any] | None:
    """What a reader of the probe found, spans as their bytes."""
    found = reader(data)
    if found is None:
        return None
    return {name: cut(data, part) if isinstance(part, tuple) else part for name, part in found.items()}


# ---- Start lines


def test_a_register_of_jssip_is_read_whole() -> None:
    found = probe.scan(REGISTER)
    assert found["status"] == 0 and found["error"] is None
    assert found["is_request"] and found["method_id"] == probe.METHODS["REGISTER"] and found["code"] == 0
    assert cut(REGISTER, found["start_line"]) == b"REGISTER sip:example.com SIP/2.0"
    assert cut(REGISTER, found["method"]) == b"REGISTER"
    assert cut(REGISTER, found["uri"]) == b"sip:example.com"
    assert cut(REGISTER, found["version"]) == b"SIP/2.0"
    names = [cut(REGISTER, header["name"]) for header in found["headers"]]
    assert names == [
        b"Via", b"Max-Forwards", b"To", b"From", b"Call-ID", b"CSeq", b"Contact", b"Expires", b"Allow", b"Supported",
        b"User-Agent", b"Content-Length",
    ]  # fmt: skip
    assert (found["cseq"], found["max_forwards"], found["content_length"]) == (1, 69, 0)
    assert found["has_content_length"] and found["body"] == (len(REGISTER), len(REGISTER))
    assert found["data"] == (0, len(REGISTER))
    assert cut(REGISTER, found["head"]) == REGISTER[len(b"REGISTER sip:example.com SIP/2.0\r\n") : -2]


def test_an_invite_of_jssip_has_its_sdp_as_body() -> None:
    found = probe.scan(INVITE)
    body = cut(INVITE, found["body"])
    assert found["status"] == 0 and found["method_id"] == probe.METHODS["INVITE"]
    assert body is not None and body.startswith(b"v=0\r\n") and len(body) == found["content_length"] == 1955


def test_header_lines_follow_one_another_without_a_gap() -> None:
    for data in CORPUS:
        found = probe.scan(data)
        if found["status"] == 0:
            lines = b"".join(data[start:end] for start, end in (header["line"] for header in found["headers"]))
            assert lines == cut(data, found["head"])


def test_a_response_takes_its_method_from_cseq() -> None:
    data = made(STATUS_LINE, CSeq=b"CSeq: 7 INVITE\r\n")
    found = probe.scan(data)
    assert found["status"] == 0 and not found["is_request"] and found["code"] == 200
    assert cut(data, found["method"]) == b"INVITE" and found["method_id"] == probe.METHODS["INVITE"]
    assert cut(data, found["reason"]) == b"OK" and cut(data, found["version"]) == b"SIP/2.0"
    assert found["uri"] is None and found["cseq"] == 7


@pytest.mark.parametrize(
    ("line", "code", "reason"),
    [
        (b"SIP/2.0 100 Trying", 100, b"Trying"),
        (b"SIP/2.0 699 ", 699, b""),
        (b"SIP/2.0 486", 486, b""),
        (b"sip/2.0 200 O  K ", 200, b"O  K "),
        (b"SIP/2.0 404 \xd0\xbd\xd0\xb5\xd1\x82", 404, b"\xd0\xbd\xd0\xb5\xd1\x82"),
    ],
)
def test_a_status_line_has_three_digits_and_any_reason(line: bytes, code: int, reason: bytes) -> None:
    data = made(line + b"\r\n")
    found = probe.scan(data)
    assert (found["status"], found["code"], cut(data, found["reason"])) == (0, code, reason)


@pytest.mark.parametrize(
    "line",
    [
        b"SIP/2.0 99 Low", b"SIP/2.0 099 Low", b"SIP/2.0 700 High", b"SIP/2.0 2000 Four", b"SIP/2.0 20 Two",
        b"SIP/2.0  200 OK", b"SIP/2.0 200\tOK", b"SIP/2.0 +20 OK", b"SIP/3.0 200 OK", b"SIP/2.0200 OK", b"SIP/2.0",
        b"SIP/", b"SIP /2.0 200 OK", b" SIP/2.0 200 OK", b"SIP/2.0 2\x000 OK",
    ],
)  # fmt: skip
def test_a_broken_status_line_cannot_be_answered(line: bytes) -> None:
    assert verdict(made(line + b"\r\n")) == -1


@pytest.mark.case("C048")
@pytest.mark.case("C039")
@pytest.mark.rule(14)
@pytest.mark.parametrize(
    "line",
    [
        b"OPTIONS  sip:bob@example.com SIP/2.0", b"OPTIONS sip:bob@example.com SIP/2.0 ",
        b"OPTIONS sip:bob@example.com  SIP/2.0", b"OPTIONS\tsip:bob@example.com SIP/2.0",
        b"OPTIONS sip:bob@example.com SIP / 2.0", b"OPTIONS sip:bob@example.com; lr SIP/2.0",
        b"OPTIONS <sip:bob@example.com> SIP/2.0", b"OPTIONS sip:bob@example.com\tSIP/2.0",
        b"OPTIONS sip:bob@example.com SIP/2.", b"OPTIONS sip:bob@example.com SIP/2", b"OPTIONS sip:bob@example.com",
        b"OPTIONS sip:bob@example.com SIP/2.0;x", b"OPTIONS sip:b\x01b@example.com SIP/2.0",
        b"OPTIONS sip:b\x00b@example.com SIP/2.0", b"OPTIONS sip:b\x7fb@example.com SIP/2.0", b"OPTIONS  SIP/2.0",
    ],
)  # fmt: skip
def test_a_broken_request_line_is_400_and_its_headers_are_still_found(line: bytes) -> None:
    found = probe.scan(made(line + b"\r\n"))
    assert found["status"] == 400 and found["error"]
    assert found["is_request"] and found["method_id"] == probe.METHODS["OPTIONS"]
    for name in ("via", "from", "to", "call-id", "cseq"):
        assert found["first"][probe.HEADERS[name]] >= 0


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\r\n", b"\r\n\r\n", b"hello", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"\x16\x03\x01\x02\x00", b"{}",
        b" OPTIONS sip:bob@example.com SIP/2.0\r\n\r\n", b"\x00", b"\r", b"\n", b"OPTIONS", b"OPTIONS\r\n\r\n",
        b"OPTI(NS sip:bob@example.com SIP/2.0\r\n\r\n", b": sip:a SIP/2.0\r\n\r\n",
    ],
)  # fmt: skip
def test_what_has_no_sip_start_line_is_not_answered(data: bytes) -> None:
    found = probe.scan(data)
    assert found["status"] == -1 and found["error"] and not found["headers"]


@pytest.mark.rule(16)
@pytest.mark.parametrize("version", [b"SIP/7.0", b"SIP/2.1", b"sip/1.0", b"SIP/2.00", b"SIP/12345678901.0"])
def test_another_version_is_505_with_the_headers_of_the_answer(version: bytes) -> None:
    found = probe.scan(made(b"OPTIONS sip:bob@example.com " + version + b"\r\n"))
    assert found["status"] == 505 and found["error"] == "Version Not Supported"
    assert found["first"][probe.HEADERS["via"]] == 0 and len(found["headers"]) == len(LINES)


@pytest.mark.case("C048")
def test_the_version_is_compared_without_case_and_the_method_with() -> None:
    assert verdict(made(b"OPTIONS sip:bob@example.com sip/2.0\r\n")) == 0
    lower = made(b"options sip:bob@example.com SIP/2.0\r\n", CSeq=b"CSeq: 1 options\r\n")
    assert verdict(lower) == 0 and probe.scan(lower)["method_id"] == probe.METHODS["other"]
    assert verdict(made(b"options sip:bob@example.com SIP/2.0\r\n")) == 400


@pytest.mark.rule(15)
def test_an_unknown_method_and_unknown_headers_are_no_error() -> None:
    data = made(b"SHOUT sip:bob@example.com SIP/2.0\r\n", extra=b"X-A:\r\nX-B: b\r\n", CSeq=b"CSeq: 1 SHOUT\r\n")
    found = probe.scan(data)
    assert found["status"] == 0 and found["method_id"] == probe.METHODS["other"]
    assert cut(data, found["method"]) == b"SHOUT"
    assert [header["id"] for header in found["headers"][-2:]] == [0, 0]


def test_every_known_method_has_its_id() -> None:
    for name, number in probe.METHODS.items():
        if name != "other":
            assert probe.method_identify(name.encode()) == number
            assert probe.method_identify(name.encode() + b"X") == 0
            assert probe.method_identify(name.encode()[:-1] + b"X") == 0
            assert probe.method_identify(name.lower().encode()) == 0
    assert probe.method_identify(b"") == 0


def test_crlf_before_the_start_line_is_no_part_of_the_message() -> None:
    data = b"\r\n\r\n" + REGISTER
    found = probe.scan(data)
    assert found["status"] == 0 and found["data"] == (4, len(data)) and found["start_line"][0] == 4
    assert verdict(b"\n" + REGISTER) == -1
    assert verdict(b"\r\r\n" + REGISTER) == -1


# ---- Header lines


@pytest.mark.case("C032")
@pytest.mark.rule(21)
def test_names_are_known_in_any_case_and_in_compact_form() -> None:
    for name, number in probe.HEADERS.items():
        if name != "other":
            for spelling in (name, name.upper(), name.title(), name.swapcase()):
                assert probe.header_identify(spelling.encode()) == number, spelling
            assert probe.header_identify(name.encode()[:-1] + b"~") == 0
            assert probe.header_identify(name.encode() + b"s") == 0
            assert probe.header_identify(name.encode().replace(b"-", b"\r")) in (0, number if "-" not in name else 0)
    compact = {
        "v": "via", "f": "from", "t": "to", "i": "call-id", "m": "contact", "l": "content-length",
        "c": "content-type", "k": "supported", "o": "event",
    }  # fmt: skip
    for code in range(256):
        letter = chr(code).lower() if code < 128 else ""
        assert probe.header_identify(bytes([code])) == probe.HEADERS[compact.get(letter, "other")]
    assert probe.header_identify(b"") == 0


@pytest.mark.case("C032")
@pytest.mark.rule(21)
def test_a_message_in_compact_form_reads_like_the_long_one() -> None:
    body = b"v=0\r\no=- 1 1 IN IP4 192.0.2.10\r\ns=-\r\nc=IN IP4 192.0.2.10\r\nt=0 0\r\nm=audio 49170 RTP/AVP 0\r\n"
    data = (
        b"INVITE sip:bob@example.com SIP/2.0\r\nV:SIP/2.0/WS c1.invalid;branch=z9hG4bK0000001\r\nmax-forwards:70\r\n"
        b'f:"10"<sip:alice@example.com>;tag=f1\r\nT:<sip:bob@example.com>\r\nI: c-compact\r\ncseq:1 INVITE\r\n'
        b"M:<sip:alice@c1.invalid;transport=ws;ob>\r\nK: outbound, gruu\r\nC: application/sdp\r\nl: 90\r\n\r\n"
    ) + body
    assert verdict(data) == 0
    assert value(data, "from") == b'"10"<sip:alice@example.com>;tag=f1'
    assert value(data, "call-id") == b"c-compact" and value(data, "content-type") == b"application/sdp"
    assert value(data, "supported") == b"outbound, gruu" and value(data, "contact") is not None
    assert cut(data, probe.scan(data)["body"]) == body


@pytest.mark.case("C031")
@pytest.mark.rule(21)
def test_a_folded_line_is_one_header_and_hides_no_other() -> None:
    data = (
        b"REGISTER sip:example.com SIP/2.0\r\nVia: SIP/2.0/WS c1.invalid\r\n ;branch=z9hG4bK0000001\r\n"
        b'Max-Forwards:\r\n\t70\r\nFrom:\r\n  "Al\r\n  ice"\r\n\t<sip:alice@example.com>;tag=f1\r\n'
        b"To: <sip:alice@example.com>\r\nCall-ID:\r\n c-fold\r\nCSeq: 1\r\n REGISTER\r\n"
        b'Proxy-Authorization: Digest username="alice",\r\n realm="example.com"\r\n'
        b"Subject: a\r\n From: <sip:bob@example.com>\r\nContent-Length:\r\n 0\r\n \r\n\r\n"
    )
    found = probe.scan(data)
    assert found["status"] == 0 and len(found["headers"]) == 9
    assert found["max_forwards"] == 70 and found["cseq"] == 1 and value(data, "call-id") == b"c-fold"
    assert found["times"][probe.HEADERS["from"]] == 1
    assert value(data, "proxy-authorization") == b'Digest username="alice",\r\n realm="example.com"'
    assert parse_name_addrs(value(data, "from") or b"")[0].display == "Al ice"
    via = texts(probe.via, value(data, "via") or b"")
    assert via is not None and via["branch"] == b"z9hG4bK0000001"


def test_a_fold_right_behind_the_start_line_is_no_header() -> None:
    assert verdict(REQUEST_LINE + b" " + made()[len(REQUEST_LINE) :]) == 400


@pytest.mark.case("C048")
def test_blanks_may_stand_before_the_colon() -> None:
    data = (
        b"OPTIONS sip:bob@example.com SIP/2.0\r\nVia  : SIP / 2.0\r\n / WS   c1.invalid : 80 ; branch = z9hG4bK0000001"
        b' ; x = "a;b"\r\nMax-Forwards\t:  70\r\nFrom : <sip:alice@example.com> ; tag = f1\r\n'
        b"To:<sip:bob@example.com>\r\nCall-ID :c-ws\r\nCSeq:  1   OPTIONS\r\nContent-Length: 0\r\n\r\n"
    )
    found = probe.scan(data)
    assert found["status"] == 0 and cut(data, found["headers"][0]["name"]) == b"Via"
    via = texts(probe.via, value(data, "via") or b"")
    assert via is not None
    assert (via["transport"], via["sent_by"], via["host"], via["port"]) == (
        b"WS", b"c1.invalid : 80", b"c1.invalid", 80,
    )  # fmt: skip
    assert via["branch"] == b"z9hG4bK0000001" and probe.parameter_find(via["parameters"], b"x") == b'"a;b"'


@pytest.mark.rule(14)
@pytest.mark.parametrize(
    "line", [b"no colon here", b": value", b" : value", b"Na me: v", b"N@me: v", b"Nam\xe9: v", b"X"]
)
def test_a_line_without_name_or_colon_is_400_and_not_a_header(line: bytes) -> None:
    found = probe.scan(made(Max_Forwards=line + b"\r\n"))
    if line.startswith(b" "):
        # Behind another header that is its fold.
        assert found["status"] == 0 and len(found["headers"]) == len(LINES) - 1
    else:
        assert found["status"] == 400 and len(found["headers"]) == len(LINES) - 1


@pytest.mark.case("C115")
@pytest.mark.case("C047")
@pytest.mark.parametrize(
    "line",
    [
        b"X-Pad: a\nContent-Length: 4\r\n", b"X-Pad: a\nP-Asserted-Identity: <sip:ceo@example.com>\r\n",
        b"X-Pad: a\rFrom: <sip:bob@example.com>;tag=2\r\n", b"X-Pad: a\n\r\n", b"X-Pad: a\r\r\n", b"\n", b"\r",
        b"X-Pad: a\n\nINVITE sip:x SIP/2.0\r\n", b"X\n: a\r\n", b'X-Pad: "\\\n"\r\n',
    ],
)  # fmt: skip
def test_a_bare_cr_or_lf_in_the_head_is_400_and_its_line_is_no_header(line: bytes) -> None:
    found = probe.scan(made(extra=line))
    assert found["status"] == 400 and len(found["headers"]) == len(LINES)
    assert found["first"][probe.HEADERS["p-asserted-identity"]] == -1
    assert verdict(made(STATUS_LINE, extra=line)) == -1


@pytest.mark.case("C115")
def test_a_bare_lf_in_from_leaves_no_from_for_the_answer() -> None:
    found = probe.scan(made(From=b"From: <sip:alice@example.com>;tag=f1\n\nINVITE sip:x SIP/2.0\r\n"))
    assert found["status"] == 400 and found["times"][probe.HEADERS["from"]] == 0


@pytest.mark.case("C115")
def test_bare_cr_and_lf_in_the_body_are_its_own() -> None:
    data = made(Content_Length=b"Content-Length: 5\r\n", body=b"a\nb\rc")
    assert verdict(data) == 0 and cut(data, probe.scan(data)["body"]) == b"a\nb\rc"


@pytest.mark.case("C047")
def test_lines_that_end_in_lf_or_cr_alone_are_refused() -> None:
    assert verdict(made().replace(b"\r\n", b"\n")) == 400
    assert verdict(made().replace(b"\r\n", b"\r")) == 400
    assert verdict(b"OPTIONS sip:bob@example.com SIP/2.0") == 400
    assert verdict(made(STATUS_LINE).replace(b"\r\n", b"\n")) == -1


@pytest.mark.case("C043")
@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b'From: "nul \\\x00 here" <sip:alice@example.com>;tag=1\r\n', 0),
        (b'From: "a\\"\\\x00" <sip:alice@example.com>;tag=1\r\n', 0),
        (b"From: <sip:alice\x00x@example.com>;tag=1\r\n", 400),
        (b'From: "nul \x00 here" <sip:alice@example.com>;tag=1\r\n', 400),
        (b'From: "nul \\\\\x00 here" <sip:alice@example.com>;tag=1\r\n', 400),
        (b'From: "" \\\x00 <sip:alice@example.com>;tag=1\r\n', 400),
        (b'From: "\\\x00" <sip:alice@example.com>;tag=\x00\r\n', 400),
        (b"From: \x00\r\n", 400),
        (b"From\x00: <sip:alice@example.com>\r\n", 400),
    ],
)
def test_nul_in_the_head_is_400_unless_it_is_a_quoted_pair(line: bytes, status: int) -> None:
    found = probe.scan(made(From=line))
    assert found["status"] == status and found["times"][probe.HEADERS["from"]] == (1 if status == 0 else 0)


@pytest.mark.case("C043")
def test_nul_in_the_body_and_an_escaped_one_in_a_uri_are_fine() -> None:
    data = made(b"OPTIONS sip:null-%00-null@example.com SIP/2.0\r\n", Content_Length=b"l: 3\r\n", body=b"a\x00b")
    assert verdict(data) == 0 and cut(data, probe.scan(data)["body"]) == b"a\x00b"
    assert parse_uri(b"sip:null-%00-null@example.com").user == "null-\x00-null"


def test_every_cut_of_a_head_is_400_or_unanswerable_and_never_read_as_whole() -> None:
    for data in (made(), made(STATUS_LINE)):
        for length in range(len(data)):
            assert verdict(data[:length]) in ((-1,) if data.startswith(b"SIP") else (400, -1))


def test_headers_of_one_id_are_found_in_order() -> None:
    data = made(extra=b"Route: <sip:a>\r\nX: 1\r\nROUTE: <sip:b>\r\nRoute: <sip:c>\r\n")
    scanner = probe.Scanner()
    assert scanner.scan(data) == 0
    route = probe.HEADERS["route"]
    assert [scanner.next(route, -1), scanner.next(route, 7), scanner.next(route, 9), scanner.next(route, 10)] == [
        7, 9, 10, -1,
    ]  # fmt: skip
    assert scanner.next(probe.HEADERS["other"], -1) == 8 and scanner.next(probe.HEADERS["path"], -1) == -1
    assert scanner.next(9999, -1) == -1 and scanner.next(route, 2**31 - 1) == -1


# ---- Mandatory headers, and those that hold one value


@pytest.mark.rule(14)
@pytest.mark.parametrize("name", ["Via", "From", "To", "Call_ID", "CSeq"])
def test_without_a_mandatory_header_a_request_is_400_and_a_response_dropped(name: str) -> None:
    found = probe.scan(made(**{name: b""}))
    assert found["status"] == 400 and found["error"] == "Missing " + name.replace("_", "-")
    assert verdict(made(STATUS_LINE, **{name: b""})) == -1


def test_max_forwards_and_content_length_may_be_absent() -> None:
    data = made(Max_Forwards=b"", Content_Length=b"", body=b"rest")
    found = probe.scan(data)
    assert found["status"] == 0 and found["times"][probe.HEADERS["max-forwards"]] == 0
    assert not found["has_content_length"] and cut(data, found["body"]) == b"rest"


@pytest.mark.rule(20)
@pytest.mark.parametrize("name", ["From", "To", "Call-ID", "CSeq", "Max-Forwards", "Content-Length"])
def test_a_second_one_of_a_header_with_one_value_is_400(name: str) -> None:
    found = probe.scan(made(extra=LINES[name]))
    assert found["status"] == 400 and found["error"] == "Duplicate " + name
    assert found["times"][probe.HEADERS[name.lower()]] == 2
    assert verdict(made(STATUS_LINE, extra=LINES[name], CSeq=b"CSeq: 1 OPTIONS\r\n")) == -1


@pytest.mark.parametrize("line", [b"Call-ID:\r\n", b"i: \r\n \r\n"])
def test_an_empty_call_id_is_400(line: bytes) -> None:
    assert verdict(made(Call_ID=line)) == 400


@pytest.mark.case("C041")
@pytest.mark.rule(20)
@pytest.mark.parametrize(
    "text",
    [
        b"abcdefg OPTIONS", b"4294967296 OPTIONS", b"1 INVITE", b" OPTIONS", b"", b"1", b"1 ", b"1OPTIONS",
        b"-1 OPTIONS",
        b"2147483648 OPTIONS", b"1 OPTIONS x", b"1 OPTIONS,", b"1 options", b"1 OPTION", b"1 OPTIONSS", b"1,OPTIONS",
        b"99999999999999999999999 OPTIONS",
    ],
)  # fmt: skip
def test_a_cseq_that_is_none_is_400(text: bytes) -> None:
    assert verdict(made(CSeq=b"CSeq: " + text + b"\r\n")) == 400


@pytest.mark.case("C041")
@pytest.mark.parametrize(
    ("text", "number"),
    [(b"0 OPTIONS", 0), (b"0000000000000000007 OPTIONS", 7), (b"2147483647 \r\n\tOPTIONS", 2**31 - 1)],
)
def test_a_cseq_may_have_leading_zeros_and_any_blanks(text: bytes, number: int) -> None:
    found = probe.scan(made(CSeq=b"CSeq: " + text + b"\r\n"))
    assert (found["status"], found["cseq"]) == (0, number)


@pytest.mark.parametrize("text", [b"1 ", b"x OPTIONS", b"2147483648 OPTIONS", b"1 OPT@ONS"])
def test_a_response_with_a_broken_cseq_is_dropped(text: bytes) -> None:
    assert verdict(made(STATUS_LINE, CSeq=b"CSeq: " + text + b"\r\n")) == -1


@pytest.mark.rule(17)
@pytest.mark.parametrize(
    ("text", "number"),
    [(b"0", 0), (b"0068", 68), (b"255", 255), (b"256", None), (b"-1", None), (b"", None), (b"7 0", None)],
)
def test_max_forwards_is_a_number_up_to_255(text: bytes, number: int | None) -> None:
    found = probe.scan(made(Max_Forwards=b"Max-Forwards: " + text + b"\r\n"))
    if number is None:
        assert found["status"] == 400
    else:
        assert (found["status"], found["max_forwards"]) == (0, number)


NO_LENGTHS = [
    b"Content-Length: \r\n", b"Content-Length: -1\r\n", b"Content-Length: +4\r\n", b"Content-Length: 0x4\r\n",
    b"Content-Length: 4, 4\r\n", b"Content-Length: 4 4\r\n", b"Content-Length: 4;x=1\r\n",
    b"Content-Length: 4\r\nContent-Length: 5\r\n", b"Content-Length: 4\r\nl: 0\r\n",
    b"Content-Length: 99999999999999999999\r\n", b"Content-Length: 4.0\r\n", b"Content-Length: \xd9\xa4\r\n",
    b"Content-Length: 18446744073709551620\r\n", b"Content-Length: 4\r\nContent-Length: 4\r\n",
    b"Content-Length: 9223372036854775808\r\n", b"Content-Length: 4\x00\r\n", b"Content-Length: 4\n\r\n",
]  # fmt: skip


@pytest.mark.case("C114")
@pytest.mark.rule(20)
@pytest.mark.parametrize("line", NO_LENGTHS)
def test_a_content_length_that_two_readers_could_read_differently_is_refused(line: bytes) -> None:
    assert verdict(made(Content_Length=line, body=b"body")) == 400
    assert verdict(made(STATUS_LINE, Content_Length=line, body=b"body")) == -1
    for start in (REQUEST_LINE, STATUS_LINE):
        assert probe.frame(made(start, Content_Length=line, body=b"body"), 65536)[0] == -1


@pytest.mark.case("C114")
def test_a_content_length_that_no_memory_holds_is_unreadable_and_not_merely_too_long() -> None:
    for number, error in ((2**63 - 1, "Body shorter than Content-Length"), (2**63, "Bad Content-Length")):
        found = probe.scan(made(Content_Length=b"Content-Length: %d\r\n" % number))
        assert (found["status"], found["error"]) == (400, error)


@pytest.mark.case("C114")
@pytest.mark.parametrize("line", [b"Content-Length:\r\n 004 \r\n", b"l :4\t\r\n", b"CONTENT-LENGTH: 4\r\n \r\n"])
def test_a_content_length_with_blanks_zeros_and_folds_is_a_number(line: bytes) -> None:
    data = made(Content_Length=line, body=b"bodyrest")
    found = probe.scan(data)
    assert (found["status"], found["content_length"], cut(data, found["body"])) == (0, 4, b"body")
    assert probe.frame(data, 65536)[0] == found["data"][1] == len(data) - 4


@pytest.mark.case("C029")
@pytest.mark.case("C112")
@pytest.mark.rule(19)
def test_what_lies_behind_the_announced_body_is_no_part_of_the_message() -> None:
    data = made(Content_Length=b"Content-Length: 3\r\n", body=b"ab\xe2\x9c\x93tail")
    found = probe.scan(data)
    assert found["status"] == 0 and cut(data, found["body"]) == b"ab\xe2"
    assert cut(data, found["data"]) == data[: -len(b"\x9c\x93tail")]


@pytest.mark.rule(19)
def test_a_body_shorter_than_announced_is_400_and_a_response_dropped() -> None:
    line = b"Content-Length: 5\r\n"
    found = probe.scan(made(Content_Length=line, body=b"1234"))
    assert found["status"] == 400 and found["error"] == "Body shorter than Content-Length"
    assert verdict(made(STATUS_LINE, Content_Length=line, body=b"1234")) == -1
    assert verdict(made(Content_Length=line, body=b"12345")) == 0


@pytest.mark.case("C113")
def test_without_content_length_a_request_in_the_body_stays_body() -> None:
    inner = made(b"INVITE sip:bob@example.com SIP/2.0\r\n", CSeq=b"CSeq: 1 INVITE\r\n")
    data = made(Content_Length=b"", extra=b"Content-Type: message/sip\r\n", body=inner)
    assert verdict(data) == 0 and cut(data, probe.scan(data)["body"]) == inner


def test_the_first_of_many_reasons_is_told_and_the_rest_is_still_read() -> None:
    found = probe.scan(made(CSeq=b"CSeq: x\r\n", Via=b"bad line\r\n", extra=b"Via: SIP/2.0/WS c1.invalid\r\n"))
    assert found["status"] == 400 and found["error"] == "Header line without a name and a colon"
    assert found["first"][probe.HEADERS["via"]] >= 0 and found["first"][probe.HEADERS["cseq"]] >= 0


# ---- Many and long


@pytest.mark.case("C044")
def test_long_values_and_many_headers_are_all_kept() -> None:
    extra = b"X-Extra: 0123456789\r\n" * 300
    data = made(
        b"OPTIONS sip:" + b"b" * 1500 + b"@example.com SIP/2.0\r\n",
        From=b'From: "' + b"N" * 6000 + b'" <sip:alice@example.com>;tag=' + b"t" * 500 + b"\r\n",
        Call_ID=b"Call-ID: " + b"c" * 900 + b"\r\n",
        extra=extra,
    )
    for capacity in (0, 1, 16, 1000):
        found = probe.scan(data, capacity)
        assert found["status"] == 0 and len(found["headers"]) == 300 + len(LINES)
    assert value(data, "call-id") == b"c" * 900


@pytest.mark.case("C044")
def test_cost_grows_with_the_length_and_not_with_its_square() -> None:
    scanner = probe.Scanner()

    def best(count: int) -> float:
        data = made(extra=b"X:\r\n" * count)
        spent = []
        for _ in range(15):
            before = time.perf_counter()
            assert scanner.scan(data) == 0
            spent.append(time.perf_counter() - before)
        assert scanner.count() == count + len(LINES)
        return min(spent)

    # Ten times the headers cost ten times as much; a square would be a hundred. The bench has the exact figure.
    few, many = best(2000), best(20000)
    assert many < 25 * few


@pytest.mark.parametrize("filler", [b"\r\n ", b"\x00", b"\r", b"\n", b'"', b"\\", b'"\\\x00', b"sip"])
def test_no_filler_makes_the_scanner_slow(filler: bytes) -> None:
    data = made(extra=b"X: " + filler * (60000 // len(filler)) + b"\r\n")
    line = b"OPTIONS " + filler * (60000 // len(filler)) + b"\r\n\r\n"
    before = time.perf_counter()
    for _ in range(20):
        verdict(data)
        verdict(line)
        probe.frame(data, 1 << 20)
        probe.name_addr(data)
        probe.via(b"SIP/2.0/WS a;x=" + data)
    # A pass over 60 kB takes well below a millisecond; a square would take seconds.
    assert time.perf_counter() - before < 2


def test_the_same_message_object_scans_one_after_another() -> None:
    scanner = probe.Scanner(0)
    for data in [*CORPUS, b"", *CORPUS[::-1]]:
        assert scanner.report(data) == probe.scan(data)


def test_more_headers_than_memory_is_told_and_leaves_nothing() -> None:
    assert probe.init_fails(2**63)
    assert probe.init_fails(2**40)
    assert not probe.init_fails(0)


# ---- Framing on a stream


def frames(data: bytes) -> Iterator[bytes]:
    """Take messages off `data` until none is whole."""
    while data:
        length, _ = probe.frame(data, 1 << 20)
        assert length >= 0
        if length == 0:
            return
        yield data[:length]
        data = data[length:]


WITH_LENGTH = [data for data in CORPUS if probe.scan(data)["status"] == 0 and probe.scan(data)["has_content_length"]]


@pytest.mark.rule(19)
def test_a_message_is_framed_at_every_split_point() -> None:
    for data in WITH_LENGTH:
        end = probe.scan(data)["data"][1]
        for split in range(end):
            length, scanned = probe.frame(data[:split], 1 << 20)
            assert length == 0
            assert probe.frame(data[:end], 1 << 20, scanned)[0] == end
            assert probe.frame(data, 1 << 20, scanned)[0] == end


def test_a_message_is_framed_byte_by_byte_and_in_any_pieces() -> None:
    chance = random.Random(3261)
    for data in WITH_LENGTH:
        end = probe.scan(data)["data"][1]
        for largest in (1, 3, 700):
            scanned = taken = 0
            while taken < end:
                length, scanned = probe.frame(data[:taken], 1 << 20, scanned)
                assert length == 0
                taken = min(taken + chance.randint(1, largest), end)
            assert probe.frame(data[:taken], 1 << 20, scanned)[0] == end


def test_two_messages_at_once_are_cut_apart_and_crlf_between_them_is_taken_along() -> None:
    assert list(frames(REGISTER + INVITE + REGISTER)) == [REGISTER, INVITE, REGISTER]
    assert list(frames(b"\r\n\r\n" + REGISTER + b"\r\n" + INVITE)) == [b"\r\n\r\n" + REGISTER, b"\r\n" + INVITE]


@pytest.mark.parametrize("data", [b"", b"\r", b"\r\n", b"\r\n\r", b"\r\n\r\n", b"O", b"SIP/2.0 200 OK\r\n\r"])
def test_a_frame_that_has_hardly_begun_needs_more(data: bytes) -> None:
    assert probe.frame(data, 65536)[0] == 0


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01", b"{", b"\n", b"\r\r", b" O", b"GET / HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
        b"SIP/2.0 9 x\r\nl: 0\r\n\r\n", made(Content_Length=b""), made(STATUS_LINE, Content_Length=b""),
        b"OPTIONS sip:a SIP/2.0\r\n\r\n",
    ],
)  # fmt: skip
def test_what_is_not_sip_or_says_no_length_ends_the_stream(data: bytes) -> None:
    assert probe.frame(data, 65536)[0] == -1


def test_a_head_or_an_announced_body_over_the_limit_ends_the_stream_at_once() -> None:
    head = INVITE.index(b"\r\n\r\n") + 4
    assert probe.frame(INVITE, len(INVITE))[0] == len(INVITE)
    assert probe.frame(INVITE, len(INVITE) - 1)[0] == -1
    assert probe.frame(INVITE[:head], len(INVITE) - 1)[0] == -1
    assert probe.frame(INVITE[:head], len(INVITE))[0] == 0
    assert probe.frame(INVITE, head - 1)[0] == -1
    assert probe.frame(INVITE[: head - 1], head - 1)[0] == 0
    assert probe.frame(INVITE[: head - 1], head - 2)[0] == -1
    huge = made(Content_Length=b"Content-Length: 9223372036854775807\r\n")
    assert probe.frame(huge, 65536)[0] == -1
    # No limit at all is still one that the result can hold.
    assert probe.frame(huge, 2**64 - 1)[0] == -1
    assert probe.frame(INVITE, 2**64 - 1)[0] == len(INVITE)


def test_a_broken_request_with_a_length_is_framed_so_that_it_can_be_answered() -> None:
    data = made(b"OPTIONS  sip:bob@example.com SIP/2.0\r\n", CSeq=b"CSeq: x\r\n")
    assert probe.frame(data + REGISTER, 65536)[0] == len(data) and verdict(data) == 400


@pytest.mark.case("C115")
def test_framer_and_scanner_agree_where_a_bare_lf_tries_to_part_them() -> None:
    data = made(extra=b"X-Pad: a\nContent-Length: 4\r\n", body=b"AAAA")
    assert probe.frame(data, 65536)[0] == probe.scan(data)["data"][1] == len(data) - 4


# ---- URIs


URIS: list[tuple[bytes, dict[str, Any]]] = [
    (b"sip:bob@example.com", {"user": b"bob", "host": b"example.com", "port": 0, "parameters": b"", "headers": b""}),
    (b"sip:example.com", {"user": None, "host": b"example.com"}),
    (b"SIP:bob@192.0.2.1:5070", {"scheme": b"SIP", "is_sip": True, "is_sips": False, "port": 5070}),
    (b"sips:bob@[2001:db8::1]:5061;lr",
     {"is_sips": True, "host": b"[2001:db8::1]", "host_is_ipv6": True, "port": 5061}),
    (b"sip:[2001:db8::10:5070]", {"host": b"[2001:db8::10:5070]", "port": 0}),
    (b"sip:[::ffff:192.0.2.2]", {"host": b"[::ffff:192.0.2.2]"}),
    (b"sip:1234;cic=0001@example.com;user=phone", {"user": b"1234;cic=0001", "parameters": b";user=phone"}),
    (b"sip:a?b&c=d+$,/@example.com", {"user": b"a?b&c=d+$,/", "headers": b""}),
    (b"sip:1234%2300%40x@example.com", {"user": b"1234%2300%40x"}),
    (b"sip:bob:p%77d@example.com", {"user": b"bob"}),
    (b"sip:bob:@example.com", {"user": b"bob"}),
    (b"sip:+1-201(555)0123@gw_1.example.com.:65535", {"user": b"+1-201(555)0123", "host": b"gw_1.example.com."}),
    (b"sip:a@b;maddr=[::1]:9;x=/:&+$%41?h=1&i=%0d/?:+$",
     {"parameters": b";maddr=[::1]:9;x=/:&+$%41", "headers": b"?h=1&i=%0d/?:+$"}),
    (b"sip:a@b?subject=x", {"parameters": b"", "headers": b"?subject=x"}),
    (b"sip:-_.!~*'()&=+$,;?/%7f@h", {"user": b"-_.!~*'()&=+$,;?/%7f"}),
    (b"tel:+1-201-555-0123;phone-context=example.com",
     {"is_sip": False, "host": b"+1-201-555-0123;phone-context=example.com", "user": None}),
    (b"urn:service:sos", {"is_sip": False, "scheme": b"urn", "host": b"service:sos"}),
    (b"nobodyKnowsThisScheme:totallyopaquecontent", {"is_sip": False}),
    (b"soap.beep://192.0.2.103:3002", {"is_sip": False, "scheme": b"soap.beep"}),
]  # fmt: skip


@pytest.mark.case("C037")
@pytest.mark.case("C039")
@pytest.mark.parametrize(("text", "expected"), URIS)
def test_a_uri_is_taken_apart(text: bytes, expected: dict[str, Any]) -> None:
    found = texts(probe.uri, text)
    assert found is not None and found["whole"] == text
    for name, part in expected.items():
        assert (found[name] or b"" if part == b"" else found[name]) == part


@pytest.mark.case("C036")
@pytest.mark.case("C039")
@pytest.mark.case("C117")
@pytest.mark.parametrize(
    "text",
    [
        b"", b"bob", b"bob@example.com", b":bob@example.com", b"1sip:bob@example.com", b"s ip:a@b", b"sip", b"sip:",
        b"sip:@192.0.2.200", b"sip::pw@h", b"sip:bob@", b"sip:bob@2001:db8::2019", b"sip:bob@[2001:db8::1",
        b"sip:bob@2001:db8::1]", b"sip:bob@[192.0.2.1]", b"sip:bob@[]", b"sip:bob@[::g]", b"sip:bob@[::1]x",
        b"sip:al\x00ice@h", b"sip:al ice@h", b"sip:al\\x65@h", b"sip:al<ice@h", b"sip:al\"ice@h", b"sip:al\xc3\xa9@h",
        b"sip:al%4@h", b"sip:al%g1@h", b"sip:al%1g@h", b"sip:al%", b"sip:a@b@c", b"sip:a:b:c@h", b"sip:a:b;c@h",
        b"sip:a[b@h",
        b"sip:h:0", b"sip:h:65536", b"sip:h:", b"sip:h:12a", b"sip:h:-1", b"sip:h:99999999999999999999", b"sip:.h",
        b"sip:a..b", b"sip:-h", b"sip:h/", b"sip:h;x=\"a\"", b"sip:h;x=<", b"sip:h; lr", b"sip:h;x=%4", b"sip:h?a=\x7f",
        b"sip:h?a=<b>", b"sip:h,", b" sip:h", b"sip:h ", b"sip:h\r\n x", b"sip:h?a#b", b"<sip:h>", b"sip:h|", b"*",
    ],
)  # fmt: skip
def test_what_is_no_uri_is_refused(text: bytes) -> None:
    assert probe.uri(text) is None
    with pytest.raises(ValueError, match=r"^not a SIP URI$"):
        parse_uri(text)


def test_three_colons_in_an_ipv6_address_are_read_without_harm() -> None:
    assert texts(probe.uri, b"sip:user@[2001:db8:::192.0.2.1]") is not None


# ---- name-addr


@pytest.mark.case("C108")
@pytest.mark.case("C035")
@pytest.mark.parametrize(
    ("text", "display", "uri", "parameters"),
    [
        (b"<sip:a@b>", None, b"sip:a@b", b""),
        (b'"10"<sip:alice@example.com>;tag=f1', b'"10"', b"sip:alice@example.com", b";tag=f1"),
        (b"Alice van B. <sip:a@b;lr> ; tag = 1", b"Alice van B.", b"sip:a@b;lr", b"; tag = 1"),
        (b"  <sip:a@b>\r\n ;\r\n tag=1;lr  ", None, b"sip:a@b", b";\r\n tag=1;lr"),
        (b'"alice <sip:alice@example.com>" <sip:bob@x>;tag=1', b'"alice <sip:alice@example.com>"', b"sip:bob@x",
         b";tag=1"),
        (b'"\\" <sip:alice@x>;x=\\"" <sip:bob@x>;tag=1', b'"\\" <sip:alice@x>;x=\\""', b"sip:bob@x", b";tag=1"),
        (b'<sip:bob@x>;tag=1;x="<sip:alice@x>,;"', None, b"sip:bob@x", b';tag=1;x="<sip:alice@x>,;"'),
        (b"sip:alice@example.com;tag=f1", None, b"sip:alice@example.com", b";tag=f1"),
        (b"sip:alice@example.com ; tag=f1", None, b"sip:alice@example.com", b"; tag=f1"),
        (b'sip:a@c1.invalid;transport=ws;+sip.instance="<urn:uuid:0>";expires=60', None, b"sip:a@c1.invalid",
         b';transport=ws;+sip.instance="<urn:uuid:0>";expires=60'),
        (b"<sip:a@b?x=y,z>;m=[2001:db8::1];n=192.0.2.1", None, b"sip:a@b?x=y,z", b";m=[2001:db8::1];n=192.0.2.1"),
        (b"<tel:+12015550123>;tag=1", None, b"tel:+12015550123", b";tag=1"),
        (b'"" <sip:a@b>', b'""', b"sip:a@b", b""),
        (b"<sip:>", None, b"sip:", b""),
    ],
)  # fmt: skip
def test_a_name_addr_is_taken_apart(text: bytes, display: bytes | None, uri: bytes, parameters: bytes) -> None:
    found = texts(probe.name_addr, text)
    assert found is not None
    assert ((found["display"] or None), found["uri"], (found["parameters"] or b"")) == (display, uri, parameters)
    assert found["whole"] == text.strip() and found["rest"] is None
    assert found["bracketed"] == (b"<" + uri + b">" in text)


@pytest.mark.case("C036")
@pytest.mark.case("C108")
@pytest.mark.parametrize(
    "text",
    [
        b"", b" ", b"*", b"alice", b"alice@example.com", b"<sip:a@b", b"sip:a@b>", b'"open <sip:a@b>',
        b'"x\\" <sip:a@b>',
        b'"x" sip:a@b', b'"x"', b"<>", b"<sip:<a@b>", b"<sip:>;sip:;1001@192.0.2.16;tag=1", b"<sip:a@b>;",
        b"<sip:a@b>;;t=1",
        b"<sip:a@b>;=1", b"<sip:a@b>;t=", b"<sip:a@b>;t=<sip:c@d>", b"<sip:a@b>;t=a b", b"<sip:a@b> x", b"<sip:a@b>x",
        b'<sip:a@b>;t="open', b'<sip:a@b>;t="x"y', b"<sip:a@b>;t=a:b", b"<sip:a@b>;t=[::1", b"<sip:a@b>;t=1;",
        b"<sip:a@b>,",
        b"<sip:a@b> , ", b"sip:a@b?x=y", b"sip:a@b <sip:c@d>", b"Bell, Alexander <sip:a.g.bell@example.com>",
        b"a:b <sip:c@d>", b"<sip:a@b>;received=2001:db8::1", b'say "x" <sip:a@b>', b'"a\\\r\n b" <sip:c@d>',
        b"<sip:a@b>?x=y", b"1sip:a@b", b'"',
    ],
)  # fmt: skip
def test_what_is_no_name_addr_is_refused(text: bytes) -> None:
    assert probe.name_addr(text) is None


@pytest.mark.rule(21)
def test_values_of_a_list_are_read_one_after_another() -> None:
    text = b'"A, B" <sip:a,b@x>;q=1 , sip:c@d;x=",",<sip:e@f>'
    first = texts(probe.name_addr, text)
    assert first is not None and first["whole"] == b'"A, B" <sip:a,b@x>;q=1' and first["uri"] == b"sip:a,b@x"
    second = texts(probe.name_addr, first["rest"])
    assert second is not None and second["whole"] == b'sip:c@d;x=","' and second["rest"] == b"<sip:e@f>"


# ---- Via


@pytest.mark.rule(21)
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"SIP/2.0/WS qduaoqq7uupk.invalid;branch=z9hG4bK5431876",
         {"transport": b"WS", "sent_by": b"qduaoqq7uupk.invalid", "port": 0, "branch": b"z9hG4bK5431876", "rport": None,
          "has_rport": False, "parameters": b";branch=z9hG4bK5431876"}),
        (b"sip/2.0/udp 192.0.2.1:5060",
         {"transport": b"udp", "sent_by": b"192.0.2.1:5060", "port": 5060, "branch": None}),
        (b"SIP/2.0/TCP [2001:db8::9:1]:5070;rport;branch=b",
         {"host": b"[2001:db8::9:1]", "port": 5070, "rport": b"", "has_rport": True}),
        (b"SIP/2.0/TCP a;rport=17;BRANCH=b;branch=c", {"rport": b"17", "has_rport": True, "branch": b"b"}),
        (b"SIP/2.0/UDP [2001:db8::9:1];received=[2001:db8::9:255];branch=z", {"branch": b"z"}),
        (b"SIP/2.0/UDP [2001:db8::9:1];received=2001:db8::9:255;branch=z", {"branch": b"z"}),
        (b"SIP/2.0/UDP a;received=192.0.2.9;ttl=1;maddr=[::1];alias;x=\"y;branch=no\";branch=z", {"branch": b"z"}),
        (b"SIP  / 2.0  / TCP     spindle.example.com   ;\r\n  branch  =   z9hG4bK9ikj8  ,\r\n SIP / 2.0 / UDP  a",
         {"sent_by": b"spindle.example.com", "branch": b"z9hG4bK9ikj8", "rest": b"SIP / 2.0 / UDP  a"}),
        (b"SIP/2.0/UNKNOWN t4.example.com , x", {"transport": b"UNKNOWN", "rest": b"x", "parameters": None}),
        (b"SIP/2.0/WS A.invalid:\r\n 80", {"sent_by": b"A.invalid:\r\n 80", "host": b"A.invalid", "port": 80}),
    ],
)  # fmt: skip
def test_a_via_is_taken_apart(text: bytes, expected: dict[str, Any]) -> None:
    found = texts(probe.via, text)
    assert found is not None
    for name, part in expected.items():
        assert found[name] == part, name


@pytest.mark.parametrize(
    "text",
    [
        b"", b"SIP", b"SIP/2.0", b"SIP/2.0/WS", b"SIP/2.0/WS ", b"SIP/2.0/ host", b"SIP/2.0 WS host",
        b"HTTP/2.0/WS host",
        b"SIP/1.0/WS host", b"SIP/2.00/WS host", b"1.1 proxy.example.com", b"SIP/2.0/WS host:", b"SIP/2.0/WS host:0",
        b"SIP/2.0/WS host:65536", b"SIP/2.0/WS host:x", b"SIP/2.0/WS [::1", b"SIP/2.0/WS 2001:db8::1",
        b"SIP/2.0/UDP 192.0.2.15;;,;,,", b"SIP/2.0/WS host;", b"SIP/2.0/WS host;branch=", b"SIP/2.0/WS host;branch=a:b",
        b"SIP/2.0/WS host;received=a:b", b"SIP/2.0/WS host;received=[::1", b"SIP/2.0/WS host x", b"SIP/2.0/WS host,",
        b"SIP/2.0/WS ho/st", b"SIP/2.0/WS h;b=\"x", b"/2.0/WS host", b"SIP/2.0/WS ;branch=x", b"SIP/2.0/WS\x00host",
    ],
)  # fmt: skip
def test_what_is_no_via_is_refused(text: bytes) -> None:
    assert probe.via(text) is None


@pytest.mark.case("C033")
def test_several_vias_in_one_line_are_parted_by_the_comma_outside_quotes() -> None:
    first = texts(probe.via, b'SIP/2.0/UDP a;x=",";branch=1 , SIP/2.0/WS b;branch=2')
    assert first is not None and first["whole"] == b'SIP/2.0/UDP a;x=",";branch=1'
    second = texts(probe.via, first["rest"])
    assert second is not None and second["branch"] == b"2" and second["rest"] is None


# ---- Small readers


@pytest.mark.parametrize(
    ("text", "name", "found"),
    [
        (b";a=b;c", b"a", b"b"), (b";a=b;c", b"c", b""), (b";a=b;c", b"b", None), (b"", b"a", None),
        (b";A = 1 ;b", b"a", b"1"),
        (b';x=";tag=no";tag=yes', b"tag", b"yes"), (b';x="\\";tag=no";tag=yes', b"tag", b"yes"),
        (b';x="open;tag=no', b"tag", None),
        (b";lr;transport=ws", b"lr", b""), (b";lrx;xlr;lr=on", b"lr", b"on"), (b' ; q = "v" ', b"q", b'"v"'),
        (b";a=1;a=2", b"a", b"1"),
        (b";;a=1", b"a", b"1"), (b";a=", b"a", b""), (b";=x;a=1", b"a", b"1"),
        (b";received=[::1];a", b"received", b"[::1]"),
    ],
)  # fmt: skip
def test_a_parameter_is_found_by_its_name_outside_quotes(text: bytes, name: bytes, found: bytes | None) -> None:
    assert probe.parameter_find(text, name) == found


def test_escapes_are_decoded_and_broken_ones_refused() -> None:
    assert probe.unescape(b"") == b""
    assert probe.unescape(b"%61lice%00%fF%25") == b"alice\x00\xff%"
    for broken in (b"%", b"%4", b"a%4", b"%g0", b"%0g", b"%%41", b"a%"):
        assert probe.unescape(broken) is None


def test_a_list_has_a_token_only_as_a_whole() -> None:
    assert probe.list_has_token(b"path, gruu , OUTBOUND", b"outbound")
    assert probe.list_has_token(b"path,\r\n gruu", b"gruu") and probe.list_has_token(b"path", b"path")
    assert not probe.list_has_token(b"path2, xpath, pa th", b"path") and not probe.list_has_token(b"", b"path")
    assert not probe.list_has_token(b"a,,b", b"path")


# ---- The doors for Python


@pytest.mark.case("C037")
def test_a_uri_object_shows_its_parts() -> None:
    uri = parse_uri(b"SIPS:1234;cic=0001:pw@[2001:db8::1]:5061;Transport=WS;lr;%6C%72=2;n=%41?a=b&c=d")
    assert (uri.scheme, uri.user, uri.host, uri.port) == ("sips", "1234;cic=0001", "[2001:db8::1]", 5061)
    assert uri.parameters == {"transport": "WS", "lr": None, "n": "A"}
    assert uri.headers == "a=b&c=d"
    assert str(uri).startswith("SIPS:1234;cic=0001:pw@") and "sips" in repr(uri).lower()
    plain = parse_uri(b"sip:Example.COM")
    assert (plain.user, plain.host, plain.port, plain.parameters, plain.headers) == (None, "Example.COM", None, {}, "")
    assert parse_uri(b"sip:%61lice%ff@h").user == "alice\udcff"
    assert parse_uri(b"tel:+12015550123").user is None and parse_uri(b"tel:+12015550123").host == "+12015550123"


def test_uri_objects_are_equal_by_their_text_and_cannot_be_changed() -> None:
    one, same, other = parse_uri(b"sip:a@b"), parse_uri(b"sip:a@b"), parse_uri(b"sip:a@B")
    assert one == same and hash(one) == hash(same) and len({one, same, other}) == 2
    assert one != other and one != "sip:a@b"
    with pytest.raises(AttributeError):
        one.user = "mallory"  # type: ignore[misc]
    uri = parse_uri(b"sip:a@b;lr")
    uri.parameters["x"] = "y"
    assert uri.parameters == {"lr": None}
    for broken in (type(one), type(parse_name_addrs(b"<sip:a>")[0])):
        with pytest.raises(TypeError):
            broken()
    for refused in (copy.copy, pickle.dumps):
        with pytest.raises(TypeError):
            refused(one)
    for no_bytes in (None, "sip:a@b", 1):
        with pytest.raises(TypeError):
            parse_uri(no_bytes)  # type: ignore[arg-type]


def test_no_uri_object_made_behind_the_door_reads_wild_memory() -> None:
    stray = type(parse_uri(b"sip:a")).__new__(type(parse_uri(b"sip:a")))
    assert str(stray) == "" and stray.parameters == {}
    kind = type(parse_name_addrs(b"<sip:a>")[0])
    assert kind.__name__ == "NameAddr" and kind.__new__(kind).parameters == {}


def test_the_text_of_a_refusal_never_quotes_the_peer() -> None:
    for function, text in ((parse_uri, b"sip:secret@"), (parse_name_addrs, b"<sip:secret"), (parse_headers, b"secret")):
        with pytest.raises(ValueError) as caught:
            function(text)
        assert "secret" not in str(caught.value)


def test_name_addr_objects_show_their_parts_unquoted() -> None:
    first, second = parse_name_addrs(b'"A \\"l, \xc3\xa9" <sip:a@b;lr>;tag=1 ; X="y\\;z";v , sip:c@d;q=0.5;q=1')
    assert (first.display, first.uri) == ('A "l, \xe9', b"sip:a@b;lr")
    assert first.parameters == {"tag": "1", "x": "y;z", "v": None}
    assert first.raw == b'"A \\"l, \xc3\xa9" <sip:a@b;lr>;tag=1 ; X="y\\;z";v'
    assert (second.display, second.uri, second.parameters) == ("", b"sip:c@d", {"q": "0.5"})
    assert second.raw == b"sip:c@d;q=0.5;q=1"
    assert parse_name_addrs(b"Al\r\n  ice B <sip:a>")[0].display == "Al ice B"
    with pytest.raises(AttributeError):
        first.display = "x"  # type: ignore[misc]
    for text in (b"*", b"", b"<sip:a>,", b"<sip:a> <sip:b>"):
        with pytest.raises(ValueError):
            parse_name_addrs(text)


def test_parse_headers_gives_start_line_headers_and_body() -> None:
    data = made(Content_Length=b"L : 4\r\n", Max_Forwards=b"Max-Forwards:\r\n 70\r\n", body=b"bodytail")
    start, headers, body = parse_headers(data)
    assert start == b"OPTIONS sip:bob@example.com SIP/2.0" and body == b"body"
    assert headers[0] == (b"Via", b"SIP/2.0/WS c1.invalid;branch=z9hG4bK0000001")
    assert headers[1] == (b"Max-Forwards", b"70") and headers[-1] == (b"L", b"4") and len(headers) == len(LINES)
    with pytest.raises(ValueError, match=r"^Missing Via$"):
        parse_headers(made(Via=b""))


# ---- Whatever the bytes


SPANS = ("data", "start_line", "method", "uri", "version", "reason", "head", "body")
PIECES = [
    b"\r\n", b"\r", b"\n", b"\x00", b" ", b"\t", b'"', b"\\", b"<", b">", b",", b";", b":", b"=", b"@", b"%", b"[",
    b"]",
    b"\r\n ", b"\r\n\r\n", b"SIP/2.0", b"sip:", b"\xff", b"\x80", b"l: 5\r\n", b"v: ", b"9" * 25, b"?", b"*", b"\x1f",
    b"\x7f",
]  # fmt: skip


def mutations(count: int) -> Iterator[bytes]:
    """Bytes near the corpus, the same ones in every run."""
    chance = random.Random(7118)
    for _ in range(count):
        data = bytearray(chance.choice(CORPUS)[: chance.choice((200, 800, 4000))])
        for _ in range(chance.choice((1, 1, 2, 5))):
            at = chance.randint(0, len(data))
            kind = chance.randrange(5)
            if kind == 0 and at < len(data):
                data[at] = chance.randrange(256)
            elif kind == 1:
                data[at:at] = chance.choice(PIECES)
            elif kind == 2:
                del data[at : at + chance.choice((1, 2, 20))]
            elif kind == 3:
                other = chance.choice(CORPUS)
                start = chance.randint(0, len(other))
                data[at:at] = other[start : start + chance.choice((5, 60))]
            else:
                data[at : at + 1] = chance.choice(PIECES)
        yield bytes(data)


def assert_inside(data: bytes, found: dict[str, Any] | None) -> None:
    """Every place that a reader gave is inside what it was given."""
    for place in (found or {}).values():
        if isinstance(place, tuple):
            assert 0 <= place[0] <= place[1] <= len(data)


def test_whatever_the_bytes_every_span_is_inside_them_and_every_result_in_the_contract() -> None:
    good = refused = 0
    for data in mutations(4000):
        found = probe.scan(data)
        assert found["status"] in (0, 400, 505, -1) and (found["error"] is None) == (found["status"] == 0)
        good += found["status"] == 0
        refused += found["status"] != 0
        assert_inside(data, {name: found[name] for name in SPANS})
        if found["head"] is None:
            assert found["status"] == -1 and not found["headers"]
            continue
        last = found["head"][0]
        times = [0] * probe.HEADER_ID_COUNT
        for header in found["headers"]:
            (start, end), name, text = header["line"], header["name"], header["value"]
            # Lines come in order; names are tokens with a colon behind them; no line holds a bare CR or LF.
            assert last <= start == name[0] < name[1] < text[0] <= text[1] <= end - 2 <= found["head"][1]
            assert data[end - 2 : end] == b"\r\n"
            unfolded = data[start:end].replace(b"\r\n", b"")
            assert b"\r" not in unfolded and b"\n" not in unfolded
            assert header["id"] == probe.header_identify(data[name[0] : name[1]])
            times[header["id"]] += 1
            last = end
            for reader in (probe.name_addr, probe.via, probe.uri):
                assert_inside(data[text[0] : text[1]], reader(data[text[0] : text[1]]))
        assert times == found["times"]
        if found["uri"] is not None:
            assert_inside(data[slice(*found["uri"])], probe.uri(data[slice(*found["uri"])]))
    # The mutations reach both sides.
    assert good > 400 and refused > 400


def test_whatever_the_bytes_scanner_framer_and_python_agree() -> None:
    scanner = probe.Scanner(1)
    framed = 0
    for data in mutations(3000):
        found = probe.scan(data)
        assert scanner.report(data) == found
        length, _ = probe.frame(data, 1 << 20)
        if found["status"] == 0:
            start, end = found["data"]
            if found["has_content_length"]:
                assert length == end
            alone = probe.scan(data[start:end])
            assert alone["status"] == 0 and len(alone["headers"]) == len(found["headers"])
            first, headers, body = parse_headers(data)
            assert first == cut(data, found["start_line"]) and body == cut(data, found["body"])
            assert [(cut(data, one["name"]), cut(data, one["value"])) for one in found["headers"]] == headers
        else:
            with pytest.raises(ValueError):
                parse_headers(data)
        if length > 0:
            framed += 1
            assert length <= len(data) and probe.scan(data[:length])["data"][1] == length
            # One byte less is not yet the message; cut anywhere, it is found again.
            assert probe.frame(data[: length - 1], 1 << 20)[0] == 0
            half, scanned = probe.frame(data[: length // 2], 1 << 20)
            assert half == 0 and probe.frame(data, 1 << 20, scanned)[0] == length
    assert framed > 500


def test_whatever_the_bytes_the_readers_and_the_python_doors_agree() -> None:
    chance = random.Random(25)
    seeds = [text for text, _ in URIS]
    seeds.append(b'"A \\" l" <sip:a@b;lr>;tag="x,y" , sip:c@[::1];q=0.5')
    seeds.append(b"SIP / 2.0/ WS [::1] : 80;received=::2;rport , x")
    for _ in range(6000):
        data = bytearray(chance.choice(seeds))
        for _ in range(chance.choice((1, 2, 3))):
            at = chance.randint(0, len(data))
            piece = chance.choice((chance.choice(PIECES), b"", chance.randbytes(1)))
            data[at : at + chance.choice((0, 1, 1, 4))] = piece
        text = bytes(data)
        for reader in (probe.uri, probe.name_addr, probe.via):
            assert_inside(text, reader(text))
        found = texts(probe.uri, text)
        if found is None:
            with pytest.raises(ValueError):
                parse_uri(text)
        else:
            uri = parse_uri(text)
            assert str(uri).encode("utf-8", "surrogateescape") == text and isinstance(uri.parameters, dict)
            assert (uri.user is None) == (found["user"] is None)
        try:
            values = parse_name_addrs(text)
        except ValueError:
            continue
        assert values and texts(probe.name_addr, text)["whole"] == values[0].raw  # type: ignore[index]
        assert all(isinstance(one.parameters, dict) for one in values)
