/* The registry as a whole: one voter, a real log on disk, restarts and crashes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/memory.h"
#include "raft/registry.h"
#include "tests/lib/registry_help.h"

/* One registry on a loop of its own, and what it told. */
struct node {
    uv_loop_t loop;
    uv_timer_t alarm; /* bounds every wait */
    struct registry *registry;
    bool leader, late, failed, closed;
    unsigned changes;
    struct err failure;
};

enum { DEADLINE_MS = 20000 };

static void changed(void *user)
{
    ((struct node *)user)->changes++;
}

static void leader_changed(void *user, bool leader)
{
    ((struct node *)user)->leader = leader;
}

static void failed(void *user, const struct err *error)
{
    struct node *n = user;
    n->failed = true;
    n->failure = *error;
}

static void closed(void *user)
{
    ((struct node *)user)->closed = true;
}

static void late(uv_timer_t *timer)
{
    ((struct node *)timer->data)->late = true;
}

/* Runs the loop until *flag. */
static void run_until(struct node *n, const bool *flag)
{
    uv_timer_start(&n->alarm, late, DEADLINE_MS, 0);
    n->late = false;
    while (!*flag && !n->late)
        uv_run(&n->loop, UV_RUN_ONCE);
    uv_timer_stop(&n->alarm);
    assert_true(*flag);
}

static struct registry_options options_of(struct node *n, const char *directory)
{
    return (struct registry_options){.directory = directory,
                                     .id = 1,
                                     .bootstrap = true,
                                     .boot = clock_monotonic_us(),
                                     .user = n,
                                     .changed = changed,
                                     .leader_changed = leader_changed,
                                     .failed = failed};
}

static void node_loop(struct node *n)
{
    memset(n, 0, sizeof *n);
    assert_int_equal(uv_loop_init(&n->loop), 0);
    assert_int_equal(uv_timer_init(&n->loop, &n->alarm), 0);
    n->alarm.data = n;
}

static void node_loop_end(struct node *n)
{
    uv_close((uv_handle_t *)&n->alarm, NULL);
    uv_run(&n->loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(&n->loop), 0);
}

static void node_start_with(struct node *n, const struct registry_options *options)
{
    struct err e = {0};
    int rc = registry_open(&n->registry, &n->loop, options, &e);
    if (rc < 0)
        fail_msg("%s", e.msg);
    run_until(n, &n->leader);
}

static void node_start(struct node *n, const char *directory)
{
    node_loop(n);
    struct registry_options options = options_of(n, directory);
    node_start_with(n, &options);
}

static void node_stop(struct node *n)
{
    registry_close(n->registry, closed, n);
    run_until(n, &n->closed);
    node_loop_end(n);
}

struct answer {
    bool done;
    bool error;
    struct err err;
    struct registry_result result;
};

static void answered(void *user, const struct err *error, const struct registry_result *result)
{
    struct answer *a = user;
    a->done = true;
    a->error = error != NULL;
    if (error != NULL)
        a->err = *error;
    else
        a->result = *result;
}

static struct registry_result propose(struct node *n, const struct registry_command *command)
{
    struct answer a = {0};
    struct err e = {0};
    assert_int_equal(registry_propose(n->registry, command, answered, &a, &e), 0);
    run_until(n, &a.done);
    if (a.error)
        fail_msg("%s", a.err.msg);
    return a.result;
}

static struct registry_result deploy(struct node *n, const char *name, const char *more)
{
    char *json = help_workload_json(name, more);
    struct registry_command c = {.kind = REGISTRY_WORKLOAD_PUT, .workload_json = json};
    struct registry_result r = propose(n, &c);
    free(json);
    return r;
}

static struct registry_result reserve(struct node *n, const char *workload, uint64_t i)
{
    struct registry_instance instance = {.id = help_instance_id(1, i), .owner = 1, .version = 1};
    text_copy(instance.workload, sizeof instance.workload, workload);
    struct registry_command c = {.kind = REGISTRY_INSTANCE_RESERVE, .instance = &instance};
    return propose(n, &c);
}

static void what_was_acknowledged_is_there_after_a_restart(void **state)
{
    (void)state;
    char *directory = help_directory();
    struct node n;
    node_start(&n, directory);
    struct registry_result r = deploy(&n, "hello", "");
    assert_int_equal(r.problem, PROBLEM_NONE);
    assert_int_equal(r.version, 1);
    assert_true(r.changed);
    r = reserve(&n, "hello", 7);
    assert_int_equal(r.problem, PROBLEM_NONE);
    uint64_t epoch = r.epoch;
    assert_true(n.changes > 0);
    node_stop(&n);

    node_start(&n, directory);
    struct registry_root *root = registry_root(n.registry);
    const struct registry_workload *w = registry_root_workload(root, "hello", 5);
    assert_non_null(w);
    assert_int_equal(w->live, 1);
    assert_string_equal(w->spec.id, "hello");
    struct instance_id id = help_instance_id(1, 7);
    const struct registry_instance *i = registry_root_instance(root, id.text, strlen(id.text));
    assert_non_null(i);
    assert_int_equal(i->epoch, epoch);
    registry_root_release(root);
    struct registry_status status;
    registry_status(n.registry, &status);
    assert_true(status.leader);
    assert_int_equal(status.leader_id, 1);
    assert_int_equal(status.voters, 1);
    node_stop(&n);
    help_directory_remove(directory);
}

/* --- the registry in use ---------------------------------------------------------------------------- */

static bool instance_there(struct node *n, uint64_t i)
{
    struct registry_root *root = registry_root(n->registry);
    struct instance_id id = help_instance_id(1, i);
    bool there = registry_root_instance(root, id.text, strlen(id.text)) != NULL;
    registry_root_release(root);
    return there;
}

/* Asks for the next as soon as one is answered, so many at a time. */
struct flood {
    struct node *n;
    unsigned in_flight, in_flight_max;
    uint64_t next, last; /* instances */
    uint64_t answered, refused, failed;
    bool done;
    void (*each)(struct flood *f, const struct registry_result *r, uint64_t i);
    int report;
};

struct flood_ask {
    struct flood *flood;
    uint64_t i;
};

static void flood_fill(struct flood *f);

static void flood_answered(void *user, const struct err *error, const struct registry_result *r)
{
    struct flood_ask *ask = user;
    struct flood *f = ask->flood;
    f->in_flight--;
    if (error != NULL)
        f->failed++;
    else if (r->problem != PROBLEM_NONE)
        f->refused++;
    else
        f->answered++;
    if (error == NULL && f->each != NULL)
        f->each(f, r, ask->i);
    free(ask);
    flood_fill(f);
    f->done = f->in_flight == 0 && f->next > f->last;
}

static void flood_fill(struct flood *f)
{
    while (f->in_flight < f->in_flight_max && f->next <= f->last) {
        struct flood_ask *ask = malloc(sizeof *ask);
        *ask = (struct flood_ask){.flood = f, .i = f->next++};
        struct registry_instance instance = {
            .id = help_instance_id(1, ask->i), .owner = 1, .version = 1, .workload = "hello"};
        struct registry_command c = {.kind = REGISTRY_INSTANCE_RESERVE, .instance = &instance};
        struct err e;
        if (registry_propose(f->n->registry, &c, flood_answered, ask, &e) < 0)
            fail_msg("%s", e.msg);
        f->in_flight++;
    }
}

static void flood(struct node *n, unsigned in_flight, uint64_t first, uint64_t last)
{
    struct flood f = {.n = n, .in_flight_max = in_flight, .next = first, .last = last};
    flood_fill(&f);
    run_until(n, &f.done);
    assert_int_equal(f.answered, last - first + 1);
}

static void a_snapshot_replaces_the_log(void **state)
{
    (void)state;
    char *directory = help_directory();
    struct node n;
    node_loop(&n);
    struct registry_options options = options_of(&n, directory);
    options.snapshot_threshold = 100;
    options.snapshot_trailing = 10;
    node_start_with(&n, &options);
    deploy(&n, "hello", "scale: {max: 100000}\n");
    flood(&n, 8, 1, 1000);
    struct registry_status status;
    registry_status(n.registry, &status);
    assert_true(status.snapshot_index > 500);
    assert_true(status.batches_total < status.proposals_total);
    node_stop(&n);

    node_start(&n, directory);
    for (uint64_t i = 1; i <= 1000; i++)
        assert_true(instance_there(&n, i));
    /* The epochs go on where they were. */
    struct registry_result r = reserve(&n, "hello", 5000);
    assert_int_equal(r.epoch & 0xffffffffff, 1001);
    node_stop(&n);
    help_directory_remove(directory);
}

static void what_waits_at_the_end_is_told(void **state)
{
    (void)state;
    char *directory = help_directory();
    struct node n;
    struct answer a[5] = {0};
    struct err e;
    node_start(&n, directory);
    const struct registry_command c = {.kind = REGISTRY_SWEEP};
    for (unsigned i = 0; i < 5; i++)
        assert_int_equal(registry_propose(n.registry, &c, answered, &a[i], &e), 0);
    registry_close(n.registry, closed, &n);
    assert_int_equal(registry_propose(n.registry, &c, answered, &a[0], &e), -ERR_CANCELED);
    run_until(&n, &n.closed);
    for (unsigned i = 0; i < 5; i++) {
        assert_true(a[i].done);
        assert_int_equal(a[i].err.code, ERR_CANCELED);
    }
    node_loop_end(&n);
    help_directory_remove(directory);
}

static void close_from_an_answer(void *user, const struct err *error,
                                 const struct registry_result *result)
{
    struct node *n = user;
    (void)error;
    (void)result;
    registry_close(n->registry, closed, n);
}

static void an_answer_may_close_the_registry(void **state)
{
    (void)state;
    char *directory = help_directory();
    struct node n;
    struct err e;
    struct answer a = {0};
    node_start(&n, directory);
    const struct registry_command c = {.kind = REGISTRY_SWEEP};
    assert_int_equal(registry_propose(n.registry, &c, close_from_an_answer, &n, &e), 0);
    assert_int_equal(registry_propose(n.registry, &c, answered, &a, &e), 0);
    run_until(&n, &n.closed);
    assert_true(a.done);
    node_loop_end(&n);
    help_directory_remove(directory);
}

static void a_command_out_of_bounds_is_refused_at_once(void **state)
{
    (void)state;
    char *directory = help_directory();
    struct node n;
    struct err e = {0};
    struct answer a = {0};
    node_start(&n, directory);
    const struct registry_command c = {.kind = REGISTRY_WORKLOAD_REMOVE, .name = "NO"};
    assert_int_equal(registry_propose(n.registry, &c, answered, &a, &e), -ERR_INVALID);
    assert_non_null(strstr(e.msg, "name of a workload"));
    node_stop(&n);
    assert_false(a.done);
    help_directory_remove(directory);
}

/* --- a folder that is not as it should be ----------------------------------------------------------- */

static void refused(const char *directory, enum err_code code, const char *why)
{
    struct node n;
    struct err e = {0};
    node_loop(&n);
    struct registry_options options = options_of(&n, directory);
    int rc = registry_open(&n.registry, &n.loop, &options, &e);
    if (rc != -(int)code || strstr(e.msg, why) == NULL)
        fail_msg("%d: %s", rc, e.msg);
    node_loop_end(&n);
}

static void a_folder_belongs_to_one_process(void **state)
{
    (void)state;
    char *directory = help_directory();
    struct node n;
    node_start(&n, directory);
    refused(directory, ERR_CONFLICT, "in use");
    node_stop(&n);
    node_start(&n, directory);
    node_stop(&n);
    help_directory_remove(directory);
}

static void a_folder_that_cannot_be_made_is_an_error(void **state)
{
    (void)state;
    refused("/proc/skerry-registry", ERR_IO, "/proc/skerry-registry");
}

/* The whole path of the file in a folder whose name matches best: the last by name. */
static char *file_of(const char *directory, const char *prefix, const char *suffix)
{
    char found[NAME_MAX + 1] = "";
    DIR *d = opendir(directory);
    assert_non_null(d);
    for (struct dirent *i = readdir(d); i != NULL; i = readdir(d)) {
        size_t length = strlen(i->d_name), end = strlen(suffix);
        if (strncmp(i->d_name, prefix, strlen(prefix)) == 0 && length >= end &&
            strcmp(i->d_name + length - end, suffix) == 0 && strcmp(i->d_name, found) > 0)
            text_copy(found, sizeof found, i->d_name);
    }
    closedir(d);
    if (found[0] == '\0')
        fail_msg("no %s*%s in %s", prefix, suffix, directory);
    return text_new("%s/%s", directory, found);
}

/* Offset of the last byte that is not zero; -1: all are. */
static off_t last_byte(int fd)
{
    struct stat st;
    assert_int_equal(fstat(fd, &st), 0);
    char *whole = malloc((size_t)st.st_size + 1);
    assert_non_null(whole);
    assert_int_equal(pread(fd, whole, (size_t)st.st_size, 0), st.st_size);
    off_t at = st.st_size - 1;
    while (at >= 0 && whole[at] == 0)
        at--;
    free(whole);
    return at;
}

/* False if it is empty: a segment prepared ahead. */
static bool damage(const char *path, off_t back_from_end)
{
    int fd = open(path, O_RDWR | O_CLOEXEC);
    assert_true(fd >= 0);
    off_t at = last_byte(fd) - back_from_end;
    if (at >= 0) {
        char byte;
        assert_int_equal(pread(fd, &byte, 1, at), 1);
        byte = (char)(byte ^ 0x55);
        assert_int_equal(pwrite(fd, &byte, 1, at), 1);
    }
    close(fd);
    return at >= 0;
}

/* This program again, as `what DIRECTORY A B DESCRIPTOR`; *from is what it writes to the descriptor. */
static pid_t child_start(const char *what, const char *directory, const char *a, const char *b,
                         int *from)
{
    int ends[2];
    char out[24];
    assert_int_equal(pipe(ends), 0);
    fcntl(ends[0], F_SETFD, FD_CLOEXEC);
    text_format(out, sizeof out, "%d", ends[1]);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        execl("/proc/self/exe", "test_registry", what, directory, a, b, out, (char *)NULL);
        _exit(127);
    }
    close(ends[1]);
    *from = ends[0];
    return pid;
}

static int refused_child(const char *directory, int out)
{
    struct node n;
    struct err e = {0};
    node_loop(&n);
    struct registry_options options = options_of(&n, directory);
    int rc = registry_open(&n.registry, &n.loop, &options, &e);
    if (write(out, e.msg, sizeof e.msg) != (ssize_t)sizeof e.msg)
        _exit(126);
    _exit(-rc);
}

/* As `refused`, in a process of its own: libraft leaks entries of a segment that it gives up. */
static void refused_in_child(const char *directory, enum err_code code, const char *why)
{
    int from, status;
    char msg[sizeof((struct err *)0)->msg];
    pid_t pid = child_start("refused", directory, "", "", &from);
    assert_int_equal(read(from, msg, sizeof msg), sizeof msg);
    close(from);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    if (!WIFEXITED(status) || WEXITSTATUS(status) != (int)code || strstr(msg, why) == NULL)
        fail_msg("%d: %s", status, msg);
}

static void a_damaged_log_is_refused_and_left_as_it_is(void **state)
{
    (void)state;
    char *directory = help_directory();
    struct node n;
    node_start(&n, directory);
    deploy(&n, "hello", "scale: {max: 1000}\n");
    flood(&n, 1, 1, 100);
    node_stop(&n);
    char *segment = file_of(directory, "00000000", "");
    assert_true(damage(segment, 2000));
    refused_in_child(directory, ERR_IO, "read the log");
    assert_true(damage(segment, 2000)); /* back */
    node_start(&n, directory);
    assert_true(instance_there(&n, 100));
    node_stop(&n);
    free(segment);
    help_directory_remove(directory);
}

static void a_damaged_snapshot_is_refused(void **state)
{
    (void)state;
    char *directory = help_directory();
    struct node n;
    node_loop(&n);
    struct registry_options options = options_of(&n, directory);
    options.snapshot_threshold = 50;
    options.snapshot_trailing = 10;
    node_start_with(&n, &options);
    deploy(&n, "hello", "scale: {max: 1000}\n");
    flood(&n, 4, 1, 300);
    node_stop(&n);
    char *meta = file_of(directory, "snapshot-", ".meta");
    char *snapshot = text_new("%.*s", (int)(strlen(meta) - strlen(".meta")), meta);
    assert_true(damage(snapshot, 100));
    refused(directory, ERR_PROTOCOL, "snapshot is damaged");
    free(meta);
    free(snapshot);
    help_directory_remove(directory);
}

/* --- crashes ---------------------------------------------------------------------------------------- */

enum { CRASH_ROUNDS = 20, CRASH_EACH = 1000000 };

static void report(struct flood *f, const struct registry_result *r, uint64_t i)
{
    (void)r;
    assert_int_equal(write(f->report, &i, sizeof i), sizeof i);
}

/* The process that is killed: proposes and writes to `report` what was acknowledged. */
static int crash_child(const char *directory, unsigned in_flight, uint64_t first, int out)
{
    struct node n;
    node_loop(&n);
    struct registry_options options = options_of(&n, directory);
    options.snapshot_threshold = 64;
    options.snapshot_trailing = 16;
    node_start_with(&n, &options);
    deploy(&n, "hello", "scale: {max: 100000}\n");
    struct flood f = {.n = &n,
                      .in_flight_max = in_flight,
                      .next = first,
                      .last = first + CRASH_EACH - 1,
                      .each = report,
                      .report = out};
    flood_fill(&f);
    while (!f.done)
        uv_run(&n.loop, UV_RUN_ONCE);
    return 1; /* it should have been killed */
}

static pid_t crash_start(const char *directory, unsigned in_flight, uint64_t first, int *from)
{
    char text_in_flight[24], text_first[24];
    text_format(text_in_flight, sizeof text_in_flight, "%u", in_flight);
    text_format(text_first, sizeof text_first, "%llu", (unsigned long long)first);
    return child_start("crash", directory, text_in_flight, text_first, from);
}

/* Lets it acknowledge `enough`, kills it, and gives the last that it acknowledged. */
static uint64_t crash(const char *directory, unsigned in_flight, uint64_t first, unsigned enough)
{
    int from;
    uint64_t last = 0;
    pid_t pid = crash_start(directory, in_flight, first, &from);
    for (unsigned i = 0; i < enough; i++)
        if (read(from, &last, sizeof last) != (ssize_t)sizeof last)
            fail_msg("the child ended by itself");
    kill(pid, SIGKILL);
    while (read(from, &last, sizeof last) == (ssize_t)sizeof last)
        ;
    close(from);
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    return last;
}

static void what_was_acknowledged_survives_kill_9(void **state)
{
    (void)state;
    char *directory = help_directory();
    unsigned seed = 7;
    uint64_t first[CRASH_ROUNDS + 1], last[CRASH_ROUNDS + 1];
    for (unsigned round = 0; round < CRASH_ROUNDS; round++) {
        unsigned in_flight = round % 2 == 0 ? 1 : 32;
        first[round] = 1 + (uint64_t)round * CRASH_EACH;
        last[round] = crash(directory, in_flight, first[round], 1 + (unsigned)rand_r(&seed) % 300);
        struct node n;
        node_start(&n, directory);
        /* Of this round and of those before, with answers in order: up to the last one. */
        for (unsigned r = 0; r <= round; r++)
            for (uint64_t i = first[r]; i <= last[r]; i++)
                if (!instance_there(&n, i))
                    fail_msg("round %u: instance %llu of round %u was acknowledged and is lost",
                             round, (unsigned long long)i, r);
        node_stop(&n);
    }
    help_directory_remove(directory);
}

static void damage_newest_open(const char *directory)
{
    for (unsigned n = 20; n > 0; n--) {
        char *segment = text_new("%s/open-%u", directory, n);
        bool damaged = access(segment, F_OK) == 0 && damage(segment, 8);
        free(segment);
        if (damaged)
            return;
    }
    fail_msg("no open segment was written to");
}

static void a_write_that_was_torn_is_not_there_and_all_before_is(void **state)
{
    (void)state;
    char *directory = help_directory();
    uint64_t first = 1;
    for (unsigned round = 0; round < 5; round++) {
        uint64_t last = crash(directory, 1, first, 20 + round);
        /* The newest may be prepared ahead and empty; the one before it then has the last write. */
        damage_newest_open(directory);
        struct node n;
        node_start(&n, directory);
        for (uint64_t i = first; i < last; i++)
            assert_true(instance_there(&n, i));
        first = last + 1000;
        reserve(&n, "hello", first++);
        node_stop(&n);
    }
    help_directory_remove(directory);
}

/* --- a disk that is full ---------------------------------------------------------------------------- */

static void a_disk_that_fails_is_told(void **state)
{
    (void)state;
    char *directory = help_directory();
    struct node n;
    node_start(&n, directory);
    deploy(&n, "hello", "scale: {max: 100000}\n");
    /* No file may grow: the next segment cannot be made. */
    struct rlimit before, none;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    none = before;
    none.rlim_cur = 1;
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &none), 0);
    struct flood f = {.n = &n, .in_flight_max = 256, .next = 1, .last = UINT64_MAX - 1};
    flood_fill(&f);
    uv_timer_start(&n.alarm, late, DEADLINE_MS, 0);
    while (!n.failed && !n.late)
        uv_run(&n.loop, UV_RUN_ONCE);
    f.last = 0;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
    signal(SIGXFSZ, SIG_DFL);
    assert_true(n.failed);
    assert_non_null(strstr(n.failure.msg, "raft:"));
    const struct registry_command c = {.kind = REGISTRY_SWEEP};
    struct answer a = {0};
    struct err e;
    assert_int_equal(registry_propose(n.registry, &c, answered, &a, &e), -ERR_UNAVAILABLE);
    uint64_t known = f.answered;
    node_stop(&n);
    assert_true(f.failed > 0);
    /* All that was answered before is there. */
    node_start(&n, directory);
    for (uint64_t i = 1; i <= known; i++)
        assert_true(instance_there(&n, i));
    node_stop(&n);
    help_directory_remove(directory);
}

/* --- pauses ----------------------------------------------------------------------------------------- */

struct pauses {
    uv_timer_t timer;
    uint64_t last_us, longest_us;
};

/* CPU time of this thread, so that what other processes take does not count. */
static uint64_t cpu_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

static void pause_tick(uv_timer_t *timer)
{
    struct pauses *p = timer->data;
    uint64_t now = cpu_us();
    if (p->last_us != 0 && now - p->last_us > p->longest_us)
        p->longest_us = now - p->last_us;
    p->last_us = now;
}

/* Says for how long the loop did nothing else, and asserts nothing about time. */
static void the_loop_goes_on_while_a_snapshot_is_taken(void **state)
{
    (void)state;
    char *directory = help_directory();
    struct node n;
    struct pauses p = {0};
    node_loop(&n);
    struct registry_options options = options_of(&n, directory);
    node_start_with(&n, &options);
    uv_timer_init(&n.loop, &p.timer);
    p.timer.data = &p;
    deploy(&n, "hello", "scale: {max: 100000}\n");
    flood(&n, 256, 1, 60000);
    uv_timer_start(&p.timer, pause_tick, 1, 1);
    flood(&n, 256, 60001, 100000);
    uv_close((uv_handle_t *)&p.timer, NULL);
    printf("longest pause of the loop with 100000 instances, 256 writes in flight, and snapshots: "
           "%.1f ms\n",
           (double)p.longest_us / 1e3);
    node_stop(&n);
    uint64_t begin = clock_monotonic_us();
    node_start(&n, directory);
    printf("restart with 100000 instances: %.0f ms\n",
           (double)(clock_monotonic_us() - begin) / 1e3);
    node_stop(&n);
    help_directory_remove(directory);
}

/* --- how fast --------------------------------------------------------------------------------------- */

static void how_fast_it_writes(void **state)
{
    (void)state;
    static const unsigned in_flight[] = {1, 32, 256};
    char *directory = help_directory();
    struct node n;
    node_start(&n, directory);
    deploy(&n, "hello", "scale: {max: 100000}\n");
    uint64_t first = 1;
    for (size_t i = 0; i < ARRAY_SIZE(in_flight); i++) {
        uint64_t count = 500 * in_flight[i] / (i + 1);
        uint64_t begin = clock_monotonic_us();
        flood(&n, in_flight[i], first, first + count - 1);
        uint64_t took = clock_monotonic_us() - begin;
        first += count;
        printf("durable writes, %u in flight: %.0f/s\n", in_flight[i],
               (double)count * 1e6 / (double)took);
    }
    node_stop(&n);
    help_directory_remove(directory);
}

int main(int argc, char **argv)
{
    if (argc == 6 && strcmp(argv[1], "crash") == 0)
        return crash_child(argv[2], (unsigned)strtoul(argv[3], NULL, 10),
                           strtoull(argv[4], NULL, 10), (int)strtol(argv[5], NULL, 10));
    if (argc == 6 && strcmp(argv[1], "refused") == 0)
        return refused_child(argv[2], (int)strtol(argv[5], NULL, 10));
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_was_acknowledged_is_there_after_a_restart),
        cmocka_unit_test(a_snapshot_replaces_the_log),
        cmocka_unit_test(what_waits_at_the_end_is_told),
        cmocka_unit_test(an_answer_may_close_the_registry),
        cmocka_unit_test(a_command_out_of_bounds_is_refused_at_once),
        cmocka_unit_test(a_folder_belongs_to_one_process),
        cmocka_unit_test(a_folder_that_cannot_be_made_is_an_error),
        cmocka_unit_test(a_damaged_log_is_refused_and_left_as_it_is),
        cmocka_unit_test(a_damaged_snapshot_is_refused),
        cmocka_unit_test(what_was_acknowledged_survives_kill_9),
        cmocka_unit_test(a_write_that_was_torn_is_not_there_and_all_before_is),
        cmocka_unit_test(a_disk_that_fails_is_told),
        cmocka_unit_test(the_loop_goes_on_while_a_snapshot_is_taken),
        cmocka_unit_test(how_fast_it_writes),
    };
    return cmocka_run_group_tests_name("registry", tests, NULL, NULL);
}
