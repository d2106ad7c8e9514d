/* Which layers are wanted, by whom, and what is on its way. The bytes are node/layers/transfer.c's. */
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "node/layers/internal.h"

#define RETRY_MS 250u          /* what waits for a place in the runner or here */
#define FOLLOW_RETRY_MS 10000u /* what nobody could give in the background */
/* Commands come in bursts. Short: until it is over, a node that dies may be the only one to have a layer. */
#define FOLLOW_SETTLE_MS 20u
#define FOLLOW_LAYERS_MAX 20000 /* named by the registry and looked at; beyond it on demand alone */

static void work(struct layers *l);

static void tick_cb(uv_timer_t *timer)
{
    work(container_of(timer, struct layers, timer));
}

void layers_wake(struct layers *l, uint64_t in_ms)
{
    if (l->closing)
        return;
    uint64_t due =
        uv_is_active((uv_handle_t *)&l->timer) ? uv_timer_get_due_in(&l->timer) : UINT64_MAX;
    if (in_ms < due)
        (void)uv_timer_start(&l->timer, tick_cb, in_ms, 0);
}

static bool is_digest(const char *text)
{
    return text != NULL && strlen(text) == 71 && strncmp(text, "sha256:", 7) == 0;
}

/* --- fetches ------------------------------------------------------------------------------------ */

static struct fetch *fetch_find(struct layers *l, const char *digest)
{
    for (struct fetch *f = l->fetches; f != NULL; f = f->next)
        if (strcmp(f->digest, digest) == 0)
            return f;
    return NULL;
}

static void need_done(struct need *n)
{
    struct layers *l = n->layers;
    struct need **at = &l->needs;
    while (*at != n)
        at = &(*at)->next;
    *at = n->next;
    l->need_count--;
    n->cb(n->user, n->failed ? &n->error : NULL);
    free(n);
    layers_close_check(l);
}

/* Nobody is in it any more: tells who waited, and goes. */
static void fetch_free(struct fetch *f)
{
    struct layers *l = f->layers;
    struct fetch **at = &l->fetches;
    while (*at != f)
        at = &(*at)->next;
    *at = f->next;
    if (f->failed)
        l->counts.fetch_failures++;
    else
        l->counts.fetched++;
    l->outside++; /* the last need that is told may be what closing waited for */
    for (struct need *n = l->needs, *next; n != NULL; n = next) {
        next = n->next;
        for (unsigned k = 0; k < 2; k++) {
            if (n->waits == 0 || strcmp(n->digests[k], f->digest) != 0)
                continue;
            n->digests[k][0] = '\0';
            if (f->failed && !n->failed) {
                n->failed = true;
                n->error = f->error;
            }
            n->waits--;
        }
    }
    free(f);
    /* A callback may need more; so each look begins anew. */
    for (bool found = true; found;) {
        found = false;
        for (struct need *n = l->needs; n != NULL && !found; n = n->next)
            if (n->listed && n->waits == 0) {
                found = true;
                need_done(n);
                break;
            }
    }
    l->outside--;
    layers_wake(l, 0);
    layers_close_check(l);
}

static void fetch_fail(struct fetch *f, const struct err *error)
{
    if (!f->failed)
        f->error = *error;
    f->failed = true;
}

/* Both the transfer and the import have ended. */
static void fetch_check(struct fetch *f)
{
    if (f->transfer != NULL || !f->transferred || !f->imported)
        return;
    f->phase = FETCH_OVER;
    if (f->failed)
        log_info("layers", "%s was not fetched: %s", f->digest, f->error.msg);
    fetch_free(f);
}

static void transferred_cb(struct layer_transfer *t, void *user, const struct layer_done *done)
{
    struct fetch *f = user;
    f->layers->counts.bytes_in += done->bytes;
    f->transferred = true;
    if (done->error != NULL)
        fetch_fail(f, done->error);
    else
        log_info("layers", "%.19s…: %llu bytes came in %llu ms", f->digest,
                 (unsigned long long)done->bytes,
                 (unsigned long long)(clock_monotonic_ms() - f->begun_ms));
    f->transfer = NULL;
    layer_transfer_free(t);
    fetch_check(f);
}

bool layers_import_ended(struct layers *l, const Skerry__Runner__ImportEnded *ended)
{
    struct fetch *f = l->fetches;
    while (f != NULL &&
           (f->phase != FETCH_RUNNING || f->imported || f->import_id != ended->import_id))
        f = f->next;
    if (f == NULL)
        return false;
    f->imported = true;
    struct err e;
    if (ended->error != 0) {
        (void)err_set(&e, (enum err_code)ended->error, "%.200s", ended->message);
        fetch_fail(f, &e);
    }
    fetch_check(f);
    return true;
}

static void pipe_cb(void *user, const struct err *error, const Skerry__Runner__Reply *reply,
                    int *descriptors, size_t descriptor_count)
{
    struct fetch *f = user;
    struct layers *l = f->layers;
    struct layers_peer peers[LAYERS_PEERS_MAX];
    struct err e;
    l->outside--;
    f->phase = FETCH_WAITING;
    if (error == NULL && descriptor_count == 1 && reply->import_started != NULL && !l->closing) {
        const struct layer_ask ask = {.kind = f->kind};
        struct layer_ask whole = ask;
        (void)text_copy(whole.digest, sizeof whole.digest, f->digest);
        size_t count = l->options.peers(l->options.user, peers, LAYERS_PEERS_MAX);
        f->import_id = reply->import_started->import_id;
        f->phase = FETCH_RUNNING;
        f->begun_ms = clock_monotonic_ms();
        if (layer_fetch(&f->transfer, l->options.secure, l->options.inbox, &whole, peers, count,
                        descriptors[0], transferred_cb, f, &e) != 0) {
            f->transferred = true;
            fetch_fail(f, &e);
        }
        return;
    }
    for (size_t k = 0; k < descriptor_count; k++)
        memory_close(&descriptors[k]);
    if (error != NULL && error->code == ERR_LIMIT && !l->closing) {
        layers_wake(l, RETRY_MS);
        return;
    }
    (void)err_set(&e, error != NULL ? error->code : ERR_PROTOCOL, "%s",
                  error != NULL ? error->msg : "the runner sent no pipe");
    fetch_fail(f, &e);
    fetch_free(f);
}

static void fetch_start(struct fetch *f)
{
    struct layers *l = f->layers;
    Skerry__Runner__Import i = SKERRY__RUNNER__IMPORT__INIT;
    i.kind = f->kind;
    i.name = f->digest;
    i.want_digest = f->digest;
    Skerry__Runner__Request r = SKERRY__RUNNER__REQUEST__INIT;
    r.verb_case = SKERRY__RUNNER__REQUEST__VERB_IMPORT_STREAM;
    r.import_stream = &i;
    struct err e;
    if (sandbox_ask(l->options.sandbox, &r, pipe_cb, f, &e) == 0) {
        f->phase = FETCH_ASKED;
        l->outside++;
        return;
    }
    fetch_fail(f, &e);
    fetch_free(f);
}

static bool fetch_wanted(struct layers *l, const char *digest, Skerry__Runner__ImportKind kind,
                         struct err *e)
{
    if (fetch_find(l, digest) != NULL)
        return true;
    struct fetch *f = calloc(1, sizeof *f);
    if (f == NULL) {
        (void)err_set(e, ERR_NO_MEMORY, "fetch a layer: no memory");
        return false;
    }
    f->layers = l;
    f->kind = kind;
    (void)text_copy(f->digest, sizeof f->digest, digest);
    struct fetch **at = &l->fetches;
    while (*at != NULL)
        at = &(*at)->next;
    *at = f;
    layers_wake(l, 0);
    return true;
}

/* --- needs -------------------------------------------------------------------------------------- */

static bool list_has(const Skerry__Runner__ImageList *list, const char *digest)
{
    for (size_t k = 0; k < list->n_images; k++)
        if (strcmp(list->images[k]->digest, digest) == 0)
            return true;
    return false;
}

static void listed_cb(void *user, const struct err *error, const Skerry__Runner__Reply *reply,
                      int *descriptors, size_t descriptor_count)
{
    (void)descriptors;
    (void)descriptor_count;
    struct need *n = user;
    struct layers *l = n->layers;
    l->outside--;
    n->listed = true;
    if (error != NULL || reply->images == NULL || l->closing) {
        n->failed = true;
        (void)err_set(&n->error, error != NULL ? error->code : ERR_CANCELED, "%s",
                      error != NULL ? error->msg : "the node is stopping");
        need_done(n);
        return;
    }
    for (unsigned k = 0; k < 2; k++) {
        if (n->digests[k][0] == '\0' || list_has(reply->images, n->digests[k]))
            n->digests[k][0] = '\0';
        else if (!fetch_wanted(l, n->digests[k],
                               k == 0 ? SKERRY__RUNNER__IMPORT_KIND__IMPORT_IMAGE
                                      : SKERRY__RUNNER__IMPORT_KIND__IMPORT_SOURCE,
                               &n->error))
            n->failed = true;
        else if (!n->looks)
            n->waits++;
        else
            n->failed =
                err_set(&n->error, ERR_UNAVAILABLE, "%.19s… is on its way", n->digests[k]) != 0;
    }
    if (n->waits == 0)
        need_done(n);
}

static int need(struct layers *l, const char *image, const char *source, bool looks, layers_cb cb,
                void *user, struct err *e)
{
    if (l->closing)
        return err_set(e, ERR_CANCELED, "the node is stopping");
    if (l->need_count >= LAYERS_WAITING_MAX)
        return err_set(e, ERR_LIMIT, "%u starts wait for their layers, as many as may",
                       l->need_count);
    struct need *n = calloc(1, sizeof *n);
    if (n == NULL)
        return err_set(e, ERR_NO_MEMORY, "fetch a layer: no memory");
    n->layers = l;
    n->looks = looks;
    n->cb = cb;
    n->user = user;
    if (is_digest(image))
        (void)text_copy(n->digests[0], sizeof n->digests[0], image);
    if (is_digest(source))
        (void)text_copy(n->digests[1], sizeof n->digests[1], source);
    Skerry__Runner__Empty empty = SKERRY__RUNNER__EMPTY__INIT;
    Skerry__Runner__Request r = SKERRY__RUNNER__REQUEST__INIT;
    r.verb_case = SKERRY__RUNNER__REQUEST__VERB_IMAGE_LIST;
    r.image_list = &empty;
    int rc = sandbox_ask(l->options.sandbox, &r, listed_cb, n, e);
    if (rc != 0) {
        free(n);
        return rc;
    }
    l->outside++;
    n->next = l->needs;
    l->needs = n;
    l->need_count++;
    return 0;
}

int layers_need(struct layers *l, const char *image, const char *source, layers_cb cb, void *user,
                struct err *e)
{
    return need(l, image, source, false, cb, user, e);
}

int layers_look(struct layers *l, const char *image, const char *source, layers_cb cb, void *user,
                struct err *e)
{
    return need(l, image, source, true, cb, user, e);
}

/* --- in the background -------------------------------------------------------------------------- */

/* What the registry names, less what the runner has: one after the other. */
struct named {
    struct layers *layers;
    const Skerry__Runner__ImageList *list;
    unsigned looked;
    char image[72], source[72]; /* the first that is missing of each */
};

static bool named_one(struct named *x, const char *digest, char out[72])
{
    if (++x->looked > FOLLOW_LAYERS_MAX)
        return false;
    if (is_digest(digest) && out[0] == '\0' && !list_has(x->list, digest))
        (void)text_copy(out, 72, digest);
    return true;
}

static bool named_workload(void *user, const struct registry_workload *w)
{
    struct named *x = user;
    return named_one(x, w->spec.image, x->image) && named_one(x, w->spec.source, x->source);
}

static bool named_image(void *user, const struct registry_image *i)
{
    struct named *x = user;
    return named_one(x, i->digest, x->image);
}

static void followed_cb(void *user, const struct err *error)
{
    struct layers *l = user;
    l->following = false;
    /* Perhaps there is more; and who has it may be away now. */
    l->follow_again = true;
    l->follow_ms = clock_monotonic_ms() + (error != NULL ? FOLLOW_RETRY_MS : 0);
    layers_wake(l, error != NULL ? FOLLOW_RETRY_MS : 0);
}

static void follow_listed_cb(void *user, const struct err *error,
                             const Skerry__Runner__Reply *reply, int *descriptors,
                             size_t descriptor_count)
{
    (void)descriptors;
    (void)descriptor_count;
    struct layers *l = user;
    struct err e;
    l->outside--;
    l->following = false;
    if (l->closing) {
        layers_close_check(l);
        return;
    }
    if (error != NULL || reply->images == NULL) {
        l->follow_again = true;
        l->follow_ms = clock_monotonic_ms() + FOLLOW_RETRY_MS;
        layers_wake(l, FOLLOW_RETRY_MS);
        return;
    }
    struct named x = {.layers = l, .list = reply->images};
    registry_root_workloads(l->follow, NULL, named_workload, &x);
    registry_root_images(l->follow, named_image, &x);
    if (x.image[0] == '\0' && x.source[0] == '\0')
        return;
    l->following = true;
    if (layers_need(l, x.image, x.source, followed_cb, l, &e) != 0)
        followed_cb(l, &e);
}

static void follow_look(struct layers *l)
{
    uint64_t now_ms = clock_monotonic_ms();
    struct layers_peer peer;
    if (!l->follow_again || l->following || l->follow == NULL)
        return;
    if (l->options.peers(l->options.user, &peer, 1) == 0) {
        layers_wake(l, FOLLOW_RETRY_MS); /* nobody could give anything */
        return;
    }
    if (now_ms < l->follow_ms) {
        layers_wake(l, l->follow_ms - now_ms);
        return;
    }
    l->follow_again = false;
    Skerry__Runner__Empty empty = SKERRY__RUNNER__EMPTY__INIT;
    Skerry__Runner__Request r = SKERRY__RUNNER__REQUEST__INIT;
    r.verb_case = SKERRY__RUNNER__REQUEST__VERB_IMAGE_LIST;
    r.image_list = &empty;
    struct err e;
    if (sandbox_ask(l->options.sandbox, &r, follow_listed_cb, l, &e) == 0) {
        l->following = true;
        l->outside++;
    } else {
        l->follow_again = true;
        l->follow_ms = now_ms + FOLLOW_RETRY_MS;
        layers_wake(l, FOLLOW_RETRY_MS);
    }
}

void layers_follow(struct layers *l, struct registry_root *root)
{
    if (l->closing)
        return;
    if (l->follow != NULL)
        registry_root_release(l->follow);
    l->follow = registry_root_hold(root);
    /* Sooner, when an older one is to be tried again later: this may be another layer. Never later, however
     * many changes come. */
    uint64_t soon_ms = clock_monotonic_ms() + FOLLOW_SETTLE_MS;
    if (!l->follow_again || l->follow_ms > soon_ms)
        l->follow_ms = soon_ms;
    l->follow_again = true;
    layers_wake(l, FOLLOW_SETTLE_MS);
}

/* --- life --------------------------------------------------------------------------------------- */

static void work(struct layers *l)
{
    unsigned running = 0;
    for (const struct fetch *f = l->fetches; f != NULL; f = f->next)
        running += f->phase == FETCH_ASKED || f->phase == FETCH_RUNNING;
    for (struct fetch *f = l->fetches, *next; f != NULL && running < LAYERS_FETCHES_MAX; f = next) {
        next = f->next;
        if (f->phase != FETCH_WAITING)
            continue;
        running++;
        fetch_start(f);
        /* Starting may have ended some: the rest comes round again. */
        if (running < LAYERS_FETCHES_MAX)
            layers_wake(l, RETRY_MS);
        break;
    }
    layers_askers_look(l, clock_monotonic_ms());
    follow_look(l);
}

void layers_runner_gone(struct layers *l)
{
    struct err e;
    (void)err_set(&e, ERR_UNAVAILABLE, "the runner went away while a layer was unpacked");
    for (struct fetch *f = l->fetches, *next; f != NULL; f = next) {
        next = f->next;
        if (f->phase != FETCH_RUNNING || f->imported)
            continue;
        f->imported = true;
        fetch_fail(f, &e);
        if (f->transfer != NULL)
            layer_transfer_stop(f->transfer);
        else
            fetch_check(f);
        next = l->fetches; /* others may have gone with it */
    }
    if (l->follow != NULL) {
        l->follow_again = true;
        layers_wake(l, FOLLOW_SETTLE_MS);
    }
}

static void timer_closed_cb(uv_handle_t *handle)
{
    struct layers *l = container_of((uv_timer_t *)handle, struct layers, timer);
    l->timer_closed = true;
    layers_close_check(l);
}

void layers_close_check(struct layers *l)
{
    if (!l->closing || !l->timer_closed || l->needs != NULL || l->fetches != NULL ||
        l->askers != NULL || l->serves != NULL || l->outside > 0)
        return;
    void (*cb)(void *user) = l->closed;
    void *user = l->closed_user;
    if (l->follow != NULL)
        registry_root_release(l->follow);
    free(l);
    if (cb != NULL)
        cb(user);
}

void layers_close(struct layers *l, void (*cb)(void *user), void *user)
{
    struct err e;
    (void)err_set(&e, ERR_CANCELED, "the node is stopping");
    l->closing = true;
    l->closed = cb;
    l->closed_user = user;
    for (struct fetch *f = l->fetches; f != NULL; f = f->next) {
        fetch_fail(f, &e);
        f->imported = true;
        if (f->transfer != NULL)
            layer_transfer_stop(f->transfer);
    }
    for (struct fetch *f = l->fetches, *next; f != NULL; f = next) {
        next = f->next;
        if (f->phase == FETCH_WAITING || (f->phase == FETCH_RUNNING && f->transfer == NULL)) {
            fetch_free(f);
            next = l->fetches;
        }
    }
    layers_serves_stop(l);
    uv_close((uv_handle_t *)&l->timer, timer_closed_cb);
}

int layers_open(struct layers **out, uv_loop_t *loop, const struct layers_options *options,
                struct err *e)
{
    struct layers *l = calloc(1, sizeof *l);
    if (l == NULL)
        return err_set(e, ERR_NO_MEMORY, "layers: no memory");
    l->options = *options;
    l->loop = loop;
    (void)uv_timer_init(loop, &l->timer);
    *out = l;
    return 0;
}

struct layers_counts layers_counts(const struct layers *l)
{
    return l->counts;
}
