# One UDP socket: recvmmsg behind the loop's reader, and one sendmmsg for all that a loop turn wrote. Messages are built
# straight into the batch. Nothing is repeated here: that is the transactions' business.

from libc.errno cimport EAGAIN, EINTR, ENOBUFS, errno
from libc.stddef cimport size_t
from libc.stdint cimport uint32_t
from libc.stdlib cimport free, malloc

from fastws.transport.address cimport (
    Address,
    address_from_sockaddr,
    address_to_sockaddr,
    sockaddr,
    sockaddr_in6,
)
from fastws.transport.base cimport KIND_UDP, Receiver, Transport

import socket as socketlib


cdef class UdpTransport(Transport):
    """Datagrams of one bound, non-blocking socket. It owns the socket: :meth:`close` closes it."""

    def __init__(self, loop, socket, Receiver receiver not None):
        cdef unsigned int i
        self.loop = loop
        self.socket = socket
        self.fd = socket.fileno()
        self.receiver = receiver
        self.kind = KIND_UDP
        self.in_data = <char*>malloc(UDP_BATCH * UDP_STRIDE)
        self.out_data = <char*>malloc(UDP_ARENA)
        if self.in_data == NULL or self.out_data == NULL:
            raise MemoryError
        for i in range(<unsigned int>UDP_BATCH):
            self.in_vectors[i].iov_base = self.in_data + i * UDP_STRIDE
            self.in_vectors[i].iov_len = UDP_STRIDE
            self.in_messages[i].msg_hdr.msg_iov = &self.in_vectors[i]
            self.in_messages[i].msg_hdr.msg_iovlen = 1
            self.in_messages[i].msg_hdr.msg_name = &self.in_names[i]
            self.out_messages[i].msg_hdr.msg_iov = &self.out_vectors[i]
            self.out_messages[i].msg_hdr.msg_iovlen = 1
            self.out_messages[i].msg_hdr.msg_name = &self.out_names[i]
        for option in (socketlib.SO_RCVBUF, socketlib.SO_SNDBUF):
            # The system cuts this to its own limit; a burst of registrations needs more than the default.
            socket.setsockopt(socketlib.SOL_SOCKET, option, 4 << 20)
        loop.add_reader(self.fd, self._readable)
        self.open = True

    def __dealloc__(self):
        free(self.in_data)
        free(self.out_data)

    def close(self):
        """Send what waits and close the socket."""
        if self.open:
            self.flush()
            self.open = False
            self.loop.remove_reader(self.fd)
            if self.writing:
                self.loop.remove_writer(self.fd)
            self.socket.close()

    @property
    def bound(self):
        """(address, port) of the socket."""
        return self.socket.getsockname()[:2]

    def _readable(self):
        cdef Address source
        cdef int i, count
        cdef size_t length
        cdef int rounds = 0
        # A few full batches at most, so that a flood here does not starve the clients.
        while self.open and rounds < 4:
            for i in range(UDP_BATCH):
                self.in_messages[i].msg_hdr.msg_namelen = sizeof(sockaddr_in6)
            count = recvmmsg(self.fd, self.in_messages, UDP_BATCH, MSG_DONTWAIT, NULL)
            if count <= 0:
                return
            for i in range(count):
                self.received += 1
                length = self.in_messages[i].msg_len
                address_from_sockaddr(&source, <sockaddr*>&self.in_names[i])
                if self.in_messages[i].msg_hdr.msg_flags & MSG_TRUNC:
                    self.receiver.note(self, "truncated", "datagram longer than 65,536 bytes dropped", &source)
                    continue
                try:
                    self.receiver.received(self, self.in_data + i * UDP_STRIDE, length, &source)
                except Exception as error:
                    # One datagram must not take the rest of its batch with it.
                    self.loop.call_exception_handler({"message": "a datagram failed", "exception": error})
            if count < UDP_BATCH:
                return
            rounds += 1

    cdef char* reserve(self, size_t length, const Address* to) noexcept:
        cdef unsigned int n
        if not self.open or length > UDP_MAX or to == NULL or to.family == 0:
            return NULL
        if self.out_count == UDP_BATCH or self.out_used + length > UDP_ARENA:
            self.flush()
            if self.out_count == UDP_BATCH or self.out_used + length > UDP_ARENA:
                # The system takes no more just now and the batch is full. The caller hears of it.
                self.lost += 1
                return NULL
        n = self.out_count
        self.out_reserved = length
        self.out_vectors[n].iov_base = self.out_data + self.out_used
        self.out_vectors[n].iov_len = length
        self.out_messages[n].msg_hdr.msg_namelen = address_to_sockaddr(to, &self.out_names[n])
        return self.out_data + self.out_used

    cdef void commit(self) noexcept:
        self.out_used += self.out_reserved
        self.out_count += 1
        if not self.scheduled and not self.writing:
            self.scheduled = True
            try:
                self.loop.call_soon(self._flush)
            except Exception:
                # The loop is closing: send now what was to be sent in this turn.
                self.scheduled = False
                self.flush()

    def _flush(self):
        self.scheduled = False
        if self.open:
            self.flush()

    cdef void flush(self) noexcept:
        cdef unsigned int at = 0
        cdef unsigned int i
        cdef int count
        while at < self.out_count:
            count = sendmmsg(self.fd, self.out_messages + at, self.out_count - at, 0)
            if count > 0:
                at += <unsigned int>count
                self.sent += <unsigned int>count
                continue
            if errno == EINTR:
                continue
            if errno == EAGAIN or errno == ENOBUFS:
                break
            # This one datagram cannot go (no route, a port that is 0): the others still can.
            self.lost += 1
            at += 1
        if at == self.out_count:
            self.out_count = 0
            self.out_used = 0
            if self.writing:
                self.writing = False
                self.loop.remove_writer(self.fd)
            return
        # Keep the rest in order at the front; the arena keeps its bytes until all are gone.
        for i in range(at, self.out_count):
            self.out_vectors[i - at] = self.out_vectors[i]
            self.out_names[i - at] = self.out_names[i]
            self.out_messages[i - at].msg_hdr.msg_namelen = self.out_messages[i].msg_hdr.msg_namelen
        self.out_count -= at
        if not self.writing:
            self.writing = True
            self.loop.add_writer(self.fd, self._flush)
