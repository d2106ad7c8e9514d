#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/memory.h"
#include "scheduler/placement.h"

enum { COUNT = 4 };

struct nodes {
    struct placement_node nodes[COUNT];
    struct gossip_meta metas[COUNT];
    struct gossip_load loads[COUNT];
};

/* Nodes 1 to 4 in zones a, a, b, b; the first is this one. */
static void make(struct nodes *s)
{
    memset(s, 0, sizeof *s);
    for (unsigned k = 0; k < COUNT; k++) {
        s->metas[k].instances_max = 10;
        s->metas[k].cpu_millis = 4000;
        s->metas[k].memory_bytes = 1000000;
        text_copy(s->metas[k].zone, sizeof s->metas[k].zone, k < 2 ? "a" : "b");
        s->nodes[k] = (struct placement_node){.id = k + 1,
                                              .self = k == 0,
                                              .alive = true,
                                              .leased = true,
                                              .meta = &s->metas[k],
                                              .load = &s->loads[k]};
    }
}

static void label(struct gossip_meta *meta, const char *key, const char *value)
{
    struct gossip_label *l = &meta->labels[meta->label_count++];
    text_copy(l->key, sizeof l->key, key);
    text_copy(l->value, sizeof l->value, value);
}

static node_id choose(const struct workload *w, const struct nodes *s, uint64_t random)
{
    struct placement_lacks lacks;
    return placement_choose(w, s->nodes, COUNT, random, &lacks);
}

/* Every choice of many draws, as bits. */
static unsigned choices(const struct workload *w, const struct nodes *s)
{
    unsigned all = 0;
    for (uint64_t k = 0; k < 200; k++) {
        node_id id = choose(w, s, k * 0x9e3779b97f4a7c15u);
        all |= id == 0 ? 1u : 1u << id;
    }
    return all;
}

static void this_node_comes_first(void **state)
{
    (void)state;
    struct nodes s;
    struct workload w = {0};
    make(&s);
    s.loads[0].instances = 9;
    assert_int_equal(choices(&w, &s), 1u << 1);
}

static void whoever_may_not_have_it_is_left_out(void **state)
{
    (void)state;
    struct nodes s;
    struct workload w = {0};
    for (int how = 0; how < 5; how++) {
        make(&s);
        s.nodes[0].alive = how != 0;
        s.nodes[0].leased = how != 1;
        s.nodes[0].draining = how == 2;
        s.nodes[0].refused = how == 3;
        s.loads[0].instances = how == 4 ? 10 : 0;
        assert_int_equal(choices(&w, &s), 1u << 2 | 1u << 3 | 1u << 4);
    }
}

static void the_less_loaded_of_two_is_taken(void **state)
{
    (void)state;
    struct nodes s;
    struct workload w = {0};
    make(&s);
    s.nodes[0].draining = true;
    s.loads[1].cpu_millis = 4000;
    /* Of any two that are drawn, the loaded one is never the less loaded. */
    assert_int_equal(choices(&w, &s), 1u << 3 | 1u << 4);
    s.loads[2].memory_bytes = 1000000;
    assert_int_equal(choices(&w, &s) & 1u << 4, 1u << 4);
    /* With two left, always the better. */
    s.nodes[3].alive = false;
    s.loads[2].memory_bytes = 999999;
    assert_int_equal(choices(&w, &s), 1u << 3);
}

static void one_that_is_left_is_taken(void **state)
{
    (void)state;
    struct nodes s;
    struct workload w = {0};
    make(&s);
    s.nodes[0].refused = s.nodes[1].refused = s.nodes[3].refused = true;
    s.loads[2].cpu_millis = 4000;
    assert_int_equal(choices(&w, &s), 1u << 3);
    assert_int_equal(placement_choose(&w, s.nodes, 0, 0, &(struct placement_lacks){0}), 0);
}

static void zone_and_labels_bind(void **state)
{
    (void)state;
    struct nodes s;
    struct workload w = {0};
    char zone[] = "b", ssd[] = "disk=ssd", gpu[] = "gpu=";
    char *labels[] = {ssd, gpu};
    make(&s);
    w.placement.zone = zone;
    assert_int_equal(choices(&w, &s), 1u << 3 | 1u << 4);
    label(&s.metas[2], "disk", "ssd");
    label(&s.metas[3], "disk", "hdd");
    label(&s.metas[3], "gpu", "");
    w.placement.labels.items = labels;
    w.placement.labels.count = 1;
    assert_int_equal(choices(&w, &s), 1u << 3);
    w.placement.labels.count = 2;
    assert_int_equal(choices(&w, &s), 1u);
    label(&s.metas[2], "gpu", "");
    assert_int_equal(choices(&w, &s), 1u << 3);
    assert_true(placement_allows(&w, &s.metas[2]));
    assert_false(placement_allows(&w, &s.metas[3]));
    assert_false(placement_allows(&w, NULL));
    /* What is not known of a node does not fit a constraint. */
    s.nodes[2].meta = NULL;
    assert_int_equal(choices(&w, &s), 1u);
}

static void spread_over_nodes_takes_those_with_the_fewest(void **state)
{
    (void)state;
    struct nodes s;
    struct workload w = {.placement.spread = SPREAD_NODE};
    make(&s);
    assert_int_equal(choices(&w, &s), 1u << 1);
    s.nodes[0].of_workload = 1;
    assert_int_equal(choices(&w, &s), 1u << 2 | 1u << 3 | 1u << 4);
    s.nodes[1].of_workload = s.nodes[2].of_workload = 1;
    assert_int_equal(choices(&w, &s), 1u << 4);
    s.nodes[3].of_workload = 2;
    assert_int_equal(choices(&w, &s), 1u << 1);
}

static void spread_over_zones_counts_whole_zones(void **state)
{
    (void)state;
    struct nodes s;
    struct workload w = {.placement.spread = SPREAD_ZONE};
    make(&s);
    s.nodes[1].of_workload = 1;
    assert_int_equal(choices(&w, &s), 1u << 3 | 1u << 4);
    s.nodes[2].of_workload = 1;
    assert_int_equal(choices(&w, &s), 1u << 1);
    /* A full node's instances count for its zone, where the others may still have one. */
    s.nodes[1].of_workload = 0;
    s.nodes[2].of_workload = s.nodes[3].of_workload = 0;
    s.nodes[3].alive = false;
    s.nodes[3].of_workload = 5;
    s.nodes[0].draining = true;
    assert_int_equal(choices(&w, &s), 1u << 2);
}

static void what_is_lacking_is_counted_and_said(void **state)
{
    (void)state;
    struct nodes s;
    struct workload w = {0};
    struct placement_lacks lacks;
    char text[256];
    make(&s);
    s.loads[0].instances = s.loads[1].instances = 10;
    s.nodes[2].draining = true;
    s.nodes[3].alive = false;
    assert_int_equal(placement_choose(&w, s.nodes, COUNT, 0, &lacks), 0);
    placement_why(&lacks, text, sizeof text);
    assert_string_equal(text, "of 4 nodes 2 run as many instances as they may "
                              "(limits.instances_max), 1 is being drained, 1 does not answer");
    char small[20];
    placement_why(&lacks, small, sizeof small);
    assert_true(strlen(small) < sizeof small);
}

static void load_is_the_fullest_of_what_is_known(void **state)
{
    (void)state;
    struct gossip_meta m = {.instances_max = 10, .cpu_millis = 2000, .memory_bytes = 4};
    struct gossip_load l = {.instances = 5, .cpu_millis = 500, .memory_bytes = 1};
    assert_int_equal(placement_load(&m, &l), 500);
    l.cpu_millis = 1999;
    assert_int_equal(placement_load(&m, &l), 999);
    l.memory_bytes = UINT64_MAX;
    m.memory_bytes = UINT64_MAX;
    assert_true(placement_load(&m, &l) <= 1000);
    m = (struct gossip_meta){0};
    assert_int_equal(placement_load(&m, &l), 0);
    assert_int_equal(placement_load(NULL, &l), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(this_node_comes_first),
        cmocka_unit_test(whoever_may_not_have_it_is_left_out),
        cmocka_unit_test(the_less_loaded_of_two_is_taken),
        cmocka_unit_test(one_that_is_left_is_taken),
        cmocka_unit_test(zone_and_labels_bind),
        cmocka_unit_test(spread_over_nodes_takes_those_with_the_fewest),
        cmocka_unit_test(spread_over_zones_counts_whole_zones),
        cmocka_unit_test(what_is_lacking_is_counted_and_said),
        cmocka_unit_test(load_is_the_fullest_of_what_is_known),
    };
    return cmocka_run_group_tests_name("placement", tests, NULL, NULL);
}
