/* The two daemons of a node of `skerry up`: starting, asking and ending them. */
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/memory.h"
#include "node/cli/client.h"
#include "node/up/node.h"

enum { WAIT_STEP_MS = 20, CMDLINE_MAX = 8192, CALL_MS = 10000, EXEC_MS = 5000 };

static ssize_t read_cmdline(pid_t pid, char *text, size_t size)
{
    char path[64];
    (void)text_format(path, sizeof path, "/proc/%d/cmdline", (int)pid);
    CLEANUP_FD int fd = open(path, O_RDONLY | O_CLOEXEC);
    return fd < 0 ? -1 : read(fd, text, size);
}

static bool has_program(pid_t pid)
{
    char path[64], to[1];
    (void)text_format(path, sizeof path, "/proc/%d/exe", (int)pid);
    return readlink(path, to, sizeof to) >= 0 || errno == EACCES;
}

/* Whether the process was started with this configuration file. Without arguments is a zombie, which has no
 * program either, and for a moment one that is being executed: the runner is twice. */
static bool is_ours(pid_t pid, const char *config)
{
    char text[CMDLINE_MAX];
    uint64_t end = clock_monotonic_ms() + EXEC_MS;
    ssize_t n;
    while ((n = read_cmdline(pid, text, sizeof text - 1)) == 0 && has_program(pid) &&
           clock_monotonic_ms() < end)
        (void)poll(NULL, 0, 1);
    if (n <= 0)
        return false;
    text[n] = '\0';
    for (const char *p = text; p < text + n; p += strlen(p) + 1) {
        if (strcmp(p, config) == 0)
            return true;
    }
    return false;
}

pid_t up_node_pid(const struct up_node *n, enum up_daemon daemon)
{
    char name[32], path[UP_PATH_SIZE], config[UP_PATH_SIZE], text[32] = "";
    (void)text_format(name, sizeof name, "%s.pid", up_daemon_names[daemon]);
    up_node_path(n, name, path);
    up_node_path(n, up_config_names[daemon], config);
    CLEANUP_FD int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || read(fd, text, sizeof text - 1) <= 0)
        return 0;
    long pid = strtol(text, NULL, 10);
    return pid > 1 && is_ours((pid_t)pid, config) ? (pid_t)pid : 0;
}

static int write_pid(const struct up_node *n, enum up_daemon daemon, pid_t pid, struct err *e)
{
    char name[32], path[UP_PATH_SIZE], text[32];
    (void)text_format(name, sizeof name, "%s.pid", up_daemon_names[daemon]);
    up_node_path(n, name, path);
    (void)unlink(path);
    (void)text_format(text, sizeof text, "%d\n", (int)pid);
    return up_write_file(path, text, 0644, e);
}

/* In the child: a session, a log, a user of its own. Only system calls from here on. */
static void become_daemon(const struct up_node *n, enum up_daemon daemon, int log)
{
    sigset_t none;
    sigemptyset(&none);
    (void)sigprocmask(SIG_SETMASK, &none, NULL);
    int null = open("/dev/null", O_RDONLY);
    if (setsid() < 0 || chdir("/") < 0 || null < 0 || dup2(null, 0) < 0 || dup2(log, 1) < 0 ||
        dup2(log, 2) < 0)
        _exit(CLI_FAILED);
    if (null > 2)
        close(null);
    memory_descriptors_raise();
    umask(022);
    if (daemon == UP_RUNNER)
        return;
    if ((n->root && (setgroups(0, NULL) < 0 || setresgid(n->gid, n->gid, n->gid) < 0 ||
                     setresuid(n->uid, n->uid, n->uid) < 0)) ||
        prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
        _exit(CLI_FAILED);
}

int up_node_start(const struct up_node *n, enum up_daemon daemon, const char *const *more,
                  struct err *e)
{
    char name[32], log_path[UP_PATH_SIZE], config[UP_PATH_SIZE], uid[24], gid[24];
    (void)text_format(name, sizeof name, "%s.log", up_daemon_names[daemon]);
    up_node_path(n, name, log_path);
    up_node_path(n, up_config_names[daemon], config);
    (void)text_format(uid, sizeof uid, "%u", (unsigned)n->uid);
    (void)text_format(gid, sizeof gid, "%u", (unsigned)n->gid);
    const char *serve[13] = {"skerry", "serve", "--config", config};
    size_t count = 4;
    for (size_t i = 0; more != NULL && more[i] != NULL; i++) {
        assert_always(i < 4);
        serve[count++] = more[i];
    }
    if (n->http != NULL) {
        serve[count++] = "--http";
        serve[count++] = n->http;
    }
    if (n->api != NULL) {
        serve[count++] = "--api";
        serve[count] = n->api;
    }
    const char *runner[] = {"skerry", "runner",     "--config", config, "--node-uid",
                            uid,      "--node-gid", gid,        NULL};
    /* By descriptor: the program may lie where serve's user cannot reach it by path. */
    CLEANUP_FD int self = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    CLEANUP_FD int log = open(log_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    if (self < 0 || log < 0)
        return err_sys(e, ERR_IO, errno, "open %s", self < 0 ? "/proc/self/exe" : log_path);
    int begun[2];
    if (pipe2(begun, O_CLOEXEC) < 0)
        return err_sys(e, ERR_IO, errno, "pipe");
    pid_t pid = fork();
    int cause = errno;
    if (pid != 0)
        close(begun[1]);
    /* Exec closes its end: from then on its arguments are its own, by which it is known. */
    while (pid > 0 && read(begun[0], &(char){0}, 1) < 0 && errno == EINTR)
        ;
    if (pid != 0)
        close(begun[0]);
    if (pid < 0)
        return err_sys(e, ERR_IO, cause, "start %s", up_daemon_names[daemon]);
    if (pid == 0) {
        become_daemon(n, daemon, log);
        syscall(SYS_execveat, self, "", daemon == UP_SERVE ? serve : runner, environ,
                AT_EMPTY_PATH);
        _exit(CLI_FAILED);
    }
    return write_pid(n, daemon, pid, e);
}

/* Reaps it if it is a child of this process. */
static bool has_ended(const struct up_node *n, enum up_daemon daemon, pid_t pid)
{
    (void)waitpid(pid, NULL, WNOHANG);
    return up_node_pid(n, daemon) == 0;
}

void up_node_signal(const struct up_node *n, enum up_daemon daemon, int number)
{
    pid_t pid = up_node_pid(n, daemon);
    if (pid != 0 && number != 0)
        (void)kill(pid, number);
}

bool up_node_end(const struct up_node *n, enum up_daemon daemon, int number, unsigned timeout_ms)
{
    pid_t pid = up_node_pid(n, daemon);
    uint64_t end = clock_monotonic_ms() + timeout_ms;
    if (pid == 0)
        return true;
    up_node_signal(n, daemon, number);
    while (!has_ended(n, daemon, pid)) {
        if (clock_monotonic_ms() >= end)
            return false;
        (void)poll(NULL, 0, WAIT_STEP_MS);
    }
    return true;
}

/* --- ready ------------------------------------------------------------------------------------ */

static int call(const struct up_node *n, const struct client_request *request,
                struct client_answer *answer, struct err *e)
{
    char address[UP_PATH_SIZE];
    struct client *client = NULL;
    (void)text_format(address, sizeof address, "unix:%s", n->api_socket);
    struct client_options options = {.address = address};
    int rc = client_open(&client, &options, e);
    if (rc == 0)
        rc = client_do(client, request, answer, e);
    client_close(client);
    return rc;
}

int up_node_call(const struct up_node *n, const char *method, const char *path, const char *body,
                 json_t **out, struct err *e)
{
    struct client_answer answer = {0};
    struct client_request request = {.method = method,
                                     .path = path,
                                     .accept = "application/json",
                                     .body = body,
                                     .body_length = body == NULL ? 0 : strlen(body),
                                     .timeout_ms = CALL_MS};
    int rc = call(n, &request, &answer, e);
    if (rc == 0) {
        *out = client_json(&answer);
        if (answer.status / 100 != 2) {
            rc = err_set(e, ERR_UNAVAILABLE, "%s: %u %s: %s", up_node_name(n), answer.status,
                         cli_text(*out, "code"), cli_text(*out, "detail"));
            json_decref(*out);
            *out = NULL;
        }
    }
    client_answer_free(&answer);
    return rc;
}

static bool answers_ready(const struct up_node *n, char *why, size_t size)
{
    struct client_answer answer = {0};
    struct err e = {0};
    struct client_request request = {.path = "/readyz", .timeout_ms = 2000};
    int rc = call(n, &request, &answer, &e);
    bool ready = rc == 0 && answer.status == 200;
    if (rc == 0 && !ready) {
        json_t *problem = client_json(&answer);
        (void)text_copy(why, size, cli_text(problem, "detail"));
        json_decref(problem);
    }
    client_answer_free(&answer);
    return ready;
}

bool up_interrupted(void)
{
    sigset_t waiting;
    return sigpending(&waiting) == 0 &&
           (sigismember(&waiting, SIGINT) == 1 || sigismember(&waiting, SIGTERM) == 1 ||
            sigismember(&waiting, SIGHUP) == 1);
}

int up_node_wait_ready(const struct up_node *n, unsigned timeout_ms, struct err *e)
{
    uint64_t end = clock_monotonic_ms() + timeout_ms;
    char why[160] = "";
    for (;;) {
        if (answers_ready(n, why, sizeof why))
            return 0;
        uint64_t now = clock_monotonic_ms();
        for (int daemon = UP_SERVE; daemon <= UP_RUNNER; daemon++) {
            if (has_ended(n, (enum up_daemon)daemon, -1))
                return err_set(e, ERR_UNAVAILABLE, "%s: %s has ended", up_node_name(n),
                               up_daemon_names[daemon]);
        }
        if (up_interrupted())
            return err_set(e, ERR_CANCELED, "interrupted");
        if (now >= end)
            return err_set(e, ERR_TIMEOUT, "%s is not ready after %u s%s%s", up_node_name(n),
                           timeout_ms / 1000, why[0] != '\0' ? ": " : "", why);
        (void)poll(NULL, 0, WAIT_STEP_MS);
    }
}

void up_node_show_log(const struct up_node *n, enum up_daemon daemon, unsigned lines)
{
    char name[32], path[UP_PATH_SIZE], text[8192];
    (void)text_format(name, sizeof name, "%s.log", up_daemon_names[daemon]);
    up_node_path(n, name, path);
    CLEANUP_FD int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return;
    off_t size = lseek(fd, 0, SEEK_END);
    off_t from = size > (off_t)sizeof text - 1 ? size - (off_t)sizeof text + 1 : 0;
    ssize_t length = pread(fd, text, sizeof text - 1, from);
    if (length <= 0)
        return;
    text[length] = '\0';
    char *start = text + length;
    while (start > text && lines > 0) {
        start--;
        if (start == text || (start[-1] == '\n' && *start != '\0'))
            lines--;
    }
    fprintf(stderr, "--- the end of %s\n%s", path, start);
}
