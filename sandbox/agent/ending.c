/* How the instance ends: asked to, by its own lifetime, or because main exited. */
#include <signal.h>
#include <unistd.h>

#include "base/clock.h"
#include "sandbox/agent/agent.h"

static void end(struct agent *a) __attribute__((noreturn));
static void end(struct agent *a)
{
    channel_flush(a);
    /* The kernel kills whatever is left in our pid namespace. */
    _exit(0);
}

void ending_now(struct agent *a, enum end_reason reason, const char *message)
{
    Skerry__Agent__Ending ending = SKERRY__AGENT__ENDING__INIT;
    ending.reason = (uint32_t)reason;
    ending.message = (char *)(uintptr_t)message;
    Skerry__Agent__FromAgent event = SKERRY__AGENT__FROM_AGENT__INIT;
    event.message_case = SKERRY__AGENT__FROM_AGENT__MESSAGE_ENDING;
    event.ending = &ending;
    channel_send(a, &event, NULL);
    end(a);
}

void ending_stop(struct agent *a, enum end_reason reason, uint64_t grace_ms)
{
    uint64_t at = clock_boot_ms() + grace_ms;
    if (!a->stopping) {
        a->stopping = true;
        a->stop_reason = reason;
        struct command *main = command_find(a, 0);
        if (main != NULL)
            command_signal(main, SIGTERM);
        else
            (void)kill(-1, SIGTERM);
        /* There may be nobody to wait for. */
        loop_deadline(a, DEADLINE_REAP, clock_boot_ms());
    }
    /* A second stop may shorten the grace, never lengthen it. */
    if (a->deadlines[DEADLINE_STOP] == 0 || at < a->deadlines[DEADLINE_STOP])
        loop_deadline(a, DEADLINE_STOP, at);
}

enum end_reason ending_of_main(const struct agent *a)
{
    return !a->started ? END_NONE : a->stopping ? a->stop_reason : END_EXITED;
}

void ending_main_exited(struct agent *a)
{
    a->main_exited = true;
    if (!a->started)
        ending_now(a, END_START_FAILED, "its main process ended before it was let go");
    end(a);
}
