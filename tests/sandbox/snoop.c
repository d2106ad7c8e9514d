/* Code that lies in wait for processes which the agent starts beside it: snoop MS. Until exec such a
 * process is a copy of the agent, with its descriptors and its program, so nobody may get hold of it
 * before (CVE-2016-9962, CVE-2019-5736). Tells how many it got hold of, and how many of them too soon. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PIDS 400

static long now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* True when it runs a program of its own, filtered. */
static int has_executed(int pid)
{
    char path[64];
    char text[4096] = "";
    char exe[256] = "";
    snprintf(path, sizeof path, "/proc/%d/exe", pid);
    if (readlink(path, exe, sizeof exe - 1) < 0)
        return 0;
    snprintf(path, sizeof path, "/proc/%d/status", pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || read(fd, text, sizeof text - 1) <= 0)
        return 0;
    close(fd);
    return strstr(exe, "agent") == NULL && strstr(exe, "memfd") == NULL &&
           strstr(text, "Seccomp:\t2") != NULL && strstr(text, "CapPrm:\t0000000000000000") != NULL;
}

/* 1: got hold of it; -1: too soon. */
static int seize(int pid)
{
    int status;
    if (ptrace(PTRACE_SEIZE, pid, NULL, NULL) != 0)
        return 0;
    if (ptrace(PTRACE_INTERRUPT, pid, NULL, NULL) != 0 || waitpid(pid, &status, __WALL) != pid ||
        !WIFSTOPPED(status))
        return 1;
    int good = has_executed(pid);
    ptrace(PTRACE_DETACH, pid, NULL, NULL);
    return good ? 1 : -1;
}

int main(int argc, char **argv)
{
    long until = now_ms() + (argc > 1 ? atol(argv[1]) : 1000);
    unsigned long tries = 0, held = 0, caught = 0;
    printf("ready\n");
    fflush(stdout);
    while (now_ms() < until)
        for (int pid = 2; pid < PIDS; pid++) {
            char path[64];
            if (pid == getpid())
                continue;
            int got = seize(pid);
            tries++;
            held += got != 0;
            caught += got < 0;
            /* Its descriptors, for as long as it is not its own yet. */
            snprintf(path, sizeof path, "/proc/%d/fd/4", pid);
            int fd = open(path, O_RDWR | O_CLOEXEC);
            caught += fd >= 0;
            if (fd >= 0)
                close(fd);
        }
    printf("%lu tries, %lu held, %lu caught\n", tries, held, caught);
    return caught > 0;
}
