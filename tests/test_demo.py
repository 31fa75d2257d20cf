"""The demo as a new user meets it: what it shows, that it tells the truth, and how it ends."""

from __future__ import annotations

import os
import re
import select
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fastws import demo
from tests.conftest import ROOT, wait_for

COMMAND = [sys.executable, "-m", "fastws", "demo"]
COLOUR = re.compile(r"\x1b\[(?:\d+;)*(?:3[0-7]|9[0-7]|38|48)[;\dm]")  # SGR that sets a colour
LIMIT_S = 15.0


def environment(**more: str) -> dict[str, str]:
    """This one's, without what would decide about colour and width instead of the test."""
    decides = ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "TERM", "COLUMNS", "LINES")
    inherited = {name: value for name, value in os.environ.items() if name not in decides}
    return {**inherited, "TERM": "xterm-256color", "COLUMNS": "80", **more}


@pytest.fixture(scope="module")
def piped() -> subprocess.CompletedProcess[str]:
    """One run whose output goes into pipes."""
    started = time.monotonic()
    done = subprocess.run(COMMAND, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=60, check=False)
    assert time.monotonic() - started < LIMIT_S
    return done


class Terminal:
    """The demo on a terminal of 80 columns, and what it has written there."""

    def __init__(self, process: subprocess.Popen[bytes], fd: int) -> None:
        self.process = process
        self.text = ""
        self._fd = fd

    def read(self) -> bool:
        """Take what is there; False at the end."""
        if not select.select([self._fd], [], [], 0.05)[0]:
            return True
        try:
            data = os.read(self._fd, 65536)
        except OSError:  # EIO: nobody holds the other end any more
            return False
        self.text += data.decode(errors="replace")
        return bool(data)

    def shows(self, text: str) -> bool:
        self.read()
        return text in self.text

    def status(self) -> int:
        """Read to the end; the exit status."""
        wait_for(lambda: not self.read(), 30, "the end of the demo")
        return self.process.wait(10)


@contextmanager
def on_terminal(**more: str) -> Iterator[Terminal]:
    ours, theirs = os.openpty()
    process = subprocess.Popen(
        COMMAND,
        cwd=ROOT,
        env=environment(**more),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    try:
        yield Terminal(process, ours)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        os.close(ours)


# What it shows


def test_it_ends_by_itself_with_status_0_and_says_nothing_on_stderr(
    piped: subprocess.CompletedProcess[str],
) -> None:
    assert (piped.returncode, piped.stderr) == (0, "")
    assert "Traceback" not in piped.stdout
    assert re.search(r"^All \d+ checks passed\.$", piped.stdout, re.MULTILINE)


def test_the_policy_on_the_screen_is_the_policy_that_is_loaded(piped: subprocess.CompletedProcess[str]) -> None:
    shown = [line[2:-2].rstrip() for line in piped.stdout.splitlines() if line.startswith("│ ")]
    policy = demo.POLICY.splitlines()
    assert shown[: len(policy)] == policy


def test_each_exchange_is_one_line_with_who_what_and_why(piped: subprocess.CompletedProcess[str]) -> None:
    lines = re.findall(r"^  (\w+) +-> (\w+) +(\S.*?)  +(\S.*)$", piped.stdout, re.MULTILINE)
    told = [(f"{sender} -> {receiver}", message) for sender, receiver, message, _ in lines]
    assert told == [
        ("alice -> fastws", "GET / HTTP/1.1"),
        ("fastws -> alice", "HTTP/1.1 101 Switching Protocols"),
        ("alice -> fastws", "REGISTER sip:example.com"),
        ("fastws -> alice", "200 OK"),
        ("bob -> fastws", "GET / HTTP/1.1"),
        ("fastws -> bob", "HTTP/1.1 101 Switching Protocols"),
        ("bob -> fastws", "REGISTER sip:example.com"),
        ("fastws -> bob", "200 OK"),
        ("alice -> bob", "INVITE sip:bob@example.com"),
        ("bob -> alice", "180 Ringing"),
        ("bob -> alice", "200 OK"),
        ("alice -> bob", "ACK sip:bob@b.invalid;transport=ws"),
        ("alice -> bob", "BYE sip:bob@b.invalid;transport=ws"),
        ("bob -> alice", "200 OK"),
        ("guest -> fastws", "GET / HTTP/1.1"),
        ("fastws -> guest", "HTTP/1.1 403 Forbidden"),
        ("phish -> fastws", "GET / HTTP/1.1"),
        ("fastws -> phish", "HTTP/1.1 403 Forbidden"),
        ("trudy -> fastws", "GET / HTTP/1.1"),
        ("fastws -> trudy", "HTTP/1.1 101 Switching Protocols"),
        ("trudy -> fastws", "INVITE sip:bob@example.com"),
        ("fastws -> trudy", "403 Identity mismatch"),
        ("fastws -> trudy", "WebSocket close 1008"),
    ]


def test_both_tables_are_there(piped: subprocess.CompletedProcess[str]) -> None:
    rows = [
        [cell.strip() for cell in line.strip("│").split("│")]
        for line in piped.stdout.splitlines()
        if line.startswith("│") and line.count("│") > 2
    ]
    assert rows[0] == ["address", "port", "user", "messages in", "messages out"]
    for row, user in zip(rows[1:3], ("alice", "bob"), strict=True):
        assert row[0] == "127.0.0.1" and row[1].isdigit() and row[2:4] == [user, "4"]
        assert row[4] in ("4", "5" if user == "alice" else "4")  # a caller may be sent a 100 as well
    assert rows[3:] == [
        ["user", "terminator", "code", "reason"],
        ["trudy", "policy", "1008", "Identity mismatch"],
        ["bob", "client", "1000", "signed out"],
        ["alice", "network", "1006", "-"],
    ]


def test_the_last_line_starts_fastws_for_good(piped: subprocess.CompletedProcess[str], tmp_path: Path) -> None:
    last = piped.stdout.splitlines()[-1]
    assert last == "fastws serve --listen ws://0.0.0.0:8080 --upstream sip:pbx.example.com --policy policy.py"
    name, command, *flags = shlex.split(last)
    assert (name, command) == ("fastws", "serve")
    (tmp_path / "policy.py").write_text(demo.POLICY)
    done = subprocess.run(
        [sys.executable, "-m", "fastws", "check", *flags],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "policy.py: on_handshake, on_request, on_close" in done.stdout


def test_it_fits_80_columns(piped: subprocess.CompletedProcess[str]) -> None:
    *lines, _command = piped.stdout.splitlines()
    assert [line for line in lines if len(line) > 80] == []


# Where it shows it


def test_without_a_terminal_there_are_no_escape_codes(piped: subprocess.CompletedProcess[str]) -> None:
    assert "\x1b" not in piped.stdout


def test_on_a_terminal_it_is_in_colour_and_slow_enough_to_follow() -> None:
    started = time.monotonic()
    with on_terminal() as terminal:
        assert terminal.status() == 0, terminal.text
    assert COLOUR.search(terminal.text)
    assert 3 < time.monotonic() - started < LIMIT_S
    assert demo.START in terminal.text


def test_an_interrupt_ends_it_without_a_traceback_and_no_color_is_obeyed() -> None:
    with on_terminal(NO_COLOR="1") as terminal:
        wait_for(lambda: terminal.shows("180 Ringing"), 20, "the call")
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.status() == 130
    assert "Traceback" not in terminal.text and "failed" not in terminal.text
    assert not COLOUR.search(terminal.text)


def test_an_encoding_without_boxes_is_no_obstacle() -> None:
    done = subprocess.run(
        COMMAND, cwd=ROOT, env=environment(PYTHONIOENCODING="ascii"), capture_output=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"| trudy | policy     | 1008 | Identity mismatch |" in done.stdout


def test_a_reader_that_leaves_early_leaves_no_traceback() -> None:
    process = subprocess.Popen(COMMAND, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert process.wait(60) == 1
    assert err == b""


# That it tells the truth


@pytest.mark.parametrize(
    ("true", "false", "told"),
    [
        (
            'return request.reject(403, "Identity mismatch", close=True)',
            "return None",
            "Step 5 failed: trudy waited 1 s in vain for the 403 that an impostor gets",
        ),
        (
            ', "Identity mismatch", close=True',
            ', "Identity mismatch"',
            "Step 5 failed: trudy is still connected after 1 s",
        ),
        (
            ' or handshake.headers.get("Origin") != ORIGIN',
            "",
            "Step 4 failed: the HTTP status for phish: expected 403, got 101",
        ),
        (
            "reject(403)\n",
            "reject(404)\n",
            "Step 4 failed: the HTTP status for guest: expected 403, got 404",
        ),
        (
            '"c21b": "bob"',
            '"c21b": "bobby"',
            "Step 2 failed: the HTTP status for bob: expected 101, got 403",
        ),
        (
            "closed.append(",
            "print(",
            "The table of ends failed: on_close was not called 2 times within 1 s",
        ),
        (
            "terminator, code, reason))",
            '"operator", code, reason))',
            "The table of ends failed: what on_close was told: expected ",
        ),
        (
            "SESSIONS = {",
            "SESSIONS = 5, {",
            "The start failed: AttributeError: ",
        ),
    ],
)
def test_what_does_not_happen_is_told_in_one_line_with_status_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], true: str, false: str, told: str
) -> None:
    assert demo.POLICY.count(true) == 1
    monkeypatch.setattr(demo, "POLICY", demo.POLICY.replace(true, false))
    monkeypatch.setattr(demo, "ANSWER_S", 1.0)
    assert demo.main() == 1
    out, err = capsys.readouterr()
    assert err == "" and "Traceback" not in out
    *_, failure, summary = out.splitlines()
    assert failure.startswith(told)
    assert re.fullmatch(r"1 check failed, \d+ passed\.", summary)
    assert demo.START not in out


def test_it_ends_in_time_whatever_hangs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    policy = demo.POLICY.replace("def on_handshake", "async def on_handshake").replace(
        "    user = SESSIONS", "    await __import__('asyncio').sleep(60)\n    user = SESSIONS"
    )
    monkeypatch.setattr(demo, "POLICY", policy)
    monkeypatch.setattr(demo, "SCENE_S", 1.0)
    started = time.monotonic()
    assert demo.main() == 1
    assert time.monotonic() - started < 1.0 + demo.STOP_S + 1
    assert "Step 2 failed: it was not over within 1 s" in capsys.readouterr().out


def test_the_limits_together_are_below_15_seconds() -> None:
    assert demo.SCENE_S + demo.STOP_S < LIMIT_S
