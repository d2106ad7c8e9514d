/* The runner's side of an import: starts the process, hears its report. */
#include "sandbox/runner/image.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/memory.h"
#include "sandbox/runner/image_internal.h"

#define STAGE_FD 16              /* above the descriptors that the process starts with */
#define PIPE_BYTES (1024 * 1024) /* fewer wake-ups than with the usual 64 KiB */

struct image_import {
    struct image_store *store;
    pid_t pid;
    int control_fd;
    enum image_kind kind;
    char tmp_name[IMAGE_TMP_NAME_SIZE];
};

/* In the child, up to exec: only calls that are safe after fork. */
__attribute__((noreturn)) static void become_importer(int control, int archive, int images)
{
    int staged[3] = {
        fcntl(control, F_DUPFD_CLOEXEC, STAGE_FD),
        fcntl(archive, F_DUPFD_CLOEXEC, STAGE_FD),
        fcntl(images, F_DUPFD_CLOEXEC, STAGE_FD),
    };
    const int wanted[3] = {IMAGE_IMPORTER_CONTROL_FD, IMAGE_IMPORTER_ARCHIVE_FD,
                           IMAGE_IMPORTER_STORE_FD};
    for (int i = 0; i < 3; i++)
        if (staged[i] < 0 || dup2(staged[i], wanted[i]) < 0)
            _exit(127);
    if (close_range(IMAGE_IMPORTER_STORE_FD + 1, ~0u, 0) != 0)
        _exit(127);
    /* The runner blocks signals to take them by descriptor; its child starts with none blocked. */
    sigset_t none;
    sigemptyset(&none);
    (void)sigprocmask(SIG_SETMASK, &none, NULL);
    char name[] = "skerry-runner";
    char argument[] = IMAGE_IMPORT_ARGUMENT;
    char *const argv[] = {name, argument, NULL};
    char *const envp[] = {NULL};
    execve("/proc/self/exe", argv, envp);
    _exit(127);
}

static int start_process(struct image_import *import, const struct image_order *order,
                         int *out_write_fd, struct err *e)
{
    int archive[2];
    int control[2];
    if (pipe2(archive, O_CLOEXEC) != 0)
        return err_sys(e, ERR_IO, errno, "make a pipe");
    CLEANUP_FD int read_end = archive[0];
    CLEANUP_FD int write_end = archive[1];
    (void)fcntl(write_end, F_SETPIPE_SZ, PIPE_BYTES);
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, control) != 0)
        return err_sys(e, ERR_IO, errno, "make a socket pair");
    CLEANUP_FD int ours = control[0];
    CLEANUP_FD int theirs = control[1];
    if (send(ours, order, sizeof *order, MSG_NOSIGNAL) != (ssize_t)sizeof *order)
        return err_sys(e, ERR_IO, errno, "order an import");
    pid_t pid = fork();
    if (pid < 0)
        return err_sys(e, ERR_IO, errno, "start the process of an import");
    if (pid == 0)
        become_importer(theirs, read_end, import->store->images_fd);
    import->pid = pid;
    import->control_fd = steal_fd(&ours);
    *out_write_fd = steal_fd(&write_end);
    return 0;
}

int image_import_start(struct image_import **out, struct image_store *store,
                       const struct image_import_options *options, int *out_write_fd, struct err *e)
{
    const char *want = options->want_digest != NULL ? options->want_digest : "";
    if (want[0] != '\0' && !image_digest_valid(want))
        return err_set(e, ERR_INVALID, "a digest is sha256: and 64 hexadecimal digits");
    if (options->kind != IMAGE_KIND_IMAGE && options->kind != IMAGE_KIND_SOURCE)
        return err_set(e, ERR_INVALID, "an import is of an image or of a source");
    if (store->imports >= store->options.imports_max)
        return err_set(e, ERR_LIMIT, "%zu imports are running; try again when one has ended",
                       store->imports);
    CLEANUP_FREE struct image_import *import = calloc(1, sizeof *import);
    if (import == NULL)
        return err_set(e, ERR_NO_MEMORY, "no memory for an import");
    import->store = store;
    import->kind = options->kind;
    image_tmp_name(import->tmp_name);
    struct image_order order = {
        .kind = options->kind,
        .bounds = options->kind == IMAGE_KIND_IMAGE ? store->options.image : store->options.source,
    };
    (void)text_copy(order.want_digest, sizeof order.want_digest, want);
    (void)text_copy(order.tmp_name, sizeof order.tmp_name, import->tmp_name);
    int rc = start_process(import, &order, out_write_fd, e);
    if (rc != 0)
        return rc;
    store->imports++;
    *out = steal_pointer(&import);
    return 0;
}

int image_import_fd(const struct image_import *import)
{
    return import->control_fd;
}

static void import_free(struct image_import *import, bool clean)
{
    if (!clean) {
        /* Its children die with it, so nobody writes there when the sweep begins. */
        (void)kill(import->pid, SIGKILL);
    }
    while (waitpid(import->pid, NULL, 0) < 0 && errno == EINTR)
        ;
    if (!clean)
        image_store_sweep(import->store, import->tmp_name);
    memory_close(&import->control_fd);
    import->store->imports--;
    free(import);
}

void image_import_cancel(struct image_import *import)
{
    import_free(import, false);
}

int image_import_end(struct image_import *import, struct image_import_result *out, struct err *e)
{
    struct image_report report;
    ssize_t n = recv(import->control_fd, &report, sizeof report, MSG_DONTWAIT);
    if (n != (ssize_t)sizeof report) {
        import_free(import, false);
        return err_set(e, ERR_INTERNAL, "the process of an import ended without a report");
    }
    struct image_store *store = import->store;
    import_free(import, true);
    report.message[sizeof report.message - 1] = '\0';
    if (report.code != ERR_OK) {
        (void)err_set(e, (enum err_code)report.code, "%s", report.message);
        if (e != NULL)
            e->sys = report.sys;
        return -(int)report.code;
    }
    /* The layer may have been removed between its rename and now: then it is not there. */
    int rc = image_store_adopt(store, report.digest, e);
    if (rc != 0)
        return rc;
    *out = (struct image_import_result){
        .bytes = report.bytes,
        .files = report.files,
        .existed = report.existed != 0,
    };
    memcpy(out->digest, report.digest, sizeof out->digest);
    return 0;
}
