"""Transactions: what it costs to begin one, set its timers, hear its answers and end it; and what the wheel costs.

python -m pytest bench/test_transaction.py --benchmark-enable --benchmark-group-by=group

One round does ROUNDS of them in C, so a time in us is that of one in ns.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from tests import probe_core

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

ROUNDS = 1000
KEY = bytes(range(16))
REQUEST = b"x" * 700
NOW_MS = 1_000_000
SERVER_OTHER = probe_core.KINDS["SERVER_OTHER"]


def filled(count: int) -> probe_core.Transactions:
    """A table in which so many others wait, their timers spread over more than one turn of the wheel."""
    rng = random.Random(count)
    one = probe_core.Transactions(KEY)
    one.due(NOW_MS)
    for number in range(count):
        other = one.add("others", SERVER_OTHER, key=rng.randrange(2**64), hashed=True)
        one.end_at(other, NOW_MS + rng.randrange(1000, 32_000 if number % 2 else 185_000))
    return one


@pytest.mark.parametrize("others", [0, 100_000])
@pytest.mark.parametrize("reliable", [True, False], ids=["reliable", "UDP"])
def test_a_request_that_is_no_invite(benchmark: BenchmarkFixture, reliable: bool, others: int) -> None:
    """Begin, keep 700 B, start the timers, 1xx, 200, end."""
    benchmark.group = f"{ROUNDS} transactions, client half, among {others}"
    one = filled(others)
    kind = probe_core.KINDS["CLIENT_OTHER"]
    assert one.lives(ROUNDS, kind, REQUEST, reliable, NOW_MS) == ROUNDS
    assert one.count == one.timers == others
    assert benchmark(one.lives, ROUNDS, kind, REQUEST, reliable, NOW_MS) == ROUNDS


@pytest.mark.parametrize("others", [0, 100_000])
@pytest.mark.parametrize("reliable", [True, False], ids=["reliable", "UDP"])
def test_an_invite_with_both_halves(benchmark: BenchmarkFixture, reliable: bool, others: int) -> None:
    """Both halves begun, timed and kept; 180 and 486 through both; found by its key for the ACK, and ended."""
    benchmark.group = f"{ROUNDS} INVITEs, both halves, among {others}"
    one = filled(others)
    branch = b"z9hG4bK5431876"
    assert one.calls(ROUNDS, REQUEST, reliable, NOW_MS, branch) == ROUNDS
    assert one.count == one.timers == others
    assert benchmark(one.calls, ROUNDS, REQUEST, reliable, NOW_MS, branch) == ROUNDS


@pytest.mark.parametrize("others", [0, 100_000])
def test_an_idle_step_of_the_wheel(benchmark: BenchmarkFixture, others: int) -> None:
    """A step of 32 ms in which nothing is due, with the door: what the core pays 31 times a second."""
    benchmark.group = f"a step of the wheel with {others} timers"
    one = probe_core.Transactions(KEY)
    for number in range(others):
        one.end_at(one.add("others", SERVER_OTHER), 10**12 + number)
    clock = [NOW_MS]

    def step() -> object:
        clock[0] += 32
        return one.due(clock[0])

    assert step() is None
    assert benchmark(step) is None


@pytest.mark.parametrize("others", [0, 5_000])
def test_timers_that_run_out_together(benchmark: BenchmarkFixture, others: int) -> None:
    """ROUNDS repetitions due in one step of the wheel, `others` long timers in the same place of it."""
    benchmark.group = f"{ROUNDS} timers of one step"
    step, turn = 32, 32 * 1024

    def made() -> tuple[tuple[probe_core.Transactions, int], dict[str, object]]:
        one = probe_core.Transactions(KEY)
        one.due(NOW_MS)
        numbers = [one.add("a", probe_core.KINDS["CLIENT_OTHER"]) for _ in range(ROUNDS)]
        for number in numbers:
            one.start(number, NOW_MS)
        place = one.node(numbers[0])["repeat_ms"]
        for _ in range(others):
            one.end_at(one.add("b", SERVER_OTHER), place + turn * 5)
        assert one.due(place - step) is None
        return (one, place + step), {}

    def run_out(one: probe_core.Transactions, now: int) -> int:
        fired: int = one.run_out(now)
        return fired

    assert run_out(*made()[0]) == ROUNDS
    assert benchmark.pedantic(run_out, setup=made, rounds=5) == ROUNDS
