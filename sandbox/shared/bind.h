/* sandbox/shared/bind.h - from a blank to an instance: what the runner tells the agent before that one
 * speaks of commands.
 *
 *     runner                            agent (process 1, inside root, nothing else inside yet)
 *     skeleton, with its mounts ----->  makes a root of the host image, enters it, waits
 *     plan, with the listener   ----->  names, source; or moves on into an image's root;
 *                                       a second user namespace locks all of it;
 *                                       gives up its privileges
 *     setup (agent.proto)       ----->  ...
 *
 * All of this is done before anybody asked, but for the plan: most starts are of the host image, and
 * what an image's root needs and only a skeleton can have (its /proc) is moved over from it.
 *
 * The runner makes every mount detached, as root of the machine, and passes the descriptors; the agent
 * attaches them in a mount namespace of its own, mounts what only it can (proc, devpts) and makes the
 * small files. It cannot reach a path of the host by itself: its ids own nothing there. The runner
 * carries the agent that was built with it, so these are plain structs. Each is one datagram with its
 * descriptors on the channel. */
#ifndef SKERRY_SANDBOX_SHARED_BIND_H
#define SKERRY_SANDBOX_SHARED_BIND_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

/* The agent's argv[0] when it begins as a blank. */
#define BIND_BLANK_NAME "skerry-blank"

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

/* Descriptors: the tmpfs that takes all that the instance writes, then those of the mounts. */
struct bind_skeleton {
    uint32_t mount_count;
    struct bind_mount mounts[BIND_MOUNTS_MAX];
    uint32_t link_count;
    struct bind_link links[BIND_LINKS_MAX];
    bool one_id;     /* nothing else is mapped: agent and code will have what the plan says */
    bool shared_ids; /* other instances have the same: what is counted per user is shared out */
};

/* Descriptors: the listener; with `image` a tmpfs, the image's root and /dev; with `source` that of
 * /app; with `group` the entry of a control group. */
struct bind_plan {
    bool image; /* else the host, whose root is the skeleton's */
    bool source;
    bool read_only;    /* but for /tmp and /dev/shm */
    uint32_t uid, gid; /* for /etc/passwd of the host image; with `one_id`, of all inside */
    bool
        shared_ids; /* other instances have the same: what is counted per user is to be shared out */
    char hostname[64];
    bool names; /* 127.0.0.1:53 answers them */
    bool group; /* one more than the blank is in already */
};
#define BIND_PLAN_DESCRIPTORS_MAX 6u

/* What is said when one of them fails, before the end: no message of the agent can begin with this
 * word. */
#define BIND_FAILED 7u
struct bind_failure {
    uint32_t word;
    struct err error;
};

#endif
