/* sandbox/runner/image_digest.h - the digest of a tree, and the end of a tree.
 *
 * The digest is SHA-256 over "skerry layer 2\n", the kind as one byte, and a record for each entry
 * below the root, depth first, the names of a folder in order of their bytes, a folder before what
 * it holds:
 *
 *     type     1 byte: d, f or l
 *     mode     u32, permission bits
 *     uid gid  u32 each, as seen inside
 *     size     u64, of the content or of the link's target; 0 for folders
 *     changed  u32, of files: seconds of the epoch; else 0
 *     length   u32, then the path without a leading slash
 *     content, or the link's target
 *
 * Integers are little-endian. Times of folders and links, extended attributes and which names share an
 * inode are not part of it; neither is the root, which is always 0755 and owned by 0. */
#ifndef SKERRY_SANDBOX_RUNNER_IMAGE_DIGEST_H
#define SKERRY_SANDBOX_RUNNER_IMAGE_DIGEST_H

#include "sandbox/runner/image.h"

struct image_tree {
    char digest[IMAGE_DIGEST_SIZE];
    uint64_t bytes;
    uint64_t files;
};

/* Walks the tree below `root_fd`, which stays the caller's. Refuses what unpacking never makes
 * (devices, sockets, setuid files) and what is beyond the bounds. */
int image_digest_tree(struct image_tree *out, int root_fd, enum image_kind kind,
                      const struct image_bounds *bounds, struct err *e) ERR_CHECKED;

/* Deletes `name` and everything below it, however deep, with two descriptors and no recursion. A
 * thing that does not exist is success. Follows no link. */
int image_tree_remove(int parent_fd, const char *name, struct err *e) ERR_CHECKED;
/* Everything below `folder_fd`, which stays. */
int image_tree_empty(int folder_fd, struct err *e) ERR_CHECKED;

#endif
