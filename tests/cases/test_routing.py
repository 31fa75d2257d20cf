"""Public cases: where a request may go, and the references by which it finds its client and nobody else."""

from __future__ import annotations

import re
import select
import socket
from collections.abc import Callable, Iterator

import pytest

from .harness import (
    NOTHING,
    Client,
    Setup,
    answer,
    assert_forwarded,
    data,
    dial,
    elements,
    fence,
    fill,
    method,
    refused_by,
    renewed,
    request_uri,
    status,
    treat,
    value,
    values,
)

FW = Callable[..., Setup]

FLOW = re.compile(r"<sip:([^@]+)@([^;>]+);(?:[^>;]+;)*lr(;ob)?>")


def flow(path: str) -> tuple[str, bool]:
    """The token of a Path or Record-Route of ours, and whether it says `ob`."""
    match = FLOW.fullmatch(path)
    assert match is not None, path
    return match[1], match[3] is not None


# -- C055: Path --------------------------------------------------------------------------------------------------------


@pytest.mark.case("C055")
@pytest.mark.rule(28)
@pytest.mark.parametrize("wss", [True, False], ids=["wss", "ws"])
def test_a_register_gets_a_path_and_keeps_everything_else(fw: FW, wss: bool) -> None:
    setup = fw(wss=wss)
    client = setup.client()
    first = data("C055", 0) if wss else data("C055", 0).replace(b"SIP/2.0/WSS", b"SIP/2.0/WS")
    received = treat(setup, client, first)
    assert isinstance(received, bytes), received
    assert_forwarded(first, received)
    [path] = elements(received, "path")
    token, ob = flow(path)
    assert ob
    assert value(received, "contact") == value(first, "contact")
    assert value(received, "supported") == value(first, "supported")
    assert values(received, "record-route") == []
    second = data("C055", 1)
    received = treat(setup, client, second)
    assert isinstance(received, bytes), received
    assert_forwarded(second, received)
    [path] = elements(received, "path")
    assert flow(path) == (token, False)
    assert values(received, "record-route") == []


# -- C057, C058: dialogs -----------------------------------------------------------------------------------------------


@pytest.mark.case("C057")
@pytest.mark.rule(22)
@pytest.mark.parametrize("letter", "abc")
def test_a_route_set_leads_to_its_client_however_it_is_written(fw: FW, letter: str) -> None:
    setup = fw()
    client = setup.client()
    dialog = dial(setup, client)
    match = re.fullmatch(r"<sip:([^;>]+)((?:;[^;>]+)*)>", dialog.rr1)
    assert match is not None and ";lr" in match[2]
    parameters = [part.replace("lr", "LR") for part in reversed(match[2].split(";")[1:])]
    respelled = f'"Edge, Inc." <SIP:{match[1]};{";".join(parameters)}>'
    template = data("C057", 0)
    if letter == "c":
        template = template.replace(b"${RR1} , ${RR2}", b"${RR2}")
    bye = fill(template, b"", RR1=respelled if letter == "b" else dialog.rr1, RR2=dialog.rr2)
    setup.up.send(setup.here(renewed(bye, f"057{letter}")))
    received = client.message()
    assert method(received) == "BYE"
    assert request_uri(received) == b"sip:alice@c1.invalid;transport=ws;ob"
    assert values(received, "route") == []
    client.text(answer(received))
    assert setup.up.response(200)


@pytest.mark.case("C058")
@pytest.mark.rule(32)
@pytest.mark.parametrize("name", ["BYE", "ACK"])
def test_a_request_uri_that_names_the_proxy_makes_no_loop(fw: FW, name: str) -> None:
    setup = fw()
    client = setup.client()
    dialog = dial(setup, client)
    message = setup.here(fill(data("C058", 0), b"", **{"Rset*": dialog.route_set}).replace(b"BYE", name.encode()))
    if name == "BYE":
        outcome = treat(setup, client, renewed(message, "058"))
        assert outcome in (404, 482) or (isinstance(outcome, bytes) and method(outcome) == "BYE")
        return
    client.text(renewed(message, "058a"))
    client.quiet()
    try:
        received = setup.up.receive(NOTHING, repeats=True)
    except TimeoutError:
        return  # dropped
    assert method(received) == "ACK"
    setup.quiet()
    client.quiet()


# -- C060, C061: tokens ------------------------------------------------------------------------------------------------


@pytest.fixture
def registered(fw: FW) -> Iterator[tuple[Setup, Client, str]]:
    """A registered client, and its Path."""
    setup = fw()
    client = setup.client()
    yield setup, client, setup.register(client)


def flipped(path: str, position: int) -> str:
    """The Path with another character of the token's alphabet at this position of the token."""
    token, _ = flow(path)
    new = "A" if token[position] != "A" else "B"
    return path.replace(token, token[:position] + new + token[position + 1 :])


def by_route(case: str, step: int, path: str, number: int | str, setup: Setup) -> bytes:
    template = data(case, step)
    return setup.here(
        renewed(fill(template, b"", **{"Path:flip": path, "Path": path, "Path'": path}), f"{case}{number}")
    )


@pytest.mark.case("C060")
@pytest.mark.rule(29)
def test_a_token_with_one_other_character_is_403_wherever_it_stands(
    registered: tuple[Setup, Client, str],
) -> None:
    setup, client, path = registered
    token, _ = flow(path)
    for position in range(len(token)):
        message = by_route("C060", 0, flipped(path, position), position, setup)
        assert refused_by(setup, message) == 403, position
    client.quiet()


@pytest.mark.case("C060")
@pytest.mark.rule(29)
@pytest.mark.parametrize("change", ["cut", "longer", "empty", "ten thousand", "foreign alphabet", "another run"])
def test_a_token_that_is_not_ours_is_403(fw: FW, registered: tuple[Setup, Client, str], change: str) -> None:
    setup, client, path = registered
    token, _ = flow(path)
    allowed: tuple[int, ...] = (403,)
    if change == "another run":
        other = fw(own="another run")
        new, _ = flow(other.register(other.client()))
    elif change == "empty":
        new, allowed = "", (403, 400)
    else:
        new = {
            "cut": token[:-1],
            "longer": token + "A",
            "ten thousand": "A" * 10_000,
            "foreign alphabet": "." * len(token),
        }[change]
    message = by_route("C060", 0, path.replace(token, new), change.replace(" ", ""), setup)
    assert refused_by(setup, message) in allowed
    client.quiet()


@pytest.mark.case("C060")
@pytest.mark.rule(29)
def test_an_escaped_token_is_the_same_or_403(registered: tuple[Setup, Client, str]) -> None:
    setup, client, path = registered
    bystander = setup.client()
    token, _ = flow(path)
    escaped = "".join(f"%{ord(one):02x}" if number % 7 == 0 else one for number, one in enumerate(token))
    message = by_route("C060", 0, path.replace(token, escaped), "esc", setup)
    setup.up.send(message)
    while status(got := setup.up.receive()) == 100:
        pass
    if status(got) != 403:
        received = client.message()
        assert method(received) == "INVITE"
        client.text(answer(received, "486 Busy Here"))
    else:
        client.quiet()
    bystander.quiet()


@pytest.mark.case("C060")
@pytest.mark.rule(29)
def test_an_ack_with_a_forged_token_is_dropped(registered: tuple[Setup, Client, str]) -> None:
    setup, client, path = registered
    setup.up.send(by_route("C060", 2, flipped(path, 3), "ack", setup))
    fence(setup)
    client.quiet()


@pytest.fixture
def gone(registered: tuple[Setup, Client, str]) -> tuple[Setup, str]:
    """The Path of a client that has left."""
    setup, client, path = registered
    client.frame(8, b"\x03\xe8")
    client.ended()
    client.close()
    return setup, path


@pytest.mark.case("C061")
@pytest.mark.rule(29)
@pytest.mark.rule(30)
@pytest.mark.parametrize("step", [0, 1], ids=["INVITE", "MESSAGE"])
def test_a_token_of_a_connection_that_is_gone_is_430(gone: tuple[Setup, str], step: int) -> None:
    setup, path = gone
    tenant = setup.client()  # has the slot now
    assert refused_by(setup, by_route("C061", step, path, step, setup)) == 430
    tenant.quiet()


@pytest.mark.case("C061")
@pytest.mark.rule(29)
def test_an_ack_to_a_connection_that_is_gone_is_dropped(gone: tuple[Setup, str]) -> None:
    setup, path = gone
    tenant = setup.client()
    setup.up.send(by_route("C061", 2, path, 2, setup))
    fence(setup)
    tenant.quiet()


@pytest.mark.case("C061")
def test_a_request_without_a_route_to_a_name_that_nobody_has_is_a_4xx(gone: tuple[Setup, str]) -> None:
    setup, path = gone
    code = refused_by(setup, by_route("C061", 3, path, 3, setup))
    assert 400 <= code < 500 and code not in (401, 407, 408)


@pytest.mark.case("C061")
def test_thousands_of_requests_to_who_is_gone_open_nothing(gone: tuple[Setup, str]) -> None:
    setup, path = gone
    setup.check()
    before = setup.descriptors()
    for number in range(2500):
        message = by_route("C061", (1, 3)[number % 2], path, f"many{number}", setup)
        assert refused_by(setup, message) in (430, 404, 480)
    for number in range(500):
        setup.up.send(by_route("C061", 2, path, f"many{number}", setup))
    fence(setup)
    assert setup.descriptors() <= before


# -- C064, C065: the Route of a client ---------------------------------------------------------------------------------


@pytest.mark.case("C064")
@pytest.mark.rule(22)
def test_a_preloaded_route_to_our_listener_is_taken_off(fw: FW) -> None:
    setup = fw()
    message = setup.here(data("C064", 0))
    received = treat(setup, setup.client(), message)
    assert isinstance(received, bytes), received
    assert_forwarded(message, received, without=("route",))


@pytest.mark.case("C064")
@pytest.mark.rule(22)
@pytest.mark.parametrize("how", ["Host", "advertise"])
def test_a_route_behind_our_own_stays_and_the_request_goes_to_the_upstream(fw: FW, how: str) -> None:
    if how == "Host":
        setup = fw()
        client = setup.client()
    else:
        setup = fw("udp", None, 'advertise = "edge.example.com"\n')
        client = setup.client(head=data("C123").replace(b"edge.example.com", b"other.example.com"))
    message = data("C064", 1)
    received = treat(setup, client, message)
    assert isinstance(received, bytes), received
    assert values(received, "route") == ["<sip:orig@scscf.example.com:6060;lr>"]
    top = b"Route: <sip:edge.example.com:443;transport=ws;lr>\r\n"
    assert top in message
    assert_forwarded(message.replace(top, b""), received)


@pytest.mark.case("C065")
@pytest.mark.parametrize("upstream", ["udp", "tcp"])
@pytest.mark.parametrize("letter", "abcd")
def test_a_client_cannot_choose_where_its_request_goes(fw: FW, upstream: str, letter: str) -> None:
    setup = fw(upstream)
    with (
        socket.create_server(("127.0.0.3", 0)) as tcp,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
    ):
        port = tcp.getsockname()[1]
        udp.bind(("127.0.0.3", port))
        message = data("C065", "abcd".index(letter))
        for old in (b":25;", b":5060;"):
            message = message.replace(b"127.0.0.3" + old, b"127.0.0.3:%d;" % port)
        outcome = treat(setup, setup.client(), message)
        if letter == "a":
            assert outcome == 403  # decided: a Route that names neither us nor an upstream is refused
        else:
            assert isinstance(outcome, bytes), outcome
            assert_forwarded(message, outcome)
        if letter == "d":
            ours, other = elements(outcome, "path") if isinstance(outcome, bytes) else ("", "")
            assert flow(ours)[1]
            assert other == f"<sip:127.0.0.3:{port};lr>"
        assert select.select([tcp, udp], [], [], NOTHING)[0] == []
