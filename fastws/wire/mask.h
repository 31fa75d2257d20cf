/* RFC 6455 5.3: the masking of client frames, and whether a run of bytes is ASCII (RFC 6455 8.1 asks for UTF-8).
 *
 * Plain C11 that a test can compile alone: no Python.h, no allocation, no state. Words are read and written through
 * memcpy, so no pointer is ever aligned by force and the byte order does not matter; the loops are shaped so that
 * gcc -O3 turns them into the vectors of the target (SSE2 on x86-64, NEON on aarch64). Plain stores on purpose: the
 * payload is scanned right after it was unmasked, so it has to stay in the cache.
 */
#ifndef FASTWS_WIRE_MASK_H
#define FASTWS_WIRE_MASK_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* The top bit of each of eight bytes: a byte of ASCII has it clear. */
#define MASK_TOP_BITS UINT64_C(0x8080808080808080)

/* The key as eight bytes in memory order, the first of them mask[offset & 3]. */
static inline uint64_t mask_word(const uint8_t *mask, size_t offset)
{
    const uint8_t bytes[8] = {
        mask[offset & 3], mask[(offset + 1) & 3], mask[(offset + 2) & 3], mask[(offset + 3) & 3],
        mask[offset & 3], mask[(offset + 1) & 3], mask[(offset + 2) & 3], mask[(offset + 3) & 3],
    };
    uint64_t word;

    memcpy(&word, bytes, sizeof(word));
    return word;
}

/* XOR the word at `at` with the key; returns the unmasked word. */
static inline uint64_t mask_step(char *at, uint64_t key)
{
    uint64_t word;

    memcpy(&word, at, sizeof(word));
    word ^= key;
    memcpy(at, &word, sizeof(word));
    return word;
}

/* XOR data[0..length) with the key, in place; the first byte with mask[offset & 3]. Returns the unmasked bytes ORed
 * together in eight columns: only its top bits mean anything to the caller. Inlined into both doors below, where the
 * compiler drops the ORs of the one that does not look at them. */
static inline uint64_t mask_apply_seen(char *data, size_t length, const uint8_t *mask, size_t offset)
{
    const uint64_t key = mask_word(mask, offset);
    const size_t blocks = length / 32;
    uint64_t seen_a = 0, seen_b = 0, seen_c = 0, seen_d = 0;
    uint32_t half, half_key;
    uint8_t byte;
    size_t i;

    for (i = 0; i < blocks; i++) {
        seen_a |= mask_step(data + 32 * i, key);
        seen_b |= mask_step(data + 32 * i + 8, key);
        seen_c |= mask_step(data + 32 * i + 16, key);
        seen_d |= mask_step(data + 32 * i + 24, key);
    }
    i = length & ~(size_t)31;
    for (; length - i >= 8; i += 8)
        seen_a |= mask_step(data + i, key);
    if (length - i >= 4) {
        memcpy(&half, data + i, sizeof(half));
        memcpy(&half_key, &key, sizeof(half_key));
        half ^= half_key;
        memcpy(data + i, &half, sizeof(half));
        seen_b |= half | ((uint64_t)half << 32);
        i += 4;
    }
    for (; i < length; i++) {
        byte = (uint8_t)((uint8_t)data[i] ^ mask[(offset + i) & 3]);
        data[i] = (char)byte;
        seen_c |= byte;
    }
    return seen_a | seen_b | seen_c | seen_d;
}

static inline void mask_apply(char *data, size_t length, const uint8_t *mask, size_t offset)
{
    (void)mask_apply_seen(data, length, mask, offset);
}

/* The same, and 1 if every unmasked byte is ASCII, else 0: a text of ASCII needs no second look for its UTF-8. */
static inline int mask_apply_ascii(char *data, size_t length, const uint8_t *mask, size_t offset)
{
    return (mask_apply_seen(data, length, mask, offset) & MASK_TOP_BITS) == 0;
}

/* How many bytes at the start of data[0..length) are ASCII: `length` if all are. */
static inline size_t ascii_run(const char *data, size_t length)
{
    uint64_t a, b, c, d;
    size_t i = 0;

    for (; length - i >= 32; i += 32) {
        memcpy(&a, data + i, 8);
        memcpy(&b, data + i + 8, 8);
        memcpy(&c, data + i + 16, 8);
        memcpy(&d, data + i + 24, 8);
        if (((a | b | c | d) & MASK_TOP_BITS) != 0)
            break;
    }
    for (; length - i >= 8; i += 8) {
        memcpy(&a, data + i, 8);
        if ((a & MASK_TOP_BITS) != 0)
            break;
    }
    while (i < length && ((uint8_t)data[i] & 0x80) == 0)
        i++;
    return i;
}

#endif
