/* Starts that are disturbed: processes killed at any moment, system calls of the setup that fail or kill.
 * Afterwards nothing is left of them anywhere on the machine, and the runner serves as before.
 *
 * SKERRY_STARTS=2000 makes it as many starts; every tenth is killed. SKERRY_SEED replays. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/memory.h"
#include "sandbox/runner/image.h"
#include "sandbox/runner/runner.h"
#include "tests/lib/runner_fixture.h"
#include "tests/lib/runner_in_process.h"

#define STARTS_DEFAULT 60
#define KILL_EVERY 10
/* A start takes 2 to 4 ms here, so that all of it is hit. */
#define KILL_WITHIN_US 5000u
#define NAMESPACES_MAX 65536

#define WORDS(...)                                                                                 \
    (char *[]){__VA_ARGS__}, sizeof((const char *[]){__VA_ARGS__}) / sizeof(const char *)

static uint32_t seed;

static uint32_t next_random(uint32_t below)
{
    seed = seed * 1664525u + 1013904223u;
    return (seed >> 8) % below;
}

static uint32_t from_environment(const char *name, uint32_t fallback)
{
    const char *text = getenv(name);
    return text == NULL ? fallback : (uint32_t)strtoul(text, NULL, 10);
}

/* Ids at the end of the range, where no other test's runner has its own. */
static int run(const char *directory, const char *socket, int ready_fd)
{
    const struct runner_options options = {
        .uid_base = RUNNER_UID_BASE + 4000ll * RUNNER_UIDS_PER_INSTANCE,
        .instances_max = 80,
        .directory = directory,
        .socket = socket,
        .node_uid = 0,
        .node_gid = 0,
        .blanks = 0,
        .ready_fd = ready_fd,
    };
    return runner_in_process_run(options);
}

/* --- what is there ---------------------------------------------------------------------------- */

struct machine {
    struct fixture_traces runner;
    size_t mounts;     /* of the machine */
    size_t namespaces; /* that any process is in */
    size_t files;      /* below the runner's folder */
    size_t foreign;    /* of these, owned by an instance's id */
};

static size_t lines(const char *path)
{
    FILE *file = fopen(path, "re");
    size_t count = 0;
    for (int c = file == NULL ? EOF : getc(file); c != EOF; c = getc(file))
        count += c == '\n';
    if (file != NULL)
        fclose(file);
    return count;
}

static int compare(const void *a, const void *b)
{
    const uint64_t *x = a, *y = b;
    return *x < *y ? -1 : *x > *y;
}

static size_t namespaces_count(void)
{
    static const char *const kinds[] = {"user", "mnt", "net", "pid", "ipc", "uts", "cgroup"};
    static uint64_t seen[NAMESPACES_MAX];
    size_t count = 0, different = 0;
    DIR *proc = opendir("/proc");
    assert_non_null(proc);
    for (struct dirent *e = readdir(proc); e != NULL; e = readdir(proc))
        for (size_t k = 0; atoi(e->d_name) > 0 && k < ARRAY_SIZE(kinds); k++) {
            char path[320];
            struct stat st;
            (void)text_format(path, sizeof path, "/proc/%s/ns/%s", e->d_name, kinds[k]);
            if (count < NAMESPACES_MAX && stat(path, &st) == 0)
                seen[count++] = st.st_ino;
        }
    closedir(proc);
    qsort(seen, count, sizeof *seen, compare);
    for (size_t i = 0; i < count; i++)
        different += i == 0 || seen[i] != seen[i - 1];
    return different;
}

static size_t file_count, foreign_count;
static int count_file(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)path;
    (void)type;
    (void)ftw;
    file_count++;
    foreign_count += (st->st_uid >= RUNNER_UID_BASE && st->st_uid < IMAGE_UID_BASE) ||
                     (st->st_gid >= RUNNER_UID_BASE && st->st_gid < IMAGE_UID_BASE);
    return 0;
}

static void machine_read(const struct runner_fixture *f, struct machine *out)
{
    memset(out, 0, sizeof *out);
    assert_true(fixture_settle(f, &out->runner, FIXTURE_WAIT_MS));
    out->mounts = lines("/proc/self/mountinfo");
    out->namespaces = namespaces_count();
    file_count = foreign_count = 0;
    (void)nftw(f->directory, count_file, 16, FTW_PHYS | FTW_MOUNT);
    out->files = file_count;
    out->foreign = foreign_count;
}

/* Namespaces of processes that are just being reaped need another look. */
static void assert_as_before(const struct runner_fixture *f, const struct machine *before)
{
    struct machine now;
    uint64_t until = clock_monotonic_ms() + FIXTURE_WAIT_MS;
    do {
        machine_read(f, &now);
    } while (now.namespaces > before->namespaces && clock_monotonic_ms() < until);
    print_message("descriptors %zu, mounts %zu + %zu, children %zu, groups %zu, namespaces %zu, "
                  "files %zu\n",
                  now.runner.descriptors, now.runner.mounts, now.mounts, now.runner.children,
                  now.runner.groups, now.namespaces, now.files);
    assert_int_equal(now.runner.descriptors, before->runner.descriptors);
    assert_int_equal(now.runner.mounts, before->runner.mounts);
    assert_int_equal(now.runner.children, before->runner.children);
    assert_int_equal(now.runner.groups, before->runner.groups);
    assert_int_equal(now.runner.folders, 0);
    assert_int_equal(now.mounts, before->mounts);
    assert_true(now.namespaces <= before->namespaces);
    assert_int_equal(now.files, before->files);
    /* No file of an instance's ids outlives it, so the ids can be given to another. */
    assert_int_equal(now.foreign, 0);
}

/* --- starts ----------------------------------------------------------------------------------- */

struct tally {
    unsigned ended, refused;
    char said[256]; /* by the last that was refused */
};

/* However it ends, it is waited for and forgotten. */
static void start(struct runner_fixture *f, bool alone, struct tally *tally)
{
    char id[32];
    Skerry__Runner__Prepare p;
    struct fixture_answer answer;
    fixture_id(id);
    fixture_prepare_init(&p, id, WORDS("sh", "-c", "sleep 100 & echo x > /tmp/f; echo y"));
    uint32_t error = fixture_prepare(f, &p, &answer);
    assert_non_null(answer.message); /* the runner is there */
    if (error != 0) {
        if (alone)
            fail_msg("start: %s", answer.reply->message);
        text_copy(tally->said, sizeof tally->said, answer.reply->message);
        fixture_answer_free(&answer);
        tally->refused++;
        return;
    }
    (void)fixture_commit(f, id);
    const Skerry__Runner__Event *event =
        fixture_event(f, SKERRY__RUNNER__EVENT__EVENT_ENDED, id, FIXTURE_WAIT_MS);
    assert_non_null(event);
    if (alone)
        assert_int_equal(event->ended->exit_code, 0);
    fixture_event_forget(f, event);
    while (f->event_count > 0)
        fixture_event_forget(f, f->events[0]->event);
    fixture_answer_free(&answer);
    (void)fixture_forget(f, id);
    tally->ended++;
}

static pid_t parent_of(const char *pid)
{
    char path[300], text[512] = "";
    (void)text_format(path, sizeof path, "/proc/%s/stat", pid);
    CLEANUP_FD int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || read(fd, text, sizeof text - 1) <= 0)
        return 0;
    const char *end = strrchr(text, ')');
    return end == NULL ? 0 : atoi(end + 4);
}

/* The latest child of the runner: a blank, an agent, or what removes groups. */
static void kill_youngest_child(pid_t runner)
{
    pid_t youngest = 0;
    DIR *proc = opendir("/proc");
    for (struct dirent *e = proc == NULL ? NULL : readdir(proc); e != NULL; e = readdir(proc)) {
        pid_t pid = atoi(e->d_name);
        if (pid > youngest && pid != getpid() && parent_of(e->d_name) == runner)
            youngest = pid;
    }
    if (youngest > 0)
        (void)kill(youngest, SIGKILL);
}

static pid_t killer_start(pid_t runner)
{
    uint32_t after_us = next_random(KILL_WITHIN_US);
    pid_t pid = fork();
    if (pid == 0) {
        (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
        nanosleep(&(struct timespec){.tv_nsec = (long)after_us * 1000}, NULL);
        kill_youngest_child(runner);
        _exit(0);
    }
    assert_true(pid > 0);
    return pid;
}

static void starts_killed_at_any_moment_leave_nothing(void **state)
{
    struct runner_fixture *f = *state;
    struct tally undisturbed = {0}, killed = {0};
    struct machine before;
    uint32_t count = from_environment("SKERRY_STARTS", STARTS_DEFAULT);
    seed = from_environment("SKERRY_SEED", (uint32_t)clock_monotonic_us());
    print_message("seed %u\n", seed);
    for (int i = 0; i < 3; i++)
        start(f, true, &undisturbed);
    machine_read(f, &before);
    for (uint32_t i = 0; i < count; i++) {
        bool disturbed = i % KILL_EVERY == KILL_EVERY - 1;
        pid_t killer = disturbed ? killer_start(f->pid) : -1;
        start(f, false, disturbed ? &killed : &undisturbed);
        if (disturbed)
            assert_int_equal(waitpid(killer, NULL, 0), killer);
    }
    print_message("%u starts undisturbed; killed: %u refused, %u ended\n", undisturbed.ended,
                  killed.refused, killed.ended);
    assert_int_equal(undisturbed.refused, 0);
    assert_int_equal(killed.refused + killed.ended, count / KILL_EVERY);
    assert_as_before(f, &before);
    start(f, true, &undisturbed);
}

/* --- faults at each step ---------------------------------------------------------------------- */

struct fault {
    const char *call;
    const char *what; /* for strace's inject= */
    unsigned times;   /* at its first, second, ... call */
};

/* What fails with an error may be the runner's or the blank's own call. Only what the blank and the
 * agent alone do may kill, or the runner itself would be gone. */
static const struct fault faults[] = {
    {"clone3", "error=EAGAIN", 1},        {"mkdir,mkdirat", "error=ENOSPC", 8},
    {"fsopen", "error=ENOMEM", 3},        {"fsconfig", "error=ENOMEM", 2},
    {"fsmount", "error=ENOMEM", 3},       {"open_tree", "error=ENOMEM", 4},
    {"move_mount", "error=ENOMEM", 6},    {"mount_setattr", "error=EPERM", 3},
    {"setresgid", "error=EAGAIN", 1},     {"setresuid", "error=EAGAIN", 1},
    {"setgroups", "error=EPERM", 2},      {"sethostname", "error=EPERM", 1},
    {"symlinkat", "error=ENOSPC", 2},     {"pivot_root", "error=EBUSY", 1},
    {"umount2", "error=EBUSY", 1},        {"execveat", "error=ENOMEM", 1},
    {"capset", "error=EPERM", 1},         {"prctl", "error=EINVAL", 4},
    {"socketpair", "error=EMFILE", 1},    {"bind", "error=EADDRINUSE", 1},
    {"pipe2", "error=EMFILE", 2},         {"signalfd4", "error=EMFILE", 1},
    {"epoll_create1", "error=EMFILE", 1}, {"close_range", "signal=KILL", 2},
    {"setgroups", "signal=KILL", 2},      {"sethostname", "signal=KILL", 1},
    {"symlinkat", "signal=KILL", 2},      {"pivot_root", "signal=KILL", 1},
    {"umount2", "signal=KILL", 1},        {"execveat", "signal=KILL", 1},
    {"capset", "signal=KILL", 2},         {"signalfd4", "signal=KILL", 1},
    {"epoll_create1", "signal=KILL", 1},
};

/* Returns strace's pid once it holds the runner. */
static pid_t strace_start(pid_t runner, const struct fault *fault, unsigned nth)
{
    char trace[64], inject[128], pid_text[16], path[64];
    (void)text_format(trace, sizeof trace, "trace=%s", fault->call);
    (void)text_format(inject, sizeof inject, "inject=%s:%s:when=%u", fault->call, fault->what, nth);
    (void)text_format(pid_text, sizeof pid_text, "%d", (int)runner);
    (void)text_format(path, sizeof path, "/proc/%d/status", (int)runner);
    pid_t pid = fork();
    if (pid == 0) {
        (void)prctl(PR_SET_PDEATHSIG, SIGTERM);
        (void)execlp("strace", "strace", "-qqq", "-f", "-o", "/dev/null", "-e", trace, "-e", inject,
                     "-p", pid_text, (char *)NULL);
        _exit(127);
    }
    uint64_t until = clock_monotonic_ms() + FIXTURE_WAIT_MS;
    for (bool traced = false; !traced;) {
        char line[256];
        FILE *file = fopen(path, "re");
        while (file != NULL && fgets(line, sizeof line, file) != NULL)
            traced = traced || (strncmp(line, "TracerPid:", 10) == 0 && atoi(line + 10) == pid);
        if (file != NULL)
            fclose(file);
        assert_true(clock_monotonic_ms() < until);
        if (!traced)
            nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    }
    return pid;
}

/* A tracer that is told to leave waits for each process that it traces by its id. A blank that is just
 * exiting waits for all processes of its namespace, and of these a dead helper is the tracer's to
 * reap: the two would wait for each other. So it is told when the start's processes are gone. */
static void strace_stop(const struct runner_fixture *f, size_t children, pid_t strace)
{
    uint64_t until = clock_monotonic_ms() + FIXTURE_WAIT_MS;
    struct fixture_traces now;
    bool gone = false, left = false;
    while (!gone && clock_monotonic_ms() < until) {
        fixture_traces_read(f, &now);
        gone = now.children <= children;
        if (!gone)
            (void)poll(NULL, 0, 1);
    }
    (void)kill(strace, gone ? SIGTERM : SIGKILL);
    while (!left && clock_monotonic_ms() < until) {
        left = waitpid(strace, NULL, WNOHANG) == strace;
        if (!left)
            (void)poll(NULL, 0, 1);
    }
    if (!left) {
        (void)kill(strace, SIGKILL);
        assert_int_equal(waitpid(strace, NULL, 0), strace);
    }
    assert_true(gone && left);
}

static void start_with_fault(struct runner_fixture *f, const struct machine *before,
                             const struct fault *fault, unsigned nth, struct tally *tally)
{
    pid_t strace = strace_start(f->pid, fault, nth);
    start(f, false, tally);
    strace_stop(f, before->runner.children, strace);
}

static void setup_that_fails_at_any_step_leaves_nothing(void **state)
{
    struct runner_fixture *f = *state;
    struct tally tally = {0}, undisturbed = {0};
    struct machine before;
    for (int i = 0; i < 3; i++)
        start(f, true, &undisturbed);
    machine_read(f, &before);
    for (size_t i = 0; i < ARRAY_SIZE(faults); i++)
        for (unsigned nth = 1; nth <= faults[i].times; nth++)
            start_with_fault(f, &before, &faults[i], nth, &tally);
    print_message("%u starts refused, %u ended\n", tally.refused, tally.ended);
    /* Faults that nobody hears of would test nothing. */
    assert_true(tally.refused > tally.ended);
    start(f, true, &undisturbed);
    assert_as_before(f, &before);
}

/* The kernel's bounds on namespaces (user.max_*_namespaces) are answered with ENOSPC. The clone is
 * the blank's. */
static void namespaces_that_cannot_be_made_are_named(void **state)
{
    static const struct fault faults_of[] = {{"unshare", "error=ENOSPC", 1},
                                             {"clone", "error=ENOSPC", 1}};
    static const char *const said[] = {"make network namespace: No space left on device",
                                       "make the second user namespace: No space left on device"};
    struct runner_fixture *f = *state;
    struct tally tally = {0};
    struct machine before;
    start(f, true, &tally);
    machine_read(f, &before);
    for (unsigned i = 0; i < ARRAY_SIZE(said); i++) {
        start_with_fault(f, &before, &faults_of[i], 1, &tally);
        assert_int_equal(tally.refused, i + 1);
        assert_string_equal(tally.said, said[i]);
    }
    start(f, true, &tally);
    assert_as_before(f, &before);
}

static int setup(void **state)
{
    static struct runner_fixture fixture;
    signal(SIGPIPE, SIG_IGN);
    fixture_open(&fixture, run);
    *state = &fixture;
    return 0;
}

static int teardown(void **state)
{
    fixture_close(*state);
    return 0;
}

int main(void)
{
    if (geteuid() != 0) {
        printf("skipped: a sandbox needs root\n");
        return 0;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(starts_killed_at_any_moment_leave_nothing, setup, teardown),
        cmocka_unit_test_setup_teardown(setup_that_fails_at_any_step_leaves_nothing, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(namespaces_that_cannot_be_made_are_named, setup, teardown),
    };
    return cmocka_run_group_tests_name("leaks", tests, NULL, NULL);
}
