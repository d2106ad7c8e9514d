#include "sandbox/runner/image_export.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/memory.h"
#include "sandbox/runner/image_internal.h"
#include "sandbox/runner/image_names.h"
#include "sandbox/runner/image_process.h"
#include "sandbox/runner/image_sandbox.h"
#include "sandbox/shared/tar.h"

#define BLOCK_BYTES (256 * 1024)
#define END_BYTES (2 * TAR_BLOCK_BYTES)

struct order {
    struct image_bounds bounds;
    uint64_t skip;
};

/* --- in the sandbox ----------------------------------------------------------------------------- */

struct writer {
    const struct order *order;
    uint64_t skip; /* still to be left out */
    uint64_t files;
    size_t used;
    uint8_t *block; /* BLOCK_BYTES */
    struct tar_entry entry;
    uint8_t head[TAR_ENCODED_BYTES_MAX];
};

static int flush(struct writer *w, struct err *e)
{
    size_t at = w->skip < w->used ? (size_t)w->skip : w->used;
    w->skip -= at;
    while (at < w->used) {
        ssize_t n = write(IMAGE_SANDBOX_INPUT_FD, w->block + at, w->used - at);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return err_sys(e, ERR_IO, errno, "write the archive");
        at += (size_t)n;
    }
    w->used = 0;
    return 0;
}

static int put(struct writer *w, const void *data, size_t size, struct err *e)
{
    const uint8_t *from = data;
    while (size > 0) {
        size_t room = BLOCK_BYTES - w->used;
        size_t part = size < room ? size : room;
        memcpy(w->block + w->used, from, part);
        w->used += part;
        from += part;
        size -= part;
        int rc = w->used == BLOCK_BYTES ? flush(w, e) : 0;
        if (rc != 0)
            return rc;
    }
    return 0;
}

static int put_zeros(struct writer *w, size_t size, struct err *e)
{
    static const uint8_t zeros[END_BYTES];
    return put(w, zeros, size, e);
}

/* Exactly `size` bytes: the layer does not change, and an archive with fewer would be none. */
static int put_content(struct writer *w, int fd, uint64_t size, struct err *e)
{
    uint64_t left = size;
    while (left > 0) {
        size_t room = BLOCK_BYTES - w->used;
        ssize_t n = read(fd, w->block + w->used, left < room ? (size_t)left : room);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return err_sys(e, ERR_IO, n < 0 ? errno : EIO, "read %s", w->entry.path);
        w->used += (size_t)n;
        left -= (uint64_t)n;
        int rc = w->used == BLOCK_BYTES ? flush(w, e) : 0;
        if (rc != 0)
            return rc;
    }
    return put_zeros(w, tar_padding(size), e);
}

static int put_entry(struct writer *w, int folder_fd, const char *name, const struct stat *st,
                     struct err *e)
{
    CLEANUP_FD int fd = -1;
    w->entry.mode = (uint32_t)(st->st_mode & 07777);
    w->entry.uid = (uint32_t)st->st_uid;
    w->entry.gid = (uint32_t)st->st_gid;
    w->entry.size = 0;
    w->entry.mtime_s = 0;
    w->entry.link[0] = '\0';
    if (S_ISDIR(st->st_mode)) {
        w->entry.type = TAR_DIRECTORY;
    } else if (S_ISLNK(st->st_mode)) {
        w->entry.type = TAR_SYMLINK;
        ssize_t n = readlinkat(folder_fd, name, w->entry.link, sizeof w->entry.link - 1);
        if (n < 0)
            return err_sys(e, ERR_IO, errno, "read the link %s", w->entry.path);
        w->entry.link[n] = '\0';
    } else if (S_ISREG(st->st_mode)) {
        w->entry.type = TAR_FILE;
        w->entry.mtime_s = st->st_mtime;
        w->entry.size = (uint64_t)st->st_size;
        fd = openat(folder_fd, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
        if (fd < 0)
            return err_sys(e, ERR_IO, errno, "open %s", w->entry.path);
    } else {
        return err_set(e, ERR_INVALID, "%s is neither file, folder nor link", w->entry.path);
    }
    size_t length = tar_encode(&w->entry, w->head);
    if (length == 0)
        return err_set(e, ERR_INVALID, "%s has no place in an archive", w->entry.path);
    int rc = put(w, w->head, length, e);
    return rc == 0 && fd >= 0 ? put_content(w, fd, w->entry.size, e) : rc;
}

/* Recursion is bounded by depth_max. */
static int put_folder(struct writer *w, int folder_fd, size_t path_length, uint32_t depth,
                      struct err *e)
{
    if (depth > w->order->bounds.depth_max)
        return err_set(e, ERR_LIMIT, "the tree is too deep");
    struct image_names names = {0};
    int rc = image_names_read(&names, folder_fd, w->order->bounds.files_max - w->files, e);
    for (size_t i = 0; rc == 0 && i < names.count; i++) {
        const char *name = names.items[i];
        struct stat st;
        w->files++;
        if (!text_format(w->entry.path + path_length, sizeof w->entry.path - path_length, "%s%s",
                         path_length > 0 ? "/" : "", name))
            rc = err_set(e, ERR_LIMIT, "a path of the tree is too long");
        else if (fstatat(folder_fd, name, &st, AT_SYMLINK_NOFOLLOW) != 0)
            rc = err_sys(e, ERR_IO, errno, "look at %s", w->entry.path);
        else
            rc = put_entry(w, folder_fd, name, &st, e);
        if (rc == 0 && S_ISDIR(st.st_mode)) {
            CLEANUP_FD int fd =
                openat(folder_fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
            rc = fd < 0 ? err_sys(e, ERR_IO, errno, "open %s", w->entry.path)
                        : put_folder(w, fd, strlen(w->entry.path), depth + 1, e);
        }
        w->entry.path[path_length] = '\0';
    }
    image_names_free(&names);
    return rc;
}

static int export_run(const void *user, const struct err *failed)
{
    struct err e;
    if (failed != NULL)
        return 1;
    struct writer *w = calloc(1, sizeof *w);
    uint8_t *block = malloc(BLOCK_BYTES);
    int rc = -1;
    if (w != NULL && block != NULL) {
        w->order = user;
        w->skip = w->order->skip;
        w->block = block;
        rc = put_folder(w, IMAGE_SANDBOX_TREE_FD, 0, 0, &e);
        if (rc == 0)
            rc = put_zeros(w, END_BYTES, &e);
        if (rc == 0)
            rc = flush(w, &e);
    }
    free(block);
    free(w);
    return rc != 0;
}

/* --- its process ---------------------------------------------------------------------------------- */

int image_export_main(void)
{
    (void)prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
    (void)prctl(PR_SET_NAME, "skerry-export", 0, 0, 0);
    struct order order;
    if (recv(IMAGE_PROCESS_CONTROL_FD, &order, sizeof order, 0) != (ssize_t)sizeof order)
        return 1;
    const struct image_sandbox sandbox = {
        .tree_fd = IMAGE_PROCESS_FOLDER_FD,
        .input_fd = IMAGE_PROCESS_ARCHIVE_FD,
        .report_fd = IMAGE_PROCESS_CONTROL_FD,
        .read_only = true,
        .file_bytes_max = 0,
        .cpu_seconds_max = order.bounds.total_seconds_max,
        .ids = order.bounds.ids,
    };
    pid_t pid;
    struct err e;
    if (image_sandbox_start(&pid, &sandbox, export_run, &order, &e) != 0)
        return 1;
    /* The archive ends when the child does; nobody reads for ever. */
    (void)close(IMAGE_PROCESS_ARCHIVE_FD);
    CLEANUP_FD int pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
    struct pollfd wait = {.fd = pidfd, .events = POLLIN};
    int ready;
    do
        ready = poll(&wait, 1, (int)order.bounds.total_seconds_max * 1000);
    while (ready < 0 && errno == EINTR);
    if (ready <= 0)
        (void)kill(pid, SIGKILL);
    int status = 0;
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    return status != 0;
}

/* --- the runner's side ---------------------------------------------------------------------------- */

struct image_export {
    struct image_store *store;
    pid_t pid;
    int control_fd;
    char digest[IMAGE_DIGEST_SIZE];
};

int image_export_start(struct image_export **out, struct image_store *store, const char *digest,
                       enum image_kind kind, uint64_t skip, int *out_read_fd, struct err *e)
{
    if (store->exports >= IMAGE_EXPORTS_MAX)
        return err_set(e, ERR_LIMIT, "%zu exports are running; try again when one has ended",
                       store->exports);
    CLEANUP_FD int tree = -1;
    int rc = image_layer_path_fd(store, digest, kind, &tree, e);
    if (rc != 0)
        return rc;
    struct image_export *x = calloc(1, sizeof *x);
    if (x == NULL)
        return err_set(e, ERR_NO_MEMORY, "no memory for an export");
    x->store = store;
    x->control_fd = -1;
    (void)text_copy(x->digest, sizeof x->digest, digest);
    const struct order order = {.skip = skip,
                                .bounds = kind == IMAGE_KIND_IMAGE ? store->options.image
                                                                   : store->options.source};
    rc = image_layer_hold(store, digest, kind, e);
    if (rc == 0) {
        const struct image_process process = {.argument = IMAGE_EXPORT_ARGUMENT,
                                              .order = &order,
                                              .order_size = sizeof order,
                                              .folder_fd = tree,
                                              .writes = true};
        rc = image_process_start(&x->pid, &x->control_fd, out_read_fd, &process, e);
        if (rc != 0)
            image_layer_release(store, digest);
    }
    if (rc != 0) {
        free(x);
        return rc;
    }
    store->exports++;
    *out = x;
    return 0;
}

int image_export_fd(const struct image_export *x)
{
    return x->control_fd;
}

void image_export_end(struct image_export *x)
{
    /* Its child dies with it. One that ended by itself is only reaped. */
    (void)kill(x->pid, SIGKILL);
    while (waitpid(x->pid, NULL, 0) < 0 && errno == EINTR)
        ;
    image_layer_release(x->store, x->digest);
    memory_close(&x->control_fd);
    x->store->exports--;
    free(x);
}
