#include "sandbox/shared/log_format.h"

#define MAGIC 0x4c524b53u /* "SKRL" */

static void put(uint8_t *out, uint64_t value, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++)
        out[i] = (uint8_t)(value >> (8 * i));
}

static uint64_t get(const uint8_t *bytes, size_t count)
{
    uint64_t value = 0;
    for (size_t i = 0; i < count; i++)
        value |= (uint64_t)bytes[i] << (8 * i);
    return value;
}

static uint32_t fnv1a(uint32_t hash, const uint8_t *bytes, size_t length)
{
    for (size_t i = 0; i < length; i++)
        hash = (hash ^ bytes[i]) * 16777619u;
    return hash;
}

static uint32_t record_check(const uint8_t header[LOG_RECORD_HEADER_BYTES], const uint8_t *data,
                             size_t length)
{
    return fnv1a(fnv1a(2166136261u, header + 8, LOG_RECORD_HEADER_BYTES - 8), data, length);
}

void log_record_header(const struct log_record *record, uint8_t out[LOG_RECORD_HEADER_BYTES])
{
    put(out, MAGIC, 4);
    put(out + 8, record->sequence, 8);
    put(out + 16, record->wall_ms, 8);
    put(out + 24, (uint64_t)record->stream, 2);
    put(out + 26, 0, 2);
    put(out + 28, record->length, 4);
    put(out + 4, record_check(out, record->data, record->length), 4);
}

size_t log_record_parse(const uint8_t *bytes, size_t length, struct log_record *out)
{
    if (length < LOG_RECORD_HEADER_BYTES || get(bytes, 4) != MAGIC)
        return 0;
    uint64_t stream = get(bytes + 24, 2);
    uint64_t data_length = get(bytes + 28, 4);
    if (data_length > LOG_RECORD_DATA_BYTES_MAX || data_length > length - LOG_RECORD_HEADER_BYTES)
        return 0;
    if ((stream != LOG_STREAM_STDOUT && stream != LOG_STREAM_STDERR) || get(bytes + 26, 2) != 0)
        return 0;
    const uint8_t *data = bytes + LOG_RECORD_HEADER_BYTES;
    if (get(bytes + 4, 4) != record_check(bytes, data, (size_t)data_length))
        return 0;
    *out = (struct log_record){.sequence = get(bytes + 8, 8),
                               .wall_ms = get(bytes + 16, 8),
                               .stream = (enum log_stream)stream,
                               .length = (uint32_t)data_length,
                               .data = data};
    return LOG_RECORD_HEADER_BYTES + (size_t)data_length;
}
