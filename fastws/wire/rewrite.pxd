# RFC 3261 16.6: edits on a scanned message, written out as one contiguous run of bytes.
# Which edits to make is decided elsewhere.

from libc.stddef cimport size_t
from libc.stdint cimport uint32_t, uint64_t

from fastws.wire.message cimport Message
from fastws.wire.span cimport Span

cdef struct Buffer:
    char* data                   # owned; grown by doubling
    size_t length
    size_t capacity
    bint failed                  # an allocation failed: what was appended since is missing

cdef void buffer_init(Buffer* buffer) noexcept nogil
cdef void buffer_free(Buffer* buffer) noexcept nogil
cdef void buffer_clear(Buffer* buffer) noexcept nogil
cdef void buffer_add(Buffer* buffer, const char* data, size_t length) noexcept nogil
cdef void buffer_add_span(Buffer* buffer, Span span) noexcept nogil
cdef void buffer_add_uint(Buffer* buffer, uint64_t number) noexcept nogil

cdef struct Edit:
    const char* at               # inside the message
    size_t cut                   # bytes of the message that go
    size_t text                  # where its replacement begins in the rewrite's buffer
    size_t length                # bytes of the replacement

cdef struct Rewrite:
    const Message* message       # borrowed until the next rewrite_begin
    Edit* edits                  # owned
    size_t count
    size_t capacity
    Buffer text                  # the replacements

cdef void rewrite_init(Rewrite* rewrite) noexcept nogil
cdef void rewrite_free(Rewrite* rewrite) noexcept nogil
cdef void rewrite_begin(Rewrite* rewrite, const Message* message) noexcept nogil
# Begin an edit: `cut` bytes at `at` go, and what is added to rewrite.text until rewrite_close takes their place.
# Edits may come in any order and must not overlap. Insertions at one place keep the order in which they were made, and
# stand before a cut that begins there.
cdef void rewrite_open(Rewrite* rewrite, const char* at, size_t cut) noexcept nogil
cdef void rewrite_close(Rewrite* rewrite) noexcept nogil
cdef void rewrite_cut(Rewrite* rewrite, const char* at, size_t cut) noexcept nogil
# Bytes of the result, or 0 without memory. Sorts the edits: call it once, before rewrite_write.
cdef size_t rewrite_length(Rewrite* rewrite) noexcept nogil
cdef void rewrite_write(const Rewrite* rewrite, char* out) noexcept nogil
