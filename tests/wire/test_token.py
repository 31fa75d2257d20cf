"""wire/token and siphash.h: what leaves the process comes back whole or not at all."""

from __future__ import annotations

import random
import string

import pytest

from tests import probe_core

KEY = bytes(range(16))
OTHER_KEY = bytes(range(1, 17))
CALL = b"a84b4c76e66710@pc33.example.com"
PATH, DIALOG, BRANCH_UP, BRANCH_DOWN = 1, 2, 3, 4
KINDS = [PATH, DIALOG, BRANCH_UP, BRANCH_DOWN]
ALPHABET = (string.ascii_letters + string.digits + "-_").encode()
# kind, worker, loop, epoch, slot, generation, peer, serial, transaction
FIELDS = (DIALOG, 3, 0xB00B, 0xDEADBEEF, 70_000, 5, 0x00020001, 9, 17)
TOP = 2**32 - 1
BITS = [8, 8, 16, 32, 32, 32, 32, 32, 32]


def anything(rng: random.Random, kind: int) -> tuple[int, ...]:
    """Fields of this kind, the ends of their ranges among them."""
    return (kind, *(rng.choice([0, 1, 2**bits - 1, rng.randrange(2**bits)]) for bits in BITS[1:]))


# ---- SipHash ---------------------------------------------------------------------------------------------------------

# Of the vectors published with SipHash-2-4: key 00 01 .. 0f, message 00 01 .. of this length, the hash as a number.
VECTORS = {
    0: 0x726FDB47DD0E0E31,
    1: 0x74F839C593DC67FD,
    2: 0x0D6C8009D9A94F5A,
    3: 0x85676696D7FB7E2D,
    4: 0xCF2794E0277187B7,
    5: 0x18765564CD99A68D,
    6: 0xCBC9466E58FEE3CE,
    7: 0xAB0200F58B01D137,
    8: 0x93F5F5799A932462,
    15: 0xA129CA6149BE45E5,  # worked through in appendix A of the paper
    63: 0x958A324CEB064572,
}


def siphash_24(key: bytes, message: bytes) -> int:
    """SipHash-2-4 as the paper defines it, section 2: slow and plain, to compare with."""
    mask = 2**64 - 1
    v = [0x736F6D6570736575, 0x646F72616E646F6D, 0x6C7967656E657261, 0x7465646279746573]
    halves = [int.from_bytes(key[:8], "little"), int.from_bytes(key[8:], "little")]
    v = [word ^ halves[place % 2] for place, word in enumerate(v)]

    def turn(word: int, bits: int) -> int:
        return (word << bits | word >> (64 - bits)) & mask

    def rounds(count: int) -> None:
        for _ in range(count):
            v[0] = (v[0] + v[1]) & mask
            v[2] = (v[2] + v[3]) & mask
            v[1] = turn(v[1], 13) ^ v[0]
            v[3] = turn(v[3], 16) ^ v[2]
            v[0] = turn(v[0], 32)
            v[2] = (v[2] + v[1]) & mask
            v[0] = (v[0] + v[3]) & mask
            v[1] = turn(v[1], 17) ^ v[2]
            v[3] = turn(v[3], 21) ^ v[0]
            v[2] = turn(v[2], 32)

    whole = len(message) // 8 * 8
    last = message[whole:] + bytes(7 - len(message) % 8) + bytes([len(message) % 256])
    for at in range(0, whole + 8, 8):
        word = int.from_bytes(message[at : at + 8] if at < whole else last, "little")
        v[3] ^= word
        rounds(2)
        v[0] ^= word
    v[2] ^= 0xFF
    rounds(4)
    return v[0] ^ v[1] ^ v[2] ^ v[3]


@pytest.mark.parametrize(("length", "value"), VECTORS.items())
def test_siphash_gives_the_published_values(length: int, value: int) -> None:
    assert siphash_24(KEY, bytes(range(length))) == value
    assert probe_core.siphash(KEY, bytes(range(length))) == value


def test_siphash_agrees_with_the_definition_for_every_length_and_key() -> None:
    rng = random.Random(1)
    for length in [*range(130), 255, 256, 257, 1000]:
        key, message = rng.randbytes(16), rng.randbytes(length)
        assert probe_core.siphash(key, message) == siphash_24(key, message)


def test_siphash_of_several_runs_is_that_of_the_runs_joined() -> None:
    message = bytes(range(40))
    whole = probe_core.siphash(KEY, message)
    for first in range(41):
        assert probe_core.siphash(KEY, message[:first], message[first:]) == whole
        for second in range(first, 41):
            assert probe_core.siphash(KEY, message[:first], message[first:second], message[second:]) == whole
    assert probe_core.siphash(KEY, *(message[at : at + 1] for at in range(40))) == whole
    assert probe_core.siphash(KEY, b"", message, b"", b"") == whole


# ---- tokens ----------------------------------------------------------------------------------------------------------


@pytest.mark.rule(29)
@pytest.mark.parametrize("kind", KINDS)
def test_a_token_opens_to_what_was_sealed(kind: int) -> None:
    rng = random.Random(kind)
    for _ in range(300):
        fields = anything(rng, kind)
        text = probe_core.token_seal(fields, KEY, CALL)
        assert probe_core.token_open(text, KEY, CALL) == fields


def test_a_token_is_48_characters_that_may_stand_in_a_user_part_and_in_a_branch() -> None:
    rng = random.Random(2)
    seen = set()
    for _ in range(500):
        text = probe_core.token_seal(anything(rng, rng.choice(KINDS)), rng.randbytes(16), CALL)
        assert len(text) == 48
        seen |= set(text)
    # token and unreserved of RFC 3261 25.1 both have all of them; 500 tokens show every one.
    assert seen == set(ALPHABET)


@pytest.mark.rule(29)
@pytest.mark.parametrize("kind", KINDS)
def test_every_changed_character_is_refused(kind: int) -> None:
    text = probe_core.token_seal((kind, *FIELDS[1:]), KEY, CALL)
    for place in range(48):
        for other in range(256):
            if other != text[place]:
                changed = text[:place] + bytes([other]) + text[place + 1 :]
                assert probe_core.token_open(changed, KEY, CALL) is None


@pytest.mark.rule(29)
@pytest.mark.parametrize("kind", KINDS)
def test_every_flipped_bit_of_what_was_packed_is_refused(kind: int) -> None:
    # The same, told by the 288 bits: none of them is without meaning.
    text = probe_core.token_seal((kind, *FIELDS[1:]), KEY, CALL)
    number = 0
    for character in text:
        number = number << 6 | STANDARD.index(character)
    for bit in range(288):
        flipped = number ^ 1 << bit
        changed = bytes(STANDARD[flipped >> 6 * (47 - place) & 63] for place in range(48))
        assert probe_core.token_open(changed, KEY, CALL) is None
    assert bytes(STANDARD[number >> 6 * (47 - place) & 63] for place in range(48)) == text


STANDARD = (string.ascii_uppercase + string.ascii_lowercase + string.digits + "-_").encode()  # RFC 4648 5


@pytest.mark.rule(29)
def test_a_token_of_another_key_or_length_is_refused() -> None:
    text = probe_core.token_seal(FIELDS, KEY, CALL)
    assert probe_core.token_open(text, OTHER_KEY, CALL) is None
    for length in [*range(48), 49, 96]:
        assert probe_core.token_open((text + text)[:length], KEY, CALL) is None
    for tail in (b"A", b"=", b"\0", text):
        assert probe_core.token_open(text + tail, KEY, CALL) is None
    for wrong in (b"A" * 48, b"_" * 48, b"\0" * 48, b"\xff" * 48, text.swapcase(), text[::-1], b" " + text[1:]):
        assert probe_core.token_open(wrong, KEY, CALL) is None


def test_the_other_base64_alphabet_is_refused() -> None:
    # "+" and "/" would be a second spelling of a token.
    rng = random.Random(3)
    tried = 0
    for _ in range(50):
        text = probe_core.token_seal(anything(rng, PATH), KEY)
        other = text.replace(b"-", b"+").replace(b"_", b"/")
        if other != text:
            tried += 1
            assert probe_core.token_open(other, KEY) is None
    assert tried > 10


def test_a_dialog_token_opens_only_with_its_call_id() -> None:
    text = probe_core.token_seal(FIELDS, KEY, CALL)
    assert probe_core.token_open(text, KEY, CALL) == FIELDS
    for other in (None, b"", CALL[:-1], CALL + b" ", CALL.upper(), b"x" + CALL, CALL.replace(b"@", b"")):
        assert probe_core.token_open(text, KEY, other) is None
    assert probe_core.token_open(probe_core.token_seal(FIELDS, KEY, b""), KEY, None) == FIELDS


@pytest.mark.parametrize("kind", [PATH, BRANCH_UP, BRANCH_DOWN])
def test_the_other_kinds_open_whatever_the_call_id(kind: int) -> None:
    fields = (kind, *FIELDS[1:])
    text = probe_core.token_seal(fields, KEY, CALL)
    for call_id in (None, b"", CALL, b"other"):
        assert probe_core.token_open(text, KEY, call_id) == fields
        assert probe_core.token_seal(fields, KEY, call_id) == text


def test_a_token_cannot_be_made_another_kind() -> None:
    # A kind is sealed like the rest: what is honoured from one side cannot be turned into what is honoured elsewhere.
    texts = {kind: probe_core.token_seal((kind, *FIELDS[1:]), KEY, b"") for kind in KINDS}
    assert len(set(texts.values())) == 4
    for kind, text in texts.items():
        assert probe_core.token_open(text, KEY, b"")[0] == kind
        for other, other_text in texts.items():
            if other != kind:
                # The kind is in the first two characters; the MAC of the other token does not fit.
                assert probe_core.token_open(other_text[:2] + text[2:], KEY, b"") is None


def test_every_field_changes_the_token() -> None:
    texts = {probe_core.token_seal(FIELDS, KEY, CALL)}
    for place in range(9):
        fields = list(FIELDS)
        fields[place] += 1
        texts.add(probe_core.token_seal(tuple(fields), KEY, CALL))
    assert len(texts) == 10


def test_a_long_call_id_counts_to_its_last_byte() -> None:
    call_id = b"x" * 70_000
    text = probe_core.token_seal(FIELDS, KEY, call_id)
    assert probe_core.token_open(text, KEY, call_id) == FIELDS
    assert probe_core.token_open(text, KEY, call_id[:-1]) is None
    assert probe_core.token_open(text, KEY, call_id[:-1] + b"y") is None
