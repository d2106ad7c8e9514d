/* tests/lib/runner_fixture.h - a real runner in a folder of its own, and a plain client of it.
 *
 * Needs root. All waits have a deadline, after which the test fails. */
#ifndef SKERRY_TESTS_LIB_RUNNER_FIXTURE_H
#define SKERRY_TESTS_LIB_RUNNER_FIXTURE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "sandbox/runner.pb-c.h"

#define FIXTURE_EVENTS_MAX 512
#define FIXTURE_WAIT_MS 40000

/* What the forked process does: never returns before the runner ends. */
typedef int (*fixture_run)(const char *directory, const char *socket, int ready_fd);

struct runner_fixture {
    fixture_run run;
    char directory[64];
    char socket[80];
    pid_t pid;
    int node; /* the connection */
    uint64_t seq;
    Skerry__Runner__ToNode *events[FIXTURE_EVENTS_MAX];
    size_t event_count;
};

struct fixture_answer {
    Skerry__Runner__ToNode *message; /* NULL: the connection ended */
    const Skerry__Runner__Reply *reply;
    int descriptors[64];
    size_t count;
};

/* Makes the folder, then starts. */
void fixture_open(struct runner_fixture *f, fixture_run run);
/* SIGTERM, then removes the folder. */
void fixture_close(struct runner_fixture *f);
void fixture_start(struct runner_fixture *f);
/* SIGTERM or SIGKILL; waits for the process. */
void fixture_stop(struct runner_fixture *f, int signal);
int fixture_connect(struct runner_fixture *f);

/* Sends and waits for the answer; events are kept. */
void fixture_ask(struct runner_fixture *f, Skerry__Runner__Request *request,
                 struct fixture_answer *out);
/* Frees; closes the descriptors that are still there. */
void fixture_answer_free(struct fixture_answer *answer);
/* The error code of the answer to a verb that has no other result. */
uint32_t fixture_code(struct runner_fixture *f, Skerry__Runner__Request *request);
/* Waits; the event stays the fixture's until fixture_close. NULL: none within `wait_ms`. */
const Skerry__Runner__Event *fixture_event(struct runner_fixture *f,
                                           Skerry__Runner__Event__EventCase which, const char *id,
                                           unsigned wait_ms);

/* So that the next of its kind is found. Frees the event. */
void fixture_event_forget(struct runner_fixture *f, const Skerry__Runner__Event *event);

/* Connects an unconnected socket of an instance's network to 127.0.0.1; true when HTTP answers 200. */
bool fixture_http_get(int socket, uint16_t port);

/* What instances could leave behind. */
struct fixture_traces {
    size_t descriptors; /* of the runner; a network namespace is one */
    size_t mounts;      /* in its mount namespace */
    size_t children;    /* its processes */
    size_t groups;      /* below its folders in the hierarchies of control groups */
    size_t folders;     /* below instances/, of instances */
    size_t blanks;      /* and of blanks */
};
void fixture_traces_read(const struct runner_fixture *f, struct fixture_traces *out);
/* Waits until three looks in a row, 30 ms apart, are equal and no folder of an instance is there. */
bool fixture_settle(const struct runner_fixture *f, struct fixture_traces *out, unsigned wait_ms);
/* Waits until no process is left in the groups of a runner. */
bool fixture_processes_gone(pid_t runner, unsigned wait_ms);

/* A new instance id. */
void fixture_id(char out[32]);
/* A Prepare of the host image with small limits; the caller changes what it wants. */
void fixture_prepare_init(Skerry__Runner__Prepare *p, const char *id, char **command, size_t words);
uint32_t fixture_prepare(struct runner_fixture *f, Skerry__Runner__Prepare *p,
                         struct fixture_answer *out);
uint32_t fixture_commit(struct runner_fixture *f, const char *id);
uint32_t fixture_discard(struct runner_fixture *f, const char *id);
uint32_t fixture_forget(struct runner_fixture *f, const char *id);
uint32_t fixture_stop_instance(struct runner_fixture *f, const char *id, uint32_t grace_ms);

/* Prepares with pipes, commits, gathers stdout and stderr, waits for the end and forgets. */
struct fixture_result {
    uint32_t prepare_error, commit_error;
    char message[300];
    char out[65536];
    char err[4096];
    uint32_t reason, exit_code, signal;
    bool oom;
    uint64_t memory_peak_bytes;
};
void fixture_run_command(struct runner_fixture *f, Skerry__Runner__Prepare *p, const char *input,
                         struct fixture_result *out);

#endif
