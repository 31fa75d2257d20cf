"""wire/frame: what a client's bytes become, whichever way they are cut, and what the reader owns meanwhile."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import os
import random
import resource
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator

import picows
import pytest
from websockets.frames import Frame, Opcode
from websockets.protocol import State
from websockets.server import ServerProtocol

from tests.wire import probe_frame

KEY = bytes.fromhex("37fa213d")
LIMIT = 65536
CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
HEADER_MAX = 14
UNFINISHED = bytes.fromhex("828137fa21")  # a good frame of one byte whose mask key is not all there

Event = tuple[str, int, int, bytes]

OPTIONS = (
    b"OPTIONS sip:bob@example.com SIP/2.0\r\nVia: SIP/2.0/WS c1.invalid;branch=z9hG4bK0000001\r\nMax-Forwards: 70\r\n"
    b"From: <sip:alice@example.com>;tag=f1\r\nTo: <sip:bob@example.com>\r\nCall-ID: c-frame\r\nCSeq: 1 OPTIONS\r\n"
    b"Content-Length: 0\r\n\r\n"
)


def sip_message(subject: bytes = b"", body: bytes = b"hi") -> bytes:
    """A MESSAGE with these bytes in its Subject and its body."""
    head = OPTIONS.replace(b"OPTIONS", b"MESSAGE").removesuffix(b"Content-Length: 0\r\n\r\n")
    return head + b"Subject: %b\r\nContent-Length: %d\r\n\r\n%b" % (subject, len(body), body)


def frame(
    opcode: int, payload: bytes = b"", *, fin: bool = True, rsv: int = 0, key: bytes | None = KEY, form: int = 0
) -> bytes:
    """A client's frame. `form` 16 or 64 writes the length in that many bits even where fewer would do."""
    masked = 0x80 if key is not None else 0
    length = len(payload)
    if length > 0xFFFF or form == 64:
        size = struct.pack("!BQ", 127 | masked, length)
    elif length > 125 or form == 16:
        size = struct.pack("!BH", 126 | masked, length)
    else:
        size = bytes([length | masked])
    if key is not None:
        payload = key + bytes(byte ^ key[i % 4] for i, byte in enumerate(payload))
    return bytes([(0x80 if fin else 0) | rsv << 4 | opcode]) + size + payload


def message(payload: bytes, opcode: int = TEXT) -> Event:
    return ("message", opcode, 0, payload)


def ping(payload: bytes = b"") -> Event:
    return ("ping", 0, 0, payload)


def close(code: int, reason: bytes = b"") -> Event:
    return ("close", 0, code, reason)


def error(code: int) -> Event:
    return ("error", 0, code, b"")


def feed_all(reader: probe_frame.Reader, pieces: Iterator[bytes] | list[bytes]) -> list[Event]:
    events: list[Event] = []
    for piece in pieces:
        events += reader.feed(piece)
        assert reader.cursor == len(piece), "FRAME_MORE means that all bytes are taken"
    return events


def check(stream: bytes, events: list[Event], limit: int = LIMIT) -> None:
    """Feed the stream whole, byte by byte, two at once, with trailing data, and cut in two at every point (of a long
    one: at some); the events must be these each time, and nothing may be owned when they are over."""
    ended = bool(events) and events[-1][0] in ("close", "error")

    def fresh(pieces: list[bytes], expected: list[Event]) -> probe_frame.Reader:
        reader = probe_frame.Reader(limit)
        assert feed_all(reader, pieces) == expected
        assert reader.failed == ended
        return reader

    points = list(range(1, len(stream)))
    if len(stream) > 600:
        points = sorted({*points[:24], *points[-24:], *points[:: len(stream) // 50]})
    for pieces in [[stream], [bytes([byte]) for byte in stream], *([stream[:i], stream[i:]] for i in points)]:
        reader = fresh(pieces, events)
        assert (reader.owned, reader.partial) == (0, False)
    reader = fresh([stream + stream], events if ended else events * 2)
    assert (reader.owned, reader.partial) == (0, False)
    reader = fresh([stream + UNFINISHED], events)
    assert (reader.owned, reader.partial) == ((0, False) if ended else (HEADER_MAX, True))
    if not ended:
        assert reader.feed(KEY[3:] + b"\x00") == [message(KEY[:1], BINARY)], "what trailed is not lost"


# --- messages -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
@pytest.mark.parametrize("length", [0, 1, 2, 7, 31, 32, 33, 125, 126, 127, 700, 8192, 65535, 65536])
@pytest.mark.rule(8)
def test_a_message_of_any_length_is_read_whichever_way_it_is_cut(opcode: int, length: int) -> None:
    payload = bytes(32 + i % 90 for i in range(length))
    check(frame(opcode, payload), [message(payload, opcode)])


@pytest.mark.parametrize("key", ["00000000", "ffffffff", "01020304", "80ff007f"])
def test_every_mask_key_is_taken_off(key: str) -> None:
    check(frame(TEXT, OPTIONS, key=bytes.fromhex(key)), [message(OPTIONS)])


@pytest.mark.rule(6)
@pytest.mark.rule(49)
@pytest.mark.case("C013")
def test_a_ping_and_the_message_right_behind_it_are_two_events() -> None:
    stream = bytes.fromhex("898337fa213d569842") + frame(TEXT, OPTIONS)
    check(stream, [ping(b"abc"), message(OPTIONS)])


@pytest.mark.rule(6)
@pytest.mark.rule(7)
@pytest.mark.case("C014")
def test_four_fragments_with_a_ping_between_them_and_a_character_cut_in_two_are_one_text() -> None:
    text = sip_message(b"caf\xc3\xa9")
    cut = text.index(b"\xc3") + 1
    begin = frame(TEXT, text[:17], fin=False) + frame(CONTINUATION, text[17:cut], fin=False) + frame(PING, b"1")
    end = frame(CONTINUATION, fin=False) + frame(CONTINUATION, text[cut:])
    check(begin + end, [ping(b"1"), message(text)])
    reader = probe_frame.Reader()
    assert reader.feed(begin) == [ping(b"1")], "the ping does not wait for the message"
    assert reader.partial
    assert reader.feed(end) == [message(text)]


@pytest.mark.case("C015")
def test_a_frame_that_arrives_byte_by_byte_costs_one_growth_of_memory() -> None:
    payload = OPTIONS * 200
    stream = frame(TEXT, payload)
    reader = probe_frame.Reader()
    assert feed_all(reader, [bytes([byte]) for byte in stream]) == [message(payload)]
    assert reader.rest_capacities == {HEADER_MAX, len(stream)}
    assert reader.owned == 0


@pytest.mark.case("C017")
def test_empty_messages_and_empty_fragments_are_events_of_length_0() -> None:
    check(bytes.fromhex("818037fa213d"), [message(b"")])
    check(bytes.fromhex("828037fa213d") + frame(TEXT, OPTIONS), [message(b"", BINARY), message(OPTIONS)])
    check(bytes.fromhex("018037fa213d") + frame(CONTINUATION, OPTIONS), [message(OPTIONS)])
    check(bytes.fromhex("018037fa213d008037fa213d808037fa213d"), [message(b"")])
    check(bytes.fromhex("028037fa213d808037fa213d"), [message(b"", BINARY)])
    check(bytes.fromhex("898037fa213d8a8037fa213d"), [ping(), ("pong", 0, 0, b"")])
    check(bytes.fromhex("888037fa213d"), [close(1005)])


@pytest.mark.rule(8)
@pytest.mark.case("C025")
def test_a_binary_message_is_read_as_binary() -> None:
    check(frame(BINARY, OPTIONS), [message(OPTIONS, BINARY)])


def test_fragments_keep_the_opcode_of_the_first_one() -> None:
    stream = frame(BINARY, b"\xff", fin=False) + frame(PONG) + frame(CONTINUATION, b"\xfe")
    check(stream, [("pong", 0, 0, b""), message(b"\xff\xfe", BINARY)])


# --- broken frames --------------------------------------------------------------------------------------------------

OPEN = frame(TEXT, b"O", fin=False)


@pytest.mark.rule(5)
@pytest.mark.parametrize("opcode", [TEXT, BINARY, CLOSE, PING, PONG])
def test_an_unmasked_client_frame_closes_1002(opcode: int) -> None:
    check(frame(opcode, b"OPTIONS" if opcode != CLOSE else b"", key=None), [error(1002)])
    check(OPEN + frame(CONTINUATION, b"x", key=None), [error(1002)])


@pytest.mark.rule(4)
@pytest.mark.case("C019")
@pytest.mark.parametrize(
    "stream", ["c18437fa213d7db6253d", "018137fa213d78c08137fa213d4f", "998037fa213d", "a18037fa213d", "f18037fa213d"]
)
def test_an_rsv_bit_closes_1002(stream: str) -> None:
    check(bytes.fromhex(stream), [error(1002)])


@pytest.mark.rule(48)
@pytest.mark.case("C019")
@pytest.mark.parametrize("opcode", [3, 4, 5, 6, 7, 11, 12, 13, 14, 15])
def test_a_reserved_opcode_closes_1002(opcode: int) -> None:
    check(frame(opcode, b"x"), [error(1002)])
    check(OPEN + frame(opcode), [error(1002)])
    check(frame(opcode, fin=False), [error(1002)])


@pytest.mark.rule(6)
@pytest.mark.parametrize("opcode", [CLOSE, PING, PONG])
def test_a_control_frame_is_at_most_125_bytes(opcode: int) -> None:
    payload = struct.pack("!H", 1000) + b"r" * 123
    kind = {CLOSE: close(1000, payload[2:]), PING: ping(payload), PONG: ("pong", 0, 0, payload)}[opcode]
    check(frame(opcode, payload), [kind])
    check(frame(opcode, payload + b"r"), [error(1002)])
    check(frame(opcode, payload[:2], form=16), [error(1002)])
    check(frame(opcode, payload[:2], form=64), [error(1002)])
    assert probe_frame.Reader().feed(frame(opcode, payload + b"r")[:2]) == [error(1002)], "at the second byte"


@pytest.mark.rule(6)
@pytest.mark.case("C022")
@pytest.mark.parametrize("opcode", [CLOSE, PING, PONG])
def test_a_control_frame_without_fin_closes_1002_at_its_first_byte(opcode: int) -> None:
    check(frame(opcode, fin=False), [error(1002)])
    assert probe_frame.Reader().feed(bytes([opcode])) == [error(1002)]


@pytest.mark.rule(48)
@pytest.mark.case("C022")
def test_a_continuation_without_a_start_closes_1002() -> None:
    check(bytes.fromhex("808137fa213d4f"), [error(1002)])
    check(frame(CONTINUATION, b"O", fin=False), [error(1002)])
    check(OPEN + frame(CONTINUATION) + frame(CONTINUATION), [message(b"O"), error(1002)])
    check(frame(TEXT, b"O") + frame(CONTINUATION), [message(b"O"), error(1002)])


@pytest.mark.rule(48)
@pytest.mark.case("C022")
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
@pytest.mark.parametrize("fin", [True, False])
def test_a_new_data_frame_inside_a_fragmented_message_closes_1002(opcode: int, fin: bool) -> None:
    check(bytes.fromhex("018337fa213d78aa75") + frame(opcode, b"IONS", fin=fin), [error(1002)])
    check(frame(TEXT, fin=False) + frame(opcode, fin=fin), [error(1002)])


@pytest.mark.parametrize(("length", "form"), [(0, 16), (125, 16), (0, 64), (125, 64), (126, 64), (65535, 64)])
def test_a_length_written_longer_than_needed_closes_1002(length: int, form: int) -> None:
    check(frame(BINARY, bytes(length), form=form), [error(1002)])
    header = frame(BINARY, bytes(length), form=form)[: 4 if form == 16 else 10]
    assert probe_frame.Reader().feed(header) == [error(1002)], "before the mask key"


# --- limits ---------------------------------------------------------------------------------------------------------


@pytest.mark.rule(7)
@pytest.mark.case("C020")
@pytest.mark.parametrize(
    ("header", "code"),
    [
        ("81ff0000000080000000", 1009),
        ("81ff0000000000010001", 1009),
        ("81ff7fffffffffffffff", 1009),
        ("81ff8000000000000000", 1002),
        ("81ff8000000000000001", 1002),
        ("81ffffffffffffffffff", 1002),
    ],
)
def test_a_length_beyond_the_limit_is_refused_with_its_last_byte_and_takes_no_memory(header: str, code: int) -> None:
    stream = bytes.fromhex(header)
    check(stream, [error(code)])
    check(stream + KEY, [error(code)])
    reader = probe_frame.Reader()
    assert reader.feed(stream) == [error(code)]
    assert not reader.rest_capacities
    reader = probe_frame.Reader()
    assert feed_all(reader, [stream[:-1]]) == []
    assert reader.feed(stream[-1:]) == [error(code)]
    assert reader.rest_capacities == {HEADER_MAX}


@pytest.mark.rule(7)
@pytest.mark.parametrize("limit", [1, 2, 125, 126, 127, 1000, 65535, 65536, 70000])
def test_the_limit_itself_is_allowed_and_one_byte_more_is_1009(limit: int) -> None:
    check(frame(BINARY, bytes(limit)), [message(bytes(limit), BINARY)], limit)
    whole = frame(BINARY, bytes(limit + 1))
    check(whole, [error(1009)], limit)
    header = len(whole) - limit - 1 - len(KEY)
    assert probe_frame.Reader(limit).feed(whole[:header]) == [error(1009)]
    first = frame(BINARY, bytes(limit - 1), fin=False)
    check(first + frame(CONTINUATION, b"x"), [message(bytes(limit - 1) + b"x", BINARY)], limit)
    check(first + frame(CONTINUATION, b"xy"), [error(1009)], limit)


def test_the_limit_of_messages_is_none_for_control_frames() -> None:
    check(frame(PING, bytes(125)) + frame(BINARY, b"x"), [ping(bytes(125)), message(b"x", BINARY)], limit=1)


@pytest.mark.rule(7)
@pytest.mark.case("C020")
def test_the_sum_of_fragments_is_compared_with_the_limit_before_it_is_made() -> None:
    for header in ("80feffff", "80ff0000000000010000", "80ff7fffffffffffffff"):
        reader = probe_frame.Reader()
        assert reader.feed(frame(TEXT, b"a" * 65000, fin=False)) == []
        assert reader.feed(bytes.fromhex(header)) == [error(1009)]
        assert (reader.owned, reader.partial) == (0, False)
        assert max(reader.parts_capacities) <= LIMIT
    first = frame(TEXT, b"a" * 65000, fin=False)
    assert probe_frame.Reader().feed(first + bytes.fromhex("80ff8000000000000000")) == [error(1002)]


@pytest.mark.rule(7)
@pytest.mark.case("C024")
@pytest.mark.parametrize("together", [True, False])
def test_a_hundred_thousand_fragments_of_one_byte_are_1009_at_the_limit_with_few_growths(together: bool) -> None:
    fragments = 100_000
    pieces = [bytes.fromhex("018137fa213d78")] + [bytes.fromhex("008137fa213d67")] * fragments
    reader = probe_frame.Reader()
    assert feed_all(reader, [b"".join(pieces)] if together else pieces[:LIMIT]) == ([error(1009)] if together else [])
    if not together:
        assert max(reader.parts_capacities) == LIMIT and len(reader.parts_capacities) <= 10
        assert feed_all(reader, pieces[LIMIT:]) == [error(1009)]
    assert (reader.owned, reader.partial) == (0, False)
    reader = probe_frame.Reader(fragments + 1)
    whole = [*pieces, frame(CONTINUATION)]
    assert feed_all(reader, [b"".join(whole)] if together else whole) == [message(b"O" + b"P" * fragments)]
    assert len(reader.parts_capacities) <= 11, "growth doubles"
    assert max(reader.parts_capacities, default=0) <= fragments + 1, "and ends at the limit"
    assert reader.owned == 0


@pytest.mark.case("C024")
def test_an_unfinished_message_stays_partial_while_its_pings_are_read() -> None:
    reader = probe_frame.Reader()
    assert not reader.partial
    assert reader.feed(bytes.fromhex("018a37fa213d78aa757478b4721d4493")) == []
    for _ in range(3):
        assert reader.partial
        assert reader.feed(frame(PING, b"x")) == [ping(b"x")]
    assert reader.partial
    assert reader.feed(frame(CONTINUATION, b"!")) == [message(b"OPTIONS si!")]
    assert not reader.partial


def test_an_unfinished_message_of_no_bytes_is_partial_too() -> None:
    reader = probe_frame.Reader()
    assert reader.feed(frame(TEXT, fin=False)) == []
    assert (reader.partial, reader.owned) == (True, 0)


# --- UTF-8 ----------------------------------------------------------------------------------------------------------


@pytest.mark.rule(7)
@pytest.mark.case("C026")
@pytest.mark.parametrize("subject", [b"caf\xe9", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\x80", b"\xff"])
def test_a_text_that_is_not_utf8_closes_1007_and_as_binary_it_passes(subject: bytes) -> None:
    payload = sip_message(subject)
    check(frame(TEXT, payload), [error(1007)])
    check(frame(BINARY, payload), [message(payload, BINARY)])
    check(frame(TEXT, payload[:50], fin=False) + frame(CONTINUATION, payload[50:]), [error(1007)])


@pytest.mark.case("C026")
def test_a_text_that_ends_inside_a_character_closes_1007() -> None:
    for character in ("\u00e9", "\u2713", "\U0001f4de"):
        encoded = character.encode()
        for cut in range(1, len(encoded)):
            check(frame(TEXT, sip_message(body=encoded[:cut])), [error(1007)])
        check(frame(TEXT, sip_message(body=encoded)), [message(sip_message(body=encoded))])


@pytest.mark.case("C029")
def test_bytes_behind_a_character_are_no_business_of_the_frame() -> None:
    payload = sip_message(body=b"ab\xe2\x9c\x93tail")
    check(frame(TEXT, payload), [message(payload)])


def test_a_character_may_be_cut_between_any_two_fragments() -> None:
    text = "\u00e9\u2713\U0001f4de".encode()
    pieces = [bytes([byte]) for byte in text]
    stream = frame(TEXT, pieces[0], fin=False)
    stream += b"".join(frame(CONTINUATION, piece, fin=False) for piece in pieces[1:-1])
    check(stream + frame(CONTINUATION, pieces[-1]), [message(text)])
    check(stream + frame(CONTINUATION), [error(1007)])


def test_a_byte_that_is_not_ascii_is_seen_at_every_place_of_a_text() -> None:
    for length in range(1, 100):
        for place in range(length):
            text = bytearray(b"a" * length)
            text[place] = 0x80
            assert probe_frame.Reader().feed(frame(TEXT, bytes(text))) == [error(1007)], (length, place)
            assert not probe_frame.utf8_valid_exact(bytes(text)), (length, place)


def decodes(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


EDGES = bytes.fromhex("00 7f 80 8f 90 9f a0 bf c0 c1 c2 df e0 ef f4 ff")


def test_utf8_agrees_with_python_on_all_sequences_of_one_and_two_bytes_and_the_edges_of_longer_ones() -> None:
    assert probe_frame.utf8_valid(b"")
    sequences = [bytes([a]) for a in range(256)]
    sequences += [bytes([a, b]) for a in range(256) for b in range(256)]
    sequences += [bytes([a, b, c]) for a in range(0xC0, 256) for b in range(0x70, 0xD0) for c in EDGES]
    tails = [bytes([a, b]) for a in EDGES for b in EDGES]
    sequences += [bytes([a, b]) + tail for a in range(0xEF, 256) for b in range(0x7E, 0xC2) for tail in tails]
    wrong = [sequence for sequence in sequences if probe_frame.utf8_valid(sequence) != decodes(sequence)]
    assert wrong == []


def test_utf8_agrees_with_python_on_text_of_all_scripts_with_bytes_broken_at_random() -> None:
    chance = random.Random(6455)
    alphabet = "abc\r\n:;=@ \u00e9\u00fc\u0416\u05d0\u2713\u4e2d\ud55c\U0001f4de\U0010ffff"
    for _ in range(3000):
        text = "".join(chance.choices(alphabet, k=chance.randrange(60))) + "a" * chance.randrange(40)
        data = bytearray(text, "utf-8")
        assert probe_frame.utf8_valid_exact(bytes(data))
        for _ in range(chance.randrange(3) if data else 0):
            data[chance.randrange(len(data))] = chance.randrange(256)
        cut = bytes(data[: chance.randrange(len(data) + 1)])
        assert probe_frame.utf8_valid_exact(cut) == decodes(cut), cut


# --- CLOSE ----------------------------------------------------------------------------------------------------------


@pytest.mark.rule(48)
def test_a_close_gives_its_code_and_reason() -> None:
    check(frame(CLOSE, b"\x03\xe8"), [close(1000)])
    check(frame(CLOSE, b"\x0f\xa0caf\xc3\xa9"), [close(4000, b"caf\xc3\xa9")])
    check(frame(CLOSE), [close(1005)])


@pytest.mark.rule(48)
@pytest.mark.parametrize(
    ("payload", "code"),
    [
        (b"\x03", 1002),
        (b"\x03\xe7", 1002),
        (b"\x03\xed", 1002),
        (b"\xff\xff", 1002),
        (b"\x03\xed\xff", 1002),
        (b"\x03\xe8\xff", 1007),
        (b"\x03\xe8caf\xc3", 1007),
        (b"\x03\xe8\xed\xa0\x80", 1007),
    ],
)
def test_a_broken_close_closes_1002_or_1007(payload: bytes, code: int) -> None:
    check(frame(CLOSE, payload), [error(code)])


@pytest.mark.rule(48)
def test_the_codes_that_a_peer_may_send() -> None:
    allowed = {*range(1000, 1004), *range(1007, 1015), *range(3000, 5000)}
    assert {code for code in range(0x10000) if probe_frame.close_code_valid(code)} == allowed
    assert not probe_frame.close_code_valid(0x10000 + 1000)


def test_nothing_is_read_behind_a_close_and_an_unfinished_message_is_given_up() -> None:
    check(OPEN + frame(CLOSE, b"\x03\xe8bye") + frame(TEXT, b"late"), [close(1000, b"bye")])
    check(frame(CLOSE) + b"\xff\xff", [close(1005)])


# --- memory ---------------------------------------------------------------------------------------------------------


def test_a_frame_that_lies_whole_in_the_buffer_is_handed_out_in_place() -> None:
    reader = probe_frame.Reader(buffer_length=2000)
    assert reader.feed_once(frame(TEXT, OPTIONS)) == ("message", OPTIONS)
    assert (reader.owned, reader.partial) == (0, False)


def test_the_memory_of_a_cut_frame_lives_until_the_next_call_and_no_longer() -> None:
    reader = probe_frame.Reader(buffer_length=2000)
    stream = frame(TEXT, OPTIONS)
    assert reader.feed_once(stream[:1]) == ("more", b"")
    assert (reader.owned, reader.partial) == (HEADER_MAX, True)
    assert reader.feed_once(stream[1:100]) == ("more", b"")
    assert (reader.owned, reader.partial) == (len(stream), True)
    assert reader.feed_once(stream[100:]) == ("message", OPTIONS)
    assert (reader.owned, reader.partial) == (len(stream), False)
    assert reader.feed_once(b"") == ("more", b"")
    assert reader.owned == 0


def test_the_memory_of_joined_fragments_lives_until_the_next_call_and_no_longer() -> None:
    reader = probe_frame.Reader(buffer_length=2000)
    assert reader.feed_once(frame(TEXT, b"OPT", fin=False)) == ("more", b"")
    assert reader.owned > 0 and reader.partial
    assert reader.feed_once(frame(CONTINUATION, b"IONS")) == ("message", b"OPTIONS")
    assert reader.owned > 0 and not reader.partial
    assert reader.feed_once(b"") == ("more", b"")
    assert reader.owned == 0


def test_before_the_header_is_complete_no_more_than_a_header_is_kept() -> None:
    stream = frame(BINARY, bytes(LIMIT))
    for length in range(1, HEADER_MAX):
        reader = probe_frame.Reader()
        assert reader.feed(stream[:length]) == []
        assert (reader.owned, reader.partial) == (HEADER_MAX, True)


def test_a_freed_reader_owns_nothing_and_reads_again() -> None:
    reader = probe_frame.Reader(200)
    for unfinished in (b"\x81", OPEN, OPEN + b"\x80", frame(TEXT, b"a" * 150)[:100], b"\xff", frame(CLOSE)):
        reader.feed(unfinished)
        reader.free()
        assert (reader.owned, reader.partial, reader.failed) == (0, False, False)
        assert reader.feed(frame(TEXT, b"hi")) == [message(b"hi")]
        assert reader.feed(frame(TEXT, b"a" * 201)) == [error(1009)], "the limit is kept"
        reader.free()


@contextlib.contextmanager
def address_space_left(length: int) -> Iterator[None]:
    """Let the process take no more than `length` further bytes of address space."""
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + length, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


# In a process of its own: what earlier tests gave back to the C library would be taken without asking the system.
NO_MEMORY = """
import struct
from tests.wire import probe_frame
from tests.wire.test_frame import address_space_left, error
# Above 32 MiB the C library maps each block by itself, so the limit meets exactly the block that is asked for.
size = 48 * 1024 * 1024
fragment = b"\\x02\\xff" + struct.pack("!Q", size) + bytes(4 + size)
for stream, left in ((fragment[:20], size // 2), (fragment, size + size // 2)):
    reader = probe_frame.Reader(2**31)
    with address_space_left(left):
        events = reader.feed(stream)
    assert events == [error(1011)], events
    assert (reader.owned, reader.partial, reader.failed) == (0, False, True)
    reader.free()
    assert reader.feed(stream) == []
    assert reader.owned >= size
"""


def test_without_memory_for_it_a_frame_or_a_fragment_is_1011() -> None:
    sanitized = "asan" in os.environ.get("LD_PRELOAD", "")
    script = NO_MEMORY
    if sanitized:
        # Address space cannot be limited there, but the sanitizer's allocator can: it refuses a block above 80 MB. That
        # leaves the frame; the fragment, which is a block of the test's own first, is for the other build.
        script = script.replace("size = 48 *", "size = 120 *").replace("bytes(4 + size)", "bytes(10)")
        script = script.replace("with address_space_left(left):", "if True:").split("    reader.free()")[0]
        script = script.replace("(fragment, size + size // 2)", "")
    options = os.environ.get("ASAN_OPTIONS", "") + ":allocator_may_return_null=1:max_allocation_size_mb=80"
    done = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, "ASAN_OPTIONS": options}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


# --- kernels and encoding -------------------------------------------------------------------------------------------


def test_unmasking_starts_at_any_byte_of_the_key_and_at_any_address() -> None:
    for length in range(80):
        data = bytes((i * 37 + 11) & 0xFF for i in range(length))
        for offset in (0, 1, 2, 3, 4, 7, 2**63 + 2):
            for shift in range(9):
                right = bytes(byte ^ KEY[(offset + i) % 4] for i, byte in enumerate(data))
                assert probe_frame.unmask(data, KEY, offset, shift) == right, (length, offset, shift)


@pytest.mark.rule(5)
@pytest.mark.parametrize("length", [0, 1, 125, 126, 127, 255, 256, 65535, 65536, 100_000])
@pytest.mark.parametrize("opcode", [TEXT, BINARY, CLOSE, PING, PONG])
def test_a_header_is_read_back_by_websockets_and_never_masks(opcode: int, length: int) -> None:
    header = probe_frame.header_write(opcode, length)
    assert len(header) == probe_frame.header_length(length)
    assert (header[0], header[1] & 0x80) == (0x80 | opcode, 0)
    if opcode < CLOSE or length <= 125:
        assert header + bytes(length) == Frame(Opcode(opcode), bytes(length)).serialize(mask=False)


def test_a_header_of_any_length_is_in_network_byte_order_and_minimal() -> None:
    for length in (0x0102, 0xFFFE):
        assert probe_frame.header_write(TEXT, length) == b"\x81\x7e" + struct.pack("!H", length)
    for length in (0x10000, 0x0102030405060708, 2**63 - 1):
        assert probe_frame.header_write(BINARY, length) == b"\x82\x7f" + struct.pack("!Q", length)


@pytest.mark.parametrize("length", [0, 1, 125, 126, 65535, 65536])
def test_what_is_encoded_is_read_back_once_a_client_has_masked_it(length: int) -> None:
    header = bytearray(probe_frame.header_write(BINARY, length))
    header[1] |= 0x80
    check(bytes(header) + bytes(4 + length), [message(bytes(length), BINARY)])


# --- against others -------------------------------------------------------------------------------------------------


def websockets_events(stream: bytes, limit: int) -> tuple[list[Event], bool]:
    """What the reader of websockets makes of the stream, its fragments joined here; and whether it refused a CLOSE
    only for standing inside an unfinished message, where RFC 6455 5.4 lets control frames stand."""
    protocol = ServerProtocol(state=State.OPEN, max_size=limit)
    protocol.receive_data(stream)
    events: list[Event] = []
    opcode, parts = 0, b""
    for received in protocol.events_received():
        assert isinstance(received, Frame)
        if received.opcode == CLOSE:
            assert protocol.close_rcvd is not None
            events.append(close(protocol.close_rcvd.code, protocol.close_rcvd.reason.encode()))
        elif received.opcode in (PING, PONG):
            events.append(("ping" if received.opcode == PING else "pong", 0, 0, bytes(received.data)))
        else:
            opcode, parts = received.opcode or opcode, parts + bytes(received.data)
            if received.fin:
                if opcode == TEXT and not decodes(parts):
                    return [*events, error(1007)], False  # its reader of bytes leaves the UTF-8 to its caller
                events.append(message(parts, int(opcode)))
                opcode, parts = 0, b""
    if protocol.parser_exc is not None:
        assert protocol.close_sent is not None
        events.append(error(protocol.close_sent.code))
    return events, "incomplete fragmented message" in str(protocol.parser_exc)


def random_stream(chance: random.Random, limit: int) -> bytes:
    """One to seven frames, each with some chance of a single fault; one above the limit only behind good ones, for
    two faults in one frame may be told in either order."""
    stream, is_open, faults = b"", False, False
    for _ in range(chance.randrange(1, 8)):
        payload = chance.choice([b"", b"hi", OPTIONS, "\u2713\u00e9".encode() * 30, chance.randbytes(9), bytes(700)])
        first = chance.choice([PING, PONG, CONTINUATION if is_open else TEXT, CONTINUATION if is_open else BINARY])
        fin = first >= CLOSE or chance.random() < 0.5
        key = chance.randbytes(4)
        if chance.random() < 0.1:
            first, faults = chance.randrange(16), True
            if first == CLOSE:
                payload = random_close(chance)
        if first >= CLOSE:
            payload = payload[:125]
        piece = frame(first, payload, fin=fin, key=key if chance.random() < 0.98 else None)
        if chance.random() < 0.03:
            piece, faults = bytes([piece[0] ^ 1 << chance.randrange(4, 8)]) + piece[1:], True
        stream += piece
        if first < CLOSE:
            is_open = not fin
    end = 1 if faults else chance.random()
    if end < 0.1:
        stream += frame(CONTINUATION if is_open else TEXT, bytes(limit + 1))
    elif end < 0.2:
        stream += frame(CLOSE, random_close(chance))
    return stream


def random_close(chance: random.Random) -> bytes:
    code = chance.choice([1000, 1001, 1004, 1006, 2000, 3000, 4999, 5000])
    reasons = [b"", b"bye", "\u2713".encode() * 41, b"\xff"]
    return struct.pack("!H", code) + (chance.choice(reasons) if probe_frame.close_code_valid(code) else b"")


def test_random_streams_good_and_broken_mean_the_same_to_websockets() -> None:
    chance = random.Random(7118)
    limit = 8000
    seen: Counter[str] = Counter()
    for _ in range(3000):
        stream = random_stream(chance, limit)
        events = probe_frame.Reader(limit).feed(stream)
        theirs, stricter = websockets_events(stream, limit)
        step = chance.randrange(1, 50)
        cut = [stream[i : i + step] for i in range(0, len(stream), step)]
        assert feed_all(probe_frame.Reader(limit), cut) == events, stream.hex()
        for kind, _, code, _ in events:
            seen[f"{kind} {code}"] += 1
        if stricter:
            assert theirs[-1] == error(1002) and events[-1][0] == "close"
            events[-1] = theirs[-1]
        assert events == theirs, stream.hex()
    for outcome in ("message 0", "ping 0", "pong 0", "close 1000", "error 1002", "error 1007", "error 1009"):
        assert seen[outcome] > 5, seen


def test_a_picows_client_and_the_reader_understand_each_other() -> None:
    payloads = [b"", b"\r\n\r\n", OPTIONS, b"x" * 125, b"y" * 126, b"z" * 65535, b"\xff" * 65536]

    class Echo(picows.WSListener):
        def on_ws_frame(self, transport: picows.WSTransport, frame: picows.WSFrame) -> None:
            transport.send(frame.msg_type, frame.get_payload_as_bytes())

    async def serve(stream: asyncio.StreamReader, writer: asyncio.StreamWriter) -> list[Event]:
        head = await stream.readuntil(b"\r\n\r\n")
        lines = [line.partition(b":") for line in head.split(b"\r\n")]
        key = next(value.strip() for name, _, value in lines if name.lower() == b"sec-websocket-key")
        accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
        writer.write(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
        )
        for payload in payloads:
            writer.write(probe_frame.header_write(BINARY, len(payload)) + payload)
        reader = probe_frame.Reader()
        events: list[Event] = []
        while len(events) < len(payloads) and (data := await stream.read(5000)):
            events += reader.feed(data)
        assert (reader.owned, reader.partial) == (0, False)
        writer.write(probe_frame.header_write(CLOSE, 2) + b"\x03\xe8")
        await writer.drain()
        writer.close()
        return events

    async def run() -> list[Event]:
        done: asyncio.Future[list[Event]] = asyncio.get_running_loop().create_future()

        async def accepted(stream: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                done.set_result(await serve(stream, writer))
            except BaseException as problem:
                done.set_exception(problem)

        async with await asyncio.start_server(accepted, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            transport, _ = await picows.ws_connect(Echo, f"ws://127.0.0.1:{port}/")
            events = await asyncio.wait_for(done, 20)
            transport.disconnect()
            await transport.wait_disconnected()
        return events

    assert asyncio.run(run()) == [message(payload, BINARY) for payload in payloads]
