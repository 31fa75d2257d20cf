# An IPv4 or IPv6 address and a port, as a value. No sockets are opened here.

from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.stddef cimport size_t
from libc.string cimport memcmp, memcpy, memset

cdef extern from "<arpa/inet.h>" nogil:
    int inet_pton(int family, const char* text, void* out)
    const char* inet_ntop(int family, const void* address, char* out, unsigned int size)
    uint16_t ntohs(uint16_t value)
    uint16_t htons(uint16_t value)

cdef extern from "<netinet/in.h>" nogil:
    enum: AF_INET
    enum: AF_INET6
    ctypedef unsigned int socklen_t
    struct in_addr:
        uint32_t s_addr
    struct in6_addr:
        uint8_t s6_addr[16]
    struct sockaddr:
        pass
    struct sockaddr_in:
        uint16_t sin_family
        uint16_t sin_port
        in_addr sin_addr
    struct sockaddr_in6:
        uint16_t sin6_family
        uint16_t sin6_port
        uint32_t sin6_flowinfo
        in6_addr sin6_addr
        uint32_t sin6_scope_id

cdef enum:
    ADDRESS_TEXT = 56            # bytes that hold any address as text, brackets and port included

cdef struct Address:
    uint8_t ip[16]               # IPv4 in the first 4, the rest zero
    uint32_t scope               # of an IPv6 link-local address, else 0
    uint16_t port                # host order
    uint8_t family               # 4, 6, or 0 for none

cdef inline bint address_same_host(const Address* a, const Address* b) noexcept nogil:
    return a.family == b.family and a.scope == b.scope and memcmp(a.ip, b.ip, 16) == 0

cdef inline bint address_equal(const Address* a, const Address* b) noexcept nogil:
    return a.port == b.port and address_same_host(a, b)

cdef inline void address_from_sockaddr(Address* out, const sockaddr* name) noexcept nogil:
    cdef const sockaddr_in* v4 = <const sockaddr_in*>name
    cdef const sockaddr_in6* v6 = <const sockaddr_in6*>name
    memset(out, 0, sizeof(Address))
    if v4.sin_family == AF_INET:
        out.family = 4
        out.port = ntohs(v4.sin_port)
        memcpy(out.ip, &v4.sin_addr, 4)
    elif v4.sin_family == AF_INET6:
        out.family = 6
        out.port = ntohs(v6.sin6_port)
        memcpy(out.ip, &v6.sin6_addr, 16)
        out.scope = v6.sin6_scope_id

cdef inline socklen_t address_to_sockaddr(const Address* address, sockaddr_in6* out) noexcept nogil:
    # `out` has room for either family; returns the length that the kernel wants to hear.
    cdef sockaddr_in* v4 = <sockaddr_in*>out
    memset(out, 0, sizeof(sockaddr_in6))
    if address.family == 4:
        v4.sin_family = AF_INET
        v4.sin_port = htons(address.port)
        memcpy(&v4.sin_addr, address.ip, 4)
        return sizeof(sockaddr_in)
    out.sin6_family = AF_INET6
    out.sin6_port = htons(address.port)
    memcpy(&out.sin6_addr, address.ip, 16)
    out.sin6_scope_id = address.scope
    return sizeof(sockaddr_in6)

cdef inline bint address_parse_host(Address* out, const char* text, size_t length) noexcept nogil:
    # An IPv4 literal, or an IPv6 literal with or without brackets: True. The port is left at 0.
    cdef char copy[ADDRESS_TEXT]
    memset(out, 0, sizeof(Address))
    if length >= 2 and text[0] == c'[' and text[length - 1] == c']':
        text += 1
        length -= 2
    if length == 0 or length >= ADDRESS_TEXT:
        return False
    memcpy(copy, text, length)
    copy[length] = 0
    if inet_pton(AF_INET, copy, out.ip) == 1:
        out.family = 4
        return True
    if inet_pton(AF_INET6, copy, out.ip) == 1:
        out.family = 6
        return True
    return False

cdef inline size_t address_host_text(const Address* address, char* out) noexcept nogil:
    # The host alone, an IPv6 one without brackets; returns its length, below ADDRESS_TEXT. Not NUL-terminated by contract.
    cdef size_t n = 0
    if inet_ntop(AF_INET if address.family == 4 else AF_INET6, address.ip, out, ADDRESS_TEXT) == NULL:
        return 0
    while out[n] != 0:
        n += 1
    return n
