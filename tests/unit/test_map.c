#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* The map is compiled into this test, so that its memory can be counted and made to fail. */
static size_t blocks_live;
static size_t mallocs_until_failure; /* 0: never */

static void *counting_malloc(size_t size)
{
    if (mallocs_until_failure > 0 && --mallocs_until_failure == 0)
        return NULL;
    blocks_live++;
    return malloc(size);
}

static void counting_free(void *block)
{
    if (block != NULL)
        blocks_live--;
    free(block);
}

#define malloc counting_malloc
#define free counting_free
#include "base/map.c"
#undef malloc
#undef free

enum { MODEL_KEYS = 600 };

struct number {
    struct map_value value;
    int n;
};
static size_t numbers_live;

static void number_release(struct map_value *value)
{
    numbers_live--;
    free(container_of(value, struct number, value));
}

static struct map_value *number_new(int n)
{
    struct number *number = malloc(sizeof *number);
    assert_non_null(number);
    map_value_init(&number->value, number_release);
    number->n = n;
    numbers_live++;
    return &number->value;
}

static int number_of(struct map_value *value)
{
    return container_of(value, struct number, value)->n;
}

static void put(struct map *m, const void *key, size_t length, int n)
{
    struct err e;
    struct map_value *value = number_new(n);
    assert_int_equal(map_put(m, m, key, length, value, &e), 0);
    map_value_drop(value);
}

static void nothing_is_left(void)
{
    assert_int_equal(numbers_live, 0);
    assert_int_equal(blocks_live, 0);
}

static size_t check_node(const struct map_node *node)
{
    if (node == NULL)
        return 0;
    size_t left = check_node(node->left);
    size_t right = check_node(node->right);
    assert_int_equal(node->count, left + right + 1);
    assert_true(left + 1 <= 3 * (right + 1));
    assert_true(right + 1 <= 3 * (left + 1));
    return node->count;
}

static uint32_t random_next(uint32_t *seed)
{
    *seed ^= *seed << 13;
    *seed ^= *seed >> 17;
    *seed ^= *seed << 5;
    return *seed;
}

static size_t key_of(int i, char out[16])
{
    return (size_t)snprintf(out, 16, "key%d", i);
}

struct seen {
    char last[MAP_KEY_LENGTH_MAX + 1]; /* with a NUL behind */
    size_t last_length;
    size_t count;
    size_t stop_after;
    const int *model;
};

static bool see(void *user, const void *key, size_t length, struct map_value *value)
{
    struct seen *s = user;
    if (s->count > 0)
        assert_true(compare(s->last, s->last_length, key, length) < 0);
    memcpy(s->last, key, length);
    s->last[length] = '\0';
    s->last_length = length;
    s->count++;
    if (s->model != NULL)
        assert_int_equal(number_of(value), s->model[strtol(s->last + 3, NULL, 10)]);
    return s->count != s->stop_after;
}

static void check_model(const struct map *m, const int *model)
{
    size_t count = 0;
    for (int i = 0; i < MODEL_KEYS; i++) {
        char key[16];
        struct map_value *value = map_get(m, key, key_of(i, key));
        if (model[i] == 0) {
            assert_null(value);
            continue;
        }
        assert_non_null(value);
        assert_int_equal(number_of(value), model[i]);
        count++;
    }
    assert_int_equal(m->count, count);
    assert_int_equal(check_node(m->root), count);
    struct seen seen = {.model = model};
    map_walk(m, NULL, 0, see, &seen);
    assert_int_equal(seen.count, count);
}

static void random_changes_agree_with_a_model(void **state)
{
    (void)state;
    for (uint32_t run = 1; run <= 4; run++) {
        uint32_t seed = run * 2654435761u;
        struct map m = {0};
        int model[MODEL_KEYS] = {0};
        for (int step = 1; step <= 20000; step++) {
            int i = (int)(random_next(&seed) % MODEL_KEYS);
            char key[16];
            size_t length = key_of(i, key);
            /* Long phases of growing and of shrinking, so that the tree gets full and empty. */
            if (random_next(&seed) % 10 < ((step / 2500) % 2 == 0 ? 8u : 2u)) {
                put(&m, key, length, step);
                model[i] = step;
            } else {
                struct err e;
                assert_int_equal(map_remove(&m, &m, key, length, &e), 0);
                model[i] = 0;
            }
            if (step % 500 == 0)
                check_model(&m, model);
        }
        map_release(&m);
        nothing_is_left();
    }
}

static void keys_in_order_stay_balanced(void **state)
{
    (void)state;
    struct map m = {0};
    for (uint32_t i = 0; i < 20000; i++) {
        unsigned char key[4] = {(unsigned char)(i >> 24), (unsigned char)(i >> 16),
                                (unsigned char)(i >> 8), (unsigned char)i};
        put(&m, key, 4, (int)i);
    }
    assert_int_equal(check_node(m.root), 20000);
    for (uint32_t i = 0; i < 19000; i++) {
        unsigned char key[4] = {(unsigned char)(i >> 24), (unsigned char)(i >> 16),
                                (unsigned char)(i >> 8), (unsigned char)i};
        assert_int_equal(map_remove(&m, &m, key, 4, NULL), 0);
    }
    assert_int_equal(check_node(m.root), 1000);
    map_release(&m);
    nothing_is_left();
}

static void older_roots_never_change(void **state)
{
    (void)state;
    enum { ROOTS = 60 };
    static struct map roots[ROOTS];
    static int models[ROOTS][MODEL_KEYS];
    struct map m = {0};
    int model[MODEL_KEYS] = {0};
    uint32_t seed = 77;
    for (int r = 0; r < ROOTS; r++) {
        for (int step = 0; step < 50; step++) {
            int i = (int)(random_next(&seed) % MODEL_KEYS);
            char key[16];
            size_t length = key_of(i, key);
            bool remove = random_next(&seed) % 3 == 0;
            model[i] = remove ? 0 : r * 100 + step + 1;
            if (remove)
                assert_int_equal(map_remove(&m, &m, key, length, NULL), 0);
            else
                put(&m, key, length, model[i]);
        }
        roots[r] = map_hold(&m);
        memcpy(models[r], model, sizeof model);
    }
    map_release(&m);
    /* Released in an order of their own; each of those left is whole all the time. */
    for (int n = 0; n < ROOTS; n++) {
        int r = n * 7 % ROOTS;
        check_model(&roots[r], models[r]);
        map_release(&roots[r]);
    }
    nothing_is_left();
}

static void a_change_copies_only_its_path(void **state)
{
    (void)state;
    struct map m = {0};
    for (int i = 0; i < 4096; i++) {
        char key[16];
        put(&m, key, key_of(i, key), i);
    }
    size_t before = blocks_live;
    struct map other = {0};
    struct map_value *value = number_new(1);
    assert_int_equal(map_put(&other, &m, "key77", 5, value, NULL), 0);
    map_value_drop(value);
    /* One entry, and at most log(4097) / log(4/3) = 29 nodes. */
    assert_in_range(blocks_live - before, 2, 30);
    assert_int_equal(number_of(map_get(&m, "key77", 5)), 77);
    assert_int_equal(number_of(map_get(&other, "key77", 5)), 1);
    map_release(&m);
    assert_int_equal(number_of(map_get(&other, "key78", 5)), 78);
    map_release(&other);
    nothing_is_left();
}

static void keys_are_ordered_as_bytes_and_shorter_first(void **state)
{
    (void)state;
    struct map m = {0};
    put(&m, "b", 1, 1);
    put(&m, "", 0, 2);
    put(&m, "a\0b", 3, 3);
    put(&m, "a", 1, 4);
    put(&m, "\xff", 1, 5);
    assert_int_equal(number_of(map_get(&m, "a\0b", 3)), 3);
    assert_int_equal(number_of(map_get(&m, "", 0)), 2);
    assert_null(map_get(&m, "a\0", 2));
    struct seen seen = {0};
    map_walk(&m, NULL, 0, see, &seen);
    assert_int_equal(seen.count, 5);
    assert_memory_equal(seen.last, "\xff", 1);
    map_release(&m);
    nothing_is_left();
}

static void a_walk_starts_at_its_key_and_stops_when_told(void **state)
{
    (void)state;
    struct map m = {0};
    for (int i = 100; i < 200; i += 2) {
        char key[16];
        put(&m, key, key_of(i, key), i);
    }
    struct seen seen = {0};
    map_walk(&m, "key150", 6, see, &seen);
    assert_int_equal(seen.count, 25);
    seen = (struct seen){.stop_after = 3};
    map_walk(&m, "key151", 6, see, &seen);
    assert_int_equal(seen.count, 3);
    assert_memory_equal(seen.last, "key156", 6);
    seen = (struct seen){0};
    map_walk(&m, "key199", 6, see, &seen);
    assert_int_equal(seen.count, 0);
    map_release(&m);
    nothing_is_left();
}

static void removing_what_is_not_there_shares_everything(void **state)
{
    (void)state;
    struct map m = {0}, other = {0};
    assert_int_equal(map_remove(&other, &m, "a", 1, NULL), 0);
    assert_null(other.root);
    put(&m, "a", 1, 1);
    assert_int_equal(map_remove(&other, &m, "b", 1, NULL), 0);
    assert_ptr_equal(other.root, m.root);
    assert_int_equal(other.count, 1);
    map_release(&m);
    assert_int_equal(number_of(map_get(&other, "a", 1)), 1);
    map_release(&other);
    nothing_is_left();
}

static void a_key_above_the_bound_is_refused(void **state)
{
    (void)state;
    char key[MAP_KEY_LENGTH_MAX + 1];
    memset(key, 'k', sizeof key);
    struct map m = {0};
    struct map_value *value = number_new(1);
    struct err e;
    assert_int_equal(map_put(&m, &m, key, sizeof key, value, &e), -ERR_LIMIT);
    assert_null(m.root);
    assert_int_equal(map_put(&m, &m, key, sizeof key - 1, value, &e), 0);
    map_value_drop(value);
    map_release(&m);
    nothing_is_left();
}

/* Each allocation of each change fails once: the map must stay as it was and lose no memory. */
static void a_change_without_memory_changes_nothing(void **state)
{
    (void)state;
    struct map m = {0};
    int model[MODEL_KEYS] = {0};
    uint32_t seed = 5;
    size_t failures = 0;
    for (int step = 1; step <= 1500; step++) {
        int i = (int)(random_next(&seed) % MODEL_KEYS);
        char key[16];
        size_t length = key_of(i, key);
        bool remove = random_next(&seed) % 2 == 0 && step > 500;
        struct map_value *value = number_new(step);
        size_t before = blocks_live;
        for (size_t fail_at = 1;; fail_at++) {
            struct err e = {0};
            mallocs_until_failure = fail_at;
            int rc = remove ? map_remove(&m, &m, key, length, &e)
                            : map_put(&m, &m, key, length, value, &e);
            bool reached = mallocs_until_failure == 0;
            mallocs_until_failure = 0;
            assert_int_equal(rc, reached ? -ERR_NO_MEMORY : 0);
            if (!reached)
                break;
            failures++;
            assert_int_equal(e.code, ERR_NO_MEMORY);
            assert_int_equal(blocks_live, before);
        }
        map_value_drop(value);
        model[i] = remove ? 0 : step;
        if (step % 100 == 0)
            check_model(&m, model);
    }
    assert_true(failures > 10000);
    map_release(&m);
    nothing_is_left();
}

static void a_discarded_map_is_freed_in_slices(void **state)
{
    (void)state;
    enum { ENTRIES = 500 };
    struct map m = {0};
    struct map_garbage garbage = {0};
    char key[16];
    for (int i = 1; i <= ENTRIES; i++)
        put(&m, key, key_of(i, key), i);
    struct map old = map_hold(&m);
    for (int i = 1; i <= ENTRIES; i++)
        put(&m, key, key_of(i, key), -i);
    size_t blocks = blocks_live;
    map_discard(&old, &garbage);
    assert_null(old.root);
    assert_int_equal(old.count, 0);
    assert_int_equal(blocks_live, blocks);
    assert_int_equal(numbers_live, 2 * ENTRIES);
    size_t slices = 1;
    while (map_collect(&garbage, 30)) {
        assert_true(numbers_live + 30 * slices >= 2 * ENTRIES);
        slices++;
    }
    assert_int_equal(slices, (ENTRIES + 29) / 30);
    assert_int_equal(numbers_live, ENTRIES);
    assert_false(map_collect(&garbage, 30));
    /* What is still held elsewhere stays. */
    old = map_hold(&m);
    map_discard(&old, &garbage);
    assert_false(map_collect(&garbage, 30));
    assert_int_equal(number_of(map_get(&m, "key7", 4)), -7);
    map_discard(&m, &garbage);
    assert_true(map_collect(&garbage, ENTRIES - 1));
    assert_false(map_collect(&garbage, 1));
    nothing_is_left();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_changes_agree_with_a_model),
        cmocka_unit_test(keys_in_order_stay_balanced),
        cmocka_unit_test(older_roots_never_change),
        cmocka_unit_test(a_change_copies_only_its_path),
        cmocka_unit_test(keys_are_ordered_as_bytes_and_shorter_first),
        cmocka_unit_test(a_walk_starts_at_its_key_and_stops_when_told),
        cmocka_unit_test(removing_what_is_not_there_shares_everything),
        cmocka_unit_test(a_key_above_the_bound_is_refused),
        cmocka_unit_test(a_change_without_memory_changes_nothing),
        cmocka_unit_test(a_discarded_map_is_freed_in_slices),
    };
    return cmocka_run_group_tests_name("map", tests, NULL, NULL);
}
