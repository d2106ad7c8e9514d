/* sandbox/runner/image_internal.h - between the store, the runner's side of an import and its
 * process.
 *
 * Order and report are structs of one build: the process of an import is the runner's own ELF. */
#ifndef SKERRY_SANDBOX_RUNNER_IMAGE_INTERNAL_H
#define SKERRY_SANDBOX_RUNNER_IMAGE_INTERNAL_H

#include <sys/types.h>

#include "sandbox/runner/image.h"
#include "sandbox/runner/image_erofs.h"

#define IMAGE_LAYER_NAME_SIZE 72 /* "sha256-", 64 hex digits, NUL */
#define IMAGE_TMP_PREFIX "tmp-"
#define IMAGE_TMP_NAME_SIZE 24

struct image_order {
    uint32_t kind;
    struct image_bounds bounds;
    char want_digest[IMAGE_DIGEST_SIZE];
    char tmp_name[IMAGE_TMP_NAME_SIZE];
    char tool[IMAGE_TOOL_SIZE]; /* that writes erofs; "": the image stays a folder */
    bool by_loop;
    bool mounts; /* the kernel can mount erofs; else a layer that is one is replaced */
};

/* Of what was written as erofs the mount comes along, as a descriptor (image_erofs_detach): whoever dies
 * before it was taken leaves none. */
struct image_report {
    uint32_t code; /* enum err_code */
    int32_t sys;
    char message[256];
    char digest[IMAGE_DIGEST_SIZE];
    uint64_t bytes;
    uint64_t files;
    uint32_t existed;
};

struct image_store {
    int images_fd;
    struct image_store_options options;
    struct image_layer **layers; /* in order of their digests */
    size_t layer_count;
    size_t imports;  /* running */
    size_t exports;  /* running */
    pid_t *removers; /* children that delete, not reaped yet */
    size_t remover_count;
    uint64_t mount_uses;
    bool kernel_asked; /* whether it mounts erofs; else why not */
    bool kernel_mounts;
    struct err kernel_why;
    bool folders_told; /* why images are kept as folders */
};

void image_tmp_name(char out[IMAGE_TMP_NAME_SIZE]);
/* "sha256:<hex>" to the name of its folder. */
void image_layer_name(char out[IMAGE_LAYER_NAME_SIZE], const char *digest);
int image_meta_write(int layer_fd, const struct image_layer *layer, struct err *e) ERR_CHECKED;
int image_meta_read(int layer_fd, struct image_layer *layer, struct err *e) ERR_CHECKED;
struct image_layer *image_store_find(const struct image_store *store, const char *digest);
/* Reads the folder of `digest` and puts it into the table; fine when it is there already. */
int image_store_adopt(struct image_store *store, const char *digest, struct err *e) ERR_CHECKED;
/* Deletes `name` (a tmp-*, or NULL) by a child, which closes `pin` (of image_mount_drop, or -1) as the last
 * that has it. */
void image_store_sweep(struct image_store *store, const char *name, int pin);

#endif
