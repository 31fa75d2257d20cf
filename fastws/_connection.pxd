# The connection table: a flat array of slots, an index by address and port, and what policy sees of it.

from cpython.object cimport PyObject
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from fastws.transport.address cimport Address
from fastws.transport.base cimport Transport

cdef enum:
    SLOT_NONE = 0xFFFFFFFF

cdef struct Slot:
    uint32_t generation          # 1..2**32-1, another one for each tenant; while open it names the connection
    bint open
    bint secure                  # wss
    bint ping_open               # a ping was sent and nothing has come since
    Address source               # the TCP peer
    Address local
    double opened_at             # seconds since the epoch
    uint64_t serial              # counts the tenants of the whole table: the newest has the highest
    uint64_t messages_in         # SIP messages
    uint64_t messages_out
    uint64_t last_in_ms          # when bytes last came, on the core's clock
    uint64_t ping_ms             # when the open ping was sent
    uint64_t partial_ms          # since when a message is unfinished; 0 while none is
    uint32_t host                # the Host of its handshake: index in the core's list of names
    uint32_t transactions        # first of its transactions, in sip/transaction; SLOT_NONE without one
    uint32_t transaction_count   # of those that wait for an answer
    PyObject* transport          # owned reference to its Transport
    PyObject* attributes         # owned reference to its dict
    PyObject* handle             # owned reference to its Connection, NULL until somebody asked
    char* identity               # owned: the value of the IDENTITY attribute, UTF-8; NULL without one
    size_t identity_length
    uint32_t next_free

cdef class ConnectionTable:
    cdef Slot** chunks           # each holds CHUNK slots and never moves
    cdef uint32_t chunk_count
    cdef uint32_t free_head
    cdef uint32_t* index         # open addressing; slot number + 1, 0 for empty
    cdef uint32_t index_size     # a power of two
    cdef uint32_t index_used
    cdef readonly uint32_t count # open connections
    cdef uint32_t capacity       # slots that exist
    cdef readonly uint32_t limit
    cdef uint8_t key[16]         # of the index's hash
    cdef uint64_t serial
    cdef readonly str identity_name

    # The slot with this number, open or not; NULL where there is none.
    cdef Slot* slot(self, uint32_t number) noexcept
    # The open slot of this tenant, or NULL: gone, or another generation.
    cdef Slot* tenant(self, uint32_t number, uint32_t generation) noexcept
    # Take a slot: its number, or SLOT_NONE at the limit. The address is entered in the index.
    cdef uint32_t claim(self, const Address* source, const Address* local, Transport transport,
                        dict attributes) except? SLOT_NONE
    # Give it back. The generation ends here, at once; attributes go to the Connection if somebody holds one.
    cdef int release(self, uint32_t number) except -1
    # The newest open slot of this address and port, or SLOT_NONE.
    cdef uint32_t find(self, const Address* source) noexcept
    cdef Connection handle(self, uint32_t number)
    cdef int refresh_identity(self, Slot* slot) except -1
    cdef uint32_t index_home(self, const Address* source) noexcept
    cdef int index_grow(self) except -1
    cdef int grow(self) except -1

cdef class Connection:
    cdef ConnectionTable table
    cdef uint32_t number
    cdef uint32_t generation
    cdef dict attributes         # the slot's own dict while open, afterwards kept for who still holds this object
    cdef tuple final             # source, local, secure, opened_at, messages_in, messages_out, after the end

    cdef Slot* slot(self) noexcept

cdef Connection connection_of(ConnectionTable table, uint32_t number)
cdef int pair_to_address(object pair, Address* out) except -1
cdef tuple address_to_pair(const Address* address)
