# RFC 3261 17, RFC 6026, RFC 4320: the four machines, and which message belongs to which transaction.
#
# A machine is a table: (state, event) -> (state, actions). It sends nothing and knows no clock; time comes in as now_ms, and
# what is to be done goes out as a set of actions that the core carries out.
#
# A transaction that is reliable on both sides and is no INVITE has nothing to remember on the server side, so there is only
# its client half. Where a state of the RFC serves only to swallow what a token without a transaction is swallowed for
# anyway (Timers K and M), the transaction ends at once.

from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from fastws.wire.span cimport Span

cdef enum:
    TRANSACTION_NONE = 0xFFFFFFFF
    WHEEL_SLOTS = 1024           # a power of two
    WHEEL_STEP_MS = 32           # what a timer may be late by

cdef enum:
    T1_MS = 500                  # RFC 3261 17.1.1.1: the round trip
    T2_MS = 4000                 # the longest interval of repetitions, 17.1.2.2
    T4_MS = 5000                 # how long a message may stay in the network
    TIMER_B_MS = 32000           # 64*T1: INVITE client, 17.1.1.2; F, H, J, L and M last as long
    TIMER_C_MS = 185000          # more than 3 minutes, 16.6 item 11
    TIMER_D_MS = 32000           # at least 32 s over UDP, 17.1.1.2
    TRYING_MS = 100              # a 100 is owed within 200 ms, 17.2.1

cdef enum TransactionKind:
    CLIENT_INVITE = 0            # 17.1.1
    CLIENT_OTHER = 1             # 17.1.2
    SERVER_INVITE = 2            # 17.2.1
    SERVER_OTHER = 3             # 17.2.2

cdef enum TransactionState:
    STATE_FREE = 0
    STATE_TRYING = 1             # CALLING of an INVITE client
    STATE_PROCEEDING = 2
    STATE_COMPLETED = 3
    STATE_CONFIRMED = 4
    STATE_ACCEPTED = 5           # RFC 6026
    STATE_TERMINATED = 6

cdef enum TransactionEvent:
    EVENT_REQUEST = 0            # the same request again (server)
    EVENT_ACK = 1                # (server)
    EVENT_1XX = 2                # of the far end (client) or on its way to it (server)
    EVENT_2XX = 3
    EVENT_FINAL = 4              # 300..699
    EVENT_REPEAT = 5             # Timer A, E or G
    EVENT_TIMEOUT = 6            # Timer B, C, D, F, H, I, J, L
    EVENT_COUNT = 7

cdef enum TransactionAction:
    DO_NOTHING = 0
    DO_PASS = 1                  # give the response to the other half
    DO_SEND = 2                  # send the response (server)
    DO_RESEND = 4                # send again what was sent last
    DO_ACK = 8                   # acknowledge a final response, 17.1.1.3
    DO_TIMEOUT = 16              # the far end never answered
    DO_END = 32                  # the transaction is over
    DO_IMPOSSIBLE = 64           # no such event in this state: a fault of ours

cdef struct Transaction:
    uint8_t kind                 # TransactionKind
    uint8_t state                # TransactionState
    bint reliable                # the transport of this half repeats by itself
    bint upward                  # the request goes from a client to the SIP side
    bint cancel_wanted           # a CANCEL waits for the first 1xx, 9.1
    bint cancelled               # a CANCEL was sent
    bint kept                    # BYE or CANCEL: goes on to its end though its client has left
    bint hashed                  # in the buckets
    uint16_t status              # of the last response that passed, 0 for none
    uint64_t key                 # server: of its side, sent-by, branch, ...
    uint32_t slot                # the client that it belongs to; generation 0: to nobody any more
    uint32_t generation
    uint32_t serial              # client: what our branch says
    uint32_t peer                # the SIP side: where the request came from or goes to
    uint32_t other               # the other half, or TRANSACTION_NONE
    uint32_t bucket_next
    uint32_t owner_previous
    uint32_t owner_next
    uint32_t wheel_previous
    uint32_t wheel_next
    uint32_t wheel_slot          # TRANSACTION_NONE: no timer runs
    uint32_t interval_ms         # of the repetitions; 0 for none
    uint64_t repeat_ms           # when to repeat next; 0 for never
    uint64_t end_ms              # when the state times out; 0 for never
    char* data                   # owned: client: the request as sent; server: the last response as sent
    size_t length

cdef struct TransactionTable:
    uint8_t key[16]              # of the hash, so that nobody can choose what collides
    Transaction* nodes           # owned; may move when one is added
    uint32_t capacity
    uint32_t limit               # nodes at once
    uint32_t free_head
    uint32_t* buckets            # owned
    uint32_t bucket_count        # a power of two
    uint32_t count
    uint32_t orphans             # head of the list of those whose client has left
    uint32_t wheel[1024]
    uint64_t wheel_at            # the step up to which all has fired
    uint32_t scan                # the next to be looked at in the place behind wheel_at, so that none is looked at twice
    bint scanning                # that place has been begun
    uint32_t timers              # how many run

# 0, or -1 without memory. `limit`: 1..2**24.
cdef int transactions_init(TransactionTable* table, const uint8_t* key, uint32_t limit) noexcept nogil
cdef void transactions_free(TransactionTable* table) noexcept nogil
# RFC 3261 17.2.3 with the origin added, for the browsers' branches collide: `side` is 0 for what a client began and 1 for
# what the SIP side began; `a`, `b` name the origin (slot and generation, or peer and 0). An ACK and a CANCEL look with the
# method INVITE.
cdef uint64_t transaction_key(TransactionTable* table, uint8_t side, uint32_t a, uint32_t b, Span branch, Span sent_by,
                              Span call_id, uint32_t cseq, Span method) noexcept nogil
cdef uint32_t transaction_find(TransactionTable* table, uint64_t key) noexcept nogil
# A new one in its first state, in front of the list that begins at owner_head[0]; its number, or TRANSACTION_NONE at the
# limit or without memory. `hashed`: to be found by key.
cdef uint32_t transaction_add(TransactionTable* table, uint8_t kind, bint reliable, bint upward, uint64_t key, bint hashed,
                              uint32_t slot, uint32_t generation, uint32_t* owner_head) noexcept nogil
cdef void transaction_remove(TransactionTable* table, uint32_t number, uint32_t* owner_head) noexcept nogil
# Its client has left, it goes on: into the list of orphans.
cdef void transaction_orphan(TransactionTable* table, uint32_t number, uint32_t* owner_head) noexcept nogil
# Keep a copy of what was sent; False without memory.
cdef bint transaction_keep(Transaction* transaction, const char* data, size_t length) noexcept nogil
# The event moves the machine and sets its timers; returns what is to be done. DO_END: call transaction_remove.
cdef int transaction_event(TransactionTable* table, uint32_t number, uint8_t event, uint64_t now_ms) noexcept nogil
# Start the timers of the first state.
cdef void transaction_start(TransactionTable* table, uint32_t number, uint64_t now_ms) noexcept nogil
# Let the state end at this time instead.
cdef void transaction_end_at(TransactionTable* table, uint32_t number, uint64_t end_ms) noexcept nogil
# Repeat no more.
cdef void transaction_quiet(TransactionTable* table, uint32_t number) noexcept nogil
# The next one whose timer has run out, and with which event; TRANSACTION_NONE when there is none up to now_ms.
cdef uint32_t transaction_due(TransactionTable* table, uint64_t now_ms, uint8_t* event) noexcept nogil
