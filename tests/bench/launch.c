/* tests/bench/launch.c - runs a program COUNT times, GAP_MS apart, and takes its time:
 *
 *     launch COUNT GAP_MS PROGRAM [ARGUMENT...]
 *
 * A line for each run: microseconds from before it was started to when it was waited for; of it, what it waited
 * for and what it left behind, microseconds of CPU and the most memory that one process had, in KiB. What is left
 * behind has ended before the next run begins. Static and small, for what a program has between vfork and exec
 * counts as its own. Ends with 1 when a run did. */
#include <fcntl.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

static double now_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec / 1e3;
}

static double time_us(const struct timeval *t)
{
    return (double)t->tv_sec * 1e6 + (double)t->tv_usec;
}

static double cpu_us(const struct rusage *usage)
{
    return time_us(&usage->ru_utime) + time_us(&usage->ru_stime);
}

/* Processes that a program leaves behind become ours. */
static void add_left_behind(double *cpu, long *peak)
{
    struct rusage usage;
    while (wait4(-1, NULL, 0, &usage) > 0) {
        *cpu += cpu_us(&usage);
        if (usage.ru_maxrss > *peak)
            *peak = usage.ru_maxrss;
    }
}

int main(int argc, char **argv)
{
    posix_spawn_file_actions_t files;
    if (argc < 4) {
        fprintf(stderr, "usage: launch COUNT GAP_MS PROGRAM [ARGUMENT...]\n");
        return 2;
    }
    if (prctl(PR_SET_CHILD_SUBREAPER, 1) != 0 || posix_spawn_file_actions_init(&files) != 0 ||
        posix_spawn_file_actions_addopen(&files, STDIN_FILENO, "/dev/null", O_RDONLY, 0) != 0 ||
        posix_spawn_file_actions_addopen(&files, STDOUT_FILENO, "/dev/null", O_WRONLY, 0) != 0)
        return 1;
    for (int i = atoi(argv[1]); i > 0; i--) {
        struct rusage usage;
        pid_t pid;
        int status = 0;
        (void)usleep((useconds_t)atoi(argv[2]) * 1000);
        double begun = now_us();
        if (posix_spawn(&pid, argv[3], &files, NULL, argv + 3, environ) != 0 ||
            wait4(pid, &status, 0, &usage) != pid || status != 0) {
            fprintf(stderr, "launch: %s ended with status %d\n", argv[3], status);
            return 1;
        }
        double taken = now_us() - begun, cpu = cpu_us(&usage);
        add_left_behind(&cpu, &usage.ru_maxrss);
        printf("%.0f %.0f %ld\n", taken, cpu, usage.ru_maxrss);
    }
    return 0;
}
