#include "tests/lib/registry_many.h"

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/address.h"
#include "base/clock.h"
#include "base/memory.h"
#include "tests/lib/registry_help.h"

/* --- keys and addresses ----------------------------------------------------------------------------- */

static bool key_of(void *user, node_id id, struct identity_public *out)
{
    struct many *m = user;
    if (id == 0 || id > m->count || m->nodes[id].removed)
        return false;
    *out = *identity_public(m->nodes[id].identity);
    return true;
}

static bool stream_address(void *user, node_id id, struct sockaddr_storage *out)
{
    struct many *m = ((struct many_node *)user)->many;
    if (id == 0 || id > m->count || m->nodes[id].listener == NULL)
        return false;
    *out = m->nodes[id].address;
    return true;
}

static void accepted(void *user, struct secure_stream *s)
{
    struct many_node *n = user;
    n->streams++;
    if (n->registry == NULL)
        secure_stream_close(s, NULL);
    else
        registry_accept(n->registry, s);
}

/* --- questions -------------------------------------------------------------------------------------- */

struct many_question {
    struct many_question *next;
    struct many *many;
    node_id from, to;
    uint8_t *payload; /* of the question, then of the answer */
    size_t size;
    registry_peer_cb answered;
    void *user;
    uint64_t deadline_ms;
    enum { Q_ASKED, Q_HEARD, Q_ANSWERED, Q_ENDED } state;
    bool owed; /* the other registry will answer */
};

static void carrier_cb(uv_idle_t *idle);

static int ask(void *user, node_id to, const void *payload, size_t size, unsigned timeout_ms,
               registry_peer_cb answered, void *answered_user, struct err *e)
{
    struct many_node *n = user;
    struct many *m = n->many;
    if (to == 0 || to > m->count)
        return err_set(e, ERR_NOT_FOUND, "node %llu is nobody", (unsigned long long)to);
    struct many_question *q = calloc(1, sizeof *q);
    assert_always(q != NULL);
    *q = (struct many_question){.many = m,
                                .from = n->id,
                                .to = to,
                                .payload = malloc(size + 1),
                                .size = size,
                                .answered = answered,
                                .user = answered_user,
                                .deadline_ms = clock_monotonic_ms() + timeout_ms};
    memcpy(q->payload, payload, size);
    *m->last = q;
    m->last = &q->next;
    m->asked++;
    uv_idle_start(&m->carrier, carrier_cb);
    return 0;
}

/* Questions stay in the list until they were told of, so that a late answer finds its own. */
static void answer(void *question, const void *payload, size_t size)
{
    struct many_question *q = question;
    q->owed = false;
    if (q->state == Q_ENDED)
        return;
    free(q->payload);
    q->payload = malloc(size + 1);
    memcpy(q->payload, payload, size);
    q->size = size;
    q->state = Q_ANSWERED;
    uv_idle_start(&q->many->carrier, carrier_cb);
}

static void tell(struct many_question *q, const struct registry_peer_answer *a)
{
    q->state = Q_ENDED;
    q->answered(q->user, a);
}

static void fail_question(struct many_question *q, bool maybe_heard)
{
    struct err e;
    err_set(&e, ERR_UNAVAILABLE, "node %llu is away", (unsigned long long)q->to);
    tell(q, &(struct registry_peer_answer){.error = &e, .maybe_heard = maybe_heard});
}

/* True while there is more to carry. */
static bool question_carry(struct many_question *q, uint64_t now)
{
    struct many *m = q->many;
    struct many_node *to = &m->nodes[q->to];
    bool cut = to->cut || m->nodes[q->from].cut;
    if (q->state == Q_ASKED) {
        if (to->registry == NULL || to->closed) {
            fail_question(q, false);
        } else if (!cut) {
            q->state = Q_HEARD;
            q->owed = true;
            registry_question(to->registry, q->from, q->payload, q->size, answer, q);
        }
    } else if (q->state == Q_ANSWERED && !cut && !m->lose_answers) {
        tell(q, &(struct registry_peer_answer){.payload = q->payload, .size = q->size});
    }
    if (q->state != Q_ENDED && (now >= q->deadline_ms || (to->registry == NULL && !cut)))
        fail_question(q, !m->unsent || q->state != Q_ASKED);
    return (q->state == Q_ASKED || q->state == Q_ANSWERED) && !cut && !m->lose_answers;
}

static void carrier_cb(uv_idle_t *idle)
{
    struct many *m = container_of(idle, struct many, carrier);
    uint64_t now = clock_monotonic_ms();
    bool more = false;
    for (struct many_question *q = m->first; q != NULL; q = q->next)
        more |= question_carry(q, now);
    for (struct many_question **place = &m->first; *place != NULL;) {
        struct many_question *q = *place;
        if (q->state != Q_ENDED || q->owed) {
            place = &q->next;
            continue;
        }
        *place = q->next;
        free(q->payload);
        free(q);
    }
    for (m->last = &m->first; *m->last != NULL; m->last = &(*m->last)->next)
        continue;
    if (!more)
        uv_idle_stop(idle);
}

/* --- life ------------------------------------------------------------------------------------------- */

static void changed(void *user)
{
    (void)user;
}

static void leader_changed(void *user, bool leader)
{
    ((struct many_node *)user)->leader = leader;
}

static void failed(void *user, const struct err *error)
{
    struct many_node *n = user;
    n->failed = true;
    n->failure = *error;
}

static void alarm_cb(uv_timer_t *timer)
{
    container_of(timer, struct many, alarm)->late = true;
}

static void tick_cb(uv_timer_t *timer)
{
    struct many *m = container_of(timer, struct many, tick);
    struct registry_peer peers[MANY_MAX];
    size_t count = 0;
    uv_idle_start(&m->carrier, carrier_cb);
    if (!m->roles)
        return;
    for (node_id id = 1; id <= m->count; id++)
        if (!m->nodes[id].removed && m->nodes[id].boot != 0)
            peers[count++] = (struct registry_peer){
                .id = id, .alive = m->nodes[id].registry != NULL && !m->dead[id]};
    for (node_id id = 1; id <= m->count; id++)
        if (m->nodes[id].registry != NULL)
            registry_roles(m->nodes[id].registry, peers, count, &m->wanted);
}

void many_open(struct many *m, unsigned count)
{
    struct err e;
    memset(m, 0, sizeof *m);
    /* As in the node: libuv writes to streams whose other end has gone. */
    (void)signal(SIGPIPE, SIG_IGN);
    assert_in_range(count, 1, MANY_MAX);
    assert_int_equal(uv_loop_init(&m->loop), 0);
    uv_timer_init(&m->loop, &m->alarm);
    uv_timer_init(&m->loop, &m->tick);
    uv_idle_init(&m->loop, &m->carrier);
    uv_timer_start(&m->tick, tick_cb, 20, 20);
    m->last = &m->first;
    m->count = count;
    m->wanted = (struct registry_roles_wanted){.voters = 3, .standbys = 100};
    for (node_id id = 1; id <= count; id++) {
        struct many_node *n = &m->nodes[id];
        *n = (struct many_node){.many = m, .id = id, .directory = help_directory()};
        assert_int_equal(identity_new(&n->identity, &e), 0);
    }
}

void many_start(struct many *m, node_id id)
{
    struct many_node *n = &m->nodes[id];
    struct err e = {0};
    struct identity *stranger = NULL;
    if (n->stranger)
        assert_int_equal(identity_new(&stranger, &e), 0);
    struct secure_context_options context = {
        .identity = n->stranger ? stranger : n->identity, .id = id, .key_of = key_of, .user = m};
    assert_int_equal(secure_context_open(&n->secure, &context, &e), 0);
    if (stranger != NULL)
        identity_free(stranger);
    struct sockaddr_storage any;
    assert_int_equal(address_parse(&any, "127.0.0.1:0", 0, &e), 0);
    struct secure_listen_options listen = {.context = n->secure,
                                           .address = &any,
                                           .protocols = 1u << SECURE_RAFT | 1u << SECURE_SPARE,
                                           .accepted = accepted,
                                           .user = n};
    assert_int_equal(secure_listener_open(&n->listener, &m->loop, &listen, &e), 0);
    n->address = *secure_listener_address(n->listener);
    n->boot = clock_monotonic_us();
    n->leader = n->failed = n->closed = false;
    struct registry_options options = {
        .directory = n->directory,
        .id = id,
        .bootstrap = id == 1,
        .peers = {.secure = n->secure, .user = n, .stream_address = stream_address, .ask = ask},
        .boot = n->boot,
        .snapshot_threshold = m->snapshot_threshold,
        .snapshot_trailing = m->snapshot_trailing,
        .propose_timeout_ms = m->propose_timeout_ms,
        .user = n,
        .changed = changed,
        .leader_changed = leader_changed,
        .failed = failed};
    if (registry_open(&n->registry, &m->loop, &options, &e) < 0)
        fail_msg("%s", e.msg);
}

static void closed_cb(void *user)
{
    struct many_node *n = user;
    n->registry = NULL;
}

static void listener_closed_cb(void *user)
{
    ((struct many_node *)user)->listener = NULL;
}

static bool is_stopped(struct many *m, void *user)
{
    (void)m;
    const struct many_node *n = user;
    return n->registry == NULL && n->listener == NULL;
}

void many_stop(struct many *m, node_id id)
{
    struct many_node *n = &m->nodes[id];
    n->closed = true;
    registry_close(n->registry, closed_cb, n);
    secure_listener_close(n->listener, listener_closed_cb);
    many_run_until(m, is_stopped, n);
    n->leader = false;
    /* Streams that close now have no owner any more and need the context no longer than this. */
    for (unsigned i = 0; i < 3; i++)
        uv_run(&m->loop, UV_RUN_NOWAIT);
    secure_context_free(n->secure);
    n->secure = NULL;
}

void many_wipe(struct many *m, node_id id)
{
    struct many_node *n = &m->nodes[id];
    help_directory_remove(n->directory);
    n->directory = help_directory();
}

void many_close(struct many *m)
{
    for (node_id id = 1; id <= m->count; id++)
        if (m->nodes[id].registry != NULL)
            many_stop(m, id);
    uv_close((uv_handle_t *)&m->alarm, NULL);
    uv_close((uv_handle_t *)&m->tick, NULL);
    uv_close((uv_handle_t *)&m->carrier, NULL);
    uv_run(&m->loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(&m->loop), 0);
    while (m->first != NULL) {
        struct many_question *q = m->first;
        m->first = q->next;
        if (q->state != Q_ENDED)
            fail_question(q, true);
        free(q->payload);
        free(q);
    }
    for (node_id id = 1; id <= m->count; id++) {
        identity_free(m->nodes[id].identity);
        help_directory_remove(m->nodes[id].directory);
    }
}

/* --- waiting ---------------------------------------------------------------------------------------- */

static void say_where_it_stands(struct many *m)
{
    for (node_id id = 1; id <= m->count; id++) {
        struct registry_status s = {0};
        if (m->nodes[id].registry != NULL)
            registry_status(m->nodes[id].registry, &s);
        print_message(
            "node %llu: %s, leader %llu, term %llu, commit %llu, applied %llu, %u voters\n",
            (unsigned long long)id, m->nodes[id].registry == NULL ? "stopped" : "runs",
            (unsigned long long)s.leader_id, (unsigned long long)s.term,
            (unsigned long long)s.commit_index, (unsigned long long)s.applied_index, s.voters);
    }
}

void many_run_until(struct many *m, bool (*done)(struct many *m, void *user), void *user)
{
    uv_timer_start(&m->alarm, alarm_cb, MANY_DEADLINE_MS, 0);
    m->late = false;
    while (!done(m, user) && !m->late)
        uv_run(&m->loop, UV_RUN_ONCE);
    uv_timer_stop(&m->alarm);
    if (m->late) {
        say_where_it_stands(m);
        fail_msg("it did not happen in time");
    }
}

void many_run_for(struct many *m, unsigned ms)
{
    uv_timer_start(&m->alarm, alarm_cb, ms, 0);
    m->late = false;
    while (!m->late)
        uv_run(&m->loop, UV_RUN_ONCE);
}

static bool all_know(struct many *m, void *user)
{
    node_id leader = 0;
    for (node_id id = 1; id <= m->count; id++)
        if (m->nodes[id].registry != NULL && m->nodes[id].leader && !m->nodes[id].cut)
            leader = id;
    if (leader == 0)
        return false;
    for (node_id id = 1; id <= m->count; id++) {
        struct registry_status s;
        enum registry_role role = many_role(m, leader, id);
        if (m->nodes[id].registry == NULL || m->nodes[id].cut ||
            (role != REGISTRY_ROLE_VOTER && role != REGISTRY_ROLE_STANDBY))
            continue;
        registry_status(m->nodes[id].registry, &s);
        if (s.leader_id != leader)
            return false;
    }
    *(node_id *)user = leader;
    return true;
}

node_id many_leader(struct many *m)
{
    node_id leader = 0;
    many_run_until(m, all_know, &leader);
    return leader;
}

node_id many_follower(struct many *m)
{
    node_id leader = many_leader(m);
    for (node_id id = 1; id <= m->count; id++)
        if (id != leader && m->nodes[id].registry != NULL)
            return id;
    return 0;
}

static bool are_voters(struct many *m, void *user)
{
    struct registry_status s;
    for (node_id id = 1; id <= m->count; id++) {
        if (m->nodes[id].registry == NULL)
            continue;
        registry_status(m->nodes[id].registry, &s);
        if (s.voters != *(unsigned *)user)
            return false;
    }
    return true;
}

void many_form(struct many *m, unsigned voters)
{
    m->wanted.voters = voters;
    m->roles = true;
    for (node_id id = 1; id <= voters; id++)
        many_start(m, id);
    many_run_until(m, are_voters, &voters);
    many_leader(m);
}

/* --- asking ----------------------------------------------------------------------------------------- */

void many_answered(void *user, const struct err *error, const struct registry_result *result)
{
    struct many_answer *a = user;
    assert_false(a->done);
    a->done = true;
    a->error = error != NULL;
    if (error != NULL)
        a->err = *error;
    else
        a->result = *result;
}

void many_read_done(void *user, const struct err *error)
{
    const struct registry_result none = {0};
    many_answered(user, error, error == NULL ? &none : NULL);
}

void many_deploy(struct many *m, node_id at, const char *name, struct many_answer *a)
{
    char *json = help_workload_json(name, "");
    struct registry_command c = {.kind = REGISTRY_WORKLOAD_PUT, .workload_json = json};
    struct err e = {0};
    *a = (struct many_answer){0};
    if (registry_propose(m->nodes[at].registry, &c, many_answered, a, &e) < 0)
        fail_msg("%s", e.msg);
    free(json);
}

static bool is_answered(struct many *m, void *user)
{
    (void)m;
    return ((struct many_answer *)user)->done;
}

struct registry_result many_wait(struct many *m, struct many_answer *a)
{
    many_run_until(m, is_answered, a);
    if (a->error)
        fail_msg("%s", a->err.msg);
    return a->result;
}

struct registry_result many_put(struct many *m, node_id at, const char *name)
{
    struct many_answer a;
    many_deploy(m, at, name, &a);
    return many_wait(m, &a);
}

void many_read(struct many *m, node_id at)
{
    struct many_answer a = {0};
    struct err e = {0};
    if (registry_read(m->nodes[at].registry, many_read_done, &a, &e) < 0)
        fail_msg("%s", e.msg);
    many_wait(m, &a);
}

bool many_has(struct many *m, node_id at, const char *name)
{
    struct registry_root *root = registry_root(m->nodes[at].registry);
    bool there = registry_root_workload(root, name, strlen(name)) != NULL;
    registry_root_release(root);
    return there;
}

enum registry_role many_role(struct many *m, node_id at, node_id of)
{
    struct registry_member members[MANY_MAX + 1];
    size_t count = registry_members(m->nodes[at].registry, members, MANY_MAX + 1);
    for (size_t i = 0; i < count && i <= MANY_MAX; i++)
        if (members[i].id == of)
            return members[i].role;
    return REGISTRY_ROLE_NONE;
}
