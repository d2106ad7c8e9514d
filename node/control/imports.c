/* Archives on their way into the runner's store, and the removal of what nothing names any more. */
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/memory.h"
#include "node/control/control.h"
#include "node/layers/layers.h"

/* How long what has landed is kept without a name: `skerry deploy` names what it sends a moment later. */
#define LANDED_KEEP_MS 60000u

static void landed_add(struct node *n, const char *digest)
{
    struct landed *l = &n->landed[n->landed_next++ % LANDED_MAX];
    text_copy(l->digest, sizeof l->digest, digest);
    l->until_ms = clock_monotonic_ms() + LANDED_KEEP_MS;
}

static bool landed_waits(const struct node *n, const char *digest)
{
    for (size_t k = 0; k < LANDED_MAX; k++)
        if (n->landed[k].until_ms > clock_monotonic_ms() &&
            strcmp(n->landed[k].digest, digest) == 0)
            return true;
    return false;
}

static void import_answer_cb(void *user, const struct err *error,
                             const Skerry__Runner__Reply *reply, int *descriptors,
                             size_t descriptor_count)
{
    struct import *m = user;
    struct node_ask *ask = m->ask;
    struct node *n = ask->control;
    if (error != NULL || descriptor_count != 1 || reply->import_started == NULL) {
        for (size_t k = 0; k < descriptor_count; k++)
            memory_close(&descriptors[k]);
        free(m);
        asks_refuse(ask,
                    error != NULL && error->code == ERR_LIMIT ? PROBLEM_LIMIT_REACHED
                                                              : PROBLEM_INTERNAL,
                    "import: %s", error != NULL ? error->msg : "the runner sent no pipe");
        return;
    }
    m->id = reply->import_started->import_id;
    m->next = n->imports;
    n->imports = m;
    ask->descriptors[0] = descriptors[0];
    asks_answer(ask);
}

void imports_ask(struct node *n, struct node_ask *ask)
{
    struct import *m = calloc(1, sizeof *m);
    struct err e = {0};
    if (m == NULL) {
        asks_refuse(ask, PROBLEM_INTERNAL, "the node is out of memory");
        return;
    }
    m->ask = ask;
    ask->control = n;
    Skerry__Runner__Import i = SKERRY__RUNNER__IMPORT__INIT;
    i.kind = ask->import_source ? SKERRY__RUNNER__IMPORT_KIND__IMPORT_SOURCE
                                : SKERRY__RUNNER__IMPORT_KIND__IMPORT_IMAGE;
    i.name = (char *)(uintptr_t)(ask->name != NULL ? ask->name : "");
    Skerry__Runner__Request r = SKERRY__RUNNER__REQUEST__INIT;
    r.verb_case = SKERRY__RUNNER__REQUEST__VERB_IMPORT_STREAM;
    r.import_stream = &i;
    if (sandbox_ask(n->sandbox, &r, import_answer_cb, m, &e) != 0) {
        free(m);
        asks_refuse_err(ask, &e);
    }
}

void imports_ended(struct node *n, const Skerry__Runner__ImportEnded *ended)
{
    if (n->layers != NULL && layers_import_ended(n->layers, ended))
        return;
    struct import **at = &n->imports;
    while (*at != NULL && (*at)->id != ended->import_id)
        at = &(*at)->next;
    struct import *m = *at;
    if (m == NULL)
        return;
    *at = m->next;
    struct node_ask *ask = m->ask;
    free(m);
    ask->control = NULL;
    if (ended->error != 0) {
        ask->import.problem =
            ended->error == ERR_LIMIT ? PROBLEM_LIMIT_REACHED : PROBLEM_IMAGE_INVALID;
        text_copy(ask->end.detail, sizeof ask->end.detail, ended->message);
    } else {
        text_copy(ask->import.digest, sizeof ask->import.digest, ended->digest);
        landed_add(n, ended->digest);
        ask->import.bytes = ended->bytes;
        ask->import.files = ended->files;
    }
    asks_ended(ask);
}

void imports_runner_gone(struct node *n)
{
    if (n->layers != NULL)
        layers_runner_gone(n->layers);
    while (n->imports != NULL) {
        struct import *m = n->imports;
        n->imports = m->next;
        m->ask->control = NULL;
        m->ask->import.problem = PROBLEM_INTERNAL;
        text_copy(m->ask->end.detail, sizeof m->ask->end.detail,
                  "the runner went away during the import; try again");
        asks_ended(m->ask);
        free(m);
    }
}

/* --- images: what nothing names any more --------------------------------------------------------------------- */

struct collection {
    struct node_ask *ask;
    struct node *node;
    unsigned waiting;
};

struct digest_search {
    const char *digest;
    const char *workload;
    struct registry_root *root;
    bool found;
};

static bool search_version(void *user, const struct registry_workload *w)
{
    struct digest_search *s = user;
    s->found = strcmp(w->spec.source, s->digest) == 0 || strcmp(w->spec.image, s->digest) == 0;
    return !s->found;
}

static bool search_workload(void *user, const struct registry_workload *w)
{
    struct digest_search *s = user;
    registry_root_versions(s->root, w->name, search_version, s);
    return !s->found;
}

static bool search_image(void *user, const struct registry_image *i)
{
    struct digest_search *s = user;
    s->found = strcmp(i->digest, s->digest) == 0;
    return !s->found;
}

static bool named_by_image(struct registry_root *root, const char *digest)
{
    struct digest_search s = {.digest = digest, .root = root};
    registry_root_images(root, search_image, &s);
    return s.found;
}

static bool named_by_workload(struct registry_root *root, const char *digest)
{
    struct digest_search s = {.digest = digest, .root = root};
    registry_root_workloads(root, NULL, search_workload, &s);
    return s.found;
}

/* From its first name on, names alone decide. */
void imports_follow(struct node *n, struct registry_root *root, bool workloads)
{
    uint64_t now = clock_monotonic_ms();
    for (size_t k = 0; k < LANDED_MAX; k++) {
        struct landed *l = &n->landed[k];
        if (l->until_ms == 0)
            continue;
        if (l->until_ms <= now || named_by_image(root, l->digest) ||
            (workloads && named_by_workload(root, l->digest)))
            l->until_ms = 0;
    }
}

static void collection_done(struct collection *c)
{
    if (--c->waiting > 0)
        return;
    asks_answer(c->ask);
    free(c);
}

static void remove_cb(void *user, const struct err *error, const Skerry__Runner__Reply *reply,
                      int *descriptors, size_t descriptor_count)
{
    (void)reply;
    (void)descriptors;
    (void)descriptor_count;
    struct collection *c = user;
    if (error == NULL)
        c->ask->import.files++;
    collection_done(c);
}

static void image_list_cb(void *user, const struct err *error, const Skerry__Runner__Reply *reply,
                          int *descriptors, size_t descriptor_count)
{
    (void)descriptors;
    (void)descriptor_count;
    struct collection *c = user;
    if (error != NULL || reply->images == NULL) {
        struct node_ask *ask = c->ask;
        free(c);
        asks_refuse(ask, PROBLEM_INTERNAL, "%s",
                    error != NULL ? error->msg : "the runner sent no list");
        return;
    }
    struct registry_root *root = registry_root(c->node->registry);
    for (size_t k = 0; k < reply->images->n_images; k++) {
        const Skerry__Runner__ImageEntry *entry = reply->images->images[k];
        if (entry->users > 0 || landed_waits(c->node, entry->digest) ||
            named_by_image(root, entry->digest) || named_by_workload(root, entry->digest))
            continue;
        Skerry__Runner__ImageRemove m = SKERRY__RUNNER__IMAGE_REMOVE__INIT;
        m.digest = entry->digest;
        Skerry__Runner__Request r = SKERRY__RUNNER__REQUEST__INIT;
        r.verb_case = SKERRY__RUNNER__REQUEST__VERB_IMAGE_REMOVE;
        r.image_remove = &m;
        struct err e = {0};
        if (sandbox_ask(c->node->sandbox, &r, remove_cb, c, &e) == 0) {
            c->waiting++;
            c->ask->import.bytes += entry->bytes;
        }
    }
    registry_root_release(root);
    collection_done(c);
}

void imports_collect(struct node *n, struct node_ask *ask)
{
    struct collection *c = calloc(1, sizeof *c);
    struct err e = {0};
    if (c == NULL) {
        asks_refuse(ask, PROBLEM_INTERNAL, "the node is out of memory");
        return;
    }
    *c = (struct collection){.ask = ask, .node = n, .waiting = 1};
    Skerry__Runner__Empty empty = SKERRY__RUNNER__EMPTY__INIT;
    Skerry__Runner__Request r = SKERRY__RUNNER__REQUEST__INIT;
    r.verb_case = SKERRY__RUNNER__REQUEST__VERB_IMAGE_LIST;
    r.image_list = &empty;
    if (sandbox_ask(n->sandbox, &r, image_list_cb, c, &e) != 0) {
        free(c);
        asks_refuse_err(ask, &e);
    }
}
