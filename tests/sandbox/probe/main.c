#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "probe.h"

#define CHECK_MS 30000

void probe_add(struct probe_list *list, const char *group, const char *name, probe_run run,
               const void *with, bool killed)
{
    if (list->count == list->capacity) {
        list->capacity = list->capacity == 0 ? 64 : list->capacity * 2;
        list->items = realloc(list->items, list->capacity * sizeof *list->items);
        if (list->items == NULL)
            abort();
    }
    list->items[list->count++] = (struct probe_check){group, name, run, with, killed};
}

bool probe_fail(struct probe_text *what, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(what->text, sizeof what->text, format, args);
    va_end(args);
    what->text[strcspn(what->text, "\n")] = '\0'; /* one line a check */
    return false;
}

bool probe_refused(struct probe_text *what, long rc)
{
    if (rc >= 0)
        return probe_fail(what, "it worked");
    if (errno == EPERM || errno == EACCES || errno == ENOSYS || errno == EROFS)
        return true;
    return probe_fail(what, "not refused, it only failed: %s", strerror(errno));
}

bool probe_failed(struct probe_text *what, long rc)
{
    return rc < 0 || probe_fail(what, "it worked");
}

static enum probe_profile profile = PROBE_DEFAULT;
static bool one_id;

bool probe_one_id(void)
{
    return one_id;
}

enum probe_profile probe_profile(void)
{
    return profile;
}

bool probe_root_is_image(void)
{
    return access("/usr/bin/env", F_OK) != 0;
}

static void run_child(const struct probe_check *check, int fd)
{
    struct probe_text what = {{0}};
    errno = 0;
    bool good = check->run(check->with, &what);
    if (!good && write(fd, what.text, strlen(what.text)) < 0)
        _exit(2);
    _exit(good ? 0 : 1);
}

static bool judge(const struct probe_check *check, int status, struct probe_text *what)
{
    if (WIFSIGNALED(status) && WTERMSIG(status) == SIGSYS)
        return check->killed || probe_fail(what, "killed by SIGSYS");
    /* A kernel without i386 calls has no such gate: the instruction itself faults. */
    if (WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV && check->killed)
        return true;
    if (WIFSIGNALED(status))
        return probe_fail(what, "killed by signal %d", WTERMSIG(status));
    if (check->killed && what->text[0] == '\0')
        return probe_fail(what, "not killed");
    return WEXITSTATUS(status) == 0;
}

static bool run_check(const struct probe_check *check, struct probe_text *what)
{
    int ends[2];
    if (pipe(ends) != 0)
        return probe_fail(what, "no pipe: %s", strerror(errno));
    fflush(stdout);
    pid_t pid = fork();
    if (pid < 0)
        return probe_fail(what, "no child: %s", strerror(errno));
    if (pid == 0) {
        close(ends[0]);
        run_child(check, ends[1]);
    }
    close(ends[1]);
    struct pollfd wait = {.fd = ends[0], .events = POLLIN};
    int late = poll(&wait, 1, CHECK_MS) == 0;
    if (late)
        kill(pid, SIGKILL);
    ssize_t n = late ? 0 : read(ends[0], what->text, sizeof what->text - 1);
    what->text[n > 0 ? n : 0] = '\0';
    close(ends[0]);
    int status = 0;
    waitpid(pid, &status, 0);
    if (late)
        return probe_fail(what, "did not end within %d ms", CHECK_MS);
    return judge(check, status, what);
}

static bool wanted(const struct probe_check *check, char *const *groups)
{
    if (*groups == NULL)
        return true;
    for (; *groups != NULL; groups++)
        if (strcmp(*groups, check->group) == 0)
            return true;
    return false;
}

static bool profile_set(const char *name)
{
    static const char *const names[] = {
        [PROBE_STRICT] = "strict", [PROBE_DEFAULT] = "default", [PROBE_RELAXED] = "relaxed"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        if (strcmp(names[i], name) == 0) {
            profile = (enum probe_profile)i;
            return true;
        }
    return false;
}

static void checks_add(struct probe_list *list)
{
    probe_add_paths(list);
    probe_add_mounts(list);
    probe_add_calls(list);
    probe_add_profile(list);
    probe_add_privileges(list);
    probe_add_agent(list);
    probe_add_network(list);
    probe_add_neighbour(list);
    probe_add_limits(list);
}

int main(int argc, char **argv)
{
    struct probe_list list = {0};
    int passed = 0;
    int failed = 0;
    bool only_list = false;
    char *const *groups = argv + 1;
    signal(SIGPIPE, SIG_IGN);
    if (argc > 1 && strcmp(argv[1], "--neighbour") == 0)
        return probe_neighbour(argc > 2 && strcmp(argv[2], "--greedy") == 0);
    for (; *groups != NULL && (*groups)[0] == '-'; groups++) {
        if (strcmp(*groups, "--list") == 0)
            only_list = true;
        else if (strcmp(*groups, "--one-id") == 0)
            one_id = true;
        else if (strcmp(*groups, "--profile") != 0 || groups[1] == NULL || !profile_set(*++groups))
            return 2;
    }
    checks_add(&list);
    for (size_t i = 0; i < list.count; i++) {
        const struct probe_check *check = &list.items[i];
        struct probe_text what = {{0}};
        if (!wanted(check, groups))
            continue;
        if (only_list) {
            printf("%s %s\n", check->group, check->name);
            continue;
        }
        bool good = run_check(check, &what);
        if (good)
            printf("ok   %-12s %s\n", check->group, check->name);
        else
            printf("FAIL %-12s %s: %s\n", check->group, check->name, what.text);
        passed += good;
        failed += !good;
    }
    if (!only_list)
        printf("%d passed, %d failed\n", passed, failed);
    free(list.items);
    return failed != 0;
}
