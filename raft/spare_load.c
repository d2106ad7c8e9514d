/* What a spare does off the loop: a snapshot becomes a state, and the mark is set or taken away. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "base/memory.h"
#include "base/private_file.h"
#include "raft/snapshot.h"
#include "raft/spare_internal.h"

/* Of a retired state, whose roots others may still hold: they let go within a turn or two of theirs. */
enum { RETIRED_MS = 10000, MARK_TEXT_MAX = 64 };

/* --- the mark --------------------------------------------------------------------------------------- */

uint64_t spare_mark_read(const char *directory)
{
    struct err e;
    char text[MARK_TEXT_MAX] = "";
    size_t length = 0;
    CLEANUP_FD int folder = private_folder_open(directory, &e);
    if (folder < 0 || private_file_read(folder, SPARE_MARK, text, sizeof text - 1, &length, &e) < 0)
        return 0;
    text[length] = '\0';
    uint64_t generation = strtoull(text, NULL, 10);
    return generation > 0 ? generation : UINT64_MAX; /* damaged, it is a mark all the same */
}

static int mark_store(const struct spare *s, struct err *e)
{
    char text[MARK_TEXT_MAX];
    (void)text_format(text, sizeof text, "%llu\n", (unsigned long long)s->snapshot_generation);
    CLEANUP_FD int folder = private_folder_open(s->directory, e);
    return folder < 0 ? folder
                      : private_file_store(folder, SPARE_MARK, text, strlen(text), true, e);
}

static int mark_remove(const struct spare *s, struct err *e)
{
    CLEANUP_FD int folder = private_folder_open(s->directory, e);
    if (folder < 0)
        return folder;
    if ((unlinkat(folder, SPARE_MARK, 0) != 0 && errno != ENOENT) || fsync(folder) != 0)
        return err_sys(e, ERR_IO, errno, "remove %s/" SPARE_MARK, s->directory);
    return 0;
}

/* --- the worker ------------------------------------------------------------------------------------- */

static void worker_main(void *user)
{
    struct spare *s = user;
    int rc = 0;
    if (s->job == SPARE_JOB_UNMARK) {
        rc = mark_remove(s, &s->mark_error);
    } else {
        s->loaded =
            snapshot_decode(&s->content, s->snapshot.data, s->snapshot.length, &s->load_error);
        if (s->loaded == 0 && s->content.generation != s->snapshot_generation) {
            state_content_release(&s->content);
            s->loaded =
                err_set(&s->load_error, ERR_PROTOCOL, "it is of another generation than was said");
        }
        if (s->loaded == 0 && s->marked != s->snapshot_generation)
            rc = mark_store(s, &s->mark_error);
    }
    s->mark_failed = rc < 0;
    uv_async_send(&s->worker_done);
}

static void mark_followed(struct spare *s)
{
    if (s->mark_failed)
        log_warn("registry", "the mark of a spare: %s", s->mark_error.msg);
    else if (s->job == SPARE_JOB_UNMARK)
        s->marked = 0;
    else if (s->loaded == 0)
        s->marked = s->snapshot_generation;
}

static void worker_done_cb(uv_async_t *async)
{
    struct spare *s = container_of(async, struct spare, worker_done);
    if (s->job == SPARE_JOB_NONE)
        return;
    uv_thread_join(&s->worker);
    bool loads = s->job == SPARE_JOB_LOAD;
    mark_followed(s);
    s->job = SPARE_JOB_NONE;
    if (loads) {
        buffer_free(&s->snapshot);
        spare_loaded(s);
    }
    spare_closed_maybe(s);
}

static bool begin(struct spare *s, enum spare_job job)
{
    s->job = job;
    if (uv_thread_create(&s->worker, worker_main, s) == 0)
        return true;
    s->job = SPARE_JOB_NONE;
    return false;
}

bool spare_load_begin(struct spare *s)
{
    return s->job == SPARE_JOB_NONE && begin(s, SPARE_JOB_LOAD);
}

void spare_unmark(struct spare *s)
{
    if (s->marked != 0 && s->job == SPARE_JOB_NONE && !s->closing)
        (void)begin(s, SPARE_JOB_UNMARK);
}

int spare_load_open(struct spare *s)
{
    return uv_async_init(s->options.loop, &s->worker_done, worker_done_cb);
}

/* --- states that are over --------------------------------------------------------------------------- */

void spare_retire(struct spare *s)
{
    struct state_content none = {0};
    struct state *old = steal_pointer(&s->state);
    if (old == NULL)
        return;
    state_free(s->retired); /* two within some seconds: the first has mostly gone */
    state_restore(old, &none);
    registry_root_release(state_root(old));
    s->retired = old;
    s->retired_ms = s->now_ms;
}

bool spare_collect(struct spare *s, size_t entries_max)
{
    bool more = s->state != NULL && state_collect(s->state, entries_max);
    if (s->retired == NULL)
        return more;
    if (state_collect(s->retired, entries_max))
        return true;
    if (s->now_ms - s->retired_ms >= RETIRED_MS) {
        state_free(s->retired);
        s->retired = NULL;
    }
    return more;
}
