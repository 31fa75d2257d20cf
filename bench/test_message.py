"""What a scan, a frame and each reader cost, beside what Python itself has for the task.

The figure of a call includes the call from Python into the probe, some 50 ns; inside fastws there is none. Each
benchmark checks its result before it times. Needs the probes: FASTWS_PROBES=1 python setup.py build_ext --inplace

    python -m pytest bench/test_message.py --benchmark-enable --benchmark-group-by=group
"""

from email.parser import BytesParser
from email.policy import compat32
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from fastws.wire.message import parse_headers, parse_name_addrs, parse_uri
from tests.wire import probe_message as probe

MESSAGES = Path(__file__).parent.parent / "tests" / "messages"
FILES = ["jssip-register", "jssip-invite"]
URI = b"sip:harjj7it@qduaoqq7uupk.invalid;transport=ws;ob"
VIA = b"SIP/2.0/WS qduaoqq7uupk.invalid;branch=z9hG4bK5431876"
CONTACT = (
    b"<sip:harjj7it@qduaoqq7uupk.invalid;transport=ws>;+sip.ice;reg-id=1"
    b';+sip.instance="<urn:uuid:2f6d9a9b-5b0e-4c43-9d1c-61f0b5a3e8d7>";expires=120'
)


def read(name: str) -> bytes:
    return (MESSAGES / f"{name}.sip").read_bytes()


def split_message(data: bytes) -> tuple[bytes, dict[bytes, bytes], bytes]:
    """The shortest reader in Python that finds the headers of a well-formed message, and checks nothing."""
    head, _, body = data.partition(b"\r\n\r\n")
    start, *lines = head.split(b"\r\n")
    headers = {}
    for line in lines:
        name, _, value = line.partition(b":")
        headers[name.strip().lower()] = value.strip()
    return start, headers, body


@pytest.mark.parametrize("name", FILES)
def test_scan(benchmark: Any, name: str) -> None:
    benchmark.group = f"scan {name}"
    data, scanner = read(name), probe.Scanner()
    assert scanner.scan(data) == 0 and scanner.count() == data.partition(b"\r\n\r\n")[0].count(b"\r\n")
    assert benchmark(scanner.scan, data) == 0


@pytest.mark.parametrize("name", FILES)
def test_parse_headers(benchmark: Any, name: str) -> None:
    benchmark.group = f"scan {name}"
    data = read(name)
    assert parse_headers(data)[1][0][0] == b"Via"
    benchmark(parse_headers, data)


@pytest.mark.parametrize("name", FILES)
def test_rival_split(benchmark: Any, name: str) -> None:
    benchmark.group = f"scan {name}"
    data = read(name)
    assert split_message(data)[1][b"call-id"]
    benchmark(split_message, data)


@pytest.mark.parametrize("name", FILES)
def test_rival_email_parser(benchmark: Any, name: str) -> None:
    benchmark.group = f"scan {name}"
    data, parser = read(name).partition(b"\r\n")[2], BytesParser(policy=compat32)
    assert parser.parsebytes(data)["Call-ID"]
    benchmark(parser.parsebytes, data)


@pytest.mark.parametrize("name", FILES)
def test_frame(benchmark: Any, name: str) -> None:
    benchmark.group = "frame"
    data = read(name)
    assert probe.time_frame(data, 65536) == len(data)
    benchmark(probe.time_frame, data, 65536)


@pytest.mark.case("C044")
@pytest.mark.parametrize("count", [2000, 20000])
def test_scan_many_headers(benchmark: Any, count: int) -> None:
    benchmark.group = "scan many headers"
    lines = read("jssip-register").split(b"\r\n")
    data, scanner = b"\r\n".join([*lines[:-2], *[b"X:"] * count, b"", b""]), probe.Scanner()
    assert scanner.scan(data) == 0 and scanner.count() == count + 12
    assert benchmark(scanner.scan, data) == 0


def test_uri(benchmark: Any) -> None:
    benchmark.group = "uri"
    assert probe.uri(URI)["parameters"] is not None
    assert benchmark(probe.time_uri, URI) == 0


def test_parse_uri(benchmark: Any) -> None:
    benchmark.group = "uri"
    assert parse_uri(URI).user == "harjj7it"
    benchmark(parse_uri, URI)


def test_rival_urlsplit(benchmark: Any) -> None:
    # Without the cache of urlsplit: a proxy sees new URIs all the time.
    benchmark.group = "uri"
    text = URI.decode()
    uncached = getattr(urlsplit, "__wrapped__", urlsplit)
    assert uncached(text).path.startswith("harjj7it@")
    benchmark(uncached, text)


def test_via(benchmark: Any) -> None:
    benchmark.group = "via"
    assert probe.via(VIA)["branch"] is not None
    assert benchmark(probe.time_via, VIA) == 0


def split_via(text: bytes) -> tuple[bytes, dict[bytes, bytes]]:
    first, *parameters = text.split(b";")
    return first.split()[1], dict(one.partition(b"=")[::2] for one in parameters)


def test_rival_split_via(benchmark: Any) -> None:
    benchmark.group = "via"
    assert split_via(VIA) == (b"qduaoqq7uupk.invalid", {b"branch": b"z9hG4bK5431876"})
    benchmark(split_via, VIA)


def test_name_addr(benchmark: Any) -> None:
    benchmark.group = "name-addr"
    assert probe.name_addr(CONTACT)["bracketed"]
    assert benchmark(probe.time_name_addr, CONTACT) == 0


def test_parse_name_addrs(benchmark: Any) -> None:
    benchmark.group = "name-addr"
    assert parse_name_addrs(CONTACT)[0].parameters["expires"] == "120"
    benchmark(parse_name_addrs, CONTACT)


def split_name_addr(text: bytes) -> tuple[bytes, dict[bytes, bytes]]:
    uri, _, rest = text.partition(b"<")[2].partition(b">")
    return uri, dict(one.partition(b"=")[::2] for one in rest.split(b";")[1:])


def test_rival_split_name_addr(benchmark: Any) -> None:
    benchmark.group = "name-addr"
    assert split_name_addr(CONTACT)[1][b"reg-id"] == b"1"
    benchmark(split_name_addr, CONTACT)
