"""sip/transaction: the machines cell by cell, the timers, the wheel and the arena; then what the core does with them.

Time is a parameter here: no test waits. A clock of the tests turns the wheel as the core does, every 32 ms.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fastws._connection import ConnectionTable
from fastws._core import Edge
from tests import probe_core

KEY = bytes(range(16))
BRANCH, SENT_BY, CALL = b"z9hG4bK776", b"c1.invalid", b"call@c1.invalid"
KINDS, STATES, EVENTS, ACTIONS = probe_core.KINDS, probe_core.STATES, probe_core.EVENTS, probe_core.ACTIONS
STEP_MS = 32
LATE_MS = 64  # nothing fires later than this
START_MS = 1_000_003  # no multiple of a step


def table(limit: int = 1 << 20) -> probe_core.Transactions:
    return probe_core.Transactions(KEY, limit)


def actions(names: str) -> int:
    """The sum of these, as the machines give it: "PASS END"."""
    return sum(ACTIONS[name] for name in names.split())


# ---- the machines ----------------------------------------------------------------------------------------------------

# (kind, state) -> event -> state afterwards and what is to be done, over UDP. What does not stand here is impossible.
# States and arrows are those of the figures; where a transaction ends earlier than there, the reason stands beside it.
MACHINES: dict[tuple[str, str], dict[str, tuple[str, str]]] = {
    # RFC 3261 figure 5, changed by RFC 6026 8.4. TRYING is "Calling". The RFC's Accepted serves to let repeated 2xx
    # pass; here they pass by what their branch says, so that the transaction is over with the first one.
    ("CLIENT_INVITE", "TRYING"): {
        "1XX": ("PROCEEDING", "PASS"),
        "2XX": ("TERMINATED", "PASS END"),
        "FINAL": ("COMPLETED", "PASS ACK"),
        "REPEAT": ("TRYING", "RESEND"),  # Timer A
        "TIMEOUT": ("TERMINATED", "TIMEOUT END"),  # Timer B
    },
    ("CLIENT_INVITE", "PROCEEDING"): {
        "1XX": ("PROCEEDING", "PASS"),
        "2XX": ("TERMINATED", "PASS END"),
        "FINAL": ("COMPLETED", "PASS ACK"),
        "TIMEOUT": ("TERMINATED", "TIMEOUT END"),  # Timer C (16.8), behind its CANCEL
    },
    ("CLIENT_INVITE", "COMPLETED"): {
        "1XX": ("COMPLETED", "NOTHING"),
        "2XX": ("COMPLETED", "NOTHING"),
        "FINAL": ("COMPLETED", "ACK"),
        "TIMEOUT": ("TERMINATED", "END"),  # Timer D
    },
    # Figure 6. The RFC's Completed swallows repeated responses (Timer K); they are swallowed without it too.
    ("CLIENT_OTHER", "TRYING"): {
        "1XX": ("PROCEEDING", "PASS"),
        "2XX": ("TERMINATED", "PASS END"),
        "FINAL": ("TERMINATED", "PASS END"),
        "REPEAT": ("TRYING", "RESEND"),  # Timer E
        "TIMEOUT": ("TERMINATED", "TIMEOUT END"),  # Timer F
    },
    ("CLIENT_OTHER", "PROCEEDING"): {
        "1XX": ("PROCEEDING", "PASS"),
        "2XX": ("TERMINATED", "PASS END"),
        "FINAL": ("TERMINATED", "PASS END"),
        "REPEAT": ("PROCEEDING", "RESEND"),
        "TIMEOUT": ("TERMINATED", "TIMEOUT END"),
    },
    # Figure 7, changed by RFC 6026 7.1: Accepted is new, and a 2xx of the far end may be sent on in it.
    ("SERVER_INVITE", "PROCEEDING"): {
        "REQUEST": ("PROCEEDING", "RESEND"),
        "ACK": ("PROCEEDING", "NOTHING"),
        "1XX": ("PROCEEDING", "SEND"),
        "2XX": ("ACCEPTED", "SEND"),
        "FINAL": ("COMPLETED", "SEND"),
        "TIMEOUT": ("PROCEEDING", "TIMEOUT"),  # 17.2.1: the 100 that is owed
    },
    ("SERVER_INVITE", "COMPLETED"): {
        "REQUEST": ("COMPLETED", "RESEND"),
        "ACK": ("CONFIRMED", "NOTHING"),
        "1XX": ("COMPLETED", "NOTHING"),
        "2XX": ("COMPLETED", "NOTHING"),
        "FINAL": ("COMPLETED", "NOTHING"),
        "REPEAT": ("COMPLETED", "RESEND"),  # Timer G
        "TIMEOUT": ("TERMINATED", "END"),  # Timer H
    },
    ("SERVER_INVITE", "CONFIRMED"): {
        "REQUEST": ("CONFIRMED", "NOTHING"),
        "ACK": ("CONFIRMED", "NOTHING"),
        "TIMEOUT": ("TERMINATED", "END"),  # Timer I
    },
    ("SERVER_INVITE", "ACCEPTED"): {
        "REQUEST": ("ACCEPTED", "NOTHING"),
        "2XX": ("ACCEPTED", "SEND"),
        "TIMEOUT": ("TERMINATED", "END"),  # Timer L
    },
    # Figure 8.
    ("SERVER_OTHER", "TRYING"): {
        "REQUEST": ("TRYING", "NOTHING"),
        "1XX": ("PROCEEDING", "SEND"),
        "2XX": ("COMPLETED", "SEND"),
        "FINAL": ("COMPLETED", "SEND"),
    },
    ("SERVER_OTHER", "PROCEEDING"): {
        "REQUEST": ("PROCEEDING", "RESEND"),
        "1XX": ("PROCEEDING", "SEND"),
        "2XX": ("COMPLETED", "SEND"),
        "FINAL": ("COMPLETED", "SEND"),
    },
    ("SERVER_OTHER", "COMPLETED"): {
        "REQUEST": ("COMPLETED", "RESEND"),
        "1XX": ("COMPLETED", "NOTHING"),
        "2XX": ("COMPLETED", "NOTHING"),
        "FINAL": ("COMPLETED", "NOTHING"),
        "TIMEOUT": ("TERMINATED", "END"),  # Timer J
    },
}

# States that wait for repetitions of the other end: over a transport that repeats by itself there are none to wait for.
LAST_NO_TIME = {
    ("CLIENT_INVITE", "COMPLETED"),  # Timer D is zero, 17.1.1.2
    ("SERVER_INVITE", "CONFIRMED"),  # Timer I, 17.2.1
    ("SERVER_INVITE", "ACCEPTED"),
    ("SERVER_OTHER", "COMPLETED"),  # Timer J, 17.2.2
}
LIVING = [name for name in STATES if name != "FREE"]
CELLS = list(itertools.product(KINDS, LIVING, EVENTS))


def put(one: probe_core.Transactions, kind: str, state: str, *, reliable: bool = False) -> int:
    number: int = one.add("a", KINDS[kind], reliable=reliable)
    one.change(number, state=STATES[state])
    return number


def test_the_tables_are_read_with_the_numbers_of_the_house() -> None:
    assert sorted(EVENTS.values()) == list(range(probe_core.EVENT_COUNT)) == list(range(7))
    assert sorted(KINDS.values()) == [0, 1, 2, 3] and sorted(STATES.values()) == list(range(7))
    bits = [value for name, value in ACTIONS.items() if name != "NOTHING"]
    assert ACTIONS["NOTHING"] == 0 and sum(bits) == 2 ** len(bits) - 1 <= 255


@pytest.mark.parametrize("reliable", [False, True], ids=["UDP", "reliable"])
@pytest.mark.parametrize(("kind", "state", "event"), CELLS)
def test_each_cell_of_the_machines(kind: str, state: str, event: str, reliable: bool) -> None:
    one = table()
    number = put(one, kind, state, reliable=reliable)
    expected = MACHINES.get((kind, state), {}).get(event)
    before = one.node(number)
    done = one.event(number, EVENTS[event], START_MS)
    if expected is None:
        assert done == ACTIONS["IMPOSSIBLE"]
        assert one.node(number) == before and one.timers == 0
        return
    state_after, names = expected
    over = reliable and state_after != state and (kind, state_after) in LAST_NO_TIME
    assert done == actions(names) | (ACTIONS["END"] if over else 0)
    assert one.node(number)["state"] == STATES[state_after]
    if done & ACTIONS["END"]:
        one.remove("a", number)
        assert one.count == one.timers == 0
    one.audit()


@pytest.mark.parametrize("kind", KINDS)
def test_an_impossible_event_leaves_running_timers_alone(kind: str) -> None:
    for state, event in itertools.product(LIVING, EVENTS):
        if event in MACHINES.get((kind, state), {}):
            continue
        one = table()
        number: int = one.add("a", KINDS[kind])
        one.start(number, START_MS)
        one.change(number, state=STATES[state])
        before = one.node(number)
        assert one.event(number, EVENTS[event], START_MS + 100) == ACTIONS["IMPOSSIBLE"]
        assert one.node(number) == before, (state, event)


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_state_is_the_one_of_the_figure(kind: str) -> None:
    # Figure 7 begins with Proceeding, the others with Calling or Trying.
    one = table()
    number = one.add("a", KINDS[kind])
    assert one.node(number)["state"] == STATES["PROCEEDING" if kind == "SERVER_INVITE" else "TRYING"]


def test_every_state_that_can_be_entered_can_be_left() -> None:
    # Over UDP, where nothing is sure to come: by a timer of its own or, for a server that waits, with its client half.
    for (kind, state), row in MACHINES.items():
        if kind.startswith("CLIENT") or state not in ("TRYING", "PROCEEDING"):
            assert row["TIMEOUT"][1].endswith("END"), (kind, state)
        for state_after, _ in row.values():
            assert state_after == "TERMINATED" or (kind, state_after) in MACHINES


# ---- the timers ------------------------------------------------------------------------------------------------------


class Wheel:
    """A table, and a clock that turns its wheel as the core's _turn does."""

    def __init__(self, now: int = START_MS, limit: int = 1 << 20) -> None:
        self.table = table(limit)
        self.now = now
        self.fired: list[tuple[int, int, str, int]] = []  # when, which, what, what to do

    def add(self, kind: str, *, reliable: bool = False, start: bool = True) -> int:
        number: int = self.table.add("a", KINDS[kind], reliable=reliable)
        if start:
            self.table.start(number, self.now)
        return number

    def event(self, number: int, name: str) -> int:
        done: int = self.table.event(number, EVENTS[name], self.now)
        if done & ACTIONS["END"]:
            self.table.remove("a", number)
        return done

    def turn(self) -> None:
        while (due := self.table.due(self.now)) is not None:
            number, event = due
            name = next(name for name, value in EVENTS.items() if value == event)
            self.fired.append((self.now, number, name, self.event(number, name)))
            assert len(self.fired) < 1_000_000, "it fires for ever"

    def run(self, duration: int, step: int = STEP_MS) -> None:
        """Turn every `step` ms, the last time when `duration` is over."""
        end = self.now + duration
        while self.now < end:
            self.now = min(end, self.now + step)
            self.turn()

    def times(self, name: str) -> list[int]:
        return [when for when, _, event, _ in self.fired if event == name]


def follows(times: Iterable[int], start: int, intervals: Iterable[int]) -> bool:
    """Whether each time is its interval behind the one before it, counted from when that was due: not a millisecond
    less and at most LATE_MS more, so that lateness does not add up."""
    due = start
    for when, interval in zip(times, intervals, strict=True):
        due += interval
        assert 0 <= when - due <= LATE_MS, (when, due)
    return True


def doubling(cap: int | None = None) -> Iterator[int]:
    interval = 500
    while True:
        yield interval
        interval = interval * 2 if cap is None else min(cap, interval * 2)


def first(count: int, values: Iterator[int]) -> list[int]:
    return list(itertools.islice(values, count))


@pytest.mark.rule(38)
def test_the_times_are_those_of_the_rfc() -> None:
    times = probe_core.TIMES_MS
    assert (times["T1"], times["T2"], times["T4"]) == (500, 4000, 5000)  # table 4
    assert times["B"] == 64 * times["T1"]
    assert times["C"] > 3 * 60_000  # 16.6 item 11
    assert times["D"] >= 32_000
    assert times["100"] + LATE_MS <= 200  # 17.2.1
    assert 2 * times["step"] <= LATE_MS and times["slots"] & (times["slots"] - 1) == 0


@pytest.mark.rule(37)
@pytest.mark.rule(38)
@pytest.mark.parametrize("phase", [0, 1, 13, 31])
def test_an_invite_over_udp_is_repeated_at_doubling_intervals_until_timer_b(phase: int) -> None:
    wheel = Wheel(1_000_000 + phase)
    start = wheel.now
    number = wheel.add("CLIENT_INVITE")
    wheel.run(40_000)
    repeats, timeouts = wheel.times("REPEAT"), wheel.times("TIMEOUT")
    assert len(repeats) == 6  # seven packets in all, 17.1.1.2; the last interval is 16 s: nothing caps it
    assert follows(repeats, start, first(6, doubling()))
    assert follows(timeouts, start, [32_000])
    assert wheel.fired[-1] == (timeouts[0], number, "TIMEOUT", actions("TIMEOUT END"))
    assert all(done == ACTIONS["RESEND"] for _, _, name, done in wheel.fired if name == "REPEAT")
    assert wheel.table.count == wheel.table.timers == 0


@pytest.mark.rule(37)
@pytest.mark.rule(38)
@pytest.mark.parametrize("phase", [0, 1, 13, 31])
def test_another_request_over_udp_is_repeated_at_intervals_of_at_most_t2_until_timer_f(phase: int) -> None:
    wheel = Wheel(1_000_000 + phase)
    start = wheel.now
    wheel.add("CLIENT_OTHER")
    wheel.run(40_000)
    repeats = wheel.times("REPEAT")
    assert len(repeats) == 10  # at 0.5, 1.5, 3.5, 7.5 and then every 4 s, 17.1.2.2: eleven packets
    assert follows(repeats, start, first(10, doubling(4000)))
    assert follows(wheel.times("TIMEOUT"), start, [32_000])
    assert wheel.fired[-1][3] == actions("TIMEOUT END") and wheel.table.count == 0


@pytest.mark.rule(37)
@pytest.mark.parametrize("before", [100, 600, 2000, 9000])
def test_after_the_first_provisional_another_request_is_repeated_every_t2(before: int) -> None:
    wheel = Wheel()
    start = wheel.now
    number = wheel.add("CLIENT_OTHER")
    wheel.run(before)
    already = len(wheel.fired)
    assert wheel.event(number, "1XX") == ACTIONS["PASS"]
    at = wheel.now
    wheel.run(3900)
    assert len(wheel.fired) == already
    # A second provisional changes nothing.
    assert wheel.event(number, "1XX") == ACTIONS["PASS"]
    wheel.run(40_000)
    repeats = wheel.times("REPEAT")[already:]
    assert follows(repeats, at, itertools.repeat(4000, len(repeats)))
    assert len(repeats) == (32_000 - before) // 4000
    assert follows(wheel.times("TIMEOUT"), start, [32_000])  # Timer F goes on from where it began


@pytest.mark.rule(37)
def test_a_provisional_response_ends_the_repetitions_of_an_invite() -> None:
    wheel = Wheel()
    number = wheel.add("CLIENT_INVITE")
    wheel.run(600)
    assert len(wheel.times("REPEAT")) == 1
    wheel.event(number, "1XX")
    wheel.run(180_000)
    assert len(wheel.fired) == 1 and wheel.table.timers == 1


@pytest.mark.rule(37)
@pytest.mark.rule(38)
def test_a_final_response_over_udp_is_repeated_until_its_ack_or_timer_h() -> None:
    for acked in (False, True):
        wheel = Wheel()
        number = wheel.add("SERVER_INVITE")
        assert wheel.event(number, "FINAL") == ACTIONS["SEND"]
        start = wheel.now
        if acked:
            wheel.run(5000)
            assert wheel.event(number, "ACK") == ACTIONS["NOTHING"]
            confirmed = wheel.now
        wheel.run(40_000)
        repeats = wheel.times("REPEAT")
        assert len(repeats) == (3 if acked else 10)
        assert follows(repeats, start, first(len(repeats), doubling(4000)))  # Timer G
        assert follows(wheel.times("TIMEOUT"), confirmed if acked else start, [5000 if acked else 32_000])  # I, H
        assert wheel.table.count == 0


@pytest.mark.rule(38)
@pytest.mark.parametrize(
    ("kind", "events", "wait"),
    [
        ("CLIENT_INVITE", ["FINAL"], 32_000),  # Timer D
        ("CLIENT_INVITE", ["1XX"], 185_000),  # Timer C
        ("CLIENT_INVITE", ["1XX", "FINAL"], 32_000),
        ("SERVER_INVITE", ["2XX"], 32_000),  # Timer L
        ("SERVER_INVITE", ["1XX", "FINAL", "ACK"], 5000),  # Timer I
        ("SERVER_OTHER", ["FINAL"], 32_000),  # Timer J
        ("SERVER_OTHER", ["1XX", "2XX"], 32_000),
    ],
)
def test_how_long_a_state_lasts_over_udp(kind: str, events: list[str], wait: int) -> None:
    wheel = Wheel()
    number = wheel.add(kind)
    wheel.run(70)
    for name in events:
        assert not wheel.event(number, name) & ACTIONS["END"]
    start = wheel.now
    wheel.run(200_000)
    assert follows(wheel.times("TIMEOUT"), start, [wait])
    assert wheel.table.count == wheel.table.timers == 0


@pytest.mark.parametrize("kind", ["CLIENT_INVITE", "SERVER_INVITE", "SERVER_OTHER"])
def test_what_is_repeated_to_a_state_that_waits_does_not_make_it_longer(kind: str) -> None:
    wheel = Wheel()
    number = wheel.add(kind)
    wheel.event(number, "FINAL")
    start = wheel.now
    for _ in range(60):
        wheel.run(500)
        wheel.event(number, "FINAL")
        if kind != "CLIENT_INVITE":
            wheel.event(number, "REQUEST")
    wheel.run(5000)
    assert follows(wheel.times("TIMEOUT"), start, [32_000])


@pytest.mark.rule(38)
def test_timer_c_begins_again_with_each_provisional_response() -> None:
    wheel = Wheel()
    number = wheel.add("CLIENT_INVITE")
    wheel.event(number, "1XX")
    for _ in range(5):
        wheel.run(150_000, 1000)
        wheel.event(number, "1XX")
    assert wheel.times("TIMEOUT") == []
    start = wheel.now
    wheel.run(190_000)
    assert follows(wheel.times("TIMEOUT"), start, [185_000])


def test_behind_a_cancel_no_provisional_response_makes_the_invite_last_longer() -> None:
    # RFC 3261 9.1: 64*T1 after the CANCEL it is given up, however often it rings.
    wheel = Wheel()
    number = wheel.add("CLIENT_INVITE")
    wheel.event(number, "1XX")
    wheel.table.change(number, cancelled=True)
    wheel.table.end_at(number, wheel.now + 32_000)
    start = wheel.now
    for _ in range(12):
        wheel.run(2500)
        assert wheel.event(number, "1XX") == ACTIONS["PASS"]
    wheel.run(5000)
    assert follows(wheel.times("TIMEOUT"), start, [32_000])


@pytest.mark.parametrize("reliable", [False, True])
def test_a_100_is_owed_within_200_ms_and_once(reliable: bool) -> None:
    for phase in range(STEP_MS):
        wheel = Wheel(1_000_000 + phase)
        start = wheel.now
        number = wheel.add("SERVER_INVITE", reliable=reliable)
        wheel.run(10_000)
        assert [done for *_, done in wheel.fired] == [ACTIONS["TIMEOUT"]]
        assert follows(wheel.times("TIMEOUT"), start, [100]) and wheel.fired[0][0] - start <= 200
        assert wheel.table.node(number)["state"] == STATES["PROCEEDING"] and wheel.table.timers == 0


def test_whoever_has_sent_a_provisional_response_owes_no_100() -> None:
    wheel = Wheel()
    number = wheel.add("SERVER_INVITE")
    wheel.run(90)
    wheel.event(number, "1XX")
    assert wheel.table.timers == 0
    wheel.run(1000)
    assert wheel.fired == []
    other = wheel.add("SERVER_INVITE", start=False)
    wheel.table.change(other, status=180)
    wheel.table.start(other, wheel.now)
    assert wheel.table.timers == 0


@pytest.mark.rule(37)
@pytest.mark.parametrize("kind", KINDS)
def test_over_a_reliable_transport_nothing_is_repeated(kind: str) -> None:
    for events in ([], ["1XX"], ["FINAL"], ["1XX", "FINAL"], ["2XX"]):
        wheel = Wheel()
        number = wheel.add(kind, reliable=True)
        over = False
        for name in events:
            over = bool(wheel.event(number, name) & ACTIONS["END"])
        wheel.run(200_000)
        assert wheel.times("REPEAT") == []
        # Only a server that waits for its client half is left, and no timer.
        waits = kind.startswith("SERVER") and events in ([], ["1XX"])
        assert wheel.table.count == waits and wheel.table.timers == 0 and not (over and wheel.times("TIMEOUT"))


@pytest.mark.rule(38)
def test_timers_b_f_and_h_run_over_a_reliable_transport_too() -> None:
    for kind, events in (("CLIENT_INVITE", []), ("CLIENT_OTHER", ["1XX"]), ("SERVER_INVITE", ["FINAL"])):
        wheel = Wheel()
        number = wheel.add(kind, reliable=True)
        for name in events:
            wheel.event(number, name)
        start = wheel.now
        wheel.run(40_000)
        assert follows(wheel.times("TIMEOUT")[-1:], start, [32_000])
        assert wheel.table.count == 0


@pytest.mark.parametrize("kind", ["CLIENT_INVITE", "CLIENT_OTHER"])
def test_a_quiet_transaction_is_not_repeated_and_still_comes_to_its_end(kind: str) -> None:
    wheel = Wheel()
    start = wheel.now
    number = wheel.add(kind)
    wheel.run(2000)
    wheel.table.quiet(number)
    wheel.fired.clear()
    if kind == "CLIENT_OTHER":
        wheel.event(number, "1XX")  # does not wake Timer E again
    wheel.run(40_000)
    assert [name for _, _, name, _ in wheel.fired] == ["TIMEOUT"]
    assert follows(wheel.times("TIMEOUT"), start, [32_000])


def test_a_timer_and_its_repetition_at_the_same_time_are_a_timeout() -> None:
    wheel = Wheel()
    number = wheel.add("CLIENT_OTHER")
    wheel.table.end_at(number, wheel.table.node(number)["repeat_ms"])
    wheel.run(1000)
    assert [name for _, _, name, _ in wheel.fired] == ["TIMEOUT"] and wheel.table.count == 0


# ---- the wheel -------------------------------------------------------------------------------------------------------


def timer(one: probe_core.Transactions, due: int) -> int:
    """A node whose one timer runs out at `due`."""
    number: int = one.add("a", KINDS["SERVER_OTHER"])
    one.end_at(number, due)
    return number


def fire_all(one: probe_core.Transactions, now: int) -> list[int]:
    found = []
    while (due := one.due(now)) is not None:
        found.append(due[0])
        assert due[1] == EVENTS["TIMEOUT"]
        assert len(found) <= one.count
    return found


def test_nothing_runs_on_an_empty_wheel() -> None:
    one = table()
    assert all(one.due(now) is None for now in (0, 1, 31, 32, 10**6, 5, 2**40))
    number = timer(one, 2**40 + 5)
    assert one.due(2**40) is None
    assert fire_all(one, 2**40 + 64) == [number] and one.timers == 0


@pytest.mark.parametrize("step", [1, 7, 32, 33, 100])
def test_thousands_of_timers_fire_once_never_early_and_in_the_next_turn_behind_their_step(step: int) -> None:
    rng = random.Random(step)
    one = table()
    now = START_MS
    one.due(now)
    waiting = {}
    for _ in range(4000):
        due = now + rng.choice([rng.randrange(1, 200), rng.randrange(1, 33_000), rng.randrange(1, 200_000)])
        waiting[timer(one, due)] = due
    assert one.timers == 4000
    end = now + 200_200
    while waiting:
        now += step if rng.random() < 0.9 else rng.randrange(1, step + 1)
        for number in fire_all(one, now):
            due = waiting.pop(number)
            assert due <= now <= due + STEP_MS + step
            one.remove("a", number)
        assert one.timers == len(waiting)
        assert now < end
    one.audit()


@pytest.mark.parametrize("wait", [1, 31, 32, 1000, 32_767, 32_768, 32_769, 65_536, 98_305, 185_000, 10_000_000])
def test_a_timer_fires_in_its_turn_of_the_wheel_and_in_no_other(wait: int) -> None:
    # One turn of 1024 steps takes 32768 ms.
    for phase in (0, 1, 31):
        wheel = Wheel(2_000_000 + phase)
        wheel.turn()
        start = wheel.now
        number = timer(wheel.table, start + wait)
        while wheel.table.timers:
            wheel.now += STEP_MS if wait <= 200_000 else 20_000
            due = wheel.table.due(wheel.now)
            assert due in (None, (number, EVENTS["TIMEOUT"]))
        assert 0 <= wheel.now - (start + wait) <= (LATE_MS if wait <= 200_000 else 20_032)


@pytest.mark.parametrize("jump", [33, 1000, 32_767, 32_768, 32_800, 40_000, 100_000, 86_400_000, 2**40])
def test_after_a_jump_of_the_clock_all_that_is_due_fires_and_nothing_else(jump: int) -> None:
    rng = random.Random(jump)
    one = table()
    now = START_MS
    one.due(now)
    waiting = {}
    wanted = [now + rng.randrange(1, 2 * jump + 100) for _ in range(500)]
    wanted += [now + jump - back for back in range(0, min(jump, 1100 * STEP_MS), STEP_MS)]  # one for each place
    for due in wanted:
        waiting[timer(one, due)] = due
    now += jump
    fired = fire_all(one, now)
    # What ran out within the step that is not over yet may wait for the next turn.
    assert {number for number, due in waiting.items() if due // STEP_MS < now // STEP_MS} <= set(fired)
    assert all(waiting[number] <= now for number in fired) and len(fired) == len(set(fired))
    for number in fired:
        del waiting[number]
        one.remove("a", number)
    later = timer(one, now + 500)
    waiting[later] = now + 500
    for _ in range(40):
        now += STEP_MS
        for number in fire_all(one, now):
            assert 0 <= now - waiting.pop(number) <= LATE_MS
    assert later not in waiting
    one.audit()


def test_a_clock_that_goes_backward_fires_nothing_and_loses_nothing() -> None:
    one = table()
    one.due(START_MS)
    first_one = timer(one, START_MS + 5000)
    assert one.due(START_MS - 3000) is None
    second = timer(one, START_MS - 2500)  # lies behind where the wheel is: in its next turn
    assert one.due(START_MS - 2400) is None and one.timers == 2
    fired = []
    for now in range(START_MS, START_MS + 6000, STEP_MS):
        fired += [(number, now) for number in fire_all(one, now)]
    assert [number for number, _ in fired] == [second, first_one]
    assert fired[0][1] <= START_MS + LATE_MS and 0 <= fired[1][1] - (START_MS + 5000) <= LATE_MS


def test_a_timer_that_is_set_anew_fires_at_its_new_time_only() -> None:
    rng = random.Random(4)
    one = table()
    now = START_MS
    numbers = [timer(one, now + rng.randrange(1, 5000)) for _ in range(200)]
    due = {}
    for number in numbers:
        for _ in range(3):
            due[number] = now + rng.choice([50, 3000, 40_000, rng.randrange(1, 70_000)])
            one.end_at(number, due[number])
        assert one.timers == 200
    one.audit()
    while due:
        now += STEP_MS
        for number in fire_all(one, now):
            assert 0 <= now - due.pop(number) <= LATE_MS


def test_a_timer_set_to_zero_runs_no_more() -> None:
    one = table()
    number = timer(one, START_MS)
    one.end_at(number, 0)
    assert one.timers == 0 and one.node(number)["on_wheel"] is False
    assert fire_all(one, START_MS + 100_000) == []


@pytest.mark.parametrize("far", [32_768, 65_536, 32_768 * 5])
def test_what_fires_may_be_set_anew_into_the_very_place_that_is_looked_at(far: int) -> None:
    one = table()
    now = START_MS // STEP_MS * STEP_MS
    one.due(now)
    numbers = {timer(one, now + STEP_MS + n % STEP_MS) for n in range(100)}
    now += 3 * STEP_MS
    seen = []
    while (due := one.due(now)) is not None:
        one.end_at(due[0], now + far - STEP_MS)  # the same place, one turn or more later
        seen.append(due[0])
        assert len(seen) <= 100, "it fires for ever"
    assert set(seen) == numbers and one.timers == 100
    assert fire_all(one, now + STEP_MS) == []
    assert set(fire_all(one, now + far + STEP_MS)) == numbers


def test_what_fires_may_end_its_neighbours_while_the_wheel_turns() -> None:
    # As the core does: a client half takes its server half with it, and a failure adds a CANCEL and sets timers anew.
    for seed in range(20):
        rng = random.Random(seed)
        one = table()
        now = START_MS
        one.due(now)
        due = {}
        for _ in range(300):
            at = now + rng.randrange(1, 100)
            due[timer(one, at)] = at
        for _ in range(4000):
            now += STEP_MS
            while (fired := one.due(now)) is not None:
                number = fired[0]
                assert 0 <= now - due.pop(number) <= LATE_MS
                for other in rng.sample(sorted(due), min(len(due), rng.randrange(4))):
                    if rng.random() < 0.6:
                        one.remove("a", other)
                        del due[other]
                    else:
                        due[other] = now + rng.choice([1, 40, 32_768, 40_000])
                        one.end_at(other, due[other])
                if rng.random() < 0.3:
                    due[number] = now + rng.randrange(1, 33_000)
                    one.end_at(number, due[number])
                else:
                    one.remove("a", number)
                if rng.random() < 0.2:
                    at = now + rng.randrange(1, 500)
                    due[timer(one, at)] = at
            if not due:
                break
        assert due == {} and one.count == one.timers == 0
        one.audit()


def test_a_repetition_that_was_slept_over_is_followed_by_its_timeout_and_by_nothing_else() -> None:
    wheel = Wheel()
    wheel.add("CLIENT_OTHER")
    wheel.now += 3_600_000
    wheel.turn()
    assert wheel.times("TIMEOUT") == [wheel.now] and len(wheel.fired) <= 2
    assert wheel.table.count == wheel.table.timers == 0


# ---- keys ------------------------------------------------------------------------------------------------------------


@pytest.mark.rule(35)
def test_every_part_of_the_key_tells_transactions_apart() -> None:
    # RFC 3261 17.2.3, with the origin added: branches of browsers collide.
    one = table()
    base = (0, 5, 1, BRANCH, SENT_BY, CALL, 1, b"INVITE")
    others = [
        (1, 5, 1, BRANCH, SENT_BY, CALL, 1, b"INVITE"),  # of the other side
        (0, 6, 1, BRANCH, SENT_BY, CALL, 1, b"INVITE"),  # of another client
        (0, 5, 2, BRANCH, SENT_BY, CALL, 1, b"INVITE"),  # of a later client in the same slot
        (0, 5, 1, BRANCH + b"7", SENT_BY, CALL, 1, b"INVITE"),
        (0, 5, 1, BRANCH, b"c2.invalid", CALL, 1, b"INVITE"),
        (0, 5, 1, BRANCH, b"c1.invalid:5060", CALL, 1, b"INVITE"),
        (0, 5, 1, BRANCH, SENT_BY, CALL + b"x", 1, b"INVITE"),
        (0, 5, 1, BRANCH, SENT_BY, CALL, 2, b"INVITE"),
        (0, 5, 1, BRANCH, SENT_BY, CALL, 1, b"OPTIONS"),
        (0, 5, 1, BRANCH, SENT_BY, CALL, 1, b"invite"),  # methods are told apart by case, 7.1
    ]
    keys = {one.key(*parts) for parts in (base, *others)}
    assert len(keys) == 11
    assert one.key(*base) == one.key(*base)


def test_a_byte_that_moves_from_one_part_to_the_next_makes_another_key() -> None:
    one = table()
    assert one.key(0, 1, 1, b"ab", b"c", b"d", 1) != one.key(0, 1, 1, b"a", b"bc", b"d", 1)
    assert one.key(0, 1, 1, b"a", b"bc", b"d", 1) != one.key(0, 1, 1, b"a", b"b", b"cd", 1)
    assert one.key(0, 1, 1, b"a", b"b", b"d", 1, b"cM") != one.key(0, 1, 1, b"a", b"bc", b"d", 1, b"M")
    assert one.key(0, 1, 1, b"a", b"b", b"dM", 1, b"") != one.key(0, 1, 1, b"a", b"b", b"d", 1, b"M")
    assert one.key(0, 1, 1, b"", b"", b"", 1) != one.key(0, 1, 1, None, b"a", b"", 1)
    assert one.key(0, 1, 1, None, None, b"", 1, None) == one.key(0, 1, 1, b"", b"", None, 1, b"")


@pytest.mark.parametrize("length", [1, 63, 64, 65, 128, 200, 1000])
def test_sent_by_is_compared_without_regard_to_case_and_the_branch_with(length: int) -> None:
    one = table()
    name = (b"Host.Example-" * 100)[:length]
    assert one.key(0, 1, 1, BRANCH, name.lower(), CALL, 1) == one.key(0, 1, 1, BRANCH, name.upper(), CALL, 1)
    assert one.key(0, 1, 1, BRANCH, name, CALL, 1) != one.key(0, 1, 1, BRANCH, name[:-1] + b"?", CALL, 1)
    assert one.key(0, 1, 1, BRANCH.lower(), name, CALL, 1) != one.key(0, 1, 1, BRANCH.upper(), name, CALL, 1)


def test_the_key_of_the_table_changes_every_key() -> None:
    parts = (0, 5, 1, BRANCH, SENT_BY, CALL, 1)
    assert table().key(*parts) != probe_core.Transactions(bytes(16)).key(*parts)


# ---- the arena -------------------------------------------------------------------------------------------------------


def test_what_was_added_is_found_until_it_is_removed() -> None:
    one = table()
    assert one.find(7) is None and one.count == 0
    number = one.add("a", KINDS["SERVER_OTHER"], key=7, hashed=True, reliable=True, upward=False, slot=3, generation=9)
    assert one.find(7) == number and one.count == 1
    assert one.node(number) == {
        "kind": KINDS["SERVER_OTHER"], "state": STATES["TRYING"], "reliable": True, "upward": False,
        "cancel_wanted": False, "cancelled": False, "kept": False, "hashed": True, "status": 0, "key": 7, "slot": 3,
        "generation": 9, "serial": 0, "peer": 0, "other": None, "interval_ms": 0, "repeat_ms": None, "end_ms": None,
        "on_wheel": False,
    }  # fmt: skip
    assert one.walk("a") == [number] and one.kept(number) is None
    one.remove("a", number)
    assert one.find(7) is None and one.count == 0 and one.walk("a") == []
    one.audit()


def test_what_is_not_hashed_is_not_found() -> None:
    one = table()
    plain_one = one.add("a", key=7)
    assert one.find(7) is None
    number = one.add("a", key=7, hashed=True)
    assert one.find(7) == number
    one.remove("a", plain_one)
    assert one.find(7) == number
    one.audit()


def test_keys_of_one_bucket_do_not_hide_each_other() -> None:
    one = table()
    keys = [5 + (n << 20) for n in range(40)]
    numbers = {key: one.add("a", key=key, hashed=True) for key in keys}
    for gone in (keys[20], keys[0], keys[-1]):
        one.remove("a", numbers.pop(gone))
        assert one.find(gone) is None
        assert all(one.find(key) == number for key, number in numbers.items())
    one.audit()


def test_whoever_is_removed_leaves_its_other_half_alone() -> None:
    one = table()
    server, client = one.add("a", KINDS["SERVER_INVITE"]), one.add("a", KINDS["CLIENT_INVITE"])
    one.pair(server, client)
    one.remove("a", client)
    assert one.node(server)["other"] is None
    again = one.add("a", KINDS["CLIENT_OTHER"])
    assert again == client and one.node(server)["other"] is None and one.node(again)["other"] is None


def test_a_node_that_is_used_again_remembers_nothing() -> None:
    one = table()
    number = one.add("a", KINDS["CLIENT_INVITE"], key=9, hashed=True, upward=True)
    fresh = one.node(number)
    one.keep(number, b"INVITE")
    one.start(number, START_MS)
    one.change(number, status=180, cancelled=True, serial=7, peer=9)
    one.remove("a", number)
    assert one.timers == 0
    assert one.add("a", KINDS["CLIENT_INVITE"], key=9, hashed=True, upward=True) == number
    assert one.node(number) == fresh and one.kept(number) is None
    assert fire_all(one, START_MS + 300_000) == []


def test_an_orphan_belongs_to_nobody_and_goes_on() -> None:
    wheel = Wheel()
    one = wheel.table
    numbers = [wheel.add("CLIENT_INVITE") for _ in range(5)]
    for number in (numbers[2], numbers[0], numbers[4]):  # from the middle, the end and the front of the list
        one.orphan("a", number)
    assert one.walk("a") == [numbers[3], numbers[1]] and one.walk(None) == [numbers[4], numbers[0], numbers[2]]
    assert [one.node(number)["generation"] for number in numbers] == [0, 1, 0, 1, 0]
    assert one.timers == one.count == 5
    one.audit()
    for number in (numbers[0], numbers[4], numbers[2]):
        one.remove(None, number)
    assert one.walk(None) == [] and one.walk("a") == [numbers[3], numbers[1]] and one.timers == 2
    one.audit()


@pytest.mark.parametrize("limit", [1, 2, 63, 64, 65, 100, 300, 1000])
def test_at_the_limit_nothing_is_added_until_something_goes(limit: int) -> None:
    one = table(limit)
    numbers = [one.add("a", key=number, hashed=True) for number in range(limit)]
    assert sorted(numbers) == list(range(limit)) and one.capacity == limit
    for _ in range(3):
        assert one.add("a") is None and one.add("b", key=5000, hashed=True) is None
    assert one.count == limit and one.find(5000) is None and one.walk("b") == []
    one.remove("a", numbers[limit // 2])
    assert one.add("b") == numbers[limit // 2]
    assert one.add("b") is None
    one.audit()


def test_growing_moves_the_nodes_and_keeps_everything() -> None:
    wheel = Wheel()
    one = wheel.table
    one.due(wheel.now)
    known = {}
    for number in range(3000):
        made = one.add(number % 7, number % 4, key=number << 8, hashed=number % 3 != 0, slot=number)  # in few buckets
        one.keep(made, b"%d" % number * 9)
        one.start(made, wheel.now)
        if number % 5 == 0:
            one.orphan(number % 7, made)
        known[made] = one.node(made), one.kept(made)
    assert one.capacity >= 3000 and one.bucket_count >= one.capacity
    one.audit()
    assert {number: (one.node(number), one.kept(number)) for number in known} == known
    for number, (node, _) in known.items():
        assert one.find(node["key"]) == (number if node["hashed"] else None)


def test_places_are_used_again() -> None:
    one = table()
    for _ in range(3):
        for key in range(64):
            one.add("a", key=key, hashed=True)
        assert one.capacity == 64
        for number in one.walk("a"):
            one.remove("a", number)
    assert one.count == 0
    one.audit()


@pytest.mark.parametrize("lengths", [(0,), (1,), (5, 3, 9), (9, 3, 5, 9, 10), (65536, 0, 1, 65537)])
def test_what_is_kept_is_the_last_that_was_sent(lengths: tuple[int, ...]) -> None:
    one = table()
    number = one.add("a")
    for place, length in enumerate(lengths):
        data = bytes([65 + place]) * length
        assert one.keep(number, data)
        assert one.kept(number) == data


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc")
def test_what_was_kept_is_given_back() -> None:
    # 2 GB in all pass through; a sanitizer holds back a quarter of one.
    data = b"x" * (1 << 20)
    one = table()

    def turn() -> None:
        numbers = [one.add("a", KINDS["CLIENT_OTHER"]) for _ in range(20)]
        for number in numbers:
            one.keep(number, data[:-10])
            one.keep(number, data)
            one.keep(number, data[:100])
            one.remove("a", number)
        other = table()
        for _ in range(20):
            other.keep(other.add("a"), data)
        del other

    turn()
    before = resident()
    for _ in range(40):
        turn()
    assert resident() - before < 400 << 20
    one.audit()


@pytest.mark.parametrize("seed", range(4))
def test_a_random_load_agrees_with_a_model(seed: int) -> None:
    rng = random.Random(seed)
    one = table(2000)
    now = START_MS
    nodes: dict[int, dict[str, Any]] = {}
    lists: dict[Any, list[int]] = {owner: [] for owner in (None, *range(15))}  # the newest first
    keys: dict[int, int] = {}

    def gone(number: int) -> None:
        node = nodes.pop(number)
        lists[node["owner"]].remove(number)
        if node["hashed"]:
            del keys[node["key"]]
        if node["other"] is not None:
            nodes[node["other"]]["other"] = None
        one.remove(node["owner"], number)

    def add() -> None:
        key = rng.choice([rng.randrange(2**64), rng.randrange(64) << 32 | rng.randrange(4)])
        hashed = key not in keys and rng.random() < 0.6
        owner = rng.randrange(15)
        number = one.add(owner, rng.randrange(4), key=key, hashed=hashed, reliable=rng.random() < 0.5, slot=owner)
        if len(nodes) == 2000:
            assert number is None
            return
        assert number not in nodes
        if hashed:
            keys[key] = number
        lists[owner].insert(0, number)
        nodes[number] = {"owner": owner, "hashed": hashed, "key": key, "other": None, "data": None}
        one.start(number, now)
        partner = next((other for other, node in nodes.items() if node["other"] is None and other != number), None)
        if partner is not None and rng.random() < 0.5:
            one.pair(number, partner)
            nodes[number]["other"], nodes[partner]["other"] = partner, number

    def change(number: int) -> None:
        node = nodes[number]
        what = rng.randrange(4)
        if what == 0:
            data = rng.randbytes(rng.randrange(200))
            one.keep(number, data)
            node["data"] = data
        elif what == 1 and node["owner"] is not None:
            one.orphan(node["owner"], number)
            lists[node["owner"]].remove(number)
            lists[None].insert(0, number)
            node["owner"] = None
        elif what == 2:
            one.quiet(number)
        elif one.event(number, rng.randrange(7), now) & ACTIONS["END"]:
            gone(number)

    for step in range(12_000):
        filling = (step // 3000) % 2 == 0
        roll = rng.random()
        if roll < (0.6 if filling else 0.1):
            add()
        elif nodes and roll < 0.8:
            change(rng.choice(list(nodes)))
        elif nodes:
            gone(rng.choice(list(nodes)) if step % 3 else next(iter(nodes)))
        if step % 10 == 0:
            now += rng.choice([1, 32, 100, 5000 if step % 500 == 0 else 32])
            while (due := one.due(now)) is not None:
                assert due[0] in nodes
                if one.event(*due, now) & ACTIONS["END"]:
                    gone(due[0])
        assert one.count == len(nodes)
        if step % 600 == 0:
            one.audit()
            assert all(one.find(key) == number for key, number in keys.items())
            assert all(one.walk(owner) == numbers for owner, numbers in lists.items())
            for number, node in nodes.items():
                told = one.node(number)
                assert (told["key"], told["other"], one.kept(number)) == (node["key"], node["other"], node["data"])
    for number in list(nodes):
        gone(number)
    assert one.count == one.timers == 0 and not any(one.walk(owner) for owner in lists)
    one.audit()


# ---- in the core -----------------------------------------------------------------------------------------------------

UPSTREAM = ("127.0.0.1", 5060)
WS, UDP, TCP, LOCAL = 1, 3, 4, 5


class Callbacks:
    """A loop that keeps what it is to call."""

    def __init__(self) -> None:
        self.waiting: list[Callable[[], Any]] = []

    def call_later(self, delay: float, callback: Callable[[], Any]) -> None:
        assert delay == STEP_MS / 1000
        self.waiting.append(callback)

    def call(self) -> None:
        waiting, self.waiting = self.waiting, []
        for callback in waiting:
            callback()


class Stream(probe_core.Dummy):
    """A TCP connection that was accepted."""

    remote_pair = ("127.0.0.1", 40_001)


class Core:
    """An Edge whose clock is the test's, between clients that are Dummies and an upstream that is one."""

    def __init__(self, kind: int = UDP, **options: Any) -> None:
        policy = SimpleNamespace(on_request=None, on_close=None, request_methods=None, identity=None)
        self.loop = Callbacks()
        self.edge = probe_core.ClockedEdge(
            self.loop, ConnectionTable(10), policy, advertise=b"127.0.0.1:5070", names=[("127.0.0.1", 5070)],
            secret=bytes(16), epoch=7, **options)  # fmt: skip
        assert isinstance(self.edge, Edge)
        self.edge.now = START_MS
        self.upstream = probe_core.Dummy(kind)
        self.edge.set_upstream(self.upstream, *UPSTREAM, ["127.0.0.1"])
        self.edge.set_udp(self.upstream if kind == UDP else probe_core.Dummy(UDP))

    def client(self, port: int = 1) -> tuple[probe_core.Dummy, bytes]:
        """A client that has registered, and its Path; OverflowError where its REGISTER got a 503."""
        client = probe_core.Dummy(WS)
        assert probe_core.receiver_opened(self.edge, client, ("192.0.2.1", port), ("127.0.0.1", 80), {}, "x")
        self.from_client(client, plain(b"REGISTER", b"SIP/2.0/WS a.invalid;branch=z9hG4bK1"))
        if not self.upstream.sent:
            self.close(client)
            raise OverflowError
        register = self.upstream.sent.pop()
        self.from_upstream(response(register, 200))
        client.sent.clear()
        return client, line(register, b"Path")

    def from_client(self, client: probe_core.Dummy, message: bytes) -> None:
        probe_core.receiver_received(self.edge, client, message)

    def from_upstream(self, message: bytes, transport: probe_core.Dummy | None = None) -> None:
        probe_core.receiver_received(self.edge, transport or self.upstream, message, UPSTREAM)

    def close(self, client: probe_core.Dummy) -> None:
        probe_core.receiver_closed(self.edge, client, 0, 1000, b"")

    def run(self, duration: int) -> None:
        """Let the time pass, in steps of the wheel."""
        end = self.edge.now + duration
        while self.edge.now < end:
            self.edge.now = min(end, self.edge.now + STEP_MS)
            self.loop.call()
            assert len(self.loop.waiting) <= 1

    @property
    def count(self) -> int:
        count: int = self.edge.state()["transactions"]
        return count

    def assert_empty(self) -> None:
        """Nothing is left, and nothing will be called any more."""
        state = self.edge.state()
        assert (state["transactions"], state["timers"]) == (0, 0)
        self.loop.call()
        assert self.loop.waiting == []


def plain(method: bytes, via: bytes, route: bytes = b"", call_id: bytes = b"call-1", cseq: int = 1) -> bytes:
    return b"".join(
        [
            method + b" sip:bob@example.com SIP/2.0\r\nVia: " + via + b"\r\n",
            b"Route: " + route + b"\r\n" if route else b"",
            b"Max-Forwards: 70\r\nFrom: <sip:a@x>;tag=1\r\nTo: <sip:b@x>\r\nCall-ID: " + call_id,
            b"\r\nCSeq: %d " % cseq + method + b"\r\nContent-Length: 0\r\n\r\n",
        ]
    )


def line(message: bytes, name: bytes, place: int = 0) -> bytes:
    """One of the values of the lines with this name."""
    lines = [one for one in message.split(b"\r\n") if one.startswith(name + b": ")]
    return lines[place][len(name) + 2 :]


def response(request: bytes, status: int, *, vias: slice = slice(None)) -> bytes:
    """A response as the far end gives it: the request's Vias (or some), From, To with a tag, Call-ID and CSeq."""
    lines = request.split(b"\r\n")
    kept = [one for one in lines if one.startswith(b"Via: ")][vias]
    kept += [one for one in lines if one.startswith((b"From: ", b"Call-ID: ", b"CSeq: "))]
    kept += [one if b";tag=" in one else one + b";tag=2" for one in lines if one.startswith(b"To: ")]
    return b"\r\n".join([b"SIP/2.0 %d R" % status, *kept, b"Content-Length: 0", b"", b""])


def starts(messages: list[bytes]) -> list[bytes]:
    """The first two words of each."""
    return [b" ".join(message.split(b" ")[:2]) for message in messages]


def invite_out(core: Core, client: probe_core.Dummy, branch: bytes = b"z9hG4bKc", call_id: bytes = b"call-1") -> bytes:
    """The INVITE of a client, as the upstream gets it."""
    core.from_client(client, plain(b"INVITE", b"SIP/2.0/WS a.invalid;branch=" + branch, call_id=call_id))
    sent: bytes = core.upstream.sent.pop()
    assert sent.startswith(b"INVITE ")
    return sent


def invite_in(core: Core, client: probe_core.Dummy, path: bytes, via: bytes = b"SIP/2.0/UDP 127.0.0.1;branch=z9hG4bKi",
              call_id: bytes = b"call-1", transport: probe_core.Dummy | None = None) -> bytes:  # fmt: skip
    """An INVITE of the upstream, as the client gets it."""
    core.from_upstream(plain(b"INVITE", via, path, call_id), transport)
    sent: bytes = client.sent.pop()
    assert sent.startswith(b"INVITE ")
    return sent


@pytest.mark.rule(12)
@pytest.mark.rule(30)
def test_a_client_cannot_end_the_transaction_of_another() -> None:
    # Both slots are in their first generation; the second client has learnt the Vias of the first one's INVITE.
    core = Core(max_client_transactions=4)
    first_client, first_path = core.client(1)
    second, second_path = core.client(2)
    invite = invite_in(core, first_client, first_path)
    core.from_upstream(plain(b"OPTIONS", b"SIP/2.0/UDP 127.0.0.1;branch=z9hG4bKo", second_path, b"call-2"))
    options = second.sent.pop()
    assert core.count == 4  # two halves each
    forged = [
        response(invite, 200),
        response(options, 200).replace(line(options, b"Via", 1), line(invite, b"Via", 1)),
        response(options, 200).replace(line(options, b"Via"), line(invite, b"Via")),
    ]
    core.from_client(second, forged[0])
    core.from_client(second, forged[2])
    assert core.count == 4 and core.upstream.sent == []
    # What it answers to its own request is all that it can end.
    for _ in range(3):
        core.from_client(second, forged[1])
    assert core.count == 3
    core.run(500)
    assert b"SIP/2.0 200" not in starts(core.upstream.sent[1:])
    core.from_client(first_client, response(invite, 200))
    assert starts(core.upstream.sent)[-1] == b"SIP/2.0 200"
    core.run(40_000)
    core.assert_empty()


def test_the_limit_of_a_client_counts_what_waits_for_an_answer() -> None:
    core = Core(max_client_transactions=4)
    client, path = core.client(1)
    other, other_path = core.client(2)
    asked = []
    for number in range(6):
        core.from_upstream(plain(b"MESSAGE", b"SIP/2.0/UDP 127.0.0.1;branch=z9hG4bKm%d" % number, path))
        asked += client.sent
        client.sent.clear()
    assert len(asked) == 4 and starts(core.upstream.sent) == [b"SIP/2.0 503"] * 2
    core.upstream.sent.clear()
    invite_in(core, other, other_path)
    core.from_client(client, response(asked[0], 200))
    core.from_upstream(plain(b"MESSAGE", b"SIP/2.0/UDP 127.0.0.1;branch=z9hG4bKn", path))
    assert len(client.sent) == 1
    core.close(client)
    core.close(other)
    core.run(40_000)
    core.assert_empty()


@pytest.mark.rule(37)
@pytest.mark.rule(36)
def test_an_invite_that_nobody_answers_gets_a_100_at_once_and_a_408_after_32_seconds() -> None:
    core = Core()
    client, _ = core.client()
    invite = invite_out(core, client)
    core.run(200)
    assert starts(client.sent) == [b"SIP/2.0 100"] and line(client.sent[0], b"Via").endswith(b"branch=z9hG4bKc")
    core.run(31_000)
    assert core.upstream.sent == [invite] * 5 and len(client.sent) == 1
    core.run(2000)
    assert core.upstream.sent == [invite] * 6
    assert starts(client.sent) == [b"SIP/2.0 100", b"SIP/2.0 408"]
    assert client.sent[1].count(b"Via: ") == 1 and b";tag=" in line(client.sent[1], b"To")
    assert core.count == 1  # it waits for the ACK
    core.from_client(client, plain(b"ACK", b"SIP/2.0/WS a.invalid;branch=z9hG4bKc"))
    assert core.upstream.sent == [invite] * 6
    core.assert_empty()


@pytest.mark.rule(36)
def test_a_100_of_the_far_end_is_not_passed_on_and_a_180_takes_its_place() -> None:
    core = Core()
    client, _ = core.client()
    invite = invite_out(core, client)
    core.from_upstream(response(invite, 100))
    assert client.sent == []
    core.from_upstream(response(invite, 180))
    core.run(1000)
    assert starts(client.sent) == [b"SIP/2.0 180"]
    assert core.upstream.sent == []
    core.close(client)
    core.run(40_000)


@pytest.mark.rule(44)
def test_a_request_that_is_no_invite_gets_no_408_no_provisional_and_no_late_answer() -> None:
    core = Core()
    client, path = core.client()
    core.from_client(client, plain(b"MESSAGE", b"SIP/2.0/WS a.invalid;branch=z9hG4bKm"))
    message = core.upstream.sent.pop()
    core.from_upstream(response(message, 183))
    core.run(33_000)
    assert client.sent == []
    core.assert_empty()
    core.from_upstream(response(message, 200))
    assert client.sent == [] and core.edge.state()["late"] == 1
    # Towards a client: the same, and its server half goes as well.
    core.upstream.sent.clear()
    core.from_upstream(plain(b"MESSAGE", b"SIP/2.0/UDP 127.0.0.1;branch=z9hG4bKm", path))
    received = client.sent.pop()
    assert core.count == 2
    core.run(33_000)
    core.assert_empty()
    core.from_client(client, response(received, 200))
    assert core.upstream.sent == []


@pytest.mark.rule(41)
@pytest.mark.parametrize("kind", [UDP, TCP])
def test_a_failed_invite_is_acknowledged_here_with_its_branch_and_the_ack_of_the_client_goes_no_further(
    kind: int,
) -> None:
    core = Core(kind)
    client, _ = core.client()
    invite = invite_out(core, client)
    core.from_upstream(response(invite, 486))
    (ack,) = core.upstream.sent
    assert ack.startswith(b"ACK sip:bob@example.com SIP/2.0\r\n") and line(ack, b"Via") == line(invite, b"Via")
    assert ack.count(b"\r\nVia: ") == 1 and line(ack, b"To").endswith(b";tag=2") and line(ack, b"CSeq") == b"1 ACK"
    core.from_client(client, plain(b"ACK", b"SIP/2.0/WS a.invalid;branch=z9hG4bKc"))
    assert core.upstream.sent == [ack] and starts(client.sent) == [b"SIP/2.0 486"]
    if kind == UDP:
        core.from_upstream(response(invite, 486))
        assert core.upstream.sent == [ack, ack] and len(client.sent) == 1
    else:
        core.assert_empty()
    core.run(33_000)
    core.assert_empty()


@pytest.mark.rule(41)
def test_the_ack_to_a_2xx_has_no_transaction() -> None:
    core = Core()
    client, _ = core.client()
    invite = invite_out(core, client)
    core.from_upstream(response(invite, 200))
    assert core.count == 0
    core.from_client(client, plain(b"ACK", b"SIP/2.0/WS a.invalid;branch=z9hG4bKd"))
    assert starts(core.upstream.sent) == [b"ACK sip:bob@example.com"] and core.count == 0
    core.from_upstream(response(invite, 200))
    assert starts(client.sent) == [b"SIP/2.0 200"] * 2
    core.run(200)
    core.assert_empty()


def test_timer_c_cancels_and_gives_up_32_seconds_later() -> None:
    core = Core()
    client, _ = core.client()
    invite = invite_out(core, client)
    core.from_upstream(response(invite, 180))
    core.run(184_000)
    assert core.upstream.sent == [] and starts(client.sent) == [b"SIP/2.0 180"]
    core.run(1100)
    (cancel,) = core.upstream.sent
    assert cancel.startswith(b"CANCEL ") and line(cancel, b"Via") == line(invite, b"Via")
    core.from_upstream(response(cancel, 200))
    core.run(31_000)
    assert len(client.sent) == 1 and core.upstream.sent == [cancel]
    core.run(1100)
    assert starts(client.sent) == [b"SIP/2.0 180", b"SIP/2.0 408"]
    core.run(33_000)  # no ACK comes: Timer H
    core.assert_empty()


@pytest.mark.rule(45)
@pytest.mark.parametrize("kind", [UDP, TCP])
@pytest.mark.parametrize("heard", [None, 100, 180, 486, 200])
def test_a_client_that_leaves_has_its_invite_cancelled(kind: int, heard: int | None) -> None:
    core = Core(kind)
    client, _ = core.client()
    invite = invite_out(core, client)
    if heard is not None:
        core.from_upstream(response(invite, heard))
    core.upstream.sent.clear()
    core.close(client)
    if heard in (100, 180):
        (cancel,) = core.upstream.sent
        assert cancel.startswith(b"CANCEL ") and line(cancel, b"Via") == line(invite, b"Via")
        core.from_upstream(response(cancel, 200))
        core.from_upstream(response(invite, 487))
        assert starts(core.upstream.sent)[1:] == [b"ACK sip:bob@example.com"]
    elif heard is None:
        core.run(1000)
        assert core.upstream.sent == []  # it is repeated no more
        core.from_upstream(response(invite, 180))
        assert starts(core.upstream.sent) == [b"CANCEL sip:bob@example.com"]
    core.run(70_000)
    core.assert_empty()
    assert client.sent == [] or heard is not None


@pytest.mark.rule(45)
@pytest.mark.parametrize("method", [b"INVITE", b"MESSAGE", b"BYE"])
def test_what_a_client_was_asked_is_answered_for_it_when_it_leaves(method: bytes) -> None:
    core = Core()
    client, path = core.client()
    core.from_upstream(plain(method, b"SIP/2.0/UDP 127.0.0.1;branch=z9hG4bKi", path))
    core.close(client)
    assert starts(core.upstream.sent) == [b"SIP/2.0 480"] and core.upstream.sent[0].count(b"Via: ") == 1
    # Over UDP the answer may get lost: it is repeated when asked for, though nobody is there any more.
    core.from_upstream(plain(method, b"SIP/2.0/UDP 127.0.0.1;branch=z9hG4bKi", path))
    assert core.upstream.sent[0] == core.upstream.sent[-1] and len(core.upstream.sent) == 2
    core.run(40_000)
    core.assert_empty()


@pytest.mark.rule(45)
def test_a_bye_goes_on_when_its_client_has_left_and_a_message_does_not() -> None:
    core = Core()
    client, _ = core.client()
    for method in (b"BYE", b"MESSAGE"):
        core.from_client(client, plain(method, b"SIP/2.0/WS a.invalid;branch=z9hG4bKm"))
    core.close(client)
    bye, _message = core.upstream.sent
    core.run(33_000)
    assert core.upstream.sent.count(bye) == 11 and len(core.upstream.sent) == 12
    core.assert_empty()


def test_an_ack_that_names_another_client_than_its_invite_ends_nothing() -> None:
    core = Core()
    first_client, first_path = core.client(1)
    second, second_path = core.client(2)
    via = b"SIP/2.0/UDP 127.0.0.1;branch=z9hG4bKi"
    invite_in(core, first_client, first_path, via)
    core.from_upstream(plain(b"ACK", via, second_path))
    assert core.count == 2
    for client in (second, first_client):
        core.close(client)
    core.run(40_000)
    core.assert_empty()


@pytest.mark.rule(21)
@pytest.mark.parametrize("status", [180, 200, 486])
def test_a_response_without_a_via_below_ours_is_dropped(status: int) -> None:
    # Sent on it would have no Via at all, and the true answer would find its transaction gone.
    core = Core()
    client, path = core.client()
    invite = invite_in(core, client, path)
    core.from_client(client, response(invite, status, vias=slice(1)))
    assert core.upstream.sent == [] and core.count == 2
    core.from_client(client, response(invite, status))
    assert starts(core.upstream.sent) == [b"SIP/2.0 %d" % status]


@pytest.mark.rule(43)
@pytest.mark.parametrize("method", [b"INVITE", b"MESSAGE"])
@pytest.mark.parametrize("after", ["answer", "leave", "nothing"])
def test_nothing_is_left_of_what_came_over_a_stream_that_is_gone(method: bytes, after: str) -> None:
    core = Core(TCP)
    client, path = core.client()
    stream = Stream(TCP)
    assert core.edge.add_stream(stream)
    core.from_upstream(plain(method, b"SIP/2.0/TCP 127.0.0.1;branch=z9hG4bKi", path), stream)
    received = client.sent.pop()
    core.run(1000)
    core.edge.drop_stream(stream)
    if after == "answer":
        core.from_client(client, response(received, 200))
    elif after == "leave":
        core.close(client)
    core.run(250_000)
    core.assert_empty()
    if after != "leave":
        core.close(client)
        core.run(40_000)
        core.assert_empty()


@pytest.mark.rule(43)
def test_a_lost_upstream_counts_as_503_for_whoever_waits() -> None:
    core = Core(TCP)
    client, _ = core.client()
    invite_out(core, client)
    core.from_client(client, plain(b"MESSAGE", b"SIP/2.0/WS a.invalid;branch=z9hG4bKm"))
    other, _ = core.client(2)
    ringing = invite_out(core, other, call_id=b"call-9")
    core.from_upstream(response(ringing, 180))
    core.close(other)
    client.sent.clear()
    core.edge.lost(core.upstream)
    assert sorted(starts(client.sent)) == [b"SIP/2.0 503"] * 2
    assert core.count == 1  # the INVITE's server half, which waits for its ACK
    core.from_client(client, plain(b"ACK", b"SIP/2.0/WS a.invalid;branch=z9hG4bKc"))
    core.run(100)
    core.assert_empty()


def test_what_could_not_be_delivered_is_answered_with_503() -> None:
    core = Core(TCP)
    client, _ = core.client()
    invite = invite_out(core, client)
    core.from_client(client, plain(b"MESSAGE", b"SIP/2.0/WS a.invalid;branch=z9hG4bKm"))
    message = core.upstream.sent.pop()
    core.edge.undelivered([invite, message, invite, b"ACK broken", b"\r\n\r\n"])
    assert starts(client.sent) == [b"SIP/2.0 503"] * 2
    core.run(33_000)
    core.assert_empty()


@pytest.mark.parametrize("method", [b"INVITE", b"MESSAGE"])
def test_an_answer_that_found_no_room_over_udp_is_the_one_that_is_repeated(method: bytes) -> None:
    core = Core()
    client, path = core.client()
    via = b"SIP/2.0/UDP 127.0.0.1;branch=z9hG4bKi"
    core.from_upstream(plain(method, via, path))
    received = client.sent.pop()
    if method == b"INVITE":
        core.from_client(client, response(received, 180))
    core.upstream.sent.clear()
    core.upstream.full = True
    core.from_client(client, response(received, 486))
    core.upstream.full = False
    core.from_upstream(plain(method, via, path))
    core.run(1000 if method == b"INVITE" else 0)
    assert set(starts(core.upstream.sent)) == {b"SIP/2.0 486"}
    core.run(40_000)
    core.assert_empty()


def test_a_cancel_that_found_no_room_over_udp_is_repeated() -> None:
    core = Core()
    client, _ = core.client()
    invite = invite_out(core, client)
    core.from_upstream(response(invite, 180))
    core.upstream.full = True
    core.from_client(client, plain(b"CANCEL", b"SIP/2.0/WS a.invalid;branch=z9hG4bKc"))
    core.upstream.full = False
    core.run(600)
    assert starts(core.upstream.sent) == [b"CANCEL sip:bob@example.com"]
    core.run(70_000)
    core.assert_empty()


@pytest.mark.parametrize("kind", [UDP, TCP])
@pytest.mark.parametrize("method", [b"INVITE", b"MESSAGE", b"ACK"])
def test_a_request_that_finds_no_room_leaves_nothing_behind(method: bytes, kind: int) -> None:
    core = Core(kind)
    client, path = core.client()
    core.upstream.full = True
    core.from_client(client, plain(method, b"SIP/2.0/WS a.invalid;branch=z9hG4bKc"))
    assert starts(client.sent) == ([] if method == b"ACK" else [b"SIP/2.0 503"]) and core.count == 0
    core.upstream.full, client.full = False, True
    core.from_upstream(plain(method, b"SIP/2.0/UDP 127.0.0.1;branch=z9hG4bKi", path))
    assert starts(core.upstream.sent) == ([] if method == b"ACK" else [b"SIP/2.0 430"]) and core.count == 0
    core.run(1000)
    core.assert_empty()


def test_a_full_table_refuses_and_recovers() -> None:
    core = Core(max_transactions=5)
    client, path = core.client()
    for number in range(5):
        core.from_upstream(plain(b"INVITE", b"SIP/2.0/UDP 127.0.0.1;branch=z9hG4bKf%d" % number, path))
    assert len(client.sent) == 2 and starts(core.upstream.sent) == [b"SIP/2.0 503"] * 3 and core.count == 4
    core.upstream.sent.clear()
    core.from_client(client, plain(b"INVITE", b"SIP/2.0/WS a.invalid;branch=z9hG4bKg"))
    assert starts(client.sent)[2:] == [b"SIP/2.0 503"] and core.upstream.sent == []
    for invite in client.sent[:2]:
        core.from_client(client, response(invite, 200))
    core.run(33_000)
    core.assert_empty()
    client.sent.clear()
    invite_in(core, client, path)
    assert core.count == 2


def test_an_idle_core_calls_nothing_and_one_with_timers_calls_once_per_step() -> None:
    core = Core()
    client, _ = core.client()
    core.run(40_000)
    assert core.loop.waiting == []
    for number in range(3):
        core.from_client(client, plain(b"MESSAGE", b"SIP/2.0/WS a.invalid;branch=z9hG4bK%d" % number))
    assert len(core.loop.waiting) == 1
    core.run(1000)
    assert len(core.loop.waiting) == 1


@pytest.mark.parametrize("kind", [UDP, TCP])
@pytest.mark.parametrize("seed", range(6))
def test_whatever_happens_nothing_is_left_in_the_end(seed: int, kind: int) -> None:
    # Requests, answers in any order and twice, CANCELs, ACKs, clients that leave, streams that break, a small table.
    rng = random.Random(seed)
    core = Core(kind, max_transactions=60, max_client_transactions=25)
    clients: list[tuple[probe_core.Dummy, bytes]] = []
    ports = itertools.count(1)
    down: list[tuple[probe_core.Dummy, bytes]] = []  # requests that clients have got
    up: list[bytes] = []  # requests that the upstream has got
    stream: Stream | None = None
    methods = [b"INVITE", b"INVITE", b"MESSAGE", b"BYE", b"CANCEL", b"ACK"]

    def collect() -> None:
        for message in core.upstream.sent:
            assert message.count(b"\r\nVia: ") >= 1
            if not message.startswith(b"SIP/2.0"):
                up.append(message)
        core.upstream.sent.clear()
        for client, _ in clients:
            down.extend((client, message) for message in client.sent if not message.startswith(b"SIP/2.0"))
            client.sent.clear()
        del up[:-40], down[:-40]

    for _ in range(4000):
        act = rng.randrange(12)
        branch = b"z9hG4bK%d" % rng.randrange(12)
        if act == 0 and len(clients) < 5:
            with suppress(OverflowError):
                clients.append(core.client(next(ports)))
        elif act == 1 and clients and rng.random() < 0.1:
            core.close(clients.pop(rng.randrange(len(clients)))[0])
        elif act == 2 and rng.random() < 0.1:
            if stream is None:
                stream = Stream(TCP)
                assert core.edge.add_stream(stream)
            else:
                core.edge.drop_stream(stream)
                stream = None
        elif act == 3 and rng.random() < 0.05 and kind == TCP:
            core.edge.lost(core.upstream)
        elif act in (4, 5) and clients:
            client, _ = rng.choice(clients)
            core.from_client(client, plain(rng.choice(methods), b"SIP/2.0/WS a.invalid;branch=" + branch))
        elif act in (6, 7) and clients:
            _, path = rng.choice(clients)
            core.from_upstream(plain(rng.choice(methods), b"SIP/2.0/UDP 127.0.0.1;branch=" + branch, path), stream)
        elif act in (8, 9) and up:
            core.from_upstream(response(rng.choice(up), rng.choice([100, 180, 200, 302, 486, 503])))
        elif act == 3:
            core.upstream.full = rng.random() < 0.3
        elif act in (10, 11) and down:
            client, request = rng.choice(down)
            vias = slice(1) if rng.random() < 0.1 else slice(None)
            core.from_client(client, response(request, rng.choice([100, 180, 200, 302, 486, 503]), vias=vias))
        if rng.random() < 0.2:
            core.run(rng.choice([10, 100, 600, 5000]))
        collect()
    core.upstream.full = False
    for client, _ in clients:
        core.close(client)
    core.run(300_000)
    core.assert_empty()


def test_the_test_clock_is_not_in_the_way_of_the_real_one() -> None:
    # The same Edge without a clock of the test's turns its wheel by itself.
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        policy = SimpleNamespace(on_request=None, on_close=None, request_methods=None, identity=None)
        edge = Edge(loop, ConnectionTable(10), policy, advertise=b"127.0.0.1:5070", names=[("127.0.0.1", 5070)],
                    secret=bytes(16), epoch=7)  # fmt: skip
        upstream, client = probe_core.Dummy(UDP), probe_core.Dummy(WS)
        edge.set_upstream(upstream, *UPSTREAM, ["127.0.0.1"])
        assert probe_core.receiver_opened(edge, client, ("192.0.2.1", 1), ("127.0.0.1", 80), {}, "x")
        probe_core.receiver_received(edge, client, plain(b"INVITE", b"SIP/2.0/WS a.invalid;branch=z9hG4bKr"))
        async with asyncio.timeout(5):
            while not client.sent:
                await asyncio.sleep(0.001)
        assert starts(client.sent) == [b"SIP/2.0 100"]

    asyncio.run(scenario())
