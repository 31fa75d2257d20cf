"""Tokens: sealing and opening one, and the hash that they are sealed with.

python -m pytest bench/test_token.py --benchmark-enable --benchmark-group-by=group

One round seals and opens TURNS tokens in C, so a time in us is that of one pair in ns. The rival does the same with
what CPython has: struct, a keyed BLAKE2s of 8 bytes, and base64.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import struct
from typing import TYPE_CHECKING

import pytest

from tests import probe_core

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

TURNS = 1000
KEY = bytes(range(16))
CALL = b"a84b4c76e66710@pc33.example.com"
KINDS = {"path": 1, "dialog": 2, "branch": 3}


def fields(kind: int) -> tuple[int, ...]:
    return (kind, 0, 0, 0xDEADBEEF, 15_000, 3, 0x00010002, 0, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_seal_and_open(benchmark: BenchmarkFixture, kind: str) -> None:
    benchmark.group = f"seal and open {TURNS} tokens"
    one = fields(KINDS[kind])
    assert probe_core.token_open(probe_core.token_seal(one, KEY, CALL), KEY, CALL) == one
    assert benchmark(probe_core.token_turns, one, KEY, CALL, TURNS) == TURNS


def test_seal_and_open_with_the_standard_library(benchmark: BenchmarkFixture) -> None:
    benchmark.group = f"seal and open {TURNS} tokens"
    layout = struct.Struct("!BBHIIIIII")

    def seal(one: tuple[int, ...]) -> bytes:
        packed = layout.pack(*one)
        mac = hashlib.blake2s(packed + CALL, digest_size=8, key=KEY).digest()
        return base64.urlsafe_b64encode(packed + mac)

    def opened(text: bytes) -> tuple[int, ...] | None:
        raw = base64.urlsafe_b64decode(text)
        mac = hashlib.blake2s(raw[:28] + CALL, digest_size=8, key=KEY).digest()
        return layout.unpack(raw[:28]) if hmac.compare_digest(mac, raw[28:]) else None

    def turns() -> int:
        one = fields(2)
        return sum(opened(seal((*one[:7], serial, one[8]))) is not None for serial in range(TURNS))

    assert opened(seal(fields(2))) == fields(2) and len(seal(fields(2))) == 48
    assert turns() == TURNS
    benchmark(turns)


@pytest.mark.parametrize("length", [28, 60, 700])
def test_siphash(benchmark: BenchmarkFixture, length: int) -> None:
    """With the copy that the door makes."""
    benchmark.group = f"hash of {length} B"
    assert probe_core.siphash(KEY, bytes(range(15))) == 0xA129CA6149BE45E5
    benchmark(probe_core.siphash, KEY, bytes(length))


@pytest.mark.parametrize("length", [28, 60, 700])
def test_blake2s(benchmark: BenchmarkFixture, length: int) -> None:
    benchmark.group = f"hash of {length} B"
    data = bytes(length)
    benchmark(lambda: hashlib.blake2s(data, digest_size=8, key=KEY).digest())
