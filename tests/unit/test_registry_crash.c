/* What is on disk after kill -9, a torn write, or damage. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/memory.h"
#include "raft/registry.h"
#include "tests/lib/registry_help.h"
#include "tests/lib/registry_lone.h"

/* --- damage ----------------------------------------------------------------------------------------- */

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
        execl("/proc/self/exe", "test_registry_crash", what, directory, a, b, out, (char *)NULL);
        _exit(127);
    }
    close(ends[1]);
    *from = ends[0];
    return pid;
}

static int refused_child(const char *directory, int out)
{
    struct lone n;
    struct err e = {0};
    lone_loop(&n);
    struct registry_options options = lone_options(&n, directory);
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
    struct lone n;
    lone_start(&n, directory);
    lone_lease(&n);
    lone_deploy(&n, "hello", "scale: {max: 1000}\n");
    lone_flood(&n, 1, 1, 100);
    lone_stop(&n);
    char *segment = file_of(directory, "00000000", "");
    assert_true(damage(segment, 2000));
    refused_in_child(directory, ERR_IO, "read the log");
    assert_true(damage(segment, 2000)); /* back */
    lone_start(&n, directory);
    assert_true(lone_has(&n, 100));
    lone_stop(&n);
    free(segment);
    help_directory_remove(directory);
}

static void a_damaged_snapshot_is_refused(void **state)
{
    (void)state;
    char *directory = help_directory();
    struct lone n;
    lone_loop(&n);
    struct registry_options options = lone_options(&n, directory);
    options.snapshot_threshold = 50;
    options.snapshot_trailing = 10;
    lone_start_with(&n, &options);
    lone_lease(&n);
    lone_deploy(&n, "hello", "scale: {max: 1000}\n");
    lone_flood(&n, 4, 1, 300);
    lone_stop(&n);
    char *meta = file_of(directory, "snapshot-", ".meta");
    char *snapshot = text_new("%.*s", (int)(strlen(meta) - strlen(".meta")), meta);
    assert_true(damage(snapshot, 100));
    refused_in_child(directory, ERR_PROTOCOL, "snapshot is damaged");
    free(meta);
    free(snapshot);
    help_directory_remove(directory);
}

/* --- crashes ---------------------------------------------------------------------------------------- */

enum { CRASH_ROUNDS = 20, CRASH_EACH = 1000000 };

static void report(struct lone_flood *f, const struct registry_result *r, uint64_t i)
{
    (void)r;
    assert_int_equal(write(f->report, &i, sizeof i), sizeof i);
}

/* The process that is killed: proposes and writes to `report` what was acknowledged. */
static int crash_child(const char *directory, unsigned in_flight, uint64_t first, int out)
{
    struct lone n;
    lone_loop(&n);
    struct registry_options options = lone_options(&n, directory);
    options.snapshot_threshold = 64;
    options.snapshot_trailing = 16;
    lone_start_with(&n, &options);
    lone_lease(&n);
    lone_deploy(&n, "hello", "scale: {max: 100000}\n");
    struct lone_flood f = {.n = &n,
                           .in_flight_max = in_flight,
                           .next = first,
                           .last = first + CRASH_EACH - 1,
                           .each = report,
                           .report = out};
    lone_flood_fill(&f);
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
        struct lone n;
        lone_start(&n, directory);
        /* Of this round and of those before, with answers in order: up to the last one. */
        for (unsigned r = 0; r <= round; r++)
            for (uint64_t i = first[r]; i <= last[r]; i++)
                if (!lone_has(&n, i))
                    fail_msg("round %u: instance %llu of round %u was acknowledged and is lost",
                             round, (unsigned long long)i, r);
        lone_stop(&n);
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
        struct lone n;
        lone_start(&n, directory);
        for (uint64_t i = first; i < last; i++)
            assert_true(lone_has(&n, i));
        first = last + 1000;
        lone_reserve(&n, "hello", first++);
        lone_stop(&n);
    }
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
        cmocka_unit_test(a_damaged_log_is_refused_and_left_as_it_is),
        cmocka_unit_test(a_damaged_snapshot_is_refused),
        cmocka_unit_test(what_was_acknowledged_survives_kill_9),
        cmocka_unit_test(a_write_that_was_torn_is_not_there_and_all_before_is),
    };
    return cmocka_run_group_tests_name("registry after a crash", tests, NULL, NULL);
}
