#include "tests/lib/gateway_nodes.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/address.h"
#include "base/memory.h"

/* --- what a node knows of the others ---------------------------------------------------------------- */

static bool call_peer(void *user, node_id id, struct gateway_peer *out)
{
    struct gateway_fixture *f = user;
    struct gateway_node *self = f->options.user;
    struct gateway_nodes *n = self->all;
    if (id == 0 || id > n->count)
        return false;
    const struct gateway_node *node = &n->nodes[id - 1];
    out->address = node->address;
    text_format(out->name, sizeof out->name, "node%u", (unsigned)id);
    out->alive = !node->dead;
    return true;
}

static void on_workload(struct gateway_fixture *f, struct gateway_workload *out)
{
    struct gateway_node *self = f->options.user;
    struct gateway_nodes *n = self->all;
    if (self->id != 1 || out->kind != WORKLOAD_SERVER)
        return;
    if (!n->local)
        out->candidate_count = 0;
    for (unsigned i = 1; i < n->count && !n->no_owners; i++)
        if (!n->nodes[i].dead)
            out->owners[out->owner_count++] =
                (struct gateway_owner){n->nodes[i].id, n->nodes[i].load};
}

/* The registry knows all instances; ids that end in "zz" would be made up by a test. */
static bool on_instance(struct gateway_fixture *f, const struct instance_id *id,
                        struct gateway_instance *out, struct gateway_workload *out_workload)
{
    struct gateway_node *self = f->options.user;
    struct gateway_nodes *n = self->all;
    for (unsigned i = 0; i < n->count; i++) {
        struct gateway_node *node = &n->nodes[i];
        if (node == self || strcmp(node->instance.text, id->text) != 0)
            continue;
        *out = (struct gateway_instance){.state = node->lost ? INSTANCE_STATE_ENDED
                                                             : INSTANCE_STATE_READY,
                                         .reason = END_NODE_LOST,
                                         .owner = node->id,
                                         .owner_alive = !node->dead};
        *out_workload = (struct gateway_workload){.version = 1,
                                                  .kind = WORKLOAD_SERVER,
                                                  .public_access = true,
                                                  .first_byte_ms = DURATION_NONE,
                                                  .request_ms = DURATION_NONE,
                                                  .stream_idle_ms = DURATION_NONE,
                                                  .queue_timeout_ms = DURATION_NONE};
        text_copy(out_workload->name, sizeof out_workload->name, "web");
        return true;
    }
    return false;
}

/* Control of node 1 sends elsewhere, that of the others grants what came from another node. */
static void on_ask(struct gateway_fixture *f, struct gateway_ask *ask)
{
    struct gateway_node *self = f->options.user;
    struct gateway_nodes *n = self->all;
    n->asks++;
    n->asks_forwarded += ask->forwarded;
    n->refused_seen = ask->refused[0];
    pthread_mutex_lock(&n->mutex);
    text_copy(n->key_asked, sizeof n->key_asked, ask->key);
    pthread_mutex_unlock(&n->mutex);
    ask->problem = PROBLEM_NONE;
    if (!ask->forwarded && n->sent_to != 0 && ask->refused[0] != n->sent_to) {
        ask->elsewhere = n->sent_to;
    } else if (!ask->forwarded && n->sent_to != 0 && ask->key[0] != '\0') {
        ask->problem = PROBLEM_OWNER_UNREACHABLE;
        ask->ran = RAN_NO;
        ask->id = n->nodes[n->sent_to - 1].instance;
    } else if (ask->forwarded && slot_enter_forced(f->slot, 0) == SLOT_ENTERED) {
        ask->slot = f->slot;
        ask->id = f->id;
        ask->start = GATEWAY_START_COLD;
        ask->timing = (struct gateway_timing){.queue_us = 1000, .reserve_us = 2000};
    } else {
        ask->problem = PROBLEM_NODE_FULL;
        ask->ran = RAN_NO;
        text_copy(ask->detail, sizeof ask->detail, "nothing starts here");
    }
    gateway_answer(ask);
}

/* --- the control thread ----------------------------------------------------------------------------- */

static void detached_cb(void *user, struct secure_parcel *parcel)
{
    struct gateway_node *node = user;
    if (node->up)
        gateway_accept(node->f.gateway, parcel);
    else
        secure_parcel_drop(parcel);
}

static void accepted_cb(void *user, struct secure_stream *s)
{
    static const struct secure_events none = {NULL, NULL};
    secure_stream_set_events(s, &none, user);
    secure_stream_detach(s, detached_cb);
}

static void listen_command(struct gateway_nodes *n, unsigned index)
{
    struct gateway_node *node = &n->nodes[index];
    struct secure_listen_options options = {
        .context = n->world.contexts[node->id],
        .address = &node->address,
        .protocols = 1u << SECURE_JOIN,
        .accepted = accepted_cb,
        .user = node,
    };
    struct sockaddr_storage at = node->address;
    struct err e;
    options.address = &at;
    assert_always(secure_listener_open(&node->listener, &n->loop, &options, &e) == 0);
    node->address = *secure_listener_address(node->listener);
    node->up = true;
}

static void deaf_command(struct gateway_nodes *n, unsigned index)
{
    struct gateway_node *node = &n->nodes[index];
    node->up = false;
    secure_listener_close(node->listener, NULL);
    node->listener = NULL;
}

/* What is under way on the loop has two turns to come to its end. */
static void nothing_command(struct gateway_nodes *n, unsigned index)
{
    (void)n, (void)index;
}

static void close_command(struct gateway_nodes *n, unsigned index)
{
    (void)index;
    uv_close((uv_handle_t *)&n->wake, NULL);
}

static void wake_cb(uv_async_t *async)
{
    struct gateway_nodes *n = container_of(async, struct gateway_nodes, wake);
    pthread_mutex_lock(&n->mutex);
    if (n->command != NULL)
        n->command(n, n->command_index);
    n->command = NULL;
    pthread_cond_broadcast(&n->changed);
    pthread_mutex_unlock(&n->mutex);
}

static void run_command(struct gateway_nodes *n,
                        void (*command)(struct gateway_nodes *n, unsigned index), unsigned index)
{
    pthread_mutex_lock(&n->mutex);
    n->command = command;
    n->command_index = index;
    uv_async_send(&n->wake);
    while (n->command != NULL)
        pthread_cond_wait(&n->changed, &n->mutex);
    pthread_mutex_unlock(&n->mutex);
}

static void control_main(void *argument)
{
    struct gateway_nodes *n = argument;
    uv_run(&n->loop, UV_RUN_DEFAULT);
}

/* --- life ------------------------------------------------------------------------------------------- */

static void node_start(struct gateway_node *node, const struct gateway_fixture_options *options)
{
    struct gateway_fixture_options o = *options;
    static const char *const names[] = {"node1", "node2", "node3"};
    o.id = node->id;
    o.node_name = names[node->id - 1];
    o.secure = node->all->world.contexts[node->id];
    o.peer = call_peer;
    o.on_workload = on_workload;
    o.on_instance = on_instance;
    o.user = node;
    if (o.on_ask == NULL)
        o.on_ask = on_ask;
    gateway_fixture_start(&node->f, &o);
    /* Others read it while a node that was away starts: written once. */
    if (node->instance.text[0] == '\0')
        node->instance = node->f.id;
    assert_string_equal(node->instance.text, node->f.id.text);
    run_command(node->all, listen_command, (unsigned)node->id - 1);
}

void gateway_nodes_start(struct gateway_nodes *n, const struct gateway_nodes_options *options)
{
    struct err e;
    memset(n, 0, sizeof *n);
    n->count = options->count;
    secure_world_open(&n->world);
    pthread_mutex_init(&n->mutex, NULL);
    pthread_cond_init(&n->changed, NULL);
    assert_always(uv_loop_init(&n->loop) == 0);
    assert_always(uv_async_init(&n->loop, &n->wake, wake_cb) == 0);
    assert_always(uv_thread_create(&n->control, control_main, n) == 0);
    for (unsigned i = 0; i < n->count; i++) {
        n->nodes[i].all = n;
        n->nodes[i].id = i + 1;
        assert_always(address_parse(&n->nodes[i].address, "127.0.0.1:0", 0, &e) == 0);
    }
    for (unsigned i = n->count; i > 0; i--)
        node_start(&n->nodes[i - 1], &options->fixture);
}

void gateway_nodes_kill(struct gateway_nodes *n, unsigned index)
{
    run_command(n, deaf_command, index);
    run_command(n, nothing_command, 0);
    run_command(n, nothing_command, 0);
    gateway_fixture_stop(&n->nodes[index].f);
}

void gateway_nodes_revive(struct gateway_nodes *n, unsigned index)
{
    struct gateway_fixture_options options = n->nodes[index].f.options;
    options.backend_port = 0;
    node_start(&n->nodes[index], &options);
}

void gateway_nodes_stop(struct gateway_nodes *n)
{
    for (unsigned i = 0; i < n->count; i++)
        if (n->nodes[i].up)
            gateway_nodes_kill(n, i);
    run_command(n, close_command, 0);
    uv_thread_join(&n->control);
    assert_always(uv_loop_close(&n->loop) == 0);
    secure_world_close(&n->world);
    pthread_mutex_destroy(&n->mutex);
    pthread_cond_destroy(&n->changed);
}

int gateway_nodes_teardown(void **state)
{
    gateway_nodes_stop(*state);
    free(*state);
    return 0;
}
