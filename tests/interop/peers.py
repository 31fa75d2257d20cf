# The processes around a phone: the edge under test, Kamailio behind it, SIPp, and a registrar that is only a socket.
# Each is a context manager that owns its process and its log; none knows what a test wants to see.

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from ..conftest import ROOT, Certificate, free_port, need_program, wait_for

HERE = Path(__file__).parent
HOST = "127.0.0.1"


class Daemon:
    """A child process whose output goes to a file; leaving the context ends it and looks at how it ended."""

    def __init__(self, command: list[str], log: Path, environment: dict[str, str] | None = None) -> None:
        self.log_file = log
        self.name = " ".join(command)
        inherited = dict(os.environ)
        if command[0] != sys.executable:
            inherited.pop("LD_PRELOAD", None)  # the sanitizers of `make asan` are for this Python alone
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**inherited, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def log(self) -> str:
        """All that the process has printed so far."""
        return self.log_file.read_text(encoding="utf-8", errors="replace")

    def wait_ready(self, ready: Callable[[], bool]) -> None:
        """Wait until it is ready; AssertionError with its log when it ends or 15 s pass before."""
        with suppress(pytest.fail.Exception):
            wait_for(lambda: self.process.poll() is not None or ready(), 15)
            if self.process.poll() is None:
                return
        self.kill()
        raise AssertionError(f"{self.name}: not ready, ended with {self.process.returncode}\n{self.log()}")

    def kill(self) -> None:
        if self.process.poll() is None:
            # The whole group: Kamailio's children do not notice that their parent was killed.
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def terminate(self, timeout: float = 20.0) -> int:
        """SIGTERM, then its exit status; AssertionError with its log when it does not end within `timeout` s."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"{self.name}: alive {timeout} s after SIGTERM\n{self.log()}") from None

    def finish(self) -> None:
        self.terminate()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # A test that failed already has its say; how the process ended must not hide it.
        if error is None:
            self.finish()
        else:
            self.kill()


class Edge(Daemon):
    """`fastws serve` on free ports of 127.0.0.1.

    `upstream` is a list of SIP URIs (none: the embedded registrar); `policy` the text of a policy module; `config` the
    text of a TOML file; `tls` the certificate, which makes the listener wss.
    On leaving: SIGTERM must end it with status 0, and its log must hold no traceback.
    """

    def __init__(
        self,
        directory: Path,
        *,
        upstream: list[str] | None = None,
        policy: str | None = None,
        config: str | None = None,
        tls: Certificate | None = None,
        flags: list[str] | None = None,
    ) -> None:
        self.port = free_port()
        self.sip_port = free_port()
        self.url = f"{'wss' if tls else 'ws'}://{HOST}:{self.port}"
        self.ca = tls.cert if tls else None
        command = [sys.executable, "-m", "fastws", "serve", "--listen", self.url, "--sip", f"{HOST}:{self.sip_port}"]
        for uri in upstream or []:
            command += ["--upstream", uri]
        if policy is not None:
            (directory / "policy.py").write_text(policy, encoding="utf-8")
            command += ["--policy", str(directory / "policy.py")]
        if config is not None:
            (directory / "fastws.toml").write_text(config, encoding="utf-8")
            command += ["--config", str(directory / "fastws.toml")]
        if tls is not None:
            command += ["--tls-cert", str(tls.cert), "--tls-key", str(tls.key)]
        super().__init__(command + (flags or []), directory / "fastws.log")
        self.wait_ready(lambda: "fastws ready:" in self.log())

    def finish(self) -> None:
        status = self.terminate()
        assert status == 0, f"fastws ended with status {status}\n{self.log()}"
        assert "Traceback" not in self.log(), self.log()


class Kamailio(Daemon):
    """Kamailio with kamailio.cfg on one free port, UDP and TCP; `websocket` has it serve browsers there too.

    On leaving, its log must hold no error: whatever the edge sent, a strict parser had nothing to say against it.
    """

    def __init__(self, directory: Path, *, websocket: bool = False) -> None:
        self.port = free_port()
        self.url = f"ws://{HOST}:{self.port}"
        self.ca: Path | None = None
        run = directory / "run"
        run.mkdir(exist_ok=True)
        # -DD stays in the foreground, -E logs to stderr, -m and -M are MB of memory, shared and for each process.
        command = [need_program("kamailio"), "-DD", "-E", "-m", "32", "-M", "8", "-Y", str(run), "-w", str(directory)]
        command += ["-f", str(HERE / "kamailio.cfg"), "-l", f"udp:{HOST}:{self.port}", "-l", f"tcp:{HOST}:{self.port}"]
        if websocket:
            command += ["-A", "WITH_WEBSOCKET"]
        super().__init__(command, directory / "kamailio.log")
        self.wait_ready(self._answers)

    def _answers(self) -> bool:
        probe = (
            f"OPTIONS sip:{HOST}:{self.port} SIP/2.0\r\n"
            "Via: SIP/2.0/UDP {sent_by};branch=z9hG4bKready{now}\r\n"
            "From: <sip:probe@example.com>;tag=1\r\nTo: <sip:example.com>\r\n"
            "Call-ID: ready{now}\r\nCSeq: 1 OPTIONS\r\nMax-Forwards: 5\r\nContent-Length: 0\r\n\r\n"
        )
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            udp.bind((HOST, 0))
            udp.settimeout(0.3)
            udp.connect((HOST, self.port))
            sent_by = f"{HOST}:{udp.getsockname()[1]}"
            try:
                udp.send(probe.format(sent_by=sent_by, now=time.monotonic_ns()).encode())
                return udp.recv(4096).startswith(b"SIP/2.0 200")
            except OSError:  # refused or silent: not up yet
                return False

    def finish(self) -> None:
        assert self.process.poll() is None, f"kamailio ended with status {self.process.returncode}\n{self.log()}"
        errors = [line for line in self.log().splitlines() if re.search(r"\b(ERROR|CRITICAL|BUG):", line)]
        # Not SIGTERM: its handler takes the lock of the shared memory, which the process it interrupts may be holding,
        # and then Kamailio 5.6 waits for itself. It keeps nothing on disk that an orderly end would save.
        self.kill()
        assert not errors, "\n".join(errors)


def header_values(message: str, name: str) -> list[str]:
    """The values of all header lines of this (long) name, in order, unsplit."""
    pattern = re.compile(rf"^{re.escape(name)}\s*:\s*(.*?)\s*$", re.IGNORECASE | re.MULTILINE)
    return pattern.findall(message.partition("\r\n\r\n")[0].replace("\r\n", "\n"))


class RegistrarStub:
    """An upstream that only answers 200 to REGISTER and remembers how its client can be reached.

    For scenarios in which SIPp calls a browser: SIPp keeps no registrations, so this does, on UDP or TCP.
    """

    def __init__(self, transport: str) -> None:
        self.transport = transport
        self.port = free_port()
        self.uri = f"sip:{HOST}:{self.port};transport={transport}"
        self.path = ""
        self.contact = ""
        kind = socket.SOCK_DGRAM if transport == "udp" else socket.SOCK_STREAM
        self._socket = socket.socket(socket.AF_INET, kind)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind((HOST, self.port))
        self._connections: list[socket.socket] = []
        serve = self._serve_datagrams if transport == "udp" else self._serve_streams
        self._thread = threading.Thread(target=serve, daemon=True)
        self._thread.start()

    def _answer(self, message: str) -> bytes:
        if not message.startswith("REGISTER "):
            return b""
        contact = header_values(message, "Contact")[0]
        path = header_values(message, "Path")
        match = re.search(r"<([^>]*)>", contact)
        assert match is not None and len(path) == 1
        lines = ["SIP/2.0 200 OK"]
        for name in ("Via", "From", "To", "Call-ID", "CSeq", "Path"):
            tag = ";tag=stub" if name == "To" else ""
            lines += [f"{name}: {value}{tag}" for value in header_values(message, name)]
        expires = "" if "expires=" in contact else ";expires=600"
        lines += [f"Contact: {contact}{expires}", "Content-Length: 0", "", ""]
        self.contact, self.path = match[1], path[0]
        return "\r\n".join(lines).encode()

    def _serve_datagrams(self) -> None:
        try:
            while True:
                data, source = self._socket.recvfrom(65536)
                answer = self._answer(data.decode("utf-8", "replace"))
                if answer:
                    self._socket.sendto(answer, source)
        except OSError:
            return  # closed

    def _serve_streams(self) -> None:
        try:
            self._socket.listen()
            while True:
                connection, _ = self._socket.accept()
                self._connections.append(connection)
                threading.Thread(target=self._serve_stream, args=(connection,), daemon=True).start()
        except OSError:
            return  # closed

    def _serve_stream(self, connection: socket.socket) -> None:
        buffered = b""
        try:
            while data := connection.recv(65536):
                buffered += data
                # What is sent here has no body, so the blank line ends a message; CRLF keep-alives come before one.
                while b"\r\n\r\n" in buffered.lstrip(b"\r\n"):
                    head, _, buffered = buffered.lstrip(b"\r\n").partition(b"\r\n\r\n")
                    connection.sendall(self._answer(head.decode("utf-8", "replace")))
        except OSError:
            return  # closed

    def close(self) -> None:
        for one in (self._socket, *self._connections):
            # Closing alone does not wake a thread that waits in accept or recv; shutdown does.
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        self._thread.join(5)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def session_description(size: int = 0) -> str:
    """The SDP of the phones, padded with candidates to at least `size` bytes; phone.mjs builds the same text."""
    lines = [
        "v=0",
        "o=- 2718281828 2 IN IP4 127.0.0.1",
        "s=-",
        "t=0 0",
        "m=audio 9 UDP/TLS/RTP/SAVPF 111",
        "c=IN IP4 127.0.0.1",
        "a=rtpmap:111 opus/48000/2",
        "a=sendrecv",
    ]
    port = 10000
    while sum(len(line) + 2 for line in lines) < size:
        lines.append(f"a=candidate:{port} 1 udp 2122260223 127.0.0.1 {port} typ host generation 0")
        port += 1
    return "\r\n".join(lines) + "\r\n"


class Sipp(Daemon):
    """One call by one of the scenarios in sipp/, as a server that waits for it or as one that makes it.

    `fields` replace @NAME@ in the scenario; `target` is the port that it calls, None to wait to be called.
    """

    def __init__(
        self, directory: Path, scenario: str, port: int, transport: str, target: int | None = None, **fields: str
    ) -> None:
        text = (HERE / "sipp" / f"{scenario}.xml").read_text(encoding="utf-8")
        for name, value in fields.items():
            text = text.replace(f"@{name.upper()}@", value)
        scenario_file = directory / f"{scenario}.xml"
        scenario_file.write_text(text, encoding="utf-8")
        self.errors_file = directory / "sipp-errors.log"
        command = [need_program("sipp"), "-sf", str(scenario_file), "-i", HOST, "-p", str(port), "-m", "1", "-nostdin"]
        command += ["-t", "u1" if transport == "udp" else "t1", "-timeout", "20s", "-timeout_error"]
        command += ["-trace_err", "-error_file", str(self.errors_file)]
        if target is not None:
            command.append(f"{HOST}:{target}")
        # SIPp draws its statistics on a terminal and needs to know which.
        super().__init__(command, directory / "sipp.log", {"TERM": "xterm"})
        if target is None:
            self.wait_ready(lambda: port_taken(port, transport))

    def finish(self) -> None:
        """Wait for the end of the scenario; AssertionError with SIPp's own complaint if it did not end well."""
        try:
            status = self.process.wait(25)
        except subprocess.TimeoutExpired:
            self.kill()
            status = -1
        errors = self.errors_file.read_text(encoding="utf-8", errors="replace") if self.errors_file.exists() else ""
        assert status == 0, f"sipp ended with status {status}\n{errors or self.log()[-3000:]}"


def port_taken(port: int, transport: str) -> bool:
    """Whether a socket of this host is bound to the port."""
    kind = socket.SOCK_DGRAM if transport == "udp" else socket.SOCK_STREAM
    with socket.socket(socket.AF_INET, kind) as probe:
        try:
            probe.bind((HOST, port))
        except OSError:
            return True
    return False
