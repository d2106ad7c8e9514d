#include "sandbox/runner/state.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/memory.h"
#include "sandbox/runner/instance.h"
#include "sandbox/runner/runner.h"

#define STATE_FORMAT 1
#define STATE_BYTES_MAX (64 * 1024)

int state_start_ticks(pid_t pid, uint64_t *out, struct err *e)
{
    char path[64], text[1024];
    text_format(path, sizeof path, "/proc/%d/stat", (int)pid);
    CLEANUP_FD int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
    if (n <= 0)
        return err_sys(e, ERR_NOT_FOUND, errno, "read %s", path);
    text[n] = '\0';
    /* The name in parentheses may hold anything; field 22 is the 20th behind it. */
    char *p = strrchr(text, ')');
    for (int field = 2; p != NULL && field < 22; field++)
        p = strchr(p + 1, ' ');
    if (p == NULL)
        return err_set(e, ERR_INTERNAL, "%s is cut", path);
    *out = strtoull(p + 1, NULL, 10);
    return 0;
}

int state_boot_id(char out[40], struct err *e)
{
    static const char path[] = "/proc/sys/kernel/random/boot_id";
    CLEANUP_FD int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, out, 39);
    if (n <= 0)
        return err_sys(e, ERR_IO, errno, "read %s", path);
    out[n] = '\0';
    out[strcspn(out, "\n")] = '\0';
    return 0;
}

/* --- the folder -------------------------------------------------------------------------------- */

struct sockaddr_un state_socket_address(int folder_fd)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    text_format(address.sun_path, sizeof address.sun_path, "/proc/self/fd/%d/" STATE_SOCKET_FILE,
                folder_fd);
    return address;
}

static int listener_make(struct state_folder *f, struct err *e)
{
    const struct sockaddr_un address = state_socket_address(f->fd);
    f->listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (f->listener < 0 || bind(f->listener, (const struct sockaddr *)&address, sizeof address) < 0)
        return err_sys(e, ERR_IO, errno, "make the agent's socket");
    return 0;
}

static int file_make(const struct state_folder *f, const char *name, int *out, struct err *e)
{
    *out = openat(f->fd, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    return *out < 0 ? err_sys(e, ERR_IO, errno, "make file %s", name) : 0;
}

int state_folder_make(int parent, const char *name, struct state_folder *out, struct err *e)
{
    struct state_folder f = STATE_FOLDER_NONE;
    if (mkdirat(parent, name, 0700) < 0)
        return err_sys(e, ERR_IO, errno, "make folder %s", name);
    f.fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    int rc = f.fd < 0 ? err_sys(e, ERR_IO, errno, "open folder %s", name) : 0;
    if (rc == 0)
        rc = listener_make(&f, e);
    if (rc == 0)
        rc = file_make(&f, STATE_FILE, &f.state, e);
    if (rc == 0)
        rc = file_make(&f, STATE_EPOCH_FILE, &f.epoch, e);
    if (rc < 0)
        state_folder_close(&f);
    else
        *out = f;
    return rc;
}

void state_folder_close(struct state_folder *folder)
{
    memory_close(&folder->fd);
    memory_close(&folder->listener);
    memory_close(&folder->state);
    memory_close(&folder->epoch);
}

void state_folder_remove(int parent, const char *name)
{
    CLEANUP_FD int fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return;
    int copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    DIR *folder = copy < 0 ? NULL : fdopendir(copy);
    if (folder == NULL) {
        memory_close(&copy);
        return;
    }
    /* Our own folder of a few files: nothing in it was made by the instance. */
    for (struct dirent *entry = readdir(folder); entry != NULL; entry = readdir(folder))
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            (void)unlinkat(fd, entry->d_name, 0);
    closedir(folder);
    (void)unlinkat(parent, name, AT_REMOVEDIR);
}

/* --- what is written --------------------------------------------------------------------------- */

/* No fsync: after a crash of the machine there is no instance to find. */
static int write_packed(int fd, const Skerry__State__State *state, struct err *e)
{
    size_t length = skerry__state__state__get_packed_size(state);
    CLEANUP_FREE uint8_t *data = malloc(length);
    if (data == NULL)
        return err_set(e, ERR_NO_MEMORY, "state");
    skerry__state__state__pack(state, data);
    return write(fd, data, length) == (ssize_t)length ? 0
                                                      : err_sys(e, ERR_IO, errno, "write state");
}

int state_write(struct instance *i, struct err *e)
{
    Skerry__State__State state = SKERRY__STATE__STATE__INIT;
    Skerry__State__Group groups[CGROUP_TREES_MAX], *group_list[CGROUP_TREES_MAX];
    char *layers[INSTANCE_LAYERS_MAX];
    state.format = STATE_FORMAT;
    state.id = (char *)(uintptr_t)i->id;
    state.epoch = i->epoch;
    state.pid = (uint32_t)i->pid;
    state.boot = i->runner->boot;
    state.uid_base = i->place->ids.first;
    state.prepared_boot_ms = clock_boot_ms();
    int rc = state_start_ticks(i->pid, &state.start_ticks, e);
    if (rc < 0)
        return rc;
    for (size_t n = 0; n < i->place->cgroup.group_count; n++) {
        const struct cgroup_group *group = &i->place->cgroup.groups[n];
        skerry__state__group__init(&groups[n]);
        groups[n].path = (char *)(uintptr_t)group->path;
        groups[n].controllers = group->controllers;
        groups[n].v2 = cgroup_group_is_v2(group);
        group_list[state.n_groups++] = &groups[n];
    }
    state.groups = group_list;
    for (size_t n = 0; n < i->layer_count; n++)
        layers[state.n_layers++] = (char *)(uintptr_t)i->layers[n];
    state.layers = layers;
    state.uid = i->uid;
    state.gid = i->gid;
    const Skerry__Runner__Prepare *p = i->request == NULL ? NULL : i->request->prepare;
    if (i->egress != NULL && p != NULL) {
        state.egress = true;
        state.network_allow = p->network_allow;
        state.n_network_allow = p->n_network_allow;
        state.network_deny = p->network_deny;
        state.n_network_deny = p->n_network_deny;
    }
    rc = write_packed(i->folder.state, &state, e);
    memory_close(&i->folder.state);
    return rc;
}

int state_epoch_write(struct instance *i, struct err *e)
{
    int rc = 0;
    if (pwrite(i->folder.epoch, &i->epoch, sizeof i->epoch, 0) != (ssize_t)sizeof i->epoch)
        rc = err_sys(e, ERR_IO, errno, "write epoch of %s", i->id);
    memory_close(&i->folder.epoch);
    return rc;
}

/* 8 bytes of a small file; `otherwise` when it is not there or empty. */
static uint64_t number_read(int folder, const char *name, uint64_t otherwise)
{
    uint64_t number;
    CLEANUP_FD int fd = openat(folder, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0 || pread(fd, &number, sizeof number, 0) != (ssize_t)sizeof number)
        return otherwise;
    return number;
}

int state_read(int folder, Skerry__State__State **out, struct err *e)
{
    CLEANUP_FD int fd = openat(folder, STATE_FILE, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0)
        return err_sys(e, ERR_NOT_FOUND, errno, "open state");
    CLEANUP_FREE uint8_t *data = malloc(STATE_BYTES_MAX);
    if (data == NULL)
        return err_set(e, ERR_NO_MEMORY, "state");
    ssize_t n = read(fd, data, STATE_BYTES_MAX);
    if (n < 0)
        return err_sys(e, ERR_IO, errno, "read state");
    if (n == 0)
        return err_set(e, ERR_NOT_FOUND, "its preparation was under way");
    Skerry__State__State *state = skerry__state__state__unpack(NULL, (size_t)n, data);
    if (state == NULL)
        return err_set(e, ERR_INVALID, "state cannot be read");
    if (state->format != STATE_FORMAT || state->n_groups > CGROUP_TREES_MAX ||
        state->n_layers > INSTANCE_LAYERS_MAX) {
        skerry__state__state__free_unpacked(state, NULL);
        return err_set(e, ERR_UNSUPPORTED, "state of another format");
    }
    state->epoch = number_read(folder, STATE_EPOCH_FILE, state->epoch);
    *out = state;
    return 0;
}

uint64_t state_deadline_read(int folder)
{
    return number_read(folder, STATE_DEADLINE_FILE, 0);
}

int state_process_open(const Skerry__State__State *s, const char *boot, struct err *e)
{
    if (strcmp(s->boot, boot) != 0)
        return err_set(e, ERR_NOT_FOUND, "the machine was restarted");
    CLEANUP_FD int fd = (int)syscall(SYS_pidfd_open, (pid_t)s->pid, 0);
    if (fd < 0)
        return err_sys(e, ERR_NOT_FOUND, errno, "its process");
    /* Read after the pidfd is held: the number cannot be given away any more. */
    uint64_t ticks;
    int rc = state_start_ticks((pid_t)s->pid, &ticks, e);
    if (rc < 0)
        return rc;
    if (ticks != s->start_ticks)
        return err_set(e, ERR_NOT_FOUND, "its process is gone");
    return steal_fd(&fd);
}
