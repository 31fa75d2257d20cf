"""wire/frame against others: taking the mask off, reading frames, writing headers, checking UTF-8.

python -m pytest bench/test_frame.py --benchmark-enable --benchmark-group-by=group

Each bench checks its result before it times. Rivals: the C mask of websockets (pure Python where it is not built), the
sans-I/O reader and writer of websockets, and CPython's own UTF-8 decoder, which also builds the str.
"""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING

import pytest
from websockets.frames import Frame, Opcode
from websockets.protocol import State
from websockets.server import ServerProtocol

from tests.wire import probe_frame

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

try:
    from websockets.speedups import apply_mask

    RIVAL_MASK = "websockets C"
except ImportError:
    from websockets.utils import apply_mask

    RIVAL_MASK = "websockets Python"

KEY = bytes.fromhex("37fa213d")
LENGTHS = [700, 8192, 60_000]
LINE = b"Via: SIP/2.0/WS c1.invalid;branch=z9hG4bK0000001\r\n"
GERMAN = "Subject: Gr\u00fc\u00dfe aus K\u00f6ln an B\u00e4rbel, bis sp\u00e4ter\r\n".encode()


def text(length: int, line: bytes = LINE) -> bytes:
    """`length` bytes of whole lines, filled up with ASCII."""
    lines = line * (length // len(line))
    return lines + b"-" * (length - len(lines))


def masked(data: bytes) -> bytes:
    """data XOR KEY, the plain way."""
    return bytes(byte ^ KEY[i & 3] for i, byte in enumerate(data))


def client_frame(payload: bytes) -> bytes:
    header = bytearray(probe_frame.header_write(Opcode.TEXT, len(payload)))
    header[1] |= 0x80
    return bytes(header) + KEY + masked(payload)


@pytest.mark.parametrize("length", LENGTHS)
def test_mask_fastws(benchmark: BenchmarkFixture, length: int) -> None:
    benchmark.group = f"mask {length} B"
    data = bytearray(masked(text(length)))
    probe_frame.unmask_in_place(data, KEY)
    assert data == text(length)
    benchmark(probe_frame.unmask_in_place, data, KEY)


@pytest.mark.parametrize("length", LENGTHS)
def test_mask_rival(benchmark: BenchmarkFixture, length: int) -> None:
    benchmark.group = f"mask {length} B"
    benchmark.name = f"test_mask_rival[{RIVAL_MASK}, {length}]"
    data = masked(text(length))
    assert apply_mask(data, KEY) == text(length)
    benchmark(apply_mask, data, KEY)


@pytest.mark.parametrize("length", LENGTHS)
def test_read_fastws(benchmark: BenchmarkFixture, length: int) -> None:
    """With the copy of the frame to the buffer, for what was unmasked in place cannot be read twice."""
    benchmark.group = f"read a text frame of {length} B"
    stream = client_frame(text(length))
    reader = probe_frame.Reader(buffer_length=len(stream))
    assert reader.feed(stream) == [("message", Opcode.TEXT, 0, text(length))]
    assert benchmark(reader.read, stream) == length
    assert not reader.failed


@pytest.mark.parametrize("length", LENGTHS)
def test_read_rival(benchmark: BenchmarkFixture, length: int) -> None:
    """It hands out a bytes object and leaves the UTF-8 to its caller."""
    benchmark.group = f"read a text frame of {length} B"
    stream = client_frame(text(length))
    protocol = ServerProtocol(state=State.OPEN, max_size=65536)

    def read() -> bytes:
        protocol.receive_data(stream)
        (frame,) = protocol.events_received()
        assert isinstance(frame, Frame)
        return bytes(frame.data)

    assert read() == text(length)
    benchmark(read)


@pytest.mark.parametrize("length", LENGTHS)
def test_encode_fastws(benchmark: BenchmarkFixture, length: int) -> None:
    """The header, then header and payload joined, as the rival hands them out."""
    benchmark.group = f"encode {length} B"
    payload = text(length)

    def encode() -> bytes:
        return probe_frame.header_write(1, length) + payload

    assert encode() == Frame(Opcode.TEXT, payload).serialize(mask=False)
    benchmark(encode)


@pytest.mark.parametrize("length", LENGTHS)
def test_encode_rival(benchmark: BenchmarkFixture, length: int) -> None:
    benchmark.group = f"encode {length} B"
    payload = text(length)

    def encode() -> bytes:
        return Frame(Opcode.TEXT, payload).serialize(mask=False)

    assert encode() == probe_frame.header_write(1, length) + payload
    benchmark(encode)


@pytest.mark.parametrize("line", [LINE, GERMAN], ids=["ascii", "german"])
@pytest.mark.parametrize("length", LENGTHS)
def test_utf8_fastws(benchmark: BenchmarkFixture, length: int, line: bytes) -> None:
    benchmark.group = f"UTF-8 {'ascii' if line is LINE else 'german'} {length} B"
    data = text(length, line)
    assert probe_frame.utf8_valid(data)
    assert not probe_frame.utf8_valid(data[:-1] + b"\xc3")
    benchmark(probe_frame.utf8_valid, data)


@pytest.mark.parametrize("line", [LINE, GERMAN], ids=["ascii", "german"])
@pytest.mark.parametrize("length", LENGTHS)
def test_utf8_rival(benchmark: BenchmarkFixture, length: int, line: bytes) -> None:
    benchmark.group = f"UTF-8 {'ascii' if line is LINE else 'german'} {length} B"
    data = text(length, line)
    assert codecs.utf_8_decode(data, "strict", True)[1] == length
    benchmark(codecs.utf_8_decode, data, "strict", True)
