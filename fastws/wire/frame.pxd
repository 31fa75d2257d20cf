# RFC 6455 5: frames of one connection, bytes to payloads and back.
# Knows no SIP, no socket and no clock.

from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef enum FrameOpcode:
    OPCODE_CONTINUATION = 0
    OPCODE_TEXT = 1
    OPCODE_BINARY = 2
    OPCODE_CLOSE = 8
    OPCODE_PING = 9
    OPCODE_PONG = 10

cdef enum FrameEventKind:
    FRAME_MORE = 0               # all bytes are taken; an incomplete rest is kept aside
    FRAME_MESSAGE = 1            # a whole message, its fragments joined, text checked as UTF-8
    FRAME_PING = 2
    FRAME_PONG = 3
    FRAME_CLOSE = 4              # close_code is 1005 where the peer gave none
    FRAME_ERROR = 5              # close_code says with what to close: 1002, 1007, 1009, 1011 (out of memory)

cdef struct FrameEvent:
    FrameEventKind kind
    uint8_t opcode               # of the message: OPCODE_TEXT or OPCODE_BINARY
    uint32_t close_code
    char* payload                # valid until the next call of frame_next or frame_free; the byte before and the
    size_t length                # byte behind it may not be touched. For FRAME_CLOSE: the reason, UTF-8, 0..123 bytes

cdef struct FrameReader:
    uint64_t limit               # max_message_bytes: of one frame and of the joined fragments
    char* rest                   # the incomplete frame, malloc'ed by the reader; NULL for an idle connection
    size_t rest_length
    size_t rest_capacity
    char* parts                  # the fragments of an unfinished message, unmasked; NULL without one
    size_t parts_length
    size_t parts_capacity
    uint8_t parts_opcode         # 0 while no fragmented message is open
    bint parts_done              # parts was handed out by the last event and is to be emptied at the next call
    bint rest_done               # so was rest
    bint failed                  # after FRAME_ERROR nothing more is read

# `limit`: bytes, 1..2**31. Owns nothing until a frame is cut.
cdef void frame_init(FrameReader* reader, uint64_t limit) noexcept nogil
# Gives back rest and parts; the reader may be used again.
cdef void frame_free(FrameReader* reader) noexcept nogil
# True while a frame or a fragmented message is incomplete (for the deadline of an unfinished message).
cdef bint frame_partial(FrameReader* reader) noexcept nogil
# Take one event out of data[cursor[0]:length]; advances cursor[0]. Payloads are unmasked in place, so `data` is
# overwritten; a payload that was cut over two reads comes from memory of the reader. Call again until FRAME_MORE.
cdef FrameEventKind frame_next(FrameReader* reader, char* data, size_t length, size_t* cursor,
                               FrameEvent* event) noexcept nogil
# Bytes of the header of an unmasked server frame with this payload: 2, 4 or 10.
cdef size_t frame_header_length(uint64_t payload_length) noexcept nogil
# Write that header (FIN set, never masked) to `out`; returns its length.
cdef size_t frame_header_write(char* out, uint8_t opcode, uint64_t payload_length) noexcept nogil
# XOR data with the 4 bytes of `mask`, the first byte of data with mask[offset & 3].
cdef void frame_unmask(char* data, size_t length, const uint8_t* mask, size_t offset) noexcept nogil
# True if data is UTF-8 as RFC 3629 has it: no overlong form, no surrogate, nothing above U+10FFFF.
cdef bint utf8_valid(const char* data, size_t length) noexcept nogil
# True if a peer may send this close code (RFC 6455 7.4): 1000-1003, 1007-1014, 3000-4999.
cdef bint close_code_valid(uint32_t code) noexcept nogil
