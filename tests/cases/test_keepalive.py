"""Public cases: CR LF CR LF as clients send it, and what only looks like it."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from .harness import (
    BINARY,
    CONT,
    RECORD,
    TEXT,
    Client,
    Frame,
    Setup,
    assert_forwarded,
    data,
    treat,
)

FW = Callable[..., Setup]
CRLF = Frame(TEXT, b"\r\n")


def nothing_happened(setup: Setup, client: Client, asked: int, log: str) -> None:
    """No answer but those that were read, no request, no line in the log."""
    client.quiet()
    assert len(setup.notes("request")) == asked
    assert setup.edge.log() == log
    setup.quiet()


@pytest.mark.case("C096")
@pytest.mark.rule(12)
@pytest.mark.parametrize("step", [0, 1], ids=["as text", "as hex"])
def test_crlfcrlf_is_answered_with_one_crlf_in_a_text_frame(fw: FW, step: int) -> None:
    setup = fw("udp", RECORD)
    client = setup.client()
    asked, log = len(setup.notes("request")), setup.edge.log()
    took = []
    for _ in range(3):  # a busy machine may take its time once
        sent = time.monotonic()
        if step == 0:
            client.text(data("C096", 0))
        else:
            client.send(data("C096", 1))
        assert client.receive() == CRLF
        took.append(time.monotonic() - sent)
    assert min(took) < 0.1
    nothing_happened(setup, client, asked, log)


@pytest.mark.case("C097")
@pytest.mark.rule(12)
@pytest.mark.parametrize(
    ("letter", "answers"), [("a", (0,)), ("b", (1,)), ("c", (1,)), ("d", (1, 2)), ("e", (0,)), ("f", (0,))]
)
def test_what_looks_like_a_keep_alive_gets_its_crlf_or_nothing(fw: FW, letter: str, answers: tuple[int, ...]) -> None:
    setup = fw("udp", RECORD)
    client = setup.client()
    asked, log = len(setup.notes("request")), setup.edge.log()
    payload = data("C097", "abcdef".index(letter))
    if letter == "c":
        client.frame(TEXT, payload[:2], fin=False)
        client.frame(CONT, payload[2:])
    else:
        client.frame(BINARY if letter == "b" else TEXT, payload)
    client.frame(9, b"mark")
    count = 0
    while (got := client.receive()) != Frame(10, b"mark"):
        assert got == CRLF
        count += 1
    assert count in answers
    nothing_happened(setup, client, asked, log)


@pytest.mark.case("C097")
@pytest.mark.rule(9)
def test_a_crlf_in_front_of_a_message_does_not_hide_it(fw: FW) -> None:
    setup = fw("udp", RECORD)
    message = data("C097", 6)
    received = treat(setup, setup.client(), message)
    if isinstance(received, bytes):
        assert_forwarded(message.lstrip(b"\r\n"), received)
        assert received.startswith(b"OPTIONS ")
    else:
        assert received == 400
