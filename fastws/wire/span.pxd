# A run of bytes that somebody else owns. Everything here is inline; no allocation, no SIP words.

from libc.stddef cimport size_t
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcmp

cdef struct Span:
    const char* start            # owned by whoever owns the buffer; valid only as long as it
    size_t length                # bytes

cdef inline Span span_make(const char* start, size_t length) noexcept nogil:
    cdef Span span
    span.start = start
    span.length = length
    return span

cdef inline const char* span_end(Span span) noexcept nogil:
    return span.start + span.length

cdef inline char lower(char c) noexcept nogil:
    # ASCII only: SIP compares tokens and hosts without regard to ASCII case (RFC 3261 7.3.1).
    if c'A' <= c <= c'Z':
        return <char>(c + 32)
    return c

cdef inline bint is_digit(char c) noexcept nogil:
    return c'0' <= c <= c'9'

cdef inline bint is_wsp(char c) noexcept nogil:
    return c == c' ' or c == c'\t'

cdef inline bint is_lws(char c) noexcept nogil:
    # Inside a header value a CR LF is always part of a fold, for the scanner has checked it.
    return c == c' ' or c == c'\t' or c == c'\r' or c == c'\n'

cdef inline bint span_equal(Span a, const char* text, size_t length) noexcept nogil:
    return a.length == length and memcmp(a.start, text, length) == 0

cdef inline bint span_equal_span(Span a, Span b) noexcept nogil:
    return a.length == b.length and memcmp(a.start, b.start, a.length) == 0

cdef inline bint span_equal_nocase(Span a, const char* text, size_t length) noexcept nogil:
    # `text` must be given in lower case.
    cdef size_t i
    if a.length != length:
        return False
    for i in range(length):
        if lower(a.start[i]) != text[i]:
            return False
    return True

cdef inline bint span_equal_span_nocase(Span a, Span b) noexcept nogil:
    cdef size_t i
    if a.length != b.length:
        return False
    for i in range(a.length):
        if lower(a.start[i]) != lower(b.start[i]):
            return False
    return True

cdef inline Span span_trim(Span span) noexcept nogil:
    # Without the linear white space at both ends.
    while span.length > 0 and is_lws(span.start[0]):
        span.start += 1
        span.length -= 1
    while span.length > 0 and is_lws(span.start[span.length - 1]):
        span.length -= 1
    return span

cdef inline bint span_to_uint(Span span, uint64_t limit, uint64_t* out) noexcept nogil:
    # 1*DIGIT and nothing else, at most `limit`: True and the number, or False. Never wraps.
    cdef uint64_t number = 0
    cdef uint64_t digit
    cdef size_t i
    if span.length == 0:
        return False
    for i in range(span.length):
        if not is_digit(span.start[i]):
            return False
        digit = <uint64_t>(span.start[i] - c'0')
        if digit > limit or number > (limit - digit) // 10:
            return False
        number = number * 10 + digit
    out[0] = number
    return True
