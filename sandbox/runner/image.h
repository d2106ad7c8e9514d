/* sandbox/runner/image.h - the store of image and source layers, and the way into it.
 *
 * A layer is an unpacked tree that never changes, addressed by the digest of its content:
 * "sha256:<hex>" over a canonical walk (image_digest.h). The same tree gives the same digest
 * whether it came from a folder, a tar or a compressed tar. On disk, all 0700 root but for the
 * trees:
 *
 *     DIRECTORY/images/sha256-<hex>/tree/...   the tree
 *     DIRECTORY/images/sha256-<hex>/erofs      or, of an image: the tree as a file (image_erofs.h),
 *                                              mounted on `tree`, which is empty then
 *     DIRECTORY/images/sha256-<hex>/meta       kind, bytes, files
 *     DIRECTORY/images/tmp-<n>/                being unpacked or removed; swept at the next start
 *
 * Owners: the owner on disk is IMAGE_UID_BASE + the id inside the image (0..65535), for users and
 * groups alike; nobody else has that range, so no file of an image belongs to root of this machine.
 * A layer is idmapped when an instance starts: the map of the mount's user namespace is
 * "IMAGE_UID_BASE <first id of the instance> 65536". A runner without root has another range, which
 * it shares with its instances and which may be one id (powers.h). Setuid and setgid bits are never
 * stored.
 * Source layers are normalized: owner 0, folders 0755, files 0644 or 0755.
 *
 * Import: the archive is read by a process of its own, executed anew from the runner's ELF so that
 * it holds nothing of the runner's memory: it sets up two sandboxed children one after the other,
 * the first unpacks (hostile input, libarchive), the second walks what lies there and hashes it. A
 * digest is thus never told by the process that read the archive. A third writes an image as erofs,
 * and a fourth hashes what the kernel shows of it: only if it has the same digest is it kept, and the
 * tree removed. The runner's main must begin with
 *
 *     if (argc == 2 && strcmp(argv[1], IMAGE_IMPORT_ARGUMENT) == 0)
 *         return image_import_main();
 *
 * Thread: one, in a mount namespace of its own. Nothing here blocks for longer than a rename or a mount. */
#ifndef SKERRY_SANDBOX_RUNNER_IMAGE_H
#define SKERRY_SANDBOX_RUNNER_IMAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "sandbox/shared/userns.h"

/* 65,536 ids from here. The ranges of instances start at 0x70000000 and must end below. */
#define IMAGE_UID_BASE 0x7ff00000u
#define IMAGE_DIGEST_SIZE 72 /* "sha256:", 64 hex digits, NUL */
#define IMAGE_IMPORT_ARGUMENT "import-layer"

enum image_kind { IMAGE_KIND_IMAGE = 0, IMAGE_KIND_SOURCE = 1 }; /* as ImportKind on the wire */

struct image_bounds {
    uint64_t bytes_max;         /* of all files; a hard link counts as a file of its own */
    uint64_t files_max;         /* entries of any type */
    uint32_t depth_max;         /* folders below each other */
    uint32_t idle_seconds_max;  /* without a byte of the archive */
    uint32_t total_seconds_max; /* from the start to the digest */
    struct id_range ids; /* owners on disk, in order of those inside; who has none is refused */
};
/* 16 GiB, 1,000,000 files for images; 256 MiB, 100,000 files for sources. */
struct image_bounds image_bounds_default(enum image_kind kind);

struct image_store_options {
    const char *directory; /* exists; "images" is made below it */
    struct image_bounds image;
    struct image_bounds source;
    size_t imports_max; /* at the same time; default 4 */
    size_t layers_max;  /* default 10,000 */
    bool erofs;         /* images are kept as erofs where that is possible; default true */
    /* For tests: as on a kernel before 6.12, and as on one without erofs. */
    bool erofs_by_loop, kernel_has_none;
    const char *tool_folders; /* where mkfs.erofs is looked for, as in PATH; default: PATH */
};
/* Defaults for everything but the directory. */
struct image_store_options image_store_options_default(const char *directory);

struct image_layer {
    char digest[IMAGE_DIGEST_SIZE];
    enum image_kind kind;
    uint64_t bytes;
    uint64_t files;
    uint32_t users; /* holds */
    bool erofs;     /* else a folder */
    bool mounted;
    uint64_t mount_use; /* the higher, the later it was used */
};

struct image_store;
int image_store_open(struct image_store **out, const struct image_store_options *options,
                     struct err *e) ERR_CHECKED;
/* No import or export may be running. Layers stay, holds are forgotten. NULL is fine. Waits for deletions. */
void image_store_close(struct image_store *store);

bool image_digest_valid(const char *digest);
/* A hold keeps the layer from being removed. One per running instance and layer. */
int image_layer_hold(struct image_store *store, const char *digest, enum image_kind kind,
                     struct err *e) ERR_CHECKED;
void image_layer_release(struct image_store *store, const char *digest);
/* An O_PATH | O_CLOEXEC descriptor of the tree's root, the caller's; of erofs it is mounted first.
 * -ERR_NOT_FOUND, also when the layer is of the other kind. */
int image_layer_path_fd(struct image_store *store, const char *digest, enum image_kind kind,
                        int *out_fd, struct err *e) ERR_CHECKED;
/* -ERR_CONFLICT while it is held. The files are deleted by a child. */
int image_layer_remove(struct image_store *store, const char *digest, struct err *e) ERR_CHECKED;
/* The layers in order of their digests, `*out_count` of them; valid until the next call that
 * changes the store. */
const struct image_layer *const *image_store_list(struct image_store *store, size_t *out_count);

/* --- import ----------------------------------------------------------------------------------- */

struct image_import;
struct image_import_options {
    enum image_kind kind;
    const char *want_digest; /* NULL or "": any; else the content must have it */
};
struct image_import_result {
    char digest[IMAGE_DIGEST_SIZE];
    uint64_t bytes;
    uint64_t files;
    bool existed; /* the store had it already */
};

/* `*out_write_fd` takes the archive (tar; plain, gzip, zstd or lz4): the caller hands it to the
 * node and closes its own copy at once, for the archive ends when the last copy is closed.
 * -ERR_LIMIT when imports_max are running. */
int image_import_start(struct image_import **out, struct image_store *store,
                       const struct image_import_options *options, int *out_write_fd,
                       struct err *e) ERR_CHECKED;
/* Readable (POLLIN or POLLHUP) as soon as image_import_end would not block. Stays the import's. */
int image_import_fd(const struct image_import *import);
/* Frees the import. 0 and a filled result, or why it was refused; then nothing is left behind. */
int image_import_end(struct image_import *import, struct image_import_result *out,
                     struct err *e) ERR_CHECKED;
/* Kills and frees it. */
void image_import_cancel(struct image_import *import);

/* The process of an import; returns its exit status. Called by main only. */
int image_import_main(void);

#endif
