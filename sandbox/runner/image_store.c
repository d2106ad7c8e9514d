#include "sandbox/runner/image.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/log.h"
#include "base/memory.h"
#include "sandbox/runner/image_digest.h"
#include "sandbox/runner/image_internal.h"
#include "sandbox/runner/image_mount.h"

#define REMOVERS_MAX 32
#define PIN_MS 20 /* in which the runner has closed what a child is to close last */
#define REMOVE_TRIES 50
#define REMOVE_MS 20
#define META_SIZE 256

struct image_bounds image_bounds_default(enum image_kind kind)
{
    const bool source = kind == IMAGE_KIND_SOURCE;
    return (struct image_bounds){
        .bytes_max = source ? 256ull << 20 : 16ull << 30,
        .files_max = source ? 100000 : 1000000,
        .depth_max = 128,
        .idle_seconds_max = 60,
        .total_seconds_max = source ? 600 : 3600,
        .ids = {IMAGE_UID_BASE, 65536},
    };
}

struct image_store_options image_store_options_default(const char *directory)
{
    return (struct image_store_options){
        .directory = directory,
        .image = image_bounds_default(IMAGE_KIND_IMAGE),
        .source = image_bounds_default(IMAGE_KIND_SOURCE),
        .imports_max = 4,
        .layers_max = 10000,
        .erofs = true,
        .tool_folders = getenv("PATH"),
    };
}

/* --- names and meta --------------------------------------------------------------------------- */

bool image_digest_valid(const char *digest)
{
    if (strnlen(digest, IMAGE_DIGEST_SIZE) != 71 || strncmp(digest, "sha256:", 7) != 0)
        return false;
    return strspn(digest + 7, "0123456789abcdef") == 64;
}

void image_layer_name(char out[IMAGE_LAYER_NAME_SIZE], const char *digest)
{
    (void)text_copy(out, IMAGE_LAYER_NAME_SIZE, digest);
    out[6] = '-'; /* a colon is legal in a file name and a nuisance in mount options */
}

void image_tmp_name(char out[IMAGE_TMP_NAME_SIZE])
{
    unsigned char random[8];
    randombytes_buf(random, sizeof random);
    (void)text_copy(out, IMAGE_TMP_NAME_SIZE, IMAGE_TMP_PREFIX);
    sodium_bin2hex(out + strlen(IMAGE_TMP_PREFIX), 2 * sizeof random + 1, random, sizeof random);
}

int image_meta_write(int layer_fd, const struct image_layer *layer, struct err *e)
{
    char text[META_SIZE];
    (void)text_format(text, sizeof text,
                      "skerry-layer 1\nkind %d\nbytes %" PRIu64 "\nfiles %" PRIu64 "\n",
                      (int)layer->kind, layer->bytes, layer->files);
    CLEANUP_FD int fd = openat(layer_fd, "meta", O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0 || write(fd, text, strlen(text)) != (ssize_t)strlen(text))
        return err_sys(e, ERR_IO, errno, "write the meta file of a layer");
    return 0;
}

int image_meta_read(int layer_fd, struct image_layer *layer, struct err *e)
{
    char text[META_SIZE];
    CLEANUP_FD int fd = openat(layer_fd, "meta", O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    ssize_t n = fd >= 0 ? read(fd, text, sizeof text - 1) : -1;
    if (n < 0)
        return err_sys(e, ERR_IO, errno, "read the meta file of a layer");
    text[n] = '\0';
    int kind = 0;
    if (sscanf(text, "skerry-layer 1\nkind %d\nbytes %" SCNu64 "\nfiles %" SCNu64 "\n", &kind,
               &layer->bytes, &layer->files) != 3 ||
        (kind != IMAGE_KIND_IMAGE && kind != IMAGE_KIND_SOURCE))
        return err_set(e, ERR_IO, "the meta file of a layer makes no sense");
    layer->kind = (enum image_kind)kind;
    return 0;
}

/* --- the table -------------------------------------------------------------------------------- */

/* The index of `digest`, or where it would be. */
static size_t layer_place(const struct image_store *store, const char *digest, bool *out_found)
{
    size_t low = 0;
    size_t high = store->layer_count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        int order = strcmp(store->layers[middle]->digest, digest);
        if (order == 0) {
            *out_found = true;
            return middle;
        }
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    *out_found = false;
    return low;
}

struct image_layer *image_store_find(const struct image_store *store, const char *digest)
{
    bool found;
    size_t at = layer_place(store, digest, &found);
    return found ? store->layers[at] : NULL;
}

static int layer_find_kind(const struct image_store *store, const char *digest,
                           enum image_kind kind, struct image_layer **out, struct err *e)
{
    if (!image_digest_valid(digest))
        return err_set(e, ERR_INVALID, "a digest is sha256: and 64 hexadecimal digits");
    struct image_layer *layer = image_store_find(store, digest);
    if (layer == NULL || layer->kind != kind)
        return err_set(e, ERR_NOT_FOUND, "the store has no %s %s",
                       kind == IMAGE_KIND_IMAGE ? "image" : "source", digest);
    *out = layer;
    return 0;
}

int image_store_adopt(struct image_store *store, const char *digest, struct err *e)
{
    bool found;
    size_t at = layer_place(store, digest, &found);
    if (found)
        return 0;
    if (store->layer_count >= store->options.layers_max)
        return err_set(e, ERR_LIMIT, "the store holds %zu layers and may hold no more; remove some",
                       store->layer_count);
    char name[IMAGE_LAYER_NAME_SIZE];
    image_layer_name(name, digest);
    CLEANUP_FD int fd =
        openat(store->images_fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return err_sys(e, ERR_NOT_FOUND, errno, "open the layer %s", digest);
    CLEANUP_FREE struct image_layer *layer = calloc(1, sizeof *layer);
    if (layer == NULL)
        return err_set(e, ERR_NO_MEMORY, "no memory for a layer");
    (void)text_copy(layer->digest, sizeof layer->digest, digest);
    int rc = image_meta_read(fd, layer, e);
    if (rc != 0)
        return err_wrap(e, "layer %s", digest);
    layer->erofs = faccessat(fd, IMAGE_EROFS_FILE, F_OK, AT_SYMLINK_NOFOLLOW) == 0;
    if (layer->erofs && !image_mount_possible(store, e))
        return err_wrap(e, "the layer %s is kept as erofs, and has to be fetched or imported again",
                        digest);
    memmove(&store->layers[at + 1], &store->layers[at],
            (store->layer_count - at) * sizeof(struct image_layer *));
    store->layers[at] = steal_pointer(&layer);
    store->layer_count++;
    return 0;
}

/* --- deleting by children --------------------------------------------------------------------- */

static void reap_removers(struct image_store *store, bool wait)
{
    size_t kept = 0;
    for (size_t i = 0; i < store->remover_count; i++) {
        pid_t rc;
        do
            rc = waitpid(store->removers[i], NULL, wait ? 0 : WNOHANG);
        while (rc < 0 && errno == EINTR);
        /* An error means that somebody else reaped it. */
        if (rc == 0)
            store->removers[kept++] = store->removers[i];
    }
    store->remover_count = kept;
}

__attribute__((noreturn)) static void sweep(int images_fd, const char *name, int pin)
{
    /* Nothing of the runner's may live on in here, the node's socket least of all. */
    int pinned = pin < 0 ? -1 : fcntl(pin, F_DUPFD_CLOEXEC, 5);
    int fd = dup2(images_fd, 3);
    if (fd != 3 || (pinned >= 0 && dup2(pinned, 4) != 4) ||
        close_range(pin < 0 ? 4 : 5, ~0u, 0) != 0)
        _exit(1);
    struct err e;
    int rc = 0;
    if (name != NULL) {
        /* An import that was killed may have mounted what it wrote. */
        CLEANUP_FD int folder = openat(fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        if (folder >= 0)
            (void)image_erofs_unmount(folder);
        /* Who was killed may be amid a call that makes one file more. */
        for (int i = 0; (rc = image_tree_remove(fd, name, &e)) != 0 && i < REMOVE_TRIES; i++)
            (void)poll(NULL, 0, REMOVE_MS);
    }
    if (rc != 0)
        log_warn("images", "delete %s: %s", name, e.msg);
    if (pin >= 0)
        (void)poll(NULL, 0, PIN_MS);
    _exit(rc != 0);
}

void image_store_sweep(struct image_store *store, const char *name, int pin)
{
    reap_removers(store, false);
    /* What cannot get a child now is swept when the store opens again. */
    pid_t pid = store->remover_count < REMOVERS_MAX ? fork() : -1;
    if (pid == 0)
        sweep(store->images_fd, name, pin);
    if (pid > 0)
        store->removers[store->remover_count++] = pid;
    else if (name != NULL)
        log_warn("images", "%s stays until the next start: no child to delete it", name);
    memory_close(&pin);
}

/* --- open and close --------------------------------------------------------------------------- */

static void adopt_entry(struct image_store *store, const char *name)
{
    struct err e;
    if (strncmp(name, IMAGE_TMP_PREFIX, strlen(IMAGE_TMP_PREFIX)) == 0) {
        image_store_sweep(store, name, -1);
        return;
    }
    char digest[IMAGE_DIGEST_SIZE];
    if (!text_copy(digest, sizeof digest, name) || strncmp(name, "sha256-", 7) != 0)
        return;
    digest[6] = ':';
    if (image_digest_valid(digest) && image_store_adopt(store, digest, &e) != 0)
        log_warn("images", "left out: %s", e.msg);
}

static int adopt_all(struct image_store *store, struct err *e)
{
    int fd = openat(store->images_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *stream = fd >= 0 ? fdopendir(fd) : NULL;
    if (stream == NULL) {
        int sys = errno;
        memory_close(&fd);
        return err_sys(e, ERR_IO, sys, "read the image store");
    }
    const struct dirent *entry;
    while ((entry = readdir(stream)) != NULL)
        adopt_entry(store, entry->d_name);
    closedir(stream);
    return 0;
}

int image_store_open(struct image_store **out, const struct image_store_options *options,
                     struct err *e)
{
    CLEANUP_FD int directory = open(options->directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (directory < 0)
        return err_sys(e, ERR_IO, errno, "open %s", options->directory);
    if (mkdirat(directory, "images", 0700) != 0 && errno != EEXIST)
        return err_sys(e, ERR_IO, errno, "make %s/images", options->directory);
    CLEANUP_FD int images =
        openat(directory, "images", O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (images < 0 || fchmod(images, 0700) != 0)
        return err_sys(e, ERR_IO, errno, "open %s/images", options->directory);
    if (sodium_init() < 0)
        return err_set(e, ERR_INTERNAL, "libsodium does not start");

    struct image_store *store = calloc(1, sizeof *store);
    if (store == NULL)
        return err_set(e, ERR_NO_MEMORY, "no memory for the image store");
    store->images_fd = steal_fd(&images);
    store->options = *options;
    store->options.directory = NULL; /* the caller's text */
    store->layers = calloc(options->layers_max + 1, sizeof(struct image_layer *));
    store->removers = calloc(REMOVERS_MAX, sizeof *store->removers);
    int rc = 0;
    if (store->layers == NULL || store->removers == NULL)
        rc = err_set(e, ERR_NO_MEMORY, "no memory for the image store");
    if (rc == 0)
        rc = adopt_all(store, e);
    if (rc != 0) {
        image_store_close(store);
        return rc;
    }
    *out = store;
    return 0;
}

void image_store_close(struct image_store *store)
{
    if (store == NULL)
        return;
    assert_always(store->imports == 0 && store->exports == 0);
    if (store->removers != NULL)
        reap_removers(store, true);
    for (size_t i = 0; i < store->layer_count; i++) {
        int pin = image_mount_drop(store, store->layers[i]);
        memory_close(&pin);
        free(store->layers[i]);
    }
    free(store->layers);
    free(store->removers);
    memory_close(&store->images_fd);
    free(store);
}

/* --- layers ----------------------------------------------------------------------------------- */

int image_layer_hold(struct image_store *store, const char *digest, enum image_kind kind,
                     struct err *e)
{
    struct image_layer *layer = NULL;
    int rc = layer_find_kind(store, digest, kind, &layer, e);
    if (rc == 0)
        layer->users++;
    return rc;
}

void image_layer_release(struct image_store *store, const char *digest)
{
    struct image_layer *layer = image_store_find(store, digest);
    assert_always(layer != NULL && layer->users > 0);
    layer->users--;
}

int image_layer_path_fd(struct image_store *store, const char *digest, enum image_kind kind,
                        int *out_fd, struct err *e)
{
    struct image_layer *layer = NULL;
    int rc = layer_find_kind(store, digest, kind, &layer, e);
    if (rc == 0)
        rc = image_mount_use(store, layer, e);
    if (rc != 0)
        return rc;
    char path[IMAGE_LAYER_NAME_SIZE + sizeof "/tree"];
    image_layer_name(path, digest);
    memcpy(path + strlen(path), "/tree", sizeof "/tree");
    int fd = openat(store->images_fd, path, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return err_sys(e, ERR_IO, errno, "open the layer %s", digest);
    *out_fd = fd;
    return 0;
}

int image_layer_remove(struct image_store *store, const char *digest, struct err *e)
{
    if (!image_digest_valid(digest))
        return err_set(e, ERR_INVALID, "a digest is sha256: and 64 hexadecimal digits");
    bool found;
    size_t at = layer_place(store, digest, &found);
    if (!found)
        return err_set(e, ERR_NOT_FOUND, "the store has no layer %s", digest);
    if (store->layers[at]->users > 0)
        return err_set(e, ERR_CONFLICT, "%u running instances use the layer %s; stop them first",
                       store->layers[at]->users, digest);
    char name[IMAGE_LAYER_NAME_SIZE];
    char tmp[IMAGE_TMP_NAME_SIZE];
    image_layer_name(name, digest);
    image_tmp_name(tmp);
    CLEANUP_FD int pin = image_mount_drop(store, store->layers[at]);
    if (renameat(store->images_fd, name, store->images_fd, tmp) != 0)
        return err_sys(e, ERR_IO, errno, "remove the layer %s", digest);
    free(store->layers[at]);
    store->layer_count--;
    memmove(&store->layers[at], &store->layers[at + 1],
            (store->layer_count - at) * sizeof(struct image_layer *));
    image_store_sweep(store, tmp, steal_fd(&pin));
    return 0;
}

const struct image_layer *const *image_store_list(struct image_store *store, size_t *out_count)
{
    reap_removers(store, false);
    *out_count = store->layer_count;
    return (const struct image_layer *const *)store->layers;
}
