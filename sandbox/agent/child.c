/* Between fork and exec: from a copy of the agent to the user's command, confined. One that is held waits
 * there, with all done but the exec; what went wrong on the way is told when it is let go.
 *
 * The order is that of design section 7. From setresuid on the code inside may signal this process,
 * but not trace it: it is not dumpable until exec. Nothing here is shared with the agent but the
 * status pipe, and the agent waits for none of it. */
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/memory.h"
#include "sandbox/agent/agent.h"
#include "sandbox/runner.pb-c.h"

#define CHILD_STATUS_FD 3
#define CHILD_GO_FD 4
#define PATH_DEFAULT "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

static bool held;

static void go_wait(void)
{
    uint64_t count;
    while (held && read(CHILD_GO_FD, &count, sizeof count) < 0 && errno == EINTR)
        ;
    held = false;
}

static void fail(int exit_code, int sys, const char *subject) __attribute__((noreturn));
static void fail(int exit_code, int sys, const char *subject)
{
    struct child_status status = {.exit_code = exit_code};
    char reason[96];
    text_format(status.message, sizeof status.message, "%s: %s", subject,
                sys == 0 ? "not found" : strerror_r(sys, reason, sizeof reason));
    go_wait();
    (void)!write(CHILD_STATUS_FD, &status, sizeof status);
    _exit(exit_code);
}

/* The sources are all above 4: the agent holds 0, 1 and 2 itself. */
static void set_stdio(const struct child_plan *plan)
{
    if (plan->tty >= 0 && ioctl(plan->tty, TIOCSCTTY, 0) != 0)
        fail(126, errno, "controlling terminal");
    for (int i = 0; i < 3; i++)
        if (dup2(plan->tty >= 0 ? plan->tty : plan->stdio[i], i) < 0)
            fail(126, errno, "stdio");
    if (dup3(plan->status_fd, CHILD_STATUS_FD, O_CLOEXEC) < 0)
        _exit(126);
    if (plan->go_fd >= 0 && dup3(plan->go_fd, CHILD_GO_FD, O_CLOEXEC) < 0)
        fail(126, errno, "hold the command");
    held = plan->go_fd >= 0;
}

/* With one id the groups of whoever started the runner stay; no file in sight belongs to any of them. */
static void become(bool one_id, uint32_t uid, uint32_t gid)
{
    if ((!one_id && setgroups(0, NULL) != 0) || setresgid(gid, gid, gid) != 0 ||
        setresuid(uid, uid, uid) != 0)
        fail(126, errno, "become the user");
    if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0)
        fail(126, errno, "become undumpable");
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    const struct __user_cap_data_struct none[2] = {{0}};
    /* The bounding and ambient sets are empty since privilege_drop. */
    if (syscall(SYS_capset, &header, none) != 0)
        fail(126, errno, "drop capabilities");
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0)
        fail(126, errno, "set no_new_privs");
}

static void limit(__rlimit_resource_t resource, rlim_t value, const char *name)
{
    struct rlimit now;
    if (getrlimit(resource, &now) != 0)
        fail(126, errno, name);
    rlim_t least = value < now.rlim_max ? value : now.rlim_max;
    now = (struct rlimit){.rlim_cur = least, .rlim_max = least};
    if (setrlimit(resource, &now) != 0)
        fail(126, errno, name);
}

static void set_limits(const Skerry__Agent__Setup *setup)
{
    /* Below a page no file is written, and 1 alone also keeps the kernel from starting the program of
     * a core_pattern that is a pipe (core(5) leaves that out; fs/coredump.c says it). The filter
     * leaves nobody change it. */
    limit(RLIMIT_CORE, 1, "limit core");
    limit(RLIMIT_MEMLOCK, 64 * 1024, "limit locked memory");
    if (setup->open_files_max > 0)
        limit(RLIMIT_NOFILE, setup->open_files_max, "limit open files");
    if (setup->processes_max > 0)
        limit(RLIMIT_NPROC, setup->processes_max, "limit processes");
}

static void set_seccomp(const ProtobufCBinaryData *filter)
{
    if (filter->len == 0)
        return;
    /* protobuf-c's memory comes from malloc and is aligned for anything. */
    struct sock_fprog program = {.len = (unsigned short)(filter->len / sizeof(struct sock_filter)),
                                 .filter = (struct sock_filter *)(void *)filter->data};
    if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program) != 0)
        fail(126, errno, "seccomp");
}

static bool same_name(const char *a, const char *b)
{
    size_t length = strcspn(a, "=");
    return length == strcspn(b, "=") && memcmp(a, b, length) == 0;
}

static const char *environment_get(char *const *environment, const char *name)
{
    for (; *environment != NULL; environment++)
        if (same_name(*environment, name))
            return *environment + strcspn(*environment, "=") + 1;
    return NULL;
}

/* The command's own, then the instance's where the command says nothing. */
static char **environment_make(const struct child_plan *plan)
{
    static char term[] = "TERM=xterm";
    const Skerry__Agent__Setup *setup = plan->agent->setup;
    size_t own = plan->what->n_environment;
    char **out = calloc(own + setup->n_environment + 2, sizeof *out);
    if (out == NULL)
        fail(126, ENOMEM, "environment");
    size_t count = 0;
    for (size_t i = 0; i < own; i++)
        out[count++] = plan->what->environment[i];
    for (size_t i = 0; i < setup->n_environment; i++) {
        bool replaced = false;
        for (size_t k = 0; k < own && !replaced; k++)
            replaced = same_name(plan->what->environment[k], setup->environment[i]);
        if (!replaced)
            out[count++] = setup->environment[i];
    }
    if (plan->what->tty && environment_get(out, "TERM") == NULL)
        out[count] = term;
    return out;
}

/* Codes as a shell's: 127 when there is no such program, 126 when it cannot be executed. */
static void execute_failed(const char *name, const char *path, int sys) __attribute__((noreturn));
static void execute_failed(const char *name, const char *path, int sys)
{
    if (sys == ENOENT && path != NULL && faccessat(AT_FDCWD, path, F_OK, AT_EACCESS) == 0)
        fail(127, ENOENT, "its interpreter");
    if (sys == ENOENT || sys == ENOTDIR)
        fail(127, 0, name);
    fail(126, sys, name);
}

static void execute(char **argv, char **environment) __attribute__((noreturn));
static void execute(char **argv, char **environment)
{
    if (strchr(argv[0], '/') != NULL) {
        execve(argv[0], argv, environment);
        execute_failed(argv[0], argv[0], errno);
    }
    const char *path = environment_get(environment, "PATH");
    if (path == NULL || path[0] == '\0')
        path = PATH_DEFAULT;
    int reason = ENOENT;
    for (;;) {
        char file[4096];
        int length = (int)strcspn(path, ":");
        if (text_format(file, sizeof file, "%.*s%s%s", length, path, length > 0 ? "/" : "./",
                        argv[0])) {
            execve(file, argv, environment);
            if (errno == ENOENT && faccessat(AT_FDCWD, file, F_OK, AT_EACCESS) == 0)
                execute_failed(argv[0], file, ENOENT);
            /* As execvp: go on, but remember that there was one that we may not execute. */
            if (errno != ENOENT && errno != ENOTDIR)
                reason = errno;
        }
        if (path[length] == '\0')
            execute_failed(argv[0], NULL, reason);
        path += length + 1;
    }
}

static void run_files(const Skerry__Agent__Command *what) __attribute__((noreturn));
static void run_files(const Skerry__Agent__Command *what)
{
    struct err e = {0};
    int code = files_run(what->file_verb, what->path, &e);
    if (code != 0) {
        struct child_status status = {.exit_code = code};
        (void)text_copy(status.message, sizeof status.message, e.msg);
        dprintf(STDERR_FILENO, "%s\n", e.msg);
        (void)!write(CHILD_STATUS_FD, &status, sizeof status);
    }
    _exit(code);
}

void child_run(const struct child_plan *plan)
{
    const Skerry__Agent__Setup *setup = plan->agent->setup;
    const Skerry__Agent__Command *what = plan->what;
    (void)setsid();
    set_stdio(plan);
    become(plan->agent->one_id, plan->uid, plan->gid);
    set_limits(setup);
    if (close_range((held ? CHILD_GO_FD : CHILD_STATUS_FD) + 1, ~0u, 0) != 0)
        fail(126, errno, "close descriptors");
    if (chdir(setup->directory) != 0)
        fail(126, errno, setup->directory);
    char **environment = environment_make(plan);
    char **argv = calloc(what->n_command + 1, sizeof *argv);
    if (argv == NULL)
        fail(126, ENOMEM, "arguments");
    memcpy(argv, what->command, what->n_command * sizeof *argv);
    sigset_t none;
    sigemptyset(&none);
    (void)sigprocmask(SIG_SETMASK, &none, NULL);
    set_seccomp(&setup->seccomp);
    go_wait();
    if (what->file_verb != SKERRY__RUNNER__FILE_VERB__FILE_NONE)
        run_files(what);
    execute(argv, environment);
}
