/* Events, and numbers that other threads read. */
#include <jansson.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/memory.h"
#include "node/config.h"
#include "node/control/control.h"

void histogram_add(struct gateway_histogram *h, double seconds)
{
    size_t k = 0;
    while (k < GATEWAY_BUCKETS && seconds > gateway_bucket_bounds[k])
        k++;
    h->buckets[k]++;
    h->sum_seconds += seconds;
    h->count++;
}

/* --- events --------------------------------------------------------------------------------------- */

void events_post(struct node *n, const char *kind, const char *workload, const char *instance,
                 const char *format, ...)
{
    pthread_mutex_lock(&n->facts_mutex);
    struct node_event *event = &n->events[n->event_sequence % NODE_EVENTS_KEPT];
    event->sequence = ++n->event_sequence;
    event->wall_ms = clock_wall_ms();
    text_copy(event->kind, sizeof event->kind, kind);
    text_copy(event->workload, sizeof event->workload, workload != NULL ? workload : "");
    text_copy(event->instance, sizeof event->instance, instance != NULL ? instance : "");
    va_list args;
    va_start(args, format);
    vsnprintf(event->text, sizeof event->text, format, args);
    va_end(args);
    for (size_t k = 0; k < n->event_watcher_count; k++)
        n->event_watchers[k].post(n->event_watchers[k].user);
    pthread_mutex_unlock(&n->facts_mutex);
}

size_t node_events(struct node *n, uint64_t after, struct node_event *out, size_t out_max)
{
    size_t count = 0;
    pthread_mutex_lock(&n->facts_mutex);
    uint64_t oldest =
        n->event_sequence > NODE_EVENTS_KEPT ? n->event_sequence - NODE_EVENTS_KEPT : 0;
    for (uint64_t s = after > oldest ? after : oldest; s < n->event_sequence && count < out_max;
         s++)
        out[count++] = n->events[s % NODE_EVENTS_KEPT];
    pthread_mutex_unlock(&n->facts_mutex);
    return count;
}

void node_events_watch(struct node *n, void (*post)(void *user), void *user)
{
    pthread_mutex_lock(&n->facts_mutex);
    if (post == NULL) {
        size_t kept = 0;
        for (size_t k = 0; k < n->event_watcher_count; k++)
            if (n->event_watchers[k].user != user)
                n->event_watchers[kept++] = n->event_watchers[k];
        n->event_watcher_count = kept;
    } else {
        assert_always(n->event_watcher_count < ARRAY_SIZE(n->event_watchers));
        n->event_watchers[n->event_watcher_count].post = post;
        n->event_watchers[n->event_watcher_count++].user = user;
    }
    pthread_mutex_unlock(&n->facts_mutex);
}

void node_metrics(struct node *n, struct node_metrics *out)
{
    pthread_mutex_lock(&n->facts_mutex);
    *out = n->metrics;
    pthread_mutex_unlock(&n->facts_mutex);
}

void node_logs_directory(struct node *n, char *out, size_t size)
{
    pthread_mutex_lock(&n->facts_mutex);
    text_copy(out, size, n->logs_directory);
    pthread_mutex_unlock(&n->facts_mutex);
}
