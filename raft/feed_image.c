/* Snapshots for spares, encoded off the loop. */
#include <stdlib.h>

#include "base/log.h"
#include "base/memory.h"
#include "raft/feed_internal.h"
#include "raft/snapshot.h"

static void image_free(struct feed_image *image)
{
    buffer_free(&image->bytes);
    free(image);
}

void feed_image_drop(struct feed *f, struct feed_image *image)
{
    if (image == NULL || --image->references > 0)
        return;
    image_free(image);
    f->images--;
}

void feed_image_forget(struct feed *f)
{
    struct feed_image *image = steal_pointer(&f->image);
    feed_image_drop(f, image);
}

struct feed_image *feed_image_take(struct feed *f)
{
    struct feed_image *image = f->image;
    if (image == NULL)
        return NULL;
    if (image->generation != f->view.generation ||
        !recent_covers(f->options.recent, image->applied)) {
        feed_image_forget(f);
        return NULL;
    }
    image->references++;
    return image;
}

/* On the worker's thread: the root is immutable, the image its own. */
static void worker_main(void *user)
{
    struct feed *f = user;
    f->made = snapshot_encode(&f->root->content, &f->making->bytes, &f->made_error);
    uv_async_send(&f->worker_done);
}

static void worker_done_cb(uv_async_t *async)
{
    struct feed *f = container_of(async, struct feed, worker_done);
    if (!f->encoding)
        return;
    uv_thread_join(&f->worker);
    f->encoding = false;
    registry_root_release(f->root);
    f->root = NULL;
    struct feed_image *image = steal_pointer(&f->making);
    if (f->made == 0) {
        feed_image_forget(f);
        f->image = image;
    } else {
        log_warn("registry", "a snapshot for a spare: %s", f->made_error.msg);
        feed_image_drop(f, image);
    }
    feed_image_made(f, f->made == 0);
}

void feed_image_make(struct feed *f)
{
    if (f->encoding || f->closing || f->images >= FEED_IMAGES_MAX)
        return;
    struct feed_image *image = calloc(1, sizeof *image);
    struct registry_root *root = image == NULL ? NULL : f->options.root(f->options.user);
    if (root == NULL) {
        free(image);
        return;
    }
    *image = (struct feed_image){
        .references = 1, .applied = f->view.applied, .generation = f->view.generation};
    buffer_init(&image->bytes, SNAPSHOT_BYTES_MAX);
    f->images++;
    f->root = root;
    f->making = image;
    f->encoding = true;
    if (uv_thread_create(&f->worker, worker_main, f) == 0)
        return;
    f->encoding = false;
    f->root = NULL;
    f->making = NULL;
    registry_root_release(root);
    feed_image_drop(f, image);
}

int feed_image_open(struct feed *f)
{
    return uv_async_init(f->options.loop, &f->worker_done, worker_done_cb);
}
