# Sealing and opening of tokens: see token.pxd. Knows no table: whether the slot still lives is asked elsewhere.

from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from fastws.wire.siphash cimport siphash_end, siphash_feed, siphash_start, siphash_state
from fastws.wire.span cimport Span

cdef const char* ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


cdef inline void put32(uint8_t* out, uint32_t value) noexcept nogil:
    out[0] = <uint8_t>(value >> 24)
    out[1] = <uint8_t>(value >> 16)
    out[2] = <uint8_t>(value >> 8)
    out[3] = <uint8_t>value


cdef inline uint32_t get32(const uint8_t* data) noexcept nogil:
    return <uint32_t>data[0] << 24 | <uint32_t>data[1] << 16 | <uint32_t>data[2] << 8 | <uint32_t>data[3]


cdef inline uint64_t seal(const uint8_t* packed, const uint8_t* key, Span call_id) noexcept nogil:
    cdef siphash_state state
    siphash_start(&state, key)
    siphash_feed(&state, packed, TOKEN_PACKED)
    if packed[0] == TOKEN_DIALOG:
        siphash_feed(&state, call_id.start, call_id.length)
    return siphash_end(&state)


cdef void token_seal(const Token* token, const uint8_t* key, Span call_id, char* out) noexcept nogil:
    cdef uint8_t raw[TOKEN_BYTES]
    cdef uint64_t mac
    cdef uint32_t group
    cdef size_t i
    raw[0] = token.kind
    raw[1] = token.worker
    raw[2] = <uint8_t>(token.loop >> 8)
    raw[3] = <uint8_t>token.loop
    put32(raw + 4, token.epoch)
    put32(raw + 8, token.slot)
    put32(raw + 12, token.generation)
    put32(raw + 16, token.peer)
    put32(raw + 20, token.serial)
    put32(raw + 24, token.transaction)
    mac = seal(raw, key, call_id)
    put32(raw + 28, <uint32_t>(mac >> 32))
    put32(raw + 32, <uint32_t>mac)
    for i in range(TOKEN_BYTES // 3):
        group = <uint32_t>raw[3 * i] << 16 | <uint32_t>raw[3 * i + 1] << 8 | <uint32_t>raw[3 * i + 2]
        out[4 * i] = ALPHABET[group >> 18]
        out[4 * i + 1] = ALPHABET[group >> 12 & 63]
        out[4 * i + 2] = ALPHABET[group >> 6 & 63]
        out[4 * i + 3] = ALPHABET[group & 63]


cdef inline int decode(char c) noexcept nogil:
    if c'A' <= c <= c'Z':
        return c - c'A'
    if c'a' <= c <= c'z':
        return c - c'a' + 26
    if c'0' <= c <= c'9':
        return c - c'0' + 52
    if c == c'-':
        return 62
    if c == c'_':
        return 63
    return -1


cdef int token_open(Span text, const uint8_t* key, Span call_id, Token* out) noexcept nogil:
    cdef uint8_t raw[TOKEN_BYTES]
    cdef uint64_t mac
    cdef uint32_t group
    cdef int digit
    cdef size_t i, k
    if text.length != TOKEN_LENGTH:
        return -1
    for i in range(TOKEN_BYTES // 3):
        group = 0
        for k in range(4):
            digit = decode(text.start[4 * i + k])
            if digit < 0:
                return -1
            group = group << 6 | <uint32_t>digit
        raw[3 * i] = <uint8_t>(group >> 16)
        raw[3 * i + 1] = <uint8_t>(group >> 8)
        raw[3 * i + 2] = <uint8_t>group
    mac = <uint64_t>get32(raw + 28) << 32 | get32(raw + 32)
    if mac != seal(raw, key, call_id):
        return -1
    out.kind = raw[0]
    out.worker = raw[1]
    out.loop = <uint16_t>(<uint16_t>raw[2] << 8 | raw[3])
    out.epoch = get32(raw + 4)
    out.slot = get32(raw + 8)
    out.generation = get32(raw + 12)
    out.peer = get32(raw + 16)
    out.serial = get32(raw + 20)
    out.transaction = get32(raw + 24)
    return 0
