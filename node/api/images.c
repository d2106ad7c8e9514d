/* node/api/images.c - images and sources: archives on their way to the runner's unpacker.
 *
 * The body goes into a pipe as it comes; when the pipe is full the connection is suspended, so an
 * upload is as fast as the unpacker and takes no memory here. */
#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "node/api/internal.h"

static bool image_name_valid(const char *name)
{
    size_t length = strlen(name);
    if (length == 0 || length >= sizeof(((struct registry_image *)0)->name) ||
        !(islower((unsigned char)name[0]) || isdigit((unsigned char)name[0])))
        return false;
    for (size_t i = 0; i < length; i++)
        if (!islower((unsigned char)name[i]) && !isdigit((unsigned char)name[i]) &&
            strchr("._-/:", name[i]) == NULL)
            return false;
    return strncmp(name, "sha256:", 7) != 0;
}

/* --- the list ----------------------------------------------------------------------------------- */

static json_t *image_json(const struct registry_image *i)
{
    return json_pack("{s:s, s:s, s:I, s:I, s:o}", "name", i->name, "digest", i->digest, "bytes",
                     (json_int_t)i->bytes, "files", (json_int_t)i->files, "imported_at",
                     api_time(i->imported_wall_ms));
}

static bool list_image(void *user, const struct registry_image *i)
{
    return json_array_append_new(user, image_json(i)) == 0;
}

void api_images_list(struct api_request *r)
{
    const struct api_calls *calls = &r->api->options.calls;
    json_t *list = json_array();
    struct registry_root *root = calls->root(calls->user);
    registry_root_images(root, list_image, list);
    calls->root_return(calls->user, root);
    api_answer_json(r, MHD_HTTP_OK, list);
}

void api_image_get(struct api_request *r)
{
    const struct api_calls *calls = &r->api->options.calls;
    struct registry_root *root = calls->root(calls->user);
    const struct registry_image *i = registry_root_image(root, r->parameter, strlen(r->parameter));
    if (i == NULL)
        api_problem(r, PROBLEM_IMAGE_UNKNOWN, "no image is called %.100s", r->parameter);
    else
        api_answer_json(r, MHD_HTTP_OK, image_json(i));
    calls->root_return(calls->user, root);
}

void api_image_remove(struct api_request *r)
{
    struct api_ask *a = api_ask_new(r, NODE_ASK_PROPOSE);
    if (a == NULL)
        return;
    if (!text_copy(a->image.name, sizeof(a->image.name), r->parameter)) {
        api_problem(r, PROBLEM_IMAGE_UNKNOWN, "no image is called %.100s", r->parameter);
        return;
    }
    a->command.image = &a->image;
    a->command.name = a->image.name;
    api_ask_propose(a, REGISTRY_IMAGE_REMOVE, api_ask_settled_empty);
}

static void collected(struct api_ask *a)
{
    if (!api_ask_refused(a->request, a))
        api_answer_json(a->request, MHD_HTTP_OK,
                        json_pack("{s:I}", "bytes", (json_int_t)a->ask.import.bytes));
}

void api_images_gc(struct api_request *r)
{
    struct api_ask *a = api_ask_new(r, NODE_ASK_IMAGE_GC);
    if (a != NULL)
        (void)api_ask_send(a, collected);
}

/* --- import ------------------------------------------------------------------------------------- */

struct import {
    struct api_fd *pipe;
    bool source;
    bool whole; /* the body is complete and the pipe closed */
    bool ended;
};

static void import_free(struct api_request *r)
{
    struct import *m = r->state;
    api_fd_close(&m->pipe);
    free(m);
    r->state = NULL;
}

static void pipe_ready(struct api_fd *f, int events)
{
    (void)events;
    api_resume(f->owner);
}

static size_t import_upload(struct api_request *r, const char *data, size_t size)
{
    struct import *m = r->state;
    size_t taken = 0;
    while (m->pipe != NULL && taken < size) {
        ssize_t count = write(m->pipe->fd, data + taken, size - taken);
        if (count >= 0) {
            taken += (size_t)count;
        } else if (errno == EAGAIN) {
            api_fd_want(m->pipe, UV_WRITABLE);
            return taken;
        } else if (errno != EINTR) {
            api_fd_close(&m->pipe); /* the unpacker gave up; its end says why */
        }
    }
    return size;
}

static void copied(struct api_ask *a)
{
    if (api_ask_refused(a->request, a))
        return;
    json_t *json = image_json(&a->image);
    api_warn(json, a->ask.detail);
    api_answer_json(a->request, MHD_HTTP_CREATED, json);
}

/* Answered when the loss of one node cannot take it away. */
static void image_settled(struct api_request *r)
{
    const struct registry_image image = r->ask->image;
    struct api_ask *a = api_ask_new(r, NODE_ASK_COPIES);
    if (a == NULL)
        return;
    a->image = image;
    a->ask.name = a->image.name;
    (void)api_ask_send(a, copied);
}

static void image_put(struct api_ask *a)
{
    if (!api_ask_result_refused(a->request, a))
        api_settle_index(a->request, a->ask.result.index, image_settled);
}

static void register_image(struct api_request *r)
{
    struct registry_image image = {.bytes = r->ask->ask.import.bytes,
                                   .files = r->ask->ask.import.files,
                                   .imported_wall_ms = clock_wall_ms()};
    (void)text_copy(image.name, sizeof(image.name), api_query(r, "name"));
    (void)text_copy(image.digest, sizeof(image.digest), r->ask->ask.import.digest);
    struct api_ask *a = api_ask_new(r, NODE_ASK_PROPOSE);
    if (a == NULL)
        return;
    a->image = image;
    a->command.kind = REGISTRY_IMAGE_PUT;
    a->command.wall_ms = image.imported_wall_ms;
    a->command.image = &a->image;
    a->ask.command = &a->command;
    (void)api_ask_send(a, image_put);
}

/* When it has ended, successfully only once the whole body is there: an archive that merely looks
 * whole because its client left is never registered. */
static void import_finish(struct api_request *r)
{
    struct import *m = r->state;
    if (!m->ended)
        return;
    const struct node_ask *ask = &r->ask->ask;
    if (ask->import.problem != PROBLEM_NONE)
        api_problem(r, ask->import.problem, "%s", ask->end.detail);
    else if (!m->whole)
        return;
    else if (m->source)
        api_answer_json(r, MHD_HTTP_CREATED,
                        json_pack("{s:s, s:I, s:I}", "digest", ask->import.digest, "bytes",
                                  (json_int_t)ask->import.bytes, "files",
                                  (json_int_t)ask->import.files));
    else
        register_image(r);
}

static void import_ended(struct api_ask *a)
{
    struct api_request *r = a->request;
    struct import *m = r->state;
    m->ended = true;
    api_fd_close(&m->pipe);
    import_finish(r);
    api_resume(r);
}

static void import_upload_end(struct api_request *r)
{
    struct import *m = r->state;
    m->whole = true;
    api_fd_close(&m->pipe);
    import_finish(r);
}

static void import_begun(struct api_ask *a)
{
    struct api_request *r = a->request;
    struct import *m = r->state;
    if (api_ask_refused(r, a))
        return;
    int fd = steal_fd(&a->ask.descriptors[0]);
    m->pipe = fd < 0 ? NULL : api_fd_open(r->api, fd, r, pipe_ready);
    r->upload = import_upload;
    r->upload_end = import_upload_end;
    api_resume(r);
}

static void import_start(struct api_request *r, bool source, const char *name)
{
    struct import *m = calloc(1, sizeof(*m));
    struct api_ask *a = m == NULL ? NULL : api_ask_new(r, NODE_ASK_IMPORT);
    bool failed = a == NULL;
    if (a != NULL)
        a->ask.name = api_ask_text(a, name, &failed);
    if (failed) {
        free(m);
        api_problem(r, PROBLEM_INTERNAL, "out of memory");
        return;
    }
    m->source = source;
    r->state = m;
    r->state_free = import_free;
    a->ask.import_source = source;
    a->ended = import_ended;
    (void)api_ask_send(a, import_begun);
}

void api_image_import(struct api_request *r)
{
    const char *name = api_query(r, "name");
    if (name == NULL || !image_name_valid(name)) {
        api_problem(r, PROBLEM_BAD_REQUEST,
                    "name: lower-case letters, digits and . _ - / : behind a first letter or "
                    "digit, at most 127 characters");
        return;
    }
    if (strcmp(name, "host") == 0) {
        api_problem(r, PROBLEM_CONFLICT, "name: `host` is built in");
        return;
    }
    import_start(r, false, name);
}

void api_source_send(struct api_request *r)
{
    import_start(r, true, "source");
}
