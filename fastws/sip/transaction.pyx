# The transaction table: an arena of nodes, chained by hash and by owner; see transaction.pxd.
# Sends nothing and reads no clock.

from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, memset

from fastws.wire.siphash cimport siphash_end, siphash_feed, siphash_start, siphash_state
from fastws.wire.span cimport Span, lower


cdef int transactions_init(TransactionTable* table, const uint8_t* key) noexcept nogil:
    memset(table, 0, sizeof(TransactionTable))
    memcpy(table.key, key, 16)
    table.free_head = TRANSACTION_NONE
    table.bucket_count = 256
    table.buckets = <uint32_t*>malloc(table.bucket_count * sizeof(uint32_t))
    if table.buckets == NULL:
        return -1
    memset(table.buckets, 0xFF, table.bucket_count * sizeof(uint32_t))
    return 0


cdef void transactions_free(TransactionTable* table) noexcept nogil:
    free(table.nodes)
    free(table.buckets)
    memset(table, 0, sizeof(TransactionTable))


cdef uint64_t transaction_key(TransactionTable* table, uint8_t side, uint32_t a, uint32_t b, Span branch, Span sent_by,
                              Span call_id, uint32_t cseq) noexcept nogil:
    cdef siphash_state state
    cdef uint32_t origin[4]
    cdef char folded[64]
    cdef size_t i, run, at
    origin[0] = side
    origin[1] = a
    origin[2] = b
    origin[3] = cseq
    siphash_start(&state, table.key)
    siphash_feed(&state, origin, sizeof(origin))
    siphash_feed(&state, branch.start, branch.length)
    siphash_feed(&state, b"\n", 1)
    # sent-by is a host: compared without regard to case (17.2.3).
    at = 0
    while at < sent_by.length:
        run = sent_by.length - at
        if run > sizeof(folded):
            run = sizeof(folded)
        for i in range(run):
            folded[i] = lower(sent_by.start[at + i])
        siphash_feed(&state, folded, run)
        at += run
    siphash_feed(&state, b"\n", 1)
    siphash_feed(&state, call_id.start, call_id.length)
    return siphash_end(&state)


cdef uint32_t transaction_find(TransactionTable* table, uint64_t key) noexcept nogil:
    cdef uint32_t at = table.buckets[key & (table.bucket_count - 1)]
    while at != TRANSACTION_NONE and table.nodes[at].key != key:
        at = table.nodes[at].bucket_next
    return at


cdef int transactions_grow(TransactionTable* table) noexcept nogil:
    cdef uint32_t wanted = table.capacity * 2 if table.capacity > 0 else 64
    cdef Transaction* nodes = <Transaction*>realloc(table.nodes, <size_t>wanted * sizeof(Transaction))
    cdef uint32_t* buckets
    cdef uint32_t at, place
    if nodes == NULL:
        return -1
    table.nodes = nodes
    at = wanted
    while at > table.capacity:
        at -= 1
        nodes[at].bucket_next = table.free_head
        # A free node has generation 0, which no tenant has.
        nodes[at].generation = 0
        table.free_head = at
    table.capacity = wanted
    if wanted > table.bucket_count:
        buckets = <uint32_t*>malloc(<size_t>wanted * sizeof(uint32_t))
        if buckets == NULL:
            return 0                 # longer chains, nothing worse
        memset(buckets, 0xFF, <size_t>wanted * sizeof(uint32_t))
        for at in range(wanted):
            if nodes[at].generation != 0:
                place = nodes[at].key & (wanted - 1)
                nodes[at].bucket_next = buckets[place]
                buckets[place] = at
        free(table.buckets)
        table.buckets = buckets
        table.bucket_count = wanted
    return 0


cdef uint32_t transaction_add(TransactionTable* table, uint64_t key, uint32_t slot, uint32_t generation,
                              uint32_t serial, uint32_t peer, uint32_t* owner_head) noexcept nogil:
    cdef uint32_t at, place
    cdef Transaction* node
    if table.free_head == TRANSACTION_NONE and transactions_grow(table) != 0:
        return TRANSACTION_NONE
    at = table.free_head
    node = &table.nodes[at]
    table.free_head = node.bucket_next
    place = key & (table.bucket_count - 1)
    node.key = key
    node.slot = slot
    node.generation = generation
    node.serial = serial
    node.peer = peer
    node.bucket_next = table.buckets[place]
    table.buckets[place] = at
    node.owner_previous = TRANSACTION_NONE
    node.owner_next = owner_head[0]
    if owner_head[0] != TRANSACTION_NONE:
        table.nodes[owner_head[0]].owner_previous = at
    owner_head[0] = at
    table.count += 1
    return at


cdef void transaction_remove(TransactionTable* table, uint32_t number, uint32_t* owner_head) noexcept nogil:
    cdef Transaction* node = &table.nodes[number]
    cdef uint32_t* link = &table.buckets[node.key & (table.bucket_count - 1)]
    while link[0] != number:
        link = &table.nodes[link[0]].bucket_next
    link[0] = node.bucket_next
    if node.owner_previous == TRANSACTION_NONE:
        owner_head[0] = node.owner_next
    else:
        table.nodes[node.owner_previous].owner_next = node.owner_next
    if node.owner_next != TRANSACTION_NONE:
        table.nodes[node.owner_next].owner_previous = node.owner_previous
    node.generation = 0
    node.bucket_next = table.free_head
    table.free_head = number
    table.count -= 1


cdef uint32_t transaction_oldest(TransactionTable* table, uint32_t owner_head) noexcept nogil:
    cdef uint32_t at = owner_head
    if at == TRANSACTION_NONE:
        return TRANSACTION_NONE
    while table.nodes[at].owner_next != TRANSACTION_NONE:
        at = table.nodes[at].owner_next
    return at
