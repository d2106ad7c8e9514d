/* base/words.h - the words users meet, each in one table: states, reasons, problems.
 *
 * Numbers are written to disk: append, never renumber. */
#ifndef SKERRY_BASE_WORDS_H
#define SKERRY_BASE_WORDS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum instance_state {
    INSTANCE_STATE_NONE = 0,
    INSTANCE_STATE_STARTING, /* reserved in the registry, code not ready */
    INSTANCE_STATE_READY,
    INSTANCE_STATE_DRAINING, /* takes no joiner, ends with its last one */
    INSTANCE_STATE_ENDED,
    INSTANCE_STATE_COUNT
};
const char *instance_state_name(enum instance_state state);

/* Why an instance ended. */
enum end_reason {
    END_NONE = 0,
    END_EXPIRED,       /* life.max, or the end of its window after the last joiner */
    END_IDLE,          /* life.idle */
    END_DRAINED,       /* its version was replaced, or the node drained */
    END_EXITED,        /* the main process ended by itself */
    END_OOM,           /* memory limit */
    END_KILLED,        /* an operator stopped it */
    END_NODE_LOST,     /* the lease of its node ended */
    END_LEASE_LOST,    /* its own lease ended; the runner fenced it */
    END_START_FAILED,  /* the sandbox could not be made, or the code ended before it was ready */
    END_START_TIMEOUT, /* not ready within timeouts.start */
    END_START_LOST,    /* reserved, but its node restarted before it ran */
    END_CLIENT_GONE,   /* the one client of a command left */
    END_TIMED_OUT,     /* a command ran longer than timeouts.request */
    END_UNHEALTHY,     /* its health check failed `retries` times */
    END_AGENT_LOST,    /* its agent or runner went away */
    END_REASON_COUNT
};
const char *end_reason_name(enum end_reason reason);

/* How a command ended, as it is told to who asked for it. */
struct command_end {
    enum end_reason reason;
    int exit_code; /* -1: none */
    unsigned signal;
    bool timed_out, oom;
    uint64_t wall_us, cpu_us, memory_peak_bytes;
    char detail[256];
};

/* Whether the user's code may have seen a refused or failed request. */
enum ran { RAN_NO, RAN_MAYBE, RAN_YES };
const char *ran_name(enum ran ran);

/* What users get as `code` in a problem (RFC 9457) and in `Skerry-Error`. */
enum problem {
    PROBLEM_NONE = 0,
    PROBLEM_BAD_REQUEST,
    PROBLEM_URI_TOO_LONG,
    PROBLEM_HEADER_TOO_LARGE,
    PROBLEM_BODY_TOO_LARGE,
    PROBLEM_HEADER_TIMEOUT,
    PROBLEM_BODY_TIMEOUT,
    PROBLEM_EXPECTATION_FAILED,
    PROBLEM_METHOD_NOT_ALLOWED,
    PROBLEM_HTTP_VERSION,
    PROBLEM_NOT_IMPLEMENTED,
    PROBLEM_UNAUTHORIZED,
    PROBLEM_FORBIDDEN,
    PROBLEM_NOT_FOUND,
    PROBLEM_WORKLOAD_UNKNOWN,
    PROBLEM_INSTANCE_UNKNOWN,
    PROBLEM_INSTANCE_GONE,
    PROBLEM_INSTANCE_FULL,
    PROBLEM_INSTANCE_EXITED,
    PROBLEM_INSTANCE_OOM,
    PROBLEM_INSTANCE_BAD_ANSWER,
    PROBLEM_INSTANCE_UNREACHABLE,
    PROBLEM_KEY_MISSING,
    PROBLEM_QUEUE_FULL,
    PROBLEM_QUEUE_TIMEOUT,
    PROBLEM_NODE_FULL,
    PROBLEM_START_FAILED,
    PROBLEM_START_TIMEOUT,
    PROBLEM_FIRST_BYTE_TIMEOUT,
    PROBLEM_REQUEST_TIMEOUT,
    PROBLEM_STREAM_IDLE,
    PROBLEM_OWNER_UNREACHABLE,
    PROBLEM_NO_QUORUM,
    PROBLEM_OUTCOME_UNKNOWN,
    PROBLEM_DRAINING,
    PROBLEM_WORKLOAD_INVALID,
    PROBLEM_IMAGE_UNKNOWN,
    PROBLEM_IMAGE_INVALID,
    PROBLEM_IMAGE_IN_USE,
    PROBLEM_NOT_ENFORCED,
    PROBLEM_CONFLICT,
    PROBLEM_LIMIT_REACHED,
    PROBLEM_INTERNAL,
    PROBLEM_COUNT
};

struct problem_word {
    const char *code;  /* "instance_gone" */
    int status;        /* HTTP */
    bool retryable;    /* the same request may succeed later */
    const char *title; /* one short sentence */
};
const struct problem_word *problem_word(enum problem problem);

#endif
