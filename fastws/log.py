"""Log lines: one event, one line, to stderr, as text or as JSON.

    2026-11-25T12:00:00.123Z INFO handshake 127.0.0.1:1234 refused 403: policy        text
    {"time":"...","level":"info","logger":"fastws.handshake","message":"...", ...}     json, with the `extra` fields

The message alone must tell the event; `extra` fields are for machines and appear in JSON only. What a peer sent can
reach a message, so nothing that is not printable leaves here as it is: no forged second line, no terminal escape. What
may be logged (no cookie, no query, no body) is decided where the event happens. Knows no other room of fastws.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Sequence
from typing import Any

__all__ = ["JsonFormatter", "TextFormatter", "address_text", "one_line", "setup"]

# The attributes that every record has; whatever else a record carries came in through `extra`.
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def address_text(address: Sequence[Any]) -> str:
    """`127.0.0.1:5060` or `[::1]:5060` for an (address, port) pair, or for the longer tuples that sockets give."""
    host, port = address[0], address[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def one_line(text: str) -> str:
    """The text with everything unprintable (controls, line ends of any kind, lone surrogates) as a backslash escape."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


def _timestamp(created: float) -> str:
    """RFC 3339 in UTC with milliseconds, from seconds since the epoch."""
    milliseconds = int(created * 1000)
    clock = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(milliseconds // 1000))
    return f"{clock}.{milliseconds % 1000:03}Z"


def _failure(record: logging.LogRecord) -> str:
    """The traceback of a record, or the empty string."""
    parts = []
    if record.exc_info and record.exc_info[0] is not None:
        parts.append(logging.Formatter().formatException(record.exc_info))
    elif record.exc_text:
        parts.append(record.exc_text)
    if record.stack_info:
        parts.append(record.stack_info)
    return "\n".join(parts)


class TextFormatter(logging.Formatter):
    """`TIME LEVEL LOGGER message`, the logger without its leading `fastws.`; a traceback follows as indented lines."""

    def format(self, record: logging.LogRecord) -> str:
        name = record.name.removeprefix("fastws.")
        line = f"{_timestamp(record.created)} {record.levelname} {name} {one_line(record.getMessage())}"
        failure = _failure(record)
        if failure:
            line += "".join(f"\n    {one_line(part)}" for part in failure.splitlines())
        return line


class JsonFormatter(logging.Formatter):
    """One JSON object: time, level (lower case), logger, message, the `extra` fields, and `traceback` if any."""

    def __init__(self) -> None:
        super().__init__()
        import orjson  # here, so that a text log does not pay for it

        self._dumps = orjson.dumps

    def format(self, record: logging.LogRecord) -> str:
        event: dict[str, Any] = {
            "time": _timestamp(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        failure = _failure(record)
        if failure:
            event["traceback"] = failure
        for name, value in vars(record).items():
            if name not in _STANDARD:
                event.setdefault(name, value)
        try:
            line = self._dumps(event, default=str).decode()
        except TypeError:  # orjson's own error is one: a lone surrogate, an integer beyond 64 bits, a cycle
            line = self._dumps({name: one_line(str(value)) for name, value in event.items()}).decode()
        if line.isprintable():
            return line
        # orjson escapes C0 only; the rest (DEL, C1, U+2028) can stand only inside strings, where \u is as good.
        return "".join(char if char.isprintable() else _json_escape(char) for char in line)


def _json_escape(char: str) -> str:
    code_units = char.encode("utf-16-be")
    return "".join(f"\\u{code_units[i]:02x}{code_units[i + 1]:02x}" for i in range(0, len(code_units), 2))


class _Stderr(logging.Handler):
    """Writes each event with one call, to whatever sys.stderr is at that moment."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            sys.stderr.write(self.format(record) + "\n")
            sys.stderr.flush()
        except Exception:
            self.handleError(record)


def setup(format: str, level: str) -> None:
    """Send the events of all loggers, the policy module's too, to stderr.

    `format` is `text` or `json`, `level` a name such as `info`. Calling it again replaces what it set up before.
    """
    handler = _Stderr()
    handler.setFormatter(JsonFormatter() if format == "json" else TextFormatter())
    root = logging.getLogger()
    for old in [known for known in root.handlers if isinstance(known, _Stderr)]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())
