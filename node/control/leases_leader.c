/* The leader's side.
 *
 *   renewal -> gathered --barrier--> asked --still leads--> registry shows a lease: renewed, answered
 *                                                    none: LEASE_GRANT --> renewed, answered
 *   due_timer -> the table follows the registry -> what is over: LEASE_EXPIRE, until nothing is left
 *
 * Whoever does not lead any more answers NOT_LEADER: the holder asks the next one. */
#include <stdlib.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "node/control/leases_internal.h"

/* The registry's nodes are looked at so often at least. */
#define LEASES_LOOK_MS 1000u

static void begin_barrier(struct leases *l);

/* --- answers ------------------------------------------------------------------------------------------ */

static void answer(struct renewal *r, const struct lease_answer *what)
{
    struct leases *l = r->leases;
    l->waiting--;
    if (r->answer == NULL) {
        leases_own_answer(l, r->sent_ms, what);
    } else if (l->stopped) {
        r->answer(r->question, NULL, 0);
    } else {
        uint8_t bytes[LEASE_WIRE_BYTES_MAX];
        r->answer(r->question, bytes, lease_answer_write(bytes, what));
    }
    free(r);
}

static void answer_not_leader(struct renewal *r)
{
    struct leases *l = r->leases;
    struct leases_leader leader = {0};
    l->options.calls.leader(l->options.calls.user, &leader);
    struct lease_answer what = {.outcome = LEASE_NOT_LEADER};
    what.leader = leader.self ? 0 : leader.id;
    answer(r, &what);
}

static void answer_refused(struct renewal *r, const char *why)
{
    struct lease_answer what = {.outcome = LEASE_REFUSED};
    text_copy(what.why, sizeof what.why, why);
    answer(r, &what);
}

/* --- what the registry shows ----------------------------------------------------------------------------- */

static bool take_node(void *user, const struct registry_node *n)
{
    struct leases *l = user;
    struct err e = {0};
    if (lease_table_node(l->table, n->id, n->leased, n->lease_epoch, clock_monotonic_ms(), &e) != 0)
        log_warn("lease", "%s", e.msg);
    return true;
}

static void look(struct leases *l)
{
    struct registry_root *root = l->options.calls.root(l->options.calls.user);
    lease_table_mark(l->table);
    registry_root_nodes(root, take_node, l);
    lease_table_sweep(l->table);
    registry_root_release(root);
}

/* --- renewing ---------------------------------------------------------------------------------------------- */

/* The registry shows the lease of `epoch`, and this node was proved to lead when it came to know. */
static void renew(struct renewal *r, uint64_t epoch)
{
    struct leases *l = r->leases;
    if (!lease_table_renewed(l->table, r->from, epoch, clock_monotonic_ms())) {
        answer_refused(r, "its lease is being ended; the next one begins when that is done");
        return;
    }
    struct lease_answer what = {.outcome = LEASE_RENEWED, .epoch = epoch};
    answer(r, &what);
}

static void granted_cb(void *user, const struct err *error, const struct registry_result *result)
{
    struct renewal *r = user;
    struct leases *l = r->leases;
    l->under_way--;
    if (error != NULL || !l->leading || l->stopped) {
        answer_not_leader(r);
        return;
    }
    if (result->problem != PROBLEM_NONE) {
        answer_refused(r, result->detail);
        return;
    }
    look(l);
    renew(r, result->epoch);
}

static void grant(struct renewal *r)
{
    struct leases *l = r->leases;
    struct registry_node node = {.id = r->from};
    struct registry_command command = {
        .kind = REGISTRY_LEASE_GRANT, .wall_ms = clock_wall_ms(), .node = &node};
    struct err e = {0};
    if (l->options.calls.propose(l->options.calls.user, &command, granted_cb, r, &e) != 0) {
        log_warn("lease", "no lease was granted: %s", e.msg);
        answer_not_leader(r);
        return;
    }
    l->under_way++;
}

/* This node was proved to lead after the renewal came. */
static void proved(struct renewal *r, const struct registry_root *root)
{
    const struct registry_node *n = registry_root_node(root, r->from);
    if (n == NULL)
        answer_refused(r, "it is no node of this cluster");
    else if (n->leased)
        renew(r, n->lease_epoch);
    else
        grant(r);
}

static void settle(struct leases *l, bool leads)
{
    struct renewal *r = l->asked;
    l->asked = NULL;
    struct registry_root *root = NULL;
    if (leads) {
        look(l);
        root = l->options.calls.root(l->options.calls.user);
    }
    while (r != NULL) {
        struct renewal *next = r->next;
        if (leads && l->leading)
            proved(r, root);
        else
            answer_not_leader(r);
        r = next;
    }
    if (root != NULL)
        registry_root_release(root);
}

static void gather_timer_cb(uv_timer_t *timer)
{
    begin_barrier(container_of(timer, struct leases, gather_timer));
}

static void barrier_cb(void *user, const struct err *error)
{
    struct leases *l = user;
    l->under_way--;
    l->barrier_under_way = false;
    if (error != NULL)
        log_debug("lease", "not proved to lead: %s", error->msg);
    settle(l, error == NULL && !l->stopped);
    if (l->gathered == NULL || l->stopped)
        return;
    /* Those within LEASE_BARRIER_SHARE_MS share one. */
    uint64_t since_ms = clock_monotonic_ms() - l->barrier_ms;
    uv_timer_start(&l->gather_timer, gather_timer_cb,
                   since_ms < LEASE_BARRIER_SHARE_MS ? LEASE_BARRIER_SHARE_MS - since_ms : 0, 0);
}

static void begin_barrier(struct leases *l)
{
    if (l->barrier_under_way || l->gathered == NULL)
        return;
    struct leases_leader leader = {0};
    struct err e = {0};
    l->options.calls.leader(l->options.calls.user, &leader);
    l->asked = l->gathered;
    l->gathered = NULL;
    l->barrier_ms = clock_monotonic_ms();
    /* The only voter cannot have been deposed. */
    if (leader.self && leader.voters <= 1) {
        settle(l, true);
        return;
    }
    if (l->options.calls.barrier(l->options.calls.user, barrier_cb, l, &e) != 0) {
        log_debug("lease", "not proved to lead: %s", e.msg);
        settle(l, false);
        return;
    }
    l->barrier_under_way = true;
    l->under_way++;
}

/* An older renewal of the same node is of no more use: its holder has sent another, which counts from
 * later. */
static void drop_older(struct leases *l, node_id from)
{
    struct renewal **at = &l->gathered;
    while (*at != NULL && (*at)->from != from)
        at = &(*at)->next;
    struct renewal *older = *at;
    if (older == NULL)
        return;
    *at = older->next;
    l->waiting--;
    if (older->answer != NULL)
        older->answer(older->question, NULL, 0);
    free(older);
}

void leases_leader_renew(struct leases *l, node_id from, uint64_t sent_ms,
                         leases_answer_fn answer_fn, void *question)
{
    struct renewal *r = calloc(1, sizeof *r);
    drop_older(l, from);
    /* Twice as many as nodes: one of each that gathers and one whose barrier is under way. */
    if (r == NULL || l->waiting >= 2 * l->options.nodes_max) {
        free(r);
        if (answer_fn != NULL)
            answer_fn(question, NULL, 0);
        return; /* the holder asks again */
    }
    *r = (struct renewal){
        .leases = l, .from = from, .sent_ms = sent_ms, .answer = answer_fn, .question = question};
    l->waiting++;
    if (!l->leading || l->stopped) {
        answer_not_leader(r);
        return;
    }
    r->next = l->gathered;
    l->gathered = r;
    uint64_t since_ms = clock_monotonic_ms() - l->barrier_ms;
    if (l->barrier_under_way || uv_is_active((uv_handle_t *)&l->gather_timer))
        return;
    /* Not out of this call: many that came at once go together, and nobody is answered while it asks. */
    uv_timer_start(&l->gather_timer, gather_timer_cb,
                   since_ms < LEASE_BARRIER_SHARE_MS ? LEASE_BARRIER_SHARE_MS - since_ms : 0, 0);
}

/* --- ending -------------------------------------------------------------------------------------------------- */

struct ending {
    struct leases *leases;
    node_id id;
    uint64_t epoch;
};

static void expire(struct leases *l, node_id id, uint64_t epoch);

static void expired_cb(void *user, const struct err *error, const struct registry_result *result)
{
    struct ending *x = user;
    struct leases *l = x->leases;
    l->under_way--;
    if (error != NULL)
        log_warn("lease", "the end of the lease of node %llu was not recorded: %s",
                 (unsigned long long)x->id, error->msg);
    else if (result->problem != PROBLEM_NONE)
        log_debug("lease", "%s", result->detail);
    else if (result->changed && l->leading && !l->stopped)
        expire(l, x->id, x->epoch); /* it has more instances than one command ends */
    free(x);
}

static void expire(struct leases *l, node_id id, uint64_t epoch)
{
    struct ending *x = malloc(sizeof *x);
    struct err e = {0};
    if (x == NULL)
        return; /* it is named again */
    *x = (struct ending){.leases = l, .id = id, .epoch = epoch};
    struct registry_node node = {.id = id, .lease_epoch = epoch};
    struct registry_command command = {
        .kind = REGISTRY_LEASE_EXPIRE, .wall_ms = clock_wall_ms(), .node = &node};
    if (l->options.calls.propose(l->options.calls.user, &command, expired_cb, x, &e) != 0) {
        log_warn("lease", "the end of the lease of node %llu was not proposed: %s",
                 (unsigned long long)id, e.msg);
        free(x);
        return;
    }
    l->under_way++;
}

static void due_timer_cb(uv_timer_t *timer)
{
    struct leases *l = container_of(timer, struct leases, due_timer);
    node_id id;
    uint64_t epoch, next_ms;
    if (!l->leading || l->stopped)
        return;
    look(l);
    while (lease_table_due(l->table, clock_monotonic_ms(), &id, &epoch, &next_ms)) {
        log_warn("lease", "node %llu did not renew its lease: its instances are lost",
                 (unsigned long long)id);
        expire(l, id, epoch);
    }
    uint64_t now_ms = clock_monotonic_ms();
    uint64_t wait_ms = next_ms > now_ms ? next_ms - now_ms : 0;
    uv_timer_start(timer, due_timer_cb, wait_ms < LEASES_LOOK_MS ? wait_ms : LEASES_LOOK_MS, 0);
}

/* --- leadership ------------------------------------------------------------------------------------------------ */

void leases_leader_follow(struct leases *l)
{
    struct leases_leader leader = {0};
    l->options.calls.leader(l->options.calls.user, &leader);
    if (leader.self == l->leading || l->stopped)
        return;
    l->leading = leader.self;
    if (leader.self) {
        lease_table_lead(l->table, clock_monotonic_ms());
        uv_timer_start(&l->due_timer, due_timer_cb, 0, 0);
        return;
    }
    lease_table_depose(l->table);
    uv_timer_stop(&l->due_timer);
    uv_timer_stop(&l->gather_timer);
    while (l->gathered != NULL) {
        struct renewal *r = l->gathered;
        l->gathered = r->next;
        answer_not_leader(r);
    }
}

int leases_leader_open(struct leases *l, uv_loop_t *loop, struct err *e)
{
    int rc = lease_table_new(&l->table, l->options.nodes_max, e);
    if (rc != 0)
        return rc;
    uv_timer_init(loop, &l->gather_timer);
    uv_timer_init(loop, &l->due_timer);
    l->handles += 2;
    return 0;
}

void leases_leader_stop(struct leases *l)
{
    l->leading = false;
    uv_timer_stop(&l->due_timer);
    uv_timer_stop(&l->gather_timer);
    while (l->gathered != NULL) {
        struct renewal *r = l->gathered;
        l->gathered = r->next;
        l->waiting--;
        if (r->answer != NULL)
            r->answer(r->question, NULL, 0);
        free(r);
    }
}
