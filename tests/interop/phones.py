# The driver of phone.mjs: one Node process per phone, commands to its stdin, events from its stdout.
# Knows no proxy and no SIP; what may be expected when is the tests' business.

import json
import subprocess
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

HERE = Path(__file__).parent

Event = dict[str, Any]


class Phone:
    """A JsSIP or SIP.js phone on one WebSocket; as a context manager it hangs up on leaving.

    Events are kept until they are expected or forgotten, so the order in which a test asks is free.
    """

    def __init__(
        self,
        library: str,
        url: str,
        uri: str,
        *,
        headers: dict[str, str] | None = None,
        ca: Path | None = None,
        sdp_bytes: int = 0,
        keepalive_s: int = 0,
    ) -> None:
        self.uri = uri
        self.user = uri.removeprefix("sip:").partition("@")[0]
        self.name = f"{library} {self.user}"
        options = {
            "url": url,
            "uri": uri,
            "headers": headers or {},
            "ca": None if ca is None else str(ca),
            "sdp_bytes": sdp_bytes,
            "keepalive_s": keepalive_s,
        }
        self._history: list[str] = []
        self._pending: list[Event] = []
        self._news = threading.Condition()
        self._ended = False
        self._process = subprocess.Popen(
            ["node", str(HERE / "phone.mjs"), library, json.dumps(options)],
            cwd=HERE,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )
        self._readers = [
            threading.Thread(target=self._read_events, daemon=True),
            threading.Thread(target=self._read_complaints, daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _read_events(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            event = json.loads(line)
            with self._news:
                self._history.append(f"  < {line.rstrip()[:300]}")
                self._pending.append(event)
                self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()

    def _read_complaints(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            with self._news:
                self._history.append(f"  ! {line.rstrip()[:300]}")

    def command(self, do: str, **fields: Any) -> None:
        """Have the phone do something; what comes of it is told by events."""
        line = json.dumps({"do": do, **fields})
        with self._news:
            self._history.append(f"  > {line[:300]}")
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def expect(self, event: str, timeout: float = 8.0, **fields: Any) -> Event:
        """Wait at most `timeout` seconds for an event with these fields, take it out of the queue and return it.

        Raises AssertionError with all that the phone saw and did when it does not come.
        """
        deadline = time.monotonic() + timeout
        with self._news:
            while True:
                for index, candidate in enumerate(self._pending):
                    if candidate["event"] == event and all(candidate.get(key) == fields[key] for key in fields):
                        return self._pending.pop(index)
                remaining = deadline - time.monotonic()
                if self._ended or remaining <= 0:
                    break
                self._news.wait(remaining)
        wanted = " ".join([event, *(f"{key}={value!r}" for key, value in fields.items())])
        raise AssertionError(f"{self.name}: no {wanted!r} within {timeout} s\n{self.transcript()}")

    def saw(self, event: str, **fields: Any) -> bool:
        """Whether such an event waits in the queue now."""
        with self._news:
            return any(
                candidate["event"] == event and all(candidate.get(key) == fields[key] for key in fields)
                for candidate in self._pending
            )

    def forget(self) -> None:
        """Empty the queue, so that the next step cannot be satisfied by an event of the last."""
        with self._news:
            self._pending.clear()

    def transcript(self) -> str:
        """Commands (>), events (<) and stderr (!) so far, in the order in which they were seen."""
        with self._news:
            return "\n".join([f"{self.name}:", *self._history])

    def register(self) -> str:
        """Register and return the Contact URI."""
        self.command("register")
        return str(self.expect("registered")["contact"])

    def close(self) -> None:
        """Quit with a closing handshake; killed when that takes longer than five seconds."""
        if self._process.poll() is None:
            try:
                self.command("quit")
                self._process.wait(5)
            except (BrokenPipeError, subprocess.TimeoutExpired):
                self._process.kill()
                self._process.wait()
        for reader in self._readers:
            reader.join(5)
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            assert stream is not None
            stream.close()
