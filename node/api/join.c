/* node/api/join.c - a place in an instance: for `join`, held as long as the connection lives, and for a
 * connection to a port (node/api/port.c).
 *
 *     slot free here ------------------------------------------> held
 *     another node has some of the workload -> relayed there
 *     control: granted ----------------------------------------> held
 *     control: elsewhere -> relayed there
 *
 * Who joins gets a line of JSON, and then nothing until it leaves or the instance ends.
 *
 * What was relayed to this node is served here or refused. Whether an instance still lives is looked at
 * four times a second: its slot says so. */
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "node/api/internal.h"
#include "node/api/relay.h"

#define LOOK_MS 250u

/* An ask that is under way keeps it until it is answered. */
struct place {
    struct api *api;
    struct api_request *request; /* that it is sought for; NULL: left */
    struct place *previous, *next;
    struct gateway_ask *ask; /* under way */
    struct slot_ref slot;
    struct api_place_events events;
    void *owner;
    bool entered, told, over; /* the last two: of `join` */
};

static void place_unlink(struct place *p)
{
    struct api *api = p->api;
    if (p->previous != NULL)
        p->previous->next = p->next;
    else
        api->places = p->next;
    if (p->next != NULL)
        p->next->previous = p->previous;
    free(p);
    api_dirty(api); /* the API may be waiting for the last of them */
}

static void slot_return(struct api *api, struct slot_ref slot)
{
    const struct api_calls *calls = &api->options.calls;
    unsigned what = slot_leave(slot, clock_monotonic_ms());
    if (what != 0)
        calls->slot_left(calls->user, slot, what);
}

void api_place_leave(struct place *p)
{
    p->request = NULL;
    if (p->entered)
        slot_return(p->api, p->slot);
    p->entered = false;
    if (p->ask != NULL)
        p->api->options.calls.join_cancel(p->api->options.calls.user, p->ask, END_CLIENT_GONE);
    else
        place_unlink(p);
}

static void places_cb(uv_timer_t *timer)
{
    struct api *api = timer->data;
    bool any = false;
    struct place *next;
    for (struct place *p = api->places; p != NULL; p = next) {
        next = p->next;
        any |= p->entered;
        if (p->entered)
            p->events.look(p->owner, slot_live(p->slot));
    }
    if (!any)
        (void)uv_timer_stop(timer);
    api_dirty(api);
}

const char *api_place_instance(const struct place *p)
{
    return p->slot.slot->id.text;
}

/* --- what holds one until the client leaves --------------------------------------------------------- */

static void join_leave(struct api_request *r)
{
    struct place *p = r->state;
    r->state = NULL;
    api_place_leave(p);
}

static ssize_t join_read(struct api_request *r, char *out, size_t size)
{
    struct place *p = r->state;
    char line[128];
    if (p->told && p->over)
        return API_READ_END;
    if (p->told)
        return 0;
    (void)text_format(line, sizeof line, "{\"instance\":\"%s\"}\n", api_place_instance(p));
    size_t length = strlen(line) < size ? strlen(line) : size;
    memcpy(out, line, length);
    p->told = true;
    return (ssize_t)length;
}

static void join_held(void *request)
{
    struct api_request *r = request;
    r->read = join_read;
    api_answer_stream(r, "application/x-ndjson");
    if (r->response != NULL)
        api_header_add(r, "Skerry-Instance", api_place_instance(r->state));
}

static void join_look(void *request, bool live)
{
    struct api_request *r = request;
    struct place *p = r->state;
    if (live || p->over)
        return;
    p->over = true;
    api_resume(r);
}

/* --- getting one ------------------------------------------------------------------------------------- */

/* The slot is entered. */
static void place_hold(struct place *p, struct slot_ref slot)
{
    p->slot = slot;
    p->entered = true;
    if (!uv_is_active((uv_handle_t *)&p->api->places_timer))
        (void)uv_timer_start(&p->api->places_timer, places_cb, LOOK_MS, LOOK_MS);
    p->events.held(p->owner);
}

static void place_relay(struct place *p, node_id node, const char *subject)
{
    struct api_request *r = p->request;
    const struct api_calls *calls = &p->api->options.calls;
    char name[64] = "";
    struct registry_root *root = calls->root(calls->user);
    const struct registry_node *known = registry_root_node(root, node);
    if (known != NULL)
        (void)text_copy(name, sizeof name, known->name);
    calls->root_return(calls->user, root);
    r->state_free(r); /* with the place */
    r->state_free = NULL;
    if (!r->connection->relayed)
        (void)api_relay_to(r, node, name, subject);
    else
        api_problem(r, PROBLEM_OWNER_UNREACHABLE, "another node would have to serve it");
}

/* --- asking the control thread ---------------------------------------------------------------------- */

static void answered_cb(struct gateway_ask *ask, void *owner)
{
    struct place *p = ask->request;
    struct api_request *r = p->request;
    struct api *api = p->api;
    (void)owner;
    p->ask = NULL;
    api->asks--;
    bool granted = ask->problem == PROBLEM_NONE && ask->elsewhere == 0 && !ask->look_again;
    if (r == NULL) {
        if (granted)
            slot_return(api, ask->slot);
        place_unlink(p);
    } else if (granted) {
        place_hold(p, ask->slot);
    } else if (ask->problem == PROBLEM_NONE && ask->elsewhere != 0) {
        place_relay(p, ask->elsewhere, ask->id.text[0] != '\0' ? ask->id.text : ask->workload);
    } else if (ask->problem == PROBLEM_NONE) {
        api_problem(r, PROBLEM_OWNER_UNREACHABLE, "the workload is known here in a moment");
    } else {
        api_problem_of(r, &(struct api_trouble){.problem = ask->problem,
                                                .ran = ask->ran,
                                                .retry_after_s = ask->retry_after_s,
                                                .instance = ask->id.text,
                                                .detail = ask->detail});
    }
    free(ask);
    api_dirty(api);
}

static void place_ask(struct place *p, const struct gateway_workload *w, const char *instance,
                      const char *key)
{
    struct api_request *r = p->request;
    const struct api_calls *calls = &p->api->options.calls;
    struct gateway_ask *ask = calloc(1, sizeof *ask);
    if (ask == NULL) {
        api_problem(r, PROBLEM_INTERNAL, "out of memory");
        return;
    }
    ask->reply_to = p->api->inbox;
    ask->answered = answered_cb;
    ask->request = p;
    ask->portless = true;
    ask->kind = WORKLOAD_SERVER;
    ask->forwarded = r->connection->relayed;
    ask->asked_us = clock_monotonic_us();
    if (w != NULL) {
        (void)text_copy(ask->workload, sizeof ask->workload, w->name);
        ask->version = w->version;
    }
    (void)text_copy(ask->instance, sizeof ask->instance, instance);
    (void)text_copy(ask->key, sizeof ask->key, key);
    (void)text_copy(ask->request_id, sizeof ask->request_id, r->id);
    (void)text_format(ask->asked_by, sizeof ask->asked_by, "%s %.50s", r->method, r->path);
    p->ask = ask;
    p->api->asks++;
    if (calls->join(calls->user, ask))
        return;
    p->api->asks--;
    p->ask = NULL;
    free(ask);
    api_problem(r, PROBLEM_LIMIT_REACHED, "the node has too many questions waiting; try again");
}

struct place *api_place_new(struct api_request *r, const struct api_place_events *events,
                            void *owner)
{
    struct place *p = calloc(1, sizeof *p);
    if (p == NULL) {
        api_problem(r, PROBLEM_INTERNAL, "out of memory");
        return NULL;
    }
    p->api = r->api;
    p->request = r;
    p->events = *events;
    p->owner = owner;
    p->next = r->api->places;
    if (p->next != NULL)
        p->next->previous = p;
    r->api->places = p;
    r->watched = true;
    return p;
}

static bool enter_here(struct place *p, const struct gateway_workload *w)
{
    uint64_t now_ms = clock_monotonic_ms();
    for (uint32_t i = 0; i < w->candidate_count; i++)
        if (slot_enter(w->candidates[i], now_ms, clock_boot_ms()) == SLOT_ENTERED) {
            place_hold(p, w->candidates[i]);
            return true;
        }
    return false;
}

/* The least loaded of the other nodes that have some. */
static node_id other_owner(const struct gateway_workload *w)
{
    node_id node = 0;
    uint32_t load = UINT32_MAX;
    for (uint32_t i = 0; i < w->owner_count; i++)
        if (w->owners[i].load < load) {
            node = w->owners[i].node;
            load = w->owners[i].load;
        }
    return node;
}

bool api_place_workload(struct api_request *r, struct gateway_workload *w)
{
    const struct api_calls *calls = &r->api->options.calls;
    const char *key = api_query(r, "key");
    bool again = false;
    if (!api_query_flag(r, "again", &again))
        return false;
    *w = (struct gateway_workload){0};
    if (calls->join == NULL || !calls->workload(calls->user, r->parameter, w))
        api_problem(r, PROBLEM_WORKLOAD_UNKNOWN, "no workload is called \"%.80s\"", r->parameter);
    else if (w->kind == WORKLOAD_COMMAND)
        api_problem(r, PROBLEM_CONFLICT,
                    "%s is of kind command: each request runs its own instance; invoke it",
                    w->name);
    else if (key != NULL && (key[0] == '\0' || strlen(key) > GATEWAY_KEY_LENGTH_MAX))
        api_problem(r, PROBLEM_BAD_REQUEST, "key: 1 to %u bytes", GATEWAY_KEY_LENGTH_MAX);
    else if (key == NULL && w->key_source != JOIN_KEY_NONE)
        api_problem(r, PROBLEM_KEY_MISSING,
                    "%s is joined with a key: ssh %s+KEY@NODE, skerry proxy --key KEY", w->name,
                    w->name);
    return r->response == NULL;
}

void api_place_seek_workload(struct place *p, const struct gateway_workload *w)
{
    struct api_request *r = p->request;
    const char *key = api_query(r, "key");
    bool again = false;
    (void)api_query_flag(r, "again", &again); /* it was looked at by api_place_workload */
    if (key == NULL && enter_here(p, w))
        return;
    node_id other = key == NULL && !again && !r->connection->relayed ? other_owner(w) : 0;
    if (other != 0)
        place_relay(p, other, w->name);
    else
        place_ask(p, w, "", key == NULL ? "" : key);
}

void api_place_seek_instance(struct place *p)
{
    struct api_request *r = p->request;
    struct instance_id id;
    if (r->api->options.calls.join == NULL ||
        !instance_id_parse(&id, r->parameter, strlen(r->parameter)))
        api_problem(r, PROBLEM_INSTANCE_UNKNOWN, "%.40s is no whole id of an instance",
                    r->parameter);
    else
        place_ask(p, NULL, id.text, "");
}

/* --- the two requests ------------------------------------------------------------------------------- */

static struct place *join_new(struct api_request *r)
{
    static const struct api_place_events events = {.held = join_held, .look = join_look};
    struct place *p = api_place_new(r, &events, r);
    if (p == NULL)
        return NULL;
    r->state = p;
    r->state_free = join_leave;
    return p;
}

void api_workload_join(struct api_request *r)
{
    struct gateway_workload w;
    struct place *p = api_place_workload(r, &w) ? join_new(r) : NULL;
    if (p != NULL)
        api_place_seek_workload(p, &w);
}

void api_instance_join(struct api_request *r)
{
    struct place *p = join_new(r);
    if (p != NULL)
        api_place_seek_instance(p);
}
