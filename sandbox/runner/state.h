/* sandbox/runner/state.h - what is written beside an instance for a runner that comes back. */
#ifndef SKERRY_SANDBOX_RUNNER_STATE_H
#define SKERRY_SANDBOX_RUNNER_STATE_H

#include <stdint.h>
#include <sys/types.h>
#include <sys/un.h>

#include "base/err.h"
#include "sandbox/state.pb-c.h"

#define STATE_FILE "state"
#define STATE_DEADLINE_FILE "deadline"
#define STATE_EPOCH_FILE "epoch"
#define STATE_SOCKET_FILE "agent.sock"

struct instance;

/* Where it is written. Made with the blank, as a file system may take a while to make files, and named after the
 * instance when there is one. */
struct state_folder {
    int fd;
    int listener;     /* bound to a name in it, where a runner that comes back finds the agent */
    int state, epoch; /* files, empty until they are written */
};
#define STATE_FOLDER_NONE                                                                          \
    {                                                                                              \
        .fd = -1, .listener = -1, .state = -1, .epoch = -1                                         \
    }

int state_folder_make(int parent, const char *name, struct state_folder *out,
                      struct err *e) ERR_CHECKED;
/* Of the agent's socket in it. */
struct sockaddr_un state_socket_address(int folder_fd);
void state_folder_close(struct state_folder *folder);
/* With all that is in it, if it is there. */
void state_folder_remove(int parent, const char *name);

/* Into the instance's folder, once. */
int state_write(struct instance *i, struct err *e) ERR_CHECKED;
/* The epoch alone, which is known later: once, after state_write. */
int state_epoch_write(struct instance *i, struct err *e) ERR_CHECKED;
/* From a folder; to be freed with skerry__state__state__free_unpacked. */
int state_read(int folder_fd, Skerry__State__State **out, struct err *e) ERR_CHECKED;
/* 0: none. */
uint64_t state_deadline_read(int folder_fd);

/* When the process started, in ticks since boot: with the pid, a process's name for good. */
int state_start_ticks(pid_t pid, uint64_t *out, struct err *e) ERR_CHECKED;
/* The process of the state, as a pidfd, the caller's. -ERR_NOT_FOUND: it is gone, or another has its number;
 * `boot`: of the machine, now. */
int state_process_open(const Skerry__State__State *s, const char *boot, struct err *e) ERR_CHECKED;
/* The id of this boot of the machine. */
int state_boot_id(char out[40], struct err *e) ERR_CHECKED;

#endif
