"""Public cases: the client's Via comes back as it was, decides nothing, and is not what tells two clients apart."""

from __future__ import annotations

import select
import socket
from collections.abc import Callable

import pytest

from .harness import NOTHING, Setup, answer, branch, data, fill, status, treat, value, values

FW = Callable[..., Setup]


@pytest.mark.case("C050")
@pytest.mark.rule(10)
@pytest.mark.parametrize("upstream", ["udp", "tcp"])
def test_the_via_of_the_client_comes_back_as_it_was_sent(fw: FW, upstream: str) -> None:
    setup = fw(upstream)
    client = setup.client()
    message = data("C050", 0)
    client.text(message)
    received = setup.up.request("REGISTER")
    setup.up.reply(received, fill(data("C050", 1), received))
    via = value(client.final(401), "via")
    assert via.split(";received=")[0] == value(message, "via")
    assert via.startswith('SIP/2.0/WSS C1-Mixed.INVALID;branch=z9hG4bK0000001;x-keep="A b"')


@pytest.mark.case("C052")
@pytest.mark.rule(12)
@pytest.mark.parametrize("whose", ["of UP", "483", "400"])
def test_an_answer_goes_over_the_connection_whatever_the_via_says(fw: FW, whose: str) -> None:
    setup = fw()
    client = setup.client()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.2", 0))
        message = data("C052", 0).replace(b"5090", b"%d" % other.getsockname()[1])
        if whose == "of UP":
            client.text(message)
            received = setup.up.request("OPTIONS")
            setup.up.reply(received, fill(data("C052", 1), received))
            response = client.final(200)
            assert values(response, "via") == values(message, "via")
        elif whose == "483":
            assert treat(setup, client, message.replace(b"Max-Forwards: 70", b"Max-Forwards: 0")) == 483
        else:
            assert treat(setup, client, message.replace(b"1 OPTIONS", b"x OPTIONS")) == 400
        assert select.select([other], [], [], NOTHING)[0] == []


@pytest.mark.case("C054")
@pytest.mark.parametrize("upstream", ["udp", "tcp"])
def test_two_clients_with_the_same_transaction_get_their_own_answers(fw: FW, upstream: str) -> None:
    setup = fw(upstream)
    first, second = setup.client(), setup.client()
    message = data("C054", 0)
    first.text(message)
    one = setup.up.request("OPTIONS")
    second.text(message)
    two = setup.up.request("OPTIONS")
    assert branch(one) != branch(two)
    setup.up.reply(two, fill(data("C054", 1), two))
    assert status(second.message()) == 404
    first.quiet()
    setup.up.reply(one, answer(one))
    assert status(first.message()) == 200
    first.quiet()
    second.quiet()
