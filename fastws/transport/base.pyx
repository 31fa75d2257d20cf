# Transport and Receiver: what every way in or out has in common. No protocol lives here.

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.buffer cimport PyBuffer_FillInfo
from libc.stddef cimport size_t
from libc.stdint cimport uint64_t
from libc.stdlib cimport free, malloc

from fastws.transport.address cimport Address


cdef class Transport:

    cdef char* reserve(self, size_t length, const Address* to) noexcept:
        return NULL

    cdef void commit(self) noexcept:
        pass

    cdef void finish(self, int code, bytes reason, int terminator) noexcept:
        pass

    cdef void resume(self) noexcept:
        pass

    cdef void ping(self) noexcept:
        pass


cdef class Receiver:

    cdef bint opened(self, Transport transport, object source, object local, dict attributes, str host) except -1:
        raise NotImplementedError

    cdef bint received(self, Transport transport, const char* data, size_t length, const Address* source) except -1:
        raise NotImplementedError

    cdef void heard(self, Transport transport, bint partial) noexcept:
        pass

    cdef int closed(self, Transport transport, int terminator, int code, bytes reason) except -1:
        raise NotImplementedError

    cdef int note(self, Transport transport, str kind, str text, const Address* source) except -1:
        return 0

    cdef uint64_t clock_ms(self) noexcept:
        return 0


cdef class ReadBuffer:

    def __cinit__(self, size_t size=262144):
        # malloc, not calloc: pages that no read ever fills are never taken from the system.
        self.data = <char*>malloc(size)
        if self.data == NULL:
            raise MemoryError
        self.size = size
        self.view = memoryview(self)

    def __dealloc__(self):
        free(self.data)

    def __getbuffer__(self, Py_buffer* buffer, int flags):
        PyBuffer_FillInfo(buffer, self, self.data, <Py_ssize_t>self.size, 0, flags)

    def __releasebuffer__(self, Py_buffer* buffer):
        pass


cdef class LocalTransport(Transport):
    """A transport whose far end is ``far_end(message: bytes) -> list[bytes]``. What is sent is handed over in the next
    turn of the loop, so that the far end may answer without the core being entered twice."""

    def __init__(self, loop, far_end, Receiver receiver not None):
        self.loop = loop
        self.far_end = far_end
        self.receiver = receiver
        self.kind = KIND_LOCAL
        self.queue = []
        self.scheduled = False

    cdef char* reserve(self, size_t length, const Address* to) noexcept:
        try:
            self.pending = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>length)
        except MemoryError:
            return NULL
        return PyBytes_AS_STRING(self.pending)

    cdef void commit(self) noexcept:
        self.queue.append(self.pending)
        self.pending = None
        if not self.scheduled:
            self.scheduled = True
            self.loop.call_soon(self._hand_over)

    def _hand_over(self):
        cdef bytes answer
        self.scheduled = False
        queue, self.queue = self.queue, []
        for message in queue:
            try:
                for answer in self.far_end(message):
                    self.receiver.received(self, PyBytes_AS_STRING(answer), <size_t>PyBytes_GET_SIZE(answer), NULL)
            except Exception as error:
                # One message must not take the others of this turn with it.
                self.loop.call_exception_handler({"message": "a local message failed", "exception": error})
