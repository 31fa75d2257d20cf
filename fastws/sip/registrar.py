"""RFC 3261 10, RFC 3327, RFC 5626: the embedded registrar, an upstream that happens to live in this process.

Bytes in, bytes out: the proxy hands it what it would send to any other upstream, and takes back what any other upstream
would send. It keeps bindings, answers REGISTER, and turns a request for an address of record into one for a contact,
with the Path of the binding as Route. It adds no Via, for the proxy that gets the request back adds its own.

No socket, no loop and no clock here (`now` is a parameter), and nothing of the connection table, of the router or of
what a flow token means.

What was chosen where the RFCs leave a choice:

- A REGISTER for a domain that is not served: 404, never relayed (10.3 item 1 would let a proxy forward it, and nothing
  is forwarded for a client to a place of its own choice). A To that is no sip or sips URI, has no user or another host:
  404 as well (10.3 item 5). With no `domains` every domain is served.
- A sip and a sips address of record are the same one.
- A malformed expires or Expires counts as 3600 (20.10, 20.19), cut to the maximum.
- 423 only where no contact of the request asks for long enough; a short one beside a sufficient one gets the minimum.
- A CSeq that is not higher under the same Call-ID aborts the whole request with 500 (10.3 items 6 to 8).
- A contact of another scheme is kept and listed, but no request is sent to it. Headers and `method` of a contact URI
  are listed and never used: a Request-URI has neither (19.1.1, 16.6 item 2).
- REGISTER with a Contact but without Path: 421, since nothing could be delivered. A client that offers outbound and a
  reg-id through a Path without `ob`: 439 (RFC 5626 6).
- (instance, reg-id) is the key of a binding wherever both are given, also from a client that does not offer outbound.
- A request goes to one contact: the newest registration's, of several in it the one with the highest q.
"""

import heapq
import logging
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from os import urandom
from typing import Protocol, TypeVar
from urllib.parse import unquote_to_bytes

from fastws.wire.message import URI, NameAddr, parse_headers, parse_name_addrs, parse_uri

__all__ = ["Binding", "Registrar"]

log = logging.getLogger("fastws.registrar")

MALFORMED_EXPIRES = 3600  # seconds; RFC 3261 20.10, 20.19
BRIEF_BELOW = 3600  # seconds; nobody refuses a longer interval as too brief, RFC 3261 10.3 item 7
MAX_CSEQ = 2**31 - 1  # RFC 3261 8.1.1.5
MAX_REG_ID = 2**31 - 1  # RFC 5626 4.2
MAX_CONTACT_BYTES = 4096  # of one Contact value, for each is kept up to an hour and sent back in every 200
KNOWN_AORS = 10_000  # addresses remembered after their last binding, to tell 480 from 404
PENDING_INVITES = 10_000  # INVITEs whose way is remembered for their CANCEL and ACK
EXTENSIONS = frozenset({"path", "outbound"})

REASONS = {
    200: "OK",
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    416: "Unsupported URI Scheme",
    420: "Bad Extension",
    421: "Extension Required",
    423: "Interval Too Brief",
    439: "First Hop Lacks Outbound Support",
    480: "Temporarily Unavailable",
    481: "Call/Transaction Does Not Exist",
    500: "Server Internal Error",
}
ALLOW = (
    b"Allow: ACK, BYE, CANCEL, INFO, INVITE, MESSAGE, NOTIFY, OPTIONS, "
    b"PRACK, PUBLISH, REFER, REGISTER, SUBSCRIBE, UPDATE"
)
SUPPORTED = b"Supported: path, outbound"

# The compact forms of the names that are read here, RFC 3261 7.3.3 and 20.
COMPACT = {b"v": b"via", b"f": b"from", b"t": b"to", b"i": b"call-id", b"m": b"contact", b"k": b"supported"}

# A continuation line begins with a blank, so none of these finds its name inside a value.
ROUTE = re.compile(rb"\r\nroute[ \t]*:", re.IGNORECASE)
TOP_BRANCH = re.compile(rb"\r\nv(?:ia)?[ \t]*:[^\r\n]*?;[ \t]*branch[ \t]*=[ \t]*([^\s;,]+)", re.IGNORECASE)
CALL_ID = re.compile(rb"\r\n(?:call-id|i)[ \t]*:\s*([^\s]+)", re.IGNORECASE)
CSEQ = re.compile(rb"\r\ncseq[ \t]*:\s*(\d+)\s+(\S+)", re.IGNORECASE)
FOLD = re.compile(rb"\r\n[ \t]+")
TO_TAG = re.compile(rb";\s*tag\s*=", re.IGNORECASE)

# name-addr = [ display-name ] LAQUOT addr-spec RAQUOT                                               RFC 3261 25.1
NAME_ADDR = re.compile(rb'((?:"(?:[^"\\]|\\.)*+"|[^<";])*+)<[^>]*>', re.DOTALL)
ADDR_SPEC = re.compile(rb"[^;]*")
# One of *( SEMI generic-param ), a quoted string kept whole: its name, and the rest of it.
PARAMETER = re.compile(rb';[ \t]*([^;="]*)((?:[^;"]|"(?:[^"\\]|\\.)*+")*+)', re.DOTALL)
# What may stand inside <>, of a scheme whose grammar nobody here knows: no blank, no control, no bracket or quote.
PLAIN_URI = re.compile(rb'[^\x00-\x20\x7f<>"]+')

# A parameter of these in only one of two URIs makes them differ; any other is then ignored, RFC 3261 19.1.4.
# transport is not in that section's rules, but in its examples.
TELLING_PARAMETERS = ("transport", "user", "method", "ttl", "maddr")

Headers = list[tuple[bytes, bytes]]
Fields = dict[bytes, list[bytes]]
FlowKey = tuple[str, int]
Identity = tuple[object, ...]
TransactionKey = tuple[bytes, bytes, bytes]
Key = TypeVar("Key")


class Verdict(Protocol):
    """What the digest helper says of one Authorization value."""

    @property
    def user(self) -> str | None: ...
    @property
    def stale(self) -> bool: ...


class Authenticator(Protocol):
    """The digest helper as the registrar uses it: fastws.digest.Digest, RFC 3261 22.4."""

    def challenge(self, now: float, *, stale: bool = False) -> list[str]: ...

    def verify(
        self,
        authorization: str,
        method: str,
        password_of: Callable[[str], str | None],
        now: float,
        uri: str | None = None,
    ) -> Verdict: ...


@dataclass(frozen=True, slots=True, eq=False)
class Binding:
    """One contact of an address of record, RFC 3261 10. A refresh makes a new one."""

    aor: str  # user@host, user unescaped, host in lower case
    flow_key: FlowKey | None  # (instance, reg-id), RFC 5626 6; None where the contact has not both
    uri: bytes  # as the client wrote it, without <>
    listed: bytes  # what a 200 says of it, all but ";expires=N"
    target: bytes | None  # Request-URI of what is sent to it; None for a scheme that nothing is sent to
    identity: Identity  # what must be equal for two URIs to be equal, RFC 3261 19.1.4
    others: dict[str, str]  # parameters that must be equal only where both URIs have them
    q: float  # 0.0..1.0
    route: bytes  # the Path of its REGISTER as Route lines, each with its CR LF
    flow: bytes  # user part of the topmost Path URI
    call_id: bytes
    cseq: int  # 0..2**31-1
    deadline: float  # on the clock of `now`, seconds
    registration: int  # number of the REGISTER that made it
    serial: int  # its own number


@dataclass(frozen=True, slots=True)
class _Update:
    """What all contacts of one REGISTER have in common."""

    aor: str
    call_id: bytes
    cseq: int
    route: bytes
    flow: bytes
    offers_outbound: bool  # the client does, RFC 5626 4.2.1
    has_ob: bool  # the first hop does, RFC 5626 5.1
    expires: str | None  # the Expires header
    registration: int
    now: float


@dataclass(frozen=True, slots=True)
class _Way:
    """Where an INVITE went, for the CANCEL and the ACK that must follow it."""

    request_uri: bytes
    route: bytes
    flow: bytes


class _Refusal(Exception):
    """A REGISTER is answered with this, and nothing is changed. Never leaves this module."""

    def __init__(self, status: int, reason: str | None = None, *extra: bytes) -> None:
        super().__init__(status)
        self.status = status
        self.reason = reason
        self.extra = extra


class Registrar:
    """Bindings of addresses of record to contacts, RFC 3261 10.

    domains: hosts served, in any case; none means every host.
    min_expires, max_expires, default_expires: seconds; a default outside the range is brought into it.
    realm, users: with `users` (name to password) a REGISTER needs digest credentials of the user of its To, so an empty
    mapping lets nobody register, and None everybody. `realm` is the first domain or "fastws" where it is not given.
    max_contacts: of one address of record, 1 or more; one too many is answered 403.
    digest: what checks the credentials, in place of fastws.digest.
    Raises ValueError for a minimum above the maximum and a limit below 1.
    """

    def __init__(
        self,
        *,
        domains: Iterable[str] = (),
        min_expires: int = 60,
        max_expires: int = 3600,
        default_expires: int = 600,
        realm: str | None = None,
        users: Mapping[str, str] | None = None,
        max_contacts: int = 16,
        digest: Authenticator | None = None,
    ) -> None:
        if not 0 <= min_expires <= max_expires or max_expires < 1:
            raise ValueError(f"expected 0 <= min_expires <= max_expires, got {min_expires} and {max_expires}")
        if max_contacts < 1:
            raise ValueError(f"expected max_contacts of 1 or more, got {max_contacts}")
        hosts = [domain.lower() for domain in domains]
        self._domains = frozenset(hosts)
        self._min_expires = min_expires
        self._max_expires = max_expires
        self._default_expires = min(max(default_expires, min_expires, 1), max_expires)
        self._max_contacts = max_contacts
        self._users = users
        if users is not None and digest is None:
            from fastws.digest import Digest  # only a registrar that authenticates needs it

            digest = Digest(realm or (hosts[0] if hosts else "fastws"))
        self._digest = digest
        self._tag_key = urandom(16)
        self._aors: dict[str, list[Binding]] = {}  # oldest registration first
        self._live: dict[int, Binding] = {}  # by serial
        self._flows: dict[bytes, dict[int, Binding]] = {}  # by flow, then serial
        self._contacts: dict[Identity, list[Binding]] = {}
        self._deadlines: list[tuple[float, int]] = []  # heap of (deadline, serial), with leftovers of dropped ones
        self._known: OrderedDict[str, None] = OrderedDict()  # oldest first
        self._invites: OrderedDict[TransactionKey, _Way] = OrderedDict()  # oldest first
        self._registrations = 0
        self._serial = 0

    def __len__(self) -> int:
        """Number of bindings, of all addresses of record together."""
        return len(self._live)

    def bindings(self, aor: str) -> list[Binding]:
        """The bindings of `user@host`, oldest registration first; empty where there are none."""
        return list(self._aors.get(aor, ()))

    # The one door

    def receive(self, message: bytes, now: float) -> list[bytes]:
        """Take one SIP message from the proxy; returns the messages for the proxy, none or one.

        now: seconds since any moment, never going back. Raises nothing for what a message holds: what cannot be read
        is logged and dropped, for the proxy has checked it already.
        """
        end = message.find(b"\r\n\r\n")
        if message[:4].upper() == b"SIP/":
            if self._invites:
                self._response_passed(message)
            return [message]
        if end < 0:
            log.warning("dropped a message of %d bytes without an end of its head", len(message))
            return []
        # RFC 3261 16.4, 16.6 item 6: the route set leads on, and to the proxy, for nothing else is next to us.
        if ROUTE.search(message, 0, end + 2):
            return [message]
        parts = message[: message.find(b"\r\n")].split(b" ")
        if len(parts) != 3:
            log.warning("dropped a message whose first line is no request line")
            return []
        method, request_uri, _ = parts
        try:
            if method == b"REGISTER":
                return self._register(message, request_uri, now)
            if method in (b"CANCEL", b"ACK"):
                return self._follow(message, method, request_uri, now)
            return self._request(message, method, request_uri, now)
        except ValueError as error:
            log.warning("dropped a request that cannot be read: %s", error)
            return []

    def flow_ended(self, flow: bytes) -> None:
        """The connection with this flow token has ended: its bindings go at once. An unknown flow is no error."""
        for binding in list(self._flows.get(flow, {}).values()):
            self._drop(binding)

    def expire(self, now: float) -> None:
        """Drop what has run out. Costs as much as has run out, however much there is."""
        heap = self._deadlines
        while heap and heap[0][0] <= now:
            _, serial = heapq.heappop(heap)
            binding = self._live.get(serial)
            if binding is not None:
                self._drop(binding)

    # REGISTER

    def _register(self, message: bytes, request_uri: bytes, now: float) -> list[bytes]:
        headers, fields = _read(message)
        try:
            extra = self._process(fields, request_uri, now)
        except _Refusal as refusal:
            return self._answer(headers, refusal.status, refusal.reason, *refusal.extra)
        return self._answer(headers, 200, None, *extra)

    def _process(self, fields: Fields, request_uri: bytes, now: float) -> list[bytes]:
        """RFC 3261 10.3 in its order. Returns the headers of the 200; raises _Refusal with nothing changed."""
        domain = parse_uri(request_uri)
        if not _is_sip(domain):
            raise _Refusal(416)
        if not self._serves(domain):
            raise _Refusal(404, "Domain Not Served")
        foreign = [tag for tag in _tokens(fields, b"require") if tag not in EXTENSIONS]
        if foreign:
            raise _Refusal(420, None, b"Unsupported: " + ", ".join(foreign).encode("latin-1"))
        user = self._authenticated(fields, request_uri, now)
        aor = self._address_of_record(fields, user)
        call_id, cseq = _order(fields)
        supported = _tokens(fields, b"supported")
        contacts = [_unfold(value) for value in fields.get(b"contact", ())]
        self.expire(now)
        current = self._aors.get(aor, [])
        after, outbound = current, False
        if contacts == [b"*"]:
            if _number(_expires(fields)) != 0:
                raise _Refusal(400, "Contact * Without Expires 0")
            for binding in current:
                _check_order(binding, call_id, cseq)
            after = []
        elif contacts:
            route, flow, has_ob = _path(fields)
            self._registrations += 1
            update = _Update(
                aor, call_id, cseq, route, flow, "outbound" in supported, has_ob, _expires(fields),
                self._registrations, now,
            )  # fmt: skip
            after, outbound = self._updated(current, contacts, update)
        self._commit(current, after)
        extra = [b"Contact: %b;expires=%d" % (binding.listed, _remaining(binding, now)) for binding in after]
        if "path" in supported:
            extra += [b"Path: " + _unfold(value) for value in fields.get(b"path", ())]
        extra.append(SUPPORTED)
        if outbound:
            extra.append(b"Require: outbound")
        return extra

    def _authenticated(self, fields: Fields, request_uri: bytes, now: float) -> str | None:
        """The user whose credentials the request carries, None where none are asked for. RFC 3261 10.3 item 3, 22.4."""
        users, digest = self._users, self._digest
        if users is None or digest is None:
            return None
        stale = False
        uri = request_uri.decode("utf-8", "surrogateescape")
        for value in fields.get(b"authorization", ()):
            credentials = _unfold(value).decode("utf-8", "surrogateescape")
            verdict = digest.verify(credentials, "REGISTER", users.get, now, uri)
            if verdict.user is not None and not verdict.stale:
                return verdict.user
            stale = stale or verdict.stale
        challenges = digest.challenge(now, stale=stale)
        raise _Refusal(401, None, *(b"WWW-Authenticate: " + challenge.encode() for challenge in challenges))

    def _address_of_record(self, fields: Fields, user: str | None) -> str:
        """Whether `user` may register it, and its canonical form. RFC 3261 10.3 items 4 and 5."""
        try:
            (name_addr,) = parse_name_addrs(_unfold(fields[b"to"][0]))
            to = parse_uri(name_addr.uri)
        except ValueError:
            raise _Refusal(400, "Bad To") from None
        if not _is_sip(to) or not to.user:
            raise _Refusal(404, "Not An Address Of Record")
        if user is not None and user != to.user:
            log.info("refused a registration: the credentials of %r are not those of %r", user, _aor(to))
            raise _Refusal(403, "Not Your Address Of Record")
        if not self._serves(to):
            raise _Refusal(404, "Domain Not Served")
        return _aor(to)

    def _updated(self, current: list[Binding], values: list[bytes], update: _Update) -> tuple[list[Binding], bool]:
        """The bindings as they are to be, and whether outbound was applied. RFC 3261 10.3 item 7, RFC 5626 6."""
        after = list(current)
        added = 0
        brief = sufficient = outbound = has_reg_id = False
        for name_addr in _name_addrs(values, "Bad Contact"):
            contact, seconds, is_brief = self._contact(name_addr, update)
            for binding in [one for one in after if _same(one, contact, removing=seconds == 0)]:
                if binding.registration != update.registration:
                    _check_order(binding, update.call_id, update.cseq)
                after.remove(binding)
            if contact.flow_key is not None and update.offers_outbound:
                if not update.has_ob:
                    raise _Refusal(439)
                outbound = True
            if seconds == 0:
                continue
            after.append(contact)
            added += 1
            has_reg_id = has_reg_id or contact.flow_key is not None
            brief, sufficient = brief or is_brief, sufficient or not is_brief
            if added > self._max_contacts:
                break
        if has_reg_id and added > 1:
            raise _Refusal(400, "Reg-id Beside Another Contact")
        if brief and not sufficient:
            raise _Refusal(423, None, b"Min-Expires: %d" % self._min_expires)
        if added and max(added, len(after)) > self._max_contacts:
            log.info("refused a registration of %r: more than %d contacts", update.aor, self._max_contacts)
            raise _Refusal(403, "Too Many Contacts")
        return after, outbound

    def _contact(self, name_addr: NameAddr, update: _Update) -> tuple[Binding, int, bool]:
        """One Contact value as a binding, the seconds granted (0 to remove it), and whether it asked for too few."""
        parameters = name_addr.parameters
        if len(name_addr.raw) > MAX_CONTACT_BYTES:
            raise _Refusal(403, "Contact Too Long")
        if "expires" in parameters:
            seconds, is_brief = self._granted(parameters["expires"] or "")
        else:
            seconds, is_brief = self._granted(update.expires)
        identity, others, target = _compared(name_addr.uri)
        self._serial += 1
        contact = Binding(
            aor=update.aor,
            flow_key=_flow_key(parameters),
            uri=name_addr.uri,
            listed=_listed(name_addr),
            target=target,
            identity=identity,
            others=others,
            q=_q(parameters.get("q")),
            route=update.route,
            flow=update.flow,
            call_id=update.call_id,
            cseq=update.cseq,
            deadline=update.now + seconds,
            registration=update.registration,
            serial=self._serial,
        )
        return contact, seconds, is_brief

    def _granted(self, asked: str | None) -> tuple[int, bool]:
        """Seconds for what was asked (None: nothing was), and whether that was below the minimum. 10.3 item 7."""
        if asked is None:
            return self._default_expires, False
        seconds = _number(asked)
        if seconds is None:
            seconds = MALFORMED_EXPIRES
        if seconds == 0:
            return 0, False
        is_brief = seconds < self._min_expires and seconds < BRIEF_BELOW
        return min(self._min_expires if is_brief else seconds, self._max_expires), is_brief

    # The bindings

    def _commit(self, current: list[Binding], after: list[Binding]) -> None:
        if after is current:
            return
        stay = {binding.serial for binding in after}
        for binding in [one for one in current if one.serial not in stay]:
            self._drop(binding)
        for binding in after:
            if binding.serial not in self._live:
                self._add(binding)

    def _add(self, binding: Binding) -> None:
        self._live[binding.serial] = binding
        self._aors.setdefault(binding.aor, []).append(binding)
        self._flows.setdefault(binding.flow, {})[binding.serial] = binding
        self._contacts.setdefault(binding.identity, []).append(binding)
        self._known.pop(binding.aor, None)
        # Refreshed and dropped bindings leave their entry behind. Rebuilding when these are the half costs a constant
        # for each binding added, and bounds the heap without a refresh having to search it.
        if len(self._deadlines) > 2 * len(self._live) + 64:
            self._deadlines = [(one.deadline, serial) for serial, one in self._live.items()]
            heapq.heapify(self._deadlines)
        else:
            heapq.heappush(self._deadlines, (binding.deadline, binding.serial))

    def _drop(self, binding: Binding) -> None:
        del self._live[binding.serial]
        _discard(self._contacts, binding.identity, binding)
        flow = self._flows[binding.flow]
        del flow[binding.serial]
        if not flow:
            del self._flows[binding.flow]
        _discard(self._aors, binding.aor, binding)
        if binding.aor not in self._aors:
            self._known[binding.aor] = None
            if len(self._known) > KNOWN_AORS:
                self._known.popitem(last=False)

    # Requests for an address of record

    def _request(self, message: bytes, method: bytes, request_uri: bytes, now: float) -> list[bytes]:
        key = None
        if method == b"INVITE":
            key = _transaction(message)
            way = self._invites.get(key)
            if way is not None:  # the same INVITE once more goes where it went, RFC 3261 16.11
                return [_sent_on(message, method, request_uri, way.request_uri, way.route)]
        uri = parse_uri(request_uri)
        if not _is_sip(uri):
            return self._answer(_read(message)[0], 416)
        self.expire(now)
        binding, target = self._newest(uri), None
        if binding is not None:
            target = binding.target
        else:
            binding, target = self._by_contact(uri), request_uri
        if binding is not None and target is not None:
            if key is not None:
                self._invites[key] = _Way(target, binding.route, binding.flow)
                if len(self._invites) > PENDING_INVITES:
                    self._invites.popitem(last=False)
            return [_sent_on(message, method, request_uri, target, binding.route)]
        headers, _ = _read(message)
        if not self._serves(uri):
            return self._answer(headers, 404, "Domain Not Served")
        if method == b"OPTIONS" and uri.user is None:
            return self._answer(headers, 200, None, ALLOW, SUPPORTED)
        return self._answer(headers, 480 if self._is_known(uri) else 404)

    def _follow(self, message: bytes, method: bytes, request_uri: bytes, now: float) -> list[bytes]:
        """CANCEL and the ACK to a final response other than 2xx go the way of their INVITE. RFC 3261 9.1, 17.1.1.3."""
        key = _transaction(message)
        way = self._invites.get(key)
        if way is not None:
            if method == b"ACK":  # the end of that transaction
                del self._invites[key]
            return [_sent_on(message, method, request_uri, way.request_uri, way.route)]
        if method == b"CANCEL":
            return self._answer(_read(message)[0], 481)
        # The ACK to a 2xx names a contact; any other belongs to an INVITE that was answered here, and ends here.
        self.expire(now)
        binding = self._by_contact(parse_uri(request_uri))
        return [] if binding is None else [_sent_on(message, method, request_uri, request_uri, binding.route)]

    def _response_passed(self, message: bytes) -> None:
        """Forget the way of an INVITE that has its final response: after a 2xx at once, else its ACK is to follow."""
        status = message[8:11]
        if status < b"200":
            return
        order = CSEQ.search(message)
        if order is None or order[2] != b"INVITE":
            return
        try:
            key = _transaction(message)
        except ValueError:
            return
        way = self._invites.get(key)
        if way is None:
            return
        if status[:1] == b"2":
            del self._invites[key]
        elif status == b"430":  # RFC 5626 11.5: that flow is gone, so that the next request takes another
            self.flow_ended(way.flow)

    def _newest(self, uri: URI) -> Binding | None:
        if not self._serves(uri) or uri.user is None:
            return None
        reachable = [binding for binding in self._aors.get(_aor(uri), ()) if binding.target is not None]
        return max(reachable, key=lambda binding: (binding.registration, binding.q), default=None)

    def _by_contact(self, uri: URI) -> Binding | None:
        """The binding whose contact a Request-URI names, for a request inside a dialog that lost its route set.

        Only a host that is nobody's domain is looked up: who registers another's address as his contact gets nothing.
        """
        host = uri.host.lower()
        if not host.endswith(".invalid") and self._serves(uri):
            return None
        identity, others = _identity(uri)
        found = [binding for binding in self._contacts.get(identity, ()) if _agree(binding.others, others)]
        # The same contact under two addresses of record and from two connections: one of them may be an impostor.
        if len({binding.aor for binding in found}) > 1 and len({binding.flow for binding in found}) > 1:
            return None
        return max(found, key=lambda binding: binding.registration, default=None)

    def _is_known(self, uri: URI) -> bool:
        if uri.user is None:
            return False
        if self._users is not None:
            return uri.user in self._users
        aor = _aor(uri)
        return aor in self._aors or aor in self._known

    def _serves(self, uri: URI) -> bool:
        return not self._domains or uri.host.lower() in self._domains

    def _answer(self, headers: Headers, status: int, reason: str | None = None, *extra: bytes) -> list[bytes]:
        """The response with this status. RFC 3261 8.2.6: Vias in order, From, To with a tag, Call-ID and CSeq."""
        fields = _by_name(headers)
        via = fields[b"via"]
        to = fields[b"to"][0]
        if not TO_TAG.search(to.rpartition(b">")[2]):
            # The same request gets the same tag; nobody else can tell it beforehand, RFC 3261 19.3.
            seed = b"\n".join((via[0], fields[b"call-id"][0], fields[b"cseq"][0]))
            to += b";tag=" + blake2b(seed, digest_size=8, key=self._tag_key).hexdigest().encode()
        lines = [b"SIP/2.0 %d %b" % (status, (reason or REASONS[status]).encode())]
        lines += [b"Via: " + value for value in via]
        lines += [
            b"From: " + fields[b"from"][0],
            b"To: " + to,
            b"Call-ID: " + fields[b"call-id"][0],
            b"CSeq: " + fields[b"cseq"][0],
            *extra,
            b"Content-Length: 0\r\n\r\n",
        ]
        return [b"\r\n".join(lines)]


def _read(message: bytes) -> tuple[Headers, Fields]:
    """Headers in order, and by name in full form and lower case. ValueError for what is no request to be answered."""
    _, headers, _ = parse_headers(message)
    fields = _by_name(headers)
    for name in (b"via", b"from", b"to", b"call-id", b"cseq"):
        if name not in fields:
            raise ValueError("a mandatory header is missing")
    return headers, fields


def _by_name(headers: Headers) -> Fields:
    fields: Fields = {}
    for name, value in headers:
        name = name.lower()
        fields.setdefault(COMPACT.get(name, name), []).append(value)
    return fields


def _unfold(value: bytes) -> bytes:
    return FOLD.sub(b" ", value) if b"\r" in value else value


def _tokens(fields: Fields, name: bytes) -> list[str]:
    """The option tags of a list header, in lower case."""
    values = b",".join(map(_unfold, fields.get(name, ()))).decode("latin-1").lower().split(",")
    return [token for token in map(str.strip, values) if token]


def _number(text: str | None) -> int | None:
    """delta-seconds, RFC 3261 25.1: 1*DIGIT, of any length but never above 2**32; None for anything else."""
    if not text or not (text.isascii() and text.isdigit()):
        return None
    text = text.lstrip("0")
    return min(int(text or "0"), 2**32) if len(text) <= 10 else 2**32


def _q(text: str | None) -> float:
    try:
        return min(max(float(text or "1"), 0.0), 1.0)
    except ValueError:
        return 1.0


def _expires(fields: Fields) -> str | None:
    values = fields.get(b"expires")
    return _unfold(values[0]).decode("latin-1").strip() if values else None


def _order(fields: Fields) -> tuple[bytes, int]:
    """Call-ID and CSeq number, which put the registrations of one client in order. RFC 3261 10.3 items 6 and 7."""
    words = fields[b"cseq"][0].split()
    number = _number(words[0].decode("latin-1")) if len(words) == 2 else None
    if number is None or number > MAX_CSEQ:
        raise _Refusal(400, "Bad CSeq")
    return fields[b"call-id"][0], number


def _check_order(binding: Binding, call_id: bytes, cseq: int) -> None:
    if binding.call_id == call_id and cseq <= binding.cseq:
        raise _Refusal(500, "CSeq Out Of Order")


def _name_addrs(values: Iterable[bytes], complaint: str) -> list[NameAddr]:
    found: list[NameAddr] = []
    try:
        for value in values:
            found += parse_name_addrs(value)
    except ValueError:
        raise _Refusal(400, complaint) from None
    return found


def _path(fields: Fields) -> tuple[bytes, bytes, bool]:
    """The Path as Route lines, the flow (user part of the topmost URI), whether that has `ob`. RFC 3327 5.3, 5626 6."""
    path = _name_addrs(map(_unfold, fields.get(b"path", ())), "Bad Path")
    if not path:
        raise _Refusal(421, None, b"Require: path")
    try:
        top = parse_uri(path[0].uri)
    except ValueError:
        raise _Refusal(400, "Bad Path") from None
    route = b"".join(b"Route: %b\r\n" % name_addr.raw for name_addr in path)
    return route, (top.user or "").encode("utf-8", "surrogateescape"), "ob" in top.parameters


def _flow_key(parameters: Mapping[str, str | None]) -> FlowKey | None:
    """(instance, reg-id), or None where the contact has not both: a reg-id alone means nothing. RFC 5626 4.2, 6."""
    instance = parameters.get("+sip.instance")
    if not instance or "reg-id" not in parameters:
        return None
    reg_id = _number(parameters["reg-id"])
    if not reg_id or reg_id > MAX_REG_ID:
        raise _Refusal(400, "Bad reg-id")
    # Two URNs of UUIDs are compared without regard to case, RFC 4122 3.
    return (instance.lower() if instance.lower().startswith("<urn:uuid:") else instance), reg_id


def _listed(name_addr: NameAddr) -> bytes:
    """A contact as a 200 lists it: display name, URI and parameters as written, all but the client's expires.

    The URI always gets its brackets, so that no parameter of the header can be taken for one of the URI (20.10).
    """
    raw = name_addr.raw
    bracketed = NAME_ADDR.match(raw)
    start = bracketed or ADDR_SPEC.match(raw)
    assert start is not None
    display = bracketed[1].strip() + b" " if bracketed and bracketed[1].strip() else b""
    parameters = [
        b";%b%b" % (name.strip(), value.strip())
        for name, value in PARAMETER.findall(raw, start.end())
        if name.strip().lower() != b"expires"
    ]
    return b"%b<%b>%b" % (display, name_addr.uri, b"".join(parameters))


def _is_sip(uri: URI) -> bool:
    return uri.scheme in ("sip", "sips")


def _aor(uri: URI) -> str:
    """Canonical address of record: user unescaped, host in lower case, the rest removed. RFC 3261 10.3 item 5."""
    return f"{uri.user}@{uri.host.lower()}"


def _compared(raw: bytes) -> tuple[Identity, dict[str, str], bytes | None]:
    """A contact URI: what two of them are compared by, and the Request-URI of what is sent to it."""
    try:
        uri = parse_uri(raw)
    except ValueError:
        raise _Refusal(400, "Bad Contact") from None
    if not _is_sip(uri):
        if not PLAIN_URI.fullmatch(raw):
            raise _Refusal(400, "Bad Contact")
        return (raw,), {}, None
    identity, others = _identity(uri)
    target = raw
    if uri.headers or "method" in uri.parameters:
        userinfo, at, rest = raw.rpartition(b"@")
        host, *parameters = rest.partition(b"?")[0].split(b";")
        kept = [one for one in parameters if unquote_to_bytes(one.partition(b"=")[0]).lower() != b"method"]
        target = userinfo + at + b";".join((host, *kept))
    return identity, others, target


def _identity(uri: URI) -> tuple[Identity, dict[str, str]]:
    """What must be equal in two equal URIs, and the parameters that must be equal where both have them. 19.1.4."""
    others = {name: (value or "").lower() for name, value in uri.parameters.items()}
    telling = tuple(others.pop(name, None) for name in TELLING_PARAMETERS)
    # No "@" may stand unescaped behind that of the user part, so the last one is it; there is none in a password.
    password = str(uri).rpartition("@")[0].partition(":")[2].partition(":")[2]
    headers = frozenset(uri.headers.split("&")) if uri.headers else None
    return (uri.scheme, uri.user, password, uri.host.lower(), uri.port, telling, headers), others


def _agree(one: Mapping[str, str], other: Mapping[str, str]) -> bool:
    return all(other.get(name, value) == value for name, value in one.items())


def _same(binding: Binding, contact: Binding, *, removing: bool) -> bool:
    """Whether a contact is about this binding: by flow key where it has one, else by URI. RFC 5626 6, RFC 3261 10.3.

    A contact without a flow key makes a binding of its own beside those with one, but removes whatever has its URI.
    """
    if contact.flow_key is not None:
        return binding.flow_key == contact.flow_key
    if binding.flow_key is not None and not removing:
        return False
    return binding.identity == contact.identity and _agree(binding.others, contact.others)


def _remaining(binding: Binding, now: float) -> int:
    """Whole seconds left, 1 or more. A millisecond is added so that rounding cannot make 179 of a fresh 180."""
    return max(int(binding.deadline - now + 0.001), 1)


def _transaction(message: bytes) -> TransactionKey:
    """What an INVITE shares with its CANCEL, its responses and the ACK to most of these. RFC 3261 9.1, 17.1.1.3."""
    end = message.find(b"\r\n\r\n") + 2
    branch = TOP_BRANCH.search(message, 0, end)
    call_id = CALL_ID.search(message, 0, end)
    order = CSEQ.search(message, 0, end)
    if branch is None or call_id is None or order is None:
        raise ValueError("no branch, Call-ID or CSeq")
    return branch[1], call_id[1], order[1]


def _sent_on(message: bytes, method: bytes, old_uri: bytes, request_uri: bytes, route: bytes) -> bytes:
    """The request with this Request-URI and these Route lines on top, all else as it was."""
    line_end = message.find(b"\r\n") + 2
    version = message[len(method) + 1 + len(old_uri) : line_end]
    return b"".join((method, b" ", request_uri, version, route, message[line_end:]))


def _discard(index: dict[Key, list[Binding]], key: Key, binding: Binding) -> None:
    bindings = index[key]
    bindings.remove(binding)
    if not bindings:
        del index[key]
