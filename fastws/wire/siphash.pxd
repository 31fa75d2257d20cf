# SipHash-2-4, the keyed hash of tokens and of the transaction table.

from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint64_t

cdef extern from "siphash.h" nogil:
    ctypedef struct siphash_state:
        pass
    void siphash_start(siphash_state* state, const uint8_t* key) noexcept
    void siphash_feed(siphash_state* state, const void* data, size_t length) noexcept
    uint64_t siphash_end(siphash_state* state) noexcept
