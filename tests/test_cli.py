"""The command: what it prints, what it calls, and that no mistake of a user ends in a traceback."""

from __future__ import annotations

import logging
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from fastws.cli import main
from fastws.config import Config
from fastws.errors import ConfigError, PolicyError
from tests.conftest import ROOT, ProcessGuard, free_port


@pytest.fixture(autouse=True)
def root_logger_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


class Stub:
    """Stands for fastws.policy, fastws.worker and fastws.demo, and keeps what they were called with."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.loaded: list[tuple[Path | None, float]] = []
        self.ran: list[tuple[Config, Any]] = []
        self.policy: Any = SimpleNamespace(on_handshake=None, describe=lambda: "p.py: on_request")
        self.policy_error: Exception | None = None
        self.worker_error: BaseException | None = None
        self.status: int | None = 0
        for name in ("policy", "worker", "demo"):
            module = ModuleType(f"fastws.{name}")
            monkeypatch.setitem(sys.modules, f"fastws.{name}", module)
        sys.modules["fastws.policy"].Policy = SimpleNamespace(load=self.load)  # type: ignore[attr-defined]
        sys.modules["fastws.worker"].run = self.run  # type: ignore[attr-defined]
        sys.modules["fastws.demo"].main = lambda: self.status  # type: ignore[attr-defined]

    def load(self, path: Path | None, *, timeout: float) -> Any:
        self.loaded.append((path, timeout))
        if self.policy_error is not None:
            raise self.policy_error
        return self.policy

    def run(self, config: Config, policy: Any) -> int:
        self.ran.append((config, policy))
        if self.worker_error is not None:
            raise self.worker_error
        assert self.status is not None
        return self.status


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Stub:
    return Stub(monkeypatch)


def fastws(*arguments: str | bytes) -> subprocess.CompletedProcess[str]:
    """Run the command as its own process, from the tree under test."""
    return subprocess.run(
        [sys.executable, "-m", "fastws", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )


# Help and version


def test_the_bare_command_shows_the_three_lines_that_a_new_user_needs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 8
    commands = [line.split("   ")[0].strip() for line in lines if line.startswith("  fastws ")]
    assert commands == ["fastws demo", "fastws serve", "fastws serve --upstream sip:pbx.example.com"]


def test_the_three_lines_are_true(stub: Stub) -> None:
    assert main(["serve", "--upstream", "sip:pbx.example.com"]) == 0
    assert main(["serve"]) == 0
    assert [config.listen[0].url for config, _ in stub.ran] == ["ws://127.0.0.1:8080"] * 2


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"fastws {version}\n"


def test_help_of_a_command_lists_flags_and_keys(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--help"]) == 0
    out = capsys.readouterr().out
    for flag in (
        "--config", "--listen", "--upstream", "--policy", "--sip", "--tls-cert", "--tls-key", "--workers",
        "--log-format", "--log-level",
    ):  # fmt: skip
        assert f"  {flag} " in out
    for key in ("ping_interval", "trusted", "open", "secret_file", "users"):
        assert f"\n  {key} " in out
    assert "--control" not in out and "--metrics" not in out


def test_help_lists_the_commands_that_exist(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"    {command} " in out for command in ("serve", "check", "demo"))
    assert "ctl" not in out


# serve


def test_serve_hands_configuration_and_policy_to_the_worker(stub: Stub, tmp_path: Path) -> None:
    (tmp_path / "p.py").touch()
    (tmp_path / "edge.toml").write_text("policy = 'p.py'\npolicy_timeout = 2\nopen = true\n")
    stub.status = 7
    assert main(["serve", "--config", str(tmp_path / "edge.toml"), "--listen", "ws://0.0.0.0:81"]) == 7
    assert stub.loaded == [(tmp_path / "p.py", 2.0)]
    ((config, policy),) = stub.ran
    assert config.listen[0].port == 81
    assert policy is stub.policy


def test_serve_sets_up_the_log_before_the_policy_is_loaded(stub: Stub, capsys: pytest.CaptureFixture[str]) -> None:
    stub.policy_error = PolicyError("p.py", "expected a function, got 5")

    def load(path: Path | None, *, timeout: float) -> Any:
        logging.getLogger("p").debug("imported")
        raise PolicyError("p.py: on_close", "expected a function, got 5")

    sys.modules["fastws.policy"].Policy.load = load
    assert main(["serve", "--log-format", "json", "--log-level", "debug"]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert '"message":"imported"' in first
    assert second == "fastws: p.py: on_close: expected a function, got 5"
    assert stub.ran == []


def test_serve_refuses_an_open_registrar_beyond_loopback(stub: Stub, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--listen", "ws://0.0.0.0:8080"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("fastws: open: expected `open = true`") and err.count("\n") == 1
    assert stub.ran == []
    stub.policy.on_handshake = lambda handshake: None
    assert main(["serve", "--listen", "ws://0.0.0.0:8080"]) == 0


def test_a_port_in_use_is_one_line(stub: Stub, capsys: pytest.CaptureFixture[str]) -> None:
    stub.worker_error = ConfigError("--listen", "ws://127.0.0.1:8080 is in use")
    assert main(["serve"]) == 2
    assert capsys.readouterr().err == "fastws: --listen: ws://127.0.0.1:8080 is in use\n"


def test_an_interrupt_leaves_no_traceback(stub: Stub, capsys: pytest.CaptureFixture[str]) -> None:
    stub.worker_error = KeyboardInterrupt()
    assert main(["serve"]) == 130
    assert capsys.readouterr().err == ""


def test_a_message_cannot_break_its_line_or_reach_the_terminal(
    stub: Stub, capsys: pytest.CaptureFixture[str]
) -> None:
    stub.policy_error = PolicyError("p\n.py", "got \x1b[31m")
    assert main(["serve"]) == 2
    assert capsys.readouterr().err == "fastws: p\\n.py: got \\x1b[31m\n"


# check


def test_check_prints_what_would_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "edge.toml").write_text("max_headers = 65\n")
    arguments = ["--config", str(tmp_path / "edge.toml"), "--upstream", "sip:pbx.example.com"]
    assert main(["check", *arguments]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "listen    ws://127.0.0.1:8080 (any path)",
        "upstream  sip:pbx.example.com (udp to pbx.example.com, port 5060)",
        "sip       port 5070 of the address from which the upstream is reached",
        "setting   max_headers = 65 (default 64)",
        "policy    none: everyone who speaks sip is accepted",
    ]


def test_check_loads_the_policy_and_says_its_hooks(
    stub: Stub, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    policy = tmp_path / "p.py"
    policy.touch()
    assert main(["check", "--policy", str(policy)]) == 0
    assert stub.loaded == [(policy, 5.0)]
    assert capsys.readouterr().out.splitlines()[-1] == "policy    p.py: on_request"
    assert stub.ran == []


def test_check_finds_what_serve_would_refuse(stub: Stub, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    policy = tmp_path / "p.py"
    policy.touch()
    for arguments in (["--listen", "ws://[::]:1"], ["--listen", "ws://[::]:1", "--policy", str(policy)]):
        assert main(["check", *arguments]) == 2
        assert capsys.readouterr().err.startswith("fastws: open: ")
    stub.policy_error = PolicyError(str(policy), "cannot be imported")
    assert main(["check", "--policy", str(policy)]) == 2
    assert capsys.readouterr() == ("", f"fastws: {policy}: cannot be imported\n")


# demo


@pytest.mark.parametrize(("returned", "status"), [(None, 0), (0, 0), (3, 3)])
def test_demo_ends_with_the_status_of_the_demo(stub: Stub, returned: int | None, status: int) -> None:
    stub.status = returned
    assert main(["demo"]) == status


# Mistakes in the arguments


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["ctl"], "COMMAND: invalid choice: 'ctl'"),
        (["--bogus"], "the following arguments are required: COMMAND"),
        (["serve", "--listen"], "--listen: expected one argument"),
        (["serve", "--lisen", "x"], "--lisen: expected a known option, got an unknown one; did you mean --listen?"),
        (["serve", "--list", "x"], "--list: expected a known option, got an unknown one; did you mean --listen?"),
        (["serve", "--tls-key=1", "--zz=secret"], "--zz: expected a known option, got an unknown one"),
        (["check", "edge.toml"], "edge.toml: expected a known option, got an unknown one"),
        (["serve", "--control", "/run/x"], "--control: expected a known option, got an unknown one"),
        (["demo", "--listen", "x"], "--listen: expected a known option, got an unknown one"),
        (["serve", "--listen", "x"], "--listen: expected ws://HOST:PORT[/PATH] or wss://HOST:PORT[/PATH], got 'x'"),
        (["serve", "--workers", "4"], "--workers: expected 1, as this version runs one worker, got '4'"),
        (["serve", "--config", "/no/such.toml"], "/no/such.toml: expected a TOML file, got: No such file or directory"),
        (["serve", "--config", ""], ".: expected a TOML file, got: Is a directory"),
    ],
)
def test_a_mistake_in_the_arguments_is_one_line_and_status_2(
    stub: Stub, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"fastws: {said}") and err.count("\n") == 1
    assert "secret" not in err
    assert stub.ran == []


# As a process


def test_python_m_fastws_is_the_command(processes: ProcessGuard) -> None:
    program = processes.fastws("check", "--upstream", "sip:127.0.0.1:5070")
    assert program.wait() == 0
    assert program.stdout.splitlines()[1] == "upstream  sip:127.0.0.1:5070 (udp to 127.0.0.1, port 5070)"
    assert program.stderr == ""


def test_a_mistake_ends_the_process_with_status_2_and_nothing_on_stdout() -> None:
    done = fastws("check", "--sip", "here")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "fastws: --sip: expected HOST:PORT, got 'here'\n"


def test_bytes_that_are_not_utf_8_in_an_argument_leave_no_traceback() -> None:
    for flag in ("--listen", "--policy", "--config"):
        done = fastws("check", flag, b"\xff\xfe")
        assert done.returncode == 2
        assert done.stderr.startswith("fastws: ") and done.stderr.count("\n") == 1


def test_a_reader_that_leaves_early_leaves_no_traceback() -> None:
    command = [sys.executable, "-m", "fastws", "check"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert process.wait(60) == 1
    assert err == b""


def test_the_event_loop_is_not_loaded_to_read_the_arguments() -> None:
    code = (
        "import sys; from fastws.cli import main\n"
        "assert main(['check']) == 0\n"
        "loaded = {'uvloop', 'picows', 'rich', 'orjson', 'fastws.worker', 'fastws.tls'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_serve_says_when_it_is_ready_and_ends_with_0_at_sigterm(processes: ProcessGuard, port: int) -> None:
    program = processes.fastws("serve", "--listen", f"ws://127.0.0.1:{port}", "--sip", f"127.0.0.1:{free_port()}")
    program.wait_for_line(f"fastws ready: ws://127.0.0.1:{port}")
    assert program.stop() == 0
    assert "Traceback" not in program.stderr


def test_a_port_in_use_ends_the_process_with_status_2_and_one_line(processes: ProcessGuard, port: int) -> None:
    with socket.create_server(("127.0.0.1", port)):
        program = processes.fastws("serve", "--listen", f"ws://127.0.0.1:{port}", "--sip", f"127.0.0.1:{free_port()}")
        assert program.wait() == 2
    (line,) = [line for line in program.stderr.splitlines() if line.startswith("fastws: ")]
    assert f"127.0.0.1:{port}" in line
    assert "Traceback" not in program.stderr
