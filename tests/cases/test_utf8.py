"""Public cases: text that is UTF-8, text that is not, and binary frames."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from .harness import RECORD, TEXT, Setup, assert_forwarded, body, data, fill, letters, status, value

FW = Callable[..., Setup]


@pytest.mark.case("C025")
@pytest.mark.rule(8)
def test_a_binary_frame_is_sip_and_its_answer_is_text(fw: FW) -> None:
    setup = fw()
    client = setup.client()
    message = data("C025", 0)
    client.binary(message)
    received = setup.up.request("REGISTER")
    assert_forwarded(message, received)
    response = fill(data("C025", 1), received)
    setup.up.reply(received, response)
    got = client.receive()
    assert got.opcode == TEXT
    assert status(got.payload) == 200
    assert value(got.payload, "contact") == "<sip:alice@c1.invalid;transport=ws>;expires=600"
    assert value(got.payload, "via") == value(message, "via")


@pytest.mark.case("C026")
@pytest.mark.rule(7)
@pytest.mark.parametrize(("letter", "step"), [one for one in letters("C026") if one[0] in "abcd"])
def test_text_that_is_not_utf8_closes_1007_and_goes_nowhere(fw: FW, letter: str, step: int) -> None:
    setup = fw("udp", RECORD)
    client = setup.client()
    asked = len(setup.notes("request"))
    client.text(data("C026", step))
    assert client.closed() == 1007, letter
    assert len(setup.notes("request")) == asked
    setup.quiet()


@pytest.mark.case("C026")
@pytest.mark.rule(8)
def test_a_byte_that_is_not_utf8_goes_through_in_a_binary_frame(fw: FW) -> None:
    setup = fw("udp", RECORD)
    client = setup.client()
    message = data("C026", 4)
    client.binary(message)
    received = setup.up.request("MESSAGE")
    assert_forwarded(message, received)
    assert b"caf\xe9\r\n" in received


@pytest.mark.case("C029")
@pytest.mark.rule(19)
def test_a_content_length_that_ends_inside_a_character_cuts_there(fw: FW) -> None:
    setup = fw("tcp")
    client = setup.client()
    client.text(data("C029"))
    received = setup.up.request("MESSAGE")
    assert body(received) == b"ab\xe2"
    assert value(received, "content-length") == "3"
    setup.up.answer(received)
    client.final(200)
    setup.quiet()  # `tail` is not the beginning of another message
