# Edits on a message -> one contiguous output; see rewrite.pxd. Copies each byte once, from the message to the output.

from libc.stddef cimport size_t
from libc.stdint cimport uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy

from fastws.wire.message cimport Message
from fastws.wire.span cimport Span


cdef void buffer_init(Buffer* buffer) noexcept nogil:
    buffer.data = NULL
    buffer.length = 0
    buffer.capacity = 0
    buffer.failed = False


cdef void buffer_free(Buffer* buffer) noexcept nogil:
    free(buffer.data)
    buffer_init(buffer)


cdef void buffer_clear(Buffer* buffer) noexcept nogil:
    buffer.length = 0
    buffer.failed = False


cdef void buffer_add(Buffer* buffer, const char* data, size_t length) noexcept nogil:
    cdef size_t wanted
    cdef char* grown
    if length > buffer.capacity - buffer.length:
        if length > (<size_t>-1) // 4 - buffer.length:
            buffer.failed = True
            return
        wanted = buffer.capacity if buffer.capacity > 0 else 512
        while wanted < buffer.length + length:
            wanted *= 2
        grown = <char*>realloc(buffer.data, wanted)
        if grown == NULL:
            buffer.failed = True
            return
        buffer.data = grown
        buffer.capacity = wanted
    if length > 0:
        memcpy(buffer.data + buffer.length, data, length)
    buffer.length += length


cdef void buffer_add_span(Buffer* buffer, Span span) noexcept nogil:
    buffer_add(buffer, span.start, span.length)


cdef void buffer_add_uint(Buffer* buffer, uint64_t number) noexcept nogil:
    cdef char digits[20]
    cdef size_t at = 20
    while True:
        at -= 1
        digits[at] = <char>(c'0' + number % 10)
        number //= 10
        if number == 0:
            break
    buffer_add(buffer, digits + at, 20 - at)


cdef void rewrite_init(Rewrite* rewrite) noexcept nogil:
    rewrite.message = NULL
    rewrite.edits = NULL
    rewrite.count = 0
    rewrite.capacity = 0
    buffer_init(&rewrite.text)


cdef void rewrite_free(Rewrite* rewrite) noexcept nogil:
    free(rewrite.edits)
    buffer_free(&rewrite.text)
    rewrite_init(rewrite)


cdef void rewrite_begin(Rewrite* rewrite, const Message* message) noexcept nogil:
    rewrite.message = message
    rewrite.count = 0
    buffer_clear(&rewrite.text)


cdef void rewrite_open(Rewrite* rewrite, const char* at, size_t cut) noexcept nogil:
    cdef size_t wanted
    cdef Edit* grown
    if rewrite.count == rewrite.capacity:
        wanted = rewrite.capacity * 2 if rewrite.capacity > 0 else 32
        grown = <Edit*>realloc(rewrite.edits, wanted * sizeof(Edit))
        if grown == NULL:
            rewrite.text.failed = True
            return
        rewrite.edits = grown
        rewrite.capacity = wanted
    rewrite.edits[rewrite.count].at = at
    rewrite.edits[rewrite.count].cut = cut
    rewrite.edits[rewrite.count].text = rewrite.text.length
    rewrite.edits[rewrite.count].length = 0
    rewrite.count += 1


cdef void rewrite_close(Rewrite* rewrite) noexcept nogil:
    cdef Edit* edit
    if rewrite.text.failed or rewrite.count == 0:
        return
    edit = &rewrite.edits[rewrite.count - 1]
    edit.length = rewrite.text.length - edit.text


cdef void rewrite_cut(Rewrite* rewrite, const char* at, size_t cut) noexcept nogil:
    rewrite_open(rewrite, at, cut)
    rewrite_close(rewrite)


cdef size_t rewrite_length(Rewrite* rewrite) noexcept nogil:
    cdef size_t i, k
    cdef size_t total = rewrite.message.length
    cdef Edit edit
    if rewrite.text.failed:
        return 0
    for i in range(1, rewrite.count):
        # Insertion sort, stable: the edits come nearly in order, and there are few.
        edit = rewrite.edits[i]
        k = i
        # What is inserted at the place of a cut stands before it, or the writer would have passed it.
        while k > 0 and (rewrite.edits[k - 1].at > edit.at or (
                rewrite.edits[k - 1].at == edit.at and rewrite.edits[k - 1].cut > 0 and edit.cut == 0)):
            rewrite.edits[k] = rewrite.edits[k - 1]
            k -= 1
        rewrite.edits[k] = edit
    for i in range(rewrite.count):
        total = total - rewrite.edits[i].cut + rewrite.edits[i].length
    return total


cdef void rewrite_write(const Rewrite* rewrite, char* out) noexcept nogil:
    cdef const char* cursor = rewrite.message.data
    cdef const char* end = rewrite.message.data + rewrite.message.length
    cdef const Edit* edit
    cdef size_t i, run
    for i in range(rewrite.count):
        edit = &rewrite.edits[i]
        run = <size_t>(edit.at - cursor)
        memcpy(out, cursor, run)
        out += run
        if edit.length > 0:
            memcpy(out, rewrite.text.data + edit.text, edit.length)
            out += edit.length
        cursor = edit.at + edit.cut
    memcpy(out, cursor, <size_t>(end - cursor))
