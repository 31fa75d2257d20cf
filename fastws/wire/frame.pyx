# RFC 6455 5: frames of one connection, bytes to payloads and back.
# Knows no SIP, no socket and no clock; answers nothing itself: PONG, CLOSE and deadlines are the caller's.
#
#     first byte     FIN RSV1 RSV2 RSV3 opcode(4)                                             RFC 6455 5.2
#     second byte    MASK length(7); 126: 16 bits follow, 127: 64 bits follow
#     mask key       4 bytes, always there from a client                                      RFC 6455 5.1
#
# A frame that lies whole in the caller's buffer is unmasked and handed out right there. Only a frame that was cut by
# the end of a read is copied, to reader.rest; only fragments are joined, in reader.parts. Both are given back at the
# next call after they were handed out, so that a connection between two messages owns no memory.

from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy, memset

cdef extern from "mask.h" nogil:
    void mask_apply(char* data, size_t length, const uint8_t* mask, size_t offset) noexcept
    bint mask_apply_ascii(char* data, size_t length, const uint8_t* mask, size_t offset) noexcept
    size_t ascii_run(const char* data, size_t length) noexcept

cdef enum:
    FIN_BIT = 0x80
    RSV_BITS = 0x70
    OPCODE_BITS = 0x0F
    CONTROL_BIT = 0x08               # opcodes 8 to 15 are control frames, RFC 6455 5.2
    MASK_BIT = 0x80
    LENGTH_BITS = 0x7F
    LENGTH_16 = 126                  # "the following 2 bytes", RFC 6455 5.2
    LENGTH_64 = 127
    CONTROL_MAX = 125                # RFC 6455 5.5
    MASK_LENGTH = 4
    HEADER_MAX = 14                  # 2 + 8 + 4: what is kept of a frame before its length is known and allowed
    PARTS_MIN = 256                  # first capacity of joined fragments; doubled from there, never above the limit

cdef enum:
    CLOSE_PROTOCOL_ERROR = 1002      # all of RFC 6455 7.4.1
    CLOSE_NO_CODE = 1005
    CLOSE_INVALID_PAYLOAD = 1007
    CLOSE_TOO_BIG = 1009
    CLOSE_INTERNAL_ERROR = 1011

cdef struct FrameHeader:
    uint8_t opcode
    bint fin
    size_t length                    # of the header with its mask key: 6, 8 or 14; 0 while not all of it is there
    size_t payload_length            # meaningful once length is not 0; within the limit
    size_t wanted                    # bytes of the frame that the next step needs: of the header, then of the frame


cdef void frame_init(FrameReader* reader, uint64_t limit) noexcept nogil:
    memset(reader, 0, sizeof(FrameReader))
    reader.limit = limit


cdef void frame_free(FrameReader* reader) noexcept nogil:
    cdef uint64_t limit = reader.limit
    free(reader.rest)
    free(reader.parts)
    frame_init(reader, limit)


cdef bint frame_partial(FrameReader* reader) noexcept nogil:
    return reader.parts_opcode != 0 or (reader.rest != NULL and not reader.rest_done)


cdef void rest_free(FrameReader* reader) noexcept nogil:
    free(reader.rest)
    reader.rest = NULL
    reader.rest_length = 0
    reader.rest_capacity = 0
    reader.rest_done = False


cdef void parts_free(FrameReader* reader) noexcept nogil:
    free(reader.parts)
    reader.parts = NULL
    reader.parts_length = 0
    reader.parts_capacity = 0
    reader.parts_done = False
    reader.parts_opcode = 0


# The reader is of no more use: nothing is read after this, so nothing is kept for it either.
cdef FrameEventKind frame_fail(FrameReader* reader, uint32_t code, FrameEvent* event) noexcept nogil:
    rest_free(reader)
    parts_free(reader)
    reader.failed = True
    event.close_code = code
    event.kind = FRAME_ERROR
    return FRAME_ERROR


# Read what is there of a header: bytes[0:available] -> header. Every byte is judged as soon as it is there, so that a
# broken frame is never taken for one that waits for more, and a length above the limit is refused before the mask
# key and the payload arrive. Lengths stay unsigned and are compared before they enter any sum.
# Returns 0 (header.length and header.wanted say how far it is), 1002 or 1009. RFC 6455 5.1, 5.2, 5.4, 5.5, 7.4.1.
cdef uint32_t header_read(const FrameReader* reader, const char* data, size_t available,
                          FrameHeader* header) noexcept nogil:
    cdef const uint8_t* bytes = <const uint8_t*> data
    cdef uint64_t length
    cdef size_t size, i
    cdef bint control

    header.length = 0
    header.wanted = 2
    if available == 0:
        return 0
    # No extension is ever agreed upon, so no RSV bit has a meaning (5.2).
    if bytes[0] & RSV_BITS != 0:
        return CLOSE_PROTOCOL_ERROR
    header.opcode = bytes[0] & OPCODE_BITS
    header.fin = bytes[0] & FIN_BIT != 0
    control = header.opcode & CONTROL_BIT != 0
    if control:
        # 5.5: control frames must not be fragmented; B to F are reserved.
        if header.opcode > OPCODE_PONG or not header.fin:
            return CLOSE_PROTOCOL_ERROR
    elif header.opcode == OPCODE_CONTINUATION:
        if reader.parts_opcode == 0:
            return CLOSE_PROTOCOL_ERROR
    elif header.opcode > OPCODE_BINARY or reader.parts_opcode != 0:
        # 3 to 7 are reserved; the fragments of two messages must not be mixed (5.4).
        return CLOSE_PROTOCOL_ERROR
    if available == 1:
        return 0

    if bytes[1] & MASK_BIT == 0:
        return CLOSE_PROTOCOL_ERROR
    length = bytes[1] & LENGTH_BITS
    size = 2
    if control and length > CONTROL_MAX:
        return CLOSE_PROTOCOL_ERROR
    if length >= LENGTH_16:
        size = 4 if length == LENGTH_16 else 10
        if available < size:
            header.wanted = size
            return 0
        length = 0
        for i in range(2, size):
            length = length << 8 | bytes[i]
        # 5.2: the minimal number of bytes must be used, and the top bit of 64 must be 0.
        if length < LENGTH_16 or (size == 10 and (length < 0x10000 or length >> 63 != 0)):
            return CLOSE_PROTOCOL_ERROR
    # parts_length never passes the limit, so the difference cannot wrap.
    if not control and length > reader.limit - reader.parts_length:
        return CLOSE_TOO_BIG
    size += MASK_LENGTH
    header.wanted = size
    if available < size:
        return 0
    header.length = size
    header.payload_length = <size_t> length
    header.wanted = size + header.payload_length
    return 0


# Take bytes of a cut frame from data[cursor[0]:length] into reader.rest, as many as the frame still needs and no more.
# Until the length is known and allowed this holds HEADER_MAX bytes at most; then the room for the whole frame is taken
# in one step, so the cost is linear however the bytes arrive.
# Returns 0 (the frame is whole if rest_length == header.wanted and header.length is not 0), 1002, 1009 or 1011.
cdef uint32_t rest_fill(FrameReader* reader, const char* data, size_t length, size_t* cursor,
                        FrameHeader* header) noexcept nogil:
    cdef uint32_t code
    cdef size_t taken, capacity
    cdef char* grown

    while True:
        code = header_read(reader, reader.rest, reader.rest_length, header)
        if code != 0:
            return code
        taken = header.wanted - reader.rest_length
        if taken > length - cursor[0]:
            taken = length - cursor[0]
        if taken == 0:
            return 0
        if header.wanted > reader.rest_capacity:
            capacity = header.wanted if header.wanted > HEADER_MAX else HEADER_MAX
            grown = <char*> realloc(reader.rest, capacity)
            if grown == NULL:
                return CLOSE_INTERNAL_ERROR
            reader.rest = grown
            reader.rest_capacity = capacity
        memcpy(reader.rest + reader.rest_length, data + cursor[0], taken)
        reader.rest_length += taken
        cursor[0] += taken


# Append an unmasked fragment to reader.parts. header_read has compared the sum with the limit. `last`: nothing follows,
# so no room is taken beyond it. False without memory.
cdef bint parts_append(FrameReader* reader, const char* payload, size_t length, bint last) noexcept nogil:
    cdef uint64_t capacity
    cdef char* grown

    if length == 0:
        return True
    if length > reader.parts_capacity - reader.parts_length:
        capacity = reader.parts_length + length
        if not last:
            if capacity < PARTS_MIN:
                capacity = PARTS_MIN
            if capacity < 2 * <uint64_t> reader.parts_capacity:
                capacity = 2 * <uint64_t> reader.parts_capacity
            if capacity > reader.limit:
                capacity = reader.limit
        grown = <char*> realloc(reader.parts, <size_t> capacity)
        if grown == NULL:
            return False
        reader.parts = grown
        reader.parts_capacity = <size_t> capacity
    memcpy(reader.parts + reader.parts_length, payload, length)
    reader.parts_length += length
    return True


# A whole CLOSE frame, unmasked. RFC 6455 5.5.1: nothing, or a code of two bytes and a reason in UTF-8.
cdef FrameEventKind close_take(FrameReader* reader, char* payload, size_t length, FrameEvent* event) noexcept nogil:
    event.close_code = CLOSE_NO_CODE
    if length == 1:
        return frame_fail(reader, CLOSE_PROTOCOL_ERROR, event)
    if length >= 2:
        event.close_code = <uint32_t> (<uint8_t> payload[0]) << 8 | <uint8_t> payload[1]
        payload += 2
        length -= 2
        if not close_code_valid(event.close_code):
            return frame_fail(reader, CLOSE_PROTOCOL_ERROR, event)
        if not utf8_valid(payload, length):
            return frame_fail(reader, CLOSE_INVALID_PAYLOAD, event)
    # RFC 6455 1.4: what follows a CLOSE is discarded, an unfinished message with it.
    parts_free(reader)
    reader.failed = True
    event.payload = payload
    event.length = length
    event.kind = FRAME_CLOSE
    return FRAME_CLOSE


# One whole frame, header and payload side by side at `frame`: unmask it and say what it is.
# FRAME_MORE for a fragment that does not end its message.
cdef FrameEventKind frame_take(FrameReader* reader, const FrameHeader* header, char* frame,
                               FrameEvent* event) noexcept nogil:
    cdef char* payload = frame + header.length
    cdef const uint8_t* mask = <const uint8_t*> payload - MASK_LENGTH
    cdef size_t length = header.payload_length
    cdef uint8_t opcode = header.opcode
    # The UTF-8 of a text is checked on the whole message: a character may be cut between fragments (RFC 6455 5.6).
    cdef bint checked = mask_apply_ascii(payload, length, mask, 0)

    if opcode == OPCODE_CLOSE:
        return close_take(reader, payload, length, event)
    if opcode & CONTROL_BIT == 0:
        if opcode == OPCODE_CONTINUATION or not header.fin:
            checked = False
            if opcode != OPCODE_CONTINUATION:
                reader.parts_opcode = opcode
            if not parts_append(reader, payload, length, header.fin):
                return frame_fail(reader, CLOSE_INTERNAL_ERROR, event)
            if not header.fin:
                return FRAME_MORE
            opcode = reader.parts_opcode
            reader.parts_opcode = 0
            reader.parts_done = True
            # Without a byte in all fragments there is no parts, and the empty payload of this frame serves.
            if reader.parts != NULL:
                payload = reader.parts
                length = reader.parts_length
        if opcode == OPCODE_TEXT and not checked and not utf8_valid(payload, length):
            return frame_fail(reader, CLOSE_INVALID_PAYLOAD, event)
        event.opcode = opcode
        event.kind = FRAME_MESSAGE
    elif opcode == OPCODE_PING:
        event.kind = FRAME_PING
    else:
        event.kind = FRAME_PONG
    event.payload = payload
    event.length = length
    return event.kind


cdef FrameEventKind frame_next(FrameReader* reader, char* data, size_t length, size_t* cursor,
                               FrameEvent* event) noexcept nogil:
    cdef FrameHeader header
    cdef uint32_t code
    cdef char* frame

    memset(event, 0, sizeof(FrameEvent))
    while True:
        if reader.parts_done:
            parts_free(reader)
        if reader.rest_done:
            rest_free(reader)
        if reader.failed:
            cursor[0] = length
        if cursor[0] == length:
            return FRAME_MORE
        frame = NULL
        if reader.rest == NULL:
            code = header_read(reader, data + cursor[0], length - cursor[0], &header)
            if code == 0 and length - cursor[0] >= header.wanted:
                frame = data + cursor[0]
                cursor[0] += header.wanted
        if frame == NULL:
            code = rest_fill(reader, data, length, cursor, &header)
            if code == 0:
                if header.length == 0 or reader.rest_length < header.wanted:
                    return FRAME_MORE
                frame = reader.rest
                reader.rest_done = True
        if code != 0:
            cursor[0] = length
            return frame_fail(reader, code, event)
        if frame_take(reader, &header, frame, event) != FRAME_MORE:
            if reader.failed:
                cursor[0] = length
            return event.kind


cdef size_t frame_header_length(uint64_t payload_length) noexcept nogil:
    if payload_length < LENGTH_16:
        return 2
    return 4 if payload_length < 0x10000 else 10


cdef size_t frame_header_write(char* out, uint8_t opcode, uint64_t payload_length) noexcept nogil:
    cdef size_t length = frame_header_length(payload_length)
    cdef size_t i

    out[0] = <char> (FIN_BIT | opcode)
    if length == 2:
        out[1] = <char> payload_length
        return length
    out[1] = <char> (LENGTH_16 if length == 4 else LENGTH_64)
    # Network byte order (RFC 6455 5.2): the lowest byte stands last.
    for i in range(length - 1, 1, -1):
        out[i] = <char> (payload_length & 0xFF)
        payload_length >>= 8
    return length


cdef void frame_unmask(char* data, size_t length, const uint8_t* mask, size_t offset) noexcept nogil:
    mask_apply(data, length, mask, offset)


#   UTF8-2 = %xC2-DF UTF8-tail                                                                RFC 3629 4
#   UTF8-3 = %xE0 %xA0-BF UTF8-tail / %xE1-EC 2( UTF8-tail ) / %xED %x80-9F UTF8-tail / %xEE-EF 2( UTF8-tail )
#   UTF8-4 = %xF0 %x90-BF 2( UTF8-tail ) / %xF1-F3 3( UTF8-tail ) / %xF4 %x80-8F 2( UTF8-tail )
# The range of the second byte is what keeps out overlong forms, surrogates and what lies above U+10FFFF.
cdef bint utf8_valid(const char* data, size_t length) noexcept nogil:
    cdef const uint8_t* at
    cdef size_t run, size, i
    cdef uint8_t lead, low, high

    while True:
        run = ascii_run(data, length)
        if run == length:
            return True
        at = <const uint8_t*> data + run
        length -= run
        # Letters of one script stand together: no new search for ASCII before this run of them ends.
        while length > 0 and at[0] >= 0x80:
            lead = at[0]
            low = 0x80
            high = 0xBF
            if lead < 0xC2:
                return False
            if lead < 0xE0:
                size = 2
            elif lead < 0xF0:
                size = 3
                if lead == 0xE0:
                    low = 0xA0
                elif lead == 0xED:
                    high = 0x9F
            elif lead < 0xF5:
                size = 4
                if lead == 0xF0:
                    low = 0x90
                elif lead == 0xF4:
                    high = 0x8F
            else:
                return False
            if length < size or at[1] < low or at[1] > high:
                return False
            for i in range(2, size):
                if at[i] & 0xC0 != 0x80:
                    return False
            at += size
            length -= size
        data = <const char*> at


cdef bint close_code_valid(uint32_t code) noexcept nogil:
    # 1004 is reserved; 1005, 1006 and 1015 must not be sent; 1016 to 2999 are not assigned (RFC 6455 7.4.1, 7.4.2).
    return 1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999
