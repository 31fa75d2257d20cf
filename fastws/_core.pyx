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
#     remember      sip/transaction.pyx                       RFC 3261 17, RFC 6026, RFC 4320
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
from libc.stdlib cimport calloc, free, malloc
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
    derived_write,
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
    CLIENT_INVITE,
    CLIENT_OTHER,
    DO_ACK,
    DO_END,
    DO_IMPOSSIBLE,
    DO_PASS,
    DO_RESEND,
    DO_SEND,
    DO_TIMEOUT,
    EVENT_1XX,
    EVENT_2XX,
    EVENT_ACK,
    EVENT_FINAL,
    EVENT_REQUEST,
    EVENT_TIMEOUT,
    SERVER_INVITE,
    SERVER_OTHER,
    STATE_COMPLETED,
    STATE_CONFIRMED,
    STATE_FREE,
    STATE_PROCEEDING,
    STATE_TRYING,
    TIMER_B_MS,
    TRANSACTION_NONE,
    WHEEL_STEP_MS,
    Transaction,
    transaction_add,
    transaction_due,
    transaction_end_at,
    transaction_event,
    transaction_find,
    transaction_keep,
    transaction_key,
    transaction_orphan,
    transaction_quiet,
    transaction_remove,
    transaction_start,
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
    HEADER_TO,
    HEADER_VIA,
    METHOD_ACK,
    METHOD_BYE,
    METHOD_CANCEL,
    METHOD_INVITE,
    METHOD_OPTIONS,
    METHOD_REGISTER,
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


cdef inline bint is_client(uint8_t kind) noexcept:
    return kind == CLIENT_INVITE or kind == CLIENT_OTHER


cdef inline uint8_t event_of(int status) noexcept:
    if status < 200:
        return EVENT_1XX
    return EVENT_2XX if status < 300 else EVENT_FINAL


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
                 uint32_t max_transactions=1048576, uint32_t max_client_transactions=1024):
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
        self.transactions_limit = max_client_transactions
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
        if self.peers == NULL or message_init(&self.message, 64) != 0 or message_init(&self.spare, 64) != 0 or \
                transactions_init(&self.transactions, <const uint8_t*>PyBytes_AS_STRING(hash_key),
                                  max_transactions) != 0:
            raise MemoryError

    def __cinit__(self):
        rewrite_init(&self.rewrite)
        buffer_init(&self.text)
        buffer_init(&self.spare_text)

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
        message_free(&self.spare)
        buffer_free(&self.spare_text)
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
        connection = self.table.handle(number) if self.on_close is not None else None
        token = self.path_token(number, slot.generation) if self.flow_ended is not None else None
        self.host_release(slot.host)
        self.abandon(slot)
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
        cdef uint32_t server = TRANSACTION_NONE
        cdef uint32_t client = TRANSACTION_NONE
        cdef uint64_t key
        cdef uint64_t now = self.clock_ms()
        cdef Peer* peer
        cdef Transport out
        cdef Forward forward
        cdef size_t length
        cdef char* room = NULL
        cdef int status = 503
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
        key = 0
        if message.method_id == METHOD_INVITE or message.method_id == METHOD_CANCEL or message.method_id == METHOD_ACK:
            key = transaction_key(&self.transactions, 0, transport.slot, transport.generation, facts.via.branch,
                                  facts.via.sent_by, call_id, message.cseq, text_span(b"INVITE"))
            found = transaction_find(&self.transactions, key)
            if found != TRANSACTION_NONE:
                if message.method_id == METHOD_INVITE:
                    return 0         # a WebSocket loses nothing, so this is a client's mistake: it has its answers
                if message.method_id == METHOD_CANCEL:
                    return self.cancelled(transport, NULL, NULL, found)
                if self.acknowledged(found):
                    return 0
            elif message.method_id == METHOD_ACK and self.acks_own_answer(facts):
                return 0
        peer = self.peer_get(number)
        if peer == NULL:
            self.answer(transport, NULL, NULL, 503, text_span(reason_phrase(503)), b"Retry-After: 5\r\n")
            return 0
        self.peer_uses += 1
        peer.used = self.peer_uses
        out = <Transport>peer.transport
        self.serial += 1
        if message.method_id != METHOD_ACK:
            if slot.transaction_count < self.transactions_limit:
                if message.method_id == METHOD_INVITE:
                    server = self.begin(SERVER_INVITE, True, True, key, transport.slot, transport.generation)
                client = self.begin(CLIENT_INVITE if message.method_id == METHOD_INVITE else CLIENT_OTHER,
                                    peer.kind != KIND_UDP, True, 0, transport.slot, transport.generation)
            if client == TRANSACTION_NONE or (message.method_id == METHOD_INVITE and server == TRANSACTION_NONE):
                self.end(client)
                self.end(server)
                self.note(transport, "overload", "too many open transactions", NULL)
                self.answer(transport, NULL, NULL, 503, text_span(reason_phrase(503)), b"Retry-After: 5\r\n")
                return 0
            self.pair(client, server, number)
            self.transactions.nodes[client].kept = message.method_id == METHOD_BYE or \
                message.method_id == METHOD_CANCEL
        self.branch_make(&forward.branch, TOKEN_BRANCH_UP, transport.slot, transport.generation, number, client)
        forward.via_transport = VIA_TRANSPORT[peer.kind]
        forward.out_parameter = URI_TRANSPORT[peer.kind]
        if peer.kind != KIND_LOCAL:
            forward.in_parameter = URI_TRANSPORT[<int>KIND_WS]
        self.flow_make(&forward)
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
            status = 500
        elif peer.kind == KIND_UDP and length > DATAGRAM_MAX:
            status = 513
        else:
            room = out.reserve(length, &peer.address)
        if room != NULL:
            rewrite_write(&self.rewrite, room)
        if room == NULL or not self.sent(client, room, length, now):
            self.end(client)
            self.end(server)
            self.answer(transport, NULL, NULL, status, text_span(reason_phrase(status)),
                        b"Retry-After: 5\r\n" if status == 503 else b"")
            return 0
        if server != TRANSACTION_NONE:
            self.started(server, now)
        out.commit()
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
        cdef Via top
        cdef Token token
        # 16.7 item 3 and SIP-FACTS 12: only over the connection that the request went out on.
        if via_parse(message.headers[message.first[<int>HEADER_VIA]].value, &top) != 0 or \
                not token_in_branch(top.branch, self.node.key, &token) or token.kind != TOKEN_BRANCH_DOWN or \
                token.epoch != self.node.epoch or token.worker != self.node.worker or \
                token.slot != transport.slot or token.generation != transport.generation:
            return self.drop(transport, "response whose topmost Via is not ours", NULL)
        return self.response(transport, &token, &top, NULL)

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
        cdef Via top
        cdef Token token
        if via_parse(message.headers[message.first[<int>HEADER_VIA]].value, &top) != 0 or \
                not token_in_branch(top.branch, self.node.key, &token) or token.kind != TOKEN_BRANCH_UP or \
                token.worker != self.node.worker:
            return self.drop(transport, "response whose topmost Via is not ours", source)
        if token.epoch != self.node.epoch:
            self.counters.late += 1
            return 0
        return self.response(transport, &token, &top, source)

    cdef int upstream_request(self, Transport transport, int scanned, const Address* source) except -1:
        cdef Message* message = &self.message
        cdef Facts facts
        cdef Forward forward
        cdef Slot* slot
        cdef Transport out
        cdef Address back
        cdef uint32_t peer, found
        cdef uint32_t server = TRANSACTION_NONE
        cdef uint32_t client = TRANSACTION_NONE
        cdef uint64_t key
        cdef uint64_t now = self.clock_ms()
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
        call_id = message.headers[message.first[<int>HEADER_CALL_ID]].value
        peer = PEER_NONE
        key = 0
        if facts.reject == 0:
            peer = self.peer_for(transport, &back)
            key = transaction_key(
                &self.transactions, 1, peer, 0, facts.via.branch, facts.via.sent_by, call_id, message.cseq,
                text_span(b"INVITE") if message.method_id == METHOD_ACK or message.method_id == METHOD_CANCEL
                else message.method)
            found = transaction_find(&self.transactions, key)
            if found != TRANSACTION_NONE:
                if message.method_id == METHOD_CANCEL:
                    return self.cancelled(transport, &back, named, found)
                if message.method_id == METHOD_ACK:
                    if self.acknowledged(found):
                        return 0
                else:
                    self.counters.repeated += 1
                    if transaction_event(&self.transactions, found, EVENT_REQUEST, now) & DO_RESEND:
                        self.resend(found)
                    return 0
            elif message.method_id == METHOD_ACK and self.acks_own_answer(&facts):
                return 0
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
        out = <Transport>slot.transport
        memset(&forward, 0, sizeof(Forward))
        self.serial += 1
        if message.method_id != METHOD_ACK:
            if slot.transaction_count < self.transactions_limit:
                if message.method_id == METHOD_INVITE or transport.kind == KIND_UDP:
                    server = self.begin(SERVER_INVITE if message.method_id == METHOD_INVITE else SERVER_OTHER,
                                        transport.kind != KIND_UDP, False, key, facts.token.slot, slot.generation)
                client = self.begin(CLIENT_INVITE if message.method_id == METHOD_INVITE else CLIENT_OTHER,
                                    True, False, 0, facts.token.slot, slot.generation)
            if client == TRANSACTION_NONE or (server == TRANSACTION_NONE and (
                    message.method_id == METHOD_INVITE or transport.kind == KIND_UDP)):
                self.end(client)
                self.end(server)
                self.note(transport, "overload", "too many open transactions", source)
                return self.answer(transport, &back, named, 503, text_span(reason_phrase(503)),
                                   b"Retry-After: 5\r\n")
            self.pair(client, server, peer)
        self.branch_make(&forward.branch, TOKEN_BRANCH_DOWN, facts.token.slot, facts.token.generation, peer, client)
        forward.via_transport = VIA_TRANSPORT[out.kind]
        forward.out_parameter = URI_TRANSPORT[<int>KIND_WS]
        if transport.kind != KIND_LOCAL:
            forward.in_parameter = URI_TRANSPORT[transport.kind]
        self.flow_make(&forward)
        forward.record_route = forms_dialog(message, &facts)
        forward.received_from = named
        rewrite_begin(&self.rewrite, message)
        forward_edits(&self.node, message, &facts, &forward, &self.rewrite)
        if self.privacy and asks_privacy(message):
            asserted_edits(message, &self.rewrite)
        length = rewrite_length(&self.rewrite)
        room = out.reserve(length, NULL) if length > 0 else NULL
        if room != NULL:
            rewrite_write(&self.rewrite, room)
        if room == NULL or not self.sent(client, room, length, now):
            self.end(client)
            self.end(server)
            return self.answer(transport, &back, named, 430, text_span(reason_phrase(430)), b"")
        slot.messages_out += 1
        if server != TRANSACTION_NONE:
            self.started(server, now)
        out.commit()
        return 0

    # -- responses, either way -----------------------------------------------------------------------------------------

    cdef int response(self, Transport transport, const Token* token, const Via* top, const Address* source) except -1:
        # self.message is a response to a request of ours whose branch `token` was.
        cdef Message* message = &self.message
        cdef uint32_t client = self.client_of(token)
        cdef uint32_t server
        cdef uint8_t event
        cdef int action
        cdef bint orphan
        cdef uint64_t now = self.clock_ms()
        cdef Via below
        if second_via(message, top, &below) != 0 and (
                client == TRANSACTION_NONE or not self.transactions.nodes[client].hashed):
            # Only a CANCEL of ours, which is found by a key, has no other Via (16.7 item 3).
            if message.method_id == METHOD_CANCEL:
                self.counters.late += 1      # it has its answer: this is the one to a repetition
                return 0
            return self.drop(transport, "response to nobody", source)
        if client == TRANSACTION_NONE:
            if self.is_open(token):
                return self.drop(transport, "response with another method than its request", source)
            if message.method_id == METHOD_INVITE and 200 <= message.status < 300:
                return self.pass_on(token, top, TRANSACTION_NONE)    # repeated until its ACK comes (RFC 6026 7.2)
            # 16.7 item 5 of a stateless proxy would send it on; RFC 4320 4.2 says that nobody waits for it.
            self.counters.late += 1
            return 0
        if message.status == 100 and self.transactions.nodes[client].state == STATE_PROCEEDING:
            return 0                 # it says nothing new, and Timer C goes on (16.7 item 2)
        event = event_of(message.status)
        action = transaction_event(&self.transactions, client, event, now)
        if action & DO_IMPOSSIBLE:
            return self.drop(transport, "response that its transaction does not expect", source)
        if action & DO_ACK:
            self.acknowledge(client)
        if event == EVENT_1XX and self.transactions.nodes[client].cancel_wanted:
            self.transactions.nodes[client].cancel_wanted = False
            self.cancel(client)
        server = self.transactions.nodes[client].other
        orphan = self.transactions.nodes[client].generation == 0
        if action & DO_END:
            self.end(client)
        if action & DO_PASS and not orphan:
            # A 100 says something about one hop only (16.7 item 5), and outside INVITE no other 1xx is sent (RFC 4320 4.1).
            if message.status > 199 or (message.status > 100 and message.method_id == METHOD_INVITE):
                self.pass_on(token, top, server)
        return 0

    cdef int pass_on(self, const Token* token, const Via* top, uint32_t server) except -1:
        # Send self.message to where the request came from, without our Via; `server` is that half, if there is one.
        cdef Message* message = &self.message
        cdef bint upward = token.kind == TOKEN_BRANCH_UP
        cdef Slot* slot = NULL
        cdef Peer* peer
        cdef Transport out
        cdef const Address* to = NULL
        cdef size_t length
        cdef char* room
        cdef int action
        if upward:
            slot = self.table.tenant(token.slot, token.generation)
            if slot == NULL:
                # The client has left: nothing old is given to whoever came after it.
                self.counters.late += 1
                return 0
            out = <Transport>slot.transport
        else:
            peer = self.peer_get(token.peer)
            if peer == NULL:
                self.end(server)
                return self.drop(None, "response to a request whose sender is gone", NULL)
            out = <Transport>peer.transport
            to = &peer.address
        if server != TRANSACTION_NONE:
            self.transactions.nodes[server].status = <uint16_t>message.status
            action = transaction_event(&self.transactions, server, event_of(message.status), self.clock_ms())
            if not action & DO_SEND:
                return 0
        else:
            action = 0
        rewrite_begin(&self.rewrite, message)
        response_edits(message, top, &self.rewrite)
        if message.status == 503:
            # 16.7 item 6: the far end's trouble must not make the client leave us.
            rewrite_open(&self.rewrite, message.version.start + message.version.length,
                         <size_t>(span_end(message.start_line) - span_end(message.version)))
            buffer_add(&self.rewrite.text, b" 500 Server Internal Error", 26)
            rewrite_close(&self.rewrite)
        if not upward or (self.privacy and asks_privacy(message)):
            asserted_edits(message, &self.rewrite)
        length = rewrite_length(&self.rewrite)
        room = out.reserve(length, to) if length > 0 else NULL
        if room == NULL:
            if action & DO_END:
                self.end(server)
            elif server != TRANSACTION_NONE and length > 0 and not self.transactions.nodes[server].reliable:
                # UDP has no room just now: this one, not the one before it, goes with Timer G or when it is asked for again.
                room = <char*>malloc(length)
                if room != NULL:
                    rewrite_write(&self.rewrite, room)
                    transaction_keep(&self.transactions.nodes[server], room, length)
                    free(room)
            return self.drop(out, "response that cannot be sent", NULL)
        rewrite_write(&self.rewrite, room)
        if server != TRANSACTION_NONE:
            if action & DO_END:
                self.end(server)
            elif not self.transactions.nodes[server].reliable:
                transaction_keep(&self.transactions.nodes[server], room, length)
        if upward:
            slot.messages_out += 1
        out.commit()
        return 0

    # -- transactions --------------------------------------------------------------------------------------------------

    cdef uint32_t begin(self, uint8_t kind, bint reliable, bint upward, uint64_t key, uint32_t slot,
                        uint32_t generation) noexcept:
        cdef Slot* owner = self.table.slot(slot)
        cdef uint32_t made = transaction_add(&self.transactions, kind, reliable, upward, key, key != 0, slot, generation,
                                             &owner.transactions)
        if made != TRANSACTION_NONE and is_client(kind):
            owner.transaction_count += 1
        return made

    cdef void end(self, uint32_t number) noexcept:
        cdef Transaction* node
        cdef Slot* owner
        if number == TRANSACTION_NONE:
            return
        node = &self.transactions.nodes[number]
        if node.generation == 0:
            transaction_remove(&self.transactions, number, &self.transactions.orphans)
        else:
            owner = self.table.slot(node.slot)
            if is_client(node.kind):
                owner.transaction_count -= 1
            transaction_remove(&self.transactions, number, &owner.transactions)

    cdef void pair(self, uint32_t client, uint32_t server, uint32_t peer) noexcept:
        cdef Transaction* node = &self.transactions.nodes[client]
        node.other = server
        node.peer = peer
        node.serial = self.serial
        if server != TRANSACTION_NONE:
            self.transactions.nodes[server].other = client
            self.transactions.nodes[server].peer = peer

    cdef void branch_make(self, Token* token, uint8_t kind, uint32_t slot, uint32_t generation, uint32_t peer,
                          uint32_t client) noexcept:
        token.kind = kind
        token.worker = self.node.worker
        token.epoch = self.node.epoch
        token.slot = slot
        token.generation = generation
        token.peer = peer
        token.serial = self.serial
        token.transaction = client

    cdef void flow_make(self, Forward* forward) noexcept:
        # The flow's token and the dialog's are the branch's without what is its own.
        forward.dialog = forward.branch
        forward.dialog.kind = TOKEN_DIALOG
        forward.dialog.serial = 0
        forward.dialog.transaction = 0
        forward.flow = forward.dialog
        forward.flow.kind = TOKEN_PATH
        forward.flow.peer = 0

    cdef bint sent(self, uint32_t client, const char* data, size_t length, uint64_t now) noexcept:
        # The request is about to go: keep what may have to be repeated, cancelled or answered, and start its timers.
        cdef Transaction* node
        cdef Peer* peer
        if client == TRANSACTION_NONE:
            return True
        node = &self.transactions.nodes[client]
        if node.kind == CLIENT_OTHER and node.upward:
            peer = self.peer_get(node.peer)
            if peer != NULL and peer.kind == KIND_LOCAL:
                self.started(client, now)
                return True          # the far end is this process: nothing is repeated and nothing lost
        if not transaction_keep(node, data, length):
            return False
        self.started(client, now)
        return True

    cdef void started(self, uint32_t number, uint64_t now) noexcept:
        transaction_start(&self.transactions, number, now)
        if not self.turning:
            self.turning = True
            try:
                self.loop.call_later(WHEEL_STEP_MS / 1000.0, self._turn)
            except Exception:
                self.turning = False

    cdef uint32_t client_of(self, const Token* token) noexcept:
        # The client transaction that our branch names; one for a CANCEL of ours has the branch of its INVITE, so it is
        # found by a key of its own.
        cdef uint32_t found
        if self.message.method_id == METHOD_CANCEL:
            found = transaction_find(&self.transactions, self.cancel_key(token.transaction, token.serial))
            if found != TRANSACTION_NONE:
                return found
        if not self.is_open(token) or (self.transactions.nodes[token.transaction].kind == CLIENT_INVITE) != (
                self.message.method_id == METHOD_INVITE):
            return TRANSACTION_NONE
        return token.transaction

    cdef bint is_open(self, const Token* token) noexcept:
        # Whether the client transaction that our branch names still lives, whatever its method is.
        cdef Transaction* node
        if token.transaction >= self.transactions.capacity:
            return False
        node = &self.transactions.nodes[token.transaction]
        return node.state != STATE_FREE and node.serial == token.serial and node.slot == token.slot

    cdef uint64_t cancel_key(self, uint32_t client, uint32_t serial) noexcept:
        return transaction_key(&self.transactions, 3, client, serial, NOTHING, NOTHING, NOTHING, 0, NOTHING) | 1

    cdef bint acknowledged(self, uint32_t server) noexcept:
        # An ACK with the branch of this INVITE came: True if it was for our final response, and so ends here.
        cdef uint8_t state = self.transactions.nodes[server].state
        if state != STATE_COMPLETED and state != STATE_CONFIRMED:
            return False
        if transaction_event(&self.transactions, server, EVENT_ACK, self.clock_ms()) & DO_END:
            self.end(server)
        return True

    cdef int cancelled(self, Transport transport, const Address* to, const Address* received_from,
                       uint32_t server) except -1:
        # 9.2: a CANCEL is answered here, whatever becomes of its INVITE.
        self.answer(transport, to, received_from, 200, text_span(reason_phrase(200)), b"")
        if self.transactions.nodes[server].other != TRANSACTION_NONE:
            self.cancel(self.transactions.nodes[server].other)
        return 0

    cdef int cancel(self, uint32_t client) except -1:
        # 9.1: not before a provisional response has come, and once.
        cdef Transaction* node = &self.transactions.nodes[client]
        cdef uint64_t now = self.clock_ms()
        cdef uint32_t made
        if node.kind != CLIENT_INVITE or node.cancelled:
            return 0
        if node.state == STATE_TRYING:
            node.cancel_wanted = True
            return 0
        if node.state != STATE_PROCEEDING:
            return 0
        node.cancelled = True
        # 9.1: where no final response comes, the INVITE is given up after 64*T1.
        transaction_end_at(&self.transactions, client, now + TIMER_B_MS)
        if message_scan(&self.spare, node.data, node.length) != 0:
            return 0
        buffer_clear(&self.spare_text)
        derived_write(&self.spare, b"CANCEL", self.spare.headers[self.spare.first[<int>HEADER_TO]].line,
                      &self.spare_text)
        if self.spare_text.failed:
            return 0
        made = transaction_add(&self.transactions, CLIENT_OTHER, node.reliable, node.upward,
                               self.cancel_key(client, node.serial), True, node.slot, 0, &self.transactions.orphans)
        if made == TRANSACTION_NONE:
            return 0
        node = &self.transactions.nodes[client]
        self.transactions.nodes[made].peer = node.peer
        self.transactions.nodes[made].serial = node.serial
        # It goes the way of its INVITE, which the client's leaving does not change.
        self.transactions.nodes[made].kept = True
        if not transaction_keep(&self.transactions.nodes[made], self.spare_text.data, self.spare_text.length) or (
                not self.send_kept(made, node.generation) and self.transactions.nodes[made].reliable):
            # Over UDP Timer E sends what found no room.
            self.end(made)
            return 0
        self.started(made, now)
        return 0

    cdef int acknowledge(self, uint32_t client) except -1:
        # 17.1.1.3: the ACK to the final response in self.message, hop by hop.
        cdef Transaction* node = &self.transactions.nodes[client]
        cdef Message* message = &self.message
        if message_scan(&self.spare, node.data, node.length) != 0:
            return 0
        buffer_clear(&self.spare_text)
        derived_write(&self.spare, b"ACK", message.headers[message.first[<int>HEADER_TO]].line, &self.spare_text)
        if not self.spare_text.failed:
            self.send_bytes(node.upward, node.slot, node.generation, node.peer, self.spare_text.data,
                            self.spare_text.length)
        return 0

    cdef bint send_kept(self, uint32_t number, uint32_t generation) noexcept:
        cdef Transaction* node = &self.transactions.nodes[number]
        return self.send_bytes(node.upward, node.slot, generation, node.peer, node.data, node.length)

    cdef bint send_bytes(self, bint to_peer, uint32_t slot_number, uint32_t generation, uint32_t peer_number,
                         const char* data, size_t length) noexcept:
        # To the SIP side, or to the client.
        cdef Slot* slot
        cdef Peer* peer
        cdef Transport out
        cdef const Address* to = NULL
        cdef char* room
        if to_peer:
            peer = self.peer_get(peer_number)
            if peer == NULL:
                return False
            out = <Transport>peer.transport
            to = &peer.address
        else:
            slot = self.table.tenant(slot_number, generation) if generation != 0 else NULL
            if slot == NULL:
                return False
            out = <Transport>slot.transport
            slot.messages_out += 1
        room = out.reserve(length, to)
        if room == NULL:
            return False
        memcpy(room, data, length)
        out.commit()
        return True

    cdef void resend(self, uint32_t number) noexcept:
        # What a half sent last, again: a client half its request, a server half its response.
        cdef Transaction* node = &self.transactions.nodes[number]
        cdef bint to_peer = node.upward
        if node.data == NULL:
            return
        if node.kind == SERVER_INVITE or node.kind == SERVER_OTHER:
            to_peer = not node.upward
        else:
            self.counters.resent += 1
        self.send_bytes(to_peer, node.slot, node.generation, node.peer, node.data, node.length)

    cdef int fail(self, uint32_t client, int status, bytes extra) except -1:
        # The far end of this request will not answer: its sender hears so from us, and the client half is over.
        cdef Transaction* node = &self.transactions.nodes[client]
        cdef uint32_t server = node.other
        cdef int action = DO_SEND
        cdef char tag[8]
        cdef size_t i
        if node.data != NULL and (not node.upward or node.generation != 0) and \
                message_scan(&self.spare, node.data, node.length) == 0:
            if server != TRANSACTION_NONE:
                action = transaction_event(&self.transactions, server, event_of(status), self.clock_ms())
                self.transactions.nodes[server].status = <uint16_t>status
                node = &self.transactions.nodes[client]
            for i in range(8):
                tag[i] = b"0123456789abcdef"[node.serial >> (4 * i) & 15]
            buffer_clear(&self.spare_text)
            answer_write(&self.spare, status, text_span(reason_phrase(status)),
                         span_make(tag, 8 if status > 100 else 0), bytes_span(extra), NULL, True, &self.spare_text)
            if action & DO_SEND and not self.spare_text.failed:
                self.counters.answered += 1
                if server != TRANSACTION_NONE and not self.transactions.nodes[server].reliable:
                    transaction_keep(&self.transactions.nodes[server], self.spare_text.data, self.spare_text.length)
                self.send_bytes(not node.upward, node.slot, node.generation, node.peer, self.spare_text.data,
                                self.spare_text.length)
            if server != TRANSACTION_NONE and action & DO_END:
                self.end(server)
        elif status >= 200:
            self.end(server)
        if status >= 200:
            self.end(client)
        return 0

    cdef int abandon(self, Slot* slot) except -1:
        # The client of this slot leaves. What it had asked for is let go, but for an INVITE, which is cancelled, and a BYE
        # or a CANCEL, which are carried to their end; what it was asked is answered for it.
        cdef uint32_t number, server
        cdef Transaction* node
        while slot.transactions != TRANSACTION_NONE:
            number = slot.transactions
            node = &self.transactions.nodes[number]
            if node.kind == SERVER_INVITE or node.kind == SERVER_OTHER:
                if node.upward:
                    self.end(number)
                else:
                    self.orphan(number, slot)
            elif not node.upward:
                if node.kind == CLIENT_INVITE and node.state == STATE_COMPLETED:
                    self.end(number)
                else:
                    self.fail(number, 480, b"")
            elif node.kind == CLIENT_INVITE:
                # It may have arrived or not. It is repeated no more, and cancelled should a sign of it come.
                self.orphan(number, slot)
                transaction_quiet(&self.transactions, number)
                self.cancel(number)
            elif node.kept:
                self.orphan(number, slot)
            else:
                self.end(number)
        return 0

    cdef void orphan(self, uint32_t number, Slot* slot) noexcept:
        if is_client(self.transactions.nodes[number].kind):
            slot.transaction_count -= 1
        transaction_orphan(&self.transactions, number, &slot.transactions)

    def _turn(self):
        """Carry out what the timers say, every WHEEL_STEP_MS while any runs."""
        cdef uint64_t now = self.clock_ms()
        cdef uint32_t number
        cdef uint8_t event
        cdef int action
        cdef Transaction* node
        self.turning = False
        while True:
            number = transaction_due(&self.transactions, now, &event)
            if number == TRANSACTION_NONE:
                break
            node = &self.transactions.nodes[number]
            if event == EVENT_TIMEOUT and node.kind == CLIENT_INVITE and node.state == STATE_PROCEEDING and \
                    not node.cancelled:
                self.cancel(number)                     # Timer C, 16.8
                continue
            action = transaction_event(&self.transactions, number, event, now)
            if action & DO_RESEND:
                self.resend(number)
            if action & DO_TIMEOUT:
                if node.kind == SERVER_INVITE:
                    if node.status == 0 and node.other != TRANSACTION_NONE:
                        self.fail(node.other, 100, b"")
                    continue
                if node.kind == CLIENT_INVITE:
                    self.fail(number, 408, b"")
                    continue
                # RFC 4320 4.1: a 408 to anything but INVITE comes too late for everybody.
                self.end(node.other)
            if action & DO_END:
                self.end(number)
        if self.transactions.timers > 0 and not self.turning:
            self.turning = True
            self.loop.call_later(WHEEL_STEP_MS / 1000.0, self._turn)

    def lost(self, Transport transport not None, unsent=()):
        """The connection to a stream upstream has ended: what was asked over it is answered with 503 (16.9), but for the
        messages in ``unsent``, which go over the next one."""
        cdef uint32_t number
        cdef Transaction* node
        spared = {self._client_in(message) for message in unsent}
        for number in range(self.transactions.capacity):
            node = &self.transactions.nodes[number]
            if number not in spared and node.state != STATE_FREE and node.upward and node.peer == transport.peer and (
                    node.kind == CLIENT_OTHER or (node.kind == CLIENT_INVITE and node.state < STATE_COMPLETED)):
                self.fail(number, 503, b"Retry-After: 1\r\n")

    def undelivered(self, messages):
        """Requests that were kept for an upstream and could not be sent after all: their senders get a 503 each."""
        cdef uint32_t client
        for message in messages:
            client = self._client_in(message)
            if client != TRANSACTION_NONE:
                self.fail(client, 503, b"Retry-After: 5\r\n")

    def _client_in(self, bytes message):
        """The number of the transaction that a request of ours belongs to."""
        cdef Via top
        cdef Token token
        if message_scan(&self.message, PyBytes_AS_STRING(message), <size_t>PyBytes_GET_SIZE(message)) == 0 and \
                via_parse(self.message.headers[self.message.first[<int>HEADER_VIA]].value, &top) == 0 and \
                token_in_branch(top.branch, self.node.key, &token):
            return self.client_of(&token)
        return <uint32_t>TRANSACTION_NONE

    # -- answers of our own --------------------------------------------------------------------------------------------

    cdef int answer(self, Transport transport, const Address* to, const Address* received_from, int status,
                    Span reason, bytes extra) except -1:
        # Answer the request in self.message over the transport that it came from. An ACK has no answer (17.1.1.3).
        cdef Message* message = &self.message
        cdef Slot* slot
        cdef char* room
        cdef char tag[8]
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
        self.tag_make(branch, call_id, tag)
        buffer_clear(&self.text)
        answer_write(message, status, reason, span_make(tag, 8), bytes_span(extra), received_from, False, &self.text)
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

    cdef void tag_make(self, Span branch, Span call_id, char* tag) noexcept:
        # 8.2.7: a stateless answer has the same tag each time it is made.
        cdef uint64_t hashed = transaction_key(&self.transactions, 2, 0, 0, branch, NOTHING, call_id, self.message.cseq,
                                               NOTHING)
        cdef size_t i
        for i in range(8):
            tag[i] = b"0123456789abcdef"[hashed >> (4 * i) & 15]

    cdef bint acks_own_answer(self, const Facts* facts) noexcept:
        # The ACK to an INVITE that was answered here without a transaction: 8.2.7 has it ignored.
        cdef char tag[8]
        self.tag_make(facts.via.branch, self.message.headers[self.message.first[<int>HEADER_CALL_ID]].value, tag)
        return span_equal(facts.target_tag, tag, 8)

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
        if uri_is_own(&self.node, uri, NOTHING):
            return PEER_NONE         # a friend's address it may be, with an upstream on this host, but no next hop
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
        if uri_is_own(&self.node, &uri, NOTHING):
            return PEER_NONE
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
            "timers": self.transactions.timers,
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
            "resent": self.counters.resent,
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

