/* Sockets into instances, for gateway threads that have none left, and what joiners leave behind. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "base/memory.h"
#include "node/control/control.h"

static void drop_spare(struct instance *i)
{
    while (i->spare_count > 0)
        memory_close(&i->spare[--i->spare_count]);
}

static void spare_cb(void *user, const struct err *error, const Skerry__Runner__Reply *reply,
                     int *descriptors, size_t descriptor_count)
{
    (void)reply;
    struct instance *i = user;
    i->spare_asked = false;
    for (size_t k = 0; k < descriptor_count; k++) {
        if (i->spare_count < INSTANCE_SPARE_SOCKETS && i->phase < PHASE_ENDED)
            i->spare[i->spare_count++] = descriptors[k];
        else
            memory_close(&descriptors[k]);
    }
    if (error != NULL)
        log_debug("runner", "%s: no sockets ahead: %s", i->id.text, error->msg);
    instance_unpend(i);
}

static int ask_sockets(struct node *n, const char *id, unsigned count, bool ipv6,
                       sandbox_answer_cb cb, void *user, struct err *e)
{
    Skerry__Runner__Sockets s = SKERRY__RUNNER__SOCKETS__INIT;
    s.id = (char *)(uintptr_t)id;
    s.count = count;
    s.ipv6 = ipv6;
    Skerry__Runner__Request r = SKERRY__RUNNER__REQUEST__INIT;
    r.verb_case = SKERRY__RUNNER__REQUEST__VERB_SOCKETS;
    r.sockets = &s;
    return sandbox_ask(n->sandbox, &r, cb, user, e);
}

void joins_spare(struct instance *i)
{
    bool ipv6 = i->slot.slot != NULL && i->slot.slot->target.ipv6;
    if (i->spare_ipv6 != ipv6)
        drop_spare(i);
    if (i->spare_asked || i->spare_count > 0 || i->phase > PHASE_READY)
        return;
    i->spare_ipv6 = ipv6;
    struct err e = {0};
    if (ask_sockets(i->node, i->id.text, INSTANCE_SPARE_SOCKETS, ipv6, spare_cb, i, &e) != 0)
        return;
    i->spare_asked = true;
    i->pending++;
}

static void sockets_cb(void *user, const struct err *error, const Skerry__Runner__Reply *reply,
                       int *descriptors, size_t descriptor_count)
{
    (void)reply;
    struct gateway_sockets *want = user;
    want->error = error != NULL ? (int)error->code : 0;
    for (size_t k = 0; k < descriptor_count; k++) {
        if (want->descriptor_count < GATEWAY_SOCKETS_MAX)
            want->descriptors[want->descriptor_count++] = descriptors[k];
        else
            memory_close(&descriptors[k]);
    }
    gateway_sockets_answer(want);
}

/* To a thread that begins with the instance, and to all while there is no runner to ask. */
static bool give_spare(struct instance *i, struct gateway_sockets *want)
{
    bool begins = want->count <= GATEWAY_SOCKETS_FIRST;
    if (i->spare_count == 0 || i->spare_ipv6 != want->ipv6 ||
        (!begins && sandbox_connected(i->node->sandbox)))
        return false;
    /* A few at a time: other threads may want one too while the runner is away. */
    unsigned give = i->spare_count > 2 ? 2 : 1;
    while (give-- > 0)
        want->descriptors[want->descriptor_count++] = i->spare[--i->spare_count];
    want->error = 0;
    joins_spare(i);
    gateway_sockets_answer(want);
    return true;
}

static void sockets_deliver(struct inbox_message *message, void *owner)
{
    struct node *n = owner;
    struct gateway_sockets *want = container_of(message, struct gateway_sockets, message);
    want->descriptor_count = 0;
    const struct slot *slot = want->slot.slot;
    struct err e = {0};
    /* Only this thread retires slots, so the generation cannot change under us. */
    bool stale = atomic_load(&slot->word) >> 32 != want->slot.generation;
    struct instance *i = stale ? NULL : instance_find(n, slot->id.text);
    if (i != NULL && give_spare(i, want))
        return;
    unsigned count = want->count < GATEWAY_SOCKETS_MAX ? want->count : GATEWAY_SOCKETS_MAX;
    if (stale || ask_sockets(n, slot->id.text, count, want->ipv6, sockets_cb, want, &e)) {
        want->error = stale ? ERR_NOT_FOUND : (int)e.code;
        gateway_sockets_answer(want);
    }
}

bool joins_sockets(void *user, struct gateway_sockets *want)
{
    struct node *n = user;
    want->message.deliver = sockets_deliver;
    return inbox_post_always(n->inbox, &want->message);
}

/* --- for the API ------------------------------------------------------------------------------------- */

static void one_cb(void *user, const struct err *error, const Skerry__Runner__Reply *reply,
                   int *descriptors, size_t descriptor_count)
{
    (void)reply;
    struct node_ask *ask = user;
    for (size_t k = 0; k < descriptor_count; k++) {
        if (k == 0 && error == NULL)
            ask->descriptors[0] = descriptors[0];
        else
            memory_close(&descriptors[k]);
    }
    if (error != NULL)
        asks_refuse(ask,
                    error->code == ERR_NOT_FOUND ? PROBLEM_INSTANCE_GONE : asks_problem_of(error),
                    "a socket in %s: %s", ask->instance, error->msg);
    else if (ask->descriptors[0] < 0)
        asks_refuse(ask, PROBLEM_INTERNAL, "a socket in %s: the runner sent none", ask->instance);
    else
        asks_answer(ask);
}

void sockets_ask(struct node *n, struct node_ask *ask)
{
    struct instance *i = asks_need_instance(n, ask);
    struct err e = {0};
    if (i == NULL)
        return;
    ask->id = i->id;
    if (i->phase != PHASE_READY)
        asks_refuse(ask, PROBLEM_CONFLICT, "instance %s is not ready: its ports cannot be reached",
                    ask->instance);
    else if (ask_sockets(n, i->id.text, 1, ask->ipv6, one_cb, ask, &e) != 0)
        asks_refuse_err(ask, &e);
}

/* --- what joiners leave behind ----------------------------------------------------------------------- */

struct left_message {
    struct inbox_message message;
    struct slot_ref slot;
    unsigned what;
};

static void left_deliver(struct inbox_message *message, void *owner)
{
    struct node *n = owner;
    struct left_message *l = container_of(message, struct left_message, message);
    struct instance *i = instance_find(n, l->slot.slot->id.text);
    if (i != NULL && i->slot.slot == l->slot.slot && i->slot.generation == l->slot.generation) {
        if (l->what & SLOT_LEFT_LAST)
            instance_maybe_empty(i);
        if (l->what & SLOT_LEFT_WAITED)
            steps_run(n, &(struct scheduler_event){.kind = SCHEDULER_LEFT, .instance = i->handle});
    }
    free(l);
}

void joins_slot_left(void *user, struct slot_ref slot, unsigned what)
{
    struct node *n = user;
    struct left_message *l = malloc(sizeof *l);
    assert_always(l != NULL); /* a lost leave would keep an instance for ever */
    *l = (struct left_message){.message = {.deliver = left_deliver}, .slot = slot, .what = what};
    if (!inbox_post_always(n->inbox, &l->message))
        free(l);
}
