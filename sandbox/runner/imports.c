#include "sandbox/runner/imports.h"

#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "base/memory.h"
#include "sandbox/runner/image_export.h"
#include "sandbox/runner/runner.h"

/* An answer holds at most so many; an entry is below 128 bytes. */
#define LIST_MAX 2000

struct running {
    struct running *next;
    struct imports *imports;
    struct image_import *import;
    struct loop_watch watch;
    uint64_t id;
};

struct export
{
    struct export *next;
    struct imports *imports;
    struct image_export *process;
    struct loop_watch watch;
};

struct imports {
    struct runner *runner;
    struct image_store *store;
    struct running *first;
    struct export *exports;
    uint64_t next_id;
};

int imports_open(struct imports **out, struct runner *r, struct err *e)
{
    struct imports *m = calloc(1, sizeof *m);
    if (m == NULL)
        return err_set(e, ERR_NO_MEMORY, "imports");
    m->runner = r;
    struct image_store_options options = image_store_options_default(r->config.directory);
    options.erofs = r->config.images.erofs && r->powers.mount_erofs;
    options.erofs_by_loop = r->assume_old;
    options.image.ids = options.source.ids = r->powers.layers;
    int rc = image_store_open(&m->store, &options, e);
    if (rc < 0) {
        free(m);
        return rc;
    }
    *out = m;
    return 0;
}

static void running_free(struct running *x)
{
    struct running **at = &x->imports->first;
    while (*at != x)
        at = &(*at)->next;
    *at = x->next;
    loop_watch_stop(x->imports->runner->loop, &x->watch);
    free(x);
}

static void export_free(struct export *x)
{
    struct export **at = &x->imports->exports;
    while (*at != x)
        at = &(*at)->next;
    *at = x->next;
    loop_watch_stop(x->imports->runner->loop, &x->watch);
    image_export_end(x->process);
    free(x);
}

void imports_close(struct imports *m)
{
    if (m == NULL)
        return;
    while (m->exports != NULL)
        export_free(m->exports);
    while (m->first != NULL) {
        image_import_cancel(m->first->import);
        running_free(m->first);
    }
    image_store_close(m->store);
    free(m);
}

static void import_ended_cb(struct loop_watch *watch, uint32_t events)
{
    (void)events;
    struct running *x = container_of(watch, struct running, watch);
    struct runner *r = x->imports->runner;
    struct image_import_result result = {0};
    struct err e = {0};
    uint64_t id = x->id;
    struct image_import *import = x->import;
    running_free(x);
    int rc = image_import_end(import, &result, &e);
    Skerry__Runner__ImportEnded ended = SKERRY__RUNNER__IMPORT_ENDED__INIT;
    ended.import_id = id;
    ended.digest = result.digest;
    if (rc < 0) {
        ended.error = (uint32_t)e.code;
        ended.message = e.msg;
        ended.digest = (char *)(uintptr_t) "";
    }
    ended.bytes = result.bytes;
    ended.files = result.files;
    Skerry__Runner__Event event = SKERRY__RUNNER__EVENT__INIT;
    event.event_case = SKERRY__RUNNER__EVENT__EVENT_IMPORT_ENDED;
    event.import_ended = &ended;
    server_tell(r->server, &event);
}

static int start(struct imports *m, const Skerry__Runner__Import *i, struct running **out,
                 int *write_fd, struct err *e)
{
    struct running *x = calloc(1, sizeof *x);
    if (x == NULL)
        return err_set(e, ERR_NO_MEMORY, "import");
    const struct image_import_options options = {.kind = (enum image_kind)i->kind,
                                                 .want_digest = i->want_digest};
    int rc = image_import_start(&x->import, m->store, &options, write_fd, e);
    if (rc < 0) {
        free(x);
        return rc;
    }
    x->imports = m;
    x->id = ++m->next_id;
    x->next = m->first;
    m->first = x;
    x->watch = LOOP_WATCH_STOPPED;
    rc = loop_watch_start(m->runner->loop, &x->watch, image_import_fd(x->import), EPOLLIN,
                          import_ended_cb, e);
    if (rc < 0) {
        memory_close(write_fd);
        image_import_cancel(x->import);
        running_free(x);
        return rc;
    }
    *out = x;
    return 0;
}

void imports_start(struct imports *m, const Skerry__Runner__Import *i, const struct asker *asker)
{
    struct err e;
    struct running *x = NULL;
    int write_fd = -1;
    if (start(m, i, &x, &write_fd, &e) < 0) {
        server_answer(m->runner->server, asker, &e, NULL, NULL, 0);
        return;
    }
    Skerry__Runner__ImportStarted started = SKERRY__RUNNER__IMPORT_STARTED__INIT;
    started.import_id = x->id;
    Skerry__Runner__Reply reply = SKERRY__RUNNER__REPLY__INIT;
    reply.result_case = SKERRY__RUNNER__REPLY__RESULT_IMPORT_STARTED;
    reply.import_started = &started;
    server_answer(m->runner->server, asker, NULL, &reply, &write_fd, 1);
}

static void export_ended_cb(struct loop_watch *watch, uint32_t events)
{
    (void)events;
    export_free(container_of(watch, struct export, watch));
}

void imports_export(struct imports *m, const Skerry__Runner__Export *asked,
                    const struct asker *asker)
{
    struct err e;
    int read_fd = -1;
    struct export *x = calloc(1, sizeof *x);
    int rc = x == NULL
                 ? err_set(&e, ERR_NO_MEMORY, "export")
                 : image_export_start(&x->process, m->store, asked->digest,
                                      (enum image_kind)asked->kind, asked->skip, &read_fd, &e);
    if (rc < 0) {
        free(x);
        server_answer(m->runner->server, asker, &e, NULL, NULL, 0);
        return;
    }
    x->imports = m;
    x->next = m->exports;
    m->exports = x;
    x->watch = LOOP_WATCH_STOPPED;
    rc = loop_watch_start(m->runner->loop, &x->watch, image_export_fd(x->process), EPOLLIN,
                          export_ended_cb, &e);
    if (rc < 0) {
        memory_close(&read_fd);
        export_free(x);
        server_answer(m->runner->server, asker, &e, NULL, NULL, 0);
        return;
    }
    Skerry__Runner__Reply reply = SKERRY__RUNNER__REPLY__INIT;
    server_answer(m->runner->server, asker, NULL, &reply, &read_fd, 1);
}

void imports_list(struct imports *m, const struct asker *asker)
{
    size_t count;
    const struct image_layer *const *layers = image_store_list(m->store, &count);
    if (count > LIST_MAX)
        count = LIST_MAX;
    Skerry__Runner__ImageEntry *entries = calloc(count + 1, sizeof *entries);
    Skerry__Runner__ImageEntry **list = calloc(count + 1, sizeof(Skerry__Runner__ImageEntry *));
    Skerry__Runner__ImageList images = SKERRY__RUNNER__IMAGE_LIST__INIT;
    Skerry__Runner__Reply reply = SKERRY__RUNNER__REPLY__INIT;
    struct err e;
    bool room = entries != NULL && list != NULL;
    for (size_t i = 0; room && i < count; i++) {
        skerry__runner__image_entry__init(&entries[i]);
        entries[i].digest = (char *)(uintptr_t)layers[i]->digest;
        entries[i].kind = (Skerry__Runner__ImportKind)layers[i]->kind;
        entries[i].bytes = layers[i]->bytes;
        entries[i].files = layers[i]->files;
        entries[i].users = layers[i]->users;
        list[i] = &entries[i];
    }
    images.images = list;
    images.n_images = count;
    reply.result_case = SKERRY__RUNNER__REPLY__RESULT_IMAGES;
    reply.images = &images;
    if (!room)
        err_set(&e, ERR_NO_MEMORY, "list of images");
    server_answer(m->runner->server, asker, room ? NULL : &e, room ? &reply : NULL, NULL, 0);
    free(entries);
    free(list);
}

void imports_remove(struct imports *m, const char *digest, const struct asker *asker)
{
    struct err e;
    int rc = image_layer_remove(m->store, digest, &e);
    server_answer(m->runner->server, asker, rc < 0 ? &e : NULL, NULL, NULL, 0);
}

int imports_layer_use(struct imports *m, const char *digest, enum image_kind kind, int *out_fd,
                      struct err *e)
{
    int rc = image_layer_hold(m->store, digest, kind, e);
    if (rc < 0)
        return rc;
    rc = image_layer_path_fd(m->store, digest, kind, out_fd, e);
    if (rc < 0)
        image_layer_release(m->store, digest);
    return rc;
}

int imports_layer_hold(struct imports *m, const char *digest, enum image_kind kind, struct err *e)
{
    return image_layer_hold(m->store, digest, kind, e);
}

void imports_layer_release(struct imports *m, const char *digest)
{
    image_layer_release(m->store, digest);
}
