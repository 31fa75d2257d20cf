"""wire/rewrite: edits on a message against a plain model of them."""

from __future__ import annotations

import random
from typing import Any

import pytest

from tests import probe_core

MESSAGE = b"OPTIONS sip:example.com SIP/2.0\r\nVia: x\r\nMax-Forwards: 70\r\n\r\nbody"
Edit = tuple[int, int, bytes]  # place, bytes that go, what comes instead


def model(message: bytes, edits: list[Edit]) -> bytes:
    """The same edits, done one after another from the back: at one place what is inserted comes before what is cut, and
    insertions keep the order in which they were made."""
    out = message
    for at, cut, text in reversed(sorted(edits, key=lambda edit: (edit[0], edit[1] > 0))):
        out = out[:at] + text + out[at + cut :]
    return out


def rewritten(message: bytes, edits: list[Edit], rewrite: Any = None) -> bytes:
    rewrite = rewrite or probe_core.Edits()
    rewrite.begin(message)
    for at, cut, text in edits:
        if text:
            rewrite.edit(at, cut, text)
        else:
            rewrite.cut(at, cut)
    length = rewrite.length()
    out: bytes = rewrite.write()
    assert len(out) == length
    return out


def test_no_edit_copies_the_message() -> None:
    for message in (MESSAGE, b"", b"x", bytes(range(256)) * 300):
        assert rewritten(message, []) == message


@pytest.mark.parametrize(
    ("edits", "expected"),
    [
        ([(0, 0, b">")], b">0123456789"),
        ([(10, 0, b"<")], b"0123456789<"),
        ([(0, 10, b"")], b""),
        ([(0, 10, b"all")], b"all"),
        ([(0, 1, b"")], b"123456789"),
        ([(9, 1, b"")], b"012345678"),
        ([(0, 1, b"zero"), (9, 1, b"nine")], b"zero12345678nine"),
        ([(3, 2, b"-"), (5, 2, b"+")], b"012-+789"),
        ([(5, 2, b"+"), (3, 2, b"-")], b"012-+789"),
        ([(4, 0, b"a"), (4, 0, b"b"), (4, 0, b"c")], b"0123abc456789"),
        ([(4, 0, b"a"), (4, 2, b"b")], b"0123ab6789"),
        ([(2, 2, b""), (4, 0, b"in")], b"01in456789"),
        ([(10, 0, b"x"), (0, 0, b"y"), (5, 0, b"z")], b"y01234z56789x"),
        ([(5, 1, b"5")], b"0123456789"),
    ],
)
def test_edits_at_the_ends_side_by_side_and_at_one_place(edits: list[Edit], expected: bytes) -> None:
    assert model(b"0123456789", edits) == expected
    assert rewritten(b"0123456789", edits) == expected


def test_an_empty_message_takes_text() -> None:
    assert rewritten(b"", [(0, 0, b"a"), (0, 0, b"b")]) == b"ab"


@pytest.mark.parametrize("seed", range(4))
def test_random_edits_in_any_order_give_what_the_model_gives(seed: int) -> None:
    rng = random.Random(seed)
    rewrite = probe_core.Edits()  # one for all: nothing of an earlier message may show
    for _ in range(400):
        message = rng.randbytes(rng.choice([0, 1, 10, 200, 1500]))
        edits: list[Edit] = []
        at = 0
        while at <= len(message) and rng.random() < 0.9:
            at = min(len(message), at + rng.choice([0, 1, 3, 40]))
            if rng.random() < 0.3:
                edits.append((at, 0, rng.randbytes(rng.randrange(1, 30))))
            cut = min(rng.choice([0, 1, 5, 60]), len(message) - at)
            edits.append((at, cut, rng.randbytes(rng.choice([0, 1, 20, 700]))))
            at += cut + (cut == 0)
        rng.shuffle(edits)
        assert rewritten(message, edits, rewrite) == model(message, edits)


def test_thousands_of_edits() -> None:
    message = b"ab" * 3000
    edits = [(at, 1, b"X%d" % at) for at in range(0, 6000, 2)]
    assert rewritten(message, edits) == model(message, edits)
    assert rewritten(message, edits[::-1]) == model(message, edits)


def test_a_large_replacement() -> None:
    text = bytes(range(256)) * 1000
    assert rewritten(MESSAGE, [(0, 7, text), (len(MESSAGE), 0, text)]) == text + MESSAGE[7:] + text


def test_what_is_inserted_at_the_place_of_a_cut_stands_before_it_whichever_was_made_first() -> None:
    for edits in ([(4, 2, b"a"), (4, 0, b"b")], [(4, 0, b"b"), (4, 2, b"a")]):
        assert rewritten(b"0123456789", edits) == b"0123ba6789"
    assert rewritten(b"0123456789", [(0, 0, b"1"), (0, 4, b""), (0, 0, b"2"), (4, 6, b"x"), (4, 0, b"3")]) == b"123x"


def test_without_memory_the_length_is_zero_and_the_next_message_begins_clean() -> None:
    rewrite = probe_core.Edits()
    rewrite.begin(MESSAGE)
    rewrite.edit(0, 0, b"x")
    rewrite.fail()
    assert rewrite.length() == 0
    assert rewritten(MESSAGE, [(0, 0, b"x")], rewrite) == b"x" + MESSAGE


def test_parts_of_one_edit_are_joined() -> None:
    rewrite = probe_core.Edits()
    rewrite.begin(b"..")
    rewrite.edit(1, 0, b"a", 70, b"", b"b", 0)
    assert rewrite.write() == b".a70b0."


@pytest.mark.parametrize("number", [0, 1, 9, 10, 99, 100, 65535, 2**31, 2**32, 10**19, 2**63, 2**64 - 1])
def test_numbers_are_written_in_full(number: int) -> None:
    assert probe_core.uint_text(number) == str(number).encode()
