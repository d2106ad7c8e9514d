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
#include "sandbox/runner/image_mount.h"
#include "sandbox/runner/image_process.h"
#include "sandbox/shared/wire.h"

struct image_import {
    struct image_store *store;
    pid_t pid;
    int control_fd;
    enum image_kind kind;
    char tmp_name[IMAGE_TMP_NAME_SIZE];
};

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
    image_mount_choose(store, &order);
    const struct image_process process = {.argument = IMAGE_IMPORT_ARGUMENT,
                                          .order = &order,
                                          .order_size = sizeof order,
                                          .folder_fd = store->images_fd};
    int rc = image_process_start(&import->pid, &import->control_fd, out_write_fd, &process, e);
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
        image_store_sweep(import->store, import->tmp_name, -1);
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
    struct err none;
    size_t n = 0;
    size_t mounts = 0;
    CLEANUP_FD int mount_fd = -1;
    if (wire_receive(import->control_fd, &report, sizeof report, &n, &mount_fd, 1, &mounts,
                     &none) != 0 ||
        n != sizeof report) {
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
    if (mounts > 0)
        image_mount_take(store, report.digest, steal_fd(&mount_fd));
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
