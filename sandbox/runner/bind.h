/* sandbox/runner/bind.h - from a blank to a root: what the runner tells the process that will become
 * the agent, and what that process does with it.
 *
 * The runner makes every mount detached, as root of the machine, and passes the descriptors; the
 * blank attaches them in a mount namespace of its own, mounts what only it can (proc, devpts), makes
 * the small files and turns the result into its root. It cannot reach a path of the host by itself:
 * its ids own nothing there. Both sides are the same program, so the plan is a plain struct. */
#ifndef SKERRY_SANDBOX_RUNNER_BIND_H
#define SKERRY_SANDBOX_RUNNER_BIND_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

#define BIND_MOUNTS_MAX 24
#define BIND_LINKS_MAX 8
#define BIND_PATH_SIZE 48

struct bind_mount {
    char path[BIND_PATH_SIZE]; /* in the new root, relative */
    bool file;                 /* else a folder */
};

struct bind_link {
    char path[BIND_PATH_SIZE];
    char target[BIND_PATH_SIZE];
};

/* The files of /proc that are covered, as bits of a plan: only those that this kernel has. */
#define BIND_PROC_MASKS_MAX 32

/* Told first, so that the blank can work while the runner makes the mounts. Descriptors: the tmpfs
 * that takes all that the instance writes, then with `overlay` its root. */
struct bind_plan {
    bool overlay; /* the root is a mount of its own, made from an image; else a folder of `store` */
    bool read_only; /* but for /tmp and /dev/shm */
    uint32_t proc_masks;
    uint32_t uid, gid; /* for /etc/passwd of the host image */
    char hostname[64];
    bool names; /* 127.0.0.1:53 answers them */
};

/* Told next. Descriptors: those of the mounts. */
struct bind_mounts {
    uint32_t mount_count;
    struct bind_mount mounts[BIND_MOUNTS_MAX];
    uint32_t link_count;
    struct bind_link links[BIND_LINKS_MAX];
};

/* Which of the covered files this kernel has. */
uint32_t bind_proc_masks(void);

/* In the blank, as root of its first user namespace, one after the other. The first attaches the
 * root and makes what is in it; the second adds the mounts and enters. Both take their descriptors. */
struct bind_root {
    int store, root;
    int proc_sys; /* after finish: O_PATH of a /proc/sys that is not read-only, the caller's */
};
int bind_root_begin(struct bind_root *b, const struct bind_plan *plan, const int *descriptors,
                    struct err *e) ERR_CHECKED;
int bind_root_finish(struct bind_root *b, const struct bind_plan *plan,
                     const struct bind_mounts *mounts, const int *descriptors,
                     struct err *e) ERR_CHECKED;

#endif
