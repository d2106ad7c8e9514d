/* sandbox/agent/agent.h - process 1 of an instance: starts commands, reaps, watches, reports.
 *
 * Thread:  one, around one epoll set. Nothing here waits for anything but epoll: neither a runner
 *          that does not read nor code that floods its output may hold up the reaping.
 * Trust:   the runner is trusted; every process inside is hostile. The agent has an inside uid of
 *          its own, is not dumpable and holds three capabilities (SETUID, SETGID, KILL).
 * Memory:  `struct agent` is all its state and every table in it is bounded.
 * Life:    the agent's exit ends the instance, as the kernel kills the rest of its pid namespace.
 * Time:    deadlines are CLOCK_BOOTTIME in milliseconds, one timerfd for all. */
#ifndef SKERRY_SANDBOX_AGENT_AGENT_H
#define SKERRY_SANDBOX_AGENT_AGENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/resource.h>
#include <sys/types.h>

#include "base/err.h"
#include "base/words.h"
#include "sandbox/agent.pb-c.h"
#include "sandbox/shared/agent_check.h"
#include "sandbox/shared/bind.h"
#include "sandbox/shared/log_format.h"

#define AGENT_LISTENER_FD 3
#define AGENT_CHANNEL_FD 4

#define EXITS_MAX 32
#define PORTS_MAX 16
#define TAIL_BYTES_MAX 256
#define QUEUE_MESSAGES_MAX 64
#define QUEUE_BYTES_MAX (64 * 1024)
/* The health check is a command too, with an id that no runner can use. */
#define EXEC_ID_HEALTH UINT32_MAX

enum event_kind {
    EVENT_SIGNAL,
    EVENT_TIMER,
    EVENT_LISTENER,
    EVENT_CHANNEL, /* index: the connection's generation */
    EVENT_LOG,     /* index: 0 stdout, 1 stderr */
    EVENT_STATUS   /* index: slot of the command */
};

enum deadline {
    DEADLINE_READY,        /* look again whether the port listens */
    DEADLINE_HEALTH,       /* run the health check, or kill one that takes too long */
    DEADLINE_STOP,         /* the grace after SIGTERM is over */
    DEADLINE_LIFE,         /* the instance's own lifetime */
    DEADLINE_LEASE,        /* its lease is over, whether or not a runner is there */
    DEADLINE_RUNNER_GRACE, /* no runner came back */
    DEADLINE_LOG,          /* the log may take output again */
    DEADLINE_REAP,         /* more dead children than one pass takes */
    DEADLINE_COUNT
};

/* One child of ours; free while pid is 0. */
struct command {
    uint32_t exec_id;
    pid_t pid;
    int status_fd; /* read end: tells why exec failed; its end tells that it did not */
    int tty_fd;    /* the slave end, kept for resizing; -1: none */
    bool executed;
    bool failed; /* message and failed_code say how */
    int failed_code;
    char message[256];
    uint64_t started_us;
};

struct exit_record {
    uint32_t exec_id, exit_code, signal;
    uint64_t cpu_us, wall_us;
    char message[256];
    char stderr_tail[TAIL_BYTES_MAX * 3 + 1];
};

/* The last line of stderr that is not empty. */
struct tail {
    uint8_t line[TAIL_BYTES_MAX]; /* being written */
    size_t length;
    uint8_t last[TAIL_BYTES_MAX]; /* complete */
    size_t last_length;
};

struct logs {
    int files[2]; /* -1: none */
    unsigned current;
    uint64_t offset;
    uint64_t file_bytes_max;
    uint64_t sequence;
    int pipes[2]; /* read ends: stdout, stderr of main; -1: none */
    uint64_t budget_bytes;
    uint64_t budget_at_ms;
    bool paused;
    struct tail tail;
};

struct queued {
    uint8_t *data;
    size_t length;
    int fd; /* -1: none */
};

struct channel {
    int fd; /* -1: no runner */
    uint32_t generation;
    struct queued queue[QUEUE_MESSAGES_MAX];
    size_t queue_count, queue_bytes;
};

struct readiness {
    bool ready, ipv6, has_address;
    uint8_t address[16];
    uint64_t after_us;
    int diag_fd; /* NETLINK_SOCK_DIAG; -1 when not open, -2 when this kernel has none */
    uint32_t diag_seq;
    bool listening; /* the port was seen, the health check has not passed yet */
    uint16_t ports[PORTS_MAX];
    size_t port_count;
    uint64_t ports_at_ms;
};

struct health {
    bool running, killed, unhealthy;
    uint32_t failures;
};

struct agent {
    int epoll_fd, signal_fd, timer_fd;
    int proc_fd, pts_fd;                /* O_PATH; pts_fd -1: no terminals here */
    uint64_t deadlines[DEADLINE_COUNT]; /* 0: none */
    uint64_t armed_ms;
    struct channel channel;
    Skerry__Agent__ToAgent *setup_message; /* owns setup */
    const Skerry__Agent__Setup *setup;
    struct command commands[AGENT_COMMANDS_MAX];
    struct exit_record exits[EXITS_MAX];
    size_t exit_count; /* ever; the ring holds the latest */
    struct logs logs;
    struct readiness readiness;
    struct health health;
    int go_fd; /* an eventfd that a held main waits for; -1: none is held */
    bool started, main_exited, stopping;
    bool one_id; /* ours is that of the code: struct bind_skeleton */
    enum end_reason stop_reason;
    uint64_t started_boot_ms, started_us;
};

/* blank.c: what comes before all else; ends the process when that fails, or when it is not needed. */
bool blank_become(void);

/* bind.c: as root of the first user namespace, one after the other. Descriptors stay the caller's;
 * *proc_sys is an O_PATH of a /proc/sys that is not read-only, the caller's. */
int bind_skeleton_make(const struct bind_skeleton *s, const int *descriptors, int *proc_sys,
                       struct err *e) ERR_CHECKED;
int bind_plan_do(const struct bind_plan *plan, const int *descriptors, struct err *e) ERR_CHECKED;

/* lock.c: a second user namespace, owned by the first, with what is counted per user lowered; *user is a
 * descriptor of it, the caller's. `proc_sys` as above: the code sees /proc/sys read-only. `only`: whose ids
 * are the only ones there, where root of the first has them; NULL: all. */
int lock_prepare(int proc_sys, bool shared_ids, const struct bind_plan *only, int *user,
                 struct err *e) ERR_CHECKED;
/* Into it, as its root, or as the only one there is; the mounts are what they are from then on. */
int lock_enter(int user, struct err *e) ERR_CHECKED;

/* privilege.c: before all else; then, once, as inside root with all capabilities. */
void privilege_signals_reset(void);
int privilege_drop(bool one_id, struct err *e) ERR_CHECKED;
/* Files made between these two belong to `uid`:`gid`, as the code expects of its own stdio. */
void privilege_files_as(uint32_t uid, uint32_t gid);
void privilege_files_own(void);

/* main.c: the loop. */
int loop_watch(struct agent *a, int fd, uint32_t events, enum event_kind kind, uint32_t index,
               struct err *e) ERR_CHECKED;
void loop_rewatch(struct agent *a, int fd, uint32_t events, enum event_kind kind, uint32_t index);
void loop_deadline(struct agent *a, enum deadline which, uint64_t boot_ms);

/* channel.c: the one connection to a runner. */
void channel_open(struct agent *a, int fd);
/* From when the agent is set up: its socket lies in the folder by then. */
int channel_listen(struct agent *a, struct err *e) ERR_CHECKED;
void channel_accept(struct agent *a);
void channel_event(struct agent *a, uint32_t generation, uint32_t events);
/* Never blocks; keeps a bounded queue for a runner that is slow and drops one that stopped. */
void channel_send(struct agent *a, Skerry__Agent__FromAgent *message, const int *fd);
/* Gives the last messages of a dying agent a moment to leave. */
void channel_flush(struct agent *a);

/* verbs.c: what a runner asks. Takes the descriptors, may take `message` (then *message is NULL). */
void verb_take(struct agent *a, Skerry__Agent__ToAgent **message, int *fds, size_t fd_count);

/* command.c: starting and reaping. `fds` as agent_check allows; they stay the caller's. `master`
 * gets the terminal's other end, the caller's then, or -1. */
int command_start(struct agent *a, const Skerry__Agent__Command *what, const int *fds,
                  size_t fd_count, int *master, pid_t *pid, struct err *e) ERR_CHECKED;
/* Lets the held main execute; NULL: none is held, or it has ended. */
const struct command *command_go(struct agent *a);
struct command *command_find(struct agent *a, uint32_t exec_id);
void command_status_event(struct agent *a, uint32_t slot);
void command_signal(const struct command *c, int signal);
void command_reap(struct agent *a);
void command_exit_message(const struct exit_record *record, Skerry__Agent__Exited *out);

/* child.c: between fork and exec. */
struct child_plan {
    const struct agent *agent;
    const Skerry__Agent__Command *what;
    int stdio[3];
    int tty; /* the slave; -1: stdio as above */
    int status_fd;
    int go_fd; /* -1: it is not held */
    uint32_t uid, gid;
};
struct child_status {
    int32_t exit_code;
    char message[252];
};
void child_run(const struct child_plan *plan) __attribute__((noreturn));

/* logs.c */
int logs_open(struct agent *a, const int files[2], uint64_t bytes_max, struct err *e) ERR_CHECKED;
/* The write ends for main, the caller's; their files belong to main's user. */
int logs_pipes(struct agent *a, int out[2], struct err *e) ERR_CHECKED;
void logs_event(struct agent *a, uint32_t stream);
void logs_resume(struct agent *a);
/* Takes what main left in the pipes; whoever else holds them is not waited for. */
void logs_drain(struct agent *a);
void logs_tail(const struct agent *a, char *out, size_t size);

/* ready.c */
void ready_started(struct agent *a);  /* main was forked, or there is none */
void ready_executed(struct agent *a); /* main's exec succeeded, or there is none */
void ready_poll(struct agent *a);
void ready_health_ended(struct agent *a, int wait_status);
void ready_health_tick(struct agent *a);
void ready_message(const struct agent *a, Skerry__Agent__Ready *out);

/* listening.c: TCP sockets that listen in our network namespace. */
struct listener {
    bool ipv6;
    uint8_t address[16];
    uint16_t port;
};
/* Those on `port` (0: all), at most `max`. */
size_t listening_find(struct agent *a, uint16_t port, struct listener *out, size_t max);
/* One row of /proc/net/tcp or tcp6; false: no listening socket. */
bool listening_row(const char *line, bool ipv6, struct listener *out);

/* files.c: the built-in commands; in the child, confined as any command. Returns an exit code and
 * fills `e` when that is not 0. */
int files_run(uint32_t verb, const char *path, struct err *e);

/* ending.c */
void ending_stop(struct agent *a, enum end_reason reason, uint64_t grace_ms);
/* What the exit of main means, which its message says; END_NONE: Ending follows. Then: it was told. */
enum end_reason ending_of_main(const struct agent *a);
void ending_main_exited(struct agent *a) __attribute__((noreturn));
void ending_now(struct agent *a, enum end_reason reason, const char *message)
    __attribute__((noreturn));

#endif
