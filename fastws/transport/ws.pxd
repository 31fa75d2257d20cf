# RFC 6455 and RFC 7118, the server's side: one connection of a client.

from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from fastws.transport.base cimport ReadBuffer, Receiver, Transport
from fastws.wire.frame cimport FrameReader

cdef enum WsState:
    WS_HEAD = 0                  # the HTTP head is being read, or policy decides
    WS_OPEN = 1
    WS_CLOSING = 2               # our last bytes are on their way; what comes is thrown away
    WS_GONE = 3

cdef class WsListener:
    cdef Receiver receiver
    cdef ReadBuffer buffer
    cdef object admission
    cdef object loop
    cdef bint secure
    cdef uint64_t max_message_bytes
    cdef size_t max_queue_bytes
    cdef uint64_t head_timeout_ms
    cdef uint32_t control_limit          # control frames a client may send within a second
    cdef dict waiting                    # connections in WS_HEAD -> deadline in ms, in the order of arrival
    cdef dict closing                    # connections in WS_CLOSING -> deadline in ms
    cdef readonly uint32_t connections   # that exist, in any state

cdef class WsConnection(Transport):
    cdef WsListener listener
    cdef object transport                # uvloop's
    cdef FrameReader frames
    cdef uint8_t state                   # WsState
    cdef bint held                       # stopped reading until policy has decided
    cdef bint admitted                   # a slot was given: closed() is owed
    cdef bint overloaded                 # the queue passed its limit
    cdef uint32_t control_frames         # since control_ms
    cdef uint64_t control_ms             # when the second began in which they are counted
    cdef size_t unchecked                # bytes written since the queue was last looked at
    cdef char* stash                     # owned: what came while held
    cdef size_t stash_length
    cdef bytes out                       # reserved, not yet committed
    cdef size_t out_header
    cdef readonly object source
    cdef readonly object local
    cdef readonly object tls
    cdef public object reader            # the HeadReader, while in WS_HEAD
    cdef public object task              # an async on_handshake

    cdef int eat(self, char* data, size_t length) except -1
    cdef int keep(self, const char* data, size_t length) except -1
    cdef int message(self, char* data, size_t length) except -1
    cdef void write(self, bytes data) noexcept
    cdef void check_queue(self) noexcept
    cdef void send_control(self, uint8_t opcode, const char* payload, size_t length) noexcept
    cdef void end(self, int terminator, int code, bytes reason, bint tell) noexcept
    cdef void linger(self) noexcept
    cdef bint flooded(self) noexcept
