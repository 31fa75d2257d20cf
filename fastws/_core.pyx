# The heart of fastws: every message passes through here, in this order.
#
#     bytes in      transport/ws.pyx, stream.pyx, udp.pyx     RFC 3261 18
#     frame         wire/frame.pyx                            RFC 6455 5
#     message       wire/message.pyx                          RFC 3261 7, 20, 25
#     check         sip/route.pyx request_check               RFC 3261 16.3
#     route         sip/route.pyx routes_read                 RFC 3261 16.4, RFC 5626 5
#     identity      identity_check, below                     DESIGN "IDENTITY"
#     policy        _request.pyx -> the policy module         only where it has on_request
#     match         sip/transaction.pyx                       RFC 3261 17.2.3
#     rewrite       sip/route.pyx -> wire/rewrite.pyx         RFC 3261 16.6, RFC 3327
#     bytes out     transport/*.pyx
#
# The rooms decide, this file acts: it alone reads the clock and the random source, holds the tables, and hands messages
# from one transport to another. It parses nothing byte by byte, opens no socket, and imports no Python module of fastws:
# policy, registrar and log are handed in.

import secrets
from functools import partial
from inspect import isawaitable

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stddef cimport size_t
from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcpy, memset, strlen

from fastws._connection cimport SLOT_NONE, ConnectionTable, Slot, address_to_pair, pair_to_address
from fastws._request cimport VERDICT_REJECT, Request, Verdict, request_make
from fastws.sip.route cimport (
    Facts,
    Forward,
    Name,
    answer_write,
    asks_outbound,
    asks_privacy,
    asserted_edits,
    forms_dialog,
    forward_edits,
    identity_match,
    is_anonymous,
    reason_phrase,
    request_check,
    response_edits,
    routes_read,
    uri_is_own,
)
from fastws.sip.transaction cimport (
    TRANSACTION_NONE,
    transaction_add,
    transaction_find,
    transaction_key,
    transaction_oldest,
    transaction_remove,
    transactions_free,
    transactions_init,
)
from fastws.transport.address cimport Address, address_equal, address_parse_host, address_same_host
from fastws.transport.base cimport (
    KIND_LOCAL,
    KIND_TCP,
    KIND_UDP,
    KIND_WS,
    KIND_WSS,
    TERMINATOR_POLICY,
    TERMINATOR_SHUTDOWN,
    TERMINATOR_TIMEOUT,
    Receiver,
    Transport,
)
from fastws.wire.message cimport (
    HEADER_CALL_ID,
    HEADER_MAX_FORWARDS,
    HEADER_P_ASSERTED_IDENTITY,
    HEADER_P_PREFERRED_IDENTITY,
    HEADER_VIA,
    METHOD_ACK,
    METHOD_CANCEL,
    METHOD_INVITE,
    METHOD_OPTIONS,
    METHOD_REGISTER,
    Header,
    Message,
    NameAddr,
    Uri,
    Via,
    message_free,
    message_init,
    message_next,
    message_scan,
    name_addr_parse,
    parameter_find,
    uri_parse,
    via_parse,
)
from fastws.wire.rewrite cimport (
    buffer_add,
    buffer_clear,
    buffer_free,
    buffer_init,
    rewrite_begin,
    rewrite_close,
    rewrite_cut,
    rewrite_free,
    rewrite_init,
    rewrite_length,
    rewrite_open,
    rewrite_write,
)
from fastws.wire.span cimport Span, span_end, span_equal, span_equal_nocase, span_equal_span_nocase, span_make
from fastws.wire.token cimport (
    TOKEN_BRANCH_DOWN,
    TOKEN_BRANCH_UP,
    TOKEN_DIALOG,
    TOKEN_LENGTH,
    TOKEN_PATH,
    Token,
    token_open,
    token_seal,
)

from fastws._connection import TERMINATORS

cdef extern from "<time.h>" nogil:
    struct timespec:
        long tv_sec
        long tv_nsec
    int clock_gettime(int clock, timespec* now)
    enum: CLOCK_MONOTONIC_COARSE

cdef extern from "<Python.h>":
    Py_ssize_t Py_REFCNT(object o)

cdef const char* MAGIC = b"z9hG4bK"  # RFC 3261 8.1.1.7
cdef enum:
    MAGIC_LENGTH = 7
    DATAGRAM_MAX = 65507         # RFC 3261 18.1.1
    IDENTITY_OK = 0

cdef Span NOTHING = span_make(NULL, 0)


cdef inline Span text_span(const char* text) noexcept:
    return span_make(text, strlen(text))


cdef inline Span bytes_span(bytes data) noexcept:
    return span_make(PyBytes_AS_STRING(data), <size_t>PyBytes_GET_SIZE(data))


cdef bint token_in_branch(Span branch, const uint8_t* key, Token* out) noexcept nogil:
    # Ours begins with the magic cookie and is a token behind it, no more.
    if branch.length != MAGIC_LENGTH + TOKEN_LENGTH or not span_equal(span_make(branch.start, MAGIC_LENGTH), MAGIC,
                                                                      MAGIC_LENGTH):
        return False
    return token_open(span_make(branch.start + MAGIC_LENGTH, TOKEN_LENGTH), key, NOTHING, out) == 0


cdef int second_via(const Message* message, const Via* top, Via* out) noexcept nogil:
    # The Via below the topmost: 0, or -1 where there is none that can be read.
    cdef int32_t at
    if top.rest.start != NULL:
        return via_parse(top.rest, out)
    at = message_next(message, <uint16_t>HEADER_VIA, message.first[<int>HEADER_VIA])
    if at < 0:
        return -1
    return via_parse(message.headers[at].value, out)


cdef object wrong_result(object result):
    return TypeError("on_request must return None, request.reject(...) or request.drop(), "
                     f"not {type(result).__name__}")


cdef class Edge(Receiver):
    """One worker's proxy: what clients and the SIP side send meets here.

    ``advertise``: "host:port" of Via, Path and Record-Route. ``names``: (host, port) pairs that mean this fastws, port 0
    for any. ``secret``: 16 bytes, the key of all tokens; ``epoch``: 32 bits that differ from start to start.
    ``report(kind, who, text)`` gets one line for the log; ``flow_ended(token)`` is told when a connection with this
    flow token has ended, or is None.
    """

    def __init__(self, loop, ConnectionTable table not None, policy, *, bytes advertise not None, names, bytes secret,
                 uint32_t epoch, uint8_t worker=0, bint privacy=False, double ping_interval=30.0,
                 double ping_timeout=10.0, double message_timeout=10.0, report=None, flow_ended=None,
                 uint32_t transactions_limit=1024):
        cdef size_t i
        if len(secret) != 16:
            raise ValueError("the secret has 16 bytes")
        self.loop = loop
        self.table = table
        self.set_policy(policy)
        self.privacy = privacy
        self.report = report
        self.flow_ended = flow_ended
        self.ping_interval_ms = <uint64_t>(ping_interval * 1000)
        self.ping_timeout_ms = <uint64_t>(ping_timeout * 1000)
        self.message_timeout_ms = <uint64_t>(message_timeout * 1000)
        self.transactions_limit = transactions_limit
        self.kept = [advertise]
        self.handshake_hosts = [b""]
        self.handshake_host_uses = [1]
        self.handshake_host_index = {}
        self.handshake_hosts_free = []
        self.node.advertised = bytes_span(advertise)
        memcpy(self.node.key, PyBytes_AS_STRING(secret), 16)
        self.node.epoch = epoch
        self.node.worker = worker
        self.serial = <uint32_t>secrets.randbits(32)
        self.names = <Name*>calloc(len(names) or 1, sizeof(Name))
        if self.names == NULL:
            raise MemoryError
        for i, (host, port) in enumerate(names):
            text = host.encode("ascii")
            self.kept.append(text)
            self.names[i].host = bytes_span(text)
            self.names[i].port = port
        self.node.names = self.names
        self.node.name_count = len(names)
        self.peers = <Peer*>calloc(PEERS_MAX, sizeof(Peer))
        hash_key = secrets.token_bytes(16)
        if self.peers == NULL or message_init(&self.message, 64) != 0 or \
                transactions_init(&self.transactions, <const uint8_t*>PyBytes_AS_STRING(hash_key)) != 0:
            raise MemoryError

    def __cinit__(self):
        rewrite_init(&self.rewrite)
        buffer_init(&self.text)

    def __dealloc__(self):
        cdef uint32_t i
        if self.peers != NULL:
            for i in range(self.peer_count):
                if self.peers[i].transport != NULL:
                    Py_DECREF(<object>self.peers[i].transport)
        free(self.peers)
        free(self.names)
        free(self.hosts_upstream)
        free(self.trusted)
        message_free(&self.message)
        rewrite_free(&self.rewrite)
        buffer_free(&self.text)
        transactions_free(&self.transactions)

    # -- set-up --------------------------------------------------------------------------------------------------------

    def set_policy(self, policy):
        """From the next message on this policy is asked. Connections keep their attributes."""
        self.policy = policy
        self.on_request = policy.on_request
        self.on_close = policy.on_close
        self.methods = None
        if policy.request_methods is not None:
            self.methods = frozenset(method.encode() for method in policy.request_methods)
        self.identity = policy.identity is not None
        self.table.set_identity(policy.identity)

    def set_upstream(self, Transport transport not None, str host, uint32_t port, addresses):
        """Where clients' requests go. ``addresses``: the IP literals of ``host``, the first of which UDP sends to; SIP
        from any of them is accepted."""
        cdef Address address
        cdef size_t i
        memset(&address, 0, sizeof(Address))
        free(self.hosts_upstream)
        self.hosts_upstream = <Address*>calloc(len(addresses) or 1, sizeof(Address))
        if self.hosts_upstream == NULL:
            raise MemoryError
        for i, literal in enumerate(addresses):
            text = literal.encode("ascii")
            if not address_parse_host(&self.hosts_upstream[i], text, len(text)):
                raise ValueError("an upstream's addresses are IP literals")
            self.hosts_upstream[i].port = <uint16_t>port
        self.hosts_upstream_count = len(addresses)
        if addresses:
            address = self.hosts_upstream[0]
        self.upstream_name = host.encode("ascii")
        self.upstream_port = port
        self.upstream = self.peer_enter(transport.kind, &address, transport, True)
        transport.peer = self.upstream

    def set_udp(self, Transport transport):
        """The socket of the SIP side, for answers and requests to addresses that are not the upstream."""
        self.udp = transport

    def set_trusted(self, networks):
        """(address, prefix bits) of the networks whose SIP is accepted beside the upstream's."""
        cdef size_t i
        free(self.trusted)
        self.trusted = <Network*>calloc(len(networks) or 1, sizeof(Network))
        if self.trusted == NULL:
            raise MemoryError
        for i, (literal, bits) in enumerate(networks):
            text = literal.encode("ascii")
            if not address_parse_host(&self.trusted[i].address, text, len(text)):
                raise ValueError("a network begins with an IP literal")
            self.trusted[i].bits = bits
        self.trusted_count = len(networks)

    def add_stream(self, Transport transport not None):
        """A TCP connection of the SIP side was accepted; False: not from an address that may speak to us."""
        cdef Address address
        host, port = transport.remote_pair
        text = host.encode("ascii")
        if not address_parse_host(&address, text, len(text)) or not self.is_trusted(&address):
            self.counters.untrusted += 1
            address.port = port
            self.note(transport, "untrusted", "TCP connection from an address that is neither an upstream nor trusted",
                      &address)
            return False
        address.port = port
        transport.peer = self.peer_enter(KIND_TCP, &address, transport, False)
        return True

    def drop_stream(self, Transport transport not None):
        """That connection has ended."""
        cdef Peer* peer = self.peer_get(transport.peer)
        if peer != NULL and peer.transport == <PyObject*>transport:
            peer.kind = 0
            peer.transport = NULL
            Py_DECREF(transport)
        transport.peer = PEER_NONE

    # -- Receiver ------------------------------------------------------------------------------------------------------

    cdef uint64_t clock_ms(self) noexcept:
        cdef timespec now
        clock_gettime(CLOCK_MONOTONIC_COARSE, &now)
        return <uint64_t>now.tv_sec * 1000 + <uint64_t>now.tv_nsec // 1000000

    cdef bint opened(self, Transport transport, object source, object local, dict attributes, str host) except -1:
        cdef Address from_address, local_address
        cdef uint32_t number
        cdef Slot* slot
        pair_to_address(source, &from_address)
        pair_to_address(local, &local_address)
        number = self.table.claim(&from_address, &local_address, transport, attributes)
        if number == SLOT_NONE:
            self.note(transport, "overload", "max_connections reached", &from_address)
            return False
        slot = self.table.slot(number)
        slot.secure = transport.kind == KIND_WSS
        slot.last_in_ms = self.clock_ms()
        slot.host = self.host_number(host)
        transport.slot = number
        transport.generation = slot.generation
        self.counters.accepted += 1
        return True

    cdef void heard(self, Transport transport, bint partial) noexcept:
        cdef Slot* slot = self.slot_of(transport)
        if slot == NULL:
            return
        slot.last_in_ms = self.clock_ms()
        slot.ping_open = False
        if not partial:
            slot.partial_ms = 0
        elif slot.partial_ms == 0:
            slot.partial_ms = slot.last_in_ms

    cdef int closed(self, Transport transport, int terminator, int code, bytes reason) except -1:
        cdef Slot* slot = self.slot_of(transport)
        cdef uint32_t number = transport.slot
        if slot == NULL:
            return 0
        self.counters.closed[terminator] += 1
        while slot.transactions != TRANSACTION_NONE:
            transaction_remove(&self.transactions, slot.transactions, &slot.transactions)
        slot.transaction_count = 0
        connection = self.table.handle(number) if self.on_close is not None else None
        token = self.path_token(number, slot.generation) if self.flow_ended is not None else None
        self.host_release(slot.host)
        # From here on nothing finds the connection: neither the index nor a token.
        self.table.release(number)
        transport.generation = 0
        if token is not None:
            self.flow_ended(token)
        if connection is not None:
            self.policy.closed(connection, TERMINATORS[terminator], code, reason.decode("utf-8", "replace"))
        return 0

    cdef int note(self, Transport transport, str kind, str text, const Address* source) except -1:
        cdef Slot* slot
        if self.report is None:
            return 0
        who = None
        if source != NULL:
            who = address_to_pair(source)
        elif transport is not None:
            slot = self.slot_of(transport)
            if slot != NULL:
                who = address_to_pair(&slot.source)
        self.report(kind, who, text)
        return 0

    cdef bint received(self, Transport transport, const char* data, size_t length, const Address* source) except -1:
        if transport.kind == KIND_WS or transport.kind == KIND_WSS:
            return self.from_client(transport, data, length)
        if transport.kind != KIND_LOCAL and not self.is_trusted(source):
            self.counters.untrusted += 1
            self.note(transport, "untrusted", "SIP from an address that is neither an upstream nor trusted", source)
            return False
        self.from_sip_side(transport, data, length, source)
        return False

    # -- from a client -------------------------------------------------------------------------------------------------

    cdef bint from_client(self, Transport transport, const char* data, size_t length) except -1:
        cdef Slot* slot = self.slot_of(transport)
        cdef int scanned
        if slot == NULL:
            return False
        slot.messages_in += 1
        slot.partial_ms = 0          # one message is whole: what is unfinished behind it has only begun
        scanned = message_scan(&self.message, data, length)
        if scanned < 0:
            self.drop(transport, "not a SIP message", NULL)
            return False
        if not self.message.is_request:
            self.counters.client_responses += 1
            self.client_response(transport, slot)
            return False
        self.counters.client_requests += 1
        if scanned > 0:
            reason = text_span(self.message.error) if self.message.error != NULL else text_span(reason_phrase(scanned))
            self.answer(transport, NULL, NULL, scanned, reason, b"")
            return False
        return self.client_request(transport, None, None)

    cdef bint client_request(self, Transport transport, Request request, Verdict verdict) except -1:
        # self.message holds the request. With `request`: policy has let it through, or judged it.
        cdef Message* message = &self.message
        cdef Slot* slot = self.slot_of(transport)
        cdef Facts facts
        cdef bint in_dialog
        cdef Peer* upstream
        upstream = self.peer_get(self.upstream)
        if verdict is not None:
            return self.carry_out(transport, verdict)
        request_check(message, slot.secure and upstream != NULL and upstream.kind == KIND_LOCAL, &facts)
        if facts.reject == 0:
            routes_read(&self.node, message, True, transport.slot, transport.generation, self.host_of(slot), &facts)
        if facts.reject == 0 and message.times[<int>HEADER_MAX_FORWARDS] != 0 and message.max_forwards == 0:
            # 16.3 item 3: a proxy may answer an OPTIONS that was meant for it (11).
            if message.method_id == METHOD_OPTIONS and uri_is_own(&self.node, &facts.uri, self.host_of(slot)):
                self.answer(transport, NULL, NULL, 200, text_span(b"OK"), b"")
                return False
            facts.reject = 483
            facts.reason = NULL
        in_dialog = facts.has_token and facts.token.kind == TOKEN_DIALOG and facts.target_tag.start != NULL
        if facts.reject == 0 and facts.has_next:
            if facts.next_is_own:
                # Another client's flow, behind our own: only the dialog that both halves are sealed for leads there.
                if not in_dialog or facts.next_kind != TOKEN_DIALOG:
                    facts.reject = 403
                    facts.reason = b"Bad Flow Token"
            elif not in_dialog and facts.cut_count == 0 and not self.uri_is_upstream(&facts.next_route):
                facts.reject = 403
                facts.reason = b"Route Not Allowed"
        if facts.reject != 0:
            extra = b""
            if facts.reject == 420:
                extra = b"Unsupported: " + facts.unsupported.start[:facts.unsupported.length] + b"\r\n"
            self.answer(transport, NULL, NULL, facts.reject,
                        text_span(facts.reason if facts.reason != NULL else reason_phrase(facts.reject)), extra)
            return False
        if request is None:
            if self.identity and not in_dialog:
                status = self.identity_check(slot, &facts)
                if status == 400:
                    self.answer(transport, NULL, NULL, 400, text_span(b"Bad From"), b"")
                    return False
                if status != IDENTITY_OK:
                    self.counters.identity += 1
                    self.note(transport, "identity", "From or To is not the user of this connection", NULL)
                    self.answer(transport, NULL, NULL, 403, text_span(b"Identity Mismatch"), b"")
                    transport.finish(1008, b"identity mismatch", TERMINATOR_POLICY)
                    return False
            if self.on_request is not None and (
                    self.methods is None or message.method.start[:message.method.length] in self.methods):
                return self.ask(transport, slot, &facts, in_dialog)
        self.client_forward(transport, slot, &facts, in_dialog, request)
        return False

    cdef bint ask(self, Transport transport, Slot* slot, Facts* facts, bint in_dialog) except -1:
        cdef Request request = request_make(&self.message, in_dialog)
        cdef bint waits = False
        try:
            result = self.on_request(request, self.table.handle(transport.slot))
            if result is not None and not isinstance(result, Verdict):
                if not isawaitable(result):
                    raise wrong_result(result)
                request.detach()
                transport.asking = True
                waits = True
                host, port = address_to_pair(&slot.source)
                self.policy.follow(result, partial(self._decided, transport, request),
                                   f"on_request for {host}:{port}")
        except Exception:
            self.policy.log_failure("on_request", address_to_pair(&slot.source))
            if self.slot_of(transport) != NULL:
                self.answer(transport, NULL, NULL, 500, text_span(reason_phrase(500)), b"")
            request.detach()
            return False
        if waits:
            return True
        if self.slot_of(transport) != NULL:
            if result is not None:
                self.carry_out(transport, <Verdict>result)
            else:
                self.client_forward(transport, slot, facts, in_dialog, request)
        if Py_REFCNT(request) > 1:
            # Somebody keeps it: the buffer under it is about to be read over.
            request.detach()
        return False

    def _decided(self, Transport transport, Request request, result, error):
        """An async on_request has come to its end."""
        cdef Verdict verdict = None
        transport.asking = False
        if self.slot_of(transport) == NULL:
            return
        if isinstance(result, Verdict):
            verdict = <Verdict>result
        elif error is None and result is not None:
            try:
                raise wrong_result(result)
            except TypeError as wrong:
                error = wrong
                self.policy.log_failure("on_request", address_to_pair(&self.slot_of(transport).source))
        message_scan(&self.message, PyBytes_AS_STRING(request.data), <size_t>PyBytes_GET_SIZE(request.data))
        if error is not None:
            self.answer(transport, NULL, NULL, 500, text_span(reason_phrase(500)), b"")
        else:
            self.client_request(transport, request, verdict)
        transport.resume()

    cdef bint carry_out(self, Transport transport, Verdict verdict) except -1:
        if verdict.action == VERDICT_REJECT:
            self.answer(transport, NULL, NULL, verdict.status,
                        text_span(reason_phrase(verdict.status)) if verdict.reason is None
                        else bytes_span(verdict.reason), verdict.headers)
            if verdict.close:
                transport.finish(1008, verdict.reason if verdict.reason is not None else b"", TERMINATOR_POLICY)
        return False

    cdef int identity_check(self, Slot* slot, Facts* facts) noexcept:
        # 0, 400 for a From that names nobody in particular, 403. RFC 3261 8.1.1.3: From has a tag; 19.1.1: a password
        # in a user part is not to be used, and here it would be a second way to write the same user.
        cdef int32_t at
        cdef NameAddr preferred
        cdef Uri uri
        if facts.sender_tag.start == NULL or \
                (facts.sender_uri.user.start != NULL and span_end(facts.sender_uri.user)[0] == c':'):
            return 400
        if slot.identity == NULL:
            return 403
        if not identity_match(&facts.sender_uri, slot.identity, slot.identity_length):
            # RFC 3325 9.1: an anonymous caller says who he is in P-Preferred-Identity.
            if not is_anonymous(&facts.sender_uri):
                return 403
            at = self.message.first[<int>HEADER_P_PREFERRED_IDENTITY]
            if at < 0 or name_addr_parse(self.message.headers[at].value, &preferred) != 0 or \
                    uri_parse(preferred.uri, &uri) != 0 or \
                    not identity_match(&uri, slot.identity, slot.identity_length):
                return 403
        if self.message.method_id == METHOD_REGISTER and \
                not identity_match(&facts.target_uri, slot.identity, slot.identity_length):
            return 403
        return IDENTITY_OK

    cdef int client_forward(self, Transport transport, Slot* slot, Facts* facts, bint in_dialog,
                            Request request) except -1:
        cdef Message* message = &self.message
        cdef uint32_t number = self.upstream
        cdef uint32_t found
        cdef uint64_t key
        cdef Peer* peer
        cdef Transport out
        cdef Forward forward
        cdef size_t length
        cdef char* room
        cdef Span call_id = message.headers[message.first[<int>HEADER_CALL_ID]].value
        memset(&forward, 0, sizeof(Forward))
        if request is not None and request.target is not None:
            number = self.peer_of_target(request.target)
            if number == PEER_NONE:
                self.note(transport, "policy", "forward() names an address that cannot be reached from here", NULL)
                self.answer(transport, NULL, NULL, 500, text_span(reason_phrase(500)), b"")
                return 0
        elif in_dialog:
            # What is left of the route set, or the far end's Contact, is obeyed where it leads to friends only.
            number = PEER_NONE
            if not facts.next_is_own:
                number = self.peer_of_uri(&facts.next_route if facts.has_next else &facts.uri)
            if number == PEER_NONE:
                number = facts.token.peer if self.peer_get(facts.token.peer) != NULL else self.upstream
        self.serial += 1
        forward.branch.kind = TOKEN_BRANCH_UP
        forward.branch.worker = self.node.worker
        forward.branch.epoch = self.node.epoch
        forward.branch.slot = transport.slot
        forward.branch.generation = transport.generation
        forward.branch.serial = self.serial
        key = transaction_key(&self.transactions, 0, transport.slot, transport.generation, facts.via.branch,
                              facts.via.sent_by, call_id, message.cseq)
        if message.method_id == METHOD_CANCEL or message.method_id == METHOD_ACK:
            # 9.1 and 17.1.1.3: they carry the branch of their INVITE and go the same way.
            found = transaction_find(&self.transactions, key)
            if found != TRANSACTION_NONE:
                forward.branch.serial = self.transactions.nodes[found].serial
                if self.peer_get(self.transactions.nodes[found].peer) != NULL:
                    number = self.transactions.nodes[found].peer
                if message.method_id == METHOD_ACK:
                    self.invite_ended(slot, key)
        peer = self.peer_get(number)
        if peer == NULL:
            self.answer(transport, NULL, NULL, 503, text_span(reason_phrase(503)), b"Retry-After: 5\r\n")
            return 0
        self.peer_uses += 1
        peer.used = self.peer_uses
        out = <Transport>peer.transport
        forward.branch.peer = number
        forward.via_transport = VIA_TRANSPORT[peer.kind]
        forward.out_parameter = URI_TRANSPORT[peer.kind]
        if peer.kind != KIND_LOCAL:
            forward.in_parameter = URI_TRANSPORT[<int>KIND_WS]
        forward.dialog = forward.branch
        forward.dialog.kind = TOKEN_DIALOG
        forward.dialog.serial = 0
        forward.flow = forward.dialog
        forward.flow.kind = TOKEN_PATH
        forward.flow.peer = 0
        forward.record_route = forms_dialog(message, facts)
        forward.path = message.method_id == METHOD_REGISTER
        forward.outbound = forward.path and asks_outbound(message, facts)
        # RFC 3325 5: a client is outside the trust domain, whatever it asserts.
        forward.strip_asserted = True
        rewrite_begin(&self.rewrite, message)
        forward_edits(&self.node, message, facts, &forward, &self.rewrite)
        if request is not None and (request.removed is not None or request.added is not None):
            self.policy_edits(request)
        length = rewrite_length(&self.rewrite)
        if length == 0:
            self.answer(transport, NULL, NULL, 500, text_span(reason_phrase(500)), b"")
            return 0
        if peer.kind == KIND_UDP and length > DATAGRAM_MAX:
            self.answer(transport, NULL, NULL, 513, text_span(reason_phrase(513)), b"")
            return 0
        room = out.reserve(length, &peer.address)
        if room == NULL:
            self.answer(transport, NULL, NULL, 503, text_span(reason_phrase(503)), b"Retry-After: 5\r\n")
            return 0
        rewrite_write(&self.rewrite, room)
        out.commit()
        if message.method_id == METHOD_INVITE:
            self.invite_begun(slot, key, transport.slot, forward.branch.serial, number)
        return 0

    cdef int policy_edits(self, Request request) except -1:
        # P-Asserted-Identity of the client is cut already; everything else that policy removed goes here.
        cdef Message* message = &self.message
        cdef Span wanted
        cdef size_t i
        if request.removed is not None:
            removed = set(request.removed)
            for i in range(message.count):
                if message.headers[i].id == HEADER_P_ASSERTED_IDENTITY:
                    continue
                name = message.headers[i].name.start[:message.headers[i].name.length]
                if name.lower() in removed:
                    rewrite_cut(&self.rewrite, message.headers[i].line.start, message.headers[i].line.length)
        if request.added is not None:
            rewrite_open(&self.rewrite, span_end(message.head), 0)
            for line in request.added:
                wanted = bytes_span(line)
                buffer_add(&self.rewrite.text, wanted.start, wanted.length)
                buffer_add(&self.rewrite.text, b"\r\n", 2)
            rewrite_close(&self.rewrite)
        return 0

    cdef int client_response(self, Transport transport, Slot* slot) except -1:
        cdef Message* message = &self.message
        cdef Via top, below
        cdef Token token
        cdef Peer* peer
        cdef size_t length
        cdef char* room
        # 16.7 item 3 and SIP-FACTS 12: only over the connection that the request went out on.
        if via_parse(message.headers[message.first[<int>HEADER_VIA]].value, &top) != 0 or \
                not token_in_branch(top.branch, self.node.key, &token) or token.kind != TOKEN_BRANCH_DOWN or \
                token.epoch != self.node.epoch or token.worker != self.node.worker or \
                token.slot != transport.slot or token.generation != transport.generation:
            return self.drop(transport, "response whose topmost Via is not ours", NULL)
        peer = self.peer_get(token.peer)
        if peer == NULL or second_via(message, &top, &below) != 0:
            return self.drop(transport, "response to a request whose sender is gone", NULL)
        if message.method_id == METHOD_INVITE and 200 <= message.status < 300:
            self.invite_ended(slot, transaction_key(
                &self.transactions, 1, token.peer, 0, below.branch, below.sent_by,
                message.headers[message.first[<int>HEADER_CALL_ID]].value, message.cseq))
        rewrite_begin(&self.rewrite, message)
        response_edits(message, &top, &self.rewrite)
        asserted_edits(message, &self.rewrite)
        length = rewrite_length(&self.rewrite)
        room = (<Transport>peer.transport).reserve(length, &peer.address) if length > 0 else NULL
        if room == NULL:
            return self.drop(transport, "response that the upstream's transport cannot take", NULL)
        rewrite_write(&self.rewrite, room)
        (<Transport>peer.transport).commit()
        return 0

    # -- from the SIP side ---------------------------------------------------------------------------------------------

    cdef int from_sip_side(self, Transport transport, const char* data, size_t length, const Address* source) except -1:
        cdef int scanned
        cdef size_t i
        for i in range(length):
            if data[i] != c'\r' and data[i] != c'\n' and data[i] != 0:
                break
        else:
            return 0                 # a keep-alive (RFC 5626 3.5), which over UDP asks for nothing
        scanned = message_scan(&self.message, data, length)
        if scanned < 0:
            return self.drop(transport, "not a SIP message", source)
        if self.message.is_request:
            self.counters.upstream_requests += 1
            return self.upstream_request(transport, scanned, source)
        self.counters.upstream_responses += 1
        return self.upstream_response(transport, source)

    cdef int upstream_response(self, Transport transport, const Address* source) except -1:
        cdef Message* message = &self.message
        cdef Via top, below
        cdef Token token
        cdef Slot* slot
        cdef Transport out
        cdef size_t length
        cdef char* room
        if via_parse(message.headers[message.first[<int>HEADER_VIA]].value, &top) != 0 or \
                not token_in_branch(top.branch, self.node.key, &token) or token.kind != TOKEN_BRANCH_UP or \
                token.worker != self.node.worker or second_via(message, &top, &below) != 0:
            return self.drop(transport, "response whose topmost Via is not ours", source)
        slot = self.table.tenant(token.slot, token.generation) if token.epoch == self.node.epoch else NULL
        if slot == NULL:
            # The client has left: nothing old is given to whoever came after it.
            self.counters.late += 1
            return 0
        if message.method_id == METHOD_INVITE and 200 <= message.status < 300:
            self.invite_ended(slot, transaction_key(
                &self.transactions, 0, token.slot, token.generation, below.branch, below.sent_by,
                message.headers[message.first[<int>HEADER_CALL_ID]].value, message.cseq))
        rewrite_begin(&self.rewrite, message)
        response_edits(message, &top, &self.rewrite)
        if self.privacy and asks_privacy(message):
            asserted_edits(message, &self.rewrite)
        length = rewrite_length(&self.rewrite)
        out = <Transport>slot.transport
        room = out.reserve(length, NULL) if length > 0 else NULL
        if room == NULL:
            return self.drop(transport, "response that the client's connection cannot take", source)
        rewrite_write(&self.rewrite, room)
        slot.messages_out += 1
        out.commit()
        return 0

    cdef int upstream_request(self, Transport transport, int scanned, const Address* source) except -1:
        cdef Message* message = &self.message
        cdef Facts facts
        cdef Forward forward
        cdef Slot* slot
        cdef Transport out
        cdef Address back
        cdef uint32_t peer, found
        cdef uint64_t key
        cdef size_t length
        cdef char* room
        cdef Span call_id
        cdef const Address* named = NULL
        if transport.kind != KIND_LOCAL:
            named = source
        memset(&back, 0, sizeof(Address))
        if scanned > 0:
            if source != NULL:
                back = source[0]
                if message.first[<int>HEADER_VIA] >= 0 and \
                        via_parse(message.headers[message.first[<int>HEADER_VIA]].value, &facts.via) == 0:
                    answer_address(&facts.via, source, &back)
            self.answer(transport, &back, named, scanned,
                        text_span(message.error if message.error != NULL else reason_phrase(scanned)), b"")
            return 0
        request_check(message, True, &facts)
        if source != NULL:
            answer_address(&facts.via, source, &back)
        if facts.reject == 0:
            routes_read(&self.node, message, False, 0, 0, NOTHING, &facts)
        if facts.reject == 0 and not facts.has_token and message.method_id == METHOD_OPTIONS and \
                (facts.uri.user.start == NULL or uri_is_own(&self.node, &facts.uri, NOTHING)):
            # 11: an upstream sees by it whether we live.
            return self.answer(transport, &back, named, 200, text_span(b"OK"), b"")
        if facts.reject == 0 and message.times[<int>HEADER_MAX_FORWARDS] != 0 and message.max_forwards == 0:
            facts.reject = 483
            facts.reason = NULL
        if facts.reject == 0 and not facts.has_token:
            facts.reject = 404
            facts.reason = b"No Flow Token In Route"
        slot = NULL
        if facts.reject == 0:
            if facts.token.epoch == self.node.epoch and facts.token.worker == self.node.worker:
                slot = self.table.tenant(facts.token.slot, facts.token.generation)
            if slot == NULL:
                facts.reject = 430
                facts.reason = NULL
        if facts.reject != 0:
            extra = b""
            if facts.reject == 420:
                extra = b"Unsupported: " + facts.unsupported.start[:facts.unsupported.length] + b"\r\n"
            return self.answer(transport, &back, named, facts.reject,
                               text_span(facts.reason if facts.reason != NULL else reason_phrase(facts.reject)), extra)
        peer = self.peer_for(transport, &back)
        call_id = message.headers[message.first[<int>HEADER_CALL_ID]].value
        key = transaction_key(&self.transactions, 1, peer, 0, facts.via.branch, facts.via.sent_by, call_id,
                              message.cseq)
        found = transaction_find(&self.transactions, key)
        memset(&forward, 0, sizeof(Forward))
        self.serial += 1
        forward.branch.kind = TOKEN_BRANCH_DOWN
        forward.branch.worker = self.node.worker
        forward.branch.epoch = self.node.epoch
        forward.branch.slot = facts.token.slot
        forward.branch.generation = facts.token.generation
        forward.branch.peer = peer
        forward.branch.serial = self.serial
        if found != TRANSACTION_NONE:
            if message.method_id == METHOD_INVITE:
                # Repeated, as over UDP it may be: the client has it already, for a WebSocket loses nothing.
                self.counters.repeated += 1
                return 0
            if message.method_id == METHOD_CANCEL or message.method_id == METHOD_ACK:
                forward.branch.serial = self.transactions.nodes[found].serial
                if message.method_id == METHOD_ACK:
                    self.invite_ended(slot, key)
        out = <Transport>slot.transport
        forward.via_transport = VIA_TRANSPORT[out.kind]
        forward.out_parameter = URI_TRANSPORT[<int>KIND_WS]
        if transport.kind != KIND_LOCAL:
            forward.in_parameter = URI_TRANSPORT[transport.kind]
        forward.dialog = forward.branch
        forward.dialog.kind = TOKEN_DIALOG
        forward.dialog.serial = 0
        forward.record_route = forms_dialog(message, &facts)
        forward.received_from = named
        rewrite_begin(&self.rewrite, message)
        forward_edits(&self.node, message, &facts, &forward, &self.rewrite)
        if self.privacy and asks_privacy(message):
            asserted_edits(message, &self.rewrite)
        length = rewrite_length(&self.rewrite)
        room = out.reserve(length, NULL) if length > 0 else NULL
        if room == NULL:
            return self.answer(transport, &back, named, 430, text_span(reason_phrase(430)), b"")
        rewrite_write(&self.rewrite, room)
        slot.messages_out += 1
        if message.method_id == METHOD_INVITE:
            self.invite_begun(slot, key, facts.token.slot, forward.branch.serial, peer)
        out.commit()
        return 0

    def undelivered(self, messages):
        """Requests that were kept for an upstream and could not be sent after all: their senders get a 503 each."""
        cdef bytes message
        cdef Peer* upstream = self.peer_get(self.upstream)
        if upstream == NULL:
            return
        for message in messages:
            if message_scan(&self.message, PyBytes_AS_STRING(message), <size_t>PyBytes_GET_SIZE(message)) != 0 or \
                    not self.message.is_request or self.message.method_id == METHOD_ACK:
                continue
            buffer_clear(&self.text)
            answer_write(&self.message, 503, text_span(reason_phrase(503)), NOTHING,
                         text_span(b"Retry-After: 5\r\n"), NULL, &self.text)
            answer = self.text.data[:self.text.length]
            if message_scan(&self.message, PyBytes_AS_STRING(answer), <size_t>PyBytes_GET_SIZE(answer)) == 0:
                self.upstream_response(<Transport>upstream.transport, &upstream.address)

    # -- answers of our own --------------------------------------------------------------------------------------------

    cdef int answer(self, Transport transport, const Address* to, const Address* received_from, int status,
                    Span reason, bytes extra) except -1:
        # Answer the request in self.message over the transport that it came from. An ACK has no answer (17.1.1.3).
        cdef Message* message = &self.message
        cdef Slot* slot
        cdef char* room
        cdef char tag[8]
        cdef uint64_t hashed
        cdef size_t i
        cdef Span call_id = NOTHING
        cdef Span branch = NOTHING
        cdef Via via
        if message.method_id == METHOD_ACK and status != 200:
            return self.drop(transport, "ACK that leads nowhere", received_from)
        if message.first[<int>HEADER_CALL_ID] >= 0:
            call_id = message.headers[message.first[<int>HEADER_CALL_ID]].value
        if message.first[<int>HEADER_VIA] >= 0:
            if via_parse(message.headers[message.first[<int>HEADER_VIA]].value, &via) == 0:
                branch = via.branch
        else:
            return self.drop(transport, "broken request without a Via to answer by", received_from)
        # 8.2.7: a stateless answer has the same tag each time it is made.
        hashed = transaction_key(&self.transactions, 2, 0, 0, branch, NOTHING, call_id, message.cseq)
        for i in range(8):
            tag[i] = b"0123456789abcdef"[hashed >> (4 * i) & 15]
        buffer_clear(&self.text)
        answer_write(message, status, reason, span_make(tag, 8), bytes_span(extra), received_from, &self.text)
        self.counters.answered += 1
        if self.text.failed:
            return self.drop(transport, "no memory for an answer", received_from)
        room = transport.reserve(self.text.length, to)
        if room == NULL:
            return self.drop(transport, "answer that cannot be sent", received_from)
        memcpy(room, self.text.data, self.text.length)
        slot = self.slot_of(transport)
        if slot != NULL:
            slot.messages_out += 1
        transport.commit()
        return 0

    cdef int drop(self, Transport transport, str text, const Address* source) except -1:
        self.counters.dropped += 1
        return self.note(transport, "dropped", text, source)

    # -- what belongs to whom ------------------------------------------------------------------------------------------

    cdef Slot* slot_of(self, Transport transport) noexcept:
        # The SIP side's transports have no generation, and a tenant is never without.
        if transport.generation == 0:
            return NULL
        return self.table.tenant(transport.slot, transport.generation)

    cdef uint32_t host_number(self, str host) except? 0xFFFFFFFF:
        # The host of a Host header, without its port, in a list that all connections share; 0 for none.
        name, _, port = host.rpartition(":")
        if not name or not port.isdigit():
            name = host
        name = name.lower()
        if not name or len(name) > HOST_LENGTH_MAX:
            return 0
        found = self.handshake_host_index.get(name)
        if found is None:
            text = name.encode("latin-1", "replace")
            if self.handshake_hosts_free:
                found = self.handshake_hosts_free.pop()
                self.handshake_hosts[found] = text
            else:
                found = len(self.handshake_hosts)
                self.handshake_hosts.append(text)
                self.handshake_host_uses.append(0)
            self.handshake_host_index[name] = found
        self.handshake_host_uses[found] += 1
        return found

    cdef int host_release(self, uint32_t number) except -1:
        if number == 0:
            return 0
        self.handshake_host_uses[number] -= 1
        if self.handshake_host_uses[number] == 0:
            del self.handshake_host_index[self.handshake_hosts[number].decode("latin-1")]
            self.handshake_hosts[number] = b""
            self.handshake_hosts_free.append(number)
        return 0

    cdef Span host_of(self, Slot* slot) noexcept:
        return bytes_span(<bytes>self.handshake_hosts[slot.host])

    cdef bint is_trusted(self, const Address* source) noexcept:
        cdef size_t i
        if source == NULL:
            return False
        for i in range(self.hosts_upstream_count):
            if address_same_host(&self.hosts_upstream[i], source):
                return True
        for i in range(self.trusted_count):
            if in_network(&self.trusted[i], source):
                return True
        return False

    cdef bint uri_is_upstream(self, const Uri* uri) noexcept:
        cdef Address address
        cdef size_t i
        cdef uint32_t port = uri.port if uri.port != 0 else 5060
        if not uri.is_sip or port != self.upstream_port:
            return False
        if span_equal_span_nocase(uri.host, bytes_span(self.upstream_name)):
            return True
        if address_parse_host(&address, uri.host.start, uri.host.length):
            for i in range(self.hosts_upstream_count):
                if address_same_host(&self.hosts_upstream[i], &address):
                    return True
        return False

    cdef uint32_t peer_of_uri(self, const Uri* uri) noexcept:
        # An upstream or an address in `trusted`, written as a literal: its peer; PEER_NONE for anything else. No name is
        # ever looked up for a client.
        cdef Address address
        cdef Span transport
        if not uri.is_sip or uri.is_sips:
            return PEER_NONE
        if self.uri_is_upstream(uri):
            return self.upstream
        if self.udp is None or not address_parse_host(&address, uri.host.start, uri.host.length) or \
                not self.is_trusted(&address):
            return PEER_NONE
        if parameter_find(uri.parameters, b"transport", 9, &transport) and \
                not span_equal_nocase(transport, b"udp", 3):
            return PEER_NONE
        address.port = <uint16_t>(uri.port if uri.port != 0 else 5060)
        return self.peer_for(self.udp, &address)

    cdef uint32_t peer_of_target(self, bytes target) noexcept:
        # Policy says where to: any address literal, or an upstream by name.
        cdef Address address
        cdef Span transport
        cdef Uri uri
        if uri_parse(bytes_span(target), &uri) != 0:
            return PEER_NONE
        if self.uri_is_upstream(&uri):
            return self.upstream
        if self.udp is None or not address_parse_host(&address, uri.host.start, uri.host.length):
            return PEER_NONE
        if parameter_find(uri.parameters, b"transport", 9, &transport) and \
                not span_equal_nocase(transport, b"udp", 3):
            return PEER_NONE
        address.port = <uint16_t>(uri.port if uri.port != 0 else 5060)
        return self.peer_for(self.udp, &address)

    cdef Peer* peer_get(self, uint32_t number) noexcept:
        cdef uint32_t at = number & 0xFFFF
        if number == PEER_NONE or at >= self.peer_count or self.peers[at].kind == 0 or \
                self.peers[at].generation != number >> 16:
            return NULL
        return &self.peers[at]

    cdef uint32_t peer_for(self, Transport transport, const Address* address) noexcept:
        # Where the answers to what came over this transport from (and for) this address go.
        cdef uint32_t i
        cdef Peer* peer
        if transport.kind != KIND_UDP:
            return transport.peer
        for i in range(self.peer_count):
            peer = &self.peers[i]
            if peer.kind == KIND_UDP and address_equal(&peer.address, address):
                self.peer_uses += 1
                peer.used = self.peer_uses
                return <uint32_t>peer.generation << 16 | i
        return self.peer_enter(KIND_UDP, address, transport, False)

    cdef uint32_t peer_enter(self, uint8_t kind, const Address* address, Transport transport,
                             bint configured) noexcept:
        cdef uint32_t i
        cdef uint32_t at = PEERS_MAX
        cdef Peer* peer
        for i in range(self.peer_count):
            if self.peers[i].kind == 0:
                at = i
                break
        if at == PEERS_MAX and self.peer_count < PEERS_MAX:
            at = self.peer_count
            self.peer_count += 1
        if at == PEERS_MAX:
            for i in range(<uint32_t>PEERS_MAX):
                if not self.peers[i].configured and self.peers[i].kind == KIND_UDP and \
                        (at == PEERS_MAX or self.peers[i].used < self.peers[at].used):
                    at = i
            if at == PEERS_MAX:
                return PEER_NONE
        peer = &self.peers[at]
        if peer.transport != NULL:
            Py_DECREF(<object>peer.transport)
        Py_INCREF(transport)
        peer.transport = <PyObject*>transport
        peer.generation += 1
        if peer.generation == 0:
            peer.generation = 1
        self.peer_uses += 1
        peer.used = self.peer_uses
        peer.kind = kind
        peer.configured = configured
        peer.address = address[0]
        return <uint32_t>peer.generation << 16 | at

    cdef int invite_begun(self, Slot* slot, uint64_t key, uint32_t number, uint32_t serial, uint32_t peer) except -1:
        if transaction_find(&self.transactions, key) != TRANSACTION_NONE:
            return 0
        if slot.transaction_count >= self.transactions_limit:
            transaction_remove(&self.transactions, transaction_oldest(&self.transactions, slot.transactions),
                               &slot.transactions)
            slot.transaction_count -= 1
        if transaction_add(&self.transactions, key, number, slot.generation, serial, peer,
                           &slot.transactions) != TRANSACTION_NONE:
            slot.transaction_count += 1
        return 0

    cdef void invite_ended(self, Slot* slot, uint64_t key) noexcept:
        cdef uint32_t found = transaction_find(&self.transactions, key)
        # A message can name a transaction of another connection; it may not end it.
        if found != TRANSACTION_NONE and self.transactions.nodes[found].generation == slot.generation and \
                self.table.slot(self.transactions.nodes[found].slot) == slot:
            transaction_remove(&self.transactions, found, &slot.transactions)
            slot.transaction_count -= 1

    cdef bytes path_token(self, uint32_t number, uint32_t generation):
        cdef Token token
        cdef char sealed[TOKEN_LENGTH]
        memset(&token, 0, sizeof(Token))
        token.kind = TOKEN_PATH
        token.worker = self.node.worker
        token.epoch = self.node.epoch
        token.slot = number
        token.generation = generation
        token_seal(&token, self.node.key, NOTHING, sealed)
        return sealed[:TOKEN_LENGTH]

    # -- time, and the end ---------------------------------------------------------------------------------------------

    def tick(self):
        """Ping who was silent, end who does not answer. Called several times a second at most."""
        cdef uint64_t now = self.clock_ms()
        cdef uint32_t number
        cdef Slot* slot
        cdef Transport transport
        for number in range(self.table.capacity):
            slot = self.table.slot(number)
            if not slot.open:
                continue
            transport = <Transport>slot.transport
            if transport.asking:
                continue             # reading is paused for the policy's sake, so silence says nothing
            if slot.partial_ms != 0 and now - slot.partial_ms > self.message_timeout_ms:
                self.note(transport, "timeout", "unfinished message", NULL)
                transport.finish(1008, b"unfinished message", TERMINATOR_TIMEOUT)
            elif slot.ping_open:
                if now - slot.ping_ms > self.ping_timeout_ms:
                    self.note(transport, "timeout", "no answer to a ping", NULL)
                    transport.finish(1011, b"no answer to a ping", TERMINATOR_TIMEOUT)
            elif now - slot.last_in_ms >= self.ping_interval_ms:
                slot.ping_open = True
                slot.ping_ms = now
                transport.ping()

    def close_all(self, int code=1001, bytes reason=b""):
        """Close every connection, with terminator ``shutdown``."""
        cdef uint32_t number
        cdef Slot* slot
        for number in range(self.table.capacity):
            slot = self.table.slot(number)
            if slot.open:
                (<Transport>slot.transport).finish(code, reason, TERMINATOR_SHUTDOWN)

    def state(self):
        """Counts for the tests and the metrics."""
        return {
            "connections": self.table.count,
            "transactions": self.transactions.count,
            "accepted": self.counters.accepted,
            "closed": {str(TERMINATORS[i]): self.counters.closed[i] for i in range(8)},
            "client_requests": self.counters.client_requests,
            "client_responses": self.counters.client_responses,
            "upstream_requests": self.counters.upstream_requests,
            "upstream_responses": self.counters.upstream_responses,
            "answered": self.counters.answered,
            "dropped": self.counters.dropped,
            "late": self.counters.late,
            "untrusted": self.counters.untrusted,
            "repeated": self.counters.repeated,
            "identity": self.counters.identity,
        }


cdef const char* VIA_TRANSPORT[6]
VIA_TRANSPORT[0] = b"WS"
VIA_TRANSPORT[<int>KIND_WS] = b"WS"
VIA_TRANSPORT[<int>KIND_WSS] = b"WSS"
VIA_TRANSPORT[<int>KIND_UDP] = b"UDP"
VIA_TRANSPORT[<int>KIND_TCP] = b"TCP"
VIA_TRANSPORT[<int>KIND_LOCAL] = b"WS"

# "transport=ws" even over TLS: nobody dials it, and "wss" is no value of the RFC (7118 5.2.1 gives it to Via only).
cdef const char* URI_TRANSPORT[6]
URI_TRANSPORT[0] = b";transport=ws"
URI_TRANSPORT[<int>KIND_WS] = b";transport=ws"
URI_TRANSPORT[<int>KIND_WSS] = b";transport=ws"
URI_TRANSPORT[<int>KIND_UDP] = b";transport=udp"
URI_TRANSPORT[<int>KIND_TCP] = b";transport=tcp"
URI_TRANSPORT[<int>KIND_LOCAL] = b";transport=ws"


cdef void answer_address(const Via* via, const Address* source, Address* out) noexcept:
    # 18.2.2 and RFC 3581 4: to where it came from; to the port of sent-by unless rport asks for the port it came from.
    # The host of the Via is never believed.
    out[0] = source[0]
    if not via.has_rport:
        out.port = <uint16_t>(via.port if via.port != 0 else 5060)


cdef bint in_network(const Network* network, const Address* address) noexcept:
    cdef int whole = network.bits // 8
    cdef int rest = network.bits % 8
    cdef int i
    if network.address.family != address.family:
        return False
    for i in range(whole):
        if network.address.ip[i] != address.ip[i]:
            return False
    return rest == 0 or (network.address.ip[whole] ^ address.ip[whole]) >> (8 - rest) == 0

