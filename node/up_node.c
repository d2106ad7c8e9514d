#include "node/up_node.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <inttypes.h>
#include <poll.h>
#include <pwd.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/memory.h"
#include "node/client.h"
#include "node/config.h"

enum { WAIT_STEP_MS = 20, CMDLINE_MAX = 8192 };

/* Each `up` folder gets a range of user ids and a control group of its own, so that two of them do
 * not meet: the ids of 4,080 instances are there in all, the first 1,000 are the service's. */
enum { RANGE_INSTANCES = 220, RANGES = (4080 - 1000) / RANGE_INSTANCES };
#define RANGE_FIRST_UID (0x70000000ull + 1000ull * 65536)

static const char *const daemon_names[] = {[UP_SERVE] = "serve", [UP_RUNNER] = "runner"};
static const char *const config_names[] = {[UP_SERVE] = "skerry.yaml", [UP_RUNNER] = "runner.yaml"};

/* --- the folder ------------------------------------------------------------------------------- */

void up_node_path(const struct up_node *n, const char *name, char out[UP_PATH_SIZE])
{
    assert_always(text_format(out, UP_PATH_SIZE, "%s/%s", n->directory, name));
}

static int choose_directory(char *out, size_t size, const char *dir, struct err *e)
{
    const char *state = getenv("XDG_STATE_HOME");
    char here[UP_PATH_SIZE] = "";
    bool fits;
    if (dir != NULL && dir[0] != '/') {
        if (getcwd(here, sizeof here) == NULL)
            return err_sys(e, ERR_IO, errno, "find the current folder");
        fits = text_format(out, size, "%s/%s", here, dir);
    } else if (dir != NULL) {
        fits = text_copy(out, size, dir);
    } else if (state != NULL && state[0] == '/') {
        fits = text_format(out, size, "%s/skerry", state);
    } else {
        fits = text_copy(out, size, "/var/lib/skerry/up");
    }
    size_t length = strlen(out);
    while (length > 1 && out[length - 1] == '/')
        out[--length] = '\0';
    /* The paths of sockets below it have 108 bytes at most. */
    if (!fits || length > 70)
        return err_set(e, ERR_INVALID, "folder %.80s...: its path may have 70 bytes", out);
    return 0;
}

int up_node_init(struct up_node *n, const char *dir, unsigned number, struct err *e)
{
    char base[UP_PATH_SIZE];
    *n = (struct up_node){.uid = UP_UID_DEFAULT, .gid = UP_UID_DEFAULT};
    int rc = choose_directory(base, sizeof base, dir, e);
    if (rc != 0)
        return rc;
    (void)text_format(n->directory, sizeof n->directory, "%s/node%u", base, number);
    const struct passwd *user = getpwnam("skerry");
    if (user != NULL) {
        n->uid = user->pw_uid;
        n->gid = user->pw_gid;
    }
    return 0;
}

static int make_folder(const char *path, mode_t mode, uid_t uid, gid_t gid, struct err *e)
{
    if (mkdir(path, mode) < 0 && errno != EEXIST)
        return err_sys(e, ERR_IO, errno, "make folder %s", path);
    if (chown(path, uid, gid) < 0 || chmod(path, mode) < 0)
        return err_sys(e, ERR_IO, errno, "give folder %s its owner", path);
    return 0;
}

/* All folders above `path`; serve must be able to pass through them. */
static int make_parents(const char *path, struct err *e)
{
    CLEANUP_FREE char *copy = strdup(path);
    if (copy == NULL)
        return err_set(e, ERR_NO_MEMORY, "no memory");
    char *last = strrchr(copy, '/');
    for (char *p = copy + 1; (p = strchr(p, '/')) != NULL; p++) {
        *p = '\0';
        struct stat st;
        if (mkdir(copy, 0755) < 0 && errno != EEXIST)
            return err_sys(e, ERR_IO, errno, "make folder %s", copy);
        if (stat(copy, &st) < 0)
            return err_sys(e, ERR_IO, errno, "look at folder %s", copy);
        if ((st.st_mode & S_IXOTH) == 0) {
            /* DIR itself is ours to open; what is above belongs to somebody else. */
            if (p != last)
                return err_set(e, ERR_DENIED,
                               "the user that runs serve cannot pass through %s; choose another "
                               "--dir, or chmod o+x %s",
                               copy, copy);
            if (chmod(copy, (st.st_mode | S_IXOTH) & 07777) < 0)
                return err_sys(e, ERR_IO, errno, "open folder %s for serve", copy);
        }
        *p = '/';
    }
    return 0;
}

static int write_once(const char *path, const char *text, struct err *e)
{
    CLEANUP_FD int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    if (fd < 0 && errno == EEXIST)
        return 0;
    if (fd < 0)
        return err_sys(e, ERR_IO, errno, "write %s", path);
    (void)fchmod(fd, 0644);
    size_t length = strlen(text);
    if (write(fd, text, length) != (ssize_t)length)
        return err_sys(e, ERR_IO, errno, "write %s", path);
    return 0;
}

static uint64_t hash_text(const char *text)
{
    uint64_t hash = 14695981039346656037ull; /* FNV-1a */
    for (; *text != '\0'; text++)
        hash = (hash ^ (unsigned char)*text) * 1099511628211ull;
    return hash;
}

static int write_configuration(const struct up_node *n, struct err *e)
{
    char path[UP_PATH_SIZE];
    const char *d = n->directory;
    uint64_t hash = hash_text(d);
    CLEANUP_FREE char *serve =
        text_new("# Written by `skerry up` once; yours to change.\n"
                 "name: %s\n"
                 "data: %s/data\n"
                 "http: [\"%s\"]\n"
                 "api: \"%s\"\n"
                 "api_socket: %s/run/api.sock\n"
                 "runner_socket: %s/run/runner.sock\n"
                 "limits: {instances_max: %d}\n",
                 strrchr(d, '/') + 1, d, n->http != NULL ? n->http : "127.0.0.1:8080",
                 n->api != NULL ? n->api : "127.0.0.1:8081", d, d, RANGE_INSTANCES);
    CLEANUP_FREE char *runner =
        text_new("# What this node may do at most. Written by `skerry up` once; yours to change.\n"
                 "directory: %s/runner\n"
                 "socket: %s/run/runner.sock\n"
                 "cgroup: skerry-%08x\n"
                 "uid_base: %" PRIu64 "\n"
                 "max: {instances: %d}\n",
                 d, d, (unsigned)(hash & 0xffffffff),
                 (uint64_t)(RANGE_FIRST_UID + (hash >> 32) % RANGES * RANGE_INSTANCES * 65536ull),
                 RANGE_INSTANCES);
    if (serve == NULL || runner == NULL)
        return err_set(e, ERR_NO_MEMORY, "no memory");
    up_node_path(n, config_names[UP_SERVE], path);
    int rc = write_once(path, serve, e);
    up_node_path(n, config_names[UP_RUNNER], path);
    return rc == 0 ? write_once(path, runner, e) : rc;
}

int up_node_prepare(const struct up_node *n, struct err *e)
{
    static const struct {
        const char *name;
        mode_t mode;
        bool of_serve;
    } folders[] = {
        {"", 0755, false}, {"run", 0755, true}, {"runner", 0755, false}, {"data", 0700, true}};
    int rc = make_parents(n->directory, e);
    for (size_t i = 0; rc == 0 && i < ARRAY_SIZE(folders); i++) {
        char path[UP_PATH_SIZE];
        up_node_path(n, folders[i].name, path);
        rc = make_folder(path, folders[i].mode, folders[i].of_serve ? n->uid : 0,
                         folders[i].of_serve ? n->gid : 0, e);
    }
    return rc == 0 ? write_configuration(n, e) : rc;
}

int up_node_load(struct up_node *n, struct err *e)
{
    char path[UP_PATH_SIZE];
    struct config config;
    up_node_path(n, config_names[UP_SERVE], path);
    int rc = config_load(&config, path, e);
    if (rc != 0)
        return rc;
    if (!text_copy(n->api_socket, sizeof n->api_socket, config.api_socket) ||
        !text_copy(n->runner_socket, sizeof n->runner_socket, config.runner_socket))
        rc = err_set(e, ERR_INVALID, "%s: the path of a socket is too long", path);
    config_free(&config);
    return rc;
}

/* --- the daemons ------------------------------------------------------------------------------ */

/* Whether the process was started with this configuration file. */
static bool is_ours(pid_t pid, const char *config)
{
    char path[64], text[CMDLINE_MAX];
    (void)text_format(path, sizeof path, "/proc/%d/cmdline", (int)pid);
    CLEANUP_FD int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
    if (n <= 0)
        return false; /* a zombie has none */
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
    (void)text_format(name, sizeof name, "%s.pid", daemon_names[daemon]);
    up_node_path(n, name, path);
    up_node_path(n, config_names[daemon], config);
    CLEANUP_FD int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || read(fd, text, sizeof text - 1) <= 0)
        return 0;
    long pid = strtol(text, NULL, 10);
    return pid > 1 && is_ours((pid_t)pid, config) ? (pid_t)pid : 0;
}

static int write_pid(const struct up_node *n, enum up_daemon daemon, pid_t pid, struct err *e)
{
    char name[32], path[UP_PATH_SIZE], text[32];
    (void)text_format(name, sizeof name, "%s.pid", daemon_names[daemon]);
    up_node_path(n, name, path);
    (void)unlink(path);
    (void)text_format(text, sizeof text, "%d\n", (int)pid);
    return write_once(path, text, e);
}

/* In the child: a session, a log, a user of its own. Only system calls from here on. */
static void become_daemon(const struct up_node *n, enum up_daemon daemon, int log)
{
    struct rlimit files;
    sigset_t none;
    sigemptyset(&none);
    (void)sigprocmask(SIG_SETMASK, &none, NULL);
    int null = open("/dev/null", O_RDONLY);
    if (setsid() < 0 || chdir("/") < 0 || null < 0 || dup2(null, 0) < 0 || dup2(log, 1) < 0 ||
        dup2(log, 2) < 0)
        _exit(CLI_FAILED);
    if (null > 2)
        close(null);
    if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
        files.rlim_cur = files.rlim_max;
        (void)setrlimit(RLIMIT_NOFILE, &files);
    }
    umask(022);
    if (daemon == UP_RUNNER)
        return;
    if (setgroups(0, NULL) < 0 || setresgid(n->gid, n->gid, n->gid) < 0 ||
        setresuid(n->uid, n->uid, n->uid) < 0 || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
        _exit(CLI_FAILED);
}

int up_node_start(const struct up_node *n, enum up_daemon daemon, pid_t *out, struct err *e)
{
    char name[32], log_path[UP_PATH_SIZE], config[UP_PATH_SIZE], uid[24], gid[24];
    (void)text_format(name, sizeof name, "%s.log", daemon_names[daemon]);
    up_node_path(n, name, log_path);
    up_node_path(n, config_names[daemon], config);
    (void)text_format(uid, sizeof uid, "%u", (unsigned)n->uid);
    (void)text_format(gid, sizeof gid, "%u", (unsigned)n->gid);
    const char *serve[] = {"skerry", "serve", "--config", config, "--bootstrap",
                           NULL,     NULL,    NULL,       NULL,   NULL};
    size_t count = 5;
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
    pid_t pid = fork();
    if (pid < 0)
        return err_sys(e, ERR_IO, errno, "start %s", daemon_names[daemon]);
    if (pid == 0) {
        become_daemon(n, daemon, log);
        syscall(SYS_execveat, self, "", daemon == UP_SERVE ? serve : runner, environ,
                AT_EMPTY_PATH);
        _exit(CLI_FAILED);
    }
    *out = pid;
    return write_pid(n, daemon, pid, e);
}

/* Reaps it if it is a child of this process. */
static bool has_ended(const struct up_node *n, enum up_daemon daemon, pid_t pid)
{
    (void)waitpid(pid, NULL, WNOHANG);
    return up_node_pid(n, daemon) == 0;
}

bool up_node_end(const struct up_node *n, enum up_daemon daemon, int number, unsigned timeout_ms)
{
    pid_t pid = up_node_pid(n, daemon);
    uint64_t end = clock_monotonic_ms() + timeout_ms;
    if (pid == 0)
        return true;
    (void)kill(pid, number);
    while (!has_ended(n, daemon, pid)) {
        if (clock_monotonic_ms() >= end)
            return false;
        (void)poll(NULL, 0, WAIT_STEP_MS);
    }
    return true;
}

/* --- ready ------------------------------------------------------------------------------------ */

static bool answers_ready(const struct up_node *n, char *why, size_t size)
{
    char address[UP_PATH_SIZE];
    struct client *client = NULL;
    struct client_answer answer = {0};
    struct err e = {0};
    (void)text_format(address, sizeof address, "unix:%s", n->api_socket);
    struct client_options options = {.address = address};
    struct client_request request = {.path = "/readyz", .timeout_ms = 2000};
    int rc = client_open(&client, &options, &e);
    if (rc == 0)
        rc = client_do(client, &request, &answer, &e);
    bool ready = rc == 0 && answer.status == 200;
    if (rc == 0 && !ready) {
        json_t *problem = client_json(&answer);
        (void)text_copy(why, size, cli_text(problem, "detail"));
        json_decref(problem);
    }
    client_answer_free(&answer);
    client_close(client);
    return ready;
}

int up_node_wait_ready(const struct up_node *n, unsigned timeout_ms, struct err *e)
{
    uint64_t end = clock_monotonic_ms() + timeout_ms;
    char why[160] = "";
    /* The first look may come before exec has given a new daemon its arguments. */
    uint64_t sure = clock_monotonic_ms() + 500;
    for (;;) {
        if (answers_ready(n, why, sizeof why))
            return 0;
        uint64_t now = clock_monotonic_ms();
        for (int daemon = UP_SERVE; now > sure && daemon <= UP_RUNNER; daemon++) {
            if (has_ended(n, (enum up_daemon)daemon, -1))
                return err_set(e, ERR_UNAVAILABLE, "%s has ended", daemon_names[daemon]);
        }
        if (now >= end)
            return err_set(e, ERR_TIMEOUT, "the node is not ready after %u s%s%s",
                           timeout_ms / 1000, why[0] != '\0' ? ": " : "", why);
        (void)poll(NULL, 0, WAIT_STEP_MS);
    }
}

void up_node_show_log(const struct up_node *n, enum up_daemon daemon, unsigned lines)
{
    char name[32], path[UP_PATH_SIZE], text[8192];
    (void)text_format(name, sizeof name, "%s.log", daemon_names[daemon]);
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

/* --- the link --------------------------------------------------------------------------------- */

static bool somebody_listens(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    CLEANUP_FD int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0 || !text_copy(address.sun_path, sizeof address.sun_path, path))
        return true;
    return connect(fd, (const struct sockaddr *)&address, sizeof address) == 0 || errno == EAGAIN;
}

static bool link_is_ours(const struct up_node *n)
{
    char target[UP_PATH_SIZE];
    ssize_t length = readlink(UP_LINK, target, sizeof target - 1);
    if (length < 0)
        return false;
    target[length] = '\0';
    return strcmp(target, n->api_socket) == 0;
}

bool up_node_link(const struct up_node *n)
{
    if (link_is_ours(n) || strcmp(n->api_socket, UP_LINK) == 0)
        return true;
    if (somebody_listens(UP_LINK))
        return false;
    (void)mkdir("/run/skerry", 0755);
    (void)unlink(UP_LINK);
    return symlink(n->api_socket, UP_LINK) == 0;
}

void up_node_unlink(const struct up_node *n)
{
    if (link_is_ours(n))
        (void)unlink(UP_LINK);
    (void)rmdir("/run/skerry"); /* if nothing else is there */
}
