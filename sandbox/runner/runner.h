/* sandbox/runner/runner.h - the runner whole: what its parts share, and its life.
 *
 * Thread: one. Order of life: configuration, lock, agent, filters, groups, mount namespace, loop;
 * then instances of an earlier runner are adopted; then the node may connect. SIGTERM and SIGINT
 * end the runner and leave the instances to their agents. */
#ifndef SKERRY_SANDBOX_RUNNER_RUNNER_H
#define SKERRY_SANDBOX_RUNNER_RUNNER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "sandbox/runner/cgroup.h"
#include "sandbox/runner/config.h"
#include "sandbox/runner/loop.h"
#include "sandbox/runner/net_egress.h"
#include "sandbox/runner/net_names.h"
#include "sandbox/runner/network.h"
#include "sandbox/runner/powers.h"
#include "sandbox/runner/request.h"
#include "sandbox/runner/root.h"
#include "sandbox/runner/seccomp.h"

#define RUNNER_PROTOCOL 1

struct runner_options {
    const char *config_path; /* NULL: the default, which may be missing */
    const char *directory;   /* NULL: as configured; likewise the others */
    const char *socket;
    int64_t node_uid, node_gid; /* -1: as configured */
    int64_t blanks;
    int64_t uid_base, instances_max; /* 0 or less: as configured */
    const uint8_t *agent;            /* the ELF */
    size_t agent_size;
    int ready_fd;     /* gets one byte when the node may connect, then is closed; -1: none */
    bool assume_old;  /* for tests: as root_base_assume_old, and of image_store_options */
    const char *lack; /* without root: why the user has no range of ids; NULL: it has */
};

struct runner {
    struct runner_config config;
    struct powers powers;
    struct request_bounds bounds;
    struct loop *loop;
    struct cgroup_host cgroups;
    struct disks disks;     /* of limits of io, if they are wanted */
    unsigned limits_wanted; /* enum cgroup_limit */
    struct network *network;
    struct net_egress *egress;
    struct net_names *names;
    struct loop_timer egress_guard;
    struct root_base *root_base;
    struct seccomp_filter filters[SECCOMP_PROFILE_COUNT];
    struct server *server; /* NULL until adoption is over */
    struct instances *instances;
    struct blanks *blanks;
    struct reaper *reaper;
    struct imports *imports;
    struct adoption *adoption;
    char boot[40]; /* id of this boot of the machine */
    bool assume_old;
    int agent_fd;
    int null_fd;
    int directory_fd;
    int instances_fd; /* DIRECTORY/instances */
    int logs_fd;      /* DIRECTORY/logs */
    int lock_fd;
    int ids_fd; /* holds the user ids: sandbox/shared/ids.h */
    int ready_fd;
};

/* Returns when the runner was told to end. */
int runner_run(const struct runner_options *options, struct err *e) ERR_CHECKED;
/* Adoption is over: the node may connect. */
void runner_serve(struct runner *r);

#endif
