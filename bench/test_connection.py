"""The connection table: finding a connection by address and by token, and taking and giving back a slot.

python -m pytest bench/test_connection.py --benchmark-enable --benchmark-group-by=group

One round does LOOKUPS operations in C, so a time in us is that of one in ns. The rival of a lookup is a Python
dictionary with (address, port) keys that exist already, which is more than the table may hope for.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from fastws._connection import ConnectionTable
from tests import probe_core

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

LOOKUPS = 1000
SIZES = [200, 16_000]
LOCAL = ("127.0.0.1", 8080)


def pairs(count: int) -> list[tuple[str, int]]:
    """Addresses as a site has them: many ports of few hosts."""
    return [(f"192.0.2.{number % 50}", 1024 + number) for number in range(count)]


def filled(count: int) -> ConnectionTable:
    table = ConnectionTable(count + 1)
    transport = probe_core.Dummy()
    for pair in pairs(count):
        assert probe_core.claim(table, pair, LOCAL, transport, {}) is not None
    return table


def chosen(count: int) -> list[tuple[str, int]]:
    """LOOKUPS of these addresses in no order."""
    return random.Random(1).choices(pairs(count), k=LOOKUPS)


@pytest.mark.parametrize("size", SIZES)
def test_find_by_address(benchmark: BenchmarkFixture, size: int) -> None:
    benchmark.group = f"{LOOKUPS} lookups by address among {size}"
    table, lookups = filled(size), probe_core.Lookups(chosen(size))
    assert lookups.find_all(table) == LOOKUPS
    assert benchmark(lookups.find_all, table) == LOOKUPS


@pytest.mark.parametrize("size", SIZES)
def test_find_by_address_in_a_dictionary(benchmark: BenchmarkFixture, size: int) -> None:
    benchmark.group = f"{LOOKUPS} lookups by address among {size}"
    table, wanted = dict.fromkeys(pairs(size), 1), chosen(size)

    def look() -> int:
        return sum(map(table.__getitem__, wanted))

    assert look() == LOOKUPS
    benchmark(look)


@pytest.mark.parametrize("size", SIZES)
def test_no_connection_of_this_address(benchmark: BenchmarkFixture, size: int) -> None:
    benchmark.group = f"{LOOKUPS} lookups in vain among {size}"
    table = filled(size)
    lookups = probe_core.Lookups([("198.51.100.1", 1024 + number) for number in range(LOOKUPS)])
    assert lookups.find_all(table) == 0
    assert benchmark(lookups.find_all, table) == 0


@pytest.mark.parametrize("size", SIZES)
def test_find_by_slot_and_generation(benchmark: BenchmarkFixture, size: int) -> None:
    """The way of every message: a token names the slot. As many tenants as there are slots."""
    benchmark.group = f"tenants among {size}"
    table, lookups = filled(size), probe_core.Lookups(pairs(size))
    assert lookups.tenants(table, 1) == size and lookups.tenants(table, 2) == 0
    assert benchmark(lookups.tenants, table, 1) == size


@pytest.mark.parametrize("size", SIZES)
def test_claim_and_release(benchmark: BenchmarkFixture, size: int) -> None:
    benchmark.group = f"{LOOKUPS} connections come and go beside {size - 1}"
    table, transport = filled(size - 1), probe_core.Dummy()
    lookups = probe_core.Lookups([("198.51.100.1", 1024 + number) for number in range(LOOKUPS)])
    attributes = {"user": "alice"}
    assert lookups.turn_over(table, transport, attributes) == LOOKUPS
    assert table.slots()[1] == size - 1
    assert benchmark(lookups.turn_over, table, transport, attributes) == LOOKUPS
