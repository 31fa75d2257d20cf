# RFC 6455 4.2, RFC 7118 4: the HTTP head of a client, whole and cut in every way, and the answer it deserves.
from __future__ import annotations

import hashlib
import itertools
import random
import re
from ipaddress import ip_network

import pytest

from fastws.digest import Digest
from fastws.wire.handshake import (
    Accept,
    Handshake,
    HeadError,
    Headers,
    HeadReader,
    Limits,
    Refuse,
    Reject,
    accept_response,
    check_upgrade,
    reject_response,
)

DEFAULT = Limits()
LINES = [
    "GET / HTTP/1.1",
    "Host: edge.example.com:8080",
    "Upgrade: websocket",
    "Connection: Upgrade",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Protocol: sip",
    "Origin: https://app.example.com",
]


def head(*more: str, without: str = "", first: str = LINES[0]) -> bytes:
    """The handshake of the cases, with another first line, without the header named, and with more lines."""
    lines = [first, *(line for line in LINES[1:] if not without or not line.startswith(without + ":")), *more]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def read(data: bytes, cuts: tuple[int, ...] = (), limits: Limits = DEFAULT) -> tuple[HeadReader, bytes | None]:
    """Feed data, cut before each of these offsets; stops at the end of the head, with all that lies behind it."""
    reader = HeadReader(limits)
    edges = [0, *cuts, len(data)]
    for start, end in itertools.pairwise(edges):
        rest = reader.feed(data[start:end])
        if rest is not None:
            return reader, rest + data[end:]
    return reader, None


def outcome(data: bytes, cuts: tuple[int, ...] = (), limits: Limits = DEFAULT) -> object:
    """All that a head comes to, comparable: what was read of it, or the status of the refusal."""
    try:
        reader, rest = read(data, cuts, limits)
    except HeadError as error:
        return error.status
    if rest is None:
        return None
    return reader.method, reader.target, reader.http_version, list(reader.headers.items()), rest


def handshake(*more: str, proxies: tuple[str, ...] = (), peer: str = "127.0.0.1", **changes: str) -> Handshake:
    reader, rest = read(head(*more, **changes))
    assert rest == b""
    networks = tuple(ip_network(proxy) for proxy in proxies)
    return Handshake(reader, (peer, 4711), ("192.0.2.1", 443), False, None, networks)


def status(data: bytes, path: str | None = None) -> int:
    """What a client gets for this head: 101, or the status of the refusal."""
    try:
        reader, rest = read(data)
    except HeadError as error:
        return error.status
    assert rest is not None
    problem = check_upgrade(reader, path)
    return 101 if problem is None else problem.status


# Reading the head


@pytest.mark.rule(49)
def test_a_head_reads_the_same_however_it_is_cut_and_what_lies_behind_it_comes_back():
    data = head("Cookie: a=b", "X-Empty:", "X-Blank:  v \t", "X-High: \xe9\xff") + b"\x81\x85frame\r\n\r\nmore"
    whole = outcome(data)
    assert isinstance(whole, tuple)
    assert whole[:3] == ("GET", "/", "1.1")
    assert whole[3][-4:] == [("Cookie", "a=b"), ("X-Empty", ""), ("X-Blank", "v"), ("X-High", "\xe9\xff")]
    assert whole[4] == b"\x81\x85frame\r\n\r\nmore"
    assert outcome(data, tuple(range(1, len(data)))) == whole
    for cut in range(1, len(data)):
        assert outcome(data, (cut,)) == whole
    dice = random.Random(6455)
    for _ in range(200):
        assert outcome(data, tuple(sorted(dice.sample(range(1, len(data)), 5)))) == whole


def test_every_proper_beginning_of_a_head_asks_for_more():
    data = head()
    for end in range(len(data)):
        reader, rest = read(data[:end])
        assert rest is None
        assert not reader.complete
        assert reader.started == (end > 0)


@pytest.mark.parametrize(
    "data",
    [
        b"OPTIONS sip:bob@example.com SIP/2.0\r\n",
        b"INVITE sip:bob@example.com SIP/2.0\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01",
        b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n",
        b"\x81\x85\x00\x00\x00\x00hello",
        b"\x00",
    ],
)
@pytest.mark.case("C012")
def test_what_is_no_http_is_refused_before_a_blank_line_comes(data):
    assert outcome(data) == 400
    assert outcome(data, tuple(range(1, len(data)))) == 400


@pytest.mark.parametrize(
    "line",
    [
        "Origin : https://app.example.com",
        "X-Pad: a\r\n Origin: https://app.example.com",
        "X-Pad: a\r\n\tOrigin: https://app.example.com",
        "Origin: https://app.example.com\0.evil.example",
        "X: a\x01b",
        "X: a\nOrigin: https://app.example.com",
        "X: a\rOrigin: https://app.example.com",
        "no colon",
        ": no name",
        "b\xe4d: name",
        "Content-Length: x",
        "Content-Length: -1",
        "Content-Length: 0\r\nContent-Length: 0",
        "Content-Length: 0\r\nTransfer-Encoding: chunked",
    ],
)
@pytest.mark.rule(49)
@pytest.mark.case("C011")
def test_a_line_that_two_parsers_could_read_differently_is_400(line):
    data = head(line, without="Origin")
    assert outcome(data) == 400
    assert outcome(data, tuple(range(1, len(data)))) == 400


@pytest.mark.parametrize("data", [b"\r\n\r\n", b"\r\n\r\n" + head(), head().replace(b"\r\n", b"\n") + b"\r\n\r\n"])
def test_the_head_ends_where_llhttp_and_the_blank_line_agree_or_it_is_400(data):
    assert outcome(data) == 400
    assert outcome(data, tuple(range(1, len(data)))) == 400


def test_a_head_that_a_lenient_parser_would_end_early_is_400():
    reader = HeadReader(DEFAULT)
    if not hasattr(reader._parser, "set_dangerous_leniencies"):
        pytest.skip("this httptools has the strict mode only")
    reader._parser.set_dangerous_leniencies(lenient_optional_cr_before_lf=True)
    with pytest.raises(HeadError) as caught:
        reader.feed(b"GET / HTTP/1.1\r\nHost: a\n\n")
    assert caught.value.status == 400


def test_one_empty_line_in_front_of_the_request_is_passed_over():
    assert outcome(b"\r\n" + head()) == outcome(head())  # RFC 9112 2.2


def test_a_head_of_just_the_limit_passes_and_one_byte_more_is_431():
    data = head("X-Pad: " + "x" * 300)
    exact = Limits(max_head_bytes=len(data))
    short = Limits(max_head_bytes=len(data) - 1)
    every_byte = tuple(range(1, len(data)))
    assert outcome(data + b"frame", limits=exact) == outcome(data + b"frame")
    assert outcome(data, every_byte, exact) == outcome(data)
    assert outcome(data, limits=short) == 431
    assert outcome(data, every_byte, short) == 431


def test_an_endless_head_is_refused_at_the_limit_and_not_kept():
    reader = HeadReader(Limits(max_head_bytes=1000))
    assert reader.feed(b"GET /" + b"a" * 900) is None
    with pytest.raises(HeadError) as caught:
        reader.feed(b"a" * 100000)
    assert caught.value.status == 431
    assert "max_head_bytes" in caught.value.reason


def test_what_lies_beyond_the_limit_is_not_read():
    data = head("X-Pad: " + "x" * 300, "X-Nul: \0")
    assert outcome(data) == 400
    limits = Limits(max_head_bytes=len(data) - 20)
    assert outcome(data, limits=limits) == 431
    assert outcome(data, tuple(range(1, len(data))), limits) == 431


def test_garbage_is_400_even_when_it_is_longer_than_a_head_may_be():
    assert outcome(b"\x16\x03\x01" * 10000) == 400


@pytest.mark.case("C008")
def test_more_header_lines_than_the_limit_are_431():
    few = Limits(max_headers=10)
    assert isinstance(outcome(head("A: 1", "B: 2", "C: 3"), limits=few), tuple)
    data = head("A: 1", "B: 2", "C: 3", "D: 4")
    assert outcome(data, limits=few) == 431
    assert outcome(data, tuple(range(1, len(data))), few) == 431
    flood = b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X-A: x\r\n" * 2000 + head()
    assert outcome(flood) == 431
    assert outcome(flood, tuple(range(1, len(flood)))) == 431


@pytest.mark.case("C009")
def test_seven_kilobytes_of_cookies_pass_the_default_limits():
    seen = handshake(f'Cookie: a={"x" * 4000}; b={"y" * 3000}; sid=s1; c="q"')
    assert seen.cookies["sid"] == "s1"
    assert seen.cookies["c"] == "q"
    assert len(seen.cookies["a"]) == 4000


def test_whatever_bytes_come_there_is_a_head_a_refusal_or_a_wish_for_more():
    dice = random.Random(7118)
    good = head("Cookie: a=b; c", "X-Forwarded-For: 192.0.2.1", first="GET /sip?a=%0&b=%zz&&=c HTTP/1.1")
    for _ in range(3000):
        data = bytearray(good)
        for _ in range(dice.randrange(1, 4)):
            at = dice.randrange(len(data))
            data[at : at + dice.randrange(3)] = dice.randbytes(dice.randrange(4))
        try:
            reader, rest = read(bytes(data), tuple(sorted(dice.sample(range(1, 100), 2))))
        except HeadError as error:
            assert error.status in (400, 431)
            continue
        if rest is None:
            continue
        problem = check_upgrade(reader, None)
        if problem is None:
            seen = Handshake(reader, ("127.0.0.1", 1), ("127.0.0.1", 2), False, None, (ip_network("127.0.0.0/8"),))
            for name in ("path", "query", "host", "cookies", "subprotocols", "forwarded_for"):
                getattr(seen, name)
            assert accept_response(reader).startswith(b"HTTP/1.1 101 ")
        else:
            assert reject_response(problem).startswith(b"HTTP/1.1 4")


# What the policy sees


def test_headers_are_a_read_only_mapping_without_regard_to_case():
    headers = handshake("X-One: 1", "x-two: a", "X-TWO: b").headers
    assert headers["ORIGIN"] == headers.get("origin") == "https://app.example.com"
    assert "sec-websocket-KEY" in headers
    assert "X-None" not in headers
    assert headers.get("X-None") is None
    assert 5 not in headers
    assert "\u0141" not in headers
    with pytest.raises(KeyError):
        headers["X-None"]
    assert headers.get_all("X-Two") == ["a", "b"]
    assert headers.get_all("X-None") == []
    assert headers["x-two"] == "a, b"
    assert [name for name in headers if name.lower().startswith("x")] == ["X-One", "x-two"]
    assert len(headers) == len(list(headers)) == 9
    assert dict(headers.items())["x-two"] == "a, b"
    with pytest.raises(TypeError):
        headers["X-One"] = "2"


@pytest.mark.case("C005")
def test_a_missing_origin_is_none_and_two_origins_are_not_the_good_one():
    assert handshake(without="Origin").headers.get("Origin") is None
    twice = handshake("Origin: https://evil.example").headers
    assert twice.get("Origin") == "https://app.example.com, https://evil.example"
    same = handshake("Origin: https://app.example.com").headers
    assert same.get("Origin") != "https://app.example.com"


def test_a_repeated_empty_header_is_seen_as_repeated():
    assert handshake("X-E:", "X-E:").headers.get_all("x-e") == ["", ""]
    assert handshake("X-E:", "X-E:").headers["X-E"] == ", "


def test_no_repr_shows_what_a_client_sent_in_confidence():
    seen = handshake("Cookie: sid=secret", "Authorization: Bearer secret", first="GET /?token=secret HTTP/1.1")
    assert "secret" not in repr(seen)
    assert "secret" not in repr(seen.headers)
    assert "Cookie" in repr(seen.headers)
    assert "secret" not in repr(seen._reader)


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        ("/", "/", {}),
        ("/sip?k=1", "/sip", {"k": "1"}),
        ("/sip?k=1&k=2&K=3", "/sip", {"k": "1", "K": "3"}),
        ("/s%20p?a=b%26c+d&e=&f", "/s%20p", {"a": "b&c d", "e": "", "f": ""}),
        ("/?a=%C3%A9&b=%ff", "/", {"a": "\xe9", "b": "\ufffd"}),
        ("http://other.example.com:81/sip?k=1", "/sip", {"k": "1"}),
        ("ws://other.example.com", "/", {}),
        ("/sip?u=http://a.example/b?c", "/sip", {"u": "http://a.example/b?c"}),
    ],
)
def test_path_is_as_sent_and_query_is_decoded_first_value_first(target, path, query):
    seen = handshake(first=f"GET {target} HTTP/1.1")
    assert seen.target == target
    assert seen.path == path
    assert seen.query == query


def test_query_all_has_every_value_in_order():
    assert handshake(first="GET /?k=1&j=0&k=2 HTTP/1.1").query_all == {"k": ["1", "2"], "j": ["0"]}


def test_host_is_that_of_an_absolute_target_before_that_of_the_header():
    assert handshake().host == "edge.example.com:8080"
    assert handshake(first="GET http://other.example.com:81/ HTTP/1.1").host == "other.example.com:81"  # RFC 9112 3.2.2


@pytest.mark.parametrize(
    ("lines", "cookies"),
    [
        ([], {}),
        (["Cookie: sid=s1"], {"sid": "s1"}),
        (["Cookie: a=1;b=2 ;  c = 3"], {"a": "1", "b": "2", "c": "3"}),
        (["Cookie: sid=long; sid=short"], {"sid": "long"}),
        (["Cookie: a=1", "Cookie: a=2; b=3"], {"a": "1", "b": "3"}),
        (['Cookie: q="a b"; r="; s=x", t=""'], {"q": "a b", "r": '"', "s": 'x", t=""'}),
        (["Cookie: ; =x; lonely; ok=a=b=c; e="], {"ok": "a=b=c", "e": ""}),
        (["Cookie: j=%7B%22; u=\xc3\xa9"], {"j": "%7B%22", "u": "\xc3\xa9"}),
        (["Cookie: SID=1; sid=2"], {"SID": "1", "sid": "2"}),
    ],
)
def test_cookies_are_read_leniently_and_the_first_of_a_name_counts(lines, cookies):
    assert handshake(*lines).cookies == cookies


def test_subprotocols_come_in_the_order_of_preference():
    name = "Sec-WebSocket-Protocol"
    seen = handshake(f"{name}: xmpp ,sip", f"{name}: , msrp", without=name)
    assert seen.subprotocols == ["xmpp", "sip", "msrp"]


def test_the_addresses_and_the_certificate_are_those_of_the_connection():
    reader, _ = read(head())
    seen = Handshake(reader, ("2001:db8::1", 4711), ("192.0.2.1", 443), True, {"subject": ()})
    assert (seen.source, seen.local, seen.secure, seen.tls) == (
        ("2001:db8::1", 4711),
        ("192.0.2.1", 443),
        True,
        {"subject": ()},
    )
    assert seen.forwarded_for is None


TWO_LINES = ("X-Forwarded-For: 10.0.0.1, 203.0.113.9", "X-Forwarded-For: 198.51.100.4", "X-Real-IP: 192.0.2.66")


@pytest.mark.parametrize(
    ("lines", "proxies", "address"),
    [
        (TWO_LINES, ("127.0.0.1/32",), "198.51.100.4"),
        (TWO_LINES, ("127.0.0.0/8", "198.51.100.0/24"), "203.0.113.9"),
        (TWO_LINES, (), None),
        (TWO_LINES, ("192.0.2.0/24",), None),
        (("X-Forwarded-For: 127.0.0.2, 127.0.0.3",), ("127.0.0.0/8",), "127.0.0.2"),
        (('X-Forwarded-For: unknown, "[2001:db8::9]:4711"',), ("127.0.0.1/32",), "2001:db8::9"),
        (("X-Forwarded-For: 203.0.113.9, unknown",), ("127.0.0.1/32",), None),
        (("X-Forwarded-For: 203.0.113.9, unknown, 127.0.0.1",), ("127.0.0.1/32",), None),
        (("X-Forwarded-For:",), ("127.0.0.1/32",), None),
        (("X-Forwarded-For: ,203.0.113.9, ,",), ("127.0.0.1/32",), "203.0.113.9"),
        ((f"X-Forwarded-For: {'203.0.113.9, ' * 200}203.0.113.9",), ("127.0.0.1/32",), "203.0.113.9"),
        (("X-Forwarded-For: 203.0.113.9:4711",), ("127.0.0.1/32",), "203.0.113.9"),
        (("X-Forwarded-For: [2001:DB8::0:9]",), ("127.0.0.1/32",), "2001:db8::9"),
        (("X-Forwarded-For: 2001:db8::9",), ("127.0.0.1/32",), "2001:db8::9"),
        (("X-Forwarded-For: ::ffff:203.0.113.9",), ("127.0.0.1/32",), "203.0.113.9"),
        (("X-Forwarded-For: fe80::1%eth0",), ("127.0.0.1/32",), None),
        (("X-Forwarded-For: 203.0.113.999",), ("127.0.0.1/32",), None),
        ((), ("127.0.0.1/32",), None),
    ],
)
@pytest.mark.case("C099")
def test_x_forwarded_for_is_believed_only_from_a_proxy_and_only_as_far_as_proxies_wrote_it(lines, proxies, address):
    seen = handshake(*lines, proxies=proxies)
    assert seen.forwarded_for == address
    assert seen.source == ("127.0.0.1", 4711)


@pytest.mark.case("C099")
def test_a_proxy_that_comes_over_a_v6_socket_is_known_by_its_v4_address():
    seen = handshake("X-Forwarded-For: 203.0.113.9", proxies=("127.0.0.1/32",), peer="::ffff:127.0.0.1")
    assert seen.forwarded_for == "203.0.113.9"


# What it may answer


def test_accept_carries_any_attribute():
    answer = handshake().accept(user="alice", self=1)
    assert isinstance(answer, Accept)
    assert answer.attributes == {"user": "alice", "self": 1}


def parsed(answer: bytes) -> tuple[str, list[tuple[str, str]], bytes]:
    top, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = top.decode().split("\r\n")
    return first, [tuple(line.split(": ", 1)) for line in lines], body


def test_reject_writes_one_complete_answer_and_closes():
    first, headers, body = parsed(reject_response(handshake().reject()))
    assert first == "HTTP/1.1 403 Forbidden"
    assert headers == [
        ("Connection", "close"),
        ("Content-Type", "text/plain; charset=utf-8"),
        ("Content-Length", "10"),
    ]
    assert body == b"Forbidden\n"
    answer = handshake().reject(302, "Go away", {"Location": "https://a.example/", "content-type": "a/b"}, "caf\xe9")
    first, headers, body = parsed(reject_response(answer))
    assert first == "HTTP/1.1 302 Go away"
    assert ("Location", "https://a.example/") in headers
    assert [value for name, value in headers if name.lower() == "content-type"] == ["a/b"]
    assert ("Content-Length", "5") in headers
    assert body == b"caf\xc3\xa9"
    twice = handshake().reject(401, headers=[("A", "1"), ("A", "2")], body=b"\x00")
    _, headers, body = parsed(reject_response(twice))
    assert [pair for pair in headers if pair[0] == "A"] == [("A", "1"), ("A", "2")]
    assert body == b"\x00"
    assert reject_response(handshake().reject(599)).startswith(b"HTTP/1.1 599 Refused\r\n")


@pytest.mark.parametrize("number", [100, 101, 200, 299, 600, -1, 0])
def test_reject_takes_no_status_that_is_no_refusal(number):
    with pytest.raises(ValueError):
        handshake().reject(number)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"reason": "a\r\nEvil: 1"}, ValueError),
        ({"reason": "a\nb"}, ValueError),
        ({"reason": "a\0b"}, ValueError),
        ({"reason": "\ud800"}, ValueError),
        ({"reason": 5}, TypeError),
        ({"reason": b"x"}, TypeError),
        ({"headers": {"X": "a\r\nEvil: 1"}}, ValueError),
        ({"headers": {"X": "a\rb"}}, ValueError),
        ({"headers": {"X": "a\0b"}}, ValueError),
        ({"headers": {"X": "\ud800"}}, ValueError),
        ({"headers": {"X": 5}}, TypeError),
        ({"headers": {5: "X"}}, TypeError),
        ({"headers": {"X\r\nEvil": "1"}}, ValueError),
        ({"headers": {"X Y": "1"}}, ValueError),
        ({"headers": {"": "1"}}, ValueError),
        ({"headers": {"content-length": "0"}}, ValueError),
        ({"headers": {"Transfer-Encoding": "chunked"}}, ValueError),
        ({"headers": {"Connection": "keep-alive"}}, ValueError),
        ({"status": "403"}, TypeError),
        ({"status": True}, TypeError),
        ({"body": 5}, TypeError),
        ({"body": "\ud800"}, ValueError),
    ],
)
@pytest.mark.case("C111")
def test_what_would_break_the_answer_is_an_error_in_the_policy_and_never_sent(arguments, error):
    with pytest.raises(error):
        handshake().reject(**arguments)


def test_refuse_carries_a_code_that_a_server_may_send():
    assert handshake().refuse() == Refuse(4403, "")
    for code in (1000, 1008, 1013, 3000, 4999):
        assert handshake().refuse(code, "no").code == code
    for code in (0, 999, 1004, 1005, 1006, 1010, 1015, 1016, 2999, 5000, 65536):
        with pytest.raises(ValueError):
            handshake().refuse(code)
    for code in ("4403", None, True):
        with pytest.raises(TypeError):
            handshake().refuse(code)


@pytest.mark.case("C111")
def test_a_close_reason_is_cut_at_a_character_and_may_hold_any_text():
    assert handshake().refuse(4000, "a" * 124).reason == "a" * 123
    assert handshake().refuse(4000, "a" + "\u20ac" * 50).reason == "a" + "\u20ac" * 40
    assert handshake().refuse(4000, "\u20ac" * 41).reason == "\u20ac" * 41
    assert handshake().refuse(4000, "a\r\nb").reason == "a\r\nb"
    with pytest.raises(ValueError):
        handshake().refuse(4000, "\ud800")
    with pytest.raises(TypeError):
        handshake().refuse(4000, b"no")


# HTTP digest


def answered(challenge: str, user: str, password: str, target: str = "/", method: str = "GET") -> str:
    """An Authorization header as a client makes it of one WWW-Authenticate line (RFC 7616 3.4.1)."""
    fields = dict(re.findall(r'(\w+)="?([^",]*)"?', challenge.removeprefix("Digest ")))
    make = hashlib.sha256 if fields["algorithm"] == "SHA-256" else hashlib.md5

    def h(text: str) -> str:
        return make(text.encode()).hexdigest()

    a1, a2 = h(f"{user}:{fields['realm']}:{password}"), h(f"{method}:{target}")
    response = h(f"{a1}:{fields['nonce']}:00000001:cn:auth:{a2}")
    return (
        f'Digest username="{user}", realm="{fields["realm"]}", nonce="{fields["nonce"]}", uri="{target}", '
        f'algorithm={fields["algorithm"]}, qop=auth, nc=00000001, cnonce="cn", response="{response}"'
    )


PASSWORDS = {"alice": "secret", "j\xe9r\xf4me": "motdepasse"}


def test_a_client_that_answers_the_challenge_is_known_by_name():
    answer = handshake().challenge("example", now=1000.0)
    assert answer.status == 401
    lines = [value for name, value in answer.headers if name == "WWW-Authenticate"]
    assert [re.search(r"algorithm=([\w-]+)", line)[1] for line in lines] == ["SHA-256", "MD5"]
    for line in lines:
        target = "/sip?k=1"
        header = answered(line, "alice", "secret", target)
        second = handshake(f"Authorization: {header}", first=f"GET {target} HTTP/1.1")
        assert second.verify_digest(PASSWORDS.get, now=1010.0) == "alice"
        assert second.verify_digest(PASSWORDS.get, now=1010.0, realm="example") == "alice"
        assert second.verify_digest(PASSWORDS.get, now=1010.0, realm="another") is None
        assert second.verify_digest({"alice": "other"}.get, now=1010.0) is None
        assert second.verify_digest({}.get, now=1010.0) is None
        elsewhere = handshake(f"Authorization: {header}", first="GET /other HTTP/1.1")
        assert elsewhere.verify_digest(PASSWORDS.get, now=1010.0) is None


def test_a_name_beyond_ascii_is_compared_as_utf_8():
    line = dict(handshake().challenge("example").headers)["WWW-Authenticate"]
    header = answered(line, "j\xe9r\xf4me", "motdepasse").encode("utf-8").decode("latin-1")
    assert handshake(f"Authorization: {header}").verify_digest(PASSWORDS.get) == "j\xe9r\xf4me"


def test_an_old_nonce_gets_no_user_and_the_next_challenge_says_stale():
    line = dict(handshake().challenge("example", now=1000.0).headers)["WWW-Authenticate"]
    late = handshake(f"Authorization: {answered(line, 'alice', 'secret')}")
    assert late.verify_digest(PASSWORDS.get, now=2000.0) is None
    assert "stale=true" in dict(late.challenge("example", now=2000.0).headers)["WWW-Authenticate"]
    assert "stale" not in dict(late.challenge("example", now=2000.0, stale=False).headers)["WWW-Authenticate"]
    assert "stale" not in line


def test_workers_with_one_secret_understand_each_other_and_a_foreign_nonce_proves_nothing():
    ours = dict(handshake().challenge("example", secret=b"k" * 32).headers)["WWW-Authenticate"]
    there = handshake(f"Authorization: {answered(ours, 'alice', 'secret')}")
    assert there.verify_digest(PASSWORDS.get, secret=b"k" * 32) == "alice"
    assert there.verify_digest(PASSWORDS.get, secret=b"x" * 32) is None
    foreign = Digest("example", secret=b"x" * 32).challenge(1000.0)[0]
    forged = handshake(f"Authorization: {answered(foreign, 'alice', 'secret')}")
    assert forged.verify_digest(PASSWORDS.get, now=1000.0) is None


@pytest.mark.parametrize("line", [
    "X: y",
    "Authorization:",
    "Authorization: Basic YTpi",
    "Authorization: Digest",
    'Authorization: Digest realm=""',
    'Authorization: Digest realm="a\tb", username="x"',
])  # fmt: skip
def test_no_digest_in_authorization_is_no_user(line):
    assert handshake(line).verify_digest(PASSWORDS.get) is None


def test_a_realm_that_would_break_the_header_is_a_value_error():
    with pytest.raises(ValueError):
        handshake().challenge("a\r\nEvil: 1")
    assert r'realm="a\"b\\c"' in dict(handshake().challenge('a"b\\c').headers)["WWW-Authenticate"]


# The upgrade


@pytest.mark.rule(3)
@pytest.mark.rule(4)
@pytest.mark.case("C001")
def test_a_good_get_is_answered_with_101_sip_and_no_extension():
    reader, _ = read(head("Sec-WebSocket-Extensions: permessage-deflate", first="GET /sip?k=1 HTTP/1.1"))
    assert check_upgrade(reader, None) is None
    first, headers, body = parsed(accept_response(reader))
    assert first == "HTTP/1.1 101 Switching Protocols"
    assert sorted(headers) == [
        ("Connection", "Upgrade"),
        ("Sec-WebSocket-Accept", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="),
        ("Sec-WebSocket-Protocol", "sip"),
        ("Upgrade", "websocket"),
    ]
    assert body == b""


@pytest.mark.parametrize(
    ("without", "lines", "expected"),
    [
        ("Connection", ["Connection: keep-alive, Upgrade"], 101),
        ("Connection", ["connection: UPGRADE"], 101),
        ("Connection", ["Connection: keep-alive", "Connection: upgrade"], 101),
        ("Connection", ["Connection:upgrade ,\tkeep-alive"], 101),
        ("Upgrade", ["Upgrade: h2c, WebSocket"], 101),
        ("Upgrade", ["upgrade: WEBSOCKET"], 101),
        ("Connection", ["Connection: keep-alive"], 400),
        ("Connection", ["Connection: notupgrade"], 400),
        ("Connection", ["Connection: up grade"], 400),
        ("Connection", ["Connection:"], 400),
        ("Connection", [], 400),
        ("Upgrade", ["Upgrade: h2c"], 400),
        ("Upgrade", ["Upgrade: websocketx"], 400),
        ("Upgrade", ["Upgrade:"], 400),
        ("Upgrade", [], 426),
    ],
)
@pytest.mark.rule(1)
@pytest.mark.case("C001")
def test_upgrade_and_connection_are_lists_in_any_case(without, lines, expected):
    assert status(head(*lines, without=without)) == expected


@pytest.mark.parametrize(
    "key",
    ["", "dGhlIHNhbXBsZSBub25jZQ=", "dGhlIHNhbXBsZSBub25jZQ", "dGhlIHNhbXBsZSBub25jZTE=", "dGhlIHNhbXBsZSBub25jZ===",
     "dGhlIHNhbXBsZSBub25jZQ==AAAA", "dGhlIHNhbXBs ZSBub25jZQ==", "dGhlIHNhbXBsZSBub25j-_=="],
)  # fmt: skip
@pytest.mark.rule(1)
def test_a_key_that_is_not_16_bytes_in_base64_is_400(key):
    assert status(head(f"Sec-WebSocket-Key: {key}", without="Sec-WebSocket-Key")) == 400


@pytest.mark.rule(1)
def test_a_key_is_needed_and_only_one():
    assert status(head(without="Sec-WebSocket-Key")) == 400
    assert status(head("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==")) == 400


@pytest.mark.parametrize("lines", [["12"], ["8"], ["013"], ["13, 8"], ["13", "13"], ["13", "8"], [""], []])
@pytest.mark.rule(2)
def test_a_version_that_is_not_13_is_426_and_told_which(lines):
    data = head(*(f"Sec-WebSocket-Version: {line}" for line in lines), without="Sec-WebSocket-Version")
    reader, _ = read(data)
    problem = check_upgrade(reader, None)
    assert problem is not None
    _, headers, _ = parsed(reject_response(problem))
    assert problem.status == 426
    assert ("Sec-WebSocket-Version", "13") in headers
    assert ("Upgrade", "websocket") in headers


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["sip"], 101),
        (["xmpp, sip"], 101),
        (["xmpp", "sip"], 101),
        (["sip,msrp"], 101),
        (["SIP"], 400),
        (["Sip, xmpp"], 400),
        (["sips"], 400),
        (["sip/2.0"], 400),
        ([""], 400),
        ([], 400),
    ],
)
@pytest.mark.rule(3)
def test_sip_must_be_offered_to_the_letter(lines, expected):
    offers = (f"Sec-WebSocket-Protocol: {line}" for line in lines)
    assert status(head(*offers, without="Sec-WebSocket-Protocol")) == expected


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (head(first="GET / HTTP/1.0"), 400),
        (head(first="GET / HTTP/2.0"), 400),
        (head(first="GET /"), 400),
        (head(without="Host"), 400),
        (head("Host: internal.example.com"), 400),
        (head("host: edge.example.com:8080"), 400),
        (head("Host: a b", without="Host"), 400),
        (head("Host: a/b", without="Host"), 400),
        (head("Host: a@b", without="Host"), 400),
        (head("Host:", without="Host"), 101),
        (head("Host: [2001:db8::1]:8080", without="Host"), 101),
        (head("Content-Length: 1"), 400),
        (head("Content-Length: 0"), 101),
        (head("Transfer-Encoding: chunked"), 400),
        (head("Transfer-Encoding: identity"), 400),
        (head(first="GET * HTTP/1.1"), 400),
        (head(first="GET http://edge.example.com/ HTTP/1.1"), 101),
        (head(first="POST / HTTP/1.1"), 405),
        (head(first="HEAD / HTTP/1.1"), 405),
        (head(first="OPTIONS * HTTP/1.1"), 405),
        (head(first="CONNECT a.example:443 HTTP/1.1"), 405),
        (head("Content-Length: 5", first="POST / HTTP/1.1"), 400),
        (head(first="FOO / HTTP/1.1"), 400),
    ],
)
@pytest.mark.rule(49)
@pytest.mark.case("C011")
def test_http_has_its_say_before_websocket(data, expected):
    assert status(data) == expected


@pytest.mark.rule(49)
@pytest.mark.case("C012")
def test_a_plain_get_is_404_on_an_unknown_path_and_426_on_ours():
    plain = b"GET /phpinfo.php HTTP/1.1\r\nHost: 192.0.2.1\r\n\r\n"
    assert status(plain, "/sip") == 404
    assert status(plain, None) == 426
    assert status(plain, "/phpinfo.php") == 426


@pytest.mark.parametrize(
    ("target", "path", "expected"),
    [
        ("/sip", "/sip", 101),
        ("/sip?k=/other", "/sip", 101),
        ("http://a.example/sip?k=1", "/sip", 101),
        ("/sip/", "/sip", 404),
        ("/SIP", "/sip", 404),
        ("/si%70", "/sip", 404),
        ("//sip", "/sip", 404),
        ("/x/../sip", "/sip", 404),
        ("/?/sip", "/sip", 404),
        ("/", "/", 101),
        ("/anything/at?all", None, 101),
    ],
)
def test_a_listener_with_a_path_serves_exactly_that_one(target, path, expected):
    assert status(head(first=f"GET {target} HTTP/1.1"), path) == expected


def test_the_first_thing_wrong_is_the_one_that_is_told():
    wrong = ["Sec-WebSocket-Version", "Sec-WebSocket-Key", "Sec-WebSocket-Protocol"]
    lines = [line for line in LINES[1:] if line.split(":")[0] not in wrong]

    def told(first: str, *lines: str) -> int:
        return status(("\r\n".join([first, *lines]) + "\r\n\r\n").encode(), "/")

    key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
    assert told("POST /no HTTP/1.0", *lines) == 400
    assert told("POST /no HTTP/1.1", *lines, key, key) == 400
    assert told("POST /no HTTP/1.1", *lines) == 405
    assert told("GET /no HTTP/1.1", "Host: a") == 404
    assert told("GET / HTTP/1.1", "Host: a") == 426
    assert told("GET / HTTP/1.1", *lines[:-2], "Connection: close") == 400
    assert told("GET / HTTP/1.1", *lines) == 426
    assert told("GET / HTTP/1.1", *lines, "Sec-WebSocket-Version: 13") == 400


def test_check_upgrade_takes_a_handshake_as_well_as_a_reader():
    assert check_upgrade(handshake(), "/") is None
    problem = check_upgrade(handshake(), "/sip")
    assert problem is not None
    assert problem.status == 404


@pytest.mark.case("C004")
def test_names_that_sip_also_has_mean_nothing_to_http():
    lines = ["Via: HTTP/1.1 lb.example.net", "Via: 1.0 fred, 1.1 p.example.net (Apache/1.1)", "To: nobody", "CSeq: x",
             "From: webmaster@example.com", "Route: nonsense", "Max-Forwards: 10", "Content-Length: 0"]  # fmt: skip
    assert status(head(*lines)) == 101


@pytest.mark.parametrize(
    "data",
    [
        head(first="GET /marker HTTP/1.0"),
        head(first="POST /marker HTTP/1.1"),
        head(first="GET /marker HTTP/1.1"),
        head(without="Upgrade"),
        head("Upgrade: marker", without="Upgrade"),
        head("Connection: marker", without="Connection"),
        head("Sec-WebSocket-Version: marker", without="Sec-WebSocket-Version"),
        head("Sec-WebSocket-Key: marker", without="Sec-WebSocket-Key"),
        head("Sec-WebSocket-Protocol: marker", without="Sec-WebSocket-Protocol"),
        head("Host: marker"),
        head("Transfer-Encoding: marker"),
    ],
)
def test_every_refusal_is_plain_text_of_one_line_that_closes_and_repeats_nothing_of_the_request(data):
    reader, _ = read(data)
    problem = check_upgrade(reader, "/")
    assert problem is not None
    _, headers, body = parsed(reject_response(problem))
    assert ("Connection", "close") in headers
    assert [value for name, value in headers if name == "Content-Type"] == ["text/plain; charset=utf-8"]
    assert ("Content-Length", str(len(body))) in headers
    assert body.endswith(b"\n")
    assert body.count(b"\n") == 1
    assert b"marker" not in reject_response(problem)
    assert (("Allow", "GET") in headers) == (problem.status == 405)


def test_an_answer_to_head_has_no_content():
    answer = reject_response(Reject(405, body=b"x\n"), "HEAD")
    assert answer.endswith(b"Content-Length: 2\r\n\r\n")
    assert reject_response(Reject(304)).endswith(b"\r\n\r\n")


def test_headers_of_nothing_are_empty():
    assert dict(Headers([])) == {}
    assert HeadReader(Limits()).headers.get("host") is None
