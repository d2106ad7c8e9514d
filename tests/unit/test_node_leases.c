/* The leases of several nodes on one loop: a state machine stands for their registry, calls on timers
 * for the messages between them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "node/control/lease_wire.h"
#include "node/control/leases.h"
#include "scheduler/leases.h"
#include "tests/lib/registry_help.h"

enum { NODES = 3, DEADLINE_MS = 30000 };

struct world;
struct member {
    struct world *world;
    node_id id;
    struct leases *leases;
    node_id believed; /* who leads, as this node thinks */
    unsigned changes;
    bool cut; /* its messages are lost */
};

struct world {
    uv_loop_t loop;
    uv_timer_t alarm;
    bool late;
    struct help_state registry;
    node_id leader; /* in truth */
    unsigned voters;
    unsigned barriers, renewals, expiries;
    struct member members[NODES + 1];
};

/* --- what happens a moment later ----------------------------------------------------------------------- */

struct later {
    uv_timer_t timer;
    struct world *world;
    node_id from, to;
    uint8_t bytes[LEASE_WIRE_BYTES_MAX];
    size_t size;
    leases_answered_cb answered;
    registry_read_cb proved;
    registry_result_cb done;
    void *user;
    struct registry_command command;
    struct registry_node node;
};

static void freed_cb(uv_handle_t *handle)
{
    free(container_of((uv_timer_t *)handle, struct later, timer));
}

static struct later *later(struct member *m, uv_timer_cb cb, uint64_t ms)
{
    struct later *l = calloc(1, sizeof *l);
    assert_non_null(l);
    l->world = m->world;
    l->from = m->id;
    uv_timer_init(&m->world->loop, &l->timer);
    uv_timer_start(&l->timer, cb, ms, 0);
    return l;
}

static void finished(struct later *l)
{
    uv_close((uv_handle_t *)&l->timer, freed_cb);
}

static void arrive_cb(uv_timer_t *timer)
{
    struct later *l = container_of(timer, struct later, timer);
    static const struct err lost = {.code = ERR_TIMEOUT, .msg = "no answer"};
    l->answered(l->user, l->size == 0 ? &lost : NULL, l->bytes, l->size);
    finished(l);
}

static void answer_fn(void *question, const void *payload, size_t size)
{
    struct later *l = question;
    assert_true(size <= sizeof l->bytes);
    if (size > 0)
        memcpy(l->bytes, payload, size);
    l->size = l->world->members[l->from].cut ? 0 : size;
    uv_timer_start(&l->timer, arrive_cb, 1, 0);
}

static void reach_cb(uv_timer_t *timer)
{
    struct later *l = container_of(timer, struct later, timer);
    struct member *to = &l->world->members[l->to];
    if (l->world->members[l->from].cut || to->leases == NULL) {
        answer_fn(l, NULL, 0);
        return;
    }
    leases_question(to->leases, l->from, l->bytes, l->size, answer_fn, l);
}

static int ask(void *user, node_id to, const void *payload, size_t size, unsigned timeout_ms,
               leases_answered_cb answered, void *answered_user, struct err *e)
{
    struct member *m = user;
    (void)timeout_ms;
    (void)e;
    m->world->renewals++;
    struct later *l = later(m, reach_cb, 1);
    l->to = to;
    l->size = size;
    if (size > 0)
        memcpy(l->bytes, payload, size);
    l->answered = answered;
    l->user = answered_user;
    return 0;
}

static void prove_cb(uv_timer_t *timer)
{
    struct later *l = container_of(timer, struct later, timer);
    static const struct err no = {.code = ERR_CONFLICT, .msg = "it does not lead"};
    l->proved(l->user, l->world->leader == l->from ? NULL : &no);
    finished(l);
}

static int barrier(void *user, registry_read_cb cb, void *cb_user, struct err *e)
{
    struct member *m = user;
    (void)e;
    m->world->barriers++;
    struct later *l = later(m, prove_cb, 20);
    l->proved = cb;
    l->user = cb_user;
    return 0;
}

static void apply_cb(uv_timer_t *timer)
{
    struct later *l = container_of(timer, struct later, timer);
    static const struct err no = {.code = ERR_UNAVAILABLE, .msg = "it does not lead"};
    l->command.node = &l->node;
    if (l->world->leader != l->from) {
        l->done(l->user, &no, NULL);
    } else {
        struct registry_result result = help_apply(&l->world->registry, &l->command);
        l->done(l->user, NULL, &result);
    }
    finished(l);
}

static int propose(void *user, const struct registry_command *command, registry_result_cb cb,
                   void *cb_user, struct err *e)
{
    struct member *m = user;
    (void)e;
    m->world->expiries += command->kind == REGISTRY_LEASE_EXPIRE;
    struct later *l = later(m, apply_cb, 2);
    l->command = *command;
    l->node = *command->node;
    l->done = cb;
    l->user = cb_user;
    return 0;
}

static struct registry_root *root(void *user)
{
    struct member *m = user;
    return state_root(m->world->registry.state);
}

static void leader(void *user, struct leases_leader *out)
{
    struct member *m = user;
    *out = (struct leases_leader){
        .self = m->believed == m->id, .id = m->believed, .voters = m->world->voters};
}

static void changed(void *user)
{
    struct member *m = user;
    m->changes++;
}

/* --- the world ------------------------------------------------------------------------------------------ */

static void alarm_cb(uv_timer_t *timer)
{
    container_of(timer, struct world, alarm)->late = true;
}

static void member_open(struct world *w, node_id id)
{
    struct member *m = &w->members[id];
    *m = (struct member){.world = w, .id = id, .believed = w->leader};
    struct leases_options o = {
        .self = id, .nodes_max = 8, .calls = {m, ask, barrier, propose, root, leader, changed}};
    struct err e = {0};
    if (leases_open(&m->leases, &w->loop, &o, &e) != 0)
        fail_msg("%s", e.msg);
}

static struct world *world_open(unsigned nodes)
{
    struct world *w = calloc(1, sizeof *w);
    assert_non_null(w);
    log_setup(LOG_LEVEL_ERROR, LOG_FORMAT_TEXT);
    uv_loop_init(&w->loop);
    uv_timer_init(&w->loop, &w->alarm);
    uv_timer_start(&w->alarm, alarm_cb, DEADLINE_MS, 0);
    help_state_open(&w->registry);
    w->leader = 1;
    w->voters = nodes;
    for (node_id id = 1; id <= nodes; id++) {
        struct registry_node node = {.id = id};
        text_format(node.name, sizeof node.name, "node%u", (unsigned)id);
        struct registry_command put = {.kind = REGISTRY_NODE_PUT, .node = &node};
        assert_int_equal(help_apply(&w->registry, &put).problem, PROBLEM_NONE);
    }
    for (node_id id = 1; id <= nodes; id++)
        member_open(w, id);
    return w;
}

static void member_close(struct world *w, node_id id)
{
    if (w->members[id].leases != NULL)
        leases_stop(w->members[id].leases);
}

/* What is under way ends first, as registry and peers do when they are closed. */
static void world_close(struct world *w)
{
    for (node_id id = 1; id <= NODES; id++)
        member_close(w, id);
    uv_close((uv_handle_t *)&w->alarm, NULL);
    uv_run(&w->loop, UV_RUN_DEFAULT);
    for (node_id id = 1; id <= NODES; id++)
        if (w->members[id].leases != NULL)
            leases_close(w->members[id].leases);
    uv_run(&w->loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(&w->loop), 0);
    help_state_close(&w->registry);
    free(w);
}

static const struct registry_node *node(struct world *w, node_id id, struct registry_node *out)
{
    struct registry_root *r = state_root(w->registry.state);
    *out = *registry_root_node(r, id);
    registry_root_release(r);
    return out;
}

static bool holds(struct world *w, node_id id)
{
    struct registry_node n;
    struct leases_held h = leases_held(w->members[id].leases);
    return h.valid && node(w, id, &n)->leased && n.lease_epoch == h.epoch;
}

#define RUN_UNTIL(w, condition)                                                                    \
    do {                                                                                           \
        while (!(condition) && !(w)->late)                                                         \
            uv_run(&(w)->loop, UV_RUN_ONCE);                                                       \
        assert_false((w)->late);                                                                   \
    } while (0)

static void run_for(struct world *w, uint64_t ms)
{
    uint64_t until_ms = clock_monotonic_ms() + ms;
    while (clock_monotonic_ms() < until_ms)
        uv_run(&w->loop, UV_RUN_ONCE);
}

/* --- tests ---------------------------------------------------------------------------------------------- */

static void a_lone_node_has_a_lease_without_a_barrier(void **state)
{
    (void)state;
    struct world *w = world_open(1);
    RUN_UNTIL(w, holds(w, 1));
    uint64_t deadline_ms = leases_held(w->members[1].leases).deadline_ms;
    assert_in_range(leases_left_ms(w->members[1].leases, 1), LEASE_MS - 500, LEASE_GIVEN_MS + 500);
    uint64_t index = w->registry.index;
    RUN_UNTIL(w, leases_held(w->members[1].leases).deadline_ms > deadline_ms);
    assert_int_equal(w->barriers, 0);
    assert_int_equal(w->registry.index, index); /* nothing was written for the renewal */
    assert_int_equal(w->members[1].changes, 2);
    world_close(w);
}

static void the_leader_grants_and_renews_and_shares_barriers(void **state)
{
    (void)state;
    struct world *w = world_open(3);
    RUN_UNTIL(w, holds(w, 1) && holds(w, 2) && holds(w, 3));
    unsigned barriers = w->barriers, changes = w->members[3].changes;
    assert_in_range(barriers, 1, 2);
    RUN_UNTIL(w, w->members[3].changes == changes + 2);
    /* In two rounds of three. */
    assert_in_range(w->barriers - barriers, 2, 4);
    assert_true(leases_left_ms(w->members[1].leases, 2) > 0);
    assert_true(leases_left_ms(w->members[2].leases, 2) == 0); /* it does not lead */
    world_close(w);
}

static void who_does_not_lead_names_who_does(void **state)
{
    (void)state;
    struct world *w = world_open(3);
    w->members[3].believed = 2;
    RUN_UNTIL(w, holds(w, 3));
    assert_true(w->members[3].believed == 2);
    world_close(w);
}

static void who_was_deposed_renews_nothing(void **state)
{
    (void)state;
    struct world *w = world_open(3);
    RUN_UNTIL(w, holds(w, 1) && holds(w, 2) && holds(w, 3));
    /* Node 2 leads now; node 1 and its friends do not know. */
    w->leader = 2;
    run_for(w, 100);
    uint64_t deadline_ms = leases_held(w->members[3].leases).deadline_ms;
    uint64_t own_ms = leases_held(w->members[1].leases).deadline_ms;
    run_for(w, LEASE_RENEW_MS + 1000);
    assert_true(leases_held(w->members[3].leases).deadline_ms == deadline_ms);
    assert_true(leases_held(w->members[1].leases).deadline_ms == own_ms);
    for (node_id id = 1; id <= 3; id++) {
        w->members[id].believed = 2;
        leases_leader_changed(w->members[id].leases);
    }
    RUN_UNTIL(w, leases_held(w->members[3].leases).deadline_ms > deadline_ms &&
                     leases_held(w->members[1].leases).deadline_ms > own_ms && holds(w, 2));
    assert_int_equal(w->expiries, 0);
    world_close(w);
}

static void the_lease_of_a_silent_node_ends_and_with_it_what_it_holds(void **state)
{
    (void)state;
    struct world *w = world_open(2);
    struct registry_node n;
    RUN_UNTIL(w, holds(w, 1) && holds(w, 2));
    uint64_t epoch = leases_held(w->members[2].leases).epoch;
    help_deploy(&w->registry, "hello", "");
    struct registry_instance like = {.id = help_instance_id(2, 7), .owner = 2, .version = 1};
    text_copy(like.workload, sizeof like.workload, "hello");
    struct registry_command reserve = {.kind = REGISTRY_INSTANCE_RESERVE, .instance = &like};
    assert_int_equal(help_apply(&w->registry, &reserve).problem, PROBLEM_NONE);
    w->members[2].cut = true;
    uint64_t cut_ms = clock_boot_ms();
    while (node(w, 2, &n)->leased && !w->late) {
        uv_run(&w->loop, UV_RUN_ONCE);
        /* What the holder believes ends before. */
        assert_true(node(w, 2, &n)->leased || !leases_held(w->members[2].leases).valid);
    }
    assert_false(w->late);
    assert_true(clock_boot_ms() - cut_ms >= LEASE_MS - LEASE_RENEW_MS);
    struct registry_root *r = state_root(w->registry.state);
    const struct registry_instance *i =
        registry_root_instance(r, like.id.text, strlen(like.id.text));
    assert_int_equal(i->state, INSTANCE_STATE_ENDED);
    assert_int_equal(i->reason, END_NODE_LOST);
    registry_root_release(r);
    assert_true(holds(w, 1));
    /* It comes back, with another lease. */
    w->members[2].cut = false;
    RUN_UNTIL(w, holds(w, 2));
    assert_true(leases_held(w->members[2].leases).epoch > epoch);
    world_close(w);
}

static bool dropped;
static void drop_fn(void *question, const void *payload, size_t size)
{
    (void)question;
    (void)payload;
    assert_int_equal(size, 0);
    dropped = true;
}

static struct lease_answer told;
static void told_fn(void *question, const void *payload, size_t size)
{
    (void)question;
    struct err e = {0};
    assert_int_equal(lease_answer_read(&told, payload, size, &e), 0);
}

static void strangers_and_nonsense_get_nothing(void **state)
{
    (void)state;
    struct world *w = world_open(1);
    RUN_UNTIL(w, holds(w, 1));
    const uint8_t nonsense[] = {0xff, 0xff, 0xff};
    dropped = false;
    leases_question(w->members[1].leases, 9, nonsense, sizeof nonsense, drop_fn, NULL);
    assert_true(dropped);
    told = (struct lease_answer){0};
    leases_question(w->members[1].leases, 9, NULL, 0, told_fn, NULL);
    RUN_UNTIL(w, told.outcome != 0);
    assert_int_equal(told.outcome, LEASE_REFUSED);
    assert_non_null(strstr(told.why, "no node of this cluster"));
    world_close(w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_lone_node_has_a_lease_without_a_barrier),
        cmocka_unit_test(the_leader_grants_and_renews_and_shares_barriers),
        cmocka_unit_test(who_does_not_lead_names_who_does),
        cmocka_unit_test(who_was_deposed_renews_nothing),
        cmocka_unit_test(the_lease_of_a_silent_node_ends_and_with_it_what_it_holds),
        cmocka_unit_test(strangers_and_nonsense_get_nothing),
    };
    return cmocka_run_group_tests_name("leases of nodes", tests, NULL, NULL);
}
