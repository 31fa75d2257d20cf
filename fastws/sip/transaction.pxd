# RFC 3261 17: which request belongs to which. In its simplest form: INVITE transactions are remembered so that a CANCEL
# and the ACK to a non-2xx find the branch of their INVITE, and so that a repeated INVITE is known for one.

from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from fastws.wire.span cimport Span

cdef enum:
    TRANSACTION_NONE = 0xFFFFFFFF

cdef struct Transaction:
    uint64_t key                 # of the side it came from, sent-by and branch
    uint32_t slot                # the client that it belongs to, whichever side began it
    uint32_t generation
    uint32_t serial              # what our branch for it says
    uint32_t peer                # the SIP side
    uint32_t bucket_next
    uint32_t owner_previous      # the list of one slot
    uint32_t owner_next

cdef struct TransactionTable:
    uint8_t key[16]              # of the hash, so that nobody can choose what collides
    Transaction* nodes           # owned
    uint32_t capacity
    uint32_t free_head
    uint32_t* buckets            # owned
    uint32_t bucket_count        # a power of two
    uint32_t count

# 0, or -1 without memory.
cdef int transactions_init(TransactionTable* table, const uint8_t* key) noexcept nogil
cdef void transactions_free(TransactionTable* table) noexcept nogil
# RFC 3261 17.2.3 with the origin added, for the browsers' branches collide: `side` is 0 for what a client began and 1 for
# what the SIP side began; `a`, `b` name the origin (slot and generation, or peer and 0).
cdef uint64_t transaction_key(TransactionTable* table, uint8_t side, uint32_t a, uint32_t b, Span branch, Span sent_by,
                              Span call_id, uint32_t cseq) noexcept nogil
cdef uint32_t transaction_find(TransactionTable* table, uint64_t key) noexcept nogil
# Enter one in front of the list that begins at owner_head[0]; its number, or TRANSACTION_NONE without memory.
cdef uint32_t transaction_add(TransactionTable* table, uint64_t key, uint32_t slot, uint32_t generation,
                              uint32_t serial, uint32_t peer, uint32_t* owner_head) noexcept nogil
cdef void transaction_remove(TransactionTable* table, uint32_t number, uint32_t* owner_head) noexcept nogil
# The last of a list: the oldest.
cdef uint32_t transaction_oldest(TransactionTable* table, uint32_t owner_head) noexcept nogil
