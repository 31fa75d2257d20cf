# RFC 3261 7, 20, 25: one SIP message as spans; header values parsed when asked.
# Decides nothing, allocates nothing but the header array, sends nothing, copies nothing: every span points into the
# bytes it was read from. The Python classes at the end are made when policy or registrar ask, never per message.

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdlib cimport free, realloc
from libc.string cimport memchr, memcmp, memcpy, memset

from fastws.wire.span cimport (
    is_digit,
    is_lws,
    is_wsp,
    lower,
    span_equal,
    span_equal_nocase,
    span_equal_span,
    span_make,
    span_to_uint,
    span_trim,
)


cdef extern from "limits.h":
    enum: INT_MAX


cdef extern from "stdint.h":
    enum: UINT16_MAX
    size_t SIZE_MAX


# ---- Characters, RFC 3261 25.1 -----------------------------------------------------------------------------------

cdef enum:
    TOKEN = 1                    # token = 1*(alphanum / "-" / "." / "!" / "%" / "*" / "_" / "+" / "`" / "'" / "~")
    USER = 2                     # unreserved / user-unreserved
    PASSWORD = 4                 # unreserved / "&" / "=" / "+" / "$" / ","
    URI_PARAMETER = 8            # unreserved / param-unreserved, and ";" "=" between them
    URI_HEADER = 16              # unreserved / hnv-unreserved, and "&" "=" between them
    HOST = 32                    # of a host name. "_" is not in the grammar, but in the names of many machines
    HEX = 64
    SCHEME = 128                 # behind its first letter

cdef uint8_t CLASS[256]


cdef void class_add(bytes characters, int bits):
    cdef int c
    for c in characters:
        CLASS[c] |= bits


cdef void class_fill():
    alphanum = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
    class_add(alphanum, TOKEN | USER | PASSWORD | URI_PARAMETER | URI_HEADER | HOST | SCHEME)
    class_add(b"-.!%*_+`'~", TOKEN)
    class_add(b"-_.!~*'()", USER | PASSWORD | URI_PARAMETER | URI_HEADER)
    class_add(b"&=+$,;?/", USER)
    class_add(b"&=+$,", PASSWORD)
    class_add(b"[]/:&+$;=", URI_PARAMETER)
    class_add(b"[]/?:+$&=", URI_HEADER)
    class_add(b"-._", HOST)
    class_add(b"0123456789abcdefABCDEF", HEX)
    class_add(b"+-.", SCHEME)


class_fill()


cdef inline bint is_class(char c, uint8_t bits) noexcept nogil:
    return (CLASS[<uint8_t>c] & bits) != 0


cdef inline const char* skip_class(const char* p, const char* end, uint8_t bits) noexcept nogil:
    while p < end and is_class(p[0], bits):
        p += 1
    return p


cdef inline const char* skip_lws(const char* p, const char* end) noexcept nogil:
    while p < end and is_lws(p[0]):
        p += 1
    return p


cdef inline Span between(const char* start, const char* end) noexcept nogil:
    return span_make(start, <size_t>(end - start))


cdef inline Span nothing() noexcept nogil:
    return span_make(NULL, 0)


# ---- Names of headers and methods --------------------------------------------------------------------------------

cdef inline uint16_t named(Span name, const char* usual, const char* lowered, uint16_t header_id) noexcept nogil:
    # Nearly everybody writes the names as the RFC does: compare that first. Both texts are as long as `name`.
    if memcmp(name.start, usual, name.length) == 0 or span_equal_nocase(name, lowered, name.length):
        return header_id
    return HEADER_OTHER


cdef uint16_t header_identify(Span name) noexcept nogil:
    cdef size_t length = name.length
    cdef char first
    if length == 0:
        return HEADER_OTHER
    first = lower(name.start[0])
    if length == 1:
        # The compact forms, RFC 3261 7.3.3 and 20; o is from RFC 6665 8.2.1.
        if first == c'v':
            return HEADER_VIA
        elif first == c'f':
            return HEADER_FROM
        elif first == c't':
            return HEADER_TO
        elif first == c'i':
            return HEADER_CALL_ID
        elif first == c'm':
            return HEADER_CONTACT
        elif first == c'l':
            return HEADER_CONTENT_LENGTH
        elif first == c'c':
            return HEADER_CONTENT_TYPE
        elif first == c'k':
            return HEADER_SUPPORTED
        elif first == c'o':
            return HEADER_EVENT
        return HEADER_OTHER
    elif length == 2:
        if first == c't':
            return named(name, b"To", b"to", HEADER_TO)
    elif length == 3:
        if first == c'v':
            return named(name, b"Via", b"via", HEADER_VIA)
    elif length == 4:
        if first == c'f':
            return named(name, b"From", b"from", HEADER_FROM)
        elif first == c'c':
            return named(name, b"CSeq", b"cseq", HEADER_CSEQ)
        elif first == c'p':
            return named(name, b"Path", b"path", HEADER_PATH)
    elif length == 5:
        if first == c'r':
            return named(name, b"Route", b"route", HEADER_ROUTE)
        elif first == c'e':
            return named(name, b"Event", b"event", HEADER_EVENT)
    elif length == 7:
        if first == c'c':
            if lower(name.start[1]) == c'a':
                return named(name, b"Call-ID", b"call-id", HEADER_CALL_ID)
            return named(name, b"Contact", b"contact", HEADER_CONTACT)
        elif first == c'r':
            return named(name, b"Require", b"require", HEADER_REQUIRE)
        elif first == c'e':
            return named(name, b"Expires", b"expires", HEADER_EXPIRES)
        elif first == c'p':
            return named(name, b"Privacy", b"privacy", HEADER_PRIVACY)
    elif length == 9:
        if first == c's':
            return named(name, b"Supported", b"supported", HEADER_SUPPORTED)
    elif length == 12:
        if first == c'm':
            return named(name, b"Max-Forwards", b"max-forwards", HEADER_MAX_FORWARDS)
        elif first == c'c':
            return named(name, b"Content-Type", b"content-type", HEADER_CONTENT_TYPE)
        elif first == c'r':
            return named(name, b"Record-Route", b"record-route", HEADER_RECORD_ROUTE)
    elif length == 13:
        if first == c'p':
            return named(name, b"Proxy-Require", b"proxy-require", HEADER_PROXY_REQUIRE)
        elif first == c'a':
            return named(name, b"Authorization", b"authorization", HEADER_AUTHORIZATION)
    elif length == 14:
        if first == c'c':
            return named(name, b"Content-Length", b"content-length", HEADER_CONTENT_LENGTH)
    elif length == 19:
        if first == c'p':
            if lower(name.start[1]) == c'r':
                return named(name, b"Proxy-Authorization", b"proxy-authorization", HEADER_PROXY_AUTHORIZATION)
            return named(name, b"P-Asserted-Identity", b"p-asserted-identity", HEADER_P_ASSERTED_IDENTITY)
    elif length == 20:
        if first == c'p':
            return named(name, b"P-Preferred-Identity", b"p-preferred-identity", HEADER_P_PREFERRED_IDENTITY)
    return HEADER_OTHER


cdef inline uint8_t method_named(Span method, const char* text, uint8_t method_id) noexcept nogil:
    if memcmp(method.start, text, method.length) == 0:
        return method_id
    return METHOD_OTHER


cdef uint8_t method_identify(Span method) noexcept nogil:
    # Methods are compared with regard to case (RFC 3261 7.1): "options" is another method than "OPTIONS".
    cdef size_t length = method.length
    cdef char first
    if length < 3 or length > 9:
        return METHOD_OTHER
    first = method.start[0]
    if length == 3:
        if first == c'A':
            return method_named(method, b"ACK", METHOD_ACK)
        elif first == c'B':
            return method_named(method, b"BYE", METHOD_BYE)
    elif length == 4:
        return method_named(method, b"INFO", METHOD_INFO)
    elif length == 5:
        if first == c'R':
            return method_named(method, b"REFER", METHOD_REFER)
        elif first == c'P':
            return method_named(method, b"PRACK", METHOD_PRACK)
    elif length == 6:
        if first == c'I':
            return method_named(method, b"INVITE", METHOD_INVITE)
        elif first == c'C':
            return method_named(method, b"CANCEL", METHOD_CANCEL)
        elif first == c'N':
            return method_named(method, b"NOTIFY", METHOD_NOTIFY)
        elif first == c'U':
            return method_named(method, b"UPDATE", METHOD_UPDATE)
    elif length == 7:
        if first == c'O':
            return method_named(method, b"OPTIONS", METHOD_OPTIONS)
        elif first == c'M':
            return method_named(method, b"MESSAGE", METHOD_MESSAGE)
        elif first == c'P':
            return method_named(method, b"PUBLISH", METHOD_PUBLISH)
    elif length == 8:
        return method_named(method, b"REGISTER", METHOD_REGISTER)
    elif length == 9:
        return method_named(method, b"SUBSCRIBE", METHOD_SUBSCRIBE)
    return METHOD_OTHER


# ---- Lines -------------------------------------------------------------------------------------------------------

cdef enum:
    FLAW_NAME = 1                # no colon, or nothing before it
    FLAW_LINE = 2                # a CR or an LF that is no part of a CR LF
    FLAW_NUL = 4


cdef inline const char* skip_text(const char* p, const char* end) noexcept nogil:
    # To the first byte below 0x20, or the end. Eight bytes a step: a borrow out of a byte whose top bit was clear says
    # that it was below 0x20; a false one can only come above a true one, and the byte loop looks again.
    cdef uint64_t word
    while end - p >= 8:
        memcpy(&word, p, 8)
        if ((word - <uint64_t>0x2020202020202020ULL) & ~word & <uint64_t>0x8080808080808080ULL) != 0:
            break
        p += 8
    while p < end and <uint8_t>p[0] >= 0x20:
        p += 1
    return p


cdef inline const char* line_end(const char* p, const char* end, bint folds, uint8_t* flaws) noexcept nogil:
    # To the CR of the CR LF that ends this line (with `folds`: that no SP or HT follows), or NULL where there is none.
    # RFC 3261 7.3.1, 25.1: CR LF alone ends a line.
    while True:
        p = skip_text(p, end)
        if p == end:
            return NULL
        if p[0] == c'\r':
            if end - p > 1 and p[1] == c'\n':
                if not folds or end - p == 2 or not is_wsp(p[2]):
                    return p
                p += 2
            else:
                flaws[0] |= FLAW_LINE
        elif p[0] == c'\n':
            flaws[0] |= FLAW_LINE
        elif p[0] == 0:
            flaws[0] |= FLAW_NUL
        p += 1


cdef bint nul_is_quoted(const char* p, const char* end) noexcept nogil:
    # quoted-pair = "\" (%x00-09 / %x0B-0C / %x0E-7F): inside a quoted string, and nowhere else, NUL may stand behind
    # a backslash (RFC 3261 25.1).
    cdef bint quoted = False
    while p < end:
        if p[0] == 0:
            return False
        elif p[0] == c'"':
            quoted = not quoted
        elif p[0] == c'\\' and quoted:
            p += 1
        p += 1
    return True


cdef inline const char* header_read(const char* start, const char* end, Header* header, uint8_t* flaws) noexcept nogil:
    # message-header = header-name HCOLON header-value CRLF;  HCOLON = *( SP / HTAB ) ":" SWS          RFC 3261 25.1
    # To the start of the next line, or NULL where no CR LF ends the header; then *header is only its name.
    cdef const char* p = skip_class(start, end, TOKEN)
    cdef const char* value
    header.name = between(start, p)
    while p < end and is_wsp(p[0]):
        p += 1
    if p == end or p[0] != c':' or header.name.length == 0:
        flaws[0] |= FLAW_NAME
    else:
        p += 1
    value = p
    p = line_end(value, end, True, flaws)
    if p == NULL:
        return NULL
    if flaws[0] & FLAW_NUL and nul_is_quoted(value, p):
        flaws[0] &= <uint8_t>~FLAW_NUL
    header.value = span_trim(between(value, p))
    header.line = between(start, p + 2)
    header.id = header_identify(header.name)
    return p + 2


# ---- The scanner -------------------------------------------------------------------------------------------------

cdef int message_grow(Message* message, size_t capacity) noexcept nogil:
    cdef Header* headers
    if capacity > SIZE_MAX // sizeof(Header) or capacity > INT_MAX:
        return -1
    headers = <Header*>realloc(message.headers, capacity * sizeof(Header))
    if headers == NULL:
        return -1
    message.headers = headers
    message.capacity = capacity
    return 0


cdef inline void message_clear(Message* message) noexcept nogil:
    # All but the memory of the header array.
    cdef Header* headers = message.headers
    cdef size_t capacity = message.capacity
    memset(message, 0, sizeof(Message))
    memset(message.first, 0xFF, sizeof(message.first))
    message.headers = headers
    message.capacity = capacity


cdef int message_init(Message* message, size_t capacity) noexcept nogil:
    message.headers = NULL
    message.capacity = 0
    message_clear(message)
    if capacity == 0:
        return 0
    return message_grow(message, capacity)


cdef void message_free(Message* message) noexcept nogil:
    free(message.headers)
    message.headers = NULL
    message.capacity = 0
    message_clear(message)


cdef inline void refuse(Message* message, int* verdict, int status, const char* why) noexcept nogil:
    # The first reason is the one that is told; scanning goes on, so that the answer finds its headers.
    if verdict[0] == 0:
        verdict[0] = status
        message.error = why


cdef bint mentions_sip(const char* p, const char* end) noexcept nogil:
    # "sip" in any case somewhere in p..end: what parts a broken request from a stranger's protocol.
    while end - p >= 3:
        if lower(p[0]) == c's' and lower(p[1]) == c'i' and lower(p[2]) == c'p':
            return True
        p += 1
    return False


cdef bint is_version(Span text) noexcept nogil:
    # SIP-Version = "SIP" "/" 1*DIGIT "." 1*DIGIT, the letters in any case                                RFC 3261 7.1
    cdef const char* p = text.start
    cdef const char* end = text.start + text.length
    cdef const char* digits
    if text.length < 7 or not span_equal_nocase(span_make(p, 4), b"sip/", 4):
        return False
    p += 4
    digits = p
    while p < end and is_digit(p[0]):
        p += 1
    if p == digits or p == end or p[0] != c'.':
        return False
    p += 1
    digits = p
    while p < end and is_digit(p[0]):
        p += 1
    return p == end and p != digits


cdef int status_line_read(Message* message, const char* p, const char* end) noexcept nogil:
    # Status-Line = SIP-Version SP Status-Code SP Reason-Phrase CRLF                                      RFC 3261 7.2
    # Where the reason is empty, the SP before it may be missing: nothing else can be meant.
    if end - p < 11 or not span_equal_nocase(span_make(p, 8), b"sip/2.0 ", 8):
        return -1
    message.version = span_make(p, 7)
    p += 8
    if not is_digit(p[0]) or not is_digit(p[1]) or not is_digit(p[2]):
        return -1
    message.status = (p[0] - c'0') * 100 + (p[1] - c'0') * 10 + (p[2] - c'0')
    if message.status < 100 or message.status > 699:
        return -1
    p += 3
    if p < end:
        if p[0] != c' ':
            return -1
        p += 1
    message.reason = between(p, end)
    return 0


cdef int request_line_read(Message* message, const char* p, const char* end) noexcept nogil:
    # Request-Line = Method SP Request-URI SP SIP-Version CRLF                                            RFC 3261 7.1
    # The URI itself is not read here, but what could move the SPs is refused: blanks, controls, < and >.
    cdef const char* start = p
    p = skip_class(p, end, TOKEN)
    if p == start or p == end or not is_wsp(p[0]) or not mentions_sip(p, end):
        return -1
    message.is_request = True
    message.method = between(start, p)
    message.method_id = method_identify(message.method)
    if p[0] != c' ':
        return 400
    p += 1
    start = p
    while p < end and <uint8_t>p[0] > 0x20 and p[0] != c'<' and p[0] != c'>' and p[0] != 0x7F:
        p += 1
    message.uri = between(start, p)
    if p == start or p == end or p[0] != c' ':
        return 400
    message.version = between(p + 1, end)
    if span_equal(message.version, b"SIP/2.0", 7):
        return 0
    if not is_version(message.version):
        return 400
    if not span_equal_nocase(message.version, b"sip/2.0", 7):
        return 505
    return 0


cdef bint cseq_read(Message* message, Span value, Span* method) noexcept nogil:
    # CSeq = 1*DIGIT LWS Method, the number below 2**31                                            RFC 3261 8.1.1.5, 20.16
    cdef const char* p = value.start
    cdef const char* end = value.start + value.length
    cdef const char* digits_end
    cdef uint64_t number = 0
    while p < end and is_digit(p[0]):
        p += 1
    digits_end = p
    p = skip_lws(p, end)
    if p == digits_end or p == end or skip_class(p, end, TOKEN) != end:
        return False
    if not span_to_uint(between(value.start, digits_end), 0x7FFFFFFF, &number):
        return False
    message.cseq = <uint32_t>number
    method[0] = between(p, end)
    return True


cdef inline uint16_t times_of(const Message* message, uint16_t header_id) noexcept nogil:
    return message.times[header_id]


cdef inline Span value_of(const Message* message, uint16_t header_id) noexcept nogil:
    # Only for a header that is there.
    return message.headers[message.first[header_id]].value


cdef inline void single_check(
    Message* message, int* verdict, uint16_t header_id, const char* missing, const char* duplicate
) noexcept nogil:
    if times_of(message, header_id) == 0:
        refuse(message, verdict, 400, missing)
    elif times_of(message, header_id) > 1:
        refuse(message, verdict, 400, duplicate)


cdef void headers_check(Message* message, int* verdict) noexcept nogil:
    # What RFC 3261 8.1.1 asks of every message, and 7.3.1 of headers that hold one value (checklist 14, 20).
    cdef Span method = nothing()
    cdef uint64_t number = 0
    if times_of(message, HEADER_VIA) == 0:
        refuse(message, verdict, 400, b"Missing Via")
    single_check(message, verdict, HEADER_FROM, b"Missing From", b"Duplicate From")
    single_check(message, verdict, HEADER_TO, b"Missing To", b"Duplicate To")
    single_check(message, verdict, HEADER_CALL_ID, b"Missing Call-ID", b"Duplicate Call-ID")
    if times_of(message, HEADER_CALL_ID) == 1 and value_of(message, HEADER_CALL_ID).length == 0:
        refuse(message, verdict, 400, b"Empty Call-ID")
    single_check(message, verdict, HEADER_CSEQ, b"Missing CSeq", b"Duplicate CSeq")
    if times_of(message, HEADER_CSEQ) == 1:
        if not cseq_read(message, value_of(message, HEADER_CSEQ), &method):
            refuse(message, verdict, 400, b"Bad CSeq")
        elif not message.is_request:
            message.method = method
            message.method_id = method_identify(method)
        elif not span_equal_span(method, message.method):
            refuse(message, verdict, 400, b"CSeq method does not match")
    if times_of(message, HEADER_MAX_FORWARDS) == 1:
        if span_to_uint(value_of(message, HEADER_MAX_FORWARDS), 255, &number):
            message.max_forwards = <uint32_t>number
        else:
            refuse(message, verdict, 400, b"Bad Max-Forwards")
    elif times_of(message, HEADER_MAX_FORWARDS) > 1:
        refuse(message, verdict, 400, b"Duplicate Max-Forwards")


cdef inline bint content_length_read(Span value, uint64_t* length) noexcept nogil:
    # Content-Length = 1*DIGIT. A number that no memory holds is as unreadable as a letter (RFC 3261 20.14).
    return span_to_uint(value, 0x7FFFFFFFFFFFFFFF, length)


cdef void body_cut(Message* message, const char* body, const char* end, int* verdict) noexcept nogil:
    # RFC 3261 18.3: without Content-Length the body is all that follows; behind the announced body nothing counts.
    cdef size_t rest = <size_t>(end - body)
    cdef uint64_t number = 0
    message.body = span_make(body, rest)
    if times_of(message, HEADER_CONTENT_LENGTH) == 0:
        return
    if times_of(message, HEADER_CONTENT_LENGTH) > 1:
        refuse(message, verdict, 400, b"Duplicate Content-Length")
    elif not content_length_read(value_of(message, HEADER_CONTENT_LENGTH), &number):
        refuse(message, verdict, 400, b"Bad Content-Length")
    else:
        message.has_content_length = True
        message.content_length = number
        if number > rest:
            refuse(message, verdict, 400, b"Body shorter than Content-Length")
        else:
            message.body.length = <size_t>number


cdef int message_scan(Message* message, const char* data, size_t length) noexcept nogil:
    cdef const char* p = data
    cdef const char* end
    cdef const char* line
    cdef Header* header
    cdef int verdict = 0
    cdef int status
    cdef uint8_t flaws = 0
    message_clear(message)
    message.data = data
    if length == 0:
        message.error = b"Empty message"
        return -1
    end = data + length
    # CR LF before the start line is no part of the message (RFC 3261 7.5).
    while end - p >= 2 and p[0] == c'\r' and p[1] == c'\n':
        p += 2
    message.data = p
    message.length = <size_t>(end - p)

    line = line_end(p, end, False, &flaws)
    message.start_line = between(p, end if line == NULL else line)
    # "/" is in no method, so nothing but a response begins like this.
    if end - p >= 4 and span_equal_nocase(span_make(p, 4), b"sip/", 4):
        status = status_line_read(message, p, end if line == NULL else line)
    else:
        status = request_line_read(message, p, end if line == NULL else line)
    if status == -1:
        message.error = b"No SIP start line"
        return -1
    if status == 505:
        refuse(message, &verdict, 505, b"Version Not Supported")
    elif status != 0:
        refuse(message, &verdict, 400, b"Bad request line")
    if flaws & FLAW_LINE:
        refuse(message, &verdict, 400, b"Bare CR or LF in the start line")
    elif flaws & FLAW_NUL:
        refuse(message, &verdict, 400, b"NUL in the start line")

    p = end if line == NULL else line + 2
    message.head = between(p, p)
    while True:
        if p == end:
            message.head.length = <size_t>(p - message.head.start)
            refuse(message, &verdict, 400, b"Head without its empty line")
            break
        if p[0] == c'\r' and end - p >= 2 and p[1] == c'\n':
            message.head.length = <size_t>(p - message.head.start)
            p += 2
            break
        if message.count == message.capacity and message_grow(message, max(<size_t>16, message.capacity * 2)) != 0:
            message.error = b"Out of memory"
            return -1
        header = &message.headers[message.count]
        flaws = 0
        p = header_read(p, end, header, &flaws)
        if flaws & FLAW_LINE:
            refuse(message, &verdict, 400, b"Bare CR or LF in a header")
        elif flaws & FLAW_NUL:
            refuse(message, &verdict, 400, b"NUL in a header")
        elif flaws & FLAW_NAME:
            refuse(message, &verdict, 400, b"Header line without a name and a colon")
        if p == NULL:
            p = end
        elif flaws == 0:
            if message.first[header.id] < 0:
                message.first[header.id] = <int32_t>message.count
            if message.times[header.id] < UINT16_MAX:
                message.times[header.id] += 1
            message.count += 1

    headers_check(message, &verdict)
    body_cut(message, p, end, &verdict)
    message.length = <size_t>(message.body.start - message.data) + message.body.length
    if verdict != 0 and not message.is_request:
        return -1
    return verdict


cdef int32_t message_next(const Message* message, uint16_t id, int32_t after) noexcept nogil:
    cdef size_t i = <size_t>(after + 1)
    if after < 0 and id < HEADER_ID_COUNT:
        return message.first[id]
    while i < message.count:
        if message.headers[i].id == id:
            return <int32_t>i
        i += 1
    return -1


# ---- Framing on a stream -----------------------------------------------------------------------------------------

# Top bit of *scanned: the rest of it is no longer how far the head was searched, but how long the message will be, so
# that a body that comes in many small reads does not have its head read again for each.
cdef enum:
    KNOWN_SHIFT = 8 * sizeof(size_t) - 1


cdef const char* head_end(const char* p, const char* end) noexcept nogil:
    # Behind the first CR LF CR LF in p..end, or NULL.
    while end - p >= 4:
        p = <const char*>memchr(p, c'\r', <size_t>(end - p - 3))
        if p == NULL:
            return NULL
        if p[1] == c'\n' and p[2] == c'\r' and p[3] == c'\n':
            return p + 4
        p += 1
    return NULL


cdef bint start_line_is_sip(const char* p, const char* end) noexcept nogil:
    # The same reading as message_scan's, so that the framer and the scanner never differ about it.
    cdef Message message
    cdef uint8_t flaws = 0
    cdef const char* line = line_end(p, end, False, &flaws)
    if line == NULL:
        return False
    if line - p >= 4 and span_equal_nocase(span_make(p, 4), b"sip/", 4):
        return status_line_read(&message, p, line) == 0
    return request_line_read(&message, p, line) >= 0


cdef int64_t message_frame(const char* data, size_t length, size_t limit, size_t* scanned) noexcept nogil:
    cdef size_t known = <size_t>1 << KNOWN_SHIFT
    cdef const char* p = data
    cdef const char* end
    cdef const char* body
    cdef Header header
    cdef uint64_t content_length = 0
    cdef uint8_t flaws
    cdef bint found = False
    cdef size_t total
    # No message is so long that its length would reach the mark, or the sign of the result.
    limit = min(limit, known - 1)
    if scanned[0] & known:
        total = scanned[0] & ~known
        return <int64_t>total if length >= total else 0
    if length == 0:
        return 0
    end = data + length
    while end - p >= 2 and p[0] == c'\r' and p[1] == c'\n':
        p += 2
    if p == end or (p[0] == c'\r' and end - p == 1):
        return 0 if length <= limit else -1
    # A method or "SIP" begins with a character of a token: what cannot be SIP is told without waiting for its head.
    if not is_class(p[0], TOKEN):
        return -1
    body = head_end(data + scanned[0] if data + scanned[0] > p else p, end)
    if body == NULL:
        if length > limit:
            return -1
        scanned[0] = length - 3 if length > 3 else 0
        return 0
    if <size_t>(body - data) > limit or not start_line_is_sip(p, body):
        return -1
    flaws = 0
    p = line_end(p, body, False, &flaws) + 2
    while p < body - 2:
        flaws = 0
        p = header_read(p, body, &header, &flaws)
        if p == NULL:
            return -1
        if header.id == HEADER_CONTENT_LENGTH:
            if found or flaws or not content_length_read(header.value, &content_length):
                return -1
            found = True
    if not found or content_length > limit - <size_t>(body - data):
        return -1
    total = <size_t>(body - data) + <size_t>content_length
    if length >= total:
        return <int64_t>total
    scanned[0] = total | known
    return 0


# ---- The readers -------------------------------------------------------------------------------------------------

cdef bint all_escaped(const char* p, const char* end, uint8_t bits) noexcept nogil:
    # Every byte of this class, or part of escaped = "%" HEXDIG HEXDIG.
    while p < end:
        if is_class(p[0], bits):
            p += 1
        elif p[0] == c'%' and end - p >= 3 and is_class(p[1], HEX) and is_class(p[2], HEX):
            p += 3
        else:
            return False
    return True


cdef const char* ipv6_end(const char* p, const char* end) noexcept nogil:
    # Behind a run of hex digits, ":" and "." with at least two colons, or NULL. Which address it is, and whether one
    # too many colon is in it (RFC 5118 4.10), is the business of who resolves it.
    cdef int colons = 0
    while p < end and (is_class(p[0], HEX) or p[0] == c':' or p[0] == c'.'):
        if p[0] == c':' and colons < 2:
            colons += 1
        p += 1
    return p if colons == 2 else NULL


cdef const char* host_end(const char* p, const char* end, bint* is_ipv6) noexcept nogil:
    # host = hostname / IPv4address / IPv6reference: behind it, or NULL                                   RFC 3261 25.1
    cdef const char* start = p
    is_ipv6[0] = False
    if p < end and p[0] == c'[':
        p = ipv6_end(p + 1, end)
        if p == NULL or p == end or p[0] != c']':
            return NULL
        is_ipv6[0] = True
        return p + 1
    while p < end and is_class(p[0], HOST):
        # No label is empty.
        if p[0] == c'.' and (p == start or (p - 1)[0] == c'.'):
            return NULL
        p += 1
    if p == start or start[0] == c'-':
        return NULL
    return p


cdef const char* port_end(const char* p, const char* end, uint32_t* port) noexcept nogil:
    # port = 1*DIGIT, 1..65535: behind it, or NULL.
    cdef const char* start = p
    cdef uint64_t number = 0
    while p < end and is_digit(p[0]):
        p += 1
    if not span_to_uint(between(start, p), 65535, &number) or number == 0:
        return NULL
    port[0] = <uint32_t>number
    return p


cdef int uri_parse(Span text, Uri* out) noexcept nogil:
    # SIP-URI = "sip:" [ userinfo ] hostport uri-parameters [ headers ]                           RFC 3261 19.1.1, 25.1
    # userinfo = ( user / telephone-subscriber ) [ ":" password ] "@"
    # The user may hold ";" and "?", and nothing behind it an "@": so the first "@" ends the userinfo.
    cdef const char* p = text.start
    cdef const char* end = text.start + text.length
    cdef const char* at
    cdef const char* colon
    cdef const char* mark
    memset(out, 0, sizeof(Uri))
    out.whole = text
    if text.length == 0 or not (c'a' <= lower(p[0]) <= c'z'):
        return -1
    p = skip_class(p, end, SCHEME)
    if p == end or p[0] != c':':
        return -1
    out.scheme = between(text.start, p)
    p += 1
    out.is_sips = span_equal_nocase(out.scheme, b"sips", 4)
    out.is_sip = out.is_sips or span_equal_nocase(out.scheme, b"sip", 3)
    if not out.is_sip:
        out.host = between(p, end)
        return 0
    at = <const char*>memchr(p, c'@', <size_t>(end - p)) if p < end else NULL
    if at != NULL:
        colon = p
        while colon < at and colon[0] != c':':
            colon += 1
        if colon == p or not all_escaped(p, colon, USER):
            return -1
        if colon < at and not all_escaped(colon + 1, at, PASSWORD):
            return -1
        out.user = between(p, colon)
        p = at + 1
    mark = p
    p = host_end(p, end, &out.host_is_ipv6)
    if p == NULL:
        return -1
    out.host = between(mark, p)
    if p < end and p[0] == c':':
        p = port_end(p + 1, end, &out.port)
        if p == NULL:
            return -1
    if p < end and p[0] == c';':
        mark = p
        while p < end and p[0] != c'?':
            p += 1
        if not all_escaped(mark, p, URI_PARAMETER):
            return -1
        out.parameters = between(mark, p)
    if p < end:
        if p[0] != c'?' or not all_escaped(p + 1, end, URI_HEADER):
            return -1
        out.headers = between(p, end)
    return 0


cdef const char* quoted_end(const char* p, const char* end) noexcept nogil:
    # p is at the opening quote: behind the closing one, or NULL.
    p += 1
    while p < end:
        if p[0] == c'"':
            return p + 1
        if p[0] == c'\\':
            # A quoted-pair holds no CR and no LF: a fold cannot be escaped away.
            p += 1
            if p == end or p[0] == c'\r' or p[0] == c'\n':
                return NULL
        p += 1
    return NULL


cdef const char* parameters_end(const char* p, const char* end, bint is_via) noexcept nogil:
    # *( SEMI generic-param );  generic-param = token [ EQUAL ( token / host / quoted-string ) ]          RFC 3261 25.1
    # Behind the last of them, blanks not included, or NULL. In a Via, received may be an IPv6 address without its
    # brackets (RFC 5118 4.5).
    cdef const char* name
    cdef const char* value
    cdef const char* q
    cdef Span name_span
    cdef bint is_ipv6
    while True:
        q = skip_lws(p, end)
        if q == end or q[0] != c';':
            return p
        name = skip_lws(q + 1, end)
        p = skip_class(name, end, TOKEN)
        if p == name:
            return NULL
        name_span = between(name, p)
        q = skip_lws(p, end)
        if q == end or q[0] != c'=':
            continue
        value = skip_lws(q + 1, end)
        if value == end:
            return NULL
        if value[0] == c'"':
            p = quoted_end(value, end)
        elif value[0] == c'[':
            p = host_end(value, end, &is_ipv6)
        else:
            p = skip_class(value, end, TOKEN)
            if p < end and p[0] == c':' and is_via and span_equal_nocase(name_span, b"received", 8):
                p = ipv6_end(value, end)
            elif p == value:
                return NULL
        if p == NULL:
            return NULL


cdef int value_close(const char* p, const char* end, Span* rest) noexcept nogil:
    # Behind one value of a list: the end, or a comma and at least one more.
    p = skip_lws(p, end)
    rest[0] = nothing()
    if p == end:
        return 0
    if p[0] != c',':
        return -1
    p = skip_lws(p + 1, end)
    if p == end:
        return -1
    rest[0] = between(p, end)
    return 0


cdef int name_addr_parse(Span text, NameAddr* out) noexcept nogil:
    # name-addr = [ display-name ] LAQUOT addr-spec RAQUOT;  display-name = *( token LWS ) / quoted-string
    # Without brackets, what follows the first ";" belongs to the header, and the URI holds no "," and no "?"
    # (RFC 3261 20.10).
    cdef const char* p
    cdef const char* end
    cdef const char* start
    cdef const char* uri
    memset(out, 0, sizeof(NameAddr))
    text = span_trim(text)
    if text.length == 0:
        return -1
    start = text.start
    end = start + text.length
    p = start
    if p[0] == c'"':
        p = quoted_end(p, end)
        if p == NULL:
            return -1
        out.display = between(start, p)
        p = skip_lws(p, end)
        if p == end or p[0] != c'<':
            return -1
    else:
        while p < end and (is_class(p[0], TOKEN) or is_lws(p[0])):
            p += 1
        if p < end and p[0] == c'<':
            out.display = span_trim(between(start, p))
    if p < end and p[0] == c'<':
        out.bracketed = True
        uri = p + 1
        p = uri
        while p < end and p[0] != c'>':
            if p[0] == c'<':
                return -1
            p += 1
        if p == end or p == uri:
            return -1
        out.uri = between(uri, p)
        p += 1
    else:
        p = skip_class(start, end, SCHEME)
        if not (c'a' <= lower(start[0]) <= c'z') or p == end or p[0] != c':':
            return -1
        while p < end and p[0] != c';' and p[0] != c',' and not is_lws(p[0]):
            if p[0] == c'?' or p[0] == c'<' or p[0] == c'>' or p[0] == c'"':
                return -1
            p += 1
        out.uri = between(start, p)
    uri = p
    p = parameters_end(p, end, False)
    if p == NULL:
        return -1
    if p != uri:
        uri = skip_lws(uri, end)
        out.parameters = between(uri, p)
    out.whole = between(start, p)
    return value_close(p, end, &out.rest)


cdef int via_parse(Span text, Via* out) noexcept nogil:
    # via-parm = sent-protocol LWS sent-by *( SEMI via-params )                                           RFC 3261 25.1
    # sent-protocol = "SIP" SLASH "2.0" SLASH transport;  sent-by = host [ COLON port ]; SLASH, COLON, SEMI and EQUAL may
    # have blanks around them. SIP.js drops a response whose sent-by changed in port or case: it is kept as written.
    cdef const char* p
    cdef const char* end
    cdef const char* mark
    cdef Span name
    cdef bint is_ipv6
    memset(out, 0, sizeof(Via))
    text = span_trim(text)
    if text.length == 0:
        return -1
    p = text.start
    end = p + text.length

    p = skip_class(p, end, TOKEN)
    if not span_equal_nocase(between(text.start, p), b"sip", 3):
        return -1
    p = skip_lws(p, end)
    if p == end or p[0] != c'/':
        return -1
    mark = skip_lws(p + 1, end)
    p = skip_class(mark, end, TOKEN)
    name = between(mark, p)
    if not span_equal(name, b"2.0", 3):
        return -1
    p = skip_lws(p, end)
    if p == end or p[0] != c'/':
        return -1
    mark = skip_lws(p + 1, end)
    p = skip_class(mark, end, TOKEN)
    out.transport = between(mark, p)
    mark = skip_lws(p, end)
    if out.transport.length == 0 or mark == p:
        return -1

    p = host_end(mark, end, &is_ipv6)
    if p == NULL:
        return -1
    out.host = between(mark, p)
    out.sent_by = out.host
    mark = skip_lws(p, end)
    if mark < end and mark[0] == c':':
        p = port_end(skip_lws(mark + 1, end), end, &out.port)
        if p == NULL:
            return -1
        out.sent_by.length = <size_t>(p - out.host.start)

    mark = p
    p = parameters_end(p, end, True)
    if p == NULL:
        return -1
    if p != mark:
        out.parameters = between(skip_lws(mark, end), p)
        if not parameter_find(out.parameters, b"branch", 6, &out.branch):
            out.branch = nothing()
        out.has_rport = parameter_find(out.parameters, b"rport", 5, &out.rport)
    out.whole = between(text.start, p)
    return value_close(p, end, &out.rest)


cdef bint parameter_next(const char** cursor, const char* end, Span* name, Span* value, bint* valued) noexcept nogil:
    # One parameter of ";a=b;c": True with its name, and its value as written, or False at the end. The text has been
    # checked by a reader above, or is a URI's; a ";" inside quotes parts nothing.
    cdef const char* p = cursor[0]
    cdef const char* start
    while p < end and (p[0] == c';' or is_lws(p[0])):
        p += 1
    if p >= end:
        return False
    start = p
    while p < end and p[0] != c';' and p[0] != c'=':
        p += 1
    name[0] = span_trim(between(start, p))
    valued[0] = p < end and p[0] == c'='
    value[0] = span_make(p, 0)
    if valued[0]:
        p += 1
        start = p
        while p < end and p[0] != c';':
            if p[0] == c'"':
                p = quoted_end(p, end)
                if p == NULL:
                    p = end
            else:
                p += 1
        value[0] = span_trim(between(start, p))
    cursor[0] = p
    return True


cdef bint parameter_find(Span parameters, const char* name, size_t length, Span* value) noexcept nogil:
    cdef const char* cursor = parameters.start
    cdef const char* end = parameters.start + parameters.length
    cdef Span found_name
    cdef Span found_value
    cdef bint valued
    if parameters.length == 0:
        return False
    while parameter_next(&cursor, end, &found_name, &found_value, &valued):
        if span_equal_nocase(found_name, name, length):
            value[0] = found_value
            return True
    return False


cdef inline int hex_digit(char c) noexcept nogil:
    # The character is known to be of class HEX.
    if is_digit(c):
        return c - c'0'
    return lower(c) - c'a' + 10


cdef Py_ssize_t unescape(Span text, char* out) noexcept nogil:
    cdef const char* p = text.start
    cdef const char* end = text.start + text.length
    cdef Py_ssize_t length = 0
    while p < end:
        if p[0] == c'%':
            if end - p < 3 or not is_class(p[1], HEX) or not is_class(p[2], HEX):
                return -1
            out[length] = <char>(hex_digit(p[1]) * 16 + hex_digit(p[2]))
            p += 3
        else:
            out[length] = p[0]
            p += 1
        length += 1
    return length


cdef bint list_has_token(Span value, const char* token, size_t length) noexcept nogil:
    cdef const char* p = value.start
    cdef const char* end = value.start + value.length
    cdef const char* start
    while p < end:
        start = p
        while p < end and p[0] != c',':
            p += 1
        if span_equal_nocase(span_trim(between(start, p)), token, length):
            return True
        p += 1
    return False


# ---- Doors for Python --------------------------------------------------------------------------------------------

cdef Span span_of(bytes data):
    return span_make(PyBytes_AS_STRING(data), <size_t>PyBytes_GET_SIZE(data))


cdef bytes bytes_of(Span span):
    return PyBytes_FromStringAndSize(span.start, <Py_ssize_t>span.length)


cdef str text_of(Span span):
    # Bytes that are no UTF-8 become lone surrogates, and the same bytes again when they are encoded so.
    if span.length == 0:
        return ""
    return PyUnicode_DecodeUTF8(span.start, <Py_ssize_t>span.length, b"surrogateescape")


cdef str unescaped_of(Span span):
    cdef bytes decoded = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>span.length)
    cdef Py_ssize_t length = unescape(span, PyBytes_AS_STRING(decoded))
    if length < 0:
        return text_of(span)
    return text_of(span_make(PyBytes_AS_STRING(decoded), <size_t>length))


cdef str unquoted_of(Span span):
    # quoted-string -> what it means: without its quotes, a quoted-pair as the character it stands for, a fold with the
    # blanks around it as one SP (RFC 3261 7.3.1). Anything else as it stands.
    cdef const char* p = span.start
    cdef const char* end = span.start + span.length
    cdef bytearray meant
    cdef bint quoted = span.length >= 2 and p[0] == c'"'
    if not quoted and (span.length == 0 or memchr(p, c'\r', span.length) == NULL):
        return text_of(span)
    if quoted:
        p += 1
        end -= 1
    meant = bytearray()
    while p < end:
        if quoted and p[0] == c'\\' and end - p > 1:
            p += 1
            meant.append(<uint8_t>p[0])
        elif p[0] == c'\r' or p[0] == c'\n':
            while meant and meant[len(meant) - 1] in b" \t":
                meant.pop()
            p = skip_lws(p, end)
            meant.append(0x20)
            continue
        else:
            meant.append(<uint8_t>p[0])
        p += 1
    return meant.decode("utf-8", "surrogateescape")


@cython.final
@cython.auto_pickle(False)
cdef class URI:
    """A URI, immutable; made by parse_uri. str() is the URI as it was sent, and two are equal when those texts are."""

    cdef readonly str scheme
    cdef readonly str user
    cdef readonly str host
    cdef readonly object port
    cdef readonly str headers
    cdef bytes _raw
    cdef Span _parameters        # points into _raw, which never changes

    def __cinit__(self):
        # Also an object that went around parse_uri has bytes to point at.
        self._raw = b""

    def __init__(self):
        raise TypeError("a URI is made by parse_uri")

    @property
    def parameters(self):
        cdef const char* cursor = self._parameters.start
        cdef const char* end = cursor + self._parameters.length
        cdef Span name
        cdef Span value
        cdef bint valued
        found = {}
        while parameter_next(&cursor, end, &name, &value, &valued):
            found.setdefault(unescaped_of(name).lower(), unescaped_of(value) if valued else None)
        return found

    def __str__(self):
        return text_of(span_of(self._raw))

    def __repr__(self):
        return f"<URI {str(self)!r}>"

    def __eq__(self, other):
        if not isinstance(other, URI):
            return NotImplemented
        return self._raw == (<URI>other)._raw

    def __hash__(self):
        return hash(self._raw)


def parse_uri(bytes data not None):
    """Read a URI (RFC 3261 19.1.1) -> URI. ValueError with a fixed text, never with what was sent."""
    cdef Uri uri
    cdef URI made
    if uri_parse(span_of(data), &uri) != 0:
        raise ValueError("not a SIP URI")
    made = URI.__new__(URI)
    made._raw = data
    made._parameters = uri.parameters
    made.scheme = text_of(uri.scheme).lower()
    made.user = unescaped_of(uri.user) if uri.user.length > 0 else None
    made.host = text_of(uri.host)
    made.port = uri.port if uri.port != 0 else None
    made.headers = text_of(span_make(uri.headers.start + 1, uri.headers.length - 1)) if uri.headers.length > 0 else ""
    return made


@cython.auto_pickle(False)
cdef class _NameAddr:
    """One value of From, To, Contact, Route and their like, immutable; made by parse_name_addrs."""

    cdef readonly str display
    cdef readonly bytes uri
    cdef readonly bytes raw
    cdef bytes _parameters

    def __cinit__(self):
        self._parameters = b""

    def __init__(self):
        raise TypeError("a NameAddr is made by parse_name_addrs")

    @property
    def parameters(self):
        cdef Span text = span_of(self._parameters)
        cdef const char* cursor = text.start
        cdef const char* end = text.start + text.length
        cdef Span name
        cdef Span value
        cdef bint valued
        found = {}
        while parameter_next(&cursor, end, &name, &value, &valued):
            found.setdefault(text_of(name).lower(), unquoted_of(value) if valued else None)
        return found

    def __repr__(self):
        return f"<NameAddr {self.raw!r}>"


# In this file NameAddr is the struct of the contract, so the class of that name is made where only Python sees it.
_name_addr_type = type("NameAddr", (_NameAddr,), {"__slots__": (), "__module__": __name__, "__doc__": _NameAddr.__doc__})
globals()["NameAddr"] = _name_addr_type


def parse_name_addrs(bytes value not None):
    """Read a comma-separated list of name-addr or addr-spec (RFC 3261 20.10) -> list, never empty. ValueError."""
    cdef Span rest = span_of(value)
    cdef NameAddr one
    cdef _NameAddr made
    found = []
    while rest.start != NULL:
        if name_addr_parse(rest, &one) != 0:
            raise ValueError("not a list of name-addrs")
        made = _NameAddr.__new__(_name_addr_type)
        made.display = unquoted_of(one.display)
        made.uri = bytes_of(one.uri)
        made.raw = bytes_of(one.whole)
        made._parameters = bytes_of(one.parameters)
        found.append(made)
        rest = one.rest
    return found


def parse_headers(bytes message not None):
    """Read one SIP message -> (start line, [(name, value), ...], body). ValueError with the reason, a fixed text."""
    cdef Message scanned
    cdef size_t i
    if message_init(&scanned, 32) != 0:
        raise MemoryError
    try:
        if message_scan(&scanned, PyBytes_AS_STRING(message), <size_t>PyBytes_GET_SIZE(message)) != 0:
            raise ValueError((<bytes>scanned.error).decode("ascii"))
        headers = [
            (bytes_of(scanned.headers[i].name), bytes_of(scanned.headers[i].value)) for i in range(scanned.count)
        ]
        return bytes_of(scanned.start_line), headers, bytes_of(scanned.body)
    finally:
        message_free(&scanned)
