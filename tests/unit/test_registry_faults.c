/* Whole clusters in simulated time, with links cut, disks and networks slow, leaders lost, each from a
 * seed. While it lasts: no two nodes apply different commands at one index. After it, healed: every node
 * holds the same, all that was acknowledged is in it, and nothing was done twice.
 *
 * SEED=N replays one; SEEDS=N tries as many. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "raft/snapshot.h"
#include "tests/lib/raft_cluster.h"
#include "tests/lib/registry_help.h"

enum {
    SEEDS = 20,
    FAULTS = 150,
    ASKS_MAX = 2000,
    TIMEOUT_MS = 10000,
};

struct ask {
    unsigned answers;
    bool error;
    enum problem problem;
    node_id id;
};

struct world {
    struct cluster cluster;
    uint64_t random;
    struct ask asks[ASKS_MAX];
    unsigned asked, answered;
};

/* xorshift64 */
static unsigned below(struct world *w, unsigned n)
{
    w->random ^= w->random << 13;
    w->random ^= w->random >> 7;
    w->random ^= w->random << 17;
    return (unsigned)((w->random >> 20) % n);
}

static void answered(void *user, const struct err *error, const struct registry_result *result)
{
    struct ask *a = user;
    a->answers++;
    a->error = error != NULL;
    if (error == NULL) {
        a->problem = result->problem;
        a->id = result->node;
    }
}

/* Each asks for a node of its own name: done twice, the second time would be refused. */
static void ask(struct world *w, unsigned i)
{
    if (w->asked == ASKS_MAX)
        return;
    struct registry_node node = {0};
    text_format(node.name, sizeof node.name, "n%u", w->asked);
    const struct registry_command command = {.kind = REGISTRY_NODE_PUT, .node = &node};
    struct err e;
    assert_int_equal(proposer_propose(w->cluster.nodes[i].proposer, &command,
                                      raft_fixture_time(&w->cluster.fixture), answered,
                                      &w->asks[w->asked], &e),
                     0);
    w->asked++;
}

static void fault(struct world *w)
{
    struct cluster *c = &w->cluster;
    unsigned i = below(w, c->n), j = (i + 1 + below(w, c->n - 1)) % c->n;
    int leader = raft_cluster_leader(c);
    switch (below(w, 10)) {
    case 0:
    case 1:
        raft_cluster_cut(c, i, j);
        break;
    case 2:
        raft_cluster_isolate(c, i);
        break;
    case 3:
        if (leader >= 0)
            raft_cluster_isolate(c, (unsigned)leader);
        break;
    case 4: /* one way only */
        raft_fixture_disconnect(&c->fixture, i, j);
        break;
    case 5:
        raft_fixture_set_disk_latency(&c->fixture, i, 1 + below(w, 300));
        break;
    case 6:
        raft_fixture_set_network_latency(&c->fixture, i, 1 + below(w, 200));
        break;
    case 7:
        raft_fixture_set_disk_latency(&c->fixture, i, 1);
        raft_fixture_set_network_latency(&c->fixture, i, 1);
        break;
    default:
        raft_cluster_heal(c);
        break;
    }
    for (unsigned k = 0; k < c->n; k++)
        raft_fixture_set_randomized_election_timeout(&c->fixture, k, 1000 + below(w, 1000));
}

static bool everybody_answered(void *user)
{
    const struct world *w = user;
    for (unsigned i = 0; i < w->asked; i++)
        if (w->asks[i].answers == 0)
            return false;
    return true;
}

static bool converged(void *user)
{
    struct world *w = user;
    int leader = raft_cluster_leader(&w->cluster);
    if (leader < 0 || !guard_leads(w->cluster.nodes[leader].guard))
        return false;
    raft_index last = raft_last_index(raft_cluster_raft(&w->cluster, (unsigned)leader));
    for (unsigned i = 0; i < w->cluster.n; i++)
        if (raft_cluster_raft(&w->cluster, i)->last_applied != last)
            return false;
    return true;
}

struct names {
    size_t count;
    node_id id[ASKS_MAX];
};

static bool name_visit(void *user, const struct registry_node *n)
{
    struct names *names = user;
    unsigned long i = strtoul(n->name + 1, NULL, 10);
    assert_true(i < ASKS_MAX && names->id[i] == 0);
    names->id[i] = n->id;
    names->count++;
    return true;
}

static void check(struct world *w)
{
    struct cluster *c = &w->cluster;
    assert_true(raft_cluster_agrees(c));
    struct buffer first;
    struct err e;
    buffer_init(&first, SNAPSHOT_BYTES_MAX);
    assert_int_equal(snapshot_encode(state_content(c->nodes[0].state), &first, &e), 0);
    for (unsigned i = 1; i < c->n; i++) {
        struct buffer other;
        buffer_init(&other, SNAPSHOT_BYTES_MAX);
        assert_int_equal(snapshot_encode(state_content(c->nodes[i].state), &other, &e), 0);
        assert_int_equal(first.length, other.length);
        assert_memory_equal(first.data, other.data, first.length);
        buffer_free(&other);
    }
    buffer_free(&first);
    struct names *names = calloc(1, sizeof *names);
    struct registry_root *root = state_root(c->nodes[0].state);
    registry_root_nodes(root, name_visit, names);
    registry_root_release(root);
    for (unsigned i = 0; i < w->asked; i++) {
        const struct ask *a = &w->asks[i];
        assert_int_equal(a->answers, 1);
        if (a->error)
            continue;
        assert_int_equal(a->problem, PROBLEM_NONE);
        assert_int_equal(names->id[i], a->id);
        w->answered++;
    }
    free(names);
}

/* How many were acknowledged. */
static unsigned run(uint64_t seed)
{
    struct world *w = calloc(1, sizeof *w);
    assert_non_null(w);
    w->random = seed * 0x9e3779b97f4a7c15u + 1;
    unsigned n = seed % 2 == 0 ? 3 : 5;
    raft_cluster_open(&w->cluster, n, false, TIMEOUT_MS);
    for (unsigned f = 0; f < FAULTS; f++) {
        for (unsigned k = below(w, 20); k > 0; k--)
            ask(w, below(w, n));
        fault(w);
        raft_cluster_run(&w->cluster, 20 + below(w, 1500));
        assert_true(raft_cluster_agrees(&w->cluster));
    }
    raft_cluster_heal(&w->cluster);
    for (unsigned i = 0; i < n; i++) {
        raft_fixture_set_disk_latency(&w->cluster.fixture, i, 1);
        raft_fixture_set_network_latency(&w->cluster.fixture, i, 1);
        raft_fixture_set_randomized_election_timeout(&w->cluster.fixture, i, 1000 + i * 300);
    }
    assert_true(raft_cluster_run_until(&w->cluster, everybody_answered, w, 3 * TIMEOUT_MS));
    assert_true(raft_cluster_run_until(&w->cluster, converged, w, 60000));
    check(w);
    for (unsigned i = 0; i < n; i++)
        assert_false(w->cluster.nodes[i].failed);
    unsigned acknowledged = w->answered;
    raft_cluster_close(&w->cluster);
    free(w);
    return acknowledged;
}

static void what_is_acknowledged_is_everywhere_once(void **state)
{
    (void)state;
    const char *one = getenv("SEED"), *many = getenv("SEEDS");
    uint64_t first = one != NULL ? strtoull(one, NULL, 10) : 1;
    uint64_t count = one != NULL ? 1 : many != NULL ? strtoull(many, NULL, 10) : SEEDS;
    unsigned acknowledged = 0;
    for (uint64_t seed = first; seed < first + count; seed++) {
        print_message("SEED=%llu\r", (unsigned long long)seed);
        acknowledged += run(seed);
    }
    print_message("%llu seeds, %u acknowledged writes\n", (unsigned long long)count, acknowledged);
    assert_true(acknowledged > 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_acknowledged_is_everywhere_once),
    };
    return cmocka_run_group_tests_name("registry under faults", tests, NULL, NULL);
}
