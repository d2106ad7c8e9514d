/* The simulator: build/sim [--seeds N] [--from S] [--seed S] [--only gossip|raft] [--guard off]
 *                         [--trace] [--messages] [--table NODES] [--steady].
 *
 * --seeds N runs N seeds, from S if given, each through every scenario; a failure prints the seed, is run
 * again with its schedule shown, and ends the program with 1. --seed S runs that one alone. --messages
 * adds libraft's messages to a trace. --table prints gossip's times and bytes for groups up to NODES,
 * with --steady none that have slow members.
 *
 * --guard off takes raft/guard.c out of the way: then one of N seeds must show a lost entry (--trace: all
 * that do), each in a process of its own since libraft may do anything; else the program ends with 1. */
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/memory.h"
#include "tests/sim/gossip_chaos.h"
#include "tests/sim/raft_chaos.h"

/* A seed takes less than a second; with a sanitizer, some. */
enum { SEED_CPU_SECONDS_MAX = 60 };

struct options {
    uint64_t seeds, from, seed;
    uint32_t table;
    const char *only;
    bool guard_off, trace, messages, steady;
};

struct failure {
    char text[600];
};

static bool run_gossip_chaos(const struct options *o, uint64_t seed, bool trace, struct failure *f)
{
    struct gossip_failure g = {""};
    (void)o;
    bool good = gossip_chaos(seed, trace, &g);
    (void)text_format(f->text, sizeof f->text, "%s", g.text);
    return good;
}

static bool run_gossip_healthy(const struct options *o, uint64_t seed, bool trace,
                               struct failure *f)
{
    struct gossip_failure g = {""};
    (void)o;
    bool good = gossip_healthy(seed, trace, &g);
    (void)text_format(f->text, sizeof f->text, "%s", g.text);
    return good;
}

static bool run_raft(const struct options *o, uint64_t seed, bool trace, struct failure *f)
{
    struct raft_chaos_options raft = {.seed = seed,
                                      .guard_off = o->guard_off,
                                      .trace = trace,
                                      .trace_messages = trace && o->messages};
    struct raft_chaos_counts counts = {0};
    bool good = raft_chaos(&raft, &counts, f->text, sizeof f->text);
    if (trace)
        printf("%" PRIu64 " writes asked, %" PRIu64 " acknowledged, log to %" PRIu64 "; %" PRIu64
               " exclusive instances, %" PRIu64 " leases ended; converged %.1f s after healing\n",
               counts.asked, counts.acknowledged, counts.committed, counts.started, counts.expired,
               (double)counts.converged_us / 1e6);
    return good;
}

static const struct scenario {
    const char *name;
    bool (*run)(const struct options *o, uint64_t seed, bool trace, struct failure *f);
} scenarios[] = {{"gossip chaos", run_gossip_chaos},
                 {"gossip healthy", run_gossip_healthy},
                 {"raft chaos", run_raft}};

static bool wanted(const struct options *o, const struct scenario *s)
{
    return o->only == NULL || strncmp(s->name, o->only, strlen(o->only)) == 0;
}

/* What runs: for the last words of a process that libraft kills. */
static char running[100];

static void last_words(int signal)
{
    ssize_t written = write(STDOUT_FILENO, running, strlen(running));
    _exit(written < 0 ? 1 : 128 + signal);
}

static void last_words_prepare(void)
{
    const struct sigaction action = {.sa_handler = last_words};
    sigaction(SIGSEGV, &action, NULL);
    sigaction(SIGBUS, &action, NULL);
    sigaction(SIGABRT, &action, NULL);
}

static bool run_seed(const struct options *o, uint64_t seed, bool trace)
{
    for (size_t i = 0; i < ARRAY_SIZE(scenarios); i++) {
        struct failure f = {""};
        if (!wanted(o, &scenarios[i]))
            continue;
        (void)text_format(running, sizeof running,
                          "\n%s: DIED, seed %" PRIu64 "\nagain: build/sim --seed %" PRIu64 "\n",
                          scenarios[i].name, seed, seed);
        if (trace)
            printf("== %s, seed %" PRIu64 "\n", scenarios[i].name, seed);
        if (scenarios[i].run(o, seed, trace, &f))
            continue;
        if (!trace) {
            printf("== %s fails with seed %" PRIu64 "; its schedule:\n", scenarios[i].name, seed);
            (void)scenarios[i].run(o, seed, true, &f);
        }
        printf("%s: FAILED, seed %" PRIu64 ": %s\nagain: build/sim --seed %" PRIu64 " --only %s\n",
               scenarios[i].name, seed, f.text, seed, o->only == NULL ? "raft" : o->only);
        return false;
    }
    return true;
}

/* --- without the guard ------------------------------------------------------------------------------- */

/* What the seed shows, out of a process of its own. False: nothing. */
static bool shows(const struct options *o, uint64_t seed, char *what, size_t size)
{
    int ends[2];
    assert_always(pipe(ends) == 0);
    fflush(stdout);
    pid_t child = fork();
    assert_always(child >= 0);
    if (child == 0) {
        struct failure f = {""};
        /* libraft may go round for ever, as it reads what it wrote without the guard. */
        const struct rlimit cpu = {SEED_CPU_SECONDS_MAX, SEED_CPU_SECONDS_MAX};
        assert_always(setrlimit(RLIMIT_CPU, &cpu) == 0);
        /* What the C library says of libraft's double frees. */
        if (!o->trace && freopen("/dev/null", "w", stderr) == NULL)
            _exit(2);
        bool good = run_raft(o, seed, false, &f);
        ssize_t written = write(ends[1], f.text, sizeof f.text);
        _exit(good || written < 0 ? 0 : 1);
    }
    close(ends[1]);
    struct failure f = {""};
    int status = 0;
    ssize_t got = read(ends[0], f.text, sizeof f.text);
    close(ends[0]);
    assert_always(waitpid(child, &status, 0) == child);
    if (WIFSIGNALED(status))
        return text_format(what, size, "libraft itself: %s", strsignal(WTERMSIG(status)));
    f.text[sizeof f.text - 1] = '\0';
    (void)text_format(what, size, "%s", got > 0 ? f.text : "");
    return WEXITSTATUS(status) != 0;
}

/* Beside lost entries there are members that stand still, and crashes; all are libraft's. */
static bool run_without_guard(const struct options *o)
{
    uint64_t failed = 0, lost = 0, first = 0;
    for (uint64_t i = 0; i < o->seeds; i++) {
        char what[600];
        if (!shows(o, o->from + i, what, sizeof what))
            continue;
        failed++;
        if (strstr(what, "a committed entry was lost") == NULL)
            continue;
        if (lost++ == 0)
            first = o->from + i;
        if (lost == 1 || o->trace)
            printf("without the guard, seed %" PRIu64 ": %s\n", o->from + i, what);
    }
    if (lost == 0)
        printf("FAILED: without the guard %" PRIu64
               " seeds show no lost entry: the checks do not bite\n",
               o->seeds);
    else
        printf("sim: without the guard %" PRIu64 " of %" PRIu64 " seeds fail, %" PRIu64
               " with a lost entry, the first with seed %" PRIu64 "\n",
               failed, o->seeds, lost, first);
    return lost > 0;
}

/* --- options ------------------------------------------------------------------------------------------ */

static int usage(void)
{
    fprintf(stderr, "usage: sim [--seeds N] [--from S] [--seed S] [--only gossip|raft] "
                    "[--guard off] [--trace] [--messages] [--table NODES] [--steady]\n");
    return 2;
}

static bool option_read(struct options *o, const char *name, const char *text)
{
    uint64_t value = text == NULL ? 0 : strtoull(text, NULL, 10);
    if (strcmp(name, "--seeds") == 0)
        o->seeds = value;
    else if (strcmp(name, "--seed") == 0)
        o->seed = value;
    else if (strcmp(name, "--from") == 0)
        o->from = value;
    else if (strcmp(name, "--table") == 0)
        o->table = (uint32_t)value;
    else if (strcmp(name, "--only") == 0)
        return (o->only = text) != NULL;
    else if (strcmp(name, "--guard") == 0)
        return text != NULL && (o->guard_off = strcmp(text, "off") == 0);
    else
        return false;
    return value != 0;
}

int main(int argc, char **argv)
{
    struct options o = {.from = 1};
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--trace") == 0)
            o.trace = true;
        else if (strcmp(argv[i], "--messages") == 0)
            o.messages = true;
        else if (strcmp(argv[i], "--steady") == 0)
            o.steady = true;
        else if (!option_read(&o, argv[i], i + 1 < argc ? argv[i + 1] : NULL))
            return usage();
        else
            i++;
    }
    if (!o.guard_off)
        last_words_prepare();
    if (o.seed != 0)
        return run_seed(&o, o.seed, o.trace) ? 0 : 1;
    if (o.guard_off)
        return run_without_guard(&o) ? 0 : 1;
    for (uint64_t i = 0; i < o.seeds; i++) {
        if (!run_seed(&o, o.from + i, o.trace))
            return 1;
    }
    if (o.seeds > 0)
        printf("sim: %" PRIu64 " seeds passed%s%s\n", o.seeds, o.only == NULL ? "" : ", only ",
               o.only == NULL ? "" : o.only);
    return o.table == 0 || gossip_table(o.table, !o.steady, 1) ? 0 : 1;
}
