/* Why a thing is as it is: the time line of an instance, what became of a request, and what a
 * workload runs. What the registry does not keep (the details of a time line) is remembered here for
 * the last EXPLAIN_KEPT instances and requests. */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/memory.h"
#include "base/units.h"
#include "node/config.h"
#include "node/control/control.h"

#define EXPLAIN_KEPT 2000

struct buried {
    UT_hash_handle hh;
    char key[GATEWAY_REQUEST_ID_SIZE]; /* an instance id or a request id */
    struct timeline_entry *timeline;   /* of an instance */
    size_t timeline_count;
    char instance[INSTANCE_ID_LENGTH_MAX + 1]; /* of a request */
    enum problem problem;
    char detail[256];
    uint64_t wall_ms;
};

static void free_oldest(struct buried **table)
{
    /* uthash keeps the order of insertion. */
    struct buried *b = *table;
    HASH_DEL(*table, b);
    free(b->timeline);
    free(b);
}

static struct buried *put(struct buried **table, const char *key)
{
    struct buried *b = NULL;
    HASH_FIND_STR(*table, key, b);
    if (b != NULL) {
        HASH_DEL(*table, b);
        free(b->timeline);
        free(b);
    }
    while (HASH_COUNT(*table) >= EXPLAIN_KEPT)
        free_oldest(table);
    b = calloc(1, sizeof *b);
    if (b == NULL)
        return NULL;
    text_copy(b->key, sizeof b->key, key);
    HASH_ADD_STR(*table, key, b);
    return b;
}

void explain_bury(const struct instance *i)
{
    struct buried *b = put(&i->node->buried_by_id, i->id.text);
    if (b == NULL)
        return;
    b->timeline = malloc(i->timeline_count * sizeof *b->timeline + 1);
    if (b->timeline == NULL)
        return;
    memcpy(b->timeline, i->timeline, i->timeline_count * sizeof *b->timeline);
    b->timeline_count = i->timeline_count;
}

void explain_remember(struct node *n, const char *request_id, const struct instance_id *id,
                      enum problem problem, const char *detail)
{
    if (request_id == NULL || request_id[0] == '\0')
        return;
    struct buried *b = put(&n->asked_by_request, request_id);
    if (b == NULL)
        return;
    if (id != NULL)
        text_copy(b->instance, sizeof b->instance, id->text);
    b->problem = problem;
    b->wall_ms = clock_wall_ms();
    if (detail != NULL)
        text_copy(b->detail, sizeof b->detail, detail);
}

void explain_close(struct node *n)
{
    while (n->buried_by_id != NULL)
        free_oldest(&n->buried_by_id);
    while (n->asked_by_request != NULL)
        free_oldest(&n->asked_by_request);
}

/* --- telling ------------------------------------------------------------------------------------------ */

static void format_span(uint64_t us, char *out, size_t size)
{
    uint64_t s = us / 1000000u;
    if (us < 1000000u)
        text_format(out, size, "%.1f ms", (double)us / 1e3);
    else if (s < 60)
        text_format(out, size, "%.1fs", (double)us / 1e6);
    else if (s < 3600)
        text_format(out, size, "%um %02us", (unsigned)(s / 60), (unsigned)(s % 60));
    else
        text_format(out, size, "%uh %02um", (unsigned)(s / 3600), (unsigned)(s / 60 % 60));
}

static void add_event(json_t *events, uint64_t at_us, const char *what, const char *text)
{
    json_array_append_new(events, json_pack("{s:I, s:s, s:s%}", "at_us", (json_int_t)at_us, "what",
                                            what, "text", text, strlen(text)));
}

static json_t *events_of_timeline(const struct timeline_entry *t, size_t count)
{
    json_t *events = json_array();
    for (size_t k = 0; k < count; k++)
        add_event(events, t[k].at_us, t[k].kind, t[k].text);
    return events;
}

/* What the registry alone knows, after a restart of the node or on another one. */
static json_t *events_of_record(const struct registry_instance *r)
{
    json_t *events = json_array();
    char text[64];
    add_event(events, 0, "asked", r->asked_by);
    if (r->marks.reserved_us != 0) {
        text_format(text, sizeof text, "epoch " REGISTRY_EPOCH_FORMAT,
                    REGISTRY_EPOCH_PARTS(r->epoch));
        add_event(events, r->marks.reserved_us, "reserved", text);
    }
    if (r->marks.sandbox_us != 0)
        add_event(events, r->marks.sandbox_us, "sandbox", "");
    if (r->marks.ready_us != 0)
        add_event(events, r->marks.ready_us, "ready", "");
    if (r->state == INSTANCE_STATE_ENDED)
        add_event(events, r->marks.ended_us, "ended", end_reason_name(r->reason));
    return events;
}

static const char *hint_of(enum end_reason reason)
{
    switch (reason) {
    case END_OOM:
        return "raise deploy.resources.limits.memory, or lower join.max_joiners";
    case END_START_TIMEOUT:
        return "raise timeouts.start, or see skerry logs for what the code waits for";
    case END_START_FAILED:
        return "run the command by hand: skerry run -- CMD";
    case END_IDLE:
        return "raise life.idle, or set it to none, to keep it longer";
    case END_EXPIRED:
        return "raise life.max, or extend it while it runs: skerry extend ID T";
    case END_TIMED_OUT:
        return "raise timeouts.request";
    default:
        return NULL;
    }
}

static void add_summary(json_t *out, const struct registry_instance *r)
{
    char span[32];
    char text[160];
    if (r->state == INSTANCE_STATE_ENDED) {
        format_span(r->marks.ended_us, span, sizeof span);
        text_format(text, sizeof text, "ENDED: %s after %s", end_reason_name(r->reason), span);
    } else {
        uint64_t now_ms = clock_wall_ms();
        format_span((now_ms > r->started_wall_ms ? now_ms - r->started_wall_ms : 0) * 1000u, span,
                    sizeof span);
        text_format(text, sizeof text, "%s for %s", instance_state_name(r->state), span);
    }
    json_object_set_new(out, "summary", json_string(text));
}

static json_t *explain_instance(struct node *n, const struct registry_root *root,
                                const struct registry_instance *r)
{
    const struct registry_node *owner = registry_root_node(root, r->owner);
    json_t *out =
        json_pack("{s:s, s:s, s:s, s:I, s:s, s:s, s:s, s:I, s:i}", "subject", r->id.text, "kind",
                  "instance", "workload", r->workload, "version", (json_int_t)r->version, "node",
                  owner != NULL ? owner->name : "", "state", instance_state_name(r->state),
                  "reason", end_reason_name(r->reason), "joins", (json_int_t)r->joins,
                  "joiners_peak", (int)r->joiners_peak);
    if (out == NULL)
        return NULL;
    add_summary(out, r);
    const struct registry_workload *w =
        registry_root_workload_version(root, r->workload, r->version);
    if (w != NULL)
        json_object_set_new(out, "max_joiners", json_integer((json_int_t)w->spec.join.max_joiners));
    const struct instance *live = instance_find(n, r->id.text);
    struct buried *b = NULL;
    HASH_FIND_STR(n->buried_by_id, r->id.text, b);
    json_t *events = live != NULL ? events_of_timeline(live->timeline, live->timeline_count)
                     : b != NULL  ? events_of_timeline(b->timeline, b->timeline_count)
                                  : events_of_record(r);
    json_object_set_new(out, "events", events);
    if (live != NULL && live->slot.slot != NULL) {
        json_object_set_new(out, "joins",
                            json_integer((json_int_t)atomic_load(&live->slot.slot->joins)));
        json_object_set_new(out, "joiners_peak",
                            json_integer(atomic_load(&live->slot.slot->joiners_peak)));
    }
    bool said = r->state == INSTANCE_STATE_ENDED && r->detail[0] != '\0';
    json_object_set_new(out, "stderr",
                        said ? json_stringn_nocheck(r->detail, strlen(r->detail)) : json_null());
    const char *hint = r->state == INSTANCE_STATE_ENDED ? hint_of(r->reason) : NULL;
    json_object_set_new(out, "hint", hint != NULL ? json_string(hint) : json_null());
    return out;
}

struct prefix_search {
    const char *prefix;
    const struct registry_instance *found;
    unsigned matches;
};

static bool match_prefix(void *user, const struct registry_instance *r)
{
    struct prefix_search *s = user;
    if (strncmp(r->id.text, s->prefix, strlen(s->prefix)) != 0)
        return false; /* ordered: nothing further on matches */
    s->found = r;
    return ++s->matches < 2;
}

static json_t *explain_request(struct node *n, const struct registry_root *root,
                               const struct buried *b)
{
    const struct registry_instance *r =
        b->instance[0] != '\0' ? registry_root_instance(root, b->instance, strlen(b->instance))
                               : NULL;
    json_t *out = r != NULL ? explain_instance(n, root, r) : json_object();
    json_object_set_new(out, "subject", json_string(b->key));
    json_object_set_new(out, "kind", json_string("request"));
    if (r == NULL)
        json_object_set_new(out, "events", json_array());
    char text[400];
    const struct problem_word *word = problem_word(b->problem);
    if (b->problem == PROBLEM_NONE)
        text_format(text, sizeof text, "joined %s", b->instance);
    else
        text_format(text, sizeof text, "%d %s: %s", word->status, word->code, b->detail);
    json_object_set_new(out, "summary", json_string(text));
    return out;
}

struct workload_search {
    const char *name;
    size_t live, ended;
};

static bool count_instances(void *user, const struct registry_instance *r)
{
    struct workload_search *s = user;
    if (strcmp(r->workload, s->name) == 0) {
        if (r->state == INSTANCE_STATE_ENDED)
            s->ended++;
        else
            s->live++;
    }
    return true;
}

/* What keeps starts from happening now, as a person would say it; "" nothing does. */
static void tell_pauses(const struct scheduler_outlook *o, char *out, size_t size)
{
    char pause[UNIT_TEXT_SIZE];
    out[0] = '\0';
    if (o->failures > 0 && o->failures_pause_ms > 0) {
        duration_format((o->failures_pause_ms + 999) / 1000 * 1000, pause);
        text_format(out, size, "%u starts failed in a row; the next is tried in %s: %s",
                    o->failures, pause, o->failure);
    } else if (o->failures > 0) {
        text_format(out, size, "the last start failed: %s", o->failure);
    } else if (o->crashes > 1 && o->crashes_pause_ms > 0) {
        duration_format((o->crashes_pause_ms + 999) / 1000 * 1000, pause);
        text_format(out, size,
                    "%u instances in a row ended soon after they were ready; nothing is started "
                    "ahead for %s",
                    o->crashes, pause);
    }
}

static json_t *outlook_json(const struct scheduler_outlook *o)
{
    return json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "waiting", (json_int_t)o->waiting,
                     "starting", (json_int_t)o->starting, "ready", (json_int_t)o->ready, "older",
                     (json_int_t)o->older, "failed_starts", (json_int_t)o->failures,
                     "next_start_ms", (json_int_t)o->failures_pause_ms, "crashes",
                     (json_int_t)o->crashes, "next_ahead_ms", (json_int_t)o->crashes_pause_ms);
}

/* What the registry has of it, and how it stands on this node. */
static json_t *explain_workload(struct node *n, const struct registry_root *root,
                                const struct registry_workload *w)
{
    struct workload_search s = {.name = w->name};
    struct scheduler_outlook o = {0};
    registry_root_instances(root, NULL, count_instances, &s);
    char text[400], rolls[160] = "", pauses[600] = "";
    bool known = scheduler_outlook(n->scheduler, w->name, clock_monotonic_ms(), &o);
    if (known && o.older > 0)
        text_format(rolls, sizeof rolls,
                    "; version %llu is not ready yet, so older instances go on taking joiners",
                    (unsigned long long)w->version);
    text_format(text, sizeof text,
                "version %llu, %zu of at most %llu instances live, %zu ended within 24 h%s",
                (unsigned long long)w->version, s.live, (unsigned long long)w->spec.scale.max,
                s.ended, rolls);
    json_t *out = json_pack("{s:s, s:s, s:s, s:I, s:s, s:[]}", "subject", w->name, "kind",
                            "workload", "workload", w->name, "version", (json_int_t)w->version,
                            "summary", text, "events");
    if (!known)
        return out;
    tell_pauses(&o, pauses, sizeof pauses);
    json_object_set_new(out, "node", json_string(n->config->name));
    json_object_set_new(out, "here", outlook_json(&o));
    /* The code's last words may be in it. */
    json_object_set_new(out, "starts",
                        pauses[0] == '\0' ? json_null()
                                          : json_stringn_nocheck(pauses, strlen(pauses)));
    return out;
}

json_t *explain_json(struct node *n, const char *what)
{
    struct registry_root *root = registry_root(n->registry);
    json_t *out = NULL;
    struct buried *b = NULL;
    HASH_FIND_STR(n->asked_by_request, what, b);
    const struct registry_workload *w = registry_root_workload(root, what, strlen(what));
    if (b != NULL) {
        out = explain_request(n, root, b);
    } else if (w != NULL) {
        out = explain_workload(n, root, w);
    } else if (instance_id_prefix_valid(what, strlen(what))) {
        struct prefix_search s = {.prefix = what};
        registry_root_instances(root, what, match_prefix, &s);
        if (s.matches == 1)
            out = explain_instance(n, root, s.found);
    }
    registry_root_release(root);
    return out;
}
