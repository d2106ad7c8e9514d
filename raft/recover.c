/* Folders of registries that are not running: what is left after the loss of a majority, and what comes out
 * of a file.
 *
 *     recover:  folder -> snapshot and log, all of it applied -> generation raised -> new folder
 *     load:     file ---------------------------------------> generation raised -> new folder
 *
 * The new folder holds one snapshot whose configuration has this node as the only voter. It is made beside
 * the old one and takes its place at once, so that whatever goes wrong leaves the old one as it was. */
#include <errno.h>
#include <fcntl.h>
#include <raft/uv.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/lock.h"
#include "base/memory.h"
#include "raft/registry.h"
#include "raft/snapshot.h"
#include "raft/spare.h"
#include "raft/state.h"
#include "raft/transport.h"

/* --- a folder through libraft's eyes ------------------------------------------------------------------ */

/* Nothing is opened but the files: no raft runs on it. */
struct folder {
    uv_loop_t loop;
    struct raft_io disk;
    struct transport *transport;
    uv_check_t closer;
    bool closed;
};

static int folder_open(struct folder *f, const char *path, node_id id, struct err *e)
{
    char address[24];
    memset(f, 0, sizeof *f);
    text_format(address, sizeof address, "%llu", (unsigned long long)id);
    int rc = uv_loop_init(&f->loop);
    if (rc != 0)
        return err_sys(e, ERR_IO, -rc, "open %s: a loop", path);
    const struct transport_options options = {.secure = NULL};
    rc = transport_new(&f->transport, &f->loop, &options, e);
    if (rc < 0)
        goto fail_loop;
    int rv = raft_uv_init(&f->disk, &f->loop, path, transport_uv(f->transport));
    if (rv != 0) {
        rc = err_set(e, ERR_IO, "open the log in %s: %s", path, raft_strerror(rv));
        goto fail_transport;
    }
    raft_uv_set_snapshot_compression(&f->disk, false);
    raft_uv_set_auto_recovery(&f->disk, false);
    rv = f->disk.init(&f->disk, id, address);
    if (rv == 0)
        return 0;
    rc = err_set(e, ERR_IO, "open the log in %s: %s (%.120s)", path, raft_strerror(rv),
                 f->disk.errmsg);
    raft_uv_close(&f->disk);
fail_transport:
    transport_free(f->transport);
fail_loop:
    (void)uv_loop_close(&f->loop);
    return rc;
}

static void folder_closed_cb(struct raft_io *disk)
{
    struct folder *f = container_of(disk, struct folder, disk);
    f->closed = true;
    uv_close((uv_handle_t *)&f->closer, NULL);
}

static void closer_cb(uv_check_t *closer)
{
    struct folder *f = container_of(closer, struct folder, closer);
    uv_check_stop(closer);
    f->disk.close(&f->disk, folder_closed_cb);
}

/* In the check phase of the loop, for the reason that raft/replica.c gives. */
static void folder_close(struct folder *f)
{
    uv_check_init(&f->loop, &f->closer);
    uv_check_start(&f->closer, closer_cb);
    while (!f->closed)
        uv_run(&f->loop, UV_RUN_NOWAIT);
    uv_run(&f->loop, UV_RUN_DEFAULT);
    raft_uv_close(&f->disk);
    transport_free(f->transport);
    int rc = uv_loop_close(&f->loop);
    assert_always(rc == 0);
}

/* --- what a folder holds -------------------------------------------------------------------------------- */

struct contents {
    raft_term term;
    struct raft_snapshot *snapshot; /* NULL: none */
    raft_index start_index;         /* of the first entry */
    struct raft_entry *entries;
    size_t count;
};

static void contents_free(struct contents *c)
{
    void *batch = NULL;
    for (size_t i = 0; i < c->count; i++) {
        if (c->entries[i].batch == NULL)
            raft_free(c->entries[i].buf.base);
        else if (c->entries[i].batch != batch)
            raft_free(c->entries[i].batch);
        batch = c->entries[i].batch;
    }
    raft_free(c->entries);
    if (c->snapshot == NULL)
        return;
    raft_configuration_close(&c->snapshot->configuration);
    for (unsigned i = 0; i < c->snapshot->n_bufs; i++)
        raft_free(c->snapshot->bufs[i].base);
    raft_free(c->snapshot->bufs);
    raft_free(c->snapshot);
}

static int contents_load(struct contents *c, const char *path, node_id id, struct err *e)
{
    struct folder f;
    raft_id voted_for;
    memset(c, 0, sizeof *c);
    int rc = folder_open(&f, path, id, e);
    if (rc < 0)
        return rc;
    int rv = f.disk.load(&f.disk, &c->term, &voted_for, &c->snapshot, &c->start_index, &c->entries,
                         &c->count);
    if (rv != 0) {
        rc = err_set(e, ERR_IO, "read the log in %s: %s (%.120s)", path, raft_strerror(rv),
                     f.disk.errmsg);
        memset(c, 0, sizeof *c);
    }
    folder_close(&f);
    if (rc == 0 && c->snapshot == NULL && c->count == 0)
        return err_set(e, ERR_NOT_FOUND, "%s holds no registry", path);
    return rc;
}

static raft_index last_index(const struct contents *c)
{
    raft_index last = c->start_index + c->count - 1;
    return c->snapshot != NULL && c->snapshot->index > last ? c->snapshot->index : last;
}

/* All of it, also what nobody has called committed: it may have been. */
static int contents_apply(const struct contents *c, struct state *state, struct err *e)
{
    raft_index done = 0;
    if (c->snapshot != NULL) {
        struct state_content content;
        const struct raft_buffer *bytes = &c->snapshot->bufs[0];
        int rc = snapshot_decode(&content, bytes->base, bytes->len, e);
        if (rc < 0)
            return err_wrap(e, "the snapshot of entry %llu", c->snapshot->index);
        state_restore(state, &content);
        done = c->snapshot->index;
    }
    for (size_t i = 0; i < c->count; i++) {
        const struct raft_entry *entry = &c->entries[i];
        raft_index index = c->start_index + i;
        struct state_outcome outcome;
        if (index <= done || entry->type != RAFT_COMMAND)
            continue;
        int rc = state_apply(state, index, entry->buf.base, entry->buf.len, &outcome, e);
        if (rc < 0)
            return err_wrap(e, "entry %llu of the log", index);
    }
    return 0;
}

/* --- a new folder ------------------------------------------------------------------------------------------ */

struct put {
    struct raft_io_snapshot_put request;
    bool done;
    int status;
};

static void put_cb(struct raft_io_snapshot_put *request, int status)
{
    struct put *put = container_of(request, struct put, request);
    put->done = true;
    put->status = status;
}

/* `snapshot` into the empty folder `path`, and the term. */
static int folder_fill(const char *path, node_id id, raft_term term,
                       const struct raft_snapshot *snapshot, struct err *e)
{
    struct folder f;
    struct put put = {.done = false};
    int rc = folder_open(&f, path, id, e);
    if (rc < 0)
        return rc;
    int rv = f.disk.set_term(&f.disk, term);
    if (rv == 0)
        rv = f.disk.snapshot_put(&f.disk, 0, &put.request, snapshot, put_cb);
    while (rv == 0 && !put.done)
        uv_run(&f.loop, UV_RUN_ONCE);
    if (rv == 0)
        rv = put.status;
    if (rv != 0)
        rc = err_set(e, ERR_IO, "write a snapshot in %s: %s (%.120s)", path, raft_strerror(rv),
                     f.disk.errmsg);
    folder_close(&f);
    return rc;
}

/* The new folder `path` of a cluster with this node as the only voter, whose log begins behind `index`. */
static int folder_make(const char *path, node_id id, raft_term term, raft_index index,
                       const struct state *state, struct err *e)
{
    char address[24];
    struct buffer bytes;
    struct raft_buffer part;
    struct raft_snapshot snapshot = {
        .index = index, .term = term, .configuration_index = index, .bufs = &part, .n_bufs = 1};
    text_format(address, sizeof address, "%llu", (unsigned long long)id);
    if (mkdir(path, 0700) != 0)
        return err_sys(e, ERR_IO, errno, "make %s (left over from an earlier try? remove it)",
                       path);
    buffer_init(&bytes, SNAPSHOT_BYTES_MAX);
    int rc = snapshot_encode(state_content(state), &bytes, e);
    if (rc == 0) {
        part = (struct raft_buffer){.base = bytes.data, .len = bytes.length};
        raft_configuration_init(&snapshot.configuration);
        if (raft_configuration_add(&snapshot.configuration, id, address, RAFT_VOTER) != 0)
            rc = err_set(e, ERR_NO_MEMORY, "make %s: no memory", path);
        else
            rc = folder_fill(path, id, term, &snapshot, e);
        raft_configuration_close(&snapshot.configuration);
    }
    buffer_free(&bytes);
    return rc;
}

/* `path` without slashes at its end, and `suffix`. */
static char *beside(const char *path, const char *suffix)
{
    size_t length = strlen(path);
    while (length > 1 && path[length - 1] == '/')
        length--;
    return text_new("%.*s%s", (int)length, path, suffix);
}

/* What was renamed is on disk. */
static int parent_sync(const char *path, struct err *e)
{
    CLEANUP_FREE char *parent = beside(path, "");
    if (parent == NULL)
        return err_set(e, ERR_NO_MEMORY, "sync %s: no memory", path);
    char *slash = strrchr(parent, '/');
    if (slash != NULL)
        slash[slash == parent ? 1 : 0] = '\0';
    const char *name = slash == NULL ? "." : parent;
    CLEANUP_FD int fd = open(name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 || fsync(fd) != 0)
        return err_sys(e, ERR_IO, errno, "sync %s", name);
    return 0;
}

static int folder_lock(int *out, const char *path, struct err *e)
{
    CLEANUP_FD int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return err_sys(e, errno == ENOENT ? ERR_NOT_FOUND : ERR_IO, errno, "open %s", path);
    int sys = lock_file(fd);
    if (sys == EAGAIN)
        return err_set(e, ERR_CONFLICT, "%s is in use: stop the node first", path);
    if (sys != 0)
        return err_sys(e, ERR_IO, sys, "lock %s", path);
    *out = steal_fd(&fd);
    return 0;
}

/* The new folder takes the place of the old one, which stays beside it as *out_aside. */
static int folders_swap(const char *path, const char *made, char **out_aside, struct err *e)
{
    char time[CLOCK_RFC3339_SIZE];
    clock_format_rfc3339(clock_wall_ms(), time);
    CLEANUP_FREE char *suffix = text_new(".lost-%s", time);
    CLEANUP_FREE char *aside = suffix == NULL ? NULL : beside(path, suffix);
    if (aside == NULL)
        return err_set(e, ERR_NO_MEMORY, "put %s aside: no memory", path);
    /* At once, where the file system can: at no time there is neither. */
    if (renameat2(AT_FDCWD, made, AT_FDCWD, path, RENAME_EXCHANGE) == 0) {
        if (rename(made, aside) != 0)
            return err_sys(e, ERR_IO, errno,
                           "the recovered registry is in place, but the old one was not put aside: "
                           "move %s to %s",
                           made, aside);
    } else if (rename(path, aside) != 0) {
        return err_sys(e, ERR_IO, errno, "put %s aside as %s", path, aside);
    } else if (rename(made, path) != 0) {
        return err_sys(e, ERR_IO, errno, "move %s to %s; the old data is in %s", made, path, aside);
    }
    *out_aside = steal_pointer(&aside);
    return parent_sync(path, e);
}

/* --- recover ----------------------------------------------------------------------------------------------- */

struct others {
    struct buffer text;
    node_id id;
};

static bool other_visit(void *user, const void *key, size_t key_length, struct map_value *value)
{
    struct others *o = user;
    const struct registry_node *n = container_of(value, const struct registry_node, value);
    (void)key;
    (void)key_length;
    if (n->id != o->id)
        (void)buffer_printf(&o->text, "%s%s", o->text.length == 0 ? "" : ", ", n->name);
    return true;
}

static void recovered_say(char *out, size_t size, const struct contents *c,
                          const struct state *state, node_id id, const char *aside)
{
    struct others others = {.id = id};
    buffer_init(&others.text, 2048);
    map_walk(&state_content(state)->maps[STATE_NODES], NULL, 0, other_visit, &others);
    (void)text_format(
        out, size,
        "kept: all that this node had, up to entry %llu of term %llu\n"
        "lost, maybe: what other nodes acknowledged after that\n"
        "must not come back as they are: %.*s; wipe their data and let them join anew\n"
        "the old data: %s\n",
        (unsigned long long)last_index(c), (unsigned long long)c->term,
        others.text.length > 0 ? (int)others.text.length : 6,
        others.text.length > 0 ? others.text.data : "nobody", aside);
    buffer_free(&others.text);
}

static int recover(const char *made, node_id id, const struct contents *c, struct state *state,
                   struct err *e)
{
    int rc = contents_apply(c, state, e);
    if (rc == 0)
        rc = state_raise_generation(state, e);
    if (rc < 0)
        return rc;
    /* A term of its own, though nobody of the older generation is heard any more. */
    return folder_make(made, id, c->term + 1, last_index(c), state, e);
}

int registry_recover(const char *directory, node_id id, char *out, size_t size, struct err *e)
{
    struct contents contents;
    struct state *state = NULL;
    CLEANUP_FD int lock = -1;
    CLEANUP_FREE char *made = beside(directory, ".recovered");
    CLEANUP_FREE char *aside = NULL;
    if (id == 0 || made == NULL)
        return err_set(e, ERR_INVALID, "recover %s: the id of this node is needed", directory);
    int rc = folder_lock(&lock, directory, e);
    if (rc < 0)
        return rc;
    if (spare_mark_read(directory) != 0)
        return err_set(
            e, ERR_CONFLICT,
            "recover %s: this node was a spare; it read the registry through another, and its "
            "own log is empty or old. Recover on a node that voted or stood by",
            directory);
    rc = contents_load(&contents, directory, id, e);
    if (rc == 0)
        rc = state_new(&state, e);
    if (rc == 0)
        rc = recover(made, id, &contents, state, e);
    if (rc == 0)
        rc = folders_swap(directory, made, &aside, e);
    if (rc == 0)
        recovered_say(out, size, &contents, state, id, aside);
    if (state != NULL)
        state_free(state);
    contents_free(&contents);
    return rc < 0 ? err_wrap(e, "recover the registry") : 0;
}

/* --- files ------------------------------------------------------------------------------------------------- */

int registry_root_save(const struct registry_root *root, int fd, struct err *e)
{
    struct buffer bytes;
    buffer_init(&bytes, SNAPSHOT_BYTES_MAX);
    int rc = snapshot_encode(&root->content, &bytes, e);
    for (size_t done = 0; rc == 0 && done < bytes.length;) {
        ssize_t n = write(fd, bytes.data + done, bytes.length - done);
        if (n > 0)
            done += (size_t)n;
        else if (errno != EINTR)
            rc = err_sys(e, ERR_IO, n == 0 ? ENOSPC : errno, "write the snapshot");
    }
    buffer_free(&bytes);
    return rc < 0 ? err_wrap(e, "save the registry") : 0;
}

int registry_snapshot_save(struct registry *r, int fd, struct err *e)
{
    struct registry_root *root = registry_root(r);
    int rc = registry_root_save(root, fd, e);
    registry_root_release(root);
    return rc;
}

static int file_read(int fd, struct buffer *out, struct err *e)
{
    enum { PIECE = 1 << 20 };
    for (;;) {
        if (!buffer_reserve(out, PIECE))
            return err_set(e, ERR_LIMIT, "the snapshot is larger than any may be, or no memory");
        ssize_t n = read(fd, out->data + out->length, PIECE);
        if (n == 0)
            return 0;
        if (n > 0)
            out->length += (size_t)n;
        else if (errno != EINTR)
            return err_sys(e, ERR_IO, errno, "read the snapshot");
    }
}

static int load(const char *directory, const char *made, node_id id, int fd, struct state *state,
                struct err *e)
{
    struct buffer bytes;
    struct state_content content = {0};
    buffer_init(&bytes, SNAPSHOT_BYTES_MAX);
    int rc = file_read(fd, &bytes, e);
    if (rc == 0)
        rc = snapshot_decode(&content, bytes.data, bytes.length, e);
    buffer_free(&bytes);
    if (rc < 0)
        return rc;
    raft_index index = content.index > 0 ? content.index : 1;
    state_restore(state, &content);
    rc = state_raise_generation(state, e);
    if (rc == 0)
        rc = folder_make(made, id, 1, index, state, e);
    if (rc < 0)
        return rc;
    /* Takes the place of an empty folder, never of another. */
    if (rename(made, directory) != 0)
        return errno == ENOTEMPTY || errno == EEXIST
                   ? err_set(e, ERR_EXISTS, "%s is not empty: move it away first", directory)
                   : err_sys(e, ERR_IO, errno, "move %s to %s", made, directory);
    return parent_sync(directory, e);
}

/* Whether it is there and holds something is told before a large file is read. */
static int directory_check(const char *directory, struct err *e)
{
    if (rmdir(directory) == 0 || errno == ENOENT)
        return 0;
    return errno == ENOTEMPTY || errno == EEXIST
               ? err_set(e, ERR_EXISTS, "%s is not empty: move it away first", directory)
               : err_sys(e, ERR_IO, errno, "make %s anew", directory);
}

int registry_snapshot_load(const char *directory, node_id id, int fd, struct err *e)
{
    struct state *state;
    CLEANUP_FREE char *made = beside(directory, ".restored");
    if (id == 0 || made == NULL)
        return err_set(e, ERR_INVALID, "restore to %s: the id of this node is needed", directory);
    int rc = directory_check(directory, e);
    if (rc == 0)
        rc = state_new(&state, e);
    if (rc < 0)
        return err_wrap(e, "restore the registry");
    rc = load(directory, made, id, fd, state, e);
    state_free(state);
    return rc < 0 ? err_wrap(e, "restore the registry") : 0;
}
