# The transaction layer: an arena of nodes, chained by hash, by owner and on a timer wheel; see transaction.pxd.

from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, memset

from fastws.wire.siphash cimport siphash_end, siphash_feed, siphash_start, siphash_state
from fastws.wire.span cimport Span, lower


# -- the machines ------------------------------------------------------------------------------------------------------

cdef struct Step:
    uint8_t state
    uint8_t action

# [kind][state][event]; what is not set is impossible, see table_fill.
cdef Step MACHINE[4][7][7]


cdef void on(uint8_t kind, uint8_t state, uint8_t event, uint8_t next_state, uint8_t action) noexcept nogil:
    MACHINE[kind][state][event].state = next_state
    MACHINE[kind][state][event].action = action


cdef void machine_fill() noexcept nogil:
    cdef size_t kind, state, event
    for kind in range(4):
        for state in range(7):
            for event in range(7):
                MACHINE[kind][state][event].state = <uint8_t>state
                MACHINE[kind][state][event].action = DO_IMPOSSIBLE
    # INVITE client, 17.1.1.2 and RFC 6026 8.4. A 2xx ends it: what is repeated of it finds its way by its token alone.
    on(CLIENT_INVITE, STATE_TRYING, EVENT_1XX, STATE_PROCEEDING, DO_PASS)
    on(CLIENT_INVITE, STATE_TRYING, EVENT_2XX, STATE_TERMINATED, DO_PASS | DO_END)
    on(CLIENT_INVITE, STATE_TRYING, EVENT_FINAL, STATE_COMPLETED, DO_PASS | DO_ACK)
    on(CLIENT_INVITE, STATE_TRYING, EVENT_REPEAT, STATE_TRYING, DO_RESEND)
    on(CLIENT_INVITE, STATE_TRYING, EVENT_TIMEOUT, STATE_TERMINATED, DO_TIMEOUT | DO_END)
    on(CLIENT_INVITE, STATE_PROCEEDING, EVENT_1XX, STATE_PROCEEDING, DO_PASS)
    on(CLIENT_INVITE, STATE_PROCEEDING, EVENT_2XX, STATE_TERMINATED, DO_PASS | DO_END)
    on(CLIENT_INVITE, STATE_PROCEEDING, EVENT_FINAL, STATE_COMPLETED, DO_PASS | DO_ACK)
    on(CLIENT_INVITE, STATE_PROCEEDING, EVENT_TIMEOUT, STATE_TERMINATED, DO_TIMEOUT | DO_END)
    on(CLIENT_INVITE, STATE_COMPLETED, EVENT_1XX, STATE_COMPLETED, DO_NOTHING)
    on(CLIENT_INVITE, STATE_COMPLETED, EVENT_2XX, STATE_COMPLETED, DO_NOTHING)
    on(CLIENT_INVITE, STATE_COMPLETED, EVENT_FINAL, STATE_COMPLETED, DO_ACK)
    on(CLIENT_INVITE, STATE_COMPLETED, EVENT_TIMEOUT, STATE_TERMINATED, DO_END)
    # Any other client, 17.1.2.2. A final response ends it: what is repeated of it is dropped for want of a transaction.
    on(CLIENT_OTHER, STATE_TRYING, EVENT_1XX, STATE_PROCEEDING, DO_PASS)
    on(CLIENT_OTHER, STATE_TRYING, EVENT_2XX, STATE_TERMINATED, DO_PASS | DO_END)
    on(CLIENT_OTHER, STATE_TRYING, EVENT_FINAL, STATE_TERMINATED, DO_PASS | DO_END)
    on(CLIENT_OTHER, STATE_TRYING, EVENT_REPEAT, STATE_TRYING, DO_RESEND)
    on(CLIENT_OTHER, STATE_TRYING, EVENT_TIMEOUT, STATE_TERMINATED, DO_TIMEOUT | DO_END)
    on(CLIENT_OTHER, STATE_PROCEEDING, EVENT_1XX, STATE_PROCEEDING, DO_PASS)
    on(CLIENT_OTHER, STATE_PROCEEDING, EVENT_2XX, STATE_TERMINATED, DO_PASS | DO_END)
    on(CLIENT_OTHER, STATE_PROCEEDING, EVENT_FINAL, STATE_TERMINATED, DO_PASS | DO_END)
    on(CLIENT_OTHER, STATE_PROCEEDING, EVENT_REPEAT, STATE_PROCEEDING, DO_RESEND)
    on(CLIENT_OTHER, STATE_PROCEEDING, EVENT_TIMEOUT, STATE_TERMINATED, DO_TIMEOUT | DO_END)
    # INVITE server, 17.2.1 and RFC 6026 7.1. Its timeout in PROCEEDING is the 100 that is owed.
    on(SERVER_INVITE, STATE_PROCEEDING, EVENT_REQUEST, STATE_PROCEEDING, DO_RESEND)
    on(SERVER_INVITE, STATE_PROCEEDING, EVENT_ACK, STATE_PROCEEDING, DO_NOTHING)
    on(SERVER_INVITE, STATE_PROCEEDING, EVENT_1XX, STATE_PROCEEDING, DO_SEND)
    on(SERVER_INVITE, STATE_PROCEEDING, EVENT_2XX, STATE_ACCEPTED, DO_SEND)
    on(SERVER_INVITE, STATE_PROCEEDING, EVENT_FINAL, STATE_COMPLETED, DO_SEND)
    on(SERVER_INVITE, STATE_PROCEEDING, EVENT_TIMEOUT, STATE_PROCEEDING, DO_TIMEOUT)
    on(SERVER_INVITE, STATE_COMPLETED, EVENT_REQUEST, STATE_COMPLETED, DO_RESEND)
    on(SERVER_INVITE, STATE_COMPLETED, EVENT_ACK, STATE_CONFIRMED, DO_NOTHING)
    on(SERVER_INVITE, STATE_COMPLETED, EVENT_1XX, STATE_COMPLETED, DO_NOTHING)
    on(SERVER_INVITE, STATE_COMPLETED, EVENT_2XX, STATE_COMPLETED, DO_NOTHING)
    on(SERVER_INVITE, STATE_COMPLETED, EVENT_FINAL, STATE_COMPLETED, DO_NOTHING)
    on(SERVER_INVITE, STATE_COMPLETED, EVENT_REPEAT, STATE_COMPLETED, DO_RESEND)
    on(SERVER_INVITE, STATE_COMPLETED, EVENT_TIMEOUT, STATE_TERMINATED, DO_END)
    on(SERVER_INVITE, STATE_CONFIRMED, EVENT_REQUEST, STATE_CONFIRMED, DO_NOTHING)
    on(SERVER_INVITE, STATE_CONFIRMED, EVENT_ACK, STATE_CONFIRMED, DO_NOTHING)
    on(SERVER_INVITE, STATE_CONFIRMED, EVENT_TIMEOUT, STATE_TERMINATED, DO_END)
    on(SERVER_INVITE, STATE_ACCEPTED, EVENT_REQUEST, STATE_ACCEPTED, DO_NOTHING)
    on(SERVER_INVITE, STATE_ACCEPTED, EVENT_2XX, STATE_ACCEPTED, DO_SEND)
    on(SERVER_INVITE, STATE_ACCEPTED, EVENT_TIMEOUT, STATE_TERMINATED, DO_END)
    # Any other server, 17.2.2.
    on(SERVER_OTHER, STATE_TRYING, EVENT_REQUEST, STATE_TRYING, DO_NOTHING)
    on(SERVER_OTHER, STATE_TRYING, EVENT_1XX, STATE_PROCEEDING, DO_SEND)
    on(SERVER_OTHER, STATE_TRYING, EVENT_2XX, STATE_COMPLETED, DO_SEND)
    on(SERVER_OTHER, STATE_TRYING, EVENT_FINAL, STATE_COMPLETED, DO_SEND)
    on(SERVER_OTHER, STATE_PROCEEDING, EVENT_REQUEST, STATE_PROCEEDING, DO_RESEND)
    on(SERVER_OTHER, STATE_PROCEEDING, EVENT_1XX, STATE_PROCEEDING, DO_SEND)
    on(SERVER_OTHER, STATE_PROCEEDING, EVENT_2XX, STATE_COMPLETED, DO_SEND)
    on(SERVER_OTHER, STATE_PROCEEDING, EVENT_FINAL, STATE_COMPLETED, DO_SEND)
    on(SERVER_OTHER, STATE_COMPLETED, EVENT_REQUEST, STATE_COMPLETED, DO_RESEND)
    on(SERVER_OTHER, STATE_COMPLETED, EVENT_1XX, STATE_COMPLETED, DO_NOTHING)
    on(SERVER_OTHER, STATE_COMPLETED, EVENT_2XX, STATE_COMPLETED, DO_NOTHING)
    on(SERVER_OTHER, STATE_COMPLETED, EVENT_FINAL, STATE_COMPLETED, DO_NOTHING)
    on(SERVER_OTHER, STATE_COMPLETED, EVENT_TIMEOUT, STATE_TERMINATED, DO_END)


machine_fill()


cdef int timers_set(TransactionTable* table, uint32_t number, uint64_t now_ms) noexcept nogil:
    # The timers of the state that was just entered. DO_END: over a transport that repeats by itself the state lasts no time.
    cdef Transaction* node = &table.nodes[number]
    node.repeat_ms = 0
    node.end_ms = 0
    if node.kind == CLIENT_INVITE:
        if node.state == STATE_TRYING:
            node.end_ms = now_ms + TIMER_B_MS
            if not node.reliable:
                node.interval_ms = T1_MS
                node.repeat_ms = now_ms + T1_MS                                  # Timer A
        elif node.state == STATE_PROCEEDING:
            node.end_ms = now_ms + TIMER_C_MS
        elif node.state == STATE_COMPLETED:
            if node.reliable:
                return DO_END
            node.end_ms = now_ms + TIMER_D_MS
    elif node.kind == CLIENT_OTHER:
        if node.state == STATE_TRYING:
            node.end_ms = now_ms + TIMER_B_MS                                    # Timer F
            if not node.reliable:
                node.interval_ms = T1_MS
                node.repeat_ms = now_ms + T1_MS                                  # Timer E
    elif node.kind == SERVER_INVITE:
        if node.state == STATE_PROCEEDING:
            if node.status == 0:
                node.end_ms = now_ms + TRYING_MS
        elif node.state == STATE_COMPLETED:
            node.end_ms = now_ms + TIMER_B_MS                                    # Timer H
            if not node.reliable:
                node.interval_ms = T1_MS
                node.repeat_ms = now_ms + T1_MS                                  # Timer G
        elif node.state == STATE_CONFIRMED:
            if node.reliable:
                return DO_END
            node.end_ms = now_ms + T4_MS                                         # Timer I
        elif node.state == STATE_ACCEPTED:
            if node.reliable:
                return DO_END
            node.end_ms = now_ms + TIMER_B_MS                                    # Timer L
    elif node.state == STATE_COMPLETED:
        if node.reliable:
            return DO_END
        node.end_ms = now_ms + TIMER_B_MS                                        # Timer J
    wheel_set(table, number)
    return DO_NOTHING


cdef void transaction_start(TransactionTable* table, uint32_t number, uint64_t now_ms) noexcept nogil:
    timers_set(table, number, now_ms)


cdef void transaction_end_at(TransactionTable* table, uint32_t number, uint64_t end_ms) noexcept nogil:
    table.nodes[number].end_ms = end_ms
    wheel_set(table, number)


cdef void transaction_quiet(TransactionTable* table, uint32_t number) noexcept nogil:
    table.nodes[number].repeat_ms = 0
    wheel_set(table, number)


cdef int transaction_event(TransactionTable* table, uint32_t number, uint8_t event, uint64_t now_ms) noexcept nogil:
    cdef Transaction* node = &table.nodes[number]
    cdef Step step = MACHINE[node.kind][node.state][event]
    cdef uint8_t before = node.state
    cdef int action = step.action
    if action & DO_IMPOSSIBLE:
        return action                # its timers go on as they are
    node.state = step.state
    if action & DO_END:
        return action
    if step.state != before:
        if node.kind == CLIENT_OTHER:
            # 17.1.2.2: Timer F goes on, and Timer E is T2 from the first provisional on.
            if node.repeat_ms != 0:
                node.interval_ms = T2_MS
                node.repeat_ms = now_ms + T2_MS
                wheel_set(table, number)
        else:
            action |= timers_set(table, number, now_ms)
    elif event == EVENT_REPEAT:
        node.interval_ms *= 2
        if node.kind != CLIENT_INVITE and node.interval_ms > T2_MS:
            node.interval_ms = T2_MS
        # Counted from when it was due, so that what the wheel is late by does not add up.
        node.repeat_ms += node.interval_ms
        if node.repeat_ms <= now_ms:
            node.repeat_ms = now_ms + node.interval_ms
        wheel_set(table, number)
    elif event == EVENT_1XX and node.kind == CLIENT_INVITE and node.state == STATE_PROCEEDING and not node.cancelled:
        node.end_ms = now_ms + TIMER_C_MS                                        # 16.7 item 2
        wheel_set(table, number)
    elif node.kind == SERVER_INVITE and node.state == STATE_PROCEEDING and (
            event == EVENT_1XX or event == EVENT_TIMEOUT):
        node.end_ms = 0                                                          # the 100 is owed no longer
        wheel_set(table, number)
    return action


# -- the wheel ---------------------------------------------------------------------------------------------------------

cdef void wheel_unset(TransactionTable* table, uint32_t number) noexcept nogil:
    cdef Transaction* node = &table.nodes[number]
    if node.wheel_slot == TRANSACTION_NONE:
        return
    if table.scan == number:
        table.scan = node.wheel_next
    if node.wheel_previous == TRANSACTION_NONE:
        table.wheel[node.wheel_slot] = node.wheel_next
    else:
        table.nodes[node.wheel_previous].wheel_next = node.wheel_next
    if node.wheel_next != TRANSACTION_NONE:
        table.nodes[node.wheel_next].wheel_previous = node.wheel_previous
    node.wheel_slot = TRANSACTION_NONE
    table.timers -= 1


cdef inline uint64_t due_ms(const Transaction* node) noexcept nogil:
    if node.repeat_ms != 0 and (node.end_ms == 0 or node.repeat_ms < node.end_ms):
        return node.repeat_ms
    return node.end_ms


cdef void wheel_set(TransactionTable* table, uint32_t number) noexcept nogil:
    # Into the place of its next timer. One that lies further off than the wheel turns is looked at again each turn.
    cdef Transaction* node = &table.nodes[number]
    cdef uint64_t due = due_ms(node)
    cdef uint64_t step
    cdef uint32_t place
    wheel_unset(table, number)
    if due == 0:
        return
    step = due // WHEEL_STEP_MS + 1
    if step <= table.wheel_at + 1:
        step = table.wheel_at + 1
        if table.scanning:
            table.scan = number      # in front of what has been looked at
    place = <uint32_t>(step & (WHEEL_SLOTS - 1))
    node.wheel_slot = place
    node.wheel_previous = TRANSACTION_NONE
    node.wheel_next = table.wheel[place]
    if node.wheel_next != TRANSACTION_NONE:
        table.nodes[node.wheel_next].wheel_previous = number
    table.wheel[place] = number
    table.timers += 1


cdef uint32_t transaction_due(TransactionTable* table, uint64_t now_ms, uint8_t* event) noexcept nogil:
    cdef uint64_t target = now_ms // WHEEL_STEP_MS
    cdef uint64_t step
    cdef uint32_t at
    cdef Transaction* node
    if table.timers == 0 or target > table.wheel_at + WHEEL_SLOTS:
        # Nothing runs, or more than a turn has passed: each place is looked at once, whatever the step.
        table.scanning = False
        table.scan = TRANSACTION_NONE
        if table.timers == 0:
            table.wheel_at = target
            return TRANSACTION_NONE
        table.wheel_at = target - WHEEL_SLOTS
    while table.wheel_at < target:
        step = table.wheel_at + 1
        if not table.scanning:
            table.scanning = True
            table.scan = table.wheel[step & (WHEEL_SLOTS - 1)]
        while table.scan != TRANSACTION_NONE:
            at = table.scan
            node = &table.nodes[at]
            table.scan = node.wheel_next
            if due_ms(node) <= now_ms:
                event[0] = EVENT_REPEAT if due_ms(node) == node.repeat_ms and node.repeat_ms != node.end_ms \
                    else EVENT_TIMEOUT
                wheel_unset(table, at)
                return at
        table.scanning = False
        table.wheel_at = step
    return TRANSACTION_NONE


# -- the arena ---------------------------------------------------------------------------------------------------------

cdef int transactions_init(TransactionTable* table, const uint8_t* key, uint32_t limit) noexcept nogil:
    memset(table, 0, sizeof(TransactionTable))
    memcpy(table.key, key, 16)
    table.limit = limit
    table.free_head = TRANSACTION_NONE
    table.orphans = TRANSACTION_NONE
    table.scan = TRANSACTION_NONE
    memset(table.wheel, 0xFF, sizeof(table.wheel))
    table.bucket_count = 256
    table.buckets = <uint32_t*>malloc(table.bucket_count * sizeof(uint32_t))
    if table.buckets == NULL:
        return -1
    memset(table.buckets, 0xFF, table.bucket_count * sizeof(uint32_t))
    return 0


cdef void transactions_free(TransactionTable* table) noexcept nogil:
    cdef uint32_t at
    for at in range(table.capacity):
        free(table.nodes[at].data)
    free(table.nodes)
    free(table.buckets)
    memset(table, 0, sizeof(TransactionTable))


cdef uint64_t transaction_key(TransactionTable* table, uint8_t side, uint32_t a, uint32_t b, Span branch, Span sent_by,
                              Span call_id, uint32_t cseq, Span method) noexcept nogil:
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
    siphash_feed(&state, method.start, method.length)
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
    cdef Transaction* nodes
    cdef uint32_t* buckets
    cdef uint32_t at, place
    if wanted > table.limit:
        wanted = table.limit
    if wanted <= table.capacity:
        return -1
    nodes = <Transaction*>realloc(table.nodes, <size_t>wanted * sizeof(Transaction))
    if nodes == NULL:
        return -1
    table.nodes = nodes
    memset(nodes + table.capacity, 0, <size_t>(wanted - table.capacity) * sizeof(Transaction))
    at = wanted
    while at > table.capacity:
        at -= 1
        nodes[at].bucket_next = table.free_head
        table.free_head = at
    table.capacity = wanted
    if wanted > table.bucket_count:
        place = table.bucket_count
        while place < wanted:
            place *= 2
        buckets = <uint32_t*>malloc(<size_t>place * sizeof(uint32_t))
        if buckets == NULL:
            return 0                 # longer chains, nothing worse
        memset(buckets, 0xFF, <size_t>place * sizeof(uint32_t))
        free(table.buckets)
        table.buckets = buckets
        table.bucket_count = place
        for at in range(wanted):
            if nodes[at].state != STATE_FREE and nodes[at].hashed:
                place = nodes[at].key & (table.bucket_count - 1)
                nodes[at].bucket_next = buckets[place]
                buckets[place] = at
    return 0


cdef uint32_t transaction_add(TransactionTable* table, uint8_t kind, bint reliable, bint upward, uint64_t key, bint hashed,
                              uint32_t slot, uint32_t generation, uint32_t* owner_head) noexcept nogil:
    cdef uint32_t at, place
    cdef Transaction* node
    if table.free_head == TRANSACTION_NONE and transactions_grow(table) != 0:
        return TRANSACTION_NONE
    at = table.free_head
    node = &table.nodes[at]
    table.free_head = node.bucket_next
    memset(node, 0, sizeof(Transaction))
    node.kind = kind
    node.state = STATE_PROCEEDING if kind == SERVER_INVITE else STATE_TRYING
    node.reliable = reliable
    node.upward = upward
    node.key = key
    node.hashed = hashed
    node.slot = slot
    node.generation = generation
    node.other = TRANSACTION_NONE
    node.wheel_slot = TRANSACTION_NONE
    if hashed:
        place = key & (table.bucket_count - 1)
        node.bucket_next = table.buckets[place]
        table.buckets[place] = at
    owner_link(table, at, owner_head)
    table.count += 1
    return at


cdef inline void owner_link(TransactionTable* table, uint32_t number, uint32_t* head) noexcept nogil:
    cdef Transaction* node = &table.nodes[number]
    node.owner_previous = TRANSACTION_NONE
    node.owner_next = head[0]
    if head[0] != TRANSACTION_NONE:
        table.nodes[head[0]].owner_previous = number
    head[0] = number


cdef inline void owner_unlink(TransactionTable* table, uint32_t number, uint32_t* head) noexcept nogil:
    cdef Transaction* node = &table.nodes[number]
    if node.owner_previous == TRANSACTION_NONE:
        head[0] = node.owner_next
    else:
        table.nodes[node.owner_previous].owner_next = node.owner_next
    if node.owner_next != TRANSACTION_NONE:
        table.nodes[node.owner_next].owner_previous = node.owner_previous


cdef void transaction_remove(TransactionTable* table, uint32_t number, uint32_t* owner_head) noexcept nogil:
    cdef Transaction* node = &table.nodes[number]
    cdef uint32_t* link
    if node.hashed:
        link = &table.buckets[node.key & (table.bucket_count - 1)]
        while link[0] != number:
            link = &table.nodes[link[0]].bucket_next
        link[0] = node.bucket_next
    wheel_unset(table, number)
    owner_unlink(table, number, owner_head)
    if node.other != TRANSACTION_NONE:
        table.nodes[node.other].other = TRANSACTION_NONE
    free(node.data)
    node.data = NULL
    node.state = STATE_FREE
    node.serial = 0
    node.bucket_next = table.free_head
    table.free_head = number
    table.count -= 1


cdef void transaction_orphan(TransactionTable* table, uint32_t number, uint32_t* owner_head) noexcept nogil:
    owner_unlink(table, number, owner_head)
    owner_link(table, number, &table.orphans)
    table.nodes[number].generation = 0


cdef bint transaction_keep(Transaction* transaction, const char* data, size_t length) noexcept nogil:
    cdef char* copy
    if length > transaction.length or transaction.data == NULL:
        copy = <char*>malloc(length)
        if copy == NULL:
            return False
        free(transaction.data)
        transaction.data = copy
    memcpy(transaction.data, data, length)
    transaction.length = length
    return True
