"""RFC 4475 and RFC 5118: what the scanner and the readers owe each torture message.

The files in tests/messages/rfc4475 are the RFC's own bytes. What a proxy does with a message that was read (416, 483,
420, a foreign Route) is tested where it is decided.
"""

from pathlib import Path

import pytest

from fastws.wire.message import NameAddr, parse_headers, parse_name_addrs, parse_uri
from tests.wire import probe_message as probe

FILES = Path(__file__).parent.parent / "messages" / "rfc4475"

STATUS = {
    # 3.1.1: valid, whatever they look like
    "wsinv": 0, "intmeth": 0, "esc01": 0, "escnull": 0, "esc02": 0, "lwsdisp": 0, "longreq": 0, "dblreq": 0,
    "semiuri": 0, "transports": 0, "mpart01": 0, "unreason": 0, "noreason": 0,
    # 3.1.2: invalid. A 0 here is left to the readers below, or to nobody: a Date, a Contact and a header inside a URI
    # are no matter of the scanner.
    "badinv01": 0, "clerr": 400, "ncl": 400, "scalar02": 400, "scalarlg": -1, "quotbal": 0, "ltgtruri": 400,
    "lwsruri": 400, "lwsstart": 400, "trws": 400, "escruri": 0, "baddate": 0, "regbadct": 0, "badaspec": 0,
    "baddn": 400, "badvers": 505, "mismatch01": 400, "mismatch02": 400, "bigcode": -1,
    # 3.2 to 3.4: the transaction and the application
    "badbranch": 0, "insuf": 400, "unkscm": 0, "novelsc": 0, "unksm2": 0, "bext01": 0, "invut": 0, "regaut01": 0,
    "multi01": 400, "mcl01": 400, "bcast": 0, "zeromf": 0, "cparam01": 0, "cparam02": 0, "regescrt": 0, "sdp01": 0,
    "inv2543": 0,
    # A request line without a version, and a header without a colon
    "test": 400,
}  # fmt: skip


def message(name: str) -> bytes:
    return (FILES / f"{name}.dat").read_bytes()


def values(name: str, header: str) -> list[bytes]:
    """The values of all headers with this id, where the message could be read."""
    data = message(name)
    return [
        data[slice(*one["value"])] for one in probe.scan(data)["headers"] if one["id"] == probe.HEADERS[header]
    ]


def addresses(name: str, header: str) -> list[NameAddr]:
    return [one for value in values(name, header) for one in parse_name_addrs(value)]


def vias(name: str) -> list[dict[str, object]]:
    """Every Via value, spans as bytes."""
    found = []
    for text in values(name, "via"):
        rest: bytes | None = text
        while rest is not None:
            via = probe.via(rest)
            assert via is not None
            cut = {key: rest[slice(*part)] if isinstance(part, tuple) else part for key, part in via.items()}
            found.append(cut)
            rest = cut["rest"]
    return found


def start_uri(name: str) -> bytes:
    data = message(name)
    return data[slice(*probe.scan(data)["uri"])]


def test_every_file_has_its_verdict_and_every_verdict_its_file() -> None:
    assert {path.stem for path in FILES.glob("*.dat")} == STATUS.keys() and len(STATUS) == 50


@pytest.mark.rule(14)
@pytest.mark.parametrize("name", STATUS)
def test_the_scanner_gives_each_message_its_verdict(name: str) -> None:
    found = probe.scan(message(name))
    assert found["status"] == STATUS[name], found["error"]
    if STATUS[name] in (400, 505):
        # What the answer is made from.
        for header in ("via", "from", "to", "call-id", "cseq"):
            missing = {"insuf": ("from", "to", "call-id"), "test": ("via", "cseq")}.get(name, ())
            assert (found["first"][probe.HEADERS[header]] < 0) == (header in missing), header


@pytest.mark.rule(21)
def test_wsinv_blanks_folds_and_compact_names_are_read() -> None:
    found = probe.scan(message("wsinv"))
    assert (found["max_forwards"], found["cseq"], found["content_length"]) == (68, 9, 150)
    first, second, third = vias("wsinv")
    assert (first["sent_by"], first["branch"]) == (b"192.0.2.2", b"390skdjuw")
    assert (second["transport"], second["sent_by"], second["branch"]) == (
        b"TCP", b"spindle.example.com", b"z9hG4bK9ikj8",
    )  # fmt: skip
    assert (third["sent_by"], third["branch"]) == (b"192.168.255.111", b"z9hG4bK30239")
    to, sender, contact = addresses("wsinv", "to")[0], addresses("wsinv", "from")[0], addresses("wsinv", "contact")[0]
    assert to.uri == b"sip:vivekg@chair-dnrc.example.com" and to.parameters == {"tag": "1918181833n"}
    assert sender.display == 'J Rosenberg \\"' and sender.parameters == {"tag": "98asjd8"}
    assert contact.display == 'Quoted string ""' and contact.uri == b"sip:jdrosen@example.com"
    assert contact.parameters == {"newparam": "newvalue", "secondparam": None, "q": "0.33"}
    assert addresses("wsinv", "route")[0].uri == b"sip:services.example.com;lr;unknownwith=value;unknown-no-value"


def test_intmeth_strange_characters_of_tokens_and_user_parts_are_read() -> None:
    data = message("intmeth")
    found = probe.scan(data)
    assert data[slice(*found["method"])] == b"!interesting-Method0123456789_*+`.%indeed'~"
    uri = parse_uri(start_uri("intmeth"))
    assert uri.user == "1_unusual.URI~(to-be!sure)&isn't+it$/crazy?,/;;*" and uri.host == "example.com"
    assert addresses("intmeth", "to")[0].display == "BEL:\x07 NUL:\x00 DEL:\x7f"
    sender = addresses("intmeth", "from")[0]
    assert sender.display == "token1~` token2'+_ token3*%!.-" and "fromparam''~+*_!.-%" in sender.parameters


def test_esc01_and_escnull_escapes_are_decoded_only_when_asked() -> None:
    uri = parse_uri(start_uri("esc01"))
    assert uri.user == "sips:user@example.com" and uri.host == "example.net"
    assert str(uri) == "sip:sips%3Auser%40example.com@example.net"
    assert "lr" in parse_uri(addresses("esc01", "contact")[0].uri).parameters
    contacts = [parse_uri(one.uri).user for one in addresses("escnull", "contact")]
    assert contacts == ["\x00", "\x00\x00"]
    assert parse_uri(addresses("escnull", "to")[0].uri).user == "null-\x00-null"


def test_esc02_an_escaped_method_is_another_method() -> None:
    data = message("esc02")
    found = probe.scan(data)
    assert data[slice(*found["method"])] == b"RE%47IST%45R" and found["method_id"] == probe.METHODS["other"]


def test_lwsdisp_no_blank_is_needed_before_the_bracket() -> None:
    sender = addresses("lwsdisp", "from")[0]
    assert sender.display == "caller" and parse_uri(sender.uri).user == "caller"


def test_longreq_nothing_is_cut() -> None:
    data = message("longreq")
    found = probe.scan(data)
    assert len(found["headers"]) == 43 and len(vias("longreq")) == 34
    assert data[found["headers"][-1]["line"][1] :].startswith(b"\r\nv=0") and len(addresses("longreq", "to")) == 1


@pytest.mark.case("C112")
@pytest.mark.rule(19)
def test_dblreq_the_second_request_is_no_part_of_the_first() -> None:
    data = message("dblreq")
    first = probe.scan(data)
    assert first["method_id"] == probe.METHODS["REGISTER"] and first["body"][0] == first["body"][1]
    end = first["data"][1]
    assert probe.frame(data, 65536)[0] == end < len(data)
    assert b"INVITE sip:joe@example.com SIP/2.0" in data[end:]


def test_semiuri_the_user_part_is_all_before_the_at() -> None:
    uri = parse_uri(start_uri("semiuri"))
    assert uri.user == "user;par=u@example.net" and uri.host == "example.com" and uri.parameters == {}


def test_transports_all_five_vias_are_read() -> None:
    assert [via["transport"] for via in vias("transports")] == [b"UDP", b"SCTP", b"TLS", b"UNKNOWN", b"TCP"]


def test_mpart01_a_binary_body_is_kept_whole() -> None:
    data = message("mpart01")
    body = parse_headers(data)[2]
    assert len(body) == 553 and data.endswith(body) and b"\x00" in body


def test_unreason_and_noreason_any_reason_is_one() -> None:
    for name, code in (("unreason", 200), ("noreason", 100)):
        data = message(name)
        found = probe.scan(data)
        assert found["code"] == code
        assert len(data[slice(*found["reason"])]) == (74 if name == "unreason" else 0)


def test_badinv01_the_vias_and_the_contact_are_no_such_thing() -> None:
    assert [probe.via(text) for text in values("badinv01", "via")] == [None]
    assert [probe.name_addr(text) for text in values("badinv01", "contact")] == [None]


def test_quotbal_an_open_quote_is_no_name_addr() -> None:
    assert [probe.name_addr(text) for text in values("quotbal", "to")] == [None]


def test_escruri_headers_of_a_request_uri_are_seen_and_never_followed() -> None:
    assert parse_uri(start_uri("escruri")).headers == "Route=%3Csip:example.com%3E"


def test_regbadct_a_question_mark_without_brackets_is_no_contact() -> None:
    assert [probe.name_addr(text) for text in values("regbadct", "contact")] == [None]
    inside = addresses("regescrt", "contact")[0]
    assert parse_uri(inside.uri).headers == "Route=%3Csip:sip.example.com%3E"


def test_badaspec_blanks_inside_the_brackets_are_no_uri() -> None:
    with pytest.raises(ValueError):
        parse_uri(addresses("badaspec", "to")[0].uri)


def test_baddn_the_comma_of_an_unquoted_name_parts_two_values_and_the_first_is_none() -> None:
    # The RFC's bytes end without the empty line; with it only the readers are left to complain.
    data = message("baddn") + b"\r\n"
    found = probe.scan(data)
    assert found["status"] == 0
    sender = data[slice(*found["headers"][found["first"][probe.HEADERS["from"]]]["value"])]
    assert sender.startswith(b"Bell, Alexander") and probe.name_addr(sender) is None


def test_badbranch_the_bare_cookie_is_a_branch_like_any_other() -> None:
    assert vias("badbranch")[0]["branch"] == b"z9hG4bK"


def test_unknown_schemes_are_read_as_such() -> None:
    assert parse_uri(start_uri("unkscm")).scheme == "nobodyknowsthisscheme"
    assert parse_uri(start_uri("novelsc")).scheme == "soap.beep"
    assert parse_uri(addresses("unksm2", "from")[0].uri).user is None
    assert parse_uri(addresses("unksm2", "to")[0].uri).scheme == "isbn"


@pytest.mark.rule(18)
def test_bext01_require_and_proxy_require_are_told_apart() -> None:
    (require,) = values("bext01", "require")
    (proxy_require,) = values("bext01", "proxy-require")
    assert probe.list_has_token(require, b"nothingsupportsthis") != probe.list_has_token(
        proxy_require, b"nothingsupportsthis"
    )


def test_multi01_and_mcl01_say_what_is_there_twice() -> None:
    assert probe.scan(message("multi01"))["error"].startswith("Duplicate ")
    assert probe.scan(message("mcl01"))["error"] == "Duplicate Content-Length"


@pytest.mark.rule(17)
def test_zeromf_max_forwards_is_zero_and_not_absent() -> None:
    found = probe.scan(message("zeromf"))
    assert found["max_forwards"] == 0 and found["times"][probe.HEADERS["max-forwards"]] == 1


@pytest.mark.case("C035")
def test_cparam_brackets_decide_whose_parameter_it_is() -> None:
    (header,) = addresses("cparam01", "contact")
    (inside,) = addresses("cparam02", "contact")
    assert "unknownparam" in header.parameters and parse_uri(header.uri).parameters == {}
    assert inside.parameters == {} and "unknownparam" in parse_uri(inside.uri).parameters


def test_inv2543_a_request_of_the_older_rfc_is_read() -> None:
    found = probe.scan(message("inv2543"))
    assert found["times"][probe.HEADERS["max-forwards"]] == 0 and not found["has_content_length"]
    assert found["body"][1] > found["body"][0] and vias("inv2543")[0]["branch"] is None


# ---- RFC 5118: addresses of version 6. Its messages differ in the few bytes below.


def over_ipv6(
    uri: bytes = b"sip:user@[2001:db8::10]", via: bytes = b"SIP/2.0/UDP [2001:db8::9:1];branch=z9hG4bKas3"
) -> bytes:
    return (
        b"REGISTER " + uri + b" SIP/2.0\r\nTo: sip:user@example.com\r\nFrom: sip:user@example.com;tag=81x2\r\n"
        b"Via: " + via + b"\r\nCall-ID: SSG9559905523997077@hlau_4100\r\nMax-Forwards: 70\r\n"
        b'Contact: "Caller" <sip:caller@[2001:db8::1]>\r\nCSeq: 98176 REGISTER\r\nContent-Length: 0\r\n\r\n'
    )


def request_uri(data: bytes) -> bytes:
    found = probe.scan(data)
    assert found["status"] == 0
    return data[slice(*found["uri"])]


def test_ipv6_good_a_reference_in_brackets_is_a_host() -> None:
    uri = parse_uri(request_uri(over_ipv6()))
    assert (uri.host, uri.port) == ("[2001:db8::10]", None)


@pytest.mark.case("C039")
def test_ipv6_bad_an_address_without_brackets_is_no_host() -> None:
    assert probe.uri(request_uri(over_ipv6(b"sip:2001:db8::10"))) is None


@pytest.mark.case("C039")
def test_port_ambiguous_what_stands_inside_the_brackets_is_the_address() -> None:
    assert parse_uri(request_uri(over_ipv6(b"sip:[2001:db8::10:5070]"))).port is None
    assert parse_uri(request_uri(over_ipv6(b"sip:[2001:db8::10]:5070"))).port == 5070


@pytest.mark.parametrize("received", [b"[2001:db8::9:255]", b"2001:db8::9:255"])
def test_via_received_is_taken_with_and_without_brackets(received: bytes) -> None:
    data = over_ipv6(via=b"SIP/2.0/UDP [2001:db8::9:1];received=" + received + b";branch=z9hG4bKas3-111")
    text = data[slice(*probe.scan(data)["headers"][2]["value"])]
    via = probe.via(text)
    assert via is not None and text[slice(*via["branch"])] == b"z9hG4bKas3-111"
    assert probe.parameter_find(text[slice(*via["parameters"])], b"received") == received


def test_both_versions_may_stand_in_one_message() -> None:
    data = over_ipv6(via=b"SIP/2.0/UDP [2001:db8::9:1]:6050;branch=a, SIP/2.0/UDP 192.0.2.1;received=192.0.2.30")
    text = data[slice(*probe.scan(data)["headers"][2]["value"])]
    via = probe.via(text)
    assert via is not None and text[slice(*via["host"])] == b"[2001:db8::9:1]" and via["port"] == 6050
    assert probe.via(text[slice(*via["rest"])]) is not None


def test_a_mapped_address_is_read_as_it_stands() -> None:
    uri = parse_uri(request_uri(over_ipv6(b"sip:user@[::ffff:192.0.2.2]:5060")))
    assert (uri.host, uri.port) == ("[::ffff:192.0.2.2]", 5060)


def test_three_colons_are_taken_without_harm() -> None:
    assert parse_uri(request_uri(over_ipv6(b"sip:user@[2001:db8:::192.0.2.1]"))).host == "[2001:db8:::192.0.2.1]"
