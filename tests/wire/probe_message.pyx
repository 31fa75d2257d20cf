# Doors of the tests to fastws/wire/message: one call each, no judgement. Every reader is fed a copy of exactly the size
# of its input, so that AddressSanitizer sees a read of one byte too many.
# A span comes back as (start, end), offsets into the bytes that were handed in, or None where it points nowhere.

from libc.stddef cimport size_t
from libc.stdint cimport int32_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from fastws.wire cimport message as m
from fastws.wire.span cimport Span, span_make

HEADERS = {
    "other": <int>m.HEADER_OTHER, "via": <int>m.HEADER_VIA, "from": <int>m.HEADER_FROM, "to": <int>m.HEADER_TO,
    "call-id": <int>m.HEADER_CALL_ID, "cseq": <int>m.HEADER_CSEQ, "max-forwards": <int>m.HEADER_MAX_FORWARDS,
    "content-length": <int>m.HEADER_CONTENT_LENGTH, "content-type": <int>m.HEADER_CONTENT_TYPE,
    "contact": <int>m.HEADER_CONTACT, "route": <int>m.HEADER_ROUTE, "record-route": <int>m.HEADER_RECORD_ROUTE,
    "path": <int>m.HEADER_PATH, "supported": <int>m.HEADER_SUPPORTED, "require": <int>m.HEADER_REQUIRE,
    "proxy-require": <int>m.HEADER_PROXY_REQUIRE, "expires": <int>m.HEADER_EXPIRES, "event": <int>m.HEADER_EVENT,
    "p-asserted-identity": <int>m.HEADER_P_ASSERTED_IDENTITY,
    "p-preferred-identity": <int>m.HEADER_P_PREFERRED_IDENTITY, "privacy": <int>m.HEADER_PRIVACY,
    "authorization": <int>m.HEADER_AUTHORIZATION, "proxy-authorization": <int>m.HEADER_PROXY_AUTHORIZATION,
}
HEADER_ID_COUNT = <int>m.HEADER_ID_COUNT
METHODS = {
    "INVITE": <int>m.METHOD_INVITE, "ACK": <int>m.METHOD_ACK, "BYE": <int>m.METHOD_BYE, "CANCEL": <int>m.METHOD_CANCEL,
    "REGISTER": <int>m.METHOD_REGISTER, "OPTIONS": <int>m.METHOD_OPTIONS, "MESSAGE": <int>m.METHOD_MESSAGE,
    "SUBSCRIBE": <int>m.METHOD_SUBSCRIBE, "NOTIFY": <int>m.METHOD_NOTIFY, "REFER": <int>m.METHOD_REFER,
    "INFO": <int>m.METHOD_INFO, "UPDATE": <int>m.METHOD_UPDATE, "PRACK": <int>m.METHOD_PRACK,
    "PUBLISH": <int>m.METHOD_PUBLISH, "other": <int>m.METHOD_OTHER,
}


cdef class Copy:
    cdef char* start
    cdef size_t length

    def __cinit__(self, bytes data not None):
        self.length = <size_t>len(data)
        self.start = <char*>malloc(self.length)
        if self.start == NULL and self.length > 0:
            raise MemoryError
        if self.length > 0:
            memcpy(self.start, <const char*>data, self.length)

    def __dealloc__(self):
        free(self.start)

    cdef Span span(self):
        return span_make(self.start, self.length)

    cdef object place(self, Span span):
        if span.start == NULL:
            return None
        return (span.start - self.start, span.start - self.start + <Py_ssize_t>span.length)


cdef dict report(Copy copy, m.Message* message, int status):
    cdef size_t i
    headers = [
        {
            "line": copy.place(message.headers[i].line),
            "name": copy.place(message.headers[i].name),
            "value": copy.place(message.headers[i].value),
            "id": message.headers[i].id,
        }
        for i in range(message.count)
    ]
    return {
        "status": status,
        "error": None if message.error == NULL else (<bytes>message.error).decode("ascii"),
        "data": copy.place(span_make(message.data, message.length)),
        "is_request": bool(message.is_request),
        "method_id": message.method_id,
        "code": message.status,
        "start_line": copy.place(message.start_line),
        "method": copy.place(message.method),
        "uri": copy.place(message.uri),
        "version": copy.place(message.version),
        "reason": copy.place(message.reason),
        "head": copy.place(message.head),
        "body": copy.place(message.body),
        "headers": headers,
        "first": [message.first[i] for i in range(<size_t>m.HEADER_ID_COUNT)],
        "times": [message.times[i] for i in range(<size_t>m.HEADER_ID_COUNT)],
        "has_content_length": bool(message.has_content_length),
        "content_length": message.content_length,
        "cseq": message.cseq,
        "max_forwards": message.max_forwards,
    }


def scan(bytes data, size_t capacity=16):
    """message_init, message_scan, all that it found, message_free."""
    cdef Copy copy = Copy(data)
    cdef m.Message message
    cdef int status
    if m.message_init(&message, capacity) != 0:
        raise MemoryError
    try:
        with nogil:
            status = m.message_scan(&message, copy.start, copy.length)
        return report(copy, &message, status)
    finally:
        m.message_free(&message)


cdef class Scanner:
    """One Message used again and again, as a connection does."""

    cdef m.Message message

    def __cinit__(self, size_t capacity=32):
        if m.message_init(&self.message, capacity) != 0:
            raise MemoryError

    def __dealloc__(self):
        m.message_free(&self.message)

    def scan(self, bytes data):
        """message_scan alone, for timing and for reuse."""
        return m.message_scan(&self.message, <const char*>data, <size_t>len(data))

    def report(self, bytes data):
        cdef Copy copy = Copy(data)
        cdef int status = m.message_scan(&self.message, copy.start, copy.length)
        return report(copy, &self.message, status)

    def count(self):
        return self.message.count

    def next(self, int header_id, int32_t after):
        return m.message_next(&self.message, <unsigned short>header_id, after)


def init_fails(size_t capacity):
    """True if message_init says that there is no memory for so many headers; nothing is kept."""
    cdef m.Message message
    cdef int result = m.message_init(&message, capacity)
    m.message_free(&message)
    return result == -1


def frame(bytes data, size_t limit, size_t scanned=0):
    """message_frame: (its result, what it left in *scanned)."""
    cdef Copy copy = Copy(data)
    result = m.message_frame(copy.start, copy.length, limit, &scanned)
    return result, scanned


def uri(bytes text):
    cdef Copy copy = Copy(text)
    cdef m.Uri out
    cdef int result = m.uri_parse(copy.span(), &out)
    if result != 0:
        assert result == -1
        return None
    return {
        "whole": copy.place(out.whole), "scheme": copy.place(out.scheme), "is_sip": bool(out.is_sip),
        "is_sips": bool(out.is_sips), "user": copy.place(out.user), "host": copy.place(out.host),
        "host_is_ipv6": bool(out.host_is_ipv6), "port": out.port, "parameters": copy.place(out.parameters),
        "headers": copy.place(out.headers),
    }


def name_addr(bytes text):
    cdef Copy copy = Copy(text)
    cdef m.NameAddr out
    cdef int result = m.name_addr_parse(copy.span(), &out)
    if result != 0:
        assert result == -1
        return None
    return {
        "display": copy.place(out.display), "uri": copy.place(out.uri), "parameters": copy.place(out.parameters),
        "bracketed": bool(out.bracketed), "whole": copy.place(out.whole), "rest": copy.place(out.rest),
    }


def via(bytes text):
    cdef Copy copy = Copy(text)
    cdef m.Via out
    cdef int result = m.via_parse(copy.span(), &out)
    if result != 0:
        assert result == -1
        return None
    return {
        "whole": copy.place(out.whole), "transport": copy.place(out.transport), "sent_by": copy.place(out.sent_by),
        "host": copy.place(out.host), "port": out.port, "parameters": copy.place(out.parameters),
        "branch": copy.place(out.branch), "has_rport": bool(out.has_rport), "rport": copy.place(out.rport),
        "rest": copy.place(out.rest),
    }


def parameter_find(bytes parameters, bytes name):
    """The value as written, or None where the parameter is not there."""
    cdef Copy copy = Copy(parameters)
    cdef Span value
    if not m.parameter_find(copy.span(), <const char*>name, <size_t>len(name), &value):
        return None
    start, end = copy.place(value)
    return parameters[start:end]


def unescape(bytes text):
    cdef Copy copy = Copy(text)
    cdef Copy out = Copy(text)
    cdef Py_ssize_t length = m.unescape(copy.span(), out.start)
    return None if length < 0 else out.start[:length]


def list_has_token(bytes value, bytes token):
    cdef Copy copy = Copy(value)
    return bool(m.list_has_token(copy.span(), <const char*>token, <size_t>len(token)))


def method_identify(bytes method):
    cdef Copy copy = Copy(method)
    return m.method_identify(copy.span())


def header_identify(bytes name):
    cdef Copy copy = Copy(name)
    return m.header_identify(copy.span())


# For timing: the reader alone, on bytes that stay where they are. 0 or -1.

def time_uri(bytes text):
    cdef m.Uri out
    return m.uri_parse(span_make(<const char*>text, <size_t>len(text)), &out)


def time_via(bytes text):
    cdef m.Via out
    return m.via_parse(span_make(<const char*>text, <size_t>len(text)), &out)


def time_name_addr(bytes text):
    cdef m.NameAddr out
    return m.name_addr_parse(span_make(<const char*>text, <size_t>len(text)), &out)


def time_frame(bytes data, size_t limit):
    cdef size_t scanned = 0
    return m.message_frame(<const char*>data, <size_t>len(data), limit, &scanned)
