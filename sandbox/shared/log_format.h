/* sandbox/shared/log_format.h - how the output of an instance lies in its two log files.
 *
 * The agent is the only writer: it appends records to one of two files (ID.log, ID.log.1) and, when
 * that one holds half of the allowed bytes, empties the other and goes on there. So a reader merges
 * both by sequence number. Within a file, numbers grow by one; the first record that is cut or does
 * not check is the end of the file: it is still being written, or its writer died there.
 *
 * What a record carries was written by hostile code: any bytes, lines cut anywhere. All numbers are
 * little-endian. A record: 32 bytes of header, then `length` bytes.
 *
 *     0  u32 magic   4  u32 check (FNV-1a of what follows it)   8  u64 sequence, from 1
 *    16  u64 wall time in ms   24  u16 stream   26  u16 zero   28  u32 length */
#ifndef SKERRY_SANDBOX_SHARED_LOG_FORMAT_H
#define SKERRY_SANDBOX_SHARED_LOG_FORMAT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define LOG_RECORD_HEADER_BYTES 32
/* A record as a whole fits in 16 KiB. */
#define LOG_RECORD_DATA_BYTES_MAX (16 * 1024 - LOG_RECORD_HEADER_BYTES)
/* Either file holds at least this much before the other's turn comes. */
#define LOG_FILE_BYTES_MIN (64 * 1024)

enum log_stream { LOG_STREAM_STDOUT = 1, LOG_STREAM_STDERR = 2 };

struct log_record {
    uint64_t sequence;
    uint64_t wall_ms;
    enum log_stream stream;
    uint32_t length;
    const uint8_t *data; /* in the caller's memory; not NUL-terminated */
};

/* Writes the header of `record` (its data read for the check) to `out`. */
void log_record_header(const struct log_record *record, uint8_t out[LOG_RECORD_HEADER_BYTES]);
/* Takes one record from the front of `bytes`. Returns its size in all, or 0 when there is no whole
 * and sound record. `out->data` points into `bytes`. */
size_t log_record_parse(const uint8_t *bytes, size_t length, struct log_record *out);

#endif
