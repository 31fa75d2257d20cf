# Two browser phones and whatever stands between them: calls, messages, registrations, as the libraries see them.
# The same tests run without the edge (peers-alone): a failure there is the phones' or Kamailio's, not ours.

from collections.abc import Iterator

import pytest

from .conftest import FAILED, PLACES, Place
from .peers import session_description
from .phones import Phone

PAIRS = {"jssip": ("jssip", "jssip"), "sipjs": ("sipjs", "sipjs"), "jssip-sipjs": ("jssip", "sipjs")}
EDGES = [name for name in PLACES if name != "peers-alone"]

# What a browser offers: larger than the 1300 bytes beyond which UDP is a second choice (RFC 3261 18.1.1).
SDP_BYTES = 2500
# Not registered: 404 of a registrar that knows no such user, 480 of one that does, 430 of the edge (RFC 5626 5.3).
NOT_THERE = {404, 480}
NOT_THERE_ANY_MORE = {404, 480, 430}

on_every_place = pytest.mark.parametrize("place", list(PLACES), indirect=True, scope="module")
on_every_edge = pytest.mark.parametrize("place", EDGES, indirect=True, scope="module")


@pytest.fixture(params=list(PAIRS))
def pair(request: pytest.FixtureRequest, place: Place) -> Iterator[list[Phone]]:
    libraries = PAIRS[request.param]
    yield place.registered(libraries, sdp_bytes=SDP_BYTES)
    if request.node.stash.get(FAILED, True):
        place.discard(libraries)


def each_way(pair: list[Phone]) -> Iterator[tuple[Phone, Phone]]:
    for caller, callee in (pair, pair[::-1]):
        for phone in pair:
            phone.forget()
        yield caller, callee


def ring(caller: Phone, callee: Phone) -> None:
    """A call up to the moment in which one rings and the other hears it."""
    caller.command("call", target=callee.uri)
    incoming = callee.expect("incoming")
    assert incoming["from"] == caller.uri
    assert incoming["sdp"] == session_description(SDP_BYTES)
    caller.expect("progress", code=180)


def talk(caller: Phone, callee: Phone) -> None:
    """A call up to the moment in which both are in it: the ACK has gone all the way."""
    ring(caller, callee)
    callee.command("answer")
    assert caller.expect("accepted")["sdp"] == session_description(SDP_BYTES)
    caller.expect("confirmed")
    callee.expect("received", method="ACK")
    callee.expect("confirmed")


@on_every_place
def test_a_call_is_answered_and_the_caller_hangs_up(pair: list[Phone]) -> None:
    for caller, callee in each_way(pair):
        talk(caller, callee)
        caller.command("hangup")
        callee.expect("ended", by="remote")
        caller.expect("received", code=200, method="BYE")


@on_every_place
def test_a_call_is_answered_and_the_callee_hangs_up(pair: list[Phone]) -> None:
    for caller, callee in each_way(pair):
        talk(caller, callee)
        callee.command("hangup")
        caller.expect("ended", by="remote")
        callee.expect("received", code=200, method="BYE")


@on_every_place
def test_a_caller_who_cancels_gets_487_and_the_callee_stops_ringing(pair: list[Phone]) -> None:
    for caller, callee in each_way(pair):
        ring(caller, callee)
        caller.command("cancel")
        callee.expect("received", method="CANCEL")
        callee.expect("ended", by="remote")
        caller.expect("received", code=200, method="CANCEL")
        caller.expect("received", code=487, method="INVITE")
        caller.expect("failed")


@on_every_place
def test_a_callee_who_is_busy_is_heard_as_486(pair: list[Phone]) -> None:
    for caller, callee in each_way(pair):
        ring(caller, callee)
        callee.command("reject", code=486)
        caller.expect("failed", code=486)


@on_every_place
@pytest.mark.parametrize("text", ["Grüße aus Köln — 你好, мир ✓ 🦊", "é" * 3000], ids=["short", "6 kB"])
def test_a_message_arrives_letter_for_letter(pair: list[Phone], text: str) -> None:
    for sender, receiver in each_way(pair):
        sender.command("message", target=receiver.uri, text=text)
        message = receiver.expect("message")
        assert message["text"] == text
        assert message["from"] == sender.uri
        sender.expect("message_sent", code=200)


@on_every_place
def test_nobody_is_reached_under_a_name_that_nobody_registered(pair: list[Phone]) -> None:
    for caller, _ in each_way(pair):
        caller.command("call", target="sip:nobody@example.com")
        assert caller.expect("failed")["code"] in NOT_THERE
        caller.command("message", target="sip:nobody@example.com", text="?")
        assert caller.expect("message_failed")["code"] in NOT_THERE


@on_every_place
def test_a_phone_is_not_reached_after_it_unregistered_but_again_after_it_registered(pair: list[Phone]) -> None:
    for caller, callee in each_way(pair):
        callee.command("unregister")
        callee.expect("unregistered", code=200)
        caller.command("call", target=callee.uri)
        assert caller.expect("failed")["code"] in NOT_THERE
        assert not callee.saw("incoming")
        callee.register()
        talk(caller, callee)
        caller.command("hangup")
        callee.expect("ended", by="remote")


@on_every_edge
def test_a_call_to_a_tab_that_vanished_fails_at_once(place: Place) -> None:
    with place.phone("jssip") as caller, place.phone("sipjs") as callee:
        caller.register()
        callee.register()
        callee.command("drop")
        callee.expect("disconnected")
        caller.command("call", target=callee.uri)
        assert caller.expect("failed", timeout=3)["code"] in NOT_THERE_ANY_MORE


@on_every_edge
def test_a_caller_whose_tab_vanishes_stops_the_ringing(place: Place) -> None:
    with place.phone("sipjs") as caller, place.phone("jssip") as callee:
        callee.register()
        caller.command("call", target=callee.uri)
        callee.expect("incoming")
        caller.command("drop")
        callee.expect("received", method="CANCEL")
        callee.expect("ended", by="remote")


@on_every_edge
@pytest.mark.rule(12)
def test_the_keep_alive_of_sipjs_is_answered(place: Place) -> None:
    with place.phone("sipjs", keepalive_s=1) as phone:
        phone.expect("keepalive", timeout=4)
        phone.register()
