/* Folders of control groups that must not stay, in a place of this test's own. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/memory.h"
#include "sandbox/runner/cgroup.h"

#define GROUP "skerry-12345678"

static int open_host(struct cgroup_host *host, const char *name, struct err *e)
{
    return cgroup_host_open(
        host, &(struct cgroup_host_options){.name = name, .io = true, .loud = true}, e);
}

static void make(const char *path)
{
    if (mkdir(path, 0755) != 0)
        fail_msg("cannot make %s", path);
}

static bool there(const char *path)
{
    return access(path, F_OK) == 0;
}

/* A folder of our own in each hierarchy, and we in it. */
static void move_to(const struct cgroup_host *host, char own[][CGROUP_PATH_SIZE])
{
    for (size_t i = 0; i < host->tree_count; i++) {
        char path[CGROUP_PATH_SIZE + 32];
        (void)text_copy(own[i], CGROUP_PATH_SIZE, host->trees[i].parent);
        *strrchr(own[i], '/') = '\0';
        size_t length = strlen(own[i]);
        text_format(own[i] + length, CGROUP_PATH_SIZE - length, "/groups-test-%d", (int)getpid());
        make(own[i]);
        text_format(path, sizeof path, "%s/cgroup.procs", own[i]);
        FILE *file = fopen(path, "we");
        assert_non_null(file);
        assert_true(fprintf(file, "%d", (int)getpid()) > 0);
        assert_int_equal(fclose(file), 0);
    }
}

static void expect_swept(const struct cgroup_host *host, char own[][CGROUP_PATH_SIZE])
{
    static const char *const goes[] = {"skerry-0a1b2c3d", "skerry-2-67ca133d"};
    static const char *const stays[] = {"skerry", "skerry-build", "other-0a1b2c3d", GROUP};
    char path[CGROUP_PATH_SIZE];
    for (size_t i = 0; i < host->tree_count; i++) {
        for (size_t k = 0; k < ARRAY_SIZE(goes); k++) {
            text_format(path, sizeof path, "%s/%s", own[i], goes[k]);
            make(path);
        }
        for (size_t k = 0; k < ARRAY_SIZE(stays) - 1; k++) {
            text_format(path, sizeof path, "%s/%s", own[i], stays[k]);
            make(path);
        }
        text_format(path, sizeof path, "%s/%s/i7-blank", own[i], goes[0]);
        make(path);
    }
    cgroup_host_sweep(host, 60);
    for (size_t i = 0; i < host->tree_count; i++) {
        text_format(path, sizeof path, "%s/%s", own[i], goes[1]);
        assert_true(there(path)); /* too young */
    }
    cgroup_host_sweep(host, 0);
    for (size_t i = 0; i < host->tree_count; i++) {
        for (size_t k = 0; k < ARRAY_SIZE(goes); k++) {
            text_format(path, sizeof path, "%s/%s", own[i], goes[k]);
            assert_false(there(path));
        }
        for (size_t k = 0; k < ARRAY_SIZE(stays); k++) {
            text_format(path, sizeof path, "%s/%s", own[i], stays[k]);
            assert_true(there(path));
            if (k < ARRAY_SIZE(stays) - 1)
                assert_int_equal(rmdir(path), 0);
        }
    }
}

/* A process that ends while the runner does: its group is empty a moment later. */
static void expect_closed(struct cgroup_host *host)
{
    struct cgroup_host copy = *host;
    struct cgroup group;
    struct err e;
    char path[CGROUP_PATH_SIZE + 32];
    int entries[CGROUP_TREES_MAX];
    size_t count = 0;
    if (cgroup_name(host, &group, "i3-late", &e) != 0 || cgroup_make(&group, &e) != 0)
        fail_msg("%s", e.msg);
    assert_int_equal(cgroup_entries_open(&group, entries, &count, &e), 0);
    pid_t child = fork();
    if (child == 0) {
        for (size_t i = 0; i < count; i++)
            if (write(entries[i], "0", 1) != 1)
                _exit(1);
        usleep(300000);
        _exit(0);
    }
    usleep(100000);
    cgroup_host_close(host, 5000);
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    for (size_t i = 0; i < count; i++)
        memory_close(&entries[i]);
    for (size_t i = 0; i < copy.tree_count; i++) {
        text_format(path, sizeof path, "%s", copy.trees[i].parent);
        assert_false(there(path));
    }
}

static void look_from_inside(struct cgroup_host *outer)
{
    char own[CGROUP_TREES_MAX][CGROUP_PATH_SIZE];
    struct cgroup_host host;
    struct err e;
    move_to(outer, own);
    assert_int_equal(open_host(&host, GROUP, &e), 0);
    assert_int_equal(host.tree_count, outer->tree_count);
    expect_swept(&host, own);
    expect_closed(&host);
}

static void nothing_stays(void **state)
{
    struct cgroup_host outer;
    struct err e;
    (void)state;
    char name[64];
    text_format(name, sizeof name, "groups-outer-%d", (int)getpid());
    assert_int_equal(open_host(&outer, name, &e), 0);
    if (outer.tree_count == 0) {
        print_message("skipped: no control groups can be made on this machine\n");
        skip();
    }
    char own[CGROUP_TREES_MAX][CGROUP_PATH_SIZE];
    /* In a child, so that nobody is left in the folders. */
    pid_t child = fork();
    if (child == 0) {
        look_from_inside(&outer);
        _exit(0);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    size_t trees = outer.tree_count;
    for (size_t i = 0; i < trees; i++) {
        (void)text_copy(own[i], CGROUP_PATH_SIZE, outer.trees[i].parent);
        *strrchr(own[i], '/') = '\0';
        size_t length = strlen(own[i]);
        text_format(own[i] + length, CGROUP_PATH_SIZE - length, "/groups-test-%d", (int)child);
        assert_int_equal(rmdir(own[i]), 0);
    }
    cgroup_host_close(&outer, 1000);
    assert_int_equal(status, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(nothing_stays)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
