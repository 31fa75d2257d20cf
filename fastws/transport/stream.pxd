# RFC 3261 18.3: SIP over TCP on the SIP side.

from libc.stddef cimport size_t
from libc.stdint cimport uint64_t

from fastws.transport.address cimport Address
from fastws.transport.base cimport ReadBuffer, Receiver, Transport

cdef class StreamConnection(Transport):
    cdef ReadBuffer buffer
    cdef object transport                # uvloop's
    cdef object loop
    cdef list turn                       # what this loop turn sends
    cdef size_t turn_bytes
    cdef bint scheduled
    cdef object on_lost                  # called with this connection when it has ended, or None
    cdef object on_made                  # called with this connection when it stands, or None
    cdef char* rest                      # owned: a message that has not come whole
    cdef size_t rest_length
    cdef size_t rest_capacity
    cdef size_t scanned                  # see message_frame
    cdef uint64_t rest_since_ms
    cdef size_t max_message_bytes
    cdef size_t max_queue_bytes
    cdef size_t unchecked
    cdef int crlfs                       # CR LFs since the last message, that is halves of a ping
    cdef bytes out
    cdef readonly bint open
    cdef Address remote

    cdef int eat(self, char* data, size_t length, size_t* used) except -1
    cdef bint keep(self, const char* data, size_t length) except -1
    cdef void drop_rest(self) noexcept
    cdef void abort(self) noexcept

cdef class StreamUpstream(Transport):
    cdef object loop
    cdef object make
    cdef object host
    cdef object port
    cdef object on_failed
    cdef object on_ended
    cdef StreamConnection current
    cdef object task
    cdef object timer
    cdef list queue
    cdef size_t queue_bytes
    cdef size_t max_queue_bytes
    cdef double connect_timeout
    cdef double delay                    # seconds until the next try
    cdef uint64_t connected_ms           # since when the current connection stands
    cdef bint down                       # the last try failed: no queue until one succeeds
    cdef bint closed
    cdef bytes out
    cdef StreamConnection through
