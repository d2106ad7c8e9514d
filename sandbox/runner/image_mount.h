/* sandbox/runner/image_mount.h - layers that are files of erofs: mounted after their import or when they are
 * used, on their `tree`, for all instances together.
 *
 * A mount lies in the runner's namespace alone (root.h): it and what it holds go with the runner,
 * however that ends, but for what instances have of it. Layers that nobody uses stay mounted, so
 * that the next start finds what was read; IMAGE_MOUNTS_IDLE_MAX of them, the longest unused go. */
#ifndef SKERRY_SANDBOX_RUNNER_IMAGE_MOUNT_H
#define SKERRY_SANDBOX_RUNNER_IMAGE_MOUNT_H

#include "sandbox/runner/image_internal.h"

/* Each costs the making of a blank, which copies them all, about a microsecond. */
#define IMAGE_MOUNTS_IDLE_MAX 64

/* Says in an order whether, and by what, its image is written as erofs. */
void image_mount_choose(struct image_store *store, struct image_order *order);
/* Whether the kernel can mount what is erofs; else `e` says why not. */
bool image_mount_possible(struct image_store *store, struct err *e);
/* Mounted or not erofs at all when this succeeds. */
int image_mount_use(struct image_store *store, struct image_layer *layer,
                    struct err *e) ERR_CHECKED;
/* Attaches what the import of this one has mounted, or closes it if it is not needed. */
void image_mount_take(struct image_store *store, const char *digest, int mount_fd);
/* Takes it out of the namespace; a descriptor that still holds it, or -1. Whoever closes the last one
 * waits until what the kernel kept of it is forgotten: a child, if it may be much. */
int image_mount_drop(struct image_store *store, struct image_layer *layer);

#endif
