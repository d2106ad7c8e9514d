#include "sandbox/runner/image_digest.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sodium.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/memory.h"
#include "sandbox/runner/image_names.h"

#define READ_SIZE (128 * 1024)
static const char format_line[] = "skerry layer 2\n";

struct walk {
    crypto_hash_sha256_state hash;
    const struct image_bounds *bounds;
    uint64_t bytes;
    uint64_t files;
    char *block; /* READ_SIZE */
    char path[PATH_MAX];
    size_t path_length;
};

static void put_u32(unsigned char *out, uint32_t value)
{
    for (int i = 0; i < 4; i++)
        out[i] = (unsigned char)(value >> (8 * i));
}

static void walk_record(struct walk *w, char type, const struct stat *st, uint64_t size)
{
    unsigned char head[1 + 4 + 4 + 4 + 8 + 4 + 4];
    head[0] = (unsigned char)type;
    put_u32(head + 1, (uint32_t)(st->st_mode & 07777));
    put_u32(head + 5, (uint32_t)st->st_uid);
    put_u32(head + 9, (uint32_t)st->st_gid);
    put_u32(head + 13, (uint32_t)size);
    put_u32(head + 17, (uint32_t)(size >> 32));
    put_u32(head + 21, type == 'f' ? (uint32_t)st->st_mtime : 0);
    put_u32(head + 25, (uint32_t)w->path_length);
    crypto_hash_sha256_update(&w->hash, head, sizeof head);
    crypto_hash_sha256_update(&w->hash, (const unsigned char *)w->path, w->path_length);
}

static int walk_file(struct walk *w, int folder_fd, const char *name, const struct stat *st,
                     struct err *e)
{
    CLEANUP_FD int fd = openat(folder_fd, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0)
        return err_sys(e, ERR_IO, errno, "open %s of the tree", w->path);
    uint64_t size = (uint64_t)st->st_size;
    w->bytes += size;
    if (w->bytes > w->bounds->bytes_max)
        return err_set(e, ERR_LIMIT, "the tree has too many bytes");
    walk_record(w, 'f', st, size);
    uint64_t left = size;
    while (left > 0) {
        ssize_t n = read(fd, w->block, left < READ_SIZE ? (size_t)left : READ_SIZE);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return err_sys(e, ERR_IO, n < 0 ? errno : EIO, "read %s of the tree", w->path);
        crypto_hash_sha256_update(&w->hash, (const unsigned char *)w->block, (unsigned long long)n);
        left -= (uint64_t)n;
    }
    return 0;
}

static int walk_link(struct walk *w, int folder_fd, const char *name, const struct stat *st,
                     struct err *e)
{
    char target[PATH_MAX];
    ssize_t n = readlinkat(folder_fd, name, target, sizeof target);
    if (n < 0)
        return err_sys(e, ERR_IO, errno, "read the link %s of the tree", w->path);
    /* The mode of a link means nothing and differs between file systems. */
    struct stat plain = *st;
    plain.st_mode = S_IFLNK | 0777;
    walk_record(w, 'l', &plain, (uint64_t)n);
    crypto_hash_sha256_update(&w->hash, (const unsigned char *)target, (unsigned long long)n);
    return 0;
}

static int walk_folder(struct walk *w, int folder_fd, uint32_t depth, struct err *e);

static int walk_entry(struct walk *w, int folder_fd, const char *name, uint32_t depth,
                      struct err *e)
{
    struct stat st;
    if (fstatat(folder_fd, name, &st, AT_SYMLINK_NOFOLLOW) != 0)
        return err_sys(e, ERR_IO, errno, "look at %s of the tree", w->path);
    if (++w->files > w->bounds->files_max)
        return err_set(e, ERR_LIMIT, "the tree has too many files");
    if (!S_ISLNK(st.st_mode) && (st.st_mode & (S_ISUID | S_ISGID)) != 0)
        return err_set(e, ERR_INVALID, "%s of the tree is setuid or setgid", w->path);
    if (S_ISREG(st.st_mode))
        return walk_file(w, folder_fd, name, &st, e);
    if (S_ISLNK(st.st_mode))
        return walk_link(w, folder_fd, name, &st, e);
    if (!S_ISDIR(st.st_mode))
        return err_set(e, ERR_INVALID, "%s of the tree is neither file, folder nor link", w->path);
    walk_record(w, 'd', &st, 0);
    CLEANUP_FD int fd = openat(folder_fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return err_sys(e, ERR_IO, errno, "open %s of the tree", w->path);
    return walk_folder(w, fd, depth + 1, e);
}

/* Recursion is bounded by depth_max. */
static int walk_folder(struct walk *w, int folder_fd, uint32_t depth, struct err *e)
{
    if (depth > w->bounds->depth_max)
        return err_set(e, ERR_LIMIT, "the tree is too deep");
    struct image_names names = {0};
    int rc = image_names_read(&names, folder_fd, w->bounds->files_max - w->files, e);
    size_t parent_length = w->path_length;
    for (size_t i = 0; rc == 0 && i < names.count; i++) {
        if (!text_format(w->path + parent_length, sizeof w->path - parent_length, "%s%s",
                         parent_length > 0 ? "/" : "", names.items[i])) {
            rc = err_set(e, ERR_LIMIT, "a path of the tree is too long");
            break;
        }
        w->path_length = strlen(w->path);
        rc = walk_entry(w, folder_fd, names.items[i], depth, e);
        w->path_length = parent_length;
        w->path[parent_length] = '\0';
    }
    image_names_free(&names);
    return rc;
}

int image_digest_tree(struct image_tree *out, int root_fd, enum image_kind kind,
                      const struct image_bounds *bounds, struct err *e)
{
    CLEANUP_FREE struct walk *w = calloc(1, sizeof *w);
    CLEANUP_FREE char *block = malloc(READ_SIZE);
    if (w == NULL || block == NULL)
        return err_set(e, ERR_NO_MEMORY, "no memory to walk a tree");
    w->bounds = bounds;
    w->block = block;
    const unsigned char kind_byte = (unsigned char)kind;
    crypto_hash_sha256_init(&w->hash);
    crypto_hash_sha256_update(&w->hash, (const unsigned char *)format_line, sizeof format_line - 1);
    crypto_hash_sha256_update(&w->hash, &kind_byte, 1);
    int rc = walk_folder(w, root_fd, 1, e);
    if (rc != 0)
        return rc;
    unsigned char sum[crypto_hash_sha256_BYTES];
    crypto_hash_sha256_final(&w->hash, sum);
    memcpy(out->digest, "sha256:", 7);
    sodium_bin2hex(out->digest + 7, sizeof out->digest - 7, sum, sizeof sum);
    out->bytes = w->bytes;
    out->files = w->files;
    return 0;
}

/* --- the end of a tree ------------------------------------------------------------------------ */

/* Empties the folder `fd`: files are unlinked, and a folder that is not empty is moved up below
 * `top_fd` under a name of ours, where its turn comes. So depth costs neither stack nor
 * descriptors, and a tree that was made deep on purpose is deleted like any other. */
static int folder_empty(int fd, int top_fd, uint64_t *counter, struct err *e)
{
    CLEANUP_FD int own = openat(fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (own < 0)
        return err_sys(e, ERR_IO, errno, "open a folder to delete it");
    DIR *stream = fdopendir(own);
    if (stream == NULL)
        return err_sys(e, ERR_IO, errno, "read a folder to delete it");
    (void)steal_fd(&own);
    int rc = 0;
    const struct dirent *entry;
    while (rc == 0 && (entry = readdir(stream)) != NULL) {
        if (image_name_is_dots(entry->d_name) || unlinkat(fd, entry->d_name, 0) == 0)
            continue;
        if (errno != EISDIR && errno != EPERM) {
            rc = err_sys(e, ERR_IO, errno, "delete a file");
            break;
        }
        if (unlinkat(fd, entry->d_name, AT_REMOVEDIR) == 0)
            continue;
        char moved[32];
        (void)text_format(moved, sizeof moved, "moved-%llu", (unsigned long long)(*counter)++);
        if (errno == ENOTEMPTY || errno == EEXIST) {
            if (renameat2(fd, entry->d_name, top_fd, moved, RENAME_NOREPLACE) == 0 ||
                errno == EEXIST)
                continue;
        }
        rc = err_sys(e, ERR_IO, errno, "delete a folder");
    }
    closedir(stream);
    return rc;
}

/* One pass over the top: afterwards at least one level less lies there. */
static int top_pass(int top_fd, uint64_t *counter, bool *out_seen, struct err *e)
{
    CLEANUP_FD int own = openat(top_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (own < 0)
        return err_sys(e, ERR_IO, errno, "open a folder to delete it");
    DIR *stream = fdopendir(own);
    if (stream == NULL)
        return err_sys(e, ERR_IO, errno, "read a folder to delete it");
    (void)steal_fd(&own);
    int rc = 0;
    const struct dirent *entry;
    while (rc == 0 && (entry = readdir(stream)) != NULL) {
        const char *name = entry->d_name;
        if (image_name_is_dots(name))
            continue;
        *out_seen = true;
        if (unlinkat(top_fd, name, 0) == 0 || unlinkat(top_fd, name, AT_REMOVEDIR) == 0)
            continue;
        CLEANUP_FD int fd = openat(top_fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        if (fd < 0)
            rc = err_sys(e, ERR_IO, errno, "open a folder to delete it");
        else
            rc = folder_empty(fd, top_fd, counter, e);
    }
    closedir(stream);
    return rc;
}

int image_tree_empty(int folder_fd, struct err *e)
{
    uint64_t counter = 0;
    int rc = 0;
    for (bool seen = true; rc == 0 && seen;) {
        seen = false;
        rc = top_pass(folder_fd, &counter, &seen, e);
    }
    return rc;
}

int image_tree_remove(int parent_fd, const char *name, struct err *e)
{
    CLEANUP_FD int top = openat(parent_fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (top < 0) {
        if (errno == ENOENT || unlinkat(parent_fd, name, 0) == 0)
            return 0;
        return err_sys(e, ERR_IO, errno, "delete %s", name);
    }
    int rc = image_tree_empty(top, e);
    if (rc != 0)
        return rc;
    if (unlinkat(parent_fd, name, AT_REMOVEDIR) != 0)
        return err_sys(e, ERR_IO, errno, "delete %s", name);
    return 0;
}
