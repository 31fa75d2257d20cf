# The handshake of a listener's clients, from the first bytes read to the answer: wire/handshake.py says what they are,
# policy.py what they may, and this says which answer the connection gets and what the log has of it.
# Knows no socket and keeps no list: the connection itself holds what belongs to it. No SIP.
from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from ipaddress import ip_network
from typing import Any, Protocol

from .log import address_text, one_line
from .policy import Policy
from .wire.handshake import (
    Accept,
    Handshake,
    HeadError,
    HeadReader,
    Limits,
    Network,
    Refuse,
    Reject,
    accept_response,
    check_upgrade,
    reject_response,
)

__all__ = ["Admission", "Applicant"]

SWITCHING_PROTOCOLS = 101
_LOGGED = 200  # characters at most of anything that a peer or a policy worded
_TIMED_OUT = Reject(408, body=b"The request came too slowly.\n", why="no complete HTTP head in time (head_timeout)")
_NO_ROOM = Reject(
    503,
    headers=(("Retry-After", "5"),),
    body=b"No room for another connection.\n",
    why="no room for it (max_connections)",
)
_FORBIDDEN_AHEAD = Reject(400, body=b"Wait for the answer.\n", why="too much sent before the answer")
_MAX_AHEAD_BYTES = 65536  # that a client may send behind its GET while an async policy thinks

_log = logging.getLogger("fastws.handshake")


class Applicant(Protocol):
    """What the connection that asks to be let in offers to Admission. The compiled half has the only real one."""

    reader: HeadReader | None
    """Admission's own; None at first and once decided."""
    task: asyncio.Task[Any] | None
    """Admission's own; an async policy that is thinking."""

    @property
    def source(self) -> tuple[str, int]: ...
    @property
    def local(self) -> tuple[str, int]: ...
    @property
    def tls(self) -> Mapping[str, Any] | None: ...
    @property
    def gone(self) -> bool:
        """The peer has left, or the connection was closed for another reason."""

    def hold(self) -> None:
        """Stop reading until accept() or one of the refusals."""

    def accept(self, response: bytes, attributes: dict[str, Any], host: str, rest: bytes) -> bool:
        """Send the 101, make it a connection with these attributes, and take `rest` as its first frames. False: there
        is no room for it, and nothing was sent."""

    def refuse(self, response: bytes) -> None:
        """Send the answer and close."""

    def refuse_with_code(self, response: bytes, code: int, reason: str) -> None:
        """Send the 101 and a close frame, and close."""


class Admission:
    """Decides about the clients of one listener: head, upgrade, policy, answer.

    `path` is the only one served, None serves any; `secure` says that the listener is a wss one; `limits` bound the
    head; `proxies` are the networks whose X-Forwarded-For is believed. `on_outcome` hears of each decision: 101, the
    status of a refusal, or the close code (1000..4999) of one that completed the handshake first. `policy` may be
    replaced at any time: who is being decided about stays with the one that was asked.

    Each refusal is one line in the log, with the address, the status or code, and the reason.
    """

    __slots__ = ("_limits", "_on_outcome", "_path", "_proxies", "_secure", "policy")

    def __init__(
        self,
        policy: Policy,
        *,
        path: str | None,
        secure: bool,
        limits: Limits,
        proxies: Iterable[Network | str] = (),
        on_outcome: Callable[[int], None] | None = None,
    ) -> None:
        self.policy = policy
        self._path = path
        self._secure = secure
        self._limits = limits
        self._proxies = tuple(ip_network(str(proxy)) for proxy in proxies)
        self._on_outcome = on_outcome

    def feed(self, conn: Applicant, chunk: bytes) -> None:
        """Take what was read from an undecided connection: wait for more, or answer, or hold it for an async policy."""
        reader = conn.reader
        if reader is None:
            reader = conn.reader = HeadReader(self._limits)
        elif reader.complete:
            reader.rest += chunk  # read before hold() took effect
            if len(reader.rest) > _MAX_AHEAD_BYTES:
                self._refuse(conn, _FORBIDDEN_AHEAD)
            return
        try:
            rest = reader.feed(chunk)
        except HeadError as error:
            self._refuse(conn, Reject(error.status, why=error.reason))
            return
        if rest is None:
            return
        problem = check_upgrade(reader, self._path)
        if problem is not None:
            self._refuse(conn, problem)
            return
        reader.rest = rest
        handshake = Handshake(reader, conn.source, conn.local, self._secure, conn.tls, self._proxies)
        task = self.policy.decide(handshake, partial(self._decided, conn, reader, handshake))
        if task is not None:
            conn.task = task
            conn.hold()

    def expired(self, conn: Applicant) -> None:
        """The deadline of the head has come: 408, unless the head is there and only the policy is still thinking."""
        if conn.gone or (conn.reader is not None and conn.reader.complete):
            return
        self._refuse(conn, _TIMED_OUT)

    def lost(self, conn: Applicant) -> None:
        """The peer left before it was decided about: forget it, and stop a policy that thinks about it."""
        task, conn.task = conn.task, None
        reader, conn.reader = conn.reader, None
        if task is not None:
            task.cancel()
        if reader is None or not reader.started:
            stage = "before it sent anything"
        else:
            stage = "before the policy answered" if reader.complete else "inside the HTTP head"
        _log.debug("%s left %s", address_text(conn.source), stage)

    def _decided(
        self, conn: Applicant, reader: HeadReader, handshake: Handshake, verdict: Accept | Reject | Refuse
    ) -> None:
        if conn.gone or conn.reader is None:
            return
        if isinstance(verdict, Reject):
            self._refuse(conn, verdict)
            return
        conn.reader = conn.task = None
        response = accept_response(reader)
        if isinstance(verdict, Accept):
            if conn.accept(response, verdict.attributes, handshake.host, reader.rest):
                self._count(SWITCHING_PROTOCOLS)
            else:
                self._refuse(conn, _NO_ROOM)
        else:
            why = f"refused by the policy: {verdict.reason}" if verdict.reason else "refused by the policy"
            self._tell(conn, "refused with code", verdict.code, why)
            conn.refuse_with_code(response, verdict.code, verdict.reason)
            self._count(verdict.code)

    def _refuse(self, conn: Applicant, reject: Reject) -> None:
        reader, conn.reader = conn.reader, None
        task, conn.task = conn.task, None
        if task is not None:
            task.cancel()
        why = reject.why
        if reader is not None and reader.complete:
            # What the peer asked for, where that is the reason. Never its query or a header: they hold credentials.
            if reject.status == 405:
                why = f"{why} but {reader.method}"
            elif reject.status == 404:
                why = f"{why} {reader.target.partition('?')[0]}"
        if reject.reason:
            why = f"{why}: {reject.reason}"
        self._tell(conn, "refused", reject.status, why)
        conn.refuse(reject_response(reject, reader.method if reader is not None else "GET"))
        self._count(reject.status)

    def _tell(self, conn: Applicant, what: str, status: int, why: str) -> None:
        peer = address_text(conn.source)
        # What a peer or a policy worded is cut, and escaped here too, for the JSON log escapes for JSON only.
        shown = one_line(why[:_LOGGED])
        _log.info("%s %s %d: %s", peer, what, status, shown, extra={"peer": peer, "status": status})

    def _count(self, outcome: int) -> None:
        if self._on_outcome is not None:
            self._on_outcome(outcome)
