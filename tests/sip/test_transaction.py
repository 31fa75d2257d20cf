"""sip/transaction as a table: keys, chains by hash, lists by owner; against plain dictionaries."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest

from fastws._connection import ConnectionTable
from fastws._core import Edge
from tests import probe_core

KEY = bytes(range(16))
BRANCH, SENT_BY, CALL = b"z9hG4bK776", b"c1.invalid", b"call@c1.invalid"


def table() -> probe_core.Transactions:
    return probe_core.Transactions(KEY)


# ---- keys ------------------------------------------------------------------------------------------------------------


@pytest.mark.rule(35)
def test_every_part_of_the_key_tells_transactions_apart() -> None:
    # RFC 3261 17.2.3, with the origin added: branches of browsers collide.
    one = table()
    base = (0, 5, 1, BRANCH, SENT_BY, CALL, 1)
    others = [
        (1, 5, 1, BRANCH, SENT_BY, CALL, 1),  # of the other side
        (0, 6, 1, BRANCH, SENT_BY, CALL, 1),  # of another client
        (0, 5, 2, BRANCH, SENT_BY, CALL, 1),  # of a later client in the same slot
        (0, 5, 1, BRANCH + b"7", SENT_BY, CALL, 1),
        (0, 5, 1, BRANCH, b"c2.invalid", CALL, 1),
        (0, 5, 1, BRANCH, b"c1.invalid:5060", CALL, 1),
        (0, 5, 1, BRANCH, SENT_BY, CALL + b"x", 1),
        (0, 5, 1, BRANCH, SENT_BY, CALL, 2),
    ]
    keys = {one.key(*parts) for parts in (base, *others)}
    assert len(keys) == 9
    assert one.key(*base) == one.key(*base)


def test_a_byte_that_moves_from_one_part_to_the_next_makes_another_key() -> None:
    one = table()
    assert one.key(0, 1, 1, b"ab", b"c", b"d", 1) != one.key(0, 1, 1, b"a", b"bc", b"d", 1)
    assert one.key(0, 1, 1, b"a", b"bc", b"d", 1) != one.key(0, 1, 1, b"a", b"b", b"cd", 1)
    assert one.key(0, 1, 1, b"", b"", b"", 1) != one.key(0, 1, 1, None, b"a", b"", 1)
    assert one.key(0, 1, 1, None, None, b"", 1) == one.key(0, 1, 1, b"", b"", b"", 1)


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


# ---- the table -------------------------------------------------------------------------------------------------------


def test_what_was_added_is_found_until_it_is_removed() -> None:
    one = table()
    assert one.find(7) is None and one.count == 0
    number = one.add("a", 7, slot=3, generation=9, serial=11, peer=13)
    assert one.find(7) == number and one.count == 1
    assert one.node(number) == (3, 9, 11, 13)
    assert one.walk("a") == [number] and one.oldest("a") == number
    one.remove("a", number)
    assert one.find(7) is None and one.count == 0
    assert one.walk("a") == [] and one.oldest("a") is None


def test_keys_of_one_bucket_do_not_hide_each_other() -> None:
    one = table()
    keys = [5 + (n << 20) for n in range(40)]
    numbers = {key: one.add("a", key) for key in keys}
    for gone in (keys[20], keys[0], keys[-1]):
        one.remove("a", numbers.pop(gone))
        assert one.find(gone) is None
        assert all(one.find(key) == number for key, number in numbers.items())


def test_the_oldest_of_an_owner_is_the_one_that_came_first() -> None:
    one = table()
    numbers = [one.add("a", key) for key in range(10)]
    other = one.add("b", 99)
    for number in numbers:
        assert one.oldest("a") == number
        one.remove("a", number)
    assert one.oldest("a") is None and one.oldest("b") == other


@pytest.mark.parametrize("seed", range(3))
def test_a_random_load_agrees_with_a_dictionary(seed: int) -> None:
    rng = random.Random(seed)
    one = table()
    model: dict[int, tuple[int, int]] = {}  # key -> number, owner
    owners: dict[int, list[int]] = {owner: [] for owner in range(20)}
    for step in range(8000):
        filling = (step // 2000) % 2 == 0
        if rng.random() < (0.75 if filling else 0.25):
            key = rng.choice([rng.randrange(2**64), rng.randrange(64) << 32 | rng.randrange(4)])
            if key in model:
                continue
            owner = rng.randrange(20)
            number = one.add(owner, key, slot=owner, serial=step)
            assert number not in owners[owner]
            model[key] = (number, owner)
            owners[owner].append(number)
        elif model:
            key = rng.choice(list(model)) if step % 3 else next(iter(model))
            number, owner = model.pop(key)
            owners[owner].remove(number)
            one.remove(owner, number)
            assert one.find(key) is None
        assert one.count == len(model)
        if step % 400 == 0:
            assert all(one.find(key) == number for key, (number, _) in model.items())
            for owner, numbers in owners.items():
                assert one.walk(owner) == numbers[::-1]
                assert one.oldest(owner) == (numbers[0] if numbers else None)
    for key, (number, owner) in model.items():
        one.remove(owner, number)
        assert one.find(key) is None
    assert one.count == 0


def test_thousands_are_found_after_the_buckets_have_grown() -> None:
    one = table()
    numbers = {key << 8: one.add("a", key << 8) for key in range(5000)}  # all in one of the first 256 buckets
    assert one.capacity >= 5000
    assert all(one.find(key) == number for key, number in numbers.items())
    assert len(one.walk("a")) == 5000


def test_places_are_used_again() -> None:
    one = table()
    for _ in range(3):
        for key in range(64):
            one.add("a", key)
        assert one.capacity == 64
        for number in one.walk("a"):
            one.remove("a", number)


# ---- in the core -----------------------------------------------------------------------------------------------------

UPSTREAM = ("127.0.0.1", 5060)


class Core:
    """An Edge between clients that are Dummies and an upstream that is one."""

    def __init__(self, **options: Any) -> None:
        policy = SimpleNamespace(on_request=None, on_close=None, request_methods=None, identity=None)
        self.edge = Edge(None, ConnectionTable(10), policy, advertise=b"127.0.0.1:5070", names=[("127.0.0.1", 5070)],
                         secret=bytes(16), epoch=7, **options)  # fmt: skip
        self.upstream = probe_core.Dummy(3)
        self.edge.set_upstream(self.upstream, *UPSTREAM, ["127.0.0.1"])
        self.edge.set_udp(self.upstream)

    def client(self, port: int) -> tuple[probe_core.Dummy, bytes]:
        """A registered client and its Path."""
        client = probe_core.Dummy(1)
        assert probe_core.receiver_opened(self.edge, client, ("192.0.2.1", port), ("127.0.0.1", 80), {}, "x")
        probe_core.receiver_received(self.edge, client, plain(b"REGISTER", b"SIP/2.0/WS a.invalid;branch=z9hG4bK1"))
        return client, line(self.upstream.sent.pop(), b"Path")

    def from_upstream(self, message: bytes) -> None:
        probe_core.receiver_received(self.edge, self.upstream, message, UPSTREAM)

    @property
    def count(self) -> int:
        count: int = self.edge.state()["transactions"]
        return count


def plain(method: bytes, via: bytes, route: bytes = b"", call_id: bytes = b"call-1") -> bytes:
    return b"".join(
        [
            method + b" sip:bob@example.com SIP/2.0\r\nVia: " + via + b"\r\n",
            b"Route: " + route + b"\r\n" if route else b"",
            b"Max-Forwards: 70\r\nFrom: <sip:a@x>;tag=1\r\nTo: <sip:b@x>\r\nCall-ID: " + call_id,
            b"\r\nCSeq: 1 " + method + b"\r\nContent-Length: 0\r\n\r\n",
        ]
    )


def line(message: bytes, name: bytes, place: int = 0) -> bytes:
    """One of the values of the lines with this name."""
    lines = [one for one in message.split(b"\r\n") if one.startswith(name + b": ")]
    return lines[place][len(name) + 2 :]


def ok(*vias: bytes, method: bytes = b"INVITE", call_id: bytes = b"call-1") -> bytes:
    lines = [b"SIP/2.0 200 OK", *(b"Via: " + via for via in vias), b"From: <sip:a@x>;tag=1", b"To: <sip:b@x>;tag=2"]
    lines += [b"Call-ID: " + call_id, b"CSeq: 1 " + method, b"Content-Length: 0", b"", b""]
    return b"\r\n".join(lines)


@pytest.mark.rule(12)
@pytest.mark.rule(30)
def test_a_client_cannot_end_the_transaction_of_another() -> None:
    # Both slots are in their first generation; the second client has learnt the Vias of the first one's INVITE.
    core = Core(transactions_limit=4)
    first, first_path = core.client(1)
    second, second_path = core.client(2)
    core.from_upstream(plain(b"INVITE", b"SIP/2.0/UDP 127.0.0.1;branch=z9hG4bKi", first_path))
    core.from_upstream(plain(b"OPTIONS", b"SIP/2.0/UDP 127.0.0.1;branch=z9hG4bKo", second_path, b"call-2"))
    assert core.count == 1
    invite, options = first.sent.pop(), second.sent.pop()
    forged = ok(line(options, b"Via"), line(invite, b"Via", 1))
    for _ in range(3):
        probe_core.receiver_received(core.edge, second, forged)
    assert core.count == 1
    # The second client's own count and list are as they were: it may have as many transactions as allowed.
    for number in range(8):
        via = b"SIP/2.0/UDP 127.0.0.1;branch=z9hG4bK%d" % number
        core.from_upstream(plain(b"INVITE", via, second_path, b"call-3"))
        assert core.count == 1 + min(number + 1, 4)
    probe_core.receiver_closed(core.edge, second, 0, 1000, b"")
    assert core.count == 1
    probe_core.receiver_received(core.edge, first, ok(line(invite, b"Via"), line(invite, b"Via", 1)))
    assert core.count == 0


def test_an_ack_that_names_another_client_than_its_invite_ends_nothing() -> None:
    core = Core()
    first, first_path = core.client(1)
    second, second_path = core.client(2)
    via = b"SIP/2.0/UDP 127.0.0.1;branch=z9hG4bKi"
    core.from_upstream(plain(b"INVITE", via, first_path))
    core.from_upstream(plain(b"ACK", via, second_path))
    assert core.count == 1
    for client in (second, first):
        probe_core.receiver_closed(core.edge, client, 0, 1000, b"")
    assert core.count == 0
