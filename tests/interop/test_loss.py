# A network that loses one datagram in ten, each way, between the edge and SIPp: every call comes about, and none twice.
# WebSocket clients never repeat a request, so whatever is repaired here the edge has repaired (RFC 3261 17).

from __future__ import annotations

import asyncio
import csv
import random
import re
import selectors
import socket
import threading
import time
from collections import Counter, defaultdict
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.typing import Subprotocol

from ..conftest import free_port, need_program, wait_for
from ..relay import answer, contact, lines, request, status
from .peers import HERE, HOST, Daemon, Edge, RegistrarStub, port_taken

CALLS = 500
AT_ONCE = 50
CLIENTS = 5
LOSS = 0.1
TALK_S = 0.6  # longer than T1: where the ACK was lost, the 200 comes again before the BYE goes
LIMIT_S = 60.0

pytestmark = pytest.mark.usefixtures("sipp_installed")


class Relay:
    """Carries datagrams between the edge and SIPp and loses some. `near` is its port on the edge's side, `far` that on
    SIPp's. It remembers each request that came, lost or not."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._sockets = [self._open(), self._open()]
        self.near, self.far = (one.getsockname()[1] for one in self._sockets)
        self.edge_port = 0
        self.sipp_port = 0
        self.copies: defaultdict[tuple[str, str], list[bytes]] = defaultdict(list)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @staticmethod
    def _open() -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        made.bind((HOST, 0))
        return made

    def _run(self) -> None:
        near, far = self._sockets
        with selectors.DefaultSelector() as selector:
            selector.register(near, selectors.EVENT_READ, far)
            selector.register(far, selectors.EVENT_READ, near)
            while not self._stop.is_set():
                for key, _ in selector.select(0.1):
                    data = key.fileobj.recv(65536)  # type: ignore[union-attr]
                    self._remember(data)
                    if self._random.random() < LOSS:
                        continue
                    key.data.sendto(data, (HOST, self.sipp_port if key.data is far else self.edge_port))

    def _remember(self, data: bytes) -> None:
        if data.startswith(b"SIP/2.0 "):
            return
        call_id = re.search(rb"(?i)^Call-ID:\s*(\S+)", data, re.M)
        assert call_id
        self.copies[data.split(b" ", 1)[0].decode(), call_id[1].decode()].append(data)

    def requests(self, method: str) -> Counter[int]:
        """How many calls sent this request in so many different versions; what is only repeated is one of them."""
        return Counter(len(set(found)) for (name, _), found in self.copies.items() if name == method)

    def repeated(self, method: str) -> int:
        """How many copies of this request there were beyond the first of each call."""
        return sum(len(found) - 1 for (name, _), found in self.copies.items() if name == method)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(5)
        for one in self._sockets:
            one.close()


class ManyCalls(Daemon):
    """SIPp with one of the scenarios for many calls. `fields` replace @NAME@ in it."""

    def __init__(self, directory: Path, scenario: str, port: int, *arguments: str, **fields: str) -> None:
        text = (HERE / "sipp" / f"{scenario}.xml").read_text(encoding="utf-8")
        for name, value in fields.items():
            text = text.replace(f"@{name.upper()}@", value)
        scenario_file = directory / f"{scenario}.xml"
        scenario_file.write_text(text, encoding="utf-8")
        self._statistics = directory / "sipp.csv"
        self._errors = directory / "sipp-errors.log"
        command = [need_program("sipp"), "-sf", str(scenario_file), "-i", HOST, "-p", str(port), "-t", "u1", "-nostdin"]
        command += ["-max_retrans", "12", "-trace_err", "-error_file", str(self._errors)]
        command += ["-trace_stat", "-stf", str(self._statistics), "-fd", "500ms", *arguments]
        super().__init__(command, directory / "sipp.log", {"TERM": "xterm"})
        self.wait_ready(lambda: port_taken(port, "udp"))

    def statistics(self) -> dict[str, str]:
        """The last line that SIPp has written about itself; its cumulative columns end in (C)."""
        if not self._statistics.exists():
            return {}
        with self._statistics.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file, delimiter=";"))
        return rows[-1] if rows else {}

    def count(self, name: str) -> int:
        """A cumulative count, 0 before the first line is whole."""
        row = self.statistics()
        return int(row.get(f"{name}(C)") or row.get(name) or 0)

    def errors(self) -> str:
        return self._errors.read_text(encoding="utf-8", errors="replace") if self._errors.exists() else ""

    def finish(self) -> None:
        self.kill()  # it would stay for the sake of late copies; what is to be known of it is known by now


class Caller:
    """One WebSocket client with several calls at once. It repeats nothing but the ACK, for each 200 that comes."""

    def __init__(self, socket: ClientConnection, user: str) -> None:
        self._socket = socket
        self._user = user
        self._calls: dict[str, asyncio.Queue[str]] = {}
        self.answers: Counter[tuple[str, str, int]] = Counter()  # (Call-ID, method, status)
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for message in self._socket:
            assert isinstance(message, str)
            [call_id] = lines(message, "Call-ID")
            method = lines(message, "CSeq")[0].split()[1]
            self.answers[call_id, method, status(message)] += 1
            self._calls[call_id].put_nowait(message)

    async def call(self, call_id: str) -> None:
        queue = self._calls[call_id] = asyncio.Queue()
        common: dict[str, Any] = {"user": self._user, "call_id": call_id}
        own = f"Contact: <sip:{self._user}@{self._user}.invalid;transport=ws;ob>\r\n"
        await self._socket.send(request("INVITE", branch=f"z9hG4bKi{call_id}", headers=own, **common))
        within: dict[str, Any] = {}
        over: float | None = None
        while True:
            try:
                async with asyncio.timeout_at(over):
                    message = await queue.get()
            except TimeoutError:
                over = None
                await self._socket.send(request("BYE", branch=f"z9hG4bKb{call_id}", cseq=2, **common, **within))
                continue
            method = lines(message, "CSeq")[0].split()[1]
            if status(message) < 200:
                continue
            assert status(message) == 200, message
            if method == "BYE":
                return
            if not within:
                over = asyncio.get_running_loop().time() + TALK_S
                [to], [target] = lines(message, "To"), lines(message, "Contact")
                routes = "".join(f"Route: {value}\r\n" for value in lines(message, "Record-Route")[::-1])
                within = {"to_tag": to.partition(";tag=")[2], "uri": target[1:].partition(">")[0], "headers": routes}
            await self._socket.send(request("ACK", branch=f"z9hG4bKa{call_id}", **common, **within))

    async def stop(self) -> None:
        self._reader.cancel()
        with suppress(asyncio.CancelledError):
            await self._reader


async def place_calls(url: str) -> Counter[tuple[str, str, int]]:
    """All the calls, over several clients; what was answered how often."""
    waiting = iter(range(CALLS))
    answers: Counter[tuple[str, str, int]] = Counter()

    async def lane(caller: Caller) -> None:
        for number in waiting:
            await caller.call(f"call{number}")

    async def client(number: int) -> None:
        async with connect(
            f"{url}/?user=u{number}", subprotocols=[Subprotocol("sip")], compression=None, ping_interval=None
        ) as socket:
            caller = Caller(socket, f"u{number}")
            async with asyncio.TaskGroup() as lanes:
                for _ in range(AT_ONCE // CLIENTS):
                    lanes.create_task(lane(caller))
            await caller.stop()
            answers.update(caller.answers)

    async with asyncio.timeout(LIMIT_S), asyncio.TaskGroup() as clients:
        for number in range(CLIENTS):
            clients.create_task(client(number))
    return answers


@pytest.mark.rule(35)
@pytest.mark.rule(37)
@pytest.mark.rule(43)
def test_500_calls_of_browsers_over_a_network_that_loses_datagrams_all_come_about_once(tmp_path: Path) -> None:
    port = free_port()
    with Relay(seed=4711) as relay:
        relay.sipp_port = port
        with (
            ManyCalls(tmp_path, "answer_many", port, reached_at=str(relay.near)) as sipp,
            Edge(tmp_path, upstream=[f"sip:{HOST}:{relay.near};transport=udp"]) as edge,
        ):
            relay.edge_port = edge.sip_port
            answers = asyncio.run(place_calls(edge.url))
            wait_for(lambda: sipp.count("ended") >= CALLS, what="SIPp to have seen the end of every call")
            assert sipp.count("TotalCallCreated") == CALLS
            assert sipp.count("FailedCall") == 0
            assert sipp.count("ended") == CALLS
            assert sipp.count("acked") > CALLS * 0.9
            assert sipp.count("FailedUnexpectedMessage") == sipp.count("OutOfCallMsgs") == 0
        # A repetition is the same request: SIPp has seen no call and no BYE twice, and neither has the wire.
        assert relay.requests("INVITE") == {1: CALLS}
        assert relay.requests("BYE") == {1: CALLS}
        assert relay.repeated("INVITE") > CALLS * LOSS / 2
        assert relay.repeated("BYE") > CALLS * LOSS / 2
        for number in range(CALLS):
            assert answers[f"call{number}", "BYE", 200] == 1
            assert answers[f"call{number}", "INVITE", 200] >= 1
        assert {code for _, _, code in answers} <= {100, 180, 200}


class Callee:
    """One WebSocket client that takes every call: 180, and 200 until the ACK comes (RFC 3261 13.3.1.4)."""

    def __init__(self, url: str, user: str) -> None:
        self._url = url
        self.user = user
        self._repeating: dict[str, asyncio.Task[None]] = {}
        self.requests: Counter[tuple[str, str]] = Counter()  # (Call-ID, method)

    async def run(self, stub: RegistrarStub, paths: dict[str, str], ready: asyncio.Event) -> None:
        async with connect(
            f"{self._url}/?user={self.user}", subprotocols=[Subprotocol("sip")], compression=None, ping_interval=None
        ) as self._socket:
            await self._socket.send(
                request("REGISTER", user=self.user, call_id=f"r-{self.user}", headers=contact(self.user))
            )
            response = await self._socket.recv()
            assert isinstance(response, str) and status(response) == 200
            paths[self.user] = stub.path
            ready.set()
            async for message in self._socket:
                assert isinstance(message, str)
                await self._take(message)

    async def _take(self, message: str) -> None:
        [call_id] = lines(message, "Call-ID")
        method = message.split()[0]
        self.requests[call_id, method] += 1
        if method == "INVITE":
            own = f"Contact: <sip:{self.user}@{self.user}.invalid;transport=ws>\r\n"
            await self._socket.send(answer(message, 180, "Ringing", tag=self.user, headers=own))
            ok = answer(message, 200, tag=self.user, headers=own)
            await self._socket.send(ok)
            self._repeating[call_id] = asyncio.create_task(self._repeat(ok))
            return
        if call_id in self._repeating:  # an ACK, or a BYE whose ACK was lost
            self._repeating.pop(call_id).cancel()
        if method == "BYE":
            await self._socket.send(answer(message, 200))

    async def _repeat(self, message: str) -> None:
        pause = 0.5
        while True:
            await asyncio.sleep(pause)
            await self._socket.send(message)
            pause = min(2 * pause, 4.0)


async def take_calls(url: str, stub: RegistrarStub, sipp: Any) -> tuple[list[Callee], ManyCalls]:
    """Register the clients one by one, have SIPp call them by `sipp(paths)`, and wait until it has ended."""
    paths: dict[str, str] = {}
    callees = [Callee(url, f"phone{number}") for number in range(CLIENTS)]
    tasks = []
    for callee in callees:
        ready = asyncio.Event()
        tasks.append(asyncio.create_task(callee.run(stub, paths, ready)))
        await asyncio.wait_for(ready.wait(), 5)
    with sipp(paths) as process:
        end = time.monotonic() + LIMIT_S
        while process.process.poll() is None and time.monotonic() < end:
            await asyncio.sleep(0.05)
            for task in tasks:
                assert not task.done(), task.exception()
        for task in tasks:
            task.cancel()
        return callees, process


@pytest.mark.rule(35)
@pytest.mark.rule(37)
@pytest.mark.rule(43)
def test_500_calls_to_browsers_over_a_network_that_loses_datagrams_all_come_about_once(tmp_path: Path) -> None:
    with Relay(seed=1147) as relay, RegistrarStub("udp") as stub:
        with Edge(tmp_path, upstream=[stub.uri]) as edge:
            relay.edge_port = edge.sip_port
            relay.sipp_port = free_port()

            def sipp(paths: dict[str, str]) -> ManyCalls:
                tokens = {user: re.match(r"<sip:([^@]+)(@.*)", path) for user, path in paths.items()}
                rows = "".join(f"{user};{match[1]}\n" for user, match in tokens.items() if match)
                tails = {match[2] for match in tokens.values() if match}
                injected = tmp_path / "phones.csv"
                injected.write_text(f"SEQUENTIAL\n{rows}")
                more = ["-inf", str(injected), "-m", str(CALLS), "-l", str(AT_ONCE), "-r", str(AT_ONCE)]
                more += ["-timeout", f"{LIMIT_S:.0f}s", "-timeout_error", f"{HOST}:{relay.far}"]
                return ManyCalls(tmp_path, "call_many", relay.sipp_port, *more, path_tail=tails.pop())

            callees, process = asyncio.run(take_calls(edge.url, stub, sipp))
            assert process.process.returncode == 0, process.errors() or process.log()[-2000:]
            assert process.count("SuccessfulCall") == CALLS
            assert process.count("FailedCall") == 0
        requests = sum((callee.requests for callee in callees), Counter[tuple[str, str]]())
        for method in ("INVITE", "BYE"):
            assert Counter(times for (_, name), times in requests.items() if name == method) == {1: CALLS}
        assert sum(1 for _, name in requests if name == "ACK") > CALLS * 0.9
        assert relay.repeated("INVITE") + relay.repeated("BYE") > CALLS * LOSS / 2
