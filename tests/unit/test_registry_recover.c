/* What is left after the loss of a majority, and what comes out of a file. */
#include <fcntl.h>
#include <glob.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/memory.h"
#include "raft/state.h"
#include "tests/lib/registry_help.h"
#include "tests/lib/registry_many.h"

static int open_four(void **state)
{
    struct many *m = calloc(1, sizeof *m);
    assert_non_null(m);
    many_open(m, 4);
    *state = m;
    return 0;
}

static int close_all(void **state)
{
    many_close(*state);
    free(*state);
    return 0;
}

static uint64_t generation(struct many *m, node_id at)
{
    struct registry_root *root = registry_root(m->nodes[at].registry);
    uint64_t generation = root->content.generation;
    registry_root_release(root);
    return generation;
}

/* The folders beside that of node `id`: removed, and how many there were. */
static size_t beside_remove(struct many *m, node_id id)
{
    CLEANUP_FREE char *pattern = text_new("%s.*", m->nodes[id].directory);
    glob_t found;
    if (glob(pattern, 0, NULL, &found) != 0)
        return 0;
    size_t count = found.gl_pathc;
    for (size_t i = 0; i < count; i++)
        help_directory_remove(strdup(found.gl_pathv[i]));
    globfree(&found);
    return count;
}

static void register_nodes(struct many *m, unsigned count)
{
    struct many_answer a;
    struct err e;
    for (unsigned i = 1; i <= count; i++) {
        struct registry_node n = {0};
        text_format(n.name, sizeof n.name, "node%u", i);
        memset(n.public_key, (int)i, sizeof n.public_key);
        const struct registry_command c = {.kind = REGISTRY_NODE_PUT, .node = &n};
        a = (struct many_answer){0};
        assert_int_equal(
            registry_propose(m->nodes[many_leader(m)].registry, &c, many_answered, &a, &e), 0);
        assert_int_equal(many_wait(m, &a).node, i);
    }
}

struct named {
    node_id at;
    const char *name;
};

static bool has_name(struct many *m, void *user)
{
    const struct named *n = user;
    return many_has(m, n->at, n->name);
}

/* Two of three are lost; the survivor goes on, and who comes back as it was is not heard. */
static void recover_one(struct many *m)
{
    char said[1024] = "";
    struct err e = {0};
    many_form(m, 3);
    register_nodes(m, 3);
    many_put(m, 2, "before");
    for (node_id id = 1; id <= 3; id++)
        many_read(m, id);
    for (node_id id = 1; id <= 3; id++)
        many_stop(m, id);
    if (registry_recover(m->nodes[2].directory, 2, said, sizeof said, &e) < 0)
        fail_msg("%s", e.msg);
    assert_non_null(strstr(said, "node1, node3"));
    many_start(m, 2);
    assert_int_equal(many_leader(m), 2);
    many_read(m, 2);
    assert_true(many_has(m, 2, "before"));
    assert_int_equal(generation(m, 2), 2);
    many_put(m, 2, "after");
    assert_int_equal(beside_remove(m, 2), 1);
}

static void one_survivor_goes_on_alone(void **state)
{
    struct many *m = *state;
    struct registry_status s;
    recover_one(m);
    registry_status(m->nodes[2].registry, &s);
    assert_int_equal(s.voters, 1);
    /* It takes members again, and each restart finds it as it was. */
    many_start(m, 4);
    struct named n = {.at = 4, .name = "after"};
    many_run_until(m, has_name, &n);
    many_stop(m, 4);
    many_stop(m, 2);
    many_start(m, 2);
    assert_int_equal(many_leader(m), 2);
    many_read(m, 2);
    assert_true(many_has(m, 2, "after"));
}

static void who_was_left_behind_is_not_heard(void **state)
{
    struct many *m = *state;
    struct many_answer a;
    m->propose_timeout_ms = 1500;
    recover_one(m);
    /* A majority of the old ones comes back: they are a cluster of their own, with node 2 in it. */
    many_start(m, 1);
    many_start(m, 3);
    many_run_for(m, 1500);
    assert_true(m->nodes[2].leader);
    assert_true(m->nodes[1].leader || m->nodes[3].leader);
    many_put(m, 2, "still-here");
    many_read(m, 2);
    assert_false(many_has(m, 1, "still-here"));
    /* Nor does the survivor do what one of them asks. */
    m->nodes[1].cut = true;
    many_run_for(m, 100);
    many_stop(m, 1);
    m->nodes[1].cut = false;
    many_deploy(m, 3, "from-the-past", &a);
    many_run_for(m, 2000);
    assert_true(a.done && a.error);
    assert_false(many_has(m, 2, "from-the-past"));
}

static void a_folder_in_use_is_not_recovered(void **state)
{
    struct many *m = *state;
    char said[64];
    struct err e = {0};
    many_form(m, 1);
    assert_int_equal(registry_recover(m->nodes[1].directory, 1, said, sizeof said, &e),
                     -ERR_CONFLICT);
    assert_int_equal(registry_recover(m->nodes[2].directory, 2, said, sizeof said, &e),
                     -ERR_NOT_FOUND);
    assert_int_equal(registry_recover("/nonexistent/raft", 2, said, sizeof said, &e),
                     -ERR_NOT_FOUND);
}

static void a_registry_comes_out_of_its_file(void **state)
{
    struct many *m = *state;
    struct err e = {0};
    char path[] = "/tmp/skerry-snapshot-XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    unlink(path);
    many_form(m, 3);
    register_nodes(m, 3);
    many_put(m, 1, "saved");
    many_read(m, 3);
    assert_int_equal(registry_snapshot_save(m->nodes[3].registry, fd, &e), 0);
    for (node_id id = 1; id <= 3; id++)
        many_stop(m, id);
    /* Not into a folder that holds something. */
    assert_int_equal(lseek(fd, 0, SEEK_SET), 0);
    assert_int_equal(registry_snapshot_load(m->nodes[1].directory, 1, fd, &e), -ERR_EXISTS);
    assert_int_equal(registry_snapshot_load(m->nodes[4].directory, 4, fd, &e), 0);
    many_start(m, 4);
    assert_int_equal(many_leader(m), 4);
    assert_true(many_has(m, 4, "saved"));
    assert_int_equal(generation(m, 4), 2);
    many_put(m, 4, "after");
    many_stop(m, 4);
    many_start(m, 4);
    many_read(m, 4);
    assert_true(many_has(m, 4, "after"));
    /* A file that is none. */
    many_wipe(m, 2);
    assert_int_equal(lseek(fd, 100, SEEK_SET), 100);
    assert_true(registry_snapshot_load(m->nodes[2].directory, 2, fd, &e) < 0);
    assert_int_equal(e.code, ERR_PROTOCOL);
    close(fd);
}

int main(void)
{
#define FOUR(test) cmocka_unit_test_setup_teardown(test, open_four, close_all)
    const struct CMUnitTest tests[] = {
        FOUR(one_survivor_goes_on_alone),
        FOUR(who_was_left_behind_is_not_heard),
        FOUR(a_folder_in_use_is_not_recovered),
        FOUR(a_registry_comes_out_of_its_file),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
