#include "sandbox/runner/image_mount.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "base/memory.h"
#include "sandbox/runner/image_erofs.h"

bool image_mount_possible(struct image_store *store, struct err *e)
{
    if (!store->kernel_asked) {
        store->kernel_asked = true;
        store->kernel_mounts = image_erofs_in_kernel(&store->kernel_why) == 0;
        if (store->options.kernel_has_none)
            store->kernel_mounts =
                err_set(&store->kernel_why, ERR_UNSUPPORTED, "as a kernel without erofs") == 0;
    }
    if (!store->kernel_mounts)
        *e = store->kernel_why;
    return store->kernel_mounts;
}

void image_mount_choose(struct image_store *store, struct image_order *order)
{
    struct err why;
    if (!store->kernel_mounts)
        store->kernel_asked = false; /* somebody may have loaded it meanwhile */
    order->mounts = image_mount_possible(store, &why);
    order->by_loop = store->options.erofs_by_loop;
    if (!store->options.erofs || order->kind != IMAGE_KIND_IMAGE)
        return;
    bool chosen =
        order->mounts && image_erofs_tool(order->tool, store->options.tool_folders, &why) == 0;
    if (!chosen && !store->folders_told)
        log_info("images", "images are kept as folders: %s", why.msg);
    store->folders_told = !chosen;
}

static int layer_open(const struct image_store *store, const char *digest)
{
    char name[IMAGE_LAYER_NAME_SIZE];
    image_layer_name(name, digest);
    return openat(store->images_fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
}

int image_mount_drop(struct image_store *store, struct image_layer *layer)
{
    if (!layer->mounted)
        return -1;
    layer->mounted = false;
    CLEANUP_FD int folder = layer_open(store, layer->digest);
    CLEANUP_FD int pin =
        folder < 0 ? -1 : openat(folder, "tree", O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (pin < 0 || !image_erofs_unmount(folder))
        log_warn("images", "%s stays mounted: %s", layer->digest, strerror(errno));
    return steal_fd(&pin);
}

static void idle_bound(struct image_store *store)
{
    struct image_layer *oldest = NULL;
    size_t idle = 0;
    for (size_t i = 0; i < store->layer_count; i++) {
        struct image_layer *layer = store->layers[i];
        if (!layer->mounted || layer->users > 0)
            continue;
        idle++;
        if (oldest == NULL || layer->mount_use < oldest->mount_use)
            oldest = layer;
    }
    if (idle >= IMAGE_MOUNTS_IDLE_MAX)
        image_store_sweep(store, NULL, image_mount_drop(store, oldest));
}

int image_mount_use(struct image_store *store, struct image_layer *layer, struct err *e)
{
    if (!layer->erofs)
        return 0;
    layer->mount_use = ++store->mount_uses;
    if (layer->mounted)
        return 0;
    idle_bound(store);
    CLEANUP_FD int folder = layer_open(store, layer->digest);
    if (folder < 0)
        return err_sys(e, ERR_IO, errno, "open the layer %s", layer->digest);
    int rc = image_erofs_mount(folder, store->options.erofs_by_loop, e);
    if (rc != 0)
        return err_wrap(e, "layer %s", layer->digest);
    layer->mounted = true;
    return 0;
}

void image_mount_take(struct image_store *store, const char *digest, int mount_fd)
{
    struct image_layer *layer = image_store_find(store, digest);
    if (layer == NULL || layer->mounted) {
        /* The last that closes it waits until what was read of it is forgotten. */
        image_store_sweep(store, NULL, mount_fd);
        return;
    }
    struct err ignored; /* the next use tries again, and tells */
    idle_bound(store);
    layer->mount_use = ++store->mount_uses;
    CLEANUP_FD int folder = layer_open(store, digest);
    layer->mounted = folder >= 0 && image_erofs_attach(folder, mount_fd, &ignored) == 0;
    memory_close(&mount_fd);
}
