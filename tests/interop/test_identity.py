# A policy that knows users by a cookie, real phones that are who they say, and impostors.

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from ..conftest import wait_for
from .peers import Edge, Kamailio
from .phones import Phone

POLICY = """
from pathlib import Path

JOURNAL = Path({journal!r})
SESSIONS = {{"s-alice": "alice", "s-bob": "bob"}}
IDENTITY = "user"


def note(line):
    with JOURNAL.open("a") as journal:
        journal.write(line + "\\n")


def on_handshake(handshake):
    user = SESSIONS.get(handshake.cookies.get("sid"))
    if user is None or handshake.headers.get("Origin") != "https://app.example.com":
        return handshake.reject(403)
    note(f"open {{user}}")
    return handshake.accept(user=user)


def on_close(connection, terminator, code, reason):
    note(f"close {{connection['user']}} {{terminator}} {{code}}")
"""

ALICE, BOB = "sip:alice@example.com", "sip:bob@example.com"
ORIGIN = "https://app.example.com"
LIBRARIES = ("jssip", "sipjs")


class Office:
    """An edge with POLICY, what it wrote down, and a way to connect to it with a cookie."""

    def __init__(self, edge: Edge, journal: Path, stack: ExitStack) -> None:
        self._edge = edge
        self._journal = journal
        self._stack = stack

    def phone(self, library: str, uri: str, session: str | None, origin: str = ORIGIN) -> Phone:
        headers = {"Origin": origin}
        if session is not None:
            headers["Cookie"] = f"theme=dark; sid={session}"
        return self._stack.enter_context(Phone(library, self._edge.url, uri, headers=headers))

    def notes(self) -> list[str]:
        return self._journal.read_text().splitlines() if self._journal.exists() else []

    def wait_for_note(self, line: str) -> None:
        wait_for(lambda: line in self.notes(), 10, f"{line!r} in the journal")


@pytest.fixture(params=["embedded", "kamailio"])
def office(request: pytest.FixtureRequest, node: None, tmp_path: Path, edge: Callable[..., Edge]) -> Iterator[Office]:
    journal = tmp_path / "journal"
    with ExitStack() as behind, ExitStack() as phones:
        upstream = []
        if request.param == "kamailio":
            kamailio = behind.enter_context(Kamailio(tmp_path))
            upstream = [f"sip:127.0.0.1:{kamailio.port};transport=udp"]
        yield Office(edge(upstream=upstream, policy=POLICY.format(journal=str(journal))), journal, phones)


@pytest.mark.parametrize("library", LIBRARIES)
def test_users_known_by_cookie_register_and_call_each_other(office: Office, library: str) -> None:
    alice = office.phone(library, ALICE, "s-alice")
    bob = office.phone(library, BOB, "s-bob")
    for phone in (alice, bob):
        phone.expect("connected")
        phone.register()
    alice.command("call", target=BOB)
    assert bob.expect("incoming")["from"] == ALICE
    bob.command("answer")
    alice.expect("confirmed")
    bob.expect("confirmed")
    bob.command("hangup")
    alice.expect("ended", by="remote")
    alice.close()
    office.wait_for_note("close alice client 1000")
    assert office.notes().count("open alice") == 1


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_phone_without_a_session_or_from_another_page_is_refused_at_the_handshake(
    office: Office, library: str
) -> None:
    for stranger in (
        office.phone(library, ALICE, None),
        office.phone(library, ALICE, "s-mallory"),
        office.phone(library, ALICE, "s-alice", origin="https://evil.example.net"),
    ):
        stranger.expect("refused", status=403)
        assert not stranger.saw("connected")
        stranger.close()
    assert office.notes() == []


@pytest.mark.parametrize("library", LIBRARIES)
def test_an_impostor_who_registers_as_another_is_answered_403_and_closed(office: Office, library: str) -> None:
    bob = office.phone(library, BOB, "s-bob")
    bob.expect("connected")
    bob.register()
    impostor = office.phone(library, BOB, "s-alice")
    impostor.expect("connected")
    impostor.command("register")
    impostor.expect("registration_failed", code=403)
    impostor.expect("disconnected", code=1008)
    office.wait_for_note("close alice policy 1008")

    # Bob's registration is untouched: his calls still come to him.
    alice = office.phone(library, ALICE, "s-alice")
    alice.expect("connected")
    alice.command("message", target=BOB, text="still you?")
    assert bob.expect("message", text="still you?")["from"] == ALICE
    alice.expect("message_sent", code=200)
    assert [note for note in office.notes() if note.startswith("close")] == ["close alice policy 1008"]


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("way", ["call", "message"])
def test_an_impostor_who_calls_or_writes_as_another_is_answered_403_and_closed(
    office: Office, library: str, way: str
) -> None:
    alice = office.phone(library, ALICE, "s-alice")
    alice.expect("connected")
    alice.register()
    impostor = office.phone(library, BOB, "s-alice")
    impostor.expect("connected")
    if way == "call":
        impostor.command("call", target=ALICE)
        impostor.expect("failed", code=403)
    else:
        impostor.command("message", target=ALICE, text="send money")
        impostor.expect("message_failed", code=403)
    impostor.expect("disconnected", code=1008)
    office.wait_for_note("close alice policy 1008")
    assert not alice.saw("incoming") and not alice.saw("message")
