"""Log lines: one event one line, whatever is in it."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator

import pytest

from fastws import log


@pytest.fixture
def written(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[[], str]]:
    """A function that returns what was written to stderr; the root logger is afterwards as it was before."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield lambda: capsys.readouterr().err
    root.handlers[:] = handlers
    root.setLevel(level)


def test_a_text_line_has_time_in_utc_level_logger_and_message(
    written: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.time", lambda: 1795608000.1239)
    monkeypatch.setattr("time.time_ns", lambda: 1795608000_123900000, raising=False)
    log.setup("text", "info")
    logging.getLogger("fastws.handshake").info("%s refused 403 Forbidden", "127.0.0.1:1234")
    assert written() == "2026-11-25T12:00:00.123Z INFO handshake 127.0.0.1:1234 refused 403 Forbidden\n"


def test_the_policy_s_own_logger_keeps_its_name(written: Callable[[], str]) -> None:
    log.setup("text", "info")
    logging.getLogger("edge_policy").warning("hello")
    assert written().endswith("Z WARNING edge_policy hello\n")


def test_events_below_the_level_are_not_written(written: Callable[[], str]) -> None:
    log.setup("text", "warning")
    logging.getLogger("fastws").info("quiet")
    logging.getLogger("fastws").warning("loud")
    (line,) = written().splitlines()
    assert line.endswith("loud")


def test_setting_up_twice_writes_each_event_once_in_the_new_form(written: Callable[[], str]) -> None:
    log.setup("text", "info")
    log.setup("json", "info")
    logging.getLogger("fastws").info("once")
    assert json.loads(written())["message"] == "once"


@pytest.mark.parametrize(
    "nasty",
    ["a\r\nb", "a\x1b[2Jb", "a\x00b", "a\x7fb", "a\x85b", "a\x9bb", "a\u2028b", "a\u202eb", "a\ud800b", "a\U000e0001b"],
)
@pytest.mark.parametrize("form", ["text", "json"])
def test_nothing_unprintable_reaches_the_terminal_and_one_event_stays_one_line(
    written: Callable[[], str], form: str, nasty: str
) -> None:
    log.setup(form, "info")
    logging.getLogger("fastws").info("from %s", nasty)
    line = written()
    assert line.endswith("\n")
    assert line[:-1].isprintable()
    escaped = nasty.encode("unicode_escape").decode()
    if form == "text":
        assert line[:-1].endswith(f"INFO fastws from {escaped}")
    else:  # a reader of JSON gets the text itself, but for a lone surrogate, which JSON in UTF-8 cannot carry
        assert json.loads(line)["message"] == f"from {escaped if 'ud800' in escaped else nasty}"


def test_printable_text_of_any_script_is_left_alone() -> None:
    assert log.one_line("Grüße, 東京, 🙂") == "Grüße, 東京, 🙂"


def test_a_traceback_stands_indented_below_its_line_of_text(written: Callable[[], str]) -> None:
    log.setup("text", "info")
    try:
        raise ValueError("first\nERROR forged \x1b[31m")
    except ValueError:
        logging.getLogger("fastws.policy").exception("on_request failed")
    head, *rest = written().splitlines()
    assert head.endswith("ERROR policy on_request failed")
    assert rest[0] == "    Traceback (most recent call last):"
    assert rest[-1] == "    ERROR forged \\x1b[31m"
    assert all(line.startswith("    ") for line in rest)


def test_a_traceback_is_a_field_in_json(written: Callable[[], str]) -> None:
    log.setup("json", "info")
    try:
        raise ValueError("why")
    except ValueError:
        logging.getLogger("fastws.policy").exception("on_request failed")
    (line,) = written().splitlines()
    event = json.loads(line)
    assert event["traceback"].startswith("Traceback") and event["traceback"].endswith("ValueError: why")


def test_json_has_the_extra_fields_and_they_cannot_hide_the_event(written: Callable[[], str]) -> None:
    log.setup("json", "debug")
    logging.getLogger("fastws.ws").debug(
        "closed", extra={"source": "127.0.0.1:1", "code": 1009, "level": "forged", "time": 0}
    )
    event = json.loads(written())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", event.pop("time"))
    assert event == {
        "level": "debug", "logger": "fastws.ws", "message": "closed", "source": "127.0.0.1:1", "code": 1009,
    }  # fmt: skip


@pytest.mark.parametrize("value", [object(), 1 << 80, b"bytes", {"k": {1, 2}}, "\ud800", float("nan")])
def test_an_extra_field_of_any_kind_does_not_lose_the_event(written: Callable[[], str], value: object) -> None:
    log.setup("json", "info")
    logging.getLogger("fastws").info("kept", extra={"odd": value})
    event = json.loads(written())
    assert event["message"] == "kept"
    assert "odd" in event


@pytest.mark.parametrize(
    ("address", "text"),
    [
        (("127.0.0.1", 5060), "127.0.0.1:5060"),
        (("::1", 5060), "[::1]:5060"),
        (("fe80::1", 5060, 0, 2), "[fe80::1]:5060"),
        (("pbx.example.com", 80), "pbx.example.com:80"),
    ],
)
def test_an_address_is_written_with_brackets_where_it_needs_them(address: tuple[str, int], text: str) -> None:
    assert log.address_text(address) == text
