/* Merging two files by sequence number while their writer goes on.
 *
 * The writer fills one file, then empties the other and goes on there. So a file's content is told
 * from its former one by the sequence number of its first record, which is looked at before and
 * after each read: a piece is believed only when both agree. */
#include "sandbox/log_reader.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/memory.h"

#define PIECE_BYTES (64 * 1024)
/* A writer cannot empty a file more often than it fills the other one. */
#define READ_TRIES_MAX 4

struct log_file {
    int fd;
    uint64_t first;  /* sequence of the first record; 0: empty */
    uint64_t offset; /* in the file, of piece[0] */
    size_t used, length;
    bool has_head;
    struct log_record head;
    size_t head_size;
    uint8_t piece[PIECE_BYTES];
};

struct log_reader {
    struct log_reader_options options;
    uint64_t last;       /* sequence last given out */
    uint64_t skip_lines; /* of `tail`: line feeds still to pass over */
    struct log_file files[2];
};

/* The sequence number of the file's first record, 0 when there is none. */
static uint64_t first_sequence(const struct log_file *f)
{
    uint8_t bytes[LOG_RECORD_HEADER_BYTES];
    if (pread(f->fd, bytes, sizeof bytes, 0) != (ssize_t)sizeof bytes)
        return 0;
    uint64_t sequence = 0;
    for (size_t i = 0; i < 8; i++)
        sequence |= (uint64_t)bytes[8 + i] << (8 * i);
    return sequence;
}

static void file_rewind(struct log_file *f, uint64_t first)
{
    f->first = first;
    f->offset = 0;
    f->used = f->length = 0;
    f->has_head = false;
}

/* Reads a piece at the first byte that was not used yet. False: nothing to be had now. */
static int file_fill(struct log_file *f, struct err *e)
{
    for (int i = 0; i < READ_TRIES_MAX; i++) {
        uint64_t first = first_sequence(f);
        if (first != f->first)
            file_rewind(f, first);
        f->offset += f->used;
        f->used = f->length = 0;
        if (first == 0)
            return 0;
        ssize_t got = pread(f->fd, f->piece, PIECE_BYTES, (off_t)f->offset);
        if (got < 0)
            return err_sys(e, ERR_IO, errno, "read a log file");
        if (first_sequence(f) != first)
            continue;
        f->length = (size_t)got;
        return 0;
    }
    return 0;
}

/* Makes `head` the file's first record after `last`, if there is one. */
static int file_head(struct log_file *f, uint64_t last, struct err *e)
{
    if (f->fd < 0)
        return 0;
    /* Only a broken writer gives both files the same numbers. */
    if (f->has_head && f->head.sequence <= last) {
        f->used += f->head_size;
        f->has_head = false;
    }
    while (!f->has_head) {
        size_t size = log_record_parse(f->piece + f->used, f->length - f->used, &f->head);
        if (size == 0) {
            int rc = file_fill(f, e);
            if (rc != 0)
                return rc;
            size = log_record_parse(f->piece, f->length, &f->head);
            if (size == 0)
                return 0;
        }
        f->head_size = size;
        f->has_head = f->head.sequence > last;
        if (!f->has_head)
            f->used += size;
    }
    return 0;
}

static struct log_file *earliest(struct log_reader *r)
{
    struct log_file *a = &r->files[0];
    struct log_file *b = &r->files[1];
    if (!a->has_head || !b->has_head)
        return a->has_head ? a : b->has_head ? b : NULL;
    return a->head.sequence <= b->head.sequence ? a : b;
}

/* The next record of either file, whole. */
static int merged_next(struct log_reader *r, struct log_record *out, struct err *e)
{
    int rc = 0;
    for (size_t i = 0; i < 2 && rc == 0; i++)
        rc = file_head(&r->files[i], r->last, e);
    struct log_file *f = rc == 0 ? earliest(r) : NULL;
    if (f == NULL)
        return rc;
    if (f->head.sequence != r->last + 1) {
        /* The one before may have been written to the other file after we looked there. */
        struct log_file *other = &r->files[f == &r->files[0] ? 1 : 0];
        rc = file_head(other, r->last, e);
        if (rc != 0)
            return rc;
        f = earliest(r);
    }
    *out = f->head;
    r->last = f->head.sequence;
    f->has_head = false;
    f->used += f->head_size;
    return 1;
}

/* Passes over what options do not want; 1 as long as a part of `record` is wanted. */
static bool wanted(struct log_reader *r, struct log_record *record)
{
    if (record->wall_ms < r->options.since_wall_ms)
        return false;
    while (r->skip_lines > 0 && record->length > 0) {
        const uint8_t *feed = memchr(record->data, '\n', record->length);
        size_t gone = feed == NULL ? record->length : (size_t)(feed - record->data) + 1;
        record->data += gone;
        record->length -= (uint32_t)gone;
        if (feed != NULL)
            r->skip_lines--;
    }
    return record->length > 0;
}

int log_reader_next(struct log_reader *r, struct log_record *out, struct err *e)
{
    int rc;
    do
        rc = merged_next(r, out, e);
    while (rc > 0 && !wanted(r, out));
    return rc;
}

/* Counts the lines that are there now, and starts again from the beginning. */
static int prepare_tail(struct log_reader *r, struct err *e)
{
    uint64_t lines = 0;
    bool open_line = false;
    struct log_record record = {0};
    int rc;
    while ((rc = log_reader_next(r, &record, e)) == 1) {
        for (uint32_t i = 0; i < record.length; i++)
            lines += record.data[i] == '\n';
        open_line = record.data[record.length - 1] != '\n';
    }
    if (rc < 0)
        return rc;
    r->last = 0;
    for (size_t i = 0; i < 2; i++)
        file_rewind(&r->files[i], r->files[i].first);
    lines += open_line;
    r->skip_lines = lines > r->options.tail_lines ? lines - r->options.tail_lines : 0;
    return 0;
}

int log_reader_open_files(struct log_reader **out, const int files[2],
                          const struct log_reader_options *options, struct err *e)
{
    struct log_reader *r = calloc(1, sizeof *r);
    if (r == NULL) {
        for (int i = 0; i < 2; i++) {
            int fd = files[i];
            memory_close(&fd);
        }
        return err_set(e, ERR_NO_MEMORY, "read a log");
    }
    r->options = *options;
    for (size_t i = 0; i < 2; i++)
        r->files[i].fd = files[i];
    int rc = options->tail ? prepare_tail(r, e) : 0;
    if (rc != 0) {
        log_reader_close(r);
        return rc;
    }
    *out = r;
    return 0;
}

int log_reader_open(struct log_reader **out, const char *directory, const char *id,
                    const struct log_reader_options *options, struct err *e)
{
    static const char *const suffixes[2] = {"", ".1"};
    int files[2] = {-1, -1};
    if (id[0] == '.' || strchr(id, '/') != NULL)
        return err_set(e, ERR_INVALID, "%s is not the id of an instance", id);
    for (size_t i = 0; i < 2; i++) {
        CLEANUP_FREE char *path = text_new("%s/%s.log%s", directory, id, suffixes[i]);
        if (path != NULL)
            files[i] = open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
        if (files[i] >= 0 || (path != NULL && errno == ENOENT))
            continue;
        int sys = path == NULL ? ENOMEM : errno;
        memory_close(&files[0]);
        return err_sys(e, ERR_IO, sys, "open the log of %s", id);
    }
    if (files[0] < 0 && files[1] < 0)
        return err_set(e, ERR_NOT_FOUND, "no log of %s is kept", id);
    return log_reader_open_files(out, files, options, e);
}

void log_reader_close(struct log_reader *r)
{
    if (r == NULL)
        return;
    memory_close(&r->files[0].fd);
    memory_close(&r->files[1].fd);
    free(r);
}
