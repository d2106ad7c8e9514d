#include "sandbox/runner/rootless.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "base/memory.h"
#include "sandbox/runner/state.h"

#define LACK_SIZE 200

/* The process of the instance whose folder this is; 0: it has ended. */
static pid_t agent_of(int instances, const char *name, const char *boot)
{
    struct err e;
    Skerry__State__State *s;
    CLEANUP_FD int folder =
        openat(instances, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (folder < 0 || state_read(folder, &s, &e) < 0)
        return 0;
    CLEANUP_FD int process = state_process_open(s, boot, &e);
    pid_t pid = process < 0 ? 0 : (pid_t)s->pid;
    skerry__state__state__free_unpacked(s, NULL);
    return pid;
}

/* Into the namespace of any instance that lives on and has its folder in `path`. */
static bool join_any(const char *path)
{
    char boot[40];
    struct err e;
    bool joined = false;
    if (state_boot_id(boot, &e) < 0)
        return false;
    DIR *folder = opendir(path);
    for (struct dirent *entry = folder == NULL ? NULL : readdir(folder); entry != NULL && !joined;
         entry = readdir(folder)) {
        pid_t pid = entry->d_name[0] == '.' ? 0 : agent_of(dirfd(folder), entry->d_name, boot);
        if (pid == 0)
            continue;
        joined = userns_join(pid, &e) == 0;
        if (!joined)
            log_warn("runner", "%s: %s", entry->d_name, e.msg);
    }
    if (folder != NULL)
        closedir(folder);
    return joined;
}

/* As runner.c will have it. */
static int instances_find(const struct runner_options *o, char *out, size_t size, struct err *e)
{
    struct runner_config config;
    int rc = runner_config_load(&config, o->config_path, e);
    if (rc < 0)
        return rc;
    bool fits = config.instances[0] != '\0'
                    ? text_copy(out, size, config.instances)
                    : text_format(out, size, "%s/instances",
                                  o->directory != NULL ? o->directory : config.directory);
    runner_config_free(&config);
    return fits ? 0 : err_set(e, ERR_INVALID, "directory: its path is too long");
}

static int execute_again(char *const *argv, char *lack, struct err *e)
{
    static char flag[] = "--" ROOTLESS_ARGUMENT;
    size_t count = 0;
    while (argv[count] != NULL)
        count++;
    char **more = calloc(count + 3, sizeof *more);
    if (more == NULL)
        return err_set(e, ERR_NO_MEMORY, "arguments");
    memcpy(more, argv, count * sizeof *more);
    more[count] = flag;
    more[count + 1] = lack;
    execve("/proc/self/exe", more, environ);
    int sys = errno;
    free(more);
    return err_sys(e, ERR_IO, sys, "execute the runner again");
}

int rootless_enter(const struct runner_options *o, char *const *argv, struct err *e)
{
    char instances[128], lack[LACK_SIZE];
    enum userns_ids ids, wanted;
    int rc = instances_find(o, instances, sizeof instances, e);
    if (rc == 0)
        rc = userns_probe(&wanted, lack, sizeof lack, e);
    if (rc < 0)
        return rc;
    if (!join_any(instances))
        rc = userns_enter(&ids, lack, sizeof lack, e);
    else if (wanted == USERNS_RANGE && userns_ids() == USERNS_ONE)
        text_copy(lack, sizeof lack, "instances that began without them live on; stop them first");
    return rc < 0 ? rc : execute_again(argv, lack, e);
}
