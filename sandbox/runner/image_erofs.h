/* sandbox/runner/image_erofs.h - the tree of an image as one file of erofs, written and mounted here.
 *
 * mkfs.erofs (Debian: erofs-utils) writes the file from a tree that was unpacked here, confined as
 * what unpacked it is (struct image_program). The kernel reads no erofs that came from a client or
 * another node: archives are what travels and what a digest is of. Owners in it are those of the store
 * (image.h), extended attributes are left out, nothing is compressed: what is read is mapped as it lies.
 *
 * Linux 6.12 and later mount the file itself, others a loop device that goes with its last mount. */
#ifndef SKERRY_SANDBOX_RUNNER_IMAGE_EROFS_H
#define SKERRY_SANDBOX_RUNNER_IMAGE_EROFS_H

#include <limits.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "sandbox/shared/userns.h"

#define IMAGE_EROFS_FILE "erofs" /* beside `tree` in the folder of a layer */
#define IMAGE_TOOL_SIZE 128

/* Whether the kernel has erofs for us; a module of it is loaded. */
int image_erofs_in_kernel(struct err *e) ERR_CHECKED;
/* The path of mkfs.erofs, looked for in `folders` as in PATH (NULL: those that distributions use).
 * -ERR_NOT_FOUND when none is there that lies below /usr. */
int image_erofs_tool(char out[IMAGE_TOOL_SIZE], const char *folders, struct err *e) ERR_CHECKED;

struct image_erofs_order {
    const char *tool;
    int layer_fd; /* the folder of a layer: the file is made in it */
    int tree_fd;
    uint64_t bytes, files;   /* of the tree */
    uint64_t free_bytes_min; /* what is to stay free on the disk */
    uint64_t deadline_ms;    /* of clock_monotonic_ms */
    struct id_range ids;     /* owners, as in struct image_bounds */
};
/* Blocks; of single-threaded processes only. Nothing is left of what fails. */
int image_erofs_write(const struct image_erofs_order *order, struct err *e) ERR_CHECKED;
/* Mounts the layer's file on its `tree`, read-only. `by_loop`: as on a kernel before 6.12. */
int image_erofs_mount(int layer_fd, bool by_loop, struct err *e) ERR_CHECKED;
/* Takes it off, and keeps the mount: it goes when the last that has `*out_fd` closes it or dies. */
int image_erofs_detach(int layer_fd, int *out_fd, struct err *e) ERR_CHECKED;
int image_erofs_attach(int layer_fd, int mount_fd, struct err *e) ERR_CHECKED;
/* The kernel keeps nothing more of what was written, once that is on the disk: it keeps what is mounted. */
void image_erofs_forget(int layer_fd);
/* Takes it off; whoever has it open keeps it. False, with errno: it stays, or there was none. */
bool image_erofs_unmount(int layer_fd);

#endif
