/* The process of an import. It starts sandboxed children one after the other, unpack and digest, and
 * believes of the first only whether it failed; what lies in the store is what the second saw. An
 * image is written as erofs then, and the second looks again, at what the kernel shows of that. */
#include "sandbox/runner/image.h"

#include <errno.h>
#include <fcntl.h>
#include <locale.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "sandbox/runner/image_digest.h"
#include "sandbox/runner/image_internal.h"
#include "sandbox/runner/image_place.h"
#include "sandbox/runner/image_process.h"
#include "sandbox/runner/image_sandbox.h"
#include "sandbox/shared/wire.h"

#define READ_SIZE (256 * 1024)
#define TRAILER_BYTES_MAX (1024 * 1024)       /* padding behind the end of an archive */
#define FREE_BYTES_MIN (512ull * 1024 * 1024) /* or a twentieth of the disk, if that is less */

/* --- in the sandboxes ------------------------------------------------------------------------- */

struct input {
    char *block;
    int idle_ms;
    uint64_t bytes;
};

static int report_send(int fd, const struct image_report *report)
{
    /* Below PIPE_BUF: whole or not at all. */
    return write(fd, report, sizeof *report) == (ssize_t)sizeof *report ? 0 : 1;
}

static void report_fill(struct image_report *report, const struct err *e)
{
    report->code = (uint32_t)e->code;
    report->sys = e->sys;
    (void)text_copy(report->message, sizeof report->message, e->msg);
}

static ssize_t input_read(struct input *in)
{
    struct pollfd wait = {.fd = IMAGE_SANDBOX_INPUT_FD, .events = POLLIN};
    int rc;
    do
        rc = poll(&wait, 1, in->idle_ms);
    while (rc < 0 && errno == EINTR);
    if (rc == 0)
        errno = ETIMEDOUT;
    ssize_t n = rc > 0 ? read(IMAGE_SANDBOX_INPUT_FD, in->block, READ_SIZE) : -1;
    in->bytes += n > 0 ? (uint64_t)n : 0;
    return n;
}

static ssize_t input_read_cb(struct archive *reader, void *user, const void **out)
{
    struct input *in = user;
    ssize_t n = input_read(in);
    if (n < 0)
        archive_set_error(reader, errno, "reading it failed");
    *out = in->block;
    return n;
}

/* Whoever sends the archive also sends the padding behind its end, and must not die of SIGPIPE. */
static int input_drain(struct input *in, struct err *e)
{
    const uint64_t end = in->bytes;
    ssize_t n;
    while ((n = input_read(in)) > 0) {
        if (in->bytes - end > TRAILER_BYTES_MAX)
            return err_set(e, ERR_INVALID, "there is something behind the end of the archive");
    }
    if (n == 0)
        return 0;
    return err_sys(e, errno == ETIMEDOUT ? ERR_TIMEOUT : ERR_IO, errno, "read the archive");
}

static uint64_t free_bytes_min(int tree_fd)
{
    struct statvfs fs;
    if (fstatvfs(tree_fd, &fs) != 0)
        return FREE_BYTES_MIN;
    uint64_t part = (uint64_t)fs.f_blocks * fs.f_frsize / 20;
    return part < FREE_BYTES_MIN ? part : FREE_BYTES_MIN;
}

static int unpack(const struct image_order *order, struct image_count *count, struct err *e)
{
    CLEANUP_FREE char *block = malloc(READ_SIZE);
    struct archive *reader = image_reader_new();
    if (block == NULL || reader == NULL) {
        archive_read_free(reader);
        return err_set(e, ERR_NO_MEMORY, "no memory to read an archive");
    }
    struct input in = {.block = block, .idle_ms = (int)order->bounds.idle_seconds_max * 1000};
    struct image_place place = {
        .root_fd = IMAGE_SANDBOX_TREE_FD,
        .folders_max = order->bounds.files_max,
        .free_bytes_min = free_bytes_min(IMAGE_SANDBOX_TREE_FD),
    };
    struct image_sink sink;
    image_place_open(&place, &sink);
    int rc;
    if (archive_read_open(reader, &in, NULL, input_read_cb, NULL) != ARCHIVE_OK)
        rc = image_reader_refusal(reader, &order->bounds, e);
    else
        rc =
            image_reader_run(reader, (enum image_kind)order->kind, &order->bounds, &sink, count, e);
    if (rc == 0)
        rc = input_drain(&in, e);
    else if (in.bytes == 0 && rc == -(int)ERR_INVALID)
        rc = err_set(e, ERR_INVALID, "the archive is empty");
    image_place_close(&place);
    archive_read_free(reader);
    return rc;
}

static int unpack_run(const void *user, const struct err *failed)
{
    struct image_report report = {0};
    struct image_count count = {0};
    struct err e;
    if (failed != NULL)
        report_fill(&report, failed);
    else if (unpack(user, &count, &e) != 0)
        report_fill(&report, &e);
    return report_send(IMAGE_SANDBOX_REPORT_FD, &report);
}

static int digest_run(const void *user, const struct err *failed)
{
    const struct image_order *order = user;
    struct image_report report = {0};
    struct image_tree tree;
    struct err e;
    if (failed != NULL) {
        report_fill(&report, failed);
    } else if (image_digest_tree(&tree, IMAGE_SANDBOX_TREE_FD, (enum image_kind)order->kind,
                                 &order->bounds, &e) != 0) {
        report_fill(&report, &e);
    } else {
        memcpy(report.digest, tree.digest, sizeof report.digest);
        report.bytes = tree.bytes;
        report.files = tree.files;
    }
    return report_send(IMAGE_SANDBOX_REPORT_FD, &report);
}

/* --- outside ---------------------------------------------------------------------------------- */

/* Runs one child and takes its report, every byte of which may be hostile. */
static int run_child(struct image_sandbox *sandbox, const struct image_order *order,
                     int (*run)(const void *, const struct err *), uint64_t deadline_ms,
                     struct image_report *out, struct err *e)
{
    int ends[2];
    if (pipe2(ends, O_CLOEXEC | O_NONBLOCK) != 0)
        return err_sys(e, ERR_IO, errno, "make a pipe");
    CLEANUP_FD int read_end = ends[0];
    CLEANUP_FD int write_end = ends[1];
    sandbox->report_fd = write_end;
    pid_t pid;
    int status = 0;
    int rc = image_sandbox_start(&pid, sandbox, run, order, e);
    if (rc == 0)
        rc = image_sandbox_wait(pid, deadline_ms, &status, e);
    if (rc != 0)
        return rc;
    if (read(read_end, out, sizeof *out) != (ssize_t)sizeof *out)
        return err_set(e, WIFSIGNALED(status) ? ERR_LIMIT : ERR_INTERNAL,
                       "the child of an import ended without a report (%s %d)",
                       WIFSIGNALED(status) ? "signal" : "exit",
                       WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
    out->message[sizeof out->message - 1] = '\0';
    out->digest[sizeof out->digest - 1] = '\0';
    if (out->code >= ERR_CODE_COUNT)
        return err_set(e, ERR_INTERNAL, "the report of an import makes no sense");
    if (out->code != ERR_OK) {
        char shown[sizeof out->message];
        return err_set(e, (enum err_code)out->code, "%s",
                       image_printable(shown, sizeof shown, out->message));
    }
    return 0;
}

static int make_tree(int layer_fd, uint32_t owner, int *out_fd, struct err *e)
{
    if (mkdirat(layer_fd, "tree", 0755) != 0)
        return err_sys(e, ERR_IO, errno, "make the tree of an import");
    CLEANUP_FD int fd = openat(layer_fd, "tree", O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0 || fchown(fd, owner, owner) != 0 || fchmod(fd, 0755) != 0)
        return err_sys(e, ERR_IO, errno, "make the tree of an import");
    *out_fd = steal_fd(&fd);
    return 0;
}

/* Digests the tree below `tree_fd`, in a sandbox that can only read it. */
static int digest_child(int tree_fd, const struct image_order *order, uint64_t deadline_ms,
                        struct image_report *report, struct err *e)
{
    CLEANUP_FD int null = open("/dev/null", O_RDONLY | O_CLOEXEC);
    struct image_sandbox sandbox = {.tree_fd = tree_fd,
                                    .input_fd = null,
                                    .read_only = true,
                                    .file_bytes_max = order->bounds.bytes_max,
                                    .cpu_seconds_max = order->bounds.total_seconds_max,
                                    .ids = order->bounds.ids};
    memset(report, 0, sizeof *report);
    int rc = run_child(&sandbox, order, digest_run, deadline_ms, report, e);
    if (rc == 0 && !image_digest_valid(report->digest))
        rc = err_set(e, ERR_INTERNAL, "the report of an import makes no sense");
    return rc;
}

/* --- erofs ------------------------------------------------------------------------------------ */

/* Mounts what was written over the tree, and looks whether it shows the same. */
static int mount_checked(int layer_fd, const struct image_order *order, const char *digest,
                         uint64_t deadline_ms, int *out_mount_fd, struct err *e)
{
    struct image_report shown;
    int rc = image_erofs_mount(layer_fd, order->by_loop, e);
    if (rc != 0)
        return rc;
    CLEANUP_FD int fd = openat(layer_fd, "tree", O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        rc = err_sys(e, ERR_IO, errno, "open what was mounted");
    if (rc == 0)
        rc = digest_child(fd, order, deadline_ms, &shown, e);
    if (rc == 0 && strcmp(shown.digest, digest) != 0)
        rc = err_set(e, ERR_INTERNAL, "what was written has the digest %s", shown.digest);
    if (rc == 0)
        rc = image_erofs_detach(layer_fd, out_mount_fd, e);
    if (rc != 0)
        (void)image_erofs_unmount(layer_fd);
    return rc;
}

static int write_erofs(int layer_fd, int tree_fd, const struct image_order *order,
                       const struct image_report *report, uint64_t deadline_ms, int *out_mount_fd,
                       struct err *e)
{
    const struct image_erofs_order erofs = {.tool = order->tool,
                                            .layer_fd = layer_fd,
                                            .tree_fd = tree_fd,
                                            .bytes = report->bytes,
                                            .files = report->files,
                                            .free_bytes_min = free_bytes_min(tree_fd),
                                            .deadline_ms = deadline_ms,
                                            .ids = order->bounds.ids};
    int rc = image_erofs_write(&erofs, e);
    if (rc != 0)
        return rc;
    rc = mount_checked(layer_fd, order, report->digest, deadline_ms, out_mount_fd, e);
    if (rc != 0)
        (void)unlinkat(layer_fd, IMAGE_EROFS_FILE, 0);
    return rc;
}

/* An image stays as it is when it cannot be erofs. Else the mount is the runner's: what the kernel has
 * read of it makes the next start as quick as one from a folder that was just written. */
static int shape(int layer_fd, int tree_fd, const struct image_order *order,
                 const struct image_report *report, uint64_t deadline_ms, int *out_mount_fd,
                 struct err *e)
{
    struct err why;
    if (order->tool[0] == '\0')
        return 0;
    if (write_erofs(layer_fd, tree_fd, order, report, deadline_ms, out_mount_fd, &why) != 0) {
        log_warn("images", "%s is kept as a folder: %s", report->digest, why.msg);
        return 0;
    }
    int rc = image_tree_empty(tree_fd, e);
    if (rc == 0 && (fchown(tree_fd, 0, 0) != 0 || fchmod(tree_fd, 0700) != 0))
        rc = err_sys(e, ERR_IO, errno, "lock the place of a mount");
    return rc;
}

/* --- the whole -------------------------------------------------------------------------------- */

/* Whether the store has it. One that is erofs where that cannot be mounted any more makes room. */
static bool is_there(const struct image_order *order, const char *name)
{
    char path[IMAGE_LAYER_NAME_SIZE + sizeof IMAGE_EROFS_FILE + 1];
    if (faccessat(IMAGE_PROCESS_FOLDER_FD, name, F_OK, AT_SYMLINK_NOFOLLOW) != 0)
        return false;
    (void)text_format(path, sizeof path, "%s/" IMAGE_EROFS_FILE, name);
    struct err ignored;
    return order->mounts ||
           faccessat(IMAGE_PROCESS_FOLDER_FD, path, F_OK, AT_SYMLINK_NOFOLLOW) != 0 ||
           image_tree_remove(IMAGE_PROCESS_FOLDER_FD, name, &ignored) != 0;
}

/* What is renamed is on the disk before its name is. */
static int publish(int layer_fd, const struct image_order *order, const char *name,
                   struct image_report *report, bool mounted, struct err *e)
{
    struct image_layer layer = {
        .kind = (enum image_kind)order->kind, .bytes = report->bytes, .files = report->files};
    int rc = image_meta_write(layer_fd, &layer, e);
    if (rc != 0)
        return rc;
    if (syncfs(layer_fd) != 0)
        return err_sys(e, ERR_IO, errno, "write the layer to the disk");
    if (mounted)
        image_erofs_forget(layer_fd);
    if (renameat2(IMAGE_PROCESS_FOLDER_FD, order->tmp_name, IMAGE_PROCESS_FOLDER_FD, name,
                  RENAME_NOREPLACE) != 0) {
        if (errno != EEXIST)
            return err_sys(e, ERR_IO, errno, "name the layer");
        report->existed = 1;
        return image_tree_remove(IMAGE_PROCESS_FOLDER_FD, order->tmp_name, e);
    }
    if (fsync(IMAGE_PROCESS_FOLDER_FD) != 0)
        return err_sys(e, ERR_IO, errno, "write the store to the disk");
    return 0;
}

/* What it leaves of a layer that failed is the caller's to remove. */
static int import_layer(const struct image_order *order, struct image_report *report,
                        int *out_mount_fd, struct err *e)
{
    const uint64_t deadline_ms =
        clock_monotonic_ms() + (uint64_t)order->bounds.total_seconds_max * 1000;
    if (mkdirat(IMAGE_PROCESS_FOLDER_FD, order->tmp_name, 0700) != 0)
        return err_sys(e, ERR_IO, errno, "make the folder of an import");
    CLEANUP_FD int layer_fd = openat(IMAGE_PROCESS_FOLDER_FD, order->tmp_name,
                                     O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (layer_fd < 0)
        return err_sys(e, ERR_IO, errno, "open the folder of an import");
    CLEANUP_FD int tree_fd = -1;
    int rc = make_tree(layer_fd, order->bounds.ids.first, &tree_fd, e);
    if (rc != 0)
        return rc;
    struct image_sandbox sandbox = {
        .tree_fd = tree_fd,
        .input_fd = IMAGE_PROCESS_ARCHIVE_FD,
        .file_bytes_max = order->bounds.bytes_max,
        .cpu_seconds_max = order->bounds.total_seconds_max,
        .ids = order->bounds.ids,
    };
    rc = run_child(&sandbox, order, unpack_run, deadline_ms, report, e);
    if (rc != 0)
        return rc;
    /* Process 1 of its pid namespace is gone, and with it every process that could still write. */
    rc = digest_child(tree_fd, order, deadline_ms, report, e);
    if (rc != 0)
        return rc;
    if (order->want_digest[0] != '\0' && strcmp(order->want_digest, report->digest) != 0)
        return err_set(e, ERR_INVALID, "the content has the digest %s, not %s", report->digest,
                       order->want_digest);
    char name[IMAGE_LAYER_NAME_SIZE];
    image_layer_name(name, report->digest);
    if (is_there(order, name)) {
        report->existed = 1;
        return image_tree_remove(IMAGE_PROCESS_FOLDER_FD, order->tmp_name, e);
    }
    rc = shape(layer_fd, tree_fd, order, report, deadline_ms, out_mount_fd, e);
    return rc == 0 ? publish(layer_fd, order, name, report, *out_mount_fd >= 0, e) : rc;
}

int image_import_main(void)
{
    (void)prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
    (void)prctl(PR_SET_NAME, "skerry-import", 0, 0, 0);
    /* Names in pax headers are UTF-8; libarchive needs a locale that can hold them. This one is
     * part of libc. */
    (void)setlocale(LC_CTYPE, "C.UTF-8");
    struct image_order order;
    if (recv(IMAGE_PROCESS_CONTROL_FD, &order, sizeof order, 0) != (ssize_t)sizeof order)
        return 1;
    struct image_report report = {0};
    struct err e;
    CLEANUP_FD int mount = -1;
    int rc = import_layer(&order, &report, &mount, &e);
    if (rc != 0) {
        memory_close(&mount);
        struct err ignored;
        /* Whoever still sends shall notice now, not after the deletion. */
        (void)close(IMAGE_PROCESS_ARCHIVE_FD);
        if (image_tree_remove(IMAGE_PROCESS_FOLDER_FD, order.tmp_name, &ignored) != 0)
            log_warn("images", "%s", ignored.msg); /* swept at the next start */
        memset(&report, 0, sizeof report);
        report_fill(&report, &e);
    }
    return wire_send_packed(IMAGE_PROCESS_CONTROL_FD, &report, sizeof report, &mount, mount >= 0,
                            &e) != 0;
}
