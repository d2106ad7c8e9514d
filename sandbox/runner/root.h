/* sandbox/runner/root.h - the runner's part of an instance's root: detached mounts, made as root,
 * of the machine or of a user namespace.
 *
 * `image: host`: an empty tmpfs of the instance's own, with the machine's /usr (without /usr/local
 * and /usr/src) and a few paths of /etc as read-only binds that are never idmapped, so a file that
 * only root may read stays so. Other images: a tmpfs over the image's layer, which is idmapped to
 * the instance's range. Every mount is locked for the code inside, as it was made in a mount
 * namespace of a more privileged user namespace than the one the code lives in.
 *
 * The runner has a mount namespace of its own, so nothing of this is seen on the machine. */
#ifndef SKERRY_SANDBOX_RUNNER_ROOT_H
#define SKERRY_SANDBOX_RUNNER_ROOT_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "sandbox/shared/bind.h"

struct powers;
struct root_base;

/* Takes the process into a mount namespace of its own and prepares what all instances share below
 * `folder`, which exists. Once. `powers` outlive it. */
int root_base_open(struct root_base **out, const char *folder, const struct powers *powers,
                   struct err *e) ERR_CHECKED;
/* From now on as on a kernel before 6.13, whose overlay takes its layers by path only. */
void root_base_assume_old(struct root_base *base);
void root_base_close(struct root_base *base);
/* The one descriptor that it holds. */
int root_base_folder(const struct root_base *base);

struct root_options {
    uint32_t uid_base;   /* first of the instance's ids */
    uint64_t disk_bytes; /* what it may write */
    uint64_t inodes;
    int image_fd;  /* O_PATH, the image's layer; -1: the host */
    int source_fd; /* O_PATH, the source's layer, at /app; -1: none */
    int layer_map; /* a user namespace that maps the store's ids to the instance's; -1: no
                      * layers, or layers whose ids are the instance's already */
    uint32_t uid, gid;
    bool read_only;
    const char *hostname;
    bool names; /* as in struct bind_plan */
};

/* What every blank gets, whatever it becomes; descriptors as in struct bind_skeleton, the caller's. */
int root_skeleton_make(struct root_base *base, uint32_t uid_base, struct bind_skeleton *skeleton,
                       int *descriptors, struct err *e) ERR_CHECKED;
/* Bounds what is written to the tmpfs of a skeleton. */
int root_store_limit(int store, uint64_t bytes, uint64_t inodes, struct err *e) ERR_CHECKED;
/* The plan and its descriptors but for the listener; they are the caller's. */
int root_plan_make(struct root_base *base, const struct root_options *options,
                   struct bind_plan *plan, int *descriptors, size_t *count,
                   struct err *e) ERR_CHECKED;

/* A user namespace whose map is "inside outside 65536", for idmapped mounts; the caller's. */
int root_map_make(uint32_t inside, uint32_t outside, int *out_fd, struct err *e) ERR_CHECKED;

/* How many files an instance with this much disk may have, and what they cost in kernel memory. */
uint64_t root_inodes(uint64_t disk_bytes);
uint64_t root_inode_bytes(uint64_t inodes);

#endif
