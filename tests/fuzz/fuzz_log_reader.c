/* Log files that a broken or hostile writer made, read while they change. The input is a program:
 *
 *     'r' N   a sound record of N bytes, the sequence one higher     's' N   as r, but N numbers on
 *     'g' N   N bytes of the input as they are                      'c' N   cut N bytes off
 *     'f'     go on in the other file, emptied                      'b' N   the sequence N back
 *     'n' N   read N records with the follower */
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/memory.h"
#include "sandbox/log_reader.h"

#define FILE_BYTES_MAX (1 << 20)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct writer {
    int files[2];
    off_t length[2];
    int current;
    uint64_t sequence;
};

static void put_bytes(struct writer *w, const uint8_t *data, size_t size)
{
    int i = w->current;
    if (w->length[i] + (off_t)size > FILE_BYTES_MAX)
        return;
    assert_always(pwrite(w->files[i], data, size, w->length[i]) == (ssize_t)size);
    w->length[i] += (off_t)size;
}

static void put_record(struct writer *w, const uint8_t *data, size_t size)
{
    uint8_t header[LOG_RECORD_HEADER_BYTES];
    const struct log_record record = {.sequence = w->sequence,
                                      .wall_ms = w->sequence * 10,
                                      .stream = LOG_STREAM_STDOUT,
                                      .length = (uint32_t)size,
                                      .data = data};
    log_record_header(&record, header);
    put_bytes(w, header, sizeof header);
    put_bytes(w, data, size);
}

static void read_some(struct log_reader *r, int count, uint64_t *last)
{
    struct log_record record;
    struct err e = {0};
    uint8_t sum = 0;
    while (count-- > 0) {
        int rc = log_reader_next(r, &record, &e);
        assert_always(rc == 0 || rc == 1);
        if (rc == 0)
            return;
        assert_always(record.sequence > *last);
        assert_always(record.length > 0 && record.length <= LOG_RECORD_DATA_BYTES_MAX);
        *last = record.sequence;
        for (uint32_t i = 0; i < record.length; i++)
            sum = (uint8_t)(sum + record.data[i]);
    }
    static volatile uint8_t sink;
    sink = sum;
    (void)sink;
}

static struct log_reader *reader_of(const struct writer *w, const struct log_reader_options *o)
{
    const int files[2] = {dup(w->files[0]), dup(w->files[1])};
    struct log_reader *r = NULL;
    struct err e = {0};
    return log_reader_open_files(&r, files, o, &e) == 0 ? r : NULL;
}

static void step(struct writer *w, uint8_t what, uint8_t n, const uint8_t *data, size_t left)
{
    size_t take = n < left ? n : left;
    switch (what) {
    case 's':
        w->sequence += n;
        put_record(w, data, take);
        break;
    case 'r':
        w->sequence++;
        put_record(w, data, take);
        break;
    case 'g':
        put_bytes(w, data, take);
        break;
    case 'b':
        w->sequence -= n;
        break;
    case 'c':
        w->length[w->current] -= n < w->length[w->current] ? n : w->length[w->current];
        assert_always(ftruncate(w->files[w->current], w->length[w->current]) == 0);
        break;
    case 'f':
        w->current = 1 - w->current;
        w->length[w->current] = 0;
        assert_always(ftruncate(w->files[w->current], 0) == 0);
        break;
    default:
        break;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct writer w = {.files = {memfd_create("a", MFD_CLOEXEC), memfd_create("b", MFD_CLOEXEC)}};
    assert_always(w.files[0] >= 0 && w.files[1] >= 0);
    const struct log_reader_options follow = {0};
    struct log_reader *follower = reader_of(&w, &follow);
    uint64_t last = 0;
    for (size_t i = 0; i + 1 < size; i += 2) {
        if (data[i] == 'n')
            read_some(follower, data[i + 1], &last);
        else
            step(&w, data[i], data[i + 1], data + i + 2, size - i - 2);
    }
    read_some(follower, FILE_BYTES_MAX, &last);
    log_reader_close(follower);
    const struct log_reader_options tail = {
        .tail = true, .tail_lines = size, .since_wall_ms = size};
    struct log_reader *r = reader_of(&w, &tail);
    if (r != NULL) {
        last = 0;
        read_some(r, FILE_BYTES_MAX, &last);
    }
    log_reader_close(r);
    close(w.files[0]);
    close(w.files[1]);
    return 0;
}
