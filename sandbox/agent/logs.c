/* Main's output, from its two pipes into the two log files (sandbox/shared/log_format.h).
 *
 * Happy path: a pipe is readable; one read becomes one record. When the current file is full, the
 * other one is emptied and becomes the current one. A file that takes nothing (disk full) loses
 * records, never the loop. Writes to a disk can hold us up when the host's is slow, so output above
 * LOG_BYTES_PER_SECOND waits in the pipe, where it holds up its writer alone. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/memory.h"
#include "sandbox/agent/agent.h"

#define LOG_BYTES_PER_SECOND (4u * 1024 * 1024)
#define LOG_PAUSE_MS 50
/* Of one stream when main has ended: a pipe holds 64 KiB, a program may have made that 1 MiB. */
#define DRAIN_BYTES_MAX (1024 * 1024)
#define READS_PER_EVENT_MAX 8

/* The number of the last record that is there, and where the file's sound part ends: an agent's
 * files are empty at first, except when they were handed to it with content. */
static void continue_file(struct logs *logs, unsigned which)
{
    uint8_t bytes[LOG_RECORD_HEADER_BYTES + LOG_RECORD_DATA_BYTES_MAX];
    uint64_t offset = 0;
    uint64_t last = 0;
    struct log_record record;
    for (;;) {
        ssize_t got = pread(logs->files[which], bytes, sizeof bytes, (off_t)offset);
        size_t size = got <= 0 ? 0 : log_record_parse(bytes, (size_t)got, &record);
        if (size == 0)
            break;
        offset += size;
        last = record.sequence;
    }
    if (last > logs->sequence || which == 0) {
        logs->sequence = last;
        logs->current = which;
        logs->offset = offset;
    }
}

int logs_open(struct agent *a, const int files[2], uint64_t bytes_max, struct err *e)
{
    struct logs *logs = &a->logs;
    for (unsigned i = 0; i < 2; i++) {
        logs->files[i] = fcntl(files[i], F_DUPFD_CLOEXEC, AGENT_CHANNEL_FD + 1);
        if (logs->files[i] < 0) {
            int sys = errno;
            memory_close(&logs->files[0]);
            return err_sys(e, ERR_IO, sys, "take the log files");
        }
    }
    uint64_t half = bytes_max / 2;
    logs->file_bytes_max = half < LOG_FILE_BYTES_MIN ? LOG_FILE_BYTES_MIN : half;
    logs->budget_bytes = LOG_BYTES_PER_SECOND;
    logs->budget_at_ms = clock_boot_ms();
    continue_file(logs, 0);
    continue_file(logs, 1);
    return 0;
}

int logs_pipes(struct agent *a, int out[2], struct err *e)
{
    for (uint32_t i = 0; i < 2; i++) {
        int ends[2];
        privilege_files_as(a->setup->uid, a->setup->gid);
        int rc = pipe2(ends, O_CLOEXEC);
        int sys = errno;
        privilege_files_own();
        if (rc != 0)
            return err_sys(e, ERR_LIMIT, sys, "make a pipe for the log");
        a->logs.pipes[i] = ends[0];
        out[i] = ends[1];
        if (fcntl(ends[0], F_SETFL, O_NONBLOCK) != 0)
            return err_sys(e, ERR_IO, errno, "make a pipe for the log");
        rc = loop_watch(a, ends[0], EPOLLIN, EVENT_LOG, i, e);
        if (rc != 0)
            return rc;
    }
    return 0;
}

static void tail_take(struct tail *tail, const uint8_t *data, size_t length)
{
    for (size_t i = 0; i < length; i++) {
        if (data[i] == '\n' || data[i] == '\r') {
            if (tail->length > 0) {
                memcpy(tail->last, tail->line, tail->length);
                tail->last_length = tail->length;
            }
            tail->length = 0;
        } else if (tail->length < sizeof tail->line) {
            tail->line[tail->length++] = data[i];
        }
    }
}

/* How many bytes the UTF-8 sequence at `s` has; 0 when it is none or a control character. */
static size_t utf8_length(const uint8_t *s, size_t left)
{
    if (s[0] < 0x80)
        return s[0] >= 0x20 && s[0] != 0x7f;
    size_t n = s[0] >= 0xf0 ? 4 : s[0] >= 0xe0 ? 3 : 2;
    if (s[0] < 0xc2 || s[0] > 0xf4 || n > left)
        return 0;
    for (size_t i = 1; i < n; i++)
        if ((s[i] & 0xc0) != 0x80)
            return 0;
    if ((s[0] == 0xe0 && s[1] < 0xa0) || (s[0] == 0xed && s[1] > 0x9f) ||
        (s[0] == 0xf0 && s[1] < 0x90) || (s[0] == 0xf4 && s[1] > 0x8f))
        return 0; /* overlong, a surrogate, or above U+10FFFF */
    /* C1 controls steer some terminals. */
    return s[0] == 0xc2 && s[1] < 0xa0 ? 0 : n;
}

void logs_tail(const struct agent *a, char *out, size_t size)
{
    const struct tail *tail = &a->logs.tail;
    const uint8_t *line = tail->length > 0 ? tail->line : tail->last;
    size_t length = tail->length > 0 ? tail->length : tail->last_length;
    size_t used = 0;
    for (size_t i = 0; i < length;) {
        size_t n = utf8_length(line + i, length - i);
        if (used + (n > 0 ? n : 1) >= size || used + n > TAIL_BYTES_MAX)
            break;
        if (n > 0)
            memcpy(out + used, line + i, n);
        else
            out[used] = line[i] == '\t' ? ' ' : '?';
        used += n > 0 ? n : 1;
        i += n > 0 ? n : 1;
    }
    out[used] = '\0';
}

static void append(struct logs *logs, uint32_t stream, const uint8_t *data, size_t length)
{
    uint8_t header[LOG_RECORD_HEADER_BYTES];
    size_t size = sizeof header + length;
    if (logs->offset + size > logs->file_bytes_max) {
        if (ftruncate(logs->files[1 - logs->current], 0) != 0)
            return;
        logs->current = 1 - logs->current;
        logs->offset = 0;
    }
    const struct log_record record = {.sequence = logs->sequence + 1,
                                      .wall_ms = clock_wall_ms(),
                                      .stream = stream == 0 ? LOG_STREAM_STDOUT : LOG_STREAM_STDERR,
                                      .length = (uint32_t)length,
                                      .data = data};
    log_record_header(&record, header);
    struct iovec parts[2] = {{.iov_base = header, .iov_len = sizeof header},
                             {.iov_base = (void *)(uintptr_t)data, .iov_len = length}};
    ssize_t written = pwritev(logs->files[logs->current], parts, 2, (off_t)logs->offset);
    if (written == (ssize_t)size) {
        logs->offset += size;
        logs->sequence++;
    } else if (written > 0) {
        /* A torn record would hide all behind it. */
        (void)!ftruncate(logs->files[logs->current], (off_t)logs->offset);
    }
}

/* Returns what read(2) does. */
static ssize_t take(struct agent *a, uint32_t stream)
{
    struct logs *logs = &a->logs;
    uint8_t data[LOG_RECORD_DATA_BYTES_MAX];
    ssize_t length = read(logs->pipes[stream], data, sizeof data);
    if (length <= 0)
        return length;
    if (stream == 1)
        tail_take(&logs->tail, data, (size_t)length);
    append(logs, stream, data, (size_t)length);
    uint64_t cost = (uint64_t)length + LOG_RECORD_HEADER_BYTES;
    logs->budget_bytes = logs->budget_bytes > cost ? logs->budget_bytes - cost : 0;
    return length;
}

static void pause_pipes(struct agent *a, bool paused)
{
    a->logs.paused = paused;
    for (uint32_t i = 0; i < 2; i++)
        if (a->logs.pipes[i] >= 0)
            loop_rewatch(a, a->logs.pipes[i], paused ? 0 : EPOLLIN, EVENT_LOG, i);
    loop_deadline(a, DEADLINE_LOG, paused ? clock_boot_ms() + LOG_PAUSE_MS : 0);
}

static void refill(struct logs *logs)
{
    uint64_t now = clock_boot_ms();
    uint64_t more = (now - logs->budget_at_ms) * (LOG_BYTES_PER_SECOND / 1000);
    logs->budget_bytes += more;
    if (logs->budget_bytes > LOG_BYTES_PER_SECOND)
        logs->budget_bytes = LOG_BYTES_PER_SECOND;
    logs->budget_at_ms = now;
}

void logs_event(struct agent *a, uint32_t stream)
{
    struct logs *logs = &a->logs;
    if (stream > 1 || logs->pipes[stream] < 0)
        return;
    refill(logs);
    for (int i = 0; i < READS_PER_EVENT_MAX; i++) {
        if (logs->budget_bytes == 0) {
            pause_pipes(a, true);
            return;
        }
        ssize_t length = take(a, stream);
        if (length > 0)
            continue;
        if (length == 0 || (errno != EAGAIN && errno != EINTR))
            memory_close(&logs->pipes[stream]);
        return;
    }
}

void logs_resume(struct agent *a)
{
    if (a->logs.paused)
        pause_pipes(a, false);
}

void logs_drain(struct agent *a)
{
    for (uint32_t i = 0; i < 2; i++) {
        size_t drained = 0;
        while (a->logs.pipes[i] >= 0 && drained < DRAIN_BYTES_MAX) {
            ssize_t length = take(a, i);
            if (length <= 0)
                break;
            drained += (size_t)length;
        }
    }
}
