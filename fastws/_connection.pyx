# The connection table. A slot lives exactly as long as its connection; a generation names one tenant of it for ever.
#
# Slots lie in chunks that never move, so that a pointer to one stays good while the table grows. The index holds slot
# numbers only and may be rebuilt at any time. Knows no routing, no frames and no SIP.

import time
from collections.abc import Iterator, Mapping, MutableMapping
from enum import StrEnum

from cpython.bytes cimport PyBytes_AS_STRING
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from cpython.unicode cimport PyUnicode_AsUTF8AndSize
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcpy, memset

from fastws.transport.address cimport (
    ADDRESS_TEXT,
    Address,
    address_equal,
    address_host_text,
    address_parse_host,
)
from fastws.transport.base cimport TERMINATOR_POLICY, Transport
from fastws.wire.siphash cimport siphash_end, siphash_feed, siphash_start, siphash_state

import secrets

cdef enum:
    CHUNK = 256                  # slots
    CHUNK_BITS = 8


class Terminator(StrEnum):
    """Who or what ended a connection; the second argument of ``on_close``."""

    CLIENT = "client"
    POLICY = "policy"
    OPERATOR = "operator"
    TIMEOUT = "timeout"
    PROTOCOL = "protocol"
    NETWORK = "network"
    OVERLOAD = "overload"
    SHUTDOWN = "shutdown"


# In the order of TerminatorId in transport/base.pxd.
TERMINATORS = (Terminator.CLIENT, Terminator.POLICY, Terminator.OPERATOR, Terminator.TIMEOUT,
               Terminator.PROTOCOL, Terminator.NETWORK, Terminator.OVERLOAD, Terminator.SHUTDOWN)


cdef int pair_to_address(object pair, Address* out) except -1:
    host, port = pair
    if isinstance(host, str):
        host, _, zone = host.partition("%")
        text = host.encode("ascii", "replace")
    else:
        raise TypeError("an address is a str")
    if not 0 <= port <= 65535 or not address_parse_host(out, text, len(text)):
        raise ValueError("expected an IP address and a port from 0 to 65535")
    out.port = port
    return 0


cdef tuple address_to_pair(const Address* address):
    cdef char text[ADDRESS_TEXT]
    cdef size_t length = address_host_text(address, text)
    return (text[:length].decode("ascii"), address.port)


cdef class ConnectionTable:
    """The connections of one worker.

    ``limit``: how many may be open at once, 1..2**31. ``identity``: the name of the attribute that the identity check
    compares with, or None.
    """

    def __cinit__(self, uint32_t limit=100000, identity=None):
        self.limit = limit
        self.identity_name = identity
        self.free_head = SLOT_NONE
        self.index_size = 64
        self.index = <uint32_t*>calloc(self.index_size, sizeof(uint32_t))
        if self.index == NULL:
            raise MemoryError
        key = secrets.token_bytes(16)
        memcpy(self.key, PyBytes_AS_STRING(key), 16)

    def __dealloc__(self):
        cdef uint32_t number
        for number in range(self.capacity):
            if self.chunks[number >> CHUNK_BITS][number & (CHUNK - 1)].open:
                slot_clear(&self.chunks[number >> CHUNK_BITS][number & (CHUNK - 1)])
        for number in range(self.chunk_count):
            free(self.chunks[number])
        free(self.chunks)
        free(self.index)

    cdef Slot* slot(self, uint32_t number) noexcept:
        if number >= self.capacity:
            return NULL
        return &self.chunks[number >> CHUNK_BITS][number & (CHUNK - 1)]

    cdef Slot* tenant(self, uint32_t number, uint32_t generation) noexcept:
        cdef Slot* slot = self.slot(number)
        if slot == NULL or not slot.open or slot.generation != generation:
            return NULL
        return slot

    cdef uint32_t index_home(self, const Address* source) noexcept:
        # A keyed hash: who has an IPv6 network chooses 64 bits of the address and 16 of the port, and must not be able to
        # choose a place in the index by them.
        cdef siphash_state state
        siphash_start(&state, self.key)
        siphash_feed(&state, source.ip, sizeof(source.ip))
        siphash_feed(&state, &source.port, sizeof(source.port))
        return <uint32_t>siphash_end(&state) & (self.index_size - 1)

    cdef int index_grow(self) except -1:
        cdef uint32_t wanted = self.index_size * 2
        cdef uint32_t* grown = <uint32_t*>calloc(wanted, sizeof(uint32_t))
        cdef uint32_t* old = self.index
        cdef uint32_t old_size = self.index_size
        cdef uint32_t i, at
        if grown == NULL:
            raise MemoryError
        self.index = grown
        self.index_size = wanted
        for i in range(old_size):
            if old[i]:
                at = self.index_home(&self.slot(old[i] - 1).source)
                while grown[at]:
                    at = (at + 1) & (wanted - 1)
                grown[at] = old[i]
        free(old)
        return 0

    cdef int grow(self) except -1:
        # One more chunk; the array of pointers may move, the slots never do.
        cdef Slot** pointers
        cdef Slot* chunk
        cdef uint32_t i
        pointers = <Slot**>realloc(self.chunks, (self.chunk_count + 1) * sizeof(Slot*))
        if pointers == NULL:
            raise MemoryError
        self.chunks = pointers
        chunk = <Slot*>calloc(CHUNK, sizeof(Slot))
        if chunk == NULL:
            raise MemoryError
        for i in range(<uint32_t>CHUNK):
            chunk[i].generation = 1
            chunk[i].next_free = self.capacity + i + 1 if i + 1 < CHUNK else self.free_head
        self.chunks[self.chunk_count] = chunk
        self.free_head = self.capacity
        self.chunk_count += 1
        self.capacity += CHUNK
        return 0

    cdef uint32_t claim(self, const Address* source, const Address* local, Transport transport,
                        dict attributes) except? SLOT_NONE:
        cdef uint32_t number, at
        cdef Slot* slot
        if self.count >= self.limit:
            return SLOT_NONE
        if self.free_head == SLOT_NONE:
            self.grow()
        if self.index_used * 2 >= self.index_size:
            self.index_grow()
        number = self.free_head
        slot = self.slot(number)
        self.free_head = slot.next_free
        self.serial += 1
        slot.open = True
        slot.secure = False
        slot.ping_open = False
        slot.source = source[0]
        slot.local = local[0]
        slot.opened_at = time.time()
        slot.serial = self.serial
        slot.messages_in = slot.messages_out = 0
        slot.last_in_ms = slot.ping_ms = slot.partial_ms = 0
        slot.host = 0
        slot.transactions = SLOT_NONE
        slot.transaction_count = 0
        Py_INCREF(transport)
        slot.transport = <PyObject*>transport
        Py_INCREF(attributes)
        slot.attributes = <PyObject*>attributes
        slot.handle = NULL
        slot.identity = NULL
        slot.identity_length = 0
        at = self.index_home(source)
        while self.index[at]:
            at = (at + 1) & (self.index_size - 1)
        self.index[at] = number + 1
        self.index_used += 1
        self.count += 1
        self.refresh_identity(slot)
        return number

    cdef int release(self, uint32_t number) except -1:
        cdef Slot* slot = self.slot(number)
        cdef Connection handle
        cdef uint32_t mask = self.index_size - 1
        cdef uint32_t at, hole, home
        if slot == NULL or not slot.open:
            return 0
        at = self.index_home(&slot.source)
        while self.index[at] != number + 1:
            at = (at + 1) & mask
        # Deletion without tombstones: what was pushed past the hole moves back into it (Knuth 6.4, algorithm R).
        hole = at
        while True:
            at = (at + 1) & mask
            if self.index[at] == 0:
                break
            home = self.index_home(&self.slot(self.index[at] - 1).source)
            if ((at - home) & mask) >= ((at - hole) & mask):
                self.index[hole] = self.index[at]
                hole = at
        self.index[hole] = 0
        self.index_used -= 1
        self.count -= 1
        if slot.handle != NULL:
            handle = <Connection>slot.handle
            handle.final = (address_to_pair(&slot.source), address_to_pair(&slot.local), bool(slot.secure),
                            slot.opened_at, slot.messages_in, slot.messages_out)
        slot.open = False
        slot.generation += 1
        if slot.generation == 0:
            slot.generation = 1
        slot.next_free = self.free_head
        self.free_head = number
        slot_clear(slot)
        return 0

    cdef uint32_t find(self, const Address* source) noexcept:
        cdef uint32_t at = self.index_home(source)
        cdef uint32_t best = SLOT_NONE
        cdef uint64_t newest = 0
        cdef Slot* slot
        while self.index[at]:
            slot = self.slot(self.index[at] - 1)
            if slot.serial > newest and address_equal(&slot.source, source):
                newest = slot.serial
                best = self.index[at] - 1
            at = (at + 1) & (self.index_size - 1)
        return best

    cdef Connection handle(self, uint32_t number):
        cdef Slot* slot = self.slot(number)
        cdef Connection made
        if slot.handle == NULL:
            made = Connection.__new__(Connection)
            made.table = self
            made.number = number
            made.generation = slot.generation
            made.attributes = <dict>slot.attributes
            Py_INCREF(made)
            slot.handle = <PyObject*>made
        return <Connection>slot.handle

    cdef int refresh_identity(self, Slot* slot) except -1:
        # The identity check runs without Python: it compares with this copy, renewed whenever the attribute is set.
        cdef const char* text
        cdef Py_ssize_t length
        cdef char* copy
        free(slot.identity)
        slot.identity = NULL
        slot.identity_length = 0
        if self.identity_name is None:
            return 0
        value = (<dict>slot.attributes).get(self.identity_name)
        if not isinstance(value, str) or not value:
            return 0
        try:
            text = PyUnicode_AsUTF8AndSize(value, &length)
        except UnicodeEncodeError:
            return 0
        copy = <char*>malloc(<size_t>length)
        if copy == NULL:
            raise MemoryError
        memcpy(copy, text, <size_t>length)
        slot.identity = copy
        slot.identity_length = <size_t>length
        return 0

    def set_identity(self, name):
        """From now on the identity check compares with the attribute of this name; None: with none."""
        cdef uint32_t number
        if name != self.identity_name:
            self.identity_name = name
            for number in range(self.capacity):
                if self.slot(number).open:
                    self.refresh_identity(self.slot(number))

    def slots(self):
        """Numbers for the tests and the metrics: slots that exist, slots open, places used in the index."""
        return self.capacity, self.count, self.index_used

    def bytes_used(self):
        """Memory of the slots and the index, in bytes."""
        return self.capacity * sizeof(Slot) + self.index_size * sizeof(uint32_t)


cdef void slot_clear(Slot* slot) noexcept:
    # Gives back everything that the slot owns. The references are taken out first: a destructor may look at the table.
    cdef PyObject* transport = slot.transport
    cdef PyObject* attributes = slot.attributes
    cdef PyObject* handle = slot.handle
    slot.transport = slot.attributes = slot.handle = NULL
    free(slot.identity)
    slot.identity = NULL
    slot.identity_length = 0
    if transport != NULL:
        Py_DECREF(<object>transport)
    if attributes != NULL:
        Py_DECREF(<object>attributes)
    if handle != NULL:
        Py_DECREF(<object>handle)


cdef Connection connection_of(ConnectionTable table, uint32_t number):
    return table.handle(number)


cdef class Connection:
    """One accepted WebSocket connection, as policy sees it: a MutableMapping of its attributes.

    It is of use as long as the connection is open, and during ``on_close``. Who keeps it longer can still read the
    attributes; it is in no table any more, and :meth:`close` does nothing.
    """

    def __init__(self):
        raise TypeError("connections are made by accepting a handshake")

    cdef Slot* slot(self) noexcept:
        if self.table is None:
            return NULL
        return self.table.tenant(self.number, self.generation)

    @property
    def source(self):
        """(address, port) of the TCP peer."""
        cdef Slot* slot = self.slot()
        return address_to_pair(&slot.source) if slot != NULL else self.final[0]

    @property
    def local(self):
        """(address, port) that the client connected to."""
        cdef Slot* slot = self.slot()
        return address_to_pair(&slot.local) if slot != NULL else self.final[1]

    @property
    def secure(self):
        """True over TLS."""
        cdef Slot* slot = self.slot()
        return bool(slot.secure) if slot != NULL else self.final[2]

    @property
    def opened_at(self):
        """When it was accepted, in seconds since the epoch."""
        cdef Slot* slot = self.slot()
        return slot.opened_at if slot != NULL else self.final[3]

    @property
    def messages_in(self):
        """SIP messages that came from the client."""
        cdef Slot* slot = self.slot()
        return slot.messages_in if slot != NULL else self.final[4]

    @property
    def messages_out(self):
        """SIP messages that went to the client."""
        cdef Slot* slot = self.slot()
        return slot.messages_out if slot != NULL else self.final[5]

    @property
    def open(self):
        """False once the connection has ended."""
        return self.slot() != NULL

    def close(self, code=1008, reason=""):
        """Close the connection at once, with a WebSocket close code and a reason.

        ``code``: 1000, 1001, 1003, 1007..1014 or 3000..4999, otherwise ValueError (RFC 6455 7.4). ``reason`` is cut to
        123 bytes of UTF-8 (5.5.1). on_close is told terminator ``policy``. Calling it again does nothing.
        """
        cdef Slot* slot
        if not isinstance(code, int):
            raise TypeError("code must be an int")
        if not isinstance(reason, str):
            raise TypeError("reason must be a str")
        if not (code in (1000, 1001, 1003) or 1007 <= code <= 1014 or 3000 <= code <= 4999):
            raise ValueError(f"{code} is no close code that a server may send")
        text = reason.encode("utf-8", "replace")
        if len(text) > 123:
            text = text[:123].decode("utf-8", "ignore").encode("utf-8")
        slot = self.slot()
        if slot != NULL:
            (<Transport>slot.transport).finish(code, text, TERMINATOR_POLICY)

    def __reduce__(self):
        # A second object would not hear of the end of the connection.
        raise TypeError("a connection can be neither copied nor pickled")

    def __getitem__(self, key):
        return self.attributes[key]

    def __setitem__(self, key, value):
        self.attributes[key] = value
        self._changed(key)

    def __delitem__(self, key):
        del self.attributes[key]
        self._changed(key)

    def _changed(self, key):
        cdef Slot* slot = self.slot()
        if slot != NULL and key == self.table.identity_name:
            self.table.refresh_identity(slot)

    def __iter__(self):
        return iter(self.attributes)

    def __len__(self):
        return len(self.attributes)

    def __contains__(self, key):
        return key in self.attributes

    def __bool__(self):
        return True

    def __repr__(self):
        host, port = self.source
        state = "" if self.slot() != NULL else " closed"
        return f"<Connection {host}:{port}{state} {self.attributes!r}>"

    get = Mapping.get
    keys = Mapping.keys
    values = Mapping.values
    items = Mapping.items
    pop = MutableMapping.pop
    popitem = MutableMapping.popitem
    setdefault = MutableMapping.setdefault
    update = MutableMapping.update
    clear = MutableMapping.clear
    _MutableMapping__marker = MutableMapping._MutableMapping__marker


MutableMapping.register(Connection)


class Connections(Mapping):
    """The open connections of this worker, by (address, port) of the client.

    Two listeners may hold the same address and port at once: indexing answers with the newest, :meth:`all` with both.
    """

    def __init__(self, table=None):
        self._table = table if table is not None else ConnectionTable(1)

    def bind(self, table):
        """Look into this table from now on."""
        self._table = table

    def __getitem__(self, key):
        cdef ConnectionTable table = self._table
        cdef Address address
        cdef uint32_t number
        try:
            pair_to_address(key, &address)
        except (TypeError, ValueError):
            raise KeyError(key) from None
        number = table.find(&address)
        if number == SLOT_NONE:
            raise KeyError(key)
        return table.handle(number)

    def all(self, address, port):
        """Every open connection of this address and port, the oldest first."""
        cdef ConnectionTable table = self._table
        cdef Address source
        cdef uint32_t at
        cdef Slot* slot
        pair_to_address((address, port), &source)
        found = []
        at = table.index_home(&source)
        while table.index[at]:
            slot = table.slot(table.index[at] - 1)
            if address_equal(&slot.source, &source):
                found.append((slot.serial, table.handle(table.index[at] - 1)))
            at = (at + 1) & (table.index_size - 1)
        found.sort(key=lambda entry: entry[0])
        return [connection for _, connection in found]

    def _open(self):
        cdef ConnectionTable table = self._table
        cdef uint32_t number
        found = []
        for number in range(table.capacity):
            if table.slot(number).open:
                found.append((table.slot(number).serial, table.handle(number)))
        found.sort(key=lambda entry: entry[0])
        return [connection for _, connection in found]

    def __iter__(self) -> Iterator:
        """Iterate over the (address, port) of a snapshot, the oldest connection first."""
        return iter([connection.source for connection in self._open()])

    def values(self):
        """The open connections of a snapshot, the oldest first; two of one address and port are both there."""
        return self._open()

    def items(self):
        """((address, port), connection) of a snapshot."""
        return [(connection.source, connection) for connection in self._open()]

    def __len__(self):
        return (<ConnectionTable>self._table).count


#: The connections of this worker.
connections = Connections()
