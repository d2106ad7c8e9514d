/* node/api/ask.c - questions to the control thread.
 *
 *     new -> sent -> answered [-> ended] -> freed
 *
 * A request (or a duplex connection) may let go at any time: then descriptors that still come are
 * closed, a command or import that is under way is canceled, and the ask is freed when the control
 * thread has done with it. Asks that name another as their target hold it until they are answered. */
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "node/api/internal.h"

#define SETTLE_EVERY_MS 5
#define SETTLE_MS 1000

static void ask_free(struct api_ask *a)
{
    for (size_t i = 0; i < ARRAY_SIZE(a->ask.descriptors); i++)
        memory_close(&a->ask.descriptors[i]);
    json_decref(a->ask.json);
    if (a->has_spec)
        workload_free(&a->spec);
    for (size_t i = 0; i < a->text_count; i++)
        free(a->texts[i]);
    explicit_bzero(a->gossip_key, sizeof(a->gossip_key));
    free(a);
}

static void free_if_done(struct api_ask *a)
{
    if (a->request == NULL && a->duplex == NULL && !a->in_flight && a->holds == 0)
        ask_free(a);
}

static bool has_end(enum node_ask_kind kind)
{
    return kind == NODE_ASK_RUN || kind == NODE_ASK_EXEC || kind == NODE_ASK_IMPORT;
}

static void done_cb(struct api_ask *a)
{
    a->in_flight = false;
    a->api->asks--;
    api_dirty(a->api);
    if (a->target != NULL) {
        a->target->holds--;
        free_if_done(a->target);
        a->target = NULL;
    }
}

static void answered_cb(struct node_ask *ask, void *owner)
{
    struct api_ask *a = container_of(ask, struct api_ask, ask);
    (void)owner;
    bool more = has_end(ask->kind) && ask->problem == PROBLEM_NONE;
    if (!more)
        done_cb(a);
    api_dirty(a->api);
    if (a->request != NULL || a->duplex != NULL) {
        a->answered(a);
        return;
    }
    for (size_t i = 0; i < ARRAY_SIZE(ask->descriptors); i++)
        memory_close(&ask->descriptors[i]);
    free_if_done(a);
}

static void ended_cb(struct node_ask *ask, void *owner)
{
    struct api_ask *a = container_of(ask, struct api_ask, ask);
    (void)owner;
    done_cb(a);
    if ((a->request != NULL || a->duplex != NULL) && a->ended != NULL)
        a->ended(a);
    else
        free_if_done(a);
}

static struct api_ask *ask_make(struct api *api, enum node_ask_kind kind)
{
    struct api_ask *a = calloc(1, sizeof(*a));
    if (a == NULL)
        return NULL;
    a->api = api;
    a->ask.kind = kind;
    a->ask.reply_to = api->inbox;
    a->ask.user = a;
    a->ask.answered = answered_cb;
    a->ask.ended = ended_cb;
    for (size_t i = 0; i < ARRAY_SIZE(a->ask.descriptors); i++)
        a->ask.descriptors[i] = -1;
    return a;
}

struct api_ask *api_ask_new(struct api_request *r, enum node_ask_kind kind)
{
    /* A handler of several steps asks one after the other. */
    if (r->ask != NULL)
        api_ask_leave(r->ask);
    struct api_ask *a = ask_make(r->api, kind);
    bool failed = a == NULL;
    if (a != NULL) {
        char text[96];
        (void)text_format(text, sizeof(text), "%s %s", r->method, r->path);
        a->ask.asked_by = api_ask_text(a, text, &failed);
        a->ask.request_id = api_ask_text(a, r->id, &failed);
    }
    if (failed) {
        if (a != NULL)
            ask_free(a);
        api_problem(r, PROBLEM_INTERNAL, "out of memory");
        return NULL;
    }
    a->request = r;
    r->ask = a;
    return a;
}

const char *api_ask_text(struct api_ask *a, const char *text, bool *failed)
{
    if (text == NULL)
        return NULL;
    assert_always(a->text_count < API_TEXTS_MAX);
    char *copy = strdup(text);
    if (copy == NULL) {
        *failed = true;
        return NULL;
    }
    a->texts[a->text_count++] = copy;
    return copy;
}

static bool send_ask(struct api_ask *a)
{
    struct api *api = a->api;
    a->in_flight = true;
    api->asks++;
    if (api->options.calls.ask(api->options.calls.user, &a->ask))
        return true;
    a->in_flight = false;
    api->asks--;
    return false;
}

bool api_ask_send(struct api_ask *a, void (*answered)(struct api_ask *a))
{
    struct api_request *r = a->request;
    a->answered = answered;
    if (send_ask(a))
        return true;
    api_problem(r, PROBLEM_LIMIT_REACHED, "the node has too many questions waiting; try again");
    api_ask_leave(a);
    return false;
}

void api_ask_about(struct api_ask *target, enum node_ask_kind kind, unsigned signal, unsigned rows,
                   unsigned columns)
{
    if (!target->in_flight)
        return;
    struct api_ask *a = ask_make(target->api, kind);
    if (a == NULL)
        return;
    a->ask.target = &target->ask;
    a->ask.signal = signal;
    a->ask.rows = rows;
    a->ask.columns = columns;
    a->target = target;
    target->holds++;
    if (send_ask(a))
        return;
    log_warn("api", "too many questions wait: a signal, resize or cancel was lost");
    target->holds--;
    ask_free(a);
}

void api_ask_cancel(struct api_ask *a)
{
    if (!a->in_flight || a->canceled || !has_end(a->ask.kind))
        return;
    a->canceled = true;
    api_ask_about(a, NODE_ASK_CANCEL, 0, 0, 0);
}

void api_ask_leave(struct api_ask *a)
{
    if (a->request != NULL && a->request->ask == a)
        a->request->ask = NULL;
    a->request = NULL;
    a->duplex = NULL;
    api_ask_cancel(a);
    if (!a->in_flight)
        free_if_done(a);
}

bool api_ask_refused(struct api_request *r, const struct api_ask *a)
{
    if (a->ask.problem == PROBLEM_NONE)
        return false;
    api_problem_of(r, &(struct api_trouble){.problem = a->ask.problem,
                                            .ran = a->ask.ran,
                                            .retry_after_s = a->ask.retry_after_s,
                                            .instance = a->ask.id.text,
                                            .detail = a->ask.detail});
    return true;
}

bool api_ask_result_refused(struct api_request *r, const struct api_ask *a)
{
    if (api_ask_refused(r, a))
        return true;
    const struct registry_result *result = &a->ask.result;
    if (result->problem == PROBLEM_NONE)
        return false;
    api_problem_of(r, &(struct api_trouble){.problem = result->problem,
                                            .instance = result->existing.text,
                                            .detail = result->detail});
    return true;
}

/* --- waiting for a root that shows it ----------------------------------------------------------- */

/* Roots are published a few milliseconds after a command was applied; who changed something should
 * see it in the very next listing. */
static bool root_shows(const struct api_request *r, const struct registry_root *root)
{
    if (r->settle_instance.text[0] == '\0')
        return registry_root_index(root) >= r->settle_index;
    const struct registry_instance *i =
        registry_root_instance(root, r->settle_instance.text, strlen(r->settle_instance.text));
    return i != NULL && i->state >= r->settle_state;
}

static void settle_now(struct api *api)
{
    struct registry_root *root = api->options.calls.root(api->options.calls.user);
    uint64_t now = clock_monotonic_ms();
    struct api_request **link = &api->settling;
    struct api_request *ready = NULL;
    while (*link != NULL) {
        struct api_request *r = *link;
        if (!root_shows(r, root) && now < r->settle_deadline_ms) {
            link = &r->settle_next;
            continue;
        }
        *link = r->settle_next;
        r->settle_next = ready;
        ready = r;
    }
    api->options.calls.root_return(api->options.calls.user, root);
    while (ready != NULL) {
        struct api_request *r = ready;
        ready = r->settle_next;
        r->settling = false;
        r->settled(r);
    }
    if (api->settling == NULL)
        (void)uv_timer_stop(&api->settle);
    api_dirty(api);
}

void api_settle_cb(uv_timer_t *timer)
{
    settle_now(timer->data);
}

static void settle(struct api_request *r, void (*settled)(struct api_request *))
{
    struct api *api = r->api;
    r->settled = settled;
    r->settle_deadline_ms = clock_monotonic_ms() + SETTLE_MS;
    r->settle_next = api->settling;
    r->settling = true;
    api->settling = r;
    settle_now(api);
    if (api->settling != NULL)
        (void)uv_timer_start(&api->settle, api_settle_cb, SETTLE_EVERY_MS, SETTLE_EVERY_MS);
}

void api_settle_index(struct api_request *r, uint64_t index, void (*settled)(struct api_request *))
{
    r->settle_index = index;
    r->settle_instance.text[0] = '\0';
    settle(r, settled);
}

/* --- proposals ---------------------------------------------------------------------------------- */

void api_ask_propose(struct api_ask *a, enum registry_command_kind kind,
                     void (*answered)(struct api_ask *a))
{
    a->command.kind = kind;
    a->command.wall_ms = clock_wall_ms();
    a->ask.command = &a->command;
    (void)api_ask_send(a, answered);
}

static void settled_empty(struct api_request *r)
{
    api_answer_empty(r, MHD_HTTP_NO_CONTENT);
}

void api_ask_settled_empty(struct api_ask *a)
{
    if (!api_ask_result_refused(a->request, a))
        api_settle_index(a->request, a->ask.result.index, settled_empty);
}

void api_settle_instance(struct api_request *r, const struct instance_id *id,
                         enum instance_state state, void (*settled)(struct api_request *))
{
    r->settle_instance = *id;
    r->settle_state = state;
    settle(r, settled);
}

void api_settle_cancel(struct api_request *r)
{
    if (!r->settling)
        return;
    struct api_request **link = &r->api->settling;
    while (*link != r)
        link = &(*link)->settle_next;
    *link = r->settle_next;
    r->settling = false;
}
