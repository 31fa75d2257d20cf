# Python doors to the table, the tokens, the rewrite, the routes, the transactions and the transports, for tests and benches
# only. Nothing is decided here; what is copied is copied to buffers of exactly its length, so that a sanitizer sees a byte
# too far.

import time

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.ref cimport PyObject
from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, memcpy, memset

from fastws._connection cimport (
    SLOT_NONE,
    ConnectionTable,
    Slot,
    address_to_pair,
    pair_to_address,
)
from fastws._core cimport Edge
from fastws.sip cimport route, transaction
from fastws.sip.route cimport Facts, Forward, Name, Node
from fastws.sip.transaction cimport TRANSACTION_NONE, TransactionTable
from fastws.transport.address cimport Address
from fastws.transport.base cimport KIND_UDP, KIND_WS, Receiver, Transport
from fastws.wire cimport rewrite as edits
from fastws.wire cimport token as tokens
from fastws.wire.message cimport (
    HEADER_TO,
    HEADER_VIA,
    Message,
    Uri,
    Via,
    message_free,
    message_init,
    message_scan,
    uri_parse,
    via_parse,
)
from fastws.wire.rewrite cimport Buffer, Rewrite, buffer_add, buffer_free, buffer_init
from fastws.wire.siphash cimport siphash_end, siphash_feed, siphash_start, siphash_state
from fastws.wire.span cimport Span, span_make
from fastws.wire.token cimport TOKEN_LENGTH, Token

NONE = 0xFFFFFFFF


cdef Span span_of(bytes data) noexcept:
    # Of None: as where a text is absent.
    if data is None:
        return span_make(NULL, 0)
    return span_make(PyBytes_AS_STRING(data), <size_t>PyBytes_GET_SIZE(data))


cdef bytes bytes_of(Span span):
    return None if span.start == NULL else <bytes>span.start[:span.length]


# ---- transports and receivers --------------------------------------------------------------------------------------------

cdef class Dummy(Transport):
    """A transport that keeps what it is told; while ``full`` it has no room."""

    cdef public bint full
    cdef readonly list sent
    cdef readonly list finished          # (code, reason, terminator)
    cdef bytes pending
    cdef object __weakref__

    def __init__(self, kind=KIND_WS):
        self.kind = kind
        self.sent = []
        self.finished = []

    cdef char* reserve(self, size_t length, const Address* to) noexcept:
        if self.full:
            return NULL
        self.pending = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>length)
        return PyBytes_AS_STRING(self.pending)

    cdef void commit(self) noexcept:
        self.sent.append(self.pending)

    cdef void finish(self, int code, bytes reason, int terminator) noexcept:
        self.finished.append((code, reason, terminator))


cdef class Recorder(Receiver):
    """A receiver that keeps what it is told, in order, in ``events``.

    ``on_received(transport, data)`` may answer True to make the transport wait, and whatever it does, the bytes must still
    be there behind it: if not, there is an event "gone". ``on_closed(transport)`` hears of an end; ``room``: whether
    opened() finds place. ``ahead``: milliseconds by which its clock is moved on.
    """

    cdef public list events
    cdef public object on_received
    cdef public object on_closed
    cdef public bint room
    cdef public uint64_t ahead

    def __init__(self):
        self.events = []
        self.room = True

    cdef bint opened(self, Transport transport, object source, object local, dict attributes, str host) except -1:
        if not self.room:
            return False
        transport.generation = 1
        self.events.append(("opened", source, local, attributes, host))
        return True

    cdef bint received(self, Transport transport, const char* data, size_t length, const Address* source) except -1:
        cdef bytes copy = data[:length]
        cdef bint wait = False
        if source == NULL:
            self.events.append(("received", copy))
        else:
            self.events.append(("received", copy, address_to_pair(source)))
        if self.on_received is not None:
            wait = bool(self.on_received(transport, copy))
            if memcmp(data, PyBytes_AS_STRING(copy), length) != 0:
                self.events.append(("gone", copy))
        return wait

    cdef void heard(self, Transport transport, bint partial) noexcept:
        self.events.append(("heard", bool(partial)))

    cdef int closed(self, Transport transport, int terminator, int code, bytes reason) except -1:
        self.events.append(("closed", terminator, code, reason))
        transport.generation = 0
        if self.on_closed is not None:
            self.on_closed(transport)
        return 0

    cdef int note(self, Transport transport, str kind, str text, const Address* source) except -1:
        self.events.append(("note", kind, text))
        return 0

    cdef uint64_t clock_ms(self) noexcept:
        return <uint64_t>(time.monotonic() * 1000) + self.ahead

    def of(self, *kinds):
        """The events of these kinds, in order."""
        return [event for event in self.events if event[0] in kinds]

    @property
    def messages(self):
        """The bytes of every message received."""
        return [event[1] for event in self.events if event[0] == "received"]


def kind_of(Transport transport):
    return transport.kind


def receiver_opened(Receiver receiver, Transport transport, source, local, dict attributes, str host):
    return bool(receiver.opened(transport, source, local, attributes, host))


def receiver_received(Receiver receiver, Transport transport, bytes data, source=None):
    """Hand over a message as a transport does; ``source``: (address, port)."""
    cdef Address address
    if source is not None:
        pair_to_address(source, &address)
    return bool(receiver.received(transport, PyBytes_AS_STRING(data), <size_t>len(data),
                                  &address if source is not None else NULL))


def receiver_closed(Receiver receiver, Transport transport, int terminator, int code, bytes reason):
    receiver.closed(transport, terminator, code, reason)


def transport_send(Transport transport, bytes data, to=None):
    """reserve, copy, commit; False where there was no room. ``to``: (address, port)."""
    cdef Address address
    cdef char* room
    if to is not None:
        pair_to_address(to, &address)
    room = transport.reserve(<size_t>len(data), &address if to is not None else NULL)
    if room == NULL:
        return False
    memcpy(room, PyBytes_AS_STRING(data), <size_t>len(data))
    transport.commit()
    return True


def transport_reserve(Transport transport, size_t length, to=None):
    """Whether there is room; what was reserved is left alone."""
    cdef Address address
    if to is not None:
        pair_to_address(to, &address)
    return transport.reserve(length, &address if to is not None else NULL) != NULL


def transport_finish(Transport transport, int code, bytes reason, int terminator):
    transport.finish(code, reason, terminator)


def transport_resume(Transport transport):
    transport.resume()


def transport_ping(Transport transport):
    transport.ping()


# ---- the connection table ------------------------------------------------------------------------------------------------

def claim(ConnectionTable table not None, source, local, Transport transport not None, dict attributes):
    """The number of the slot, or None at the limit."""
    cdef Address a, b
    cdef uint32_t number
    pair_to_address(source, &a)
    pair_to_address(local, &b)
    number = table.claim(&a, &b, transport, attributes)
    return None if number == SLOT_NONE else number


def release(ConnectionTable table not None, uint32_t number):
    table.release(number)


def find(ConnectionTable table not None, source):
    cdef Address address
    cdef uint32_t number
    pair_to_address(source, &address)
    number = table.find(&address)
    return None if number == SLOT_NONE else number


def tenant(ConnectionTable table not None, uint32_t number, uint32_t generation):
    """Whether this tenant is there."""
    return table.tenant(number, generation) != NULL


def handle(ConnectionTable table not None, uint32_t number):
    return table.handle(number)


cdef Slot* slot_there(ConnectionTable table, uint32_t number) except NULL:
    cdef Slot* slot = table.slot(number)
    if slot == NULL:
        raise IndexError(number)
    return slot


def slot(ConnectionTable table not None, uint32_t number):
    """The plain fields of a slot."""
    cdef Slot* one = slot_there(table, number)
    return {
        "open": bool(one.open), "generation": one.generation, "secure": bool(one.secure),
        "ping_open": bool(one.ping_open), "opened_at": one.opened_at, "serial": one.serial,
        "messages_in": one.messages_in, "messages_out": one.messages_out, "last_in_ms": one.last_in_ms,
        "ping_ms": one.ping_ms, "partial_ms": one.partial_ms, "host": one.host, "transactions": one.transactions,
        "transaction_count": one.transaction_count, "transport": one.transport != NULL,
        "attributes": one.attributes != NULL, "handle": one.handle != NULL,
        "identity": None if one.identity == NULL else <bytes>one.identity[:one.identity_length],
    }


def slot_change(ConnectionTable table not None, uint32_t number, **fields):
    """Set fields as the core does while it runs."""
    cdef Slot* one = slot_there(table, number)
    for name, value in fields.items():
        if name == "generation":
            one.generation = value
        elif name == "secure":
            one.secure = value
        elif name == "messages_in":
            one.messages_in = value
        elif name == "messages_out":
            one.messages_out = value
        elif name == "ping_open":
            one.ping_open = value
        elif name == "partial_ms":
            one.partial_ms = value
        elif name == "transaction_count":
            one.transaction_count = value
        else:
            raise KeyError(name)


def slot_address(ConnectionTable table not None, uint32_t number):
    """Where the slot lies in memory."""
    return <uintptr_t>slot_there(table, number)


def index_size(ConnectionTable table not None):
    return table.index_size


def index_home(ConnectionTable table not None, source):
    cdef Address address
    pair_to_address(source, &address)
    return table.index_home(&address)


cdef class Lookups:
    """Addresses in C, to be looked up in a table: what a bench times is find() alone."""

    cdef Address* addresses
    cdef size_t count

    def __cinit__(self, pairs):
        cdef size_t i
        self.count = len(pairs)
        self.addresses = <Address*>calloc(self.count or 1, sizeof(Address))
        if self.addresses == NULL:
            raise MemoryError
        for i, pair in enumerate(pairs):
            pair_to_address(pair, &self.addresses[i])

    def __dealloc__(self):
        free(self.addresses)

    def find_all(self, ConnectionTable table not None):
        """How many of them are there."""
        cdef size_t i
        cdef size_t found = 0
        for i in range(self.count):
            if table.find(&self.addresses[i]) != SLOT_NONE:
                found += 1
        return found

    def tenants(self, ConnectionTable table not None, uint32_t generation):
        """How many of the slots 0..count have a tenant of this generation: the way of a token."""
        cdef uint32_t i
        cdef size_t found = 0
        for i in range(<uint32_t>self.count):
            if table.tenant(i, generation) != NULL:
                found += 1
        return found

    def turn_over(self, ConnectionTable table not None, Transport transport not None, dict attributes):
        """Claim and release a slot for each address; how many were claimed."""
        cdef size_t i
        cdef size_t claimed = 0
        cdef uint32_t number
        for i in range(self.count):
            number = table.claim(&self.addresses[i], &self.addresses[i], transport, attributes)
            if number != SLOT_NONE:
                claimed += 1
                table.release(number)
        return claimed


# ---- tokens --------------------------------------------------------------------------------------------------------------

cdef tuple token_tuple(const Token* token):
    return (token.kind, token.worker, token.loop, token.epoch, token.slot, token.generation, token.peer, token.serial,
            token.transaction)


cdef Token token_struct(fields):
    cdef Token token
    memset(&token, 0, sizeof(Token))
    (token.kind, token.worker, token.loop, token.epoch, token.slot, token.generation, token.peer, token.serial,
     token.transaction) = fields
    return token


def token_seal(fields, bytes key not None, bytes call_id=None):
    """The 48 characters; ``fields``: kind, worker, loop, epoch, slot, generation, peer, serial, transaction."""
    cdef Token token = token_struct(fields)
    cdef char* out = <char*>malloc(TOKEN_LENGTH)
    try:
        tokens.token_seal(&token, <const uint8_t*>PyBytes_AS_STRING(key), span_of(call_id), out)
        return <bytes>out[:TOKEN_LENGTH]
    finally:
        free(out)


def token_open(bytes text not None, bytes key not None, bytes call_id=None):
    """The fields, or None."""
    cdef Token token
    cdef size_t length = <size_t>len(text)
    cdef char* copy = <char*>malloc(length + (length == 0))
    memcpy(copy, PyBytes_AS_STRING(text), length)
    try:
        if tokens.token_open(span_make(copy, length), <const uint8_t*>PyBytes_AS_STRING(key), span_of(call_id),
                             &token) != 0:
            return None
        return token_tuple(&token)
    finally:
        free(copy)


def token_turns(fields, bytes key not None, bytes call_id, int rounds):
    """Seal and open `rounds` times in C; how many opened. For the bench."""
    cdef Token token = token_struct(fields)
    cdef Token opened
    cdef char out[TOKEN_LENGTH]
    cdef Span call = span_of(call_id)
    cdef int i
    cdef int good = 0
    for i in range(rounds):
        token.serial = <uint32_t>i
        tokens.token_seal(&token, <const uint8_t*>PyBytes_AS_STRING(key), call, out)
        if tokens.token_open(span_make(out, TOKEN_LENGTH), <const uint8_t*>PyBytes_AS_STRING(key), call, &opened) == 0:
            good += opened.serial == <uint32_t>i
    return good


def siphash(bytes key not None, *runs):
    """SipHash-2-4 of the runs behind each other."""
    cdef siphash_state state
    cdef bytes run
    cdef char* copy
    cdef size_t length
    siphash_start(&state, <const uint8_t*>PyBytes_AS_STRING(key))
    for run in runs:
        length = <size_t>len(run)
        copy = <char*>malloc(length + (length == 0))
        memcpy(copy, PyBytes_AS_STRING(run), length)
        siphash_feed(&state, copy, length)
        free(copy)
    return siphash_end(&state)


# ---- rewrite -------------------------------------------------------------------------------------------------------------

cdef class Edits:
    """One Rewrite, used again for each message."""

    cdef Rewrite rewrite
    cdef Message message
    cdef char* data

    def __cinit__(self):
        edits.rewrite_init(&self.rewrite)

    def __dealloc__(self):
        edits.rewrite_free(&self.rewrite)
        free(self.data)

    def begin(self, bytes message not None):
        cdef size_t length = <size_t>len(message)
        free(self.data)
        self.data = <char*>malloc(length + (length == 0))
        memcpy(self.data, PyBytes_AS_STRING(message), length)
        memset(&self.message, 0, sizeof(Message))
        self.message.data = self.data
        self.message.length = length
        edits.rewrite_begin(&self.rewrite, &self.message)

    def edit(self, size_t at, size_t cut, *parts):
        """`cut` bytes at `at` go; the parts (bytes, or int as digits) take their place."""
        assert at + cut <= self.message.length
        edits.rewrite_open(&self.rewrite, self.data + at, cut)
        for part in parts:
            if isinstance(part, int):
                edits.buffer_add_uint(&self.rewrite.text, part)
            else:
                edits.buffer_add_span(&self.rewrite.text, span_of(part))
        edits.rewrite_close(&self.rewrite)

    def cut(self, size_t at, size_t cut):
        assert at + cut <= self.message.length
        edits.rewrite_cut(&self.rewrite, self.data + at, cut)

    def length(self):
        return edits.rewrite_length(&self.rewrite)

    def write(self):
        """The result, in a buffer of exactly the length that rewrite_length promised."""
        cdef size_t length = edits.rewrite_length(&self.rewrite)
        cdef char* out = <char*>malloc(length + (length == 0))
        try:
            edits.rewrite_write(&self.rewrite, out)
            return <bytes>out[:length]
        finally:
            free(out)

    def fail(self):
        """As if an allocation had failed."""
        self.rewrite.text.failed = True


def uint_text(uint64_t number):
    """buffer_add_uint alone."""
    cdef Buffer buffer
    buffer_init(&buffer)
    edits.buffer_add_uint(&buffer, number)
    text = <bytes>buffer.data[:buffer.length]
    buffer_free(&buffer)
    return text


# ---- transactions --------------------------------------------------------------------------------------------------------

KINDS = {"CLIENT_INVITE": <int>transaction.CLIENT_INVITE, "CLIENT_OTHER": <int>transaction.CLIENT_OTHER,
         "SERVER_INVITE": <int>transaction.SERVER_INVITE, "SERVER_OTHER": <int>transaction.SERVER_OTHER}
STATES = {"FREE": <int>transaction.STATE_FREE, "TRYING": <int>transaction.STATE_TRYING,
          "PROCEEDING": <int>transaction.STATE_PROCEEDING, "COMPLETED": <int>transaction.STATE_COMPLETED,
          "CONFIRMED": <int>transaction.STATE_CONFIRMED, "ACCEPTED": <int>transaction.STATE_ACCEPTED,
          "TERMINATED": <int>transaction.STATE_TERMINATED}
EVENTS = {"REQUEST": <int>transaction.EVENT_REQUEST, "ACK": <int>transaction.EVENT_ACK,
          "1XX": <int>transaction.EVENT_1XX, "2XX": <int>transaction.EVENT_2XX, "FINAL": <int>transaction.EVENT_FINAL,
          "REPEAT": <int>transaction.EVENT_REPEAT, "TIMEOUT": <int>transaction.EVENT_TIMEOUT}
EVENT_COUNT = <int>transaction.EVENT_COUNT
ACTIONS = {"NOTHING": <int>transaction.DO_NOTHING, "PASS": <int>transaction.DO_PASS, "SEND": <int>transaction.DO_SEND,
           "RESEND": <int>transaction.DO_RESEND, "ACK": <int>transaction.DO_ACK, "TIMEOUT": <int>transaction.DO_TIMEOUT,
           "END": <int>transaction.DO_END, "IMPOSSIBLE": <int>transaction.DO_IMPOSSIBLE}
TIMES_MS = {"T1": <int>transaction.T1_MS, "T2": <int>transaction.T2_MS, "T4": <int>transaction.T4_MS,
            "B": <int>transaction.TIMER_B_MS, "C": <int>transaction.TIMER_C_MS, "D": <int>transaction.TIMER_D_MS,
            "100": <int>transaction.TRYING_MS, "step": <int>transaction.WHEEL_STEP_MS,
            "slots": <int>transaction.WHEEL_SLOTS}


cdef class Transactions:
    """One TransactionTable, and the heads of its owners' lists by name. The owner None: the orphans of the table."""

    cdef TransactionTable table
    cdef dict heads

    def __cinit__(self, bytes key not None, uint32_t limit=1 << 20):
        assert len(key) == 16
        if transaction.transactions_init(&self.table, <const uint8_t*>PyBytes_AS_STRING(key), limit) != 0:
            raise MemoryError
        self.heads = {}

    def __dealloc__(self):
        transaction.transactions_free(&self.table)

    @property
    def count(self):
        return self.table.count

    @property
    def capacity(self):
        return self.table.capacity

    @property
    def bucket_count(self):
        return self.table.bucket_count

    @property
    def timers(self):
        """How many nodes are on the wheel."""
        return self.table.timers

    def key(self, side, a, b, bytes branch, bytes sent_by, bytes call_id, cseq, bytes method=b"INVITE"):
        return transaction.transaction_key(&self.table, side, a, b, span_of(branch), span_of(sent_by),
                                           span_of(call_id), cseq, span_of(method))

    cdef uint32_t head(self, owner):
        return self.table.orphans if owner is None else self.heads.get(owner, NONE)

    cdef int head_set(self, owner, uint32_t head) except -1:
        if owner is None:
            self.table.orphans = head
        else:
            self.heads[owner] = head
        return 0

    cdef transaction.Transaction* there(self, uint32_t number) except NULL:
        if number >= self.table.capacity or self.table.nodes[number].state == transaction.STATE_FREE:
            raise IndexError(number)
        return &self.table.nodes[number]

    def add(self, owner, kind=0, *, key=0, hashed=False, reliable=False, upward=True, slot=0, generation=1):
        """The number, or None at the limit."""
        cdef uint32_t head = self.head(owner)
        cdef uint32_t number = transaction.transaction_add(&self.table, kind, reliable, upward, key, hashed, slot,
                                                           generation, &head)
        if number == TRANSACTION_NONE:
            return None
        self.head_set(owner, head)
        return number

    def find(self, uint64_t key):
        cdef uint32_t number = transaction.transaction_find(&self.table, key)
        return None if number == TRANSACTION_NONE else number

    def remove(self, owner, uint32_t number):
        cdef uint32_t head = self.head(owner)
        self.there(number)
        transaction.transaction_remove(&self.table, number, &head)
        self.head_set(owner, head)

    def orphan(self, owner, uint32_t number):
        cdef uint32_t head = self.head(owner)
        self.there(number)
        transaction.transaction_orphan(&self.table, number, &head)
        self.head_set(owner, head)

    def keep(self, uint32_t number, bytes data not None):
        """transaction_keep, from a buffer of exactly this length that is gone behind the call."""
        cdef size_t length = <size_t>len(data)
        cdef char* copy = <char*>malloc(length + (length == 0))
        self.there(number)
        memcpy(copy, PyBytes_AS_STRING(data), length)
        try:
            return bool(transaction.transaction_keep(&self.table.nodes[number], copy, length))
        finally:
            free(copy)

    def kept(self, uint32_t number):
        cdef transaction.Transaction* one = self.there(number)
        return None if one.data == NULL else <bytes>one.data[:one.length]

    def node(self, uint32_t number):
        """The plain fields of a node; times and numbers that are not set are None."""
        cdef transaction.Transaction* one = self.there(number)
        return {
            "kind": one.kind, "state": one.state, "reliable": bool(one.reliable), "upward": bool(one.upward),
            "cancel_wanted": bool(one.cancel_wanted), "cancelled": bool(one.cancelled), "kept": bool(one.kept),
            "hashed": bool(one.hashed), "status": one.status, "key": one.key, "slot": one.slot,
            "generation": one.generation, "serial": one.serial, "peer": one.peer,
            "other": None if one.other == TRANSACTION_NONE else one.other,
            "interval_ms": one.interval_ms, "repeat_ms": one.repeat_ms or None, "end_ms": one.end_ms or None,
            "on_wheel": one.wheel_slot != TRANSACTION_NONE,
        }

    def change(self, uint32_t number, **fields):
        """Set fields as the core does while it runs; ``state``: any, to see what a machine makes of it there."""
        cdef transaction.Transaction* one = self.there(number)
        for name, value in fields.items():
            if name == "state":
                one.state = value
            elif name == "status":
                one.status = value
            elif name == "cancelled":
                one.cancelled = value
            elif name == "serial":
                one.serial = value
            elif name == "peer":
                one.peer = value
            elif name == "other":
                one.other = value
            else:
                raise KeyError(name)

    def pair(self, uint32_t first, uint32_t second):
        """Each the other half of the other."""
        self.there(first).other = second
        self.there(second).other = first

    def start(self, uint32_t number, uint64_t now):
        self.there(number)
        transaction.transaction_start(&self.table, number, now)

    def event(self, uint32_t number, uint8_t event, uint64_t now):
        """What is to be done: a sum of ACTIONS."""
        assert event < EVENT_COUNT
        self.there(number)
        return transaction.transaction_event(&self.table, number, event, now)

    def end_at(self, uint32_t number, uint64_t end):
        self.there(number)
        transaction.transaction_end_at(&self.table, number, end)

    def quiet(self, uint32_t number):
        self.there(number)
        transaction.transaction_quiet(&self.table, number)

    def due(self, uint64_t now):
        """(number, event), or None."""
        cdef uint8_t event = 255
        cdef uint32_t number = transaction.transaction_due(&self.table, now, &event)
        return None if number == TRANSACTION_NONE else (number, event)

    def walk(self, owner):
        """The numbers of an owner's list, the newest first; every link back is checked on the way."""
        cdef uint32_t at = self.head(owner)
        cdef uint32_t previous = TRANSACTION_NONE
        found = []
        while at != TRANSACTION_NONE:
            assert self.there(at).owner_previous == previous
            assert len(found) < self.table.count
            found.append(at)
            previous = at
            at = self.table.nodes[at].owner_next
        return found

    def audit(self):
        """Walk through the whole arena: AssertionError where a chain, a list or a count disagrees with the nodes."""
        cdef uint32_t at, previous, place
        cdef TransactionTable* table = &self.table
        used = {at for at in range(table.capacity) if table.nodes[at].state != transaction.STATE_FREE}
        assert len(used) == table.count, "count"
        assert table.capacity <= table.limit, "limit"
        assert table.bucket_count & (table.bucket_count - 1) == 0, "buckets are a power of two"
        spare = set()
        at = table.free_head
        while at != TRANSACTION_NONE:
            assert at not in spare and at not in used, "list of the free"
            assert table.nodes[at].data == NULL, "data of a free node"
            spare.add(at)
            at = table.nodes[at].bucket_next
        assert len(spare) + len(used) == table.capacity, "free or used"
        chained = set()
        for place in range(table.bucket_count):
            at = table.buckets[place]
            while at != TRANSACTION_NONE:
                assert at in used and at not in chained and table.nodes[at].hashed, "chain"
                assert table.nodes[at].key & (table.bucket_count - 1) == place, "bucket"
                chained.add(at)
                at = table.nodes[at].bucket_next
        assert chained == {at for at in used if table.nodes[at].hashed}, "hashed"
        turning = set()
        for place in range(<uint32_t>transaction.WHEEL_SLOTS):
            at = table.wheel[place]
            previous = TRANSACTION_NONE
            while at != TRANSACTION_NONE:
                assert at in used and at not in turning, "wheel"
                assert table.nodes[at].wheel_slot == place, "place on the wheel"
                assert table.nodes[at].wheel_previous == previous, "link back on the wheel"
                turning.add(at)
                previous = at
                at = table.nodes[at].wheel_next
        assert len(turning) == table.timers, "timers"
        for at in used - turning:
            assert table.nodes[at].wheel_slot == TRANSACTION_NONE, "not on the wheel"
        listed = []
        for owner in [None, *self.heads]:
            listed += self.walk(owner)
        assert sorted(listed) == sorted(used), "owners"
        for at in used:
            if table.nodes[at].other != TRANSACTION_NONE:
                assert table.nodes[at].other in used, "other half"

    def lives(self, int rounds, kind, bytes data not None, bint reliable, uint64_t now):
        """Begin, keep the request, start the timers, hear a 1xx and a final response, end: `rounds` times in C, as the
        core does for a client half. How many came to their end."""
        cdef uint32_t head = TRANSACTION_NONE
        cdef uint32_t number
        cdef int i, action
        cdef int ended = 0
        for i in range(rounds):
            number = transaction.transaction_add(&self.table, kind, reliable, True, 0, False, 0, 1, &head)
            if number == TRANSACTION_NONE:
                break
            transaction.transaction_keep(&self.table.nodes[number], PyBytes_AS_STRING(data), <size_t>len(data))
            transaction.transaction_start(&self.table, number, now)
            transaction.transaction_event(&self.table, number, transaction.EVENT_1XX, now)
            action = transaction.transaction_event(&self.table, number, transaction.EVENT_2XX, now)
            if action & transaction.DO_END:
                transaction.transaction_remove(&self.table, number, &head)
                ended += 1
        return ended

    def calls(self, int rounds, bytes data not None, bint reliable, uint64_t now, bytes branch not None):
        """An INVITE with both halves, found by its key, with 180, 486 and ACK: `rounds` times in C. How many were found
        and came to their end."""
        cdef uint32_t head = TRANSACTION_NONE
        cdef uint32_t server, client
        cdef uint64_t key
        cdef uint8_t event
        cdef int i
        cdef int ended = 0
        cdef Span nothing = span_make(NULL, 0)
        for i in range(rounds):
            key = transaction.transaction_key(&self.table, 0, 0, 1, span_of(branch), nothing, nothing, <uint32_t>i,
                                              span_make(b"INVITE", 6))
            server = transaction.transaction_add(&self.table, transaction.SERVER_INVITE, reliable, True, key, True, 0, 1,
                                                 &head)
            client = transaction.transaction_add(&self.table, transaction.CLIENT_INVITE, reliable, True, 0, False, 0, 1,
                                                 &head)
            if server == TRANSACTION_NONE or client == TRANSACTION_NONE:
                break
            transaction.transaction_keep(&self.table.nodes[client], PyBytes_AS_STRING(data), <size_t>len(data))
            transaction.transaction_start(&self.table, client, now)
            transaction.transaction_start(&self.table, server, now)
            for event in (<uint8_t>transaction.EVENT_1XX, <uint8_t>transaction.EVENT_FINAL):
                transaction.transaction_event(&self.table, client, event, now)
                transaction.transaction_event(&self.table, server, event, now)
            server = transaction.transaction_find(&self.table, key)
            if server != TRANSACTION_NONE:
                transaction.transaction_event(&self.table, server, transaction.EVENT_ACK, now)
                transaction.transaction_remove(&self.table, server, &head)
                transaction.transaction_remove(&self.table, client, &head)
                ended += 1
        return ended

    def run_out(self, uint64_t now):
        """Fire all that is due, and start anew what has not come to its end, in C: how many fired."""
        cdef uint8_t event
        cdef uint32_t number
        cdef size_t fired = 0
        while True:
            number = transaction.transaction_due(&self.table, now, &event)
            if number == TRANSACTION_NONE:
                return fired
            fired += 1
            if not transaction.transaction_event(&self.table, number, event, now) & transaction.DO_END:
                continue
            self.table.nodes[number].state = transaction.STATE_TRYING
            transaction.transaction_start(&self.table, number, now)


cdef class ClockedEdge(Edge):
    """An Edge whose clock stands at ``now`` (ms) until a test moves it on."""

    cdef public uint64_t now

    cdef uint64_t clock_ms(self) noexcept:
        return self.now


# ---- route ---------------------------------------------------------------------------------------------------------------

cdef class RouteNode:
    """What names this fastws: its key, epoch and worker, what it advertises, and its names as (host, port)."""

    cdef Node node
    cdef Name* owned
    cdef list kept

    def __cinit__(self, bytes key not None, *, epoch=7, worker=0, bytes advertised=b"edge.example.com:5070", names=()):
        cdef size_t i
        assert len(key) == 16
        memset(&self.node, 0, sizeof(Node))
        memcpy(self.node.key, PyBytes_AS_STRING(key), 16)
        self.kept = [advertised]
        self.node.epoch = epoch
        self.node.worker = worker
        self.node.advertised = span_of(advertised)
        self.owned = <Name*>calloc(len(names) or 1, sizeof(Name))
        for i, (host, port) in enumerate(names):
            self.kept.append(host)
            self.owned[i].host = span_of(host)
            self.owned[i].port = port
        self.node.names = self.owned
        self.node.name_count = len(names)

    def __dealloc__(self):
        free(self.owned)


cdef class Scanned:
    """A message and what the router reads of it."""

    cdef Message message
    cdef char* data
    cdef Facts facts
    cdef readonly int status             # of message_scan
    cdef Rewrite rewrite

    def __cinit__(self, bytes message not None):
        cdef size_t length = <size_t>len(message)
        self.data = <char*>malloc(length + (length == 0))
        memcpy(self.data, PyBytes_AS_STRING(message), length)
        if message_init(&self.message, 8) != 0:
            raise MemoryError
        edits.rewrite_init(&self.rewrite)
        self.status = message_scan(&self.message, self.data, length)

    def __dealloc__(self):
        message_free(&self.message)
        edits.rewrite_free(&self.rewrite)
        free(self.data)

    cdef bytes written(self):
        cdef size_t length = edits.rewrite_length(&self.rewrite)
        cdef bytes out = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>length)
        edits.rewrite_write(&self.rewrite, PyBytes_AS_STRING(out))
        return out

    def check(self, secured=False):
        """request_check: (status, reason)."""
        assert self.status == 0
        route.request_check(&self.message, secured, &self.facts)
        return self.facts.reject, None if self.facts.reason == NULL else <bytes>self.facts.reason

    @property
    def unsupported(self):
        return bytes_of(self.facts.unsupported)

    @property
    def parties(self):
        """From tag, To tag, user of From, user of To."""
        return (bytes_of(self.facts.sender_tag), bytes_of(self.facts.target_tag),
                bytes_of(self.facts.sender_uri.user), bytes_of(self.facts.target_uri.user))

    def routes(self, RouteNode node not None, *, from_client=True, slot=0, generation=1, bytes host=None):
        """check and routes_read: what it says of the Routes, as a dict."""
        self.check(True)
        if self.facts.reject == 0:
            route.routes_read(&node.node, &self.message, from_client, slot, generation, span_of(host), &self.facts)
        return {
            "reject": self.facts.reject,
            "reason": None if self.facts.reason == NULL else <bytes>self.facts.reason,
            "cut": [<bytes>self.facts.cut_at[i][:self.facts.cut_length[i]] for i in range(self.facts.cut_count)],
            "token": token_tuple(&self.facts.token) if self.facts.has_token else None,
            "next": bytes_of(self.facts.next_route.whole) if self.facts.has_next else None,
            "next_is_own": bool(self.facts.next_is_own),
            "next_kind": self.facts.next_kind,
        }

    def after_routes(self):
        """The message without the Routes that were popped."""
        cdef size_t i
        edits.rewrite_begin(&self.rewrite, &self.message)
        for i in range(self.facts.cut_count):
            edits.rewrite_cut(&self.rewrite, self.facts.cut_at[i], self.facts.cut_length[i])
        return self.written()

    cdef bytes go(self, RouteNode node, dict how):
        cdef Forward forward
        cdef Address received_from
        memset(&forward, 0, sizeof(Forward))
        via_transport = how.get("via_transport", b"UDP")
        out_parameter = how.get("out_parameter", b";transport=udp")
        in_parameter = how.get("in_parameter", b";transport=ws")
        forward.via_transport = PyBytes_AS_STRING(via_transport)
        forward.out_parameter = PyBytes_AS_STRING(out_parameter)
        forward.in_parameter = PyBytes_AS_STRING(in_parameter) if in_parameter is not None else NULL
        forward.branch = token_struct(how.get("branch", (3, 0, 0, 7, 0, 1, 0, 1, 0)))
        forward.dialog = token_struct(how.get("dialog", (2, 0, 0, 7, 0, 1, 0, 0, 0)))
        forward.flow = token_struct(how.get("flow", (1, 0, 0, 7, 0, 1, 0, 0, 0)))
        forward.record_route = how.get("record_route", False)
        forward.path = how.get("path", False)
        forward.outbound = how.get("outbound", False)
        forward.strip_asserted = how.get("strip_asserted", True)
        if how.get("received_from") is not None:
            pair_to_address(how["received_from"], &received_from)
            forward.received_from = &received_from
        edits.rewrite_begin(&self.rewrite, &self.message)
        route.forward_edits(&node.node, &self.message, &self.facts, &forward, &self.rewrite)
        return self.written()

    def forward(self, RouteNode node not None, **how):
        """check, routes_read and forward_edits: the message as it goes on."""
        told = self.routes(node, from_client=how.pop("from_client", True), host=how.pop("host", None))
        assert told["reject"] == 0, told
        return self.go(node, how)

    def response(self):
        """response_edits: the response without its topmost Via."""
        cdef Via via
        if via_parse(self.message.headers[self.message.first[<int>HEADER_VIA]].value, &via) != 0:
            return None
        edits.rewrite_begin(&self.rewrite, &self.message)
        route.response_edits(&self.message, &via, &self.rewrite)
        return self.written()

    def without_asserted(self):
        edits.rewrite_begin(&self.rewrite, &self.message)
        route.asserted_edits(&self.message, &self.rewrite)
        return self.written()

    def answer(self, int status, bytes reason, bytes tag=b"", bytes extra=b"", received_from=None, own=False):
        """answer_write."""
        cdef Buffer out
        cdef Address address
        if received_from is not None:
            pair_to_address(received_from, &address)
        buffer_init(&out)
        route.answer_write(&self.message, status, span_of(reason), span_of(tag), span_of(extra),
                           &address if received_from is not None else NULL, own, &out)
        text = <bytes>out.data[:out.length]
        buffer_free(&out)
        return text

    def derived(self, bytes method not None, bytes to_line=None):
        """derived_write; without `to_line` the To of the message itself."""
        cdef Buffer out
        cdef Span to = span_of(to_line) if to_line is not None else \
            self.message.headers[self.message.first[<int>HEADER_TO]].line
        buffer_init(&out)
        route.derived_write(&self.message, PyBytes_AS_STRING(method), to, &out)
        text = <bytes>out.data[:out.length]
        buffer_free(&out)
        return text

    @property
    def forms_dialog(self):
        return bool(route.forms_dialog(&self.message, &self.facts))

    @property
    def asks_outbound(self):
        return bool(route.asks_outbound(&self.message, &self.facts))

    @property
    def asks_privacy(self):
        return bool(route.asks_privacy(&self.message))

    def whole_way(self, RouteNode node not None, int rounds, **how):
        """Scan, check, read the routes, make the edits and write them out, `rounds` times in C: bytes written."""
        cdef Forward forward
        cdef size_t length = self.message.length
        cdef size_t written = 0
        cdef char* out
        cdef int i
        memset(&forward, 0, sizeof(Forward))
        forward.via_transport = b"UDP"
        forward.out_parameter = b";transport=udp"
        forward.in_parameter = b";transport=ws"
        forward.branch = token_struct((3, 0, 0, 7, 0, 1, 0, 1, 0))
        forward.dialog = token_struct((2, 0, 0, 7, 0, 1, 0, 0, 0))
        forward.record_route = how.get("record_route", False)
        forward.strip_asserted = True
        out = <char*>malloc(length + 2048)
        for i in range(rounds):
            if message_scan(&self.message, self.data, length) != 0:
                break
            route.request_check(&self.message, False, &self.facts)
            route.routes_read(&node.node, &self.message, True, 0, 1, span_make(NULL, 0), &self.facts)
            if self.facts.reject != 0:
                break
            forward.branch.serial += 1
            edits.rewrite_begin(&self.rewrite, &self.message)
            route.forward_edits(&node.node, &self.message, &self.facts, &forward, &self.rewrite)
            written += edits.rewrite_length(&self.rewrite)
            edits.rewrite_write(&self.rewrite, out)
        free(out)
        return written


cdef bint uri_of(bytes text, Uri* uri) except -1:
    if uri_parse(span_of(text), uri) != 0:
        raise ValueError(text)
    return True


def identity_match(bytes uri not None, bytes identity not None):
    cdef Uri parsed
    cdef size_t length = <size_t>len(identity)
    cdef char* copy = <char*>malloc(length + (length == 0))
    memcpy(copy, PyBytes_AS_STRING(identity), length)
    try:
        uri_of(uri, &parsed)
        return bool(route.identity_match(&parsed, copy, length))
    finally:
        free(copy)


def is_anonymous(bytes uri not None):
    cdef Uri parsed
    uri_of(uri, &parsed)
    return bool(route.is_anonymous(&parsed))


def uri_is_own(RouteNode node not None, bytes uri not None, bytes host=None):
    cdef Uri parsed
    uri_of(uri, &parsed)
    return bool(route.uri_is_own(&node.node, &parsed, span_of(host)))


def reason_phrase(int status):
    return <bytes>route.reason_phrase(status)
