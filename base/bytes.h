/* base/bytes.h - numbers in the byte order of networks, of 1 to 8 bytes. */
#ifndef SKERRY_BASE_BYTES_H
#define SKERRY_BASE_BYTES_H

#include <stddef.h>
#include <stdint.h>

/* What does not fit into `count` bytes is cut. */
static inline void bytes_put(void *out, size_t count, uint64_t value)
{
    uint8_t *at = out;
    for (size_t i = 0; i < count; i++)
        at[i] = (uint8_t)(value >> (8 * (count - 1 - i)));
}

static inline uint64_t bytes_get(const void *bytes, size_t count)
{
    const uint8_t *at = bytes;
    uint64_t value = 0;
    for (size_t i = 0; i < count; i++)
        value = value << 8 | at[i];
    return value;
}

#endif
