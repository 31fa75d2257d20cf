# One-line Python doors to the cdef functions of wire/frame, for tests and benches only. Nothing is decided here.

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from fastws.wire.frame cimport (
    FRAME_CLOSE,
    FRAME_ERROR,
    FRAME_MESSAGE,
    FRAME_MORE,
    FRAME_PING,
    FRAME_PONG,
    FrameEvent,
    FrameReader,
    close_code_valid as c_close_code_valid,
    frame_free,
    frame_header_length,
    frame_header_write,
    frame_init,
    frame_next,
    frame_partial,
    frame_unmask,
    utf8_valid as c_utf8_valid,
)

NAMES = {
    FRAME_MESSAGE: "message", FRAME_PING: "ping", FRAME_PONG: "pong", FRAME_CLOSE: "close", FRAME_ERROR: "error",
}


cdef class Reader:
    """A FrameReader whose buffers are exactly as long as what is fed, so that a sanitizer sees a byte too far."""

    cdef FrameReader reader
    cdef readonly size_t cursor          # where the last feed ended
    cdef readonly set rest_capacities    # every capacity that rest ever had between two calls, without 0
    cdef readonly set parts_capacities
    cdef char* buffer                    # for read(): taken once, so that a bench times frame_next and a memcpy
    cdef size_t buffer_length

    def __cinit__(self, uint64_t limit=65536, size_t buffer_length=0):
        frame_init(&self.reader, limit)
        self.rest_capacities = set()
        self.parts_capacities = set()
        self.buffer_length = buffer_length
        self.buffer = <char*> malloc(buffer_length) if buffer_length else NULL

    def __dealloc__(self):
        frame_free(&self.reader)
        free(self.buffer)

    def feed(self, bytes data):
        """All events in data, as (kind, opcode, close code, payload); frame_next is called until FRAME_MORE."""
        cdef size_t length = PyBytes_GET_SIZE(data)
        cdef char* buffer = <char*> malloc(length) if length else NULL
        cdef FrameEvent event
        cdef list events = []
        if length:
            memcpy(buffer, PyBytes_AS_STRING(data), length)
        self.cursor = 0
        try:
            while frame_next(&self.reader, buffer, length, &self.cursor, &event) != FRAME_MORE:
                self.note()
                events.append((NAMES[event.kind], event.opcode, event.close_code, event.payload[:event.length]))
            self.note()
        finally:
            free(buffer)
        return events

    cdef void note(self):
        if self.reader.rest_capacity:
            self.rest_capacities.add(self.reader.rest_capacity)
        if self.reader.parts_capacity:
            self.parts_capacities.add(self.reader.parts_capacity)

    def feed_once(self, bytes data):
        """The kind and the payload of one frame_next, nothing released yet; data is at most buffer_length long."""
        cdef FrameEvent event
        cdef size_t length = PyBytes_GET_SIZE(data)
        assert length <= self.buffer_length
        memcpy(self.buffer, PyBytes_AS_STRING(data), length)
        self.cursor = 0
        frame_next(&self.reader, self.buffer, length, &self.cursor, &event)
        return NAMES.get(event.kind, "more"), event.payload[:event.length] if event.payload else b""

    def read(self, bytes data):
        """Copy data to the buffer and read all of it: the sum of the payloads' lengths. For the bench."""
        cdef FrameEvent event
        cdef size_t cursor = 0, total = 0, length = PyBytes_GET_SIZE(data)
        memcpy(self.buffer, PyBytes_AS_STRING(data), length)
        while frame_next(&self.reader, self.buffer, length, &cursor, &event) != FRAME_MORE:
            total += event.length
        return total

    def free(self):
        frame_free(&self.reader)

    @property
    def owned(self):
        """Bytes of memory that the reader owns."""
        assert (self.reader.rest == NULL) == (self.reader.rest_capacity == 0)
        assert (self.reader.parts == NULL) == (self.reader.parts_capacity == 0)
        return self.reader.rest_capacity + self.reader.parts_capacity

    @property
    def partial(self):
        return bool(frame_partial(&self.reader))

    @property
    def failed(self):
        return bool(self.reader.failed)


def unmask(bytes data, bytes mask, size_t offset=0, size_t shift=0):
    """data unmasked in a buffer of its own, `shift` bytes behind an aligned address and not a byte longer."""
    cdef size_t length = PyBytes_GET_SIZE(data)
    cdef char* buffer = <char*> malloc(shift + length + (shift + length == 0))
    try:
        memcpy(buffer + shift, PyBytes_AS_STRING(data), length)
        frame_unmask(buffer + shift, length, <const uint8_t*> PyBytes_AS_STRING(mask), offset)
        return buffer[shift:shift + length]
    finally:
        free(buffer)


def unmask_in_place(bytearray data, bytes mask):
    frame_unmask(data, len(data), <const uint8_t*> PyBytes_AS_STRING(mask), 0)


def header_length(uint64_t payload_length):
    return frame_header_length(payload_length)


def header_write(uint8_t opcode, uint64_t payload_length):
    """The header in a buffer of exactly the length that frame_header_length promised."""
    cdef size_t length = frame_header_length(payload_length)
    cdef char* out = <char*> malloc(length)
    try:
        assert frame_header_write(out, opcode, payload_length) == length
        return out[:length]
    finally:
        free(out)


def utf8_valid(bytes data):
    return bool(c_utf8_valid(PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data)))


def utf8_valid_exact(bytes data):
    """The same on a copy that ends where the data ends: without the NUL that stands behind every bytes object."""
    cdef size_t length = PyBytes_GET_SIZE(data)
    cdef char* copy = <char*> malloc(length + (length == 0))
    try:
        memcpy(copy, PyBytes_AS_STRING(data), length)
        return bool(c_utf8_valid(copy, length))
    finally:
        free(copy)


def close_code_valid(uint32_t code):
    return bool(c_close_code_valid(code))
