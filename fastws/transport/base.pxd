# What a transport and the core know of each other, and no more.

from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from fastws.transport.address cimport Address

cdef enum TransportKind:
    KIND_WS = 1                  # a client's WebSocket
    KIND_WSS = 2
    KIND_UDP = 3
    KIND_TCP = 4
    KIND_LOCAL = 5               # the far end is a Python callable of this process

cdef enum TerminatorId:
    TERMINATOR_CLIENT = 0        # it sent a close frame
    TERMINATOR_POLICY = 1        # connection.close, reject(close=True), or the identity check
    TERMINATOR_OPERATOR = 2
    TERMINATOR_TIMEOUT = 3       # no answer to a ping, or a message never finished
    TERMINATOR_PROTOCOL = 4      # it broke RFC 6455
    TERMINATOR_NETWORK = 5       # reset, or the end of the stream without a close frame
    TERMINATOR_OVERLOAD = 6      # it did not read what was sent to it
    TERMINATOR_SHUTDOWN = 7

cdef class Transport:
    cdef public uint32_t slot            # of a client: its place in the connection table
    cdef public uint32_t generation      # 0: it has none (yet, or any more)
    cdef uint32_t peer                   # of the SIP side: its entry in the core's table of peers
    cdef uint8_t kind                    # TransportKind
    cdef bint asking                     # of a client: an async policy thinks about its last message
    cdef Receiver receiver

    # Room for one message of exactly `length` bytes, to be filled and then committed before anything else is reserved;
    # NULL if it cannot be taken: gone, not connected, queue full, or no memory. `to` is looked at by UDP only.
    cdef char* reserve(self, size_t length, const Address* to) noexcept
    # Send what was reserved. Never blocks; may end the transport (a full queue), never calls back into the receiver
    # with a message.
    cdef void commit(self) noexcept
    # End it with a WebSocket close code (1000..4999) and a reason (UTF-8, cut to 123 bytes). May be called twice.
    cdef void finish(self, int code, bytes reason, int terminator) noexcept
    # Go on reading after received() has returned True.
    cdef void resume(self) noexcept
    # See whether the other end still lives.
    cdef void ping(self) noexcept

cdef class Receiver:
    # A client was admitted: give it a slot. False: the table is full.
    cdef bint opened(self, Transport transport, object source, object local, dict attributes, str host) except -1
    # One SIP message; `source` is the sender's address for UDP, else NULL. `data` may be overwritten after the return.
    # True: the transport must stop reading, and keep what follows, until resume() is called on it.
    cdef bint received(self, Transport transport, const char* data, size_t length, const Address* source) except -1
    # Bytes of any kind came from a client.
    cdef void heard(self, Transport transport, bint partial) noexcept
    # The transport has ended; called once for each that was opened.
    cdef int closed(self, Transport transport, int terminator, int code, bytes reason) except -1
    # Something worth a line in the log: a static kind and a static text; `source` may be NULL.
    cdef int note(self, Transport transport, str kind, str text, const Address* source) except -1
    # Milliseconds of a clock that never goes back.
    cdef uint64_t clock_ms(self) noexcept

# The read buffer that all connections of a worker share: what a read left in it is used up before the next read.
cdef class ReadBuffer:
    cdef char* data
    cdef size_t size                     # bytes
    cdef object view                     # the memoryview that uvloop reads into

# The far end is a callable: bytes -> list of bytes to be received from it.
cdef class LocalTransport(Transport):
    cdef object loop
    cdef object far_end
    cdef list queue
    cdef bytes pending
    cdef bint scheduled
