# RFC 3261 18: datagrams in batches.

from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from fastws.transport.address cimport Address, sockaddr_in6
from fastws.transport.base cimport Receiver, Transport

cdef extern from * nogil:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <sys/socket.h>
    #include <sys/uio.h>
    #include <errno.h>
    """
    struct iovec:
        void* iov_base
        size_t iov_len
    struct msghdr:
        void* msg_name
        unsigned int msg_namelen
        iovec* msg_iov
        size_t msg_iovlen
        void* msg_control
        size_t msg_controllen
        int msg_flags
    struct mmsghdr:
        msghdr msg_hdr
        unsigned int msg_len
    int recvmmsg(int fd, mmsghdr* messages, unsigned int count, int flags, void* timeout)
    int sendmmsg(int fd, mmsghdr* messages, unsigned int count, int flags)
    enum: MSG_DONTWAIT
    enum: MSG_TRUNC

cdef enum:
    UDP_BATCH = 64               # datagrams of one system call
    UDP_STRIDE = 65536           # bytes: no datagram is longer
    UDP_ARENA = 1048576          # bytes of the datagrams that wait for one flush
    UDP_MAX = 65507              # bytes of the longest datagram over IPv4

cdef class UdpTransport(Transport):
    cdef object loop
    cdef object socket
    cdef int fd
    cdef mmsghdr in_messages[64]
    cdef iovec in_vectors[64]
    cdef sockaddr_in6 in_names[64]
    cdef char* in_data                   # owned: UDP_BATCH * UDP_STRIDE, pages taken when first used
    cdef mmsghdr out_messages[64]
    cdef iovec out_vectors[64]
    cdef sockaddr_in6 out_names[64]
    cdef char* out_data                  # owned: UDP_ARENA
    cdef size_t out_used
    cdef size_t out_reserved
    cdef unsigned int out_count
    cdef bint scheduled
    cdef bint writing                    # waits for the socket to take more
    cdef bint open
    cdef readonly uint64_t sent          # datagrams
    cdef readonly uint64_t received
    cdef readonly uint64_t lost          # that the system would not take

    cdef void flush(self) noexcept
