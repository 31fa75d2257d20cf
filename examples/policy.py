"""A policy to begin with: who may connect, what they may send, and what is written down about it.

    fastws serve --upstream sip:pbx.example.com --policy examples/policy.py

Three things are yours to replace: where a session is looked up, which pages may connect, and which calls are allowed.
The annotations are for your editor; fastws needs none of them.
"""

import logging
import time

from fastws import Accept, Connection, Handshake, Refuse, Reject, Request, Terminator, Verdict

log = logging.getLogger("policy")  # goes where fastws's own log goes

SESSIONS = {"s-alice": "alice", "s-bob": "bob"}  # cookie -> user: ask your web application instead
ORIGINS = {"https://phone.example.com"}  # the pages that your phone is served from

# From, and in a REGISTER To, must be this attribute of the connection. Compiled code checks it, without asking Python.
IDENTITY = "user"
# on_request is asked about these alone; everything else passes at full speed.
ON_REQUEST_METHODS = {"INVITE", "MESSAGE"}


def on_handshake(handshake: Handshake) -> Accept | Reject | Refuse:
    """A new client: let it in with its attributes, or refuse it. Also allowed: async def."""
    if handshake.headers.get("Origin") not in ORIGINS:
        return handshake.reject(403)  # fastws logs each refusal with the address
    user = SESSIONS.get(handshake.cookies.get("sid", ""))
    if user is None:
        # A page cannot see an HTTP status, but it can see a close code, and send its user to the login.
        return handshake.refuse(4401, "log in first")
    log.info("%s connected from %s port %d", user, *handshake.source)
    return handshake.accept(user=user, calls=0)


def on_request(request: Request, connection: Connection) -> Verdict | None:
    """A request from a client, before it goes upstream: None lets it through."""
    number = request.uri.user or ""
    if number.startswith("00"):
        log.warning("%s may not call %s", connection["user"], number)
        return request.reject(403, "No International Calls")
    if request.method == "INVITE" and not request.in_dialog:
        connection["calls"] += 1
        request.set_header("X-Account", f"{connection['user']}@example.com")
    return None


def on_close(connection: Connection, terminator: Terminator, code: int, reason: str) -> None:
    """The end of a connection that was accepted; called once for each, with the attributes still there."""
    seconds = time.time() - connection.opened_at
    log.info(
        "%s left after %.0f s and %d calls: closed by %s (%d %s)",
        connection["user"], seconds, connection["calls"], terminator, code, reason,
    )  # fmt: skip
