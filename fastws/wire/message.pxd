# RFC 3261 7, 20, 25: one SIP message as spans; header values parsed when asked.
# Decides nothing, allocates nothing but the header array, sends nothing.

from libc.stddef cimport size_t
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from fastws.wire.span cimport Span

cdef enum HeaderId:
    HEADER_OTHER = 0
    HEADER_VIA
    HEADER_FROM
    HEADER_TO
    HEADER_CALL_ID
    HEADER_CSEQ
    HEADER_MAX_FORWARDS
    HEADER_CONTENT_LENGTH
    HEADER_CONTENT_TYPE
    HEADER_CONTACT
    HEADER_ROUTE
    HEADER_RECORD_ROUTE
    HEADER_PATH
    HEADER_SUPPORTED
    HEADER_REQUIRE
    HEADER_PROXY_REQUIRE
    HEADER_EXPIRES
    HEADER_EVENT
    HEADER_P_ASSERTED_IDENTITY
    HEADER_P_PREFERRED_IDENTITY
    HEADER_PRIVACY
    HEADER_AUTHORIZATION
    HEADER_PROXY_AUTHORIZATION
    HEADER_ID_COUNT              # not a header: the number of the ids

cdef enum MethodId:
    METHOD_OTHER = 0
    METHOD_INVITE
    METHOD_ACK
    METHOD_BYE
    METHOD_CANCEL
    METHOD_REGISTER
    METHOD_OPTIONS
    METHOD_MESSAGE
    METHOD_SUBSCRIBE
    METHOD_NOTIFY
    METHOD_REFER
    METHOD_INFO
    METHOD_UPDATE
    METHOD_PRACK
    METHOD_PUBLISH

cdef struct Header:
    Span line                    # from the first byte of the name to the CR LF that ends the value, included
    Span name                    # as written, without the blanks before the colon
    Span value                   # trimmed at both ends; folds inside are kept
    uint16_t id                  # HeaderId

cdef struct Message:
    const char* data             # borrowed; the spans point into it
    size_t length                # bytes that belong to the message: start line, headers, body
    bint is_request
    uint8_t method_id            # MethodId of a request's method, of a response's CSeq method
    int status                   # 100..699 of a response, 0 for a request
    Span start_line              # without its CR LF
    Span method                  # of a request; of a response: the method in CSeq
    Span uri                     # Request-URI, as written
    Span version                 # "SIP/2.0" in any case
    Span reason
    Span head                    # from the first header to the empty line, that not included
    Span body                    # cut at Content-Length; what lies behind it is no part of the message
    Header* headers              # owned: message_init .. message_free
    size_t count
    size_t capacity
    int32_t first[23]            # HEADER_ID_COUNT: index of the first header with this id, or -1
    uint16_t times[23]           # how many header fields have this id (saturates)
    bint has_content_length
    uint64_t content_length
    uint32_t cseq                # 0..2**31-1
    uint32_t max_forwards        # 0..255; only where times[HEADER_MAX_FORWARDS] is 1
    const char* error            # why message_scan refused: a static text for the log and the reason phrase, or NULL

cdef struct Uri:
    Span whole
    Span scheme                  # without the colon, as written
    bint is_sip                  # sip or sips
    bint is_sips
    Span user                    # escaped as written, without the password; length 0 and start NULL where there is none
    Span host                    # with the brackets of an IPv6 reference; for other schemes what follows the colon
    bint host_is_ipv6
    uint32_t port                # 1..65535, 0 where there is none
    Span parameters              # from the first ';' to the '?' or the end; empty where there are none
    Span headers                 # from the '?', included; empty where there are none

cdef struct NameAddr:
    Span display                 # as written, with its quotes; may be empty
    Span uri
    Span parameters              # header parameters, from the first ';'; empty where there are none
    bint bracketed               # <...> was there
    Span whole                   # this value, without the comma
    Span rest                    # what follows the comma; length 0 and start NULL where nothing does

cdef struct Via:
    Span whole                   # this value, without the comma
    Span transport               # "WS", "UDP", as written
    Span sent_by                 # host [":" port] as written, blanks included
    Span host
    uint32_t port                # 0 where there is none
    Span parameters              # from the first ';'
    Span branch                  # length 0 and start NULL where there is none
    bint has_rport
    Span rport                   # the value, often empty
    Span rest                    # what follows the comma; length 0 and start NULL where nothing does

# Takes memory for `capacity` headers (grown when needed, up to what the data can hold). 0, or -1 without memory.
cdef int message_init(Message* message, size_t capacity) noexcept nogil
cdef void message_free(Message* message) noexcept nogil

# Scan one message: data, length in bytes -> message. RFC 3261 7, 16.3, 18.3, 25.1.
# Returns 0, or the SIP status to answer with (400, 505), or -1 for what cannot be answered: no start line of SIP, a
# broken response, no memory. After 400 or 505 what was read (Via, From, To, Call-ID, CSeq) is there for the answer,
# message.first and times count only whole headers, and message.error says why.
# Checks: exactly one SP between the parts of the request line; bare CR or LF, NUL outside a quoted pair; unfinished
# head; mandatory and duplicate headers; CSeq; Content-Length; Max-Forwards. Not checked here: URIs, name-addrs, Vias.
# stream: a body shorter than Content-Length is 400 in either case; what lies behind the body is ignored.
cdef int message_scan(Message* message, const char* data, size_t length) noexcept nogil

# For a stream: the bytes that the first message in data[0:length] takes, its head found by CR LF CR LF and its body by
# Content-Length: > 0 whole and that long, 0 more is needed, -1 not SIP or no readable Content-Length (RFC 3261 18.3).
# `scanned` is kept between calls by the caller, so that the search for the end of the head does not start over; 0 at first.
# `limit`: -1 as soon as the head, or the head and the announced body, is longer.
cdef int64_t message_frame(const char* data, size_t length, size_t limit, size_t* scanned) noexcept nogil

# Next header with this id behind index `after` (-1 to begin): index or -1.
cdef int32_t message_next(const Message* message, uint16_t id, int32_t after) noexcept nogil

# The readers: 0 and *out, or -1 where the text does not follow the grammar. They never read outside `text`.
cdef int uri_parse(Span text, Uri* out) noexcept nogil
cdef int name_addr_parse(Span text, NameAddr* out) noexcept nogil
cdef int via_parse(Span text, Via* out) noexcept nogil
# Parameter `name` (lower case) in ";a=b;c": True and its value as written (quotes kept, empty without "="), or False.
cdef bint parameter_find(Span parameters, const char* name, size_t length, Span* value) noexcept nogil
# Decode %HH into out (capacity at least text.length): the length, or -1 for a broken escape.
cdef Py_ssize_t unescape(Span text, char* out) noexcept nogil
# True if a comma-separated list (option tags) has this token, which is given in lower case.
cdef bint list_has_token(Span value, const char* token, size_t length) noexcept nogil
cdef uint8_t method_identify(Span method) noexcept nogil
# HeaderId of a name in full or compact form, any case (RFC 3261 7.3.3, 20).
cdef uint16_t header_identify(Span name) noexcept nogil
