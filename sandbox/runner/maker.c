#include "sandbox/runner/maker.h"

#include <errno.h>
#include <link.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/memory.h"
#include "sandbox/runner/runner.h"
#include "sandbox/shared/wire.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#else
#define SANITIZED 0
#endif

/* As long as a start may wait at all. */
#define TAKE_WAIT_MS 4000

/* Descriptors of an answer, in order; the last only if it was asked for. */
enum {
    FD_NETWORK,
    FD_PROCESS,
    FD_CHANNEL,
    FD_STORE,
    FD_FOLDER,
    FD_LISTENER,
    FD_STATE,
    FD_EPOCH,
    FD_MAP,
    FD_COUNT
};

struct answer {
    int code; /* 0, or what `error` says */
    struct err error;
};

struct maker {
    int socket;
    pid_t pid;
    /* Of the blank that is being made; 0: none. The maker may be killed at any time, and what it began is our
     * child, whom nobody else knows. Shared with it, a page. */
    pid_t *begun;
};

/* --- the work ---------------------------------------------------------------------------------- */

int maker_make(const struct runner *r, const struct maker_order *order, pid_t *sibling,
               struct maker_made *out, struct err *e)
{
    *out = (struct maker_made){.network_fd = -1, .layer_map = -1, .folder = STATE_FOLDER_NONE};
    int rc = cgroup_make(&order->cgroup, e);
    if (rc == 0)
        rc = state_folder_make(r->instances_fd, order->cgroup.name, &out->folder, e);
    if (rc == 0)
        rc = network_namespace_make(r->network, &out->network_fd, e);
    if (rc == 0 && order->layer_map)
        rc = root_map_make(r->powers.layers.first, order->ids.first, &out->layer_map, e);
    const struct blank_options options = {.ids = order->ids,
                                          .cgroup = &order->cgroup,
                                          .network = r->network,
                                          .network_fd = out->network_fd,
                                          .root_base = r->root_base,
                                          .agent_fd = r->agent_fd,
                                          .null_fd = r->null_fd,
                                          .sibling = sibling};
    if (rc == 0)
        rc = blank_make(&out->blank, &options, e);
    if (rc < 0) {
        memory_close(&out->network_fd);
        memory_close(&out->layer_map);
        state_folder_close(&out->folder);
    }
    return rc;
}

/* --- the maker --------------------------------------------------------------------------------- */

static void serve(int from, pid_t *begun, const struct runner *r) __attribute__((noreturn));
static void serve(int from, pid_t *begun, const struct runner *r)
{
    for (;;) {
        struct maker_order order;
        struct maker_made made;
        struct answer answer = {0};
        if (recv(from, &order, sizeof order, 0) != (ssize_t)sizeof order)
            _exit(0); /* the runner is gone */
        answer.code = maker_make(r, &order, begun, &made, &answer.error);
        if (answer.code == 0)
            cgroup_touch(&order.cgroup);
        int descriptors[FD_COUNT] = {
            [FD_NETWORK] = made.network_fd,    [FD_PROCESS] = made.blank.pidfd,
            [FD_CHANNEL] = made.blank.channel, [FD_STORE] = made.blank.store,
            [FD_FOLDER] = made.folder.fd,      [FD_LISTENER] = made.folder.listener,
            [FD_STATE] = made.folder.state,    [FD_EPOCH] = made.folder.epoch,
            [FD_MAP] = made.layer_map,
        };
        size_t count = answer.code < 0 ? 0 : order.layer_map ? FD_COUNT : FD_MAP;
        struct err ignored;
        if (wire_send_packed(from, &answer, sizeof answer, descriptors, count, &ignored) < 0)
            _exit(0); /* the runner is gone */
        for (size_t i = 0; i < count; i++)
            memory_close(&descriptors[i]);
    }
}

static int compare(const void *a, const void *b)
{
    return *(const int *)a - *(const int *)b;
}

static void descriptors_keep(int *keep, size_t count)
{
    qsort(keep, count, sizeof *keep, compare);
    unsigned from = 3;
    for (size_t i = 0; i < count; i++) {
        if (keep[i] > (int)from)
            (void)close_range(from, (unsigned)keep[i] - 1, 0);
        from = (unsigned)keep[i] + 1;
    }
    (void)close_range(from, ~0u, 0);
}

/* A library lies in one piece, whose first page holds the table that is read here. */
static int library_leave(struct dl_phdr_info *library, size_t size, void *user)
{
    (void)size;
    const uintptr_t page = *(const uintptr_t *)user;
    const char *name = library->dlpi_name;
    if (name[0] != '/' || strstr(name, "/libc.so") != NULL || strstr(name, "/ld-") != NULL)
        return 0;
    uintptr_t begin = UINTPTR_MAX, end = 0;
    for (size_t i = 0; i < library->dlpi_phnum; i++) {
        const ElfW(Phdr) *part = &library->dlpi_phdr[i];
        uintptr_t first = library->dlpi_addr + part->p_vaddr, last = first + part->p_memsz;
        if (part->p_type != PT_LOAD)
            continue;
        begin = first < begin ? first : begin;
        end = last > end ? last : end;
    }
    if (begin < end)
        (void)munmap((void *)(begin & ~(page - 1)), end - (begin & ~(page - 1)));
    return 0;
}

/* A blank is a copy of us until it executes the agent, and to make that copy and take it apart was a sixth of what a
 * blank costs: most of it are libraries. Nothing on the way from an order to its answer calls any but the C library,
 * and we never come to the end of main, where they would be called. One that somebody has loaded before all others
 * stands in for it, and a sanitizer is everywhere. */
static void libraries_leave(void)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    if (!SANITIZED && getenv("LD_PRELOAD") == NULL && access("/etc/ld.so.preload", F_OK) < 0)
        (void)dl_iterate_phdr(library_leave, &page);
}

static void run(int socket, pid_t *begun, const struct runner *r, bool light)
    __attribute__((noreturn));
static void run(int socket, pid_t *begun, const struct runner *r, bool light)
{
    /* What ends the runner from a terminal ends this one by the runner. */
    (void)signal(SIGINT, SIG_IGN);
    (void)signal(SIGTERM, SIG_IGN);
    (void)prctl(PR_SET_NAME, "skerry-maker", 0, 0, 0);
    int keep[] = {socket,
                  r->agent_fd,
                  r->null_fd,
                  r->instances_fd,
                  network_host(r->network),
                  root_base_folder(r->root_base)};
    descriptors_keep(keep, ARRAY_SIZE(keep));
    if (light)
        libraries_leave();
    serve(socket, begun, r);
}

/* --- the runner -------------------------------------------------------------------------------- */

static int start(struct maker *m, const struct runner *r, bool light, struct err *e)
{
    int pair[2];
    m->begun =
        mmap(NULL, sizeof *m->begun, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (m->begun == MAP_FAILED)
        return err_sys(e, ERR_NO_MEMORY, errno, "maker");
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
        return err_sys(e, ERR_IO, errno, "maker: socket");
    m->socket = pair[0];
    CLEANUP_FD int theirs = pair[1];
    m->pid = fork();
    if (m->pid == 0)
        run(theirs, m->begun, r, light);
    return m->pid < 0 ? err_sys(e, ERR_IO, errno, "maker: fork") : 0;
}

int maker_open(struct maker **out, const struct runner *r, bool light, struct err *e)
{
    struct maker *m = calloc(1, sizeof *m);
    if (m == NULL)
        return err_set(e, ERR_NO_MEMORY, "maker");
    m->socket = m->pid = -1;
    int rc = start(m, r, light, e);
    if (rc < 0)
        maker_close(m);
    else
        *out = m;
    return rc;
}

/* Kills it and waits for it. */
static void end(pid_t child)
{
    if (child <= 0)
        return;
    (void)kill(child, SIGKILL);
    (void)waitpid(child, NULL, 0);
}

void maker_close(struct maker *m)
{
    if (m == NULL)
        return;
    memory_close(&m->socket);
    end(m->pid);
    if (m->begun != MAP_FAILED) {
        end(*m->begun);
        (void)munmap(m->begun, sizeof *m->begun);
    }
    free(m);
}

int maker_fd(const struct maker *m)
{
    return m->socket;
}

bool maker_gone(const struct maker *m)
{
    char byte;
    return recv(m->socket, &byte, 1, MSG_PEEK | MSG_DONTWAIT) == 0;
}

int maker_ask(struct maker *m, const struct maker_order *order, struct err *e)
{
    if (send(m->socket, order, sizeof *order, MSG_NOSIGNAL | MSG_DONTWAIT) !=
        (ssize_t)sizeof *order)
        return err_sys(e, ERR_UNAVAILABLE, errno, "ask the maker of blanks");
    return 0;
}

static int answer_receive(int from, struct answer *answer, int descriptors[FD_COUNT], struct err *e)
{
    struct pollfd wait = {.fd = from, .events = POLLIN};
    size_t length = 0, count = 0;
    struct err cause;
    if (poll(&wait, 1, TAKE_WAIT_MS) != 1)
        return err_set(e, ERR_UNAVAILABLE, "the maker of blanks does not answer");
    if (wire_receive(from, answer, sizeof *answer, &length, descriptors, FD_COUNT, &count, &cause) <
            0 ||
        length != sizeof *answer)
        return err_set(e, ERR_UNAVAILABLE, "the maker of blanks is gone");
    return 0;
}

int maker_take(struct maker *m, struct maker_made *out, struct err *e)
{
    struct answer answer;
    int descriptors[FD_COUNT];
    memset(descriptors, -1, sizeof descriptors);
    int rc = answer_receive(m->socket, &answer, descriptors, e);
    if (rc < 0)
        return rc;
    pid_t pid = *m->begun;
    *m->begun = 0;
    if (answer.code < 0) {
        end(pid);
        *e = answer.error;
        return answer.code;
    }
    *out = (struct maker_made){.network_fd = descriptors[FD_NETWORK],
                               .layer_map = descriptors[FD_MAP],
                               .folder = {.fd = descriptors[FD_FOLDER],
                                          .listener = descriptors[FD_LISTENER],
                                          .state = descriptors[FD_STATE],
                                          .epoch = descriptors[FD_EPOCH]},
                               .blank = {.pid = pid,
                                         .pidfd = descriptors[FD_PROCESS],
                                         .channel = descriptors[FD_CHANNEL],
                                         .store = descriptors[FD_STORE]}};
    return 0;
}
