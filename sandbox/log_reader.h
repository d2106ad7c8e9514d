/* sandbox/log_reader.h - what an instance wrote, out of its two log files, in order.
 *
 * Thread:  any, one at a time; reads files, so not on a loop.
 * Memory:  a reader holds two pieces of 64 KiB; a record is valid until the next call.
 * Trust:   the files are written by an instance's agent while we read; they may be cut, emptied and
 *          overwritten between two reads, and their records hold whatever hostile code wrote.
 *
 * To follow a log, call log_reader_next again later when it returned 0. */
#ifndef SKERRY_SANDBOX_LOG_READER_H
#define SKERRY_SANDBOX_LOG_READER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "sandbox/shared/log_format.h"

struct log_reader;

struct log_reader_options {
    uint64_t since_wall_ms; /* 0: from the beginning */
    bool tail;              /* only the last `tail_lines` lines of what is there now */
    uint64_t tail_lines;
};

/* DIRECTORY/ID.log and ID.log.1. -ERR_NOT_FOUND when there is no log. */
int log_reader_open(struct log_reader **out, const char *directory, const char *id,
                    const struct log_reader_options *options, struct err *e) ERR_CHECKED;
/* The same for open files, which the reader then owns, also when it fails; -1: that one is not
 * there. */
int log_reader_open_files(struct log_reader **out, const int files[2],
                          const struct log_reader_options *options, struct err *e) ERR_CHECKED;
void log_reader_close(struct log_reader *r);

/* 1: *out is the next record (its data possibly cut at the front by `tail`); 0: there is no more at
 * present; or a negative error. */
int log_reader_next(struct log_reader *r, struct log_record *out, struct err *e) ERR_CHECKED;

#endif
