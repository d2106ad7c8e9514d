#include "node/layers/copies.h"

#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/memory.h"
#include "node/cluster/cluster.h"
#include "node/cluster/members.h"
#include "node/config.h"
#include "node/control/control.h"
#include "node/layers/transfer.h"

enum {
    ASKED_MAX = 3, /* other nodes in one round */
    HOLDERS_WANTED = 2,
    LAYERS_MAX = 2, /* image and source */
    ANSWER_MS = 1000,
    PAUSE_MIN_MS = 20,
    PAUSE_MAX_MS = 320
};

struct copy {
    struct copy *next;
    struct node *node;
    struct node_ask *ask;          /* NULL: answered; what is under way is waited for */
    char image[72], source[72];    /* "": none */
    uint64_t until_ms, next_ms;    /* the last round begins before; the next one then */
    unsigned pause_ms;             /* before the next round */
    unsigned under_way;            /* answers of this round that are to come, and its beginning */
    unsigned holders;              /* that this round has found */
    char holder[GOSSIP_NAME_SIZE]; /* one of them */
};

struct copies {
    struct node *node;
    struct copy *first;
    unsigned count;
    bool stopped;
    uv_timer_t timer;
};

/* --- what is asked ---------------------------------------------------------------------------------- */

static bool is_digest(const char *text)
{
    return text != NULL && strlen(text) == 71 && strncmp(text, "sha256:", 7) == 0;
}

static void resolve_image(const struct registry_root *root, const char *name, char out[72])
{
    const struct registry_image *i = registry_root_image(root, name, strlen(name));
    if (is_digest(name))
        (void)text_copy(out, 72, name);
    else if (i != NULL && is_digest(i->digest))
        (void)text_copy(out, 72, i->digest);
}

/* The layers that the registry has for what the ask names. */
static void resolve(struct node *n, const struct node_ask *ask, char image[72], char source[72])
{
    struct registry_root *root = registry_root(n->registry);
    const struct registry_workload *w =
        ask->workload == NULL ? NULL
                              : registry_root_workload(root, ask->workload, strlen(ask->workload));
    if (w != NULL)
        resolve_image(root, w->spec.image, image);
    else if (ask->name != NULL)
        resolve_image(root, ask->name, image);
    if (w != NULL && is_digest(w->spec.source))
        (void)text_copy(source, 72, w->spec.source);
    registry_root_release(root);
}

static size_t question_write(const struct copy *c, uint8_t out[LAYERS_MAX * LAYER_ASK_BYTES])
{
    struct layer_ask ask = {.kind = SKERRY__RUNNER__IMPORT_KIND__IMPORT_IMAGE};
    size_t size = 0;
    if (text_copy(ask.digest, sizeof ask.digest, c->image) && c->image[0] != '\0') {
        layer_ask_write(out, &ask);
        size += LAYER_ASK_BYTES;
    }
    ask.kind = SKERRY__RUNNER__IMPORT_KIND__IMPORT_SOURCE;
    if (text_copy(ask.digest, sizeof ask.digest, c->source) && c->source[0] != '\0') {
        layer_ask_write(out + size, &ask);
        size += LAYER_ASK_BYTES;
    }
    return size;
}

static bool question_read(const uint8_t *in, size_t size, char image[72], char source[72])
{
    struct layer_ask ask;
    image[0] = source[0] = '\0';
    if (size == 0 || size > (size_t)LAYERS_MAX * LAYER_ASK_BYTES || size % LAYER_ASK_BYTES != 0)
        return false;
    for (size_t at = 0; at < size; at += LAYER_ASK_BYTES) {
        if (!layer_ask_read(&ask, in + at))
            return false;
        (void)text_copy(ask.kind == SKERRY__RUNNER__IMPORT_KIND__IMPORT_IMAGE ? image : source, 72,
                        ask.digest);
    }
    return true;
}

/* --- answers ---------------------------------------------------------------------------------------- */

static void answer(struct copy *c, const char *why)
{
    struct node_ask *ask = c->ask;
    c->ask = NULL;
    if (why == NULL)
        ask->detail[0] = '\0';
    else if (c->holders == 0)
        text_format(ask->detail, sizeof ask->detail,
                    "no node has said that it holds its layers: %s; import or deploy it again",
                    why);
    else
        text_format(ask->detail, sizeof ask->detail,
                    "its layers are only on node %s yet: %s; if that is lost they are too",
                    c->holder, why);
    asks_answer(ask);
}

static void drop(struct copy *c)
{
    struct copies *all = c->node->copies;
    struct copy **at = &all->first;
    while (*at != c)
        at = &(*at)->next;
    *at = c->next;
    all->count--;
    free(c);
}

static void round_over(struct copy *c)
{
    uint64_t now_ms = clock_monotonic_ms();
    if (c->ask != NULL && now_ms >= c->until_ms)
        answer(c, "no other took them within 10 s");
    if (c->ask == NULL) {
        drop(c);
        return;
    }
    c->next_ms = now_ms + c->pause_ms;
    c->pause_ms = c->pause_ms * 2 > PAUSE_MAX_MS ? PAUSE_MAX_MS : c->pause_ms * 2;
}

static void part_over(struct copy *c)
{
    if (--c->under_way == 0)
        round_over(c);
}

static void found(struct copy *c, const char *name)
{
    (void)text_copy(c->holder, sizeof c->holder, name);
    if (++c->holders >= HOLDERS_WANTED && c->ask != NULL)
        answer(c, NULL);
}

static void held_here_cb(void *user, const struct err *error)
{
    struct copy *c = user;
    if (error == NULL)
        found(c, c->node->config->name);
    part_over(c);
}

static void held_there_cb(void *user, const struct peer_answer *a)
{
    struct copy *c = user;
    struct cluster_node node;
    if (a->error == NULL && a->size == 1 && a->payload[0] == LAYER_HERE)
        found(c, cluster_get(c->node->cluster, a->from, &node) ? node.meta.name : "");
    part_over(c);
}

/* --- rounds ----------------------------------------------------------------------------------------- */

static void round_begin(struct copy *c)
{
    struct node *n = c->node;
    struct layers_peer peers[LAYERS_PEERS_MAX];
    uint8_t question[LAYERS_MAX * LAYER_ASK_BYTES];
    struct err e;
    size_t size = question_write(c, question);
    size_t count = members_layers_peers(n, peers, ARRAY_SIZE(peers));
    c->holders = 0;
    c->under_way = 1;
    if (layers_look(n->layers, c->image, c->source, held_here_cb, c, &e) == 0)
        c->under_way++;
    for (size_t k = 0; k < count && k < ASKED_MAX; k++) {
        if (members_ask(n, peers[k].id, CLUSTER_LAYERS, question, size, ANSWER_MS, held_there_cb, c,
                        &e) == 0)
            c->under_way++;
    }
    part_over(c);
}

static void tick_cb(uv_timer_t *timer)
{
    struct copies *all = timer->data;
    uint64_t now_ms = clock_monotonic_ms();
    for (struct copy *c = all->first, *next; c != NULL; c = next) {
        next = c->next;
        if (c->under_way == 0 && now_ms >= c->next_ms)
            round_begin(c);
    }
    if (all->first == NULL || all->stopped)
        (void)uv_timer_stop(timer);
}

static bool count_to_two(void *user, const struct registry_node *node)
{
    unsigned *count = user;
    (void)node;
    return ++*count < 2;
}

static bool is_lone(struct node *n)
{
    unsigned count = 0;
    struct registry_root *root = registry_root(n->registry);
    registry_root_nodes(root, count_to_two, &count);
    registry_root_release(root);
    return count < 2;
}

void copies_ask(struct node *n, struct node_ask *ask)
{
    struct copies *all = n->copies;
    char image[72] = "", source[72] = "";
    resolve(n, ask, image, source);
    if ((image[0] == '\0' && source[0] == '\0') || is_lone(n)) {
        asks_answer(ask);
        return;
    }
    bool may = !all->stopped && all->count < COPIES_WAITING_MAX;
    struct copy *c = may ? calloc(1, sizeof *c) : NULL;
    if (c == NULL || !members_others(n)) {
        text_format(ask->detail, sizeof ask->detail,
                    "its layers may be on one node only: %s; if that is lost they are too",
                    c == NULL ? "the node is too busy to look" : "no other node is alive");
        asks_answer(ask);
        free(c);
        return;
    }
    c->node = n;
    c->ask = ask;
    c->until_ms = clock_monotonic_ms() + COPIES_WAIT_MS;
    c->pause_ms = PAUSE_MIN_MS;
    (void)text_copy(c->image, sizeof c->image, image);
    (void)text_copy(c->source, sizeof c->source, source);
    c->next = all->first;
    all->first = c;
    all->count++;
    round_begin(c);
    if (all->first != NULL && !uv_is_active((uv_handle_t *)&all->timer))
        (void)uv_timer_start(&all->timer, tick_cb, PAUSE_MIN_MS, PAUSE_MIN_MS);
}

/* --- being asked ------------------------------------------------------------------------------------ */

static void looked_cb(void *user, const struct err *error)
{
    const uint8_t said = error == NULL ? LAYER_HERE : LAYER_MISSING;
    peer_question_answer(user, &said, 1);
}

void copies_question(struct node *n, struct peer_question *q)
{
    char image[72], source[72];
    size_t size = 0;
    struct err e;
    const uint8_t *payload = peer_question_payload(q, &size);
    if (n->layers == NULL || n->copies == NULL || n->copies->stopped ||
        !question_read(payload, size, image, source) ||
        layers_look(n->layers, image, source, looked_cb, q, &e) != 0)
        peer_question_drop(q);
}

/* --- life ------------------------------------------------------------------------------------------- */

int copies_open(struct node *n, struct err *e)
{
    struct copies *all = calloc(1, sizeof *all);
    if (all == NULL)
        return err_set(e, ERR_NO_MEMORY, "start the node: no memory");
    all->node = n;
    (void)uv_timer_init(&n->loop, &all->timer);
    all->timer.data = all;
    n->copies = all;
    return 0;
}

void copies_stop(struct node *n)
{
    if (n->copies == NULL)
        return;
    n->copies->stopped = true;
    (void)uv_timer_stop(&n->copies->timer);
    for (struct copy *c = n->copies->first, *next; c != NULL; c = next) {
        next = c->next;
        if (c->ask != NULL)
            answer(c, "the node is stopping");
        if (c->under_way == 0)
            drop(c);
    }
}

static void freed_cb(uv_handle_t *handle)
{
    free(handle->data);
}

void copies_close(struct node *n)
{
    if (n->copies == NULL)
        return;
    assert_always(n->copies->first == NULL);
    uv_close((uv_handle_t *)&n->copies->timer, freed_cb);
    n->copies = NULL;
}
