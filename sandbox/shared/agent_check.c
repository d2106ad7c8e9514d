#include "sandbox/shared/agent_check.h"

#include <stdbool.h>
#include <string.h>

#include "sandbox/runner.pb-c.h"

static int check_environment(char *const *environment, size_t count, struct err *e)
{
    for (size_t i = 0; i < count; i++) {
        const char *equals = strchr(environment[i], '=');
        if (equals == NULL || equals == environment[i])
            return err_set(e, ERR_INVALID, "environment: entry %zu is not NAME=value", i + 1);
    }
    return 0;
}

static int check_user(uint32_t uid, uint32_t gid, struct err *e)
{
    if (uid >= AGENT_UID || gid >= AGENT_UID)
        return err_set(e, ERR_INVALID, "user %u:%u: ids go from 0 to %u", uid, gid, AGENT_UID - 1);
    return 0;
}

static int check_setup(const Skerry__Agent__Setup *setup, size_t descriptors, struct err *e)
{
    if (descriptors != 0 && descriptors != 2)
        return err_set(e, ERR_INVALID, "setup with %zu descriptors, not the two logs", descriptors);
    if (setup->seccomp.len % 8 != 0 || setup->seccomp.len > AGENT_SECCOMP_BYTES_MAX)
        return err_set(e, ERR_INVALID, "seccomp filter of %zu bytes", setup->seccomp.len);
    if (setup->directory[0] != '/')
        return err_set(e, ERR_INVALID, "directory is not absolute");
    if (setup->port > 65535)
        return err_set(e, ERR_INVALID, "port %u", setup->port);
    if (setup->ready > SKERRY__RUNNER__READY__READY_NONE)
        return err_set(e, ERR_INVALID, "ready %u is unknown", setup->ready);
    if (setup->ready == SKERRY__RUNNER__READY__READY_LISTEN && setup->port == 0)
        return err_set(e, ERR_INVALID, "ready when listening, but no port");
    if (setup->ready == SKERRY__RUNNER__READY__READY_HEALTHCHECK && setup->n_health_test == 0)
        return err_set(e, ERR_INVALID, "ready when healthy, but no test");
    int rc = check_user(setup->uid, setup->gid, e);
    return rc != 0 ? rc : check_environment(setup->environment, setup->n_environment, e);
}

static int check_command(const Skerry__Agent__Command *command, bool main, size_t descriptors,
                         struct err *e)
{
    if (main != (command->exec_id == 0))
        return err_set(e, ERR_INVALID, "exec id %u", command->exec_id);
    if (command->file_verb > SKERRY__RUNNER__FILE_VERB__FILE_WRITE_PLAIN)
        return err_set(e, ERR_INVALID, "file verb %u is unknown", command->file_verb);
    bool files = command->file_verb != SKERRY__RUNNER__FILE_VERB__FILE_NONE;
    if (files && (main || command->tty || command->n_command > 0 || command->path[0] != '/'))
        return err_set(e, ERR_INVALID, "a file verb takes an absolute path and nothing else");
    if (!files && !main && command->n_command == 0)
        return err_set(e, ERR_INVALID, "no command");
    if (command->n_command > 0 && command->command[0][0] == '\0')
        return err_set(e, ERR_INVALID, "the command's name is empty");
    if (command->tty && command->pipes)
        return err_set(e, ERR_INVALID, "a terminal and pipes at once");
    if (command->hold && (!main || command->tty || command->n_command == 0))
        return err_set(e, ERR_INVALID, "only a main command without a terminal is held");
    if (command->rows > 65535 || command->columns > 65535)
        return err_set(e, ERR_INVALID, "window of %ux%u", command->columns, command->rows);
    size_t want = !command->pipes ? 0 : command->no_stdin ? 2 : 3;
    if (descriptors != want)
        return err_set(e, ERR_INVALID, "%zu descriptors instead of %zu", descriptors, want);
    int rc = command->set_user ? check_user(command->uid, command->gid, e) : 0;
    return rc != 0 ? rc : check_environment(command->environment, command->n_environment, e);
}

int agent_check(const Skerry__Agent__ToAgent *message, size_t descriptor_count, struct err *e)
{
    switch (message->verb_case) {
    case SKERRY__AGENT__TO_AGENT__VERB_SETUP:
        return check_setup(message->setup, descriptor_count, e);
    case SKERRY__AGENT__TO_AGENT__VERB_START:
        return check_command(message->start, true, descriptor_count, e);
    case SKERRY__AGENT__TO_AGENT__VERB_EXEC:
        return check_command(message->exec, false, descriptor_count, e);
    case SKERRY__AGENT__TO_AGENT__VERB_SIGNAL:
        if (message->signal->signal < 1 || message->signal->signal > 64)
            return err_set(e, ERR_INVALID, "signal %u", message->signal->signal);
        break;
    case SKERRY__AGENT__TO_AGENT__VERB_RESIZE:
        if (message->resize->rows > 65535 || message->resize->columns > 65535)
            return err_set(e, ERR_INVALID, "window size");
        break;
    case SKERRY__AGENT__TO_AGENT__VERB_STOP:
    case SKERRY__AGENT__TO_AGENT__VERB_HELLO:
    case SKERRY__AGENT__TO_AGENT__VERB_LIFE:
    case SKERRY__AGENT__TO_AGENT__VERB_DEADLINE:
    case SKERRY__AGENT__TO_AGENT__VERB_GO:
        break;
    default:
        return err_set(e, ERR_INVALID, "unknown verb");
    }
    if (descriptor_count != 0)
        return err_set(e, ERR_INVALID, "a verb that takes no descriptor");
    return 0;
}
