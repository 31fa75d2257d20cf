"""Public cases: what the embedded registrar keeps, for how long, and to whom a call goes."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

import pytest

from ..conftest import wait_for
from .harness import (
    Client,
    Setup,
    answer,
    data,
    elements,
    letters,
    method,
    register_message,
    renewed,
    request_uri,
    treat,
    value,
    values,
)

FW = Callable[..., Setup]


def contacts(response: bytes) -> dict[str, dict[str, str]]:
    """The Contact values of a response: URI -> parameters; each of them has an `expires`."""
    found = {}
    for text in elements(response, "contact"):
        match = re.fullmatch(r'(?:"[^"]*"\s*|[\w ]*)<([^>]+)>(.*)', text) or re.fullmatch(r"()?([^;]+)(;.*)?", text)
        assert match is not None, text
        uri, rest = (match[1], match[2]) if match[1] else (match[2], match[3] or "")
        pairs = re.findall(r';\s*([\w.+-]+)(?:\s*=\s*("[^"]*"|[^;"]*))?', rest)
        found[uri] = {name.lower(): text for name, text in pairs}
        assert found[uri].get("expires", "").isdigit(), text  # SIP.js would register in a loop
    assert len(found) == len(elements(response, "contact"))
    return found


def query(client: Client, number: int | str, user: str = "alice") -> dict[str, dict[str, str]]:
    """The bindings of an address of record."""
    message = register_message("query").replace(b"<sip:alice@example.com>", f"<sip:{user}@example.com>".encode())
    [contact] = [line for line in message.split(b"\r\n") if line.startswith(b"Contact")]
    message = message.replace(contact + b"\r\n", b"").replace(b"reg-query", f"query-{number}".encode())
    client.text(renewed(message, f"query{number}"))
    return contacts(client.final(200))


def refused_here(client: Client, message: bytes) -> int:
    client.text(message)
    return int(client.message()[8:11])


# -- C079 --------------------------------------------------------------------------------------------------------------

CAROL = register_message("c4", instance=4).replace(b"alice@example.com", b"carol@example.com")


@pytest.mark.case("C079")
@pytest.mark.parametrize("letter", "abc")
def test_a_star_that_is_not_alone_with_expires_0_is_400_and_nothing_changes(fw: FW, letter: str) -> None:
    setup = fw("")
    first, second = setup.client(), setup.client()
    first.text(register_message("c1", instance=1))
    first.final(200)
    second.text(register_message("c2", instance=2))
    second.final(200)
    before = query(first, f"before-{letter}")
    assert len(before) == 2
    assert refused_here(first, data("C079", "abc".index(letter))) == 400
    assert query(first, f"after-{letter}").keys() == before.keys()


@pytest.mark.case("C079")
def test_a_star_with_expires_0_removes_all_bindings_of_this_address_and_no_other(fw: FW) -> None:
    setup = fw("", own="star")
    first, second, third, carol = (setup.client() for _ in range(4))
    for client, message in (
        (first, register_message("c1", instance=1)),
        (second, register_message("c2", instance=2)),
        (carol, CAROL),
    ):
        client.text(message)
        client.final(200)
    first.text(data("C079", 3))
    assert contacts(first.final(200)) == {}
    third.text(data("C079", 4))
    third.final((480, 404))
    for client in (first, second):
        client.quiet()
    assert len(query(carol, "carol", "carol")) == 1
    assert query(first, "gone") == {}


@pytest.mark.case("C079")
@pytest.mark.parametrize("letter", "abcd")
def test_a_star_goes_upstream_with_a_path_and_without_a_word(fw: FW, letter: str) -> None:
    setup = fw()
    log = setup.edge.log()
    message = data("C079", "abcd".index(letter))
    received = treat(setup, setup.client(), message)
    assert isinstance(received, bytes), received
    assert len(elements(received, "path")) == 1
    assert values(received, "contact") == values(message, "contact")
    assert setup.edge.log() == log


# -- C080 to C082 ------------------------------------------------------------------------------------------------------

ALICE = "sip:alice@c1.invalid;transport=ws"
ALICE2 = "sip:alice2@c1.invalid;transport=ws"
ALICE3 = "sip:alice3@c1.invalid;transport=ws"


@pytest.mark.case("C080")
def test_several_contacts_of_one_register_are_several_bindings(fw: FW) -> None:
    # With a minimum of 60 the 30 seconds of the third would be 423 (C081).
    setup = fw("", None, "min_expires = 1\n", own="several")
    client = setup.client()
    client.text(data("C080", 0))
    listed = contacts(client.final(200))
    assert {uri: parameters["expires"] for uri, parameters in listed.items()} == {
        ALICE: "600", ALICE2: "120", ALICE3: "30",
    }  # fmt: skip
    client.text(data("C080", 1))
    listed = contacts(client.final(200))
    assert listed.keys() == {ALICE2, ALICE3}
    # (c) RFC 5626 6: a reg-id beside another contact that is not being removed
    assert refused_here(client, data("C080", 2)) == 400
    # (d) a query
    client.text(data("C080", 3))
    again = contacts(client.final(200))
    assert again.keys() == {ALICE2, ALICE3}
    assert all(abs(int(again[uri]["expires"]) - int(listed[uri]["expires"])) <= 1 for uri in again)


@pytest.mark.case("C080")
def test_several_contacts_of_which_one_is_too_short_are_423_or_all_kept(fw: FW) -> None:
    setup = fw("", own="too short")
    client = setup.client()
    client.text(data("C080", 0))
    response = client.final((200, 423))
    if response.startswith(b"SIP/2.0 423"):
        assert values(response, "min-expires") == ["60"]
        assert query(client, "short") == {}  # RFC 3261 10.3 item 8: all or nothing
    else:
        assert contacts(response)[ALICE3]["expires"] == "60"


def expiring(step: int, cseq: int = 1) -> bytes:
    """The REGISTER of C081 with the Contact and Expires of this step."""
    carrier = data("C081", 8)
    old = data("C081", 0)
    assert old in carrier
    message = carrier.replace(old, data("C081", step)).replace(b"r-exp-a", b"r-exp-%d" % step)
    return renewed(message.replace(b"CSeq: 1", b"CSeq: %d" % cseq), f"exp{step}x{cseq}")


@pytest.mark.case("C081")
@pytest.mark.parametrize(("letter", "step"), letters("C081"))
def test_how_long_was_granted(fw: FW, letter: str, step: int) -> None:
    setup = fw("", None, "min_expires = 60\nmax_expires = 3600\ndefault_expires = 700\n")
    client = setup.client()
    if letter == "b":
        client.text(register_message("b"))
        client.final(200)
    for cseq in (1, 2):  # the same number again at every refresh
        client.text(expiring(step, cseq))
        if letter == "d":
            response = client.final((423, 200))
            if response.startswith(b"SIP/2.0 423"):
                assert value(response, "min-expires") == "60"
            continue
        if letter in "gh":
            response = client.final((200, 400))
            if response.startswith(b"SIP/2.0 400"):
                continue
        else:
            response = client.final(200)
        listed = contacts(response)
        if letter == "b":
            assert ALICE not in listed
            continue
        granted = int(listed[ALICE]["expires"])
        assert {"a": granted == 180, "c": granted == 700}.get(letter, 60 <= granted <= 3600), granted
        if letter in "gh":
            assert granted == 3600
    client.text(renewed(register_message("end", cseq=9).replace(b"expires=600", b"expires=0"), "end" + letter))
    client.final(200)


@pytest.mark.case("C082")
def test_the_contact_that_comes_back_is_the_clients_own(fw: FW) -> None:
    setup = fw("", own="own contact")
    first, second = setup.client(), setup.client()
    first.text(data("C082", 0))
    assert "outbound" in ", ".join(values(first.final(200), "require"))
    second.text(data("C082", 1))
    response = second.final(200)
    assert "outbound" in ", ".join(values(response, "require"))
    listed = contacts(response)
    assert listed.keys() == {"sip:alice@c1.invalid;transport=ws", "sip:alice@c2.invalid;transport=ws"}
    own = listed["sip:alice@c2.invalid;transport=ws"]
    assert own["expires"] == "300"
    assert own["reg-id"] == "1"
    assert own["+sip.instance"] == '"<urn:uuid:00000000-0000-4000-8000-000000000002>"'
    other = listed["sip:alice@c1.invalid;transport=ws"]
    assert other["+sip.instance"] == '"<urn:uuid:00000000-0000-4000-8000-000000000001>"'


# -- C083, C087 --------------------------------------------------------------------------------------------------------


@pytest.mark.case("C083")
def test_the_same_browser_on_a_new_connection_takes_its_binding_along(fw: FW) -> None:
    setup = fw("", own="new connection")
    old, new, caller = setup.client(), setup.client(), setup.client()
    old.text(register_message("c1"))
    old.final(200)
    new.text(data("C083", 0))
    assert contacts(new.final(200)).keys() == {"sip:xyz@n1.invalid;transport=ws"}
    old.close()
    caller.text(data("C083", 2))
    received = new.message()
    assert method(received) == "INVITE"
    assert request_uri(received) == b"sip:xyz@n1.invalid;transport=ws"
    new.text(answer(received, "486 Busy Here"))
    caller.final(486)


@pytest.mark.case("C083")
def test_two_flows_of_one_instance_stay_and_a_call_goes_to_one_of_them(fw: FW) -> None:
    setup = fw("", own="two flows")
    one, two, caller = setup.client(), setup.client(), setup.client()
    one.text(register_message("c1"))
    one.final(200)
    two.text(data("C083", 0).replace(b"reg-id=1", b"reg-id=2"))
    assert len(contacts(two.final(200))) == 2
    clients = {one, two}
    for number in range(2):
        caller.text(renewed(data("C083", 2), f"083{number}").replace(b"r-new-i", b"r-new-i%d" % number))
        called = set()
        for client in clients:
            if not client.silent(0.1):
                received = client.message()
                assert method(received) == "INVITE"
                called.add(client)
                client.text(answer(received, "486 Busy Here"))
        assert len(called) == 1  # RFC 5626 7: not both
        caller.final(486)
        for client in called:
            client.close()
        clients -= called
        # Until the proxy has seen the end of that flow, a call may still go to it.
        left = len(clients)
        wait_for(lambda left=left, at=number: len(bound(caller, left + 10 * at)) == left)
    assert not clients


def bound(client: Client, number: int) -> dict[str, dict[str, str]]:
    """The bindings of alice, by a REGISTER without a Contact."""
    query = re.sub(rb"Contact: [^\r]*\r\n", b"", register_message("query", cseq=1000 + number))
    client.text(renewed(query, f"query{time.monotonic_ns()}"))
    return contacts(client.final(200))


@pytest.mark.case("C087")
def test_addresses_of_record_are_compared_as_uris(fw: FW) -> None:
    setup = fw("", own="address of record")
    first, second, third = setup.client(), setup.client(), setup.client()
    first.text(data("C087", 0))
    assert len(contacts(first.final(200))) == 1
    second.text(data("C087", 1))
    assert len(contacts(second.final(200))) == 2
    third.text(data("C087", 2))
    assert contacts(third.final(200)).keys() == {"sip:Alice@c3.invalid;transport=ws"}
