#include "node/control/reports.h"

#include <stdlib.h>
#include <string.h>
#include <uthash.h>
#include <uv.h>

#include "base/clock.h"
#include "base/memory.h"
#include "node/cluster/cluster.h"
#include "node/cluster/known.h"
#include "node/cluster/members.h"
#include "node/control/control.h"

#define ANSWER_MS 1000u

struct known_report {
    UT_hash_handle hh;
    struct reports *all;
    node_id id;
    bool asked; /* an answer is under way: it must stay */
    uint64_t sent_wall_ms, sent_ms;
    uint64_t at_ms; /* of the last answer; 0: none yet */
    struct report report;
};

struct reports {
    struct node *node;
    uv_timer_t timer;
    struct known_report *by_id;
};

/* --- pure ------------------------------------------------------------------------------------------------- */

int64_t report_ahead_ms(uint64_t sent_ms, uint64_t received_ms, uint64_t theirs_ms)
{
    uint64_t half = received_ms > sent_ms ? (received_ms - sent_ms) / 2 : 0;
    int64_t ahead = (int64_t)(theirs_ms - (sent_ms + half));
    int64_t hidden = (int64_t)half + 1;
    if (ahead > hidden)
        return ahead - hidden;
    return ahead < -hidden ? ahead + hidden : 0;
}

static bool warning_take(json_t *warnings, const json_t *text)
{
    char copy[REPORT_TEXT_BYTES_MAX];
    if (!json_is_string(text))
        return false;
    size_t length = strnlen(json_string_value(text), sizeof copy - 1);
    memcpy(copy, json_string_value(text), length);
    copy[length] = '\0';
    for (char *c = copy; *c != '\0'; c++)
        if ((uint8_t)*c < ' ' || *c == 0x7f)
            *c = '?';
    /* A character that was cut in two makes no text. */
    json_t *taken = json_string(copy);
    return taken == NULL || json_array_append_new(warnings, taken) == 0;
}

bool report_read(struct report *out, uint64_t *wall_ms, const void *data, size_t size)
{
    json_t *json =
        size > REPORT_BYTES_MAX ? NULL : json_loadb(data, size, JSON_REJECT_DUPLICATES, NULL);
    json_t *warnings = NULL, *text;
    json_int_t wall = 0;
    int well = 0;
    size_t i;
    *out = (struct report){.warnings = json_array()};
    bool good = json_is_object(json) && out->warnings != NULL &&
                json_unpack(json, "{s:I, s:b, s:o}", "wall_ms", &wall, "well", &well, "warnings",
                            &warnings) == 0 &&
                wall > 0 && json_is_array(warnings) &&
                json_array_size(warnings) <= REPORT_WARNINGS_MAX;
    if (good)
        json_array_foreach(warnings, i, text) good = good && warning_take(out->warnings, text);
    json_decref(json);
    if (good) {
        out->well = well != 0;
        *wall_ms = (uint64_t)wall;
        return true;
    }
    json_decref(out->warnings);
    out->warnings = NULL;
    return false;
}

/* --- asking ----------------------------------------------------------------------------------------------- */

static void report_drop(struct reports *all, struct known_report *k)
{
    HASH_DELETE(hh, all->by_id, k);
    json_decref(k->report.warnings);
    free(k);
}

static void answered_cb(void *user, const struct peer_answer *answer)
{
    struct known_report *k = user;
    struct report report;
    uint64_t now_ms = clock_monotonic_ms(), wall_ms = 0;
    k->asked = false;
    if (answer->error != NULL || !report_read(&report, &wall_ms, answer->payload, answer->size))
        return;
    /* The trip is measured by a clock that nobody sets meanwhile. */
    report.ahead_ms =
        report_ahead_ms(k->sent_wall_ms, k->sent_wall_ms + (now_ms - k->sent_ms), wall_ms);
    json_decref(k->report.warnings);
    k->report = report;
    k->at_ms = now_ms;
}

static struct known_report *report_of(struct reports *all, node_id id)
{
    struct known_report *k = NULL;
    HASH_FIND(hh, all->by_id, &id, sizeof id, k);
    if (k != NULL || HASH_COUNT(all->by_id) >= KNOWN_NODES_MAX)
        return k;
    k = calloc(1, sizeof *k);
    if (k == NULL)
        return NULL;
    k->all = all;
    k->id = id;
    HASH_ADD(hh, all->by_id, id, sizeof k->id, k);
    return k;
}

static void forget_old(struct reports *all, uint64_t now_ms)
{
    struct known_report *k, *next;
    HASH_ITER(hh, all->by_id, k, next)
    if (!k->asked && now_ms - k->sent_ms > REPORTS_KEPT_MS)
        report_drop(all, k);
}

static void tick_cb(uv_timer_t *timer)
{
    struct reports *all = timer->data;
    struct node *n = all->node;
    static const uint8_t question = REPORTS_VERSION;
    uint64_t now_ms = clock_monotonic_ms();
    struct cluster_node node;
    struct err e;
    forget_old(all, now_ms);
    for (node_id at = 0; n->cluster != NULL && cluster_next(n->cluster, &at, &node);) {
        struct known_report *k =
            node.self || node.state != GOSSIP_ALIVE ? NULL : report_of(all, node.id);
        if (k == NULL || k->asked)
            continue;
        k->sent_ms = now_ms;
        k->sent_wall_ms = clock_wall_ms();
        k->asked = members_ask(n, node.id, CLUSTER_REPORT, &question, sizeof question, ANSWER_MS,
                               answered_cb, k, &e) == 0;
    }
}

/* --- answering -------------------------------------------------------------------------------------------- */

void reports_question(struct node *n, struct peer_question *q)
{
    size_t size = 0;
    const uint8_t *payload = peer_question_payload(q, &size);
    json_t *warnings = json_array();
    char *text = NULL;
    if (size >= 1 && payload[0] >= REPORTS_VERSION && warnings != NULL) {
        bool well = status_self(n, warnings);
        while (json_array_size(warnings) > REPORT_WARNINGS_MAX)
            (void)json_array_remove(warnings, json_array_size(warnings) - 1);
        json_t *json = json_pack("{s:I, s:b, s:O}", "wall_ms", (json_int_t)clock_wall_ms(), "well",
                                 (int)well, "warnings", warnings);
        text = json_dumps(json, JSON_COMPACT);
        json_decref(json);
    }
    json_decref(warnings);
    if (text != NULL)
        peer_question_answer(q, text, strlen(text));
    else
        peer_question_drop(q);
    free(text);
}

bool reports_get(const struct node *n, node_id id, struct report *out)
{
    struct known_report *k = NULL;
    if (n->reports != NULL)
        HASH_FIND(hh, n->reports->by_id, &id, sizeof id, k);
    if (k == NULL || k->at_ms == 0 || clock_monotonic_ms() - k->at_ms > REPORTS_KEPT_MS)
        return false;
    *out = k->report;
    return true;
}

/* --- life ------------------------------------------------------------------------------------------------- */

int reports_open(struct node *n, struct err *e)
{
    struct reports *all = calloc(1, sizeof *all);
    if (all == NULL)
        return err_set(e, ERR_NO_MEMORY, "start the node: no memory");
    all->node = n;
    (void)uv_timer_init(&n->loop, &all->timer);
    all->timer.data = all;
    uv_timer_start(&all->timer, tick_cb, REPORTS_MS, REPORTS_MS);
    n->reports = all;
    return 0;
}

void reports_stop(struct node *n)
{
    if (n->reports != NULL)
        (void)uv_timer_stop(&n->reports->timer);
}

static void freed_cb(uv_handle_t *handle)
{
    free(handle->data);
}

void reports_close(struct node *n)
{
    struct reports *all = n->reports;
    if (all == NULL)
        return;
    while (all->by_id != NULL) {
        assert_always(!all->by_id->asked);
        report_drop(all, all->by_id);
    }
    n->reports = NULL;
    uv_close((uv_handle_t *)&all->timer, freed_cb);
}
