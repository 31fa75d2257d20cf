# What the interop tests need of the machine, and the fixtures that start it.
#
# Missing peers skip a test with the reason; with FASTWS_REQUIRE_PEERS=1 in the environment they fail it, so that a run
# that is meant to be complete cannot be green for want of Node.

import shutil
import subprocess
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Any, Protocol

import pytest

from ..conftest import make_certificate, missing_peer, need_program
from .peers import Edge, Kamailio
from .phones import HERE, Phone

NPM_CI_TIMEOUT_S = 180
PACKAGES = ("jssip", "sip.js", "ws")
FAILED: pytest.StashKey[bool] = pytest.StashKey()
numbers = count(1)


def npm_problem(log: Path) -> str:
    """Install the locked npm packages if they are not there; what is missing nevertheless and why, or ""."""
    if shutil.which("node") is None:
        return "node"
    if all((HERE / "node_modules" / package / "package.json").exists() for package in PACKAGES):
        return ""
    if shutil.which("npm") is None:
        return "npm"
    with log.open("wb") as output:
        try:
            run = subprocess.run(
                ["npm", "ci"], cwd=HERE, stdout=output, stderr=subprocess.STDOUT, timeout=NPM_CI_TIMEOUT_S, check=False
            )
        except subprocess.TimeoutExpired:
            return f"jssip (npm ci in tests/interop took more than {NPM_CI_TIMEOUT_S} s, its log is {log})"
    return "" if run.returncode == 0 else f"jssip (npm ci in tests/interop failed: {run.returncode}, its log is {log})"


@pytest.fixture(scope="session")
def missing_for_node(tmp_path_factory: pytest.TempPathFactory) -> str:
    return npm_problem(tmp_path_factory.mktemp("npm") / "npm-ci.log")


@pytest.fixture(scope="session")
def node(missing_for_node: str) -> None:
    """Node and the two SIP libraries are there."""
    if missing_for_node:
        missing_peer(missing_for_node)


@pytest.fixture(scope="session")
def sipp_installed() -> None:
    need_program("sipp")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.when == "call":
        item.stash[FAILED] = report.failed
    return report


class Server(Protocol):
    """Where a phone connects to: the edge, or Kamailio where the phones are tried without it."""

    url: str
    ca: Path | None


class Place:
    """Servers that stand, and the phones of one test module that use them."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._phones: dict[str, list[Phone]] = {}

    def phone(self, library: str, **options: Any) -> Phone:
        """A connected phone of a user that no other phone of this run has."""
        user = f"{library}-{next(numbers)}"
        phone = Phone(library, self.server.url, f"sip:{user}@example.com", ca=self.server.ca, **options)
        try:
            phone.expect("connected", timeout=15)
        except AssertionError:
            phone.close()
            raise
        return phone

    def registered(self, libraries: tuple[str, str], **options: Any) -> list[Phone]:
        """Two registered phones, the same ones for every test that asks for these libraries."""
        key = "+".join(libraries)
        if key not in self._phones:
            phones = self._phones[key] = [self.phone(library, **options) for library in libraries]
            for phone in phones:
                phone.register()
        for phone in self._phones[key]:
            phone.forget()
        return self._phones[key]

    def discard(self, libraries: tuple[str, str]) -> None:
        """Have the next test start with new phones, because one was left in the middle of something."""
        for phone in self._phones.pop("+".join(libraries), []):
            phone.close()

    def close(self) -> None:
        for phones in self._phones.values():
            for phone in phones:
                phone.close()


# name -> (what serves behind the edge, scheme of the listener); "peers alone" has no edge in it.
PLACES = {
    "embedded-ws": ("embedded", "ws"),
    "embedded-wss": ("embedded", "wss"),
    "kamailio-udp-ws": ("udp", "ws"),
    "kamailio-tcp-ws": ("tcp", "ws"),
    "kamailio-udp-wss": ("udp", "wss"),
    "peers-alone": ("websocket", "ws"),
}


@pytest.fixture(scope="module")
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, node: None) -> Iterator[Place]:
    """The servers of one of PLACES, for all tests of a module that are parametrized with it."""
    behind, scheme = PLACES[request.param]
    directory = tmp_path_factory.mktemp(request.param)
    with ExitStack() as stack:
        server: Server
        if behind == "websocket":
            server = stack.enter_context(Kamailio(directory, websocket=True))
        else:
            upstream = []
            if behind != "embedded":
                kamailio = stack.enter_context(Kamailio(directory))
                upstream = [f"sip:127.0.0.1:{kamailio.port};transport={behind}"]
            tls = make_certificate(directory) if scheme == "wss" else None
            server = stack.enter_context(Edge(directory, upstream=upstream, tls=tls))
        standing = Place(server)
        stack.callback(standing.close)
        yield standing


@pytest.fixture
def edge(tmp_path: Path) -> Iterator[Callable[..., Edge]]:
    """edge(upstream=..., policy=..., config=..., tls=..., flags=...) starts the edge for one test."""
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(Edge(tmp_path, **options))
