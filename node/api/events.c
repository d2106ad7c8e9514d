/* node/api/events.c - events of the node, from its ring, followed or not.
 *
 * The ring is the buffer: a client that is slow gets what is still there when it takes more. */
#include <stdlib.h>
#include <string.h>

#include "node/api/internal.h"

#define EVENTS_AT_ONCE 64u
/* Each of its texts may grow six-fold as JSON. */
#define EVENT_BYTES_MAX 2048u

struct events {
    uint64_t after;
    bool follow, lines;
    struct buffer out;
    size_t sent;
};

static void events_free(struct api_request *r)
{
    struct events *s = r->state;
    buffer_free(&s->out);
    free(s);
    r->state = NULL;
}

static bool write_event(struct events *s, const struct node_event *event)
{
    json_t *json =
        json_pack("{s:I, s:o, s:s, s:o, s:o, s:o}", "sequence", (json_int_t)event->sequence, "time",
                  api_time(event->wall_ms), "kind", event->kind, "workload",
                  api_text_or_null(event->workload), "instance", api_text_or_null(event->instance),
                  "text", api_text_lossy(event->text, strlen(event->text)));
    char *text = json == NULL ? NULL : json_dumps(json, API_JSON_FLAGS);
    json_decref(json);
    bool done = text != NULL;
    if (done && s->lines)
        done = buffer_printf(&s->out, "%s\n", text);
    else if (done)
        done = buffer_printf(&s->out, "id: %llu\nevent: %s\ndata: %s\n\n",
                             (unsigned long long)event->sequence, event->kind, text);
    free(text);
    s->after = event->sequence;
    return done;
}

static ssize_t events_read(struct api_request *r, char *out, size_t size)
{
    const struct api_calls *calls = &r->api->options.calls;
    struct events *s = r->state;
    if (s->sent == s->out.length) {
        s->sent = 0;
        buffer_consume(&s->out, s->out.length);
        struct node_event *events = calloc(EVENTS_AT_ONCE, sizeof(*events));
        if (events == NULL)
            return API_READ_BROKEN;
        size_t count = calls->events(calls->user, s->after, events, EVENTS_AT_ONCE);
        bool done = true;
        for (size_t i = 0; i < count && done; i++)
            done = write_event(s, &events[i]);
        free(events);
        if (!done)
            return API_READ_BROKEN;
        if (count == 0)
            return s->follow ? 0 : API_READ_END;
    }
    size_t count = s->out.length - s->sent < size ? s->out.length - s->sent : size;
    memcpy(out, s->out.data + s->sent, count);
    s->sent += count;
    return (ssize_t)count;
}

/* Whoever follows looks again. */
void api_events_wake(struct api *api)
{
    for (struct api_request *r = api->listening; r != NULL; r = r->event_next)
        api_resume(r);
}

void api_events_leave(struct api_request *r)
{
    if (!r->event_listed)
        return;
    r->event_listed = false;
    if (r->event_previous != NULL)
        r->event_previous->event_next = r->event_next;
    else
        r->api->listening = r->event_next;
    if (r->event_next != NULL)
        r->event_next->event_previous = r->event_previous;
}

static void listen_for_more(struct api_request *r)
{
    r->event_next = r->api->listening;
    if (r->event_next != NULL)
        r->event_next->event_previous = r;
    r->api->listening = r;
    r->event_listed = true;
}

void api_events(struct api_request *r)
{
    uint64_t after = 0;
    bool stream = r->accept == API_ACCEPT_EVENTS;
    bool follow = stream;
    const char *last = api_header(r, "Last-Event-ID");
    if (!api_query_flag(r, "follow", &follow) || !api_query_number(r, "after", INT64_MAX, &after))
        return;
    if (last != NULL && api_query(r, "after") == NULL)
        after = strtoull(last, NULL, 10);
    struct events *s = calloc(1, sizeof(*s));
    if (s == NULL) {
        api_problem(r, PROBLEM_INTERNAL, "out of memory");
        return;
    }
    s->after = after;
    s->follow = follow;
    s->lines = !stream;
    buffer_init(&s->out, EVENTS_AT_ONCE * EVENT_BYTES_MAX);
    r->state = s;
    r->state_free = events_free;
    r->read = events_read;
    r->watched = true;
    if (follow)
        listen_for_more(r);
    api_answer_stream(r, stream ? "text/event-stream" : "application/x-ndjson");
}
