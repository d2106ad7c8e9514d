/* The holder's side: renewals go out each LEASE_RENEW_MS, and again soon after a failure. */
#include "node/control/leases.h"

#include <stdlib.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "node/control/leases_internal.h"

struct asked {
    struct leases *leases;
    uint64_t sent_ms;
};

static void holder_timer_cb(uv_timer_t *timer);

/* --- time ------------------------------------------------------------------------------------------ */

/* The next renewal, or the moment at which the lease is over, if that comes first. */
static void arm(struct leases *l)
{
    if (l->stopped)
        return;
    uint64_t now_ms = clock_boot_ms();
    uint64_t at_ms = lease_holder_next(&l->holder);
    if (l->was_valid && l->holder.deadline_ms < at_ms)
        at_ms = l->holder.deadline_ms;
    uv_timer_start(&l->holder_timer, holder_timer_cb, at_ms > now_ms ? at_ms - now_ms : 0, 0);
}

static void note_validity(struct leases *l)
{
    bool valid = lease_holder_valid(&l->holder, clock_boot_ms());
    if (valid == l->was_valid)
        return;
    l->was_valid = valid;
    if (valid)
        log_info("lease", "this node has a lease, epoch %llu", (unsigned long long)l->holder.epoch);
    else
        log_warn("lease",
                 "the lease of this node is over: no leader renewed it for %u s. Instances with a "
                 "key are ended, nothing starts here; the others go on until the registry says "
                 "that they are lost",
                 LEASE_MS / 1000);
    if (!valid)
        l->options.calls.changed(l->options.calls.user);
}

/* --- answers ----------------------------------------------------------------------------------------- */

void leases_own_answer(struct leases *l, uint64_t sent_ms, const struct lease_answer *answer)
{
    if (l->stopped)
        return;
    l->hint = answer->outcome == LEASE_NOT_LEADER ? answer->leader : 0;
    if (answer->outcome == LEASE_REFUSED)
        log_warn("lease", "the lease of this node was not renewed: %s", answer->why);
    if (answer->outcome != LEASE_RENEWED) {
        lease_holder_failed(&l->holder, sent_ms, clock_boot_ms());
    } else if (lease_holder_granted(&l->holder, sent_ms, answer->epoch)) {
        note_validity(l);
        l->options.calls.changed(l->options.calls.user);
    }
    arm(l);
}

static void asked_cb(void *user, const struct err *error, const uint8_t *payload, size_t size)
{
    struct asked *a = user;
    struct leases *l = a->leases;
    struct lease_answer answer = {.outcome = LEASE_NOT_LEADER};
    struct err e = {0};
    if (error != NULL)
        log_debug("lease", "the renewal was not answered: %s", error->msg);
    else if (lease_answer_read(&answer, payload, size, &e) != 0) {
        log_warn("lease", "%s", e.msg);
        answer = (struct lease_answer){.outcome = LEASE_NOT_LEADER};
    }
    l->under_way--;
    leases_own_answer(l, a->sent_ms, &answer);
    free(a);
}

/* --- asking ------------------------------------------------------------------------------------------ */

static int ask_other(struct leases *l, node_id to, struct err *e)
{
    const struct leases_calls *calls = &l->options.calls;
    if (to == 0)
        return err_set(e, ERR_UNAVAILABLE, "nobody is known to lead");
    if (calls->ask == NULL || to == l->options.self)
        return err_set(e, ERR_UNAVAILABLE, "this node does not lead yet");
    struct asked *a = malloc(sizeof *a);
    if (a == NULL)
        return err_set(e, ERR_NO_MEMORY, "renew the lease");
    *a = (struct asked){.leases = l, .sent_ms = l->holder.sent_ms};
    uint8_t bytes[LEASE_WIRE_BYTES_MAX];
    size_t size = lease_renewal_write(bytes);
    int rc = calls->ask(calls->user, to, bytes, size, LEASE_ANSWER_MS, asked_cb, a, e);
    if (rc != 0)
        free(a);
    else
        l->under_way++;
    return rc;
}

static void send_renewal(struct leases *l)
{
    struct leases_leader leader = {0};
    struct err e = {0};
    l->options.calls.leader(l->options.calls.user, &leader);
    if (leader.self) {
        leases_leader_renew(l, l->options.self, l->holder.sent_ms, NULL, NULL);
        return;
    }
    node_id to = l->hint != 0 ? l->hint : leader.id;
    if (ask_other(l, to, &e) != 0) {
        log_debug("lease", "not renewed: %s", e.msg);
        l->hint = 0;
        lease_holder_failed(&l->holder, l->holder.sent_ms, clock_boot_ms());
    }
}

static void holder_timer_cb(uv_timer_t *timer)
{
    struct leases *l = container_of(timer, struct leases, holder_timer);
    note_validity(l);
    if (lease_holder_send(&l->holder, clock_boot_ms()))
        send_renewal(l);
    arm(l);
}

void leases_leader_changed(struct leases *l)
{
    leases_leader_follow(l);
    l->hint = 0;
    if (l->stopped)
        return;
    /* What was sent to the one before is not waited for. */
    lease_holder_failed(&l->holder, l->holder.sent_ms, clock_boot_ms());
    l->holder.renew_ms = clock_boot_ms();
    arm(l);
}

/* --- questions ----------------------------------------------------------------------------------------- */

void leases_question(struct leases *l, node_id from, const uint8_t *payload, size_t size,
                     leases_answer_fn answer, void *question)
{
    struct err e = {0};
    if (lease_renewal_read(payload, size, &e) != 0) {
        log_warn("lease", "from node %llu: %s", (unsigned long long)from, e.msg);
        answer(question, NULL, 0);
        return;
    }
    leases_leader_renew(l, from, 0, answer, question);
}

/* --- life ------------------------------------------------------------------------------------------------ */

int leases_open(struct leases **out, uv_loop_t *loop, const struct leases_options *options,
                struct err *e)
{
    struct leases *l = calloc(1, sizeof *l);
    if (l == NULL)
        return err_set(e, ERR_NO_MEMORY, "no memory for leases");
    l->options = *options;
    lease_holder_init(&l->holder, clock_boot_ms());
    int rc = leases_leader_open(l, loop, e);
    if (rc != 0) {
        free(l);
        return rc;
    }
    uv_timer_init(loop, &l->holder_timer);
    l->handles++;
    leases_leader_follow(l);
    arm(l);
    *out = l;
    return 0;
}

void leases_stop(struct leases *l)
{
    if (l->stopped)
        return;
    l->stopped = true;
    uv_timer_stop(&l->holder_timer);
    leases_leader_stop(l);
}

static void handle_closed_cb(uv_handle_t *handle)
{
    struct leases *l = handle->data;
    if (--l->handles > 0)
        return;
    assert_always(l->under_way == 0);
    lease_table_free(l->table);
    free(l);
}

void leases_close(struct leases *l)
{
    leases_stop(l);
    uv_timer_t *timers[] = {&l->holder_timer, &l->gather_timer, &l->due_timer};
    for (size_t k = 0; k < ARRAY_SIZE(timers); k++) {
        timers[k]->data = l;
        uv_close((uv_handle_t *)timers[k], handle_closed_cb);
    }
}

/* --- facts ----------------------------------------------------------------------------------------------- */

struct leases_held leases_held(const struct leases *l)
{
    return (struct leases_held){.epoch = l->holder.epoch,
                                .deadline_ms = l->holder.deadline_ms,
                                .valid = lease_holder_valid(&l->holder, clock_boot_ms())};
}

uint64_t leases_left_ms(const struct leases *l, node_id id)
{
    uint64_t until_ms = lease_table_until(l->table, id);
    uint64_t now_ms = clock_monotonic_ms();
    return until_ms > now_ms ? until_ms - now_ms : 0;
}
