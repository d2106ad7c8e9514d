/* tests/lib/runner_in_process.h - what a runner_fixture runs: the real runner with the agent that
 * was built with it. For tests that link librunner and the agent. */
#ifndef SKERRY_TESTS_LIB_RUNNER_IN_PROCESS_H
#define SKERRY_TESTS_LIB_RUNNER_IN_PROCESS_H

#include <stdio.h>
#include <unistd.h>

#include "sandbox/runner/runner.h"

extern const uint8_t embedded_agent_begin[], embedded_agent_end[];

static inline int runner_in_process_run(struct runner_options options)
{
    struct err e;
    options.agent = embedded_agent_begin;
    options.agent_size = (size_t)(embedded_agent_end - embedded_agent_begin);
    if (runner_run(&options, &e) == 0)
        return 0;
    fprintf(stderr, "runner: %s\n", e.msg);
    return 1;
}

static inline int runner_in_process_blanks(const char *directory, const char *socket, int ready_fd,
                                           int blanks, bool old)
{
    /* Tests may run side by side: ids of their own for each, a hundred places. */
    const struct runner_options options = {
        .uid_base = RUNNER_UID_BASE + (int64_t)(getpid() % 40) * 100 * RUNNER_UIDS_PER_INSTANCE,
        .instances_max = 100,
        .directory = directory,
        .socket = socket,
        .node_uid = 0,
        .node_gid = 0,
        .blanks = blanks,
        .ready_fd = ready_fd,
        .assume_old = old,
    };
    return runner_in_process_run(options);
}

static inline int runner_in_process(const char *directory, const char *socket, int ready_fd)
{
    return runner_in_process_blanks(directory, socket, ready_fd, 0, false);
}

static inline int runner_in_process_with_blanks(const char *directory, const char *socket,
                                                int ready_fd)
{
    return runner_in_process_blanks(directory, socket, ready_fd, 2, false);
}

/* As on a kernel before 6.13. */
static inline int runner_in_process_old(const char *directory, const char *socket, int ready_fd)
{
    return runner_in_process_blanks(directory, socket, ready_fd, 0, true);
}

#endif
