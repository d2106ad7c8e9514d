#include "sandbox/runner/reaper.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/id.h"
#include "base/log.h"
#include "base/memory.h"
#include "sandbox/runner/instance.h"
#include "sandbox/runner/runner.h"
#include "sandbox/runner/state.h"

/* A fork of the runner takes as long as a tenth of a start, and what it writes next it has to copy first, in
 * the middle of the next start: many ends share one. */
#define COLLECT_MS 1000
#define COLLECT_SOON_MS 10 /* when many wait, or places run short */
#define COLLECT_MANY 32
#define PLACES_LOW 50
#define AGAIN_MS 2000
#define EMPTY_WAIT_MS 10000
#define TRIES_MAX 30
#define LOGS_EVERY_MS (10u * 60 * 1000)
#define LOGS_MAX 20000

struct dead {
    struct dead *next;
    struct place *place;
    unsigned tries;
    char id[INSTANCE_ID_LENGTH_MAX + 1];
};

struct reaper {
    struct runner *runner;
    struct dead *waiting; /* for the next child */
    unsigned waiting_count;
    struct dead *reaping; /* by the child that runs */
    struct loop_child child;
    bool running;
    struct loop_timer collect;
    struct loop_timer logs;
    struct loop_child logs_child;
    bool logs_running;
};

/* --- in the child ------------------------------------------------------------------------------ */

static void reap(struct runner *r, const struct dead *dead)
{
    struct err e;
    memory_close(&dead->place->mounts_fd);
    if (cgroup_remove(&dead->place->cgroup, EMPTY_WAIT_MS, &e) < 0) {
        log_warn("runner", "%s: %s", dead->id, e.msg);
        return;
    }
    /* It has its place's name still when the instance did not come so far. */
    const char *names[] = {dead->id, dead->place->cgroup.name};
    for (size_t i = 0; i < ARRAY_SIZE(names); i++)
        if (names[i][0] != '\0')
            state_folder_remove(r->instances_fd, names[i]);
}

/* --- in the runner ----------------------------------------------------------------------------- */

static void collect_cb(struct loop_timer *timer);

static void collect_at(struct reaper *reaper, uint64_t after_ms)
{
    struct err e;
    if (loop_timer_start(reaper->runner->loop, &reaper->collect, clock_boot_ms() + after_ms,
                         collect_cb, &e) < 0)
        log_error("runner", "reaper: %s", e.msg);
}

static bool gone(const struct runner *r, const struct dead *dead)
{
    for (size_t i = 0; i < dead->place->cgroup.group_count; i++)
        if (access(dead->place->cgroup.groups[i].path, F_OK) == 0)
            return false;
    return dead->id[0] == '\0' || faccessat(r->instances_fd, dead->id, F_OK, 0) < 0;
}

static void reaped_cb(struct loop_child *child, int status)
{
    (void)status; /* what is gone counts */
    struct reaper *reaper = container_of(child, struct reaper, child);
    reaper->running = false;
    bool again = false;
    while (reaper->reaping != NULL) {
        struct dead *dead = reaper->reaping;
        reaper->reaping = dead->next;
        if (gone(reaper->runner, dead)) {
            blanks_place_free(reaper->runner->blanks, dead->place);
            free(dead);
        } else if (++dead->tries < TRIES_MAX) {
            dead->next = reaper->waiting;
            reaper->waiting = dead;
            again = true;
        } else {
            /* The place stays taken: its ids may still be in use. */
            log_error("runner", "gave up to remove what is left of %s; its place stays taken",
                      dead->id);
            free(dead);
        }
    }
    if (reaper->waiting != NULL)
        collect_at(reaper, again                                   ? AGAIN_MS
                           : reaper->waiting_count >= COLLECT_MANY ? COLLECT_SOON_MS
                                                                   : COLLECT_MS);
}

static void collect_cb(struct loop_timer *timer)
{
    struct reaper *reaper = container_of(timer, struct reaper, collect);
    if (reaper->running || reaper->waiting == NULL)
        return;
    struct err e;
    pid_t pid = fork();
    if (pid < 0) {
        log_error("runner", "reaper: fork: %s", strerror(errno));
        collect_at(reaper, AGAIN_MS);
        return;
    }
    if (pid == 0) {
        for (const struct dead *dead = reaper->waiting; dead != NULL; dead = dead->next)
            reap(reaper->runner, dead);
        _exit(0);
    }
    for (struct dead *dead = reaper->waiting; dead != NULL; dead = dead->next)
        memory_close(&dead->place->mounts_fd); /* by the child, that is */
    reaper->reaping = steal_pointer(&reaper->waiting);
    reaper->waiting_count = 0;
    reaper->running = true;
    if (loop_child_start(reaper->runner->loop, &reaper->child, pid, -1, true, reaped_cb, &e) < 0)
        log_error("runner", "reaper: %s", e.msg);
}

void reaper_add(struct reaper *reaper, struct place *place, const char *id)
{
    struct dead *dead = calloc(1, sizeof *dead);
    if (dead == NULL) {
        log_error("runner", "no memory to remove %s; its place stays taken", id);
        return;
    }
    dead->place = place;
    text_copy(dead->id, sizeof dead->id, id);
    dead->next = reaper->waiting;
    reaper->waiting = dead;
    bool soon = ++reaper->waiting_count >= COLLECT_MANY ||
                blanks_free_count(reaper->runner->blanks) < PLACES_LOW;
    uint64_t after_ms = soon ? COLLECT_SOON_MS : COLLECT_MS;
    if (!reaper->running &&
        (reaper->collect.position == 0 || reaper->collect.at_boot_ms > clock_boot_ms() + after_ms))
        collect_at(reaper, after_ms);
}

/* --- old logs ---------------------------------------------------------------------------------- */

struct old_log {
    char name[INSTANCE_ID_LENGTH_MAX + 16];
    int64_t changed_s;
    uint64_t bytes;
};

/* The instance of "ID.log" or "ID.log.1"; false for other names. */
static bool log_instance(const char *name, char *id, size_t size)
{
    const char *dot = strchr(name, '.');
    if (dot == NULL || (strcmp(dot, ".log") != 0 && strcmp(dot, ".log.1") != 0))
        return false;
    return text_format(id, size, "%.*s", (int)(dot - name), name);
}

static int compare_age(const void *a, const void *b)
{
    const struct old_log *x = a, *y = b;
    return x->changed_s < y->changed_s ? -1 : x->changed_s > y->changed_s;
}

/* In a child: it may wait for the disk. Logs of instances that are held are left alone. */
static void logs_clean(const struct runner *r)
{
    struct old_log *logs = calloc(LOGS_MAX, sizeof *logs);
    int copy = openat(r->logs_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *folder = copy < 0 ? NULL : fdopendir(copy);
    if (logs == NULL || folder == NULL)
        return;
    size_t count = 0;
    uint64_t total = 0;
    for (struct dirent *entry = readdir(folder); entry != NULL && count < LOGS_MAX;
         entry = readdir(folder)) {
        char id[INSTANCE_ID_LENGTH_MAX + 1];
        struct stat st;
        if (!log_instance(entry->d_name, id, sizeof id) || instances_log_in_use(r->instances, id) ||
            fstatat(r->logs_fd, entry->d_name, &st, AT_SYMLINK_NOFOLLOW) < 0)
            continue;
        if (!text_copy(logs[count].name, sizeof logs[count].name, entry->d_name))
            continue;
        logs[count].changed_s = st.st_mtim.tv_sec;
        logs[count].bytes = (uint64_t)st.st_blocks * 512;
        total += logs[count++].bytes;
    }
    qsort(logs, count, sizeof *logs, compare_age);
    int64_t oldest_s = (int64_t)((clock_wall_ms() - r->config.logs.keep_ms) / 1000);
    for (size_t i = 0; i < count; i++) {
        if (logs[i].changed_s >= oldest_s && total <= r->config.logs.total_bytes)
            break;
        (void)unlinkat(r->logs_fd, logs[i].name, 0);
        total -= logs[i].bytes;
    }
}

static void logs_cleaned_cb(struct loop_child *child, int status)
{
    (void)status;
    container_of(child, struct reaper, logs_child)->logs_running = false;
}

static void logs_cb(struct loop_timer *timer)
{
    struct reaper *reaper = container_of(timer, struct reaper, logs);
    struct err e;
    pid_t pid = reaper->logs_running ? -1 : fork();
    if (pid == 0) {
        logs_clean(reaper->runner);
        _exit(0);
    }
    if (pid > 0) {
        reaper->logs_running = true;
        if (loop_child_start(reaper->runner->loop, &reaper->logs_child, pid, -1, true,
                             logs_cleaned_cb, &e) < 0)
            log_error("runner", "logs: %s", e.msg);
    }
    if (loop_timer_start(reaper->runner->loop, timer, clock_boot_ms() + LOGS_EVERY_MS, logs_cb,
                         &e) < 0)
        log_error("runner", "logs: %s", e.msg);
}

/* --- life -------------------------------------------------------------------------------------- */

int reaper_open(struct reaper **out, struct runner *r, struct err *e)
{
    struct reaper *reaper = calloc(1, sizeof *reaper);
    if (reaper == NULL)
        return err_set(e, ERR_NO_MEMORY, "reaper");
    reaper->runner = r;
    reaper->child.watch = reaper->logs_child.watch = LOOP_WATCH_STOPPED;
    int rc =
        loop_timer_start(r->loop, &reaper->logs, clock_boot_ms() + LOGS_EVERY_MS / 10, logs_cb, e);
    if (rc < 0) {
        free(reaper);
        return rc;
    }
    *out = reaper;
    return 0;
}

void reaper_close(struct reaper *reaper)
{
    if (reaper == NULL)
        return;
    loop_timer_stop(reaper->runner->loop, &reaper->collect);
    loop_timer_stop(reaper->runner->loop, &reaper->logs);
    loop_child_stop(reaper->runner->loop, &reaper->child);
    loop_child_stop(reaper->runner->loop, &reaper->logs_child);
    struct dead *lists[] = {reaper->reaping, reaper->waiting};
    for (size_t i = 0; i < ARRAY_SIZE(lists); i++)
        while (lists[i] != NULL) {
            struct dead *dead = lists[i];
            lists[i] = dead->next;
            reap(reaper->runner, dead);
            blanks_place_free(reaper->runner->blanks, dead->place);
            free(dead);
        }
    free(reaper);
}
