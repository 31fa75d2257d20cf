"""What tests of every room share: free ports, a certificate, programs that end with their test, and waiting.

Nothing here knows SIP, WebSocket or a class of fastws.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, TypeVar

import pytest

ROOT = Path(__file__).resolve().parent.parent

T = TypeVar("T")


def wait_for(condition: Callable[[], T], timeout: float = 5.0, what: str = "") -> T:
    """The first true value of `condition`, asked every 5 ms; fails the test after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            name = what or getattr(condition, "__qualname__", repr(condition))
            pytest.fail(f"waited {timeout} s in vain for {name}")
        time.sleep(0.005)


_given: set[int] = set()
_ports = random.Random()


def free_port(host: str = "127.0.0.1") -> int:
    """A port that is free for TCP and UDP alike, and that this test run has not been given before.

    It lies below the range from which the system takes the ports of outgoing connections, or one of those could take it
    before the program that it is for has started.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for _ in range(1000):
        port = _ports.randrange(10_000, 32_000)
        if port in _given:
            continue
        with socket.socket(family, socket.SOCK_STREAM) as tcp, socket.socket(family, socket.SOCK_DGRAM) as udp:
            try:
                tcp.bind((host, port))
                udp.bind((host, port))
            except OSError:
                continue
        _given.add(port)
        return port
    raise RuntimeError("no port is free for both TCP and UDP")


@pytest.fixture
def port() -> int:
    """One free port of 127.0.0.1."""
    return free_port()


@pytest.fixture
def ports() -> Callable[[int], list[int]]:
    """`ports(3)`: as many different free ports of 127.0.0.1."""
    return lambda count: [free_port() for _ in range(count)]


@dataclass(frozen=True)
class Certificate:
    """Paths of a self-signed certificate for localhost, 127.0.0.1 and ::1, and of its key, both PEM."""

    cert: Path
    key: Path


def make_certificate(folder: Path, name: str = "localhost") -> Certificate:
    """Write NAME.crt and NAME.key into `folder`; each call makes another key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(
            x509.SubjectAlternativeName(
                [
                    x509.DNSName("localhost"),
                    x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
                    x509.IPAddress(ipaddress.ip_address("::1")),
                ]
            ),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    made = Certificate(folder / f"{name}.crt", folder / f"{name}.key")
    made.cert.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    made.key.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return made


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    """A self-signed certificate that all tests of a run share."""
    return make_certificate(tmp_path_factory.mktemp("certificate"))


class Program:
    """One running program: its process, and what it has written so far."""

    def __init__(self, process: subprocess.Popen[bytes], stdout: Path, stderr: Path) -> None:
        self.process = process
        self._stdout = stdout
        self._stderr = stderr

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def stdout(self) -> str:
        return self._stdout.read_text(errors="replace")

    @property
    def stderr(self) -> str:
        return self._stderr.read_text(errors="replace")

    def wait(self, timeout: float = 20.0) -> int:
        """The exit status; fails the test if the program is still running after `timeout` seconds."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            pytest.fail(f"{self.process.args!r} still runs after {timeout} s; stderr: {self.stderr[-2000:]}")

    def wait_for_line(self, text: str, timeout: float = 20.0) -> str:
        """The first complete line of stdout or stderr that contains `text`; fails if the program ends without it."""

        def found() -> str | None:
            ended = self.process.poll() is not None
            for line in (self.stdout + self.stderr).splitlines(keepends=True):
                if text in line and line.endswith("\n"):
                    return line.rstrip("\n")
            if ended:
                pytest.fail(f"{self.process.args!r} ended with {self.process.returncode}: {self.stderr[-2000:]}")
            return None

        return wait_for(found, timeout, f"{text!r} from {self.process.args!r}") or ""

    def stop(self, timeout: float = 10.0) -> int:
        """SIGTERM to the program by its process id, SIGKILL to its group if it does not end, and its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(timeout)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)  # its own session, see ProcessGuard.start
        return self.process.wait()


class ProcessGuard:
    """Starts programs and ends all of them, the last one first, when the test is over."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._programs: list[Program] = []

    def start(
        self, command: Sequence[str | Path], *, env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> Program:
        """Start a program. `env` is added to the environment; its output goes to files, so no pipe can fill up."""
        arguments = [str(part) for part in command]
        environment = {**os.environ, **(env or {})}
        if arguments[0] != sys.executable:
            environment.pop("LD_PRELOAD", None)  # the sanitizers of `make asan` are for this Python alone
        name = f"{len(self._programs)}-{Path(arguments[0]).name}"
        stdout, stderr = self._folder / f"{name}.out", self._folder / f"{name}.err"
        with open(stdout, "wb") as out, open(stderr, "wb") as err:
            process = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env=environment,
                cwd=cwd or ROOT,
                start_new_session=True,
            )
        program = Program(process, stdout, stderr)
        self._programs.append(program)
        return program

    def fastws(self, *arguments: str | Path, env: Mapping[str, str] | None = None) -> Program:
        """Start `fastws ARGUMENTS` with this Python."""
        return self.start([sys.executable, "-m", "fastws", *arguments], env=env)

    def stop_all(self) -> None:
        while self._programs:
            self._programs.pop().stop()


@pytest.fixture
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProcessGuard]:
    """A ProcessGuard whose programs do not outlive the test."""
    guard = ProcessGuard(tmp_path_factory.mktemp("processes"))
    try:
        yield guard
    finally:
        guard.stop_all()


def need_program(name: str) -> str:
    """The path of a peer program. Without it the test is skipped, or fails if FASTWS_REQUIRE_PEERS is 1 (as in CI)."""
    path = shutil.which(name)
    if path is None and os.path.exists(f"/usr/sbin/{name}"):  # not on every user's PATH
        path = f"/usr/sbin/{name}"
    if path is None:
        missing_peer(name)
    return path


def missing_peer(name: str) -> NoReturn:
    """Say that a peer is missing: a skip, or a failure if FASTWS_REQUIRE_PEERS is 1."""
    if os.environ.get("FASTWS_REQUIRE_PEERS") == "1":
        pytest.fail(f"{name} is missing, and FASTWS_REQUIRE_PEERS=1 asks for it")
    pytest.skip(f"{name} is not installed")
