/* SipHash-2-4 (Aumasson, Bernstein 2012) of up to three runs of bytes as if they stood behind each other.
 * No Python.h, no allocation; reads exactly the bytes given. */
#ifndef FASTWS_SIPHASH_H
#define FASTWS_SIPHASH_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef struct {
    uint64_t v0, v1, v2, v3;
    uint64_t tail;      /* bytes not yet compressed, the first in the lowest place */
    unsigned pending;   /* how many: 0..7 */
    uint64_t total;
} siphash_state;

static inline uint64_t siphash_rotate(uint64_t x, unsigned bits) { return (x << bits) | (x >> (64 - bits)); }

static inline void siphash_round(siphash_state *s) {
    s->v0 += s->v1; s->v1 = siphash_rotate(s->v1, 13); s->v1 ^= s->v0; s->v0 = siphash_rotate(s->v0, 32);
    s->v2 += s->v3; s->v3 = siphash_rotate(s->v3, 16); s->v3 ^= s->v2;
    s->v0 += s->v3; s->v3 = siphash_rotate(s->v3, 21); s->v3 ^= s->v0;
    s->v2 += s->v1; s->v1 = siphash_rotate(s->v1, 17); s->v1 ^= s->v2; s->v2 = siphash_rotate(s->v2, 32);
}

static inline uint64_t siphash_load(const uint8_t *p) {
    return (uint64_t)p[0] | (uint64_t)p[1] << 8 | (uint64_t)p[2] << 16 | (uint64_t)p[3] << 24 |
           (uint64_t)p[4] << 32 | (uint64_t)p[5] << 40 | (uint64_t)p[6] << 48 | (uint64_t)p[7] << 56;
}

static inline void siphash_start(siphash_state *s, const uint8_t key[16]) {
    uint64_t k0 = siphash_load(key), k1 = siphash_load(key + 8);
    s->v0 = k0 ^ 0x736f6d6570736575ull;
    s->v1 = k1 ^ 0x646f72616e646f6dull;
    s->v2 = k0 ^ 0x6c7967656e657261ull;
    s->v3 = k1 ^ 0x7465646279746573ull;
    s->tail = 0;
    s->pending = 0;
    s->total = 0;
}

static inline void siphash_word(siphash_state *s, uint64_t m) {
    s->v3 ^= m;
    siphash_round(s);
    siphash_round(s);
    s->v0 ^= m;
}

static inline void siphash_feed(siphash_state *s, const void *data, size_t length) {
    const uint8_t *p = (const uint8_t *)data;
    s->total += length;
    if (s->pending) {
        while (length && s->pending < 8) {
            s->tail |= (uint64_t)*p++ << (8 * s->pending++);
            length--;
        }
        if (s->pending < 8) return;
        siphash_word(s, s->tail);
        s->tail = 0;
        s->pending = 0;
    }
    for (; length >= 8; p += 8, length -= 8) siphash_word(s, siphash_load(p));
    while (length) {
        s->tail |= (uint64_t)*p++ << (8 * s->pending++);
        length--;
    }
}

static inline uint64_t siphash_end(siphash_state *s) {
    siphash_word(s, s->tail | (s->total << 56));
    s->v2 ^= 0xff;
    siphash_round(s);
    siphash_round(s);
    siphash_round(s);
    siphash_round(s);
    return s->v0 ^ s->v1 ^ s->v2 ^ s->v3;
}

#endif
