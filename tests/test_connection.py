"""fastws/_connection: slots and generations, the index by address and port, and what policy holds of a connection.

No socket and no loop: the table is driven through tests/probe_core. What a client, the proxy or a policy does with a
connection over the wire is tested elsewhere.
"""

from __future__ import annotations

import copy
import gc
import ipaddress
import pickle
import random
import subprocess
import sys
import time
import weakref
from collections import OrderedDict
from collections.abc import MutableMapping
from typing import Any, Literal

import pytest

import fastws
from fastws import Connection, Terminator
from fastws._connection import TERMINATORS, Connections, ConnectionTable
from tests import probe_core
from tests.conftest import ROOT

LOCAL = ("127.0.0.1", 8080)
CHUNK = 256  # slots that are taken from the system at a time


def enter(table: ConnectionTable, source: tuple[str, int], **attributes: Any) -> int:
    """Claim a slot for this address; its number."""
    number = probe_core.claim(table, source, LOCAL, probe_core.Dummy(), attributes)
    assert number is not None
    return number


def address(number: int) -> tuple[str, int]:
    """One of many addresses, a third of them IPv6; different numbers give different ones."""
    port = 1024 + number % 60000
    if number % 3 == 0:
        return f"2001:db8::{number % 65536:x}:{number // 65536:x}", port
    return f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}", port


class Held:
    """A table with one open connection and its Dummy transport."""

    def __init__(self, identity: str | None = None, source: tuple[str, int] = ("192.0.2.1", 40000)) -> None:
        self.table = ConnectionTable(10, identity)
        self.transport = probe_core.Dummy()
        self.attributes: dict[Any, Any] = {}
        self.number = probe_core.claim(self.table, source, LOCAL, self.transport, self.attributes)
        self.connection = probe_core.handle(self.table, self.number)

    @property
    def identity(self) -> bytes | None:
        value: bytes | None = probe_core.slot(self.table, self.number)["identity"]
        return value

    def end(self) -> None:
        probe_core.release(self.table, self.number)


# ---- slots and generations -------------------------------------------------------------------------------------------


def test_a_claimed_slot_is_open_and_begins_empty() -> None:
    table = ConnectionTable(10)
    before = time.time()
    number = enter(table, ("192.0.2.1", 40000), user="alice")
    slot = probe_core.slot(table, number)
    assert slot["open"] and slot["transport"] and slot["attributes"] and not slot["handle"]
    assert slot["generation"] == 1
    assert slot["transactions"] == probe_core.NONE
    assert before <= slot["opened_at"] <= time.time()
    zero = ("secure", "ping_open", "messages_in", "messages_out", "last_in_ms", "ping_ms", "partial_ms", "host",
            "transaction_count")  # fmt: skip
    assert not any(slot[name] for name in zero)
    assert table.slots() == (CHUNK, 1, 1)


def test_a_new_tenant_finds_nothing_of_the_last_one() -> None:
    table = ConnectionTable(10, "user")
    number = enter(table, ("192.0.2.1", 40000), user="alice")
    changed = {"secure": True, "messages_in": 7, "messages_out": 8, "ping_open": True, "partial_ms": 9}
    probe_core.slot_change(table, number, transaction_count=3, **changed)
    probe_core.release(table, number)
    assert enter(table, ("192.0.2.2", 40001)) == number
    slot = probe_core.slot(table, number)
    assert not any(slot[name] for name in (*changed, "transaction_count"))
    assert slot["identity"] is None


def test_releasing_empties_the_slot_and_a_second_time_does_nothing() -> None:
    table = ConnectionTable(10)
    number = enter(table, ("192.0.2.1", 40000), user="alice")
    probe_core.handle(table, number)
    for _ in range(2):
        probe_core.release(table, number)
        slot = probe_core.slot(table, number)
        assert not (slot["open"] or slot["transport"] or slot["attributes"] or slot["handle"])
        assert slot["generation"] == 2
        assert table.slots() == (CHUNK, 0, 0)
    probe_core.release(table, CHUNK + 1)  # never existed


@pytest.mark.rule(30)
def test_a_slot_is_used_again_only_under_another_generation() -> None:
    table = ConnectionTable(10)
    generations = []
    for port in range(40000, 40200):
        number = enter(table, ("192.0.2.1", port))
        assert number == 0
        generation = probe_core.slot(table, number)["generation"]
        assert probe_core.tenant(table, number, generation)
        assert not any(probe_core.tenant(table, number, old) for old in generations)
        generations.append(generation)
        probe_core.release(table, number)
        assert not probe_core.tenant(table, number, generation)
    assert len(set(generations)) == len(generations)


@pytest.mark.rule(30)
def test_the_generation_skips_zero_when_it_wraps() -> None:
    # A transport without a connection says generation 0: no tenant may have it.
    table = ConnectionTable(10)
    number = enter(table, ("192.0.2.1", 40000))
    probe_core.slot_change(table, number, generation=2**32 - 1)
    probe_core.release(table, number)
    assert enter(table, ("192.0.2.1", 40000)) == number
    assert probe_core.slot(table, number)["generation"] == 1
    assert not probe_core.tenant(table, number, 0)


def test_no_slot_is_found_beyond_the_last_one() -> None:
    table = ConnectionTable(10)
    assert not probe_core.tenant(table, 0, 1)
    enter(table, ("192.0.2.1", 40000))
    assert not probe_core.tenant(table, CHUNK, 1)
    assert not probe_core.tenant(table, probe_core.NONE, 1)
    with pytest.raises(IndexError):
        probe_core.slot(table, CHUNK)


def test_slots_never_move_while_the_table_grows() -> None:
    table = ConnectionTable(5000)
    places = {}
    for number in range(5000):
        got = enter(table, address(number), number=number)
        assert got not in places
        places[got] = probe_core.slot_address(table, got), number
    assert len({place for place, _ in places.values()}) == 5000
    for slot, (place, number) in places.items():
        assert probe_core.slot_address(table, slot) == place
        assert probe_core.handle(table, slot)["number"] == number
    assert table.slots() == (5000 + CHUNK - 5000 % CHUNK, 5000, 5000)


def test_the_limit_refuses_and_is_open_again_after_an_end() -> None:
    table = ConnectionTable(3)
    numbers = [enter(table, ("192.0.2.1", port)) for port in (1, 2, 3)]
    assert probe_core.claim(table, ("192.0.2.1", 4), LOCAL, probe_core.Dummy(), {}) is None
    assert probe_core.find(table, ("192.0.2.1", 4)) is None
    assert table.slots()[1:] == (3, 3)
    probe_core.release(table, numbers[1])
    assert enter(table, ("192.0.2.1", 4)) == numbers[1]
    assert probe_core.claim(table, ("192.0.2.1", 5), LOCAL, probe_core.Dummy(), {}) is None


def test_the_memory_of_ended_connections_is_used_again() -> None:
    table = ConnectionTable(1000)
    for _ in range(3):
        numbers = [enter(table, address(number)) for number in range(1000)]
        used = table.bytes_used()
        for number in numbers:
            probe_core.release(table, number)
        assert table.bytes_used() == used
    # What an idle connection costs here; uvloop's and the kernel's share is measured elsewhere.
    assert used <= 1024 * 300


# ---- the index -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "same", "other"),
    [
        ("192.0.2.1", "192.0.2.1", "192.0.2.2"),
        ("2001:db8::1", "2001:0DB8:0:0:0:0:0:1", "2001:db8::2"),
        ("::1", "[::1]", "::2"),
        ("::", "0:0:0:0:0:0:0:0", "0.0.0.0"),
        ("::ffff:192.0.2.1", "::FFFF:c000:201", "192.0.2.1"),
        ("255.255.255.255", "255.255.255.255", "ffff:ffff::"),
    ],
)
def test_the_index_knows_an_address_in_every_spelling_and_no_other(host: str, same: str, other: str) -> None:
    table = ConnectionTable(10)
    number = enter(table, (host, 40000))
    assert probe_core.find(table, (same, 40000)) == number
    assert probe_core.find(table, (other, 40000)) is None
    for port in (0, 39999, 40001, 65535):
        assert probe_core.find(table, (host, port)) is None


@pytest.mark.parametrize("port", [0, 1, 80, 32767, 32768, 65535])
def test_ports_of_both_ends_of_the_range_are_indexed(port: int) -> None:
    table = ConnectionTable(10)
    number = enter(table, ("192.0.2.1", port))
    assert probe_core.find(table, ("192.0.2.1", port)) == number
    assert probe_core.handle(table, number).source == ("192.0.2.1", port)


def test_of_two_connections_with_one_address_the_newest_answers() -> None:
    # Two listeners, one peer address and port: both are there, and each ends without the other.
    table = ConnectionTable(10)
    connections = Connections(table)
    key = ("192.0.2.1", 40000)
    older = enter(table, key, which="older")
    newer = enter(table, key, which="newer")
    assert connections[key]["which"] == "newer"
    assert [one["which"] for one in connections.all(*key)] == ["older", "newer"]
    assert len(connections) == 2
    assert list(connections) == [key, key]
    probe_core.release(table, newer)
    assert connections[key]["which"] == "older"
    assert [one["which"] for one in connections.all(*key)] == ["older"]
    newest = enter(table, key, which="newest")
    assert newest == newer  # the slot's number says nothing about age
    assert connections[key]["which"] == "newest"
    probe_core.release(table, older)
    assert connections[key]["which"] == "newest"
    probe_core.release(table, newest)
    assert key not in connections and connections.all(*key) == []


def test_a_slot_with_a_low_number_may_be_the_newest() -> None:
    table = ConnectionTable(10)
    key = ("192.0.2.1", 40000)
    low = enter(table, ("192.0.2.9", 9))
    older = enter(table, key, which="older")
    probe_core.release(table, low)
    assert enter(table, key, which="newer") == low < older
    assert Connections(table)[key]["which"] == "newer"


@pytest.mark.parametrize("seed", range(3))
def test_the_index_agrees_with_a_dictionary_under_a_random_load(seed: int) -> None:
    # Few addresses and many equal ones, so that runs in the index grow long and deletions move others back.
    rng = random.Random(seed)
    table = ConnectionTable(400)
    connections = Connections(table)
    addresses = [address(rng.randrange(1 << 20)) for _ in range(300)]
    model: dict[tuple[str, int], OrderedDict[int, None]] = {pair: OrderedDict() for pair in addresses}
    open_slots: dict[int, tuple[str, int]] = {}
    for step in range(15_000):
        # The load swings between nearly full and nearly empty.
        filling = (step // 1500) % 2 == 0
        if rng.random() < (0.7 if filling else 0.3):
            pair = rng.choice(addresses)
            number = probe_core.claim(table, pair, LOCAL, probe_core.Dummy(), {})
            if len(open_slots) == 400:
                assert number is None
            else:
                assert number not in open_slots
                open_slots[number] = pair
                model[pair][number] = None
        elif open_slots:
            number = rng.choice(list(open_slots))
            probe_core.release(table, number)
            del model[open_slots.pop(number)][number]
        pair = rng.choice(addresses)
        expected = next(reversed(model[pair]), None)
        assert probe_core.find(table, pair) == expected
        if step % 500 == 0:
            assert table.slots()[1:] == (len(open_slots), len(open_slots))
            for pair, numbers in model.items():
                assert probe_core.find(table, pair) == next(reversed(numbers), None)
                found = [probe_core.slot(table, number)["serial"] for number in numbers]
                assert found == sorted(found)
                assert len(connections.all(*pair)) == len(numbers)
    for number in list(open_slots):
        probe_core.release(table, number)
    assert table.slots()[1:] == (0, 0)
    assert all(probe_core.find(table, pair) is None for pair in addresses)


def test_deletion_inside_a_run_that_wraps_round_the_end_of_the_index_loses_nobody() -> None:
    table = ConnectionTable(1000)
    size = probe_core.index_size(table)
    # Addresses whose home is one of the last two places: their run goes on at the front.
    wanted = [
        pair
        for pair in (address(number) for number in range(4000))
        if probe_core.index_home(table, pair) >= size - 2
    ][:12]
    assert len(wanted) == 12
    for gone in range(12):
        numbers = {pair: enter(table, pair) for pair in wanted}
        assert probe_core.index_size(table) == size
        probe_core.release(table, numbers.pop(wanted[gone]))
        for pair, number in numbers.items():
            assert probe_core.find(table, pair) == number
        assert probe_core.find(table, wanted[gone]) is None
        for number in numbers.values():
            probe_core.release(table, number)


def test_the_index_is_never_more_than_half_full() -> None:
    table = ConnectionTable(3000)
    for number in range(3000):
        enter(table, address(number))
        assert table.slots()[2] * 2 <= probe_core.index_size(table)
    assert all(probe_core.find(table, address(number)) is not None for number in range(3000))


def test_two_tables_place_the_same_addresses_differently() -> None:
    # Who knew the place could fill one run with ports of his choice.
    homes = [[probe_core.index_home(table, address(number)) for number in range(40)]
             for table in (ConnectionTable(10), ConnectionTable(10))]  # fmt: skip
    assert homes[0] != homes[1]


def test_who_has_an_ipv6_network_cannot_choose_his_place_in_the_index() -> None:
    # 64 bits of the address and 16 of the port are the client's choice: a hash that mixes them without its key first
    # lets him cancel one with the other. Every such pair of shifts, in either byte order.
    table = ConnectionTable(10)
    size = probe_core.index_size(table)
    for order in ("little", "big"):
        for shift in range(0, 49):
            homes = [
                probe_core.index_home(table, (network_address((port << shift) ^ 0x1234_5678_9ABC_DEF0, order), port))
                for port in range(1024, 1024 + 4 * size)
            ]
            assert len(set(homes)) > size * 0.8, (order, shift)


def network_address(low: int, order: Literal["little", "big"]) -> str:
    """The address of 2001:db8::/64 with these lower 64 bits."""
    return str(ipaddress.IPv6Address(bytes.fromhex("20010db800000000") + low.to_bytes(8, order)))


@pytest.mark.parametrize(
    "hosts",
    [["192.0.2.1"], [f"10.0.{n // 256}.{n % 256}" for n in range(512)], [f"2001:db8::{n:x}" for n in range(512)]],
    ids=["ports of one host", "IPv4 hosts", "IPv6 hosts"],
)
def test_neighbouring_addresses_do_not_crowd_in_the_index(hosts: list[str]) -> None:
    table = ConnectionTable(20_000)
    pairs = [(host, port) for host in hosts for port in range(1024, 1024 + 8192 // len(hosts))]
    for pair in pairs:
        enter(table, pair)
    used = {probe_core.index_home(table, pair) for pair in pairs}
    # 8,192 balls in 16,384 or 32,768 boxes hit 6,446 or more on average.
    assert len(used) > 6000


# ---- connections -----------------------------------------------------------------------------------------------------


def test_connections_is_a_mapping_of_pairs_the_oldest_first() -> None:
    table = ConnectionTable(10)
    connections = Connections(table)
    assert len(connections) == 0 and list(connections) == [] and not connections
    pairs = [("192.0.2.3", 3), ("2001:db8::1", 2), ("192.0.2.1", 1)]
    for pair in pairs:
        enter(table, pair, pair=pair)
    assert len(connections) == 3 and list(connections) == pairs and list(connections.keys()) == pairs
    assert [one["pair"] for one in connections.values()] == pairs
    assert [(key, one["pair"]) for key, one in connections.items()] == [(pair, pair) for pair in pairs]
    assert connections[pairs[1]] is connections.get(pairs[1])
    assert connections["192.0.2.3", 3]["pair"] == pairs[0]
    assert pairs[2] in connections and ("192.0.2.1", 2) not in connections
    assert connections.get(("192.0.2.1", 2)) is None


def test_an_iteration_sees_the_connections_that_were_there_when_it_began() -> None:
    table = ConnectionTable(100)
    connections = Connections(table)
    numbers = [enter(table, ("192.0.2.1", port)) for port in range(1, 51)]
    seen = []
    for position, connection in enumerate(connections.values()):
        seen.append(connection.source[1])
        probe_core.release(table, numbers[position])
        enter(table, ("192.0.2.2", position + 1))
    assert seen == list(range(1, 51))
    assert len(connections) == 50


@pytest.mark.parametrize(
    "key",
    [None, 1, "192.0.2.1", (), ("192.0.2.1",), ("192.0.2.1", 1, 2), ("localhost", 1), ("", 1), (b"192.0.2.1", 1),
     ("192.0.2.1", -1), ("192.0.2.1", 65536), ("192.0.2.1", "1"), ("192.0.2.1", None), (1, 1), ("192.0.2.1 ", 1),
     ("192.0.2.256", 1), ("1.2.3", 1), ("2001:db8::1::2", 1), ("[192.0.2.1", 1), ("ä.example", 1), ("x" * 10_000, 1),
     ("192.0.2.1", 2**70)],
    ids=repr,
)  # fmt: skip
def test_a_key_that_is_no_address_and_port_is_a_key_error(key: Any) -> None:
    table = ConnectionTable(10)
    enter(table, ("192.0.2.1", 1))
    connections = Connections(table)
    with pytest.raises(KeyError):
        connections[key]
    assert key not in connections
    assert connections.get(key) is None


def test_all_refuses_what_is_no_address() -> None:
    connections = Connections(ConnectionTable(10))
    with pytest.raises(ValueError, match="IP address"):
        connections.all("localhost", 1)
    with pytest.raises(ValueError, match="IP address"):
        connections.all("192.0.2.1", 65536)


def test_the_public_connections_looks_into_the_table_it_was_given() -> None:
    assert isinstance(fastws.connections, Connections)
    connections = Connections()
    assert len(connections) == 0
    table = ConnectionTable(10)
    enter(table, ("192.0.2.1", 1))
    connections.bind(table)
    assert list(connections) == [("192.0.2.1", 1)]


# ---- Connection ------------------------------------------------------------------------------------------------------


def test_a_connection_says_where_it_comes_from_and_what_it_has_carried() -> None:
    held = Held(source=("2001:db8::7", 55555))
    probe_core.slot_change(held.table, held.number, secure=True, messages_in=3, messages_out=2**40)
    one = held.connection
    assert one.source == ("2001:db8::7", 55555)
    assert one.local == LOCAL
    assert one.secure is True and one.open is True
    assert (one.messages_in, one.messages_out) == (3, 2**40)
    assert abs(one.opened_at - time.time()) < 60
    assert one is probe_core.handle(held.table, held.number)


@pytest.mark.parametrize("name", ["source", "local", "secure", "opened_at", "messages_in", "messages_out", "open"])
def test_what_a_connection_says_cannot_be_set(name: str) -> None:
    with pytest.raises(AttributeError):
        setattr(Held().connection, name, None)


def test_a_connection_can_be_read_after_its_end() -> None:
    held = Held("user")
    one = held.connection
    one["user"] = "alice"
    probe_core.slot_change(held.table, held.number, secure=True, messages_in=3, messages_out=4)
    before = (one.source, one.local, one.secure, one.opened_at, one.messages_in, one.messages_out)
    held.end()
    enter(held.table, ("198.51.100.1", 1), user="mallory")  # the same slot
    assert one.open is False
    assert (one.source, one.local, one.secure, one.opened_at, one.messages_in, one.messages_out) == before
    assert dict(one) == {"user": "alice"}
    assert repr(one) == "<Connection 192.0.2.1:40000 closed {'user': 'alice'}>"


@pytest.mark.rule(30)
def test_an_ended_connection_does_nothing_to_the_next_tenant_of_its_slot() -> None:
    held = Held("user")
    held.end()
    other = probe_core.Dummy()
    assert probe_core.claim(held.table, ("198.51.100.1", 1), LOCAL, other, {"user": "bob"}) == held.number
    held.connection.close(1008, "late")
    held.connection["user"] = "mallory"
    del held.connection["user"]
    assert held.transport.finished == [] and other.finished == []
    assert held.identity == b"bob"
    assert probe_core.handle(held.table, held.number)["user"] == "bob"


def test_what_a_policy_made_of_a_connection_nobody_asked_for_stays_with_its_dict() -> None:
    # The dict is the one that accept() made: no copy, whether a Connection exists or not.
    held = Held()
    held.attributes["late"] = 1
    assert held.connection["late"] == 1
    held.connection["own"] = 2
    assert held.attributes == {"late": 1, "own": 2}


def test_a_connection_is_not_made_by_calling_its_class() -> None:
    with pytest.raises(TypeError, match="accepting a handshake"):
        Connection()


def test_a_connection_made_without_a_table_raises_and_does_not_crash() -> None:
    # Nobody needs it, but a policy is Python, and Python must not be able to end the process by it.
    script = (
        "from fastws import Connection\n"
        "one = Connection.__new__(Connection)\n"
        "assert one.open is False\n"
        "one.close()\n"
        "for name in ('source', 'local', 'secure'):\n"
        "    try: getattr(one, name)\n"
        "    except TypeError: pass\n"
        "print('alive')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip()) == (0, "alive"), done.stderr[-500:]


def test_connections_are_equal_only_to_themselves_and_may_be_keys() -> None:
    first, second = Held().connection, Held().connection
    assert first == first and first != second and len({first, second, first}) == 2
    assert first and second  # also without attributes


# ---- close -----------------------------------------------------------------------------------------------------------

POLICY = TERMINATORS.index(Terminator.POLICY)


def test_close_ends_the_transport_with_code_reason_and_terminator_policy() -> None:
    held = Held()
    held.connection.close()
    held.connection.close(4000, "bye")
    held.connection.close(code=1001, reason="ü")
    assert held.transport.finished == [(1008, b"", POLICY), (4000, b"bye", POLICY), (1001, "ü".encode(), POLICY)]


@pytest.mark.parametrize("code", [1000, 1001, 1003, 1007, 1008, 1011, 1014, 3000, 4403, 4999])
def test_close_takes_every_code_that_a_server_may_send(code: int) -> None:
    held = Held()
    held.connection.close(code)
    assert held.transport.finished == [(code, b"", POLICY)]


@pytest.mark.parametrize(
    "code", [-1, 0, 1, True, 999, 1002, 1004, 1005, 1006, 1015, 1016, 2000, 2999, 5000, 65536, 2**32 + 1000, 2**80]
)
def test_close_refuses_every_other_code(code: int) -> None:
    held = Held()
    with pytest.raises(ValueError, match="close code"):
        held.connection.close(code)
    assert held.transport.finished == []


@pytest.mark.parametrize(("code", "reason"), [("1000", ""), (1000.0, ""), (None, ""), (1000, b"x"), (1000, None)])
def test_close_refuses_arguments_of_another_type(code: Any, reason: Any) -> None:
    held = Held()
    with pytest.raises(TypeError):
        held.connection.close(code, reason)
    assert held.transport.finished == []


@pytest.mark.parametrize(
    ("reason", "sent"),
    [
        ("x" * 123, b"x" * 123),
        ("x" * 124, b"x" * 123),
        ("x" * 122 + "é", b"x" * 122),
        ("x" * 121 + "é", b"x" * 121 + "é".encode()),
        ("x" * 120 + "\N{GRINNING FACE}", b"x" * 120),
        ("€" * 50, "€".encode() * 41),
        ("a\ud800b", b"a?b"),
    ],
)
def test_the_reason_is_cut_to_123_bytes_and_never_inside_a_character(reason: str, sent: bytes) -> None:
    held = Held()
    held.connection.close(1008, reason)
    assert held.transport.finished == [(1008, sent, POLICY)]
    sent.decode()


def test_close_checks_its_arguments_after_the_end_too_and_then_does_nothing() -> None:
    held = Held()
    held.end()
    held.connection.close(1008, "late")
    with pytest.raises(ValueError, match="close code"):
        held.connection.close(1006)
    assert held.transport.finished == []


# ---- attributes ------------------------------------------------------------------------------------------------------


def test_a_connection_is_a_mutable_mapping() -> None:
    one = Held().connection
    assert isinstance(one, MutableMapping)
    one["a"] = 1
    one.update({"b": 2}, c=3)
    one.update([("d", 4)])
    assert dict(one) == {"a": 1, "b": 2, "c": 3, "d": 4} and len(one) == 4
    assert {**one} == dict(one) and list(one) == ["a", "b", "c", "d"]
    assert list(one.keys()) == list("abcd") and list(one.values()) == [1, 2, 3, 4]
    assert next(iter(one.items())) == ("a", 1) and ("b", 2) in one.items() and 3 in one.values()
    assert "a" in one and "z" not in one
    assert one.get("a") == 1 and one.get("z") is None and one.get("z", 5) == 5
    assert one.pop("a") == 1 and one.pop("a", None) is None and one.pop("a", 6) == 6
    with pytest.raises(KeyError):
        one.pop("a")
    assert one.setdefault("b", 9) == 2 and one.setdefault("e") is None and one["e"] is None
    key, _ = one.popitem()
    assert key not in one and len(one) == 3
    with pytest.raises(KeyError):
        one["nothing"]
    with pytest.raises(KeyError):
        del one["nothing"]
    one.clear()
    assert len(one) == 0 and bool(one) and list(one) == []
    with pytest.raises(KeyError):
        one.popitem()


def test_keys_may_be_anything_hashable_and_nothing_else() -> None:
    one = Held("user").connection
    one[None] = one[1] = one[("a", 2)] = "x"
    assert set(one) == {None, 1, ("a", 2)}
    with pytest.raises(TypeError):
        one[[]] = 1


# ---- identity --------------------------------------------------------------------------------------------------------


def test_the_identity_is_copied_when_the_slot_is_claimed() -> None:
    table = ConnectionTable(10, "user")
    assert table.identity_name == "user"
    number = enter(table, ("192.0.2.1", 1), user="älice", other="x")
    assert probe_core.slot(table, number)["identity"] == "älice".encode()


def test_the_identity_follows_its_attribute() -> None:
    held = Held("user")
    one = held.connection
    assert held.identity is None
    one["user"] = "alice"
    assert held.identity == b"alice"
    one["other"] = "bob"
    assert held.identity == b"alice"
    one.update(user="a" * 1000)
    assert held.identity == b"a" * 1000
    del one["user"]
    assert held.identity is None
    one.setdefault("user", "carol")
    assert held.identity == b"carol"
    assert one.pop("user") == "carol" and held.identity is None
    one["user"] = "dave"
    one.clear()
    assert held.identity is None
    one["user"] = "erin"
    one.popitem()
    assert held.identity is None


@pytest.mark.parametrize("value", [None, "", 0, 7, b"alice", ["alice"], "\ud800", object()], ids=repr)
def test_a_value_that_is_no_text_identifies_nobody(value: Any) -> None:
    held = Held("user")
    held.connection["user"] = "alice"
    held.connection["user"] = value
    assert held.identity is None
    assert held.connection["user"] == value


def test_without_an_identity_attribute_nothing_is_copied() -> None:
    held = Held(None)
    held.connection[None] = "alice"
    held.connection["user"] = "alice"
    assert held.identity is None


def test_the_identity_does_not_change_with_the_object_that_was_given() -> None:
    class Name(str):
        __slots__ = ()

    held = Held("user")
    held.connection["user"] = Name("alice")
    assert held.identity == b"alice"
    gc.collect()
    assert held.identity == b"alice"


# ---- references ------------------------------------------------------------------------------------------------------


class Value:
    """Something that can be watched."""


def test_a_release_lets_go_of_transport_attributes_and_connection() -> None:
    table = ConnectionTable(10)
    transport, value = probe_core.Dummy(), Value()
    watched = weakref.ref(transport), weakref.ref(value)
    number = probe_core.claim(table, ("192.0.2.1", 1), LOCAL, transport, {"value": value})
    probe_core.handle(table, number)
    del transport, value
    assert all(one() is not None for one in watched)
    probe_core.release(table, number)
    assert all(one() is None for one in watched)


def test_who_holds_the_connection_keeps_the_attributes_and_not_the_transport() -> None:
    held = Held()
    held.connection["value"] = value = Value()
    watched_value, watched_transport = weakref.ref(value), weakref.ref(held.transport)
    connection = held.connection
    held.end()
    del held, value
    assert watched_value() is not None and watched_transport() is None
    del connection
    assert watched_value() is None


def test_a_table_that_goes_lets_go_of_what_is_still_open() -> None:
    table = ConnectionTable(10)
    transport, value = probe_core.Dummy(), Value()
    watched = weakref.ref(transport), weakref.ref(value)
    probe_core.claim(table, ("192.0.2.1", 1), LOCAL, transport, {"value": value})
    del transport, value, table
    assert all(one() is None for one in watched)


def test_ten_thousand_connections_leave_nothing_behind() -> None:
    table = ConnectionTable(100, "user")
    connections = Connections(table)
    transport = probe_core.Dummy()
    marker = Value()

    def rounds(count: int) -> None:
        for port in range(1, count + 1):
            number = probe_core.claim(table, ("192.0.2.1", port), LOCAL, transport, {"user": f"u{port}", "m": marker})
            if port % 2:
                connections["192.0.2.1", port]["user"] = "other"
            if port % 3 == 0:
                connections.all("192.0.2.1", port)
            probe_core.release(table, number)

    rounds(200)
    gc.collect()
    before = len(gc.get_objects()), sys.getrefcount(transport), sys.getrefcount(marker), sys.getrefcount(table)
    used = table.bytes_used()
    rounds(10_000)
    gc.collect()
    assert len(gc.get_objects()) <= before[0] + 20
    assert (sys.getrefcount(transport), sys.getrefcount(marker), sys.getrefcount(table)) == before[1:]
    assert table.bytes_used() == used and table.slots()[1:] == (0, 0)


def test_a_destructor_may_look_at_the_table_while_its_slot_is_released() -> None:
    table = ConnectionTable(10)
    connections = Connections(table)
    seen: list[Any] = []

    class Curious:
        def __del__(self) -> None:
            seen.append((len(connections), list(connections), ("192.0.2.1", 1) in connections))
            seen.append(probe_core.claim(table, ("192.0.2.2", 2), LOCAL, probe_core.Dummy(), {}))

    number = probe_core.claim(table, ("192.0.2.1", 1), LOCAL, probe_core.Dummy(), {"c": Curious()})
    probe_core.release(table, number)
    assert seen == [(0, [], False), number]
    assert list(connections) == [("192.0.2.2", 2)]
    assert probe_core.slot(table, number)["transport"]


def test_a_connection_is_neither_copied_nor_pickled() -> None:
    # A second object would not hear of the end of the connection.
    connection = Held().connection
    for make in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError):
            make(connection)


# ---- Terminator ------------------------------------------------------------------------------------------------------


def test_terminators_are_the_eight_words_of_the_contract() -> None:
    words = ["client", "policy", "operator", "timeout", "protocol", "network", "overload", "shutdown"]
    assert [str(one) for one in TERMINATORS] == words
    assert set(TERMINATORS) == set(Terminator)
    assert Terminator("client") is Terminator.CLIENT and f"{Terminator.CLIENT}" == "client" == Terminator.CLIENT
